"""The crash harness: plays faults at chosen system calls of the program with strace, and tells which promises were broken.

A point is one system call of one thread of one run. `signal=KILL` ends the program just before it is made, `error=...` lets it
fail. Only the program itself is touched: the tools that it starts are let go at their execve. What ffmpeg makes of the same words
and the same input is made once and replayed, so that a run takes a third of a second.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Optional

from tests.base import FFMPEG, SCRIPT, Ran, decode

STRACE = shutil.which("strace") if sys.platform == "linux" else None
KILL = "signal=KILL"
OPEN, WRITE, FLUSH, REMOVE = ("openat",), ("write",), ("fsync", "fdatasync"), ("unlink", "unlinkat")
LINK, RENAME = ("link", "linkat"), ("rename", "renameat", "renameat2")
CALLS = OPEN + WRITE + FLUSH + REMOVE + LINK + RENAME + ("mkdir", "mkdirat", "rmdir")
ALL = bool(os.environ.get("CRASH_ALL"))

# The names of staged files are made up anew by every run: here they are known before, so that faults can be meant for them.
# strace counts each thread's calls by themselves and strikes whichever gets there first. This many idle calls at its start set a
# worker's count apart from the main thread's.
AHEAD = 5000
TOKEN = "{:08x}"  # of a run, by its number
PRELUDE = f"""
import contextlib, importlib.machinery, os, sys, threading, types
token, call, run = bytes.fromhex(sys.argv.pop(1)), sys.argv.pop(1), threading.Thread.run
os.urandom = lambda size: token[:size]
def exchange():
    import ctypes
    ctypes.CDLL(None).renameat2(-1, b"", -1, b"", 0)
idle = {{"renameat2": exchange, "write": lambda: os.write(9999, b""), "fsync": lambda: os.fsync(9999), "fdatasync": lambda: os.fdatasync(9999),
        "openat": lambda: os.open("", 0), "link": lambda: os.link("", ""), "rename": lambda: os.rename("", ""),
        "unlink": lambda: os.unlink(""), "mkdir": lambda: os.mkdir(""), "rmdir": lambda: os.rmdir("")}}
def ahead(thread):
    for _ in range({AHEAD}):
        with contextlib.suppress(OSError):
            make()
    run(thread)
if call:
    make = next(make for name, make in idle.items() if call.startswith(name))
    threading.Thread.run = ahead
sys.argv.pop(0)
sys.path[0] = os.path.dirname(sys.argv[0])
# From its bytecode, if that is there: to compile it takes a fifth of a run. None is written, as every run must make the same calls.
sys.dont_write_bytecode = True
loader = importlib.machinery.SourceFileLoader("__main__", sys.argv[0])
main = sys.modules["__main__"] = types.ModuleType("__main__")
main.__file__ = sys.argv[0]
exec(loader.get_code("__main__"), main.__dict__)
"""

# Inputs count by their content, outputs by their order, all other words by themselves. Outputs are copies, level files, and what
# goes into a pipe. It imports as little as it can: most of its time is Python's start.
REPLAYING_FFMPEG = f"""#!{sys.executable} -IS
import sys
from _blake2 import blake2b
from posix import environ
args, real = sys.argv[1:], environ[b"FFMPEG"].decode()
text = sys.stdin.buffer.read() if "pipe:0" in args else b""
key, outputs = blake2b(text), []

def content(path):
    with open(path, "rb") as file:
        return file.read()

def replay(made):
    copies = [content(f"{{made}}/{{number}}") for number in range(len(outputs))]
    for path, copy in zip(outputs, copies):
        with open(path, "wb") as file:
            file.write(copy)
    sys.stdout.buffer.write(content(f"{{made}}/out"))
    sys.stderr.buffer.write(content(f"{{made}}/err"))

def make(made):
    import os, shutil, subprocess
    done = subprocess.run([real, *args], input=text, capture_output=True)
    if done.returncode:
        sys.stdout.buffer.write(done.stdout)
        sys.stderr.buffer.write(done.stderr)
        sys.exit(done.returncode)
    new = f"{{made}}.{{os.getpid()}}"
    os.mkdir(new)
    for number, path in enumerate(outputs):
        shutil.copyfile(path, os.path.join(new, str(number)))
    for name, said in (("out", done.stdout), ("err", done.stderr)):
        with open(os.path.join(new, name), "wb") as file:
            file.write(said)
    try:
        os.rename(new, made)
    except OSError:  # another run was faster
        shutil.rmtree(new)

