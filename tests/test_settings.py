"""Words and config file: a flag beats the file, which beats the default; a slip is named."""

from __future__ import annotations

import json
import os
import tempfile
import unittest
from pathlib import Path
from typing import Any

from compression_service import (
    COMMANDS,
    NO_POLICY,
    Config,
    Policy,
    Sidecar,
    Tier,
    UsageError,
    parse_words,
    policy_of,
    resolve_config,
)
from tests.base import LibraryCase


class SettingsCase(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.file = self.folder / "config.json"
        self.write({})

    def write(self, settings: Any) -> None:
        self.file.write_text(json.dumps(settings))

    def resolve(self, *words: str) -> Config:
        return resolve_config(parse_words(["run", "-c", str(self.file), *words]))

    def assert_refused(self, *told: str, words: tuple[str, ...] = ()) -> None:
        with self.assertRaises(UsageError) as caught:
            self.resolve(*words)
        for word in told:
            self.assertIn(word, str(caught.exception))


class TestSettings(SettingsCase):
    def test_a_flag_beats_the_file_which_beats_the_default(self) -> None:
        self.assertEqual(self.resolve().target_bitrate, 96_000)
        self.write({"target_bitrate": "64k", "jobs": 3})
        self.assertEqual(self.resolve().target_bitrate, 64_000)
        config = self.resolve("--bitrate", "32k", "--keep-originals", "--only", "a*", "--only", "b")
        self.assertEqual((config.target_bitrate, config.jobs), (32_000, 3))
        self.assertEqual((config.delete_originals, config.only), (False, ["a*", "b"]))

    def test_paths_of_the_file_are_taken_from_its_folder(self) -> None:
        self.write({"recordings_dir": "here", "tiers": [{"after_days": 9, "archive": "cold"}]})
        config = self.resolve()
        self.assertEqual(config.recordings_dir, str(self.folder / "here"))
        self.assertEqual(config.log_file, str(self.folder / "logs/compression.log"))
        self.assertEqual(config.tiers, (Tier(9, archive=str(self.folder / "cold")),))
        self.write({"tiers": [{"after_days": 9, "archive": "remote:bucket/path"}]})
        self.assertEqual(self.resolve().tiers[0].archive, "remote:bucket/path")

    def test_a_byte_order_mark_and_other_line_ends_do_no_harm(self) -> None:
        self.file.write_bytes(b'\xef\xbb\xbf{\r\n "jobs": 2\r\n}')
        self.assertEqual(self.resolve().jobs, 2)

    def test_an_unknown_key_is_told_with_the_nearest_known(self) -> None:
        self.write({"target_bitrat": "64k"})
        self.assert_refused('"target_bitrat"', '"target_bitrate"', str(self.file))
        self.write({"tiers": [{"after_day": 30, "bitrate": "64k"}]})
        self.assert_refused('"after_day"', '"after_days"')

    def test_a_wrong_value_is_told_with_its_key_and_what_was_expected(self) -> None:
        for key, value in {
            "jobs": 1.5,
            "target_bitrate": "1k",
            "delete_originals": 1,
            "age_threshold_days": float("nan"),
            "target_format": "mp3",
            "log_file": "",
            "max_run_minutes": 0,
            "tiers": {},
            "notify_command": " ",
        }.items():
            self.write({key: value})
            with self.subTest(key):
                self.assert_refused(f'for "{key}"')
        self.write({"max_run_minutes": None, "notify_command": None})
        self.assertIsNone(self.resolve().notify_command)
        for words in (("--since", "2025-02-30"), ("--jobs", "-1"), ("--older-than", "soon")):
            self.assert_refused(*words, "expected", words=words)
        for text in (b"", b"[]", b"{", b"\xff", b'{"jobs": 1, "jobs": 2}'):
            self.file.write_bytes(text)
            self.assert_refused(str(self.file))

    def test_a_slip_in_a_list_or_an_empty_value_is_told_with_what_was_found_once(self) -> None:
        self.write({"tiers": [{"after_days": "90", "bitrate": "64k"}]})
        self.assert_refused('for "tiers" for "after_days" expected a number')
        self.assert_refused('999999, found "90". Nothing')
        self.write({})
        self.assert_refused('such as 2025-10-27, found "".', words=("--since", ""))
        self.file.write_text('{"jobs": 1, "tiers": [], "jobs": 2}')
        self.assert_refused('the key "jobs" stands there twice')

    def test_tiers_go_on_from_the_first_step_and_from_each_other(self) -> None:
        first = {"after_days": 7, "bitrate": "96k"}
        later = {"after_days": 30, "bitrate": "64k"}
        cold = {"after_days": 90, "archive": "/cold"}
        self.write({"tiers": [first, later, cold]})
        self.assertEqual(
            [tier.after_days for tier in self.resolve("--bitrate", "32k").tiers], [7, 30, 90]
        )
        for tiers in (
            [{**first, "after_days": 6}],
            [{**first, "bitrate": "128k"}],
            [later, first],
            [{**first, "after_days": 8}],
            [later, {**first, "after_days": 31}],
            [later, later],
            [cold, {**later, "after_days": 91}],
            [{**cold, "bitrate": "64k"}],
            [{"after_days": 30}],
        ):
            self.write({"tiers": tiers})
            with self.subTest(tiers):
                self.assert_refused("tier")

    def test_an_archive_in_the_library_or_around_it_is_refused(self) -> None:
        for archive in ("recordings/cold", "recordings"):
            self.write({"tiers": [{"after_days": 30, "archive": archive}]})
            where = self.folder / archive
            self.assert_refused('For "tiers" expected an archive apart', f"found {where}.")

    def test_a_rate_that_a_format_has_not_is_refused(self) -> None:
        self.write({"target_format": "m4a", "target_bitrate": "12k"})
        self.assert_refused('For "target_bitrate" expected m4a at 16k to 512k, found 12k.')
        self.write({"target_format": "m4a", "tiers": [{"after_days": 30, "bitrate": "12k"}]})
        self.assert_refused('For "tiers" expected m4a at 16k to 512k, found 12k.')


class TestWords(SettingsCase):
    def test_without_a_command_it_is_a_run(self) -> None:
        for words in ([], ["-n"], ["--limit", "3"]):
            self.assertEqual(parse_words(words).command, "run")

    def test_config_and_library_go_with_every_command(self) -> None:
        given = {"restore": ["x"], "schedule": ["cron"]}
        for name in COMMANDS:
            words = [name, *given.get(name, []), "-c", "x", "--recordings", "y"]
            self.assertEqual(parse_words(words).recordings_dir, os.path.abspath("y"))

    def test_a_slip_is_one_sentence(self) -> None:
        for words in (["chek"], ["--bitrat", "64k"], ["--jobs"], ["stats", "--limit", "3"]):
            with self.assertRaises(UsageError) as caught:
                parse_words(words)
            self.assertIn("--help", str(caught.exception))
            self.assertNotIn("\n", str(caught.exception))


class TestPolicies(unittest.TestCase):
    def policy(self, *policies: Any) -> Policy:
        return policy_of([Sidecar("x.json", policy=each) for each in policies], "")

    def test_of_several_wishes_the_most_careful_holds(self) -> None:
        self.assertEqual(self.policy(None), NO_POLICY)
        both = self.policy({"bitrate": "128k", "after_days": 3}, {"bitrate": 64000, "keep": True})
        self.assertEqual(both, Policy(keep=True, bitrate=128_000, after_days=3))

    def test_one_that_cannot_be_followed_is_a_flaw(self) -> None:
        wrong: list[Any] = ["keep", False, 0, "", [], {"kep": True}, {"keep": "yes"}]
        wrong += [{"bitrate": "1M"}, {"format": "mp3"}]
        for policy in wrong:
            self.assertTrue(self.policy(policy).flaw)


class Untouched(LibraryCase):
    """What cannot be done is reported, and nothing is touched."""

    def refused(self, *words: str, arguments: tuple[str, ...] = ()) -> None:
        self.add("chunk_0", "a.webm")
        before = self.files()
        ran = self.run_here(*(arguments or ("run",)))
        self.assertEqual(ran.code, 2, ran.out + ran.err)
        self.assertNotIn("Traceback", ran.err)
        for word in words:
            self.assertIn(word, ran.err)
        self.assertEqual(self.files(), before)
        self.assertFalse((self.folder / "logs").exists())

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
            "log_file": ["", [], "x\ud800"],
        }
        for key, values in bad.items():
            for value in values:
                with self.subTest(key=key, value=value):
                    self.config.write_text(json.dumps({key: value}))
                    self.refused(key, "expected")

    def test_a_config_that_is_no_json_object_or_not_there_is_told(self) -> None:
        for text in ("{", "[]", "7", "", '{"jobs": 1, "jobs": 2}'):
            self.config.write_text(text)
            self.refused("config.json")
        self.config.unlink()
        self.refused("config.json", "No such file")

    def test_what_json_has_not_is_told(self) -> None:
        for text in ('{"jobs": 1,}', '{"jobs": 1 // cores\n}'):
            self.config.write_text(text)
            ran = self.run_cli()
            self.assertEqual(ran.code, 2)
            self.assertIn("JSON has no comments, and no comma behind the last member", ran.err)

    def test_impossible_flags_are_told(self) -> None:
        for arguments in (("--bitrate", "x"), ("--older-than", "soon"), ("--limit", "0"), ("--since", "monday"),
                          ("--jobs", "-1"), ("--nonsense",), ("--format", "mp3"), ("--since", "2025-13-01")):  # fmt: skip
            with self.subTest(arguments):
                self.refused(arguments[0], arguments=("run", *arguments))
        self.refused("compress-all", arguments=("compress-all",))


