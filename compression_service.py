#!/usr/bin/env python3
"""compression_service.py - make voice recordings smaller, without ever losing a second of one.

It walks a library of WebM recordings made by a browser-based transcription recorder. It converts
those older than a week to Opus with ffmpeg and proves every copy against its source. Only then does
it delete the original. Sidecar metadata, master index, log and history stay true at every step.

The promise: at every instant, whatever is killed or unplugged, the audio of every recording exists
complete, as its original or as a verified copy. Every sidecar names files that exist. A recording
that cannot be proven is kept.

Three ideas carry the program.

A take is a stem in a folder. `2025-10-27/14-30-45-chunk-1` is one take, whatever files it has just
now: an original, a copy, what the history remembers of it. Everything asks the take: `Take.state`.

Documents are derived, not tracked. The members of a sidecar or an index entry are a pure function
of the takes after a move (`facts_of`, `sidecar_members`). Making them true is one step that can be
repeated: for every move, after a kill, and where a server has overwritten them.

Every change is a move. `next_move` is pure and picks the row, `Committer.commit` carries it out:

    move      when                                 placed                        removed last
    compress  an original, old enough, no copy     staged -> x.opus, never over  x.webm
    adopt     an original beside a copy of ours    nothing; the copy is proven   x.webm
              not on record as proven
    smaller   a tier asks for less                 staged, exchanged with it     old copy; x.webm
    free      an original whose days are over      nothing; the copy is proven   x.webm
    archive   an old recording, all compressed     in the archive, read back     the file here
    restore   asked for: an original kept here     nothing; the copy is proven   the copy
    restore   asked for: archived                  fetched, staged -> its name   nothing

An original is removed only where settings let a move do so. The next run continues what was cut
short, from what is on disk: it adopts a copy without a record, and finishes a restore.

The way of one recording, and the sections of this file in the same order:

    command line    options and commands                            main()
    configuration   flag, then file, then default                   Config, resolve_config()
    run             one run's work, start to summary                Run, Queue
    trials          what a run needs, tried before it                try_commits(), try_ffmpeg()
    library         the walk; sidecars, takes, recordings           Library, resolve_recordings()
    plan            which move is next, pure                        next_move(), decide()
    probe           what is in a file, every byte accounted for     probe(), provenance()
    prove           encode, walk, decode, compare                   Transcoder, compare_audio()
    commit          the only section that changes the library       Committer
    documents       JSON edited as text; what it must say           JsonText, facts_of(), rewrite()
    archive         where old recordings go, proven to be there     Archive
    restore         a recording comes back as a whole               command_restore()
    check           the library against its records                 command_check()
    history         what became of every take                       History
    statistics      what it takes and what was saved; the page      storage_stats()
    tools           the one place that starts a process             Tools
    files           the one place that writes durably               place(), exchange(), Staging
    report          the one place that prints and logs              Report
    set-up          doctor, schedule, demo

Exit codes: 0 done or nothing to do; 1 something failed (its original is kept); 2 wrong usage or
configuration, or no such library; 3 another run is at work; 4 a needed program is missing or does
not work; 5 too little disk space; 129/130/143 stopped by SIGHUP/SIGINT/SIGTERM.
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
    islink,
    join,
    lexists,
    realpath,
    relpath,
    splitext,
)
from pathlib import PurePath
from time import monotonic
from typing import (
    IO,
    Any,
    Callable,
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
# A number stands here if more than one section uses it or a reader may want to change it. Each
# says where it comes from. Other constants stand at the head of their section.

SOURCE_SUFFIX = ".webm"
SIDECAR_SUFFIX = ".json"
BACKUP_SUFFIX = ".bak"  # behind a sidecar's name: as it was before our first change
INDEX_NAME = "index.json"
OWN_FOLDER = ".compression"  # in the library: history.jsonl, paused, lock, id, level files
ID_NAME = "id"  # in our own folder and, as the library's mark, in such a folder of its archive
RESTORING = "restoring"  # the code of a restore that is not finished
# Beside its target, and what rclone makes of such a name.
STAGED = re.compile(r"\.compression-[0-9a-f]{8}-\d+\.part.*", re.DOTALL)
STAGED_NAME = ".compression-{}-{}.part"  # its token is the run's, so that others are leftovers

OPUS_RATE = 48_000  # Hz; the clock of every Opus stream (RFC 7845, section 4)
BYTES_PER_SECOND = 16_000  # of a browser's default recording: a first guess at length from size
BATCH_FILES = 25  # 100 three-second files: 8 a process 7.0 s, 25 a process 4.9 s, measured
BATCH_SECONDS = 600.0  # audio in one process; longer files gain nothing from sharing a start
CHANNEL_RATE = 256_000  # bit/s, the most that libopus takes for each channel
SPACE_MARGIN = 2 << 20  # bytes left free beside what a batch may need: sidecars, index, log
LARGEST_JSON = 64 << 20  # bytes; what is longer counts as a document that cannot be read
ATTEMPTS = 3  # a failure is tried again by the next two runs, then remembered


class Format(NamedTuple):
    """A kind of copy: how it is made, and what its length and size may be.

    `payload` is the share of the asked bit rate that the encoder really uses on speech (measured).
    `slack` is how many samples, at its own rate, its length may differ from what went in: none for
    Opus (RFC 7845 trims to the sample), two frames for AAC.
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
    sample_bits: float  # that its encoder uses at most
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
# The words that appear in output, log and history, and the errors by which sections speak to each
# other. Strings stand here and nowhere else: everything below compares members, never texts.


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


class Move(str, enum.Enum):
    """The ways a take can change; the table is in the docstring of this file."""

    __hash__ = str.__hash__  # the word in the history finds the same entry of a table
    COMPRESS = "compress"
    ADOPT = "adopt"
    SMALLER = "smaller"
    FREE = "free"
    ARCHIVE = "archive"
    RESTORE = "restore"


class State(enum.Enum):
    """The states of a take, from its files and its past alone."""

    WAITING = "waiting"  # an original, still to be compressed (or too young yet)
    RESTING = "resting"  # an original that stays one, for a reason on record
    COMPRESSED = "compressed"  # a proven copy stands for it, whether or not the original is here
    RESTORED = "restored"  # its original came back, and stands for it again
    ARCHIVED = "archived"  # nothing here, and a place where it is
    MISSING = "missing"  # nothing here, and no place: not synchronised yet, or deleted by its owner


class Reason(enum.Enum):
    """Why: the action, and the sentence for the user, in which `{}` stands for what was found in
    this file."""

    def __init__(self, text: str) -> None:
        action, self.sentence = text.split(": ", 1)
        self.action = Action(action)

    DONE = "compressed: proven and put in place{}"
    ADOPTED = "compressed: its copy was there already, and was proven again{}"
    DUE = "would-compress: due{}"
    ADOPT_DUE = "would-compress: its copy is there already, and is to be proven again{}"
    FREED = "freed: its days are over, and its copy was proven again{}"
    FREE_DUE = "would-free: its days are over, and its copy is to be proven again{}"
    ARCHIVED = "archived: in {}"
    ARCHIVE_DUE = "would-archive: to {}"
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
    POLICY_KEEP = "kept: its sidecar's compression_policy says keep{}"
    POLICY_INVALID = "kept: its sidecar's compression_policy cannot be followed: {}"
    SIDECAR = "kept: its sidecar cannot be edited: {}"

    SIDECAR_FAILED = "failed: its copy is there, but its sidecar cannot be written: {}"
    TOOL_REFUSED = "failed: ffmpeg cannot work on it: {}"
    TOOL_FAILED = "failed: ffmpeg failed: {}"
    TOOL_HUNG = "failed: a program hung and was stopped: {}"
    TOOL_KILLED = "failed: ffmpeg was stopped from outside, or lacked what it needs: {}"
    NOT_PROVEN = "failed: the copy did not prove true and was dropped: {}"
    NOT_REMOVED = "failed: its copy is there, but the original cannot be deleted: {}"
    NAME_TAKEN = "failed: name already taken: {}"
    NAME_TOO_LONG = "failed: a name is too long: {}"
    FORESEEN = "failed: its commit would fail, in {}"
    OWNER = "failed: its copy could not be given to its owner: {}"
    ARCHIVE_REFUSED = "failed: cannot be archived: {}"
    NOT_RESTORED = "failed: cannot be restored: {}"
    CHANGED = "failed: the recording changed while it was being worked on{}"
    NO_SPACE = "failed: no space left: {}"
    INPUT_OUTPUT = "failed: cannot be read or written: {}"
    DEFECT = "failed: a defect of this program (its traceback is in the log): {}"

    @property
    def code(self) -> str:
        return self.name.lower().replace("_", "-")

    @property
    def is_environment(self) -> bool:
        """Whether the cause lies outside the recording, so that it must not count against it."""
        return self in (
            Reason.FORESEEN,
            Reason.OWNER,
            Reason.NO_SPACE,
            Reason.INPUT_OUTPUT,
            Reason.TOOL_KILLED,
        )

    @property
    def may_be_ffmpeg(self) -> bool:
        """Whether ffmpeg may be to blame: then it is tried on a sound of our own (trials)."""
        return self in (
            Reason.DAMAGED,
            Reason.TOOL_REFUSED,
            Reason.TOOL_FAILED,
            Reason.TOOL_HUNG,
            Reason.TOOL_KILLED,
            Reason.NOT_PROVEN,
        )


class ServiceError(Exception):
    """Ends the run with its own exit code and a sentence that says what to do."""

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
    """The run was asked to stop while a tool was at work; whatever it wrote is dropped."""


class Refusal(Exception):
    """This take stays as it is: the reason, and what was found."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(reason.sentence.format(detail))
        self.reason, self.detail = reason, detail


class NotProven(Refusal):
    """A copy failed a check: what was expected, and what was found. The copy is dropped."""

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(Reason.NOT_PROVEN, f"expected {expected}, found {found}")


class Flaw(Exception):
    """A JSON document that cannot be read, or not be edited without a guess; says why."""


# --------------------------------------------------------------------------------------- records
# The values that sections give each other. All except Work are immutable. None opens a file. Paths
# are relative to the library unless a name says otherwise. Sizes are bytes, rates bit/s, times
# seconds.


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

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Past:
        """Returns a past from the object `past` in a line of the history. Nothing odd in it may
        become a path or a date. Raises what is ODD."""
        said = {**record, "ids": map(sys.intern, record.get("ids", ()))}
        place = remembered(Place(), said.pop("place", {}))
        past = remembered(cls(), said)
        is_plain = basename(place.name) == place.name not in (".", "..")
        is_suffix = past.suffix in ("", *COPY_SUFFIXES)
        is_time = all(0 <= moment < LATEST for moment in (past.compressed, place.time))
        if not (is_plain and is_suffix and is_time) or "\0" in place.location + place.name:
            raise ValueError("an odd name or time")
        place = place._replace(mode=place.mode & 0o666)  # no text gives a file more than that
        return past._replace(place=place if place.name else None)

    def record(self) -> dict[str, Any]:
        """For a line of the history: what differs from a past that remembers nothing."""
        values = {key: value for key, value in self._asdict().items() if value}
        if self.place:
            values["place"] = self.place._asdict()
        return values

    def speaks_of(self, file: File) -> bool:
        sizes = (self.first_size, self.size)
        return any(file.is_on_record(size, self.mtime_ns) for size in sizes)

    @property
    def is_settled(self) -> bool:
        """Returns whether the last outcome stays, as long as file, policy and settings do."""
        if self.action == Action.FAILED:
            return self.attempts >= ATTEMPTS
        return self.action in (Action.KEPT, Action.RESTORED)

    @property
    def is_at_rest(self) -> bool:
        """Kept, given up or archived: no run compresses it, as long as its settings hold."""
        return self.is_settled or self.move == Move.ARCHIVE

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
    """One stem in one folder: the files it has, which copies are ours, and its past.

    `ours` holds the copies that carry our tag (with its bit rate) or that a sidecar calls by name
    (with 0); one that is on record needs neither. Any other file in a copy's format is a
    stranger's.
    """

    stem: str  # path below the library, without a suffix: the key of the history
    originals: tuple[File, ...] = ()  # more than one is a clash: x.webm beside x.WEBM
    copies: tuple[File, ...] = ()
    past: Past = NO_PAST
    ours: Mapping[str, int] = {}

    @property
    def folder(self) -> str:
        return dirname(self.stem)

    @property
    def name(self) -> str:
        """The stem without its folder."""
        return basename(self.stem)

    @property
    def files(self) -> tuple[File, ...]:
        return (*self.originals, *self.copies)

    def with_files(self, files: Iterable[File]) -> Take:
        """Returns this take with other files."""
        files = tuple(files)
        return self._replace(
            originals=tuple(file for file in files if file.is_original),
            copies=tuple(file for file in files if file.suffix in FORMAT_OF),
        )

    @property
    def original(self) -> Optional[File]:
        """The one that its past speaks of, if there are several."""
        known = (file for file in self.originals if self.past.speaks_of(file))
        return next(known, self.originals[0] if self.originals else None)

    @property
    def is_known(self) -> bool:
        """Whether its past speaks of the original that is here, and not of an earlier one."""
        return self.original is not None and self.past.speaks_of(self.original)

    @property
    def proven_copy(self) -> Optional[File]:
        """The copy that is on record as proven, by size and mtime."""
        past = self.past
        for file in self.copies:
            is_known = file.is_on_record(past.size, past.mtime_ns)
            if past.suffix and file.name == self.name + past.suffix and is_known:
                return file
        return None

    @property
    def copy(self) -> Optional[File]:
        """The copy that is ours: the proven one, else one that says it is."""
        ours = (file for file in self.copies if file.name in self.ours)
        return self.proven_copy or next(ours, None)

    @property
    def bitrate(self) -> int:
        """Returns the bit/s that its copy was asked for, by record or tag; 0 where neither says."""
        if self.proven_copy or not self.copy:
            return self.past.bitrate
        return self.ours[self.copy.name]

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
            return State.COMPRESSED if self.copy else away
        if not self.is_known:
            return State.WAITING
        if self.past.is_restored:
            return State.RESTORED if self.past.suffix else State.RESTING
        if self.proven_copy:
            return State.COMPRESSED
        return State.RESTING if self.past.is_at_rest else State.WAITING

    @property
    def file(self) -> Optional[File]:
        """The file that stands for it in every document; None where nothing is here."""
        return self.copy if self.state is State.COMPRESSED else self.original

    def name_now(self, name: str) -> str:
        """Returns the name a document should use now for the file it calls `name`. Names change
        only between the original and the copy that stands for it, or back after a restore. The name
        of another file stays."""
        suffix, file, state = splitext(name)[1], self.file or self.past.place, self.state
        is_other = any(each.name == name for each in self.originals if each != self.original)
        is_original = suffix.lower() == SOURCE_SUFFIX and not is_other
        is_left = state in (State.COMPRESSED, State.ARCHIVED) and is_original
        is_back = state is State.RESTORED and suffix == self.past.suffix
        return file.name if file and (is_left or is_back) else name


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

    def __init__(self, root: str, folder: str, takes: Mapping[str, Take]) -> None:
        """`root` is the library's path; `takes`, by name, are those here or in the history."""
        self.root, self.folder, self.takes = root, folder, takes
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
        return "" if any(map(lexists, paths)) else name

    def find(self, text: str) -> Sequence[str]:
        """Returns the names that a string may mean, as their files spell them: none if it is data,
        several if it fits several files."""
        name = self.own_part(text)
        if self.has(name):
            return [name]
        stem, suffix = splitext(folded(name))
        stems = self.stems.get(stem, ()) if suffix in AUDIO_SUFFIXES else ()
        return [self.spelled(each, suffix) for each in stems]

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
    policy: Any = None  # as it stands there, not checked yet
    location: str = ""  # where it says that its recording is archived
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
    def key(self) -> str:
        """Returns a name for it. Compression does not change this name."""
        return min(take.stem for take in self.takes)

    def seconds_of(self, take: Take) -> float:
        """Returns the length of a take by the sidecars, 0 if they do not say."""
        name = folded(take.name)
        return max((sidecar.durations.get(name, 0.0) for sidecar in self.sidecars), default=0.0)

    @property
    def location(self) -> str:
        """Returns where its sidecars say that it is archived; "" if they do not."""
        return next((each.location for each in self.sidecars if each.location), "")

    @property
    def is_witnessed(self) -> bool:
        """Returns whether files are missing that, by a sidecar but not by the history, are
        archived. The history may be an old one, so nothing is written against the sidecar."""
        is_missing = any(take.state is State.MISSING for take in self.takes)
        return is_missing and self.location != ""


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
        """Returns takes with their pasts, by name without suffix. They are made on demand: most
        nights need the files alone."""
        files: dict[str, list[File]] = {}
        for file in sorted(self.audio):
            files.setdefault(stem_of(file.name), []).append(file)
        takes, pasts = {}, self.library.history.in_folder(self.path)
        for name, group in files.items():
            stem = join(self.path, name)
            takes[name] = Take(stem, past=pasts.get(stem, NO_PAST)).with_files(group)
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


class Tier(NamedTuple):
    """A further step, for what is at least `after_days` old: a lower bit rate, or an archive."""

    after_days: float
    bitrate: Optional[int] = None
    archive: Optional[str] = None  # an absolute folder, or an rclone remote `name:path`


class Plan(NamedTuple):
    """One row of the table of moves, for one take; with a `refusal` that it is kept, and why."""

    move: Move
    source: Optional[File]  # what is encoded, proven against or archived; None: to be fetched
    target: Target
    settings: str  # that this rests on
    goes: tuple[File, ...] = ()  # removed last
    refusal: Optional[Refusal] = None

    @property
    def encodes(self) -> bool:
        """Whether a copy is made. Otherwise the one that is here is proven."""
        return self.move in (Move.COMPRESS, Move.SMALLER)


class Moment(NamedTuple):
    """The time that steps by age go by, in seconds since the epoch. A jump of the clock must cost
    nothing. `now` is for the first compression, `careful` for every other step."""

    now: float
    careful: float

    def age(self, file: File) -> float:
        """In days."""
        return (self.now - file.mtime_ns / 1e9) / DAY

    def careful_age(self, file: File) -> float:
        """In days."""
        return (self.careful - file.mtime_ns / 1e9) / DAY


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
        if step > GAP_SECONDS:
            # Whole milliseconds that are whole samples, here and at the rate of the levels.
            tick = self.rate // math.gcd(self.rate, 1000)
            written = self.length / self.rate + self.silence
            gap = round((seconds - self.origin - written) * self.rate / tick) * tick
            if gap > 0:  # else what came before ran ahead of its stamps
                self.gaps.append((max(0, self.length - self.pre_skip), gap))
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
    def kilobits(self) -> float:
        """kbit/s of coded audio, from the packets; no header carries it."""
        payload = sum(size * count for (size, _), count in self.packets.items())
        return payload * 8 / 1000 / self.seconds


GAP_SECONDS = 0.1  # of stamps, from here on silence; less is jitter (WebAudio steps by 52-70 ms)
LONGEST_LEAD = 10.0  # seconds of silence at the start; beyond, its clock began before it
LARGEST_STEP_BACK = 1.0  # seconds; more is no backlog of a frozen tab but damage
MOST_GAPS = 1000  # each is a term of an expression that ffmpeg evaluates for every frame


@dataclass(eq=False)
class Work:
    """One move of one take on its way through a run; filled in from section to section."""

    take: Take
    recording: Recording
    plan: Plan
    source_seen: Optional[Witness] = None  # when it was probed
    copy_seen: Optional[Witness] = None  # when it had been proven
    displaced_seen: Optional[Witness] = None  # the copy that `smaller` replaces
    probe: Optional[Probe] = None
    estimate: int = 0  # bytes that the copy will have
    staged: str = ""  # absolute path; "" where nothing is to be placed
    copy: Optional[File] = None  # what stands for the take afterwards, once proven
    place: Optional[Place] = None  # in the archive, once it is proven to be there
    reason: Optional[Reason] = None  # set once: what became of it
    detail: str = ""
    trace: str = ""  # of a defect, for the log

    @property
    def path(self) -> str:
        """Returns the path of the source below the library."""
        source = self.plan.source or self.take.past.place or self.take.file
        return join(self.take.folder, source.name if source else self.take.name)

    @property
    def source_size(self) -> int:
        """Bytes; 0 where the source is to be fetched."""
        return self.plan.source.size if self.plan.source else 0

    @property
    def guessed_seconds(self) -> float:
        """Returns a guess at the seconds of audio, from the size alone."""
        return self.source_size / BYTES_PER_SECOND

    @property
    def target_path(self) -> str:
        """Returns the path of the copy below the library."""
        is_fetched = self.plan.move is Move.RESTORE and self.plan.source is None
        return self.path if is_fetched else self.take.stem + self.plan.target.form.suffix

    @property
    def is_ready(self) -> bool:
        """Whether it is proven, and only the commit is left."""
        return self.reason is None and (self.copy is not None or self.place is not None)

    @property
    def outcome_reason(self) -> Reason:
        """Returns the reason it has, or will have after its commit."""
        return self.reason or REASON_OF[self.plan.move]

    def refuse(self, error: Exception) -> None:
        """Set reason and detail for whatever kept it from going on: a Refusal's own; of an OSError
        by its errno (no space, name too long, else input/output); of anything else a defect."""
        # The report names its path.
        self.detail = re.sub(rf" \(\S*/{re.escape(self.path)}\)$", "", explain(error))
        if isinstance(error, Refusal):
            self.reason, self.detail = error.reason, error.detail
        elif isinstance(error, OSError):
            self.reason = REASON_OF_ERRNO.get(error.errno or 0, Reason.INPUT_OUTPUT)
        elif isinstance(error, MemoryError):
            self.reason, self.detail = Reason.TOOL_KILLED, "memory is short"
        else:
            self.reason = Reason.DEFECT
            lines = traceback.format_exception(type(error), error, error.__traceback__)
            self.trace = "".join(lines)

    def past_after(self, now: float) -> Past:
        """What the history will say of the take: pure. Sizes, bit rate and `compressed` of a copy
        that it had stay when a later step is kept or fails; a failure under the same settings
        counts one attempt more unless its reason `is_environment`. A failed restore changes
        nothing."""
        reason, plan, last = self.outcome_reason, self.plan, self.take.past
        source, action = plan.source, reason.action
        if plan.move is Move.RESTORE and action is not Action.RESTORED:
            return last
        known = last if source is None or last.speaks_of(source) else NO_PAST
        is_begun = plan.move is Move.RESTORE and not self.reason
        attempts = 0
        if action is Action.FAILED:
            is_again = (known.move, known.settings) == (plan.move, plan.settings)
            attempts = known.attempts * is_again + (not reason.is_environment)
        past = known._replace(
            action=action,
            code=RESTORING if is_begun else reason.code,
            move=plan.move,
            settings=plan.settings,
            attempts=attempts,
            time=now,
            seconds=self.seconds,
            ids=self.recording.ids or last.ids,
            place=self.place or (None if plan.move is Move.RESTORE else last.place),
        )
        if source:
            first_size = source.size if source.is_original else known.first_size
            past = past._replace(mtime_ns=source.mtime_ns, first_size=first_size)
        if action in (Action.COMPRESSED, Action.FREED) and self.copy:
            # A copy that was here already keeps the rate and date on record or in its tag.
            return past._replace(
                suffix=self.copy.suffix,
                size=self.copy.size,
                mtime_ns=self.copy.mtime_ns,
                bitrate=plan.target.bitrate if plan.encodes else self.take.bitrate,
                compressed=now if plan.encodes else known.compressed or now,
            )
        if action is Action.RESTORED and source and not (is_begun and plan.goes):
            # The copy is gone, or stays as it did not prove to be the original's: from now on any
            # file in its place is unproven.
            return past._replace(size=0)
        return past

    @property
    def seconds(self) -> float:
        return round(self.probe.timeline, 3) if self.probe else self.take.past.seconds

    def take_after(self, now: float) -> Take:
        """The take as it will be once the move is through: its files and `past_after`. From these,
        and from nothing else, commit derives the documents."""
        take = self.take._replace(past=self.past_after(now))
        if self.outcome_reason.action not in DONE_ACTIONS:
            return take
        new = (self.copy,) if self.copy else ()
        gone = {file.name for file in (*self.plan.goes, *new)}
        return take.with_files((*(file for file in take.files if file.name not in gone), *new))

    def outcome(self) -> dict[str, Any]:
        """The object of `--json`, which is also the head of its line in the history."""
        reason, place = self.outcome_reason, self.place
        is_done = reason.action in DONE_ACTIONS
        copy = self.copy if is_done else None
        file = join(self.take.folder, copy.name) if copy else self.path
        outcome = {
            "type": "recording",
            "path": self.path,
            "file": join(place.location, place.name) if place and not copy else file,
            "action": reason.action,
            "reason": reason.sentence.format(self.detail),
            "original_size": self.source_size,
            "compressed_size": copy.size if copy else None,
            "seconds": self.seconds,
        }
        if reason.action is Action.WOULD_COMPRESS:
            outcome["estimated_size"] = self.estimate
        return outcome


DONE_ACTIONS = (Action.COMPRESSED, Action.FREED, Action.ARCHIVED, Action.RESTORED)
REASON_OF = {
    Move.COMPRESS: Reason.DONE,
    Move.ADOPT: Reason.ADOPTED,
    Move.SMALLER: Reason.DONE,
    Move.FREE: Reason.FREED,
    Move.ARCHIVE: Reason.ARCHIVED,
    Move.RESTORE: Reason.RESTORED,
}
DUE_REASON_OF = {
    Move.COMPRESS: Reason.DUE,
    Move.ADOPT: Reason.ADOPT_DUE,
    Move.SMALLER: Reason.DUE,
    Move.FREE: Reason.FREE_DUE,
}
REASON_OF_ERRNO = {
    errno.ENOSPC: Reason.NO_SPACE,
    errno.EDQUOT: Reason.NO_SPACE,
    errno.ENAMETOOLONG: Reason.NAME_TOO_LONG,
    errno.ELOOP: Reason.CHANGED,  # a link where a file was: we follow none
    errno.EEXIST: Reason.NAME_TAKEN,
}


def explain(error: Exception) -> str:
    """Returns a sentence on an error, with the file if the system named one."""
    if not isinstance(error, OSError):
        return str(error)
    names = (error.filename, error.filename2)
    paths = ", ".join(os.fsdecode(name) for name in names if isinstance(name, (str, bytes)))
    return f"{error.strerror or error}" + (f" ({paths})" if paths else "")


# ---------------------------------------------------------------------------------- command line
# Words in, one command called, an exit code out. Errors that have a name become one sentence here
# and nowhere else. Must never touch the library, and never leave by sys.exit from below main().

EXIT_CODES = (
    "Exit codes: 0 done or nothing to do; 1 something failed, its original is kept; 2 wrong usage "
    "or configuration, or no such library; 3 another run is at work; 4 a needed program is missing "
    "or does not work; 5 too little disk space; 129, 130, 143 stopped by a signal."
)


class Command(NamedTuple):
    """A subcommand: its help, the settings it has flags for, and what it does."""

    help: str
    settings: str
    run: Callable[[Config, Report], None]


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
        report.summary(report.failed(error))
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
    at = place_of_command(words)
    name = words[at] if at < len(words) else "run"
    if name not in COMMANDS:
        near = nearest(name, COMMANDS)
        front_page().error(f"There is no command '{name}'; the nearest is '{near}'")
    about = COMMANDS[name].help
    parser = Parser(
        prog=f"{PROGRAM} {name}", description=about, epilog=EXIT_CODES, allow_abbrev=False
    )
    for each in settings_of_command(name):
        add_flag(parser, SETTINGS[each])
    others = [*words[:at], *words[at + 1 :]]
    if "--" in others:  # the intermixed parser forgets it
        end = others.index("--")
        others[end:] = [join(os.curdir, path) for path in others[end + 1 :]]
    found, unknown = parser.parse_known_intermixed_args(others)
    if unknown:
        flags = {flag: each for each in (*COMMANDS, name) for flag in flags_of_command(each)}
        near = nearest(unknown[0].partition("=")[0], flags)
        whose = "" if flags[near] == name else f" of '{flags[near]}'"
        said = f"; the nearest is {near}{whose}" if unknown[0].startswith("-") else ""
        parser.error(f"'{name}' takes no {unknown[0]}{said}")
    found.command = name
    return found


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


def place_of_command(words: Sequence[str]) -> int:
    """Returns where the first word stands that is neither an option nor an option's value, or how
    many words there are."""
    before = ""
    for at, word in enumerate(words):
        if word == "--":
            break
        if not word.startswith("-") and before not in VALUED:
            return at
        before = "" if before in VALUED else word
    return len(words)


def settings_of_command(name: str) -> list[str]:
    return f"file recordings_dir {COMMANDS[name].settings}".split()


def flags_of_command(name: str) -> Iterator[str]:
    for each in settings_of_command(name):
        yield from flags_of(SETTINGS[each])


def nearest(word: str, known: Iterable[str]) -> str:
    return difflib.get_close_matches(word.lower(), known, 1, 0)[0]