for before, word in zip([""] + args, args):
    if word.startswith("file:") and before == "-i":
        word = blake2b(content(word[5:])).hexdigest()
    elif word.startswith("file:"):
        outputs.append(word[5:])
        word = "file:"
    key.update(word.encode("utf-8", "surrogateescape") + b"\\0")
made = environ[b"MADE"].decode() + "/" + key.hexdigest()[:64]
try:
    replay(made)
except FileNotFoundError:
    make(made)
    replay(made)
"""


class Point(NamedTuple):
    """One fault at the `when`th call of one thread; `onward`: at every such call from then on, whichever thread makes it. A disk
    that is full from now on still lets us write to a terminal or a pipe, so only writes to files are meant then."""

    fault: str
    call: str
    when: int
    worker: bool = False
    onward: bool = False

    def __str__(self) -> str:
        thread = "worker" if self.worker else "main"
        return f"-e inject={self.call}:{self.fault}:when={self.when}{'+' * self.onward} ({thread} thread)"

    def strace(self, files: Iterable[str]) -> list[str]:
        """Its words for strace; `files` are those that the program writes."""
        threads = ["-f", "-b", "execve"] if self.worker or self.onward else []
        if self.onward and self.call in WRITE:
            threads += [word for file in files for word in ("-P", file)]
        when = f"{self.when + AHEAD * self.worker}{'+' * self.onward}"
        return [*threads, "-e", f"trace={self.call},{names(FLUSH + LINK + RENAME)},{names(REMOVE)}",
                "-e", f"inject={self.call}:{self.fault}:when={when}"]  # fmt: skip


class Event(NamedTuple):
    """One system call of the program: the paths in its arguments, and whether it succeeded."""

    worker: bool
    call: str
    paths: tuple[str, ...]
    line: str
    done: bool


def names(calls: Iterable[str]) -> str:
    return ",".join("?" + call for call in calls)  # not every machine has every call


def parse_log(text: str) -> list[Event]:
    """The calls in a log of `strace -y`, in the order of their completion."""
    events: list[Event] = []
    begun: dict[str, str] = {}
    main = ""
    for whole in text.splitlines():
        thread, line = whole.split(None, 1) if whole[:1].isdigit() else ("", whole)
        main = main or thread
        if line.endswith("<unfinished ...>"):
            begun[thread] = line[: -len("<unfinished ...>")]
            continue
        if resumed := re.match(r"<\.\.\. \w+ resumed>", line):
            line = begun.pop(thread, "") + line[resumed.end() :]
        if found := re.match(r"(\w+)\(", line):
            paths = re.findall(r'(?<=\d<)[^>]*(?=>)|(?<=")/[^"]*(?=")', line)
            events.append(
                Event(
                    thread != main, found[1], tuple(paths), line, not re.search(r"= (-1 |\?)", line)
                )
            )
    return events


def kill_points(events: Sequence[Event]) -> list[Point]:
    """Just before every call that changes something."""
    return points(events, KILL, CALLS)


def points(
    events: Sequence[Event], fault: str, calls: Sequence[str], onward: bool = False
) -> list[Point]:
    """A fault at each of these calls; at an open only where it creates or cuts a file."""
    found = []
    counts: dict[tuple[bool, str], int] = {}
    for event in events:
        if onward and event.call in WRITE and not event.paths[0].startswith("/"):
            continue
        key = (event.worker, event.call)
        counts[key] = counts.get(key, 0) + 1
        opens = event.call in OPEN and not re.search("O_CREAT|O_TRUNC", event.line)
        if event.call in calls and not opens and not (onward and event.worker):
            found.append(Point(fault, event.call, counts[key], event.worker, onward))
    return sorted(found, key=lambda point: (point.worker, CALLS.index(point.call), point.when))


def sample(points: Sequence[Point], every: int) -> list[Point]:
    return list(points) if ALL else list(points[every // 2 :: every])


def make_tools(folder: Path) -> None:
    """The replaying ffmpeg, and a place for what it replays."""
    (folder / "made").mkdir()
    (folder / "ffmpeg").write_text(REPLAYING_FFMPEG)
    (folder / "ffmpeg").chmod(0o755)


class Played(NamedTuple):
    point: Point
    violations: list[str]
    struck: bool  # the run came to the point


class Place:
    """A library of its own for one run, and the run."""

    def __init__(self, harness: Harness, folder: Path, runs: int) -> None:
        self.harness, self.folder, self.library = harness, folder, folder / "recordings"
        self.runs = runs  # that it has seen before

    def run(self, *strace: str, ahead: str = "", cwd: str = "/") -> Ran:
        command, *options = self.harness.words
        words = [
            str(self.harness.script),
            command,
            "-c",
            str(self.folder / "config.json"),
            *options,
        ]
        self.runs += 1
        words = ["-c", PRELUDE, TOKEN.format(self.runs), ahead, *words]
        traced = (
            [str(STRACE), "-qq", "-y", "-o", str(self.folder / "strace.log"), *strace]
            if strace
            else []
        )
        done = subprocess.run(
            [*traced, sys.executable, "-S", *words], capture_output=True, stdin=subprocess.DEVNULL, cwd=cwd, timeout=600, check=False,
            env=self.harness.environment,
        )  # fmt: skip
        return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())

    def strike(self, point: Point) -> Ran:
        files = [str(self.folder) + name for name in self.harness.written]
        return self.run(*point.strace(files), ahead=point.call if point.worker else "")

    def events(self) -> list[Event]:
        return parse_log((self.folder / "strace.log").read_text(errors="replace"))

    def processes(self) -> list[str]:
        """What of this run is still there after a moment: a tool whose run was killed ends by itself."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            found = []
            for process in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    words = process.read_bytes().decode(errors="replace")
                    found += [words.replace("\0", " ")] if str(self.folder) in words else []
            if not found:
                return []
            time.sleep(0.05)
        return [f"still running: {words[:200]}" for words in found]


