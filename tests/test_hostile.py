"""Hostile names, contents and sidecars, all in one library, with good recordings in between that are done as ever."""

from __future__ import annotations

import codecs
import json
import os
import re
import resource
import socket
import struct
import sys
from pathlib import Path
from typing import Any, Optional

from tests.base import FFMPEG, LONG_AGO, PROJECT, RECORDINGS, Ran, index, index_entry, sidecar
from tests.faults import FaultCase, control_characters, needs_strace

CHUNK = (RECORDINGS / "chunk_0.webm").read_bytes()
GOOD = "ff_chunk_1"
NAMES = [
    b"-v.webm",
    b"--help.webm",
    b"a:b.webm",
    b"file:x.webm",
    b"http:x.webm",
    b"concat:x.webm",
    b"pipe:0.webm",
    b"quo\"te'`$(touch owned).webm",
    b"new\nline.webm",
    b"\x1b[31mred\x1b]0;title\x07\r\x9b.webm",
    b"right\xe2\x80\xaeto left.webm",
    b"latin\xff\xfe.webm",
    b"img%03d%s%n.webm",
    b"*?[a].webm",
    b"trailing .webm",
    b"back\\slash.webm",
    b"n" * 250 + b".webm",
    b"A.webm",
    b"a.webm",
]
POLICY = {"compression_policy": {"\x1b]0;owned\x07\nFORGED": 1}}


def timestamp_jump() -> bytes:
    """A real recording with one packet more, in a cluster of its own that is said to begin 2^31 ms in."""
    block = CHUNK.index(b"\xa3", CHUNK.index(b"\x1fC\xb6u"))
    size = int.from_bytes(CHUNK[block + 1 : block + 3], "big") & 0x3FFF
    packet = CHUNK[block : block + 3 + size]
    content = b"\xe7\x84" + struct.pack(">I", 2**31) + packet
    cluster = b"\x1fC\xb6u\x01" + len(content).to_bytes(7, "big") + content
    segment = CHUNK.index(b"\x18S\x80g") + 4
    return CHUNK[:segment] + b"\x01" + b"\xff" * 7 + CHUNK[segment + 8 :] + cluster


def contents(decoy: str) -> dict[str, bytes]:
    """What may lie under the name of a recording. The lists and manifests refer to `decoy`, outside the library."""
    noise = b"".join(struct.pack(">Q", n * 0x9E3779B97F4A7C15 % 2**64) for n in range(1, 4000))
    half = len(CHUNK) // 2
    hls = f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{decoy}\n#EXTINF:3,\nfile://{decoy}\n#EXT-X-ENDLIST\n"
    dash = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT3S"><Period>'
        f'<AdaptationSet mimeType="audio/webm"><Representation id="1" bandwidth="1"><BaseURL>{decoy}</BaseURL></Representation>'
        "</AdaptationSet></Period></MPD>"
    )
    sdp = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 96\na=rtpmap:96 opus/48000/2\n"
    return {
        "hls": hls.encode(),
        "ffconcat": f"ffconcat version 1.0\nfile '{decoy}'\nfile 'good.webm'\n".encode(),
        "dash": dash.encode(),
        "sdp": sdp.encode(),
        "html": b"<!DOCTYPE html><html><body>502 Bad Gateway</body></html>",
        "script": f"#!/bin/sh\ncat {decoy}\n".encode(),
        "text": b"a",
        "noise": noise,
        "id3-noise": b"ID3" + noise,
        "mp4-noise": b"\0\0\0\x18ftypisom" + noise,
        "wav-noise": b"RIFF\xff\xff\xff\xffWAVE" + noise,
        "ogg-noise": b"OggS" + noise,
        "flac-noise": b"fLaC" + noise,
        "adts-noise": b"\xff\xf1" + noise,
        "ebml-noise": b"\x1aE\xdf\xa3" + noise,
        "empty": b"",
        "header": CHUNK[: CHUNK.index(b"\x1fC\xb6u")],
        "zero-tail": CHUNK[:half] + bytes(len(CHUNK) - half),
        "zeros": bytes(100_000),
        "noise-in-the-middle": CHUNK[:half] + noise[:4000] + CHUNK[half + 4000 :],
        "truncated": CHUNK[:half],
        "appended": CHUNK + CHUNK,
        "timestamp-jump": timestamp_jump(),
        "endless-scale": CHUNK.replace(
            b"*\xd7\xb1\x83\x0fB@D\x89\x84", b"*\xd7\xb1\x83\xff\xff\xffD\x89\x84"
        ),
    }