def add_flag(parser: argparse.ArgumentParser, field: dataclasses.Field[Any]) -> None:
    """Adds the flags of a setting, or the words that stand without one. Its help also names its key
    in the config file, and the default."""
    kind, declared, has_key = field.metadata.values()
    flags, text = flags_of(field), declared.partition(": ")[2]
    options: dict[str, Any] = {"dest": field.name, "help": text}
    if kind is check_boolean:
        options["action"] = BOOLEAN_ACTIONS[field.default]
    else:
        options.update(metavar=flags.pop(), type=partial(from_text, kind))
    if kind is TEXTS:
        options.update({"action": "append"} if flags else {"nargs": "*"})
    if has_key:
        options["help"] += f" (config key: {field.name}, default: {json.dumps(field.default)})"
    parser.add_argument(*flags, default=None, **options)


def flags_of(field: dataclasses.Field[Any]) -> list[str]:
    """Returns the flags of a setting, and what stands behind them unless it is a boolean."""
    return str(field.metadata["flags"]).partition(": ")[0].split()


def from_text(kind: Kind, text: str) -> Any:
    """Returns the value of a flag: its text, a path from where we are, or what it is as JSON.
    Raises what argparse reports."""
    try:
        value = kind(text)
    except ValueError as error:
        with suppress(ValueError):
            return kind(json.loads(text))
        raise argparse.ArgumentTypeError(f"{error}, found {text}") from None
    return abspath(value) if kind is check_path else value


# --------------------------------------------------------------------------------- configuration
# One declaration a setting: default, type, flags. Reads the config file; touches nothing else.
# A wrong key or value is named with what was expected, before anything of the library is looked at.

Kind = Callable[[Any], Any]  # the value that is used; raises ValueError with what was expected


def setting(default: Any, kind: Kind, flags: str = "", key: bool = True) -> Any:
    """Declares a field of Config: its flags, what stands behind them and their help, as
    "-j --jobs N: at work at once", and whether the config file has it as a key."""
    metadata = {"kind": kind, "flags": flags, "key": key}
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
    found = re.fullmatch(r"(\d{1,6})([mhd])", str(value))
    if not found:
        raise ValueError("expected a time such as 90m, 2h or 3d")
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
            raise ValueError(f'for "{key}" {error}, found {json.dumps(member)}') from None
    return members


