"""What was asked back comes back, is finished once it is finished, and nothing else is touched by it."""

from __future__ import annotations

import json
import os
import shutil
import unittest
from pathlib import Path

from tests.base import RECORDINGS, LibraryCase, Ran
from tests.faults import FaultCase, needs_strace
from tests.test_archive import OLD, ArchiveCase
from tests.test_hold_archive import SHORT, AliasCase, HoldCase

VERSION_2 = RECORDINGS / "version-2.0"
STEM = "2025-10-27/14-30-45-chunk-1"


class NothingByAccident(LibraryCase):
    def test_an_empty_word_is_an_error_and_not_the_whole_library(self) -> None:
        self.configure(delete_originals=False)
        self.add("chunk_0", "a.webm")
        self.assertEqual(self.run_cli().code, 0)
        before = self.files()
        for words in (["restore", ""], ["restore", "a.webm", ""], ["--only", ""], ["--only", "a.webm", "--only", ""]):  # fmt: skip
            ran = self.run_cli(*words)
            self.assertEqual(ran.code, 2, ran.out + ran.err)
            self.assertIn("not empty", ran.err)
        for word in (" ", "/", "..", "../", "./", "\t"):
            self.run_cli("restore", word, cwd=str(self.folder))
        self.assertEqual(self.files(), before)

    def test_a_folder_is_not_the_recording_beside_it(self) -> None:
        self.configure(delete_originals=False)
        self.add("chunk_0", "d/14-30.webm")
        self.add("chunk_1", "d/14-30/original_audio.webm")
        self.assertEqual(self.run_cli().code, 0)
        for words, paths in (
            (["d/14-30"], {"d/14-30/original_audio.webm"}),
            (["d/14-30/"], {"d/14-30/original_audio.webm"}),
            (["d/14-30.txt"], set()),
            (["d/14-30.OPUS"], {"d/14-30.webm"}),
        ):
            ran = self.run_cli("restore", "-n", "--json", *words)
            self.assertEqual(set(ran.outcomes), paths, words)


class KeptOriginals(FaultCase):
    """Recordings with their originals kept beside their copies."""

    def setUp(self) -> None:
        super().setUp()
        self.configure(delete_originals=False)
        self.original = self.add("chunk_0", "d/a.webm")
        self.add_json("d/a.json", {"id": "A", "chunks": [{"file": "a.webm"}]})
        self.assertEqual(self.run_cli("-j1").code, 0)
        self.copy = self.original.with_suffix(".opus")

    @needs_strace
    def test_an_original_is_flushed_before_its_copy_is_removed(self) -> None:
        log = self.folder / "strace.log"
        options = ["-y", "-o", str(log), "-e", "trace=fsync,fdatasync,unlink,unlinkat"]
        code, out, err = self.strace(options, "restore", "d/a.webm")
        self.assertEqual(code, 0, out + err)
        lines = log.read_text().splitlines()
        removed = [at for at, line in enumerate(lines) if "unlink" in line and "a.opus" in line]
        before = "\n".join(lines[: removed[0]])
        self.assertRegex(before, rf"sync\(\d+<{self.original}>\) += 0")
        self.assertRegex(before, rf"sync\(\d+<{self.original.parent}>\) += 0")

    def kill_after_placing(self) -> None:
        """As a run leaves it that compresses once more and is killed before its history."""
        content, times = self.copy.read_bytes(), self.copy.stat()
        self.assertEqual(self.run_cli("restore", "d/a.webm").code, 0)
        self.assertFalse(self.copy.exists())
        self.copy.write_bytes(content)
        os.utime(self.copy, ns=(times.st_atime_ns, times.st_mtime_ns))

    def test_a_restore_that_is_finished_is_not_finished_once_more(self) -> None:
        self.kill_after_placing()
        ran = self.run_cli("--retry", "--json")
        self.assertEqual(ran.summary["restored"], 0, ran.out)
        self.assertTrue(self.copy.exists(), "undone as the rest of a restore")
        self.assertEqual(self.read_json("d/a.json")["chunks"][0]["file"], "a.opus")
        self.assertEqual(self.run_cli("check").code, 0)

    def test_a_restore_that_was_cut_short_is_finished_also_by_retry(self) -> None:
        for words in ([], ["--retry"], ["restore", "d/a.webm"]):
            with self.subTest(words):
                copy = self.folder / "library"
                shutil.copytree(self.library, copy)
                self.drive("import os\nprogram.Committer.remove_sources = lambda *_: os._exit(9)")
                self.assertEqual(self.run_cli("restore", "d/a.webm").code, 9)
                self.assertTrue(self.copy.exists())
                self.driver, self.changes = None, ""
                ran = self.run_cli(*words, "--json")
                self.assertEqual((ran.code, ran.summary["restored"]), (0, 1), ran.out + ran.err)
                self.assertFalse(self.copy.exists())
                self.assertEqual(self.run_cli("--json").summary["restored"], 0)
                shutil.rmtree(self.library)
                copy.rename(self.library)


