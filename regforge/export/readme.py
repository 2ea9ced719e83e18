"""README-<trainer>.md: how to use an export with one trainer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from regforge.export.common import some
from regforge.export.interface import IMAGES, SUBJECT, Material, Plan, Trainer
from regforge.export.layout import METADATA


def readme_name(trainer: Trainer) -> str:
    """File name of a trainer's README."""
    return f"README-{trainer.name}.md"


def readme(trainer: Trainer, material: Material, plan: Plan, notes: Sequence[str]) -> str:
    """Its text, in Markdown.

    Args:
        trainer: Which.
        material: What was exported.
        plan: What is written for it.
        notes: About the data, whatever the trainer.
    """
    return "\n".join(
        [
            f"# Regularization images for {trainer.title}",
            "",
            f"{some(len(material.images), 'image')} of the class `{material.class_noun}`, "
            f"exported by regforge. The subject is called `{material.identifier}`.",
            "",
            "## What the trainer does with them",
            "",
            *(f"- {note}" for note in (*plan.notes, *notes)),
            "",
            "## Start it",
            "",
            "```bash",
            plan.command,
            "```",
            "",
            "## Files",
            "",
            *file_table(material, plan),
            "",
        ]
    )


def file_table(material: Material, plan: Plan) -> list[str]:
    """What lies where, as a Markdown table."""
    last = material.images[-1].name
    rows = [
        (f"{IMAGES}/", f"the images, {material.images[0].name} to {last}, each with its "
         "caption in a .txt file; any first part of them is balanced"),
        (f"{SUBJECT}/", f"{some(len(material.photos), 'photo')} of the subject with captions"
         if material.photos else "empty: put the photos of the subject here"),
        (METADATA, "everything known about each image"),
        *((name, "read by the trainer") for name in plan.files),
        *((f"{folder}/", "the same files once more, as hard links")
          for folder in _folders(plan.links)),
        *((f"{folder}/", "tar files") for folder in _folders(plan.shards)),
        ("export.json", "what was exported, from which dataset"),
    ]  # fmt: skip
    return ["| path | what |", "| --- | --- |", *(f"| `{path}` | {what} |" for path, what in rows)]


def _folders(paths: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(str(PurePosixPath(path).parent) for path in paths))
