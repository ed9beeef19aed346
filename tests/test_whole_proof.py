"""What the proof lets through and what it does not: every sample, every channel, every byte."""

from __future__ import annotations

import math
import random
import struct
import subprocess
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Callable, Optional

from tests.base import FFMPEG, RECORDINGS, plain_decode
from tests.faults import FaultCase
from tests.webm import Packet, block, element, header, lace, number, opus_head, packets_of, write

RATE = 48_000
FROZEN = "ch_frozen_tab_6s"
Gaps = Sequence[tuple[int, int]]  # (samples before, samples of silence)


def samples_of(path: Path, channels: int) -> array[float]:
    """Every sample of a plain decode at 48 kHz, channels interleaved, in float."""
    form = ("-ac", str(channels), "-ar", str(RATE), "-f", "f32le")
    return array("f", plain_decode(path, *form))


def ffmpeg(*words: str) -> None:
    subprocess.run([FFMPEG, "-v", "error", "-nostdin", "-y", *words], check=True)


class ProofCase(FaultCase):
    def make(self, *words: str, name: str = "a.webm", recording: str = "chunk_1") -> Path:
        """A file of the library that ffmpeg makes from a real recording."""
        path = self.library / name
        ffmpeg("-i", str(RECORDINGS / f"{recording}.webm"), *words, f"file:{path}")
        return self.add_bytes(path.read_bytes(), name)

    def put(
        self,
        packets: Sequence[Packet],
        name: str = "a.webm",
        head: Optional[bytes] = None,
        **parts: bytes,
    ) -> Path:
        path = write(self.library / name, packets, head, **parts)
        return self.add_bytes(path.read_bytes(), name)

    def packets(self, name: str = "ch_slices_concat", count: int = 60) -> list[Packet]:
        return list(packets_of(RECORDINGS / f"{name}.webm"))[:count]

    def assert_whole(
        self, name: str = "a.webm", gaps: Gaps = (), channels: int = 1, *arguments: str
    ) -> Path:
        """Run; its copy then has every sample of the source in order, with silence in the gaps and nowhere else."""
        source = samples_of(self.library / name, channels)
        ran = self.run_cli("--json", *arguments)
        self.assertEqual(ran.code, 0, ran.out + ran.err)
        copy = self.assert_compressed(name)
        found, expected, at = samples_of(copy, channels), array("f"), 0
        for position, length in gaps:
            expected += source[at * channels : position * channels] + array(
                "f", bytes(4 * length * channels)
            )
            at = position
        expected += source[at * channels :]
        self.assertEqual(len(found), len(expected), "another number of samples")
        for start in range(0, len(found) // channels, RATE // 2):
            for channel in range(channels):
                part = slice(
                    start * channels + channel, (start + RATE // 2) * channels, channels * 3
                )
                a, b = expected[part], found[part]
                power = math.hypot(*a) * math.hypot(*b)
                if math.hypot(*a) > 0.1:
                    correlation = (
                        (math.hypot(*a) ** 2 + math.hypot(*b) ** 2 - math.dist(a, b) ** 2)
                        / 2
                        / (power or 1)
                    )
                    self.assertGreater(
                        correlation, 0.9, f"{name}, channel {channel}, {start / RATE} s"
                    )
        return copy

    def assert_refused(self, name: str, *words: str) -> None:
        ran = self.run_cli("--json")
        self.assert_kept(ran, name, *words, action="failed")


class EverySample(ProofCase):
    """Timestamps say where silence belongs, and never what is left out."""

    def test_speech_that_a_frozen_tab_stamps_within_milliseconds_is_kept(self) -> None:
        self.add(FROZEN, "a.webm")
        self.assert_whole(gaps=((60_480, 191_568),), channels=2)

    def test_the_same_where_a_recording_is_alone_and_goes_through_three_processes(self) -> None:
        self.add(FROZEN, "a.webm")
        self.assert_whole("a.webm", ((60_480, 191_568),), 2, "-j", "8")

    def test_a_clock_that_is_fast_or_slow_or_jitters_moves_nothing(self) -> None:
        rng = random.Random(1)
        clocks: dict[str, Callable[[int], int]] = {
            "fast": lambda n: 58 * n,
            "slow": lambda n: 62 * n,
            "jitter": lambda n: 60 * n + rng.randrange(-8, 9),
            "late": lambda n: 60 * n - (n % 10 == 5) * 30,
            "burst": lambda n: 60 * n if n < 30 else 1_800 + n // 10,
        }
        for name, stamp in clocks.items():
            self.put(
                [Packet(max(0, stamp(n)), data) for n, (_, data) in enumerate(self.packets())],
                f"{name}.webm",
            )
        sources = {path.name: samples_of(path, 1) for path in self.library.iterdir()}
        ran = self.run_cli("--json")
        self.assertEqual(ran.summary["compressed"], 5, ran.out)
        for name, source in sources.items():
            self.assertEqual(len(samples_of(self.assert_compressed(name), 1)), len(source), name)

    def test_gaps_are_filled_where_they_are(self) -> None:
        late = {
            20: 700,
            35: 120,
            50: 2_500,
        }  # milliseconds by which all from this packet on come later
        packets = [Packet(stamp + sum(ms for at, ms in late.items() if n >= at), data)
                   for n, (stamp, data) in enumerate(self.packets())]  # fmt: skip
        self.put(packets)
        # What silence saves, the encoder spends on the speech behind it.
        self.configure(min_saving_percent=0)
        self.assert_whole(gaps=[(at * 2_880, ms * 48) for at, ms in late.items()])

    def test_gaps_begin_behind_what_a_decoder_skips(self) -> None:
        packets = list(packets_of(RECORDINGS / "ff_webm_3s.webm"))
        self.put(
            [Packet(stamp + (n >= 70) * 500, data) for n, (stamp, data) in enumerate(packets)],
            head=opus_head(1, 312),
        )
        length = (packets[70].stamp + 500) * 48 - 70 * 960
        self.assert_whole(gaps=((70 * 960 - 312, length),))

    def test_more_gaps_than_a_filter_takes_terms_in_a_row(self) -> None:
        samples = array(
            "h", (int(20_000 * value) for value in samples_of(RECORDINGS / "chunk_1.webm", 1))
        ).tobytes()
        audio = (
            element(0xB5, struct.pack(">d", RATE))
            + element(0x9F, number(1))
            + element(0x6264, number(16))
        )
        packets = [
            Packet(145 * n, samples[2_400 * n : 2_400 * (n + 1)]) for n in range(120)
        ]  # 25 ms each
        self.put(packets, head=b"", codec=b"A_PCM/INT/LIT", audio=audio)
        self.assert_whole(gaps=[(1_200 * n, 5_760) for n in range(1, 120)])

    def test_a_gap_in_mp4_is_filled_as_well(self) -> None:
        source = self.put(
            [
                Packet(stamp + (n >= 30) * 2_500, data)
                for n, (stamp, data) in enumerate(self.packets())
            ]
        )
        for name, flags in (("plain", "faststart"), ("fragments", "frag_keyframe+empty_moov")):
            path = self.library / f"{name}.webm"
            ffmpeg(
                "-i",
                str(source),
                "-c",
                "copy",
                "-strict",
                "-2",
                "-movflags",
                flags,
                "-f",
                "mp4",
                str(path),
            )
            self.add_bytes(path.read_bytes(), path.name)
        source.unlink()
        samples = {path.name: len(samples_of(path, 1)) for path in self.library.iterdir()}
        self.assertEqual(self.run_cli("--json").summary["compressed"], 2)
        for name, count in samples.items():
            self.assertAlmostEqual(
                len(samples_of(self.assert_compressed(name), 1)),
                count + 120_000,
                delta=480,
                msg=name,
            )

    def test_an_hour_of_sleep_is_not_filled_and_is_told(self) -> None:
        self.put(
            [
                Packet(stamp + (n >= 30) * 3_600_000, data)
                for n, (stamp, data) in enumerate(self.packets())
            ]
        )
        self.assert_kept(self.run_cli("--json"), "a.webm", "3600 s", "silence")

    def test_a_late_start_is_silence_up_to_ten_seconds_and_left_off_beyond(self) -> None:
        for seconds, gaps in ((5, ((0, 240_000),)), (15, ())):
            self.put(
                [Packet(stamp + 1_000 * seconds, data) for stamp, data in self.packets()],
                f"{seconds}.webm",
            )
            self.assert_whole(f"{seconds}.webm", gaps=gaps)

    def test_a_header_s_duration_is_where_the_recording_ends(self) -> None:
        packets = [Packet(stamp + 5_000, data) for stamp, data in self.packets()]
        for name, end in (("whole", 8_600.0), ("short", 12_000.0)):
            info = element(
                0x1549A966,
                element(0x2AD7B1, number(1_000_000, 4)) + element(0x4489, struct.pack(">d", end)),
            )
            self.put(packets, f"{name}.webm", extra=info)
        ran = self.run_cli("--json")
        self.assert_compressed("whole.webm")
        self.assert_kept(ran, "short.webm", "truncated", "12.0 s")

    def test_timestamps_that_step_back_by_more_than_a_second_are_damage(self) -> None:
        self.put(
            [
                Packet(stamp if n < 40 else stamp - 1_500, data)
                for n, (stamp, data) in enumerate(self.packets())
            ]
        )
        self.assert_kept(self.run_cli("--json"), "a.webm", "step back by 1.5 s")

    def test_a_microphone_with_an_offset_is_compressed_without_it(self) -> None:
        source = self.make("-af", "dcshift=0.3", "-c:a", "pcm_s16le", "-f", "wav")
        samples = len(samples_of(source, 1))
        self.run_cli("--json")
        self.assertEqual(len(samples_of(self.assert_compressed("a.webm"), 1)), samples)

    def test_a_tenth_of_a_second_of_speech_that_is_muted_where_it_stands_is_refused(self) -> None:
        self.add("ch_slices_concat", "a.webm")
        muted = "volume=0:enable='between(t,2.6,2.72)'"
        self.drive(
            f"true = program.timeline_filter\nprogram.timeline_filter = lambda found: true(found) + {(',' + muted)!r}"
        )
        self.assert_refused("a.webm", "did not prove true")

    def test_the_old_filter_which_cuts_is_refused(self) -> None:
        self.add(FROZEN, "a.webm")
        self.drive("program.timeline_filter = lambda found: 'aresample=async=1:first_pts=0'")
        self.assert_refused("a.webm", "did not prove true")

    def test_a_filter_that_cuts_a_tenth_and_fills_a_tenth_elsewhere_is_refused(self) -> None:
        cut = "aselect='not(between(t,1.0,1.1))',asetpts='(N+4800*gte(N,96000))/SR/TB',aresample=async=1:first_pts=0"
        self.drive(f"program.timeline_filter = lambda found: {cut!r}")
        self.add("ch_slices_concat", "a.webm")
        self.assert_refused("a.webm", "did not prove true")


class Layouts(ProofCase):
    """Sound files whose containers are laid out in unusual ways."""

    def test_padding_at_the_end_is_left_out(self) -> None:
        packets = [data for _, data in self.packets()]
        group = element(0xA1, b"\x81\0\0\0" + packets[0]) + element(
            0x75A2, (20_000_000).to_bytes(4, "big")
        )
        tail = element(0x1F43B675, element(0xE7, number(0)) + element(0xA0, group))
        rate = element(0xB5, struct.pack(">d", 48_000))
        path = self.add_bytes(header(head=opus_head(), audio=rate) + tail, "padded.webm")
        from compression_service import Stop, Tools, probe_file  # noqa: PLC0415

        probe = probe_file(str(path), Tools(Stop()))
        self.assertEqual(probe.samples, 1_920)
        self.assertEqual(len(samples_of(path, 1)), 1_920)
        self.assertEqual(probe.gaps, [])

    def test_laced_blocks_are_kept_with_that_reason(self) -> None:
        packets = [data for _, data in self.packets()]
        for kind, flags in (("xiph", 0x82), ("fixed", 0x84), ("ebml", 0x86)):
            content = header(head=opus_head())
            for start in range(0, len(packets), 4):
                content += block(60 * start, lace(packets[start : start + 4], kind), flags)
            self.add_bytes(content, f"{kind}.webm")
        ran = self.run_cli("--json")
        self.assertEqual(ran.code, 0)
        for kind in ("xiph", "fixed", "ebml"):
            self.assert_kept(ran, f"{kind}.webm", "several packets in one block")

    def test_an_empty_last_packet_ends_an_ogg_stream(self) -> None:
        from compression_service import ogg_checksum  # noqa: PLC0415

        content = (RECORDINGS / "ff_chunk_1.webm").read_bytes()
        last = content.rindex(b"OggS")
        page = bytearray(content[last:])
        granule, serial, sequence = struct.unpack_from("<qII", page, 6)
        page[5] &= ~4
        end = bytearray(
            b"OggS\0\4" + struct.pack("<qIIIB", granule, serial, sequence + 1, 0, 1) + b"\0"
        )
        for each in (page, end):
            each[22:26] = bytes(4)
            struct.pack_into("<I", each, 22, ogg_checksum(bytes(each)))
        self.add_bytes(content[:last] + page + end, "a.webm")
        self.assert_whole()

    def test_an_end_trim_of_more_than_the_last_page_is_damage_and_nobody_has_failed(self) -> None:
        from compression_service import ogg_checksum  # noqa: PLC0415

        content = bytearray((RECORDINGS / "ff_chunk_1.webm").read_bytes())
        last = content.rindex(b"OggS")
        struct.pack_into("<q", content, last + 6, 48_000)
        content[last + 22 : last + 26] = bytes(4)
        struct.pack_into("<I", content, last + 22, ogg_checksum(bytes(content[last:])))
        self.add_bytes(bytes(content), "a.webm")
        ran = self.run_cli("--json")
        self.assertEqual(ran.code, 0)
        self.assert_kept(ran, "a.webm", "damaged", "last page")

    def test_tables_and_edit_lists_of_mp4_by_others(self) -> None:
        for name, words in {
            "m4a": ["-c:a", "aac", "-b:a", "192k", "-f", "ipod"],
            "faststart": ["-c:a", "aac", "-b:a", "192k", "-movflags", "+faststart", "-f", "mp4"],
            "fragments": [
                "-c:a",
                "aac",
                "-b:a",
                "192k",
                "-movflags",
                "frag_keyframe+empty_moov",
                "-f",
                "mp4",
            ],
            "opus": ["-c:a", "copy", "-strict", "-2", "-f", "mp4"],
        }.items():
            self.make(*words, name=f"{name}.webm", recording="ch_slices_concat")
        sources = {path.stem: len(samples_of(path, 1)) for path in self.library.iterdir()}
        ran = self.run_cli("--json")
        self.assertEqual(ran.summary["compressed"], 4, ran.out)
        for name, samples in sources.items():
            self.assertAlmostEqual(
                len(samples_of(self.assert_compressed(f"{name}.webm"), 1)),
                samples,
                delta=12,
                msg=name,
            )

    def test_wav_files_of_every_kind_that_recorders_write(self) -> None:
        for name, words in {
            "s16": ["-c:a", "pcm_s16le", "-ar", "16000"],
            "s24": ["-c:a", "pcm_s24le", "-ar", "44100"],
            "f32": ["-c:a", "pcm_f32le"],
            "u8": ["-c:a", "pcm_u8"],
            "stereo": ["-c:a", "pcm_s16le", "-ac", "2"],
        }.items():
            self.make(*words, "-f", "wav", name=f"{name}.webm")
        plain = bytearray((self.library / "s16.webm").read_bytes())
        data = plain.index(b"data")
        for name, riff, size in (
            ("zeros", 0, 0),
            ("header", 36, 0),
            ("ones", 0xFFFFFFFF, 0xFFFFFFFF),
        ):
            struct.pack_into("<I", plain, 4, riff)
            struct.pack_into("<I", plain, data + 4, size)
            self.add_bytes(bytes(plain), f"{name}.webm")
        sources = {path.name: samples_of(path, 1) for path in self.library.iterdir()}
        ran = self.run_cli("--json")
        self.assertEqual(ran.summary["compressed"], 8, ran.out)
        for name, source in sources.items():
            self.assertAlmostEqual(
                len(samples_of(self.assert_compressed(name), 1)), len(source), delta=3, msg=name
            )


class EveryByte(ProofCase):
    """What belongs to no packet of a recording is not thrown away with it."""

    def test_a_second_file_behind_the_first_and_other_bytes_are_noticed_in_every_container(
        self,
    ) -> None:
        webm = (RECORDINGS / "chunk_0.webm").read_bytes()
        ogg = (RECORDINGS / "ff_chunk_1.webm").read_bytes()
        wav = self.make("-c:a", "pcm_s24le", "-f", "wav").read_bytes()
        mp4 = self.make("-c:a", "aac", "-f", "mp4").read_bytes()
        (self.library / "a.webm").unlink()
        streamed = wav[:4] + b"\xff" * 4 + wav[8:].replace(b"data" + struct.pack("<I", len(wav) - wav.index(b"data") - 8),
                                                             b"data\xff\xff\xff\xff", 1)  # fmt: skip
        for name, content in {
            "webm": webm,
            "ogg": ogg,
            "wav": wav,
            "mp4": mp4,
            "streamed": streamed,
        }.items():
            self.add_bytes(content + content, f"{name}-twice.webm")
            if name != "streamed":
                self.add_bytes(content + b"\x01\x02junk" * 9, f"{name}-junk.webm")
                self.add_bytes(content[: len(content) // 2], f"{name}-half.webm")
        mdat = mp4.index(b"mdat")
        size = int.from_bytes(mp4[mdat - 4 : mdat], "big")
        hidden = (
            mp4[: mdat - 4]
            + struct.pack(">I", size + 3_000)
            + mp4[mdat : mdat + size - 4]
            + bytes(3_000)
        )
        self.add_bytes(hidden + mp4[mdat + size - 4 :], "hidden.webm")
        before = self.files()
        ran = self.run_cli("--json")
        self.assertEqual((ran.code, self.files()), (0, before), ran.out)
        for path, outcome in ran.outcomes.items():
            word = "appended" if "twice" in path else "truncated" if "half" in path else "damaged"
            self.assertIn(word, outcome["reason"], path)

    def test_a_free_box_is_no_lost_audio(self) -> None:
        mp4 = self.make("-c:a", "aac", "-b:a", "192k", "-f", "mp4").read_bytes()
        self.add_bytes(mp4 + struct.pack(">I4s", 5_008, b"free") + bytes(5_000), "a.webm")
        self.assertEqual(self.run_cli("--json").summary["compressed"], 1)

    def test_a_recording_that_ffmpeg_cannot_decode_is_kept_as_damaged_and_nobody_has_failed(
        self,
    ) -> None:
        content = bytearray(
            self.make(
                "-c:a", "aac", "-b:a", "192k", "-f", "mp4", recording="ch_slices_concat"
            ).read_bytes()
        )
        middle = content.index(b"mdat") + 90_000
        content[middle : middle + 3_000] = random.Random(2).randbytes(3_000)
        self.add_bytes(bytes(content), "a.webm")
        self.add("chunk_1", "b.webm")
        ran = self.run_cli("--json")
        self.assertEqual(ran.code, 0, ran.out)
        self.assert_kept(ran, "a.webm", "damaged")
        self.assert_compressed("b.webm")


class EveryChannel(ProofCase):
    """OpusHead says how many there are; each is compared for itself."""

    def test_stereo_of_which_the_container_says_nothing_stays_stereo(self) -> None:
        self.add("stereo_without_channels_2s", "a.webm")
        copy = self.assert_whole(channels=2)
        self.assertEqual(copy.read_bytes()[copy.read_bytes().index(b"OpusHead") + 9], 2)

    def test_a_recording_whose_channels_cancel_each_other_out_is_compressed(self) -> None:
        self.add("ch_antiphase_2s", "a.webm")
        self.assert_whole(channels=2)

    def test_a_copy_whose_channels_are_silent_exchanged_lost_or_quieter_is_refused(self) -> None:
        for wrong in (
            "c0=0*c0|c1=0*c1",
            "c0=c1|c1=c0",
            "c0=c0|c1=0*c1",
            "c0=c0|c1=0.1*c1",
            "c0=c0|c1=c0",
            "c0=0.1*c0|c1=0.1*c1",
        ):
            with self.subTest(wrong):
                self.doCleanups()
                self.setUp()
                self.changes = ""
                self.add(
                    "stereo_without_channels_2s" if "c0=c1" in wrong else "ch_antiphase_2s",
                    "a.webm",
                )
                self.drive(
                    f"true = program.timeline_filter\nprogram.timeline_filter = lambda found: true(found) + ',pan=stereo|{wrong}'"
                )
                self.assert_refused("a.webm", "did not prove true")


class FullScale(ProofCase):
    """Nothing on the way clips."""

    def assert_peaks(self, source: Path) -> None:
        """The copy is as near to the source as one that ffmpeg makes from float, with its peaks."""
        before, plain = samples_of(source, 1), self.folder / "plain.opus"
        ffmpeg(
            "-i",
            str(source),
            "-c:a",
            "libopus",
            "-b:a",
            "96k",
            "-vbr",
            "constrained",
            "-ar",
            "48000",
            str(plain),
        )
        self.assertGreater(max(before), 1.2)
        for arguments in ((), ("-j", "8")):
            self.add_bytes(source.read_bytes(), "a.webm")
            self.run_cli("--json", *arguments)
            copy = self.assert_compressed("a.webm")
            noise, least = (math.dist(before, samples_of(path, 1)) for path in (copy, plain))
            self.assertLess(noise, 1.3 * least)
            copy.unlink()

    def test_a_float_recording_above_full_scale_keeps_its_peaks(self) -> None:
        source = self.folder / "loud.wav"
        ffmpeg(
            "-i",
            str(RECORDINGS / "chunk_1.webm"),
            "-af",
            "volume=16dB",
            "-c:a",
            "pcm_f32le",
            str(source),
        )
        self.assert_peaks(source)

    def test_samples_that_are_no_numbers_prove_nothing(self) -> None:
        for name, odd in (("nan", math.nan), ("inf", math.inf)):
            content = bytearray(
                self.make("-c:a", "pcm_f32le", "-f", "wav", name=f"{name}.webm").read_bytes()
            )
            struct.pack_into("<f", content, content.index(b"data") + 8 + 4 * RATE, odd)
            self.add_bytes(bytes(content), f"{name}.webm")
        self.make("-af", "volume=32768", "-c:a", "pcm_f32le", "-f", "wav", name="scaled.webm")
        ran = self.run_cli("--json")
        self.assertEqual(ran.code, 0, ran.out)
        for name in ("nan", "inf", "scaled"):
            self.assert_kept(ran, f"{name}.webm", "no numbers")

    def test_an_opus_recording_that_decodes_above_full_scale_keeps_its_peaks(self) -> None:
        source = self.folder / "loud.webm"
        ffmpeg(
            "-i",
            str(RECORDINGS / "chunk_1.webm"),
            "-af",
            "volume=12dB",
            "-c:a",
            "libopus",
            "-b:a",
            "256k",
            str(source),
        )
        self.assert_peaks(source)


class TagsAndChapters(ProofCase):
    """A copy has its own source's tags, and nobody else's. A source with chapters is kept."""

    def make_tagged(self) -> None:
        chapters = self.folder / "chapters.txt"
        parts = "".join(f"[CHAPTER]\nTIMEBASE=1/1000\nSTART={start}\nEND={start + 1_000}\ntitle={title}\n"
                        for start, title in ((0, "one; \\= two"), (1_000, "zwei")))  # fmt: skip
        chapters.write_text(";FFMETADATA1\ntitle=With chapters\n" + parts)
        self.make("-f", "ffmetadata", "-i", str(chapters), "-map", "0:a", "-map_metadata", "1", "-map_chapters", "1",
                  "-c:a", "copy", "-f", "webm", name="a.webm")  # fmt: skip
        self.make("-c:a", "copy", "-metadata", "title=Container", "-f", "webm", name="b.webm")
        self.make("-c:a", "copy", "-metadata:s:a:0", "title=Stream", "-metadata:s:a:0", "artist=Me", "-f", "ogg",
                  name="c.webm", recording="ff_chunk_1")  # fmt: skip
        self.add("chunk_1", "d.webm")

    def told(self, name: str) -> str:
        """What ffmpeg reads in a copy: tags of container and stream, and chapters."""
        command = [
            FFMPEG,
            "-v",
            "error",
            "-i",
            str(self.library / name),
            "-map_metadata:g",
            "0:s:a:0",
            "-f",
            "ffmetadata",
            "-",
        ]
        container = [FFMPEG, "-v", "error", "-i", str(self.library / name), "-f", "ffmetadata", "-"]
        both = [
            subprocess.run(each, capture_output=True, text=True, check=True).stdout
            for each in (command, container)
        ]
        return "\n".join(both)

    def test_alone_in_a_batch_and_in_both_formats(self) -> None:
        for form, arguments in (("opus", ("-j", "1")), ("opus", ("-j", "8")), ("m4a", ())):
            with self.subTest(form, arguments=arguments):
                self.doCleanups()
                self.setUp()
                self.make_tagged()
                ran = self.run_cli("--json", "--format", form, *arguments)
                self.assertEqual((ran.code, ran.summary["compressed"]), (0, 3), ran.out + ran.err)
                self.assert_kept(ran, "a.webm", "has chapters")
                # Ogg has names in any case, and ffmpeg 4.1 writes them in capitals.
                second, third, last = (self.told(f"{name}.{form}").lower() for name in "bcd")
                self.assertIn("title=container", second)
                self.assertNotIn("title=container", third + last)
                self.assertTrue("stream" in third and "me" in third, third)
                self.assertNotIn("title=", last)
                self.assertNotIn("[chapter]", second + third + last)
                self.assertEqual(self.run_cli("check").code, 0)


class TrueReasons(ProofCase):
    """What is kept is told as what it is."""

    def test_each_kind_that_is_not_compressed_is_told_by_its_name(self) -> None:
        picture = self.folder / "cover.png"
        ffmpeg("-f", "lavfi", "-i", "color=red:s=32x32", "-frames:v", "1", str(picture))
        covered = [
            "-i",
            str(picture),
            "-map",
            "0:a",
            "-map",
            "1:v",
            "-c:v",
            "copy",
            "-disposition:v",
            "attached_pic",
        ]
        expected = {
            "mp3": (["-c:a", "libmp3lame", "-f", "mp3"], "MP3"),
            "flac": (["-c:a", "flac", "-f", "flac"], "FLAC"),
            "adts": (["-c:a", "aac", "-f", "adts"], "ADTS"),
            "vorbis": (["-c:a", "libvorbis", "-f", "webm"], "VORBIS"),
            "vorbis-ogg": (["-c:a", "libvorbis", "-f", "ogg"], "Vorbis"),
            "flac-mkv": (["-c:a", "flac", "-f", "matroska"], "FLAC"),
            "aac-mkv": (["-c:a", "aac", "-f", "matroska"], "AAC"),
            "alac": (["-c:a", "alac", "-f", "ipod"], "alac"),
            "six-channels": (["-ac", "6", "-c:a", "libopus", "-f", "webm"], "6 channels"),
            "six-channel-wav": (["-ac", "6", "-c:a", "pcm_s16le", "-f", "wav"], "6 channels"),
            "alaw": (["-c:a", "pcm_alaw", "-f", "wav"], "A law"),
            "aiff": (["-c:a", "pcm_s16be", "-f", "aiff"], "AIFF"),
            "cover-m4a": ([*covered, "-c:a", "aac", "-f", "ipod"], "cover picture"),
            "cover-mkv": (["-attach", str(picture), "-metadata:s:t", "mimetype=image/png", "-c:a", "copy", "-f", "matroska"],
                          "cover picture"),
            "video-mp4": (["-f", "lavfi", "-i", "color=red:s=32x32:r=5:d=1", "-map", "0:a", "-map", "1:v", "-c:v", "mpeg4",
                           "-c:a", "aac", "-f", "mp4"], "has video"),
        }  # fmt: skip
        words = {}
        for name, (made, word) in expected.items():
            self.make(*made, name=f"{name}.webm")
            words[name] = word
        form = b'------WebKitFormBoundaryX\r\nContent-Disposition: form-data; name="audio"; filename="a.webm"\r\n'
        form += (
            b"Content-Type: audio/webm\r\n\r\n"
            + (RECORDINGS / "chunk_0.webm").read_bytes()
            + b"\r\n------WebKitFormBoundaryX--"
        )
        self.add_bytes(form, "form.webm")
        self.add_bytes(b"#EXTM3U\nother.webm\n", "list.webm")
        self.add_bytes(b"\n<!DOCTYPE html><title>502</title>", "page.webm")
        words.update({"form": "form upload", "list": "playlist", "page": "a web page"})
        before = self.files()
        ran = self.run_cli("--json")
        self.assertEqual((ran.code, self.files()), (0, before), ran.out + ran.err)
        for name, word in words.items():
            reason = ran.outcomes[f"{name}.webm"]["reason"]
            self.assertIn(word, reason, name)
            self.assertNotIn("damaged", reason, name)
        second = self.run_cli("--json")
        self.assertEqual((second.code, second.outcomes), (0, {}), "told once, then remembered")
