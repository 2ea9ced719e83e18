"""The photos and the regularization images: opened, checked, and read one at a time.

Says in a sentence what cannot be trained on, and collects what a person should know. Images are
not held in memory: photos stay in their folder, regularization images in their dataset.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from regforge.dataset.sources import CaptionedDataset, open_dataset
from regforge.files import expanded, storage_error
from regforge.prompts.captions import CaptionTemplateError, instance_caption, word_pattern
from regforge.prompts.photos import (
    PhotosError,
    captions_of_run,
    photo_captions,
    syntax_notes,
)
from regforge.recipe.training import Regularization, TrainingSubject
from regforge.records import Example
from regforge.training.captioning import Composer, Said
from regforge.training.crops import ExamplesError
from regforge.words import listed

_TURNED = frozenset((5, 6, 7, 8))  # EXIF orientations with width and height exchanged
_FEW_PHOTOS = 3
_TEMPLATE = "caption.j2"


@dataclass(frozen=True, slots=True)
class TrainingImage:
    """An image that is trained on.

    Attributes:
        name: What its randomness follows from.
        label: What people call it.
        size: Height and width in pixels, as a viewer shows it.
        said: Its caption.
    """

    name: str
    label: str
    size: tuple[int, int]
    said: Said


class ImageSet(Protocol):
    """Images of one stream.

    Attributes:
        images: What is known of them, in the order of their index.
        notes: What a person should know, a sentence each.
    """

    images: Sequence[TrainingImage]
    notes: list[str]

    def read(self, index: int) -> bytes:
        """The file of one image."""
        ...

    def read_some(self, indexes: Collection[int]) -> Iterator[tuple[int, bytes]]:
        """The files of some images with their index, one after the other in any order."""
        ...


# ------------------------------------------------------------------------------------------ photos


class Photos:
    """The photos of the subject.

    Args:
        subject: Where they lie, and the words for what they show.
        run: The run's folder of the regularization dataset, which may have their captions.

    Attributes:
        silent: Names of those that have no caption of their own.

    Raises:
        PhotosError: There are none, or some cannot be read.
    """

    def __init__(self, subject: TrainingSubject, run: Path | None = None) -> None:
        plain = instance_caption(subject.identifier, subject.class_noun)
        silent: list[str] = []
        lent: dict[str, str] = {}
        if run is not None and subject.captions == "auto":
            lent = captions_of_run(run, subject.images, subject.identifier)

        lent_to: list[str] = []

        def describe(paths: Sequence[Path]) -> Mapping[str, str]:
            lent_to.extend(path.name for path in paths if path.name in lent)
            silent.extend(path.name for path in paths if path.name not in lent)
            return {path.name: plain for path in paths} | lent

        found = photo_captions(subject.images, subject.identifier, describe=describe)
        self._paths = [subject.images / each.file for each in found]
        # By content: renaming a photo changes nothing.
        self.images: Sequence[TrainingImage] = [
            TrainingImage(each.digest, each.file, (each.height, each.width), Said(each.caption))
            for each in found
        ]
        self.silent: Sequence[str] = silent
        self.notes = [
            *_notes_on_lent([each.file for each in found if each.file in lent_to], run),
            *syntax_notes(found),
            *_notes_on_photos(self.images, subject, silent, plain),
        ]

    def read(self, index: int) -> bytes:
        """See `ImageSet`."""
        path = self._paths[index]
        try:
            return path.read_bytes()
        except OSError as error:
            raise PhotosError(f"{path} cannot be read: {error.strerror}.") from error

    def read_some(self, indexes: Collection[int]) -> Iterator[tuple[int, bytes]]:
        """See `ImageSet`."""
        return ((index, self.read(index)) for index in sorted(indexes))


def _notes_on_lent(photos: Sequence[str], run: Path | None) -> list[str]:
    if not photos:
        return []
    takes = "takes the caption" if len(photos) == 1 else "take the captions"
    return [f"{listed(photos, 3)} {takes} that a vision model wrote for {run}."]


def run_of(dataset: str | None) -> Path | None:
    """The run's folder that a dataset on this machine lies in, or is; None if it has none."""
    if dataset is None:
        return None
    here = Path(dataset).expanduser()
    return next((path for path in (here, here.parent) if (path / "recipe.yaml").is_file()), None)


def _notes_on_photos(
    photos: Sequence[TrainingImage], subject: TrainingSubject, silent: Sequence[str], plain: str
) -> list[str]:
    notes = []
    if len(photos) < _FEW_PHOTOS:
        notes.append(
            f"There {'is only one photo' if len(photos) == 1 else 'are only two photos'}; "
            "what they have in common, such as the place, will be learned as part of the subject. "
            "3 to 20 that differ are better."
        )
    if silent:
        notes.append(
            f"{listed(silent, 3)} {'has' if len(silent) == 1 else 'have'} no caption and "
            f"{'gets' if len(silent) == 1 else 'get'} {plain!r}. A text file beside each photo "
            "that says where the subject is helps to keep place and subject apart."
        )
    pattern = word_pattern(subject.identifier)
    unnamed = [photo.label for photo in photos if not pattern.search(photo.said.text)]
    if unnamed:
        notes.append(
            f"The caption of {listed(unnamed, 3)} does not name the subject, "
            f"{subject.identifier!r}: nothing will tie the word to what the photo shows."
        )
    return notes


# ---------------------------------------------------------------------------------- regularization


