"""Do the copies play? In Chromium, served as the recorder serves them: by Flask."""

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

from .base import PROJECT, LibraryCase, decoded_seconds

PYTHON_WITH_FLASK = os.environ.get("COMPRESSION_TEST_FLASK", "")
QUIET: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or ""

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
  setTimeout(() => fail('no ' + name), 15000);
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
  for (const path of PATHS) {
    try { heard[path] = await hear(path); } catch (error) { heard[path] = {error: String(error)}; }
  }
  await fetch('/answer', {method: 'POST', body: JSON.stringify(heard)});
})();
</script>"""


@unittest.skipUnless(PYTHON_WITH_FLASK and CHROMIUM, "needs Chromium, and a Python with Flask")
class Players(LibraryCase):
    def test_copies_in_both_formats_play_seek_and_last_as_long_as_their_originals(self) -> None:
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
        words = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        words += [f"--user-data-dir={self.folder}/profile", "--virtual-time-budget=5000"]
        with subprocess.Popen([PYTHON_WITH_FLASK, server], cwd=self.folder, **QUIET) as flask:
            self.addCleanup(flask.kill)
            time.sleep(1.5)
            done = subprocess.run(
                [*words, f"http://127.0.0.1:{port}/"], capture_output=True, text=True, check=False
            )
            flask.kill()
        self.assertRegex(done.stdout, r"0\.0 MB, 0\.0 MB saved", done)

    def play(self, paths: list[str]) -> Any:
        """What Chromium says of each."""
        page, answer, server = (self.folder / name for name in ("page", "answer", "server.py"))
        page.write_text(PAGE.replace("PATHS", json.dumps(paths)))
        server.write_text(SERVER)
        port = 20_000 + os.getpid() % 20_000
        profile = tempfile.mkdtemp(dir=self.folder)
        words = [PYTHON_WITH_FLASK, server, self.library, page, answer, port]
        browser = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu"]
        browser += ["--autoplay-policy=no-user-gesture-required", f"--user-data-dir={profile}"]
        with subprocess.Popen(list(map(str, words)), **QUIET) as flask:
            self.addCleanup(flask.kill)
            time.sleep(1.5)
            address = f"http://127.0.0.1:{port}/"
            with subprocess.Popen([*browser, address], **QUIET) as chromium:
                deadline = time.monotonic() + 90
                while not (answer.exists() and answer.stat().st_size):
                    self.assertLess(time.monotonic(), deadline, "the page did not answer")
                    time.sleep(0.1)
                chromium.terminate()
                chromium.wait()
            flask.kill()
        return json.loads(answer.read_text())


if __name__ == "__main__":
    unittest.main()
