"""ffmpeg that lies, fails and hangs: no recording is lost, none is replaced by what is not its audio, nothing runs on after us."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from tests import standins
from tests.base import FFMPEG, Ran, decode
from tests.faults import FaultCase, HastyClock, control_characters

SESSION = ["2025-10-27/14-30-45-chunk-1.webm"]
SINGLE = "2025-10-28/09-00-00.webm"
EVERY = [*SESSION, SINGLE]


class ToolCase(FaultCase):
    def setUp(self) -> None:
        super().setUp()
        self.add_session(chunks=1, first=1)
        self.audio = self.add("ff_chunk_1", SINGLE).read_bytes()
        self.before = self.snapshot()

    def run_with(self, does: Callable[..., Any], *arguments: str, **settings: Any) -> Ran:
        """Run with a stand-in for ffmpeg."""
        words = arguments if "-j" in arguments else (*arguments, "-j", "1")
        ran = self.run_cli("--json", *words, env=self.stand_in(does, **settings))
        self.assertNotIn("Traceback", ran.err + self.log())
        self.assert_no_leftovers()
        self.assert_nothing_runs()
        return ran

    def assert_hangs(self, hung: str, count: int) -> None:
        """The program has waited for a deadline so often."""
        self.assertEqual(len(HastyClock(hung).hangs()), count)

    def assert_untouched(self, ran: Ran, *words: str, action: str = "failed") -> None:
        """Every original is there, no copy is, sidecars and index are as they were, and each recording says why."""
        self.assertEqual(self.snapshot(), self.before)
        for path in EVERY:
            self.assert_kept(ran, path, *words, action=action)
        self.assertEqual(ran.code, 1 if action == "failed" else 0)
        self.assertEqual((ran.summary[action], ran.summary["compressed"]), (len(EVERY), 0))

    def assert_blamed(self, ran: Ran, *words: str) -> None:
        """What is ffmpeg's fault ends the run with one sentence, and is held against no recording."""
        self.assertEqual(ran.code, 4, ran.out + ran.err)
        self.assertEqual(self.snapshot(), self.before)
        self.assertEqual(ran.outcomes, {})
        for word in ("ffmpeg does not work", "Install it", *words):
            self.assertIn(word, ran.err)
        self.assertNotIn('"type": "recording"', self.history().read_text())

    def assert_recovers(self) -> None:
        """With a true ffmpeg the next run does it all."""
        self.driver = None
        ran = self.run_cli("--json")
        self.assertEqual(ran.code, 0, ran.out + ran.err)
        for path in EVERY:
            self.assert_compressed(path)
        self.assert_sidecars_true()


class LyingFfmpeg(ToolCase):
    """It exits 0, and what it wrote is not the recording: test_prove has every lie."""

    def test_silence_of_the_same_length_is_noticed(self) -> None:
        self.assert_untouched(self.run_with(standins.silence), "the source's ")

    def test_the_source_itself_under_the_copys_name_is_noticed(self) -> None:
        ran = self.run_with(standins.the_source_itself)
        self.assertEqual(self.snapshot(), self.before)
        for path in SESSION:
            self.assert_kept(ran, path, "expected opus in ogg", action="failed")
        self.assert_kept(
            ran, SINGLE, "too little to gain"
        )  # Firefox's recording is Ogg Opus already


