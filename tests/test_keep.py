"""`keep PATH... [--off]`: the owner's word that runs leave a recording as it is. Nothing else in a sidecar changes."""

from __future__ import annotations

import json
import os
import time
import unittest
from typing import Any
from unittest import mock

import compression_service as service
from tests.base import LibraryCase, Ran, sidecar

ODD = (
    b'\xef\xbb\xbf{\r\n\t"id" : "A",\r\n\t"chunks":[ {"file": "a.webm"} , {"file":"b.webm"}],\r\n'
    b'\t"n": 1.50e3, "full_transcription": "Gr\xc3\xbc\xc3\x9fe \\u4e16"\r\n}\r\n'
)


class KeepCase(LibraryCase):
    def setUp(self) -> None:
        super().setUp()
        # No run looks into them here.
        for name in ("a", "b", "other"):
            self.add_bytes(b"sound", f"d/{name}.webm", age=time.time())
        self.sidecar = self.library / "d/a.json"
        self.sidecar.write_bytes(ODD)

    def keep(self, *words: Any, code: int = 0) -> Ran:
        ran = self.run_here("keep", *map(str, words))
        self.assertEqual(ran.code, code, ran)
        return ran

    def policy(self, path: str) -> Any:
        text = (self.library / path).read_text(encoding="utf-8-sig")
        return json.loads(text).get("compression_policy", "none")


class Text(KeepCase):
    def test_every_other_byte_stays_and_off_takes_it_out_again(self) -> None:
        for style in (ODD, ODD.replace(b"\r\n", b""), b'{"chunks":["a.webm"]}', b"{}"):
            self.sidecar.write_bytes(style)
            self.keep(self.library / "d/a.webm")
            kept = self.sidecar.read_bytes()
            word = b'"compression_policy"'
            at = kept.index(word)
            before, after = kept[:at].rstrip(b" \t\r\n,"), kept[at:].partition(b"}")[2]
            self.assertTrue(style.startswith(before), kept)
            self.assertTrue(style.endswith(after), kept)
            self.assertEqual(self.policy("d/a.json"), {"keep": True})
            self.keep("--off", self.library / "d/a.webm")
            self.assertEqual(self.sidecar.read_bytes(), style)

    def test_other_wishes_keep_their_bytes(self) -> None:
        for policy, kept in (
            ('{ "bitrate" :"128k"}', '{ "bitrate" :"128k", "keep" :true}'),
            ('{"after_days": 1e1 }', '{"after_days": 1e1, "keep": true }'),
        ):
            text = '{"id": "A", "chunks": ["a.webm"], "compression_policy": %s }'
            self.sidecar.write_text(text % policy)
            self.keep(self.sidecar)
            self.assertEqual(json.loads(self.sidecar.read_text()), json.loads(text % kept))
            self.keep("--off", self.sidecar)
            self.assertEqual(self.sidecar.read_text(), text % policy)

    def test_an_empty_policy_goes_with_it(self) -> None:
        for policy in ({"keep": True}, {"keep": False}, {}, None):
            document = {"id": "A", "chunks": ["a.webm"], "compression_policy": policy}
            self.sidecar.write_text(json.dumps(document))
            self.keep("--off", self.sidecar)
            self.assertEqual(self.policy("d/a.json"), "none")

    def test_what_is_true_already_is_not_written(self) -> None:
        for words, policy in ((("--off",), ""), ((), ', "compression_policy": {"keep":true}')):
            self.sidecar.write_text('{"chunks": ["a.webm"]' + policy + "}")
            before = self.sidecar.stat()
            self.keep(*words, self.sidecar)
            self.assertEqual(self.sidecar.stat(), before)

    def test_a_policy_that_is_true_in_another_way_becomes_a_boolean(self) -> None:
        for value in (False, 1, "yes", None):
            document = {"chunks": ["a.webm"], "compression_policy": {"keep": value}}
            self.sidecar.write_text(json.dumps(document))
            self.keep(self.sidecar)
            self.assertIs(self.policy("d/a.json")["keep"], True)

    def test_the_sidecar_as_it_was_is_kept_beside_it(self) -> None:
        self.keep(self.sidecar)
        self.assertEqual(self.sidecar.with_name("a.json.bak").read_bytes(), ODD)

    def test_another_programs_write_in_between_is_not_lost(self) -> None:
        """A server changes the sidecar each time that it has been read."""
        numbers, real = [2, 1, 0], service.edit_policy

        def edit(data: bytes, keep: bool) -> Any:
            edited = real(data, keep)
            if numbers:
                document = json.loads(self.sidecar.read_text(encoding="utf-8-sig"))
                self.sidecar.write_text(json.dumps({**document, "server": numbers.pop()}))
            return edited

        with mock.patch.object(service, "edit_policy", edit):
            self.keep(self.sidecar)
        document = json.loads(self.sidecar.read_text())
        self.assertEqual((document["server"], document["compression_policy"]["keep"]), (2, True))


