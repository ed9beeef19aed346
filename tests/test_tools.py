"""ffmpeg that lies, fails and hangs: no recording is lost, none is replaced by what is not its audio, nothing runs on after us."""

from __future__ import annotations

import os
import signal
import time
from typing import Optional

from tests.base import FFMPEG, RECORDINGS, Ran, decode
from tests.faults import FaultCase, control_characters

SESSION = ["2025-10-27/14-30-45-chunk-1.webm"]
SINGLE = "2025-10-28/09-00-00.webm"
EVERY = [*SESSION, SINGLE]
SLEEP = "import time; time.sleep(60)"

# What stand-ins begin with. Questions, probes and decodes always get the truth.
INPUTS = "inputs = [args[n + 1] for n, a in enumerate(args) if a == '-i']\n"
COPIES = INPUTS + "if not outputs: os.execv(real, [real, *args])\n"
TRUTH = COPIES + "code = subprocess.run([real, *args]).returncode\n"
# After true copies and true level files, each copy is encoded anew from other samples: its container, codec, channels and end are
# those of a perfect copy.
SPOILT = f"""{TRUTH}
RAW = ['-f', 's16le', '-ac', '1', '-ar', '48000']
SECOND = 96000  # bytes
def pcm(path):
    return bytearray(subprocess.check_output([real, '-v', 'error', '-i', path, *RAW, '-']))
def encode(path, samples):
    opus = ['-c:a', 'libopus', '-b:a', '96k', '-vbr', 'constrained', '-f', 'ogg', path]
    subprocess.run([real, '-v', 'error', '-y', *RAW, '-i', '-', *opus], input=samples, check=True)
"""
ERROR = "print('[opus @ 0x55] [error] it hurts', file=sys.stderr)"


