"""What other programs write: compressed where nothing is lost, else kept with a reason that is true."""

from __future__ import annotations

import os
import struct
import time
import unittest
from unittest import mock

import compression_service as service
from tests.base import LONG_AGO, RECORDINGS, LibraryCase, decoded_seconds, plain_decode
from tests.mp4 import Edit, box, fragmented, numbers, opus_track, whole
from tests.webm import UNKNOWN, block, element, header, number, opus_head, packets_of, write

RATE = 16_000


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def wav(samples: bytes, riff: int, size: int, behind: bytes = b"") -> bytes:
    """A mono WAV whose sizes say whatever they should."""
    form = chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16))
    head = b"RIFF" + struct.pack("<I", riff) + b"WAVE" + form + b"data" + struct.pack("<I", size)
    return head + samples + behind


class FormatCase(LibraryCase):
    def setUp(self) -> None:
        super().setUp()
        self.samples = plain_decode(
            RECORDINGS / "chunk_0.webm", "-ac", "1", "-ar", str(RATE), "-f", "s16le"
        )

    def assert_all_compressed(self, *options: str, seconds: float = 3.0) -> None:
        """Every file of the library is there as a copy of its length."""
        sources = sorted(self.library.glob("*.webm"))
        ran = self.run_cli("--json", *options)
        self.assertEqual(ran.code, 0, ran.out + ran.err)
        for source in sources:
            self.assertEqual(ran.outcomes[source.name]["action"], "compressed", ran.out)
            copy = self.library / ran.outcomes[source.name]["file"]
            self.assertAlmostEqual(decoded_seconds(copy), seconds, delta=0.03, msg=source.name)


