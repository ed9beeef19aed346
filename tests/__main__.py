"""Runs the tests: python3 -m tests [-j N] [-k WORD] [MODULE ...]

Each module runs in a process of its own. A module that passes takes one line, and one that fails
shows its whole output. The last line counts the tests. The exit code is 0 if all passed, 1 if any
failed, 2 if none ran. Seconds of processor time (CPU) tell what a test costs, as a busy machine
changes them least. COMPRESSION_TEST_FFMPEGS names more builds of ffmpeg, with colons between them.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable, Optional

TESTS = Path(__file__).resolve().parent
TIMES = TESTS.parent / ".test-times.json"  # seconds by module, of the last run; git ignores it
DEADLINE = 1200.0  # seconds; the slowest module takes less than one minute on a quiet machine
LAST_WORDS = 5.0  # seconds in which a module that must stop may unmount and remove what it made
SLOWEST = 8  # tests named at the end, in each of two lists
STOP = signal.SIGUSR1
# These test what ffmpeg makes of recordings, with the one on PATH; test_versions has the other builds
# too. The rest takes the build that starts soonest: a static one starts in 2 ms of the processor,
# and that of a distribution, which loads 200 libraries, in 65.
WITH_FFMPEG_ON_PATH = (
    *("test_fuzz", "test_hostile", "test_players", "test_probe", "test_prove", "test_tools"),
    "test_versions",
)
# The slowest first, until a run has measured them here. The players wait for what they play.
SLOWEST_MODULES = (
    *("test_remote", "test_crash", "test_situations", "test_players", "test_whole_tools"),
    *("test_prove", "test_whole_proof", "test_signals", "test_whole_run", "test_hostile"),
    *("test_documents", "test_delete", "test_probe", "test_versions"),
)
VERDICTS = ("", "passed", "skipped", "failed")  # of those that a test gets, the last one counts


class Stopped(Exception):
    """The runner asked this process to stop."""


class Recorder(unittest.TextTestResult):
    """Appends a line to a file when a test begins and when it ends, so that a crash hides nothing."""

    path = ""
    is_stopping = False

    def record(self, **event: Any) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self.began = time.monotonic()
        self.cpu_before = cpu_seconds()
        self.verdict = ""
        self.record(begins=test.id())

    def stopTest(self, test: unittest.TestCase) -> None:
        super().stopTest(test)
        seconds = time.monotonic() - self.began
        cpu = cpu_seconds() - self.cpu_before
        verdict = self.verdict or "failed"
        self.record(ends=test.id(), verdict=verdict, seconds=seconds, cpu=cpu)
        if self.is_stopping:
            self.stop()

    def judge(self, test: Any, verdict: str) -> None:
        """Notes how a test went, or a whole class or module that could not begin."""
        if isinstance(test, unittest.TestCase):
            self.verdict = max(self.verdict, verdict, key=VERDICTS.index)
        else:
            self.record(whole=test.id(), verdict=verdict)

    def addSuccess(self, test: unittest.TestCase) -> None:
        super().addSuccess(test)
        self.judge(test, "passed")

    def addExpectedFailure(self, test: unittest.TestCase, err: Any) -> None:
        super().addExpectedFailure(test, err)
        self.judge(test, "passed")

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        super().addSkip(test, reason)
        self.judge(test, "skipped")

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        super().addError(test, err)
        self.judge(test, "failed")

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        super().addFailure(test, err)
        self.judge(test, "failed")

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            self.judge(test, "failed")

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        super().addUnexpectedSuccess(test)
        self.judge(test, "failed")


def cpu_seconds() -> float:
    """Returns the processor time of this process and of all that it started and that have ended."""
    return sum(os.times()[:4])


def run_module(name: str, events: str, words: Sequence[str], deadline: float) -> int:
    """Runs one module in this process. Returns 0 if it passed, 1 if not."""

    def stop(*_: Any) -> None:
        Recorder.is_stopping = True
        raise Stopped

    signal.signal(STOP, stop)
    # A runner in the background of a shell, or under nohup, was started with these ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    faulthandler.dump_traceback_later(deadline)
    Recorder.path = events
    loader = unittest.TestLoader()
    loader.testNamePatterns = [f"*{word}*" for word in words] or None
    suite = loader.loadTestsFromName(name)
    with open(events, "a", encoding="utf-8") as file:
        file.write(json.dumps({"loaded": suite.countTestCases()}) + "\n")
    runner = unittest.TextTestRunner(resultclass=Recorder, warnings="default")  # type: ignore[arg-type]
    result = runner.run(suite)
    faulthandler.cancel_dump_traceback_later()
    return 0 if result.wasSuccessful() else 1


class Module:
    """A module at work, and how it ended."""

    def __init__(
        self, name: str, folder: Path, words: Sequence[str], deadline: float, quick: Path
    ) -> None:
        self.name = name
        self.is_selection = bool(words)
        self.deadline = deadline
        self.events = folder / f"{name}.events"
        self.events.touch()
        self.output = folder / f"{name}.output"
        child = ["--child", str(self.events), "--deadline", str(deadline), name]
        command = [sys.executable, "-m", TESTS.name, *child]
        for word in words:
            command += ["-k", word]
        path = os.environ.get("PATH", os.defpath)
        if name not in WITH_FFMPEG_ON_PATH:
            path = f"{quick}{os.pathsep}{path}"
        self.began = time.monotonic()
        with open(self.output, "wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=TESTS.parent,
                env={**os.environ, "PATH": path},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.seconds = 0.0
        self.passed, self.failed, self.skipped = 0, 0, 0
        self.trouble: list[str] = []  # one line for each failure
        self.cpu: dict[str, float] = {}  # seconds by test
        self.times: dict[str, float] = {}  # the same, of the clock

    def is_done(self) -> bool:
        """Tells whether the module has ended. Ends it after its deadline."""
        if self.process.poll() is None:
            if time.monotonic() - self.began <= self.deadline + 1:
                return False
            self.end()
            self.fail(f"{self.name} had not ended after {self.deadline:g} s")
        self.seconds = time.monotonic() - self.began
        self.count()
        return True

    def end(self) -> None:
        """Ends the module: by its own cleanups if it can, then with all that it started."""
        family = descendants(self.process.pid)
        with contextlib.suppress(subprocess.TimeoutExpired, ProcessLookupError):
            self.process.send_signal(STOP)
            self.process.wait(LAST_WORDS)
        for pid in {self.process.pid, *family, *descendants(self.process.pid)}:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def count(self) -> None:
        """Counts the tests. One that was loaded and has not ended has failed."""
        lines = self.events.read_text(encoding="utf-8").splitlines(keepends=True)
        events = [json.loads(line) for line in lines if line.endswith("\n")]  # none that is torn
        ends = [event for event in events if "ends" in event]
        verdicts = [event["verdict"] for event in ends]
        self.cpu = {event["ends"]: event["cpu"] for event in ends}
        self.times = {event["ends"]: event["seconds"] for event in ends}
        self.passed = verdicts.count("passed")
        self.skipped = verdicts.count("skipped")
        failures = [event for event in events if event.get("verdict") == "failed"]
        for event in failures:
            self.fail(event.get("ends") or event["whole"])
        if events and "begins" in events[-1]:
            self.trouble.append(f"{events[-1]['begins']} did not end")
        loaded = sum(event.get("loaded", 0) for event in events)
        missing = loaded - len(ends)
        is_skipped = any(event.get("verdict") == "skipped" for event in events if "whole" in event)
        code = self.process.returncode
        if missing and is_skipped and code == 0:
            self.skipped += missing
        elif missing:
            self.failed += missing
            why = f"{missing} of {loaded} tests were not run, exit code {code}"
            self.trouble.append(f"{self.name}: {why}")
        elif code != (1 if failures else 0):
            self.fail(f"{self.name} ended with exit code {code}")
        elif not loaded and not self.is_selection:
            self.fail(f"{self.name} has no tests")

    def fail(self, what: str) -> None:
        self.failed += 1
        self.trouble.append(what)

    def tell(self) -> None:
        """Prints one line if the module passed, its whole output if not."""
        counts = tally(self.passed, self.failed, self.skipped)
        if self.failed:
            print(f"\n{'=' * 30} {self.name}")
            print(self.output.read_text(encoding="utf-8", errors="replace"))
        cpu = sum(self.cpu.values())
        print(f"{self.name:<24} {self.seconds:6.1f} s {cpu:6.1f} s CPU  {counts}", flush=True)


def descendants(pid: int) -> set[int]:
    """Returns the processes that a process started, and those that they started."""
    listing = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=False
    )
    pairs = [tuple(map(int, line.split())) for line in listing.stdout.splitlines()]
    found: set[int] = set()
    parents = {pid}
    while parents:
        parents = {child for child, parent in pairs if parent in parents} - found
        found |= parents
    return found


def put_quick_ffmpeg(folder: Path) -> None:
    """Puts the build of ffmpeg that starts soonest into a folder, unless it is the one on PATH. A
    copy, as other users may not enter the folder that it is in."""
    ours = shutil.which("ffmpeg")
    builds = os.environ.get("COMPRESSION_TEST_FFMPEGS", "").split(os.pathsep)
    quickest = min(
        [build for build in (ours, *builds) if build], key=seconds_to_start, default=ours
    )
    folder.chmod(0o755)
    if quickest and quickest != ours:
        shutil.copy(quickest, folder / "ffmpeg")


def seconds_to_start(program: str) -> float:
    """Returns the processor time that a program takes to start, and infinity if it does not."""
    before = cpu_seconds()
    try:
        for _ in range(3):
            subprocess.run([program, "-version"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return math.inf
    return cpu_seconds() - before


def tally(passed: int, failed: int, skipped: int) -> str:
    counts = f"{passed} passed, {failed} failed"
    return f"{counts}, {skipped} skipped" if skipped else counts


def remembered() -> dict[str, float]:
    """Returns the seconds that each module took last time, as far as they are known."""
    try:
        known = json.loads(TIMES.read_text(encoding="utf-8"))
        return {str(name): float(seconds) for name, seconds in known.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def remember(modules: Sequence[Module]) -> None:
    known = {**remembered(), **{module.name: round(module.seconds, 1) for module in modules}}
    with contextlib.suppress(OSError):
        staged = TIMES.with_name(f"{TIMES.name}.{os.getpid()}")
        staged.write_text(json.dumps(known, indent=1, sort_keys=True), encoding="utf-8")
        staged.replace(TIMES)


def slowest_first() -> list[str]:
    """Returns every test module. One that is new stands before the others, the largest first."""
    known = remembered()
    guessed = {name: 60.0 - place for place, name in enumerate(SLOWEST_MODULES)}
    usual = DEADLINE if known else 0.0
    paths = sorted(TESTS.glob("test_*.py"), key=lambda path: -path.stat().st_size)
    names = [path.stem for path in paths]
    return sorted(names, key=lambda name: -known.get(name, guessed.get(name, usual)))


def chosen(words: Sequence[str]) -> list[str]:
    """Returns the modules to run. A word may be `proof`, `test_proof`, `tests.test_proof` or a path."""
    names = slowest_first()
    wanted = set()
    for word in words:
        stem = Path(word).name
        stem = stem[: -len(".py")] if stem.endswith(".py") else stem
        stem = stem.rsplit(".", maxsplit=1)[-1]
        name = stem if stem.startswith("test_") else f"test_{stem}"
        if name not in names:
            raise SystemExit(f"There is no module {name} in {TESTS}.")
        wanted.add(name)
    return [name for name in names if name in wanted or not words]


@contextlib.contextmanager
def signals_as_interrupts() -> Iterator[None]:
    """Makes SIGTERM and SIGHUP act like Ctrl-C."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = {each: signal.signal(each, interrupt) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def run_all(names: Sequence[str], jobs: int, start: Callable[[str], Module]) -> list[Module]:
    """Runs the modules, so many at a time. Prints each as it ends."""
    waiting = list(names)
    at_work: list[Module] = []
    done: list[Module] = []
    try:
        while waiting or at_work:
            while waiting and len(at_work) < jobs:
                at_work.append(start(waiting.pop(0)))
            time.sleep(0.02)
            for module in [each for each in at_work if each.is_done()]:
                at_work.remove(module)
                done.append(module)
                if module.passed or module.failed or module.skipped:
                    module.tell()
    finally:
        for module in at_work:
            module.end()
    return done


