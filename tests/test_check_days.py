"""Every copy is read again in its turn, and `check` compares all that is here with what is on record."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
import unittest
import unittest.mock
from pathlib import Path
from typing import Any

import compression_service as service
from tests.base import DAY, Ran
from tests.test_losses import NAMES, LossCase


def rot(path: Path) -> None:
    """Changes a bit in the middle; size and time stay."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_mtime_ns, before.st_mtime_ns))


class ShareCase(LossCase):
    def setUp(self) -> None:
        super().setUp()
        self.configure(check_days=1)

    def at(self, days: float, *words: str, code: int = 0) -> Ran:
        """Runs so many days from now."""
        now = time.time() + days * DAY
        with unittest.mock.patch("time.time", lambda: now):
            return self.run_json(code, *words)

    def reads(self, days: float, *words: str) -> list[str]:
        """Returns the names of the copies that a run reads."""
        names: list[str] = []
        log = self.folder / "read"
        original = service.Library.witness

        def witness(library: Any, path: str, stop: Any = None) -> Any:
            with open(log, "a", encoding="utf-8") as file:
                file.write(f"{Path(path).relative_to(self.library)}\n")
            return original(library, path, stop)

        log.write_text("")
        with unittest.mock.patch.object(service.Library, "witness", witness):
            self.at(days, *words)
        names = log.read_text().split()
        return sorted(names)


