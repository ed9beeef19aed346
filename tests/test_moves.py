"""A move loses nothing, whatever happens beside it: the library as its owner sees it, after runs
that were cut short, servers that write meanwhile, archives that are not what they were."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tempfile
import time
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import compression_service as service

RECORDINGS = Path(__file__).resolve().parent / "recordings"
NAMES = ("a-chunk-1", "a-chunk-2")
SIDECAR = {"id": "x", "chunks": [{"file": f"{name}.webm"} for name in NAMES]}


class MoveCase(unittest.TestCase):
    """One recording of two chunks with a sidecar and an index entry, 40 days old."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.top = Path(folder.name)
        self.library = self.top / "recordings"
        self.folder = self.library / "2025-10-27"
        self.folder.mkdir(parents=True)
        sources = sorted(RECORDINGS.glob("chunk_*.webm"))[:2]
        self.originals = {}
        for name, source in zip(NAMES, sources):
            path = self.folder / f"{name}.webm"
            shutil.copy(source, path)
            os.utime(path, (time.time() - 40 * service.DAY,) * 2)
            self.originals[path.name] = path.read_bytes()
        self.sidecar = self.folder / "a-chunk-1.json"
        self.sidecar.write_text(json.dumps(SIDECAR))
        self.index = self.library / service.INDEX_NAME
        self.index.write_text('{"recordings": [{"id": "x", "size": 1}], "total_size": 1}')
        self.settings: dict[str, Any] = {"recordings_dir": "recordings"}
        self.cold = self.top / "cold"

    def run_cli(self, *words: str) -> int:
        """The exit code; what was said is in `said`."""
        config = self.top / "config.json"
        config.write_text(json.dumps(self.settings))
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = service.main([*words, "-c", str(config)])
        self.said = out.getvalue() + err.getvalue()
        return code

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())

    def said_of_it(self) -> Any:
        return json.loads(self.sidecar.read_text())

    def files_named(self) -> list[str]:
        return [chunk["file"] for chunk in self.said_of_it()["chunks"]]

    def entry(self) -> Any:
        return json.loads(self.index.read_text())["recordings"][0]

    def archive_at(self, days: int) -> None:
        (self.cold / "archive-of-recordings").mkdir(parents=True)
        own = self.library / service.OWN_FOLDER
        own.mkdir(exist_ok=True)
        with open(own / "history.jsonl", "a", encoding="ascii") as file:
            file.write(json.dumps({"type": "run", "time": time.time()}) + "\n")
        self.settings["tiers"] = [{"after_days": days, "archive": str(self.cold)}]


