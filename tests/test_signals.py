"""Signals, runs at once, pause, a full disk, folders that cannot be written or read: nothing is lost, and the next run finishes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from typing import Any, Optional

from tests import standins
from tests.base import Ran
from tests.faults import PROMPT, FaultCase, needs_strace

CHUNK = "2025-10-27/14-30-45-chunk-1.webm"
SINGLE = "2025-10-28/09-00-00.webm"


class SignalCase(FaultCase):
    def setUp(self) -> None:
        super().setUp()
        self.add_session(chunks=1)
        self.add("ff_chunk_1", SINGLE)
        self.sign = self.folder / "at-work"
        self.goes_on = self.folder / "goes-on"

    def slow_one(self, only: str = "") -> dict[str, str]:
        """An ffmpeg that says it is encoding, and waits to be let go on."""
        sign, until = str(self.sign), str(self.goes_on)
        return self.stand_in(standins.truth_after_a_sign, sign=sign, until=until, only=only)

    def end_of(self, process: subprocess.Popen[bytes]) -> Ran:
        out, err = process.communicate(timeout=120)
        return Ran(process.returncode, out.decode(), err.decode())

    def assert_next_run_finishes(self, *paths: str) -> None:
        self.driver = None
        ran = self.run_cli("--json")
        self.assertEqual(ran.code, 0, ran.out + ran.err)
        for path in paths or (CHUNK, SINGLE):
            self.assert_compressed(path)
        self.assert_sidecars_true()
        self.assert_no_leftovers()


class Signals(SignalCase):
    def assert_stops(
        self, number: signal.Signals, code: int, to_all: bool = False, times: int = 1
    ) -> None:
        before = self.snapshot()
        process = self.start("--json", "-j", "1", env=self.slow_one())
        self.wait_for(self.sign)
        began = time.monotonic()
        for _ in range(times):
            os.killpg(process.pid, number) if to_all else process.send_signal(number)
            time.sleep(0.05)
        ran = self.end_of(process)
        self.assertLess(time.monotonic() - began, PROMPT)
        self.assertEqual(ran.code, code, ran.err)
        self.assertIn(number.name, ran.err)
        self.assertNotIn("Traceback", ran.err)
        self.assertEqual(
            (ran.summary["compressed"], ran.summary["failed"], ran.summary["kept"]), (0, 0, 0)
        )
        self.assertEqual(self.snapshot(), before)
        self.assert_no_leftovers()
        self.assert_nothing_runs()
        self.assert_next_run_finishes()

    def test_sigint_stops_it_cleanly_with_130(self) -> None:
        self.assert_stops(signal.SIGINT, 130)

    def test_sigterm_stops_it_cleanly_with_143(self) -> None:
        self.assert_stops(signal.SIGTERM, 143)

    def test_sighup_stops_it_cleanly_with_129(self) -> None:
        self.assert_stops(signal.SIGHUP, 129)

    def test_ctrl_c_to_the_whole_group_pressed_again_and_again_is_one_stop(self) -> None:
        self.assert_stops(signal.SIGINT, 130, to_all=True, times=4)

    def test_what_is_in_place_when_the_signal_comes_is_brought_to_its_end(self) -> None:
        process = self.start("--json", "-j", "1", env=self.slow_one(SINGLE))
        os.utime(self.library / CHUNK, (1, 1))
        self.wait_for(self.sign)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        ran = self.end_of(process)
        self.assertEqual(ran.code, 143)
        for path in (CHUNK, SINGLE):
            copy = (self.library / path).with_suffix(".opus")
            self.assertNotEqual(
                (self.library / path).exists(),
                copy.exists(),
                f"{path} is there twice or not at all",
            )
        self.assert_sidecars_true()
        self.assert_no_leftovers()
        self.assert_nothing_runs()
        self.assert_next_run_finishes()


class RunsAtOnce(SignalCase):
    def test_of_six_one_works_and_five_leave_with_3(self) -> None:
        env = self.slow_one()
        six = [self.start("--json", "-j", "1", env=env) for _ in range(6)]
        while len([process for process in six if process.poll() is None]) > 1:
            time.sleep(0.02)
        self.goes_on.touch()
        ended = [self.end_of(process) for process in six]
        self.assertEqual(sorted(ran.code for ran in ended), [0, 3, 3, 3, 3, 3])
        for ran in ended:
            if ran.code == 3:
                self.assertIn("Another run is at work", ran.err)
                self.assertEqual([line["type"] for line in ran.lines], ["error", "summary"])
        self.assertEqual(self.log().count("2 compressed"), 1)
        records = map(json.loads, self.history().read_text().splitlines())
        self.assertEqual([record.get("action") for record in records].count("compressed"), 2)
        for path in (CHUNK, SINGLE):
            self.assert_compressed(path)
        self.assert_sidecars_true()
        self.assert_no_leftovers()

    def test_the_one_at_work_is_named_with_its_start(self) -> None:
        process = self.start("-j", "1", env=self.slow_one())
        self.wait_for(self.sign)
        expected = rf"process {process.pid} on .* since 20\d\d-"
        ran = self.run_cli()
        self.assertEqual(ran.code, 3)
        self.assertRegex(ran.err, expected)
        self.assertRegex(json.loads(self.run_cli("stats", "--json").out)["at_work"], expected)
        self.assertIn("at work now", self.run_cli("stats").out)
        self.goes_on.touch()
        self.assertEqual(self.end_of(process).code, 0)
        self.assertEqual(json.loads(self.run_cli("stats", "--json").out)["at_work"], "")

    def test_a_run_that_was_killed_leaves_no_lock_behind(self) -> None:
        process = self.start("-j", "1", env=self.slow_one())
        self.wait_for(self.sign)
        process.kill()
        process.wait()
        self.assert_next_run_finishes()


class Pause(SignalCase):
    def test_while_paused_runs_do_nothing_and_say_so(self) -> None:
        before = self.snapshot()
        self.assertEqual(self.run_cli("pause").code, 0)
        for arguments in ((), ("--json",), ("--dry-run",)):
            ran = self.run_cli(*arguments)
            self.assertEqual(ran.code, 0)
            self.assertIn("Paused", ran.out + ran.err)
            for line in ran.out.splitlines() if arguments == ("--json",) else []:
                json.loads(line)
        self.assertEqual(
            {path: digest for path, digest in self.snapshot().items() if path in before}, before
        )
        self.assertEqual(self.run_cli("resume").code, 0)
        self.assert_next_run_finishes()

    def test_a_run_at_work_starts_nothing_new_once_paused(self) -> None:
        many = [f"many/{number}.webm" for number in range(30)]
        for path in many:
            self.add("chunk_0", path)
        process = self.start("--json", "-j", "1", env=self.slow_one())
        self.wait_for(self.sign)
        self.assertEqual(self.run_cli("pause").code, 0)
        self.goes_on.touch()
        ran = self.end_of(process)
        self.assertEqual(ran.code, 0)
        self.assertIn("Paused", ran.err)
        self.assertLess(0, ran.summary["compressed"])
        self.assertLess(ran.summary["compressed"], 32)
        self.assert_sidecars_true()
        self.assertEqual(self.run_cli("resume").code, 0)
        self.assert_next_run_finishes(CHUNK, SINGLE, *many)


class SmallDisk(FaultCase):
    """The library on a disk of a few megabytes: a tmpfs, or where mounting is not permitted, as the program is made to see it."""

    mounted = False

    def disk(self, size: int) -> None:
        self.mounted = self.mount(
            self.library, "-t", "tmpfs", "-o", f"size={size},mode=777", "tmpfs"
        )
        if not self.mounted:
            self.drive(f"""
