"""What the library takes and what was saved: told from the records, never guessed, whatever is in them."""

from __future__ import annotations

import json
import os
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest import mock

import compression_service as service
from tests.base import LONG_AGO, LibraryCase

BEFORE, AFTER = 1000, 600  # bytes
IN_JANUARY = 1_769_824_800.0  # 2026-01-31


def compressed(take: str, **changes: Any) -> dict[str, Any]:
    """A history record of a recording of 1000 bytes that became a copy of 600."""
    past = {
        "action": "compressed", "code": "done", "move": "compress", "settings": "0", "time": IN_JANUARY, "suffix": ".opus",
        "mtime_ns": LONG_AGO * 10**9, "first_size": BEFORE, "size": AFTER, "bitrate": 96_000, "seconds": 7.5,
        "compressed": IN_JANUARY, **changes,
    }  # fmt: skip
    return {"type": "recording", "path": f"{take}.webm", "take": take, "past": past}


def run(**changes: Any) -> dict[str, Any]:
    return {"type": "run", "date": "2026-02-01T02:00:01Z", "time": 1.0, "compressed": 1, "exit_code": 0, "message": "1 compressed",
            **changes}  # fmt: skip


class StatsCase(LibraryCase):
    def remember(self, *records: Any) -> None:
        """Append lines to the history: objects, or text as it is."""
        self.history().parent.mkdir(exist_ok=True)
        with open(self.history(), "a", encoding="utf-8") as file:
            file.writelines(
                (each if isinstance(each, str) else json.dumps(each)) + "\n" for each in records
            )

    def stats(self) -> dict[str, Any]:
        arguments = service.parse_words(["stats", "-c", str(self.config)])
        return service.gather_stats(service.resolve_config(arguments))

    def assert_saved(self, expected: int, **others: Any) -> None:
        stats = self.stats()
        self.assertEqual(stats["savings"], expected, stats)
        self.assertEqual({key: stats[key] for key in others}, others)

    def add_copy(self, path: str = "d/a.opus", size: int = AFTER) -> Path:
        return self.add_bytes(b"x" * size, path)


class Runs(StatsCase):
    def test_every_way_to_ask_gives_the_same_and_it_is_what_the_run_said(self) -> None:
        self.add_session()
        self.add("ch_slice_01", "2025-10-27/b.webm")
        self.add("chunk_0", "2025-10-27/young.webm", time.time())
        summary = self.run_cli("--json").summary
        before = self.files()
        ran = self.run_cli("stats", "--json")
        self.assertEqual(ran.code, 0, ran.err)
        (stats,) = ran.lines
        sizes = {name: len(content) for name, content in before.items()}
        copies = sum(size for name, size in sizes.items() if name.endswith(".opus"))
        originals = sum(size for name, size in sizes.items() if name.endswith(".webm"))
        self.assertEqual(
            [stats[key] for key in ("total_size", "compressed_size", "original_size")],
            [copies + originals, copies, originals],
        )
        self.assertEqual(stats["savings"], summary["saved"])
        self.assertEqual(stats["compression_ratio"], round(copies / summary["original_size"], 4))
        self.assertEqual(
            [stats[key] for key in ("recordings", "compressed", "originals", "young")], [4, 2, 2, 1]
        )
        self.assertEqual(list(stats["savings_by_month"].values()), [summary["saved"]])
        self.assertEqual(
            [(each["code"], each["count"]) for each in stats["kept"]], [("headerless", 1)]
        )
        self.assertEqual(stats["runs"][-1]["compressed"], 2)
        for again in (self.stats(), service.storage_stats(str(self.library))):
            self.assertEqual({**again, "free_space": 0}, {**stats, "free_space": 0})
        self.assertEqual(self.files(), before)
        self.history().write_bytes(b"")  # what it knew, nobody makes up
        self.assert_saved(0, total_size=stats["total_size"], unrecorded=2, compression_ratio=None)

    def test_kept_originals_have_saved_nothing_yet_and_are_one_recording_with_their_copy(
        self,
    ) -> None:
        original = self.add("chunk_0", "a.webm").stat().st_size
        self.run_cli("--keep-originals")
        self.assert_saved(0, recordings=1, original_size=original, compression_ratio=None)

    def test_one_record_for_a_run_and_none_for_a_rehearsal_or_a_pause(self) -> None:
        self.add("ch_slice_01", "a.webm")
        self.run_here("run", "--dry-run")
        self.run_here("pause")
        self.run_here("run")
        self.run_here("resume")
        self.assertEqual(self.stats()["runs"], [])
        self.assertEqual(self.run_cli().code, 0)
        self.assertEqual(self.run_cli().code, 0)
        self.assertEqual([each["kept"] for each in self.stats()["runs"]], [1, 0])

    def test_a_run_that_failed_is_on_record_with_its_exit_code(self) -> None:
        self.add("chunk_0", "a.webm")
        none = service.ToolError("none")
        with mock.patch.object(service.Tools, "find", side_effect=none):
            self.assertEqual(self.run_here("run").code, 4)
        self.assertEqual(self.stats()["runs"][-1]["exit_code"], 4)