def check_tiers(value: Any) -> tuple[Tier, ...]:
    """Tiers by age, in whatever order they were written."""
    if not isinstance(value, list):
        raise ValueError('expected a list such as [{"after_days": 30, "bitrate": "64k"}]')
    tiers = [check_members(each, TIER_KINDS) for each in value]
    for tier in tiers:
        if len(tier) != 2 or "after_days" not in tier:
            raise ValueError('expected "after_days", and either "bitrate" or "archive"')
    return tuple(sorted((Tier(**tier) for tier in tiers), key=lambda tier: tier.after_days))


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
    verify_before_delete: bool = setting(True, check_boolean)
    min_saving_percent: float = setting(5, number(0, 99))
    jobs: int = setting(
        0, number(0, 999, whole=True), "-j --jobs N: recordings at work at once; 0 is one a core"
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
        None, number(1, 999_999_999, whole=True), "--limit N: at most N recordings, oldest first"
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
    paths: Sequence[str] = flag((), TEXTS, "PATH: a kept original, its copy, a sidecar, a folder")
    last_run: bool = flag(False, check_boolean, "--last-run: all that the last run has changed")
    html: Optional[str] = flag(None, check_page, "--html FILE: write them as a page")
    host: str = flag("127.0.0.1", check_text, "--host H: address to listen on (default: 127.0.0.1)")
    port: int = flag(
        8765, number(0, 65_535, whole=True), "--port P: 0 is any that is free (default: 8765)"
    )
    scheduler: str = flag(
        "",
        choice("cron", "launchd", "systemd"),
        "cron|launchd|systemd: what is to run it every night",
    )
    pause_for: Optional[float] = flag(None, check_duration, "--for TIME: such as 90m, 2h or 3d")

    @property
    def archive_tier(self) -> Optional[Tier]:
        """At most one, and the last."""
        return next((tier for tier in self.tiers if tier.archive), None)

    def tier_rate(self, age: float) -> Optional[int]:
        """Bit/s that the last tier asks for what is `age` days old; None where none does."""
        rates = [tier.bitrate for tier in self.tiers if tier.bitrate and age >= tier.after_days]
        return min(rates, default=None)

    def rate_at(self, age: float) -> int:
        """Bit/s that a recording of `age` days is to have, without a policy."""
        return min(self.target_bitrate, self.tier_rate(age) or self.target_bitrate)


SETTINGS = {field.name: field for field in dataclasses.fields(Config) if field.metadata}
VALUED = {  # flags with a value behind them
    flag
    for field in SETTINGS.values()
    if field.metadata["kind"] is not check_boolean
    for flag in flags_of(field)
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
    }
    config = dataclasses.replace(config, **{**places, **flags})
    lowest, highest = FORMATS[config.target_format].rates
    for tier in (Tier(0, config.target_bitrate), *config.tiers):
        if tier.bitrate and not lowest <= tier.bitrate <= highest:
            span = f"{lowest // 1000}k to {highest // 1000}k"
            raise UsageError(f"{config.target_format}: expected bit rates from {span}.")
        if f"{tier.archive}/".startswith(f"{config.recordings_dir}/"):
            raise UsageError(f"tiers: expected an archive apart from {config.recordings_dir}.")
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
        raise UsageError(f"Config file {path}: {problem}. Nothing was touched.") from None
    return config


def only_once(members: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object; of two different orders under one key neither is followed."""
    document = dict(members)
    if len(document) < len(members):
        raise ValueError("a key stands there twice")
    return document


def check_steps(config: Config) -> None:
    """Raises ValueError where a tier is no step on from what was before it. The first step may be
    written as a tier too."""
    before = Tier(config.age_threshold_days - 1e-6, config.target_bitrate + 1)
    age, rate = "age_threshold_days", "target_bitrate"
    for tier in config.tiers:
        problem, days, bits = "", before.after_days, before.bitrate or 0
        if tier.after_days <= days:
            problem = f"after_days {tier.after_days:g} must be above {age}, which is {days:g}"
        elif not bits:
            problem = "expected the archive last"
        elif tier.bitrate and tier.bitrate >= bits:
            asked = f"{tier.bitrate // 1000}k"
            problem = f"bitrate {asked} must be below {rate}, which is {bits // 1000}k"
        if problem:
            raise ValueError(f'"tiers": {problem}')
        before = tier
        age = rate = "that of the tier before"


def policy_of(sidecars: Iterable[Sidecar], unreadable: str, folder: str = "") -> Policy:
    """Returns the most careful wish of each kind, checked like the configuration."""
    combined: dict[str, Any] = {}
    for sidecar in sidecars:
        try:
            wishes = check_members(sidecar.policy or {}, POLICY_KINDS)
        except ValueError as error:
            flaw = f"{join(folder, sidecar.name)}: {error}"
            return Policy(flaw=flaw, unreadable=unreadable)
        for key, wish in wishes.items():
            combined[key] = max(wish, combined.get(key, wish))
    return Policy(**combined, unreadable=unreadable)


# ------------------------------------------------------------------------------------------- run
# One run from lock to summary: plan, then batches through probe and prove on every core, commits by
# the main thread alone as recordings become ready. May start threads. Must never change the library
# itself, and never lose an outcome: every Work that was planned ends in the report. A dry run takes
# the same way, up to the decision.

LEVEL_BYTES = 64_000  # a second of audio: two level files of two channels, 32 bits, at 4 kHz
DOCUMENT_SECONDS = 0.005  # to make one sidecar true, measured
TRUSTED_SECONDS = 2 * DAY  # that the clock may be ahead of the last run on record
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
        self.through: list[Work] = []  # proven or refused, still to be committed
        self.committed, self.cost = self.started, 0.0  # when last, and the seconds that it took
        self.jobs: dict[Work, Job] = {}  # at work just now
        self.foreseen: dict[str, Take] = {}  # by a dry run, after what it would do; by stem
        self.seconds_done = 0.0  # of audio, as guessed from sizes

    @property
    def history(self) -> History:
        return self.library.history

    @property
    def last(self) -> Mapping[str, Any]:
        """Returns the record of the last run, empty if there is none."""
        runs = [record for record in self.history.runs if record.get("type") == "run"]
        return runs[-1] if runs else {}

    @cached_property
    def clock(self) -> Moment:
        """Returns the time by the clock alone."""
        return Moment(self.now, self.now)

    @cached_property
    def moment(self) -> Moment:
        """The time that steps by age go by: the clock, but at most two days after the last run on
        record, or for the first compression after the newest recording. With no run on record,
        only the first compression goes by the clock. Raises OSError."""
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
        """The whole of `run`. Log line, summary, history's run record and notification follow also
        where it could not begin, is paused, or finds no library; so errors are told here."""
        message = ""
        try:
            self.report.open_log()
            self.library.require(self.config.log_file)
            if self.library.paused(self.now):
                message = f"Paused: {self.library.root} is left alone; 'resume' lets runs go on."
                self.report.once(message)
            elif self.config.dry_run or self.is_begun():
                with self.open(locks=not self.config.dry_run):
                    self.work(plan_run(self))
        except Exception as error:  # so that nothing ends a run in silence
            message = self.report.failed(error)
        summary = self.report.summary(message)
        if self.is_locked:
            self.note(summary)
        if not self.config.dry_run and (message or self.report.has_news):
            self.notify(summary)

    def is_begun(self) -> bool:
        """Returns whether a run did something here before, or has something to do now. Our own
        folder is made only then."""
        if lexists(self.library.own("history.jsonl")):
            return True
        is_due = next(due_works(self), None) or next(plan_archive(self), None)
        # Steps that wait for the second run need the first one on record.
        return bool(is_due or self.report.held or self.report.ahead > 1)

    @contextmanager
    def open(self, locks: bool) -> Iterator[None]:
        """Stop signals and tools, and for who `locks` the library, as a run and restore do: staging
        and committer."""
        with stop_signals() as self.stop, ExitStack() as stack:
            self.tools = Tools(self.stop)
            self.transcoder = Transcoder(self.tools, self.config.verify_before_delete)
            self.trials = Trials(self.library)
            if locks:
                stack.enter_context(self.library.lock())
                self.staging = stack.enter_context(Staging(self.library))
                self.trials = Trials(self.library, self.staging)
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
        """Appends the record of this run, by the time when it began. Where all is true, it has the
        SHA-256 of the index."""
        is_true = not self.committer.ids and not self.report.exit_code
        index = self.committer.index_digest if is_true else ""
        self.history.note(
            [{**summary, "type": self.config.command, "python": sys.executable, "index": index}],
            self.now,
        )

    def work(self, works: list[Work]) -> None:
        """All that a run has to do. The list is emptied: what is through is to take no memory, and
        the packets of a recording alone may take 40 kB."""
        begun = len(works)
        self.report.begin(works, self.workers)
        if works and self.config.dry_run:
            read_signs(self.library)
            self.try_ffmpeg_on(works[0])
        elif works:
            try_commits(self.library)
        begun_before = {
            work.recording.key: work.recording for work in works if work.plan.move is Move.RESTORE
        }
        if self.is_locked:
            bring_back(self, begun_before.values())
        works[:] = [work for work in works if work.plan.move is not Move.RESTORE]
        with self.finishing():
            self.compress(works)
            self.archive(begun)

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Whatever ends the work inside, documents and index are made true. An error is reported
        before, so that what only follows from it is not."""
        try:
            yield
        except ServiceError as error:
            self.report.failed(error)
            raise
        finally:
            if self.is_locked:
                self.committer.finish()

    def compress(self, works: list[Work]) -> None:
        """Keep every worker busy with batches, and commit what comes back; where an error ends it,
        what was proven before is brought to its end."""
        self.through += [work for work in works if work.reason]
        queue = Queue([work for work in works if not work.reason], self.workers)
        works.clear()
        try:
            with Threads(self.workers) as pool:
                self.transcode_all(queue, pool)
        finally:
            self.commit()

    def transcode_all(self, queue: Queue, pool: Executor) -> None:
        running: dict[Future[None], Sequence[Work]] = {}
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
                    self.through += [work for work in batch if work.is_ready]
                    self.find_cause(batch)
                    self.through += [work for work in batch if work.reason]
                    self.seconds_done += sum(work.guessed_seconds for work in batch)
                    if self.transcoder.ended:
                        raise self.transcoder.ended
                done = self.seconds_done + self.seconds_at_work()
                self.report.progress(done, queue.seconds)
        except BaseException:
            self.stop.is_over = True  # an error ends the run: what is at work is dropped
            raise

    def next_batch(self, queue: Queue, at_work: Iterable[Work]) -> Sequence[Work]:
        """Returns works that the disk has room for beside those at work. Returns none to wait for
        these, or at the end."""
        if not queue.waiting or self.must_end():
            return ()
        reserved = SPACE_MARGIN + sum(map(space_needed, at_work))
        batch = queue.take(free_space(self.library) - reserved)
        if batch or reserved > SPACE_MARGIN:
            return batch
        self.commit()  # which gives space back
        room = free_space(self.library) - reserved
        return queue.take(room) or [queue.waiting.popleft()]  # which is reported in prepare

    def commit_in_time(self) -> None:
        """So seldom that it takes little of the time, as many sidecars of one recording are dear to
        write."""
        recordings = {work.recording.key: work.recording for work in self.through}
        documents = sum(len(recording.sidecars) for recording in recordings.values())
        cost = DOCUMENT_SECONDS * documents if documents > len(self.through) else 0
        if monotonic() - self.committed > max(1.0, 10 * cost, 10 * self.cost):
            self.commit()

    def commit(self) -> None:
        """All that is through; only the main thread comes here."""
        works, self.through = self.through, []
        begun = monotonic()
        if self.is_locked:
            self.committer.commit(works)
        else:
            for work in works:
                self.report.outcome(work)
        self.committed = monotonic()
        self.cost = self.committed - begun

    def no_space(self, work: Work, detail: str) -> NoSpaceError:
        folder = self.library.path(work.take.folder)
        done = "What is not done is as it was; make room and run again."
        return NoSpaceError(f"Too little disk space in {folder}: {detail}. {done}")

    def recordings_in(self, folder: Folder) -> list[Recording]:
        """Returns the recordings of a folder. After a defect it returns none and reports that."""
        with boundary(partial(self.report.defect, f"All in {folder.path} was kept")):
            return resolve_recordings(folder)
        return []

    def seconds_at_work(self) -> float:
        jobs = list(self.jobs.items())
        return sum(job.share_done * work.guessed_seconds for work, job in jobs)

    def transcode(self, works: Sequence[Work]) -> None:
        """One batch, in a thread: examine each, stage, prove; every Work leaves ready or refused.
        The one boundary around one recording. Raises Stopped, ServiceError."""
        jobs: dict[Work, Job] = {}
        try:
            for work in works:
                with boundary(work.refuse):
                    self.examine(work)
                    jobs[work] = self.prepare(work)
            self.jobs.update(jobs)
            self.transcoder.process(list(jobs.values()))
            for work, job in jobs.items():
                if not isinstance(job.problem, Stopped):
                    with boundary(work.refuse):
                        self.finish(work, job)
        finally:
            for work, job in jobs.items():
                self.jobs.pop(work, None)
                used = [job.source_levels, job.copy_levels]
                for path in used if work.is_ready else (*used, work.staged):
                    self.staging.discard(path)

    def examine(self, work: Work) -> None:
        """Open the source once: identity, probe, decide; SHA-256. Raises Refusal, OSError."""
        source, path = work.plan.source, self.library.path(work.path)
        with open_regular(path) as file:
            identity = self.library.identity(file)
            work.source_seen = Witness(identity)
            if source is None or identity[-2:] != source[1:]:
                raise Refusal(Reason.CHANGED)
            work.probe = probe(file.fileno(), path, self.tools)
            lasts = work.recording.seconds_of(work.take)
            saving = self.config.min_saving_percent if work.plan.encodes else -math.inf
            work.estimate = decide(work.probe, size_before(work), lasts, work.plan.target, saving)
            self.trials.foresee(work)
            if self.config.dry_run:
                made = basename(work.target_path)
                work.copy = File(made, work.estimate, source.mtime_ns)
                self.foreseen[work.take.stem] = work.take_after(self.now)
                raise Refusal(DUE_REASON_OF[work.plan.move])
            # Only now, because a sparse file may be larger than the disk.
            work.source_seen = Witness(identity, digest_from(file, stop=self.stop))
        if work.plan.move is Move.SMALLER and work.take.copy:
            displaced = self.library.path(work.target_path)
            work.displaced_seen = self.library.witness(displaced, self.stop)

    def prepare(self, work: Work) -> Job:
        """Returns the proof to carry out. A copy to be made gets its staged file. Raises Refusal,
        OSError, NoSpaceError."""
        assert work.probe
        free, needed = free_space(self.library), SPACE_MARGIN + space_needed(work)
        if free < needed:
            found = f"{size_text(free)} free, where {size_text(needed)} are needed"
            raise self.no_space(work, found)
        source, path = self.library.path(work.path), self.library.path(work.target_path)
        if work.plan.encodes:
            work.staged = path = self.staging.beside(path)
            give_attributes_of(source, path)  # or nothing is worth encoding
            os.chmod(path, 0o600)  # until it is whole
        most = size_before(work) * (1 - self.config.min_saving_percent / 100)
        levels = (self.staging.levels(), self.staging.levels())
        return Job(source, work.probe, work.plan.target, path, work.plan.encodes, *levels, most)

    def finish(self, work: Work, job: Job) -> None:
        """After its proof: a copy is flushed with its attributes. Raises Refusal, OSError."""
        if isinstance(job.problem, NotProven) and not job.encodes:
            other = f"{work.target_path} is not a copy of it ({job.problem})"
            raise Refusal(Reason.NAME_TAKEN, other)
        if job.problem:
            raise job.problem
        if not (job.encodes or work.take.proven_copy):
            check_claim(work, job)
        if job.encodes or not work.take.proven_copy:
            give_attributes_of(job.source, job.copy)
        with open_regular(job.copy) as file:
            flush(file.fileno())
        seen = self.library.witness(job.copy, self.stop)
        if seen.sha256 != job.digest and job.encodes:
            raise NotProven("the bytes that were decoded", "others in the file")
        expect(seen.sha256 == job.digest)  # what goes on record is the file that was decoded
        work.copy_seen = seen
        work.copy = File(basename(work.target_path), *seen.identity[-2:])

    def try_ffmpeg_on(self, work: Work) -> None:
        """Whether it makes what this work is to become, and can open its source. Raises
        ToolError."""
        try_ffmpeg(self.tools, work.plan.target, self.library.path(work.path))

    def find_cause(self, works: Sequence[Work]) -> None:
        """After failures that may lie outside the recordings, try what they needed. Raises the
        ServiceError that ends the run, before any of them counts; else they are the recordings'
        own, and what ffmpeg refuses is damaged."""
        refused = [(work, work.reason) for work in works if work.reason]
        suspects = [work for work, reason in refused if reason.may_be_ffmpeg]
        if suspects:
            self.try_ffmpeg_on(suspects[0])
        for work, reason in refused:
            if reason is Reason.NO_SPACE:
                raise self.no_space(work, work.detail)
            if reason is Reason.TOOL_REFUSED:
                work.reason = Reason.DAMAGED
                work.detail = f"ffmpeg cannot decode it ({work.detail})"
        if self.is_locked and any(reason.is_environment for _, reason in refused):
            try_commits(self.library)

    def archive(self, begun: int) -> None:
        """What is old enough goes there, recording by recording, of which `begun` count for --limit
        already. Raises ServiceError where the archive does not answer."""
        archive, limit = configured_archive(self), self.config.limit or math.inf
        if archive is None:
            return
        is_tried = False
        try:
            for works in plan_archive(self):
                if self.must_end() or begun >= limit:
                    break
                if not is_tried:
                    archive.try_it()
                is_tried = True
                begun += len(works)
                if self.is_locked:
                    archive.store(works)
                for work in works:
                    if not (self.is_locked or work.reason):
                        work.refuse(Refusal(Reason.ARCHIVE_DUE, archive.location(work.path)))
                self.through += works
                if archive.refusal:
                    raise ServiceError(archive.refusal)
                self.commit_in_time()
        finally:  # what was proven before is brought to its end
            self.commit()

    def must_end(self) -> bool:
        """Whether nothing new may begin: a signal, --max-minutes, a pause meanwhile. (--limit is
        the plan's.)"""
        minutes = self.config.max_run_minutes or math.inf
        is_late = monotonic() - self.started > minutes * 60
        is_paused = self.library.paused(time.time())
        if is_late:
            self.report.once("Time is up (max_run_minutes); what is left is for the next run.")
        elif is_paused:
            self.report.once("Paused while at work; what is left waits for 'resume'.")
        is_full = self.report.exit_code == NoSpaceError.exit_code
        return self.stop.requested or is_late or is_paused or is_full

    def notify(self, summary: Mapping[str, Any]) -> None:
        """Gives the summary to the user's own command. Its failure is reported and changes
        nothing."""
        if self.config.notify_command:
            shell = ["/bin/sh", "-c", self.config.notify_command]
            folder = dirname(self.config.file) or "/"
            reader, writer = os.pipe()
            try:
                os.write(writer, json.dumps(summary).encode())  # less than a pipe holds
                os.close(writer)
                Tools(Stop()).run(shell, NOTIFY_SECONDS, folder, reader, subprocess.DEVNULL)
            except (Refusal, ToolError) as error:
                detail = getattr(error, "detail", "") or error
                self.report.once(f"The notify_command failed: {detail}.")
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


def give_attributes_of(source: str, copy: str) -> None:
    """Those of one file to another, by path. Raises Refusal, OSError."""
    with open_regular(source) as one, open_regular(copy) as other:
        give_attributes(one.fileno(), other.fileno(), times=True)


def check_claim(work: Work, job: Job) -> None:
    """A tag can be forged, and a name can mean a preview. A copy that is not on record as ours must
    have the rate that is asked for now, and half the size of an encode of its sound at its rate.
    Raises Refusal."""
    copy, asked = work.take.copy, work.plan.target
    assert copy
    rate = work.take.bitrate or asked.bitrate
    usual = sounding_share(job) * estimated_size(job.probe, asked._replace(bitrate=rate))
    if rate < asked.bitrate or copy.size < usual / 2:
        usual = sounding_share(job) * estimated_size(job.probe, asked)
        found = f"{copy.name} has {size_text(copy.size)}"
        expected = f"a copy at {asked.bitrate / 1000:g}k has about {size_text(usual)}"
        raise Refusal(Reason.NAME_TAKEN, f"{found}, but {expected}; move one of the two away")


def size_before(work: Work) -> int:
    """Bytes that a copy must save from: of the copy before it, or of the original."""
    is_smaller = work.plan.move is Move.SMALLER
    return work.take.copy.size if is_smaller and work.take.copy else work.source_size


def space_needed(work: Work) -> int:
    """Bytes that one work may take while at work: its copy, and two level files."""
    if work.probe:
        return round(work.estimate + work.probe.timeline * work.probe.channels * LEVEL_BYTES)
    return round(size_before(work) + 2 * work.guessed_seconds * LEVEL_BYTES)


def free_space(library: Library) -> float:
    """Bytes; infinite where the file system does not say, as some on FUSE. Raises OSError."""
    disk = disk_state(library.root)
    return disk.f_bavail * disk.f_frsize if disk else math.inf


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


class Queue:
    """Hands out works in batches of about the same length that the disk has room for. Every worker
    gets equally many batches."""

    def __init__(self, works: Sequence[Work], workers: int) -> None:
        self.waiting = deque(works)
        self.seconds = sum(work.guessed_seconds for work in works)
        self.remaining = self.seconds
        least = max(len(works) / BATCH_FILES, self.seconds / BATCH_SECONDS)
        self.batches = workers * max(1, math.ceil(least / workers))

    def take(self, room: float) -> Sequence[Work]:
        """Returns the next batch that fits into so many bytes, empty if none does. It is as near
        as can be to an equal share of what remains."""
        works: list[Work] = []
        seconds, share = 0.0, self.remaining / max(1, self.batches)
        while self.waiting and len(works) < BATCH_FILES:
            room -= space_needed(self.waiting[0])
            longer = seconds + self.waiting[0].guessed_seconds
            is_nearer = longer - share <= share - seconds
            if room < 0 or (works and not is_nearer):
                break
            works.append(self.waiting.popleft())
            seconds = longer
        self.batches -= bool(works)
        self.remaining -= seconds
        return works


def command_run(config: Config, report: Report) -> None:
    Run(config, report).execute()


# ---------------------------------------------------------------------------------------- trials
# What a run's commits will need, tried on files of our own: by a run before anything is encoded, by
# doctor always. A dry run, which may write nothing, reads what tells as much. Each raises the one
# ServiceError that run, dry run and doctor then say alike; none may touch a recording.

CAP_CHOWN, CAP_FOWNER = 0, 3  # capabilities(7)
GET_FLAGS = 0x80006601 | struct.calcsize("l") << 16  # FS_IOC_GETFLAGS of ioctl_iflags(2)
IMMUTABLE_OR_APPEND = 0x30
# Where a server or a daemon says who may give files away, as NFS that squashes root.
SERVED = re.compile(r"fuse|nfs|cifs|smb|9p|ceph|afs|virtiofs|vboxsf|prl_fs")


def try_commits(library: Library) -> None:
    """Append to the history, and do in our own folder what commits do. Raises ServiceError,
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
    """Make, exchange, link and remove names of ours beside a path. Raises OSError."""
    one, two = staging.beside(near), staging.beside(near)
    if exchange(one, two):
        os.unlink(one)
    place(two, one)
    os.unlink(one)


class Trials:
    """What the commits of a run need in each folder, tried once before anything is encoded there.
    Without `staging`, as in a dry run, the signs of it are read."""

    def __init__(self, library: Library, staging: Optional[Staging] = None) -> None:
        self.library, self.staging = library, staging
        self.trying = threading.Lock()  # one set of trials in a folder, whoever comes first

    def foresee(self, work: Work) -> None:
        """Raises Refusal where a commit could not make, give away, replace or remove what it has
        to, and OSError."""
        take, plan, folder = work.take, work.plan, work.take.folder
        with self.trying:
            problem = self.folder_problem(folder)
        if problem:
            raise Refusal(Reason.FORESEEN, f"{folder or self.library.root}: {problem}")
        displaced = take.copy if plan.move is Move.SMALLER else None
        replaced = {file.name for file in (*plan.goes, displaced) if file}
        self.foresee_file(work.path, READ, basename(work.path) in replaced)
        for name in replaced:
            self.foresee_file(join(folder, name), READ, True)
        for sidecar in work.recording.sidecars:
            with suppress(FileNotFoundError):
                self.foresee_file(join(folder, sidecar.name), READ_WRITE, True)

    @memoized
    def folder_problem(self, folder: str) -> str:
        """Returns why nothing can be committed in a folder, "" if it can. Raises OSError."""
        path = self.library.path(folder)
        if is_protected(path):
            return "it is immutable, or append-only"
        try:
            if not os.access(path, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            if self.staging:
                for name in os.listdir(path):
                    # What no run before could remove. (Other threads make such names here too.)
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
        """Raises Refusal where a file cannot be replaced, or its owner could not use what is made
        in its place, and OSError."""
        whole, folder = self.library.path(path), self.library.path(dirname(path))
        user, groups = os.geteuid(), (os.getegid(), *os.getgroups())
        with open_regular(whole) as file:
            before, acl = os.fstat(file.fileno()), access_list(file.fileno())
        above = os.stat(folder)
        is_owner = user in (above.st_uid, before.st_uid) or has_capability(CAP_FOWNER)
        if is_replaced and is_protected(whole):
            raise Refusal(Reason.FORESEEN, f"{path}: it is immutable, or append-only")
        if is_replaced and above.st_mode & stat.S_ISVTX and not is_owner:
            why = "it is sticky, and who does not own a file cannot replace it"
            raise Refusal(Reason.FORESEEN, f"{dirname(path) or folder}: {why}")
        if user != before.st_uid and not self.can_give(folder, before.st_uid):
            group = before.st_gid if before.st_gid in groups else groups[0]
            mode_without_owner(before, user, group, acl, needed)

    @memoized
    def can_give(self, folder: str, user: int) -> bool:
        """Whether a file of ours can be given to a user: root cannot in every container, nor on
        every server."""
        if not (self.staging and has_capability(CAP_CHOWN)):
            return has_capability(CAP_CHOWN) and may_give(self.library, folder, user)
        staged = self.staging.beside(join(folder, "x"))
        with suppress(OSError):
            os.chown(staged, user, -1)
        is_given = os.stat(staged).st_uid == user
        self.staging.discard(staged)
        return is_given


def may_give(library: Library, folder: str, user: int) -> bool:
    """The same by signs: which users this container knows, whether an earlier run could give the
    history away, and what kind of disk it is. Raises OSError."""
    with suppress(FileNotFoundError), open("/proc/self/uid_map") as file:
        ranges = [tuple(map(int, line.split())) for line in file]
        if not any(first <= user < first + count for first, _, count in ranges):
            return False
    owner = os.stat(library.root).st_uid
    with suppress(OSError):
        history = os.stat(library.own("history.jsonl"))
        if owner != os.geteuid():
            return history.st_uid == owner
    return not SERVED.match(kind_of_disk(folder))


def kind_of_disk(path: str) -> str:
    """Returns the type of a file system (proc(5), mountinfo), "" where that is not known. Raises
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
    """Whether a file or folder is immutable or append-only (chattr, chflags). Raises OSError."""
    descriptor = os.open(path, os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if sys.platform == "linux":
            found = fcntl.ioctl(descriptor, GET_FLAGS, bytes(8))
            return bool(int.from_bytes(found[:4], sys.byteorder) & IMMUTABLE_OR_APPEND)
        flags = getattr(os.fstat(descriptor), "st_flags", 0)
    except OSError:  # a file system without such flags
        return False
    finally:
        os.close(descriptor)
    locks = stat.UF_IMMUTABLE | stat.UF_APPEND | stat.SF_IMMUTABLE | stat.SF_APPEND
    return bool(flags & locks)


def read_only_mount(library: Library, path: str) -> str:
    """Returns the uppermost folder of a read-only mount inside the library, "" where `path` can be
    written to or where the whole library cannot."""
    top = ""
    while path and not is_read_only(library.root) and is_read_only(library.path(path)):
        top, path = path, dirname(path)
    return top


def is_read_only(path: str) -> bool:
    with suppress(OSError):
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    return False


def failed_trial(where: str, error: OSError) -> ServiceError:
    """Returns the error for a place that a run must be able to write to."""
    where = error.filename or where
    if exit_code_of(error) == NoSpaceError.exit_code:
        advice = "Nothing was changed; make room and run again."
        return NoSpaceError(f"The disk of {where} is full. {advice}")
    advice = "Nothing was changed; let this user write there and run again."
    return ServiceError(f"{where} cannot be written to: {error.strerror}. {advice}")


def read_signs(library: Library) -> None:
    """Reads the signs of all this: modes, mounts and free space. Raises as try_commits does."""
    places = (library.root, library.own(""), library.own("history.jsonl"))
    for path in filter(lexists, places):
        read_sign(path)
    disk = disk_state(library.root)
    has_no_names = disk is not None and disk.f_files and not disk.f_favail
    if has_no_names and not SERVED.match(kind_of_disk(library.root)):  # FUSE may count no names
        raise failed_trial(library.root, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))


def read_sign(path: str, least: int = SPACE_MARGIN) -> None:
    """Reads the signs of one path, whose disk needs so many bytes. Raises as failed_trial says."""
    disk, problem = disk_state(path), 0
    if not os.access(path, os.W_OK):
        problem = errno.EACCES
    if disk and disk.f_bavail * disk.f_frsize < least:
        problem = errno.ENOSPC
    if is_read_only(path):
        problem = errno.EROFS
    if problem:
        raise failed_trial(path, OSError(problem, os.strerror(problem)))


@lru_cache
def has_capability(number: int) -> bool:
    """As root has them, but not in every container."""
    with suppress(OSError), open("/proc/self/status") as file:
        effective = re.search(r"CapEff:\s*(\w+)", file.read())
        return bool(effective and int(effective[1], 16) >> number & 1)
    return os.geteuid() == 0


def try_ffmpeg(tools: Tools, target: Target, recording: str = "") -> None:
    """Decode, encode and decode again a second of a sound of our own, all of it through pipes, so
    that no file plays a part and a dry run may do it too; and open a recording (absolute path), as
    one that is confined to other folders cannot (a snap). Raises ToolError."""
    codec = f"-c:a {target.form.encoder} -b:a {min(target.bitrate, CHANNEL_RATE)}"
    lines = (
        f"-f lavfi -i sine=duration=1:sample_rate={OPUS_RATE} -f nut pipe:1",
        f"-f nut -i pipe:0 {codec} -f matroska pipe:1",
        "-f matroska -i pipe:0 -f framecrc pipe:1",
    )
    commands = [[tools.ffmpeg, *QUIET, *line.split()] for line in lines]
    try:
        _, frames = tools.pipe(commands, 1, os.devnull)
        # Stream, two stamps, length in samples, size, checksum.
        packets = [line.split(b",") for line in frames.splitlines() if b"," in line]
        samples = sum(int(packet[3]) for packet in packets)
        problem = "" if samples > 0.98 * OPUS_RATE else f"{samples} of {OPUS_RATE} samples"
    except (Refusal, OSError) as error:
        problem = getattr(error, "detail", "") or explain(error)
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
RECORDING_MEMBERS = ("duration", "full_transcription", "transcription")  # or an id
CHUNK_MEMBERS = ("file", "duration")
SIDECAR_MEMBERS = (
    *("id", "language", "compression_policy", "chunks", "archived", "archive_location"),
    *RECORDING_MEMBERS,
)
# Before a host in a string; `file:///` has none.
HOST = re.compile(r"(?:[a-z][a-z0-9+.-]*:)+//[^/]|//", re.IGNORECASE)
AUDIO_ENDING = re.compile(rb"\.(?:webm|opus|m4a)", re.IGNORECASE)
QUOTED_PART = re.compile(rb'[^"/]+')
BARE_PART = re.compile(rb"[^\s\"'`/:,=()\[\]{}]+")
BROKEN_NAME = re.compile(rb".*\.(?:webm|opus|m4a)", re.IGNORECASE | re.DOTALL)


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

    def index_digest(self) -> str:
        """Returns the SHA-256 of the index, "" without a readable one."""
        with suppress(OSError):
            return digest_of(self.path(INDEX_NAME))
        return ""

    def make_own(self) -> None:
        """Our folder, with the library's mode and owner; only for who locks the library or pauses
        it, as later a folder that is missing is a disk that is gone. Raises OSError."""
        with suppress(FileExistsError):
            os.mkdir(self.own(""), 0o700)
            give_to_owner(self.own(""), self.root, 0o7777)

    def open_own(self, name: str, flags: int) -> int:
        """A descriptor of a file in our own folder, made where it is not there, with the folder's
        owner and mode, so that a run by root locks nobody out. Raises OSError."""
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
        """Whether a run has compressed or found something here, by its last line in the log, also
        by that of an earlier version."""
        found = rb"(compressed|kept|failed|archived|restored)\b|Found: [1-9]|Younger than"
        root = re.escape(printable(self.root)).encode()
        pattern = re.compile(rb" - INFO - %b: (?!No recordings).*?(?:%b)" % (root, found))
        for number in range(OLD_LOGS + 1):
            name = f"{log_file}.{number}" if number else log_file
            with suppress(OSError), open_regular(realpath(name)) as log:
                if any(map(pattern.search, log)):
                    return True
        return False

    def paused_until(self, now: float) -> float:
        """Returns when a pause ends, in seconds since the epoch; infinity if only `resume` ends it,
        and 0 without a pause. The end stands in our file `paused`."""
        try:
            until = float(read_regular(self.own("paused")))
            return until if now < until else 0.0
        except (FileNotFoundError, NotADirectoryError):
            return 0.0
        except (OSError, ValueError):
            return math.inf

    def paused(self, now: float) -> bool:
        return self.paused_until(now) > 0

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
    """Returns the folder at most two levels above or below that is a library, "" where there is
    none, or where this folder is one by its own index."""
    if has_index(root):
        return ""
    below = [each for folder in folders_in(root) for each in (folder, *folders_in(folder))]
    above = list(PurePath(root).parents)[:2]  # no slice of parents before Python 3.10
    for folder in (*map(str, above), *below):
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
    """Whether a folder has a master index: an object with a list `recordings`. Of a large one only
    the beginning is read."""
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
    names or the archive has, and that are not here. Time is linear in the documents."""
    library, documents = folder.library, sorted(folder.documents.items())
    read = [read_sidecar(library, folder.path, name, *seen) for name, seen in documents]
    pasts = library.history.in_folder(folder.path)
    takes = {basename(stem): Take(stem, past=past) for stem, past in pasts.items()}
    archived = [name for name, take in takes.items() if take.past.place]
    takes.update(folder.takes)
    names = Names(library.root, folder.path, takes)
    flaws = flaws_of(read, names)
    folder.is_unread = any(sidecar.is_unread for sidecar in read)
    called = cache(names.called)  # many sidecars share what they list
    sidecars = [with_names(sidecar, names, called) for sidecar in read]
    lists = {each for sidecar in sidecars for each in (sidecar.files, sidecar.own)}
    named = frozenset[str]().union(*lists)
    stems = sorted({*folder.takes, *archived, *map(stem_of, named)})
    recordings = []
    for group, those in grouped(sidecars, stems):
        unreadable = next((flaws[name] for name in group if name in flaws), "")
        policy = policy_of(those, unreadable, folder.path)
        found = (takes.get(name) or Take(join(folder.path, name)) for name in group)
        members = tuple(find_our_copies(library, take, named) for take in found)
        recordings.append(Recording(folder.path, members, tuple(those), policy, names))
    return recordings


def find_our_copies(library: Library, take: Take, named: frozenset[str]) -> Take:
    """Returns the take with `ours`. A copy that is not on record is ours by its tag, or because a
    document names it. If documents name the original too, another file may be a preview of it."""
    if not take.copies or take.proven_copy:
        return take
    ours = {}
    is_named = named.isdisjoint(file.name for file in take.originals)
    for name in (file.name for file in take.copies):
        rate = None
        with suppress(OSError):  # a copy that cannot be read is not ours
            rate = provenance(library.path(take.folder, name))
        if rate is not None or (is_named and name in named):
            ours[name] = rate or 0
    return take._replace(ours=ours)


@memoized  # a large folder is asked again at every commit in it
def read_sidecar(library: Library, folder: str, name: str, *seen: int) -> Sidecar:
    """Returns what planning needs of a JSON file, with strings that may be names. Waits for one
    that is half written. `seen` is what `look` said of the file: another look reads it again."""
    path, below = library.path(folder, name), join(folder, name)
    try:
        try:
            return sidecar_of(read_whole(path, JsonText)[1], name)
        except Flaw as flaw:
            stuck = frozenset(names_in_broken(in_utf8(read_regular(path))))
            return Sidecar(name, stuck=stuck, flaw=f"{below}: {flaw}")
    except FileNotFoundError:
        return Sidecar(name)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", "") or "its encoding is unknown"
        return Sidecar(name, flaw=f"{below} cannot be read: {why}", is_unread=True)


def sidecar_of(text: JsonText, name: str) -> Sidecar:
    """Returns a sidecar with what its document says. Raises Flaw."""
    root, members = text.root, text.members(text.root, SIDECAR_MEMBERS)
    begin, end = members.pop("chunks", Span(root.end, root.end))
    said = {key: text.value(members[key]) for key in SIDECAR_MEMBERS if key in members}
    chunks = chunks_of(text.data[begin:end] or b"[]")
    rest = (*text.names(Span(root.start, begin)), *text.names(Span(end, root.end)))
    texts = {key: value for key, value in said.items() if isinstance(value, str)}
    location = texts.get("archive_location", "")
    id_ = key_of(said.get("id"))
    return chunks._replace(
        name=name,
        id=id_,
        files=shared(chunks.files.union(value for _, value, is_key in rest if not is_key)),
        stuck=chunks.stuck.union(value for _, value, is_key in rest if is_key),
        listed=id_ != "" or any(said.get(key) is not None for key in RECORDING_MEMBERS),
        language=texts.get("language"),
        policy=said.get("compression_policy"),
        location=location if said.get("archived") is True else "",
    )


@lru_cache(maxsize=1)  # 1,000 sidecars in a row may each have the same 1,000 chunks
def chunks_of(data: bytes) -> Sidecar:
    """Returns what a sidecar with these `chunks` says of files. Raises Flaw."""
    text = JsonText(data)
    names = list(text.names(text.root))
    awaited, durations = set[str](), dict[str, float]()
    # A short list is taken in as a whole, which is faster.
    rows = text.value(text.root) or (row for _, row in text.rows(text.root, CHUNK_MEMBERS))
    for chunk in rows if text.is_list(text.root) else ():
        row = chunk if isinstance(chunk, dict) else {"file": chunk}
        file = row.get("file")
        if isinstance(file, str) and file.lower().endswith(AUDIO_SUFFIXES):
            awaited.add(file)
            stem = stem_of(basename(plain_path(file)))
            durations[folded(stem)] = finite(row.get("duration"))
    files = shared(frozenset(value for _, value, is_key in names if not is_key))
    return Sidecar(
        name="",
        files=files,
        own=files,
        stuck=frozenset(value for _, value, is_key in names if is_key),
        awaited=frozenset(awaited),
        durations=durations,
    )


@lru_cache
def shared(names: frozenset[str]) -> frozenset[str]:
    """Returns equal sets as one, because many sidecars of a folder may name the same files."""
    return names


def key_of(id_: Any) -> str:
    """Returns an id as text, in which a number differs from a string; "" for what is no id."""
    if isinstance(id_, str):
        return id_
    if isinstance(id_, bool) or not isinstance(id_, (int, float)):
        return ""
    return f"number {id_ if isinstance(id_, int) else format(id_, '.17g')}"


def names_in_broken(data: bytes) -> Iterator[str]:
    """Yields the strings that a broken document may call files by. Each ends like a name. It begins
    behind a quote or a slash, or (in a text without quotes) behind any mark or blank."""
    for part in itertools.chain(QUOTED_PART.finditer(data), BARE_PART.finditer(data)):
        name = BROKEN_NAME.match(part[0])
        if name:
            try:
                yield json.loads(b'"%s"' % name[0])
            except ValueError:
                yield name[0].decode("utf-8", "replace")


def with_names(sidecar: Sidecar, names: Names, called: Callable[..., frozenset[str]]) -> Sidecar:
    """Returns a sidecar with the names that its strings mean. It owns the files in `chunks`; else
    the file of its own stem; else the only file that it names, if it describes a recording."""
    files, own = called(sidecar.files), called(sidecar.own, sidecar.awaited)
    if not own and not sidecar.flaw:
        beside = frozenset(names.find(sidecar.stem + SOURCE_SUFFIX))
        is_about_one = sidecar.listed and len(set(map(stem_of, files))) == 1
        own = beside or (files if is_about_one else own)
    return sidecar._replace(files=files, own=own, listed=bool(own))


def flaws_of(sidecars: Iterable[Sidecar], names: Names) -> dict[str, str]:
    """Returns why takes (by name) must stay. A document cannot be read at all. Or it cannot be
    edited, and holds their name or has a name that begins like theirs (without a number at its
    end). Or a string in it fits two files."""
    flaws = {}
    several = [stems for stems in names.stems.values() if len(stems) > 1]
    for sidecar in sidecars:
        path = join(names.folder, sidecar.name)
        beginning = folded(sidecar.stem.rstrip("0123456789"))
        for stem in names.takes if sidecar.flaw else ():
            if sidecar.is_unread or folded(stem).startswith(beginning):
                flaws[stem] = sidecar.flaw
        for text in sidecar.stuck:
            for name in names.find(text):
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
        while above.setdefault(node, node) != node:
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
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value < 1e300 else 0.0


# ------------------------------------------------------------------------------------------ plan
# Which take makes which move: pure functions of takes, policies, settings and a time. Only the
# three that go through a library read anything, and that through the library section. No clock, no
# output; statistics and dry run ask the same functions.

MAX_SILENCE = 600.0  # seconds of gaps: ffmpeg makes each as one frame, a megabyte a second
SHORTFALL = 0.05  # a recording this much shorter than its own record of it has lost its end
SILENT_BYTES = 227  # a second of silence in Ogg Opus: 50 packets of 3, lacing, page headers
DATE = re.compile(r"(?<!\d)\d{4}-\d\d-\d\d(?!\d)")
REST_SETTINGS = (
    "age_threshold_days target_bitrate target_format min_saving_percent verify_before_delete "
    "delete_originals keep_originals_days tiers"
)


def next_move(
    take: Take, policy: Optional[Policy], config: Config, moment: Moment
) -> Optional[Plan]:
    """Returns the row of the table that is next for a take, None if there is none. Pure.

    Without a `policy` the sidecars have not been read. They are then taken to say the same as
    before, so that most nights need not read them.
    """
    past, wish = take.past, policy or NO_POLICY
    if take.is_half_restored:
        goes = (take.proven_copy,) if take.proven_copy else ()
        target = Target(config.target_format, past.bitrate)
        return Plan(Move.RESTORE, take.original, target, past.settings, goes)
    file = take.original or take.copy or next(iter(take.copies), None)
    if file is None:
        return None
    is_known = past.speaks_of(file) and not config.retry
    age = moment.age(file)
    is_young = age < max(config.age_threshold_days, wish.after_days)
    if is_young or (is_known and past.is_restored):
        return None
    settings = settings_of(take, policy, config, age)
    # In one step what the last tier asks. A copy keeps its format, to be replaced in its place.
    form = FORMAT_OF[take.copy.suffix] if take.copy else wish.format or config.target_format
    target = Target(form, wish.bitrate or config.rate_at(age))
    draft = Plan(Move.COMPRESS, file, target, settings, refusal=objection(wish))
    # Settings noted before the sidecars were read have the first half alone.
    holds = is_known and settings in (past.settings, past.settings.partition("|")[0])
    for plan in possible_moves(take, wish, config, moment, draft):
        if not (holds and is_settled(plan.move, past)):
            return plan
    return None


# A move stays untried once a later one was tried under the same settings.
RANKS: Mapping[str, int] = {
    Move.COMPRESS: 1,
    Move.ADOPT: 1,
    Move.SMALLER: 2,
    Move.FREE: 3,
    Move.ARCHIVE: 4,
}


def is_settled(move: Move, past: Past) -> bool:
    """Returns whether a move is not to be tried again, as long as its settings hold: its own last
    outcome stays, or a move of a higher rank was tried since. Pure."""
    rank, tried = RANKS[move], RANKS.get(past.move, 1)
    return tried > rank or (tried == rank and past.is_settled)


def possible_moves(
    take: Take, wish: Policy, config: Config, moment: Moment, draft: Plan
) -> Iterator[Plan]:
    """Yields the moves that files, ages and settings ask of a take, lowest rank first. A move whose
    name is taken is refused. Pure."""
    taken = ""
    if len(take.originals) > 1:
        taken = f"several files would become {take.name}"
    elif take.past.place and take.original:
        taken = f"the archive has an earlier {take.name}; rename this one"
    if taken:
        yield draft._replace(refusal=Refusal(Reason.NAME_TAKEN, taken))
    else:
        yield from compressing(take, wish, config, moment, draft)
    # Also what is in the archive already: a kill may have kept it from being removed here.
    yield from archiving(take, wish, config, moment, draft)


def compressing(
    take: Take, wish: Policy, config: Config, moment: Moment, draft: Plan
) -> Iterator[Plan]:
    """Yields the moves compress, adopt, smaller and free that a take may make. Pure."""
    original, copy = take.original, take.copy
    # A policy's own bit rate holds at any age, and a target that was lowered is for what is
    # compressed from now on.
    tier = config.tier_rate(moment.careful_age(copy)) if copy and not wish.bitrate else None
    is_large = tier is not None and (tier < take.bitrate or not take.bitrate)
    is_proven = take.proven_copy is not None and take.is_known
    goes = originals_over(take, config, moment, is_proven)
    if original and copy is None:
        name = take.name + draft.target.form.suffix
        is_taken = any(file.name == name for file in take.copies)
        refusal = Refusal(Reason.NAME_TAKEN, name) if is_taken else draft.refusal
        yield draft._replace(goes=goes, refusal=refusal)
    elif original and not is_proven:
        # An original that is to be encoded once more is the better source: it waits for that.
        yield draft._replace(move=Move.ADOPT, goes=() if is_large else goes)
    elif copy and is_large:
        yield draft._replace(move=Move.SMALLER, goes=goes)
    if is_proven and goes:
        yield draft._replace(move=Move.FREE, goes=goes)


def originals_over(take: Take, config: Config, moment: Moment, is_proven: bool) -> tuple[File, ...]:
    """Returns the original if settings let a move remove it now. With `keep_originals_days`, its
    copy must be on record for so long."""
    days = config.keep_originals_days
    # `compressed` is when that run began. An hour less, as no run begins to the second.
    is_over = take.past.compressed + days * DAY - 3600 <= moment.careful
    if not (take.original and config.delete_originals):
        return ()
    return (take.original,) if not days or (is_proven and is_over) else ()


def objection(policy: Policy) -> Optional[Refusal]:
    """Why a recording's sidecars do not let its takes move, if so."""
    if policy.unreadable:
        return Refusal(Reason.SIDECAR, policy.unreadable)
    if policy.flaw:
        return Refusal(Reason.POLICY_INVALID, policy.flaw)
    return Refusal(Reason.POLICY_KEEP) if policy.keep else None


def archiving(
    take: Take, wish: Policy, config: Config, moment: Moment, draft: Plan
) -> Iterator[Plan]:
    """Yields the move `archive` for a take that is one old file with nothing left to be compressed.
    `plan_archive` sees to it that all takes of the recording are."""
    tier, file = config.archive_tier, take.file
    if file is None or tier is None or wish.keep:
        return
    is_old = moment.careful_age(file) >= tier.after_days
    if is_old and take.state is not State.WAITING and len(take.files) == 1:
        yield draft._replace(move=Move.ARCHIVE, source=file, goes=(file,))


def settings_of(take: Take, policy: Optional[Policy], config: Config, age: float) -> str:
    """Returns the settings of a decision as text for the history, and whether the copy's name is
    taken. Behind a bar stand the wishes of the sidecars, once they have been read."""
    parts = (
        config.target_format,
        config.rate_at(age),
        config.min_saving_percent,
        config.verify_before_delete,
        bool(take.copies) and take.copy is None,
    )
    first = " ".join(map(str, parts))
    return sys.intern(first if policy is None else f"{first}|{json.dumps(policy)}")


def plan_run(run: Run) -> list[Work]:
    """Every move of this run but archiving, oldest recording first, cut to --limit; holds only what
    is due. Where the index is not as we left it, that too is looked into. Raises ServiceError where
    the clock cannot be true."""
    check_clock(run)
    works = list(due_works(run))
    if run.is_locked:
        run.committer.attempt((), run.committer.look_at_index)
    works.sort(key=place_in_line)
    return works[: run.config.limit]


def check_clock(run: Run) -> None:
    """Raises ServiceError where the clock cannot be true. That run is on record with its own time,
    and with how many recordings are dated ahead of it, so that the next run works again."""
    last, why = run.last, ""
    if last and run.now < last["time"] - DAY:
        why = f"the last run was at {local_time(last['time'])}"
    elif is_most(vars(run.report)) and not is_most(last):
        why = f"of {run.report.found} recordings, {run.report.ahead} are dated later"
    if why:
        raise ServiceError(
            f"The clock cannot be true: it says {local_time(run.now)}, and {why}. Nothing was done "
            "by age. If it is true after all, run again."
        )


def is_most(told: Mapping[str, Any]) -> bool:
    """Whether more than half of the recordings are dated ahead. One alone never is most."""
    ahead = told.get("ahead", 0)
    return bool(ahead > 1 and 2 * ahead > told.get("found", 0))


def due_works(run: Run) -> Iterator[Work]:
    """Yields these moves folder by folder. A refused plan becomes a Work with its reason.

    Documents are read except in a folder whose note still holds. A run that may write makes all
    that it has read true at the end."""
    config, report, is_found = run.config, run.report, False
    report.found = report.young = report.links = report.ahead = report.held = 0
    ahead: list[str] = []
    for folder in run.library.walk(report.error, report.once):
        report.found += len(folder.audio)
        report.links += folder.links
        report.young += sum(is_young(file, run) for file in folder.audio if file.is_original)
        for file in folder.audio:
            if run.clock.age(file) < -1:
                report.ahead += 1
                ahead += [join(folder.path, file.name)] if len(ahead) < NAMED else []
        if run.is_locked:
            run.staging.sweep(folder)
        if is_at_rest(folder, run):
            continue
        for recording in run.recordings_in(folder):
            works: list[Work] = []
            with boundary(partial(report.defect, f"{recording.key} was kept")):
                works = works_of(recording, run)
                report.held += count_held(recording, run)
            for work in works:
                if work.plan.move is not Move.ARCHIVE:
                    is_found = True
                    yield work
        if run.is_locked:
            run.committer.folders.add(folder.path)
    for path in () if is_most(vars(report)) else ahead:
        report.once(f"{path} is dated in the future: no run touches it until then.")
    is_selective = config.only or config.language or config.since or config.until
    if is_selective and not is_found:
        report.once(
            "The selection fits nothing to compress. Paths for --only are such as '2025-10-27/*'."
        )


def count_held(recording: Recording, run: Run) -> int:
    """How many takes wait only because the clock is not trusted that far."""
    if run.moment == run.clock:
        return 0
    policy, config, held = recording.policy, run.config, 0
    for take in recording.takes:
        is_due = next_move(take, policy, config, run.moment)
        held += not is_due and next_move(take, policy, config, run.clock) is not None
    return held


def is_young(file: File, run: Run) -> bool:
    return run.clock.age(file) < run.config.age_threshold_days


def is_at_rest(folder: Folder, run: Run) -> bool:
    """Whether nothing can be due in a folder: nothing is old enough or on record, or all is as a
    run has left it. So a night with nothing to do reads no document, and little of the history."""
    is_new = all(is_young(file, run) for file in folder.audio)
    if is_new and not run.history.in_folder(folder.path):
        return True
    if note_on(folder, run) and not run.config.retry:
        return True
    mount = read_only_mount(run.library, folder.path)
    if mount:
        run.report.once(f"{mount} is mounted read-only, and was passed over.")
    return bool(mount)


def note_on(folder: Folder, run: Run) -> Mapping[str, Any]:
    """Returns the note on a folder, empty if it does not hold any more."""
    note = run.history.word(folder.path)
    return note if note and note.get("rest") == rest_of(folder, run) else {}


def rest_of(folder: Folder, run: Run) -> str:
    """Returns a fingerprint of all that the plan of this folder depends on: files, the steps that
    each is old enough for, documents, settings."""
    config = run.config
    steps = [config.age_threshold_days, *(tier.after_days for tier in config.tiers)]
    files = []
    for file in sorted(folder.audio):
        age = run.clock.age(file)
        # Each step by itself: --older-than may lie beyond a tier.
        files.append((*file, [age >= step for step in steps]))
    settings = [getattr(config, name) for name in REST_SETTINGS.split()]
    rests_on = [VERSION, settings, files, sorted(folder.documents.items())]
    return hashlib.sha256(json.dumps(rests_on).encode("ascii")).hexdigest()[:16]


def word_on(folder: Folder, run: Run) -> list[dict[str, Any]]:
    """At the end of a run, of a folder whose documents are true: what it rests on, to be noted;
    nothing where something is left to be tried, now or (`keep_originals_days`) once days are
    over."""
    takes, waits = folder.takes.values(), run.config.keep_originals_days > 0
    if any(move_at_most(take, run) or (waits and len(take.files) > 1) for take in takes):
        return []
    rest = rest_of(folder, run)
    sums, path = count_folder(folder, run.config, run.clock), join(folder.path, "")
    about = {"type": "folder", "path": path, "rest": rest}
    return [{**about, "sums": sums, "seal": seal(sums)}]


def move_at_most(take: Take, run: Run) -> Optional[Plan]:
    """Returns the move that a take would make by the clock if every file in a copy's format were
    ours. Its documents and its tag say whose it is, and those have not been read."""
    if not take.originals and not take.proven_copy:
        take = take._replace(ours={file.name: 0 for file in take.copies})
    return next_move(take, None, run.config, run.clock)


def works_of(recording: Recording, run: Run) -> list[Work]:
    """Returns the works of its takes that are selected: one a take. In a clash each original gets
    one, and last the one that the history will remember."""
    works = []
    for take in recording.takes:
        plan = next_move(take, recording.policy, run.config, run.moment)
        if not plan or not is_selected(take, recording, run.config):
            continue
        originals = sorted(take.originals, key=lambda file: file == take.original)
        is_clash = plan.refusal and len(originals) > 1
        for source in originals if is_clash else (plan.source,):
            work = Work(take, recording, plan._replace(source=source))
            if plan.refusal:
                work.refuse(plan.refusal)
            works.append(work)
    return works


def place_in_line(work: Work) -> tuple[bool, int, str]:
    """Sorts works: the oldest recording first, those whose tool was ended from outside last."""
    was_hindered = work.take.past.code == Reason.TOOL_KILLED.code
    return was_hindered, oldest(work.recording), work.recording.key


def oldest(recording: Recording) -> int:
    """The mtime of its oldest file, in ns."""
    times = [file.mtime_ns for take in recording.takes for file in take.files]
    return min(times, default=0)


def plan_archive(run: Run) -> Iterator[list[Work]]:
    """Yields the works of recordings whose takes are all due for the archive."""
    if run.config.archive_tier is None:
        return
    for folder in run.library.walk(str):
        if is_at_rest(folder, run):
            continue
        for recording in run.recordings_in(folder):
            takes = tuple(run.foreseen.get(take.stem, take) for take in recording.takes)
            recording = recording._replace(takes=takes)
            works: list[Work] = []
            with boundary(partial(run.report.defect, f"{recording.key} was kept")):
                works = works_of(recording, run)
            works = [work for work in works if work.plan.move is Move.ARCHIVE]
            here = [take for take in recording.takes if take.state is not State.ARCHIVED]
            if works and len(works) == len(here):
                yield works


def is_selected(take: Take, recording: Recording, config: Config) -> bool:
    """Whether the selection flags admit it: by path, by recorded date, by language."""
    names = [file.name for file in take.files] or [take.name]
    paths = [join(take.folder, name) for name in names]
    languages = {sidecar.language for sidecar in recording.sidecars}
    date = recorded_date(take, recording) if config.since or config.until else ""
    return (
        (not config.only or any(fits(path, config) for path in paths))
        and (not config.language or not languages.isdisjoint(config.language))
        and (config.since or "") <= date <= (config.until or "9999")
    )


def fits(path: str, config: Config) -> bool:
    """Whether a path below the library is one of --only: a glob, a folder, or either as the shell
    completes it, from where it stands."""
    for glob in config.only:
        for place in (os.path.normpath(glob), relpath(glob, config.recordings_dir)):
            is_below = place == os.curdir or f"{path}/".startswith(f"{place}/")
            if is_below or fnmatch.fnmatchcase(path, place):
                return True
    return False


def recorded_date(take: Take, recording: Recording) -> str:
    """YYYY-MM-DD from the sidecars' ids, else from folder and name, else the modification time."""
    found = DATE.search("\n".join((*recording.ids, take.stem)))
    if found:
        return found[0]
    times = [file.mtime_ns for file in take.files] or [take.past.mtime_ns]
    return datetime.fromtimestamp(times[0] / 1e9).strftime("%Y-%m-%d")


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


# ----------------------------------------------------------------------------------------- probe
# What is in a file, from its bytes: one walker a container, every byte accounted for, every packet
# with its samples and stamp. Reads one descriptor (and ffmpeg's listing for MP4); follows nothing
# that a file refers to; never writes.

HEAD_BYTES = 1 << 20  # of a file, in which it says what it is
MOST_PACKETS = 1 << 21  # of an MP4: twelve hours; ffmpeg takes 30 bytes for each
MOST_TRACKS = 64
MOST_FILLER = 16  # bytes of line ends and zeros behind the end, as uploads and writers leave them
DEEPEST_PART = 8  # of parts in parts; no writer needs more than six
LARGEST_DOUBT = 0.12  # seconds by which decoders of one file may differ, whatever the file says
LARGEST_PAGE = 65_307  # bytes of Ogg (RFC 3533, section 6)
FIRST_PAGE, LAST_PAGE = 2, 4  # flags of a page, there too
REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))

