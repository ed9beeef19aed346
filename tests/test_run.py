"""How works are handed out and put together; pure."""

from __future__ import annotations

import unittest
from typing import Any

from compression_service import Compress, File, Queue, Recording, Take, Target


def works(count: int, size: int = 48_000, name: str = "x") -> list[Compress]:
    """Of one recording."""
    files = [File(f"{name}{number:04}.webm", size, 1) for number in range(count)]
    takes = [Take(f"day/{file.name[:-5]}", (file,)) for file in files]
    recording = Recording("day", tuple(takes))
    target = Target("opus", 96_000)
    return [
        Compress(take, target, "", file, recording=recording) for take, file in zip(takes, files)
    ]


class TestQueue(unittest.TestCase):
    def drain(self, queue: Queue, free: int = 1 << 40) -> list[Any]:
        batches = []
        while batch := queue.take(free):
            batches.append(batch)
        return batches

    def test_every_worker_gets_about_as_much(self) -> None:
        batches = self.drain(Queue(works(100), 2))
        self.assertEqual([len(batch) for batch in batches], [25, 25, 25, 25])
        self.assertEqual(len(self.drain(Queue(works(2, 16_000_000), 2))), 2)

    def test_every_worker_gets_equally_many_batches(self) -> None:
        for count, workers, sizes in ((6, 2, [3, 3]), (7, 2, [4, 3]), (9, 4, [2, 2, 2, 3])):
            lengths = [len(batch) for batch in self.drain(Queue(works(count), workers))]
            self.assertEqual(sorted(lengths), sorted(sizes))
        uneven = [*works(1, 900_000, "a"), *works(9, 100_000, "b")]
        lengths = [len(batch) for batch in self.drain(Queue(uneven, 2))]
        self.assertEqual(lengths, [1, 9])
        again = [*works(3, 480_100, "a"), *works(3, 470_000, "b")]
        self.assertEqual([len(batch) for batch in self.drain(Queue(again, 2))], [3, 3])

    def test_nothing_is_handed_out_that_the_disk_has_no_room_for(self) -> None:
        one = works(3)
        queue = Queue(one, 1)
        needed = one[0].space_needed
        self.assertEqual(queue.take(needed - 1), [])
        self.assertEqual(queue.take(needed), one[:1])
        self.assertEqual(queue.take(10 * needed), one[1:])
