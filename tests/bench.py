#!/usr/bin/env python3
"""How fast the program is beside what people would use in its place, on this machine, in this run.

    python3 tests/bench.py [--quick] [--rounds N] [--only CASE]... [--folder DIR] [--script FILE]

Libraries are made from the real recordings in tests/recordings, in a temporary folder. Rivals run in turn, in the opposite order
every other round, and a ratio is taken within a round, so that a machine with other work to do slows both. The peers run under the
same `nice` that the program gives its tools, for the same reason. CPU ratios hardly feel other work; where they and the wall ratios
come apart, the machine was busy. The exit code is 1 if a target was missed.

What it said on two cores under ffmpeg 5.1 and Python 3.11, put ahead of the machine's other work by `chrt -r 1`, two rounds:

    100 three-second recordings                   1.86 s
        over a loop of ffmpeg                     0.29 x
        over xargs -P2 ffmpeg, GNU parallel       0.55 x, 0.51 x
        over the floor                            1.44 x
    12 two-minute recordings                      5.70 s
        over a loop of ffmpeg                     0.60 x
        over xargs -P2 ffmpeg, GNU parallel       1.20 x, 1.18 x
        over the floor                            1.09 x
    one recording of 120 minutes                  31.2 s, 40 MB of memory
        over one ffmpeg                           0.69 x, with 1.21 x of its CPU
    100,000 recordings with nothing due           0.8 s, 35 MB of memory
        over a bare walk                          1.75 x

The floor encodes once and decodes the copy once, on all cores; the peers check nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

TESTS = Path(__file__).resolve().parent
SCRIPT = TESTS.parent / "compression_service.py"
RECORDINGS = TESTS / "recordings"
LONG_AGO = 1_761_575_445  # 2025-10-27T14:30:45Z
DAY = "2025-10-27"
ENCODE = "-c:a libopus -b:a 96k -vbr constrained -f ogg"  # what the program asks for, so that both do the same work
FFMPEG = "nice -n 10 ffmpeg -v error -nostdin -y"
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

# Runs the program inside a fresh interpreter, and says what it alone cost: its CPU without its tools', the wall time in which no
# tool was at work, its own peak memory (VmHWM, as ru_maxrss also counts the parent's at the fork), and how often it wrote the
# index.
INSIDE = """
import importlib.util, json, os, resource, sys, time
began = time.perf_counter()
spec = importlib.util.spec_from_file_location("service", sys.argv[1])
service = importlib.util.module_from_spec(spec)
sys.modules["service"] = service
spec.loader.exec_module(service)
spans, writes, run, exchange = [], [0], service.Tools.run, service.exchange
def timed(*args, **options):
    start = time.perf_counter()
    try:
        return run(*args, **options)
    finally:
        spans.append((start, time.perf_counter()))
def counted(staged, path):
    writes[0] += os.path.basename(path) == "index.json"
    return exchange(staged, path)
service.Tools.run, service.exchange = timed, counted
code = service.main(sys.argv[3:])
wall, tools, end = time.perf_counter() - began, 0.0, 0.0
for start, stop in sorted(spans):
    tools += max(0.0, stop - max(start, end))
    end = max(end, stop)
used = resource.getrusage(resource.RUSAGE_SELF)
peak = used.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
if os.path.exists("/proc/self/status"):
    peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
with open(sys.argv[2], "w") as file:
    json.dump({"code": code, "wall": wall, "idle": wall - tools, "cpu": used.ru_utime + used.ru_stime, "peak": peak,
               "writes": writes[0]}, file)
sys.exit(code)
"""
WALK = """
import os, sys
folders, count = [sys.argv[1]], 0
while folders:
    with os.scandir(folders.pop()) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            else:
                count += entry.stat(follow_symlinks=False).st_size > 0
