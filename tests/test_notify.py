"""The notify_command hears of runs; doctor finds what is in the way; the last run is found; what cannot come back is said once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import unittest
import unittest.mock
from pathlib import Path
from typing import Any

import compression_service as service
from tests.base import DAY, LibraryCase, Ran


class NotifyCase(LibraryCase):
    def setUp(self) -> None:
        super().setUp()
        self.heard = self.folder / "heard"
        self.listen()

    def listen(self, **settings: Any) -> None:
        """The command writes down all that it is given: EXIT_CODE, MESSAGE and stdin."""
        code = "import json, os, sys; json.dump([os.environ.get('EXIT_CODE'), "
        code += "os.environb.get(b'MESSAGE', b'?').decode(), sys.stdin.read()], open('heard', 'w'))"
        self.configure(notify_command=f'{sys.executable} -c "{code}"', **settings)

    def told(self) -> tuple[int, str, dict[str, Any]]:
        """Returns what the command was given, once."""
        code, message, summary = json.loads(self.heard.read_text())
        self.heard.unlink()
        return int(code), message, json.loads(summary)

    def notify(self, message: str, code: int = 0, news: bool = False) -> None:
        config = service.resolve_config(service.parse_words(["run", "-c", str(self.config)]))
        report = service.Report(config)
        report.exit_code, report.has_news = code, news
        summary = {"type": "summary", "exit_code": code, "message": message}
        service.notify(config, report, summary)

    def put_pause(self, days: float, until: str = "") -> None:
        path = self.library / ".compression/paused"
        path.parent.mkdir(exist_ok=True)
        path.write_text(until)
        then = time.time() - days * DAY
        os.utime(path, (then, then))


class When(NotifyCase):
    def test_each_word_of_notify_on_asks_for_its_runs(self) -> None:
        for word, code, news, is_heard in (
            ("problem", 0, True, False),
            ("problem", 1, False, True),
            ("problem", 143, True, True),
            ("work", 0, False, False),
            ("work", 0, True, True),
            ("work", 2, False, True),
            ("always", 0, False, True),
            ("always", 3, False, True),
        ):
            self.listen(notify_on=word)
            self.notify("Done.", code, news)
            self.assertEqual(self.heard.exists(), is_heard, (word, code, news))
            if is_heard:
                self.assertEqual(self.told()[:2], (code, "Done."))

    def test_a_watcher_hears_of_idle_paused_and_busy_runs(self) -> None:
        self.listen(notify_on="always")
        self.assertEqual(self.run_here("run").code, 0)
        self.assertIn("No recordings", self.told()[1])
        with service.Library(str(self.library)).lock():
            (self.library / ".compression/history.jsonl").write_text("")
            ran = self.run_here("run")
        code, message, summary = self.told()
        self.assertEqual((ran.code, code, summary["exit_code"]), (3, 3, 3))
        self.assertIn("Another run is at work", message)
        self.put_pause(1)
        self.assertEqual(self.run_here("run").code, 0)
        self.assertIn("Paused since", self.told()[1])

    def test_by_default_an_idle_or_paused_run_tells_nobody(self) -> None:
        self.run_here("run")
        self.put_pause(30)
        self.run_here("run")
        self.assertFalse(self.heard.exists())

    def test_dry_runs_restore_and_keep_tell_nobody(self) -> None:
        self.listen(notify_on="always")
        for words in (
            ("run", "-n"),
            ("restore", "x.webm"),
            ("keep", "x.webm"),
            ("keep", "-n", "x"),
        ):
            self.run_here(*words)
            self.assertFalse(self.heard.exists(), words)

    def test_a_check_tells_what_is_wrong_or_always(self) -> None:
        self.assertEqual(self.run_here("check").code, 0)
        self.assertFalse(self.heard.exists())
        self.listen(notify_on="always")
        self.assertEqual(self.run_here("check").code, 0)
        self.assertEqual(self.told()[0], 0)
        self.listen()
        self.add_bytes(b"no sound", "d/a.opus")
        self.add_json("d/a.json", {"id": "A", "chunks": [{"file": "a.opus"}]})
        self.assertEqual(self.run_here("check").code, 1)
        self.assertEqual(self.told()[0], 1)

    def test_a_check_that_cannot_begin_tells_it_too(self) -> None:
        self.library.rmdir()
        self.assertEqual(self.run_here("check").code, 2)
        code, message, _ = self.told()
        self.assertEqual(code, 2)
        self.assertIn("There is no recordings folder", message)

    def test_what_others_find_is_news(self) -> None:
        report = service.Report(service.Config())
        self.assertFalse(report.has_news)
        report.has_news = True
        self.assertTrue(report.has_news)

    def test_another_word_is_an_error_that_names_it(self) -> None:
        self.listen(notify_on="sometimes")
        ran = self.run_here("run")
        self.assertEqual(ran.code, 2)
        self.assertIn('"notify_on" expected problem or work or always', ran.err)


class What(NotifyCase):
    def message(self, text: str) -> str:
        self.notify(text, 1)
        return self.told()[1]

    def test_the_message_is_one_line_with_its_control_characters_escaped(self) -> None:
        self.assertEqual(self.message("a\nb\x1b[0m\tc\u2028d"), "a\\nb\\x1b[0m\\tc\\u2028d")
        self.assertEqual(self.message('"quoted" $HOME `x` = \\'), '"quoted" $HOME `x` = \\')

    def test_the_message_is_never_longer_than_1000_characters(self) -> None:
        for text in ("x" * 5000, "\N{GRINNING FACE}" * 5000, "\n" * 999):
            self.assertEqual(len(self.message(text)), 1000)

    def test_the_json_fits_into_60_kilobytes(self) -> None:
        self.notify("\N{GRINNING FACE}" * 100_000, 1)
        self.assertLess(len(json.dumps(self.told()[2])), 60_000)

    def test_a_name_without_letters_becomes_an_escape(self) -> None:
        self.assertEqual(self.message("b\udcff.webm"), "b\\udcff.webm")

    def test_the_message_is_utf_8_in_any_locale(self) -> None:
        folder = self.folder / "Grüße 世界"
        folder.mkdir()
        self.config, self.heard = folder / "config.json", folder / "heard"
        self.listen()
        latin_1 = "de_DE.ISO-8859-1"
        if shutil.which("localedef"):  # else the C locale stands in for it
            words = ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", str(self.folder / latin_1)]
            subprocess.run(words, stderr=subprocess.DEVNULL, check=False)
        for name, mode in (("C", "0"), ("C.UTF-8", "1"), (latin_1, "0")):
            locale = {"LC_ALL": name, "PYTHONUTF8": mode, "PYTHONCOERCECLOCALE": mode}
            locale["LOCPATH"] = str(self.folder)
            self.assertEqual(self.run_cli(env={**os.environ, **locale}).code, 2)
            self.assertIn(f"no recordings folder {folder}/recordings", self.told()[1], locale)

    def test_the_command_has_the_locale_of_its_user(self) -> None:
        command = 'printf "%s|%s" "$LC_ALL" "$LC_CTYPE" > heard'
        self.configure(notify_command=command, notify_on="always")
        for names in ({"LC_ALL": "C.UTF-8"}, {"LC_CTYPE": "C.UTF-8"}):
            with unittest.mock.patch.dict(os.environ, {"LC_ALL": "", "LC_CTYPE": "", **names}):
                self.run_here("run")
            expected = f"{names.get('LC_ALL', '')}|{names.get('LC_CTYPE', '')}"
            self.assertEqual(self.heard.read_text(), expected)

    def test_a_pause_stands_first_and_once(self) -> None:
        self.put_pause(9)
        self.assertRegex(self.message("1 failed."), r"^Paused since \d.*, until .* 1 failed")
        self.listen(notify_on="always")
        self.run_here("run")
        message = self.told()[1]
        self.assertTrue(message.startswith("Paused since "))
        self.assertEqual(message.count("Paused"), 1)


class Pause(NotifyCase):
    def test_doctor_and_statistics_say_until_when(self) -> None:
        ran = self.run_here("pause", "--for", "2h")
        end = service.local_time(time.time() + 7200)[:13]
        self.assertIn(f"until {end}", ran.out)
        self.assertIn(f"until {end}", self.run_here("doctor").out)
        ran = self.run_here("stats")
        self.assertEqual(ran.code, 0)
        self.assertIn(end, ran.out)
        stats = service.storage_stats(str(self.library))
        self.assertTrue(stats["paused"])
        self.assertIn(f"until {end}", service.stats_page({**stats, **self.found()}))
        self.assertEqual(self.run_here("resume").code, 0)
        self.assertFalse(service.storage_stats(str(self.library))["paused"])

    def found(self) -> dict[str, Any]:
        config = service.resolve_config(service.parse_words(["stats", "-c", str(self.config)]))
        found = service.obstacles(service.Run(config, service.Report(config)))
        return {"findings": [{"text": text, "code": code} for text, code in found]}

    def test_a_forgotten_pause_is_the_first_line_of_doctor_and_no_fault_of_the_schedule(
        self,
    ) -> None:
        self.put_run_on_record(ago=9 * DAY)
        self.put_pause(8)
        ran = self.run_here("doctor")
        self.assertEqual(ran.code, 1)
        self.assertRegex(ran.out, r"^PROBLEM  Paused since \d.*, until 'resume'")
        self.assertNotIn("schedule", ran.out)

    def test_it_ends_by_itself(self) -> None:
        self.put_pause(8, str(time.time() - 1))
        self.assertNotIn("Paused", self.run_here("doctor").out)
        self.assertIn("Nothing to do.", self.run_here("run").out)


class Findings(NotifyCase):
    def found(self, **settings: Any) -> list[str]:
        self.configure(**settings)
        config = service.resolve_config(service.parse_words(["doctor", "-c", str(self.config)]))
        return [text for text, _ in service.obstacles(service.Run(config, service.Report(config)))]

    def test_a_sound_library_has_none(self) -> None:
        self.add_json("index.json", {"recordings": []})
        self.assertEqual(self.found(), [])

    def test_a_dry_run_in_the_config_file(self) -> None:
        self.assertRegex(self.found(dry_run=True)[0], f'"dry_run" is set in {self.config}')

    def test_a_command_that_neither_path_nor_shell_knows(self) -> None:
        (self.folder / "mine.sh").write_text("#!/bin/sh\n")
        for command in (
            "no-such-thing -s x",
            "  no-such-thing",
            "no-such-thing;true",
            "no-such-thing|cat",
            "/no/such/thing",
            "./nothing.sh",
            "./mine.sh",
            "$HOME/no-such-thing x",
            "~/no-such-thing",
            "'no-such-thing' x",
            '"/no such/thing" x',
            "/usr/bin",
        ):
            self.assertIn("No program", "".join(self.found(notify_command=command)), command)

    def test_whatever_the_shell_knows_is_no_finding(self) -> None:
        tool = self.folder / "my tool"
        tool.write_text("#!/bin/sh\n")
        tool.chmod(0o755)
        for command in (
            "cat >heard",
            "/bin/cat",
            '"./my tool" x',
            "cd /tmp && x",
            "if true; then x; fi",
            "[ $EXIT_CODE = 0 ] || x",
            "! x",
            "{ x; }",
            "(x)",
            "NAME='a b' x",
            ">file x",
            "2>file x",
            "$(which x) y",
            "`which x` y",
            "${TOOL:-cat} x",
            "exec cat",
            ". ./x",
            "f() { cat; }; f",
            "# says it\ncat",
            "cat\\\n x",
            "'unclosed",
        ):
            self.assertEqual(self.found(notify_command=command), [], command)

    def test_an_index_that_cannot_be_read(self) -> None:
        for text in ("{", "[]", '{"recordings": 1}', '{"recordings": [1]}', "", "\xff"):
            (self.library / "index.json").write_text(text, encoding="latin-1")
            self.age_index()
            self.assertRegex(self.found()[0], "Left alone.* until you mend it: index.json: ", text)
        self.assertEqual(self.run_here("doctor").code, 1)
        self.assertEqual(self.run_here("stats").code, 0)

    def age_index(self) -> None:
        os.utime(self.library / "index.json", (1, 1))  # else it may be half written


class LastRun(LibraryCase):
    def setUp(self) -> None:
        super().setUp()
        self.now = 1_800_000_000.0
        self.history().parent.mkdir()

    def line(self, **members: Any) -> None:
        with open(self.history(), "a", encoding="ascii") as file:
            file.write(json.dumps(members) + "\n")

    def outcome(self, stem: str, action: str, later: float = 0) -> None:
        past = {"action": action, "time": self.now + later}
        about = {"type": "recording", "path": f"{stem}.webm", "action": action, "take": stem}
        self.line(**about, past=past)

    def ended(self, **counts: int) -> None:
        """A run is on record, and the next one begins a night later."""
        self.line(type="run", time=self.now, **counts)
        self.now += DAY

    def last(self) -> list[str]:
        root = self.library
        return sorted(
            str(Path(path).relative_to(root))
            for path in service.done_last(service.Library(str(root)))
        )

    def test_it_is_found_after_many_idle_nights(self) -> None:
        self.outcome("d/a", "compressed")
        self.ended(compressed=1)
        self.outcome("d/b", "compressed")
        self.outcome("e/c", "archived", later=0.5)  # as version 2.0 put it on record
        self.ended(compressed=1, archived=1)
        for _ in range(100):
            self.outcome("d/odd", "kept")
            self.line(type="folder", path="d/", rest="x", time=self.now)
            self.ended()
        self.assertEqual(self.last(), ["d/b.webm", "e/c.webm"])

    def test_a_run_that_was_killed_has_no_record_and_is_one_all_the_same(self) -> None:
        self.outcome("d/a", "compressed")
        self.ended(compressed=1)
        self.outcome("d/b", "compressed")
        self.now += DAY
        self.ended()
        self.assertEqual(self.last(), ["d/b.webm"])

    def test_once_restored_it_is_still_the_last(self) -> None:
        for stem in ("d/a", "d/b"):
            self.outcome(stem, "compressed")
            self.ended(compressed=1)
        self.outcome("d/b", "restored")
        self.line(type="restore", time=self.now)
        self.assertEqual(self.last(), [])

    def test_a_clock_that_was_ahead_for_a_night_decides_nothing(self) -> None:
        self.now += 300 * DAY
        self.outcome("d/a", "compressed")
        self.ended(compressed=1)
        self.now -= 300 * DAY
        self.outcome("d/b", "compressed")
        self.ended(compressed=1)
        self.assertEqual(self.last(), ["d/b.webm"])

    def test_torn_lines_and_no_history_are_no_run(self) -> None:
        self.assertEqual(self.last(), [])
        self.line(type="recording", path="d/a.webm", past=["compressed"], time=[])
        self.line(type="recording", path="d/a.webm", past={"action": ["compressed"]})
        with open(self.history(), "ab") as file:
            file.write(b'{"type": "run", "ti\n\xff\n[]\n')
        self.assertEqual(self.last(), [])


class NothingBack(LibraryCase):
    """Originals were deleted at once, as by default."""

    def put_copies(self, count: int) -> None:
        """Recordings as a run would have left them; their copies need not play."""
        self.history().parent.mkdir()
        for number in range(count):
            stem = f"d/{number}"
            copy = self.add_bytes(b"copy", f"{stem}.opus")
            self.add_json(f"{stem}.json", {"id": stem, "chunks": [{"file": copy.name}]})
            when = 1_790_000_000 + number * DAY
            past = {"action": "compressed", "move": "compress", "time": when, "compressed": when}
            past.update(suffix=".opus", size=4, mtime_ns=copy.stat().st_mtime_ns, first_size=9)
            about = {"type": "recording", "path": f"{stem}.webm", "action": "compressed"}
            with open(self.history(), "a", encoding="ascii") as file:
                file.write(json.dumps({**about, "take": stem, "past": past}) + "\n")

    def assert_said(self, ran: Ran, *words: str) -> None:
        self.assertEqual(ran.code, 1, ran)
        self.assertEqual(ran.err.count("to bring back: "), 1, ran)
        self.assertNotIn("failed", ran.out)
        for word in words:
            self.assertIn(word, ran.err)

    def test_one_sentence_says_it_of_all(self) -> None:
        self.put_copies(43)
        before = self.files()
        days = [service.local_time(1_790_000_000 + number * DAY)[:10] for number in (0, 42)]
        for words in ((str(self.library),), ("-n", str(self.library))):
            self.assert_said(
                self.run_cli("restore", *words),
                f"these 43 originals were deleted on {days[0]} to {days[1]}; their .opus copies are",
                "`keep_originals_days` keeps originals from now on.",
            )
        self.assert_said(
            self.run_cli("restore", "--last-run"), f"this original was deleted on {days[1]};"
        )
        self.assertEqual(self.files(), before)

    def test_what_has_an_original_comes_back_beside_it(self) -> None:
        self.put_copies(2)
        original = self.add("chunk_0", "e/a.webm")
        self.assertEqual(self.run_cli("--keep-originals", "--only", "e/*").code, 0)
        self.assertTrue(original.with_suffix(".opus").exists())
        ran = self.run_cli("restore", str(self.library))
        self.assert_said(ran, "Nothing more", "these 2 originals", "their .opus copies are")
        self.assertIn("restore: 1 restored", ran.out)
        self.assertFalse(original.with_suffix(".opus").exists())


if __name__ == "__main__":
    unittest.main()
