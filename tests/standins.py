"""Stand-ins for ffmpeg that lie, fail, hang or meddle. Each is a function.

LibraryCase.stand_in() writes a small program that calls play() with the name of one of them. A
function gets the call that it stands in for, and what its test gave it. Where it returns, its
program ends with exit code 0. It must stay quick to import: every call of ffmpeg imports it.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from array import array
from collections.abc import Sequence
from typing import Any, Callable, NoReturn, Union

PCM = ["-f", "s16le", "-ac", "1", "-ar", "48000"]
SECOND = 96_000  # bytes of it
OPUS = ["-c:a", "libopus", "-b:a", "96k", "-vbr", "constrained", "-f", "ogg"]
LONG = 600  # seconds; no test waits for it
Samples = Union[bytes, bytearray]  # of that kind
Playing = Callable[..., Any]
TRUE_IN_TRIALS: set[str] = set()  # names of stand-ins
STAGED = re.compile(r"file:.*/\.compression-\w+-\d+\.part")


class Call:
    """A call of ffmpeg by the program: its words, the true tool, and the files they name."""

    def __init__(self, real: str, words: Sequence[str]) -> None:
        self.real = real
        self.words = list(words)
        staged = [word for word in words if STAGED.fullmatch(word)]
        self.levels = [word[5:] for word in staged if "/.compression/" in word]
        written = [word for word in staged if self.before(word) != "-i"]
        self.copies = [word[5:] for word in staged if word[5:] not in self.levels]
        self.outputs = [word[5:] for word in written if word[5:] not in self.levels]
        after_i = [self.words[at + 1] for at, word in enumerate(words) if word == "-i"]
        self.inputs = [word[5:] for word in after_i if word.startswith("file:")]

    def before(self, word: str) -> str:
        return self.words[self.words.index(word) - 1]

    def reads(self, path: str) -> bool:
        """Tells whether an input's path ends like this one."""
        return any(each.endswith(path) for each in self.inputs)

    def names(self, path: str) -> bool:
        return any(word.endswith(path) for word in self.words)

    def become_true(self) -> NoReturn:
        os.execv(self.real, [self.real, *self.words])

    def run_true(self) -> int:
        return subprocess.call([self.real, *self.words])

    def with_before_inputs(self, *options: str) -> NoReturn:
        words: list[str] = []
        for word in self.words:
            words += [*options, word] if word == "-i" else [word]
        self.words = words
        self.become_true()


def play(name: str, real: str, settings: str) -> None:
    """Plays one of the functions below, or its program's own of that name."""
    function: Callable[..., Any] = globals()[name]
    function(Call(real, sys.argv[1:]), **json.loads(settings))


def passes_trials(function: Playing) -> Playing:
    """Marks a stand-in that tells the truth to a run that tries ffmpeg before it uses it. So the run
    may as well leave out the trial, which takes as long as three recordings."""
    TRUE_IN_TRIALS.add(function.__name__)
    return function


def where_it_encodes(function: Playing) -> Playing:
    """Makes a stand-in that tells the truth where no staged copy is written: to trials, probes and
    decodes."""

    @functools.wraps(function)
    def play_there(call: Call, *rest: Any, **settings: Any) -> None:
        if not call.outputs:
            call.become_true()
        function(call, *rest, **settings)

    return passes_trials(play_there)


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def complain() -> None:
    say("[opus @ 0x55] [error] it hurts")


def die(number: int) -> NoReturn:
    os.kill(os.getpid(), number)
    time.sleep(LONG)
    raise AssertionError(number)


FAULTS: dict[str, Callable[[], Any]] = {
    "exit": lambda: sys.exit(1),
    "crash": lambda: die(signal.SIGSEGV),
    "kill": lambda: die(signal.SIGKILL),
    "complain": complain,
}


def touch(path: str) -> None:
    with open(path, "a", encoding="utf-8"):
        pass


def say_that_it_hangs(hung: str) -> None:
    """Adds a line with its number to a file, which HastyClock reads."""
    with open(hung, "a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")


def hang(hung: str) -> NoReturn:
    say_that_it_hangs(hung)
    time.sleep(LONG)
    raise AssertionError("nobody ended it")


# Truth


@passes_trials
def truth(call: Call) -> None:
    call.become_true()


def truth_with_a_banner(call: Call) -> None:
    say("/usr/lib/libfoo.so: no version information available")
    call.become_true()


def truth_with_a_grandchild(call: Call, mark: str) -> None:
    """One of its children holds the streams longer than any test waits. It bears a mark."""
    subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({LONG})", mark])
    call.become_true()