class RegularizationImages:
    """The images of a regularization dataset that have a caption.

    Args:
        recipe: Which dataset.
        identifier: The subject's, which no caption should say.
        slot_dropout: Whether captions are to be composed again without some of their slots.

    Raises:
        ExamplesError: It has no captions.
        CannotOpen: There is no such dataset, or it holds no images.
        HubError: It is on the Hub and cannot be read.
    """

    def __init__(self, recipe: Regularization, identifier: str, *, slot_dropout: bool) -> None:
        assert recipe.dataset is not None
        self._dataset = open_dataset(recipe.dataset, revision=recipe.revision)
        self.revision = self._dataset.revision
        examples = list(self._dataset.examples(images=False))
        spoken = [example for example in examples if example.text]
        if not spoken:
            raise ExamplesError(
                f"{self._dataset.name} has no captions, and each regularization image needs its "
                "own.",
                hint="Put a text file beside each image (01.txt for 01.png), or name the column "
                "with the captions `text`; `regforge run` makes a set that has them.",
            )
        self._index_of = {example.id: index for index, example in enumerate(spoken)}
        said = _Sayings(self._dataset, recipe.dataset) if slot_dropout else None
        self.images: Sequence[TrainingImage] = [
            TrainingImage(
                example.id,
                f"{example.id} of {self._dataset.name}",
                _size_of(example),
                said.of(example) if said else Said(example.text or ""),
            )
            for example in spoken
        ]
        self.notes = self._notes(len(examples), identifier) + (said.notes() if said else [])
        self._files: dict[int, Path] | None = None

    def _notes(self, count: int, identifier: str) -> list[str]:
        silent = count - len(self.images)
        known = f"{silent:,} of {count:,} images have no caption."
        notes = [f"{self._dataset.name}: {n}" for n in self._dataset.notes if n != known]
        if silent:
            notes.append(f"{self._dataset.name}: {known[:-1]} and are left out.")
        pattern = word_pattern(identifier)
        naming = [each.name for each in self.images if pattern.search(each.said.text)]
        if naming:
            notes.append(
                f"The captions of {listed(naming, 3)} in {self._dataset.name} say {identifier!r}, "
                "which then stands for those things too. Choose another identifier, or take them "
                "out."
            )
        return notes

    def read(self, index: int) -> bytes:
        """See `ImageSet`; the first call copies images that are no files of their own aside."""
        if self._files is None:
            self._files = self._spread()
        try:
            return self._files[index].read_bytes()
        except OSError as error:
            raise ExamplesError(
                f"{self.images[index].label} cannot be read: {error.strerror}."
            ) from error

    def read_some(self, indexes: Collection[int]) -> Iterator[tuple[int, bytes]]:
        """See `ImageSet`."""
        wanted = set(indexes)
        for index, example in self._examples():
            if index in wanted:
                wanted.remove(index)
                yield index, example.image
        if wanted:
            raise ExamplesError(f"{self.images[min(wanted)].label} is not there any more.")

    def _examples(self) -> Iterator[tuple[int, Example]]:
        for example in self._dataset.examples():
            index = self._index_of.get(example.id)
            if index is not None:
                yield index, example

    def _spread(self) -> dict[int, Path]:
        """Each image as a file, so that they can be read in any order."""
        self._folder = tempfile.TemporaryDirectory(prefix="regforge-images-")
        files: dict[int, Path] = {}
        for index, example in self._examples():
            files[index] = example.file or Path(self._folder.name) / f"{index:08d}"
            if example.file is None:
                try:
                    files[index].write_bytes(example.image)
                except OSError as error:
                    raise storage_error(files[index], error) from error
        return files


def _size_of(example: Example) -> tuple[int, int]:
    turned = example.metadata.get("exif_orientation") in _TURNED
    return (example.width, example.height) if turned else (example.height, example.width)


class _Sayings:
    """The captions of a dataset, with what can be left out of them."""

    def __init__(self, dataset: CaptionedDataset, where: str) -> None:
        self._name = dataset.name
        self._captions = self._rigid = 0
        self._problem: str | None = None
        self._composer: Composer | None = None
        if not dataset.slots:
            self._problem = "its captions have no slots"
        elif (template := _template_of(dataset, where)) is None:
            self._problem = f"it has no {_TEMPLATE}, by which captions are composed"
        else:
            self._composer = Composer(template, f"{dataset.name}/{_TEMPLATE}", dataset.slots)

    def of(self, example: Example) -> Said:
        text = example.text or ""
        said = Said(text)
        self._captions += 1
        if self._composer is not None and example.class_noun:
            try:
                said = self._composer.said(
                    text,
                    example.slots,
                    class_noun=example.class_noun,
                    kind=example.kind or "object",
                    prompt_set=example.prompt_set,
                )
            except CaptionTemplateError as error:
                self._problem, self._composer = error.message.rstrip("."), None
        self._rigid += said.write is None and any(example.slots.values())
        return said

    def notes(self) -> list[str]:
        if self._problem is not None:
            return [f"{self._name}: slots cannot be left out (data.slot_dropout): {self._problem}."]
        if self._rigid:
            return [
                f"{self._name}: {self._rigid:,} of {self._captions:,} captions are not as "
                f"{_TEMPLATE} writes them; their slots are never left out."
            ]
        return []


def _template_of(dataset: CaptionedDataset, where: str) -> Path | None:
    """The caption template of one of our datasets, on this machine or from the Hub."""
    if dataset.revision is not None:
        from huggingface_hub import hf_hub_download

        try:
            return Path(
                hf_hub_download(
                    dataset.name, _TEMPLATE, repo_type="dataset", revision=dataset.revision
                )
            )
        except Exception:  # not there, or not to be had now; it is only a convenience
            return None
    here = expanded(where)
    places = [here / "dataset" / _TEMPLATE, here / _TEMPLATE]
    return next((path for path in places if path.is_file()), None)