def sidecars(decoy: str, good: str) -> dict[str, bytes]:
    """Odd sidecars of `x.webm`, by a name that says what is odd. Those whose name begins with `fine` can be worked with."""
    whole = sidecar("2025-10-27T14:30:45Z", ["x.webm"])

    def files(*values: Any) -> bytes:
        chunks = [{"file": value, "duration": 3} for value in values]
        return json.dumps(
            {**whole, "id": f"id of {values!r}", "chunks": [*whole["chunks"], *chunks]}
        ).encode()

    def extra(**values: Any) -> bytes:
        return json.dumps({**whole, "id": f"id of {sorted(values)!r}", **values}).encode()

    def raw(text: str) -> bytes:
        return json.dumps(whole).encode()[:-1] + b', "odd": ' + text.encode() + b"}"

    relative = os.path.join("..", "..", "outside", "secret.webm")
    return {
        "fine-leads-out": files(
            relative, decoy, f"../{good}", "/etc/passwd", "..", ".", "", "a\0b"
        ),
        "fine-odd-types": files(7, 1.5, None, True, ["x.webm"], {"file": "x.webm"}),
        "fine-odd-chunks": extra(chunks=[*whole["chunks"], 1, "x.webm", None, [], {}]),
        "fine-chunks-null": extra(chunks=None),
        "fine-chunks-object": extra(chunks={"file": decoy}),
        "fine-odd-values": extra(
            id=["x"], language={}, duration="long", original_size="big", date=5
        ),
        "fine-long-duration": extra(chunks=[{"file": "x.webm", "duration": 1e308}]),
        "fine-nested": raw("[" * 60 + "]" * 60),
        "control-policy": extra(**POLICY),
        "policy-list": extra(compression_policy=["keep"]),
        "not-an-object": b'["x.webm"]',
        "a-number": b"12",
        "nested-100k": raw("[" * 100_000 + "]" * 100_000),
        "nested-unclosed": b'{"a":' * 100_000,
        "twice": raw('1, "id": "second"'),
        "nan": raw("NaN"),
        "infinity": raw("-Infinity"),
        "1e400": raw("1e400"),
        "lone-surrogate": raw('"\\ud800"'),
        "many-digits": raw("0.1234567890123456789012345678901234567890"),
        "long-integer": raw("9" * 5000),
        "latin-1": json.dumps(whole, ensure_ascii=False).encode("latin-1", "replace") + b"\xff",
        "bom": b"\xef\xbb\xbf" + json.dumps(whole).encode(),
        "binary": bytes(range(256)),
        "two-documents": json.dumps(whole).encode() * 2,
    }


EDITABLE = {
    "a-number",
    "bom",
    "lone-surrogate",
    "long-integer",
    "many-digits",
    "nan",
    "infinity",
    "1e400",
    "not-an-object",
}


def cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class Scene(FaultCase):
    """The library, made once and run over once; every test looks at what came of it."""

    ran: Ran
    seconds: float  # of CPU, by the program and its tools
    opened: list[tuple[str, str, bool]]  # call, path, whether for writing
    before: dict[str, bytes]
    good: list[str]
    outside_before: list[tuple[str, bytes]]
    stage: FaultCase

    @classmethod
    def setUpClass(cls) -> None:
        if cls is Scene:
            return
        cls.stage = stage = FaultCase()
        stage.setUp()
        cls.addClassCleanup(stage.doCleanups)
        outside = stage.folder / "outside"
        outside.mkdir()
        (outside / "secret.webm").write_bytes(CHUNK)
        (outside / "secret.json").write_text(json.dumps(sidecar("secret", ["x.webm"])))
        cls.good = []
        stage.drive(
            "program.SAME_FAILURES = 1000"
        )  # what many failures in a row do is asked in tests of their own
        cls.fill(stage, outside)
        cls.before = stage.files()
        cls.outside_before = cls.tree(outside)
        began = cpu_of_children()
        cls.look(stage)
        cls.seconds = cpu_of_children() - began

    @classmethod
    def fill(cls, stage: FaultCase, outside: Path) -> None:
        raise NotImplementedError

    @classmethod
    def look(cls, stage: FaultCase) -> None:
        cls.ran = stage.run_cli("--json", "-v")

    @classmethod
    def add_good(cls, stage: FaultCase, path: str) -> None:
        stage.add(GOOD, path)
        cls.good.append(path)

    @staticmethod
    def tree(folder: Path) -> list[tuple[str, bytes]]:
        return sorted(
            (str(path), path.read_bytes() if path.is_file() else b"") for path in folder.rglob("*")
        )

    def setUp(self) -> None:
        self.folder, self.library, self.config = (
            self.stage.folder,
            self.stage.library,
            self.stage.config,
        )
        self.driver = self.stage.driver

    def assert_unharmed(self) -> None:
        """What holds whatever is in the library."""
        self.assertNotIn("Traceback", self.ran.err + self.log())
        self.assertEqual(self.ran.lines[-1]["type"], "summary", "it did not come to its end")
        for path in self.good:
            self.assert_compressed(path)
        self.assertEqual(self.tree(self.folder / "outside"), self.outside_before)
        self.assert_no_leftovers()
        for path, content in self.before.items():
            if path.endswith((".webm", ".WEBM")):
                here = self.library / path
                whole = (here.exists() and here.read_bytes() == content) or here.with_suffix(
                    ".opus"
                ).exists()
                self.assertTrue(whole, f"{path!r} is lost")

    def reasons(self, folder: str) -> dict[str, tuple[str, str]]:
        """Action and reason of each recording in a folder, by its path below it."""
        found = {
            path[len(folder) + 1 :]: each
            for path, each in self.ran.outcomes.items()
            if path.startswith(folder + "/")
        }
        return {path: (each["action"], each["reason"]) for path, each in found.items()}

    def assert_clean_output(self) -> None:
        for text in (self.ran.out, self.ran.err, self.log()):
            self.assertEqual(control_characters(text), [])
        for line in self.log().splitlines():
            self.assertRegex(line, r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - [A-Z]+ - ")


class HostileNamesAndContents(Scene):
    @classmethod
    def fill(cls, stage: FaultCase, outside: Path) -> None:
        for number, name in enumerate(NAMES):
            stage.add("chunk_0", "names/" + os.fsdecode(name))
            if number % 6 == 0:
                cls.add_good(stage, f"names/good-{number}.webm")
        for number, (what, content) in enumerate(contents(str(outside / "secret.webm")).items()):
            stage.add_bytes(content, f"contents/{what}.webm")
            if number % 6 == 0:
                cls.add_good(stage, f"contents/good-{number}.webm")
        cls.add_good(stage, "contents/good.webm")
        kinds = stage.library / "kinds"
        stage.add("chunk_0", "kinds/folder.webm/inner.webm")
        (kinds / "link.webm").symlink_to(outside / "secret.webm")
        (kinds / "linked-folder").symlink_to(outside)
        (kinds / "dangling.webm").symlink_to("nowhere")
        (kinds / "loop.webm").symlink_to("loop.webm")
        os.mkfifo(kinds / "fifo.webm")
        here = os.getcwd()
        os.chdir(kinds)  # a socket's path has 108 bytes at most
        try:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind("socket.webm")
        finally:
            os.chdir(here)
        for what in ("x.webm", "x.WEBM"):
            stage.add("chunk_0", f"twins/{what}")
        for what in ("foreign", "empty", "taken", "linked"):
            stage.add("chunk_0", f"copies/{what}.webm")
        stage.add_bytes((RECORDINGS / "ff_chunk_1.webm").read_bytes(), "copies/foreign.opus")
        stage.add_bytes(b"", "copies/empty.opus")
        (stage.library / "copies" / "taken.opus").mkdir()
        (stage.library / "copies" / "linked.opus").symlink_to(outside / "secret.webm")
        cls.add_good(stage, "last/good.webm")

    @classmethod
    def look(cls, stage: FaultCase) -> None:
        for what, start in (
            ("sparse", b""),
            ("sparse-recording", CHUNK),
        ):  # only now, as nobody should read them
            os.truncate(stage.add_bytes(start, f"contents/{what}.webm"), 5 << 30)
            os.utime(stage.library / f"contents/{what}.webm", (1, 1))
        rehearsal = stage.run_cli("--dry-run")
        cls.rehearsal = rehearsal.out + rehearsal.err
        cls.opened = []
        trace = stage.folder / "trace"
        calls = "trace=/^(open|creat|rename|unlink|link|symlink|truncate|mknod|mkdir|rmdir|connect|execve)"
        options = [
            "--seccomp-bpf",
            "-y",
            "-s",
            "8192",
            "-e",
            calls,
            "-e",
            "signal=none",
            "-o",
            str(trace),
        ]
        cls.ran = Ran(*stage.strace(options, "--json", "-v"))
        for line in trace.read_text(errors="surrogateescape").splitlines():
            cls.opened += cls.read_call(line)

    rehearsal = ""

    @staticmethod
    def read_call(line: str) -> list[tuple[str, str, bool]]:
        """The paths in one line of strace, each with its call and whether it may change something there."""
        match = re.match(r"(?:\d+ +)?(\w+)\((.*)", line)
        if not match or " ENOENT " in line:
            return []
        call, rest = match.groups()
        writes = not call.startswith(("open", "execve")) or bool(
            re.search(r"O_(WRONLY|RDWR|CREAT|TRUNC)", rest)
        )
        found = []
        quoted = r'(?:\w+<((?:[^\\>]|\\.)*)>, )?"((?:[^"\\]|\\.)*)"'
        for base, name in re.findall(quoted, rest)[: 1 if call == "execve" else 2]:
            parts = [
                codecs.escape_decode(part.encode("utf-8", "surrogateescape"))[0]
                for part in (base, name)
            ]
            path = os.path.join(*(os.fsdecode(part) for part in parts))
            found.append((call, os.path.normpath(os.path.join("/", path)), writes))
        return found

    def test_good_recordings_in_between_are_done_and_nothing_is_lost(self) -> None:
        self.assert_unharmed()

    def test_it_takes_no_long(self) -> None:
        self.assertLess(self.seconds, 30)

    def test_whatever_its_name_a_recording_is_worked_on_like_any_other(self) -> None:
        for name in NAMES:
            with self.subTest(name=name):
                path = "names/" + os.fsdecode(name)
                self.assertEqual(
                    self.ran.outcomes[path]["action"], "compressed", self.ran.outcomes[path]
                )
                self.assert_compressed(path)
        self.assertEqual(
            sorted(path.suffix for path in (self.library / "names").iterdir()),
            [".opus"] * (len(NAMES) + 4),
        )

    def test_every_hostile_content_is_kept_and_the_reason_told(self) -> None:
        for name in [*contents(""), "sparse", "sparse-recording"]:
            with self.subTest(name):
                action, reason = self.reasons("contents")[f"{name}.webm"]
                self.assertEqual(action, "kept", reason)
                self.assertTrue(reason)
                self.assertFalse((self.library / "contents" / f"{name}.opus").exists())

    def test_what_is_no_regular_file_is_passed_over(self) -> None:
        self.assertEqual(list(self.reasons("kinds")), ["folder.webm/inner.webm"])
        self.assert_compressed("kinds/folder.webm/inner.webm")
        self.assertEqual(len(list((self.library / "kinds").iterdir())), 7)

    def test_two_names_that_would_become_one_are_both_kept_and_reported(self) -> None:
        for name in ("x.webm", "x.WEBM"):
            self.assert_kept(self.ran, f"twins/{name}", "name already taken", action="failed")
        self.assertEqual(len(list((self.library / "twins").iterdir())), 2)

    def test_a_foreign_file_under_the_copys_name_is_left_as_it_is(self) -> None:
        for name in ("foreign", "empty", "taken", "linked"):
            with self.subTest(name):
                self.assertEqual(self.ran.outcomes[f"copies/{name}.webm"]["action"], "failed")
                self.assertTrue((self.library / "copies" / f"{name}.webm").exists())
        self.assertIn("name already taken", self.ran.outcomes["copies/foreign.webm"]["reason"])
        self.assertEqual(
            (self.library / "copies/foreign.opus").read_bytes(),
            (RECORDINGS / "ff_chunk_1.webm").read_bytes(),
        )
        self.assertEqual((self.library / "copies/empty.opus").read_bytes(), b"")

    def test_nothing_printed_or_logged_does_more_than_print(self) -> None:
        self.assert_clean_output()
        self.assertEqual(control_characters(self.rehearsal), [])
        self.assertNotIn("Traceback", self.rehearsal)

    @needs_strace
    def test_nothing_outside_is_opened_for_reading(self) -> None:
        here = [str(self.library), str(self.folder / "logs"), str(self.config), str(self.driver)]
        system = [
            "/usr",
            "/lib",
            "/lib64",
            "/bin",
            "/sbin",
            "/etc",
            "/proc",
            "/sys",
            "/dev",
            "/opt",
            "/nix",
            os.path.dirname(FFMPEG),
        ]
        python = [
            sys.prefix,
            sys.base_prefix,
            sys.exec_prefix,
            os.path.realpath(sys.base_prefix),
            str(PROJECT / "compression_service.py"),
        ]
        allowed = tuple(here + system + python + [str(PROJECT / "__pycache__")])
        modules = re.compile(r"/\.local/lib/python|site-packages")
        opened = {path for call, path, _ in self.opened if call != "execve"}
        self.assertIn(str(self.library / "contents/hls.webm"), opened, "the trace is blind")
        stray = {path for path in opened if not self.is_below(path, allowed)}
        self.assertEqual({path for path in stray if path.startswith(str(self.folder) + "/")}, set())
        self.assertEqual(
            {
                path
                for path in stray
                if path not in (str(PROJECT), str(self.folder)) and not modules.search(path)
            },
            set(),
        )

    @needs_strace
    def test_nothing_outside_is_written_to(self) -> None:
        allowed = (str(self.library), str(self.folder / "logs"), "/dev/null", "/dev/tty")
        written = [
            (call, path)
            for call, path, writes in self.opened
            if writes and not path.endswith("/autogroup")
        ]  # a priority
        self.assertEqual(
            [(call, path) for call, path in written if not self.is_below(path, allowed)], []
        )

    @needs_strace
    def test_no_program_but_ours_is_started(self) -> None:
        started = {os.path.basename(path) for call, path, _ in self.opened if call == "execve"}
        self.assertLessEqual(
            started,
            {
                os.path.basename(sys.executable),
                "sh",
                "ionice",
                "nice",
                "true",
                "ffmpeg",
                "python3",
                "python",
            },
        )

    @staticmethod
    def is_below(path: str, folders: tuple[str, ...]) -> bool:
        return (
            any(path == folder or path.startswith(folder + "/") for folder in folders)
            or path == "/"
        )


class HostileSidecars(Scene):
    @classmethod
    def fill(cls, stage: FaultCase, outside: Path) -> None:
        cls.add_good(stage, "good/x.webm")
        odd = sidecars(str(outside / "secret.webm"), "good/x.webm")
        whole = json.dumps(sidecar("2025-10-28T14:30:45Z", ["x.webm"]), ensure_ascii=False).encode()
        odd.update({f"prefix-{length}": whole[:length] for length in range(0, len(whole), 20)})
        for number, (name, text) in enumerate(odd.items()):
            stage.add("chunk_0", f"odd/{name}/x.webm")
            odd_file = stage.library / f"odd/{name}/x.json"
            odd_file.write_bytes(text)
            os.utime(odd_file, (LONG_AGO, LONG_AGO))  # nobody is in the middle of writing it
            if number % 3 == 0:
                cls.add_good(stage, f"odd/{name}-good/x.webm")
        stage.add("chunk_0", "kinds/link/x.webm")
        (stage.library / "kinds/link/x.json").symlink_to(outside / "secret.json")
        stage.add("chunk_0", "kinds/fifo/x.webm")
        os.mkfifo(stage.library / "kinds/fifo/x.json")
        cls.add_good(stage, "kinds/folder/x.webm")
        (stage.library / "kinds/folder/x.json").mkdir()
        stage.add("chunk_0", "theft/mine.webm")
        stage.add("chunk_1", "theft/other.webm")
        stage.add_json(
            "theft/mine.json",
            {**sidecar("mine", ["mine.webm", "other.webm"]), "compression_policy": {"keep": True}},
        )
        stage.add_json("theft/other.json", sidecar("other", ["other.webm"]))
        cls.add_good(stage, "last/x.webm")

    def test_good_recordings_in_between_are_done_and_nothing_is_lost(self) -> None:
        self.assert_unharmed()

    def test_it_takes_no_long(self) -> None:
        self.assertLess(self.seconds, 30)

    def test_odd_values_that_can_be_kept_are_kept_and_the_recording_is_done(self) -> None:
        for name in (name for name in sidecars("", "") if name.startswith("fine")):
            with self.subTest(name):
                self.assert_compressed(f"odd/{name}/x.webm")
                before, after = (
                    json.loads(self.before[f"odd/{name}/x.json"]),
                    self.read_json(f"odd/{name}/x.json"),
                )
                self.assertIs(after["compressed"], True)
                changed = {key for key in after if key not in before or after[key] != before[key]}
                ours = {
                    "compressed",
                    "original_size",
                    "compressed_size",
                    "compression_ratio",
                    "compression_date",
                    "chunks",
                }
                self.assertLessEqual(changed, ours)
                named = json.dumps(before["chunks"]).replace('"x.webm"', '"x.opus"')
                self.assertEqual(after["chunks"], json.loads(named))

    def test_what_can_be_edited_as_text_keeps_every_other_byte(self) -> None:
        for name in EDITABLE:
            with self.subTest(name):
                self.assert_compressed(f"odd/{name}/x.webm")
                before = self.before[f"odd/{name}/x.json"].replace(b'"x.webm"', b'"x.opus"')
                after = (self.library / f"odd/{name}/x.json").read_bytes()
                for member in (b"compressed", b"original_size", b"compressed_size"):
                    value = rb'"%s": [^,}]+' % member
                    before, after = (re.sub(value, b"", text) for text in (before, after))
                ours = rb'(, "compression_ratio": [^,}]+)|("compression_date": [^,}]+)'
                before, after = (re.sub(ours, b"", text) for text in (before, after))
                self.assertEqual(before, after)

    def test_a_sidecar_that_cannot_be_edited_keeps_its_recording(self) -> None:
        odd = {path.name for path in (self.library / "odd").iterdir()} - EDITABLE
        for name in odd:
            if name.startswith("fine") or name.endswith("-good"):
                continue
            with self.subTest(name):
                words = ("sidecar",) if name != "prefix-0" else ("parsed",)
                self.assert_kept(self.ran, f"odd/{name}/x.webm", *words)
                text = (self.library / f"odd/{name}/x.json").read_bytes()
                self.assertEqual(text, self.before[f"odd/{name}/x.json"])

    def test_a_sidecar_that_is_no_regular_file_is_not_followed(self) -> None:
        for name in ("link", "fifo"):
            self.assert_kept(self.ran, f"kinds/{name}/x.webm", "sidecar cannot be edited")

    def test_a_policy_over_a_shared_recording_is_the_careful_one(self) -> None:
        for name in ("mine", "other"):
            self.assert_kept(self.ran, f"theft/{name}.webm", "says keep")

    def test_nothing_printed_or_logged_does_more_than_print(self) -> None:
        self.assert_clean_output()


class HostileDocuments(FaultCase):
    """What is better tried in a library of its own."""

    def assert_done(self, *paths: str, code: Optional[int] = 0) -> Ran:
        ran = self.run_cli("--json")
        self.assertNotIn("Traceback", ran.err + self.log())
        for path in paths:
            self.assert_compressed(path)
        if code is not None:
            self.assertEqual(ran.code, code, ran.err)
        self.assert_no_leftovers()
        return ran

    def test_many_broken_sidecars_in_a_row_do_not_keep_the_rest_waiting(self) -> None:
        for number in range(6):
            self.add("chunk_0", f"{number}/x.webm", age=number + 1)
            (self.library / f"{number}/x.json").write_text("{")
            os.utime(self.library / f"{number}/x.json", (LONG_AGO, LONG_AGO))
        self.add(GOOD, "9/x.webm")
        ran = self.run_cli("--json")
        self.assertEqual((ran.code, ran.summary["kept"]), (0, 6))
        self.assert_compressed("9/x.webm")
        ran = self.run_cli("--json")
        self.assertEqual((ran.code, ran.outcomes), (0, {}), "not remembered")

    def test_many_taken_names_in_a_row_do_not_keep_the_rest_waiting(self) -> None:
        for number in range(6):
            self.add("chunk_0", f"{number}/x.webm", age=number + 1)
            self.add_bytes(b"mine", f"{number}/x.opus")
        self.add(GOOD, "9/x.webm")
        for _ in range(2):
            self.assertEqual(self.run_cli("--json").code, 1)
        self.assert_compressed("9/x.webm")

    def test_an_index_of_odd_entries_is_left_alone_and_told(self) -> None:
        self.add_session(chunks=1)
        document = self.read_json("index.json")
        entries: list[Any] = [{"id": ["x"]}, {"id": "x", "size": None}, {"id": ""}, 5, None, []]
        for number, odd in enumerate(entries):
            path = self.add_json(
                "index.json", {**document, "recordings": [odd, *document["recordings"]]}
            )
            os.utime(path, (LONG_AGO, LONG_AGO))  # or a run waits for whoever writes it
            before = (self.library / "index.json").read_bytes()
            self.add(GOOD, f"{number}/later.webm")
            ran = self.run_cli()
            self.assertEqual(ran.code, 0, ran.err)
            self.assertEqual(ran.out.count("Left alone"), 1, odd)
            self.assertEqual((self.library / "index.json").read_bytes(), before, odd)
            self.assert_compressed(f"{number}/later.webm")

    def test_an_index_of_huge_sizes_stays_json(self) -> None:
        self.add_session(chunks=1)
        document = index(
            [
                {**index_entry("2025-10-27T14-30-45", 1)},
                {"id": "a", "size": 1e308},
                {"id": "b", "size": 1e308},
            ]
        )
        self.add_json("index.json", document)
        self.assert_done(code=None)

        def refuse(name: str) -> None:
            self.fail(f"{name} is not JSON")

        json.loads((self.library / "index.json").read_text(), parse_constant=refuse)
        self.assert_sidecars_true()

    def odd_sidecar(self, extra: str, path: str = "odd/x.webm") -> None:
        """A good recording, and one whose sidecar holds `extra`, a JSON text of further keys."""
        self.add("chunk_0", path)
        text = json.dumps(
            sidecar(f"2025-10-27T14:30:45 {path}", [os.path.basename(path)]), indent=2
        )
        (self.library / path).with_suffix(".json").write_text(f"{text[:-2]},\n  {extra}\n}}")

    def test_a_length_of_400_digits_never_ends_the_run(self) -> None:
        self.odd_sidecar(
            f'"chunks": [{{"file": "x.webm", "duration": 1{"0" * 400}}}]'.replace(
                '"chunks"', '"chunks "'
            )
        )
        self.add("chunk_0", "odd/y.webm")
        self.add_json(
            "odd/y.json",
            {"chunks": [{"file": "y.webm", "duration": 10**400}], "original_size": 10**400},
        )
        self.add(GOOD, "z.webm")
        self.assert_done("z.webm", "odd/x.webm")

    def test_a_policy_of_400_digits_is_refused_and_never_ends_the_run(self) -> None:
        for key in ("after_days", "bitrate"):
            self.odd_sidecar(f'"compression_policy": {{"{key}": 1{"0" * 400}}}', f"{key}/x.webm")
        self.add(GOOD, "z.webm")
        self.assert_done("z.webm")
        self.assertTrue((self.library / "bitrate/x.webm").exists())

    def test_a_deeply_nested_sidecar_never_ends_the_run(self) -> None:
        depths = (200, 300, 400, 500, 700, 900)
        for depth in depths:
            self.odd_sidecar('"odd": ' + "[" * depth + "0" + "]" * depth, f"{depth}/x.webm")
        self.add(GOOD, "z.webm")
        ran = self.assert_done("z.webm", code=None)
        self.assertEqual(
            sum(ran.summary[each] for each in ("compressed", "kept", "failed")), len(depths) + 1
        )
        self.assert_sidecars_true()

    def test_a_symlink_called_like_our_own_folder_is_not_followed(self) -> None:
        outside = self.folder / "outside"
        outside.mkdir()
        for name in (".compression-0123abcd-0.part", "lock", "history.jsonl", "paused"):
            (outside / name).write_text("precious")
        before = Scene.tree(outside)
        (self.library / ".compression").symlink_to(outside)
        self.add(GOOD, "x.webm")
        ran = self.run_cli("--json")
        self.assertEqual((ran.code, Scene.tree(outside)), (2, before))
        self.assertIn("is a link", ran.err)
        self.assertTrue((self.library / "x.webm").exists())

    def test_a_sidecar_with_the_longest_name_loses_nothing(self) -> None:
        stem = "n" * 250
        self.add("chunk_0", f"long/{stem}.webm")
        self.add_json(f"long/{stem}.json", sidecar("2025-10-27T14:30:45Z", [f"{stem}.webm"]))
        self.add(GOOD, "x.webm")
        self.assert_done("x.webm", code=None)
        self.assert_audio_complete(f"long/{stem}.webm")
        self.assert_sidecars_true()

    def test_a_sparse_file_larger_than_the_disk_does_not_keep_the_rest_waiting(self) -> None:
        sparse = self.add_bytes(CHUNK, "a.webm")
        os.truncate(sparse, 8 << 40)
        os.utime(sparse, (1, 1))
        self.add(GOOD, "x.webm")
        ran = self.assert_done("x.webm", code=None)
        self.assertNotEqual(ran.code, 5)
