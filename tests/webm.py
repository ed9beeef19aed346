"""A small reader and writer of WebM, so that a test can give real packets whatever timestamps and layout it needs."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Optional

UNKNOWN = b"\x01" + b"\xff" * 7
MASTERS = (0x18538067, 0x1F43B675)  # Segment, Cluster


class Packet(NamedTuple):
    stamp: int  # milliseconds
    data: bytes


def element(identity: int, content: bytes, size: Optional[bytes] = None) -> bytes:
    length = (identity.bit_length() + 7) // 8
    return (
        identity.to_bytes(length, "big")
        + (size or (1 << 56 | len(content)).to_bytes(8, "big"))
        + content
    )


def number(value: int, length: int = 1) -> bytes:
    return value.to_bytes(length, "big")


def opus_head(channels: int = 1, pre_skip: int = 0) -> bytes:
    return b"OpusHead" + struct.pack("<BBHIhB", 1, channels, pre_skip, 48_000, 0, 0)


def header(
    codec: bytes = b"A_OPUS", head: bytes = b"", audio: bytes = b"", extra: bytes = b""
) -> bytes:
    """What stands before the first cluster; `audio` are elements of the Audio element, `extra` of the segment."""
    ebml = element(0x1A45DFA3, element(0x4282, b"webm"))
    private = element(0x63A2, head) if head else b""
    track = (
        element(0xD7, number(1))
        + element(0x83, number(2))
        + element(0x86, codec)
        + private
        + element(0xE1, audio)
    )
    return (
        ebml + element(0x18538067, b"", UNKNOWN) + extra + element(0x1654AE6B, element(0xAE, track))
    )


def block(stamp: int, data: bytes, flags: int = 0x80) -> bytes:
    """A cluster of its own for each, so that any timestamp is possible."""
    simple = element(0xA3, b"\x81" + struct.pack(">h", 0) + bytes([flags]) + data)
    return element(0x1F43B675, element(0xE7, number(stamp, 8)) + simple)


def write(
    path: Path, packets: Iterable[Packet], head: Optional[bytes] = None, **parts: bytes
) -> Path:
    content = header(head=opus_head() if head is None else head, **parts)
    path.write_bytes(content + b"".join(block(*packet) for packet in packets))
    return path


def lace(packets: Sequence[bytes], kind: str) -> bytes:
    """Several packets in one block's content (RFC 9559, section 10.3)."""
    sizes, sizes_told = [len(packet) for packet in packets], b""
    if kind == "xiph":
        sizes_told = b"".join(b"\xff" * (size // 255) + bytes([size % 255]) for size in sizes[:-1])
    elif kind == "ebml":
        steps = [size - before for before, size in zip(sizes, sizes[1:-1])]
        sizes_told = struct.pack(">H", 0x4000 | sizes[0])
        sizes_told += b"".join(struct.pack(">H", 0x4000 | (step + 0x1FFF)) for step in steps)
    return bytes([len(packets) - 1]) + sizes_told + b"".join(packets)


def packets_of(path: Path) -> Iterator[Packet]:
    """Of a file that has its audio in simple blocks."""
    data, at, cluster = path.read_bytes(), 0, 0

    def vint(at: int, marked: bool) -> tuple[int, int]:
        length = 9 - data[at].bit_length()
        value = int.from_bytes(data[at : at + length], "big")
        return value if marked else value - (1 << 7 * length), at + length

    while at < len(data):
        identity, middle = vint(at, True)
        size, at = vint(middle, False)
        if identity == 0xE7:
            cluster = int.from_bytes(data[at : at + size], "big")
        elif identity == 0xA3:
            yield Packet(
                cluster + int.from_bytes(data[at + 1 : at + 3], "big", signed=True),
                data[at + 4 : at + size],
            )
        at += 0 if identity in MASTERS else size
