"""What tests of an archive share: libraries whose recordings are old enough for one, and remotes."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import unittest
from pathlib import Path
from typing import Any

from tests.base import DAY, RECORDINGS, LibraryCase, Ran, answers
from tests.faults import PROMPT, FaultCase

OLD = time.time() - 400 * DAY
RCLONE = shutil.which("rclone")
MARK = ".compression/id"
SHORT = (RECORDINGS / "ch_short_60ms.webm").read_bytes()


class ArchiveCase(LibraryCase):
    def setUp(self) -> None:
        super().setUp()
        self.target = str(self.folder / "cold")
        self.cold = self.folder / "cold/archive-of-recordings"
        self.cold.mkdir(parents=True)
        self.put_run_on_record()
        self.configure()

    def configure(self, **settings: object) -> None:
        tiers = [{"after_days": 365, "archive": self.target}] if hasattr(self, "target") else []
        super().configure(**{"tiers": tiers, **settings})

    def add_old_session(self, chunks: int = 2) -> list[str]:
        paths = self.add_session(chunks=chunks)
        for path in paths:
            os.utime(path, (OLD, OLD))
        return [str(path.relative_to(self.library).with_suffix(".opus")) for path in paths]

    def assert_archived(self, *copies: str, cold: str = "") -> None:
        for copy in copies:
            self.assertFalse((self.library / copy).exists(), f"{copy} is still here")
            self.assertTrue((Path(cold or self.cold) / copy).exists(), f"{copy} is not there")

    def run_well(self, *words: str, code: int = 0) -> Ran:
        """Runs the command, which ends with this code. A run that is to archive goes after one
        that compresses, as a file makes one move a run."""
        self.compress_first(words)
        ran = self.run_cli(*words)
        self.assertEqual(ran.code, code, ran.out + ran.err)
        return ran

    def compress_first(self, words: tuple[str, ...], **options: Any) -> None:
        waiting = [
            each for each in self.library.rglob("*.webm") if not each.with_suffix(".opus").exists()
        ]
        is_run = not words or (words[0].startswith("-") and words[0] != "--dry-run")
        if is_run and waiting:
            self.run_cli(**options)


class ShortCase(ArchiveCase, FaultCase):
    """A library of small recordings, all of them old enough for the archive."""

    def add_short(self, *paths: str) -> list[str]:
        """Adds recordings that stay as they are ("already small"), and returns their paths."""
        for path in paths:
            self.add_bytes(SHORT, path, OLD)
        return list(paths)

    def archive(self, *words: str, code: int = 0) -> Ran:
        """Runs once; what is to be archived is known to be kept before."""
        ran = self.run_cli("-j1", *words)
        self.assertEqual(ran.code, code, ran.out + ran.err)
        return ran

    def assert_here(self, *paths: str) -> None:
        for path in paths:
            self.assertTrue((self.library / path).exists(), f"{path} is not here any more")

    def settled(self, *paths: str) -> list[str]:
        """Adds recordings and lets a run without an archive look at them."""
        added = self.add_short(*paths)
        LibraryCase.configure(self, min_saving_percent=50)
        self.assertEqual(self.run_cli("-j1").code, 0)
        self.configure(min_saving_percent=50)
        return added


@unittest.skipUnless(RCLONE or os.environ.get("CI"), "rclone is not installed")
class AliasCase(ShortCase):
    """A remote that is a folder, and an rclone that plays faults: `body` has `args` and `real`."""

    def setUp(self) -> None:
        super().setUp()
        self.there = self.folder / "remote/archive-of-recordings"
        self.there.mkdir(parents=True)
        self.target = "cold:"
        self.configure(min_saving_percent=50)
        self.calls = self.folder / "calls"
        self.faulty("")

    def faulty(self, body: str) -> None:
        note = f"open({str(self.calls)!r}, 'a').write(' '.join(args) + '\\n')"
        passed_on = f"os.execv({RCLONE!r}, ['rclone', *args])"
        self.environment = {
            **self.stand_in(f"{note}\nreal = {RCLONE!r}\n{body}\n{passed_on}", "rclone"),
            "RCLONE_CONFIG": "/dev/null",
            "RCLONE_CONFIG_COLD_TYPE": "alias",
            "RCLONE_CONFIG_COLD_REMOTE": str(self.folder / "remote"),
        }

    def run_cli(self, *words: str, **options: object) -> Ran:
        return super().run_cli(*words, env=self.environment)

    def called(self, *words: str) -> list[str]:
        """The calls of rclone that hold all of these words."""
        calls = self.calls.read_text().splitlines() if self.calls.exists() else []
        return [call for call in calls if all(word in call.split() for word in words)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@unittest.skipUnless(
    RCLONE or os.environ.get("CI"), "rclone is not installed (sudo apt-get install rclone)"
)
class RemoteCase(ArchiveCase):
    """A real server on the loopback, and rclone told of it by its environment alone."""

    def serve(self, port: int, *command: str, **settings: str) -> None:
        """Start a server, and name it `cold:` to rclone."""
        server = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "RCLONE_CONFIG": "/dev/null"},
        )
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        self.environment = {
            key: value for key, value in os.environ.items() if key != "AWS_CA_BUNDLE"
        }
        self.environment |= {
            "RCLONE_CONFIG": "/dev/null",
            **{f"RCLONE_CONFIG_COLD_{key}": value for key, value in settings.items()},
        }
        self.assertTrue(answers(port, PROMPT), f"{command[0]} does not answer")

    def run_remote(self, *words: str, code: int = 0) -> Ran:
        """As `run_well`, with the remote."""
        self.compress_first(words, env=self.environment)
        ran = self.run_cli(*words, env=self.environment)
        self.assertEqual(ran.code, code, ran.out + ran.err)
        return ran
