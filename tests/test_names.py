"""Which strings are names, and whose a sidecar is: as README says it, whatever the spelling."""

from __future__ import annotations

import json
import os
import random
import tempfile
import unicodedata
import unittest
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Optional
from unittest import mock

import compression_service as service
from compression_service import File, Past, Place, State, Take
from tests.base import LONG_AGO, LibraryCase, index_entry

MTIME = LONG_AGO * 10**9
OUTSIDE_OF_NAMES = ("id", "text", "title", "words", "full_transcription", "transcription_preview")


class NamesCase(unittest.TestCase):
    """A library whose audio is a few bytes: documents are derived and written, nothing is
    encoded."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        flushing = mock.patch.object(service, "flush")  # no power is cut here
        flushing.start()
        self.addCleanup(flushing.stop)
        self.start(Path(folder.name) / "recordings")

    def start(self, root: Path) -> None:
        self.root = root
        self.root.mkdir(parents=True)
        self.library = service.Library(str(self.root))

    def add(self, path: str, data: object = b"sound") -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(data, bytes):
            data = json.dumps(data, ensure_ascii=False).encode()
        file.write_bytes(data)
        os.utime(file, (LONG_AGO, LONG_AGO))
        return file

    def recordings(self, folder: str = "d") -> list[service.Recording]:
        service.read_sidecar.cache_clear()
        service.folders_meant.cache_clear()
        return service.resolve_recordings(self.library.folder(folder))

    def groups(self, folder: str = "d") -> set[tuple[str, ...]]:
        return {tuple(take.name for take in each.takes) for each in self.recordings(folder)}

    def kept(self, folder: str = "d") -> dict[str, str]:
        """Why takes are kept on account of a document, by name."""
        return {
            take.name: each.policy.unreadable
            for each in self.recordings(folder)
            for take in each.takes
            if each.policy.unreadable
        }

    def become(self, compressed: bool, *folders: str) -> None:
        """Every recording that may move is compressed, or restored: documents, then files."""
        done: list[tuple[Path, Path]] = []
        everything: list[service.Recording] = []
        with service.Staging(self.library) as staging:
            for folder in folders:
                after = {}
                for recording in self.recordings(folder):
                    for take in recording.takes:
                        if take.files and not recording.policy.unreadable:
                            after[take.stem] = moved(take, compressed)
                            old, new = take.files[0].name, after[take.stem].files[0].name
                            done.append((self.root / folder / old, self.root / folder / new))
                for recording in self.recordings(folder):
                    takes = tuple(after.get(take.stem, take) for take in recording.takes)
                    everything.append(recording._replace(takes=takes))
                    if not recording.policy.unreadable:
                        for path, edit in service.edits(self.library, recording, after):
                            service.rewrite(self.library.path(path), edit, staging, backup=False)
            ids = {id_ for recording in everything for id_ in recording.ids}
            index = service.Catalogue(everything, ids)
            master = self.root / "index.json"
            if master.exists():
                data = master.read_bytes()
                edited = service.edit_index(
                    data, index.facts, index.meant, 0, "2026-01-31T02:00:00Z"
                )
                master.write_bytes(edited or data)
        for before, now in done:
            os.rename(before, now)
        self.library.history.known.clear()
        pasts = {take.stem: take.past for each in everything for take in each.takes}
        for folder in folders:
            known = {stem: past for stem, past in pasts.items() if os.path.dirname(stem) == folder}
            self.library.history.known[folder] = known

    def renamed(self, text: str, folder: str = "d", where: str = "x.json") -> str:
        """What becomes of a string in a document of the folder."""
        path = self.add(os.path.join(folder, where), {"k": text})
        self.become(True, folder)
        after = json.loads(path.read_bytes())["k"]
        self.become(False, folder)
        path.unlink()
        return str(after)


def moved(take: Take, compressed: bool) -> Take:
    file, past = take.files[0], take.past
    if compressed:
        copy = File(take.name + ".opus", file.size, file.mtime_ns)
        past = Past("compressed", mtime_ns=file.mtime_ns, first_size=file.size, suffix=".opus")
        return take._replace(originals=(), copies=(copy,), past=past._replace(size=file.size))
    original = File(take.name + ".webm", file.size, file.mtime_ns)
    return take._replace(
        originals=(original,), copies=(), past=past._replace(action="restored", size=0)
    )


class Spellings(NamesCase):
    def test_paths_that_end_in_folder_and_name_are_names_in_every_spelling(self) -> None:
        self.add("d/a.webm")
        for above in (
            "", "./", "d/", "../d/", "./d/", "/d/", "/static/recordings/d/", "/home/u/app/x/d/",
            "recordings\\d\\", ".\\", "C:\\rec\\d\\", "file:///srv/d/", "D/", "..\\d/",
        ):  # fmt: skip
            for name in ("a.webm", "A.webm", "a.WEBM", "A.WebM"):
                self.assertEqual(self.renamed(above + name), above + "a.opus", above + name)

    def test_hosts_other_folders_and_parts_of_texts_are_data(self) -> None:
        self.add("d/a.webm")
        for text in (
            "https://h/d/a.webm", "HTTP://h/d/a.webm", "blob:https://h/d/a.webm", "//h/d/a.webm",
            "\\\\server\\d\\a.webm", "e/a.webm", "../a.webm", "/a.webm", "d/x/a.webm", "a%2ewebm",
            "see a.webm", "a.webm ", "b.webm", "d/b.webm", "a.webm.json", "a.ogg", "", ".webm",
        ):  # fmt: skip
            self.assertEqual(self.renamed(text), text)

    def test_composed_and_decomposed_names_are_one_and_get_the_files_own_spelling(self) -> None:
        composed, decomposed = (
            [unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)]
            for text in ("Gespräch Köln", "gespräch köln")
        )
        for form, own, said in (
            ("x", composed[0], decomposed[1]),
            ("y", composed[1], decomposed[0]),
        ):
            self.add(f"{form}/{own}.webm")
            self.assertEqual(self.renamed(f"{said}.webm", form), f"{own}.opus")
            self.assertEqual(self.renamed(f"x/{form}/{said}.webm", form), f"x/{form}/{own}.opus")

    def test_at_the_top_the_folder_is_the_librarys_own_name_or_recordings(self) -> None:
        self.start(self.root.parent / "data")
        self.add("a.webm")
        for above in ("", "recordings/", "/recordings/", "data/", "x\\data\\", "/srv/DATA/"):
            self.assertEqual(self.renamed(above + "a.webm", ""), above + "a.opus")
        for text in ("other/a.webm", "data/recordings/b.webm", "/a.webm"):
            self.assertEqual(self.renamed(text, ""), text)

    def test_an_exact_spelling_is_meant_and_one_that_fits_two_keeps_both(self) -> None:
        self.add("d/a.webm"), self.add("d/A.webm"), self.add("d/b.webm")
        self.add("d/x.json", {"one": "A.webm", "other": "b.webm"})
        self.assertEqual(self.kept(), {})
        self.become(True, "d")
        self.assertEqual(json.loads((self.root / "d/x.json").read_bytes())["one"], "A.opus")
        self.become(False, "d")
        self.add("d/x.json", {"one": "A.WEBM", "other": "b.webm"})
        kept = self.kept()
        self.assertEqual(set(kept), {"a", "A"})
        self.assertRegex(kept["a"], r"^d/x\.json: A\.WEBM may be any of ")

    def test_another_file_at_that_path_makes_it_data(self) -> None:
        outside = self.root.parent / "backup" / "d"
        outside.mkdir(parents=True)
        (outside / "a.webm").touch()
        self.add("d/a.webm"), self.add("e/d/a.webm"), self.add("2025/10/d/a.webm")
        self.assertEqual(self.renamed(f"{outside}/a.webm"), f"{outside}/a.webm")
        self.assertEqual(self.renamed("../../backup/d/a.webm"), "../../backup/d/a.webm")
        self.assertEqual(self.renamed("e/d/a.webm"), "e/d/a.webm")
        self.assertEqual(self.renamed("/x/e/d/a.webm"), "/x/e/d/a.webm")
        self.assertEqual(self.renamed("/x/e/d/a.webm", "e/d"), "/x/e/d/a.opus")
        self.assertEqual(self.renamed("10/d/a.webm", "2025/10/d"), "10/d/a.opus")
        (outside / "a.webm").unlink()
        service.folders_meant.cache_clear()
        self.assertEqual(self.renamed(f"{outside}/a.webm"), f"{outside}/a.opus")

    def test_a_file_that_was_archived_or_deleted_is_another_file_at_that_path(self) -> None:
        self.library.make_own()
        pasts = {"a": Past(place=Place("/cold/bob/27", "a.webm")), "b": Past(deleted=1.0)}
        with open(self.library.history.path, "w", encoding="ascii") as history:
            for name, past in pasts.items():
                take = f"bob/27/{name}"
                line = {"type": "recording", "path": take, "take": take, "past": past.record()}
                history.write(json.dumps(line) + "\n")
        for name in pasts:
            self.add(f"alice/27/{name}.webm")
            there = f"bob/27/{name}.webm"
            self.assertEqual(self.renamed(there, "alice/27"), there)
            self.assertEqual(self.renamed(f"27/{name}.webm", "alice/27"), f"27/{name}.opus")

    def test_the_very_file_by_another_way_is_no_other_file(self) -> None:
        self.add("d/a.webm")
        way = self.root.parent / "way"
        way.symlink_to(self.root)
        self.assertEqual(self.renamed(f"{way}/d/a.webm"), f"{way}/d/a.opus")

    def test_to_learn_that_nothing_outside_is_opened(self) -> None:
        outside = self.root.parent / "other" / "d"
        outside.mkdir(parents=True)
        (outside / "a.webm").write_bytes(b"x")
        self.add("d/a.webm")
        self.add("d/x.json", {"chunks": [{"file": f"{outside}/a.webm"}, {"file": "a.webm"}]})
        opened: list[str] = []
        really = os.open

        def watched(path: Any, *arguments: Any, **more: Any) -> int:
            opened.append(os.fspath(path))
            return really(path, *arguments, **more)

        with mock.patch.object(os, "open", watched):
            self.become(True, "d")
        self.assertTrue(opened)
        self.assertEqual([path for path in opened if not path.startswith(str(self.root))], [])

    def test_a_name_with_a_backslash_of_its_own_is_still_a_name(self) -> None:
        self.add("d/a\\b.webm")
        self.assertEqual(self.renamed("a\\b.webm"), "a\\b.opus")

    def test_names_are_found_in_segments_and_not_in_what_was_said(self) -> None:
        self.add("d/a.webm")
        nested = {"a": ["a.webm", {"b": "d/a.webm"}]}
        document = {"segments": [nested], "k": nested, **dict.fromkeys(OUTSIDE_OF_NAMES, nested)}
        path = self.add("d/x.json", document)
        self.become(True, "d")
        after = json.loads(path.read_bytes())
        new = {"a": ["a.opus", {"b": "d/a.opus"}]}
        self.assertEqual((after["segments"], after["k"]), ([new], new))
        for key in OUTSIDE_OF_NAMES:
            self.assertEqual(after[key], nested, key)


class Ownership(NamesCase):
    def test_a_string_that_no_file_has_joins_nothing_and_misses_nothing(self) -> None:
        for name in "ab":
            self.add(f"d/{name}.webm")
            document = {"id": name, "audio": f"{name}.webm", "original_filename": "recording.webm"}
            self.add(f"d/{name}.json", document)
        self.assertEqual(self.groups(), {("a",), ("b",)})
        self.become(True, "d")
        for name in "ab":
            after = json.loads((self.root / f"d/{name}.json").read_bytes())
            said = (after["compressed"], after["original_size"], after["original_filename"])
            self.assertEqual(said, (True, 5, "recording.webm"))

    def test_links_and_playlists_are_renamed_and_join_nothing(self) -> None:
        self.add("d/a.webm"), self.add("d/b.webm"), self.add("d/c.webm")
        self.add("d/a.json", {"id": "A", "audio": "a.webm", "next": "b.webm"})
        self.add("d/b.json", {"id": "B", "chunks": [{"file": "b.webm"}], "prev": "a.webm"})
        self.add("d/all.json", ["a.webm", "b.webm", "c.webm"])
        self.add("d/list.json", {"id": "L", "tracks": [{"src": "a.webm"}, {"src": "c.webm"}]})
        self.assertEqual(self.groups(), {("a",), ("b",), ("c",)})
        self.become(True, "d")
        read = {each.name: json.loads(each.read_bytes()) for each in self.root.glob("d/*.json")}
        self.assertEqual((read["a.json"]["next"], read["b.json"]["prev"]), ("b.opus", "a.opus"))
        self.assertEqual(read["all.json"], ["a.opus", "b.opus", "c.opus"])
        self.assertEqual(set(read["list.json"]), {"id", "tracks"}, "got members")

    def test_without_chunks_a_sidecar_owns_the_only_file_that_it_names_if_it_speaks_of_one(
        self,
    ) -> None:
        for key, value, owns in (
            ("id", "A", True), ("id", 7, True), ("id", "", False), ("id", True, False),
            ("id", None, False), ("duration", 3, True), ("full_transcription", "", True),
            ("note", "x", False), ("duration", None, False),
        ):  # fmt: skip
            self.add("d/a.webm")
            self.add("d/meta.json", {key: value, "audio": "recordings/d/a.webm", "chunks": []})
            (recording,) = self.recordings()
            self.assertEqual(recording.sidecars[0].listed, owns, (key, value))

    def test_an_id_may_be_a_number_and_is_another_than_the_same_text(self) -> None:
        for name, id_ in (("a", 1), ("b", "1"), ("c", 1), ("e", True), ("f", 1.0), ("g", None)):
            self.add(f"d/{name}.webm"), self.add(f"d/{name}.json", {"id": id_})
        self.assertEqual(self.groups(), {("a", "c", "f"), ("b",), ("e",), ("g",)})

    def test_recordings_joined_through_a_third_are_one(self) -> None:
        for name in "abcd":
            self.add(f"d/{name}.webm")
        self.add("d/one.json", {"chunks": [{"file": "a.webm"}, {"file": "b.webm"}]})
        self.add("d/two.json", {"id": "I", "chunks": ["b.webm"]})
        self.add("d/c.json", {"id": "I"})
        self.assertEqual(self.groups(), {("a", "b", "c"), ("d",)})

    def test_a_sidecar_in_another_spelling_than_its_file_owns_it(self) -> None:
        self.add("d/Übung.webm")
        self.add("d/" + unicodedata.normalize("NFD", "übung.json"), {"language": "de"})
        (recording,) = self.recordings()
        self.assertTrue(recording.sidecars[0].listed)

    def test_a_policy_holds_for_every_file_that_its_document_names(self) -> None:
        self.add("d/a.webm"), self.add("d/b.webm"), self.add("d/c.webm")
        self.add("d/a.json", {"id": "A"})
        policy = {"compression_policy": {"keep": True}, "tracks": ["/x/d/A.webm", "b.webm"]}
        self.add("d/keep.json", policy)
        keeps = {each.takes[0].name: each.policy.keep for each in self.recordings()}
        self.assertEqual(keeps, {"a": True, "b": True, "c": False})

    def test_a_chunk_that_is_not_here_yet_counts_and_other_strings_beside_it_do_not(self) -> None:
        self.add("d/a.webm")
        chunk = {"file": "a.webm", "original_filename": "blob.webm"}
        self.add("d/x.json", {"chunks": [chunk, {"file": "d/later.webm"}, {"file": "e/z.webm"}]})
        self.assertEqual(self.groups(), {("a", "later")})

    def test_the_only_name_of_a_chunk_counts_under_any_key(self) -> None:
        self.add("d/a.webm")
        chunks = [{"filename": "a.webm"}, {"filename": "later.webm"}]
        self.add("d/x.json", {"chunks": chunks})
        self.assertEqual(self.groups(), {("a", "later")})

    def test_ids_of_twenty_digits_differ_in_the_last(self) -> None:
        for name, id_ in (("a", 20251027143045000001), ("b", 20251027143045000002)):
            self.add(f"d/{name}.webm")
            self.add(f"d/{name}.json", {"id": id_, "chunks": [{"file": f"{name}.webm"}]})
        self.assertEqual(self.groups(), {("a",), ("b",)})

    def test_the_length_on_record_is_found_in_every_spelling(self) -> None:
        self.add("d/a.webm")
        self.add("d/x.json", {"chunks": [{"file": "\\r\\d\\A.webm", "duration": 7}]})
        (recording,) = self.recordings()
        self.assertEqual(recording.sidecars[0].durations.get("a"), 7)


class Oracle:
    """Reads one string by the words of README, and by nothing of the program."""

    def __init__(self, root: Path, folder: str, stems: Sequence[str]) -> None:
        self.root, self.folder, self.stems = root, folder, stems

    def stem(self, text: str) -> Optional[str]:
        """The one file's stem that a string calls, None for data. (No two fit here.)"""
        text = text.replace("\\", "/")
        text = text[2:] if text.startswith("./") else text
        head, dot, suffix = text.rpartition(".")
        if not dot or suffix.lower() not in ("webm", "opus", "m4a"):
            return None
        if text.startswith("//") or "://" in text:
            return None
        parts = head.split("/")
        ends = [self.folder.split("/")[-1]] if self.folder else [self.root.name, "recordings"]
        if len(parts) > 1 and same(parts[-2]) not in map(same, ends):
            return None
        found = [stem for stem in self.stems if same(stem) == same(parts[-1])]
        return found[0] if found else None


