"""Exports a dataset: the layout once, then what each trainer needs, then the check.

The order is: scan the dataset; refuse what cannot be kept, before anything is written; lay out
images and captions; write each trainer's files; write export.json. Interrupted anywhere, the same
call goes on. What is there already is never changed or removed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from regforge.dataset.sources import CaptionedDataset, open_dataset
from regforge.export import (
    ai_toolkit,
    custom_diffusion,
    diffusers_dreambooth,
    imagefolder,
    kohya,
    onetrainer,
    simpletuner,
    webdataset,
)
from regforge.export.checking import (
    CheckResult,
    check_export,
    check_layout,
    digest_of,
    metadata_rows,
)
from regforge.export.common import some
from regforge.export.layout import ExportFolder, SubjectPhotos, read_photos, write_images
from regforge.export.scanning import ScannedDataset, odd_notes, scan
from regforge.export.settings import (
    MANIFEST,
    Identity,
    Manifest,
    Settings,
    absolute,
    begin,
    chosen,
    existing,
    packed,
    refuse_what_is_lost,
    resolve_settings,
    tidy_captions,
)
from regforge.export.trainer import (
    IMAGES,
    METADATA,
    SUBJECT,
    ExportedImage,
    ExportError,
    Material,
    Plan,
    Trainer,
)
from regforge.progress import Reporter
from regforge.runs import OwnedFolder

TRAINERS: Sequence[Trainer] = (
    kohya.TRAINER,
    diffusers_dreambooth.TRAINER,
    custom_diffusion.TRAINER,
    simpletuner.TRAINER,
    onetrainer.TRAINER,
    ai_toolkit.TRAINER,
    imagefolder.TRAINER,
    webdataset.TRAINER,
)
"""All that `--to` takes."""


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
        checked: What the check found; None without one.
    """

    name: str
    title: str
    readme: Path
    files: Sequence[str]
    command: str
    notes: Sequence[str]
    checked: CheckResult | None = None

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
        lines = [self.title, *(f"- {note}" for note in self.notes), ""]
        lines += [f"  {line}" for line in self.command.splitlines()]
        lines += ["", f"  More in {_short(self.readme)}"]
        checked = self.checked.as_text() if self.checked else ""
        return "\n".join([*lines, *(f"  {line}" for line in checked.splitlines())])


@dataclass(frozen=True)
class Exported:
    """What an export was.

    Attributes:
        out: Its folder.
        dataset: Name of the dataset.
        images: How many regularization images it has.
        photos: How many instance images.
        notes: What a person should know about the data, whatever the trainer.
        targets: What was written for each trainer that was named.
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
        targets = [target.as_dict() for target in self.targets]
        return {**vars(self), "out": str(self.out), "notes": list(self.notes), "targets": targets}

    def as_text(self) -> str:
        """For a terminal."""
        photos = f" and {some(self.photos, 'photo')}" if self.photos else ""
        head = f"{some(self.images, 'image')} of {self.dataset}{photos} in {_short(self.out)}"
        parts = ["\n".join([head, *(f"- {note}" for note in self.notes)])]
        parts += [target.as_text() for target in self.targets]
        if self.differs:
            parts.append(
                "What is missing is written again by the same command without --check. Delete "
                "what was changed before that, or export to another folder."
            )
        return "\n\n".join(parts)


def _short(path: Path) -> Path:
    """The path as a person in this folder would write it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def export_dataset(
    dataset: str | Path | CaptionedDataset,
    *,
    to: Sequence[str],
    out: Path,
    subject: Path | None = None,
    identifier: str = "sks",
    class_noun: str | None = None,
    resolution: int | None = None,
    base_model: str | None = None,
    prior_weight: float = 1.0,
    root: str | None = None,
    limit: int | None = None,
    caption_column: str | None = None,
    check: bool = False,
    reporter: Reporter | None = None,
) -> Exported:
    """Write a dataset the way trainers want it.

    Several trainers share one folder, in one call or in several; images and captions are there
    once. A folder never holds two datasets, nor one with different settings; only photos of the
    subject may come later.

    Args:
        dataset: What `open_dataset` takes, or an opened dataset.
        to: Names of trainers, see `TRAINERS`.
        out: The folder to write.
        subject: Folder with the photos of the subject.
        identifier: The token that stands for the subject.
        class_noun: What the images show; what most of them say if left out.
        resolution: Side of a square of pixels to train at; that of the images if left out.
        base_model: The model to be trained; the one that made the images if left out.
        prior_weight: Weight of the regularization loss, 0 or more.
        root: Where the folder will lie on the machine that trains; `out` if left out.
        limit: At most so many images, balanced.
        caption_column: Where captions stand, in somebody else's dataset.
        check: Read everything back. What was exported before is then left as it is.
        reporter: Gets progress.

    Raises:
        ExportError: The dataset cannot be exported as asked.
        CannotOpen: There is no such dataset.
        PhotosError: The photos cannot be used.
        StorageError: The folder cannot be written.
    """
    trainers = chosen(to, TRAINERS)
    folder = absolute(out)
    reporter = reporter or Reporter(quiet=True)
    source = dataset
    if isinstance(source, str | Path):
        where = Path(source)
        source = open_dataset(source, caption_column=caption_column)
        # A folder of images that holds its own export would grow with each.
        if source.layout == "folder" and folder.is_relative_to(absolute(where)):
            raise ExportError(
                f"{folder} lies inside of the dataset {where}.",
                hint="Choose another folder with --out.",
            )
    scanned = scan(source, reporter)
    settings = resolve_settings(
        scanned,
        out=folder,
        identifier=identifier,
        class_noun=class_noun,
        resolution=resolution,
        base_model=base_model,
        prior_weight=prior_weight,
        root=root,
        limit=limit,
    )
    if subject is not None and absolute(subject).is_relative_to(folder):
        raise ExportError(
            f"{subject} lies in the folder that is written.",
            hint="Keep the photos elsewhere; they are linked or copied into it.",
        )
    noun, identifier = settings.class_noun, settings.identifier
    photos = read_photos(subject, identifier=identifier, class_noun=noun, run=source.run)
    order = scanned.order(settings.limit)
    captions, notes = tidy_captions([scanned.captions[i] for i in order], noun, identifier)
    named = [*zip([scanned.ids[index] for index in order], captions, strict=True)]
    refuse_what_is_lost([*named, *((p.name, p.caption) for p in photos.images)], trainers)
    if folder.exists() and not folder.is_dir():
        raise ExportError(f"{folder} is a file.", hint="Name a folder with --out.")
    notes = [*source.notes, *settings.notes, *notes, *scanned.notes]
    notes += odd_notes((scanned.odd.get(index, ()) for index in order), "image")
    job = _Job(source, scanned, settings, photos, folder, order, captions, reporter)
    read_only = check and (folder / MANIFEST).exists()  # perhaps the disk is, too
    with nullcontext() if read_only else OwnedFolder(folder).locked():
        return job.run(trainers, [*notes, *photos.notes], check=check)