class TestCommit(MoveCase):
    def test_originals_go_last_and_everything_says_so(self) -> None:
        self.assertEqual(self.run_cli(), 0, self.said)
        self.assertEqual(self.files_named(), ["a-chunk-1.opus", "a-chunk-2.opus"])
        self.assertEqual(self.originals_left(), set())
        size = sum((self.folder / name).stat().st_size for name in self.files_named())
        self.assertEqual(self.said_of_it()["compressed_size"], size)
        self.assertEqual((self.entry()["compressed"], self.entry()["size"]), (True, size))

    def failing(self, name: str, error: OSError) -> Any:
        return mock.patch.object(service, name, side_effect=error)

    def just_before(self, happens: Callable[[], object]) -> Any:
        """Something that happens once, between a proof and its commit."""
        real, once = service.Committer.commit, iter([happens])

        def commit(committer: service.Committer, works: Any) -> None:
            if works:
                next(once, lambda: None)()
            real(committer, works)

        return mock.patch.object(service.Committer, "commit", commit)

    def originals_left(self) -> set[str]:
        return {name for name in self.names() if name.endswith(".webm")}

    def test_an_original_stays_while_its_sidecar_cannot_be_written(self) -> None:
        with self.failing("rewrite", PermissionError(1, "immutable")):
            self.assertEqual(self.run_cli(), 1)
        self.assertIn("sidecar cannot be written", self.said)
        self.assertEqual(self.originals_left(), set(self.originals))
        self.assertEqual(self.run_cli(), 0, self.said)
        self.assertEqual(self.files_named(), ["a-chunk-1.opus", "a-chunk-2.opus"])
        self.assertEqual(self.originals_left(), set())

    def test_an_original_stays_while_the_history_cannot_be_written(self) -> None:
        append = service.History.append

        def full(history: service.History, works: Any, now: float) -> None:
            if works:
                raise OSError(28, "No space left on device")
            append(history, works, now)

        with mock.patch.object(service.History, "append", full):
            self.assertNotEqual(self.run_cli(), 0)
        self.assertEqual(self.originals_left(), set(self.originals))

    def test_an_original_that_changed_after_its_proof_stays(self) -> None:
        path = self.folder / "a-chunk-2.webm"
        status, other = path.stat(), bytes(reversed(self.originals[path.name]))

        def swap() -> None:  # for one of the same size and time
            path.write_bytes(other)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

        with self.just_before(swap):
            self.assertEqual(self.run_cli(), 1)
        self.assertEqual(path.read_bytes(), other)
        self.assertEqual(self.files_named(), ["a-chunk-1.opus", "a-chunk-2.webm"])

    def test_a_hard_link_or_a_chmod_beside_us_is_no_failure(self) -> None:
        def back_up() -> None:
            for name in self.originals:
                os.link(self.folder / name, self.top / name)
                (self.folder / name).chmod(0o600)

        with self.just_before(back_up):
            self.assertEqual(self.run_cli(), 0, self.said)
        self.assertEqual(self.originals_left(), set())

    def test_what_its_owner_deletes_meanwhile_is_passed_over(self) -> None:
        with self.just_before((self.folder / "a-chunk-2.webm").unlink):
            self.assertEqual(self.run_cli(), 0, self.said)
        self.assertNotIn("a-chunk-2.opus", self.names())
        self.assertIn("passed over", self.said)

    def test_a_sidecar_that_comes_during_the_night_is_made_true_too(self) -> None:
        late = self.folder / "late.json"
        with self.just_before(lambda: late.write_text(json.dumps(SIDECAR))):
            self.assertEqual(self.run_cli(), 0, self.said)
        self.assertIn("a-chunk-2.opus", late.read_text())

    def test_what_a_server_wrote_from_an_older_read_is_mended_by_the_next_run(self) -> None:
        before, index = self.sidecar.read_text(), self.index.read_text()
        self.run_cli()
        self.sidecar.write_text(before)
        self.index.write_text(index)
        self.assertEqual(self.run_cli(), 0, self.said)
        self.assertEqual(self.files_named(), ["a-chunk-1.opus", "a-chunk-2.opus"])
        self.assertTrue(self.entry()["compressed"])


class TestArchive(MoveCase):
    def test_a_recording_goes_and_comes_back_as_it_was(self) -> None:
        self.run_cli()
        copies = {name: (self.folder / name).read_bytes() for name in self.files_named()}
        self.archive_at(20)
        self.assertEqual(self.run_cli(), 0, self.said)
        self.assertEqual(self.names(), ["a-chunk-1.json", "a-chunk-1.json.bak"])
        self.assertEqual((self.said_of_it()["archived"], self.entry()["size"]), (True, 0))
        self.assertEqual(self.run_cli("check"), 0, self.said)
        self.assertEqual(self.run_cli("restore", str(self.folder)), 0, self.said)
        for name, data in copies.items():
            self.assertEqual((self.folder / name).read_bytes(), data)
        self.assertNotIn("archived", self.said_of_it())
        self.assertEqual(self.run_cli(), 0)
        self.assertEqual(self.files_named(), list(copies))

    def test_nothing_goes_to_a_disk_that_is_not_mounted(self) -> None:
        self.run_cli()
        self.archive_at(20)
        (self.cold / "archive-of-recordings").rmdir()
        self.assertNotEqual(self.run_cli(), 0)
        self.assertIn("mounted", self.said)
        self.assertEqual(list(self.cold.iterdir()), [])
        self.assertIn("a-chunk-1.opus", self.names())

    def test_another_file_in_its_place_there_keeps_the_whole_recording_here(self) -> None:
        self.run_cli()
        self.archive_at(20)
        there = self.cold / "archive-of-recordings" / self.folder.name / "a-chunk-2.opus"
        there.parent.mkdir()
        there.write_bytes(b"another's")
        self.assertEqual(self.run_cli(), 1)
        self.assertEqual(there.read_bytes(), b"another's")
        self.assertTrue({"a-chunk-1.opus", "a-chunk-2.opus"} <= set(self.names()))

    def test_what_does_not_come_back_as_it_went_changes_nothing(self) -> None:
        self.run_cli()
        self.archive_at(20)
        self.run_cli()
        before = self.names(), self.sidecar.read_bytes()
        there = self.cold / "archive-of-recordings" / self.folder.name / "a-chunk-2.opus"
        there.chmod(0o644)
        there.write_bytes(b"rotten" + there.read_bytes()[6:])
        self.assertEqual(self.run_cli("restore", str(self.sidecar)), 1)
        self.assertIn("not the file that went there", self.said)
        self.assertEqual((self.names(), self.sidecar.read_bytes()), before)
        there.unlink()
        self.assertEqual(self.run_cli("check"), 1)
        self.assertIn("not in the archive", self.said)

    def test_without_its_history_it_is_found_by_its_name(self) -> None:
        self.run_cli()
        self.archive_at(20)
        self.run_cli()
        (self.library / service.OWN_FOLDER / "history.jsonl").unlink()
        self.assertEqual(self.run_cli("restore", str(self.sidecar)), 0, self.said)
        self.assertTrue({"a-chunk-1.opus", "a-chunk-2.opus"} <= set(self.names()))

    def test_nothing_is_fetched_from_outside_the_configured_archive(self) -> None:
        self.run_cli()
        self.archive_at(20)
        self.run_cli()
        self.cold.rename(self.top / "warm")
        self.archive_at(20)
        self.settings["tiers"][0]["archive"] = str(self.top / "other")
        (self.top / "other" / "archive-of-recordings").mkdir(parents=True)
        self.assertEqual(self.run_cli("restore", str(self.sidecar)), 1)
        self.assertNotIn("a-chunk-1.opus", self.names())