class FailingFfmpeg(ToolCase):
    """It says itself that something went wrong, one way or another."""

    def test_whole_output_and_exit_255_is_a_failure(self) -> None:
        ran = self.run_with(standins.exit_255_after_the_truth)
        self.assert_untouched(ran, "exit code 255")

    def test_one_that_encodes_nothing_is_blamed_and_the_night_after_its_repair_does_it_all(
        self,
    ) -> None:
        for _ in range(4):
            self.assert_blamed(self.run_with(standins.exit_code, code=255), "exit code 255")
        self.assert_recovers()

    def test_a_crash_after_whole_output_is_a_failure(self) -> None:
        ran = self.run_with(standins.fault_after_the_truth, fault="crash")
        self.assert_untouched(ran, "SIGSEGV")

    def test_a_crash_half_way_is_a_failure(self) -> None:
        ran = self.run_with(standins.crash_half_way)
        self.assert_untouched(ran, "SIGSEGV")

    def test_whole_output_with_an_error_on_stderr_is_not_believed(self) -> None:
        ran = self.run_with(standins.fault_after_the_truth, fault="complain")
        self.assert_untouched(ran, "it hurts", action="kept")

    def test_endless_messages_are_cut_off(self) -> None:
        ran = self.run_with(standins.endless_messages)
        self.assertEqual((self.snapshot(), ran.summary["compressed"]), (self.before, 0))

    def test_escape_codes_in_messages_are_not_printed(self) -> None:
        forged = "\x1b]0;owned\x07\rFORGED"
        ran = self.run_with(standins.exit_code_where_it_encodes, code=1, says=forged)
        self.assert_untouched(ran, "FORGED", action="kept")
        reasons = "".join(outcome["reason"] for outcome in ran.outcomes.values())
        self.assertEqual(control_characters(reasons + ran.err + self.log()), [])

    def test_a_recording_at_which_it_fails_alone_is_kept_as_damaged_and_remembered(self) -> None:
        ran = self.run_with(standins.fault_at, path=SINGLE, fault="exit")
        self.assert_kept(ran, SINGLE, "damaged", "ffmpeg cannot decode it")
        self.assertEqual(ran.code, 0)
        ran = self.run_with(standins.fault_at, path=SINGLE, fault="exit")
        self.assertEqual((ran.code, ran.outcomes), (0, {}))

    def test_one_that_was_killed_says_nothing_of_the_recording(self) -> None:
        for _ in range(3):
            ran = self.run_with(standins.fault_at, path=SINGLE, fault="kill")
            self.assert_kept(ran, SINGLE, "SIGKILL", action="failed")
            self.assertEqual(ran.code, 1)
        self.assert_recovers()

    def test_lines_that_ffmpeg_did_not_tag_are_no_word_on_a_recording(self) -> None:
        ran = self.run_with(standins.truth_with_a_banner)
        self.assertEqual((ran.code, ran.summary["compressed"]), (0, len(EVERY)), ran.out + ran.err)


