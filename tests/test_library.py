"""What the walk sees, which files are one recording, and what the history remembers."""

import fcntl
import itertools
import json
import os
import shutil
import tempfile
import threading
import time
import unittest
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import compression_service as service
from compression_service import (
    BringBack,
    Compress,
    Fetch,
    File,
    Move,
    Outcome,
    Past,
    Place,
    Reason,
    Smaller,
    State,
    Store,
    Target,
)

NOW = 2_000_000_000.0
OLD = 1_700_000_000
WEBM = File("x.webm", 1000, 5)
SETTINGS = service.settings_of(service.Take("x"), service.NO_POLICY, service.Config(), 0)


class Case(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name, "recordings")
        self.root.mkdir()
        self.library = service.Library(str(self.root))
        self.history = self.library.history
        self.told: list[str] = []

    def add(self, path: str, data: object = b"sound") -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
        os.utime(file, (OLD, OLD))
        return file

    def walk(self) -> dict[str, service.Folder]:
        return {f.path: f for f in self.library.walk(self.told.append, self.told.append)}

    def recordings(self, folder: str = "d") -> dict[tuple[str, ...], service.Recording]:
        read = self.library.folder(folder)
        found = service.resolve_recordings(read)
        return {tuple(take.name for take in each.takes): each for each in found}

    def remember(self, stem: str, **past: Any) -> None:
        self.library.make_own()
        take = service.Take(stem)
        file = File(take.name + ".webm", 5, OLD * 10**9)
        move = Compress(take, Target("opus", 96000), "s", file, (), Outcome(Reason.EMPTY))
        with mock.patch.object(move, "past_after", lambda now: Past(**past)):
            self.history.append([move], NOW)


