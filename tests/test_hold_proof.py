"""No hole of 30 ms passes, wherever it begins; no header makes a tolerance wide."""

from __future__ import annotations

import array
import math
import random
import struct
import tempfile
import unittest
from collections.abc import Callable, Sequence
from pathlib import Path

import compression_service as service
from tests.base import RECORDINGS, LibraryCase
from tests.webm import UNKNOWN, block, element, number, opus_head, packets_of

HOLE = 120  # samples at the rate of the levels: 30 ms
Change = Callable[[float], float]


class Holes(unittest.TestCase):
    """Levels that are written here, so that each damage is exactly one."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.paths = [str(Path(folder.name) / name) for name in ("source", "copy")]
        noise = random.Random(4)
        self.sound = [noise.gauss(0, 0.1) for _ in range(3 * service.LEVEL_RATE)]

    def compare(self, source: Sequence[float], copy: Sequence[float], channels: int = 1) -> None:
        found = service.Probe("ogg", "opus", channels, 48_000, length=len(source) // channels * 12)
        target = service.Target("opus", 96_000)
        job = service.Job("", found, target, "", True, self.paths[0], self.paths[1])
        for path, samples in zip(self.paths, (source, copy)):
            Path(path).write_bytes(array.array("f", samples).tobytes())
        service.compare_audio(job, service.Stop())

    def changed(self, at: int, change: Change) -> list[float]:
        inside = [change(sample) for sample in self.sound[at : at + HOLE]]
        return [*self.sound[:at], *inside, *self.sound[at + HOLE :]]

    def test_a_hole_is_noticed_wherever_it_begins(self) -> None:
        for at in range(5_900, 6_120, 11):
            with self.subTest(at), self.assertRaises(service.NotProven):
                self.compare(self.sound, self.changed(at, lambda sample: 0.0))

    def test_sound_that_is_faint_noise_or_said_twice_is_a_hole_too(self) -> None:
        noise = random.Random(5)
        twice = iter(self.sound[4_000:])
        changes: tuple[Change, ...] = (
            lambda sample: sample / 5,
            lambda sample: noise.gauss(0, 0.1),
            lambda sample: next(twice),
        )
        for number_, change in enumerate(changes):
            with self.subTest(number_), self.assertRaises(service.NotProven):
                self.compare(self.sound, self.changed(6_011, change))

    def test_a_hole_in_sound_29_db_below_its_half_second_is_noticed(self) -> None:
        share = 10 ** (-29 / 20)
        quiet = [share * sample for sample in self.sound[6_000:6_400]]
        source = [*self.sound[:6_000], *quiet, *self.sound[6_400:]]
        self.compare(source, source)
        with self.assertRaises(service.NotProven):
            self.compare(source, [*source[:6_130], *[0.0] * HOLE, *source[6_250:]])

    def test_a_hole_in_one_channel_is_noticed(self) -> None:
        other = [math.sin(at / 3) / 10 for at in range(len(self.sound))]
        source = [sample for frame in zip(self.sound, other) for sample in frame]
        holed = [
            sample
            for frame in zip(self.changed(7_007, lambda sample: 0.0), other)
            for sample in frame
        ]
        self.compare(source, source, channels=2)
        with self.assertRaises(service.NotProven):
            self.compare(source, holed, channels=2)


class GoodCopies(LibraryCase):
    def test_real_recordings_pass_at_low_and_high_rates_in_both_formats(self) -> None:
        names = ("chunk_0", "ch_antiphase_2s", "ff_webm_3s", "stereo_without_channels_2s")
        tools = service.Tools(service.Stop())
        jobs = []
        for form, rate in (("opus", 48_000), ("opus", 96_000), ("m4a", 64_000), ("m4a", 128_000)):
            for name in names:
                source = str(RECORDINGS / f"{name}.webm")
                paths = [str(self.folder / f"{name}-{form}-{rate}.{kind}") for kind in "abc"]
                target = service.Target(form, rate)
                found = service.probe_file(source, tools)
                jobs.append(service.Job(source, found, target, paths[0], True, paths[1], paths[2]))
        service.Transcoder(tools, full=True).process(jobs)
        for job in jobs:
            self.assertIsNone(job.problem, (job.source, job.target))

    def test_headers_that_contradict_each_other_by_seconds_widen_no_tolerance(self) -> None:
        packets = list(packets_of(RECORDINGS / "chunk_0.webm"))
        for milliseconds, pre_skip in ((5_000, 0), (30_000, 312), (1, 65_535), (200, 0)):
            delay = element(0x56AA, number(milliseconds * 10**6, 8))
            audio = element(0xB5, struct.pack(">f", 48_000)) + element(0x9F, number(1))
            track = element(0xD7, number(1)) + element(0x83, number(2)) + element(0x86, b"A_OPUS")
            track += element(0x63A2, opus_head(1, pre_skip)) + delay + element(0xE1, audio)
            content = element(0x1A45DFA3, element(0x4282, b"webm"))
            content += element(0x18538067, b"", UNKNOWN)
            content += element(0x1654AE6B, element(0xAE, track))
            content += b"".join(block(*packet) for packet in packets)
            self.add_bytes(content, f"d/{milliseconds}.webm")
        ran = self.run_cli("--json")
        self.assertEqual(ran.code, 0)
        for path in ran.outcomes:
            self.assert_kept(ran, path, "headers contradict")


if __name__ == "__main__":
    unittest.main()
