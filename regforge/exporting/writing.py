"""Exports a dataset: the layout once, then what each trainer needs, then the check.

The order is: scan the dataset; refuse what cannot be kept, before anything is written; lay out
images and captions; write each trainer's files; write export.json. Interrupted anywhere, the same
call goes on. What is there already is never changed or removed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from regforge.dataset.sources import CaptionedDataset, open_dataset
from regforge.exporting import (
    ai_toolkit,
    comfyui,
    custom_diffusion,
    datasets_formats,
    diffsynth,
    diffusers_dreambooth,
    diffusion_pipe,
    hosted,
    kohya,
    musubi,
    onetrainer,
    simpletuner,
)
from regforge.exporting.checking import CheckResult, Exported, Target, check_export, check_layout
from regforge.exporting.layout import (
    ExportFolder,
    SubjectPhotos,
    read_photos,
    sha256,
    write_images,
    write_target,
)
from regforge.exporting.scanning import ScannedDataset, odd_notes, scan
from regforge.exporting.settings import (
    MANIFEST,
    Identity,
    Manifest,
    absolute,
    begin,
    chosen,
    existing,
    packed,
    refuse_what_is_lost,
    resolve_settings,
    scaled_up,
    tidy_captions,
)
from regforge.exporting.trainer import (
    IMAGES,
    METADATA,
    SUBJECT,
    ExportedImage,
    ExportError,
    Material,
    Plan,
    Settings,
    Trainer,
    refuse_untrainable,
)
from regforge.journal import Reporter
from regforge.runs import OwnedFolder, identifier_in
from regforge.words import counted

TRAINERS: Sequence[Trainer] = (
    kohya.TRAINER,
    diffusers_dreambooth.TRAINER,
    custom_diffusion.TRAINER,
    simpletuner.TRAINER,
    onetrainer.TRAINER,
    ai_toolkit.TRAINER,
    musubi.TRAINER,
    diffusion_pipe.TRAINER,
    hosted.TRAINER,
    diffsynth.TRAINER,
    comfyui.TRAINER,
    datasets_formats.IMAGEFOLDER,
    datasets_formats.WEBDATASET,
)
"""All that `--to` takes."""


def export_dataset(
    dataset: str | os.PathLike[str] | CaptionedDataset,
    *,
    to: str | Sequence[str],
    out: str | os.PathLike[str],
    subject: str | os.PathLike[str] | None = None,
    identifier: str | None = None,
    class_noun: str | None = None,
    resolution: int | None = None,
    base_model: str | None = None,
    family: str | None = None,
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
        to: A trainer's name or several, see `TRAINERS`.
        out: The folder to write.
        subject: Folder with the photos of the subject.
        identifier: The token that stands for the subject; that of the run's recipe, else `sks`, if
            left out.
        class_noun: What the images show; what most of them say if left out.
        resolution: Side of a square of pixels to train at; that of the images if left out.
        base_model: The model to be trained; the one that made the images if left out.
        family: What kind of model that is, see `pipelines.FAMILIES`; found out if left out.
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
    trainers = chosen([to] if isinstance(to, str) else to, TRAINERS)
    folder = absolute(Path(out))
    photos_in = Path(subject) if subject is not None else None
    reporter = reporter or Reporter(quiet=True)
    source = dataset
    if isinstance(source, str | os.PathLike):
        where = Path(source)
        source = open_dataset(os.fspath(source), caption_column=caption_column)
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
        identifier=identifier if identifier is not None else identifier_in(source.run) or "sks",
        class_noun=class_noun,
        resolution=resolution,
        base_model=base_model,
        family=family,
        prior_weight=prior_weight,
        root=root,
        limit=limit,
    )
    refuse_untrainable(settings, trainers, TRAINERS, min(scanned.hosted, default=""))
    if photos_in is not None and absolute(photos_in).is_relative_to(folder):
        raise ExportError(
            f"{subject} lies in the folder that is written.",
            hint="Keep the photos elsewhere; they are linked or copied into it.",
        )
    noun, identifier = settings.class_noun, settings.identifier
    photos = read_photos(photos_in, identifier=identifier, class_noun=noun, run=source.run)
    order = scanned.order(settings.limit)
    captions, notes = tidy_captions([scanned.captions[i] for i in order], noun, identifier)
    named = [*zip([scanned.ids[index] for index in order], captions, strict=True)]
    refuse_what_is_lost([*named, *((p.name, p.caption) for p in photos.images)], trainers)
    if folder.exists() and not folder.is_dir():
        raise ExportError(f"{folder} is a file.", hint="Name a folder with --out.")
    notes = [*source.notes, *settings.notes, *notes, *scanned.notes]
    notes += scaled_up(settings.resolution, [scanned.sizes[index] for index in order], "image")
    notes += scaled_up(settings.resolution, [(p.width, p.height) for p in photos.images], "photo")
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
        plans, targets = [], []
        for trainer in dict.fromkeys((*trainers, *others)):
            plan = trainer.plan(material)
            plan = replace(plan, notes=[*plan.notes, *trainer.token_notes(material)])
            name = f"README-{trainer.name}.md"
            files = {**plan.files, name: readme(trainer, material, plan, notes)}
            served = manifest.targets.get(trainer.name, {})
            kept: Sequence[str] = []
            if photos_came or not (check and served):
                kept = write_target(ExportFolder(self.out), plan, files, served)
                digests = {path: sha256(text) for path, text in files.items()}
                manifest.targets[trainer.name] = digests | {path: served[path] for path in kept}
            kept_notes = [
                f"{path} was changed since it was written and is left as it is. Delete it and "
                "export again to have it written anew."
                for path in kept
            ]
            target = Target(
                name=trainer.name,
                title=trainer.title,
                readme=self.out / name,
                files=[*plan.files, *plan.shards, *plan.zips],
                command=plan.command,
                notes=[*plan.notes, *kept_notes],
            )
            plans.append(plan)
            targets.append(target)
        if manifest != before:
            manifest.write(self.out)
        targets = targets[: len(trainers)]
        images, photos = len(material.images), len(material.photos)
        if check:
            with self.reporter.task("checking", images + photos, "images") as task:
                shared = check_layout(material, manifest.files, task)
            for number, trainer in enumerate(trainers):
                digests = manifest.targets[trainer.name]
                found = [*shared, *check_export(trainer, material, plans[number], digests)]
                result = CheckResult(images, photos, list(dict.fromkeys(found)))
                targets[number] = replace(targets[number], checked=result)
        return Exported(self.out, self.source.name, images, photos, notes, targets)

    def _layout(self, before: Manifest | None, identity: Identity, *, restore: bool) -> Manifest:
        """Write what all trainers share, or what is missing of it."""
        folder = ExportFolder(self.out)
        same = before is not None and before.identity.photos == identity.photos
        dataset = (self.source, self.scanned, self.order, self.captions)
        if before is None:
            begin(self.out, identity)
            names, digest = write_images(*dataset, folder, frozenset(), self.reporter)
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
                there = {f"{IMAGES}/{path.name}" for path in (self.out / IMAGES).glob("*")}
                there |= {METADATA} if (self.out / METADATA).exists() else set()
                if not expected <= there:
                    write_images(*dataset, folder, there, self.reporter)
        if restore or not same:
            folder.path(f"{SUBJECT}/x")  # there even if it is empty: for the user's photos
            self.photos.write(folder, restore=same)
        return manifest

    def _material(self, manifest: Manifest) -> Material:
        sizes = [self.scanned.sizes[index] for index in self.order]
        images = zip(manifest.names(), self.captions, sizes, strict=True)
        facts = [manifest.identity.dataset, self.settings.as_dict()]
        return Material(
            **vars(self.settings),
            out=self.out,
            images=[ExportedImage(name, caption, *size) for name, caption, size in images],
            photos=self.photos.images,
            columns=manifest.columns,
            content=sha256(json.dumps(facts, sort_keys=True))[:16],
        )


def readme(trainer: Trainer, material: Material, plan: Plan, notes: Sequence[str]) -> str:
    """How to use an export with one trainer, in Markdown."""
    first, last = material.images[0].name, material.images[-1].name
    photos = "empty: put the photos of the subject here"
    if material.photos:
        photos = f"{counted(len(material.photos), 'photo')} of the subject with captions"
    folders = {str(PurePosixPath(path).parent): "tar files" for path in plan.shards}
    folders |= {
        str(PurePosixPath(path).parent): "the same files once more, as hard links"
        for path in plan.links
    }
    own = [path for path in plan.files if str(PurePosixPath(path).parent) not in folders]
    table = {
        f"{IMAGES}/": f"the images, {first} to {last}, each with its caption in a .txt file; any "
        "first part of them is balanced",
        f"{SUBJECT}/": photos,
        METADATA: "everything known about each image",
        **dict.fromkeys(own, "read by the trainer"),
        **dict.fromkeys(plan.zips, "for uploading"),
        **{f"{folder}/": what for folder, what in folders.items()},
        MANIFEST: "what was exported, from which dataset",
    }
    bullets = "\n".join(f"- {note}" for note in (*plan.notes, *notes)).replace("<", "&lt;")
    rows = "\n".join(f"| `{path}` | {what} |" for path, what in table.items())
    count = counted(len(material.images), "image")
    return f"""\
# Regularization images for {trainer.title}

{count} of the class `{material.class_noun}`, exported by regforge. \
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