class Walking(Case):
    def test_takes_are_stems_and_everything_odd_is_passed_over(self) -> None:
        for path in ("d/a.webm", "d/a.opus", "d/b.WEBM", "d/c.m4a", "d/x.OPUS", "d/e/f.webm"):
            self.add(path)
        for path in (
            ".hidden/a.webm",
            "d/.b.webm",
            "lib/a.webm",
            "lib/.compression/lock",
            "d/n.txt",
        ):
            self.add(path)
        self.add("index.json"), self.add("d/index.json"), self.add("d/a.json.bak")
        self.add("d/.compression-0123abcd-7.part")
        os.symlink("a.webm", self.root / "d/link.webm")
        os.symlink("/", self.root / "d/out")
        os.symlink("/x", self.root / "d/link.json")
        os.mkfifo(self.root / "d/fifo.webm")
        (self.root / "d/folder.webm").mkdir()
        found = self.walk()
        self.assertEqual(set(found), {"", "d", "d/e", "d/folder.webm"})
        takes = found["d"].takes
        self.assertEqual(set(takes), {"a", "b", "c", "x"})
        self.assertEqual([file.name for file in takes["a"].strangers], ["a.opus"])
        self.assertEqual((takes["b"].originals[0].name, takes["x"].copies), ("b.WEBM", ()))
        self.assertEqual(set(found["d"].documents), {"index.json", "link.json"})
        self.assertEqual(found["d"].leftovers, [".compression-0123abcd-7.part"])
        self.assertEqual((len(self.told), found["d"].links), (1, 2))

    def test_what_leads_away_is_no_folder_on_record(self) -> None:
        self.add("d/e/x.opus")
        self.add("n/.compression/lock")
        self.add("n/e/x.opus")
        (self.root / "link").symlink_to(self.root / "d")
        (self.root / "loop").symlink_to(self.root / "loop")
        away = {
            path: self.library.leads_away(path)
            for path in ("", "d", "d/e", "gone", "n", "n/e", "link", "link/e", "loop")
        }
        self.assertEqual(
            [path for path in away if away[path]], ["n", "n/e", "link", "link/e", "loop"]
        )
        for path in away:
            found = self.library.folder_on_record(path).audio
            self.assertEqual(bool(found), path == "d/e", path)

    def test_our_folder_is_the_librarys_and_never_a_link(self) -> None:
        self.root.chmod(0o2775)
        self.library.make_own()
        self.assertEqual(os.stat(self.library.own("")).st_mode & 0o7777, 0o2775)
        shutil.rmtree(self.library.own(""))
        os.symlink("/tmp", self.root / ".compression")
        with self.assertRaisesRegex(service.UsageError, "is a link"):
            self.library.require(str(self.root.parent / "log"))

    def test_one_run_at_a_time_and_the_lock_is_not_unlinked(self) -> None:
        other = service.Library(str(self.root))
        with (
            self.library.lock(),
            self.assertRaisesRegex(service.BusyError, f"process {os.getpid()}"),
        ):
            other.lock().__enter__()
        with other.lock():
            pass
        self.assertTrue(os.path.exists(self.library.own("lock")))

    def test_whoever_asks_hears_who_is_at_work_since_when(self) -> None:
        self.assertEqual(self.library.at_work(), "")
        with self.library.lock():
            today = service.local_time(time.time())[:10]
            self.assertIn(f"process {os.getpid()} on ", self.library.at_work())
            self.assertIn(f" since {today} ", self.library.at_work())
        self.assertEqual(self.library.at_work(), "")

    def test_one_that_only_asks_keeps_no_run_from_its_work(self) -> None:
        with self.library.lock():
            pass
        with open(self.library.own("lock"), "rb") as asking:
            fcntl.flock(asking, fcntl.LOCK_SH)
            done = threading.Timer(0.1, fcntl.flock, (asking, fcntl.LOCK_UN))
            done.start()
            with self.library.lock():
                pass
            done.join()

    def test_a_folder_inside_a_library_and_an_unmounted_disk_are_no_libraries(self) -> None:
        log = self.root.parent / "log"
        self.library.require(str(log))
        log.write_text(f"2026-01-31 02:00:00,123 - INFO - {self.root}: 3 compressed. Took 1 s.\n")
        with self.assertRaisesRegex(service.UsageError, "was not before"):
            self.library.require(str(log))
        log.write_text(f"2026-01-31 02:00:00,123 - INFO - {self.root}0: 1 compressed.\n")
        self.library.require(str(log))
        self.library.make_own()
        self.library.require(str(log))
        self.add("d/a.webm")
        with self.assertRaisesRegex(service.UsageError, "--only"):
            service.Library(str(self.root / "d")).require(str(log))
        with self.assertRaisesRegex(service.UsageError, "There is no recordings folder"):
            service.Library(str(self.root / "no")).require(str(log))

    def test_a_pause_with_an_end_is_over_by_itself(self) -> None:
        self.assertFalse(self.library.paused(NOW))
        self.library.make_own()
        for text, holds in (("", True), (f"{NOW + 1}", True), (f"{NOW - 1}", False), ("?", True)):
            Path(self.library.own("paused")).write_text(text)
            self.assertEqual(bool(self.library.paused(NOW)), holds, text)


