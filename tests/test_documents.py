"""What the JSON editor and the derivation of members promise, also beside a server that writes."""

from __future__ import annotations

import json
import time
import unittest
from pathlib import Path
from typing import Any, Callable, Optional
from unittest import mock

import compression_service as service
from compression_service import File, Past, Place, Take
from tests.base import LibraryCase, index, index_entry
from tests.servers import ServerCase

SIDECAR: dict[str, Any] = {
    "id": "2025-10-27T14:30:45Z",
    "duration": 145.2,
    "chunks": [
        {"file": "a-1.webm", "start": 0, "segments": [{"text": "a-1.webm", "words": ["a-1.webm"]}]},
        {"file": "a-2.webm", "start": 120, "segments": []},
    ],
    "full_transcription": "a-1.webm",
    "compressed": False,
    "original_size": 99,
    "compressed_size": None,
    "compression_date": None,
}


FACTS = service.Facts(
    states=frozenset((service.State.COMPRESSED,)),
    original_size=1000,
    compressed_size=600,
    on_disk=600,
    date=0.0,
    place=None,
)
ODD = {
    "empty": b"", "cut": b'{"chunks": [{"file": "x.webm"', "list": b"[1, 2]", "number": b"7", "twice": b'{"a": 1, "a": 2}',
    "nan": b'{"a": NaN}', "infinite": b'{"a": 1e400}', "surrogate": b'{"a": "\\ud800"}', "deep": b'{"a":' + b"[" * 100_000,
    "latin": '{"a": "ü"}'.encode("latin-1"), "exact": b'{"a": 0.12345678901234567890}', "minus": b'{"a": -0}',
    "bom": b'\xef\xbb\xbf{"a": 1}',
}  # fmt: skip
FLAWED = ("empty", "cut", "twice", "deep", "latin")


def copied(
    stem: str, first: int = 1000, size: int = 400, when: float = 1000.0, kept: bool = False
) -> Take:
    name = stem.rpartition("/")[2]
    past = Past(
        "compressed", mtime_ns=5, first_size=first, suffix=".opus", size=size, compressed=when
    )
    originals = (File(name + ".webm", first, 5),) if kept else ()
    return Take(stem, originals, (File(name + ".opus", size, 5),), past)


def waiting(stem: str, size: int = 1000) -> Take:
    return Take(stem, (File(stem.rpartition("/")[2] + ".webm", size, 5),))


def edit(document: Any, *takes: Take, facts: bool = True) -> Any:
    data = document if isinstance(document, bytes) else json.dumps(document, indent=2).encode()
    names = service.Names("recordings", "d", {take.name: take for take in takes})
    rename = service.renamer(names, takes)
    return service.edit_sidecar(data, rename, service.facts_of(takes) if facts else None)


