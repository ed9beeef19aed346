"""The cron entry under Debian's real cron daemon: python3 -m unittest tests.under_cron, as root.

Not part of the suite: cron waits for the next whole minute. It replaces root's crontab for that time.
"""

from __future__ import annotations

import subprocess
import time

from tests import test_schedule


class UnderCron(test_schedule.Cron):
    def test_its_line_runs_under_sh_as_cron_hands_it_over(self) -> None:
        """Here by cron itself."""
        before = subprocess.run(["crontab", "-l"], capture_output=True, check=False)
        restore = ["crontab", "-"] if before.returncode == 0 else ["crontab", "-r"]
        self.addCleanup(subprocess.run, restore, input=before.stdout, check=False)
        text = self.line().replace("0 2 * * *", "* * * * *") + "\n"
        subprocess.run(["crontab", "-"], input=text.encode(), check=True)
        daemon = subprocess.Popen(["cron", "-f"], stdin=subprocess.DEVNULL, cwd="/")
        self.addCleanup(daemon.wait)
        self.addCleanup(daemon.kill)
        until = time.monotonic() + 75
        while (self.library / "a.webm").exists() and time.monotonic() < until:
            time.sleep(0.5)
        time.sleep(1)
        self.assert_has_run()


del test_schedule  # whose own tests are not to run here
