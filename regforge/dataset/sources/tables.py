"""Reads Parquet files with an image column: regforge's own, and anybody's.

Images are read from the file page by page, whatever the size of its row groups, and not at all
where nobody wants them and the sizes stand in columns.
"""

from __future__ import annotations

import io
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from regforge.dataset.sources.caption_columns import (
    MOST_NAMES,
    Findings,
    as_caption,
    caption_column,
    no_captions,
)
from regforge.dataset.sources.choosing import Choice
from regforge.dataset.sources.trees import CannotOpen, Tree
from regforge.files import MOST_IMAGE
from regforge.image_files import BrokenImage, Header, read_header
from regforge.records import Example, arrow_schema
from regforge.words import first_line, listed

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_ROWS_AT_A_TIME = 16
_BUFFER = 2**20
_BUFFER_OF_REQUESTS = 2**23
_SHARD = re.compile(r"(.*)-\d{5}-of-(\d{5})\.parquet")
_IMAGE_NAMES = ("image", "img", "picture", "photo", "png", "jpg", "jpeg", "webp")
_NAME_COLUMNS = ("id", "__key__", "key", "file_name", "filename")


@dataclass(frozen=True)
class _Columns:
    """What the columns of a file are for."""

    image: str
    in_struct: bool  # image files lie in its `bytes`, beside a `path`
    caption: str | None
    name: str | None  # names the rows
    sizes: bool  # there are `width` and `height`
    others: tuple[str, ...]  # read as metadata, and all of the above but the image
    own: bool  # regforge wrote the file

    @property
    def tell_all(self) -> bool:
        """Whether an image need not be opened to know its size and caption."""
        return self.sizes and self.caption is not None


