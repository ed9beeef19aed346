"""Killed, out of space or failing at any system call: nothing is lost, and the next run finishes the job.

Every promise is played on a sample of the calls; with CRASH_ALL=1 in the environment on every one.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import unittest
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Optional

from tests.base import PROJECT, LibraryCase
from tests.crash import (
    CALLS,
    FLUSH,
    KILL,
    LINK,
    OPEN,
    REMOVE,
    RENAME,
    STRACE,
    WRITE,
    AnnouncingHarness,
    DeletingHarness,
    Event,
    Harness,
    MovingHarness,
    Played,
    Point,
    disorder,
    distrust,
    kill_points,
    make_tools,
    points,
    sample,
)

DAY = "/recordings/2025-10-27"
DOCUMENTS = [
    f"{DAY}/14-30-45-chunk-1.json",
    f"{DAY}/14-30-45-chunk-2.json",
]  # the index, which names no files, may follow
DISK_FULL, DISK_BROKEN = "error=ENOSPC", "error=EIO"


class CrashCase(LibraryCase):
    """The library that is struck: a recording of two chunks with a sidecar each, one without, and an index."""

    tools: Path

    @classmethod
    def setUpClass(cls) -> None:
        cls.tools = Path(tempfile.mkdtemp(prefix="crash-tools-"))
        cls.addClassCleanup(shutil.rmtree, cls.tools, ignore_errors=True)
        make_tools(cls.tools)

    def setUp(self) -> None:
        if not STRACE:
            if os.environ.get("CI") and sys.platform == "linux":
                self.fail(
                    "strace is not installed, so nothing was tested: sudo apt-get install strace"
                )
            self.skipTest(
                "strace is not installed (sudo apt-get install strace; it exists for Linux only)"
            )
        super().setUp()
        self.add_session()
        self.add("ch_short_60ms", "2025-10-28/alone.webm")
        self.work = Path(tempfile.mkdtemp(prefix="crash-runs-"))
        self.addCleanup(shutil.rmtree, self.work, ignore_errors=True)
        self.use(Harness(self.work, self.folder, self.tools))

    def use(self, harness: Harness) -> None:
        self.harness = harness
        ran, self.events = self.harness.undisturbed()
        self.assertEqual((ran.code, ran.err), (0, ""))

    def assert_kept_at(self, points: Sequence[Point], template: Optional[Path] = None) -> None:
        """Every promise holds at these points."""
        missed = 0
        for played in self.harness.play_all(points, template):
            missed += not played.struck
            with self.subTest(str(played.point)):
                self.assertEqual(played.violations, [])
        most = max(2, len(points) // 10)  # how often the lock is written varies
        self.assertLessEqual(missed, most, "points which no run came to")


class PlayCase(CrashCase):
    played = existing = 0

    @classmethod
    def tearDownClass(cls) -> None:
        if cls.existing:
            print(f"\n{cls.__name__}: {cls.played} of {cls.existing} points", file=sys.stderr)

    def play(self, points: Sequence[Point], every: int, template: Optional[Path] = None) -> None:
        chosen = sample(points, every)
        type(self).existing += len(points)
        type(self).played += len(chosen)
        self.assert_kept_at(chosen, template)


class CrashTest(PlayCase):
    def test_nothing_is_lost_when_killed_at_any_system_call(self) -> None:
        self.play(kill_points(self.events), every=18)

    def test_nothing_is_lost_when_the_recovery_is_killed_too(self) -> None:
        firsts = [
            point
            for point in kill_points(self.events)
            if point.call in LINK + RENAME + REMOVE and not point.worker
        ]
        for number, first in enumerate(firsts[3::10]):
            template = self.harness.kill_at(first, self.work / f"killed-{number}")
            with self.subTest(f"killed first at {first}"):
                self.play(
                    kill_points(self.harness.calls_of_recovery(template)),
                    every=48,
                    template=template,
                )

    def test_a_full_disk_costs_nothing_and_is_told(self) -> None:
        self.play(points(self.events, DISK_FULL, OPEN + WRITE + FLUSH + LINK + RENAME), every=25)

    def test_a_disk_full_from_now_on_costs_nothing_and_is_told(self) -> None:
        self.play(
            points(self.events, DISK_FULL, OPEN + WRITE + FLUSH + LINK + RENAME, onward=True),
            every=18,
        )

    def test_an_input_output_error_costs_nothing_and_is_told(self) -> None:
        self.play(points(self.events, DISK_BROKEN, CALLS), every=30)

    def test_a_disk_broken_from_now_on_costs_nothing_and_is_told(self) -> None:
        self.play(
            points(self.events, DISK_BROKEN, OPEN + WRITE + FLUSH + LINK + RENAME, onward=True),
            every=18,
        )

    def test_what_a_deletion_rests_on_is_on_the_disk_before_it(self) -> None:
        self.assertEqual(disorder(self.events, DOCUMENTS), [])

    def test_a_recovery_flushes_the_copies_it_finds_before_it_deletes_their_originals(self) -> None:
        before_the_folder_was_flushed = next(
            Point(KILL, event.call, number + 1)
            for number, event in enumerate(
                event for event in self.events if event.call in FLUSH and not event.worker
            )
            if event.paths[0] == DAY
        )
        template = self.harness.kill_at(before_the_folder_was_flushed, self.work / "killed")
        events = self.harness.calls_of_recovery(template)
        for name in ("14-30-45-chunk-1", "14-30-45-chunk-2"):
            deletions = [
                at
                for at, event in enumerate(events)
                if event.call in REMOVE and event.paths[-1].endswith(name + ".webm")
            ]
            flushed = [event.paths[0] for event in events[: deletions[0]] if event.call in FLUSH]
            self.assertTrue(
                any(path.endswith(DAY) for path in flushed), "the folder with the copy's name"
            )
            self.assertTrue(
                any(path.endswith(name + ".opus") for path in flushed),
                "the copy, which may be another program's",
            )

    def test_a_disk_that_takes_only_half_a_line_of_the_history_costs_nothing_and_is_told(
        self,
    ) -> None:
        limit = 1 << 17  # bytes a file may have, more than any other of the run needs
        own = self.library / ".compression"
        own.mkdir()
        (own / "history.jsonl").write_text('{"type": "index"}\n' + " " * (limit - 300) + "\n")
        ran = subprocess.run(
            self.command("-j", "1"), preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)), check=False,
            capture_output=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        self.assertEqual(ran.returncode, 1, ran.stdout)
        self.assertTrue(
            (self.library / "2025-10-27/14-30-45-chunk-1.webm").exists(), "deleted without a record"
        )
        self.assertEqual(self.run_cli("-j", "1").code, 0)
        self.assert_compressed("2025-10-27/14-30-45-chunk-1.webm")


class LaterCase(PlayCase):
    """Later steps, on a library with an archive beside it."""

    def setUp(self) -> None:
        super().setUp()
        (self.folder / "cold/archive-of-recordings").mkdir(parents=True)

    def use(self, harness: Harness) -> None:
        """Each test has a harness of its own, once its library is prepared."""

    def play_all_faults(self, every: int) -> None:
        self.play(kill_points(self.events), every)
        self.play(points(self.events, DISK_FULL, OPEN + WRITE + FLUSH + LINK + RENAME), 2 * every)
        self.play(points(self.events, DISK_BROKEN, CALLS), 2 * every)


class LaterStepsTest(LaterCase):
    """What comes after the first compression: a smaller copy in place of the one before, the archive, and back again."""

    def prepare(self, *words: str, first: dict[str, object], then: dict[str, object]) -> None:
        """The library after its first runs, and what is then struck."""
        self.configure(**first)
        for _ in range(2):  # what is kept is told in the first and moved in the second
            self.assertEqual(self.run_cli("-j", "1").code, 0)
        self.configure(**then)
        CrashCase.use(self, MovingHarness(self.work, self.folder, self.tools, words))

    def test_a_copy_made_smaller_in_its_place_is_never_lost(self) -> None:
        self.prepare(
            "run", "-j", "1", first={}, then={"tiers": [{"after_days": 30, "bitrate": "48k"}]}
        )
        self.play_all_faults(48)

    def test_a_copy_made_smaller_from_its_kept_original_is_never_lost(self) -> None:
        tiers = [{"after_days": 30, "bitrate": "48k"}]
        self.prepare(
            "run",
            "-j",
            "1",
            first={"delete_originals": False},
            then={"delete_originals": False, "tiers": tiers},
        )
        self.play_all_faults(96)

    def test_what_goes_to_the_archive_is_never_lost(self) -> None:
        self.prepare(
            "run", "-j", "1", first={}, then={"tiers": [{"after_days": 30, "archive": "cold"}]}
        )
        self.play_all_faults(48)

    def test_what_is_restored_is_never_lost(self) -> None:
        self.prepare(
            "restore",
            "2025-10-27/14-30-45-chunk-1.json",
            first={"delete_originals": False},
            then={"delete_originals": False},
        )
        self.play_all_faults(48)

    def test_what_comes_back_from_the_archive_is_never_lost(self) -> None:
        archive: dict[str, object] = {"tiers": [{"after_days": 30, "archive": "cold"}]}
        self.prepare("restore", "2025-10-27/14-30-45-chunk-1.json", first=archive, then=archive)
        self.play_all_faults(48)


class DeletionTest(LaterCase):
    """A tier that deletes: it may be ended at any call, and the next run finishes what it began."""

    def prepare(self, runs: int, *tiers: dict[str, object], **first: object) -> None:
        """The library after its first runs, and so many runs with the tier."""
        then = {"tiers": [*tiers, {"after_days": 365, "delete": True}]}
        for settings, count in (({**first, "tiers": tiers}, 2), (then, runs)):
            self.configure(**settings)
            for _ in range(count):
                self.assertEqual(self.run_cli("-j", "1").code, 0)

    def use_deleting(self, kind: type[DeletingHarness] = DeletingHarness) -> None:
        CrashCase.use(self, kind(self.work, self.folder, self.tools, ("run", "-j", "1")))

    def test_copies_and_kept_originals_go_and_documents_say_so_first(self) -> None:
        self.prepare(1, keep_originals_days=9000)
        self.assertEqual(len(list(self.library.rglob("*.opus"))), 2)
        self.use_deleting()
        self.play_all_faults(36)

    def test_what_is_archived_goes_and_documents_say_so_first(self) -> None:
        self.prepare(1, {"after_days": 30, "archive": "cold"})
        self.use_deleting()
        self.play_all_faults(48)

    def test_a_half_archived_recording_goes_whole(self) -> None:
        self.prepare(0, {"after_days": 30, "archive": "cold"})
        for path in (self.folder / "cold").rglob("*chunk-1.opus"):
            shutil.copy2(path, self.library / "2025-10-27")
        self.assertEqual(self.run_cli("-j", "1").code, 0)
        self.use_deleting()
        self.play(kill_points(self.events), 40)

    def test_a_run_that_was_ended_has_announced_nothing(self) -> None:
        self.prepare(0)
        self.use_deleting(AnnouncingHarness)
        self.play(kill_points(self.events), 20)


WRONG_PROGRAM = """
import os, sys
sys.path.insert(0, {project!r})
import compression_service as program

