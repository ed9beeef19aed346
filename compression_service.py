#!/usr/bin/env python3
"""compression_service.py - make a library of voice recordings smaller, without ever losing a second of it.

It walks a library of WebM recordings made by a browser-based transcription recorder, converts those older
than a week to Opus with ffmpeg, proves every copy against its source, and only then deletes the original. The
sidecar metadata, the master index, the log and the history are kept true at every step.

The promise: at every instant, whatever is killed or unplugged, the audio of every recording is on disk complete,
as its original or as a verified copy, and every sidecar names files that exist. What cannot be proven is kept.

The way of one recording, and the sections of this file in the same order:

    command line     options and commands                          main()
    configuration    flag, then file, then default                 Config, resolve_config()
    run              one night's work, start to summary            Run, Night, Steps, Batches
    scan             which files are old enough                    scan()
    sessions         which sidecars belong to which file           resolve_sessions()
    probe            what is in a file, every byte accounted for   probe(), MatroskaWalk, walk_ogg()
    decide           what to do with it, pure                      decide()
    encode           many files in one ffmpeg, into staging        Transcoder
    verify           cheap to dear, a typed error for each         verify_structure(), compare_audio()
    commit           the only section that changes the library     Committer
    archive          where old recordings go, proven to be there   Archive, Mover
    restore          second thoughts, crash-safe like a commit     Restore
    history          what became of every file, and when           History
    check            the compressed library against its records    Check
    statistics       what it takes and what was saved; the page    Statistics, storage_stats(), StatsApp
    tools            the one place that starts a process           Tools
    files, json      the one place that writes durably             place(), Staging, replace_json()
    reporting        the one place that prints and logs            Report
    further commands                                               doctor, schedule, demo

Exit codes: 0 done or nothing to do, 1 something failed (its original is kept), 2 wrong usage or configuration,
3 another run is at work, 4 a needed program is missing, 5 too little disk space, 129/130/143 stopped by a signal.
"""

from __future__ import annotations

import argparse
import array
import base64
import concurrent.futures
import contextlib
import ctypes
import dataclasses
import difflib
import enum
import errno
import fcntl
import fnmatch
import functools
import gc
import hashlib
import html
import io
import itertools
import json
import logging
import logging.handlers
import math
import os
import plistlib
import re
import selectors
import shlex
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import zlib
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, Callable, NamedTuple, NoReturn, Optional, TextIO, TypeVar, cast

VERSION = "1.0"
T = TypeVar("T")

# ---------------------------------------------------------------------------------------------------- constants

SOURCE_SUFFIX = ".webm"
SIDECAR_SUFFIX = ".json"
INDEX_NAME = "index.json"
STAGING_NAME = ".compression"  # hidden, so that scans pass it over; inside the library, so that links stay on one file system
PAUSE_NAME = ".compression-paused"
LOCK_NAME = ".compression-lock"  # only where folders cannot be locked
DAY = 86_400  # seconds

OPUS_RATE = 48_000  # Hz; the clock of every Opus stream (RFC 7845, section 4)
LEVEL_RATE = 4_000  # Hz; enough of the voice band to tell recordings apart, a twelfth of the samples to compare
# Every sample, whatever its timestamp; encoders take out what is constant, a sound card's offset.
LEVEL_FILTER = f"asetpts=N/SR/TB,aresample={LEVEL_RATE},aformat=sample_fmts=fltp,highpass=f=30,aformat=sample_fmts=flt"
LEVEL_OUTPUT = ("-c:a", "pcm_f32le", "-f", "f32le")
LEVEL_BYTES = 4  # a sample
LEVEL_WINDOW = 2_000  # samples, half a second: one lost word changes a window, one lost packet does not hide in it
LEVEL_PART = 200  # samples, 50 ms: a word's end that is lost for a tenth of a second hides in half a second
LEVEL_EDGE = 240  # samples, 60 ms: the longest packet of an encoder, so how far a sound may spread
LOST_PART = 0.1  # of the power of half a second: what is louder is looked at, and lost where less than a twentieth of it is left
LEVEL_FLOOR = 6.0 / 32768  # of full scale, -75 dBFS: below it is what a codec adds, and rounding to the 16 bits of most sources
LEVEL_TOLERANCE_DB = 3.0  # the worst good copy of all browsers, versions and formats differed by 1.06 dB
MIN_CORRELATION = 0.8  # the worst good copy had 0.91, in a tail of 20 ms; another recording has about 0
QUIET_CHANNEL = 1e-3  # of the louder one's power, -30 dB: below it a codec may leave a channel to the other
FAINT = 1e-5  # of the power within half a second, -50 dB: below it what is loud there, and not the source, is what a codec codes
LENGTH_ON_RECORD_TOLERANCE = 0.15  # seconds, between what the history says of a copy and what is in it
LONG_PACKETS_FROM = 4.0  # seconds; packets of 60 ms, as Chrome writes, encode 13 % faster at the same size and noise
COPY_OVERLAP = 0.001  # seconds; in what we have made, every stamp is where the packet before it ends, but for rounding
GAP_SECONDS = 0.1  # a jump in timestamps from here on is filled with silence; less is jitter (WebAudio: 52-70 ms steps)
LONGEST_LEAD = 10.0  # seconds of silence before a late first packet; a clock that begins later does not begin with the recording
LARGEST_STEP_BACK = 1.0  # seconds; timestamps that overlap by more are no backlog of a frozen tab but damage
MOST_GAPS = 1000  # each is a term of an expression that ffmpeg evaluates for every frame
MAX_SILENCE = 600.0  # seconds of gaps: ffmpeg makes each as one frame, which takes a megabyte of memory a second in stereo
SHORTFALL = 0.05  # a recording this much shorter than its own record of it has lost its end

SILENT_PACKET = 4.54  # bytes for 20 ms of silence in Ogg Opus: a packet of 3, its lacing, its share of a page header

PROBE_WINDOW = 1 << 20  # bytes read at a time while walking a container
LARGEST_INDEX = 64 << 20  # bytes of an MP4 file's moov box: ten for a packet
LARGEST_JSON = 256 << 20  # bytes; no recorder writes more, and a sparse file must not fill the memory
HALF_WRITTEN_WAIT = 3.0  # seconds to wait for another program to finish writing a JSON file
JSON_ATTEMPTS = 200  # a writer at 50 writes a second leaves 20 ms between two; this many misses mean something else

BATCH_FILES = 25  # 100 three-second files: 8 a process 7.0 s, 25 a process 4.9 s, measured
BATCH_SECONDS = 600.0  # audio in one process; longer files gain nothing from sharing a start of 0.1 s
STEP_FILES = 64  # chunks of one recording that are put in place before its sidecar is written
STEP_BYTES = 256 << 20  # of originals, for the same reason: space is given back in steps
SETTLE_FILES = 256  # originals that may wait for the index; each write of it costs in proportion to its size
BYTES_PER_SECOND = 16_000  # of a browser's default recording, 130 kbit/s: a first guess at length from size
TOOL_GRACE = 30.0  # seconds a tool may take beside its work: start-up, a disk that must spin up
TOOL_PACE = 1.0  # seconds of work allowed for a second of audio; ffmpeg needs 0.02
LOW_PRIORITY = 10  # nice value of every tool: a server transcribing beside us comes first
NOTIFY_SECONDS = 60.0  # for a notify_command: a mail server may be slow, a run must not hang on it
MAX_TOOL_OUTPUT = 1 << 20  # bytes of messages after which a tool is stopped: it reads nothing sound
SPACE_MARGIN = 2 << 20  # bytes left free beside what a batch may need: sidecars, index, log
ARCHIVE_BYTES_PER_SECOND = 20_000  # the slowest upload that is still waited for
SAME_FAILURES = 5  # in a row, after which the cause is taken to lie outside the recordings
PROGRESS_PAUSE = {True: 10.0, False: 180.0}  # seconds between plain lines: where someone watches, and in a log file
ENCODE_SHARE = {"opus": 0.8}  # of the time that a recording takes, the rest being its proof, measured; the others have 0.87
ATTEMPTS = 3  # a failure is tried again by the next two runs, then remembered

# What browsers record and people upload, and nothing that refers to other files (playlists, concat lists, manifests).
SAFE_INPUT = (
    "-protocol_whitelist", "file", "-format_whitelist", "matroska,mov,ogg,wav", "-codec_whitelist",
    "opus,libopus,aac,pcm_u8,pcm_s16le,pcm_s24le,pcm_s32le,pcm_f32le,pcm_f64le",
    "-max_streams", "16", "-max_alloc", "268435456",
)  # fmt: skip
QUIET = ("-hide_banner", "-nostdin", "-xerror", "-v", "level+warning", "-y")
LENIENT = tuple(word for word in QUIET if word != "-xerror")
RCLONE = ("--retries", "2", "--low-level-retries", "3", "--contimeout", "20s", "--timeout", "60s", "--log-level", "ERROR",
          "--stats", "0")  # fmt: skip
# cron and launchd give a PATH of two folders; these are where package managers put ffmpeg.
TOOL_FOLDERS = ("/opt/homebrew/bin", "/usr/local/bin", "/opt/local/bin", "/usr/bin", "/bin", "/snap/bin",
                "/home/linuxbrew/.linuxbrew/bin")  # fmt: skip


class Format(NamedTuple):
    """A kind of copy: how it is made, and what its length and size may be.

    `payload` is the share of the asked bit rate that the encoder really uses on speech (measured), `slack` the seconds by which
    its decoded length may differ from the source's: none for Opus (RFC 7845 trims to the sample), a frame or two for the others.
    """

    suffix: str
    muxer: str
    demuxer: str
    codec: str
    encoder: str
    options: tuple[str, ...]
    payload: float
    header: int  # bytes
    slack: float  # seconds
    rates: tuple[int, int]  # bit/s


FORMATS = {
    # At any other rate than its own, ffmpeg before 4.2 reckons the pre-skip wrong by some samples.
    "opus": Format(
        ".opus", "ogg", "ogg", "opus", "libopus", ("-vbr", "constrained", "-ar", "48000"), 0.997, 250, 0.0, (6_000, 510_000)
    ),
    "m4a": Format(".m4a", "ipod", "mov", "aac", "aac", ("-movflags", "+faststart"), 1.03, 1_200, 0.05, (16_000, 512_000)),
}
COPY_SUFFIXES = tuple(form.suffix for form in FORMATS.values())
AUDIO_SUFFIXES = (SOURCE_SUFFIX, *COPY_SUFFIXES)

# --------------------------------------------------------------------------------------------------- vocabulary


class Action(enum.Enum):
    """What became of a recording, as printed, logged and remembered."""

    COMPRESSED = "compressed"
    WOULD_COMPRESS = "would-compress"
    KEPT = "kept"
    FAILED = "failed"
    ARCHIVED = "archived"
    WOULD_ARCHIVE = "would-archive"
    RESTORED = "restored"


class Reason(enum.Enum):
    """Why, with the sentence for the user; `{}` stands for what was found in this file."""

    def __init__(self, action: Action, sentence: str) -> None:
        self.action, self.sentence = action, sentence

    DONE = (Action.COMPRESSED, "proven and put in place{}")
    ADOPTED = (Action.COMPRESSED, "its copy was there already, and was proven again{}")
    DUE = (Action.WOULD_COMPRESS, "due{}")

    ARCHIVED = (Action.ARCHIVED, "in {}")
    ARCHIVE_DUE = (Action.WOULD_ARCHIVE, "to {}")
    RESTORED = (Action.RESTORED, "{}; --retry lets runs take it up again")

    EMPTY = (Action.KEPT, "the file is empty{}")
    HEADERLESS = (Action.KEPT, "headerless slice: a later part of a recording, unreadable without its first part{}")
    UNREADABLE = (Action.KEPT, "unreadable: {}")
    NO_AUDIO = (Action.KEPT, "no audio in it: {}")
    VIDEO = (Action.KEPT, "has video, which a copy of the sound would lose{}")
    COVER = (Action.KEPT, "has a cover picture or another attachment, which a copy would lose{}")
    CHANNELS = (Action.KEPT, "has {} channels, and only one or two are compressed")
    CODEC = (Action.KEPT, "its audio is of a kind that is not compressed: {}")
    CONTAINER = (Action.KEPT, "it is a file of a kind that is not compressed: {}")
    FORM = (Action.KEPT, "a form upload saved with its headers; the recording in it begins at byte {}")
    SEVERAL_STREAMS = (Action.KEPT, "several streams, of which a copy would keep one: {}")
    APPENDED = (Action.KEPT, "several recordings appended in one file, of which ffmpeg would keep the first: {}")
    GAPS = (Action.KEPT, "its timestamps leave more without audio than is filled with silence: {}")
    TRUNCATED = (Action.KEPT, "truncated: {}")
    DAMAGED = (Action.KEPT, "damaged: {}")
    LOW_BIT_RATE = (Action.KEPT, "already small: {}")
    LITTLE_SAVING = (Action.KEPT, "too little to gain: {}")
    POLICY_KEEP = (Action.KEPT, "its sidecar's compression_policy says keep{}")
    POLICY_INVALID = (Action.KEPT, "its sidecar's compression_policy cannot be followed: {}")

    TOOL_FAILED = (Action.FAILED, "ffmpeg failed: {}")
    TOOL_KILLED = (Action.FAILED, "ffmpeg was killed, perhaps by the system for want of memory: {}")
    TOOL_HUNG = (Action.FAILED, "ffmpeg hung and was stopped: {}")
    NOT_PROVEN = (Action.FAILED, "the copy did not prove true and was dropped: {}")
    SIDECAR = (Action.FAILED, "sidecar cannot be read: {}")
    INDEX = (Action.FAILED, "index.json cannot be read: {}")
    NAME_TAKEN = (Action.FAILED, "name already taken: {}")
    NAME_TOO_LONG = (Action.FAILED, "a name is too long: {}")
    OTHER_DISK = (Action.FAILED, "on another file system than the recordings folder; make its folder a library of its own{}")
    ARCHIVE = (Action.FAILED, "could not be archived: {}")
    ARCHIVE_REFUSED = (Action.FAILED, "cannot be archived: {}")
    NOT_RESTORED = (Action.FAILED, "cannot be restored: {}")
    CHANGED = (Action.FAILED, "the recording changed while it was being worked on{}")
    NO_SPACE = (Action.FAILED, "no space left: {}")
    INPUT_OUTPUT = (Action.FAILED, "input/output error: {}")
    DEFECT = (Action.FAILED, "a defect of this program (its traceback is in the log): {}")

    @property
    def code(self) -> str:
        return self.name.lower().replace("_", "-")

    @property
    def is_environment(self) -> bool:
        """True where the cause lies outside the recording, so that it must not count against it."""
        return self in (Reason.NO_SPACE, Reason.INDEX, Reason.INPUT_OUTPUT, Reason.ARCHIVE)

    @property
    def may_be_common(self) -> bool:
        """True where the same failure again and again means one cause for all: a broken ffmpeg, a disk that is gone."""
        own = (Reason.SIDECAR, Reason.NAME_TAKEN, Reason.NAME_TOO_LONG, Reason.OTHER_DISK, Reason.CHANGED)
        return self.action is Action.FAILED and self not in own


class ServiceError(Exception):
    """Ends the run with its own exit code and a message that says what to do."""

    exit_code = 1


class UsageError(ServiceError):
    exit_code = 2


class BusyError(ServiceError):
    exit_code = 3


class ToolMissingError(ServiceError):
    exit_code = 4


class NoSpaceError(ServiceError):
    exit_code = 5


class Stopped(Exception):
    """The run was asked to stop while a tool was at work; whatever it wrote is dropped."""


class Refusal(Exception):
    """This recording stays as it is: the reason, and what was found."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(reason.sentence.format(detail))
        self.reason, self.detail = reason, detail


class JsonFlaw(Exception):
    """A JSON document that cannot be changed without changing something else too."""


class NotProven(Refusal):
    """A copy that failed one check: what was expected, and what was found."""

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(Reason.NOT_PROVEN, f"expected {expected}, found {found}")


class MissingCopy(NotProven): ...


class WrongStream(NotProven): ...


class UnsoundStream(NotProven): ...


class UndecodableCopy(NotProven): ...


class WrongLength(NotProven): ...


class DifferentAudio(NotProven): ...


# ------------------------------------------------------------------------------------------------------ records


class Identity(NamedTuple):
    """What makes a file the same file: a change of any means another file or other content."""

    device: int
    inode: int
    size: int  # bytes
    mtime_ns: int


class Source(NamedTuple):
    """One audio file of the library, as the scan saw it; `path` is relative to the recordings folder."""

    path: str
    identity: Identity

    @property
    def folder(self) -> str:
        return os.path.dirname(self.path)

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    @property
    def stem(self) -> str:
        return os.path.splitext(self.name)[0]

    @property
    def size(self) -> int:
        return self.identity.size

    @property
    def format(self) -> Optional[str]:
        """Of a copy, by its suffix."""
        return next((name for name, form in FORMATS.items() if self.name.endswith(form.suffix)), None)

    @property
    def is_copy(self) -> bool:
        """Whether it is an earlier copy, that a later tier makes smaller in its place."""
        return self.name.endswith(COPY_SUFFIXES)

    @property
    def guessed_seconds(self) -> float:
        return self.size / (BYTES_PER_SECOND / 2 if self.is_copy else BYTES_PER_SECOND)

    def age(self, now: float) -> float:
        """Days since it was last modified; a copy has the time of its original."""
        return (now - self.identity.mtime_ns / 1e9) / DAY


class Sidecar(NamedTuple):
    """What one JSON file beside the recordings says of them. With a `flaw` its content cannot be relied on."""

    name: str
    id: Optional[str] = None
    chunks: Sequence[str] = ()
    durations: Mapping[str, float] = {}  # seconds on record, by chunk
    policy: Any = None
    language: Optional[str] = None
    archived: bool = False
    flaw: str = ""
    text: bytes = b""  # of a flawed document only: it may still name a recording

    @property
    def stem(self) -> str:
        return self.name[: -len(SIDECAR_SUFFIX)]


class Target(NamedTuple):
    """What a recording is to become."""

    format: str
    bitrate: int  # bit/s

    @property
    def form(self) -> Format:
        return FORMATS[self.format]

    def flaw(self) -> str:
        """Why this bit rate is not one of this format, if so."""
        low, high = self.form.rates
        if low <= self.bitrate <= high:
            return ""
        return f"expected {low // 1000}k to {high // 1000}k for {self.format}, found {self.bitrate // 1000}k"


@dataclasses.dataclass(eq=False)
class Session:
    """The recorder's notion of a recording: audio files that share sidecars. Written to together, committed together."""

    folder: str
    sources: list[Source]
    sidecars: list[Sidecar]
    seen: frozenset[str] = frozenset()  # every JSON file of the folder when it was read
    flaw: str = ""
    done: list[Work] = dataclasses.field(default_factory=list)  # in place already, by this run
    resting: set[str] = dataclasses.field(default_factory=set)  # names of what is kept as it is
    written: dict[str, Identity] = dataclasses.field(default_factory=dict)  # its sidecars by path, as we wrote them
    location: str = ""  # where its files are archived, by this run
    returned: Optional[dict[str, str]] = None  # what `restore` brings back: originals by the names of their copies

    @functools.cached_property
    def oldest(self) -> int:
        return min(source.identity.mtime_ns for source in self.sources)

    @functools.cached_property
    def key(self) -> str:
        """The same on every machine and in every run, whatever has been compressed already."""
        names = [sidecar.stem for sidecar in self.sidecars] or [source.stem for source in self.sources]
        return os.path.join(self.folder, min(names))

    @functools.cached_property
    def ids(self) -> list[str]:
        return sorted({sidecar.id for sidecar in self.sidecars if sidecar.id is not None})

    @property
    def policies(self) -> list[Any]:
        return [sidecar.policy for sidecar in self.sidecars if sidecar.policy is not None]


@dataclasses.dataclass(frozen=True)
class Probe:
    """What is in an audio file, from its packets alone.

    `packets` counts packets by (bytes, samples); `samples` is what a plain decode gives of each channel: all packets less pre-skip
    and end trim; `gaps` are the places where the timeline has none, as (samples before it, samples of silence); `end` is where
    the last packet ends by its stamp, and `overlap` the most by which a stamp lies before the end of the packet before it, in
    seconds; `doubt` the samples by which decoders of such files may differ; `ends_oddly` is true where ffmpeg stumbles over the end
    of a sound file: a WAV that does not say where it ends, an Ogg stream that ends with an empty packet.
    """

    demuxer: str
    codec: str
    channels: int
    rate: int  # Hz
    packets: Mapping[tuple[int, int], int]
    samples: int
    gaps: tuple[tuple[int, int], ...]
    end: float
    overlap: float = 0.0
    doubt: int = 0
    has_chapters: bool = False
    ends_oddly: bool = False

    @property
    def payload(self) -> int:
        """Bytes of coded audio."""
        return sum(size * count for (size, _), count in self.packets.items())

    @property
    def silence(self) -> int:
        """Samples that a copy has more than its source, so that all times stay what they were."""
        return sum(length for _, length in self.gaps)

    @property
    def timeline(self) -> float:
        """Seconds that a copy lasts."""
        return (self.samples + self.silence) / self.rate

    @property
    def audio_seconds(self) -> float:
        return self.samples / self.rate

    @property
    def kilobits(self) -> float:
        """kbit/s, from payload and packets; no header carries it."""
        return self.payload * 8 / 1000 / self.audio_seconds if self.samples else 0.0


@dataclasses.dataclass(eq=False)
class Work:
    """One recording on its way through the run; filled in as it goes."""

    source: Source
    session: Session
    target: Target
    fingerprint: str  # of the settings that the decision rests on
    unlink: bool  # whether the original goes at the end
    replaces: Optional[Identity] = None  # the earlier copy that it is to take the place of
    first_size: int = 0  # bytes of the recording as the browser wrote it
    chapters: Sequence[str] = ()  # as tags in Ogg
    is_doubtful: bool = False  # whether the copy that it replaces must first prove to be one of this source
    probe: Optional[Probe] = None
    estimate: int = 0  # bytes
    staged: Optional[str] = None
    copy: Optional[Identity] = None
    decoded: str = ""  # SHA-256 of the copy if it was decoded while it was written
    changed_ns: int = 0  # the source's inode change time: another file under its name, even for a moment, leaves a mark in it
    reason: Optional[Reason] = None
    detail: str = ""
    trace: str = ""  # of a defect
    digest: str = ""  # SHA-256 of what was archived
    owner: tuple[int, int, int] = (0, 0, 0)  # mode, user and group of what was archived
    moving: bool = False  # to the archive, which has a memory of its own
    number: int = dataclasses.field(default_factory=itertools.count().__next__)  # names its staged files

    @property
    def copy_name(self) -> str:
        return self.source.stem + self.target.form.suffix

    @property
    def found(self) -> Probe:
        """What is in its source, once that has been looked into."""
        assert self.probe
        return self.probe

    @property
    def size_before(self) -> int:
        """Bytes that the copy must save from: those of the copy before it, or of the original."""
        return self.replaces.size if self.replaces else self.source.size

    @property
    def proven(self) -> bool:
        return self.copy is not None and self.reason is not None and self.reason.action is Action.COMPRESSED

    @property
    def seconds(self) -> float:
        return round(self.probe.timeline, 3) if self.probe else 0.0

    def refuse(self, reason: Reason, detail: str = "") -> None:
        self.reason, self.detail = reason, detail

    def refuse_for(self, error: Exception) -> None:
        """Refuse it for whatever kept it from going on."""
        if isinstance(error, Refusal):
            self.refuse(error.reason, error.detail)
        elif isinstance(error, OSError):
            reasons = {errno.ENOSPC: Reason.NO_SPACE, errno.EDQUOT: Reason.NO_SPACE, errno.ENAMETOOLONG: Reason.NAME_TOO_LONG}
            self.refuse(reasons.get(error.errno or 0, Reason.INPUT_OUTPUT), describe(error))
        else:
            self.refuse(Reason.SIDECAR, str(error))

    def outcome(self) -> dict[str, Any]:
        """The object of `--json` and of the history."""
        assert self.reason is not None
        return {
            "type": "recording",
            "path": self.source.path,
            "action": self.reason.action.value,
            "reason": self.reason.sentence.format(self.detail),
            "code": self.reason.code,
            "original_size": self.source.size,
            "compressed_size": self.copy.size if self.proven and self.copy else None,
            "seconds": self.seconds,
        }


# ------------------------------------------------------------------------------------------------- command line


PROGRAM = "compression_service.py"
HELP_GROUPS = {  # what --help lists, of the commands there are
    "every day": ("run", "stats", "check"),
    "when needed": ("pause", "resume", "restore", "serve"),
    "setting up": ("doctor", "schedule", "demo"),
}
EXAMPLES = (
    ("--dry-run", "change nothing, say what would be done"),
    ("--older-than 30", "leave alone what is younger"),
    ("schedule cron", "an entry for every night, to paste"),
)


class Parser(argparse.ArgumentParser):
    """Tells wrong usage in one sentence instead of a page, and has a front page that fits on a screen."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. '{self.prog} --help' tells more.")

    def suggest(self, word: str, known: Iterable[str], what: str) -> NoReturn:
        close = difflib.get_close_matches(word, list(known), 1, 0.65)
        self.error(f"there is no {what} {word}" + (f" (did you mean {close[0]}?)" if close else ""))

    def format_help(self) -> str:
        if self.prog != PROGRAM:
            return super().format_help()
        lines = [f"usage: {PROGRAM} [COMMAND] [options]", "", self.description or "", ""]
        for group, names in HELP_GROUPS.items():
            there = [name for name in names if name in COMMANDS]
            lines += [f"{group * (name == there[0]):<13}{name:<10}{COMMANDS[name][0]}" for name in there]
        lines += ["", *(f"  {PROGRAM + ' ' + words:<38}  {text}" for words, text in EXAMPLES)]
        return "\n".join([*lines, "", "COMMAND --help tells a command's options. --version tells the version.", ""])


def build_parser() -> tuple[Parser, Mapping[str, argparse.ArgumentParser]]:
    """The whole parser, and that of each command."""
    parser = Parser(prog=PROGRAM, description="Make a library of voice recordings smaller, without ever losing a second of it.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {VERSION}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (text, _) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
        command.add_argument("-c", "--config", metavar="FILE", help="default: compression_config.json beside this script")
        for field in SETTINGS.values():
            if field.metadata["flags"] and field.name in COMMAND_OPTIONS.get(name, ("recordings_dir",)):
                add_flag(command, field)
    return parser, commands.choices


def add_flag(parser: argparse.ArgumentParser, field: dataclasses.Field[Any]) -> None:
    flags, options, text = field.metadata["flags"], dict(field.metadata["options"]), field.metadata["help"]
    if options.get("action") == "progress":
        group = parser.add_mutually_exclusive_group()
        group.add_argument(flags[0], dest=field.name, action="store_const", const=True, help=text)
        group.add_argument(flags[1], dest=field.name, action="store_const", const=False, help="leave it out")
        return
    if flags[0].startswith("-"):
        options["dest"] = field.name
    parser.add_argument(*flags, default=None, help=text, **options)


def parse_words(words: Sequence[str]) -> argparse.Namespace:
    """What the command line asks for: without a command a run, and options may stand before the command. Raises UsageError."""
    words = list(words)
    parser, commands = build_parser()
    if words[:1] not in (["-h"], ["--help"], ["--version"]):
        if not words or words[0].startswith("-"):
            words.insert(0, "run")
            late = next((word for word in commands["run"].parse_known_args(words[1:])[1] if word in commands), None)
            if late:
                del words[len(words) - 1 - words[::-1].index(late)]
                words[0] = late
        if words[0] not in commands:
            parser.suggest(words[0], [*commands, "--help", "--version"], "command")
    arguments, unknown = parser.parse_known_args(words)
    for word in unknown:
        option, own = word.partition("=")[0], cast(Parser, commands[arguments.command])
        if word.startswith("-") and option in commands["run"]._option_string_actions:
            own.error(f"{option} is no option of {arguments.command}, only of run")
        if not word.startswith("-"):
            own.error(f"{arguments.command} cannot take {word}")
        own.suggest(option, own._option_string_actions, "option")
    return arguments


def main(args: Optional[Sequence[str]] = None) -> int:
    """Run one command; `args` as in sys.argv[1:]. Returns the exit code."""
    report: Optional[Report] = None
    try:
        arguments = parse_words(sys.argv[1:] if args is None else args)
        config = resolve_config(arguments)
        report = Report(config)
        COMMANDS[arguments.command][1](config, report)
        return report.exit_code
    except (ServiceError, OSError) as error:
        (report or Report(Config())).error(describe(error) if isinstance(error, OSError) else str(error))
        return exit_code_of(error)
    finally:
        if report:
            report.close()


def exit_code_of(error: Exception) -> int:
    if isinstance(error, ServiceError):
        return error.exit_code
    return NoSpaceError.exit_code if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) else 1


def command_run(config: Config, report: Report) -> None:
    Run(config, report, time.time()).execute()


def command_pause(config: Config, report: Report) -> None:
    require_library(config)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(pause_path(config), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
    flush_folder(config.recordings_dir)
    report.say(f"Paused: runs leave {printable(config.recordings_dir)} alone until 'resume'.")


def command_resume(config: Config, report: Report) -> None:
    require_library(config)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(pause_path(config))
        flush_folder(config.recordings_dir)
    report.say("Resumed: the next run goes on.")


def pause_path(config: Config) -> str:
    return os.path.join(config.recordings_dir, PAUSE_NAME)


def require_library(config: Config) -> None:
    if not os.path.isdir(config.recordings_dir):
        advice = "Is its disk mounted? Otherwise name it with --recordings or recordings_dir."
        raise UsageError(f"The recordings folder {printable(config.recordings_dir)} is not there. {advice}")


# ------------------------------------------------------------------------------------------------ configuration


class Kind(NamedTuple):
    """A type of setting: `check` turns a JSON value into the value used, or raises ValueError with what was expected;
    `from_text` turns a flag's text into a JSON value first."""

    check: Callable[[Any], Any]
    from_text: Callable[[str], Any] = str


def expect(condition: object, expected: str) -> None:
    if not condition:
        raise ValueError(expected)


