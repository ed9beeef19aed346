"""Options and configuration: what is asked for is done, and what cannot be is told before anything is touched."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.base import SCRIPT, LibraryCase


class Configuration(LibraryCase):
    def log(self) -> str:
        return (self.folder / "logs" / "compression.log").read_text()

    def refused(self, *words: str, arguments: tuple[str, ...] = ()) -> None:
        self.add("chunk_0", "a.webm")
        before = self.files()
        ran = self.run_cli(*arguments)
        self.assertEqual(ran.code, 2, ran.out + ran.err)
        self.assertNotIn("Traceback", ran.err)
        for word in words:
            self.assertIn(word, ran.err)
        self.assertEqual(self.files(), before)
        self.assertFalse((self.folder / "logs").exists())

    def test_an_unknown_key_is_named(self) -> None:
        self.configure(target_bitrat="96k")
        self.refused("target_bitrat", "target_bitrate")

    def test_wrong_types_and_impossible_values_name_the_key_and_what_was_expected(self) -> None:
        bad: dict[str, list[Any]] = {
            "age_threshold_days": ["7", -1, None, True, [7], 1e999],
            "target_bitrate": ["fast", "5k", "600k", 96, None, {}],
            "target_format": ["flac", 1, None],
            "delete_originals": ["yes", 1, None],
            "verify_before_delete": [0],
            "dry_run": ["no"],
            "keep_originals_days": [-1, "1"],
            "min_saving_percent": [100, -1, "5"],
            "jobs": [-1, 1.5, "2", 10_000],
            "max_run_minutes": [0, -5, "10"],
            "recordings_dir": ["", 5, None],
            "log_file": ["", []],
        }
        for key, values in bad.items():
            for value in values:
                with self.subTest(key=key, value=value):
                    self.config.write_text(json.dumps({key: value}))
                    self.refused(key, "expected")

    def test_a_bit_rate_that_the_format_has_not_is_told(self) -> None:
        self.configure(target_format="m4a", target_bitrate="8k")
        self.refused("m4a", "16k")

    def test_a_config_that_is_no_json_object_or_not_there_is_told(self) -> None:
        for text in ("{", "[]", "7", "", '{"jobs": 1, "jobs": 2}'):
            self.config.write_text(text)
            self.refused("config.json")
        self.config.unlink()
        self.refused("config.json", "No such file")

    def test_impossible_flags_are_told(self) -> None:
        for arguments in (("--bitrate", "x"), ("--older-than", "soon"), ("--limit", "0"), ("--since", "monday"),
                          ("--jobs", "-1"), ("--nonsense",), ("--format", "mp3"), ("--since", "2025-13-01")):  # fmt: skip
            with self.subTest(arguments):
                self.refused(arguments[0], arguments=arguments)
        self.refused("compress-all", arguments=("compress-all",))

    def test_a_recordings_folder_that_is_not_there_is_told_and_not_made(self) -> None:
        self.configure(recordings_dir="nowhere")
        self.add("chunk_0", "a.webm")
        ran = self.run_cli()
        self.assertEqual(ran.code, 2)
        self.assertIn("nowhere", ran.err)
        self.assertFalse((self.folder / "nowhere").exists())
        self.assertEqual(len(self.log().splitlines()), 1, "a run that could not begin is logged")

    def test_a_flag_beats_the_file_which_beats_the_default(self) -> None:
        self.add("chunk_0", "a.webm")
        self.configure(age_threshold_days=100_000)
        self.assertEqual(self.run_cli("--json", "-n").summary["due"], 0)
        self.assertEqual(self.run_cli("--json", "-n", "--older-than", "1").summary["due"], 1)
        self.configure(dry_run=True)
        self.run_cli()
        self.assertEqual(sorted(self.files()), ["a.webm"])

    def test_relative_paths_are_taken_from_the_config_file_s_folder(self) -> None:
        self.configure(recordings_dir="recordings", log_file="elsewhere/mine.log")
        self.add("chunk_0", "a.webm")
        self.assertEqual(self.run_cli(cwd="/").code, 0)
        self.assertTrue((self.folder / "elsewhere" / "mine.log").exists())
        self.assertFalse((self.folder / "logs").exists())

    def test_without_the_full_decode_the_cheap_checks_still_run(self) -> None:
        self.configure(verify_before_delete=False)
        self.add("chunk_0", "a.webm")
        ran = self.run_cli("--json")
        self.assertEqual((ran.code, ran.summary["compressed"]), (0, 1))
        self.add("chunk_0", "b.webm")
        spoil = self.stand_in(
            "code = subprocess.call([real] + args)\n"
            "for path in outputs: os.truncate(path, os.path.getsize(path) // 2)\n"
            "sys.exit(code)"
        )
        ran = self.run_cli("--json", env=spoil)
        self.assertEqual(ran.code, 1)
        self.assert_kept(ran, "b.webm", "one whole opus stream", action="failed")

    def test_every_command_has_its_help_and_the_script_its_version(self) -> None:
        for command in ("", "run", "check", "pause", "resume", "doctor", "demo"):
            ran = self.run_help(*([command] if command else []), "--help")
            self.assertEqual(ran, 0)
        self.assertEqual(self.run_help("--version"), 0)

    def run_help(self, *words: str) -> int:
        return subprocess.run(
            [sys.executable, str(SCRIPT), *words], capture_output=True, check=False
        ).returncode
