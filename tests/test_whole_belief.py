"""What the program finds needs a second witness: a copy, a tag, a file time, the history."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import compression_service as service
from tests.base import DAY, FFMPEG, LONG_AGO, RECORDINGS, LibraryCase, index_entry, now, sidecar
from tests.faults import STRACE, FaultCase, needs_strace

REPLACES = """
code = subprocess.run([real, *args]).returncode
if {when}:
    subprocess.run(["cp", "-p", {fake!r}, {copy!r} + ".sync"], check=True)
    os.rename({copy!r} + ".sync", {copy!r})
sys.exit(code)
"""


def encode(source: Path, target: Path, rate: str, *words: str) -> None:
    command = [FFMPEG, "-v", "error", "-nostdin", "-y", "-i", str(source), "-c:a", "libopus"]
    subprocess.run([*command, "-b:a", rate, *words, "-f", "ogg", str(target)], check=True)


class WitnessCase(FaultCase):
    def past(self, change: dict[str, Any]) -> None:
        """Rewrites what the history remembers of every recording."""
        lines = [json.loads(line) for line in self.history().read_text().splitlines()]
        for line in lines:
            if "past" in line:
                line["past"].update(change)
        self.history().write_text("".join(json.dumps(line) + "\n" for line in lines))

    def replaced_during_its_proof(self, fake: Path, copy: Path) -> dict[str, str]:
        """A stand-in that acts as a sync tool: while the copy is decoded, it puts `fake` there."""
        when = f"{'file:' + str(copy)!r} in args"
        return self.stand_in(REPLACES.format(when=when, fake=str(fake), copy=str(copy)))


class TheFileThatWasDecoded(WitnessCase):
    """What goes on record, and what an original is removed for, is the very file that was decoded."""

    def setUp(self) -> None:
        super().setUp()
        self.original = self.add("chunk_0", "d/x.webm")
        self.copy = self.library / "d/x.opus"
        self.fake = self.folder / "fake.opus"

    def fake_of_the_same_size_and_time(self) -> None:
        content = bytearray(self.copy.read_bytes())
        content[-2000:-1000] = bytes(1000)
        self.fake.write_bytes(content)
        shutil.copystat(self.copy, self.fake)

    def assert_original_survives(self) -> None:
        env = self.replaced_during_its_proof(self.fake, self.copy)
        ran = self.run_cli("--json", env=env)
        self.assertTrue(self.original.exists(), ran.out)
        self.assertEqual(self.copy.read_bytes(), self.fake.read_bytes())
        self.assertEqual(ran.outcomes["d/x.webm"]["action"], "failed")

    def test_an_original_stays_when_its_copy_is_replaced_while_it_is_proven_again(self) -> None:
        self.configure(keep_originals_days=1)
        self.run_cli()
        self.past({"compressed": now() - 3 * DAY})
        self.fake_of_the_same_size_and_time()
        self.assert_original_survives()

    def test_an_original_stays_when_the_copy_to_adopt_is_replaced(self) -> None:
        self.configure(delete_originals=False)
        self.run_cli()
        self.history().unlink()
        self.configure()
        self.fake_of_the_same_size_and_time()
        self.assert_original_survives()

    def test_restore_leaves_a_copy_that_is_replaced_while_it_is_proven(self) -> None:
        self.configure(delete_originals=False)
        self.run_cli()
        self.fake_of_the_same_size_and_time()
        env = self.replaced_during_its_proof(self.fake, self.copy)
        self.run_cli("restore", str(self.original), env=env)
        self.assertEqual(self.copy.read_bytes(), self.fake.read_bytes())
        self.assertTrue(self.original.exists())

    @needs_strace
    def test_a_copy_that_comes_while_a_smaller_one_takes_its_place_is_put_back(self) -> None:
        self.run_cli()
        self.configure(tiers=[{"after_days": 30, "bitrate": "32k"}])
        encode(self.copy, self.fake, "64k")
        newer = self.fake.read_bytes()
        self.stand_in("")
        late = "inject=renameat2:delay_enter=1500000:when=2"
        words = [STRACE, "-f", "-qq", "-o", "/dev/null", "-e", "trace=renameat2", "-e", late]
        process = subprocess.Popen(
            [*words, *self.command("-j", "1")], stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
        )
        while process.poll() is None and '"smaller"' not in self.history().read_text():
            os.sched_yield()
        os.rename(self.fake, self.copy)
        process.wait()
        self.assertEqual(self.copy.read_bytes(), newer)


class WhoseCopyItIs(WitnessCase):
    """A tag can be forged, and a name can mean a preview."""

    def beside(self, rate: str, *words: str) -> Path:
        original = self.add("ch_slices_concat", "d/x.webm")
        copy = self.library / "d/x.opus"
        encode(original, copy, rate, *words)
        os.utime(copy, (LONG_AGO, LONG_AGO))
        return original

    def assert_not_adopted(self, original: Path) -> None:
        copy = original.with_suffix(".opus").read_bytes()
        for _ in range(2):
            ran = self.run_cli("--json")
            self.assertTrue(original.exists(), ran.out)
            self.assertEqual(original.with_suffix(".opus").read_bytes(), copy)
            self.assertIn("name already taken", ran.outcomes["d/x.webm"]["reason"])

    def test_a_copy_that_is_too_small_for_the_rate_in_its_tag_is_not_ours(self) -> None:
        tag = ["-metadata", "encoded_by=compression_service.py 96k"]
        self.assert_not_adopted(self.beside("16k", *tag))

    def test_a_long_comment_makes_no_copy_of_a_preview(self) -> None:
        tag = ["-metadata", "encoded_by=compression_service.py 96k"]
        self.assert_not_adopted(
            self.beside("16k", *tag, "-metadata:s:a", f"comment={'z' * 90_000}")
        )

    def test_a_copy_with_a_lower_rate_than_is_asked_for_is_not_ours(self) -> None:
        tag = ["-metadata", "encoded_by=compression_service.py 64k"]
        self.assert_not_adopted(self.beside("64k", *tag))

    def test_a_preview_that_a_sidecar_names_is_not_ours(self) -> None:
        self.add_json("d/x.json", {"id": "1", "chunks": [{"file": "x.opus"}]})
        self.assert_not_adopted(self.beside("20k"))

    def test_restore_leaves_a_preview_that_a_sidecar_names(self) -> None:
        self.add_json("d/x.json", {"id": "1", "chunks": [{"file": "x.opus"}]})
        original = self.beside("20k")
        self.run_cli("restore", str(original))
        self.assertTrue(original.exists() and original.with_suffix(".opus").exists())

    def test_a_copy_of_ours_without_a_record_is_adopted_at_every_rate(self) -> None:
        for rate in ("24k", "48k", "96k", "128k"):
            with self.subTest(rate=rate):
                self.configure(target_bitrate=rate, delete_originals=False, min_saving_percent=0)
                original = self.add("ch_pcm_0.5s", f"{rate}/x.webm")
                self.run_cli()
                self.history().unlink()
                self.configure(target_bitrate=rate, min_saving_percent=0)
                self.run_cli()
                self.assert_compressed(str(original.relative_to(self.library)))

    def test_a_copy_of_ours_that_is_small_for_good_reason_is_adopted(self) -> None:
        """Most of it is silent, or the encoder takes no more at such a sampling rate."""
        speech = RECORDINGS / "ch_slices_concat.webm"
        for form, rate, silence in (("opus", 48_000, 40), ("m4a", 48_000, 40), ("m4a", 8_000, 0)):
            with self.subTest(form=form, rate=rate):
                self.configure(target_format=form, delete_originals=False)
                original = self.library / f"{form}{rate}" / "x.webm"
                original.parent.mkdir()
                samples = 48_000 * (5 + silence)
                words = ["-i", str(speech), "-af", f"atrim=0:5,apad=whole_len={samples}"]
                command = [FFMPEG, "-v", "error", *words, "-ac", "1", "-ar", str(rate)]
                subprocess.run([*command, "-f", "wav", str(original)], check=True)
                os.utime(original, (LONG_AGO, LONG_AGO))
                self.run_cli()
                self.history().unlink()
                self.configure(target_format=form)
                ran = self.run_cli()
                self.assertFalse(original.exists(), ran.out)

    def test_a_very_quiet_copy_is_adopted_only_if_it_has_the_same_sound(self) -> None:
        original, copy = self.library / "d/x.webm", self.library / "d/x.opus"
        original.parent.mkdir(exist_ok=True)
        words = ["-i", str(RECORDINGS / "chunk_0.webm"), "-af", "volume=-80dB", "-c:a", "pcm_s24le"]
        subprocess.run([FFMPEG, "-v", "error", *words, "-f", "wav", str(original)], check=True)
        os.utime(original, (LONG_AGO, LONG_AGO))
        self.configure(delete_originals=False)
        self.run_cli()
        self.history().unlink()
        self.configure()
        ours = copy.read_bytes()
        tag = ["-metadata", "encoded_by=compression_service.py 96k"]
        encode(original, copy, "96k", "-af", "volume=0", *tag)
        self.assert_not_adopted(original)
        copy.write_bytes(ours)
        ran = self.run_cli("--retry")
        self.assertFalse(original.exists(), ran.out)


class WhatTimeAFileHas(WitnessCase):
    """A file time proves nothing while another write may get the same one."""

    def setUp(self) -> None:
        super().setUp()
        self.add("chunk_0", "d/x.webm")
        self.sidecar = self.add_json("d/x.json", sidecar("I", ["x.webm"]))
        self.before = self.sidecar.read_bytes()

    def write_within_the_tick(self, content: bytes) -> None:
        status = self.sidecar.stat()
        self.sidecar.write_bytes(content)
        os.utime(self.sidecar, ns=(status.st_atime_ns, status.st_mtime_ns))

    def test_a_sidecar_written_within_the_tick_of_ours_is_seen_by_the_next_run(self) -> None:
        self.run_cli()
        ours = self.sidecar.read_bytes()
        self.write_within_the_tick(ours.replace(b'"x.opus"', b'"x.webm"'))  # of the same length
        self.run_cli()
        self.assert_sidecars_true()

    def test_an_older_sidecar_of_another_size_and_the_same_time_is_seen(self) -> None:
        self.run_cli()
        os.utime(self.sidecar, (LONG_AGO, LONG_AGO))
        self.run_cli()  # which finds all true, and notes it
        self.write_within_the_tick(self.before)
        self.run_cli()
        self.assert_sidecars_true()

    def test_a_sidecar_written_during_the_run_within_the_tick_is_seen_by_the_run(self) -> None:
        self.drive(
            f"""
