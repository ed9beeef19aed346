"""What is written is whole, where it belongs, and as private as what it replaces."""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import compression_service as service

GIVEN, OTHERS = 12_345, 23_456  # users that no machine has


class FileCase(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        (self.folder / service.OWN_FOLDER).mkdir()
        self.library = service.Library(folder.name)
        self.staging = self.begun(service.Staging(self.library))

    def begun(self, staging: service.Staging) -> service.Staging:
        self.addCleanup(staging.__exit__)
        return staging.__enter__()

    def make(self, name: str, data: bytes = b"sound", mode: int = 0o644) -> str:
        path = self.folder / name
        path.write_bytes(data)
        path.chmod(mode)
        return str(path)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.is_file())


def unsupported(*_: object) -> bool:
    return False


class TestPlacing(FileCase):
    def test_a_file_never_takes_the_name_of_another(self) -> None:
        final = self.make("x.opus", b"a stranger's")
        for links in (True, False):
            with self.subTest(links=links):
                staged = self.staging.beside(final)
                no_links = OSError(errno.EPERM, "no links here")
                with mock.patch("os.link", side_effect=None if links else no_links) as link:
                    if links:
                        link.side_effect = FileExistsError(errno.EEXIST, "exists")
                    with self.assertRaises(FileExistsError):
                        service.place(staged, final)
        self.assertEqual(Path(final).read_bytes(), b"a stranger's")

    def test_without_links_and_flags_a_rename_serves(self) -> None:
        staged = self.staging.beside(str(self.folder / "x.opus"))
        no_links = OSError(errno.EPERM, "no links here")
        no_rename = mock.patch.object(service, "rename_with", unsupported)
        with mock.patch("os.link", side_effect=no_links), no_rename:
            service.place(staged, str(self.folder / "x.opus"))
        self.assertEqual(self.names(), ["x.opus"])

    def test_an_exchange_tells_where_the_displaced_file_is(self) -> None:
        final = self.make("x.json", b"old")
        staged = self.staging.write(b"new", final)
        displaced = service.exchange(staged, final)
        self.assertEqual(Path(final).read_bytes(), b"new")
        self.assertEqual(Path(displaced).read_bytes(), b"old")
        with mock.patch.object(service, "rename_with", unsupported):
            self.assertEqual(service.exchange(displaced, final), displaced)
            self.assertEqual(Path(displaced).read_bytes(), b"new")
            no_links = mock.patch("os.link", side_effect=OSError(errno.EPERM, "no links here"))
            with no_links:
                self.assertEqual(service.exchange(displaced, final), "")
        self.assertEqual(Path(final).read_bytes(), b"new")
        self.assertEqual(self.names(), ["x.json"])


class TestStaging(FileCase):
    def test_what_is_unfinished_is_private_and_gone_at_the_end(self) -> None:
        staged = self.staging.beside(str(self.folder / "x.opus"))
        levels = self.staging.levels()
        self.assertEqual(stat.S_IMODE(os.stat(staged).st_mode), 0o600)
        self.assertEqual(os.path.dirname(levels), str(self.folder / service.OWN_FOLDER))
        self.assertTrue(service.STAGED.fullmatch(os.path.basename(staged)))
        self.staging.__exit__()
        self.assertFalse(os.path.exists(staged) or os.path.exists(levels))

    def test_what_was_never_staged_is_never_discarded(self) -> None:
        path = self.make("x.opus")
        self.staging.discard(path)
        self.assertTrue(os.path.exists(path))

    def test_leftovers_of_our_own_folder_go_with_the_next_run(self) -> None:
        left = self.folder / service.OWN_FOLDER / service.STAGED_NAME.format("0" * 8, 1)
        left.touch()
        (self.folder / service.OWN_FOLDER / "history.jsonl").touch()
        self.begun(service.Staging(self.library))
        names = os.listdir(self.folder / service.OWN_FOLDER)
        self.assertEqual(names, ["history.jsonl"])


