"""Reads the rows of a finished dataset folder back; see `sources` for datasets from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from regforge.dataset.parquet import read_rows as read_file
from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.records import ImageRow


class NoDataset(RegforgeError):
    """A folder that is no dataset of regforge."""

    exit_code = EXIT_USAGE


def read_rows(folder: Path, *, images: bool = True) -> Iterator[ImageRow]:
    """The rows of a dataset that regforge built, in order, a few in memory at a time.

    `folder` is the one with `data/train-*.parquet`. Without images, `image` is empty.

    Raises:
        NoDataset: There are no such files, or some are missing.
        ParquetError: A file is damaged, or holds other columns.
    """
    for file in data_files(folder):
        yield from read_file(file, images=images)


def data_files(folder: Path) -> list[Path]:
    """The Parquet files of a dataset that regforge built, in order.

    Raises:
        NoDataset: There are no such files, or some are missing.
    """
    files = sorted((folder / "data").glob("train-*-of-*.parquet"))
    if not files:
        raise NoDataset(
            f"{folder} is no dataset: it has no data/train-*.parquet.",
            hint="Name the folder `dataset` inside of a run's folder.",
        )
    expected = int(files[0].stem.rpartition("-")[2])
    if len(files) != expected:
        raise NoDataset(f"{folder} is not complete: {len(files)} of {expected} files are there.")
    return files