import os
true = program.rewrite
def rewrite(path, *rest, **named):
    done = true(path, *rest, **named)
    if path.endswith("x.json"):
        program.rewrite = true
        status = os.stat(path)
        open(path, "wb").write({self.before!r})
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return done
program.rewrite = rewrite
"""
        )
        self.assertEqual(self.run_cli().code, 0)
        self.assert_compressed("d/x.webm")
        self.assert_sidecars_true()

    def test_an_index_written_within_the_tick_is_made_true_by_the_next_run(self) -> None:
        path = self.add_json(
            "index.json", {"recordings": [{"id": "I", "compressed": False, "size": 0}]}
        )
        before = path.read_bytes()
        self.run_cli()
        status = path.stat()
        path.write_bytes(before)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        self.run_cli()
        self.assertIs(self.read_json("index.json")["recordings"][0]["compressed"], True)


class OneRecordingsDefect(WitnessCase):
    """Whatever goes wrong with one recording is that recording's."""

    def setUp(self) -> None:
        super().setUp()
        self.add("chunk_0", "a/x.webm")
        self.add("chunk_1", "b/x.webm")

    def assert_only_a_is_kept(self, defect: str) -> None:
        self.drive(defect)
        ran = self.run_cli()
        self.assertEqual(ran.code, 1)
        self.assertNotIn("Traceback", ran.out + ran.err)
        self.assertIn("a defect of this program", ran.out + ran.err)
        self.assertTrue((self.library / "a/x.webm").exists())
        self.assert_compressed("b/x.webm")
        self.assertIn("Traceback" if "a/x.webm" in ran.out else "File ", self.log())

    def test_a_defect_in_planning_keeps_that_recording(self) -> None:
        self.assert_only_a_is_kept(
            """
true = program.next_move
program.next_move = lambda take, *rest: true(take, *rest) if take.stem != "a/x" else 1 // 0
"""
        )

    def test_a_defect_in_grouping_keeps_that_folder(self) -> None:
        self.assert_only_a_is_kept(
            """
true = program.resolve_recordings
program.resolve_recordings = lambda folder: true(folder) if folder.path != "a" else {}["a"]
"""
        )

    def test_an_error_of_the_disk_is_not_called_a_defect(self) -> None:
        self.drive(
            """
true = program.resolve_recordings
def resolve(folder):
    if folder.path == "a":
        raise OSError(5, "Input/output error", "a/x.json")
    return true(folder)
program.resolve_recordings = resolve
"""
        )
        ran = self.run_cli()
        self.assertEqual(ran.code, 1)
        self.assertIn("All in a was kept: Input/output error (a/x.json)", ran.err)
        self.assertNotIn("defect", ran.err + self.log())
        self.assertTrue((self.library / "a/x.webm").exists())
        self.assert_compressed("b/x.webm")

    def test_a_defect_in_the_proof_keeps_that_recording(self) -> None:
        self.assert_only_a_is_kept(
            """
true = program.compare_audio
def compare(job, stop):
    if "/a/" in job.source:
        raise OverflowError("a defect")
    true(job, stop)
program.compare_audio = compare
"""
        )

    def test_a_defect_in_a_document_keeps_that_recording(self) -> None:
        self.add_json("a/x.json", sidecar("A", ["x.webm"]))
        self.assert_only_a_is_kept(
            """
true = program.sidecar_members
program.sidecar_members = lambda facts, now: {}["a"] if "of_the_recorder" in now else {}["a"]
"""
        )


