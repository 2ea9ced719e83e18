"""Finds out what a dataset is, opens it, and keeps the notes while it is read."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from regforge.dataset.decisions import DecisionFile, Review, decisions_of
from regforge.dataset.sources.caption_columns import Findings
from regforge.dataset.sources.choosing import Choice, DeclaredData, choose, read_card
from regforge.dataset.sources.image_folders import FolderReader
from regforge.dataset.sources.tables import TableReader
from regforge.dataset.sources.tars import TarReader
from regforge.dataset.sources.trees import (
    CannotOpen,
    HubTree,
    LocalTree,
    Tree,
    ZipTree,
    download,
    look_up,
)
from regforge.files import expanded
from regforge.hub import HubAddress, HubError
from regforge.recipe.named_files import LEADS_OUT, inside, is_file, is_folder
from regforge.records import Example
from regforge.runs import RunFolder, recipe_in
from regforge.words import counted, listed, path_near, still_said

_FILES = re.compile(r"\.(?:parquet|zip|tar|tar\.gz|tgz)$", re.IGNORECASE)


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


@dataclass
class _Opened:
    """A `CaptionedDataset`; see there."""

    name: str
    layout: str
    revision: str | None
    license: str | None
    slots: tuple[str, ...]
    run: Path | None
    notes: list[str]
    _reader: FolderReader | TableReader | TarReader = field(repr=False)
    _decisions: DecisionFile | None = None

    def __post_init__(self) -> None:
        # Read once: who reads the images twice shall see the same ones.
        self._review = Review(self._decisions.read() if self._decisions else ())

    def examples(self, *, images: bool = True) -> Iterator[Example]:
        """See `CaptionedDataset.examples`."""
        left = out = 0
        for example in self._examples(images=images):
            key = key_of(example)
            if self._review.goes(key):
                out += 1
                continue
            left += 1
            text = self._review.text(key, example.text or "")
            yield example if text == (example.text or "") else corrected(example, text)
        if out:
            assert self._decisions is not None
            note = f"Left out: {counted(out, 'image')}, by {self._decisions.path}."
            if self.run is not None:
                note += f" Others are drawn in their place by: {RunFolder(self.run).command}"
            self.notes.append(note)
        if not left:
            raise CannotOpen(f"All images of {self.name} are rejected.", hint=self.notes[-1])

    def _examples(self, *, images: bool) -> Iterator[Example]:
        findings = Findings()
        ids: dict[str, int] = {}
        for example in self._reader.read(images=images, findings=findings):
            count = ids[example.id] = ids.get(example.id, 0) + 1
            if count > 1:  # one image with two captions, or two archives with the same names
                name = f"{example.id}#{count}"
                while name in ids:
                    name += "'"
                ids[name] = 1
                yield replace(example, id=name)
            else:
                yield example
        sentences = findings.sentences()
        self.notes[:] = [*self._reader.notes, *sentences]
        if not findings.images:
            hint = sentences[0] if sentences else None
            raise CannotOpen(f"{self.name} holds no image that can be read.", hint=hint)


def key_of(example: Example) -> tuple[str, str]:
    """The image, as decisions name it."""
    return example.id, str(example.metadata.get("image_digest") or "")


def corrected(example: Example, text: str) -> Example:
    """The image with another caption, and without what was true of the old one only."""
    metadata = dict(example.metadata)
    if isinstance(scores := metadata.get("scores"), dict):
        metadata["scores"] = {**scores, "alignment": None}
    return replace(example, text=text, slots=still_said(example.slots, text), metadata=metadata)


def open_dataset(
    where: str | Path,
    *,
    revision: str | None = None,
    streaming: bool = False,
    caption_column: str | None = None,
    reviewed: bool = True,
) -> CaptionedDataset:
    """Open a dataset.

    Args:
        where: A run, a dataset's folder, a folder of images, a .zip, .tar or .parquet file, or
            `user/name[:config][@revision]` on the Hub. What exists on disk is never looked for on
            the Hub.
        revision: Branch, tag or commit on the Hub; the same as `@revision`.
        streaming: Read from the Hub piece by piece instead of downloading it first.
        caption_column: Where captions stand, if not in `text`, `caption`, `prompt` or `txt`.
        reviewed: Leave out what people rejected, and take the captions that they corrected; see
            `regforge.dataset.decisions`.

    Raises:
        CannotOpen: There is no such thing, or it holds no images.
        HubError: It is on the Hub, and may not be read or cannot be reached.
    """
    path = expanded(where)
    if is_file(path) or is_folder(path):
        if revision is not None:
            raise CannotOpen(f"{where} lies on this machine and has no revision {revision!r}.")
        open_it = _open_file if is_file(path) else _open_folder
        return open_it(path, caption_column, reviewed)
    address = HubAddress.parse(str(where), dataset=True)
    if address is None:
        raise CannotOpen(f"{where} is not there.", hint=path_near(path))
    try:
        return _open_on_hub(address.at(revision), streaming, caption_column)
    except HubError as error:
        # Whoever meant a folder should learn that it is not there.
        hint = f"{error.hint or ''}\nNor is there a folder {where} on this machine.".strip()
        raise HubError(error.message, hint=hint) from error


def _open_folder(folder: Path, caption_column: str | None, reviewed: bool) -> _Opened:
    run, data = _run_of(folder), folder
    if is_file(folder / "recipe.yaml") and is_folder(folder / "dataset"):
        data = folder / "dataset"
        if inside(data, folder) is None:
            raise CannotOpen(f"{data} {LEADS_OUT}.", hint="Or name the folder that it leads to.")
    elif run == folder:
        _refuse_training(folder)
        raise CannotOpen(
            f"The run {folder} has no dataset yet.",
            hint=f"Finish it: {RunFolder(folder).command}",
        )
    tree = LocalTree(data)
    card = read_card(tree, str(folder))
    name = folder.resolve().name or str(folder.resolve())
    notes = []
    if tree.strays:
        leads = "leads" if len(tree.strays) == 1 else "lead"
        notes.append(
            f"Left out: {counted(len(tree.strays), 'link')} that {leads} out of the folder, or "
            f"nowhere ({listed(sorted(tree.strays), 3)})."
        )
    try:
        choice = choose(tree.files, card, str(folder))
    except CannotOpen as error:
        raise CannotOpen(error.message, hint=" ".join([*notes, error.hint or ""])) from error
    return _open(
        tree,
        choice,
        card,
        name,
        caption_column,
        run=run,
        notes=notes,
        decisions=decisions_of(folder, run) if reviewed else None,
    )


def _open_file(path: Path, caption_column: str | None, reviewed: bool) -> _Opened:
    if not _FILES.search(path.name):
        raise CannotOpen(
            f"{path} is no dataset.",
            hint="Name a folder, or a .parquet, .zip or .tar file. Of images and their captions, "
            "name the folder.",
        )
    tree, card = LocalTree.of_file(path), DeclaredData()
    return _open(
        tree,
        choose(tree.files, card, str(path)),
        card,
        path.name,
        caption_column,
        decisions=decisions_of(path, None) if reviewed else None,
    )


def _open_on_hub(address: HubAddress, streaming: bool, caption_column: str | None) -> _Opened:
    # Without streaming, the files that are needed go into the cache of huggingface_hub. When the
    # Hub cannot be reached, a copy there is used.
    folder, files, cached = look_up(address)
    commit = folder.name
    streamed = HubTree(address, commit, files)
    where, config = address.repo_id, address.config
    card = read_card(LocalTree(folder) if folder.is_dir() else streamed, where, config)
    choice = choose(files, card, where)
    tree: Tree = streamed
    if cached or not streaming:
        wanted = [*choice.data, *choice.beside]
        download(address, commit, wanted, cached=cached)
        tree = LocalTree(folder, only=wanted)
    note = f"The Hub cannot be reached; read the copy of commit {commit[:8]} on this machine."
    notes = [note] if cached else []
    return _open(tree, choice, card, address.repo_id, caption_column, revision=commit, notes=notes)


def _open(
    tree: Tree,
    choice: Choice,
    card: DeclaredData,
    name: str,
    caption_column: str | None,
    *,
    revision: str | None = None,
    run: Path | None = None,
    notes: Sequence[str] = (),
    decisions: Path | None = None,
) -> _Opened:
    """Open the files of a dataset, and read its first image."""
    reader: FolderReader | TableReader | TarReader
    if choice.kind == "parquet":
        reader = TableReader(tree, choice, caption_column)
    elif choice.kind == "tar":
        reader = TarReader(tree, choice, caption_column)
    elif choice.kind == "images":
        reader = FolderReader(tree, choice, caption_column)
    else:
        unpacked = ZipTree(tree, choice.data)
        chosen = choose(unpacked.files, DeclaredData(), name)
        if chosen.kind != "images":
            raise CannotOpen(
                f"{name} holds {chosen.kind} files in .zip archives.", hint="Unpack them first."
            )
        reader = FolderReader(unpacked, chosen, caption_column)
        reader.layout = "zip"
        reader.notes[:0] = choice.notes
    reader.notes[:0] = notes
    opened = _Opened(
        name=name,
        layout=reader.layout,
        revision=revision,
        license=card.license,
        slots=reader.slots,
        run=run,
        notes=list(reader.notes),
        _reader=reader,
        _decisions=DecisionFile(decisions) if decisions else None,
    )
    next(opened.examples(images=False), None)  # so that what cannot be read is reported at once
    return opened


def _refuse_training(run: Path) -> None:
    """Raise `CannotOpen` for the folder of a training, which has a model and no dataset."""
    recipe = recipe_in(run)
    if "base_model" not in recipe:
        return
    regularization = recipe.get("regularization")
    used = regularization.get("dataset") if isinstance(regularization, dict) else None
    raise CannotOpen(
        f"{run} is a training of {recipe['base_model']}: it holds a model, and no dataset.",
        hint=f"It was trained with the regularization images of {used}; name those."
        if used
        else f"Of the model: regforge evaluate {shlex.quote(str(run))}",
    )


def _run_of(folder: Path) -> Path | None:
    """The run that a folder is, or whose dataset it is."""
    for run in (folder, folder.resolve().parent):
        if is_file(run / "state.json") and is_file(run / "recipe.yaml"):
            return run if run == folder or folder.resolve().name == "dataset" else None
    return None
