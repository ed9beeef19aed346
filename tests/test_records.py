"""Sidecars and index: what is changed, and that nothing else is."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
import time
from pathlib import Path
from typing import Any, Callable, Optional
from unittest import mock

import compression_service as service
from tests.base import RECORDINGS, LibraryCase, index, index_entry, sidecar

FACTS = service.Facts(
    states=frozenset((service.State.COMPRESSED,)),
    original_size=1000,
    compressed_size=600,
    on_disk=600,
    date=0.0,
    place=None,
)


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
    ODD = {
        "empty": b"", "cut": b'{"chunks": [{"file": "x.webm"', "list": b"[1, 2]", "number": b"7", "twice": b'{"a": 1, "a": 2}',
        "nan": b'{"a": NaN}', "infinite": b'{"a": 1e400}', "surrogate": b'{"a": "\\ud800"}', "deep": b'{"a":' + b"[" * 100_000,
        "latin": '{"a": "ü"}'.encode("latin-1"), "exact": b'{"a": 0.12345678901234567890}', "minus": b'{"a": -0}',
        "bom": b'\xef\xbb\xbf{"a": 1}',
    }  # fmt: skip
    FLAWED = ("empty", "cut", "twice", "deep", "latin")

    def test_a_sidecar_that_cannot_be_edited_keeps_its_recording_alone(self) -> None:
        for name, content in self.ODD.items():
            self.add("chunk_0", f"{name}/x.webm")
            self.add_bytes(content, f"{name}/x.json")
        before = self.files()
        ran = self.run_cli("--json")
        self.assertEqual(ran.code, 0, ran.err)
        for name in self.ODD:
            if name in self.FLAWED:
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
        flawed += [OddDocuments.ODD[name] for name in OddDocuments.FLAWED if name != "twice"]
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


def keep_counting(paths: list[str], done: Any, counts: Any) -> None:
    """A server that reads, counts up and rewrites JSON files in place, 50 times a second, each in two pieces."""
    while not done.is_set():
        for number, path in enumerate(paths):
            try:
                document = json.loads(Path(path).read_text(encoding="utf-8"))
            except ValueError:
                continue
            counts[number] += 1
            document["count"] = counts[number]
            text = json.dumps(document, ensure_ascii=False)
            with open(path, "w", encoding="utf-8") as file:
                file.write(text[: len(text) // 2])
                file.flush()
                time.sleep(0.001)
                file.write(text[len(text) // 2 :])
            time.sleep(0.02)


def said_by_us(*names: str) -> Callable[[bytes], Optional[bytes]]:
    """An edit that adds members to a document."""

    def edit(data: bytes) -> Optional[bytes]:
        text = service.JsonText(data)
        text.set(text.root, dict.fromkeys(names, 1))
        return text.edited()

    return edit


class LiveServer(LibraryCase):
    def rewrite(self, path: Path, *names: str) -> None:
        with service.Staging(service.Library(str(self.library))) as staging:
            service.rewrite(str(path), said_by_us(*names), staging, backup=False)

    def serve(self, paths: list[Path]) -> tuple[Any, Callable[[], None]]:
        """Start the server; returns its counts by path and what stops it."""
        context = multiprocessing.get_context("fork")
        done, counts = context.Event(), context.Array("i", len(paths))
        server = context.Process(
            target=keep_counting, args=([str(path) for path in paths], done, counts)
        )
        server.start()

        def stop() -> None:
            done.set()
            server.join()

        self.addCleanup(stop)
        return counts, stop

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
        context = multiprocessing.get_context("fork")

        def write_slowly() -> None:
            with open(path, "w", encoding="utf-8") as file:
                file.write(text[:40])
                file.flush()
                time.sleep(0.7)
                file.write(text[40:])

        server = context.Process(target=write_slowly)
        server.start()
        time.sleep(0.3)
        self.rewrite(path, "ours")
        server.join()
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