class OddTiers(LibraryCase):
    def test_a_tier_that_makes_no_sense_is_named_and_nothing_is_touched(self) -> None:
        cases = [
            ({"after_days": 30, "bitrate": "64k"}, "a list"),
            ([{"bitrate": "64k"}], "after_days"),
            ([{"after_days": 30}], "bitrate"),
            ([{"after_days": 30, "bitrate": "64k", "archive": "/x"}], "one of"),
            (
                [{"after_days": 30, "bitrate": "64k"}, {"after_days": 30, "bitrate": "32k"}],
                "which is 30",
            ),
            (
                [{"after_days": 30, "bitrate": "64k"}, {"after_days": 90, "bitrate": "70k"}],
                "which is 64k",
            ),
            (
                [{"after_days": 30, "archive": "/x"}, {"after_days": 90, "bitrate": "32k"}],
                "deletion last",
            ),
            ([{"after_days": 5, "bitrate": "64k"}], "age_threshold_days"),
            ([{"after_days": 30, "bitrate": "128k"}], "target_bitrate"),
            ([{"after_days": "30", "bitrate": "64k"}], "number"),
            ([{"after_days": 30, "bitrate": "loud"}], "bit rate"),
            ([{"after_days": 30, "bitrate": "64k", "colour": 1}], "colour"),
            ([{"after_days": 30, "archive": "recordings/cold"}], "apart"),
            ([{"after_days": 30, "archive": 7}], "path"),
        ]
        self.add("chunk_0", "a.webm")
        before = self.files()
        for tiers, word in cases:
            with self.subTest(tiers=tiers):
                self.configure(tiers=tiers)
                ran = self.run_here("run")
                self.assertEqual(ran.code, 2, ran.err)
                self.assertIn("tier", ran.err)
                self.assertIn(word, ran.err)
        self.assertEqual(self.files(), before)
