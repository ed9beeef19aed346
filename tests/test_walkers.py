"""What the walkers of containers leave behind: nothing."""

from __future__ import annotations

import tempfile
import unittest
from pathlib import Path

import compression_service as service
from tests.webm import element, header, opus_head


class TestRefusals(unittest.TestCase):
    def test_a_refused_file_is_not_held_in_memory(self) -> None:
        """An exception that is raised twice holds the frames of the first time, with their data."""
        lost = {0x1043A770: service.Reason.CHAPTERS, 0x1941A469: service.Reason.COVER}
        for identity, reason in lost.items():
            refusals = [self.refusal(element(identity, b"")) for _ in range(2)]
            self.assertEqual([each.reason for each in refusals], [reason, reason])
            self.assertIsNot(refusals[0], refusals[1])

    def refusal(self, extra: bytes) -> service.Refusal:
        with tempfile.NamedTemporaryFile() as file:
            Path(file.name).write_bytes(header(head=opus_head(), extra=extra))
            with self.assertRaises(service.Refusal) as caught:
                service.probe_file(file.name, service.Tools(service.Stop()))
        return caught.exception


if __name__ == "__main__":
    unittest.main()