class Harness:
    """Plays points against one script, which must keep its promises for one library."""

    words: tuple[str, ...] = ("run", "-j", "1")

    def __init__(self, folder: Path, template: Path, tools: Path, script: Path = SCRIPT) -> None:
        self.folder, self.template, self.script = folder, template, script
        path = f"{tools}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PATH": path, "MADE": str(tools / "made"),
                            "FFMPEG": os.path.abspath(FFMPEG)}  # fmt: skip
        originals = template / "recordings"
        self.originals = {
            str(path.relative_to(originals)): path.read_bytes()
            for path in sorted(originals.rglob("*.webm"))
        }
        self.written: set[str] = set()  # files that the program itself writes
        self.goal: dict[str, object] = {}
        self.copies: dict[str, bytes] = {}

    @contextlib.contextmanager
    def place(self, template: Optional[Path] = None) -> Iterator[Place]:
        """A fresh copy of the library."""
        with tempfile.TemporaryDirectory(prefix="crash-", dir=self.folder) as folder:
            shutil.copytree(template or self.template, folder, dirs_exist_ok=True)
            yield Place(self, Path(folder), 1 if template else 0)

    def undisturbed(self) -> tuple[Ran, list[Event]]:
        """One run that nothing happens to: what all others must come to, and the calls it makes. A run
        before it lets ffmpeg make all that is replayed: a run that waits makes more calls."""
        with self.place() as place:
            place.run()
        with self.place() as place:
            ran = place.run("-f", "-b", "execve", "-e", f"trace={names(CALLS)}")
            self.goal = self.state(place)
            self.copies = {
                str(path.relative_to(place.library)): path.read_bytes()
                for path in place.library.rglob("*.opus")
            }
            base = str(place.folder)
            events = [
                each._replace(paths=tuple(path.replace(base, "") for path in each.paths))
                for each in place.events()
            ]
        for event in events:
            if event.call in WRITE and event.paths[0].startswith("/"):
                numbered = re.fullmatch(
                    r"(.*-)\d+(\.part)", event.paths[0]
                )  # staged files are numbered as they come
                self.written |= (
                    {f"{numbered[1]}{number}{numbered[2]}" for number in range(40)}
                    if numbered
                    else {event.paths[0]}
                )
        return ran, events

    def state(self, place: Place) -> dict[str, object]:
        return state(place.library)

    def play_all(
        self, points: Sequence[Point], template: Optional[Path] = None
    ) -> Iterator[Played]:
        with ThreadPoolExecutor(2) as pool:
            yield from pool.map(lambda point: self.play(point, template), points)

    def play(self, point: Point, template: Optional[Path] = None) -> Played:
        """The fault, what it left behind, and the next run."""
        with self.place(template) as place:
            ran = place.strike(point)
            found = self.broken(place)
            killed = ran.code == -9
            struck = (
                killed
                if point.fault == KILL
                else "(INJECTED)" in (place.folder / "strace.log").read_text(errors="replace")
            )
            if not killed:
                found += self.manners(ran, point, place) + distrust(place.events())
            again = place.run()
            found += self.unrecovered(again, place)
        return Played(point, found, struck)

    def kill_at(self, point: Point, template: Path) -> Path:
        """The library as a kill left it, kept at `template`."""
        with self.place() as place:
            place.strike(point)
            shutil.copytree(place.folder, template, ignore=shutil.ignore_patterns("strace.log"))
        return template

    def calls_of_recovery(self, template: Path) -> list[Event]:
        with self.place(template) as place:
            place.run("-f", "-b", "execve", "-e", f"trace={names(CALLS)}")
            return place.events()

    def broken(self, place: Place) -> list[str]:
        """Which promises of every instant do not hold."""
        found = place.processes()
        for name, content in self.originals.items():
            path = place.library / name
            if not path.exists():
                copy, proven = (
                    path.with_suffix(".opus"),
                    self.copies[str(Path(name).with_suffix(".opus"))],
                )
                if not copy.exists() or not same_audio(copy.read_bytes(), proven):
                    found.append(f"the audio of {name} is lost")
            elif path.read_bytes() != content:
                found.append(f"{name} is not what it was")
        for path in visible(place.library, ".json"):
            try:
                chunks = json.loads(path.read_bytes()).get("chunks") or []
            except ValueError as error:
                found.append(f"{path.name} is broken: {error}")
                continue
            lost = [chunk["file"] for chunk in chunks if not (path.parent / chunk["file"]).exists()]
            found += [f"{path.name} names {name}, which is not there" for name in lost]
        return found

    def manners(self, ran: Ran, point: Point, place: Place) -> list[str]:
        """How a run ends that met an error: cleanly, with a message, with nothing left behind."""
        found = [f"ended with {ran.code}: {ran.err[-300:]}"] if ran.code not in (0, 1, 5) else []
        if "Traceback" in ran.err or "Exception ignored" in ran.err:
            found.append(f"a traceback: {ran.err[-600:]}")
        told = re.search(
            r"[Nn]o space left|disk (of .* )?is full|[Ii]nput/output error", ran.out + ran.err
        )
        if ran.code and not told:
            found.append(
                f"ended with {ran.code} without saying why: {ran.out[-300:]}{ran.err[-300:]}"
            )
        lines = ran.err.splitlines()
        found += [
            f"told twice: {line}" for line in lines if f"compression_service.py: {line}" in lines
        ]
        gone = sum(not (place.library / name).exists() for name in self.originals)
        if (
            (summary := re.search(r"^(\d+) of \d+ due compressed", ran.out, re.MULTILINE))
            and int(summary[1]) != gone
            and self.originals
        ):
            found.append(f"{gone} originals were deleted, but its summary says: {summary[0]}")
        can_clean = point.call not in ("unlink", "unlinkat", "rmdir") and not (
            point.onward and point.call in OPEN
        )
        return found + [
            f"left behind: {path.name}" for path in leftovers(place.library) if can_clean
        ]

    def unrecovered(self, again: Ran, place: Place) -> list[str]:
        """What still differs after the next run from a library that nothing happened to."""
        found = (
            [f"the next run ended with {again.code}: {again.out[-300:]}{again.err[-600:]}"]
            if again.code
            else []
        )
        now = self.state(place)
        for name in sorted(self.goal.keys() | now.keys()):
            if name not in now or name not in self.goal:
                found.append(
                    f"after the next run {name} {'is not there' if name in self.goal else 'is left'}"
                )
            elif now[name] != self.goal[name]:
                found.append(
                    f"after the next run {name} differs: {now[name]!r:.500} instead of {self.goal[name]!r:.500}"
                )
        return found + place.processes()