"""


class Cost(NamedTuple):
    wall: float  # seconds
    cpu: float  # seconds, of the process and all it started


class Own(NamedTuple):
    """What the program itself cost beside its tools."""

    cpu: float  # seconds
    idle: float  # seconds in which no tool was at work
    peak: float  # MB
    writes: int  # of the index


class Rival(NamedTuple):
    name: str
    command: Callable[[Path], list[str]]  # for the folder of a library
    proof: Callable[[Path], None]  # raises unless it did its work
    target: Optional[float] = None  # the program's time over this one's may be at most this


class Bench:
    """The table, and where the libraries are."""

    def __init__(self, folder: Path, rounds: int, quick: bool, script: str) -> None:
        self.folder, self.rounds, self.quick, self.script = folder, rounds, quick, script
        self.missed = 0

    def row(self, what: str, found: str, target: str = "", good: bool = True) -> None:
        verdict = "" if not target else "met" if good else "MISSED"
        self.missed += not good
        print(f"| {what:<58} | {found:<48} | {target:<16} | {verdict:<6} |", flush=True)

    def library(self, fill: Callable[[Path], None]) -> Path:
        """A fresh library; flushed, so that no one pays for the writing of it."""
        place = self.folder / "library"
        shutil.rmtree(place, ignore_errors=True)
        (place / "recordings" / DAY).mkdir(parents=True)
        (place / "config.json").write_text("{}")
        fill(place / "recordings")
        os.sync()
        return place

    def race(self, what: str, fill: Callable[[Path], None], rivals: Sequence[Rival]) -> None:
        """Run all rivals in turn and print the first one's cost over each other's."""
        costs: dict[str, list[Cost]] = {rival.name: [] for rival in rivals}
        for number in range(self.rounds):
            for rival in rivals[:: -1 if number % 2 else 1]:
                place = self.library(fill)
                costs[rival.name].append(measure(rival.command(place)))
                rival.proof(place)
        ours = costs[rivals[0].name]
        for rival in rivals:
            theirs = costs[rival.name]
            seconds = statistics.median(cost.wall for cost in theirs)
            if rival is rivals[0]:
                self.row(
                    what,
                    f"{seconds:.2f} s, {statistics.median(cost.cpu for cost in theirs):.2f} s of CPU",
                )
                continue
            ratios = sorted(a.wall / b.wall for a, b in zip(ours, theirs))
            work = statistics.median(a.cpu / b.cpu for a, b in zip(ours, theirs))
            ratio = statistics.median(ratios)
            found = f"{ratio:.2f} x ({ratios[0]:.2f}-{ratios[-1]:.2f}), CPU {work:.2f} x of {seconds:.2f} s"
            self.row(
                f"    over {rival.name}",
                found,
                at_most(rival.target, "x"),
                rival.target is None or ratio <= rival.target,
            )

    def inside(self, place: Path, *words: str) -> Own:
        """The program's own costs on a library."""
        result = self.folder / "own.json"
        command = [
            sys.executable,
            "-c",
            INSIDE,
            self.script,
            str(result),
            "run",
            "-c",
            str(place / "config.json"),
            "-q",
            *words,
        ]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        found: dict[str, Any] = json.loads(result.read_text())
        return Own(found["cpu"], found["idle"], found["peak"], found["writes"])


def at_most(target: Optional[float], unit: str) -> str:
    return "" if target is None else f"at most {target:g} {unit}"


def measure(command: Sequence[str]) -> Cost:
    started = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    wall = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"bench: exit code {process.returncode} from {shlex.join(command)[:200]}")
    return Cost(wall, used.ru_utime + used.ru_stime)


# ------------------------------------------------------------------------------------------------------ libraries


def join(parts: Sequence[Path], seconds: float, target: Path) -> None:
    """Real audio end to end, packets untouched. The length of each part is given, as Chrome's headers are 60 ms short."""
    listing = target.with_suffix(".txt")
    listing.write_text("".join(f"file '{part}'\nduration {seconds}\n" for part in parts))
    words = [
        "ffmpeg",
        "-v",
        "error",
        "-nostdin",
        "-y",
        "-f",
        "concat",
        "-safe",
        "0",
        "-i",
        str(listing),
        "-c",
        "copy",
        str(target),
    ]
    subprocess.run(words, check=True)


def two_minutes(folder: Path) -> Path:
    target = folder / "two-minutes.webm"
    if not target.exists():
        join([RECORDINGS / f"chunk_{number % 2}.webm" for number in range(40)], 3.0, target)
    return target


def copies_of(recording: Path, count: int) -> Callable[[Path], None]:
    def fill(library: Path) -> None:
        for number in range(count):
            add(recording, library / DAY / f"14-30-45-chunk-{number + 1}.webm")

    return fill


def add(recording: Path, target: Path) -> None:
    shutil.copyfile(recording, target)
    os.utime(target, (LONG_AGO, LONG_AGO))


