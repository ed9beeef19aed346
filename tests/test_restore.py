"""Second thoughts: a kept original takes its copy's place again, and the records are as they were."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import unittest
from pathlib import Path
from typing import Optional

import compression_service as service
from tests import standins
from tests.base import LibraryCase, Ran
from tests.faults import FaultCase, needs_strace


class RestoreCase(LibraryCase):
    """A recording of two chunks, compressed with its originals kept. That is done once, and each
    test begins with a copy of the library."""

    ready: Optional[Path] = None

    @classmethod
    def tearDownClass(cls) -> None:
        if cls.ready:
            shutil.rmtree(cls.ready)

    def setUp(self) -> None:
        super().setUp()
        self.configure(delete_originals=False)
        self.originals = self.add_session()
        self.before = self.files()
        if not self.ready:
            self.assertEqual(self.run_cli().code, 0)
            ready = Path(tempfile.mkdtemp(prefix="compression-test-"))
            shutil.copytree(self.library, ready / "library")
            type(self).ready = ready
        shutil.rmtree(self.library)
        shutil.copytree(f"{self.ready}/library", self.library)

    def restore(self, *paths: object, code: int = 0) -> Ran:
        ran = self.run_cli("restore", *map(str, paths))
        self.assertEqual(ran.code, code, ran.out + ran.err)
        return ran

    def assert_as_before(self) -> None:
        """But for `original_size`, which stays, and the sidecars' backups."""
        now = self.files()
        backups = {name for name in now if name.endswith(".bak")}
        self.assertEqual(sorted(now.keys() - backups), sorted(self.before))
        for name, content in self.before.items():
            self.assertEqual(now.get(name + ".bak", content), content, name)
            if name.endswith(".webm"):
                self.assertEqual(now[name], content, name)
            elif name != "index.json":
                known = {**json.loads(now[name]), "original_size": 1024000}
                self.assertEqual(known, json.loads(content), name)
        entry = self.read_json("index.json")["recordings"][0]
        size = sum(path.stat().st_size for path in self.originals)
        self.assertEqual((entry["compressed"], entry["size"]), (False, size))
        self.assertEqual(
            (
                self.read_json("index.json")["total_size"],
                self.read_json("index.json")["compressed_size"],
            ),
            (size, 0),
        )