class Shares(ShareCase):
    def test_rot_is_found_in_its_turn_and_reported_once(self) -> None:
        rot(self.copy())
        self.configure(check_days=0)
        self.assertEqual(self.at(1).summary["lost"], 0)
        self.configure(check_days=1)
        ran = self.at(2, code=1)
        self.assertIn("other bytes", self.lost(ran)["d/a.opus"])
        ran = self.at(3)
        self.assertEqual((self.lost(ran), ran.summary["lost"]), ({}, 1))
        shutil.copy2(self.source() / "d/a.opus", self.copy())
        self.assertIn("d/a.opus is back", self.at(4).err)
        self.assertEqual(self.at(5).summary["lost"], 0)

    def test_a_rotten_copy_whose_original_is_here_is_made_again(self) -> None:
        self.configure(check_days=1, delete_originals=False)
        self.add("chunk_0", "d/e.webm")
        self.at(0)
        sound = self.copy("e").stat().st_size
        rot(self.copy("e"))
        self.assertIn("makes it again", self.at(1).err)
        ran = self.at(2)
        self.assertEqual(ran.outcomes["d/e.webm"]["action"], "compressed")
        self.assertEqual((ran.summary["lost"], self.copy("e").stat().st_size), (0, sound))
        self.assertEqual(self.run_cli("check").code, 0)

    def test_a_copy_without_a_record_gets_one_in_its_turn(self) -> None:
        """As after the history was lost."""
        self.configure(check_days=1)
        shutil.rmtree(self.library / ".compression")
        self.add("chunk_0", "e/new.webm")
        self.at(0)
        before = self.files()
        for days in (1, 2):
            ran = self.at(days)
            self.assertNotIn("another file", ran.err)
        self.assertEqual(self.files(), before)
        pasts = service.History(service.Library(str(self.library))).pasts
        self.assertEqual(sum(past.sha256 != "" for past in pasts.values()), len(NAMES) + 1)
        rot(self.copy())
        self.assertIn("other bytes", self.lost(self.at(4, code=1))["d/a.opus"])
        self.copy("b").unlink()
        self.assertIn("missing", self.lost(self.at(5, code=1))["d/b.opus"])

    def test_check_says_of_it_each_time_that_a_run_makes_it_again(self) -> None:
        self.configure(delete_originals=False)
        self.add("chunk_0", "d/e.webm")
        self.at(0)
        rot(self.copy("e"))
        for _ in range(2):
            ran = self.run_cli("check")
            self.assertEqual(ran.code, 0, ran.out + ran.err)
            self.assertIn("d/e.opus is damaged. A run makes it again", ran.out)
        self.assertNotIn("copies without a record", self.run_cli("stats").out)

    def test_restore_says_of_a_lost_copy_what_it_is(self) -> None:
        self.copy().unlink()
        self.at(0.1, code=1)
        ran = self.run_cli("restore", "d/a.opus")
        self.assertIn("its copy is lost, and its original was deleted on", ran.out)

    def test_what_comes_back_rotten_is_still_lost_and_counted_once(self) -> None:
        self.copy().unlink()
        self.at(0.1, code=1)
        shutil.copy2(self.source() / "d/a.opus", self.copy())
        rot(self.copy())
        self.assertEqual(self.at(1).summary["lost"], 1)
        self.assertEqual(self.at(2).summary["lost"], 1)
        self.assertIn("d/a.opus", self.run_cli("doctor").out)

    def test_what_took_a_copys_place_stays_beside_its_original(self) -> None:
        self.configure(check_days=1, delete_originals=False)
        self.add("chunk_0", "d/e.webm")
        self.at(0)
        data = self.copy("b").read_bytes()
        self.copy("b").replace(self.copy("e"))
        self.run_cli("check")
        self.at(1, code=1)
        self.at(2, code=1)
        self.assertEqual(self.copy("e").read_bytes(), data)

    def test_no_smaller_copy_is_made_from_a_rotten_one(self) -> None:
        rot(self.copy())
        self.configure(check_days=0, tiers=[{"after_days": 20, "bitrate": "24k"}])
        before = self.copy().read_bytes()
        ran = self.at(0.5, code=1)
        self.assertEqual(list(self.lost(ran)), ["d/a.opus"])
        self.assertEqual(ran.outcomes["d/b.opus"]["action"], "compressed")
        self.assertEqual(self.copy().read_bytes(), before)

    def test_each_night_reads_its_share_and_within_so_many_days_every_copy(self) -> None:
        for name in NAMES:
            (self.library / f"{name}.json").unlink()
            folder = self.library / name
            folder.mkdir()
            (self.library / f"{name}.opus").rename(folder / "x.opus")
        self.at(0.1)  # they were moved
        self.configure(check_days=5)
        nights = [self.reads(day) for day in range(1, 6)]
        self.assertEqual(sorted(itertools.chain(*nights)), [f"{name}/x.opus" for name in NAMES])
        self.assertEqual(self.reads(5.1), [], "the share of this day was read")
        self.assertEqual(self.reads(6), nights[0])

    def test_days_without_a_run_are_made_up_for(self) -> None:
        self.configure(check_days=5)
        self.at(0.1)
        self.assertEqual(len(self.reads(9)), 3)
        self.assertEqual(self.reads(9.1), [])

    def test_a_copy_that_cannot_be_read_keeps_its_turn(self) -> None:
        case = self

        class Failing(service.Library):  # as on a disk with a bad sector
            def witness(self, path: str, stop: Any = None) -> Any:
                if path == str(case.copy()):
                    raise OSError(5, "Input/output error", path)
                return super().witness(path, stop)

        self.at(0.1)
        with unittest.mock.patch.object(service, "Library", Failing):
            self.assertIn("d/a.opus", self.at(1, code=1).err)
        self.assertEqual(len(self.reads(1)), 3)
        self.assertEqual(self.reads(1), [])

    def test_a_part_of_a_run_reads_nothing_and_does_not_count(self) -> None:
        self.at(1)
        for words in (["--only", "x"], ["--since", "2020-01-01"], ["--limit", "5"], ["-n"]):
            self.assertEqual(self.reads(2, *words), [])
        self.assertEqual(len(self.reads(2)), 3)

    def test_a_clock_that_jumped_ahead_and_back_leaves_nothing_unread(self) -> None:
        self.at(4000)
        self.at(1, code=1)  # the clock cannot be true
        self.assertEqual(len(self.reads(2)), 3)

    def test_a_large_folder_is_split_by_file(self) -> None:
        self.configure(check_days=5)
        with unittest.mock.patch.object(service, "LARGE_FOLDER", 2):
            nights = [self.reads(day) for day in range(1, 6)]
        self.assertEqual(sorted(itertools.chain(*nights)), [f"{name}.opus" for name in NAMES])
        self.assertLess(max(map(len, nights)), 3)

    def test_a_copy_without_a_hash_is_decoded_and_its_hash_noted(self) -> None:
        self.forget_hashes()
        self.at(1)
        self.assertEqual(len(self.hashes()), 3)
        self.forget_hashes()
        rot(self.copy())
        self.assertEqual(list(self.lost(self.at(2, code=1))), ["d/a.opus"])

    def hashes(self) -> set[str]:
        pasts = service.Library(str(self.library)).history.pasts
        return {past.sha256 for past in pasts.values()} - {""}

    def forget_hashes(self) -> None:
        """As in a library of an earlier version."""
        lines = map(json.loads, self.history().read_text().splitlines())
        records = [line for line in lines if line.get("type") == "recording"]
        for record in records:
            record["past"].pop("sha256", None)
        self.history().write_text("".join(json.dumps(record) + "\n" for record in records))


