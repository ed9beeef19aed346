"""The nightly run, whole, on what browsers really record."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from array import array
from operator import mul

from tests import standins
from tests.base import (
    DAY,
    FFMPEG,
    LONG_AGO,
    RECORDINGS,
    LibraryCase,
    decode,
    index,
    index_entry,
    now,
    sidecar,
)

COMPRESSED = {
    "ch_ctx_suspend_4_3_4s": "WebAudio, 3 s of it suspended",
    "ch_late_track_5s": "WebAudio with a header that says 1 ms",
    "ch_antiphase_2s": "WebAudio, one channel the other upside down",
    "ch_frozen_tab_6s": "WebAudio, stamped late by a frozen tab",
    "ch_mp4mime_10s": "MP4 by Chrome",
    "ch_pcm_0.5s": "PCM by Chrome",
    "ch_slices_fixed_3s": "timeslices whose duration a library has put in",
    "ch_slices_concat": "timeslices joined into one file",
    "chunk_0": "microphone by Chrome",
    "ff_chunk_1": "Ogg by Firefox under a WebM name",
    "ff_webm_3s": "WebM by Firefox",
    "stereo_without_channels_2s": "stereo of which only the Opus header knows",
}
SUSPENDED = {
    "ch_ctx_suspend_4_3_4s": (3960, 2.999),
    "ch_frozen_tab_6s": (1260, 3.991),
}  # milliseconds of audio before the silence, seconds of silence
LOUD = ("chunk_0", "ch_slices_fixed_3s")  # peaks above full scale, which only a decode can tell
KEPT = {
    "ch_mic_24k_20s": "already small",
    "ch_silent_disabledtrack_20s": "already small",
    "ch_short_0ms": "no audio",
    "ch_slice_00": "truncated",
    "ch_slice_01": "unreadable without its first part",
    "ch_video_audio_6s": "video",
}


def correlations(a: bytes, b: bytes, rate: int = 4000) -> list[float]:
    """Of each second of two recordings that is not silent."""
    x, y = array("h", a), array("h", b)
    found = []
    for start in range(0, min(len(x), len(y)) - rate + 1, rate):
        u, v = x[start : start + rate], y[start : start + rate]
        power = sum(map(mul, u, u)) * sum(map(mul, v, v))
        if power > (rate * 100) ** 2:
            found.append(sum(map(mul, u, v)) / math.sqrt(power))
    return found


class WhatBrowsersRecord(LibraryCase):
    def test_every_complete_recording_becomes_a_copy_that_sounds_the_same_at_every_second(
        self,
    ) -> None:
        for name in COMPRESSED:
            self.add(name, f"2025-10-27/{name}.webm")
        ran = self.run_cli("--json")
        self.assertEqual(ran.code, 0, ran.err)
        for name, what in COMPRESSED.items():
            with self.subTest(what):
                copy = self.assert_compressed(f"2025-10-27/{name}.webm")
                source, found = decode(RECORDINGS / f"{name}.webm"), decode(copy)
                if name in SUSPENDED:
                    at, seconds = SUSPENDED[name]
                    source = source[: at * 8] + bytes(round(seconds * 8000)) + source[at * 8 :]
                self.assertEqual(len(source), len(found))
                self.assertGreater(
                    min(correlations(source, found), default=1), 0.9
                )  # test_proof looks at each channel
                self.assertEqual(int(copy.stat().st_mtime), LONG_AGO)
        self.assertEqual(ran.summary["compressed"], len(COMPRESSED))
        self.assert_no_leftovers()

    def test_what_cannot_or_need_not_be_compressed_is_kept_with_its_true_reason(self) -> None:
        for name in KEPT:
            self.add(name, f"2025-10-27/{name}.webm")
        whole = (RECORDINGS / "chunk_0.webm").read_bytes()
        ogg = (RECORDINGS / "ff_chunk_1.webm").read_bytes()
        made = {
            "appended": (whole + (RECORDINGS / "chunk_1.webm").read_bytes(), "appended"),
            "appended-ogg": (ogg + ogg, "appended"),
            "cut": (whole[:30_000], "truncated"),
            "cut-ogg": (ogg[:30_000], "truncated"),
            "zero-tail": (whole[:30_000] + bytes(len(whole) - 30_000), "damaged"),
            "zero-end": (whole + bytes(1000), "damaged"),
            "empty": (b"", "empty"),
            "text": (b"<html><body>Not Found</body></html>", "a web page"),
        }
        for name, (content, _) in made.items():
            self.add_bytes(content, f"2025-10-27/{name}.webm")
        before = self.files()
        ran = self.run_cli("--json")
        self.assertEqual(ran.code, 0, ran.out + ran.err)
        for name, word in {**KEPT, **{name: word for name, (_, word) in made.items()}}.items():
            with self.subTest(name):
                self.assert_kept(ran, f"2025-10-27/{name}.webm", word)
        self.assertEqual(self.files(), before)

    def test_a_default_recording_ends_near_the_promised_size(self) -> None:
        self.add("ch_slices_concat", "a.webm")
        ran = self.run_cli("--json")
        outcome = ran.outcomes["a.webm"]
        megabytes_a_minute = outcome["compressed_size"] / 1e6 / outcome["seconds"] * 60
        self.assertAlmostEqual(megabytes_a_minute, 0.7, delta=0.05)

    def test_opusinfo_has_nothing_to_warn_of(self) -> None:
        for name in ("ch_ctx_suspend_4_3_4s", "ch_late_track_5s", "chunk_0", "ff_chunk_1"):
            self.add(name, f"{name}.webm")
        self.run_cli()
        for copy in self.library.glob("*.opus"):
            told = subprocess.run(
                ["opusinfo", str(copy)], capture_output=True, text=True, check=False
            )
            self.assertEqual(
                (told.returncode, "WARNING" in told.stdout + told.stderr),
                (0, False),
                told.stdout + told.stderr,
            )

    def test_the_other_format_is_proven_in_the_same_way(self) -> None:
        self.add("chunk_0", "a.webm")
        self.add("ch_ctx_suspend_4_3_4s", "b.webm")
        ran = self.run_cli("--json", "--format", "m4a", "--bitrate", "64k")
        self.assertEqual((ran.code, ran.summary["compressed"]), (0, 2), ran.out + ran.err)
        self.assertEqual(sorted(self.files()), ["a.m4a", "b.m4a"])


class WhatIsDue(LibraryCase):
    def test_only_what_is_old_enough_is_opened_or_touched(self) -> None:
        self.add("chunk_0", "old.webm", now() - 8 * DAY)
        self.add("chunk_0", "young.webm", now() - 6 * DAY)
        ran = self.run_cli("--json")
        self.assertEqual(ran.summary["young"], 1)
        self.assertEqual(sorted(self.files()), ["old.opus", "young.webm"])

    def test_any_depth_and_any_case_of_suffix_is_found_but_no_symlink_hidden_or_staging_folder(
        self,
    ) -> None:
        self.add("chunk_0", "a/b/c/d.WebM")
        self.add("chunk_0", ".hidden/e.webm")
        outside = self.folder / "outside"
        outside.mkdir()
        shutil.copy(RECORDINGS / "chunk_0.webm", outside / "f.webm")
        os.utime(outside / "f.webm", (LONG_AGO, LONG_AGO))
        (self.library / "link").symlink_to(outside)
        (self.library / "g.webm").symlink_to(outside / "f.webm")
        ran = self.run_cli("--json")
        self.assertEqual(list(ran.outcomes), ["a/b/c/d.WebM"])
        self.assertIn(". Symbolic links passed over: 2.", ran.summary["message"])
        self.assertTrue((outside / "f.webm").exists())

    def test_a_second_run_does_nothing_and_says_so(self) -> None:
        self.add("chunk_0", "a.webm")
        self.add("ch_slice_01", "b.webm")
        self.assertEqual(self.run_cli().code, 0)
        before = self.files()
        ran = self.run_cli()
        self.assertEqual(ran.code, 0)
        self.assertIn("Nothing to do", ran.out)
        self.assertEqual(self.files(), before)
        self.assertEqual(self.run_cli("--json").summary["due"], 0)

    def test_an_original_that_got_another_time_is_proven_once_more_and_not_every_night(
        self,
    ) -> None:
        path = self.add("chunk_0", "d/a.webm")
        self.configure(delete_originals=False)
        self.assertEqual(self.run_cli("--json").summary["compressed"], 1)
        os.utime(path, (LONG_AGO - 3600, LONG_AGO - 3600))  # as daylight saving on FAT
        self.assertEqual(self.run_cli("--json").summary["compressed"], 1)
        self.assertEqual(self.run_cli("--json").outcomes, {})

    def test_what_was_kept_is_taken_up_again_with_retry_or_when_file_policy_or_settings_change(
        self,
    ) -> None:
        path = self.add("ch_mic_24k_20s", "a.webm")
        self.assertEqual(self.run_cli("--json").summary["kept"], 1)
        self.assertEqual(self.run_cli("--json").summary["due"], 0)
        self.assertEqual(self.run_cli("--json", "--retry").summary["kept"], 1)
        self.add_json("a.json", {"compression_policy": {"bitrate": "12k"}})
        self.assertEqual(self.run_cli("--json").summary["compressed"], 1)
        self.add("ch_mic_24k_20s", "b.webm")
        self.assertEqual(self.run_cli("--json").summary["kept"], 1)
        self.assertEqual(self.run_cli("--json", "--bitrate", "12k").summary["compressed"], 1)
        path = self.add("ch_slice_01", "c.webm")
        self.run_cli()
        shutil.copy(RECORDINGS / "chunk_0.webm", path)
        os.utime(path, (LONG_AGO + 1, LONG_AGO + 1))
        self.assertEqual(self.run_cli("--json").summary["compressed"], 1)

    def test_the_oldest_go_first_and_a_limit_leaves_the_rest_for_the_next_run(self) -> None:
        for number in range(4):
            self.add("chunk_0", f"{number}.webm", LONG_AGO - number * DAY)
        self.assertEqual(set(self.run_cli("--json", "--limit", "2").outcomes), {"3.webm", "2.webm"})
        self.assertEqual(set(self.run_cli("--json", "--limit", "1").outcomes), {"1.webm"})

    def test_a_policy_in_a_sidecar_keeps_delays_or_sets_the_bit_rate(self) -> None:
        for name, policy in {
            "keep": {"keep": True}, "later": {"after_days": 36_500}, "rich": {"bitrate": "120k"}, "bad": {"bitrate": "fast"},
        }.items():  # fmt: skip
            self.add("chunk_0", f"{name}.webm")
            self.add_json(f"{name}.json", {"compression_policy": policy})
        ran = self.run_cli("--json")
        self.assert_kept(ran, "keep.webm", "keep")
        self.assert_kept(ran, "bad.webm", "bit rate")
        self.assertEqual(set(ran.outcomes), {"keep.webm", "rich.webm", "bad.webm"})
        self.assertGreater(ran.outcomes["rich.webm"]["compressed_size"], 38_000)

    def test_selection_by_path_date_and_language_leaves_everything_else_alone(self) -> None:
        for day, language in (("2025-10-27", "en"), ("2025-10-28", "de")):
            self.add("chunk_0", f"{day}/a.webm")
            self.add_json(
                f"{day}/a.json", {**sidecar(f"{day}T10", ["a.webm"]), "language": language}
            )
        for flags, expected in {
            ("--only", "2025-10-27/*"): ["2025-10-27/a.webm"],
            ("--since", "2025-10-28"): ["2025-10-28/a.webm"],
            ("--until", "2025-10-27"): ["2025-10-27/a.webm"],
            ("--language", "de", "--language", "fr"): ["2025-10-28/a.webm"],
            ("--language", "fr"): [],
        }.items():
            self.assertEqual(list(self.run_cli("--json", "-n", *flags).outcomes), expected, flags)


class Originals(LibraryCase):
    def test_kept_originals_are_never_compressed_twice(self) -> None:
        original = self.add("chunk_0", "a.webm")
        self.configure(delete_originals=False)
        self.assertEqual(self.run_cli("--json").summary["compressed"], 1)
        self.assertTrue(original.exists())
        copy = (self.library / "a.opus").read_bytes()
        self.assertEqual(self.run_cli("--json").summary["due"], 0)
        self.history().unlink()
        self.assertEqual(self.run_cli("--json").code, 0)
        self.assertEqual((self.library / "a.opus").read_bytes(), copy)
        self.assertEqual(self.run_cli("--json").summary["due"], 0)

    def test_an_original_kept_for_some_days_goes_once_its_copy_was_proven_again(self) -> None:
        self.add("chunk_0", "a.webm")
        self.configure(keep_originals_days=30)
        self.run_cli()
        self.assertEqual(sorted(self.files()), ["a.opus", "a.webm"])
        self.assertEqual(self.run_cli("--json").summary["due"], 0)
        for ago, left in ((31, ["a.opus", "a.webm"]), (31 + 31, ["a.opus"])):
            # The days must have passed at the start of the run before, too: one jump of the clock deletes nothing.
            lines = [json.loads(line) for line in self.history().read_text().splitlines()]
            for line in lines:
                if line["type"] == "run":
                    line["time"] -= 31 * DAY
                elif line["type"] == "recording":
                    line["past"]["compressed"] -= 31 * DAY
            self.history().write_text("".join(json.dumps(line) + "\n" for line in lines))
            self.assertEqual(self.run_cli("--json").code, 0)
            self.assertEqual(sorted(self.files()), left, ago)
        self.assertEqual(self.run_cli("--json").code, 0)
        self.assertEqual(sorted(self.files()), ["a.opus"])

    def test_the_copy_keeps_time_and_mode_and_owner_and_a_sidecar_its_mode(self) -> None:
        path = self.add("chunk_0", "a.webm")
        path.chmod(0o640)
        document = self.add_json("a.json", sidecar("x", ["a.webm"]))
        document.chmod(0o604)
        if os.geteuid() == 0:
            os.chown(path, 1234, 4321)
            os.chown(document, 1234, 4321)
        owner = path.stat().st_uid, path.stat().st_gid
        os.utime(path, ns=(LONG_AGO * 10**9, LONG_AGO * 10**9 + 123_456_789))
        self.assertEqual(self.run_cli().code, 0)
        status = (self.library / "a.opus").stat()
        self.assertEqual(
            (stat.S_IMODE(status.st_mode), status.st_mtime_ns % 10**9), (0o640, 123_456_789)
        )
        self.assertEqual((status.st_uid, status.st_gid), owner)
        self.assertEqual(stat.S_IMODE(document.stat().st_mode), 0o604)
        self.assertEqual((document.stat().st_uid, document.stat().st_gid), owner)


class DryRun(LibraryCase):
    def test_it_changes_nothing_at_all(self) -> None:
        self.add_session()
        self.add("ch_mp4mime_10s", "b.webm")
        before = {path: path.lstat() for path in self.folder.rglob("*")}
        ran = self.run_cli("-n")
        after = {path: path.lstat() for path in self.folder.rglob("*")}
        self.assertEqual(ran.code, 0)
        self.assertIn("nothing was changed", ran.out)
        self.assertEqual([(p, s.st_mtime_ns, s.st_ctime_ns) for p, s in before.items()],
                         [(p, s.st_mtime_ns, s.st_ctime_ns) for p, s in after.items()])  # fmt: skip

    def test_its_estimate_is_within_six_percent_of_what_the_run_then_writes(self) -> None:
        names = [name for name in COMPRESSED if name not in ("ch_pcm_0.5s", "ch_frozen_tab_6s")]
        for name in names:
            self.add(name, f"{name}.webm")
        estimated = {
            path: line["estimated_size"]
            for path, line in self.run_cli("-n", "--json").outcomes.items()
        }
        written = {
            path: line["compressed_size"] for path, line in self.run_cli("--json").outcomes.items()
        }
        self.assertEqual(len(written), len(names))
        for path, size in written.items():
            self.assertAlmostEqual(estimated[path] / size, 1, delta=0.06, msg=path)


class NotOurs(LibraryCase):
    def test_a_preview_that_a_sidecar_names_beside_its_recording_is_no_copy_of_it(self) -> None:
        source = self.add("chunk_0", "d/a.webm")
        preview = self.library / "d/a.opus"
        words = [FFMPEG, "-v", "error", "-i", str(source), "-b:a", "12k", str(preview)]
        subprocess.run(words, check=True)
        self.add_json("d/a.json", {"id": "A", "chunks": [{"file": "a.webm", "preview": "a.opus"}]})
        before = self.files()
        ran = self.run_cli()
        self.assertEqual(ran.code, 1)
        self.assertIn("name already taken", ran.out)
        self.assertEqual(self.files(), before)


class HighRates(LibraryCase):
    def test_more_than_a_channel_takes_is_no_fault_of_ffmpeg(self) -> None:
        self.add("ch_pcm_0.5s", "a.webm")
        self.add_json("a.json", {"id": "A", "compression_policy": {"bitrate": "300k"}})
        ran = self.run_cli()
        self.assertEqual(ran.code, 0, ran)
        self.assert_compressed("a.webm")
        self.configure(target_bitrate="400k")
        self.assertEqual(self.run_cli("doctor").code, 0)


class Settings(LibraryCase):
    def log(self) -> str:
        return (self.folder / "logs" / "compression.log").read_text()

    def test_a_recordings_folder_that_is_not_there_is_told_and_not_made(self) -> None:
        self.configure(recordings_dir="nowhere")
        self.add("chunk_0", "a.webm")
        ran = self.run_cli()
        self.assertEqual(ran.code, 2)
        self.assertIn("nowhere", ran.err)
        self.assertFalse((self.folder / "nowhere").exists())
        self.assertEqual(len(self.log().splitlines()), 1, "a run that could not begin is logged")

    def test_a_flag_beats_the_file_which_beats_the_default(self) -> None:
        self.add("chunk_0", "a.webm")
        self.configure(age_threshold_days=100_000)
        self.assertEqual(self.run_cli("--json", "-n").summary["due"], 0)
        self.assertEqual(self.run_cli("--json", "-n", "--older-than", "1").summary["due"], 1)
        self.configure(dry_run=True)
        self.run_cli()
        self.assertEqual(sorted(self.files()), ["a.webm"])

    def test_relative_paths_are_taken_from_the_config_file_s_folder(self) -> None:
        self.configure(recordings_dir="recordings", log_file="elsewhere/mine.log")
        self.add("chunk_0", "a.webm")
        self.assertEqual(self.run_cli(cwd="/").code, 0)
        self.assertTrue((self.folder / "elsewhere" / "mine.log").exists())
        self.assertFalse((self.folder / "logs").exists())

    def test_without_the_full_decode_the_cheap_checks_still_run(self) -> None:
        self.configure(verify_before_delete=False)
        self.add("chunk_0", "a.webm")
        ran = self.run_cli("--json")
        self.assertEqual((ran.code, ran.summary["compressed"]), (0, 1))
        self.add("chunk_0", "b.webm")
        spoil = self.stand_in(standins.half_of_each_file)
        ran = self.run_cli("--json", env=spoil)
        self.assertEqual(ran.code, 1)
        self.assert_kept(ran, "b.webm", "one whole opus stream", action="failed")


class MixedLibrary(LibraryCase):
    def test_it_comes_out_true(self) -> None:
        """Fresh and old, with and without sidecars, two sidecars naming one chunk, one recording without an index entry."""
        self.add_session("2025-10-27", "14-30-45", 3)
        self.add("chunk_0", "2025-10-28/a.webm")
        self.add_json("2025-10-28/a.json", sidecar("only-sidecar", ["a.webm"]))
        self.add("chunk_1", "2025-10-29/deep/er/bare.webm")
        self.add("chunk_0", "2025-10-30/half-1.webm")
        self.add("chunk_1", "2025-10-30/half-2.webm", now())
        self.add_json("2025-10-30/half.json", sidecar("half", ["half-1.webm", "half-2.webm"]))
        sizes = sum(
            (self.library / f"2025-10-30/half-{number}.webm").stat().st_size for number in (1, 2)
        )
        self.add_to_index(index_entry("half", sizes, 2))
        ran = self.run_cli("--json")
        self.assertEqual(
            (ran.code, ran.summary["compressed"], ran.summary["young"]),
            (0, 6, 1),
            ran.out + ran.err,
        )
        self.assert_sidecars_true()
        document = self.read_json("index.json")
        entries = {entry["id"]: entry for entry in document["recordings"]}
        on_disk = {
            "2025-10-27T14-30-45": sum(
                path.stat().st_size for path in (self.library / "2025-10-27").glob("*.opus")
            ),
            "half": sum(
                path.stat().st_size for path in (self.library / "2025-10-30").glob("half-*.*")
            ),
        }
        self.assertEqual({id_: entry["size"] for id_, entry in entries.items()}, on_disk)
        self.assertEqual(
            [entries["2025-10-27T14-30-45"]["compressed"], entries["half"]["compressed"]],
            [True, False],
        )
        self.assertEqual(document["total_size"], sum(on_disk.values()))
        self.assertEqual(
            document["compressed_size"],
            sum(path.stat().st_size for path in self.library.rglob("*.opus")),
        )
        half = self.read_json("2025-10-30/half.json")
        self.assertEqual(
            [chunk["file"] for chunk in half["chunks"]], ["half-1.opus", "half-2.webm"]
        )
        self.assertIs(half["compressed"], False)
        self.assertEqual(self.run_cli("check").code, 0)

    def test_a_recording_of_many_chunks_has_its_sidecar_written_in_few_steps(self) -> None:
        names = [f"c-{number:03}.webm" for number in range(90)]
        for name in names:
            self.add("ch_short_60ms", name)
        self.add_json("c.json", sidecar("many", names, 0.06))
        self.configure(min_saving_percent=0)
        document = self.library / "c.json"
        ran = self.run_cli("--json")
        self.assertEqual(ran.summary["compressed"], 90, ran.out[-500:])
        self.assertTrue(self.read_json("c.json")["compressed"])
        self.assertEqual(sum(1 for _ in self.library.glob("*.opus")), 90)
        self.assertTrue(document.with_name("c.json.bak").exists())

    def test_a_bare_environment_another_folder_and_no_terminal_are_enough(self) -> None:
        self.add("chunk_0", "a.webm")
        ran = self.run_cli("--json", env={}, cwd="/")
        self.assertEqual((ran.code, ran.summary["compressed"]), (0, 1), ran.err)


class Leftovers(LibraryCase):
    def test_an_interrupted_run_s_copy_is_adopted_after_it_is_proven(self) -> None:
        original = self.add("chunk_0", "a.webm")
        self.configure(delete_originals=False)
        self.run_cli()
        self.history().unlink()
        self.configure()
        copy = (self.library / "a.opus").read_bytes()
        ran = self.run_cli("--json")
        self.assertEqual(ran.code, 0)
        self.assertIn("proven again", ran.outcomes["a.webm"]["reason"])
        self.assertFalse(original.exists())
        self.assertEqual((self.library / "a.opus").read_bytes(), copy)

    def assert_foreign_copy_is_kept(self) -> None:
        self.add("chunk_0", "a.webm")
        self.add("chunk_1", "b.webm")
        self.run_cli("--only", "b.webm")
        (self.library / "b.opus").rename(self.library / "a.opus")
        before = self.files()
        ran = self.run_cli("--json")
        self.assertEqual(ran.code, 1)
        self.assertIn("name already taken", ran.outcomes["a.webm"]["reason"])
        self.assertEqual(self.files(), before)

    def test_a_foreign_file_under_the_copy_s_name_is_kept_beside_the_original_and_reported(
        self,
    ) -> None:
        self.assert_foreign_copy_is_kept()

    def test_without_the_full_decode_a_foreign_file_of_the_same_length_is_still_not_adopted(
        self,
    ) -> None:
        self.configure(verify_before_delete=False)
        self.assert_foreign_copy_is_kept()

    def test_what_a_killed_run_left_in_staging_is_removed(self) -> None:
        self.add("chunk_0", "day/a.webm")
        self.add_bytes(
            b"", ".compression/history.jsonl"
        )  # which is there before anything is staged
        for folder in ("day", ".compression"):
            self.add_bytes(b"half", f"{folder}/.compression-0123abcd-7.part")
        self.assertEqual(self.run_cli().code, 0)
        self.assert_no_leftovers()


class Index(LibraryCase):
    def test_a_broken_index_is_left_alone_and_told_and_stops_nothing(self) -> None:
        self.add_session()
        path = self.library / "index.json"
        path.write_text('{"recordings": [')
        os.utime(path, (LONG_AGO, LONG_AGO))  # no one is in the middle of writing it
        ran = self.run_cli()
        self.assertEqual(ran.code, 0)
        told = re.findall(r"Left alone.*until you mend it: index\.json: .*\.\n", ran.out)
        self.assertEqual(len(told), 1, ran.out)
        self.assertIn(f"PROBLEM  {told[0]}", self.run_here("doctor").out)
        self.assertIn(told[0].rstrip(".\n"), self.run_here("check").err)
        self.assertEqual(path.read_text(), '{"recordings": [')
        self.assert_compressed("2025-10-27/14-30-45-chunk-1.webm")

    def test_an_index_that_names_files_has_them_renamed_and_turned_back(self) -> None:
        self.add("chunk_0", "d/a.webm")
        self.add_json("d/a.json", {"id": "A", "chunks": [{"file": "a.webm"}]})
        names = {
            "audio": "d/a.webm",
            "bare": "a.webm",
            "url": "/recordings/d/a.webm",
            "deep": [{"x": "./d/a.webm"}],
        }
        others = {"title": "a.webm", "elsewhere": "https://x.org/d/a.webm", "other": "e/a.webm"}
        entries = [{"id": "A", **names, **others, "size": 1}, {"id": "B", "audio": "d/a.webm"}]
        self.add_json("index.json", {"recordings": entries, "cover": "d/a.webm"})
        ran = self.run_cli("--keep-originals")
        self.assertEqual((ran.code, ran.err), (0, ""))
        document = self.read_json("index.json")
        entry = document["recordings"][0]
        for key, name in names.items():
            self.assertEqual(json.dumps(entry[key]), json.dumps(name).replace(".webm", ".opus"))
        self.assertLessEqual(others.items(), entry.items())
        self.assertEqual(document["recordings"][1], {"id": "B", "audio": "d/a.opus"})
        self.assertEqual(document["cover"], "d/a.opus")
        self.assertEqual(self.run_cli("check").code, 0)
        self.assertEqual(self.run_cli("restore", "--last-run").code, 0)
        self.assertLessEqual(names.items(), self.read_json("index.json")["recordings"][0].items())

    def test_where_an_id_stands_in_two_folders_only_names_that_say_in_which_are_renamed(
        self,
    ) -> None:
        for folder in ("d", "e"):
            self.add("chunk_0", f"{folder}/a.webm")
            self.add_json(f"{folder}/a.json", {"id": "A", "chunks": [{"file": "a.webm"}]})
        files = ["d/a.webm", "e/a.webm", "a.webm", "/recordings/e/a.webm"]
        self.add_json("index.json", {"recordings": [{"id": "A", "files": files}]})
        ran = self.run_cli()
        self.assertEqual((ran.code, ran.err), (0, ""))
        told = self.read_json("index.json")["recordings"][0]["files"]
        self.assertEqual(told, ["d/a.opus", "e/a.opus", "a.webm", "/recordings/e/a.opus"])

    def test_a_library_without_an_index_gets_none(self) -> None:
        self.add("chunk_0", "a.webm")
        self.run_cli()
        self.assertFalse((self.library / "index.json").exists())

    def test_an_empty_index_only_has_its_sums_brought_up_to_date(self) -> None:
        self.add("chunk_0", "a.webm")
        self.add_json("index.json", index([]))
        self.run_cli()
        document = self.read_json("index.json")
        self.assertEqual(document["compressed_size"], (self.library / "a.opus").stat().st_size)


class Records(LibraryCase):
    def test_log_and_history_tell_every_recording_and_the_run(self) -> None:
        self.add("chunk_0", "a.webm")
        self.add("ch_slice_01", "b.webm")
        self.run_cli()
        log = (self.folder / "logs" / "compression.log").read_text().splitlines()
        self.assertEqual(len(log), 3)
        for line in log:
            self.assertRegex(line, r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - INFO - ")
        lines = [json.loads(line) for line in self.history().read_text().splitlines()]
        outcomes = {line["path"]: line["action"] for line in lines if line["type"] == "recording"}
        self.assertEqual(outcomes, {"a.webm": "compressed", "b.webm": "kept"})
        self.assertEqual(
            [lines[-1][key] for key in ("type", "found", "compressed", "kept", "exit_code")],
            ["run", 2, 1, 1, 0],
        )
        self.assertLess(
            lines[-1]["time"], time.time() - lines[-1]["elapsed_seconds"], "when it began"
        )

    def test_scripts_get_these_members(self) -> None:
        self.add("chunk_0", "d/a.webm")
        recording, summary = self.run_cli("--json").lines
        (error,) = self.run_cli("restore", "typo", "--json").lines[:1]
        shown = {"type": "recording", "path": "d/a.webm", "file": "d/a.opus"}
        shown.update(action="compressed", reason="proven and put in place")
        self.assertEqual({key: recording[key] for key in shown}, shown)
        self.assertEqual(
            set(recording) - set(shown), {"original_size", "compressed_size", "seconds"}
        )
        self.assertEqual(set(error), {"type", "message"})
        members = "type found due left compressed kept failed original_size compressed_size saved"
        members += " elapsed_seconds exit_code message"
        self.assertLessEqual(set(members.split()), set(summary))

    def test_a_lost_or_torn_history_costs_no_recording(self) -> None:
        self.add("chunk_0", "a.webm")
        self.history().parent.mkdir()
        self.history().write_bytes(b'{"type": "recording", "path"\n\xff\xfe\n[]\n{"type": "rec')
        ran = self.run_cli("--json")
        self.assertEqual((ran.code, ran.summary["compressed"]), (0, 1), ran.err)
        self.assertIn(b'\n{"type": "recording", "path": "a.webm"', self.history().read_bytes())

    def test_check_finds_what_is_missing_or_damaged_and_changes_nothing(self) -> None:
        self.add_session()
        self.add("chunk_0", "b.webm")
        self.add("chunk_1", "c.webm")
        self.run_cli()
        self.assertEqual(self.run_cli("check").code, 0)
        (self.library / "b.opus").unlink()
        damaged = self.library / "c.opus"
        damaged.write_bytes(damaged.read_bytes()[:20_000])
        (self.library / "2025-10-27" / "14-30-45-chunk-2.opus").unlink()
        before = self.files()
        ran = self.run_cli("check", "--json")
        lost = [path for path, told in ran.outcomes.items() if told["action"] == "lost"]
        self.assertEqual(sorted(lost), ["2025-10-27/14-30-45-chunk-2.opus", "c.opus"])
        self.assertEqual((ran.summary["lost"], ran.summary["exit_code"]), (2, 1))
        self.assertIn("something is wrong", ran.summary["message"])
        self.assertIn("Forgotten", ran.err, "its owner may have deleted it")
        self.assertEqual(self.files(), before)


class Demo(LibraryCase):
    def test_demo_and_doctor_work_on_a_fresh_machine(self) -> None:
        ran = self.run_cli("demo")
        self.assertEqual(ran.code, 0, ran.out + ran.err)
        self.assertIn("truncated", ran.out)
        self.assertIn("Nothing to do", ran.out)
        self.assertRegex(ran.out, r"2025-10  \d+ kB recorded, 0 B saved")
        ran = self.run_cli("doctor")
        self.assertEqual(ran.code, 0, ran.out + ran.err)
        self.assertNotIn("PROBLEM", ran.out)
        self.assertEqual(list(self.folder.iterdir()), [self.library, self.config])

    def test_doctor_shows_the_settings_and_watches_the_python_that_runs_at_night(self) -> None:
        self.configure(tiers=[{"after_days": 30, "bitrate": "48k"}])
        self.add("chunk_0", "a.webm")
        python = self.folder / "python"
        python.symlink_to(sys.executable)
        self.assertEqual(self.run_cli(python=str(python)).code, 0)
        ran = self.run_cli("doctor")
        self.assertEqual(ran.code, 0, ran.out)
        self.assertIn(' [{"after_days": 30, "bitrate": 48000}]\n', ran.out)
        python.unlink()
        ran = self.run_cli("doctor")
        self.assertEqual(ran.code, 1, ran.out)
        self.assertIn(f"Its {python} is gone: print the schedule anew.", ran.out)


class Memory(LibraryCase):
    """What is not to be tried again is remembered, until something changes."""

    def test_a_failure_is_tried_again_by_the_next_two_runs_and_then_remembered(self) -> None:
        self.add("chunk_0", "a.webm")
        self.add_bytes(b"somebody else's", "a.opus")
        self.assertEqual([self.run_cli("--json").summary["failed"] for _ in range(4)], [1, 1, 1, 0])
        self.assertEqual(self.run_cli().code, 0)
        self.assertEqual(self.run_cli("--json", "--retry").summary["failed"], 1)
        (self.library / "a.opus").unlink()
        self.assertEqual(self.run_cli("--json").summary["compressed"], 1, "its name is free")

    def test_a_broken_sidecar_keeps_its_recording_until_it_is_mended(self) -> None:
        self.add("chunk_0", "a.webm")
        self.add_bytes(b"{", "a.json", LONG_AGO)
        self.assertEqual([self.run_cli("--json").summary["kept"] for _ in range(2)], [1, 0])
        self.add_json("a.json", sidecar("x", ["a.webm"]))
        self.assertEqual(self.run_cli("--json").summary["compressed"], 1)