class Undo(RestoreCase):
    def test_a_sidecar_brings_back_all_of_its_recording(self) -> None:
        self.restore(self.originals[0].with_suffix(".json"))
        self.assert_as_before()
        self.assert_no_leftovers()

    def test_an_original_or_a_copy_brings_back_all_of_its_recording(self) -> None:
        for path in (self.originals[0], self.originals[1].with_suffix(".opus")):
            self.restore(path)
            self.assert_as_before()
            self.assertEqual(self.run_cli("check").code, 0)
            self.assertEqual(self.run_cli("--retry").code, 0)

    def test_a_path_may_be_given_from_the_library(self) -> None:
        self.restore("2025-10-27/14-30-45-chunk-1.webm", "2025-10-27/14-30-45-chunk-2.webm")
        self.assert_as_before()

    def test_what_is_brought_back_stays_until_it_is_asked_for(self) -> None:
        self.restore(self.originals[0].with_suffix(".json"))
        self.configure(target_bitrate="64k")
        self.assertEqual(self.run_cli("--json").summary["compressed"], 0)
        self.assert_as_before()
        self.assertEqual(self.run_cli("--retry", "--json").summary["compressed"], 2)

    def test_what_others_have_changed_since_stays(self) -> None:
        path = self.originals[0].with_suffix(".json")
        document = json.loads(path.read_text())
        document["full_transcription"], document["new"] = "mended by hand", [1]
        path.write_text(json.dumps(document, indent=2, ensure_ascii=False))
        self.restore(path)
        after = json.loads(path.read_text())
        self.assertEqual((after["full_transcription"], after["new"]), ("mended by hand", [1]))
        self.assertEqual(after["chunks"][0]["file"], self.originals[0].name)
        self.assertEqual((after["compressed"], "compression_ratio" in after), (False, False))

    def test_the_last_run_that_did_something_is_undone_and_no_other(self) -> None:
        self.add("chunk_0", "later/a.webm")
        for _ in range(2):  # the second does nothing
            self.assertEqual(self.run_cli().code, 0)
        self.restore("--last-run")
        self.assertFalse((self.library / "later/a.opus").exists())
        self.assertTrue(self.originals[0].with_suffix(".opus").exists())

    def test_a_past_that_a_later_line_repeats_is_not_undone_in_its_place(self) -> None:
        """As after a restore that failed, or a copy that was recorded anew."""
        lines = []
        for stem, when, said in (("d/a", 1e9, 1e9), ("d/b", 2e9, 2e9), ("d/a", 1e9, 3e9)):
            past = {"action": "archived", "time": when}
            about = {"path": f"{stem}.webm", "take": stem, "date": service.iso(said)}
            lines.append(json.dumps({"type": "recording", **about, "past": past}) + "\n")
        self.history().write_text("".join(lines))
        found = service.done_last(service.Library(str(self.library)))
        self.assertEqual(found, [f"{self.library}/d/b.webm"])

    def test_all_files_of_a_folder_as_a_shell_names_them_bring_it_back_once(self) -> None:
        paths = sorted(self.originals[0].parent.iterdir())
        self.assertIn(".bak", {path.suffix for path in paths})
        self.assertEqual(self.restore(*paths).err, "")
        self.assert_as_before()

    def test_it_is_done_once(self) -> None:
        self.restore(self.originals[0].with_suffix(".json"))
        before = self.files()
        ran = self.restore(self.originals[0].with_suffix(".json"))
        self.assertIn("restore: Nothing to do.", ran.out)
        self.assertEqual(self.files(), before)

    def test_all_files_of_a_recording_may_be_named_as_by_a_shell(self) -> None:
        names = (path.name for path in (self.library / "2025-10-27").iterdir())
        ran = self.restore(*(f"2025-10-27/{name}" for name in names if not name.endswith(".bak")))
        self.assertNotIn("no recording", ran.err)
        self.assert_as_before()

    def test_it_is_done_while_runs_are_paused(self) -> None:
        self.run_cli("pause")
        self.restore("2025-10-27")
        self.run_cli("resume")
        self.assert_as_before()

    def test_a_recording_without_sidecar_comes_back_too(self) -> None:
        path = self.add("chunk_0", "alone.webm")
        self.assertEqual(self.run_cli().code, 0)
        self.restore(path)
        self.assertEqual([each.name for each in self.library.glob("alone*")], ["alone.webm"])


class NoHarm(RestoreCase):
    def test_a_sidecar_that_lists_no_chunks_brings_back_its_own_recording_only(self) -> None:
        for name in ("rec.webm", "rec.1.webm"):
            self.add("chunk_0", name)
        self.add_json("rec.1.json", {"id": "B"})
        self.assertEqual(self.run_cli().code, 0)
        self.restore("rec.1.json")
        self.assertEqual(sorted(path.name for path in self.library.glob("rec*.opus")), ["rec.opus"])

    def test_a_dry_run_says_what_would_come_back_and_changes_nothing(self) -> None:
        self.configure(dry_run=True)
        before = self.files()
        ran = self.restore(self.originals[0])
        self.assertEqual(ran.out.count("would-restore"), 2)
        self.assertIn("restore: Dry run, nothing was changed: 2 to restore.", ran.out)
        self.assertEqual(self.files(), before)

    def test_what_was_mistyped_is_told_and_is_no_run_that_failed(self) -> None:
        ran = self.run_cli("restore", "typo.webm")
        self.assertEqual((ran.code, ran.out), (1, "restore: Nothing was done.\n"))
        self.assertIn("typo.webm: no recording of", ran.err)
        ran = self.run_cli("doctor")
        self.assertEqual(ran.code, 0, ran.out)
        self.assertIn("ok       Last run", ran.out)

    def test_of_a_folder_only_what_is_done_is_told(self) -> None:
        self.add("chunk_0", "young.webm", age=time.time())
        ran = self.restore(self.library)
        self.assertNotIn("young", ran.out)
        self.assertIn("restore: 2 restored.", ran.out)

    def test_a_copy_whose_original_is_gone_is_not_touched(self) -> None:
        self.originals[0].unlink()
        before = self.files()
        ran = self.restore(self.originals[0].with_suffix(".opus"), code=1)
        self.assertIn("only its copy is left", ran.out)
        after = self.files()
        for files in (before, after):  # whose size is now that of what is here
            del files["index.json"]
        self.assertEqual(after, before)

    def test_an_original_that_is_damaged_or_another_comes_back_and_its_copy_stays(self) -> None:
        for content in (
            self.originals[0].read_bytes()[:-3000],
            self.originals[1].read_bytes(),
            b"",
        ):
            self.originals[0].write_bytes(content)
            ran = self.restore(self.originals[0])
            self.assertIn("chunk-1.opus stays, because it was not proven: ", ran.out)
            self.assertTrue(self.originals[0].with_suffix(".opus").exists())
            self.assertEqual(self.originals[0].read_bytes(), content)
            self.assertEqual(self.run_cli().code, 0)
            self.assertTrue(self.originals[0].with_suffix(".opus").exists(), "taken by a run")

    def test_names_are_turned_back_also_to_an_original_that_was_replaced(self) -> None:
        self.originals[1].write_bytes(self.originals[0].read_bytes())
        self.restore(self.originals[1])
        self.assertTrue(self.originals[1].with_suffix(".opus").exists())
        for path in self.originals:
            document = json.loads(path.with_suffix(".json").read_text())
            names = [chunk["file"] for chunk in document["chunks"]]
            self.assertEqual(names, [each.name for each in self.originals])

    def test_a_path_outside_or_of_nothing_is_told(self) -> None:
        outside = self.folder / "other.webm"
        outside.write_bytes(b"x")
        (self.library / "link").symlink_to(self.folder)
        for path in (
            outside,
            self.library / "link/other.webm",
            "nothing.webm",
            "no/such/folder.webm",
            "../config.json",
        ):
            with self.subTest(path=path):
                self.assertIn(str(path), self.restore(path, code=1).err)
        self.assertEqual(outside.read_bytes(), b"x")

    def test_a_broken_sidecar_keeps_everything(self) -> None:
        path = self.originals[0].with_suffix(".json")
        path.write_text("{")
        os.utime(path, (1, 1))
        before = self.files()
        for given in (path, self.originals[0]):
            self.restore(given, code=1)
            self.assertEqual(self.files(), before)

    def test_it_says_what_it_needs(self) -> None:
        self.assertEqual(self.run_cli("restore").code, 2)


