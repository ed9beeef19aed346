"""The runner of the tests: whatever goes wrong in a module is counted, shown, and ends in time."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

from tests.base import TESTS, Ran

GOOD = "def test_good(self): pass"


class RunnerCase(unittest.TestCase):
    """A folder with a runner and test modules of its own."""

    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="runner-test-"))
        self.addCleanup(shutil.rmtree, self.folder)
        (self.folder / "tests").mkdir()
        (self.folder / "tests/__init__.py").touch()
        shutil.copy(TESTS / "__main__.py", self.folder / "tests")

    def module(self, name: str, *body: str, before: str = "") -> None:
        """Writes a module with one class, whose body consists of these lines."""
        lines = "".join(f"    {line}\n" for each in body for line in each.splitlines())
        text = f"import os, signal, sys, time, unittest\n{before}\n"
        if lines:
            text += f"class A(unittest.TestCase):\n{lines}"
        (self.folder / f"tests/test_{name}.py").write_text(text)

    def start(self, *words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests", *words],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def run_tests(self, *words: str) -> Ran:
        process = self.start(*words)
        out, err = process.communicate(timeout=120)
        return Ran(process.returncode, out, err)

    def assert_ends(self, ran: Ran, code: int, last: str) -> None:
        self.assertEqual((ran.code, ran.out.splitlines()[-1]), (code, last), ran.out + ran.err)


class Counts(RunnerCase):
    def test_modules_that_pass_take_a_line_each_and_the_last_line_counts(self) -> None:
        self.module("one", GOOD, "def test_loud(self): print('noise')")
        self.module("two", GOOD, "@unittest.skip('x')", "def test_skipped(self): pass")
        self.module("three", "@unittest.expectedFailure", "def test_known(self): self.fail()")
        ran = self.run_tests()
        self.assert_ends(ran, 0, "4 passed, 0 failed, 1 skipped")
        for name in ("one", "two", "three"):
            self.assertEqual(len(re.findall(rf"(?m)^test_{name} ", ran.out)), 1, ran.out)
        self.assertNotIn("noise", ran.out)

    def test_one_that_fails_shows_its_whole_output_and_is_named_again_at_the_end(self) -> None:
        self.module("bad", "def test_bad(self):\n    print('noise')\n    self.assertEqual(1, 2)")
        self.module("good", GOOD)
        ran = self.run_tests()
        self.assert_ends(ran, 1, "1 passed, 1 failed")
        for words in ("noise", "AssertionError: 1 != 2"):
            self.assertIn(words, ran.out)
        self.assertIn("tests.test_bad.A.test_bad", ran.out.splitlines()[-2])

    BAD = {
        "import": ("", "import no_such_module", "0 passed, 1 failed"),
        "syntax": ("", "1 +", "0 passed, 1 failed"),
        "empty": ("", "", "0 passed, 1 failed"),
        "set_up": ("def setUp(self): 1 / 0\ndef test_a(self): pass", "", "0 passed, 1 failed"),
        "tear_down": ("def tearDown(self): 1 / 0\ndef test_a(self): pass", "", "0 passed, 1 failed"),
        "sub_test": ("def test_a(self):\n for n in 1, 2:\n  with self.subTest(n): self.fail()", "",
                     "0 passed, 1 failed"),
        "sub_test_and_skip": ("def test_a(self):\n with self.subTest(1): self.fail()\n self.skipTest('x')", "",
                              "0 passed, 1 failed"),
        "unexpected": ("@unittest.expectedFailure\ndef test_a(self): pass", "", "0 passed, 1 failed"),
        "exit": ("def test_a(self): pass\ndef test_b(self): sys.exit(0)", "", "1 passed, 1 failed"),
        "exit_at_once": ("def test_a(self): pass\ndef test_b(self): os._exit(0)\ndef test_c(self): pass", "",
                         "1 passed, 2 failed"),
        "killed": ("def test_a(self): os.kill(os.getpid(), 9)", "", "0 passed, 1 failed"),
        "crash_at_the_end": ("def test_a(self): pass", "import atexit; atexit.register(os._exit, 3)",
                             "1 passed, 1 failed"),
        "set_up_class": ("@classmethod\ndef setUpClass(cls): 1 / 0\ndef test_a(self): pass", "",
                         "0 passed, 2 failed"),
        "tear_down_class": ("@classmethod\ndef tearDownClass(cls): 1 / 0\ndef test_a(self): pass", "",
                            "1 passed, 1 failed"),
        "set_up_module": ("def test_a(self): pass", "def setUpModule(): 1 / 0", "0 passed, 2 failed"),
    }  # fmt: skip

    def test_nothing_that_goes_wrong_passes_or_vanishes(self) -> None:
        for name, (body, before, _) in self.BAD.items():
            self.module(name, body, before=before)
        self.module("good", GOOD)
        ran = self.run_tests("-j", "4")
        told = dict(re.findall(r"(?m)^test_(\w+) .* CPU  (\d.*)$", ran.out))
        expected = {name: counts for name, (_, _, counts) in self.BAD.items()}
        self.assertEqual(told, {**expected, "good": "1 passed, 0 failed"}, ran.out)
        counts = [re.findall(r"\d+", each) for each in told.values()]
        passed, failed = (sum(map(int, column)) for column in zip(*counts))
        self.assert_ends(ran, 1, f"{passed} passed, {failed} failed")

    def test_a_class_that_is_skipped_while_it_begins_counts_each_of_its_tests(self) -> None:
        skips = "@classmethod\ndef setUpClass(cls): raise unittest.SkipTest('x')"
        self.module("a", skips, "def test_a(self): pass", "def test_b(self): pass")
        self.module("b", GOOD)
        self.assert_ends(self.run_tests(), 0, "1 passed, 0 failed, 2 skipped")


class Selection(RunnerCase):
    def setUp(self) -> None:
        super().setUp()
        self.module("one", GOOD, "def test_other(self): self.fail()")
        self.module("two", "def test_third(self): pass")

    def test_words_and_modules_select(self) -> None:
        self.assert_ends(self.run_tests("-k", "good"), 0, "1 passed, 0 failed")
        self.assert_ends(self.run_tests("-k", "good", "-k", "third"), 0, "2 passed, 0 failed")
        for name in ("two", "test_two", "tests.test_two", "tests/test_two.py"):
            self.assert_ends(self.run_tests(name), 0, "1 passed, 0 failed")
        self.assert_ends(self.run_tests("one", "-k", "third"), 2, "0 passed, 0 failed")

    def test_where_nothing_runs_the_exit_code_is_2(self) -> None:
        self.assert_ends(self.run_tests("-k", "nowhere"), 2, "0 passed, 0 failed")
        ran = self.run_tests("three")
        self.assertEqual(ran.code, 2)
        self.assertIn("There is no module test_three", ran.err)

    def test_the_slowest_module_of_the_last_run_begins_first(self) -> None:
        self.module("last", "def test_slow(self): time.sleep(0.6)")
        self.run_tests("-j", "3")
        os.truncate(self.folder / "tests/test_one.py", 0)
        began = re.findall(r"(?m)^(test_\w+) ", self.run_tests("-j", "1").out)
        self.assertEqual(began[0], "test_last")


class Ends(RunnerCase):
    """A module that hangs holds nothing up, and leaves nothing behind."""

    def hang(self) -> None:
        pid, mark = self.folder / "pid", self.folder / "cleaned"
        self.module(
            "hangs",
            "def test_a(self):",
            "    import pathlib, subprocess",
            f"    self.addCleanup(pathlib.Path({str(mark)!r}).touch)",
            "    child = subprocess.Popen(['sleep', '600'], start_new_session=True)",
            f"    open({str(pid)!r} + '~', 'w').write(str(child.pid))",
            f"    os.rename({str(pid)!r} + '~', {str(pid)!r})",
            "    time.sleep(600)",
        )

    def assert_child_ended(self) -> None:
        pid = int((self.folder / "pid").read_text())
        command = ["ps", "-p", str(pid), "-o", "stat="]
        deadline = time.monotonic() + 60
        while subprocess.run(command, capture_output=True, check=False).stdout[:1] not in (
            b"",
            b"Z",
        ):
            self.assertLess(time.monotonic(), deadline, "its child still runs")
            time.sleep(0.02)
        self.assertTrue((self.folder / "cleaned").exists(), "it could not clean up")

    def test_one_that_hangs_fails_after_its_deadline_and_shows_where_it_hung(self) -> None:
        self.hang()
        self.module("good", GOOD)
        ran = self.run_tests("--deadline", "1", "-j", "2")
        self.assertEqual(ran.code, 1)
        self.assertRegex(ran.out.splitlines()[-1], r"^1 passed, \d failed$")
        self.assertIn("had not ended after 1 s", ran.out)
        self.assertIn("in test_a", ran.out)
        self.assert_child_ended()

    def test_ctrl_c_and_sigterm_end_all_that_runs(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            with self.subTest(number):
                self.hang()
                for name in ("pid", "cleaned"):
                    (self.folder / name).unlink(missing_ok=True)
                process = self.start()
                while not (self.folder / "pid").exists():
                    self.assertIsNone(process.poll())
                    time.sleep(0.02)
                process.send_signal(number)
                _, err = process.communicate(timeout=60)
                self.assertEqual((process.returncode, err), (130, "\nInterrupted.\n"))
                self.assert_child_ended()