def finite(value: Any) -> Optional[float]:
    """The number that a JSON value is, None if it is none or one that no size, length or age has."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and -1e15 < value < 1e15:
        return value
    return None


def number_from_text(text: str) -> Any:
    with contextlib.suppress(ValueError):
        return int(text)
    with contextlib.suppress(ValueError):
        return float(text)
    return text


def number(expected: str, low: float, high: float = math.inf, whole: bool = False) -> Kind:
    def check(value: Any) -> Any:
        kinds = (int,) if whole else (int, float)
        expect(isinstance(value, kinds) and finite(value) is not None and low <= value <= high, expected)
        return value

    return Kind(check, number_from_text)


def string(expected: str, accepts: Callable[[str], object]) -> Kind:
    def check(value: Any) -> Any:
        expect(isinstance(value, str) and "\0" not in value and accepts(value), expected)
        return value

    return Kind(check)


def check_boolean(value: Any) -> Any:
    expect(isinstance(value, bool), "true or false")
    return value


def check_bitrate(value: Any) -> int:
    """Bits per second from "96k" or 96000; 6 to 510 kbit/s is what Opus can do (RFC 6716, section 2.1.1)."""
    expected = 'a bit rate from "6k" to "510k", such as "96k"'
    if isinstance(value, str):
        match = re.fullmatch(r"(\d{1,7}(?:\.\d{1,3})?)(k?)", value.strip(), re.IGNORECASE)
        value = round(float(match[1]) * (1000 if match[2] else 1)) if match else 0
    expect(isinstance(value, int) and not isinstance(value, bool) and 6_000 <= value <= 510_000, expected)
    return int(value)


def optional(kind: Kind) -> Kind:
    return Kind(lambda value: None if value is None else kind.check(value), kind.from_text)


BOOLEAN = Kind(check_boolean)
DAYS = number("a number of days from 0 up", 0)
BITRATE = Kind(check_bitrate)
PATH = string("a path as a string", bool)
FORMAT = string("one of " + ", ".join(FORMATS), FORMATS.__contains__)
COMMAND = string("a command as /bin/sh understands it", str.strip)
HOST = string("a host name or address", re.compile(r"[\w.:-]+").fullmatch)
HTML = string("a file name ending in .html", lambda name: name.lower().endswith((".html", ".htm")))  # never a recording
SCHEDULER = string("one of cron, launchd, systemd", lambda name: name in SCHEDULERS)
TEXTS = Kind(tuple)
DATE = string(
    "a date such as 2025-10-27", lambda text: re.fullmatch(r"\d{4}-\d\d-\d\d", text) and datetime.strptime(text, "%Y-%m-%d")
)


class Tier(NamedTuple):
    """A further step, for what is at least `after_days` old: a lower bit rate (bit/s), or a place to archive it in."""

    after_days: float
    bitrate: Optional[int] = None
    archive: Optional[str] = None

    def below(self, folder: str) -> Tier:
        """With an archive folder's path taken from the config file's folder, as all relative paths are."""
        if self.archive is None or is_remote(self.archive):
            return self
        return self._replace(archive=os.path.abspath(os.path.join(folder, os.path.expanduser(self.archive))))


def is_remote(archive: str) -> bool:
    """Whether an archive is an rclone remote, `name:path` (names as rclone allows them), and not a folder."""
    return re.match(r"[\w.+@][\w.+@ -]*:", archive) is not None


def below(location: str, path: str) -> str:
    """Where a path below the library is in an archive."""
    return (location if location.endswith((":", "/")) else location + "/") + path if path else location


TIER_KINDS = {"after_days": number("a number of days above 0", 1e-6), "bitrate": BITRATE, "archive": PATH}


def check_tiers(value: Any) -> tuple[Tier, ...]:
    """Tiers by age, in whatever order they were written: bit rates fall, an archive comes last."""
    expect(isinstance(value, list), 'a list such as [{"after_days": 30, "bitrate": "64k"}]')
    tiers = sorted((check_tier(each) for each in value), key=lambda tier: tier.after_days)
    for before, after in zip(tiers, tiers[1:]):
        expect(before.after_days < after.after_days, "ages that differ")
        expect(before.bitrate, "the archive last, as nothing can follow it")
        expect(not after.bitrate or after.bitrate < (before.bitrate or 0), "bit rates that fall as recordings grow older")
    return tuple(tiers)


def check_tier(value: Any) -> Tier:
    expect(isinstance(value, dict) and "after_days" in value, 'in every tier an object with "after_days"')
    expect(("bitrate" in value) != ("archive" in value), 'in every tier either "bitrate" or "archive"')
    values = {}
    for key, each in value.items():
        expect(key in TIER_KINDS, f"in a tier only {', '.join(TIER_KINDS)}, not {json.dumps(key)}")
        try:
            values[key] = TIER_KINDS[key].check(each)
        except ValueError as error:
            raise ValueError(f'for "{key}" of a tier {error}') from None
    return Tier(**values)


def check_shard(value: Any) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", value)
    expect(match and 1 <= int(match[1]) <= int(match[2]), "K/N with K from 1 to N, such as 2/4")
    assert match
    return int(match[1]), int(match[2])


def setting(default: Any, kind: Kind, *flags: str, help: str = "", key: bool = True, **options: Any) -> Any:
    """One declaration of a setting: its default, its type, its flags (with argparse's options) and whether the file has it."""
    metadata = {"kind": kind, "flags": flags, "help": help, "key": key, "options": options}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting of a run, as resolved; a flag beats the config file, which beats the default."""

    recordings_dir: str = setting("recordings", PATH, "--recordings", metavar="DIR", help="the library")
    log_file: str = setting("logs/compression.log", PATH)
    dry_run: bool = setting(False, BOOLEAN, "-n", "--dry-run", action="store_true",
                            help="say what would happen, change nothing at all")  # fmt: skip
    age_threshold_days: float = setting(7, DAYS, "--older-than", metavar="DAYS", help="by modification time")
    target_bitrate: int = setting(96_000, BITRATE, "--bitrate", metavar="RATE", help="such as 96k")
    target_format: str = setting("opus", FORMAT, "--format", metavar="NAME", help="opus or m4a")
    delete_originals: bool = setting(True, BOOLEAN, "--keep-originals", action="store_false",
                                     help="leave every original beside its copy")  # fmt: skip
    keep_originals_days: float = setting(0, DAYS)
    verify_before_delete: bool = setting(True, BOOLEAN)
    min_saving_percent: float = setting(5, number("a percentage from 0 to 99", 0, 99))
    jobs: int = setting(0, number("a whole number from 0 up (0: one a core)", 0, 1024, whole=True), "-j", "--jobs",
                        metavar="N", help="0: one a core")  # fmt: skip
    only: tuple[str, ...] = setting((), TEXTS, "--only", key=False, action="append", metavar="GLOB",
                                    help="paths like this, below the recordings folder")  # fmt: skip
    since: Optional[str] = setting(None, DATE, "--since", key=False, metavar="DATE", help="recorded then or later")
    until: Optional[str] = setting(None, DATE, "--until", key=False, metavar="DATE", help="recorded then or before")
    language: tuple[str, ...] = setting((), TEXTS, "--language", key=False, action="append", metavar="CODE",
                                        help="recordings in this language")  # fmt: skip
    limit: Optional[int] = setting(None, number("a whole number from 1 up", 1, whole=True), "--limit", key=False, metavar="N",
                                   help="take up at most N recordings, oldest first")  # fmt: skip
    max_run_minutes: Optional[float] = setting(None, optional(number("minutes, above 0", 1e-6)), "--max-minutes",
                                               metavar="M", help="start nothing new after that")  # fmt: skip
    shard: Optional[tuple[int, int]] = setting(None, Kind(check_shard), "--shard", key=False, metavar="K/N",
                                               help="the Kth of N parts of the library")  # fmt: skip
    retry: bool = setting(False, BOOLEAN, "--retry", key=False, action="store_true",
                          help="take up again what earlier runs kept or failed")  # fmt: skip
    json: bool = setting(False, BOOLEAN, "--json", key=False, action="store_true", help="JSON Lines on stdout")
    quiet: bool = setting(False, BOOLEAN, "-q", "--quiet", key=False, action="store_true", help="errors only")
    verbose: bool = setting(False, BOOLEAN, "-v", "--verbose", key=False, action="store_true", help="log lines on stderr")
    progress: Optional[bool] = setting(None, BOOLEAN, "--progress", "--no-progress", key=False,
                                       action="progress", help="default: on a terminal, else a line every 3 minutes")  # fmt: skip
    scheduler: Optional[str] = setting(None, SCHEDULER, "scheduler", key=False, nargs="?",
                                       metavar="cron|launchd|systemd", help="cron and systemd: Linux; launchd: macOS")  # fmt: skip
    paths: tuple[str, ...] = setting((), TEXTS, "paths", key=False, nargs="+", metavar="PATH",
                                     help="a kept original, its copy, or a sidecar")  # fmt: skip
    html: Optional[str] = setting(None, HTML, "--html", key=False, metavar="FILE", help="write a page of its own")
    host: str = setting("127.0.0.1", HOST, "--host", key=False, metavar="H", help="default: 127.0.0.1, this machine only")
    port: int = setting(8765, number("a port from 0 (any) to 65535", 0, 65535, whole=True), "--port", key=False, metavar="P",
                        help="default: 8765")  # fmt: skip
    tiers: tuple[Tier, ...] = setting((), Kind(check_tiers))
    notify_command: Optional[str] = setting(None, optional(COMMAND))
    file: str = ""  # the config file, where there is one

    @property
    def log_folder(self) -> str:
        return os.path.dirname(self.log_file)

    @property
    def target(self) -> Target:
        return Target(self.target_format, self.target_bitrate)

    @property
    def first_step(self) -> float:
        """Days from which copies are made smaller."""
        return min([tier.after_days for tier in self.tiers if tier.bitrate], default=math.inf)

    @property
    def archive_tier(self) -> Optional[Tier]:
        return next((tier for tier in self.tiers if tier.archive), None)

    @property
    def workers(self) -> int:
        return self.jobs or allowed_cores()


SETTINGS = {field.name: field for field in dataclasses.fields(Config) if field.metadata}
FILE_KEYS = [name for name, field in SETTINGS.items() if field.metadata["key"]]


def check_setting(name: str, value: Any, origin: str) -> Any:
    try:
        return SETTINGS[name].metadata["kind"].check(value)
    except ValueError as error:
        raise UsageError(f"{origin}: expected {error}, found {printable(json.dumps(value, default=str))}.") from None


def read_config_file(path: str) -> dict[str, Any]:
    """The settings a config file holds, checked. Raises UsageError naming the key and what was expected."""
    try:
        document = parse_json(Path(path).read_bytes())
    except JsonFlaw as flaw:
        raise UsageError(f"Config file {printable(path)} is not valid JSON: {flaw}. Nothing was touched.") from None
    except OSError as error:
        raise UsageError(f"Config file {printable(path)} cannot be read: {error.strerror}. Nothing was touched.") from None
    values = {}
    for key, value in document.items():
        if key not in FILE_KEYS:
            raise UsageError(f'Config file {printable(path)}: unknown key "{printable(key)}". Known: {", ".join(FILE_KEYS)}.')
        values[key] = check_setting(key, value, f'Config file {printable(path)}, key "{key}"')
    return values


def resolve_config(arguments: argparse.Namespace) -> Config:
    """Flags over the config file over the defaults, with absolute paths. Raises UsageError."""
    here = os.path.dirname(os.path.realpath(__file__))
    given = arguments.config is not None
    file = os.path.abspath(arguments.config) if given else os.path.join(here, "compression_config.json")
    base = os.path.dirname(file)
    present = given or os.path.lexists(file)
    values: dict[str, Any] = {name: field.default for name, field in SETTINGS.items()}
    if present:
        values.update(read_config_file(file))
    values["tiers"] = tuple(tier.below(base) for tier in values["tiers"])
    for name in ("recordings_dir", "log_file"):
        values[name] = os.path.abspath(os.path.join(base, os.path.expanduser(values[name])))
    if present:
        check_steps(values, f'Config file {printable(file)}, key "tiers"')
    for name, field in SETTINGS.items():
        value = getattr(arguments, name, None)
        if isinstance(value, str):
            value = field.metadata["kind"].from_text(value)
        if value is not None:
            values[name] = check_setting(name, value, field.metadata["flags"][-1])
    values["recordings_dir"] = os.path.abspath(values["recordings_dir"])  # a flag's is taken from where we are
    config = Config(file=file if present else "", **values)
    archive = config.archive_tier.archive if config.archive_tier else None
    library = config.recordings_dir
    if archive and not is_remote(archive) and (is_inside(archive, library) or is_inside(library, archive)):
        raise UsageError(f"tiers: expected an archive apart from {printable(library)}, found {printable(archive)}.")
    for target in (config.target, *(Target(config.target_format, tier.bitrate) for tier in config.tiers if tier.bitrate)):
        if flaw := target.flaw():
            raise UsageError(f"{'target_bitrate' if target == config.target else 'tiers'}: {flaw}.")
    return config


def check_steps(values: Mapping[str, Any], origin: str) -> None:
    """Whether a file's tiers go on from its first step, which they may repeat; a flag may then move that step."""
    for tier in values["tiers"][:1]:
        first, rate = values["age_threshold_days"], values["target_bitrate"]
        if tier.after_days < first:
            raise UsageError(f"{origin}: expected ages from age_threshold_days ({first:g}) up, found {tier.after_days:g}.")
        if tier.bitrate and tier.bitrate > rate:
            raise UsageError(f"{origin}: expected bit rates from target_bitrate ({rate}) down, found {tier.bitrate}.")


# ---------------------------------------------------------------------------------------------------------- run


class Run:
    """One run over the library, from the scan to the summary."""

    def __init__(self, config: Config, report: Report, now: float) -> None:
        self.config, self.report, self.now = config, report, now
        self.started = time.monotonic()
        self.library = config.recordings_dir
        self.history = History(config)
        self.summary: dict[str, Any] = {}

    def execute(self) -> None:
        require_library(self.config)
        if os.path.lexists(pause_path(self.config)):
            self.report.paused()
            return
        if self.config.dry_run:
            works = self.plan()
            self.rehearse(works)
            for work in itertools.chain.from_iterable(self.plan_moves(works)):
                work.reason = work.reason or Reason.ARCHIVE_DUE
                self.report.recording(work)
            self.report.summary(self.started)
            return
        with stop_signals() as stop:
            try:
                with library_lock(self.library, self.config.shard):
                    self.report.open_log()
                    self.work(stop)
            finally:
                self.notify(stop)

    def work(self, stop: Stop) -> None:
        try:
            with Staging(self.library, self.config.shard) as staging:
                self.compress(staging, stop)
            if stop.signal:
                self.report.stopped(stop.signal)
        except (ServiceError, OSError) as error:
            self.report.exit_code = exit_code_of(error)
            raise
        finally:
            self.summary = {**self.report.summary(self.started), "exit_code": self.report.exit_code}
            self.history.note_run(self.summary)

    def compress(self, staging: Staging, stop: Stop) -> None:
        queue = self.plan()
        committer = Committer(self.config, self.report, self.history, staging)
        committer.heal_index()
        if not queue and not any(self.plan_moves(queue)):
            return
        with Tools(stop) as tools:
            try:
                if queue:
                    Night(self, queue, Transcoder(self.config, tools, staging), committer, stop).work()
                if self.config.archive_tier:
                    committer.settle()
                    Mover(self, committer, tools, staging).work(self.plan_moves(queue))
            finally:
                committer.close()

    def notify(self, stop: Stop) -> None:
        """Tell the user's own command of a run that did or failed something; its failure is only logged."""
        if self.config.notify_command and self.summary and self.report.is_worth_telling:
            problem = run_for_user(self.config.notify_command, json.dumps(self.summary), os.path.dirname(self.config.file), stop)
            if problem:
                self.report.log.error(f"The notify_command failed: {problem}")

    def plan(self) -> list[Work]:
        """Everything to take up in this run, oldest recording first."""
        found = scan(
            self.library, self.now - self.config.age_threshold_days * DAY, self.now - self.config.first_step * DAY, self.is_done
        )
        self.clashes = found.clashes
        self.report.found(found)
        works = [work for session in self.sessions(found.due) for work in self.take_up(session)]
        works.sort(key=lambda work: (work.session.oldest, work.session.key, work.source.path))
        works = works[: self.config.limit]
        self.report.due(works)
        return works

    def sessions(self, due: Mapping[str, list[Source]]) -> Iterator[Session]:
        """Those of this shard that have something due, folder by folder."""
        shard = self.config.shard
        for folder, sources in sorted(due.items()):
            try:
                for session in resolve_sessions(self.library, folder, sources):
                    if not shard or zlib.crc32(os.fsencode(session.key)) % shard[1] == shard[0] - 1:
                        yield session
            except OSError as error:
                self.report.error(f"Folder {printable(folder)} cannot be read, its recordings were left alone: {describe(error)}")

    def is_done(self, source: Source) -> bool:
        """Whether a copy needs no step, told without reading its sidecars: a lower rate that one asks for is for originals."""
        known = self.history.copies.get(source.path) if source.is_copy else None
        return known is not None and is_small(known, due_target(self.config, Policy(), source.age(self.now)), self.config)

    def take_up(self, session: Session) -> Iterator[Work]:
        """What of one session is due now, selected, and not remembered as done, kept or failed."""
        policy, refusal = follow_policies(session)
        for source in session.sources:
            if source.age(self.now) < policy.after_days or not is_selected(source, session, self.config):
                continue
            work = self.propose(source, session, policy)
            if work is None:
                continue
            if not source.is_copy and os.path.splitext(source.path)[0] in self.clashes:
                work.refuse(Reason.NAME_TAKEN, f"another recording would become {printable(source.stem)} too")
            elif refusal:
                work.refuse_for(refusal)
            yield work

    def propose(self, source: Source, session: Session, policy: Policy) -> Optional[Work]:
        """What is to be done with one file, if it is not known to be done or at rest."""
        last = self.history.last(source)
        copy = source if source.is_copy else self.find_copy(source, last, session)
        known = self.history.copies.get(copy.path) if copy else None
        target = due_target(self.config, policy, source.age(self.now), copy and copy.format)
        fingerprint = policy_fingerprint(self.config, target, session)
        if last and last.rests(fingerprint) and not self.config.retry:
            session.resting.add(source.name)
            self.report.remembered += 1
            return None
        if source.is_copy:
            if not (self.is_ours(source, session) and self.is_last(source, session)):
                return None
            if known and is_small(known, target, self.config):
                return None
            return Work(source, session, target, fingerprint, False, source.identity, known.first_size if known else source.size)
        sure = last is not None and last.action == Action.COMPRESSED.value
        days = (self.now - last.time) / DAY if last and sure else 0
        unlink = self.config.delete_originals and days >= self.config.keep_originals_days
        as_made = copy is not None and known is not None and known.size == copy.size
        step = source.age(self.now) >= self.config.first_step and as_made and known and not is_small(known, target, self.config)
        if sure and as_made and not step and not unlink:
            return None  # its original is kept
        replaces = copy.identity if copy and step else None
        return Work(source, session, target, fingerprint, unlink, replaces, source.size, is_doubtful=bool(replaces) and not sure)

    def find_copy(self, source: Source, last: Optional[Remembered], session: Session) -> Optional[Source]:
        """The copy that an earlier run made of an original still here: kept, or the run was killed before it was deleted."""
        names = [last.copy] if last and last.copy else [source.stem + suffix for suffix in COPY_SUFFIXES]
        for path in (os.path.join(source.folder, name) for name in names):
            with contextlib.suppress(OSError):
                status = os.lstat(os.path.join(self.library, path))
                copy = Source(path, identity_of(status))
                if stat.S_ISREG(status.st_mode) and self.is_ours(copy, session):
                    return copy
        return None

    def is_ours(self, copy: Source, session: Session) -> bool:
        """Whether a file in a copy's format is one, by history or sidecar: what someone else put into the library is not."""
        known = copy.path in self.history.copies or copy.path in self.history.moved
        return known or any(copy.name in sidecar.chunks for sidecar in session.sidecars)

    def is_last(self, copy: Source, session: Session) -> bool:
        """Whether no original is kept beside a copy, which would be the better source."""
        kept = any(other.stem == copy.stem and not other.is_copy for other in session.sources)
        return not kept and not kept_size(os.path.join(self.library, copy.path))

    def plan_moves(self, queue: Sequence[Work]) -> Iterator[list[Work]]:
        """The sessions of which every file is old enough for the archive and none is still to be compressed."""
        tier = self.config.archive_tier
        if tier is None:
            return
        cutoff = self.now - tier.after_days * DAY
        told = {work.source.path for work in queue}
        left = math.inf if self.config.limit is None else self.config.limit - len(queue)
        for session in self.sessions(scan(self.library, cutoff, cutoff).due):
            works = self.moves_of(session, tier)
            if left > 0 and any(not work.reason or work.source.path not in told for work in works):
                left -= len(works)
                yield works

    def moves_of(self, session: Session, tier: Tier) -> list[Work]:
        """The files of one session, if all of them may go; copies of which a broken sidecar may speak are refused for it."""
        policy, refusal = follow_policies(session)
        works = []
        for source in session.sources:
            if source.is_copy and not self.is_ours(source, session):
                continue  # someone else's, whatever its name
            known = self.history.copies.get(source.path)
            target = due_target(self.config, policy, source.age(self.now), source.format)
            fingerprint = policy_fingerprint(self.config, target, session, tier.archive)
            last = self.history.last(source, moving=True)
            if policy.keep or (last and last.rests(fingerprint) and not self.config.retry):
                return []
            work = Work(source, session, target, fingerprint, True, moving=True)
            work.first_size = known.first_size if known else source.size
            work.detail = below(tier.archive or "", source.path)
            if refusal and source.is_copy:
                work.refuse_for(refusal)
            works.append(work)
        if refusal:
            return [work for work in works if work.reason]
        names = {name for sidecar in session.sidecars for name in sidecar.chunks} - {source.name for source in session.sources}
        young = any(os.path.lexists(os.path.join(self.library, session.folder, name)) for name in names)
        return works if not young and all(self.may_move(work.source, session, policy) for work in works) else []

    def may_move(self, source: Source, session: Session, policy: Policy) -> bool:
        """Whether a file is selected, in its last form, and not brought back from the archive before."""
        last = self.history.last(source)
        if source.age(self.now) < policy.after_days or not is_selected(source, session, self.config):
            return False
        if self.history.came_back(source) and not self.config.retry:
            return False
        if source.is_copy:
            return self.is_last(source, session)
        return last is not None and last.action != Action.RESTORED.value and last.is_settled

    def must_end(self, stop: Stop) -> bool:
        """Whether nothing new may be begun."""
        minutes = self.config.max_run_minutes
        if stop.signal:
            return True
        if minutes is not None and time.monotonic() - self.started > minutes * 60:
            self.report.note_once("Time is up (max_run_minutes); what is left is for the next run.")
            return True
        if os.path.lexists(pause_path(self.config)):
            self.report.note_once("Paused while at work; what is left waits for 'resume'.")
            return True
        return False

    def rehearse(self, works: list[Work]) -> None:
        """The dry run: everything up to the decision."""
        with stop_signals() as stop, Tools(stop) as tools:
            for work in works:
                try:
                    if work.reason is None:
                        examine(self.library, work, tools, self.config)
                        work.refuse(Reason.DUE)
                except (Refusal, OSError) as error:
                    work.refuse_for(error)
                self.report.recording(work)
                if stop.signal:
                    self.report.stopped(stop.signal)
                    return


class Night:
    """The work of one run: keeps every worker busy with batches, commits what comes back step by step, and notices when the same
    failure comes again and again."""

    def __init__(self, run: Run, works: Sequence[Work], transcoder: Transcoder, committer: Committer, stop: Stop) -> None:
        self.run, self.config, self.report, self.history = run, run.config, run.report, run.history
        self.transcoder, self.committer, self.stop = transcoder, committer, stop
        self.steps = Steps(works)
        self.batches = Batches(works, self.config.workers)
        self.running: dict[concurrent.futures.Future[None], Batch] = {}
        self.streak: list[Work] = []  # failures in a row; the same cause SAME_FAILURES times ends the run

    def work(self) -> None:
        with concurrent.futures.ThreadPoolExecutor(self.config.workers) as pool:
            try:
                while self.start_batches(pool):
                    self.report.progress(self.running.values(), self.transcoder.through)
                    self.commit(self.collect())
            finally:
                self.stop.requested = bool(self.running) or self.stop.requested  # leaving by an exception: the rest is dropped
        if not self.stop.signal:
            self.commit(self.steps.release())
        self.flush_streak()

    def start_batches(self, pool: concurrent.futures.Executor) -> bool:
        """Give every idle worker a batch; whether any is at work then."""
        while self.batches.waiting and len(self.running) < self.config.workers and not self.run.must_end(self.stop):
            batch = self.next_batch()
            if batch is None:
                break
            self.running[pool.submit(self.transcoder.process, batch)] = batch
            self.batches.reserved += batch.space
        return bool(self.running)

    def next_batch(self) -> Optional[Batch]:
        """The next batch that the disk has room for; None to wait for room while others are at work. Raises NoSpaceError."""
        batch = self.batches.take(self.free_space())
        if batch or self.running:
            return batch
        self.commit(self.steps.release())
        self.committer.settle()
        free = self.free_space()
        batch = self.batches.take(free)
        if batch:
            return batch
        work = self.batches.waiting[0]
        if work.reason is None and self.transcoder.guard(work, self.transcoder.examine):
            raise NoSpaceError(
                f"Too little disk space: {megabytes(free)} free where {megabytes(SPACE_MARGIN + space_needed(work))} are needed "
                f"for the next recording's copy ({work.source.path}). Everything not yet done is as it was; "
                "make room and run again."
            )
        return Batch([self.batches.waiting.popleft()], 0)  # nothing will be written for it

    def free_space(self) -> int:
        return shutil.disk_usage(self.config.recordings_dir).free

    def collect(self) -> list[list[Work]]:
        """Wait for a batch to be through; returns the steps that are complete by it."""
        done, _ = concurrent.futures.wait(self.running, timeout=0.5, return_when=concurrent.futures.FIRST_COMPLETED)
        ready = []
        for future in done:
            batch = self.running.pop(future)
            self.batches.reserved -= batch.space
            with contextlib.suppress(Stopped):
                future.result()
                for work in batch.works:
                    self.report.finished(work)
                    ready += self.steps.finish(work)
        return ready

    def commit(self, steps: Sequence[list[Work]]) -> None:
        self.committer.commit(steps)
        works = [work for step in steps for work in step]
        self.history.append([work for work in works if work.reason and work.reason.action is Action.KEPT], counts=True)
        for work in works:
            self.account(work)
        if self.committer.must_settle():
            self.committer.settle()

    def account(self, work: Work) -> None:
        """Report what is final now, and notice when the same failure comes again and again."""
        if work.proven:
            self.flush_streak()
            return
        assert work.reason is not None
        self.report.recording(work)
        if work.reason.action is not Action.FAILED:
            return
        if not work.reason.may_be_common:
            self.history.append([work], counts=True)
            return
        if self.streak and self.streak[-1].reason is not work.reason:
            self.flush_streak()
        self.streak.append(work)
        if work.reason is Reason.NO_SPACE:
            self.flush_streak()
            raise NoSpaceError(f"The disk is full: {work.detail}. The original is kept; make room and run again.")
        if len(self.streak) >= SAME_FAILURES:
            self.find_cause(work)

    def find_cause(self, work: Work) -> None:
        """Go on if ffmpeg works, so that the cause is in the recordings; else the run ends, and it does not count against them."""
        try:
            rehearse_encode(self.transcoder.tools, self.config.target)
            self.flush_streak()
        except Refusal:
            self.history.append(self.streak, counts=False)
            raise ServiceError(
                f"{SAME_FAILURES} recordings in a row failed in the same way, so the run stopped: {printable(work.detail)}. "
                "All originals are kept. 'compression_service.py doctor' may tell the cause."
            ) from None

    def flush_streak(self) -> None:
        self.history.append(self.streak, counts=True)
        self.streak = []


class Steps:
    """Which recordings are put in place together: all of a session, or several steps of a very large one."""

    def __init__(self, works: Sequence[Work]) -> None:
        self.step_of: dict[Work, int] = {}
        self.left: Counter[int] = Counter()
        self.finished: dict[int, list[Work]] = defaultdict(list)
        sizes = Counter(work.session for work in works)
        number = bytes_in_step = 0
        previous: Optional[Session] = None
        for work in works:
            # Each sidecar is written once a step, so a session with many of them gets few.
            limit = max(STEP_FILES, sizes[work.session] // 16, len(work.session.sidecars))
            if work.session is not previous or self.left[number] >= limit or bytes_in_step >= STEP_BYTES:
                number, bytes_in_step = number + 1, 0
            self.step_of[work] = number
            self.left[number] += 1
            bytes_in_step += work.source.size
            previous = work.session

    def finish(self, work: Work) -> list[list[Work]]:
        """Note that a recording is through its proof; returns its step if that was the last of it."""
        number = self.step_of[work]
        self.finished[number].append(work)
        self.left[number] -= 1
        return [] if self.left[number] else [self.finished.pop(number)]

    def release(self) -> list[list[Work]]:
        """What is through of every step begun: when the run ends early, or its space is needed."""
        begun = list(self.finished.values())
        self.finished.clear()
        return begun


class Batch(NamedTuple):
    works: list[Work]
    space: int  # bytes of disk it may need while at work
    piped: bool = False  # one recording, and more cores than recordings


class Batches:
    """Hands out work in batches of about the same length, so that all workers end together."""

    def __init__(self, works: Sequence[Work], workers: int) -> None:
        self.waiting = deque(works)
        self.reserved = 0  # bytes that the batches at work may still need
        seconds = sum(work.source.guessed_seconds for work in works)
        rounds = max(1, math.ceil(max(len(works) / BATCH_FILES, seconds / BATCH_SECONDS) / workers))
        self.few = len(works) < workers
        self.share = 1.01 * seconds / (rounds * workers)  # a hundredth more, or a last small batch would be left over

    def take(self, room: int) -> Optional[Batch]:
        """The next batch that fits into `room` bytes of free space beside those at work, or None."""
        works: list[Work] = []
        seconds, space = 0.0, SPACE_MARGIN
        while self.waiting and len(works) < BATCH_FILES:
            work = self.waiting[0]
            need = space_needed(work)
            too_much = works and seconds + work.source.guessed_seconds > self.share
            if too_much or self.reserved + space + need > room:
                break
            works.append(self.waiting.popleft())
            seconds += work.source.guessed_seconds
            space += need
        return Batch(works, space, self.few and len(works) == 1) if works else None


def space_needed(work: Work) -> int:
    """Bytes of disk that one recording may take in staging: its copy, and two level files of two channels at most."""
    seconds = work.source.guessed_seconds
    copy = max(work.source.size, round(seconds * work.target.bitrate / 8))
    return round(copy + seconds * 2 * 2 * LEVEL_BYTES * LEVEL_RATE)


# --------------------------------------------------------------------------------------------------------- scan


@dataclasses.dataclass
class Scan:
    """What one pass over the library saw. Only what is due is held in memory."""

    cutoff_ns: float = -math.inf
    copies_cutoff_ns: float = -math.inf
    is_done: Callable[[Source], bool] = lambda source: False  # of copies
    due: dict[str, list[Source]] = dataclasses.field(default_factory=dict)  # by folder
    found: int = 0
    young: int = 0
    copies: int = 0
    copies_size: int = 0  # bytes
    clashes: set[str] = dataclasses.field(default_factory=set)  # paths without suffix that two sources share, x.webm and x.WEBM
    problems: list[str] = dataclasses.field(default_factory=list)

    def read_folder(self, library: str, folder: str, folders: list[str]) -> None:
        """Note what one folder holds, and add the folders in it to `folders`. Raises OSError."""
        prefix = folder + "/" if folder else ""
        due: list[Source] = []
        stems: set[str] = set()
        with os.scandir(os.path.join(library, folder)) as entries:
            for entry in entries:
                name = entry.name
                suffix = name[-5:].lower()
                if suffix == SIDECAR_SUFFIX or name[0] == ".":
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(prefix + name)
                elif suffix.endswith(AUDIO_SUFFIXES) and entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    if suffix == SOURCE_SUFFIX:
                        self.found += 1
                        is_due = status.st_mtime_ns <= self.cutoff_ns
                        self.young += not is_due
                        if name[:-5] in stems:
                            self.clashes.add(prefix + name[:-5])
                        stems.add(name[:-5])
                    else:
                        self.copies += 1
                        self.copies_size += status.st_size
                        is_due = status.st_mtime_ns <= self.copies_cutoff_ns and name.endswith(COPY_SUFFIXES)
                    if is_due:
                        source = Source(prefix + name, identity_of(status))
                        if suffix == SOURCE_SUFFIX or not self.is_done(source):
                            due.append(source)
        if due:
            self.due[folder] = due


def scan(
    library: str, cutoff: float, copies_cutoff: float = -math.inf, is_done: Callable[[Source], bool] = lambda source: False
) -> Scan:
    """One pass over the library for sources last modified before `cutoff` and copies before `copies_cutoff` (seconds since the
    epoch), of these not what `is_done`. Opens no file, follows no symlink, enters no hidden folder; a folder that cannot be
    read to its end counts as a problem, never as an empty one."""
    result = Scan(cutoff * 1e9, copies_cutoff * 1e9, is_done)
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            result.read_folder(library, folder, folders)
        except OSError as error:
            result.problems.append(f"Folder {printable(folder or library)} cannot be read: {describe(error)}")
    return result


def identity_of(status: os.stat_result) -> Identity:
    return Identity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def is_inside(path: str, folder: str) -> bool:
    """Whether a path really is a folder or something in it, whatever links lead there."""
    return os.path.join(os.path.realpath(path), "").startswith(os.path.join(os.path.realpath(folder), ""))


def is_there(path: str, identity: Identity) -> bool:
    """Whether a file is still the same, with the same content."""
    try:
        return identity_of(os.lstat(path)) == identity
    except FileNotFoundError:
        return False


def is_selected(source: Source, session: Session, config: Config) -> bool:
    """Whether the selection flags admit it: by path, by recorded date, by language."""
    if config.only and not any(fnmatch.fnmatchcase(source.path, glob) for glob in config.only):
        return False
    if config.language and not any(sidecar.language in config.language for sidecar in session.sidecars):
        return False
    dated = config.since or config.until
    return not dated or (config.since or "") <= recorded_date(source, session) <= (config.until or "9999")


def recorded_date(source: Source, session: Session) -> str:
    """YYYY-MM-DD from the sidecar, else from folder and file name, else from the modification time."""
    for text in [*session.ids, source.path]:
        match = re.search(r"(?<!\d)\d{4}-\d\d-\d\d(?!\d)", text)
        if match:
            return match[0]
    return datetime.fromtimestamp(source.identity.mtime_ns / 1e9).strftime("%Y-%m-%d")


# ----------------------------------------------------------------------------------------------------- sessions


def resolve_sessions(library: str, folder: str, sources: list[Source]) -> list[Session]:
    """Group the due sources of one folder with the sidecars that speak of them. Raises OSError if the folder cannot be read."""
    sidecars = read_sidecars(library, folder)
    group: dict[str, str] = {}  # union-find over chunk names, ids and sidecars

    def root(node: str) -> str:
        while group.setdefault(node, node) != node:
            group[node] = group[group[node]]
            node = group[node]
        return node

    by_stem = defaultdict(list)
    for source in sources:
        by_stem[source.stem].append(source.name)
    nodes = {"\0sidecar " + sidecar.name: sidecar for sidecar in sidecars if not sidecar.flaw}
    for node, sidecar in nodes.items():
        stems = [sidecar.stem, *(os.path.splitext(chunk)[0] for chunk in sidecar.chunks)]
        ids = ["\0id " + sidecar.id] if sidecar.id is not None else []
        for link in (*sidecar.chunks, *(name for stem in stems for name in by_stem.get(stem, ())), *ids):
            group[root(link)] = root(node)
    sessions: dict[str, Session] = {}
    seen = frozenset(sidecar.name for sidecar in sidecars)
    for source in sources:
        sessions.setdefault(root(source.name), Session(folder, [], [], seen)).sources.append(source)
    for node, sidecar in nodes.items():
        if root(node) in sessions:
            sessions[root(node)].sidecars.append(sidecar)
    flawed = [sidecar for sidecar in sidecars if sidecar.flaw]
    for session in sessions.values():
        session.flaw = find_flaw(session, flawed)
    return list(sessions.values())


def find_flaw(session: Session, flawed: Sequence[Sidecar]) -> str:
    """The unreadable JSON file that may speak of this session, if any: one that shares a name with it or mentions it, or any
    one in its folder where no readable sidecar vouches for the session."""
    for sidecar in flawed:
        for source in session.sources:
            related = source.stem.startswith(sidecar.stem) or sidecar.stem.startswith(source.stem)
            if related or os.fsencode(source.name) in sidecar.text or not session.sidecars:
                return f"{printable(sidecar.name)}: {sidecar.flaw}"
    return ""


def read_sidecars(library: str, folder: str, known: Collection[str] = ()) -> list[Sidecar]:
    """Every JSON file in one folder but the `known` names, without the master index. Raises OSError."""
    path = os.path.join(library, folder)
    names = (name for name in sorted(os.listdir(path)) if name[-5:].lower() == SIDECAR_SUFFIX and name[0] != ".")
    wanted = (name for name in names if name not in known and (folder or name != INDEX_NAME))
    return [sidecar for sidecar in (read_sidecar(os.path.join(path, name)) for name in wanted) if sidecar]


def read_sidecar(path: str) -> Optional[Sidecar]:
    """What a JSON file says, or why it cannot be relied on; None where there is no file of that name."""
    name, text = os.path.basename(path), b""
    try:
        document = read_as(parse_json, path)[1]
    except (FileNotFoundError, IsADirectoryError):
        return None
    except (JsonFlaw, OSError) as error:
        with contextlib.suppress(OSError):
            text = read_regular(path)
        return Sidecar(name, flaw=describe(error) if isinstance(error, OSError) else str(error), text=text)
    chunks = [chunk for chunk in chunk_objects(document) if is_plain_name(chunk.get("file"))]
    durations = {chunk["file"]: chunk["duration"] for chunk in chunks if finite(chunk.get("duration")) is not None}
    id_, language = (value if isinstance(value, str) else None for value in (document.get("id"), document.get("language")))
    policy, archived = document.get("compression_policy"), document.get("archived") is True
    return Sidecar(name, id_, [chunk["file"] for chunk in chunks], durations, policy, language, archived)


def chunk_objects(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    chunks = document.get("chunks")
    return [chunk for chunk in chunks if isinstance(chunk, dict)] if isinstance(chunks, list) else []


def is_plain_name(value: Any) -> bool:
    """Whether a name found in a document stays in its own folder; everything else is ignored."""
    return isinstance(value, str) and value not in ("", ".", "..") and "/" not in value and "\0" not in value


class Policy(NamedTuple):
    """What the sidecars of a session ask for: an own bit rate (bit/s) then holds at any age."""

    keep: bool = False
    bitrate: Optional[int] = None
    after_days: float = 0
    format: Optional[str] = None


POLICY_KINDS = {"keep": BOOLEAN, "bitrate": BITRATE, "after_days": DAYS, "format": FORMAT}


def follow_policies(session: Session) -> tuple[Policy, Optional[Refusal]]:
    """The most careful wish of each kind in a session's sidecars, and why its recordings are left alone if they are."""
    if session.flaw:
        return Policy(), Refusal(Reason.SIDECAR, session.flaw)
    wishes: dict[str, list[Any]] = defaultdict(list)
    for policy in session.policies:
        if not isinstance(policy, dict):
            return Policy(), Refusal(Reason.POLICY_INVALID, 'expected an object such as {"keep": true}')
        for key, value in policy.items():
            if key not in POLICY_KINDS:
                return Policy(), Refusal(Reason.POLICY_INVALID, f'unknown key "{key}"')
            try:
                wishes[key].append(POLICY_KINDS[key].check(value))
            except ValueError as error:
                return Policy(), Refusal(Reason.POLICY_INVALID, f'"{key}": expected {error}')
    combined = Policy(**{key: max(values) for key, values in wishes.items()})
    return combined, Refusal(Reason.POLICY_KEEP) if combined.keep else None


def due_target(config: Config, policy: Policy, age: float, copy_format: Optional[str] = None) -> Target:
    """What a recording of `age` days is to become: in one step what the last tier it is old enough for asks. A copy that is there
    already keeps its format, so that it can be replaced in place."""
    rates = [config.target_bitrate, *(tier.bitrate for tier in config.tiers if tier.bitrate and age >= tier.after_days)]
    return Target(copy_format or policy.format or config.target_format, policy.bitrate or min(rates))


def is_small(known: CopyRecord, target: Target, config: Config) -> bool:
    """Whether a copy is at a target's bit rate already, or so near that a step would gain too little."""
    return 0 < known.asked <= target.bitrate or known.bitrate * (1 - config.min_saving_percent / 100) <= target.bitrate


def policy_fingerprint(config: Config, target: Target, session: Session, archive: Optional[str] = None) -> str:
    """Changes whenever a decision about this session may come out differently."""
    data = [target.format, target.bitrate, config.min_saving_percent, config.verify_before_delete, session.policies, session.flaw]
    data += [archive] if archive else []
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]


# -------------------------------------------------------------------------------------------------------- probe

# Samples at 48 kHz in a frame of an Opus packet, by its first five bits: SILK, hybrid, CELT (RFC 6716, section 3.1, table 2).
OPUS_FRAMES = (480, 960, 1920, 2880) * 3 + (480, 960) * 2 + (120, 240, 480, 960) * 4


def opus_packet_samples(start: bytes) -> int:
    """Samples at 48 kHz in the Opus packet that begins with these bytes; 0 if there is no such packet."""
    if not start:
        return 0
    count = (1, 2, 2, start[1] & 63 if len(start) > 1 else 0)[start[0] & 3]
    samples = OPUS_FRAMES[start[0] >> 3] * count
    return samples if samples <= 5760 else 0  # 120 ms (RFC 6716, section 3.2.5, R5)


class OpusHead(NamedTuple):
    """What decoders follow, whatever the container around it says (RFC 7845, section 5.1)."""

    channels: int
    pre_skip: int  # samples at 48 kHz that a decoder drops at the start

    @classmethod
    def parse(cls, head: bytes) -> OpusHead:
        """Raises Refusal where it is none, or has more channels than two."""
        if not head.startswith(b"OpusHead") or len(head) < 19:
            raise Refusal(Reason.DAMAGED, "its Opus header is not one (RFC 7845, section 5.1)")
        check_channels(head[9])
        if head[18] > 1:
            raise Refusal(Reason.CODEC, f"Opus whose channels have no layout (mapping family {head[18]})")
        return cls(head[9], int.from_bytes(head[10:12], "little"))


def check_channels(count: int) -> None:
    if count not in (1, 2):
        raise Refusal(Reason.CHANNELS, str(count))


class Window:
    """Reads anywhere in a file through one buffer, so that memory stays flat whatever the file's length."""

    def __init__(self, descriptor: int) -> None:
        self.file = io.BufferedReader(io.FileIO(descriptor, closefd=False), PROBE_WINDOW)
        self.size = os.fstat(descriptor).st_size

    def at(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes at `offset`; fewer only at the end of the file."""
        self.file.seek(offset)
        return self.file.read(length)


class Timeline:
    """Takes packets as a walker meets them, and tells how many samples a plain decode gives and where silence belongs.

    A gap is a step of more than GAP_SECONDS from the end of one packet, by its stamp, to the next stamp; it is as long as that
    stamp lies behind all that stands before it. Jitter, overlaps and a drifting clock are none: players play them through.
    """

    def __init__(self, rate: int, pre_skip: int = 0) -> None:
        self.rate, self.pre_skip = rate, pre_skip
        self.packets: Counter[tuple[int, int]] = Counter()  # by (bytes, samples)
        self.samples = 0  # of all packets
        self.last = 0  # samples of the last packet
        self.trimmed = 0  # samples at the end that a decoder drops
        self.silence = 0  # samples, of all gaps
        self.gaps: list[tuple[int, int]] = []
        self.origin: Optional[float] = None  # seconds, where the copy begins
        self.end = 0.0  # seconds, where the last packet ends by its stamp
        self.overlap = 0.0  # seconds, the most by which a stamp lies before the end of the packet before it
        # Gaps are whole milliseconds that are whole samples, here and at the rate of the levels.
        self.tick = rate // math.gcd(rate, 1000)

    def add(self, seconds: float, samples: int, size: int) -> None:
        """One packet: its stamp, its samples, its bytes. Raises Refusal."""
        if self.origin is None:
            late = seconds > LONGEST_LEAD  # a clock that does not begin with the recording
            self.origin = self.end = seconds if late else min(seconds, 0.0)
        step = seconds - self.end
        if step > GAP_SECONDS:
            self.add_gap(seconds)
        self.overlap = max(self.overlap, -step)
        if self.overlap > LARGEST_STEP_BACK:
            raise Refusal(Reason.DAMAGED, f"its timestamps step back by {-step:.1f} s at {self.end:.1f} s")
        self.packets[size, samples] += 1
        self.last = samples
        self.samples += samples
        self.end = seconds + samples / self.rate

    def trim(self, samples: int) -> None:
        """What a decoder drops of the last packet; where it is told to drop more than that, ffmpeg drops nothing."""
        self.trimmed += samples if samples <= self.last else 0

    def add_gap(self, seconds: float) -> None:
        written = (self.samples + self.silence) / self.rate
        length = round((seconds - (self.origin or 0.0) - written) * self.rate / self.tick) * self.tick
        if length <= 0:  # what came before ran ahead of its stamps
            return
        if len(self.gaps) == MOST_GAPS:
            raise Refusal(Reason.GAPS, f"more than {MOST_GAPS} gaps by {seconds:.1f} s")
        self.gaps.append((max(0, self.samples - self.pre_skip), length))
        self.silence += length

    def probe(self, demuxer: str, codec: str, channels: int, doubt: int = 0) -> Probe:
        """Raises Refusal where there was not one packet."""
        if self.origin is None:
            raise Refusal(Reason.NO_AUDIO, "it holds a header but not one packet")
        samples = self.samples - self.pre_skip - self.trimmed
        if samples <= 0:
            raise Refusal(Reason.NO_AUDIO, "a decoder is told to skip all that it holds")
        gaps = tuple(self.gaps)
        return Probe(demuxer, codec, channels, self.rate, self.packets, samples, gaps, self.end, self.overlap, doubt)


# How files begin that are not compressed: what they are called, for people.
OTHER_CONTAINERS = {
    "FLAC": rb"fLaC",
    "ADTS AAC": rb"\xff[\xf0\xf1\xf8\xf9]",  # layer 0, which no MP3 has
    "MP3": rb"ID3|\xff(?![\xe0\xe1\xe8\xe9])[\xe0-\xff]",
    "AVI": rb"RIFF.{4}AVI ",
    "WAV of more than 4 GB (RF64)": rb"RF64|BW64",
    "WAV of more than 4 GB (Wave64)": rb"riff\x2e\x91",
    "AIFF": rb"FORM.{4}AIF",
    "CAF": rb"caff",
    "AMR": rb"#!AMR",
    "Windows Media": rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11",
    "Flash video": rb"FLV",
    "Sun audio": rb"\.snd",
    "MPEG transport stream": rb"\x47.{187}\x47",
    "a playlist": rb"#EXTM3U|ffconcat|\[playlist\]",
    "a web page": rb"\s*<(!doctype|html|\?xml|head|body)",
}


def probe(descriptor: int, path: str, tools: Tools) -> Probe:
    """What is in the file: container, codec, channels, every packet, every byte accounted for. Raises Refusal, OSError.

    WebM, Ogg and WAV are walked here: it is exact, the same under every ffmpeg, and cheaper than starting a process. Of MP4 the
    boxes are walked, and ffmpeg lists the packets. The content decides, never the name.
    """
    window = Window(descriptor)
    head = window.at(0, PROBE_WINDOW)
    if not head:
        raise Refusal(Reason.EMPTY)
    if head.startswith(b"\x1aE\xdf\xa3"):
        return MatroskaWalk(window).probe()
    if head.startswith(b"OggS"):
        return walk_ogg(window)
    if head[4:8] == b"ftyp":
        return probe_mp4(window, path, tools)
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        return walk_wav(window)
    form = re.match(rb"-+[^\r\n]{1,200}\r?\nContent-Disposition:[^\0]{1,2000}?\r?\n\r?\n", head, re.IGNORECASE)
    if form:
        raise Refusal(Reason.FORM, str(form.end()))
    # Blobs of start(timeslice) after the first begin anywhere in a cluster; blocks of track 1 give them away.
    if len(re.findall(rb"\xa3(?:[\x80-\xff]|[\x40-\x7f].)\x81..\x80", head, re.DOTALL)) >= 2:
        raise Refusal(Reason.HEADERLESS)
    for name, signature in OTHER_CONTAINERS.items():
        if re.match(signature, head, re.DOTALL | re.IGNORECASE):
            raise Refusal(Reason.CONTAINER, name)
    raise Refusal(Reason.UNREADABLE, "it begins like no audio file that browsers, recorders or phones write")


def probe_file(path: str, tools: Tools) -> Probe:
    """The same of a file by its path. Raises Refusal, OSError."""
    with open(open_regular(path), "rb") as file:
        return probe(file.fileno(), path, tools)


class MatroskaWalk:
    """Walks a WebM file element by element (RFC 8794, RFC 9559), so that every byte of it belongs to a known element."""

    EBML, SEGMENT, CLUSTER, TRACKS, INFO, GROUP = 0x1A45DFA3, 0x18538067, 0x1F43B675, 0x1654AE6B, 0x1549A966, 0xA0
    SIMPLE_BLOCK, BLOCK, TIMESTAMP, VOID, CRC = 0xA3, 0xA1, 0xE7, 0xEC, 0xBF
    ATTACHMENTS, CHAPTERS, DISCARD_PADDING, ENCODINGS = 0x1941A469, 0x1043A770, 0x75A2, 0x6D80
    TOP_LEVEL = {CLUSTER, TRACKS, INFO, ATTACHMENTS, CHAPTERS, 0x114D9B74, 0x1C53BB6B, 0x1254C367}
    # Position, PrevSize, BlockDuration, ReferenceBlock, BlockAdditions, CodecState and the like
    INNER = {0xA7, 0xAB, 0x9B, 0xFB, 0x75A1, 0xA4, 0xFA, 0x5854, VOID, CRC}
    CHILDREN = {
        0: {EBML, SEGMENT, VOID},
        SEGMENT: TOP_LEVEL | {VOID, CRC},
        # fix-webm-duration gives the first cluster a size that spans all those behind it.
        CLUSTER: INNER | {SIMPLE_BLOCK, GROUP, TIMESTAMP, CLUSTER},
        GROUP: INNER | {BLOCK, DISCARD_PADDING},
    }
    PCM = {b"A_PCM/INT/LIT": {8: "pcm_u8", 16: "pcm_s16le", 24: "pcm_s24le", 32: "pcm_s32le"},
           b"A_PCM/FLOAT/IEEE": {32: "pcm_f32le", 64: "pcm_f64le"}}  # fmt: skip

    def __init__(self, window: Window) -> None:
        self.window = window
        self.track = -1  # number of the only track
        self.codec, self.channels, self.frame = "", 0, 0  # bytes in a sample of all channels, of PCM
        self.padding_rate = 0.0  # Hz at which ffmpeg reckons what a decoder drops at the end
        self.timeline = Timeline(OPUS_RATE)
        self.scale = 1e-3  # seconds a tick
        self.header_seconds = 0.0
        self.cluster = 0  # ticks
        self.has_chapters = False
        self.doubt = 0  # samples
        self.ends = [(0, -1)]  # (identity, offset of its end) of the elements around the position; -1: unknown

    def probe(self) -> Probe:
        """Raises Refusal."""
        offset = 0
        try:
            while offset < self.window.size:
                offset = self.step(offset)
        except Refusal as refusal:
            if self.track >= 0 or refusal.reason not in (Reason.DAMAGED, Reason.TRUNCATED):
                raise
            raise Refusal(Reason.NO_AUDIO, f"stopped before its first packet; {refusal.detail}") from None
        for identity, end in self.ends:
            self.check_end(identity, end)
        # Chrome's header is 60 ms short or 1 ms in all; it is never behind what was really recorded.
        if self.header_seconds > self.timeline.end + 1.0:
            lacks = f"its header says {self.header_seconds:.1f} s, but it ends at {self.timeline.end:.1f} s"
            raise Refusal(Reason.TRUNCATED, lacks)
        found = self.timeline.probe("matroska", self.codec, self.channels, self.doubt)
        return dataclasses.replace(found, has_chapters=self.has_chapters)

    def step(self, offset: int) -> int:
        """Pass one element header (and, unless it holds others, its content). Returns the offset behind it."""
        head = self.window.at(offset, 24)
        identity, size, length = self.header(head, 0, offset)
        body = offset + length
        end = body + size if size >= 0 else -1
        self.enter(identity, offset, end)
        if identity in (self.SEGMENT, self.CLUSTER, self.GROUP):
            self.ends.append((identity, end))
            return body
        self.check_end(identity, end)
        if identity in (self.SIMPLE_BLOCK, self.BLOCK):
            self.block(head[length:], body, size)
        elif identity == self.TIMESTAMP:
            self.cluster = int.from_bytes(self.window.at(body, min(size, 8)), "big")
        elif identity == self.DISCARD_PADDING:  # nanoseconds that the decoder drops of this block
            padding = int.from_bytes(self.window.at(body, min(size, 8)), "big", signed=True)
            self.timeline.trim(round(abs(padding) * self.padding_rate / 1e9))
        elif identity == self.TRACKS:
            self.read_tracks(self.window.at(body, min(size, PROBE_WINDOW)))
        elif identity == self.INFO:
            self.read_info(dict(self.children(self.window.at(body, min(size, PROBE_WINDOW)))))
        elif identity == self.ATTACHMENTS:
            raise Refusal(Reason.COVER)
        self.has_chapters = self.has_chapters or identity == self.CHAPTERS
        return end

    def header(self, data: bytes, start: int, offset: int) -> tuple[int, int, int]:
        """Identity and size (-1: unknown) of the element that begins at `start`, and where its content does."""
        identity, middle = self.number(data, start, 4, offset)
        size, begin = self.number(data, middle, 8, offset)
        mask = (1 << 7 * (begin - middle)) - 1
        size &= mask
        return identity, -1 if size == mask else size, begin

    def number(self, data: bytes, start: int, longest: int, offset: int) -> tuple[int, int]:
        """An EBML variable-length number with its length marker (RFC 8794, section 4), and where it ends."""
        if start < len(data):
            end = start + 9 - data[start].bit_length()
            if end > start + longest:
                zeros = "it holds zeros" if not any(data[start:]) else "it holds what is no element"
                raise self.refusal(Reason.DAMAGED, f"{zeros} from byte {offset} on")
            if end <= len(data):
                return int.from_bytes(data[start:end], "big"), end
        raise Refusal(Reason.TRUNCATED, f"it ends inside an element at byte {offset}")

    def enter(self, identity: int, offset: int, end: int) -> None:
        """Check that an element may stand here; close what it closes."""
        if offset > 0 and (identity == self.EBML or (identity == self.SEGMENT and self.track >= 0)):
            raise Refusal(Reason.APPENDED, f"a second one begins at byte {offset}, after {self.timeline.end:.1f} s")
        while any(known == offset for _, known in self.ends[1:]) or (
            self.ends[-1] == (self.CLUSTER, -1) and identity in self.TOP_LEVEL
        ):
            self.ends.pop()
        limits = [known for _, known in self.ends if known >= 0]
        parent = self.ends[-1][0]
        may_be_unknown = identity in (self.SEGMENT, self.CLUSTER)
        if identity not in self.CHILDREN[parent] or (end < 0 and not may_be_unknown) or any(end > limit for limit in limits):
            raise self.refusal(Reason.DAMAGED, f"unexpected element {identity:X} at byte {offset}")

    def check_end(self, identity: int, end: int) -> None:
        if end > self.window.size:
            what = "packet" if identity in (self.SIMPLE_BLOCK, self.BLOCK) else f"element {identity:X}"
            raise self.refusal(Reason.TRUNCATED, f"it ends {end - self.window.size} bytes short of the end of a {what}")

    def refusal(self, reason: Reason, found: str) -> Refusal:
        return Refusal(reason, f"{found}, after {self.timeline.end:.1f} s of audio")

    def block(self, head: bytes, body: int, size: int) -> None:
        """The packets of one block (RFC 9559, section 10): track number, 16-bit time, flags, then one frame or several laced."""
        if size < 5 or head[0] != 0x80 | self.track:
            raise Refusal(Reason.DAMAGED, f"a block at byte {body} does not belong to its only track")
        seconds = (self.cluster + int.from_bytes(head[1:3], "big", signed=True)) * self.scale
        for start, length in self.frames(body + 4, size - 4, head[3] & 0x06):
            samples = length // self.frame if self.frame else opus_packet_samples(self.window.at(start, min(length, 2)))
            if not samples or (self.frame and length % self.frame):
                raise self.refusal(Reason.DAMAGED, f"the block at byte {body} holds no {self.codec} packet")
            self.timeline.add(seconds, samples, length)
            seconds = self.timeline.end

    def frames(self, body: int, size: int, lacing: int) -> Iterator[tuple[int, int]]:
        """Offset and bytes of each packet in a block; several where it is laced (RFC 9559, section 10.3)."""
        if not lacing:
            yield body, size
            return
        data = self.window.at(body, min(size, PROBE_WINDOW))
        count, at = data[0], 1  # one less than there are
        sizes: list[int] = [(size - 1) // (count + 1)] * count if lacing == 0x04 else []
        while len(sizes) < count:
            if lacing == 0x02:  # Xiph: bytes that are added up to one below 255
                end = re.compile(rb"\xff*[^\xff]", re.DOTALL).match(data, at)
                sizes.append(sum(end[0]) if end else size)
                at = end.end() if end else size
            else:  # EBML: the first in full, each further one by how it differs
                number, end_at = self.number(data, at, 8, body)
                bits = 7 * (end_at - at)
                at = end_at
                sizes.append(number - (1 << bits) if not sizes else sizes[-1] + number - (1 << bits) - (1 << bits - 1) + 1)
        sizes.append(size - at - sum(sizes))
        if min(sizes) <= 0:
            raise self.refusal(Reason.DAMAGED, f"the laced block at byte {body} does not add up")
        for length in sizes:
            yield body + at, length
            at += length

    def children(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        offset = 0
        while offset < len(data):
            identity, size, begin = self.header(data, offset, offset)
            offset = begin + size if size >= 0 else len(data)
            yield identity, data[begin:offset]

    def read_info(self, info: Mapping[int, bytes]) -> None:
        if 0x2AD7B1 in info:
            self.scale = int.from_bytes(info[0x2AD7B1], "big") / 1e9 or 1e-3
        self.header_seconds = ebml_float(info.get(0x4489, b"")) * self.scale

    def read_tracks(self, data: bytes) -> None:
        if self.track >= 0:
            raise self.refusal(Reason.DAMAGED, "it has a second list of tracks")
        tracks = [dict(self.children(entry)) for identity, entry in self.children(data) if identity == 0xAE]
        kinds = [int.from_bytes(track.get(0x83, b""), "big") for track in tracks]
        if 1 in kinds:
            raise Refusal(Reason.VIDEO)
        if len(kinds) != 1:
            raise Refusal(Reason.SEVERAL_STREAMS, f"{len(kinds)} tracks")
        if kinds != [2]:
            raise Refusal(Reason.NO_AUDIO, "its only track is not audio")
        self.track = int.from_bytes(tracks[0].get(0xD7, b"\x01"), "big")
        self.read_codec(tracks[0], dict(self.children(tracks[0].get(0xE1, b""))))

    def read_codec(self, track: Mapping[int, bytes], audio: Mapping[int, bytes]) -> None:
        name = track.get(0x86, b"").rstrip(b"\0")
        self.padding_rate = ebml_float(audio.get(0xB5, b"")) or 8000
        if self.ENCODINGS in track:
            raise Refusal(Reason.CODEC, "packed once more by its container (ContentEncodings)")
        if name == b"A_OPUS":
            self.codec, (self.channels, pre_skip) = "opus", OpusHead.parse(track.get(0x63A2, b""))
            delay = round(int.from_bytes(track.get(0x56AA, b""), "big") * OPUS_RATE / 1e9)  # CodecDelay, in nanoseconds
            self.doubt = abs(delay - pre_skip) if delay else 0  # ffmpeg 9 follows the one, ffmpeg 5 the other
            self.timeline = Timeline(OPUS_RATE, pre_skip)
            return
        bits = int.from_bytes(audio.get(0x6264, b""), "big")
        self.codec = self.PCM.get(name, {}).get(bits, "")
        if not self.codec:
            known = name.decode("ascii", "replace").removeprefix("A_").replace("_", " ")
            raise Refusal(Reason.CODEC, f"{known}, {bits} bits" if name in self.PCM else known or "unnamed")
        self.channels = int.from_bytes(audio.get(0x9F, b"\x01"), "big")
        check_channels(self.channels)
        self.frame = self.channels * bits // 8
        self.timeline = Timeline(check_rate(self.padding_rate))


def ebml_float(data: bytes) -> float:
    """A finite number of 4 or 8 bytes, else 0."""
    value = struct.unpack(">f" if len(data) == 4 else ">d", data)[0] if len(data) in (4, 8) else 0.0
    return value if math.isfinite(value) else 0.0


def check_rate(rate: float) -> int:
    if not 1_000 <= rate <= 384_000 or rate != int(rate):
        raise Refusal(Reason.CODEC, f"sampled at {rate:g} Hz")
    return int(rate)


class OggPage(NamedTuple):
    flags: int
    granule: int  # samples at 48 kHz; -1: no packet ends on the page
    serial: int
    body: int  # offset
    packets: list[tuple[bytes, int, int]]  # that end on it: first bytes, size, offset behind it


FIRST_PAGE, LAST_PAGE = 2, 4  # flags of a page (RFC 3533, section 6)
OGG_TAGS = 1 << 16  # bytes from the start, in which the names of all tags stand: only a picture is larger
REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
OGG_CODECS = {b"OpusHead": "opus", b"\x01vorbis": "Vorbis", b"\x7fFLAC": "FLAC", b"Speex   ": "Speex", b"\x80theora": "video",
              b"fishead": "several streams"}  # fmt: skip


def ogg_checksum(page: bytes) -> int:
    """The CRC of a page (RFC 3533, section 6) whose own field is zero. It is zlib's with every bit the other way round."""
    mirrored = zlib.crc32(page.translate(REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(mirrored.to_bytes(4, "little").translate(REVERSED_BITS), "big")


def ogg_pages(window: Window) -> Iterator[OggPage]:
    """Every page of an Ogg file, with the packets put together again. Raises Refusal."""
    offset, start, size, following = 0, b"", 0, 0
    while offset < window.size:
        head = window.at(offset, 27)
        if not b"OggS".startswith(head[:4]):
            raise Refusal(Reason.DAMAGED, f"no Ogg page where one should begin, at byte {offset}")
        lengths = window.at(offset + 27, head[26]) if len(head) == 27 else b""
        content = window.at(offset + 27 + len(lengths), sum(lengths))
        if len(head) < 27 or len(lengths) < head[26] or len(content) < sum(lengths):
            raise Refusal(Reason.TRUNCATED, f"it ends inside a page that begins at byte {offset}")
        flags, granule, serial, sequence, checksum = struct.unpack_from("<BqIII", head, 5)
        if not flags & FIRST_PAGE and sequence != following:
            raise Refusal(Reason.DAMAGED, f"pages are missing before byte {offset}")
        following = (sequence + 1) % (1 << 32)
        if ogg_checksum(head[:22] + bytes(4) + head[26:] + lengths + content) != checksum:
            raise Refusal(Reason.DAMAGED, f"the page at byte {offset} does not have the content that its checksum says")
        body = offset = offset + 27 + len(lengths)
        packets = []
        for length in lengths:
            if not size:
                start = content[offset - body :][:19]
            size += length
            offset += length
            if length < 255:
                packets.append((start, size, offset))
                size = 0
        yield OggPage(flags, granule, serial, body, packets)


def walk_ogg(window: Window) -> Probe:
    """Walk an Ogg Opus file page by page (RFC 3533, RFC 7845). Raises Refusal.

    Proves that the file is one whole stream: one first page, a last page flagged as such, every byte in a page, every page as its
    checksum says, and every packet an Opus packet.
    """
    timeline, head, serial, flags, packets = Timeline(OPUS_RATE), OpusHead(0, 0), -1, 0, 0
    position: Optional[int] = None  # samples, where the stream has come to by its granule positions
    is_empty = False  # the last packet
    for page in ogg_pages(window):
        if page.flags & FIRST_PAGE and serial >= 0:
            reason = Reason.APPENDED if packets > 1 else Reason.SEVERAL_STREAMS
            raise Refusal(reason, f"a second stream begins at byte {page.body}, after {timeline.end:.1f} s")
        serial = page.serial if serial < 0 else serial
        if page.serial != serial or flags & LAST_PAGE:
            raise Refusal(Reason.DAMAGED, f"the page at byte {page.body} does not belong to its only stream")
        flags = page.flags
        if page.packets and not packets:
            head = read_ogg_head(page.packets[0][0], window)
            timeline = Timeline(OPUS_RATE, head.pre_skip)
        position = add_ogg_packets(timeline, page, page.packets[max(0, 2 - packets) :], position)  # the first two are headers
        packets += len(page.packets)
        is_empty = bool(page.packets) and not page.packets[-1][1]
    if not flags & LAST_PAGE and packets > 2:
        raise Refusal(Reason.TRUNCATED, f"its last page does not end the stream, after {timeline.end:.1f} s")
    found = timeline.probe("ogg", "opus", head.channels)
    return dataclasses.replace(found, has_chapters=b"CHAPTER0" in window.at(0, OGG_TAGS).upper(), ends_oddly=is_empty)


def read_ogg_head(start: bytes, window: Window) -> OpusHead:
    name = next((name for begin, name in OGG_CODECS.items() if start.startswith(begin)), "an unknown codec")
    if name != "opus":
        raise Refusal(Reason.VIDEO if name == "video" else Reason.CODEC, "" if name == "video" else name)
    if b"METADATA_BLOCK_PICTURE=" in window.at(0, OGG_TAGS).upper():
        raise Refusal(Reason.COVER)
    return OpusHead.parse(start)


def add_ogg_packets(
    timeline: Timeline, page: OggPage, packets: list[tuple[bytes, int, int]], position: Optional[int]
) -> Optional[int]:
    """Count a page's packets, timed by its granule position. Takes and returns where the stream has come to, in samples."""
    is_last = bool(page.flags & LAST_PAGE)
    if is_last and packets and not packets[-1][1]:  # some writers end a stream with an empty packet
        packets = packets[:-1]
    samples = [opus_packet_samples(start[:size]) for start, size, _ in packets]
    if 0 in samples:
        end = packets[samples.index(0)][2]
        raise Refusal(Reason.DAMAGED, f"a packet before byte {end} is no Opus packet (RFC 6716, section 3.4)")
    if page.granule < 0 and packets:
        raise Refusal(Reason.DAMAGED, f"the page at byte {page.body} does not say when its packets end")
    if page.granule < 0 or not (packets or is_last):
        return position
    # A page's packets end at its granule position; only on the last page it may be less, which trims the end.
    begin = page.granule - sum(samples)
    if is_last:
        timeline.trimmed = max(0, (position or 0) - begin)
        if timeline.trimmed > sum(samples):
            raise Refusal(Reason.DAMAGED, f"its last page ends before the page before it, after {timeline.end:.1f} s")
        begin += timeline.trimmed
    for (_, size, _), length in zip(packets, samples):
        timeline.add(begin / OPUS_RATE, length, size)
        begin += length
    return begin


WAV_CODECS = {(1, 8): "pcm_u8", (1, 16): "pcm_s16le", (1, 24): "pcm_s24le", (1, 32): "pcm_s32le", (3, 32): "pcm_f32le",
              (3, 64): "pcm_f64le"}  # fmt: skip
OTHER_WAV_CODECS = {2: "ADPCM", 6: "A-law", 7: "mu-law", 17: "ADPCM", 85: "MP3", 255: "AAC"}
TO_THE_END = (0, 0xFFFFFFFF)  # a size that a streaming writer never came back to fill in


def walk_wav(window: Window) -> Probe:
    """Walk a WAV file chunk by chunk (RIFF, 1991): its length is that of its samples. Raises Refusal."""
    riff = int.from_bytes(window.at(4, 4), "little")
    sizes: dict[bytes, int] = {}
    fmt, offset, is_open = b"", 12, riff in TO_THE_END
    while offset < window.size:
        head = window.at(offset, 8)
        name, size, body = head[:4], int.from_bytes(head[4:], "little"), offset + 8
        if name == b"RIFF":
            raise Refusal(Reason.APPENDED, f"a second one begins at byte {offset}")
        if len(head) < 8 or not re.fullmatch(rb"[ -~]{4}", name) or name in sizes.keys() & {b"fmt ", b"data"}:
            raise Refusal(Reason.DAMAGED, f"the {window.size - offset} bytes from byte {offset} on are no part of it")
        if name == b"data" and size in TO_THE_END:
            size, is_open = window.size - body, True
            second = find_in(window, body, re.compile(rb"RIFF.{4}WAVEfmt ", re.DOTALL))
            if second is not None:
                raise Refusal(Reason.APPENDED, f"a second one begins at byte {second}")
        if body + size > window.size:
            raise Refusal(Reason.TRUNCATED, f"it ends {body + size - window.size} bytes short of the end of its {name.decode()!r}")
        if name == b"fmt ":
            fmt = window.at(body, min(size, 40))
        elif name.lower() == b"id3 " and b"APIC" in window.at(body, min(size, PROBE_WINDOW)):
            raise Refusal(Reason.COVER)
        sizes[name] = size
        offset = body + size + size % 2
    if not is_open and abs(riff + 8 - window.size) > 1:  # a last padding byte may be counted or not
        raise Refusal(Reason.DAMAGED, f"its header says {riff + 8} bytes, it has {window.size}")
    return dataclasses.replace(probe_pcm(fmt, sizes.get(b"data", 0)), has_chapters=b"cue " in sizes, ends_oddly=is_open)


def find_in(window: Window, offset: int, pattern: re.Pattern[bytes]) -> Optional[int]:
    """Where a short pattern first stands in a file from `offset` on."""
    for start in range(offset, window.size, PROBE_WINDOW):
        match = pattern.search(window.at(start, PROBE_WINDOW + 64))
        if match:
            return start + match.start()
    return None


def probe_pcm(fmt: bytes, size: int) -> Probe:
    """What `size` bytes of samples in a WAV file's format are. Raises Refusal."""
    if len(fmt) < 16:
        raise Refusal(Reason.DAMAGED, "its format is not told before its samples")
    tag, channels, rate, _, frame, bits = struct.unpack("<HHIIHH", fmt[:16])
    if tag == 0xFFFE and len(fmt) >= 26:  # extensible: the real tag begins a longer field
        tag = int.from_bytes(fmt[24:26], "little")
    codec = WAV_CODECS.get((tag, bits), "")
    if not codec or channels * bits // 8 != frame:
        raise Refusal(Reason.CODEC, OTHER_WAV_CODECS.get(tag, f"WAV format {tag}, {bits} bits"))
    check_channels(channels)
    if size % frame:
        raise Refusal(Reason.TRUNCATED, f"it ends inside a sample, after {size // frame / check_rate(rate):.1f} s of audio")
    timeline = Timeline(check_rate(rate))
    if size:
        timeline.add(0.0, size // frame, size)
    return timeline.probe("wav", codec, channels)


MP4_TOP = {b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide", b"mfra", b"sidx", b"uuid", b"meta", b"pdin",
           b"prft", b"emsg"}  # fmt: skip
MP4_CODECS = {b"Opus": "opus", b"mp4a": "aac"}
# Samples that a packet may have (RFC 6716, table 2; ISO/IEC 14496-3, 4.5.1.1 and its low-delay and SBR variants).
MP4_FRAMES = {"opus": (120, 240, 480, 960, 1920, 2880, 3840, 4800, 5760), "aac": (1024, 2048, 960, 1920, 512, 480)}


def mp4_boxes(window: Window) -> Iterator[tuple[bytes, int, int]]:
    """Name, content offset and content bytes of every box on the top level (ISO/IEC 14496-12, 4.2). Raises Refusal."""
    offset = 0
    while offset < window.size:
        head = window.at(offset, 16)
        size, name, header = int.from_bytes(head[:4], "big"), head[4:8], 8
        if name not in MP4_TOP:
            raise Refusal(Reason.DAMAGED, f"the {window.size - offset} bytes from byte {offset} on are no part of it")
        if name == b"ftyp" and offset:
            raise Refusal(Reason.APPENDED, f"a second one begins at byte {offset}")
        if size == 1:
            size, header = int.from_bytes(head[8:], "big"), 16
        elif size == 0:  # the last one, to the end
            size = window.size - offset
        if size < header:
            raise Refusal(Reason.DAMAGED, f"the box at byte {offset} has an impossible size")
        if offset + size > window.size:
            raise Refusal(Reason.TRUNCATED, f"it ends {offset + size - window.size} bytes short of the end of a box")
        yield name, offset + header, size - header
        offset += size


def probe_mp4(window: Window, path: str, tools: Tools) -> Probe:
    """MP4 and M4A: the boxes are walked here, the packets listed by ffmpeg; both must come to the same bytes. Raises Refusal."""
    media, header = 0, b""
    for name, offset, size in mp4_boxes(window):
        media += size if name == b"mdat" else 0
        if name == b"moov" and size > LARGEST_INDEX:
            raise Refusal(Reason.DAMAGED, f"its index is said to have {size} bytes")
        header = window.at(offset, size) if name == b"moov" else header
    if not header:
        raise Refusal(Reason.TRUNCATED, "its index (moov) was never written")
    entry = re.search(rb"stsd.{12}(.{4})", header, re.DOTALL)
    if re.search(rb"hdlr.{8}vide", header, re.DOTALL):
        raise Refusal(Reason.VIDEO)
    if b"covr" in header:
        raise Refusal(Reason.COVER)
    if entry and entry[1] not in MP4_CODECS:
        raise Refusal(Reason.CODEC, entry[1].decode("ascii", "replace"))
    at = header.find(b"dOps")
    head = OpusHead(header[at + 5], int.from_bytes(header[at + 6 : at + 8], "big")) if at >= 0 else None
    listing = list_packets(path, head.pre_skip if head else 0, tools)
    if listing.codec not in MP4_CODECS.values():
        raise Refusal(Reason.CODEC, listing.codec)
    channels = head.channels if head else listing.channels
    check_channels(channels)
    # How an AAC decoder starts and ends differs by a frame or two, and so does what edit lists leave out.
    found = listing.timeline.probe("mov", listing.codec, channels, doubt=2 * listing.usual)
    tables = sample_sizes(header)  # where there are none, fragments say it, and ffmpeg has listed them
    missing = media - (sum(tables) if any(tables) else found.payload)
    if any(tables) and found.payload not in tables:
        missing = max(tables) - found.payload  # left out by an edit list, or not to be read
    if missing:
        raise Refusal(Reason.DAMAGED, f"{missing} of its {window.size} bytes belong to no packet that is played")
    return dataclasses.replace(found, has_chapters=listing.has_chapters or b"chpl" in header)


def sample_sizes(header: bytes) -> list[int]:
    """Bytes of all packets of each track, by its table (ISO/IEC 14496-12, 8.7.3)."""
    sums = []
    for table in re.finditer(rb"stsz.{4}(.{8})", header, re.DOTALL):
        size, count = struct.unpack(">II", table[1])
        entries = header[table.end() :][: 4 * count]
        sums.append(size * count or sum(struct.unpack(f">{len(entries) // 4}I", entries[: len(entries) // 4 * 4])))
    return sums


def list_packets(path: str, pre_skip: int, tools: Tools) -> FramecrcListing:
    """Every packet of an MP4 file's only stream. Raises Refusal."""
    listing = FramecrcListing(pre_skip)
    # Every packet of every stream, in a text form that has not changed from ffmpeg 4 to 9.
    command = [tools.ffmpeg, *QUIET, *input_arguments(path, "mov"), "-map", "0", "-c", "copy", "-f", "framecrc", "pipe:1"]
    try:
        messages = tools.run(command, os.path.getsize(path) / BYTES_PER_SECOND, listing.add)
    except Refusal as refusal:
        if refusal.reason is not Reason.TOOL_FAILED or is_broken(tools, Target("opus", 96_000)):
            raise
        raise Refusal(Reason.UNREADABLE, f"as MP4: {refusal.detail}") from None
    if list(listing.media.values()) != ["audio"]:
        raise Refusal(Reason.SEVERAL_STREAMS, ", ".join(listing.media.values()) or "none that can be read")
    foreign = re.search(r"Codec \((\w+)\) not on whitelist", messages)
    if foreign:
        raise Refusal(Reason.CODEC, foreign[1])
    if messages:
        raise Refusal(Reason.DAMAGED, messages)
    listing.finish()
    return listing


class FramecrcListing:
    """Reads ffmpeg's framecrc output line by line: stream headers, then `stream, dts, pts, duration, size, crc`."""

    def __init__(self, pre_skip: int) -> None:
        self.pre_skip = pre_skip
        self.media: dict[str, str] = {}
        self.codec = ""
        self.channels = 0
        self.has_chapters = False
        self.tick = 1 / OPUS_RATE
        self.timeline = Timeline(OPUS_RATE, pre_skip)
        self.stamps, self.durations, self.sizes = array.array("q"), array.array("q"), array.array("q")  # ticks, ticks, bytes
        self.usual = 0  # samples in a packet

    def add(self, line: str) -> None:
        fields = line.split(",")
        if line.startswith("#"):
            self.header(line)
        elif len(fields) >= 6 and fields[0] in self.media:
            for column, field in zip((self.stamps, self.durations, self.sizes), fields[2:5]):
                column.append(int(field) if field.strip(" -").isdigit() else 0)  # NOPTS: none is known

    def finish(self) -> None:
        """Count the packets. How long one plays is its codec's to say, not its stamps', which jitter, leave gaps and overlap; and
        ffmpeg before 6 gives no durations at all in fragmented MP4."""
        scale = self.tick * self.timeline.rate
        steps = sorted(after - pts for pts, after in zip(self.stamps, self.stamps[1:])) or [*self.durations, 0]
        frames = MP4_FRAMES.get(self.codec, (1024,))
        self.usual = min(frames, key=lambda frame: abs(frame - steps[len(steps) // 2] * scale))
        if self.stamps:  # an edit list tells by a negative stamp what decoders drop
            self.timeline.pre_skip = max(self.timeline.pre_skip, round(-self.stamps[0] * scale))
        for pts, duration, size in zip(self.stamps, self.durations, self.sizes):
            told = round(duration * scale)
            self.timeline.add(pts * self.tick, told if self.codec == "opus" and told in frames else self.usual, size)

    def header(self, line: str) -> None:
        match = re.match(r"#(\w+) (\d+): *(\S+)", line)
        key, stream, value = match.groups() if match else ("", "", "")
        if key == "media_type":
            self.media[stream] = value
        elif key == "codec_id" and value == "bin_data":  # the text of chapters, which ffmpeg reads as such
            del self.media[stream]
            self.has_chapters = True
        elif key == "codec_id":
            self.codec = value
        elif key == "tb" and not self.media:
            numerator, denominator = value.split("/")
            self.tick = int(numerator) / int(denominator)
        elif key == "sample_rate":
            self.timeline = Timeline(check_rate(int(value)), self.pre_skip)
        elif key == "channel_layout_name":
            self.channels = {"mono": 1, "stereo": 2}.get(value, 3)
        elif key == "channel_layout" and not self.channels:  # ffmpeg 4 and 5: a mask in hexadecimal
            self.channels = bin(int(value, 16)).count("1")


# ------------------------------------------------------------------------------------------------------- decide


def examine(library: str, work: Work, tools: Tools, config: Config) -> None:
    """Probe one recording and decide; sets its probe and estimate. Raises Refusal, OSError."""
    path = os.path.join(library, work.source.path)
    with open(open_regular(path), "rb") as file:
        status = os.fstat(file.fileno())
        if identity_of(status) != work.source.identity:
            raise Refusal(Reason.CHANGED)
        work.changed_ns = status.st_ctime_ns
        work.probe = probe(file.fileno(), path, tools)
    durations = [sidecar.durations.get(work.source.name, 0) for sidecar in work.session.sidecars]
    work.estimate = decide(work.probe, work.size_before, max(durations, default=0), work.target, config.min_saving_percent)


def decide(found: Probe, size: int, recorded: Optional[float], target: Target, min_saving: float) -> int:
    """Whether a sound recording of `size` bytes is worth compressing: the bytes its copy is expected to have, or Refusal.

    `recorded` is the length in seconds that its sidecar gives, if any. Pure: no clock, no disk.
    """
    silence = found.silence / found.rate
    if silence > MAX_SILENCE:
        raise Refusal(Reason.GAPS, f"{silence:.0f} s around {found.audio_seconds:.1f} s of audio")
    # A record more than twice as long is about something else: paused time, or all chunks together.
    lasts = max(found.end, found.timeline)
    if recorded and recorded / 2 < lasts < recorded - max(1.0, recorded * SHORTFALL):
        raise Refusal(Reason.TRUNCATED, f"its sidecar says {recorded:.1f} s, but it ends after {lasts:.1f} s")
    estimate = estimate_size(found, target)
    if estimate > size * (1 - min_saving / 100):
        rate = f"{found.kilobits:.0f} kbit/s, of which a copy at {target.bitrate // 1000}k would save less than {min_saving:g} %"
        raise Refusal(Reason.LOW_BIT_RATE, rate)
    return estimate


def estimate_size(found: Probe, target: Target) -> int:
    """Bytes that a copy will have, within 5 % on speech: packets above the target's rate come down to it, those below
    (silence) do not shrink, gaps cost next to nothing."""
    rate = target.bitrate * target.form.payload / 8 / found.rate  # bytes a sample
    least = SILENT_PACKET * 50 / found.rate
    coded = sum(max(min(size * 1.1, samples * rate), samples * least) * count for (size, samples), count in found.packets.items())
    return round(target.form.header + coded + found.silence * least)


# ------------------------------------------------------------------------------------------------------- encode


class Transcoder:
    """Takes a batch through probe, encode and verify. Works on staged files only; safe to use from several threads."""

    def __init__(self, config: Config, tools: Tools, staging: Staging) -> None:
        self.config, self.tools, self.staging = config, tools, staging
        self.library = config.recordings_dir
        self.full = config.verify_before_delete
        self.device = os.stat(self.library).st_dev

    def process(self, batch: Batch) -> None:
        """Leave every work of the batch with a reason: proven and staged, or refused. Raises Stopped."""
        works = [work for work in batch.works if work.reason is None and self.guard(work, self.examine)]
        self.divide(works, self.pipe if batch.piped else self.encode)
        for work in works:
            if work.reason is None:
                self.guard(work, self.finish_copy)
        self.divide(works, self.verify)
        for work in works:
            for suffix in (".source", ".copy", ".before"):
                self.staging.discard(self.levels(work, suffix))
            if not work.proven:
                self.staging.discard(work.staged)
            if work.staged is None and work.reason is Reason.NOT_PROVEN:  # nothing of ours failed: something else has the name
                work.refuse(Reason.NAME_TAKEN, f"{work.copy_name} is not a copy of it ({work.detail})")

    def guard(self, work: Work, task: Callable[[Work], None]) -> bool:
        """The one boundary around one recording: whatever goes wrong with it is its own."""
        try:
            task(work)
        except (Refusal, OSError) as error:
            work.refuse_for(error)
        except (Stopped, ServiceError):
            raise
        except Exception as error:  # a defect must cost one recording its turn, never the night
            work.trace = traceback.format_exc()
            work.refuse(Reason.DEFECT, f"{type(error).__name__}: {error}")
        return work.reason is None

    def divide(self, works: list[Work], task: Callable[[list[Work]], None]) -> None:
        """Do a task for many files in one process; if it fails or says anything, one by one, so that each answers for itself."""
        works = [work for work in works if work.reason is None]
        if len(works) > 1:
            try:
                task(works)
                return
            except (Refusal, OSError):
                pass
        for work in works:
            self.guard(work, lambda work: task([work]))

    def path(self, work: Work) -> str:
        return os.path.join(self.library, work.source.path)

    def copy_path(self, work: Work) -> str:
        return os.path.join(self.library, work.source.folder, work.copy_name)

    def examine(self, work: Work) -> None:
        if work.source.identity.device != self.device:  # what is staged could not be put in place by a link
            raise Refusal(Reason.OTHER_DISK)
        examine(self.library, work, self.tools, self.config)
        if work.replaces or not os.path.lexists(self.copy_path(work)):
            work.staged = self.staging.path(work.number, work.target.form.suffix)
        if work.found.has_chapters:
            lines: list[str] = []
            source = input_arguments(self.path(work), work.found.demuxer)
            self.tools.run([self.tools.ffmpeg, *QUIET, *source, "-f", "ffmetadata", "pipe:1"], 0, lines.append)
            work.chapters = parse_chapters("\n".join(lines))

    def encode(self, works: list[Work]) -> None:
        """One decode of each source, into its copy and its level file."""
        arguments: list[str] = []
        for work in works:
            arguments += input_arguments(self.path(work), work.found.demuxer)
        for number, work in enumerate(works):
            arguments += encode_arguments(number, work, self.levels(work, ".source"))
        try:
            self.run(arguments, works, Reason.DAMAGED)
        except Refusal as refusal:
            if any(not is_there(self.path(work), work.source.identity) for work in works):
                raise Refusal(Reason.CHANGED) from None  # which explains whatever ffmpeg made of it
            if refusal.reason is Reason.TOOL_FAILED:
                self.tools.require(works[0].target.form)  # asked only now: it costs a process start
                if len(works) == 1:
                    self.blame_source(works[0], refusal)
            raise

    def blame_source(self, work: Work, refusal: Refusal) -> None:
        """Raise Refusal for damage where ffmpeg failed at a recording, but not at a sound of our own."""
        if not is_broken(self.tools, work.target):
            raise Refusal(Reason.DAMAGED, f"ffmpeg cannot decode it ({refusal.detail})") from None

    def pipe(self, works: list[Work]) -> None:
        """Decode one recording, encode it and decode the copy in three processes at once: 0.7 of the time of one process that does
        no more than transcode, where one step after the other takes 1.3. If anything is wrong, one after the other is to tell."""
        (work,) = works
        if not self.full or not work.staged or work.target.form.muxer != "ogg" or work.found.ends_oddly:
            self.encode(works)
            return
        ffmpeg, copy = [self.tools.ffmpeg, *QUIET], self.levels(work, ".copy")
        source = input_arguments(self.path(work), work.found.demuxer)
        decode = source + encode_arguments(0, work, self.levels(work, ".source"), PIPED)
        layout = {1: "mono", 2: "stereo"}[work.found.channels]
        encode = [
            "-thread_queue_size",
            "64",
            "-guess_layout_max",
            "0",
            "-f",
            "nut",
            "-i",
            "pipe:0",
            *source,
            "-map",
            "0:a:0",
            *tag_arguments(1, work),
        ]
        encode += ["-af", f"aformat=channel_layouts={layout}", *encoder_arguments(work), "pipe:1"]
        verify = ["-f", work.target.form.demuxer, "-i", "pipe:0", *level_arguments(0, copy)]
        commands = [[*ffmpeg, *arguments] for arguments in (decode, encode, verify)]
        try:
            work.decoded = self.tools.pipe(commands, work.found.timeline, work.staged)
        except (Refusal, OSError):
            self.encode(works)

    def listens(self, work: Work) -> bool:
        """Whether its copy is decoded: always where one was there already that may be anything."""
        return self.full or work.staged is None or work.is_doubtful

    def levels(self, work: Work, suffix: str) -> str:
        return self.staging.path(work.number, suffix)

    def through(self, work: Work) -> float:
        """Seconds of its audio that a recording at work has behind it, told by how far its files in staging have grown."""
        if not work.probe or work.reason:
            return work.seconds
        encoded = heard = work.probe.timeline * file_size(work.staged or "") / (work.estimate or 1)
        if self.listens(work):
            second = LEVEL_RATE * work.found.channels * LEVEL_BYTES
            encoded, heard = (file_size(self.levels(work, suffix)) / second for suffix in (".source", ".copy"))
        share = ENCODE_SHARE.get(work.target.format, 0.87)
        return min(work.probe.timeline, share * encoded + (1 - share) * heard)

    def run(self, arguments: Sequence[str], works: Sequence[Work], on_message: Reason) -> None:
        seconds = sum(work.probe.timeline for work in works if work.probe)
        options = LENIENT if any(work.found.ends_oddly for work in works) else QUIET
        messages = self.tools.run([self.tools.ffmpeg, *options, *arguments], seconds)
        if messages:
            raise Refusal(on_message, messages)

    def finish_copy(self, work: Work) -> None:
        """Give the copy its original's attributes and flush it; what can be seen from its structure is checked first."""
        path = work.staged or self.copy_path(work)
        if not os.path.lexists(path):
            raise MissingCopy("a copy", "none")
        descriptor = open_regular(path)
        try:
            if work.staged:
                copy_attributes(os.lstat(self.path(work)), descriptor, times=True)
            flush(descriptor)  # one that was there already may be another program's, and not on the disk yet
            work.copy = identity_of(os.fstat(descriptor))
            verify_structure(descriptor, path, work, self.tools, self.config.min_saving_percent)
        finally:
            os.close(descriptor)

    def verify(self, works: list[Work]) -> None:
        """Decode the copies in full, from disk, and compare each with its source."""
        copies = [(work, work.staged or self.copy_path(work), ".copy") for work in works if self.listens(work) and not work.decoded]
        copies += [(work, self.copy_path(work), ".before") for work in works if work.is_doubtful]
        arguments: list[str] = []
        for work, path, _ in copies:
            arguments += input_arguments(path, work.target.form.demuxer)
        for number, (work, _, suffix) in enumerate(copies):
            arguments += level_arguments(number, self.levels(work, suffix))
        try:
            if copies:
                self.run(arguments, [work for work, _, _ in copies], Reason.NOT_PROVEN)
        except Refusal as refusal:
            if refusal.reason is Reason.NOT_PROVEN or "Invalid data" in refusal.detail:
                raise UndecodableCopy("a decode without a message", refusal.detail) from None
            raise
        for work in works:
            self.guard(work, self.compare)

    def compare(self, work: Work) -> None:
        if work.decoded and digest_of(work.staged or "") != work.decoded:
            raise UndecodableCopy("what was decoded while it was written", "other bytes in the file")
        if self.listens(work):
            source = self.levels(work, ".source")
            compare_audio(source, self.levels(work, ".copy"), work, self.tools.stop)
            if work.is_doubtful:
                try:
                    compare_audio(source, self.levels(work, ".before"), work, self.tools.stop)
                except NotProven as error:
                    raise Refusal(Reason.NAME_TAKEN, f"{work.copy_name} is not a copy of it ({error.detail})") from None
        work.reason = Reason.DONE if work.staged else Reason.ADOPTED


def input_arguments(path: str, demuxer: str) -> list[str]:
    """One input, its format named: nothing is guessed from its content, and no name of it can be taken for an option."""
    return [*SAFE_INPUT, "-f", demuxer, "-i", "file:" + path]


# NUT carries rate and channels with the samples, but not whether one channel is mono, which ffmpeg would guess aloud.
PIPED = ("-c:a", "pcm_f32le", "-f", "nut", "pipe:1")


def encoder_arguments(work: Work) -> list[str]:
    form = work.target.form
    arguments = ["-c:a", form.encoder, "-b:a", str(work.target.bitrate), *form.options]
    if form.codec == "opus" and work.found.timeline >= LONG_PACKETS_FROM:
        arguments += ["-frame_duration", "60"]
    return [*arguments, "-f", form.muxer]


def tag_arguments(number: int, work: Work) -> list[str]:
    """Its source's tags, from container and stream, and its chapters; else ffmpeg takes those of the first input that has any."""
    arguments = ["-map_metadata", str(number), "-map_metadata", f"{number}:s:a:0"]
    if work.target.form.muxer != "ogg":
        return [*arguments, "-map_chapters", str(number)]
    # ffmpeg before 4.2 writes no chapters into Ogg, where they are tags.
    # The encoder's own tag is taken out first: ffmpeg would put the last one in its place, and a name before its chapter.
    named = [word for tag in ("encoder=", *work.chapters) for word in ("-metadata", tag)]
    return [*arguments, "-map_chapters", "-1", *named]


def parse_chapters(text: str) -> list[str]:
    """The tags that chapters are in Ogg, `CHAPTER000=00:00:01.500` and `CHAPTER000NAME=…`, from ffmpeg's ffmetadata text."""
    tags = []
    for number, part in enumerate(text.split("\n[CHAPTER]\n")[1:1001]):
        values = dict(re.findall(r"^(\w+)=((?:\\.|[^\\\n])*)", part, re.MULTILINE | re.DOTALL))
        ticks, scale = values.get("TIMEBASE", "1/1").split("/")
        seconds, milliseconds = divmod(round(int(values["START"]) * 1000 * int(ticks) / int(scale)), 1000)
        clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{milliseconds:03}"
        tags.append(f"CHAPTER{number:03}={clock}")
        if values.get("title"):
            tags.append(f"CHAPTER{number:03}NAME=" + re.sub(r"\\(.)", r"\1", values["title"], flags=re.DOTALL))
    return tags


def timeline_filter(found: Probe) -> str:
    """Puts silence into the gaps of a source and nothing anywhere else: every frame is stamped by the samples before it.

    What its own timestamps say plays no part, so that nothing can be trimmed or moved. A gap begins a millisecond early, as a frame
    that begins late would be put before it; frames are indivisible, and none is shorter than 2.5 ms.
    """
    early = found.rate // 1000
    terms = ["N", *(f"{length}*gte(N,{max(0, at - early)})" for at, length in found.gaps)]
    while len(terms) > 1:  # a tree: ffmpeg parses no more than a hundred terms in a row
        terms = ["(" + "+".join(terms[at : at + 50]) + ")" for at in range(0, len(terms), 50)]
    return f"asetpts='({terms[0]})/SR/TB',aresample=async=1:min_hard_comp=0.0005:first_pts=0"


def encode_arguments(number: int, work: Work, levels: str, output: Sequence[str] = ()) -> list[str]:
    """Outputs for input `number`: the copy (or another `output`), and from the same decode, before any filter of ours, the
    source's levels. Nothing on the way is held in 16 bits, as decoders give peaks above full scale too."""
    if not work.staged:
        return level_arguments(number, levels)
    graph = f"[{number}:a:0]asplit[a{number}][b{number}]"
    graph += f";[a{number}]{timeline_filter(work.found)},aformat=sample_fmts=flt[c{number}];[b{number}]{LEVEL_FILTER}[d{number}]"
    arguments = ["-filter_complex", graph, "-map", f"[c{number}]"]
    arguments += output or [*tag_arguments(number, work), *encoder_arguments(work), "file:" + work.staged]
    return [*arguments, "-map", f"[d{number}]", *LEVEL_OUTPUT, "file:" + levels]


def level_arguments(number: int, path: str) -> list[str]:
    """One output: input `number` decoded in full, as levels."""
    return ["-map", f"{number}:a:0", "-af", LEVEL_FILTER, *LEVEL_OUTPUT, "file:" + path]


# ------------------------------------------------------------------------------------------------------- verify


def verify_structure(descriptor: int, path: str, work: Work, tools: Tools, min_saving: float) -> None:
    """What can be told of a copy without decoding it: its size, container, codec, stream, channels, end, length.
    Raises NotProven, or Refusal where it is sound but saves too little."""
    source, form = work.probe, work.target.form
    assert source
    size = os.fstat(descriptor).st_size
    if size == 0:
        raise MissingCopy("a copy", "an empty file")
    try:
        window = Window(descriptor)
        found = walk_ogg(window) if form.demuxer == "ogg" else probe_mp4(window, path, tools)
    except Refusal as refusal:
        if refusal.reason.action is Action.KEPT:
            raise UnsoundStream(f"one whole {form.codec} stream", str(refusal)) from None
        raise
    if found.codec != form.codec:
        raise WrongStream(form.codec, found.codec)
    if found.channels != source.channels:
        raise WrongStream(f"{source.channels} channels", f"{found.channels}")
    # To the sample where the source's packets tell them all and no rate is converted, which may round one up.
    expected = (source.samples + source.silence) * found.rate / source.rate
    slack = source.doubt * found.rate / source.rate + form.slack * found.rate + (found.rate != source.rate)
    if abs(found.samples - expected) > slack or found.gaps or found.overlap > COPY_OVERLAP:
        asked = f"{expected / found.rate:.3f} s ({expected:.0f} samples) without a gap, by its source's packets"
        steps = f"{len(found.gaps)} gaps, an overlap of {found.overlap:.3f} s"
        raise WrongLength(asked, f"{found.timeline:.3f} s ({found.samples} samples) with {steps}")
    limit = work.size_before * (1 - min_saving / 100)
    if size > limit and work.staged:
        raise Refusal(Reason.LITTLE_SAVING, f"its copy has {size} bytes where at most {limit:.0f} were asked")


class Levels:
    """A level file, read window by window, with `silence` (frame it begins at, frames) put in; a frame has a sample a channel."""

    def __init__(self, path: str, frame: int, silence: Iterable[tuple[int, int]] = ()) -> None:
        self.file, self.frame = open(path, "rb"), frame  # noqa: SIM115 - closed with us
        self.frames = os.fstat(self.file.fileno()).st_size // frame
        self.parts: deque[tuple[int, bool]] = deque()
        position = 0
        for at, length in silence:
            self.parts += [(at - position, False), (length, True)]
            position = at
        self.parts.append((max(0, self.frames - position), False))

    def read(self, frames: int) -> bytes:
        data = b""
        while self.parts and frames:
            left, is_silence = self.parts.popleft()
            count = min(left, frames)
            data += bytes(count * self.frame) if is_silence else self.file.read(count * self.frame)
            frames -= count
            if left > count:
                self.parts.appendleft((left - count, is_silence))
        return data

    def __enter__(self) -> Levels:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def compare_audio(source_levels: str, copy_levels: str, work: Work, stop: Stop) -> None:
    """Compare what was decoded: the source with its own packets, then the copy with the source, in length and wave, window by
    window and channel by channel, with silence where the source has gaps and nowhere else. Raises Refusal, NotProven, Stopped."""
    found = work.found
    frame, scale = LEVEL_BYTES * found.channels, LEVEL_RATE / found.rate
    silence = [(round(at * scale), round(length * scale)) for at, length in found.gaps]
    with Levels(source_levels, frame, silence) as source, Levels(copy_levels, frame) as copy:
        if abs(source.frames - found.samples * scale) > 1 + found.doubt * scale:
            decoded = f"{source.frames / LEVEL_RATE:.3f} s decoded from it"
            raise WrongLength(f"{found.audio_seconds:.3f} s by the source's packets", decoded)
        expected = source.frames + sum(length for _, length in silence)
        if abs(copy.frames - expected) > 1 + work.target.form.slack * LEVEL_RATE:
            raise WrongLength(f"{expected / LEVEL_RATE:.3f} s", f"{copy.frames / LEVEL_RATE:.3f} s")
        # A tail of less than a fifth of a window belongs to the one before: alone it is too short to be measured.
        last = max(0, (expected - LEVEL_WINDOW // 5) // LEVEL_WINDOW)
        sizes = [LEVEL_WINDOW] * last + [2 * LEVEL_WINDOW]
        sounds = [split_channels(source.read(sizes[0]), found.channels)]
        for number, frames in enumerate(sizes):
            if stop.requested:
                raise Stopped
            if number < last:
                sounds.append(split_channels(source.read(sizes[number + 1]), found.channels))
            other = split_channels(copy.read(frames), found.channels)
            now, around = sounds[min(number, 1)], max(channel.power for sound in sounds for channel in sound)
            quiet = max(LEVEL_FLOOR**2, FAINT * around, QUIET_CHANNEL * max(channel.power for channel in now))
            spread, seconds = max(quiet, QUIET_CHANNEL * around), number * LEVEL_WINDOW / LEVEL_RATE
            for a, b in zip(now, other):
                try:
                    compare_window(a, b, quiet, spread, seconds)
                except DifferentAudio:  # what is loud in the next window may reach a little way into this one
                    if a.power > spread or len(a.samples) <= 2 * LEVEL_EDGE:
                        raise
                    compare_window(a.inner, b.inner, quiet, spread, seconds)
            sounds = sounds[-2:]


class Channel(NamedTuple):
    """A window of one channel, and its mean power."""

    samples: list[float]
    power: float

    @classmethod
    def of(cls, samples: list[float]) -> Channel:
        return cls(samples, math.hypot(*samples) ** 2 / (len(samples) or 1))  # in C: a third of the time of a sum of products

    @property
    def inner(self) -> Channel:
        return Channel.of(self.samples[LEVEL_EDGE:-LEVEL_EDGE])

    @property
    def parts(self) -> list[Channel]:
        return [Channel.of(self.samples[start : start + LEVEL_PART]) for start in range(0, len(self.samples), LEVEL_PART)]


def split_channels(levels: bytes, channels: int) -> list[Channel]:
    samples = array.array("f", levels)
    return [Channel.of(samples[at::channels].tolist()) for at in range(channels)]


def compare_window(source: Channel, copy: Channel, quiet: float, spread: float, seconds: float) -> None:
    """Whether half a second of one channel of the copy sounds as loud as the source's, and is the same wave. Each channel is
    compared for itself: a mix of both hides what is in one, or in their difference. Where the source has less power than `quiet`,
    the copy has no more than `spread`, as codecs let loud sounds reach a little way into the silence around them."""
    power_a, power_b = source.power, copy.power
    if not math.isfinite(power_a):  # such a thing compares as equal to anything
        raise Refusal(Reason.DAMAGED, f"it holds samples that are no numbers at {seconds:.1f} s")
    if power_a <= quiet and power_b <= 2 * spread:
        return
    for number, (part, other) in enumerate(zip(source.parts, copy.parts)):
        if part.power > max(quiet, LOST_PART * power_a) and other.power < part.power * LOST_PART / 2:
            raise DifferentAudio(f"the source's sound at {seconds + number * LEVEL_PART / LEVEL_RATE:.2f} s", "none")
    difference = 10 * math.log10(max(power_b, quiet / 4) / max(power_a, quiet / 4))
    if not abs(difference) <= LEVEL_TOLERANCE_DB:
        raise DifferentAudio(f"the source's loudness at {seconds:.1f} s", f"{difference:+.1f} dB")
    # By the law of cosines: |a - b|^2 = |a|^2 + |b|^2 - 2 a.b
    count = min(len(source.samples), len(copy.samples))
    distance = math.dist(source.samples[:count], copy.samples[:count]) ** 2 / count
    correlation = (power_a + power_b - distance) / 2 / math.sqrt(power_a * power_b or 1)
    if power_a > quiet and correlation < MIN_CORRELATION:
        raise DifferentAudio(f"the source's sound at {seconds:.1f} s", f"another (correlation {correlation:.2f})")


# ------------------------------------------------------------------------------------------------------- commit


class Totals(NamedTuple):
    """Of one recording in the recorder's sense, once a step is done: bytes, and whether nothing of it is left to compress."""

    original: int
    compressed: int
    on_disk: int
    complete: bool
    archived: bool = False


class Committer:
    """Puts proven copies in place. The order is the promise: copies, then sidecars, then the index and the history, each
    flushed with its folder, and only then the originals go."""

    def __init__(self, config: Config, report: Report, history: History, staging: Staging) -> None:
        self.config, self.report, self.history, self.staging = config, report, history, staging
        self.library = config.recordings_dir
        self.pending: list[Work] = []  # in place, original not yet deleted
        self.entries: dict[str, Totals] = {}  # what the index must say, by id
        self.sessions: set[Session] = set()  # those whose sidecars we wrote
        self.index_length = 0
        self.index_written: Optional[Identity] = None
        self.placed_size = 0  # bytes of copies that this run has added to those the scan saw
        self.settled_at, self.settle_cost = time.monotonic(), 0.0

    def commit(self, steps: Iterable[Sequence[Work]]) -> None:
        """Put steps in place: their copies, then the sidecars that name them. A work that cannot be is refused."""
        by_folder: dict[str, list[Sequence[Work]]] = defaultdict(list)
        for step in steps:
            session = step[0].session
            session.resting |= {work.source.name for work in step if work.reason and work.reason.action is Action.KEPT}
            chunks = (chunk for sidecar in session.sidecars for chunk in sidecar.chunks)
            if any(work.proven for work in step) or any(chunk.endswith(COPY_SUFFIXES) for chunk in chunks):
                by_folder[session.folder].append(step)
        for name, group in by_folder.items():
            self.commit_folder(name, group)

    def commit_folder(self, name: str, steps: Sequence[Sequence[Work]]) -> None:
        """All that is ready in one folder, so that the folder is flushed twice and not twice a recording."""
        folder = os.path.join(self.library, name)
        try:
            newcomers = read_sidecars(self.library, name, steps[0][0].session.seen)
        except OSError as error:
            for step in steps:
                self.take_back(step[0].session, [], [work for work in step if work.proven], error)
            return
        ready: list[tuple[Session, list[Sidecar], list[Work]]] = []
        for step in steps:
            session, placed = step[0].session, [work for work in step if work.proven]
            try:
                sidecars = self.fresh_sidecars(session, folder, newcomers)
                placed = [work for work in placed if self.place(work, folder)]
                ready.append((session, sidecars, placed))
            except Refusal as refusal:
                self.take_back(session, [], placed, refusal)
        in_place: list[Work] = []
        try:
            flush_folder(folder)
            for session, sidecars, placed in ready:
                session.done += placed
                try:
                    self.rewrite_sidecars(session, sidecars, folder)
                    in_place += placed
                except (JsonFlaw, OSError) as error:
                    self.take_back(session, sidecars, placed, error)
            flush_folder(folder)
        except OSError as error:  # nothing here may be relied on: the originals stay, and the next run proves the copies again
            for _, _, placed in ready:
                for work in placed:
                    self.put_back(work, folder)
                    work.refuse_for(error)
            return
        self.pending += in_place
        for work in in_place:
            self.staging.discard(work.staged)
            self.placed_size += work.copy.size if work.copy and work.staged else 0
            self.placed_size -= work.replaces.size if work.replaces else 0

    def fresh_sidecars(self, session: Session, folder: str, newcomers: Sequence[Sidecar]) -> list[Sidecar]:
        """The session's sidecars as they are now, with those that came since. Raises Refusal."""
        found = (read_sidecar(os.path.join(folder, sidecar.name)) for sidecar in session.sidecars)
        sidecars = [sidecar for sidecar in found if sidecar]
        names, stems = {source.name for source in session.sources}, {source.stem for source in session.sources}
        sidecars += [sidecar for sidecar in newcomers if names & set(sidecar.chunks) or sidecar.stem in stems]
        for sidecar in sidecars:
            if sidecar.flaw:
                raise Refusal(Reason.SIDECAR, f"{sidecar.name}: {sidecar.flaw}")
        return sidecars

    def place(self, work: Work, folder: str) -> bool:
        """Give a proven copy its name, if its source is still the file that was read."""
        final = os.path.join(folder, work.copy_name)
        try:
            status = os.lstat(os.path.join(self.library, work.source.path))
            if (identity_of(status), status.st_ctime_ns) != (work.source.identity, work.changed_ns):
                raise Refusal(Reason.CHANGED)
            if work.staged and work.replaces:
                work.staged = self.swap(work.staged, final, work.replaces)
            elif work.staged:
                place(work.staged, final)
            elif identity_of(os.lstat(final)) != work.copy:
                raise Refusal(Reason.CHANGED)
            return True
        except FileExistsError:
            work.refuse(Reason.NAME_TAKEN, printable(work.copy_name))
        except (Refusal, OSError) as error:
            work.refuse_for(error)
        self.staging.discard(work.staged)
        return False

    def swap(self, staged: str, final: str, before: Identity) -> str:
        """Put a copy in the place of the one before it, in one step; returns where that one waits until the records are true."""
        if identity_of(os.lstat(final)) != before:
            raise Refusal(Reason.CHANGED)
        aside = exchange(staged, final, self.staging)
        if identity_of(os.lstat(aside)) != before:
            os.replace(aside, final)
            raise Refusal(Reason.CHANGED)
        return aside

    def put_back(self, work: Work, folder: str) -> None:
        """Give the copy that a smaller one has replaced its name again."""
        copy = os.path.join(folder, work.copy_name)
        with contextlib.suppress(OSError):
            if work.replaces and work.staged and identity_of(os.lstat(copy)) == work.copy:
                os.replace(work.staged, copy)

    def take_back(self, session: Session, sidecars: Sequence[Sidecar], works: Sequence[Work], error: Exception) -> None:
        """A sidecar could not be changed: keep the originals, and remove the copies unless a sidecar names them already."""
        session.done = [work for work in session.done if work not in works]
        folder = os.path.join(self.library, session.folder)
        found = [read_sidecar(os.path.join(folder, sidecar.name)) for sidecar in sidecars]
        named = {chunk for sidecar in found if sidecar for chunk in sidecar.chunks}
        unknown = any(sidecar and sidecar.flaw for sidecar in found)  # what cannot be read now may name any of them
        for work in works:
            work.refuse_for(error)
            self.put_back(work, folder)
            self.staging.discard(work.staged)
            copy = os.path.join(folder, work.copy_name)
            with contextlib.suppress(OSError):
                if (
                    work.staged
                    and not work.replaces
                    and not unknown
                    and work.copy_name not in named
                    and identity_of(os.lstat(copy)) == work.copy
                ):
                    os.unlink(copy)

    def rewrite_sidecars(self, session: Session, sidecars: Sequence[Sidecar], folder: str) -> None:
        """Make every sidecar of a session say what is in place; those that say so already are left alone."""
        renames = session.returned or {work.source.name: work.copy_name for work in session.done}
        groups: dict[str, list[Sidecar]] = defaultdict(list)
        for sidecar in sidecars:
            groups[sidecar.id if sidecar.id is not None else "\0" + sidecar.name].append(sidecar)
        for key, group in groups.items():
            names = chunk_names(group, session, renames)
            totals = self.add_up(folder, names, session.done, session.resting)
            if session.location:  # nothing is left here; what was never compressed is not so by having gone
                copies = any(name.endswith(COPY_SUFFIXES) for name in names)
                totals = totals._replace(on_disk=0, archived=True, complete=totals.complete and copies)
            elif session.returned is None:
                totals = totals._replace(archived=any(sidecar.archived for sidecar in sidecars))
            for sidecar in group:
                path = os.path.join(folder, sidecar.name)
                edit = sidecar_edit(session, path, renames, totals)
                session.written[path] = replace_json(path, edit, self.staging, backup=True)
                self.sessions.add(session)
            if not key.startswith("\0"):
                self.entries[key] = totals

    def move(self, session: Session, works: Sequence[Work]) -> None:
        """Record that a session's files are in the archive; they go here once index and history say so too. Raises Refusal,
        JsonFlaw, OSError."""
        folder = os.path.join(self.library, session.folder)
        newcomers = read_sidecars(self.library, session.folder, session.seen)
        session.resting = {work.source.name for work in works}
        ours = {os.path.join(folder, sidecar.name) for sidecar in session.sidecars}
        self.sessions = {each for each in self.sessions if not ours & each.written.keys()}  # compressed by this run: this is newer
        self.rewrite_sidecars(session, self.fresh_sidecars(session, folder, newcomers), folder)
        flush_folder(folder)
        for work in works:
            work.reason = Reason.ARCHIVED
            self.placed_size -= work.source.size if work.source.is_copy else 0
        self.pending += works

    def renew_sidecars(self, sessions: Iterable[Session]) -> bool:
        """Write again what another program has overwritten from an older read since; returns whether anything was."""
        renewed = False
        for session in sessions:
            if any(not is_there(path, identity) for path, identity in session.written.items()):
                folder = os.path.join(self.library, session.folder)
                self.rewrite_sidecars(session, self.fresh_sidecars(session, folder, ()), folder)
                flush_folder(folder)
                renewed = True
        return renewed

    def add_up(self, folder: str, names: set[str], done: Iterable[Work], resting: set[str]) -> Totals:
        """Sum a recording's files by what is on disk now, and by what this run has replaced."""
        copies = {work.copy_name: work for work in done}
        original = compressed = on_disk = 0
        complete = True
        for name in names:
            size = file_size(os.path.join(folder, name))
            work = copies.get(name)
            gone = None if size else self.history.archived.get(os.path.relpath(os.path.join(folder, name), self.library))
            compressed += gone.size if gone else size
            on_disk += size
            original += work.first_size if work else gone.first_size if gone else size
            if work:
                on_disk += 0 if work.unlink or work.source.is_copy else work.source.size
            elif name.lower().endswith(SOURCE_SUFFIX):
                complete = complete and (name in resting or not size)
            else:
                on_disk += kept_size(os.path.join(folder, name))
        return Totals(original, compressed, on_disk, complete)

    def must_settle(self) -> bool:
        """Whether to give space back now: not so often that writing a large index would take the time of the work."""
        since = time.monotonic() - self.settled_at
        return bool(self.pending) and (
            len(self.pending) >= max(SETTLE_FILES, self.index_length // 40)
            or sum(work.source.size for work in self.pending) >= STEP_BYTES
            or since > max(5.0, 50 * self.settle_cost)
        )

    def settle(self) -> None:
        """Bring index and history up to date for everything in place, then delete the originals."""
        begun = time.monotonic()
        works, self.pending = self.pending, []
        if works:
            try:
                self.renew_sidecars({work.session for work in works})
                self.update_index()
                self.history.append(works, counts=True, entries=self.entries)
            except (Refusal, JsonFlaw, OSError) as error:
                for work in works:
                    work.refuse_for(Refusal(Reason.INDEX, str(error)) if isinstance(error, JsonFlaw) else error)
            self.delete_originals(
                [work for work in works if work.unlink and work.reason and work.reason.action is not Action.FAILED]
            )
            for work in works:
                self.report.recording(work)
        self.settled_at = time.monotonic()
        self.settle_cost = self.settled_at - begun

    def delete_originals(self, works: Sequence[Work]) -> None:
        folders = set()
        for work in works:
            path = os.path.join(self.library, work.source.path)
            try:
                if identity_of(os.lstat(path)) != work.source.identity:
                    raise Refusal(Reason.CHANGED)
                os.unlink(path)
                folders.add(os.path.dirname(path))
            except Refusal as refusal:
                work.refuse_for(refusal)
            except OSError as error:
                work.refuse(Reason.INPUT_OUTPUT, f"its copy is in place, but the original cannot be deleted: {describe(error)}")
        for folder in folders:
            try:
                flush_folder(folder)
            except OSError as error:  # after a power cut an original may be back, which the next run finds
                self.report.error(f"{printable(folder)} cannot be flushed after its originals were deleted: {describe(error)}")

    def update_index(self) -> None:
        if self.config.shard:  # the others place copies too
            self.report.scan.copies_size, self.placed_size = scan(self.library, -math.inf).copies_size, 0
        path = os.path.join(self.library, INDEX_NAME)
        if os.path.lexists(path):
            self.index_written = replace_text(path, self.indexed, self.staging)
            flush_folder(self.library)

    def indexed(self, text: bytes) -> Optional[bytes]:
        def wanted(id_: str) -> Optional[dict[str, Any]]:
            totals = self.entries.get(id_)
            return {"compressed": totals.complete, "size": totals.on_disk, "archived": totals.archived} if totals else None

        index = IndexText(text, wanted)
        self.index_length = index.length
        return index.updated(self.report.scan.copies_size + self.placed_size, timestamp())

    def heal_index(self) -> None:
        """Mend what another program's write from an older read has undone since our last: only entries that differ from the
        history are looked into, and only if the index was written by someone else since."""
        path = os.path.join(self.library, INDEX_NAME)
        try:
            status = os.lstat(path)
            if self.history.knows_index(status):
                return
            known = self.history.entries

            def wanted(id_: str) -> Optional[dict[str, Any]]:
                return dict(zip(("compressed", "size"), known[id_][1:])) if id_ in known else None

            for id_ in read_as(lambda text: IndexText(text, wanted).stale, path)[1]:
                try:
                    self.recount(known[id_][0], id_)
                except OSError as error:
                    self.report.error(f"The index entry {id_} could not be looked into: {describe(error)}")
            if self.entries:
                self.update_index()
            self.history.note_index(os.lstat(path))
        except FileNotFoundError:
            return
        except JsonFlaw as flaw:
            raise ServiceError(
                f"The index {printable(path)} cannot be read: {flaw}. Nothing was changed, as it could not be kept true; "
                "mend it, or move it away if the recorder makes a new one."
            ) from None

    def recount(self, folder: str, id_: str) -> None:
        """What the index must say of one recording, from its sidecars and the disk."""
        group = [sidecar for sidecar in read_sidecars(self.library, folder) if sidecar.id == id_ and not sidecar.flaw]
        names = {name for sidecar in group for name in sidecar.chunks}
        if not names:
            stems, there = {sidecar.stem for sidecar in group}, os.listdir(os.path.join(self.library, folder))
            names = {name for name in there if os.path.splitext(name)[0] in stems and name.endswith(COPY_SUFFIXES)}
        archived = any(sidecar.archived for sidecar in group)
        copies = any(name.endswith(COPY_SUFFIXES) for name in names)
        if copies or archived:
            resting = {name for name in names if self.history.is_resting(os.path.join(folder, name))}
            totals = self.add_up(os.path.join(self.library, folder), names, (), resting)
            self.entries[id_] = totals._replace(archived=archived, complete=totals.complete and copies)

    def close(self) -> None:
        """At the end of a run: look at the index once more, in case it was overwritten from an older read meanwhile."""
        self.settle()
        path = os.path.join(self.library, INDEX_NAME)
        try:
            renewed = self.renew_sidecars(self.sessions)
            if self.entries and os.path.lexists(path):
                if renewed or self.config.shard or identity_of(os.lstat(path)) != self.index_written:
                    self.update_index()
                self.history.note_index(os.lstat(path))
        except (Refusal, JsonFlaw, OSError) as error:
            self.report.error(f"The records could not be looked over at the end; the next run does it: {printable(str(error))}")


def chunk_names(group: Sequence[Sidecar], session: Session, renames: Mapping[str, str]) -> set[str]:
    """The files of one recording as they are called after `renames`: those its sidecars list, else those that share a stem."""
    names = {name for sidecar in group for name in sidecar.chunks}
    if not names:
        stems = {sidecar.stem for sidecar in group}
        names = {source.name for source in session.sources if source.stem in stems}
    return {renames.get(name, name) for name in names}


def kept_size(copy: str) -> int:
    """Bytes of the original beside a copy, 0 if it is not there."""
    stem = os.path.splitext(copy)[0]
    return file_size(stem + SOURCE_SUFFIX) or file_size(stem + SOURCE_SUFFIX.upper())


def sidecar_edit(
    session: Session, path: str, renames: Mapping[str, str], totals: Totals
) -> Callable[[dict[str, Any]], Optional[dict[str, Any]]]:
    """How the sidecar at `path` is to be changed for what happens to its session."""
    if session.location:
        return functools.partial(archived_metadata, location=session.location, date=timestamp())
    if session.returned is not None:
        before = None
        with contextlib.suppress(OSError, JsonFlaw):
            before = parse_json(read_regular(path + ".bak"))
        return functools.partial(restored_metadata, before=before, renames=renames, totals=totals)
    return functools.partial(compressed_metadata, renames=renames, totals=totals, date=timestamp())


def renamed_chunks(document: Mapping[str, Any], renames: Mapping[str, str]) -> dict[str, Any]:
    result = dict(document)
    if isinstance(document.get("chunks"), list):
        result["chunks"] = [
            {**chunk, "file": renames[chunk["file"]]}
            if isinstance(chunk, dict) and is_plain_name(chunk.get("file")) and chunk["file"] in renames
            else chunk
            for chunk in document["chunks"]
        ]
    return result


def archived_metadata(document: Mapping[str, Any], location: str, date: str) -> Optional[dict[str, Any]]:
    """A sidecar once its recording is in the archive at `location`; None if it says so already."""
    if document.get("archived") is True and document.get("archive_location") == location:
        return None
    return {**document, "archived": True, "archive_location": location, "archive_date": date}


def restored_metadata(
    document: Mapping[str, Any], before: Optional[Mapping[str, Any]], renames: Mapping[str, str], totals: Totals
) -> Optional[dict[str, Any]]:
    """A sidecar once its files are back, None if it says so already: what we have set is as it was `before`, if that is known;
    whatever others have changed since stays."""
    result = renamed_chunks(document, renames)
    for key in ARCHIVE_KEYS:
        result.pop(key, None)
    copies = any(str(chunk.get("file")).endswith(COPY_SUFFIXES) for chunk in chunk_objects(result))
    if renames and copies:
        original = result.get("original_size")
        result["compressed"], result["compressed_size"] = False, totals.compressed
        result["compression_ratio"] = round(totals.compressed / original, 4) if isinstance(original, int) and original else None
    elif renames and document.get("compression_date") and not copies:
        unknown = {
            "compressed": False,
            "original_size": document.get("original_size"),
            "compressed_size": None,
            "compression_date": None,
        }
        for key in COMPRESSION_KEYS:
            result.pop(key, None) if key not in (before or unknown) else result.update({key: (before or unknown)[key]})
    return None if result == document else result


ARCHIVE_KEYS = ("archived", "archive_location", "archive_date")
COMPRESSION_KEYS = ("compressed", "original_size", "compressed_size", "compression_ratio", "compression_date")


def compressed_metadata(
    document: Mapping[str, Any], renames: Mapping[str, str], totals: Totals, date: str
) -> Optional[dict[str, Any]]:
    """A sidecar once `renames` are in place; None if it says so already. Everything else keeps its value and order.

    `original_size` is set once: at the first change all originals are there to be summed, later only some are.
    """
    result = renamed_chunks(document, renames)
    original = document.get("original_size")
    known = document.get("compression_date") and isinstance(original, int) and original > 0
    total = original if known and isinstance(original, int) else totals.original
    result["compressed"] = totals.complete
    result["original_size"] = total
    result["compressed_size"] = totals.compressed
    result["compression_ratio"] = round(totals.compressed / total, 4) if total else None
    result.setdefault("compression_date", None)
    if result == document and result["compression_date"]:
        return None
    result["compression_date"] = date
    return result


def index_entries(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    entries = document.get("recordings")
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


class IndexText:
    """The index as text, parsed entry by entry: as objects, those of 100,000 recordings take 150 MB where their text has 24, and
    rendering them all takes five times as long as looking at them. What changes nothing keeps every byte. Raises JsonFlaw.

    `wanted` tells what values of an entry are to be, by its id, or None (what an entry lacks says false already); `stale` are
    the ids that say otherwise.
    """

    def __init__(self, text: bytes, wanted: Callable[[str], Optional[dict[str, Any]]]) -> None:
        self.wanted = wanted
        self.length = 0  # entries
        self.size: float = 0  # bytes, of all entries as wanted
        self.stale: dict[str, None] = {}
        self.head: dict[str, Any] = {}  # the members beside the entries
        self.spans: dict[str, tuple[int, int]] = {}  # of their values
        self.edits: list[tuple[int, int, str]] = []  # what becomes of which part of the text, in order
        with json_flaws(text):
            self.text = text.decode("utf-8")
            self.start = skip_blank(self.text, 0)
            end = walk_json(self.text, self.start, "{", self.member)
            if skip_blank(self.text, end) < len(self.text):
                raise json.JSONDecodeError("Extra data", self.text, end)

    def member(self, key: str, at: int) -> int:
        if key in self.spans:
            raise ValueError(KEY_TWICE)
        if key == "recordings" and self.text.startswith("[", at):
            end = walk_json(self.text, at, "[", self.entry)
        else:
            self.head[key], end = JSON.raw_decode(self.text, at)
        self.spans[key] = at, end
        return int(end)

    def entry(self, _: str, at: int) -> int:
        entry, end = JSON.raw_decode(self.text, at)
        if not isinstance(entry, dict):
            return end
        self.length += 1
        id_ = entry.get("id")
        wanted = self.wanted(id_) if isinstance(id_, str) else None
        values = {key: value for key, value in (wanted or {}).items() if entry.get(key, False) != value}
        if values:
            self.stale[str(id_)] = None
            spans: dict[str, tuple[int, int]] = {}

            def note(key: str, at: int) -> int:
                spans[key] = at, JSON.raw_decode(self.text, at)[1]
                return spans[key][1]

            walk_json(self.text, at, "{", note)
            self.set(at, spans, values)
        self.size += finite(values.get("size", entry.get("size"))) or 0
        return end

    def set(self, start: int, spans: Mapping[str, tuple[int, int]], values: Mapping[str, Any]) -> None:
        """Give members of the object at `start` new values; what it lacks comes behind its last, spaced like its first."""
        blank = self.text[start + 1 : skip_blank(self.text, start + 1)] or " "
        last = max((end for _, end in spans.values()), default=start + 1)
        self.edits += [(*spans[key], json.dumps(value)) for key, value in values.items() if key in spans]
        missing = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in values.items() if key not in spans]
        if missing:
            self.edits.append((last, last, ("," + blank if spans else "") + ("," + blank).join(missing)))

    def updated(self, copies_size: int, date: str) -> Optional[bytes]:
        """The index with its entries as wanted and its sums brought up to date; None if it says so already."""
        sums = {"total_size": self.size, "compressed_size": copies_size}
        if not self.stale and all(self.head.get(key) == value for key, value in sums.items()):
            return None
        self.set(self.start, self.spans, {**sums, "last_updated": date})
        result, at = io.BytesIO(), 0
        for begin, end, new in [*sorted(self.edits), (len(self.text), len(self.text), "")]:
            for start in range(at, begin, PROBE_WINDOW):  # in parts, as each is in memory three times over
                result.write(self.text[start : min(start + PROBE_WINDOW, begin)].encode("utf-8"))
            result.write(new.encode("utf-8"))
            at = end
        return result.getvalue()


# ------------------------------------------------------------------------------------------------------ archive


class Archive:
    """A place for recordings that are old: a folder (a mounted disk, a NAS), or an rclone remote, `name:path`."""

    def __init__(self, location: str, library: str, tools: Tools, staging: Staging) -> None:
        self.location, self.library, self.tools, self.staging = location, library, tools, staging
        self.rclone = find_tool("rclone") if is_remote(location) else ""

    def store(self, works: Sequence[Work]) -> None:
        """Copy files there and compare them with what is read back; refuses each that is not proven to be there."""
        if self.rclone:
            self.store_remotely(works)
        for work in works:
            source = os.path.join(self.library, work.source.path)
            try:
                status = os.lstat(source)
                work.owner = stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid
                work.digest = digest_of(source) if self.rclone else self.store_here(work)
            except OSError as error:
                work.refuse(Reason.ARCHIVE, describe(error))
            except Refusal as refusal:
                work.refuse_for(refusal)

    def store_here(self, work: Work) -> str:
        """Copy one file into the folder. Returns its SHA-256; raises Refusal, OSError."""
        if not os.path.isdir(self.location):  # never made: on a disk that is not mounted it would fill another
            raise Refusal(Reason.ARCHIVE, f"the folder {printable(self.location)} is not there; is its disk mounted?")
        source, target = os.path.join(self.library, work.source.path), os.path.join(self.location, work.source.path)
        folder = os.path.dirname(target)
        if not is_inside(folder, self.location) or is_inside(folder, self.library):
            raise Refusal(Reason.ARCHIVE_REFUSED, f"{printable(folder)} leads out of the archive")
        if os.path.lexists(target) and os.path.samestat(os.lstat(target), os.lstat(source)):
            raise Refusal(Reason.ARCHIVE_REFUSED, f"{printable(target)} is the recording itself")
        digest = digest_of(source)
        part = os.path.join(folder, f".{digest[:16]}.part")  # the same in the next run, which clears it away
        try:
            if not os.path.lexists(target):
                os.makedirs(folder, exist_ok=True)
                self.staging.discard(part)
                copy_file(source, part)
                place(part, target)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part)
        for parent in (folder, *map(str, Path(folder).parents)):
            flush_folder(parent)
            if parent == self.location:
                break
        if digest_of(target) != digest:
            raise Refusal(Reason.ARCHIVE_REFUSED, f"{printable(target)} is there already and is another file")
        return digest

    def store_remotely(self, works: Sequence[Work]) -> None:
        """Copy files with rclone, never over another, and have it compare what it reads back."""
        problem = ""
        listing = self.staging.write(b"".join(os.fsencode(work.source.path) + b"\n" for work in works), like=self.library)
        try:
            self.refuse_itself()
            try:
                self.rclone_run(works, "copy", "--ignore-existing", "--no-traverse", "--files-from-raw", listing)
            except Refusal as refusal:
                problem = refusal.detail
                if refusal.reason is Reason.TOOL_HUNG:
                    raise
            found = self.check(works, listing)
            cut = [work for work in works if found.get(work.source.path) == "*" and self.is_cut(work)]
            for work in cut:
                self.rclone_run([work], "copyto", "--ignore-times", path=work.source.path)
            found = self.check(works, listing) if cut else found
        except Refusal as refusal:
            found, problem = {}, refusal.detail
        finally:
            self.staging.discard(listing)
        for work in works:
            mark = found.get(work.source.path)
            if mark == "*":
                work.refuse(Reason.ARCHIVE_REFUSED, f"{work.detail} is there already and is another file")
            elif mark != "=":
                work.refuse(Reason.ARCHIVE if problem else Reason.ARCHIVE_REFUSED, problem or "rclone cannot take its name")

    def refuse_itself(self) -> None:
        """Where the remote is the library under another name, a file is its own copy: what we put here would be seen there."""
        mark, lines = self.staging.path(next(self.staging.counter), "." + os.urandom(8).hex()), list[str]()
        os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        try:
            folder = below(self.location, os.path.relpath(self.staging.folder, self.library))
            self.tools.run([self.rclone, "lsf", *RCLONE, "--", folder], TOOL_GRACE, lines.append)
        except Refusal as refusal:
            if refusal.reason is Reason.TOOL_HUNG:
                raise
        finally:
            self.staging.discard(mark)
        if os.path.basename(mark) in lines:
            raise Refusal(Reason.ARCHIVE, "the archive is the library itself")

    def check(self, works: Sequence[Work], listing: str) -> dict[str, str]:
        """What a comparison of every byte says, by path: `=`, `*` differs, `+` missing, `!` error. Raises Refusal if it hung."""
        lines: list[str] = []
        try:
            words = ("--download", "--size-only=false", "--one-way", "--combined", "-", "--files-from-raw", listing)
            self.rclone_run(works, "check", *words, heard=lines)
        except Refusal as refusal:  # any difference is an error to it
            if refusal.reason is Reason.TOOL_HUNG:
                raise
        return {line[2:]: line[:1] for line in lines}

    def is_cut(self, work: Work) -> bool:
        """Whether what is there is the beginning of ours: an upload that was killed, on a remote that keeps what it got."""
        staged = self.staging.path(work.number, ".there")
        try:
            self.rclone_run([work], "copyto", path=work.source.path, to=staged)
            size = file_size(staged)
            with open(staged, "rb") as there, open(os.path.join(self.library, work.source.path), "rb") as ours:
                parts = iter(lambda: there.read(1 << 20), b"")
                return size < work.source.size and all(part == ours.read(len(part)) for part in parts)
        except (Refusal, OSError):
            return False
        finally:
            self.staging.discard(staged)

    def rclone_run(
        self, works: Sequence[Work], *words: str, path: str = "", to: str = "", heard: Optional[list[str]] = None
    ) -> None:
        """One call of rclone, on the library or one path in it, towards the archive or from there `to` a file."""
        seconds = sum(work.source.size for work in works) / ARCHIVE_BYTES_PER_SECOND
        here, there = os.path.join(self.library, path).rstrip("/"), below(self.location, path)
        ends = [there, to] if to else [here, there]
        on_line = heard.append if heard is not None else None
        self.tools.run([self.rclone, words[0], *RCLONE, *words[1:], "--", *ends], seconds, on_line)


class Mover:
    """Brings what is old enough to its archive: copied, compared, recorded, and only then removed here."""

    def __init__(self, run: Run, committer: Committer, tools: Tools, staging: Staging) -> None:
        self.run, self.report, self.committer, self.stop = run, run.report, committer, tools.stop
        self.tools, self.staging = tools, staging
        self.answers = True  # the archive; else what is left need not be tried in this run

    def work(self, moves: Iterable[list[Work]]) -> None:
        archive: Optional[Archive] = None
        tier = self.run.config.archive_tier
        group: list[list[Work]] = []
        for works in moves:
            assert tier and tier.archive
            archive = archive or Archive(tier.archive, self.run.library, self.tools, self.staging)
            group.append(works)
            files = [work for works in group for work in works]
            if len(files) >= STEP_FILES or sum(work.source.size for work in files) >= STEP_BYTES:
                self.move(archive, group)
                group = []
        if archive and group:
            self.move(archive, group)

    def move(self, archive: Archive, sessions: Sequence[list[Work]]) -> None:
        """A step: several sessions at once, as every call of rclone takes its time."""
        if not self.answers or self.run.must_end(self.stop):
            return
        with contextlib.suppress(Stopped):
            files = [work for works in sessions for work in works if work.reason is None]
            archive.store(files)
            self.answers = not files or any(work.reason is not Reason.ARCHIVE for work in files)
            for works in sessions:
                self.record(works, archive)
            if self.committer.must_settle():
                self.committer.settle()

    def record(self, works: list[Work], archive: Archive) -> None:
        """Of a session all files go, or none."""
        if not any(work.reason for work in works):
            session = works[0].session
            session.location = below(archive.location, session.folder)
            try:
                self.committer.move(session, works)
                return
            except (Refusal, JsonFlaw, OSError) as error:
                for work in works:
                    work.refuse_for(error)
        for work in works:
            if work.reason:
                self.report.recording(work)
                if not work.reason.is_environment:
                    self.run.history.append([work], counts=True)


def copy_file(source: str, target: str) -> None:
    """Copy a regular file with its modification time, and flush it. Raises OSError."""
    made = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)  # never through a link
    with open(made, "wb") as writer, open(open_regular(source), "rb") as reader:
        shutil.copyfileobj(reader, writer, 1 << 20)
        writer.flush()
        status = os.fstat(reader.fileno())
        with contextlib.suppress(PermissionError):  # a NAS has users of its own
            copy_attributes(status, made, times=False)
        os.utime(made, ns=(status.st_atime_ns, status.st_mtime_ns))
        flush(writer.fileno())
        if hasattr(os, "posix_fadvise"):  # what is read back to be compared must come from the disk
            os.posix_fadvise(writer.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def digest_of(path: str) -> str:
    """SHA-256 of a regular file. Raises OSError."""
    return copy_through(open(open_regular(path), "rb"), ())


# ------------------------------------------------------------------------------------------------------ restore


class Restore:
    """Undoes what a run did: a kept original takes its copy's place again, an archived recording comes back."""

    def __init__(self, config: Config, report: Report) -> None:
        self.config, self.report, self.library = config, report, config.recordings_dir
        self.history = History(config)

    def execute(self) -> None:
        require_library(self.config)
        if self.config.dry_run:
            raise UsageError("The configuration says dry_run, and restore changes files: take it out, or name another with -c.")
        with stop_signals() as stop, library_lock(self.library, None):
            self.report.open_log()
            with Staging(self.library, None) as self.staging, Tools(stop) as self.tools:
                self.committer = Committer(self.config, self.report, self.history, self.staging)
                for path in self.config.paths:
                    if stop.signal:
                        break
                    self.restore(path)
            if stop.signal:
                self.report.stopped(stop.signal)

    def restore(self, path: str) -> None:
        """One path of the user's. Whatever goes wrong with it, nothing has been removed."""
        try:
            folder, names = self.locate(path)
            found = {source: copy for name in sorted(names) for source, copy in self.find(folder, name)}
            for session in resolve_sessions(self.library, folder, list(found)):
                self.bring_back(session, {source: found[source] for source in session.sources})
            if not found:
                self.report.say(f"{printable(path)}: nothing to undo, the original is here.")
        except (ServiceError, Refusal, JsonFlaw, OSError, Stopped) as error:
            text = describe(error) if isinstance(error, OSError) else str(error) or "stopped"
            self.report.error(f"{path}: {text}. Nothing was removed.")
            if isinstance(error, ToolMissingError):
                raise

    def locate(self, path: str) -> tuple[str, set[str]]:
        """The folder of a path below the library, and the names of the audio files it stands for. Raises Refusal, OSError."""
        whole = os.path.abspath(path) if os.path.lexists(path) else os.path.join(self.library, path)
        folder = os.path.relpath(os.path.realpath(os.path.dirname(whole)), os.path.realpath(self.library))
        if not is_inside(os.path.dirname(whole), self.library):
            raise Refusal(Reason.NOT_RESTORED, f"it is not in {printable(self.library)}")
        folder, name = "" if folder == os.curdir else folder, os.path.basename(whole)
        sidecars = read_sidecars(self.library, folder)
        for sidecar in sidecars:
            if sidecar.name == name and sidecar.flaw:
                raise Refusal(Reason.SIDECAR, sidecar.flaw)
            if sidecar.name == name:
                names = set(sidecar.chunks) or {sidecar.stem + SOURCE_SUFFIX}
                return folder, names | archived_with(sidecars, names)
        return folder, {name} | archived_with(sidecars, {name})

    def find(self, folder: str, name: str) -> Iterator[tuple[Source, Optional[str]]]:
        """What a name is to come back as, and the copy that then goes; nothing if there is nothing to undo. Raises Refusal."""
        stem = os.path.splitext(name)[0]
        for suffix in dict.fromkeys((*COPY_SUFFIXES, SOURCE_SUFFIX, os.path.splitext(name)[1])):
            path = os.path.join(folder, stem + suffix)
            moved = self.history.moved.get(path)
            if moved and not moved.location and suffix in COPY_SUFFIXES and file_size(os.path.join(self.library, path)):
                return  # it came back from the archive before
            if moved and moved.location:
                if not os.path.lexists(os.path.join(self.library, path)):
                    self.fetch(path, moved)
                yield self.source(path), None
                return
        there = [each for each in os.listdir(os.path.join(self.library, folder)) if os.path.splitext(each)[0] == stem]
        originals = [each for each in there if each.lower().endswith(SOURCE_SUFFIX)]
        copies = [each for each in there if each.endswith(COPY_SUFFIXES) and file_size(os.path.join(self.library, folder, each))]
        if len(originals) > 1 or len(copies) > 1:
            raise Refusal(Reason.NOT_RESTORED, f"several files are called {printable(stem)}")
        if not originals:
            left = "only its copy is left" if copies else "no record here tells where it went: see archive_location in its sidecar"
            raise Refusal(Reason.NOT_RESTORED, f"the original of {printable(name)} is not here, {left}")
        if copies:
            yield self.source(os.path.join(folder, originals[0])), copies[0]

    def source(self, path: str) -> Source:
        return Source(path, identity_of(os.lstat(os.path.join(self.library, path))))

    def fetch(self, path: str, moved: Moved) -> None:
        """Bring one file back from the archive, proven to be what went there; the archive keeps it too."""
        staged = self.staging.path(next(self.staging.counter), ".fetched")
        try:
            if is_remote(moved.location):  # as the history says: what a sidecar says is not followed
                words = [find_tool("rclone"), "copyto", *RCLONE, "--", moved.location, staged]
                self.tools.run(words, moved.size / ARCHIVE_BYTES_PER_SECOND)
            else:
                copy_file(moved.location, staged)
            if file_size(staged) != moved.size or digest_of(staged) != moved.digest:
                raise Refusal(Reason.NOT_RESTORED, f"{printable(moved.location)} is not the file that went there")
            with open(open_regular(staged), "rb") as file:
                os.utime(file.fileno(), ns=(moved.mtime_ns, moved.mtime_ns))
                with contextlib.suppress(PermissionError):
                    os.fchown(file.fileno(), *moved.owner[1:])
                os.fchmod(file.fileno(), moved.owner[0] or 0o644)
                flush(file.fileno())
            place(staged, os.path.join(self.library, path))
        finally:
            self.staging.discard(staged)

    def bring_back(self, session: Session, copies: Mapping[Source, Optional[str]]) -> None:
        """History, sidecars, index, each flushed, and last of all the copies go."""
        if session.flaw:
            raise Refusal(Reason.SIDECAR, session.flaw)
        folder = os.path.join(self.library, session.folder)
        works = []
        for source, copy in copies.items():
            form = Source(copy or source.path, source.identity).format or self.config.target_format
            goes = self.source(os.path.join(session.folder, copy)).identity if copy else None
            works.append(Work(source, session, Target(form, self.config.target_bitrate), "", False, goes, source.size))
        for work in works:
            if work.replaces:
                self.prove(work)
            work.refuse(Reason.RESTORED, "the original is back" if work.replaces else "back from the archive")
        gone = {work.copy_name: work.replaces for work in works if work.replaces}
        session.resting = {work.source.name for work in works if not work.replaces}
        self.history.append([work for work in works if work.replaces], counts=True)  # a run in between must not take it up
        session.returned = {work.copy_name: work.source.name for work in works if work.replaces}
        sidecars = self.committer.fresh_sidecars(session, folder, ())
        self.committer.rewrite_sidecars(session, sidecars, folder)
        flush_folder(folder)
        self.report.found(scan(self.library, -math.inf))
        self.committer.placed_size = -sum(identity.size for identity in gone.values())
        self.committer.update_index()
        self.history.append(works, counts=True, entries=self.committer.entries)
        for sidecar in self.committer.fresh_sidecars(session, folder, ()):
            if gone and not any(chunk.endswith(COPY_SUFFIXES) for chunk in sidecar.chunks):
                with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                    os.unlink(os.path.join(folder, sidecar.name + ".bak"))
        self.committer.renew_sidecars([session])  # a server may have written an older one since
        for copy, identity in gone.items():
            if is_there(os.path.join(folder, copy), identity):
                os.unlink(os.path.join(folder, copy))
        flush_folder(folder)
        self.committer.renew_sidecars([session])
        for work in works:
            self.report.recording(work)

    def prove(self, work: Work) -> None:
        """Before a copy may go: its original is whole, and is the same recording. Raises Refusal, Stopped."""
        original, form = os.path.join(self.library, work.source.path), work.target.form
        other = os.path.join(self.library, work.source.folder, work.copy_name)
        work.probe = probe_file(original, self.tools)
        levels = [self.staging.path(next(self.staging.counter), ".levels") for _ in range(2)]
        arguments = [*input_arguments(original, work.probe.demuxer), *input_arguments(other, form.demuxer)]
        arguments += [word for number in range(2) for word in level_arguments(number, levels[number])]
        try:
            self.tools.run([self.tools.ffmpeg, *QUIET, *arguments], work.probe.timeline)
            compare_audio(levels[0], levels[1], work, self.tools.stop)
        finally:
            for path in levels:
                self.staging.discard(path)


def archived_with(sidecars: Sequence[Sidecar], names: set[str]) -> set[str]:
    """All files of the archived sessions that some names belong to: they come back together, as their sidecars have one word for
    it."""
    found: set[str] = set()
    ids: set[Optional[str]] = set()
    while True:
        stems = {os.path.splitext(name)[0] for name in names | found}
        more = [
            sidecar
            for sidecar in sidecars
            if sidecar.archived
            and (sidecar.id in ids or sidecar.stem in stems or stems & {os.path.splitext(chunk)[0] for chunk in sidecar.chunks})
        ]
        ids = {sidecar.id for sidecar in more if sidecar.id is not None}
        if found == (found := found.union(*(sidecar.chunks for sidecar in more))):
            return found


def command_restore(config: Config, report: Report) -> None:
    Restore(config, report).execute()


# ------------------------------------------------------------------------------------------------------ history


class Moved(NamedTuple):
    """A file that went to the archive (at `location`) or came back (no location): bytes, modification time, SHA-256, and mode,
    user and group, which no remote keeps."""

    location: str
    size: int
    mtime_ns: int
    digest: str
    owner: tuple[int, int, int]

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Moved:
        location, mtime_ns, (mode, user, group) = record.get("location") or "", record["mtime_ns"], record.get("owner") or (0, 0, 0)
        expect(isinstance(location, str) and "\0" not in location and 0 <= mtime_ns < 1 << 63, "a place and a time")
        owner = int(mode), int(user), int(group)
        return cls(location, int(record["original_size"]), mtime_ns, str(record.get("sha256") or ""), owner)


class Remembered(NamedTuple):
    """The last outcome of one file, and how often it failed in a row."""

    action: str
    fingerprint: str
    identity: tuple[int, int]  # bytes, mtime_ns
    attempts: int
    time: float
    copy: Optional[str]
    seconds: float  # of audio
    code: str  # of the reason

    @property
    def is_settled(self) -> bool:
        """Whether it is not to be taken up again, with the same settings."""
        given_up = self.action == Action.FAILED.value and self.attempts >= ATTEMPTS
        return self.action in (Action.KEPT.value, Action.RESTORED.value) or given_up

    def rests(self, fingerprint: str) -> bool:
        """The same, under these settings; what was brought back rests under any."""
        return self.is_settled and (self.action == Action.RESTORED.value or self.fingerprint == fingerprint)


class CopyRecord(NamedTuple):
    """What is on record of one copy."""

    first_size: int  # bytes of the recording as the browser wrote it
    size: int  # bytes of the copy
    seconds: float  # of audio
    date: str  # of its compression, ISO 8601 in UTC
    asked: int = 0  # bit/s that the encoder was asked for, 0 where that is not on record

    @property
    def bitrate(self) -> float:
        """Bits per second, of all its bytes."""
        return self.size * 8 / self.seconds if self.seconds > 0 else 0.0


RUN_COUNTS = ("found", "due", "compressed", "kept", "failed", "saved", "elapsed_seconds", "exit_code")  # what statistics tell
RUNS_REMEMBERED = 30


class History:
    """history.jsonl: every outcome, appended and flushed. Losing it loses no recording, only what not to try again."""

    def __init__(self, config: Config) -> None:
        self.path = os.path.join(config.log_folder, "history.jsonl")
        self.archived: dict[str, CopyRecord] = {}  # by the path the copy had
        self.runs: deque[dict[str, Any]] = deque(maxlen=RUNS_REMEMBERED)
        self._loaded = False
        self._last: dict[str, Remembered] = {}
        self._entries: dict[str, list[Any]] = {}
        self._copies: dict[str, CopyRecord] = {}
        self._moved: dict[str, Moved] = {}

    @property
    def copies(self) -> dict[str, CopyRecord]:
        """Every copy that was made, by path."""
        self.load()
        return self._copies

    @property
    def moved(self) -> dict[str, Moved]:
        """What went to the archive or came back from there or by `restore`, by path."""
        self.load()
        return self._moved

    def came_back(self, source: Source) -> bool:
        return source.path in self.moved and not self.moved[source.path].location

    @property
    def entries(self) -> dict[str, list[Any]]:
        """[folder, compressed, size] that we last wrote to the index, by id."""
        self.load()
        return self._entries

    def load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        torn = (ValueError, KeyError, TypeError, OverflowError, RecursionError)  # such a line is forgotten
        with uncollected(), contextlib.suppress(FileNotFoundError), open(self.path, "rb") as file:
            for line in file:
                with contextlib.suppress(*torn):
                    self.learn(json.loads(line))

    def learn(self, record: Mapping[str, Any]) -> None:
        """Take in one line; of an odd one as much as comes before what is odd. Types of later versions are passed over."""
        if record["type"] == "recording":
            self.learn_outcome(record)
        elif record["type"] == "run":
            expect(month_of(record["date"]), "a date")
            self.runs.append({"date": record["date"], **{key: expect_number(record[key], -math.inf) for key in RUN_COUNTS}})

    def learn_outcome(self, record: Mapping[str, Any]) -> None:
        path, identity = record["path"], (record["original_size"], record["mtime_ns"])
        expect(isinstance(path, str) and all(is_plain_name(part) for part in path.split("/")), "a path in the library")
        slot = path + "/" if record.get("moving") else path  # no file is called so
        last = self._last.get(slot)
        same = last and (last.identity, last.fingerprint) == (identity, record["settings"])
        failed = record["action"] == Action.FAILED.value
        attempts = (last.attempts if last and same else 0) + bool(record["counts"]) if failed else 0
        copy = record["copy"] if is_plain_name(record["copy"]) else None
        action, settings, code = (sys.intern(text) for text in (record["action"], record["settings"], str(record.get("code"))))
        now, seconds = float(record["time"]), float(record["seconds"])
        self._last[slot] = Remembered(action, settings, identity, attempts, now, copy, seconds, code)
        for id_, complete, size in record.get("index", ()):
            self._entries[id_] = [os.path.dirname(path), complete, size]
        where = path[: path.rfind("/") + 1] + (copy or "")
        if copy and record["action"] == Action.COMPRESSED.value:
            first, size = record.get("first_size", record["original_size"]), record["compressed_size"]
            sizes = int(expect_number(first)), int(expect_number(size))
            asked = int(expect_number(record.get("target_bitrate", 0)))
            self._copies[where] = CopyRecord(*sizes, self._last[slot].seconds, str(record["date"]), asked)
            self.archived.pop(where, None)
            self._moved.pop(where, None)
        elif record["action"] == Action.ARCHIVED.value:
            self._moved[path] = Moved.of(record)
            known = self._copies.pop(path, CopyRecord(identity[0], identity[0], 0.0, str(record["date"])))
            self.archived[path] = known
        elif record["action"] == Action.RESTORED.value:
            self._moved[path] = Moved.of(record)
            self._copies.pop(where, None)
            if path in self.archived:
                self._copies[path] = self.archived.pop(path)

    def last(self, source: Source, moving: bool = False) -> Optional[Remembered]:
        """What became of this very file (same size and modification time) the last time it was to be compressed, or `moving` to
        the archive."""
        self.load()
        last = self._last.get(source.path + "/" if moving else source.path)
        return last if last and last.identity == source.identity[2:] else None

    def is_resting(self, path: str) -> bool:
        self.load()
        last = self._last.get(path)
        return last is not None and (last.action == Action.KEPT.value or (last.action == Action.RESTORED.value and not last.copy))

    def append(self, works: Sequence[Work], counts: bool, entries: Optional[Mapping[str, Totals]] = None) -> None:
        """Add one line for each outcome and flush them; `counts` is false where the cause lay outside the recordings."""
        lines = []
        for work in works:
            assert work.reason
            record = {"date": timestamp(), "time": time.time(), **work.outcome(), "mtime_ns": work.source.identity.mtime_ns}
            record["settings"], record["counts"] = work.fingerprint, counts and not work.reason.is_environment
            record["copy"] = work.copy_name if work.proven or (work.reason is Reason.RESTORED and work.replaces) else None
            record["moving"] = work.moving
            record["first_size"] = work.first_size
            record["target_bitrate"] = work.target.bitrate if work.reason is Reason.DONE else 0
            if work.reason is Reason.ARCHIVED:
                record["location"], record["sha256"], record["owner"] = work.detail, work.digest, work.owner
            totals = [(id_, entries[id_]) for id_ in work.session.ids if entries and id_ in entries]
            record["index"] = [[id_, total.complete, total.on_disk] for id_, total in totals]
            lines.append(record)
        self.write(lines)
        if self._loaded:
            for record in lines:
                self.learn(record)

    def write(self, records: Sequence[Mapping[str, Any]]) -> None:
        if not records:
            return
        text = b"".join(json.dumps(record).encode() + b"\n" for record in records)
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # shards on other machines append to the same file
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                text = b"\n" + text  # a line torn by a crash must not swallow ours
            while text:  # a nearly full disk takes a part; the rest then raises
                text = text[os.write(descriptor, text) :]
            flush(descriptor)
        finally:
            os.close(descriptor)

    def note_index(self, status: os.stat_result) -> None:
        with contextlib.suppress(OSError):  # without it, the next run only looks into the index once more
            self.write([{"type": "index", "date": timestamp(), "identity": identity_of(status)[1:]}])

    def note_run(self, summary: Mapping[str, Any]) -> None:
        record = {**summary, "type": "run", "date": timestamp(), "time": time.time()}
        with contextlib.suppress(OSError):  # statistics must not change how a run ends
            self.write([record])

    def knows_index(self, status: os.stat_result) -> bool:
        """Whether the index is still the file we wrote last; told from the end of the history alone. Where more runs than fit
        there have come since, the next one only looks into the index once more."""
        for record in newest_records(self.path, "index", 8192):
            with contextlib.suppress(KeyError, TypeError):
                return tuple(record["identity"]) == identity_of(status)[1:]
        return False


def newest_records(history: str, kind: str, within: int) -> Iterator[dict[str, Any]]:
    """The records of a type in the last `within` bytes of a history, newest first; torn lines are passed over."""
    with contextlib.suppress(OSError), open(history, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - within))
        for line in reversed(file.read().splitlines()):
            with contextlib.suppress(ValueError, RecursionError):
                record = json.loads(line) if kind.encode() in line else None
                if isinstance(record, dict) and record.get("type") == kind:
                    yield record


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Hundreds of thousands of records have no cycles to look for: a sixth of the time, measured."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def expect_number(value: Any, low: float = 0) -> float:
    """A size, count or length on record. Raises ValueError."""
    known = finite(value)
    if known is None or known < low:
        raise ValueError(f"a number from {low} up")
    return known


ISO_DATE = re.compile(r"[0-9]{4}-(0[1-9]|1[0-2])-[0-9]{2}([T ][0-9:.]{5,15}(Z|[+-][0-9:]{4,6})?)?")


def month_of(date: str) -> str:
    """YYYY-MM of an ISO 8601 date, empty if it is none."""
    return date[:7] if ISO_DATE.fullmatch(date) else ""


# ------------------------------------------------------------------------------------------------------- check


class Check:
    """Verifies the compressed library against its sidecars, the index and the history. Changes nothing."""

    def __init__(self, config: Config, report: Report) -> None:
        self.config, self.report, self.library = config, report, config.recordings_dir
        self.history = History(config)
        self.findings = 0
        self.copies: list[str] = []
        self.sums: dict[str, int] = defaultdict(int)  # bytes on disk, by id

    def execute(self) -> None:
        require_library(self.config)
        started = time.monotonic()
        sidecars = 0
        for folder, audio, documents in walk(self.library, self.finding):
            self.copies += [os.path.join(folder, name) for name in audio if name.endswith(COPY_SUFFIXES)]
            sidecars += self.check_sidecars(folder, documents)
        self.check_index()
        self.check_history()
        with stop_signals() as stop:
            if self.copies:
                with Tools(stop) as self.tools:
                    self.decode_all()
            if stop.signal:
                self.report.stopped(stop.signal)
                return
        verdict = f"{self.findings} findings" if self.findings else "all sound"
        seconds = time.monotonic() - started
        self.report.say(f"Checked {len(self.copies)} copies and {sidecars} sidecars in {seconds:.1f} s: {verdict}.")

    def finding(self, path: str, text: str) -> None:
        self.findings += 1
        self.report.exit_code = 1
        if self.config.json:
            self.report.write(json.dumps({"type": "finding", "path": path, "reason": text}), sys.stdout)
        else:
            self.report.say(printable(f"{path}: {text}"))

    def check_sidecars(self, folder: str, names: Iterable[str]) -> int:
        """Every sidecar readable, every file it names there. Returns the number of sidecars."""
        whole = os.path.join(self.library, folder)
        read = (read_sidecar(os.path.join(whole, name)) for name in sorted(names))
        sidecars = [sidecar for sidecar in read if sidecar]
        files: dict[str, set[str]] = defaultdict(set)  # by id
        for sidecar in sidecars:
            if sidecar.flaw:
                self.finding(os.path.join(folder, sidecar.name), f"cannot be read: {sidecar.flaw}")
            for chunk in sidecar.chunks:
                if not sidecar.archived and not os.path.lexists(os.path.join(whole, chunk)):
                    self.finding(os.path.join(folder, sidecar.name), f"names {printable(chunk)}, which is not there")
            if sidecar.id is not None:
                files[sidecar.id].update(os.path.join(whole, chunk) for chunk in sidecar.chunks)
        for id_, paths in files.items():
            kept = sum(kept_size(path) for path in paths if path.endswith(COPY_SUFFIXES))
            self.sums[id_] += kept + sum(file_size(path) for path in paths)
        return len(sidecars)

    def check_index(self) -> None:
        path = os.path.join(self.library, INDEX_NAME)
        if not os.path.lexists(path):
            return
        try:
            document = read_as(parse_json, path)[1]
        except (JsonFlaw, OSError) as error:
            self.finding(INDEX_NAME, f"cannot be read: {error}")
            return
        for entry in index_entries(document):
            size = self.sums.get(entry["id"]) if isinstance(entry.get("id"), str) else None
            if entry.get("compressed") is True and size is not None and entry.get("size") != size:
                self.finding(INDEX_NAME, f"says {entry.get('size')} bytes for {printable(entry['id'])}, on disk are {size}")

    def check_history(self) -> None:
        for copy in sorted(self.history.copies.keys() - self.copies):
            if not kept_size(os.path.join(self.library, copy)):
                self.finding(copy, "is not there, and neither is its original")

    def decode_all(self) -> None:
        paths = sorted(self.copies)
        size = max(1, min(BATCH_FILES, len(paths) // self.config.workers))
        batches = [paths[start : start + size] for start in range(0, len(paths), size)]
        with concurrent.futures.ThreadPoolExecutor(self.config.workers) as pool, contextlib.suppress(Stopped):
            for number, found in enumerate(pool.map(self.decode, batches), 1):
                self.report.show_bar(f"checked {min(number * size, len(paths))}/{len(paths)}")
                for path, text in found:
                    self.finding(path, text)

    def decode(self, paths: Sequence[str]) -> list[tuple[str, str]]:
        """What is wrong with which copy: many in one process; if anything is, one by one, so that each answers for itself."""
        try:
            self.decode_together(paths)
            return []
        except (Refusal, OSError) as error:
            return [(paths[0], str(error))] if len(paths) == 1 else [flaw for path in paths for flaw in self.decode([path])]

    def decode_together(self, paths: Sequence[str]) -> None:
        """Raises Refusal if any copy does not decode in full, or not to the length on record; OSError, Stopped."""
        arguments: list[str] = []
        seconds = 0.0
        for path in paths:
            whole = os.path.join(self.library, path)
            found = probe_file(whole, self.tools)
            known = self.history.copies[path].seconds if path in self.history.copies else 0.0
            slack = next(form.slack for form in FORMATS.values() if path.endswith(form.suffix))
            if known and abs(found.timeline - known) > LENGTH_ON_RECORD_TOLERANCE + 2 * slack:
                raise Refusal(Reason.DAMAGED, f"lasts {found.timeline:.2f} s, {known:.2f} s are on record")
            seconds += found.timeline
            arguments += input_arguments(whole, found.demuxer)
        for number in range(len(paths)):
            arguments += ["-map", f"{number}:a:0", "-f", "null", "-"]
        messages = self.tools.run([self.tools.ffmpeg, *QUIET, *arguments], seconds)
        if messages:
            raise Refusal(Reason.DAMAGED, messages)


def walk(library: str, unreadable: Callable[[str, str], None]) -> Iterator[tuple[str, dict[str, os.stat_result], list[str]]]:
    """Every folder, "" first, with its audio files and the names of its JSON files but the index. Opens no file, follows no link,
    passes over what is hidden. Raises OSError where the library itself cannot be read; tells `unreadable` of a folder in it."""
    folders = [""]
    while folders:
        folder = folders.pop()
        audio: dict[str, os.stat_result] = {}
        documents: list[str] = []
        try:
            with os.scandir(os.path.join(library, folder)) as entries:
                for entry in entries:
                    name, suffix = entry.name, entry.name[-5:].lower()
                    if name[0] == "." or (name == INDEX_NAME and not folder):
                        continue
                    if suffix == SIDECAR_SUFFIX:
                        documents.append(name)
                    elif entry.is_dir(follow_symlinks=False):
                        folders.append(os.path.join(folder, name))
                    elif suffix.endswith(AUDIO_SUFFIXES) and entry.is_file(follow_symlinks=False):
                        with contextlib.suppress(FileNotFoundError):  # a run at work deletes originals
                            audio[name] = entry.stat(follow_symlinks=False)
        except OSError as error:
            if not folder:
                raise
            if not isinstance(error, FileNotFoundError):  # a folder that went while we looked is no problem
                unreadable(folder, f"cannot be read: {error.strerror}")
            continue
        yield folder, audio, documents


def command_check(config: Config, report: Report) -> None:
    Check(config, report).execute()


# -------------------------------------------------------------------------------------------------- statistics

RESULTS = {0: "done", 1: "something failed", 4: "a needed program is missing", 5: "too little disk space"}  # by exit code
LATEST_MONTHS = 24  # shown as bars; the object has them all
API_PATH = "/api/storage-stats"
STATS_KEPT = 5.0  # seconds that an answer serves again, so that a storm of reloads walks the library once
PAGE_RENEWED = 60  # seconds after which a browser loads the page anew
SIDECAR_READ = 1 << 16  # bytes at once; a buffer of a megabyte costs five times the read
DAY_NS = DAY * 10**9
CLIENT_PATIENCE = 10.0  # seconds for a client to send its request or take the answer


class Statistics:
    """Adds up a library in one pass. Takes no lock, opens nothing for writing, follows no symlink. Sizes in bytes.

    What a copy saved is the size of its recording as the browser wrote it, less its own: by the history, else by the sidecars of
    its session, if all its files are there. With its original still beside it, it has saved nothing yet.
    The length of the audio is what the history measured, else what those sidecars say; where neither knows every file, the sum
    of the index's durations if that is more, as either may know but a part.
    What is due is told without reading sidecars: a policy in one of them may still keep a recording, or delay it.
    """

    def __init__(self, config: Config, now: float) -> None:
        self.config, self.library, self.now = config, config.recordings_dir, now
        self.history = History(config)
        self.tally: Counter[str] = Counter()
        self.seconds = 0.0
        self.recorded: Counter[int] = Counter()  # bytes as the browser wrote them, by day of the recording since the epoch
        self.saved: Counter[str] = Counter()  # bytes, by month of the compression
        self.kept: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)  # by action and reason code
        self.problems: list[str] = []

    def gather(self) -> dict[str, Any]:
        """The object of `stats --json`. Raises OSError where the recordings folder or the history cannot be read."""
        with uncollected():
            self.history.load()
            for folder, audio, documents in walk(self.library, self.unreadable):
                self.add_folder(folder, audio, documents)
        for path, record in self.history.archived.items():
            self.saved[month_of(record.date)] += record.first_size - record.size
            self.recorded[self.history.moved[path].mtime_ns // DAY_NS] += record.first_size
        if self.tally["unmeasured"]:
            self.seconds = max(self.seconds, index_seconds(self.library))
        return self.result()

    def unreadable(self, folder: str, problem: str) -> None:
        self.problems.append(f"Folder {printable(folder)} {problem}")

    def add_folder(self, folder: str, audio: Mapping[str, os.stat_result], documents: Iterable[str]) -> None:
        originals = {name: status for name, status in audio.items() if name[-5:].lower() == SOURCE_SUFFIX}
        unknown = {name: status for name, status in audio.items() if name not in originals}
        stems = {name.rpartition(".")[0] for name in unknown}
        kept = {name[:-5] for name in originals}
        prefix = folder + "/" if folder else ""
        for name, status in originals.items():
            self.add_original(Source(prefix + name, identity_of(status)), name[:-5] in stems, unknown.keys())
        self.tally["compressed"] += len(unknown)
        self.tally["compressed_size"] += sum(status.st_size for status in unknown.values())
        for name in [*unknown]:
            record = self.history.copies.get(prefix + name)
            self.history.archived.pop(prefix + name, None)
            if record:
                self.add_copy(Source(prefix + name, identity_of(unknown.pop(name))), record, name.rpartition(".")[0] in kept)
        if unknown:
            sessions = read_sessions(f"{self.library}/{prefix}", documents, unknown.keys())
            self.add_unknown(unknown, sessions, {name: status.st_size for name, status in originals.items()})

    def add_original(self, source: Source, has_copy: bool, copies: Collection[str]) -> None:
        last = self.history.last(source)
        self.tally["originals"] += 1
        self.tally["original_size"] += source.size
        if not has_copy:
            self.measure(1, last.seconds if last else 0.0)
            self.recorded[source.identity.mtime_ns // DAY_NS] += source.size
        if last and last.action in (Action.KEPT.value, Action.FAILED.value):
            self.kept[last.action, last.code].update(count=1, size=source.size)
        if source.age(self.now) < self.config.age_threshold_days:
            self.tally["young"] += 1
        elif not last or not (last.is_settled or (last.action == Action.COMPRESSED.value and last.copy in copies)):
            self.tally.update(due=1, due_size=source.size)

    def add_copy(self, copy: Source, record: CopyRecord, kept: bool) -> None:
        """One that the history knows; `kept`: with its original beside it."""
        self.measure(1, record.seconds)
        self.credit(record.first_size, copy.size, 0 if kept else record.first_size - copy.size, record.date, copy.identity.mtime_ns)
        if copy.age(self.now) >= self.config.first_step:
            target = due_target(self.config, Policy(), copy.age(self.now), copy.format)
            if not is_small(record, target, self.config):  # a tier would make it smaller
                self.tally.update(due=1, due_size=copy.size, step_size=copy.size)
                self.tally["step_saving"] += round(copy.size * (1 - target.bitrate / record.bitrate))

    def add_unknown(self, copies: dict[str, os.stat_result], sessions: Iterable[Told], originals: Mapping[str, int]) -> None:
        """Copies that the history does not know. A session's sidecars are taken at their word only where all its files are there,
        no original beside its copy and no copy known otherwise. `originals`: their bytes."""
        kept = {name[:-5] for name in originals}
        for told in sessions:
            names = told.files - originals.keys()
            first = told.first_size - sum(originals[name] for name in told.files - names)
            if first > 0 and names and names <= copies.keys() and kept.isdisjoint(name.rpartition(".")[0] for name in names):
                found = [copies.pop(name) for name in names]
                size = sum(status.st_size for status in found)
                self.credit(first, size, first - size, told.date, min(status.st_mtime_ns for status in found))
                self.measure(len(names), told.seconds if names == told.files else 0.0)
        for status in copies.values():
            self.tally["unrecorded"] += 1
            self.recorded[status.st_mtime_ns // DAY_NS] += status.st_size
            self.measure(1, 0.0)

    def measure(self, count: int, seconds: float) -> None:
        self.tally["recordings"] += count
        if 0 < seconds < math.inf:
            self.seconds += seconds
        else:
            self.tally["unmeasured"] += count

    def credit(self, first_size: int, size: int, saved: int, date: str, mtime_ns: int) -> None:
        """Count what was compressed on a `date` from `first_size` to `size` bytes."""
        self.tally["first_size"] += first_size
        self.tally["known_size"] += size
        self.saved[month_of(date)] += saved
        self.recorded[mtime_ns // DAY_NS] += first_size

    def result(self) -> dict[str, Any]:
        tally, archived, recorded = self.tally, self.history.archived, Counter[str]()
        for day, size in self.recorded.items():
            recorded[month_of_day(day)] += size
        first, target = tally["first_size"], self.config.target
        ratio = tally["known_size"] / first if first else target.bitrate * target.form.payload / 8 / BYTES_PER_SECOND
        estimate = round((tally["due_size"] - tally["step_size"]) * max(0.0, 1 - ratio)) + tally["step_saving"]
        return {
            "total_size": tally["compressed_size"] + tally["original_size"],
            "compressed_size": tally["compressed_size"],
            "original_size": tally["original_size"],
            "savings": sum(self.saved.values()),
            **{key: tally[key] for key in ("recordings", "compressed", "originals", "young", "unrecorded")},
            "compression_ratio": round(ratio, 4) if first else None,
            "audio_seconds": round(self.seconds, 3),
            "due": {"count": tally["due"], "size": tally["due_size"], "estimated_saving": estimate},
            "archived": {"count": len(archived), "size": sum(record.size for record in archived.values())},
            "kept": [
                {"action": action, "code": code, "reason": general_sentence(code), **counts}
                for (action, code), counts in sorted(self.kept.items(), key=lambda item: (-item[1]["count"], item[0]))
            ],
            "savings_by_month": {month: self.saved[month] for month in sorted(self.saved) if month},
            "recorded_by_month": {month: recorded[month] for month in sorted(recorded) if month},
            "runs": list(self.history.runs),
            "problems": self.problems,
        }


class Told(NamedTuple):
    """What a sidecar says of a compression."""

    session: str
    first_size: int  # bytes of all its files as the browser wrote them
    date: str
    seconds: float
    files: set[str]


def read_sessions(folder: str, names: Iterable[str], copies: Collection[str]) -> Iterable[Told]:
    """What the sidecars of a folder say of compressions, those of one session together; others say nothing."""
    sessions: dict[str, Told] = {}
    for name in sorted(names):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            told = read_told(folder, name, copies)
            sessions.setdefault(told.session, told).files.update(told.files)
    return sessions.values()


def read_told(folder: str, name: str, copies: Collection[str]) -> Told:
    """Fit for 100,000 sidecars: three system calls, and no strict checks, as nothing is written back. Raises what odd ones do."""
    descriptor = os.open(folder + name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        text = os.read(descriptor, SIDECAR_READ)
    finally:
        os.close(descriptor)
    text = read_regular(folder + name) if len(text) == SIDECAR_READ else text
    document = json.loads(text.decode()) if b'"compression_date"' in text else {}
    date, stem = document["compression_date"], name[: -len(SIDECAR_SUFFIX)]
    expect(date and isinstance(date, str), "a date")
    files = {chunk["file"] for chunk in chunk_objects(document) if is_plain_name(chunk.get("file"))}
    files = files or {stem + suffix for suffix in COPY_SUFFIXES if stem + suffix in copies}
    first_size, seconds = int(expect_number(document["original_size"])), finite(document.get("duration")) or 0.0
    return Told(str(document.get("id") or name), first_size, date, seconds, files)


def index_seconds(library: str) -> float:
    """The durations of all entries of the index, 0 where it cannot be read."""
    try:
        entries = index_entries(json.loads(read_regular(os.path.join(library, INDEX_NAME))))
    except (OSError, ValueError, AttributeError, RecursionError):
        return 0.0
    return sum(max(0.0, finite(entry.get("duration")) or 0.0) for entry in entries)


def month_of_day(day: int) -> str:
    """YYYY-MM of a day since the epoch, empty for one that no calendar has."""
    try:
        return datetime.fromtimestamp(day * DAY, timezone.utc).isoformat()[:7]
    except (ValueError, OverflowError, OSError):
        return ""


def general_sentence(code: str) -> str:
    """A reason's sentence without what was found in one file."""
    known = {reason.code: reason.sentence.partition("{}")[0].rstrip(": ") for reason in Reason}
    return known.get(code) or code.encode("ascii", "backslashreplace").decode()


def storage_stats(recordings_dir: str) -> dict[str, Any]:
    """What a library takes and what its compression saved: the object of `stats --json`, described in README.md.

    Threshold, target and log folder come from compression_config.json beside this script, where there is one. Reads only; may be
    called from any thread. Raises OSError where the folder cannot be read, ValueError where the config file cannot be used.
    """
    try:
        config = resolve_config(argparse.Namespace(config=None, recordings_dir=os.fspath(recordings_dir)))
    except UsageError as error:
        raise ValueError(str(error)) from None
    return Statistics(config, time.time()).gather()


def storage_app(recordings_dir: str) -> StatsApp:
    """storage_stats() as a WSGI application for another server to mount."""
    return StatsApp(functools.partial(storage_stats, recordings_dir))


class Row(NamedTuple):
    """One bar of a picture: a row of a table on paper and on the page."""

    label: str
    value: float
    text: str


def facts(stats: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The figures that matter, in words."""
    due, archived, ratio, runs = stats["due"], stats["archived"], stats["compression_ratio"], stats["runs"]
    copies, originals = megabytes(stats["compressed_size"]), megabytes(stats["original_size"])
    saving = f"compressing them would save about {megabytes(due['estimated_saving'])} (an estimate)"
    less = f", copies take {100 * ratio:.0f} % of what was recorded" if ratio else ""
    rows = [
        ("Recordings", f"{stats['recordings']:,} ({stats['compressed']:,} compressed, {stats['young']:,} too young)"),
        ("Audio", f"{stats['audio_seconds'] / 3600:,.1f} hours"),
        ("Size now", f"{megabytes(stats['total_size'])}: {copies} in compressed files, {originals} in originals"),
        ("Saved", megabytes(stats["savings"]) + less),
        ("Due now", f"{due['count']:,} with {megabytes(due['size'])}; {saving}" if due["count"] else "nothing"),
        ("Archived", f"{archived['count']:,} with {megabytes(archived['size'])}, elsewhere" if archived["count"] else ""),
        ("Unrecorded", f"{stats['unrecorded']:,} compressed files that no record tells of" if stats["unrecorded"] else ""),
        ("Last run", "{0.label}, {0.text}".format(run_row(runs[-1])) if runs else "none yet"),
    ]
    return [row for row in rows if row[1]]


def pictures(stats: Mapping[str, Any]) -> dict[str, list[Row]]:
    """The bars of each picture, by its title."""
    months = list(stats["savings_by_month"].items())[-LATEST_MONTHS:]
    failed = {True: "failed: ", False: ""}
    return {
        "Saved by month": [Row(month, saved, megabytes(saved)) for month, saved in months],
        "Kept, and why": [
            Row(failed[each["action"] == Action.FAILED.value] + each["reason"], each["count"],
                f"{each['count']:,} with {megabytes(each['size'])}")
            for each in stats["kept"]
        ],
        "Runs": [run_row(run) for run in reversed(stats["runs"])],
    }  # fmt: skip


def run_row(run: Mapping[str, Any]) -> Row:
    code = int(run["exit_code"])
    result = "stopped" if code > 128 else RESULTS.get(code, f"exit code {code}")
    counts = f"{run['compressed']:,} compressed, {run['kept']:,} kept, {run['failed']:,} failed"
    text = f"{result}: {counts}, {megabytes(run['saved'])} saved in {run['elapsed_seconds']:,.0f} s"
    return Row(run["date"][:16].replace("T", " "), run["saved"], text)


def share(row: Row, rows: Sequence[Row]) -> float:
    """How much of the longest bar a row's bar takes, from 0 to 1."""
    return max(0.0, row.value) / (max(each.value for each in rows) or 1)


def stats_text(stats: Mapping[str, Any]) -> str:
    lines = [f"{label:<12}{text}" for label, text in facts(stats)]
    for title, rows in pictures(stats).items():
        if rows and title != "Runs":  # the last one is told above
            width = max(len(row.label) for row in rows)
            lines += ["", title]
            lines += [f"  {row.label:<{width}}  {'#' * round(20 * share(row, rows)):<20}  {row.text}" for row in rows]
    return "\n".join(lines)


STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#5b6570;--paper:#f6f7f9;--card:#fff;--line:#dfe3e8;--with:#1769c2;
--without:#8b96a3}
@media(prefers-color-scheme:dark){
:root{--ink:#e8ebef;--soft:#a3adb8;--paper:#111418;--card:#1b2027;--line:#323943;--with:#62a8f5;--without:#7f8b98}}
body{margin:0 auto;max-width:60rem;padding:1rem;font:1rem/1.45 system-ui,sans-serif;color:var(--ink);background:var(--paper)}
h1{font-size:1.4rem;margin:.5rem 0 1rem}h2{font-size:1.05rem;margin:0 0 .6rem}p{margin:.3rem 0;color:var(--soft)}
section{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:1rem;margin:0 0 1rem}
table{width:100%;border-collapse:collapse;font-variant-numeric:tabular-nums}th,td,li{overflow-wrap:anywhere}
th,td{text-align:left;vertical-align:top;padding:.3rem .8rem .3rem 0}th[scope=row]{width:7.5rem}
tr+tr>*{border-top:1px solid var(--line)}ul{list-style:none;margin:0;padding:0;font-variant-numeric:tabular-nums}
li{display:flex;flex-wrap:wrap;justify-content:space-between;gap:0 1rem;margin:0 0 .5rem}
svg{display:block;width:100%}.bar{height:.5rem}.bar rect,.area{fill:var(--with)}
.chart{height:12rem;border-bottom:1px solid var(--line)}
.line{fill:none;stroke:var(--without);stroke-width:2;vector-effect:non-scaling-stroke}
.ends{color:var(--soft)}summary{cursor:pointer}
b{display:inline-block;width:.8rem;height:.8rem;border-radius:.2rem;background:var(--with)}.without{background:var(--without)}
"""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>Storage of the recordings</title><style>{style}</style></head><body>
<h1>Storage of the recordings</h1><section><table>{facts}</table></section>
<section><h2>Size over time</h2>{sizes}</section>{pictures}<p>{foot}</p></body></html>
"""
BAR = """<li><strong>{0}</strong><span>{1}</span>
<svg class="bar" viewBox="0 0 100 1" preserveAspectRatio="none" role="img" aria-label="{0}: {1}">
<rect width="{2:.2f}" height="1"/></svg>"""
CHART = """<ul><li class="ends">{top}</ul>
<svg class="chart" viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="{text}">
<path class="area" d="{compressed}V100Z"/><path class="line" d="{without}"/></svg>
<ul><li class="ends"><span>{first}</span><span>{last}</span></ul>
<p><b class="without"></b> without compression, <b></b> with it. {text}</p>
<details><summary>The numbers</summary><table><tr><th>Month<th>Without<th>With{rows}</table></details>"""


def escaped(text: str) -> str:
    return html.escape(printable(text))


def stats_page(stats: Mapping[str, Any]) -> str:
    """The page: complete in itself, without a script, every picture's numbers beside it as text."""
    return PAGE.format(
        style=STYLE,
        facts="".join(f'<tr><th scope="row">{label}<td>{escaped(text)}' for label, text in facts(stats)),
        sizes=size_chart(stats),
        pictures="".join(f"<section><h2>{title}</h2>{bars(rows)}</section>\n" for title, rows in pictures(stats).items()),
        foot=escaped(" ".join([f"As of {timestamp()}.", *stats["problems"]])),
    )


def bars(rows: Sequence[Row]) -> str:
    lines = [BAR.format(escaped(row.label), escaped(row.text), 100 * share(row, rows)) for row in rows]
    return f"<ul>{''.join(lines)}</ul>" if rows else "<p>None yet.</p>"


def size_series(stats: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """(month, bytes without compression, bytes with it), summed up to the end of each month, of what the library has now: a
    recording counts from the month it was recorded in, its saving from the month it was compressed in."""
    recorded, saved = stats["recorded_by_month"], stats["savings_by_month"]
    series, without, less = [], 0, 0
    for month in sorted({*recorded, *saved}):
        without, less = without + recorded.get(month, 0), less + saved.get(month, 0)
        series.append((month, without, max(0, without - less)))
    return series


def size_chart(stats: Mapping[str, Any]) -> str:
    series = size_series(stats)
    if not series:
        return "<p>No recordings yet.</p>"
    (first, _, _), (last, without, compressed) = series[0], series[-1]
    top = max(1, without, *(row[2] for row in series))
    numbers = [int(month[:4]) * 12 + int(month[5:7]) for month, _, _ in series]
    scale = 100 / (numbers[-1] + 1 - numbers[0])

    def steps(sizes: Iterable[int]) -> str:
        """A path that holds each month's size until the next."""
        points = (f"H{scale * (number - numbers[0]):.2f}V{100 - 100 * size / top:.2f}" for number, size in zip(numbers, sizes))
        return f"M0,100{''.join(points)}H100"

    rows = [f'<tr><th scope="row">{month}<td>{megabytes(size)}<td>{megabytes(less)}' for month, size, less in series]
    text = f"{first} to {last}: {megabytes(without)} without compression, {megabytes(compressed)} with it."
    return CHART.format(
        top=megabytes(top), text=text, first=first, last=last, rows="".join(rows),
        without=steps(row[1] for row in series), compressed=steps(row[2] for row in series),
    )  # fmt: skip


class StatsApp:
    """A read-only WSGI application: the page at `/`, the object at `/api/storage-stats`.

    `gather` returns the object, or raises OSError or ValueError. With `host` set, a request must ask for that name, for localhost
    or for an address: a page elsewhere whose name is made to point here (DNS rebinding) gets nothing.
    """

    def __init__(self, gather: Callable[[], dict[str, Any]], host: Optional[str] = None) -> None:
        self.gather, self.host = gather, host
        self.lock = threading.Lock()  # one walk at a time; the others wait for its answer
        self.kept: dict[str, Any] = {}
        self.kept_until = -math.inf

    def __call__(self, environ: Mapping[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        status, kind, text = self.answer(environ)
        body = text.encode()
        start_response(status, [("Content-Type", f"{kind}; charset=utf-8"), ("Content-Length", str(len(body))), *HEADERS])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def answer(self, environ: Mapping[str, Any]) -> tuple[str, str, str]:
        """Status, type and body."""
        path = environ.get("PATH_INFO", "")
        if self.host is not None and not is_own_host(environ.get("HTTP_HOST", ""), self.host):
            return "403 Forbidden", "text/plain", "Ask for this server by its address, or start it with --host and this name.\n"
        if path not in ("", "/", API_PATH):
            return "404 Not Found", "text/plain", f"There is / and {API_PATH}.\n"
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return "405 Method Not Allowed", "text/plain", "This can only be read.\n"
        try:
            stats = self.current()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", "the configuration cannot be used")
            return "503 Service Unavailable", "text/plain", f"No statistics: {reason}.\n"
        if path == API_PATH:
            return "200 OK", "application/json", json.dumps(stats)
        return "200 OK", "text/html", stats_page(stats)

    def current(self) -> dict[str, Any]:
        with self.lock:
            if time.monotonic() > self.kept_until:
                self.kept = self.gather()
                self.kept_until = time.monotonic() + STATS_KEPT
            return self.kept


HEADERS = [
    # The page's own style and nothing else: whatever a name on it may hold, nothing on it can run or load.
    ("Content-Security-Policy", "default-src 'none'; base-uri 'none'; frame-ancestors 'none'; style-src 'sha256-"
                                + base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode() + "'"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cache-Control", "no-store"),
    ("Allow", "GET, HEAD"),
    ("Refresh", str(PAGE_RENEWED)),
]  # fmt: skip


def is_own_host(header: str, host: str) -> bool:
    """Whether a Host header names us: an address cannot be made to point elsewhere, a name can."""
    own = rf"(localhost|{re.escape(host)}|\d+\.\d+\.\d+\.\d+|\[[\da-f:.]+\])(:\d+)?"
    return re.fullmatch(own, header, re.IGNORECASE) is not None


def listen(config: Config, report: Report, app: StatsApp) -> Any:
    """A server that answers every client in a thread of its own. Raises ServiceError where the port cannot be had."""
    import socketserver  # noqa: PLC0415 - these two take 18 ms to load, which no nightly run needs
    from wsgiref import simple_server  # noqa: PLC0415

    class Handler(simple_server.WSGIRequestHandler):
        timeout = CLIENT_PATIENCE

        def log_message(self, format: str, *words: Any) -> None:
            report.log.info(printable(f"{self.client_address[0]} {format % words}"))

    class Server(socketserver.ThreadingMixIn, simple_server.WSGIServer):
        address_family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        daemon_threads = True  # a slow client does not hold up the end
        timeout = 0.5  # seconds between looks at the signals

        def server_bind(self) -> None:
            """Without the name look-up of the one inherited, which takes seconds where no name server answers."""
            socketserver.TCPServer.server_bind(self)
            self.server_name, self.server_port = config.host, self.server_address[1]
            self.setup_environ()

        def handle_error(self, *_: Any) -> None:
            report.log.info("A client went away.")

    try:
        server = Server((config.host, config.port), Handler)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", "no such host")
        raise ServiceError(f"Cannot listen on {config.host} port {config.port}: {reason}. Choose with --host and --port.") from None
    server.set_app(app)
    return server


def command_stats(config: Config, report: Report) -> None:
    if config.html and config.json:
        raise UsageError("--json and --html are two ways to tell the same; choose one.")
    require_library(config)
    stats = Statistics(config, time.time()).gather()
    if config.html:
        Path(config.html).write_text(stats_page(stats), encoding="utf-8")
        report.say(f"Written: {printable(config.html)}")
    elif config.json:
        report.write(json.dumps(stats), sys.stdout)
    else:
        report.say(stats_text(stats))
    for problem in stats["problems"]:
        report.error(problem)


def command_serve(config: Config, report: Report) -> None:
    require_library(config)
    app = StatsApp(lambda: Statistics(config, time.time()).gather(), config.host)
    with stop_signals() as stop, listen(config, report, app) as server:
        host = f"[{config.host}]" if ":" in config.host else config.host
        report.say(f"Statistics at http://{host}:{server.server_port}/ and {API_PATH}; Ctrl-C ends it.")
        while not stop.signal:
            server.handle_request()
    report.exit_code = 128 + stop.signal
    report.say(f"Ended by {signal.Signals(stop.signal).name}.")


# -------------------------------------------------------------------------------------------------------- tools


@dataclasses.dataclass
class Stop:
    """Set by a signal; everything that may take long looks at it."""

    requested: bool = False
    signal: int = 0


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """While inside, SIGINT, SIGTERM and SIGHUP only set a flag: no state of the library depends on when they come."""
    stop = Stop()

    def note(number: int, frame: object) -> None:
        stop.signal = stop.signal or number
        stop.requested = True

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():  # once stopped we are on our way out, however often it is pressed
            signal.signal(number, signal.SIG_IGN if stop.signal else handler)


Process = subprocess.Popen[bytes]
Listener = Optional[Callable[[str], None]]  # to a tool's output, line by line


class Tools:
    """The one place that starts a process. Each gets a process group of its own, a deadline in proportion to its work, and low
    priority; a watchdog outlives us by a moment to end them all, whatever ended us."""

    def __init__(self, stop: Stop) -> None:
        self.stop = stop

    def __enter__(self) -> Tools:
        self.ffmpeg = find_tool("ffmpeg")
        ionice = shutil.which("ionice", path=tool_path())
        if ionice:  # the idle class, for us and all that we start; some containers refuse it
            subprocess.run([ionice, "-c", "3", "-p", str(os.getpid())], capture_output=True, check=False)
        self.watcher, self.watchdog = start_watchdog()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.watchdog)
        os.waitpid(self.watcher, 0)

    def require(self, form: Format) -> None:
        """Raise ToolMissingError unless ffmpeg has the encoder. A hanging or crashing ffmpeg is told at the recordings."""
        lines: list[str] = []
        with contextlib.suppress(Refusal):
            self.run([self.ffmpeg, "-hide_banner", "-v", "error", "-encoders"], 0, lines.append)
        encoders = {line.split()[1] for line in lines if len(line.split()) > 1}
        if encoders and form.encoder not in encoders:
            raise ToolMissingError(f"{self.ffmpeg} has no encoder {form.encoder}. {INSTALL_FFMPEG}")

    def run(self, command: Sequence[str], seconds: float, on_line: Listener = None) -> str:
        """Run a command that works on `seconds` of audio, its output line by line to `on_line`. Returns what it says of the
        recordings, empty if nothing. Raises Refusal if it failed or hung, Stopped if the run is to end."""
        with self.starter() as start:
            process = start(command, subprocess.PIPE if on_line else subprocess.DEVNULL)
            close(process.stdin)
            return self.listen([process], seconds, on_line)

    def pipe(self, commands: Sequence[Sequence[str]], seconds: float, copy: str) -> str:
        """Run three commands at once: the output of the first goes into the second, that of the second into the file `copy` and
        the third. Returns the SHA-256 of what the third was given. Raises as `run` does, and Refusal for any message."""
        with concurrent.futures.ThreadPoolExecutor(1) as pool, self.starter() as start:
            third = start(commands[2], subprocess.DEVNULL)
            second = start(commands[1], subprocess.PIPE)
            first = start(commands[0], second.stdin)
            close(first.stdin)
            close(second.stdin)
            assert second.stdout and third.stdin
            file = os.fdopen(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")
            digest = pool.submit(copy_through, second.stdout, (third.stdin, file))
            messages = self.listen([first, second, third], seconds)
            if messages:
                raise Refusal(Reason.DAMAGED, messages)
            return digest.result()

    @contextlib.contextmanager
    def starter(self) -> Iterator[Callable[[Sequence[str], Any], Process]]:
        """What starts a process with its input open; whatever is left of those started is killed at the end."""
        processes: list[Process] = []

        def start(command: Sequence[str], stdout: Any) -> Process:
            process = subprocess.Popen(
                # The shell waits for a word, so that nothing starts that the watchdog has not heard of.
                ["/bin/sh", "-c", 'read -r go && exec "$@"', "sh", *command],
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=subprocess.PIPE,
                start_new_session=True,
                cwd="/",
                env={**os.environ, "LC_ALL": "C", "AV_LOG_FORCE_NOCOLOR": "1"},
            )
            processes.append(process)
            os.write(self.watchdog, b"+%d\n" % process.pid)
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, process.pid, LOW_PRIORITY)
            with contextlib.suppress(OSError):  # Linux may weigh sessions instead of processes, and this one has its own
                Path(f"/proc/{process.pid}/autogroup").write_text(str(LOW_PRIORITY))
            with contextlib.suppress(BrokenPipeError):
                assert process.stdin
                process.stdin.write(b"\n")
                process.stdin.flush()
            return process

        try:
            yield start
        finally:
            for process in processes:
                end_group(process)
                os.write(self.watchdog, b"-%d\n" % process.pid)

    def listen(self, processes: Sequence[Process], seconds: float, on_line: Listener = None) -> str:
        messages = Conversation(processes, self.stop, TOOL_GRACE + seconds * TOOL_PACE, on_line).read()
        code = next((process.returncode for process in processes if process.returncode), 0)
        for reason, words in FAULTS_OF_THE_DISK.items():
            if any(word in messages for word in words):
                raise Refusal(reason, messages)
        if code and "Unknown encoder" in messages:
            raise ToolMissingError(f"{self.ffmpeg}: {messages}. {INSTALL_FFMPEG}")
        if code in (-signal.SIGKILL, -signal.SIGTERM):  # someone did that; a crash over a recording has other signals
            raise Refusal(Reason.TOOL_KILLED, f"by signal {-code}")
        if code:
            raise Refusal(Reason.TOOL_FAILED, f"exit code {code}, {messages or 'without a message'}")
        return messages


class Conversation:
    """Listens to processes until they end, say too much, takes too long, or the run is to stop."""

    def __init__(self, processes: Sequence[Process], stop: Stop, limit: float, on_line: Listener) -> None:
        self.processes, self.stop, self.limit, self.on_line = processes, stop, limit, on_line
        self.deadline = time.monotonic() + limit
        self.messages = bytearray()
        self.partial = b""

    def read(self) -> str:
        """The end of its messages, for people. Raises Refusal or Stopped."""
        streams: dict[int, Callable[[bytes], None]]
        streams = {process.stderr.fileno(): self.messages.extend for process in self.processes if process.stderr}
        if self.on_line:
            streams |= {process.stdout.fileno(): self.hear_output for process in self.processes if process.stdout}
        with selectors.DefaultSelector() as selector:
            for descriptor in streams:
                selector.register(descriptor, selectors.EVENT_READ)
            while selector.get_map():
                events = selector.select(0.2)
                for key, _ in events:
                    data = os.read(key.fd, 1 << 16)
                    streams[key.fd](data)
                    if not data:
                        selector.unregister(key.fd)
                self.check()
                if not events and not self.at_work():
                    break  # a grandchild may hold the pipe for as long as it likes
        while working := self.at_work():
            self.check()
            with contextlib.suppress(subprocess.TimeoutExpired):
                working[0].wait(0.2)
        return said(self.messages) or ("" if not self.failed() else tail(self.messages))

    def failed(self) -> bool:
        return any(process.returncode for process in self.processes)

    def at_work(self) -> list[Process]:
        return [process for process in self.processes if process.poll() is None]

    def check(self) -> None:
        if self.stop.requested:
            raise Stopped
        if time.monotonic() > self.deadline:
            raise Refusal(Reason.TOOL_HUNG, f"no end after {self.limit:.0f} s")
        if len(self.messages) > MAX_TOOL_OUTPUT:
            raise Refusal(Reason.DAMAGED, f"ffmpeg complains without end: {tail(self.messages)}")

    def hear_output(self, data: bytes) -> None:
        assert self.on_line
        *lines, self.partial = (self.partial + data).split(b"\n")
        for line in lines:
            self.on_line(line.decode("utf-8", "replace"))


# What strerror says of a disk, whatever the exit code: no word on a recording.
FAULTS_OF_THE_DISK = {
    Reason.NO_SPACE: ("No space left on device", "Disk quota exceeded"),
    Reason.INPUT_OUTPUT: (
        "Input/output error",
        "Stale file handle",
        "Transport endpoint is not connected",
        "Read-only file system",
    ),
}
# Lines that ffmpeg itself has tagged; those of a wrapper or of the dynamic linker are no word on a recording.
TAGGED = re.compile(rb"^(?:\[[^\]\n]*\] )*\[(?:warning|error|fatal|panic)\] .*", re.MULTILINE)
SAID_OF_SOUND_FILES = re.compile(
    rb"Guessed Channel Layout"  # every WAV file without a channel mask, PCM in WebM
    rb"|Estimating duration from bitrate"  # what no header says; packets are counted
    rb"|malformed location metadata"  # a tag that M4A has no place for
    rb"|Task finished with error code"  # ffmpeg 9, behind what it said of the cause
    rb"|Too many bits \S+ > \d+ per frame requested"  # AAC below 16 kHz: the encoder takes what it may
    rb"|timestamp discontinuity"  # ffmpeg 9, of an Ogg gap beyond ten seconds; stamps play no part
    rb"|\d+ buffers queued in"  # a long gap is a long frame
    rb"|Thread message queue blocking"  # a decoder that waits for the encoder behind the pipe
    # Of files that end oddly, whose packets are counted; of others -xerror makes these an exit code.
    rb"|Ignoring maximum wav data size|Packet corrupt|corrupt input packet|Packet processing failed|Error during demuxing"
    rb"|\[error\] file:.*: Invalid data found when processing input"
    rb"|Unknown-sized element at \S+ inside parent with finite size"  # mended by fix-webm-duration; walked byte by byte
)


def said(messages: bytearray) -> str:
    """What ffmpeg says of the recordings: its own warnings and errors, but for those that it has for sound files too."""
    lines = (match[0] for match in TAGGED.finditer(messages))
    return tail(bytearray(b"\n".join(line for line in lines if not SAID_OF_SOUND_FILES.search(line))))


def tail(messages: bytearray) -> str:
    """The last few messages of a tool on one printable line, without the addresses it prints."""
    text = re.sub(r"\[([^\]@]*) @ 0x[0-9a-f]+\] ", r"[\1] ", bytes(messages[-2000:]).decode("utf-8", "replace"))
    text = re.sub(r"\[(?:info|warning|error|fatal|panic)\] ", "", text)
    return printable("; ".join(line.strip() for line in text.splitlines()[-3:] if line.strip()))


def end_group(process: Process) -> None:
    """Kill whatever is left of a tool and its children, and reap it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        close(stream)


def close(stream: Optional[IO[bytes]]) -> None:
    with contextlib.suppress(BrokenPipeError):
        if stream:
            stream.close()


def copy_through(source: IO[bytes], targets: Sequence[IO[bytes]]) -> str:
    """Copy a stream to its end into all targets and close those; returns its SHA-256. Raises OSError."""
    digest = hashlib.sha256()
    try:
        while data := os.read(source.fileno(), 1 << 16):
            digest.update(data)
            for target in targets:
                target.write(data)
    finally:
        for stream in (source, *targets):  # so that no one waits for us, whatever went wrong
            close(stream)
    return digest.hexdigest()


def start_watchdog() -> tuple[int, int]:
    """Fork a process that hears of every tool's process group, and kills those still there when we are gone: at the end of the
    pipe, which comes however we ended. Returns its process number and the pipe to tell it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(reader)
        return child, writer
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.dup2(reader, 0)
        os.closerange(1, 4096)
        watch(0)
    finally:
        os._exit(0)


def watch(reader: int) -> None:
    groups: set[int] = set()
    text = b""
    while data := os.read(reader, 4096):
        *lines, text = (text + data).split(b"\n")
        for line in lines:
            (groups.add if line[:1] == b"+" else groups.discard)(int(line[1:]))
    for group in groups:
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)


INSTALL = (
    "Install it: 'sudo apt-get install {name}' (Debian, Ubuntu), 'sudo dnf install {name}' (Fedora), 'brew install {name}' (macOS)"
    ". 'compression_service.py doctor' shows what is found."
)
INSTALL_FFMPEG = INSTALL.format(name="ffmpeg")


def run_for_user(command: str, text: str, folder: str, stop: Stop) -> str:
    """Run a shell command of the user's in a folder, with `text` on its stdin. Returns why it failed, empty if it did not."""
    before, deadline = stop.signal, time.monotonic() + NOTIFY_SECONDS
    with tempfile.TemporaryFile() as messages:  # a pipe would be held open by what it leaves in the background
        shell = ["/bin/sh", "-c", command]
        process = subprocess.Popen(
            shell, stdin=subprocess.PIPE, stdout=messages, stderr=messages, start_new_session=True, cwd=folder
        )
        assert process.stdin
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(text.encode())  # less than a pipe holds, so this never waits
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
            if os.fstat(messages.fileno()).st_size > MAX_TOOL_OUTPUT:
                end_group(process)
                return "it writes without end"
            if time.monotonic() > deadline or stop.signal != before:
                end_group(process)
                return f"no end after {NOTIFY_SECONDS:.0f} s" if stop.signal == before else "the run was stopped meanwhile"
        messages.seek(0)
        return f"exit code {process.returncode}, {tail(bytearray(messages.read(1 << 16)))}" if process.returncode else ""


def tool_path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), *TOOL_FOLDERS])


def find_tool(name: str) -> str:
    """Its absolute path, from PATH or from where package managers put it. Raises ToolMissingError."""
    found = shutil.which(name, path=tool_path())
    if not found:
        raise ToolMissingError(f"{name} is not installed. {INSTALL.format(name=name)}")
    return os.path.abspath(found)


def installed_schedules() -> list[str]:
    """Where an entry for this program seems to be: the user's crontab, launchd's and systemd's folders. Asks and reads only."""
    name, found = os.path.basename(__file__), []
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        listing = subprocess.run(["crontab", "-l"], capture_output=True, timeout=5, check=False).stdout.decode("utf-8", "replace")
        found += ["cron"] if any(name in line and line.lstrip()[:1] != "#" for line in listing.splitlines()) else []
    for kind, pattern in (("launchd", "Library/LaunchAgents/*.plist"), ("systemd", ".config/systemd/user/*.service")):
        with contextlib.suppress(OSError, RuntimeError):  # no home folder, or one that we may not read
            found += [kind] if any(name.encode() in path.read_bytes() for path in Path.home().glob(pattern)) else []
    return found


def allowed_cores() -> int:
    """Cores this process may use: its affinity, and the quota of its control group (version 2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, math.ceil(int(quota) / int(period))))
    return cores


# -------------------------------------------------------------------------------------------------------- files


def describe(error: OSError) -> str:
    """What happened and to which file, for people."""
    names = ", ".join(printable(os.fsdecode(name)) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes)))
    return f"{error.strerror or error}" + (f" ({names})" if names else "")


def open_regular(path: str) -> int:
    """A descriptor to read a regular file by; follows no symlink and never waits for a FIFO. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(kind, os.strerror(kind) if kind == errno.EISDIR else "Not a regular file", path)
    return descriptor


def read_regular(path: str) -> bytes:
    with open(open_regular(path), "rb") as file:
        if os.fstat(file.fileno()).st_size > LARGEST_JSON:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
        return file.read()


def file_size(path: str) -> int:
    """Bytes, 0 where there is no such regular file."""
    try:
        status = os.lstat(path)
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def flush(descriptor: int) -> None:
    """To the disk itself. Never retried: after an error the kernel has marked the pages clean."""
    full = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync alone stops at the drive's cache
    if full is not None:
        try:
            fcntl.fcntl(descriptor, full)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EINVAL, errno.ENOTTY):
                raise
    os.fsync(descriptor)


def flush_folder(path: str) -> None:
    """So that the names in it survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flush(descriptor)
    finally:
        os.close(descriptor)


def copy_attributes(status: os.stat_result, descriptor: int, times: bool) -> None:
    """Give an open file the owner, the mode and with `times` the modification time of another."""
    own = os.fstat(descriptor)
    if (own.st_uid, own.st_gid) != (status.st_uid, status.st_gid):
        os.fchown(descriptor, status.st_uid, status.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
    if times:
        os.utime(descriptor, ns=(status.st_atime_ns, status.st_mtime_ns))


NO_FOLLOW: dict[str, bool] = {"follow_symlinks": False} if os.link in os.supports_follow_symlinks else {}
LIBC = ctypes.CDLL(None, use_errno=True)
RENAME_NOREPLACE, RENAME_EXCHANGE = (4, 2) if sys.platform == "darwin" else (1, 2)


def rename_with(flag: int, source: str, target: str) -> bool:
    """Rename without replacing, or exchange two names, atomically. False where the system or file system cannot."""
    a, b = os.fsencode(source), os.fsencode(target)
    try:
        if sys.platform == "darwin":
            result = LIBC.renamex_np(a, b, flag)
        else:
            result = LIBC.renameat2(-100, a, -100, b, flag)  # AT_FDCWD
    except AttributeError:
        return False
    if result == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), source, None, target)


def place(staged: str, final: str) -> None:
    """Give a staged file its final name, never over another. Raises FileExistsError, OSError."""
    try:
        os.link(staged, final, **NO_FOLLOW)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        if not rename_with(RENAME_NOREPLACE, staged, final):  # exFAT and some network shares have no links
            raise


def staging_name(shard: Optional[tuple[int, int]]) -> str:
    return "{}-of-{}".format(*shard) if shard else "whole"


class Staging:
    """A private folder inside the library for everything unfinished. What an earlier run left in it is removed."""

    def __init__(self, library: str, shard: Optional[tuple[int, int]]) -> None:
        self.parent = os.path.join(library, STAGING_NAME)
        self.folder = os.path.join(self.parent, staging_name(shard))
        self.counter = itertools.count()
        self.shared = shard is not None
        self.made = self.shared

    def __enter__(self) -> Staging:
        if not self.shared:  # no shard is at work: what any of them left is a leftover too
            shutil.rmtree(self.parent, ignore_errors=True)
        elif os.path.isdir(self.folder):
            for name in os.listdir(self.folder):
                os.unlink(os.path.join(self.folder, name))
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # not there, or another shard's work is in it
            os.rmdir(self.parent)

    def path(self, number: int, suffix: str) -> str:
        """Where a working file of a kind goes; the same each time it is asked for."""
        if not self.made:
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            self.made = True
        return os.path.join(self.folder, f"{number}{suffix}")

    def discard(self, path: Optional[str]) -> None:
        if path:
            with contextlib.suppress(OSError):
                os.unlink(path)

    def write(self, text: bytes, like: str) -> str:
        """A flushed file of this content with another's mode and owner; returns its path. Raises OSError."""
        path = self.path(next(self.counter), SIDECAR_SUFFIX)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(text)
            copy_attributes(os.lstat(like), descriptor, times=False)
            flush(descriptor)
        except BaseException:
            self.discard(path)
            raise
        finally:
            os.close(descriptor)
        return path


# --------------------------------------------------------------------------------------------------- json files


def parse_json(text: bytes) -> dict[str, Any]:
    """The object a JSON document holds, if it can be written back with every value as it is. Raises JsonFlaw."""
    with json_flaws(text):
        document: Any = JSON.decode(text.decode("utf-8"))
        if b"\\u" in text:  # nothing else can bring in a lone surrogate
            json.dumps(document, ensure_ascii=False).encode("utf-8")
    if not isinstance(document, dict):
        raise JsonFlaw("it is not a JSON object")
    return document


@contextlib.contextmanager
def json_flaws(text: bytes) -> Iterator[None]:
    """What may be wrong with a document, as a JsonFlaw."""
    try:
        yield
    except UnicodeEncodeError:
        raise JsonFlaw("it has a lone surrogate, which cannot be written back") from None
    except UnicodeDecodeError:
        raise JsonFlaw("it is not UTF-8") from None
    except RecursionError:
        raise JsonFlaw("it is nested too deeply") from None
    except ValueError as error:
        raise JsonFlaw(f"{error}" if text.strip() else "it is empty") from None


def skip_blank(text: str, at: int) -> int:
    match = BLANK.match(text, at)
    return match.end() if match else at


def walk_json(text: str, at: int, opening: str, read: Callable[[str, int], int]) -> int:
    """Pass through the object or list at an offset: `read` gets the key (of an object's member) and the offset of each value, and
    returns its end. Returns the end of the whole. Raises ValueError."""
    if not text.startswith(opening, at):
        raise json.JSONDecodeError(f"Expecting {opening}", text, at)
    closing = "}" if opening == "{" else "]"
    at = skip_blank(text, at + 1)
    more, key = text[at : at + 1] != closing, ""
    while more:
        if opening == "{":
            key, at = JSON.raw_decode(text, at)
            at = skip_blank(text, at)
            if not isinstance(key, str) or not text.startswith(":", at):
                raise json.JSONDecodeError("Expecting a key and a colon", text, at)
            at = skip_blank(text, at + 1)
        at = skip_blank(text, read(key, at))
        more = text.startswith(",", at)
        at = skip_blank(text, at + 1) if more else at
    if not text.startswith(closing, at):
        raise json.JSONDecodeError(f"Expecting , or {closing}", text, at)
    return at + 1


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError(KEY_TWICE)
    return result


def refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it has {name}, which is not JSON")


def exact_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or (len(text) > 15 and Decimal(text) != Decimal(repr(value))):
        raise ValueError(f"it has the number {text[:40]}, which cannot be written back exactly")
    return value


def exact_int(text: str) -> int:
    if text == "-0":
        raise ValueError("it has the number -0, which cannot be written back exactly")
    return int(text)


KEY_TWICE = "it has a key twice, of which one would be lost"
JSON = json.JSONDecoder(object_pairs_hook=unique_keys, parse_constant=refuse_constant, parse_float=exact_float, parse_int=exact_int)
BLANK = re.compile(r"[ \t\r\n]*")


def render_json(document: Mapping[str, Any], original: bytes) -> bytes:
    """A document in the style of the text it came from: indentation, separators, escapes, last newline."""
    text = original.decode("utf-8")
    indent = re.match(r"\s*\{\r?\n([ \t]+)", text)
    colon = re.search(r'"(\s*:\s*)', text)
    comma = "," if indent or re.search(r'[\]}"\w],(?=["{\[\d])', text) else ", "
    separators = (comma, colon[1] if colon else ": ")
    escaped = text.isascii() and "\\u" in text
    rendered = json.dumps(document, ensure_ascii=escaped, indent=indent[1] if indent else None, separators=separators)
    return (rendered + text[len(text.rstrip()) :]).encode("utf-8")


def read_as(parse: Callable[[bytes], T], path: str) -> tuple[bytes, T]:
    """A JSON file that no other program is in the middle of writing: its bytes, and what `parse` makes of them. Raises JsonFlaw,
    OSError."""
    deadline = time.monotonic() + HALF_WRITTEN_WAIT
    while True:
        text = read_regular(path)
        try:
            return text, parse(text)
        except JsonFlaw:
            written = time.time() - os.lstat(path).st_mtime
            if time.monotonic() > deadline or not -60 < written < 2 * HALF_WRITTEN_WAIT:
                raise
            time.sleep(0.01)


def replace_json(
    path: str, edit: Callable[[dict[str, Any]], Optional[dict[str, Any]]], staging: Staging, backup: bool = False
) -> Identity:
    """Rewrite a JSON file through `edit` of what it holds, in its own style; else as `replace_text`."""

    def rewrite(text: bytes) -> Optional[bytes]:
        changed = edit(parse_json(text))
        with json_flaws(text):
            return None if changed is None else render_json(changed, text)

    return replace_text(path, rewrite, staging, backup)


def replace_text(path: str, rewrite: Callable[[bytes], Optional[bytes]], staging: Staging, backup: bool = False) -> Identity:
    """Rewrite a JSON file so that no other program's write to it is lost; returns what it then is. `rewrite` returns None where
    nothing is to be changed; flushing the folder is left to the caller. Raises JsonFlaw, OSError.

    The bytes are compared just before our file takes the name; the file it displaces is looked at just after. If another
    program got in between, its version is edited and put in place instead.
    """
    displaced: Optional[tuple[bytes, Optional[bytes]]] = None  # another program's version, put aside by ours
    expected = b""
    for _ in range(JSON_ATTEMPTS):
        before = identity_of(os.lstat(path))
        text, changed = displaced or read_as(rewrite, path)
        if changed is None and not displaced:
            return before
        written = text if changed is None else changed
        if backup and not displaced:
            keep_backup(path, text, staging)
        staged = staging.write(written, like=path)
        if not displaced:
            expected = text
            if read_regular(path) != expected:
                staging.discard(staged)
                continue
        ours = identity_of(os.lstat(staged))
        aside = exchange(staged, path, staging)
        if read_regular(aside) == expected:
            staging.discard(aside)
            return ours
        displaced, expected = read_as(rewrite, aside), written
        staging.discard(aside)
    raise OSError(errno.EBUSY, "Another program rewrites it without a pause", path)


def exchange(staged: str, path: str, staging: Staging) -> str:
    """Put a staged file in a name's place; returns where the displaced file now is."""
    if rename_with(RENAME_EXCHANGE, staged, path):
        return staged
    displaced = staging.path(next(staging.counter), SIDECAR_SUFFIX)
    os.link(path, displaced, **NO_FOLLOW)
    os.rename(staged, path)
    return displaced


def keep_backup(path: str, text: bytes, staging: Staging) -> None:
    """Keep a sidecar as it was before our first change, beside it: the file itself, which ours is to displace."""
    backup = path + ".bak"
    if os.path.lexists(backup):
        return
    descriptor = open_regular(path)
    try:
        flush(descriptor)  # costs nothing where it is on the disk already
        os.link(path, backup, **NO_FOLLOW)
        return
    except OSError:  # no links there, or a name too long: told by what follows
        pass
    finally:
        os.close(descriptor)
    staged = staging.write(text, like=path)
    with contextlib.suppress(FileExistsError):
        place(staged, backup)
    staging.discard(staged)


@contextlib.contextmanager
def library_lock(library: str, shard: Optional[tuple[int, int]]) -> Iterator[None]:
    """Hold the library for this run: kernel locks, gone with us however we end. Raises BusyError.

    A whole run holds the library's folder alone. Shards share it, each holds its own staging folder alone, and shards of
    different counts exclude each other, as their parts overlap.
    """
    staging = os.path.join(library, STAGING_NAME)
    if os.path.islink(staging) or (os.path.lexists(staging) and not os.path.isdir(staging)):
        raise ServiceError(f"{staging} is in the way: our unfinished files go into a folder of that name. Remove it and run again.")
    with contextlib.ExitStack() as held:
        hold(held, library, fcntl.LOCK_SH if shard else fcntl.LOCK_EX)
        if shard:
            own = os.path.join(staging, staging_name(shard))
            os.makedirs(own, mode=0o700, exist_ok=True)
            hold(held, own, fcntl.LOCK_EX)
            others = [name for name in os.listdir(staging) if not name.endswith(f"-of-{shard[1]}")]
            try:
                for name in others:
                    with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as briefly:
                        hold(briefly, os.path.join(staging, name), fcntl.LOCK_EX)
            except BusyError:
                os.rmdir(own)
                raise
        yield


def hold(held: contextlib.ExitStack, folder: str, mode: int) -> None:
    """Lock a folder until `held` is closed. Raises BusyError."""
    while True:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        held.callback(os.close, descriptor)
        try:
            try:
                fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EBADF, errno.EINVAL, errno.ENOTSUP):
                    raise
                # NFS locks only what is open for writing, which a folder cannot be
                file = os.open(os.path.join(folder, LOCK_NAME), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
                held.callback(os.close, file)
                fcntl.flock(file, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError("Another run is at work on this library; this one leaves it alone.") from None
        if identity_of(os.stat(folder))[:2] == identity_of(os.fstat(descriptor))[:2]:
            return  # else its last holder has just removed it, and it was made anew


# ---------------------------------------------------------------------------------------------------- reporting


def printable(text: str) -> str:
    """Text with control characters and undecodable bytes escaped, so that no name can write to a terminal or forge a line."""
    return "".join(
        char if char.isprintable() else char.encode("utf-8", "surrogateescape").decode("latin-1").encode("unicode_escape").decode()
        for char in text
    )


def megabytes(size: float) -> str:
    return f"{size / 1e6:.2f} MB" if size < 1e9 else f"{size / 1e9:.2f} GB"


def percent_saved(before: int, after: int) -> str:
    return f"{100 * (before - after) / before:.0f} %" if before else "0 %"


def timestamp() -> str:
    """Now, as ISO 8601 in UTC."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}" if minutes >= 60 else f"{minutes}:{seconds:02}"


@dataclasses.dataclass
class Pace:
    """What is known of recordings already looked into: seconds of audio, as guessed from size, to work on, and through."""

    guessed: float = 0.0
    total: float = 0.0
    through: float = 0.0
    before: float = 0.0  # bytes of originals
    after: float = 0.0  # bytes of their copies

    @property
    def left(self) -> float:
        return self.total - self.through

    def add(self, work: Work, through: float) -> None:
        """Count one recording; what was refused took no time, and one not yet examined is counted as waiting."""
        if work.probe and (work.proven or not work.reason):
            share = through / (work.probe.timeline or 1)
            self.total += work.probe.timeline
            self.through += through
            self.before += share * work.source.size
            self.after += share * (work.copy.size if work.copy else work.estimate)
        self.guessed += work.source.guessed_seconds if work.probe or work.reason else 0


def hand_out(waiting: float, size: float, ends: list[float]) -> float:
    """When all is done, if each worker is free after one of `ends` and what waits goes out in batches of `size` to whoever is free
    first. All in seconds of audio for one worker."""
    size = max(size, waiting / 1000, 1.0)  # finer makes no difference
    while waiting > 0:
        ends[ends.index(min(ends))] += min(size, waiting)
        waiting -= size
    return max(ends)


class Report:
    """Owns every tally, every line printed or logged, and the exit code."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.exit_code = 0
        self.counts: Counter[Action] = Counter()
        self.original = self.compressed = self.estimated = 0  # bytes
        self.scan = Scan()
        self.due_count = self.remembered = 0
        self.seconds_due = self.busy = self.share = 0.0
        self.begun = self.looked_at = self.told_at = time.monotonic()
        self.pace, self.finished_count = Pace(), 0
        self.noted: set[str] = set()
        self.shows = not config.quiet and config.progress is not False
        self.watched = sys.stderr.isatty()
        self.bar = self.watched and self.shows and os.environ.get("TERM", "dumb") != "dumb"
        self.bar_text = ""
        self.log = logging.Logger("compression", logging.DEBUG)
        self.log.addHandler(logging.NullHandler())  # without one logging prints to stderr by itself
        logging.raiseExceptions = False  # a full disk must not print tracebacks from inside logging
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        if config.verbose:
            self.add_handler(logging.StreamHandler(sys.stderr))

    def add_handler(self, handler: logging.Handler) -> None:
        handler.setFormatter(logging.Formatter("%(asctime)s - %(levelname)s - %(message)s"))
        self.log.addHandler(handler)

    def open_log(self) -> None:
        """Raises OSError where the log folder cannot be written."""
        os.makedirs(self.config.log_folder, exist_ok=True)
        handler = logging.handlers.RotatingFileHandler(self.config.log_file, maxBytes=2 << 20, backupCount=5, encoding="utf-8",
                                                       errors="backslashreplace")  # fmt: skip
        self.add_handler(handler)

    def close(self) -> None:
        self.clear_bar()
        for handler in self.log.handlers:
            with contextlib.suppress(OSError):  # a full disk under the log must not change how the run ends
                handler.close()

    def say(self, text: str) -> None:
        """A result, for people; JSON Lines stay pure."""
        self.clear_bar()
        if not self.config.quiet:
            self.write(text, sys.stderr if self.config.json else sys.stdout)

    def error(self, text: str) -> None:
        self.exit_code = self.exit_code or 1
        self.clear_bar()
        text = printable(text)
        self.log.error(text)
        if not self.config.verbose:
            self.write("compression_service.py: " + text, sys.stderr)

    def note_once(self, text: str) -> None:
        if text not in self.noted:
            self.noted.add(text)
            self.clear_bar()
            self.log.info(text)
            self.say(text)

    def write(self, text: str, stream: TextIO) -> None:
        try:
            print(text, file=stream, flush=True)
        except BrokenPipeError:  # whoever read our output has gone; the work goes on
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        except OSError:
            pass  # a full disk behind a redirection must not cost a recording

    def paused(self) -> None:
        self.say("Paused: nothing was done. 'compression_service.py resume' lets runs go on.")
        if self.config.json:
            self.write(json.dumps({"type": "summary", "paused": True}), sys.stdout)

    def found(self, found: Scan) -> None:
        self.scan = found
        for problem in found.problems:
            self.error(problem)

    def due(self, works: Sequence[Work]) -> None:
        self.due_count = len(works)
        self.seconds_due = sum(work.source.guessed_seconds for work in works)
        self.begun = self.looked_at = self.told_at = time.monotonic()

    def recording(self, work: Work) -> None:
        """Tell, log and count what became of one recording."""
        assert work.reason
        action, outcome = work.reason.action, work.outcome()
        self.counts[action] += 1
        if action is Action.COMPRESSED and work.copy:
            self.original += work.source.size
            self.compressed += work.copy.size
        if action is Action.WOULD_COMPRESS:
            self.estimated += work.estimate
            self.original += work.source.size
            outcome["estimated_size"] = work.estimate
        line = printable(self.line(work, action))
        self.clear_bar()
        self.log.log(logging.ERROR if action is Action.FAILED else logging.INFO, line)
        if work.trace:
            self.log.error(work.trace)
        if action is Action.FAILED:
            self.exit_code = self.exit_code or (NoSpaceError.exit_code if work.reason is Reason.NO_SPACE else 1)
        if self.config.json or not self.config.quiet:
            self.write(json.dumps(outcome) if self.config.json else line, sys.stdout)
        elif action is Action.FAILED:
            self.write(line, sys.stderr)

    def line(self, work: Work, action: Action) -> str:
        assert work.reason
        text = f"{action.value:<14} {work.source.path}"
        after = work.copy.size if work.copy and action is Action.COMPRESSED else work.estimate
        if action in (Action.COMPRESSED, Action.WOULD_COMPRESS):
            about = "about " if action is Action.WOULD_COMPRESS else ""
            saved = percent_saved(work.source.size, after)
            text += f"  {megabytes(work.source.size)} -> {about}{megabytes(after)} ({saved} saved)"
            if work.reason in (Reason.DONE, Reason.DUE):
                return text
        size = megabytes(work.source.size) + "  " if action is Action.KEPT else ""
        kept = "; the original is kept" if action is Action.FAILED else ""
        return f"{text}  {size}{work.reason.sentence.format(work.detail)}{kept}"

    @property
    def is_worth_telling(self) -> bool:
        return bool(self.exit_code or any(self.counts[action] for action in Action if action is not Action.KEPT))

    def summary(self, started: float) -> dict[str, Any]:
        """Tell and log the end of a run; returns the object of `--json`."""
        self.clear_bar()
        elapsed = time.monotonic() - started
        document = {
            "type": "summary",
            "found": self.scan.found,
            "young": self.scan.young,
            "already_compressed": self.scan.copies,
            "due": self.due_count,
            "compressed": self.counts[Action.COMPRESSED],
            "kept": self.counts[Action.KEPT],
            "failed": self.counts[Action.FAILED],
            "archived": self.counts[Action.ARCHIVED],
            "remembered": self.remembered,
            "original_size": self.original,
            "compressed_size": self.compressed,
            "saved": self.original - self.compressed,
            "elapsed_seconds": round(elapsed, 3),
        }
        if self.config.dry_run:
            document.update(would_compress=self.counts[Action.WOULD_COMPRESS], estimated_size=self.estimated, saved=0)
        text = printable(self.summary_text(elapsed))
        self.log.info(text)
        if self.config.json:
            self.write(json.dumps(document), sys.stdout)
        else:
            self.say(text)
        return document

    def summary_text(self, elapsed: float) -> str:
        counts = self.counts
        done, would = counts[Action.COMPRESSED], counts[Action.WOULD_COMPRESS]
        kept, failed = counts[Action.KEPT], counts[Action.FAILED]
        moved = counts[Action.ARCHIVED] or counts[Action.WOULD_ARCHIVE]
        told = f" Younger than {self.config.age_threshold_days:g} days: {self.scan.young}." if self.scan.young else ""
        told += f" {'Archived' if counts[Action.ARCHIVED] else 'Would be archived'}: {moved}." if moved else ""
        told += f" Kept for reasons told before: {self.remembered} (--retry takes them up)." if self.remembered else ""
        if not self.due_count and (moved or failed):
            return f"Nothing to compress.{f' Failed: {failed}.' if failed else ''}{told}"
        if not self.due_count and self.scan.copies:
            return f"Nothing to do. Compressed: {self.scan.copies}.{told}"
        if not self.due_count:
            empty = "" if self.scan.found else f" No recordings in {self.config.recordings_dir}."
            return f"Nothing to do.{empty}{told}"
        rest = f", {kept} kept, {failed} failed" if kept or failed else ""
        waiting = self.due_count - done - would - kept - failed
        rest += f", {waiting} left for the next run" if waiting > 0 else ""
        if self.config.dry_run:
            sizes = f"{megabytes(self.original)} -> about {megabytes(self.estimated)}"
            return f"Dry run, nothing was changed: {would} of {self.due_count} due would be compressed{rest}. {sizes}."
        saved = f"{megabytes(self.original - self.compressed)} saved ({percent_saved(self.original, self.compressed)})"
        gained = f" {megabytes(self.original)} -> {megabytes(self.compressed)}, {saved}." if done else ""
        return f"{done} of {self.due_count} due compressed{rest}, in {elapsed:.1f} s.{gained}{told}"

    def stopped(self, number: int) -> None:
        self.exit_code = 128 + number
        name = signal.Signals(number).name
        self.note_once(f"Stopped by {name}: originals of unfinished recordings are kept; run again to go on.")

    def finished(self, work: Work) -> None:
        self.finished_count += 1
        self.pace.add(work, work.seconds)

    def progress(self, running: Collection[Batch], through: Callable[[Work], float]) -> None:
        """How far the run is, from what is finished and from the seconds `through` of what is at work."""
        if not self.shows or not self.due_count:
            return
        pace, size, ends, now = dataclasses.replace(self.pace), 0.0, [0.0] * self.config.workers, time.monotonic()
        for number, batch in enumerate(running):
            left, total = pace.left, pace.total
            for work in batch.works:
                pace.add(work, through(work))
            ends[number], size = pace.left - left, max(size, pace.total - total)
        self.busy, self.looked_at = self.busy + (now - self.looked_at) * len(running), now
        # What waits will be worth working on as often, and be as long for its size, as what has been looked into.
        waiting = max(0.0, self.seconds_due - pace.guessed) * (pace.total / pace.guessed if pace.guessed else 1)
        total = pace.total + waiting
        self.share = max(self.share, pace.through / total if total else self.finished_count / self.due_count)
        parts = [f"{self.finished_count}/{self.due_count}", f"{100 * self.share:.0f} %"]
        extra = [f"{megabytes(pace.before)} -> {megabytes(pace.after)}", f"{pace.through / (now - self.begun or 1):.0f} x realtime"]
        left = hand_out(waiting, size, ends) * self.busy / (pace.through or 1)
        rest = [clock(left) + " left"] if self.share > 0.02 else []
        self.show_bar(*("  ".join(parts + extra[:count] + rest) for count in (2, 1, 0)))

    def show_bar(self, *texts: str) -> None:
        """Show the first text that fits on one line, the longest first: on a line that stays put, or else now and then."""
        now = time.monotonic()
        if self.bar:
            columns = self.columns()
            text = next((text for text in texts if len(text) < columns), texts[-1][: columns - 1])
            if text != self.bar_text:
                self.clear_bar()
                self.draw(text)
                self.bar_text = text
        elif self.shows and now - self.told_at >= PROGRESS_PAUSE[self.watched or bool(self.config.progress)]:
            self.write(texts[0], sys.stderr)
            self.told_at = now

    def clear_bar(self) -> None:
        if self.bar_text:
            rows = (len(self.bar_text) - 1) // self.columns()  # a window made narrower has wrapped what was there
            self.draw("\r" + f"\033[{rows}A" * bool(rows) + "\033[J")
            self.bar_text = ""

    def draw(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a terminal that is gone must not cost a recording
            sys.stderr.write(text)
            sys.stderr.flush()

    def columns(self) -> int:
        """Of the terminal that the bar is on; the one behind stdout may be another, or none."""
        with contextlib.suppress(OSError):
            return os.get_terminal_size(sys.stderr.fileno()).columns or 80
        return 80


# --------------------------------------------------------------------------------------------- further commands


def command_doctor(config: Config, report: Report) -> None:
    """One line a check; the exit code is that of the first thing found wrong."""

    def tell(good: Optional[bool], text: str, code: int = UsageError.exit_code) -> None:
        report.say(f"{ {True: 'ok', False: 'PROBLEM', None: 'hint'}[good]:<8} {printable(text)}")
        if good is False:
            report.exit_code = report.exit_code or code

    tell(True, f"Python {sys.version.split()[0]} at {sys.executable}")
    examine_tools(config, tell)
    if config.archive_tier:
        examine_archive(config.archive_tier, tell)
    library = config.recordings_dir
    if os.path.isdir(library):
        tell(*try_writing("recordings folder", library))
        free, paused, others = shutil.disk_usage(library).free, os.path.lexists(pause_path(config)), other_disks(library)
        tell(free > SPACE_MARGIN, f"{megabytes(free)} free on its disk", NoSpaceError.exit_code)
        apart = f"on another disk, so make it a library of its own: {others[0]}" if others else "it is all on one file system"
        tell(not others, apart)
        tell(None if paused else True, "paused: say 'resume' to let runs go on" if paused else "not paused")
    else:
        tell(False, f"recordings folder {library} is not there: mount its disk, or set recordings_dir or --recordings")
    tell(*try_writing("log folder", config.log_folder))
    schedules, last = ", ".join(installed_schedules()), last_run(os.path.join(config.log_folder, "history.jsonl"))
    tell(bool(schedules) or None, f"schedule: {schedules}" if schedules else "no schedule found: see 'schedule --help'")
    tell(bool(last) or None, last or "no run yet")
    tell(True, f"settings, from {config.file or 'the defaults, as there is no config file'}:")
    for name in FILE_KEYS:
        report.say(f"         {name:<22}{printable(json.dumps(shown(getattr(config, name)), ensure_ascii=False))}")


def shown(value: Any) -> Any:
    """A setting as it would be written in the configuration."""
    tiers = isinstance(value, tuple) and all(isinstance(each, Tier) for each in value)
    return [{key: part for key, part in each._asdict().items() if part is not None} for each in value] if tiers else value


def examine_archive(tier: Tier, tell: Callable[[bool, str, int], None]) -> None:
    place = tier.archive or ""
    if not is_remote(place):
        there = os.path.isdir(place)
        tell(there, f"archive folder {place}" + ("" if there else " is not there: mount its disk, or make it"), 1)
        return
    try:
        tell(True, f"archive {place}, by rclone at {find_tool('rclone')}", 0)
    except ToolMissingError as error:
        tell(False, str(error), error.exit_code)


def examine_tools(config: Config, tell: Callable[[bool, str, int], None]) -> None:
    try:
        with stop_signals() as stop, Tools(stop) as tools:
            lines: list[str] = []
            tools.run([tools.ffmpeg, "-version"], 0, lines.append)
            tell(True, f"{' '.join(lines[0].split()[:3]) if lines else 'ffmpeg'} at {tools.ffmpeg}", 0)
            tools.require(config.target.form)
            rehearse_encode(tools, config.target)
            tell(True, f"{config.target.form.encoder} works: half a second was encoded to {config.target.format} and decoded", 0)
    except (ToolMissingError, Refusal) as error:
        tell(False, str(error), ToolMissingError.exit_code)
    except OSError as error:
        tell(False, f"the trial could not be made: {describe(error)}", 1)


def try_writing(name: str, folder: str) -> tuple[bool, str]:
    """Whether files can be made in a folder, or in the nearest above that is there; by doing it, as permissions tell too little."""
    there = next(path for path in (folder, *map(str, Path(folder).parents)) if os.path.isdir(path))
    try:
        with tempfile.TemporaryFile(dir=there):
            return True, f"{name} {folder} can be written to"
    except OSError as error:
        return False, f"{name} {folder} cannot be written to: {error.strerror}; mend the permissions of {there}"


def other_disks(library: str) -> list[str]:
    """Folders right below the library that are on another file system: copies cannot be put in place there."""
    device = os.stat(library).st_dev
    with contextlib.suppress(OSError), os.scandir(library) as entries:
        return sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=False) and entry.stat().st_dev != device)
    return []


def last_run(history: str) -> str:
    """What the end of the history says of the last run, empty if nothing."""
    for record in newest_records(history, "run", 1 << 18):
        with contextlib.suppress(ValueError, KeyError, TypeError, OverflowError):
            ago = max(0.0, time.time() - float(record["time"])) / 3600
            when = f"{ago:.0f} hours" if ago < 48 else f"{ago / 24:.0f} days"
            counts = ", ".join(f"{record[name]} {name}" for name in ("compressed", "kept", "failed") if name in record)
            return f"last run {when} ago, exit code {record['exit_code']}: {counts or 'no counts'}"
    return ""


def command_schedule(config: Config, report: Report) -> None:
    """Print what makes a run every night on this machine. Raises UsageError."""
    if not config.scheduler:
        raise UsageError("For which scheduler? Say 'schedule cron' or 'schedule systemd' (Linux), or 'schedule launchd' (macOS).")
    words = [os.path.abspath(sys.executable), os.path.abspath(__file__), "run", "--quiet"]
    words += ["-c", config.file] if config.file else []
    if config.recordings_dir != resolve_config(argparse.Namespace(config=config.file or None)).recordings_dir:
        words += ["--recordings", config.recordings_dir]
    if not "".join([*words, config.log_folder]).isprintable():
        raise UsageError("A line break or another control character in a path: no scheduler takes it. Rename that folder first.")
    ffmpeg = os.path.abspath(shutil.which("ffmpeg", path=tool_path()) or "/usr/bin/ffmpeg")
    folders = dict.fromkeys([os.path.dirname(ffmpeg), "/usr/local/bin", "/usr/bin", "/bin"])
    report.say(SCHEDULERS[config.scheduler](words, os.pathsep.join(folders), config.log_folder))


def cron_entry(words: Sequence[str], path: str, logs: str) -> str:
    """One line of a crontab. cron itself turns a bare % into a line break, quoted or not."""
    command = f"mkdir -p {shlex.quote(logs)} && PATH={shlex.quote(path)} {shlex.join(words)}"
    line = f"{command} >>{shlex.quote(os.path.join(logs, 'cron.log'))} 2>&1".replace("%", "\\%")
    return f"# Install: 'crontab -e', and paste the next line. Remove: delete it there.\n0 2 * * * {line}"


def launchd_entry(words: Sequence[str], path: str, logs: str) -> str:
    name, log = "~/Library/LaunchAgents/local.compression-service.plist", os.path.join(logs, "launchd.log")
    text = plistlib.dumps({
        "Label": "local.compression-service", "ProgramArguments": list(words), "EnvironmentVariables": {"PATH": path},
        "StartCalendarInterval": {"Hour": 2, "Minute": 0}, "ProcessType": "Background", "LowPriorityIO": True, "Nice": LOW_PRIORITY,
        "WorkingDirectory": "/", "StandardOutPath": log, "StandardErrorPath": log,
    }, sort_keys=False).decode()  # fmt: skip
    folder = re.sub("-(?=-)", "-''", shlex.quote(logs))  # launchd does not make it; a comment in XML may not hold two hyphens
    note = f"Install: mkdir -p {folder}; save this as {name}; launchctl load {name}. Remove: launchctl unload {name}; delete it."
    return text.rstrip().replace("<plist", f"<!-- {note} -->\n<plist", 1)


def systemd_entry(words: Sequence[str], path: str, logs: str) -> str:
    """A shell script that writes a user service and its timer. env comes first, as systemd replaces no $$ in a program's name."""
    escapes = str.maketrans({"\\": "\\\\", '"': '\\"', "%": "%%", "$": "$$"})
    start = " ".join(f'"{word.translate(escapes)}"' for word in ("PATH=" + path, *words))
    service = ["[Unit]", "Description=Compress voice recordings", "", "[Service]", "Type=oneshot", f"Nice={LOW_PRIORITY}"]
    service += ["IOSchedulingClass=idle", f"ExecStart=/usr/bin/env {start}"]
    timer = ["[Unit]", "Description=Compress voice recordings every night", "", "[Timer]", "OnCalendar=*-*-* 02:00:00"]
    timer += ["Persistent=true", "", "[Install]", "WantedBy=timers.target"]
    place, off = "~/.config/systemd/user", "systemctl --user disable --now compression-service.timer"
    lines = [f"# Install: paste all of this into a terminal. Remove: {off}; rm {place}/compression-service.*", f"mkdir -p {place}"]
    for kind, unit in (("service", service), ("timer", timer)):
        lines += [f"cat >{place}/compression-service.{kind} <<'END_OF_UNIT'", *unit, "END_OF_UNIT"]
    return "\n".join([*lines, "systemctl --user daemon-reload && systemctl --user enable --now compression-service.timer"])


SCHEDULERS: dict[str, Callable[..., str]] = {"cron": cron_entry, "launchd": launchd_entry, "systemd": systemd_entry}


def rehearse_encode(tools: Tools, target: Target) -> None:
    """A real encode and decode of half a second, of no recording. Raises Refusal."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "0" + target.form.suffix)
        make = [tools.ffmpeg, *QUIET, "-f", "lavfi", "-i", "sine=duration=0.5:sample_rate=48000", "-c:a", target.form.encoder]
        tools.run([*make, "-b:a", str(target.bitrate), *target.form.options, "-f", target.form.muxer, "file:" + path], 1)
        messages = tools.run([tools.ffmpeg, *QUIET, *input_arguments(path, target.form.demuxer), "-f", "null", "-"], 1)
        if messages or not file_size(path):
            raise Refusal(Reason.TOOL_FAILED, messages or "it wrote nothing")


def is_broken(tools: Tools, target: Target) -> bool:
    """Whether ffmpeg fails at a sound of our own too, so that its failure says nothing of a recording."""
    try:
        rehearse_encode(tools, target)
    except Refusal:
        return True
    return False


def command_demo(config: Config, report: Report) -> None:
    """The whole job on a library made for it, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="compression-demo-") as folder:
        library = os.path.join(folder, "recordings")
        demo = Config(recordings_dir=library, log_file=os.path.join(folder, "logs", "compression.log"))
        with stop_signals() as stop, Tools(stop) as tools:
            make_demo_library(tools, library)
        report.say("A small library: two old recordings, one from today, one cut short by a crash. It is gone afterwards.\n")
        show_tree(report, library)
        parts = {"A dry run (--dry-run) says what would be done": True, "A run": False, "A second run finds all done": False}
        for title, rehearsal in parts.items():
            report.say(f"\n--- {title} ---")
            part = Report(dataclasses.replace(demo, dry_run=rehearsal))
            Run(part.config, part, time.time()).execute()
            part.close()
            report.exit_code = report.exit_code or part.exit_code
        report.say("\n--- The statistics ---")
        command_stats(demo, report)
        report.say("\n--- The library now ---")
        show_tree(report, library)


def make_demo_library(tools: Tools, library: str) -> None:
    day = os.path.join(library, "2025-10-27")
    os.makedirs(day)
    names = ["14-30-45-chunk-1.webm", "14-30-45-chunk-2.webm", "15-00-00-chunk-1.webm", "16-00-00-chunk-1.webm"]
    for number, name in enumerate(names):
        source = f"anoisesrc=duration=6:color=brown:seed={number}:sample_rate=48000:amplitude=0.3,tremolo=f=3:d=0.9"
        make = [tools.ffmpeg, *QUIET, "-f", "lavfi", "-i", source, "-c:a", "libopus", "-b:a", "130k", "-frame_duration", "60"]
        tools.run([*make, "-f", "webm", os.path.join(day, name)], 6)
    os.truncate(os.path.join(day, names[3]), 40_000)
    chunks = [{"file": name, "start": 6 * number, "end": 6 * number + 6, "duration": 6} for number, name in enumerate(names[:2])]
    sizes = sum(file_size(os.path.join(day, name)) for name in names[:2])
    sidecar = {"id": "2025-10-27T14:30:45Z", "duration": 12, "chunks": chunks, "compressed": False, "original_size": sizes}
    entry = {"id": sidecar["id"], "date": "2025-10-27", "duration": 12, "chunks": 2, "compressed": False, "size": sizes}
    index = {"recordings": [entry], "total_recordings": 1, "total_size": sizes, "compressed_size": 0}
    Path(day, "14-30-45-chunk-1.json").write_text(json.dumps(sidecar, indent=2))
    Path(library, INDEX_NAME).write_text(json.dumps(index, indent=2))
    long_ago = time.time() - 30 * DAY
    for number in (0, 1, 3):
        os.utime(os.path.join(day, names[number]), (long_ago, long_ago))


def show_tree(report: Report, library: str) -> None:
    for path in sorted(Path(library).rglob("*")):
        if path.is_file():
            report.say(f"  {file_size(str(path)):>8} bytes  {path.relative_to(library)}")


COMMANDS: dict[str, tuple[str, Callable[[Config, Report], None]]] = {
    "run": ("compress what is due (also without a command)", command_run),
    "stats": ("what the library takes, what was saved, what is due", command_stats),
    "serve": ("show the statistics as a page and as JSON, over HTTP", command_serve),
    "restore": ("bring back a kept original or an archived recording", command_restore),
    "check": ("fully verify the compressed library against its records", command_check),
    "schedule": ("print an entry for cron, launchd or systemd", command_schedule),
    "pause": ("make runs leave the library alone", command_pause),
    "resume": ("let runs go on", command_resume),
    "doctor": ("try out ffmpeg, folders, space, schedule, configuration", command_doctor),
    "demo": ("the whole job on a small library in a temporary folder", command_demo),
}
COMMAND_OPTIONS = {
    "run": tuple(name for name in SETTINGS if name not in ("html", "host", "port", "paths", "scheduler")),
    "stats": ("recordings_dir", "json", "html"),
    "serve": ("recordings_dir", "host", "port", "verbose"),
    "restore": ("recordings_dir", "paths", "json", "quiet", "verbose"),
    "check": ("recordings_dir", "jobs", "json", "quiet", "verbose", "progress"),
    "schedule": ("recordings_dir", "scheduler"),
}

if __name__ == "__main__":
    sys.exit(main())
