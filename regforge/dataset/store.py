"""Finished images on disk, in shards that are whole or not there; and image rows in Parquet files.

    shards/00000.parquet    images 0 to 127: the accepted ones as rows, the refused in the footer
    shards/set-aside/       shards that were damaged or of another recipe; nothing reads them

A shard is one file, renamed into place when it is complete, so that its accepted images and its
refusals appear together. The same rows always give the same bytes. Knows nothing about how images
are made or judged.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.files import open_atomically, parse_json, remove_unfinished, storage_error
from regforge.image_files import BrokenImage, decode
from regforge.journal import Journal
from regforge.records import ImageJob, ImageRow, RecordError, arrow_schema, as_table, image_seed
from regforge.words import first_line

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

SHARD_SIZE = 128
"""Images in a shard: those with indexes number * SHARD_SIZE and up."""

THUMBNAIL_SIZE = 96
"""Longest side of the small copy of a refused image, in pixels."""

FURTHEST_ATTEMPT = 1000
"""Attempts at one image among which a seed is looked for."""

_FOOTER = "regforge"
_ROWS_PER_GROUP = 32


class StoreError(RegforgeError):
    """A shard that cannot be used."""


@dataclass(frozen=True)
class Rejection:
    """An image that was given up after some attempts; the thumbnail is a WebP of the last one."""

    id: str
    index: int
    text: str
    reasons: tuple[str, ...]
    attempts: int
    thumbnail: bytes | None = None


class Store:
    """The shards of one run; those of another recipe digest are set aside, as the journal tells."""

    def __init__(
        self,
        folder: Path,
        slots: Sequence[str],
        recipe_digest: str,
        journal: Journal | None = None,
    ) -> None:
        self.folder = folder
        self.slots = tuple(slots)
        self.recipe_digest = recipe_digest
        self.set_aside: list[str] = []
        """What was wrong with the shards that this object has set aside, a sentence each."""
        self._journal = journal or Journal(None)
        self._verified: set[int] = set()

    def shards(self) -> list[int]:
        """Numbers of the finished shards, in order.

        Each is read from its first byte to its last the first time. One that is damaged, or of
        another recipe, is moved to `set-aside` and not among them.

        Raises:
            StorageError: A bad shard cannot be moved.
        """
        stems = (path.stem for path in self.folder.glob("*.parquet"))
        numbers = sorted(int(s) for s in stems if s.isdecimal() and s == f"{int(s):05d}")
        return [number for number in numbers if self._is_usable(number)]

    def has(self, number: int) -> bool:
        """Whether a shard is among `shards`; looks at no other one."""
        return self._path(number).is_file() and self._is_usable(number)

    def write(self, number: int, rows: Sequence[ImageRow], rejected: Sequence[Rejection]) -> None:
        """Write a shard, in place of the one there may be; a reader sees the old or the new one.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
            ValueError: An image does not belong in this shard, or is there twice.
        """
        rows = sorted(rows, key=lambda row: row.index)
        rejected = sorted(rejected, key=lambda each: each.index)
        indexes = sorted([*(row.index for row in rows), *(each.index for each in rejected)])
        if len(set(indexes)) != len(indexes):
            raise ValueError(f"shard {number}: an image is there twice")
        if any(index // SHARD_SIZE != number for index in indexes):
            raise ValueError(f"shard {number}: images {indexes[0]} to {indexes[-1]} do not fit")
        if any(row.recipe_digest != self.recipe_digest for row in rows):
            raise ValueError(f"shard {number}: an image of another recipe")
        entries = [asdict(each) for each in rejected]
        for entry, each in zip(entries, rejected, strict=True):
            if each.thumbnail is not None:
                entry["thumbnail"] = base64.b64encode(each.thumbnail).decode()
        footer = {"recipe_digest": self.recipe_digest, "rejected": entries}
        path = self._path(number)
        remove_unfinished(self.folder, below=False)
        with open_atomically(path) as stream:
            writer = RowWriter(stream, self.slots)
            for start in range(0, len(rows), _ROWS_PER_GROUP):
                writer.write(rows[start : start + _ROWS_PER_GROUP])
            writer.close(**{_FOOTER: json.dumps(footer)})
        self._verified.add(number)

    def rows(self, number: int, *, images: bool = True) -> list[ImageRow]:
        """The accepted images of a shard, in the order of their index.

        Without images, `image` is empty.

        Raises:
            StoreError: The shard is missing or damaged.
        """
        return list(self._read(number, images))

    def rejected(self, number: int) -> list[Rejection]:
        """The images of a shard that were given up, in the order of their index.

        Raises:
            StoreError: The shard is missing or damaged.
        """
        try:
            return _footer(self._path(number))[1]
        except ParquetError as error:
            raise self._unusable(number, error) from error

    def count(self) -> int:
        """How many images were accepted, in all shards."""
        return sum(count_rows(self._path(number)) for number in self.shards())

    def iter_rows(self, *, images: bool = True) -> Iterator[ImageRow]:
        """All accepted images in the order of their index, a few in memory at a time.

        Raises:
            StoreError: A shard was damaged since it was verified.
        """
        for number in self.shards():
            yield from self._read(number, images)

    def iter_rejected(self) -> Iterator[Rejection]:
        """All images that were given up, in the order of their index.

        Raises:
            StoreError: A shard was damaged since it was verified.
        """
        for number in self.shards():
            yield from self.rejected(number)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.parquet"

    def _read(self, number: int, images: bool) -> Iterator[ImageRow]:
        try:
            yield from read_file(self._path(number), images=images)
        except ParquetError as error:
            raise self._unusable(number, error) from error

    def _unusable(self, number: int, error: ParquetError) -> StoreError:
        self._verified.discard(number)
        return StoreError(
            str(error),
            hint="Run the same command again: the shard is set aside, and its images are made "
            "once more.",
        )

    def _is_usable(self, number: int) -> bool:
        if number in self._verified:
            return True
        path = self._path(number)
        if not path.exists():
            return False
        problem = self._problem(number)
        if problem is None:
            self._verified.add(number)
        else:
            self._move_aside(path, problem)
        return problem is None

    def _problem(self, number: int) -> str | None:
        """What is wrong with a shard, or None; reads all of it."""
        path = self._path(number)
        try:
            digest, rejected = _footer(path)
            if digest != self.recipe_digest:
                return "it is of another recipe"
            if not read_schema(path).equals(arrow_schema(self.slots)):
                return "it has other columns"
            rows = [row.index for row in read_file(path)]
        except ParquetError as error:
            return str(error).rstrip(".")
        indexes = [*rows, *(each.index for each in rejected)]
        if rows != sorted(set(rows)) or any(index // SHARD_SIZE != number for index in indexes):
            return "it holds other images than its name says"
        return None

    def _move_aside(self, path: Path, problem: str) -> None:
        aside = self.folder / "set-aside"
        try:
            aside.mkdir(exist_ok=True)
            target = next(
                candidate
                for copy in range(10_000)
                if not (candidate := aside / f"{path.stem}-{copy}.parquet").exists()
            )
            path.rename(target)
        except OSError as error:
            raise storage_error(path, error) from error
        sentence = f"Shard {path.name} was not used: {problem}. It lies in {target} now."
        self.set_aside.append(sentence)
        self._journal.failure("dataset", path.name, sentence)


def thumbnail(image: bytes, size: int = THUMBNAIL_SIZE) -> bytes | None:
    """A small WebP copy of an image file, `size` pixels long; None if it cannot be read."""
    try:
        small = decode(image, ("WEBP", "PNG", "JPEG")).convert("RGB")
    except BrokenImage:
        return None
    small.thumbnail((size, size))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=80)
    return buffer.getvalue()


def is_made_from(row: ImageRow, job: ImageJob) -> bool:
    """Whether an image is a job or a later attempt at it: same caption, its size, such a seed."""
    prompt, attempts = job.prompt, range(job.attempt + 1, FURTHEST_ATTEMPT)
    later = (image_seed(row.recipe_digest, row.index, attempt) for attempt in attempts)
    return (
        row.text == prompt.text
        and prompt.width in (None, row.width)
        and prompt.height in (None, row.height)
        and (row.seed in (None, job.seed) or row.seed in later)
    )


def _footer(path: Path) -> tuple[str, list[Rejection]]:
    """Recipe digest and refusals of a shard."""
    text = read_metadata(path, _FOOTER)
    try:
        content = parse_json(text or "")
        rejected = []
        for entry in content["rejected"]:
            if (small := entry["thumbnail"]) is not None:
                small = base64.b64decode(small, validate=True)
            rejected.append(
                Rejection(**{**entry, "reasons": tuple(entry["reasons"]), "thumbnail": small})
            )
        return content["recipe_digest"], rejected
    except (ValueError, TypeError, KeyError) as error:
        raise ParquetError(f"{path} is no shard of regforge.") from error


# ----------------------------------------------------------------------------------- Parquet files

_IMAGE = "image.bytes"
_UNIQUE = frozenset({_IMAGE, "image.path", "seed", "id", "image_digest", "perceptual_hash"})
_ROWS_AT_A_TIME = 16


class ParquetError(RegforgeError):
    """A Parquet file that cannot be read, or that does not hold image rows."""


class NoDataset(RegforgeError):
    """A folder that is no dataset of regforge."""

    exit_code = EXIT_USAGE


class RowWriter:
    """Writes image rows into an open file, one row group a call; the file stays open."""

    def __init__(self, stream: BinaryIO, slots: Sequence[str]) -> None:
        import pyarrow.parquet as pq

        schema = arrow_schema(slots)
        columns = list(_leaves(schema))
        self._slots = slots
        self._writer: pq.ParquetWriter = pq.ParquetWriter(
            stream,
            schema,
            compression={name: "none" if name == _IMAGE else "zstd" for name in columns},
            use_dictionary=[name for name in columns if name not in _UNIQUE],
            # The smallest and largest of some image files are of no use to anyone.
            write_statistics=[name for name in columns if name != _IMAGE],
            write_page_checksum=True,
            # The Hub's viewer jumps to rows by the page index, and stores chunks that two versions
            # of a dataset share only once.
            write_page_index=True,
            use_content_defined_chunking=True,
        )

    def write(self, rows: Sequence[ImageRow]) -> None:
        """Write some rows as one row group."""
        self._writer.write_table(as_table(rows, self._slots), row_group_size=max(1, len(rows)))

    def close(self, **metadata: str) -> None:
        """Write the footer, with texts to keep in the file: see `read_metadata`."""
        if metadata:
            self._writer.add_key_value_metadata(metadata)
        self._writer.close()


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


def read_file(
    path: Path, *, images: bool = True, groups: Iterable[int] | None = None
) -> Iterator[ImageRow]:
    """The rows of a file in order, a few in memory at a time; only those of some row groups.

    Without images, `image` is empty, and a file of many gigabytes is read in an instant.

    Raises:
        ParquetError: The file is damaged, or holds something else.
    """
    import pyarrow as pa

    file = _open(path)
    try:
        names = [name for name in file.schema_arrow.names if images or name != "image"]
        # One group at a time: read in one go, pyarrow keeps all that it has read.
        for group in range(file.num_row_groups) if groups is None else groups:
            for batch in file.iter_batches(_ROWS_AT_A_TIME, [group], names, use_threads=False):
                for row in batch.to_pylist():
                    image = row.pop("image", None)
                    yield ImageRow(**row, image=image["bytes"] if image else b"")
    except TypeError as error:
        raise _damaged(path, RecordError(f"not the columns of an image row ({error})")) from error
    except (OSError, ValueError, RecordError, pa.ArrowException) as error:
        raise _damaged(path, error) from error
    finally:
        file.close()


def read_schema(path: Path) -> pa.Schema:
    """The columns of a file; a ParquetError if it is none."""
    with _open(path) as file:
        return file.schema_arrow


def read_metadata(path: Path, key: str) -> str | None:
    """A text that `RowWriter.close` was given, or None; a ParquetError if it is no such file."""
    with _open(path) as file:
        text: bytes | None = (file.metadata.metadata or {}).get(key.encode())
    return None if text is None else text.decode(errors="replace")


def rows_by_group(path: Path) -> list[int]:
    """How many rows each row group of a file has; a ParquetError if it is none."""
    with _open(path) as file:
        return [file.metadata.row_group(each).num_rows for each in range(file.num_row_groups)]


def count_rows(path: Path) -> int:
    """How many rows a file has; a ParquetError if it is none."""
    with _open(path) as file:
        return int(file.metadata.num_rows)


def _open(path: Path) -> pq.ParquetFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ParquetError:
    return ParquetError(f"{path} cannot be read: {first_line(error)}.")


def _leaves(schema: pa.Schema) -> Iterator[str]:
    import pyarrow as pa

    for field in schema:
        if pa.types.is_struct(field.type):
            yield from (f"{field.name}.{child.name}" for child in field.type)
        else:
            yield field.name
