"""What was archived comes back as it was, once it was proven to be what went there."""

from __future__ import annotations

import json
import os
import shutil
import unittest
from pathlib import Path

from tests.archives import MARK, OLD, SHORT, AliasCase, ArchiveCase, ShortCase
from tests.base import RECORDINGS, LibraryCase, Ran


class BackAgain(ArchiveCase):
    def test_restore_brings_a_whole_session_back_as_it_was(self) -> None:
        copies = self.add_old_session()
        LibraryCase.configure(self)
        self.run_well()
        before = self.files()
        self.configure()
        self.run_well()
        self.assert_archived(*copies)
        ran = self.run_well("restore", str(self.library / copies[1]), "--json")
        self.assertEqual({outcome["action"] for outcome in ran.outcomes.values()}, {"restored"})
        after = self.files()
        self.assertEqual(
            {name for name in after if not name.endswith(".bak")},
            {name for name in before if not name.endswith(".bak")},
        )
        for copy in copies:
            self.assertEqual(after[copy], before[copy])
            self.assertAlmostEqual((self.library / copy).stat().st_mtime, OLD, delta=1)
            sidecar = copy.replace(".opus", ".json")
            self.assertEqual(json.loads(after[sidecar]), json.loads(before[sidecar]))
        entry = self.read_json("index.json")["recordings"][0]
        self.assertEqual(
            ("archived" in entry, entry["size"]), (False, sum(len(before[copy]) for copy in copies))
        )
        self.run_well()
        self.assertTrue((self.library / copies[0]).exists(), "taken away again by the next run")
        self.run_well("--retry")
        self.assert_archived(*copies)

    def test_what_is_not_what_went_there_does_not_come_back(self) -> None:
        copies = self.add_old_session(1)
        self.run_well()
        path = self.cold / copies[0]
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        ran = self.run_well("restore", copies[0], code=1)
        self.assertIn("not the file", ran.out)
        self.assertFalse((self.library / copies[0]).exists())

    def test_sidecars_of_one_recording_come_back_together(self) -> None:
        """Each with its own chunk only, and one id."""
        names = ["r-chunk-1", "r-chunk-2"]
        for name in names:
            self.add("chunk_0", f"{name}.webm", OLD)
            self.add_json(f"{name}.json", {"id": "r", "chunks": [{"file": f"{name}.webm"}]})
        self.run_well()
        self.run_well("restore", "r-chunk-1.json")
        self.assertEqual(self.run_well("check").code, 0)
        self.assertEqual([(self.library / f"{name}.opus").exists() for name in names], [True, True])

    def test_a_recording_without_chunks_in_its_sidecar_comes_back_compressed(self) -> None:
        self.add("chunk_0", "a.webm", OLD)
        self.add_json("a.json", {"id": "a", "chunks": None})
        self.run_well()
        self.run_well("restore", "a.json")
        document = self.read_json("a.json")
        self.assertEqual((document["compressed"], "archived" in document), (True, False))

    def test_a_recording_in_capitals_comes_back(self) -> None:
        self.add_bytes(b"\x1aE\xdf\xa3junk", "K.WEBM", OLD)
        self.run_well()
        self.run_well()
        self.assertFalse((self.library / "K.WEBM").exists())
        self.run_well("restore", "K.WEBM")
        self.assertTrue((self.library / "K.WEBM").exists())

    def test_what_came_back_and_was_deleted_comes_back_once_more(self) -> None:
        copies = self.add_old_session(1)
        self.run_well()
        self.run_well("restore", copies[0])
        (self.library / copies[0]).unlink()
        self.run_well("restore", copies[0].replace(".opus", ".json"))
        content = (self.cold / copies[0]).read_bytes()
        self.assertEqual((self.library / copies[0]).read_bytes(), content)

    def test_an_odd_line_of_the_history_is_not_followed_and_breaks_nothing(self) -> None:
        copies = self.add_old_session(1)
        self.run_well()
        history = self.folder / "recordings/.compression/history.jsonl"
        line = next(
            line
            for line in history.read_text().splitlines()
            if '"archived"' in line and '"recording"' in line
        )
        record = json.loads(line)
        odd: list[dict[str, object]] = [
            {"path": "../outside/a.opus"},
            {"path": 5},
            {"path": "/etc/x"},
            {"mtime_ns": 10**40},
        ]
        odd += [{"location": "a\0b"}, {"owner": 3}]
        with open(history, "a") as file:
            file.writelines(json.dumps({**record, "path": "b.opus", **each}) + "\n" for each in odd)
        for words in (["check"], ["restore", "b.opus"], ["restore", copies[0]], ["run"], ["stats"]):
            ran = self.run_cli(*words)
            self.assertNotIn("Traceback", ran.err)
        self.assertTrue((self.library / copies[0]).exists())

    def test_a_location_in_a_sidecar_is_never_followed(self) -> None:
        (self.folder / "secret").mkdir()
        (self.folder / "secret/a.opus").write_bytes(b"private")
        document = {
            "chunks": [{"file": "a.opus"}],
            "archived": True,
            "archive_location": str(self.folder / "secret"),
        }
        self.add_json("a.json", document)
        self.run_well("restore", "a.json", code=1)
        self.assertFalse((self.library / "a.opus").exists())


