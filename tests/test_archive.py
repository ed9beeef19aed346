"""Cold storage: copied there, compared, recorded, and only then removed here; and brought back as it was."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import unittest
from pathlib import Path

from tests.base import DAY, PROJECT, LibraryCase, Ran, decoded_seconds
from tests.faults import PROMPT, FaultCase

OLD = time.time() - 400 * DAY
RCLONE = shutil.which("rclone")


class ArchiveCase(LibraryCase):
    def setUp(self) -> None:
        super().setUp()
        self.target = str(self.folder / "cold")
        self.cold = self.folder / "cold/archive-of-recordings"
        self.cold.mkdir(parents=True)
        self.put_run_on_record()
        self.configure()

    def configure(self, **settings: object) -> None:
        tiers = [{"after_days": 365, "archive": self.target}] if hasattr(self, "target") else []
        super().configure(**{"tiers": tiers, **settings})

    def add_old_session(self, chunks: int = 2) -> list[str]:
        paths = self.add_session(chunks=chunks)
        for path in paths:
            os.utime(path, (OLD, OLD))
        return [str(path.relative_to(self.library).with_suffix(".opus")) for path in paths]

    def assert_archived(self, *copies: str, cold: str = "") -> None:
        for copy in copies:
            self.assertFalse((self.library / copy).exists(), f"{copy} is still here")
            self.assertTrue((Path(cold or self.cold) / copy).exists(), f"{copy} is not there")

    def run_well(self, *words: str, code: int = 0) -> Ran:
        ran = self.run_cli(*words)
        self.assertEqual(ran.code, code, ran.out + ran.err)
        return ran


class AFolder(ArchiveCase):
    def test_what_is_old_enough_goes_there_and_every_record_says_so(self) -> None:
        copies = self.add_old_session()
        self.add("chunk_0", "2025-10-27/young.webm", time.time() - 8 * DAY)
        ran = self.run_well("--json")
        self.assert_archived(*copies)
        self.assertTrue((self.library / "2025-10-27/young.opus").exists())
        self.assertEqual(ran.summary["archived"], 2)
        document = self.read_json("2025-10-27/14-30-45-chunk-2.json")
        self.assertEqual(
            (document["archived"], document["archive_location"]), (True, f"{self.cold}/2025-10-27")
        )
        self.assertEqual(
            document["compressed_size"], sum((self.cold / copy).stat().st_size for copy in copies)
        )
        self.assertRegex(document["archive_date"], r"^\d{4}-\d\d-\d\dT")
        self.assertEqual(
            [chunk["file"] for chunk in document["chunks"]],
            [os.path.basename(copy) for copy in copies],
        )
        index = self.read_json("index.json")
        entry = index["recordings"][0]
        self.assertEqual((entry["archived"], entry["compressed"], entry["size"]), (True, True, 0))
        self.assertEqual(
            index["compressed_size"], (self.library / "2025-10-27/young.opus").stat().st_size
        )
        before = self.files()
        again = self.run_well("--json")
        self.assertEqual((again.outcomes, self.files()), ({}, before))
        self.assertEqual(self.run_well("check").code, 0)
        self.assert_no_leftovers()
        self.assertEqual([path.name for path in self.cold.rglob(".*")], [".compression"])

    def test_what_is_kept_as_it_is_goes_there_as_it_is(self) -> None:
        original = self.add_bytes(b"\x1aE\xdf\xa3junk", "a.webm", OLD)
        content = original.read_bytes()
        self.run_well()
        self.run_well()
        self.assertEqual((self.cold / "a.webm").read_bytes(), content)
        self.assertFalse(original.exists())

    def test_a_dry_run_names_what_would_go(self) -> None:
        copies = self.add_old_session(1)
        LibraryCase.configure(self)
        self.run_well()
        self.configure()
        before = self.files()
        ran = self.run_well("--dry-run", "--json")
        self.assertEqual(ran.outcomes[copies[0]]["action"], "would-archive")
        self.assertEqual(self.files(), before)
        self.assertEqual(list(self.cold.iterdir()), [])

    def test_a_session_goes_as_a_whole_or_not_at_all(self) -> None:
        copies = self.add_old_session()
        young = self.library / "2025-10-27/14-30-45-chunk-2.webm"
        os.utime(young, (time.time() - 300 * DAY,) * 2)
        self.run_well()
        self.assertEqual(list(self.cold.rglob("*.opus")), [])
        self.assertTrue((self.library / copies[0]).exists())

    def test_a_kept_original_and_a_policy_keep_hold_it_here(self) -> None:
        self.configure(delete_originals=False)
        self.add_old_session(1)
        self.add("chunk_0", "b.webm", OLD)
        self.add_json(
            "b.json", {"chunks": [{"file": "b.webm"}], "compression_policy": {"keep": True}}
        )
        self.run_well()
        self.run_well()
        self.assertEqual(list(self.cold.rglob("*.*")), [])

    def test_a_missing_folder_keeps_everything_and_is_never_made(self) -> None:
        copies = self.add_old_session(1)
        self.cold.rmdir()
        ran = self.run_well("--json", code=1)
        self.assertIn("mounted", ran.summary["message"])
        self.assertNotIn(copies[0], ran.outcomes, "it counts against a recording")
        self.assertTrue((self.library / copies[0]).exists())
        self.assertFalse(self.cold.exists())
        self.cold.mkdir()
        self.run_well()
        self.assert_archived(*copies)

    def test_another_file_of_that_name_there_is_kept_and_so_is_ours(self) -> None:
        copies = self.add_old_session(1)
        (self.cold / copies[0]).parent.mkdir()
        (self.cold / copies[0]).write_bytes(b"another")
        ran = self.run_well("--json", code=1)
        self.assertIn("another file", ran.outcomes[copies[0]]["reason"])
        self.assertTrue((self.library / copies[0]).exists())
        self.assertEqual((self.cold / copies[0]).read_bytes(), b"another")

    def test_a_broken_sidecar_keeps_its_copies_here(self) -> None:
        copies = self.add_old_session(1)
        LibraryCase.configure(self)
        self.run_well()
        self.configure()
        sidecar = (self.library / copies[0]).with_suffix(".json")
        sidecar.write_text("{")
        os.utime(sidecar, (OLD, OLD))  # no one is in the middle of writing it
        ran = self.run_well("--json")
        self.assertEqual(ran.outcomes[copies[0]]["action"], "kept")
        self.assertIn("sidecar cannot be edited: 2025-10-27/14", ran.outcomes[copies[0]]["reason"])
        self.assertTrue((self.library / copies[0]).exists())
        self.assertEqual(list(self.cold.rglob("*.opus")), [])

    def test_a_run_killed_in_between_converges(self) -> None:
        self.add("chunk_0", "without-sidecar.webm", OLD)
        copies = [*self.add_old_session(), "without-sidecar.opus"]
        self.run_well()
        for copy in (copies[0], copies[2]):  # as if killed before they were removed
            (self.library / copy).write_bytes((self.cold / copy).read_bytes())
            os.utime(self.library / copy, (OLD, OLD))
        half = (self.cold / copies[1]).read_bytes()
        part = f".compression-{hashlib.sha256(half).hexdigest()[:8]}-0.part"
        (self.cold / copies[1]).rename(self.cold / "2025-10-27" / part)
        (self.library / copies[1]).write_bytes(half)
        os.utime(self.library / copies[1], (OLD, OLD))
        self.run_well()
        self.assert_archived(*copies)


class AFullDisk(ArchiveCase, FaultCase):
    def test_a_full_archive_ends_the_run_with_exit_5_and_everything_stays_here(self) -> None:
        copies = self.add_old_session(1)
        options = ("-t", "tmpfs", "-o", "size=16k,mode=777", "tmpfs")
        if not self.mount(self.folder / "cold", *options):
            self.cannot("mounting a small disk")
        self.cold.mkdir()
        for _ in range(4):  # and it is never held against the recording
            ran = self.run_well("--json", code=5)
            self.assertIn("No space left in", ran.summary["message"])
            self.assertTrue((self.library / copies[0]).exists())
            self.assertEqual([path for path in self.cold.rglob("*.*") if path.is_file()], [])
        self.assertTrue(self.as_root("mount", "-o", "remount,size=1m", str(self.folder / "cold")))
        self.run_well()
        self.assert_archived(*copies)


class UnderOneName(ArchiveCase):
    """What comes under the name of a recording that has gone, and what has gone with its folder."""

    def test_one_uploaded_again_is_kept_and_the_archived_one_still_comes_back(self) -> None:
        (copy,) = self.add_old_session(chunks=1)
        self.run_well()
        archived = (self.cold / copy).read_bytes()
        again = self.add("ff_chunk_1", copy.replace(".opus", ".webm"), time.time() - 10 * DAY)
        before = again.read_bytes()
        self.assertIn("name already taken: the archive has", self.run_well(code=1).out)
        ran = self.run_well("restore", str(again), code=1)
        self.assertIn("is here: move that away first", ran.out)
        self.run_well(code=1)
        self.assertEqual(again.read_bytes(), before)
        again.rename(again.with_name("other.webm"))
        self.run_well("restore", str(again))
        self.assertEqual((self.library / copy).read_bytes(), archived)

    def test_a_folder_that_went_with_its_recordings_comes_back(self) -> None:
        for path in ("d/a.webm", "e/b.webm"):
            self.add("chunk_0", path, OLD)
        self.run_well()
        (self.library / "d").rmdir()
        ran = self.run_cli("restore", "recordings/d", cwd=str(self.folder))
        self.assertEqual(ran.code, 0, ran)
        self.assertTrue((self.library / "d/a.opus").exists())
        ran = self.run_cli("restore", "recordings/e/b.webm", cwd=str(self.folder))
        self.assertEqual(ran.code, 0, ran)
        self.assertTrue((self.library / "e/b.opus").exists())

    def test_a_sidecar_that_a_server_writes_back_names_what_is_in_the_archive(self) -> None:
        self.add("chunk_0", "d/a.webm", OLD)
        older = self.add_json("d/a.json", {"id": "A", "chunks": [{"file": "a.webm"}]}).read_bytes()
        self.run_well()
        (self.library / "d/a.json").write_bytes(older)
        self.run_well()
        document = self.read_json("d/a.json")
        self.assertEqual((document["chunks"][0]["file"], document["archived"]), ("a.opus", True))

    def test_what_went_as_it_was_is_not_called_compressed(self) -> None:
        self.add("ch_slice_01", "d/a.webm", OLD)
        self.add_json("d/a.json", {"id": "A", "chunks": [{"file": "a.webm"}]})
        self.run_well("--limit", "1")
        self.run_well()
        self.assertNotIn("compression_ratio", self.read_json("d/a.json"))

    def test_without_an_archive_in_the_settings_a_dry_run_says_so_too(self) -> None:
        (copy,) = self.add_old_session(chunks=1)
        self.run_well()
        self.configure(tiers=[])
        for words in (["-n"], []):
            ran = self.run_well("restore", copy, *words, code=1)
            self.assertIn("tiers name no archive", ran.out)


class NotItself(ArchiveCase):
    """A recording must never be taken for its own copy in the archive."""

    def test_an_archive_inside_of_the_library_is_refused(self) -> None:
        for library in (Path(self.target), self.folder):
            (library / "d").mkdir(parents=True, exist_ok=True)
            path = library / "d/a.webm"
            shutil.copyfile(self.add("chunk_0", "a.webm", OLD), path)
            os.utime(path, (OLD, OLD))
            ran = self.run_cli("--recordings", str(library))
            self.assertEqual(ran.code, 2, ran.out + ran.err)
            self.assertTrue(path.exists())

    def test_a_link_in_the_archive_that_leads_out_of_it_is_not_followed(self) -> None:
        copies = self.add_old_session(1)
        for target in (self.library / "2025-10-27", self.folder):
            (self.cold / "2025-10-27").unlink(missing_ok=True)
            (self.cold / "2025-10-27").symlink_to(target)
            ran = self.run_well("--json", "--retry", code=1)
            self.assertIn("leads out", ran.outcomes[copies[0]]["reason"])
            self.assertTrue((self.library / copies[0]).exists())

    def test_a_link_or_pipe_where_the_part_file_goes_is_not_written_through(self) -> None:
        copies = self.add_old_session(1)
        LibraryCase.configure(self)
        self.run_well()
        self.configure()
        victim = self.folder / "victim"
        victim.write_bytes(b"mine")
        part = (
            self.cold
            / "2025-10-27"
            / f".compression-{hashlib.sha256((self.library / copies[0]).read_bytes()).hexdigest()[:8]}-0.part"
        )
        part.parent.mkdir()
        part.symlink_to(victim)
        self.run_well()
        self.assertEqual(victim.read_bytes(), b"mine")
        self.assert_archived(*copies)

    def test_a_conflict_is_told_three_times_and_then_remembered(self) -> None:
        copies = self.add_old_session(1)
        (self.cold / copies[0]).parent.mkdir()
        (self.cold / copies[0]).write_bytes(b"another")
        codes = [self.run_cli().code for _ in range(5)]
        self.assertEqual(codes, [1, 1, 1, 0, 0])
        (self.cold / copies[0]).unlink()
        self.run_well("--retry")
        self.assert_archived(*copies)

    def test_a_session_larger_than_the_limit_does_not_hold_up_the_rest(self) -> None:
        copies = self.add_old_session(3)
        LibraryCase.configure(self)
        self.run_well()
        self.configure()
        self.run_well("--limit", "2")
        self.assert_archived(*copies)


class BackAgain(ArchiveCase):
    def test_restore_brings_a_whole_session_back_as_it_was(self) -> None:
        copies = self.add_old_session()
        LibraryCase.configure(self)
        self.run_well()
        before = self.files()
        self.configure()
        self.run_well()
        self.assert_archived(*copies)
        ran = self.run_well("restore", str(self.library / copies[1]), "--json")
        self.assertEqual({outcome["action"] for outcome in ran.outcomes.values()}, {"restored"})
        after = self.files()
        self.assertEqual(
            {name for name in after if not name.endswith(".bak")},
            {name for name in before if not name.endswith(".bak")},
        )
        for copy in copies:
            self.assertEqual(after[copy], before[copy])
            self.assertAlmostEqual((self.library / copy).stat().st_mtime, OLD, delta=1)
            sidecar = copy.replace(".opus", ".json")
            self.assertEqual(json.loads(after[sidecar]), json.loads(before[sidecar]))
        entry = self.read_json("index.json")["recordings"][0]
        self.assertEqual(
            ("archived" in entry, entry["size"]), (False, sum(len(before[copy]) for copy in copies))
        )
        self.run_well()
        self.assertTrue((self.library / copies[0]).exists(), "taken away again by the next run")
        self.run_well("--retry")
        self.assert_archived(*copies)

    def test_what_is_not_what_went_there_does_not_come_back(self) -> None:
        copies = self.add_old_session(1)
        self.run_well()
        path = self.cold / copies[0]
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        ran = self.run_well("restore", copies[0], code=1)
        self.assertIn("not the file", ran.out)
        self.assertFalse((self.library / copies[0]).exists())

    def test_sidecars_of_one_recording_come_back_together(self) -> None:
        """Each with its own chunk only, and one id."""
        names = ["r-chunk-1", "r-chunk-2"]
        for name in names:
            self.add("chunk_0", f"{name}.webm", OLD)
            self.add_json(f"{name}.json", {"id": "r", "chunks": [{"file": f"{name}.webm"}]})
        self.run_well()
        self.run_well("restore", "r-chunk-1.json")
        self.assertEqual(self.run_well("check").code, 0)
        self.assertEqual([(self.library / f"{name}.opus").exists() for name in names], [True, True])

    def test_a_recording_without_chunks_in_its_sidecar_comes_back_compressed(self) -> None:
        self.add("chunk_0", "a.webm", OLD)
        self.add_json("a.json", {"id": "a", "chunks": None})
        self.run_well()
        self.run_well("restore", "a.json")
        document = self.read_json("a.json")
        self.assertEqual((document["compressed"], "archived" in document), (True, False))

    def test_a_recording_in_capitals_comes_back(self) -> None:
        self.add_bytes(b"\x1aE\xdf\xa3junk", "K.WEBM", OLD)
        self.run_well()
        self.run_well()
        self.assertFalse((self.library / "K.WEBM").exists())
        self.run_well("restore", "K.WEBM")
        self.assertTrue((self.library / "K.WEBM").exists())

    def test_what_came_back_and_was_deleted_comes_back_once_more(self) -> None:
        copies = self.add_old_session(1)
        self.run_well()
        self.run_well("restore", copies[0])
        (self.library / copies[0]).unlink()
        self.run_well("restore", copies[0].replace(".opus", ".json"))
        content = (self.cold / copies[0]).read_bytes()
        self.assertEqual((self.library / copies[0]).read_bytes(), content)

    def test_an_odd_line_of_the_history_is_not_followed_and_breaks_nothing(self) -> None:
        copies = self.add_old_session(1)
        self.run_well()
        history = self.folder / "recordings/.compression/history.jsonl"
        line = next(
            line
            for line in history.read_text().splitlines()
            if '"archived"' in line and '"recording"' in line
        )
        record = json.loads(line)
        odd: list[dict[str, object]] = [
            {"path": "../outside/a.opus"},
            {"path": 5},
            {"path": "/etc/x"},
            {"mtime_ns": 10**40},
        ]
        odd += [{"location": "a\0b"}, {"owner": 3}]
        with open(history, "a") as file:
            file.writelines(json.dumps({**record, "path": "b.opus", **each}) + "\n" for each in odd)
        for words in (["check"], ["restore", "b.opus"], ["restore", copies[0]], ["run"], ["stats"]):
            ran = self.run_cli(*words)
            self.assertNotIn("Traceback", ran.err)
        self.assertTrue((self.library / copies[0]).exists())

    def test_a_location_in_a_sidecar_is_never_followed(self) -> None:
        (self.folder / "secret").mkdir()
        (self.folder / "secret/a.opus").write_bytes(b"private")
        document = {
            "chunks": [{"file": "a.opus"}],
            "archived": True,
            "archive_location": str(self.folder / "secret"),
        }
        self.add_json("a.json", document)
        self.run_well("restore", "a.json", code=1)
        self.assertFalse((self.library / "a.opus").exists())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@unittest.skipUnless(
    RCLONE or os.environ.get("CI"), "rclone is not installed (sudo apt-get install rclone)"
)
class RemoteCase(ArchiveCase):
    """A real server on the loopback, and rclone told of it by its environment alone."""

    def serve(self, port: int, *command: str, **settings: str) -> None:
        """Start a server, and name it `cold:` to rclone."""
        server = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "RCLONE_CONFIG": "/dev/null"},
        )
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        self.environment = {
            key: value for key, value in os.environ.items() if key != "AWS_CA_BUNDLE"
        }
        self.environment |= {
            "RCLONE_CONFIG": "/dev/null",
            **{f"RCLONE_CONFIG_COLD_{key}": value for key, value in settings.items()},
        }
        deadline = time.monotonic() + PROMPT
        while time.monotonic() < deadline:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", port), timeout=10),
            ):
                return
            time.sleep(0.05)
        self.fail(f"{command[0]} does not answer")

    def run_remote(self, *words: str, code: int = 0) -> Ran:
        ran = self.run_cli(*words, env=self.environment)
        self.assertEqual(ran.code, code, ran.out + ran.err)
        return ran


class AWebDavServer(RemoteCase):
    def setUp(self) -> None:
        super().setUp()
        port = free_port()
        self.serve(
            port, str(RCLONE), "serve", "webdav", str(self.cold), "--addr", f"127.0.0.1:{port}", "--dir-cache-time", "0",
            TYPE="webdav", URL=f"http://127.0.0.1:{port}", VENDOR="other",
        )  # fmt: skip
        self.target = "cold:voice/2025 ü"
        self.there = self.cold / "voice/2025 ü/archive-of-recordings"
        self.configure()

    def test_recordings_go_to_a_remote_and_come_back(self) -> None:
        copies = self.add_old_session()
        self.run_remote()
        self.assert_archived(*copies, cold=str(self.there))
        document = self.read_json("2025-10-27/14-30-45-chunk-1.json")
        self.assertEqual(
            document["archive_location"], "cold:voice/2025 ü/archive-of-recordings/2025-10-27"
        )
        self.run_remote("restore", copies[0].replace(".opus", ".json"))
        for copy in copies:
            self.assertEqual((self.library / copy).read_bytes(), (self.there / copy).read_bytes())

    def test_without_a_network_all_is_kept_here_and_goes_the_next_time(self) -> None:
        copies = self.add_old_session(1)
        url = self.environment["RCLONE_CONFIG_COLD_URL"]
        self.environment["RCLONE_CONFIG_COLD_URL"] = "http://127.0.0.1:9"
        ran = self.run_remote("--json", code=1)
        self.assertIn("does not answer", ran.summary["message"])
        self.assertTrue((self.library / copies[0]).exists())
        self.environment["RCLONE_CONFIG_COLD_URL"] = url
        self.run_remote()
        self.assert_archived(*copies, cold=str(self.there))

    def test_a_server_that_keeps_other_bytes_is_noticed(self) -> None:
        copies = self.add_old_session(1)
        there = self.there / copies[0]
        there.parent.mkdir(parents=True)
        there.write_bytes(b"other")
        ran = self.run_remote("--json", code=1)
        self.assertIn("another file", ran.outcomes[copies[0]]["reason"])
        self.assertTrue((self.library / copies[0]).exists())
        self.assertEqual(there.read_bytes(), b"other")

    def test_a_remote_that_is_the_library_itself_only_gets_a_second_copy(self) -> None:
        copies = self.add_old_session(1)
        self.environment |= {"RCLONE_CONFIG_COLD_TYPE": "local"}
        self.target = f"cold:{self.library}"
        self.configure()
        self.run_remote()
        there = self.library / "archive-of-recordings" / copies[0]
        self.assertGreater(decoded_seconds(there), 2.5)

    def test_an_environment_that_loosens_the_comparison_does_not(self) -> None:
        copies = self.add_old_session(1)
        LibraryCase.configure(self)
        self.run_remote()
        self.configure()
        there = self.there / copies[0]
        there.parent.mkdir(parents=True)
        there.write_bytes(b"x" * (self.library / copies[0]).stat().st_size)
        self.environment |= {"RCLONE_SIZE_ONLY": "true"}
        self.run_remote(code=1)
        self.assertTrue((self.library / copies[0]).exists())

    def test_an_upload_that_was_killed_is_done_again(self) -> None:
        copies = self.add_old_session()
        LibraryCase.configure(self)
        self.run_remote()
        self.configure()
        there = self.there / copies[0]
        there.parent.mkdir(parents=True)
        there.write_bytes((self.library / copies[0]).read_bytes()[:1000])
        self.run_remote()
        self.assert_archived(*copies, cold=str(self.there))

    def test_without_rclone_the_way_to_install_it_is_told(self) -> None:
        copies = self.add_old_session(1)
        tools = self.folder / "tools"
        tools.mkdir()
        for name in ("ffmpeg", "sh"):
            (tools / name).symlink_to(str(shutil.which(name)))
        script = f"import compression_service as c; c.TOOL_PATH = \"\"; import sys; sys.exit(c.main(['-c', {str(self.config)!r}]))"
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=PROJECT,
            env={"PATH": str(tools)},
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual(done.returncode, 4, done.stdout + done.stderr)
        self.assertIn("apt-get install rclone", done.stderr)
        self.assertTrue((self.library / copies[0]).exists())


MOTO = os.environ.get("COMPRESSION_TEST_S3")


@unittest.skipUnless(
    MOTO,
    "COMPRESSION_TEST_S3 names no moto_server (pip install 'moto[server]' in an environment of its own)",
)
class AnS3Bucket(RemoteCase):
    def test_recordings_go_to_a_bucket_and_come_back(self) -> None:
        port = free_port()
        self.serve(
            port, str(MOTO), "-p", str(port), TYPE="s3", PROVIDER="Other", ENDPOINT=f"http://127.0.0.1:{port}", REGION="us-east-1",
            ACCESS_KEY_ID="a", SECRET_ACCESS_KEY="b",
        )  # fmt: skip
        self.target = "cold:voices/library"
        self.configure()
        copies = self.add_old_session()
        self.run_remote()
        self.assertFalse((self.library / copies[0]).exists())
        self.run_remote("restore", copies[0])
        for copy in copies:
            self.assertGreater((self.library / copy).stat().st_size, 20_000)
        self.assertEqual(self.run_cli("check").code, 0)


if __name__ == "__main__":
    unittest.main()