@where_it_encodes
def slow_truth(call: Call, sign: str) -> None:
    """Encodes no faster than the recording plays."""
    touch(sign)
    call.with_before_inputs("-re")


@where_it_encodes
def truth_after_a_sign(call: Call, sign: str, until: str, only: str) -> None:
    """Says that it encodes (one recording only), waits until another file is there, and encodes."""
    if call.names(only):
        touch(sign)
        parent = os.getppid()
        while not os.path.exists(until):
            if os.getppid() != parent and not os.path.isdir(os.path.dirname(until)):
                sys.exit(1)  # the test is over
            time.sleep(0.02)
    call.become_true()


# Lies: whatever it was told to write is written, and then the copies are not the recording


def pcm(call: Call, path: str) -> bytearray:
    command = [call.real, "-v", "error", "-i", f"file:{path}", *PCM, "-"]
    return bytearray(subprocess.check_output(command))


def encode(call: Call, path: str, samples: Samples) -> None:
    """Writes a copy whose container, codec, channels and end are those of a perfect one."""
    command = [call.real, "-v", "error", "-y", *PCM, "-i", "-", *OPUS, f"file:{path}"]
    subprocess.run(command, input=samples, check=True)


@where_it_encodes
def spoil(call: Call, change: Callable[[bytearray], Samples]) -> None:
    """Encodes each copy anew from other samples."""
    call.run_true()
    for path in call.outputs:
        encode(call, path, change(pcm(call, path)))


