"""Cold storage: copied there, compared, recorded, and only then removed here; and brought back as it was."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
import unittest
from pathlib import Path

from tests.archives import MARK, OLD, SHORT, ArchiveCase, ShortCase
from tests.base import DAY, LONG_AGO, LibraryCase, sidecar
from tests.faults import FaultCase
from tests.test_front import past_of


class AFolder(ArchiveCase):
    def test_what_is_old_enough_goes_there_and_every_record_says_so(self) -> None:
        copies = self.add_old_session()
        self.add("chunk_0", "2025-10-27/young.webm", time.time() - 8 * DAY)
        ran = self.run_well("--json")
        self.assert_archived(*copies)
        self.assertTrue((self.library / "2025-10-27/young.opus").exists())
        self.assertEqual(ran.summary["archived"], 2)
        document = self.read_json("2025-10-27/14-30-45-chunk-2.json")
        self.assertEqual(
            (document["archived"], document["archive_location"]), (True, f"{self.cold}/2025-10-27")
        )
        self.assertEqual(
            document["compressed_size"], sum((self.cold / copy).stat().st_size for copy in copies)
        )
        self.assertRegex(document["archive_date"], r"^\d{4}-\d\d-\d\dT")
        self.assertEqual(
            [chunk["file"] for chunk in document["chunks"]],
            [os.path.basename(copy) for copy in copies],
        )
        index = self.read_json("index.json")
        entry = index["recordings"][0]
        self.assertEqual((entry["archived"], entry["compressed"], entry["size"]), (True, True, 0))
        self.assertEqual(
            index["compressed_size"], (self.library / "2025-10-27/young.opus").stat().st_size
        )
        before = self.files()
        again = self.run_well("--json")
        self.assertEqual((again.outcomes, self.files()), ({}, before))
        self.assertEqual(self.run_well("check").code, 0)
        self.assert_no_leftovers()
        self.assertEqual([path.name for path in self.cold.rglob(".*")], [".compression"])

    def test_what_is_kept_as_it_is_goes_there_as_it_is(self) -> None:
        original = self.add_bytes(b"\x1aE\xdf\xa3junk", "a.webm", OLD)
        content = original.read_bytes()
        self.run_well()
        self.run_well()
        self.assertEqual((self.cold / "a.webm").read_bytes(), content)
        self.assertFalse(original.exists())

    def test_a_dry_run_names_what_would_go(self) -> None:
        copies = self.add_old_session(1)
        LibraryCase.configure(self)
        self.run_well()
        self.configure()
        before = self.files()
        ran = self.run_well("--dry-run", "--json")
        self.assertEqual(ran.outcomes[copies[0]]["action"], "would-archive")
        self.assertEqual(self.files(), before)
        self.assertEqual(list(self.cold.iterdir()), [])

    def test_a_session_goes_as_a_whole_or_not_at_all(self) -> None:
        copies = self.add_old_session()
        young = self.library / "2025-10-27/14-30-45-chunk-2.webm"
        os.utime(young, (time.time() - 300 * DAY,) * 2)
        self.run_well()
        self.assertEqual(list(self.cold.rglob("*.opus")), [])
        self.assertTrue((self.library / copies[0]).exists())

    def test_a_kept_original_and_a_policy_keep_hold_it_here(self) -> None:
        self.configure(delete_originals=False)
        self.add_old_session(1)
        self.add("chunk_0", "b.webm", OLD)
        self.add_json(
            "b.json", {"chunks": [{"file": "b.webm"}], "compression_policy": {"keep": True}}
        )
        self.run_well()
        self.run_well()
        self.assertEqual(list(self.cold.rglob("*.*")), [])

    def test_a_missing_folder_keeps_everything_and_is_never_made(self) -> None:
        copies = self.add_old_session(1)
        self.cold.rmdir()
        ran = self.run_well("--json", code=1)
        self.assertIn("mounted", ran.summary["message"])
        self.assertNotIn(copies[0], ran.outcomes, "it counts against a recording")
        self.assertTrue((self.library / copies[0]).exists())
        self.assertFalse(self.cold.exists())
        self.cold.mkdir()
        self.run_well()
        self.assert_archived(*copies)

    def test_another_file_of_that_name_there_is_kept_and_so_is_ours(self) -> None:
        copies = self.add_old_session(1)
        (self.cold / copies[0]).parent.mkdir()
        (self.cold / copies[0]).write_bytes(b"another")
        ran = self.run_well("--json", code=1)
        self.assertIn("another file", ran.outcomes[copies[0]]["reason"])
        self.assertTrue((self.library / copies[0]).exists())
        self.assertEqual((self.cold / copies[0]).read_bytes(), b"another")

    def test_a_broken_sidecar_keeps_its_copies_here(self) -> None:
        copies = self.add_old_session(1)
        LibraryCase.configure(self)
        self.run_well()
        self.configure()
        sidecar = (self.library / copies[0]).with_suffix(".json")
        sidecar.write_text("{")
        os.utime(sidecar, (OLD, OLD))  # no one is in the middle of writing it
        ran = self.run_well("--json")
        self.assertEqual(ran.outcomes[copies[0]]["action"], "kept")
        self.assertIn("sidecar cannot be edited: 2025-10-27/14", ran.outcomes[copies[0]]["reason"])
        self.assertTrue((self.library / copies[0]).exists())
        self.assertEqual(list(self.cold.rglob("*.opus")), [])

    def test_a_run_killed_in_between_converges(self) -> None:
        self.add("chunk_0", "without-sidecar.webm", OLD)
        copies = [*self.add_old_session(), "without-sidecar.opus"]
        self.run_well()
        for copy in (copies[0], copies[2]):  # as if killed before they were removed
            (self.library / copy).write_bytes((self.cold / copy).read_bytes())
            os.utime(self.library / copy, (OLD, OLD))
        half = (self.cold / copies[1]).read_bytes()
        part = f".compression-{hashlib.sha256(half).hexdigest()[:8]}-0.part"
        (self.cold / copies[1]).rename(self.cold / "2025-10-27" / part)
        (self.library / copies[1]).write_bytes(half)
        os.utime(self.library / copies[1], (OLD, OLD))
        self.run_well()
        self.assert_archived(*copies)


class Rotten(ArchiveCase):
    """A copy of the size and time on record, and other bytes."""

    def setUp(self) -> None:
        super().setUp()
        self.good = bytes(600)
        self.copy = self.add_bytes(self.good, "d/a.opus")
        self.add_json("d/a.json", sidecar("a", ["a.opus"]))
        past = past_of("d/a", sha256=hashlib.sha256(self.good).hexdigest(), ids=["a"])
        with open(self.history(), "a", encoding="ascii") as file:
            file.write(json.dumps(past) + "\n")
        self.add_bytes(self.good[:-1] + b"x", "d/a.opus")

    def test_it_is_lost_and_nothing_of_it_goes_to_the_archive(self) -> None:
        ran = self.run_well("--json", code=1)
        self.assertEqual(ran.outcomes["d/a.opus"]["action"], "lost")
        self.assertEqual(list(self.cold.rglob("*")), [])
        self.assertEqual(self.run_well("--json").outcomes, {}, "reported once")
        self.assertIn("lost", self.run_cli("doctor").out)
        self.copy.write_bytes(self.good)
        os.utime(self.copy, (LONG_AGO, LONG_AGO))
        for _ in range(2):
            self.run_well()
        self.assert_archived("d/a.opus")


class AFullDisk(ArchiveCase, FaultCase):
    def test_a_full_archive_ends_the_run_with_exit_5_and_everything_stays_here(self) -> None:
        copies = self.add_old_session(1)
        options = ("-t", "tmpfs", "-o", "size=16k,mode=777", "tmpfs")
        if not self.mount(self.folder / "cold", *options):
            self.cannot("mounting a small disk")
        self.cold.mkdir()
        for _ in range(4):  # and it is never held against the recording
            ran = self.run_well("--json", code=5)
            self.assertIn("No space left in", ran.summary["message"])
            self.assertTrue((self.library / copies[0]).exists())
            self.assertEqual([path for path in self.cold.rglob("*.*") if path.is_file()], [])
        self.assertTrue(self.as_root("mount", "-o", "remount,size=1m", str(self.folder / "cold")))
        self.run_well()
        self.assert_archived(*copies)


class UnderOneName(ArchiveCase):
    """What comes under the name of a recording that has gone, and what has gone with its folder."""

    def test_one_uploaded_again_is_kept_and_the_archived_one_still_comes_back(self) -> None:
        (copy,) = self.add_old_session(chunks=1)
        self.run_well()
        archived = (self.cold / copy).read_bytes()
        again = self.add("ff_chunk_1", copy.replace(".opus", ".webm"), time.time() - 10 * DAY)
        before = again.read_bytes()
        self.assertIn("name already taken: the archive has", self.run_cli().out)
        ran = self.run_well("restore", str(again), code=1)
        self.assertIn("is here: move that away first", ran.out)
        self.assertEqual(self.run_cli().code, 1)
        self.assertEqual(again.read_bytes(), before)
        again.rename(again.with_name("other.webm"))
        self.run_well("restore", str(again))
        self.assertEqual((self.library / copy).read_bytes(), archived)

    def test_a_folder_that_went_with_its_recordings_comes_back(self) -> None:
        for path in ("d/a.webm", "e/b.webm"):
            self.add("chunk_0", path, OLD)
        self.run_well()
        (self.library / "d").rmdir()
        ran = self.run_cli("restore", "recordings/d", cwd=str(self.folder))
        self.assertEqual(ran.code, 0, ran)
        self.assertTrue((self.library / "d/a.opus").exists())
        ran = self.run_cli("restore", "recordings/e/b.webm", cwd=str(self.folder))
        self.assertEqual(ran.code, 0, ran)
        self.assertTrue((self.library / "e/b.opus").exists())

    def test_a_sidecar_that_a_server_writes_back_names_what_is_in_the_archive(self) -> None:
        self.add("chunk_0", "d/a.webm", OLD)
        older = self.add_json("d/a.json", {"id": "A", "chunks": [{"file": "a.webm"}]}).read_bytes()
        self.run_well()
        (self.library / "d/a.json").write_bytes(older)
        self.run_well()
        document = self.read_json("d/a.json")
        self.assertEqual((document["chunks"][0]["file"], document["archived"]), ("a.opus", True))

    def test_what_went_as_it_was_is_not_called_compressed(self) -> None:
        self.add("ch_slice_01", "d/a.webm", OLD)
        self.add_json("d/a.json", {"id": "A", "chunks": [{"file": "a.webm"}]})
        self.run_well("--limit", "1")
        self.run_well()
        self.assertNotIn("compression_ratio", self.read_json("d/a.json"))

    def test_without_an_archive_in_the_settings_a_dry_run_says_so_too(self) -> None:
        (copy,) = self.add_old_session(chunks=1)
        self.run_well()
        self.configure(tiers=[])
        for words in (["-n"], []):
            ran = self.run_well("restore", copy, *words, code=1)
            self.assertIn("tiers name no archive", ran.out)


class NotItself(ArchiveCase):
    """A recording must never be taken for its own copy in the archive."""

    def test_an_archive_inside_of_the_library_is_refused(self) -> None:
        for library in (Path(self.target), self.folder):
            (library / "d").mkdir(parents=True, exist_ok=True)
            path = library / "d/a.webm"
            shutil.copyfile(self.add("chunk_0", "a.webm", OLD), path)
            os.utime(path, (OLD, OLD))
            ran = self.run_cli("--recordings", str(library))
            self.assertEqual(ran.code, 2, ran.out + ran.err)
            self.assertTrue(path.exists())

    def test_a_link_in_the_archive_that_leads_out_of_it_is_not_followed(self) -> None:
        copies = self.add_old_session(1)
        for target in (self.library / "2025-10-27", self.folder):
            (self.cold / "2025-10-27").unlink(missing_ok=True)
            (self.cold / "2025-10-27").symlink_to(target)
            ran = self.run_well("--json", "--retry", code=1)
            self.assertIn("leads out", ran.outcomes[copies[0]]["reason"])
            self.assertTrue((self.library / copies[0]).exists())

    def test_an_archive_that_is_a_link_to_another_disk_gives_back_what_it_took(self) -> None:
        (path,) = self.add_old_session(1)
        self.cold.rmdir()
        (self.folder / "disk").mkdir()
        self.cold.symlink_to(self.folder / "disk")
        self.run_well()
        self.assert_archived(path)
        self.assertEqual(self.run_well("check").code, 0)
        self.run_well("restore", path)
        self.assertTrue((self.library / path).exists())

    def test_a_link_or_pipe_where_the_part_file_goes_is_not_written_through(self) -> None:
        copies = self.add_old_session(1)
        LibraryCase.configure(self)
        self.run_well()
        self.configure()
        victim = self.folder / "victim"
        victim.write_bytes(b"mine")
        part = (
            self.cold
            / "2025-10-27"
            / f".compression-{hashlib.sha256((self.library / copies[0]).read_bytes()).hexdigest()[:8]}-0.part"
        )
        part.parent.mkdir()
        part.symlink_to(victim)
        self.run_well()
        self.assertEqual(victim.read_bytes(), b"mine")
        self.assert_archived(*copies)

    def test_a_conflict_is_told_three_times_and_then_remembered(self) -> None:
        copies = self.add_old_session(1)
        (self.cold / copies[0]).parent.mkdir()
        (self.cold / copies[0]).write_bytes(b"another")
        self.assertEqual(self.run_cli().code, 0)  # compresses
        codes = [self.run_cli().code for _ in range(5)]
        self.assertEqual(codes, [1, 1, 1, 0, 0])
        (self.cold / copies[0]).unlink()
        self.run_well("--retry")
        self.assert_archived(*copies)

    def test_a_session_larger_than_the_limit_does_not_hold_up_the_rest(self) -> None:
        copies = self.add_old_session(3)
        LibraryCase.configure(self)
        self.run_well()
        self.configure()
        self.run_well("--limit", "2")
        self.assert_archived(*copies)


class TheMark(ShortCase):
    def test_the_first_upload_leaves_a_mark_and_a_dry_run_leaves_none(self) -> None:
        self.settled("a.webm")
        self.archive("-n")
        self.assertFalse((self.cold / MARK).exists())
        self.archive()
        own = (self.library / MARK).read_bytes()
        self.assertEqual((self.cold / MARK).read_bytes(), own)
        self.assertGreaterEqual(len(own), 32)

    def test_an_archive_of_another_library_of_this_name_is_refused(self) -> None:
        self.settled("a.webm")
        (self.cold / MARK).parent.mkdir()
        (self.cold / MARK).write_text("of another library")
        for words in (["-n"], []):
            ran = self.archive(*words, code=1)
            self.assertIn("has the mark of another library", ran.err)
        ran = self.run_cli("doctor")
        self.assertIn("has the mark of another library", ran.out)
        self.assert_here("a.webm")
        self.assertFalse((self.cold / "a.webm").exists())

    def test_a_library_that_lost_its_own_folder_goes_on_once_the_mark_is_removed(self) -> None:
        self.settled("a.webm")
        self.archive()
        shutil.rmtree(self.library / ".compression")
        self.settled("b.webm")
        ran = self.archive(code=1)
        self.assertIn(f"remove {self.cold / MARK} and run again", ran.err)
        self.assert_here("b.webm")
        (self.cold / MARK).unlink()
        self.archive()
        self.assert_archived("a.webm", "b.webm")

    def test_an_archive_from_before_gets_a_mark(self) -> None:
        self.settled("a.webm")
        (self.cold / "2024").mkdir()
        (self.cold / "2024/old.opus").write_bytes(b"of version 2.0")
        self.archive()
        self.assertTrue((self.cold / MARK).exists())
        self.assert_archived("a.webm")


class TheSource(ShortCase):
    def test_a_source_that_an_attribute_cache_hides_the_change_of_is_kept(self) -> None:
        (path,) = self.settled("a.webm")
        other = SHORT[:-1] + b"x"
        self.drive(
            "program.is_same = lambda path, seen: True\n"
            "real = program.Store.remove\n"
            "def after_a_change(self, library):\n"
            f"    with open({str(self.library / path)!r}, 'r+b') as file:\n"
            f"        file.write({other!r})\n"
            "    return real(self, library)\n"
            "program.Store.remove = after_a_change"
        )
        ran = self.archive("--json", code=1)
        self.assertIn("changed while", ran.outcomes[path]["reason"])
        self.assertEqual((self.library / path).read_bytes(), other)

    def test_what_was_there_already_is_flushed_before_it_is_relied_on(self) -> None:
        (path,) = self.settled("d/a.webm")
        (self.cold / "d").mkdir()
        (self.cold / path).write_bytes(SHORT)
        log = self.folder / "flushed"
        self.drive(
            "real, unlink = program.flush, program.os.unlink\n"
            "def note(what):\n"
            f"    with open({str(log)!r}, 'a') as file:\n"
            "        file.write(what + '\\n')\n"
            "def flush(descriptor, *rest):\n"
            "    note(program.os.readlink(f'/proc/self/fd/{descriptor}'))\n"
            "    real(descriptor, *rest)\n"
            "def remove(path, **options):\n"
            "    note('removed ' + path)\n"
            "    unlink(path, **options)\n"
            "program.flush, program.os.unlink = flush, remove"
        )
        if sys.platform != "linux":
            self.skipTest("/proc tells what is flushed")
        self.archive()
        lines = log.read_text().splitlines()
        before = lines[: lines.index(f"removed {self.library / path}")]
        for relied_on in (self.cold / path, self.cold / "d", self.cold):
            self.assertIn(str(relied_on), before)


if __name__ == "__main__":
    unittest.main()
