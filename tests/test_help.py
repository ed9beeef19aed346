"""Help and wrong usage: one screen to start from, and a sentence that says what was meant."""

from __future__ import annotations

import io
import json
import os
from contextlib import redirect_stderr, redirect_stdout
from unittest.mock import Mock, patch

import compression_service as program
from tests import standins
from tests.base import DAY, LibraryCase, Ran, now


class HelpCase(LibraryCase):
    def say(self, *words: str) -> Ran:
        """Run it with exactly these words, on a terminal of 80 columns; in this process, as most of it is soon over."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), patch.dict(os.environ, COLUMNS="80"):
            try:
                code = program.main(words)
            except SystemExit as end:  # argparse's way out of --help
                code = int(end.code or 0)
        return Ran(code, out.getvalue(), err.getvalue())


class Help(HelpCase):
    def test_the_front_page_fits_a_screen_and_names_every_command(self) -> None:
        ran = self.say("--help")
        lines = ran.out.splitlines()
        self.assertEqual(ran.code, 0)
        self.assertLessEqual(len(lines), 24)
        self.assertLessEqual(max(map(len, lines)), 80)
        for name, command in program.COMMANDS.items():
            self.assertRegex(ran.out, rf"\b{name} +{command.help[:20]}")

    def test_every_command_has_its_own_page(self) -> None:
        for name in program.COMMANDS:
            ran = self.say(name, "--help")
            self.assertEqual((ran.code, ran.err), (0, ""))
            self.assertIn(f"compression_service.py {name}", ran.out)
            for word in ("--recordings", "config key: recordings_dir", "Exit codes: 0 done"):
                self.assertIn(word, " ".join(ran.out.split()))

    def test_a_flag_says_its_default_its_key_and_whether_it_may_be_repeated(self) -> None:
        out = " ".join(self.say("run", "--help").out.split())
        self.assertIn("(config key: age_threshold_days, default: 7)", out)
        self.assertIn("--only GLOB paths like this below the library (repeatable)", out)

    def test_the_version(self) -> None:
        self.assertEqual(
            self.say("--version"), (0, f"compression_service.py {program.VERSION}\n", "")
        )


class WrongUsage(HelpCase):
    def assert_told(self, ran: Ran, *words: str) -> None:
        self.assertEqual((ran.code, ran.out), (2, ""), ran.err)
        self.assertEqual(len(ran.err.splitlines()), 1, ran.err)
        for word in words:
            self.assertIn(word, ran.err)

    def test_a_misspelt_command_is_told_with_those_there_are(self) -> None:
        self.assert_told(self.say("chek"), "chek", "'check'", "--help")
        self.assert_told(self.say("stauts"), "stauts", "'stats'")

    def test_a_misspelt_option_is_told(self) -> None:
        self.assert_told(self.say("--dryrun"), "--dryrun", "--help")
        self.assert_told(self.say("run", "--bit-rate=64k"), "--bit-rate")

    def test_options_are_not_abbreviated(self) -> None:
        self.assert_told(self.say("--dry"), "--dry")

    def test_an_option_of_a_run_is_no_option_of_another_command(self) -> None:
        self.assert_told(self.say("check", "--bitrate", "64k"), "--bitrate")

    def test_a_word_too_many_is_named(self) -> None:
        self.assert_told(self.say("run", "a.webm"), "a.webm")

    def test_a_missing_value_is_told_in_one_sentence(self) -> None:
        self.assert_told(self.say("--jobs"), "--jobs", "run --help")

    def test_the_value_of_an_option_is_no_command(self) -> None:
        self.assertEqual(program.parse_words(["-n", "--only", "check"]).command, "run")


class Doctor(LibraryCase):
    def doctor(self, code: int, **env: str) -> str:
        ran = self.run_cli("doctor", env={"PATH": "/usr/bin:/bin", "HOME": str(self.folder), **env})
        self.assertEqual(ran.code, code, ran.out + ran.err)
        return ran.out

    def test_a_sound_place_is_ok_and_nothing_is_made(self) -> None:
        self.add("chunk_0", "a.webm")
        out = self.doctor(0)
        self.assertIn("No run yet", out)
        self.assertIn("due: 1", out)
        self.assertNotIn("PROBLEM", out)
        self.assertRegex(out, r'recordings_dir +"' + str(self.library))
        self.assertEqual(
            sorted(path.name for path in self.folder.iterdir()), ["config.json", "recordings"]
        )
        self.assertEqual(list(self.library.iterdir()), [self.library / "a.webm"])

    def test_a_missing_folder_is_2_and_a_broken_ffmpeg_is_4(self) -> None:
        self.assertIn(
            "PROBLEM", self.doctor(4, PATH=self.stand_in(standins.exit_code, code=1)["PATH"])
        )
        self.library.rmdir()
        self.assertIn("--recordings or recordings_dir", self.doctor(2))

    def test_an_archive_that_is_not_there_is_told(self) -> None:
        self.configure(tiers=[{"after_days": 365, "archive": "cold"}])
        self.assertIn("PROBLEM", self.doctor(1))
        (self.folder / "cold" / "archive-of-recordings").mkdir(parents=True)
        self.assertIn(f'"{self.folder / "cold"}"', self.doctor(0))

    def test_a_last_run_that_failed_or_is_long_ago_is_a_problem_also_between_torn_lines(
        self,
    ) -> None:
        own = self.library / ".compression"
        own.mkdir()
        torn = b'{"type": "run", "ti\n\xff\n["run"]\n{"type": "run"}\n{"type": "ru'
        for age, code, ends in ((0.5, 0, 0), (0.5, 1, 1), (3, 0, 1)):
            run = {
                "type": "run",
                "time": now() - age * DAY,
                "exit_code": code,
                "message": "3 compressed.",
            }
            (own / "history.jsonl").write_bytes(json.dumps(run).encode() + b"\n" + torn)
            self.assertRegex(self.doctor(ends), r"Last run [-:\d ]+: 3 compressed")
        self.assertIn("Is the schedule at work?", self.doctor(1))

    def test_a_log_that_no_run_could_write_is_a_problem_in_the_words_of_a_run(self) -> None:
        for path, problem in (
            (self.folder, "Is a directory"),
            (self.config / "x.log", "Not a directory"),
        ):
            run = program.Run(program.Config(log_file=str(path)), Mock())
            said = f"The log {path} cannot be written: {problem}. The work goes on without."
            self.assertEqual([*program.examine_log(run)], [(said, 1)])
        path = self.folder / "new/x.log"
        run = program.Run(program.Config(log_file=str(path)), Mock())
        self.assertEqual([code for _, code in program.examine_log(run)], [0])
        self.assertFalse(path.parent.exists())

    def test_a_forgotten_pause_is_a_problem(self) -> None:
        self.assertEqual(self.run_cli("pause").code, 0)
        self.assertIn("resume", self.doctor(1))