def patch(owner, name, make):
    setattr(owner, name, make(getattr(owner, name)))  # AttributeError: the patch no longer fits the program

def unlink_original(copy):
    if copy.endswith(".opus"):
        os.unlink(copy[:-5] + ".webm")

{body}
sys.exit(program.main())
"""


class HarnessTest(CrashCase):
    """Programs made wrong on purpose: a harness that no longer bites is noticed."""

    def make_wrong(self, body: str) -> tuple[Harness, list[Event]]:
        script = self.work / "wrong.py"
        script.write_text(WRONG_PROGRAM.format(project=str(PROJECT), body=body))
        wrong = Harness(self.work, self.folder, self.tools, script)
        ran, events = wrong.undisturbed()
        self.assertNotIn("Traceback", ran.err, "the patch no longer fits the program")
        wrong.goal, wrong.copies = self.harness.goal, self.harness.copies
        return wrong, events

    def assert_noticed(
        self, words: str, played: Callable[[Point], Played], candidates: Sequence[Point]
    ) -> None:
        """One of these points brings the violation to light."""
        self.assertTrue(candidates, "the wrong program never comes to the calls that matter")
        self.assertTrue(
            any(
                words in violation for point in candidates for violation in played(point).violations
            ),
            words,
        )

    def test_it_notices_an_original_deleted_before_its_copy_is_in_place(self) -> None:
        wrong, events = self.make_wrong(
            "patch(program, 'place', lambda place: lambda staged, final: (unlink_original(final), place(staged, final)))"
        )
        self.assert_noticed("is lost", wrong.play, points(events, KILL, LINK))
        self.assertTrue(
            [
                text
                for text in disorder(events, DOCUMENTS)
                if "was not put in its place before" in text
            ]
        )

    def test_it_notices_that_nothing_is_flushed(self) -> None:
        _, events = self.make_wrong("patch(os, 'fsync', lambda fsync: lambda descriptor: None)")
        found = "\n".join(disorder(events, DOCUMENTS))
        for path in (f"{DAY}/14-30-45-chunk-1.opus", *DOCUMENTS):
            self.assertIn(f"{path} was put in its place without being flushed", found)
            self.assertIn(f"the folder was not flushed after {path} was put in its place", found)
        self.assertIn("history.jsonl was not written and flushed before", found)
        self.assertIn("its folder is not flushed after it is deleted", found)

    def test_it_notices_json_written_in_place(self) -> None:
        wrong, events = self.make_wrong(
            "def in_place(path, edit, *others, **options):\n"
            "    text = edit(open(path, 'rb').read())\n"
            "    if text is not None:\n"
            "        open(path, 'wb').write(text)\n"
            "    return os.stat(path).st_mtime_ns\n"
            "patch(program, 'rewrite', lambda rewrite: in_place)"
        )
        in_library = [
            event for event in events if event.call in WRITE and event.paths[0].endswith(".json")
        ]
        self.assertTrue(in_library, "the patch no longer has an effect")
        writes = [event for event in events if event.call == "write" and not event.worker]
        in_place = [
            Point(KILL, "write", number + 1)
            for number, event in enumerate(writes)
            if event.paths[0].endswith(".json")
        ]
        self.assert_noticed("is broken", wrong.play, in_place)
        self.assertTrue(
            [
                text
                for text in disorder(events, DOCUMENTS)
                if ".json was not put in its place before" in text
            ]
        )

    def test_it_notices_an_original_deleted_before_its_sidecar_names_the_copy(self) -> None:
        wrong, events = self.make_wrong(
            "patch(program, 'place', lambda place: lambda staged, final: (place(staged, final), unlink_original(final)))"
        )
        self.assert_noticed("which is not there", wrong.play, points(events, KILL, RENAME))

    def test_it_notices_a_flush_that_is_tried_again(self) -> None:
        wrong, events = self.make_wrong(
            "def again(flush):\n"
            "    def stubborn(*asked):\n"
            "        try:\n"
            "            flush(*asked)\n"
            "        except OSError:\n"
            "            flush(*asked)\n"
            "    return stubborn\n"
            "patch(program, 'flush', again)"
        )
        flushes = [point for point in points(events, DISK_BROKEN, FLUSH) if point.worker]
        self.assert_noticed("put in place after its flush failed", wrong.play, flushes)

    def test_it_notices_what_is_left_behind(self) -> None:
        wrong, events = self.make_wrong(
            "patch(program.Staging, 'sweep', lambda sweep: lambda staging, folder: None)"
        )
        self.assert_noticed(".part is left", wrong.play, points(events, KILL, LINK))

    def test_it_notices_trust_in_a_folder_that_could_not_be_flushed(self) -> None:
        def event(line: str, call: str, *paths: str) -> Event:
            return Event(False, call, paths, line, "= 0" in line)

        failed = event("fsync(5</x>) = -1 EIO", "fsync", "/x")
        self.assertEqual(distrust([failed, event("unlink = 0", "unlink", "/y/a.webm")]), [])
        self.assertEqual(len(distrust([failed, event("unlink = 0", "unlink", "/x/a.webm")])), 1)


if __name__ == "__main__":
    unittest.main()