@where_it_encodes
def half_of_each_file(call: Call) -> None:
    call.run_true()
    for path in call.outputs:
        os.truncate(path, os.path.getsize(path) // 2)


@passes_trials
def half_of_the_audio(call: Call) -> None:
    spoil(call, lambda samples: samples[: len(samples) // 4 * 2])


@passes_trials
def a_tenth_of_a_second_short(call: Call) -> None:
    spoil(call, lambda samples: samples[: -SECOND // 10])


@where_it_encodes
def half_of_copy_and_levels(call: Call) -> None:
    call.with_before_inputs("-t", "1.4")


@passes_trials
def noise(call: Call) -> None:
    spoil(call, lambda samples: os.urandom(len(samples)))


@passes_trials
def silence(call: Call) -> None:
    spoil(call, lambda samples: bytes(len(samples)))


@passes_trials
def one_quiet_second(call: Call) -> None:
    def change(samples: bytearray) -> Samples:
        values = array("h", bytes(samples))
        for at in range(48_000, 96_000):
            values[at] //= 2
        return values.tobytes()

    spoil(call, change)


@passes_trials
def half_a_second_of_silence(call: Call) -> None:
    def change(samples: bytearray) -> Samples:
        samples[SECOND : SECOND * 3 // 2] = bytes(SECOND // 2)
        return samples

    spoil(call, change)


@passes_trials
def late_by_0_7_seconds(call: Call) -> None:
    late = SECOND * 7 // 10
    spoil(call, lambda samples: bytes(late) + samples[:-late])


@passes_trials
def upside_down(call: Call) -> None:
    spoil(
        call, lambda samples: array("h", [~each for each in array("h", bytes(samples))]).tobytes()
    )


@passes_trials
def another_recording(call: Call, other: str) -> None:
    spoil(call, lambda samples: pcm(call, other)[: len(samples)])


@where_it_encodes
def silence_for_one(call: Call, path: str) -> None:
    call.run_true()
    for source, copy in zip(call.inputs, call.outputs):
        if source.endswith(path):
            encode(call, copy, bytes(len(pcm(call, copy))))


@where_it_encodes
def two_exchanged(call: Call) -> None:
    call.run_true()
    if len(call.outputs) > 1:
        first, second = call.outputs[:2]
        one, two = pcm(call, first), pcm(call, second)
        encode(call, first, (two + one)[: len(one)])
        encode(call, second, (one + two)[: len(two)])


@where_it_encodes
def empty_copies(call: Call) -> None:
    for path in call.outputs:
        os.truncate(path, 0)


def nothing_at_all(_: Call) -> None:
    pass


def half_of_everything(call: Call) -> None:
    """Half a second of whatever it is to decode."""
    if "-i" in call.words:
        at = call.words.index("-i")
        call.words[at:at] = ["-t", "0.5"]
    call.become_true()


@where_it_encodes
def no_level_files(call: Call) -> None:
    call.run_true()
    for path in call.levels:
        os.unlink(path)


def empty_level_files(call: Call) -> None:
    call.run_true()
    for path in call.levels:
        os.truncate(path, 0)


@where_it_encodes
def the_source_itself(call: Call) -> None:
    call.run_true()
    for source, copy in zip(call.inputs, call.outputs):
        shutil.copy(source, copy)


@where_it_encodes
def another_codec(call: Call) -> None:
    call.run_true()
    for path in call.outputs:
        flac = ["-c:a", "flac", "-f", "ogg", f"file:{path}~"]
        subprocess.run([call.real, "-v", "quiet", "-i", f"file:{path}", *flac], check=True)
        os.rename(f"{path}~", path)


@where_it_encodes
def as_large_as_the_source(call: Call) -> None:
    call.words = ["256k" if word == "96000" else word for word in call.words]
    call.become_true()


# Failures that it reports itself, one way or another


def exit_code(_: Call, code: int, says: str = "") -> None:
    """Does nothing but to fail."""
    if says:
        say(says)
    sys.exit(code)


@where_it_encodes
def exit_code_where_it_encodes(call: Call, code: int, says: str = "") -> None:
    exit_code(call, code, says)


@where_it_encodes
def fault_after_the_truth(call: Call, fault: str) -> None:
    call.run_true()
    FAULTS[fault]()


@where_it_encodes
def exit_255_after_the_truth(call: Call) -> None:
    call.run_true()
    sys.exit(255)


@where_it_encodes
def crash_half_way(call: Call) -> None:
    for path in call.outputs:
        with open(path, "wb") as file:
            file.write(b"OggS" + bytes(4000))
    die(signal.SIGSEGV)


def complaint_about_the_copy(call: Call) -> None:
    call.run_true()
    if call.copies and not call.outputs:
        complain()


@where_it_encodes
def endless_messages(call: Call) -> None:
    while True:
        say("[error] " + "x" * 60_000)


def fault_at(call: Call, path: str, fault: str) -> None:
    """Fails at one recording, whether it decodes or encodes it."""
    if call.reads(path):
        FAULTS[fault]()
    call.become_true()


@where_it_encodes
def fault_where_it_encodes(call: Call, path: str, fault: str, after: bool = False) -> None:
    """Fails at one recording where it encodes it, before or after it has done so."""
    if after:
        call.run_true()
    if call.reads(path):
        FAULTS[fault]()
    if not after:
        call.become_true()


@where_it_encodes
def full_disk_at(call: Call, path: str) -> None:
    if call.names(path):
        exit_code(call, 1, "[error] x: No space left on device")
    call.become_true()


def broken_but_for(call: Call, path: str) -> None:
    """Encodes one recording alone, and nothing else."""
    is_question = "-encoders" in call.words or (call.copies and not call.outputs)
    if is_question or (len(call.outputs) == 1 and call.names(path)):
        call.become_true()
    sys.exit(1)


def without_libopus(call: Call) -> None:
    if "-encoders" not in call.words:
        sys.exit(1)
    print(" A....D aac                  AAC (Advanced Audio Coding)")


def confined_to_other_folders(call: Call) -> None:
    """As a snap, which works as long as everything goes through pipes."""
    named = [word for word in call.words if word.startswith("file:")]
    if named:
        sys.exit(f"[error] {named[0]}: Permission denied")
    call.become_true()


# Hanging


def hang_at_everything(_: Call, hung: str) -> None:
    hang(hung)


@where_it_encodes
def hang_where_it_encodes(call: Call, hung: str, path: str = "") -> None:
    if call.reads(path):
        hang(hung)
    call.become_true()


@where_it_encodes
def stop_where_it_encodes(call: Call, hung: str) -> None:
    say_that_it_hangs(hung)
    os.kill(os.getpid(), signal.SIGSTOP)


@where_it_encodes
def deaf_and_talking(call: Call, hung: str) -> None:
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    say_that_it_hangs(hung)
    while True:
        say("x")
        time.sleep(0.05)


def hang_while_it_decodes_the_copy(call: Call, hung: str) -> None:
    if call.copies and not call.outputs:
        hang(hung)
    call.become_true()


# Several processes or recordings at once


def member(call: Call) -> str:
    """Returns which of the three processes this is, that work at one recording at once."""
    reads, writes = "pipe:0" in call.words, "pipe:1" in call.words
    if writes and "ogg" in call.words:
        return "encoder"
    if writes and not reads and "lavfi" not in call.words:
        return "decoder"
    return "listener" if reads and not writes else ""


@passes_trials
def piped(call: Call, sign: str, at: str = "", fault: str = "", hung: str = "") -> None:
    """Says that something is piped, and lets one of the three processes fail."""
    if "pipe:0" in call.words:
        touch(sign)
    if at and member(call) == at:
        if fault == "hang":
            hang(hung)
        elif fault == "quieter":
            call.words = [
                f"volume=-6dB,{word}" if word.startswith("aformat") else word for word in call.words
            ]
        elif fault == "half":
            call.words[-1:-1] = ["-t", "1.5"]
        else:
            FAULTS[fault]()
    call.become_true()


@passes_trials
def one_after_the_other(call: Call, then: str, **settings: Any) -> None:
    """Lets the three processes fail, so that one process encodes, and plays another stand-in."""
    if member(call):
        sys.exit(1)
    globals()[then](call, **settings)


def batched(call: Call, sign: str, then: str, **settings: Any) -> None:
    """Says that several recordings are encoded at once, and plays another stand-in."""
    if len(call.outputs) > 1:
        touch(sign)
    globals()[then](call, **settings)


# Somebody else is at the recording meanwhile


def grow(path: str) -> None:
    with open(path, "ab") as file:
        file.write(b"more")


def write_anew(path: str) -> None:
    with open(path, "rb") as file:
        data = file.read()
    with open(path, "wb") as file:
        file.write(data)


def replace_alike(path: str) -> None:
    """By a file of the same size and time."""
    status = os.stat(path)
    with open(f"{path}~", "wb") as file:
        file.write(b"x" * status.st_size)
    os.utime(f"{path}~", ns=(status.st_atime_ns, status.st_mtime_ns))
    os.rename(f"{path}~", path)


def link_elsewhere(path: str, elsewhere: str) -> None:
    os.rename(path, elsewhere)
    os.symlink(elsewhere, path)


@where_it_encodes
def change_once(call: Call, path: str, sign: str, deed: str, **settings: Any) -> None:
    """Encodes, and the first time does one of the deeds above to a recording."""
    code = call.run_true()
    if path in call.inputs and not os.path.exists(sign):
        touch(sign)
        globals()[deed](path, **settings)
    sys.exit(code)


@where_it_encodes
def take_away(call: Call, path: str, elsewhere: str) -> None:
    call.run_true()
    if os.path.exists(path):
        os.rename(path, elsewhere)


@where_it_encodes
def put_beside(call: Call, path: str) -> None:
    call.run_true()
    with open(path, "w", encoding="utf-8") as file:
        file.write("mine")


def touch_after_the_truth(call: Call, path: str) -> None:
    code = call.run_true()
    os.utime(path, (1, 1))
    sys.exit(code)


def backup_chmod_and_delete(call: Call, day: str, backups: str, gone: str) -> None:
    """Links a folder elsewhere, changes its modes, encodes, and deletes one recording."""
    subprocess.call(["cp", "-al", day, f"{backups}/backup-{os.getpid()}"])
    for name in os.listdir(day):
        if name.endswith(".webm"):
            os.chmod(f"{day}/{name}", 0o640)
    code = call.run_true()
    if os.path.exists(f"{day}/{gone}"):
        os.unlink(f"{day}/{gone}")
    sys.exit(code)


# Progress


def in_ten_parts(call: Call, encode_pause: float, proof_pause: float) -> None:
    """Its level files grow in ten even parts, with pauses between them, so that what progress says
    can be held against the time it takes. The trial of ffmpeg has none. Of a recording that is
    alone, the three processes fail, so that one after the other works."""
    is_trial = not any(word.startswith("file:") for word in call.words)
    is_piped = any(word.startswith("pipe:") for word in call.words)
    if is_piped and not is_trial:
        sys.exit(1)
    if not call.levels:
        call.become_true()
    written = [path for path in call.levels if call.before(f"file:{path}") != "-i"]
    aside = {f"file:{path}": f"file:{path}.whole" for path in written}
    call.words = [aside.get(word, word) for word in call.words]
    code = call.run_true()
    whole = {}
    for path in written:
        with open(f"{path}.whole", "rb") as file:
            whole[path] = file.read()
        os.unlink(f"{path}.whole")
    for part in range(10):
        for path, content in whole.items():
            begin, end = (len(content) * each // 10 for each in (part, part + 1))
            with open(path, "ab") as file:
                file.write(content[begin:end])
        time.sleep(encode_pause if call.outputs else proof_pause)
    sys.exit(code)