class TheHistory(LibraryCase):
    """It belongs to whoever owns the library, and may not raise anybody's rights."""

    def test_a_line_of_the_history_gives_no_file_more_than_plain_bits(self) -> None:
        for mode in (0o4755, 0o2777, 0o1777, 0o777, 0o640):
            record = {"mtime_ns": 1, "place": {"name": "x.opus", "mode": mode, "time": 1.0}}
            place = service.Past.of(record).place
            assert place
            self.assertEqual(place.mode, mode & 0o666)
            self.assertFalse(place.mode & (stat.S_ISUID | stat.S_ISGID | 0o111))

    def test_a_number_that_no_disk_could_say_spoils_its_own_line_only(self) -> None:
        for name in ("size", "first_size", "attempts", "seconds", "bitrate"):
            self.add("ch_pcm_0.5s", f"d/{name}.webm")
            self.add_json(f"d/{name}.json", sidecar(name, [f"{name}.webm"]))
            self.add_to_index(index_entry(name, 0))
        self.run_cli()
        for number in ("9" * 400, "-" + "9" * 400, "NaN", "1e999"):
            lines = self.history().read_text().splitlines()
            forged = [
                re.sub(rf'"{key}": [\d.]+', f'"{key}": {number}', line)
                for line in lines
                for key in json.loads(line).get("past", {})
                if f'"d/{key}"' in line
            ]
            self.history().write_text("".join(f"{line}\n" for line in [*lines, *forged]))
            for command in ("stats", "run", "run", "check", "stats"):
                ran = self.run_cli(command)
                self.assertNotIn("defect", ran.err)
            self.assertEqual(ran.code, 0, ran)

    def test_a_line_of_the_history_chooses_no_owner_beside_the_librarys_or_the_folders(
        self,
    ) -> None:
        library = service.Library(str(self.library))
        ours = os.stat(self.library)
        day = self.library / "d"
        day.mkdir()
        owner = (ours.st_uid, ours.st_gid)
        self.assertEqual(service.owner_within(library, str(day), (0xFFFE, 0xFFFD)), owner)
        self.assertEqual(service.owner_within(library, str(day), owner), owner)
        if os.geteuid() == 0:
            os.chown(day, 1234, 2345)
            found = service.owner_within(library, str(day), (1234, ours.st_gid))
            self.assertEqual(found, (1234, ours.st_gid))
            found = service.owner_within(library, str(day), (0xFFFE, 2345))
            self.assertEqual(found, (ours.st_uid, 2345))


class LongNames(LibraryCase):
    def test_a_sidecar_whose_backup_has_no_name_is_edited_all_the_same(self) -> None:
        stem = "x" * 250
        self.add("chunk_0", f"{stem}.webm")
        self.add_json(f"{stem}.json", sidecar("I", [f"{stem}.webm"]))
        ran = self.run_cli("--json")
        self.assertEqual(ran.code, 0, ran.out)
        self.assert_compressed(f"{stem}.webm")
        self.assert_sidecars_true()
        self.assert_no_leftovers()
