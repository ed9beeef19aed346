"""What every test stands on: a temporary library, real recordings, and the program run as its user runs it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import unittest
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional, Union

TESTS = Path(__file__).resolve().parent
PROJECT = TESTS.parent
SCRIPT = PROJECT / "compression_service.py"
RECORDINGS = TESTS / "recordings"
sys.path.insert(0, str(PROJECT))

import compression_service as service  # noqa: E402
from tests.standins import TRUE_IN_TRIALS  # noqa: E402

DAY = 86_400
LONG_AGO = 1_761_575_445  # 2025-10-27T14:30:45Z
FFMPEG = shutil.which("ffmpeg") or "ffmpeg"
HEEDED_AT_THE_START = re.compile("LC_|LANG|PYTHON|LD_")  # variables, by Python and the loader


class Ran(NamedTuple):
    """How the program ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The objects of --json."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def summary(self) -> dict[str, Any]:
        return self.lines[-1]

    @property
    def outcomes(self) -> dict[str, dict[str, Any]]:
        """The recordings' lines of --json, by path."""
        return {line["path"]: line for line in self.lines if line["type"] == "recording"}


def answers(port: int, seconds: float) -> bool:
    """Whether a server of this machine answers within the time, for which it waits."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", port), timeout=10),
        ):
            return True
        time.sleep(0.05)
    return False


class LibraryCase(unittest.TestCase):
    """A library in a temporary folder, with a config file of its own beside it."""

    maxDiff = None

    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="compression-test-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.library = self.folder / "recordings"
        self.library.mkdir()
        self.config = self.folder / "config.json"
        self.tried = {os.environ["PATH"]}  # those whose ffmpeg is known to work
        self.configure()

    def configure(self, **settings: Any) -> None:
        self.config.write_text(json.dumps(settings))

    def add(self, recording: str, path: str, age: float = LONG_AGO) -> Path:
        """Copy one of the real recordings to `path` in the library, last modified at `age` (seconds since the epoch)."""
        return self.add_bytes((RECORDINGS / f"{recording}.webm").read_bytes(), path, age)

    def add_bytes(self, content: bytes, path: str, age: float = LONG_AGO) -> Path:
        target = self.library / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        os.utime(target, (age, age))
        return target

    def add_json(self, path: str, document: Any, **style: Any) -> Path:
        target = self.library / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(document, ensure_ascii=False, **style), encoding="utf-8")
        return target

    def add_session(
        self, folder: str = "2025-10-27", name: str = "14-30-45", chunks: int = 2, first: int = 0
    ) -> list[Path]:
        """A recording of real chunks with one sidecar beside each, every one listing all chunks, and its index entry. They are
        chunk_0, whose peaks exceed full scale, and chunk_1 in turn, from `first`."""
        names = [f"{name}-chunk-{number + 1}.webm" for number in range(chunks)]
        paths = [
            self.add(f"chunk_{(number + first) % 2}", f"{folder}/{chunk}")
            for number, chunk in enumerate(names)
        ]
        for chunk in names:
            self.add_json(
                f"{folder}/{chunk[:-5]}.json", sidecar(f"{folder}T{name}", names), indent=2
            )
        entry = index_entry(f"{folder}T{name}", sum(path.stat().st_size for path in paths), chunks)
        self.add_to_index(entry)
        return paths

    def add_to_index(self, entry: dict[str, Any]) -> None:
        path = self.library / "index.json"
        document = json.loads(path.read_text()) if path.exists() else index([])
        document["recordings"].append(entry)
        document["total_recordings"] = len(document["recordings"])
        document["total_size"] = sum(each["size"] for each in document["recordings"])
        self.add_json("index.json", document, indent=2)

    def read_json(self, path: str) -> Any:
        return json.loads((self.library / path).read_text(encoding="utf-8"))

    def run_cli(
        self,
        *arguments: str,
        env: Optional[Mapping[str, str]] = None,
        cwd: str = "/",
        timeout: float = 600,
        python: str = "",
    ) -> Ran:
        """Run the program from another folder, without a terminal: in a process of its own, which is
        a fork of this one where nothing can tell the difference, as that saves a third of the time."""
        command = self.command(*arguments, python=python or sys.executable)
        env = os.environ if env is None else env
        changes = {name for name, _ in set(env.items()) ^ set(os.environ.items())}
        if not python and not any(map(HEEDED_AT_THE_START.match, changes)):
            return self.run_forked(command[2:], dict(env), cwd, timeout)
        done = subprocess.run(
            command,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            cwd=cwd,
            env=env,
            timeout=timeout,
            check=False,
        )
        return Ran(
            done.returncode,
            done.stdout.decode("utf-8", "replace"),
            done.stderr.decode("utf-8", "replace"),
        )

    def run_forked(self, words: list[str], env: dict[str, str], cwd: str, timeout: float) -> Ran:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            sys.stdout.flush()
            sys.stderr.flush()
            pid = os.fork()
            if not pid:
                code = 1
                try:
                    become_program(words, env, cwd, out.fileno(), err.fileno())
                    if env.get("PATH") in self.tried:
                        believe_in_ffmpeg()
                    code = self.play_program(words)
                except SystemExit as end:
                    code = end.code if isinstance(end.code, int) else int(end.code is not None)
                except BaseException:
                    traceback.print_exc()
                finally:
                    with contextlib.suppress(OSError, ValueError):
                        sys.stdout.flush()
                        sys.stderr.flush()
                    os._exit(code)
            status = wait_for_end(pid, timeout)
            told = []
            for file in (out, err):
                file.seek(0)
                told.append(file.read().decode("utf-8", "replace"))
        return Ran(os.waitstatus_to_exitcode(status), *told)

    def play_program(self, words: list[str]) -> int:
        """What the forked process does."""
        return service.main(words)

    def run_here(self, command: str, *words: str) -> Ran:
        """Run a command without a process of its own."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = service.main([command, "-c", str(self.config), *words])
        return Ran(code, out.getvalue(), err.getvalue())

    def command(self, *arguments: str, python: str = sys.executable) -> list[str]:
        words = list(arguments)
        name = words.pop(0) if words and not words[0].startswith("-") else "run"
        return [python, str(SCRIPT), name, "-c", str(self.config), *words]

    def stand_in(
        self,
        does: Union[Callable[..., Any], str],
        name: str = "ffmpeg",
        passes_trials: bool = False,
        **settings: Any,
    ) -> dict[str, str]:
        """Returns an environment whose PATH begins with a stand-in for a tool: a function of
        tests/standins.py with its settings. In a text, the words are `args`, the true tool is
        `real`, the staged files are `outputs` (the copies it writes), `copies` and `levels`. One
        that `passes_trials` tells the truth where a run tries ffmpeg."""
        folder = self.folder / "stand-ins"
        folder.mkdir(exist_ok=True)
        tool = folder / name
        if isinstance(does, str):
            lines = [
                "import os, re, signal, subprocess, sys, time",
                f"sys.path.insert(0, {str(PROJECT)!r})",
                "from tests.standins import Call",
                f"call = Call({FFMPEG!r}, sys.argv[1:])",
                "args, real, levels = call.words, call.real, call.levels",
                "copies, outputs = call.copies, call.outputs",
                does,
            ]
        else:
            lines = [
                "import sys",
                f"sys.path.insert(0, {str(PROJECT)!r})",
                "from tests.standins import play",
                f"play({does.__name__!r}, {FFMPEG!r}, {json.dumps(settings)!r})",
            ]
        text = "\n".join([f"#!{sys.executable} -IS", *lines, ""])
        tool.write_text(text)
        tool.chmod(0o755)
        path = f"{folder}{os.pathsep}{os.environ['PATH']}"
        self.tried.discard(path)
        if name != "ffmpeg" or passes_trials or getattr(does, "__name__", "") in TRUE_IN_TRIALS:
            self.tried.add(path)
        return {**os.environ, "PATH": path}

    def put_run_on_record(self, ago: float = 0) -> None:
        """As after a night, `ago` seconds before: steps by age but the first wait for the second run."""
        self.history().parent.mkdir(exist_ok=True)
        with open(self.history(), "a", encoding="ascii") as file:
            file.write(json.dumps({"type": "run", "time": time.time() - ago}) + "\n")

    def history(self) -> Path:
        return self.library / ".compression" / "history.jsonl"

    # What must hold, always

    def files(self) -> dict[str, bytes]:
        """Every file of the library with its content, without what we keep in our own folder."""
        found = sorted(
            path
            for path in self.library.rglob("*")
            if path.is_file() and not path.is_symlink() and path.parent.name != ".compression"
        )
        return {str(path.relative_to(self.library)): path.read_bytes() for path in found}

    def assert_audio_complete(self, *sources: str) -> None:
        """Each recording is there whole: as its original (same bytes) or as a copy that decodes to its length."""
        for source in sources:
            original, copy = self.library / source, (self.library / source).with_suffix(".opus")
            self.assertTrue(original.exists() or copy.exists(), f"{source} is lost")
            if not original.exists():
                self.assertGreater(
                    decoded_seconds(copy), 0.05, f"the copy of {source} does not decode"
                )

    def assert_sidecars_true(self) -> None:
        """Every sidecar names files that exist."""
        for path in self.library.rglob("*.json"):
            for chunk in json.loads(path.read_text()).get("chunks") or []:
                self.assertTrue(
                    (path.parent / chunk["file"]).exists(),
                    f"{path.name} names {chunk['file']}, which is not there",
                )

    def assert_no_leftovers(self) -> None:
        hidden = [path for path in self.library.rglob(".*") if path.name != ".compression"]
        self.assertEqual(hidden, [], "left behind in the library")
        ours = {path.name for path in self.library.glob(".compression/*")}
        self.assertLessEqual(ours, {"history.jsonl", "lock", "paused", "id"}, "left behind")

    def assert_kept(self, ran: Ran, path: str, *words: str, action: str = "kept") -> None:
        """The recording was left alone, for a reason in these words."""
        self.assertTrue((self.library / path).exists(), f"{path} is gone")
        self.assertFalse((self.library / path).with_suffix(".opus").exists(), f"{path} has a copy")
        outcome = ran.outcomes[path]
        self.assertEqual(outcome["action"], action, outcome)
        for word in words:
            self.assertIn(word, outcome["reason"])

    def assert_compressed(self, path: str) -> Path:
        """The recording is there as its copy only."""
        copy = (self.library / path).with_suffix(".opus")
        self.assertFalse((self.library / path).exists(), f"{path} is still there")
        self.assertTrue(copy.exists(), f"{path} has no copy")
        return copy