@dataclass(frozen=True)
class _Job:
    """One call of `export_dataset`, its arguments settled."""

    source: CaptionedDataset
    scanned: ScannedDataset
    settings: Settings
    photos: SubjectPhotos
    out: Path
    order: Sequence[int]
    captions: Sequence[str]
    reporter: Reporter

    def run(self, trainers: Sequence[Trainer], notes: Sequence[str], *, check: bool) -> Exported:
        """Write what is not there yet, and read everything back if told to."""
        identity = Identity(self.scanned.digest, self.settings.as_dict(), self.photos.facts)
        before = existing(self.out, identity)
        manifest = self._layout(before, identity, restore=not check)
        material = self._material(manifest)
        # With photos come other repeats, and so other files for all that were served before.
        photos_came = before is not None and before.identity.photos != identity.photos
        others = [t for t in TRAINERS if photos_came and t.name in manifest.targets]
        plans, targets = {}, []
        for trainer in dict.fromkeys((*trainers, *others)):
            plan = plans[trainer.name] = trainer.plan(material)
            files = {**plan.files, _readme_name(trainer): readme(trainer, material, plan, notes)}
            served = manifest.targets.get(trainer.name, {})
            kept: Sequence[str] = []
            if photos_came or not (check and served):
                kept = _write_target(ExportFolder(self.out), plan, files, served)
                digests = {path: _sha256(text) for path, text in files.items()}
                manifest.targets[trainer.name] = digests | {path: served[path] for path in kept}
            targets.append(_target(trainer, material, plan, kept))
        if manifest != before:
            manifest.write(self.out)
        targets = targets[: len(trainers)]
        if check:
            count = len(material.images) + len(material.photos)
            with self.reporter.task("checking", count, "images") as task:
                shared = check_layout(material, manifest.files, task)
            for number, trainer in enumerate(trainers):
                digests = manifest.targets[trainer.name]
                found = check_export(trainer, material, plans[trainer.name], digests)
                counts = (len(material.images), len(material.photos))
                result = CheckResult(*counts, list(dict.fromkeys((*shared, *found))))
                targets[number] = replace(targets[number], checked=result)
        return Exported(
            out=self.out,
            dataset=self.source.name,
            images=len(self.order),
            photos=len(self.photos.images),
            notes=notes,
            targets=targets,
        )

    def _layout(self, before: Manifest | None, identity: Identity, *, restore: bool) -> Manifest:
        """Write what all trainers share, or what is missing of it."""
        folder = ExportFolder(self.out)
        same = before is not None and before.identity.photos == identity.photos
        if before is None:
            begin(self.out, identity)
            names, digest = self._write_images(folder, frozenset())
            source = ("name", "layout", "revision", "license")
            manifest = Manifest(
                identity=identity,
                source={name: getattr(self.source, name) for name in source},
                images=packed(names),
                columns=self.scanned.columns.kinds,
                files={METADATA: digest},
            )
        else:
            manifest = replace(before, identity=identity, targets=dict(before.targets))
            if restore:
                expected = {METADATA}
                for name in manifest.names():
                    expected |= {f"{IMAGES}/{name}", f"{IMAGES}/{name.rpartition('.')[0]}.txt"}
                there = {name for name in expected if (self.out / name).exists()}
                if there != expected:
                    self._write_images(folder, there)
        if restore or not same:
            folder.path(f"{SUBJECT}/x")  # there even if it is empty: for the user's photos
            self.photos.write(folder, restore=same)
        return manifest

    def _write_images(self, folder: ExportFolder, keep: set[str] | frozenset[str]) -> Any:
        return write_images(
            self.source,
            self.scanned,
            self.order,
            self.captions,
            folder,
            keep=keep,
            reporter=self.reporter,
        )

    def _material(self, manifest: Manifest) -> Material:
        settings = self.settings
        sizes = [self.scanned.sizes[index] for index in self.order]
        facts = [manifest.identity.dataset, settings.as_dict()]
        return Material(
            out=self.out,
            root=settings.root,
            images=[
                ExportedImage(name, caption, *size)
                for name, caption, size in zip(manifest.names(), self.captions, sizes, strict=True)
            ],
            photos=self.photos.images,
            class_noun=settings.class_noun,
            identifier=settings.identifier,
            resolution=settings.resolution,
            base_model=settings.base_model,
            prior_weight=settings.prior_weight,
            columns=manifest.columns,
            content=_sha256(json.dumps(facts, sort_keys=True))[:16],
        )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _write_target(
    folder: ExportFolder, plan: Plan, files: Mapping[str, str], before: Mapping[str, str]
) -> list[str]:
    """Write what one trainer needs and is not there yet.

    Args:
        folder: The export's folder.
        plan: What the trainer needs.
        files: All of its texts.
        before: SHA-256 of the texts as they were written for it before; empty if none were.

    Returns:
        The texts that were left as somebody has changed them.

    Raises:
        ExportError: A file is in the way that is not ours.
    """
    changed = []
    for path, text in files.items():
        there = digest_of(folder.top / path)
        if there is not None and path in before and there != before[path]:
            if there != _sha256(text):
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