class Sidecars(unittest.TestCase):
    def test_names_and_members_follow_the_takes_and_a_second_edit_changes_nothing(self) -> None:
        takes = copied("d/a-1"), copied("d/a-2", 3000, 600)
        new = json.loads(edit(SIDECAR, *takes))
        self.assertEqual([chunk["file"] for chunk in new["chunks"]], ["a-1.opus", "a-2.opus"])
        self.assertEqual(new["chunks"][0]["segments"], SIDECAR["chunks"][0]["segments"])
        self.assertEqual(new["full_transcription"], "a-1.webm")
        wanted: dict[str, Any] = {
            "compressed": True,
            "original_size": 4000,
            "compressed_size": 1000,
        }
        wanted.update(compression_ratio=0.25, compression_date="1970-01-01T00:16:40Z")
        self.assertEqual({key: new[key] for key in wanted}, wanted)
        self.assertIsNone(edit(edit(SIDECAR, *takes), *takes))

    def test_only_files_really_compressed_are_renamed_and_the_whole_is_not_called_compressed(
        self,
    ) -> None:
        new = json.loads(edit(SIDECAR, copied("d/a-1"), waiting("d/a-2", 7)))
        self.assertEqual([chunk["file"] for chunk in new["chunks"]], ["a-1.opus", "a-2.webm"])
        self.assertEqual((new["compressed"], new["original_size"]), (False, 1007))
        self.assertEqual(new["compressed_size"], 407)

    def test_a_missing_chunk_leaves_the_size_that_the_recorder_wrote(self) -> None:
        new = json.loads(edit(SIDECAR, copied("d/a-1"), Take("d/a-2")))
        self.assertEqual((new["compressed"], new["original_size"]), (False, 99))

    def test_original_size_is_set_once(self) -> None:
        once = edit(SIDECAR, copied("d/a-1"), waiting("d/a-2"))
        self.assertEqual(
            json.loads(edit(once, copied("d/a-1", 5), copied("d/a-2")))["original_size"], 2000
        )

    def test_restored_has_its_names_and_members_back(self) -> None:
        takes = copied("d/a-1"), copied("d/a-2", 3000, 600)
        back = [
            take._replace(
                originals=(File(take.name + ".webm", take.past.first_size, 5),),
                copies=(),
                past=take.past._replace(action="restored"),
            )
            for take in takes
        ]
        wanted = {**SIDECAR, "original_size": 4000}
        self.assertEqual(json.loads(edit(edit(SIDECAR, *takes), *back)), wanted)

    def test_archived_says_where_and_coming_back_takes_that_out(self) -> None:
        place = Place(
            "/mnt/cold/archive-of-recordings/d", "a-1.opus", 400, 5, "", 0o644, (0, 0), 9e8
        )
        here = [copied("d/a-1"), copied("d/a-2")]
        gone = [take._replace(copies=(), past=take.past._replace(place=place)) for take in here]
        first = edit(SIDECAR, *here)
        new = json.loads(edit(first, *gone))
        self.assertEqual((new["archived"], new["archive_location"]), (True, place.location))
        self.assertEqual((new["compressed"], new["compressed_size"]), (True, 800))
        self.assertEqual(edit(edit(first, *gone), *here), first)

    def test_every_other_byte_stays(self) -> None:
        odd = (
            b'\xef\xbb\xbf{\r\n\t"na\\u006de" : NaN, "twice": {"a": 1, "a": 2},\r\n\t"n": -0, '
            b'"big": 1234567890123456789012345678901234567890.10, "s": "\\ud800 \\/ \xc3\xa9",\r\n'
            b'\t"x": -Infinity, "e": 1E5, "p": "recordings\\/d\\/a-1.webm",\r\n\t"chunks": '
            b'[{"file":".\\/a-1.webm","file":"a-1.webm"}],\r\n\t"compressed":false\r\n}\r\n \n'
        )
        new = edit(odd, copied("d/a-1"))
        expected = odd.replace(b"a-1.webm", b"a-1.opus").replace(
            b'"compressed":false',
            b'"compressed":true,\r\n\t"original_size":1000,\r\n\t"compressed_size":400,'
            b'\r\n\t"compression_ratio":0.4,\r\n\t"compression_date":"1970-01-01T00:16:40Z"',
        )
        self.assertEqual(new, expected)

    def test_names_written_with_escapes_and_in_every_path_are_names(self) -> None:
        takes = (copied("d/a-1"),)
        for name in (
            "a-1.webm",
            "./a-1.webm",
            "d/a-1.webm",
            "/recordings/d/a-1.webm",
            "/d/a-1.webm",
        ):
            new = edit({"k": {"deep": [name]}}, *takes, facts=False)
            self.assertEqual(json.loads(new), {"k": {"deep": [name[:-5] + ".opus"]}}, name)
        self.assertEqual(edit(b'["a\\u002d1.webm"]', *takes), b'["a\\u002d1.opus"]')
        self.assertEqual(json.loads(edit(b'["a-1.web\\u006d"]', *takes)), ["a-1.opus"])

    def test_any_other_string_is_data(self) -> None:
        for name in (
            "http://x/d/a-1.webm",
            "../a-1.webm",
            "e/a-1.webm",
            "x/recordings/e/a-1.webm",
            "a-1.WEBM",
            "a-1.webm ",
            "a%2D1.webm",
            "//a-1.webm",
            "a-1",
            "",
            "see a-1.webm",
        ):
            take = copied("d/a-1")
            if name == "a-1.WEBM":
                take = take._replace(originals=(File("a-1.WEBM", 1, 1), File("a-1.webm", 1000, 5)))
            self.assertIsNone(edit([name], take), name)
        for key in ("id", "text", "title", "full_transcription", "transcription_preview", "words"):
            self.assertIsNone(
                edit([{key: "a-1.webm"}, {key: [{"x": "a-1.webm"}]}], copied("d/a-1"))
            )

    def test_a_name_as_a_key_and_a_doubled_key_of_the_object_itself_are_flaws(self) -> None:
        for data in (b'{"a-1.webm": 1}', b'{"chunks": [], "compressed": 1, "compressed": 2}'):
            with self.assertRaises(service.Flaw):
                edit(data, copied("d/a-1"))

    def test_every_prefix_of_a_sidecar_is_a_flaw(self) -> None:
        data = json.dumps(SIDECAR).encode()
        for length in range(len(data)):
            with self.assertRaises(service.Flaw):
                edit(data[:length], copied("d/a-1"))

    def test_what_cannot_be_parsed_is_a_flaw_and_no_traceback(self) -> None:
        for data in (
            b"",
            b"{",
            b"[" * 200_000,
            b'{"a":' * 200_000,
            b"\xff{}",
            b"{}{}",
            b"{'a': 1}",
            b"{} x",
        ):
            with self.assertRaises(service.Flaw):
                edit(data, copied("d/a-1"))

    def test_members_are_taken_out_and_added_anywhere(self) -> None:
        gone = service.GONE
        for before, values, after in (
            (b'{"a":1,"b":2,"c":3}', {"a": gone, "b": gone, "d": 4}, b'{"c":3,"d":4}'),
            (b'{"a":1,"b":2,"c":3}', {"b": gone, "c": gone, "d": 4}, b'{"a":1,"d":4}'),
            (b'{"a":1, "b":2}', {"a": gone, "b": gone}, b"{}"),
            (b'{"a":1, "b":2}', {"a": gone, "b": gone, "c": 3}, b'{"c": 3}'),
            (b"{ }", {"a": 1, "b": 2}, b'{"a": 1, "b": 2 }'),
            (b'{"a": 1}', {"b": True}, b'{"a": 1,"b": true}'),
            (b'{"a": 1\n , "b": 2}', {"c": None}, b'{"a": 1\n , "b": 2\n , "c": null}'),
            (b'{"a": 1, "b": 2}', {"b": True, "a": 1}, b'{"a": 1, "b": true}'),
        ):
            text = service.JsonText(before)
            text.set(text.root, values)
            self.assertEqual(text.edited(), after, before)

    def test_a_document_of_a_thousand_times_the_size_takes_a_thousand_times_as_long(self) -> None:
        def seconds(count: int) -> float:
            chunks = [
                {"file": f"a-{n}.webm", "segments": [{"text": "x" * 50}]} for n in range(count)
            ]
            data = json.dumps({"chunks": chunks}).encode()
            takes = [copied(f"d/a-{n}") for n in range(count)]
            begun = time.process_time()
            edit(data, *takes)
            return time.process_time() - begun

        self.assertLess(
            min(seconds(8000) for _ in range(3)), 30 * min(seconds(800) for _ in range(3))
        )


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
        self.assertEqual(service.index_differs(data, facts, self.meant), ["A"])
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


