"""Sidecars and index: what is changed, and that nothing else is."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
import unittest
from pathlib import Path
from typing import Any

from tests.base import DAY, LONG_AGO, RECORDINGS, LibraryCase, index, index_entry, sidecar
from tests.servers import ServerCase
from tests.test_documents import FLAWED, ODD


def protect(path: Path, how: str = "+i") -> None:
    subprocess.run(["chattr", how, path], check=True)


class Sidecars(LibraryCase):
    def test_all_the_ways_a_sidecar_may_speak_of_a_recording_come_out_true(self) -> None:
        one = (RECORDINGS / "chunk_0.webm").stat().st_size
        for path in (
            "whole/s-1.webm",
            "whole/s-2.webm",
            "each/e-1.webm",
            "each/e-2.webm",
            "stem/t.webm",
            "null/n.webm",
        ):
            self.add("chunk_0", path)
        self.add_json("whole/session.json", sidecar("whole", ["s-1.webm", "s-2.webm"]))
        for number in (1, 2):
            self.add_json(f"each/e-{number}.json", sidecar("each", [f"e-{number}.webm"]))
        self.add_json("stem/t.json", {"id": "stem", "unknown": [1]})
        self.add_json("null/n.json", {"id": "null", "chunks": None})
        self.add_json(
            "index.json",
            index(
                [index_entry(id_, 2 * one, 2) for id_ in ("whole", "each", "stem", "null", "other")]
            ),
        )
        self.assertEqual(self.run_cli().code, 0)
        self.assert_sidecars_true()
        copy = (self.library / "stem/t.opus").stat().st_size
        for path, count in (
            ("whole/session", 2),
            ("each/e-1", 2),
            ("each/e-2", 2),
            ("stem/t", 1),
            ("null/n", 1),
        ):
            document = self.read_json(f"{path}.json")
            self.assertEqual([document["compressed"], document["original_size"], document["compressed_size"]],
                             [True, count * one, count * copy], path)  # fmt: skip
            self.assertTrue((self.library / f"{path}.json.bak").exists())
        self.assertEqual(self.read_json("null/n.json")["chunks"], None)
        self.assertNotIn("chunks", self.read_json("stem/t.json"))
        sizes = {
            entry["id"]: (entry["compressed"], entry["size"])
            for entry in self.read_json("index.json")["recordings"]
        }
        self.assertEqual(sizes, {"whole": (True, 2 * copy), "each": (True, 2 * copy), "stem": (True, copy), "null": (True, copy),
                                 "other": (False, 2 * one)})  # fmt: skip

    def test_two_sidecars_naming_one_chunk_are_both_changed(self) -> None:
        self.add("chunk_0", "a.webm")
        self.add_json("a.json", sidecar("x", ["a.webm"]))
        self.add_json("copy-of-a.json", sidecar("x", ["a.webm"]))
        self.run_cli()
        for name in ("a.json", "copy-of-a.json"):
            self.assertEqual(self.read_json(name)["chunks"][0]["file"], "a.opus")

    def test_the_sidecar_as_it_was_before_the_first_change_is_kept_beside_it(self) -> None:
        self.add("chunk_0", "a-1.webm")
        path = self.add("chunk_1", "a-2.webm", time.time())
        before = self.add_json(
            "a.json", sidecar("x", ["a-1.webm", "a-2.webm"]), indent=1
        ).read_bytes()
        self.run_cli()
        self.assertEqual(self.read_json("a.json")["compressed"], False)
        self.assertTrue(path.exists())
        self.run_cli("--older-than", "0")
        self.assertEqual(self.read_json("a.json")["compressed"], True)
        self.assertEqual((self.library / "a.json.bak").read_bytes(), before)

    def test_a_recording_with_one_chunk_to_keep_is_compressed_once_the_others_are(self) -> None:
        self.add("chunk_0", "a-1.webm")
        self.add("ch_slice_01", "a-2.webm")
        self.add_json("a.json", sidecar("x", ["a-1.webm", "a-2.webm"]))
        self.run_cli()
        document = self.read_json("a.json")
        self.assertEqual([chunk["file"] for chunk in document["chunks"]], ["a-1.opus", "a-2.webm"])
        self.assertIs(document["compressed"], True)


class CopyThatIsGone(LibraryCase):
    """An original stands for a recording again, because its copy is not here any more."""

    def setUp(self) -> None:
        super().setUp()
        self.add("chunk_0", "d/x.webm")
        self.add_json("d/x.json", sidecar("I", ["x.webm"]))
        self.add_to_index(index_entry("I", 1))
        self.assertEqual(self.run_cli().code, 0)
        self.assertIs(self.read_json("d/x.json")["compressed"], True)
        (self.library / "d/x.opus").unlink()

    def assert_original_stands(self) -> None:
        self.assert_sidecars_true()
        document, entry = (
            self.read_json("d/x.json"),
            self.read_json("index.json")["recordings"][0],
        )
        said = (document["compressed"], document["compressed_size"], document["compression_date"])
        self.assertEqual(said, (False, None, None))
        self.assertNotIn("compression_ratio", document)
        size = (self.library / "d/x.webm").stat().st_size
        self.assertEqual((entry["compressed"], entry["size"]), (False, size))

    def test_documents_name_a_young_recording_of_its_name(self) -> None:
        self.add("chunk_1", "d/x.webm", time.time() - DAY)
        self.run_cli()
        self.assert_original_stands()
        self.run_cli("--older-than", "0")
        self.assert_compressed("d/x.webm")
        self.assert_sidecars_true()

    def test_documents_name_its_original_until_that_is_old_enough(self) -> None:
        self.add("chunk_0", "d/x.webm")
        self.run_cli("--older-than", "100000")
        self.assert_original_stands()

    def test_documents_name_the_copy_in_another_format_that_was_made_since(self) -> None:
        self.add("chunk_0", "d/x.webm")
        ran = self.run_cli("--format", "m4a", "--bitrate", "64k")
        self.assertTrue((self.library / "d/x.m4a").exists(), ran.out + ran.err)
        self.assert_sidecars_true()
        self.assertIs(self.read_json("index.json")["recordings"][0]["compressed"], True)

    def test_documents_name_a_recording_of_its_name_that_is_kept(self) -> None:
        self.add("ch_slice_01", "d/x.webm")  # a later part, which cannot be read alone
        for _ in range(2):
            self.run_cli()
            self.assert_sidecars_true()


class Runs(LibraryCase):
    def test_a_run_is_on_record_with_the_index_as_it_left_it(self) -> None:
        self.add_session(chunks=1)
        self.assertEqual(self.run_cli().code, 0)
        lines = (self.library / ".compression/history.jsonl").read_text().splitlines()
        last, index = json.loads(lines[-1]), (self.library / "index.json").read_bytes()
        self.assertEqual((last["type"], last["compressed"]), ("run", 1))
        self.assertEqual(last["index"], hashlib.sha256(index).hexdigest())
        self.assertEqual(json.loads(self.run_cli("stats", "--json").out)["runs"], [last])

    def test_an_entry_that_a_server_has_overwritten_is_true_again_after_the_next_run(self) -> None:
        self.add_session(chunks=2)
        before = (self.library / "index.json").read_bytes()
        self.run_cli()
        after = self.read_json("index.json")["recordings"]
        (self.library / "index.json").write_bytes(before)
        self.assertEqual(self.run_cli().code, 0)
        self.assertEqual(self.read_json("index.json")["recordings"], after)

    def test_names_that_a_server_has_turned_back_are_true_again_though_all_is_at_rest(self) -> None:
        self.add_session(chunks=1)
        self.add("chunk_0", "2025-10-28/a.webm")
        path = "2025-10-27/14-30-45-chunk-1.webm"
        document = self.read_json("index.json")
        document["recordings"][0]["file"] = path
        document["recordings"].append({"file": "2025-10-28/a.webm", "size": 1})
        before = self.add_json("index.json", {**document, "latest": path}).read_text()
        self.run_cli()
        sidecar = self.library / path.replace(".webm", ".json")
        os.utime(sidecar, (LONG_AGO, LONG_AGO))  # or its folder is looked into every night
        self.run_cli()
        after = self.read_json("index.json")
        self.assertEqual(after["latest"], path.replace(".webm", ".opus"))
        text = (self.library / "index.json").read_text()
        for old in (before, text.replace(".opus", ".webm")):
            (self.library / "index.json").write_text(old)
            self.assertEqual(self.run_cli().code, 0)
            now = self.read_json("index.json")
            self.assertEqual(
                (now["recordings"], now["latest"]), (after["recordings"], after["latest"])
            )

    def test_an_entry_counts_the_part_that_is_still_young_in_another_folder(self) -> None:
        self.add_session(chunks=1)
        path = "2025-10-28/00-10-00.webm"
        young = self.add("chunk_1", path, age=time.time() - 6.5 * DAY)
        self.add_json(path.replace(".webm", ".json"), sidecar("2025-10-27T14-30-45", [young.name]))
        self.assertEqual(self.run_cli().code, 0)
        (entry,) = self.read_json("index.json")["recordings"]
        copy = self.library / "2025-10-27/14-30-45-chunk-1.opus"
        self.assertEqual(entry["size"], copy.stat().st_size + young.stat().st_size)
        self.assertIs(entry["compressed"], False)

    @unittest.skipIf(os.geteuid(), "needs root")
    def test_an_index_that_names_files_and_cannot_be_written_keeps_the_originals(self) -> None:
        self.add_session(chunks=1)
        path = "2025-10-27/14-30-45-chunk-1.webm"
        for names, code in ((False, 0), (True, 1)):
            document = self.read_json("index.json")
            document["recordings"][0].update({"file": path} if names else {})
            index_path = self.add_json("index.json", document)
            protect(index_path)
            try:
                dry, ran = self.run_cli("-n", "--json"), self.run_cli("--json")
            finally:
                protect(index_path, "-i")
            self.assertEqual((dry.code, ran.code), (code, code), ran)
            self.assertEqual((self.library / path).exists(), names)
            if names:
                self.assertIn("index.json: it is immutable", ran.outcomes[path]["reason"])
                self.assertEqual(self.run_cli().code, 0)
                self.assert_compressed(path)
            self.add("chunk_0", path)
            self.history().unlink()
            self.add_json(
                path.replace(".webm", ".json"), sidecar("2025-10-27T14-30-45", [path[11:]])
            )
            (self.library / path).with_suffix(".opus").unlink()

    def test_a_sidecar_that_a_server_has_overwritten_is_true_again_after_the_next_run(self) -> None:
        self.add_session(chunks=2)
        path = self.library / "2025-10-27/14-30-45-chunk-2.json"
        before = path.read_bytes()
        self.run_cli()
        self.run_cli()
        after = path.read_bytes()
        path.write_bytes(before)
        self.assertEqual(self.run_cli().code, 0)
        self.assertEqual(json.loads(path.read_bytes()), json.loads(after))


class OddDocuments(LibraryCase):
    def test_a_sidecar_that_cannot_be_edited_keeps_its_recording_alone(self) -> None:
        for name, content in ODD.items():
            self.add("chunk_0", f"{name}/x.webm")
            self.add_bytes(content, f"{name}/x.json")
        before = self.files()
        ran = self.run_cli("--json")
        self.assertEqual(ran.code, 0, ran.err)
        for name in ODD:
            if name in FLAWED:
                self.assert_kept(ran, f"{name}/x.webm", "sidecar")
                self.assertEqual(self.files()[f"{name}/x.json"], before[f"{name}/x.json"])
            else:
                self.assert_compressed(f"{name}/x.webm")

    def test_a_broken_neighbour_does_not_hold_back_a_recording_that_another_sidecar_vouches_for(
        self,
    ) -> None:
        self.add("chunk_0", "x.webm")
        self.add_json("x.json", sidecar("x", ["x.webm"]))
        self.add_bytes(b"{", "unrelated.json")
        self.assertEqual(self.run_cli().code, 0)
        self.assert_compressed("x.webm")

    def test_names_that_lead_out_of_the_folder_are_ignored(self) -> None:
        outside = self.folder / "outside.webm"
        shutil.copy(RECORDINGS / "chunk_0.webm", outside)
        before = outside.read_bytes()
        self.add("chunk_0", "d/x.webm")
        names: list[Any] = [
            "../../outside.webm",
            str(outside),
            "",
            ".",
            "..",
            7,
            ["x.webm"],
            None,
            "x.webm",
        ]
        document = sidecar("x", ["placeholder"] * len(names))
        for chunk, name in zip(document["chunks"], names):
            chunk["file"] = name
        self.add_json("d/x.json", document)
        self.assertEqual(self.run_cli().code, 0)
        self.assertEqual(outside.read_bytes(), before)
        self.assertEqual(
            [chunk["file"] for chunk in self.read_json("d/x.json")["chunks"]],
            [*names[:-3], ["x.opus"], None, "x.opus"],
        )


class LiveServer(ServerCase):
    def test_a_whole_run_beside_a_server_that_rewrites_everything_comes_out_true(self) -> None:
        sessions = 200
        for number in range(sessions):
            self.add("ch_short_60ms", f"d/{number}.webm")
            self.add_json(f"d/{number}.json", sidecar(f"id-{number}", [f"{number}.webm"], 0.06))
        self.add_json(
            "index.json", index([index_entry(f"id-{number}", 1486) for number in range(sessions)])
        )
        self.configure(min_saving_percent=0)
        paths = [
            self.library / "index.json",
            *(self.library / f"d/{number}.json" for number in (0, 99, 199)),
        ]
        counts, stop = self.serve(paths)
        first = self.run_cli("--json")
        stop()
        self.assertEqual(
            (first.code, first.summary["compressed"]), (0, sessions), first.out[-800:] + first.err
        )
        self.assertEqual(self.run_cli().code, 0)
        self.assert_sidecars_true()
        self.assertEqual(self.run_cli("check").code, 0)
        document = self.read_json("index.json")
        self.assertEqual({entry["compressed"] for entry in document["recordings"]}, {True})
        for number, path in enumerate(paths):
            self.assertEqual(json.loads(path.read_text())["count"], counts[number], path)