def session(library: Path, name: str, chunks: int) -> dict[str, Any]:
    """One recording of three-second chunks with one sidecar; returns its index entry."""
    names = [f"{name}-chunk-{number + 1}.webm" for number in range(chunks)]
    for chunk in names:
        add(RECORDINGS / "chunk_0.webm", library / DAY / chunk)
    segments = [{"start": 0.0, "end": 2.5, "text": "Hello world"}]
    listed = [
        {
            "file": chunk,
            "start": 3 * number,
            "end": 3 * number + 3,
            "duration": 3,
            "segments": segments,
        }
        for number, chunk in enumerate(names)
    ]
    document = {
        "id": f"{DAY}T{name}",
        "duration": 3 * chunks,
        "chunks": listed,
        "compressed": False,
        "original_size": 0,
    }
    (library / DAY / f"{name}.json").write_text(json.dumps(document, indent=2))
    return entry(name, chunks)


def entry(name: str, chunks: int) -> dict[str, Any]:
    return {"id": f"{DAY}T{name}", "date": DAY, "duration": 3.0, "language": "en", "transcription_preview": "Hello world",
            "chunks": chunks, "compressed": False, "size": 49_217 * chunks}  # fmt: skip


def write_index(library: Path, entries: list[dict[str, Any]]) -> None:
    document = {
        "recordings": entries,
        "total_recordings": len(entries),
        "total_size": 0,
        "compressed_size": 0,
    }
    (library / "index.json").write_text(json.dumps(document, indent=2))


def sessions(recordings: int, chunks: int, others: int = 0) -> Callable[[Path], None]:
    """`recordings` due ones, and an index of them and of `others` that are long gone."""

    def fill(library: Path) -> None:
        entries = [session(library, f"r{number}", chunks) for number in range(recordings)]
        write_index(library, entries + [entry(f"gone{number}", 1) for number in range(others)])

    return fill


def young(count: int) -> Callable[[Path], None]:
    """Recordings from today with their sidecars, a hundred a folder, and their index."""

    def fill(library: Path) -> None:
        for number in range(count):
            folder = library / f"day-{number // 100}"
            if number % 100 == 0:
                folder.mkdir()
            (folder / f"14-30-{number}.webm").write_bytes(b"\x1aE\xdf\xa3")
            (folder / f"14-30-{number}.json").write_bytes(b'{"chunks": []}')
        write_index(library, [entry(f"young{number}", 1) for number in range(count)])

    return fill


# --------------------------------------------------------------------------------------------------------- rivals


def program(bench: Bench) -> Rival:
    def proof(place: Path) -> None:
        left = [path.name for path in (place / "recordings").rglob("*.webm")]
        if left:
            sys.exit(
                f"bench: the program left {len(left)} originals, such as {left[0]}; see {place}/logs"
            )

    return Rival(
        "the program",
        lambda place: [sys.executable, bench.script, "-c", str(place / "config.json"), "-q"],
        proof,
    )


def peer(name: str, script: str, target: Optional[float] = None) -> Rival:
    """A shell line in the folder of the recordings, that leaves x.opus in place of every x.webm."""

    def proof(place: Path) -> None:
        if list((place / "recordings").rglob("*.webm")) or not list(
            (place / "recordings").rglob("*.opus")
        ):
            sys.exit(f"bench: {name} did not do its work")

    def command(place: Path) -> list[str]:
        return ["sh", "-c", f'cd "$1" || exit\n{script}', "sh", str(place / "recordings" / DAY)]

    return Rival(name, command, proof, target)


def one_by_one(target: Optional[float] = None) -> Rival:
    return peer(
        "a loop of ffmpeg",
        f'for f in *.webm; do {FFMPEG} -i "$f" {ENCODE} "${{f%.webm}}.opus" && rm "$f"; done',
        target,
    )


def all_cores(target: Optional[float] = None) -> list[Rival]:
    one = f'{FFMPEG} -i "$1" {ENCODE} "${{1%.webm}}.opus" && rm "$1"'
    rivals = [
        one_by_one(),
        peer(
            f"xargs -P{CORES} ffmpeg", f"ls *.webm | xargs -P{CORES} -I@ sh -c '{one}' sh @", target
        ),
    ]
    if shutil.which("parallel"):
        line = f"{FFMPEG} -i {{}} {ENCODE} {{.}}.opus && rm {{}}"
        rivals.append(peer("GNU parallel", f"parallel --will-cite -j{CORES} '{line}' ::: *.webm"))
    return rivals


