"""What a night needs is tried, or read, before it; run, dry run and doctor say the same of it."""

from __future__ import annotations

import os
import tempfile
import unittest
from pathlib import Path
from typing import Any
from unittest.mock import patch

import compression_service as program
from compression_service import (
    Compress,
    File,
    Library,
    NoSpaceError,
    Recording,
    Refusal,
    ServiceError,
    Take,
    Target,
    Trials,
    read_signs,
    try_commits,
)


class TestTrials(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.library = Library(folder.name)
        with self.library.lock():
            pass
        self.source = Path(folder.name, "x.webm")
        self.source.write_bytes(b"sound")
        file = File("x.webm", 5, self.source.stat().st_mtime_ns)
        take = Take("x", (file,))
        target = Target("opus", 96_000)
        recording = Recording("", (take,))
        self.work = Compress(take, target, "", file, recording=recording)

    def left(self) -> list[str]:
        return sorted(os.listdir(self.library.own("")))

    def test_a_good_library_passes_and_nothing_is_left(self) -> None:
        try_commits(self.library)
        read_signs(self.library)
        Trials(self.library).foresee(self.work)
        self.assertEqual(self.left(), ["history.jsonl", "lock"])
        self.assertEqual(self.source.read_bytes(), b"sound")

    def test_a_file_system_that_exchanges_no_names_passes_too(self) -> None:
        def replace(staged: str, final: str) -> str:
            os.replace(staged, final)
            return ""

        with patch.object(program, "exchange", replace):
            try_commits(self.library)
        self.assertEqual(self.left(), ["history.jsonl", "lock"])

    def test_what_fails_is_one_sentence_and_nothing_is_left(self) -> None:
        for number, error in ((28, NoSpaceError), (30, ServiceError)):
            failing = patch.object(program, "flush", side_effect=OSError(number, "x"))
            with failing, self.assertRaises(error) as caught:
                try_commits(self.library)
            self.assertIn(self.library.own(""), str(caught.exception))
        self.assertEqual(self.left(), ["history.jsonl", "lock"])

    @unittest.skipUnless(os.geteuid() == 0, "only root can give a file to another user")
    def test_the_owner_is_foreseen_without_writing(self) -> None:
        self.patch(patch.object(os, "geteuid", return_value=4711))
        self.patch(patch.object(os, "getegid", return_value=4711))
        self.patch(patch.object(os, "getgroups", return_value=[]))
        self.patch(patch.object(program, "has_capability", return_value=False))
        os.chown(self.source, 4712, 4712)
        os.chmod(self.source, 0o644)
        Trials(self.library).foresee(self.work)
        os.chmod(self.source, 0o600)
        with self.assertRaises(Refusal):
            Trials(self.library).foresee(self.work)

    def patch(self, patcher: Any) -> None:
        patcher.start()
        self.addCleanup(patcher.stop)
