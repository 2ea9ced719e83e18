"""How image rows lie in Parquet files: encoding, checksums, and reading them back in pieces.

The same rows always give the same bytes. Images are stored as they are, since they are compressed
already; everything else is compressed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.records import ImageRow, RecordError, arrow_schema, as_table
from regforge.words import first_line

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

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
