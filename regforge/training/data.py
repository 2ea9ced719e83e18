"""Instance images and regularization images: made if need be, opened, checked, read one by one.

Images are not held in memory: instance images stay in their folder, regularization images in their
dataset. A dataset that the recipe names by its own recipe is run first, in runs/<its name>.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from regforge.dataset.sources import CaptionedDataset, open_dataset
from regforge.files import expanded, storage_error
from regforge.journal import Reporter
from regforge.prompts.against import PhotoCaptionUnclear, cut_open
from regforge.prompts.captions import (
    CaptionTemplateError,
    article_for,
    instance_caption,
    word_pattern,
)
from regforge.prompts.photos import PhotosError, captions_of_run, photo_captions, syntax_notes
from regforge.recipe import Recipe, TrainingRecipe, dataset_recipe_of, recipe_digest
from regforge.recipe.training import Regularization, TrainingSubject
from regforge.records import Example, without_folders
from regforge.runs import FolderInUse, RunFolder, RunFolderError
from regforge.training.augmentation import Caption, Composer
from regforge.training.batches import ExamplesError, TrainingSetup
from regforge.words import has_words, listed

_TURNED = frozenset((5, 6, 7, 8))  # EXIF orientations with width and height exchanged
_FEW_PHOTOS = 3
_TEMPLATE = "caption.j2"
_POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class TrainingImage:
    """An image that is trained on.

    Attributes:
        name: What its randomness follows from.
        label: What people call it.
        size: Height and width in pixels, as a viewer shows it.
    """

    name: str
    label: str
    size: tuple[int, int]
    caption: Caption


class InstanceImages:
    """The subject's photos, and notes on them that people should read.

    `run` is the run's folder of the regularization dataset, which may have their captions.

    Raises:
        PhotosError: There are none, or some cannot be read.
    """

    def __init__(self, subject: TrainingSubject, run: Path | None = None) -> None:
        self._subject = subject
        plain = instance_caption(subject.word, subject.class_noun)
        lent: dict[str, str] = {}
        if run is not None and subject.captions == "auto":
            lent = captions_of_run(run, subject.images, subject.word)
        uncaptioned: list[str] = []

        def describe(paths: Sequence[Path]) -> dict[str, str]:
            uncaptioned.extend(path.name for path in paths)
            return dict.fromkeys(uncaptioned, plain) | lent

        found = photo_captions(subject.images, subject.word, subject.class_noun, describe=describe)
        self._paths = [subject.images / each.file for each in found]
        # By content: renaming a photo changes nothing.
        self.images = [
            TrainingImage(each.digest, each.file, (each.height, each.width), Caption(each.caption))
            for each in found
        ]
        self.without_caption = [name for name in uncaptioned if name not in lent]
        self.notes = [*syntax_notes(found), *self._notes(subject, plain)]
        if from_run := [name for name in uncaptioned if name in lent]:
            take = "takes the caption" if len(from_run) == 1 else "take the captions"
            written = f"{listed(from_run, 3)} {take} that a vision model wrote for {run}."
            self.notes.insert(0, written)

    def _notes(self, subject: TrainingSubject, plain: str) -> Iterator[str]:
        count, bare = len(self.images), self.without_caption
        if count < _FEW_PHOTOS:
            yield (
                f"There {'is only one photo' if count == 1 else 'are only two photos'}; what they "
                "have in common, such as the place, will be learned as part of the subject. 3 to "
                "20 that differ are better."
            )
        if bare:
            has, gets = ("has", "gets") if len(bare) == 1 else ("have", "get")
            yield (
                f"{listed(bare, 3)} {has} no caption and {gets} {plain!r}. A text file beside "
                "each photo that says where the subject is helps to keep place and subject apart."
            )
        pattern = word_pattern(subject.word)
        unnamed = [each.label for each in self.images if not pattern.search(each.caption.text)]
        if unnamed:
            yield (
                f"The caption of {listed(unnamed, 3)} does not name the subject, "
                f"{subject.word!r}: nothing will tie the word to what the photo shows."
            )

    def class_captions(self) -> list[Caption]:
        """The captions without the identifier: what a class twin is trained with.

        Raises:
            ExamplesError: One names something else than the subject, or the identifier stays in it.
        """
        noun, word = self._subject.class_noun, self._subject.word
        found = []
        for image in self.images:
            try:
                around = cut_open(image.caption.text, noun, word, image.label, vary=False)
            except PhotoCaptionUnclear as error:
                hint = f"A class twin (regularization.class_twins) needs it: 'a photo of a {noun}'."
                raise ExamplesError(error.message, hint=hint) from error
            text = around.caption({}, noun, article_for(noun))
            if has_words(text, word):
                raise ExamplesError(
                    f"{image.label}: the identifier cannot be taken out of its caption: {text!r}.",
                    hint="A class twin (regularization.class_twins) has the caption without it.",
                )
            found.append(Caption(text))
        return found

    def read(self, index: int) -> bytes:
        """The file of an image, or PhotosError."""
        path = self._paths[index]
        try:
            return path.read_bytes()
        except OSError as error:
            raise PhotosError(f"{path} cannot be read: {error.strerror}.") from error

    def read_some(self, indexes: Collection[int]) -> Iterator[tuple[int, bytes]]:
        """The files of some images with their index, in any order."""
        return ((index, self.read(index)) for index in sorted(indexes))


def run_of(dataset: str | None) -> Path | None:
    """The run's folder that a dataset on this machine lies in, or is; None if it has none."""
    if dataset is None:
        return None
    here = Path(dataset).expanduser()
    return next((path for path in (here, here.parent) if (path / "recipe.yaml").is_file()), None)