class Piped(ToolCase):
    """With more cores than recordings, a recording is decoded, encoded and decoded again in three processes at once."""

    def run_piped(self, **settings: str) -> Ran:
        sign = self.folder / "piped"
        ran = self.run_with(standins.piped, "-j", "8", sign=str(sign), **settings)
        self.assertTrue(sign.exists(), "nothing was piped")
        return ran

    def assert_all_compressed(self, ran: Ran) -> None:
        self.assertEqual(ran.code, 0, ran.out + ran.err)
        for path in EVERY:
            self.assert_compressed(path)
        self.assert_sidecars_true()

    def test_the_copy_is_the_same_to_the_sample(self) -> None:
        self.add("ch_ctx_suspend_4_3_4s", "stereo.webm")
        paths = [*EVERY, "stereo.webm"]
        self.run_with(standins.truth)
        copies = [self.assert_compressed(path) for path in paths]
        sounds = [decode(copy, 48_000) for copy in copies]
        sizes = [copy.stat().st_size for copy in copies]
        self.doCleanups()
        self.setUp()
        self.add("ch_ctx_suspend_4_3_4s", "stereo.webm")
        self.assert_all_compressed(self.run_piped())
        for path, sound, size in zip(paths, sounds, sizes):
            copy = self.assert_compressed(path)
            self.assertEqual(decode(copy, 48_000), sound, path)
            self.assertAlmostEqual(copy.stat().st_size, size, delta=100)

    def test_one_after_the_other_is_the_way_where_any_of_them_fails(self) -> None:
        """test_prove has every fault of each of the three."""
        self.assert_all_compressed(self.run_piped(at="encoder", fault="crash"))

    def test_one_after_the_other_is_the_way_where_any_of_them_hangs(self) -> None:
        (self.library / SINGLE).unlink()  # the clock would hasten the deadline of one beside it
        hung = self.hasten_deadlines()
        ran = self.run_piped(at="listener", fault="hang", hung=hung)
        self.assertEqual(ran.code, 0, ran.out + ran.err)
        self.assert_compressed(SESSION[0])
        self.assertTrue(HastyClock(hung).hangs())

    def test_another_sound_is_noticed(self) -> None:
        self.assert_untouched(self.run_piped(at="encoder", fault="quieter"), "the source's ")

    def test_half_of_the_audio_is_noticed(self) -> None:
        # The decoder is told that no one listens, or the copy is too short.
        self.run_piped(at="encoder", fault="half")
        for path in EVERY:
            self.assert_audio_complete(path)

    def test_a_file_that_is_not_what_was_decoded_is_noticed(self) -> None:
        self.drive(
            "true_pipe = program.Tools.pipe\n"
            "def pipe(self, commands, seconds, copy):\n"
            "    told = true_pipe(self, commands, seconds, copy)\n"
            "    if copy == '/dev/null': return told\n"
            "    with open(copy, 'r+b') as file:\n"
            "        content = bytearray(file.read())\n"
            "        page = content.rindex(b'OggS')\n"
            "        content[-10] ^= 1\n"
            "        content[page + 22 : page + 26] = bytes(4)\n"
            "        checksum = program.ogg_checksum(bytes(content[page:]))\n"
            "        content[page + 22 : page + 26] = checksum.to_bytes(4, 'little')\n"
            "        file.seek(0)\n"
            "        file.write(content)\n"
            "    return told\n"
            "program.Tools.pipe = pipe"
        )
        self.assert_untouched(self.run_piped(), "the bytes that were decoded", "others in the file")


class Batches(ToolCase):
    """Several recordings in one process: what befalls one of them costs only that one."""

    session = [f"2025-10-27/14-30-45-chunk-{number}.webm" for number in (1, 2, 3)]

    def setUp(self) -> None:
        super().setUp()
        (self.library / "index.json").unlink()
        self.add_session(chunks=3)

    def run_batches(self, then: Callable[..., Any], **settings: Any) -> Ran:
        """Run with one worker, so that its batches are as large as they get."""
        sign = self.folder / "several-outputs"
        ran = self.run_with(standins.batched, sign=str(sign), then=then.__name__, **settings)
        self.assertTrue(sign.exists(), "no batch had several recordings")
        self.assert_sidecars_true()
        self.assert_compressed(SINGLE)
        return ran

    def assert_only_one_left(self, ran: Ran, *words: str, action: str = "failed") -> None:
        self.assert_kept(ran, self.session[1], *words, action=action)
        self.assertEqual(ran.code, 1 if action == "failed" else 0)
        for path in (self.session[0], self.session[2]):
            self.assert_compressed(path)

    def test_a_lie_about_one_file(self) -> None:
        ran = self.run_batches(standins.silence_for_one, path=self.session[1])
        self.assert_only_one_left(ran, "the source's ")

    def test_a_crash_over_one_file(self) -> None:
        ran = self.run_batches(standins.fault_where_it_encodes, path=self.session[1], fault="crash")
        self.assert_only_one_left(ran, "SIGSEGV")

    def test_a_message_about_one_file(self) -> None:
        ran = self.run_batches(
            standins.fault_where_it_encodes, path=self.session[1], fault="complain", after=True
        )
        self.assert_only_one_left(ran, "it hurts", action="kept")

    def test_a_hang_over_one_file(self) -> None:
        hung = self.hasten_deadlines()
        ran = self.run_batches(standins.hang_where_it_encodes, path=self.session[1], hung=hung)
        self.assert_only_one_left(ran, "hung")
        self.assert_hangs(hung, 2)

    def test_the_audio_of_two_exchanged(self) -> None:
        # The first is encoded once more, as its peaks exceed full scale.
        ran = self.run_batches(standins.two_exchanged)
        self.assert_kept(ran, self.session[1], "the source's ", action="failed")


