"""An archive is another place than the library, belongs to it alone, and holds what was proven to be there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import unittest

from tests.base import RECORDINGS, LibraryCase, Ran
from tests.faults import FaultCase
from tests.test_archive import OLD, RCLONE, ArchiveCase

MARK = ".compression/id"
SHORT = (RECORDINGS / "ch_short_60ms.webm").read_bytes()


class HoldCase(ArchiveCase, FaultCase):
    """A library of small recordings, all of them old enough for the archive."""

    def add_short(self, *paths: str) -> list[str]:
        """Adds recordings that stay as they are ("already small"), and returns their paths."""
        for path in paths:
            self.add_bytes(SHORT, path, OLD)
        return list(paths)

    def archive(self, *words: str, code: int = 0) -> Ran:
        """Runs once; what is to be archived is known to be kept before."""
        ran = self.run_cli("-j1", *words)
        self.assertEqual(ran.code, code, ran.out + ran.err)
        return ran

    def assert_here(self, *paths: str) -> None:
        for path in paths:
            self.assertTrue((self.library / path).exists(), f"{path} is not here any more")

    def settled(self, *paths: str) -> list[str]:
        """Adds recordings and lets a run without an archive look at them."""
        added = self.add_short(*paths)
        LibraryCase.configure(self, min_saving_percent=50)
        self.assertEqual(self.run_cli("-j1").code, 0)
        self.configure(min_saving_percent=50)
        return added


@unittest.skipUnless(RCLONE or os.environ.get("CI"), "rclone is not installed")
class AliasCase(HoldCase):
    """A remote that is a folder, and an rclone that plays faults: `body` has `args` and `real`."""

    def setUp(self) -> None:
        super().setUp()
        self.there = self.folder / "remote/archive-of-recordings"
        self.there.mkdir(parents=True)
        self.target = "cold:"
        self.configure(min_saving_percent=50)
        self.calls = self.folder / "calls"
        self.faulty("")

    def faulty(self, body: str) -> None:
        note = f"open({str(self.calls)!r}, 'a').write(' '.join(args) + '\\n')"
        passed_on = f"os.execv({RCLONE!r}, ['rclone', *args])"
        self.environment = {
            **self.stand_in(f"{note}\nreal = {RCLONE!r}\n{body}\n{passed_on}", "rclone"),
            "RCLONE_CONFIG": "/dev/null",
            "RCLONE_CONFIG_COLD_TYPE": "alias",
            "RCLONE_CONFIG_COLD_REMOTE": str(self.folder / "remote"),
        }

    def run_cli(self, *words: str, **options: object) -> Ran:
        return super().run_cli(*words, env=self.environment)

    def called(self, *words: str) -> list[str]:
        """The calls of rclone that hold all of these words."""
        calls = self.calls.read_text().splitlines() if self.calls.exists() else []
        return [call for call in calls if all(word in call.split() for word in words)]


class TheMark(HoldCase):
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


class NotTheLibrary(AliasCase):
    def refused(self, *words: str) -> None:
        before = self.snapshot()
        ran = self.archive(code=1)
        for word in words:
            self.assertIn(word, ran.err)
        self.assertEqual(self.snapshot(), before)

    def test_a_remote_that_is_the_library_is_refused(self) -> None:
        self.settled("d/a.webm")
        self.there.rmdir()
        self.there.symlink_to(self.library)
        self.environment["RCLONE_COPY_LINKS"] = "true"
        self.refused("is a library")

    def test_a_remote_of_which_one_folder_is_the_librarys_is_refused(self) -> None:
        self.settled("d/a.webm")
        (self.there / "d").symlink_to(self.library / "d")
        self.environment["RCLONE_COPY_LINKS"] = "true"
        self.refused("is a folder of a library by another path")

    def test_a_bind_mount_of_the_library_is_refused(self) -> None:
        self.target = str(self.folder / "cold")
        self.settled("d/a.webm")
        if not self.mount(self.cold, "--bind", str(self.library)):
            self.cannot("a bind mount")
        self.refused("is a library")

    def test_a_bind_mount_of_one_folder_is_refused(self) -> None:
        self.target = str(self.folder / "cold")
        self.settled("d/a.webm")
        (self.cold / "d").mkdir()
        if not self.mount(self.cold / "d", "--bind", str(self.library / "d")):
            self.cannot("a bind mount")
        self.refused("is a folder of a library by another path")

    def test_a_library_in_the_archive_is_not_written_into(self) -> None:
        self.target = str(self.folder / "cold")
        self.settled("d/a.webm")
        (self.cold / "d/.compression").mkdir(parents=True)
        self.refused("is a folder of a library by another path")

    def test_an_archive_inside_of_the_library_by_another_path_is_never_archived(self) -> None:
        self.target = str(self.folder / "cold")
        self.settled("d/a.webm")
        inside = self.library / "inside"
        inside.mkdir()
        if not self.mount(self.folder / "cold", "--bind", str(inside)):
            self.cannot("a bind mount")
        self.cold.mkdir()
        for _ in range(3):
            self.archive()
        self.assertEqual((inside / "archive-of-recordings/d/a.webm").read_bytes(), SHORT)
        self.assertEqual([str(path) for path in self.library.rglob("a.webm")], [f"{inside}/archive-of-recordings/d/a.webm"])  # fmt: skip

    def test_a_hard_link_is_no_second_copy(self) -> None:
        self.target = str(self.folder / "cold")
        self.settled("a.webm")
        os.link(self.library / "a.webm", self.cold / "a.webm")
        ran = self.archive("--json", code=1)
        self.assertIn("is the very file that is here", ran.outcomes["a.webm"]["reason"])
        self.assert_here("a.webm")


class UnderANameOfItsOwn(AliasCase):
    def test_nothing_is_uploaded_to_a_place_and_nothing_moved_over_another(self) -> None:
        self.settled("d/a.webm", "d/b.webm")
        self.archive()
        self.assert_archived("d/a.webm", "d/b.webm", cold=str(self.there))
        uploads = [call.split()[-1] for call in self.called("copyto")]
        self.assertEqual(len(uploads), 3)  # and the mark
        for upload in uploads:
            self.assertRegex(upload, r"/\.compression-[0-9a-f]{8}-\d+\.part\.[^/]*\.part$")
        self.assertEqual(self.called("moveto"), self.called("moveto", "--ignore-existing"))

    def test_the_read_back_takes_no_space_in_the_library(self) -> None:
        self.settled("a.webm")
        self.archive()
        into_library = [
            call for call in self.called("copyto") if str(self.library) in call.split()[-1]
        ]
        self.assertEqual(into_library, [])
        self.assertEqual([call for call in self.called("copyto") if "--timeout" in call], [])

    def test_a_bad_upload_is_not_taken_for_anothers_file(self) -> None:
        self.settled("a.webm")
        flip = (
            "import subprocess\n"
            "if 'copyto' in args and 'a.webm' in args[-2]:\n"
            "    subprocess.run([real, *args])\n"
            f"    part = args[-1].replace('cold:', {str(self.folder / 'remote')!r} + '/')\n"
            "    data = open(part, 'rb').read()\n"
            "    open(part, 'wb').write(data[:-1] + bytes([data[-1] ^ 1]))\n"
            "    sys.exit(0)"
        )
        self.faulty(flip)
        ran = self.archive("--json", code=1)
        self.assertNotIn("another file", ran.out)
        self.assertEqual([path.name for path in self.there.rglob("*.*")], [".compression"])
        self.assert_here("a.webm")
        self.faulty("")
        self.archive()
        self.assert_archived("a.webm", cold=str(self.there))

    def test_what_killed_runs_left_there_is_removed(self) -> None:
        self.settled("d/a.webm")
        left = [".compression-0123abcd-7.part.a.webm.part", ".compression-0123abcd-8.part"]
        for folder in (self.there, self.there / "d", self.there / ".compression"):
            folder.mkdir(exist_ok=True)
            for name in left:
                (folder / name).write_bytes(b"half")
        (self.there / "d/.compression-notes").write_bytes(b"of its owner")
        self.archive()
        hidden = [path.name for path in self.there.rglob(".*")]
        self.assertEqual(sorted(hidden), [".compression", ".compression-notes"])
        self.settled("d/b.webm")
        (self.there / ".compression" / left[0]).write_bytes(
            b"killed once the mark was in its place"
        )
        self.archive()
        self.assertEqual([path.name for path in (self.there / ".compression").iterdir()], ["id"])

    def test_names_that_rclone_spells_otherwise_go_there_and_are_found_again(self) -> None:
        names = self.settled(
            "d/line\nbreak.webm", "d/symbol␊.webm", "d/[x]{y}*?.webm", "d/é ü.webm"
        )
        self.archive()
        self.assert_archived(*names, cold=str(self.there))
        self.assertEqual(self.run_cli("check").code, 0)
        (self.there / names[0]).write_bytes(b"")
        ran = self.run_cli("check")
        self.assertEqual(ran.code, 1)
        self.assertIn("line\\nbreak", ran.err)

    @unittest.skipUnless(sys.platform == "linux", "only Linux ends children with their parent")
    def test_a_tool_ends_with_a_run_that_is_killed(self) -> None:
        self.settled("a.webm")
        sign = self.folder / "at-work"
        self.faulty(
            f"if 'copyto' in args:\n    open({str(sign)!r}, 'w').close()\n    time.sleep(60)"
        )
        run = self.start(env=self.environment)
        self.wait_for(sign)
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        self.assert_nothing_runs()
        self.assert_here("a.webm")


class Refusals(AliasCase):
    def test_a_remote_that_takes_nothing_ends_the_run_with_one_sentence(self) -> None:
        paths = self.settled(*(f"d/{number}.webm" for number in range(4)))
        self.faulty("if 'copyto' in args:\n    sys.exit('403 read-only')")
        for _ in range(4):  # it never counts against a recording
            ran = self.archive("--json", code=1)
            self.assertIn("takes nothing", ran.err)
            self.assertEqual((ran.outcomes, len(ran.err.splitlines())), ({}, 1))
        self.assertEqual(len(self.called("copyto")), 4)
        self.assertIn("takes nothing", self.run_cli("doctor").out)
        self.faulty("")
        self.archive()
        self.assert_archived(*paths, cold=str(self.there))

    def test_one_that_takes_nothing_any_more_ends_it_too(self) -> None:
        paths = self.settled(*(f"d/{number}.webm" for number in range(2)))
        self.archive("--limit", "1")
        self.faulty("if 'copyto' in args:\n    sys.exit('quota')")
        for _ in range(4):  # more often than a failure that counts is tried
            self.assertEqual(self.archive("--json", code=1).outcomes, {})
        self.faulty("")
        self.archive()
        self.assert_archived(*paths, cold=str(self.there))

    def test_a_name_that_a_remote_refuses_is_remembered_and_the_rest_goes_on(self) -> None:
        self.settled("d/bad.webm", "e/good.webm")
        self.faulty("if 'moveto' in args and 'bad' in args[-1]:\n    sys.exit('400 bad name')")
        codes = [self.run_cli("-j1").code for _ in range(5)]
        self.assertEqual(codes, [1, 1, 1, 0, 0])
        self.assert_here("d/bad.webm")
        self.assert_archived("e/good.webm", cold=str(self.there))
        failed = json.loads(self.run_cli("stats", "--json").out)
        self.assertIn("d/bad", json.dumps(failed))

    def test_a_name_that_a_disk_refuses_is_remembered_and_copied_nowhere(self) -> None:
        self.target = str(self.folder / "cold")
        self.settled("14:30:45.webm", "good.webm")
        self.drive(
            "real = program.open_to_write\n"
            "def picky(path):\n"
            "    if ':' in path:\n"
            "        raise OSError(22, 'Invalid argument', path)\n"
            "    return real(path)\n"
            "program.open_to_write = picky"
        )
        codes = [self.run_cli("-j1").code for _ in range(5)]
        self.assertEqual(codes, [1, 1, 1, 0, 0])
        self.assert_here("14:30:45.webm")
        self.assert_archived("good.webm")

    def test_what_was_proven_before_an_archive_was_full_is_finished(self) -> None:
        self.target = str(self.folder / "cold")
        paths = self.settled(*(f"d/{number}.webm" for number in range(4)))
        self.drive(
            "real, count = program.copy_file, []\n"
            "def small(source, *others):\n"
            "    count.append(source)\n"
            "    if len(count) > 3:\n"
            "        raise OSError(28, 'No space left on device')\n"
            "    return real(source, *others)\n"
            "program.copy_file = small"
        )
        ran = self.archive("--json", code=5)
        done = [path for path, outcome in ran.outcomes.items() if outcome["action"] == "archived"]
        self.assertEqual(len(done), 2)  # and the mark
        self.assert_archived(*done)
        self.assert_here(*(set(paths) - set(done)))

    def test_a_folder_without_counts_of_names_is_not_full(self) -> None:
        self.target = str(self.folder / "cold")
        self.settled("a.webm")
        self.drive(
            "import os\nreal = os.statvfs\n"
            "def mounted(path):\n"
            "    found = list(real(path))\n"
            "    found[5:8] = [10**9, 0, 0]\n"
            "    return os.statvfs_result(found)\n"
            "os.statvfs = mounted"
        )
        self.archive()
        self.assert_archived("a.webm")

    def test_a_disk_without_links_takes_files(self) -> None:
        """`rclone mount` says "Input/output error" of a link, and has no rename without replacing."""
        self.target = str(self.folder / "cold")
        self.settled("a.webm")
        self.drive(
            "import os\n"
            "def link(*_):\n"
            "    raise OSError(5, 'Input/output error')\n"
            "os.link = link\n"
            "program.rename_with = lambda *_: False"
        )
        self.archive()
        self.assert_archived("a.webm")


class TheSource(HoldCase):
    def test_a_source_that_an_attribute_cache_hides_the_change_of_is_kept(self) -> None:
        (path,) = self.settled("a.webm")
        other = SHORT[:-1] + b"x"
        self.drive(
            "program.is_same = lambda path, work: True\n"
            "real = program.Committer.remove_source\n"
            "def after_a_change(self, work):\n"
            f"    with open({str(self.library / path)!r}, 'r+b') as file:\n"
            f"        file.write({other!r})\n"
            "    return real(self, work)\n"
            "program.Committer.remove_source = after_a_change"
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


class Check(HoldCase):
    def archived(self) -> str:
        self.settled("d/a.webm", "d/b.webm")
        self.add_json("d/a.json", {"id": "A", "chunks": [{"file": "a.webm"}]})
        self.archive()
        self.assertEqual(self.run_cli("check").code, 0)
        return "d/a.webm"

    def wrong(self, *words: str) -> None:
        ran = self.run_cli("check")
        self.assertEqual(ran.code, 1, ran.out)
        for word in words:
            self.assertIn(word, ran.err)

    def test_a_file_of_another_size_is_named(self) -> None:
        path = self.cold / self.archived()
        path.write_bytes(SHORT[:-1])
        self.wrong("d/a.webm has 1485 bytes in the archive, 1486 are on record")

    def test_a_file_that_became_a_link_or_a_folder_is_not_there(self) -> None:
        path = self.cold / self.archived()
        path.rename(path.with_suffix(".moved"))
        path.symlink_to(path.with_suffix(".moved"))
        self.wrong("d/a is not in the archive any more")
        path.unlink()
        path.mkdir()
        self.wrong("d/a is not in the archive any more")

    def test_an_archived_recording_that_its_owner_deleted_is_forgotten(self) -> None:
        self.archived()
        (self.cold / "d/b.webm").unlink()
        self.assertEqual(self.run_cli("check").code, 0)
        (self.cold / "d/a.webm").unlink()
        self.wrong("d/a is not in the archive any more")
        (self.library / "d/a.json").unlink()
        self.assertEqual(self.run_cli("check").code, 0)

    def test_one_that_the_index_has_still_is_not_forgotten(self) -> None:
        self.archived()
        self.add_json("index.json", {"recordings": [{"id": "A", "size": 0, "archived": True}]})
        (self.library / "d/a.json").unlink()
        (self.cold / "d/a.webm").unlink()
        self.wrong("d/a is not in the archive any more")


if __name__ == "__main__":
    unittest.main()
