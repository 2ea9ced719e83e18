"""Counts what a person should know once a dataset has been read, and says it in sentences."""

from __future__ import annotations

from regforge.dataset.sources.captions import listed
from regforge.records import Example

_NAMED = 3


class Left:
    """Things that were left out, of which the first few are named."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[str] = []

    def add(self, name: str) -> None:
        """Count one."""
        self.count += 1
        if len(self.first) < _NAMED:
            self.first.append(name)

    def named(self) -> str:
        """Such as `a.png, b.png, c.png and 4 more`."""
        return listed([*self.first, *[""] * (self.count - len(self.first))], _NAMED)


class Findings:
    """What reading a dataset brought up."""

    def __init__(self) -> None:
        self.images = 0
        self.silent = 0
        self.from_parameters = 0
        self.broken = Left()
        self.unreadable_captions = Left()
        self.unread_metadata = Left()
        self.endless = Left()

    def saw(self, example: Example) -> None:
        """Count an image that was read."""
        self.images += 1
        self.silent += example.text is None

    def sentences(self) -> list[str]:
        """For people."""
        found = []
        if self.broken.count:
            found.append(
                f"Left out: {_many(self.broken.count, 'image')} that cannot be read "
                f"({self.broken.named()})."
            )
        if self.unreadable_captions.count:
            found.append(
                f"{_many(self.unreadable_captions.count, 'caption file')} not in UTF-8, and so "
                f"not read ({self.unreadable_captions.named()})."
            )
        if self.endless.count:
            found.append(
                f"{self.endless.named()} lacks the mark of its end, and may have been cut off."
            )
        if self.unread_metadata.count:
            found.append(
                f"Not read: {self.unread_metadata.named()}. Unpack the archive to have it read."
            )
        if self.from_parameters:
            found.append(
                f"{_many(self.from_parameters, 'caption')} taken from what the image's generator "
                "wrote into the file."
            )
        if self.silent and self.silent == self.images:
            found.append("No image has a caption.")
        elif self.silent:
            found.append(f"{self.silent:,} of {self.images:,} images have no caption.")
        return found


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"
