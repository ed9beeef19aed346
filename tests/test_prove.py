"""Nothing passes the proof but the same sound, whole; every check is the only one that notices."""

from __future__ import annotations

import array
import math
import random
import shutil
import tempfile
import unittest
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import compression_service as service

RECORDINGS = Path(__file__).resolve().parent / "recordings"
TARGET = service.Target("opus", 96_000)


class ProveCase(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.tools = service.Tools(service.Stop())

    def job(
        self, source: Path, target: service.Target = TARGET, encodes: bool = True
    ) -> service.Job:
        number = len(list(self.folder.iterdir()))
        paths = [self.folder / f"{number}.{kind}" for kind in ("copy", "source", "levels")]
        for path in paths:
            path.touch()
        copy, source_levels, copy_levels = map(str, paths)
        found = service.probe_file(str(source), self.tools)
        return service.Job(str(source), found, target, copy, encodes, source_levels, copy_levels)

    def prove(self, *jobs: service.Job) -> list[Optional[Exception]]:
        service.Transcoder(self.tools, full=True).process(jobs)
        return [job.problem for job in jobs]


class TestTranscoder(ProveCase):
    def test_a_recording_is_proven_alone_and_in_a_batch_in_both_formats(self) -> None:
        sources = [RECORDINGS / name for name in ("chunk_0.webm", "ch_ctx_suspend_4_3_4s.webm")]
        for name in service.FORMATS:
            target = service.Target(name, 64_000)
            with self.subTest(name):
                self.assertEqual(self.prove(self.job(sources[1], target)), [None])
                jobs = [self.job(source, target) for source in sources]
                self.assertEqual(self.prove(*jobs), [None, None])
                for job in jobs:
                    self.assertEqual(service.provenance(job.copy), 64_000)
                    made = service.probe_file(job.copy, self.tools)
                    slack = target.form.slack / made.rate + 0.001
                    self.assertAlmostEqual(made.timeline, job.probe.timeline, delta=slack)

    def test_the_copy_of_another_recording_is_none_of_this(self) -> None:
        other = self.job(RECORDINGS / "chunk_1.webm")
        self.assertEqual(self.prove(other), [None])
        job = self.job(RECORDINGS / "chunk_0.webm", encodes=False)
        shutil.copy(other.copy, job.copy)
        self.assertIsInstance(self.prove(job)[0], service.NotProven)

    def test_one_bad_recording_does_not_spoil_its_batch(self) -> None:
        good, bad = (self.job(RECORDINGS / "chunk_0.webm") for _ in range(2))
        bad.source = str(self.folder / "gone.webm")
        problems = self.prove(good, bad)
        self.assertIsNone(problems[0])
        self.assertIsInstance(problems[1], service.Refusal)


class TestComparison(ProveCase):
    """Of levels that are written here, so that each damage is exactly one."""

    def setUp(self) -> None:
        super().setUp()
        noise = random.Random(1)
        count = 4 * service.LEVEL_RATE
        self.left = [noise.randint(-9_000, 9_000) for _ in range(count)]
        self.right = [noise.randint(-9_000, 9_000) for _ in range(count)]

    def compare(
        self, left: Sequence[int], right: Sequence[int], gaps: tuple[tuple[int, int], ...] = ()
    ) -> None:
        job = self.job(RECORDINGS / "chunk_0.webm")
        samples = len(self.left) * 12
        job.probe = service.Probe("ogg", "opus", 2, 48_000, length=samples, gaps=list(gaps))
        for path, channels in (
            (job.source_levels, (self.left, self.right)),
            (job.copy_levels, (left, right)),
        ):
            frames = [sample for frame in zip(*channels) for sample in frame]
            scaled = [sample / 32_768 for sample in frames]
            Path(path).write_bytes(array.array("f", scaled).tobytes())
        service.compare_audio(job, self.tools.stop)

    def test_the_same_sound_passes(self) -> None:
        self.compare(self.left, self.right)

    def test_silence_stands_where_the_timeline_has_a_gap_and_nowhere_else(self) -> None:
        gap, at = [0] * 2_000, 6_000
        left, right = (side[:at] + gap + side[at:] for side in (self.left, self.right))
        self.compare(left, right, gaps=((at * 12, 2_000 * 12),))
        with self.assertRaises(service.NotProven):
            self.compare(left, right)
        with self.assertRaises(service.NotProven):
            self.compare(left, right, gaps=((2 * at * 12, 2_000 * 12),))

    def test_every_loss_in_one_channel_is_noticed(self) -> None:
        silent = [0] * len(self.left)
        moved = self.right[400:] + self.right[:400]
        for right in (silent, moved, self.left, [-sample for sample in self.right]):
            with self.subTest(right[:3]), self.assertRaises(service.NotProven):
                self.compare(self.left, right)

    def test_a_quiet_channel_that_is_lost_is_noticed(self) -> None:
        self.right = [round(sample * 0.1) for sample in self.right]  # -20 dB
        self.compare(self.left, self.right)
        with self.assertRaises(service.NotProven):
            self.compare(self.left, [0] * len(self.right))

    def test_a_length_that_differs_by_a_packet_is_noticed(self) -> None:
        packet = math.ceil(0.02 * service.LEVEL_RATE)
        with self.assertRaises(service.NotProven):
            self.compare(self.left[:-packet], self.right[:-packet])


class TestMessages(ProveCase):
    """What a tool says is judged by its words and not by its exit code alone."""

    def judge(self, words: str, code: int = 0) -> str:
        return self.tools.run(["sh", "-c", f"echo '{words}' >&2; exit {code}"], 0)[1]

    def test_a_fault_of_the_disk_is_no_fault_of_the_recording(self) -> None:
        for words, reason in (
            ("[error] file:x: Input/output error", service.Reason.INPUT_OUTPUT),
            (
                "[in#0 @ 0x1] [error] Error during demuxing: Input/output error",
                service.Reason.INPUT_OUTPUT,
            ),
            (
                "[error] Error writing trailer of x: No space left on device",
                service.Reason.NO_SPACE,
            ),
        ):
            for code in (0, 1):
                with self.subTest(words, code=code), self.assertRaises(service.Refusal) as caught:
                    self.judge(words, code)
                self.assertIs(caught.exception.reason, reason)
                self.assertTrue(reason.is_environment)

    def test_words_are_told_without_what_ffmpeg_puts_around_them(self) -> None:
        self.assertEqual(
            self.judge("[aac @ 0x55d4] [error] channel 0 is odd"), "[aac] channel 0 is odd"
        )

    def test_what_is_said_of_sound_files_or_by_others_is_no_word_on_them(self) -> None:
        for words in ("[warning] Guessed Channel Layout for Input", "ld.so: no such library"):
            self.assertEqual(self.judge(words), "")


class TestProvenance(ProveCase):
    def test_what_a_stranger_made_is_not_ours(self) -> None:
        for path in sorted(RECORDINGS.glob("*.webm")):
            self.assertIsNone(service.provenance(str(path)), path.name)


if __name__ == "__main__":
    unittest.main()
