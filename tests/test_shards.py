"""Several runs share one library."""

from __future__ import annotations

import subprocess
import sys

from tests.base import SCRIPT, LibraryCase


class Shards(LibraryCase):
    def test_four_shards_under_gnu_parallel_do_the_whole_library_once_and_leave_it_true(self) -> None:
        for day in range(3):
            self.add_session(f"2025-10-2{day}", "10-00-00", 2)
            self.add("chunk_0", f"2025-10-2{day}/bare.webm")
        command = f"{sys.executable} {SCRIPT} run -c {self.config} --json --shard {{}}/4"
        done = subprocess.run(
            ["parallel", "-j", "4", command, ":::", "1", "2", "3", "4"], capture_output=True, text=True, check=False
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertEqual(done.stdout.count('"action": "compressed"'), 9, done.stdout)
        self.assertEqual(list(self.library.rglob("*.webm")), [])
        self.assert_sidecars_true()
        self.assert_no_leftovers()
        document = self.read_json("index.json")
        self.assertEqual([entry["compressed"] for entry in document["recordings"]], [True] * 3)
        self.assertEqual(document["compressed_size"], sum(path.stat().st_size for path in self.library.rglob("*.opus")))
        self.assertEqual(self.run_cli("check").code, 0)
        history = (self.folder / "logs" / "history.jsonl").read_text()
        self.assertEqual(history.count('"action": "compressed"'), 9)

    def test_the_parts_are_the_same_in_every_run_and_cover_everything_once(self) -> None:
        for number in range(12):
            self.add("chunk_0", f"{number}.webm")
        parts = [set(self.run_cli("-n", "--json", "--shard", f"{k}/3").outcomes) for k in (1, 2, 3)]
        self.assertEqual(sum(map(len, parts)), 12)
        self.assertEqual(len(set().union(*parts)), 12)
        self.run_cli("--limit", "4")
        again = [set(self.run_cli("-n", "--json", "--shard", f"{k}/3").outcomes) for k in (1, 2, 3)]
        for before, after in zip(parts, again):
            self.assertLessEqual(after, before)

    def test_a_shard_excludes_its_double_a_whole_run_and_a_shard_of_another_count(self) -> None:
        self.add("chunk_0", "a.webm")
        slow = self.stand_in("time.sleep(4); os.execv(real, [real, *args])")
        first = subprocess.Popen(self.command("--shard", "1/1"), env=slow, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not (self.library / ".compression" / "1-of-1").exists():
                pass
            self.assertEqual(self.run_cli().code, 3)
            self.assertEqual(self.run_cli("--shard", "1/1").code, 3)
            self.assertEqual(self.run_cli("--shard", "1/2").code, 3)
        finally:
            self.assertEqual(first.wait(60), 0)
        self.assert_compressed("a.webm")
        self.assert_no_leftovers()
