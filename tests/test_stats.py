"""What the library takes and what was saved: told from the records, never guessed, whatever is in them."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest import mock

import compression_service as service
from tests.base import LONG_AGO, LibraryCase, Ran, index, index_entry, sidecar

BEFORE, AFTER = 1000, 600  # bytes


def compressed(path: str, **changes: Any) -> dict[str, Any]:
    """A history record of a recording of 1000 bytes that became a copy of 600."""
    record = {
        "date": "2026-01-31T02:00:00Z", "time": time.time(), "type": "recording", "path": path, "action": "compressed",
        "reason": "proven and put in place", "code": "done", "original_size": BEFORE, "compressed_size": AFTER, "seconds": 7.5,
        "mtime_ns": LONG_AGO * 10**9, "settings": "0", "counts": True, "copy": os.path.basename(path)[:-5] + ".opus",
        "first_size": BEFORE, "index": [],
    }  # fmt: skip
    return {**record, **changes}


def run(**changes: Any) -> dict[str, Any]:
    return {
        "type": "run", "date": "2026-02-01T02:00:01Z", "time": 1.0, "found": 3, "due": 2, "compressed": 1, "kept": 1, "failed": 0,
        "saved": 400, "elapsed_seconds": 1.5, "exit_code": 0, **changes,
    }  # fmt: skip


class StatsCase(LibraryCase):
    def remember(self, *records: Any) -> None:
        """Append lines to the history: objects, or text as it is."""
        path = self.folder / "logs" / "history.jsonl"
        path.parent.mkdir(exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.writelines((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in records)

    def stats(self) -> dict[str, Any]:
        config = service.resolve_config(argparse.Namespace(config=str(self.config)))
        return service.Statistics(config, time.time()).gather()

    def ask(self, command: str, *words: str) -> Ran:
        """run_cli() without a process of its own."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = service.main([command, "-c", str(self.config), *words])
        return Ran(code, out.getvalue(), err.getvalue())

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
            [stats[key] for key in ("total_size", "compressed_size", "original_size")], [copies + originals, copies, originals]
        )
        self.assertEqual(stats["savings"], summary["saved"])
        self.assertEqual(stats["compression_ratio"], round(copies / summary["original_size"], 4))
        self.assertEqual([stats[key] for key in ("recordings", "compressed", "originals", "young")], [4, 2, 2, 1])
        self.assertEqual(list(stats["savings_by_month"].values()), [summary["saved"]])
        self.assertEqual([(each["code"], each["count"]) for each in stats["kept"]], [("headerless", 1)])
        self.assertEqual(stats["runs"][-1]["compressed"], 2)
        self.assertEqual(self.stats(), stats)
        self.assertEqual(self.files(), before)
        log = self.folder / "logs" / "history.jsonl"
        log.write_bytes(b"")  # what the history knew, the sidecars know
        again = self.stats()
        for key in ("total_size", "savings", "compression_ratio", "savings_by_month"):
            self.assertEqual(again[key], stats[key], key)

    def test_kept_originals_have_saved_nothing_yet_and_are_one_recording_with_their_copy(self) -> None:
        original = self.add("chunk_0", "a.webm").stat().st_size
        self.add_json("a.json", sidecar("x", ["a.webm"]))
        self.run_cli("--keep-originals")
        for unrecorded in (0, 1):
            stats = self.stats()
            self.assertEqual((stats["savings"], stats["recordings"], stats["original_size"]), (0, 1, original))
            self.assertEqual(stats["unrecorded"], unrecorded)
            self.assertEqual(stats["compression_ratio"] is None, bool(unrecorded))
            (self.folder / "logs" / "history.jsonl").write_bytes(b"")

    def test_one_record_for_a_run_and_none_for_a_rehearsal_or_a_pause(self) -> None:
        self.add("ch_slice_01", "a.webm")
        self.ask("run", "--dry-run")
        self.ask("pause")
        self.ask("run")
        self.ask("resume")
        self.assertEqual(self.stats()["runs"], [])
        self.assertEqual(self.run_cli().code, 0)
        self.assertEqual(self.run_cli().code, 0)
        self.assertEqual([each["kept"] for each in self.stats()["runs"]], [1, 0])

    def test_a_run_that_failed_is_on_record_with_its_exit_code(self) -> None:
        self.add("chunk_0", "a.webm")
        missing = mock.patch.object(service, "find_tool", side_effect=service.ToolMissingError("none"))
        with missing:
            self.assertEqual(self.ask("run").code, 4)
        self.assertEqual(self.stats()["runs"][-1]["exit_code"], 4)

    def test_the_note_on_the_index_is_found_behind_the_record_of_the_run(self) -> None:
        self.add("chunk_0", "a.webm")
        self.add_json("a.json", sidecar("x", ["a.webm"]))
        self.add_json("index.json", index([index_entry("x", 1)]))
        self.run_cli()
        status = (self.library / "index.json").stat()
        history = service.History(service.resolve_config(argparse.Namespace(config=str(self.config))))
        self.assertTrue(history.knows_index(status))
        self.remember('{"type": "index", "iden', "[]", run())
        self.assertTrue(history.knows_index(status))
        self.remember({"type": "index", "identity": [1, 2, 3]})
        self.assertFalse(history.knows_index(status))


