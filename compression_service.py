#!/usr/bin/env python3
"""compression_service.py - make voice recordings smaller, without ever losing a second of one.

It walks a library of WebM recordings made by a browser-based transcription recorder. It converts
those older than a week to Opus with ffmpeg and proves every copy against its source. Only then does
it delete the original. Sidecar metadata, master index, log and history stay true at every step.

The promise: at every instant, whatever is killed or unplugged, the audio of every recording exists
complete, as its original or as a verified copy, until a tier that its owner set deletes it. Every
sidecar names files that exist, or says archived or deleted. A recording that cannot be proven is
kept.

Three ideas carry the program.

A take is a stem in a folder. `2025-10-27/14-30-45-chunk-1` is one take, whatever files it has just
now: an original, a copy, what the history remembers of it. Everything asks the take: `Take.state`.

Documents are derived, not tracked. The members of a sidecar or an index entry are a pure function
of the takes after a move (`facts_of`, `sidecar_members`). Making them true is one step that can be
repeated: for every move, after a kill, and where a server has overwritten them.

Every change is a move. `moves_of` is pure and picks the row, the row's class carries it out, and
`Committer.commit` keeps the order:

    move      when                                 placed                        removed last
    compress  an original, old enough, no copy     staged -> x.opus, never over  x.webm
    adopt     an original beside a copy of ours    nothing; the copy is proven   x.webm
              not on record as proven
    smaller   a tier asks for less                 staged, exchanged with it     old copy; x.webm
    free      an original whose days are over      nothing; the copy is proven   x.webm
    archive   an old recording, all compressed     in the archive, read back     the file here
    delete    a tier asks for no audio             nothing; documents say so     all its files
    restore   asked for: an original kept here     nothing; the copy is proven   the copy
    restore   asked for: archived                  fetched, staged -> its name   nothing

An original is removed only where settings let a move do so. The next run continues what was cut
short, from what is on disk: it adopts a copy without a record, and finishes a restore or a
deletion.

The way of one recording, and the sections of this file in the same order:

    command line    options and commands                            main()
    configuration   flag, then file, then default                   Config, resolve_config()
    run             one run's work, start to summary                Run, Queue
    trials          what a run needs, tried before it                try_commits(), try_ffmpeg()
    library         the walk; sidecars, takes, recordings           Library, resolve_recordings()
    plan            which moves are next, pure                      moves_of(), decide()
    moves           each row of the table carries itself out        Move
    probe           what is in a file, every byte accounted for     probe(), provenance()
    prove           encode, walk, decode, compare                   Transcoder, compare_audio()
    commit          the only section that changes the library       Committer
    documents       JSON edited as text; what it must say           JsonText, facts_of(), rewrite()
    archive         where old recordings go, proven to be there     Archive
    restore         a recording comes back as a whole               command_restore()
    losses          copies on record that are lost, moved or back   Losses
    check           the library against its records                 command_check()
    history         what became of every take                       History
    statistics      what it takes and what was saved; the page      storage_stats()
    tools           the one place that starts a process             Tools
    files           the one place that writes durably               place(), exchange(), Staging
    report          the one place that prints and logs              Report
    set-up          doctor, schedule, demo

Exit codes: 0 done or nothing to do; 1 something failed (its original is kept), or a copy is lost;
2 wrong usage or configuration, or no such library; 3 another run is at work; 4 a needed program is
missing or does not work; 5 too little disk space; 129/130/143 stopped by SIGHUP/SIGINT/SIGTERM.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 9) or sys.platform == "win32":  # where what follows cannot be imported
    sys.exit("compression_service.py needs Python 3.9 or newer, on Linux or macOS.")

import argparse
import array
import bisect
import codecs
import ctypes
import dataclasses
import difflib
import enum
import errno
import fcntl
import fnmatch
import hashlib
import html
import io
import itertools
import json
import math
import os
import pwd
import re
import selectors
import shlex
import shutil
import signal
import socket
import stat
import struct
import subprocess
import tempfile
import textwrap
import threading
import time
import traceback
import unicodedata
import zlib
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache, cached_property, lru_cache, partial
from logging.handlers import RotatingFileHandler
from os.path import (
    abspath,
    basename,
    dirname,
    exists,
    getsize,
    isdir,
    isfile,
    islink,
    join,
    lexists,
    realpath,
    relpath,
    splitext,
)
from pathlib import Path, PurePath
from time import monotonic
from typing import (
    IO,
    Any,
    Callable,
    ClassVar,
    ContextManager,
    NamedTuple,
    NoReturn,
    Optional,
    TextIO,
    TypeVar,
)

VERSION = "2.0"
PROGRAM = "compression_service.py"
DAY = 86_400  # seconds
memoized = lru_cache(maxsize=1 << 14)  # for what many documents say alike

# ------------------------------------------------------------------------- constants and formats
# A number stands here if several sections use it, or if a reader may want to change it. Each has
# its source. Other constants stand at the head of their section.

SOURCE_SUFFIX = ".webm"
SIDECAR_SUFFIX = ".json"
BACKUP_SUFFIX = ".bak"  # behind the name of a sidecar: its text before our first change
INDEX_NAME = "index.json"
OWN_FOLDER = ".compression"  # in the library: history.jsonl, paused, lock, id, level files
ID_NAME = "id"  # in our own folder; a copy of it marks the archive as this library's
RESTORING = "restoring"  # the code of a restore that is not finished
FORGOTTEN = "forgotten"  # in place of the code of a loss: its owner deleted the recording
DELETING = "deleting"  # and of a deletion
# A staged file beside its target, also with what rclone appends to such a name.
STAGED = re.compile(r"\.compression-[0-9a-f]{8}-\d+\.part.*", re.DOTALL)
STAGED_NAME = ".compression-{}-{}.part"  # its token is the run's, so that others are leftovers

OPUS_RATE = 48_000  # Hz; the clock of every Opus stream (RFC 7845, section 4)
BYTES_PER_SECOND = 16_000  # of a browser's default recording: a first guess at length from size
BATCH_FILES = 25  # 100 three-second files: 8 a process 7.0 s, 25 a process 4.9 s, measured
BATCH_SECONDS = 600.0  # audio in one process; longer files gain nothing from sharing a start
CHANNEL_RATE = 256_000  # bit/s; libopus takes no more for each channel
SPACE_MARGIN = 2 << 20  # bytes that a batch leaves free for sidecars, index and log
LARGEST_JSON = 64 << 20  # bytes; a longer document cannot be read
ATTEMPTS = 3  # a failure is tried again by the next two runs, then remembered


class Format(NamedTuple):
    """A kind of copy: how it is made, and what its length and size may be.

    `payload` is the share of the asked bit rate that the encoder really uses on speech (measured).
    `slack` is the samples, at its own rate, by which its length may differ from its source. Opus
    has none, as RFC 7845 trims to the sample. AAC has two frames.
    """

    suffix: str
    muxer: str
    demuxer: str
    codec: str
    encoder: str
    options: tuple[str, ...]
    payload: float
    header: int  # bytes
    slack: int  # samples
    sample_bits: float  # its encoder uses no more
    rates: tuple[int, int]  # bit/s, lowest and highest


FORMATS = {
    "opus": Format(
        suffix=".opus",
        muxer="ogg",
        demuxer="ogg",
        codec="opus",
        encoder="libopus",
        # Plain VBR takes 117-126 kbit/s of speech at 96k.
        options=("-vbr", "constrained", "-ar", "48000"),
        payload=0.997,
        header=250,
        slack=0,
        sample_bits=math.inf,
        rates=(6_000, 510_000),  # RFC 6716, section 2.1.1
    ),
    "m4a": Format(
        suffix=".m4a",
        muxer="ipod",
        demuxer="mov",
        codec="aac",
        encoder="aac",
        options=("-movflags", "+faststart"),
        payload=1.03,
        header=1_200,
        slack=2_048,
        sample_bits=6,  # of one channel (ISO 14496-3: 6,144 bits a frame)
        rates=(16_000, 512_000),
    ),
}
FORMAT_OF = {form.suffix: name for name, form in FORMATS.items()}
COPY_SUFFIXES = tuple(FORMAT_OF)
AUDIO_SUFFIXES = (SOURCE_SUFFIX, *COPY_SUFFIXES)

# ------------------------------------------------------------------------------------ vocabulary
# The words that appear in output, log and history, and the errors that sections raise for each
# other. These strings stand here only: everything below compares members, never texts.


class Action(str, enum.Enum):
    """The outcomes of a recording, as printed, logged and remembered."""

    COMPRESSED = "compressed"
    WOULD_COMPRESS = "would-compress"
    KEPT = "kept"
    FAILED = "failed"
    FREED = "freed"
    WOULD_FREE = "would-free"
    ARCHIVED = "archived"
    WOULD_ARCHIVE = "would-archive"
    RESTORED = "restored"
    WOULD_RESTORE = "would-restore"
    LOST = "lost"
    DELETED = "deleted"
    WOULD_DELETE = "would-delete"


class State(enum.Enum):
    """The states of a take, which follow from its files and its past alone."""

    WAITING = "waiting"  # an original, still to be compressed (or too young yet)
    RESTING = "resting"  # an original that stays one, for a reason on record
    COMPRESSED = "compressed"  # it has a proven copy; the original may be here too
    RESTORED = "restored"  # its original came back and counts again
    ARCHIVED = "archived"  # no file here, but a place in the archive
    DELETED = "deleted"  # no file here, as a tier of its owner asked for
    MISSING = "missing"  # no file and no place: not synchronised yet, or deleted by its owner


class Reason(enum.Enum):
    """Why a recording had its outcome: the action, and the sentence for the user. The detail that
    was found in this file replaces `{}`."""

    def __init__(self, text: str) -> None:
        action, self.sentence = text.split(": ", 1)
        self.action = Action(action)

    DONE = "compressed: proven and put in place{}"
    ADOPTED = "compressed: its copy was there already, and was proven again{}"
    DUE = "would-compress: due{}"
    ADOPT_DUE = "would-compress: its copy is there already, and is to be proven again{}"
    FREED = "freed: {}, and its copy was proven again"
    FREE_DUE = "would-free: {}, and its copy is to be proven again"
    ARCHIVED = "archived: in {}"
    ARCHIVE_DUE = "would-archive: to {}"
    DELETED = "deleted: by the tier of {} days"
    DELETE_DUE = "would-delete: by the tier of {} days"
    RESTORED = "restored: {}; --retry lets runs take it up again"
    RESTORE_DUE = "would-restore: {}"

    EMPTY = "kept: the file is empty{}"
    HEADERLESS = "kept: a later part of a recording, unreadable without its first part{}"
    NO_AUDIO = "kept: no audio in it: {}"
    NO_TRACKS = "kept: no audio in it: it ends before its list of tracks{}"
    VIDEO = "kept: has video, which a copy of the sound would lose{}"
    CHAPTERS = "kept: has chapters, which a copy would lose{}"
    HIDDEN = "kept: its edit list hides a part of its sound: {}"
    DATA = "kept: has text or data that a copy would lose: {}"
    COVER = "kept: has a cover picture or another attachment, which a copy would lose{}"
    SEVERAL_STREAMS = "kept: several streams, of which a copy would keep one: {}"
    UNSUPPORTED = "kept: not a kind that is compressed: {}"
    FORM_UPLOAD = "kept: a form upload saved with its headers, not a recording{}"
    APPENDED = "kept: several recordings appended, of which ffmpeg keeps the first: {}"
    TRUNCATED = "kept: truncated: {}"
    DAMAGED = "kept: damaged: {}"
    GAPS = "kept: its timestamps leave more without audio than is filled with silence: {}"
    LOW_BIT_RATE = "kept: already small: {}"
    LITTLE_SAVING = "kept: too little to gain: {}"
    RATE_TOO_LOW = "kept: at this bit rate a copy would lose a part of its sound: {}"
    POLICY_KEEP = "kept: its sidecar's compression_policy says keep{}"
    POLICY_INVALID = "kept: its sidecar's compression_policy cannot be followed: {}"
    SIDECAR = "kept: its sidecar cannot be edited: {}"
    NO_SIDECAR = "kept: no tier deletes it, as no sidecar owns it{}"
    NO_TRANSCRIPT = "kept: no tier deletes it, as no sidecar has its transcript{}"
    INCOMPLETE = "kept: a part of its recording is lost or not here yet: {}"

    MISSING = "lost: its copy is missing: {}"
    VANISHED = "lost: its copy is missing, as most copies are: {}"
    BAD_COPY = "lost: its copy is damaged: {}"
    ROTTEN = "lost: its copy has the size and time on record, and other bytes: {}"

    SIDECAR_FAILED = "failed: its copy is there, but a document cannot be written: {}"
    TOOL_REFUSED = "failed: ffmpeg cannot work on it: {}"
    TOOL_FAILED = "failed: ffmpeg failed: {}"
    TOOL_HUNG = "failed: a program hung and was stopped: {}"
    TOOL_KILLED = "failed: ffmpeg was stopped from outside, or lacked what it needs: {}"
    NOT_PROVEN = "failed: the copy did not prove true and was dropped: {}"
    NOT_REMOVED = "failed: its copy is there, but the original cannot be deleted: {}"
    NAME_TAKEN = "failed: name already taken: {}"
    NAME_TOO_LONG = "failed: a name is too long: {}"
    FORESEEN = "failed: its commit would fail, in {}"
    OWNER = "failed: a file made for it could not be given to its owner: {}"
    ARCHIVE_REFUSED = "failed: cannot be archived: {}"
    NOT_RESTORED = "failed: cannot be restored: {}"
    NOT_DELETED = "failed: cannot be deleted: {}"
    CHANGED = "failed: the recording changed while it was being worked on{}"
    NO_SPACE = "failed: no space left: {}"
    INPUT_OUTPUT = "failed: cannot be read or written: {}"
    DEFECT = "failed: a defect of this program (its traceback is in the log): {}"

    @property
    def code(self) -> str:
        return self.name.lower().replace("_", "-")

    @property
    def is_environment(self) -> bool:
        """Returns whether the cause is outside the recording. Then it does not count against it."""
        return self in (
            Reason.FORESEEN,
            Reason.OWNER,
            Reason.NO_SPACE,
            Reason.INPUT_OUTPUT,
            Reason.TOOL_KILLED,
        )

    @property
    def may_be_ffmpeg(self) -> bool:
        """Returns whether ffmpeg may be the cause. Then it is tried on a sound of our own."""
        return self in (
            Reason.DAMAGED,
            Reason.TOOL_REFUSED,
            Reason.TOOL_FAILED,
            Reason.TOOL_HUNG,
            Reason.TOOL_KILLED,
            Reason.NOT_PROVEN,
        )


class ServiceError(Exception):
    """Ends the run with an exit code of its own and a sentence that says what to do."""

    exit_code = 1


class UsageError(ServiceError):
    exit_code = 2


class BusyError(ServiceError):
    exit_code = 3


class ToolError(ServiceError):
    """A needed program is missing, or does not work."""

    exit_code = 4


class NoSpaceError(ServiceError):
    exit_code = 5


class Stopped(Exception):
    """The run was asked to stop while a tool was at work. The files of that tool are dropped."""


class Refusal(Exception):
    """A take stays as it is: the reason, and the detail that was found."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(reason.sentence.format(detail))
        self.reason, self.detail = reason, detail


def reason_of(error: Optional[Exception]) -> Optional[Reason]:
    """Returns the reason of a Refusal, or of an error of the system that has one."""
    if isinstance(error, Refusal):
        return error.reason
    return REASON_OF_ERRNO.get(getattr(error, "errno", 0))


class NotProven(Refusal):
    """A copy failed a check: what was expected, and what was found. The copy is dropped."""

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(Reason.NOT_PROVEN, f"expected {expected}, found {found}")


class Flaw(Exception):
    """A JSON document cannot be read, or cannot be edited without a guess. Says why."""


# --------------------------------------------------------------------------------------- records
# The values that sections give each other. The walk fills a Folder and a walker a Probe; none of
# the others changes. None opens a file. Paths are relative to the library unless a name says
# otherwise. Sizes are bytes, rates bit/s, times seconds.


class File(NamedTuple):
    """A regular file as a walk saw it."""

    name: str
    size: int
    mtime_ns: int

    @property
    def suffix(self) -> str:
        return splitext(self.name)[1]

    @property
    def is_original(self) -> bool:
        return self.suffix.lower() == SOURCE_SUFFIX

    @property
    def format(self) -> Optional[str]:
        """Returns the format of a copy, by its name; None for any other file."""
        return FORMAT_OF.get(self.suffix)

    def age(self, now: float) -> float:
        """Returns its days at a time, in seconds since the epoch."""
        return (now - self.mtime_ns / 1e9) / DAY

    def is_on_record(self, size: int, mtime_ns: int) -> bool:
        """Returns whether a record speaks of this file: same size, and mtime equal to the second.
        tar, NTFS and exFAT drop the rest of a second, and FAT rounds to an even one."""
        seconds, recorded = self.mtime_ns // 10**9, mtime_ns // 10**9
        is_even = self.mtime_ns % (2 * 10**9) == 0
        is_same = seconds == recorded or (is_even and abs(self.mtime_ns - mtime_ns) < 2 * 10**9)
        return is_same and self.size == size


def identity_of(status: os.stat_result) -> tuple[int, ...]:
    """Returns device, inode, ctime, size and mtime (times in ns) of a file. A hard link, a chmod or
    made-up inode numbers change the first three and no content."""
    change = status.st_ctime_ns
    return status.st_dev, status.st_ino, change, status.st_size, status.st_mtime_ns


class Witness(NamedTuple):
    """A file as it was when its bytes were read. It is the same file while its identity is the
    same. Else its size, mtime and SHA-256 decide."""

    identity: tuple[int, ...]
    sha256: str = ""


class Place(NamedTuple):
    """The place of an archived file, its name here, and what it must prove to be when it comes
    back. A remote keeps no mode and no owner, so they stand here."""

    location: str = ""  # the folder there, as `archive_location` says it
    name: str = ""
    size: int = 0
    mtime_ns: int = 0
    sha256: str = ""
    mode: int = 0
    owner: tuple[int, int] = (0, 0)  # uid, gid
    time: float = 0.0  # seconds since the epoch


class Past(NamedTuple):
    """All that the history remembers of one take. Each line of history.jsonl holds the whole of it,
    so the last line of a take is its past, and nothing is ever merged.

    Original and copy share one modification time, so `mtime_ns` with `first_size` is the original
    that it speaks of, and with `size` the copy.
    """

    action: str = ""  # of the last outcome; Action's value
    code: str = ""  # of its reason
    move: str = ""  # that it was the outcome of; Move's value
    settings: str = ""  # that it holds under: `settings_of()`
    attempts: int = 0  # failures in a row, not counting those whose cause lay outside
    time: float = 0.0  # of the last outcome, since the epoch
    mtime_ns: int = 0
    first_size: int = 0  # of the recording as the browser wrote it; 0 where no record says
    suffix: str = ""  # of the copy, "" without one
    size: int = 0  # of the copy
    bitrate: int = 0  # that the copy was asked for
    seconds: float = 0.0  # of the recording, silence with it
    compressed: float = 0.0  # when its copy was proven, since the epoch
    ids: tuple[str, ...] = ()  # of its recording: by these the index finds its folder
    place: Optional[Place] = None  # in the archive, until it has come back
    deleted: float = 0.0  # when a tier deleted it, since the epoch
    back: float = 0.0  # when its owner brought it back since; its age counts from then
    stays: str = ""  # the code of the reason why no tier deletes it
    sha256: str = ""  # of the copy, "" where nobody has noted it
    freed: float = 0.0  # when its original was deleted, since the epoch
    lost: str = ""  # why its copy is lost: the reason's code, or FORGOTTEN
    first_sha256: str = ""  # of the original that its copy was proven against, "" if not noted

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Past:
        """Returns a past from the object `past` in a line of the history. Nothing odd in it may
        become a path or a date. Raises what is ODD."""
        said = {**record, "ids": map(sys.intern, record.get("ids", ()))}
        place = remembered(Place(), said.pop("place", {}))
        past = remembered(cls(), said)
        is_plain = basename(place.name) == place.name
        is_audio = not place.name or place.name.lower().endswith(AUDIO_SUFFIXES)
        is_suffix = past.suffix in ("", *COPY_SUFFIXES)
        times = (past.compressed, past.deleted, past.back, place.time)
        is_time = all(0 <= moment < LATEST for moment in times)
        is_path = "\0" not in place.location + place.name
        if not (is_plain and is_audio and is_suffix and is_time and is_path):
            raise ValueError("an odd name or time")
        place = place._replace(mode=place.mode & 0o666)  # no text gives a file more than that
        return past._replace(place=place if place.name else None)

    def record(self) -> dict[str, Any]:
        """For a line of the history: what differs from a past that remembers nothing."""
        values = {key: value for key, value in self._asdict().items() if value}
        if self.place:
            values["place"] = self.place._asdict()
        return values

    def proves(self, file: File) -> bool:
        """Returns whether a file of its take is the copy that is on record as proven."""
        return (
            file.suffix == self.suffix
            and self.lost != Reason.ROTTEN.code
            and file.is_on_record(self.size, self.mtime_ns)
        )

    def sha256_of(self, file: File) -> str:
        """Returns the SHA-256 on record of a file of its take, "" without one."""
        if self.proves(file):
            return self.sha256
        is_first = file.is_original and file.is_on_record(self.first_size, self.mtime_ns)
        return self.first_sha256 if is_first else ""

    def speaks_of(self, file: File) -> bool:
        sizes = (self.first_size, self.size)
        return any(file.is_on_record(size, self.mtime_ns) for size in sizes)

    @property
    def has_copy(self) -> bool:
        """Returns whether a copy is on record that should be here."""
        return self.suffix != "" and self.size > 0 and not (self.place or self.deleted)

    @property
    def stood(self) -> tuple[str, int]:
        """Returns the suffix and the bytes of the file that stood for its take: the copy on record,
        or else the original."""
        return (self.suffix, self.size) if self.size else (SOURCE_SUFFIX, self.first_size)

    @property
    def is_lost(self) -> bool:
        return self.lost not in ("", FORGOTTEN)

    @property
    def is_settled(self) -> bool:
        """Returns whether the last outcome stays, as long as file, policy and settings do."""
        return self.is_given_up or self.action in (Action.KEPT, Action.RESTORED)

    @property
    def is_given_up(self) -> bool:
        """Returns whether it failed so often that no run tries it again."""
        return self.action == Action.FAILED and self.attempts >= ATTEMPTS

    @property
    def is_kept(self) -> bool:
        """Returns whether a sidecar's policy kept it when a move was last asked for."""
        return self.code == Reason.POLICY_KEEP.code

    @property
    def is_at_rest(self) -> bool:
        """Kept, given up or archived: no run compresses it, as long as its settings hold."""
        return self.is_settled or self.move == Store.name

    @property
    def is_restored(self) -> bool:
        return self.action == Action.RESTORED


NO_PAST = Past()
Record = TypeVar("Record", Place, Past)


def remembered(usual: Record, said: Mapping[str, Any]) -> Record:
    """`usual` with what a line of the history says, each value made what it usually is. Raises what
    is ODD, as a line may be torn, of a later version or edited by hand."""
    values: dict[str, Any] = {}
    for name in said.keys() & usual._fields:  # those of a later version are passed over
        value, kind = said[name], type(getattr(usual, name))
        if isinstance(value, bool) or isinstance(value, str) != (kind is str):
            raise TypeError(name)
        if kind in (int, float) and not abs(value) < 1 << 63:  # as all that a disk can say
            raise ValueError(name)
        # A string is held once, as 100,000 lines have the same few.
        values[name] = sys.intern(value) if kind is str else kind(value)
    return usual._replace(**values)


ODD = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)


class Take(NamedTuple):
    """One stem in one folder: its files by their roles (see `take_of`), and its past."""

    stem: str  # path below the library, without a suffix: the key of the history
    originals: tuple[File, ...] = ()  # first the one on record; several are a clash
    copies: tuple[File, ...] = ()  # ours; first the one on record as proven
    strangers: tuple[File, ...] = ()  # other files in a copy's format
    past: Past = NO_PAST
    rates: Mapping[str, int] = {}  # copies without a record: bit/s by their tag, 0 without a tag

    @property
    def folder(self) -> str:
        return dirname(self.stem)

    @property
    def name(self) -> str:
        """The stem without its folder."""
        return basename(self.stem)

    @property
    def own(self) -> tuple[File, ...]:
        """Returns the files that are the recording's."""
        return self.originals + self.copies

    @property
    def files(self) -> tuple[File, ...]:
        return self.own + self.strangers

    @property
    def is_left(self) -> bool:
        """Returns whether anything of it is here or in the archive."""
        return bool(self.files or self.past.place)

    @property
    def size(self) -> int:
        """Returns the bytes that its deletion frees, here and in the archive."""
        return sum(file.size for file in (*self.own, self.past.place) if file)

    @property
    def original(self) -> Optional[File]:
        return self.originals[0] if self.originals else None

    @property
    def is_known(self) -> bool:
        """Returns whether its past speaks of the original that is here, not of an earlier one."""
        return self.original is not None and self.past.speaks_of(self.original)

    @property
    def copy(self) -> Optional[File]:
        return self.copies[0] if self.copies else None

    @property
    def proven_copy(self) -> Optional[File]:
        """Returns the copy that is on record as proven."""
        copy = self.copy
        return copy if copy and self.past.proves(copy) else None

    @property
    def is_in_doubt(self) -> bool:
        """Returns whether its copy may be lost. It makes no move before `Losses` has seen to it."""
        past = self.past
        if not past.has_copy:
            return False
        if self.originals:  # those of another recording do not count
            return past.is_lost and all(file.size != past.first_size for file in self.originals)
        if past.lost == FORGOTTEN:
            return any(file.suffix == past.suffix for file in self.files)
        return past.is_lost or self.proven_copy is None

    @property
    def is_missing(self) -> bool:
        """Returns whether it is neither here, nor archived, nor deleted by a tier."""
        return self.state is State.MISSING or self.lost_copy is not None

    @property
    def lost_copy(self) -> Optional[File]:
        """Returns its copy as it was on record, if that is lost."""
        past = self.past
        is_lost = self.is_in_doubt and not self.proven_copy and (past.lost or not self.copy)
        return File(self.name + past.suffix, past.size, past.mtime_ns) if is_lost else None

    @property
    def suspect(self) -> Optional[File]:
        """Returns the file that stands in the place of its copy beside its original, and is not the
        file on record."""
        if not self.is_known or not self.past.has_copy or self.past.is_restored or self.proven_copy:
            return None
        return next((file for file in self.files if file.suffix == self.past.suffix), None)

    @property
    def bitrate(self) -> int:
        """Returns the bit/s that its copy was asked for, by record or tag; 0 where neither says."""
        if self.proven_copy or not self.copy:
            return self.past.bitrate
        return self.rates.get(self.copy.name, 0)

    @property
    def is_half_deleted(self) -> bool:
        """Returns whether its deletion is on record as begun and not as finished."""
        return self.past.code == DELETING

    @property
    def was_brought_back(self) -> bool:
        """Returns whether files are here of a take that was deleted. A file that is not ours may
        have been here all the time."""
        back = self.own or [file for file in self.strangers if file.suffix == self.past.suffix]
        return self.past.deleted > 0 and bool(back) and not self.is_half_deleted

    @property
    def is_away(self) -> bool:
        """Returns whether its file is missing or on record as in the archive. One whose restore
        failed half way may have its file here too."""
        return not self.file or self.past.place is not None

    @property
    def is_half_restored(self) -> bool:
        """Returns whether a restore is on record as begun and not as finished: a copy is to be
        removed, or a file to be fetched."""
        is_begun = self.past.code == RESTORING and self.is_known
        return self.past.is_restored and (is_begun or self.past.place is not None)

    @property
    def state(self) -> State:
        if not self.original:
            away = State.ARCHIVED if self.past.place else State.MISSING
            away = State.DELETED if self.past.deleted else away
            return State.COMPRESSED if self.copy or self.lost_copy else away
        if not self.is_known:
            return State.WAITING
        if self.past.is_restored:
            return State.RESTORED if self.past.suffix else State.RESTING
        if self.proven_copy:
            return State.COMPRESSED
        return State.RESTING if self.past.is_at_rest else State.WAITING

    @property
    def file(self) -> Optional[File]:
        """Returns the file that stands for it; None where nothing is here."""
        return self.copy if self.state is State.COMPRESSED else self.original

    @property
    def said(self) -> File | Place | None:
        """Returns what stands for it in documents. A lost copy counts as it was on record."""
        return self.lost_copy or self.file or self.past.place

    def is_gone(self, name: str) -> bool:
        """Returns whether a copy was made, and what is here has not this name any more."""
        is_here = bool(self.past.suffix and self.files)
        return is_here and all(file.name != name for file in self.files)

    def name_now(self, name: str) -> str:
        """Returns the name a document should use now for the file it calls `name`. Names change
        only from the original to the copy that stands for it, back after a restore, and from a copy
        that is gone to what stands now. The name of another file stays."""
        named, file, state = File(name, 0, 0), self.said, self.state
        is_other = any(each.name == name for each in self.originals[1:])
        is_left = state in (State.COMPRESSED, State.ARCHIVED) and named.is_original
        is_back = state is State.RESTORED and named.suffix == self.past.suffix
        is_gone = named.format and self.is_gone(name)
        return file.name if file and not is_other and (is_left or is_back or is_gone) else name


def take_of(
    stem: str, files: Iterable[File], past: Past = NO_PAST, rates: Mapping[str, int] = {}
) -> Take:
    """Returns the take that these files are. `rates` names those that are copies of ours although
    they are not on record."""
    originals, strangers = list[File](), list[File]()
    proven, copies = list[File](), list[File]()
    for file in files:
        if file.is_original:
            originals.insert(0 if past.speaks_of(file) else len(originals), file)
        elif past.proves(file):
            proven.append(file)
        elif file.name in rates or (file.suffix == past.suffix and past.lost == Reason.ROTTEN.code):
            copies.append(file)
        elif file.format:
            strangers.append(file)
    if proven:  # then no other copy matters
        strangers += copies
        copies = proven
    return Take(stem, tuple(originals), tuple(copies), tuple(strangers), past, rates)


class Policy(NamedTuple):
    """The wishes of a recording's sidecars, the most careful one of each kind; `flaw` where one
    cannot be followed, `unreadable` where a document that speaks of it cannot be edited."""

    keep: bool = False
    bitrate: Optional[int] = None  # then holds at any age
    after_days: float = 0
    format: Optional[str] = None
    flaw: str = ""
    unreadable: str = ""


NO_POLICY = Policy()


class Names:
    """Which strings in documents are names of the files in one folder."""

    def __init__(
        self,
        root: str,
        folder: str,
        takes: Mapping[str, Take],
        is_taken: Callable[[str], bool] = lexists,
    ) -> None:
        """`root` is the library's path. `takes`, by name, are those here or in the history.
        `is_taken` says whether another file is, or was, at an absolute path."""
        self.root, self.folder, self.takes, self.is_taken = root, folder, takes, is_taken
        self.stems: dict[str, list[str]] = {}  # of the takes, by their folded form
        for stem in takes:
            self.stems.setdefault(folded(stem), []).append(stem)

    def has(self, name: str) -> bool:
        """Returns whether a file has, had or may get exactly this name."""
        stem, suffix = splitext(name)
        take = self.takes.get(stem)
        if take is None:
            return False
        return suffix in AUDIO_SUFFIXES or any(file.name == name for file in take.files)

    def spelled(self, stem: str, suffix: str) -> str:
        """Returns the name of a take with this suffix, as its file spells it."""
        for file in self.takes[stem].files:
            if file.suffix.lower() == suffix:
                return file.name
        return stem + suffix

    def own_part(self, text: str) -> str:
        """Returns the file's name at the end of a string that leads to this folder, or ""."""
        if self.has(text):  # it may hold a backslash
            return text
        above, slash, name = plain_path(text).rpartition("/")
        others = folders_meant(above, self.root, self.folder) if slash else ()
        if others is None or "\0" in name:
            return ""
        spellings = (name, *(stem_of(name) + suffix for suffix in AUDIO_SUFFIXES))
        paths = itertools.starmap(join, itertools.product(others, spellings))
        return "" if any(map(self.is_taken, paths)) else name

    def find(self, text: str) -> Sequence[str]:
        """Returns the names that a string may mean, as their files spell them: none if it is data,
        several if it fits several files."""
        name = self.own_part(text)
        if self.has(name):
            return [name]
        stem, suffix = splitext(folded(name))
        stems = self.stems.get(stem, ()) if suffix in AUDIO_SUFFIXES else ()
        return [self.spelled(each, suffix) for each in stems]

    def ending(self, text: str) -> Iterator[str]:
        """Yields the names with which a text may end. A mark or a blank stands before each."""
        stem, suffix = splitext(folded(text))
        for at in range(len(stem)):
            if not (at and stem[at - 1].isalnum()):
                for each in self.stems.get(stem[at:], ()):
                    yield self.spelled(each, suffix)

    def called(
        self, texts: frozenset[str], awaited: frozenset[str] = frozenset()
    ) -> frozenset[str]:
        """Returns the names that strings mean. A file that is `awaited` may still be missing."""
        names = set(itertools.chain(*map(self.find, texts)))
        names.update(self.own_part(text) for text in awaited if not self.find(text))
        return frozenset(names - {""})

    def meant(self, text: str, takes: Mapping[str, Take]) -> list[tuple[Take, str]]:
        """Returns the takes that a string may call. Beside each stands what the string must be for
        `takes` (by stem) as they are now; only its last part changes."""
        meant = []
        for name in self.find(text):
            take = takes.get(join(self.folder, stem_of(name)))
            if take:
                now = take.name_now(name)
                new = text if now == name else text[: -len(self.own_part(text))] + now
                meant.append((take, new))
        return meant


class Sidecar(NamedTuple):
    """One JSON file beside recordings, as planning keeps it. A commit reads its text again.

    As it is read, it holds strings that may be names: all of them in `files`, those of `chunks` in
    `own`, and each chunk's `file` in `awaited`. `Names` then replaces them by the names of files:
    all that the sidecar calls in `files`, those that it owns in `own`.
    """

    name: str
    id: str = ""
    files: frozenset[str] = frozenset()
    own: frozenset[str] = frozenset()
    stuck: frozenset[str] = frozenset()  # cannot be edited: keys; with a `flaw`, all strings
    listed: bool = False  # whether it gets members; as it is read, whether it has a recording's
    awaited: frozenset[str] = frozenset()
    durations: Mapping[str, float] = {}  # seconds on record, by the folded stem of a file
    language: Optional[str] = None
    dated: str = ""  # what it says of its date
    policy: Any = None  # as it stands there, not checked yet
    location: str = ""  # where it says that its recording is archived
    has_text: bool = False  # a transcript
    is_owner: bool = False  # of its files by `chunks` or by its stem, not just by naming one
    is_deleted: bool = False  # whether it says that a tier deleted its recording
    flaw: str = ""  # why it cannot be edited
    is_unread: bool = False  # then it may name any file in its folder

    @property
    def stem(self) -> str:
        return stem_of(self.name)


class Recording(NamedTuple):
    """Takes of one folder that share sidecars or an id: a recording as the recorder sees it. Its
    documents are written together, and it is archived and restored as a whole."""

    folder: str
    takes: tuple[Take, ...]  # also those that a sidecar names and that are not here
    sidecars: tuple[Sidecar, ...] = ()
    policy: Policy = NO_POLICY
    names: Names = Names("", "", {})  # of its folder

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(sorted({sidecar.id for sidecar in self.sidecars if sidecar.id}))

    @property
    def stems(self) -> set[str]:
        return {take.stem for take in self.takes}

    @property
    def key(self) -> str:
        """Returns a name for it. Compression does not change this name."""
        return min(self.stems)

    def seconds_of(self, take: Take) -> float:
        """Returns the length of a take by the sidecars, 0 if they do not say."""
        name = folded(take.name)
        return max((sidecar.durations.get(name, 0.0) for sidecar in self.sidecars), default=0.0)

    @property
    def locations(self) -> list[str]:
        """Returns where its sidecars say that it is archived, each place once."""
        return list(dict.fromkeys(each.location for each in self.sidecars if each.location))

    @property
    def is_known(self) -> bool:
        """Returns whether any of it is here or on record."""
        return any(take.files or take.past != NO_PAST for take in self.takes)

    @property
    def is_witnessed(self) -> bool:
        """Returns whether files are missing that, by a sidecar but not by the history, are
        archived. The history may be an old one, so nothing is written against the sidecar."""
        is_missing = any(take.is_missing for take in self.takes)
        is_said = self.locations or any(sidecar.is_deleted for sidecar in self.sidecars)
        return is_missing and bool(is_said)


NO_RECORDING = Recording("", ())


class Folder:
    """One folder as the walk saw it."""

    def __init__(self, path: str, library: Library) -> None:
        self.path, self.library = path, library
        self.audio: list[File] = []
        self.documents: dict[str, list[int]] = {}  # `Library.look` at its JSON files, by name
        self.below: list[str] = []  # paths of the folders in it
        self.leftovers: list[str] = []  # names, staged by runs that are gone
        self.links = 0
        self.is_unread = False  # whether it holds a document that cannot be read

    @cached_property
    def takes(self) -> dict[str, Take]:
        """Returns the takes that are here or on record, by name without suffix. They are made on
        demand: most nights need the files alone."""
        pasts = self.library.history.in_folder(self.path)
        files: dict[str, list[File]] = {basename(stem): [] for stem in pasts}
        for file in sorted(self.audio):
            files.setdefault(stem_of(file.name), []).append(file)
        takes = {}
        for name, group in files.items():
            stem = join(self.path, name)
            takes[name] = take_of(stem, group, pasts.get(stem, NO_PAST))
        return takes


class Target(NamedTuple):
    """The format and the bit rate that a copy should have."""

    format: str
    bitrate: int

    @property
    def form(self) -> Format:
        return FORMATS[self.format]

    @property
    def tag(self) -> str:
        """Returns the `encoded_by` and `encoding_tool` of a copy of ours."""
        return f"{PROGRAM} {self.bitrate / 1000:g}k"


NO_TARGET = Target("", 0)  # of a move that makes no copy


class Tier(NamedTuple):
    """A further step, for what is at least `after_days` old: a lower bit rate, an archive, or
    deletion."""

    after_days: float
    bitrate: Optional[int] = None
    archive: Optional[str] = None  # an absolute folder, or an rclone remote `name:path`
    delete: bool = False


class Moment(NamedTuple):
    """The time that steps by age go by, in seconds since the epoch. A jump of the clock must cost
    nothing. `now` is for the first compression, `careful` for every other step."""

    now: float
    careful: float


@dataclass
class Probe:
    """What is in an audio file, from its packets alone: a walker adds them as it meets them. Raises
    Refusal for channels and rates that are not compressed.

    `packets` counts packets by (bytes, samples); `gaps` are (at sample, length in samples) of the
    silence that the timeline has and the packets have not. A gap is a step of more than GAP_SECONDS
    from the end of one packet, by its stamp, to the next stamp; it is as long as that stamp lies
    behind all that stands before it. Jitter, overlaps and a drifting clock are none: players play
    them through.
    """

    demuxer: str
    codec: str
    channels: int
    rate: int  # Hz
    pre_skip: int = 0  # samples at the start that a decoder drops
    trimmed: int = 0  # and at the end
    doubt: int = 0  # samples by which decoders of such files may differ, 120 ms at most
    packets: Counter[tuple[int, int]] = dataclasses.field(default_factory=Counter)
    length: int = 0  # samples of all packets
    last: int = 0  # samples of the last packet
    gaps: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    origin: float = 0.0  # seconds, where a copy begins
    end: float = 0.0  # seconds, where the last packet ends by its stamp
    overlap: float = 0.0  # seconds, the most by which a stamp lies before the end of the one before

    def __post_init__(self) -> None:
        if self.channels not in (1, 2):
            raise unsupported(f"{self.channels} channels")
        if not 1_000 <= self.rate <= 384_000:
            raise unsupported(f"sampled at {self.rate:g} Hz")

    def add(self, seconds: float, samples: int, size: int) -> None:
        """One packet: its stamp, its samples, its bytes. Raises Refusal."""
        if not self.packets:
            is_late = seconds > LONGEST_LEAD  # a clock that does not begin with the recording
            self.origin = self.end = seconds if is_late else min(seconds, 0.0)
        step = seconds - self.end
        if step < -LARGEST_STEP_BACK:
            raise damaged(f"its timestamps step back by {-step:.1f} s at {self.end:.1f} s")
        if self.gaps and step < -GAP_SECONDS:
            at, gap = self.gaps[-1]
            before_last = self.length - self.last - self.trimmed - self.pre_skip
            is_before_last = at == max(0, before_last)
            is_denied = GAP_SECONDS - step >= gap / self.rate
            if is_before_last and is_denied:
                self.gaps.pop()  # one stamp was ahead
        if step > GAP_SECONDS:
            # Whole milliseconds that are whole samples, here and at the rate of the levels.
            tick = self.rate // math.gcd(self.rate, 1000)
            played = self.length - self.trimmed
            written = played / self.rate + self.silence
            gap = round((seconds - self.origin - written) * self.rate / tick) * tick
            if gap > 0:  # else what came before ran ahead of its stamps
                self.gaps.append((max(0, played - self.pre_skip), gap))
        if len(self.gaps) > MOST_GAPS:
            raise Refusal(Reason.GAPS, f"more than {MOST_GAPS} gaps by {seconds:.1f} s")
        self.overlap = max(self.overlap, -step)
        self.packets[size, samples] += 1
        self.length += samples
        self.last = samples
        self.end = seconds + samples / self.rate

    @property
    def samples(self) -> int:
        """Returns the samples that a plain decode gives of each channel."""
        return max(0, self.length - self.pre_skip - self.trimmed)

    @property
    def seconds(self) -> float:
        """Returns seconds of audio, without silence."""
        return self.samples / self.rate

    @property
    def silence(self) -> float:
        """Seconds of gaps."""
        return sum(length for _, length in self.gaps) / self.rate

    @property
    def timeline(self) -> float:
        """Seconds of the copy: audio and silence."""
        return self.seconds + self.silence

    @property
    def payload(self) -> int:
        """Returns the bytes of all packets."""
        return sum(size * count for (size, _), count in self.packets.items())

    @property
    def kilobits(self) -> float:
        """kbit/s of coded audio, from the packets; no header carries it."""
        return self.payload * 8 / 1000 / self.seconds


GAP_SECONDS = 0.1  # of stamps, from here on silence; less is jitter (WebAudio steps by 52-70 ms)
LONGEST_LEAD = 10.0  # seconds of silence at the start; beyond, its clock began before it
LARGEST_STEP_BACK = 1.0  # seconds; more is no backlog of a frozen tab but damage
MOST_GAPS = 1000  # each is a term of an expression that ffmpeg evaluates for every frame


def explain(error: Exception) -> str:
    """Returns a sentence on an error, with the file if the system named one."""
    if not isinstance(error, OSError):
        return str(error)
    names = (error.filename, error.filename2)
    paths = ", ".join(os.fsdecode(name) for name in names if isinstance(name, (str, bytes)))
    if isinstance(error, FileNotFoundError) and not paths:
        paths = "the folder that this was started in"
    return f"{error.strerror or error}" + (f" ({paths})" if paths else "")


# ---------------------------------------------------------------------------------- command line
# Words in, one command called, an exit code out. Errors that have a name become one sentence here
# and nowhere else. Must never touch the library, and never leave by sys.exit from below main().

EXIT_CODES = (
    "Exit codes: 0 done or nothing to do; 1 something failed (its original is kept), or a copy is "
    "lost; 2 wrong usage or configuration, or no such library; 3 another run is at work; 4 a "
    "needed program is missing or does not work; 5 too little disk space; 129, 130, 143 stopped by "
    "a signal."
)


class Command(NamedTuple):
    """A subcommand: its help, the settings it has flags for, and what it does."""

    help: str
    settings: str
    run: Callable[[Config, Report], None]

    @property
    def fields(self) -> list[dataclasses.Field[Any]]:
        """Returns the settings of Config that it has flags for."""
        return [SETTINGS[name] for name in f"file recordings_dir {self.settings}".split()]


class Parser(argparse.ArgumentParser):
    """Reports wrong usage in one sentence instead of a page. Raises UsageError."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. '{self.prog} --help' says more.")


def main(args: Optional[Sequence[str]] = None) -> int:
    """Run one command; `args` as in sys.argv[1:]. Returns the exit code."""
    words = sys.argv[1:] if args is None else args
    prepare_streams()
    report = Report(Config(json="--json" in words))
    try:
        report = Report(resolve_config(parse_words(words)))
        COMMANDS[report.config.command].run(report.config, report)
    except Exception as error:  # so that no command ends in silence
        summary = report.summary(report.failed(error))
        if report.config.command == "check":
            notify(report.config, report, summary)
    except KeyboardInterrupt:  # by a command that changes nothing, and so has no need to stop well
        return 128 + signal.SIGINT
    finally:
        report.write("", sys.stderr, end="")  # only clears the bar
    return report.exit_code


def prepare_streams() -> None:
    """Opens closed standard streams. Else the next file would get their number and messages."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # of a locale that has not every letter


def parse_words(words: Sequence[str]) -> argparse.Namespace:
    """Returns what the command line asks for, as fields of Config. Without a command it is a run.
    Raises UsageError."""
    if words and words[0] in ("-h", "--help", "--version"):
        front_page().parse_args(words[:1])
    others = (at for at, flag in outline(words) if not flag)
    at = next(others, len(words))
    name = words[at] if at < len(words) else "run"
    if name not in COMMANDS:
        check_flags(words[:at], "run")
        near = nearest(name, COMMANDS)
        front_page().error(f"There is no command '{name}'; the nearest is '{near}'")
    check_flags(words, name)
    command = COMMANDS[name]
    parser = Parser(
        prog=f"{PROGRAM} {name}", description=command.help, epilog=EXIT_CODES, allow_abbrev=False
    )
    for field in command.fields:
        add_flag(parser, field)
    rest = [*words[:at], *words[at + 1 :]]
    if "--" in rest:  # the intermixed parser forgets it
        end = rest.index("--")
        rest[end:] = [join(os.curdir, path) for path in rest[end + 1 :]]
    found = parser.parse_intermixed_args(rest)
    found.command = name
    return found


def check_flags(words: Sequence[str], name: str) -> None:
    """Raises UsageError for a flag that a command has not. The value of such a flag would be taken
    for a command."""
    homes = {"-h": name, "--help": name, "--version": "run"}
    for each in (*COMMANDS, "run", "stats", name):  # who asks for JSON is not sent to a run
        for field in COMMANDS[each].fields:
            homes.update(dict.fromkeys(field.metadata["flags"], each))
    homes["--no-progress"] = homes["--progress"]
    for at, flag in outline(words):
        if flag and homes.get(flag) != name:
            said = words[at].partition("=")[0]
            near = nearest(said, homes)
            whose = "" if homes[near] == name else f" of '{homes[near]}'"
            problem = f"'{name}' takes no {said}; the nearest is {near}{whose}"
            Parser(prog=f"{PROGRAM} {name}").error(problem)


def front_page() -> Parser:
    """Returns what `--help` without a command shows."""
    commands = [f"  {name:<10}{command.help}" for name, command in COMMANDS.items()]
    parser = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} [COMMAND] [options]",
        description=FRONT.format("\n".join(commands)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {VERSION}")
    return parser


FRONT = """Make voice recordings smaller, without ever losing a second of one.

Commands (without one, it is run):
{}

COMMAND --help lists its options and exit codes. Options may stand before it."""


def outline(words: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yields where each word stands that is no flag's value, and the flag, "" for another word."""
    before = ""
    for at, word in enumerate(words):
        if word == "--":
            break
        flag = word.partition("=")[0] if word.startswith("--") else word[:2]
        if before not in VALUED:
            yield at, flag if word.startswith("-") else ""
        before = word


def nearest(word: str, known: Iterable[str]) -> str:
    return difflib.get_close_matches(word.lower(), known, 1, 0)[0]


def add_flag(parser: argparse.ArgumentParser, field: dataclasses.Field[Any]) -> None:
    """Adds the flags of a setting, or the words that stand without one. Its help also names its key
    in the config file, and the default."""
    kind, text, flags = (field.metadata[name] for name in ("kind", "help", "flags"))
    options: dict[str, Any] = {"action": BOOLEAN_ACTIONS.get(field.default)}
    if kind is not check_boolean:
        *flags, metavar = flags
        options = {"metavar": metavar, "type": partial(from_text, kind)}
    if kind is TEXTS:
        options.update({"action": "append"} if flags else {"nargs": "*"})
    if field.metadata["key"]:
        text += f" (config key: {field.name}, default: {json.dumps(field.default)})"
    parser.add_argument(*flags, dest=field.name, help=text, default=None, **options)


def from_text(kind: Kind, text: str) -> Any:
    """Returns the value of a flag: its text, a path from where we are, or what it is as JSON.
    Raises what argparse reports."""
    try:
        value = kind(text)
    except ValueError as error:
        with suppress(ValueError):
            return kind(json.loads(text))
        raise argparse.ArgumentTypeError(f"{error}, found {json.dumps(text)}") from None
    return abspath(value) if kind is check_path else value


# --------------------------------------------------------------------------------- configuration
# One declaration a setting: default, type, flags. Reads the config file; touches nothing else.
# A wrong key or value is named with what was expected, before anything of the library is looked at.

Kind = Callable[[Any], Any]  # the value that is used; raises ValueError with what was expected


def setting(default: Any, kind: Kind, flags: str = "", key: bool = True) -> Any:
    """Declares a field of Config: its flags, what stands behind them and their help, as
    "-j --jobs N: at work at once", and whether the config file has it as a key."""
    names, _, text = flags.partition(": ")
    metadata = {"kind": kind, "flags": names.split(), "help": text, "key": key}
    return dataclasses.field(default=default, metadata=metadata)


flag = partial(setting, key=False)  # only the command line sets it


def number(least: float, most: float, whole: bool = False) -> Kind:
    """Returns a checker of numbers in a range. JSON's true is not a number."""
    what = "a whole number" if whole else "a number"

    def check(value: Any) -> Any:
        is_number = isinstance(value, int if whole else (int, float))
        if is_number and not isinstance(value, bool) and least <= value <= most:
            return value
        raise ValueError(f"expected {what} from {least:g} to {most:g}")

    return check


whole_number = partial(number, whole=True)


def choice(*words: str) -> Kind:
    """Returns a checker of words."""

    def check(value: Any) -> Any:
        if value in words:
            return value
        near = nearest(str(value), words)
        raise ValueError(f"expected {' or '.join(words)} (the nearest is {near})")

    return check


def check_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        return value
    raise ValueError("expected true or false")


def check_true(value: Any) -> Any:
    if value is True:
        return value
    raise ValueError("expected true")


def check_text(value: Any) -> Any:
    """A string with something in it that an operating system can be given."""
    if isinstance(value, str) and value.strip() and "\0" not in value:
        with suppress(UnicodeEncodeError):  # half of a surrogate pair is no text
            os.fsencode(value)
            return value
    raise ValueError("expected a text or a path that is not empty")


check_path = partial(check_text)  # from the folder where the setting was written


def check_page(value: Any) -> Any:
    """So that a slip of the shell never writes a page over a recording."""
    if check_text(value).lower().endswith((".html", ".htm")):
        return value
    raise ValueError("expected a file name ending in .html")


def or_none(kind: Kind) -> Kind:
    """Returns a checker that also takes null, as for a setting that is off."""
    return lambda value: None if value is None else kind(value)


def check_duration(value: Any) -> float:
    """Returns seconds, from such as "90m", "2h" or "3d"."""
    found = re.fullmatch(r"(?!0+\D)(\d{1,6})([mhd])", str(value))
    if not found:
        raise ValueError("expected a time above 0, such as 90m, 2h or 3d")
    return int(found[1]) * {"m": 60.0, "h": 3600.0, "d": float(DAY)}[found[2]]


def check_bitrate(value: Any) -> int:
    """Bit/s from "96k" or 96000."""
    lowest, highest = FORMATS["opus"].rates
    with suppress(ValueError):
        rate = int(re.sub("k$", "000", str(value).lower()))
        if lowest <= rate <= highest:
            return rate
    raise ValueError('expected a bit rate from "6k" to "510k", such as "96k"')


def check_date(value: Any) -> str:
    """One that a calendar has, as YYYY-MM-DD."""
    try:
        return f"{datetime.strptime(str(value), '%Y-%m-%d'):%Y-%m-%d}"
    except ValueError:
        raise ValueError("expected a date such as 2025-10-27") from None


FREE_SPACE = re.compile(r"(\d{1,9}(?:\.\d+)?) ?(kB|MB|GB|TB|%)")
UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


def check_free(value: Any) -> Any:
    """Returns free space as a text: a size, or a share of the disk."""
    found = FREE_SPACE.fullmatch(str(value))
    if found and (found[2] != "%" or float(found[1]) < 100):
        return value
    raise ValueError('expected free space such as "20GB" or "10%"')


BOOLEAN_ACTIONS: Mapping[Any, Any] = {
    False: "store_true",
    True: "store_false",
    None: argparse.BooleanOptionalAction,
}
DAYS = number(0, 999_999)
FORMAT = choice(*FORMATS)
TEXTS = partial(check_text)  # any number of them
POLICY_KINDS: Mapping[str, Kind] = {
    "keep": check_boolean,
    "bitrate": check_bitrate,
    "after_days": DAYS,
    "format": FORMAT,
}
TIER_KINDS: Mapping[str, Kind] = {
    "after_days": DAYS,
    "bitrate": check_bitrate,
    "archive": check_path,
    "delete": check_true,
}


def check_members(value: Any, kinds: Mapping[str, Kind]) -> dict[str, Any]:
    """The members of an object of settings. Raises ValueError with what was expected."""
    if not isinstance(value, dict):
        raise ValueError(f"expected an object with some of {', '.join(kinds)}")
    members = {}
    for key, member in value.items():
        if key not in kinds:
            raise ValueError(f'there is no key "{key}"; the nearest is "{nearest(key, kinds)}"')
        try:
            members[key] = kinds[key](member)
        except ValueError as error:
            found = "" if ", found" in str(error) else f", found {json.dumps(member)}"
            raise ValueError(f'for "{key}" {error}{found}') from None
    return members


def check_tiers(value: Any) -> tuple[Tier, ...]:
    """Tiers, each with an age and what is to be done then."""
    if not isinstance(value, list):
        raise ValueError('expected a list such as [{"after_days": 30, "bitrate": "64k"}]')
    tiers = [check_members(each, TIER_KINDS) for each in value]
    for tier in tiers:
        if len(tier) != 2 or "after_days" not in tier:
            raise ValueError('expected "after_days", and one of "bitrate", "archive", "delete"')
    return tuple(Tier(**tier) for tier in tiers)


@dataclass(frozen=True)
class Config:
    """Every setting of a run, as resolved; a flag beats the config file, which beats the default.
    Fields are declared with `setting(...)`; paths are absolute, rates bit/s."""

    command: str = "run"
    file: str = flag(
        "",
        check_path,
        "-c --config FILE: settings (default: compression_config.json beside the program)",
    )
    recordings_dir: str = setting("recordings", check_path, "--recordings DIR: the library")
    log_file: str = setting("logs/compression.log", check_path)
    dry_run: bool = setting(
        False, check_boolean, "-n --dry-run: say what would happen, change nothing at all"
    )
    age_threshold_days: float = setting(
        7, DAYS, "--older-than DAYS: leave alone what was modified since"
    )
    target_bitrate: int = setting(96_000, check_bitrate, "--bitrate RATE: bit/s, or such as 96k")
    target_format: str = setting(
        "opus", FORMAT, "--format NAME: opus, or m4a for players without Opus"
    )
    delete_originals: bool = setting(
        True, check_boolean, "--keep-originals: leave every original beside its copy"
    )
    keep_originals_days: float = setting(0, DAYS)
    keep_free: Optional[str] = setting(None, or_none(check_free))
    verify_before_delete: bool = setting(True, check_boolean)
    check_days: int = setting(30, whole_number(0, 65_535))
    min_saving_percent: float = setting(5, number(0, 99))
    jobs: int = setting(
        0, whole_number(0, 999), "-j --jobs N: recordings at work at once; 0 is one a core"
    )
    only: Sequence[str] = flag(
        (), TEXTS, "--only GLOB: paths like this below the library (repeatable)"
    )
    since: Optional[str] = flag(None, check_date, "--since DATE: recorded then or later")
    until: Optional[str] = flag(None, check_date, "--until DATE: recorded then or before")
    language: Sequence[str] = flag(
        (), TEXTS, "--language CODE: recorded in this language (repeatable)"
    )
    limit: Optional[int] = flag(
        None, whole_number(1, 999_999_999), "--limit N: at most N recordings, oldest first"
    )
    max_run_minutes: Optional[float] = setting(
        None, or_none(number(0.001, 999_999)), "--max-minutes M: start nothing new after that"
    )
    retry: bool = flag(
        False, check_boolean, "--retry: take up again what earlier runs kept or failed"
    )
    json: bool = flag(False, check_boolean, "--json: JSON, one object a line")
    quiet: bool = flag(False, check_boolean, "-q --quiet: errors only")
    verbose: bool = flag(False, check_boolean, "-v --verbose: more detail")
    progress: Optional[bool] = flag(
        None, check_boolean, "--progress: how far it is; without this word, on a terminal only"
    )
    tiers: tuple[Tier, ...] = setting((), check_tiers)
    notify_command: Optional[str] = setting(None, or_none(check_text))
    notify_on: str = setting("work", choice("problem", "work", "always"))
    paths: Sequence[str] = flag((), TEXTS, "PATH: a kept original, its copy, a sidecar, a folder")
    last_run: bool = flag(False, check_boolean, "--last-run: all that the last run has changed")
    off: bool = flag(False, check_boolean, "--off: let runs work on these again")
    archive: bool = flag(False, check_boolean, "--archive: read archived files too")
    html: Optional[str] = flag(None, check_page, "--html FILE: write them as a page")
    host: str = flag("127.0.0.1", check_text, "--host H: address to listen on (default: 127.0.0.1)")
    port: int = flag(
        8765, whole_number(0, 65_535), "--port P: 0 is any that is free (default: 8765)"
    )
    scheduler: str = flag(
        "",
        choice("cron", "launchd", "systemd"),
        "cron|launchd|systemd: what is to run it every night",
    )
    pause_for: Optional[float] = flag(None, check_duration, "--for TIME: such as 90m, 2h or 3d")

    @property
    def archive_tier(self) -> Optional[Tier]:
        """Returns the tier that archives; there is at most one."""
        return next((tier for tier in self.tiers if tier.archive), None)

    @property
    def delete_tier(self) -> Optional[Tier]:
        """Returns the tier that deletes, if any; it is the last."""
        return next((tier for tier in self.tiers if tier.delete), None)

    @property
    def steps(self) -> tuple[Tier, ...]:
        """Returns all steps by age: the first compression, then the tiers."""
        return (Tier(self.age_threshold_days, self.target_bitrate), *self.tiers)

    def tier_rate(self, age: float) -> Optional[int]:
        """Returns the bit/s that the last tier asks for at `age` days, or None."""
        rates = [tier.bitrate for tier in self.tiers if tier.bitrate and age >= tier.after_days]
        return min(rates, default=None)

    def rate_at(self, age: float) -> int:
        """Returns the bit/s that a recording should have at `age` days, without a policy."""
        return min(self.target_bitrate, self.tier_rate(age) or self.target_bitrate)


SETTINGS = {field.name: field for field in dataclasses.fields(Config) if field.metadata}
VALUED = {  # flags with a value behind them
    flag
    for field in SETTINGS.values()
    if field.metadata["kind"] is not check_boolean
    for flag in field.metadata["flags"]
}
FILE_KINDS: Mapping[str, Kind] = {
    name: field.metadata["kind"] for name, field in SETTINGS.items() if field.metadata["key"]
}


def resolve_config(arguments: argparse.Namespace) -> Config:
    """Flags, checked when they were parsed, over the config file over the defaults. Raises
    UsageError naming the key, what was expected and, for an unknown one, the nearest known."""
    flags = {key: value for key, value in vars(arguments).items() if value is not None}
    folder = dirname(realpath(__file__))
    file = flags.get("file", join(folder, "compression_config.json"))
    is_there = "file" in flags or lexists(file)
    config = read_config(file) if is_there else Config()
    absolute = partial(absolute_from, dirname(file))
    places = {
        "recordings_dir": absolute(config.recordings_dir),
        "log_file": absolute(config.log_file),
        "tiers": tuple(tier._replace(archive=absolute(tier.archive)) for tier in config.tiers),
        "file": file if is_there else "",
        "dry_run": config.dry_run and flags.get("command") != "check",  # which has no dry run
    }
    config = dataclasses.replace(config, **{**places, **flags})
    lowest, highest = FORMATS[config.target_format].rates
    for tier in config.steps:
        if tier.bitrate and not lowest <= tier.bitrate <= highest:
            key = "tiers" if tier in config.tiers else "target_bitrate"
            expected = f"{config.target_format} at {lowest // 1000}k to {highest // 1000}k"
            raise UsageError(f'For "{key}" expected {expected}, found {tier.bitrate // 1000}k.')
        if f"{tier.archive}/".startswith(f"{config.recordings_dir}/"):
            expected = f"an archive apart from {config.recordings_dir}"
            raise UsageError(f'For "tiers" expected {expected}, found {tier.archive}.')
    return config


def absolute_from(folder: str, path: Optional[str]) -> Optional[str]:
    """A path of the config file; none, and an rclone remote (`name:path` with a name as rclone
    allows it) stay."""
    if path and not re.match(r"[\w.+@][\w.+@ -]*:", path):
        path = abspath(join(folder, os.path.expanduser(path)))
    return path


def read_config(path: str) -> Config:
    """The settings that a config file holds, checked. Raises UsageError naming the key and what was
    expected."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            document = json.load(file, object_pairs_hook=only_once)
        config = Config(**check_members(document, FILE_KINDS))
        check_steps(config)
    except (OSError, ValueError, RecursionError) as error:
        problem = error.strerror if isinstance(error, OSError) else error
        if isinstance(error, json.JSONDecodeError):
            problem = f"{error} (JSON has no comments, and no comma behind the last member)"
        raise UsageError(f"Config file {path}: {problem}. Nothing was touched.") from None
    return config


def only_once(members: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object; of two different orders under one key neither is followed."""
    document = dict[str, Any]()
    for key, value in members:
        if key in document:
            raise ValueError(f'the key "{key}" stands there twice')
        document[key] = value
    return document


def check_steps(config: Config) -> None:
    """Raises ValueError where a tier is no step on from what was before it. The first step may be
    written as a tier too."""
    days, age = config.age_threshold_days - 1e-6, "age_threshold_days"
    rate, size = config.target_bitrate + (config.steps[0] in config.tiers), "target_bitrate"
    for tier in config.tiers:
        # An archive is a step on from all bit rates, and deletion from an archive.
        step = tier.bitrate or -int(tier.delete)
        if tier.after_days <= days:
            least = f"{age}, which is {round(days, 3):g}"
            found = f"after_days {tier.after_days:g} must be above {least}"
            raise ValueError(f'"tiers": {found}')
        if step >= rate and rate <= 0:
            found = f"found another one at {tier.after_days:g} days"
            order = "expected bit rates first, then an archive, deletion last"
            raise ValueError(f'"tiers": {order}, {found}')
        if step >= rate:
            less = f"{step // 1000}k must be below {size}, which is {rate // 1000}k"
            raise ValueError(f'"tiers": bitrate {less}')
        days, age = tier.after_days, "that of the tier before"
        rate, size = step, age
    if rate < 0 and not config.delete_originals:
        raise ValueError('"tiers": one that deletes needs "delete_originals" to be true')


def policy_of(sidecars: Iterable[Sidecar], unreadable: str, folder: str = "") -> Policy:
    """Returns the most careful wish of each kind, checked like the configuration."""
    combined: dict[str, Any] = {}
    for sidecar in sidecars:
        try:
            said = {} if sidecar.policy is None else sidecar.policy
            wishes = check_members(said, POLICY_KINDS)
        except ValueError as error:
            flaw = f"{join(folder, sidecar.name)}: {error}"
            return Policy(flaw=flaw, unreadable=unreadable)
        for key, wish in wishes.items():
            combined[key] = max(wish, combined.get(key, wish))
    return Policy(**combined, unreadable=unreadable)


# ------------------------------------------------------------------------------------------- run
# One run from lock to summary: plan, then batches through probe and prove on every core, commits by
# the main thread alone as recordings become ready. May start threads. Must never change the library
# itself, and never lose an outcome: every move that was planned ends in the report. A dry run takes
# the same way, up to the decision.

LEVEL_BYTES = 64_000  # a second of audio: two level files of two channels, 32 bits, at 4 kHz
TRUSTED_SECONDS = 2 * DAY  # that the clock may be ahead of the last run on record
LONGEST_MESSAGE = 1000  # characters for a notify_command; in JSON, one may take twelve bytes
NOTIFY_SECONDS = 30.0  # beside a tool's grace: a mail server may be slow, a run must not hang on it


class Run:
    """All that the parts of a run share: `config`, `report`, `library`, `history`, `moment`, and
    while at work `stop`, `tools`, `staging`, `committer`."""

    stop: Stop
    tools: Tools
    staging: Staging
    committer: Committer
    transcoder: Transcoder
    trials: Trials

    def __init__(self, config: Config, report: Report) -> None:
        self.config, self.report = config, report
        self.library = Library(config.recordings_dir)
        self.now, self.started = time.time(), monotonic()
        self.workers = config.jobs or allowed_cores()
        self.is_locked = False
        self.finished: list[Move] = []  # proven or refused, still to be committed
        self.doomed: dict[str, int] = {}  # what the next run deletes: bytes by stem
        self.unowned: set[str] = set()  # what it would delete, if a sidecar owned it
        self.early: dict[str, None] = {}  # folders that may have a move for `keep_free`
        self.is_spent = False  # no such move is left
        self.moved: set[str] = set()  # stems of the takes that made a move, if room may be made
        self.committed, self.cost = self.started, 0.0  # when last, and the seconds that it took
        self.losses = Losses(self)

    @property
    def history(self) -> History:
        return self.library.history

    @property
    def last(self) -> Mapping[str, Any]:
        """Returns the record of the last run, or an empty one."""
        return self.history.last_run

    @cached_property
    def clock(self) -> Moment:
        """Returns the time by the clock alone."""
        return Moment(self.now, self.now)

    @cached_property
    def moment(self) -> Moment:
        """Returns the time for steps by age: by the clock, but at most two days after the last run
        on record. The first compression may also count from the newest recording. Without a run on
        record, the clock is trusted for the first compression alone. Raises OSError."""
        if not self.last:
            return Moment(self.now, -math.inf)
        trusted = self.last["time"] + TRUSTED_SECONDS
        if self.now <= trusted:
            return self.clock
        newest = 0.0
        for folder in self.library.walk(str):
            times = [file.mtime_ns / 1e9 for file in folder.audio]
            newest = max(newest, *(time for time in times if time <= self.now), 0)
        return Moment(min(self.now, max(trusted, newest + TRUSTED_SECONDS)), trusted)

    def execute(self) -> None:
        """Carries out `run`. Reports errors itself: log line, summary, run record and notification
        follow also after a run that could not begin."""
        message = ""
        try:
            self.report.open_log()
            self.library.require(self.config.log_file)
            self.report.is_new = not lexists(self.library.own("history.jsonl"))
            message = self.library.paused(self.now)
            if message:
                self.report.once(message)
            elif self.config.dry_run or self.is_begun():
                with self.open(locks=not self.config.dry_run):
                    groups = self.plan()
                    if self.losses.find():  # copies that are known again may be due
                        groups = self.plan()
                    self.work(groups)
                    self.announce()
                    self.report_space()
        except Exception as error:  # so that nothing ends a run in silence
            message = self.report.failed(error)
        summary = self.report.summary(message)
        if self.is_locked:
            self.note(summary)
        notify(self.config, self.report, summary)

    def is_begun(self) -> bool:
        """Returns whether a run did something here before, or has something to do now. Our own
        folder is made only then."""
        if not self.report.is_new:
            return True
        is_due = next(self.due_groups(), None)
        # Steps that wait for the second run need the first one on record.
        waits = self.report.held or (self.report.found and self.shortage > 0)
        return bool(is_due or waits or self.doomed or self.report.ahead > 1)

    @contextmanager
    def open(self, locks: bool) -> Iterator[None]:
        """Stop signals, tools and staging, and for who `locks` the library, as a run and restore
        do, the committer."""
        with stop_signals() as self.stop, ExitStack() as stack:
            self.tools = Tools(self.stop)
            self.transcoder = Transcoder(self.tools, self.config.verify_before_delete)
            self.staging = Staging(self.library)
            self.trials = Trials(self.library, self.staging if locks else None)
            if locks:
                stack.enter_context(self.library.lock())
                stack.enter_context(self.staging)
                self.library.history = History(self.library)  # another run may have been faster
                self.committer = Committer(self)
                self.is_locked = True
            with suppress(Stopped):
                yield
        if self.stop.signal:
            name = signal.Signals(self.stop.signal).name
            kept = "what was not finished is as it was; run again to go on."
            self.report.error(f"Stopped by {name}: {kept}", 128 + self.stop.signal)

    def note(self, summary: Mapping[str, Any]) -> None:
        """Appends the record of this run, dated by its start. If all documents are true, the record
        has the SHA-256 of the index."""
        is_true = not self.committer.ids and not self.report.exit_code
        record = {
            **summary,
            "type": self.config.command,
            "python": sys.executable,
            "index": self.committer.index_digest if is_true else "",
            "checked": self.losses.checked,
            "short": self.was_short,
        }
        tier = self.config.delete_tier
        if tier and (self.is_announced or self.is_complete):
            record["announced"] = tier.after_days
        self.history.note([record], self.now)

    @property
    def is_part(self) -> bool:
        config = self.config
        return any((config.only, config.language, config.since, config.until, config.limit))

    @property
    def is_complete(self) -> bool:
        """Returns whether this run does all that the settings ask for, as far as it is now."""
        config, report = self.config, self.report
        is_whole = config.command == "run" and config.delete_originals and not self.is_part
        return bool(is_whole and self.is_locked and not report.exit_code and not report.left)

    @cached_property
    def is_announced(self) -> bool:
        """Returns whether a complete run has announced what the tier that deletes deletes now. Each
        run hands that on to the next."""
        tier = self.config.delete_tier
        return not tier or self.last.get("announced") == tier.after_days

    def deletions(self, recording: Recording) -> list[Move]:
        """Returns the moves with which a tier deletes a recording by the clock, also if this run
        does not make them. Asks again for what stayed or was given up before."""
        config = dataclasses.replace(self.config, retry=True, delete_originals=True)
        return deleting(recording, config, self.clock) or []

    @cached_property
    def planned(self) -> Config:
        """Returns the settings to plan with: without a tier that is still to be announced. A dry
        run need not wait for that."""
        is_free = self.is_announced or self.config.dry_run
        tiers = tuple(tier for tier in self.config.tiers if is_free or not tier.delete)
        return dataclasses.replace(self.config, tiers=tiers)

    def is_doomed(self, recording: Recording) -> bool:
        """Returns whether a recording waits for its deletion to be announced, and counts it."""
        moves = [] if self.is_announced else self.deletions(recording)
        for move in moves:  # all of them stay, or none
            if move.reason is Reason.NO_SIDECAR:
                self.unowned.add(move.take.stem)
        is_doomed = any(move.is_done for move in moves)
        if is_doomed:
            self.doomed.update((move.take.stem, move.take.size) for move in moves)
        is_listed = self.config.dry_run and self.moment == self.clock  # as to be deleted
        return is_doomed and not is_listed

    def announce(self) -> None:
        """Reports what the tier that deletes will delete from the next run on. A dry run says
        when."""
        tier, report = self.config.delete_tier, self.report
        if not tier:
            return
        if self.config.dry_run:
            days, today = next_deletions(add_up(self, []), self.now), local_time(self.now)[:10]
            if report.counts[Action.WOULD_DELETE]:  # those of today are listed
                days = [day for day in days if day["date"] > today]
            report.remarks += deletion_texts(self, days)
        text = (
            f"{len(self.doomed)} recordings ({size_text(sum(self.doomed.values()))}) for good. "
            f"{len(self.unowned)} files without a sidecar stay"
        )
        if self.is_announced:
            return
        if self.config.dry_run:
            report.remarks.append(f"As of now: {text}")
        elif self.is_complete:
            new = f"The tier of {tier.after_days:g} days is new: the next run deletes"
            report.announce(f"{new} {text}")

    @property
    def shortage(self) -> float:
        """Returns the bytes that are missing to what `keep_free` asks for, 0 or less if none are. A
        dry run takes what it would free for free."""
        gained = self.report.saved if self.config.dry_run else 0
        return space_wanted(self.library, self.config) - free_space(self.library) - gained

    @cached_property
    def was_short(self) -> bool:
        """Returns whether a lack of space is on record."""
        return bool(self.last.get("short"))

    def report_space(self) -> None:
        """Reports a lack of space. Where it begins or ends, that is announced."""
        is_short = self.shortage > 0
        is_news = is_short != self.was_short
        if is_short:
            wanted = size_text(space_wanted(self.library, self.config))
            text = f"{size_text(free_space(self.library))} free, keep_free asks for {wanted}"
            if self.is_spent and not self.report.exit_code and self.moment == self.clock:
                text += ". No step is left that would free more"
            self.report.announce(text, is_news)
        elif is_news and self.config.keep_free:
            self.report.announce("As much space is free again as keep_free asks for")
        self.was_short = is_short

    def make_room(self, steps: Iterable[Config], kind: type[Move]) -> bool:
        """Makes moves before their age, one step after the other, while space is short. It looks at
        the free space again once as many bytes as were missing have been worked on. Returns whether
        that was all it could do."""
        for config in steps if self.shortage > 0 else ():
            self.planned = config
            groups = filter(self.may_move, self.early_groups())
            ours = (group for group in groups if isinstance(group[0], kind))
            waiting = deque(sorted(ours, key=place_in_line))
            while waiting and self.shortage > 0:
                missing, batch = self.shortage, list[list[Move]]()
                while waiting and missing > 0:
                    missing -= sum(move.source_size for move in waiting[0])
                    batch.append(waiting.popleft())
                batch = self.within_limit(batch)
                if not batch or self.must_end():
                    return False
                self.carry_out_all(batch)
        return True

    def early_groups(self) -> Iterator[list[Move]]:
        """Yields the groups of the folders that may have a move before its age, except what is kept
        or was given up."""
        for path in self.early:
            with suppress(OSError, UsageError):  # it went meanwhile
                for recording in self.recordings_in(self.library.folder(path)):
                    for group in self.groups_of(recording):
                        if not any(move.outcome or move.take.past.is_given_up for move in group):
                            yield group

    def may_move(self, group: Sequence[Move]) -> bool:
        """Returns whether no take of these moves has moved in this run."""
        first = group[0]
        stems = first.recording.stems if first.is_whole else {first.take.stem}
        return self.moved.isdisjoint(stems)

    def plan(self) -> list[list[Move]]:
        """Returns every move of this run in groups, oldest recording first, cut to --limit between
        two groups. A whole recording is one group, any other move another. Also looks into an index
        that is not as we left it. Raises ServiceError if the clock cannot be true."""
        self.report.ahead = 0  # the walk counts anew
        self.doomed.clear()
        self.check_clock()
        groups = sorted(self.due_groups(), key=place_in_line)
        self.check_clock()
        if self.is_locked:
            self.committer.attempt((), self.committer.look_at_index)
        return self.within_limit(groups)

    def within_limit(self, groups: list[list[Move]]) -> list[list[Move]]:
        """Returns the groups that --limit admits beside those before."""
        counts = itertools.accumulate(map(len, groups), initial=self.report.due)
        limit = self.config.limit or math.inf
        return [group for group, before in zip(groups, counts) if before < limit]

    def due_groups(self) -> Iterator[list[Move]]:
        """Yields these groups folder by folder, and counts what the walk meets.

        Documents are read except in a folder whose note still holds. A run that may write makes all
        that it has read true at the end."""
        config, report, is_found = self.config, self.report, False
        report.found = report.young = report.links = report.ahead = report.held = 0
        ahead: list[str] = []
        for folder in every_folder(self.library, report.error, report.once):
            originals = (file for file in folder.audio if file.is_original)
            young = (stem_of(file.name) for file in originals if self.is_young(file))
            late = [file.name for file in folder.audio if file.age(self.now) < -1]
            report.found += len({stem_of(file.name) for file in folder.audio})
            report.young += len(set(young))
            report.ahead += len(set(map(stem_of, late)))
            report.links += folder.links
            ahead += [join(folder.path, name) for name in late[: NAMED - len(ahead)]]
            if self.is_locked:
                self.staging.sweep(folder)
            self.losses.met[folder.path] = len(folder.audio)
            if self.is_at_rest(folder):
                continue
            for recording in self.recordings_in(folder):
                groups = self.groups_of(recording)
                with boundary(partial(report.defect, f"{recording.key} was kept")):
                    self.losses.doubt(recording)
                    report.held += count_held(recording, config, self.moment, self.clock)
                is_found = is_found or bool(groups)
                yield from groups
            if self.is_locked:
                self.committer.folders.add(folder.path)
        for path in () if is_most(vars(report)) else ahead:
            report.once(f"{path} is dated in the future: no run touches it until then.")
        is_selective = config.only or config.language or config.since or config.until
        if is_selective and not is_found:
            hint = " Paths for --only are such as '2025-10-27/*'." if config.only else ""
            report.once(f"The selection fits nothing that is due.{hint}")

    def groups_of(self, recording: Recording) -> list[list[Move]]:
        """Returns the moves of a recording in groups. After a defect it returns none and reports
        that."""
        with boundary(partial(self.report.defect, f"{recording.key} was kept")):
            if self.is_doomed(recording):
                return []
            moves = moves_of(recording, self.planned, self.moment)
            return [moves] if moves and moves[0].is_whole else [[move] for move in moves]
        return []

    def is_young(self, file: File) -> bool:
        return file.age(self.now) < self.config.age_threshold_days

    def is_at_rest(self, folder: Folder) -> bool:
        """Returns whether nothing can be due in a folder: nothing is old enough or on record, or
        all is as a run has left it. So a night with nothing to do reads no document, and little of
        the history."""
        note = self.note_on(folder)
        if folder.audio and note.get("early", True):
            self.early[folder.path] = None
        if note and not self.config.retry:
            return True
        is_new = all(map(self.is_young, folder.audio))
        if is_new and not self.history.in_folder(folder.path):
            return True
        mount = read_only_mount(self.library, folder.path)
        if mount:
            self.report.once(f"{mount} is mounted read-only, and was passed over.")
        return bool(mount)

    def note_on(self, folder: Folder) -> Mapping[str, Any]:
        """Returns the note on a folder, empty if it does not hold any more."""
        note = self.history.note_on(folder.path)
        is_over = self.now >= (finite(note.get("until")) or math.inf)
        holds = note and not is_over and note.get("rest") == fingerprint(folder, self.config)
        return note if holds else {}

    def check_clock(self) -> None:
        """Raises ServiceError if the clock cannot be true. This run then goes on record with its
        time, and with the number of recordings dated ahead. So the next run works again."""
        last, why = self.last, ""
        if last and self.now < last["time"] - DAY:
            why = f"the last run was at {local_time(last['time'])}"
        elif is_most(vars(self.report)) and not is_most(last):
            why = f"of {self.report.found} recordings, {self.report.ahead} are dated later"
        if why:
            raise ServiceError(
                f"The clock cannot be true: it says {local_time(self.now)}, and {why}. Nothing was "
                "done by age. If it is true after all, run again."
            )

    def work(self, groups: list[list[Move]]) -> None:
        """Carries out all that a run has to do, and reads the copies whose turn it is. While space
        is short, originals are freed first: all other work needs some space itself."""
        steps = list(early_steps(self.planned, not self.last))
        with self.finishing():
            self.make_room(steps[:1], Free)
            groups[:] = self.within_limit(list(filter(self.may_move, groups)))
            self.carry_out_all(groups)
            self.is_spent = self.make_room(steps, Move)
            self.losses.read_share()

    def carry_out_all(self, groups: list[list[Move]]) -> None:
        """Carries out moves of single takes, then those of whole recordings, so that an archive
        that is not mounted stops no compression. The list is emptied, because the packets of one
        recording may take 40 kB."""
        moves = list(itertools.chain(*groups))
        self.report.begin(moves)
        if self.config.keep_free:
            self.moved.update(move.take.stem for move in moves)
        wholes = [group for group in groups if group[0].is_whole]
        singles = deque(each for each in moves if isinstance(each, Compress) and not each.is_whole)
        if groups and self.config.dry_run:
            read_signs(self.library)
        elif groups:
            try_commits(self.library)
        if singles and self.config.dry_run:
            self.try_ffmpeg_on(singles[0])
        groups.clear()
        moves.clear()
        self.compress(singles)
        self.carry_out(wholes)

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Makes documents and index true, whatever ends the work inside. Reports an error first, so
        that its consequences are not reported."""
        try:
            yield
        except ServiceError as error:
            self.report.failed(error)
            raise
        finally:
            if self.is_locked:
                self.committer.finish()

    def compress(self, moves: deque[Compress]) -> None:
        """Keeps every worker busy with batches, and commits what comes back; where an error ends
        it, what was proven before is brought to its end."""
        self.finished += [move for move in moves if move.outcome]
        queue = Queue([move for move in moves if not move.outcome], self.workers)
        moves.clear()
        try:
            with Threads(self.workers) as pool:
                self.transcode_all(queue, pool)
        finally:
            self.commit()

    def transcode_all(self, queue: Queue, pool: Executor) -> None:
        running: dict[Future[None], Sequence[Compress]] = {}
        try:
            while True:
                while len(running) < self.workers:
                    batch = self.next_batch(queue, itertools.chain(*running.values()))
                    if not batch:
                        break
                    running[pool.submit(self.transcode, batch)] = batch
                if not running:
                    return
                self.commit_in_time()  # while all are at work
                for future in wait(running, 0.5, FIRST_COMPLETED).done:
                    batch = running.pop(future)
                    future.result()
                    self.finished += [move for move in batch if move.is_ready]
                    self.find_cause(batch)
                    self.finished += [move for move in batch if move.outcome]
                    if self.transcoder.ended:
                        raise self.transcoder.ended
                at_work = itertools.chain(*running.values())
                left = queue.remaining + sum(move.seconds_left for move in at_work)
                self.report.progress(queue.seconds - left, queue.seconds)
        except BaseException:
            self.stop.is_over = True  # an error ends the run: what is at work is dropped
            raise

    def carry_out(self, groups: Iterable[Sequence[Move]]) -> None:
        """Carries out the moves of whole recordings, and commits as `compress` does. Raises
        Stopped, ServiceError."""
        try:
            for group in groups:
                if self.must_end():
                    break
                for move in group:
                    if not move.outcome:
                        with boundary(move.refuse):
                            self.carry(move)
                keep_together(group)
                self.finished += group
                if self.archive and self.archive.refusal:
                    raise ServiceError(self.archive.refusal)
                self.commit_in_time()
        finally:  # what was proven before is brought to its end
            self.commit()

    def carry(self, move: Move) -> None:
        """Does all of a move but its commit. Raises Refusal, OSError, Stopped, ServiceError."""
        if self.stop.requested:
            raise Stopped
        if not isinstance(move, Restore):  # which may leave what cannot be removed
            self.trials.foresee(move)
        if self.config.dry_run:
            move.outcome = Outcome(move.due, move.foresee(self))
        else:
            move.carry(self)
            move.is_proven = True

    @cached_property
    def archive(self) -> Optional[Archive]:
        """Returns the archive that tiers name."""
        tier = self.config.archive_tier
        if not (tier and tier.archive):
            return None
        kind = FolderArchive if os.path.isabs(tier.archive) else RemoteArchive
        return kind(tier.archive, self)

    @cached_property
    def answering_archive(self) -> Archive:
        """Returns the archive, once it has been tried. Raises ServiceError."""
        assert self.archive
        self.archive.try_it()
        return self.archive

    def next_batch(self, queue: Queue, at_work: Iterable[Compress]) -> Sequence[Compress]:
        """Returns moves that the disk has room for beside those at work. Returns none to wait for
        these, or at the end."""
        if not queue.waiting or self.must_end():
            return ()
        reserved = SPACE_MARGIN + sum(move.space_needed for move in at_work)
        batch = queue.take(free_space(self.library) - reserved)
        if batch or reserved > SPACE_MARGIN:
            return batch
        self.commit()  # which gives space back
        room = free_space(self.library) - reserved
        for _ in range(len(queue.waiting)):
            batch = queue.take(room)
            if batch:
                return batch
            queue.waiting.rotate(-1)  # the next one may need less
        return [queue.waiting.popleft()]  # which is reported by `stage`

    def commit_in_time(self) -> None:
        """Commits so seldom that it takes little of the time, as many sidecars of one recording are
        dear to write."""
        if monotonic() - self.committed > max(1.0, 10 * self.cost):
            self.commit()

    def commit(self) -> None:
        """Commits all that is finished; only the main thread comes here."""
        moves, self.finished = self.finished, []
        started = monotonic()
        if self.is_locked:
            self.committer.commit(moves)
        else:
            for move in moves:
                self.report.outcome(move)
        self.committed = monotonic()
        self.cost = self.committed - started

    def no_space(self, detail: str) -> NoSpaceError:
        done = "What is not done is as it was. Make room and run again."
        return NoSpaceError(f"Too little disk space in {self.library.root}: {detail}. {done}")

    def recordings_in(self, folder: Folder) -> list[Recording]:
        """Returns the recordings of a folder. After a defect it returns none and reports that."""
        with boundary(partial(self.report.defect, f"All in {folder.path} was kept")):
            return resolve_recordings(folder)
        return []

    def transcode(self, moves: Sequence[Compress]) -> None:
        """Carries out one batch, in a thread: each move is proven then, or has its outcome. The one
        boundary around one recording. Raises Stopped, ServiceError."""
        jobs: dict[Compress, Job] = {}
        try:
            for move in moves:
                with boundary(move.refuse):
                    move.examine(self)
                    if not move.outcome:
                        jobs[move] = move.job = move.stage(self)
            self.transcoder.process(list(jobs.values()))
            for move, job in jobs.items():
                if not isinstance(job.problem, Stopped):
                    with boundary(move.refuse):
                        move.finish(self, job)
        finally:
            for move, job in jobs.items():
                self.staging.discard(job.source_levels)
                self.staging.discard(job.copy_levels)
                if not move.is_ready:  # its space may be needed by the commit
                    self.staging.discard(move.staged)

    def try_ffmpeg_on(self, move: Move) -> None:
        """Tries whether ffmpeg makes what this move is to make, and can open its source. Raises
        ToolError."""
        try_ffmpeg(self.tools, move.target, self.library.path(move.path))

    def find_cause(self, moves: Sequence[Move]) -> None:
        """After failures that may lie outside the recordings, tries what they needed. Raises the
        ServiceError that ends the run, before any of them counts. Else they are the recordings'
        own, and what ffmpeg refuses is damaged."""
        suspects = [move for move in moves if move.reason.may_be_ffmpeg]
        if suspects:
            self.try_ffmpeg_on(suspects[0])
        for move in moves:
            reason, detail, _ = move.result
            if reason is Reason.NO_SPACE:
                raise self.no_space(detail)
            if reason is Reason.TOOL_REFUSED:
                move.outcome = Outcome(Reason.DAMAGED, f"ffmpeg cannot decode it ({detail})")
        if self.is_locked and any(move.reason.is_environment for move in moves):
            try_commits(self.library)

    def must_end(self) -> bool:
        """Returns whether nothing new may begin: a signal, --max-minutes, or in a run a pause
        meanwhile. (--limit is the plan's.)"""
        minutes = self.config.max_run_minutes or math.inf
        is_late = monotonic() - self.started > minutes * 60
        is_paused = self.config.command == "run" and self.library.paused(time.time()) != ""
        if is_late:
            self.report.once("Time is up (max_run_minutes); what is left is for the next run.")
        elif is_paused:
            self.report.once("Paused while at work; what is left waits for 'resume'.")
        is_full = self.report.exit_code == NoSpaceError.exit_code
        return self.stop.requested or is_late or is_paused or is_full


def notify(config: Config, report: Report, summary: Mapping[str, Any]) -> None:
    """Gives a summary to the user's own command, if `notify_on` asks for it. A pause stands first
    in the message. A failure is reported and changes nothing."""
    is_work = report.has_news and config.notify_on == "work" and config.command == "run"
    is_asked = config.notify_on == "always" or summary["exit_code"] or report.is_urgent
    is_wanted = is_work or is_asked
    if config.dry_run or not config.notify_command or not is_wanted:
        return
    message = summary["message"]
    pause = Library(config.recordings_dir).paused(time.time())
    if pause not in message:
        message = f"{pause} {message}"
    with suppress(UnicodeError):  # else a name in it is no text
        message = os.fsencode(message).decode()  # in a locale that is not UTF-8
    message = printable(message)[:LONGEST_MESSAGE]
    in_utf_8 = os.fsdecode(message.encode())
    locale = os.environ.get("LC_ALL", "")  # the user's: tools of ours get another
    settings = (f"EXIT_CODE={summary['exit_code']}", f"MESSAGE={in_utf_8}", f"LC_ALL={locale}")
    command = ["/usr/bin/env", *settings, "/bin/sh", "-c", config.notify_command]
    folder = dirname(config.file) or "/"
    reader, writer = os.pipe()
    try:
        told = json.dumps({**summary, "message": message})
        os.write(writer, told.encode())  # less than a pipe holds
        os.close(writer)
        Tools(Stop()).run(command, NOTIFY_SECONDS, folder, reader, subprocess.DEVNULL)
    except (Refusal, ToolError) as error:
        report.once(f"The notify_command failed: {detail_of(error)}.")
    finally:
        os.close(reader)


@contextmanager
def boundary(refuse: Callable[[Exception], object]) -> Iterator[None]:
    """Gives any error inside to `refuse`. So a defect costs one recording its turn, and not the
    run. Raises Stopped, ServiceError."""
    try:
        yield
    except (Stopped, ServiceError):
        raise
    except Exception as error:
        refuse(error)


def free_space(library: Library) -> float:
    """Bytes; infinite where the file system does not say, as some on FUSE. Raises OSError."""
    disk = disk_state(library.root)
    return disk.f_bavail * disk.f_frsize if disk else math.inf


def space_wanted(library: Library, config: Config) -> float:
    """Returns the bytes that `keep_free` asks for, 0 without it. Raises OSError."""
    found = FREE_SPACE.fullmatch(config.keep_free or "")
    if not found:
        return 0.0
    return float(found[1]) * UNITS.get(found[2], disk_size(library) / 100)


def disk_size(library: Library) -> float:
    """Bytes; 0 where the file system does not say. Raises OSError."""
    disk = disk_state(library.root)
    return disk.f_blocks * disk.f_frsize if disk else 0.0


def disk_state(path: str) -> Optional[os.statvfs_result]:
    """Returns the size and room of a file system, None if it does not say: unknown is not full."""
    with tolerated((*NO_FLUSH, errno.EOVERFLOW)):
        disk = os.statvfs(path)
        return disk if disk.f_blocks else None
    return None


def allowed_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def place_in_line(group: Sequence[Move]) -> tuple[bool, int, str]:
    """Sorts groups: the oldest recording first, those whose tool was ended from outside last."""
    recording = group[0].recording
    was_hindered = group[0].take.past.code == Reason.TOOL_KILLED.code
    times = [file.mtime_ns for take in recording.takes for file in take.files]
    return was_hindered, min(times, default=0), recording.key


def is_most(told: Mapping[str, Any]) -> bool:
    """Returns whether more than half of the recordings are dated ahead. One alone never is most."""
    ahead = finite(told.get("ahead"))
    return ahead > 1 and 2 * ahead > finite(told.get("found"))


class Queue:
    """Hands out moves in batches of about the same length that the disk has room for. Every worker
    gets equally many batches."""

    def __init__(self, moves: Sequence[Compress], workers: int) -> None:
        self.waiting = deque(moves)
        self.seconds = sum(move.guessed_seconds for move in moves)
        self.remaining = self.seconds
        least = max(len(moves) / BATCH_FILES, self.seconds / BATCH_SECONDS)
        self.batches = workers * max(1, math.ceil(least / workers))

    def take(self, room: float) -> Sequence[Compress]:
        """Returns the next batch that fits into so many bytes, empty if none does. It is as near
        as can be to an equal share of what remains."""
        moves: list[Compress] = []
        seconds, share = 0.0, self.remaining / max(1, self.batches)
        while self.waiting and len(moves) < BATCH_FILES:
            first = self.waiting[0]
            room -= first.space_needed
            if room < 0 or (moves and seconds + first.guessed_seconds / 2 > share):
                break
            moves.append(self.waiting.popleft())
            seconds += first.guessed_seconds
        self.batches -= bool(moves)
        self.remaining -= seconds
        return moves


def command_run(config: Config, report: Report) -> None:
    Run(config, report).execute()


# ---------------------------------------------------------------------------------------- trials
# Tries what the commits of a run will need, on files of our own. A run does so before it encodes
# anything, doctor does so always. A dry run may write nothing, so it reads the signs. All three
# report the same cause in the same words. Nothing here may touch a recording.

CAP_CHOWN, CAP_FOWNER = 0, 3  # capabilities(7)
GET_FLAGS = 0x80006601 | struct.calcsize("l") << 16  # FS_IOC_GETFLAGS of ioctl_iflags(2)
IMMUTABLE_OR_APPEND = 0x30
# File systems of a server or a daemon, which decides who may give files away (NFS squashes root).
SERVED = re.compile(r"fuse|nfs|cifs|smb|9p|ceph|afs|virtiofs|vboxsf|prl_fs")


def try_commits(library: Library) -> None:
    """Opens the history, and does in our own folder what commits do. Raises ServiceError,
    NoSpaceError."""
    folder, staging = library.own(""), Staging(library)
    library.require_there()
    try:
        os.close(library.open_own("history.jsonl", os.O_WRONLY | os.O_APPEND))
        staging.write(bytes(4096), staging.levels())
        try_names(staging, library.own("levels"))
        flush_folder(folder)
    except OSError as error:
        raise failed_trial(folder, error) from None
    finally:
        remove_all(staging.made)


def try_names(staging: Staging, near: str) -> None:
    """Makes, exchanges, links and removes files of ours beside a path. Raises OSError."""
    one, two = staging.beside(near), staging.beside(near)
    if exchange(one, two):
        os.unlink(one)
    place(two, one)
    os.unlink(one)


class Trials:
    """Tries once in each folder what the commits of a run need there. Without `staging`, as in a
    dry run, it reads the signs."""

    def __init__(self, library: Library, staging: Optional[Staging] = None) -> None:
        self.library, self.staging = library, staging
        self.trying = threading.Lock()  # so that each folder is tried once

    def foresee(self, move: Move) -> None:
        """Raises Refusal if a commit could not make, give away, replace or remove a file. Raises
        OSError."""
        folder = move.take.folder
        documents = [join(folder, sidecar.name) for sidecar in move.recording.sidecars]
        if self.library.index_names_files:
            documents.append(INDEX_NAME)
        for each in {folder, *map(dirname, documents)}:
            with self.trying:
                problem = self.folder_problem(each)
            if problem:
                raise Refusal(Reason.FORESEEN, f"{each or self.library.root}: {problem}")
        displaced = move.take.copy if move.encodes else None
        replaced = {file.name for file in (*move.removes, displaced) if file}
        needed = 0 if move.is_whole else READ  # nothing is made in its place
        files = [
            (join(folder, name), needed, name in replaced)
            for name in {basename(move.path), *replaced}
        ]
        for about in (*files, *((path, READ_WRITE, True) for path in documents)):
            with suppress(FileNotFoundError):  # archived, or deleted meanwhile
                self.foresee_file(*about)

    @memoized
    def folder_problem(self, folder: str) -> str:
        """Returns why nothing can be committed in a folder, "" if it can. Raises OSError."""
        path = self.library.path(folder)
        if is_protected(path):
            return "it is immutable, or append-only"
        try:
            if not os.access(path, os.W_OK | os.X_OK):
                raise system_error(errno.EACCES)
            if self.staging:
                for name in os.listdir(path):
                    # Earlier runs could not remove it. (Other threads make such names here too.)
                    if STAGED.fullmatch(name) and self.staging.token not in name:
                        os.unlink(join(path, name))
                try_names(self.staging, join(path, "x"))
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            return f"files cannot be made and removed there: {error.strerror}"
        return ""

    @memoized  # many chunks have the same sidecars
    def foresee_file(self, path: str, needed: int, is_replaced: bool) -> None:
        """Raises Refusal if a file cannot be replaced. Raises it too if its owner would lose a
        `needed` permission bit on the new file. Raises OSError."""
        whole = self.library.path(path)
        folder = dirname(whole)
        user, groups = os.geteuid(), (os.getegid(), *os.getgroups())
        with open_regular(whole) as file:
            before, acl = os.fstat(file.fileno()), access_list(file.fileno())
        above = os.stat(folder)
        is_owner = user in (above.st_uid, before.st_uid) or has_capability(CAP_FOWNER)
        if is_replaced and is_protected(whole):
            raise Refusal(Reason.FORESEEN, f"{path}: it is immutable, or append-only")
        if is_replaced and above.st_mode & stat.S_ISVTX and not is_owner:
            why = "it is sticky: only the owner of a file can replace it"
            raise Refusal(Reason.FORESEEN, f"{dirname(path) or folder}: {why}")
        if needed and user != before.st_uid and not self.can_give(folder, before.st_uid):
            group = before.st_gid if before.st_gid in groups else groups[0]
            mode_without_owner(before, user, group, acl, needed)

    @memoized
    def can_give(self, folder: str, user: int) -> bool:
        """Returns whether a file of ours can be given to a user. Root cannot do so in every
        container, nor on every server. Raises OSError."""
        if not has_capability(CAP_CHOWN):
            return False
        if self.staging:
            staged = self.staging.beside(join(folder, "x"))
            with suppress(OSError):
                os.chown(staged, user, -1)
            is_given = os.stat(staged).st_uid == user
            self.staging.discard(staged)
            return is_given
        # The signs: the users that this container knows, what an earlier run did, kind of disk.
        with suppress(FileNotFoundError), open("/proc/self/uid_map") as file:
            ranges = [tuple(map(int, line.split())) for line in file]
            if not any(first <= user < first + count for first, _, count in ranges):
                return False
        owner = os.stat(self.library.root).st_uid
        with suppress(OSError):
            history = os.stat(self.library.own("history.jsonl"))
            if owner != os.geteuid():
                return history.st_uid == owner
        return not SERVED.match(kind_of_disk(folder))


def kind_of_disk(path: str) -> str:
    """Returns the type of a path's file system (proc(5), mountinfo), "" if it is not known. Raises
    OSError."""
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    with suppress(FileNotFoundError), open("/proc/self/mountinfo") as file:
        for line in file:
            mount, _, kind = line.partition(" - ")
            if mount.split()[2] == number:
                return kind
    return ""


def is_protected(path: str) -> bool:
    """Returns whether a file or folder is immutable or append-only (chattr, chflags). Raises
    OSError."""
    if sys.platform == "darwin":
        locks = stat.UF_IMMUTABLE | stat.UF_APPEND | stat.SF_IMMUTABLE | stat.SF_APPEND
        return bool(os.lstat(path).st_flags & locks)
    descriptor = os.open(path, os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        flags = fcntl.ioctl(descriptor, GET_FLAGS, bytes(8))[:4]
    except OSError:  # a file system without such flags
        return False
    finally:
        os.close(descriptor)
    return bool(int.from_bytes(flags, sys.byteorder) & IMMUTABLE_OR_APPEND)


def read_only_mount(library: Library, path: str) -> str:
    """Returns the uppermost folder of the read-only mount that holds `path`. Returns "" if there is
    none inside the library, or if the whole library is read-only."""
    top = ""
    while path and not is_read_only(library.root) and is_read_only(library.path(path)):
        top, path = path, dirname(path)
    return top


def is_read_only(path: str) -> bool:
    """Returns whether a path is on a read-only mount."""
    with suppress(OSError):
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    return False


def failed_trial(where: str, error: OSError) -> ServiceError:
    """Returns the error for a run that cannot write to a place."""
    where = error.filename or where
    if is_full(error):
        return NoSpaceError(
            f"The disk of {where} is full. Nothing was changed; make room and run again."
        )
    return ServiceError(
        f"{where} cannot be written to: {error.strerror}. Nothing was changed; let this user "
        "write there and run again."
    )


def read_signs(library: Library) -> None:
    """Reads the signs that `try_commits` would work. Raises as it does."""
    is_begun = lexists(library.own(""))
    for path in (library.own("") if is_begun else library.root, library.own("history.jsonl")):
        if lexists(path):
            read_sign(path)
    # A disk without room for another name is full too, but servers may count no names at all.
    root = library.root
    disk = disk_state(root)
    if disk and disk.f_files and not disk.f_favail and not SERVED.match(kind_of_disk(root)):
        raise failed_trial(root, system_error(errno.ENOSPC))


def read_sign(path: str, least: int = SPACE_MARGIN) -> None:
    """Reads the signs of one path: its mode, its mount, and `least` bytes free on its disk. Raises
    ServiceError, NoSpaceError, OSError."""
    disk, problem = disk_state(path), 0
    if not os.access(path, os.W_OK):
        problem = errno.EACCES
    if disk and disk.f_bavail * disk.f_frsize < least:
        problem = errno.ENOSPC
    if is_read_only(path):
        problem = errno.EROFS
    if problem:
        raise failed_trial(path, system_error(problem))


@lru_cache
def has_capability(number: int) -> bool:
    """Returns whether we have a capability. Root has them, but not in every container."""
    with suppress(OSError), open("/proc/self/status") as file:
        effective = re.search(r"CapEff:\s*(\w+)", file.read())
        return bool(effective and int(effective[1], 16) >> number & 1)
    return os.geteuid() == 0


def try_ffmpeg(tools: Tools, target: Target, recording: str = "") -> None:
    """Makes a second of sound, encodes it and decodes it again. It uses pipes only, so that a
    dry run may do it too. Then opens a recording (absolute path): an ffmpeg that is confined to
    other folders, as a snap is, cannot. Raises ToolError."""
    codec = f"-c:a {target.form.encoder} -b:a {min(target.bitrate, CHANNEL_RATE)}"
    lines = (
        f"-f lavfi -i sine=duration=1:sample_rate={OPUS_RATE} -f nut pipe:1",
        f"-f nut -i pipe:0 {codec} -f matroska pipe:1",
        "-f matroska -i pipe:0 -c:a pcm_f32le -f f32le pipe:1",
    )
    commands = [[tools.ffmpeg, *QUIET, *line.split()] for line in lines]
    try:
        samples = len(tools.pipe(commands, 1, os.devnull)[1]) // 4  # bytes each
        problem = "" if samples > 0.98 * OPUS_RATE else f"{samples} of {OPUS_RATE} samples"
    except (Refusal, OSError) as error:
        problem = explain(error)
    if problem:
        raise ToolError(
            f"{tools.ffmpeg} does not work: a second of a sound could not be made into "
            f"{target.format} and read again ({problem}). {INSTALL.format(name='ffmpeg')}"
        )
    opened = ["-i", f"file:{recording}", "-t", "0", "-f", "null", "-"]
    try:
        if os.access(recording, os.R_OK):
            tools.run([tools.ffmpeg, *QUIET, *SAFE_INPUT, *opened], 0)
    except Refusal as refusal:
        if re.search("Permission denied|No such file", refusal.detail):
            raise ToolError(
                f"{tools.ffmpeg} cannot open {recording}, which we can. It may be confined to "
                f"other folders, as a snap is. {INSTALL.format(name='ffmpeg')}"
            ) from None


# --------------------------------------------------------------------------------------- library
# The one walk, and what stands beside the recordings: it yields folders of takes, and groups them
# by their sidecars. Reads names, stats and JSON; opens no audio. Must never follow a link, enter a
# hidden folder or a library below, or take a folder that cannot be read for an empty one.

LOCK_SECONDS = 0.3
COARSEST_CLOCK = 2.5  # seconds between two times of a file system: 2 on vfat, 1 on ext3 and HFS+
LARGEST_READ = 1 << 20  # bytes of an index that only tells whether a folder is a library
HOLDER_BYTES = 200  # of what the lock file says
MOST_NAMES = 1 << 16  # in a sidecar; each takes 300 bytes while it is edited
RECORDING_MEMBERS = ("duration", "full_transcription", "transcription")  # or an id
CHUNK_MEMBERS = ("file", "duration")
SIDECAR_MEMBERS = (
    *("id", "language", "compression_policy", "chunks", "archived", "archive_location"),
    *("audio_deleted", "segments", "date", "timestamp"),
    *RECORDING_MEMBERS,
)
# Before a host in a string; `file:///` has none.
HOST = re.compile(r"(?:[a-z][a-z0-9+.-]*:)+//[^/]|//", re.IGNORECASE)
AUDIO_ENDING = re.compile(rb"\.(?:webm|opus|m4a)", re.IGNORECASE)
AUDIO_NAME_ENDS = re.compile(AUDIO_ENDING.pattern.decode(), re.IGNORECASE)
ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")
LONGEST_STEM = 255  # characters


class Library:
    """A recordings folder, and our own folder in it."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.name = basename(root)  # as names in documents may have it
        self.history = History(self)
        self.clock_ahead = 0.0  # seconds: the file system's clock less ours

    def path(self, *parts: str) -> str:
        """Absolute, of a path below the library."""
        return join(self.root, *filter(None, parts))

    def own(self, name: str) -> str:
        """Absolute, of a file in our own folder; makes nothing."""
        return self.path(OWN_FOLDER, name)

    def end_of(self, path: str) -> str:
        """Returns the last two parts of a path below the library, as names are compared."""
        return "/".join(folded(join(self.name, plain_path(path))).split("/")[-2:])

    def is_taken(self, path: str) -> bool:
        """Returns whether a file is at an absolute path, or was until it was archived or deleted by
        a tier."""
        stem = stem_of(path.removeprefix(join(self.root, "")))
        past = self.history.in_folder(dirname(stem)).get(stem, NO_PAST)
        return lexists(path) or past.place is not None or past.deleted > 0

    def identity(self, file: IO[bytes]) -> tuple[int, ...]:
        """Returns `identity_of` an open file. Where the file is so young that another write may get
        the same times, it is one that no later look equals. Raises OSError."""
        status = os.fstat(file.fileno())
        identity = identity_of(status)
        if max(status.st_mtime_ns, status.st_ctime_ns) > self.racy_from():
            identity = (-1, *identity[1:])
        return identity

    def witness(self, path: str, stop: Optional[Stop] = None) -> Witness:
        """Returns what a regular file is now (absolute path). Raises Stopped, OSError."""
        with open_regular(path) as file:
            return Witness(self.identity(file), digest_from(file, stop=stop))

    def racy_from(self) -> int:
        """Returns the file time (ns) from which on a time proves nothing, because the next write
        may get the same one. Git's rule (its racy-git.txt)."""
        return int((time.time() + self.clock_ahead - COARSEST_CLOCK) * 1e9)

    @cached_property
    def index_names_files(self) -> bool:
        """Returns whether the index is understood, and may call files by names."""
        with suppress(OSError, Flaw):
            data = read_regular(self.path(INDEX_NAME))
            return may_name_files(data) and next(entries(JsonText(data)), None) is not None
        return False

    def make_own(self) -> None:
        """Our folder, with the library's mode and owner; only for who locks the library or pauses
        it, as later a folder that is missing is a disk that is gone. Raises OSError."""
        with suppress(FileExistsError):
            os.mkdir(self.own(""), 0o700)
            give_to_owner(self.own(""), self.root, 0o7777)

    def open_own(self, name: str, flags: int) -> int:
        """Returns a descriptor of a file in our own folder. A new file gets the folder's owner and
        mode, so that a run by root locks nobody out. Raises OSError."""
        flags |= os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(self.own(name), flags, 0o600)
        if os.fstat(descriptor).st_size == 0:
            with suppress(OSError):  # another user's: it is as he made it
                give_to_owner(descriptor, self.own(""), 0o666)
        return descriptor

    def require_there(self) -> None:
        """While it is locked. Raises ServiceError."""
        if not lexists(self.own("lock")):
            raise ServiceError(
                f"The disk of {self.root} is gone. What was not finished is as it was; mount it "
                "and run again."
            )

    def require(self, log_file: str) -> None:
        """Raises UsageError where there is no folder, where it lies below another library, or where
        it holds nothing, not even our folder, and the log names it: a disk that is not mounted; and
        where our folder is a link, which may lead anywhere."""
        advice = "Is its disk mounted? Else name it with --recordings or recordings_dir."
        if exists(self.root) and not isdir(self.root):
            raise UsageError(f"{self.root} is a file. Name the folder that it is in.")
        if not isdir(self.root):
            raise UsageError(f"There is no recordings folder {self.root}. {advice}")
        if islink(self.path(OWN_FOLDER)):
            raise UsageError(f"{self.path(OWN_FOLDER)} is a link. Remove it, and run again.")
        for above in PurePath(realpath(self.root)).parents:
            if isdir(join(above, OWN_FOLDER)):
                raise UsageError(
                    f"{self.root} lies inside the library {above}. "
                    "Run on that one, and choose a part of it with --only."
                )
        if lexists(self.own("")):  # also made by hand
            return
        other = other_library(self.root)
        if other:
            raise UsageError(
                f"{self.root} is no library yet, but {other} is one. Name that with --recordings "
                f"or recordings_dir. To use {self.root} all the same, make {self.own('')} first."
            )
        has_audio = any(folder.audio for folder in self.walk(str))
        if not has_audio and self.is_in_log(log_file):
            raise UsageError(
                f"{self.root} is empty of recordings, and was not before. {advice} If they are "
                f"gone for good, make {self.own('')}."
            )

    def is_in_log(self, log_file: str) -> bool:
        """Returns whether a run has compressed or found something here, by its last line in the
        log, also by that of an earlier version."""
        found = rb"(compressed|kept|failed|archived|restored)\b|Found: [1-9]|Younger than"
        root = re.escape(printable(self.root)).encode()
        pattern = re.compile(rb" - INFO - %b: (?!No recordings).*?(?:%b)" % (root, found))
        for number in range(OLD_LOGS + 1):
            name = f"{log_file}.{number}" if number else log_file
            with suppress(OSError), open_regular(realpath(name)) as log:
                if any(map(pattern.search, log)):
                    return True
        return False

    def paused(self, now: float) -> str:
        """Returns a sentence on the pause that holds, "" without one. Its end stands in our file
        `paused`, in seconds since the epoch. Where that cannot be read, only `resume` ends it."""
        path, since, until = self.own("paused"), now, math.inf
        try:
            since = os.lstat(path).st_mtime
            until = float(read_regular(path))
        except (FileNotFoundError, NotADirectoryError):
            return ""
        except (OSError, ValueError):
            pass
        if not now < until:
            return ""
        end = f"{local_time(until)} or 'resume'" if until < math.inf else "'resume'"
        return f"Paused since {local_time(since)}, until {end}: runs leave {self.root} alone."

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds our file `lock`, which is never unlinked and says who holds it since when. Doctor
        and statistics hold it for an instant, so it is waited for. Raises BusyError, and
        ServiceError if it cannot be locked."""
        with ExitStack() as stack:
            try:
                self.make_own()
                descriptor = self.open_own("lock", os.O_RDWR)
                file = stack.enter_context(open(descriptor, "r+b", buffering=0))
                deadline = monotonic() + LOCK_SECONDS
                while holder := self.holder(file, fcntl.LOCK_EX):
                    if monotonic() > deadline:
                        raise BusyError(
                            f"Another run is at work on {self.root}: {holder}. "
                            "Wait, or end that process by 'kill'."
                        )
                    time.sleep(0.02)
            except OSError as error:
                raise failed_trial(self.own("lock"), error) from None
            we = f"process {os.getpid()} on {socket.gethostname()} since {local_time(time.time())}"
            with suppress(OSError):  # a full disk is found by what writes more
                os.pwrite(descriptor, we.ljust(HOLDER_BYTES).encode(), 0)
            self.clock_ahead = os.fstat(descriptor).st_mtime - time.time()
            yield

    def at_work(self) -> str:
        """Returns who locks the library now, "" if nobody does or that cannot be found out."""
        with suppress(OSError), open_regular(self.own("lock")) as file:
            return self.holder(file)
        return ""

    def holder(self, file: IO[bytes], kind: int = fcntl.LOCK_SH) -> str:
        """Returns who locks the library since when, by its own word. Returns "" if nobody does;
        then `file` has the lock. Raises OSError."""
        told = os.pread(file.fileno(), HOLDER_BYTES, 0)
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return told.decode("utf-8", "replace").strip() or "one that just begins"
        return ""

    def walk(
        self, problem: Callable[[str], object], passed_over: Callable[[str], object] = str
    ) -> Iterator[Folder]:
        """Every folder, "" first: one scandir and one stat a file, nothing opened, one folder in
        memory at a time. `problem` is told of folders that cannot be read, `passed_over` of
        libraries below. Serves run, check and statistics. Raises OSError where the library
        itself cannot be read."""
        paths = [""]
        while paths:
            path = paths.pop()
            try:
                folder = self.folder(path)
                paths += folder.below
                yield folder
            except UsageError as error:
                passed_over(str(error))
            except OSError as error:
                if not path:
                    raise
                is_systems = basename(path) == "lost+found" and isinstance(error, PermissionError)
                if error.errno != errno.ENOENT and not is_systems:  # it went while we looked
                    problem(f"The folder {path} cannot be read: {error.strerror}.")

    def leads_away(self, path: str) -> bool:
        """Returns whether a link, or another library, stands on the way to a folder's files."""
        while path:
            way = self.path(path)
            if islink(way) or lexists(join(way, OWN_FOLDER)):
                return True
            path = dirname(path)
        return False

    def folder_on_record(self, path: str) -> Folder:
        """Returns a folder as it is now: an empty one if it is gone or a link leads there. Raises
        OSError if it cannot be read."""
        with suppress(FileNotFoundError, NotADirectoryError):
            if not self.leads_away(path):
                return self.folder(path)
        return Folder(path, self)

    def folder(self, path: str) -> Folder:
        """One folder as it is now. Raises OSError, and UsageError for another library's."""
        folder = Folder(path, self)
        prefix = join(path, "")
        racy_from = self.racy_from()
        with os.scandir(self.path(path)) as entries:
            for entry in entries:
                name = entry.name
                suffix = name[name.rfind(".") :].lower()
                is_document = suffix == SIDECAR_SUFFIX and (path or name != INDEX_NAME)
                if name == OWN_FOLDER and path:
                    raise UsageError(f"{path} is a library of its own, and was passed over.")
                if STAGED.fullmatch(name):
                    folder.leftovers.append(name)
                elif name[0] == ".":
                    continue
                elif entry.is_dir(follow_symlinks=False):
                    folder.below.append(prefix + name)
                elif is_document or (suffix in AUDIO_SUFFIXES and not entry.is_symlink()):
                    with suppress(FileNotFoundError):  # deleted while we looked
                        status = entry.stat(follow_symlinks=False)
                        if is_document:  # also a link or a FIFO: what is unreadable may say a lot
                            folder.documents[name] = look(status, racy_from)
                        elif stat.S_ISREG(status.st_mode):
                            folder.audio.append(File(name, status.st_size, status.st_mtime_ns))
                else:
                    folder.links += entry.is_symlink()
        return folder


def look(status: os.stat_result, racy_from: int) -> list[int]:
    """Returns size and mtime (ns) of a document. A racy one gets a number more, so that no later
    look equals it."""
    seen = [status.st_size, status.st_mtime_ns]
    return [*seen, time.time_ns()] if status.st_mtime_ns > racy_from else seen


def other_library(root: str) -> str:
    """Returns a folder at most two levels above or below that is a library. Returns "" if there is
    none, or if this folder is one by its own index."""
    if has_index(root):
        return ""
    below = [each for folder in folders_in(root) for each in (folder, *folders_in(folder))]
    for folder in (dirname(root), dirname(dirname(root)), *below):
        if isdir(join(folder, OWN_FOLDER)) or has_index(folder):
            return folder
    return ""


def folders_in(path: str) -> list[str]:
    """Without hidden ones and links."""
    with suppress(OSError), os.scandir(path) as entries:
        return [
            entry.path
            for entry in entries
            if entry.is_dir(follow_symlinks=False) and entry.name[0] != "."
        ]
    return []


def has_index(folder: str) -> bool:
    """Returns whether a folder has a master index: an object with a list `recordings`.
    Of a large one only the beginning is read."""
    path = join(folder, INDEX_NAME)
    with suppress(OSError, ValueError, RecursionError), open_regular(path) as file:
        data = file.read(LARGEST_READ)
        if len(data) == LARGEST_READ:
            return bool(re.match(rb'\W*\{.*"recordings"\s*:\s*\[', data, re.DOTALL))
        document = json.loads(data)
        return isinstance(document, dict) and isinstance(document.get("recordings"), list)
    return False


def give_to_owner(target: int | str, like: str, mask: int) -> None:
    """Gives a path of ours the owner and mode of another. Raises OSError."""
    status = os.stat(like)
    with suppress(OSError):  # not root: then it is ours
        os.chown(target, status.st_uid, status.st_gid)
    os.chmod(target, status.st_mode & mask)


def resolve_recordings(folder: Folder) -> list[Recording]:
    """Returns the recordings of a folder, from its documents. They include files that a document
    names or the history knows, and that are not here. Time is linear in the documents."""
    library, documents = folder.library, sorted(folder.documents.items())
    read = [read_sidecar(library, folder.path, name, *seen) for name, seen in documents]
    chunks_of.cache_clear()  # it holds a text, which may be a large one
    takes = folder.takes
    known = [name for name, take in takes.items() if take.is_left or take.past.has_copy]
    names = Names(library.root, folder.path, takes, library.is_taken)
    folder.is_unread = any(sidecar.is_unread for sidecar in read)
    called = cache(names.called)  # many sidecars share what they list
    sidecars = [with_names(sidecar, names, called) for sidecar in read]
    flaws = flaws_of(read, names, {sidecar.own for sidecar in sidecars})
    lists = {each for sidecar in sidecars for each in (sidecar.files, sidecar.own)}
    named = frozenset[str]().union(*lists)
    stems = sorted({*known, *map(stem_of, named)})
    recordings = []
    for group, those in grouped(sidecars, stems):
        unreadable = next((flaws[name] for name in group if name in flaws), "")
        policy = policy_of(those, unreadable, folder.path)
        found = (takes.get(name) or Take(join(folder.path, name)) for name in group)
        members = tuple(find_our_copies(library, take, named) for take in found)
        recordings.append(Recording(folder.path, members, tuple(those), policy, names))
    return recordings


def find_our_copies(library: Library, take: Take, named: frozenset[str]) -> Take:
    """Returns the take with its copies. One that is not on record is ours by its tag, or because a
    document names it. If documents name the original too, another file may be a preview of it."""
    if take.copies or not take.strangers:
        return take
    rates = {}
    is_named = named.isdisjoint(file.name for file in take.originals)
    for name in (file.name for file in take.strangers):
        rate = None
        with suppress(OSError):  # a copy that cannot be read is not ours
            rate = provenance(library.path(take.folder, name))
        if rate is not None or (is_named and name in named):
            rates[name] = rate or 0
    return take_of(take.stem, take.files, take.past, rates)


@memoized  # a large folder is asked again at every commit in it
def read_sidecar(library: Library, folder: str, name: str, *seen: int) -> Sidecar:
    """Returns what planning needs of a JSON file, with strings that may be names. Waits for one
    that is half written. `seen` is what `look` said of the file: another look reads it again."""
    path, below = library.path(folder, name), join(folder, name)
    try:
        try:
            return sidecar_of(read_whole(path, JsonText)[1], name)
        except Flaw as flaw:
            parts = names_in_broken(in_utf8(read_regular(path)))
            return Sidecar(name, stuck=frozenset(parts), flaw=f"{below}: {flaw}")
    except FileNotFoundError:
        return Sidecar(name)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", "") or "its encoding is unknown"
        return Sidecar(name, flaw=f"{below} cannot be read: {why}", is_unread=True)


def sidecar_of(text: JsonText, name: str) -> Sidecar:
    """Returns a sidecar with what its document says. Raises Flaw."""
    root, members = text.root, text.members(text.root, SIDECAR_MEMBERS)
    nothing = Span(root.end, root.end)
    begin, end = members.pop("chunks", nothing)
    is_spoken = has_words(text, members.pop("segments", nothing), "text")
    is_spoken = is_spoken or has_words(text, members.get("full_transcription", nothing))
    said = {key: text.value(members[key]) for key in SIDECAR_MEMBERS if key in members}
    chunks = chunks_of(text.data[begin:end] or b"[]")
    names, keys = few_names(text, Span(root.start, begin), Span(end, root.end))
    texts = {key: value for key, value in said.items() if isinstance(value, str)}
    location = texts.get("archive_location", "")
    id_ = key_of(said.get("id"))
    return chunks._replace(
        name=name,
        id=id_,
        files=shared(chunks.files | names),
        stuck=chunks.stuck | keys,
        listed=id_ != "" or any(said.get(key) is not None for key in RECORDING_MEMBERS),
        has_text=chunks.has_text or is_spoken,
        is_deleted=said.get("audio_deleted") is True,
        language=texts.get("language"),
        dated=texts.get("date") or texts.get("timestamp", ""),
        policy=said.get("compression_policy"),
        location=location if said.get("archived") is True else "",
    )


@lru_cache(maxsize=1)  # 1,000 sidecars in a row may each have the same 1,000 chunks
def chunks_of(data: bytes) -> Sidecar:
    """Returns what a sidecar with these `chunks` says of files. Raises Flaw."""
    text = JsonText(data)
    names, keys = few_names(text, text.root)
    awaited, durations = set[str](), dict[str, float]()
    # A short list is taken in as a whole, which is faster.
    rows = text.value(text.root) or (row for _, row in text.rows(text.root, CHUNK_MEMBERS))
    for chunk in rows if text.is_list(text.root) else ():
        row = chunk if isinstance(chunk, dict) else {"file": chunk}
        values = [row["file"]] if "file" in row else row.values()
        words = (value for value in values if isinstance(value, str))
        called = [word for word in words if word.lower().endswith(AUDIO_SUFFIXES)]
        if len(called) == 1:
            awaited.add(called[0])
            stem = stem_of(basename(plain_path(called[0])))
            durations[folded(stem)] = finite(row.get("duration"))
    files = shared(names)
    return Sidecar(
        name="",
        files=files,
        own=files,
        stuck=keys,
        awaited=frozenset(awaited),
        durations=durations,
        has_text=has_words(text, text.root, "segments", "text"),
    )


def has_words(text: JsonText, span: Span, *keys: str) -> bool:
    """Returns whether a string that these keys lead to has more than blanks. A list on the way
    stands for all that is in it. Raises Flaw."""
    if keys and text.is_list(span):
        return any(has_words(text, item, *keys) for _, _, item in text.parts(span))
    if keys and text.is_object(span):
        inner = (value for key, _, value in text.parts(span) if key == keys[0])
        return any(has_words(text, value, *keys[1:]) for value in inner)
    is_text = not keys and text.data.startswith(b'"', span.start)
    return is_text and any(map(str.isprintable, text.value(span).replace(" ", "")))


def few_names(text: JsonText, *spans: Span) -> tuple[frozenset[str], frozenset[str]]:
    """Returns every string in some parts of a sidecar that may be a file's name: values, and keys.
    Raises Flaw, and OSError if they are so many that they would fill the memory."""
    found = itertools.chain.from_iterable(map(text.names, spans))
    names = list(itertools.islice(found, MOST_NAMES + 1))
    if len(names) > MOST_NAMES:
        raise OSError(errno.EFBIG, f"it names more than {MOST_NAMES:,} files")
    keys = frozenset(value for _, value, is_key in names if is_key)
    return frozenset(value for _, value, is_key in names if not is_key), keys


@lru_cache
def shared(names: frozenset[str]) -> frozenset[str]:
    """Returns equal sets as one, because many sidecars of a folder may name the same files."""
    return names


def key_of(id_: Any) -> str:
    """Returns an id as text, in which a number differs from a string; "" for what is no id."""
    if isinstance(id_, str):
        return id_
    if not is_number(id_):
        return ""
    return f"number {id_ if isinstance(id_, int) else format(id_, '.17g')}"


def names_in_broken(data: bytes) -> Iterator[str]:
    """Yields all parts of a broken document that end like a name, as far as one may reach. Nothing
    shows where the name begins."""
    text = ESCAPE.sub(lambda found: chr(int(found[1], 16)), data.decode("utf-8", "replace"))
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    for found in AUDIO_NAME_ENDS.finditer(text):
        yield text[max(0, found.start() - LONGEST_STEM) : found.end()]


def with_names(sidecar: Sidecar, names: Names, called: Callable[..., frozenset[str]]) -> Sidecar:
    """Returns a sidecar with the names that its strings mean. It owns the files in `chunks`; else
    the file of its own stem; else the only file that it names, if it describes a recording."""
    files, own = called(sidecar.files), called(sidecar.own, sidecar.awaited)
    if not (own or sidecar.flaw):
        own = frozenset(names.find(sidecar.stem + SOURCE_SUFFIX))
    is_owner = bool(own)
    if sidecar.listed and not own and len(set(map(stem_of, files))) == 1:
        own = files
    return sidecar._replace(files=files, own=own, listed=bool(own), is_owner=is_owner)


def flaws_of(
    sidecars: Iterable[Sidecar], names: Names, owned: Iterable[frozenset[str]]
) -> dict[str, str]:
    """Returns why takes (by name) must stay. A document cannot be read at all. Or it cannot be
    edited, and holds their name or is called like them. A number at the end may differ, if none of
    the lists of files that are `owned` has them. Or a string in it fits two files."""
    flaws = {}
    free = names.takes.keys() - set(map(stem_of, itertools.chain(*owned)))
    several = [stems for stems in names.stems.values() if len(stems) > 1]
    for sidecar in sidecars:
        path = join(names.folder, sidecar.name)
        stem = folded(sidecar.stem)
        beginning = stem.rstrip("0123456789") or stem
        for name in names.takes if sidecar.flaw else ():
            is_like_it = name in free and folded(name).startswith(beginning)
            if sidecar.is_unread or is_like_it or folded(name) == stem:
                flaws[name] = sidecar.flaw
        for text in sidecar.stuck:
            for name in names.ending(text) if sidecar.flaw else names.find(text):
                flaws[stem_of(name)] = sidecar.flaw or f"{path}: it has {text} as a key"
        for text in sidecar.files if several else ():
            found = names.find(text)
            if len(found) > 1:
                why = f"{path}: {text} may be any of {', '.join(found)}"
                flaws.update((stem_of(name), why) for name in found)
    return flaws


def grouped(
    sidecars: Sequence[Sidecar], stems: Sequence[str]
) -> Iterator[tuple[list[str], list[Sidecar]]]:
    """Yields the takes (by name) of each recording, with all documents that name them. A document
    that does not own a take counts for it with its name and its policy only."""
    above: dict[Any, Any] = {}  # from names, ids and lists of names to what unites them

    def root(node: Any) -> Any:
        while above.setdefault(node, node) is not node:  # to compare two lists takes long
            above[node] = above[above[node]]
            node = above[node]
        return node

    for own in {sidecar.own for sidecar in sidecars}:  # 1,000 sidecars may have one list
        for name in own:
            above[root(stem_of(name))] = root(own)
    for sidecar in sidecars:
        if sidecar.id and sidecar.own:
            above[root(sidecar.own)] = root((sidecar.id,))
    parts: dict[Any, tuple[list[str], list[Sidecar]]] = {}
    for stem in stems:
        parts.setdefault(root(stem), ([], []))[0].append(stem)
    for sidecar in sidecars:
        home = root(sidecar.own) if sidecar.own else None
        mention = Sidecar(sidecar.name, policy=sidecar.policy)
        if home:
            parts[home][1].append(sidecar)
        for other in set(map(root, map(stem_of, sidecar.files - sidecar.own))) - {home}:
            parts[other][1].append(mention)
    yield from parts.values()


def stem_of(name: str) -> str:
    return splitext(name)[0]


@memoized
def folded(name: str) -> str:
    """Returns a name as it is compared. Some disks take all spellings of it for one file."""
    return unicodedata.normalize("NFC", name).lower()


def plain_path(text: str) -> str:
    return text.replace("\\", "/").removeprefix("./")


@memoized
def folders_meant(above: str, root: str, folder: str) -> Optional[Sequence[str]]:
    """Returns None if a path through the folders `above` does not lead to `folder`. Else returns
    the other folders, as absolute paths, that the path may lead to. It may begin in this folder, in
    one above it or in the library; its first parts may be those of another machine."""
    parts, own = above.split("/"), basename(join(root, folder).rstrip("/"))
    names = {folded(own)} if folder else {folded(own), "recordings"}
    if HOST.match(above) or folded(parts[-1]) not in names:
        return None
    here = PurePath(root, folder)
    seen_from = [here, *here.parents][: len(PurePath(folder).parts) + 2]
    tails = [join(root, *parts[at:]) for at in range(len(parts))]
    others = []
    for place in (*(join(place, above) for place in seen_from), *tails):
        with suppress(OSError, ValueError):
            if os.path.samefile(place, here):
                break
        others.append(place)
    return others


def finite(value: Any) -> float:
    """Returns a number from a document, 0.0 for anything else."""
    return float(value) if is_number(value) and 0 <= value < 1e300 else 0.0


def is_number(value: Any) -> bool:
    """Returns whether a value from a document is a number. JSON's true is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# ------------------------------------------------------------------------------------------ plan
# Which moves a recording makes next: pure functions of takes, policies, settings and a time. They
# read nothing, count nothing and print nothing. Run, dry run and statistics ask the same functions.

MAX_SILENCE = 600.0  # seconds of gaps: ffmpeg makes each as one frame, a megabyte a second
SHORTFALL = 0.05  # a recording this much shorter than its own record of it has lost its end
SILENT_BYTES = 227  # a second of silence in Ogg Opus: 50 packets of 3, lacing, page headers
DATE = re.compile(r"(?<!\d)\d{4}-\d\d-\d\d(?!\d)")
FOLDER_SETTINGS = (
    "age_threshold_days target_bitrate target_format min_saving_percent verify_before_delete "
    "delete_originals keep_originals_days keep_free tiers check_days"
)


def moves_of(recording: Recording, config: Config, moment: Moment) -> list[Move]:
    """Returns the moves that a recording makes next: what finishes a restore that was cut short,
    or its deletion; else one for each take that has one; else those that archive it. Moves of a
    whole recording are not made if only a part of it is selected."""
    takes, policy = recording.takes, recording.policy
    moves = finishing(recording, config) or deleting(recording, config, moment)
    if moves is None:
        moves = []
        for take in takes:
            move = next_move(take, policy, config, moment)
            if move:  # several originals are all refused; the history remembers the last one
                sources = (*take.originals[1:], move.source)
                moves += [dataclasses.replace(move, source=source) for source in sources]
        moves = moves or archiving(takes, policy, config, moment)
    selected = [move for move in moves if is_selected(move.take, recording, config)]
    if moves and moves[0].is_whole and len(selected) < len(moves):
        return []
    for move in selected:
        move.recording = recording
    return selected


def finishing(recording: Recording, config: Config) -> list[Move]:
    """Returns the moves that finish a restore that was cut short, unless they failed too often."""
    is_begun = any(take.is_half_restored for take in recording.takes)
    moves = moves_back(recording, config) if is_begun else []
    pasts = [(move.take.past, move.settings) for move in moves if not config.retry]
    is_given_up = any(past.attempts >= ATTEMPTS and past.settings == now for past, now in pasts)
    return [] if is_given_up else moves


def next_move(
    take: Take, policy: Optional[Policy], config: Config, moment: Moment
) -> Optional[Move]:
    """Returns the move that a take makes next by itself, or None.

    Without a `policy` the sidecars have not been read. They are then taken to say the same as
    before, so that most nights need not read them.
    """
    asked = asked_of(take, policy, config, moment)
    if asked:
        for move in possible_moves(asked):
            if not asked.is_settled(move):
                return move
    return None


class Asked(NamedTuple):
    """The settings and wishes for a take that is old enough."""

    take: Take
    policy: Policy
    config: Config
    moment: Moment
    target: Target
    settings: str  # in the history's form
    holds: bool  # its last outcome had the same settings

    def move(
        self,
        kind: type[Move],
        source: File,
        removes: tuple[File, ...],
        problem: Optional[Outcome] = None,
    ) -> Move:
        return kind(self.take, self.target, self.settings, source, removes, problem)

    def is_settled(self, move: Move) -> bool:
        """Returns whether a move is not to be tried again, as long as its settings hold: a policy
        keeps the take, its own last outcome stays, or a move of a higher rank was tried since, and
        its copy is here."""
        take, tried = self.take, RANKS.get(self.take.past.move, 1)
        is_last = tried == move.rank and take.past.is_settled
        is_later = tried > move.rank and bool(take.proven_copy or not take.past.has_copy)
        return self.holds and (take.past.is_kept or is_later or is_last)


def asked_of(
    take: Take, policy: Optional[Policy], config: Config, moment: Moment
) -> Optional[Asked]:
    """Returns what is asked of a take, None if it is young, restored, in doubt or not here."""
    past, wish = take.past, policy or NO_POLICY
    file = next(iter(take.files), None)
    if file is None or take.is_in_doubt:
        return None
    is_known = past.speaks_of(file) and not config.retry
    age = file.age(moment.now)
    is_young = age < max(config.age_threshold_days, wish.after_days)
    if is_young or (is_known and past.is_restored):
        return None
    settings = settings_of(take, policy, config, age)
    # In one step what the last tier asks. A copy keeps its format, to be replaced in its place.
    form = (take.copy.format if take.copy else wish.format) or config.target_format
    target = Target(form, wish.bitrate or config.rate_at(age))
    # Settings noted before the sidecars were read have the first half alone.
    noted = (past.settings, past.settings.partition("|")[0])
    ages = [age]
    if past.action == Action.KEPT:
        # If a copy as a later tier asks for it would not save enough, neither does this one.
        ages += [tier.after_days for tier in config.tiers if tier.after_days > age]
    holds = is_known and any(settings_of(take, policy, config, each) in noted for each in ages)
    return Asked(take, wish, config, moment, target, settings, holds)


def possible_moves(asked: Asked) -> Iterator[Move]:
    """Yields the moves that files, ages and settings ask of a take, lowest rank first. One that
    another file's name or a sidecar forbids has its outcome already."""
    take, policy = asked.take, asked.policy
    original, copy = take.original, take.copy
    taken = name_taken(asked)
    is_refused = taken and not policy.keep
    problem = Outcome(Reason.NAME_TAKEN, taken) if is_refused else objection(policy)
    # A policy's own bit rate holds at any age, and a target that was lowered is for what is
    # compressed from now on.
    tier = None
    if copy and not policy.bitrate:
        tier = asked.config.tier_rate(copy.age(asked.moment.careful))
    is_large = tier is not None and tier < (take.bitrate or math.inf)
    is_proven = take.proven_copy is not None and take.is_known
    removes = originals_over(asked, is_proven)
    if original and (taken or copy is None):
        yield asked.move(Compress, original, removes, problem)
        return
    if original and copy and take.is_known and take.past.lost == Reason.ROTTEN.code:
        yield asked.move(Smaller, original, removes, problem)
    elif original and not is_proven:
        # An original that is to be encoded once more is the better source: it waits for that.
        yield asked.move(Adopt, original, () if is_large else removes, problem)
    elif copy and is_large:
        yield asked.move(Smaller, original or copy, removes, problem)
    if original and is_proven and removes:
        yield asked.move(Free, original, removes, problem)


def name_taken(asked: Asked) -> str:
    """Returns what keeps a copy of this take from its name, "" if nothing does."""
    take = asked.take
    name = take.name + asked.target.form.suffix
    if len(take.originals) > 1:
        return f"several files would become {take.name}"
    if take.past.place and take.original:
        return f"the archive has an earlier {take.name}; rename this one"
    is_taken = any(file.name == name for file in take.strangers)
    return name if is_taken and not take.copy else ""


def originals_over(asked: Asked, is_proven: bool) -> tuple[File, ...]:
    """Returns the original if settings let a move remove it now. With `keep_originals_days`, its
    copy must be on record for so long."""
    take, config = asked.take, asked.config
    is_over = is_proven and freed_from(take, config) <= asked.moment.careful
    is_over = is_over or not config.keep_originals_days
    return take.originals[:1] if config.delete_originals and is_over else ()


def freed_from(take: Take, config: Config) -> float:
    """Returns the time from which on an original is kept no longer. The days count from the start
    of the run that compressed it, less an hour, as no run starts to the second."""
    return take.past.compressed + config.keep_originals_days * DAY - 3600


def objection(policy: Policy) -> Optional[Outcome]:
    """Returns why a recording's sidecars do not let its takes move, if so."""
    if policy.unreadable:
        return Outcome(Reason.SIDECAR, policy.unreadable)
    if policy.flaw:
        return Outcome(Reason.POLICY_INVALID, policy.flaw)
    return Outcome(Reason.POLICY_KEEP) if policy.keep else None


def archiving(
    takes: Iterable[Take], policy: Optional[Policy], config: Config, moment: Moment
) -> list[Move]:
    """Returns the moves that archive a recording as a whole: each take that is here is one old file
    with nothing left to be compressed. (Its file may be in the archive already, if a kill kept it
    from being removed here.)"""
    tier, moves = config.archive_tier, list[Move]()
    for take in takes if tier else ():
        if take.state is State.ARCHIVED:
            continue
        file, asked = take.file, asked_of(take, policy, config, moment)
        is_one = len(take.files) == 1 and take.state is not State.WAITING
        if not (tier and file and asked and is_one):
            return []
        move = asked.move(Store, file, (file,), objection(asked.policy))
        if file.age(moment.careful) < tier.after_days or asked.is_settled(move):
            return []
        moves.append(move)
    return moves


def deleting(recording: Recording, config: Config, moment: Moment) -> Optional[list[Move]]:
    """Returns the moves that delete a recording for good, as a tier asks for. They also finish a
    deletion that was cut short. If the recording has to stay, they say why, and once: from then on
    it may make other moves, and this returns None. One that was given up makes no move at all."""
    tier, moves = config.delete_tier, list[Move]()
    if not tier or not config.delete_originals:
        return None
    before = moment.careful - max(tier.after_days, recording.policy.after_days) * DAY
    if any(old_since(take, recording) > before for take in recording.takes):
        return None
    problem, days = why_it_stays(recording), f"{tier.after_days:g}"
    for take in recording.takes:
        removes, past = take.own, take.past
        if not (removes or past.place or take.is_half_deleted):
            continue
        move = Delete(take, NO_TARGET, f"delete {days}", take.file, removes, problem, detail=days)
        is_given_up = was_given_up(past, tier)
        is_told = problem is not None and past.stays == problem.reason.code
        if (is_given_up or is_told) and not config.retry:
            return [] if is_given_up else None
        moves.append(move)
    return moves or None


def old_since(take: Take, recording: Recording) -> float:
    """Returns the time that the age of a take counts from for its deletion: that of its newest
    file, of its date, or of its return. Infinite if a run has still to put its return on record."""
    times = [file.mtime_ns / 1e9 for file in take.files]
    if take.past.place:
        times.append(take.past.place.mtime_ns / 1e9)
    back = math.inf if take.was_brought_back else take.past.back
    return max(*times, back, beginning_of(recorded_date(take, recording)))


@memoized
def beginning_of(date: str) -> float:
    """Returns when a day begins. A date that no calendar has never comes."""
    with suppress(ValueError, ArithmeticError, OSError):
        return datetime.fromisoformat(date).timestamp()
    return math.inf


def why_it_stays(recording: Recording) -> Optional[Outcome]:
    """Returns what keeps a recording from being deleted by age, if anything does."""
    owners = [sidecar for sidecar in recording.sidecars if sidecar.is_owner]
    owned = {stem_of(name) for sidecar in owners for name in sidecar.own}
    missing = [take.stem for take in recording.takes if take.is_missing]
    is_owned = owned.issuperset(take.name for take in recording.takes)
    if not is_owned or any(map(is_doubtful, recording.takes)):
        return Outcome(Reason.NO_SIDECAR)
    if not any(sidecar.has_text for sidecar in owners):
        return Outcome(Reason.NO_TRANSCRIPT)
    if missing:
        return Outcome(Reason.INCOMPLETE, missing[0])
    return objection(recording.policy)


def is_doubtful(take: Take) -> bool:
    """Returns whether a take has files that may belong to several recordings: a sidecar owns a
    stem. Only an original and the copy on record as proven against it belong together."""
    is_pair = len(take.own) == 2 and take.is_known and take.proven_copy is not None
    return len(take.own) > 1 and not is_pair


EARLIEST = 1.0  # days: nothing younger moves for `keep_free`


def early_steps(config: Config, is_first: bool = False) -> Iterator[Config]:
    """Yields the settings with which moves make room before their age: those that end the keeping
    of originals, those that compress, those that make smaller, those that archive. In the first run
    on record no original ends early."""
    oldest = max(config.age_threshold_days, EARLIEST)
    days = config.keep_originals_days if is_first else 0
    config = dataclasses.replace(config, keep_originals_days=days, age_threshold_days=oldest)
    yield config
    config = dataclasses.replace(config, age_threshold_days=EARLIEST)
    yield config
    for number, tier in enumerate(config.tiers):
        if tier.bitrate or (tier.archive and has_own_disk(config)):
            tiers = list(config.tiers)
            tiers[number] = tier._replace(after_days=EARLIEST)
            config = dataclasses.replace(config, tiers=tuple(tiers))
            yield config


def has_own_disk(config: Config) -> bool:
    """Returns whether the archive is there, and on another disk than the library, so that what goes
    there makes room."""
    target = (config.archive_tier or Tier(0)).archive or ""
    if not os.path.isabs(target):  # a remote
        return True
    with suppress(OSError):
        return os.stat(target).st_dev != os.stat(config.recordings_dir).st_dev
    return False


def settings_of(take: Take, policy: Optional[Policy], config: Config, age: float) -> str:
    """Returns the settings of a decision as text for the history, and whether the copy's name is
    taken. Behind a bar stand the wishes of the sidecars, once they have been read."""
    parts = (
        config.target_format,
        config.rate_at(age),
        config.min_saving_percent,
        config.verify_before_delete,
        bool(take.strangers) and take.copy is None,
    )
    first = " ".join(map(str, parts))
    return sys.intern(first if policy is None else f"{first}|{json.dumps(policy)}")


def count_held(recording: Recording, config: Config, moment: Moment, clock: Moment) -> int:
    """Returns how many takes wait only because the clock is not trusted that far."""
    if moment == clock:
        return 0
    due = {move.take.stem for move in moves_of(recording, config, moment)}
    return len({move.take.stem for move in moves_of(recording, config, clock)} - due)


def folder_note(folder: Folder, config: Config, clock: Moment) -> list[dict[str, Any]]:
    """Returns the note on a folder whose documents are true: a fingerprint, and until when it
    holds. Returns none if a move is left to be tried now, or a copy is lost."""
    until, is_early = math.inf, False
    steps = list(early_steps(config)) if config.keep_free else []
    takes = folder.takes.values()
    if any(take.is_in_doubt or take.is_half_deleted for take in takes):
        return []
    for take in (take for take in takes if take.is_left):
        if move_at_most(take, config, clock):
            return []
        is_early = is_early or any(move_at_most(take, each, clock) for each in steps)
        until = min(until, next_step(take, config, clock.now))
    sums = count_folder(folder, config, clock)
    return [
        {
            "type": "folder",
            "path": join(folder.path, ""),
            "rest": fingerprint(folder, config),
            "until": until if until < LATEST else None,
            "early": is_early,  # whether it has a move for `keep_free`
            "sums": sums,
            "seal": seal(sums),
        }
    ]


def fingerprint(folder: Folder, config: Config) -> str:
    """Returns a fingerprint of all that the plan of a folder depends on beside the time: files,
    documents, history, settings."""
    settings = [getattr(config, name) for name in FOLDER_SETTINGS.split()]
    if config.keep_free:
        settings.append(has_own_disk(config))
    known = folder.library.history.checksum(folder.path)
    rests_on = [VERSION, settings, known, sorted(folder.audio), sorted(folder.documents.items())]
    return hashlib.sha256(json.dumps(rests_on).encode("ascii")).hexdigest()[:16]


def next_step(take: Take, config: Config, now: float) -> float:
    """Returns when a take next gets old enough for a step, in seconds since the epoch."""
    steps = [step.after_days for step in config.steps]
    if config.keep_free:
        steps.append(EARLIEST)
    ages = [file.mtime_ns / 1e9 for file in take.files]
    times = [age + step * DAY for age in ages for step in steps]
    times += [freed_from(take, config), deletion_time(take, config)]
    return min((time for time in times if time > now), default=math.inf)


def was_given_up(past: Past, tier: Tier) -> bool:
    """Returns whether the deletion of a take by a tier has failed too often."""
    tried = (Delete.name, f"delete {tier.after_days:g}")
    return past.is_settled and (past.move, past.settings) == tried


def deletion_time(take: Take, config: Config) -> float:
    """Returns when a tier deletes a take, infinite if none does. Its sidecars are not read."""
    tier, past = config.delete_tier, take.past
    if not tier or past.stays or was_given_up(past, tier):
        return math.inf
    return old_since(take, Recording(take.folder, (take,))) + tier.after_days * DAY


def move_at_most(take: Take, config: Config, clock: Moment) -> Optional[Move]:
    """Returns the move that a take may have by the clock, assuming that its copies are ours.
    Finding out needs its tags and sidecars, which have not been read yet."""
    if not take.own:
        rates = {file.name: 0 for file in take.strangers}
        take = take_of(take.stem, take.files, take.past, rates)
    return likely_move(take, config, clock)


def likely_move(take: Take, config: Config, clock: Moment) -> Optional[Move]:
    """Returns the move that a take makes by the clock, alone or with its recording, if its sidecars
    say the same as before. They have not been read."""
    alone = Recording(take.folder, (take,))
    moves = finishing(alone, config)
    if deletion_time(take, config) <= clock.careful:
        moves.append(Delete(take, NO_TARGET, "", take.file))
    alone_next = next_move(take, None, config, clock)
    moves += [alone_next] if alone_next else archiving([take], None, config, clock)
    return moves[0] if moves else None


def is_selected(take: Take, recording: Recording, config: Config) -> bool:
    """Returns whether the selection flags admit it: by path, by recorded date, by language."""
    names = [file.name for file in take.files] or [take.name]
    paths = [join(take.folder, name) for name in names]
    languages = {sidecar.language for sidecar in recording.sidecars}
    date = recorded_date(take, recording) if config.since or config.until else ""
    return (
        (not config.only or any(fits(path, config) for path in paths))
        and (not config.language or not languages.isdisjoint(config.language))
        and (not config.since or config.since <= date)
        and (not config.until or date <= config.until)
    )


def fits(path: str, config: Config) -> bool:
    """Returns whether a path below the library is one of --only: a glob, a folder, or either as
    the shell completes it, from where it stands."""
    for glob in config.only:
        for place in (os.path.normpath(glob), relpath(glob, config.recordings_dir)):
            is_below = place == os.curdir or f"{path}/".startswith(f"{place}/")
            if is_below or fnmatch.fnmatchcase(path, place):
                return True
    return False


def recorded_date(take: Take, recording: Recording) -> str:
    """YYYY-MM-DD from the sidecars' ids, else from their dates, else from folder and name, else the
    modification time."""
    dates = (sidecar.dated for sidecar in recording.sidecars)
    found = DATE.search("\n".join((*recording.ids, *take.past.ids, *dates, take.stem)))
    if found:
        return found[0]
    times = [file.mtime_ns for file in take.files] or [take.past.mtime_ns]
    return local_time(times[0] / 1e9)[:10]


def decide(found: Probe, size: int, recorded: float, target: Target, min_saving: float) -> int:
    """Whether a sound recording of `size` bytes is worth compressing: the bytes its copy is
    expected to have, or Refusal (damaged, truncated, already small). `recorded` is the length in
    seconds that its sidecar gives, 0 for none."""
    if found.silence > MAX_SILENCE:
        around = f"{found.silence:.0f} s around {found.seconds:.1f} s of audio"
        raise Refusal(Reason.GAPS, around)
    # A record more than twice as long is about something else: paused time, or all chunks together.
    lasts = max(found.end, found.timeline)
    shortest = recorded - max(1.0, recorded * SHORTFALL)
    if recorded / 2 < lasts < shortest:
        says = f"its sidecar says {recorded:.1f} s"
        raise Refusal(Reason.TRUNCATED, f"{says}, but it ends after {lasts:.1f} s")
    estimate = estimated_size(found, target)
    worthwhile = size * (1 - min_saving / 100)
    if estimate > worthwhile:
        if estimate - found.silence * SILENT_BYTES <= worthwhile:
            around = f"the silence takes more than a copy saves: {found.silence:.0f} s around"
            raise Refusal(Reason.GAPS, f"{around} {found.seconds:.1f} s of audio")
        less = f"a copy at {target.bitrate / 1000:g}k would save less than {min_saving:g} %"
        raise Refusal(Reason.LOW_BIT_RATE, f"{found.kilobits:.0f} kbit/s, of which {less}")
    return estimate


def estimated_size(found: Probe, target: Target) -> int:
    """Bytes that a copy will have, within 5 % on speech: packets above the target's rate come down
    to it, those below (silence) do not shrink, gaps cost next to nothing."""
    most = target.form.sample_bits * found.rate
    rate = min(target.bitrate, most * found.channels) * target.form.payload / 8 / found.rate
    least = SILENT_BYTES / found.rate
    coded = 0.0
    for (size, samples), count in found.packets.items():
        wanted = min(size * 1.1, samples * rate)
        coded += count * max(wanted, samples * least)
    return round(target.form.header + coded + found.silence * SILENT_BYTES)


# ----------------------------------------------------------------------------------------- moves
# Each row of the table is a class that carries itself out. `examine`, `stage`, `finish` run in a
# thread, `carry` in the main one. All four write staged files only. `Committer.commit` calls the
# other methods, in one order for all rows.


class Outcome(NamedTuple):
    """The outcome of a move."""

    reason: Reason
    detail: str = ""  # what was found
    trace: str = ""  # of a defect, for the log


@dataclass(eq=False)
class Move:
    """One row of the table, for one take, on its way through a run."""

    name: ClassVar[str]  # in the history
    rank: ClassVar[int]  # a move is not tried once one of a higher rank was, see `Asked.is_settled`
    done: ClassVar[Reason]
    due: ClassVar[Reason]
    is_whole: ClassVar[bool] = False  # all takes of a recording make it together, or none
    encodes: ClassVar[bool] = False  # a copy is made; else the one that is here is proven
    has_first_word = False  # the history has a line on it before anything is put in place
    is_begun = False  # files of its recording are gone by a deletion

    take: Take
    target: Target
    settings: str  # of the decision
    source: Optional[File]  # None: to be fetched
    removes: tuple[File, ...] = ()  # last, once all is true
    outcome: Optional[Outcome] = None  # set once
    recording: Recording = NO_RECORDING
    seen: dict[str, Witness] = dataclasses.field(default_factory=dict)  # files here, by name
    copy_seen: Optional[Witness] = None  # when it had been proven
    probe: Optional[Probe] = None
    estimate: int = 0  # bytes that the copy will have
    staged: str = ""  # absolute path; "" where nothing is to be placed
    copy: Optional[File] = None  # what stands for the take afterwards
    place: Optional[Place] = None  # in the archive, where the file is afterwards
    detail: str = ""  # of its outcome, if it is done
    is_early: bool = False  # before its time, for `keep_free`
    is_proven: bool = False  # only the commit is left, unless it has an outcome

    @property
    def path(self) -> str:
        """Returns the path of the source below the library."""
        source = self.source or self.take.past.place or self.take.file
        return join(self.take.folder, source.name if source else self.take.name)

    @property
    def source_size(self) -> int:
        """Bytes; 0 where the source is to be fetched."""
        return self.source.size if self.source else 0

    @property
    def guessed_seconds(self) -> float:
        """Returns a guess at the seconds of audio, from the size alone."""
        return self.source_size / BYTES_PER_SECOND

    @property
    def seconds(self) -> float:
        return round(self.probe.timeline, 3) if self.probe else self.take.past.seconds

    @property
    def target_path(self) -> str:
        """Returns the path of the copy below the library."""
        return self.take.stem + self.target.form.suffix

    @property
    def is_ready(self) -> bool:
        return self.is_proven and self.outcome is None

    @property
    def result(self) -> Outcome:
        """Returns the outcome it has, or will have after its commit."""
        return self.outcome or Outcome(self.done, self.detail)

    @property
    def reason(self) -> Reason:
        return self.result.reason

    @property
    def is_done(self) -> bool:
        return self.reason is self.done

    def refuse(self, error: Exception) -> None:
        """Sets the outcome for whatever kept it from going on: a Refusal's own; of an OSError by
        its errno (no space, name too long, else input/output); of anything else a defect."""
        # The report names its path.
        detail = re.sub(rf" \(\S*/{re.escape(self.path)}\)$", "", explain(error))
        if isinstance(error, Refusal):
            self.outcome = Outcome(error.reason, error.detail)
        elif isinstance(error, OSError):
            self.outcome = Outcome(reason_of(error) or Reason.INPUT_OUTPUT, detail)
        elif isinstance(error, MemoryError):
            self.outcome = Outcome(Reason.TOOL_KILLED, "memory is short")
        else:
            self.outcome = Outcome(Reason.DEFECT, detail, trace_of(error))

    def carry(self, run: Run) -> None:
        """Does all that comes before the commit, for a move that is whole. Raises Refusal, OSError,
        Stopped, ServiceError."""
        raise NotImplementedError

    def foresee(self, run: Run) -> str:
        """Returns what a dry run says of a move that is whole. Raises Refusal, ServiceError."""
        return self.detail

    def is_asked_by(self, now: Recording) -> bool:
        """Returns whether documents, as they are now, ask for it as they did when it was planned: a
        chunk more or a wish changes what a recording is to become."""
        is_other = self.is_whole and now.stems != self.recording.stems
        return not is_other and now.policy == self.recording.policy

    def check(self, library: Library) -> None:
        """Compares the files that were examined once more. Raises Refusal, OSError."""
        for name, seen in self.seen.items():
            expect(is_same(library.path(self.take.folder, name), seen))
        if self.staged and self.copy:  # some disks make inode numbers up anew
            expect(file_at(self.staged)[1:] == self.copy[1:])

    @property
    def known_sha256(self) -> str:
        """Returns the SHA-256 that its source has on record, "" without one."""
        return self.take.past.sha256_of(self.source) if self.source else ""

    def put(self, library: Library) -> None:
        """Puts in place what is staged, never over another file. Raises Refusal, OSError."""
        if self.staged:
            place(self.staged, library.path(self.target_path))

    def undo(self, library: Library) -> None:
        """Takes back what `put` did, where a later step fails and the next run could not go on from
        there. Raises Refusal, OSError."""

    def remove(self, library: Library) -> None:
        """Removes what it makes needless, each file compared once more. Raises Refusal, OSError."""
        for file in self.removes:
            path = library.path(self.take.folder, file.name)
            with suppress(FileNotFoundError):  # its owner was faster
                expect(is_same(path, self.seen.get(file.name)))
                # Behind an attribute cache (sshfs, NFS) a stat is no witness of a source whose only
                # other copy is elsewhere, so its bytes are.
                if self.place:
                    expect(digest_of(path) == self.seen[file.name].sha256)
                os.unlink(path)

    def past_after(self, now: float) -> Past:
        """Returns what the history will say of the take. Pure. Sizes, bit rate and `compressed` of
        a copy that it had stay when a later step is kept or fails. A failure under the same
        settings counts one attempt more, unless its reason `is_environment`."""
        source, last = self.source, self.take.past
        if self.reason.action is Action.LOST:
            return last._replace(lost=self.reason.code)
        known = last
        if source and not last.speaks_of(source):
            # Its time alone may have changed, and documents may call the copy that is gone.
            known = NO_PAST._replace(back=last.back, suffix=last.suffix)
        attempts = 0
        if self.reason.action is Action.FAILED:
            is_again = (known.move, known.settings) == (self.name, self.settings)
            attempts = known.attempts if is_again else 0
            attempts += not self.reason.is_environment
        past = known._replace(
            action=self.reason.action,
            code=self.reason.code,
            move=self.name,
            settings=self.settings,
            attempts=attempts,
            time=now,
            seconds=self.seconds,
            ids=self.recording.ids or last.ids,
            place=(self.place if self.is_done else None) or last.place,
        )
        if source:
            first_size = source.size if source.is_original else known.first_size
            past = past._replace(mtime_ns=source.mtime_ns, first_size=first_size)
        if source and source.format and self.is_whole and self.is_done:  # also without a record
            rate = self.take.bitrate
            past = past._replace(suffix=source.suffix, size=source.size, bitrate=rate)
        return self.past_if_done(past, now) if self.is_done else past

    def past_if_done(self, past: Past, now: float) -> Past:
        return past

    def take_after(self, now: float) -> Take:
        """Returns the take as it will be after the move: its files and `past_after`. From these,
        and from nothing else, commit derives the documents."""
        take = self.take
        files = {file.name: file for file in take.files}
        if self.is_done:
            for file in self.removes:
                del files[file.name]
            if self.copy:
                files[self.copy.name] = self.copy
        return take_of(take.stem, files.values(), self.past_after(now), take.rates)

    def told(self) -> dict[str, Any]:
        """Returns the object of `--json`, which is also the head of its line in the history."""
        copy = self.copy if self.is_done else None
        file = self.path if self.source or self.take.file else None
        if self.is_done:
            file = join(self.take.folder, copy.name) if copy else None
        return {
            "type": "recording",
            "path": self.path,
            "file": file,
            "action": self.reason.action,
            "reason": self.reason.sentence.format(self.result.detail),
            "original_size": self.source_size,
            "compressed_size": copy.size if copy else None,
            "seconds": self.seconds,
        }


class Compress(Move):
    """The original is encoded, and its copy proven."""

    name, rank, done, due = "compress", 1, Reason.DONE, Reason.DUE
    encodes = True
    job: Optional[Job] = None  # from `stage` on

    @property
    def size_before(self) -> int:
        """Returns the bytes that a copy must save from."""
        return self.source_size

    @property
    def space_needed(self) -> int:
        """Returns the bytes that it may take while at work: its copy, and two level files."""
        if self.probe:
            levels = self.probe.timeline * self.probe.channels * LEVEL_BYTES
            return round(self.estimate + levels)
        return round(self.size_before + 2 * self.guessed_seconds * LEVEL_BYTES)

    @property
    def seconds_left(self) -> float:
        """Returns a guess at the seconds of audio that are still to be worked on."""
        share = self.job.share_done if self.job else 0
        return self.guessed_seconds * (1 - share)

    def examine(self, run: Run) -> None:
        """Opens the source once: identity, probe, decide; SHA-256. In a dry run it has its outcome
        then. Raises Refusal, OSError, Stopped."""
        source, path = self.source, run.library.path(self.path)
        assert source
        with open_regular(path) as file:
            identity = run.library.identity(file)
            self.seen[source.name] = Witness(identity)
            expect(identity[-2:] == source[1:])
            digest = digest_from(file, stop=run.stop) if self.known_sha256 else ""
            if digest != self.known_sha256:
                if source == self.take.proven_copy:
                    raise Refusal(Reason.ROTTEN, since_when(self.take.past))
                raise Refusal(Reason.DAMAGED, "it has the size and time on record, and other bytes")
            self.probe = probe(file.fileno(), path, run.tools)
            lasts = self.recording.seconds_of(self.take)
            saving = run.config.min_saving_percent if self.encodes else -math.inf
            self.estimate = decide(self.probe, self.size_before, lasts, self.target, saving)
            run.trials.foresee(self)
            if run.config.dry_run:
                self.copy = File(basename(self.target_path), self.estimate, source.mtime_ns)
                self.outcome = Outcome(self.due, self.detail)
                return
            # Only now, because a sparse file may be larger than the disk.
            digest = digest or digest_from(file, stop=run.stop)
            self.seen[source.name] = Witness(identity, digest)

    def stage(self, run: Run) -> Job:
        """Returns the proof to carry out. A copy to be made gets its staged file. Raises Refusal,
        OSError, NoSpaceError."""
        assert self.probe
        library = run.library
        free, needed = free_space(library), SPACE_MARGIN + self.space_needed
        if free < needed:
            found = f"{size_text(free)} free, where {size_text(needed)} are needed"
            raise run.no_space(found)
        source, path = library.path(self.path), library.path(self.target_path)
        if self.encodes:
            self.staged = path = run.staging.beside(path)
            give_attributes_of(source, path)  # or nothing is worth encoding
            os.chmod(path, 0o600)  # until it is whole
        most = self.size_before * (1 - run.config.min_saving_percent / 100)
        levels = (run.staging.levels(), run.staging.levels())
        return Job(source, self.probe, self.target, path, self.encodes, *levels, most)

    def told(self) -> dict[str, Any]:
        told = super().told()
        if self.reason.action is Action.WOULD_COMPRESS:
            told["estimated_size"] = self.estimate
        return told

    def finish(self, run: Run, job: Job) -> None:
        """Flushes a copy that was proven, with its attributes. Raises Refusal, OSError, Stopped."""
        if job.problem:
            raise job.problem
        if self.encodes or not (self.take.proven_copy and self.take.is_known):
            give_attributes_of(job.source, job.copy)
        with open_regular(job.copy) as file:
            flush(file.fileno())
        seen = run.library.witness(job.copy, run.stop)
        if seen.sha256 != job.digest and self.encodes:
            raise NotProven("the bytes that were decoded", "others in the file")
        expect(seen.sha256 == job.digest)  # the file on record is the one that was decoded
        self.copy_seen = seen
        self.copy = File(basename(self.target_path), *seen.identity[-2:])
        if not self.encodes:
            self.seen[self.copy.name] = seen
        self.is_proven = True

    def past_if_done(self, past: Past, now: float) -> Past:
        if not self.copy:
            return past
        first = self.take.original and self.seen.get(self.take.original.name)
        return past._replace(
            suffix=self.copy.suffix,
            size=self.copy.size,
            mtime_ns=self.copy.mtime_ns,
            bitrate=self.target.bitrate,
            compressed=now,
            sha256=self.copy_seen.sha256 if self.copy_seen else "",
            first_sha256=first.sha256 if first else past.first_sha256,
            freed=now if self.take.original in self.removes else past.freed,
            lost="",
        )


class Adopt(Compress):
    """A copy of ours is there already, without a record, and is proven again."""

    name, rank, done, due = "adopt", 1, Reason.ADOPTED, Reason.ADOPT_DUE
    encodes = False

    def finish(self, run: Run, job: Job) -> None:
        try:
            if not (job.problem or self.take.proven_copy):
                check_claim(self, job, run.stop)
            super().finish(run, job)
        except NotProven as error:
            other = f"{self.target_path} is not a copy of it: {error.detail}"
            raise Refusal(Reason.NAME_TAKEN, other) from None

    def past_if_done(self, past: Past, now: float) -> Past:
        """A copy that was here already keeps the rate and date on record or in its tag."""
        date = past.compressed or now
        past = super().past_if_done(past, now)
        return past._replace(bitrate=self.take.bitrate, compressed=date)


class Free(Adopt):
    """An original whose days are over is removed, after its copy was proven again."""

    name, rank, done, due = "free", 3, Reason.FREED, Reason.FREE_DUE

    def examine(self, run: Run) -> None:
        self.is_early = freed_from(self.take, run.config) > run.moment.careful
        self.detail = "early, as keep_free asks" if self.is_early else "its days are over"
        super().examine(run)


class Smaller(Compress):
    """A tier asks for less: a new copy takes the place of the one before."""

    name, rank = "smaller", 2
    is_swapped = False

    @property
    def size_before(self) -> int:
        """Returns the bytes of the copy before. A damaged one says nothing."""
        copy = None if self.take.past.lost else self.take.copy
        return copy.size if copy else self.source_size

    def examine(self, run: Run) -> None:
        super().examine(run)
        # Without the original, only the history can show that the new copy is proven.
        self.has_first_word = self.take.original is None
        displaced = run.library.path(self.target_path)
        name = basename(displaced)
        if not self.outcome and name not in self.seen:
            self.seen[name] = run.library.witness(displaced, run.stop)

    def put(self, library: Library) -> None:
        """Exchanges the two: the old one waits under the staged name until all is true."""
        self.swap(library, self.seen[basename(self.target_path)])
        self.is_swapped = True

    def undo(self, library: Library) -> None:
        if self.is_swapped and self.staged:
            self.swap(library, self.copy_seen)

    def swap(self, library: Library, expected: Optional[Witness]) -> None:
        """Exchanges the staged file and the file in its place. If another program was faster and
        that is not the expected file, they change back. Raises Refusal(CHANGED), OSError."""
        final = library.path(self.target_path)
        self.staged = exchange(self.staged, final)
        if self.staged and not is_same(self.staged, expected):
            self.staged = exchange(self.staged, final)
            raise Refusal(Reason.CHANGED)


class Store(Move):
    """A whole recording is archived: copied there, read back, compared, then removed here."""

    name, rank, done, due = "archive", 4, Reason.ARCHIVED, Reason.ARCHIVE_DUE
    is_whole = True

    def foresee(self, run: Run) -> str:
        return run.answering_archive.location(self.path)

    def carry(self, run: Run) -> None:
        self.place = run.answering_archive.put(self)
        self.detail = self.place.location


class Delete(Move):
    """A tier of its owner asks for no audio of this age: all files of the recording go for good.
    The documents and the history say so first."""

    name, rank, done, due = "delete", 5, Reason.DELETED, Reason.DELETE_DUE
    is_whole = True
    archive: Archive
    archived: Collection[str] = ()  # where it is there

    def is_asked_by(self, now: Recording) -> bool:
        return super().is_asked_by(now) and why_it_stays(now) is None

    def foresee(self, run: Run) -> str:
        """Also tries the archive, which may hold a part. Raises Refusal, ServiceError."""
        if run.archive:
            self.archive = run.answering_archive
        elif self.take.past.place:
            raise Refusal(Reason.NOT_DELETED, "a part is archived, and tiers name no archive")
        return self.detail

    def carry(self, run: Run) -> None:
        """Looks at each file here and in the archive once more. The archive may also hold what was
        restored since, or was uploaded by a run that was killed."""
        self.foresee(run)
        place = self.take.past.place
        self.seen = {file.name: self.witness(run, file) for file in self.removes}
        if run.archive:
            here = [Place(name=name, sha256=seen.sha256) for name, seen in self.seen.items()]
            self.archived = {self.find(each) for each in (place, *here) if each} - {""}

    def find(self, place: Place) -> str:
        """Returns where a file is in the archive, "" if it is not there. Raises Refusal if that is
        another file, or if the place on record is not one of this archive, or it has no mark."""
        archive, said = self.archive, self.recording.locations
        there, size = archive.find(self.take.folder, place, said)
        if size is not None and archive.digest(there) != place.sha256:
            raise Refusal(Reason.NOT_DELETED, f"{there} is not the file that went there")
        if size is None and place.location:
            leads = [f"{each}/{place.name}" for each in (place.location, *said)]
            if not (archive.recognise() and all(map(archive.holds, leads))):
                why = f"{leads[0]} is not found; do tiers name its archive, and is it mounted?"
                raise Refusal(Reason.NOT_DELETED, why)
        return "" if size is None else there

    def witness(self, run: Run, file: File) -> Witness:
        seen = run.library.witness(run.library.path(self.take.folder, file.name), run.stop)
        expect(seen.identity[-2:] == file[1:])
        is_sound = self.take.past.sha256_of(file) in ("", seen.sha256)
        expect(is_sound or not self.take.originals)  # its original is no loss
        if not is_sound:
            raise Refusal(Reason.ROTTEN, since_when(self.take.past))
        return seen

    def remove(self, library: Library) -> None:
        try:
            for there in self.archived:  # first, as what is here leads to it again
                self.archive.remove(there)
                self.is_begun = True
            super().remove(library)
        except (Refusal, OSError, Stopped) as error:  # a commit comes to its end, also when stopped
            why = detail_of(error) or "the run was stopped"
            raise Refusal(Reason.NOT_DELETED, why) from None
        finally:
            paths = [library.path(self.take.folder, file.name) for file in self.removes]
            self.is_begun = self.is_begun or not all(map(lexists, paths))

    def past_after(self, now: float) -> Past:
        """A recording that stays keeps its past, because other moves go on from that. A deletion
        that has removed a part of it remains to be finished, also if the rest cannot be removed."""
        if self.reason.action is Action.KEPT:
            return self.take.past._replace(stays=self.reason.code)
        past = super().past_after(now)
        if not (self.is_done or self.is_begun or self.take.is_half_deleted):
            return past
        deleted = past._replace(deleted=self.take.past.deleted or now, back=0, stays="")
        is_over = self.outcome is not None and self.is_done
        return deleted._replace(place=None) if is_over else deleted._replace(code=DELETING)


class Restore(Move):
    """A recording comes back as a whole. The history says so first, or a run in between would
    delete the original again."""

    name, done, due = "restore", Reason.RESTORED, Reason.RESTORE_DUE
    is_whole = True
    has_first_word = True

    def is_asked_by(self, now: Recording) -> bool:
        """Returns True: its owner asks for it, whatever documents say."""
        return True

    def past_after(self, now: float) -> Past:
        """A restore that failed changes nothing, but is counted if it was begun before."""
        past, last = super().past_after(now), self.take.past
        if not self.is_done:
            counted = last._replace(move=self.name, settings=past.settings, attempts=past.attempts)
            return counted if self.take.is_half_restored else last
        past = past._replace(place=self.place, back=now)
        return past if self.outcome else past._replace(code=RESTORING)


class Fetch(Restore):
    """Its file is fetched from the archive, or was before a restore was cut short."""

    def carry(self, run: Run) -> None:
        fetch_back(run, self)

    @property
    def target_path(self) -> str:
        return self.path

    def put(self, library: Library) -> None:
        super().put(library)
        self.place = None  # it is here again

    def past_after(self, now: float) -> Past:
        """Once its file is here, what failed is a restore that the next run finishes."""
        past = super().past_after(now)
        is_begun = self.is_proven and not (self.place or self.is_done)
        return past._replace(action=Action.RESTORED, code=RESTORING) if is_begun else past


class BringBack(Restore, Adopt):
    """A kept original replaces its copy again, once that is proven to be its copy."""

    def carry(self, run: Run) -> None:
        prove_again(run, self)

    def past_if_done(self, past: Past, now: float) -> Past:
        """Any file in the copy's place is unproven from now on: the copy is removed, or it did not
        prove to be the original's. Its suffix shows which names are to be turned back."""
        is_going = self.outcome is None and self.removes
        past = past._replace(suffix=self.take.copies[0].suffix)
        return past if is_going else past._replace(size=0)


class Reread(Move):
    """A copy on record is read again: it is sound, or lost. Nothing is removed or put in place."""

    name, done = "check", Reason.ADOPTED
    after: Optional[Past] = None  # what the history is to say, if that changes
    is_other = False  # it plays in full, but is another file than the one on record
    is_broken = False  # it was cut, or does not decode

    def past_after(self, now: float) -> Past:
        return self.after or self.take.past

    def told(self) -> dict[str, Any]:
        return {**super().told(), "file": self.path if self.copy else None}


RANKS = {kind.name: kind.rank for kind in (Compress, Adopt, Smaller, Free, Store, Delete)}
REASON_OF_ERRNO = {
    errno.ENOSPC: Reason.NO_SPACE,
    errno.EDQUOT: Reason.NO_SPACE,
    errno.ENAMETOOLONG: Reason.NAME_TOO_LONG,
    errno.ELOOP: Reason.CHANGED,  # a link where a file was: we follow none
    errno.EEXIST: Reason.NAME_TAKEN,
}


def keep_together(moves: Iterable[Move]) -> None:
    """One part of a whole recording that cannot move keeps the others."""
    parts = [move for move in moves if move.is_whole]
    stuck = {id(move.recording): move for move in reversed(parts) if move.outcome}
    for move in parts:
        other = stuck.get(id(move.recording))
        if other and not move.outcome:
            why = f"of its other part {other.path}: {other.result.detail}"
            is_lost = other.reason.action is Action.LOST  # which the other one alone is
            move.outcome = Outcome(Reason.INCOMPLETE if is_lost else other.reason, why)


def expect(is_unchanged: bool) -> None:
    """Raises Refusal(CHANGED) unless something that was proven is unchanged."""
    if not is_unchanged:
        raise Refusal(Reason.CHANGED)


def is_same(path: str, seen: Optional[Witness]) -> bool:
    """Returns whether the file under a name is still the one that was seen. Raises
    FileNotFoundError if its owner deleted it, OSError."""
    status = os.lstat(path)
    now = identity_of(status)
    if seen is None or now[-2:] != seen.identity[-2:] or not stat.S_ISREG(status.st_mode):
        return False
    return now == seen.identity or digest_of(path) == seen.sha256


def give_attributes_of(source: str, copy: str) -> None:
    """Gives the attributes of one file to another, by path. Raises Refusal, OSError."""
    with open_regular(source) as one, open_regular(copy) as other:
        give_attributes(one.fileno(), other.fileno(), times=True)


def check_claim(move: Adopt, job: Job, stop: Stop) -> None:
    """Checks that a copy without a record is what it claims: a tag can be forged, and a name can
    mean a preview. It must have the rate that is asked for now. It must have half the size of an
    encode of its sound at its rate. If its source is very quiet, the proof has compared nothing
    yet. Raises Refusal, NotProven, Stopped."""
    copy, asked = move.take.copy, move.target
    assert copy
    rate = move.take.bitrate or asked.bitrate
    share = sounding_share(job)
    usual = share * estimated_size(job.probe, asked._replace(bitrate=rate))
    size = job.sound + asked.form.header
    if rate < asked.bitrate or size < usual / 2:
        usual = share * estimated_size(job.probe, asked)
        found = f"{copy.name} has {size_text(size)} of sound"
        expected = f"a copy at {asked.bitrate / 1000:g}k has about {size_text(usual)}"
        raise Refusal(Reason.NAME_TAKEN, f"{found}, but {expected}; move one of the two away")
    if not share:
        job.floor = QUIETEST
        compare_audio(job, stop)


# ----------------------------------------------------------------------------------------- probe
# Finds out what is in a file, from its bytes. One walker a container accounts for every
# byte, and for every packet with its samples and stamp. This section reads one descriptor (and
# ffmpeg's word on the codec of an MP4). It never writes, and follows nothing that a file refers to.

HEAD_BYTES = 1 << 20  # of a file; here it says what it is
MOST_PACKETS = 1 << 21  # of an MP4: twelve hours; ffmpeg takes 30 bytes for each
MOST_TRACKS = 64
MOST_FILLER = 16  # bytes of line ends and zeros that uploads and writers leave behind the end
DEEPEST_PART = 8  # levels of parts in parts; no writer needs more than six
LARGEST_GAIN = 40 << 8  # 40 dB: quieter sound could not be compared (RFC 7845, 5.1: 256 a dB)
LARGEST_DOUBT = 0.12  # seconds; decoders of one file may differ by this at most
FIRST_PAGE, LAST_PAGE = 2, 4  # flags of a page of Ogg (RFC 3533, section 6)
REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))

# Samples at 48 kHz in a frame of an Opus packet, by its first five bits: SILK, hybrid, CELT (RFC
# 6716, section 3.1, table 2).
OPUS_FRAMES = (480, 960, 1920, 2880) * 3 + (480, 960) * 2 + (120, 240, 480, 960) * 4

# PCM by its tag in WAV and its bits; Matroska's names of these tags.
PCM_CODECS = {
    "1/8": "pcm_u8",
    "1/16": "pcm_s16le",
    "1/24": "pcm_s24le",
    "1/32": "pcm_s32le",
    "3/32": "pcm_f32le",
    "3/64": "pcm_f64le",
}
PCM_TAGS = {"A_PCM/INT/LIT": 1, "A_PCM/FLOAT/IEEE": 3}

# The beginnings of files. A group is named after a walker, a reason, or what people call such a
# file. Later blobs of start(timeslice) begin anywhere in a cluster. Two blocks of track 1 show
# that, or a page of Ogg that is not the first. ADTS says layer 0, which no MP3 has.
BEGINNINGS = re.compile(
    rb"""
      (?P<EMPTY> \Z )
    | (?P<FORM_UPLOAD> -- [^\r\n]{1,200} \r?\n Content-Disposition: )
    | (?P<FLAC> fLaC | OggS .{24} \x7fFLAC )
    | (?P<Vorbis> OggS .{24} \x01vorbis )
    | (?P<Speex> OggS .{24} Speex )
    | (?P<Theora_video> OggS .{24} \x80theora )
    | (?P<Skeleton_of_several_streams> OggS .{24} fishead )
    | (?P<ADTS_AAC> \xff [\xf0\xf1\xf8\xf9] )
    | (?P<MP3> ID3 | \xff [\xe2-\xe7\xea-\xff] | RIFF .{4} WAVEfmt\  .{4} \x55\0 )
    | (?P<ADPCM> RIFF .{4} WAVEfmt\  .{4} [\x02\x11] \0 )
    | (?P<A_law> RIFF .{4} WAVEfmt\  .{4} \x06 \0 )
    | (?P<Mu_law> RIFF .{4} WAVEfmt\  .{4} \x07 \0 )
    | (?P<AVI> RIFF .{4} AVI )
    | (?P<WAV_of_more_than_4_GB> RF64 | BW64 | riff \x2e \x91 )
    | (?P<AIFF> FORM .{4} AIF )
    | (?P<CAF> caff )
    | (?P<AMR> \#!AMR )
    | (?P<Windows_Media> \x30\x26\xb2\x75\x8e\x66\xcf\x11 )
    | (?P<Flash_video> FLV )
    | (?P<Sun_audio> \.snd )
    | (?P<MPEG_transport_stream> \x47 .{187} \x47 )
    | (?P<a_playlist> \#EXTM3U | ffconcat | \[playlist\] )
    | (?P<a_web_page> \s* < (?: !doctype | html | \?xml | head | body ) )
    | (?P<NO_TRACKS> \x1aE\xdf\xa3 (?! .* \x16\x54\xae\x6b ) )
    | (?P<matroska> \x1aE\xdf\xa3 )
    | (?P<ogg> OggS . [\2\3\6\7] )
    | (?P<mp4> .{4} ftyp )
    | (?P<wav> RIFF .{4} WAVE )
    | (?P<HEADERLESS> (?: .*? \xa3 (?: [\x80-\xff] | [\x40-\x7f]. ) \x81 .. \x80 ){2}
        | .{0,65307}? OggS \0 [\0\1\4\5] )
    | (?P<no_audio_that_a_browser_or_a_phone_writes> )
    """,
    re.DOTALL | re.IGNORECASE | re.VERBOSE,
)


def probe(descriptor: int, path: str, tools: Tools) -> Probe:
    """Returns what is in a file: container, codec, channels and packets. Every byte of it has been
    accounted for. Raises Refusal, OSError.

    We walk the file ourselves. This is exact, the same with every ffmpeg, and cheaper than a
    process. Only the codec of an MP4 is asked of ffmpeg. The content decides, never the name.
    """
    window = Window(descriptor, tools.stop)
    beginning = BEGINNINGS.match(window.at(0, HEAD_BYTES))
    kind = str(beginning and beginning.lastgroup)
    walkers: dict[str, Callable[[Window], Probe]] = {
        "matroska": walk_matroska,
        "ogg": walk_ogg,
        "wav": walk_wav,
        "mp4": partial(walk_mp4, path=path, tools=tools),
    }
    if kind in Reason.__members__:
        raise Refusal(Reason[kind])
    if kind not in walkers:
        raise unsupported(kind.replace("_", " "))
    found = walkers[kind](window)
    if not found.samples:
        raise Refusal(Reason.NO_AUDIO, "it holds a header but not one packet that is played")
    return found


def probe_file(path: str, tools: Tools) -> Probe:
    """Returns what is in the file at a path. Raises Refusal, OSError."""
    with open_regular(path) as file:
        return probe(file.fileno(), path, tools)


OUR_TAG = re.compile(
    rb"(?:encoded_by=|\xa9too.{4}data.{8})%b (\d{1,6}(?:\.\d{1,3})?)k"
    % re.escape(PROGRAM).encode(),
    re.DOTALL | re.IGNORECASE,
)


def provenance(path: str) -> Optional[int]:
    """Returns the bit/s in the tag of a copy of ours (`Target.tag`), None if it has none. Raises
    OSError."""
    tags = b""
    with open_regular(path) as file, suppress(Refusal):
        window = Window(file.fileno())
        tags = window.at(0, HEAD_BYTES)
        if tags[4:8] == b"ftyp":  # the tags of an MP4 may stand anywhere
            tags = b""
            for name, body, size in MP4.walk(window):
                if name == "udta":
                    tags = window.at(body, min(size, HEAD_BYTES))
    found = OUR_TAG.search(tags)
    return round(float(found[1]) * 1000) if found else None


class Window:
    """Reads anywhere in a file, so that memory stays flat whatever its length."""

    def __init__(self, descriptor: int, stop: Optional[Stop] = None) -> None:
        self.descriptor, self.stop = descriptor, stop or Stop()
        self.size = os.fstat(descriptor).st_size
        self.start, self.data = 0, b""  # the last bytes read, and their offset

    def at(self, offset: int, length: int) -> bytes:
        """Returns `length` bytes at `offset`, or fewer at the end of the file. Raises Refusal if it
        ends earlier than before, Stopped."""
        if self.stop.requested:
            raise Stopped
        begin = offset - self.start
        if begin > len(self.data) - length:
            self.start, begin = offset, 0
            self.data = os.pread(self.descriptor, max(length, HEAD_BYTES), offset)
        data = self.data[begin : begin + length]
        if begin < 0:  # it may be read again and again, so the window stays
            data = os.pread(self.descriptor, length, offset)
        if len(data) < min(length, self.size - offset):
            raise Refusal(Reason.CHANGED)
        return data


def damaged(found: str) -> Refusal:
    return Refusal(Reason.DAMAGED, found)


def truncated(found: str) -> Refusal:
    return Refusal(Reason.TRUNCATED, found)


def unsupported(found: str) -> Refusal:
    return Refusal(Reason.UNSUPPORTED, found)


def big(data: bytes, signed: bool = False) -> int:
    """Returns a number from its bytes, eight at most, the highest first."""
    return int.from_bytes(data[:8], "big", signed=signed)


def pcm_probe(demuxer: str, tag: int, bits: int, channels: int, rate: float) -> Probe:
    """Returns a probe of PCM without a packet yet. Raises Refusal."""
    codec = PCM_CODECS.get(f"{tag}/{bits}")
    if not codec:
        raise unsupported(f"PCM of {bits} bits, WAV format {tag}")
    return Probe(demuxer, codec, channels, round(rate))


def opus_probe(demuxer: str, head: bytes) -> Probe:
    """Returns a probe of Opus without a packet yet, from its header (RFC 7845, section 5.1).
    Decoders follow that, whatever the container says. Raises Refusal."""
    if not head.startswith(b"OpusHead") or len(head) < 19:
        raise damaged("its Opus header is not one (RFC 7845, section 5.1)")
    if abs(big(head[17:15:-1], signed=True)) > LARGEST_GAIN:
        raise unsupported("Opus whose header changes its loudness by more than 40 dB")
    if head[18] > 1:
        raise unsupported(f"Opus whose channels have no layout (mapping family {head[18]})")
    return Probe(demuxer, "opus", head[9], OPUS_RATE, big(head[11:9:-1]))


def opus_packet_samples(start: bytes) -> int:
    """Returns the samples at 48 kHz in the Opus packet that begins with these bytes, 0 if there is
    no such packet."""
    if not start:
        return 0
    count = (1, 2, 2, big(start[1:2]) & 63)[start[0] & 3]
    samples = OPUS_FRAMES[start[0] >> 3] * count
    return samples if samples <= 5760 else 0  # 120 ms (RFC 6716, section 3.2.5, R5)


class Container(NamedTuple):
    """A format that is made of parts. Each has a name, a size and a content, which may be parts
    again. Every byte of a file must belong to a part, in a place where such a part may stand."""

    # Returns name, offset of the content and its bytes of the part at an offset; None: no size.
    header: Callable[[Window, int], tuple[str, int, Optional[int]]]
    parts: dict[str, str]  # by the name of a part, a pattern of what may stand in it; `.`: the file
    first: str = ""  # name of the part at the beginning of a file
    alignment: int = 1  # bytes

    def walk(
        self,
        window: Window,
        offset: int = 0,
        end: int = sys.maxsize,
        parents: tuple[str, ...] = (".",),
        is_open: bool = False,
    ) -> Generator[tuple[str, int, int], None, int]:
        """Yields name, offset and bytes of every part up to `end`. A part comes after the parts in
        it. A parent without a size ends before the first part that may not stand in it. Returns
        its end. Raises Refusal, Stopped."""
        end, parent = min(end, window.size), parents[-1]
        if len(parents) > DEEPEST_PART:
            raise damaged(f"its parts are nested too deeply at byte {offset}")
        while offset < end:
            rest = end - offset
            if rest <= MOST_FILLER and not window.at(offset, rest).strip(b"\0\r\n "):
                return end  # a few zeros, line ends and spaces
            name, body, size = self.header(window, offset)
            if offset and name == self.first:
                raise Refusal(Reason.APPENDED, f"a second one begins at byte {offset}")
            is_allowed = re.fullmatch(self.parts[parent], name)
            if is_open and (not is_allowed or name == parent):
                return offset
            stop = end if size is None else body + size
            is_part = is_allowed and (stop <= end or end == window.size)
            if not is_part and body <= window.size:
                raise damaged(f"what stands at byte {offset} of {window.size} is no part of it")
            reached = stop
            if name in self.parts:
                inner = (*parents, name)
                reached = yield from self.walk(window, body, stop, inner, size is None)
            short = max(body, stop) - window.size
            if short > 0:
                end_of = f"the end of a part that begins at byte {offset}"
                raise truncated(f"it ends {short} bytes short of {end_of}")
            yield name, body, stop - body
            offset = reached + reached % self.alignment
        return offset


def ebml_number(data: bytes, at: int) -> tuple[int, int]:
    """Returns a variable-length number with its length marker (RFC 8794, section 4), and its
    end."""
    end = at + 9 - big(data[at : at + 1]).bit_length()
    return big(data[at:end]), end


def ebml_header(window: Window, offset: int) -> tuple[str, int, Optional[int]]:
    """Returns name, offset of the content and size of an element (RFC 8794, section 6.1)."""
    head = window.at(offset, 12)
    identity, middle = ebml_number(head, 0)
    size, length = ebml_number(head, middle)
    unknown = (1 << 7 * (length - middle)) - 1
    name = NAMES.get(identity, "unknown")
    size &= unknown
    is_open = size == unknown and name in ("Segment", "Cluster")
    return name, offset + length, None if is_open else size


# Identity and name of each element, and the elements in which it may stand; `.` is the file. A
# cluster may stand in another, as fix-webm-duration gives the first of them a size that spans all.
ELEMENTS = """
1A45DFA3 EBML .
18538067 Segment .
114D9B74 SeekHead Segment
1549A966 Info Segment
2AD7B1 TimestampScale Info
4489 Duration Info
1654AE6B Tracks Segment
AE TrackEntry Tracks
D7 TrackNumber TrackEntry
83 TrackType TrackEntry
86 CodecID TrackEntry
63A2 CodecPrivate TrackEntry
56AA CodecDelay TrackEntry
6D80 ContentEncodings TrackEntry
E1 Audio TrackEntry
B5 SamplingFrequency Audio
9F Channels Audio
6264 BitDepth Audio
1F43B675 Cluster Segment Cluster
E7 Timestamp Cluster
A7 Position Cluster
AB PrevSize Cluster
5854 SilentTracks Cluster
A3 SimpleBlock Cluster
A0 BlockGroup Cluster
A1 Block BlockGroup
9B BlockDuration BlockGroup
FB ReferenceBlock BlockGroup
FA ReferencePriority BlockGroup
A4 CodecState BlockGroup
8E Slices BlockGroup
FD ReferenceVirtual BlockGroup
75A1 BlockAdditions BlockGroup
75A2 DiscardPadding BlockGroup
1C53BB6B Cues Segment
1254C367 Tags Segment
1941A469 Attachments Segment
1043A770 Chapters Segment
EC Void . Segment Cluster BlockGroup Info Tracks TrackEntry Audio
BF CRC-32 Segment Cluster BlockGroup Info Tracks TrackEntry Audio
0 unknown Info TrackEntry Audio
"""
# Elements of eight bytes at most; a flipped bit makes a block one of them.
NUMBERS = re.compile("Timestamp|Position|PrevSize|BlockDuration|ReferenceBlock|DiscardPadding")
MATROSKA = Container(ebml_header, defaultdict(str), first="EBML")
NAMES: dict[int, str] = {}
for identity, name, *parents in map(str.split, ELEMENTS.strip().splitlines()):
    NAMES[int(identity, 16)] = name
    for parent in parents:
        MATROSKA.parts[parent] += f"|{name}"


def walk_matroska(window: Window) -> Probe:
    """Returns what is in a WebM or Matroska file (RFC 8794, RFC 9559). Raises Refusal."""
    values: dict[str, bytes] = defaultdict(bytes)
    found = Probe("matroska", "", 1, OPUS_RATE)
    tracks = []
    for name, body, size in MATROSKA.walk(window):
        values[name] = content = window.at(body, min(size, 256))
        if size > 8 and NUMBERS.fullmatch(name):
            raise damaged(f"a number of {size} bytes stands at byte {body} ({name})")
        if name in ("SimpleBlock", "Block"):
            add_block(found, values, content, body, size)
        elif name == "DiscardPadding":
            # Nanoseconds of this block that a decoder drops, if negative at its beginning. If
            # ffmpeg should drop more than the block, it drops nothing.
            dropped = big(content, signed=True)
            padding = round(abs(dropped) * found.rate / 1e9)
            found.trimmed += padding if padding <= found.last else 0
            if dropped < 0 and found.length == found.last:
                found.pre_skip = 0  # the beginning of the first block says it in its place
        elif name == "TrackEntry":
            tracks.append(big(values["TrackType"]))
            del tracks[MOST_TRACKS:]
        elif name == "Tracks":
            if found.codec:
                raise damaged("it has a second list of tracks")
            found = read_tracks(values, tracks)
        elif name == "Chapters":
            raise Refusal(Reason.CHAPTERS)
        elif name == "Attachments":
            raise Refusal(Reason.COVER)
        elif name == "BlockAdditions":
            raise Refusal(Reason.DATA, name)
    # Chrome's header is 60 ms short, or says 1 ms; it never says more than was recorded.
    lasts = real(values["Duration"]) * tick_of(values)
    if lasts and lasts > found.end + 1.0:
        ends = f"it ends at {found.end:.1f} s"
        raise truncated(f"its header says {lasts:.1f} s, but {ends}")
    return found


def real(content: bytes) -> float:
    """Returns the number in an element, 0 if that is not finite."""
    form = {4: ">f", 8: ">d"}.get(len(content))
    number: float = struct.unpack(form, content)[0] if form else 0.0
    return number if math.isfinite(number) else 0.0


def rate_of(values: Mapping[str, bytes]) -> float:
    """Returns the rate of the track in Hz."""
    return real(values["SamplingFrequency"]) or 8000


def tick_of(values: Mapping[str, bytes]) -> float:
    """Returns the seconds of one tick of the stamps."""
    return (big(values["TimestampScale"]) or 1_000_000) / 1e9


def read_tracks(values: Mapping[str, bytes], tracks: list[int]) -> Probe:
    """Returns a probe of the only track, without a packet yet. Raises Refusal."""
    if 1 in tracks:
        raise Refusal(Reason.VIDEO)
    if tracks != [2]:
        raise Refusal(Reason.SEVERAL_STREAMS, f"{len(tracks)} tracks")
    if "ContentEncodings" in values:
        raise unsupported("packed once more by its container (ContentEncodings)")
    codec = values["CodecID"].rstrip(b"\0").decode("ascii", "replace")
    channels = big(values["Channels"]) or 1
    if codec == "A_OPUS":
        delay = round(big(values["CodecDelay"]) * OPUS_RATE / 1e9)  # from nanoseconds
        found = Probe("matroska", "opus", channels, OPUS_RATE, delay)
        other = 0  # samples; servers of WebRTC write no header
        if "CodecPrivate" in values:
            found = opus_probe("matroska", values["CodecPrivate"])
            other = delay or found.pre_skip
        # ffmpeg 9 follows the CodecDelay, ffmpeg 5 the header.
        found.doubt = abs(found.pre_skip - other)
        if found.doubt > LARGEST_DOUBT * OPUS_RATE:
            raise unsupported(f"its headers contradict each other by {found.doubt} samples")
        return found
    if codec not in PCM_TAGS:
        raise unsupported(codec)
    tag, bits = PCM_TAGS[codec], big(values["BitDepth"])
    return pcm_probe("matroska", tag, bits, channels, rate_of(values))


def add_block(found: Probe, values: Mapping[str, bytes], data: bytes, body: int, size: int) -> None:
    """Adds the packet of a block (RFC 9559, section 10). A block has the number of its track, a
    16-bit time, flags, and the packet. Raises Refusal."""
    track, at = ebml_number(data, 0)
    is_its = track == (big(values["TrackNumber"]) or 1) | 1 << 7 * at
    head = at + 3
    if size <= head or not (found.codec and is_its):
        raise damaged(f"the block at byte {body} does not belong to its only track")
    if data[at + 2] & 6:
        raise unsupported("several packets in one block (lacing)")
    samples, rest = opus_packet_samples(data[head:]), 0
    if found.codec != "opus":
        samples, rest = divmod(size - head, found.channels * big(values["BitDepth"]) // 8)
    if samples <= 0 or rest:
        raise damaged(f"the block at byte {body} holds no {found.codec} packet")
    ticks = big(values["Timestamp"]) + big(data[at : at + 2], signed=True)
    found.add(ticks * tick_of(values), samples, size - head)


STREAMED_FROM = 0x7FFFF000  # bytes; such a size means "to the end" (SoX, oboe, arecord)
# Chunks that a copy need not have: padding, peaks, and tags that ffmpeg copies.
WAV_CHUNKS = re.compile(
    "(?i)RIFF|fmt |fact|data|PEAK|levl|LIST|cue |bext|id3 |junk|pad |fllr|filr|minf|elm1"
)


def riff_header(window: Window, offset: int) -> tuple[str, int, Optional[int]]:
    """Returns name, offset of the content and size of a chunk (RIFF, 1991). The outermost chunk
    reaches to the end, whatever its size says. So do samples if their size was never filled in, or
    if it counts the header too."""
    head = window.at(offset, 8)
    name, size = head[:4].decode("latin-1"), int.from_bytes(head[4:], "little")
    body = offset + 8
    if name == "RIFF":
        return name, body + 4, None
    beyond = body + size - window.size
    if beyond > 0 and not WAV_CHUNKS.fullmatch(name):
        return "no chunk\n", body, size
    is_streamed = size == 0 or (beyond > 0 and (beyond <= body or size >= STREAMED_FROM))
    return name, body, None if name == "data" and is_streamed else size


WAV = Container(riff_header, {".": "RIFF", "RIFF": "[ -~]{4}"}, first="RIFF", alignment=2)


def walk_wav(window: Window) -> Probe:
    """Returns what is in a WAV. It is as long as its samples. Raises Refusal."""
    form = b""
    start = size = 0
    for name, body, length in WAV.walk(window):
        content = window.at(body, min(length, 64))
        if name == "data":
            if start:
                raise damaged(f"a second part of samples begins at byte {body}")
            start, size = body, length
        elif name == "fmt ":
            form = content
        elif name == "cue " and any(content[:4]):  # some programs write a list without marks
            raise Refusal(Reason.CHAPTERS)
        elif name.lower() == "id3 " and find(window, b"APIC", body, length):
            raise Refusal(Reason.COVER)
        elif name == "LIST" and content[:4] != b"INFO":
            raise Refusal(Reason.DATA, content[:4].decode("latin-1"))
        elif not WAV_CHUNKS.fullmatch(name):
            raise Refusal(Reason.DATA, name)
    if len(form) < 16:
        raise damaged("it does not tell the format of its samples")
    tag, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", form)
    if tag == 0xFFFE:  # extensible: a longer field begins with the real tag
        tag = int.from_bytes(form[24:26], "little")
        used = int.from_bytes(form[18:20], "little")
        if (used + 7) // 8 not in (0, bits // 8):
            raise unsupported(f"PCM of {used} bits in {bits}")
    found = pcm_probe("wav", tag, bits, channels, rate)
    second = find(window, rb"RIFF.{4}WAVEfmt ", start, size)  # samples may reach to the end
    if second:
        raise Refusal(Reason.APPENDED, f"a second one begins at byte {second}")
    samples, rest = divmod(size, channels * bits // 8)
    if rest:
        raise truncated(f"it ends inside a sample, after {samples / rate:.1f} s")
    found.add(0.0, samples, size - rest)
    return found


def box_header(window: Window, offset: int) -> tuple[str, int, Optional[int]]:
    """Returns name, offset of the content and size of a box (ISO/IEC 14496-12, 4.2)."""
    head = window.at(offset, 20)
    size, name, length = big(head[:4]), head[4:8].decode("latin-1"), 8
    if size == 1:
        size, length = big(head[8:]), 16
    if name == "meta" and head[16:] == b"hdlr":  # QuickTime's has no version before it
        length += 4
    return name, offset + length, max(0, size - length) if size else None


MP4_PARENTS = "moov trak edts mdia minf stbl mvex moof traf udta meta tref"
MP4_FILE = (
    "ftyp|styp|moov|moof|mdat|free|skip|wide|mfra|sidx|uuid|meta|pdin|prft|emsg|ssix|pssh|sefd|udta"
)
MP4 = Container(
    box_header, {".": MP4_FILE, **dict.fromkeys(MP4_PARENTS.split(), "(?s:.{4})")}, first="ftyp"
)
# Boxes that a copy need not have. Names that begin with (C) are tags. Any other box below moov may
# hold marks or words: Voice Memos keep the transcript in moov/trak/udta/tsrp.
MP4_BOXES = re.compile(
    "ftyp|styp|mdat|free|skip|wide|mfra|sidx|pdin|prft|moov|mvhd|iods|trak|tkhd|edts|elst|tref|mdia"
    "|mdhd|hdlr|elng|minf|smhd|dinf|stbl|stsd|stts|stsc|stsz|stz2|stco|co64|stss|sdtp|sgpd|sbgp"
    "|ctts|cslg|mvex|mehd|trex|trep|moof|mfhd|traf|tfhd|tfdt|trun|udta|meta|keys|ilst|\xa9..."
)
MP4_UNITS = {"opus": 120, "aac": 512}  # samples; each packet has a multiple of them
OPUS_DELAY = 3_840  # samples; no encoder of Opus writes a longer pre-skip
# iTunes notes the samples before the sound and behind it.
PADDING = re.compile(rb"iTunSMPB.{0,32} 0{8} ([0-9A-F]{8}) ([0-9A-F]{8}) ", re.DOTALL)
# The head of ffmpeg's framecrc output, which is the same from 4 to 9.
LISTED_STREAM = re.compile(
    r"#media_type 0: audio\n#codec_id 0: (\w+)\n#sample_rate 0: (\d+)\n"
    r"(?:#channel_layout 0: .*\n)?#channel_layout_name 0: (.*)"
)


def walk_mp4(window: Window, path: str, tools: Tools) -> Probe:
    """Returns what is in an MP4 or M4A: one table of packets, or fragments. Raises Refusal."""
    movie = Movie(window)
    kinds: list[str] = []
    lost: set[str] = set()
    media = 0
    for name, body, size in MP4.walk(window):
        if name == "moov" and name in movie.places:
            raise damaged("it has a second index (moov)")
        if MP4_BOXES.fullmatch(name):
            movie.places[name] = body, size
        elif len(lost) < MOST_TRACKS:
            lost.add(name)
        if name == "mdat":
            media += size
        elif name == "hdlr" and len(kinds) < MOST_TRACKS:
            kinds.append(window.at(body + 8, 4).decode("latin-1"))
        elif name == "ilst" and find(window, b"covr", body, size):
            raise Refusal(Reason.COVER)
        elif name == "moov":
            movie.add_table()
        elif name == "tfdt":
            movie.clock = big(movie.content("tfdt", 12)[4:])
        elif name == "trun":
            movie.add_run()
    check_boxes(movie, kinds, lost, media)
    command = [tools.ffmpeg, *QUIET, "-ignore_chapters", "1", *input_arguments(path, "mov")]
    command += shlex.split("-map 0:a:0 -c copy -frames:a 1 -f framecrc pipe:1")
    text, messages = tools.run(command, window.size / BYTES_PER_SECOND)
    stream = LISTED_STREAM.search(text)
    if stream and stream[1] not in MP4_UNITS:
        raise unsupported(stream[1])
    if messages or not stream:
        raise damaged(messages or "ffmpeg finds no sound in it")
    codec, rate, layout = stream.groups()
    channels = {"mono": 1, "stereo": 2}.get(layout)
    if not channels:
        raise unsupported(f"{codec} in {layout}")
    found = Probe("mov", codec, channels, int(rate))
    movie.play(found)
    return found


def check_boxes(movie: Movie, kinds: Collection[str], lost: set[str], media: int) -> None:
    """Checks that an MP4 is one track of sound, and that its `media` bytes all belong to packets.
    `kinds` are its handlers, `lost` the boxes that a copy would lose. Raises Refusal."""
    if "moov" not in movie.places:
        raise truncated("its index (moov) was never written")
    tracks = [kind for kind in kinds if kind not in ("mdir", "mdta", "alis", "url ")]
    if "vide" in tracks:
        raise Refusal(Reason.VIDEO)
    if lost & {"chap", "chpl"}:
        raise Refusal(Reason.CHAPTERS)
    if tracks != ["soun"]:
        raise Refusal(Reason.SEVERAL_STREAMS, ", ".join(tracks) or "none")
    if lost:
        raise Refusal(Reason.DATA, ", ".join(sorted(lost)))
    unplayed = media - sum(movie.sizes)
    if unplayed < 0:
        raise truncated(f"its packets take {-unplayed} bytes more than it has")
    if unplayed and find(movie.window, b"moof....mfhd", *movie.places["mdat"]):
        # OBS writes fragments, and in the end a table over them.
        raise unsupported("an MP4 that lists its packets twice (hybrid)")
    if unplayed:
        size = movie.window.size
        raise damaged(f"{unplayed} of its {size} bytes belong to no packet that is played")


def find(window: Window, pattern: bytes, offset: int, size: int) -> Optional[int]:
    """Returns where a pattern of at most 64 bytes is first found in a part of the file."""
    for at in range(offset, offset + size, HEAD_BYTES):
        found = re.search(pattern, window.at(at, HEAD_BYTES + 64), re.DOTALL)
        if found:
            return at + found.start()
    return None


@dataclass
class Movie:
    """The packets of an MP4, from the boxes that list them."""

    window: Window
    # Offset and bytes of a box by its name; of several such boxes, those of the last.
    places: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    clock: int = 0  # ticks; the next packet begins there
    reached: int = 0  # bytes; the packets so far end there
    stamps: array.array[float] = dataclasses.field(default_factory=lambda: array.array("d"))
    sizes: array.array[int] = dataclasses.field(default_factory=partial(array.array, "I"))

    def content(self, name: str, most: int) -> bytes:
        """Returns the first bytes of a box, none if there is no such box."""
        offset, size = self.places.get(name, (0, 0))
        return self.window.at(offset, min(size, most))

    def numbers(self, name: str, at: int, count: int) -> array.array[int]:
        """Returns `count` numbers of 32 bits from byte `at` of a box. Raises Refusal."""
        offset, size = self.places.get(name, (0, 0))
        if at + 4 * count > size:
            raise damaged(f"its box {name} is missing or too short")
        if count > 4 * MOST_PACKETS:  # a packet has four numbers at most
            raise unsupported(f"an MP4 of more than {MOST_PACKETS} packets ({name})")
        numbers = array.array("I", self.window.at(offset + at, 4 * count))
        if sys.byteorder == "little":
            numbers.byteswap()
        return numbers

    def scale(self, name: str) -> int:
        """Returns the ticks a second of the movie (mvhd) or the track (mdhd). Raises Refusal."""
        is_long = self.numbers(name, 0, 1)[0] >> 24
        return self.numbers(name, 20 if is_long else 12, 1)[0] or 1

    def add_table(self) -> None:
        """Adds the packets that moov lists: their sizes (stsz), and runs of equal durations (stts).
        Raises Refusal."""
        if "stz2" in self.places:
            raise unsupported("an MP4 that lists sizes in short form (stz2)")
        size, count = self.numbers("stsz", 4, 2)
        sizes = itertools.repeat(size, count) if size else self.numbers("stsz", 12, count)
        (runs,) = self.numbers("stts", 4, 1)
        table = self.numbers("stts", 8, 2 * runs)
        durations = map(itertools.repeat, table[1::2], table[::2])
        self.add(itertools.chain.from_iterable(durations), sizes)
        if len(self.sizes) < count or (count and not self.clock):
            raise damaged("its packets have no times (stts)")
        name, words = ("co64", 2) if "co64" in self.places else ("stco", 1)
        (chunks,) = self.numbers(name, 4, 1)
        (runs,) = self.numbers("stsc", 4, 1)
        # No file of so few packets needs the upper words.
        starts = self.numbers(name, 8, words * chunks)[words - 1 :: words]
        table = self.numbers("stsc", 8, 3 * runs)
        firsts = table[::3]
        counts = table[1::3]
        at = 0
        for number, start in enumerate(starts if runs else (), 1):
            held = counts[bisect.bisect(firsts, number) - 1]
            self.follow(start, self.sizes[at : at + held])
            at += held

    def add_run(self) -> None:
        """Adds the packets of a fragment (trun), with the defaults of tfhd and trex. Raises
        Refusal."""
        duration, size = self.numbers("trex", 12, 2)
        (flags,) = self.numbers("tfhd", 0, 1)
        base = self.places.get("mfhd", (16, 0))[0] - 16  # where its moof begins
        if flags & 1:
            base = self.numbers("tfhd", 8, 2)[1]
        at = 8 + (8 if flags & 1 else 0) + (4 if flags & 2 else 0)
        if flags & 8:
            (duration,) = self.numbers("tfhd", at, 1)
            at += 4
        if flags & 16:
            (size,) = self.numbers("tfhd", at, 1)
        flags, count = self.numbers("trun", 0, 2)
        at = 8 + 4 * bin(flags & 5).count("1")  # two fields may stand before the table
        fields = bin(flags & 0xF00).count("1")
        table = self.numbers("trun", at, fields * count)
        durations: Iterable[int] = itertools.repeat(duration)
        sizes: Iterable[int] = itertools.repeat(size, count)
        if flags & 0x200:  # stands behind the duration, which stands first
            sizes = table[1 if flags & 0x100 else 0 :: fields]
        if flags & 0x100:
            durations = table[::fields]
        start = self.reached
        if flags & 1:
            start = base + big(self.content("trun", 12)[8:], signed=True)
        before = len(self.sizes)
        self.add(durations, sizes)
        self.follow(start, self.sizes[before:])

    def follow(self, start: int, sizes: Iterable[int]) -> None:
        """Notes where some packets lie: no byte may be played twice, in place of others. Raises
        Refusal."""
        if start < self.reached:
            raise damaged(f"packets are listed at byte {start}, and others in another place")
        self.reached = start + sum(sizes)

    def add(self, durations: Iterable[int], sizes: Iterable[int]) -> None:
        """Adds a packet for each size. Raises Refusal for more packets than memory should hold."""
        for duration, size in zip(durations, sizes):
            self.stamps.append(self.clock)
            self.sizes.append(size)
            self.clock += duration
            if len(self.sizes) > MOST_PACKETS:
                raise unsupported(f"an MP4 of more than {MOST_PACKETS} packets")

    def play(self, found: Probe) -> None:
        """Adds the packets to a probe, as ffmpeg plays them. The codec says how long each lasts.
        The stamps do not, as they jitter, leave gaps and overlap. Raises Refusal."""
        some, scale, unit = self.stamps[:10_000], self.scale("mdhd"), MP4_UNITS[found.codec]
        steps = sorted(after - before for before, after in zip(some, some[1:])) or [0]
        usual = max(1, round(steps[len(steps) // 2] * found.rate / scale / unit)) * unit
        lead, start, end = self.edits(found.rate, len(self.sizes) * usual)
        for stamp, size in zip(self.stamps, self.sizes):
            found.add(lead + stamp / scale, usual, size)
        delay, has_fragments = 3 * usual, "trun" in self.places
        if found.codec == "opus":
            head = re.search(rb"dOps..(..)", self.content("stsd", 256), re.DOTALL)
            pre_skip = big(head[1]) if head else 0
            delay = max(OPUS_DELAY, pre_skip)
            start = pre_skip if has_fragments else start or pre_skip
        behind = found.length - end
        if start > delay or behind > 2 * usual:
            first, last = start / found.rate, behind / found.rate
            raise Refusal(Reason.HIDDEN, f"{first:.1f} s at the start, {last:.1f} s at the end")
        if found.overlap > COPY_OVERLAP:
            return  # `Job.input` has all of it played
        # At the end ffmpeg 9 leaves out what is hidden, but ffmpeg 5 only whole packets of it. At
        # the start of AAC in fragments ffmpeg 5 leaves out nothing. We expect half of each.
        unsure_start = start if found.codec == "aac" and has_fragments else 0
        unsure_end = behind % usual
        found.pre_skip = start - unsure_start // 2
        left_out = start - unsure_start  # gaps begin behind it; later is no harm
        found.gaps = [(max(0, at - left_out), length) for at, length in found.gaps]
        found.trimmed = behind - unsure_end // 2
        edges = (unsure_start + unsure_end) / 2 + found.rate / 1000  # edit lists count in ms
        if found.codec == "aac":
            edges += usual
        found.doubt = math.ceil(min(edges, LARGEST_DOUBT * found.rate))

    def edits(self, rate: int, length: int) -> tuple[float, int, int]:
        """Returns the seconds of silence at the start. Returns also the first and the last sample
        that is played of a track of such `length`. Raises Refusal."""
        start, end, lead = 0, length, 0.0
        padding = PADDING.search(self.content("udta", HEAD_BYTES))
        if padding:
            start, behind = (int(number, 16) for number in padding.groups())
            end -= behind
        data = self.content("elst", 4_096)  # versions 0 and 1 have rows of different lengths
        row = ">QqhH" if data[:1] == b"\1" else ">IihH"
        step = struct.calcsize(row)
        parts = [struct.unpack_from(row, data, at) for at in range(8, len(data) - step + 1, step)]
        is_played = False
        for ticks, begin, *speed in parts:
            if begin == -1 and not is_played:  # silence before the sound
                lead += ticks / self.scale("mvhd")
                continue
            if is_played or speed != [1, 0]:
                raise Refusal(Reason.HIDDEN, "several parts, or another speed")
            is_played = True
            start = round(begin * rate / self.scale("mdhd"))
            if "trun" not in self.places:  # ffmpeg plays all fragments
                end = min(end, start + round(ticks * rate / self.scale("mvhd")))
        if parts and not (is_played or "trun" in self.places):
            end = 0
        return lead, start, end


def ogg_checksum(page: bytes) -> int:
    """Returns the CRC of a page (RFC 3533, section 6) whose own field is zero. It is zlib's with
    every bit the other way round."""
    mirrored = zlib.crc32(page.translate(REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return big(mirrored.to_bytes(4, "little").translate(REVERSED_BITS))


OGG_LOST = re.compile(rb"METADATA_BLOCK_PICTURE=|(CHAPTER\d{3}(?:NAME)?=)", re.IGNORECASE)


def ogg_header(window: Window, offset: int) -> tuple[str, int, Optional[int]]:
    """Returns name, offset of the content and size of a page (RFC 3533, section 6)."""
    head = window.at(offset, 282)
    if not b"OggS".startswith(head[:4]):
        return "no page", offset, 0
    length = 27 + big(head[26:27])
    return "page", offset + length, sum(head[27:length])


OGG = Container(ogg_header, {".": "page"})


def walk_ogg(window: Window) -> Probe:
    """Returns what is in Ogg Opus (RFC 3533, RFC 7845). Its pages must be one whole stream, and
    each must fit its checksum. Raises Refusal."""
    found, headers = opus_probe("ogg", window.at(28, 19)), 2
    offset, packet, following, tags = 0, b"", (0, 0), b""
    size = flags = 0  # size of a packet so far; only its start is held in `packet`
    for _, body, length in OGG.walk(window):
        at = body - offset
        page = window.at(offset, at + length)
        flags, granule, serial, sequence, checksum = struct.unpack_from("<BqIII", page, 5)
        if offset and flags & FIRST_PAGE:
            reason = Reason.SEVERAL_STREAMS if headers else Reason.APPENDED
            raise Refusal(reason, f"a second one begins at byte {offset}")
        if offset and (serial, sequence) != following:
            raise damaged(f"pages are missing, or another stream's, at byte {offset}")
        if ogg_checksum(page[:22] + bytes(4) + page[26:]) != checksum:
            raise damaged(f"the page at byte {offset} has not the content that its checksum says")
        following = (serial, sequence + 1)
        if headers:
            lost = OGG_LOST.search(tags + page[at:])
            if lost:
                raise Refusal(Reason.CHAPTERS if lost[1] else Reason.COVER)
            tags = page[-32:]
        packets = []
        for lacing in page[27:at]:
            packet = packet or page[at : at + min(2, lacing)]
            size += lacing
            at += lacing
            if lacing < 255:
                packets.append((packet, size))
                packet, size = b"", 0
        audio = packets[headers:]
        headers -= len(packets) - len(audio)
        add_ogg_packets(found, audio, granule, bool(flags & LAST_PAGE), offset)
        offset += at
    if not flags & LAST_PAGE:
        raise truncated("its last page does not end the stream")
    return found


def add_ogg_packets(
    found: Probe, packets: list[tuple[bytes, int]], granule: int, is_last: bool, offset: int
) -> None:
    """Adds the packets that end on the page at `offset`, each a start and a size. They end at the
    page's granule position (in samples; -1: none ends on it). On the last page it may be less, and
    then the end is trimmed. Raises Refusal."""
    if is_last and packets[-1:] == [(b"", 0)]:  # some writers add an empty packet at the end
        packets.pop()
    lengths = [opus_packet_samples(start) for start, _ in packets]
    if 0 in lengths or (packets and granule < 0):
        raise damaged(f"the page at byte {offset} holds no Opus packets with a time")
    begin, trimmed = granule - sum(lengths), 0
    if is_last and granule >= 0:
        trimmed = max(0, round(found.end * OPUS_RATE) - begin)
        begin += trimmed
    if trimmed > sum(lengths):
        raise damaged(f"its last page ends before the page before it, at byte {offset}")
    for (_, size), length in zip(packets, lengths):
        found.add(begin / OPUS_RATE, length, size)
        begin += length
    found.trimmed = trimmed


# ----------------------------------------------------------------------------------------- prove
# There is one way through ffmpeg. Decode plainly, take the levels before any filter of ours, insert
# silence where the probe says, and encode. Then walk the copy, decode it, and compare it with the
# levels plus the same silence, channel by channel. This section writes into staged and level files
# only, and must never change the library.

LEVEL_RATE = 4_000  # Hz; a twelfth of the samples has enough of a voice to distinguish two
LEVEL_WINDOW = 2_000  # samples, half a second: a lost word or a lost packet shows in it
LEVEL_PART = 40  # samples, 10 ms: every hole of 30 ms holds one such part and some room around it
NEARBY = 25  # parts before a part, and from it on: the half second around it
LEVEL_EDGE = 240  # samples, 60 ms: sound may spread by the longest packet of an encoder
LEVEL_FLOOR = 6.0 / 32_768  # of full scale, -75 dBFS: codecs and rounding add less than this
QUIETEST = 1e-6  # of full scale, -120 dBFS: decoders add less than this to silence
BEYOND = 1e6  # of full scale's power, 60 dB: no encoder takes more
LEVEL_TOLERANCE = 3.0  # dB; the worst good copy of all browsers and formats differed by 1.06
MIN_CORRELATION = 0.8  # the worst good copy had 0.91, in a tail of 20 ms; another sound about 0
QUIET_CHANNEL = 1e-3  # of the louder one's power, -30 dB: a codec may drop a channel below it
QUIET_PART = 5e-4  # of the half second's power around it, -33 dB: a codec may lose what is below
FAINT = 1e-5  # of the loudest window's, -50 dB: a codec may drop or smear what is below
COPY_OVERLAP = 0.001  # seconds; our own copies overlap by rounding only
MOST_HINDERED = 3  # recordings in a row whose ffmpeg was ended from outside; then the run ends
LONG_PACKETS_FROM = 4.0  # seconds; packets of 60 ms encode 13 % faster at the same size and noise
ENCODE_SHARE = 0.8  # of the time that a recording takes; its proof takes the rest (measured)

# The formats that browsers record. None of them refers to other files, as playlists do.
SAFE_INPUT = shlex.split(
    "-protocol_whitelist file -format_whitelist matroska,mov,ogg,wav -codec_whitelist opus,libopus,"
    "aac,pcm_u8,pcm_s16le,pcm_s24le,pcm_s32le,pcm_f32le,pcm_f64le "
    "-max_streams 16 -max_alloc 268435456"
)
QUIET = shlex.split("-hide_banner -nostdin -v level+warning -y")
# Every sample counts, whatever its stamp. Encoders remove the constant offset of a sound card.
LEVEL_FILTER = (
    f"asetpts=N/SR/TB,aresample={LEVEL_RATE},aformat=sample_fmts=fltp,highpass=f=30,"
    "aformat=sample_fmts=flt"
)
# Fills a gap of a millisecond too.
COMPENSATE = "async=1:min_comp=0.0005:min_hard_comp=0.0005:first_pts=0"
LEVEL_OUTPUT = shlex.split("-c:a pcm_f32le -f f32le")
# NUT carries the rate and the number of channels, but not their layout.
PIPED_OUTPUT = shlex.split("-c:a pcm_f32le -f nut pipe:1")
PIPED_INPUT = shlex.split("-thread_queue_size 64 -guess_layout_max 0 -f nut -i pipe:0")


class Tolerance(NamedTuple):
    """Says what a codec may do to a part of 10 ms, in shares of power."""

    kilobits: float  # of a channel; this holds from here on
    left: float  # of the part's power; at least this must remain
    loud: float = math.inf  # of the half second's power; a part above this keeps its wave
    gain: float = 0.0  # of the wave; at least this must remain


# Measured on 870 good copies of 54 recordings (voices, two speakers, music, noise, knocks; mono and
# stereo) at 24k to 96k, by ffmpeg 4.1, 5.1 and 9. The least power left and the least gain of a part
# were, in the order below: Opus 0.38 and 0.59; 0.26 and 0.50; 0.07. AAC 0.16 and 0.46; 0.01.
# An earlier measurement of 1,459 others by windows gave: Opus 0.27 and 0.42; 0.20 and 0.51; 0.04.
# AAC 0.077 and 0.36; 0.011.
# The emptiest part of a hole of 30 ms had at most 0.024 in Opus from 48k, 0.045 at 24k, and 0.02
# in AAC. A typical one had 0.0002.
TOLERANCES = {
    "opus": (Tolerance(50, 0.1, 0.01, 0.3), Tolerance(36, 0.08, 0.1, 0.25), Tolerance(0, 0.03)),
    "aac": (Tolerance(50, 0.05, 0.01, 0.2), Tolerance(0, 0.008)),
}
FAITHFUL = 50  # kbit/s of a channel; from here on no codec loses a part


@dataclass(eq=False)
class Job:
    """One proof. With `encodes` the copy is made first, else it is there already. A proven copy
    leaves `problem` None."""

    source: str  # absolute path
    probe: Probe
    target: Target
    copy: str  # absolute path
    encodes: bool
    source_levels: str
    copy_levels: str
    most: float = math.inf  # bytes; a larger copy is not worth it
    problem: Optional[Exception] = None
    digest: str = ""  # SHA-256 of the copy as it was decoded
    is_decoded: bool = False  # the copy was decoded while it was written
    slack: float = 0.0  # seconds by which the length of its copy may differ
    sound: int = 0  # bytes of the packets of its copy; tags may have any size
    floor: float = LEVEL_FLOOR  # nothing quieter is compared
    tolerance: Tolerance = TOLERANCES["opus"][0]  # depends on the copy's real bit rate

    @property
    def frame(self) -> int:
        """Returns the bytes of one sample of all channels in its level files."""
        return self.probe.channels * 4

    def frames(self, levels: str) -> int:
        """Returns the samples of each channel in a level file, 0 if there is no such file."""
        with suppress(OSError):
            return getsize(levels) // self.frame
        return 0

    @property
    def share_done(self) -> float:
        """Returns the share of its work that is done, from the size of its level file."""
        seconds = self.frames(self.source_levels) / LEVEL_RATE
        return min(1.0, ENCODE_SHARE * seconds / (self.probe.timeline or 1))

    def input(self) -> list[str]:
        """Returns ffmpeg's arguments for the source. Without this option it leaves out sound if
        fragments of an MP4 overlap. With it, all of every packet is played (measured, 4.1 to 9)."""
        steps_back = self.probe.demuxer == "mov" and self.probe.overlap > COPY_OVERLAP
        plays_all = ["-flags2", "skip_manual"] if steps_back else []
        return [*plays_all, *input_arguments(self.source, self.probe.demuxer)]


class Transcoder:
    """Works on batches of jobs: all in one ffmpeg, or one by one if that fails. Safe in threads."""

    def __init__(self, tools: Tools, full: bool) -> None:
        self.tools, self.full = tools, full
        self.hindered: Counter[str] = Counter()  # recordings in a row, by the name of the task
        self.ended: Optional[ToolError] = None  # why nothing more is tried

    def process(self, jobs: Sequence[Job]) -> None:
        """Proves every job, or sets its problem (Refusal, NotProven, OSError). Where a low rate
        does not prove true, tries a high one. Raises Stopped, ServiceError."""
        self.divide(jobs, self.encode, self.pipe)
        self.divide(jobs, self.verify)
        for job in jobs:
            problem = job.problem
            if job.encodes and job.tolerance.kilobits < FAITHFUL and isinstance(problem, NotProven):
                # If a copy at a high rate proves true, the codec is to blame and no liar.
                job.target = job.target._replace(bitrate=2 * CHANNEL_RATE)
                job.problem, job.is_decoded, job.most = None, False, math.inf
                self.divide([job], self.encode)
                self.divide([job], self.verify)
                job.problem = job.problem or Refusal(Reason.RATE_TOO_LOW, problem.detail)

    def divide(
        self,
        jobs: Sequence[Job],
        task: Callable[[Sequence[Job]], None],
        quick: Optional[Callable[[Sequence[Job]], None]] = None,
    ) -> None:
        """Does a task for all jobs, in a quick way if there is one. If that fails or there is any
        message, does it for each alone, so that each gets its own problem."""
        jobs = [job for job in jobs if job.problem is None]
        if not jobs:
            return
        failures: list[Exception] = []
        with boundary(failures.append):
            (quick or task)(jobs)
            self.hindered[task.__name__] = 0
        for error in failures:
            if self.tools.stop.requested:  # the signal may have ended the tool too
                raise Stopped from None
            if len(jobs) == 1 and not quick:
                jobs[0].problem = error
                self.count_hindered(jobs[0], task.__name__)
                return
            if reason_of(error) is Reason.TOOL_HUNG:
                try_ffmpeg(self.tools, jobs[0].target)  # or every job would wait as long
            for job in jobs:
                if self.ended:
                    job.problem = Stopped()
                self.divide([job], task)

    def count_hindered(self, job: Job, task: str) -> None:
        """Notes that nothing more is tried, after the third recording in a row whose ffmpeg was
        ended from outside. Raises ToolError if ffmpeg does not work at all."""
        self.hindered[task] += 1
        if reason_of(job.problem) is not Reason.TOOL_KILLED:
            self.hindered[task] = 0
        elif self.hindered[task] >= MOST_HINDERED:
            try_ffmpeg(self.tools, job.target)
            self.ended = ToolError(
                f"For {MOST_HINDERED} recordings in a row, {job.problem}. None of them was "
                "changed, and the next run tries them last. See who ends ffmpeg here, or which "
                "limit does (memory, CPU time, file size, open files)."
            )

    def encode(self, jobs: Sequence[Job]) -> None:
        """Decodes each source once, into its copy and its level file."""
        arguments: list[str] = []
        for job in jobs:
            arguments += job.input()
        for number, job in enumerate(jobs):
            copy = [*self.copy_arguments(number, job), "file:" + job.copy]
            arguments += encode_arguments(number, job, copy)
        self.run(arguments, jobs)

    def pipe(self, jobs: Sequence[Job]) -> None:
        """Decodes one recording, encodes it and decodes the copy in three processes at once. This
        takes 0.7 of the time of one process that only transcodes. (One after the other takes 1.3.)
        If anything is wrong, `encode` and `verify` find out what it is."""
        job, is_ogg = jobs[0], jobs[0].target.form.muxer == "ogg"
        if len(jobs) > 1 or not (self.full and job.encodes and is_ogg):
            self.encode(jobs)
            return
        layout = ("mono", "stereo")[job.probe.channels - 1]
        encode = [*PIPED_INPUT, *job.input(), "-map", "0:a:0", *self.copy_arguments(1, job)]
        commands = [
            [*job.input(), *encode_arguments(0, job, PIPED_OUTPUT)],
            [*encode, "-af", f"aformat=channel_layouts={layout}", "pipe:1"],
            ["-f", "ogg", "-i", "pipe:0", *level_arguments(0, job.copy_levels)],
        ]
        commands = [[self.tools.ffmpeg, *QUIET, *words] for words in commands]
        job.digest = self.tools.pipe(commands, job.probe.timeline, job.copy)[0]
        job.is_decoded = True

    def verify(self, jobs: Sequence[Job]) -> None:
        """Walks the copies, decodes them in full from disk, and compares. Raises Refusal, OSError,
        Stopped."""
        for job in jobs:
            job.digest = job.digest or digest_of(job.copy, stop=self.tools.stop)
            check_structure(job, self.tools)
        # A copy that was there already is always decoded, as it may hold any sound.
        compared = [job for job in jobs if self.full or not job.encodes]
        self.decode_copies([job for job in compared if not job.is_decoded])
        for job in compared:
            compare_audio(job, self.tools.stop)

    def decode_copies(self, jobs: Sequence[Job]) -> None:
        """Decodes the copies in full, from disk, into their level files. Raises NotProven."""
        arguments: list[str] = []
        for job in jobs:
            arguments += input_arguments(job.copy, job.target.form.demuxer)
        for number, job in enumerate(jobs):
            arguments += level_arguments(number, job.copy_levels)
        try:
            self.run(arguments, jobs)
        except Refusal as refusal:
            if refusal.reason not in (Reason.DAMAGED, Reason.TOOL_REFUSED):
                raise
            raise NotProven("a decode without a message", refusal.detail) from None

    def run(self, arguments: Sequence[str], jobs: Sequence[Job]) -> None:
        """Runs ffmpeg for the jobs. Raises Refusal, also for any message of it, Stopped,
        ServiceError."""
        seconds = sum(job.probe.timeline for job in jobs)
        if jobs:
            _, messages = self.tools.run([self.tools.ffmpeg, *QUIET, *arguments], seconds)
            if messages:
                raise damaged(messages)

    def decode(self, copies: Mapping[str, Probe]) -> dict[str, Exception]:
        """Returns what a full decode finds wrong, by the copy's absolute path."""
        jobs = []
        for path, found in copies.items():
            target = Target(FORMAT_OF[splitext(path)[1]], 0)
            jobs.append(Job("", found, target, path, False, "", ""))
        self.divide(jobs, self.decode_copies)
        return {job.copy: job.problem for job in jobs if job.problem}

    def copy_arguments(self, number: int, job: Job) -> list[str]:
        """Returns ffmpeg's arguments to encode input `number`, with the tags of its container and
        its stream. Ogg keeps the first of our own two tags, M4A the second (measured)."""
        form, found = job.target.form, job.probe
        rate = min(job.target.bitrate, CHANNEL_RATE * found.channels)
        arguments = ["-c:a", form.encoder, "-b:a", str(rate), *form.options]
        if form.codec == "opus" and found.timeline >= LONG_PACKETS_FROM:
            arguments += ["-frame_duration", "60"]
        for tag in ("encoded_by", "encoding_tool"):
            arguments += ["-metadata", f"{tag}={job.target.tag}"]
        arguments += ["-map_metadata", str(number), "-map_metadata", f"{number}:s:a:0"]
        return [*arguments, "-map_chapters", "-1", "-f", form.muxer]


def input_arguments(path: str, demuxer: str) -> list[str]:
    """Returns ffmpeg's arguments for one input. Its format is named, so that ffmpeg guesses nothing
    from its content. `file:` keeps any name from being an option or another protocol."""
    return [*SAFE_INPUT, "-f", demuxer, "-i", "file:" + path]


def timeline_filter(found: Probe) -> str:
    """Returns a filter that puts silence into the gaps of a source and nowhere else. The samples
    before a frame make its stamp. Its own stamp plays no part, so nothing is trimmed or moved. A
    gap begins a millisecond early, or a frame that begins late would stand before it. This is safe,
    as frames are indivisible and none is shorter than 2.5 ms."""
    early = found.rate // 1000
    terms = ["N", *(f"{length}*gte(N,{max(0, at - early)})" for at, length in found.gaps)]
    while len(terms) > 1:  # makes a tree, as ffmpeg parses at most a hundred terms in a row
        terms = [f"({'+'.join(terms[at : at + 50])})" for at in range(0, len(terms), 50)]
    return f"asetpts='{terms[0]}/SR/TB',aresample={COMPENSATE}"


def encode_arguments(number: int, job: Job, copy: Sequence[str]) -> list[str]:
    """Returns ffmpeg's arguments for the outputs of input `number`: the copy, and from the same
    decode the source's levels, before any filter of ours. No sample is held in 16 bits on the way,
    as decoders also give peaks above full scale."""
    if not job.encodes:
        return level_arguments(number, job.source_levels)
    names = ("0:channel_layout=mono", "0|1:channel_layout=stereo")[job.probe.channels - 1]
    graph = f"[{number}:a:0]asplit[a{number}][b{number}];[a{number}]{timeline_filter(job.probe)}"
    graph += f",aformat=sample_fmts=flt,channelmap={names}[c{number}]"  # of any other names
    graph += f";[b{number}]{LEVEL_FILTER}[d{number}]"
    levels = ["-map", f"[d{number}]", *LEVEL_OUTPUT, "file:" + job.source_levels]
    return ["-filter_complex", graph, "-map", f"[c{number}]", *copy, *levels]


def level_arguments(number: int, path: str) -> list[str]:
    """Returns ffmpeg's arguments to decode input `number` in full, as levels. Without a path the
    result is dropped."""
    output = ["-f", "null", "-"]
    if path:
        output = ["-af", LEVEL_FILTER, *LEVEL_OUTPUT, "file:" + path]
    return ["-map", f"{number}:a:0", *output]


def check_structure(job: Job, tools: Tools) -> None:
    """Checks a copy without decoding it. It must be one whole stream with the right codec and
    channels, and as long as the source's packets say, to the sample. (A converted rate may round
    one up.) A new copy must also be small enough. Raises Refusal, NotProven, OSError."""
    source, form = job.probe, job.target.form
    try:
        made = probe_file(job.copy, tools)
    except Refusal as refusal:
        if refusal.reason.action is not Action.KEPT:
            raise
        raise NotProven(f"one whole {form.codec} stream", str(refusal)) from None
    asked = f"{form.codec} in {form.demuxer} with {source.channels} channels"
    is_there = f"{made.codec} in {made.demuxer} with {made.channels} channels"
    if is_there != asked:
        raise NotProven(asked, is_there)
    scale = made.rate / source.rate
    expected = source.timeline * made.rate
    slack = source.doubt * scale + form.slack + (scale != 1) + 1e-3
    if abs(made.samples - expected) > slack or made.gaps or made.overlap > COPY_OVERLAP:
        asked = f"{expected:.0f} samples without a gap, by its source's packets"
        steps = f"{len(made.gaps)} gaps, an overlap of {made.overlap:.3f} s"
        raise NotProven(asked, f"{made.samples} samples with {steps}")
    job.slack = form.slack / made.rate
    job.sound = made.payload
    for tolerance in reversed(TOLERANCES[made.codec]):
        if made.kilobits / made.channels >= tolerance.kilobits:
            job.tolerance = tolerance
    size = getsize(job.copy)
    if job.encodes and size > job.most:
        sizes = f"its copy takes {size_text(size)}, where {size_text(job.most)} are worth it"
        raise Refusal(Reason.LITTLE_SAVING, sizes)


def compare_audio(job: Job, stop: Stop) -> None:
    """Compares the levels. The source must be as long as its own packets say. The copy must have
    the length and the wave of the source, window by window and channel by channel. It has silence
    where the source has gaps and nowhere else. Raises Refusal, NotProven, Stopped."""
    found, scale = job.probe, LEVEL_RATE / job.probe.rate
    source, copy = job.frames(job.source_levels), job.frames(job.copy_levels)
    if abs(source - found.samples * scale) > 1 + found.doubt * scale:
        decoded = f"{source / LEVEL_RATE:.3f} s decoded from it"
        raise NotProven(f"{found.seconds:.3f} s by the source's packets", decoded)
    expected, edges = source, list[int]()  # silence begins and ends there, in turn
    for at, length in found.gaps:
        begin, pause = round(at * scale) + expected - source, round(length * scale)
        edges += [begin, begin + pause]
        expected += pause
    if abs(copy - expected) > 1 + job.slack * LEVEL_RATE:
        raise NotProven(f"{expected / LEVEL_RATE:.3f} s", f"{copy / LEVEL_RATE:.3f} s")
    # All windows have about the same size, as a short tail could not be measured alone.
    count = max(1, round(expected / LEVEL_WINDOW))
    ends = [expected * number // count for number in range(count + 1)]
    sounds = windows(job, job.source_levels, ends[1:], edges)
    after = next(sounds)
    levels: deque[list[list[float]]]  # of the parts of the windows before, now and after
    levels = deque([[[]] * found.channels, [*map(part_levels, after)]], 3)
    for begin, other in zip(ends, windows(job, job.copy_levels, ends[1:], ())):
        if stop.requested:
            raise Stopped
        sound, after = after, next(sounds, [[]] * found.channels)
        levels.append([*map(part_levels, after)])
        loud = [max(map(mean_power, window)) / LEVEL_PART for window in levels]
        quiet = max(job.floor**2, FAINT * max(loud), QUIET_CHANNEL * loud[1])
        spread = max(quiet, QUIET_CHANNEL * max(loud))
        near = [*map(nearby, *levels)]
        for one, two, *parts in zip(sound, other, levels[1], near, near[::-1]):
            try:
                compare_window(one, two, begin, quiet, spread)
            except NotProven:
                if mean_power(one) > spread:
                    raise
                # A loud sound of the next window may reach a little way into this one.
                edge = min(LEVEL_EDGE, len(one) // 4)
                inner = slice(edge, len(one) - edge)
                compare_window(one[inner], two[inner], begin + edge, quiet, spread)
            parts = parts[: found.channels + 1]  # mono has no other channel
            compare_parts(one, two, begin, zip(*parts), job)


def windows(
    job: Job, path: str, ends: Iterable[int], edges: Sequence[int]
) -> Iterator[list[list[float]]]:
    """Yields the sound of a level file by channel, up to each of `ends` (frames). Silence is put
    between `edges` (begin, end, begin, ...)."""
    position = 0
    with open(path, "rb") as file:
        for end in ends:
            data = b""
            while position < end:
                passed = bisect.bisect(edges, position)
                stop = min([end, *edges[passed : passed + 1]])
                size = (stop - position) * job.frame
                data += bytes(size) if passed % 2 else file.read(size)
                position = stop
            samples = array.array("f", data)
            yield [samples[at :: job.probe.channels].tolist() for at in range(job.probe.channels)]


def sounding_share(job: Job) -> float:
    """Returns the share of a source's parts of 10 ms that are no silence. Silence takes almost no
    bytes in a copy."""
    ends = range(LEVEL_PART, job.frames(job.source_levels), LEVEL_PART)
    parts = windows(job, job.source_levels, ends, ())
    sounding = sum(max(map(mean_power, part)) > LEVEL_FLOOR**2 for part in parts)
    return sounding / (len(ends) or 1)


def mean_power(samples: Sequence[float]) -> float:
    """Returns the mean square. math.hypot takes a third of the time of a sum of products."""
    return math.hypot(*samples) ** 2 / (len(samples) or 1)


def compare_window(
    source: Sequence[float], copy: Sequence[float], begin: int, quiet: float, spread: float
) -> None:
    """Compares half a second of one channel, from frame `begin` on. The copy must be as loud and
    have the same wave. A mix of both channels would hide what is in one, or in their difference.
    If the source has less power than `quiet`, the copy may have `spread`: codecs let loud sounds
    reach a little way into the silence around them. Raises Refusal, NotProven."""
    count = min(len(source), len(copy))
    a, b = source[:count], copy[:count]
    power_a, power_b = mean_power(a), mean_power(b)
    if not power_a < BEYOND:  # comparing NaN would find no difference
        found = "samples that are no numbers or far beyond full scale"
        raise damaged(f"it holds {found} at {begin / LEVEL_RATE:.1f} s")
    if power_a <= quiet and power_b <= 2 * spread:
        return
    difference = 10 * math.log10(max(power_b, quiet / 4) / max(power_a, quiet / 4))
    if not abs(difference) <= LEVEL_TOLERANCE:  # also true if the difference is NaN
        place = f"the source's loudness at {begin / LEVEL_RATE:.1f} s"
        raise NotProven(place, f"{difference:+.1f} dB")
    # The law of cosines: |a - b|^2 = |a|^2 + |b|^2 - 2 a.b
    product = (power_a + power_b - math.dist(a, b) ** 2 / count) / 2
    correlation = product / math.sqrt(power_a * power_b or 1)
    if power_a > quiet and correlation < MIN_CORRELATION:
        place = f"the source's sound at {begin / LEVEL_RATE:.1f} s"
        raise NotProven(place, f"another (correlation {correlation:.2f})")


def part_levels(samples: Sequence[float]) -> list[float]:
    """Returns the root of the summed squares of each part of 10 ms. The last may be shorter."""
    starts = range(0, len(samples), LEVEL_PART)
    return [math.hypot(*samples[at : at + LEVEL_PART]) for at in starts]


def nearby(before: Sequence[float], now: Sequence[float], after: Sequence[float]) -> list[float]:
    """Returns the mean square of the levels within half a second around each part of a window."""
    levels = [*before, *now, *after]
    parts = range(len(before), len(before) + len(now))
    return [mean_power(levels[max(0, at - NEARBY) : at + NEARBY]) for at in parts]


def compare_parts(
    source: Sequence[float],
    copy: Sequence[float],
    begin: int,
    parts: Iterable[tuple[float, ...]],
    job: Job,
) -> None:
    """Compares each part of 10 ms in half a second of one channel. No part may have vanished, and a
    loud part must have the same wave. `parts` has for each its level, and what is nearby in this
    channel and in the other. Raises NotProven."""
    count = min(len(source), len(copy))
    tolerance, least = job.tolerance, job.floor**2 * LEVEL_PART
    left = math.sqrt(tolerance.left)
    # A hole of 30 ms holds a whole part, also if it covers the rest of less than 10 ms.
    for at, (sound, own, *other) in zip(range(0, count - LEVEL_PART + 1, LEVEL_PART), parts):
        if sound**2 > max(least, QUIET_PART * own, QUIET_CHANNEL * sum(other)):
            there = copy[at : at + LEVEL_PART]
            seconds = (begin + at) / LEVEL_RATE
            rest = math.hypot(*there) / sound
            if rest < left:
                decibels = 20 * math.log10(max(rest, 1e-3))
                raise NotProven(f"the source's loudness at {seconds:.1f} s", f"{decibels:.1f} dB")
            if sound**2 > tolerance.loud * own:  # `gain` is the part's own wave in the copy
                distance = math.dist(source[at : at + LEVEL_PART], there) / sound
                gain = (1 + rest**2 - distance**2) / 2
                if gain < tolerance.gain:
                    raise NotProven(f"the source's sound at {seconds:.1f} s", "another")


# ---------------------------------------------------------------------------------------- commit
# The only section that changes the library, in one order that is the promise: sources unchanged,
# copies in place, folder flushed, sidecars true, folder flushed, history flushed, sources
# unchanged, then the unlink. Must never remove what it has not just compared, nor go on after a
# failed flush.


class Committer:
    """Commits the moves of one run, and keeps the documents true. It knows no rows of the table."""

    def __init__(self, run: Run) -> None:
        self.run, self.library, self.staging = run, run.library, run.staging
        self.history, self.report = run.history, run.report
        self.folders: set[str] = set()  # that the run has looked into
        self.ids: set[str] = set()  # whose entries in the index may have to change
        self.written: dict[str, str] = {}  # documents made true, by path: their SHA-256
        self.full: Optional[NoSpaceError] = None  # once the disk is
        self.index_digest = ""  # of the index as it was when it was last found or made true
        self.is_index_true = True

    def commit(self, moves: Sequence[Move]) -> None:
        """Commits the moves that are ready. Refused moves go into documents and history too. Each
        move then has its final outcome, and the report knows it.

        1. check each against what was seen; what its owner deleted is passed over, and what
           documents do not ask for any more
        2. write first words to the history, for the rows that need them
        3. put in place
        4. flush the folder; where that fails, originals stay and the moves have failed
        5. make the sidecars of every recording touched true; flush the folder
        6. append to the history and flush; where that fails, originals stay
        7. write an index that names files; where that fails, originals stay. Any other index is
           written at the end of the run
        8. compare again, remove, flush
        """
        now = self.run.now  # whatever a run does bears the time of its start
        moves = list(self.still_asked(moves))
        self.each_ready(moves, lambda move: move.check(self.library))
        keep_together(moves)
        first = [move for move in moves if move.is_ready and move.has_first_word]
        self.attempt(first, self.history.append, first, now)
        self.each_ready(moves, lambda move: move.put(self.library))
        keep_together(moves)
        folders: dict[str, list[Move]] = {}
        for move in moves:
            folders.setdefault(move.take.folder, []).append(move)
        for folder, group in folders.items():
            self.attempt(group, flush_folder, self.library.path(folder))
            self.attempt(group, self.make_moves_true, folder, group, now)
            self.attempt(group, flush_folder, self.library.path(folder))
        keep_together(moves)
        if not self.attempt(moves, self.history.append, moves, now):
            self.attempt((), self.history.append, moves, now)  # that they have failed
        for move in moves:
            if move.reason is Reason.NO_SPACE:
                self.disk_is_full(move.told()["reason"])
        self.folders.update(folders)
        self.ids.update(*(move.recording.ids for move in moves))
        if self.library.index_names_files and not self.attempt((), self.write_index):
            self.is_index_true = False
        for folder, group in folders.items():
            self.remove_sources(folder, group, now)
        if self.full:
            raise self.full

    def each_ready(self, moves: Iterable[Move], step: Callable[[Move], object]) -> None:
        for move in moves:
            if move.is_ready:
                with boundary(move.refuse):
                    step(move)

    def disk_is_full(self, detail: str) -> None:
        """A full disk ends the run. It is reported at its first sign, and once."""
        if self.report.exit_code != NoSpaceError.exit_code:
            self.full = self.run.no_space(detail)
            self.report.failed(self.full)

    def still_asked(self, moves: Sequence[Move]) -> Iterator[Move]:
        """Yields the moves that their owner still asks for. The plan may be hours old."""
        now: dict[str, Recording] = {}
        asked: dict[int, bool] = {}  # once for all parts of a whole recording
        for path in {move.take.folder for move in moves if move.is_ready}:
            with suppress(OSError, UsageError):  # a later step has the same error, and reports it
                for recording in self.run.recordings_in(self.library.folder(path)):
                    now.update((take.stem, recording) for take in recording.takes)
        for move in moves:
            recording = now.get(move.take.stem, move.recording)
            key = id(recording if move.is_whole else move)
            if move.is_ready and key not in asked:
                asked[key] = move.is_asked_by(recording)
            what = "" if asked.get(key, True) else "got other documents"
            if move.source and not lexists(self.library.path(move.path)):
                self.library.require_there()
                what = "was deleted"
            if not what:
                yield move
                continue
            self.report.due -= 1
            self.report.once(f"{move.path} {what} meanwhile, and was passed over.")
            self.staging.discard(move.staged)

    def attempt(
        self, moves: Sequence[Move], step: Callable[..., object], *arguments: object
    ) -> bool:
        """Does one step. An error in it keeps the sources of these moves. Returns False if the next
        run should try again. A broken document is not retried: repairing it changes its
        mtime, and that is noticed."""
        failures: list[Exception] = []
        with boundary(failures.append):
            step(*arguments)
        for error in failures:
            self.step_failed(moves, error)
        return all(isinstance(error, Flaw) for error in failures)

    def step_failed(self, moves: Sequence[Move], error: Exception) -> None:
        """A copy that took another's place gives it back. Any other stays beside its original, to
        be adopted."""
        is_sidecar = isinstance(error, (Flaw, PermissionError))
        refusal = Refusal(Reason.SIDECAR_FAILED, explain(error)) if is_sidecar else error
        for move in moves:
            if move.is_ready:
                move.refuse(refusal)
                with suppress(Refusal, OSError):
                    move.undo(self.library)
        if is_full(error):
            self.disk_is_full(explain(error))
        elif not moves and isinstance(error, (Flaw, Refusal, OSError)):
            self.report.once(f"{LEFT_ALONE}{explain(error)}.")
        elif not moves:
            self.report.defect("What is said of some recordings was left as it is", error)

    def make_moves_true(self, folder: str, moves: Sequence[Move], now: float) -> None:
        """Makes the sidecars of recordings say what these moves make of them. If that fails, the
        copies stay beside their originals as SIDECAR_FAILED. A later run adopts them."""
        after = {move.take.stem: move.take_after(now) for move in moves}
        here = self.library.folder(folder)
        for recording in resolve_recordings(here):
            stems = recording.stems
            group = [move for move in moves if move.take.stem in stems]
            if group:
                self.attempt(group, self.make_true, here, recording, after)

    def make_true(self, folder: Folder, recording: Recording, after: Mapping[str, Take]) -> None:
        """Makes a recording's sidecars say what its takes are, those in `after` (by stem) as they
        will be. Each is rewritten at most once; those that are true keep their bytes and mtime.
        Without `after`, one that is as we have left it is not read again. Raises Flaw, Refusal,
        OSError."""
        if recording.policy.unreadable:
            raise Flaw(recording.policy.unreadable)
        for path, edit in edits(self.library, recording, after):
            whole = self.library.path(path)
            with suppress(FileNotFoundError):  # its owner deleted it
                if after or digest_of(whole) != self.written.get(path):
                    self.written[path] = rewrite(whole, edit, self.staging, backup=True)
                    seen = look(os.lstat(whole), self.library.racy_from())
                    folder.documents[basename(path)] = seen

    def remove_sources(self, folder: str, moves: Sequence[Move], now: float) -> None:
        """Step 8, and the end of every move. A past that has changed by it gets a second line: of
        a removal that failed, and of a restore that is finished. While nothing of a recording is
        gone, a part that cannot be removed keeps the others."""
        for move in moves:
            if move.is_ready:
                with boundary(move.refuse):
                    if self.library.index_names_files and not self.is_index_true and move.removes:
                        raise Refusal(Reason.SIDECAR_FAILED, INDEX_NAME)
                    try:
                        move.remove(self.library)
                    except OSError as error:
                        raise Refusal(Reason.NOT_REMOVED, explain(error)) from None
                move.outcome = move.result
                if not move.is_done:  # its documents say too much
                    self.written.clear()
                    parts = [part for part in moves if part.recording is move.recording]
                    if not any(part.is_begun or (part.outcome and part.is_done) for part in parts):
                        keep_together(parts)
            self.staging.discard(move.staged)
        begun = {id(move.recording) for move in moves if move.is_begun}
        for move in moves:
            move.is_begun = id(move.recording) in begun
        pasts = self.history.in_folder(folder)
        changed = [move for move in moves if move.past_after(now) != pasts.get(move.take.stem)]
        try:
            flush_folder(self.library.path(folder))
            self.history.append(changed, now)
        except OSError as error:  # after a power cut an original may be back, as a next run finds
            self.report.error(f"What was deleted in {folder} may come back: {explain(error)}")
        for move in moves:
            if move.reason is not Reason.NO_SPACE:
                self.report.outcome(move)

    def look_at_index(self) -> None:
        """Notes which entries of the index another program has turned back since our last run. It
        reads the history alone, so this is only a hint."""
        path = self.library.path(INDEX_NAME)
        with suppress(Flaw, OSError):  # the next run looks again at one that cannot be read
            self.index_digest = digest_of(path)
            if self.index_digest != self.run.last.get("index"):
                self.compare_with_index(JsonText(read_regular(path)))

    def compare_with_index(self, document: JsonText) -> None:
        """Notes the ids and folders of which an index may say what was true before. Raises Flaw."""
        called: dict[str, set[str]] = defaultdict(set)  # suffixes by the ends of paths
        for _, text, _ in document.names(document.root) if may_name_files(document.data) else ():
            stem, suffix = splitext(text)
            called[self.library.end_of(stem)].add(suffix.lower())
        sums: dict[str, Sequence[int]] = {}  # of recordings, by id
        for stem, past in self.history.each_past():
            for id_ in past.ids:
                sums[id_] = [*map(sum, zip(sums.get(id_, [0] * 6), sums_of(past)))]
            now, _ = past.stood
            if called and not called.get(self.library.end_of(stem), {now}) <= {now}:
                self.folders.add(dirname(stem))
        for _, id_, entry in entries(document):
            if id_ in sums and not says_it_all(entry, sums[id_]):
                self.ids.add(id_)

    def write_index(self) -> None:
        """Makes the index true, from what the folders say now. One that cannot be read, is a link
        or no object is reported and left alone."""
        if not (self.folders or self.ids):
            return
        met = self.history.folders_with(self.ids) | self.folders
        youngest = self.run.config.age_threshold_days - 1
        recordings = list[Recording]()
        copies, unread = 0, list[str]()
        for folder in self.library.walk(unread.append):
            copies += sum(file.size for file in folder.audio if file.format)
            is_met = folder.path in met
            # The next day's folder, still too young, may hold a part of a recording.
            is_next = any(file.age(self.run.now) > youngest for file in folder.audio)
            is_next = is_next and as_json(folder.path) not in self.history.lines
            found = self.run.recordings_in(folder) if is_met or is_next else []
            recordings += [each for each in found if is_met or not self.ids.isdisjoint(each.ids)]
        for stem, past in losses(self.library).items():
            path = self.library.path(stem + past.suffix)
            copies += past.size - (getsize(path) if isfile(path) else 0)
        index = Catalogue(recordings, self.ids)
        edit = partial(
            edit_index,
            facts=index.facts,
            meant=index.meant,
            copies_size=None if unread else copies,
            date=iso(time.time()),
        )
        self.is_index_true = self.attempt((), self.rewrite_index, edit)
        if self.is_index_true:
            self.attempt((), flush_folder, self.library.root)
            self.ids = set()

    def rewrite_index(self, edit: Callable[[bytes], Optional[bytes]]) -> None:
        """Raises Flaw, Refusal, OSError."""
        path = self.library.path(INDEX_NAME)
        try:
            self.index_digest = rewrite(path, edit, self.staging, backup=False)
        except Refusal as refusal:
            raise Refusal(refusal.reason, f"{INDEX_NAME}, {refusal.detail}") from None

    def finish(self) -> None:
        """Ends the work. Makes true all documents of the folders that the run has looked into, and
        the index, also after another program has written them. Notes the folders in which no move
        is left. The next run looks again at what could not be written."""
        notes = []
        for path in sorted(self.folders):
            defect = partial(self.report.defect, f"What is said in {path} was left as it is")
            with boundary(defect), suppress(OSError, UsageError):
                notes += self.finish_folder(path)
        self.attempt((), self.write_index)
        if not self.ids:
            self.history.note(notes, self.run.now)

    def finish_folder(self, path: str) -> list[dict[str, Any]]:
        """Makes all documents of a folder true. Returns the note on it, if it has one. Raises
        OSError, UsageError."""
        folder = self.library.folder_on_record(path)
        recordings = self.run.recordings_in(folder)
        if folder.is_unread:  # nothing shows when it can be read: it is looked at every night
            return []
        true = [self.attempt((), self.make_true, folder, each, {}) for each in recordings]
        self.ids.update(*(recording.ids for recording in recordings))
        if folder.documents:
            flush_folder(self.library.path(path))
        is_true = bool(recordings) and all(true)
        return folder_note(folder, self.run.config, self.run.clock) if is_true else []


def sums_of(past: Past) -> Sequence[int]:
    """Returns what a take adds to its recording: one, whether it is compressed, archived, deleted,
    the bytes that stand for it here, and those of an original that may be beside them."""
    suffix, size = past.stood
    archived = past.place is not None
    deleted = past.deleted > 0
    is_copy = suffix != SOURCE_SUFFIX
    here = [0, 0] if archived or deleted else [size, is_copy * past.first_size]
    return [1, is_copy, archived, deleted, *here]


def says_it_all(entry: Mapping[str, Any], sums: Sequence[int]) -> bool:
    """Returns whether an entry of the index says what the history alone knows of a recording, by
    the sums of its takes."""
    count, copies, archived, deleted, size, originals = sums
    is_compressed = entry.get("compressed") is True or not copies
    is_archived = bool(entry.get("archived")) == (archived == count)
    is_deleted = bool(entry.get("audio_deleted")) == (deleted == count)
    is_size = entry.get("size") in (size, size + originals)
    return is_compressed and is_archived and is_deleted and is_size


def edits(
    library: Library, recording: Recording, after: Mapping[str, Take]
) -> Iterator[tuple[str, Callable[[bytes], Optional[bytes]]]]:
    """Yields the edit that makes each document of a recording true, by path below the library."""
    takes = [after.get(take.stem, take) for take in recording.takes]
    facts, rename = facts_of(takes), renamer(recording.names, takes)
    for sidecar in recording.sidecars:
        own = facts if sidecar.listed and not recording.is_witnessed else None
        edit = partial(edit_sidecar, rename=rename, facts=own)
        yield join(recording.folder, sidecar.name), edit


# ------------------------------------------------------------------------------------- documents
# Edits JSON as text, and says what it must say. All is pure, except `rewrite`: it alone writes a
# file that another program may be writing too. Every byte that need not change stays. This section
# must never repair, reorder or recreate a document, nor open a file that a document names.

# Keys; their values, and all inside of these, hold no names.
NOT_LOOKED_AT = ("id", "text", "title", "words", "full_transcription", "transcription_preview")
GONE = object()  # the value of a member that is to be removed
QUOTE = re.compile(r'(?<!\\)\\*"')  # ends a string if its length is odd
COLON = re.compile(r"[ \t\r\n]*:[ \t\r\n]*")
BLANK = re.compile(r"[ \t\r\n,]*")
# Each passes over many strings at once. A repetition without a limit would take memory.
BRACKET = re.compile(r'(?:[^"\[\]{}]*"[^"\\]*"){0,99}[^"\[\]{}]*(["\[\]{}])')
NO_NAMES_IN = re.compile(
    rf"""(?:
        [^"]* "
        (?! (?: {"|".join(NOT_LOOKED_AT)} ) " )
        [^"\\]*  # a string with an escape is looked at
        (?<! \.webm ) (?<! \.opus ) (?<! \.m4a )
        "
    ){{0,99}}""",
    re.IGNORECASE | re.VERBOSE,
)
BRACKETS = {"[": "]", "{": "}"}
# json's scanner takes up to thirty times the text of what it is given as a whole.
AT_ONCE = 1 << 20  # bytes
DEEPEST = 1000  # objects and lists in each other; json's scanner has about the same limit
LONGEST_NAME = 6 * 4096  # characters of a path, each written as an escape
# For values that nobody asks for: keeps no objects.
PASSED_OVER = json.JSONDecoder(object_pairs_hook=lambda pairs: None, parse_int=len)
# int() refuses 4,300 digits. An id may have 20, as a date with its microseconds.
VALUES = json.JSONDecoder(parse_int=lambda text: int(text) if len(text) < 4000 else float(text))


def scanned(decode: Callable[..., Any], *arguments: Any) -> Any:
    """Returns what a decoder of json makes of a text. Raises Flaw."""
    try:
        return decode(*arguments)
    except RecursionError:
        raise Flaw("it is nested too deeply") from None
    except ValueError as error:
        raise Flaw(f"it cannot be parsed: {error}") from None


class Span(NamedTuple):
    """The place of a value in the text."""

    start: int
    end: int


def is_long(span: Span) -> bool:
    """Returns whether the text there must not be taken in as a whole."""
    return span.end - span.start > AT_ONCE


def in_utf8(data: bytes) -> bytes:
    """Returns a document in UTF-8, from any encoding that JSON may have. Raises ValueError."""
    encoding = json.detect_encoding(data)
    if not encoding.startswith("utf-8"):
        return data.decode(encoding, "surrogatepass").encode("utf-8", "surrogatepass")
    blocks = iter(partial(io.BytesIO(data).read, BLOCK), b"")
    for _ in codecs.iterdecode(blocks, "utf-8", "surrogatepass"):
        pass
    return data


class JsonText:
    """One document as text, with a byte order mark or without. Finds values, collects edits and
    gives the edited bytes. Takes at most four times the memory of the document. Raises Flaw."""

    is_renamed = False  # whether a name is among the edits

    def __init__(self, data: bytes) -> None:
        # One character for each byte: text in any script takes the same memory. A value is decoded
        # when somebody asks for it.
        self.data, self.text = data, data.decode("latin-1")
        self.edits: dict[Span, str] = {}
        self.ends: dict[int, int] = {}  # of long objects and lists, by where they begin
        try:
            if in_utf8(data) is not data:
                raise Flaw("it is not UTF-8")
        except ValueError:
            raise Flaw("its encoding is unknown") from None
        if len(data) > AT_ONCE:
            self.find_ends()
        start = self.skip(3 if data.startswith(codecs.BOM_UTF8) else 0)
        self.root = Span(start, self.end(start))
        if self.skip(self.root.end) < len(data):
            raise Flaw(f"it has something behind its end (at byte {self.root.end})")

    def skip(self, at: int) -> int:
        """Returns where white space and commas end."""
        match = BLANK.match(self.text, at)
        return match.end() if match else at

    def find_ends(self) -> None:
        """Finds the ends of long objects and lists, in little memory. Checks strings and brackets.
        Other values are checked where they are looked at. Raises Flaw."""
        at, begun = 0, list[int]()
        while found := BRACKET.match(self.text, at):
            mark, at = found[1], found.end()
            if mark == '"':
                at = self.string_end(at)
            elif mark in BRACKETS:
                begun.append(at - 1)
            else:
                span = Span(begun.pop() if begun else at - 1, at)
                if BRACKETS.get(self.text[span.start]) != mark:
                    raise Flaw(f"it cannot be parsed: {mark} at byte {at - 1} ends nothing")
                if is_long(span):
                    self.ends[span.start] = at
            if len(begun) > DEEPEST:
                raise Flaw("it is nested too deeply")
        if begun:
            raise Flaw("it cannot be parsed: it ends too early")

    def string_end(self, at: int) -> int:
        """Returns where the string ends that is read up to `at`. Raises Flaw."""
        while found := QUOTE.search(self.text, at):
            at = found.end()
            if (at - found.start()) % 2:
                return at
        raise Flaw("it cannot be parsed: a string does not end")

    def end(self, start: int) -> int:
        """Returns where the value ends that begins there. Raises Flaw."""
        if start in self.ends:
            return self.ends[start]
        if self.text.startswith('"', start):
            return self.string_end(start + 1)
        return int(scanned(PASSED_OVER.raw_decode, self.text, start)[1])

    def value(self, span: Span) -> Any:
        """Returns what stands there, "" if it is too long to be taken in as a whole. Raises
        Flaw."""
        if is_long(span):
            return ""
        text = self.data[span.start : span.end].decode("utf-8", "surrogatepass")
        if text.startswith('"') and "\\" not in text:  # much faster
            return text[1:-1]
        return scanned(VALUES.decode, text)

    def is_object(self, span: Span) -> bool:
        return self.text.startswith("{", span.start)

    def is_list(self, span: Span) -> bool:
        return self.text.startswith("[", span.start)

    def parts(self, span: Span) -> Iterator[tuple[str, int, Span]]:
        """Yields the parts of the object or list there: the key ("" in a list), where the part
        begins, and its value."""
        at = self.skip(span.start + 1)
        while at < span.end - 1:
            key, begin = "", at
            if self.is_object(span):
                end = self.end(at)
                colon = COLON.match(self.text, end)
                if not colon:
                    raise Flaw(f"it cannot be parsed: no colon at byte {end}")
                key, begin = self.value(Span(at, end)), colon.end()
            value = Span(begin, self.end(begin))
            yield key, at, value
            at = self.skip(value.end)

    def members(self, span: Span, names: Collection[str]) -> dict[str, Span]:
        """Returns where the members of the object there stand; none of anything else. It leaves out
        what is not in `names` if the object is long. Raises Flaw, also for a doubled key."""
        members: dict[str, Span] = {}
        for name, _, value in self.parts(span) if self.is_object(span) else ():
            if name in members:
                raise Flaw(f"it has the key {name} twice")
            if name in names or not is_long(span):
                members[name] = value
        return members

    def values(self, span: Span, names: Collection[str]) -> dict[str, Any]:
        """Returns those of these members that the object there has. Raises Flaw."""
        members = self.members(span, names)
        return {name: self.value(members[name]) for name in names if name in members}

    def rows(self, span: Span, names: Collection[str]) -> Iterator[tuple[Span, Any]]:
        """Yields where the items of the list there stand, and what they say. A long item says only
        what these members of it are. Raises Flaw."""
        for _, _, item in self.parts(span) if self.is_list(span) else ():
            yield item, self.value(item) or self.values(item, names)

    def names(self, span: Span) -> Iterator[tuple[Span, str, bool]]:
        """Yields every string there that may be a file's name: its place, the string, and whether
        it is a key. Raises Flaw."""
        at = span.start
        while passed := NO_NAMES_IN.match(self.text, at, span.end):
            start = self.text.find('"', passed.end(), span.end)
            if start < 0:
                return
            token = Span(start, self.string_end(start + 1))
            colon = COLON.match(self.text, token.end)
            at = colon.end() if colon else token.end
            if colon and self.text[start + 1 : token.end - 1] in NOT_LOOKED_AT:
                at = self.end(at)
            elif token.end - start < LONGEST_NAME:
                value = self.value(token)
                if value.lower().endswith(AUDIO_SUFFIXES):
                    yield token, value, colon is not None

    def set(self, span: Span, wanted: Mapping[str, Any]) -> None:
        """Gives members of the object there new values where they differ, or removes them (GONE). A
        new member follows the last one, with the same white space before it."""
        changes = changed(self.values(span, wanted), wanted)
        end, comma, colon = span.start + 1, "", ": "
        for name, at, value in self.parts(span) if changes else ():
            if changes.get(name) is GONE:
                # Removed with the comma before it, or (the first) with the comma behind it.
                gone = Span(end, value.end) if comma else Span(at, self.skip(value.end))
                self.edits[gone] = ""
                end = gone.end
                continue
            space = self.text[end:at]
            comma = space if "," in space else "," + space
            colon = self.text[at : value.start].rpartition('"')[2]
            if name in changes:
                self.edits[value] = json.dumps(changes.pop(name))
            end = value.end
        new = [
            json.dumps(name) + colon + json.dumps(value)
            for name, value in changes.items()
            if value is not GONE
        ]
        if new:
            self.edits[Span(end, end)] = comma + (comma or ", ").join(new)

    def respell(self, token: Span, name: str, new: str) -> None:
        """Gives another value to the string there. If only the suffix differs, all before it keeps
        its bytes."""
        if name == new:
            return
        self.is_renamed = True
        self.edits[token] = json.dumps(new)
        (stem, old), (new_stem, suffix) = splitext(name), splitext(new)
        end = token.end - 1
        if stem == new_stem and self.text.endswith(old, token.start, end):
            self.edits[token] = self.text[token.start : end - len(old)] + suffix + '"'

    def edited(self) -> Optional[bytes]:
        """Returns the document with all edits; None if there are none. Drops an edit inside of
        another one."""
        whole, parts, at = memoryview(self.data), list[Any](), 0
        for span in sorted(self.edits):
            if span.start >= at:
                parts += [whole[at : span.start], self.edits[span].encode("latin-1")]
                at = span.end
        return b"".join([*parts, whole[at:]]) if parts else None


def changed(now: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the wanted members that an object does not have `now`. true differs from 1."""
    changes = {}
    for name, value in wanted.items():
        there = now.get(name, GONE)
        if there != value or isinstance(there, bool) != isinstance(value, bool):
            changes[name] = value
    return changes


class Facts(NamedTuple):
    """The facts that documents hold about takes that belong together."""

    states: frozenset[State]
    original_size: Optional[int]  # as the browser wrote them; None if one is not known
    compressed_size: int  # of the files that stand for the takes, archived ones included
    on_disk: int  # of the files that are here, kept originals included
    date: Optional[float]  # of the newest compression: 0 if not on record, None without a copy
    place: Optional[Place]  # in the archive, if all of it is there
    deleted: float = 0.0  # when a tier deleted it, if all of it is

    @property
    def is_complete(self) -> bool:
        """Returns whether nothing is missing and nothing has to be compressed."""
        return self.states.isdisjoint({State.WAITING, State.RESTORED, State.MISSING})


def facts_of(takes: Iterable[Take]) -> Facts:
    """Returns the facts about takes, given as they will be after a move. Pure."""
    states: set[State] = set()
    firsts: list[Optional[int]] = []
    places: list[Place] = []
    standing, on_disk, date, deleted = 0, 0, None, 0.0
    for take in takes:
        original, past = take.original, take.past
        # Of a deletion that was cut short, other parts may be gone.
        state = State.DELETED if take.is_half_deleted else take.state
        if state is State.WAITING and take.is_gone(take.name + past.suffix):
            state = State.RESTORED  # as its original counts again
        states.add(state)
        firsts.append(original.size if original else past.first_size or None)
        file = take.said
        if state is State.DELETED:  # it counts as it was
            suffix, size = past.stood
            file = File(take.name + suffix, size, past.mtime_ns)
        standing += file.size if file else 0
        here = (*take.originals, take.lost_copy or take.copy)
        on_disk += sum(each.size for each in here if each)
        if file and file.name.endswith(COPY_SUFFIXES):
            date = max(date or 0.0, past.compressed)
        deleted = max(deleted, past.deleted)
        if past.place:
            places.append(past.place)
    newest = max(places, key=lambda place: place.time, default=None)
    return Facts(
        states=frozenset(states),
        original_size=None if None in firsts else sum(filter(None, firsts)),
        compressed_size=standing,
        on_disk=on_disk,
        date=date,
        place=newest if states - {State.DELETED} == {State.ARCHIVED} else None,
        deleted=deleted if states == {State.DELETED} else 0.0,
    )


def sidecar_members(facts: Facts, now: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what members of a sidecar must be, given those that it has `now`. None of them change
    before the first compression. Pure."""
    members: dict[str, Any] = {}
    if facts.date is not None:
        # Set once: later, some originals are no longer here. If the size of a chunk is not known,
        # the recorder's own number stays.
        original, date = now.get("original_size"), now.get("compression_date")
        if facts.original_size is not None and not (date and finite(original)):
            original = facts.original_size
        first = finite(original)
        members = {
            "compressed": facts.is_complete,
            "original_size": original,
            "compressed_size": facts.compressed_size,
            "compression_ratio": round(facts.compressed_size / first, 4) if first else None,
            "compression_date": iso(facts.date) if facts.date else date,
        }
    elif State.RESTORED in facts.states:
        members = {name: value for name, value in RESTORED_MEMBERS.items() if name in now}
    is_away = State.ARCHIVED in facts.states  # at least a part of it
    if facts.place:
        members["archived"] = True
        # An owner who moves the archive by hand may say so here, so this is never replaced.
        if not now.get("archive_location"):
            members["archive_location"] = facts.place.location
            members["archive_date"] = iso(facts.place.time)
    elif (facts.on_disk or facts.deleted) and now.get("archive_location") and not is_away:
        members.update(dict.fromkeys(ARCHIVE_MEMBERS, GONE))
    if facts.deleted:
        members.update(audio_deleted=True, audio_deletion_date=iso(facts.deleted))
    elif (facts.on_disk or facts.place) and now.get("audio_deletion_date"):
        members.update(dict.fromkeys(DELETION_MEMBERS, GONE))
    return members


ARCHIVE_MEMBERS = ("archived", "archive_location", "archive_date")
DELETION_MEMBERS = ("audio_deleted", "audio_deletion_date")
RESTORED_MEMBERS = {
    "compressed": False,
    "compressed_size": None,
    "compression_ratio": GONE,
    "compression_date": None,
}
OUR_MEMBERS = ("original_size", *RESTORED_MEMBERS, *ARCHIVE_MEMBERS, *DELETION_MEMBERS)


def edit_sidecar(
    data: bytes, rename: Callable[[str], str], facts: Optional[Facts]
) -> Optional[bytes]:
    """Returns a document of a folder with its names as they are now and, if it is a sidecar
    (`facts`), its members; None if it is true already. `rename` gives what a string must be. Raises
    Flaw, also if a name that changes is a key. Pure."""
    document = JsonText(data)
    for token, name, is_key in document.names(document.root):
        new = rename(name)
        if is_key and new != name:
            raise Flaw(f"it has {name} as a key")
        document.respell(token, name, new)
    if facts and document.is_object(document.root):
        now = document.values(document.root, OUR_MEMBERS)
        document.set(document.root, sidecar_members(facts, now))
    return document.edited()


def edit_policy(data: bytes, keep: bool) -> Optional[bytes]:
    """Returns a sidecar whose policy says `keep`, or (if not `keep`) no longer says it. Returns
    None if that is true already. Raises Flaw. Pure."""
    document, name = JsonText(data), "compression_policy"
    root = document.root
    policy = document.members(root, (name,)).get(name, root)
    # Only null begins with an n.
    if not document.is_object(root) or document.text[policy.start] not in "{n":
        raise Flaw("it, or its compression_policy, is no object")
    has_policy = policy != root and document.is_object(policy)
    if has_policy and (keep or document.members(policy, ()).keys() - {"keep"}):
        document.set(policy, {"keep": True if keep else GONE})
    else:
        document.set(root, {name: {"keep": True} if keep else GONE})
    return document.edited()


def renamer(names: Names, takes: Iterable[Take]) -> Callable[[str], str]:
    """Returns the function that `edit_sidecar` asks for the names of takes."""
    by_stem = {take.stem: take for take in takes}

    @memoized
    def rename(text: str) -> str:
        return true_name(text, names.meant(text, by_stem))

    return rename


def true_name(text: str, meant: Sequence[tuple[Take, str]]) -> str:
    """Returns what a string must be for the takes that it may call. A string that is true for one
    of several stays, so it always calls a file that exists."""
    names = [name for _, name in meant]
    return text if text in names or not names else names[0]


def index_members(facts: Facts, now: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what members of an index entry must be, given those that it has `now`. Pure."""
    members: dict[str, Any] = {
        "compressed": facts.is_complete and facts.date is not None,
        "size": facts.on_disk,
    }
    for name, is_so in (("archived", facts.place), ("audio_deleted", facts.deleted)):
        if is_so or now.get(name):
            members[name] = True if is_so else GONE
    return members


def may_name_files(data: bytes) -> bool:
    """Returns whether a document may hold a file's name, of which any letter may be escaped."""
    return b"\\u00" in data or AUDIO_ENDING.search(data) is not None


Meant = Callable[[str, str], Optional[tuple[Optional[Take], str]]]


class Catalogue:
    """Finds what an index calls: recordings by their ids, files by their names."""

    def __init__(self, recordings: Iterable[Recording], ids: Collection[str]) -> None:
        """`recordings` are all those of some folders. The entries of `ids` are to be made true."""
        # The folders, with their names, that an end of a path means or an id (in a tuple).
        self.folders: dict[object, dict[str, Names]] = defaultdict(dict)
        self.takes: dict[str, Take] = {}  # by stem
        self.ids: dict[str, Sequence[str]] = {}  # of the recording, by stem
        of_id: dict[str, list[Recording]] = defaultdict(list)
        for recording in recordings:
            folder = recording.folder
            for id_ in recording.ids:
                of_id[id_].append(recording)
                self.folders[(id_,)][folder] = recording.names
            for end in ends_of(folder):
                self.folders[end][folder] = recording.names
            for take in recording.takes:
                self.takes[take.stem], self.ids[take.stem] = take, recording.ids
        self.facts: dict[str, Facts] = {}
        for id_ in of_id.keys() & ids:
            is_known = any(recording.is_known for recording in of_id[id_])
            if is_known and not any(recording.is_witnessed for recording in of_id[id_]):
                takes = (take for recording in of_id[id_] for take in recording.takes)
                self.facts[id_] = facts_of(takes)

    def meant(self, id_: str, text: str) -> Optional[tuple[Optional[Take], str]]:
        """Returns the take that a string calls, if the entry of this id is that take's, and what
        the string must be. The take with the most fitting parts is meant, or the one with this id.
        Returns None for data."""
        above = plain_path(text).rpartition("/")[0]
        # The index is itself a document of the uppermost folder.
        ends = (*ends_of(above), "")
        of_id = self.folders.get((id_,), {})
        places = [self.folders.get(end, {}) for end in ends]
        if of_id and not above:
            places = [of_id] if len(of_id) == 1 else []
        found: list[tuple[Take, str]] = []
        for folders in places:
            for names in () if found else folders.values():
                found += names.meant(text, self.takes)
        found = [each for each in found if id_ in self.ids[each[0].stem]] or found
        if not found:
            return None
        take = found[0][0] if len(found) == 1 else None
        ids = self.ids[take.stem] if take else ()
        is_its = id_ in self.facts if id_ in ids else not (id_ and ids)
        return take if is_its else None, true_name(text, found)


def ends_of(folder: str) -> list[str]:
    """Returns a folder's path and all shorter ends of it, as they are compared."""
    parts = folded(folder).split("/")
    return ["/".join(parts[at:]) for at in range(len(parts))]


def described(
    document: JsonText, facts: Mapping[str, Facts], meant: Meant
) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Renames the files that an index names, and makes its entries true. Yields the id of each,
    what it said, and what had to change. The only entry of an id follows the facts of the id. Any
    other entry follows those of the files that it names, or none. Raises Flaw."""

    def rename(span: Span, id_: str) -> dict[str, Take]:
        takes = {}
        for token, text, is_key in document.names(span) if has_names else ():
            found = None if is_key else meant(id_, text)
            if found:
                document.respell(token, text, found[1])
            if found and found[0]:
                takes[found[0].stem] = found[0]
        return takes

    has_names = may_name_files(document.data)
    known = []
    for span, id_, entry in entries(document):
        takes = rename(span, id_)
        if takes or id_ in facts:
            known.append((span, id_, entry, takes))
        else:
            yield id_, entry, {}
    for name, _, span in document.parts(document.root):
        if name != "recordings":
            rename(span, "")
    counts = Counter(id_ for _, id_, _, _ in known)
    for span, id_, entry, takes in known:
        about = facts.get(id_) if counts[id_] == 1 else None
        if takes and not about:
            about = facts_of(takes.values())
        changes = changed(entry, index_members(about, entry)) if about else {}
        if changes:
            document.set(span, changes)
        yield id_, entry, changes


def edit_index(
    data: bytes, facts: Mapping[str, Facts], meant: Meant, copies_size: Optional[int], date: str
) -> Optional[bytes]:
    """Returns the index with its entries, names and totals as they must be; None if it is true
    already. `facts` are by id. `copies_size` is None if it is not known. Raises Flaw if it is not
    understood. Pure."""
    document, size = JsonText(data), 0.0
    for _, entry, changes in described(document, facts, meant):
        size += finite({**entry, **changes}.get("size"))
    totals = {"total_size": round(size)}
    if copies_size is not None:
        totals["compressed_size"] = copies_size
    if document.edits or changed(document.values(document.root, totals), totals):
        document.set(document.root, {**totals, "last_updated": date})
    return document.edited()


ENTRY_MEMBERS = ("id", "size", "compressed", "archived", "audio_deleted")


def entries(document: JsonText) -> Iterator[tuple[Span, str, Mapping[str, Any]]]:
    """Yields the recordings of an index: where each stands, its id ("" without one), and what it
    says. Raises Flaw if the index is not understood."""
    recordings = document.members(document.root, ("recordings",)).get("recordings")
    if not recordings or not document.is_list(recordings):
        raise Flaw("it has no list of recordings")
    for span, entry in document.rows(recordings, ENTRY_MEMBERS):
        if not isinstance(entry, dict):
            raise Flaw(f"what stands at byte {span.start} is no recording")
        id_, size = key_of(entry.get("id")), entry.get("size", 0)
        if not is_number(size):
            raise Flaw(f"the recording at byte {span.start} has a size that is no number")
        if not id_ and not any(not is_key for _, _, is_key in document.names(span)):
            raise Flaw(f"the recording at byte {span.start} has neither an id nor a file")
        yield span, id_, entry


def index_differs(data: bytes, facts: Mapping[str, Facts], meant: Meant) -> list[str]:
    """Returns what an index does not say as it must. Raises Flaw. Pure."""
    document, missed = JsonText(data), list[str]()
    for id_, _, changes in described(document, facts, meant):
        if changes:
            missed.append(f"what the recording {id_ or 'without an id'} is")
    return [*missed, "how files are called now"] if document.is_renamed else missed


HALF_WRITTEN_WAIT = 3.0  # seconds; a server needs a fraction of one to write in place


def read_whole(path: str, parse: Callable[[bytes], Any]) -> tuple[bytes, Any]:
    """Returns the bytes of a JSON file, and what `parse` makes of them. Waits for a program that
    is still writing the file. Raises Flaw, OSError."""
    deadline = monotonic() + HALF_WRITTEN_WAIT
    while True:
        data = read_regular(path)
        try:
            return data, parse(data)
        except Flaw as flaw:
            age = time.time() - os.lstat(path).st_mtime
            if monotonic() > deadline or not -60 < age < HALF_WRITTEN_WAIT:
                raise flaw
            time.sleep(0.01)


REWRITES = 200  # even a writer at 50 a second leaves 20 ms between two writes


def rewrite(
    path: str, edit: Callable[[bytes], Optional[bytes]], staging: Staging, backup: bool
) -> str:
    """Edits a JSON file. No other program's write to it is lost: the file is compared just before
    the exchange, and the displaced one just after. With `backup`, the file is first kept as
    NAME.json.bak, unless that name is taken or too long. The caller flushes the folder. Returns
    the SHA-256 of the true document, "" if its owner has deleted it. Raises Flaw, Refusal,
    OSError."""
    with suppress(FileNotFoundError):
        for _ in range(REWRITES):
            try:
                data, edited = read_whole(path, edit)
            except Flaw as flaw:
                raise Flaw(f"{relpath(path, staging.library.root)}: {flaw}") from None
            if edited is None:
                return hashlib.sha256(data).hexdigest()
            if backup and not lexists(path + BACKUP_SUFFIX):
                kept = staging.write(data, path)
                with tolerated((errno.EEXIST, errno.ENAMETOOLONG)):
                    place(kept, path + BACKUP_SUFFIX)
                staging.discard(kept)
            staged = staging.write(edited, path)
            is_done = read_regular(path) == data and put(staged, path, edited, data)
            staging.discard(staged)
            if is_done:
                return hashlib.sha256(edited).hexdigest()
        raise OSError(errno.EBUSY, "Another program rewrites it without a pause", path)
    return ""


def put(staged: str, path: str, ours: Optional[bytes], expected: Optional[bytes]) -> bool:
    """Exchanges a document for a staged one, which holds `ours`. Returns False if another program
    was faster: the file that it had put there is put back. Raises OSError."""
    displaced = exchange(staged, path)
    if not displaced:
        return True
    theirs = None  # for a link, or any other file that cannot be read
    with suppress(OSError):
        theirs = read_regular(displaced)
    if theirs == expected:
        return True
    put(displaced, path, theirs, ours)
    return False


# --------------------------------------------------------------------------------------- archive
# Old recordings are copied there under a name of this run, read back, compared, and only then
# moved to their place. Touches only TARGET/archive-of-NAME/. Must never make that folder in a local
# target, as an empty mount point has none. Must never write over another file or follow a link out.

RCLONE = shlex.split(
    "--retries 2 --low-level-retries 3 --contimeout 20s --log-level ERROR --stats 0"
)
# rclone itself gives up a connection that stands still for five minutes (its --timeout), however
# slow it was before. So ours only ends an rclone that hangs.
ARCHIVE_PATIENCE = float(DAY)  # seconds
# How rclone spells control characters (its "standard encoding"), and those spellings themselves.
# Otherwise `cat` and `lsjson` find no such file.
CONTROLS = {code: 0x2400 + min(code, 33) for code in (*range(32), 127)}
RCLONE_NAMES = {**CONTROLS, **{symbol: f"\u201b{chr(symbol)}" for symbol in CONTROLS.values()}}


class Archive:
    """One archive of one library: `TARGET/archive-of-NAME/PATH`. How its files are reached is for
    FolderArchive and RemoteArchive, whose methods raise Refusal, OSError and Stopped."""

    ends_at_refusal = False  # the first upload that is refused ends the run
    moves = True  # a file keeps its bytes when it is moved there
    # Raises ServiceError if it cannot be reached.
    answer: Callable[[], None]
    # All below take a location, of a file or a folder there.
    holds: Callable[[str], bool]
    names_in: Callable[[str], Collection[str]]
    size_of: Callable[[str], Optional[int]]  # of a regular file, None for anything else
    digest: Callable[[str], str]
    remove: Callable[[str], None]
    send: Callable[[str, str], None]
    move: Callable[[str, str], None]  # never over another file
    read_back: Callable[[str], ContextManager[str]]

    def secure(self, source: str, there: str) -> None:
        """Flushes a file that was there already. A remote has done so with what it gives back."""

    def list_all(self) -> None:
        """Lists all of it at once, where asking for each file would take long."""

    def __init__(self, target: str, run: Run) -> None:
        self.target = target
        self.run = run
        self.library = run.library
        # `remote:` and `remote:/` are two places.
        slash = "" if target.endswith((":", "/")) else "/"
        self.base = target + slash
        self.root = f"{self.base}archive-of-{run.library.name}"
        self.mark = self.location(f"{OWN_FOLDER}/{ID_NAME}")
        self.visited: dict[str, bool] = {}  # whether anything was there in a folder, by its path
        self.refusal = ""  # why this run uploads nothing more

    def location(self, path: str) -> str:
        """Returns where a path below the library is there."""
        return f"{self.root}/{path}"

    def try_it(self) -> None:
        """Raises ServiceError if the archive cannot be used."""
        self.recognise()

    @memoized
    def recognise(self) -> bool:
        """Returns whether the archive had the library's mark when this run first looked at it.
        Raises ServiceError if it does not answer, is itself a library, or has another library's
        mark."""
        self.answer()
        own = self.library.own(ID_NAME)
        with self.reached():
            names = self.names_in(dirname(self.mark))
            if "lock" in names:
                raise ServiceError(
                    f"The archive {self.root} is a library, perhaps this one by another path. "
                    "Nothing was removed; name another folder or remote in tiers."
                )
            is_marked = ID_NAME in names
            if is_marked and not (lexists(own) and self.digest(self.mark) == digest_of(own)):
                raise ServiceError(
                    f"The archive {self.root} has the mark of another library. Nothing was "
                    "removed; name another target in tiers. If it is this library's, whose "
                    f".compression folder was lost or removed, remove {self.mark} and run again."
                )
        return is_marked

    def leave_mark(self) -> None:
        """Leaves the library's mark, if there is none: its id, which is a random word and is made
        now if need be. Raises ServiceError."""
        own, folder = self.library.own(ID_NAME), dirname(self.mark)
        with self.reached():
            names = self.names_in(folder)
            self.sweep(folder, names)
            if not lexists(own):
                word = os.urandom(16).hex().encode()
                place(self.run.staging.write(word, self.library.own("lock")), own)
                flush_folder(dirname(own))
            if ID_NAME not in names:
                self.deliver(own, self.mark, digest_of(own))

    def try_upload(self) -> None:
        """Raises ServiceError unless the archive takes a small file under a plain name. The file is
        this program, which is always there."""
        source = realpath(__file__)
        there = self.location(self.run.staging.new_name())
        with self.reached():
            self.deliver(source, there, digest_of(source))
            with suppress(Refusal, OSError):
                self.remove(there)

    @contextmanager
    def reached(self) -> Iterator[None]:
        """Raises the ServiceError that ends the run after a Refusal or an OSError inside: the
        archive takes nothing at all."""
        try:
            yield
        except (Refusal, OSError) as error:
            why = detail_of(error)
            if is_full(error):
                advice = "Nothing is removed here; make room and run again."
                raise NoSpaceError(f"No space left in {self.root}: {why}. {advice}") from None
            raise ServiceError(
                f"The archive {self.root} takes nothing: {why}. Nothing is removed here; see to it "
                "that files can be written there."
            ) from None

    def put(self, move: Move) -> Place:
        """Puts one file there, proven, and returns its place. Raises Refusal, OSError, Stopped, and
        ServiceError where the archive does not answer or takes nothing."""
        source = self.library.path(move.path)
        there = self.location(move.path)
        status = os.lstat(source)
        seen = move.seen[basename(source)] = self.library.witness(source)
        if move.known_sha256 not in ("", seen.sha256):
            raise Refusal(Reason.ROTTEN, since_when(move.take.past))
        try:
            self.visit(move.take.folder)
            if self.is_there(move.take.folder, source, there, seen.sha256):
                self.secure(source, there)
            else:
                self.deliver(source, there, seen.sha256)
        except (Refusal, OSError) as error:
            expect(is_same(source, seen))
            self.find_cause(there, error)
        return Place(
            *os.path.split(there),
            status.st_size,
            status.st_mtime_ns,
            seen.sha256,
            stat.S_IMODE(status.st_mode),
            (status.st_uid, status.st_gid),
            time.time(),
        )

    def is_there(self, folder: str, source: str, there: str, sha256: str) -> bool:
        """Returns whether the file is in its place already, as after a run that was killed. One
        that is only the beginning of ours was cut short, and is removed: nothing is lost by that.
        Raises Refusal if it is another file."""
        size = self.size_of(there) if self.visited[folder] else None
        if size is None:
            return False
        found = self.digest(there)
        if found == sha256:
            return True
        if found != digest_of(source, size):
            why = f"{there} is there already and is another file: move that away first"
            raise Refusal(Reason.ARCHIVE_REFUSED, why)
        self.remove(there)
        return False

    def deliver(self, source: str, there: str, digest: str) -> None:
        """Copies a file there under a name of this run, proves the copy, and moves it to its place.
        So nothing that a killed run left at work can replace or remove it. The name holds a part of
        the real one: what cannot be there is refused before it is copied."""
        folder, name = os.path.split(there)
        part = f"{folder}/{self.run.staging.new_name()}.{name[:40]}.part"
        try:
            self.send(source, part)
            if self.digest(part) != digest:
                raise NotProven(f"to read from {there} what was written", "other bytes")
            self.move(part, there)
            # A remote that takes two spellings for one name skips a move, and calls it done.
            is_sound = self.size_of(there) == getsize(source) and self.size_of(part) is None
            if not (is_sound and (self.moves or self.digest(there) == digest)):
                raise NotProven(f"to find in {there} what was moved there", "another file")
        except BaseException:
            with suppress(Refusal, OSError):  # it may not be there, and must not hide the error
                self.remove(part)
            raise

    def find_cause(self, there: str, error: Exception) -> NoReturn:
        """Raises ServiceError if the archive takes nothing at all. Else raises Refusal: the cause
        is the name of the file, its folder there or its size. It counts for the recording."""
        if is_full(error):
            with self.reached():
                raise error
        if reason_of(error) is Reason.ARCHIVE_REFUSED:
            raise error
        self.try_upload()
        if self.ends_at_refusal:
            self.refusal = f"The archive {self.root} refused {there}; the next run tries it again."
        why = f"{there} is not taken, while other names are: {detail_of(error)}"
        raise Refusal(Reason.ARCHIVE_REFUSED, why)

    def visit(self, folder: str) -> None:
        """Looks once a run into a folder there and those above it, before the first upload. Leaves
        the library's mark, and removes what killed runs have left. Raises ServiceError if a file
        put into this folder of the library appears there too, or if a library is in the way: the
        archive is the library by another path."""
        if folder in self.visited:
            return
        if folder:
            self.visit(dirname(folder))
        else:
            self.leave_mark()
        there = self.location(folder).rstrip("/")
        probe = self.run.staging.beside(self.library.path(folder, "probe"))
        try:
            names = self.names_in(there)
        finally:
            self.run.staging.discard(probe)
        if basename(probe) in names or (folder and OWN_FOLDER in names):
            raise ServiceError(
                f"{there} in the archive is a folder of a library by another path. Nothing was "
                "removed; name another folder or remote in tiers."
            )
        self.sweep(there, names)
        self.visited[folder] = bool(names)

    def sweep(self, there: str, names: Iterable[str]) -> None:
        """Removes what killed runs have left in a folder there."""
        for name in filter(STAGED.fullmatch, names):
            self.remove(f"{there}/{name}")

    def fetch(self, folder: str, place: Place, said: Iterable[str], staged: str) -> Place:
        """Brings a file back into `staged`, and compares it with the hash on record. It gets the
        mode, owner and mtime on record, or those of the library. Returns what it was."""
        there, size = self.find(folder, place, said)
        if size is None:
            raise Refusal(Reason.NOT_RESTORED, f"{there} is not in the archive")
        owned = place._replace(owner=owner_within(self.library, dirname(staged), place.owner))
        with self.read_back(there) as found:
            copy_file(found, staged, owned if place.time else None)
        digest = digest_of(staged)
        if place.sha256 not in ("", digest):
            raise Refusal(Reason.NOT_RESTORED, f"{there} is not the file that went there")
        if not place.time:
            give_to_owner(staged, self.library.root, 0o666)
        _, size, mtime_ns = file_at(staged)
        return place._replace(size=size, mtime_ns=mtime_ns, sha256=digest)

    def find(self, folder: str, place: Place, said: Iterable[str]) -> tuple[str, Optional[int]]:
        """Returns where a file is, and its size: the place on record, one that its sidecars have
        `said`, or the one that it would go to now. An archive may have been moved and a library
        renamed, so each is a lead. Of several files, the hash decides. None: in no such place."""
        leads = [f"{location}/{place.name}" for location in (place.location, *said)]
        leads.append(self.location(join(folder, place.name)))
        held = filter(self.holds, dict.fromkeys(leads))
        sizes = {there: self.size_of(there) for there in held}
        found = [(there, size) for there, size in sizes.items() if size is not None]
        if len(found) > 1:
            found.sort(key=lambda file: self.digest(file[0]) != place.sha256)
        return found[0] if found else (leads[-1], None)


class FolderArchive(Archive):
    """On another disk."""

    def answer(self) -> None:
        """Raises ServiceError if the folder is not there."""
        if is_below(join(self.root, "-"), self.library.root):  # `visit` sees the other way
            raise ServiceError(f"The archive {self.root} lies inside the library: move it out.")
        if not isdir(self.root):
            raise ServiceError(
                f"The archive has no folder {self.root}. Is its disk mounted? If it is, make this "
                "folder once by hand, so that nothing can ever go to the wrong disk."
            )

    def try_it(self) -> None:
        super().try_it()
        read_sign(self.root, 1)

    def holds(self, there: str) -> bool:
        return is_below(there, self.target) or is_below(there, self.root)

    def names_in(self, there: str) -> Collection[str]:
        if not is_below(join(there, "-"), self.root):
            raise Refusal(Reason.ARCHIVE_REFUSED, f"{there} leads out of the archive")
        with suppress(FileNotFoundError):
            return os.listdir(there)
        return ()

    def size_of(self, there: str) -> Optional[int]:
        with suppress(FileNotFoundError, NotADirectoryError):
            status = os.lstat(there)
            return status.st_size if stat.S_ISREG(status.st_mode) else None
        return None

    def digest(self, there: str) -> str:
        return digest_of(there)

    @contextmanager
    def read_back(self, there: str) -> Iterator[str]:
        yield there

    def send(self, source: str, part: str) -> None:
        os.stat(self.root)  # which is never made
        os.makedirs(dirname(part), exist_ok=True)
        copy_file(source, part)

    def move(self, part: str, there: str) -> None:
        place(part, there)
        self.flush_above(there)

    def secure(self, source: str, there: str) -> None:
        with open_regular(there) as file:
            if os.path.samestat(os.fstat(file.fileno()), os.stat(source)):
                raise Refusal(Reason.ARCHIVE_REFUSED, f"{there} is the very file that is here")
            flush(file.fileno())
        self.flush_above(there)

    def flush_above(self, there: str) -> None:
        """Flushes all folders in which the file stands, whoever made them."""
        folder = dirname(there)
        while folder.startswith(self.root):
            flush_folder(folder)
            folder = dirname(folder)

    def remove(self, there: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(there)


class RemoteArchive(Archive):
    """Behind rclone."""

    ends_at_refusal = True
    listed: Mapping[str, int] = {}  # sizes by location, once all was listed

    def answer(self) -> None:
        """Raises ServiceError if it cannot be listed. There need be nothing yet."""
        try:
            self.names_in(self.target)
        except Refusal as refusal:
            raise ServiceError(
                f"The archive {self.target} does not answer: {refusal.detail}. Nothing is "
                f"removed here; see to it that 'rclone lsf {self.target}' works."
            ) from None

    def holds(self, there: str) -> bool:
        below = there[len(self.base) :]
        return there.startswith(self.base) and NO_NAMES.isdisjoint(below.split("/"))

    def size_of(self, there: str) -> Optional[int]:
        if there in self.listed:
            return self.listed[there]
        return next(iter(self.names_in(there, "--files-only").values()), None)

    def digest(self, there: str) -> str:
        """Hashes what the remote sends as it comes, so that it takes no space here. Tried twice,
        as `rclone cat` does not go on where a connection broke."""

        def read() -> str:
            digest = hashlib.sha256()
            self.rclone("cat", "--", there, take=digest.update)
            return digest.hexdigest()

        with suppress(Refusal):
            return read()
        return read()

    @contextmanager
    def read_back(self, there: str) -> Iterator[str]:
        fetched = self.run.staging.levels()
        self.rclone("copyto", "--ignore-times", "--", there, fetched)
        yield fetched
        self.run.staging.discard(fetched)

    def send(self, source: str, part: str) -> None:
        self.rclone("copyto", "--", source, part)

    def move(self, part: str, there: str) -> None:
        self.rclone("moveto", "--ignore-existing", "--", part, there)

    @cached_property
    def moves(self) -> bool:  # type: ignore[override]
        """A remote that can neither move nor copy gets an upload anew instead."""
        with suppress(Refusal, *ODD):  # an old rclone cannot say that
            told = json.loads(self.rclone("backend", "features", self.target))["Features"]
            return bool(told["Move"] or told["Copy"])
        return False

    def remove(self, there: str) -> None:
        self.rclone("deletefile", "--", there)

    def list_all(self) -> None:
        sizes = self.names_in(self.root, "-R", "--files-only")
        self.listed = {self.location(path): size for path, size in sizes.items()}

    def names_in(self, there: str, *options: str) -> Mapping[str, int]:
        """Returns the names of what is in a folder, or of one file, with the sizes; empty where
        there is none (rclone's exit codes 3 and 4)."""
        words = ("lsjson", "--no-modtime", "--no-mimetype", *options, "--", there)
        try:
            listed = json.loads(self.rclone(*words))
            return {entry["Path"]: entry["Size"] for entry in listed}
        except Refusal as refusal:
            if re.search(r"exit code [34]\b", refusal.detail):
                return {}
            raise
        except ODD as error:
            raise Refusal(Reason.INPUT_OUTPUT, f"rclone: no list of {there}: {error}") from None

    def rclone(self, *words: str, take: Optional[Callable[[bytes], object]] = None) -> str:
        """Returns the output of one call of it, unless `take` gets that. Raises ToolError."""
        named = (word.translate(RCLONE_NAMES) for word in words)
        command = [self.run.tools.find("rclone")[0], *RCLONE, *named]
        try:
            return self.run.tools.run(command, ARCHIVE_PATIENCE, take=take)[0]
        except Refusal as refusal:
            is_space = refusal.reason is Reason.NO_SPACE
            reason = refusal.reason if is_space else Reason.INPUT_OUTPUT
            raise Refusal(reason, f"rclone: {refusal.detail}") from None


def detail_of(error: Exception) -> str:
    """Returns what was found, without the sentence that a Refusal puts around it."""
    return getattr(error, "detail", "") or explain(error)


def is_full(error: Exception) -> bool:
    """Returns whether a disk or a quota is full."""
    return reason_of(error) is Reason.NO_SPACE or isinstance(error, NoSpaceError)


def is_below(path: str, folder: str) -> bool:
    """Returns whether a path lies below a folder, with all links followed."""
    return realpath(path).startswith(join(realpath(folder), ""))


def owner_within(library: Library, folder: str, owner: tuple[int, int]) -> tuple[int, int]:
    """Returns user and group on record if the library or the folder has them, else the library's:
    whoever may write the history must not choose another. Raises OSError."""
    homes = [os.stat(library.root), os.stat(folder)]
    user, group = owner
    if user not in [home.st_uid for home in homes]:
        user = homes[0].st_uid
    if group not in [home.st_gid for home in homes]:
        group = homes[0].st_gid
    return user, group


def copy_file(source: str, target: str, known: Optional[Place] = None) -> None:
    """Copy a regular file with its attributes, or those that are `known`, as far as another disk
    takes them; flush it, and let what is read back come from the disk. Raises OSError."""
    with open_to_write(target) as writer, open_regular(source) as reader:
        shutil.copyfileobj(reader, writer, BLOCK)
        writer.flush()
        made = writer.fileno()
        with suppress(Refusal, OSError):  # a NAS has users of its own
            give_attributes(reader.fileno(), made, times=True)
        if known:
            with suppress(PermissionError):
                os.fchown(made, *known.owner)
            os.fchmod(made, known.mode)
            os.utime(made, ns=(known.mtime_ns, known.mtime_ns))
        flush(made)
        if sys.platform == "linux":
            os.posix_fadvise(made, 0, 0, os.POSIX_FADV_DONTNEED)


# --------------------------------------------------------------------------------------- restore
# A recording comes back as a whole, or not at all: fetch or prove everything, write 'restored' with
# its place and hash to the history, then the same commit as every move. Fetches from below a
# configured archive only; must never remove a copy that was not proven to be its original's: where
# one is not, `size` in its past is 0, so that no later run takes it for proven.


def command_restore(config: Config, report: Report) -> None:
    """`restore PATH... | --last-run`; also `-n`."""
    if not (config.paths or config.last_run):
        raise UsageError("restore: expected PATH... or --last-run.")
    run = Run(config, report)
    run.library.require(config.log_file)
    report.open_log()
    with run.open(locks=not config.dry_run):
        # What comes back counts from now, and a clock that is behind would let it go again soon.
        run.now = max(run.now, run.last.get("time", 0))
        if run.is_locked:
            try_commits(run.library)
        with run.finishing():
            run.carry_out(moves_asked_for(run))
    summary = report.summary()
    if run.is_locked:
        run.note(summary)


def asked_for(run: Run) -> Iterator[Recording]:
    """Yields the recordings that the command line names, each once, folder by folder, so that few
    are held at a time. Reports the paths that name none."""
    # The keys are folders and originals. A copy and a sidecar count as their original.
    library, asked = run.library, dict[str, str]()
    for path in (*run.config.paths, *(done_last(library) if run.config.last_run else ())):
        # A path may begin where the user stands, or in the library. Its file may be gone.
        is_from_here = lexists(path) or is_below(path, library.root)
        given = path if is_from_here else library.path(path)
        inside = relpath(realpath(given), realpath(library.root))
        stem, suffix = splitext(inside.removesuffix(BACKUP_SUFFIX))
        is_file = suffix.lower() in (*AUDIO_SUFFIXES, SIDECAR_SUFFIX) and not isdir(given)
        asked[stem + SOURCE_SUFFIX if is_file else inside] = path
    missed, folders = set(asked), set(map(dirname, asked))
    for folder in every_folder(library, run.report.once):
        if run.is_locked:
            run.staging.sweep(folder)
        path = PurePath(folder.path)
        whole = asked.keys() & set(map(str, (path, *path.parents)))
        for recording in run.recordings_in(folder) if whole or folder.path in folders else ():
            sidecars = (sidecar.stem for sidecar in recording.sidecars if sidecar.listed)
            names = (*sidecars, *(take.name for take in recording.takes))
            originals = {join(folder.path, name + SOURCE_SUFFIX) for name in names}
            met = whole | (asked.keys() & originals)
            missed -= met
            if met:
                yield recording
    for inside in sorted(missed):
        run.report.error(f"{asked[inside]}: no recording of {library.root}, here or on record.")


def every_folder(
    library: Library, problem: Callable[[str], object], passed_over: Callable[[str], object] = str
) -> Iterator[Folder]:
    """Yields the folders of the library. Then yields, as empty ones, those on record that the walk
    has not met: what they hold is in doubt, unless they cannot be read."""
    gone = library.history.folders(library.history.lines)
    for folder in library.walk(problem, passed_over):
        gone.discard(folder.path)
        yield folder
    for path in sorted(gone):
        try:
            library.folder_on_record(path)
            yield Folder(path, library)
        except ValueError:
            problem(f"The folder {path} cannot be read: this locale has no such name.")
        except OSError:  # the walk has reported it
            pass


def done_last(library: Library) -> list[str]:
    """Returns the absolute paths of all that the last run did that changed anything. Reads the
    history backwards: any number of idle runs may follow, and a killed run has no record."""
    words = (Action.COMPRESSED, Action.FREED, Action.ARCHIVED, Action.DELETED)
    history = library.history
    offsets = sorted(itertools.chain(*history.lines.values()), reverse=True)
    begun, ended = math.inf, 0.0
    for record in history.read(offsets):
        with suppress(*ODD):
            past = Past.of(record.get("past", record))
            when = iso(past.time)  # a failed restore repeats a past, under its own date
            if past.action in words and record.get("date", when) == when:
                ended = past.time
                break
            if not past.action:  # the record of a run, which has the time of its start
                begun = past.time
    return [
        library.path(stem + SOURCE_SUFFIX)
        for stem, past in history.pasts.items()
        if past.action in words and min(begun, ended) <= past.time <= ended
    ]


def moves_asked_for(run: Run) -> Iterator[list[Move]]:
    """Yields the moves that bring back each recording that was asked for. Its documents are looked
    at, even if it has none: an earlier restore may have been cut short. Reports in one sentence how
    many originals are gone for good."""
    copies, more = list[Take](), ""
    for recording in asked_for(run):
        if any(map(may_come_back, recording.takes)):
            more = "more "
            if run.is_locked:
                run.committer.folders.add(recording.folder)
            yield moves_back(recording, run.config)
        else:
            copies += [take for take in recording.takes if take.copy]
    if copies:
        times = [take.past.freed or take.past.compressed for take in copies]
        days = [local_time(time)[:10] for time in sorted(filter(None, times))]
        when = " to ".join(dict.fromkeys(days[:1] + days[-1:])) or "a day not on record"
        suffixes = " and ".join(sorted({take.copies[0].suffix for take in copies}))
        now = f"these {len(copies)} originals were deleted on {when}; their {suffixes} copies are"
        if len(copies) == 1:
            now = f"this original was deleted on {when}; its {suffixes} copy is"
        run.report.error(
            f"Nothing {more}to bring back: {now} the recordings now. `keep_originals_days` keeps "
            "originals from now on."
        )


def may_come_back(take: Take) -> bool:
    """Returns whether a restore may find, or has found, the original or the archived file."""
    return take.is_away or take.past.is_restored or bool(take.original and take.copy)


def moves_back(recording: Recording, config: Config) -> list[Move]:
    """Returns the moves that bring a recording back. A take with an original has its copy proven
    and removed. The file of any other take is fetched, or was fetched before. If some takes can do
    neither, returns the refused moves of these alone."""
    moves = list[Move]()
    settings = f"restore {config.archive_tier}"  # that a failure of it depends on
    # Then the rest may move on.
    is_begun = any(take.is_half_restored or take.past.place for take in recording.takes)
    for take in recording.takes:
        if is_begun and take.state is State.DELETED:
            continue
        source = take.original if take.copy else None
        is_only_copy = bool(take.copy) and not (is_begun or may_come_back(take))
        if not (source or is_only_copy or take.is_away or take.is_half_restored):
            continue
        kind = BringBack if source else Fetch
        form = (take.copy.format if take.copy else None) or config.target_format
        target = Target(form, config.target_bitrate)
        removes = take.copies[:1] if source else ()
        why = "only its copy is left, as its original was deleted"
        if not is_only_copy:
            why = recording.policy.unreadable or why_not_back(take, config)
        problem = Outcome(Reason.NOT_RESTORED, why) if why else None
        move = kind(take, target, settings, source, removes, problem, recording)
        move.detail = "its original is kept" if source else "it is in the archive"
        moves.append(move)
    return [move for move in moves if move.outcome] or moves


def why_not_back(take: Take, config: Config) -> str:
    """Returns why a take cannot come back, "" if it can."""
    past, place = take.past, take.past.place
    if take.state is State.DELETED:
        days, date = past.settings.split()[-1], local_time(past.deleted)[:10]
        return f"deleted on {date} by the tier of {days} days; nothing to bring back"
    if place and take.files and not any(is_archived_file(file, place) for file in take.files):
        return f"another {take.name} is here: move that away first"
    if not (take.file or config.archive_tier):
        if take.lost_copy:
            return f"its copy is lost, and {since_when(past)}: bring it back from a backup"
        return f"{take.stem} is not here, and tiers name no archive"
    return ""


def is_archived_file(file: File, place: Place) -> bool:
    return file.name == place.name and file.is_on_record(place.size, place.mtime_ns)


def fetch_back(run: Run, move: Fetch) -> None:
    """Fetches from the archive into a staged file beside its place. Raises Refusal, OSError, and
    ServiceError if the archive does not answer."""
    take, archive = move.take, run.archive
    if run.library.leads_away(take.folder):
        raise Refusal(Reason.NOT_RESTORED, f"a link or another library leads to {take.folder}")
    move.copy = take.file
    move.place = take.past.place
    move.detail = "back from the archive"
    if move.copy:  # a restore was cut short after that
        return
    assert archive
    place = take.past.place or lead(move.recording, take)
    if not place.sha256:  # then only its mark shows that this is the library's archive
        archive.recognise()
    target = run.library.path(take.stem)
    make_folder(run.library, take.folder)
    move.staged = run.staging.beside(target)
    try:
        said = move.recording.locations
        move.place = found = archive.fetch(take.folder, place, said, move.staged)
    except (Refusal, OSError):
        archive.answer()  # else it is this recording's
        raise
    copy = move.copy = File(found.name, found.size, found.mtime_ns)
    if not take.past.place:
        past = take.past if take.past.size == found.size else NO_PAST
        sizes: dict[str, Any] = {"first_size": found.size}
        if copy.format:
            sizes = {"suffix": copy.suffix, "size": found.size}
        past = past._replace(mtime_ns=found.mtime_ns, place=found, **sizes)
        move.take = take._replace(past=past)


def make_folder(library: Library, path: str) -> None:
    """Makes a folder that is missing, and those above it. Each gets the owner of the one above."""
    whole = library.path(path)
    if not isdir(whole):
        make_folder(library, dirname(path))
        os.mkdir(whole)
        give_to_owner(whole, dirname(whole), 0o2777)


def lead(recording: Recording, take: Take) -> Place:
    """Returns where a take without a record may be, by the name that its sidecars have for it.
    Raises Refusal."""
    names = itertools.chain(*(sidecar.own for sidecar in recording.sidecars))
    own = sorted(name for name in names if stem_of(name) == take.name)
    if not own:
        raise Refusal(
            Reason.NOT_RESTORED, f"{take.stem} is not here, and nothing says where it is archived"
        )
    location = next(iter(recording.locations), "")
    return Place(location, own[0])  # a copy's suffix comes first


def prove_again(run: Run, move: BringBack) -> None:
    """Proves the copy that is to go. One that is not its original's stays. Raises Stopped, OSError,
    ServiceError."""
    run.transcode([move])
    run.find_cause([move])
    if not move.seen:  # the original cannot even be read
        return
    original = run.library.path(move.path)
    with open_regular(original) as file:
        flush(file.fileno())  # whoever wrote it: the copy is to be removed
    if move.outcome:
        move.removes = ()
        move.seen = {basename(original): run.library.witness(original)}
        refusal = Refusal(*move.outcome[:2])
        run.report.once(f"{move.target_path} stays, because it was not proven: {refusal}")
    move.outcome = None
    move.detail = "the original is back"
    move.copy = move.source


# ---------------------------------------------------------------------------------------- losses
# Finds the copies on record that are lost, moved or back, and reads a share of all copies every
# night. Writes nothing but the history, and that only while the library is locked. A copy whose
# original is here is never lost: it is made again.

LENGTH_TOLERANCE = 0.15  # seconds, between what the history says of a copy and what is in it
NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EINVAL, errno.ELOOP)  # the last two: no plain file
LARGE_FOLDER = 1000  # files; with more, a share is made of files instead of folders
FEWEST = 10  # copies on record; more than half of so many never vanish by their owner's wish
LOST_ADVICE = (
    "Bring lost copies back from a backup: the next run recognises each by its hash. To forget "
    "one, remove it from its sidecar and from the index. If most were missing at once, then run "
    "with --retry."
)


def losses(library: Library) -> dict[str, Past]:
    """Returns the pasts, by stem, of the lost copies on record that are still missing. Raises
    OSError if the history cannot be read."""
    history, found = library.history, {}
    for path in sorted(history.folders(history.lossy if history.lines else ())):
        with suppress(OSError, ValueError):  # a folder that cannot be read
            for take in library.folder_on_record(path).takes.values():
                if take.past.is_lost and take.lost_copy:
                    found[take.stem] = take.past
    return found


def since_when(past: Past) -> str:
    """Returns what became of the original of a lost copy."""
    if past.freed:
        return f"its original was deleted on {local_time(past.freed)[:10]}"
    return "its original is not here"


def share_of(path: str, every: int) -> int:
    """Returns in which of so many nights a folder or file is read again."""
    return zlib.crc32(path.encode("utf-8", "surrogatepass")) % every


def reread(take: Take, recording: Recording) -> Reread:
    """Returns the move that reads a copy: the file that is here, or the one on record."""
    source = take.lost_copy or take.suspect or take.copy
    return Reread(take, NO_TARGET, take.past.settings, source, recording=recording)


class Losses:
    """Looks at copies on record, and puts on record what became of them."""

    def __init__(self, run: Run) -> None:
        self.run, self.library, self.report = run, run.library, run.report
        self.met: dict[str, int] = {}  # number of files, by folder
        self.doubtful: list[Reread] = []
        self.returned: list[Reread] = []  # that a tier had deleted

    def doubt(self, recording: Recording) -> None:
        """Notes the copies that `find` is to look at."""
        is_open = any(take.is_half_deleted or take.past == NO_PAST for take in recording.takes)
        moves = self.run.deletions(recording) if is_open else []
        is_off = all(move.outcome for move in moves)
        for take in recording.takes:
            if take.was_brought_back or (is_off and take.is_half_deleted):
                move = reread(take, recording)
                past = self.past_of_returned(take)
                move.after = past._replace(code=Reason.DELETED.code)
                if take.files or past.place:
                    move.after = past._replace(code="", deleted=0, back=self.run.now, stays="")
                self.returned.append(move)
            elif take.is_in_doubt or take.suspect:
                self.doubtful.append(reread(take, recording))
            elif moves and take.own and take.past == NO_PAST:
                back = [self.came_back.get(id_, 0) for id_ in recording.ids]
                if recording.locations:  # it was copied back by hand
                    back.append(self.run.now)
                if any(back):
                    move = reread(take, recording)
                    move.after = NO_PAST._replace(back=max(back))
                    self.returned.append(move)

    @cached_property
    def came_back(self) -> Mapping[str, float]:
        """Returns when recordings were restored or brought back, by their ids."""
        pasts = self.library.history.each_past()
        return {id_: past.back for _, past in pasts if past.back for id_ in past.ids}

    def past_of_returned(self, take: Take) -> Past:
        """Returns what is still true of the past of a take that is back, whatever its time."""
        past = take.past
        for file in take.files:
            with suppress(OSError):
                path = self.library.path(take.folder, file.name)
                if file.suffix == past.suffix and digest_of(path) == past.sha256:
                    return past._replace(mtime_ns=file.mtime_ns)
        is_known = take.is_known or take.is_half_deleted
        return past if is_known else NO_PAST._replace(suffix=past.suffix)

    def find(self) -> bool:
        """Settles what became of the copies in doubt. Returns whether anything was put on record.
        Raises Stopped, ServiceError."""
        for move in self.returned:
            why = "is here, after a tier had deleted its recording. Its age counts from now"
            if move.take.past == NO_PAST:
                why = "came back, and has no record under this name. Its age counts from then"
            if move.take.is_half_deleted:
                why = "stays, as its deletion was called off. Its age counts from now"
            if move.after and move.after.deleted:
                why = "is gone for good, as a tier had deleted it before that was called off"
            self.news(f"{move.path} {why}.")
        return self.settle(self.read(self.doubtful), self.returned)

    @cached_property
    def checked(self) -> int:
        """Returns the day, since the epoch, up to which shares were read."""
        day, today = int(finite(self.run.last.get("checked"))), int(self.run.now // DAY)
        return day if 0 < day <= today else today - 1

    def read_share(self) -> None:
        """Reads the copies whose turn it is, day after day; without `check_days` there is no such
        day. Raises Stopped, ServiceError."""
        every, today = self.run.config.check_days, int(self.run.now // DAY)
        if self.run.is_part or not self.run.is_locked:
            return
        for day in range(max(self.checked, today - every) + 1, today + 1):
            found = self.read(list(self.share(day % every, every)), self.run.must_end)
            # The next run judges what is missing since, as it reads the documents.
            self.settle([move for move in found if move.reason is not Reason.MISSING])
            # A copy that cannot be read keeps its turn.
            is_unread = any(move.reason.action is Action.FAILED for move in found)
            if is_unread or self.run.must_end():
                return
            self.checked = day

    def share(self, number: int, every: int) -> Iterator[Reread]:
        """Yields the moves that read one of so many shares."""
        for path, count in self.met.items():
            is_large = count > LARGE_FOLDER
            if not is_large and share_of(path, every) != number:
                continue
            with suppress(OSError):
                for take in self.library.folder_on_record(path).takes.values():
                    if share_of(take.stem if is_large else path, every) != number:
                        continue
                    if not take.originals:  # else a run adopts a copy without a record
                        take = find_our_copies(self.library, take, frozenset())
                    if take.copy and not (take.is_in_doubt or take.suspect):
                        yield reread(take, Recording(path, (take,)))

    def read(self, moves: Sequence[Reread], must_end: Callable[[], bool] = bool) -> list[Reread]:
        """Returns moves with what was found. Raises Stopped, ServiceError."""
        batches = [moves[at : at + BATCH_FILES] for at in range(0, len(moves), BATCH_FILES)]
        found: list[Reread] = []
        with Threads(self.run.workers) as pool:
            for batch in pool.map(self.read_batch, batches):
                found += batch
                self.report.progress(len(found), len(moves))
                if must_end():
                    break  # which cancels the batches that wait
        if self.run.transcoder.ended:
            raise self.run.transcoder.ended
        return found

    def read_batch(self, moves: Sequence[Reread]) -> list[Reread]:
        """Hashes copies, and decodes those with other bytes or without a hash on record: in a
        thread. Raises Stopped, ServiceError."""
        by_path = {self.library.path(move.path): move for move in moves}
        found: dict[str, Probe] = {}
        for path, move in by_path.items():
            past = move.take.past
            try:
                if self.library.leads_away(move.take.folder):  # nothing there is opened
                    raise system_error(errno.ELOOP, path)
                move.copy_seen = seen = self.library.witness(path, self.run.stop)
                move.copy = file = File(basename(path), *seen.identity[-2:])
                if seen.sha256 == past.sha256:
                    continue
                if past.sha256 and file.is_on_record(past.size, past.mtime_ns):
                    raise Refusal(Reason.ROTTEN)
                made = probe_file(path, self.run.tools)
                if past.seconds and abs(made.timeline - past.seconds) > LENGTH_TOLERANCE:
                    raise NotProven(f"{past.seconds:.2f} s", f"{made.timeline:.2f} s")
                found[path] = made
                # Without a hash on record, size and mtime decide.
                move.is_other = bool(past.sha256) or not move.take.proven_copy
            except (Refusal, OSError) as error:
                is_gone = getattr(error, "errno", 0) in NO_FILE and not isfile(path)
                move.refuse(Refusal(Reason.MISSING) if is_gone else error)
            except ValueError as error:  # this locale cannot encode its name
                move.refuse(OSError(str(error)))
        for path, problem in self.run.transcoder.decode(found).items():
            by_path[path].refuse(problem)
        for move in by_path.values():
            reason, detail, _ = move.result
            move.is_broken = reason in (Reason.EMPTY, Reason.TRUNCATED, Reason.DAMAGED)
            if reason is Reason.NOT_PROVEN or reason.action is Action.KEPT:
                detail = detail or reason.sentence.format("")
                move.outcome = Outcome(Reason.BAD_COPY, detail)
        return list(by_path.values())

    def settle(self, moves: Sequence[Reread], returned: Iterable[Reread] = ()) -> bool:
        """Puts on record what became of copies, and reports it. Returns whether anything was put on
        record. Raises ServiceError."""
        run, history = self.run, self.library.history
        if any(move.reason is Reason.BAD_COPY for move in moves):  # or ffmpeg is to blame
            try_ffmpeg(run.tools, Target(run.config.target_format, run.config.target_bitrate))
        is_news = any(each.is_other or (each.outcome and not each.take.past.lost) for each in moves)
        pasts = history.pasts if is_news else {}
        stems = {past.sha256: stem for stem, past in pasts.items()}
        for move in moves:
            twin = stems.get(move.copy_seen.sha256) if move.copy_seen else None
            if twin and move.take.past.has_copy and move.is_other and not move.outcome:
                move.outcome = Outcome(Reason.BAD_COPY, f"it has the bytes of {twin}")
        bad = [move for move in moves if move.outcome]
        bad = [move for move in bad if move.take.is_in_doubt or not move.take.originals]
        found = self.find_bytes(bad)  # one file is one copy
        places = {move.take.stem: found.pop(move.take.past.sha256, "") for move in bad}
        moving = self.moving(bad, places)
        filled = {stem_of(places[stem]) for stem in moving}
        gone = [move.take for move in bad if move.reason is Reason.MISSING]
        new = [take for take in gone if not (take.past.lost or places[take.stem])]
        known = sum(past.has_copy and not past.lost for past in pasts.values())
        is_most = known >= FEWEST and 2 * len(new) > known
        changed = [*returned]
        for move in moves:
            stem = move.take.stem
            if not move.outcome:
                self.sound(move)
            elif stem in moving:
                changed.append(self.moved(move, places[stem]))
                move.after = move.take.past if stem in filled else NO_PAST
            elif stem not in filled:  # else another record takes its place
                self.fate(move, places.get(stem, ""), is_most)
        # Behind those that were moved, as a kill may come in between.
        changed += [move for move in moves if move.after not in (None, move.take.past)]
        if run.is_locked and changed:  # after that: reported twice is better than never
            run.committer.attempt((), history.append, changed, run.now)
            run.committer.folders.update(move.take.folder for move in changed)
        forgotten = sum(move.past_after(0).lost == FORGOTTEN for move in changed)
        if forgotten:
            self.report.once(f"Forgotten, as no document names them any more: {forgotten}.")
        return run.is_locked and bool(changed)

    def sound(self, move: Reread) -> None:
        """Sets what the record of a copy says from now on. The copy plays in full."""
        past, file, seen = move.take.past, move.copy, move.copy_seen
        if not (file and seen) or (move.take.originals and not past.has_copy):
            return
        if move.take.originals and not move.take.proven_copy:  # a run adopts it
            move.after = past._replace(lost="")
            return
        move.after = past._replace(sha256=seen.sha256, lost="")
        if not move.take.originals:
            move.after = move.after._replace(
                suffix=file.suffix, size=file.size, mtime_ns=file.mtime_ns
            )
        if past.is_lost:
            self.news(f"{move.path} is back.")
        elif move.is_other:
            rate = provenance(self.library.path(move.path))
            move.after = move.after._replace(bitrate=rate or past.bitrate)
            if past.has_copy:
                self.news(
                    f"{move.path} is another file than the one on record. It decodes in full and "
                    "lasts as long, so it is recorded anew."
                )

    def moving(self, bad: Sequence[Reread], places: Mapping[str, str]) -> set[str]:
        """Returns the takes whose records move to the `places` of their bytes, all in one step:
        names may have been exchanged. While a sidecar names a copy, its record stays, unless
        another one takes its place."""
        named, free, aims = set[str](), set[str](), dict[str, str]()
        for move in bad:
            take, recording = move.take, move.recording
            stem, suffix = splitext(places[take.stem])
            if suffix in FORMAT_OF and take.past.has_copy and move.reason.action is Action.LOST:
                aims[take.stem] = stem
            is_named = recording.sidecars or recording.policy.unreadable
            if is_named and folded(stem) != folded(take.stem):
                named.add(take.stem)
            there = self.library.history.in_folder(dirname(stem)).get(stem)
            if there is None or there.lost == FORGOTTEN:
                free.add(stem)
        # One that cannot move takes no other place, and does not give up its own.
        comers = {aim: stem for stem, aim in aims.items()}
        moving, asked = set(aims), [*aims]
        while asked:
            stem = asked.pop()
            if stem in moving:
                is_free = aims[stem] in free or aims[stem] in moving
                is_filled = comers.get(stem) in moving
                if not is_free or (stem in named and not is_filled):
                    moving.remove(stem)
                    asked += [aims[stem], comers.get(stem, "")]
        return moving

    def moved(self, move: Reread, there: str) -> Reread:
        """Returns the move that puts the record of a copy where its bytes are."""
        self.news(f"{move.path} was moved to {there}. Its record moves too.")
        stem, suffix = splitext(there)
        new = reread(move.take._replace(stem=stem), move.recording)
        mtime_ns = file_at(self.library.path(there)).mtime_ns
        new.after = move.take.past._replace(suffix=suffix, mtime_ns=mtime_ns, lost="")
        return new

    def fate(self, move: Reread, there: str, is_most: bool) -> None:
        """Reports a copy that is not sound, and sets what its record says from now on. Its bytes
        may be `there`. `is_most` means that most copies are missing at once."""
        take, past, recording, reason = move.take, move.take.past, move.recording, move.reason
        is_gone = reason is Reason.MISSING
        if reason is Reason.CHANGED or (is_gone and recording.is_witnessed):
            self.report.missed += past.is_lost
            if past.is_lost and self.run.config.command == "check":
                self.report.error(f"{move.path} is on record as lost. {LOST_ADVICE}")
            return  # a link; or archived or deleted, by the word of its sidecar
        if take.suspect and self.run.config.command == "run" and not move.is_broken:
            return  # its own move says what it is
        is_rotten = move.is_broken or past.lost == Reason.ROTTEN.code
        is_ours = take.proven_copy or take.is_in_doubt or is_rotten
        if not (past.has_copy and is_ours) or reason.action is Action.FAILED:
            self.report.error(f"{move.path}: {move.told()['reason']}")
            return
        if take.originals and not take.is_in_doubt:
            self.report.once(f"{move.path} is damaged. A run makes it again from its original.")
            move.after = past._replace(lost=Reason.ROTTEN.code)
            return
        is_named = recording.sidecars or recording.policy.unreadable or self.is_in_index(take)
        stays = past.lost == Reason.VANISHED.code and not self.run.config.retry
        if is_gone and not (is_named or stays):
            if past.lost or not is_most:
                move.after = past._replace(lost=FORGOTTEN)
                return
            reason = Reason.VANISHED
        hint = f"its bytes are in {there}" if there else ""
        details = (move.result.detail, since_when(past), hint)
        move.outcome = Outcome(reason, "; ".join(filter(None, details)))
        if not (past.is_lost and is_gone):
            move.after = past._replace(lost=reason.code)
        if take.original:
            why = f"as the copy {move.path} is lost. Give the recording another name"
            self.report.once(f"{join(take.folder, take.original.name)} waits, {why}.")
        if past.is_lost and self.run.config.command != "check":
            self.report.missed += 1
        else:
            self.report.outcome(move)

    def news(self, text: str) -> None:
        self.report.has_news = True
        self.report.told_first = self.report.told_first or text
        self.report.once(text)

    def find_bytes(self, moves: Sequence[Reread]) -> dict[str, str]:
        """Returns the paths of files that may be copies from other places, by their SHA-256."""
        sizes = {move.take.past.size for move in moves}
        found = {}
        for folder in self.library.walk(str) if moves else ():
            for file in folder.audio:
                if file.size in sizes and folder.takes[stem_of(file.name)].proven_copy != file:
                    path = join(folder.path, file.name)
                    with suppress(OSError):
                        found[digest_of(self.library.path(path))] = path
        return found

    def is_in_index(self, take: Take) -> bool:
        """Returns whether the index has an id or a name of it, or is not understood."""
        words, own = self.index_words, {*take.past.ids, self.library.end_of(take.stem)}
        return words is None or not words.isdisjoint(own)

    @cached_property
    def index_words(self) -> Optional[set[str]]:
        """Returns the ids and the ends of names in the index, None if it is not understood."""
        try:
            document = JsonText(read_regular(self.library.path(INDEX_NAME)))
            ids = {id_ for _, id_, _ in entries(document)}
            names = document.names(document.root)
            return ids.union(self.library.end_of(stem_of(text)) for _, text, _ in names)
        except FileNotFoundError:
            return set()
        except (Flaw, OSError):
            return None


# ----------------------------------------------------------------------------------------- check
# The library against its records: every copy by its hash, every document derived anew and compared
# with what it says, every archived file. Changes nothing but the record of what is lost.

LEFT_ALONE = "Left alone, and may not say all that is true until you mend it: "
RUN_CORRECTS = "A run corrects that."
ARCHIVE_ADVICE = "Bring it back there from a backup, or remove it from sidecar and index."


def command_check(config: Config, report: Report) -> None:
    """`check`, also with `--archive`."""
    run, message = Run(config, report), ""
    report.open_log()
    run.library.require(config.log_file)
    with ExitStack() as stack:
        try:
            stack.enter_context(run.open(locks=isdir(run.library.own(""))))
        except ServiceError as error:
            report.once(f"What is lost cannot be put on record: {error}")
            stack.enter_context(run.open(locks=False))
        message = check_all(run)
        report.once(message)
    notify(config, report, report.summary(message))


def check_all(run: Run) -> str:
    """Reports all that is wrong. Returns how many of what. Raises Stopped, ServiceError."""
    report = run.report
    recordings: list[Recording] = []
    for folder in every_folder(run.library, report.error, report.once):
        recordings += run.recordings_in(folder)
    copies, away = [], []
    for recording in recordings:
        for take in recording.takes:
            is_away = take.past.place or recording.locations
            if take.copy or take.is_in_doubt or take.suspect:
                copies.append(reread(take, recording))
            elif is_away and not take.files and take.state is not State.DELETED:
                away.append((recording, take))
    run.losses.settle(run.losses.read(copies))
    lost, unread = report.counts[Action.LOST] + report.missed, report.errors
    check_documents(run, recordings)
    untrue = report.errors
    places = "not looked at"
    if check_places(run, away):
        places = f"{report.errors - untrue} wrong"
    report.exit_code = report.exit_code or int(lost > 0)
    documents = sum(len(recording.sidecars) for recording in recordings)
    verdict = "something is wrong" if report.exit_code else "all sound"
    return (
        f"Checked {len(copies)} copies: {lost} lost, {unread} unsound or not read; "
        f"{documents} documents: {untrue - unread} wrong; "
        f"{len(away)} archived files: {places}. In all: {verdict}."
    )


@contextmanager
def answering_for(run: Run, what: str) -> Iterator[None]:
    """Reports what is wrong with a thing. A thing that is not there is no error."""
    try:
        yield
    except FileNotFoundError:
        return
    except (Flaw, Refusal, ServiceError, OSError) as error:
        run.report.error(f"{what}: {explain(error)}")


def check_documents(run: Run, recordings: Sequence[Recording]) -> None:
    """Reports documents that do not say what their recordings are, and names of files that are
    neither here nor archived."""
    report = run.report
    for recording in recordings:
        is_left = any(take.state is not State.DELETED for take in recording.takes)
        for take in recording.takes:
            if take.state is State.MISSING and recording.sidecars and not recording.locations:
                report.error(
                    f"{take.stem} is named by a sidecar, and neither here nor archived. Bring it "
                    "back, or remove it from the sidecar."
                )
            elif take.state is State.DELETED and is_left:
                report.once(f"{take.stem} was {why_not_back(take, run.config)}.")
        if recording.policy.unreadable:
            report.error(recording.policy.unreadable)
        for path, edit in edits(run.library, recording, {}):
            with answering_for(run, path):
                if edit(read_regular(run.library.path(path))):
                    report.once(f"{path} does not say what its recording is. {RUN_CORRECTS}")
    index = Catalogue(recordings, {id_ for recording in recordings for id_ in recording.ids})
    with answering_for(run, LEFT_ALONE + INDEX_NAME):
        data = read_regular(run.library.path(INDEX_NAME))
        for what in index_differs(data, index.facts, index.meant):
            report.once(f"{INDEX_NAME} does not say {what}. {RUN_CORRECTS}")


def check_places(run: Run, away: Sequence[tuple[Recording, Take]]) -> bool:
    """Reports archived files that are not there, or are other files by their size or, with
    `--archive`, by their hash. One that neither a sidecar nor the index names was deleted by its
    owner. Returns whether it could look at them."""
    archive, report = run.archive, run.report
    if not away:
        return True
    if not archive:
        report.error(f"{len(away)} files are archived, and tiers name no archive. Name it there.")
        return False
    absent: dict[str, bool] = {}  # whether a document names it, by stem
    with answering_for(run, "archive"):
        archive.list_all()
        for recording, take in away:
            with answering_for(run, take.stem):
                place = take.past.place or lead(recording, take)
                there, size = archive.find(take.folder, place, recording.locations)
                is_named = bool(recording.sidecars) or run.losses.is_in_index(take)
                if size is None:
                    absent[take.stem] = is_named
                elif place.size not in (0, size):
                    about = f"has {size} bytes in the archive, {place.size} are on record"
                    report.error(f"{there} {about}. {ARCHIVE_ADVICE}")
                elif run.config.archive and place.sha256 not in ("", archive.digest(there)):
                    about = "in the archive is not the file that went there"
                    report.error(f"{there} {about}. {ARCHIVE_ADVICE}")
                elif not is_named:
                    report.once(f"{there} is in the archive, and no document names it.")
        if absent:  # perhaps it is the archive that is not there
            archive.answer()
        for stem, is_named in absent.items():
            if is_named:
                report.error(f"{stem} is not in the archive any more. {ARCHIVE_ADVICE}")
        return True
    return False


# --------------------------------------------------------------------------------------- history
# history.jsonl in our own folder: one object a line, appended and flushed, the last line of a take
# is its past. A line begins with its type and path, so that those of a folder are found without
# being parsed. Losing it loses no recording. Must never be read from, or written to, another
# library.

LINE = re.compile(rb'\{"type": "\w+", "path": "((?:[^"\\]|\\.)*/)?')  # greedy: up to the last /
BEGINNING = b'{"type": "'  # of a line of ours
NOTE = b'{"type": "folder"'  # begins such a line
IDS = re.compile(rb'"ids": (\[(?:"(?:[^"\\]|\\.)*"(?:, )?)*\])')
LONGEST_LINE = 1 << 22  # bytes; a disk may have filled a torn one with any number of zeros
RUNS_REMEMBERED = 30
LATEST = 1e11  # seconds since the epoch: what is later is no time
NO_NAMES = frozenset(("", ".", "..", OWN_FOLDER))  # in a path below the library
LOST = b'"lost": "'  # in the line of a take whose copy is lost or forgotten


class History:
    """The memory of one library, read folder by folder. Torn and odd lines are passed over."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.known: dict[str, dict[str, Past]] = {}  # by folder and stem
        self.lossy: set[Optional[bytes]] = set()  # folders with copies that are or were lost
        self.checksums: dict[Optional[bytes], int] = {}  # of its lines without notes, by folder

    @cached_property
    def lines(self) -> dict[Optional[bytes], list[int]]:
        """Returns where the lines of each folder begin, by its name in JSON; of runs by None."""
        lines: dict[Optional[bytes], list[int]] = {}
        offset = 0
        try:
            for line in self.each_line():
                if line.startswith(BEGINNING):
                    lines.setdefault(self.add_to_checksum(line), []).append(offset)
                offset += len(line)
        except OSError as error:
            raise ServiceError(f"The history cannot be read: {explain(error)}.") from None
        return lines

    def each_line(self) -> Iterator[bytes]:
        """Yields all lines, none without a history. Raises OSError."""
        with suppress(FileNotFoundError, NotADirectoryError), open_regular(self.path) as file:
            yield from iter(partial(file.readline, LONGEST_LINE), b"")

    def add_to_checksum(self, line: bytes) -> Optional[bytes]:
        """Returns the folder of a line, as `lines` names it."""
        match = LINE.match(line)
        folder = match[1] or b"" if match else None
        if LOST in line:
            self.lossy.add(folder)
        if not line.startswith(NOTE):
            self.checksums[folder] = zlib.crc32(line, self.checksums.get(folder, 0))
        return folder

    def checksum(self, folder: str) -> int:
        """Returns a checksum of all lines on takes of a folder: somebody may have edited them."""
        return self.checksums.get(as_json(folder), 0) if self.lines is not None else 0

    def read(self, offsets: Sequence[int]) -> Iterator[Mapping[str, Any]]:
        """Yields the objects in these lines, read as they are asked for. Raises OSError."""
        if not offsets:
            return
        with open_regular(self.path) as file:
            for offset in offsets:
                file.seek(offset)
                with suppress(ValueError, RecursionError):
                    record = json.loads(file.readline(LONGEST_LINE))
                    if isinstance(record, dict):
                        yield record

    def in_folder(self, folder: str) -> dict[str, Past]:
        """The pasts of its takes, by stem."""
        if folder not in self.known:
            self.known[folder] = self.read_folder(folder)
        return self.known[folder]

    def read_folder(self, folder: str) -> dict[str, Past]:
        pasts: dict[str, Past] = {}
        for record in self.read(self.lines.get(as_json(folder), ())):
            with suppress(*ODD):
                stem = record["take"]
                if stays_inside(stem):
                    remember(pasts, stem, Past.of(record["past"]))
        return pasts

    def each_past(self) -> Iterator[tuple[str, Past]]:
        """Yields all, by stem, and holds those of one folder at a time."""
        for folder in self.folders(self.lines):
            yield from (self.known.get(folder) or self.read_folder(folder)).items()

    @property
    def pasts(self) -> Mapping[str, Past]:
        """Returns all, by stem."""
        return dict(self.each_past())

    def folders(self, keys: Iterable[Optional[bytes]]) -> set[str]:
        """Returns the paths of folders, by their names in `lines`."""
        paths = {""}
        for key in filter(None, keys):
            with suppress(ValueError):
                path = json.loads(b'"%s"' % key[:-1])
                if stays_inside(path):
                    paths.add(path)
        return paths

    def folders_with(self, ids: set[str]) -> set[str]:
        """Returns the folders in which a recording has, or had, one of these ids. Reads lines and
        no pasts, as those of all take long to make."""
        keys = set[Optional[bytes]]()
        for line in self.each_line():
            found, folder = IDS.search(line), LINE.match(line)
            with suppress(ValueError):
                if found and folder and not ids.isdisjoint(json.loads(found[1])):
                    keys.add(folder[1])
        return self.folders(keys)

    def newest_runs(self) -> Iterator[Mapping[str, Any]]:
        """Yields the records of runs and restores, the newest first. Each has its `time`."""
        for record in self.read(self.lines.get(None, ())[::-1]):
            if 0 < finite(record.get("time")) < LATEST:
                yield record

    @cached_property
    def last_run(self) -> Mapping[str, Any]:
        """Returns the newest record of a run, or an empty one. Any number of others may follow."""
        runs = (record for record in self.newest_runs() if record.get("type") == "run")
        return next(runs, {})

    @property
    def runs(self) -> Sequence[Mapping[str, Any]]:
        """Returns the newest records of runs and restores, the oldest first."""
        return [*itertools.islice(self.newest_runs(), RUNS_REMEMBERED)][::-1]

    def note_on(self, folder: str) -> Mapping[str, Any]:
        """Returns the last note on a folder (`folder_note`), if nothing has become of its takes
        since."""
        last = next(self.read(self.lines.get(as_json(folder), ())[-1:]), {})
        return last if last.get("type") == "folder" else {}

    @property
    def path(self) -> str:
        return self.library.own("history.jsonl")

    def append(self, moves: Sequence[Move], now: float) -> None:
        """Appends a line for each outcome, with the whole past of its take; flushed together. `now`
        is that of the commit, from which its documents' dates were derived too. Raises OSError:
        originals then stay."""
        records = []
        pasts = []
        for move in moves:
            past = move.past_after(now)
            about = {"take": move.take.stem, "date": iso(now), "past": past.record()}
            records.append({**move.told(), **about})
            pasts.append((move.take, past))
        self.write(records)
        for take, past in pasts:
            remember(self.in_folder(take.folder), take.stem, past)

    def note(self, records: Iterable[Mapping[str, Any]], now: float) -> None:
        """Lines of other types: `run` (the summary, and as `index` the index's size and mtime_ns)
        or `folder` (`folder_note`). Failing loses a convenience, so it raises nothing."""
        when = {"date": iso(now), "time": now}
        with suppress(OSError):
            self.write([{**record, **when} for record in records])  # their type and path first

    def write(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Append lines, flushed together. Raises OSError."""
        if not records:
            return
        lines = [f"{json.dumps(record)}\n".encode("ascii") for record in records]
        text = b"".join(lines)
        descriptor = self.library.open_own("history.jsonl", os.O_RDWR | os.O_APPEND)
        with open(descriptor, "r+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                text = b"\n" + text  # a line torn by a crash must not swallow ours
            while text:  # a nearly full disk takes a part; the rest then raises
                text = text[file.write(text) :]
            flush(descriptor)
        for line in lines:
            self.add_to_checksum(line)


def remember(pasts: dict[str, Past], stem: str, past: Past) -> None:
    """Notes the past of a take. One whose record was moved has none any more."""
    if past == NO_PAST:
        pasts.pop(stem, None)
    else:
        pasts[stem] = past


def stays_inside(path: str) -> bool:
    """Returns whether a path found in the history can only name something below the library."""
    return "\0" not in path and NO_NAMES.isdisjoint(path.split("/"))


def as_json(folder: str) -> bytes:
    """How its takes' paths begin in the history."""
    return json.dumps(join(folder, ""))[1:-1].encode("ascii")


# ------------------------------------------------------------------------------------ statistics
# Adds up one walk and the history, or the sums that the notes on folders carry; asks next_move what
# is due. Reads no sidecar and no audio, and writes nothing but the page it was asked for. Lists
# what is wrong for doctor, terminal and page alike. Serves this machine alone by default.

USUAL_RATE = 8 * BYTES_PER_SECOND  # bit/s, of a recording whose own nobody has measured
NAMED = 50  # recordings that a table names; --json has all
LISTED = 10  # runs, likewise
LATE = 2 * DAY  # since the last run, after which a schedule is taken to have failed
# What is added up, by `group/name`. `made` and `due/asked` serve the saving to expect: bytes, times
# the bit/s that their copies were or will be asked for.
SUMMED_UP = (
    "all/original_size all/compressed_size all/recordings all/originals all/compressed all/young "
    "all/unrecorded due/count due/size due/asked archived/count archived/size deleted/count "
    "deleted/size was/before was/after made/size made/asked"
)
GROUPS = ("due", "due_by_move", "archived", "deleted", "recorded_by_month", "savings_by_month")
SENTENCES = {reason.code: reason.sentence.replace("{}", "").rstrip(": ") for reason in Reason}
SENTENCES[DELETING] = "its deletion is not finished"


def storage_stats(recordings_dir: str) -> dict[str, Any]:
    """Returns the size of a library and what compression saved: the object of `stats --json`, as
    README.md describes it. May be called from any thread. Raises ValueError where library, config
    file or history cannot be used, OSError where they cannot be read."""
    try:
        path = os.fspath(recordings_dir)
        path = path and join(dirname(realpath(__file__)), path)
        words = ["stats", f"--recordings={path}"]
        return gather_stats(resolve_config(parse_words(words)))
    except ServiceError as error:
        raise ValueError(str(error)) from None


def gather_stats(config: Config) -> dict[str, Any]:
    """Returns the object of `stats --json`; sizes in bytes. Raises OSError, ServiceError."""
    run, problems = Run(config, Report(config)), list[str]()
    library = run.library
    library.require(config.log_file)
    groups = add_up(run, problems)
    for stem, past in losses(library).items():
        key = f"{Action.LOST.value} {past.lost}"
        groups["named"].setdefault(key, []).append(stem + past.suffix)
    totals, due, was, made = (groups[name] for name in ("all", "due", "was", "made"))
    share = made["size"] / made["asked"] if made["asked"] else 1 / USUAL_RATE
    due["estimated_saving"] = max(0, round(due["size"] - due.pop("asked") * share))
    room = free_space(library)
    stats = {
        "total_size": totals["original_size"] + totals["compressed_size"],
        **totals,
        "savings": was["before"] - was["after"],
        "compression_ratio": round(was["after"] / was["before"], 4) if was["before"] else None,
        "free_space": room if room < math.inf else None,
        "keep_free": space_wanted(library, config) if config.keep_free else None,
        "paused": library.paused(run.now) != "",
        **{name: groups[name] for name in GROUPS},
        "kept": [reason_with(key, paths) for key, paths in groups["named"].items()],
        "next_deletions": next_deletions(groups, run.now),
        "runs": run.history.runs,
        "at_work": library.at_work(),
        "problems": problems,
    }
    stats["findings"] = [{"text": text, "code": code} for text, code in findings(run, stats)]
    return stats


def add_up(run: Run, problems: list[str]) -> dict[str, dict[str, Any]]:
    """Returns the sums of all folders, by group. A folder that was removed still counts what is
    archived. The note on a folder has its sums while it holds."""
    sums: dict[str, Any] = dict.fromkeys(SUMMED_UP.split(), 0)
    for folder in every_folder(run.library, problems.append):
        note = run.note_on(folder)
        counted = note.get("sums", {})
        if note.get("seal") != seal(counted):
            counted = count_folder(folder, run.config, run.clock)
        for key, value in counted.items():
            sums.setdefault(key, type(value)())
            sums[key] += value
    groups: dict[str, dict[str, Any]] = defaultdict(dict)
    for key, value in sorted(sums.items()):
        group, _, name = key.partition("/")
        groups[group][name] = value
    return groups


def seal(sums: Any) -> int:
    """Returns a checksum, so that sums of another version, or odd ones, are not believed."""
    return zlib.crc32(json.dumps([SUMMED_UP, sums]).encode())


def count_folder(folder: Folder, config: Config, moment: Moment) -> dict[str, Any]:
    """Returns the sums of a folder from its files and pasts. A list has the paths of what was kept
    or failed, by action and code."""
    sums, names = Counter[str](), defaultdict[str, list[str]](list)
    for take in folder.takes.values():
        past, file = take.past, take.file
        if take.files:  # as a run asks, but without sidecars, which may still say otherwise
            add_take(sums, take, likely_move(take, config, moment))
        due = deletion_time(take, config)
        # Without a document no sidecar owns it. It counts where only documents keep it.
        if take.is_left and due < LATEST and folder.documents and not past.is_kept:
            day = datetime.fromtimestamp(due).date().isoformat()
            sums.update({f"doomed_count/{day}": 1, f"doomed_size/{day}": take.size})
        if file and past.action in (Action.KEPT, Action.FAILED) and past.speaks_of(file):
            action = Action(past.action).value  # of a run that has just ended, it is a member
            names[f"named/{action} {past.code}"].append(join(folder.path, file.name))
            sums.update({"made/size": file.size, "made/asked": file.size * config.target_bitrate})
        group, size = "archived", past.place.size if past.place else 0
        if past.deleted:
            group, (_, size) = "deleted", past.stood
        if past.place or past.deleted:
            sums.update({f"{group}/count": 1, f"{group}/size": size})
            add_saving(sums, past, size)
    return {**sums, **names}


def next_deletions(groups: Mapping[str, Any], now: float) -> list[dict[str, Any]]:
    """Returns the days on which a tier deletes next. What should be gone is due today. Documents
    have not been read, so some of it may stay."""
    days, today = defaultdict[str, Counter[str]](Counter), local_time(now)[:10]
    for group in ("count", "size"):
        for day, value in groups[f"doomed_{group}"].items():
            days[max(day, today)][group] += value
    return [{"date": day, **days[day]} for day in sorted(days)[:LISTED]]


def deletion_texts(run: Run, days: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns what is deleted next, in words."""
    text = "Next to be deleted for good: at most {count:,} ({}) on {date}"
    texts = [text.format(size_text(day["size"]), **day) for day in days[:1]]
    if not run.is_announced:
        texts.append("The first complete run only announces what is deleted")
    return texts


def add_take(sums: Counter[str], take: Take, move: Optional[Move]) -> None:
    """Adds the files of a take, and what is due for it."""
    past, copy, source = take.past, take.proven_copy, move and move.source
    originals = [file.size for file in take.files if file.is_original]
    copies = [file.size for file in take.files if not file.is_original]
    sums.update(
        {
            "all/recordings": max(1, len(originals)),
            "all/originals": len(originals),
            "all/original_size": sum(originals),
            "all/compressed": len(copies),
            "all/compressed_size": sum(copies),
            "all/unrecorded": len(copies) - bool(copy or past.is_lost),
        }
    )
    if copy and not originals:
        add_saving(sums, past, copy.size)
    else:  # a copy saves nothing while its original is here
        add_saving(sums, Past(mtime_ns=take.files[0].mtime_ns), sum(originals or copies))
    if copy and past.first_size:
        sums.update({"made/size": copy.size, "made/asked": past.first_size * past.bitrate})
    if move:
        sums.update({"due/count": 1, f"due_by_move/{move.name}": 1})
    elif take.original and take.state is State.WAITING:
        sums["all/young"] += 1
    if move and source and move.encodes:
        asked = (source.size if take.original else past.first_size) * move.target.bitrate
        sums.update({"due/size": source.size, "due/asked": asked})


def add_saving(sums: Counter[str], past: Past, size: int) -> None:
    """Adds a recording of `size` bytes now. Without a copy in its past, nothing was saved."""
    before = past.first_size or size
    sums[f"recorded_by_month/{local_time(past.mtime_ns // 10**9)[:7]}"] += before
    if past.size:
        sums[f"savings_by_month/{local_time(past.compressed)[:7]}"] += before - size
        sums.update({"was/before": before, "was/after": size})


def reason_with(key: str, paths: Sequence[str]) -> dict[str, Any]:
    """Returns an object on what was kept or failed for one reason, by action and code."""
    action, code = key.split(" ", 1)
    return {
        "action": action,
        "code": code,
        "reason": SENTENCES.get(code, code),
        "count": len(paths),
        "paths": sorted(paths),
    }


def findings(run: Run, stats: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Yields the sentences that doctor, terminal and page say first. With each stands the exit code
    that doctor gives it, 0 if nothing is wrong."""
    yield from obstacles(run)
    failed = sum(each["count"] for each in stats["kept"] if each["action"] == Action.FAILED)
    if failed:
        yield f"{failed:,} failed and stayed as they were; 'stats' names them.", 1
    for problem in stats["problems"]:
        yield problem, 1
    if run.shortage > 0:
        room, wanted = size_text(stats["free_space"]), size_text(stats["keep_free"])
        yield f"{room} free, keep_free asks for {wanted}.", 0
        size = disk_size(run.library)
        if 0 < size < stats["keep_free"]:
            yield f"No run can reach that: the disk has {size_text(size)} in all.", 1
    for text in deletion_texts(run, stats["next_deletions"]):
        yield f"{text}.", 0
    if not (stats["recordings"] or run.last):
        yield f"No recordings (*{SOURCE_SUFFIX}) below {run.library.root}.", 0
    if run.last:
        when, said = run.last["time"], run.last.get("message")
        yield f"Last run {local_time(when)}: {said}", int(bool(run.last.get("exit_code")))
        if run.now - when > LATE and not stats["paused"]:
            ago = duration_text(run.now - when)
            yield f"The last run is {ago} ago. Is the schedule at work?", 1
        python = str(run.last.get("python") or "/")
        if not lexists(python):
            yield f"Its {python} is gone: print the schedule anew.", 1
    else:
        yield f"No run yet; '{PROGRAM} schedule cron' prints what makes one every night.", 0
    room = stats["free_space"]
    free = "" if room is None else f", {size_text(room)} free"
    yield f"{saved_percent(stats)} % saved{free}.", 0


def library_of(config: Config) -> Library:
    """The library, which must be there. Raises UsageError."""
    library = Library(config.recordings_dir)
    library.require(config.log_file)
    return library


def local_time(seconds: float) -> str:
    """YYYY-MM-DD HH:MM of a time since the epoch, which may be one that no calendar has."""
    return f"{datetime.fromtimestamp(min(max(0, seconds), LATEST)):%Y-%m-%d %H:%M}"


def verdict(stats: Mapping[str, Any]) -> tuple[str, bool]:
    """Returns the state of a library in some sentences, and whether something is wrong."""
    wrong = [each["text"] for each in stats["findings"] if each["code"]]
    calm = [each["text"] for each in stats["findings"] if not each["code"]]
    return " ".join([*(wrong or ["All well."]), *calm]), wrong != []


def saved_percent(stats: Mapping[str, Any]) -> Any:
    """Returns the share that was saved of what the recordings would take."""
    saved: int = stats["savings"]
    now: int = stats["total_size"] + stats["archived"]["size"] + stats["deleted"]["size"]
    return round(100 * saved / max(1, saved + now))


NEXT = {  # what is due, by move; deletions are listed by day
    "compress": "to compress",
    "adopt": "copies to prove again",
    "smaller": "copies to make smaller",
    "free": "originals to delete, as their days are over",
    "archive": "to archive",
    "restore": "to bring back, as a restore was cut short",
}
Rows = list[tuple[str, str]]


def storage_rows(stats: Mapping[str, Any]) -> Rows:
    """Returns sizes with counts, without what is nothing."""
    archived, deleted = stats["archived"], stats["deleted"]
    rows = [
        ("originals still here", f"{size_text(stats['original_size'])} ({stats['originals']:,})"),
        ("copies", f"{size_text(stats['compressed_size'])} ({stats['compressed']:,})"),
        ("saved", f"{size_text(stats['savings'])} ({saved_percent(stats)} %)"),
        ("archived", f"{size_text(archived['size'])} ({archived['count']:,})"),
        ("deleted", f"{size_text(deleted['size'])} ({deleted['count']:,})"),
        ("not old enough yet", f"{stats['young']:,}"),
        ("copies without a record", f"{stats['unrecorded']:,}"),
    ]
    return [row for row in rows if not row[1].startswith("0")]


def stats_tables(stats: Mapping[str, Any]) -> dict[str, Rows]:
    """Returns the rows that terminal and page show, by title."""
    due, recorded, saved = stats["due"], stats["recorded_by_month"], stats["savings_by_month"]
    counts, days = stats["due_by_move"].items(), stats["next_deletions"]
    to_do = [(NEXT[move], f"{count:,}") for move, count in counts if move in NEXT]
    if due["size"]:
        saving = size_text(due["estimated_saving"])
        to_do.append(("to encode", f"{size_text(due['size'])}, saves about {saving}"))
    kept = [(f"{each['action']}: {each['reason']}", each["paths"]) for each in stats["kept"]]
    named = [(path, text) for text, paths in kept for path in paths]
    if len(named) > NAMED:
        named[NAMED:] = [(f"and {len(named) - NAMED:,} more", "--json has all")]
    runs = [(local_time(run["time"]), str(run.get("message"))) for run in stats["runs"]]
    tables = {
        "storage": storage_rows(stats),
        "at work now": [(stats["at_work"], "")] if stats["at_work"] else [],
        "next run": to_do,
        "next to be deleted for good, at most": [
            (day["date"], f"{day['count']:,} ({size_text(day['size'])})") for day in days
        ],
        "failed or kept": [(f"{len(paths):,}", text) for text, paths in kept],
        "last runs": [*reversed(runs[-LISTED:])],
        "failed or kept, by name": named,
        "by month": [
            (
                month,
                f"{size_text(recorded.get(month, 0))} recorded, "
                f"{size_text(saved.get(month, 0))} saved",
            )
            for month in sorted({*recorded, *saved})
        ],
    }
    return {title: rows for title, rows in tables.items() if rows}


def stats_lines(stats: Mapping[str, Any]) -> Iterator[str]:
    """Yields lines for a terminal of 80 columns."""
    yield from textwrap.wrap(printable(verdict(stats)[0]), 80, break_on_hyphens=False)
    tables = stats_tables(stats)
    storage = tables.pop("storage", [])
    if storage:
        yield " \u00b7 ".join(map(" ".join, storage))
    for title, rows in tables.items():
        yield f"{title}:"
        width = min(44, max(len(label) for label, _ in rows))
        for label, text in rows:
            row = f"  {printable(label):<{width}}  {printable(text)}"
            yield from textwrap.wrap(row, 80, subsequent_indent=" " * (width + 4))


STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#5b6570;--paper:#f6f7f9;--card:#fff;
--line:#dfe3e8;--with:#1769c2;--without:#b9c4d0;--well:#e3f3e6;--wrong:#b3261e}
@media(prefers-color-scheme:dark){:root{--ink:#e8ebef;--soft:#a3adb8;--paper:#111418;
--card:#1b2027;--line:#323943;--with:#62a8f5;--without:#46515d;--well:#1d3325;--wrong:#b3261e}}
body{margin:0 auto;max-width:60rem;padding:1rem;font:1rem/1.45 system-ui,sans-serif;
color:var(--ink);background:var(--paper)}
h1{font-size:1.4rem}h2:first-letter{text-transform:uppercase}
h2{font-size:1.05rem;margin:0 0 .6rem}
p{margin:.3rem 0;color:var(--soft)}
.verdict{margin:0 0 1rem;padding:.8rem 1rem;border-radius:.6rem;color:var(--ink);
background:var(--well);overflow-wrap:anywhere}
.wrong{color:#fff;background:var(--wrong)}
section{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:1rem;
margin:0 0 1rem}
table{width:100%;border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{text-align:left;vertical-align:top;padding:.3rem .8rem .3rem 0;overflow-wrap:break-word}
th{font-weight:normal;color:var(--soft)}td:last-child{padding-right:0}
.runs th,.storage td,.month *{white-space:nowrap}.runs th{width:9.5rem}
.storage td,.next td,.month td{text-align:right}.next th{width:45%}
.kept th{width:1%;text-align:right}
.name th,.name td{width:auto;text-align:left;white-space:normal;overflow-wrap:anywhere}
tr+tr>*{border-top:1px solid var(--line)}
@media(max-width:40rem){.runs,.month{font-size:.85rem}.runs{table-layout:fixed}
.runs th{width:7.6rem}
.runs td{white-space:nowrap;overflow:hidden;text-overflow:ellipsis}
.name th,.name td{display:block;padding-right:0}.name td{border:0;padding-top:0}}
.chart{display:grid;grid-template-columns:auto 1fr;gap:.3rem .5rem;margin:0;color:var(--soft);
font-size:.8rem;fill:currentColor}
.scale{display:flex;flex-direction:column;justify-content:space-between;text-align:right}
.scale span{line-height:0}
svg{display:block;width:100%;height:12rem}.months{overflow:visible;height:1.1rem;grid-column:2}
.plot{border-bottom:1px solid var(--soft);border-top:1px solid var(--line)}
.hit{fill:transparent}g:hover .hit{fill:var(--line)}
.without{fill:var(--without)}.with{fill:var(--with)}
.key{display:inline-block;width:.8em;height:.8em;margin:0 .3em 0 1em}
.key.with{margin-left:0;background:var(--with)}.key.without{background:var(--without)}
"""
MONTH_LABELS = 3  # as many as a telephone has room for


def stats_page(stats: Mapping[str, Any]) -> str:
    """Returns a page that is complete in itself, without a script. The numbers of its picture stand
    in its tables."""
    sections = ""
    for title, rows in stats_tables(stats).items():
        lines = (f'<tr><th scope="row">{shown(a)}<td>{shown(b)}' for a, b in rows)
        table = f'<table class="{title}">{"".join(lines)}</table>'
        sections += f"<section><h2>{title}</h2>{table}</section>\n"
    text, is_wrong = verdict(stats)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>Storage of the recordings</title><style>{STYLE}</style></head><body>
<h1>Storage of the recordings</h1>
<p class="verdict {"wrong" if is_wrong else "well"}" role="status">{shown(text)}</p>
<section><h2>All that was recorded, over time</h2>{size_chart(stats)}</section>
{sections}<p>As of {local_time(time.time())}.</p></body></html>
"""


def shown(text: str) -> str:
    return html.escape(printable(text))


def size_chart(stats: Mapping[str, Any]) -> str:
    """Returns a chart of the size of all recordings by month, with a title for each month. One
    counts from the month it was recorded in, its saving from the month it was compressed in. It
    still counts when it was archived or deleted."""
    recorded, saved = stats["recorded_by_month"], stats["savings_by_month"]
    months = sorted({*recorded, *saved})
    if not months:
        return "<p>No recordings yet.</p>"
    count, size, less, columns, labels = len(months), 0, 0, "", ""
    top = max(1, sum(recorded.values()))
    for x, month in enumerate(months):
        size += recorded.get(month, 0)
        less += saved.get(month, 0)
        words = f"{month}: {size_text(size - less)} with compression, {size_text(size)} without"
        without, used = 100 * size / top, 100 * (size - less) / top
        columns += f"""<g role="img"><title>{words}</title>
<rect class="hit" x="{x}" width="1" height="100"/>
<rect class="without" x="{x}.1" y="{100 - without:.2f}" width=".8" height="100"/>
<rect class="with" x="{x}.1" y="{100 - used:.2f}" width=".8" height="100"/></g>"""
        if (count - 1 - x) % math.ceil(count / MONTH_LABELS) == 0:
            middle = 100 * (x + 0.5) / count
            labels += f'<text x="{middle:.2f}%" y="1em" text-anchor="middle">{month}</text>'
    return f"""<figure class="chart"><div class="scale"><span>{size_text(top)}</span>
<span>{size_text(top / 2)}</span><span>0</span></div><svg class="plot" viewBox="0 0 {count} 100"
preserveAspectRatio="none" role="group" aria-label="Until {words}.">{columns}</svg>
<svg class="months" aria-hidden="true">{labels}</svg></figure>
<p><i class="key with"></i>with compression<i class="key without"></i>without</p>
<p>Until {words}. What was archived or deleted counts too.</p>
"""


def command_stats(config: Config, report: Report) -> None:
    if config.html and config.json:
        raise UsageError("Either --json or --html.")
    stats = gather_stats(config)
    report.write_json(stats)
    if config.html:
        Path(config.html).write_text(stats_page(stats), "utf-8")
        report.say(f"Written: {config.html}")
    elif not config.json:
        for line in stats_lines(stats):
            report.say(line)
    for problem in stats["problems"]:
        report.error(problem)


API_PATH = "/api/storage-stats"
PATIENCE = 10.0  # seconds for a client to send its request or take the answer
HEADERS = {
    # Its own style and nothing else: whatever a name on the page holds, nothing can run or load.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Refresh": "60",
}
SERVING = threading.Lock()  # one walk at a time: a storm of reloads must not fill the memory
PAGES: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "/": ("text/html", stats_page),
    API_PATH: ("application/json", json.dumps),
}


def command_serve(config: Config, report: Report) -> None:
    library_of(config)
    import http.server  # noqa: PLC0415 - 20 ms, which no nightly run needs

    # An address cannot be made to point elsewhere, a page's server's name can (DNS rebinding).
    own = rf"(?i)(localhost|{re.escape(config.host)}|(\d+\.){{3}}\d+|\[[\da-f:.]+\])(:\d+)?"

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = PATIENCE

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if not re.fullmatch(own, self.headers.get("Host", "")):
                self.send_error(403, explain="Ask by an address, or start it with --host")
            elif path not in PAGES:
                self.send_error(404, explain=f"There is / and {API_PATH}")
            else:
                self.send_page(*PAGES[path])

        do_HEAD = do_GET

        def send_page(self, kind: str, show: Callable[[Any], str]) -> None:
            try:
                with SERVING:
                    body = show(gather_stats(config)).encode()
            except (OSError, ServiceError) as error:
                self.send_error(503, explain=explain(error))
                return
            self.send_response(200)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            for name, value in HEADERS.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Logs nothing: requests are private."""

    class Server(http.server.ThreadingHTTPServer):
        timeout = 0.5  # seconds between looks at the signals

        def handle_error(self, *_: Any) -> None:
            """A client that went away."""

    try:
        listening = Server((config.host, config.port), Handler)
    except (OSError, UnicodeError) as error:
        where = f"{config.host}, port {config.port}"
        raise ServiceError(f"Cannot listen on {where}: {error}. See --host, --port.") from None
    with stop_signals() as stop, listening:
        report.say(f"Statistics at http://{config.host}:{listening.server_port}/")
        while not stop.requested:
            listening.handle_request()
    report.exit_code = 128 + stop.signal


# ----------------------------------------------------------------------------------------- tools
# The one place that starts a process: ffmpeg, rclone, the user's notify_command. Each gets a
# process group, low priority and a deadline in proportion to its work. It is killed when we stop.

GRACE = 30.0  # seconds a tool may take beside its work: start-up, a disk that must spin up
PACE = 1.0  # seconds allowed for a second of audio; ffmpeg needs 0.02
NICENESS = 10  # of every tool: a server that transcribes beside us comes first
MOST_MESSAGES = 1 << 20  # bytes; after these a tool is stopped, as its input cannot be sound
MOST_OUTPUT = 256 << 20  # bytes; after these a tool is stopped, as no list of ours is so long
# cron and launchd give a PATH of two folders; these are where package managers put ffmpeg.
TOOL_PATH = (
    "/opt/homebrew/bin:/usr/local/bin:/opt/local/bin:/usr/bin:/bin:/snap/bin"
    ":/home/linuxbrew/.linuxbrew/bin"
)
# Lines that ffmpeg itself has tagged. Those of a wrapper or of the dynamic linker say nothing about
# a recording.
TAGGED = re.compile(rb"^(?:\[[^\]\n]*\] )*\[(?:warning|error|fatal|panic)\] .*", re.MULTILINE)
# Messages about sound files, one pattern a line: every WAV without a channel mask; a staged file
# without .m4a; the trial by ffmpeg 4; a tag that M4A cannot hold; ffmpeg 9 behind the cause itself;
# AAC below 16 kHz; ffmpeg 9 about a gap in Ogg, whose stamps we ignore; a gap, which is one long
# frame; a decoder that waits for the encoder behind the pipe. All others are about files that end
# oddly or that fix-webm-duration mended: every byte is accounted for, and the sound is compared.
SAID_OF_SOUND_FILES = re.compile(
    rb"""
Guessed Channel Layout
Estimating duration from bitrate
extension is not .m4a nor .m4v
EOF timestamp not reliable
malformed location metadata
Task finished with error code
Too many bits \S+ > \d+ per frame requested
timestamp discontinuity
\d+ buffers queued in
Thread message queue blocking
Ignoring maximum wav data size
Packet corrupt
corrupt input packet
Packet processing failed
Error during demuxing
\[error\] file:.*: Invalid data found when processing input
Unknown-sized element at \S+ inside parent with finite size
File extends beyond end of segment
Read error at pos\.
Invalid EBML number size tag
an EBML number's first byte
invalid as first byte of an EBML number
""".strip().replace(b"\n", b"|")
)

# The words that ffmpeg puts before a message.
EMBELLISHMENT = re.compile(
    r" @ 0x[0-9a-f]+(?=\])|\[(?:info|warning|error|fatal|panic)\] "
    r"|Error (?:while decoding stream \S+|submitting packet to decoder:) "
)
# Exit codes of an ffmpeg that gave up a content by itself. Before 6.1 it is 1. Later it is the low
# byte of its error: EINVAL 234, ERANGE 222, EDOM 223, ENOSYS 218, invalid data 183. It is 176 for
# not implemented, 171 for unknown, 187 for the end of the file, and 69 after too many errors.
# Measured with 4.1, 5.1 and 9.
CONTENT_CODES = frozenset((1, 69, 171, 176, 183, 187, 218, 222, 223, 234))
CRASHES = frozenset(
    (signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGFPE, signal.SIGBUS, signal.SIGTRAP)
)
# Errors of the system that ffmpeg also reports for a content (its -1 reads as EPERM).
OF_CONTENT = (errno.EPERM, errno.EINVAL, errno.EDOM, errno.ERANGE, errno.ENOSYS)
OF_THE_SYSTEM = "|".join(
    re.escape(os.strerror(code)) for code in errno.errorcode if code not in OF_CONTENT
)
# Messages about the machine, with any exit code. They say nothing about a recording.
FAULTS_OF_THE_MACHINE = {
    # rclone writes it small, and looks at the space of a disk first.
    Reason.NO_SPACE: rb"[Nn]o space left on device|[Dd]isk quota exceeded"
    rb"|file too big for remaining disk space",
    Reason.INPUT_OUTPUT: rb"Input/output error|Stale file handle"
    rb"|Transport endpoint is not connected|Read-only file system",
    Reason.TOOL_KILLED: rb"std::bad_alloc|[Oo]ut of memory|failed to map segment"
    rb"|(?m:(?:^|[:\]] )(?:%b)\.?$)" % OF_THE_SYSTEM.encode(),
}


@dataclass
class Stop:
    """The flag that a signal sets. Everything that may take long looks at it."""

    signal: int = 0
    is_over: bool = False  # an error ended the run: work that is not finished is dropped

    @property
    def requested(self) -> bool:
        return self.signal != 0 or self.is_over


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Lets SIGHUP, SIGINT and SIGTERM only set a flag meanwhile, so that they never come at a bad
    moment. A signal that was ignored when we were started (nohup) stays ignored."""
    stop, before = Stop(), {}

    def note(number: int, _: object) -> None:
        stop.signal = stop.signal or number

    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            # After a stop we are ending already: pressing it again changes nothing.
            signal.signal(number, signal.SIG_IGN if stop.signal else handler)


class Tools:
    """Finds and runs ffmpeg and other programs, on PATH and where package managers put them."""

    def __init__(self, stop: Stop) -> None:
        self.stop = stop

    @cached_property
    def ffmpeg(self) -> str:
        """Returns the absolute path of the first that has our encoders, or else of the last.
        Raises ToolError."""
        *others, last = self.find("ffmpeg")
        for path in others:
            if self.has_encoders(path):
                return path
        return last

    def has_encoders(self, ffmpeg: str) -> bool:
        """Returns whether it lists our encoders, or lists nothing at all: then it is tried."""
        listed = ""
        with suppress(Refusal, ToolError):
            listed, _ = self.run([ffmpeg, *QUIET, "-encoders"], 0)
        return not listed or all(form.encoder in listed for form in FORMATS.values())

    def find(self, name: str) -> list[str]:
        """Returns absolute paths, the first on PATH first. Raises ToolError with how to install
        the program."""
        named = filter(None, (*os.get_exec_path(), *TOOL_PATH.split(":")))
        folders = dict.fromkeys(map(realpath, named))
        found = list(filter(None, (shutil.which(name, path=folder) for folder in folders)))
        if not found:
            places = ", ".join(folders)
            raise ToolError(
                f"{name} is not installed: it is in none of {places}. {INSTALL.format(name=name)}"
            )
        return found

    def run(
        self,
        command: Sequence[str],
        seconds: float,
        folder: str = "/",
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.PIPE,
        *,
        take: Optional[Callable[[bytes], object]] = None,
    ) -> tuple[str, str]:
        """Runs a command that works on `seconds` of audio, in a folder. Returns its output and
        ffmpeg's warnings and errors. `take` gets the output instead, part by part. Raises Refusal
        (failed, hung, complains without end, no space), Stopped, ToolError."""
        with self.started(command, stdin, stdout, folder) as process:
            output, messages = self.hear(process, seconds, take)
        return output.decode("utf-8", "replace"), judge([process], messages)

    def pipe(
        self, commands: Sequence[Sequence[str]], seconds: float, copy: str
    ) -> tuple[str, bytes]:
        """Runs three commands at once. The second reads the output of the first. The third, and
        the staged file `copy`, get the output of the second. Returns the SHA-256 of that, and the
        output of the third. Raises as `run` does, and Refusal for any message."""
        with ExitStack() as ended:
            # It stands first, so that it waits last for its threads, which end with the processes.
            pool = ended.enter_context(Threads(4))
            verify = ended.enter_context(self.started(commands[2], subprocess.PIPE))
            encode = ended.enter_context(self.started(commands[1], subprocess.PIPE))
            first = self.started(commands[0], stdout=encode.stdin)
            processes = (ended.enter_context(first), encode, verify)
            assert encode.stdin
            encode.stdin.close()
            digest = pool.submit(copy_through, encode.stdout, verify.stdin, open_to_write(copy))
            encode.stdin = encode.stdout = verify.stdin = None  # so that `hear` leaves them alone
            heard = list(pool.map(self.hear, processes, itertools.repeat(seconds)))
            for process, (_, said) in zip(processes, heard):
                # One that fails breaks the pipe of those before it, and starves those behind.
                if process.returncode and b"Broken pipe" not in said:
                    judge([process], said)
            messages = judge(processes, b"\n".join(said for _, said in heard))
            if messages:
                raise damaged(messages)
            return digest.result(), heard[-1][0]

    @contextmanager
    def started(
        self,
        command: Sequence[str],
        stdin: int = subprocess.DEVNULL,
        stdout: Any = subprocess.PIPE,
        folder: str = "/",
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Starts a process. At the end it and its children are killed. Raises ToolError."""
        try:
            process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=stdout,
                stderr=subprocess.PIPE,
                start_new_session=True,
                preexec_fn=end_with_us,  # noqa: PLW1509, as it takes no lock and imports nothing
                cwd=folder,
                env={**os.environ, "LC_ALL": "C", "AV_LOG_FORCE_NOCOLOR": "1"},
            )
        except OSError as error:
            raise ToolError(f"{command[0]} cannot be started: {explain(error)}.") from None
        with process:
            try:
                with suppress(OSError):
                    os.setpriority(os.PRIO_PROCESS, process.pid, NICENESS)
                    # Linux may weigh sessions instead of processes, and this one has its own.
                    with open(f"/proc/{process.pid}/autogroup", "w") as file:
                        file.write(str(NICENESS))
                yield process
            finally:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)

    def hear(
        self,
        process: subprocess.Popen[bytes],
        seconds: float,
        take: Optional[Callable[[bytes], object]] = None,
    ) -> tuple[bytes, bytes]:
        """Reads a process until it ends. Returns its output and its messages. `take` gets the
        output instead, part by part. Raises as `run` does."""
        limit = GRACE + seconds * PACE
        deadline = monotonic() + limit
        output, messages = bytearray(), bytearray()

        def check() -> None:
            if self.stop.requested:
                raise Stopped
            if monotonic() > deadline:
                raise Refusal(Reason.TOOL_HUNG, f"no end after {limit:.0f} s")
            if len(messages) > MOST_MESSAGES:
                raise damaged(f"complaints without end: {tail(bytes(messages))}")
            if len(output) > MOST_OUTPUT:
                raise Refusal(Reason.TOOL_FAILED, "output without end")

        with selectors.DefaultSelector() as streams:
            takers = ((process.stdout, take or output.extend), (process.stderr, messages.extend))
            for stream, taker in takers:
                if stream:
                    streams.register(stream, selectors.EVENT_READ, taker)
            while streams.get_map():
                has_ended = process.poll() is not None  # its last words are still to be read
                events = streams.select(0 if has_ended else 0.2)
                if has_ended and not events:
                    break  # a grandchild may keep the streams open for ever
                for key, _ in events:
                    data = os.read(key.fd, 1 << 16)
                    key.data(data)
                    if not data:
                        streams.unregister(key.fileobj)
                check()
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
            check()
        return bytes(output), bytes(messages)


class Threads(ThreadPoolExecutor):
    """A pool that raises ServiceError if the system refuses another thread."""

    def submit(self, *task: Any, **options: Any) -> Future[Any]:
        try:
            return super().submit(*task, **options)
        except RuntimeError as error:
            raise ServiceError(
                f"{str(error).capitalize()}: this machine allows too few of them (ulimit -u, "
                "TasksMax of systemd, --pids-limit of Docker). Raise that limit and run again."
            ) from None


def end_with_us() -> None:
    """Makes Linux end a new process with the thread that started it. A tool that outlives a killed
    run could still write. macOS cannot do this."""
    if PRCTL:
        PRCTL(PARENT_DEATH_SIGNAL, signal.SIGKILL)


def judge(processes: Sequence[subprocess.Popen[bytes]], messages: bytes) -> str:
    """Returns ffmpeg's warnings and errors, without those about sound files, if all ended well.
    Otherwise raises Refusal. How a process ended says nothing about a recording, unless ffmpeg
    ended by itself."""
    codes = [process.returncode for process in processes if process.returncode]
    lines = TAGGED.findall(messages)
    said = tail(b"\n".join(line for line in lines if not SAID_OF_SOUND_FILES.search(line)))
    for reason, words in FAULTS_OF_THE_MACHINE.items():
        if re.search(words, messages if codes else b"\n".join(lines)):
            raise Refusal(reason, tail(messages))
    if not codes:
        return said
    code = codes[0]
    ending = f"exit code {code}" if code >= 0 else f"ended by {signal.Signals(-code).name}"
    # A shell around it adds 128 to the signal. ffmpeg itself ends with 255 after SIGTERM or SIGINT.
    signals = {-code if code < 0 else code - 128 for code in codes}
    reason = Reason.TOOL_KILLED
    if CONTENT_CODES.issuperset(codes):
        reason = Reason.TOOL_REFUSED
    elif max(signals) <= 0 or not CRASHES.isdisjoint(signals):
        reason = Reason.TOOL_FAILED
    raise Refusal(reason, f"{ending}, {said or tail(messages) or 'without a message'}")


def tail(messages: bytes) -> str:
    """Returns the last few messages on one printable line."""
    text = messages[-2000:].decode("utf-8", "replace")
    lines = EMBELLISHMENT.sub("", text).split("\n")
    return printable("; ".join(filter(None, map(str.strip, lines[-4:]))))


def copy_through(source: Any, listener: Any, file: IO[bytes]) -> str:
    """Copies a stream to its end into both. Returns its SHA-256. Raises OSError."""
    digest = hashlib.sha256()
    with file, listener, source:  # closed after any error, or the other processes would wait
        while data := os.read(source.fileno(), 1 << 16):
            digest.update(data)
            listener.write(data)
            file.write(data)
    return digest.hexdigest()


INSTALL = (
    "Install it: 'sudo apt-get install {name}' (Debian, Ubuntu), 'sudo dnf install {name}' "
    f"(Fedora), 'brew install {{name}}' (macOS). '{PROGRAM} doctor' shows what is found."
)


# ----------------------------------------------------------------------------------------- files
# The one place that writes durably. A file is staged beside its target, flushed and given its
# attributes. Then it gets its name, never over another file, or two files exchange their names. An
# fsync that failed is never retried. This section follows no symlink and waits for no FIFO.

LIBC = ctypes.CDLL(None, use_errno=True)
PRCTL = getattr(LIBC, "prctl", None)  # looked up here, as a forked process must not
PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
# Flags of rename: never over another file, and exchange both names.
RENAME, NO_REPLACE = ("renameatx_np", 4) if sys.platform == "darwin" else ("renameat2", 1)
EXCHANGE = 2
WORKING_FOLDER = -100  # AT_FDCWD; it plays no part for absolute paths
# Errors of a system or a file system that cannot do a thing at all.
NOT_HERE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY)
# Android's storage says EACCES, a union of several disks EXDEV, `rclone mount` EIO; old containers
# say EPERM for renameat2.
NO_LINKS = (*NOT_HERE, errno.EPERM, errno.EMLINK, errno.EACCES, errno.EXDEV, errno.EIO)
# CIFS and DrvFs flush no folders (rocksdb#2929, borg#1287, WSL#2557). Others cannot open one.
NO_FLUSH = (*NOT_HERE, errno.EBADF, errno.EISDIR, errno.EPERM, errno.EACCES)
ACCESS_LIST = "system.posix_acl_access"
COPYFILE_ACL = 1
OWNING_GROUP = 4  # tag of the entry of a file's group in an access list
READ, READ_WRITE = 4, 6  # permission bits
OWNER_ADVICE = (
    "Files of {} cannot be worked on, who could not use what is made of them: run this as that "
    "user or as root, or let both belong to their group and let it read and write them."
)
FORESEEN_ADVICE = "Nothing is done in {}. Mend that, or run this as a user who may."
BLOCK = 1 << 20  # bytes read at a time


class Staging:
    """The unfinished files of one run: `.compression-TOKEN-N.part` beside its target, and level
    files in our own folder. We make each (O_EXCL, 0600) before a tool writes into it."""

    numbers = itertools.count()

    def __init__(self, library: Library) -> None:
        self.library = library
        self.token = os.urandom(4).hex()
        self.made: set[str] = set()  # paths

    def __enter__(self) -> Staging:
        with suppress(OSError):  # leftovers in a folder that we cannot read do no harm
            self.sweep(self.library.folder(OWN_FOLDER))
        return self

    def __exit__(self, *_: object) -> None:
        """Removes the unfinished files of this run."""
        remove_all(self.made)

    def new_name(self) -> str:
        """Returns a name of this run alone, which a later run removes."""
        return STAGED_NAME.format(self.token, next(self.numbers))

    def beside(self, target: str) -> str:
        """Returns a new empty staged file in the target's folder; absolute paths. Raises
        OSError."""
        staged = join(dirname(target), self.new_name())
        try:
            descriptor = os.open(staged, os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise system_error(error.errno or 0, dirname(target)) from None
        self.made.add(staged)
        os.close(descriptor)
        return staged

    def levels(self) -> str:
        """Returns a new empty level file in our own folder."""
        return self.beside(self.library.own("levels"))

    def write(self, data: bytes, like: str) -> str:
        """Returns a new flushed file beside `like`, with its mode and owner. Raises Refusal,
        OSError."""
        staged = self.beside(like)
        with open_to_write(staged) as file, open_regular(like) as source:
            file.write(data)
            file.flush()
            give_attributes(source.fileno(), file.fileno(), times=False)
            flush(file.fileno())
        return staged

    def discard(self, staged: str) -> None:
        """Removes a staged file. Does nothing for a file that we did not make."""
        if staged in self.made:
            self.made.remove(staged)
            remove_all([staged])

    def sweep(self, folder: Folder) -> None:
        """Removes the leftovers of earlier runs. Needs the lock."""
        remove_all(self.library.path(folder.path, name) for name in folder.leftovers)


def remove_all(paths: Iterable[str]) -> None:
    """Removes files of ours. One that cannot be removed is left for the next run."""
    for path in paths:
        with suppress(OSError):
            os.unlink(path)


def place(staged: str, final: str) -> None:
    """Gives a staged file its name, never over another file: by a link, or by a rename that does
    not replace. If both are missing, it looks first. Raises FileExistsError, OSError."""
    if link(staged, final):
        os.unlink(staged)
    elif not rename_with(NO_REPLACE, staged, final):
        if lexists(final):
            raise system_error(errno.EEXIST, final)
        os.rename(staged, final)


def exchange(staged: str, final: str) -> str:
    """Puts a staged file in the place of another at once. Returns the path of the displaced file:
    the staged name. Where names can neither be exchanged nor linked, the displaced file is lost,
    and it returns "". Raises OSError."""
    if rename_with(EXCHANGE, staged, final):
        return staged
    begin, _, number = staged.rpartition("-")
    spare = f"{begin}-0{number}"  # a number that no other staged file has
    is_spared = link(final, spare)
    os.rename(staged, final)
    if is_spared:
        os.rename(spare, staged)
    return staged if is_spared else ""


def link(source: str, target: str) -> bool:
    """Links a file to a second name. Returns False if the file system has no links. Raises
    OSError."""
    with tolerated(NO_LINKS):
        os.link(source, target)
        return True
    return False


def rename_with(flag: int, source: str, target: str) -> bool:
    """Renames a file with a flag. Returns False if the system or the file system cannot. Raises
    OSError."""
    rename = getattr(LIBC, RENAME, None)
    if rename is None:  # a C library from before 2018
        return False
    old, new = map(os.fsencode, (source, target))
    failed = rename(WORKING_FOLDER, old, WORKING_FOLDER, new, flag)
    code = ctypes.get_errno()
    if failed and code not in NO_LINKS:  # after one of these a plain rename gives the cause
        raise system_error(code, source, None, target)
    return not failed


def system_error(code: int, *details: Any) -> OSError:
    """Returns the error that the system raises with this code, of the class that fits."""
    return OSError(code, os.strerror(code), *details)


def give_attributes(source: int, staged: int, times: bool) -> None:
    """Gives an open file the owner, then the mode, then the access list of another, and with
    `times` its mtime. If the owner cannot be given, no bit is added. The former owner must still be
    able to read audio, and to write documents. Raises Refusal(OWNER), OSError."""
    before = os.fstat(source)
    acl = access_list(source)
    for owner in (before.st_uid, -1):  # at least the group
        with suppress(OSError):
            os.fchown(staged, owner, before.st_gid)
            break
    now = os.fstat(staged)
    needed = READ if times else READ_WRITE
    mode = mode_without_owner(before, now.st_uid, now.st_gid, acl, needed)
    if mode != stat.S_IMODE(now.st_mode):  # not every file system can change a mode
        os.fchmod(staged, mode)
    if sys.platform == "darwin":
        LIBC.fcopyfile(source, staged, None, COPYFILE_ACL)
    elif acl:
        os.setxattr(staged, ACCESS_LIST, acl)
    elif access_list(staged):  # inherited from the folder's default list
        os.removexattr(staged, ACCESS_LIST)
    if times:
        os.utime(staged, ns=(before.st_atime_ns, before.st_mtime_ns))


def access_list(descriptor: int) -> bytes:
    """Returns the access list in Linux's form (acl(5)), empty if the file has none."""
    if sys.platform == "linux":
        with suppress(OSError):
            return os.getxattr(descriptor, ACCESS_LIST)
    return b""


def mode_without_owner(before: os.stat_result, uid: int, gid: int, acl: bytes, needed: int) -> int:
    """Returns the mode for a file that gets this owner and group instead of those `before`. Nobody
    gets a bit more. Raises Refusal(OWNER) if the former owner would lose a `needed` bit, or if its
    access list would let in another group."""
    mode = stat.S_IMODE(before.st_mode)
    group = mode >> 3 & 7
    others = mode & 7
    for tag, bits, _ in struct.iter_unpack("<HHI", acl[4:]):
        if tag == OWNING_GROUP:  # the group bits of the mode are the list's mask then
            group &= bits
    is_other_group = gid != before.st_gid
    if is_other_group:
        group &= others
        mode = mode & 0o707 | group << 3
    lost = 0
    if before.st_uid not in (0, uid):
        is_member = is_in_group(before.st_uid, gid)
        lost = needed & mode >> 6 & ~(group if is_member else others)
    if lost or (is_other_group and acl):
        raise Refusal(Reason.OWNER, f"user {before.st_uid}")
    return mode


def is_in_group(uid: int, gid: int) -> bool:
    """Returns whether a user is in a group, by passwd and group. False for an unknown user."""
    with suppress(KeyError):
        user = pwd.getpwuid(uid)
        return gid in os.getgrouplist(user.pw_name, user.pw_gid)
    return False


def open_regular(path: str) -> IO[bytes]:
    """Opens a regular file to read it. Raises OSError for anything else."""
    descriptor = os.open(path, os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "Not a regular file", path)
    return open(descriptor, "rb")


def open_to_write(path: str) -> IO[bytes]:
    """Opens a file of ours to write it. A new one is private. Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    return open(os.open(path, flags, 0o600), "wb")


def read_regular(path: str) -> bytes:
    """Returns the bytes of a regular file of at most LARGEST_JSON. Raises OSError."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > LARGEST_JSON:
            raise system_error(errno.EFBIG, path)
        return file.read()


def file_at(path: str) -> File:
    """Returns a file as a walk would see it. Raises OSError."""
    status = os.lstat(path)
    return File(basename(path), status.st_size, status.st_mtime_ns)


def flush(descriptor: int, not_here: Collection[int] = NOT_HERE) -> None:
    """Flushes to the disk itself, if its file system can do that. Raises OSError."""
    if sys.platform == "darwin":  # its fsync alone stops at the drive's cache
        with tolerated(NOT_HERE):
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    with tolerated(not_here):
        os.fsync(descriptor)


@contextmanager
def tolerated(codes: Collection[int]) -> Iterator[None]:
    """Passes over an OSError with one of these codes: a disk need not have everything."""
    try:
        yield
    except OSError as error:
        if error.errno not in codes:
            raise


def flush_folder(path: str) -> None:
    """Flushes a folder, so that its names survive a power cut. Raises OSError."""
    descriptor = os.open(path, os.O_DIRECTORY)
    try:
        flush(descriptor, NO_FLUSH)
    finally:
        os.close(descriptor)


def digest_of(path: str, size: int = sys.maxsize, stop: Optional[Stop] = None) -> str:
    """Returns the SHA-256 of a regular file, or of its first `size` bytes. Raises OSError,
    Stopped."""
    with open_regular(path) as file:
        return digest_from(file, size, stop)


def digest_from(file: IO[bytes], size: int = sys.maxsize, stop: Optional[Stop] = None) -> str:
    """Returns the SHA-256 of an open file, or of its first `size` bytes. Raises OSError,
    Stopped."""
    digest = hashlib.sha256()
    file.seek(0)
    while block := file.read(min(size, BLOCK)):
        if stop and stop.requested:
            raise Stopped
        digest.update(block)
        size -= len(block)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------- report
# The one place that prints and logs; owns every tally, the summary and the exit code. Closed or
# broken streams, and a log that cannot be written, never change what is done.

LARGEST_LOG = 2 << 20  # bytes, from which it is rotated
OLD_LOGS = 5  # that are kept
SPEED = 60.0  # seconds of audio that a core does in one: a first guess at how long a run takes
PROGRESS_PAUSE = 60.0  # seconds between lines of progress where there is no terminal
# Counts of a report in its summary. Sizes are bytes, estimates in a dry run.
SUMMED = "found young ahead held due left original_size compressed_size saved exit_code"


class Report:
    """Gets outcomes and informs people. `exit_code` is the run's. Each line is made printable here,
    so that no name can forge another line."""

    found = young = links = due = 0  # as the plan counts them
    ahead = held = 0  # dated in the future; waiting as the clock is not trusted that far
    original_size = compressed_size = saved = 0
    seconds = 0.0  # of audio that a dry run found to be due
    exit_code = 0
    is_new = False  # no run on this library is on record
    is_urgent = False  # sent whatever `notify_on` says
    has_news = False  # whether anything was done, failed or announced that its owner may ask for
    missed = 0  # lost copies that earlier runs reported
    early = 0  # originals that were deleted before their days were over
    errors = 0
    bar = ""  # what stands on the terminal's last line
    is_logging = False
    told_first = ""  # the gravest error, or the first news, for the message at the end

    def __init__(self, config: Config) -> None:
        self.config = config
        self.started = self.drawn = monotonic()
        self.counts: Counter[Action] = Counter()
        self.told: set[str] = set()
        self.remarks: list[str] = []  # in the sentence at the end
        # What a dry run says of each move, with the mtime of its oldest file and its path.
        self.foreseen: list[tuple[int, str, str, Mapping[str, Any]]] = []
        self.is_terminal = os.isatty(2)

    def open_log(self) -> None:
        """Rotated first, under a lock on it; not by a dry run. What we create belongs to the owner
        of the folder it is in."""
        if self.config.dry_run:
            return
        path = self.config.log_file
        folder = dirname(path)
        try:
            check_links(path)
            with suppress(OSError):
                rotate(path)
            made = [each for each in (folder, path) if not lexists(each)]
            os.makedirs(folder, exist_ok=True)
            open_log(path).close()
            for each in made:
                give_to_owner(each, dirname(each), os.stat(each).st_mode)
            self.is_logging = True
        except OSError as error:
            self.log_failed(error)

    def log(self, text: str, level: str = "INFO") -> None:
        """A line behind those of other runs, for which it is opened anew each time: one of them may
        have rotated it."""
        stamp = datetime.now().isoformat(" ", "milliseconds").replace(".", ",")
        if self.is_logging:
            try:
                with open_log(self.config.log_file) as file:
                    file.write(f"{stamp} - {level} - {printable(text)}\n".encode())
            except OSError as error:
                self.log_failed(error)

    def log_failed(self, error: OSError) -> None:
        self.error(log_problem(self.config.log_file, error), 0)

    def say(self, text: str) -> None:
        """A result, on stdout; on stderr with --json, whose lines stay pure."""
        if not self.config.quiet:
            self.write(printable(text), sys.stderr if self.config.json else sys.stdout)

    def once(self, text: str) -> None:
        """Something to know, told and logged once a run."""
        if text not in self.told:
            self.told.add(text)
            self.log(text)
            self.say(text)

    def error(self, text: str, code: int = 1) -> None:
        """On stderr and in the log, once; the gravest error's code is the run's."""
        if code > self.exit_code or (code and not self.told_first):
            self.told_first = text
        self.exit_code = max(self.exit_code, code)
        if text not in self.told:
            self.errors += code == 1  # any other is nothing about recordings
            self.told.add(text)
            self.log(text, "ERROR")
            self.write(f"{PROGRAM}: {printable(text)}", sys.stderr)
            self.write_json({"type": "error", "message": text})

    def defect(self, kept: str, error: Exception) -> None:
        """Reports an error beside a recording's own moves. `kept` says what was kept. One that the
        system has no name for is a defect of this program: its traceback is logged."""
        if isinstance(error, OSError):
            self.error(f"{kept}: {explain(error)}.")
            return
        self.error(f"{kept}: a defect of this program (its traceback is in the log): {error}")
        self.log(trace_of(error), "ERROR")

    def failed(self, error: Exception) -> str:
        """Reports the error that ends a command; returns its sentence."""
        text = explain(error)
        if isinstance(error, OSError) and is_full(error):
            text = f"The disk is full: {text}. Make room and run again."
        elif not isinstance(error, (ServiceError, Refusal, OSError)):
            self.log(trace_of(error), "ERROR")
            problem = "memory is short" if isinstance(error, MemoryError) else text
            text = f"Ended by a defect, or for want of something: {problem}. The log has more."
        self.error(text, exit_code_of(error))
        return text

    def announce(self, remark: str, is_urgent: bool = True) -> None:
        """Adds a remark to the sentence at the end, which is sent at once if it is urgent."""
        self.remarks.append(remark)
        self.is_urgent = self.is_urgent or is_urgent

    def begin(self, moves: Sequence[Move]) -> None:
        """Reports what is due, with its length where that is known. A dry run measures it."""
        self.due += len(moves)
        proofs = [move for move in moves if not move.is_whole]
        if proofs and not self.config.dry_run:
            size = size_text(sum(move.source_size for move in proofs))
            known = [move.seconds or move.recording.seconds_of(move.take) for move in proofs]
            much = f", {duration_text(sum(known))} of audio" if all(known) else ""
            self.say(f"Due: {len(moves)}, {size}{much}.")

    def outcome(self, move: Move) -> None:
        """Counts and reports what became of one take: called once for each."""
        action, told = move.reason.action, move.told()
        is_failed = action in (Action.FAILED, Action.LOST)
        self.exit_code = self.exit_code or int(is_failed)
        self.counts[action] += 1
        self.has_news = self.has_news or action is not Action.KEPT
        is_foreseen = self.config.dry_run and action not in (Action.KEPT, Action.FAILED)
        end = dataclasses.replace(move, outcome=None) if is_foreseen else move
        self.saved += size_on_disk(move.take) - size_on_disk(end.take_after(0))
        self.early += move.is_early and end.is_done
        if is_foreseen and not move.is_whole:
            self.seconds += told["seconds"] or move.guessed_seconds
        before, after = told["original_size"], move.copy.size if move.copy else move.estimate
        sizes = size_text(before) if before else ""
        if action in (Action.COMPRESSED, Action.WOULD_COMPRESS):
            self.original_size += before
            self.compressed_size += after
            less = f"{100 * (before - after) / before:.0f} %" if before > after else "no"
            sizes = f"{self.change(before, after)} ({less} less)"
        line = self.line(move, sizes, told["reason"])
        self.log(f"{line}  {move.result.trace}".rstrip(), "ERROR" if is_failed else "INFO")
        if self.config.dry_run:
            oldest = min((file.mtime_ns for file in move.take.files), default=0)
            self.foreseen.append((oldest, told["path"], line, told))
        else:
            self.show(line, told)
        advice = advice_on(move)
        if advice:
            self.error(advice)

    def show(self, line: str, told: Mapping[str, Any]) -> None:
        self.write_json(told)
        if told["action"] == Action.LOST and self.counts[Action.LOST] > NAMED:
            pass  # the log has it
        elif self.config.quiet and told["action"] in (Action.FAILED, Action.LOST):
            self.write(printable(line), sys.stderr)
        elif not self.config.json:
            self.say(line)

    def line(self, move: Move, sizes: str, why: str) -> str:
        """Returns the line on a recording: what was done or why not, with sizes."""
        reason, probe = move.reason, move.probe
        parts = [f"{reason.action.value:<14} {move.path}", sizes]
        if reason not in (Reason.DONE, Reason.DUE):
            parts.append(why)
        if reason.action is Action.FAILED and move.take.original:
            parts.append("(the original is kept)")
        if self.config.verbose and probe:
            sound = f"{probe.codec}, {probe.channels} ch, {probe.kilobits:.0f} kbit/s"
            parts.append(f"[{sound}, {probe.timeline:.1f} s]")
        return "  ".join(filter(None, parts))

    def change(self, before: int, after: int) -> str:
        about = "about " if self.config.dry_run else ""
        return f"{size_text(before)} -> {about}{size_text(after)}"

    def progress(self, done: float, due: float) -> str:
        """Returns how far a run is, by seconds of audio, and shows that: in a bar on a terminal;
        elsewhere, if it was asked for, by a line a minute."""
        asked, pause = self.config.progress, 0 if self.is_terminal else PROGRESS_PAUSE
        is_asked = self.is_terminal if asked is None else asked
        now, share = monotonic(), min(1.0, done / (due or 1))
        text = f"{sum(self.counts.values())} of {self.due}, {100 * share:.0f} %"
        if share > 0.02:
            left = (now - self.started) * (1 - share) / share
            text += f", about {duration_text(left)} left"
        is_time = now - self.drawn >= pause and text != self.bar
        if is_asked and is_time and not self.config.quiet:
            self.drawn = now
            self.write(text, sys.stderr, "\r" if self.is_terminal else "\n")
            self.bar = text
        return text

    def write(self, text: str, stream: Optional[TextIO], end: str = "\n") -> None:
        """In place of the bar, if there is one, which left the cursor at its beginning."""
        if stream is None:  # it was closed when we were started
            return
        if self.bar and stream.isatty():
            text, self.bar = f"\033[J{text}", ""
        try:
            print(text, end=end, file=stream, flush=True)
        except OSError:  # its reader has ended, or its disk is full; the work continues
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

    def write_json(self, told: Mapping[str, Any]) -> None:
        if self.config.json:
            self.write(json.dumps(told), sys.stdout)

    def summary(self, message: str = "") -> dict[str, Any]:
        """Reports and logs the end of a run, also of one that could not begin: then `message` is
        why, and has been reported. Returns the object of `--json`, with a `message` for people."""
        for _, _, line, told in sorted(self.foreseen, key=lambda each: each[:2]):
            self.show(line, told)
        text = "" if message and not self.counts else self.sentence()
        lost = self.counts[Action.LOST]
        if lost > NAMED:
            more = f"and {lost - NAMED:,} more lost copies; the log names each"
            self.write(more, sys.stderr if self.config.quiet or self.config.json else sys.stdout)
        if lost:
            self.say(LOST_ADVICE)
        if text or self.found:
            # `Library.is_in_log` reads this line. An unmounted disk has one, an empty library none.
            found = f" Found: {self.found}." if self.config.command == "run" else ""
            self.log(f"{self.config.recordings_dir}: {text or message}{found}")
        if text:
            self.say(text)
        summary = {
            "type": "summary",
            **{action.value: self.counts[action] for action in Action},
            **{name: getattr(self, name) for name in SUMMED.split()},
            "lost": lost + self.missed,
            "elapsed_seconds": round(monotonic() - self.started, 3),
            "message": " ".join(dict.fromkeys(filter(None, (message, self.told_first, text)))),
        }
        self.write_json(summary)
        return summary

    @property
    def left(self) -> int:
        """Returns how many recordings are due still."""
        return max(0, self.due - sum(self.counts.values()) + self.counts[Action.LOST])

    def sentence(self) -> str:
        """Returns the end of a run in words."""
        config, size = self.config, size_text(abs(self.saved))
        text = ", ".join(self.phrase(action) for action in Action if self.counts[action])
        if text and config.dry_run:
            text = f"Dry run, nothing was changed: {text}"
        elif not text and config.command == "run" and self.is_new and not self.found:
            text = f"No recordings (*{SOURCE_SUFFIX}) below {config.recordings_dir}"
        elif not text:
            text = "Nothing was done" if self.left or self.exit_code else "Nothing to do"
        if self.left:
            text += f", {self.left} left for the next run"
        parts = [text if config.command == "run" else f"{config.command}: {text}"]
        if self.saved > 0:
            parts.append(f"The disk {'would have' if config.dry_run else 'has'} {size} more free")
        elif self.saved < 0 and self.counts[Action.COMPRESSED]:
            parts.append(f"The copies take {size} until the originals are deleted")
        others = {
            f"Younger than {config.age_threshold_days:g} days": self.young,
            "Waiting until another run confirms the clock": self.held,
            "Lost before, and still missing": self.missed,
            "Symbolic links passed over": self.links,
        }
        parts += [f"{what}: {count}" for what, count in others.items() if count]
        parts += self.remarks
        if self.seconds and config.command == "run":
            took = duration_text(self.seconds / SPEED / (config.jobs or allowed_cores()))
            parts.append(f"{duration_text(self.seconds)} of audio. A run may take {took}")
        elif self.counts:
            parts.append(f"Took {duration_text(monotonic() - self.started)}")
        return ". ".join(filter(None, parts)) + "."

    def phrase(self, action: Action) -> str:
        """Returns how often something was done, and how much it made of how much."""
        sizes = self.change(self.original_size, self.compressed_size)
        count, days = self.counts[action], self.config.keep_originals_days
        originals, their = ("original", "its") if count == 1 else ("originals", "their")
        over = f" after {their} {days:g} days" if days else ""
        over = f" ({self.early} early, as keep_free asks)" if self.early else over
        words = {
            Action.COMPRESSED: f"compressed ({sizes})",
            Action.WOULD_COMPRESS: f"to compress ({sizes})",
            Action.FREED: f"{originals} deleted{over}",
            Action.WOULD_FREE: f"{originals} to delete{over}",
        }
        return f"{count} {words.get(action) or action.value.replace('would-', 'to ')}"


def advice_on(move: Move) -> str:
    """Returns advice where the cause is not the recording's. Many share one, reported once."""
    advice = {Reason.OWNER: OWNER_ADVICE, Reason.FORESEEN: FORESEEN_ADVICE}
    return advice.get(move.reason, "").format(move.result.detail)


def trace_of(error: Exception) -> str:
    """Returns the traceback of a defect, for the log."""
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))


def open_log(path: str) -> IO[bytes]:
    """A log to be appended to: a pipe or a device is never waited for. Raises OSError."""
    check_links(path)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY
    return open(os.open(path, flags, 0o666), "wb")


def log_problem(path: str, error: OSError) -> str:
    return f"The log {path} cannot be written: {error.strerror}. The work goes on without."


def check_links(path: str) -> None:
    """Raises PermissionError where a link on the way to a log is neither root's nor ours: else its
    owner could let us write anywhere."""
    for part in map(str, (*reversed(PurePath(path).parents), path)):
        if islink(part):
            if os.lstat(part).st_uid not in (0, os.geteuid()):
                raise PermissionError(errno.EACCES, f"{part} is a link of another user")
            target = join(dirname(part), os.readlink(part))
            if exists(target):  # else it is no path, as of /proc/self/fd/1
                check_links(abspath(target))


def rotate(path: str) -> None:
    """Renames a log that is large, unless it is a link or no plain file, or another run does the
    same. Raises OSError."""
    with open_regular(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if getsize(path) > LARGEST_LOG:
            RotatingFileHandler(path, backupCount=OLD_LOGS, delay=True).doRollover()


def size_on_disk(take: Take) -> int:
    """Bytes of all its files here."""
    return sum(file.size for file in take.files)


def exit_code_of(error: Exception) -> int:
    return NoSpaceError.exit_code if is_full(error) else getattr(error, "exit_code", 1)


def printable(text: str) -> str:
    """With control characters and undecodable bytes escaped."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def size_text(size: float) -> str:
    """Returns bytes, or kB, MB, GB, TB in powers of ten with three digits."""
    if size < 1000:
        return f"{size:.0f} B"
    steps = sum(size >= 999_500 * 1000**step for step in range(3))
    number = f"{size / 1000 ** (steps + 1):#.3g}".rstrip(".")
    return f"{number} {'kMGT'[steps]}B"


def duration_text(seconds: float) -> str:
    for unit, length in (("d", DAY), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(1, seconds):.0f} s"


def iso(seconds: float) -> str:
    """Seconds since the epoch as ISO 8601 in UTC, as all our dates are."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


# ---------------------------------------------------------------------------------------- set-up
# Commands that are used seldom. Doctor runs the trials and reports all that it finds. Schedule
# prints an entry for a run every night. Demo does the whole job in a temporary folder.


def command_doctor(config: Config, report: Report) -> None:
    """Reports each finding once; the exit code is that of the gravest."""
    run = Run(config, report)
    found = [*obstacles(run), (f"Python {sys.version.split()[0]} at {sys.executable}", 0)]
    checks = (examine_ffmpeg, examine_library, examine_archive, examine_log, examine_state)
    with run.open(locks=False):
        for check in checks:
            try:
                found += check(run)
            except (ServiceError, Refusal, OSError) as error:
                found.append((explain(error), exit_code_of(error)))
    said: list[str] = []
    for text, code in found:
        if not any(each in text for each in said):
            report.say(f"{'PROBLEM' if code else 'ok':<9}{text}")
            report.exit_code = max(report.exit_code, code)
            said.append(text)
    report.say(f"         settings, from {config.file or 'nowhere: all are defaults'}:")
    settings = {name: getattr(config, name) for name in FILE_KINDS}
    settings["tiers"] = []
    for tier in config.tiers:  # as they may stand in a config file
        members = tier._asdict().items()
        told = {key: value for key, value in members if value or key == "after_days"}
        settings["tiers"].append(told)
    for name, value in settings.items():
        report.say(f"         {name:<22}{json.dumps(value, ensure_ascii=False)}")


def obstacles(run: Run) -> Iterator[tuple[str, int]]:
    """Yields what keeps runs from their work, or their owner from hearing of it."""
    config, pause = run.config, run.library.paused(run.now)
    if pause:
        yield pause, 1
    if config.dry_run:
        yield f'"dry_run" is set in {config.file}: no run changes anything.', 1
    found = FIRST_WORD.match(config.notify_command or "")
    word = os.path.expanduser(os.path.expandvars(found[2])) if found else ""
    if word and not is_known_to_shell(word, dirname(config.file)):
        text = f"The notify_command begins with {word}. No program on PATH has this name."
        yield text, 1
    with suppress(ServiceError, OSError):
        lost = losses(run.library).items()
        paths = [stem + past.suffix for stem, past in lost]
        if paths:
            yield f"Lost copies: {', '.join(paths)}. {LOST_ADVICE}", 1
    try:
        index = join(config.recordings_dir, INDEX_NAME)
        read_whole(index, lambda data: next(entries(JsonText(data)), None))
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (Flaw, OSError) as error:
        yield f"{LEFT_ALONE}{INDEX_NAME}: {explain(error)}.", 1


def is_known_to_shell(word: str, folder: str) -> bool:
    """Returns whether the shell, started in a folder, finds a program or a word of its own."""
    if "/" in word:
        return bool(shutil.which(join(folder, word)))
    return ends_well("/bin/sh", "-c", 'command -v "$1"', "sh", word)


def ends_well(*command: str) -> bool:
    """Returns whether a command can be run and succeeds."""
    with suppress(Refusal, ToolError):
        Tools(Stop()).run(command, 0)
        return True
    return False


# The program that a command of the shell begins with, unless it begins with a mark, or with what
# only the shell can expand.
FIRST_WORD = re.compile(r"""\s*(["']?)([\w./~$][^"'`(){}<>|&;!=*?\\#\[\]]*?)\1(?=[\s;|&]|$)""")


def examine_ffmpeg(run: Run) -> Iterator[tuple[str, int]]:
    target = Target(run.config.target_format, run.config.target_bitrate)
    try_ffmpeg(run.tools, target)
    yield f"ffmpeg at {run.tools.ffmpeg} encodes {target.format} and reads it again", 0


def examine_library(run: Run) -> Iterator[tuple[str, int]]:
    """Tries all that its commits need, if our own folder is there to be locked. Then tries in each
    folder what its moves need, and yields what a run would say of that."""
    library, problems = run.library, dict[str, None]()
    library.require(run.config.log_file)
    moves = list(itertools.chain(*run.plan()))
    read_signs(library)
    with ExitStack() as stack:
        if isdir(library.own("")):
            try:
                stack.enter_context(library.lock())
            except BusyError as busy:
                yield str(busy), 0
                return
            try_commits(library)
        trials = Trials(library, run.staging)
        for move in moves:
            if move.outcome:
                continue
            with boundary(move.refuse):
                trials.foresee(move)
            if move.outcome:
                why = f"{move.path}: {move.told()['reason']}."
                problems[advice_on(move) or why] = None
        remove_all(run.staging.made)
    for problem in [*problems][:NAMED]:
        yield problem, 1
    if not problems:
        yield f"the library {library.root} can be written to; due: {len(moves)}", 0
    for move in [move for move in moves if not move.is_whole][:1]:
        run.try_ffmpeg_on(move)


def examine_archive(run: Run) -> Iterator[tuple[str, int]]:
    archive = run.archive
    if archive:
        archive.try_it()
        archive.try_upload()
        yield f"the archive {archive.target} answers and takes files", 0


def examine_log(run: Run) -> Iterator[tuple[str, int]]:
    """Does not make it, as doctor changes nothing. A file without a name is tried in its place."""
    place = path = run.config.log_file
    try:
        check_links(path)
        while not lexists(place):
            place = dirname(place)
        with open_log(path) if place == path else tempfile.TemporaryFile(dir=place):
            read_sign(place)
    except OSError as error:
        yield log_problem(path, error), exit_code_of(error)
    else:
        yield f"the log {path} can be written to", 0


def examine_state(run: Run) -> Iterator[tuple[str, int]]:
    """Returns what statistics and page say too."""
    return findings(run, gather_stats(run.config))


def command_schedule(config: Config, report: Report) -> None:
    """Print what makes a run every night on this machine. Raises UsageError."""
    folder = dirname(Tools(Stop()).find("ffmpeg")[0])  # which may be one of the user's own
    python = "/usr/bin/python3"  # the system's outlives upgrades, where it will do
    if not ends_well(python, "-c", "import sys; sys.exit(sys.version_info < (3, 9))"):
        python = abspath(sys.executable)
    usual = resolve_config(argparse.Namespace(file=config.file or None))  # also if it changes
    library = config.recordings_dir
    words = [
        "/usr/bin/env",
        f"PATH={folder}:/usr/local/bin:/usr/bin:/bin",
        python,
        abspath(__file__),
        "run",
        "--quiet",
        *(["-c", config.file] if config.file else []),
        *(["--recordings", library] if library != usual.recordings_dir else []),
    ]
    if not "".join(words).isprintable():
        raise UsageError("A line break in a path: no scheduler takes it. Rename that folder first.")
    entry, quote = SCHEDULES[config.scheduler]
    report.write(entry.format(" ".join(map(quote, words))), sys.stdout, end="")


# cron makes a line break of a bare %, and mails what a run says.
CRON = """\
# Install: 'crontab -e', and paste the next line. Remove: delete it.
0 2 * * * {}
"""
LAUNCHD = """\
<?xml version="1.0" encoding="UTF-8"?>
<!-- Install: save this as ~/Library/LaunchAgents/local.compression-service.plist; then
launchctl bootstrap gui/$UID ~/Library/LaunchAgents/local.compression-service.plist
Remove: launchctl bootout gui/$UID/local.compression-service; delete the file. -->
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN"
"http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
  <key>Label</key><string>local.compression-service</string>
  <key>ProgramArguments</key><array>{}</array>
  <key>StartCalendarInterval</key>
  <dict><key>Hour</key><integer>2</integer><key>Minute</key><integer>0</integer></dict>
  <key>ProcessType</key><string>Background</string>
  <key>LowPriorityIO</key><true/>
  <key>WorkingDirectory</key><string>/</string>
</dict>
</plist>
"""
# A shell script that writes a user service and its timer.
SYSTEMD = """\
# Install: paste all of this into a terminal. Remove: systemctl --user disable --now \
compression-service.timer; rm ~/.config/systemd/user/compression-service.*
mkdir -p ~/.config/systemd/user
cat >~/.config/systemd/user/compression-service.service <<'END_OF_UNIT'
[Unit]
Description=Compress voice recordings

[Service]
Type=oneshot
Nice=10
IOSchedulingClass=idle
ExecStart={}
END_OF_UNIT
cat >~/.config/systemd/user/compression-service.timer <<'END_OF_UNIT'
[Unit]
Description=Compress voice recordings every night

[Timer]
OnCalendar=*-*-* 02:00:00
Persistent=true

[Install]
WantedBy=timers.target
END_OF_UNIT
systemctl --user daemon-reload && systemctl --user enable --now compression-service.timer
"""


SCHEDULES: Mapping[str, tuple[str, Callable[[str], str]]] = {
    "cron": (CRON, lambda word: shlex.quote(word).replace("%", "\\%")),
    "launchd": (LAUNCHD, lambda word: f"<string>{html.escape(word)}</string>"),
    # A string of C, but for what systemd itself would replace: systemd.syntax(7).
    "systemd": (
        SYSTEMD,
        lambda word: json.dumps(word, ensure_ascii=False).replace("%", "%%").replace("$", "$$"),
    ),
}
DEMO_FILES = {
    "config.json": "{}",
    "recordings/index.json": '{"recordings": [{"id": "2025-10-27T14:30:45Z"}]}',
    "recordings/2025-10-27/14-30-45-chunk-1.json": '{"id": "2025-10-27T14:30:45Z", '
    '"chunks": [{"file": "14-30-45-chunk-1.webm"}]}',
}
DEMO_TIME = 1_761_575_445  # that its documents say
DEMO_BEGINS = """\
This makes a library of two recordings in a temporary folder; one of them is cut short. Then it
shows what a run would do, a run, another run that finds nothing left to do, and the statistics.
Nothing of yours is touched. Lines with --- are the commands."""
DEMO_ENDS = f"""\
The good recording is its copy now. The broken one is as it was, with the reason. Next, on your own:
  {PROGRAM} --dry-run --recordings FOLDER    what a run would do; changes nothing
  {PROGRAM} doctor --recordings FOLDER       whether a night would work
  {PROGRAM} schedule cron                    a line that makes a run every night"""
DEMO_SOUND = (
    "-f lavfi -i anoisesrc=duration=6:color=brown:sample_rate=48000:amplitude=0.3,tremolo=f=3:d=0.9"
    " -c:a libopus -b:a 130k -frame_duration 60 -f webm"
)


def command_demo(config: Config, report: Report) -> None:
    """Does the whole job on a library of its own, in a folder that is removed afterwards."""
    report.write(DEMO_BEGINS, sys.stdout)
    with tempfile.TemporaryDirectory(prefix="compression-demo-") as folder:
        day = join(folder, "recordings/2025-10-27")
        os.makedirs(day)
        for name, text in DEMO_FILES.items():
            Path(folder, name).write_text(text)
        tools = Tools(Stop())
        for name in ("14-30-45-chunk-1.webm", "16-00-00-cut-short.webm"):
            tools.run([tools.ffmpeg, *QUIET, *DEMO_SOUND.split(), name], 6, folder=day)
        os.truncate(join(day, name), 40_000)
        for name in os.listdir(day):
            os.utime(join(day, name), (DEMO_TIME, DEMO_TIME))
        for words in ("run --dry-run", "run", "run", "stats"):
            report.say(f"{folder}/recordings/2025-10-27: {', '.join(sorted(os.listdir(day)))}")
            report.say(f"--- {PROGRAM} {words} ---")
            code = main([*words.split(), "-c", join(folder, "config.json")])
            report.exit_code = max(report.exit_code, code)
    report.write(DEMO_ENDS, sys.stdout)


def command_pause(config: Config, report: Report) -> None:
    """Runs do nothing until resumed, or until a time that our file `paused` then holds."""
    library = library_of(config)
    library.make_own()
    until = math.inf if config.pause_for is None else time.time() + config.pause_for
    try:
        with open(library.open_own("paused", os.O_WRONLY | os.O_TRUNC), "w") as file:
            file.write(str(until))
    except OSError:  # an empty file would be a pause without an end
        remove_all([library.own("paused")])
        raise
    report.say(library.paused(time.time()))


def command_keep(config: Config, report: Report) -> None:
    """`keep PATH... [--off]`; also `-n`."""
    if not config.paths:
        raise UsageError("keep: expected PATH...")
    run = Run(config, report)
    run.library.require(config.log_file)
    report.open_log()
    with run.open(locks=not config.dry_run):
        for recording in asked_for(run):
            if run.stop.requested:
                break
            try:
                set_keep(run, recording)
            except (Flaw, Refusal, OSError) as error:
                report.error(f"{recording.key}: {explain(error)}", exit_code_of(error))


def set_keep(run: Run, recording: Recording) -> None:
    """Makes all sidecars that own a recording say `keep`, or (`--off`) no longer say it. Raises
    Flaw, Refusal, OSError."""
    config, folder = run.config, run.library.path(recording.folder)
    edit = partial(edit_policy, keep=not config.off)
    names = [sidecar.name for sidecar in recording.sidecars if sidecar.listed]
    if not names:
        raise Flaw(recording.policy.unreadable or "it has no sidecar, where the policy would stand")
    for name in names:
        read_whole(join(folder, name), edit)
        if not config.dry_run:
            rewrite(join(folder, name), edit, run.staging, backup=True)
            flush_folder(folder)
    runs = "In a dry run only: runs" if config.dry_run else "Runs"
    what = "may work again on" if config.off else "leave alone"
    by = join(recording.folder, names[0])
    run.report.once(f"{runs} {what} {recording.key}, by {by}.")


def command_resume(config: Config, report: Report) -> None:
    paused, text = library_of(config).own("paused"), "It was not paused."
    if lexists(paused):
        os.unlink(paused)
        text = "Resumed: the next run goes on."
    report.say(text)


COMMANDS: Mapping[str, Command] = {
    "run": Command(
        "compress what is due (also without a command)",
        "dry_run age_threshold_days target_bitrate target_format delete_originals jobs only since "
        "until language limit max_run_minutes retry json quiet verbose progress",
        command_run,
    ),
    "stats": Command(
        "what the library takes, what was saved, what is due", "json html", command_stats
    ),
    "check": Command(
        "fully verify the compressed library against its records",
        "archive jobs json quiet verbose progress",
        command_check,
    ),
    "restore": Command(
        "bring back kept originals and archived recordings",
        "paths last_run dry_run json quiet verbose",
        command_restore,
    ),
    "keep": Command(
        "make runs leave recordings as they are, or no longer", "paths off dry_run", command_keep
    ),
    "pause": Command("make runs leave the library alone", "pause_for", command_pause),
    "resume": Command("let runs go on", "", command_resume),
    "serve": Command(
        "show the statistics as a page and as JSON, over HTTP", "host port", command_serve
    ),
    "schedule": Command(
        "print an entry for cron, launchd or systemd", "scheduler", command_schedule
    ),
    "doctor": Command("try out what a night needs, and say what was found", "", command_doctor),
    "demo": Command("the whole job on a small library in a temporary folder", "", command_demo),
}

if __name__ == "__main__":
    sys.exit(main())