class MovingHarness(Harness):
    """For what changes copies and not originals: tiers, the archive, restore. Every recording must be there as it was before or as
    it is in the end, in the library or in the archive, and every sidecar must name what is in the one that it says."""

    def __init__(self, folder: Path, template: Path, tools: Path, words: Sequence[str]) -> None:
        super().__init__(folder, template, tools)
        self.words = tuple(words)
        self.originals = {}
        self.accepted = audio_of(template)

    def undisturbed(self) -> tuple[Ran, list[Event]]:
        ran, events = super().undisturbed()
        with self.place() as place:
            place.run()
            for stem, contents in audio_of(place.folder).items():
                self.accepted[stem] = self.accepted.get(stem, []) + contents
            self.goal = self.state(place)
        return ran, events

    def state(self, place: Place) -> dict[str, object]:
        return {
            **state(place.library),
            **{f"cold/{name}": what for name, what in state(place.folder / "cold").items()},
        }

    def broken(self, place: Place) -> list[str]:
        found, here = place.processes(), audio_of(place.folder)
        for stem, accepted in self.accepted.items():
            if not any(
                same_audio(content, other) for content in here.get(stem, []) for other in accepted
            ):
                found.append(f"the audio of {stem} is lost")
        for path in visible(place.library, ".json"):
            document = json.loads(path.read_bytes())
            folder = (
                place.folder / "cold/archive-of-recordings" / path.parent.name
                if document.get("archived")
                else path.parent
            )
            lost = [
                chunk["file"]
                for chunk in document.get("chunks") or []
                if not (folder / chunk["file"]).exists()
            ]
            found += [f"{path.name} names {name}, which is not there" for name in lost]
        return found