def summary(modules: Sequence[Module], seconds: float) -> int:
    """Prints what was slow and what failed, and last the counts. Returns the exit code."""
    print(f"\n{seconds:.1f} s, {cpu_seconds():.1f} s of CPU.")
    cpu = {name: spent for module in modules for name, spent in module.cpu.items()}
    print("The tests that take most of the CPU:")
    for name in sorted(cpu, key=lambda name: -cpu[name])[:SLOWEST]:
        print(f"{cpu[name]:6.1f} s  {name}")
    waited = {name: spent for module in modules for name, spent in module.times.items()}
    print("The tests that take longest:")
    for name in sorted(waited, key=lambda name: -waited[name])[:SLOWEST]:
        print(f"{waited[name]:6.1f} s  {name}")
    failures = [trouble for module in modules for trouble in module.trouble]
    if failures:
        print("\nFailed:")
    for trouble in failures:
        print(f"  {trouble}")
    passed = sum(module.passed for module in modules)
    failed = sum(module.failed for module in modules)
    skipped = sum(module.skipped for module in modules)
    if not passed and not failed:
        print("\nNo test ran.")
    print(tally(passed, failed, skipped), flush=True)
    if failed:
        return 1
    return 0 if passed else 2


def main(words: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests", description="Runs the tests.")
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="such as proof; default: all")
    parser.add_argument("-k", action="append", default=[], metavar="WORD", help="tests so named")
    more = (os.cpu_count() or 1) + 2  # as many a test waits
    parser.add_argument("-j", type=int, default=more, metavar="N", help="at a time")
    parser.add_argument("--deadline", type=float, default=DEADLINE, help="seconds for a module")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args(words)
    if asked.child:
        name = f"{TESTS.name}.{asked.modules[0]}"
        return run_module(name, asked.child, asked.k, asked.deadline)
    if asked.j < 1:
        parser.error("-j must be at least 1")
    began = time.monotonic()
    try:
        names = chosen(asked.modules)
    except SystemExit as error:
        parser.error(str(error))
    place = tempfile.TemporaryDirectory(prefix="tests-")
    place_of_ffmpeg = tempfile.TemporaryDirectory(prefix="tests-")
    with place as folder, place_of_ffmpeg as quick, signals_as_interrupts():
        try:
            put_quick_ffmpeg(Path(quick))
            modules = run_all(
                names,
                asked.j,
                lambda name: Module(name, Path(folder), asked.k, asked.deadline, Path(quick)),
            )
        except KeyboardInterrupt:
            print("\nInterrupted.", file=sys.stderr)
            return 128 + signal.SIGINT
        if not asked.k:
            remember(modules)
        return summary(modules, time.monotonic() - began)


if __name__ == "__main__":
    sys.exit(main())