class RegularizationImages:
    """The images of a regularization dataset that have a caption, and notes on them.

    No caption should contain the subject's `identifier`; with `slot_dropout`, captions can be
    composed again without some of their slots. `revision` is the dataset's commit on the Hub, and
    `models` are those that drew the images, where it says so.

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
        captioned = [example for example in examples if example.text]
        if not captioned:
            raise ExamplesError(
                f"{self._dataset.name} has no captions, and each regularization image needs its "
                "own.",
                hint="Put a text file beside each image (01.txt for 01.png), or name the column "
                "with the captions `text`; `regforge run` makes a set that has them.",
            )
        self._index_of = {example.id: index for index, example in enumerate(captioned)}
        drawn_by = {example.metadata.get("model") for example in captioned}
        self.models = sorted(name for name in drawn_by if isinstance(name, str))
        reader = _SlotReader(self._dataset, recipe.dataset) if slot_dropout else None
        self.images = [
            TrainingImage(
                example.id,
                f"{example.id} of {self._dataset.name}",
                _size_of(example),
                reader.caption(example) if reader else Caption(example.text or ""),
            )
            for example in captioned
        ]
        self.notes = list(self._notes(len(examples), identifier))
        self.notes += reader.notes() if reader else []
        self._files: dict[int, Path] | None = None

    def _notes(self, count: int, identifier: str) -> Iterator[str]:
        name = self._dataset.name
        uncaptioned = count - len(self.images)
        known = f"{uncaptioned:,} of {count:,} images have no caption."
        yield from (f"{name}: {note}" for note in self._dataset.notes if note != known)
        if uncaptioned:
            yield f"{name}: {known[:-1]} and are left out."
        pattern = word_pattern(identifier)
        naming = [each.name for each in self.images if pattern.search(each.caption.text)]
        if naming:
            yield (
                f"The captions of {listed(naming, 3)} in {name} say {identifier!r}, which then "
                "stands for those things too. Choose another identifier, or take them out."
            )

    def read(self, index: int) -> bytes:
        """The file of an image; the first call copies aside those that are no files."""
        if self._files is None:
            self._files = self._spread()
        try:
            return self._files[index].read_bytes()
        except OSError as error:
            raise ExamplesError(
                f"{self.images[index].label} cannot be read: {error.strerror}."
            ) from error

    def read_some(self, indexes: Collection[int]) -> Iterator[tuple[int, bytes]]:
        """The files of some images with their index, in any order."""
        missing = set(indexes)
        for index, example in self._examples():
            if index in missing:
                missing.remove(index)
                yield index, example.image
        if missing:
            raise ExamplesError(f"{self.images[min(missing)].label} is not there any more.")

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


def at_odds(recipe: TrainingRecipe, models: Collection[str], identifier: str | None) -> list[str]:
    """What the regularization images and the training do not agree on, a sentence each.

    `models` drew them, and `identifier` is what their recipe calls the subject, if it does.
    """
    mine, own = without_folders(recipe.base_model), recipe.subject.word
    others = sorted({without_folders(name) for name in models} - {mine})
    found = []
    if others:
        found.append(
            f"The regularization images were drawn by {listed(others, 3)}, and the base model is "
            f"{mine}. They are to show what the base model itself makes of their captions: draw "
            "them with it, or train the model that drew them."
        )
    if identifier is not None and identifier != own:
        found.append(
            f"The recipe of the regularization images calls the subject {identifier!r}, and this "
            f"one {own!r} (subject.identifier)."
        )
    return found


class _SlotReader:
    """Finds out what can be left out of the captions of a dataset."""

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

    def caption(self, example: Example) -> Caption:
        caption = Caption(example.text or "")
        self._captions += 1
        if self._composer is not None and example.class_noun:
            try:
                caption = self._composer.caption(
                    caption.text,
                    example.slots,
                    class_noun=example.class_noun,
                    kind=example.kind or "object",
                    prompt_set=example.prompt_set,
                )
            except CaptionTemplateError as error:
                self._problem, self._composer = error.message.rstrip("."), None
        self._rigid += caption.compose is None and any(example.slots.values())
        return caption

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
    if dataset.revision is None:
        here = expanded(where)
        places = [here / "dataset" / _TEMPLATE, here / _TEMPLATE]
        return next((path for path in places if path.is_file()), None)
    from huggingface_hub import hf_hub_download

    name, revision = dataset.name, dataset.revision
    try:
        return Path(hf_hub_download(name, _TEMPLATE, repo_type="dataset", revision=revision))
    except Exception:  # not there, or not to be had now; it is only a convenience
        return None


# ------------------------------------------------------------------ datasets named by their recipe


def is_finished(folder: RunFolder, recipe: Recipe) -> bool:
    """Whether the folder holds this recipe's run with all its images, and the dataset of them."""
    same = folder.digest == recipe_digest(recipe)
    return same and folder.state().get("images") == recipe.image_count and folder.dataset.is_dir()


