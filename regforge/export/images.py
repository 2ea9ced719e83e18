"""The second look at a dataset: its images, captions and metadata into the layout."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace

from regforge.dataset.sources import CaptionedDataset
from regforge.export.collecting import Collected, cannot_read
from regforge.export.columns import as_line
from regforge.export.interface import IMAGES, ExportError
from regforge.export.layout import METADATA, Folder, stems, suffix_of
from regforge.image_files import plain_png
from regforge.progress import Reporter
from regforge.records import Example

_DIGITS = 5


@dataclass(frozen=True)
class ExportedImages:
    """Which images of a dataset go into the layout, and how.

    Attributes:
        source: The dataset.
        collected: What is known about it.
        order: Numbers of its images, in the order of the layout.
        captions: As they are to be written, in that order.
    """

    source: CaptionedDataset
    collected: Collected
    order: Sequence[int]
    captions: Sequence[str]

    def lay(self, folder: Folder, keep: Set[str], reporter: Reporter) -> tuple[list[str], str]:
        """Write images, captions and metadata.jsonl, with one image in memory at a time.

        Args:
            folder: Where to.
            keep: Paths below the folder that are left as they are.
            reporter: Gets progress.

        Returns:
            The names of the images in their order; SHA-256 of metadata.jsonl.

        Raises:
            ExportError: An image is of a type that trainers do not read, or the dataset is no
                longer what it was.
            StorageError: A file cannot be written.
        """
        count = len(self.order)
        places = array("l", [-1]) * len(self.collected.ids)
        for place, index in enumerate(self.order):
            places[index] = place
        kinds = self.collected.columns.kinds
        stem_of, names, lines = list(stems(count, _DIGITS)), [""] * count, [b""] * count
        with reporter.task("writing", count, "images") as task:
            for index, example in enumerate(self.source.examples()):
                if index >= len(places) or example.id != self.collected.ids[index]:
                    raise self._changed()
                if (place := places[index]) < 0:
                    continue
                if (suffix := suffix_of(example.image)) is None:
                    raise cannot_read([example.id])
                example, odd = self._plain(example, index)
                suffix = "png" if odd else suffix
                stem, caption = f"{IMAGES}/{stem_of[place]}", self.captions[place]
                names[place] = f"{stem_of[place]}.{suffix}"
                if (image := f"{stem}.{suffix}") not in keep:
                    if example.file and not odd:
                        folder.link(image, example.file)
                    else:
                        folder.write(image, example.image)
                if f"{stem}.txt" not in keep:
                    folder.write(f"{stem}.txt", caption.encode())
                row = self.collected.columns.row(
                    example, file_name=image, text=caption, kinds=kinds
                )
                lines[place] = as_line(row)
                task.advance()
        if not all(names):
            raise self._changed()
        if METADATA in keep:
            return names, ""
        return names, folder.write_lines(METADATA, lines)

    def _plain(self, example: Example, index: int) -> tuple[Example, bool]:
        """The example as it is written, and whether its image is another file than it was."""
        said = example.metadata.get("image_digest")
        collected = self.collected
        if index in collected.odd:
            image = plain_png(example.image)
            metadata = dict(example.metadata)
            if said:
                metadata["image_digest"] = hashlib.sha256(image).hexdigest()
            width, height = collected.widths[index], collected.heights[index]
            plain = replace(example, image=image, width=width, height=height, metadata=metadata)
            return plain, True
        own = self.source.layout == "regforge" and said
        if own and hashlib.sha256(example.image).hexdigest() != said:
            raise ExportError(
                f"Image {example.id} of {self.source.name} is not the one that was drawn.",
                hint="The dataset is damaged: make or download it again.",
            )
        return example, False

    def _changed(self) -> ExportError:
        return ExportError(f"{self.source.name} changed while it was read; export it again.")