class Grouping(Case):
    def groups(self) -> set[tuple[str, ...]]:
        return set(self.recordings())

    def test_chunks_of_one_sidecar_or_one_id_or_one_stem_belong_together(self) -> None:
        for name in "abcdefghi":
            self.add(f"d/{name}.webm")
        self.add("d/h.json", {"text": "x"}), self.add("d/i.json", {"text": "y"})
        self.add(
            "d/all.json", {"chunks": [{"file": "a.webm"}, {"file": "./b.webm", "duration": 3}]}
        )
        self.add("d/c.json", {"id": "I", "chunks": None})
        self.add("d/d.json", {"id": "I", "language": "de"})
        self.add("d/list.json", ["e.webm", "f.webm", "g.webm"])
        self.add(
            "d/f.json",
            {"next": "../d/g.webm", "chunks": [{"file": "recordings/d/f.webm"}], "after": "g.webm"},
        )
        self.assertEqual(self.groups(), {("a", "b"), ("c", "d"), *{(name,) for name in "efghi"}})
        found = self.recordings()
        self.assertEqual(found["a", "b"].sidecars[0].durations, {"a": 0, "b": 3})
        self.assertEqual(
            [(s.name, s.listed) for s in found["c", "d"].sidecars],
            [("c.json", True), ("d.json", True)],
        )
        self.assertEqual(
            [(s.name, s.listed) for s in found["g",].sidecars],
            [("f.json", False), ("list.json", False)],
        )

    def test_a_chunk_that_is_named_and_not_here_is_missing_or_archived(self) -> None:
        place = Place("/cold/d", "c.opus", 4, 5, "", 0o644, (0, 0), 1.0)
        self.remember("d/c", place=place, suffix=".opus", action="archived")
        self.add(
            "d/a.json", {"chunks": [{"file": "a.webm"}, {"file": "b.webm"}, {"file": "c.opus"}]}
        )
        self.add("d/a.webm")
        takes = self.recordings()["a", "b", "c"].takes
        self.assertEqual(
            [take.state for take in takes], [State.WAITING, State.MISSING, State.ARCHIVED]
        )

    def test_a_copy_is_ours_by_name_or_tag_and_else_a_strangers(self) -> None:
        (self.add("d/a.webm"), self.add("d/a.opus"), self.add("d/b.opus"), self.add("d/c.opus"))
        self.add("d/b.json", {"chunks": [{"file": "b.opus"}]})
        rates = {str(self.root / "d/a.opus"): 96000}
        with mock.patch.object(service, "provenance", rates.get):
            takes = {name: each.takes[0] for (name,), each in self.recordings().items()}
        self.assertEqual(
            {name: dict(take.rates) for name, take in takes.items()},
            {"a": {"a.opus": 96000}, "b": {"b.opus": 0}, "c": {}},
        )

    def test_a_broken_document_keeps_what_it_may_speak_of_and_the_rest_goes_on(self) -> None:
        for name in ("t-chunk-1", "t-chunk-2", "u", "v", "w", "x", "y"):
            self.add(f"d/{name}.webm")
        self.add("d/t-chunk-1.json", b'{"chunks": [{"fi')
        self.add("d/notes.json", b'{"about": ["u.webm", "2025/v.webm"')
        self.add("d/map.json", {"w.webm": 1, "other": "x.webm"})
        self.add("d/y.json", b"{'a': 1}")
        kept = {names for names, each in self.recordings().items() if each.policy.unreadable}
        self.assertEqual(kept, {("t-chunk-1",), ("t-chunk-2",), ("u",), ("v",), ("w",), ("y",)})

    def test_a_name_in_a_broken_document_is_found_in_any_spelling(self) -> None:
        broken = (
            "{'file': 'my talk (1).webm'}",
            "{file: 'my talk (1).webm'}",
            "['other.webm', 'MY TALK (1).webm']",
            "file: my talk (1).webm",
            r'{"f": "my\u0020talk (1)\u002eWEBM",',
        )
        for number, text in enumerate(broken):
            self.add(f"{number}/my talk (1).webm")
            self.add(f"{number}/free talk (1).webm")
            self.add(f"{number}/notes.json", text.encode())
            found = self.recordings(str(number))
            kept = {name for (name,), each in found.items() if each.policy.unreadable}
            self.assertEqual(kept, {"my talk (1)"}, text)

    def test_a_broken_sidecar_holds_back_no_recording_that_another_owns(self) -> None:
        for name in ("REC_0001", "REC_0002", "1761575445", "1761575446", "REC_0003"):
            self.add(f"d/{name}.webm")
        self.add("d/REC_0001.json", b"")
        self.add("d/1761575445.json", b"")
        self.add("d/REC_0002.json", {"id": "B", "chunks": [{"file": "REC_0002.webm"}]})
        kept = {names[0] for names, each in self.recordings().items() if each.policy.unreadable}
        self.assertEqual(kept, {"REC_0001", "1761575445", "REC_0003"})

    def test_a_transcript_is_words_in_a_segment_or_in_the_whole(self) -> None:
        spoken = (
            {"full_transcription": "ja"},
            {"segments": [{"text": "\u3042"}]},
            {"chunks": [{"file": "a.webm", "segments": [{"text": " 1 "}]}]},
        )
        silent = (
            {"full_transcription": "\u2003"},
            {"full_transcription": "\u200b\u00a0"},
            {"segments": [{"text": " ", "tokens": [{"text": "x"}]}]},
            {"chunks": [{"file": "a.webm", "text": "a label", "segments": []}]},
            {"chunks": [{"file": "a.webm", "note": {"text": "x"}, "segments": [{"text": ""}]}]},
        )
        for document in (*spoken, *silent):
            sidecar = service.sidecar_of(service.JsonText(json.dumps(document).encode()), "a.json")
            self.assertEqual(sidecar.has_text, document in spoken, document)

    def test_a_thousand_sidecars_of_a_thousand_chunks_stay_linear(self) -> None:
        def seconds(count: int) -> float:
            chunks = [{"file": f"a-{n}.webm", "start": 0, "segments": []} for n in range(count)]
            for n in range(count):
                (
                    self.add(f"{count}/a-{n}.webm"),
                    self.add(f"{count}/a-{n}.json", {"id": "I", "chunks": chunks}),
                )
            begun = time.process_time()
            self.assertEqual(len(self.recordings(str(count))), 1)
            return time.process_time() - begun

        self.assertLess(seconds(300), 9 * 2 * seconds(100))

    def test_one_sidecar_of_many_chunks_stays_linear(self) -> None:
        def seconds(count: int) -> float:
            chunks = [{"file": f"{count}-{n}.webm"} for n in range(count)]
            self.add(f"{count}/a.json", {"id": "I", "chunks": chunks})
            begun = time.process_time()
            self.assertEqual(len(self.recordings(str(count))), 1)
            return time.process_time() - begun

        self.assertLess(seconds(16_000), 4 * 2.5 * seconds(4_000))

    def test_a_sidecar_that_names_too_many_files_keeps_its_folder(self) -> None:
        self.add("d/a.webm")
        self.add("d/b.json", {"id": "I", "playlist": ["c.webm"] * (service.MOST_NAMES + 1)})
        (recording,) = self.recordings().values()
        self.assertEqual(
            recording.policy.unreadable, "d/b.json cannot be read: it names more than 65,536 files"
        )


