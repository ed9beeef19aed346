"""A random walk of a library and its owner: only tiers delete audio, and every loss is reported.

Seeded, so that a failure can be played again. WALK=2000 makes that many steps; the suite makes a few.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from pathlib import Path
from typing import Any, Callable, Optional, cast
from unittest import mock

import compression_service as service
from tests.base import DAY, RECORDINGS, LibraryCase, index_entry, sidecar

KILLED = 99  # exit code of a run that was ended at one of its calls
STEPS = int(os.environ.get("WALK", "40"))
SEED = int(os.environ.get("SEED", "20251027"))
SOURCES = [(RECORDINGS / f"{name}.webm").read_bytes() for name in ("chunk_0", "chunk_1")]
TIERS: list[dict[str, Any]] = [
    {"after_days": 60, "bitrate": "48k"},
    {"after_days": 120, "archive": "cold"},
    {"after_days": 300, "delete": True},
]


class Owned:
    """The owner's own record of one chunk."""

    def __init__(self, born: float) -> None:
        self.born = born  # or when it was brought back or restored
        self.is_lost = False  # its copy was taken away by the walk
        self.kept = False


class Walk(LibraryCase):
    def setUp(self) -> None:
        super().setUp()
        self.chance = random.Random(SEED)
        self.now = time.mktime((2025, 6, 1, 3, 0, 0, 0, 0, -1))
        self.owned: dict[str, Owned] = {}
        self.tier_days: Optional[float] = None
        self.settings: dict[str, Any] = {"keep_originals_days": 0}
        self.backup: dict[str, bytes] = {}
        self.deaths = 0
        (self.folder / "cold/archive-of-recordings").mkdir(parents=True)
        self.change_tiers()

    def test_only_tiers_delete_audio_and_every_loss_is_reported(self) -> None:
        steps: dict[Callable[[], Any], int] = {
            self.record: 12, self.sleep: 25, self.go: 30, self.kill: 8, self.restore: 4, self.keep: 3,
            self.change_tiers: 3, self.lose: 5, self.bring_back: 5, self.forget: 2, self.bring_deleted: 2,
        }  # fmt: skip
        for number in range(STEPS):
            (step,) = self.chance.choices([*steps], [*steps.values()])
            try:
                step()
            except AssertionError as error:
                raise AssertionError(f"step {number} of seed {SEED}, {step.__name__}") from error

    # Steps

    def record(self) -> None:
        day = time.strftime("%Y-%m-%d", time.localtime(self.now))
        name = f"{day}/{len(self.owned):04}"
        count = self.chance.randint(1, 2)
        names = [f"{name}-{number}.webm" for number in range(count)]
        for path in names:
            self.add_bytes(self.chance.choice(SOURCES), path, self.now)
            self.owned[path[:-5]] = Owned(self.now)
        files = [path.rpartition("/")[2] for path in names]
        if self.chance.random() < 0.9:
            about = sidecar(name, files)
            if self.chance.random() < 0.15:
                about["full_transcription"] = ""
                about["chunks"] = [{"file": file} for file in files]
            self.add_json(f"{names[0][:-5]}.json", about)
            self.add_to_index(index_entry(name, 50_000 * count, count))

    def sleep(self) -> None:
        self.now += self.chance.choice((1, 1, 1, 8, 30)) * DAY

    def go(self, *words: str, ends: float = 0) -> Optional[str]:
        """A run at this time; it may be killed at one of its calls."""
        calls = 0

        def strike(name: str) -> Any:
            real = getattr(os, name)

            def call(*asked: Any, **named: Any) -> Any:
                nonlocal calls
                calls += 1
                if ends and calls >= ends:
                    os._exit(KILLED)
                return real(*asked, **named)

            return call

        before = self.here() | self.archived()
        patches = [
            mock.patch.object(os, name, strike(name))
            for name in ("unlink", "rename", "link", "fsync", "fdatasync")
        ]
        said = None
        with contextlib.ExitStack() as stack:
            for patch in patches if ends else ():
                stack.enter_context(patch)
            stack.enter_context(self.at_this_time())
            if ends:
                ran = self.run_cli("--json", "-j", "1", *words)
            else:
                ran = self.run_here("run", "--json", "-j", "1", *words)
            self.assertNotIn("Traceback", ran.err)
            self.assertNotIn("defect", ran.out + ran.err)
            self.assertIn(ran.code, (0, 1, KILLED), ran.out + ran.err)
            said = None if ran.code == KILLED else ran.out
        self.look(before, said)
        return said

    def at_this_time(self) -> Any:
        return mock.patch.object(time, "time", lambda: self.now)

    def kill(self) -> None:
        self.go(ends=self.chance.randint(1, 60))
        self.now += DAY

    def restore(self) -> None:
        stems = [stem for stem in self.owned if stem in self.archived()]
        if stems:
            stem = self.chance.choice(stems)
            found = sorted(self.library.glob(f"{stem[:-2]}-0.json"))
            here = self.here()
            with self.at_this_time():
                ran = self.run_here("restore", *map(str, found or [self.library / f"{stem}.opus"]))
            self.assertNotIn("Traceback", ran.err)
            for other in self.owned:
                if other[:-2] == stem[:-2] and other not in here and not ran.code:
                    self.owned[other].born = self.now

    def keep(self) -> None:
        if not self.owned:
            return
        stem = self.chance.choice([*self.owned])
        about = self.library / f"{stem[:-2]}-0.json"
        if about.exists():
            off = ["--off"] if self.chance.random() < 0.5 else []
            if not self.run_here("keep", str(about), *off).code:
                for other in self.owned:
                    if other[:-2] == stem[:-2]:
                        self.owned[other].kept = not off

    def change_tiers(self) -> None:
        chosen = [dict(tier) for tier in TIERS if self.chance.random() < 0.7]
        for tier in chosen:
            if "archive" in tier:
                tier["archive"] = str(self.folder / "cold")
        self.tier_days = None
        if chosen and "delete" in chosen[-1]:
            self.tier_days = chosen[-1]["after_days"] = self.chance.choice((200, 300))
        self.settings = {"tiers": chosen, "keep_originals_days": self.chance.choice((0, 20))}
        self.configure(**self.settings, check_days=self.chance.choice((0, 1, 30)))

    def lose(self) -> None:
        """Takes away the only copy of a recording."""
        copies = [
            path for path in self.library.glob("*/*.opus") if not path.with_suffix(".webm").exists()
        ]
        if copies:
            path = self.chance.choice(sorted(copies))
            stem = self.stem(path)
            self.backup[stem] = path.read_bytes()
            path.unlink()
            self.owned[stem].is_lost = True

    def bring_back(self) -> None:
        lost = [stem for stem in self.backup if self.owned.get(stem) and self.owned[stem].is_lost]
        if lost:
            stem = self.chance.choice(lost)
            self.add_bytes(self.backup.pop(stem), f"{stem}.opus", self.owned[stem].born)
            self.owned[stem].is_lost = False

    def bring_deleted(self) -> None:
        """Something is put in place of what a tier has deleted."""
        gone = [stem for stem in self.deleted() if stem in self.owned and stem not in self.here()]
        if gone:
            stem = self.chance.choice(sorted(gone))
            self.add_bytes(SOURCES[0], f"{stem}.webm", self.now)
            self.owned[stem].born = self.now

    def forget(self) -> None:
        """Its owner deletes a recording with its documents, as the recorder does."""
        if not self.owned:
            return
        name = self.chance.choice([*self.owned])[:-2]
        for path in self.library.glob(f"{name}-*"):
            path.unlink()
        document = self.read_json("index.json") if (self.library / "index.json").exists() else None
        if document:
            document["recordings"] = [each for each in document["recordings"] if each["id"] != name]
            self.add_json("index.json", document, indent=2)
        for stem in [stem for stem in self.owned if stem[:-2] == name]:
            del self.owned[stem]

    # Promises

    def stem(self, path: Path) -> str:
        return str(path.relative_to(self.library).with_suffix(""))

    def here(self) -> set[str]:
        return {
            self.stem(path)
            for suffix in ("webm", "opus")
            for path in self.library.glob(f"*/*.{suffix}")
        }

    def archived(self) -> set[str]:
        place = self.folder / "cold/archive-of-recordings"
        return {str(path.relative_to(place).with_suffix("")) for path in place.glob("*/*.*")}

    def pasts(self) -> dict[str, service.Past]:
        return dict(service.Library(str(self.library)).history.pasts)

    def deleted(self) -> set[str]:
        return {stem for stem, past in self.pasts().items() if past.deleted}

    def look(self, before: set[str], said: Optional[str]) -> None:
        """Checks after a run that only a tier has removed audio, and that every loss is reported."""
        there = self.here() | self.archived()
        told = [json.loads(line) for line in (said or "").splitlines()]
        lost = {line["path"].rpartition(".")[0] for line in told if line.get("action") == "lost"}
        pasts = self.pasts()
        for stem, owned in self.owned.items():
            owned.is_lost = owned.is_lost and stem not in self.here()  # a restore may end it
            if owned.is_lost:
                if (
                    said is not None
                    and pasts.get(stem, service.NO_PAST).has_copy
                    and self.is_named(stem)
                ):
                    past = pasts[stem]
                    self.assertTrue(
                        stem in lost or past.is_lost, f"the loss of {stem} is not reported"
                    )
            elif stem not in there:
                days = (self.now - owned.born) / DAY
                gone = stem in pasts and pasts[stem].deleted > 0
                self.assertTrue(gone, f"{stem} is gone, and the history does not say so")
                if stem in before:
                    self.assertIsNotNone(self.tier_days, f"{stem} is gone without a tier")
                    self.assertGreaterEqual(
                        days, cast(float, self.tier_days) - 1, f"{stem} was young"
                    )
                    self.assertFalse(owned.kept, f"{stem} was to be kept")
                    text = (self.library / f"{stem[:-2]}-0.json").read_text()
                    self.assertIn('"audio_deleted"', text, f"nothing says that {stem} was deleted")
            self.assertNotIn(
                stem, lost - ({stem} if owned.is_lost else set()), "no loss, but reported"
            )
        for line in told[-1:]:
            self.assertNotIn("defect", line["message"])

    def is_named(self, stem: str) -> bool:
        return (self.library / f"{stem[:-2]}-0.json").exists()


if __name__ == "__main__":
    import unittest

    unittest.main()
