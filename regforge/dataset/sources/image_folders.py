"""Reads images that are files of their own, with captions beside them or in metadata files.

The files may lie in a folder, in zip archives or on the Hub; here they are only paths.
metadata.jsonl, metadata.csv and metadata.parquet are read as ImageFolder of `datasets` reads them:
each row names an image by `file_name`, relative to the folder of the metadata file and inside of
it. Rows are read one at a time and never kept.
"""

from __future__ import annotations

import io
import posixpath
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from regforge.dataset.sources.caption_columns import (
    MOST_NAMES,
    SIDECARS,
    Findings,
    LeftOut,
    as_caption,
    caption_column,
    caption_in,
    columns_in,
    no_captions,
    whole,
)
from regforge.dataset.sources.choosing import METADATA, Choice
from regforge.dataset.sources.trees import (
    UNREADABLE,
    CannotOpen,
    Tree,
    read_bytes,
    stem_of,
    suffix_of,
)
from regforge.files import MOST_CAPTION, MOST_IMAGE
from regforge.image_files import BrokenImage, Header, read_header
from regforge.recipe.named_files import ByName, csv_rows, json_rows
from regforge.records import Example
from regforge.words import listed

_REPEATS_AND_TOKENS = re.compile(r"\d+_(.+)")  # how kohya's trainer names folders


class FolderReader:
    """Images as files; `asked` is the column of metadata files that the user wants captions from.

    Raises:
        CannotOpen: A metadata file is damaged, names no images or one outside of its folder, or
            has no such column.
    """

    def __init__(self, tree: Tree, choice: Choice, asked: str | None) -> None:
        self.layout = "folder"
        self._tree = tree
        self._images = dict.fromkeys(choice.data)
        self._asked = asked
        self._sidecars = ByName(path for path in choice.beside if suffix_of(path) in SIDECARS)
        paths = [path for path in choice.beside if path.rpartition("/")[2] in METADATA]
        self._metadata = _MetadataFiles(tree, paths, self._images, asked)
        self._tokens = _class_tokens(choice.data)
        self.slots = self._metadata.slots
        self.notes = [*choice.notes, *self._metadata.notes]
        unlisted = sum(path not in self._metadata.listed for path in self._images)
        if paths and unlisted:
            self.notes.append(
                f"{unlisted:,} of {len(self._images):,} images are in no metadata file; "
                "load_dataset would leave them out."
            )
        if asked and not paths and not any(suffix_of(path) == ".json" for path in choice.beside):
            raise CannotOpen(
                f"There is no column {asked!r}: captions stand in text files here, if anywhere.",
                hint="Leave --caption-column out.",
            )

    def read(self, *, images: bool, findings: Findings) -> Iterator[Example]:
        """All of them, those that metadata files name first."""
        try:
            for path, column, row in self._metadata.rows():
                text = as_caption(row.get(column)) if column else None
                ignored = {column, *(key for key in row if key.endswith("file_name"))}
                columns = {key: value for key, value in row.items() if key not in ignored}
                yield from self._example(path, text, columns, images, findings)
            for path in self._images:
                if path not in self._metadata.listed:
                    yield from self._example(path, None, {}, images, findings)
        finally:
            self._tree.close()

    def _example(
        self,
        path: str,
        text: str | None,
        columns: Mapping[str, Any],
        images: bool,
        findings: Findings,
    ) -> Iterator[Example]:
        """The image, or nothing if it is broken."""
        try:
            image, header = self._image(path, images)
        except (BrokenImage, *UNREADABLE):
            findings.broken.add(path)
            return
        if text is None:
            text, beside = self._beside(path, findings)
            columns = {**beside, **columns}
        yield findings.example(
            path,
            image,
            header,
            text,
            columns,
            file=self._tree.place(path),
            class_noun=self._tokens.get(path),
        )

    def _image(self, path: str, images: bool) -> tuple[bytes, Header]:
        if images:
            content = read_bytes(self._tree, path, MOST_IMAGE)
            return content, read_header(io.BytesIO(content))
        if self._tree.files[path] > MOST_IMAGE:
            raise BrokenImage(f"has more than {MOST_IMAGE:,} bytes")
        with self._tree.open(path) as stream:
            return b"", read_header(stream)

    def _beside(self, image: str, findings: Findings) -> tuple[str | None, Mapping[str, Any]]:
        """(caption, other columns) of the files beside an image."""
        text: str | None = None
        columns: dict[str, Any] = {}
        for suffix in SIDECARS:
            path = self._sidecars.find(stem_of(image) + suffix)
            if path is None or text is not None:
                continue
            try:
                content = read_bytes(self._tree, path, MOST_CAPTION)
                if suffix != ".json":
                    text = caption_in(content)
                    continue
            except UNREADABLE:  # an error of decoding is a ValueError
                findings.unreadable_captions.add(path)
                continue
            columns = columns_in(content)
            name = self._asked or caption_column(columns, None, path)
            text = as_caption(columns.pop(name, None)) if name else None
        return text, columns


def _class_tokens(images: tuple[str, ...]) -> dict[str, str]:
    """What each image shows by its folder's name, if all lie in folders such as `1_teapot`."""
    tokens = {}
    for path in images:
        found = _REPEATS_AND_TOKENS.fullmatch(path.rpartition("/")[0].rpartition("/")[2])
        if found is None:
            return {}
        tokens[path] = found[1].strip()
    return tokens


@dataclass(frozen=True)
class _MetadataFile:
    path: str
    file_column: str  # with the names of the images
    caption_column: str | None


class _MetadataFiles:
    """All metadata files of a folder.

    Attributes:
        listed: Paths of the images that they name.
        slots: Names of the slots that their rows have.
        notes: Columns without a caption; images that are not there.
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

    def _look_over(self, path: str, asked: str | None) -> _MetadataFile | None:
        columns: dict[str, None] = {}
        slots: dict[str, None] = {}
        absent = LeftOut()
        file: _MetadataFile | None = None
        for line, row in _read(self._tree, path):
            columns.update(dict.fromkeys(row))
            if isinstance(row.get("slots"), dict):
                slots.update(dict.fromkeys(map(whole, row["slots"])))
            file = file or _MetadataFile(path, _file_column(row, f"{path}:{line}"), None)
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
        return _MetadataFile(path, file.file_column, column)

    def _image(self, file: _MetadataFile, line: int, row: Mapping[str, Any]) -> str:
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
        f"{where} has no column 'file_name'; it has {listed(row, MOST_NAMES)}.",
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
