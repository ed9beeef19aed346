"""Mutated recordings, sidecars and indexes: nothing is lost, and nothing but a clear message comes of it.

Seeded, so that a failure can be played again. FUZZ=2000 plays that many of each kind; the suite plays a small sample.
"""

from __future__ import annotations

import json
import os
import random
import subprocess

from tests.base import RECORDINGS, LibraryCase, index, index_entry, sidecar

COUNT = int(os.environ.get("FUZZ", "40"))
AT_ONCE = 100
SEED = 20_251_027
SOURCES = [
    path.read_bytes()
    for path in sorted(RECORDINGS.glob("*.webm"))
    if 1_000 < path.stat().st_size < 60_000
]


def mutate(content: bytes, chance: random.Random) -> bytes:
    """One to four accidents: bytes flipped, zeroed, cut out, doubled, moved, or the end lost."""
    data = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        # Half of them near the start, where the structure is.
        reach = len(data) if chance.random() < 0.5 else min(len(data), 400)
        begin = chance.randrange(max(1, reach))
        end = min(len(data), begin + int(chance.expovariate(1 / 40)) + 1)
        kind = chance.randrange(6)
        if kind == 0:
            for at in range(begin, end):
                data[at] = chance.randrange(256)
        elif kind == 1:
            data[begin:end] = bytes(end - begin)
        elif kind == 2:
            del data[begin:end]
        elif kind == 3:
            data[begin:begin] = data[begin:end]
        elif kind == 4:
            at = chance.randrange(max(1, len(data)))
            data[begin:begin] = data[at : at + end - begin]
        else:
            del data[end:]
    return bytes(data)


class Fuzz(LibraryCase):
    def test_no_mutated_recording_is_lost(self) -> None:
        chance = random.Random(SEED)
        for first in range(0, COUNT, AT_ONCE):
            for number in range(first, min(first + AT_ONCE, COUNT)):
                self.add_bytes(mutate(chance.choice(SOURCES), chance), f"{number}.webm")
            before = {
                path: content for path, content in self.files().items() if path.endswith(".webm")
            }
            ran = self.run_cli("--json", timeout=600)
            self.assertIn(ran.code, (0, 1), ran.out[-2000:] + ran.err)
            self.assertNotIn(
                "Traceback", ran.err + (self.folder / "logs" / "compression.log").read_text()
            )
            for path, content in before.items():
                kept = (self.library / path).exists()
                if kept:
                    self.assertEqual((self.library / path).read_bytes(), content)
                else:
                    self.assert_copy_holds(path, content)
                self.assertEqual(
                    ran.outcomes[path]["action"] == "compressed", not kept, ran.outcomes[path]
                )
                (self.library / path).unlink(missing_ok=True)
                (self.library / path).with_suffix(".opus").unlink(missing_ok=True)

    def assert_copy_holds(self, path: str, content: bytes) -> None:
        """The copy has everything that opusdec's peer, ffmpeg without any of our options, hears in the mutated source."""
        source = self.folder / "source.webm"
        source.write_bytes(content)
        lengths = []
        for file in (source, (self.library / path).with_suffix(".opus")):
            command = [
                "ffmpeg",
                "-v",
                "quiet",
                "-nostdin",
                "-i",
                str(file),
                "-ac",
                "1",
                "-ar",
                "4000",
                "-f",
                "s16le",
                "-",
            ]
            lengths.append(
                len(subprocess.run(command, capture_output=True, check=False).stdout) / 8000
            )
        self.assertGreaterEqual(
            lengths[1] + 0.15,
            lengths[0],
            f"{path}: the copy is shorter than what its source decodes to",
        )

    def test_no_mutated_sidecar_or_index_costs_a_recording_or_a_traceback(self) -> None:
        chance = random.Random(SEED + 1)
        per_run = 10
        for first in range(0, COUNT, 2 * per_run):
            texts = {}
            for number in range(first, first + 2 * per_run):
                name = f"d{number}/x"
                self.add("ch_short_60ms", f"{name}.webm")
                text = json.dumps(
                    sidecar(f"id-{number}", ["x.webm"], 0.06), ensure_ascii=False, indent=2
                ).encode()
                texts[name] = mutate(text, chance) if number % 10 else text
                self.add_bytes(texts[name], f"{name}.json")
            plain = json.dumps(
                index([index_entry(f"id-{n}", 1486) for n in range(first, first + 2 * per_run)])
            ).encode()
            self.add_bytes(mutate(plain, chance) if chance.random() < 0.5 else plain, "index.json")
            self.configure(min_saving_percent=0)
            ran = self.run_cli("--json", timeout=600)
            self.assertIn(ran.code, (0, 1), ran.out[-2000:] + ran.err)
            self.assertNotIn("Traceback", ran.err)
            for name, text in texts.items():
                original, copy = (
                    (self.library / name).with_suffix(suffix) for suffix in (".webm", ".opus")
                )
                self.assertTrue(original.exists() or copy.exists(), f"{name} is lost")
                if not copy.exists():
                    self.assertEqual((self.library / name).with_suffix(".json").read_bytes(), text)
                self.assertFalse(original.exists() and copy.exists(), f"{name} was left half-way")
            for path in self.library.glob("d*/*"):
                path.unlink()