def floor(count: int) -> Rival:
    """The work itself: every recording decoded and encoded once and its copy decoded once, on all cores, with no process more."""
    names = [f"14-30-45-chunk-{number + 1}" for number in range(count)]
    groups = [part for start in range(CORES) if (part := names[start::CORES])]
    lines = []
    for part in groups:
        sources = " ".join(f"-i {name}.webm" for name in part)
        outputs = " ".join(
            f"-map {number} {ENCODE} {name}.opus" for number, name in enumerate(part)
        )
        copies = " ".join(f"-i {name}.opus" for name in part)
        decoded = " ".join(f"-map {number} -f null -" for number in range(len(part)))
        lines.append(f"{{ {FFMPEG} {sources} {outputs} && {FFMPEG} {copies} {decoded}; }} & ")
    return peer(
        "the floor (encode once, decode the copy once)", "".join(lines) + "wait && rm *.webm"
    )


# ---------------------------------------------------------------------------------------------------------- cases


def short_recordings(bench: Bench) -> None:
    def fill(library: Path) -> None:
        for number in range(100):
            add(
                RECORDINGS / f"chunk_{number % 2}.webm",
                library / DAY / f"14-30-45-chunk-{number + 1}.webm",
            )

    bench.race("100 three-second recordings", fill, [program(bench), *all_cores(0.45), floor(100)])


def medium_recordings(bench: Bench) -> None:
    fill = copies_of(two_minutes(bench.folder), 12)
    bench.race("12 two-minute recordings", fill, [program(bench), *all_cores(1.30), floor(12)])


