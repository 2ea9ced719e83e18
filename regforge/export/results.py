"""What an export was, for people and for scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regforge.export.checking import Checked
from regforge.export.common import some


@dataclass(frozen=True)
class Target:
    """What was written for one trainer.

    Attributes:
        name: As `--to` takes it.
        title: As its authors write it.
        readme: README-<trainer>.md.
        files: Paths of its other files, below the export's folder.
        command: How to start it.
        notes: What it will do with the data.
        checked: What the check found; None if nobody asked for it.
    """

    name: str
    title: str
    readme: Path
    files: Sequence[str]
    command: str
    notes: Sequence[str]
    checked: Checked | None = None

    def as_dict(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "name": self.name,
            "readme": str(self.readme),
            "files": list(self.files),
            "command": self.command,
            "notes": list(self.notes),
            "checked": self.checked.as_dict() if self.checked else None,
        }

    def as_text(self) -> str:
        """For a terminal."""
        lines = [self.title, *_listed(self.notes), ""]
        lines += [f"  {line}" for line in self.command.splitlines()]
        lines += ["", f"  More in {_short(self.readme)}"]
        checked = self.checked.as_text() if self.checked else ""
        lines += [f"  {line}" for line in checked.splitlines()]
        return "\n".join(lines)


@dataclass(frozen=True)
class Exported:
    """What an export was.

    Attributes:
        out: Its folder.
        dataset: Name of the dataset.
        images: How many regularization images it has.
        photos: How many photos of the subject.
        notes: What a person should know about the data, whatever the trainer.
        targets: What was written for each trainer that was asked for.
    """

    out: Path
    dataset: str
    images: int
    photos: int
    notes: Sequence[str]
    targets: Sequence[Target]

    @property
    def differs(self) -> bool:
        """Whether a check found differences."""
        return any(target.checked and target.checked.differences for target in self.targets)

    def as_dict(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "out": str(self.out),
            "dataset": self.dataset,
            "images": self.images,
            "photos": self.photos,
            "notes": list(self.notes),
            "targets": [target.as_dict() for target in self.targets],
        }

    def as_text(self) -> str:
        """For a terminal."""
        photos = f" and {some(self.photos, 'photo')}" if self.photos else ""
        head = [
            f"{some(self.images, 'image')} of {self.dataset}{photos} in {_short(self.out)}",
            *_listed(self.notes),
        ]
        parts = ["\n".join(head), *(target.as_text() for target in self.targets)]
        if self.differs:
            parts.append(
                "What is missing is written again by the same command without --check. Delete "
                "what was changed before that, or export to another folder."
            )
        return "\n\n".join(parts)


def _listed(notes: Sequence[str]) -> list[str]:
    return [f"- {note}" for note in notes]


def _short(path: Path) -> Path:
    """The path as a person in this folder would write it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
