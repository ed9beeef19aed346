"""What `schedule` prints is really run, in the environment that each scheduler gives: next to nothing, in the root folder."""

from __future__ import annotations

import os
import plistlib
import re
import shutil
import subprocess
import sys
import textwrap
import unittest

from tests.base import FFMPEG, SCRIPT, LibraryCase, Ran

# A folder that every scheduler has a quarrel with: spaces, quotes, percent signs, dollars, a tilde, backslashes, other scripts.
AWKWARD = 'my "100 %n" it\'s $HOME & ü世界 a--b; #~\\x'


class ScheduleCase(LibraryCase):
    def setUp(self) -> None:
        super().setUp()
        self.place = self.folder / AWKWARD
        self.library = self.place / "recordings"
        self.library.mkdir(parents=True)
        self.config = self.place / "config.json"
        self.configure()
        self.script = self.place / "compression_service.py"
        shutil.copy(SCRIPT, self.script)
        self.add("chunk_0", "a.webm")

    def entry(self, scheduler: str, *arguments: str) -> str:
        words = [
            sys.executable,
            str(self.script),
            "schedule",
            scheduler,
            "-c",
            str(self.config),
            *arguments,
        ]
        ran = subprocess.run(words, capture_output=True, check=True, cwd="/")
        self.assertEqual(ran.stderr, b"")
        return ran.stdout.decode()

    def bare(self, *words: str, home: str = "/", **env: str) -> None:
        """Run words as a scheduler does, and say how they ended."""
        done = subprocess.run(
            words, env={"HOME": home, **env}, cwd="/", capture_output=True, check=False
        )
        self.assertEqual((done.returncode, done.stdout + done.stderr), (0, b""))

    def assert_has_run(self) -> None:
        self.assert_compressed("a.webm")
        self.assertIn("1 compressed", (self.place / "logs" / "compression.log").read_text())


class Cron(ScheduleCase):
    def line(self) -> str:
        comment, line = self.entry("cron").splitlines()
        self.assertRegex(comment, "^# Install: .*crontab -e.* Remove: ")
        self.assertTrue(line.startswith("0 2 * * * "))
        return line

    def test_its_line_runs_under_sh_as_cron_hands_it_over(self) -> None:
        command = self.line().split(" ", 5)[5]
        self.assertNotRegex(command, r"(?<!\\)%")  # cron would cut it there
        self.bare(
            "/bin/sh",
            "-c",
            command.replace("\\%", "%"),
            PATH="/usr/bin:/bin",
            SHELL="/bin/sh",
            LOGNAME="x",
        )
        self.assert_has_run()


class Launchd(ScheduleCase):
    def test_its_property_list_is_valid_and_what_it_holds_runs(self) -> None:
        text = self.entry("launchd")
        self.assertRegex(
            text,
            "(?s)<!-- Install: .*LaunchAgents.*launchctl bootstrap gui/.*Remove: launchctl bootout gui/",
        )
        job = plistlib.loads(text.encode())
        self.assertEqual(
            (job["ProcessType"], job["StartCalendarInterval"]),
            ("Background", {"Hour": 2, "Minute": 0}),
        )
        self.assertNotIn("StandardErrorPath", job, "a log that grows without end")
        self.bare(*job["ProgramArguments"])
        self.assert_has_run()


class Systemd(ScheduleCase):
    def setUp(self) -> None:
        super().setUp()
        systemctl = self.folder / "systemctl"
        systemctl.write_text("#!/bin/sh\n")
        systemctl.chmod(0o755)
        script = self.entry("systemd")
        self.assertRegex(script, "^# Install: .* Remove: .*disable --now")
        self.bare(
            "/bin/sh", "-c", script, home=str(self.folder), PATH=f"{self.folder}:/usr/bin:/bin"
        )
        self.units = sorted((self.folder / ".config/systemd/user").iterdir())

    def words(self, service: str) -> list[str]:
        """The words of ExecStart, as systemd.service(5) and systemd.syntax(7) say."""
        line = re.findall(r"^ExecStart=(.*)$", service, re.MULTILINE)[0]
        plain = [
            re.sub(r"\\(.)", r"\1", word[1:-1] if word[0] == '"' else word)
            for word in re.findall(r'"(?:\\.|[^"\\])*"|\S+', line)
        ]
        for word in plain:
            self.assertNotRegex(word.replace("%%", "").replace("$$", ""), "[%$]")
        return [word.replace("%%", "%").replace("$$", "$") for word in plain]

    def test_its_service_runs_and_its_timer_catches_up(self) -> None:
        service, timer = (path.read_text() for path in self.units)
        self.assertIn("Persistent=true", timer)
        self.assertIn("Nice=10", service)
        self.bare(*self.words(service))
        self.assert_has_run()

    @unittest.skipUnless(shutil.which("systemd-analyze"), "no systemd here")
    def test_systemd_itself_finds_nothing_wrong(self) -> None:
        environment = {**os.environ, "XDG_RUNTIME_DIR": str(self.folder)}
        words = ["systemd-analyze", "verify", "--user", *map(str, self.units)]
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
        self.assertNotIn("compression-service", done.stderr)
        self.assertEqual(done.returncode, 0, done.stderr)


class Entries(ScheduleCase):
    def test_the_path_finds_this_ffmpeg_and_only_another_library_is_named(self) -> None:
        job = plistlib.loads(self.entry("launchd").encode())
        paths = re.findall("PATH=(.*)", job["ProgramArguments"][1])[0].split(":")
        self.assertEqual(paths[0], os.path.dirname(FFMPEG))
        self.assertEqual(job["ProgramArguments"][-2:], ["-c", str(self.config)])
        other = plistlib.loads(self.entry("launchd", "--recordings", "/mnt/x").encode())
        self.assertEqual(other["ProgramArguments"][-2:], ["--recordings", "/mnt/x"])

    def refusal(self, *arguments: str) -> Ran:
        ran = self.run_cli("schedule", *arguments)
        self.assertEqual((ran.code, ran.out), (2, ""), ran.err)
        return ran

    def test_without_a_scheduler_or_with_a_wrong_one_it_says_which_there_are(self) -> None:
        for arguments in ((), ("corn",)):
            for name in ("cron", "launchd", "systemd"):
                self.assertIn(name, self.refusal(*arguments).err)

    def test_a_path_that_no_scheduler_takes_is_refused(self) -> None:
        self.assertIn("Rename", self.refusal("cron", "--recordings", "/a\nb").err)


class AsTheReadmeShowsThem(ScheduleCase):
    """The entries to edit by hand."""

    def block(self, text: str) -> str:
        """The indented lines of README.md around a text, without their indentation."""
        readme = SCRIPT.with_name("README.md").read_text(encoding="utf-8")
        blocks = [
            textwrap.dedent(each) for each in re.findall(r"(?:^    .*\n)+", readme, re.MULTILINE)
        ]
        return next(each for each in blocks if text in each)

    def run_with(self, words: list[str]) -> None:
        """With this machine's paths."""
        program = next(
            at for at, word in enumerate(words) if word.endswith("compression_service.py")
        )
        self.bare(sys.executable, str(self.script), *words[program + 1 :], "-c", str(self.config))
        self.assert_has_run()

    def test_the_line_for_cron(self) -> None:
        self.run_with(self.block("0 2 * * *").split()[5:])

    def test_the_property_list_for_launchd(self) -> None:
        job = plistlib.loads(self.block("<plist").encode())
        self.assertEqual(job["StartCalendarInterval"], {"Hour": 2, "Minute": 0})
        self.run_with(["python3", "compression_service.py", "run", *job["ProgramArguments"][2:]])