class Notification(LibraryCase):
    def heard(self) -> Path:
        return self.folder / "heard.json"

    def test_a_run_that_did_something_tells_the_users_command(self) -> None:
        self.configure(notify_command="cat > heard.json")
        self.run_cli()
        self.assertFalse(self.heard().exists(), "told of nothing")
        self.add("chunk_0", "a.webm")
        self.run_cli("--dry-run")
        self.assertFalse(self.heard().exists(), "told of a dry run")
        self.assertEqual(self.run_cli().code, 0)
        summary = json.loads(self.heard().read_text())
        self.assertEqual(
            (summary["type"], summary["compressed"], summary["exit_code"]), ("summary", 1, 0)
        )

    def test_a_run_that_failed_tells_it_with_its_exit_code(self) -> None:
        self.configure(notify_command="cat > heard.json")
        self.add("chunk_0", "a.webm")
        self.run_cli(env=self.stand_in(standins.exit_code, code=1))
        summary = json.loads(self.heard().read_text())
        self.assertEqual(summary["exit_code"], 4)
        self.assertIn("does not work", summary["message"])

    def test_its_failure_is_logged_and_nothing_more(self) -> None:
        for command in (
            "echo no such service >&2; exit 3",
            "sleep 600 & exit 0",
            "/no/such/command",
            "yes >&2",
        ):
            self.add("chunk_0", "a.webm")
            (self.library / "a.opus").unlink(missing_ok=True)
            self.configure(notify_command=command)
            ran = self.run_cli()
            self.assertEqual((ran.code, ran.err), (0, ""))
        log = (self.folder / "logs/compression.log").read_text()
        self.assertIn("no such service", log)
        self.assertEqual(log.count("notify_command failed"), 3)

    def test_a_command_that_is_none_is_named(self) -> None:
        for value in ("", 3, ["a"]):
            self.configure(notify_command=value)
            self.assertIn("notify_command", self.run_cli().err)


