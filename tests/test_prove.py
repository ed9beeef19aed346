"""Nothing passes the proof but the same sound, whole. Each check has a damage that only it notices."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import random
import shutil
import struct
import subprocess
import tempfile
import unittest
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Optional
from unittest import mock

import compression_service as service
from tests import standins
from tests.base import FFMPEG, RECORDINGS, LibraryCase, plain_decode
from tests.faults import HastyClock
from tests.webm import UNKNOWN, block, element, number, opus_head, packets_of

TARGET = service.Target("opus", 96_000)


def source(name: str) -> service.Probe:
    """What is in one of the real recordings."""
    return examine(RECORDINGS / f"{name}.webm")


def examine(path: Path) -> service.Probe:
    return service.probe_file(str(path), service.Tools(service.Stop()))


def job_of(found: service.Probe, copy: Path, form: str = "opus") -> service.Job:
    """A proof, as far as the checks look at it; its level files are `source` and `copy` beside the
    copy."""
    source, levels = (str(copy.parent / name) for name in ("source", "copy"))
    target = service.Target(form, 96_000)
    return service.Job("", found, target, str(copy), True, source, levels)


def with_checksums(content: bytearray) -> bytes:
    """An Ogg file whose pages say that they are what they are."""
    pages = [at for at in range(len(content)) if content[at : at + 4] == b"OggS"]
    for begin, end in zip(pages, [*pages[1:], len(content)]):
        content[begin + 22 : begin + 26] = bytes(4)
        struct.pack_into("<I", content, begin + 22, service.ogg_checksum(bytes(content[begin:end])))
    return bytes(content)


def encode(
    path: Path, *options: str, recording: str = "chunk_0", codec: str = "libopus", rate: str = "64k"
) -> Path:
    command = [
        FFMPEG,
        "-v",
        "error",
        "-nostdin",
        "-y",
        "-i",
        str(RECORDINGS / f"{recording}.webm"),
        *options,
        "-c:a",
        codec,
    ]
    subprocess.run([*command, "-b:a", rate, str(path)], check=True)
    return path


class Structure(LibraryCase):
    """What is told of a copy without decoding it."""

    def verify(self, copy: Path, recording: str = "chunk_0", form: str = "opus") -> None:
        job = job_of(source(recording), copy, form)
        service.check_structure(job, service.Tools(service.Stop()))

    def refused(self, copy: Path, *words: str) -> None:
        with self.assertRaises(service.NotProven) as caught:
            self.verify(copy)
        for word in words:
            self.assertIn(word, str(caught.exception))

    def test_a_good_copy_passes_in_every_format(self) -> None:
        self.verify(encode(self.folder / "a.opus"))
        self.verify(encode(self.folder / "a.m4a", codec="aac"), form="m4a")

    def test_an_empty_file_is_no_copy(self) -> None:
        empty = self.folder / "a.opus"
        empty.touch()
        self.refused(empty, "empty")

    def test_another_codec_is_noticed(self) -> None:
        self.refused(encode(self.folder / "a.ogg", "-f", "ogg", codec="flac"))

    def test_another_container_is_noticed(self) -> None:
        self.refused(encode(self.folder / "a.webm"))

    def test_another_number_of_channels_is_noticed(self) -> None:
        self.refused(encode(self.folder / "a.opus", "-ac", "2"), "with 1 channels", "with 2")

    def test_a_second_stream_is_noticed(self) -> None:
        one, two = (
            encode(self.folder / f"{name}.opus", recording=name) for name in ("chunk_0", "chunk_1")
        )
        one.write_bytes(one.read_bytes() + two.read_bytes())
        self.refused(one, "a second one begins")

    def test_a_stream_without_its_end_flag_is_noticed(self) -> None:
        copy = encode(self.folder / "a.opus")
        content = bytearray(copy.read_bytes())
        content[content.rindex(b"OggS") + 5] &= ~4
        copy.write_bytes(with_checksums(content))
        self.refused(copy, "last page")

    def test_a_granule_position_that_steps_back_is_noticed(self) -> None:
        copy = encode(self.folder / "a.opus")
        content = bytearray(copy.read_bytes())
        pages = [at for at in range(len(content)) if content[at : at + 4] == b"OggS"]
        struct.pack_into("<q", content, pages[3] + 6, 4_000)
        copy.write_bytes(with_checksums(content))
        self.refused(copy, "step back")

    def test_a_cut_inside_a_page_is_noticed(self) -> None:
        copy = encode(self.folder / "a.opus")
        copy.write_bytes(copy.read_bytes()[:-100])
        self.refused(copy, "short of the end")

    def test_one_other_byte_is_noticed_by_the_checksum_of_its_page(self) -> None:
        copy = encode(self.folder / "a.opus")
        content = bytearray(copy.read_bytes())
        content[len(content) // 2] ^= 1
        copy.write_bytes(content)
        self.refused(copy, "checksum")

    def test_a_page_that_is_missing_is_noticed(self) -> None:
        copy = encode(self.folder / "a.opus", "-page_duration", "200000")
        content = copy.read_bytes()
        pages = [at for at in range(len(content)) if content[at : at + 4] == b"OggS"]
        copy.write_bytes(content[: pages[5]] + content[pages[6] :])
        self.refused(copy, "pages are missing")

    def test_one_sample_less_is_noticed(self) -> None:
        self.refused(
            encode(self.folder / "a.opus", "-af", "atrim=end_sample=143999"), "143999 samples"
        )

    def test_a_copy_that_lacks_a_second_is_noticed_by_its_packets(self) -> None:
        self.refused(encode(self.folder / "a.opus", "-t", "2"), "144000 samples", "96000 samples")


class Wave(LibraryCase):
    """What is told of a copy by its decoded sound, half a second at a time."""

    def setUp(self) -> None:
        super().setUp()
        source = RECORDINGS / "ch_slices_concat.webm"
        self.samples = plain_decode(source, "-ac", "1", "-ar", "4000", "-f", "f32le")

    def compare(
        self,
        copy: bytes,
        packets: int = 0,
        gaps: tuple[tuple[int, int], ...] = (),
        channels: int = 1,
    ) -> None:
        """`packets`: samples that the source's packets have, if not those that were decoded; `gaps` at 4 kHz."""
        rate, samples = service.LEVEL_RATE, packets or len(self.samples) // 4 // channels
        found = service.Probe("ogg", "opus", channels, rate, length=samples, gaps=list(gaps))
        job = job_of(found, self.folder / "a.opus")
        Path(job.source_levels).write_bytes(self.samples)
        Path(job.copy_levels).write_bytes(copy)
        service.compare_audio(job, service.Stop())

    def changed(self, begin: float, end: float, factor: float) -> bytes:
        samples = array("f", self.samples)
        for at in range(int(begin * service.LEVEL_RATE), int(end * service.LEVEL_RATE)):
            samples[at] *= factor
        return samples.tobytes()

    def test_the_same_sound_passes(self) -> None:
        self.compare(self.samples)

    def test_silence_is_noticed(self) -> None:
        with self.assertRaises(service.NotProven):
            self.compare(bytes(len(self.samples)))

    def test_what_is_no_number_proves_nothing(self) -> None:
        for source, copy in ((math.nan, 0.1), (0.1, math.nan), (math.inf, math.inf)):
            samples = array("f", self.samples)
            samples[9_000] = copy
            sound = array("f", self.samples)
            sound[9_000] = source
            whole, self.samples = self.samples, sound.tobytes()
            with self.subTest(source), self.assertRaises(service.Refusal):
                self.compare(samples.tobytes())
            self.samples = whole

    def test_one_quiet_second_is_noticed_and_told_where(self) -> None:
        with self.assertRaisesRegex(service.NotProven, r"loudness at (3\.[5-9]|4\.[0-4]) s"):
            self.compare(self.changed(3.5, 4.5, 0.3))

    def test_one_lost_word_is_noticed(self) -> None:
        with self.assertRaises(service.NotProven):
            self.compare(self.changed(3.6, 4.1, 0))

    def test_a_shift_of_a_fiftieth_of_a_second_is_noticed(self) -> None:
        shift = 4 * service.LEVEL_RATE // 50
        with self.assertRaises(service.NotProven):
            self.compare(self.samples[shift:] + self.samples[:shift])

    def test_a_shift_of_0_7_seconds_is_noticed(self) -> None:
        shift = int(4 * service.LEVEL_RATE * 0.7)
        with self.assertRaises(service.NotProven):
            self.compare(self.samples[shift:] + self.samples[:shift])

    def test_the_same_loudness_with_other_content_is_noticed(self) -> None:
        samples = array("f", self.samples)
        for at in range(0, len(samples) - 200, 200):
            samples[at : at + 200] = samples[at : at + 200][::-1]
        with self.assertRaisesRegex(service.NotProven, "correlation"):
            self.compare(samples.tobytes())

    def test_a_copy_shorter_by_a_packet_is_noticed(self) -> None:
        with self.assertRaises(service.NotProven):
            self.compare(self.samples[: -4 * service.LEVEL_RATE // 50])

    def test_a_source_that_did_not_decode_to_its_own_length_proves_nothing(self) -> None:
        with self.assertRaisesRegex(service.NotProven, "by the source's packets"):
            self.compare(self.samples, packets=len(self.samples) // 4 + 4_000)

    def test_silence_has_to_be_where_the_source_has_a_gap_and_nowhere_else(self) -> None:
        at, length = 12_000, 4_000
        right = self.samples[: 4 * at] + bytes(4 * length) + self.samples[4 * at :]
        self.compare(right, gaps=((at, length),))
        for other in (at - 2_400, at + 2_400):
            with self.assertRaises(service.NotProven):
                self.compare(right, gaps=((other, length),))
        with self.assertRaises(service.NotProven):
            self.compare(right)

    def test_a_tenth_of_a_second_cut_and_filled_in_elsewhere_is_noticed(self) -> None:
        tenth = 4 * service.LEVEL_RATE // 10
        for cut, filled in ((10, 30), (30, 10), (10, 18)):
            kept = self.samples[: cut * tenth] + self.samples[(cut + 1) * tenth :]
            with self.subTest(cut=cut, filled=filled), self.assertRaises(service.NotProven):
                self.compare(kept[: filled * tenth] + bytes(tenth) + kept[filled * tenth :])


class Channels(Wave):
    """Each channel is compared for itself."""

    def setUp(self) -> None:
        super().setUp()
        self.left = array("f", self.samples)
        self.right = self.left[3_000:] + self.left[:3_000]  # another sound, as loud

    def stereo(self, left: Iterable[float], right: Iterable[float]) -> bytes:
        return array("f", [sample for pair in zip(left, right) for sample in pair]).tobytes()

    def refused(self, source: bytes, *copies: bytes) -> None:
        self.samples = source
        self.compare(source, channels=2)
        for at, copy in enumerate(copies):
            with self.subTest(at), self.assertRaises(service.NotProven):
                self.compare(copy, channels=2)

    def test_two_channels_exchanged_silent_or_the_same_are_noticed(self) -> None:
        left, right, none = self.left, self.right, [0] * len(self.left)
        moved, inverted = right[400:] + right[:400], [-sample for sample in right]
        self.refused(self.stereo(left, right), self.stereo(right, left), self.stereo(left, none), self.stereo(none, right),
                     self.stereo(left, left), self.stereo(none, none), self.stereo(left, moved),
                     self.stereo(left, inverted))  # fmt: skip

    def test_a_recording_that_cancels_itself_out_in_a_mix_is_compared_all_the_same(self) -> None:
        left, inverse, none = self.left, [-sample for sample in self.left], [0] * len(self.left)
        self.refused(
            self.stereo(left, inverse),
            self.stereo(none, none),
            self.stereo(left, left),
            self.stereo(inverse, left),
        )

    def test_a_channel_20_dB_quieter_may_not_be_lost(self) -> None:
        left, quiet, none = self.left, [sample / 10 for sample in self.right], [0] * len(self.left)
        self.refused(
            self.stereo(left, quiet),
            self.stereo(left, none),
            self.stereo(left, [s / 10 for s in left]),
        )

    def test_a_silent_channel_has_to_stay_silent(self) -> None:
        left, none = self.left, [0] * len(self.left)
        self.refused(
            self.stereo(left, none),
            self.stereo(left, [s / 5 for s in left]),
            self.stereo(none, left),
        )


class Sources(LibraryCase):
    """What the walkers know of a source; each kind of damage is seen by one of their rules."""

    def refused(self, content: bytes, reason: service.Reason) -> str:
        path = self.folder / "source.webm"
        path.write_bytes(content)
        with self.assertRaises(service.Refusal) as caught:
            examine(path)
        self.assertIs(caught.exception.reason, reason, caught.exception)
        return str(caught.exception)

    def test_length_gaps_and_channels_come_from_the_packets(self) -> None:
        suspended = source("ch_ctx_suspend_4_3_4s")
        self.assertAlmostEqual(suspended.seconds, 7.98, delta=0.001)
        self.assertAlmostEqual(suspended.timeline, 10.98, delta=0.05)
        self.assertEqual(suspended.gaps, [(190_080, 143_952)])
        self.assertEqual(suspended.channels, 2)
        self.assertAlmostEqual(source("ch_late_track_5s").timeline, 4.98, delta=0.01)
        self.assertAlmostEqual(source("ff_chunk_1").timeline, 3.304, delta=0.001)
        self.assertEqual(
            source("ch_mp4mime_10s").samples, 474_240
        )  # less what its header has decoders skip, 80 ms
        self.assertAlmostEqual(source("ch_mic_24k_20s").kilobits, 23.8, delta=0.5)

    def test_every_cut_of_a_recording_is_noticed_unless_it_falls_between_packets(self) -> None:
        whole = (RECORDINGS / "ff_webm_3s.webm").read_bytes()
        for length in range(1_000, len(whole), 1_013):
            self.refused(whole[:length], service.Reason.TRUNCATED)

    def test_a_cut_between_packets_is_noticed_by_the_length_on_record(self) -> None:
        found = source("ff_webm_3s")
        target = service.Target("opus", 96_000)
        with self.assertRaises(service.Refusal) as caught:
            service.decide(found, 50_127, 5.0, target, 5)
        self.assertIs(caught.exception.reason, service.Reason.TRUNCATED)
        self.assertGreater(service.decide(found, 50_127, 3.0, target, 5), 0)

    def test_a_hole_in_the_middle_is_noticed(self) -> None:
        whole = (RECORDINGS / "chunk_0.webm").read_bytes()
        self.refused(whole[:20_000] + whole[24_000:], service.Reason.DAMAGED)
        self.refused(whole[:20_000] + bytes(4_000) + whole[24_000:], service.Reason.DAMAGED)

    def test_a_header_longer_than_the_audio_means_a_lost_end(self) -> None:
        whole = bytearray((RECORDINGS / "chunk_0.webm").read_bytes())
        at = whole.index(b"\x44\x89\x84") + 3
        struct.pack_into(">f", whole, at, 9_000.0)
        self.assertIn("9.0 s", self.refused(bytes(whole), service.Reason.TRUNCATED))

    def test_a_jump_to_the_end_of_the_clock_is_not_filled_with_weeks_of_silence(self) -> None:
        found = source("chunk_0")
        leaped = dataclasses.replace(found, gaps=[(0, 2_147_480 * found.rate)])
        with self.assertRaises(service.Refusal) as caught:
            service.decide(leaped, 49_217, 0.0, service.Target("opus", 96_000), 5)
        self.assertIs(caught.exception.reason, service.Reason.GAPS)


class Commands(unittest.TestCase):
    """The command lines, as they are given to ffmpeg."""

    def test_no_name_of_a_recording_can_be_taken_for_an_option_or_a_protocol(self) -> None:
        words = service.input_arguments("/library/-v.webm", "matroska")
        self.assertEqual(words[-4:], ["-f", "matroska", "-i", "file:/library/-v.webm"])
        self.assertEqual(words[: len(service.SAFE_INPUT)], service.SAFE_INPUT)

    def test_each_packet_s_length_is_told_by_its_first_two_bytes(self) -> None:
        for start, samples in (
            (b"\xfb\x83", 2880),
            (b"\xfc", 960),
            (b"\x78", 960),
            (b"\x18", 2880),
            (b"\xfb\xbf", 0),
            (b"", 0),
        ):
            self.assertEqual(service.opus_packet_samples(start), samples, start)


class ProveCase(LibraryCase):
    def setUp(self) -> None:
        super().setUp()
        self.tools = service.Tools(service.Stop())
        (self.folder / ".compression").mkdir()

    def use(self, does: Callable[..., Any], **settings: Any) -> None:
        """From now on, ffmpeg is a stand-in."""
        folder = self.stand_in(does, **settings)["PATH"].split(os.pathsep)[0]
        self.tools.__dict__["ffmpeg"] = f"{folder}/ffmpeg"

    def job(
        self, source: Path, target: service.Target = TARGET, encodes: bool = True
    ) -> service.Job:
        number = len(list(self.folder.iterdir()))
        name = f".compression-0a-{number}.part"
        levels = [self.folder / ".compression" / f".compression-{n}a-{number}.part" for n in "bc"]
        paths = [self.folder / name, *levels]
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


class TestLies(ProveCase):
    """An ffmpeg that exits 0, where what it wrote is not the recording."""

    def lie(self, does: Callable[..., Any], **settings: Any) -> str:
        """Returns what is said of a recording."""
        self.use(standins.one_after_the_other, then=does.__name__, **settings)
        job = self.job(RECORDINGS / "chunk_1.webm")
        job.most = 48_000
        (problem,) = self.prove(job)
        self.assertIsNotNone(problem)
        return f"{type(problem).__name__} {problem}"

    def test_each_lie_is_noticed_for_what_it_is(self) -> None:
        other = str(RECORDINGS / "ch_slices_concat.webm")
        whole, same = "one whole opus stream", "the source's "
        length = "by its source's packets"
        for does, settings, words in (
            (standins.half_of_each_file, {}, whole),
            (standins.half_of_the_audio, {}, length),
            (standins.a_tenth_of_a_second_short, {}, length),
            (standins.half_of_copy_and_levels, {}, length),
            (standins.noise, {}, same),
            (standins.silence, {}, same),
            (standins.one_quiet_second, {}, "the source's loudness at "),
            (standins.half_a_second_of_silence, {}, " at 1."),
            (standins.late_by_0_7_seconds, {}, same),
            (standins.upside_down, {}, same),
            (standins.another_recording, {"other": other}, same),
            (standins.empty_copies, {}, "empty"),
            (standins.empty_level_files, {}, "by the source's packets"),
            (standins.another_codec, {}, "FLAC"),
            (standins.complaint_about_the_copy, {}, "a decode without a message"),
        ):
            with self.subTest(does.__name__):
                problem = self.lie(does, **settings)
                self.assertIn("NotProven", problem)
                self.assertIn(words, problem)

    def test_a_rate_that_is_too_low_is_blamed_only_if_a_higher_rate_proves_true(self) -> None:
        noise = random.Random(6)
        samples = array("f", (noise.gauss(0, 0.1) for _ in range(2 * 48_000)))
        form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, 2, 48_000, 384_000, 8, 32)
        data = b"data" + struct.pack("<I", 4 * len(samples)) + samples.tobytes()
        source = self.folder / "noise.webm"
        source.write_bytes(b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVE" + form + data)
        target = service.Target("opus", 24_000)
        (problem,) = self.prove(self.job(source, target))
        self.assertIs(service.reason_of(problem), service.Reason.RATE_TOO_LOW)
        self.use(standins.silence)
        self.assertIsInstance(self.prove(self.job(source, target))[0], service.NotProven)

    def test_a_missing_level_file_proves_nothing(self) -> None:
        self.lie(standins.no_level_files)

    def test_a_copy_as_large_as_its_source_is_not_worth_it(self) -> None:
        self.assertIn("are worth it", self.lie(standins.as_large_as_the_source))

    def test_one_that_makes_nothing_or_half_of_whatever_it_is_asked_for_is_blamed(self) -> None:
        for does in (standins.nothing_at_all, standins.half_of_everything):
            self.use(does)
            with self.assertRaises(service.ToolError) as caught:
                service.try_ffmpeg(self.tools, TARGET)
            self.assertIn("of 48000 samples", str(caught.exception))


class TestPiped(ProveCase):
    """Of a recording that is alone, three processes decode, encode, and decode the copy, at once."""

    def test_one_after_the_other_is_the_way_where_any_of_them_fails_hangs_or_says_anything(
        self,
    ) -> None:
        sign, hung = self.folder / "sign", self.folder / "hung"
        clock = HastyClock(str(hung))
        for at in ("decoder", "encoder", "listener"):
            crash = ("crash",) if at == "encoder" else ()  # a crash ends all three alike
            for fault in ("exit", "complain", "hang", *crash):
                with self.subTest(at, fault=fault):
                    self.use(standins.piped, sign=str(sign), at=at, fault=fault, hung=str(hung))
                    with mock.patch.object(service, "monotonic", clock):
                        self.assertEqual(self.prove(self.job(RECORDINGS / "chunk_1.webm")), [None])
                    self.assertTrue(sign.exists(), "nothing was piped")
                    sign.unlink()
        self.assertEqual(len(clock.hangs()), 3)


class TestProvenance(ProveCase):
    def test_what_a_stranger_made_is_not_ours(self) -> None:
        for path in sorted(RECORDINGS.glob("*.webm")):
            self.assertIsNone(service.provenance(str(path)), path.name)


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
        self.tolerance = service.TOLERANCES["opus"][0]

    def compare(self, source: Sequence[float], copy: Sequence[float], channels: int = 1) -> None:
        found = service.Probe("ogg", "opus", channels, 48_000, length=len(source) // channels * 12)
        target = service.Target("opus", 96_000)
        job = service.Job("", found, target, "", True, self.paths[0], self.paths[1])
        job.tolerance = self.tolerance
        for path, samples in zip(self.paths, (source, copy)):
            Path(path).write_bytes(array("f", samples).tobytes())
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
        for self.tolerance in itertools.chain(*service.TOLERANCES.values()):
            self.compare(source, source)
            with self.subTest(self.tolerance), self.assertRaises(service.NotProven):
                self.compare(source, [*source[:6_130], *[0.0] * HOLE, *source[6_250:]])

    def test_a_loud_sound_more_than_a_quarter_of_a_second_away_hides_no_hole(self) -> None:
        for begin in range(6_000, 8_000, 250):  # wherever half a second of the grid begins
            quiet = [sample / 100 for sample in self.sound]
            source = [*quiet[:begin], *self.sound[begin : begin + 400], *quiet[begin + 400 :]]
            hole = begin + 1_480
            copy = [*source[:hole], *[0.0] * HOLE, *source[hole + HOLE :]]
            silence = [0.0] * len(source)
            for channels in ((), (silence,), (source,)):
                whole = [*itertools.chain(*zip(source, *channels))]
                holed = [*itertools.chain(*zip(copy, *channels))]
                with self.subTest(begin, channels=len(channels)):
                    self.compare(whole, whole, 1 + len(channels))
                    with self.assertRaises(service.NotProven):
                        self.compare(whole, holed, 1 + len(channels))

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
