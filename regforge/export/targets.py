"""Writes what one trainer needs, beside the layout.

A file that somebody has changed since is not written over, and one that is not ours never is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from regforge.export.checking import metadata_rows
from regforge.export.interface import Material, Plan, Trainer
from regforge.export.layout import Folder
from regforge.export.readme import readme, readme_name
from regforge.export.results import Target


def files_of(
    trainer: Trainer, material: Material, plan: Plan, notes: Sequence[str]
) -> dict[str, str]:
    """The texts that are written for a trainer, by their path below the export's folder."""
    return {**plan.files, readme_name(trainer): readme(trainer, material, plan, notes)}


def digests_of(files: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 of each text, 64 hex digits."""
    return {path: hashlib.sha256(text.encode()).hexdigest() for path, text in files.items()}


def write_target(
    folder: Folder, plan: Plan, files: Mapping[str, str], before: Mapping[str, str]
) -> list[str]:
    """Write what is not there yet.

    Args:
        folder: The export's folder.
        plan: What the trainer needs.
        files: All of its texts.
        before: SHA-256 of the texts as they were written for it before; empty if none were.

    Returns:
        The texts that were left as somebody has changed them.

    Raises:
        ExportError: A file is in the way that is not ours.
        StorageError: A file cannot be written.
    """
    changed = []
    for path, text in files.items():
        there = _digest(folder.top / path)
        if there is not None and path in before and there != before[path]:
            if there != hashlib.sha256(text.encode()).hexdigest():
                changed.append(path)
        else:
            folder.write(path, text.encode(), replace=path in before)
    for path, source in plan.links.items():
        if not (before and (folder.top / path).exists()):
            folder.link(path, folder.top / source, replace=False)
    missing = [path for path in plan.shards if not (folder.top / path).exists()]
    rows = metadata_rows(folder.top) if missing else {}
    for path in missing:
        folder.write_shard(path, plan.shards[path], rows)
    return changed


def target_of(trainer: Trainer, material: Material, plan: Plan, changed: Sequence[str]) -> Target:
    """What to tell about a trainer's files.

    Args:
        trainer: Which.
        material: What was exported.
        plan: What was written for it.
        changed: The texts that were left as somebody has changed them.
    """
    kept = [
        f"{path} was changed since it was written and is left as it is. Delete it and export "
        "again to have it written anew."
        for path in changed
    ]
    return Target(
        name=trainer.name,
        title=trainer.title,
        readme=material.out / readme_name(trainer),
        files=[*plan.files, *plan.shards],
        command=plan.command,
        notes=[*plan.notes, *kept],
    )


def _digest(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None
