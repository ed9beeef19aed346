"""A tier that deletes removes the audio of a whole recording. A run announces that first, and the transcript stays."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
import unittest
import unittest.mock
from pathlib import Path
from typing import Any, Optional

import compression_service as service
from tests.base import DAY, LONG_AGO, LibraryCase, Ran, index_entry, sidecar
from tests.test_front import past_of

DELETE = {"after_days": 365, "delete": True}


class DeleteCase(LibraryCase):
    """Copies of made-up bytes that are on record, as after a run."""

    def setUp(self) -> None:
        super().setUp()
        self.put_run_on_record(DAY)
        self.set_tier()

    def set_tier(self, days: Optional[float] = 365, **settings: Any) -> None:
        tiers = [{"after_days": days, "delete": True}] if days else []
        self.configure(**{"tiers": tiers, **settings})

    def remember(self, *records: dict[str, Any]) -> None:
        with open(self.history(), "a", encoding="ascii") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)

    def add_copy(self, take: str, age: float = LONG_AGO, **past: Any) -> Path:
        content = (take * 200).encode()[:600].ljust(600)
        path = self.add_bytes(content, f"{take}.opus", age)
        about = {"sha256": hashlib.sha256(content).hexdigest(), "ids": [take[:12]], **past}
        self.remember(past_of(take, mtime_ns=int(age) * 10**9, **about))
        return path

    def add_recording(
        self, name: str = "2025-10-27/a", chunks: int = 1, age: float = LONG_AGO, **document: Any
    ) -> list[Path]:
        """A recording of `chunks` copies, its sidecar, and its index entry."""
        takes = [f"{name}-{number}" for number in range(chunks)]
        paths = [self.add_copy(take, age, ids=[name]) for take in takes]
        about = sidecar(name, [path.name for path in paths])
        ours = {"compressed": True, "compressed_size": 600 * chunks, "original_size": 1000 * chunks}
        self.add_json(f"{takes[0]}.json", {**about, **ours, **document})
        self.add_to_index({**index_entry(name, 600 * chunks, chunks), "compressed": True})
        return paths

    def run_json(self, *words: str, code: int = 0) -> Ran:
        ran = self.run_here("run", "--json", *words)
        self.assertEqual(ran.code, code, ran.out + ran.err)
        self.assertNotIn("Traceback", ran.err)
        return ran

    def announce(self) -> Ran:
        """The first run with a tier: nothing is deleted."""
        ran = self.run_json()
        self.assertEqual(ran.summary["deleted"], 0)
        self.assertIn("is new", ran.summary["message"])
        return ran

    def delete(self, count: int = 1) -> Ran:
        ran = self.run_json()
        self.assertEqual(ran.summary["deleted"], count, ran.out)
        return ran

    def assert_stays(self, path: Path, *words: str, told: str = "") -> None:
        """The announcing run counts it not, the next one says why, later ones nothing."""
        self.announce()
        ran = self.run_json()
        told = told or str(path.relative_to(self.library))
        self.assertEqual(ran.outcomes[told]["action"], "kept")
        for word in words:
            self.assertIn(word, ran.outcomes[told]["reason"])
        self.assertEqual(self.run_json().outcomes, {})
        self.assertTrue(path.exists())

    def stuck(self, path: Path) -> Any:
        """While inside, this file cannot be removed, which nobody foresees."""
        unlink = os.unlink

        def fail(each: Any, *words: Any, **options: Any) -> None:
            if str(each) == str(path):
                raise PermissionError(1, "Operation not permitted")
            unlink(each, *words, **options)

        return unittest.mock.patch.object(os, "unlink", fail)

    def document(self) -> Any:
        return self.read_json("2025-10-27/a-0.json")

    def is_said(self) -> bool:
        """Whether sidecar and index agree that the audio was deleted."""
        said = self.document().get("audio_deleted", False)
        entry = self.read_json("index.json")["recordings"][0]
        self.assertEqual(entry.get("audio_deleted", False), said)
        self.assertEqual("audio_deletion_date" in self.document(), said)
        return bool(said)

    def stats(self) -> dict[str, Any]:
        words = service.parse_words(["stats", "-c", str(self.config)])
        return service.gather_stats(service.resolve_config(words))


class Announced(DeleteCase):
    def test_the_first_run_says_what_the_next_one_deletes(self) -> None:
        first, second = self.add_recording(chunks=2)
        self.add_bytes(b"x" * 600, "2025-10-27/alone.webm")
        message = self.announce().summary["message"]
        self.assertIn("the next run deletes 2 recordings (1.20 kB) for good", message)
        self.assertIn("1 files without a sidecar stay", message)
        self.delete(2)
        self.assertFalse(first.exists() or second.exists())
        self.assertTrue((self.library / "2025-10-27/alone.webm").exists())
        self.assertEqual(self.run_json().outcomes, {})

    def test_a_part_a_limit_a_dry_run_and_a_failed_run_announce_nothing(self) -> None:
        (path,) = self.add_recording()
        lost = self.add_copy("2025-10-27/lost")
        self.add_json("2025-10-27/lost.json", {"chunks": [{"file": "lost.opus"}]})
        lost.unlink()
        for words, code in (
            (["--limit", "5"], 1),  # the loss is reported once
            (["--only", "2025-10-27"], 0),
            (["--since", "2020-01-01"], 0),
            (["--keep-originals"], 0),
            (["-n"], 0),
        ):
            ran = self.run_json(*words, code=code)
            self.assertNotIn("is new", ran.summary["message"], words)
        self.announce()
        self.delete()
        self.assertFalse(path.exists())

    def test_a_tier_that_changed_or_came_back_is_announced_anew(self) -> None:
        (path,) = self.add_recording()
        self.set_tier(390)
        self.announce()
        for days in (380, 390, 365):
            self.set_tier(days)
            self.announce()
        self.set_tier(None)
        self.run_json()
        self.set_tier(365)
        self.announce()
        self.assertTrue(path.exists())
        self.delete()

    def test_a_tier_that_went_in_a_run_of_a_part_is_announced_anew(self) -> None:
        self.add_recording()
        self.announce()
        self.set_tier(None)
        self.run_json("--only", "2025-10-27")
        self.set_tier(365)
        self.announce()

    def test_runs_of_a_part_and_restores_do_not_undo_an_announcement(self) -> None:
        for number in range(3):
            self.add_recording(f"2025-10-27/{number}")
        self.announce()
        self.run_here("restore", "2025-10-27/0-0.json")
        ran = self.run_json("--keep-originals")
        self.assertEqual(ran.summary["deleted"], 0)
        self.assertEqual(self.run_json("--limit", "1").summary["deleted"], 1)
        self.assertEqual(self.run_json("--only", "2025-10-27/1*").summary["deleted"], 1)
        self.delete()

    def test_an_announcement_outlasts_many_runs_of_a_part(self) -> None:
        self.add_recording()
        self.announce()
        for _ in range(service.RUNS_REMEMBERED + 1):
            self.run_here("run", "--only", "elsewhere")
        self.delete()

    def test_it_is_notified_whatever_notify_on_says(self) -> None:
        told = self.folder / "told"
        self.add_recording()
        self.set_tier(notify_on="problem", notify_command=f'echo "$MESSAGE" >>{told}')
        self.announce()
        self.assertIn("the next run deletes 1 recordings", told.read_text())
        self.delete()
        self.assertEqual(len(told.read_text().splitlines()), 1)

    def test_what_stayed_before_is_counted_when_a_changed_tier_is_announced(self) -> None:
        self.add_bytes(b"x" * 600, "2025-10-27/alone.webm")
        self.announce()
        self.run_json()
        self.set_tier(380)
        self.assertIn("1 files without a sidecar stay", self.announce().summary["message"])

    def test_the_first_run_ever_neither_deletes_nor_waits(self) -> None:
        self.add_recording()
        lines = self.history().read_text().splitlines(True)
        self.history().write_text("".join(line for line in lines if '"run"' not in line))
        self.announce()
        self.delete()

    def test_a_library_of_which_all_is_old_enough_is_announced_too(self) -> None:
        shutil.rmtree(self.library / ".compression")
        self.add("chunk_0", "2025-10-27/a-0.webm")
        self.add_json("2025-10-27/a-0.json", sidecar("2025-10-27/a", ["a-0.webm"]))
        self.assertIn("deletes 1 recordings", self.announce().summary["message"])
        self.delete()

    def test_what_is_due_makes_no_other_move_first(self) -> None:
        self.add("chunk_0", "2025-10-27/a-0.webm")
        self.add_json("2025-10-27/a-0.json", sidecar("2025-10-27/a", ["a-0.webm"]))
        ran = self.announce()
        self.assertEqual(ran.outcomes, {})
        self.assertEqual(self.delete().outcomes["2025-10-27/a-0.webm"]["action"], "deleted")
        document = self.document()
        self.assertEqual((document["audio_deleted"], document["compressed"]), (True, False))
        self.assertEqual(document["chunks"][0]["file"], "a-0.webm")


class Deleted(DeleteCase):
    def test_the_transcript_stays_and_sidecar_index_and_statistics_say_what_happened(self) -> None:
        self.add_recording()
        before = self.document()
        self.announce()
        savings = self.stats()["savings"]
        ran = self.delete()
        told = ran.outcomes["2025-10-27/a-0.opus"]
        self.assertEqual((told["file"], told["reason"]), (None, "by the tier of 365 days"))
        document = self.document()
        self.assertTrue(self.is_said())
        for key in ("audio_deleted", "audio_deletion_date"):
            del document[key]
        for key in before.keys() - {"compression_ratio", "compression_date"}:
            self.assertEqual(document[key], before[key], key)
        entry = self.read_json("index.json")["recordings"][0]
        self.assertEqual((entry["size"], entry["audio_deleted"]), (0, True))
        stats = self.stats()
        self.assertEqual(stats["deleted"], {"count": 1, "size": 600})
        self.assertEqual((stats["savings"], stats["total_size"]), (savings, 0))
        self.assertEqual(ran.summary["saved"], 600)
        for command in ("stats", "doctor"):
            self.assertNotIn("lost", self.run_here(command).out)
        self.assertIn("deleted", service.stats_page(stats))
        ran = self.run_here("check")
        self.assertEqual(ran.code, 0, ran.out + ran.err)
        self.assertEqual(self.run_json().summary["found"], 0)

    def test_restore_says_when_it_was_deleted(self) -> None:
        self.add_recording()
        self.announce()
        self.delete()
        day = time.strftime("%Y-%m-%d")
        for path in ("2025-10-27/a-0.json", "2025-10-27/a-0.opus"):
            ran = self.run_here("restore", str(self.library / path))
            self.assertEqual(ran.code, 1)
            self.assertEqual(self.run_here("restore", "--last-run").code, 1)
            said = f"deleted on {day} by the tier of 365 days; nothing to bring back"
            self.assertIn(said, (ran.out + ran.err).lower())

    def test_kept_originals_go_with_their_copies_and_strangers_stay(self) -> None:
        (copy,) = self.add_recording()
        original = self.add_bytes(b"x" * 1000, "2025-10-27/a-0.webm")
        stranger = self.add_bytes(b"y" * 900, "2025-10-27/a-0.m4a")
        self.set_tier(keep_originals_days=9000)
        self.announce()
        self.delete()
        self.assertFalse(copy.exists() or original.exists())
        self.assertTrue(stranger.exists())
        ran = self.run_json()
        self.assertNotIn("Its age counts", ran.err)
        self.assertTrue(self.is_said())

    def test_what_was_kept_or_failed_before_goes_too(self) -> None:
        for letter, action, code in (("a", "kept", "video"), ("b", "failed", "input-output")):
            take = f"2025-10-27/{letter}"
            self.add_bytes(b"x" * 1000, f"{take}.webm")
            self.add_json(f"{take}.json", sidecar(letter, [f"{letter}.webm"]))
            about = {"action": action, "code": code, "suffix": "", "size": 0, "attempts": 3}
            self.remember(past_of(take, **about))
        self.announce()
        self.delete(2)

    def test_a_file_that_changed_or_has_other_bytes_than_on_record_keeps_all(self) -> None:
        first, second = self.add_recording(chunks=2)
        self.announce()
        status, content = second.stat(), bytearray(second.read_bytes())
        content[5] ^= 1
        second.write_bytes(content)
        os.utime(second, ns=(status.st_mtime_ns, status.st_mtime_ns))
        ran = self.run_json(code=1)
        self.assertEqual(ran.summary["deleted"], 0)
        self.assertTrue(first.exists() and second.exists())
        self.assertFalse(self.is_said())
        self.assertEqual(self.run_json().summary["deleted"], 0)

    def test_a_damaged_copy_beside_its_original_is_no_loss_and_keeps_both(self) -> None:
        (copy,) = self.add_recording()
        original = self.add_bytes(b"x" * 1000, "2025-10-27/a-0.webm")
        self.set_tier(keep_originals_days=9000, check_days=0)
        self.announce()
        copy.write_bytes(bytes(600))
        os.utime(copy, (LONG_AGO, LONG_AGO))
        ran = self.run_json(code=1)
        self.assertEqual((ran.summary["lost"], ran.summary["deleted"]), (0, 0))
        self.assertTrue(copy.exists() and original.exists())

    def test_a_deleted_one_whose_sidecar_is_removed_is_not_reported(self) -> None:
        self.add_recording()
        self.announce()
        self.delete()
        (self.library / "2025-10-27/a-0.json").unlink()
        ran = self.run_json()
        self.assertEqual(ran.summary["lost"], 0)
        self.assertNotIn("Forgotten", ran.err)

    def test_a_sidecar_is_the_witness_once_the_history_is_lost(self) -> None:
        self.add_recording(chunks=2)
        self.announce()
        self.delete(2)
        self.add_bytes(b"young", "2025-10-28/young.webm", time.time())
        before = self.files()
        shutil.rmtree(self.library / ".compression")
        for _ in range(3):
            ran = self.run_json()
            self.assertEqual((ran.outcomes, ran.summary["lost"]), ({}, 0))
        self.assertEqual(self.files(), before)

    def test_an_older_history_reports_no_loss_of_what_a_sidecar_calls_deleted(self) -> None:
        self.add_recording(chunks=2)
        self.announce()
        older = self.history().read_bytes()
        self.delete(2)
        before = self.files()
        self.history().write_bytes(older)
        for _ in range(2):
            ran = self.run_json()
            self.assertEqual((ran.outcomes, ran.summary["lost"]), ({}, 0))
        self.assertEqual(self.files(), before)

    def test_one_id_in_two_folders_is_said_once_all_of_it_is_deleted(self) -> None:
        self.add_recording()
        young = self.add_copy("2025-10-28/a-0", time.time() - 9 * DAY)
        self.add_json("2025-10-28/a-0.json", sidecar("2025-10-27/a", ["a-0.opus"]))
        self.announce()
        self.delete()
        entry = self.read_json("index.json")["recordings"][0]
        self.assertNotIn("audio_deleted", entry)
        self.assertEqual(entry["size"], 600)
        os.utime(young, (LONG_AGO, LONG_AGO))
        self.remember(
            past_of("2025-10-28/a-0", sha256=hashlib.sha256(young.read_bytes()).hexdigest())
        )
        self.delete()
        entry = self.read_json("index.json")["recordings"][0]
        self.assertEqual((entry["audio_deleted"], entry["size"]), (True, 0))

    def test_one_night_without_anything_due_reads_no_document(self) -> None:
        self.add_recording()
        self.add_recording("2025-10-28/b", age=time.time() - 40 * DAY)
        self.announce()
        self.delete()
        self.run_json()
        for path in self.library.rglob("*.json"):  # what was just written is read once more
            os.utime(path, (LONG_AGO, LONG_AGO))
        self.run_json()
        with unittest.mock.patch.object(service, "read_sidecar") as read:
            self.assertEqual(self.run_here("run").code, 0)
        read.assert_not_called()


class Age(DeleteCase):
    def test_the_newest_file_and_the_date_of_the_recording_count(self) -> None:
        young = time.time() - 300 * DAY
        for name, age in (("2025-10-27/a", young), ("2026-05-01/b", LONG_AGO)):
            self.add_recording(name, age=age)
        first, second = self.add_recording("2025-10-27/c", chunks=2)
        os.utime(second, (young, young))
        ran = self.announce()
        self.assertIn("deletes 0 recordings", ran.summary["message"])
        self.assertEqual(self.run_json().summary["deleted"], 0)
        self.assertTrue(first.exists())

    def test_a_date_is_awaited_where_files_are_older(self) -> None:
        """As after a synchronisation that gives every file an early time."""
        self.add_recording("2025-12-05/a", age=LONG_AGO - 3000 * DAY)
        config = service.Config(tiers=(service.Tier(365, delete=True),))
        library = service.Library(str(self.library))
        folder = library.folder("2025-12-05")
        (note,) = service.folder_note(
            folder, config, service.Moment(LONG_AGO + DAY, LONG_AGO + DAY)
        )
        due = time.mktime((2025, 12, 5, 0, 0, 0, 0, 0, -1)) + 365 * DAY
        self.assertEqual(note["until"], due)

    def test_the_date_in_a_sidecar_counts_where_its_id_has_none(self) -> None:
        today = time.strftime("%Y-%m-%d")
        for member in ({"date": today}, {"date": None, "timestamp": f"{today}T08:00:00Z"}):
            (path,) = self.add_recording("session/a", **member)
            self.announce()
            self.assertEqual(self.run_json().summary["deleted"], 0)
            self.assertTrue(path.exists())
            self.set_tier(366)

    def test_a_date_that_no_calendar_has_deletes_nothing(self) -> None:
        self.add_recording("2025-99-99/a")
        self.announce()
        self.assertEqual(self.run_json().summary["deleted"], 0)

    def test_what_was_restored_counts_from_then(self) -> None:
        (path,) = self.add_recording()
        self.announce()
        text = self.history().read_text()
        self.remember(past_of("2025-10-27/a-0", back=time.time() - 100 * DAY))
        self.assertEqual(self.run_json().summary["deleted"], 0)
        self.assertTrue(path.exists())
        self.assertIn("a-0", text)

    def test_what_was_restored_counts_from_then_under_another_name_too(self) -> None:
        self.add_bytes(b"x" * 1000, "2025-10-27/a-0.webm")
        before = {"action": "restored", "code": "restored", "move": "restore", "size": 0}
        back = time.time() - DAY
        self.remember(past_of("2025-10-27/a-0", ids=["a"], back=back, **before))
        self.add_json("2025-10-27/a-0.json", sidecar("a", ["a-0.webm"]))
        self.announce()
        (self.library / "2025-10-27").rename(self.library / "important")
        self.assertIn("came back, and has no record under this name", self.run_json().err)
        for _ in range(2):
            ran = self.run_json()
            self.assertEqual(ran.summary["deleted"], 0)
            self.assertNotIn("came back", ran.err)
        self.assertTrue((self.library / "important/a-0.webm").exists())

    def test_what_was_restored_is_deleted_as_the_original_that_it_is(self) -> None:
        self.add_bytes(b"x" * 1000, "2025-10-27/a-0.webm")
        before = {"action": "restored", "code": "restored", "move": "restore", "size": 0}
        self.remember(past_of("2025-10-27/a-0", ids=["a"], back=LONG_AGO, **before))
        self.add_json("2025-10-27/a-0.json", sidecar("a", ["a-0.webm"]))
        self.add_to_index(index_entry("a", 1000))
        said = self.document()
        self.announce()
        self.delete()
        self.assertTrue(self.is_said())
        for member in ("compressed", "compressed_size", "compression_date", "chunks"):
            self.assertEqual(self.document()[member], said[member])
        self.assertEqual(self.stats()["deleted"], {"count": 1, "size": 1000})

    def test_a_clock_that_is_far_ahead_deletes_nothing(self) -> None:
        (path,) = self.add_recording()
        self.announce()
        lines = self.history().read_text().splitlines(True)
        runs = [json.loads(line) for line in lines if '"type": "run"' in line]
        others = [line for line in lines if '"type": "run"' not in line]
        for run in runs:
            run["time"] = LONG_AGO + 30 * DAY
        self.history().write_text("".join(others) + "".join(json.dumps(run) + "\n" for run in runs))
        ran = self.run_json()
        self.assertEqual(ran.summary["deleted"], 0)
        self.assertIn("Waiting until another run confirms the clock: 1", ran.summary["message"])
        self.assertTrue(path.exists())
        self.delete()


class Stays(DeleteCase):
    def test_without_a_sidecar_of_its_own(self) -> None:
        path = self.add_copy("2025-10-27/original_audio")
        self.add_json("2025-10-27/list.json", {"next": "original_audio.opus", "more": "b.opus"})
        self.assert_stays(path, "no sidecar owns it")

    def test_with_one_that_only_names_it_and_has_a_transcript(self) -> None:
        path = self.add_copy("2025-10-27/a-0")
        about = {"id": "x", "full_transcription": "Hello", "audio": "a-0.opus"}
        self.add_json("2025-10-27/other.json", about)
        self.assert_stays(path, "no sidecar owns it")

    def test_with_files_of_another_recording_under_its_stem(self) -> None:
        (copy,) = self.add_recording()
        other = self.add_bytes(b"y" * 900, "2025-10-27/a-0.WEBM")
        self.set_tier(keep_originals_days=9000)
        self.assert_stays(copy, "no sidecar owns it", told="2025-10-27/a-0.WEBM")
        self.assertTrue(other.exists())

    def test_with_more_than_an_original_and_the_copy_proven_against_it(self) -> None:
        made = LONG_AGO * 10**9
        sizes = {"x.webm": 1000, "x.WEBM": 900, "x.opus": 600, "x.m4a": 500}
        original, other, copy, second = (
            service.File(name, size, made) for name, size in sizes.items()
        )
        proven = service.Past(mtime_ns=made, first_size=1000, suffix=".opus", size=600)
        for files, past, stays in (
            ([original], None, False),
            ([copy], proven, False),
            ([original, copy], proven, False),
            ([original, copy], None, True),
            ([other, copy], proven, True),
            ([original, other], None, True),
            ([original, other, copy], proven, True),
            ([copy, second], None, True),
        ):
            rates = {"x.opus": 1, "x.m4a": 1}
            take = service.take_of("d/x", files, past or service.NO_PAST, rates)
            own = frozenset(["x.webm"])
            owner = service.Sidecar("x.json", own=own, has_text=True, is_owner=True)
            found = service.why_it_stays(service.Recording("d", (take,), (owner,)))
            reason = found and found.reason
            self.assertIs(reason, service.Reason.NO_SIDECAR if stays else None, files)

    def test_without_any_text(self) -> None:
        for number, text in enumerate(("", None, " \n\t", "\\u00a0", "\u3000", 5, ["x"])):
            with self.subTest(text):
                name = f"2025-10-27/{number}"
                about = {"chunks": [{"file": f"{number}.opus", "segments": [{"text": text}]}]}
                path = self.add_copy(name)
                raw = json.dumps({**about, "full_transcription": text}).replace("\\\\", "\\")
                (self.library / f"{name}.json").write_text(raw)
        self.assert_stays(path, "no sidecar has its transcript")
        self.assertEqual(len(list(self.library.glob("*/*.opus"))), 7)

    def test_text_anywhere_in_a_transcript_is_enough(self) -> None:
        for number, raw in enumerate((
            '"full_transcription": "\\u4f60\\u597d"',
            '"full_transcription": "", "segments": [{"text": "."}]',
            '"chunks": [{"file": "2.opus", "segments": [{"text": ""}, {"start": 1, "text": "x"}]}]',
            '"chunks": ["3.webm"], "full_transcription": "\\n\\u0041"',
        )):  # fmt: skip
            name = f"2025-10-27/{number}"
            self.add_copy(name)
            (self.library / f"{name}.json").write_text("{" + raw + "}")
        self.announce()
        self.delete(4)

    def test_with_a_policy_that_says_keep_anywhere(self) -> None:
        (path,) = self.add_recording()
        about = {"notes": ["a-0.opus"], "compression_policy": {"keep": True}}
        self.add_json("2025-10-27/list.json", about)
        self.assert_stays(path, "compression_policy says keep")

    def test_with_a_document_that_cannot_be_edited(self) -> None:
        (path,) = self.add_recording()
        (self.library / "2025-10-27/broken.json").write_text('{"x": "a-0.opus"')
        self.assert_stays(path, "sidecar cannot be edited")

    def test_with_a_part_that_is_lost_or_not_here_yet(self) -> None:
        first, second = self.add_recording(chunks=2)
        about = sidecar("2025-10-27/a", ["a-0.opus", "a-1.opus", "a-2.webm"])
        self.add_json("2025-10-27/a-0.json", about)
        self.assert_stays(first, "not here yet", "a-2")
        self.add_json("2025-10-27/a-0.json", sidecar("2025-10-27/a", ["a-0.opus", "a-1.opus"]))
        second.unlink()
        self.run_json(code=1)
        ran = self.run_json()
        self.assertEqual(ran.summary["deleted"], 0)
        self.assertTrue(first.exists())

    def test_what_stays_makes_its_other_moves(self) -> None:
        self.add("chunk_0", "2025-10-27/a-0.webm")
        self.announce()
        self.run_json()
        self.assert_compressed("2025-10-27/a-0.webm")

    def test_what_stayed_goes_once_it_has_a_transcript(self) -> None:
        self.add_recording(full_transcription="", chunks_=1)
        about = {"id": "2025-10-27/a", "chunks": ["a-0.opus"]}
        self.add_json("2025-10-27/a-0.json", about)
        self.announce()
        self.run_json()
        self.add_json("2025-10-27/a-0.json", {**about, "full_transcription": "Hello"})
        self.delete()


class SincePlanned(DeleteCase):
    """The plan is hours old when a recording is deleted."""

    def test_documents_as_they_are_then_decide(self) -> None:
        def edited(**changes: Any) -> None:
            self.add_json("2025-10-27/a-0.json", {**self.document(), **changes})

        (path,) = self.add_recording()
        one = {"file": "a-0.opus"}
        for change in (
            lambda: edited(compression_policy={"keep": True}),
            lambda: edited(compression_policy={"after_days": 9000}),
            lambda: edited(full_transcription="", chunks=[one]),
            lambda: edited(chunks=[one, {"file": "a-1.webm"}]),
            (self.library / "2025-10-27/a-0.json").unlink,
        ):
            self.set_tier(None)
            self.run_json()
            self.set_tier(365)
            self.announce()
            carry, before = service.Delete.carry, self.document()

            def first(move: Any, run: Any, change: Any = change, carry: Any = carry) -> None:
                change()
                carry(move, run)

            with unittest.mock.patch.object(service.Delete, "carry", first):
                ran = self.run_json()
            self.assertIn("a-0.opus got other documents meanwhile", ran.err)
            self.assertEqual((ran.summary["left"], ran.outcomes), (0, {}))
            self.assertTrue(path.exists())
            self.add_json("2025-10-27/a-0.json", before)
        self.set_tier(365)
        self.delete()

    def test_an_archive_takes_nothing_that_is_kept_by_then(self) -> None:
        (path,) = self.add_recording()
        (self.folder / "cold/archive-of-recordings").mkdir(parents=True)
        tier = {"after_days": 200, "archive": str(self.folder / "cold")}
        self.configure(tiers=[tier])
        store = service.Store.carry

        def first(move: Any, run: Any) -> None:
            about = {**self.document(), "compression_policy": {"keep": True}}
            self.add_json("2025-10-27/a-0.json", about)
            store(move, run)

        with unittest.mock.patch.object(service.Store, "carry", first):
            self.assertEqual(self.run_json().summary["archived"], 0)
        self.assertTrue(path.exists())


class CannotGo(DeleteCase):
    """A file that cannot be removed here, as an immutable one."""

    def setUp(self) -> None:
        super().setUp()
        (self.path,) = self.add_recording()

    def assert_foreseen(self, would: str) -> None:
        is_stuck = unittest.mock.patch.object(service, "is_protected", str(self.path).__eq__)
        with is_stuck:
            self.assertIn("immutable", self.run_here("doctor").out)
            for words in (["-n"], [], [], [], []):
                told = self.run_json(*words, code=1).outcomes["2025-10-27/a-0.opus"]
                self.assertIn("its commit would fail", told["reason"])
                self.assertTrue(self.path.exists())
                self.assertNotIn("archived", self.document())
        self.assertFalse(self.is_said())
        self.assertEqual(self.run_json("-n").summary[would], 1, "it never counted")

    def test_what_nobody_foresees_is_given_up_after_three_nights_and_stays_as_it_is(self) -> None:
        self.set_tier(tiers=[{"after_days": 30, "bitrate": "48k"}, DELETE])
        self.announce()
        with self.stuck(self.path):
            for _ in range(3):
                told = self.run_json(code=1).outcomes["2025-10-27/a-0.opus"]
                self.assertIn("cannot be deleted", told["reason"])
                self.assertFalse(self.is_said())
            for _ in range(2):
                self.assertEqual(self.run_json().outcomes, {})
        self.assertIn("cannot be deleted", " ".join(self.run_here("stats").out.split()))
        self.assertEqual(self.run_json("--retry").summary["deleted"], 1)
        self.assertTrue(self.is_said())

    def test_what_is_gone_in_part_is_called_deleted_until_the_rest_can_go(self) -> None:
        first, second = self.add_recording("2025-10-27/b", chunks=2)
        self.announce()
        with self.stuck(second):
            for _ in range(4):  # the last one has given it up
                self.run_here("run")
                self.assertTrue(second.exists() and not first.exists())
                self.assertIs(self.read_json("2025-10-27/b-0.json").get("audio_deleted"), True)
        reasons = {each["reason"] for each in self.stats()["kept"]}
        self.assertEqual(reasons, {"its deletion is not finished"})
        self.run_here("run", "--retry")
        self.assertFalse(first.exists() or second.exists())
        self.assertIs(self.read_json("2025-10-27/b-0.json")["audio_deleted"], True)

    def test_while_nothing_is_gone_a_part_that_cannot_go_keeps_all_of_it(self) -> None:
        first, second = self.add_recording("2025-10-27/b", chunks=2)
        self.announce()
        with self.stuck(first):
            for _ in range(4):
                self.run_here("run")
                self.assertTrue(first.exists() and second.exists())
                self.assertNotIn("audio_deleted", self.read_json("2025-10-27/b-0.json"))
        self.run_here("run", "--retry")
        self.assertFalse(first.exists() or second.exists())

    def test_deletion_foresees_it(self) -> None:
        self.announce()
        self.assert_foreseen("would-delete")

    def test_the_archive_foresees_it_and_gets_nothing(self) -> None:
        cold = self.folder / "cold/archive-of-recordings"
        cold.mkdir(parents=True)
        self.configure(tiers=[{"after_days": 200, "archive": str(cold.parent)}])
        self.assert_foreseen("would-archive")
        self.assertEqual(list(cold.iterdir()), [])


class CutShort(DeleteCase):
    """A deletion that was begun and not finished: the line `deleting` is on record."""

    def begin(self) -> list[Path]:
        first, second = self.add_recording(chunks=2, audio_deleted=True, audio_deletion_date="2026")
        self.announce()
        for take in ("2025-10-27/a-0", "2025-10-27/a-1"):
            about = {
                "action": "deleted",
                "code": "deleting",
                "move": "delete",
                "deleted": time.time(),
            }
            known = map(json.loads, self.history().read_text().splitlines())
            lines = [line for line in known if line.get("take") == take]
            self.remember({**lines[-1], "past": {**lines[-1]["past"], **about}})
        first.unlink()
        return [first, second]

    def test_the_next_run_finishes_it(self) -> None:
        _, second = self.begin()
        self.delete(2)
        self.assertFalse(second.exists())
        self.assertTrue(self.is_said())
        ran = self.run_json()
        self.assertEqual((ran.outcomes, ran.summary["lost"]), ({}, 0))

    def test_what_is_left_stays_once_its_owner_says_so(self) -> None:
        for why, days in (("tier", None), ("keep", 365), ("days", 9000)):
            with self.subTest(why):
                _, second = self.begin()
                if why == "keep":
                    self.run_here("keep", str(second))
                self.set_tier(days)
                ran = self.run_json()
                self.assertEqual((ran.summary["deleted"], ran.summary["lost"]), (0, 0))
                self.assertIn("stays, as its deletion was called off", ran.err)
                self.assertIn("2025-10-27/a-0 is gone for good", ran.err)
                ran = self.run_here("check")
                self.assertEqual(ran.code, 0, ran.err)
                self.assertIn("2025-10-27/a-0 was deleted on", ran.out)
                self.assertTrue(second.exists())
                self.assertFalse(self.is_said())
                self.set_tier(365)
                for _ in range(3):
                    self.run_json()
                self.assertTrue(second.exists(), "its age counts from that day")
                second.unlink()
                self.assertEqual(self.run_json(code=1).summary["lost"], 1)
                self.history().write_text("")
                self.put_run_on_record(DAY)
                shutil.rmtree(self.library / "2025-10-27")
                (self.library / "index.json").unlink()

    def test_one_whose_files_are_gone_is_finished_though_its_folder_could_rest(self) -> None:
        _, second = self.begin()
        content = second.read_bytes()
        second.unlink()
        for _ in range(2):  # at first, its documents are written
            self.run_json("--only", "upload/*")
            for path in self.library.rglob("*.json"):
                os.utime(path, (LONG_AGO, LONG_AGO))
        self.run_json("--only", "upload/*")
        self.run_json()
        second.write_bytes(content)
        os.utime(second, (LONG_AGO, LONG_AGO))
        for _ in range(3):
            self.run_json()
        self.assertTrue(second.exists(), "what its owner brought back")

    def test_keep_originals_holds_it_back_for_that_run(self) -> None:
        _, second = self.begin()
        ran = self.run_json("--keep-originals")
        self.assertEqual(ran.summary["deleted"], 0)
        self.assertNotIn("Its age counts", ran.err)
        self.assertTrue(second.exists())
        self.delete(2)


class WithoutARecord(DeleteCase):
    """A copy that documents name, as after the history was lost."""

    def setUp(self) -> None:
        super().setUp()
        (self.path,) = self.add_recording()
        self.history().write_text("")
        self.put_run_on_record(DAY)

    def test_documents_and_statistics_count_it_as_the_copy_that_it_was(self) -> None:
        self.announce()
        self.delete()
        self.assertTrue(self.is_said())
        self.assertIs(self.document()["compressed"], True)
        self.assertIs(self.read_json("index.json")["recordings"][0]["compressed"], True)
        self.assertEqual(self.stats()["deleted"], {"count": 1, "size": 600})

    def test_what_was_copied_back_by_hand_out_of_the_archive_counts_from_then(self) -> None:
        archived = {"archived": True, "archive_location": "/cold", "archive_date": "2026"}
        self.add_json("2025-10-27/a-0.json", {**self.document(), **archived})
        self.announce()
        for _ in range(3):
            self.assertEqual(self.run_json().summary["deleted"], 0)
        self.assertNotIn("archived", self.document())
        self.assertTrue(self.path.exists())

    def test_a_restore_out_of_the_archive_is_respected(self) -> None:
        (self.folder / "cold/archive-of-recordings").mkdir(parents=True)
        tier = {"after_days": 200, "archive": str(self.folder / "cold")}
        self.configure(tiers=[tier])
        self.assertEqual(self.run_json().summary["archived"], 1)
        self.assertEqual(self.run_here("restore", str(self.path)).code, 0)
        self.assertNotIn("archived", self.document())
        self.assertEqual(self.run_json().summary["archived"], 0)
        self.assertTrue(self.path.exists())


class Back(DeleteCase):
    def setUp(self) -> None:
        super().setUp()
        self.paths = self.add_recording(chunks=2)
        self.content = self.paths[0].read_bytes()
        self.announce()
        self.delete(2)
        self.assertTrue(self.is_said())

    def bring(self, content: bytes, name: str = "a-0.opus", age: float = LONG_AGO) -> Ran:
        self.add_bytes(content, f"2025-10-27/{name}", age)
        ran = self.run_json()
        self.assertIn(f"2025-10-27/{name} is here, after a tier", ran.err)
        self.assertFalse(self.is_said())
        self.assertEqual(ran.summary["lost"], 0)
        ran = self.run_json()
        self.assertEqual((ran.summary["lost"], ran.summary["deleted"]), (0, 0))
        self.assertNotIn("Its age counts", ran.err)
        self.assertTrue((self.library / "2025-10-27" / name).exists())
        return ran

    def test_the_same_copy_counts_from_now(self) -> None:
        self.bring(self.content)
        self.assertEqual(self.stats()["deleted"]["count"], 1)
        self.paths[0].unlink()
        self.assertEqual(self.run_json(code=1).summary["lost"], 1, "it is watched as any copy")

    def test_the_same_copy_with_a_new_time(self) -> None:
        self.bring(self.content, age=time.time() - 500 * DAY)

    def test_another_file_in_its_place_is_its_owner_s(self) -> None:
        self.bring(b"other" * 99)

    def test_an_original_is_one_again(self) -> None:
        self.bring(b"x" * 1000, "a-0.webm")

    def test_a_new_original_is_what_documents_name(self) -> None:
        self.bring(b"y" * 900, "a-0.webm", time.time())
        names = [chunk["file"] for chunk in self.document()["chunks"]]
        self.assertEqual(names, ["a-0.webm", "a-1.opus"])
        self.assertIs(self.document()["compressed"], False)

    def test_with_retry(self) -> None:
        self.add_bytes(self.content, "2025-10-27/a-0.opus")
        self.run_json("--retry")
        self.run_json("--retry")
        self.assertTrue(self.paths[0].exists())

    def test_it_goes_again_when_it_is_old_once_more(self) -> None:
        self.bring(self.content)
        text = self.history().read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        for line in lines:
            if line.get("past", {}).get("back"):
                line["past"]["back"] = LONG_AGO
        self.history().write_text("".join(json.dumps(line) + "\n" for line in lines))
        self.delete()
        self.assertTrue(self.is_said())

    def test_a_dry_run_changes_nothing(self) -> None:
        self.add_bytes(self.content, "2025-10-27/a-0.opus")
        before, history = self.files(), self.history().read_bytes()
        self.run_json("-n")
        self.assertEqual((self.files(), self.history().read_bytes()), (before, history))


class Archived(DeleteCase):
    """Files in an archive go too, by their hash."""

    def setUp(self) -> None:
        super().setUp()
        self.cold = self.folder / "cold"
        self.there = self.cold / "archive-of-recordings/2025-10-27"
        self.there.mkdir(parents=True)
        self.archive = {"after_days": 200, "archive": str(self.cold)}
        self.configure(tiers=[self.archive])
        self.add_recording(chunks=2)
        self.assertEqual(self.run_json().summary["archived"], 2)
        self.configure(tiers=[self.archive, DELETE])

    def archived(self) -> list[str]:
        return sorted(path.name for path in self.there.glob("*.opus"))

    def test_they_go_and_members_about_the_archive_too(self) -> None:
        message = self.announce().summary["message"]
        self.assertIn("deletes 2 recordings (1.20 kB) for good", message)
        self.delete(2)
        self.assertEqual(self.archived(), [])
        self.assertTrue(self.is_said())
        self.assertNotIn("archive_location", self.document())
        self.assertNotIn("archived", self.document())
        self.assertNotIn("archived", self.read_json("index.json")["recordings"][0])
        self.assertEqual(self.stats()["archived"]["count"], 0)
        ran = self.run_here("check", "--archive")
        self.assertEqual(ran.code, 0, ran.out + ran.err)
        ran = self.run_json()
        self.assertEqual((ran.outcomes, ran.summary["lost"]), ({}, 0))

    def test_other_bytes_there_stay_and_all_of_it_too(self) -> None:
        self.announce()
        (self.there / "a-1.opus").write_bytes(b"z" * 600)
        ran = self.run_json(code=1)
        self.assertEqual(ran.summary["deleted"], 0)
        self.assertEqual(len(self.archived()), 2)
        self.assertFalse(self.is_said())
        for _ in range(2):
            self.run_json(code=1)
        self.assertEqual(self.run_json().outcomes, {}, "given up after three nights")

    def test_an_archive_that_is_away_is_told_by_a_dry_run_too(self) -> None:
        self.announce()
        self.cold.rename(self.folder / "away")
        for words in (["-n"], []):
            ran = self.run_json(*words, code=1)
            self.assertIn("The archive has no folder", ran.err)
            self.assertEqual((ran.summary["deleted"], ran.summary["would-delete"]), (0, 0))
        self.configure(tiers=[self.archive])
        ran = self.run_here("check")
        self.assertIn("2 archived files: not looked at", ran.out)

    def test_an_archive_that_removes_nothing_is_given_up_after_three_nights(self) -> None:
        def refuse(archive: Any, there: str) -> None:
            raise service.Refusal(service.Reason.INPUT_OUTPUT, "rclone: object is locked")

        self.announce()
        with unittest.mock.patch.object(service.FolderArchive, "remove", refuse):
            for _ in range(3):
                told = self.run_json(code=1).outcomes["2025-10-27/a-0.opus"]
                self.assertIn("cannot be deleted: rclone: object is locked", told["reason"])
            self.assertEqual(self.run_json().outcomes, {})
        self.assertEqual(len(self.archived()), 2)

    def test_what_is_left_of_a_deletion_that_was_called_off_comes_back(self) -> None:
        remove = service.FolderArchive.remove

        def fail(archive: Any, there: str) -> None:
            if there.endswith("a-1.opus"):
                raise OSError(5, "Input/output error")
            remove(archive, there)

        self.announce()
        with unittest.mock.patch.object(service.FolderArchive, "remove", fail):
            self.run_json(code=1)
        self.assertEqual(self.archived(), ["a-1.opus"])
        self.configure(tiers=[self.archive])
        self.run_json()
        self.assertFalse(self.is_said())
        self.assertIs(self.document()["archived"], True)
        ran = self.run_here("check")
        self.assertEqual(ran.code, 0, ran.out + ran.err)
        ran = self.run_here("restore", str(self.library / "2025-10-27"))
        self.assertEqual(ran.code, 0, ran.out + ran.err)
        self.assertTrue((self.library / "2025-10-27/a-1.opus").exists())

    def test_what_was_restored_under_a_clock_that_is_behind_counts_from_the_last_run(self) -> None:
        with unittest.mock.patch.object(time, "time", lambda: LONG_AGO + 10 * DAY):
            ran = self.run_here("restore", str(self.library / "2025-10-27"))
        self.assertEqual(ran.code, 0, ran.out + ran.err)
        self.configure(tiers=[DELETE])
        self.announce()
        for _ in range(2):
            self.assertEqual(self.run_json().summary["deleted"], 0)

    def test_what_one_file_kept_here_of_an_archived_recording_comes_back(self) -> None:
        first, second = self.add_recording("2025-10-27/b", chunks=2)
        self.configure(tiers=[self.archive])
        with self.stuck(second):
            self.run_json(code=1)
        self.assertTrue(second.exists())
        self.assertFalse(first.exists())
        ran = self.run_here("restore", str(first))
        self.assertEqual(ran.code, 0, ran.out + ran.err)
        self.assertTrue(first.exists() and second.exists())

    def test_what_is_gone_there_is_no_hindrance(self) -> None:
        self.announce()
        (self.there / "a-1.opus").unlink()
        self.delete(2)
        self.assertEqual(self.archived(), [])

    def assert_refused(self) -> None:
        ran = self.run_json(code=1)
        self.assertIn("is not found; do tiers name its archive", ran.out)
        self.assertEqual(ran.summary["deleted"], 0)
        self.assertFalse(self.is_said())

    def test_what_is_in_another_archive_than_tiers_name_is_not_called_deleted(self) -> None:
        self.announce()
        other = self.folder / "other"
        (other / "archive-of-recordings").mkdir(parents=True)
        self.configure(tiers=[{"after_days": 200, "archive": str(other)}, DELETE])
        self.assert_refused()
        self.assertEqual(len(self.archived()), 2)

    def test_what_is_gone_there_is_not_called_deleted_without_the_library_s_mark(self) -> None:
        """As a remote whose disk is not mounted. The run that looks leaves no mark either."""
        self.announce()
        shutil.rmtree(self.there.parent)
        self.there.parent.mkdir()
        for _ in range(2):
            self.assert_refused()
        self.assertEqual(list(self.there.parent.iterdir()), [])

    def test_what_its_owner_moved_goes_where_the_sidecar_says_if_that_is_in_the_archive(
        self,
    ) -> None:
        self.announce()
        for moved in (self.folder / "elsewhere", self.cold / "moved"):
            self.there.rename(moved)
            self.add_json(
                "2025-10-27/a-0.json", {**self.document(), "archive_location": str(moved)}
            )
            self.there = moved
            if self.cold not in moved.parents:
                self.assert_refused()
        self.delete(2)
        self.assertEqual(self.archived(), [])

    def come_back_long_ago(self) -> None:
        self.announce()
        self.assertEqual(self.run_here("restore", str(self.library / "2025-10-27")).code, 0)
        lines = re.sub(r'"back": [\d.]+', f'"back": {LONG_AGO}', self.history().read_text())
        self.history().write_text(lines)
        self.assertEqual(len(self.archived()), 2)

    def test_what_was_restored_before_goes_there_too(self) -> None:
        self.come_back_long_ago()
        self.delete(2)
        self.assertEqual(self.archived(), [])

    def test_what_was_restored_before_goes_there_too_if_the_deletion_is_cut_short(self) -> None:
        self.come_back_long_ago()
        real = os.unlink

        def unlink_and_die(path: str, **options: Any) -> None:
            real(path, **options)
            if path.endswith(".opus"):
                os._exit(9)

        for _ in range(4):  # files
            with unittest.mock.patch("os.unlink", unlink_and_die):
                self.assertEqual(self.run_cli().code, 9)
        self.run_json()
        self.assertEqual((self.archived(), sorted(self.library.rglob("*.opus"))), ([], []))

    def test_what_a_killed_run_uploaded_and_did_not_record_goes_there_too(self) -> None:
        (path,) = self.add_recording("2025-10-27/b")
        shutil.copy2(path, self.there)
        self.configure(tiers=[{**self.archive, "after_days": 360}, DELETE])
        self.announce()
        self.run_json()
        self.assertEqual(self.archived(), [])

    def test_what_cannot_be_removed_there_is_not_called_deleted_the_next_morning(self) -> None:
        self.announce()
        real = os.unlink

        def refuse(path: str, **options: Any) -> None:
            if str(self.there) in path:
                raise PermissionError(1, "Operation not permitted", path)
            real(path, **options)

        with unittest.mock.patch("os.unlink", refuse):
            for _ in range(3):
                self.assertIn("Operation not permitted", self.run_json(code=1).out)
                self.assertFalse(self.is_said())
                self.assertEqual(self.document()["archive_location"], str(self.there))
            self.assertEqual(self.run_json().outcomes, {}, "given up")

    def test_an_archive_that_is_not_there_ends_the_run(self) -> None:
        self.announce()
        self.cold.rename(self.folder / "away")
        ran = self.run_json(code=1)
        self.assertEqual(ran.summary["deleted"], 0)
        (self.folder / "away").rename(self.cold)
        self.delete(2)

    def test_without_an_archive_in_the_tiers_it_fails_and_says_why(self) -> None:
        self.announce()
        self.configure(tiers=[DELETE])
        ran = self.run_json(code=1)
        self.assertIn("tiers name no archive", ran.out)
        self.assertEqual(len(self.archived()), 2)

    def test_a_part_that_is_here_again_goes_with_the_rest(self) -> None:
        """As after a kill before the file was removed here."""
        self.announce()
        shutil.copy2(self.there / "a-1.opus", self.library / "2025-10-27/a-1.opus")
        self.delete(2)
        self.assertEqual(self.archived(), [])
        self.assertFalse((self.library / "2025-10-27/a-1.opus").exists())

    def test_what_came_back_from_the_archive_counts_from_then(self) -> None:
        self.announce()
        self.assertEqual(self.run_here("restore", str(self.library / "2025-10-27")).code, 0)
        self.assertEqual(self.run_json().summary["deleted"], 0)
        self.assertTrue((self.library / "2025-10-27/a-0.opus").exists())


@unittest.skipUnless(shutil.which("rclone"), "rclone is not installed")
class Remote(DeleteCase):
    def test_files_on_a_remote_go_by_their_hash(self) -> None:
        there = self.folder / "remote"
        remote = {"RCLONE_CONFIG_COLD_TYPE": "alias", "RCLONE_CONFIG_COLD_REMOTE": str(there)}
        tier = {"after_days": 200, "archive": "cold:"}
        self.add_recording(chunks=2)
        with unittest.mock.patch.dict(os.environ, remote):
            self.configure(tiers=[tier])
            self.assertEqual(self.run_json().summary["archived"], 2)
            self.configure(tiers=[tier, DELETE])
            self.announce()
            (found,) = there.rglob("a-1.opus")
            content = found.read_bytes()
            found.write_bytes(bytes(600))
            self.run_json(code=1)
            self.assertEqual(len(list(there.rglob("*.opus"))), 2)
            found.write_bytes(content)
            self.delete(2)
        self.assertEqual(list(there.rglob("*.opus")), [])
        self.assertTrue(self.is_said())


class Held(DeleteCase):
    def test_delete_with_kept_originals_is_a_config_error(self) -> None:
        self.set_tier(delete_originals=False)
        ran = self.run_here("run")
        self.assertEqual(ran.code, 2)
        self.assertIn("delete_originals", ran.err)
        for wrong in ({"delete": False}, {"delete": 1}, {"delete": "true"}, {"delete": None}):
            self.configure(tiers=[{"after_days": 400, **wrong}])
            self.assertEqual(self.run_here("run").code, 2, wrong)
        self.configure(tiers=[DELETE, {"after_days": 400, "archive": "/x"}])
        self.assertIn("deletion last", self.run_here("run").err)

    def test_a_pause_holds_it_back(self) -> None:
        (path,) = self.add_recording()
        self.announce()
        self.run_here("pause")
        self.run_json()
        self.run_here("resume")
        self.assertTrue(path.exists())
        self.delete()

    def test_a_selected_chunk_never_goes_alone(self) -> None:
        first, second = self.add_recording(chunks=2)
        self.announce()
        self.assertEqual(self.run_json("--only", "*/a-0*").summary["deleted"], 0)
        self.assertTrue(first.exists() and second.exists())

    def test_a_limit_takes_a_recording_whole(self) -> None:
        self.add_recording("2025-10-27/a", chunks=2)
        self.add_recording("2025-10-27/b", chunks=2)
        self.announce()
        self.assertEqual(self.run_json("--limit", "1").summary["deleted"], 2)
        self.delete(2)


class Foreseen(DeleteCase):
    """Statistics and dry run say when a tier deletes next."""

    def setUp(self) -> None:
        super().setUp()
        self.add_recording()
        self.add_bytes(b"", "upload/original_audio.webm")  # nothing owns it
        self.later = time.time() - 360 * DAY
        self.add_recording(time.strftime("%Y-%m-%d/b", time.localtime(self.later)), 2, self.later)
        self.due = time.strftime("%Y-%m-%d", time.localtime(self.later + 365 * DAY))

    def test_statistics_page_and_doctor_name_number_bytes_and_date(self) -> None:
        for _ in range(2):
            stats = self.stats()
            today = time.strftime("%Y-%m-%d")
            self.assertEqual(
                stats["next_deletions"],
                [
                    {"date": today, "count": 1, "size": 600},
                    {"date": self.due, "count": 2, "size": 1200},
                ],
            )
            for said in (self.run_here("stats").out, service.stats_page(stats)):
                text = " ".join(said.split())
                self.assertRegex(text, f"ext to be deleted for good, at most.*{self.due}")
                self.assertIn("2 (1.20 kB)", said)
                self.assertNotIn("to delete for good", text, "listed twice")
            said = " ".join(self.run_here("doctor").out.split())
            self.assertIn(f"Next to be deleted for good: at most 1 (600 B) on {today}.", said)
            self.run_json("--only", "2025-10-27")  # which writes notes

    def test_a_dry_run_lists_what_is_due_and_says_what_is_next(self) -> None:
        ran = self.run_json("-n")
        self.assertEqual(ran.summary["would-delete"], 1)
        self.assertEqual(ran.outcomes["2025-10-27/a-0.opus"]["action"], "would-delete")
        said = f"Next to be deleted for good: at most 2 (1.20 kB) on {self.due}"
        self.assertIn(said, ran.summary["message"])
        self.assertEqual(self.stats()["next_deletions"][0]["count"], 1)
        only = "The first complete run only announces what is deleted"
        self.assertIn(only, ran.summary["message"])
        self.assertIn(only, service.verdict(self.stats())[0])
        self.announce()
        self.assertNotIn(only, self.run_json("-n").summary["message"])
        self.assertNotIn(only, service.verdict(self.stats())[0])

    def test_once_a_run_was_kept_from_it_by_a_policy_nothing_is_due_any_more(self) -> None:
        self.add_recording("2025-10-27/k", compression_policy={"keep": True})
        (self.folder / "cold/archive-of-recordings").mkdir(parents=True)
        archive = {"after_days": 380, "archive": "cold"}
        self.configure(tiers=[archive])
        (self.library / "upload/original_audio.webm").unlink()
        due = {"count": 2, "size": 0, "estimated_saving": 0}
        self.assertEqual(self.stats()["due"], due)
        ran = self.run_json()
        self.assertEqual((ran.summary["archived"], ran.summary["kept"]), (1, 1))
        self.assertEqual(self.stats()["due_by_move"], {})
        self.assertEqual(self.run_json().outcomes, {})
        self.configure(tiers=[archive, {"after_days": 900, "delete": True}])
        counts = [day["count"] for day in self.stats()["next_deletions"]]
        self.assertEqual(counts, [1, 2], "but for the one that is kept")
        off = self.run_here("keep", "--off", str(self.library / "2025-10-27/k-0.opus"))
        self.assertEqual(off.code, 0, off.err)
        self.assertEqual(self.run_json().summary["archived"], 1)

    def test_a_dry_run_says_what_the_first_run_would_announce(self) -> None:
        (self.library / "upload/original_audio.webm").write_bytes(b"x" * 600)
        os.utime(self.library / "upload/original_audio.webm", (LONG_AGO, LONG_AGO))
        said = "announces what is deleted. As of now: 1 recordings (600 B) for good. 1 files"
        self.assertIn(said, self.run_json("-n").summary["message"])
        self.assertNotIn(time.strftime("%Y-%m-%d"), self.run_json("-n").summary["message"])
        lines = self.history().read_text().splitlines(True)
        self.history().write_text("".join(line for line in lines if '"run"' not in line))
        ran = self.run_json("-n")  # the first run of all deletes nothing by age
        self.assertIn(said, ran.summary["message"])
        self.assertIn(time.strftime("on %Y-%m-%d"), ran.summary["message"])
        self.assertNotIn("2025-10-27/a-0.opus", ran.outcomes)

    def test_nothing_is_said_without_a_tier(self) -> None:
        self.set_tier(None)
        self.assertEqual(self.stats()["next_deletions"], [])
        self.assertNotIn("Next to be", self.run_json("-n").summary["message"])


if __name__ == "__main__":
    unittest.main()
