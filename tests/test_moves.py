"""The table of moves, and that none of them loses anything, whatever happens beside it: runs that
were cut short, servers that write meanwhile, archives that are not what they were."""

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
from typing import Any, Optional
from unittest import mock

import compression_service as service
from compression_service import (
    DAY,
    RESTORING,
    Action,
    Adopt,
    BringBack,
    Compress,
    Config,
    Fetch,
    File,
    Free,
    Moment,
    Move,
    Past,
    Place,
    Policy,
    Reason,
    Recording,
    Smaller,
    State,
    Store,
    Take,
    Tier,
    next_move,
    take_of,
)

RECORDINGS = Path(__file__).resolve().parent / "recordings"
NAMES = ("a-chunk-1", "a-chunk-2")
SIDECAR = {"id": "x", "chunks": [{"file": f"{name}.webm"} for name in NAMES]}
NOW = 1_700_000_000.0
AGE = 40  # days
MADE = int((NOW - AGE * DAY) * 1e9)
WEBM = File("x.webm", 1000, MADE)
OPUS = File("x.opus", 600, MADE)
PLACE = Place("/cold/archive-of-recordings/day", "x.opus", 600, MADE, "ab", 0o644, (0, 0), NOW)
TIER = (Tier(30, bitrate=64_000),)


def past(action: Action = Action.COMPRESSED, **values: Any) -> Past:
    known = {"mtime_ns": MADE, "first_size": 1000, "suffix": ".opus", "size": 600}
    known.update(bitrate=96_000, compressed=NOW - 10 * DAY)
    return Past(action.value, **{**known, **values})


def take(*files: File, **values: Any) -> Take:
    return take_of("day/x", files, **values)


def move_for(one: Take, policy: Optional[Policy] = None, **settings: Any) -> Optional[Move]:
    moment = Moment(NOW, settings.pop("careful", NOW))
    recording = Recording("day", (one,), policy=policy or Policy())
    moves = service.moves_of(recording, Config(**settings), moment)
    return moves[-1] if moves else None


