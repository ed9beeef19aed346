"""What the statistics promise, and the server that shows them."""

import json
import unittest
from typing import Any

import compression_service as service
from compression_service import Reason

from .test_library import OLD, Case


class Statistics(Case):
    def gather(self, **settings: Any) -> dict[str, Any]:
        config = service.Config(recordings_dir=str(self.root), **settings)
        return service.gather_stats(config)

    def past(self, stem: str, **past: Any) -> None:
        self.remember(stem, mtime_ns=OLD * 10**9, seconds=3600.0, **past)

    def fill(self) -> None:
        self.add("d/a.opus", b"1234")
        self.past(
            "d/a",
            action="compressed",
            first_size=10,
            suffix=".opus",
            size=4,
            compressed=1.7e9,
            bitrate=96000,
        )
        self.add("d/b.webm", b"12345")
        self.past(
            "d/b",
            action="kept",
            code=Reason.VIDEO.code,
            first_size=5,
            settings="opus 96000 5 True False",
        )
        self.add("d/<c>.webm", b"1" * 7)
        self.past("d/<c>", action="failed", code=Reason.TOOL_FAILED.code, first_size=7)
        self.add("e/new.webm", b"1" * 100)
        self.add("e/stranger.opus", b"12")

    def test_sizes_savings_and_reasons_are_those_of_the_records(self) -> None:
        self.fill()
        stats = self.gather()
        wanted = {
            "total_size": 118,
            "compressed_size": 6,
            "original_size": 112,
            "savings": 6,
            "recordings": 5,
            "compression_ratio": 0.4,
            "compressed": 2,
            "originals": 3,
            "unrecorded": 1,
            "young": 0,
        }
        self.assertEqual({key: stats[key] for key in wanted}, wanted)
        self.assertEqual(stats["due"], {"count": 2, "size": 107, "estimated_saving": 27})
        self.assertEqual(sum(stats["savings_by_month"].values()), 6)
        self.assertEqual(sum(stats["recorded_by_month"].values()), 10 + 5 + 7 + 100 + 2)
        kept = [(each["action"], each["count"], each["paths"]) for each in stats["kept"]]
        self.assertEqual(kept, [("failed", 1, ["d/<c>.webm"]), ("kept", 1, ["d/b.webm"])])
        self.assertIn("d/<c>", "\n".join(service.stats_lines(stats)))
        page = service.stats_page(stats)
        self.assertIn("d/&lt;c&gt;", page)
        self.assertNotIn("<c>", page)
        json.dumps(stats)

    def test_a_kept_original_has_saved_nothing_and_an_empty_library_is_shown(self) -> None:
        list(service.stats_lines(self.gather())), service.stats_page(self.gather())
        self.add("d/a.opus", b"1234"), self.add("d/a.webm", b"1234567890")
        self.past(
            "d/a", action="compressed", first_size=10, suffix=".opus", size=4, compressed=1.7e9
        )
        self.assertEqual(self.gather()["savings"], 0)


if __name__ == "__main__":
    unittest.main()