class Wav(FormatCase):
    def test_the_samples_decide_and_not_the_sizes_in_headers(self) -> None:
        count = len(self.samples)
        sizes = ((count + 44, count), (1, count), (36, 0), (0xFFFFFFFF, 0xFFFFFFDB), (0x7FFFFFFF, 0x7FFFFFFF),
                 (0x7FFFF024, 0x7FFFF000), (0x80000024, 0x80000000), (count + 44, count + 44))  # fmt: skip
        for number_, (riff, size) in enumerate(sizes):
            self.add_bytes(wav(self.samples, riff, size), f"{number_}.webm")
        self.assert_all_compressed()

    def test_one_or_two_channels_of_any_name_are_mono_and_stereo(self) -> None:
        pcm = bytes.fromhex("0100000000001000800000aa00389b71")
        for channels, mask in ((1, 1), (1, 8), (2, 0x30), (2, 0x600)):
            about = (0xFFFE, channels, RATE, 2 * channels * RATE, 2 * channels, 16, 22, 16, mask)
            form = chunk(b"fmt ", struct.pack("<HHIIHHHHI", *about) + pcm)
            samples = chunk(b"data", self.samples)
            self.add_bytes(b"RIFF\0\0\0\0WAVE" + form + samples, f"{mask:x}.webm")
        for options in (), ("--format", "m4a", "--retry"):
            for path in self.library.glob("*.opus"):
                path.unlink()
            ran = self.run_cli("--json", "--keep-originals", *options)
            self.assertEqual(ran.summary["compressed"], 4, ran.out)

    def test_a_size_above_2_GB_that_the_file_has_is_believed(self) -> None:
        count, path = 0x80000000, self.library / "a.webm"
        tags = chunk(b"LIST", b"INFO" + chunk(b"INAM", b"Hello\0"))
        with path.open("wb") as file:
            file.write(wav(b"", count + 36 + len(tags), count))
            file.seek(44 + count)
            file.write(tags)
        # To look through 2 GB of zeros for a second recording takes long.
        with path.open("rb") as file, mock.patch.object(service, "find", return_value=None):
            found = service.walk_wav(service.Window(file.fileno()))
        self.assertEqual(found.samples, count // 2)

    def test_marks_and_texts_are_kept_and_named_and_tags_are_no_reason(self) -> None:
        count = len(self.samples)
        parts = {
            "labels": (chunk(b"LIST", b"adtllabl"), "adtl"),
            "xml": (chunk(b"iXML", b"<note/>"), "iXML"),
            "marks": (chunk(b"cue ", numbers(1)), "chapters"),
            "more": (b"more text here", "no part of it"),
            "lost": (b"", "short of the end"),
        }
        for name, (part, _) in parts.items():
            size = count + 1_000 if name == "lost" else count
            self.add_bytes(wav(self.samples, count + 36, size, part), f"{name}.webm")
        tags = chunk(b"LIST", b"INFO" + chunk(b"INAM", b"name"))
        self.add_bytes(wav(self.samples, count + 36, count, tags), "tags.webm")
        ran = self.run_cli("--json")
        self.assertEqual(ran.code, 0)
        for name, (_, word) in parts.items():
            self.assert_kept(ran, f"{name}.webm", word)
        self.assert_compressed("tags.webm")

    def test_peaks_are_no_reason_and_samples_with_unused_bytes_are_no_damage(self) -> None:
        count = len(self.samples)
        self.add_bytes(wav(self.samples, 0, count, chunk(b"levl", bytes(120))), "peaks.webm")
        for used, bits in ((24, 32), (16, 16)):
            block = bits // 8
            form = struct.pack(
                "<HHIIHHHHI", 0xFFFE, 1, RATE, block * RATE, block, bits, 22, used, 4
            )
            guid = bytes.fromhex("0100000000001000800000aa00389b71")
            content = b"WAVE" + chunk(b"fmt ", form + guid) + chunk(b"data", self.samples)
            self.add_bytes(chunk(b"RIFF", content), f"{used}-in-{bits}.webm")
        ran = self.run_cli("--json")
        self.assert_kept(ran, "24-in-32.webm", "not a kind", "PCM of 24 bits in 32")
        self.assert_compressed("peaks.webm")
        self.assert_compressed("16-in-16.webm")


class BehindTheEnd(FormatCase):
    def test_line_ends_and_zeros_behind_any_container_lose_nothing(self) -> None:
        count = len(self.samples)
        files = {
            "wav": wav(self.samples, count + 36, count),
            "webm": (RECORDINGS / "chunk_0.webm").read_bytes(),
            "mp4": whole(opus_track(RECORDINGS / "chunk_0.webm")),
        }
        for name, content in files.items():
            for number_, filler in enumerate((b"\r\n", bytes(16))):
                self.add_bytes(content + filler, f"{name}{number_}.webm")
        self.assert_all_compressed()

    def test_more_than_that_is_kept(self) -> None:
        content = (RECORDINGS / "ff_chunk_1.webm").read_bytes()
        self.add_bytes(content + bytes(17), "a.webm")
        self.add_bytes(content + b"and more", "b.webm")
        ran = self.run_cli("--json")
        for path in ("a.webm", "b.webm"):
            self.assert_kept(ran, path, "damaged")


class WithoutOpusHead(FormatCase):
    def test_channels_come_from_the_track_and_the_start_from_its_delay(self) -> None:
        packets = list(packets_of(RECORDINGS / "chunk_0.webm"))
        for name, delay in (("plain", 0), ("delayed", 6_500_000)):
            track = element(0xD7, number(1)) + element(0x83, number(2)) + element(0x86, b"A_OPUS")
            track += element(0x56AA, number(delay, 8)) if delay else b""
            track += element(0xE1, element(0x9F, number(1)))
            content = element(0x1A45DFA3, element(0x4282, b"webm")) + element(
                0x18538067, b"", UNKNOWN
            )
            content += element(0x1654AE6B, element(0xAE, track))
            self.add_bytes(content + b"".join(block(*packet) for packet in packets), f"{name}.webm")
        self.assert_all_compressed()


class Elements(FormatCase):
    def test_old_ones_are_no_reason_and_unknown_ones_are_told_where_they_stand(self) -> None:
        packets = list(packets_of(RECORDINGS / "chunk_0.webm"))
        for name, odd in (("old", 0x5854), ("unknown", 0x5855)):
            content = header(head=opus_head())
            for stamp, data in packets:
                group = element(0xA1, b"\x81\0\0\0" + data) + element(0x8E, b"")
                parts = element(0xE7, number(stamp, 8)) + element(odd, b"") + element(0xA0, group)
                content += element(0x1F43B675, parts)
            self.add_bytes(content, f"{name}.webm")
        at = (self.library / "unknown.webm").read_bytes().index(b"\x58\x55")
        ran = self.run_cli("--json")
        self.assert_kept(ran, "unknown.webm", f"what stands at byte {at} of")
        self.assert_compressed("old.webm")

    def test_a_packet_under_the_name_of_a_number_is_damage(self) -> None:
        stamps = list(packets_of(RECORDINGS / "chunk_0.webm"))
        sound = b"".join(block(*packet) for packet in stamps[:9])
        for name in (0xAB, 0xA7):  # each one bit away from a block's
            lost = block(*stamps[9]).replace(b"\xa3\x01", bytes([name]) + b"\x01", 1)
            rest = b"".join(block(*packet) for packet in stamps[10:])
            content = header(head=opus_head()) + sound + lost + rest
            self.add_bytes(content, f"{name:x}.webm")
        ran = self.run_cli("--json")
        self.assert_kept(ran, "ab.webm", "damaged", "a number")
        self.assert_kept(ran, "a7.webm", "damaged", "a number")

    def test_a_header_that_makes_the_sound_too_quiet_to_compare_is_kept(self) -> None:
        packets = list(packets_of(RECORDINGS / "chunk_0.webm"))
        for decibels in (-128, -100, 20):
            gain = struct.pack("<h", decibels * 256)
            head = opus_head()[:16] + gain + opus_head()[18:]
            write(self.library / f"{decibels}.webm", packets, head)
            os.utime(self.library / f"{decibels}.webm", (LONG_AGO, LONG_AGO))
        ran = self.run_cli("--json")
        for decibels in (-128, -100):
            self.assert_kept(ran, f"{decibels}.webm", "loudness")
        self.assert_compressed("20.webm")

    def test_a_stamp_ahead_that_the_next_one_denies_is_no_gap(self) -> None:
        packets = list(packets_of(RECORDINGS / "chunk_0.webm"))
        for ahead in (150, 900):
            moved = [*packets]
            moved[20] = moved[20]._replace(stamp=moved[20].stamp + ahead)
            write(self.library / f"{ahead}.webm", moved)
            os.utime(self.library / f"{ahead}.webm", (LONG_AGO, LONG_AGO))
        self.assert_all_compressed()

    def test_a_gap_of_a_millisecond_behind_stamps_that_ran_late_is_filled(self) -> None:
        packets = list(packets_of(RECORDINGS / "chunk_0.webm"))
        third = len(packets) // 3
        late = [0] * third + [-200] * third + [1] * (len(packets) - 2 * third)
        moved = [packet._replace(stamp=packet.stamp + by) for packet, by in zip(packets, late)]
        write(self.library / "a.webm", moved)
        os.utime(self.library / "a.webm", (LONG_AGO, LONG_AGO))
        self.assert_all_compressed()


class TrackNumbers(FormatCase):
    def test_a_track_has_any_number(self) -> None:
        for name, track in (("two", 200), ("four", 10_000_000)):
            length = 2 if name == "two" else 4
            head = element(0x1A45DFA3, element(0x4282, b"webm")) + element(0x18538067, b"", UNKNOWN)
            entry = element(0xD7, number(track, 4)) + element(0x83, number(2))
            entry += element(0x86, b"A_OPUS") + element(0x63A2, opus_head())
            content = head + element(0x1654AE6B, element(0xAE, entry))
            marked = number(track | 1 << 7 * length, length)
            for stamp, data in packets_of(RECORDINGS / "chunk_0.webm"):
                simple = element(0xA3, marked + b"\0\0\x80" + data)
                content += element(0x1F43B675, element(0xE7, number(stamp, 8)) + simple)
            self.add_bytes(content, f"{name}.webm")
        self.assert_all_compressed()


class Mp4(FormatCase):
    def setUp(self) -> None:
        super().setUp()
        self.track = opus_track(RECORDINGS / "chunk_0.webm", pre_skip=312)

    def test_silence_at_the_start_is_kept(self) -> None:
        edits = [Edit(1_000, -1), Edit(2_990, 312)]
        self.add_bytes(whole(self.track, edits=edits), "edit.webm")
        starts = [48_000, 48_000 + 25 * 2_880]
        self.add_bytes(fragmented(self.track, starts, 25), "late.webm")
        self.assert_all_compressed(seconds=4.0)

    def test_headers_that_differ_a_little_are_played_as_ffmpeg_does(self) -> None:
        track = opus_track(RECORDINGS / "chunk_0.webm", pre_skip=3_840)
        self.add_bytes(whole(track, edits=[Edit(2_993, 312)]), "a.webm")
        self.add_bytes(whole(track, index_last=True, edits=[Edit(2_993, 312)]), "b.webm")
        self.assert_all_compressed()

    def test_fragments_that_step_back_are_played_through(self) -> None:
        self.add_bytes(fragmented(self.track, [0, 25 * 2_880 - 19_200], 25), "a.webm")
        self.assert_all_compressed()

    def test_an_edit_list_that_hides_sound_is_kept(self) -> None:
        lists = {
            "two": [Edit(500, 312), Edit(500, 48_000)],
            "start": [Edit(2_000, 48_000)],
            "end": [Edit(2_000, 312)],
            "speed": [Edit(1_500, 0, 2)],
            "silence": [Edit(1_000, -1)],
        }
        for name, edits in lists.items():
            self.add_bytes(whole(self.track, edits=edits), f"{name}.webm")
        ran = self.run_cli("--json")
        self.assertEqual(ran.code, 0)
        for name in lists:
            self.assert_kept(ran, f"{name}.webm", "edit list hides")

    def test_boxes_with_texts_are_kept_and_named_and_tags_are_no_reason(self) -> None:
        parts = {"tsrp": "tsrp", "Xtra": "Xtra", "uuid": "uuid", "chpl": "chapters"}
        for name in parts:
            text = box("udta", box(name, b'{"what": "was said"}'))
            self.add_bytes(whole(self.track, in_track=text), f"{name}.webm")
        tag = box("\xa9nam", struct.pack(">HH", 5, 0x15C7) + b"Hello")
        self.add_bytes(whole(self.track, in_movie=box("udta", tag, numbers(0))), "tags.webm")
        ran = self.run_cli("--json")
        self.assertEqual(ran.code, 0)
        for each, word in parts.items():
            self.assert_kept(ran, f"{each}.webm", word)
        self.assert_compressed("tags.webm")

    def test_boxes_behind_the_end_are_named(self) -> None:
        names = ("ssix", "pssh", "sefd")
        for name in names:
            self.add_bytes(whole(self.track) + box(name, bytes(20)), f"{name}.webm")
        ran = self.run_cli("--json")
        for name in names:
            self.assert_kept(ran, f"{name}.webm", "text or data", name)

    def test_packets_that_are_listed_twice_in_place_of_others_are_damage(self) -> None:
        packets = list(self.track.packets[:48])
        track = self.track._replace(packets=packets + packets)  # so that both halves decode
        half = sum(map(len, packets))
        for name, chunks in (("good", (0, half)), ("twice", (0, 0)), ("turned", (half, 0))):
            self.add_bytes(whole(track, chunks=chunks), f"{name}.webm")
        content = bytearray(fragmented(track, [0, 48 * 2880], 48))
        at = content.rindex(b"trun") + 12
        offset = int.from_bytes(content[at : at + 4], "big")
        self.add_bytes(bytes(content), "fragments.webm")
        apart = content.rindex(packets[0]) - content.index(packets[0])
        content[at : at + 4] = numbers(offset - apart & 0xFFFFFFFF)
        self.add_bytes(bytes(content), "fragments_off.webm")
        ran = self.run_cli("--json")
        for name in ("twice", "turned", "fragments_off"):
            self.assert_kept(ran, f"{name}.webm", "damaged", "another place")
        self.assert_compressed("good.webm")
        self.assert_compressed("fragments.webm")

    def test_tables_without_times_or_of_short_sizes_are_called_what_they_are(self) -> None:
        file, count = whole(self.track), len(self.track.packets)
        times = b"stts" + numbers(0, 1, count)
        for name, duration in (("short", numbers(1, 2_880)), ("zero", numbers(count, 0))):
            table = times[:12] + duration
            self.add_bytes(file.replace(times + numbers(2_880), table), f"{name}.webm")
        self.add_bytes(file.replace(b"stsz", b"stz2"), "packed.webm")
        ran = self.run_cli("--json")
        self.assertEqual(ran.code, 0, ran.out)
        self.assert_kept(ran, "short.webm", "no times")
        self.assert_kept(ran, "zero.webm", "no times")
        self.assert_kept(ran, "packed.webm", "not a kind that is compressed")

    def test_a_table_of_a_hundred_million_packets_takes_no_memory(self) -> None:
        content = bytearray(whole(self.track))
        at = content.index(b"stsz") + 8
        content[at : at + 8] = numbers(1, 100_000_000)
        self.add_bytes(bytes(content), "a.webm")
        ran = self.run_cli("--json")
        self.assert_kept(ran, "a.webm", "packets")


class WhereGapsBegin(FormatCase):
    def probe(self, content: bytes) -> service.Probe:
        path = self.add_bytes(content, "a.webm")
        return service.probe_file(str(path), service.Tools(service.Stop()))

    def test_behind_what_a_decoder_of_mp4_leaves_out(self) -> None:
        track = opus_track(RECORDINGS / "chunk_0.webm", pre_skip=3_840)
        found = self.probe(fragmented(track, [0, 20 * 2_880 + 96_000], 20))
        self.assertEqual(found.gaps, [(20 * 2_880 - 3_840, 96_000)])

    def test_behind_the_padding_of_blocks_whatever_rate_the_track_names(self) -> None:
        packets = list(packets_of(RECORDINGS / "chunk_0.webm"))
        for rate in (0, 16_000, 48_000):
            for padding, place, left_out in ((10, 12, 312 + 480), (-10, 12, 792), (-20, 0, 960)):
                content = header(
                    head=opus_head(1, 312), audio=element(0xB5, struct.pack(">d", rate))
                )
                for number_, (stamp, data) in enumerate(packets):
                    late = stamp + 2_000 * (number_ >= 20)
                    inner = element(0xA1, b"\x81\0\0\0" + data)
                    if number_ == place:
                        nanoseconds = padding * 1_000_000
                        inner += element(0x75A2, nanoseconds.to_bytes(8, "big", signed=True))
                    cluster = element(0xE7, number(late, 8)) + element(0xA0, inner)
                    content += element(0x1F43B675, cluster)
                with self.subTest(rate, padding=padding):
                    found = self.probe(content)
                    (gap,) = found.gaps
                    self.assertEqual(gap, (20 * 2_880 - left_out, 96_000 + 48 * abs(padding)))
                    self.assertEqual(found.samples, len(packets) * 2_880 - left_out)


class M4aCopies(FormatCase):
    def test_lengths_and_rates_that_end_in_a_hidden_packet_are_proven(self) -> None:
        packets = [data for _, data in packets_of(RECORDINGS / "ff_webm_3s.webm")][:139]
        content = header(head=opus_head(pre_skip=312))
        content += b"".join(block(20 * at, data) for at, data in enumerate(packets))
        self.add_bytes(content, "opus.webm")
        self.add_bytes(wav(self.samples[:63_688], 36, 0), "wav.webm")
        ran = self.run_cli("--json", "--format", "m4a", "--bitrate", "32k")
        self.assertEqual((ran.code, ran.summary["compressed"]), (0, 2), ran.out)


class TrueReasons(FormatCase):
    def test_silence_later_parts_and_covers_are_called_what_they_are(self) -> None:
        packets = [data for _, data in packets_of(RECORDINGS / "chunk_0.webm")]
        content = header(head=opus_head())
        for at, data in enumerate(packets):
            content += block(60 * at + (500_000 if at > 25 else 0), data)
        self.add_bytes(content, "jump.webm")
        ogg = (RECORDINGS / "ff_chunk_1.webm").read_bytes()
        self.add_bytes(ogg[ogg.index(b"OggS", 10_000) :], "later.webm")
        ran = self.run_cli("--json")
        self.assertEqual(ran.code, 0)
        self.assert_kept(ran, "jump.webm", "500 s", "without audio")
        self.assert_kept(ran, "later.webm", "a later part")


class Hostile(FormatCase):
    def test_a_tag_of_400_digits_is_no_tag_of_ours(self) -> None:
        path = self.add_bytes(b"encoded_by=compression_service.py " + b"9" * 400 + b"k", "x.opus")
        self.assertIsNone(service.provenance(str(path)))

    def test_parts_nested_without_end_are_damaged_and_nobody_waits(self) -> None:
        inner = b"\xec\x80" * 1_000
        for _ in range(1_500):
            inner = element(0x1F43B675, inner)
        self.add_bytes(header(head=opus_head()) + inner, "a.webm")
        ran = self.run_cli("--json")
        self.assertEqual(ran.code, 0)
        self.assert_kept(ran, "a.webm", "nested")

    def read(self, content: bytes) -> tuple[str, int]:
        """What is said of a file, and the bytes that were read of it."""
        path = self.add_bytes(content, "a.webm")
        reads: list[int] = []

        def pread(*asked: int) -> bytes:
            data = os_pread(*asked)
            reads.append(len(data))
            return data

        os_pread = os.pread
        with mock.patch("os.pread", pread):
            try:
                service.probe_file(str(path), service.Tools(service.Stop()))
            except service.Refusal as refusal:
                return str(refusal), sum(reads)
        return "", sum(reads)

    def test_fragments_are_read_once_however_many_they_are(self) -> None:
        track = opus_track(RECORDINGS / "chunk_0.webm")
        far = box("free", bytes(3 << 20))
        content = fragmented(track, [2_880 * at for at in range(50)], 1)
        begin = content.index(b"moof") - 4
        content = content[:begin] + far + content[begin:]
        said, read = self.read(content)
        self.assertEqual(said, "")
        self.assertLess(read, 2 * len(content))

    def test_an_index_within_an_index_or_behind_it_is_damage(self) -> None:
        track = opus_track(RECORDINGS / "chunk_0.webm")
        for content in (whole(track) + box("moov"), whole(track, in_movie=box("moov"))):
            self.assertIn("second index", self.read(content)[0])

    def test_a_file_that_becomes_shorter_has_changed(self) -> None:
        path = self.add_bytes(whole(opus_track(RECORDINGS / "chunk_0.webm")), "a.webm")
        with path.open("rb") as file:
            window = service.Window(file.fileno())
            os.truncate(path, 300)
            with self.assertRaises(service.Refusal) as caught:
                service.walk_mp4(window, str(path), service.Tools(service.Stop()))
        self.assertIs(caught.exception.reason, service.Reason.CHANGED)

    def test_a_form_of_dashes_takes_no_time(self) -> None:
        self.add_bytes(b"-" * (1 << 20), "a.webm")
        before = time.process_time()
        with self.assertRaises(service.Refusal):
            service.probe_file(str(self.library / "a.webm"), service.Tools(service.Stop()))
        self.assertLess(time.process_time() - before, 2.0)

    def test_a_signal_is_heard_in_a_walk_and_in_a_hash(self) -> None:
        path = str(RECORDINGS / "chunk_0.webm")
        stop = service.Stop(signal=15)
        with self.assertRaises(service.Stopped):
            service.probe_file(path, service.Tools(stop))
        with self.assertRaises(service.Stopped):
            service.digest_of(path, stop=stop)


if __name__ == "__main__":
    unittest.main()