def become_program(words: list[str], env: dict[str, str], cwd: str, out: int, err: int) -> None:
    """Makes a fork of a test what a process is that has just started."""
    with open(os.devnull, "rb") as nothing:
        for file, number in ((nothing.fileno(), 0), (out, 1), (err, 2)):
            os.dup2(file, number)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    os.chdir(cwd)
    sys.argv = [str(SCRIPT), *words]
    for each in vars(service).values():
        if hasattr(each, "cache_clear"):
            each.cache_clear()


def believe_in_ffmpeg() -> None:
    """Lets the program take for granted, in a fork, that the ffmpeg it finds first works. Its own
    trial takes longer than a recording, as ffmpeg takes long to start. It is tested by itself."""
    program: Any = service
    program.try_ffmpeg = lambda *_: None
    program.Tools.has_encoders = lambda *_: True


def wait_for_end(pid: int, timeout: float) -> int:
    """Returns the status of a child that has ended. Kills it after so many seconds."""
    deadline = time.monotonic() + timeout
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise TimeoutError(f"the program had not ended after {timeout:g} s")
        time.sleep(0.005)


def sidecar(id_: str, names: Sequence[str], seconds: float = 3.0) -> dict[str, Any]:
    """A sidecar as the recorder writes it, with a key of its own that must survive."""
    chunks = [
        {"file": name, "start": number * seconds, "end": (number + 1) * seconds, "duration": seconds,
         "segments": [{"start": 0.0, "end": 2.5, "text": "Grüße, 世界"}]}
        for number, name in enumerate(names)
    ]  # fmt: skip
    return {
        "id": id_, "date": id_[:10], "duration": seconds * len(names), "language": "en", "chunks": chunks,
        "full_transcription": "Grüße, 世界", "compressed": False, "original_size": 1024000, "compressed_size": None,
        "compression_date": None, "of_the_recorder": {"b": [1, 2.5], "a": None},
    }  # fmt: skip


