"""A small writer of MP4, so that a test can give real packets whatever boxes and edit lists it needs."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.webm import packets_of


class Edit(NamedTuple):
    """One part of an edit list: `length` in the movie's ticks (milliseconds), `start` in the track's; -1 is silence."""

    length: int
    start: int
    rate: int = 1


class Track(NamedTuple):
    """What is in the file: sample entry, ticks a second, ticks of each packet, and the packets."""

    entry: bytes
    rate: int
    duration: int
    packets: Sequence[bytes]


def box(name: str, *content: bytes) -> bytes:
    joined = b"".join(content)
    return struct.pack(">I", 8 + len(joined)) + name.encode("latin-1") + joined


def full(name: str, *content: bytes, version: int = 0, flags: int = 0) -> bytes:
    return box(name, struct.pack(">I", version << 24 | flags), *content)


def numbers(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


def sound(name: str, channels: int, rate: int, *content: bytes) -> bytes:
    """A sample entry (ISO/IEC 14496-12, 12.2.3)."""
    fields = struct.pack(">6xH8xHHIHH", 1, channels, 16, 0, rate, 0)
    return box(name, fields, *content)


def opus_track(path: Path, count: int = 0, pre_skip: int = 0, channels: int = 1) -> Track:
    """The packets of a WebM file, 60 ms each."""
    packets = [data for _, data in packets_of(path)][: count or None]
    head = box("dOps", struct.pack(">BBHIHB", 0, channels, pre_skip, 48_000, 0, 0))
    return Track(sound("Opus", channels, 48_000, head), 48_000, 2_880, packets)


def aac_track(adts: bytes, rate: int, channels: int = 1) -> Track:
    """The frames of an ADTS stream."""
    packets, at = [], 0
    while at < len(adts):
        size = (adts[at + 3] & 3) << 11 | adts[at + 4] << 3 | adts[at + 5] >> 5
        packets.append(adts[at + 7 : at + size])
        at += size
    config = struct.pack(">H", 2 << 11 | (adts[2] >> 2 & 15) << 7 | channels << 3)
    decoder = b"\x05" + bytes([len(config)]) + config
    stream = b"\x40\x15" + bytes(11) + decoder
    described = b"\0\0\0" + b"\x04" + bytes([len(stream)]) + stream + b"\x06\x01\x02"
    entry = sound(
        "mp4a", channels, rate, full("esds", b"\x03" + bytes([len(described)]), described)
    )
    return Track(entry, rate, 1_024, packets)


def movie(  # noqa: PLR0917
    track: Track,
    sizes: Sequence[int] = (),
    offset: int = 0,
    edits: Iterable[Edit] = (),
    in_movie: bytes = b"",
    in_track: bytes = b"",
    in_table: bytes = b"",
    chunks: Sequence[int] = (0,),
) -> bytes:
    """The box moov, for packets of such `sizes` from byte `offset` on: in a row, or in `chunks` of equally many that begin so many
    bytes behind it."""
    edits, count = list(edits), len(sizes)
    length = count * track.duration
    matrix = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    milliseconds = length * 1000 // track.rate
    head = full(
        "mvhd",
        numbers(0, 0, 1000, milliseconds, 0x10000, 0x1000000, 0, 0),
        matrix,
        bytes(24),
        numbers(2),
    )
    track_head = full(
        "tkhd",
        numbers(0, 0, 1, 0, milliseconds, 0, 0, 0, 0x1000000),
        matrix,
        numbers(0, 0),
        flags=3,
    )
    parts = b"".join(struct.pack(">IiHH", each.length, each.start, each.rate, 0) for each in edits)
    list_of_edits = box("edts", full("elst", numbers(len(edits)), parts)) if edits else b""
    table = box(
        "stbl",
        full("stsd", numbers(1), track.entry),
        full("stts", numbers(1, count, track.duration) if count else numbers(0)),
        full("stsc", numbers(1, 1, count // len(chunks), 1) if count else numbers(0)),
        full("stsz", numbers(0, count, *sizes)),
        full(
            "stco", numbers(len(chunks), *(offset + at for at in chunks)) if count else numbers(0)
        ),
        in_table,
    )
    source = box("dinf", full("dref", numbers(1), full("url ", flags=1)))
    media = box(
        "mdia",
        full("mdhd", numbers(0, 0, track.rate, length, 0x55C40000)),
        full("hdlr", numbers(0), b"soun", bytes(12), b"Sound\0"),
        box("minf", full("smhd", numbers(0)), source, table),
    )
    return box("moov", head, box("trak", track_head, list_of_edits, media, in_track), in_movie)


FILE_TYPE = box("ftyp", b"M4A ", numbers(0), b"M4A mp42isom")


def whole(track: Track, index_last: bool = False, between: bytes = b"", **parts: object) -> bytes:
    """A file with one table of all packets, behind them or before."""
    sizes = [len(packet) for packet in track.packets]
    before = FILE_TYPE + between
    if not index_last:
        before += movie(track, sizes, **parts)  # type: ignore[arg-type]
    media = box("mdat", *track.packets)
    if not index_last:
        index = movie(track, sizes, len(before) + 8, **parts)  # type: ignore[arg-type]
        return FILE_TYPE + between + index + media
    return before + media + movie(track, sizes, len(before) + 8, **parts)  # type: ignore[arg-type]


def fragment(track: Track, packets: Sequence[bytes], start: int, number: int = 1) -> bytes:
    """A fragment whose first packet is at `start`, in the track's ticks."""
    sizes = [len(packet) for packet in packets]

    def header(offset: int) -> bytes:
        run = full("trun", numbers(len(sizes), offset, *sizes), flags=0x201)
        track_head = full("tfhd", numbers(1, track.duration), flags=0x20008)
        time = full("tfdt", struct.pack(">Q", start), version=1)
        return box("moof", full("mfhd", numbers(number)), box("traf", track_head, time, run))

    return header(len(header(0)) + 8) + box("mdat", *packets)


def fragmented(track: Track, starts: Sequence[int], count: int, **parts: object) -> bytes:
    """A file of fragments of `count` packets each, the first of which are at `starts`."""
    defaults = box("mvex", full("trex", numbers(1, 1, track.duration, 0, 0)))
    content = FILE_TYPE + movie(track, in_movie=defaults, **parts)  # type: ignore[arg-type]
    for number, start in enumerate(starts):
        packets = track.packets[number * count : (number + 1) * count]
        content += fragment(track, packets, start, number + 1)
    return content
