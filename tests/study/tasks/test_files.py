import gzip
import os

import pytest

from hushgrad.errors import TaskDataError
from hushgrad.study.tasks.files import first_existing, read_bytes


def test_a_compressed_file_gives_its_content(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"content"))
    (tmp_path / "a").write_bytes(b"content")
    assert read_bytes(tmp_path / "a.gz") == read_bytes(tmp_path / "a") == b"content"


def test_a_small_archive_cannot_fill_the_memory(tmp_path):
    bomb = tmp_path / "bomb.gz"
    bomb.write_bytes(gzip.compress(bytes(50 << 20)))
    assert bomb.stat().st_size < 1 << 20
    with pytest.raises(TaskDataError, match="at most 1048576 bytes"):
        read_bytes(bomb, limit=1 << 20)


@pytest.mark.parametrize(
    "damage", [lambda packed: packed[:-9], lambda packed: b"not gzip", lambda packed: packed[:10] + b"\xff" * 20]
)
def test_a_damaged_archive_is_refused(tmp_path, damage):
    path = tmp_path / "damaged.gz"
    path.write_bytes(damage(gzip.compress(os.urandom(1000))))
    with pytest.raises(TaskDataError, match="not a complete gzip file"):
        read_bytes(path)


def test_what_is_not_a_plain_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("missing", "pipe", ""):
        with pytest.raises(TaskDataError, match="does not exist or is not a plain file"):
            read_bytes(tmp_path / name)


def test_a_file_name_reaches_the_message_without_control_characters(tmp_path):
    with pytest.raises(TaskDataError) as caught:
        read_bytes(tmp_path / "\x1b]0;evil\x07.csv")
    assert "\x1b" not in str(caught.value)
    assert "evil" in str(caught.value)


def test_the_first_name_that_exists_is_found_compressed_or_not(tmp_path):
    (tmp_path / "b.gz").touch()
    assert first_existing(tmp_path, ("a", "b")) == tmp_path / "b.gz"
    assert first_existing(tmp_path, ("c",)) is None