class Records(StatsCase):
    def test_savings_count_from_what_the_browser_wrote_whatever_was_in_between(self) -> None:
        self.add_copy(size=300)
        self.remember(compressed("d/a.webm"), compressed("d/a.webm", original_size=600, compressed_size=300))
        self.assert_saved(700, compression_ratio=0.3, savings_by_month={"2026-01": 700}, audio_seconds=7.5)

    def test_a_restored_original_takes_its_saving_back(self) -> None:
        self.add_bytes(b"x" * BEFORE, "d/a.webm")
        self.remember(compressed("d/a.webm"), compressed("d/a.webm", action="restored", code="restored"))
        self.assert_saved(0, original_size=BEFORE, compression_ratio=None)
        self.add_copy()
        self.assert_saved(0, compressed_size=AFTER, compression_ratio=None, unrecorded=1)

    def test_what_an_archived_copy_saved_stays_saved(self) -> None:
        self.remember(compressed("d/a.webm"))
        self.remember(compressed("d/a.opus", action="archived", original_size=AFTER, copy=None, location="/mnt/cold/d/a.opus"))
        archived = {"count": 1, "size": AFTER}
        self.assert_saved(400, archived=archived, total_size=0, savings_by_month={"2026-01": 400}, compression_ratio=None)
        self.add_copy()
        self.assert_saved(0, archived={"count": 0, "size": 0}, compressed_size=AFTER, unrecorded=1)

    def test_a_copy_that_is_gone_saves_nothing(self) -> None:
        self.remember(compressed("d/a.webm"))
        self.assert_saved(0, total_size=0, compression_ratio=None, savings_by_month={})

    def test_odd_and_torn_lines_cost_only_themselves(self) -> None:
        self.add_copy()
        odd = [
            "", "{", "[]", "7", '"type"', "null", '{"type": "run"}', "[" * 10_000, json.dumps(run(exit_code=None)),
            json.dumps(run(date="\ud800")), json.dumps(run(saved=10**30)),
            json.dumps(compressed("d/a.opus", action="archived", original_size=None)),
            json.dumps({**compressed("d/a.opus", action="archived"), "path": ["x"]}),
            json.dumps(compressed("d/a.webm", action="restored", copy="../d/a.opus")),
            '{"type": "of a later version", "path": "d/a.webm"}', json.dumps(compressed("d/a.webm", first_size="7")),
            json.dumps(compressed("d/a.webm", compressed_size=None)), json.dumps(compressed("d/a.webm", first_size=1e300)),
            json.dumps(compressed("d/a.webm", first_size=True)), json.dumps(compressed("d/c.webm", action=["kept"], code={"a": 1})),
            json.dumps({**compressed("x"), "path": 7}),
        ]  # fmt: skip
        for line in odd:
            self.remember(line, compressed("d/a.webm"), run(), line)
            self.assert_saved(400, audio_seconds=7.5)
            json.dumps(self.stats(), allow_nan=False)
            (self.folder / "logs" / "history.jsonl").unlink()

    def test_odd_values_that_were_taken_in_do_no_harm(self) -> None:
        for name in ("a", "b", "c"):
            self.add_copy(f"d/{name}.opus")
        mtime_ns = self.add_bytes(b"x", "d/e.webm").stat().st_mtime_ns
        self.remember(
            compressed("d/a.webm", seconds=float("nan")), compressed("d/b.webm", seconds=1e300, date="yesterday"),
            compressed("d/c.webm", date=7),
            compressed("d/e.webm", action="kept", original_size=1, mtime_ns=mtime_ns, code="<b>\ud800"),
        )  # fmt: skip
        stats = self.stats()
        self.assertEqual((stats["savings"], stats["savings_by_month"]), (1200, {"2026-01": 400}))
        json.dumps(stats, allow_nan=False)
        page = service.stats_page(stats)
        page.encode()
        self.assertNotIn("<b>\\", page)

    def test_what_was_kept_is_told_by_reason_while_it_is_still_there(self) -> None:
        status = self.add_bytes(b"x" * BEFORE, "d/a.webm").stat()
        kept = compressed("d/a.webm", action="kept", code="truncated", copy=None, mtime_ns=status.st_mtime_ns)
        self.remember(kept, {**kept, "path": "d/gone.webm"})
        expected = {"action": "kept", "code": "truncated", "reason": "truncated", "count": 1, "size": BEFORE}
        stats = self.stats()
        self.assertEqual((stats["kept"], stats["due"]["count"]), ([expected], 0))

    def test_due_is_what_is_old_and_not_settled_with_the_saving_the_library_had_so_far(self) -> None:
        self.add_bytes(b"x" * BEFORE, "d/old.webm")
        self.add_bytes(b"x" * BEFORE, "d/young.webm", time.time())
        self.assertEqual(self.stats()["due"], {"count": 1, "size": BEFORE, "estimated_saving": 252})  # 96 of 130 kbit/s
        self.add_copy()
        self.remember(compressed("d/a.webm"))
        self.assertEqual(self.stats()["due"], {"count": 1, "size": BEFORE, "estimated_saving": 400})

    def test_hours_come_from_the_index_where_the_history_knows_less(self) -> None:
        self.add_copy()
        self.add_bytes(b"x", "d/b.webm")
        entries = [{**index_entry("x", 1), "duration": value} for value in (10, 20.5, None, "7", -5, float("nan"))]
        self.add_json("index.json", index([*entries, 7]))  # type: ignore[list-item]
        self.remember(compressed("d/a.webm"))
        self.assertEqual(self.stats()["audio_seconds"], 30.5)
        for broken in ("", "[]", '{"recordings": 7}', "[" * 10_000):
            (self.library / "index.json").write_text(broken)
            self.assertEqual(self.stats()["audio_seconds"], 7.5)


