"""Tools: heard out, judged by what ffmpeg itself said, and always at an end."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import tempfile
import threading
import time
import unittest
from pathlib import Path
from typing import Optional
from unittest.mock import patch

import compression_service as program
from compression_service import (
    FORMATS,
    Reason,
    Refusal,
    Stop,
    Stopped,
    Target,
    ToolError,
    Tools,
    stop_signals,
    try_ffmpeg,
)
from tests.base import LONG_AGO, LibraryCase, Ran


class ToolsCase(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.tools = Tools(Stop())

    def shell(self, script: str, seconds: float = 0) -> str:
        return self.tools.run(["/bin/sh", "-c", script], seconds)[1]

    def assert_refused(self, reason: Reason, script: str) -> Refusal:
        with self.assertRaises(Refusal) as caught:
            self.shell(script)
        self.assertIs(caught.exception.reason, reason)
        return caught.exception

    def stand_in(self, folder: str, script: str) -> Path:
        path = self.folder / folder / "ffmpeg"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path


def is_alive(pid: str) -> bool:
    """Tells whether a process runs. A zombie does not."""
    command = ["ps", "-p", pid.strip(), "-o", "stat="]
    listing = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return listing.strip()[:1] not in ("", "Z")


class TestRun(ToolsCase):
    def test_lines_come_out_and_text_goes_in(self) -> None:
        reader, writer = os.pipe()
        os.write(writer, b"one\ntwo")
        os.close(writer)
        output, said = self.tools.run(["cat"], 0, stdin=reader)
        os.close(reader)
        self.assertEqual((said, output), ("", "one\ntwo"))

    def test_only_what_ffmpeg_tagged_itself_is_said_of_a_recording(self) -> None:
        self.assertEqual(self.shell("echo a banner >&2; echo '[info] all well' >&2"), "")
        told = "[matroska @ 0x55d0c0] [warning] Guessed Channel Layout for Input Stream"
        self.assertEqual(self.shell(f"echo '{told}' >&2"), "")
        told = "[matroska @ 0x55d0c0] [error] File ended prematurely"
        self.assertEqual(self.shell(f"echo '{told}' >&2"), "[matroska] File ended prematurely")

    def test_a_failure_says_what_the_tool_said(self) -> None:
        refusal = self.assert_refused(Reason.TOOL_FAILED, "echo no idea >&2; exit 3")
        self.assertEqual(refusal.detail, "exit code 3, no idea")
        self.assert_refused(Reason.NO_SPACE, "echo 'x: No space left on device' >&2; exit 1")
        self.assert_refused(Reason.TOOL_KILLED, "kill -9 $$")
        self.assert_refused(Reason.TOOL_FAILED, "kill -11 $$")

    def test_a_fault_of_the_disk_is_no_fault_of_the_recording(self) -> None:
        for words, reason in (
            ("[error] file:x: Input/output error", Reason.INPUT_OUTPUT),
            ("[in#0 @ 0x1] [error] Error during demuxing: Input/output error", Reason.INPUT_OUTPUT),
            ("[error] Error writing trailer of x: No space left on device", Reason.NO_SPACE),
        ):
            for code in (0, 1):
                with self.subTest(words, code=code), self.assertRaises(Refusal) as caught:
                    self.shell(f"echo '{words}' >&2; exit {code}")
                self.assertIs(caught.exception.reason, reason)
                self.assertTrue(reason.is_environment)

    def test_one_that_hangs_is_ended_with_all_that_it_started(self) -> None:
        pid = self.folder / "pid"
        with patch.object(program, "GRACE", 0.5):
            self.assert_refused(Reason.TOOL_HUNG, f"sleep 600 & echo $! >{pid}; wait")
        deadline = time.monotonic() + 60
        while is_alive(pid.read_text()):
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.02)

    def test_a_grandchild_that_holds_the_stream_is_not_waited_for(self) -> None:
        pid = self.folder / "pid"
        self.shell(f"sleep 600 & echo $! >{pid}")
        self.assertNotEqual(pid.read_text(), "")

    def test_its_last_words_are_heard_though_a_grandchild_holds_the_stream(self) -> None:
        told = self.shell("sleep 600 & sleep 0.5; echo '[error] the end' >&2")
        self.assertEqual(told, "the end")

    def test_one_that_complains_without_end_is_stopped(self) -> None:
        self.assert_refused(Reason.DAMAGED, "yes '[error] bad' >&2")

    def test_a_stop_ends_it_at_once(self) -> None:
        threading.Timer(0.3, setattr, (self.tools.stop, "is_over", True)).start()
        with self.assertRaises(Stopped):
            self.shell("sleep 600")

    def test_a_program_that_cannot_start_is_a_tool_error(self) -> None:
        with self.assertRaises(ToolError):
            self.tools.find("no-such-program-anywhere")


class TestPipe(ToolsCase):
    def pipe(self, *scripts: str) -> str:
        self.copy = self.folder / "copy"
        self.copy.touch()
        commands = [["/bin/sh", "-c", each] for each in scripts]
        return self.tools.pipe(commands, 0, str(self.copy))[0]

    def test_what_the_third_was_given_is_what_stands_in_the_copy(self) -> None:
        heard = self.folder / "heard"
        digest = self.pipe("seq 100000", "tr 1 2", f"cat >{heard}")
        self.assertEqual(self.copy.read_bytes(), heard.read_bytes())
        self.assertEqual(digest, hashlib.sha256(self.copy.read_bytes()).hexdigest())
        self.assertIn(b"\n22222\n", self.copy.read_bytes())

    def test_it_fails_where_any_of_the_three_does(self) -> None:
        good = ["seq 100000", "cat", "cat >/dev/null"]
        for number in range(3):
            scripts = [each if at != number else f"{each}; exit 1" for at, each in enumerate(good)]
            with self.subTest(number), self.assertRaises(Refusal):
                self.pipe(*scripts)
        with self.assertRaises(Refusal):
            self.pipe("seq 9; echo '[error] bad' >&2", *good[1:])
        with self.assertRaises(Refusal):
            self.pipe(good[0], good[1], "true")  # which hears nothing of it

    def test_the_one_that_failed_first_is_heard_and_not_those_that_it_took_with_it(self) -> None:
        fails = "echo '[fatal] Unknown encoder' >&2; exit 1"
        starved = "cat; for line in 1 2 3 4; do echo '[error] no header' >&2; done; exit 1"
        with self.assertRaises(Refusal) as caught:
            self.pipe("seq 9; echo '[error] out: Broken pipe' >&2; exit 1", fails, starved)
        self.assertIs(caught.exception.reason, Reason.TOOL_REFUSED)
        self.assertEqual(caught.exception.detail, "exit code 1, Unknown encoder")


class TestFfmpeg(ToolsCase):
    def test_a_sound_of_our_own_is_encoded_and_read_again(self) -> None:
        for name in FORMATS:
            try_ffmpeg(self.tools, Target(name, 96_000))

    def test_one_that_does_not_work_is_told_with_what_it_said(self) -> None:
        path = self.stand_in("broken", "echo cannot open shared object file >&2; exit 127")
        self.tools.__dict__["ffmpeg"] = str(path)
        with self.assertRaises(ToolError) as caught:
            try_ffmpeg(self.tools, Target("opus", 96_000))
        self.assertIn("cannot open shared object file", str(caught.exception))

    def test_a_banner_of_a_wrapper_is_no_fault(self) -> None:
        real = self.tools.ffmpeg
        path = self.stand_in("wrapped", f'echo "Hello from a wrapper" >&2\nexec {real} "$@"')
        with patch.dict(os.environ, PATH=str(path.parent)):
            self.assertEqual(Tools(Stop()).ffmpeg, str(path))
            try_ffmpeg(Tools(Stop()), Target("opus", 96_000))

    def test_one_that_lacks_the_encoder_is_passed_over(self) -> None:
        path = self.stand_in("poor", 'echo " A..... aac   AAC (Advanced Audio Coding)"')
        with patch.dict(os.environ, PATH=f"{path.parent}:/usr/bin:/bin"):
            self.assertNotEqual(Tools(Stop()).ffmpeg, str(path))
        path.write_text("#!/bin/sh\nexit 1\n")  # which says nothing of its encoders
        with patch.dict(os.environ, PATH=f"{path.parent}:/usr/bin:/bin"):
            self.assertEqual(Tools(Stop()).ffmpeg, str(path))


class TestSignals(unittest.TestCase):
    def test_a_signal_only_sets_a_flag_and_one_that_was_ignored_stays_so(self) -> None:
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            with stop_signals() as stop:
                os.kill(os.getpid(), signal.SIGHUP)
                self.assertFalse(stop.requested)
                os.kill(os.getpid(), signal.SIGTERM)
                self.assertEqual(stop.signal, signal.SIGTERM)
        finally:
            signal.signal(signal.SIGHUP, before)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)


class HowItEnded(unittest.TestCase):
    """How a process ended says nothing of a recording."""

    def judged(self, code: int, said: str = "") -> Optional[Reason]:
        process = subprocess.Popen(["true"])
        process.wait()
        process.returncode = code
        try:
            program.judge([process], said.encode())
        except Refusal as refusal:
            return refusal.reason
        return None

    def test_whoever_ended_it_from_outside_did_not_judge_the_recording(self) -> None:
        for number in (
            "KILL",
            "TERM",
            "INT",
            "HUP",
            "XCPU",
            "XFSZ",
            "PIPE",
            "USR1",
            "QUIT",
            "ALRM",
        ):
            sent = signal.Signals[f"SIG{number}"]
            for code in (-sent, 128 + sent):  # as a shell around it says
                self.assertIs(self.judged(code), Reason.TOOL_KILLED, (number, code))
        self.assertIs(self.judged(255), Reason.TOOL_KILLED)  # ffmpeg's own after SIGTERM
        self.assertTrue(Reason.TOOL_KILLED.is_environment and Reason.TOOL_KILLED.may_be_ffmpeg)

    def test_a_crash_is_a_failure_that_counts_and_no_damage(self) -> None:
        for number in ("SEGV", "ABRT", "ILL", "FPE", "BUS"):
            sent = signal.Signals[f"SIG{number}"]
            for code in (-sent, 128 + sent):
                self.assertIs(self.judged(code), Reason.TOOL_FAILED, (number, code))
        self.assertIs(self.judged(3), Reason.TOOL_FAILED)
        self.assertFalse(Reason.TOOL_FAILED.is_environment)

    def test_want_of_something_is_known_by_words_and_by_the_codes_of_a_newer_ffmpeg(self) -> None:
        wants = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.EFBIG, errno.EACCES)
        for want in wants:
            told = f"[matroska,webm @ 0x5] [error] Error opening output: {os.strerror(want)}"
            for code in (0, 1, 256 - want):
                self.assertIs(self.judged(code, told), Reason.TOOL_KILLED, told)
            self.assertIs(self.judged(256 - want), Reason.TOOL_KILLED)
        for told in ("what(): std::bad_alloc", "libx.so: failed to map segment from shared object"):
            self.assertIs(self.judged(-signal.SIGABRT, told), Reason.TOOL_KILLED)
        for code in (1, 228):
            told = "[error] Error writing trailer: No space left on device"
            self.assertIs(self.judged(code, told), Reason.NO_SPACE)

    def test_what_it_says_of_the_content_is_damage(self) -> None:
        told = (
            "[aac @ 0x5] [error] decode_band_types: Input buffer exhausted before END element found"
        )
        for code in (1, 69, 183, 187, 234):  # ffmpeg before 6.1, and after
            self.assertIs(self.judged(code, told), Reason.TOOL_REFUSED)
        self.assertIsNone(self.judged(0))

    def test_a_name_that_sounds_like_a_want_is_none(self) -> None:
        told = "[error] file:/r/Too many open files.webm: Invalid data found when processing input"
        self.assertIs(self.judged(1, told), Reason.TOOL_REFUSED)


class Ended(LibraryCase):
    """The same with the real ffmpeg behind a stand-in that is ended while it works on recordings."""

    NAMES = tuple(f"{number}.webm" for number in range(6))

    def setUp(self) -> None:
        super().setUp()
        for number, name in enumerate(self.NAMES):
            self.add("chunk_1", name, LONG_AGO + number)

    def night(self, fault: str, *names: str) -> Ran:
        env = self.stand_in(
            f"bad = {names!r}\n"
            "if any(word.endswith(name) for word in args for name in bad):\n"
            f"    {fault}\n"
            "os.execv(real, [real, *args])"
        )
        return self.run_cli("-j", "1", "--json", env=env)

    def test_three_crashing_files_never_stop_the_rest_and_are_remembered(self) -> None:
        bad = self.NAMES[:3]
        for _ in range(3):
            ran = self.night("os.kill(os.getpid(), signal.SIGSEGV)", *bad)
            self.assertEqual(ran.code, 1, ran)
            self.assertEqual({ran.outcomes[name]["action"] for name in bad}, {"failed"})
        for name in self.NAMES[3:]:
            self.assert_compressed(name)
        ran = self.night("os.kill(os.getpid(), signal.SIGSEGV)", *bad)
        self.assertEqual((ran.code, ran.outcomes), (0, {}))

    def test_three_in_a_row_ended_from_outside_end_the_run_and_come_last_the_next_night(
        self,
    ) -> None:
        bad = self.NAMES[:3]
        for fault in ("os.kill(os.getpid(), signal.SIGKILL)", "sys.exit(255)"):
            ran = self.night(fault, *bad)
            self.assertEqual(ran.code, 4, ran)
            self.assertIn("3 recordings in a row", ran.summary["message"])
        self.assertEqual({ran.outcomes[name]["action"] for name in bad}, {"failed"})
        for name in self.NAMES[3:]:
            self.assert_compressed(name)  # the second night took them first
        self.assertEqual(self.run_cli().code, 0)
        for name in bad:
            self.assert_compressed(name)


if __name__ == "__main__":
    unittest.main()