class Check(LossCase):
    def check(self, code: int, *words: str) -> Ran:
        ran = self.run_cli("check", *words)
        self.assertEqual(ran.code, code, ran.out + ran.err)
        return ran

    def test_it_reads_hashes_and_starts_no_tool(self) -> None:
        ran = self.run_cli("check", env=self.stand_in("sys.exit(1)"))
        self.assertEqual(ran.code, 0, ran.err)
        self.assertIn("Checked 3 copies: 0 lost", ran.out)

    def test_it_finds_rot_and_puts_it_on_record_as_a_run_does(self) -> None:
        rot(self.copy())
        self.copy("b").unlink()
        ran = self.check(1)
        for word in ("d/a.opus", "d/b.opus", "2 lost"):
            self.assertIn(word, ran.out)
        self.assertIn("2 lost", (self.folder / "logs/compression.log").read_text())
        self.assertEqual(self.run_json(0).summary["lost"], 2)
        self.assertIn("2 lost", self.check(1).out)

    def test_a_loss_on_record_is_named_with_what_to_do(self) -> None:
        self.copy().unlink()
        self.run_json(1)
        before = self.history().read_text().count('"lost"')
        ran = self.check(1)
        for word in ("d/a.opus", "its copy is missing", "backup", "1 lost"):
            self.assertIn(word, ran.out)
        self.assertEqual(self.history().read_text().count('"lost"'), before)

    def test_what_its_owner_deleted_is_no_error_for_ever(self) -> None:
        self.forget("a")
        self.copy().unlink()
        self.run_json(0)
        self.assertIn("all sound", self.check(0).out)

    def test_copies_of_copies_are_sound_wherever_they_stand(self) -> None:
        (self.library / "d").rename(self.library / "e")
        shutil.copy2(self.library / "e/a.opus", self.library / "e/a2.opus")
        for _ in range(2):
            self.assertIn("all sound", self.check(0).out)

    def test_the_dry_run_of_the_config_is_no_matter_of_a_check(self) -> None:
        self.configure(dry_run=True)
        self.copy().unlink()
        self.assertNotIn("Dry run", self.check(1).out)
        self.assertNotIn("Found:", (self.folder / "logs/compression.log").read_text())
        self.configure()
        self.assertEqual(self.run_json(0).summary["lost"], 1)

    def test_a_log_that_cannot_be_written_makes_no_copy_unsound(self) -> None:
        self.configure(log_file="/proc/nothing/x.log")
        self.assertIn("0 unsound", self.check(0).out)

    def test_where_it_may_not_write_it_says_so_and_goes_on(self) -> None:
        self.copy().unlink()
        with service.Library(str(self.library)).lock():
            ran = self.check(1)
        self.assertIn("cannot be put on record", ran.out)
        self.assertIn("1 lost", ran.out)
        self.assertEqual(list(self.lost(self.run_json(1))), ["d/a.opus"])

    def test_what_a_run_would_correct_is_listed_and_no_error(self) -> None:
        text = (self.library / "d/a.json").read_text()
        (self.library / "d/a.json").write_text(text.replace("a.opus", "a.webm"))
        document = self.read_json("index.json")
        document["recordings"][1]["compressed"] = False
        self.add_json("index.json", document)
        ran = self.check(0)
        for word in ("d/a.json", "index.json", "d/b", "A run corrects that"):
            self.assertIn(word, ran.out)

    def test_archived_files_are_asked_for_by_size_and_on_demand_by_hash(self) -> None:
        cold = self.folder / "cold"
        (cold / "archive-of-recordings").mkdir(parents=True)
        self.configure(tiers=[{"after_days": 20, "archive": str(cold)}])
        self.put_run_on_record()
        self.run_json(0)
        self.assertIn("3 archived files: 0 wrong", self.check(0, "--archive").out)
        rot(cold / "archive-of-recordings/d/a.opus")
        self.check(0)
        self.assertIn("d/a.opus", self.check(1, "--archive").err)
        (self.library / "d/b.json").unlink()
        self.add_json("index.json", {"recordings": []})
        self.assertIn("no document names it", self.check(0).out)

    def test_its_problems_go_to_the_notify_command(self) -> None:
        told = self.folder / "told"
        self.configure(notify_command=f"cat > {told}")
        self.check(0)
        self.assertFalse(told.exists())
        self.copy().rename(self.copy("x"))
        (self.library / "d/a.json").unlink()
        self.assertIn("was moved", self.check(0).out)
        self.assertFalse(told.exists(), "only problems are reported")
        self.copy("b").unlink()
        self.check(1)
        self.assertEqual(json.loads(told.read_text())["lost"], 1)


if __name__ == "__main__":
    unittest.main()