class NothingByAccident(LibraryCase):
    def test_an_empty_word_is_an_error_and_not_the_whole_library(self) -> None:
        self.configure(delete_originals=False)
        self.add("chunk_0", "a.webm")
        self.assertEqual(self.run_cli().code, 0)
        before = self.files()
        for words in (["restore", ""], ["restore", "a.webm", ""], ["--only", ""], ["--only", "a.webm", "--only", ""]):  # fmt: skip
            ran = self.run_cli(*words)
            self.assertEqual(ran.code, 2, ran.out + ran.err)
            self.assertIn("not empty", ran.err)
        for word in (" ", "/", "..", "../", "./", "\t"):
            self.run_cli("restore", word, cwd=str(self.folder))
        self.assertEqual(self.files(), before)

    def test_a_folder_is_not_the_recording_beside_it(self) -> None:
        self.configure(delete_originals=False)
        self.add("chunk_0", "d/14-30.webm")
        self.add("chunk_1", "d/14-30/original_audio.webm")
        self.assertEqual(self.run_cli().code, 0)
        for words, paths in (
            (["d/14-30"], {"d/14-30/original_audio.webm"}),
            (["d/14-30/"], {"d/14-30/original_audio.webm"}),
            (["d/14-30.txt"], set()),
            (["d/14-30.OPUS"], {"d/14-30.webm"}),
        ):
            ran = self.run_cli("restore", "-n", "--json", *words)
            self.assertEqual(set(ran.outcomes), paths, words)


class KeptOriginals(FaultCase):
    """Recordings with their originals kept beside their copies."""

    def setUp(self) -> None:
        super().setUp()
        self.configure(delete_originals=False)
        self.original = self.add("chunk_0", "d/a.webm")
        self.add_json("d/a.json", {"id": "A", "chunks": [{"file": "a.webm"}]})
        self.assertEqual(self.run_cli("-j1").code, 0)
        self.copy = self.original.with_suffix(".opus")

    @needs_strace
    def test_an_original_is_flushed_before_its_copy_is_removed(self) -> None:
        log = self.folder / "strace.log"
        options = ["-y", "-o", str(log), "-e", "trace=fsync,fdatasync,unlink,unlinkat"]
        code, out, err = self.strace(options, "restore", "d/a.webm")
        self.assertEqual(code, 0, out + err)
        lines = log.read_text().splitlines()
        removed = [at for at, line in enumerate(lines) if "unlink" in line and "a.opus" in line]
        before = "\n".join(lines[: removed[0]])
        self.assertRegex(before, rf"sync\(\d+<{self.original}>\) += 0")
        self.assertRegex(before, rf"sync\(\d+<{self.original.parent}>\) += 0")

    def test_a_copy_that_cannot_be_removed_stays_and_the_reason_is_that(self) -> None:
        self.drive("program.is_protected = lambda path: path.endswith('.opus')")
        ran = self.run_cli("restore", "d/a.webm")
        self.assertEqual(ran.code, 0, ran.out + ran.err)
        self.assertIn("d/a.opus stays, because it was not proven: its commit would fail", ran.out)
        self.assertTrue(self.copy.exists())
        self.assertEqual(self.read_json("d/a.json")["chunks"][0]["file"], "a.webm")

    def kill_after_placing(self) -> None:
        """As a run leaves it that compresses once more and is killed before its history."""
        content, times = self.copy.read_bytes(), self.copy.stat()
        self.assertEqual(self.run_cli("restore", "d/a.webm").code, 0)
        self.assertFalse(self.copy.exists())
        self.copy.write_bytes(content)
        os.utime(self.copy, ns=(times.st_atime_ns, times.st_mtime_ns))

    def test_a_restore_that_is_finished_is_not_finished_once_more(self) -> None:
        self.kill_after_placing()
        ran = self.run_cli("--retry", "--json")
        self.assertEqual(ran.summary["restored"], 0, ran.out)
        self.assertTrue(self.copy.exists(), "undone as the rest of a restore")
        self.assertEqual(self.read_json("d/a.json")["chunks"][0]["file"], "a.opus")
        self.assertEqual(self.run_cli("check").code, 0)

    def test_a_restore_that_was_cut_short_is_finished_also_by_retry(self) -> None:
        for words in ([], ["--retry"], ["restore", "d/a.webm"]):
            with self.subTest(words):
                copy = self.folder / "library"
                shutil.copytree(self.library, copy)
                self.drive("import os\nprogram.Committer.remove_sources = lambda *_: os._exit(9)")
                self.assertEqual(self.run_cli("restore", "d/a.webm").code, 9)
                self.assertTrue(self.copy.exists())
                self.driver, self.changes = None, ""
                ran = self.run_cli(*words, "--json")
                self.assertEqual((ran.code, ran.summary["restored"]), (0, 1), ran.out + ran.err)
                self.assertFalse(self.copy.exists())
                self.assertEqual(self.run_cli("--json").summary["restored"], 0)
                shutil.rmtree(self.library)
                copy.rename(self.library)


if __name__ == "__main__":
    unittest.main()