def _target(trainer: Trainer, material: Material, plan: Plan, changed: Sequence[str]) -> Target:
    kept = [
        f"{path} was changed since it was written and is left as it is. Delete it and export "
        "again to have it written anew."
        for path in changed
    ]
    return Target(
        name=trainer.name,
        title=trainer.title,
        readme=material.out / _readme_name(trainer),
        files=[*plan.files, *plan.shards],
        command=plan.command,
        notes=[*plan.notes, *kept],
    )


def _readme_name(trainer: Trainer) -> str:
    return f"README-{trainer.name}.md"


def readme(trainer: Trainer, material: Material, plan: Plan, notes: Sequence[str]) -> str:
    """How to use an export with one trainer, in Markdown."""
    first, last = material.images[0].name, material.images[-1].name
    photos = "empty: put the photos of the subject here"
    if material.photos:
        photos = f"{some(len(material.photos), 'photo')} of the subject with captions"
    folders = {str(PurePosixPath(path).parent): "tar files" for path in plan.shards}
    folders |= {
        str(PurePosixPath(path).parent): "the same files once more, as hard links"
        for path in plan.links
    }
    table = {
        f"{IMAGES}/": f"the images, {first} to {last}, each with its caption in a .txt file; any "
        "first part of them is balanced",
        f"{SUBJECT}/": photos,
        METADATA: "everything known about each image",
        **dict.fromkeys(plan.files, "read by the trainer"),
        **{f"{folder}/": what for folder, what in folders.items()},
        MANIFEST: "what was exported, from which dataset",
    }
    bullets = "\n".join(f"- {note}" for note in (*plan.notes, *notes))
    rows = "\n".join(f"| `{path}` | {what} |" for path, what in table.items())
    return f"""\
# Regularization images for {trainer.title}

{some(len(material.images), "image")} of the class `{material.class_noun}`, exported by regforge. \
The subject is called `{material.identifier}`.

## What the trainer does with them

{bullets}

## Start it

```bash
{plan.command}
```

## Files

| path | what |
| --- | --- |
{rows}
"""
