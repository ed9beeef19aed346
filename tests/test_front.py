"""The command line, the findings on a library and its page, as a person first meets them."""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
import time
from typing import Any
from unittest import mock

import compression_service as service
from tests.base import LONG_AGO, LibraryCase, Ran, sidecar

SETTINGS = "opus 96000 5 True False"


class FrontCase(LibraryCase):
    def say(self, *words: str) -> Ran:
        """Runs the program in this process with exactly these words."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = service.main(words)
        return Ran(code, out.getvalue(), err.getvalue())

    def remember(self, *records: dict[str, Any]) -> None:
        self.history().parent.mkdir(exist_ok=True)
        with open(self.history(), "a", encoding="ascii") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)

    def stats(self, **changes: Any) -> dict[str, Any]:
        words = service.parse_words(["stats", "-c", str(self.config)])
        stats = service.gather_stats(service.resolve_config(words))
        return {**stats, "free_space": 30_000_000_000, **changes}


def past_of(take: str, **changes: Any) -> dict[str, Any]:
    """Returns a line of the history on a recording of 1000 bytes whose copy has 600."""
    past = {
        "action": "compressed",
        "code": "done",
        "move": "compress",
        "settings": SETTINGS,
        "time": LONG_AGO,
        "suffix": ".opus",
        "mtime_ns": LONG_AGO * 10**9,
        "first_size": 1000,
        "size": 600,
        "bitrate": 96_000,
        "seconds": 7.5,
        "compressed": LONG_AGO,
        **changes,
    }
    return {"type": "recording", "path": f"{take}.webm", "take": take, "past": past}


class Words(FrontCase):
    def test_options_stand_before_or_behind_the_command(self) -> None:
        for words in (
            ["-j", "3", "restore", "-n", "x"],
            ["restore", "-j3", "-n", "x"],
            ["-n", "restore", "x"],
            ["-c", "run", "restore", "x"],
        ):
            with contextlib.suppress(service.UsageError):  # `restore` takes no -j
                self.assertEqual(service.parse_words(words).command, "restore")
        found = service.parse_words(["--only", "check", "-n", "run"])
        self.assertEqual((found.command, found.only, found.dry_run), ("run", ["check"], True))
        self.assertEqual(service.parse_words(["-n", "restore", "run"]).paths, ["run"])
        found = service.parse_words(["restore", "x", "-n", "y", "--json", "z"])
        self.assertEqual((found.paths, found.dry_run), (["x", "y", "z"], True))

    def test_a_path_with_a_dash_stands_behind_two(self) -> None:
        found = service.parse_words(["restore", "-n", "--", "-x.webm"])
        self.assertEqual((found.paths, found.dry_run), (["./-x.webm"], True))

    def test_the_nearest_is_named_with_the_help_of_the_command_at_hand(self) -> None:
        for words, near, command in (
            (["--dryrun"], "the nearest is --dry-run.", "run "),
            (["--verison"], "the nearest is --version.", "run "),
            (["status"], "the nearest is 'stats'.", ""),
            (["restore", "--lastrun"], "the nearest is --last-run.", "restore "),
            (["--lastrun"], "the nearest is --last-run of 'restore'.", "run "),
            (["stats", "--limit", "3"], "the nearest is --limit of 'run'.", "stats "),
            (["schedule", "Cron"], "the nearest is cron", "schedule "),
            (["--jobs"], "expected one argument", "run "),
            (
                ["--recordings-dir", "lib"],
                "no --recordings-dir; the nearest is --recordings.",
                "run ",
            ),
            (["--bitrat", "64k"], "'run' takes no --bitrat; the nearest is --bitrate.", "run "),
            (["--bitrate", "32k", "schedule", "cron"], "no --bitrate; the", "schedule "),
            (["stats", "-x", "chek"], "'stats' takes no -x;", "stats "),
            (["--no-progress", "chek"], "There is no command 'chek'; the nearest is 'check'.", ""),
            (["stats", "--", "-x"], "-x", "stats "),
        ):
            ran = self.say(*words)
            self.assertEqual((ran.code, ran.out), (2, ""), words)
            self.assertIn(near, ran.err)
            self.assertIn(f"'compression_service.py {command}--help' says more.", ran.err)

    def test_a_wish_to_read_is_not_sent_to_a_command_that_changes_things(self) -> None:
        for words, near in (
            (["check", "--dry-run"], "the nearest is --dry-run of 'run'."),
            (["doctor", "--json"], "the nearest is --json of 'stats'."),
            (["serve", "--quiet"], "the nearest is --quiet of 'run'."),
        ):
            self.assertIn(near, self.say(*words).err)

    def test_a_tier_names_the_value_that_it_contradicts(self) -> None:
        for tiers, said in (
            (
                [{"after_days": 1, "bitrate": "64k"}],
                "after_days 1 must be above age_threshold_days, which is 7",
            ),
            (
                [{"after_days": 30, "bitrate": "128k"}],
                "bitrate 128k must be below target_bitrate, which is 96k",
            ),
            (
                [{"after_days": 30, "bitrate": "96k"}],
                "bitrate 96k must be below target_bitrate, which is 96k",
            ),
            (
                [{"after_days": 60, "bitrate": "32k"}, {"after_days": 30, "bitrate": "64k"}],
                "after_days 30 must be above that of the tier before, which is 60",
            ),
        ):
            self.configure(tiers=tiers)
            self.assertIn(said, self.run_here("run").err)


class State(FrontCase):
    def test_a_file_a_folder_without_audio_and_an_empty_library_are_named(self) -> None:
        ran = self.say("--recordings", str(self.config))
        self.assertEqual(ran.code, 2)
        self.assertIn(f"{self.config} is a file", ran.err)
        (self.library / "notes.txt").write_text("x")
        for words in (["run"], ["run", "-n"], ["stats"], ["doctor"]):
            ran = self.run_here(*words)
            self.assertEqual(ran.code, 0, ran.err)
            self.assertIn(f"No recordings (*.webm) below {self.library}", " ".join(ran.out.split()))

    def test_an_empty_library_stays_one_whatever_its_folder_is_called(self) -> None:
        self.library = self.folder / "kept" / "recordings"
        self.library.mkdir(parents=True)
        for _ in range(2):
            ran = self.run_here("run", "--recordings", str(self.library))
            self.assertEqual((ran.code, ran.err), (0, ""))
            self.assertIn("No recordings (*.webm) below", ran.out)

    def test_doctor_says_one_thing_once_and_where_it_looked_for_ffmpeg(self) -> None:
        self.add("chunk_0", "a.webm")
        with (
            mock.patch.dict("os.environ", PATH=str(self.folder)),
            mock.patch.object(service, "TOOL_PATH", "/nowhere/else"),
        ):
            ran = self.run_here("doctor")
        self.assertEqual(ran.code, 4)
        self.assertEqual(ran.out.count("PROBLEM"), 1, ran.out)
        self.assertIn(
            f"ffmpeg is not installed: it is in none of {self.folder}, /nowhere/else", ran.out
        )
        self.assertIn("can be written to; due: 1", ran.out)

    def test_what_is_wrong_stands_first_for_doctor_terminal_and_page_alike(self) -> None:
        self.add_bytes(b"x" * 1000, "d/a.webm")
        late = {"type": "run", "time": time.time() - 3 * 86_400, "exit_code": 1, "message": "Bad."}
        self.remember(past_of("d/a", action="failed", code="input-output", suffix=""), late)
        said = self.run_here("doctor").out
        text, is_wrong = service.verdict(self.stats())
        self.assertTrue(is_wrong)
        self.assertTrue(text.startswith("1 failed and stayed as they were;"), text)
        page = service.stats_page(self.stats())
        self.assertIn('<p class="verdict wrong"', page)
        for words in ("1 failed", ": Bad.", "The last run is 3 d ago. Is the schedule at work?"):
            self.assertIn(words, text)
            self.assertIn(words, page)
            self.assertIn(words, said)

    def test_all_well_is_said_in_one_sentence_with_saving_and_room(self) -> None:
        self.add_bytes(b"x" * 600, "d/a.opus")
        now = time.time()
        runs = [
            {"type": "run", "time": now - hours * 3600, "message": text}
            for hours, text in ((30, "Older."), (2, "1 compressed."))
        ]
        self.remember(past_of("d/a"), *runs)
        with mock.patch.object(service, "free_space", return_value=30e9):
            stats = self.stats()
        when = service.local_time(now - 7200)
        text = f"All well. Last run {when}: 1 compressed. 40 % saved, 30.0 GB free."
        self.assertEqual(service.verdict(stats), (text, False))
        page = service.stats_page(stats)
        self.assertIn('<p class="verdict well"', page)
        runs_of_page = page[page.index('class="last runs"') :]
        self.assertLess(runs_of_page.index("1 compressed."), runs_of_page.index("Older."))

    def test_a_library_of_an_empty_file_has_statistics_and_a_page(self) -> None:
        self.add_bytes(b"", "d/a.webm")
        for _ in range(2):
            ran = self.run_here("stats")
            self.assertEqual((ran.code, ran.err), (0, ""))
            self.assertNotIn("\n\n", ran.out)
            self.assertIn("<title>2025-10: 0 B with", service.stats_page(self.stats()))
            self.assertEqual(self.run_cli().code, 0)
        self.assertIn("1  kept: the file is empty", ran.out)

    def test_only_a_paused_library_is_resumed(self) -> None:
        self.run_here("pause")
        for said in ("Resumed: the next run goes on.\n", "It was not paused.\n"):
            self.assertEqual(self.run_here("resume"), (0, said, ""))

    def test_a_folder_that_went_under_the_feet_is_named(self) -> None:
        with mock.patch("os.getcwd", side_effect=FileNotFoundError(2, "No such file or directory")):
            ran = self.say("stats", "--recordings", "here")
        said = "No such file or directory (the folder that this was started in)"
        self.assertEqual((ran.code, ran.err), (1, f"compression_service.py: {said}\n"))

    def test_a_pause_of_no_time_is_refused(self) -> None:
        ran = self.run_here("pause", "--for", "00h")
        self.assertEqual((ran.code, ran.out), (2, ""))
        self.assertIn('expected a time above 0, such as 90m, 2h or 3d, found "00h"', ran.err)

    def test_a_pause_says_until_when(self) -> None:
        self.run_here("pause", "--for", "2h")
        until = service.local_time(time.time() + 7200)[:10]
        self.assertIn(f"until {until}", self.run_here("doctor").out)
        self.assertTrue(self.stats()["paused"])
        self.run_here("pause")
        ran = self.run_here("stats")
        self.assertIn("until 'resume'", " ".join(ran.out.split()))


class Notes(FrontCase):
    def test_the_sums_in_a_folder_s_note_are_those_of_its_pasts(self) -> None:
        for seed in range(30):
            self.fill(random.Random(seed), f"{seed}")
        run = service.Run(service.Config(recordings_dir=str(self.library)), mock.Mock())
        without = self.stats()
        notes = [
            note
            for each in run.library.walk(str)
            for note in service.folder_note(each, run.config, run.clock)
        ]
        run.history.note(notes, run.now)
        self.assertGreater(len(notes), 5)
        with mock.patch.object(service, "count_folder", wraps=service.count_folder) as counted:
            self.assertEqual(self.stats(), without)
        noted = {note["path"][:-1] for note in notes}
        self.assertTrue(noted.isdisjoint(call.args[0].path for call in counted.call_args_list))
        lines = self.history().read_text().replace('"all/recordings": ', '"all/recordings": 7')
        self.history().write_text(lines)
        self.assertEqual(self.stats(), without, "a note that was changed is believed")

    def fill(self, chance: random.Random, folder: str) -> None:
        """Makes a folder of some takes in any state, and their pasts."""
        (self.library / folder).mkdir()
        for number in range(chance.randint(1, 5)):
            take = f"{folder}/{number}"
            time_ = LONG_AGO - chance.randint(0, 300) * 86_400
            changes: dict[str, Any] = {"mtime_ns": time_ * 10**9}
            kind = chance.choice(["copy"] * 6 + ["kept"] * 4 + ["young", "stranger", "both", "due"])
            if kind in ("copy", "both", "stranger"):
                self.add_bytes(b"x" * 600, f"{take}.opus", time_)
            if kind in ("kept", "both", "young", "due"):
                when = time.time() if kind == "young" else time_
                self.add_bytes(b"x" * 1000, f"{take}.webm", when)
            if kind == "kept":
                code = chance.choice(["truncated", "video"])
                changes.update(action="kept", code=code, suffix="", size=0)
            if kind in ("copy", "kept", "both"):
                self.remember(past_of(take, **changes))
        place = {"location": "/x", "name": "y.opus", "size": 600, "mtime_ns": 1, "time": 1.0}
        if chance.random() < 0.1:
            archived = {"action": "archived", "move": "archive", "place": place}
            self.remember(past_of(f"away-{folder}/y", **archived))
            self.remember(past_of(f"{folder}/y", **archived))


class Expected(FrontCase):
    def test_statistics_and_dry_run_expect_the_same_and_the_oldest_comes_first(self) -> None:
        for number in range(3):
            self.add(f"chunk_{number % 2}", f"d/old-{number}.webm")
        self.add_bytes(b"", "d/empty.webm")
        self.assertEqual(self.run_cli().code, 0)
        paths = [f"d/{number}.webm" for number in (5, 3, 9, 1, 4)]
        for number, path in enumerate(paths):
            self.add("chunk_0", path, LONG_AGO + number * 86_400)
        ran = self.run_cli("--json", "-n", "-j", "4")
        shown = [line["path"] for line in ran.lines if line["type"] == "recording"]
        self.assertEqual(shown, paths)
        expected = self.stats()["due"]["estimated_saving"]
        self.assertLess(abs(ran.summary["saved"] / expected - 1), 0.1)
        self.assertRegex(
            ran.summary["message"],
            r"nothing was changed: 5 to compress \(\d+ kB -> about \d+ kB\)\. "
            r"The disk would have [\d.]+ kB more free\. 15 s of audio\. A run may take 1 s\.",
        )

    def test_a_length_that_a_sidecar_has_is_no_guess(self) -> None:
        self.add_bytes(b"x" * 32_000, "d/a.webm")
        self.assertIn("Due: 1, 32.0 kB.\n", self.run_cli().out)
        self.add_json("d/a.json", sidecar("x", ["a.webm"], 1200.0))
        self.assertIn("Due: 1, 32.0 kB, 20 min of audio.\n", self.run_cli("--retry").out)

    def test_what_was_freed_is_counted_by_itself(self) -> None:
        self.add("chunk_0", "d/a.webm")
        self.configure(keep_originals_days=1)
        self.assertEqual(self.run_cli().code, 0)
        text = self.history().read_text()
        ago = time.time() - 3 * 86_400
        text = re.sub(r'"compressed": \d{10}[.\d]+', f'"compressed": {ago}', text)
        text = re.sub(r'"rest": "\w+"', '"rest": "0"', text)
        self.history().write_text(text)
        self.assertEqual(self.stats()["due_by_move"], {"free": 1})
        message = self.run_cli("-n", "--json").summary["message"]
        self.assertIn("1 original to delete after its 1 days. The disk would have", message)
        ran = self.run_cli("--json")
        self.assertEqual((ran.summary["freed"], ran.summary["compressed"]), (1, 0))
        self.assertEqual(ran.outcomes["d/a.webm"]["action"], "freed")
        self.assert_compressed("d/a.webm")
