"""What people reported of machines: whose fault it is, known before the night, and said alike by run, dry run and doctor."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import time
import unittest
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import standins
from .base import LONG_AGO, PROJECT, SCRIPT, LibraryCase, Ran, sidecar

NOBODY = pwd.getpwnam("nobody")
AS_ROOT = unittest.skipUnless(os.geteuid() == 0, "mounts, owners and capabilities need root")


class SituationCase(LibraryCase):
    def run_under(self, words: Sequence[str], *arguments: str) -> Ran:
        """Run the program by way of another one."""
        done = subprocess.run(
            [*words, *self.command(*arguments)],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            cwd="/",
            timeout=600,
            text=True,
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def assert_alike(self, code: int, *said: str, under: Sequence[str] = ()) -> None:
        """Dry run, doctor and run end with the same code, and say the same; nothing was changed."""
        before = self.files()
        for command in ("--dry-run", "doctor", "run"):
            ran = self.run_under(under, command)
            self.assertEqual(ran.code, code, (command, ran))
            self.assertNotIn("Traceback", ran.out + ran.err)
            for word in said:
                self.assertIn(word, ran.out + ran.err, command)
        self.assertEqual(self.files(), before)

    def outcomes_on_record(self) -> list[str]:
        lines = map(json.loads, self.history().read_text().splitlines())
        return [line["action"] for line in lines if line["type"] == "recording"]

    def mount(self, target: Path, *options: str) -> None:
        target.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", *options, str(target)], check=True)
        self.addCleanup(subprocess.run, ["umount", "-lq", str(target)], check=False)


@AS_ROOT
class Owners(SituationCase):
    """Files of somebody else, who must be able to use what is made of them."""

    CANNOT_GIVE = ("setpriv", "--bounding-set=-chown", "--inh-caps=-chown")

    def setUp(self) -> None:
        super().setUp()
        self.add_session()
        self.files_of_nobody = [path for path in self.library.rglob("*") if path.name[:2] == "14"]

    def give(self, mode: int) -> None:
        for path in self.files_of_nobody:
            os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
            path.chmod(mode)

    def test_where_the_owner_cannot_be_given_and_could_not_read_nothing_is_encoded(self) -> None:
        self.give(0o600)
        self.assert_alike(1, f"user {NOBODY.pw_uid}", under=self.CANNOT_GIVE)
        said = [line["past"].get("attempts", 0) for line in self.records()]
        self.assertEqual(said, [0, 0], "it must not count against the recordings")

    def records(self) -> list[dict[str, Any]]:
        lines = map(json.loads, self.history().read_text().splitlines())
        return [line for line in lines if line["type"] == "recording"]

    def test_a_sidecar_that_its_owner_could_not_write_any_more_keeps_its_recording(self) -> None:
        self.give(0o604)
        self.assert_alike(1, f"user {NOBODY.pw_uid}", under=self.CANNOT_GIVE)

    def test_what_this_user_cannot_read_is_no_fault_of_ffmpeg_and_its_path_is_told_once(
        self,
    ) -> None:
        for path in self.library.rglob("*.webm"):
            path.chmod(0)
        capabilities = "-dac_override,-dac_read_search"
        bound = ("setpriv", f"--bounding-set={capabilities}", f"--inh-caps={capabilities}")
        self.assert_alike(1, "Permission denied", under=bound)
        ran = self.run_under(bound, "--dry-run")
        self.assertIn(
            "cannot be read or written: Permission denied  (the original is kept)", ran.out
        )
        self.assertNotIn("ffmpeg", ran.out + ran.err)

    def test_what_everybody_may_read_and_write_is_made(self) -> None:
        self.give(0o666)
        (self.library / "index.json").chmod(0o666)
        ran = self.run_under(self.CANNOT_GIVE, "run")
        self.assertEqual(ran.code, 0, ran)
        copy = self.assert_compressed("2025-10-27/14-30-45-chunk-1.webm")
        self.assertEqual(copy.stat().st_mode & 0o777, 0o666)

    def test_root_gives_a_copy_to_its_owner(self) -> None:
        self.give(0o600)
        self.assertEqual(self.run_cli().code, 0)
        copy = self.assert_compressed("2025-10-27/14-30-45-chunk-1.webm").stat()
        self.assertEqual((copy.st_uid, copy.st_mode & 0o777), (NOBODY.pw_uid, 0o600))


@AS_ROOT
class Disks(SituationCase):
    """Mounts at any depth, and disks that are full, read-only or gone."""

    def setUp(self) -> None:
        super().setUp()
        self.mount(self.library, "-t", "tmpfs", "-o", "size=24m,nr_inodes=400", "none")
        self.add_session()

    def test_a_read_only_disk_is_one_sentence(self) -> None:
        subprocess.run(["mount", "-o", "remount,ro", str(self.library)], check=True)
        self.assert_alike(1, "Read-only file system", str(self.library))

    def test_a_disk_without_a_name_left_is_full(self) -> None:
        made = []
        try:
            for number in range(400):
                made.append(self.library / f"n{number}")
                made[-1].touch()
        except OSError:
            made.pop()
        self.assert_alike(5, "is full", str(self.library))
        for path in made:
            path.unlink()
        self.assertEqual(self.run_cli().code, 0)

    def test_a_disk_that_goes_in_mid_run_ends_it_and_counts_against_nothing(self) -> None:
        for number in range(40):
            self.add("chunk_1", f"many/{number}.webm")
        with subprocess.Popen(
            self.command("run"),
            cwd="/",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            while not self.history().exists():
                time.sleep(0.01)
            time.sleep(0.5)
            subprocess.run(["umount", "-l", str(self.library)], check=True)
            said, _ = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 1, said)
        self.assertIn(f"The disk of {self.library} is gone", said)
        self.assertEqual(os.listdir(self.library), [], "nothing may be made in the mount point")
        again = self.run_cli()
        self.assertEqual(again.code, 2, again)
        self.assertIn("Is its disk mounted?", again.err)

    def test_folders_on_other_disks_need_no_rule_of_their_own(self) -> None:
        elsewhere = self.folder / "elsewhere"
        elsewhere.mkdir()
        self.mount(self.library / "bound", "--bind", str(elsewhere))
        self.mount(self.library / "deep/down", "-t", "tmpfs", "none")
        self.add("chunk_0", "bound/a.webm")
        self.add("chunk_1", "deep/down/b.webm")
        self.add_json("deep/down/b.json", sidecar("B", ["b.webm"]))
        self.assertEqual(self.run_cli().code, 0)
        self.assert_compressed("bound/a.webm")
        self.assert_compressed("deep/down/b.webm")
        self.assert_sidecars_true()
        self.assert_no_leftovers()

    def test_a_union_file_system_needs_none_either(self) -> None:
        layers = self.folder / "layers"
        self.mount(layers, "-t", "tmpfs", "none")
        for name in ("lower/2025-11-01", "upper", "work"):
            (layers / name).mkdir(parents=True)
        shutil.copy2(self.add("chunk_0", "a.webm"), layers / "lower/2025-11-01/b.webm")
        union = self.library / "union"
        options = f"lowerdir={layers}/lower,upperdir={layers}/upper,workdir={layers}/work"
        self.mount(union, "-t", "overlay", "-o", options, "overlay")
        self.assertEqual(self.run_cli().code, 0)
        self.assert_compressed("union/2025-11-01/b.webm")
        self.assert_no_leftovers()

    def test_a_history_that_cannot_be_appended_to_is_known_before_anything_is_encoded(self) -> None:
        subprocess.run(["umount", "-l", str(self.library)], check=True)
        self.add_session()
        self.assertEqual(self.run_cli("--limit", "1").code, 0)
        subprocess.run(["chattr", "+i", str(self.history())], check=True)
        self.addCleanup(subprocess.run, ["chattr", "-i", str(self.history())], check=False)
        self.assert_alike(1, "cannot be written to", "history.jsonl")

    def test_a_log_that_cannot_be_written_is_told_and_stops_nothing(self) -> None:
        self.mount(self.folder / "logs", "-t", "tmpfs", "-o", "size=4k", "none")
        (self.folder / "logs/full").write_bytes(bytes(4096))
        self.assertEqual(self.run_cli("doctor").code, 5)
        ran = self.run_cli()
        self.assertEqual(ran.code, 0)
        self.assertIn("cannot be written: No space left on device. The work goes on", ran.err)
        self.assert_compressed("2025-10-27/14-30-45-chunk-1.webm")


@AS_ROOT
class Archives(SituationCase):
    def test_one_that_is_read_only_is_one_sentence(self) -> None:
        self.add("chunk_0", "a.webm")
        self.assertEqual(self.run_cli().code, 0)
        cold = self.folder / "cold"
        self.mount(cold, "-t", "tmpfs", "none")
        (cold / f"archive-of-{self.library.name}").mkdir()
        self.configure(tiers=[{"after_days": 365, "archive": str(cold)}])
        os.utime(self.library / "a.opus", (1.5e9, 1.5e9))
        history = self.history()
        history.write_text(
            re.sub(r'"mtime_ns": \d+', '"mtime_ns": 1500000000000000000', history.read_text())
        )
        self.mount(cold, "-o", "remount,ro")
        self.assert_alike(1, "cannot be written to: Read-only file system")


class FileSystems(SituationCase):
    def test_neither_links_nor_an_exchange_of_names_are_needed(self) -> None:
        """As on exFAT, vfat and many FUSE file systems."""
        self.add_session()
        self.add("chunk_0", "2025-10-27/kept.webm")
        inject = ("-e", "inject=renameat2:error=EINVAL", "-e", "inject=link,linkat:error=EPERM")
        ran = self.run_under(["strace", "-f", "-o", "/dev/null", *inject], "run")
        self.assertEqual(ran.code, 0, ran)
        self.assert_compressed("2025-10-27/14-30-45-chunk-1.webm")
        self.assert_sidecars_true()
        self.assert_no_leftovers()

    @AS_ROOT
    @unittest.skipUnless(shutil.which("mount.exfat-fuse"), "needs exfat-fuse and exfatprogs")
    def test_on_exfat_through_fuse_it_works_and_a_kill_leaves_nothing_behind(self) -> None:
        image = self.folder / "image"
        with open(image, "wb") as file:
            file.truncate(64 << 20)
        subprocess.run(["mkfs.exfat", str(image)], check=True, stdout=subprocess.DEVNULL)
        loop = ["losetup", "--find", "--show", str(image)]
        device = subprocess.run(loop, check=True, capture_output=True, text=True).stdout.strip()
        self.addCleanup(subprocess.run, ["losetup", "--detach", device], check=False)
        words = ["mount.exfat-fuse", "-o", "nonempty", device, str(self.library)]
        subprocess.run(words, check=True, capture_output=True)
        self.addCleanup(subprocess.run, ["umount", "-lq", str(self.library)], check=False)
        self.add_session(chunks=6)
        with subprocess.Popen(self.command("run"), cwd="/", stdout=subprocess.DEVNULL) as process:
            while not self.history().exists():
                time.sleep(0.01)
            time.sleep(0.3)
            process.kill()
        self.assertEqual(self.run_cli("--dry-run").code, 0)
        self.assertEqual(self.run_cli("doctor").code, 0)
        self.assertEqual(self.run_cli().code, 0)
        self.assert_compressed("2025-10-27/14-30-45-chunk-6.webm")
        self.assert_sidecars_true()
        self.assert_no_leftovers()
        self.assertEqual(self.run_cli("check").code, 0)

    def test_where_nothing_can_be_locked_nothing_is_done(self) -> None:
        before = self.add("chunk_0", "a.webm").read_bytes()
        ran = self.run_under(
            ["strace", "-f", "-o", "/dev/null", "-e", "inject=flock:error=ENOLCK"], "run"
        )
        self.assertEqual(ran.code, 1, ran)
        self.assertIn("No locks available", ran.err)
        self.assertEqual((self.library / "a.webm").read_bytes(), before)

    def test_a_lock_of_the_users_own_on_the_library_disturbs_nobody(self) -> None:
        self.add("chunk_0", "a.webm")
        self.assertEqual(self.run_under(["flock", str(self.library)], "run").code, 0)
        self.assert_compressed("a.webm")


class Together(SituationCase):
    def test_two_libraries_under_one_config_and_log_never_mix(self) -> None:
        """The same names in both, one restored: nothing of the other may come in its place."""
        self.configure(delete_originals=False)
        other = self.folder / "other"
        self.add("chunk_0", "a.webm")
        shutil.copytree(self.library, other)
        shutil.copyfile(PROJECT / "tests/recordings/chunk_1.webm", other / "a.webm")
        os.utime(other / "a.webm", (LONG_AGO, LONG_AGO))
        libraries = (str(self.library), str(other))
        for library in libraries:
            self.assertEqual(self.run_cli("run", "--recordings", library).code, 0)
        mine = (self.library / "a.webm").read_bytes()
        self.assertNotEqual(*((Path(library) / "a.opus").read_bytes() for library in libraries))
        for library in libraries:
            self.assertEqual(self.run_cli("check", "--recordings", library).code, 0)
        ran = self.run_cli("restore", "--recordings", libraries[1], "a.webm")
        self.assertEqual(ran.code, 0, ran)
        self.assertEqual(sorted(os.listdir(other)), [".compression", "a.webm"])
        log = (self.folder / "logs/compression.log").read_text()
        self.assertRegex(log, r"INFO - restored +a\.webm")
        self.assertEqual((self.library / "a.webm").read_bytes(), mine)
        self.assertTrue((self.library / "a.opus").exists())

    def test_what_its_owner_deletes_is_gone_for_us_too(self) -> None:
        self.add_session()
        self.assertEqual(self.run_cli().code, 0)
        shutil.rmtree(self.library / "2025-10-27")
        (self.library / "index.json").unlink()
        self.assertEqual(self.run_cli("check").code, 0)
        stats = json.loads(self.run_cli("stats", "--json").out)
        self.assertEqual((stats["total_size"], stats["savings"]), (0, 0))
        self.assertEqual(self.run_cli().code, 0)
        self.assertEqual(self.files(), {})

    def test_backups_chmod_and_a_recording_deleted_beside_a_run_are_no_failure(self) -> None:
        day = self.library / "2025-10-27"
        self.add_session(chunks=3)
        gone = "14-30-45-chunk-3.webm"
        does = standins.backup_chmod_and_delete
        env = self.stand_in(does, day=str(day), backups=str(self.folder), gone=gone)
        ran = self.run_cli("run", env=env)
        self.assertEqual(ran.code, 0, ran)
        self.assert_compressed("2025-10-27/14-30-45-chunk-1.webm")
        self.assertFalse((day / "14-30-45-chunk-3.opus").exists(), "what was deleted came back")
        self.assertIn("deleted meanwhile", ran.out)
        self.assertNotIn("left for the next run", ran.out)

    def test_two_libraries_of_one_name_in_one_archive_lose_nothing(self) -> None:
        cold = self.folder / "cold"
        (cold / "archive-of-recordings").mkdir(parents=True)
        self.configure(tiers=[{"after_days": 30, "archive": str(cold)}])
        self.add("chunk_0", "a.webm")
        other = self.folder / "other/recordings"
        other.mkdir(parents=True)
        shutil.copyfile(PROJECT / "tests/recordings/chunk_1.webm", other / "a.webm")
        os.utime(other / "a.webm", (LONG_AGO, LONG_AGO))
        self.put_run_on_record()
        shutil.copytree(self.library / ".compression", other / ".compression")
        for _ in range(2):  # a file makes one move a run
            self.assertEqual(self.run_cli().code, 0)
            ran = self.run_cli("run", "--recordings", str(other))
        self.assertEqual(ran.code, 1, ran)
        self.assertIn("has the mark of another library", ran.err)
        self.assertTrue((other / "a.opus").exists())
        self.assertEqual(self.run_cli("restore", "a.webm").code, 0)
        self.assertNotEqual((self.library / "a.opus").read_bytes(), (other / "a.opus").read_bytes())

    def test_whatever_the_index_is_it_is_edited_or_left_alone_and_stops_nothing(self) -> None:
        index = self.library / "index.json"
        told = b'{"recordings": [{"id": "A", "compressed": false}]}'
        forms = {
            b"\xef\xbb\xbf" + told: True,
            told.replace(b" ", b"\r\n"): True,
            b"[]": False,
            b"": False,
            told[:-2]: False,
        }
        for number, (data, is_edited) in enumerate(forms.items()):
            with self.subTest(data):
                self.add("chunk_0", f"{number}/a.webm")
                document = json.dumps({"id": "A", "chunks": [{"file": "a.webm"}]}, indent=1)
                text = b"\xef\xbb\xbf" + document.replace("\n", "\r\n").encode()
                (self.library / f"{number}/a.json").write_bytes(text)
                index.write_bytes(data)
                os.utime(index, (LONG_AGO, LONG_AGO))
                self.assertEqual(self.run_cli().code, 0)
                self.assert_compressed(f"{number}/a.webm")
                now = index.read_bytes()
                self.assertEqual((b"true" in now, now[:3]), (is_edited, data[:3]))
        index.unlink()
        index.symlink_to(self.config)
        before = self.config.read_bytes()
        self.add("chunk_0", "last/a.webm")
        self.assertEqual(self.run_cli().code, 0)
        self.assertEqual(self.config.read_bytes(), before)

    def test_a_config_with_a_byte_order_mark_and_other_line_ends_is_read(self) -> None:
        self.config.write_bytes(b'\xef\xbb\xbf{\r\n  "jobs": 1\r\n}\r\n')
        self.assertEqual(self.run_cli().code, 0)


class Clocks(SituationCase):
    def test_files_from_the_future_are_named(self) -> None:
        self.add("chunk_0", "a.webm", age=time.time() + 9e6)
        ran = self.run_cli()
        self.assertEqual(ran.code, 0)
        self.assertEqual((ran.out + ran.err).count("a.webm"), 1, ran)


class Silence(SituationCase):
    """Every run leaves a log line, a summary and a notification, also one that could not begin."""

    def setUp(self) -> None:
        super().setUp()
        self.heard = self.folder / "heard"
        self.log = self.folder / "log"
        self.configure(log_file=str(self.log), notify_command=f"cat >>{self.heard}")

    def assert_told(self, *words: str) -> None:
        summary = json.loads(self.heard.read_text())
        self.heard.unlink()
        for word in words:
            self.assertIn(word, summary["message"])
            self.assertIn(word, self.log.read_text())

    def test_a_library_that_is_not_there(self) -> None:
        self.library.rmdir()
        self.assertEqual(self.run_cli().code, 2)
        self.assert_told("There is no recordings folder")

    def test_a_pause(self) -> None:
        command = f"cat >>{self.heard}"
        self.configure(log_file=str(self.log), notify_command=command, notify_on="always")
        self.add("chunk_0", "a.webm")
        self.run_cli("pause")
        self.assertEqual(self.run_cli().code, 0)
        self.assert_told("Paused")
        self.assertEqual(self.run_cli("doctor").code, 1)

    def test_an_ffmpeg_that_does_not_start_for_many_nights_and_is_repaired(self) -> None:
        self.add_session()
        says = "error while loading shared libraries"
        env = self.stand_in(standins.exit_code, code=127, says=says)
        for _ in range(5):
            self.assertEqual(self.run_cli(env=env).code, 4)
            self.assert_told("does not work")
        self.assertEqual(self.run_cli("--dry-run", env=env).code, 4)
        self.assertEqual(self.run_cli("doctor", env=env).code, 4)
        self.assertEqual(self.run_cli().code, 0)
        self.assertEqual(self.outcomes_on_record(), ["compressed", "compressed"])

    def test_an_ffmpeg_that_is_confined_to_other_folders_is_not_the_recordings_fault(self) -> None:
        """As a snap, which works as long as everything goes through pipes."""
        self.add_session()
        env = self.stand_in(standins.confined_to_other_folders)
        for command in ("--dry-run", "doctor", "run"):
            ran = self.run_cli(command, env=env)
            self.assertEqual(ran.code, 4, (command, ran))
            self.assertIn("cannot open", ran.out + ran.err)
        self.heard.unlink()
        self.assertEqual(self.run_cli().code, 0)
        self.assertEqual(self.outcomes_on_record(), ["compressed", "compressed"])

    def test_an_archive_whose_disk_is_not_mounted(self) -> None:
        self.add_session()
        self.assertEqual(self.run_cli().code, 0)
        self.heard.unlink()
        cold = self.folder / "cold"
        cold.mkdir()
        tiers = [{"after_days": 30, "archive": str(cold)}]
        self.configure(log_file=str(self.log), notify_command=f"cat >>{self.heard}", tiers=tiers)
        for command in ("--dry-run", "doctor"):
            self.assertEqual(self.run_cli(command).code, 1, command)
        self.assertEqual(self.run_cli().code, 1)
        self.assert_told("Is its disk mounted?")
        self.assertEqual(os.listdir(cold), [])
        (cold / "archive-of-recordings").mkdir()
        self.assertEqual(self.run_cli().code, 0)
        self.assertEqual(self.run_cli("check").code, 0)
        shutil.rmtree(cold / "archive-of-recordings/2025-10-27")
        ran = self.run_cli("check")
        self.assertEqual(ran.code, 1)
        self.assertIn("not in the archive any more", ran.out + ran.err)


class Streams(SituationCase):
    def test_without_any_stream_it_works(self) -> None:
        self.add("chunk_0", "a.webm")
        words = " ".join(map(str, (sys.executable, SCRIPT, "run", "-c", self.config)))
        subprocess.run(["sh", "-c", f"{words} >&- 2>&- <&-"], cwd="/", check=True)
        self.assert_compressed("a.webm")

    def test_under_nohup_a_hangup_stops_nothing(self) -> None:
        self.add_session(chunks=4)
        words = " ".join(map(str, (sys.executable, SCRIPT, "run", "-c", self.config)))
        with subprocess.Popen(
            ["sh", "-c", f"trap '' HUP; exec {words}"], cwd="/", stdout=subprocess.PIPE
        ) as process:
            while not self.history().exists():
                time.sleep(0.01)
            process.send_signal(signal.SIGHUP)
            process.communicate(timeout=60)
        self.assertEqual(process.returncode, 0)
        self.assert_compressed("2025-10-27/14-30-45-chunk-4.webm")


class DriverCase(SituationCase):
    def run_driven(self, before: str, *words: str) -> Ran:
        """Run the program in a process that has carried out some lines before."""
        driver = self.folder / "driver.py"
        head = f"import errno, os, stat, sys\nsys.path.insert(0, {str(PROJECT)!r})\n"
        head += "import compression_service as program\n"
        driver.write_text(head + before + "\nsys.exit(program.main(sys.argv[1:]))\n")
        return self.run_under([sys.executable, str(driver)], *words)

    def command(self, *arguments: str, python: str = sys.executable) -> list[str]:
        words = super().command(*arguments, python=python)
        return words[2:] if (self.folder / "driver.py").exists() else words


class WhatADiskDoesNotHave(DriverCase):
    """Is done without; and what fails on a disk that has it, is still fatal."""

    FSYNC = (
        "real = os.fsync\n"
        "def fsync(descriptor):\n"
        "    if {test}(os.fstat(descriptor).st_mode):\n"
        "        raise OSError(errno.{code}, os.strerror(errno.{code}))\n"
        "    real(descriptor)\n"
        "os.fsync = fsync"
    )
    STATVFS = "def statvfs(path):\n    {how}\nos.statvfs = statvfs"

    def setUp(self) -> None:
        super().setUp()
        self.add_session(chunks=1)
        self.path = "2025-10-27/14-30-45-chunk-1.webm"

    def test_folders_that_cannot_be_flushed(self) -> None:
        for number, code in enumerate(("EINVAL", "ENOTSUP", "EBADF", "ENOSYS", "EACCES")):
            name = f"{number}.webm"
            self.add("chunk_1", name)
            ran = self.run_driven(self.FSYNC.format(test="stat.S_ISDIR", code=code), "run")
            self.assertEqual(ran.code, 0, (code, ran))
            self.assert_compressed(name)

    def test_a_flush_of_a_file_or_folder_that_fails_keeps_the_original(self) -> None:
        for test in ("stat.S_ISREG", "stat.S_ISDIR"):
            ran = self.run_driven(self.FSYNC.format(test=test, code="EIO"), "run")
            self.assertEqual(ran.code, 1, ran)
            self.assertTrue((self.library / self.path).exists())

    def test_a_disk_that_does_not_tell_its_size_is_not_full(self) -> None:
        zeros = "return os.statvfs_result((4096, 4096, 0, 0, 0, 0, 0, 0, 0, 255))"
        fails = "raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), path)"
        for number, how in enumerate((zeros, fails)):
            name = f"{number}.webm"
            self.add("chunk_1", name)
            for words in ("--dry-run", "doctor", "run"):
                ran = self.run_driven(self.STATVFS.format(how=how), words)
                self.assertEqual(ran.code, 0, (how, words, ran))
            self.assert_compressed(name)


@AS_ROOT
class ForeseenInAFolder(SituationCase):
    """What holds for one folder or file fails its recordings alone, uncounted, and with one sentence."""

    def setUp(self) -> None:
        super().setUp()
        for name in ("a", "b"):
            self.add("chunk_1", f"bad/{name}.webm")
        self.add("chunk_0", "good/c.webm")
        self.under: list[str] = []

    def assert_foreseen(self, *said: str, times: int = 1) -> None:
        bad = {name: data for name, data in self.files().items() if name.startswith("bad")}
        for command in ("--dry-run", "doctor", "run"):
            ran = self.run_under(self.under, command)
            told = ran.out if command == "doctor" else ran.err
            self.assertEqual(ran.code, 1, (command, ran))
            for word in said:
                self.assertEqual(told.count(word), times, (command, ran))
        self.assertEqual({name: self.files()[name] for name in bad}, bad)
        self.assertEqual(len(list(self.library.glob("bad/*"))), len(bad), "left behind")
        self.assert_compressed("good/c.webm")
        lines = map(json.loads, self.history().read_text().splitlines())
        attempts = [
            line["past"].get("attempts", 0) for line in lines if line["type"] == "recording"
        ]
        self.assertEqual(set(attempts), {0})

    def make_immutable(self, path: Path, flag: str = "i") -> None:
        subprocess.run(["chattr", f"+{flag}", str(path)], check=True)
        self.addCleanup(subprocess.run, ["chattr", f"-{flag}", str(path)], check=False)

    def test_an_immutable_or_append_only_folder(self) -> None:
        for flag in "ia":
            self.add("chunk_0", "good/c.webm")
            (self.library / "good/c.opus").unlink(missing_ok=True)
            self.make_immutable(self.library / "bad", flag)
            self.assert_foreseen("Nothing is done in bad: it is immutable, or append-only.")
            subprocess.run(["chattr", f"-{flag}", str(self.library / "bad")], check=True)
        self.assertEqual(self.run_cli("--older-than", "7").code, 0)
        self.assert_compressed("bad/a.webm")

    def test_an_immutable_original_or_sidecar_is_its_own_recordings_alone(self) -> None:
        self.make_immutable(self.library / "bad/a.webm")
        self.make_immutable(self.add_json("bad/b.json", sidecar("B", ["b.webm"])))
        self.assert_foreseen("in bad/a.webm: it is immutable", "in bad/b.json: it is immutable")
        (self.library / "index.json").unlink(missing_ok=True)
        self.configure(delete_originals=False)
        self.assertEqual(self.run_cli().code, 1)
        self.assertTrue((self.library / "bad/a.opus").exists(), "it need not be removed")

    def test_a_sticky_folder_of_somebody_else(self) -> None:
        shutil.copy(SCRIPT, self.folder / "program.py")
        for path in (self.folder, *self.folder.rglob("*")):
            path.chmod(0o777 if path.is_dir() else 0o666)
        os.chown(self.library / "bad", NOBODY.pw_uid, NOBODY.pw_gid)
        (self.library / "bad").chmod(0o1777)
        self.under = ["setpriv", "--reuid=61234", "--regid=61234", "--clear-groups"]
        self.assert_foreseen("Nothing is done in bad: it is sticky")

    def command(self, *arguments: str, python: str = sys.executable) -> list[str]:
        words = super().command(*arguments, python=python)
        copy = self.folder / "program.py"
        return ["/usr/bin/python3", str(copy), *words[2:]] if copy.exists() else words

    @unittest.skipUnless(shutil.which("bindfs"), "needs bindfs")
    def test_files_that_cannot_be_removed_leave_nothing_behind_night_after_night(self) -> None:
        self.bind("--delete-deny")
        for _ in range(2):
            ran = self.run_cli()
            self.assertEqual(ran.code, 1, ran)
            self.assertEqual(ran.err.count("cannot be made and removed there"), 1, ran)
        self.assertLessEqual(len(list(self.library.glob("bad/.compression-*"))), 2)
        self.assert_compressed("good/c.webm")

    def bind(self, *options: str) -> None:
        folder = str(self.library / "bad")
        subprocess.run(["bindfs", "-o", "nonempty", *options, folder, folder], check=True)
        self.addCleanup(subprocess.run, ["umount", "-lq", folder], check=False)

    @unittest.skipUnless(shutil.which("bindfs"), "needs bindfs")
    def test_root_who_may_not_give_files_away_there(self) -> None:
        """As NFS that squashes root: the capability is there all the same."""
        for name in ("a", "b"):
            self.add_json(f"bad/{name}.json", sidecar(name, [f"{name}.webm"]))
        for path in (self.library / "bad", *self.library.glob("bad/*")):
            os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
        self.bind("--chown-deny", "--chgrp-deny", "--create-as-user")
        self.assert_foreseen(f"Files of user {NOBODY.pw_uid} cannot be worked on")

    def test_a_read_only_mount_inside_is_passed_over_and_reported_once(self) -> None:
        self.add("chunk_1", "bad/deep/d.webm")
        bad = str(self.library / "bad")
        self.mount(self.library / "bad", "--bind", bad)
        self.mount(self.library / "bad", "-o", "remount,bind,ro")
        for command in ("--dry-run", "doctor", "run", "run"):
            ran = self.run_cli(command)
            self.assertEqual(ran.code, 0, (command, ran))
            self.assertEqual((ran.out + ran.err).count("bad is mounted read-only"), 1, ran)
        self.assert_compressed("good/c.webm")
        self.assertTrue((self.library / "bad/deep/d.webm").exists())


@AS_ROOT
class NoSpace(SituationCase):
    """Ends any command at its first sign, with one sentence and exit 5."""

    def setUp(self) -> None:
        super().setUp()
        self.mount(self.library, "-t", "tmpfs", "-o", "size=10m", "none")
        (self.folder / "cold/archive-of-recordings").mkdir(parents=True)
        for number in range(4):
            self.add("chunk_1", f"{number}.webm")

    def fill(self, free: int = 0) -> Path:
        room = os.statvfs(self.library).f_bavail * os.statvfs(self.library).f_frsize
        (self.library / "filling").write_bytes(bytes(max(0, room - free)))
        return self.library / "filling"

    def test_what_comes_back_onto_a_full_disk_is_tried_once_and_comes_back_later(self) -> None:
        self.put_run_on_record()
        self.configure(tiers=[{"after_days": 30, "archive": "cold"}])
        for _ in range(2):  # a file makes one move a run
            self.assertEqual(self.run_cli().code, 0)
        for free in (0, 20_000, 60_000):
            filling = self.fill(free)
            ran = self.run_cli("restore", ".", cwd=str(self.library))
            filling.unlink()
            self.assertEqual(ran.code, 5, (free, ran))
            self.assertNotIn("failed", ran.out)
            self.assertEqual(len(ran.err.splitlines()), 1, ran)
            self.assert_no_leftovers()
        self.assertEqual(self.run_cli("restore", ".", cwd=str(self.library)).code, 0)
        self.assertEqual(len(list(self.library.glob("*.opus"))), 4)

    def test_a_disk_that_fills_up_in_the_commit_ends_the_run(self) -> None:
        for number in range(4):
            document = {**sidecar(f"{number}", [f"{number}.webm"]), "more": "x" * 900_000}
            self.add_json(f"{number}.json", document)
        self.fill(2_600_000)
        ran = self.run_cli("--json", "-j", "1")
        self.assertEqual(ran.code, 5, ran)
        self.assertEqual(ran.summary["failed"], 0)
        self.assert_sidecars_true()
        (self.library / "filling").unlink()
        self.assertEqual(self.run_cli().code, 0)
        self.assertEqual(list(self.library.glob("*.webm")), [])
        self.assert_no_leftovers()

    def test_statistics_and_a_pause_on_a_full_disk(self) -> None:
        self.put_run_on_record()
        self.fill()
        for words in (
            ("stats", "--html", str(self.library / "page.html")),
            ("pause", "--for", "2h"),
        ):
            ran = self.run_cli(*words)
            self.assertEqual((ran.code, len(ran.err.splitlines())), (5, 1), ran)
        self.assertFalse((self.library / ".compression/paused").exists(), "paused without an end")


class NotMounted(SituationCase):
    """No audio, no folder of ours, and a log that says that there was some: only then."""

    MARKERS = (".NOT_MOUNTED", "README.txt", "lost+found/x", "2025-10-27/14-30-45.json")

    def put_only(self, marker: str) -> None:
        shutil.rmtree(self.library)
        path = self.library / marker
        path.parent.mkdir(parents=True)
        path.write_text("{}")

    def test_a_mount_point_with_a_marker_is_no_empty_library(self) -> None:
        self.add("chunk_0", "a.webm")
        self.assertEqual(self.run_cli().code, 0)
        for marker in self.MARKERS:
            self.put_only(marker)
            for command in ("--dry-run", "doctor", "run", "stats"):
                ran = self.run_cli(command)
                self.assertEqual(ran.code, 2, (marker, command, ran))
                self.assertIn("Is its disk mounted?", ran.out + ran.err)
        (self.library / ".compression").mkdir()
        self.assertEqual(self.run_cli().code, 0)

    def test_what_was_only_found_counts_and_so_does_what_an_earlier_version_logged(self) -> None:
        self.add("chunk_0", "a.webm", age=time.time())
        self.assertEqual(self.run_cli().code, 0)
        self.put_only("README.txt")
        self.assertEqual(self.run_cli().code, 2)
        log = self.folder / "logs/compression.log"
        for told, code in (
            ("3 compressed. 147 kB -> 111 kB (25 % less). 36.3 kB saved. Took 1 s.", 2),
            ("Nothing to do. Younger than 7 days: 1.", 2),
            ("Nothing to do.", 0),
        ):
            log.write_text(f"2026-01-31 02:00:01,123 - INFO - {self.library}: {told}\n")
            self.assertEqual(self.run_cli().code, code, told)

    def test_an_empty_library_that_never_held_anything_is_nothing_to_worry_about(self) -> None:
        (self.library / "README.txt").write_text("recordings come here")
        other = self.folder / "recordings2"
        other.mkdir()
        shutil.copy(PROJECT / "tests/recordings/chunk_0.webm", other)
        self.assertEqual(self.run_cli("run", "--recordings", str(other)).code, 0)
        for _ in range(3):
            self.assertEqual(self.run_cli().code, 0)

    @AS_ROOT
    def test_a_lost_and_found_that_cannot_be_read_is_passed_over_silently(self) -> None:
        shutil.copy(SCRIPT, self.folder / "program.py")
        for name in ("lost+found", "disk/lost+found"):
            (self.library / name).mkdir(parents=True)
            (self.library / name).chmod(0o700)
        self.folder.chmod(0o777)
        words = ["setpriv", "--reuid=61234", "--regid=61234", "--clear-groups", "/usr/bin/python3"]
        words += [str(self.folder / "program.py")]
        for name, code in (("", 0), ("secret", 1)):
            (self.library / name).mkdir(mode=0o700, exist_ok=True)
            done = subprocess.run(
                [*words, "run", "-n", "-c", str(self.config)],
                capture_output=True,
                text=True,
                check=False,
            )
            self.assertEqual((done.returncode, "lost" in done.stderr), (code, False), done)


class AnotherLevel(SituationCase):
    """A folder that is no library yet, near one that is."""

    def assert_refused(self, folder: Path, other: Path) -> None:
        for command in ("--dry-run", "run", "stats", "pause"):
            ran = self.run_cli(command, "--recordings", str(folder))
            self.assertEqual(ran.code, 2, (command, ran))
            self.assertIn(f"{other} is one", ran.err)
            self.assertIn(f"make {folder}/.compression", ran.err)
        self.assertFalse((folder / ".compression").exists())

    def test_a_library_two_levels_below_or_above_is_named(self) -> None:
        deep = self.library / "server/data"
        deep.mkdir(parents=True)
        (deep / "index.json").write_text('{"recordings": []}')
        self.assert_refused(self.library, deep)
        day = deep / "2025/10"
        day.mkdir(parents=True)
        self.assert_refused(day, deep)
        (deep / "index.json").unlink()
        (deep / ".compression").mkdir()
        self.assert_refused(self.library, deep)
        (self.library / ".compression").mkdir()
        self.assertEqual(self.run_cli().code, 0)

    def test_what_is_no_index_or_too_far_away_is_none(self) -> None:
        for name in ("a/b/c/index.json", ".hidden/index.json"):
            self.add_json(name, {"recordings": []})
        for number, text in enumerate(
            ('[{"recordings": []}]', '{"recordings": {}}', "{", "", "[1]")
        ):
            self.add_bytes(text.encode(), f"{number}/index.json")
        os.mkfifo(self.library / "a/index.json")
        (self.library / "link").symlink_to(self.library / "a/b/c")
        self.assertEqual(self.run_cli().code, 0)

    def test_of_a_huge_index_only_the_beginning_is_read(self) -> None:
        head = b'{"version": 1, "recordings": ['
        path = self.add_bytes(head + b'{"id": "x"},' * 99_000, "day/index.json")
        self.assert_refused(self.library, path.parent)

    def test_its_own_index_makes_it_the_library(self) -> None:
        self.add_json("index.json", {"recordings": []})
        self.add_json("day/index.json", {"recordings": []})
        self.assertEqual(self.run_cli().code, 0)


class Told(DriverCase):
    """Whatever ends a run is told by log, summary and notification; and no log holds up a run."""

    def setUp(self) -> None:
        super().setUp()
        self.add("chunk_0", "a.webm")
        self.log = self.folder / "logs/compression.log"
        self.log.parent.mkdir()
        self.configure(notify_command="cat >heard; yes")

    def test_no_thread_no_memory_or_a_defect_at_the_start(self) -> None:
        for error in ("RuntimeError('no new thread')", "MemoryError()", "KeyError('x')"):
            before = f"def fail(*_): raise {error}\nprogram.Run.plan = fail"
            with self.subTest(error):
                self.configure(notify_command="cat >heard")
                ran = self.run_driven(before, "run", "--json")
                self.assertEqual((ran.code, ran.summary["exit_code"]), (1, 1), ran)
                self.assertNotIn("Traceback", ran.err)
                message = ran.summary["message"]
                self.assertIn(message, self.log.read_text())
                self.assertEqual(
                    json.loads((self.folder / "heard").read_text())["message"], message
                )

    def test_a_notification_that_prints_without_end_fills_no_memory(self) -> None:
        """With 500 MB to fill, it ends by its deadline or by what it says."""
        for command in ("yes", "yes >&2"):
            self.configure(notify_command=f"cat >heard; {command}")
            before = "program.GRACE, program.NOTIFY_SECONDS = 0.5, 0.5\nimport resource\n"
            before += "resource.setrlimit(resource.RLIMIT_AS, (500 << 20, 500 << 20))"
            self.add("chunk_0", "b.webm")
            ran = self.run_driven(before, "run", "--retry", "-j", "1")
            self.assertIn("The notify_command failed", ran.out, ran)
            self.assertNotIn("memory", ran.out + ran.err)

    def test_a_pipe_as_log_is_never_waited_for(self) -> None:
        os.mkfifo(self.log)
        self.configure()
        ran = self.run_cli()
        self.assertEqual(ran.code, 0, ran)
        self.assertIn("The log", ran.err)
        self.assert_compressed("a.webm")
        reader = os.open(self.log, os.O_RDONLY | os.O_NONBLOCK)
        self.add("chunk_0", "b.webm")
        self.assertEqual(self.run_cli().code, 0)
        self.assertIn(b"b.webm", os.read(reader, 1 << 16))
        os.close(reader)

    def test_a_log_that_is_a_link_is_followed_and_not_renamed(self) -> None:
        target = self.folder / "elsewhere.log"
        target.write_bytes(b"x" * (3 << 20))
        self.log.symlink_to(target)
        self.configure()
        self.assertEqual(self.run_cli().code, 0)
        self.assertIn(b"a.webm", target.read_bytes())
        self.assertEqual(os.listdir(self.log.parent), [self.log.name])

    @AS_ROOT
    def test_a_link_of_another_user_on_the_way_to_the_log_is_not_followed(self) -> None:
        victim = self.folder / "victim"
        victim.mkdir()
        for number, (link, log) in enumerate(
            ((self.log, self.log), (self.folder / "mine", self.folder / "mine/x.log"))
        ):
            link.symlink_to(victim / "x.log" if link == log else victim)
            os.lchown(link, NOBODY.pw_uid, NOBODY.pw_gid)
            self.configure(log_file=str(log))
            self.add("chunk_0", f"{number}.webm")
            ran = self.run_cli()
            self.assertEqual(ran.code, 0, ran)
            self.assertIn("is a link of another user", ran.err)
            self.assert_compressed(f"{number}.webm")
            self.assertEqual(self.run_cli("doctor").code, 1)
        self.assertEqual(os.listdir(victim), [])


if __name__ == "__main__":
    unittest.main()
