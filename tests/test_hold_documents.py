"""Documents that cannot be read or edited, indexes of every shape, and what a large one takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import unittest
from typing import Any, Callable
from unittest import mock

import compression_service as service
from compression_service import File, Past, Take
from tests.base import PROJECT, LibraryCase
from tests.test_hold_names import Case

NAMES_A = {"id": "S", "chunks": [{"file": "a.webm"}]}
ENCODINGS = ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be")


class NotReadable(Case):
    """A document that cannot be read may name anything in its folder."""

    def setUp(self) -> None:
        super().setUp()
        self.add("d/a.webm"), self.add("d/other.webm"), self.add("e/a.webm")
        self.add("e/x.json", {"id": "E", "audio": "a.webm"})

    def assert_all_kept(self, path: str) -> None:
        kept = self.kept()
        self.assertEqual(set(kept), {"a", "other"})
        for sentence in kept.values():
            self.assertTrue(sentence.startswith(f"{path} cannot be read: "), sentence)
        self.assertEqual(self.kept("e"), {}, "another folder is no concern of it")

    def test_a_link_and_a_fifo(self) -> None:
        path = self.root / "d/session.json"
        makers: tuple[Callable[[], object], ...] = (
            lambda: path.symlink_to(self.add("e/real.json", NAMES_A)),
            lambda: path.symlink_to("nowhere"),
            lambda: os.mkfifo(path),
        )
        for make in makers:
            make()
            self.assert_all_kept("d/session.json")
            path.unlink()
        self.assertEqual(self.kept(), {})

    def test_an_error_of_the_disk_and_a_file_that_is_too_large(self) -> None:
        path = self.add("d/session.json", NAMES_A)
        os.truncate(path, service.LARGEST_JSON + 1)
        self.assert_all_kept("d/session.json")
        path.write_text(json.dumps(NAMES_A))
        really = service.read_regular

        def fails(asked: str) -> bytes:
            if asked == str(path):
                raise OSError(5, "Input/output error", asked)
            return really(asked)

        with mock.patch.object(service, "read_regular", fails):
            self.assert_all_kept("d/session.json")

    def test_an_encoding_that_json_does_not_have(self) -> None:
        self.add("d/session.json", json.dumps({"who": "Jörg"}, ensure_ascii=False).encode("cp1252"))
        self.assert_all_kept("d/session.json")

    def test_every_other_encoding_is_read_for_names_and_keeps_those(self) -> None:
        self.add("d/a.webm").rename(self.root / "d/Köln.webm")
        for encoding in ENCODINGS:
            text = json.dumps({"chunks": [{"file": "köln.webm"}]}, ensure_ascii=False)
            self.add("d/session.json", text.encode(encoding))
            kept = self.kept()
            self.assertEqual(set(kept), {"Köln"}, encoding)
            self.assertTrue(kept["Köln"].startswith("d/session.json: "))
        self.add("d/session.json", text.encode("utf-8-sig"))
        self.assertEqual(self.kept(), {})

    def test_a_sentence_on_a_document_begins_with_its_path_below_the_library(self) -> None:
        for content, why in (
            (b'{"id": 1, "id": 2, "f": "a.webm"}', "it has the key id twice"),
            (b'{"a.webm": 1}', "it has a.webm as a key"),
            (b'{"f": "a.webm"', "it cannot be parsed"),
            (b'{"f": "a.webm"} x', "it has something behind its end"),
        ):
            self.add("d/session.json", content)
            kept = self.kept()
            self.assertEqual(set(kept), {"a"}, content)
            self.assertTrue(kept["a"].startswith(f"d/session.json: {why}"), kept)
        for content in (
            b"{'f': 'a.webm', 'g': 'x.webm'}",
            b"file: a.webm",
            b"{f:a.webm, g:x.webm}",
        ):
            self.add("d/session.json", content)
            self.assertEqual(set(self.kept()), {"a"}, content)
        self.add("d/session.json", {**NAMES_A, "compression_policy": {"keeep": True}})
        flaws = {each.policy.flaw for each in self.recordings() if each.policy.flaw}
        self.assertRegex(flaws.pop(), r"^d/session\.json: .*keeep")


class Rests(LibraryCase):
    def test_a_folder_is_taken_up_again_once_its_document_can_be_read(self) -> None:
        self.add("chunk_0", "d/a.webm")
        real = self.add_json("meta.json", NAMES_A)
        link = self.library / "d/session.json"
        link.symlink_to(real)
        ran = self.run_cli("--json")
        self.assertEqual(ran.code, 0, ran.err)
        self.assert_kept(ran, "d/a.webm", "d/session.json cannot be read")
        again = self.run_cli("--json")
        self.assertEqual((again.code, again.outcomes), (0, {}))
        self.assertNotIn("session.json", again.err)
        times = os.lstat(link).st_mtime_ns
        link.unlink()
        real.rename(link)
        os.utime(link, ns=(times, times))
        self.assertEqual(self.run_cli().code, 0)
        self.assert_compressed("d/a.webm")
        self.assertEqual(self.read_json("d/session.json")["chunks"][0]["file"], "a.opus")


def compressed(stem: str, size: int = 400) -> Take:
    name = os.path.basename(stem)
    past = Past("compressed", mtime_ns=5, first_size=1000, suffix=".opus", size=size)
    return Take(stem, (), (File(f"{name}.opus", size, 5),), past._replace(compressed=1000.0))


class Index(unittest.TestCase):
    """Recordings A (d/a, d/b), 7 (d/c), one without an id (e/n), and A again or not (f/a)."""

    def setUp(self) -> None:
        takes = {
            name: compressed(f"d/{name}", size) for name, size in (("a", 1), ("b", 2), ("c", 4))
        }
        names = service.Names("recordings", "d", takes)
        other = {"n": compressed("e/n", 8)}
        self.recordings = [
            self.recording("d", [takes["a"], takes["b"]], names, "A"),
            self.recording("d", [takes["c"]], names, service.key_of(7)),
            self.recording("e", list(other.values()), service.Names("recordings", "e", other)),
        ]

    def recording(
        self, folder: str, takes: list[Take], names: service.Names, id_: str = ""
    ) -> service.Recording:
        sidecar = service.Sidecar("x.json", id=id_)
        return service.Recording(folder, tuple(takes), (sidecar,), names=names)

    def edit(self, document: Any) -> Any:
        ids = {id_ for each in self.recordings for id_ in each.ids}
        index = service.Catalogue(self.recordings, ids)
        data = json.dumps(document).encode()
        new = service.edit_index(data, index.facts, index.meant, 15, "now")
        after = json.loads(new or data)
        self.assertIsNone(service.edit_index(new or data, index.facts, index.meant, 15, "now"))
        self.assertEqual(service.index_differs(new or data, index.facts, index.meant), [])
        return after

    def sizes(self, *entries: Any) -> list[Any]:
        after = self.edit({"recordings": list(entries)})
        sizes = [entry.get("size") for entry in after["recordings"]]
        self.assertEqual(after["total_size"], sum(size or 0 for size in sizes))
        return sizes

    def test_the_only_entry_of_an_id_gets_the_sum_and_several_each_what_they_name(self) -> None:
        self.assertEqual(self.sizes({"id": "A", "size": 9, "file": "a.webm"}), [3])
        self.assertEqual(
            self.sizes(
                {"id": "A", "file": "a.webm"},
                {"id": "A", "file": "d/b.webm", "size": 9},
                {"id": "A", "size": 5},
            ),
            [1, 2, 5],
        )

    def test_an_entry_without_an_id_that_names_a_file_is_that_files(self) -> None:
        self.assertEqual(
            self.sizes({"file": "/x/d/A.webm"}, {"f": ["d/b.webm", "e/n.webm"]}), [1, 10]
        )
        self.assertEqual(self.sizes({"id": "no sidecar says it", "file": "e/n.webm"}), [8])

    def test_a_number_is_an_id_and_another_than_the_same_text(self) -> None:
        self.assertEqual(self.sizes({"id": 7, "size": 9}, {"id": "7", "size": 9}), [4, 9])

    def test_what_is_not_here_keeps_what_it_says_and_counts(self) -> None:
        gone = {"id": "gone", "size": 70, "compressed": False, "file": "d/gone.webm"}
        mentions = {"id": "also gone", "size": 5, "next": "d/a.webm"}
        after = self.edit({"recordings": [gone, mentions, {"file": "nowhere.webm", "size": 1}]})
        self.assertEqual(after["recordings"][:2], [gone, {**mentions, "next": "d/a.opus"}])
        self.assertEqual(after["total_size"], 76)

    def test_names_are_renamed_wherever_they_stand(self) -> None:
        entry = {"id": "A", "cover": {"a": ["a.webm", "/recordings/d/B.webm", "c/a.webm"]}}
        after = self.edit({"recordings": [entry], "latest": ["e/n.webm", "n.webm", "d/a.webm"]})
        self.assertEqual(after["latest"], ["e/n.opus", "n.webm", "d/a.opus"])
        self.assertEqual(
            after["recordings"][0]["cover"], {"a": ["a.opus", "/recordings/d/b.opus", "c/a.webm"]}
        )

    def test_where_an_id_stands_in_two_folders_a_bare_name_is_data(self) -> None:
        takes = {"a": compressed("f/a", 16)}
        names = service.Names("recordings", "f", takes)
        self.recordings.append(self.recording("f", [takes["a"]], names, "A"))
        after = self.edit({"recordings": [{"id": "A", "files": ["a.webm", "f/a.webm"]}]})
        self.assertEqual(after["recordings"][0]["files"], ["a.webm", "f/a.opus"])
        self.assertEqual(after["recordings"][0]["size"], 19)

    def test_a_string_that_fits_two_folders_always_calls_a_file_that_exists(self) -> None:
        for folder in ("x/day", "y/day"):
            takes = {"t": compressed(f"{folder}/t")}
            names = service.Names("recordings", folder, takes)
            self.recordings.append(self.recording(folder, [takes["t"]], names, folder))
        entries = [
            {"id": "x/day", "file": "day/t.webm"},
            {"id": "y/day", "file": "y/day/t.webm"},
            {"id": "none", "next": "day/t.webm"},
        ]
        named = [
            list(entry.values())[1] for entry in self.edit({"recordings": entries})["recordings"]
        ]
        self.assertEqual(named, ["day/t.opus", "y/day/t.opus", "day/t.opus"])
        waiting = Take("y/day/t", (File("t.webm", 9, 5),))
        self.recordings[-1] = self.recordings[-1]._replace(takes=(waiting,))
        named = [
            list(entry.values())[1] for entry in self.edit({"recordings": entries})["recordings"]
        ]
        self.assertEqual(named, ["day/t.opus", "y/day/t.webm", "day/t.webm"])

    def test_a_thousand_folders_of_one_name_take_as_long_as_of_a_thousand_names(self) -> None:
        seconds = []
        for end in ("audio", "{}"):
            stems = [f"{number}/{end.format(number)}/t" for number in range(1000)]
            takes = [compressed(stem) for stem in stems]
            self.recordings = [
                self.recording(
                    take.folder, [take], service.Names("recordings", take.folder, {"t": take})
                )
                for take in takes
            ]
            begun = time.process_time()
            self.edit({"recordings": [{"file": f"{stem}.webm"} for stem in stems]})
            seconds.append(time.process_time() - begun)
        self.assertLess(seconds[0], 4 * seconds[1])

    def test_any_other_index_is_a_flaw(self) -> None:
        documents: tuple[Any, ...] = (
            {"items": [{"id": "A"}]}, {}, [], {"recordings": {"A": {}}}, {"recordings": None},
            {"recordings": [{"id": "A"}, 5]}, {"recordings": [{}]}, {"recordings": [{"id": ""}]},
            {"recordings": [{"id": "A", "size": "9"}]}, {"recordings": [{"id": True}]},
            {"recordings": [{"id": "A", "size": None}]}, {"recordings": [{"text": "a.webm"}]},
        )  # fmt: skip
        for document in documents:
            with self.assertRaises(service.Flaw, msg=document):
                self.edit(document)


class OtherIndexes(LibraryCase):
    def test_an_index_of_another_shape_is_left_alone_and_told_once_a_run(self) -> None:
        self.add("chunk_0", "d/a.webm")
        path = self.add_json("index.json", {"items": [{"id": "A", "size": 9}], "total_size": 9})
        before = path.read_bytes()
        ran = self.run_cli()
        self.assertEqual(
            (ran.code, ran.out.count("index.json: it has no list of recordings")), (0, 1)
        )
        self.assertEqual(path.read_bytes(), before)
        self.assert_compressed("d/a.webm")
        os.utime(path)
        self.assertNotIn("index.json", self.run_cli().out, "told where nothing was to change")


# Its peak of memory beyond what the program itself takes, in bytes, for reading and rewriting one.
MEASURE = """
import os, resource, sys
import compression_service as service
from tests.test_hold_documents import compressed