class Sidecars(StatsCase):
    """Copies that the history does not know."""

    def add_told(self, path: str, names: list[str], **changes: Any) -> Path:
        document = {**sidecar("x", names), "compressed": True, "original_size": BEFORE * len(names),
                    "compressed_size": AFTER * len(names), "compression_date": "2026-02-28T02:00:00Z"}  # fmt: skip
        return self.add_json(path, {**document, **changes})

    def test_a_session_saves_once_however_many_sidecars_tell_of_it(self) -> None:
        for name in ("a", "b"):
            self.add_copy(f"d/{name}.opus")
            self.add_told(f"d/{name}.json", ["a.opus", "b.opus"])
        self.assert_saved(800, savings_by_month={"2026-02": 800}, compression_ratio=0.6, audio_seconds=6.0)

    def test_of_a_session_half_known_to_the_history_the_other_half_is_unrecorded(self) -> None:
        for name in ("a", "b"):
            self.add_copy(f"d/{name}.opus")
        self.add_told("d/a.json", ["a.opus", "b.opus"])
        self.remember(compressed("d/a.webm"))
        self.assert_saved(400, savings_by_month={"2026-01": 400}, unrecorded=1)

    def test_a_session_half_compressed_saves_that_half(self) -> None:
        self.add_copy()
        self.add_bytes(b"x" * BEFORE, "d/b.webm")
        self.add_told("d/a.json", ["a.opus", "b.webm"], compressed=False, compressed_size=1600)
        self.assert_saved(400, compression_ratio=0.6)

    def test_a_sidecar_without_chunks_tells_of_the_copy_with_its_stem(self) -> None:
        self.add_copy()
        self.add_told("d/a.json", [], original_size=BEFORE, chunks=None)
        self.assert_saved(400)

    def test_nothing_is_made_up_where_a_file_is_gone_or_the_sums_cannot_be(self) -> None:
        self.add_copy()
        changes: list[dict[str, Any]] = [
            {"original_size": size} for size in (None, 0, -5, "1000", 1e300, True)
        ]  # fmt: skip
        changes += [{"compression_date": date} for date in (None, "", 7, ["x"])]
        for change in changes:
            self.add_told("d/a.json", ["a.opus"], **change)
            self.assert_saved(0, unrecorded=1, compression_ratio=None, compressed_size=AFTER)
        self.add_told("d/a.json", ["a.opus", "gone.opus"])
        self.assert_saved(0, unrecorded=1)
        for broken in ("", "{", "[]", '{"compression_date": "2026-01-01", "chunks": 7', "[" * 10_000 + '"compression_date"'):
            (self.library / "d" / "a.json").write_text(broken)
            self.assert_saved(0, unrecorded=1)

    def test_what_is_not_a_file_of_the_library_is_left_alone(self) -> None:
        self.add_copy()
        outside = self.folder / "outside"
        outside.mkdir()
        (outside / "b.opus").write_bytes(b"x")
        told = self.add_told("d/x.json", ["a.opus"])
        told.rename(outside / "told.json")
        (self.library / "d" / "a.json").symlink_to(outside / "told.json")
        (self.library / "link").symlink_to(outside)
        (self.library / "b.opus").symlink_to(outside / "b.opus")
        os.mkfifo(self.library / "d" / "pipe.json")
        os.mkfifo(self.library / "d" / "pipe.webm")
        (self.library / "folder.json").mkdir()
        self.add_copy(".compression/0.opus")
        self.assert_saved(0, total_size=AFTER, recordings=1)


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
        if tag == "svg":
            self.labels.append(dict(attrs).get("aria-label") or "")

    def handle_data(self, data: str) -> None:
        self.text += data