def long_recording(bench: Bench) -> None:
    minutes = 10 if bench.quick else 120
    target = bench.folder / "long.webm"
    join([two_minutes(bench.folder)] * (minutes // 2), 120.0, target)
    bench.race(
        f"one recording of {minutes} minutes",
        copies_of(target, 1),
        [program(bench), one_by_one(0.75), floor(1)],
    )
    own = bench.inside(bench.library(copies_of(target, 1)))
    bench.row(
        "    peak memory of the program", f"{own.peak:.0f} MB", "under 100 MB", own.peak < 100
    )
    seconds = minutes * 60
    bench.row(
        "    its own CPU",
        f"{own.cpu:.2f} s, {own.cpu / seconds * 1000:.2f} ms for a second of audio",
    )


def nothing_due(bench: Bench) -> None:
    count = 10_000 if bench.quick else 100_000
    place = bench.library(young(count))
    command = program(bench).command(place)
    walk = [sys.executable, "-c", WALK, str(place / "recordings")]
    bare = [sys.executable, "-c", "pass"]
    first = measure(command)  # reads the index once, and remembers that it knows it
    ours, theirs, starts = [], [], []
    for _ in range(max(5, bench.rounds)):
        ours.append(measure(command))
        theirs.append(measure(walk))
        starts.append(measure(bare))
    ratios = sorted(a.wall / b.wall for a, b in zip(ours, theirs))
    start = statistics.median(cost.wall for cost in starts)
    ratio = statistics.median(ratios)
    milliseconds = statistics.median(cost.wall for cost in ours) * 1000
    bench.row(f"nothing due: {count} recordings with sidecars", f"{milliseconds:.0f} ms")
    found = f"{ratio:.2f} x ({ratios[0]:.2f}-{ratios[-1]:.2f})"
    bench.row(
        f"    over a bare walk, start of Python ({start * 1000:.0f} ms) in both",
        found,
        "at most 3 x",
        ratio <= 3,
    )
    bench.row("    the first time, when the index is new to it", f"{first.wall * 1000:.0f} ms")
    own = bench.inside(place)
    bench.row("    peak memory", f"{own.peak:.0f} MB", "under 100 MB", own.peak < 100)
    os.utime(place / "recordings" / "index.json")
    own = bench.inside(place)
    bench.row(
        "    peak memory when the index is new to it",
        f"{own.peak:.0f} MB",
        "under 100 MB",
        own.peak < 100,
    )
    own = bench.inside(bench.library(sessions(20, 1, count)))
    bench.row(
        f"    20 due, {count} in the index: peak memory, CPU", f"{own.peak:.0f} MB, {own.cpu:.2f} s"
    )


def own_time(bench: Bench) -> None:
    few, many = (50, 200) if bench.quick else (250, 1000)
    own_time_of(
        bench,
        "due recordings, 20 times as many in the index",
        lambda size: sessions(size, 1, 19 * size),
        few,
        many,
    )
    own_time_of(bench, "chunks of one recording", lambda size: sessions(1, size), few, many)


def own_time_of(
    bench: Bench, name: str, fill: Callable[[int], Callable[[Path], None]], few: int, many: int
) -> None:
    small, large = (bench.inside(bench.library(fill(size))) for size in (few, many))
    each = large.cpu / many * 1000
    growth = (large.cpu / small.cpu) / (many / few)
    bench.row(f"own time: {many} {name}", f"{each:.2f} ms of CPU each", "under 2 ms", each < 2)
    bench.row(
        f"    over the same with {few}", f"{growth:.2f} x each", "at most 1.3 x", growth <= 1.3
    )
    bench.row(
        "    wall time in which no tool was at work", f"{large.idle / many * 1000:.2f} ms each"
    )
    bench.row(
        "    times the index was written",
        f"{large.writes} (with {few}: {small.writes})",
        "at most 20",
        large.writes <= 20,
    )


def request(folder: Path) -> None:
    """What a server does for one: some 25 ms of JSON, disk and hashing."""
    segments = [
        {"start": number, "end": number + 1, "text": "Hello world " * 5} for number in range(2_000)
    ]
    for _ in range(4):
        text = json.dumps({"segments": segments}, indent=1)
        (folder / "request.json").write_text(text)
        hashlib.sha256(
            json.dumps(json.loads((folder / "request.json").read_text())).encode()
        ).hexdigest()


def requests_beside(bench: Bench, command: Optional[list[str]]) -> list[float]:
    """How long requests take, in ms, sorted, while a command runs (for ten seconds, if there is none)."""
    process = (
        subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        if command
        else None
    )
    until, found = time.monotonic() + 10, []
    time.sleep(1.0)
    while process.poll() is None if process else time.monotonic() < until:
        began = time.perf_counter()
        request(bench.folder)
        found.append((time.perf_counter() - began) * 1000)
        time.sleep(0.02)
    if process and process.returncode:
        sys.exit("bench: a run beside the server failed")
    return sorted(found)


def server(bench: Bench) -> None:
    """A server at work beside a run: what the low priority of the tools is for."""
    fill = copies_of(two_minutes(bench.folder), 4 if bench.quick else 12)
    loop = all_cores()[1]
    plain = [
        "sh",
        "-c",
        loop.command(bench.folder / "library")[2].replace("nice -n 10 ", ""),
        *loop.command(bench.folder / "library")[3:],
    ]
    kinds = {
        "no run": None,
        "the program": program(bench).command(bench.folder / "library"),
        f"xargs -P{CORES} ffmpeg": plain,
    }
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(bench.rounds):
        for kind, command in kinds.items():
            bench.library(fill)
            times[kind] += requests_beside(bench, command)
    for kind, found in times.items():
        found.sort()
        row = (
            f"{statistics.median(found):.0f} ms, 95 % under {found[len(found) * 95 // 100]:.0f} ms"
        )
        bench.row(f"a server's requests beside {kind}", row)


CASES = {"short": short_recordings, "medium": medium_recordings, "long": long_recording, "nothing": nothing_due, "own": own_time,
         "server": server}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="smaller libraries")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument(
        "--only", action="append", choices=list(CASES), help="this case only (repeatable)"
    )
    parser.add_argument(
        "--folder",
        metavar="DIR",
        help="where to put the libraries; default: the system's temporary folder",
    )
    parser.add_argument(
        "--script", default=str(SCRIPT), metavar="FILE", help="another version of the program"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="compression-bench-", dir=options.folder) as folder:
        bench = Bench(Path(folder), options.rounds, options.quick, os.path.abspath(options.script))
        print(
            f"{CORES} cores, {options.rounds} rounds, load {os.getloadavg()[0]:.1f}; ratios: median (least-most) of the rounds\n"
        )
        print(
            f"| {'case':<58} | {'measured':<48} | {'target':<16} | {'':<6} |\n|{'-' * 60}|{'-' * 50}|{'-' * 18}|{'-' * 8}|"
        )
        for name in options.only or CASES:
            CASES[name](bench)
    print(f"\nload at the end {os.getloadavg()[0]:.1f}; {bench.missed} targets missed")
    return 1 if bench.missed else 0


if __name__ == "__main__":
    sys.exit(main())
