"""The statistics over HTTP: two things to read, and nothing else to be had."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import shutil
import signal
import socket
import subprocess
import unittest
from concurrent.futures import ThreadPoolExecutor
from typing import Optional

import compression_service as service
from tests.base import LibraryCase


class Answer:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body


class Serve(LibraryCase):
    """A real server on a port of its own."""

    def setUp(self) -> None:
        super().setUp()
        self.add_bytes(b"x" * 1000, "d/a.webm")
        self.server = subprocess.Popen(
            self.command("serve", "--port", "0"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(self.end, signal.SIGKILL)
        assert self.server.stdout
        self.line = self.server.stdout.readline()
        self.port = int(self.line.split(":")[2].split("/")[0])

    def end(self, number: int) -> tuple[int, str, str]:
        if self.server.poll() is None:
            self.server.send_signal(number)
        out, err = (
            self.server.communicate(timeout=60)
            if self.server.stdout and not self.server.stdout.closed
            else ("", "")
        )
        return self.server.returncode, out, err

    def ask(self, path: str, method: str = "GET", host: Optional[str] = None) -> Answer:
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        ) as connection:
            connection.request(method, path, headers={"Host": host} if host is not None else {})
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())

    def test_two_things_can_be_read_and_nothing_else_by_no_other_way_and_it_ends_cleanly(
        self,
    ) -> None:
        self.assertTrue(self.line.startswith("Statistics at http://127.0.0.1:"), self.line)
        before = self.files()
        answer = self.ask("/api/storage-stats")
        self.assertEqual(
            (answer.status, answer.headers["Content-Type"]),
            (200, "application/json; charset=utf-8"),
        )
        both = [json.loads(answer.body), json.loads(self.run_cli("stats", "--json").out)]
        for stats in both:
            del stats["free_space"]
        self.assertEqual(*both)
        page = self.ask("/")
        self.assertEqual(page.status, 200)
        self.assertIn(b"<!doctype html>", page.body)
        self.assertEqual(page.headers["Refresh"], "60")
        self.assertIn("default-src 'none'", page.headers["Content-Security-Policy"])
        self.assertEqual(page.headers["X-Content-Type-Options"], "nosniff")
        head = self.ask("/", "HEAD")
        self.assertEqual(
            (head.status, head.headers["Content-Length"], head.body),
            (200, str(len(page.body)), b""),
        )
        for path in (
            "/d/a.webm",
            "/../config.json",
            "/api",
            "/api/storage-stats/",
            "/%2e%2e/",
            "/?x=1/../..",
        ):
            self.assertEqual(self.ask(path).status, 200 if path.startswith("/?") else 404, path)
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"):
            answer = self.ask("/", method)
            self.assertEqual(answer.status, 501, method)
        for host in (
            "evil.example",
            f"evil.example:{self.port}",
            "",
            "127.0.0.1.evil.example",
            "localhost@evil.example",
            "[::1",
            "1",
        ):
            self.assertEqual(self.ask("/", host=host).status, 403, host)
        for host in (
            "localhost",
            f"LOCALHOST:{self.port}",
            "127.0.0.1",
            f"[::1]:{self.port}",
            "192.168.1.7:80",
        ):
            self.assertEqual(self.ask("/", host=host).status, 200, host)
        with contextlib.closing(
            socket.create_connection(("127.0.0.1", self.port))
        ) as silent:  # holds up nobody
            silent.send(b"GET / HT")
            self.assertEqual(self.ask("/").status, 200)
            with contextlib.closing(socket.create_connection(("127.0.0.1", self.port))) as rude:
                rude.send(b"\xff\0 nonsense\r\n\r\n")
            ran = self.run_cli("serve", "--port", str(self.port))
            self.assertEqual((ran.code, ran.err.count("\n")), (1, 1), ran.err)
            self.assertIn("Address already in use", ran.err)
            code, out, err = self.end(signal.SIGTERM)
        self.assertEqual((code, out, err), (143, "", ""))
        self.assertEqual(self.files(), before)
        self.assertFalse((self.folder / "logs").exists())

    def test_what_cannot_be_told_is_a_503_and_said_in_a_sentence(self) -> None:
        shutil.rmtree(self.library)
        answer = self.ask("/api/storage-stats")
        self.assertEqual(answer.status, 503)
        self.assertIn(b"Is its disk mounted?", answer.body)

    def test_a_storm_of_reloads_is_answered(self) -> None:
        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(self.ask, ["/"] * 40))
        self.assertEqual({answer.status for answer in answers}, {200})

    def test_ctrl_c_is_its_normal_end(self) -> None:
        self.assertEqual(self.end(signal.SIGINT), (130, "", ""))


class Settings(LibraryCase):
    def test_what_cannot_be_listened_on_is_told_in_a_sentence(self) -> None:
        for words, code in (
            (["--host", "192.0.2.1"], 1),
            (["--host", ""], 2),
            (["--host", "http://x"], 1),
            (["--port", "65536"], 2),
            (["--port", "x"], 2),
        ):
            told = io.StringIO()
            with contextlib.redirect_stderr(told):
                self.assertEqual(
                    service.main(["serve", "-c", str(self.config), *words]), code, words
                )
            self.assertEqual(told.getvalue().count("\n"), 1, told.getvalue())


if __name__ == "__main__":
    unittest.main()
