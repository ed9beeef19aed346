"""`keep_free`: while less space is free than asked for, runs make room before its time."""

from __future__ import annotations

import functools
import json
import os
import shutil
import time
import unittest
import unittest.mock
from pathlib import Path
from typing import Any, Callable, Optional

import compression_service as service
from tests.base import DAY, LONG_AGO, LibraryCase, Ran, sidecar
from tests.test_delete import DELETE

SIZE = 1_000_000_000  # of the disk, in bytes
MOST = 100_000_000  # more than any run gives back


@functools.cache
def kept_library() -> Path:
    """Three recordings, compressed with their originals kept for 9,000 days; made once."""
    case = LibraryCase()
    case.setUp()
    case.configure(keep_originals_days=9000)
    for number in range(3):
        take = f"d/{number}"
        case.add(f"chunk_{number % 2}", f"{take}.webm", LONG_AGO + DAY * number)
        case.add_json(f"{take}.json", sidecar(take, [f"{number}.webm"]))
    assert case.run_cli().code == 0
    unittest.addModuleCleanup(case.doCleanups)
    unittest.addModuleCleanup(kept_library.cache_clear)
    return case.library


class RoomCase(LibraryCase):
    """A disk on which `missing` bytes are missing. It has more free space once the library takes
    less."""

    missing = 1.0

    def setUp(self) -> None:
        super().setUp()
        self.settings: dict[str, Any] = {"keep_free": "20%", "check_days": 0}
        self.configure(**self.settings)

    def use_kept(self) -> None:
        shutil.copytree(kept_library(), self.library, dirs_exist_ok=True)
        self.settings["keep_originals_days"] = 9000
        self.configure(**self.settings)

    def set(self, **settings: Any) -> None:
        self.settings.update(settings)
        self.configure(**self.settings)

    def used(self) -> int:
        return sum(path.stat().st_size for path in self.library.glob("d/*.*") if path.is_file())

    def shrink(self, missing: float) -> None:
        """From now on so many bytes are missing."""
        self.missing, self.before = missing, self.used()

    def disk_state(self, _: str) -> Any:
        free = SIZE // 5 - self.missing + self.before - self.used()
        return unittest.mock.Mock(f_frsize=1, f_blocks=SIZE, f_bavail=free)

    def go(self, *words: str, code: int = 0, disk: Optional[Callable[[str], Any]] = None) -> Ran:
        """A run in this process, as it is to see that disk."""
        if not hasattr(self, "before"):
            self.shrink(self.missing)
        with unittest.mock.patch.object(service, "disk_state", disk or self.disk_state):
            ran = self.run_here("run", "--json", *words)
        self.assertEqual(ran.code, code, ran.out + ran.err)
        self.assertNotIn("Traceback", ran.err)
        return ran

    def stats(self) -> dict[str, Any]:
        words = service.parse_words(["stats", "-c", str(self.config)])
        with unittest.mock.patch.object(service, "disk_state", self.disk_state):
            return service.gather_stats(service.resolve_config(words))

    def names(self, suffix: str = "webm") -> list[str]:
        return sorted(
            str(path.relative_to(self.library)) for path in self.library.rglob(f"*.{suffix}")
        )

    def days_ago(self, days: float) -> float:
        return time.time() - days * DAY