ARCHIVE_ON_RECORD = re.compile(rb'"[^"]*/cold/archive-of-recordings')


class DeletingHarness(MovingHarness):
    """For a tier that deletes. What has no sidecar stays, and what is gone is said to be deleted."""

    @contextlib.contextmanager
    def place(self, template: Optional[Path] = None) -> Iterator[Place]:
        """A fresh copy of the library, whose records name the archive beside it. Without a file there, one that was moved
        is not known again."""
        with super().place(template) as place:
            archive = f'"{place.folder}/cold/archive-of-recordings'.encode()
            for path in (
                *place.library.rglob("*.json"),
                place.library / ".compression/history.jsonl",
            ):
                times = path.stat()
                path.write_bytes(ARCHIVE_ON_RECORD.sub(archive, path.read_bytes()))
                os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            yield place

    def broken(self, place: Place) -> list[str]:
        found, here = place.processes(), audio_of(place.folder)
        if "alone" not in here:
            found.append("a recording without a sidecar is gone")
        for path in visible(place.library, ".json"):
            document = json.loads(path.read_bytes())
            names = {Path(chunk["file"]).stem for chunk in document.get("chunks") or []}
            if not document.get("audio_deleted") and not names <= here.keys():
                found.append(f"{path.name} does not say that its audio was deleted")
            if document.get("audio_deleted") and "audio_deletion_date" not in document:
                found.append(f"{path.name} does not say when")
        return found


class AnnouncingHarness(DeletingHarness):
    """For the run that announces: nothing is deleted before an announcement is on record."""

    def strike_announced(self, place: Place) -> bool:
        runs = (place.library / ".compression/history.jsonl").read_text().splitlines()
        return any('"announced"' in line for line in runs)

    def broken(self, place: Place) -> list[str]:
        self.told = {**getattr(self, "told", {}), place.folder: self.strike_announced(place)}
        return super().broken(place)

    def unrecovered(self, again: Ran, place: Place) -> list[str]:
        is_gone = len(audio_of(place.library)) < len(self.accepted)
        found = [f"the next run ended with {again.code}: {again.err}"] if again.code else []
        if is_gone and not self.told[place.folder]:
            found.append("deleted without having been announced")
        return found


def audio_of(folder: Path) -> dict[str, list[bytes]]:
    """What is under each name in a library and its archive, whatever its format."""
    found: dict[str, list[bytes]] = {}
    for path in [*visible(folder, ".opus"), *visible(folder, ".webm")]:
        found.setdefault(path.stem, []).append(path.read_bytes())
    return found


def visible(library: Path, suffix: str) -> list[Path]:
    return [
        path
        for path in sorted(library.rglob("*" + suffix))
        if "/." not in f"/{path.relative_to(library)}"
    ]


def leftovers(library: Path) -> list[Path]:
    """What is hidden there, but for our own folder."""
    return [path for path in sorted(library.rglob(".*")) if path.name != ".compression"]