def check_folders(recipe: TrainingRecipe, folder: Path) -> None:
    """Refuse a training run in the folder of the dataset that it names by its recipe.

    Raises:
        TrainingSetup: They are one folder.
    """
    made_by = dataset_recipe_of(recipe)
    if made_by is not None and RunFolder(made_by.folder).path.resolve() == folder.resolve():
        raise TrainingSetup(
            f"The training and its regularization images would both lie in {folder}.",
            hint=f"Give the training recipe another name than {made_by.name!r}, or choose another "
            "folder with --out.",
        )


def with_dataset(recipe: TrainingRecipe, *, is_main: bool, reporter: Reporter) -> TrainingRecipe:
    """The recipe with a dataset in place of the recipe of one, which is run if need be.

    The main process runs it; the others wait until it is finished, for as long as that takes.

    Raises:
        RegforgeError: The dataset cannot be made.
    """
    made_by = dataset_recipe_of(recipe)
    if made_by is None:
        return recipe
    folder = RunFolder(made_by.folder)
    if is_main:
        if not is_finished(folder, made_by):
            for note in at_odds(recipe, [made_by.render.model], made_by.subject.identifier):
                reporter.say(note)
        _make(made_by, folder, reporter)
    while not is_finished(folder, made_by):
        # Not by a barrier: those give up after some minutes. Our launcher ends us if it fails.
        time.sleep(_POLL_SECONDS)
    prior = recipe.regularization.model_copy(update={"dataset": str(folder.path)})
    return recipe.model_copy(update={"regularization": prior})


def _make(recipe: Recipe, folder: RunFolder, reporter: Reporter) -> None:
    if is_finished(folder, recipe):
        return
    from regforge import forge

    count = f"{recipe.image_count:,} regularization images"
    reporter.say(f"First the {count}, in {recipe.folder}")
    while not is_finished(folder, recipe):
        try:
            forge.run(recipe, out=folder.path, reporter=reporter)
        except FolderInUse:  # as when two trainings with the same images start together
            reporter.say("Another regforge is making them; waiting until it is done.")
            _wait_for(folder)
        except RunFolderError as error:  # its hints are for `regforge run`
            raise TrainingSetup(
                f"The regularization images cannot be made: {error.message}",
                hint=f"`regforge run {recipe.source or 'RECIPE'} --fresh` starts them over (what "
                "is there is deleted). Or run that recipe with --out RUN, and here use "
                "--set regularization.dataset=RUN",
            ) from error
    gc.collect()  # what has drawn them makes room
    reporter.say("Now the training")


def _wait_for(folder: RunFolder) -> None:
    """Until no other process holds a folder."""
    while True:
        try:
            with folder.locked():
                return
        except FolderInUse:
            time.sleep(_POLL_SECONDS)