# Samples at 48 kHz in a frame of an Opus packet, by its first five bits: SILK, hybrid, CELT (RFC
# 6716, section 3.1, table 2).
OPUS_FRAMES = (480, 960, 1920, 2880) * 3 + (480, 960) * 2 + (120, 240, 480, 960) * 4

# PCM by the tag that WAV has for it and its bits; what Matroska calls the tags.
PCM_CODECS = {
    "1/8": "pcm_u8",
    "1/16": "pcm_s16le",
    "1/24": "pcm_s24le",
    "1/32": "pcm_s32le",
    "3/32": "pcm_f32le",
    "3/64": "pcm_f64le",
}
PCM_TAGS = {"A_PCM/INT/LIT": 1, "A_PCM/FLOAT/IEEE": 3}

# How files begin, by the names of walkers, of reasons, and else of what the file is called for
# people. Blobs of start(timeslice) after the first begin anywhere in a cluster: two blocks of
# track 1 give them away, or a page of Ogg that is not the first. ADTS says layer 0, which no MP3
# has.
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
    | (?P<no_audio_that_browsers_recorders_or_phones_write> )
    """,
    re.DOTALL | re.IGNORECASE | re.VERBOSE,
)


def probe(descriptor: int, path: str, tools: Tools) -> Probe:
    """What is in the file: container, codec, channels, every packet, every byte accounted for.
    Raises Refusal, OSError.

    WebM, Ogg and WAV are walked here: it is exact, the same under every ffmpeg, and cheaper than
    starting a process. MP4 is walked here too; ffmpeg only says what its codec is. The content
    decides, never the name.
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
    """The same of a file by its path. Raises Refusal, OSError."""
    with open_regular(path) as file:
        return probe(file.fileno(), path, tools)


OUR_TAG = re.compile(
    rb"(?:encoded_by=|\xa9too.{4}data.{8})"
    + re.escape(PROGRAM).encode()
    + rb" (\d{1,6}(?:\.\d{1,3})?)k",
    re.DOTALL | re.IGNORECASE,
)


def provenance(path: str) -> Optional[int]:
    """Returns the bit/s in the tag of a copy of ours (`Target.tag`), None if it has none. Raises
    OSError."""
    with open_regular(path) as file:
        window = Window(file.fileno())
        tags = window.at(0, HEAD_BYTES)
        if tags[4:8] == b"ftyp":  # the tags of MP4 stand anywhere
            tags = b""
            with suppress(Refusal):
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
        self.start, self.data = 0, b""  # what was read last

    def at(self, offset: int, length: int) -> bytes:
        """Returns up to `length` bytes at `offset`; fewer only at the end of the file. Raises
        Stopped."""
        if self.stop.requested:
            raise Stopped
        begin = offset - self.start
        if not 0 <= begin <= begin + length <= len(self.data):
            self.start, begin = offset, 0
            self.data = os.pread(self.descriptor, max(length, HEAD_BYTES), offset)
        return self.data[begin : begin + length]


def damaged(found: str) -> Refusal:
    return Refusal(Reason.DAMAGED, found)


def unsupported(found: str) -> Refusal:
    return Refusal(Reason.UNSUPPORTED, found)


def big(data: bytes, signed: bool = False) -> int:
    """A number of at most eight bytes, its highest first."""
    return int.from_bytes(data[:8], "big", signed=signed)


def pcm_probe(demuxer: str, tag: int, bits: int, channels: int, rate: float) -> Probe:
    """Raises Refusal."""
    codec = PCM_CODECS.get(f"{tag}/{bits}")
    if not codec:
        raise unsupported(f"PCM of {bits} bits, WAV format {tag}")
    return Probe(demuxer, codec, channels, round(rate))


def opus_probe(demuxer: str, head: bytes) -> Probe:
    """By the header that decoders follow, whatever the container around it says (RFC 7845, section
    5.1). Raises Refusal."""
    if not head.startswith(b"OpusHead") or len(head) < 19:
        raise damaged("its Opus header is not one (RFC 7845, section 5.1)")
    if head[18] > 1:
        raise unsupported(f"Opus whose channels have no layout (mapping family {head[18]})")
    return Probe(demuxer, "opus", head[9], OPUS_RATE, big(head[11:9:-1]))


def opus_packet_samples(start: bytes) -> int:
    """Samples at 48 kHz in the Opus packet that begins with these bytes; 0 if there is no such
    packet."""
    if not start:
        return 0
    count = (1, 2, 2, big(start[1:2]) & 63)[start[0] & 3]
    samples = OPUS_FRAMES[start[0] >> 3] * count
    return samples if samples <= 5760 else 0  # 120 ms (RFC 6716, section 3.2.5, R5)


class Container(NamedTuple):
    """A format made of parts, each a name, a size and its content, which may be parts again: every
    byte of a file must belong to a part that may stand where it stands."""

    # Name, offset of the content, bytes of that (None: not told) of the part that begins there.
    header: Callable[[Window, int], tuple[str, int, Optional[int]]]
    parts: dict[str, str]  # names of what may stand in what, a pattern; `.` is the file
    first: str = ""  # with which a file begins
    alignment: int = 1  # bytes

    def walk(
        self,
        window: Window,
        offset: int = 0,
        end: int = sys.maxsize,
        parents: tuple[str, ...] = (".",),
        is_open: bool = False,
    ) -> Generator[tuple[str, int, int], None, int]:
        """Yields name, offset and bytes of every part up to `end`, each behind the parts in it. A
        parent that does not tell its size ends at the first part that may not stand in it. Returns
        where it ends. Raises Refusal, Stopped."""
        end, parent = min(end, window.size), parents[-1]
        if len(parents) > DEEPEST_PART:
            raise damaged(f"its parts are nested too deeply at byte {offset}")
        while offset < end:
            if is_filler(window, offset, end):
                return end
            name, body, size = self.header(window, offset)
            if offset and name == self.first:
                raise Refusal(Reason.APPENDED, f"a second one begins at byte {offset}")
            is_allowed = re.fullmatch(self.parts[parent], name)
            if is_open and (not is_allowed or name == parent):
                return offset
            stop = end if size is None else body + size
            is_part = is_allowed and (stop <= end or end == window.size)
            if not is_part and body <= window.size:
                rest = window.size - offset
                raise damaged(f"the {rest} bytes from byte {offset} on are no part of it")
            reached = stop
            if name in self.parts:
                inner = (*parents, name)
                reached = yield from self.walk(window, body, stop, inner, size is None)
            short = max(body, stop) - window.size
            if short > 0:
                end_of = f"{short} bytes short of the end of a part that begins at byte {offset}"
                raise Refusal(Reason.TRUNCATED, f"it ends {end_of}")
            yield name, body, stop - body
            offset = reached + reached % self.alignment
        return offset


def is_filler(window: Window, offset: int, end: int) -> bool:
    """Returns whether all that is left up to `end` is a few zeros, line ends and spaces."""
    return end - offset <= MOST_FILLER and not window.at(offset, end - offset).strip(b"\0\r\n ")


def ebml_number(data: bytes, at: int) -> tuple[int, int]:
    """A variable-length number with its length marker (RFC 8794, section 4), and where it ends."""
    end = at + 9 - big(data[at : at + 1]).bit_length()
    return big(data[at:end]), end


def ebml_header(window: Window, offset: int) -> tuple[str, int, Optional[int]]:
    """Of an element (RFC 8794, section 6.1): its name, where its content begins, its size."""
    head = window.at(offset, 12)
    identity, middle = ebml_number(head, 0)
    size, length = ebml_number(head, middle)
    unknown = (1 << 7 * (length - middle)) - 1
    name = NAMES.get(identity, "unknown")
    size &= unknown
    is_open = size == unknown and name in ("Segment", "Cluster")
    return name, offset + length, None if is_open else size


# Identity, name, and in what it may stand; `.` is the file. A cluster stands in another as
# fix-webm-duration gives the first of them a size that spans all.
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
A3 SimpleBlock Cluster
A0 BlockGroup Cluster
A1 Block BlockGroup
9B BlockDuration BlockGroup
FB ReferenceBlock BlockGroup
FA ReferencePriority BlockGroup
A4 CodecState BlockGroup
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
MATROSKA = Container(ebml_header, defaultdict(str), first="EBML")
NAMES: dict[int, str] = {}
for identity, name, *parents in map(str.split, ELEMENTS.strip().splitlines()):
    NAMES[int(identity, 16)] = name
    for parent in parents:
        MATROSKA.parts[parent] += f"|{name}"


# What a copy would lose.
LOST_ELEMENTS = {
    "Chapters": Refusal(Reason.CHAPTERS),
    "Attachments": Refusal(Reason.COVER),
    "BlockAdditions": Refusal(Reason.DATA, "BlockAdditions"),
}


def walk_matroska(window: Window) -> Probe:
    """WebM and Matroska (RFC 8794, RFC 9559). Raises Refusal."""
    values: dict[str, bytes] = defaultdict(bytes)
    found = Probe("matroska", "", 1, OPUS_RATE)
    tracks = []
    for name, body, size in MATROSKA.walk(window):
        is_block = name in ("SimpleBlock", "Block")
        values[name] = content = window.at(body, min(size, 256))
        if is_block:
            add_block(found, values, content, body, size)
        elif name == "DiscardPadding":
            # Nanoseconds that a decoder drops of this block; ffmpeg reckons at the track's rate,
            # and drops nothing where it is told to drop more than the block.
            padding = round(abs(big(content, signed=True)) * rate_of(values) / 1e9)
            found.trimmed += padding if padding <= found.last else 0
        elif name == "TrackEntry":
            tracks.append(big(values["TrackType"]))
            if len(tracks) > MOST_TRACKS:
                raise Refusal(Reason.SEVERAL_STREAMS, f"more than {MOST_TRACKS} tracks")
        elif name == "Tracks":
            if found.codec:
                raise damaged("it has a second list of tracks")
            found = read_tracks(values, tracks)
        elif name in LOST_ELEMENTS:
            raise LOST_ELEMENTS[name]
    # Chrome's header is 60 ms short or 1 ms in all; it is never behind what was really recorded.
    lasts = real(values["Duration"]) * tick_of(values)
    if lasts > found.end + 1.0:
        ends = f"it ends at {found.end:.1f} s"
        raise Refusal(Reason.TRUNCATED, f"its header says {lasts:.1f} s, but {ends}")
    return found


def real(content: bytes) -> float:
    """The content of an element; 0 if that is no finite number."""
    form = {4: ">f", 8: ">d"}.get(len(content))
    number: float = struct.unpack(form, content)[0] if form else 0.0
    return number if math.isfinite(number) else 0.0


def rate_of(values: Mapping[str, bytes]) -> float:
    """Hz."""
    return real(values["SamplingFrequency"]) or 8000


def tick_of(values: Mapping[str, bytes]) -> float:
    """Seconds that its stamps count in."""
    return (big(values["TimestampScale"]) or 1_000_000) / 1e9


def read_tracks(values: Mapping[str, bytes], tracks: list[int]) -> Probe:
    """What its only track is, without a packet yet. Raises Refusal."""
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
        if "CodecPrivate" in values:
            found = opus_probe("matroska", values["CodecPrivate"])
            decoders_skip = {found.pre_skip, delay or found.pre_skip}
        else:  # as servers of WebRTC write it
            found = Probe("matroska", "opus", channels, OPUS_RATE, delay)
            decoders_skip = {0, delay}
        # ffmpeg 9 follows the CodecDelay, ffmpeg 5 the OpusHead.
        set_doubt(found, max(decoders_skip) - min(decoders_skip))
        return found
    if codec not in PCM_TAGS:
        raise unsupported(codec)
    bits = big(values["BitDepth"])
    return pcm_probe("matroska", PCM_TAGS[codec], bits, channels, rate_of(values))


def set_doubt(found: Probe, samples: float) -> None:
    """Notes by how many samples decoders differ. Raises Refusal where that is more than a tolerance
    may hide."""
    seconds = samples / found.rate
    if seconds > LARGEST_DOUBT:
        differ = f"players would begin or end it {seconds:.2f} s apart, as its headers contradict"
        raise Refusal(Reason.UNSUPPORTED, differ)
    found.doubt = math.ceil(samples)


