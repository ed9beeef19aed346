"""The same outcome under old and new builds of ffmpeg.

COMPRESSION_TEST_FFMPEGS lists further builds, separated by colons; .ci/run installs a 4.1 and a 9.0 and sets it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.base import LibraryCase
from tests.test_whole_run import COMPRESSED, KEPT

BUILDS = [build for build in os.environ.get("COMPRESSION_TEST_FFMPEGS", "").split(":") if build]


class Versions(LibraryCase):
    def test_every_build_compresses_and_keeps_the_same_recordings_and_writes_the_same_sizes(
        self,
    ) -> None:
        if os.environ.get("CI"):
            self.assertGreaterEqual(len(BUILDS), 2, "CI must bring an old and a new ffmpeg")
        # In batches, and with more cores than recordings, where each goes through three processes.
        sizes = [self.outcomes(build, jobs) for build in [*BUILDS, ""] for jobs in ("1", "64")]
        for found in sizes:
            self.assertEqual(
                {name for name, size in found.items() if size},
                {f"{name}.webm" for name in COMPRESSED},
            )
            self.assertEqual(
                {name for name, size in found.items() if not size},
                {f"{name}.webm" for name in KEPT},
            )
            for name, size in found.items():
                if size:
                    self.assertAlmostEqual(size / (sizes[0][name] or 1), 1, delta=0.03, msg=name)

    def outcomes(self, build: str, jobs: str) -> dict[str, int]:
        env = dict(os.environ)
        if build:
            tools = self.folder / f"tools-{abs(hash(build))}"
            if not tools.exists():
                tools.mkdir()
                (tools / "ffmpeg").symlink_to(Path(build).resolve())
            env["PATH"] = f"{tools}:{env['PATH']}"
        shutil.rmtree(self.library)
        self.library.mkdir()
        for name in [*COMPRESSED, *KEPT]:
            self.add(name, f"{name}.webm")
        ran = self.run_cli("--json", "--retry", "-j", jobs, env=env)
        self.assertEqual(ran.code, 0, ran.out + ran.err)
        self.add("chunk_0", "other.webm")
        if jobs == "1":
            words = ("--format", "m4a", "--bitrate", "64k", "--only", "other.webm")
            other = self.run_cli("--json", "--retry", *words, env=env)
            self.assertEqual(other.summary["compressed"], 1, other.out + other.err)
        return {path: line["compressed_size"] for path, line in ran.outcomes.items()}
