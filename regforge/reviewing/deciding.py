"""Decisions on their way into the file: completed and checked; as a list, and as a cleaned copy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from regforge.dataset.decisions import Decision, DecisionFile, DecisionsError, Review
from regforge.dataset.sources.caption_columns import SIDECARS
from regforge.dataset.sources.choosing import METADATA
from regforge.dataset.sources.opened import corrected, key_of
from regforge.display import Displayed
from regforge.files import storage_errors, unfinished_folder, write_atomically
from regforge.recipe.named_files import ByName, inside
from regforge.records import Example
from regforge.reviewing.material import Material
from regforge.runs import RunFolder
from regforge.words import counted, from_here


@dataclass(frozen=True)
class Reviewed(Displayed):
    """How far a review is.

    Attributes:
        images: How many there are now.
        kept, rejected, captions: How many of them were marked so, or have another caption.
        replaced: How many were rejected and are replaced already.
        file: Where the decisions lie.
        command: Carries them out; None for a folder that is not ours.
        notes: What is in the folder and is neither reviewed nor copied, a sentence each.
    """

    images: int
    kept: int
    rejected: int
    captions: int
    replaced: int
    file: Path
    command: str | None
    notes: list[str]

    @classmethod
    def of(cls, material: Material) -> Reviewed:
        """Count what was decided."""
        review, there = material.review(), material.examples
        marks = [each.do for key, each in review.marks.items() if key in there]
        gone = [each for some in review.rejected.values() for each in some if each.key not in there]
        changed = [
            key
            for key, each in there.items()
            if key in review.captions and review.captions[key].text != each.text
        ]
        open_ones = "reject" in marks or changed
        return cls(
            images=len(there),
            kept=marks.count("keep"),
            rejected=marks.count("reject"),
            captions=len(changed),
            replaced=len(gone),
            file=material.file.path,
            command=material.run.command if material.run and open_ones else None,
            notes=material.notes,
        )

    def as_dict(self) -> dict[str, Any]:
        """For scripts."""
        return {**vars(self), "file": str(self.file)}

    def as_text(self) -> str:
        """For a terminal."""
        lines = [
            f"{counted(self.images, 'image')}: {self.kept:,} kept, {self.rejected:,} rejected, "
            f"{counted(self.captions, 'caption')} changed; {self.replaced:,} replaced before.",
            f"  decisions   {from_here(self.file)}",
        ]
        lines += [f"  next        {self.command}"] if self.command else []
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def decide(material: Material, wanted: Iterable[Decision]) -> list[Decision]:
    """Write decisions down, all of them or none; those that change nothing are left out.

    Those that name no image file are about the image that has the id now.

    Raises:
        DecisionsError: There is no such image, or it cannot have such a caption.
        StorageError: They cannot be written.
    """
    known = material.file.read()
    numbers = {each.n for each in known if each.do != "undo"}
    numbers -= {number for each in known for number in each.undoes}
    review, new = Review(known), []
    there = {example.id: example for example in material.examples.values()}
    for each in wanted:
        if each.do == "undo":
            if undone := tuple(n for n in each.undoes if n in numbers):
                new.append(Decision("undo", undoes=undone))
            continue
        example = there.get(each.id)
        if example is None:
            raise DecisionsError(f"{material.name} has no image {each.id!r}.")
        key = key_of(example)
        if each.image not in ("", key[1]):  # it was replaced since
            continue
        before = review.captions if each.do == "caption" else review.marks
        was = review.drawn_text(key, example.text or "")
        decision = each
        if each.do == "caption":
            decision = _captioned(material, each)
            if decision.text == was:  # nothing to draw; it may call off what was asked before
                decision = replace(decision, redraw=False)
                if key not in before:
                    continue
        if key in before and _same(before[key], decision):
            continue
        seed = example.metadata.get("seed")
        seed = seed if isinstance(seed, int) else None
        new.append(replace(decision, image=key[1], seed=seed, was=was))
    return material.file.append(new) if new else []


def _same(before: Decision, now: Decision) -> bool:
    facts = [(each.do, each.reason, each.text, each.redraw) for each in (before, now)]
    return facts[0] == facts[1]


def _captioned(material: Material, wanted: Decision) -> Decision:
    """The decision about a caption, tidied and checked.

    Raises:
        DecisionsError: No image can have it.
    """
    from regforge.prompts.writing import caption_problem

    text, recipe = " ".join(wanted.text.split()), material.recipe
    identifier = recipe.subject.identifier if recipe else None
    if problem := caption_problem(text, identifier, material.budget):
        raise DecisionsError(f"{wanted.id}: the caption {problem}.")
    return replace(wanted, text=text, redraw=wanted.redraw and material.run is not None)


def apply_decisions(material: Material, path: Path) -> list[Decision]:
    """Take over what the decisions in a file come to.

    Raises:
        DecisionsError: It cannot be read, or one is about an image that is not there; nothing was
            taken over then.
    """
    if not path.is_file():
        raise DecisionsError(f"{path} is not there.")
    return decide(material, Review(DecisionFile(path, whole=True).read()).decisions())


def export_decisions(material: Material, path: Path) -> int:
    """Write the decisions that count into a file of their own; returns how many.

    Raises:
        DecisionsError: Something else is in its place.
        StorageError: It cannot be written.
    """
    DecisionFile(path, whole=True).read()  # what somebody else wrote is not written over
    found = [replace(each, n=0).as_dict() for each in material.review().decisions()]
    lines = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in found)
    write_atomically(path, lines.encode("utf-8", errors="replace"))
    return len(found)


def copy_cleaned(material: Material, out: Path) -> int:
    """Copy a folder of somebody else's without what was rejected, with the captions corrected.

    Files keep their places; of files about many images, a metadata.jsonl is written.

    Returns:
        How many images are in the copy.

    Raises:
        DecisionsError: It is a run, nothing is left of it, or `out` is there already.
        StorageError: It cannot be written.
    """
    if material.run is not None:
        raise DecisionsError(
            f"{material.folder} is a run, and is cleaned by running it again.",
            hint=f"Run {RunFolder(material.folder).command}, or write it for a trainer: "
            f"regforge export {material.folder} ...",
        )
    root, out = material.folder.resolve(), out.absolute()
    if out.exists() or root in out.resolve().parents:
        raise DecisionsError(
            f"{out} {'exists' if out.exists() else 'lies in the folder that is copied'}.",
            hint="Name a folder that is not there yet.",
        )
    review = material.review()
    left = [each for key, each in material.examples.items() if not review.goes(key)]
    if not left:
        raise DecisionsError(f"All images of {material.name} are rejected: none is left to copy.")
    with unfinished_folder(out.parent) as partial, storage_errors(out):
        whole = partial / out.name
        listed = any(each.name in METADATA for each in root.rglob("metadata.*"))
        files = (each for each in root.rglob("*") if each.suffix.lower() in SIDECARS)
        files = (each for each in files if each.is_file() and inside(each, root))
        captions = ByName(str(each.relative_to(root)) for each in files)
        rows = [_copied(root, whole, each, review, captions, listed) for each in left]
        if listed:
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_atomically(whole / "metadata.jsonl", lines.encode("utf-8", errors="replace"))
        whole.rename(out)
    return len(left)


def _copied(
    root: Path, to: Path, example: Example, review: Review, captions: ByName, listed: bool
) -> dict[str, Any]:
    """Copy an image and its caption; returns its row of a metadata.jsonl."""
    before = example.text or ""
    text, name = review.text(key_of(example), before), example.id
    if not (root / name).is_file():  # the file's second caption
        name = name.rpartition("#")[0]
    (to / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(root / name, to / name)
    names = (str(Path(name).with_suffix(suffix)) for suffix in SIDECARS)
    beside = list(filter(None, map(captions.find, names)))
    if text == before:
        for file in beside:
            if not (to / file).exists():  # two images may share it, and the other's be corrected
                shutil.copy2(root / file, to / file)
    else:
        example = corrected(example, text)
        plain = (file for file in beside if not file.lower().endswith(".json"))
        if not listed:
            write_atomically(to / next(plain, str(Path(name).with_suffix(".txt"))), text)
    slots = {"slots": dict(example.slots)} if example.slots else {}
    facts = {key: value for key, value in example.metadata.items() if value is not None}
    return {"file_name": name, "text": text, **facts, **slots}
