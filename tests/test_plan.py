"""Nothing rests while a move is due for it: random pasts, settings and nights, without a file."""

from __future__ import annotations

import os
import random
import unittest
from types import SimpleNamespace
from typing import Any, Optional

import compression_service as service
from compression_service import (
    Action,
    Config,
    File,
    Folder,
    Free,
    Library,
    Move,
    Past,
    Store,
    Take,
    Tier,
)
from tests.base import DAY

COUNT = 100 * int(os.environ.get("FUZZ", "40"))
START = 1_700_000_000.0
AGES = (0.5, 3, 8, 20, 31, 45, 100)  # days
LONG_AGO = int((START - 40 * DAY) * 1e9)  # ns
ORIGINAL, COPY = File("x.webm", 1000, LONG_AGO), File("x.opus", 600, LONG_AGO)


def some_config(chance: random.Random) -> Config:
    """Settings, whose first step may lie beyond a tier, as --older-than allows."""
    tiers = [Tier(day, bitrate=rate) for day, rate in ((7, 64_000), (30, 48_000))]
    tiers += [Tier(60, archive="/cold")]
    chosen = tuple(tier for tier in tiers if chance.random() < 0.5)
    return Config(
        tiers=chosen,
        age_threshold_days=chance.choice((0, 7, 40)),
        delete_originals=chance.random() < 0.8,
        keep_originals_days=chance.choice((0, 0, 10)),
    )


def some_past(chance: random.Random, file: File, config: Config, age: float) -> Past:
    """Something that the history may remember of a recording with this file."""
    draft = Take("d/x", originals=(file,))
    settings = service.settings_of(draft, None, config, age) + chance.choice(("", "|[]"))
    suffix = chance.choice(("", ".opus"))
    return Past(
        action=chance.choice([each.value for each in Action]),
        move=chance.choice(["", *service.RANKS, "restore"]),
        settings=chance.choice((settings, "others")),
        attempts=chance.randrange(4),
        mtime_ns=file.mtime_ns,
        first_size=1000,
        suffix=suffix,
        size=600 if suffix else 0,
        bitrate=chance.choice((96_000, 64_000, 48_000)) if suffix else 0,
        compressed=START - chance.randrange(20) * DAY,
    )


def some_take(chance: random.Random, config: Config) -> Take:
    age = chance.choice(AGES)
    mtime_ns = int((START - age * DAY) * 1e9)
    original = File("x.webm", 1000, mtime_ns)
    copy = File("x.opus", chance.choice((600, 601)), mtime_ns)
    files = chance.choice(((original,), (copy,), (original, copy)))
    known = some_past(chance, original, config, age)
    return service.take_of("d/x", files, chance.choice((service.NO_PAST, known)))


def night(config: Config, when: float) -> Any:
    moment = service.Moment(when, when)
    return SimpleNamespace(config=config, moment=moment, clock=moment)


class TestRest(unittest.TestCase):
    def folder(self, take: Take) -> Folder:
        folder = Folder("d", Library("/library"))
        folder.audio = [*take.files]
        folder.__dict__["takes"] = {"x": take}
        return folder

    def test_a_folder_rests_only_while_no_recording_in_it_has_a_move(self) -> None:
        chance = random.Random(20_251_027)
        rested = 0
        for number in range(COUNT):
            config = some_config(chance)
            take = some_take(chance, config)
            folder = self.folder(take)
            note = service.folder_note(folder, config, night(config, START).clock)
            when = START + chance.choice((0, 1, 9, 13, 30, 70)) * DAY
            later = night(config, when)
            if not note or when >= (note[0]["until"] or when + 1):
                continue
            rested += 1
            for policy in (None, service.NO_POLICY):
                due = self.move_with_sidecar(take, policy, later)
                self.assertIsNone(due, f"number {number}: {take} {config}")
        self.assertGreater(rested, COUNT // 20, "the test hardly tests anything")

    def move_with_sidecar(
        self, take: Take, policy: Optional[service.Policy], run: Any
    ) -> Optional[Move]:
        """The next move of a take whose sidecar asks for the same as before."""
        if policy is not None and "|" not in take.past.settings:
            return None  # this past was noted without its sidecars, and says nothing of them
        if policy is not None:
            asked = service.settings_of(take, policy, run.config, 0).partition("|")[2]
            first = take.past.settings.partition("|")[0]
            take = take._replace(past=take.past._replace(settings=f"{first}|{asked}"))
        return self.planned(take, run.config, policy, run.moment.now)

    def planned(
        self,
        take: Take,
        config: Config,
        policy: Optional[service.Policy] = None,
        when: float = START,
    ) -> Optional[Move]:
        moment = night(config, when).moment
        alone = service.archiving([take], policy, config, moment)
        return service.next_move(take, policy, config, moment) or next(iter(alone), None)

    def test_an_original_whose_days_are_over_goes_after_a_refused_smaller_step(self) -> None:
        config = Config(keep_originals_days=1, tiers=(Tier(30, bitrate=64_000),))
        take = Take("d/x", (ORIGINAL,), (COPY,))
        settings = service.settings_of(take._replace(rates={"x.opus": 96_000}), None, config, 40)
        refused = Past(
            action="kept",
            move="smaller",
            settings=settings,
            mtime_ns=LONG_AGO,
            first_size=1000,
            suffix=".opus",
            size=600,
            bitrate=96_000,
            compressed=START - 3 * DAY,
        )
        plan = self.planned(take._replace(past=refused), config)
        assert plan
        self.assertEqual((type(plan), plan.removes), (Free, (ORIGINAL,)))
        freed = refused._replace(action="compressed", move="free")
        after = self.planned(Take("d/x", copies=(COPY,), past=freed), config)
        self.assertIsNone(after, "the refused step is not tried every night from then on")

    def test_what_a_kill_left_here_after_it_was_archived_is_archived_again(self) -> None:
        config = Config(tiers=(Tier(30, archive="/cold"),))
        take = Take("d/x", (ORIGINAL,))
        settings = service.settings_of(take, None, config, 40)
        place = service.Place("/cold/archive-of-library/d", "x.webm", 1000, LONG_AGO)
        past = Past(
            action="archived",
            move="archive",
            settings=settings,
            mtime_ns=LONG_AGO,
            first_size=1000,
            place=place,
        )
        plan = self.planned(take._replace(past=past), config)
        assert plan
        self.assertEqual((type(plan), plan.removes), (Store, (ORIGINAL,)))


if __name__ == "__main__":
    unittest.main()