def index(entries: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "recordings": entries, "total_recordings": len(entries), "total_duration": 0.0, "total_size": 0, "compressed_size": 0,
        "last_updated": "2025-10-27T14:30:45Z",
    }  # fmt: skip


def index_entry(id_: str, size: int, chunks: int = 1) -> dict[str, Any]:
    return {
        "id": id_,
        "date": id_[:10],
        "duration": 3.0 * chunks,
        "chunks": chunks,
        "compressed": False,
        "size": size,
        "note": "ü",
    }


def plain_decode(path: Path, *form: str) -> bytes:
    """The audio of a media file in some raw form: every sample that a plain decode gives, whatever its timestamps say."""
    words = [
        "-v",
        "error",
        "-nostdin",
        "-i",
        f"file:{path}",
        "-map",
        "0:a:0",
        "-af",
        "asetpts=N/SR/TB",
    ]
    return subprocess.run([FFMPEG, *words, *form, "-"], capture_output=True, check=True).stdout


def decode(path: Path, rate: int = 4000) -> bytes:
    """The same as 16-bit mono samples."""
    return plain_decode(path, "-ac", "1", "-ar", str(rate), "-f", "s16le")


def decoded_seconds(path: Path) -> float:
    return len(decode(path)) / 2 / 4000


def now() -> float:
    return time.time()
