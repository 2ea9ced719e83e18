"""metadata.jsonl, metadata.csv and metadata.parquet, as ImageFolder of `datasets` reads them.

Each row names an image by `file_name`, relative to the folder of the metadata file and inside of
it, and says something about it. Rows are read one at a time and never kept.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from regforge.dataset.sources.captions import caption_column, listed, no_captions, whole
from regforge.dataset.sources.findings import Left
from regforge.dataset.sources.interface import CannotOpen
from regforge.dataset.sources.trees import UNREADABLE, Tree
from regforge.recipe.named_files import ByName, csv_rows, json_rows


@dataclass(frozen=True)
class MetadataFile:
    """A metadata file that was looked over.

    Attributes:
        path: Where it lies.
        file_column: Where it names images.
        caption_column: Where it has captions, or None.
    """

    path: str
    file_column: str
    caption_column: str | None


class MetadataFiles:
    """All metadata files of a folder.

    Args:
        tree: Where they lie.
        paths: Theirs.
        images: Paths of the images that count.
        asked: The column that the user wants captions from.

    Attributes:
        listed: Paths of the images that they name.
        slots: Names of the slots that their rows have.
        notes: Columns without a caption; images that are not there.

    Raises:
        CannotOpen: A file is damaged, names no images, or names one outside of its folder; or
            there is no such column as the user wants.
    """

    def __init__(
        self, tree: Tree, paths: Sequence[str], images: Collection[str], asked: str | None
    ) -> None:
        self._tree = tree
        self._images = images
        self._names = ByName(images)
        self.listed: set[str] = set()
        self.slots: tuple[str, ...] = ()
        self.notes: list[str] = []
        self._files = [file for path in paths if (file := self._look_over(path, asked))]

    def rows(self) -> Iterator[tuple[str, str | None, Mapping[str, Any]]]:
        """(path of the image, caption column, row) in the order of the files and their lines."""
        for file in self._files:
            for line, row in _read(self._tree, file.path):
                path = self._image(file, line, row)
                if path in self._images:
                    yield path, file.caption_column, row

    def _look_over(self, path: str, asked: str | None) -> MetadataFile | None:
        columns: dict[str, None] = {}
        slots: dict[str, None] = {}
        absent = Left()
        file: MetadataFile | None = None
        for line, row in _read(self._tree, path):
            columns.update(dict.fromkeys(row))
            if isinstance(row.get("slots"), dict):
                slots.update(dict.fromkeys(map(whole, row["slots"])))
            file = file or MetadataFile(path, _file_column(row, f"{path}:{line}"), None)
            image = self._image(file, line, row)
            if image in self._images:
                self.listed.add(image)
            elif image not in self._tree.files:
                absent.add(image)
        if file is None:
            return None
        if absent.count:
            what = "images that are" if absent.count > 1 else "image that is"
            self.notes.append(f"{path} names {absent.count:,} {what} not there ({absent.named()}).")
        self.slots = tuple(dict.fromkeys([*self.slots, *slots]))
        column = caption_column(columns, asked, path)
        if column is None:
            self.notes.append(no_captions(path, list(columns)))
        return MetadataFile(path, file.file_column, column)

    def _image(self, file: MetadataFile, line: int, row: Mapping[str, Any]) -> str:
        name = row.get(file.file_column)
        if not isinstance(name, str) or not name:
            raise CannotOpen(f"{file.path}:{line} names no image in {file.file_column!r}.")
        inside = posixpath.normpath(name.replace("\\", "/"))
        if inside.startswith(("../", "/")) or inside == ".." or "://" in name:
            raise CannotOpen(
                f"{file.path}:{line} names {name!r}, which is not inside of its folder."
            )
        path = posixpath.normpath(posixpath.join(posixpath.dirname(file.path), inside))
        return self._names.find(path) or path


def _file_column(row: Mapping[str, Any], where: str) -> str:
    for name in ("file_name", "image_file_name", *row):
        if name in row and (name == "file_name" or name.endswith("_file_name")):
            return name
    raise CannotOpen(
        f"{where} has no column 'file_name'; it has {listed(list(row))}.",
        hint="Each row names its image there, relative to the folder of the file.",
    )


def _read(tree: Tree, path: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(line or row number, row) of a metadata file."""
    try:
        with tree.open(path) as stream:
            if path.endswith(".jsonl"):
                for number, row in json_rows(stream):
                    if isinstance(row, str):
                        raise CannotOpen(f"{path}:{number} {row}.")
                    yield number, row
            elif path.endswith(".csv"):
                yield from csv_rows(stream)
            else:
                yield from _parquet_rows(stream)
    except UNREADABLE as error:
        raise CannotOpen(f"{path} cannot be read: {error}.") from error


def _parquet_rows(stream: BinaryIO) -> Iterator[tuple[int, Mapping[str, Any]]]:
    import pyarrow.parquet as pq

    rows = (
        row
        for batch in pq.ParquetFile(stream).iter_batches(256, use_threads=False)
        for row in batch.to_pylist()
    )
    yield from enumerate(rows, 1)
