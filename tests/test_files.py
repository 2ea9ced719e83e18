"""Files are whole or not there."""

import errno
import os
import stat
from pathlib import Path

import pytest

from regforge.files import StorageError, expanded, read_file, storage_error, write_atomically


def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder" / "file"
    write_atomically(path, b"old")

    def power_cut(_: int) -> None:
        raise OSError("power cut")

    monkeypatch.setattr("os.fsync", power_cut)
    with pytest.raises(StorageError, match="power cut"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_others_may_read_what_we_write(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", "text")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) & stat.S_IRGRP


@pytest.mark.parametrize(
    ("number", "says"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "cannot be written")]
)
def test_what_went_wrong_is_said_in_words(number: int, says: str) -> None:
    rust = ValueError(f"Error while serializing: I/O error: why (os error {int(number)})")
    for cause in (OSError(number, "why"), rust):
        error = storage_error(Path("there"), cause)
        assert says in str(error)
        assert "there" in str(error)
        assert error.hint


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["pipe", "/dev/zero", "/dev/tty", "folder", "a\0b", "large", "no"])
def test_what_is_no_ordinary_file_is_not_read(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "large").write_bytes(b"12345")
    with pytest.raises(OSError) as caught:  # noqa: PT011 (any; its words are what counts)
        read_file(tmp_path / name, 4)
    assert caught.value.strerror


def test_a_home_that_nobody_has() -> None:
    assert expanded("~nouser/x") == Path("~nouser/x")
    assert expanded("~") == Path.home()