class ToolCase(FaultCase):
    def setUp(self) -> None:
        super().setUp()
        self.add_session(chunks=1, first=1)
        self.audio = self.add("ff_chunk_1", SINGLE).read_bytes()
        self.before = self.snapshot()

    def run_with(self, body: str, *arguments: str, grace: Optional[float] = None) -> Ran:
        """Run with a stand-in for ffmpeg; `grace` is the time in seconds that it may take, whatever its work."""
        if grace is not None:
            self.drive(f"program.GRACE, program.PACE = {grace}, 0.01")
        began = time.monotonic()
        words = arguments if "-j" in arguments else (*arguments, "-j", "1")
        ran = self.run_cli("--json", *words, env=self.stand_in(body))
        if grace is not None:
            # A batch, each of its two recordings, and a sound of our own in between.
            limit = 5 + 6 * grace
            self.assertLess(time.monotonic() - began, limit, "its deadline came late")
        self.assertNotIn("Traceback", ran.err + self.log())
        self.assert_no_leftovers()
        self.assert_nothing_runs()
        return ran

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
    """It exits 0, and what it wrote is not the recording."""

    def test_half_the_output_is_noticed(self) -> None:
        ran = self.run_with(TRUTH + "for o in outputs: os.truncate(o, os.path.getsize(o) // 2)")
        self.assert_untouched(ran, "one whole opus stream")

    def test_half_the_audio_in_a_sound_file_is_noticed(self) -> None:
        ran = self.run_with(SPOILT + "for o in outputs: s = pcm(o); encode(o, s[:len(s) // 4 * 2])")
        self.assert_untouched(ran, "by its source's packets")

    def test_a_tenth_of_a_second_short_is_noticed(self) -> None:
        ran = self.run_with(SPOILT + "for o in outputs: encode(o, pcm(o)[:-SECOND // 10])")
        self.assert_untouched(ran, "by its source's packets")

    def test_half_of_both_copy_and_level_file_is_noticed(self) -> None:
        ran = self.run_with(
            COPIES
            + "os.execv(real, [real, *(w for a in args for w in ((['-t', '1.4'] if a == '-i' else []) + [a]))])"
        )
        self.assert_untouched(ran, "by its source's packets")

    def test_noise_of_the_same_length_is_noticed(self) -> None:
        ran = self.run_with(SPOILT + "for o in outputs: encode(o, os.urandom(len(pcm(o))))")
        self.assert_untouched(ran, "the source's ")

    def test_silence_of_the_same_length_is_noticed(self) -> None:
        ran = self.run_with(SPOILT + "for o in outputs: encode(o, bytes(len(pcm(o))))")
        self.assert_untouched(ran, "the source's ")

    def test_one_quiet_second_is_noticed(self) -> None:
        body = """
import array
for o in outputs:
    s = array.array('h', bytes(pcm(o)))
    for i in range(48000, 96000): s[i] //= 2
    encode(o, s.tobytes())"""
        self.assert_untouched(self.run_with(SPOILT + body), "the source's loudness at ")

    def test_a_lost_half_second_filled_with_silence_is_noticed(self) -> None:
        ran = self.run_with(
            SPOILT
            + "for o in outputs: s = pcm(o); s[SECOND:SECOND * 3 // 2] = bytes(SECOND // 2); encode(o, s)"
        )
        self.assert_untouched(ran, "the source's ", " at 1.")

    def test_audio_shifted_by_0_7_seconds_is_noticed(self) -> None:
        ran = self.run_with(
            SPOILT
            + "for o in outputs: s = pcm(o); late = SECOND * 7 // 10; encode(o, bytes(late) + s[:-late])"
        )
        self.assert_untouched(ran, "the source's ")

    def test_a_wave_turned_upside_down_is_noticed(self) -> None:
        body = "import array\nfor o in outputs: encode(o, array.array('h', [~x for x in array.array('h', bytes(pcm(o)))]).tobytes())"
        self.assert_untouched(self.run_with(SPOILT + body), "the source's ")

    def test_another_recordings_audio_is_noticed(self) -> None:
        other = str(RECORDINGS / "ch_slices_concat.webm")
        ran = self.run_with(
            SPOILT + f"other = pcm({other!r})\nfor o in outputs: encode(o, other[:len(pcm(o))])"
        )
        self.assert_untouched(ran, "the source's ")

    def test_an_empty_output_is_noticed(self) -> None:
        self.assert_untouched(
            self.run_with(COPIES + "for o in outputs: open(o, 'w').close()"), "expected", "empty"
        )

    def test_no_output_at_all_is_noticed(self) -> None:
        self.assert_blamed(self.run_with("sys.exit(0)"), "0 of 48000 samples")

    def test_half_of_whatever_it_is_asked_for_is_blamed_on_ffmpeg(self) -> None:
        half = "args[args.index('-i') : args.index('-i')] = ['-t', '0.5']\nos.execv(real, [real, *args])"
        self.assert_blamed(
            self.run_with("if '-i' not in args: os.execv(real, [real, *args])\n" + half)
        )

    def test_a_missing_level_file_proves_nothing(self) -> None:
        self.assert_untouched(self.run_with(TRUTH + "for a in levels: os.unlink(a)"))

    def test_empty_level_files_on_both_sides_prove_nothing(self) -> None:
        body = "subprocess.run([real, *args])\nfor a in levels: open(a, 'w').close()"
        self.assert_untouched(self.run_with(body), "by the source's packets")

    def test_the_source_itself_under_the_copys_name_is_noticed(self) -> None:
        ran = self.run_with(
            TRUTH + "import shutil\nfor i, o in zip(inputs, outputs): shutil.copy(i[5:], o)"
        )
        self.assertEqual(self.snapshot(), self.before)
        for path in SESSION:
            self.assert_kept(ran, path, "expected opus in ogg", action="failed")
        self.assert_kept(
            ran, SINGLE, "too little to gain"
        )  # Firefox's recording is Ogg Opus already

    def test_a_copy_in_another_codec_is_noticed(self) -> None:
        body = "for o in outputs: subprocess.run([real, '-v', 'quiet', '-i', o, '-c:a', 'flac', '-f', 'ogg', o + '~']); "
        body += "os.rename(o + '~', o)"
        self.assert_untouched(self.run_with(TRUTH + body), "FLAC")

    def test_a_copy_as_large_as_its_source_is_not_worth_it(self) -> None:
        ran = self.run_with(
            COPIES + "os.execv(real, [real, *['256k' if a == '96000' else a for a in args]])"
        )
        self.assert_untouched(ran, "too little to gain", action="kept")


