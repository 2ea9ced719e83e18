"""What a dataset is once it has been opened, and the error if it cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.records import Example


class CannotOpen(RegforgeError):
    """A dataset that is not there, is damaged, or holds no images."""

    exit_code = EXIT_USAGE


class CaptionedDataset(Protocol):
    """A dataset that has been opened.

    Attributes:
        name: As people call it: the folder's name, or `user/name`.
        layout: What it is: `regforge`, `parquet`, `folder` (images with captions beside them or in
            metadata files), `webdataset` or `zip`.
        revision: Commit on the Hub, 40 hex digits; None for a local one.
        license: What its card says, or None.
        slots: Names of the slots that its captions have; none for a dataset of somebody else.
        run: The run's folder that it belongs to, or None.
        notes: What a person should know about how it was read, a sentence each: images without
            captions, files that were left out. What only reading can tell is added when
            `examples` has come to its end.
    """

    name: str
    layout: str
    revision: str | None
    license: str | None
    slots: tuple[str, ...]
    run: Path | None
    notes: list[str]

    def examples(self, *, images: bool = True) -> Iterator[Example]:
        """The captioned images in a fixed order, a few in memory at a time; may be called again.

        Args:
            images: Whether to read the image files too; without them `image` is empty. Sizes are
                known all the same.

        Raises:
            CannotOpen: A file is damaged.
            HubError: The Hub cannot be reached any more.
        """
        ...