class Records(StatsCase):
    def test_savings_count_from_what_the_browser_wrote_whatever_was_in_between(self) -> None:
        self.add_copy(size=300)
        self.remember(compressed("d/a"), compressed("d/a", move="smaller", size=300))
        self.assert_saved(700, compression_ratio=0.3, savings_by_month={"2026-01": 700})

    def test_a_restored_original_takes_its_saving_back(self) -> None:
        self.add_bytes(b"x" * BEFORE, "d/a.webm")
        self.remember(compressed("d/a"), compressed("d/a", action="restored", code="restored"))
        self.assert_saved(0, original_size=BEFORE, compression_ratio=None)

    def test_what_an_archived_copy_saved_stays_saved(self) -> None:
        place = {"location": "/mnt/cold/d", "name": "a.opus", "size": AFTER, "mtime_ns": 1, "sha256": "0", "mode": 0o600,
                 "owner": [0, 0], "time": 1.0}  # fmt: skip
        self.remember(compressed("d/a", action="archived", move="archive", place=place))
        archived = {"count": 1, "size": AFTER}
        self.assert_saved(400, archived=archived, total_size=0, savings_by_month={"2026-01": 400})

    def test_a_copy_that_is_gone_saves_nothing(self) -> None:
        self.remember(compressed("d/a"))
        self.assert_saved(0, total_size=0, compression_ratio=None, savings_by_month={})

    def test_odd_and_torn_lines_cost_only_themselves(self) -> None:
        self.add_copy()
        odd = [
            "", "{", "[]", "7", '"type"', "null", '{"type": "run"}', "[" * 10_000, json.dumps(run(date="\ud800")),
            json.dumps({**compressed("d/a"), "past": 7}), json.dumps({**compressed("x"), "take": 7}),
            json.dumps({**compressed("x"), "take": "../d/a"}), json.dumps(compressed("d/a", first_size="7")),
            json.dumps(compressed("d/a", size=None)), json.dumps(compressed("d/a", first_size=True)),
            json.dumps(compressed("d/a", suffix="/../x")), json.dumps(compressed("d/a", action=["kept"])),
            '{"type": "of a later version", "take": "d/a"}',
        ]  # fmt: skip
        for line in odd:
            self.remember(line, compressed("d/a"), run(), line)
            self.assert_saved(400)
            json.dumps(self.stats(), allow_nan=False)
            self.history().unlink()

    def test_odd_values_that_were_taken_in_do_no_harm(self) -> None:
        self.add_bytes(b"x", "d/e.webm")
        self.add_copy()
        self.remember(compressed("d/a", compressed=9e10))
        self.remember(compressed("d/e", action="kept", first_size=1, code="<b>\ud800"))
        page = service.stats_page(self.stats())
        page.encode()
        self.assertNotIn("<b>", page)

    def test_what_was_kept_is_told_by_reason_while_it_is_still_there(self) -> None:
        self.add_bytes(b"x" * BEFORE, "d/a.webm")
        settings = "opus 96000 5 True False"
        kept = compressed(
            "d/a", action="kept", code="truncated", suffix="", size=0, settings=settings
        )
        self.remember(kept, {**kept, "take": "d/gone"})
        (told,) = self.stats()["kept"]
        self.assertEqual(
            (told["code"], told["count"], told["paths"]), ("truncated", 1, ["d/a.webm"])
        )
        self.assertEqual(self.stats()["due"]["count"], 0)

    def test_due_is_what_is_old_and_not_settled_with_the_saving_that_is_usual(self) -> None:
        self.add_bytes(b"x" * BEFORE, "d/old.webm")
        self.add_bytes(b"x" * BEFORE, "d/young.webm", time.time())
        due = {"count": 1, "size": BEFORE, "estimated_saving": 250}  # 96 of 128 kbit/s
        self.assertEqual(self.stats()["due"], due)
        self.assertEqual(self.stats()["young"], 1)

    def test_a_file_with_a_copys_suffix_in_capitals_is_none_of_ours(self) -> None:
        self.add_copy("d/a.OPUS")
        self.assert_saved(0, recordings=0, total_size=0)

    def test_what_is_not_a_file_of_the_library_is_left_alone(self) -> None:
        self.add_copy()
        outside = self.folder / "outside"
        outside.mkdir()
        (outside / "b.opus").write_bytes(b"x")
        (self.library / "link").symlink_to(outside)
        (self.library / "b.opus").symlink_to(outside / "b.opus")
        os.mkfifo(self.library / "d" / "pipe.webm")
        self.add_copy(".compression/0.opus")
        self.assert_saved(0, total_size=AFTER, recordings=1)