class FailingFfmpeg(ToolCase):
    """It says itself that something went wrong, one way or another."""

    def test_whole_output_and_exit_255_is_a_failure(self) -> None:
        ran = self.run_with(TRUTH + "sys.exit(255)")
        self.assert_untouched(ran, "exit code 255")

    def test_one_that_encodes_nothing_is_blamed_and_the_night_after_its_repair_does_it_all(
        self,
    ) -> None:
        for _ in range(4):
            self.assert_blamed(self.run_with("sys.exit(255)"), "exit code 255")
        self.assert_recovers()

    def test_a_crash_after_whole_output_is_a_failure(self) -> None:
        self.assert_untouched(
            self.run_with(TRUTH + "os.kill(os.getpid(), signal.SIGSEGV)"), "SIGSEGV"
        )

    def test_a_crash_half_way_is_a_failure(self) -> None:
        body = "for o in outputs: open(o, 'wb').write(b'OggS' + bytes(4000))\nos.kill(os.getpid(), signal.SIGSEGV)"
        self.assert_untouched(self.run_with(COPIES + body), "SIGSEGV")

    def test_whole_output_with_an_error_on_stderr_is_not_believed(self) -> None:
        self.assert_untouched(self.run_with(TRUTH + ERROR), "it hurts", action="kept")

    def test_an_error_while_the_copy_is_decoded_is_not_believed(self) -> None:
        body = f"subprocess.run([real, *args])\nif copies and not outputs: {ERROR}"
        self.assert_untouched(self.run_with(body), "a decode without a message")

    def test_endless_messages_are_cut_off(self) -> None:
        began = time.monotonic()
        ran = self.run_with(
            COPIES + "while True: sys.stderr.write('[error] ' + 'x' * 60000 + '\\n')"
        )
        self.assertEqual((self.snapshot(), ran.summary["compressed"]), (self.before, 0))
        self.assertLess(time.monotonic() - began, 15)

    def test_escape_codes_in_messages_are_not_printed(self) -> None:
        ran = self.run_with(
            COPIES + "print('\\x1b]0;owned\\x07\\rFORGED', file=sys.stderr); sys.exit(1)"
        )
        self.assert_untouched(ran, "FORGED", action="kept")
        self.assertEqual(
            control_characters(
                "".join(o["reason"] for o in ran.outcomes.values()) + ran.err + self.log()
            ),
            [],
        )

    def test_a_recording_at_which_it_fails_alone_is_kept_as_damaged_and_remembered(self) -> None:
        body = (
            INPUTS
            + f"if any(i.endswith({SINGLE!r}) for i in inputs): sys.exit(1)\nos.execv(real, [real, *args])"
        )
        ran = self.run_with(body, "-j", "1")
        self.assert_kept(ran, SINGLE, "damaged", "ffmpeg cannot decode it")
        self.assertEqual(ran.code, 0)
        ran = self.run_with(body, "-j", "1")
        self.assertEqual((ran.code, ran.outcomes), (0, {}))

    def test_one_that_was_killed_says_nothing_of_the_recording(self) -> None:
        body = (
            INPUTS
            + f"if any(i.endswith({SINGLE!r}) for i in inputs): os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        for _ in range(3):
            ran = self.run_with(body + "os.execv(real, [real, *args])", "-j", "1")
            self.assert_kept(ran, SINGLE, "SIGKILL", action="failed")
            self.assertEqual(ran.code, 1)
        self.assert_recovers()

    def test_lines_that_ffmpeg_did_not_tag_are_no_word_on_a_recording(self) -> None:
        body = "print('/usr/lib/libfoo.so: no version information available', file=sys.stderr, flush=True)\n"
        ran = self.run_with(body + "os.execv(real, [real, *args])")
        self.assertEqual((ran.code, ran.summary["compressed"]), (0, len(EVERY)), ran.out + ran.err)


class Piped(ToolCase):
    """With more cores than recordings, a recording is decoded, encoded and decoded again in three processes at once."""

    MEMBERS = {"decoder": "'pipe:1' in args and 'pipe:0' not in args and 'lavfi' not in args", "encoder": "'pipe:1' in args and 'ogg' in args",
               "listener": "'pipe:0' in args and 'pipe:1' not in args"}  # fmt: skip

    def run_piped(self, body: str, grace: Optional[float] = None) -> Ran:
        sign = self.folder / "piped"
        ran = self.run_with(
            f"if 'pipe:0' in args: open({str(sign)!r}, 'w').close()\n" + body,
            "-j",
            "8",
            grace=grace,
        )
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
        self.run_with("os.execv(real, [real, *args])", "-j", "1")
        copies = [self.assert_compressed(path) for path in paths]
        sounds, sizes = (
            [decode(copy, 48_000) for copy in copies],
            [copy.stat().st_size for copy in copies],
        )
        self.doCleanups()
        self.setUp()
        self.add("ch_ctx_suspend_4_3_4s", "stereo.webm")
        self.assert_all_compressed(self.run_piped("os.execv(real, [real, *args])"))
        for path, sound, size in zip(paths, sounds, sizes):
            copy = self.assert_compressed(path)
            self.assertEqual(decode(copy, 48_000), sound, path)
            self.assertAlmostEqual(copy.stat().st_size, size, delta=100)

    def test_one_after_the_other_is_the_way_where_any_of_them_fails_or_says_anything(self) -> None:
        for member, is_it in self.MEMBERS.items():
            for fault in ("sys.exit(3)", "os.kill(os.getpid(), signal.SIGSEGV)", ERROR):
                with self.subTest(member, fault=fault):
                    self.doCleanups()
                    self.setUp()
                    self.assert_all_compressed(
                        self.run_piped(f"if {is_it}:\n    {fault}\nos.execv(real, [real, *args])")
                    )

    def test_one_after_the_other_is_the_way_where_any_of_them_hangs(self) -> None:
        for member, is_it in self.MEMBERS.items():
            with self.subTest(member):
                self.doCleanups()
                self.setUp()
                body = f"if {is_it}: time.sleep(60)\nos.execv(real, [real, *args])"
                self.assert_all_compressed(self.run_piped(body, grace=3))

    def test_another_sound_is_noticed(self) -> None:
        body = f"if {self.MEMBERS['encoder']}: args = ['volume=-6dB,' + a if a.startswith('aformat') else a for a in args]\n"
        self.assert_untouched(
            self.run_piped(body + "os.execv(real, [real, *args])"), "the source's "
        )

    def test_half_of_the_audio_is_noticed(self) -> None:
        body = f"if {self.MEMBERS['encoder']}: args[-1:-1] = ['-t', '1.5']\n"
        self.run_piped(
            body + "os.execv(real, [real, *args])"
        )  # the decoder is told that no one listens, or the copy is too short
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
        self.assert_untouched(
            self.run_piped("os.execv(real, [real, *args])"),
            "what was decoded while it was written",
            "other bytes in the file",
        )


class Batches(ToolCase):
    """Several recordings in one process: what befalls one of them costs only that one."""

    session = [f"2025-10-27/14-30-45-chunk-{number}.webm" for number in (1, 2, 3)]

    def setUp(self) -> None:
        super().setUp()
        (self.library / "index.json").unlink()
        self.add_session(chunks=3)
        self.is_it = f"any(i.endswith({self.session[1]!r}) for i in inputs)"

    def run_batches(self, body: str, grace: Optional[float] = None) -> Ran:
        """Run with one worker, so that its batches are as large as they get."""
        sign = self.folder / "several-outputs"
        ran = self.run_with(
            f"if len(outputs) > 1: open({str(sign)!r}, 'w').close()\n" + body,
            "-j",
            "1",
            grace=grace,
        )
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
        body = f"for i, o in zip(inputs, outputs):\n    if i.endswith({self.session[1]!r}): encode(o, bytes(len(pcm(o))))"
        self.assert_only_one_left(self.run_batches(SPOILT + body), "the source's ")

    def test_a_crash_over_one_file(self) -> None:
        body = (
            f"if {self.is_it}: os.kill(os.getpid(), signal.SIGSEGV)\nos.execv(real, [real, *args])"
        )
        self.assert_only_one_left(self.run_batches(COPIES + body), "SIGSEGV")

    def test_a_message_about_one_file(self) -> None:
        self.assert_only_one_left(
            self.run_batches(TRUTH + f"if {self.is_it}: {ERROR}"), "it hurts", action="kept"
        )

    def test_a_hang_over_one_file(self) -> None:
        ran = self.run_batches(
            COPIES + f"if {self.is_it}: time.sleep(60)\nos.execv(real, [real, *args])", grace=3
        )
        self.assert_only_one_left(ran, "hung")

    def test_the_audio_of_two_exchanged(self) -> None:
        body = """
if len(outputs) > 1:
    a, b = outputs[:2]
    x, y = pcm(a), pcm(b)
    encode(a, (y + x)[:len(x)]); encode(b, (x + y)[:len(y)])"""
        ran = self.run_batches(
            SPOILT + body
        )  # the first is encoded once more, as its peaks exceed full scale
        self.assert_kept(ran, self.session[1], "the source's ", action="failed")


class HangingFfmpeg(ToolCase):
    """It never ends; its deadline does."""

    def test_one_that_sleeps_is_ended(self) -> None:
        self.assert_untouched(self.run_with(COPIES + "time.sleep(60)", grace=3), "hung")

    def test_one_that_sleeps_whatever_it_is_asked_is_ended(self) -> None:
        self.assert_blamed(self.run_with("time.sleep(60)", grace=0.4), "no end after")

    def test_one_that_stops_itself_is_ended(self) -> None:
        self.assert_untouched(
            self.run_with(COPIES + "os.kill(os.getpid(), signal.SIGSTOP)", grace=3), "hung"
        )

    def test_one_deaf_to_signals_that_goes_on_talking_is_ended(self) -> None:
        body = "for n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\n"
        body += "while True: print('x', file=sys.stderr, flush=True); time.sleep(0.05)"
        self.assert_untouched(self.run_with(COPIES + body, grace=3), "hung")

    def test_a_hang_while_the_copy_is_decoded_is_ended(self) -> None:
        body = "if copies and not outputs: time.sleep(60)\nos.execv(real, [real, *args])"
        self.assert_untouched(self.run_with(body, grace=3), "hung")

    def test_a_grandchild_holding_the_pipe_holds_nothing_up(self) -> None:
        began = time.monotonic()
        body = f"subprocess.Popen([sys.executable, '-c', {SLEEP!r}, {str(self.folder)!r}]); os.execv(real, [real, *args])"
        ran = self.run_with(body)
        self.assertEqual(ran.code, 0, ran.out)
        self.assertLess(time.monotonic() - began, 15)
        for path in EVERY:
            self.assert_compressed(path)


class OurOwnDeath(ToolCase):
    def test_after_sigkill_in_mid_encode_no_original_is_touched_and_the_next_run_finishes(
        self,
    ) -> None:
        """The orphan writes into staged files that nobody uses any more, and ends by itself."""
        sign = self.folder / "at-work"
        slowly = "os.execv(real, [real, *(w for a in args for w in ((['-re'] if a == '-i' else []) + [a]))])"
        body = COPIES + f"open({str(sign)!r}, 'w').close()\n" + slowly
        process = self.start("--json", "-j", "1", env=self.stand_in(body))
        self.wait_for(sign)
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
        self.assertEqual({path: self.snapshot().get(path) for path in self.before}, self.before)
        time.sleep(5)  # the recording's length
        self.assert_recovers()
        self.assert_no_leftovers()


class ChangingSource(ToolCase):
    """Someone else is at a recording while it is encoded: what they left is what stays."""

    def change(self, deed: str) -> None:
        """Run with an ffmpeg that, once, does `deed` to the single recording's `path` after encoding it."""
        path, sign = str(self.library / SINGLE), str(self.folder / "done")
        body = f"path, sign = {path!r}, {sign!r}\nif 'file:' + path in inputs and not os.path.exists(sign):\n"
        ran = self.run_with(
            TRUTH + body + f"    open(sign, 'w').close()\n    {deed}\nsys.exit(code)"
        )
        self.assertEqual((ran.code, ran.outcomes[SINGLE]["action"]), (1, "failed"))
        self.assertIn("changed", ran.outcomes[SINGLE]["reason"])
        self.assertFalse((self.library / SINGLE).with_suffix(".opus").exists())
        for other in SESSION:
            self.assert_compressed(other)

    def test_one_that_grew_is_kept(self) -> None:
        self.change("open(path, 'ab').write(b'more')")
        self.assertEqual((self.library / SINGLE).read_bytes(), self.audio + b"more")

    def test_one_written_anew_is_kept(self) -> None:
        self.change("data = open(path, 'rb').read(); open(path, 'wb').write(data)")
        self.assertEqual((self.library / SINGLE).read_bytes(), self.audio)

    def test_one_replaced_by_a_file_of_the_same_size_and_time_is_kept(self) -> None:
        deed = "s = os.stat(path); open(path + '~', 'wb').write(b'x' * s.st_size); "
        self.change(
            deed
            + "os.utime(path + '~', ns=(s.st_atime_ns, s.st_mtime_ns)); os.rename(path + '~', path)"
        )
        self.assertEqual((self.library / SINGLE).read_bytes(), b"x" * len(self.audio))

    def test_one_that_became_a_symlink_is_left_alone(self) -> None:
        elsewhere = self.folder / "elsewhere.webm"
        self.change(f"os.rename(path, {str(elsewhere)!r}); os.symlink({str(elsewhere)!r}, path)")
        self.assertTrue((self.library / SINGLE).is_symlink())
        self.assertEqual(elsewhere.read_bytes(), self.audio)

    def test_one_that_vanished_is_passed_over_and_not_brought_back(self) -> None:
        path, elsewhere = str(self.library / SINGLE), self.folder / "elsewhere.webm"
        ran = self.run_with(
            TRUTH + f"if os.path.exists({path!r}): os.rename({path!r}, {str(elsewhere)!r})"
        )
        self.assertEqual((ran.code, sorted(ran.outcomes)), (0, SESSION))
        self.assertIn(f"{SINGLE} was deleted meanwhile", self.log())
        self.assertFalse((self.library / SINGLE).with_suffix(".opus").exists())
        self.assertEqual(elsewhere.read_bytes(), self.audio)

    def test_a_copy_of_the_users_that_came_meanwhile_is_not_overwritten(self) -> None:
        copy = (self.library / SINGLE).with_suffix(".opus")
        ran = self.run_with(TRUTH + f"open({str(copy)!r}, 'w').write('mine')")
        self.assertEqual((ran.code, ran.outcomes[SINGLE]["action"]), (1, "failed"))
        self.assertIn("name already taken", ran.outcomes[SINGLE]["reason"])
        self.assertEqual(copy.read_text(), "mine")
        self.assertEqual((self.library / SINGLE).read_bytes(), self.audio)


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
            self.run_cli(env={"PATH": str(self.empty)}), "ffmpeg is not installed", "Install"
        )

    def test_ffmpeg_without_libopus_stops_the_run_with_exit_code_4(self) -> None:
        self.drive("program.TOOL_PATH = ''")
        env = self.stand_in(
            "print(\"[fatal] Unknown encoder 'libopus'\", file=sys.stderr); sys.exit(1)"
        )
        ran = self.run_cli("--json", env={**env, "PATH": env["PATH"].split(":")[0]})
        self.assert_refused(ran, "libopus")

    def test_one_that_lacks_libopus_is_passed_over_for_a_later_one_that_has_it(self) -> None:
        lacks = "if '-encoders' in args: print(' A....D aac                  AAC (Advanced Audio Coding)')\nelse: sys.exit(1)"
        self.assertEqual(self.run_with(lacks).code, 0)
        self.assert_compressed(SINGLE)

    def test_ffmpeg_is_found_in_the_usual_folders_when_path_has_none(self) -> None:
        self.drive(f"program.TOOL_PATH = {os.path.dirname(FFMPEG) + ':/usr/bin:/bin'!r}")
        ran = self.run_cli(env={"PATH": str(self.empty)})
        self.assertEqual(ran.code, 0, ran.out)
        self.assert_compressed(SINGLE)

    def test_a_file_called_ffmpeg_that_is_no_program_fails_without_a_traceback(self) -> None:
        env = self.stand_in("")
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
            "archive = program.Run.archive\n"
            "def count(self, begun):\n"
            "    held = [each for each in gc.get_objects() if isinstance(each, (program.Work, program.Probe))]\n"
            "    print('held:', len(held), file=sys.stderr)\n"
            "    archive(self, begun)\n"
            "program.Run.archive = count"
        )
        for words in (("--dry-run",), ()):
            ran = self.run_cli(*words)
            self.assertEqual((ran.code, ran.err), (0, "held: 0\n"))