class Remembering(Case):
    def test_no_line_leads_into_our_own_folder_nor_to_what_is_no_audio(self) -> None:
        place = {"location": "/cold", "name": "a.opus"}
        pasts = {
            ".compression/paused": {"place": place},
            "d/.compression/a": {"place": place},
            "d/index": {"place": {**place, "name": "index.json"}},
            "d/a": {"place": place},
        }
        self.library.make_own()
        with open(self.history.path, "w", encoding="ascii") as file:
            for take, past in pasts.items():
                line = {"type": "recording", "path": take, "take": take, "past": past}
                file.write(json.dumps(line) + "\n")
        self.assertEqual(set(self.history.pasts), {"d/a"})

    def test_what_was_appended_is_read_again_and_torn_lines_are_passed_over(self) -> None:
        place = Place("/cold", "x.opus", 4, 5, "ab", 0o644, (1, 2), 1.5)
        past: dict[str, Any] = {
            "action": "archived",
            "suffix": ".opus",
            "size": 7,
            "ids": ("I",),
            "compressed": 3.5,
            "place": place,
        }
        self.remember("d/x", **past)
        with open(self.history.path, "ab") as file:
            file.write(b'{"type": "recording", "take": "d/y", "pa')
        self.remember("d/z", action="kept", ids=("I",))
        self.history.note([{"type": "folder", "path": "d/", "rest": "r"}], 1.0)
        self.history.note([{"type": "run", "index": [1, 2], "exit_code": 0}], 1.0)
        again = service.History(self.library)
        self.assertEqual(
            dict(again.pasts), {"d/x": Past(**past), "d/z": Past(action="kept", ids=("I",))}
        )
        self.assertEqual((again.pasts["d/z"].ids, again.runs[-1]["index"]), (("I",), [1, 2]))
        self.assertEqual((again.note_on("d")["rest"], again.note_on("e")), ("r", {}))
        self.remember("d/z", action="kept")
        self.assertEqual(service.History(self.library).note_on("d"), {})

    def test_odd_lines_lead_nowhere(self) -> None:
        self.library.make_own()
        good = {"type": "recording", "path": "d/x.webm", "take": "d/x", "past": {"suffix": ".opus"}}
        place = ["/c", "n.webm", 1, 1, "", 1, [0, 0], 1.0]
        odd = [
            {**good, "take": "../x"},
            {**good, "take": "/x"},
            {**good, "take": 5},
            {**good, "take": "d/./x"},
            {**good, "past": {"suffix": "/../../x"}},
            {**good, "past": {"size": "1"}},
            {**good, "past": None},
            {**good, "past": {"place": dict(zip(Place._fields, [*place[:1], "../n", *place[2:]]))}},
            {**good, "past": {"ids": [[]]}},
            {"type": "later"},
            [],
            None,
            1e999,
            {"type": "run", "time": "x"},
            {"type": "folder", "path": "d", "seen": None},
        ]
        lines = [json.dumps(record) for record in odd] + ["\xff", "[" * 100_000, ""]
        Path(self.history.path).write_bytes("\n".join(lines).encode("latin-1"))
        self.assertEqual(dict(self.history.pasts), {})
        self.assertEqual(list(self.history.runs), [])

    def test_a_last_run_and_its_end_are_found_behind_anything(self) -> None:
        self.library.make_own()
        self.history.note([{"type": "run", "index": "I"}], 1.0)
        for _ in range(40):
            self.history.note([{"type": "restore"}], 2.0)
        with open(self.history.path, "ab") as file:
            file.write(b"junk\n" * 40 + b"\0" * 5000)
        with mock.patch.object(service, "LONGEST_LINE", 1000):
            again = service.History(self.library)
            self.assertEqual(again.last_run["index"], "I")
            self.assertEqual(again.runs[-1]["type"], "restore")

    def test_folders_are_found_by_their_ids(self) -> None:
        self.remember("d/x", action="kept", ids=("I]", 'J"'))
        self.remember("e/x", action="kept", ids=("K",))
        for ids, folders in (({"I]"}, {"", "d"}), ({'J"', "K"}, {"", "d", "e"}), ({"x"}, {""})):
            self.assertEqual(self.history.folders_with(ids), folders)

    def test_a_key_of_a_later_version_is_passed_over_and_its_line_is_not(self) -> None:
        self.library.make_own()
        past = {"suffix": ".opus", "size": 5, "of_a_later_version": {"a": [1]}}
        line = {"type": "recording", "path": "d/x.webm", "take": "d/x", "past": past}
        Path(self.history.path).write_text(json.dumps(line) + "\n")
        self.assertEqual(self.history.pasts["d/x"].size, 5)

    def test_a_history_that_cannot_be_appended_raises(self) -> None:
        shutil.rmtree(self.library.own(""), ignore_errors=True)
        Path(self.root, ".compression").touch()
        with self.assertRaises(OSError):
            self.history.write([{}])
        self.history.note([{"type": "run"}], 1.0)


