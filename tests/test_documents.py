"""What the JSON editor and the derivation of members promise, also beside a server that writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import unittest
from pathlib import Path
from typing import Any, Callable, Optional
from unittest import mock

import compression_service as service
from compression_service import File, Past, Place, Take
from tests.base import PROJECT, LibraryCase, index
from tests.servers import ServerCase
from tests.test_names import NamesCase

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
    return Take(stem, originals, (File(name + ".opus", size, 5),), past=past)


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


def said_by_us(*names: str) -> Callable[[bytes], Optional[bytes]]:
    """An edit that adds members to a document."""

    def edit(data: bytes) -> Optional[bytes]:
        text = service.JsonText(data)
        text.set(text.root, dict.fromkeys(names, 1))
        return text.edited()

    return edit


def archived(stem: str) -> Take:
    place = service.Place("/cold/d", stem.rpartition("/")[2] + ".opus", 400, 5, time=1000.0)
    return copied(stem)._replace(copies=(), past=copied(stem).past._replace(place=place))


class OfWhatIsArchived(unittest.TestCase):
    def test_members_about_the_archive_stay_while_a_part_of_it_is_there(self) -> None:
        away = edit(SIDECAR, archived("d/a-1"), archived("d/a-2"))
        self.assertIn(b'"archive_location": "/cold/d"', away)
        half = json.loads(edit(away, archived("d/a-1"), waiting("d/a-2")))
        self.assertEqual((half["archived"], half["archive_location"]), (True, "/cold/d"))
        back = json.loads(edit(away, copied("d/a-1"), copied("d/a-2")))
        self.assertFalse(back.keys() & set(service.ARCHIVE_MEMBERS))

    def test_audio_that_an_archive_still_has_is_not_called_deleted(self) -> None:
        """A deletion whose files could not be removed was called off."""
        document = {**SIDECAR, "audio_deleted": True, "audio_deletion_date": "2026-01-01T00:00:00Z"}
        takes = archived("d/a-1"), archived("d/a-2")
        told = json.loads(edit(document, *takes))
        self.assertFalse(told.keys() & set(service.DELETION_MEMBERS))
        nulls = {**json.loads(edit(SIDECAR, *takes)), "audio_deletion_date": None}
        self.assertIsNone(edit(nulls, *takes), "of the recorder")


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


NAMES_A = {"id": "S", "chunks": [{"file": "a.webm"}]}
ENCODINGS = ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be")


class NotReadable(NamesCase):
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


# Its peak of memory beyond what the program itself takes, in bytes, for reading and rewriting one.
MEASURE = """
import ctypes, resource, sys
import compression_service as service
from tests.test_documents import copied

def peak():
    if sys.platform == "linux":  # getrusage also counts the process that started this one
        status = open("/proc/self/status").read()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

if sys.platform == "linux":  # gives back what the import took, and forgets it
    ctypes.CDLL(None).malloc_trim(0)
    open("/proc/self/clear_refs", "w").write("5")
service.AT_ONCE = int(sys.argv[2])
begun = peak()
library = service.Library(sys.argv[1])
for recording in service.resolve_recordings(library.folder("d")):
    after = {take.stem: copied(take.stem) for take in recording.takes}
    for path, edit in service.edits(library, recording, after):
        service.rewrite(library.path(path), edit, service.Staging(library), True)
print(peak() - begun)
"""


class Large(NamesCase):
    SIZE = 2 << 20
    AT_ONCE = 1 << 17  # in proportion to this size

    def made(self, kind: str) -> str:
        chunk = json.dumps(
            {"file": "a.webm", "segments": [{"words": [{"w": "x"}] * 60, "text": "y"}]}
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
            command = [sys.executable, "-c", MEASURE, str(self.root), str(self.AT_ONCE)]
            done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
            # Beside it: what is scanned at once, and what is read or kept in blocks.
            self.assertLess(int(done.stdout), 4 * self.SIZE + (6 << 20), kind)
            self.assertGreater(int(done.stdout), self.SIZE, f"{kind}: nothing was measured")
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
