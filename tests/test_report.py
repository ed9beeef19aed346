"""What people and scripts are told; and that telling them never changes what is done."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import compression_service as program
from compression_service import (
    Adopt,
    Compress,
    Config,
    Fetch,
    File,
    Free,
    Move,
    Outcome,
    Past,
    Reason,
    Recording,
    Report,
    Take,
    Target,
    duration_text,
    printable,
    size_text,
)

WEBM, OPUS = File("x.webm", 1_000_000, 0), File("x.opus", 600_000, 0)


def work(reason: Reason, kind: type[Move] = Compress, removes: tuple[File, ...] = (WEBM,)) -> Move:
    """One that came to this end."""
    copies = () if kind is Compress else (OPUS,)
    take = Take("day/x", (WEBM,), copies)
    made = kind(take, Target("opus", 96_000), "", WEBM, removes, Outcome(reason), estimate=600_000)
    made.recording = Recording("day", (take,))
    made.copy = OPUS if made.is_done else None
    return made


class ReportCase(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.log = Path(folder.name) / "logs" / "compression.log"

    @contextlib.contextmanager
    def report(self, **settings: Any) -> Iterator[Report]:
        self.out, self.err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(self.out), contextlib.redirect_stderr(self.err):
            report = Report(Config(log_file=str(self.log), **settings))
            report.open_log()
            yield report
            report.write("", sys.stderr, end="")


class TestTold(ReportCase):
    def test_a_run_says_what_was_done_and_what_the_disk_has_gained(self) -> None:
        with self.report() as report:
            report.begin([work(Reason.DONE)] * 3)
            report.outcome(work(Reason.DONE))
            report.outcome(work(Reason.EMPTY))
            summary = report.summary()
        self.assertIn("1.00 MB -> 600 kB (40 % less)", self.out.getvalue())
        self.assertIn(
            "1 compressed (1.00 MB -> 600 kB), 1 kept, 1 left for the next run", summary["message"]
        )
        self.assertIn("The disk has 400 kB more free", summary["message"])
        told = [summary[key] for key in ("due", "compressed", "kept", "left", "saved", "exit_code")]
        self.assertEqual(told, [3, 1, 1, 1, 400_000, 0])
        self.assertEqual(len(self.log.read_text().splitlines()), 3)

    def test_the_message_says_the_gravest_error(self) -> None:
        with self.report() as report:
            report.error("The log cannot be written", 0)
            report.error("d cannot be read")
            report.error("e cannot be read")
            self.assertEqual(report.summary()["message"], "d cannot be read Nothing was done.")
            report.error("Stopped by SIGTERM.", 143)
            self.assertIn("Stopped by SIGTERM.", report.summary()["message"])
            message = report.summary("Stopped by SIGTERM.")["message"]
            self.assertEqual(message, "Stopped by SIGTERM.")

    def test_the_message_has_the_advice_on_what_failed(self) -> None:
        with self.report() as report:
            report.outcome(work(Reason.NAME_TAKEN))
            report.error("Give the folder to its owner.")
            report.error("Another.")
        self.assertTrue(report.summary()["message"].startswith("Give the folder to its owner. 1 f"))

    def test_with_kept_originals_a_copy_takes_and_nothing_is_called_saved(self) -> None:
        with self.report() as report:
            report.outcome(work(Reason.DONE, removes=()))
            summary = report.summary()
        self.assertEqual(summary["saved"], -600_000)
        self.assertIn("The copies take 600 kB until the originals are deleted", summary["message"])
        self.assertNotIn("saved", summary["message"])

    def test_an_adopted_copy_took_nothing_new(self) -> None:
        with self.report() as report:
            report.outcome(work(Reason.ADOPTED, Adopt))
            self.assertEqual(report.summary()["saved"], 1_000_000)

    def test_what_was_told_as_saved_is_not_told_again_when_its_original_goes(self) -> None:
        known = Past(action="compressed", suffix=".opus", size=OPUS.size, compressed=1.0)
        freed = work(Reason.FREED, Free)
        freed.take = freed.take._replace(past=known)
        with self.report(keep_originals_days=7) as report:
            report.outcome(freed)
            summary = report.summary()
        self.assertIn("freed          day/x.webm  1.00 MB", self.out.getvalue().splitlines()[0])
        self.assertIn(
            "1 original deleted after its 7 days. The disk has 1.00 MB more free",
            summary["message"],
        )
        for text in ("saved", "less", "->"):
            self.assertNotIn(text, self.out.getvalue())
        told = [summary[key] for key in ("original_size", "compressed_size", "saved")]
        self.assertEqual(told, [0, 0, 1_000_000])

    def test_what_is_kept_beside_its_copy_and_what_went_are_told_apart(self) -> None:
        with self.report() as report:
            report.outcome(work(Reason.DONE))
            report.outcome(work(Reason.DONE, removes=()))
            message = report.summary()["message"]
        self.assertIn("2 compressed (2.00 MB -> 1.20 MB)", message)
        self.assertIn("The copies take 200 kB until the originals are deleted", message)

    def test_a_dry_run_ends_with_how_long_a_run_may_take(self) -> None:
        with self.report(dry_run=True) as report:
            report.begin([work(Reason.DUE)] * 500)
            report.outcome(work(Reason.DUE))
            message = report.summary()["message"]
        self.assertTrue(message.endswith("of audio. A run may take 1 s."), message)

    def test_a_failure_says_what_is_still_there(self) -> None:
        with self.report() as report:
            report.outcome(work(Reason.CHANGED))
            gone = work(Reason.NOT_RESTORED, Fetch)
            gone.take = Take("day/x", (), (OPUS,))
            report.outcome(gone)
        first, second = self.out.getvalue().splitlines()
        self.assertIn("(the original is kept)", first)
        self.assertNotIn("kept)", second)

    def test_what_is_only_kept_is_no_news(self) -> None:
        with self.report() as report:
            for _ in range(3):
                report.outcome(work(Reason.EMPTY))
            self.assertFalse(report.has_news)
            report.outcome(work(Reason.DONE))
            self.assertTrue(report.has_news)

    def test_the_gravest_error_is_the_exit_code(self) -> None:
        with self.report() as report:
            report.outcome(work(Reason.CHANGED))
            self.assertEqual(report.exit_code, 1)
            report.error("no ffmpeg", 4)
            report.error("something else")
            self.assertEqual(report.summary("no ffmpeg")["exit_code"], 4)

    def test_one_that_could_not_begin_says_why_and_nothing_else(self) -> None:
        with self.report(json=True) as report:
            report.error("no ffmpeg", 4)
            report.summary("no ffmpeg")
        error, summary = map(json.loads, self.out.getvalue().splitlines())
        self.assertEqual(error, {"type": "error", "message": "no ffmpeg"})
        self.assertEqual(summary["message"], "no ffmpeg")
        self.assertEqual(len(self.log.read_text().splitlines()), 1)

    def test_the_time_left_is_that_of_what_is_done_in_proportion(self) -> None:
        clock = patch.object(program, "monotonic", return_value=1_000.0)
        with clock as now, self.report() as report:
            report.due = 4
            for seconds, done, told in (
                (1, 1, "0 of 4, 1 %"),  # too little to go by
                (30, 25, "0 of 4, 25 %, about 2 min left"),
                (30, 50, "0 of 4, 50 %, about 30 s left"),
                (900, 90, "0 of 4, 90 %, about 2 min left"),
            ):
                now.return_value = 1_000.0 + seconds
                self.assertEqual(report.progress(done, 100), told)

    def test_sizes_have_three_digits_and_times_are_for_people(self) -> None:
        sizes = [size_text(size) for size in (0, 480, 999_499, 999_500, 12_345_678, 3e12)]
        self.assertEqual(sizes, ["0 B", "480 B", "999 kB", "1.00 MB", "12.3 MB", "3.00 TB"])
        self.assertEqual(
            [duration_text(each) for each in (0.2, 89, 720, 9000)], ["1 s", "89 s", "12 min", "2 h"]
        )

    def test_no_name_can_forge_a_line(self) -> None:
        self.assertEqual(printable("a\nb\x1b[1m\udcff"), "a\\nb\\x1b[1m\\udcff")


class TestTroubles(ReportCase):
    def test_a_broken_stream_changes_nothing(self) -> None:
        for stream in ("stdout", "stderr"):
            with (
                self.report() as report,
                open("/dev/full", "w") as full,
                patch.object(sys, stream, full),
            ):
                report.say("x")
                report.error("y")
            with self.report() as report, patch.object(sys, stream, None):
                report.say("x")
                report.error("y")

    def test_a_log_that_cannot_be_written_is_told_once_and_stops_nothing(self) -> None:
        self.log.mkdir(parents=True)
        with self.report() as report:
            report.open_log()
            report.once("x")
        self.assertEqual(self.err.getvalue().count("cannot be written"), 1)
        os.rmdir(self.log)
        self.log.symlink_to("/dev/full")
        with self.report() as report:
            report.error("x")
            report.error("y")
        self.assertEqual(self.err.getvalue().count("cannot be written"), 1)

    @unittest.skipIf(os.geteuid(), "only root can give a file away")
    def test_what_root_makes_beside_the_log_belongs_to_the_folder_s_owner(self) -> None:
        os.chown(self.log.parent.parent, 1234, 1234)
        with self.report() as report:
            report.once("before")
        with patch.object(program, "LARGEST_LOG", 5), self.report() as report:
            report.once("after")
        self.assertIn("before", self.log.with_suffix(".log.1").read_text())
        for path in (self.log.parent, self.log):
            self.assertEqual(path.stat().st_uid, 1234, path)

    def test_a_traceback_is_one_line_of_the_log(self) -> None:
        with self.report() as report:
            failed = work(Reason.DEFECT)
            failed.outcome = Outcome(Reason.DEFECT, trace="Traceback:\n  line 1\n")
            report.outcome(failed)
        (line,) = self.log.read_text().splitlines()
        self.assertRegex(line, r" - ERROR - failed .* kept.*Traceback:\\n  line 1")

    def test_a_large_log_is_rotated_at_the_start_and_others_follow(self) -> None:
        with self.report() as other:
            other.once("before")
            with patch.object(program, "LARGEST_LOG", 5), self.report() as report:
                report.once("after")
                other.once("of the other")
        self.assertIn("before", self.log.with_suffix(".log.1").read_text())
        self.assertIn("after", self.log.read_text())
        self.assertIn("of the other", self.log.read_text())
