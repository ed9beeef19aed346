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
        self.assertEqual(self.run_cli().code, 0)
        ran = self.run_cli("run", "--recordings", str(other))
        self.assertEqual(ran.code, 1, ran)
        self.assertIn("is there already and is another file", ran.out)
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


if __name__ == "__main__":
    unittest.main()