class InProportion(HoldCase):
    def test_a_folder_is_not_read_anew_for_every_recording(self) -> None:
        paths = self.settled(*(f"d/{number}.webm" for number in range(40)))
        self.archive()
        self.assert_archived(*paths)
        count = self.folder / "count"
        self.drive(
            "real = program.resolve_recordings\n"
            "def counted(folder):\n"
            f"    open({str(count)!r}, 'a').write('x')\n"
            "    return real(folder)\n"
            "program.resolve_recordings = counted"
        )
        self.assertEqual(self.run_cli("restore", str(self.library)).code, 0)
        self.assert_here(*paths)
        self.assertLess(count.stat().st_size, 30, "once for each of 40 recordings")


class ADeadRemote(AliasCase):
    def test_it_is_not_asked_for_every_recording(self) -> None:
        paths = self.settled(*(f"d/{number}.webm" for number in range(4)))
        self.archive()
        before = len(self.called("--"))
        self.faulty("sys.exit('connection refused')")
        ran = self.run_cli("restore", str(self.library))
        self.assertEqual(ran.code, 1)
        self.assertIn("does not answer", ran.err)
        self.assertLessEqual(len(self.called("--")) - before, 3)
        self.faulty("")
        self.assertEqual(self.run_cli("restore", str(self.library)).code, 0)
        self.assert_here(*paths)

    def test_what_was_fetched_before_it_died_is_here(self) -> None:
        paths = self.settled(*(f"d/{number}.webm" for number in range(4)))
        self.archive()
        self.faulty("if re.search(r'/[23]\\.webm', ' '.join(args)) or not args[-1].endswith('.webm') and 'copyto' not in args:\n    sys.exit('connection refused')")  # fmt: skip
        self.assertEqual(self.run_cli("restore", str(self.library)).code, 1)
        self.assert_here(*paths[:2])
        self.assert_no_leftovers()


class WithoutARecord(HoldCase):
    """The place that a sidecar tells is a lead, and a witness against an older history."""

    def archived(self) -> Path:
        self.settled("d/a.webm")
        self.add_json("d/a.json", {"id": "A", "chunks": [{"file": "a.webm"}]})
        self.add_json("index.json", {"recordings": [{"id": "A", "size": 1486}]})
        older = self.folder / "older"
        self.assertEqual(self.run_cli("--limit", "1", "--older-than", "9999").code, 0)
        shutil.copyfile(self.history(), older)
        self.archive()
        self.assert_archived("d/a.webm")
        return older

    def test_an_older_history_changes_no_word_of_what_is_archived(self) -> None:
        older = self.archived()
        before = self.files()
        shutil.copyfile(older, self.history())
        for _ in range(2):
            self.assertEqual(self.run_cli("--retry").code, 0)
        self.add("chunk_0", "d/b.webm")
        self.add_json("d/b.json", {"id": "B", "chunks": [{"file": "b.webm"}]})
        self.run_cli()
        now = self.files()
        self.assertEqual(now["d/a.json"], before["d/a.json"])
        entry = json.loads(now["index.json"])["recordings"][0]
        self.assertEqual((entry["archived"], entry["size"]), (True, 0))

    def test_it_comes_back_by_its_sidecar_alone(self) -> None:
        self.archived()
        shutil.rmtree(self.library / ".compression")
        (self.library / ".compression").mkdir()  # else it is taken for an unmounted disk
        self.assertEqual(self.run_cli("check").code, 0)
        ran = self.run_cli("restore", "d/a.json")
        self.assertEqual(ran.code, 0, ran.out + ran.err)
        self.assertEqual((self.library / "d/a.webm").read_bytes(), SHORT)
        self.assertNotIn("archived", self.read_json("d/a.json"))
        self.assertEqual(self.run_cli("check").code, 0)

    def test_what_its_sidecar_tells_and_is_not_there_is_reported_by_check(self) -> None:
        self.archived()
        shutil.rmtree(self.library / ".compression")
        (self.library / ".compression").mkdir()  # else it is taken for an unmounted disk
        (self.cold / "d/a.webm").unlink()
        ran = self.run_cli("check")
        self.assertEqual(ran.code, 1)
        self.assertIn("d/a is not in the archive any more", ran.err)

    def test_a_line_with_keys_of_a_later_version_is_read(self) -> None:
        self.archived()
        lines = [json.loads(line) for line in self.history().read_text().splitlines()]
        for line in lines:
            if "past" in line:
                line["past"].update(deleted=1.5, policy={"a": 1}, _replace=2, of="x")
                line["past"].get("place", {}).update(later=[1])
        self.history().write_text("".join(json.dumps(line) + "\n" for line in lines))
        self.assertEqual(self.run_cli("restore", "d/a.webm").code, 0)
        self.assert_here("d/a.webm")