class Outcomes(Case):
    def move(
        self,
        kind: type[Move] = Compress,
        past: Past = service.NO_PAST,
        removes: tuple[File, ...] = (WEBM,),
        **more: Any,
    ) -> Move:
        take = service.take_of("d/x", [WEBM], past)
        move = kind(take, Target("opus", 96000), "s", WEBM, removes, **more)
        move.recording = service.Recording("d", (take,))
        return move

    def test_after_compression_the_copy_stands_for_the_take(self) -> None:
        take = self.move(copy=File("x.opus", 400, 5)).take_after(9.0)
        self.assertEqual(
            (take.state, take.file, take.past.first_size),
            (State.COMPRESSED, File("x.opus", 400, 5), 1000),
        )
        self.assertEqual(
            (take.past.compressed, take.past.bitrate, take.originals), (9.0, 96000, ())
        )

    def test_failures_count_up_to_rest_but_those_from_outside_do_not(self) -> None:
        past = service.NO_PAST
        for attempts, reason in (
            (1, Reason.TOOL_FAILED),
            (1, Reason.NO_SPACE),
            (2, Reason.NOT_PROVEN),
            (3, Reason.TOOL_HUNG),
        ):
            take = self.move(past=past, outcome=Outcome(reason)).take_after(9.0)
            past = take.past
            self.assertEqual(past.attempts, attempts)
        self.assertEqual(take.state, State.RESTING)

    def test_a_later_step_that_fails_leaves_what_is_on_record_of_the_copy(self) -> None:
        done = self.move(copy=File("x.opus", 400, 5)).take_after(9.0)
        smaller = self.move(Smaller, removes=())
        smaller.take, smaller.source = done, done.file
        smaller.refuse(OSError(28, "No space left on device", "x"))
        after = smaller.take_after(10.0)
        self.assertEqual(
            (smaller.reason, after.past.size, after.past.compressed), (Reason.NO_SPACE, 400, 9.0)
        )
        self.assertEqual(after.state, State.COMPRESSED)

    def test_restored_and_archived(self) -> None:
        done = self.move(copy=File("x.opus", 400, 5), removes=()).take_after(9.0)
        back_again = self.move(BringBack, copy=WEBM, removes=done.copies)
        back_again.take, back_again.outcome = done, Outcome(Reason.RESTORED)
        back = back_again.take_after(10.0)
        self.assertEqual((back.state, back.name_now("x.opus")), (State.RESTORED, "x.webm"))
        away = self.move(Store, removes=done.files)
        away.take, away.place = done, Place("/cold", "x.opus", 400, 5, "", 0, (0, 0), 1.0)
        self.assertEqual(away.take_after(10.0).state, State.ARCHIVED)