class WholeLibrary(StatsCase):
    def test_sizes_savings_and_reasons_are_those_of_the_records(self) -> None:
        self.add_copy("d/a.opus", 4)
        self.add_bytes(b"x" * 5, "d/b.webm")
        self.add_bytes(b"x" * 7, "d/<c>.webm")
        self.add_bytes(b"x" * 100, "e/new.webm")
        self.add_copy("e/stranger.opus", 2)
        self.remember(
            compressed("d/a", first_size=10, size=4),
            compressed("d/b", action="kept", code="video", first_size=5, suffix="", size=0,
                       settings="opus 96000 5 True False"),
            compressed("d/<c>", action="failed", code="tool-failed", first_size=7, suffix="", size=0),
        )  # fmt: skip
        self.assert_saved(
            6,
            total_size=118,
            compressed_size=6,
            original_size=112,
            recordings=5,
            compression_ratio=0.4,
            compressed=2,
            originals=3,
            unrecorded=1,
            young=0,
            due={"count": 2, "size": 107, "estimated_saving": 29},
            savings_by_month={"2026-01": 6},
        )
        stats = self.stats()
        self.assertEqual(sum(stats["recorded_by_month"].values()), 10 + 5 + 7 + 100 + 2)
        kept = [(each["action"], each["count"], each["paths"]) for each in stats["kept"]]
        self.assertEqual(kept, [("failed", 1, ["d/<c>.webm"]), ("kept", 1, ["d/b.webm"])])
        self.assertIn("d/<c>", "\n".join(service.stats_lines(stats)))
        page = service.stats_page(stats)
        self.assertIn("d/&lt;c&gt;", page)
        self.assertNotIn("<c>", page)