class TestRestore(MoveCase):
    def test_kept_originals_take_their_places_again(self) -> None:
        self.run_cli("--keep-originals")
        self.assertEqual(self.run_cli("restore", "--last-run"), 0, self.said)
        for name, data in self.originals.items():
            self.assertEqual((self.folder / name).read_bytes(), data)
        self.assertEqual(self.files_named(), list(self.originals))
        self.assertFalse(self.said_of_it()["compressed"])
        self.assertEqual(self.run_cli(), 0)
        self.assertEqual(self.files_named(), list(self.originals))

    def test_a_copy_that_is_not_its_originals_stays(self) -> None:
        self.run_cli("--keep-originals")
        first, second = (self.folder / f"{name}.opus" for name in NAMES)
        shutil.copy2(first, second)
        self.assertEqual(self.run_cli("restore", str(second)), 0, self.said)
        self.assertIn("a-chunk-2.opus stays", self.said)
        self.assertEqual(self.files_named(), list(self.originals))
        self.assertTrue(second.exists() and not first.exists())

    def test_without_an_original_for_every_chunk_nothing_changes(self) -> None:
        self.run_cli("--keep-originals")
        (self.folder / "a-chunk-2.webm").unlink()
        before = self.names(), self.sidecar.read_bytes()
        self.assertEqual(self.run_cli("restore", str(self.folder)), 1)
        self.assertIn("a-chunk-2", self.said)
        self.assertEqual((self.names(), self.sidecar.read_bytes()), before)


class TestCheck(MoveCase):
    def test_a_sound_library_is_all_sound_and_each_damage_is_told(self) -> None:
        self.run_cli()
        self.assertEqual(self.run_cli("check"), 0, self.said)
        copy = self.folder / "a-chunk-1.opus"
        sound = copy.read_bytes()
        document, index = self.sidecar.read_text(), self.index.read_text()
        damages = {
            copy: sound[:9_000] + b"\0" * 99 + sound[9_099:],
            self.sidecar: document.replace("a-chunk-1.opus", "a-chunk-1.webm").encode(),
            self.index: index.replace('"compressed": true', '"compressed": false').encode(),
        }
        for path, data in damages.items():
            before = path.read_bytes()
            path.chmod(0o644)
            with self.subTest(path.name):
                path.write_bytes(data)
                self.assertEqual(self.run_cli("check"), 1)
                self.assertIn(path.name, self.said)
            path.write_bytes(before)


if __name__ == "__main__":
    unittest.main()
