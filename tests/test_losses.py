"""No copy goes missing unnoticed: what is missing, damaged, moved, back, or deleted by its owner."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import tempfile
import unittest
import unittest.mock
from pathlib import Path
from typing import Any

from tests import base
from tests.base import DAY, FFMPEG, LONG_AGO, LibraryCase, Ran, service, sidecar

NAMES = tuple(f"d/{letter}" for letter in "abc")


@functools.lru_cache(maxsize=None)
def compressed_library() -> Path:
    """Three recordings with sidecar and index entry, compressed in a run; made once."""
    case = LibraryCase()
    case.setUp()
    for number, name in enumerate(NAMES):
        case.add(f"chunk_{number % 2}", f"{name}.webm", LONG_AGO + 60 * number)
        case.add_json(f"{name}.json", sidecar(name, [f"{name[2:]}.webm"]))
        case.add_to_index(base.index_entry(name, 1))
    ran = case.run_cli()
    assert ran.code == 0, ran.err
    unittest.addModuleCleanup(case.doCleanups)
    unittest.addModuleCleanup(compressed_library.cache_clear)
    return case.library


class LossCase(LibraryCase):
    def setUp(self) -> None:
        super().setUp()
        shutil.copytree(compressed_library(), self.library, dirs_exist_ok=True, symlinks=True)
        # The other folder has other times of its documents, as after a restore of all.
        self.documents = {
            path: path.read_bytes()
            for path in (*self.library.rglob("*.json"),)
        }

    def copy(self, name: str = "a") -> Path:
        return self.library / f"d/{name}.opus"

    def lost(self, ran: Ran) -> dict[str, str]:
        return {
            path: told["reason"]
            for path, told in ran.outcomes.items()
            if told["action"] == "lost"
        }

    def run_json(self, code: int, *words: str) -> Ran:
        ran = self.run_cli("--json", *words)
        self.assertEqual(ran.code, code, ran.out + ran.err)
        return ran

    def assert_lost(self, *words: str, name: str = "a") -> None:
        """The run reports it, the next one counts it, and documents stay as they were."""
        ran = self.run_json(1)
        self.assertEqual(list(self.lost(ran)), [f"d/{name}.opus"])
        for word in words:
            self.assertIn(word, self.lost(ran)[f"d/{name}.opus"])
        ran = self.run_json(0)
        self.assertEqual((self.lost(ran), ran.summary["lost"]), ({}, 1))
        self.assertIn("still missing: 1", ran.summary["message"])
        for path, data in self.documents.items():
            self.assertEqual(path.read_bytes(), data, path)

    def assert_sound(self) -> Ran:
        ran = self.run_json(0)
        self.assertEqual(ran.summary["lost"], 0)
        return ran


class Lost(LossCase):
    def test_a_missing_copy_is_reported_once_and_then_counted(self) -> None:
        self.copy().unlink()
        self.assert_lost("missing", "deleted on")
        text = (self.folder / "logs/compression.log").read_text()
        self.assertIn("lost           d/a.opus", text)

    def test_stats_page_and_doctor_name_it(self) -> None:
        self.copy().unlink()
        self.run_json(1)
        self.assertIn("d/a.opus", self.run_cli("stats").out)
        (lost,) = [each for each in json.loads(self.run_cli("stats", "--json").out)["kept"] if each["action"] == "lost"]
        self.assertEqual(lost["paths"], ["d/a.opus"])
        page = self.folder / "page.html"
        self.run_cli("stats", "--html", str(page))
        self.assertIn("d/a.opus", page.read_text())
        self.assertIn("d/a.opus", self.run_cli("doctor").out)
        self.copy().write_bytes((compressed_library() / "d/a.opus").read_bytes())
        os.utime(self.copy(), (LONG_AGO, LONG_AGO))
        self.assertNotIn("d/a.opus", self.run_cli("doctor").out)

    def test_one_that_was_cut_is_lost(self) -> None:
        data = self.copy().read_bytes()
        for length in (0, 100, len(data) // 2, len(data) - 1):
            with self.subTest(length):
                self.copy().write_bytes(data[:length])
                self.assert_lost("damaged")
                self.copy().write_bytes(data)
                self.assertIn("d/a.opus is back", self.run_cli().out)
                self.assert_sound()

    def test_another_recordings_copy_in_its_place_is_no_copy(self) -> None:
        shutil.copy2(self.copy("c"), self.copy())
        self.assert_lost("the bytes of d/c")

    def test_one_that_another_replaced_is_lost_and_its_bytes_are_named(self) -> None:
        self.copy().replace(self.copy("c"))
        ran = self.run_json(1)
        self.assertEqual(set(self.lost(ran)), {"d/a.opus", "d/c.opus"})
        self.assertIn("its bytes are in d/c.opus", self.lost(ran)["d/a.opus"])

    def test_a_folder_in_its_place_is_no_copy(self) -> None:
        self.copy().unlink()
        self.copy().mkdir()
        self.assert_lost("missing")

    def test_a_suffix_in_capitals_is_told(self) -> None:
        self.copy().rename(self.copy().with_suffix(".OPUS"))
        self.assert_lost("its bytes are in d/a.OPUS")
        self.copy().with_suffix(".OPUS").rename(self.copy())
        self.assertIn("d/a.opus is back", self.run_cli().out)

    def test_a_folder_that_is_gone_is_noticed_by_the_index(self) -> None:
        (self.library / "d").rename(self.folder / "away")
        ran = self.run_json(1)
        self.assertEqual(set(self.lost(ran)), {f"{name}.opus" for name in NAMES})
        self.assertEqual(self.run_json(0).summary["lost"], 3)
        (self.folder / "away").rename(self.library / "d")
        self.assert_sound()

    def test_a_dry_run_names_it_and_writes_nothing(self) -> None:
        self.copy().unlink()
        before = self.history().read_bytes()
        self.assertEqual(list(self.lost(self.run_json(1, "-n"))), ["d/a.opus"])
        self.assertEqual(self.history().read_bytes(), before)

    def test_one_that_cannot_be_read_is_not_lost_but_reported(self) -> None:
        os.utime(self.copy())
        shown = "self.witness(path)"
        case = self

        class Unreadable(service.Library):  # as on a disk that fails: root may read anything
            def witness(self, path: str, stop: Any = None) -> Any:
                if path == str(case.copy()):
                    raise OSError(5, "Input/output error", path)
                return super().witness(path, stop)

        with unittest.mock.patch.object(service, "Library", Unreadable):
            ran = self.run_json(1)
        self.assertEqual((self.lost(ran), ran.summary["lost"]), ({}, 0), shown)
        self.assertIn("d/a.opus", ran.err)
        self.assert_sound()


if __name__ == "__main__":
    unittest.main()
