"""What time it is, and which file is on record: judged by more than one witness."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
import unittest
from typing import Any, Optional

import compression_service as service
from compression_service import (
    Action,
    Compress,
    Config,
    File,
    Free,
    Moment,
    Move,
    Past,
    Place,
    Recording,
    Smaller,
    Store,
    Take,
    Tier,
    moves_of,
    take_of,
)

from .base import DAY, LibraryCase, Ran

NOW = 1_700_000_000.0
AGE = 40  # days
MADE = int((NOW - AGE * DAY) * 1e9) + 123_456_789
WEBM = File("x.webm", 1000, MADE)
OPUS = File("x.opus", 600, MADE)


def take(*files: File, **values: Any) -> Take:
    return take_of("day/x", files, **values)


def past(**values: Any) -> Past:
    known = {"mtime_ns": MADE, "first_size": 1000, "suffix": ".opus", "size": 600}
    known.update(action=Action.COMPRESSED.value, bitrate=96_000, compressed=NOW - 10 * DAY)
    return Past(**{**known, **values})


class WhatTimeItIs(unittest.TestCase):
    """Steps by age, as a moment of two times has them."""

    def move(self, one: Take, now: float, careful: float, **settings: Any) -> Optional[type[Move]]:
        moves = moves_of(Recording("day", (one,)), Config(**settings), Moment(now, careful))
        return type(moves[0]) if moves else None

    def test_the_first_compression_and_its_rate_go_by_now_and_nothing_else_does(self) -> None:
        tiers = (Tier(30, bitrate=24_000), Tier(50, archive="/cold"))
        self.assertIs(self.move(take(WEBM), NOW, -math.inf, tiers=tiers), Compress)
        moves = moves_of(
            Recording("day", (take(WEBM),)), Config(tiers=tiers), Moment(NOW, -math.inf)
        )
        self.assertEqual(moves[0].target.bitrate, 24_000)
        done = take(OPUS, past=past())
        later = NOW + 3650 * DAY
        self.assertIsNone(self.move(done, later, NOW - 20 * DAY, tiers=tiers))
        self.assertIsNone(self.move(done, later, -math.inf, tiers=tiers))
        self.assertIs(self.move(done, later, NOW, tiers=tiers), Smaller)
        small = take(OPUS, past=past(bitrate=24_000))
        self.assertIsNone(self.move(small, later, NOW, tiers=tiers))
        self.assertIs(self.move(small, later, NOW + 11 * DAY, tiers=tiers), Store)

    def test_days_are_over_one_hour_early_and_by_the_careful_time(self) -> None:
        kept = take(WEBM, OPUS, past=past())
        for hours, move in ((-1, Free), (-1.01, None), (0, Free)):
            now = NOW + hours * 3600
            self.assertIs(self.move(kept, now, now, keep_originals_days=10), move, hours)
        self.assertIsNone(self.move(kept, NOW + 9e9, NOW - DAY, keep_originals_days=10))


class Clocks(LibraryCase):
    """Whole nights under clocks that jump."""

    TIERS = ({"after_days": 30, "bitrate": "48k"},)

    def setUp(self) -> None:
        super().setUp()
        self.now = time.time()

    def night(self, ahead: float = 0, *words: str) -> Ran:
        """A run whose clock is so many days ahead of the real one."""
        driver = self.folder / "driver.py"
        driver.write_text(
            "import sys, time\n"
            f"sys.path.insert(0, {str(service.__file__).rpartition('/')[0]!r})\n"
            "real = time.time\n"
            f"time.time = lambda: real() + {ahead * DAY!r}\n"
            "import compression_service\n"
            "sys.exit(compression_service.main(sys.argv[1:]))\n"
        )
        words = ("run", "-c", str(self.config), "--json", *words)
        done = subprocess.run(
            [sys.executable, str(driver), *words], capture_output=True, text=True, check=False
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def sizes(self) -> dict[str, int]:
        return {path.name: path.stat().st_size for path in self.library.glob("*.*us")}

    def test_what_is_not_the_first_compression_waits_for_the_second_run(self) -> None:
        """As where the history is lost: copies of ours are all that is here."""
        self.add("chunk_1", "a.webm", self.now - 40 * DAY)
        self.assertEqual(self.night().code, 0)
        self.history().unlink()
        self.configure(tiers=self.TIERS)
        before = self.sizes()
        dry = self.night(0, "--dry-run")
        self.assertEqual((dry.summary["held"], dry.outcomes), (1, {}))
        ran = self.night()
        self.assertEqual((ran.code, ran.summary["held"], ran.outcomes), (0, 1, {}))
        self.assertIn("Waiting until another run confirms the clock: 1", ran.summary["message"])
        self.assertEqual(self.sizes(), before)
        self.assertEqual(self.night().summary["compressed"], 1)

    def test_one_jump_ahead_takes_nothing_and_the_true_nights_go_on(self) -> None:
        self.add("chunk_1", "old.webm", self.now - 20 * DAY)
        self.assertEqual(self.night().code, 0)
        self.configure(tiers=self.TIERS, keep_originals_days=3)
        self.add("chunk_0", "new.webm", self.now - 1 * DAY)
        before = self.files()
        for ahead in (3650, 400):
            ran = self.night(ahead, "--dry-run")
            self.assertEqual((ran.code, ran.outcomes, ran.summary["held"]), (0, {}, 2), ahead)
        self.assertEqual(self.night(3650).code, 0)
        self.assertEqual(self.files(), before)
        true = self.night()  # which is long before the last run on record
        self.assertEqual((true.code, true.outcomes), (1, {}), true)
        self.assertIn("The clock cannot be true", true.summary["message"])
        self.assertEqual(self.night().code, 0)
        self.assertEqual(self.night(6).summary["compressed"], 0)
        self.assertEqual(self.files(), before)

    def test_runs_by_hand_new_tiers_and_ordinary_nights_notice_nothing(self) -> None:
        self.configure(keep_originals_days=2)
        self.add("chunk_1", "a.webm", self.now - 20 * DAY)
        self.assertEqual([self.night(day).code for day in (0, 0, 1)], [0, 0, 0])
        self.assertTrue((self.library / "a.webm").exists())
        self.assertEqual(self.night(2 - 0.5 / 24).code, 0)
        self.assertFalse((self.library / "a.webm").exists(), "two days less one hour are over")
        self.configure(tiers=self.TIERS)
        ran = self.night(12)  # ten days without a run
        self.assertEqual((ran.summary["held"], ran.outcomes), (1, {}))
        self.assertEqual(self.night(12).summary["compressed"], 1)

    def test_after_a_month_without_a_run_what_is_new_is_compressed_at_once(self) -> None:
        self.add("chunk_1", "a.webm", self.now - 20 * DAY)
        self.assertEqual(self.night().code, 0)
        self.add("chunk_0", "b.webm", self.now + 10 * DAY)
        self.add("chunk_0", "c.webm", self.now + 30 * DAY)
        ran = self.night(31)
        self.assertEqual(list(ran.outcomes), ["b.webm"])

    def test_a_clock_before_most_recordings_is_one_sentence_and_the_next_run_works(self) -> None:
        for number in range(4):
            self.add("chunk_0", f"{number}.webm", self.now - (20 - number) * DAY)
        self.add("chunk_0", "young.webm", self.now - DAY)
        ran = self.night(-20_000)
        self.assertEqual((ran.code, ran.outcomes), (1, {}), ran)
        self.assertEqual([line["type"] for line in ran.lines], ["error", "summary"])
        self.assertIn("The clock cannot be true", ran.summary["message"])
        self.assertNotIn("0.webm", ran.err)
        self.assertEqual(self.night().summary["compressed"], 4)

    def test_recordings_that_are_all_dated_ahead_end_one_run_and_no_other(self) -> None:
        for number in range(3):
            self.add("chunk_0", f"{number}.webm", self.now + 99 * DAY)
        self.assertEqual([self.night().code for _ in range(3)], [1, 0, 0])

    def test_it_is_judged_with_a_history_and_in_a_dry_run_too(self) -> None:
        self.put_run_on_record(DAY)
        for number in range(3):
            self.add("chunk_0", f"{number}.webm", self.now + 99 * DAY)
        self.add("chunk_1", "old.webm", self.now - 20 * DAY)
        for words, code in ((["-n"], 1), ([], 1), (["-n"], 0)):
            ran = self.run_cli("--json", *words)
            self.assertEqual((ran.code, len(ran.outcomes)), (code, 1 - code))
            self.assertEqual("clock cannot be true" in ran.err, bool(code), ran.err)

    def test_an_original_beside_its_copy_counts_once(self) -> None:
        for name in ("a", "b"):
            for suffix in ("webm", "opus"):
                self.add_bytes(b"x", f"{name}.{suffix}", self.now)
        self.add_bytes(b"x", "c.webm", self.now + 99 * DAY)
        self.add_bytes(b"x", "c.opus", self.now + 99 * DAY)
        summary = self.run_cli("--json", "-n").summary
        told = [summary[key] for key in ("found", "young", "ahead", "exit_code")]
        self.assertEqual(told, [3, 3, 1, 0])

    def test_one_file_from_the_future_holds_back_nothing(self) -> None:
        self.add("chunk_0", "a.webm", self.now + 900 * DAY)
        self.add("chunk_1", "b.webm", self.now - 20 * DAY)
        ran = self.night()
        self.assertEqual((ran.code, list(ran.outcomes)), (0, ["b.webm"]))
        self.assertIn("a.webm is dated in the future", ran.err)

    def test_a_folder_does_not_rest_while_a_move_waits_for_the_clock_alone(self) -> None:
        self.configure(tiers=self.TIERS)
        self.add("chunk_1", "a.webm", self.now - 20 * DAY)
        self.assertEqual([self.night(day).code for day in (0, 1)], [0, 0])
        self.assertEqual([self.night(day).summary["held"] for day in (15, 15)], [1, 0])
        self.assertEqual(self.night(15).summary["due"], 0)
        self.assertLess(self.sizes()["a.opus"], 25_000)


class OnRecord(unittest.TestCase):
    """Same size, and mtime equal to the second, is the file on record."""

    def test_what_tar_ntfs_exfat_and_fat_make_of_an_mtime_is_the_same_file(self) -> None:
        second = MADE // 10**9 * 10**9
        even = MADE // (2 * 10**9) * 2 * 10**9
        for now in (MADE, second, MADE // 100 * 100, MADE // 10**7 * 10**7, even, even + 2 * 10**9):
            self.assertTrue(past().speaks_of(WEBM._replace(mtime_ns=now)), now)
            moved = OPUS._replace(mtime_ns=now)
            self.assertEqual(take(moved, past=past()).proven_copy, moved)

    def test_another_size_or_time_is_another_file(self) -> None:
        for other in (WEBM._replace(size=999), WEBM._replace(mtime_ns=MADE + 3 * 10**9)):
            self.assertFalse(past().speaks_of(other))
        self.assertIsNone(take(OPUS._replace(size=5), past=past()).proven_copy)
        self.assertIsNone(take(OPUS._replace(name="x.m4a"), past=past()).proven_copy)
        archived = Place("/cold", "x.opus", 600, MADE)
        coarse = OPUS._replace(mtime_ns=MADE // 10**9 * 10**9)
        self.assertTrue(service.is_archived_file(coarse, archived))
        self.assertFalse(service.is_archived_file(coarse._replace(size=5), archived))


class Moved(LibraryCase):
    def test_what_was_restored_stays_though_its_mtime_lost_its_nanoseconds(self) -> None:
        self.configure(delete_originals=False)
        for name in ("a", "b"):
            self.add("chunk_1", f"{name}.webm", NOW + 0.123456789)
        self.assertEqual(self.run_cli().code, 0)
        self.assertEqual(self.run_cli("restore", "a.webm").code, 0)
        self.configure()
        self.assertEqual(self.run_cli().code, 0)
        saved = json.loads(self.run_cli("stats", "--json").out)["savings"]
        for path in self.library.glob("*.*"):
            seconds = path.stat().st_mtime_ns // 10**9 * 10**9
            os.utime(path, ns=(seconds, seconds))
        self.assertEqual(self.run_cli("--json").outcomes, {})
        self.assertTrue((self.library / "a.webm").exists())
        stats = json.loads(self.run_cli("stats", "--json").out)
        self.assertEqual((stats["savings"], stats["unrecorded"]), (saved, 0))
        self.assertGreater(saved, 0)


if __name__ == "__main__":
    unittest.main()