class Moved(HoldCase):
    """An archive moved by hand, and a library under another name."""

    def setUp(self) -> None:
        super().setUp()
        self.settled("d/a.webm")
        self.add_json("d/a.json", {"id": "A", "chunks": [{"file": "a.webm"}]})
        self.archive()
        self.assert_archived("d/a.webm")

    def comes_back(self) -> None:
        self.assertEqual(self.run_cli("check").code, 0)
        ran = self.run_cli("restore", str(self.library))
        self.assertEqual(ran.code, 0, ran.out + ran.err)
        self.assertEqual((self.library / "d/a.webm").read_bytes(), SHORT)

    def rename_library(self) -> None:
        self.library = self.library.rename(self.folder / "voices")
        self.configure(recordings_dir="voices", min_saving_percent=50)

    def test_a_library_under_another_name_finds_its_archive(self) -> None:
        self.rename_library()
        self.comes_back()

    def test_one_whose_archive_was_renamed_with_it_finds_it_too(self) -> None:
        self.rename_library()
        self.cold.rename(self.folder / "cold/archive-of-voices")
        self.comes_back()

    def test_an_archive_on_another_disk_is_found(self) -> None:
        (self.folder / "cold").rename(self.folder / "new")
        self.target = str(self.folder / "new")
        self.configure(min_saving_percent=50)
        self.comes_back()

    def test_a_place_that_only_its_sidecar_tells_is_found_and_proven(self) -> None:
        (self.cold / "d").rename(self.folder / "cold/by-hand")
        document = self.read_json("d/a.json")
        document["archive_location"] = str(self.folder / "cold/by-hand")
        self.add_json("d/a.json", document)
        self.comes_back()

    def test_a_lead_to_another_file_brings_nothing_back(self) -> None:
        (self.cold / "d").rename(self.folder / "cold/by-hand")
        (self.folder / "cold/by-hand/a.webm").write_bytes(SHORT[:-1] + b"x")
        document = self.read_json("d/a.json")
        document["archive_location"] = str(self.folder / "cold/by-hand")
        self.add_json("d/a.json", document)
        ran = self.run_cli("restore", str(self.library))
        self.assertIn("is not the file that went there", ran.out)
        self.assertFalse((self.library / "d/a.webm").exists())


class FromVersion2(ArchiveCase):
    """A library whose copy was archived by version 2.0, on a disk that has moved since."""

    def setUp(self) -> None:
        super().setUp()
        for name, path in (
            ("14-30-45-chunk-1.json", self.library / f"{STEM}.json"),
            ("index.json", self.library / "index.json"),
            ("history.jsonl", self.history()),
            ("14-30-45-chunk-1.opus", self.cold / f"{STEM}.opus"),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(VERSION_2 / name, path)

    def restore(self) -> Ran:
        ran = self.run_cli("restore", f"{STEM}.webm")
        self.assertEqual(ran.code, 0, ran.out + ran.err)
        content = (VERSION_2 / "14-30-45-chunk-1.opus").read_bytes()
        self.assertEqual((self.library / f"{STEM}.opus").read_bytes(), content)
        self.assertNotIn("archived", self.read_json(f"{STEM}.json"))
        self.assertEqual(self.run_cli("check").code, 0)
        return ran

    def test_it_is_sound_and_comes_back(self) -> None:
        before = self.files()
        self.assertEqual(self.run_cli("check").code, 0)
        self.assertEqual(self.run_cli().code, 0)
        self.assertEqual(self.files(), before)
        self.restore()

    def test_a_restore_that_version_2_began_is_finished_by_the_next_run(self) -> None:
        lines = self.history().read_text().splitlines()
        past = json.loads(lines[1])["past"]
        begun = {**json.loads(lines[1]), "past": {**past, "action": "restored", "code": "restored", "move": "restore"}}  # fmt: skip
        with open(self.history(), "a") as file:
            file.write(json.dumps(begun) + "\n")
        ran = self.run_cli("--json")
        self.assertEqual((ran.code, ran.summary["restored"]), (0, 1), ran.out + ran.err)
        self.assertTrue((self.library / f"{STEM}.opus").exists())

    def test_new_recordings_go_beside_the_old_ones(self) -> None:
        self.add_bytes(SHORT, "2025-10-28/new.webm", OLD)
        for _ in range(2):
            self.assertEqual(self.run_cli().code, 0)
        self.assert_archived("2025-10-28/new.webm")
        self.restore()


if __name__ == "__main__":
    unittest.main()
