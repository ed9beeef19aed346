"""Progress: a line that stays put, moves within a batch, is right about the time left, and is gone at the end."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from typing import Optional

from tests import standins
from tests.faults import FaultCase


class ProgressCase(FaultCase):
    def setUp(self) -> None:
        super().setUp()
        self.drive("program.GRACE = 600.0")  # a stand-in that pauses is slow on a busy machine

    def on_terminal(
        self, *arguments: str, columns: int = 80, env: Optional[dict[str, str]] = None
    ) -> str:
        """What a run writes to a terminal of so many columns."""
        leader, follower = pty.openpty()
        self.resize(leader, columns)
        environment = {**os.environ, "TERM": "xterm", **(env or {})}
        words = self.command(*arguments)
        process = subprocess.Popen(
            words, stdin=follower, stdout=follower, stderr=follower, env=environment
        )
        os.close(follower)
        written = b""
        try:
            while data := os.read(leader, 1 << 16):
                written += data
        except OSError:  # the other side has closed
            pass
        os.close(leader)
        self.assertEqual(process.wait(), 0, written)
        return written.decode()

    def resize(self, terminal: int, columns: int) -> None:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def slow(self, encode: float, proof: float) -> dict[str, str]:
        does = standins.in_ten_parts
        return {"PATH": self.stand_in(does, encode_pause=encode, proof_pause=proof)["PATH"]}

    def bars(self, written: str) -> list[str]:
        return re.findall(r"\d+ of \d+, \d+ %[^\r\n\033]*", written)

    def percents(self, written: str) -> list[int]:
        return [int(each) for each in re.findall(r", (\d+) %", written)]


class OnATerminal(ProgressCase):
    def test_it_moves_within_one_long_recording(self) -> None:
        self.add("chunk_1", "a.webm")
        written = self.on_terminal(env=self.slow(0.24, 0.06))
        percents = self.percents(written)
        self.assertGreater(len([each for each in percents if 0 < each < 100]), 3, written)
        self.assertEqual(percents, sorted(percents))
        self.assertRegex(written, r"\d %, about \d+ s left")

    def test_nothing_of_it_is_left_on_the_last_lines(self) -> None:
        self.add("chunk_1", "a.webm")
        written = self.on_terminal("-v")
        last = written.rindex("\033[J")
        self.assertEqual(self.bars(written[last:]), [])
        for bar in self.bars(written):
            self.assertRegex(
                written,
                re.escape(bar) + r"\r\033\[J",
                "each is cleared before anything else is written",
            )

    def test_no_colour_is_ever_used_and_no_progress_is_none(self) -> None:
        self.add("chunk_1", "a.webm")
        self.assertNotRegex(self.on_terminal("-n", env={"NO_COLOR": "1"}), r"\033\[[\d;]*m")
        for flag in ("--no-progress", "--quiet"):
            self.add("chunk_1", f"{flag}.webm")
            self.assertEqual(self.bars(self.on_terminal(flag)), [])


class WithoutATerminal(ProgressCase):
    def test_there_is_none_unless_it_is_asked_for(self) -> None:
        self.add("chunk_1", "a.webm")
        self.assertEqual(self.run_cli().err, "")
        self.drive("program.PROGRESS_PAUSE = 0.0")
        self.add("chunk_1", "b.webm")
        self.assertEqual(self.run_cli().err, "")
        self.add("chunk_1", "c.webm")
        err = self.run_cli("--progress").err
        self.assertEqual(self.bars(err), err.splitlines())
        self.assertTrue(err)
        self.add("chunk_1", "d.webm")
        self.assertEqual(self.run_cli("--no-progress").err, "")