class HangingFfmpeg(ToolCase):
    """It never ends; its deadline does."""

    def assert_ended(self, does: Callable[..., Any]) -> None:
        hung = self.hasten_deadlines()
        self.assert_untouched(self.run_with(does, hung=hung), "hung")
        self.assert_hangs(hung, 1 + len(EVERY))  # a batch, and each of its recordings

    def test_one_that_sleeps_is_ended(self) -> None:
        self.assert_ended(standins.hang_where_it_encodes)

    def test_one_that_sleeps_whatever_it_is_asked_is_ended(self) -> None:
        hung = self.hasten_deadlines()
        ran = self.run_with(standins.hang_at_everything, hung=hung)
        self.assert_blamed(ran, "no end after")

    def test_one_that_stops_itself_is_ended(self) -> None:
        self.assert_ended(standins.stop_where_it_encodes)

    def test_one_deaf_to_signals_that_goes_on_talking_is_ended(self) -> None:
        self.assert_ended(standins.deaf_and_talking)

    def test_a_hang_while_the_copy_is_decoded_is_ended(self) -> None:
        self.assert_ended(standins.hang_while_it_decodes_the_copy)

    def test_a_grandchild_holding_the_pipe_holds_nothing_up(self) -> None:
        ran = self.run_with(standins.truth_with_a_grandchild, mark=str(self.folder))
        self.assertEqual(ran.code, 0, ran.out)
        for path in EVERY:
            self.assert_compressed(path)


class OurOwnDeath(ToolCase):
    def test_after_sigkill_in_mid_encode_no_original_is_touched_and_the_next_run_finishes(
        self,
    ) -> None:
        """The orphan writes into staged files that nobody uses any more, and ends by itself."""
        sign = self.folder / "at-work"
        env = self.stand_in(standins.slow_truth, sign=str(sign))
        process = self.start("--json", "-j", "1", env=env)
        self.wait_for(sign)
        process.send_signal(signal.SIGKILL)
        process.wait()
        self.assertEqual({path: self.snapshot().get(path) for path in self.before}, self.before)
        self.assert_nothing_runs()
        self.assert_recovers()
        self.assert_no_leftovers()


class ChangingSource(ToolCase):
    """Someone else is at a recording while it is encoded: what they left is what stays."""

    def setUp(self) -> None:
        super().setUp()
        self.path = self.library / SINGLE
        self.elsewhere = self.folder / "elsewhere.webm"

    def change(self, deed: Callable[..., None], **settings: str) -> None:
        """Run with an ffmpeg that, once, does a deed to the single recording after encoding it."""
        sign = str(self.folder / "done")
        ran = self.run_with(
            standins.change_once, path=str(self.path), sign=sign, deed=deed.__name__, **settings
        )
        self.assertEqual((ran.code, ran.outcomes[SINGLE]["action"]), (1, "failed"))
        self.assertIn("changed", ran.outcomes[SINGLE]["reason"])
        self.assertFalse(self.path.with_suffix(".opus").exists())
        for other in SESSION:
            self.assert_compressed(other)

    def test_one_that_grew_is_kept(self) -> None:
        self.change(standins.grow)
        self.assertEqual(self.path.read_bytes(), self.audio + b"more")

    def test_one_written_anew_is_kept(self) -> None:
        self.change(standins.write_anew)
        self.assertEqual(self.path.read_bytes(), self.audio)

    def test_one_replaced_by_a_file_of_the_same_size_and_time_is_kept(self) -> None:
        self.change(standins.replace_alike)
        self.assertEqual(self.path.read_bytes(), b"x" * len(self.audio))

    def test_one_that_became_a_symlink_is_left_alone(self) -> None:
        self.change(standins.link_elsewhere, elsewhere=str(self.elsewhere))
        self.assertTrue(self.path.is_symlink())
        self.assertEqual(self.elsewhere.read_bytes(), self.audio)

    def test_one_that_vanished_is_passed_over_and_not_brought_back(self) -> None:
        ran = self.run_with(standins.take_away, path=str(self.path), elsewhere=str(self.elsewhere))
        self.assertEqual((ran.code, sorted(ran.outcomes)), (0, SESSION))
        self.assertIn(f"{SINGLE} was deleted meanwhile", self.log())
        self.assertFalse(self.path.with_suffix(".opus").exists())
        self.assertEqual(self.elsewhere.read_bytes(), self.audio)

    def test_a_copy_of_the_users_that_came_meanwhile_is_not_overwritten(self) -> None:
        copy = self.path.with_suffix(".opus")
        ran = self.run_with(standins.put_beside, path=str(copy))
        self.assertEqual((ran.code, ran.outcomes[SINGLE]["action"]), (1, "failed"))
        self.assertIn("name already taken", ran.outcomes[SINGLE]["reason"])
        self.assertEqual(copy.read_text(), "mine")
        self.assertEqual(self.path.read_bytes(), self.audio)


