"""What check says of archived recordings: sizes, presence, and which are forgotten."""

from __future__ import annotations

import unittest

from tests.archives import SHORT, ShortCase


class Check(ShortCase):
    def archived(self) -> str:
        self.settled("d/a.webm", "d/b.webm")
        self.add_json("d/a.json", {"id": "A", "chunks": [{"file": "a.webm"}]})
        self.archive()
        self.assertEqual(self.run_cli("check").code, 0)
        return "d/a.webm"

    def wrong(self, *words: str) -> None:
        ran = self.run_cli("check")
        self.assertEqual(ran.code, 1, ran.out)
        for word in words:
            self.assertIn(word, ran.err)

    def test_a_file_of_another_size_is_named(self) -> None:
        path = self.cold / self.archived()
        path.write_bytes(SHORT[:-1])
        self.wrong("d/a.webm has 1485 bytes in the archive, 1486 are on record")

    def test_a_file_that_became_a_link_or_a_folder_is_not_there(self) -> None:
        path = self.cold / self.archived()
        path.rename(path.with_suffix(".moved"))
        path.symlink_to(path.with_suffix(".moved"))
        self.wrong("d/a is not in the archive any more")
        path.unlink()
        path.mkdir()
        self.wrong("d/a is not in the archive any more")

    def test_an_archive_that_is_not_mounted_is_named_and_none_of_its_files(self) -> None:
        self.archived()
        (self.folder / "cold").rename(self.folder / "away")
        for _ in range(2):
            ran = self.run_cli("check")
            self.assertEqual(ran.code, 1)
            self.assertIn("Is its disk mounted?", ran.err)
            self.assertNotIn("any more", ran.err)
            (self.library / "d/a.json").unlink(missing_ok=True)  # then no document names one

    def test_without_a_hash_on_record_no_file_is_called_another(self) -> None:
        self.archived()
        self.history().unlink()
        ran = self.run_cli("check", "--archive")
        self.assertEqual(ran.code, 0, ran.out + ran.err)

    def test_an_archived_recording_that_its_owner_deleted_is_forgotten(self) -> None:
        self.archived()
        (self.cold / "d/b.webm").unlink()
        self.assertEqual(self.run_cli("check").code, 0)
        (self.cold / "d/a.webm").unlink()
        self.wrong("d/a is not in the archive any more")
        (self.library / "d/a.json").unlink()
        self.assertEqual(self.run_cli("check").code, 0)

    def test_one_that_the_index_has_still_is_not_forgotten(self) -> None:
        self.archived()
        self.add_json("index.json", {"recordings": [{"id": "A", "size": 0, "archived": True}]})
        (self.library / "d/a.json").unlink()
        (self.cold / "d/a.webm").unlink()
        self.wrong("d/a is not in the archive any more")


if __name__ == "__main__":
    unittest.main()