class Telling(StatsCase):
    def test_an_empty_library_and_a_missing_one(self) -> None:
        ran = self.ask("stats")
        self.assertEqual(ran.code, 0, ran.err)
        self.assertIn("none yet", ran.out)
        self.assertIn("No recordings yet", service.stats_page(self.stats()))
        self.library.rmdir()
        ran = self.ask("stats")
        self.assertEqual(ran.code, 2)
        self.assertNotIn("Traceback", ran.err)
        self.assertRaises(OSError, service.storage_stats, str(self.library))
        self.assertRaises(ValueError, service.storage_stats, "")

    def test_the_table_for_people(self) -> None:
        self.add_copy()
        self.add_bytes(b"x" * BEFORE, "d/b.webm")
        self.remember(compressed("d/a.webm"), run(), run(exit_code=130))
        self.assertEqual(
            [re.sub(" +", " ", line) for line in service.stats_text(self.stats()).splitlines()][:6],
            [
                "Recordings 2 (1 compressed, 0 too young)",
                "Audio 0.0 hours",
                "Size now 0.00 MB: 0.00 MB in compressed files, 0.00 MB in originals",
                "Saved 0.00 MB, copies take 60 % of what was recorded",
                "Due now 1 with 0.00 MB; compressing them would save about 0.00 MB (an estimate)",
                "Last run 2026-02-01 02:00, stopped: 1 compressed, 1 kept, 0 failed, 0.00 MB saved in 2 s",
            ],
        )

    def test_the_page_is_complete_in_itself_and_every_picture_has_its_text(self) -> None:
        self.add_copy()
        hostile = '<script>alert("x")</script>'
        status = self.add_bytes(b"x" * BEFORE, "d/a & <i>.webm").stat()
        self.remember(compressed("d/a.webm"), run(), run(exit_code=1, failed=1))
        self.remember(compressed("d/a & <i>.webm", action="kept", code=hostile, mtime_ns=status.st_mtime_ns))
        file = self.folder / "page.html"
        self.assertEqual(self.ask("stats", "--html", str(file)).code, 0)
        text = file.read_text(encoding="utf-8")
        page = Page(text)
        self.assertEqual({*page.tags} & {"script", "link", "img", "iframe", "i"}, set())
        self.assertNotRegex(text, r"https?://|url\(|@import|style=| on\w+=")
        self.assertEqual(len(page.labels), page.tags.count("svg"))
        self.assertTrue(all(page.labels), page.labels)
        self.assertIn(hostile, page.text)
        self.assertIn("something failed", page.text)
        self.assertIn("prefers-color-scheme:dark", text)

    def test_sizes_over_time_add_up_to_what_is_on_disk(self) -> None:
        self.add_copy()
        self.add_bytes(b"x" * 50, "d/b.webm", LONG_AGO - 40 * service.DAY)
        self.remember(compressed("d/a.webm"))
        self.assertEqual(service.size_series(self.stats()), [("2025-09", 50, 50), ("2025-10", 1050, 1050), ("2026-01", 1050, 650)])

    def test_a_page_is_never_written_over_anything_else(self) -> None:
        recording = self.add_copy()
        before = self.files()
        for words in (["--html", str(recording)], ["--html", ""], ["--html", str(self.folder / "x.html"), "--json"]):
            ran = self.ask("stats", *words)
            self.assertEqual(ran.code, 2, ran.err)
        self.assertEqual(self.ask("stats", "--html", str(self.folder / "none" / "x.html")).code, 1)
        self.assertEqual(self.files(), before)
        self.assertFalse((self.folder / "x.html").exists())