def same(text: str) -> str:
    return unicodedata.normalize("NFC", text).lower()


def strings(value: Any, key: str = "") -> Iterator[str]:
    """Every string of a document that may be a name, in order."""
    if key in OUTSIDE_OF_NAMES:
        return
    if isinstance(value, str):
        yield value
    for name, each in value.items() if isinstance(value, dict) else ():
        yield from strings(each, name)
    for each in value if isinstance(value, list) else ():
        yield from strings(each)


class RandomLibraries(NamesCase):
    """Whatever names stand wherever: none dangles, nothing else changes, and restore turns back."""

    STEMS = ("a", "14-30-45-chunk-1", "Köln", unicodedata.normalize("NFD", "Größe"), "B b")

    def text(self, dice: random.Random, folder: str) -> str:
        stem = dice.choice((*self.STEMS, "nowhere"))
        stem = dice.choice((stem, stem, stem.upper(), unicodedata.normalize("NFC", stem)))
        stem = dice.choice((stem, unicodedata.normalize("NFD", stem)))
        last = os.path.basename(folder) or "recordings"
        above = dice.choice(
            ("", "", "./", f"{last}/", f"../{last}/", f"/srv/x/{last}/", f"C:\\x\\{last.upper()}\\",
             f"https://h/{last}/", f"//h/{last}/", "other/", ".\\", f"recordings/{folder}/")
        )  # fmt: skip
        if above.endswith("//"):
            above = ""
        return above + stem + dice.choice((".webm", ".webm", ".WEBM", ".txt"))

    def value(self, dice: random.Random, folder: str, depth: int = 0) -> Any:
        kind = dice.random()
        if kind < 0.5 or depth > 3:
            return self.text(dice, folder)
        keys = ("file", "next", "segments", "é", *OUTSIDE_OF_NAMES)
        values = [self.value(dice, folder, depth + 1) for _ in range(dice.randint(0, 4))]
        if kind < 0.7:
            return values
        if kind < 0.95:
            return {dice.choice(keys): each for each in values}
        return dice.choice((1, 2.5, None, True, "see a.webm", ""))

    def test_every_name_is_a_file_and_nothing_else_changes_and_restore_turns_it_back(self) -> None:
        for seed in range(60):
            dice = random.Random(seed)
            with tempfile.TemporaryDirectory() as place:
                self.start(Path(place) / "recordings")
                self.play(dice, dice.choice(("d", "2025/27", "")), seed)

    def play(self, dice: random.Random, folder: str, seed: int) -> None:
        stems = dice.sample(self.STEMS, dice.randint(1, len(self.STEMS)))
        for stem in stems:
            self.add(os.path.join(folder, stem + ".webm"))
        before = {}
        for number in range(dice.randint(1, 3)):
            members = {f"k{at}": self.value(dice, folder) for at in range(dice.randint(1, 5))}
            chunks = [{"file": f"{stem}.webm"} for stem in stems if dice.random() < 0.5]
            document = {**members, "chunks": chunks} if dice.random() < 0.5 else members
            text = json.dumps(
                document, ensure_ascii=dice.random() < 0.5, indent=dice.choice((None, 2))
            )
            path = self.add(os.path.join(folder, f"doc-{number}.json"), text.encode())
            before[path] = document
        oracle = Oracle(self.root, folder, stems)
        self.become(True, folder)
        for path, document in before.items():
            after = json.loads(path.read_bytes())
            olds = list(strings(document))
            news = list(strings({key: after[key] for key in document}))
            self.assertEqual(len(olds), len(news), seed)
            for old, new in zip(olds, news):
                called = oracle.stem(old)
                wanted = f"{called}.opus" if called else None
                name = new.replace("\\", "/").rpartition("/")[2]
                if wanted:
                    self.assertEqual(name, wanted, (seed, old, new))
                    self.assertTrue((self.root / folder / name).exists(), (seed, old, new))
                    self.assertEqual(new[: -len(name)], old[: len(new) - len(name)], seed)
                else:
                    self.assertEqual(old, new, seed)
        compressed = {path: path.read_bytes() for path in before}
        self.become(True, folder)  # again: nothing is left to do
        self.assertEqual({path: path.read_bytes() for path in before}, compressed, seed)
        self.become(False, folder)
        for path, document in before.items():
            after = json.loads(path.read_bytes())
            for old, new in zip(strings(document), strings({key: after[key] for key in document})):
                called = oracle.stem(old)
                same_name = new.replace("\\", "/").rpartition("/")[2]
                self.assertEqual(
                    same_name if called else new, f"{called}.webm" if called else old, seed
                )


