"""The finished dataset: a folder that `datasets.load_dataset` and the Hub take as it is.

    dataset/
      README.md         the card: what, why, how it was made, counts, licence
      data/train-*.parquet
      recipe.yaml       caption.j2       vocabulary.json
      samples.webp      some of the images

It is built beside the old one and takes its place when it is whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

from regforge.dataset.card import Refusals, Survey, write_card
from regforge.dataset.card_parts import SampleChooser, as_webp, samples_grid
from regforge.dataset.store import RowWriter, Store
from regforge.errors import RegforgeError
from regforge.files import UNFINISHED, delete, open_atomically, storage_error, write_atomically
from regforge.recipe.models import Recipe
from regforge.recipe.named_files import inside
from regforge.records import ImageRow

ROWS_PER_GROUP = 100
"""Rows that are compressed together, as `datasets` does it for images."""

GROUP_BYTES = 64_000_000
"""Fewer rows where their images come to more than this."""

FILE_BYTES = 450_000_000
"""A further file starts where the images of one come to this. The Hub advises at most 500 MB."""

OUR_FILES = frozenset({"README.md", "recipe.yaml", "caption.j2", "vocabulary.json", "samples.webp"})
"""What lies in the folder beside `data`."""


class DatasetError(RegforgeError):
    """A dataset that cannot be built."""


@dataclass(frozen=True)
class DatasetInfo:
    """What was built: `rows` images in Parquet files of so many bytes together."""

    rows: int
    files: tuple[Path, ...]
    bytes: int


def build_dataset(
    store: Store,
    folder: Path,
    *,
    count: int,
    recipe: Recipe,
    recipe_yaml: str,
    caption_template: str,
    vocabulary: Path | None = None,
    versions: Mapping[str, str] | None = None,
) -> DatasetInfo:
    """Build the dataset from the first `count` accepted images, in the order of their index.

    The same images and settings give the same bytes. Text that somebody has written around
    regforge's part of an existing README.md is kept, and so are files that are not regforge's.
    Memory does not grow with the number of images.

    `recipe_yaml` and `caption_template` are the texts of recipe.yaml and caption.j2; the run's
    vocabulary.json need not exist; `versions` are of the libraries that made the images.

    Raises:
        DatasetError: There are fewer images.
        StoreError: A shard is damaged.
        StorageError: The disk is full, or the folder cannot be written.
    """
    survey, chooser, refusals = Survey(store.slots), SampleChooser(count), Refusals()
    for row in islice(store.iter_rows(images=False), count):
        survey.add(row)
        chooser.add(row)
    if survey.rows < count:
        raise DatasetError(
            f"There are {survey.rows} accepted images, and the dataset is to have {count}.",
            hint="Run the recipe again: it goes on where it stopped.",
        )
    for each in store.iter_rejected():
        if each.index <= survey.last_index:
            refusals.add(each)
    chosen = chooser.choose()
    phrases = vocabulary.read_bytes() if vocabulary and vocabulary.is_file() else None
    with _replacing(folder) as partial:
        samples, wanted = dict[str, ImageRow](), frozenset(chosen)

        def rows() -> Iterator[ImageRow]:
            for row in islice(store.iter_rows(), count):
                if row.id in wanted:
                    samples[row.id] = row
                yield row

        names = _write_data(rows(), partial / "data", store.slots)
        write_atomically(partial / "recipe.yaml", recipe_yaml)
        write_atomically(partial / "caption.j2", caption_template)
        if phrases is not None:
            write_atomically(partial / "vocabulary.json", phrases)
        write_atomically(
            partial / "samples.webp", as_webp(samples_grid(samples[name] for name in chosen))
        )
        card = write_card(
            survey,
            refusals,
            recipe,
            versions=versions,
            vocabulary=phrases is not None,
            existing=_existing_card(folder),
        )
        write_atomically(partial / "README.md", card)
    files = tuple(folder / "data" / name for name in names)
    return DatasetInfo(survey.rows, files, sum(file.stat().st_size for file in files))


def _write_data(rows: Iterable[ImageRow], folder: Path, slots: Iterable[str]) -> list[str]:
    """Write the rows into as many files as it takes; returns their names."""
    paths = []
    for number, groups in groupby(_numbered_groups(rows), key=lambda numbered: numbered[0]):
        paths.append(folder / f"{number:05d}")
        with open_atomically(paths[-1]) as stream:
            writer = RowWriter(stream, list(slots))
            for _, group in groups:
                writer.write(group)
            writer.close()
    # Their names say how many there are, which nobody knew before.
    names = [f"train-{number:05d}-of-{len(paths):05d}.parquet" for number in range(len(paths))]
    for path, name in zip(paths, names, strict=True):
        path.rename(folder / name)
    return names


def _numbered_groups(rows: Iterable[ImageRow]) -> Iterator[tuple[int, list[ImageRow]]]:
    """Groups of rows, each with the number of the file it goes into."""
    number = size = 0
    for group in _groups(rows):
        group_size = sum(len(row.image) for row in group)
        if size and size + group_size > FILE_BYTES:
            number, size = number + 1, 0
        size += group_size
        yield number, group


def _groups(rows: Iterable[ImageRow]) -> Iterator[list[ImageRow]]:
    group: list[ImageRow] = []
    size = 0
    for row in rows:
        if group and (len(group) == ROWS_PER_GROUP or size + len(row.image) > GROUP_BYTES):
            yield group
            group, size = [], 0
        group.append(row)
        size += len(row.image)
    if group:
        yield group


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """Create an empty folder beside `folder`, which takes its place when the block has ended well.

    Killed at any instant, it leaves the old folder, the new one, or, between two renames, neither
    under its name; the old one then lies in `.old`, from where the next call takes it back.
    """
    partial = folder.with_name(f"{UNFINISHED}{folder.name}")
    old = folder.with_name(f"{folder.name}.old")
    try:
        _take_back(old, folder)
        for left_behind in (partial, old):
            delete(left_behind)
        partial.mkdir(parents=True)
        yield partial
        _keep_foreign_files(folder, partial)
        _sync(partial / "data")
        _sync(partial)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        _sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except RegforgeError:
        raise
    except OSError as error:
        raise storage_error(folder, error) from error
    finally:
        _take_back(old, folder)
        shutil.rmtree(partial, ignore_errors=True)


def _take_back(old: Path, folder: Path) -> None:
    if old.exists() and not folder.exists():
        old.rename(folder)


def _keep_foreign_files(folder: Path, partial: Path) -> None:
    ours = {folder / name for name in ("data", *OUR_FILES)} | {*folder.glob("data/*.parquet")}
    for each in {*folder.glob("*"), *folder.glob("data/*")} - ours:
        copy = partial / each.relative_to(folder)
        if each.is_dir() and not each.is_symlink():
            shutil.copytree(each, copy, symlinks=True)
        else:
            shutil.copy2(each, copy, follow_symlinks=False)


def _existing_card(folder: Path) -> str | None:
    path = folder / "README.md"
    # Its text is kept and published, so never that of a file elsewhere.
    real = inside(path, folder)
    return real.read_text(encoding="utf-8", errors="replace") if real and real.is_file() else None


def _sync(folder: Path) -> None:
    """Make renames in a folder survive a power cut, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