class Which(KeepCase):
    def test_every_sidecar_that_owns_the_recording_says_it_and_no_other(self) -> None:
        for name in ("b", "more"):
            self.add_json(f"d/{name}.json", {"id": "A", "chunks": ["b.webm"]})
        mention = self.add_json("d/list.json", {"items": ["a.webm", "other.webm"]})
        self.add_json("d/other.json", {"id": "B"})
        before = mention.read_bytes()
        self.keep(self.library / "d/b.webm")
        for name in ("a", "b", "more"):
            self.assertEqual(self.policy(f"d/{name}.json"), {"keep": True}, name)
        self.assertEqual(self.policy("d/other.json"), "none")
        self.assertEqual(mention.read_bytes(), before)
        self.keep("--off", self.library / "d")
        for name in ("a", "b", "more", "other"):
            self.assertEqual(self.policy(f"d/{name}.json"), "none", name)

    def test_a_recording_without_a_sidecar_is_said_so_and_the_others_are_kept(self) -> None:
        ran = self.keep(self.library / "d", code=1)
        self.assertIn("d/other: it has no sidecar", ran.err)
        self.assertEqual(self.policy("d/a.json"), {"keep": True})

    def test_a_path_that_is_no_recording_is_an_error(self) -> None:
        for path in ("d/none.webm", "/etc/passwd"):
            self.assertIn("no recording of", self.keep(path, code=1).err)
        self.assertEqual(self.keep(code=2).out, "")

    def test_a_sidecar_that_cannot_be_edited_is_left_and_named(self) -> None:
        for content in (
            b'{"chunks": ["a.webm"',
            b'["a.webm"]',
            b"null",
            b'{"chunks": ["a.webm"], "compression_policy": "keep"}',
            b'{"chunks": ["a.webm"], "compression_policy": [{"keep": 1}]}',
            b'{"chunks": ["a.webm"], "compression_policy": {"keep": 1, "keep": 2}}',
            '{"chunks": ["a.webm"]}'.encode("utf-16"),
        ):
            self.sidecar.write_bytes(content)
            os.utime(self.sidecar, (1, 1))
            for words in ((), ("--off",), ("-n",)):
                ran = self.keep(*words, self.library / "d/a.webm", code=1)
                self.assertIn("d/a", ran.err)
                self.assertEqual(self.sidecar.read_bytes(), content)

    def test_a_dry_run_changes_nothing_at_all(self) -> None:
        before = {path: path.stat().st_ctime_ns for path in self.folder.rglob("*")}
        ran = self.keep("-n", self.library / "d/a.webm")
        self.assertEqual(ran.out, "In a dry run only: runs leave alone d/a, by d/a.json.\n")
        self.keep("-n", self.library / "d/other.webm", code=1)
        after = {path: path.stat().st_ctime_ns for path in self.folder.rglob("*")}
        self.assertEqual(after, before)

    def test_it_waits_for_no_other_run_and_is_logged(self) -> None:
        with service.Library(str(self.library)).lock():
            self.assertEqual(self.run_here("keep", str(self.sidecar)).code, 3)
        self.assertEqual(self.sidecar.read_bytes(), ODD)
        self.keep(self.sidecar)
        self.assertIn("leave alone d/a", (self.folder / "logs/compression.log").read_text())
        self.assert_no_leftovers()


class NoMove(LibraryCase):
    """A kept recording stays as it is, whatever settings ask; and moves again once it may."""

    def actions(self, *words: str) -> list[str]:
        ran = self.run_cli("--json", *words)
        self.assertEqual(ran.code, 0, ran)
        return [outcome["action"] for outcome in ran.outcomes.values()]

    def test_an_original_and_then_its_copy(self) -> None:
        original, copy = self.add("chunk_0", "d/a.webm"), self.library / "d/a.opus"
        path = self.add_json("d/a.json", sidecar("A", ["a.webm"]))
        self.put_run_on_record()
        self.assertEqual(self.run_cli("keep", str(original)).code, 0)
        self.assertEqual(self.actions(), ["kept"])
        self.assertEqual(self.actions(), [])
        self.assertEqual(self.run_cli("keep", "--off", str(original)).code, 0)
        self.assertEqual(self.actions("--keep-originals"), ["compressed"])
        self.assertEqual(self.run_cli("keep", str(copy)).code, 0)
        before = self.files()
        cold = self.folder / "cold/archive-of-recordings"
        cold.mkdir(parents=True)
        smaller = {"after_days": 20, "bitrate": "24k"}
        for settings in (
            {"keep_originals_days": 0},
            {"keep_originals_days": 0, "tiers": [smaller]},
            {"tiers": [{"after_days": 20, "archive": str(cold.parent)}]},
        ):
            self.configure(**settings)
            self.assertEqual(set(self.actions()) - {"kept"}, set(), settings)
            self.assertEqual(self.files(), before)
        original.unlink()
        del before["d/a.webm"]
        for tier in (smaller, {"after_days": 20, "archive": str(cold.parent)}):
            self.configure(tiers=[tier])
            self.assertEqual(set(self.actions()) - {"kept"}, set(), tier)
            for name in ("d/a.opus", "d/a.json.bak"):
                self.assertEqual(self.files()[name], before[name])
        self.assertEqual(list(cold.rglob("*.opus")), [])
        self.assertEqual(self.run_cli("keep", "--off", str(path)).code, 0)
        self.configure(tiers=[smaller])
        self.assertEqual(self.actions(), ["compressed"])


if __name__ == "__main__":
    unittest.main()