class Archived(NamesCase):
    def test_what_is_in_the_history_alone_is_a_name_too(self) -> None:
        place = Place("/cold/d", "gone.opus", 5, MTIME, "", 0o644, (0, 0), 1.0)
        past = Past("archived", mtime_ns=MTIME, suffix=".opus", size=5, place=place)
        self.add("d/x.json", {"id": "X", "audio": "/x/D/Gone.webm"})
        self.library.history.known["d"] = {"d/gone": past}
        (recording,) = self.recordings()
        self.assertEqual([take.state for take in recording.takes], [State.ARCHIVED])
        with service.Staging(self.library) as staging:
            for path, edit in service.edits(self.library, recording, {}):
                service.rewrite(self.library.path(path), edit, staging, backup=False)
        after = json.loads((self.root / "d/x.json").read_bytes())
        self.assertEqual((after["audio"], after["archived"]), ("/x/D/gone.opus", True))


class AsItsUserRunsIt(LibraryCase):
    def test_names_in_all_spellings_are_true_after_a_run_and_turned_back_by_restore(self) -> None:
        self.add("chunk_0", "2025/27/a.webm")
        self.add("chunk_1", "2025/27/b.webm")
        links = {
            "path": "/home/u/app/recordings/2025/27/A.webm",
            "win": "recordings\\2025\\27\\a.webm",
            "next": "b.webm",
            "original_filename": "recording.webm",
        }
        before = self.add_json("2025/27/a.json", {"id": 1, "audio": "./a.webm", **links})
        self.add_json("2025/27/b.json", {"id": "1", "prev": "../27/a.webm"})
        self.add_json(
            "index.json",
            {"recordings": [{**index_entry("", 1), "id": 1}, index_entry("1", 1)], "total_size": 2},
        )
        ran = self.run_cli("--keep-originals")
        self.assertEqual((ran.code, ran.err), (0, ""))
        after = json.loads(before.read_bytes())
        self.assertEqual(
            [after[key] for key in links],
            ["/home/u/app/recordings/2025/27/a.opus", "recordings\\2025\\27\\a.opus", "b.opus",
             "recording.webm"],
        )  # fmt: skip
        self.assertEqual(self.read_json("2025/27/b.json")["prev"], "../27/a.opus")
        self.assertTrue(after["compressed"])
        entries = self.read_json("index.json")["recordings"]
        self.assertEqual([entry["compressed"] for entry in entries], [True, True])
        self.assertEqual(self.run_cli("check").code, 0)
        self.assertEqual(self.run_cli("restore", "2025/27/a.json").code, 0)
        back = json.loads(before.read_bytes())
        own = {**links, "path": links["path"].replace("A.webm", "a.webm"), "next": "b.opus"}
        self.assertEqual({key: back[key] for key in links}, own)
        self.assertEqual(self.run_cli("check").code, 0)


if __name__ == "__main__":
    unittest.main()