class Wanted(RoomCase):
    def test_sizes_and_percents_of_the_disk(self) -> None:
        library = service.Library(str(self.library))
        with unittest.mock.patch.object(service, "disk_state", self.disk_state):
            self.shrink(0)
            for text, wanted in (
                ("20%", SIZE // 5), ("0.5 %", 5e6), ("20GB", 20e9), ("1TB", 1e12), ("1.5 MB", 1.5e6),
            ):  # fmt: skip
                self.set(keep_free=text)
                words = service.parse_words(["run", "-c", str(self.config)])
                config = service.resolve_config(words)
                self.assertEqual(service.space_wanted(library, config), wanted, text)

    def test_what_cannot_be_is_a_config_error(self) -> None:
        for wrong in ("100%", "101%", "-1%", "20", 20, "GB", "", "10 percent", True, ["10%"]):
            self.set(keep_free=wrong)
            ran = self.run_here("run")
            self.assertEqual(ran.code, 2, wrong)
            self.assertIn("keep_free", ran.err)

    def test_free_space_that_is_unknown_is_enough(self) -> None:
        self.use_kept()
        ran = self.go(disk=lambda _: None)
        self.assertEqual(ran.outcomes, {})
        self.assertNotIn("keep_free", ran.summary["message"])


class KeptOriginals(RoomCase):
    def setUp(self) -> None:
        super().setUp()
        self.use_kept()

    def test_they_go_first_and_oldest_first_until_enough_is_free(self) -> None:
        size = (self.library / "d/0.webm").stat().st_size
        for missing, left in (
            (size - 1000, ["d/1.webm", "d/2.webm"]),
            (1, ["d/2.webm"]),
            (0, ["d/2.webm"]),
        ):
            self.shrink(missing)
            ran = self.go()
            self.assertEqual(self.names(), left)
            self.assertNotIn("left for", ran.summary["message"])
            self.assertNotIn("free, keep_free", ran.summary["message"])
            for told in ran.outcomes.values():
                self.assertEqual(told["action"], "freed")

    def test_they_go_before_a_compression_that_the_disk_has_no_room_for(self) -> None:
        """And what needs less is compressed all the same."""
        self.add("ch_mp4mime_10s", "d/long.webm", LONG_AGO - DAY)
        self.add("chunk_1", "d/short.webm")
        self.shrink(SIZE // 5 - service.SPACE_MARGIN - 600_000)
        ran = self.go(code=5)
        self.assertEqual(self.names(), ["d/long.webm", "d/short.webm"])
        self.assertEqual((ran.summary["freed"], ran.summary["compressed"]), (3, 1))

    def test_line_and_summary_say_that_they_go_early(self) -> None:
        self.shrink(1)
        for words, said in ((["-n"], "early, as keep_free asks, and its copy is to be"), ([], "")):
            ran = self.go(*words)
            self.assertIn(said, ran.outcomes["d/0.webm"]["reason"])
            self.assertIn("(1 early, as keep_free asks)", ran.summary["message"])
        self.set(keep_originals_days=0)
        ran = self.go()
        self.assertIn("its days are over", ran.outcomes["d/1.webm"]["reason"])
        self.assertNotIn("early", ran.summary["message"])

    def test_each_is_proven_again_and_a_damaged_copy_keeps_its_own(self) -> None:
        copy = self.library / "d/0.opus"
        status, content = copy.stat(), bytearray(copy.read_bytes())
        content[-20] ^= 1
        copy.write_bytes(content)
        os.utime(copy, ns=(status.st_mtime_ns, status.st_mtime_ns))
        self.shrink(MOST)
        self.run_here("run")
        with unittest.mock.patch.object(service, "disk_state", self.disk_state):
            self.run_here("run", "--json")
        self.assertEqual(self.names(), ["d/0.webm"])

    def test_none_is_younger_than_a_day(self) -> None:
        for number, age in enumerate((0.9, 1.1)):
            for suffix in ("webm", "opus"):
                os.utime(self.library / f"d/{number}.{suffix}", (self.days_ago(age),) * 2)
        text = self.history().read_text()
        for number in range(2):
            stamp = (self.library / f"d/{number}.webm").stat().st_mtime_ns
            before = (kept_library() / f"d/{number}.webm").stat().st_mtime_ns
            text = text.replace(str(before), str(stamp))
        self.history().write_text(text)
        self.set(age_threshold_days=0)
        self.shrink(MOST)
        self.go()
        self.assertEqual(self.names(), ["d/0.webm"])

    def test_a_policy_may_ask_for_more_days_or_for_all(self) -> None:
        policies = {"d/0": {"after_days": 5000}, "d/1": {"keep": True}}
        for take, policy in policies.items():
            about = {**self.read_json(f"{take}.json"), "compression_policy": policy}
            self.add_json(f"{take}.json", about)
        self.shrink(MOST)
        ran = self.go()
        self.assertEqual(self.names(), ["d/0.webm", "d/1.webm"])
        self.assertIn("No step is left that would free more", ran.summary["message"])

    def test_those_kept_by_delete_originals_stay(self) -> None:
        self.set(delete_originals=False)
        self.shrink(MOST)
        ran = self.go()
        self.assertEqual((len(self.names()), ran.outcomes), (3, {}))
        self.set(delete_originals=True)
        self.go("--keep-originals")
        self.assertEqual(len(self.names()), 3)

    def test_a_limit_and_a_selection_hold(self) -> None:
        self.shrink(MOST)
        self.go("--limit", "1")
        self.assertEqual(self.names(), ["d/1.webm", "d/2.webm"])
        self.go("--only", "d/2.*")
        self.assertEqual(self.names(), ["d/1.webm"])

    def test_a_dry_run_takes_what_it_would_free_for_free(self) -> None:
        before = self.files()
        self.shrink((self.library / "d/0.webm").stat().st_size - 1000)
        ran = self.go("-n")
        self.assertEqual(
            {path: told["action"] for path, told in ran.outcomes.items()},
            {"d/0.webm": "would-free"},
        )
        self.assertEqual(self.files(), before)

    def test_the_first_run_on_record_waits(self) -> None:
        lines = self.history().read_text().splitlines(True)
        self.history().write_text("".join(line for line in lines if '"type": "run"' not in line))
        self.shrink(MOST)
        ran = self.go()
        self.assertEqual(len(self.names()), 3)
        self.assertNotIn("No step is left", ran.summary["message"])
        self.go()
        self.assertEqual(self.names(), [])

    def test_a_pause_holds(self) -> None:
        self.run_here("pause")
        self.shrink(MOST)
        self.go()
        self.assertEqual(len(self.names()), 3)


class Told(RoomCase):
    missing = 0

    def setUp(self) -> None:
        super().setUp()
        self.add_bytes(b"", "d/a.webm")  # nothing can be made of it
        self.told = self.folder / "told"
        self.set(notify_on="problem", notify_command=f'echo "$MESSAGE" >>{self.told}')

    def notes(self) -> list[str]:
        return self.told.read_text().splitlines() if self.told.exists() else []

    def test_its_begin_and_its_end_are_notified_once(self) -> None:
        for missing, count, said in (
            (0, 0, ""),
            (5e7, 1, "150 MB free, keep_free asks for 200 MB"),
            (6e7, 1, ""),
            (-1, 2, "As much space is free again as keep_free asks for"),
            (-2, 2, ""),
            (1e7, 3, "190 MB free"),
        ):
            self.shrink(missing)
            ran = self.go()
            self.assertEqual(len(self.notes()), count, missing)
            self.assertIn(said, self.notes()[-1] if count else "")
            self.assertEqual("free, keep_free asks" in ran.summary["message"], missing > 0)

    def test_run_doctor_statistics_and_page_say_it(self) -> None:
        self.go()
        self.shrink(5e7)
        said = "150 MB free, keep_free asks for 200 MB"
        self.assertIn(said, self.go().summary["message"])
        stats = self.stats()
        self.assertEqual((stats["free_space"], stats["keep_free"]), (SIZE * 0.15, SIZE * 0.2))
        self.assertIn(said, service.stats_page(stats))
        with unittest.mock.patch.object(service, "disk_state", self.disk_state):
            ran = self.run_here("doctor")
        self.assertEqual(ran.code, 0, ran.out)
        self.assertIn(said, ran.out)

    def test_more_than_the_disk_has_is_wrong(self) -> None:
        self.set(keep_free="2GB")
        self.shrink(0)
        text, is_wrong = service.verdict(self.stats())
        self.assertTrue(is_wrong)
        self.assertIn("No run can reach that: the disk has 1.00 GB in all.", text)

    def test_a_setting_that_went_is_no_end(self) -> None:
        self.shrink(5e7)
        self.go()
        self.set(keep_free=None)
        self.assertNotIn("free again", self.go().summary["message"])

    def test_with_nothing_left_it_says_so_and_a_night_reads_no_document(self) -> None:
        self.add_json("d/a.json", sidecar("d/a", ["a.webm"]))
        for path in self.library.rglob("*.json"):
            os.utime(path, (LONG_AGO, LONG_AGO))
        self.shrink(5e7)
        for _ in range(3):
            ran = self.go()
        self.assertIn("No step is left that would free more", ran.summary["message"])
        walk = unittest.mock.Mock(wraps=service.every_folder)
        with (
            unittest.mock.patch.object(service, "read_sidecar") as read,
            unittest.mock.patch.object(service, "every_folder", walk),
        ):
            ran = self.go()
        self.assertIn("No step is left", ran.summary["message"])
        read.assert_not_called()
        self.assertEqual(walk.call_count, 1)


class Early(RoomCase):
    """Compressing, making smaller and archiving before their age."""

    def setUp(self) -> None:
        super().setUp()
        self.put_run_on_record(DAY / 2)
        self.missing = MOST

    def add_young(self, *days: float) -> list[Path]:
        return [
            self.add(f"chunk_{number % 2}", f"d/{number}.webm", self.days_ago(age))
            for number, age in enumerate(days)
        ]

    def test_what_is_older_than_a_day_is_compressed_and_nothing_younger(self) -> None:
        self.add_young(3, 0.9)
        ran = self.go()
        self.assertEqual(ran.outcomes["d/0.webm"]["action"], "compressed")
        self.assertEqual(self.names(), ["d/1.webm"])
        self.assertEqual(self.go().outcomes, {})

    def test_a_library_that_only_now_begins_is_looked_at_too(self) -> None:
        shutil.rmtree(self.library / ".compression")
        self.add_young(3)
        self.go()
        self.assertEqual(self.names(), [])

    def test_no_more_than_needed_and_the_oldest_first(self) -> None:
        self.add_young(2, 6, 4)
        self.shrink(1)
        self.go()
        self.assertEqual(self.names(), ["d/0.webm", "d/2.webm"])

    def test_a_policy_s_own_age_is_kept(self) -> None:
        self.add_young(3)
        self.add_json(
            "d/0.json", {**sidecar("x", ["0.webm"]), "compression_policy": {"after_days": 5}}
        )
        self.go()
        self.assertEqual(self.names(), ["d/0.webm"])

    def test_one_step_a_run_each_bit_rate_in_turn_then_the_archive_but_no_deletion(self) -> None:
        cold = self.folder / "cold"
        (cold / "archive-of-recordings").mkdir(parents=True)
        self.set(tiers=[
            {"after_days": 30, "bitrate": "48k"}, {"after_days": 60, "bitrate": "24k"},
            {"after_days": 90, "archive": str(cold)}, {"after_days": 200, "delete": True},
        ])  # fmt: skip
        self.add_young(3)
        self.add_json("d/0.json", sidecar("x", ["0.webm"]))
        copy, sizes = self.library / "d/0.opus", []
        with unittest.mock.patch.object(service, "has_own_disk", lambda config: True):
            for _ in range(3):
                self.go()
                sizes.append(copy.stat().st_size)
            self.assertGreater(sizes[0], sizes[1])
            self.assertGreater(sizes[1], sizes[2])
            self.go()
            self.assertFalse(copy.exists())
            self.assertTrue((cold / "archive-of-recordings/d/0.opus").exists())
            for _ in range(2):
                self.assertEqual(self.go().outcomes, {})
        self.assertTrue((cold / "archive-of-recordings/d/0.opus").exists())

    def test_an_archive_on_the_same_disk_is_not_used(self) -> None:
        cold = self.folder / "cold"
        (cold / "archive-of-recordings").mkdir(parents=True)
        self.set(tiers=[{"after_days": 90, "archive": str(cold)}])
        self.add_young(3)
        for path in self.library.rglob("*.json"):
            os.utime(path, (LONG_AGO, LONG_AGO))
        for _ in range(3):
            ran = self.go()
        self.assertTrue((self.library / "d/0.opus").exists())
        self.assertIn("No step is left", ran.summary["message"])
        with unittest.mock.patch.object(service, "resolve_recordings", side_effect=AssertionError):
            self.go()

    def test_an_archive_that_is_not_there_ends_no_run_before_its_time(self) -> None:
        self.set(tiers=[{"after_days": 90, "archive": str(self.folder / "cold")}])
        self.add_young(3)
        for _ in range(2):
            self.go()
        self.assertTrue((self.library / "d/0.opus").exists())

    def test_nothing_is_deleted_before_its_time(self) -> None:
        self.set(tiers=[{**DELETE, "after_days": 400}])
        self.add_young(390, 3)
        for number in range(2):
            self.add_json(f"d/{number}.json", sidecar(f"{number}", [f"{number}.webm"]))
        for _ in range(3):
            self.go()
        self.assertEqual(self.names("opus"), ["d/0.opus", "d/1.opus"])

    def test_a_step_that_gains_little_is_tried_once(self) -> None:
        self.set(min_saving_percent=50, target_bitrate="32k", tiers=[
            {"after_days": 30, "bitrate": "31k"}, {"after_days": 60, "bitrate": "30k"},
        ])  # fmt: skip
        self.add_young(3)
        for _ in range(4):
            ran = self.go()
        self.assertEqual(self.go().outcomes, {}, ran.out)

    def test_a_new_tier_that_deletes_is_announced_all_the_same(self) -> None:
        self.set(tiers=[DELETE])
        self.add_young(390, 3)
        for number in range(2):
            self.add_json(f"d/{number}.json", sidecar(f"{number}", [f"{number}.webm"]))
        message = self.go().summary["message"]
        self.assertIn("the next run deletes 1 recordings", message)
        self.assertEqual(self.go().summary["deleted"], 1)

    def test_shares_are_read_while_room_is_made(self) -> None:
        self.set(check_days=1)
        self.add_young(3)
        self.shrink(1)
        self.go()
        record = json.loads(self.history().read_text().splitlines()[-1])
        self.assertEqual(record["checked"], time.time() // DAY)


class SmallDisk(LibraryCase):
    @unittest.skipUnless(os.geteuid() == 0 and shutil.which("mount"), "mounting needs root")
    def test_a_true_disk_gets_room_as_its_originals_go(self) -> None:
        words = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(self.library)]
        if os.spawnvp(os.P_WAIT, "mount", words):
            self.skipTest("mounting is not permitted here")
        self.addCleanup(os.spawnvp, os.P_WAIT, "umount", ["umount", "-l", str(self.library)])
        shutil.copytree(kept_library(), self.library, dirs_exist_ok=True)
        filler = self.library / "filler"
        free = shutil.disk_usage(self.library).free
        filler.write_bytes(bytes(free - 2_500_000))
        wanted = shutil.disk_usage(self.library).free + 20_000
        self.configure(keep_originals_days=9000, keep_free=f"{wanted / 1e6:.6f}MB")
        ran = self.run_cli("--json")
        self.assertEqual((ran.code, ran.summary["freed"]), (0, 1), ran)
        self.assertGreaterEqual(shutil.disk_usage(self.library).free, wanted)


if __name__ == "__main__":
    unittest.main()
