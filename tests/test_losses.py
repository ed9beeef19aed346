"""No copy goes missing unnoticed: what is missing, damaged, moved, back, or deleted by its owner."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import unittest
import unittest.mock
from pathlib import Path
from typing import Any

import compression_service as service
from tests import base
from tests.base import FFMPEG, LONG_AGO, LibraryCase, Ran, sidecar

NAMES = tuple(f"d/{letter}" for letter in "abc")


@functools.cache
def compressed_library() -> Path:
    """Three recordings with sidecar and index entry, compressed in a run; made once."""
    case = LibraryCase()
    case.setUp()
    for number, name in enumerate(NAMES):
        case.add(f"chunk_{number % 2}", f"{name}.webm", LONG_AGO + 60 * number)
        case.add_json(f"{name}.json", sidecar(name, [f"{name[2:]}.webm"]))
        case.add_to_index(base.index_entry(name, 1))
    ran = case.run_cli()
    assert ran.code == 0, ran.err
    unittest.addModuleCleanup(case.doCleanups)
    unittest.addModuleCleanup(compressed_library.cache_clear)
    return case.library


class Renamed(unittest.TestCase):
    def test_a_long_chain_of_names_takes_time_in_proportion(self) -> None:
        """Each of many copies got the name of the next one, and the last name is taken."""
        library = service.Library("/nowhere")
        taken = {"d/0": service.Past(suffix=".opus", size=1)}

        def moving(count: int) -> set[str]:
            past = service.Past(suffix=".opus", size=1)
            library.history.known["d"] = {**taken, **{f"d/{n}": past for n in range(1, count)}}
            bad, places = [], {}
            for number in range(1, count):
                take = service.Take(f"d/{number}", past=past)
                move = service.reread(take, service.Recording("d", (take,)))
                move.refuse(service.Refusal(service.Reason.MISSING))
                bad.append(move)
                places[take.stem] = f"d/{number - 1}.opus"
            losses = unittest.mock.Mock(library=library)
            return service.Losses.moving(losses, bad, places)

        self.assertEqual(moving(20_000), set())
        taken.clear()
        self.assertEqual(len(moving(2_000)), 1_999)


class LossCase(LibraryCase):
    def setUp(self) -> None:
        super().setUp()
        shutil.copytree(compressed_library(), self.library, dirs_exist_ok=True, symlinks=True)
        # The other folder has other times of its documents, as after a restore of all.
        self.documents = {path: path.read_bytes() for path in (*self.library.rglob("*.json"),)}

    def source(self) -> Path:
        return compressed_library()

    def copy(self, name: str = "a") -> Path:
        return self.library / f"d/{name}.opus"

    def forget(self, name: str) -> None:
        """Its owner removes it from sidecar and index."""
        (self.library / f"d/{name}.json").unlink(missing_ok=True)
        document = self.read_json("index.json")
        rest = [entry for entry in document["recordings"] if entry["id"] != f"d/{name}"]
        self.add_json("index.json", {**document, "recordings": rest}, indent=2)

    def lost(self, ran: Ran) -> dict[str, str]:
        return {
            path: told["reason"] for path, told in ran.outcomes.items() if told["action"] == "lost"
        }

    def run_json(self, code: int, *words: str) -> Ran:
        ran = self.run_cli("--json", *words)
        self.assertEqual(ran.code, code, ran.out + ran.err)
        return ran

    def assert_lost(self, *words: str, name: str = "a") -> None:
        """The run reports it, the next one counts it, and documents stay as they were."""
        ran = self.run_json(1)
        self.assertEqual(list(self.lost(ran)), [f"d/{name}.opus"])
        for word in words:
            self.assertIn(word, self.lost(ran)[f"d/{name}.opus"])
        ran = self.run_json(0)
        self.assertEqual((self.lost(ran), ran.summary["lost"]), ({}, 1))
        self.assertIn("still missing: 1", ran.summary["message"])
        for path, data in self.documents.items():
            self.assertEqual(path.read_bytes(), data, path)

    def assert_sound(self) -> Ran:
        ran = self.run_json(0)
        self.assertEqual(ran.summary["lost"], 0)
        return ran


class Lost(LossCase):
    def test_a_missing_copy_is_reported_once_and_then_counted(self) -> None:
        self.copy().unlink()
        self.assert_lost("missing", "deleted on")
        text = (self.folder / "logs/compression.log").read_text()
        self.assertIn("lost           d/a.opus", text)

    def test_stats_page_and_doctor_name_it(self) -> None:
        self.copy().unlink()
        self.run_json(1)
        self.assertIn("d/a.opus", self.run_cli("stats").out)
        (lost,) = [
            each
            for each in json.loads(self.run_cli("stats", "--json").out)["kept"]
            if each["action"] == "lost"
        ]
        self.assertEqual(lost["paths"], ["d/a.opus"])
        page = self.folder / "page.html"
        self.run_cli("stats", "--html", str(page))
        self.assertIn("d/a.opus", page.read_text())
        self.assertIn("d/a.opus", self.run_cli("doctor").out)
        self.copy().write_bytes((compressed_library() / "d/a.opus").read_bytes())
        os.utime(self.copy(), (LONG_AGO, LONG_AGO))
        self.assertNotIn("d/a.opus", self.run_cli("doctor").out)

    def test_one_that_was_cut_is_lost(self) -> None:
        data = self.copy().read_bytes()
        for length in (0, 100, len(data) // 2, len(data) - 1):
            with self.subTest(length):
                self.copy().write_bytes(data[:length])
                self.assert_lost("damaged")
                self.copy().write_bytes(data)
                self.assertIn("d/a.opus is back", self.run_cli().out)
                self.assert_sound()

    def test_another_recordings_copy_in_its_place_is_no_copy(self) -> None:
        shutil.copy2(self.copy("c"), self.copy())
        self.assert_lost("the bytes of d/c")

    def test_one_that_another_replaced_is_lost_and_its_bytes_are_named(self) -> None:
        self.copy().replace(self.copy("c"))
        ran = self.run_json(1)
        self.assertEqual(set(self.lost(ran)), {"d/a.opus", "d/c.opus"})
        self.assertIn("its bytes are in d/c.opus", self.lost(ran)["d/a.opus"])

    def test_a_folder_in_its_place_is_no_copy(self) -> None:
        self.copy().unlink()
        self.copy().mkdir()
        del self.documents[self.library / "index.json"]  # its totals count what is here
        self.assert_lost("missing")

    def test_a_suffix_in_capitals_is_told(self) -> None:
        self.copy().rename(self.copy().with_suffix(".OPUS"))
        self.assert_lost("its bytes are in d/a.OPUS")
        self.copy().with_suffix(".OPUS").rename(self.copy())
        self.assertIn("d/a.opus is back", self.run_cli().out)

    def test_a_folder_that_is_gone_is_noticed_by_the_index(self) -> None:
        (self.library / "d").rename(self.folder / "away")
        ran = self.run_json(1)
        self.assertEqual(set(self.lost(ran)), {f"{name}.opus" for name in NAMES})
        self.assertEqual(self.run_json(0).summary["lost"], 3)
        (self.folder / "away").rename(self.library / "d")
        self.assert_sound()

    def test_what_stands_in_place_of_their_folder_hides_no_loss(self) -> None:
        folder, away = self.library / "d", self.folder / "away"
        folder.rename(away)
        (self.folder / "empty").mkdir()
        lost = {f"{name}.opus" for name in NAMES}
        folder.write_text("")
        self.assertEqual(set(self.lost(self.run_json(1, "-n"))), lost)
        folder.unlink()
        folder.symlink_to(self.folder / "empty")
        self.assertEqual(set(self.lost(self.run_json(1))), lost)
        self.assertEqual(self.run_json(0).summary["lost"], 3)
        self.assertIn("d/a.opus", self.run_cli("doctor").out)

    def test_a_link_in_place_of_their_folder_is_not_followed(self) -> None:
        folder, away = self.library / "d", self.folder / "away"
        folder.rename(away)
        folder.symlink_to(away)
        text = (away / "a.json").read_text().replace("a.opus", "a.webm")
        (away / "a.json").write_text(text)
        for _ in range(2):
            self.assert_sound()
        self.assertEqual((away / "a.json").read_text(), text)
        data = (away / "a.opus").read_bytes()
        (away / "a.opus").unlink()
        self.assertEqual(list(self.lost(self.run_json(1))), ["d/a.opus"])
        (away / "a.opus").write_bytes(data)
        self.assertEqual(self.run_json(0).summary["lost"], 1)
        folder.unlink()
        away.rename(folder)
        self.assert_sound()

    def test_a_folder_that_became_a_library_of_its_own_hides_no_loss(self) -> None:
        (self.library / "d/.compression").mkdir()
        self.assertIn("d is a library of its own", self.assert_sound().err)
        self.copy().unlink()
        self.assertEqual(list(self.lost(self.run_json(1))), ["d/a.opus"])
        self.assertEqual(self.run_json(0).summary["lost"], 1)
        self.assertIn("d/a.opus", self.run_cli("stats").out)

    def test_many_are_logged_and_the_first_of_them_named(self) -> None:
        for name in "abc":
            self.copy(name).unlink()
        with unittest.mock.patch.object(service, "NAMED", 2):
            ran = self.run_cli("-q")
            told = [line for line in ran.err.splitlines() if line.startswith("lost ")]
            self.assertEqual((ran.code, len(told)), (1, 2))
        log = (self.folder / "logs/compression.log").read_text()
        self.assertEqual(log.count(" - ERROR - lost "), 3)
        document = json.loads(self.history().read_text().splitlines()[-1])
        self.assertEqual((document["type"], document["lost"]), ("run", 3))

    def test_a_lost_part_keeps_a_recording_from_the_archive_and_from_deletion(self) -> None:
        cold = self.folder / "cold"
        (cold / "archive-of-recordings").mkdir(parents=True)
        self.add_json("d/a.json", sidecar("d/a", ["a.opus", "b.opus"]))
        (self.library / "d/b.json").unlink()
        self.copy().unlink()
        self.put_run_on_record()
        for tier in ({"archive": str(cold)}, {"delete": True}):
            self.configure(tiers=[{"after_days": 20, **tier}])
            for _ in range(3):
                self.run_cli()
            self.assertTrue(self.copy("b").exists(), tier)
        self.assertFalse((cold / "archive-of-recordings/d/b.opus").exists())

    def test_a_rotten_copy_is_not_archived(self) -> None:
        cold = self.folder / "cold"
        (cold / "archive-of-recordings").mkdir(parents=True)
        self.configure(check_days=0, tiers=[{"after_days": 20, "archive": str(cold)}])
        before = self.copy().stat()
        data = bytearray(self.copy().read_bytes())
        data[-1] ^= 1
        self.copy().write_bytes(data)
        os.utime(self.copy(), ns=(before.st_mtime_ns, before.st_mtime_ns))
        self.put_run_on_record()
        self.assertEqual(self.run_cli().code, 1)
        self.assertTrue(self.copy().exists())
        self.assertFalse(self.copy("b").exists())

    def test_a_copy_in_aac_is_lost_and_found_alike(self) -> None:
        self.configure(target_format="m4a", target_bitrate="48k")
        self.add("chunk_0", "m/a.webm")
        self.run_json(0)
        copy = self.library / "m/a.m4a"
        data = copy.read_bytes()
        copy.write_bytes(data[:-900])
        self.assertEqual(list(self.lost(self.run_json(1))), ["m/a.m4a"])
        copy.write_bytes(data)
        self.assertIn("m/a.m4a is back", self.run_json(0).err)

    def test_a_quiet_run_counts_those_that_it_does_not_name(self) -> None:
        for name in "abc":
            self.copy(name).unlink()
        with unittest.mock.patch.object(service, "NAMED", 2):
            self.assertIn("and 1 more lost copies", self.run_cli("-q").err)

    def test_a_night_with_a_pending_loss_reads_no_other_folder_s_past(self) -> None:
        self.copy().unlink()
        self.run_json(1)
        self.run_json(0)  # which looks at the index again

        def pasts(_: Any) -> None:
            raise AssertionError

        with unittest.mock.patch.object(service.History, "pasts", property(pasts)):
            self.assertEqual(self.run_json(0).summary["lost"], 1)

    def test_a_full_disk_is_one_sentence_with_its_place_and_what_to_do(self) -> None:
        self.copy().unlink()
        full = OSError(28, "No space left on device")
        with unittest.mock.patch.object(service.History, "write", side_effect=full):
            ran = self.run_json(5)
        self.assertEqual(ran.err.count("No space left"), 1)
        for word in (str(self.library), "Make room and run again"):
            self.assertIn(word, ran.summary["message"])
        self.assertEqual(list(self.lost(self.run_json(1))), ["d/a.opus"])

    def test_a_name_that_this_locale_cannot_encode_is_reported_and_ends_nothing(self) -> None:
        past = {"suffix": ".opus", "size": 5, "sha256": "x"}
        for stem in ("\ud800/a", "d/\ud800"):
            line = {"type": "recording", "path": stem, "take": stem, "past": past}
            with open(self.history(), "a", encoding="ascii") as file:
                file.write(json.dumps(line) + "\n")
        (self.library / "d/new.json").write_text("{}")
        for command in ("run", "check", "stats", "doctor"):
            ran = self.run_cli(command)
            self.assertNotIn("defect", ran.err)
            if command in ("run", "check"):
                self.assertIn("ud800 cannot be read: this locale", ran.err)
                self.assertIn("ud800.opus: cannot be read", ran.err)

    def test_an_odd_note_on_a_folder_ends_no_run(self) -> None:
        untils: list[Any] = ["soon", [1], {}]
        for until in untils:
            note = {"type": "folder", "path": "d/", "rest": "x", "until": until}
            with open(self.history(), "a", encoding="ascii") as file:
                file.write(json.dumps(note) + "\n")
            self.assert_sound()

    def test_an_unreadable_folder_lowers_no_total(self) -> None:
        self.add("chunk_0", "e/f.webm")
        self.run_json(0)
        before = self.read_json("index.json")["compressed_size"]
        original = service.Library.folder

        def folder(library: service.Library, path: str) -> service.Folder:
            if path == "e":
                raise PermissionError(13, "Permission denied", path)
            return original(library, path)

        document = self.read_json("index.json")
        document["recordings"][0]["compressed"] = False
        self.add_json("index.json", document)
        with unittest.mock.patch.object(service.Library, "folder", folder):
            ran = self.run_json(1)
        self.assertIn("The folder e cannot be read", ran.summary["message"])
        document = self.read_json("index.json")
        self.assertTrue(document["recordings"][0]["compressed"])
        self.assertEqual(document["compressed_size"], before)

    def test_a_dry_run_names_it_and_writes_nothing(self) -> None:
        self.copy().unlink()
        before = self.history().read_bytes()
        self.assertEqual(list(self.lost(self.run_json(1, "-n"))), ["d/a.opus"])
        self.assertEqual(self.history().read_bytes(), before)

    def test_one_that_cannot_be_read_is_not_lost_but_reported(self) -> None:
        os.utime(self.copy())
        case = self

        class Unreadable(service.Library):  # as on a disk that fails: root may read anything
            def witness(self, path: str, stop: Any = None) -> Any:
                if path == str(case.copy()):
                    raise OSError(5, "Input/output error", path)
                return super().witness(path, stop)

        with unittest.mock.patch.object(service, "Library", Unreadable):
            ran = self.run_json(1)
        self.assertEqual((self.lost(ran), ran.summary["lost"]), ({}, 0))
        self.assertIn("d/a.opus", ran.err)
        self.assert_sound()


class Back(LossCase):
    """What ends a loss, and what is none."""

    def test_copies_from_a_backup_are_known_by_their_hash_whatever_their_mtime(self) -> None:
        data = self.copy().read_bytes()
        self.copy().unlink()
        self.run_json(1)
        self.copy().write_bytes(data)
        for path in self.library.glob("d/*.opus"):
            os.utime(path)
        ran = self.run_json(0)
        self.assertIn("d/a.opus is back", ran.err)
        self.assertNotIn("another file", ran.err)
        self.assert_sound()
        self.assertEqual(self.run_cli("check").code, 0)

    def test_an_original_that_is_back_ends_it_and_is_compressed_again(self) -> None:
        self.copy().unlink()
        self.run_json(1)
        self.add("chunk_0", "d/a.webm")
        self.assertEqual(self.run_json(0).summary["lost"], 0)
        self.assert_compressed("d/a.webm")
        self.assert_sound()

    def test_another_recording_under_its_name_does_not_end_it(self) -> None:
        data = self.copy().read_bytes()
        self.copy().unlink()
        self.run_json(1)
        other = self.add("chunk_1", "d/a.webm", LONG_AGO + 999)
        ran = self.run_json(0)
        self.assertEqual((ran.summary["lost"], ran.outcomes), (1, {}))
        self.assertIn("d/a.webm waits, as the copy d/a.opus is lost", ran.err)
        self.assertIn("d/a.opus", self.run_cli("doctor").out)
        other.rename(self.library / "d/other.webm")
        self.copy().write_bytes(data)
        ran = self.run_json(0)
        self.assertIn("d/a.opus is back", ran.err)
        self.assertEqual(ran.outcomes["d/other.webm"]["action"], "compressed")

    def test_what_was_moved_takes_its_record_along(self) -> None:
        (self.library / "e").mkdir()
        for ending in ("json", "opus"):
            (self.library / f"d/a.{ending}").rename(self.library / f"e/a.{ending}")
        self.copy("b").rename(self.copy("B"))
        ran = self.run_json(0)
        self.assertIn("d/a.opus was moved to e/a.opus", ran.err)
        self.assertIn("d/b.opus was moved to d/B.opus", ran.err)
        entry = self.read_json("index.json")["recordings"][0]
        self.assertEqual(entry["size"], (self.library / "e/a.opus").stat().st_size)
        self.assert_sound()
        (self.library / "e/a.opus").unlink()
        self.assertEqual(list(self.lost(self.run_json(1))), ["e/a.opus"])

    def test_a_lost_copy_that_is_found_under_another_name_is_not_lost(self) -> None:
        self.copy().rename(self.folder / "away.opus")
        self.run_json(1)
        (self.folder / "away.opus").rename(self.copy("new"))
        self.assertEqual(self.run_json(0).summary["lost"], 1, "its sidecar names the old one still")
        text = (self.library / "d/a.json").read_text()
        (self.library / "d/a.json").write_text(text.replace("a.opus", "new.opus"))
        ran = self.run_json(0)
        self.assertIn("was moved to d/new.opus", ran.err)
        self.assertIn("was moved to d/new.opus", ran.summary["message"])
        self.assert_sound()

    def test_a_copy_that_left_its_sidecar_is_lost_and_its_bytes_are_named(self) -> None:
        (self.library / "e").mkdir()
        self.copy("b").rename(self.library / "e/b.opus")
        del self.documents[self.library / "index.json"]  # its totals count what is here
        self.assert_lost("its bytes are in e/b.opus", name="b")
        (self.library / "d/b.json").rename(self.library / "e/b.json")
        self.assertIn("was moved to e/b.opus", self.run_json(0).err)
        self.assert_sound()

    def test_names_that_were_exchanged_take_their_records_along(self) -> None:
        self.rename("a", "x", "b", "a", "x", "b")
        ran = self.run_json(0)
        for text in ("d/a.opus was moved to d/b.opus", "d/b.opus was moved to d/a.opus"):
            self.assertIn(text, ran.err)
        self.assert_sound()
        self.assertEqual(self.run_cli("check").code, 0)

    def test_chunks_that_were_renumbered_with_their_sidecars_are_moved(self) -> None:
        self.rename("c", "d", "b", "c", "a", "b", sidecars=True)
        ran = self.run_json(0)
        for text in ("d/a.opus was moved to d/b.opus", "d/c.opus was moved to d/d.opus"):
            self.assertIn(text, ran.err)
        self.assert_sound()
        self.assertEqual(self.run_cli("check").code, 0)
        self.copy("c").unlink()
        self.assertEqual(list(self.lost(self.run_json(1))), ["d/c.opus"])

    def rename(self, *names: str, sidecars: bool = False) -> None:
        """Renames copies, from one name to the next of each pair."""
        for old, new in zip(names[::2], names[1::2]):
            self.copy(old).rename(self.copy(new))
            if sidecars:
                path = self.library / f"d/{old}.json"
                text = path.read_text().replace(f"{old}.opus", f"{new}.opus")
                path.rename(self.library / f"d/{new}.json").write_text(text)

    def test_a_folder_that_got_another_name_is_moved(self) -> None:
        (self.library / "d").rename(self.library / "f")
        ran = self.run_json(0)
        self.assertIn("d/c.opus was moved to f/c.opus", ran.err)
        self.assert_sound()

    def test_one_that_another_program_has_rewritten_is_recorded_anew(self) -> None:
        before = self.copy().read_bytes()
        tagged = self.folder / "tagged.opus"
        words = [
            FFMPEG,
            "-v",
            "error",
            "-i",
            str(self.copy()),
            "-c",
            "copy",
            "-metadata",
            "title=x",
        ]
        subprocess.run([*words, str(tagged)], check=True)
        shutil.move(tagged, self.copy())
        self.assertNotEqual(self.copy().read_bytes(), before)
        ran = self.run_json(0)
        self.assertIn("recorded anew", ran.err)
        self.assertNotIn("recorded anew", self.assert_sound().err)
        self.copy().write_bytes(before[:-1])
        self.assertEqual(list(self.lost(self.run_json(1))), ["d/a.opus"])

    def test_what_is_shorter_by_more_than_a_breath_is_lost(self) -> None:
        short = self.folder / "short.opus"
        words = [FFMPEG, "-v", "error", "-i", str(self.copy()), "-c", "copy", "-t", "0.5"]
        subprocess.run([*words, str(short)], check=True)
        shutil.move(short, self.copy())
        self.assert_lost("3.00 s", "0.5")

    def test_a_copy_whose_original_is_here_is_made_again(self) -> None:
        self.add("chunk_0", "d/e.webm")
        self.configure(delete_originals=False)
        self.run_json(0)
        self.copy("e").unlink()
        ran = self.run_json(0)
        self.assertEqual(
            (ran.outcomes["d/e.webm"]["action"], ran.summary["lost"]), ("compressed", 0)
        )
        self.assertTrue(self.copy("e").exists())


class Beside(LossCase):
    """What stands in the place of a copy whose original is here."""

    def setUp(self) -> None:
        super().setUp()
        self.configure(delete_originals=False)
        self.add("chunk_0", "d/e.webm")
        self.run_json(0)

    def test_a_broken_copy_is_made_again_the_same_night(self) -> None:
        data = self.copy("e").read_bytes()
        for broken in (b"", data[: len(data) // 2]):
            self.copy("e").write_bytes(broken)
            ran = self.run_json(0)
            self.assertEqual(ran.outcomes["d/e.webm"]["action"], "compressed", ran.err)
            self.assertIn("d/e.opus is damaged. A run makes it again", ran.err)
            self.assertEqual(len(self.copy("e").read_bytes()), len(data))
        self.assertEqual(self.run_json(0).outcomes, {})

    def test_what_decodes_as_something_else_stays_and_is_told_as_it_is(self) -> None:
        other = self.copy("b").read_bytes()
        for content in (other, b"#EXTM3U"):
            self.copy("e").write_bytes(content)
            ran = self.run_json(1)
            self.assertIn("name already taken", ran.outcomes["d/e.webm"]["reason"])
            self.assertNotIn("dropped", ran.outcomes["d/e.webm"]["reason"])
            self.assertEqual(self.copy("e").read_bytes(), content)

    def test_a_broken_copy_that_is_back_is_not_made_again(self) -> None:
        before = self.copy("e").stat()
        data = self.copy("e").read_bytes()
        self.copy("e").write_bytes(b"")
        self.assertEqual(self.run_cli("check").code, 0)
        self.copy("e").write_bytes(data)
        os.utime(self.copy("e"), ns=(before.st_mtime_ns, before.st_mtime_ns))
        self.assertEqual(self.run_json(0).outcomes, {})


class Forgotten(LossCase):
    def test_one_that_its_owner_deleted_is_forgotten(self) -> None:
        self.forget("a")
        self.copy().unlink()
        ran = self.run_json(0)
        self.assertIn("Forgotten, as no document names them any more: 1", ran.err)
        self.assertNotIn("Forgotten", self.assert_sound().err)

    def test_a_loss_ends_when_its_documents_are_removed(self) -> None:
        self.copy().unlink()
        self.run_json(1)
        (self.library / "d/a.json").unlink()
        self.assertEqual(self.run_json(0).summary["lost"], 1, "the index has it still")
        self.forget("a")
        self.assertIn("Forgotten", self.run_json(0).err)
        self.assert_sound()

    def test_the_index_holds_one_by_its_id_or_name(self) -> None:
        self.copy().unlink()
        (self.library / "d/a.json").unlink()
        document = self.read_json("index.json")
        for entry in ({"id": "d/a"}, {"file": "recordings/d/a.opus"}, {"x": ["d\\a.WEBM"]}):
            with self.subTest(entry):
                self.add_json("index.json", {**document, "recordings": [{"id": "x"}, entry]})
                self.assertEqual(list(self.lost(self.run_json(1, "-n"))), ["d/a.opus"])
        self.add_json("index.json", {**document, "recordings": [{"id": "x", "file": "a.opus"}]})
        self.assertEqual(self.lost(self.run_json(0, "-n")), {})
        (self.library / "index.json").write_text("{")
        self.assertEqual(list(self.lost(self.run_json(1, "-n"))), ["d/a.opus"])

    def test_a_forgotten_one_may_come_back(self) -> None:
        self.forget("a")
        self.copy().rename(self.folder / "a.opus")
        self.run_json(0)
        shutil.copy(self.folder / "a.opus", self.copy())
        self.assert_sound()
        self.add_json("d/a.json", sidecar("d/a", ["a.opus"]))
        self.copy().unlink()
        self.assertEqual(list(self.lost(self.run_json(1))), ["d/a.opus"])

    def test_the_name_of_a_forgotten_one_may_be_taken(self) -> None:
        self.forget("a")
        self.copy().unlink()
        self.run_json(0)
        self.copy("b").rename(self.copy())
        (self.library / "d/b.json").unlink()
        self.assertIn("d/b.opus was moved to d/a.opus", self.run_json(0).err)
        self.assert_sound()

    def test_most_copies_that_vanish_at_once_are_lost_without_documents(self) -> None:
        copies = [self.copy()]
        data = (base.RECORDINGS / "chunk_1.webm").read_bytes()
        for number in range(7):
            self.add_bytes(data, f"m/{number}.webm", LONG_AGO + number)
            copies.append(self.library / f"m/{number}.opus")
        self.run_json(0)
        shutil.rmtree(self.library / "m")
        ran = self.run_json(1)
        self.assertEqual(len(self.lost(ran)), 7)
        self.assertIn("--retry", ran.err)
        for _ in range(2):
            self.assertEqual(self.run_json(0).summary["lost"], 7)
        self.assertIn("Forgotten", self.run_json(0, "--retry").err)
        self.assert_sound()


if __name__ == "__main__":
    unittest.main()
