"""What the master index must say, whatever its shape."""

from __future__ import annotations

import json
import os
import time
import unittest
from typing import Any, Optional

import compression_service as service
from compression_service import File, Take
from tests.base import LibraryCase, index, index_entry
from tests.test_documents import FACTS, FLAWED, ODD, copied


class Entries(unittest.TestCase):
    """Recordings A (d/a, d/b), 7 (d/c), one without an id (e/n), and A again or not (f/a)."""

    def setUp(self) -> None:
        takes = {
            name: copied(f"d/{name}", size=size) for name, size in (("a", 1), ("b", 2), ("c", 4))
        }
        names = service.Names("recordings", "d", takes)
        other = {"n": copied("e/n", size=8)}
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

    def test_a_name_with_an_escape_is_a_name(self) -> None:
        text = rb'{"recordings": [{"id": "A", "file": "d/a\u002ewebm"}]}'
        index = service.Catalogue(self.recordings, {"A"})
        edited = service.edit_index(text, index.facts, index.meant, 15, "now") or b""
        self.assertEqual(json.loads(edited)["recordings"][0]["file"], "d/a.opus")

    def test_members_that_say_no_already_stay(self) -> None:
        entry = {"id": "A", "file": "a.webm", "archived": False, "audio_deleted": None}
        (after,) = self.edit({"recordings": [entry]})["recordings"]
        self.assertEqual((after["archived"], after["audio_deleted"]), (False, None))

    def test_names_are_renamed_wherever_they_stand(self) -> None:
        entry = {"id": "A", "cover": {"a": ["a.webm", "/recordings/d/B.webm", "c/a.webm"]}}
        after = self.edit({"recordings": [entry], "latest": ["e/n.webm", "n.webm", "d/a.webm"]})
        self.assertEqual(after["latest"], ["e/n.opus", "n.webm", "d/a.opus"])
        self.assertEqual(
            after["recordings"][0]["cover"], {"a": ["a.opus", "/recordings/d/b.opus", "c/a.webm"]}
        )

    def test_where_an_id_stands_in_two_folders_a_bare_name_is_data(self) -> None:
        takes = {"a": copied("f/a", size=16)}
        names = service.Names("recordings", "f", takes)
        self.recordings.append(self.recording("f", [takes["a"]], names, "A"))
        after = self.edit({"recordings": [{"id": "A", "files": ["a.webm", "f/a.webm"]}]})
        self.assertEqual(after["recordings"][0]["files"], ["a.webm", "f/a.opus"])
        self.assertEqual(after["recordings"][0]["size"], 19)

    def test_a_string_that_fits_two_folders_always_calls_a_file_that_exists(self) -> None:
        for folder in ("x/day", "y/day"):
            takes = {"t": copied(f"{folder}/t")}
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
            takes = [copied(stem) for stem in stems]
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


class Index(unittest.TestCase):
    INDEX = {
        "recordings": [
            {"id": "A", "file": "d/a-1.webm", "compressed": False, "size": 1000},
            {"id": "B", "compressed": False, "size": 50, "audio": "a-1.webm"},
            {"id": 1, "size": 7},
        ],
        "total_recordings": 2,
        "total_size": 1050,
        "compressed_size": 0,
        "last_updated": "then",
    }

    def edit(self, data: bytes, facts: Any, copies: int = 400) -> Any:
        return service.edit_index(data, facts, self.meant, copies, "now")

    def meant(self, id_: str, text: str) -> Any:
        take = copied("d/a-1")
        found = service.Names("recordings", "d", {"a-1": take}).meant(text, {take.stem: take})
        return (None, found[0][1]) if id_ == "A" and found else None

    def test_the_entry_and_the_totals_follow_and_nothing_else(self) -> None:
        data = json.dumps(self.INDEX).encode()
        facts = {"A": service.facts_of([copied("d/a-1")]), "Z": service.facts_of([copied("d/z")])}
        expected = data.replace(
            b'"d/a-1.webm", "compressed": false, "size": 1000',
            b'"d/a-1.opus", "compressed": true, "size": 400',
        )
        expected = expected.replace(
            b'"total_size": 1050, "compressed_size": 0',
            b'"total_size": 457, "compressed_size": 400',
        )
        expected = expected.replace(b'"then"', b'"now"')
        missed = ["what the recording A is", "how files are called now"]
        self.assertEqual(service.index_differs(data, facts, self.meant), missed)
        self.assertEqual(self.edit(data, facts), expected)
        self.assertEqual(service.index_differs(expected, facts, self.meant), [])
        self.assertIsNone(self.edit(expected, facts))

    def test_an_index_that_is_no_object_is_a_flaw(self) -> None:
        for data in (b"[]", b"{", b'{"recordings": [], "recordings": []}'):
            with self.assertRaises(service.Flaw):
                self.edit(data, {})