def said_by_us(*names: str) -> Callable[[bytes], Optional[bytes]]:
    """An edit that adds members to a document."""

    def edit(data: bytes) -> Optional[bytes]:
        text = service.JsonText(data)
        text.set(text.root, dict.fromkeys(names, 1))
        return text.edited()

    return edit


class BesideAServer(ServerCase):
    def rewrite(self, path: Path, *names: str) -> None:
        with service.Staging(service.Library(str(self.library))) as staging:
            service.rewrite(str(path), said_by_us(*names), staging, backup=False)

    def test_hundreds_of_edits_and_a_server_that_writes_in_place_lose_nothing_of_either(
        self,
    ) -> None:
        path = self.add_json("index.json", index([]))
        counts, stop = self.serve([path])
        # As in a run, what was said is said again where it was overwritten from an older read.
        ours = [f"ours-{number}" for number in range(300)]
        for number in range(len(ours)):
            self.rewrite(path, *ours[: number + 1])
        stop()
        self.rewrite(path, *ours)
        document = self.read_json("index.json")
        self.assertEqual(document["count"], counts[0])
        self.assertLessEqual(set(ours), document.keys())

    def test_a_half_written_document_is_waited_for(self) -> None:
        path = self.add_json("index.json", index([]))
        text = path.read_text()
        path.write_text(text[:40])
        true_sleep = time.sleep

        def finish(seconds: float) -> None:
            path.write_text(text)
            true_sleep(seconds)

        with mock.patch.object(time, "sleep", finish):
            self.rewrite(path, "ours")
        self.assertEqual(self.read_json("index.json")["ours"], 1)

    def test_a_write_that_slips_in_just_before_the_rename_survives(self) -> None:
        path = self.add_json("index.json", index([]))
        exchange = service.exchange

        def late(staged: str, target: str) -> str:
            once.stop()
            document = json.loads(path.read_text())
            path.write_text(json.dumps({**document, "theirs": 1}))
            return exchange(staged, target)

        once = mock.patch.object(service, "exchange", late)
        once.start()
        self.rewrite(path, "ours")
        document = self.read_json("index.json")
        self.assertEqual((document["ours"], document["theirs"]), (1, 1))

    def test_a_link_that_slips_in_just_before_the_rename_survives(self) -> None:
        path = self.add_json("index.json", index([]))
        exchange = service.exchange

        def late(staged: str, target: str) -> str:
            once.stop()
            path.unlink()
            path.symlink_to("theirs.json")
            return exchange(staged, target)

        once = mock.patch.object(service, "exchange", late)
        once.start()
        with self.assertRaises(OSError):
            self.rewrite(path, "ours")
        self.assertEqual(path.readlink(), Path("theirs.json"))
