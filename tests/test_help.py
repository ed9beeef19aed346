"""Help and wrong usage: one screen to start from, and a sentence that says what was meant."""

from __future__ import annotations

import io
import json
import os
from contextlib import redirect_stderr, redirect_stdout
from unittest.mock import patch

import compression_service as program
from tests.base import SCRIPT, LibraryCase, Ran


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
        for name, (text, _) in program.COMMANDS.items():
            self.assertRegex(ran.out, rf"\b{name} +{text[:20]}")
        self.assertEqual(sum(line.startswith("  compression_service.py ") for line in lines), 3, "three examples")

    def test_its_examples_are_accepted_as_written(self) -> None:
        for words, _ in program.EXAMPLES:
            program.parse_words(words.split())

    def test_every_command_has_its_own_page(self) -> None:
        for name in program.COMMANDS:
            ran = self.say(name, "--help")
            self.assertEqual((ran.code, ran.err), (0, ""))
            self.assertIn(f"compression_service.py {name}", ran.out)
            self.assertIn("--recordings", ran.out)

    def test_the_version(self) -> None:
        self.assertEqual(self.say("--version"), (0, f"compression_service.py {program.VERSION}\n", ""))


class WrongUsage(HelpCase):
    def assert_told(self, ran: Ran, *words: str) -> None:
        self.assertEqual((ran.code, ran.out), (2, ""), ran.err)
        self.assertEqual(len(ran.err.splitlines()), 1, ran.err)
        for word in words:
            self.assertIn(word, ran.err)

    def test_a_misspelt_command_gets_a_suggestion(self) -> None:
        self.assert_told(self.say("chek"), "chek", "did you mean check?")
        self.assert_told(self.say("stauts", "--json"), "stauts", "--help")

    def test_a_misspelt_option_gets_a_suggestion(self) -> None:
        self.assert_told(self.say("--dryrun"), "--dryrun", "did you mean --dry-run?")
        self.assert_told(self.say("run", "--bit-rate=64k"), "did you mean --bitrate?")

    def test_options_are_not_abbreviated(self) -> None:
        self.assert_told(self.say("--dry"), "--dry", "did you mean --dry-run?")

    def test_an_option_of_a_run_is_no_option_of_another_command(self) -> None:
        self.assert_told(self.say("check", "--bitrate", "64k"), "--bitrate is no option of check, only of run")

    def test_a_word_too_many_is_named(self) -> None:
        self.assert_told(self.say("run", "a.webm"), "run cannot take a.webm")

    def test_a_missing_value_is_told_in_one_sentence(self) -> None:
        self.assert_told(self.say("--jobs"), "--jobs", "run --help")

    def test_options_may_stand_before_the_command(self) -> None:
        self.add("chunk_0", "a.webm")
        before = self.files()
        ran = self.say("-c", str(self.config), "--json", "-n", "run")
        self.assertEqual((ran.code, ran.summary["would_compress"]), (0, 1), ran.err)
        self.assertEqual(self.files(), before)
        self.assertEqual(program.parse_words(["-n", "--only", "check"]).command, "run", "the value of an option is no command")
        self.assertEqual(program.parse_words(["-c", "pause", "pause"]).config, "pause")


class Doctor(LibraryCase):
    def doctor(self, code: int, **env: str) -> str:
        ran = self.run_cli("doctor", env={"PATH": "/usr/bin:/bin", "HOME": str(self.folder), **env})
        self.assertEqual(ran.code, code, ran.out + ran.err)
        return ran.out

    def test_a_sound_place_is_ok_and_what_is_still_to_do_is_a_hint(self) -> None:
        out = self.doctor(0)
        self.assertRegex(out, r"hint +no run yet")
        self.assertNotIn("PROBLEM", out)
        self.assertRegex(out, r'recordings_dir +"' + str(self.library))

    def test_a_missing_folder_is_2_and_a_broken_ffmpeg_is_4(self) -> None:
        self.assertIn("PROBLEM", self.doctor(4, PATH=self.stand_in("sys.exit(1)")["PATH"]))
        self.library.rmdir()
        self.assertIn("recordings_dir or --recordings", self.doctor(2))

    def test_an_archive_that_is_not_there_is_told(self) -> None:
        self.configure(tiers=[{"after_days": 365, "archive": "cold"}])
        self.assertIn("mount its disk", self.doctor(1))
        (self.folder / "cold").mkdir()
        self.assertIn('"archive": "' + str(self.folder), self.doctor(0))

    def test_it_finds_a_schedule_and_the_last_run_between_torn_lines(self) -> None:
        units, logs = self.folder / ".config" / "systemd" / "user", self.folder / "logs"
        units.mkdir(parents=True)
        logs.mkdir()
        (units / "x.service").write_text(f"ExecStart={SCRIPT}")
        runs = [{"type": "run", "time": time, "exit_code": 1, "compressed": 3, "kept": 0, "failed": 1} for time in (5, 6)]
        torn = '{"type": "run", "ti\n\xff\n["run"]\n{"type": "run"}\n{"type": "index"}\n{"type": "ru'
        (logs / "history.jsonl").write_text("\n".join([*map(json.dumps, runs), torn]), encoding="latin-1")
        out = self.doctor(0)
        self.assertRegex(out, "ok +schedule: .*systemd")
        self.assertRegex(out, r"last run \d+ days ago, exit code 1: 3 compressed, 0 kept, 1 failed")