class MissingFfmpeg(ToolCase):
    def setUp(self) -> None:
        super().setUp()
        self.empty = self.folder / "empty"
        self.empty.mkdir()

    def assert_refused(self, ran: Ran, *words: str) -> None:
        self.assertEqual(ran.code, 4, ran.err)
        for word in words:
            self.assertIn(word, ran.err)
        self.assertEqual(self.snapshot(), self.before)
        self.assert_no_leftovers()

    def test_without_ffmpeg_nothing_is_touched_and_the_exit_code_is_4(self) -> None:
        self.drive("program.TOOL_PATH = ''")
        self.assert_refused(
            self.run_cli(env={"PATH": str(self.empty)}), "it is in none of", "Install"
        )

    def test_ffmpeg_without_libopus_stops_the_run_with_exit_code_4(self) -> None:
        self.drive("program.TOOL_PATH = ''")
        says = "[fatal] Unknown encoder 'libopus'"
        env = self.stand_in(standins.exit_code, code=1, says=says)
        ran = self.run_cli("--json", env={**env, "PATH": env["PATH"].split(":")[0]})
        self.assert_refused(ran, "libopus")

    def test_one_that_lacks_libopus_is_passed_over_for_a_later_one_that_has_it(self) -> None:
        self.assertEqual(self.run_with(standins.without_libopus).code, 0)
        self.assert_compressed(SINGLE)

    def test_ffmpeg_is_found_in_the_usual_folders_when_path_has_none(self) -> None:
        self.drive(f"program.TOOL_PATH = {os.path.dirname(FFMPEG) + ':/usr/bin:/bin'!r}")
        ran = self.run_cli(env={"PATH": str(self.empty)})
        self.assertEqual(ran.code, 0, ran.out)
        self.assert_compressed(SINGLE)

    def test_a_file_called_ffmpeg_that_is_no_program_fails_without_a_traceback(self) -> None:
        env = self.stand_in(standins.truth)
        (self.folder / "stand-ins" / "ffmpeg").write_bytes(b"\x7fELF" + bytes(60))
        ran = self.run_cli("--json", env=env)
        self.assertIn(ran.code, (1, 4))
        self.assertEqual(self.snapshot(), self.before)
        self.assertNotIn("Traceback", ran.err + self.log())


class WhatIsHeld(FaultCase):
    def test_what_is_through_takes_no_memory_any_more(self) -> None:
        """The packets of each would be 6 to 40 kB."""
        for number in range(30):
            self.add("chunk_0", f"{number}.webm")
        self.drive(
            "import gc\n"
            "carry_out = program.Run.carry_out\n"
            "def count(self, groups):\n"
            "    held = [each for each in gc.get_objects() if isinstance(each, (program.Move, program.Probe))]\n"
            "    print('held:', len(held), file=sys.stderr)\n"
            "    carry_out(self, groups)\n"
            "program.Run.carry_out = count"
        )
        for words in (("--dry-run",), ()):
            ran = self.run_cli(*words)
            self.assertEqual((ran.code, ran.err), (0, "held: 0\n"))
