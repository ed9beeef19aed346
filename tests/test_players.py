"""Do the copies play? In Chromium and Firefox, served as the recorder serves them: by Flask."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import textwrap
import time
import unittest
from typing import Any

from .base import PROJECT, LibraryCase, answers, decoded_seconds

PYTHON_WITH_FLASK = os.environ.get("COMPRESSION_TEST_FLASK", "")
QUIET: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or ""
HEADLESS = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu"]
FIREFOX = shutil.which("firefox-esr") or shutil.which("firefox") or ""
# It has no flag that lets a page play without a click.
FIREFOX_SETTINGS = """
user_pref("media.autoplay.default", 0);
user_pref("media.autoplay.blocking_policy", 0);
user_pref("datareporting.policy.dataSubmissionEnabled", false);
"""

SERVER = """
import mimetypes, sys
from flask import Flask, request, send_from_directory
mimetypes.add_type("audio/ogg", ".opus")  # as the README says: Python before 3.10 does not know it
folder, page, answer = sys.argv[1:4]
app = Flask(__name__)

@app.get("/")
def show():
    return open(page).read()

@app.get("/recordings/<path:name>")
def recording(name):
    return send_from_directory(folder, name)

@app.post("/answer")
def heard():
    open(answer, "w").write(request.get_data(as_text=True))
    return ""

app.run(port=int(sys.argv[4]))
"""
PAGE = """<!doctype html><body><script>
const happens = (audio, name) => new Promise((done, fail) => {
  audio.addEventListener(name, done, {once: true});
  audio.addEventListener('error', () => fail(audio.error.message), {once: true});
  setTimeout(() => fail('no ' + name), 120000);
});
async function hear(path) {
  const audio = new Audio('/recordings/' + path);
  audio.muted = true;
  await happens(audio, 'loadedmetadata');
  const half = audio.duration / 2, seeked = happens(audio, 'seeked');
  audio.currentTime = half;
  await seeked;
  const at = audio.currentTime, ended = happens(audio, 'ended');
  await audio.play();
  await ended;
  return {duration: audio.duration, at: at, end: audio.currentTime};
}
(async () => {
  const heard = {};
  await Promise.all(PATHS.map(async path => {
    try { heard[path] = await hear(path); } catch (error) { heard[path] = {error: String(error)}; }
  }));
  await fetch('/answer', {method: 'POST', body: JSON.stringify(heard)});
})();
</script>"""


class PlayerCase(LibraryCase):
    def assert_copies_play(self) -> None:
        """Copies in both formats play, seek and last as long as their originals."""
        lasting = {}
        for name in ("chunk_0", "ff_chunk_1", "ch_ctx_suspend_4_3_4s"):
            for form in ("opus", "m4a"):
                source = self.add(name, f"{form}/{name}.webm")
                lasting[f"{form}/{name}.{form}"] = decoded_seconds(source)
                if name.startswith("ch_ctx"):  # 3 s in which its tab was suspended
                    lasting[f"{form}/{name}.{form}"] += 3.0
        for form in ("opus", "m4a"):
            ran = self.run_cli("run", "--only", form, "--format", form, "--bitrate", "64k")
            self.assertEqual(ran.code, 0, ran)
        heard = self.play(list(lasting))
        for path, seconds in lasting.items():
            with self.subTest(path):
                self.assertNotIn("error", heard[path])
                self.assertAlmostEqual(heard[path]["duration"], seconds, delta=0.1)
                self.assertAlmostEqual(heard[path]["at"], seconds / 2, delta=0.1)
                self.assertAlmostEqual(heard[path]["end"], seconds, delta=0.1)

    def browser(self, profile: str) -> list[str]:
        """The words that start one with an empty profile; an address is to follow."""
        raise NotImplementedError

    def play(self, paths: list[str]) -> Any:
        """What the browser says of each."""
        page, answer, server = (self.folder / name for name in ("page", "answer", "server.py"))
        page.write_text(PAGE.replace("PATHS", json.dumps(paths)))
        server.write_text(SERVER)
        port = 20_000 + os.getpid() % 20_000
        profile = tempfile.mkdtemp(dir=self.folder)
        serve = [PYTHON_WITH_FLASK, server, self.library, page, answer, port]
        with subprocess.Popen(list(map(str, serve)), **QUIET) as flask:
            self.addCleanup(flask.kill)
            self.assertTrue(answers(port, 120), "the server does not answer")
            address = f"http://127.0.0.1:{port}/"
            environment = {**os.environ, "HOME": profile}
            words = [*self.browser(profile), address]
            with subprocess.Popen(words, env=environment, **QUIET) as browser:
                deadline = time.monotonic() + 300
                while not (answer.exists() and answer.stat().st_size):
                    self.assertLess(time.monotonic(), deadline, "the page did not answer")
                    time.sleep(0.1)
                browser.terminate()
                browser.wait()
            flask.kill()
        return json.loads(answer.read_text())


@unittest.skipUnless(PYTHON_WITH_FLASK and CHROMIUM, "needs Chromium, and a Python with Flask")
class Chromium(PlayerCase):
    def browser(self, profile: str) -> list[str]:
        autoplay = "--autoplay-policy=no-user-gesture-required"
        return [*HEADLESS, autoplay, f"--user-data-dir={profile}"]

    def test_copies_play(self) -> None:
        self.assert_copies_play()

    def test_the_readme_s_lines_show_the_statistics_in_the_recorders_own_page(self) -> None:
        self.add("chunk_0", "a.webm")
        self.assertEqual(self.run_cli().code, 0)
        readme = (PROJECT / "README.md").read_text(encoding="utf-8")
        ours = re.findall(r"(?ms)^    from compression_service .*?recordings\"\)$", readme)[0]
        page = re.findall(r"(?ms)^    <p id=\"storage\">.*?</script>$", readme)[0]
        server, port = self.folder / "server.py", 20_001 + os.getpid() % 20_000
        server.write_text(
            f"import flask\napp = flask.Flask(__name__)\n{textwrap.dedent(ours)}\n"
            f"app.get('/', endpoint='page')(lambda: {textwrap.dedent(page)!r})\napp.run(port={port})\n"
        )
        for name in ("compression_service.py", "compression_config.json"):
            shutil.copyfile(PROJECT / name, self.folder / name)
        words = [*HEADLESS, "--dump-dom", f"--user-data-dir={self.folder}/profile"]
        words += ["--virtual-time-budget=5000"]
        with subprocess.Popen([PYTHON_WITH_FLASK, server], cwd=self.folder, **QUIET) as flask:
            self.addCleanup(flask.kill)
            self.assertTrue(answers(port, 120), "the server does not answer")
            done = subprocess.run(
                [*words, f"http://127.0.0.1:{port}/"], capture_output=True, text=True, check=False
            )
            flask.kill()
        self.assertRegex(done.stdout, r"0\.0 MB, 0\.0 MB saved", done)


@unittest.skipUnless(PYTHON_WITH_FLASK and FIREFOX, "needs Firefox, and a Python with Flask")
class Firefox(PlayerCase):
    def browser(self, profile: str) -> list[str]:
        with open(f"{profile}/user.js", "w", encoding="ascii") as file:
            file.write(FIREFOX_SETTINGS)
        return [FIREFOX, "--headless", "--no-remote", "--profile", profile]

    def test_copies_play(self) -> None:
        self.assert_copies_play()


if __name__ == "__main__":
    unittest.main()
