"""Finds out what a dataset is, and opens it."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from regforge.dataset.sources.captions import listed
from regforge.dataset.sources.cards import Card, read_card
from regforge.dataset.sources.choosing import choose
from regforge.dataset.sources.interface import CannotOpen, CaptionedDataset
from regforge.dataset.sources.opened import Opened, open_tree
from regforge.dataset.sources.remote import open_on_hub
from regforge.dataset.sources.trees import LocalTree, NamedFile
from regforge.files import expanded
from regforge.hub import HubAddress, HubError
from regforge.recipe.named_files import LEADS_OUT, inside, is_file, is_folder

_FILES = re.compile(r"\.(?:parquet|zip|tar|tar\.gz|tgz)$", re.IGNORECASE)


def open_dataset(
    where: str | Path,
    *,
    revision: str | None = None,
    streaming: bool = False,
    caption_column: str | None = None,
) -> CaptionedDataset:
    """Open a dataset.

    Args:
        where: A run, a dataset's folder, a folder of images, a .zip, .tar or .parquet file, or
            `user/name[@revision]` on the Hub. What exists on disk is never looked for on the Hub.
        revision: Branch, tag or commit on the Hub; the same as `@revision`.
        streaming: Read from the Hub piece by piece instead of downloading it first.
        caption_column: Where captions stand, if not in `text`, `caption`, `prompt` or `txt`.

    Raises:
        CannotOpen: There is no such thing, or it holds no images.
        HubError: It is on the Hub, and may not be read or cannot be reached.
    """
    path = expanded(where)
    if is_file(path) or is_folder(path):
        if revision is not None:
            raise CannotOpen(f"{where} lies on this machine and has no revision {revision!r}.")
        return _open_file(path, caption_column) if is_file(path) else _open(path, caption_column)
    address = HubAddress.parse(str(where))
    if address is None:
        raise CannotOpen(f"{where} is not there.", hint=_alike(path))
    try:
        return open_on_hub(address.at(revision), streaming=streaming, caption_column=caption_column)
    except HubError as error:
        # Whoever meant a folder should learn that it is not there.
        hint = f"{error.hint or ''}\nNor is there a folder {where} on this machine.".strip()
        raise HubError(error.message, hint=hint) from error


def _open(folder: Path, caption_column: str | None) -> Opened:
    run, data = _run_of(folder), folder
    if is_file(folder / "recipe.yaml") and is_folder(folder / "dataset"):
        data = folder / "dataset"
        if inside(data, folder) is None:
            raise CannotOpen(f"{data} {LEADS_OUT}.", hint="Or name the folder that it leads to.")
    elif run == folder:
        raise CannotOpen(
            f"The run {folder} has no dataset yet.",
            hint=f"Finish it: regforge run {folder / 'recipe.yaml'} --out {folder}",
        )
    tree = LocalTree(data)
    card = read_card(tree)
    name = folder.resolve().name or str(folder.resolve())
    notes = []
    if tree.strays:
        links = f"{len(tree.strays):,} link{'s' * (len(tree.strays) > 1)}"
        notes.append(
            f"Left out: {links} that lead{'s' * (len(tree.strays) == 1)} out of the folder, or "
            f"nowhere ({listed(sorted(tree.strays), 3)})."
        )
    try:
        choice = choose(tree.files, card, str(folder))
    except CannotOpen as error:
        raise CannotOpen(error.message, hint=" ".join([*notes, error.hint or ""])) from error
    return open_tree(
        tree, choice, card, name=name, caption_column=caption_column, run=run, notes=notes
    )


def _open_file(path: Path, caption_column: str | None) -> Opened:
    if not _FILES.search(path.name):
        raise CannotOpen(
            f"{path} is no dataset.",
            hint="Name a folder, or a .parquet, .zip or .tar file. Of images and their captions, "
            "name the folder.",
        )
    tree = NamedFile(path)
    choice = choose(tree.files, Card(), str(path))
    return open_tree(tree, choice, Card(), name=path.name, caption_column=caption_column)


def _run_of(folder: Path) -> Path | None:
    """The run that a folder is, or whose dataset it is."""
    for run in (folder, folder.resolve().parent):
        if is_file(run / "state.json") and is_file(run / "recipe.yaml"):
            return run if run == folder or folder.resolve().name == "dataset" else None
    return None


def _alike(path: Path) -> str | None:
    try:
        names = [each.name for each in path.parent.iterdir()]
    except (OSError, ValueError):
        return None
    close = difflib.get_close_matches(path.name, names, 1, 0.6)
    return f"Did you mean {path.parent / close[0]}?" if close else None