class Page(HTMLParser):
    """The text, the tags and the pictures of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.labels: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, Any]]) -> None:
        self.tags.append(tag)
        if tag == "svg" and "aria-hidden" not in dict(attrs):
            self.labels.append(dict(attrs).get("aria-label") or "")

    def handle_data(self, data: str) -> None:
        self.text += data


class Telling(StatsCase):
    def test_an_empty_library_and_a_missing_one(self) -> None:
        ran = self.run_here("stats")
        self.assertEqual((ran.code, ran.err), (0, ""))
        self.assertTrue(ran.out.startswith("All well. No recordings (*.webm) below"), ran.out)
        self.assertIn("No recordings yet", service.stats_page(self.stats()))
        self.library.rmdir()
        ran = self.run_here("stats")
        self.assertEqual(ran.code, 2)
        self.assertNotIn("Traceback", ran.err)
        self.assertRaises(ValueError, service.storage_stats, str(self.library))
        self.assertRaises(ValueError, service.storage_stats, "")

    def test_the_table_for_people_names_sizes_reasons_failures_and_runs(self) -> None:
        self.add_copy()
        self.add_bytes(b"x" * BEFORE, "d/b.webm")
        failed = compressed(
            "d/b", action="failed", code="tool-failed", suffix="", size=0, attempts=3
        )
        self.remember(compressed("d/a"), failed, run())
        lines = [line.split() for line in service.stats_lines(self.stats())]
        for row in ("originals still here 1.00 kB (1) · copies 600 B (1) · saved 400 B (20 %)",
                    "2026-01 0 B recorded, 400 B saved", "1 failed: ffmpeg failed", "d/b.webm failed: ffmpeg failed"):  # fmt: skip
            self.assertIn(row.split(), lines)
        self.assertIn(["1", "compressed"], [line[-2:] for line in lines])

    def test_what_is_nothing_is_not_told(self) -> None:
        self.add_bytes(b"x" * BEFORE, "d/a.webm", time.time())
        text = "\n".join(service.stats_lines(self.stats()))
        for word in ("0.00", " 0\n", "savings", "due", "archived", "failed"):
            self.assertNotIn(word, text + "\n")
        self.assertIn("not old enough yet 1", text)

    def test_fifty_are_named_and_the_rest_is_counted(self) -> None:
        names = [f"d/{number:02}" for number in range(52)]
        for name in names:
            self.add_bytes(b"x" * BEFORE, f"{name}.webm")
        kept = {"action": "kept", "code": "truncated", "suffix": "", "size": 0}
        self.remember(*(compressed(name, **kept) for name in names))
        rows = service.stats_tables(self.stats())["failed or kept, by name"]
        self.assertEqual(len(rows), 51)
        self.assertEqual(
            rows[49:], [("d/49.webm", "kept: truncated"), ("and 2 more", "--json has all")]
        )

    def test_what_a_terminal_shows_fits_80_columns(self) -> None:
        name = "a-very-long-folder-name/" + "14-30-45-" * 9 + "x"
        self.add_bytes(b"x" * BEFORE, f"{name}.webm")
        self.remember(
            compressed(name, action="failed", code="not-proven"), run(message="word " * 40)
        )
        lines = list(service.stats_lines(self.stats()))
        self.assertLessEqual(max(map(len, lines)), 80)
        self.assertIn("14-30-45-14-30-45", "".join(lines))

    def test_the_page_is_complete_in_itself_and_every_picture_has_its_text(self) -> None:
        self.add_copy()
        hostile = '<script>alert("x")</script>'
        self.add_bytes(b"x" * BEFORE, "d/a & <em>.webm")
        self.remember(compressed("d/a"), run(), run(exit_code=1, message="something failed"))
        self.remember(compressed("d/a & <em>", action="failed", code=hostile))
        file = self.folder / "page.html"
        self.assertEqual(self.run_here("stats", "--html", str(file)).code, 0)
        text = file.read_text(encoding="utf-8")
        page = Page(text)
        self.assertEqual({*page.tags} & {"script", "link", "img", "iframe", "em"}, set())
        self.assertNotRegex(text, r"https?://|url\(|@import|style=| on\w+=")
        self.assertTrue(page.labels and all(page.labels), page.labels)
        for words in (hostile, "d/a & <em>", "something failed"):
            self.assertIn(words, page.text)
        self.assertIn("prefers-color-scheme:dark", text)

    def test_sizes_over_time_add_up_to_what_is_on_disk(self) -> None:
        self.add_copy()
        self.add_bytes(b"x" * 50, "d/b.webm", LONG_AGO - 40 * service.DAY)
        self.remember(compressed("d/a"))
        chart = service.size_chart(self.stats())
        titles = re.findall("<title>(.*?)</title>", chart)
        self.assertEqual(len(titles), 3)
        self.assertEqual(titles[0], "2025-09: 50 B with compression, 50 B without")
        self.assertEqual(titles[2], "2026-01: 650 B with compression, 1.05 kB without")
        self.assertIn("Until 2026-01: 650 B with compression, 1.05 kB without.", chart)

    def test_the_chart_says_that_it_counts_what_was_deleted(self) -> None:
        self.remember(compressed("d/a", deleted=IN_JANUARY))
        chart = service.size_chart(self.stats())
        self.assertIn("2026-01: 600 B with compression, 1.00 kB without", chart)
        self.assertIn("What was archived or deleted counts too.", chart)
        self.assertNotIn("Size over time", service.stats_page(self.stats()))

    def test_a_telephone_shows_the_names_of_months_apart(self) -> None:
        for month in range(1, 10):
            self.add_bytes(b"x", f"d/{month}.webm", LONG_AGO - month * 31 * service.DAY)
        page = service.stats_page(self.stats())
        self.assertLessEqual(page.count("<text "), 3)

    def test_a_page_is_never_written_over_anything_else(self) -> None:
        recording = self.add_copy()
        before = self.files()
        for words in (
            ["--html", str(recording)],
            ["--html", ""],
            ["--html", str(self.folder / "x.html"), "--json"],
        ):
            ran = self.run_here("stats", *words)
            self.assertEqual(ran.code, 2, ran.err)
        self.assertEqual(
            self.run_here("stats", "--html", str(self.folder / "none" / "x.html")).code, 1
        )
        self.assertEqual(self.files(), before)
        self.assertFalse((self.folder / "x.html").exists())