class TestTableOfMoves(unittest.TestCase):
    """moves_of(), row by row. Pure, so nothing here touches a disk."""

    def assert_move(
        self, kind: Optional[type[Move]], one: Take, *args: Any, **settings: Any
    ) -> Any:
        move = move_for(one, *args, **settings)
        self.assertIs(move and type(move), kind)
        self.assertIsNone(move and move.outcome)
        return move

    def assert_refused(self, reason: Reason, one: Take, *args: Any, **settings: Any) -> None:
        move = move_for(one, *args, **settings)
        assert move and move.outcome
        self.assertIs(move.outcome.reason, reason)

    def test_an_original_that_is_old_enough_is_compressed(self) -> None:
        self.assertEqual(self.assert_move(Compress, take(WEBM)).removes, (WEBM,))
        for kept in ({"delete_originals": False}, {"keep_originals_days": 3}):
            self.assertEqual(self.assert_move(Compress, take(WEBM), **kept).removes, ())
        self.assert_move(None, take(WEBM), age_threshold_days=AGE + 1)
        self.assert_move(None, take(WEBM), Policy(after_days=AGE + 1))

    def test_a_copy_of_ours_beside_its_original_is_adopted_before_anything_else(self) -> None:
        tagged = take(WEBM, OPUS, rates={"x.opus": 96_000})
        self.assertEqual(self.assert_move(Adopt, tagged, target_bitrate=64_000).removes, (WEBM,))
        self.assertEqual(self.assert_move(Adopt, tagged, tiers=TIER).removes, ())
        self.assert_refused(Reason.POLICY_KEEP, tagged, Policy(keep=True))

    def test_a_strangers_file_in_the_copys_place_keeps_the_original(self) -> None:
        self.assert_refused(Reason.NAME_TAKEN, take(WEBM, OPUS))
        self.assert_move(Compress, take(WEBM, File("x.m4a", 5, 5)))

    def test_two_originals_of_one_name_are_both_kept(self) -> None:
        self.assert_refused(Reason.NAME_TAKEN, take(WEBM, File("x.WEBM", 7, MADE)))

    def test_a_new_original_under_an_old_name_never_loses_the_earlier_copy(self) -> None:
        again = take(File("x.webm", 1234, MADE + 5), OPUS, past=past())
        self.assertIs(again.state, State.WAITING)
        self.assertEqual(again.name_now("x.webm"), "x.webm")
        self.assertEqual(again.name_now("x.opus"), "x.opus")
        self.assert_move(Adopt, again)  # which must prove it, and will not

    def test_another_recording_under_a_lost_copys_name_does_not_replace_it(self) -> None:
        lost = past(lost=Reason.ROTTEN.code)
        ours = {"past": lost, "rates": {"x.opus": 96_000}}
        self.assert_move(Smaller, take(WEBM, OPUS, **ours))
        self.assert_move(None, take(File("x.webm", 1234, MADE + 5), OPUS, **ours))

    def test_what_came_back_counts_from_then_whatever_time_its_file_has(self) -> None:
        for source in (WEBM, File("x.webm", 1000, MADE - 3600 * 10**9)):
            move = self.assert_move(Compress, take(source, past=past(suffix="", size=0, back=NOW)))
            self.assertEqual(move.past_after(NOW).back, NOW)

    def test_a_kept_original_goes_when_its_days_are_over_by_the_careful_clock(self) -> None:
        kept = take(WEBM, OPUS, past=past())
        self.assertEqual(self.assert_move(Free, kept, keep_originals_days=9).removes, (WEBM,))
        self.assert_move(None, kept, keep_originals_days=11)
        self.assert_move(None, kept, keep_originals_days=9, careful=NOW - 5 * DAY)
        self.assert_move(None, kept, delete_originals=False)

    def test_a_tier_makes_a_copy_smaller_from_the_best_source_there_is(self) -> None:
        for files, source in (((OPUS,), OPUS), ((WEBM, OPUS), WEBM)):
            plan = self.assert_move(Smaller, take(*files, past=past()), tiers=TIER)
            self.assertEqual(plan.source, source)
        self.assert_move(None, take(OPUS, past=past(bitrate=64_000)), tiers=TIER)
        self.assert_move(None, take(OPUS, past=past()), Policy(bitrate=128_000), tiers=TIER)
        self.assert_move(None, take(OPUS, past=past()), target_bitrate=32_000)
        self.assert_move(None, take(OPUS), tiers=TIER)  # a stranger's

    def test_what_was_kept_rests_until_something_it_rests_on_changes(self) -> None:
        plan = self.assert_move(Compress, take(WEBM))
        kept = past(Action.KEPT, suffix="", size=0, settings=plan.settings)
        self.assert_move(None, take(WEBM, past=kept))
        self.assertIs(take(WEBM, past=kept).state, State.RESTING)
        self.assert_move(Compress, take(WEBM, past=kept), retry=True)
        self.assert_move(Compress, take(WEBM, past=kept), target_bitrate=64_000)
        self.assert_move(Compress, take(WEBM, past=kept), Policy(bitrate=32_000))
        self.assert_move(Compress, take(WEBM._replace(size=5), past=kept))
        unread = next_move(take(WEBM, past=kept), None, Config(), Moment(NOW, NOW))
        self.assertIsNone(unread)

    def test_a_failure_is_tried_again_by_the_next_two_runs(self) -> None:
        settings = self.assert_move(Compress, take(WEBM)).settings
        for attempts, move in ((1, Compress), (2, Compress), (3, None)):
            failed = past(Action.FAILED, suffix="", size=0, settings=settings, attempts=attempts)
            self.assert_move(move, take(WEBM, past=failed))

    def test_a_sidecar_that_cannot_be_edited_holds_only_what_would_move(self) -> None:
        broken = Policy(unreadable="x.json: it is empty")
        self.assert_refused(Reason.SIDECAR, take(WEBM), broken)
        self.assert_move(None, take(OPUS, past=past()), broken)

    def test_what_is_one_file_and_at_rest_goes_to_the_archive(self) -> None:
        cold = {"tiers": (Tier(30, archive="/cold"),)}
        plan = self.assert_move(Store, take(OPUS, past=past()), **cold)
        self.assertEqual(plan.removes, (OPUS,))
        settings = self.assert_move(Compress, take(WEBM), **cold).settings
        kept = past(Action.KEPT, suffix="", size=0, settings=settings)
        self.assert_move(Store, take(WEBM, past=kept), **cold)
        self.assert_move(None, take(WEBM, OPUS, past=past()), delete_originals=False, **cold)
        keep = Policy(keep=True)
        self.assert_refused(Reason.POLICY_KEEP, take(OPUS, past=past()), keep, **cold)
        refused = past(Action.FAILED, move="archive", settings=settings, attempts=1)
        self.assert_move(Store, take(OPUS, past=refused), **cold)
        self.assert_move(None, take(OPUS, past=refused._replace(attempts=3)), **cold)

    def test_a_place_is_on_record_only_for_what_was_archived(self) -> None:
        cold = {"tiers": (Tier(30, archive="/cold"),)}
        store = self.assert_move(Store, take(OPUS, past=past()), **cold)
        store.place = PLACE
        self.assertEqual(store.past_after(NOW).place, PLACE)
        store.outcome = service.Outcome(Reason.CHANGED)
        self.assertIsNone(store.past_after(NOW).place)

    def test_a_restore_that_was_cut_short_is_finished_and_then_rests(self) -> None:
        back = past(Action.RESTORED, code=RESTORING)
        self.assertEqual(self.assert_move(BringBack, take(WEBM, OPUS, past=back)).removes, (OPUS,))
        cold = {"tiers": (Tier(30, archive="/cold"),)}
        self.assert_move(Fetch, take(past=back._replace(place=PLACE)), **cold)
        back = past(Action.RESTORED)
        self.assert_move(None, take(WEBM, OPUS, past=back))  # the copy is another's
        self.assert_move(None, take(WEBM, past=back))
        self.assert_move(None, take(past=back))  # deleted by its owner since
        self.assert_move(Compress, take(WEBM, past=back), retry=True)

    def test_a_restore_that_cannot_be_finished_is_given_up_after_three_nights(self) -> None:
        cold = {"tiers": (Tier(30, archive="/cold"),)}
        one = take(past=past(Action.RESTORED, code=RESTORING, move="restore", place=PLACE))
        for _ in range(3):
            move = self.move_for_refused(one)
            one = take(past=move.past_after(NOW))
        self.assert_move(None, one)
        self.assertIsNone(service.likely_move(one, Config(), Moment(NOW, NOW)), "it rests")
        self.move_for_refused(one, retry=True)
        self.assert_move(Fetch, one, **cold)  # the settings have changed
        self.assertEqual(one.state, State.ARCHIVED)

    def move_for_refused(self, one: Take, **settings: Any) -> Move:
        self.assert_refused(Reason.NOT_RESTORED, one, **settings)
        move = move_for(one, **settings)
        assert move
        return move

    def test_documents_call_a_take_by_the_file_that_stands_for_it(self) -> None:
        self.assertEqual(take(WEBM, OPUS, past=past()).name_now("x.webm"), "x.opus")
        self.assertEqual(take(OPUS, past=past()).name_now("x.WEBM"), "x.opus")
        self.assertEqual(take(WEBM, past=past(Action.RESTORED)).name_now("x.opus"), "x.webm")
        self.assertEqual(take(WEBM, OPUS).name_now("x.webm"), "x.webm")


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
        """Something that happens once, between the proof of the second chunk and its commit. Which
        chunks are in a commit depends on how fast each is proven."""
        real, once = service.Committer.commit, iter([happens])

        def commit(committer: service.Committer, works: Any) -> None:
            if any(work.path.endswith("a-chunk-2.webm") for work in works):
                next(once, lambda: None)()
            real(committer, works)

        return mock.patch.object(service.Committer, "commit", commit)

    def originals_left(self) -> set[str]:
        return {name for name in self.names() if name.endswith(".webm")}

    def test_an_original_stays_while_its_sidecar_cannot_be_written(self) -> None:
        with self.failing("rewrite", PermissionError(1, "immutable")):
            self.assertEqual(self.run_cli(), 1)
        self.assertIn("document cannot be written", self.said)
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

    def test_what_a_sidecar_says_since_the_plan_keeps_a_recording(self) -> None:
        def keep() -> None:
            about = {"id": "x", "chunks": [{"file": "a-chunk-2.webm"}]}
            text = json.dumps({**about, "compression_policy": {"keep": True}})
            (self.folder / "a-chunk-2.json").write_text(text)

        with self.just_before(keep):
            self.assertEqual(self.run_cli(), 0, self.said)
        self.assertIn("a-chunk-2.webm got other documents meanwhile", self.said)
        self.assertIn("a-chunk-2.webm", self.originals_left())
        self.assertNotIn("a-chunk-2.opus", self.names())

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
                # What a run would correct is listed, and is no error.
                self.assertEqual(self.run_cli("check"), int(path == copy))
                self.assertIn(path.name, self.said)
            path.write_bytes(before)
