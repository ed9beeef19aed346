"""next_move(): the table of moves, row by row. Pure, so nothing here touches a disk."""

from __future__ import annotations

import unittest
from typing import Any, Optional

from compression_service import (
    DAY,
    Action,
    Config,
    File,
    Moment,
    Move,
    Past,
    Place,
    Plan,
    Policy,
    Reason,
    State,
    Take,
    Tier,
    next_move,
)

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
    originals = tuple(file for file in files if file.suffix.lower() == ".webm")
    copies = tuple(file for file in files if file not in originals)
    return Take("day/x", originals, copies, **values)


def plan_for(one: Take, policy: Optional[Policy] = None, **settings: Any) -> Optional[Plan]:
    moment = Moment(NOW, settings.pop("careful", NOW))
    return next_move(one, policy or Policy(), Config(**settings), moment)


class TestTableOfMoves(unittest.TestCase):
    def assert_move(self, move: Optional[Move], one: Take, *args: Any, **settings: Any) -> Plan:
        plan = plan_for(one, *args, **settings)
        self.assertEqual(plan and plan.move, move)
        self.assertIsNone(plan and plan.refusal)
        return plan  # type: ignore[return-value]

    def assert_refused(self, reason: Reason, one: Take, *args: Any, **settings: Any) -> Plan:
        plan = plan_for(one, *args, **settings)
        assert plan and plan.refusal
        self.assertIs(plan.refusal.reason, reason)
        return plan

    def test_an_original_that_is_old_enough_is_compressed(self) -> None:
        self.assertEqual(self.assert_move(Move.COMPRESS, take(WEBM)).goes, (WEBM,))
        for kept in ({"delete_originals": False}, {"keep_originals_days": 3}):
            self.assertEqual(self.assert_move(Move.COMPRESS, take(WEBM), **kept).goes, ())
        self.assert_move(None, take(WEBM), age_threshold_days=AGE + 1)
        self.assert_move(None, take(WEBM), Policy(after_days=AGE + 1))

    def test_a_copy_of_ours_beside_its_original_is_adopted_before_anything_else(self) -> None:
        tagged = take(WEBM, OPUS, ours={"x.opus": 96_000})
        self.assertEqual(self.assert_move(Move.ADOPT, tagged, target_bitrate=64_000).goes, (WEBM,))
        self.assertEqual(self.assert_move(Move.ADOPT, tagged, tiers=TIER).goes, ())
        self.assert_refused(Reason.POLICY_KEEP, tagged, Policy(keep=True))

    def test_a_strangers_file_in_the_copys_place_keeps_the_original(self) -> None:
        self.assert_refused(Reason.NAME_TAKEN, take(WEBM, OPUS))
        self.assert_move(Move.COMPRESS, take(WEBM, File("x.m4a", 5, 5)))

    def test_two_originals_of_one_name_are_both_kept(self) -> None:
        self.assert_refused(Reason.NAME_TAKEN, take(WEBM, File("x.WEBM", 7, MADE)))

    def test_a_new_original_under_an_old_name_never_loses_the_earlier_copy(self) -> None:
        again = take(File("x.webm", 1234, MADE + 5), OPUS, past=past())
        self.assertIs(again.state, State.WAITING)
        self.assertEqual(again.name_now("x.webm"), "x.webm")
        self.assertEqual(again.name_now("x.opus"), "x.opus")
        self.assert_move(Move.ADOPT, again)  # which must prove it, and will not

    def test_a_kept_original_goes_when_its_days_are_over_by_the_careful_clock(self) -> None:
        kept = take(WEBM, OPUS, past=past())
        self.assertEqual(self.assert_move(Move.FREE, kept, keep_originals_days=9).goes, (WEBM,))
        self.assert_move(None, kept, keep_originals_days=11)
        self.assert_move(None, kept, keep_originals_days=9, careful=NOW - 5 * DAY)
        self.assert_move(None, kept, delete_originals=False)

    def test_a_tier_makes_a_copy_smaller_from_the_best_source_there_is(self) -> None:
        for files, source in (((OPUS,), OPUS), ((WEBM, OPUS), WEBM)):
            plan = self.assert_move(Move.SMALLER, take(*files, past=past()), tiers=TIER)
            self.assertEqual(plan.source, source)
        self.assert_move(None, take(OPUS, past=past(bitrate=64_000)), tiers=TIER)
        self.assert_move(None, take(OPUS, past=past()), Policy(bitrate=128_000), tiers=TIER)
        self.assert_move(None, take(OPUS, past=past()), target_bitrate=32_000)
        self.assert_move(None, take(OPUS), tiers=TIER)  # a stranger's

    def test_what_was_kept_rests_until_something_it_rests_on_changes(self) -> None:
        plan = self.assert_move(Move.COMPRESS, take(WEBM))
        kept = past(Action.KEPT, suffix="", size=0, settings=plan.settings)
        self.assert_move(None, take(WEBM, past=kept))
        self.assertIs(take(WEBM, past=kept).state, State.RESTING)
        self.assert_move(Move.COMPRESS, take(WEBM, past=kept), retry=True)
        self.assert_move(Move.COMPRESS, take(WEBM, past=kept), target_bitrate=64_000)
        self.assert_move(Move.COMPRESS, take(WEBM, past=kept), Policy(bitrate=32_000))
        self.assert_move(Move.COMPRESS, take(WEBM._replace(size=5), past=kept))
        unread = next_move(take(WEBM, past=kept), None, Config(), Moment(NOW, NOW))
        self.assertIsNone(unread)

    def test_a_failure_is_tried_again_by_the_next_two_runs(self) -> None:
        settings = self.assert_move(Move.COMPRESS, take(WEBM)).settings
        for attempts, move in ((1, Move.COMPRESS), (2, Move.COMPRESS), (3, None)):
            failed = past(Action.FAILED, suffix="", size=0, settings=settings, attempts=attempts)
            self.assert_move(move, take(WEBM, past=failed))

    def test_a_sidecar_that_cannot_be_edited_holds_only_what_would_move(self) -> None:
        broken = Policy(unreadable="x.json: it is empty")
        self.assert_refused(Reason.SIDECAR, take(WEBM), broken)
        self.assert_move(None, take(OPUS, past=past()), broken)

    def test_what_is_one_file_and_at_rest_goes_to_the_archive(self) -> None:
        cold = {"tiers": (Tier(30, archive="/cold"),)}
        plan = self.assert_move(Move.ARCHIVE, take(OPUS, past=past()), **cold)
        self.assertEqual(plan.goes, (OPUS,))
        settings = self.assert_move(Move.COMPRESS, take(WEBM), **cold).settings
        kept = past(Action.KEPT, suffix="", size=0, settings=settings)
        self.assert_move(Move.ARCHIVE, take(WEBM, past=kept), **cold)
        self.assert_move(None, take(WEBM, OPUS, past=past()), delete_originals=False, **cold)
        self.assert_move(None, take(OPUS, past=past()), Policy(keep=True), **cold)
        refused = past(Action.FAILED, move="archive", settings=settings, attempts=1)
        self.assert_move(Move.ARCHIVE, take(OPUS, past=refused), **cold)
        self.assert_move(None, take(OPUS, past=refused._replace(attempts=3)), **cold)

    def test_a_restore_that_was_cut_short_is_finished_and_then_rests(self) -> None:
        back = past(Action.RESTORED)
        self.assertEqual(self.assert_move(Move.RESTORE, take(WEBM, OPUS, past=back)).goes, (OPUS,))
        self.assert_move(Move.RESTORE, take(past=back._replace(place=PLACE)))
        self.assert_move(None, take(WEBM, past=back))
        self.assert_move(None, take(past=back))  # deleted by its owner since
        self.assert_move(Move.COMPRESS, take(WEBM, past=back), retry=True)

    def test_documents_call_a_take_by_the_file_that_stands_for_it(self) -> None:
        self.assertEqual(take(WEBM, OPUS, past=past()).name_now("x.webm"), "x.opus")
        self.assertEqual(take(OPUS, past=past()).name_now("x.WEBM"), "x.opus")
        self.assertEqual(take(WEBM, past=past(Action.RESTORED)).name_now("x.opus"), "x.webm")
        self.assertEqual(take(WEBM, OPUS).name_now("x.webm"), "x.webm")
