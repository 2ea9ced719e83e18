"""Reads images that are files of their own, with captions beside them or in metadata files.

The files may lie in a folder, in zip archives or on the Hub; here they are only paths.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from typing import Any

from regforge.dataset.sources.captions import (
    SIDECARS,
    as_caption,
    caption_column,
    caption_in,
    columns_in,
    make_example,
)
from regforge.dataset.sources.choosing import METADATA, Choice
from regforge.dataset.sources.findings import Findings
from regforge.dataset.sources.images import Facts, look
from regforge.dataset.sources.interface import CannotOpen
from regforge.dataset.sources.metadata_files import MetadataFiles
from regforge.dataset.sources.trees import UNREADABLE, Tree, read_bytes, stem_of, suffix_of
from regforge.files import MOST_CAPTION, MOST_IMAGE
from regforge.image_files import BrokenImage
from regforge.recipe.named_files import ByName
from regforge.records import Example

_REPEATS_AND_TOKENS = re.compile(r"\d+_(.+)")  # how kohya's trainer names folders


class FolderReader:
    """Images as files.

    Args:
        tree: Where they lie.
        choice: Which of them.
        asked: The column of metadata files that the user wants captions from.

    Raises:
        CannotOpen: A metadata file is damaged, or has no such column.
    """

    def __init__(self, tree: Tree, choice: Choice, asked: str | None) -> None:
        self.layout = "folder"
        self._tree = tree
        self._images = dict.fromkeys(choice.data)
        self._asked = asked
        self._sidecars = ByName(path for path in choice.beside if suffix_of(path) in SIDECARS)
        paths = [path for path in choice.beside if path.rpartition("/")[2] in METADATA]
        self._metadata = MetadataFiles(tree, paths, self._images, asked)
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
        """All of them, those that metadata files name first; see `CaptionedDataset.examples`."""
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
            image, facts = self._image(path, images)
        except (BrokenImage, *UNREADABLE):
            findings.broken.add(path)
            return
        if text is None:
            text, beside = self._beside(path, findings)
            columns = {**beside, **columns}
        if text is None and facts.prompt is not None:
            text = facts.prompt
            findings.from_parameters += 1
        yield make_example(
            path,
            image,
            facts,
            text,
            columns,
            file=self._tree.place(path),
            class_noun=self._tokens.get(path),
        )

    def _image(self, path: str, images: bool) -> tuple[bytes, Facts]:
        if images:
            content = read_bytes(self._tree, path, MOST_IMAGE)
            return content, look(io.BytesIO(content))
        if self._tree.files[path] > MOST_IMAGE:
            raise BrokenImage(f"has more than {MOST_IMAGE:,} bytes")
        with self._tree.open(path) as stream:
            return b"", look(stream)

    def _beside(self, image: str, findings: Findings) -> tuple[str | None, Mapping[str, Any]]:
        """(caption, what else is said) of the files beside an image."""
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
