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

import compression_service as program
from tests.base import RECORDINGS
from tests.faults import FaultCase

# An ffmpeg whose level files grow in ten even parts, so that what progress says can be held against the time it takes.
SLOW = """
levels = [path[5:] for path in args if re.fullmatch(r'file:.*\\.(source|copy)', path)]
if not levels: os.execv(real, [real, *args])
codes = subprocess.call([real, *(word + '.whole' if word[5:] in levels else word for word in args)])
whole = {path: open(path + '.whole', 'rb').read() for path in levels}
for path in levels: os.unlink(path + '.whole')
for part in range(10):
    for path, content in whole.items():
        open(path, 'ab').write(content[len(content) * part // 10 : len(content) * (part + 1) // 10])
    time.sleep(%s if levels[0].endswith('source') else %s)
sys.exit(codes)"""


class ProgressCase(FaultCase):
    def on_terminal(
        self, *arguments: str, columns: int = 80, then: Optional[int] = None, env: Optional[dict[str, str]] = None
    ) -> str:
        """What a run writes to a terminal of so many columns, made `then` columns wide after a second."""
        leader, follower = pty.openpty()
        self.resize(leader, columns)
        environment = {**os.environ, "TERM": "xterm", **(env or {})}
        words = self.command(*arguments)
        process = subprocess.Popen(words, stdin=follower, stdout=follower, stderr=follower, env=environment)
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
        return re.findall(r"\d+/\d+  \d+ %[^\r\n\033]*", written)

    def percents(self, written: str) -> list[int]:
        return [int(each) for each in re.findall(r"  (\d+) %", written)]


class OnATerminal(ProgressCase):
    def test_one_long_recording_moves_and_the_time_left_is_right(self) -> None:
        self.add("chunk_1", "a.webm")
        written = self.on_terminal(env=self.slow(0.24, 0.06))
        percents = self.percents(written)
        self.assertGreater(len([each for each in percents if 0 < each < 100]), 3, written)
        self.assertEqual(percents, sorted(percents))
        found = [(int(share), int(left)) for share, left in re.findall(r"(\d+) %  .*?0:(\d\d) left", written)]
        self.assertTrue(found)
        for share, left in found:
            if share >= 10:
                self.assertAlmostEqual(left, 3.0 * (1 - share / 100), delta=1.3, msg=written)

    def test_it_shows_the_sizes_and_the_speed(self) -> None:
        self.add("chunk_1", "a.webm")
        bars = self.bars(self.on_terminal(env=self.slow(0.06, 0.06)))
        self.assertRegex(bars[-1], r"^[01]/1  \d+ %  0\.\d\d MB -> 0\.\d\d MB  \d+ x realtime")

    def test_no_line_is_wider_than_the_terminal_even_when_it_changes(self) -> None:
        self.add("chunk_1", "日本語の録音.webm")
        written = self.on_terminal(columns=80, then=40, env=self.slow(0.2, 0.02))
        bars = self.bars(written)
        self.assertLess(len(bars[-1]), 40)
        self.assertLess(max(map(len, bars)), 80)
        self.assertIn("\033[1A", written, "what the narrower window has wrapped is taken away too")
        for columns in (12, 26):
            self.add("chunk_1", f"{columns}.webm")
            for bar in self.bars(self.on_terminal(columns=columns)):
                self.assertLess(len(bar), columns)

    def test_nothing_of_it_is_left_on_the_last_lines(self) -> None:
        self.add("chunk_1", "a.webm")
        written = self.on_terminal("-v")
        last = written.rindex("\033[J")
        self.assertEqual(self.bars(written[last:]), [])
        for bar in self.bars(written):
            self.assertRegex(written, re.escape(bar) + r"\r\033\[J", "each is cleared before anything else is written")

    def test_a_dumb_terminal_gets_plain_lines(self) -> None:
        self.add("chunk_1", "a.webm")
        self.drive("program.PROGRESS_PAUSE = {True: 0.0, False: 1e9}")
        written = self.on_terminal(env={"TERM": "dumb"})
        self.assertTrue(self.bars(written))
        self.assertNotIn("\033", written)
        self.assertNotIn("\r", written.replace("\r\n", ""))

    def test_no_colour_is_ever_used_and_no_progress_is_none(self) -> None:
        self.add("chunk_1", "a.webm")
        self.assertNotRegex(self.on_terminal("-n", env={"NO_COLOR": "1"}), r"\033\[[\d;]*m")
        for flag in ("--no-progress", "--quiet"):
            self.add("chunk_1", f"{flag}.webm")
            self.assertEqual(self.bars(self.on_terminal(flag)), [])


class WithoutATerminal(ProgressCase):
    def test_a_line_comes_every_few_minutes_and_only_then(self) -> None:
        self.add("chunk_1", "a.webm")
        self.assertEqual(self.run_cli().err, "")
        self.drive("program.PROGRESS_PAUSE = {True: 1e9, False: 0.0}")
        self.add("chunk_1", "b.webm")
        err = self.run_cli("--json").err
        self.assertEqual(self.bars(err), err.splitlines())
        self.assertTrue(err)
        self.add("chunk_1", "c.webm")
        self.assertEqual(self.run_cli("--no-progress").err, "")
        self.assertGreaterEqual(program.PROGRESS_PAUSE[False], 120)

    def test_asked_for_it_says_more(self) -> None:
        self.drive("program.PROGRESS_PAUSE = {True: 0.0, False: 1e9}")
        self.add("chunk_1", "a.webm")
        self.assertTrue(self.bars(self.run_cli("--progress").err))

    def test_what_is_kept_does_not_count_as_audio_done(self) -> None:
        pace = program.Pace()
        for name, kept in (("chunk_0", False), ("ch_mic_24k_20s", True)):
            size = (RECORDINGS / f"{name}.webm").stat().st_size
            source = program.Source("a.webm", program.Identity(0, 0, size, 0))
            work = program.Work(source, program.Session("", [], []), program.Target("opus", 96_000), "", True)
            work.probe = program.Probe("matroska", "opus", 1, 48_000, {}, 960_000, (), 20.0)
            work.reason = program.Reason.LOW_BIT_RATE if kept else None
            pace.add(work, 5.0)
        self.assertEqual((pace.total, pace.through, pace.left), (20.0, 5.0, 15.0))

    def test_the_time_left_knows_that_a_batch_is_one_worker_s(self) -> None:
        self.assertEqual(program.hand_out(0, 10, [30.0, 0.0]), 30, "one long recording, however many workers")
        self.assertEqual(program.hand_out(30, 10, [5.0, 5.0]), 25, "three batches for two workers")
        self.assertAlmostEqual(program.hand_out(1e7, 0, [0.0] * 4), 2.5e6, delta=1e4)
