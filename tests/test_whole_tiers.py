"""Further steps: a recording goes where its age asks, in one step from the best source still there, under the same proofs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time

from tests import standins
from tests.base import DAY, FFMPEG, LibraryCase, decoded_seconds

TIERS = [{"after_days": 30, "bitrate": "48k"}, {"after_days": 90, "bitrate": "32k"}]


class TierCase(LibraryCase):
    def setUp(self) -> None:
        super().setUp()
        self.configure(tiers=TIERS)

    def grow_older(self, days: float) -> None:
        """Every recording of the library was last modified so many days ago, and is on record so."""
        then = round(time.time() - days * DAY)
        for path in self.library.rglob("*"):
            if path.suffix in (".webm", ".opus", ".m4a"):
                os.utime(path, (then, then))
        for path in self.library.glob(".compression/history.jsonl"):
            path.write_text(
                re.sub(r'"mtime_ns": \d+', f'"mtime_ns": {then * 10**9}', path.read_text())
            )

    def compressed(self, days: float, *options: str) -> dict[str, int]:
        """Run at an age; the bytes of every copy then."""
        self.grow_older(days)
        ran = self.run_cli("--json", *options)
        self.assertEqual(ran.code, 0, ran.out + ran.err)
        return {path.name: path.stat().st_size for path in self.library.rglob("*.opus")}


class AgeDecides(TierCase):
    def test_a_recording_goes_to_its_tier_in_one_step_from_its_original(self) -> None:
        self.add("chunk_0", "new.webm", time.time() - 8 * DAY)
        self.add("chunk_0", "older.webm", time.time() - 31 * DAY)
        self.add("chunk_0", "oldest.webm", time.time() - 91 * DAY)
        ran = self.run_cli("--json")
        sizes = [
            ran.outcomes[f"{name}.webm"]["compressed_size"] for name in ("new", "older", "oldest")
        ]
        self.assertGreater(sizes[0], 1.7 * sizes[1])
        self.assertGreater(sizes[1], 1.3 * sizes[2])
        again = self.run_cli("--json")
        self.assertEqual([line["type"] for line in again.lines], ["summary"])

    def test_one_that_is_mostly_header_is_done_once(self) -> None:
        self.add("ch_short_60ms", "short.webm")
        self.compressed(31)
        self.assertEqual(self.run_cli("--json").outcomes, {})

    def test_a_copy_is_made_smaller_in_its_place_and_every_record_follows(self) -> None:
        self.add_session(chunks=2)
        seconds = decoded_seconds(self.library / "2025-10-27/14-30-45-chunk-1.webm")
        first = self.compressed(8)
        second = self.compressed(31)
        self.assertEqual(set(first), set(second))
        for name, size in second.items():
            self.assertLess(size, 0.6 * first[name])
        document = self.read_json("2025-10-27/14-30-45-chunk-1.json")
        self.assertEqual(document["compressed_size"], sum(second.values()))
        self.assertEqual(
            document["compression_ratio"],
            round(sum(second.values()) / document["original_size"], 4),
        )
        entry = self.read_json("index.json")["recordings"][0]
        self.assertEqual((entry["compressed"], entry["size"]), (True, sum(second.values())))
        self.assertEqual(self.read_json("index.json")["compressed_size"], sum(second.values()))
        copy = self.library / "2025-10-27/14-30-45-chunk-1.opus"
        self.assertAlmostEqual(decoded_seconds(copy), seconds, delta=0.001)
        self.assertAlmostEqual(copy.stat().st_mtime, time.time() - 31 * DAY, delta=60)
        self.assert_no_leftovers()
        before = self.files()
        self.assertEqual(self.compressed(31), second)
        self.assertEqual(self.files(), before)
        third = self.compressed(100)
        self.assertLess(sum(third.values()), 0.8 * sum(second.values()))

    def test_a_dry_run_says_what_the_next_step_would_save(self) -> None:
        self.add("chunk_1", "a.webm")
        self.compressed(8)
        self.grow_older(31)
        before = self.files()
        ran = self.run_cli("--dry-run", "--json")
        outcome = ran.outcomes["a.opus"]
        self.assertEqual(outcome["action"], "would-compress")
        due = json.loads(self.run_cli("stats", "--json").out)["due"]
        self.assertEqual((due["count"], due["size"]), (1, len(before["a.opus"])))
        self.assertAlmostEqual(
            due["estimated_saving"],
            len(before["a.opus"]) - outcome["estimated_size"],
            delta=0.1 * due["size"],
        )
        self.assertEqual(self.files(), before)
        after = self.compressed(31)["a.opus"]
        self.assertAlmostEqual(outcome["estimated_size"] / after, 1, delta=0.09)

    def test_what_was_kept_at_one_rate_is_looked_at_again_for_a_lower_one(self) -> None:
        self.add("chunk_0", "small.webm")
        self.configure(tiers=TIERS, min_saving_percent=40)
        self.assertEqual(self.compressed(8), {})
        self.assertIn("small.opus", self.compressed(31))


class FirstStep(TierCase):
    def test_the_first_step_may_be_written_as_a_tier_too(self) -> None:
        self.configure(tiers=[{"after_days": 7, "bitrate": "96k"}, *TIERS])
        self.add("chunk_0", "a.webm")
        first = self.compressed(8)["a.opus"]
        self.assertEqual(self.compressed(9), {"a.opus": first})
        self.assertLess(self.compressed(31)["a.opus"], 0.6 * first)


class BestSource(TierCase):
    def test_a_kept_original_is_a_better_source_than_its_copy(self) -> None:
        self.configure(tiers=TIERS, delete_originals=False)
        original = self.add("chunk_0", "a.webm")
        first = self.compressed(8)["a.opus"]
        self.grow_older(31)
        ran = self.run_cli("--json")
        self.assertEqual(list(ran.outcomes), ["a.webm"])
        self.assertLess((self.library / "a.opus").stat().st_size, 0.6 * first)
        self.assertTrue(original.exists())
        self.assertEqual(self.run_cli("--json").outcomes, {})

    def test_a_copy_of_something_else_is_not_replaced_from_an_original_that_came_later(
        self,
    ) -> None:
        self.configure(tiers=TIERS, delete_originals=False)
        self.add("chunk_0", "a.webm")
        self.compressed(8)
        self.add("chunk_1", "a.webm")
        self.grow_older(31)
        copy = (self.library / "a.opus").read_bytes()
        ran = self.run_cli("--json")
        self.assertIn("not a copy of it", ran.outcomes["a.webm"]["reason"])
        self.assertEqual((self.library / "a.opus").read_bytes(), copy)

    def test_an_original_with_other_bytes_than_its_copy_was_proven_against_is_no_source(
        self,
    ) -> None:
        """As one that rotted, or another recording of the same size and second."""
        self.configure(tiers=TIERS, delete_originals=False)
        original = self.add("chunk_0", "a.webm")
        self.compressed(8)
        self.grow_older(31)
        status, content = original.stat(), bytearray(original.read_bytes())
        content[len(content) // 2] ^= 1
        original.write_bytes(content)
        os.utime(original, ns=(status.st_mtime_ns, status.st_mtime_ns))
        before = self.files()
        ran = self.run_cli("--json")
        self.assertEqual(ran.outcomes["a.webm"]["action"], "kept", ran.out)
        self.assertIn("and other bytes", ran.outcomes["a.webm"]["reason"])
        self.assertEqual(self.run_cli("--json").outcomes, {})
        self.assertIn("and other bytes", self.run_cli("restore", str(original)).out)
        self.assertEqual(self.files(), before)

    def test_a_kept_original_is_not_compressed_twice(self) -> None:
        self.configure(delete_originals=False)
        self.add("chunk_0", "a.webm")
        self.compressed(8)
        self.configure(delete_originals=False, target_bitrate="64k")
        copy = (self.library / "a.opus").read_bytes()
        ran = self.run_cli("--json")
        self.assertEqual(self.library.joinpath("a.opus").read_bytes(), copy)
        self.assertEqual(ran.summary["compressed"], 0)

    def test_a_policy_of_its_own_holds_at_any_age(self) -> None:
        self.add("chunk_0", "a.webm")
        self.add_json(
            "a.json", {"chunks": [{"file": "a.webm"}], "compression_policy": {"bitrate": "80k"}}
        )
        first = self.compressed(8)
        self.assertEqual(self.compressed(100), first)

    def test_a_file_in_a_copys_format_that_no_record_knows_is_left_alone(self) -> None:
        self.add("chunk_0", "a.webm")
        self.compressed(8)
        copy = ["-i", str(self.library / "a.opus"), "-c", "copy", "-map_metadata", "-1"]
        subprocess.run([FFMPEG, "-v", "error", *copy, str(self.library / "mine.opus")], check=True)
        (self.library / "a.opus").unlink()
        before = self.files()
        self.compressed(100)
        self.assertEqual(self.files(), before)

    def test_a_copy_is_known_by_its_sidecar_where_the_history_is_lost(self) -> None:
        self.add_session(chunks=1)
        first = self.compressed(8)
        for path in self.folder.rglob("history.jsonl"):
            path.unlink()
        self.put_run_on_record()
        second = self.compressed(31)
        self.assertLess(sum(second.values()), 0.6 * sum(first.values()))
        self.assertEqual(self.compressed(32), second)

    def test_a_copy_is_known_by_its_tag_where_its_time_is_not_that_on_record(self) -> None:
        self.add("chunk_0", "a.webm")
        first = self.compressed(8)["a.opus"]
        then = time.time() - 31 * DAY
        os.utime(self.library / "a.opus", (then, then))
        self.assertEqual(self.run_cli().code, 0)
        self.assertLess((self.library / "a.opus").stat().st_size, 0.6 * first)

    def test_a_copy_that_changed_on_the_way_is_kept(self) -> None:
        self.add("chunk_0", "a.webm")
        self.compressed(8)
        self.grow_older(31)
        copy = str(self.library / "a.opus")
        environment = self.stand_in(standins.touch_after_the_truth, path=copy)
        before = (self.library / "a.opus").read_bytes()
        ran = self.run_cli("--json", env=environment)
        self.assertEqual(ran.outcomes["a.opus"]["action"], "failed", ran.out)
        self.assertEqual((self.library / "a.opus").read_bytes(), before)
