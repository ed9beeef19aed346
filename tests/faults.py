"""What the tests of faults share: the program with other constants, what is left of it, strace, and deeds only root may do."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import unittest
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import compression_service as service
from tests.base import PROJECT, LibraryCase

PROMPT = 60.0  # seconds, within which whatever must end has ended; stand-ins hang ten times as long
LINUX = sys.platform == "linux"
STRACE = shutil.which("strace") or ""
ROOT = [] if os.geteuid() == 0 else ["sudo", "-n"]


class HastyClock:
    """A clock that runs a thousand times faster while a stand-in hangs. So no test waits for a
    deadline, and none ends a tool that is only slow. A stand-in says so in a file, by its number."""

    def __init__(self, hung: str) -> None:
        self.hung = Path(hung)
        self.last = time.monotonic()
        self.gained = 0.0

    def hangs(self) -> list[int]:
        """Returns the numbers of all processes that said they would hang."""
        text = self.hung.read_text(encoding="utf-8") if self.hung.exists() else ""
        return [int(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def __call__(self) -> float:
        now = time.monotonic()
        if any(is_there(pid) for pid in self.hangs()):
            self.gained += 1000 * (now - self.last)
        self.last = now
        return now + self.gained


def is_there(pid: int) -> bool:
    """Tells whether a process exists, if only as a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class FaultCase(LibraryCase):
    """A library whose program may be run with other constants, and must leave no process behind."""

    driver: Optional[Path] = None
    changes = ""

    def drive(self, body: str) -> None:
        """From now on, run the program with `body` executed first; it finds the module as `program`."""
        self.changes += body + "\n"
        self.driver = self.folder / "driver.py"
        self.driver.write_text(
            f"import sys, time\nsys.path.insert(0, {str(PROJECT)!r})\nsys.dont_write_bytecode = True\n"
            f"import compression_service as program\n{self.changes}sys.exit(program.main(sys.argv[1:]))\n"
        )

    def command(self, *arguments: str, python: str = sys.executable) -> list[str]:
        words = super().command(*arguments, python=python)
        return [words[0], str(self.driver), *words[2:]] if self.driver else words

    def play_program(self, words: list[str]) -> int:
        if self.driver:
            exec(self.changes, {"program": service, "sys": sys, "time": time})
        return super().play_program(words)

    def hasten_deadlines(self) -> str:
        """Lets the program have a HastyClock from now on. Returns the path of its file."""
        hung = str(self.folder / "hung")
        self.drive(f"from tests.faults import HastyClock\nprogram.monotonic = HastyClock({hung!r})")
        return hung

    def start(
        self, *arguments: str, env: Optional[dict[str, str]] = None
    ) -> subprocess.Popen[bytes]:
        """Start the program and go on; it is killed at the end of the test if need be."""
        words, pipe, silent = self.command(*arguments), subprocess.PIPE, subprocess.DEVNULL
        process = subprocess.Popen(
            words, stdin=silent, stdout=pipe, stderr=pipe, cwd="/", env=env, start_new_session=True
        )
        self.addCleanup(self.reap, process)
        return process

    def reap(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.communicate()

    def processes(self) -> list[str]:
        """Everything that runs on account of this test, as it calls itself."""
        listing = subprocess.run(
            ["ps", "-A", "-ww", "-o", "pid=,stat=,args="], capture_output=True, check=True
        ).stdout
        lines = listing.decode("utf-8", "replace").splitlines()
        return [line for line in lines if str(self.folder) in line and line.split()[1][0] != "Z"]

    def wait_for(self, sign: Path, seconds: float = PROMPT) -> None:
        """Wait for a stand-in to write that it is at work."""
        deadline = time.monotonic() + seconds
        while not sign.exists():
            self.assertLess(time.monotonic(), deadline, f"{sign.name} never came")
            time.sleep(0.02)

    def assert_nothing_runs(self) -> None:
        deadline = time.monotonic() + PROMPT
        while left := self.processes():
            self.assertLess(time.monotonic(), deadline, f"still running: {left}")
            time.sleep(0.05)

    def snapshot(self) -> dict[str, str]:
        """Every file of the library with a digest of its content, whose differences unittest can show in less than minutes."""
        return {
            path: hashlib.sha256(content).hexdigest()[:16] for path, content in self.files().items()
        }

    def log(self) -> str:
        path = self.folder / "logs" / "compression.log"
        return path.read_text(encoding="utf-8", errors="surrogateescape") if path.exists() else ""

    def as_root(self, *command: str) -> bool:
        """Whether a command worked that only root may give."""
        silent = subprocess.DEVNULL
        return (
            LINUX
            and subprocess.run(
                [*ROOT, *command], stdin=silent, stdout=silent, stderr=silent, check=False
            ).returncode
            == 0
        )

    def mount(self, folder: Path, *options: str) -> bool:
        """Mount something on a folder until the end of the test; False where that is not permitted."""
        if not self.as_root("mount", *options, str(folder)):
            return False
        self.addCleanup(self.as_root, "umount", "-l", str(folder))
        return True

    def cannot(self, what: str) -> None:
        """Skip a test that this machine cannot play; in CI every one must be played."""
        if os.environ.get("CI"):
            self.fail(f"{what} is not possible here, and CI must play every fault")
        self.skipTest(f"{what} is not possible here: it takes root on Linux")

    def strace(self, options: Sequence[str], *arguments: str) -> tuple[int, str, str]:
        """Run the program under strace. Returns its exit code, standard output and error."""
        command = [STRACE, "-f", "-qq", *options, *self.command(*arguments)]
        done = subprocess.run(
            command,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            cwd="/",
            timeout=600,
            check=False,
        )
        return (
            done.returncode,
            done.stdout.decode("utf-8", "replace"),
            done.stderr.decode("utf-8", "replace"),
        )


needs_strace = unittest.skipUnless(
    STRACE or (LINUX and os.environ.get("CI")), "strace is not installed"
)


def control_characters(text: str) -> list[str]:
    """Whatever in it would do more to a terminal than print lines."""
    return re.findall("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