def peak():
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

begun = peak()
library = service.Library(sys.argv[1])
for recording in service.resolve_recordings(library.folder("d")):
    after = {take.stem: compressed(take.stem) for take in recording.takes}
    for path, edit in service.edits(library, recording, after):
        service.rewrite(library.path(path), edit, service.Staging(library), True)
print(peak() - begun)
"""


class Large(Case):
    SIZE = 8 << 20

    def made(self, kind: str) -> str:
        chunk = json.dumps(
            {"file": "a.webm", "segments": [{"words": [{"w": "x"}] * 9, "text": "y"}]}
        )
        parts = {
            "chunks": chunk, "zeros": "0", "texts": '"ab"', "objects": '{"a": {}}',
            "escapes": '"\\n\\u00e4\\ud83d\\ude00\\\\"',
        }  # fmt: skip
        if kind == "keys":
            members = (f'"k{number}": {number}' for number in range(self.SIZE // 16))
            return "{" + ",".join(members) + "}"
        if kind == "members":
            return "0, " + ",".join(f'"k{number}": 0' for number in range(self.SIZE // 16))
        if kind == "text":
            return '"' + "ä\\n😀" * (self.SIZE // 8) + '"'
        return "[" + ",".join([parts[kind]] * (self.SIZE // (len(parts[kind]) + 1))) + "]"

    def test_a_document_takes_at_most_four_times_its_size(self) -> None:
        for kind in ("chunks", "zeros", "texts", "objects", "escapes", "keys", "members", "text"):
            self.add("d/a.webm")
            member = "chunks" if kind == "chunks" else "other"
            text = '{"id": 1, "first": "a.webm", "%s": %s, "last": "d/a.webm"}'
            path = self.add("d/a.json", (text % (member, self.made(kind))).encode())
            before = path.read_text()
            command = [sys.executable, "-c", MEASURE, str(self.root)]
            done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
            # Beside it: the interpreter's own, and what is scanned at once.
            self.assertLess(int(done.stdout), 4 * self.SIZE + 20 * service.AT_ONCE, kind)
            after = path.read_text()
            same = before.replace("a.webm", "a.opus")[:-1]
            self.assertTrue(after.startswith(same), kind)
            path.unlink()
            path.with_name("a.json.bak").unlink()

    def test_what_is_broken_in_a_large_one_is_a_flaw(self) -> None:
        filler = ", ".join(['"xyz"'] * (self.SIZE // 32))
        for text in (
            '{"a": [%s]', '{"a": [%s}}', '{"a": [%s]}]', '{"a": [%s]}}', '{"a": [%s], "b": "c}', '{"a": [%s]} x',
            '{"b" "a.webm", "a": [%s]}', "[" * 2000 + '"a", %s',
        ):  # fmt: skip
            with self.assertRaises(service.Flaw, msg=text):
                document = service.JsonText((text % filler).encode())
                document.members(document.root, ("a",))

    def test_a_deep_one_is_told_and_no_traceback(self) -> None:
        self.add("d/a.webm")
        for depth in (200_000, 2_000_000):
            self.add("d/a.json", b'{"f": "a.webm", "x": ' + b"[" * depth + b"]" * depth + b"}")
            self.assertIn("nested too deeply", self.kept()["a"])


if __name__ == "__main__":
    unittest.main()