VERSION_2 = RECORDINGS / "version-2.0"


STEM = "2025-10-27/14-30-45-chunk-1"


class InProportion(ShortCase):
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


class WithoutARecord(ShortCase):
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
        self.assertIn(f"remove {self.cold / MARK} and run again", ran.err)
        self.assertFalse((self.library / "d/a.webm").exists(), "another library's perhaps")
        (self.cold / MARK).unlink()
        ran = self.run_cli("restore", "d/a.json")
        self.assertEqual(ran.code, 0, ran.out + ran.err)
        self.assertEqual((self.library / "d/a.webm").read_bytes(), SHORT)
        self.assertNotIn("archived", self.read_json("d/a.json"))
        self.assertEqual(self.run_cli("check").code, 0)

    def test_another_library_s_file_in_an_archive_of_one_name_does_not_come_back(self) -> None:
        self.archived()
        self.library = self.folder / "other/recordings"
        self.library.mkdir(parents=True)
        self.configure(recordings_dir=str(self.library))
        self.put_run_on_record()
        self.add_json("d/a.json", {"id": "A", "chunks": [{"file": "a.webm"}]})
        ran = self.run_cli("restore", "d/a.json")
        self.assertIn("has the mark of another library", ran.err)
        self.assertFalse((self.library / "d/a.webm").exists())

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
                line["past"].update(later=1.5, policy={"a": 1}, _replace=2, of="x")
                line["past"].get("place", {}).update(later=[1])
        self.history().write_text("".join(json.dumps(line) + "\n" for line in lines))
        self.assertEqual(self.run_cli("restore", "d/a.webm").code, 0)
        self.assert_here("d/a.webm")