def state(library: Path) -> dict[str, object]:
    """What two libraries must have in common: names, times of audio, sound, and documents but for when they were written."""
    found: dict[str, object] = {}
    for path in sorted(library.rglob("*")):
        name = str(path.relative_to(library))
        if path.parent.name == ".compression" and path.suffix != ".part":
            continue  # history and lock, which tell of each run
        if path.is_dir():
            found[name] = "folder"
        elif path.suffix == ".opus":
            found[name] = (path.stat().st_mtime_ns, path.stat().st_mode, sound(path.read_bytes()))
        else:
            text = path.read_text(errors="replace").replace(str(library.parent), "")
            found[name] = re.sub(
                r'("(?:compression_date|archive_date|audio_deletion_date|last_updated)": )"[^"]*"',
                r'\1"..."',
                text,
            )
    return found


@functools.cache
def sound(content: bytes) -> int:
    """What it decodes to; 0 if it does not."""
    with tempfile.NamedTemporaryFile(suffix=".opus") as file:
        file.write(content)
        file.flush()
        try:
            return hash(decode(Path(file.name)))
        except subprocess.CalledProcessError:
            return 0


def same_audio(one: bytes, other: bytes) -> bool:
    return one == other or (sound(one) == sound(other) and sound(other) != 0)


# ------------------------------------------------------------------------------------- the order of calls in a log


def distrust(events: Sequence[Event]) -> list[str]:
    """What was relied on although its flush had failed: the kernel has marked its pages clean, flushing again proves nothing."""
    failed: set[str] = set()
    found = []
    for event in events:
        if event.call in FLUSH and not event.done:
            failed.update(event.paths)
        elif not event.done:
            continue
        elif event.call in LINK + RENAME and event.paths[-2] in failed:
            found.append(f"put in place after its flush failed: {event.line}")
        elif (
            event.call in REMOVE
            and event.paths[-1].endswith(".webm")
            and os.path.dirname(event.paths[-1]) in failed
        ):
            found.append(
                f"an original deleted although its folder could not be flushed: {event.line}"
            )
    return found


def disorder(events: Sequence[Event], documents: Sequence[str]) -> list[str]:
    """What a power cut could take: everything that an original's deletion rests on must be on the disk before it.

    `documents` are the sidecars and the index, as paths of the log.
    """
    found = []
    deletions = [
        at
        for at, event in enumerate(events)
        if event.call in REMOVE and event.done and event.paths[-1].endswith(".webm")
    ]
    for at in deletions:
        original = events[at].paths[-1]
        folder, copy = os.path.dirname(original), original[:-5] + ".opus"
        wanted = [
            copy,
            *(
                path
                for path in documents
                if os.path.dirname(path) in (folder, os.path.dirname(folder))
            ),
        ]
        found += [f"{original}: {text}" for path in wanted for text in unsafe(events, at, path)]
        found += [f"{original}: {text}" for text in unflushed(events[:at], "history.jsonl")]
        if not flushed(events[at:], folder):
            found.append(f"{original}: its folder is not flushed after it is deleted")
    return found or ([] if deletions else ["no original was deleted"])


def unsafe(events: Sequence[Event], before: int, path: str) -> Iterator[str]:
    """Why a file that was given its name in this run may not survive a power cut at `before`."""
    moves = [
        at
        for at, event in enumerate(events)
        if event.call in LINK + RENAME and event.done and event.paths[-1] == path
    ]
    if not moves or moves[0] > before:
        yield f"{path} was not put in its place before"
        return
    moves = [at for at in moves if at < before]
    for at in moves:
        if not flushed(events[:at], events[at].paths[-2]):
            yield f"{path} was put in its place without being flushed"
    if not flushed(events[moves[-1] : before], os.path.dirname(path)):
        yield f"the folder was not flushed after {path} was put in its place"


def flushed(events: Sequence[Event], path: str) -> bool:
    return any(event.call in FLUSH and event.done and event.paths[0] == path for event in events)


def unflushed(events: Sequence[Event], name: str) -> Iterator[str]:
    writes = [
        at
        for at, event in enumerate(events)
        if event.call in WRITE and event.paths and event.paths[0].endswith("/" + name)
    ]
    if not writes or not flushed(events[writes[-1] :], events[writes[-1]].paths[0]):
        yield f"{name} was not written and flushed before"
