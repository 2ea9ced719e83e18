"""Shards are whole or not there, and nothing damaged or foreign is used."""

import errno
import hashlib
import io
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from made_rows import DIGEST, SLOTS, make_image, make_jobs, make_row, make_rows
from PIL import Image

from regforge.dataset.store import Rejection, RowWriter, Store, StoreError, is_made_from, thumbnail
from regforge.files import StorageError
from regforge.journal import Journal, read
from regforge.records import image_id, image_seed


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "shards", SLOTS, DIGEST)


def again(store: Store) -> Store:
    """The store as the next process sees it."""
    return Store(store.folder, store.slots, store.recipe_digest)


def rejection(index: int, **changes) -> Rejection:
    made = Rejection(
        id=image_id(DIGEST, index),
        index=index,
        text=make_row(index).text,
        reasons=("black", "looks like image 3f2a9c01b7de-000041 (distance 3)"),
        attempts=3,
        thumbnail=thumbnail(make_image(index)),
    )
    return replace(made, **changes)


def test_a_shard_gives_back_what_was_written_in_the_order_of_the_index(store: Store) -> None:
    rows, refused = make_rows(2, 0, 5), [rejection(4), rejection(1, thumbnail=None)]
    store.write(0, rows, refused)
    assert again(store).shards() == [0]
    assert again(store).rows(0) == make_rows(0, 2, 5)
    assert again(store).rejected(0) == [refused[1], refused[0]]
    assert store.rows(0, images=False) == [replace(row, image=b"") for row in make_rows(0, 2, 5)]
    store.write(1, [], [rejection(130)])  # all of its images were refused: it is finished
    assert again(store).shards() == [0, 1]
    assert again(store).rows(1) == []


def test_shards_come_in_order_and_rows_one_after_the_other(store: Store) -> None:
    for number, index in [(2, 300), (0, 7), (11, 1500)]:
        store.write(number, make_rows(index), [rejection(index + 1)])
    assert again(store).shards() == [0, 2, 11]
    assert [row.index for row in again(store).iter_rows()] == [7, 300, 1500]
    assert [each.index for each in again(store).iter_rejected()] == [8, 301, 1501]
    assert again(store).count() == 3


def test_the_same_images_give_the_same_bytes(tmp_path: Path) -> None:
    digests = set()
    for name, rows in [("a", make_rows(0, 1, 2)), ("b", make_rows(2, 1, 0))]:
        store = Store(tmp_path / name, SLOTS, DIGEST)
        store.write(0, rows, [rejection(3)])
        digests.add(hashlib.sha256((tmp_path / name / "00000.parquet").read_bytes()).hexdigest())
    assert len(digests) == 1


def test_a_store_never_written_is_empty_and_refuses_images_of_others(store: Store) -> None:
    assert store.shards() == []
    assert store.count() == 0
    assert not store.folder.exists()
    with pytest.raises(StoreError, match="cannot be read"):
        store.rows(0)
    with pytest.raises(ValueError, match="another recipe"):
        store.write(0, [make_row(0, recipe_digest="0" * 64)], [])


def test_an_image_of_a_later_attempt_counts_and_of_another_seed_caption_or_size_does_not() -> None:
    (job,) = make_jobs(1)
    assert is_made_from(make_row(0), job)
    assert is_made_from(make_row(0, seed=image_seed(DIGEST, 0, 2)), job)
    assert not is_made_from(make_row(0, seed=5), job)
    assert is_made_from(make_row(0, seed=5), replace(job, seed=5))
    for changes in ({"text": "a photo of a new caption"}, {"width": 48}, {"height": 48}):
        assert not is_made_from(make_row(0), replace(job, prompt=replace(job.prompt, **changes)))


