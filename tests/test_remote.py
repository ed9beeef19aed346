"""An archive on a remote: what goes there by rclone is proven to be there, and refusals end a run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import unittest
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional, cast

import compression_service as service
from tests.archives import RCLONE, SHORT, AliasCase, RemoteCase, free_port
from tests.base import PROJECT, LibraryCase, decoded_seconds


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


class Spelling(service.Archive):
    """A remote for which `A.webm` and `a.webm` are one name, and which calls a skipped move done."""

    def __init__(self) -> None:
        library = service.Library("recordings")
        run = SimpleNamespace(library=library, staging=service.Staging(library))
        super().__init__("cold:", cast(Any, run))
        self.files: dict[str, bytes] = {}

    def send(self, source: str, part: str) -> None:
        self.files[part.lower()] = Path(source).read_bytes()

    def move(self, part: str, there: str) -> None:
        if there.lower() not in self.files:
            self.files[there.lower()] = self.files.pop(part.lower())

    def remove(self, there: str) -> None:
        del self.files[there.lower()]

    def digest(self, there: str) -> str:
        return hashlib.sha256(self.files[there.lower()]).hexdigest()

    def size_of(self, there: str) -> Optional[int]:
        found = self.files.get(there.lower())
        return None if found is None else len(found)


class ASkippedMove(LibraryCase):
    def test_another_file_of_the_same_size_in_its_place_is_not_taken_for_it(self) -> None:
        remote, digest = Spelling(), hashlib.sha256(SHORT).hexdigest()
        others = SHORT[:-1] + b"x"
        remote.files["cold:a.webm"] = others
        with self.assertRaisesRegex(service.NotProven, "what was moved there"):
            remote.deliver(str(self.add_bytes(SHORT, "A.webm")), "cold:A.webm", digest)
        self.assertEqual(remote.files, {"cold:a.webm": others})


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


class AFullRemote(AliasCase):
    def test_it_ends_the_run_with_exit_5_whatever_else_fails_there(self) -> None:
        for text in ("write: no space left on device", "file too big for remaining disk space"):
            self.settled("a.webm")
            self.faulty(
                "if 'copyto' in args and args[-1].endswith('.part'):\n"
                f"    sys.exit('ERROR : a.webm: {text}')\n"
                "if 'deletefile' in args:\n"
                "    sys.exit('ERROR : object not found')"
            )
            ran = self.archive(code=5)
            self.assertIn("No space left in", ran.err)
            self.assert_here("a.webm")


class AWebDavServer(RemoteCase):
    def setUp(self) -> None:
        super().setUp()
        port = free_port()
        self.serve(
            port, str(RCLONE), "serve", "webdav", str(self.cold), "--addr", f"127.0.0.1:{port}", "--dir-cache-time", "0",
            TYPE="webdav", URL=f"http://127.0.0.1:{port}", VENDOR="other",
        )  # fmt: skip
        self.target = "cold:voice/2025 ü"
        self.there = self.cold / "voice/2025 ü/archive-of-recordings"
        self.configure()

    def test_recordings_go_to_a_remote_and_come_back(self) -> None:
        copies = self.add_old_session()
        self.run_remote()
        self.assert_archived(*copies, cold=str(self.there))
        document = self.read_json("2025-10-27/14-30-45-chunk-1.json")
        self.assertEqual(
            document["archive_location"], "cold:voice/2025 ü/archive-of-recordings/2025-10-27"
        )
        self.run_remote("restore", copies[0].replace(".opus", ".json"))
        for copy in copies:
            self.assertEqual((self.library / copy).read_bytes(), (self.there / copy).read_bytes())

    def test_without_a_network_all_is_kept_here_and_goes_the_next_time(self) -> None:
        copies = self.add_old_session(1)
        url = self.environment["RCLONE_CONFIG_COLD_URL"]
        self.environment["RCLONE_CONFIG_COLD_URL"] = "http://127.0.0.1:9"
        ran = self.run_remote("--json", code=1)
        self.assertIn("does not answer", ran.summary["message"])
        self.assertTrue((self.library / copies[0]).exists())
        self.environment["RCLONE_CONFIG_COLD_URL"] = url
        self.run_remote()
        self.assert_archived(*copies, cold=str(self.there))

    def test_a_server_that_keeps_other_bytes_is_noticed(self) -> None:
        copies = self.add_old_session(1)
        there = self.there / copies[0]
        there.parent.mkdir(parents=True)
        there.write_bytes(b"other")
        ran = self.run_remote("--json", code=1)
        self.assertIn("another file", ran.outcomes[copies[0]]["reason"])
        self.assertTrue((self.library / copies[0]).exists())
        self.assertEqual(there.read_bytes(), b"other")

    def test_a_remote_that_is_the_library_itself_only_gets_a_second_copy(self) -> None:
        copies = self.add_old_session(1)
        self.environment |= {"RCLONE_CONFIG_COLD_TYPE": "local"}
        self.target = f"cold:{self.library}"
        self.configure()
        self.run_remote()
        there = self.library / "archive-of-recordings" / copies[0]
        self.assertGreater(decoded_seconds(there), 2.5)

    def test_an_environment_that_loosens_the_comparison_does_not(self) -> None:
        copies = self.add_old_session(1)
        LibraryCase.configure(self)
        self.run_remote()
        self.configure()
        there = self.there / copies[0]
        there.parent.mkdir(parents=True)
        there.write_bytes(b"x" * (self.library / copies[0]).stat().st_size)
        self.environment |= {"RCLONE_SIZE_ONLY": "true"}
        self.run_remote(code=1)
        self.assertTrue((self.library / copies[0]).exists())

    def test_an_upload_that_was_killed_is_done_again(self) -> None:
        copies = self.add_old_session()
        LibraryCase.configure(self)
        self.run_remote()
        self.configure()
        there = self.there / copies[0]
        there.parent.mkdir(parents=True)
        there.write_bytes((self.library / copies[0]).read_bytes()[:1000])
        self.run_remote()
        self.assert_archived(*copies, cold=str(self.there))

    def test_without_rclone_the_way_to_install_it_is_told(self) -> None:
        copies = self.add_old_session(1)
        self.compress_first((), env=self.environment)
        tools = self.folder / "tools"
        tools.mkdir()
        for name in ("ffmpeg", "sh"):
            (tools / name).symlink_to(str(shutil.which(name)))
        script = f"import compression_service as c; c.TOOL_PATH = \"\"; import sys; sys.exit(c.main(['-c', {str(self.config)!r}]))"
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=PROJECT,
            env={"PATH": str(tools)},
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual(done.returncode, 4, done.stdout + done.stderr)
        self.assertIn("apt-get install rclone", done.stderr)
        self.assertTrue((self.library / copies[0]).exists())


MOTO = os.environ.get("COMPRESSION_TEST_S3")


@unittest.skipUnless(
    MOTO,
    "COMPRESSION_TEST_S3 names no moto_server (pip install 'moto[server]' in an environment of its own)",
)
class AnS3Bucket(RemoteCase):
    def test_recordings_go_to_a_bucket_and_come_back(self) -> None:
        port = free_port()
        self.serve(
            port, str(MOTO), "-p", str(port), TYPE="s3", PROVIDER="Other", ENDPOINT=f"http://127.0.0.1:{port}", REGION="us-east-1",
            ACCESS_KEY_ID="a", SECRET_ACCESS_KEY="b",
        )  # fmt: skip
        self.target = "cold:voices/library"
        self.configure()
        copies = self.add_old_session()
        self.run_remote()
        self.assertFalse((self.library / copies[0]).exists())
        self.run_remote("restore", copies[0])
        for copy in copies:
            self.assertGreater((self.library / copy).stat().st_size, 20_000)
        self.assertEqual(self.run_cli("check").code, 0)


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


if __name__ == "__main__":
    unittest.main()