class Moved(ShortCase):
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

    def test_a_damaged_file_on_one_lead_does_not_hide_the_good_one_on_another(self) -> None:
        shutil.copytree(self.cold / "d", self.folder / "cold/by-hand")
        (self.cold / "d/a.webm").write_bytes(SHORT[:-1] + b"x")
        document = self.read_json("d/a.json")
        document["archive_location"] = str(self.folder / "cold/by-hand")
        self.add_json("d/a.json", document)
        self.comes_back()

    def test_each_sidecar_of_a_recording_may_say_another_place(self) -> None:
        self.settled("d/b.webm")
        self.add_json("d/b.json", {"id": "A", "chunks": [{"file": "b.webm"}]})
        self.archive()
        (self.folder / "cold/by-hand").mkdir()
        (self.cold / "d/b.webm").rename(self.folder / "cold/by-hand/b.webm")
        document = self.read_json("d/b.json")
        document["archive_location"] = str(self.folder / "cold/by-hand")
        self.add_json("d/b.json", document)
        self.comes_back()
        self.assertEqual((self.library / "d/b.webm").read_bytes(), SHORT)

    def test_an_archive_that_takes_nothing_any_more_gives_back_what_it_has(self) -> None:
        self.settled("e/b.webm")
        self.archive()
        (self.cold / "d/a.webm").unlink()
        self.drive(
            "real = program.is_read_only\n"
            "program.is_read_only = lambda path: 'cold' in path or real(path)"
        )
        ran = self.run_cli("restore", str(self.library))
        self.assertEqual(ran.code, 1)
        self.assertIn("d/a.webm is not in the archive", ran.out)
        self.assert_here("e/b.webm")

    def test_a_sidecar_that_cannot_be_edited_keeps_it_there(self) -> None:
        path = self.library / "d/a.json"
        good = path.read_text()
        path.write_text(good[:-20])
        os.utime(path, (OLD, OLD))  # no one is in the middle of writing it
        ran = self.run_cli("restore", str(self.library))
        self.assertEqual(ran.code, 1)
        self.assertIn("cannot be restored: d/a.json", ran.out)
        self.assertFalse((self.library / "d/a.webm").exists())
        path.write_text(good)
        self.assertEqual(self.run_cli("-j1", "--json").outcomes, {})
        self.comes_back()

    def test_one_whose_sidecar_could_not_be_written_is_finished_by_the_next_run(self) -> None:
        self.drive(
            "def refuse(*_, **__):\n"
            "    raise PermissionError(13, 'Permission denied')\n"
            "program.rewrite = refuse"
        )
        self.assertEqual(self.run_cli("restore", str(self.library)).code, 1)
        self.assertIn("archived", self.read_json("d/a.json"))
        self.assert_here("d/a.webm")
        self.driver, self.changes = None, ""
        ran = self.run_cli("-j1", "--json")
        self.assertEqual((ran.code, ran.summary["restored"]), (0, 1), ran.out + ran.err)
        self.assertNotIn("archived", self.read_json("d/a.json"))
        self.comes_back()

    def test_a_folder_that_is_made_again_belongs_to_the_owner_of_the_one_above(self) -> None:
        shutil.rmtree(self.library / "d")
        self.library.chmod(0o750)
        if os.geteuid() or not self.as_root("chown", "1234:1234", str(self.library)):
            self.cannot("giving a folder to another user")
        self.assertEqual(self.run_cli("restore", "d").code, 0)
        status = (self.library / "d").stat()
        self.assertEqual((status.st_uid, status.st_gid), (1234, 1234))
        self.assertEqual(status.st_mode & 0o777, 0o750)

    def test_a_lead_to_another_file_brings_nothing_back(self) -> None:
        (self.cold / "d").rename(self.folder / "cold/by-hand")
        (self.folder / "cold/by-hand/a.webm").write_bytes(SHORT[:-1] + b"x")
        document = self.read_json("d/a.json")
        document["archive_location"] = str(self.folder / "cold/by-hand")
        self.add_json("d/a.json", document)
        ran = self.run_cli("restore", str(self.library))
        self.assertIn("is not the file that went there", ran.out)
        self.assertFalse((self.library / "d/a.webm").exists())


class OutOfARemote(AliasCase):
    def test_a_location_that_leaves_the_configured_remote_is_never_followed(self) -> None:
        secret = self.folder / "secret"
        secret.mkdir()
        (secret / "a.webm").write_bytes(SHORT)
        self.environment["RCLONE_CONFIG_COLD_TYPE"] = "local"
        for location in (f"cold:{secret}", f"cold:..{secret}", "cold:../secret", "cold:/d/../e"):
            document = {"chunks": [{"file": "a.webm"}], "archive_location": location}
            self.add_json("a.json", {**document, "archived": True})
            self.assertEqual(self.run_cli("restore", "a.json").code, 1)
            self.assertEqual(self.called(f"{location}/a.webm"), [])


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