def flip_a_bit_in_an_image(path: Path) -> None:
    content = bytearray(path.read_bytes())
    image = make_row(1).image
    content[content.index(image) + len(image) // 2] ^= 1
    path.write_bytes(content)


def replace_by_another_parquet(path: Path) -> None:
    with path.open("wb") as stream:
        writer = RowWriter(stream, SLOTS)
        writer.write(make_rows(0))
        writer.close()


def take_that_of_another_number(path: Path) -> None:
    store = Store(path.parent, SLOTS, DIGEST)
    store.write(5, make_rows(5 * 128), [])
    (path.parent / "00005.parquet").replace(path)


SPOILT: dict[str, Callable[[Path], object]] = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "a bit of an image flipped": flip_a_bit_in_an_image,
    "another Parquet file": replace_by_another_parquet,
    "of another recipe": lambda path: Store(path.parent, SLOTS, "f" * 64).write(0, [], []),
    "of other slots": lambda path: Store(path.parent, ["s"], DIGEST).write(0, make_rows(0), []),
    "of another number": take_that_of_another_number,
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_bad_shard_is_set_aside_and_said_so(store: Store, tmp_path: Path, how: str) -> None:
    store.write(0, make_rows(0, 1, 2), [])
    store.write(1, make_rows(128), [])
    path = store.folder / "00000.parquet"
    SPOILT[how](path)
    content = path.read_bytes()

    fresh = Store(store.folder, SLOTS, DIGEST, Journal(tmp_path))
    assert fresh.shards() == [1]
    assert len(fresh.set_aside) == 1
    assert "00000.parquet" in fresh.set_aside[0]
    assert (store.folder / "set-aside" / "00000-0.parquet").read_bytes() == content
    assert [entry["stage"] for entry in read(tmp_path / "ledger.jsonl")] == ["dataset"]

    fresh.write(0, make_rows(0, 1, 2), [])
    assert again(store).shards() == [0, 1]


def test_two_bad_shards_of_one_number_are_both_kept(store: Store) -> None:
    for content in (b"first", b"second"):
        store.write(0, make_rows(0), [])
        (store.folder / "00000.parquet").write_bytes(content)
        assert again(store).shards() == []
    kept = sorted(path.read_bytes() for path in (store.folder / "set-aside").iterdir())
    assert kept == [b"first", b"second"]


def test_a_shard_damaged_after_it_was_verified_is_an_error_and_not_used(store: Store) -> None:
    store.write(0, make_rows(0, 1, 2), [])
    assert store.shards() == [0]
    flip_a_bit_in_an_image(store.folder / "00000.parquet")
    with pytest.raises(StoreError, match="Run the same command again"):
        list(store.iter_rows())
    assert store.shards() == [], "from now on it is known to be bad"


def test_a_broken_write_leaves_the_old_shard(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write(0, make_rows(0), [])

    def disk_full(_: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", disk_full)
        with pytest.raises(StorageError, match="disk is full"):
            store.write(0, make_rows(0, 1), [])
    assert again(store).rows(0) == make_rows(0)
    assert [path.name for path in store.folder.iterdir()] == ["00000.parquet"]


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from made_rows import DIGEST, SLOTS, make_rows
from regforge.dataset.store import Store
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
Store(Path(sys.argv[1]), SLOTS, DIGEST).write(0, make_rows(0, 1), [])
"""


def test_a_killed_write_leaves_the_old_shard_and_the_next_one_clears_up(store: Store) -> None:
    store.write(0, make_rows(0), [])
    tests = str(Path(__file__).parents[1])
    killed = subprocess.run([sys.executable, "-c", KILLED, str(store.folder), tests], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(store.folder.iterdir())) == 2, "the half-written file is there"
    assert again(store).rows(0) == make_rows(0)
    store.write(0, make_rows(0, 1), [])
    assert [path.name for path in store.folder.iterdir()] == ["00000.parquet"]


def test_a_folder_that_cannot_be_written_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "shards").write_text("a file")
    with pytest.raises(StorageError, match="cannot be written"):
        Store(tmp_path / "shards", SLOTS, DIGEST).write(0, make_rows(0), [])


@pytest.mark.parametrize(
    ("rows", "refused", "says"),
    [
        ([128], [], "do not fit"),
        ([0], [200], "do not fit"),
        ([3, 3], [], "twice"),
        ([3], [3], "twice"),
    ],
)
def test_an_image_in_the_wrong_shard_is_refused(store: Store, rows, refused, says) -> None:
    with pytest.raises(ValueError, match=says):
        store.write(0, make_rows(*rows), [rejection(index) for index in refused])
    assert not store.folder.exists()


def test_thumbnails_are_small_and_junk_has_none() -> None:
    small = thumbnail(make_image(0, (400, 200)))
    assert small is not None
    assert len(small) < 10_000
    with Image.open(io.BytesIO(small)) as opened:
        assert opened.size == (96, 48)
    assert thumbnail(b"junk") is None