import os, shutil
def usage(path):
    files = (os.path.join(folder, name) for folder, _, names in os.walk({str(self.library)!r}) for name in names)
    used = sum(-(-os.path.getsize(file) // 4096) * 4096 for file in files)
    return shutil._ntuple_diskusage({size}, used, max(0, {size} - used))
program.shutil.disk_usage = usage""")

    def fill(self, leave: int) -> None:
        """Fill the disk but for `leave` bytes."""
        filler = self.library / "filler"
        used = sum(-(-len(content) // 4096) * 4096 for content in self.files().values())
        free = shutil.disk_usage(self.library).free if self.mounted else 4 << 20
        filler.write_bytes(bytes(free - leave if self.mounted else (4 << 20) - used - leave))

    def recordings(self, count: int, name: str = "chunk_0") -> list[str]:
        paths = [f"day/{number:02}.webm" for number in range(count)]
        for path in paths:
            self.add(name, path)
        return paths

    def assert_finishes(self, paths: list[str]) -> None:
        ran = self.run_cli("--json")
        self.assertEqual(ran.code, 0, ran.out + ran.err)
        for path in paths:
            self.assert_compressed(path)
        self.assert_no_leftovers()

    def test_too_little_room_is_exit_5_with_everything_as_it_was(self) -> None:
        self.disk(4 << 20)
        self.add_session(chunks=2)
        self.fill(leave=1 << 20)
        before = self.snapshot()
        ran = self.run_cli("--json")
        self.assertEqual(ran.code, 5, ran.err)
        self.assertRegex(ran.err, "Too little disk space|is full")
        self.assertEqual(self.snapshot(), before)
        self.assert_no_leftovers()
        (self.library / "filler").unlink()
        self.assert_finishes([CHUNK, CHUNK.replace("-1.", "-2.")])
        self.assert_sidecars_true()

    def test_a_disk_that_fills_up_while_ffmpeg_writes_is_exit_5_with_everything_as_it_was(
        self,
    ) -> None:
        self.disk(4 << 20)
        paths = self.recordings(3)
        self.fill(leave=20 << 10)
        self.drive("program.SPACE_MARGIN, program.space_needed = 0, lambda work: 0")
        before, env = self.snapshot(), dict(os.environ)
        if not self.mounted:
            full = "[error] x: No space left on device"
            env = self.stand_in(standins.exit_code_where_it_encodes, code=1, says=full)
        ran = self.run_cli("--json", env=env)
        self.assertEqual(ran.code, 5, ran.out + ran.err)
        self.assertEqual(self.snapshot(), before)
        self.assert_no_leftovers()
        (self.library / "filler").unlink()
        self.assert_finishes(paths)

    def test_what_was_done_before_the_disk_filled_up_is_brought_to_its_end_and_gives_its_room(
        self,
    ) -> None:
        paths = self.recordings(2)
        env = self.stand_in(standins.full_disk_at, path=paths[1])
        ran = self.run_cli("--json", "-j", "1", env=env)
        self.assertEqual(ran.code, 5, ran.out)
        self.assertEqual(ran.outcomes.get(paths[0], {}).get("action"), "compressed")
        self.assert_compressed(paths[0])
        self.assertEqual(ran.summary["compressed"], 1)

    def test_what_was_done_before_ffmpeg_broke_is_brought_to_its_end(self) -> None:
        paths = self.recordings(7)
        env = self.stand_in(standins.broken_but_for, path=paths[0])
        ran = self.run_cli("--json", "-j", "1", env=env)
        self.assertEqual(ran.code, 4, ran.out)
        self.assertEqual(ran.outcomes.get(paths[0], {}).get("action"), "compressed")
        self.assert_compressed(paths[0])

    def test_room_for_one_batch_is_enough_for_a_library_larger_than_the_room(self) -> None:
        self.disk(6 << 20)
        paths = self.recordings(20, "ch_mp4mime_10s")
        size = sum(len(content) for content in self.files().values())
        free = shutil.disk_usage(self.library).free if self.mounted else (6 << 20) - size
        self.assertLess(free, size)
        self.assert_finishes(paths)


class ReadOnly(FaultCase):
    """What cannot be changed is reported, stays as it is, and keeps nothing else waiting."""

    def setUp(self) -> None:
        super().setUp()
        self.add("ff_chunk_1", SINGLE)

    def frozen(self, path: str) -> None:
        target = str(self.library / path)
        if not self.as_root("chattr", "+i", target):
            self.cannot("chattr +i")
        self.addCleanup(self.as_root, "chattr", "-i", target)

    def assert_reported(self, *paths: str, index: Optional[Any] = None) -> Ran:
        """Twice: the second run meets what the first one left."""
        for turn in range(2):
            ran = self.run_cli("--json")
            self.assertEqual(ran.code, 1, ran.out + ran.err)
            for path in paths:
                self.assertEqual(ran.outcomes[path]["action"], "failed", ran.outcomes[path])
            if not turn:
                self.assertEqual(ran.outcomes[SINGLE]["action"], "compressed")
            self.assert_audio_complete(SINGLE, *paths)
            self.assert_sidecars_true()
            self.assert_no_leftovers()
            self.assertNotIn("Traceback", ran.err + self.log())
        self.assert_compressed(SINGLE)
        return ran

    def test_an_immutable_folder(self) -> None:
        self.add_session(chunks=1)
        before = {
            path: digest
            for path, digest in self.snapshot().items()
            if path.startswith("2025-10-27")
        }
        self.frozen("2025-10-27")
        self.assert_reported(CHUNK)
        self.assertEqual(
            {
                path: digest
                for path, digest in self.snapshot().items()
                if path.startswith("2025-10-27")
            },
            before,
        )

    def test_an_immutable_recording(self) -> None:
        self.add_session(chunks=1)
        self.frozen(CHUNK)
        self.assert_reported(CHUNK)
        self.assertTrue((self.library / CHUNK).exists())
        self.as_root("chattr", "-i", str(self.library / CHUNK))
        self.assertEqual(self.run_cli().code, 0)
        self.assert_compressed(CHUNK)

    def test_an_immutable_sidecar(self) -> None:
        self.add_session(chunks=1)
        self.frozen(CHUNK.replace(".webm", ".json"))
        self.assert_reported(CHUNK)
        self.assertTrue((self.library / CHUNK).exists())
        self.as_root("chattr", "-i", str(self.library / CHUNK.replace(".webm", ".json")))
        self.assertEqual(self.run_cli().code, 0)
        self.assert_compressed(CHUNK)
        self.assert_sidecars_true()

    def test_an_immutable_index_is_told_and_stops_nothing(self) -> None:
        self.add_session(chunks=1)
        self.frozen("index.json")
        ran = self.run_cli("--json")
        self.assertEqual(ran.code, 0, ran.out)
        self.assertRegex(ran.err, r"Left alone.*index\.json")
        for path in (CHUNK, SINGLE):
            self.assert_compressed(path)
        self.assert_sidecars_true()
        self.assert_no_leftovers()
        self.as_root("chattr", "-i", str(self.library / "index.json"))
        self.assertEqual(self.run_cli().code, 0)
        self.assertIs(self.read_json("index.json")["recordings"][0]["compressed"], True)

    def test_a_folder_mounted_read_only(self) -> None:
        folder = self.library / "2025-10-27"
        folder.mkdir()
        if not self.mount(folder, "-t", "tmpfs", "-o", "size=4m,mode=777", "tmpfs"):
            self.cannot("mount")
        self.add_session(chunks=1)
        self.assertTrue(self.as_root("mount", "-o", "remount,ro", str(folder)))
        before = (self.library / CHUNK).read_bytes()
        ran = self.run_cli()
        self.assertEqual((ran.code, ran.out.count("mounted read-only")), (0, 1), ran)
        self.assert_compressed(SINGLE)
        self.assertEqual((self.library / CHUNK).read_bytes(), before)
        self.assert_sidecars_true()

    def test_a_library_mounted_read_only_is_one_message_and_exit_1(self) -> None:
        if not self.mount(self.library, "-t", "tmpfs", "-o", "size=4m,mode=777", "tmpfs"):
            self.cannot("mount")
        self.add_session(chunks=1)
        before = self.snapshot()
        self.assertTrue(self.as_root("mount", "-o", "remount,ro", str(self.library)))
        ran = self.run_cli("--json")
        self.assertEqual(ran.code, 1, ran.err)
        self.assertIn("Read-only", ran.out + ran.err)
        self.assertNotIn("Traceback", ran.err)
        self.assertEqual(self.snapshot(), before)


@needs_strace
class UnreadableFolder(FaultCase):
    """A folder whose listing fails is reported, never taken for an empty one, and keeps nothing else waiting."""

    def fail_listing(self, folder: str, when: str) -> Ran:
        path = str(self.library / folder)
        inject = [
            "-P",
            path,
            "-e",
            "trace=getdents64",
            "-e",
            f"inject=getdents64:error=EIO:when={when}",
            "-o",
            os.devnull,
        ]
        ran = Ran(*self.strace(inject, "--json"))
        self.assertNotIn("Traceback", ran.err + self.log())
        return ran

    def test_it_is_reported_and_the_rest_goes_on(self) -> None:
        self.add_session(chunks=1)
        self.add("ff_chunk_1", SINGLE)
        before = {
            path: digest
            for path, digest in self.snapshot().items()
            if path.startswith("2025-10-27")
        }
        ran = self.fail_listing("2025-10-27", "1+")
        self.assertEqual(ran.code, 1)
        self.assertIn("2025-10-27", ran.err)
        self.assertIn("cannot be read", ran.err)
        self.assert_compressed(SINGLE)
        self.assertEqual(
            {
                path: digest
                for path, digest in self.snapshot().items()
                if path.startswith("2025-10-27")
            },
            before,
        )
        self.assertEqual(self.run_cli().code, 0)
        self.assert_compressed(CHUNK)

    def test_one_that_breaks_down_at_any_later_listing_keeps_its_recordings_and_nothing_else_waiting(
        self,
    ) -> None:
        for number in (3, 7, 9):  # each listing takes two calls
            with self.subTest(listing=number):
                shutil.rmtree(self.library)
                self.library.mkdir()
                self.add_session(chunks=1)
                self.add("ff_chunk_1", SINGLE)
                ran = self.fail_listing("2025-10-27", f"{number}+")
                self.assertEqual(ran.lines[-1]["type"], "summary")
                self.assert_compressed(SINGLE)
                self.assert_audio_complete(CHUNK)
                self.assert_sidecars_true()
                self.assert_no_leftovers()
                if ran.outcomes.get(CHUNK, {}).get("action") != "compressed":
                    self.assertEqual(ran.code, 1, "not reported")
                self.assertEqual(self.run_cli().code, 0)
                self.assert_compressed(CHUNK)

    def test_one_whose_index_entry_was_overwritten_keeps_nothing_else_waiting(self) -> None:
        self.add_session(chunks=1)
        before = (self.library / "index.json").read_bytes()
        self.assertEqual(self.run_cli().code, 0)
        (self.library / "index.json").write_bytes(before)
        self.add("ff_chunk_1", SINGLE)
        ran = self.fail_listing("2025-10-27", "1+")
        self.assertEqual(ran.code, 1)
        self.assert_compressed(SINGLE)
        self.assertEqual(self.run_cli().code, 0)
        self.assertIs(self.read_json("index.json")["recordings"][0]["compressed"], True)

    def test_a_library_that_cannot_be_read_is_not_an_empty_one(self) -> None:
        self.add_session(chunks=1)
        before = self.snapshot()
        ran = self.fail_listing("", "1+")
        self.assertEqual(ran.code, 1)
        self.assertIn(f"Input/output error ({self.library})", ran.err)
        self.assertEqual(self.snapshot(), before)
