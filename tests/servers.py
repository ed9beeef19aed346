"""A recorder's server that rewrites JSON files beside us, and never loses count of it."""

from __future__ import annotations

import json
import multiprocessing
import time
from pathlib import Path
from typing import Any, Callable

from tests.base import LibraryCase


def keep_counting(paths: list[str], done: Any, counts: Any) -> None:
    """A server that reads, counts up and rewrites JSON files in place, 50 times a second, each in two pieces."""
    while not done.is_set():
        for number, path in enumerate(paths):
            try:
                document = json.loads(Path(path).read_text(encoding="utf-8"))
            except ValueError:
                continue
            counts[number] += 1
            document["count"] = counts[number]
            text = json.dumps(document, ensure_ascii=False)
            with open(path, "w", encoding="utf-8") as file:
                file.write(text[: len(text) // 2])
                file.flush()
                time.sleep(0.001)
                file.write(text[len(text) // 2 :])
            time.sleep(0.02)


class ServerCase(LibraryCase):
    def serve(self, paths: list[Path]) -> tuple[Any, Callable[[], None]]:
        """Start the server; returns its counts by path and what stops it."""
        context = multiprocessing.get_context("fork")
        done, counts = context.Event(), context.Array("i", len(paths))
        server = context.Process(
            target=keep_counting, args=([str(path) for path in paths], done, counts)
        )
        server.start()

        def stop() -> None:
            done.set()
            server.join()

        self.addCleanup(stop)
        return counts, stop