def add_block(found: Probe, values: Mapping[str, bytes], data: bytes, body: int, size: int) -> None:
    """Adds the packet of a block (RFC 9559, section 10): track number, 16-bit time, flags, packet.
    Raises Refusal."""
    track = 0x80 | (big(values["TrackNumber"]) or 1) & 0x7F
    if size < 5 or not found.codec or data[0] != track:
        raise damaged(f"the block at byte {body} does not belong to its only track")
    if data[3] & 6:
        raise unsupported("several packets in one block (lacing)")
    samples, rest = opus_packet_samples(data[4:]), 0
    if found.codec != "opus":
        samples, rest = divmod(size - 4, found.channels * big(values["BitDepth"]) // 8)
    if samples <= 0 or rest:
        raise damaged(f"the block at byte {body} holds no {found.codec} packet")
    ticks = big(values["Timestamp"]) + big(data[1:3], signed=True)
    found.add(ticks * tick_of(values), samples, size - 4)


STREAMED_FROM = 0x7FFFF000  # bytes; from here on a size says "to the end" (SoX, oboe, arecord)
# Chunks that a copy does not miss: padding, peaks, and tags that ffmpeg copies.
WAV_CHUNKS = re.compile(
    "(?i)RIFF|fmt |fact|data|PEAK|LIST|cue |bext|id3 |junk|pad |fllr|filr|minf|elm1"
)


def riff_header(window: Window, offset: int) -> tuple[str, int, Optional[int]]:
    """Returns name, offset of the content and size of a chunk (RIFF, 1991). The outermost one goes
    to the end, whatever its size says, and so do samples whose size was never filled in, or counts
    the header."""
    head = window.at(offset, 8)
    name, size = head[:4].decode("latin-1"), int.from_bytes(head[4:], "little")
    body = offset + 8
    if name == "RIFF":
        return name, body + 4, None
    is_counted_in = 0 < body + size - window.size <= body
    is_beyond = body + size > window.size
    is_streamed = size == 0 or is_counted_in or (is_beyond and size >= STREAMED_FROM)
    if is_beyond and not WAV_CHUNKS.fullmatch(name):
        return "no chunk\n", body, size
    return name, body, None if name == "data" and is_streamed else size


WAV = Container(riff_header, {".": "RIFF", "RIFF": "[ -~]{4}"}, first="RIFF", alignment=2)


def walk_wav(window: Window) -> Probe:
    """WAV; its length is that of its samples. Raises Refusal."""
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
        elif name == "cue ":
            if any(content[:4]):  # some programs always write a list, of no marks
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
    if tag == 0xFFFE:  # extensible: the real tag begins a longer field
        tag = int.from_bytes(form[24:26], "little")
    found = pcm_probe("wav", tag, bits, channels, rate)
    second = find(window, rb"RIFF.{4}WAVEfmt ", start, size)  # where samples go on to the end
    if second:
        raise Refusal(Reason.APPENDED, f"a second one begins at byte {second}")
    samples, rest = divmod(size, channels * bits // 8)
    if rest:
        raise Refusal(Reason.TRUNCATED, f"it ends inside a sample, after {samples / rate:.1f} s")
    found.add(0.0, samples, size - rest)
    return found


def box_header(window: Window, offset: int) -> tuple[str, int, Optional[int]]:
    """Returns name, offset of the content and size of a box (ISO/IEC 14496-12, 4.2)."""
    head = window.at(offset, 20)
    size, name, length = big(head[:4]), head[4:8].decode("latin-1"), 8
    if size == 1:
        size, length = big(head[8:]), 16
    if name == "meta" and head[16:] == b"hdlr":  # not in QuickTime's
        length += 4
    return name, offset + length, max(0, size - length) if size else None


MP4_PARENTS = "moov trak edts mdia minf stbl mvex moof traf udta meta tref"
MP4_FILE = "ftyp|styp|moov|moof|mdat|free|skip|wide|mfra|sidx|uuid|meta|pdin|prft|emsg"
MP4 = Container(
    box_header, {".": MP4_FILE, **dict.fromkeys(MP4_PARENTS.split(), "(?s:.{4})")}, first="ftyp"
)
# Boxes that a copy does not miss; those whose names begin with (C) are tags. Any other below moov
# may hold marks, or what was said: Voice Memos keep the transcript in moov/trak/udta/tsrp.
MP4_BOXES = re.compile(
    "ftyp|styp|mdat|free|skip|wide|mfra|sidx|pdin|prft|moov|mvhd|iods|trak|tkhd|edts|elst|tref|mdia"
    "|mdhd|hdlr|elng|minf|smhd|dinf|stbl|stsd|stts|stsc|stsz|stz2|stco|co64|stss|sdtp|sgpd|sbgp"
    "|ctts|cslg|mvex|mehd|trex|trep|moof|mfhd|traf|tfhd|tfdt|trun|udta|meta|keys|ilst|\xa9..."
)
MP4_UNITS = {"opus": 120, "aac": 512}  # samples, of which each packet has a multiple
OPUS_DELAY = 3_840  # samples, the longest pre-skip that an encoder of Opus writes
# Samples before the sound and behind it, as iTunes notes them.
PADDING = re.compile(rb"iTunSMPB.{0,32} 0{8} ([0-9A-F]{8}) ([0-9A-F]{8}) ", re.DOTALL)
# What ffmpeg says at the head of its framecrc output, a text that has not changed from 4 to 9.
LISTED_STREAM = re.compile(
    r"#media_type 0: audio\n#codec_id 0: (\w+)\n#sample_rate 0: (\d+)\n"
    r"(?:#channel_layout 0: .*\n)?#channel_layout_name 0: (.*)"
)


def walk_mp4(window: Window, path: str, tools: Tools) -> Probe:
    """MP4 and M4A, with one table of packets or in fragments. Raises Refusal."""
    movie = Movie(window)
    kinds: list[str] = []
    lost: set[str] = set()
    media = 0
    for name, body, size in MP4.walk(window):
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
            length = 8 if window.at(body, 1) == b"\1" else 4
            movie.clock = min(big(window.at(body + 4, length)), 1 << 62)
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
    found = Probe("mov", codec, {"mono": 1, "stereo": 2}.get(layout, 3), int(rate))
    movie.play(found)
    return found


def check_boxes(movie: Movie, kinds: Collection[str], lost: set[str], media: int) -> None:
    """Raises Refusal for an MP4 that is more than one track of sound, or of whose `media` bytes
    some belong to no packet. `kinds` are its handlers, `lost` the boxes that a copy would lose."""
    window = movie.window
    if "moov" not in movie.places:
        raise Refusal(Reason.TRUNCATED, "its index (moov) was never written")
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
    if unplayed > 0 and find(window, b"moof....mfhd", *movie.places["mdat"]):
        # As OBS writes it: fragments, and in the end a table over them.
        raise unsupported("an MP4 that lists its packets twice (hybrid)")
    if unplayed > 0:
        total = f"{unplayed} of its {window.size} bytes"
        raise damaged(f"{total} belong to no packet that is played")
    if unplayed < 0:
        raise Refusal(Reason.TRUNCATED, f"its packets take {-unplayed} bytes more than it has")


def find(window: Window, pattern: bytes, offset: int, size: int) -> Optional[int]:
    """Returns where a pattern of at most 64 bytes is first found in a part of the file."""
    for at in range(offset, offset + size, HEAD_BYTES):
        found = re.search(pattern, window.at(at, HEAD_BYTES + 64), re.DOTALL)
        if found:
            return at + found.start()
    return None


@dataclass
class Movie:
    """The packets of an MP4, by the boxes that list them."""

    window: Window
    # Offset and bytes of the boxes met last.
    places: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    clock: int = 0  # ticks, where the next fragment begins
    stamps: array.array[int] = dataclasses.field(default_factory=partial(array.array, "q"))
    sizes: array.array[int] = dataclasses.field(default_factory=partial(array.array, "I"))

    def numbers(self, name: str, at: int, count: int) -> array.array[int]:
        """Returns so many numbers of 32 bits from byte `at` of a box. Raises Refusal."""
        self.check_count(count // 4)  # a packet has four numbers at most
        offset, size = self.places.get(name, (0, 0))
        if at + 4 * count > size:
            raise damaged(f"its box {name} is missing or too short")
        numbers = array.array("I", self.window.at(offset + at, 4 * count))
        if sys.byteorder == "little":
            numbers.byteswap()
        return numbers

    def check_count(self, count: int) -> None:
        """Raises Refusal for more packets than memory should hold."""
        if len(self.sizes) + count > MOST_PACKETS:
            raise unsupported(f"an MP4 of more than {MOST_PACKETS} packets")

    def scale(self, name: str) -> int:
        """Returns the ticks a second of the movie (mvhd) or the track (mdhd). Raises Refusal."""
        is_long = self.numbers(name, 0, 1)[0] >> 24
        return self.numbers(name, 20 if is_long else 12, 1)[0] or 1

    def add_table(self) -> None:
        """Adds the packets that moov lists: their sizes (stsz), and runs of equal durations (stts).
        Raises Refusal."""
        if "stz2" in self.places:
            raise unsupported("an MP4 whose packets' sizes are told in short (stz2)")
        size, count = self.numbers("stsz", 4, 2)
        self.check_count(count)
        self.sizes += array.array("I", [size]) * count if size else self.numbers("stsz", 12, count)
        (runs,) = self.numbers("stts", 4, 1)
        table = self.numbers("stts", 8, 2 * runs)
        for length, duration in zip(table[::2], table[1::2]):
            self.add_stamps([duration] * min(length, count - len(self.stamps)))
        if len(self.stamps) < count or (count and not self.clock):
            raise damaged("its packets have no times (stts)")

    def add_run(self) -> None:
        """Adds the packets of a fragment (trun), with the defaults of tfhd and trex. Raises
        Refusal."""
        flags, count = self.numbers("trun", 0, 2)
        self.check_count(count)
        at = 8 + (4 if flags & 1 else 0) + (4 if flags & 4 else 0)
        fields = bin(flags & 0xF00).count("1")
        table = self.numbers("trun", at, fields * count)
        duration, size = self.defaults()
        self.add_stamps(table[::fields] if flags & 0x100 else [duration] * count)
        first = 1 if flags & 0x100 else 0
        self.sizes += table[first::fields] if flags & 0x200 else array.array("I", [size]) * count

    def defaults(self) -> tuple[int, int]:
        """Returns duration and size of the packets of a fragment that does not list them."""
        duration, size = self.numbers("trex", 12, 2)
        (flags,) = self.numbers("tfhd", 0, 1)
        at = 8 + (8 if flags & 1 else 0) + (4 if flags & 2 else 0)
        if flags & 8:
            (duration,) = self.numbers("tfhd", at, 1)
            at += 4
        if flags & 16:
            (size,) = self.numbers("tfhd", at, 1)
        return duration, size

    def add_stamps(self, durations: Iterable[int]) -> None:
        for duration in durations:
            self.stamps.append(self.clock)
            self.clock += duration

    def play(self, found: Probe) -> None:
        """Adds the packets to a probe, as ffmpeg plays them. How long each lasts is its codec's to
        say, not its stamps', which jitter, leave gaps and overlap. Raises Refusal."""
        some, scale, unit = self.stamps[:10_000], self.scale("mdhd"), MP4_UNITS[found.codec]
        steps = sorted(after - before for before, after in zip(some, some[1:])) or [0]
        usual = max(1, round(steps[len(steps) // 2] * found.rate / scale / unit)) * unit
        lead, start, end = self.edits(found.rate, len(self.sizes) * usual)
        for stamp, size in zip(self.stamps, self.sizes):
            found.add(lead + stamp / scale, usual, size)
        delay, has_fragments = 3 * usual, "trun" in self.places
        if found.codec == "opus":
            offset, size = self.places.get("stsd", (0, 0))
            head = re.search(rb"dOps..(..)", self.window.at(offset, min(size, 256)), re.DOTALL)
            pre_skip = big(head[1]) if head else 0
            delay = max(OPUS_DELAY, pre_skip)
            start = pre_skip if has_fragments else start or pre_skip
        behind = max(0, found.length - end)
        if start > delay or behind > 2 * usual:
            first, last = start / found.rate, behind / found.rate
            raise Refusal(Reason.HIDDEN, f"{first:.1f} s at the start, {last:.1f} s at the end")
        if found.overlap > COPY_OVERLAP:
            return  # `Job.input` has all of it played
        # At the end ffmpeg 9 leaves out what is hidden, ffmpeg 5 only whole packets of it; at the
        # start of AAC in fragments ffmpeg 5 leaves out nothing. Between them lies half of it.
        unsure_start = start if found.codec == "aac" and has_fragments else 0
        unsure_end = behind % usual
        found.pre_skip = start - unsure_start // 2
        found.trimmed = behind - unsure_end // 2
        edges = (unsure_start + unsure_end) / 2 + found.rate / 1000  # edit lists count in ms
        if found.codec == "aac":
            edges += usual
        set_doubt(found, min(edges, LARGEST_DOUBT * found.rate))

    def edits(self, rate: int, length: int) -> tuple[float, int, int]:
        """Returns the seconds of silence first, and from where to where, in samples, a track of
        such `length` is played. Raises Refusal."""
        start, end, lead = 0, length, 0.0
        offset, size = self.places.get("udta", (0, 0))
        padding = PADDING.search(self.window.at(offset, min(size, HEAD_BYTES)))
        if padding:
            start, behind = (int(number, 16) for number in padding.groups())
            end -= behind
        parts = self.edit_list()
        while parts and parts[0][1] == -1:
            lead += parts.pop(0)[0] / self.scale("mvhd")
            hides_all = not parts and "trun" not in self.places
            end = 0 if hides_all else end
        if len(parts) > 1 or (parts and parts[0][2:] != (1, 0)):
            raise Refusal(Reason.HIDDEN, "several parts, or another speed")
        for ticks, begin, *_ in parts:
            start = round(begin * rate / self.scale("mdhd"))
            if "trun" not in self.places:  # there ffmpeg plays all
                end = min(end, start + round(ticks * rate / self.scale("mvhd")))
        return lead, start, end

    def edit_list(self) -> list[tuple[int, int, int, int]]:
        """Returns the parts of elst: length, start (-1 for silence), speed. Raises Refusal."""
        if "elst" not in self.places:
            return []
        offset, size = self.places["elst"]
        data = self.window.at(offset, min(size, 4_096))
        row = ">QqhH" if data[:1] == b"\1" else ">IihH"
        rows = (len(data) - 8) // struct.calcsize(row) * struct.calcsize(row)
        return list(struct.iter_unpack(row, data[8 : 8 + rows]))


def ogg_checksum(page: bytes) -> int:
    """The CRC of a page (RFC 3533, section 6) whose own field is zero. It is zlib's with every bit
    the other way round."""
    mirrored = zlib.crc32(page.translate(REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return big(mirrored.to_bytes(4, "little").translate(REVERSED_BITS))


OGG_LOST = re.compile(rb"METADATA_BLOCK_PICTURE=|(CHAPTER\d{3}(?:NAME)?=)", re.IGNORECASE)


def walk_ogg(window: Window) -> Probe:
    """Ogg Opus (RFC 3533, RFC 7845): pages that are one whole stream, each with the content that
    its checksum says. Raises Refusal."""
    found, headers = opus_probe("ogg", window.at(28, 19)), 2
    offset, packet, following, tags = 0, b"", (0, 0), b""
    size = 0  # of a packet so far; of its content only the start is held
    while offset < window.size:
        if offset and is_filler(window, offset, window.size):
            break
        page = window.at(offset, LARGEST_PAGE)
        at = 27 + big(page[26:27])  # of its content
        lengths = page[27:at]
        page = page[: at + sum(lengths)]
        if not b"OggS".startswith(page[:4]):
            raise damaged(f"no Ogg page where one should begin, at byte {offset}")
        if len(page) < at + sum(lengths):
            raise Refusal(Reason.TRUNCATED, f"it ends inside a page that begins at byte {offset}")
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
        for length in lengths:
            packet = packet or page[at : at + min(2, length)]
            size += length
            at += length
            if length < 255:
                packets.append((packet, size))
                packet, size = b"", 0
        audio = packets[headers:]
        headers -= len(packets) - len(audio)
        add_ogg_packets(found, audio, granule, bool(flags & LAST_PAGE), offset)
        offset += at
    if not flags & LAST_PAGE:
        raise Refusal(Reason.TRUNCATED, "its last page does not end the stream")
    return found


def add_ogg_packets(
    found: Probe, packets: list[tuple[bytes, int]], granule: int, is_last: bool, offset: int
) -> None:
    """Adds the packets, each its start and its size, that end on the page at `offset`. They end at
    its granule position (samples; -1: none ends on it). Only on the last page it may be less, and
    trims the end. Raises Refusal."""
    if is_last and packets[-1:] == [(b"", 0)]:  # some writers end a stream with an empty packet
        packets.pop()
    lengths = [opus_packet_samples(start) for start, _ in packets]
    if 0 in lengths or (packets and granule < 0):
        raise damaged(f"the page at byte {offset} holds no Opus packets with a time")
    begin = granule - sum(lengths)
    if is_last and granule >= 0:
        found.trimmed = max(0, round(found.end * OPUS_RATE) - begin)
        begin += found.trimmed
    if found.trimmed > sum(lengths):
        raise damaged(f"its last page ends before the page before it, at byte {offset}")
    for (_, size), length in zip(packets, lengths):
        found.add(begin / OPUS_RATE, length, size)
        begin += length


# ----------------------------------------------------------------------------------------- prove
# One way through ffmpeg: decode plainly, take the levels before any filter of ours, insert silence
# where the probe says, encode; walk the copy, decode it, compare it with the levels plus the same
# silence, channel by channel. Writes into staged and level files only. Must never change the
# library.

LEVEL_RATE = 4_000  # Hz; a twelfth of the samples is enough of the voice band to tell sounds apart
LEVEL_WINDOW = 2_000  # samples, half a second: in it one lost word shows, and one lost packet
LEVEL_PART = 40  # samples, 10 ms: a hole of 30 ms holds one with room around it, wherever it begins
LEVEL_EDGE = 240  # samples, 60 ms: the longest packet of an encoder, so how far sound may spread
LEVEL_FLOOR = 6.0 / 32_768  # of full scale, -75 dBFS: below it is what a codec or rounding adds
LEVEL_TOLERANCE = 3.0  # dB; the worst good copy of all browsers and formats differed by 1.06
MIN_CORRELATION = 0.8  # the worst good copy had 0.91, in a tail of 20 ms; another sound about 0
QUIET_CHANNEL = 1e-3  # of the louder one's power, -30 dB: a codec may leave it to the other
FAINT = 1e-5  # of the power within half a second, -50 dB: what a codec may leave out or smear
COPY_OVERLAP = 0.001  # seconds; what we have made has no more than rounding
MOST_HINDERED = 3  # recordings in a row whose ffmpeg was ended from outside, then the run ends
LONG_PACKETS_FROM = 4.0  # seconds; packets of 60 ms encode 13 % faster at the same size and noise
ENCODE_SHARE = 0.8  # of the time that a recording takes, the rest is its proof, measured

# What browsers record, and nothing that refers to other files (playlists, concat lists).
SAFE_INPUT = shlex.split(
    "-protocol_whitelist file -format_whitelist matroska,mov,ogg,wav -codec_whitelist opus,libopus,"
    "aac,pcm_u8,pcm_s16le,pcm_s24le,pcm_s32le,pcm_f32le,pcm_f64le "
    "-max_streams 16 -max_alloc 268435456"
)
QUIET = shlex.split("-hide_banner -nostdin -v level+warning -y")
# Every sample, whatever its timestamp; encoders take out what is constant, a sound card's offset.
LEVEL_FILTER = (
    f"asetpts=N/SR/TB,aresample={LEVEL_RATE},aformat=sample_fmts=fltp,highpass=f=30,"
    "aformat=sample_fmts=flt"
)
LEVEL_OUTPUT = shlex.split("-c:a pcm_f32le -f f32le")
# NUT carries rate and channels along, but not whether one channel is mono.
PIPED_OUTPUT = shlex.split("-c:a pcm_f32le -f nut pipe:1")
PIPED_INPUT = shlex.split("-thread_queue_size 64 -guess_layout_max 0 -f nut -i pipe:0")


class Tolerance(NamedTuple):
    """What a codec may do to a part of 10 ms, in shares of power."""

    kilobits: float  # of a channel, from which this holds
    faint: float  # of half a second's power; what is quieter may be lost
    left: float  # of the part's power, at least
    loud: float = math.inf  # of half a second's power; what is louder keeps its wave
    gain: float = 0.0  # of the wave, at least


# Measured on 1,459 good copies of 38 recordings (voices, music, noise; mono and stereo) at 24k to
# 128k by ffmpeg 4.1, 5.1 and 9. Least power left of a part, and least gain, in the order below:
# Opus 0.27 and 0.42; 0.20 and 0.51; 0.04. AAC 0.077 and 0.36; 0.011, all of ffmpeg 4.1.
# (Not met: a sine sweep at 24k by ffmpeg 9, 0.005.) A hole of 30 ms leaves its emptiest part at
# most 0.024 in Opus from 48k, 0.045 at 24k, 0.02 in AAC; a typical one leaves 0.0002.
TOLERANCES = {
    "opus": (
        Tolerance(50, 5e-4, 0.1, 0.01, 0.3),
        Tolerance(36, 5e-4, 0.08, 0.1, 0.25),
        Tolerance(0, 1e-3, 0.03),
    ),
    "aac": (Tolerance(50, 1e-3, 0.05, 0.01, 0.2), Tolerance(0, 0.01, 0.008)),
}


@dataclass(eq=False)
class Job:
    """One proof. With `encodes` the copy is made first; else `copy` is one that is there already.
    Left with `problem` None it is proven."""

    source: str  # absolute path
    probe: Probe
    target: Target
    copy: str  # absolute path
    encodes: bool
    source_levels: str
    copy_levels: str
    most: float = math.inf  # bytes of a copy that is worth it
    problem: Optional[Exception] = None
    digest: str = ""  # SHA-256 of the copy's bytes that are or were decoded
    is_heard: bool = False  # whether it was decoded while it was written
    slack: float = 0.0  # seconds by which the length of its copy may differ
    tolerance: Tolerance = TOLERANCES["opus"][0]  # by the bit rate that its copy really has

    @property
    def frame(self) -> int:
        """Bytes in its level files that all channels have at a time."""
        return self.probe.channels * 4

    @property
    def share_done(self) -> float:
        """Told by how far its level file has grown: while it is encoded."""
        seconds = size_of(self.source_levels) / self.frame / LEVEL_RATE
        return min(1.0, ENCODE_SHARE * seconds / (self.probe.timeline or 1))

    def input(self) -> list[str]:
        """Returns how ffmpeg is given the source. Where fragments of an MP4 overlap, it would leave
        out sound; with this option it plays all of every packet (measured, 4.1 to 9)."""
        steps_back = self.probe.demuxer == "mov" and self.probe.overlap > COPY_OVERLAP
        plays_all = ["-flags2", "skip_manual"] if steps_back else []
        return [*plays_all, *input_arguments(self.source, self.probe.demuxer)]


class Transcoder:
    """Takes batches of jobs, many in one ffmpeg, one by one where that fails. Safe in threads."""

    def __init__(self, tools: Tools, full: bool) -> None:
        self.tools, self.full = tools, full
        self.hindered: Counter[str] = Counter()  # by task: recordings in a row
        self.ended: Optional[ToolError] = None  # why nothing more is to be tried

    def process(self, jobs: Sequence[Job]) -> None:
        """Leave every job proven or with its problem (Refusal, NotProven, OSError). Raises Stopped,
        ServiceError."""
        self.divide(jobs, self.pipe if len(jobs) == 1 else self.encode, self.encode)
        self.divide(jobs, self.verify, self.verify)

    def divide(
        self,
        jobs: Sequence[Job],
        quick: Callable[[Sequence[Job]], None],
        task: Callable[[Sequence[Job]], None],
    ) -> None:
        """Do a task for all in the quick way; if that fails or says anything, one by one, so that
        each answers for itself."""
        jobs = [job for job in jobs if job.problem is None]
        if not jobs:
            return
        failures: list[Exception] = []
        with boundary(failures.append):
            quick(jobs)
            self.hindered[task.__name__] = 0
        for error in failures:
            reason = getattr(error, "reason", None)
            if self.tools.stop.requested:  # which may have ended the tool too
                raise Stopped from None
            if len(jobs) == 1 and quick == task:
                jobs[0].problem = error
                self.count_hindered(jobs[0], task.__name__)
                return
            if reason is Reason.TOOL_HUNG:
                try_ffmpeg(self.tools, jobs[0].target)  # or each would take its time
            for job in jobs:
                if self.ended:
                    job.problem = Stopped()
                self.divide([job], task, task)

    def count_hindered(self, job: Job, task: str) -> None:
        """At the third recording in a row whose ffmpeg was ended from outside, nothing more is
        tried. Raises ToolError if it does not work at all."""
        if getattr(job.problem, "reason", None) is not Reason.TOOL_KILLED:
            self.hindered[task] = 0
            return
        self.hindered[task] += 1
        if self.hindered[task] >= MOST_HINDERED:
            try_ffmpeg(self.tools, job.target)
            self.ended = ToolError(
                f"For {MOST_HINDERED} recordings in a row, {job.problem}. None of them was "
                "changed, and the next run tries them last. See who ends ffmpeg here, or which "
                "limit does (memory, CPU time, file size, open files)."
            )

    def encode(self, jobs: Sequence[Job]) -> None:
        """One decode of each source, into its copy and its level file."""
        arguments: list[str] = []
        for job in jobs:
            arguments += job.input()
        for number, job in enumerate(jobs):
            copy = [*self.copy_arguments(number, job), "file:" + job.copy]
            arguments += encode_arguments(number, job, copy)
        self.run(arguments, jobs)

    def pipe(self, jobs: Sequence[Job]) -> None:
        """Decode one recording, encode it and decode the copy in three processes at once: 0.7 of
        the time of one process that only transcodes, where one after the other takes 1.3. If
        anything is wrong, one after the other is to tell."""
        (job,) = jobs
        if not (self.full and job.encodes and job.target.form.muxer == "ogg"):
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
        job.is_heard = True

    def verify(self, jobs: Sequence[Job]) -> None:
        """Walk the copies, decode them in full, from disk, and compare. Raises Refusal, OSError,
        Stopped."""
        for job in jobs:
            job.digest = job.digest or digest_of(job.copy, stop=self.tools.stop)
            check_structure(job, self.tools)
        heard = [job for job in jobs if self.full or not job.encodes]  # what was there is anything
        self.hear([job for job in heard if not job.is_heard])
        for job in heard:
            compare_audio(job, self.tools.stop)

    def hear(self, jobs: Sequence[Job]) -> None:
        """Decode the copies in full, from disk, into their level files. Raises NotProven."""
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
        """Raises Refusal, also for what ffmpeg says of them, Stopped, ServiceError."""
        seconds = sum(job.probe.timeline for job in jobs)
        if jobs:
            _, messages = self.tools.run([self.tools.ffmpeg, *QUIET, *arguments], seconds)
            if messages:
                raise damaged(messages)

    def decode(self, copies: Mapping[str, Probe]) -> dict[str, str]:
        """What is wrong with which copy (absolute path), by a full decode: for `check`."""
        jobs = []
        for path, found in copies.items():
            target = Target(FORMAT_OF[splitext(path)[1]], 0)
            jobs.append(Job("", found, target, path, False, "", ""))
        self.divide(jobs, self.hear, self.hear)
        return {job.copy: explain(job.problem) for job in jobs if job.problem}

    def copy_arguments(self, number: int, job: Job) -> list[str]:
        """Returns how input `number` is encoded: with its tags, from container and stream, and our
        own two (Ogg keeps the first of them, M4A the second, measured)."""
        form, found = job.target.form, job.probe
        rate = min(job.target.bitrate, CHANNEL_RATE * found.channels)
        arguments = ["-c:a", form.encoder, "-b:a", str(rate), *form.options]
        if form.codec == "opus" and found.timeline >= LONG_PACKETS_FROM:
            arguments += ["-frame_duration", "60"]
        tags = [f"{name}={job.target.tag}" for name in ("encoded_by", "encoding_tool")]
        for tag in tags:
            arguments += ["-metadata", tag]
        arguments += ["-map_metadata", str(number), "-map_metadata", f"{number}:s:a:0"]
        return [*arguments, "-map_chapters", "-1", "-f", form.muxer]


def size_of(path: str) -> int:
    """Bytes, 0 where there is no such file."""
    with suppress(OSError):
        return os.stat(path).st_size
    return 0


def input_arguments(path: str, demuxer: str) -> list[str]:
    """One input, its format named: nothing is guessed from its content, and no name of it can be
    taken for an option."""
    return [*SAFE_INPUT, "-f", demuxer, "-i", "file:" + path]


def timeline_filter(found: Probe) -> str:
    """Puts silence into the gaps of a source and nothing anywhere else: every frame is stamped by
    the samples before it, its own stamps play no part, so that nothing can be trimmed or moved. A
    gap begins a millisecond early, as a frame that begins late would be put before it; frames are
    indivisible, and none is shorter than 2.5 ms."""
    early = found.rate // 1000
    terms = ["N", *(f"{length}*gte(N,{max(0, at - early)})" for at, length in found.gaps)]
    while len(terms) > 1:  # a tree: ffmpeg parses no more than a hundred terms in a row
        terms = [f"({'+'.join(terms[at : at + 50])})" for at in range(0, len(terms), 50)]
    return f"asetpts='{terms[0]}/SR/TB',aresample=async=1:min_hard_comp=0.0005:first_pts=0"


def encode_arguments(number: int, job: Job, copy: Sequence[str]) -> list[str]:
    """Outputs for input `number`: the copy, and from the same decode, before any filter of ours,
    the source's levels. Nothing on the way is held in 16 bits, as decoders give peaks above full
    scale too."""
    if not job.encodes:
        return level_arguments(number, job.source_levels)
    graph = f"[{number}:a:0]asplit[a{number}][b{number}]"
    graph += f";[a{number}]{timeline_filter(job.probe)},aformat=sample_fmts=flt[c{number}]"
    graph += f";[b{number}]{LEVEL_FILTER}[d{number}]"
    levels = ["-map", f"[d{number}]", *LEVEL_OUTPUT, "file:" + job.source_levels]
    return ["-filter_complex", graph, "-map", f"[c{number}]", *copy, *levels]


def level_arguments(number: int, path: str) -> list[str]:
    """One output: input `number` decoded in full, as levels; without a path, for nothing."""
    output = ["-f", "null", "-"]
    if path:
        output = ["-af", LEVEL_FILTER, *LEVEL_OUTPUT, "file:" + path]
    return ["-map", f"{number}:a:0", *output]


def check_structure(job: Job, tools: Tools) -> None:
    """What can be told of a copy without decoding it: that it is one whole stream, of which codec
    and channels, its length to the sample where the source's packets tell it and no rate is
    converted, which may round one up, and that it is worth it. Raises Refusal, OSError."""
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
    job.tolerance = tolerance_of(made)
    size = getsize(job.copy)
    if job.encodes and size > job.most:
        sizes = f"its copy takes {size_text(size)}, where {size_text(job.most)} are worth it"
        raise Refusal(Reason.LITTLE_SAVING, sizes)


def tolerance_of(made: Probe) -> Tolerance:
    """Returns what a copy of this bit rate may do."""
    for tolerance in TOLERANCES[made.codec]:
        if made.kilobits / made.channels >= tolerance.kilobits:
            break
    return tolerance


def compare_audio(job: Job, stop: Stop) -> None:
    """Compare what was decoded: the source with its own packets, then the copy with the source, in
    length and wave, window by window and channel by channel, with silence where the source has gaps
    and nowhere else. Raises Refusal, NotProven, Stopped."""
    found, scale = job.probe, LEVEL_RATE / job.probe.rate
    source, copy = (size_of(path) // job.frame for path in (job.source_levels, job.copy_levels))
    if abs(source - found.samples * scale) > 1 + found.doubt * scale:
        decoded = f"{source / LEVEL_RATE:.3f} s decoded from it"
        raise NotProven(f"{found.seconds:.3f} s by the source's packets", decoded)
    expected, edges = source, list[int]()  # where silence begins and ends, in turn
    for at, length in found.gaps:
        begin = round(at * scale) + expected - source
        expected += round(length * scale)
        edges += [begin, begin + round(length * scale)]
    if abs(copy - expected) > 1 + job.slack * LEVEL_RATE:
        raise NotProven(f"{expected / LEVEL_RATE:.3f} s", f"{copy / LEVEL_RATE:.3f} s")
    # All of about the same size, as a short tail could not be measured alone.
    count = max(1, round(expected / LEVEL_WINDOW))
    ends = [expected * number // count for number in range(count + 1)]
    sounds = windows(job, job.source_levels, ends[1:], edges)
    after = next(sounds)
    loud = [0.0, max(map(mean_power, after))]
    for begin, other in zip(ends, windows(job, job.copy_levels, ends[1:], ())):
        if stop.requested:
            raise Stopped
        sound, after = after, next(sounds, [[]])
        loud = [*loud[-2:], max(map(mean_power, after))]  # before, now and after
        quiet = max(LEVEL_FLOOR**2, FAINT * max(loud), QUIET_CHANNEL * loud[1])
        spread = max(quiet, QUIET_CHANNEL * max(loud))
        for one, two in zip(sound, other):
            try:
                compare_window(one, two, quiet, spread, begin)
                compare_parts(one, two, quiet, begin, job.tolerance)
            except NotProven:
                # What is loud in the next window may reach a little way into this one.
                edge = min(LEVEL_EDGE, len(one) // 4)
                inner = slice(edge, len(one) - edge)
                if mean_power(one) > spread:
                    raise
                compare_window(one[inner], two[inner], quiet, spread, begin + edge)
                compare_parts(one[inner], two[inner], quiet, begin + edge, job.tolerance)


def windows(
    job: Job, path: str, ends: Iterable[int], edges: Sequence[int]
) -> Iterator[list[list[float]]]:
    """The sound in a level file by channel, up to each of `ends` (frames), with silence put in
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
    """Of the parts of 10 ms of a source that was decoded: silence takes next to nothing."""
    ends = range(LEVEL_PART, size_of(job.source_levels) // job.frame, LEVEL_PART)
    parts = windows(job, job.source_levels, ends, ())
    sounding = sum(max(map(mean_power, part)) > LEVEL_FLOOR**2 for part in parts)
    return sounding / (len(ends) or 1)


def mean_power(samples: Sequence[float]) -> float:
    """By math.hypot, in C: a third of the time that sums of products take."""
    return math.hypot(*samples) ** 2 / (len(samples) or 1)


def compare_window(
    source: Sequence[float], copy: Sequence[float], quiet: float, spread: float, begin: int
) -> None:
    """Compares half a second of one channel, from frame `begin` on: it is as loud in the copy and
    is the same wave. Each channel is compared for itself: a mix of both hides
    what is in one, or in their difference. Where the source has less power than `quiet`, the copy
    has no more than `spread`, as codecs let loud sounds reach a little way into the silence around
    them. Raises Refusal, NotProven."""
    count = min(len(source), len(copy))
    a, b = source[:count], copy[:count]
    power_a, power_b = mean_power(a), mean_power(b)
    if not math.isfinite(power_a):  # such a thing compares as equal to anything
        raise damaged(f"it holds samples that are no numbers at {begin / LEVEL_RATE:.1f} s")
    if power_a <= quiet and power_b <= 2 * spread:
        return
    difference = 10 * math.log10(max(power_b, quiet / 4) / max(power_a, quiet / 4))
    if not abs(difference) <= LEVEL_TOLERANCE:  # nor where it is no number
        place = f"the source's loudness at {begin / LEVEL_RATE:.1f} s"
        raise NotProven(place, f"{difference:+.1f} dB")
    # By the law of cosines: |a - b|^2 = |a|^2 + |b|^2 - 2 a.b
    product = (power_a + power_b - math.dist(a, b) ** 2 / count) / 2
    correlation = product / math.sqrt(power_a * power_b or 1)
    if power_a > quiet and correlation < MIN_CORRELATION:
        place = f"the source's sound at {begin / LEVEL_RATE:.1f} s"
        raise NotProven(place, f"another (correlation {correlation:.2f})")


def compare_parts(
    source: Sequence[float], copy: Sequence[float], quiet: float, begin: int, tolerance: Tolerance
) -> None:
    """Compares each part of 10 ms in half a second of one channel: it has not vanished, and a loud
    one is the same wave. Raises NotProven."""
    power = mean_power(source)
    if power <= quiet:
        return
    count = min(len(source), len(copy))
    parts = max(1, round(count / LEVEL_PART))
    faint = math.sqrt(max(quiet, tolerance.faint * power) * count / parts)
    loud = math.sqrt(max(quiet, tolerance.loud * power) * count / parts)
    left = math.sqrt(tolerance.left)
    at = 0
    for number in range(1, parts + 1):
        end = count * number // parts
        part, other = source[at:end], copy[at:end]
        sound = math.hypot(*part)
        if sound > faint:
            seconds = (begin + at) / LEVEL_RATE
            rest = math.hypot(*other) / sound
            if rest < left:
                decibels = 20 * math.log10(max(rest, 1e-3))
                raise NotProven(f"the source's loudness at {seconds:.1f} s", f"{decibels:.1f} dB")
            if sound > loud:  # the share of the part's own wave that is in the copy
                gain = (1 + rest**2 - (math.dist(part, other) / sound) ** 2) / 2
                if gain < tolerance.gain:
                    raise NotProven(f"the source's sound at {seconds:.1f} s", "another")
        at = end


# ---------------------------------------------------------------------------------------- commit
# The only section that changes the library, in one order that is the promise: sources unchanged,
# copies in place, folder flushed, sidecars true, folder flushed, history flushed, sources
# unchanged, then the unlink. Must never remove what it has not just compared, nor go on after a
# failed flush.


class Committer:
    """Carries out the moves of one run, and keeps the documents true."""

    def __init__(self, run: Run) -> None:
        self.run, self.library, self.staging = run, run.library, run.staging
        self.history, self.report = run.history, run.report
        self.folders: set[str] = set()  # that the run has looked into
        self.ids: set[str] = set()  # whose entries in the index may have to change
        self.written: dict[str, str] = {}  # documents made true, by path: their SHA-256
        self.full: Optional[NoSpaceError] = None  # once the disk is
        self.index_digest = ""  # of the index as it was when it was last found or made true
        self.settled, self.cost = monotonic(), 0.0  # seconds

    def commit(self, works: Sequence[Work]) -> None:
        """All that is ready, and what was refused (it changes what documents say, and goes into the
        history). Each Work comes out with its final reason, told to the report:

        1. identity of each source (`is_same`); one deleted by its owner is passed over
        2. put in place: `place`, `exchange`, or nothing; attributes were given when it was staged
        3. flush the folder; where that fails, originals stay and the works have failed
        4. make the sidecars of every recording touched true; flush the folder
        5. append to the history and flush; where that fails, originals stay
        6. an index that names files is written here; another follows within seconds
        7. identity again, unlink, flush
        """
        now = self.run.now  # whatever a run does bears the time of its start
        works = [work for work in works if not self.is_gone(work)]
        # Begun and on record before, or a run in between would delete the original again.
        back = [work for work in works if work.is_ready and work.plan.move is Move.RESTORE]
        self.attempt(back, self.history.append, back, now)
        for work in back:
            work.place = None  # once the commit is finished, it is here again and not there
        for work in works:
            with boundary(work.refuse):
                if work.is_ready:
                    self.put_in_place(work, now)
        keep_together(works)
        folders: dict[str, list[Work]] = {}
        for work in works:
            folders.setdefault(work.take.folder, []).append(work)
        for folder, group in folders.items():
            self.attempt(group, flush_folder, self.library.path(folder))
            self.attempt(group, self.make_works_true, folder, group, now)
            self.attempt(group, flush_folder, self.library.path(folder))
        if not self.attempt(works, self.history.append, works, now):
            self.attempt((), self.history.append, works, now)  # that they have failed
        for work in works:
            if work.reason is Reason.NO_SPACE:
                self.disk_is_full(work, work.detail)
        ids = {id_ for work in works for id_ in work.recording.ids}
        self.folders.update(folders)
        if self.index_names_files:
            self.ids |= ids
            self.settle(at_once=True)
        for folder, group in folders.items():
            self.remove_sources(folder, group, now)
        self.ids |= ids
        self.settle(at_once=False)
        if self.full:
            raise self.full

    def disk_is_full(self, work: Work, detail: str) -> None:
        """A full disk ends the run. It is reported at its first sign, and once."""
        if not self.full:
            self.full = self.run.no_space(work, detail)
            self.report.failed(self.full)

    def is_gone(self, work: Work) -> bool:
        """Whether its owner has deleted its source."""
        is_gone = bool(work.plan.source) and not lexists(self.library.path(work.path))
        if is_gone:
            self.library.require_there()
            self.report.due -= 1
            self.report.once(f"{work.path} was deleted meanwhile, and was passed over.")
            self.staging.discard(work.staged)
        return is_gone

    def put_in_place(self, work: Work, now: float) -> None:
        """Steps 1 and 2. Raises Refusal, OSError."""
        final = self.library.path(work.target_path)
        if work.plan.source:
            expect(is_same(self.library.path(work.path), work.source_seen))
        if work.staged and work.copy:  # inode numbers decide nothing: some disks make them up anew
            expect(file_at(work.staged)[1:] == work.copy[1:])
        if work.plan.move is Move.SMALLER:
            expect(is_same(final, work.displaced_seen))
            # On record before: without its original, nothing else could tell that a copy in
            # another's place is proven.
            if not work.take.original:
                self.history.append([work], now)
            self.swap(work, work.displaced_seen)  # the old one waits until all is true
        elif work.staged:
            place(work.staged, final)
        elif work.plan.move in (Move.ADOPT, Move.FREE):
            expect(is_same(final, work.copy_seen))

    def swap(self, work: Work, expected: Optional[Witness]) -> None:
        """Exchanges the staged file and the file in its place. If another program was faster and
        that is not the expected file, they change back. Raises Refusal(CHANGED), OSError."""
        final = self.library.path(work.target_path)
        work.staged = exchange(work.staged, final)
        if work.staged and not is_same(work.staged, expected):
            work.staged = exchange(work.staged, final)
            raise Refusal(Reason.CHANGED)

    def attempt(
        self, works: Sequence[Work], step: Callable[..., object], *arguments: object
    ) -> bool:
        """Does one step. Whatever goes wrong in it keeps the sources of these works. Returns False
        if the next run should try again. A broken document is not retried: repairing it changes its
        mtime, and that is noticed."""
        failures: list[Exception] = []
        with boundary(failures.append):
            step(*arguments)
        for error in failures:
            self.step_failed(works, error)
        return all(isinstance(error, Flaw) for error in failures)

    def step_failed(self, works: Sequence[Work], error: Exception) -> None:
        """A copy that took another's place gives it back. Any other stays beside its original, to
        be adopted."""
        is_sidecar = isinstance(error, (Flaw, PermissionError))
        refusal = Refusal(Reason.SIDECAR_FAILED, explain(error)) if is_sidecar else error
        for work in works:
            if is_full(error):
                self.disk_is_full(work, explain(error))
            if work.is_ready:
                work.refuse(refusal)
                if work.plan.move is Move.SMALLER and work.staged:
                    with suppress(Refusal, OSError):
                        self.swap(work, work.copy_seen)
        if works:
            return
        text = f"Left alone, and may not say all that is true: {explain(error)}"
        if exit_code_of(error) == NoSpaceError.exit_code:
            if self.report.exit_code != NoSpaceError.exit_code:
                self.report.error(text, NoSpaceError.exit_code)
        elif isinstance(error, (Flaw, Refusal, OSError)):
            self.report.once(text)
        else:
            self.report.defect("What is said of some recordings was left as it is", error)

    def make_works_true(self, folder: str, works: Sequence[Work], now: float) -> None:
        """Make the sidecars of recordings say what these works make of them. Where that fails, the
        copies stay beside their originals as SIDECAR_FAILED, and are adopted when it can be."""
        after = {work.take.stem: work.take_after(now) for work in works}
        here = self.library.folder(folder)
        for recording in resolve_recordings(here):
            stems = {take.stem for take in recording.takes}
            group = [work for work in works if work.take.stem in stems]
            if group:
                self.attempt(group, self.make_true, here, recording, after)

    def make_true(self, folder: Folder, recording: Recording, after: Mapping[str, Take]) -> None:
        """Make a recording's sidecars say what its takes are, those in `after` (by stem) as they
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

    def remove_sources(self, folder: str, works: Sequence[Work], now: float) -> None:
        """Step 7, and the end of every work. A past that has changed by it gets a second line: of
        a removal that failed, and of a restore that is finished."""
        pasts, changed = self.history.in_folder(folder), []
        for work in works:
            if work.is_ready:
                with boundary(work.refuse):
                    self.remove_source(work)
                work.reason = work.outcome_reason
                changed += [work] if work.past_after(now) != pasts.get(work.take.stem) else []
            self.staging.discard(work.staged)
        try:
            flush_folder(self.library.path(folder))
            self.history.append(changed, now)
        except OSError as error:  # after a power cut an original may be back, as a next run finds
            self.report.error(f"What was deleted in {folder} may come back: {explain(error)}")
        for work in works:
            if work.reason is not Reason.NO_SPACE:
                self.report.outcome(work)

    def remove_source(self, work: Work) -> None:
        """Raises Refusal."""
        try:
            for file in work.plan.goes:
                path = self.library.path(work.take.folder, file.name)
                with suppress(FileNotFoundError):  # its owner was faster
                    is_source = file == work.plan.source
                    expect(is_same(path, work.source_seen if is_source else work.copy_seen))
                    # Behind an attribute cache (sshfs, NFS) a stat is no witness of a source
                    # whose only other copy is elsewhere.
                    if work.plan.move is Move.ARCHIVE and work.source_seen:
                        expect(digest_of(path) == work.source_seen.sha256)
                    os.unlink(path)
        except OSError as error:
            raise Refusal(Reason.NOT_REMOVED, explain(error)) from None

    @cached_property
    def index_names_files(self) -> bool:
        with suppress(OSError):
            return bool(AUDIO_ENDING.search(read_regular(self.library.path(INDEX_NAME))))
        return False

    def look_at_index(self) -> None:
        """Where another program has written the index since our last run: notes which entries it
        has turned back. (From the history alone, so only a hint.)"""
        last = self.history.runs[-1:]
        self.index_digest = self.library.index_digest()
        if self.index_digest in ("", *(record.get("index") for record in last)):
            return
        copies, originals = Counter[str](), Counter[str]()
        for past in self.history.pasts.values():
            for id_ in past.ids if past.suffix else ():
                copies[id_] += 0 if past.place else past.size
                originals[id_] += 0 if past.place else past.first_size

        def turned_back(data: bytes) -> Iterator[str]:
            for _, id_, entry in entries(JsonText(data)):
                sizes = (copies[id_], copies[id_] + originals[id_])
                is_true = entry.get("compressed") is True and entry.get("size") in sizes
                if id_ in copies and not is_true:
                    yield id_

        path = self.library.path(INDEX_NAME)
        with suppress(Flaw, OSError):  # told by a run that would have changed it
            self.ids.update(read_whole(path, lambda data: list(turned_back(data)))[1])

    def settle(self, at_once: bool) -> None:
        """Make the index true, from what the folders say now. Within seconds, but not so often that
        it takes the time of the work. One that cannot be read, is a link or no object is told and
        left alone."""
        begun = monotonic()
        is_time = at_once or begun - self.settled > max(5.0, 50 * self.cost)
        if not (self.folders or self.ids) or not is_time:
            return
        pasts = self.history.pasts.items()
        met = {dirname(stem) for stem, past in pasts if self.ids.intersection(past.ids)}
        met |= self.folders
        recordings = list[Recording]()
        copies = 0
        for folder in self.library.walk(self.report.once):
            copies += sum(file.size for file in folder.audio if file.suffix in FORMAT_OF)
            if folder.path in met:
                recordings += self.run.recordings_in(folder)
        index = Catalogue(recordings, self.ids)
        edit = partial(
            edit_index,
            facts=index.facts,
            meant=index.meant,
            copies_size=copies,
            date=iso(time.time()),
        )
        path = self.library.path(INDEX_NAME)
        if self.attempt((), self.write_index, path, edit):
            self.attempt((), flush_folder, self.library.root)
            self.ids = set()
        self.settled = monotonic()
        self.cost = self.settled - begun

    def write_index(self, path: str, edit: Callable[[bytes], Optional[bytes]]) -> None:
        """Raises Flaw, Refusal, OSError."""
        self.index_digest = rewrite(path, edit, self.staging, backup=False)

    def finish(self) -> None:
        """The end of the work: all documents of folders that the run has looked into are made true,
        also those that another program has written meanwhile, and the index. Where nothing is left
        to be tried, that is noted; what was not written is looked at again by the next run."""
        notes = []
        for path in sorted(self.folders):
            defect = partial(self.report.defect, f"What is said in {path} was left as it is")
            with boundary(defect), suppress(OSError, UsageError):
                notes += self.finish_folder(path)
        self.settle(at_once=True)
        if not self.ids:
            self.history.note(notes, self.run.now)

    def finish_folder(self, path: str) -> list[dict[str, Any]]:
        """Makes all documents of a folder true. Returns the note on it, if it has one. Raises
        OSError, UsageError."""
        folder = self.library.folder(path)
        recordings = self.run.recordings_in(folder)
        if folder.is_unread:  # nothing shows when it can be read: it is looked at every night
            return []
        true = [self.attempt((), self.make_true, folder, each, {}) for each in recordings]
        self.ids.update(*(recording.ids for recording in recordings))
        flush_folder(self.library.path(path))
        return word_on(folder, self.run) if recordings and all(true) else []


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


def keep_together(works: Sequence[Work]) -> None:
    """A recording is archived and restored as a whole: one part that cannot be keeps the others."""
    for stuck in works:
        if stuck.reason and stuck.plan.move in (Move.ARCHIVE, Move.RESTORE):
            refusal = Refusal(stuck.reason, f"of its other part {stuck.path}: {stuck.detail}")
            for work in works:
                if work.recording is stuck.recording and work.is_ready:
                    work.refuse(refusal)


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
# int() refuses some thousands of digits.
VALUES = json.JSONDecoder(parse_int=lambda text: int(text) if len(text) < 20 else float(text))


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
        self.edits[token] = json.dumps(new)
        (stem, old), (new_stem, suffix) = splitext(name), splitext(new)
        end = token.end - 1
        if stem == new_stem and self.text.endswith(old, token.start, end):
            self.edits[token] = self.text[token.start : end - len(old)] + suffix + '"'

    def edited(self) -> Optional[bytes]:
        """Returns the document with all edits; None if there are none. Drops an edit inside of
        another one."""
        whole, new, at = memoryview(self.data), io.BytesIO(), 0
        for span in sorted(self.edits):
            if span.start >= at:
                new.write(whole[at : span.start])
                new.write(self.edits[span].encode("latin-1"))
                at = span.end
        new.write(whole[at:])
        return new.getvalue() if self.edits else None


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
    original_size: Optional[
        int
    ]  # As the browser wrote them; None if it is not known of every take.
    compressed_size: int  # Of the files that stand for the takes, archived ones included.
    on_disk: int  # Of the files that are here, kept originals included.
    date: Optional[float]  # Of the newest compression: 0 if not on record, None without a copy.
    place: Optional[Place]  # In the archive, if all of it is there.

    @property
    def is_complete(self) -> bool:
        """Returns whether nothing is missing and nothing has to be compressed."""
        return self.states <= {State.RESTING, State.COMPRESSED, State.ARCHIVED}


def facts_of(takes: Iterable[Take]) -> Facts:
    """Returns the facts about takes, given as they will be after a move. Pure."""
    states: set[State] = set()
    firsts: list[Optional[int]] = []
    places: list[Place] = []
    standing, on_disk, date = 0, 0, None
    for take in takes:
        original, past = take.original, take.past
        states.add(take.state)
        firsts.append(original.size if original else past.first_size or None)
        file = take.file or past.place
        standing += file.size if file else 0
        on_disk += sum(each.size for each in (*take.originals, take.copy) if each)
        if file and file.name.endswith(COPY_SUFFIXES):
            date = max(date or 0.0, past.compressed)
        if past.place:
            places.append(past.place)
    newest = max(places, key=lambda place: place.time, default=None)
    return Facts(
        states=frozenset(states),
        original_size=None if None in firsts else sum(filter(None, firsts)),
        compressed_size=standing,
        on_disk=on_disk,
        date=date,
        place=newest if states == {State.ARCHIVED} else None,
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
    if facts.place:
        members["archived"] = True
        # An owner who moves the archive by hand may say so here, so this is never replaced.
        if not now.get("archive_location"):
            members["archive_location"] = facts.place.location
            members["archive_date"] = iso(facts.place.time)
    elif facts.on_disk and "archive_location" in now:
        members.update(dict.fromkeys(ARCHIVE_MEMBERS, GONE))
    return members


ARCHIVE_MEMBERS = ("archived", "archive_location", "archive_date")
RESTORED_MEMBERS = {
    "compressed": False,
    "compressed_size": None,
    "compression_ratio": GONE,
    "compression_date": None,
}
OUR_MEMBERS = ("original_size", *RESTORED_MEMBERS, *ARCHIVE_MEMBERS)


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


def index_members(facts: Facts) -> dict[str, Any]:
    """Returns what members of an index entry must be. Pure."""
    return {
        "compressed": facts.is_complete and facts.date is not None,
        "size": facts.on_disk,
        "archived": True if facts.place else GONE,
    }


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
            if not any(recording.is_witnessed for recording in of_id[id_]):
                takes = (take for recording in of_id[id_] for take in recording.takes)
                self.facts[id_] = facts_of(takes)

    def find(self, id_: str, text: str) -> list[tuple[Take, str]]:
        """Returns the takes that a string in an entry of this id may call, each with the name that
        it has now. The take with the most fitting parts is meant, or the one with this id."""
        above = plain_path(text).rpartition("/")[0]
        # The index is itself a document of the uppermost folder.
        ends = (*ends_of(above), "")
        of_id = self.folders.get((id_,), {})
        places = [self.folders.get(end, {}) for end in ends]
        if of_id and not above:
            places = [of_id] if len(of_id) == 1 else []
        for folders in places:
            found = [each for names in folders.values() for each in names.meant(text, self.takes)]
            if found:
                return [each for each in found if id_ in self.ids[each[0].stem]] or found
        return []

    def meant(self, id_: str, text: str) -> Optional[tuple[Optional[Take], str]]:
        """Returns the take that a string calls, if the entry of this id is that take's, and what
        the string must be. Returns None for data."""
        found = self.find(id_, text)
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
) -> Iterator[tuple[Span, str, Mapping[str, Any], Optional[Facts]]]:
    """Renames the files that an index names, and yields its entries: where each stands, its id,
    what it says, and the facts that it must follow. The only entry of an id follows the facts of
    the id. Any other entry follows those of the files that it names, or none. Raises Flaw."""

    def rename(span: Span, id_: str) -> dict[str, Take]:
        takes = {}
        for token, text, is_key in document.names(span) if has_names else ():
            found = None if is_key else meant(id_, text)
            if found:
                document.respell(token, text, found[1])
            if found and found[0]:
                takes[found[0].stem] = found[0]
        return takes

    has_names = AUDIO_ENDING.search(document.data)
    known = []
    for span, id_, entry in entries(document):
        takes = rename(span, id_)
        if takes or id_ in facts:
            known.append((span, id_, entry, takes))
        else:
            yield span, id_, entry, None
    for name, _, span in document.parts(document.root):
        if name != "recordings":
            rename(span, "")
    counts = Counter(id_ for _, id_, _, _ in known)
    for span, id_, entry, takes in known:
        about = facts.get(id_) if counts[id_] == 1 else None
        if takes and not about:
            about = facts_of(takes.values())
        yield span, id_, entry, about


def edit_index(
    data: bytes, facts: Mapping[str, Facts], meant: Meant, copies_size: int, date: str
) -> Optional[bytes]:
    """Returns the index with its entries, names and totals as they must be; None if it is true
    already. `facts` are by id. Raises Flaw if it is not understood. Pure."""
    document, size = JsonText(data), 0.0
    for span, _, entry, about in described(document, facts, meant):
        if about:
            wanted = index_members(about)
            document.set(span, wanted)
            entry = {**entry, **wanted}
        size += finite(entry.get("size"))
    totals = {"total_size": round(size), "compressed_size": copies_size}
    if document.edits or changed(document.values(document.root, totals), totals):
        document.set(document.root, {**totals, "last_updated": date})
    return document.edited()


ENTRY_MEMBERS = ("id", "size", "compressed", "archived")


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
        if isinstance(size, bool) or not isinstance(size, (int, float)):
            raise Flaw(f"the recording at byte {span.start} has a size that is no number")
        if not id_ and not any(not is_key for _, _, is_key in document.names(span)):
            raise Flaw(f"the recording at byte {span.start} has neither an id nor a file")
        yield span, id_, entry


def index_differs(data: bytes, facts: Mapping[str, Facts], meant: Meant) -> list[str]:
    """Returns the ids of entries that do not say what they must. Raises Flaw. Pure."""
    known = described(JsonText(data), facts, meant)
    return [id_ for _, id_, entry, about in known if about and changed(entry, index_members(about))]


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
    NAME.json.bak. The caller flushes the folder. Returns the SHA-256 of the true document, "" if
    its owner has deleted it. Raises Flaw, Refusal, OSError."""
    with suppress(FileNotFoundError):
        for _ in range(REWRITES):
            try:
                data, edited = read_whole(path, edit)
            except Flaw as flaw:
                raise Flaw(f"{relpath(path, staging.library.root)}: {flaw}") from None
            if edited is None:
                return hashlib.sha256(data).hexdigest()
            if backup and not lexists(path + BACKUP_SUFFIX):
                keep_backup(data, path, staging)
            staged = staging.write(edited, path)
            is_done = read_regular(path) == data and put(staged, path, edited, data)
            staging.discard(staged)
            if is_done:
                return hashlib.sha256(edited).hexdigest()
        raise OSError(errno.EBUSY, "Another program rewrites it without a pause", path)
    return ""


def keep_backup(data: bytes, path: str, staging: Staging) -> None:
    """Keeps a document as NAME.json.bak, unless that name is taken or too long. Raises Refusal,
    OSError."""
    kept = staging.write(data, path)
    try:
        place(kept, path + BACKUP_SUFFIX)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENAMETOOLONG):
            raise
    staging.discard(kept)


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
# target (an empty mount point has none), write over another file, or leave the folder by a link.

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
        self.token = os.urandom(4).hex()
        self.visited: dict[str, bool] = {}  # whether anything was there in a folder, by its path
        self.refusal = ""  # why this run uploads nothing more

    def location(self, path: str) -> str:
        """Returns where a path below the library is there."""
        return f"{self.root}/{path}"

    def try_it(self) -> None:
        """Raises ServiceError if the archive does not answer, is itself a library, or has another
        library's mark. Leaves our mark there, if it has none and the library is locked."""
        self.answer()
        folder = f"{self.root}/{OWN_FOLDER}"
        mark = f"{folder}/{ID_NAME}"
        own = self.library.own(ID_NAME)
        try:
            names = self.names_in(folder)
            if "lock" in names:
                raise ServiceError(
                    f"The archive {self.root} is a library, perhaps this one by another path. "
                    "Nothing was removed; name another folder or remote in tiers."
                )
            is_marked = ID_NAME in names
            if self.run.is_locked:
                self.sweep(folder, names)
            if self.run.is_locked and not is_marked:
                self.identify(own)
                self.deliver(own, mark, digest_of(own))
                is_marked = True
            if is_marked and not (lexists(own) and self.digest(mark) == digest_of(own)):
                raise ServiceError(
                    f"The archive {self.root} has the mark of another library. Nothing was "
                    "removed; name another target in tiers. If it is this library's, whose "
                    f".compression folder was lost or removed, remove {mark} and run again."
                )
        except (Refusal, OSError) as error:
            raise self.takes_nothing(error) from None

    def identify(self, own: str) -> None:
        """Gives the library an id, if it has none: a random word, of which the archive gets a copy
        as a mark."""
        if not lexists(own):
            word = os.urandom(16).hex().encode()
            place(self.run.staging.write(word, self.library.own("lock")), own)
            flush_folder(dirname(own))

    def try_upload(self) -> None:
        """Raises ServiceError unless the archive takes a small file under a plain name. The file is
        this program, which is always there."""
        source = realpath(__file__)
        there = self.location(self.new_name())
        try:
            self.deliver(source, there, digest_of(source))
            self.remove(there)
        except (Refusal, OSError) as error:
            raise self.takes_nothing(error) from None

    def new_name(self) -> str:
        """Returns a name of this run alone, which a later run removes."""
        return STAGED_NAME.format(self.token, next(Staging.numbers))

    def takes_nothing(self, error: Exception) -> ServiceError:
        """Returns the error that ends the run."""
        why = getattr(error, "detail", "") or explain(error)
        if is_full(error):
            advice = "Nothing is removed here; make room and run again."
            return NoSpaceError(f"No space left in {self.root}: {why}. {advice}")
        return ServiceError(
            f"The archive {self.root} takes nothing: {why}. Nothing is removed here; see to it "
            "that files can be written there."
        )

    def store(self, works: Sequence[Work]) -> None:
        """Puts files there, proven; leaves each Work with its `place` or refused. Raises Stopped,
        and ServiceError where the archive does not answer or takes nothing."""
        for work in works:
            if self.run.stop.requested:
                raise Stopped
            if not work.reason:
                with boundary(work.refuse):
                    work.place = self.put(work)
                    work.detail = work.place.location

    def put(self, work: Work) -> Place:
        """Puts one file there, and returns its place."""
        source = self.library.path(work.path)
        there = self.location(work.path)
        status = os.lstat(source)
        work.source_seen = self.library.witness(source)
        sha256 = work.source_seen.sha256
        try:
            self.visit(work.take.folder)
            if self.is_there(work.take.folder, source, there, sha256):
                self.secure(source, there)
            else:
                self.deliver(source, there, sha256)
        except (Refusal, OSError) as error:
            expect(is_same(source, work.source_seen))
            self.find_cause(there, error)
        return Place(
            *os.path.split(there),
            status.st_size,
            status.st_mtime_ns,
            sha256,
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
        if found not in (sha256, digest_of(source, size)):
            raise Refusal(Reason.ARCHIVE_REFUSED, f"{there} is there already and is another file")
        if found != sha256:
            self.remove(there)
        return found == sha256

    def deliver(self, source: str, there: str, digest: str) -> None:
        """Copies a file there under a name of this run, proves the copy, and moves it to its place.
        So nothing that a killed run left at work can replace or remove it. The name holds a part of
        the real one: what cannot be there is refused before it is copied."""
        folder, name = os.path.split(there)
        part = f"{folder}/{self.new_name()}.{name[:40]}.part"
        try:
            self.send(source, part)
            if self.digest(part) != digest:
                raise NotProven(f"to read from {there} what was written", "other bytes")
            self.move(part, there)
            is_sound = self.size_of(there) == getsize(source)
            if not (is_sound and (self.moves or self.digest(there) == digest)):
                raise NotProven(f"to find in {there} what was moved there", "another file")
        except BaseException:
            self.remove(part)
            raise

    def find_cause(self, there: str, error: Exception) -> NoReturn:
        """After a file was not taken: raises ServiceError if the archive takes nothing at all, else
        Refusal: it is its name, its folder there or its size. That counts against the recording."""
        if is_full(error):
            raise self.takes_nothing(error)
        if getattr(error, "reason", None) is Reason.ARCHIVE_REFUSED:
            raise error
        self.try_upload()
        why = getattr(error, "detail", "") or explain(error)
        if self.ends_at_refusal:
            self.refusal = f"The archive {self.root} refused {there}; the next run tries it again."
        raise Refusal(Reason.ARCHIVE_REFUSED, f"{there} is not taken, while other names are: {why}")

    def visit(self, folder: str) -> None:
        """Looks once a run into a folder there and those above it. Removes what killed runs have
        left. Raises ServiceError if a file put into this folder of the library appears there too,
        or if a library is in the way: the archive is the library by another path."""
        if folder in self.visited:
            return
        if folder:
            self.visit(dirname(folder))
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

    def fetch(self, folder: str, place: Place, said: str, staged: str) -> Place:
        """Brings a file back into `staged`, proven by its hash and with mode, owner and mtime, if
        they are on record, else as the library's owner's. Returns what it was."""
        there, size = self.find(folder, place, said)
        if size is None:
            self.answer()
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

    def find(self, folder: str, place: Place, said: str) -> tuple[str, Optional[int]]:
        """Returns where a file is, and its size: the place on record, the one that its sidecar has
        `said`, or the one that it would go to now. An archive may have been moved and a library
        renamed, so each is a lead that the hash proves. None: in no such place."""
        leads = (
            f"{place.location}/{place.name}",
            f"{said}/{place.name}",
            self.location(join(folder, place.name)),
        )
        found: tuple[str, Optional[int]] = leads[-1], None
        for there in filter(self.holds, leads):
            size = self.size_of(there)
            if size is not None:
                found = there, size
                if size == (place.size or size):
                    break
        return found


class FolderArchive(Archive):
    """On another disk."""

    def answer(self) -> None:
        """Raises ServiceError if the folder is not there or cannot be used."""
        ways = (self.root, self.library.root), (self.library.root, self.root)
        if any(is_below(join(one, "-"), other) for one, other in ways):
            raise ServiceError(
                f"The archive {self.root} and the library lie inside of each other: move one out."
            )
        if not isdir(self.root):
            raise ServiceError(
                f"The archive has no folder {self.root}. Is its disk mounted? If it is, make this "
                "folder once by hand, so that nothing can ever go to the wrong disk."
            )
        read_sign(self.root, 1)

    def holds(self, there: str) -> bool:
        return is_below(there, self.target)

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
        remove_all([there])


class RemoteArchive(Archive):
    """Behind rclone."""

    ends_at_refusal = True
    listed: Mapping[str, int] = {}  # sizes by location, once all was listed

    def answer(self) -> None:
        """Raises ServiceError if it cannot be listed. There need be nothing yet."""
        try:
            self.entries(self.target)
        except Refusal as refusal:
            raise ServiceError(
                f"The archive {self.target} does not answer: {refusal.detail}. Nothing is "
                f"removed here; see to it that 'rclone lsf {self.target}' works."
            ) from None

    def holds(self, there: str) -> bool:
        return there.startswith(self.base) and NO_NAMES.isdisjoint(there.split("/")[1:])

    def names_in(self, there: str) -> Collection[str]:
        return self.entries(there)

    def size_of(self, there: str) -> Optional[int]:
        if there in self.listed:
            return self.listed[there]
        return next(iter(self.entries(there, "--files-only").values()), None)

    def digest(self, there: str) -> str:
        """Hashes what the remote sends as it comes, so that it takes no space here. Tried twice,
        as `rclone cat` does not go on where a connection broke."""
        command = self.command("cat", "--", there)
        with suppress(Refusal):
            return self.run.tools.digest(command, ARCHIVE_PATIENCE)
        return self.run.tools.digest(command, ARCHIVE_PATIENCE)

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
        told = json.loads(self.rclone("backend", "features", self.target))["Features"]
        return bool(told["Move"] or told["Copy"])

    def remove(self, there: str) -> None:
        with suppress(Refusal, Stopped):
            self.rclone("deletefile", "--", there)

    def list_all(self) -> None:
        sizes = self.entries(self.root, "-R", "--files-only")
        self.listed = {self.location(path): size for path, size in sizes.items()}

    def entries(self, there: str, *options: str) -> Mapping[str, int]:
        """Returns the sizes of what is in a folder, or of one file, by path; empty where there is
        none (rclone's exit codes 3 and 4)."""
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

    def rclone(self, *words: str) -> str:
        """Returns the output of one call of it. Raises ToolError."""
        try:
            return self.run.tools.run(self.command(*words), ARCHIVE_PATIENCE)[0]
        except Refusal as refusal:
            is_space = refusal.reason is Reason.NO_SPACE
            reason = refusal.reason if is_space else Reason.INPUT_OUTPUT
            raise Refusal(reason, f"rclone: {refusal.detail}") from None

    def command(self, *words: str) -> list[str]:
        named = (word.translate(RCLONE_NAMES) for word in words)
        return [self.run.tools.find("rclone")[0], *RCLONE, *named]


def configured_archive(run: Run) -> Optional[Archive]:
    tier = run.config.archive_tier
    if not (tier and tier.archive):
        return None
    kind = FolderArchive if os.path.isabs(tier.archive) else RemoteArchive
    return kind(tier.archive, run)


def is_full(error: Exception) -> bool:
    """Returns whether a disk or a quota is full."""
    is_space = getattr(error, "reason", None) is Reason.NO_SPACE
    return is_space or exit_code_of(error) == NoSpaceError.exit_code


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
    if config.dry_run:
        for recording in asked_for(run):
            for work in works_back(recording, config):
                if not work.reason:
                    where = "its original is kept" if work.plan.source else "it is in the archive"
                    work.refuse(Refusal(Reason.RESTORE_DUE, where))
                report.outcome(work)
        report.summary()
        return
    report.open_log()
    with run.open(locks=True):
        try_commits(run.library)
        with run.finishing():
            bring_back(run, asked_for(run))
    run.note(report.summary())


def asked_for(run: Run) -> Iterator[Recording]:
    """Yields the recordings that the command line names, each once, folder by folder, so that few
    are held at a time. Reports the paths that name none."""
    library, asked = run.library, dict[str, str]()
    by_folder: dict[str, dict[str, str]] = {}
    for path in (*run.config.paths, *(done_last(library) if run.config.last_run else ())):
        # From where the user stands, also of what is here no more, or from the library.
        is_from_here = lexists(path) or is_below(path, library.root)
        given = path if is_from_here else library.path(path)
        inside = relpath(realpath(given), realpath(library.root))
        asked[inside] = path
        stem, suffix = splitext(inside)
        if suffix.lower() in (*AUDIO_SUFFIXES, SIDECAR_SUFFIX):
            folder_of_it, name = os.path.split(stem)
            by_folder.setdefault(folder_of_it, {})[name] = inside
    missed = set(asked)
    for folder in every_folder(library, run.report.once):
        if run.is_locked:
            run.staging.sweep(folder)
        path = PurePath(folder.path)
        whole = asked.keys() & set(map(str, (path, *path.parents)))
        names = by_folder.get(folder.path, {})
        for recording in run.recordings_in(folder) if whole or names else ():
            met = whole.union(names[name] for name in names.keys() & names_of(recording))
            missed -= met
            if met:
                yield recording
    for inside in sorted(missed):
        run.report.error(f"{asked[inside]}: no recording of {library.root}, here or on record")


def every_folder(library: Library, problem: Callable[[str], object]) -> Iterator[Folder]:
    """Yields the folders of the library, and then those that are gone, as all in them is
    archived."""
    pasts = library.history.pasts.items()
    gone = {dirname(stem) for stem, past in pasts if past.place}
    for folder in library.walk(problem):
        gone.discard(folder.path)
        yield folder
    for path in sorted(gone):
        yield Folder(path, library)


def names_of(recording: Recording) -> set[str]:
    """Returns the names of its files and sidecars, without a suffix."""
    sidecars = (sidecar.stem for sidecar in recording.sidecars if sidecar.listed)
    return {*sidecars, *(take.name for take in recording.takes)}


def done_last(library: Library) -> list[str]:
    """Returns the absolute paths of all that the last run did that compressed or archived
    anything."""
    words = (Action.COMPRESSED, Action.ARCHIVED)
    begun = [run["time"] for run in library.history.runs if any(map(run.get, words))]
    return [
        library.path(stem + SOURCE_SUFFIX)
        for stem, past in library.history.pasts.items()
        if past.action in words and begun and past.time >= begun[-1]
    ]


def works_back(recording: Recording, config: Config) -> list[Work]:
    """What brings it back: of each take its copy is to be proven and to go, or its file is to be
    fetched, or was and no more. Where neither can be, only what is refused."""
    works = []
    is_begun = any(take.is_half_restored for take in recording.takes)  # then the rest may move on
    for take in recording.takes:
        copy = take.copy if take.original else None
        # One whose restore failed half way has its file here, and is on record as in the archive.
        is_away = not take.file or take.past.place is not None
        is_back = take.original or take.past.is_restored or is_begun
        is_lost = take.copy and not (is_back or is_away)
        if copy or is_lost or is_away or take.is_half_restored:
            form = FORMAT_OF[copy.suffix] if copy else config.target_format
            made = Target(form, config.target_bitrate)
            source = take.original if copy else None
            goes = (copy,) if copy else ()
            plan = Plan(Move.RESTORE, source, made, take.past.settings, goes)
            works.append(Work(take, recording, plan))
            why = "only its copy is left, as its original was deleted" if is_lost else ""
            if not (take.file or config.archive_tier):
                why = f"{take.stem} is not here, and tiers name no archive"
            place = take.past.place
            known = [file for file in take.files if place and is_archived_file(file, place)]
            if place and take.files and not known:
                why = f"another {take.name} is here: move that away first"
            if why:
                works[-1].refuse(Refusal(Reason.NOT_RESTORED, why))
    return [work for work in works if work.reason] or works


def is_archived_file(file: File, place: Place) -> bool:
    return file.name == place.name and file.is_on_record(place.size, place.mtime_ns)


def bring_back(run: Run, recordings: Iterable[Recording]) -> None:
    """Commits as a run does: in time, and whatever ends it. Also finishes what an earlier restore
    has begun (`Take.is_half_restored`), for a run. Raises Stopped, ServiceError."""
    archive = configured_archive(run)
    try:
        for recording in recordings:
            if run.stop.requested:
                raise Stopped
            works = works_back(recording, run.config)
            for work in works:
                with boundary(work.refuse):
                    if work.plan.source:
                        prove_again(run, work)
                    elif not work.reason:
                        fetch_back(run, work, archive)
            keep_together(works)
            run.through += works
            # Also where an earlier restore was cut short.
            run.committer.folders.add(recording.folder)
            run.commit_in_time()
    finally:
        run.commit()


def fetch_back(run: Run, work: Work, archive: Optional[Archive]) -> None:
    """From the archive into a staged file beside its place. Raises Refusal, OSError, and
    ServiceError if the archive does not answer."""
    take = work.take
    work.copy = take.file
    work.place = take.past.place
    work.detail = "back from the archive"
    if work.copy:  # a restore was cut short after that
        return
    assert archive
    place = take.past.place or lead(archive, work.recording, take)
    target = run.library.path(take.stem)
    os.makedirs(dirname(target), exist_ok=True)
    work.staged = run.staging.beside(target)
    try:
        said = work.recording.location
        work.place = found = archive.fetch(take.folder, place, said, work.staged)
    except (Refusal, OSError) as error:
        if getattr(error, "reason", None) is not Reason.NOT_RESTORED:
            archive.answer()  # else it is this recording's
        raise
    work.copy = File(found.name, found.size, found.mtime_ns)
    if not take.past.place:
        past = take.past if take.past.size == found.size else NO_PAST
        sizes: dict[str, Any] = {"first_size": found.size}
        if work.copy.suffix in FORMAT_OF:
            sizes = {"suffix": work.copy.suffix, "size": found.size}
        past = past._replace(mtime_ns=found.mtime_ns, place=found, **sizes)
        work.take = take._replace(past=past)


def lead(archive: Archive, recording: Recording, take: Take) -> Place:
    """Returns where a take without a record may be, by the name that its sidecars have for it.
    Raises Refusal."""
    names = frozenset[str]().union(*(sidecar.own for sidecar in recording.sidecars))
    own = sorted(name for name in names if stem_of(name) == take.name)
    if not own:
        raise Refusal(
            Reason.NOT_RESTORED, f"{take.stem} is not here, and nothing says where it is archived"
        )
    return Place(recording.location, own[0])  # a copy's suffix comes first


def prove_again(run: Run, work: Work) -> None:
    """Whether the copy that is to go is its original's: one that is not stays. Raises Stopped,
    ServiceError."""
    plan = work.plan
    work.plan = plan._replace(move=Move.ADOPT)  # so that nothing is encoded
    run.transcode([work])
    run.find_cause([work])
    if not work.source_seen:  # the original cannot even be read
        work.plan = plan
        return
    with open_regular(run.library.path(work.path)) as original:
        flush(original.fileno())  # whoever wrote it: the copy is to be removed
    if work.reason:
        plan = plan._replace(goes=())
        work.source_seen = run.library.witness(run.library.path(work.path))
        refusal = Refusal(work.reason, work.detail)
        run.report.once(f"{work.target_path} stays: it does not prove to be a copy. {refusal}")
    work.plan = plan
    work.reason = None
    work.detail = "the original is back"
    work.copy = plan.source


# ----------------------------------------------------------------------------------------- check
# The compressed library against its records: every copy decoded, every document derived anew and
# compared with what it says, what should be in the archive asked for there. Changes nothing.

LENGTH_TOLERANCE = 0.15  # seconds, between what the history says of a copy and what is in it


def command_check(config: Config, report: Report) -> None:
    run = Run(config, report)
    run.library.require(config.log_file)
    takes: list[Take] = []
    recordings: list[Recording] = []
    for folder in every_folder(run.library, report.error):
        recordings += run.recordings_in(folder)
    away: list[tuple[Recording, Take]] = []
    for recording in recordings:
        check_documents(run, recording)
        takes += recording.takes
        for take in recording.takes:
            if not take.files and (take.past.place or recording.location):
                away.append((recording, take))
    index = Catalogue(recordings, {id_ for recording in recordings for id_ in recording.ids})
    data = b"{}"
    with answering_for(run, INDEX_NAME):
        data = read_regular(run.library.path(INDEX_NAME))
        for id_ in index_differs(data, index.facts, index.meant):
            report.error(f"{INDEX_NAME} does not say what the recording {id_} is")
    copies = {  # seconds on record, by absolute path
        run.library.path(take.folder, take.copy.name): take.past.seconds
        for take in takes
        if take.copy
    }
    with run.open(locks=False):
        check_places(run, away, data.decode("utf-8", "replace"))
        check_copies(run, copies)
    verdict = "something is wrong" if report.exit_code else "all sound"
    message = f"Checked {len(copies)} copies and what is said of them: {verdict}."
    report.say(message)
    report.summary(message)


@contextmanager
def answering_for(run: Run, what: str) -> Iterator[None]:
    """Reports what is wrong with a thing. A thing that is not there is no error."""
    try:
        yield
    except FileNotFoundError:
        return
    except (Flaw, Refusal, ServiceError, OSError) as error:
        run.report.error(f"{what}: {explain(error)}")


def check_documents(run: Run, recording: Recording) -> None:
    """Every document says what its takes are, and every file that it names is here or archived."""
    for take in recording.takes:
        if take.state is State.MISSING and not recording.location:
            run.report.error(f"{take.stem} is named by a sidecar, and neither here nor archived")
    if recording.policy.unreadable:
        run.report.error(recording.policy.unreadable)
    for path, edit in edits(run.library, recording, {}):
        with answering_for(run, path):
            if edit(read_regular(run.library.path(path))):
                run.report.error(f"{path} does not say what its recording is")


def check_places(run: Run, away: Sequence[tuple[Recording, Take]], index: str) -> None:
    """Reports archived files that are not there, or have another size. One that neither a sidecar
    nor the index names was deleted by its owner."""
    archive = configured_archive(run)
    if away and not archive:
        run.report.error(f"{len(away)} files are archived, and no archive is configured")
    if not away or not archive:
        return
    missing = []
    with answering_for(run, "archive"):
        archive.list_all()
        for recording, take in away:
            with answering_for(run, take.stem):
                place = take.past.place or lead(archive, recording, take)
                there, size = archive.find(take.folder, place, recording.location)
                words = (place.name, *take.past.ids)
                said = [word for word in words if word in index or json.dumps(word) in index]
                if size is None and (said or recording.sidecars):
                    missing.append(take.stem)
                elif size is not None and place.size not in (0, size):
                    known = f"{place.size} are on record"
                    run.report.error(f"{there} has {size} bytes in the archive, {known}")
        if len(missing) == len(away):  # perhaps it is not the files that are not there
            archive.answer()
        for stem in missing:
            run.report.error(f"{stem} is not in the archive any more")


def check_copies(run: Run, copies: Mapping[str, float]) -> None:
    """Each is walked, decoded in full, and as long as on record."""
    paths = sorted(copies)
    batches = [paths[at : at + BATCH_FILES] for at in range(0, len(paths), BATCH_FILES)]

    def problems(batch: Sequence[str]) -> dict[str, str]:
        found, wrong = {}, {}
        for path in batch:
            try:
                found[path] = probe_file(path, run.tools)
                lasts = found[path].timeline
                recorded = copies[path]
                if recorded and abs(lasts - recorded) > LENGTH_TOLERANCE:
                    wrong[path] = f"lasts {lasts:.2f} s, {recorded:.2f} are on record"
            except (Refusal, OSError) as error:
                wrong[path] = explain(error)
        return {**run.transcoder.decode(found), **wrong}

    with Threads(run.workers) as pool:
        for number, wrong in enumerate(pool.map(problems, batches), 1):
            run.report.progress(number * BATCH_FILES, len(paths))
            for path, text in wrong.items():
                run.report.error(f"{relpath(path, run.library.root)}: {text}")


# --------------------------------------------------------------------------------------- history
# history.jsonl in our own folder: one object a line, appended and flushed, the last line of a take
# is its past. A line begins with its type and path, so that those of a folder are found without
# being parsed. Losing it loses no recording. Must never be read from, or written to, another
# library.

LINE = re.compile(rb'\{"type": "\w+", "path": "((?:[^"\\]|\\.)*/)?')  # greedy: up to the last /
RUNS_REMEMBERED = 30
LATEST = 1e11  # seconds since the epoch: what is later is no time
NO_NAMES = frozenset(("", ".", ".."))  # in a path below the library


class History:
    """The memory of one library, read folder by folder. Torn and odd lines are passed over."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.known: dict[str, dict[str, Past]] = {}  # by folder and stem

    @cached_property
    def lines(self) -> dict[Optional[bytes], list[int]]:
        """Returns where the lines of each folder begin, by its name in JSON; of runs by None."""
        lines: dict[Optional[bytes], list[int]] = {}
        try:
            file = open_regular(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return lines
        except OSError as error:
            raise ServiceError(f"The history cannot be read: {explain(error)}.") from None
        offset = 0
        with file:
            for line in file:
                match = LINE.match(line)
                folder = match[1] or b"" if match else None
                lines.setdefault(folder, []).append(offset)
                offset += len(line)
        return lines

    def read(self, offsets: Sequence[int]) -> list[Mapping[str, Any]]:
        """The objects in these lines."""
        found = []
        if offsets:
            with open_regular(self.path) as file:
                for offset in offsets:
                    file.seek(offset)
                    with suppress(ValueError, RecursionError):
                        found.append(json.loads(file.readline()))
        return [record for record in found if isinstance(record, dict)]

    def in_folder(self, folder: str) -> dict[str, Past]:
        """The pasts of its takes, by stem."""
        if folder not in self.known:
            pasts = self.known[folder] = {}
            for record in self.read(self.lines.get(as_json(folder), ())):
                with suppress(*ODD):
                    stem = record["take"]
                    if "\0" not in stem and NO_NAMES.isdisjoint(stem.split("/")):
                        pasts[stem] = Past.of(record["past"])
        return self.known[folder]

    @property
    def folders(self) -> Iterator[str]:
        """Yields the folders that it remembers."""
        for folder in self.lines:
            with suppress(ValueError):
                if folder is not None:
                    yield json.loads(b'"%s"' % folder[:-1])

    @property
    def pasts(self) -> Mapping[str, Past]:
        """Returns all, by stem."""
        known = [self.in_folder(folder) for folder in self.folders]
        return {stem: past for pasts in known for stem, past in pasts.items()}

    @cached_property
    def runs(self) -> Sequence[Mapping[str, Any]]:
        """The newest records of runs, oldest first: for statistics, doctor and the clock.
        Each has its `time` and `date`."""
        records = self.read(self.lines.get(None, ())[-RUNS_REMEMBERED:])
        return [record for record in records if 0 < finite(record.get("time")) < LATEST]

    def word(self, folder: str) -> Mapping[str, Any]:
        """Our last word on a folder (`word_on`), if nothing has become of its takes since."""
        last = self.read(self.lines.get(as_json(folder), ())[-1:])
        return last[0] if last and last[0].get("type") == "folder" else {}

    @property
    def path(self) -> str:
        return self.library.own("history.jsonl")

    def append(self, works: Sequence[Work], now: float) -> None:
        """One line an outcome, with the whole past of its take, flushed together. `now` is that of
        the commit, from which its documents' dates were derived too. Raises OSError: originals then
        stay."""
        pasts = [work.past_after(now) for work in works]
        records = []
        for work, past in zip(works, pasts):
            about = {"take": work.take.stem, "date": iso(now), "past": past.record()}
            records.append({**work.outcome(), **about})
        self.write(records)
        for work, past in zip(works, pasts):
            self.in_folder(work.take.folder)[work.take.stem] = past

    def note(self, records: Iterable[Mapping[str, Any]], now: float) -> None:
        """Lines of other types: `run` (the summary, and as `index` the index's size and mtime_ns)
        or `folder` (`word_on`). Failing loses a convenience, so it raises nothing."""
        when = {"date": iso(now), "time": now}
        with suppress(OSError):
            self.write([{**record, **when} for record in records])  # their type and path first

    def write(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Append lines, flushed together. Raises OSError."""
        if not records:
            return
        text = "".join(json.dumps(record) + "\n" for record in records).encode("ascii")
        descriptor = self.library.open_own("history.jsonl", os.O_RDWR | os.O_APPEND)
        with open(descriptor, "r+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                text = b"\n" + text  # a line torn by a crash must not swallow ours
            while text:  # a nearly full disk takes a part; the rest then raises
                text = text[file.write(text) :]
            flush(descriptor)


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
    "all/unrecorded due/count due/size due/asked archived/count archived/size was/before was/after "
    "made/size made/asked"
)
GROUPS = ("due", "due_by_move", "archived", "recorded_by_month", "savings_by_month")
SENTENCES = {reason.code: reason.sentence.replace("{}", "").rstrip(": ") for reason in Reason}


def storage_stats(recordings_dir: str) -> dict[str, Any]:
    """Returns the size of a library and what compression saved: the object of `stats --json`, as
    README.md describes it. May be called from any thread. Raises ValueError where library, config
    file or history cannot be used, OSError where they cannot be read."""
    try:
        words = ["stats", f"--recordings={os.fspath(recordings_dir)}"]
        return gather_stats(resolve_config(parse_words(words)))
    except ServiceError as error:
        raise ValueError(str(error)) from None


def gather_stats(config: Config) -> dict[str, Any]:
    """Returns the object of `stats --json`; sizes in bytes. Raises OSError, ServiceError."""
    run, problems = Run(config, Report(config)), list[str]()
    library = run.library
    library.require(config.log_file)
    groups: dict[str, dict[str, Any]] = defaultdict(dict)
    for key, value in sorted(add_up(run, problems).items()):
        group, _, name = key.partition("/")
        groups[group][name] = value
    totals, due, was, made = (groups[name] for name in ("all", "due", "was", "made"))
    share = made["size"] / made["asked"] if made["asked"] else 1 / USUAL_RATE
    due["estimated_saving"] = max(0, round(due["size"] - due.pop("asked") * share))
    room, until = free_space(library), library.paused_until(run.now)
    stats = {
        "total_size": totals["original_size"] + totals["compressed_size"],
        **totals,
        "savings": was["before"] - was["after"],
        "compression_ratio": round(was["after"] / was["before"], 4) if was["before"] else None,
        "free_space": room if room < math.inf else None,
        "paused": until_text(until) if until else "",
        **{name: groups[name] for name in GROUPS},
        "kept": [reason_with(key, paths) for key, paths in groups["named"].items()],
        "runs": run.history.runs,
        "at_work": library.at_work(),
        "problems": problems,
    }
    stats["findings"] = [finding._asdict() for finding in findings(run, stats)]
    return stats


def add_up(run: Run, problems: list[str]) -> dict[str, Any]:
    """Returns the sums of all folders. A folder that was removed still counts what is archived. The
    note on a folder has its sums while it holds."""
    sums: dict[str, Any] = dict.fromkeys(SUMMED_UP.split(), 0)
    gone = (Folder(path, run.library) for path in run.history.folders)
    seen = set[str]()
    for folder in itertools.chain(run.library.walk(problems.append), gone):
        if folder.path in seen:
            continue
        seen.add(folder.path)
        note = note_on(folder, run)
        counted = note.get("sums", {})
        if note.get("seal") != seal(counted):
            counted = count_folder(folder, run.config, run.clock)
        for key, value in counted.items():
            sums.setdefault(key, type(value)())
            sums[key] += value
    return sums


def seal(sums: Any) -> int:
    """Returns a checksum, so that sums of another version, or odd ones, are not believed."""
    return zlib.crc32(json.dumps([SUMMED_UP, sums]).encode("ascii"))


def count_folder(folder: Folder, config: Config, moment: Moment) -> dict[str, Any]:
    """Returns the sums of a folder from its files and pasts. A list has the paths of what was kept
    or failed, by action and code."""
    sums, names = Counter[str](), defaultdict[str, list[str]](list)
    for take in folder.takes.values():
        past, file = take.past, take.file
        # As a run asks, but without sidecars, which may still say otherwise.
        add_take(sums, take, next_move(take, None, config, moment))
        if file and past.action in (Action.KEPT, Action.FAILED) and past.speaks_of(file):
            action = Action(past.action).value  # of a run that has just ended, it is a member
            names[f"named/{action} {past.code}"].append(join(folder.path, file.name))
            as_before = {"made/size": file.size, "made/asked": file.size * config.target_bitrate}
            sums.update(as_before)
    for past in folder.library.history.in_folder(folder.path).values():
        if past.place:
            sums.update({"archived/count": 1, "archived/size": past.place.size})
            add_saving(sums, past, past.place.size)
    return {**sums, **names}


def add_take(sums: Counter[str], take: Take, plan: Optional[Plan]) -> None:
    """Adds the files of a take, and what is due for it."""
    past, copy, source = take.past, take.proven_copy, plan and plan.source
    originals = [file.size for file in take.files if file.is_original]
    copies = [file.size for file in take.files if not file.is_original]
    sums.update(
        {
            "all/recordings": max(1, len(originals)),
            "all/originals": len(originals),
            "all/original_size": sum(originals),
            "all/compressed": len(copies),
            "all/compressed_size": sum(copies),
            "all/unrecorded": len(copies) - bool(copy),
        }
    )
    if copy and not originals:
        add_saving(sums, past, copy.size)
    else:  # a copy saves nothing while its original is here
        add_saving(sums, Past(mtime_ns=take.files[0].mtime_ns), sum(originals or copies))
    if copy and past.first_size:
        sums.update({"made/size": copy.size, "made/asked": past.first_size * past.bitrate})
    if plan:
        sums[f"due_by_move/{plan.move.value}"] += 1
    elif take.original and take.state is State.WAITING:
        sums["all/young"] += 1
    if plan and source and plan.encodes:
        asked = (source.size if take.original else past.first_size) * plan.target.bitrate
        sums.update({"due/count": 1, "due/size": source.size, "due/asked": asked})


def add_saving(sums: Counter[str], past: Past, size: int) -> None:
    """Adds a recording of `size` bytes now. Without a copy in its past, nothing was saved."""
    before = past.first_size or size
    sums[f"recorded_by_month/{local_time(past.mtime_ns // 10**9)[:7]}"] += before
    if past.suffix:
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


class Finding(NamedTuple):
    """A sentence on the state of a library. `code` is doctor's exit code, 0 if nothing is wrong."""

    text: str
    code: int = 0


def findings(run: Run, stats: Mapping[str, Any]) -> Iterator[Finding]:
    """Yields the sentences that doctor, terminal and page say first."""
    failed = sum(each["count"] for each in stats["kept"] if each["action"] == Action.FAILED)
    if failed:
        yield Finding(f"{failed:,} failed and stayed as they were; 'stats' names them.", 1)
    for problem in stats["problems"]:
        yield Finding(problem, 1)
    if not stats["recordings"]:
        yield Finding(f"No recordings (*{SOURCE_SUFFIX}) below {run.library.root}.")
    if run.last:
        when, said = run.last["time"], run.last.get("message")
        yield Finding(f"Last run {local_time(when)}: {said}", int(bool(run.last.get("exit_code"))))
        if run.now - when > LATE:
            ago = duration_text(run.now - when)
            yield Finding(f"That is {ago} ago. Is the schedule at work?", 1)
        python = str(run.last.get("python") or "/")
        if not lexists(python):
            yield Finding(f"Its {python} is gone: print the schedule anew.", 1)
    else:
        yield Finding(f"No run yet; '{PROGRAM} schedule cron' prints what makes one every night.")
    if stats["paused"]:
        # One without an end may have been forgotten.
        is_endless = stats["paused"] == until_text(math.inf)
        yield Finding(f"Paused: no run does anything until {stats['paused']}.", int(is_endless))
    room = stats["free_space"]
    free = "" if room is None else f", {size_text(room)} free"
    yield Finding(f"{saved_percent(stats)} % saved{free}.")


def library_of(config: Config) -> Library:
    """The library, which must be there. Raises UsageError."""
    library = Library(config.recordings_dir)
    library.require(config.log_file)
    return library


def until_text(seconds: float) -> str:
    """Returns when a pause ends."""
    return local_time(seconds) if seconds < math.inf else f"'{PROGRAM} resume'"


def local_time(seconds: float) -> str:
    """YYYY-MM-DD HH:MM of a time since the epoch, which may be one that no calendar has."""
    return f"{datetime.fromtimestamp(min(max(0, seconds), LATEST)):%Y-%m-%d %H:%M}"


def verdict(stats: Mapping[str, Any]) -> tuple[str, bool]:
    """Returns the state of a library in some sentences, and whether something is wrong."""
    wrong = [each["text"] for each in stats["findings"] if each["code"]]
    calm = [each["text"] for each in stats["findings"] if not each["code"]]
    return " ".join([*(wrong or ["All well."]), *calm]), wrong != []


def saved_percent(stats: Mapping[str, Any]) -> int:
    """Returns the share that was saved of what the recordings would take."""
    saved: int = stats["savings"]
    now: int = stats["total_size"] + stats["archived"]["size"]
    return round(100 * saved / max(1, saved + now))


NEXT = {  # what is due, by move
    "compress": "to compress",
    "adopt": "copies to prove again",
    "smaller": "copies to make smaller",
    "free": "originals to delete, as their days are over",
    "archive": "to archive",
}
Rows = list[tuple[str, str]]


def storage_rows(stats: Mapping[str, Any]) -> Rows:
    """Returns sizes with counts, without what is nothing."""
    archived = stats["archived"]
    rows = [
        ("originals still here", f"{size_text(stats['original_size'])} ({stats['originals']:,})"),
        ("copies", f"{size_text(stats['compressed_size'])} ({stats['compressed']:,})"),
        ("saved", f"{size_text(stats['savings'])} ({saved_percent(stats)} %)"),
        ("archived", f"{size_text(archived['size'])} ({archived['count']:,})"),
        ("not old enough yet", f"{stats['young']:,}"),
        ("copies without a record", f"{stats['unrecorded']:,}"),
    ]
    return [row for row in rows if not row[1].startswith("0")]


def stats_tables(stats: Mapping[str, Any]) -> dict[str, Rows]:
    """Returns the rows that terminal and page show, by title."""
    due, recorded, saved = stats["due"], stats["recorded_by_month"], stats["savings_by_month"]
    to_do = [(NEXT.get(move, move), f"{count:,}") for move, count in stats["due_by_move"].items()]
    if due["count"]:
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
        yield " · ".join(map(" ".join, storage))
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
MONTH_LABELS = 5  # as many as a telephone has room for


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
<section><h2>Size over time</h2>{size_chart(stats)}</section>
{sections}<p>As of {local_time(time.time())}.</p></body></html>
"""


def shown(text: str) -> str:
    return html.escape(printable(text))


def size_chart(stats: Mapping[str, Any]) -> str:
    """Returns a chart of the library's size by month, with a title for each month. A recording
    counts from the month it was recorded in, its saving from the month it was compressed in."""
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
<p>Until {words}.</p>
"""


def command_stats(config: Config, report: Report) -> None:
    if config.html and config.json:
        raise UsageError("Either --json or --html.")
    stats = gather_stats(config)
    report.write_json(stats)
    if config.html:
        with open(config.html, "w", encoding="utf-8") as file:
            file.write(stats_page(stats))
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
            about = {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(body))}
            for name, value in {**about, **HEADERS}.items():
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
# The one place that starts a process: ffmpeg, rclone, the user's notify_command. Each has a process
# group, low priority, a deadline in proportion to its work, and an end when we are asked to stop.

GRACE = 30.0  # seconds a tool may take beside its work: start-up, a disk that must spin up
PACE = 1.0  # seconds allowed for a second of audio; ffmpeg needs 0.02
NICENESS = 10  # of every tool: a server transcribing beside us comes first
MOST_MESSAGES = 1 << 20  # bytes, after which a tool is stopped: it reads nothing sound
MOST_OUTPUT = 256 << 20  # bytes, likewise: ten times the list of packets of a long recording
# cron and launchd give a PATH of two folders; these are where package managers put ffmpeg.
TOOL_PATH = (
    "/opt/homebrew/bin:/usr/local/bin:/opt/local/bin:/usr/bin:/bin:/snap/bin"
    ":/home/linuxbrew/.linuxbrew/bin"
)
# Lines that ffmpeg itself has tagged; those of a wrapper or of the dynamic linker are no word on a
# recording. The second pattern is said of sound files too: every WAV without a channel mask; what
# no header says and packets tell; what fix-webm-duration has mended, and was walked byte by byte.
TAGGED = re.compile(rb"^(?:\[[^\]\n]*\] )*\[(?:warning|error|fatal|panic)\] .*", re.MULTILINE)
SAID_OF_SOUND_FILES = re.compile(
    rb"Guessed Channel Layout"
    rb"|extension is not .m4a nor .m4v"  # staged files have another
    rb"|EOF timestamp not reliable"  # of the sound of our own, by ffmpeg 4
    rb"|Estimating duration from bitrate"
    rb"|malformed location metadata"  # a tag that M4A has no place for
    rb"|Task finished with error code"  # ffmpeg 9, behind what it said of the cause
    rb"|Too many bits \S+ > \d+ per frame requested"  # AAC below 16 kHz: it takes what it may
    rb"|timestamp discontinuity"  # ffmpeg 9, of an Ogg gap beyond 10 s; stamps play no part
    rb"|\d+ buffers queued in"  # a long gap is a long frame
    rb"|Thread message queue blocking"  # a decoder that waits for the encoder behind the pipe
    # Of files that end oddly: every packet is counted, and its sound compared.
    rb"|Ignoring maximum wav data size|Packet corrupt|corrupt input packet"
    rb"|Packet processing failed|Error during demuxing"
    rb"|\[error\] file:.*: Invalid data found when processing input"
    rb"|Unknown-sized element at \S+ inside parent with finite size"
    rb"|File extends beyond end of segment|Read error at pos\.|Invalid EBML number size tag"
    rb"|an EBML number's first byte|invalid as first byte of an EBML number"
)

# The words that ffmpeg puts before a message.
EMBELLISHMENT = re.compile(
    r" @ 0x[0-9a-f]+(?=\])|\[(?:info|warning|error|fatal|panic)\] "
    r"|Error (?:while decoding stream \S+|submitting packet to decoder:) "
)
# How ffmpeg ends by itself over a content: with 1 before 6.1; later with the low byte of its error,
# as EINVAL 234, ERANGE 222, EDOM 223, ENOSYS 218, invalid data 183, not implemented 176, unknown
# 171, end of file 187; with 69 after too many errors. Measured with 4.1, 5.1 and 9.
CONTENT_CODES = frozenset((1, 69, 171, 176, 183, 187, 218, 222, 223, 234))
CRASHES = frozenset(
    (signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGFPE, signal.SIGBUS, signal.SIGTRAP)
)
# What strerror says of a content too: ffmpeg has these errors, and -1, which is EPERM, for it.
OF_CONTENT = (errno.EPERM, errno.EINVAL, errno.EDOM, errno.ERANGE, errno.ENOSYS)
OF_THE_SYSTEM = "|".join(
    re.escape(os.strerror(code)) for code in errno.errorcode if code not in OF_CONTENT
)
# What is said of a machine, whatever the exit code: no word on a recording.
FAULTS_OF_THE_MACHINE = {
    Reason.NO_SPACE: rb"No space left on device|Disk quota exceeded",
    Reason.INPUT_OUTPUT: rb"Input/output error|Stale file handle"
    rb"|Transport endpoint is not connected|Read-only file system",
    Reason.TOOL_KILLED: rb"std::bad_alloc|[Oo]ut of memory|failed to map segment"
    rb"|(?m:(?:^|[:\]] )(?:%b)\.?$)" % OF_THE_SYSTEM.encode(),
}


@dataclass
class Stop:
    """Set by a signal; everything that may take long looks at it."""

    signal: int = 0
    is_over: bool = False  # an error ends the run: what is at work is dropped

    @property
    def requested(self) -> bool:
        return self.signal != 0 or self.is_over


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """While inside, SIGHUP, SIGINT and SIGTERM only set a flag: no state of the library depends on
    when they come. One that was ignored when we were started (nohup) stays ignored."""
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
            # Once stopped we are on our way out, however often it is pressed.
            signal.signal(number, signal.SIG_IGN if stop.signal else handler)


class Tools:
    """ffmpeg and whatever else is run, found on PATH and where package managers put them."""

    def __init__(self, stop: Stop) -> None:
        self.stop = stop

    @cached_property
    def ffmpeg(self) -> str:
        """Absolute path; one that lacks an encoder is passed over for a later one. Raises
        ToolError."""
        *others, last = self.find("ffmpeg")
        return next(filter(self.has_encoders, others), last)

    def has_encoders(self, ffmpeg: str) -> bool:
        """Returns whether it lists our encoders. One that lists nothing is tried all the same."""
        listed = ""
        with suppress(Refusal, ToolError):
            listed, _ = self.run([ffmpeg, *QUIET, "-encoders"], 0)
        return not listed or all(form.encoder in listed for form in FORMATS.values())

    def find(self, name: str) -> list[str]:
        """Absolute paths, the first on PATH first. Raises ToolError with how to install it."""
        named = filter(None, (*os.get_exec_path(), *TOOL_PATH.split(":")))
        folders = dict.fromkeys(map(realpath, named))
        found = list(filter(None, (shutil.which(name, path=folder) for folder in folders)))
        if not found:
            places = ", ".join(folders)
            raise ToolError(f"{name} is in none of {places}. {INSTALL.format(name=name)}")
        return found

    def run(
        self,
        command: Sequence[str],
        seconds: float,
        folder: str = "/",
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.PIPE,
    ) -> tuple[str, str]:
        """Run a command that works on `seconds` of audio, in a folder. Returns its output, and what
        it said at warning or above, by ffmpeg's own tags. Raises Refusal (failed, hung, complains
        without end, no space), Stopped, ToolError."""
        with self.started(command, stdin, stdout, folder) as process:
            output, messages = self.hear(process, seconds)
        return output.decode("utf-8", "replace"), judge([process], messages)

    def digest(self, command: Sequence[str], seconds: float) -> str:
        """Returns the SHA-256 of what a command puts out, hashed as it comes. Raises as `run`
        does."""
        null = open_to_write(os.devnull)
        with ThreadPoolExecutor(1) as pool, self.started(command, subprocess.DEVNULL) as process:
            output, process.stdout = process.stdout, None
            digest = pool.submit(copy_through, output, null, null)
            judge([process], self.hear(process, seconds)[1])
            return digest.result()

    def pipe(
        self, commands: Sequence[Sequence[str]], seconds: float, copy: str
    ) -> tuple[str, bytes]:
        """Run three commands at once: the output of the first goes into the second, that of the
        second into the staged file `copy` and the third. Returns the SHA-256 of what the third was
        given, and its output. Raises as `run` does, and Refusal for any message."""
        with ExitStack() as ended:
            # Last of all it waits for its threads, which end with the processes.
            pool = ended.enter_context(Threads(4))
            verify = ended.enter_context(self.started(commands[2], subprocess.PIPE))
            encode = ended.enter_context(self.started(commands[1], subprocess.PIPE))
            first = self.started(commands[0], subprocess.DEVNULL, encode.stdin)
            processes = (ended.enter_context(first), encode, verify)
            assert encode.stdin
            encode.stdin.close()
            digest = pool.submit(copy_through, encode.stdout, verify.stdin, open_to_write(copy))
            encode.stdin = encode.stdout = verify.stdin = None  # so that hearing leaves them alone
            heard = list(pool.map(self.hear, processes, itertools.repeat(seconds)))
            messages = judge(processes, b"\n".join(said for _, said in heard))
            if messages:
                raise Refusal(Reason.DAMAGED, messages)
            return digest.result(), heard[-1][0]

    @contextmanager
    def started(
        self, command: Sequence[str], stdin: int, stdout: Any = subprocess.PIPE, folder: str = "/"
    ) -> Iterator[subprocess.Popen[bytes]]:
        """A process; at the end whatever is left of it and its children is killed."""
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

    def hear(self, process: subprocess.Popen[bytes], seconds: float) -> tuple[bytes, bytes]:
        """The output and the messages of a process, heard until it ends, says too much, takes too
        long, or the run is to stop. Raises as `run` does."""
        limit = GRACE + seconds * PACE
        deadline = monotonic() + limit
        output, messages = bytearray(), bytearray()

        def check() -> None:
            if self.stop.requested:
                raise Stopped
            if monotonic() > deadline:
                raise Refusal(Reason.TOOL_HUNG, f"no end after {limit:.0f} s")
            if len(messages) > MOST_MESSAGES:
                raise Refusal(Reason.DAMAGED, f"complaints without end: {tail(bytes(messages))}")
            if len(output) > MOST_OUTPUT:
                raise Refusal(Reason.TOOL_FAILED, "output without end")

        with selectors.DefaultSelector() as streams:
            for stream, heard in ((process.stdout, output), (process.stderr, messages)):
                if stream:
                    streams.register(stream, selectors.EVENT_READ, heard)
            has_ended, is_quiet = False, False
            # A grandchild may hold its streams as long as it likes.
            while streams.get_map() and not (has_ended and is_quiet):
                has_ended = process.poll() is not None  # what it said before is still to be heard
                events = streams.select(0 if has_ended else 0.2)
                is_quiet = not events
                for key, _ in events:
                    data = os.read(key.fd, 1 << 16)
                    key.data.extend(data)
                    if not data:
                        streams.unregister(key.fileobj)
                check()
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
            check()
        return bytes(output), bytes(messages)


class Threads(ThreadPoolExecutor):
    """A pool that raises ServiceError if the system starts no more threads."""

    def submit(self, *task: Any, **options: Any) -> Future[Any]:
        try:
            return super().submit(*task, **options)
        except RuntimeError as error:
            raise ServiceError(
                f"{str(error).capitalize()}: this machine allows too few of them (ulimit -u, "
                "TasksMax of systemd, --pids-limit of Docker). Raise that limit and run again."
            ) from None


def end_with_us() -> None:
    """Called in a new process before it becomes a tool, as one that outlives a killed run could
    still write. Linux ends it with the thread that started it; macOS has nothing of the kind."""
    if PRCTL:
        PRCTL(PARENT_DEATH_SIGNAL, signal.SIGKILL)


def judge(processes: Sequence[subprocess.Popen[bytes]], messages: bytes) -> str:
    """Returns what ffmpeg says of the recordings where all ended well: its own warnings and errors,
    without those that it has for sound files too. Raises Refusal: how a process ended says nothing
    of a recording, only what ffmpeg says of the content after it ended by itself."""
    codes = [process.returncode for process in processes if process.returncode]
    lines = TAGGED.findall(messages)
    said = tail(b"\n".join(line for line in lines if not SAID_OF_SOUND_FILES.search(line)))
    for reason, words in FAULTS_OF_THE_MACHINE.items():
        if re.search(words, messages if codes else b"\n".join(lines)):
            raise Refusal(reason, tail(messages))
    if not codes:
        return said
    found = f"{ending_of(codes[0])}, {said or tail(messages) or 'without a message'}"
    # A shell around it says 128 and the signal. 255 is ffmpeg's own after SIGTERM and SIGINT.
    signals = {-code if code < 0 else code - 128 for code in codes}
    reason = Reason.TOOL_KILLED
    if CONTENT_CODES.issuperset(codes):
        reason = Reason.TOOL_REFUSED
    elif max(signals) <= 0 or not CRASHES.isdisjoint(signals):
        reason = Reason.TOOL_FAILED
    raise Refusal(reason, found)


def ending_of(code: int) -> str:
    """How a process ended, for people."""
    if code >= 0:
        return f"exit code {code}"
    return f"ended by {signal.Signals(-code).name}"


def tail(messages: bytes) -> str:
    """The last few messages on one printable line."""
    text = messages[-2000:].decode("utf-8", "replace")
    lines = EMBELLISHMENT.sub("", text).split("\n")
    return printable("; ".join(filter(None, map(str.strip, lines[-4:]))))


def copy_through(source: Any, listener: Any, file: IO[bytes]) -> str:
    """Copy a stream to its end into both; its SHA-256. Raises OSError."""
    digest = hashlib.sha256()
    with file, listener, source:  # closed after any error, so that nobody waits for us
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
# The one place that writes durably: staged beside its target, flushed, given its attributes, put in
# place without ever overwriting, or exchanged. An fsync that failed is never retried. Follows no
# symlink, waits for no FIFO.

LIBC = ctypes.CDLL(None, use_errno=True)
PRCTL = getattr(LIBC, "prctl", None)  # looked up here, as a process just forked must not
PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
# rename's flags: not over another, and both names at once.
RENAME, NO_REPLACE = ("renameatx_np", 4) if sys.platform == "darwin" else ("renameat2", 1)
EXCHANGE = 2
WORKING_FOLDER = -100  # AT_FDCWD; of absolute paths it is not asked
# What a system or file system says that cannot do a thing at all.
NOT_HERE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY)
# Android's storage says EACCES, a union of several disks EXDEV, `rclone mount` EIO; old containers
# say EPERM for renameat2.
NO_LINKS = (*NOT_HERE, errno.EPERM, errno.EMLINK, errno.EACCES, errno.EXDEV, errno.EIO)
# CIFS and DrvFs flush no folders (rocksdb#2929, borg#1287, WSL#2557), others take none to flush.
NO_FLUSH = (*NOT_HERE, errno.EBADF, errno.EISDIR, errno.EPERM, errno.EACCES)
ACCESS_LIST = "system.posix_acl_access"
COPYFILE_ACL = 1
OWNING_GROUP = 4  # tag of its entry in such a list
READ, READ_WRITE = 4, 6  # permission bits
OWNER_ADVICE = (
    "Files of {} cannot be worked on, who could not use what is made of them: run this as that "
    "user or as root, or let both belong to their group and let it read and write them."
)
FORESEEN_ADVICE = "Nothing is done in {}. Mend that, or run this as a user who may."
BLOCK = 1 << 20  # bytes read at a time


class Staging:
    """Everything unfinished of one run: `.compression-TOKEN-N.part` beside its target, and level
    files in our own folder; each made by us (O_EXCL, 0600) before a tool writes into it."""

    numbers = itertools.count()

    def __init__(self, library: Library) -> None:
        self.library = library
        self.token = os.urandom(4).hex()
        self.made: set[str] = set()  # paths

    def __enter__(self) -> Staging:
        with suppress(OSError):  # not ours to look into: it is no harm
            self.sweep(self.library.folder(OWN_FOLDER))
        return self

    def __exit__(self, *_: object) -> None:
        """Remove what is left of this run."""
        remove_all(self.made)

    def beside(self, target: str) -> str:
        """A new empty staged file in the target's folder; absolute paths. Raises OSError."""
        name = STAGED_NAME.format(self.token, next(self.numbers))
        staged = join(dirname(target), name)
        descriptor = os.open(staged, os.O_CREAT | os.O_EXCL, 0o600)
        self.made.add(staged)
        os.close(descriptor)
        return staged

    def levels(self) -> str:
        """Returns a new empty level file in our own folder."""
        return self.beside(self.library.own("levels"))

    def write(self, data: bytes, like: str) -> str:
        """A flushed file beside another, with its mode and owner. Raises Refusal, OSError."""
        staged = self.beside(like)
        with open_to_write(staged) as file, open_regular(like) as source:
            file.write(data)
            file.flush()
            give_attributes(source.fileno(), file.fileno(), times=False)
            flush(file.fileno())
        return staged

    def discard(self, staged: str) -> None:
        """Does nothing for a file that we did not make."""
        if staged in self.made:
            self.made.remove(staged)
            remove_all([staged])

    def sweep(self, folder: Folder) -> None:
        """Removes the leftovers of runs that ended. Only while the lock is held."""
        remove_all(self.library.path(folder.path, name) for name in folder.leftovers)


def remove_all(paths: Iterable[str]) -> None:
    """Files of ours; one that cannot be removed is a leftover for the next run."""
    for path in paths:
        with suppress(OSError):
            os.unlink(path)


def place(staged: str, final: str) -> None:
    """Give a staged file its name, never over another: link, or rename without replacing, or a
    rename under a check where neither exists. Raises FileExistsError, OSError."""
    if link(staged, final):
        os.unlink(staged)
    elif not rename_with(NO_REPLACE, staged, final):
        if lexists(final):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), final)
        os.rename(staged, final)


def exchange(staged: str, final: str) -> str:
    """Put a staged file in a name's place at once; returns where the displaced file now is: under
    the staged name, "" where neither names can be exchanged nor files linked, and one rename has
    replaced it. Raises OSError."""
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
    """False where the file system has no links. Raises OSError."""
    with tolerated(NO_LINKS):
        os.link(source, target)
        return True
    return False


def rename_with(flag: int, source: str, target: str) -> bool:
    """False where the system or the file system cannot. Raises OSError."""
    rename = getattr(LIBC, RENAME, None)
    if rename is None:  # a C library from before 2018
        return False
    old, new = map(os.fsencode, (source, target))
    failed = rename(WORKING_FOLDER, old, WORKING_FOLDER, new, flag)
    code = ctypes.get_errno()
    if failed and code not in NO_LINKS:  # a plain rename then says why it cannot be
        raise OSError(code, os.strerror(code), source, None, target)
    return not failed


def give_attributes(source: int, staged: int, times: bool) -> None:
    """Owner, then mode, then access list, and with `times` the mtime, of one open file to another.
    Where the owner cannot be given, no bit is added and the former owner must still be able to read
    (and write documents). Raises Refusal(OWNER), OSError."""
    before = os.fstat(source)
    acl = access_list(source)
    for owner in (before.st_uid, -1):  # at least the group
        with suppress(OSError):
            os.fchown(staged, owner, before.st_gid)
            break
    now = os.fstat(staged)
    needed = READ if times else READ_WRITE
    mode = mode_without_owner(before, now.st_uid, now.st_gid, acl, needed)
    if mode != stat.S_IMODE(now.st_mode):  # which not every file system can change
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
    """Returns the access list in Linux's form (acl(5)), empty if there is none."""
    if sys.platform == "linux":
        with suppress(OSError):
            return os.getxattr(descriptor, ACCESS_LIST)
    return b""


def mode_without_owner(before: os.stat_result, uid: int, gid: int, acl: bytes, needed: int) -> int:
    """The mode of a file that has this owner and group instead of those `before`: no bit more than
    it had for anybody. Raises Refusal(OWNER) if its former owner could do less than what
    is `needed`, or its list would let in another group."""
    mode = stat.S_IMODE(before.st_mode)
    group = mode >> 3 & 7
    others = mode & 7
    for tag, bits, _ in struct.iter_unpack("<HHI", acl[4:]):
        if tag == OWNING_GROUP:  # the mode then shows the mask
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
    """A regular file, to be read. Raises OSError for anything else."""
    descriptor = os.open(path, os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "Not a regular file", path)
    return open(descriptor, "rb")


def open_to_write(path: str) -> IO[bytes]:
    """A file of ours, made private where it is not there yet. Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    return open(os.open(path, flags, 0o600), "wb")


def read_regular(path: str) -> bytes:
    """At most LARGEST_JSON. Raises OSError."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > LARGEST_JSON:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
        return file.read()


def file_at(path: str) -> File:
    """As a walk would see it. Raises OSError."""
    status = os.lstat(path)
    return File(basename(path), status.st_size, status.st_mtime_ns)


def flush(descriptor: int, not_here: Collection[int] = NOT_HERE) -> None:
    """Writes to the disk itself, where its file system can do that. Raises OSError."""
    if sys.platform == "darwin":  # where fsync alone stops at the drive's cache
        with tolerated(NOT_HERE):
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    with tolerated(not_here):
        os.fsync(descriptor)


@contextmanager
def tolerated(codes: Collection[int]) -> Iterator[None]:
    """Passes over an OSError with one of these codes: what a disk does not have is done without."""
    try:
        yield
    except OSError as error:
        if error.errno not in codes:
            raise


def flush_folder(path: str) -> None:
    """So that the names in it survive a power cut. Raises OSError."""
    descriptor = os.open(path, os.O_DIRECTORY)
    try:
        flush(descriptor, NO_FLUSH)
    finally:
        os.close(descriptor)


def digest_of(path: str, size: int = sys.maxsize, stop: Optional[Stop] = None) -> str:
    """Returns the SHA-256 of a regular file, of so many bytes at most. Raises OSError, Stopped."""
    with open_regular(path) as file:
        return digest_from(file, size, stop)


def digest_from(file: IO[bytes], size: int = sys.maxsize, stop: Optional[Stop] = None) -> str:
    """Returns the SHA-256 of an open file from its beginning, of so many bytes at most. Raises
    OSError, Stopped."""
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
COMPRESSING = (Action.COMPRESSED, Action.WOULD_COMPRESS)
NOT_OF_DUE = (Action.ARCHIVED, Action.WOULD_ARCHIVE)
# Counts of a report in its summary. Sizes are bytes, estimates in a dry run.
SUMMED = "found young ahead held due left original_size compressed_size saved exit_code"


class Report:
    """Gets outcomes and informs people. `exit_code` is the run's. Each line is made printable here,
    so that no name can forge another line."""

    found = young = links = due = 0  # as the plan counts them
    ahead = held = 0  # dated in the future; waiting as the clock is not trusted that far
    original_size = compressed_size = saved = 0
    seconds = 0.0  # of audio that a dry run found to be due
    workers = 1
    exit_code = 0
    bar = ""  # what stands on the terminal's last line
    is_logging = False

    def __init__(self, config: Config) -> None:
        self.config = config
        self.started = self.drawn = monotonic()
        self.counts: Counter[Action] = Counter()
        self.told: set[str] = set()
        self.order: deque[str] = deque()  # paths, in which a dry run reports
        self.lines: dict[str, tuple[str, Mapping[str, Any]]] = {}  # that wait for their turn
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
        path, problem = self.config.log_file, error.strerror
        self.error(f"The log {path} cannot be written: {problem}. The work goes on without.", 0)

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
        self.exit_code = max(self.exit_code, code)
        if text not in self.told:
            self.told.add(text)
            self.log(text, "ERROR")
            self.write(f"{PROGRAM}: {printable(text)}", sys.stderr)
            self.write_json({"type": "error", "message": text})

    def defect(self, kept: str, error: Exception) -> None:
        """Reports a defect of this program, and logs its traceback. `kept` says what was kept."""
        self.error(f"{kept}: a defect of this program (its traceback is in the log): {error}")
        self.log("".join(traceback.format_tb(error.__traceback__)), "ERROR")

    def failed(self, error: Exception) -> str:
        """Reports the error that ends a command; returns its sentence."""
        text, code = explain(error), exit_code_of(error)
        if isinstance(error, OSError) and code == NoSpaceError.exit_code:
            text = f"The disk is full: {text}. Make room and run again."
        elif not isinstance(error, (ServiceError, Refusal, OSError)):
            lines = traceback.format_exception(type(error), error, error.__traceback__)
            self.log("".join(lines), "ERROR")
            problem = "memory is short" if isinstance(error, MemoryError) else text
            text = f"Ended by a defect, or for want of something: {problem}. The log has more."
        self.error(text, code)
        return text

    def begin(self, works: Sequence[Work], workers: int) -> None:
        """Reports what is due, with its length where that is known. A dry run measures it."""
        self.due, self.workers = len(works), workers
        if self.config.dry_run:
            self.order.extend(work.path for work in works)
        elif works:
            size = size_text(sum(work.source_size for work in works))
            known = [work.seconds or work.recording.seconds_of(work.take) for work in works]
            much = f", {duration_text(sum(known))} of audio" if all(known) else ""
            self.say(f"Due: {self.due}, {size}{much}.")

    def outcome(self, work: Work) -> None:
        """Counts and reports what became of one take: called once for each."""
        action, told = work.outcome_reason.action, work.outcome()
        is_failed = action is Action.FAILED
        self.exit_code = self.exit_code or int(is_failed)
        self.counts[action] += 1
        is_foreseen = self.config.dry_run and action not in (Action.KEPT, Action.FAILED)
        end = dataclasses.replace(work, reason=None) if is_foreseen else work
        self.saved += size_on_disk(work.take) - size_on_disk(end.take_after(0))
        if is_foreseen:
            self.seconds += told["seconds"] or work.guessed_seconds
        before, after = told["original_size"], work.copy.size if work.copy else work.estimate
        sizes = size_text(before) if before else ""
        if action in COMPRESSING:
            self.original_size += before
            self.compressed_size += after
            less = f"{100 * (before - after) / before:.0f} %" if before > after else "no"
            sizes = f"{self.change(before, after)} ({less} less)"
        line = self.line(work, sizes, told["reason"])
        self.log(f"{line}  {work.trace}".rstrip(), "ERROR" if is_failed else "INFO")
        self.lines[work.path] = (line, told)
        self.show_lines()
        advice = advice_on(work)
        if advice:
            self.error(advice)

    def show_lines(self) -> None:
        """Shows each line whose turn has come; all of them where no order is left."""
        while self.order and self.order[0] in self.lines:
            self.show(*self.lines.pop(self.order.popleft()))
        while self.lines and not self.order:
            self.show(*self.lines.pop(next(iter(self.lines))))

    def show(self, line: str, told: Mapping[str, Any]) -> None:
        self.write_json(told)
        if self.config.quiet and told["action"] == Action.FAILED:
            self.write(printable(line), sys.stderr)
        elif not self.config.json:
            self.say(line)

    def line(self, work: Work, sizes: str, why: str) -> str:
        """Returns the line on a recording: what was done or why not, with sizes."""
        reason, probe = work.outcome_reason, work.probe
        parts = [f"{reason.action.value:<14} {work.path}", sizes]
        if reason not in (Reason.DONE, Reason.DUE):
            parts.append(why)
        if reason.action is Action.FAILED and work.take.original:
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
        self.order.clear()
        self.show_lines()
        text = "" if message and not self.counts else self.sentence()
        if text or self.found:
            # By this line an unmounted disk is told from an empty library (Library.is_in_log).
            self.log(f"{self.config.recordings_dir}: {text or message} Found: {self.found}.")
        if text:
            self.say(text)
        summary = {
            "type": "summary",
            **{action.value: self.counts[action] for action in Action},
            **{name: getattr(self, name) for name in SUMMED.split()},
            "elapsed_seconds": round(monotonic() - self.started, 3),
            "message": f"{message} {text}".strip(),
        }
        self.write_json(summary)
        return summary

    @property
    def left(self) -> int:
        """Returns how many recordings are due still."""
        done = sum(self.counts.values()) - sum(self.counts[action] for action in NOT_OF_DUE)
        return max(0, self.due - done)

    def sentence(self) -> str:
        """Returns the end of a run in words."""
        config, size = self.config, size_text(abs(self.saved))
        text = ", ".join(self.phrase(action) for action in Action if self.counts[action])
        if text and config.dry_run:
            text = f"Dry run, nothing was changed: {text}"
        elif not text and config.command == "run" and not self.found:
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
        if self.young:
            parts.append(f"Younger than {config.age_threshold_days:g} days: {self.young}")
        if self.held:
            parts.append(f"Waiting until another run confirms the clock: {self.held}")
        if self.links:
            parts.append(f"Symbolic links passed over: {self.links}")
        if self.seconds and config.command == "run":
            took = duration_text(self.seconds / SPEED / self.workers)
            parts.append(f"{duration_text(self.seconds)} of audio. A run may take {took}")
        elif self.counts:
            parts.append(f"Took {duration_text(monotonic() - self.started)}")
        return ". ".join(parts) + "."

    def phrase(self, action: Action) -> str:
        """Returns how often something was done, and how much it made of how much."""
        sizes = self.change(self.original_size, self.compressed_size)
        count, days = self.counts[action], self.config.keep_originals_days
        originals = "original" if count == 1 else "originals"
        words = {
            Action.COMPRESSED: f"compressed ({sizes})",
            Action.WOULD_COMPRESS: f"to compress ({sizes})",
            Action.FREED: f"{originals} deleted after their {days:g} days",
            Action.WOULD_FREE: f"{originals} to delete after their {days:g} days",
        }
        return f"{count} {words.get(action) or action.value.replace('would-', 'to ')}"

    @property
    def has_news(self) -> bool:
        """Whether a run did or failed anything."""
        return bool(self.exit_code or self.counts.keys() - {Action.KEPT})


def advice_on(work: Work) -> str:
    """Returns advice where the cause is not the recording's. Many share one, reported once."""
    advice = {Reason.OWNER: OWNER_ADVICE, Reason.FORESEEN: FORESEEN_ADVICE}
    return advice[work.reason].format(work.detail) if work.reason in advice else ""


def open_log(path: str) -> IO[bytes]:
    """A log to be appended to: a pipe or a device is never waited for. Raises OSError."""
    check_links(path)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY
    return open(os.open(path, flags, 0o666), "wb")


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
    is_full = getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT)
    return NoSpaceError.exit_code if is_full else getattr(error, "exit_code", 1)


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
    found = [Finding(f"Python {sys.version.split()[0]} at {sys.executable}")]
    checks = (examine_ffmpeg, examine_library, examine_archive, examine_log, examine_state)
    with run.open(locks=False):
        for check in checks:
            try:
                found += check(run)
            except (ServiceError, Refusal, OSError) as error:
                found.append(Finding(explain(error), exit_code_of(error)))
    said: list[str] = []
    for text, code in found:
        if not any(each in text for each in said):
            report.say(f"{'PROBLEM' if code else 'ok':<9}{text}")
            report.exit_code = max(report.exit_code, code)
            said.append(text)
    report.say(f"         settings, from {config.file or 'nowhere: all are defaults'}:")
    settings = {name: getattr(config, name) for name in FILE_KINDS}
    settings["tiers"] = [tier._asdict() for tier in config.tiers]
    for name, value in settings.items():
        report.say(f"         {name:<22}{json.dumps(value, ensure_ascii=False)}")


def examine_ffmpeg(run: Run) -> Iterator[Finding]:
    target = Target(run.config.target_format, run.config.target_bitrate)
    try_ffmpeg(run.tools, target)
    yield Finding(f"ffmpeg at {run.tools.ffmpeg} encodes {target.format} and reads it again")


def examine_library(run: Run) -> Iterator[Finding]:
    """Tries all that its commits need, if our own folder is there to be locked."""
    library = run.library
    library.require(run.config.log_file)
    works = plan_run(run)
    read_signs(library)
    with ExitStack() as stack:
        if isdir(library.own("")):
            try:
                stack.enter_context(library.lock())
            except BusyError as busy:
                yield Finding(str(busy))
                return
            try_commits(library)
        problems = foresee_all(run, works)
    yield from problems
    if not problems:
        yield Finding(f"the library {library.root} can be written to; due: {len(works)}")
    for work in works[:1]:
        run.try_ffmpeg_on(work)


def foresee_all(run: Run, works: Sequence[Work]) -> list[Finding]:
    """Tries in each folder what its commits need; returns what a run would say of that."""
    problems: dict[str, None] = {}
    staging = Staging(run.library)
    trials = Trials(run.library, staging)
    for work in works:
        if not work.reason:
            with boundary(work.refuse):
                trials.foresee(work)
            if work.reason:
                why = f"{work.path}: {work.reason.sentence.format(work.detail)}."
                problems[advice_on(work) or why] = None
    remove_all(staging.made)
    return [Finding(problem, 1) for problem in problems][:NAMED]


def examine_archive(run: Run) -> Iterator[Finding]:
    archive = configured_archive(run)
    if archive:
        archive.try_it()
        archive.try_upload()
        yield Finding(f"the archive {archive.target} answers and takes files")


def examine_log(run: Run) -> Iterator[Finding]:
    """Does not make it, as doctor changes nothing."""
    place = path = run.config.log_file
    check_links(path)
    while not lexists(place):
        place = dirname(place)
    read_sign(place)
    yield Finding(f"the log {path} can be written to")


def examine_state(run: Run) -> Iterator[Finding]:
    """Yields what statistics and page say too."""
    for each in gather_stats(run.config)["findings"]:
        yield Finding(**each)


def command_schedule(config: Config, report: Report) -> None:
    """Print what makes a run every night on this machine. Raises UsageError."""
    folder = dirname(Tools(Stop()).find("ffmpeg")[0])  # which may be one of the user's own
    words = [
        "/usr/bin/env",
        f"PATH={folder}:/usr/local/bin:/usr/bin:/bin",
        lasting_python(),
        abspath(__file__),
        "run",
        "--quiet",
        *(["-c", config.file] if config.file else []),
        "--recordings",
        config.recordings_dir,
    ]
    if not "".join(words).isprintable():
        raise UsageError("A line break in a path: no scheduler takes it. Rename that folder first.")
    entry, quote = SCHEDULES[config.scheduler]
    report.write(entry.format(" ".join(map(quote, words))), sys.stdout, end="")


def lasting_python() -> str:
    """The system's, which outlives upgrades, where it will do; else the one that runs now."""
    system = "/usr/bin/python3"
    try:
        Tools(Stop()).run([system, "-c", "import sys; sys.exit(sys.version_info < (3, 9))"], 0)
    except (Refusal, ToolError):
        return abspath(sys.executable)
    return system


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
    "config.json": '{"age_threshold_days": 0}',
    "recordings/index.json": '{"recordings": [{"id": "2025-10-27T14:30:45Z"}]}',
    "recordings/2025-10-27/14-30-45-chunk-1.json": '{"id": "2025-10-27T14:30:45Z", '
    '"chunks": [{"file": "14-30-45-chunk-1.webm"}]}',
}
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
            with open(join(folder, name), "w", encoding="ascii") as file:
                file.write(text)
        tools = Tools(Stop())
        for name in ("14-30-45-chunk-1.webm", "16-00-00-cut-short.webm"):
            tools.run([tools.ffmpeg, *QUIET, *DEMO_SOUND.split(), name], 6, folder=day)
        os.truncate(join(day, name), 40_000)
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
    report.say(f"Paused: runs leave {library.root} alone until {until_text(until)}.")


def command_resume(config: Config, report: Report) -> None:
    with suppress(FileNotFoundError):
        os.unlink(library_of(config).own("paused"))
    report.say("Resumed: the next run goes on.")


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
        "jobs json quiet verbose progress",
        command_check,
    ),
    "restore": Command(
        "bring back kept originals and archived recordings",
        "paths last_run dry_run json quiet verbose",
        command_restore,
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