class Planning(Case):
    def plan(self, **settings: Any) -> list[Move]:
        settings = {"dry_run": True, **settings}
        config = service.Config(recordings_dir=str(self.root), **settings)
        report: Any = SimpleNamespace(
            error=self.told.append, once=self.told.append, defect=self.told.append, due=0
        )
        self.night = run = service.Run(config, report)
        run.now = NOW
        run.staging = service.Staging(run.library)
        run.committer = service.Committer(run)
        run.is_locked = not config.dry_run
        return list(itertools.chain(*run.plan()))

    def test_the_oldest_first_and_only_what_is_due_and_selected(self) -> None:
        self.add("2025-10-27/b.webm"), self.add("2025-10-28/a.webm")
        os.utime(self.root / "2025-10-28/a.webm", (OLD - 5, OLD - 5))
        os.utime(self.add("2025-10-28/young.webm"), (NOW, NOW))
        self.assertEqual(
            [move.path for move in self.plan()], ["2025-10-28/a.webm", "2025-10-27/b.webm"]
        )
        self.assertEqual([move.path for move in self.plan(limit=1)], ["2025-10-28/a.webm"])
        for settings in (
            {"only": ("2025-10-27",)},
            {"only": ("*/b.*",)},
            {"until": "2025-10-27"},
            {"only": (str(self.root / "2025-10-27/"),)},
        ):
            self.assertEqual(
                [move.path for move in self.plan(**settings)], ["2025-10-27/b.webm"], settings
            )
        self.assertEqual(self.plan(only=("2025-10",)), [])
        self.assertIn("fits nothing", self.told[-1])

    def test_a_folder_far_in_the_future_is_selected_as_any_other(self) -> None:
        self.add("9999-12-31/a.webm")
        for settings in ({}, {"since": "2025-10-27"}):
            self.assertEqual([move.path for move in self.plan(**settings)], ["9999-12-31/a.webm"])

    def test_a_clash_is_told_for_each_original(self) -> None:
        self.add("d/x.webm"), self.add("d/x.WEBM")
        self.assertEqual([move.reason for move in self.plan()], [Reason.NAME_TAKEN] * 2)

    def test_a_begun_restore_is_finished_whether_its_file_has_come_or_not(self) -> None:
        for name in "cd":
            place = Place("/cold/d", f"{name}.opus", 5, OLD * 10**9, "", 0o644, (0, 0), 1.0)
            known = {"size": 5, "mtime_ns": OLD * 10**9, "suffix": ".opus"}
            self.remember(f"d/{name}", place=place, action="restored", **known)
        self.add("d/c.opus")
        works = self.plan()
        self.assertEqual(
            [(type(move), move.path) for move in works], [(Fetch, "d/d.opus"), (Fetch, "d/c.opus")]
        )

    def test_a_folder_at_rest_is_told_by_its_files_until_something_changes(self) -> None:
        for folder in ('d"\\é', ""):
            self.add(os.path.join(folder, "x.webm"))
            self.remember(
                os.path.join(folder, "x"),
                action="kept",
                first_size=5,
                mtime_ns=OLD * 10**9,
                settings=SETTINGS,
            )
        looked: list[str] = []
        resolve = service.resolve_recordings

        def look(folder: service.Folder) -> list[service.Recording]:
            looked.append(folder.path)
            return resolve(folder)

        watched = mock.patch.object(service, "resolve_recordings", look)
        watched.start()
        self.addCleanup(watched.stop)

        def night(**settings: Any) -> int:
            looked.clear()
            self.plan(dry_run=False, **settings)
            planned = len(looked)
            self.night.committer.finish()
            return planned

        self.assertEqual([night(), night(), night()], [2, 0, 0])
        self.assertEqual([night(tiers=(service.Tier(9e9, 64000),)), night()], [2, 2])
        self.add("x.json", {})
        self.assertEqual([night(), night()], [1, 0])
        self.remember("x", action="kept", first_size=5, mtime_ns=OLD * 10**9, settings=SETTINGS)
        self.assertEqual([night(), night()], [1, 0])

    def test_a_recording_is_archived_as_a_whole_or_not_at_all(self) -> None:
        tiers = (service.Tier(10, archive="/cold"),)
        for name in "ab":
            self.add(f"d/{name}.opus")
            self.remember(
                f"d/{name}",
                suffix=".opus",
                size=5,
                mtime_ns=OLD * 10**9,
                action="compressed",
                bitrate=96000,
            )
        with open(self.root / ".compression/history.jsonl", "a") as file:
            file.write(json.dumps({"type": "run", "time": time.time()}) + "\n")
        self.add("d/a.json", {"chunks": [{"file": "a.opus"}, {"file": "b.opus"}]})
        moves = self.plan(tiers=tiers)
        self.assertEqual(
            [(type(move), move.path) for move in moves], [(Store, "d/a.opus"), (Store, "d/b.opus")]
        )
        os.unlink(self.root / "d/b.opus")
        self.assertEqual(self.plan(tiers=tiers), [])


if __name__ == "__main__":
    unittest.main()