class IndexAsText(LibraryCase):
    """The index is edited as text: whatever its style, only what changes is touched."""

    DATE = "2026-01-31T02:00:00Z"

    def updated(self, text: str, **sizes: int) -> Optional[str]:
        """The index with the entries of these ids compressed to so many bytes, and copies of 600 bytes in the library."""
        facts = {id_: FACTS._replace(on_disk=size) for id_, size in sizes.items()}
        found = service.edit_index(text.encode(), facts, lambda id_, name: None, 600, self.DATE)
        return found.decode() if found is not None else None

    def test_every_byte_that_need_not_change_stays(self) -> None:
        text = (
            '{ "recordings":[\r\n\t{"id" : "\\u0061", "size": 1000.0,"note":"gr\u00fc\u00df \\"{[,:\\\\", "compressed": false},'
            '\n{"id":"b","size":1E3, "more": [{"id": "a", "size": 5}]}],"of_the_recorder":[1e5, {}], "total_size": 0\n,'
            '"compressed_size":null, "last_updated" : "x" }\n\n'
        )
        expected = (
            text.replace("1000.0", "600")
            .replace("false", "true")
            .replace('"total_size": 0', '"total_size": 1600')
        )
        expected = expected.replace("null", "600").replace('"x"', f'"{self.DATE}"')
        self.assertEqual(self.updated(text, a=600), expected)

    def test_it_says_what_the_same_document_says_when_changed_as_objects(self) -> None:
        entries = [index_entry(f"2025-10-27T{number}", 100 + number) for number in range(50)]
        del entries[3]["size"], entries[4]["compressed"]
        document = index([*entries[:20], {"id": 7}, *entries[20:]])
        del document["last_updated"], document["compressed_size"]
        sizes = {f"2025-10-27T{number}": number for number in range(3, 50, 7)}
        for style in ({}, {"indent": 2}, {"indent": "\t"}, {"separators": (",", ":")}):
            written = self.updated(json.dumps(document, **style), **sizes)
            assert written
            expected = json.loads(json.dumps(document))
            for entry in expected["recordings"]:
                if entry.get("id") in sizes:
                    entry.update(compressed=True, size=sizes[entry["id"]])
            total = sum(entry.get("size", 0) for entry in expected["recordings"])
            expected.update(total_size=total, compressed_size=600, last_updated=self.DATE)
            self.assertEqual(json.loads(written), expected)
            self.assertIsNone(self.updated(written, **sizes))

    def test_an_index_without_recordings_gets_its_sums(self) -> None:
        written = self.updated(' {"recordings": []}')
        assert written
        expected = {"recordings": [], "total_size": 0, "compressed_size": 600}
        self.assertEqual(json.loads(written), {**expected, "last_updated": self.DATE})

    def test_what_is_no_sound_json_is_refused(self) -> None:
        cut = '{"recordings": [{"id": "a"}, 1], "b": 2}'
        flawed = [cut[:length].encode() for length in range(len(cut))]
        flawed += [ODD[name] for name in FLAWED if name != "twice"]
        flawed += [
            b'{"recordings": [1,]}',
            b'{"recordings": [,1]}',
            b'{"recordings": [1 2]}',
            b'{"a": 1,}',
            b'{"a" 1}',
            b"{1: 1}",
            b'{"recordings": [], "recordings": []}',
            b'{"recordings": [{"id": "a", "id": "a"}]}',
            b"{} {}",
            b"[]",
        ]
        for text in flawed:
            with self.assertRaises(service.Flaw, msg=text):
                service.edit_index(text, {"a": FACTS}, lambda id_, name: None, 1, self.DATE)


if __name__ == "__main__":
    unittest.main()