class TestAttributes(FileCase):
    def give(self, source: str, times: bool = True) -> os.stat_result:
        staged = self.staging.beside(source)
        with open(source, "rb") as old, open(staged, "rb") as new:
            service.give_attributes(old.fileno(), new.fileno(), times)
        return os.stat(staged)

    def test_mode_and_time_are_those_of_the_source(self) -> None:
        source = self.make("x.webm", mode=0o640)
        os.utime(source, ns=(1, 1_600_000_000_123_456_789))
        given = self.give(source)
        self.assertEqual(stat.S_IMODE(given.st_mode), 0o640)
        self.assertEqual(given.st_mtime_ns, os.stat(source).st_mtime_ns)

    @unittest.skipUnless(os.geteuid() == 0, "gives files away")
    def test_owner_and_group_are_those_of_the_source(self) -> None:
        source = self.make("x.webm", mode=0o600)
        os.chown(source, GIVEN, OTHERS)
        given = self.give(source)
        self.assertEqual((given.st_uid, given.st_gid), (GIVEN, OTHERS))

    def refused_owner(self, mode: int, times: bool) -> os.stat_result:
        """What becomes of another user's file where its owner cannot be given."""
        source = self.make("x.webm", mode=mode)
        os.chown(source, GIVEN, OTHERS)
        chown = os.fchown

        def group_only(descriptor: int, uid: int, gid: int) -> None:
            if uid != -1:
                raise PermissionError(errno.EPERM, "not root")
            chown(descriptor, uid, gid)

        with mock.patch("os.fchown", group_only):
            return self.give(source, times)

    @unittest.skipUnless(os.geteuid() == 0, "gives files away")
    def test_without_its_owner_a_copy_is_made_if_he_can_still_read_it(self) -> None:
        given = self.refused_owner(0o644, times=True)
        self.assertEqual((stat.S_IMODE(given.st_mode), given.st_gid), (0o644, OTHERS))

    @unittest.skipUnless(os.geteuid() == 0, "gives files away")
    def test_without_its_owner_nothing_is_made_that_he_cannot_use(self) -> None:
        for mode, times in ((0o600, True), (0o640, True), (0o644, False)):
            with self.subTest(mode=oct(mode)), self.assertRaises(service.Refusal) as caught:
                self.refused_owner(mode, times)
            self.assertIs(caught.exception.reason, service.Reason.OWNER)
            self.assertIn(str(GIVEN), str(caught.exception))

    @unittest.skipUnless(sys.platform == "linux", "Linux keeps them so")
    def test_the_access_list_is_carried_over_and_an_inherited_one_taken_off(self) -> None:
        entries = ((1, 6, -1), (2, 4, GIVEN), (4, 4, -1), (16, 4, -1), (32, 0, -1))
        packed = [struct.pack("<HHI", tag, bits, id_ & 0xFFFFFFFF) for tag, bits, id_ in entries]
        acl = struct.pack("<I", 2) + b"".join(packed)
        source = self.make("x.webm", mode=0o640)
        try:
            os.setxattr(source, service.ACCESS_LIST, acl)
        except OSError:
            self.skipTest("this file system has no access lists")
        plain = self.make("y.webm", mode=0o640)
        for path, wanted in ((source, acl), (plain, b"")):
            staged = self.staging.beside(path)
            os.setxattr(staged, service.ACCESS_LIST, acl)
            with open(path, "rb") as old, open(staged, "rb") as new:
                service.give_attributes(old.fileno(), new.fileno(), True)
                self.assertEqual(service.access_list(new.fileno()), wanted)


class TestReading(FileCase):
    def test_neither_link_nor_pipe_nor_folder_is_a_regular_file(self) -> None:
        os.symlink(self.make("real"), self.folder / "link")
        os.mkfifo(self.folder / "pipe")
        (self.folder / "folder").mkdir()
        for name in ("link", "pipe", "folder"):
            with self.subTest(name), self.assertRaises(OSError):
                service.open_regular(str(self.folder / name))


class TestRewrite(FileCase):
    """Another program's write between our read and ours is never lost."""

    def test_a_document_is_replaced_with_its_mode_and_backed_up_once(self) -> None:
        path = self.make("x.json", b"first", mode=0o640)
        for data in (b"second", b"third"):

            def edit(_: bytes, new: bytes = data) -> bytes:
                return new

            service.rewrite(path, edit, self.staging, backup=True)
        self.assertEqual(Path(path).read_bytes(), b"third")
        self.assertEqual(Path(path + ".bak").read_bytes(), b"first")
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o640)
        self.assertEqual(self.names(), ["x.json", "x.json.bak"])

    def test_what_is_true_keeps_its_bytes_and_its_mtime(self) -> None:
        path = self.make("x.json")
        before = os.stat(path)
        service.rewrite(path, lambda _: None, self.staging, backup=True)
        self.assertEqual(os.stat(path), before)

    def test_a_write_before_the_exchange_is_edited_instead(self) -> None:
        self.check_race("exchange", in_place=True)
        self.check_race("exchange", in_place=False)

    def test_without_exchange_a_write_before_the_rename_is_edited_instead(self) -> None:
        with mock.patch.object(service, "rename_with", unsupported):
            self.check_race("exchange", in_place=True)
            self.check_race("exchange", in_place=False)

    def check_race(self, name: str, in_place: bool) -> None:
        path = self.make("x.json", b"a")
        real, races = getattr(service, name), iter([True])

        def raced(staged: str, final: str) -> str:
            if next(races, False):  # the server is faster, once
                if in_place:
                    Path(final).write_bytes(b"a server")
                else:
                    os.rename(self.make("new", b"a server"), final)
            result: str = real(staged, final)
            return result

        def edit(data: bytes) -> bytes:
            return data + b"+ours"

        with mock.patch.object(service, name, raced):
            service.rewrite(path, edit, self.staging, backup=False)
        self.assertEqual(Path(path).read_bytes(), b"a server+ours")
        self.assertEqual(self.names(), ["x.json"])

    def test_a_full_disk_leaves_the_document_as_it_was(self) -> None:
        path = self.make("x.json", b"a")
        full = OSError(errno.ENOSPC, "full")
        with mock.patch.object(service, "flush", side_effect=full), self.assertRaises(OSError):
            service.rewrite(path, lambda _: b"b", self.staging, backup=False)
        self.staging.__exit__()
        self.assertEqual(Path(path).read_bytes(), b"a")
        self.assertEqual(self.names(), ["x.json"])


if __name__ == "__main__":
    unittest.main()
