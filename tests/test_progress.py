"""Progress: a line that stays put, moves within a batch, is right about the time left, and is gone at the end."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import time
from typing import Optional

from tests.faults import FaultCase

# An ffmpeg whose level files grow in ten even parts, so that what progress says can be held against the time it takes. The trial
# of ffmpeg has none; the three processes of a recording that is alone are made to fail, so that one after the other works.
SLOW = """
if not levels: sys.exit(1) if "nut" in args and "lavfi" not in args else os.execv(real, [real, *args])
writes = [path for path in levels if args[args.index("file:" + path) - 1] != "-i"]
codes = subprocess.call([real, *(word + ".whole" if word[5:] in writes else word for word in args)])
whole = {path: open(path + ".whole", "rb").read() for path in writes}
for path in writes: os.unlink(path + ".whole")
for part in range(10):
    for path, content in whole.items():
        open(path, "ab").write(content[len(content) * part // 10 : len(content) * (part + 1) // 10])
    time.sleep(%s if outputs else %s)
sys.exit(codes)"""


class ProgressCase(FaultCase):
    def on_terminal(
        self,
        *arguments: str,
        columns: int = 80,
        then: Optional[int] = None,
        env: Optional[dict[str, str]] = None,
    ) -> str:
        """What a run writes to a terminal of so many columns, made `then` columns wide after a second."""
        leader, follower = pty.openpty()
        self.resize(leader, columns)
        environment = {**os.environ, "TERM": "xterm", **(env or {})}
        words = self.command(*arguments)
        process = subprocess.Popen(
            words, stdin=follower, stdout=follower, stderr=follower, env=environment
        )
        os.close(follower)
        written, began = b"", time.monotonic()
        try:
            while data := os.read(leader, 1 << 16):
                written += data
                if then and time.monotonic() - began > 1.2:
                    self.resize(leader, then)
        except OSError:  # the other side has closed
            pass
        os.close(leader)
        self.assertEqual(process.wait(), 0, written)
        return written.decode()

    def resize(self, terminal: int, columns: int) -> None:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def slow(self, encode: float, proof: float) -> dict[str, str]:
        return {"PATH": self.stand_in(SLOW % (encode, proof))["PATH"]}

    def bars(self, written: str) -> list[str]:
        return re.findall(r"\d+ of \d+, \d+ %[^\r\n\033]*", written)

    def percents(self, written: str) -> list[int]:
        return [int(each) for each in re.findall(r", (\d+) %", written)]


class OnATerminal(ProgressCase):
    def test_one_long_recording_moves_and_the_time_left_is_right(self) -> None:
        self.add("chunk_1", "a.webm")
        written = self.on_terminal(env=self.slow(0.24, 0.06))
        percents = self.percents(written)
        self.assertGreater(len([each for each in percents if 0 < each < 100]), 3, written)
        self.assertEqual(percents, sorted(percents))
        found = re.findall(r"(\d+) %, about (\d+) s left", written)
        self.assertTrue(found)
        for share, left in found:
            if int(share) >= 50:  # by then the start of the programs no longer counts
                expected = 3.0 * (1 - int(share) / 100)
                self.assertAlmostEqual(int(left), expected, delta=2, msg=written)

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