class TableReader:
    """Some Parquet files with the same columns; the user wants captions from the one `asked` for.

    Raises:
        CannotOpen: A file is damaged or missing, has no images, or has other columns than the
            first; or there is no such column as the user wants.
        HubError: The Hub does not give one.
    """

    def __init__(self, tree: Tree, choice: Choice, asked: str | None) -> None:
        self._tree = tree
        self._paths = choice.data
        _check_complete(self._paths)
        schema = self._schema(self._paths[0])
        self._names = frozenset(schema.names)
        self._columns = _columns(schema, asked, self._paths[0])
        self.layout = "regforge" if self._columns.own else "parquet"
        slots = schema.field("slots").type if self._columns.own else ()
        self.slots = tuple(field.name for field in slots)
        self.notes = list(choice.notes)
        if self._columns.caption is None:
            others = [name for name in schema.names if name != self._columns.image]
            self.notes.append(no_captions(self._paths[0], others))
        for path in self._paths[1:]:
            if tree.place(path) is not None:  # on the Hub, a request for each would take long
                self._check_same(path, self._schema(path))

    def read(self, *, images: bool, findings: Findings) -> Iterator[Example]:
        """All rows, file by file; those with broken images are left out."""
        columns = self._columns
        for path in self._paths:
            for number, (row, image) in enumerate(self._rows(path, images)):
                values = (image or {}) if columns.in_struct else {"bytes": image}
                content, inner_name = values.get("bytes") or b"", values.get("path") or None
                name = row.get(columns.name) if columns.name else None
                name = str(name) if name not in (None, "") else inner_name or f"{path}:{number}"
                opened = images or not columns.tell_all
                header = self._header(row, content if opened else None)
                if header is None:
                    findings.broken.add(name)
                    continue
                text = None
                if columns.caption is not None:  # what a generator wrote is no caption then
                    text = as_caption(row.pop(columns.caption, None))
                    header = replace(header, prompt=None)
                yield findings.example(name, content if images else b"", header, text, row)

    def _header(self, row: Mapping[str, Any], content: bytes | None) -> Header | None:
        """The size of an image, by its columns or its file, if that is read; None if broken."""
        header, width, height = None, row.get("width"), row.get("height")
        if self._columns.tell_all and isinstance(width, int) and isinstance(height, int):
            header = Header(width, height) if width > 0 < height else None
        if content is None:
            return header
        if not content or len(content) > MOST_IMAGE:
            return None
        # Files of regforge's are known to be what their row says.
        if header is None or not self._columns.own:
            try:
                read = read_header(io.BytesIO(content))
            except BrokenImage:
                return None
            header = header or read
        return header

    def _rows(self, path: str, images: bool) -> Iterator[tuple[dict[str, Any], Any]]:
        """(columns, image column or None) of each row of a file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        small = list(self._columns.others)
        large = [self._columns.image] if images or not self._columns.tell_all else []
        try:
            with (
                self._source(path) as stream,
                self._source(path) as again,
                # In few requests, since nothing large is among them.
                pq.ParquetFile(stream, pre_buffer=True, page_checksum_verification=True) as columns,
                # In pieces, since a row group may be large.
                pq.ParquetFile(
                    again,
                    metadata=columns.metadata,
                    pre_buffer=False,
                    buffer_size=_BUFFER if self._tree.place(path) else _BUFFER_OF_REQUESTS,
                    page_checksum_verification=True,
                ) as decoded_images,
            ):
                self._check_same(path, columns.schema_arrow)
                for group in range(columns.num_row_groups):
                    count = columns.metadata.row_group(group).num_rows
                    yield from zip(
                        _values(columns, group, small, count),
                        (
                            row.get(self._columns.image)
                            for row in _values(decoded_images, group, large, count)
                        ),
                        strict=True,
                    )
        except (OSError, ValueError, pa.lib.ArrowException) as error:
            raise _damaged(path, error) from error

    def _source(self, path: str) -> Any:
        """What pyarrow reads a file from; a place on disk it reads faster than a stream."""
        import pyarrow as pa

        place = self._tree.place(path)
        return self._tree.open(path) if place is None else pa.OSFile(str(place))

    def _schema(self, path: str) -> pa.Schema:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with self._source(path) as stream:
                return pq.read_schema(stream)
        except (OSError, ValueError, pa.lib.ArrowException) as error:
            raise _damaged(path, error) from error

    def _check_same(self, path: str, schema: pa.Schema) -> None:
        names = frozenset(schema.names)
        if names == self._names:
            return
        more, fewer = sorted(names - self._names), sorted(self._names - names)
        differences = [f"has {listed(more, MOST_NAMES)} too"] if more else []
        differences += [f"lacks {listed(fewer, MOST_NAMES)}"] if fewer else []
        raise CannotOpen(
            f"{path} is not of the same dataset as {self._paths[0]}: it "
            f"{' and '.join(differences)}.",
            hint="Name one of the files, or put those that belong together into a folder.",
        )


def _columns(schema: pa.Schema, asked: str | None, path: str) -> _Columns:
    image = _image_column(schema)
    if image is None:
        raise CannotOpen(
            f"{path} has no column with images; it has {listed(schema.names, MOST_NAMES)}.",
            hint="An image column holds the files' bytes. A table of links is to be downloaded "
            "first.",
        )
    caption = caption_column([n for n in schema.names if n != image], asked, path)
    others = [
        field.name
        for field in schema
        if field.name != image and (_is_plain(field) or field.name == caption)
    ]
    return _Columns(
        image=image,
        in_struct=_is_struct(schema.field(image).type),
        caption=caption,
        name=next((name for name in _NAME_COLUMNS if name in others and name != caption), None),
        sizes={"width", "height"} <= set(others),
        others=tuple(others),
        own=set(arrow_schema(()).names) <= set(schema.names),
    )


def _image_column(schema: pa.Schema) -> str | None:
    found = [field.name for field in schema if _holds_images(field.type)]
    named = (name for wanted in _IMAGE_NAMES for name in found if name.lower() == wanted)
    return next(named, found[0] if found else None)


def _holds_images(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if _is_struct(kind):
        position = kind.get_field_index("bytes")
        return position >= 0 and _holds_images(kind.field(position).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_struct(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_struct(kind))


def _is_plain(field: pa.Field) -> bool:
    """Whether a column may be metadata: numbers, texts, and regforge's own structs."""
    import pyarrow as pa

    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if field.name in ("slots", "scores"):
        return _is_struct(kind)
    plain = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer)
    return any(test(kind) for test in (*plain, pa.types.is_floating, pa.types.is_boolean))


def _values(
    file: pq.ParquetFile, group: int, columns: Sequence[str], count: int
) -> Iterator[dict[str, Any]]:
    """The rows of a row group, a few in memory at a time."""
    if not columns:
        yield from ({} for _ in range(count))
        return
    for batch in file.iter_batches(_ROWS_AT_A_TIME, [group], columns, use_threads=False):
        yield from batch.to_pylist()


def _check_complete(paths: Sequence[str]) -> None:
    """Names such as train-00000-of-00003.parquet say how many files there should be."""
    there: dict[tuple[str, str], int] = defaultdict(int)
    for path in paths:
        if found := _SHARD.fullmatch(path):
            there[found[1], found[2]] += 1
    for (name, count), found_count in there.items():
        if found_count != int(count):
            raise CannotOpen(
                f"The dataset is not complete: of {name}-*-of-{count}.parquet, {found_count} of "
                f"{int(count)} files are there.",
                hint="Make or download it again.",
            )


def _damaged(path: str, error: Exception) -> CannotOpen:
    return CannotOpen(f"{path} cannot be read: {first_line(error)}.")
