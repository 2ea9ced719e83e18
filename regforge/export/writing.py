"""Exports a dataset: the layout once, then what each trainer needs, then the check.

The order is: look the dataset through without its images; refuse what cannot be kept, before
anything is written; lay out images and captions; write each trainer's files; write export.json.
Interrupted anywhere, the same call goes on. What is there already is never changed or removed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
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
from regforge.export.captions import (
    Captions,
    class_caption,
    naming,
    refuse_what_is_lost,
    tidy_captions,
)
from regforge.export.checking import check_export, check_layout
from regforge.export.collecting import Collected, collect, odd_notes
from regforge.export.folder import MANIFEST, Identity, Record, begin, existing, packed, unpacked
from regforge.export.images import ExportedImages
from regforge.export.interface import IMAGES, SUBJECT, ExportedImage, ExportError, Material, Trainer
from regforge.export.layout import METADATA, Folder
from regforge.export.results import Exported, Target
from regforge.export.settings import Settings, absolute, no_such_trainer, settle
from regforge.export.subject import Subject, read_subject
from regforge.export.targets import digests_of, files_of, target_of, write_target
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
    trainers = _chosen(to)
    folder = absolute(out)
    reporter = reporter or Reporter(quiet=True)
    source = dataset
    if isinstance(source, str | Path):
        source = open_dataset(source, caption_column=caption_column)
        _refuse_inside(folder, source, Path(dataset) if isinstance(dataset, str | Path) else None)
    collected = collect(source, reporter)
    settings = settle(
        collected,
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
    photos = read_subject(
        subject,
        identifier=settings.identifier,
        class_noun=settings.class_noun,
        run=source.run,
    )
    job = _Job(source, collected, settings, photos, folder, reporter)
    return job.run(trainers, check=check)


def _chosen(names: Sequence[str]) -> list[Trainer]:
    known = {trainer.name: trainer for trainer in TRAINERS}
    for name in names:
        if name not in known:
            raise no_such_trainer(name, list(known))
    if not names:
        raise ExportError("No trainer is named.", hint=f"Choose from {', '.join(known)}.")
    return [known[name] for name in dict.fromkeys(names)]


def _refuse_inside(out: Path, source: CaptionedDataset, where: Path | None) -> None:
    """A folder of images that holds its own export would grow with each."""
    if source.layout == "folder" and where and out.is_relative_to(absolute(where)):
        raise ExportError(
            f"{out} lies inside of the dataset {where}.", hint="Choose another folder with --out."
        )


@dataclass(frozen=True)
class _Job:
    """One call of `export_dataset`, its arguments settled.

    Attributes:
        source: The dataset.
        collected: What is known about it.
        settings: How to export it.
        subject: The subject's photos.
        out: The folder, absolute.
        reporter: Gets progress.
    """

    source: CaptionedDataset
    collected: Collected
    settings: Settings
    subject: Subject
    out: Path
    reporter: Reporter

    def run(self, trainers: Sequence[Trainer], *, check: bool) -> Exported:
        """Write what is not there yet, and read everything back if asked to."""
        order = self.collected.order(self.settings.limit)
        captions = tidy_captions(
            [self.collected.captions[index] for index in order], self.settings.class_noun
        )
        self._refuse(order, captions.texts, trainers)
        if self.out.exists() and not self.out.is_dir():
            raise ExportError(f"{self.out} is a file.", hint="Name a folder with --out.")
        if check and (self.out / MANIFEST).exists():  # perhaps on a disk that is only read
            return self._write(trainers, order, captions, check=True)
        with OwnedFolder(self.out).locked():
            return self._write(trainers, order, captions, check=check)

    def _write(
        self, trainers: Sequence[Trainer], order: Sequence[int], captions: Captions, *, check: bool
    ) -> Exported:
        identity = Identity(self.collected.digest, self.settings.as_dict(), self.subject.facts)
        before = existing(self.out, identity)
        images = ExportedImages(self.source, self.collected, order, captions.texts)
        record = self._layout(images, before, identity, restore=not check)
        material = self._material(record, order, captions.texts)
        notes = self._notes(captions, order)
        # With photos come other repeats, and so other files for all that were served before.
        photos_came = before is not None and before.identity.photos != identity.photos
        others = [t for t in TRAINERS if photos_came and t.name in record.targets]
        targets = []
        for trainer in dict.fromkeys((*trainers, *others)):
            plan = trainer.plan(material)
            files = files_of(trainer, material, plan, notes)
            served = record.targets.get(trainer.name, {})
            changed: Sequence[str] = []
            if photos_came or not (check and served):
                changed = write_target(Folder(self.out), plan, files, served)
                record.targets[trainer.name] = digests_of(files) | {
                    path: served[path] for path in changed
                }
            targets.append(target_of(trainer, material, plan, changed))
        if record != before:
            record.write(self.out)
        if check:
            targets = self._checked(trainers, targets, material, record)
        return Exported(
            out=self.out,
            dataset=self.source.name,
            images=len(order),
            photos=len(self.subject.images),
            notes=notes,
            targets=targets[: len(trainers)],
        )

    def _refuse(
        self, order: Sequence[int], captions: Sequence[str], trainers: Sequence[Trainer]
    ) -> None:
        ids = [self.collected.ids[index] for index in order]
        named = [*zip(ids, captions, strict=True)]
        named += [(photo.name, photo.caption) for photo in self.subject.images]
        refuse_what_is_lost(named, trainers)

    def _layout(
        self, images: ExportedImages, before: Record | None, identity: Identity, *, restore: bool
    ) -> Record:
        """Write what all trainers share, or what is missing of it; what export.json is to say."""
        folder = Folder(self.out)
        if before is None:
            begin(self.out, identity)
            names, digest = images.lay(folder, frozenset(), self.reporter)
            record = Record(
                identity=identity,
                source={
                    name: getattr(self.source, name)
                    for name in ("name", "layout", "revision", "license")
                },
                images=packed(names),
                columns=self.collected.columns.kinds,
                files={METADATA: digest},
            )
        else:
            record = replace(before, identity=identity, targets=dict(before.targets))
            if restore and (there := self._incomplete(record)) is not None:
                images.lay(folder, there, self.reporter)
        same = before is not None and before.identity.photos == identity.photos
        if restore or not same:
            folder.path(f"{SUBJECT}/x")  # there even if it is empty: for the user's photos
            self.subject.lay(folder, restore=same)
        return record

    def _incomplete(self, record: Record) -> frozenset[str] | None:
        """What is there of the layout; None if that is all of it."""
        expected = {METADATA}
        for name in unpacked(record.images):
            expected |= {f"{IMAGES}/{name}", f"{IMAGES}/{name.rpartition('.')[0]}.txt"}
        images = self.out / IMAGES
        there = {f"{IMAGES}/{path.name}" for path in images.iterdir()} if images.is_dir() else set()
        there |= {METADATA} if (self.out / METADATA).exists() else set()
        return None if expected <= there else frozenset(there)

    def _material(self, record: Record, order: Sequence[int], captions: Sequence[str]) -> Material:
        widths, heights = self.collected.widths, self.collected.heights
        names = unpacked(record.images)
        return Material(
            out=self.out,
            root=self.settings.root,
            images=[
                ExportedImage(name, caption, widths[index], heights[index])
                for name, caption, index in zip(names, captions, order, strict=True)
            ],
            photos=self.subject.images,
            class_noun=self.settings.class_noun,
            identifier=self.settings.identifier,
            resolution=self.settings.resolution,
            base_model=self.settings.base_model,
            prior_weight=self.settings.prior_weight,
            columns=record.columns,
            content=_digest(record.identity.dataset, self.settings.as_dict()),
        )

    def _notes(self, captions: Captions, order: Sequence[int]) -> list[str]:
        noun, identifier = self.settings.class_noun, self.settings.identifier
        notes = [*self.source.notes, *self.settings.notes]
        if captions.missing:
            notes.append(
                f"{_captions(captions.missing, 'was', 'were')} missing; those images have "
                f"'{class_caption(noun)}'."
            )
        if captions.tidied:
            notes.append(
                f"{_captions(captions.tidied, 'was', 'were')} brought onto one line, with single "
                "spaces, as trainers read them."
            )
        if leaks := naming(captions.texts, identifier):
            notes.append(
                f"{_captions(leaks, 'says', 'say')} '{identifier}'. Regularization captions must "
                "not name the subject: choose another --identifier, or leave those images out."
            )
        odd = (self.collected.odd.get(index, ()) for index in order)
        notes += self.collected.notes
        return [*notes, *odd_notes(odd, "image"), *self.subject.notes]

    def _checked(
        self,
        trainers: Sequence[Trainer],
        targets: Sequence[Target],
        material: Material,
        record: Record,
    ) -> list[Target]:
        with self.reporter.task(
            "checking", len(material.images) + len(material.photos), "images"
        ) as task:
            shared = check_layout(material, record.files, task)
        checked = []
        for trainer, target in zip(trainers, targets, strict=False):
            found = check_export(
                trainer, material, trainer.plan(material), record.targets[trainer.name]
            )
            both = list(dict.fromkeys((*shared, *found.differences)))
            checked.append(replace(target, checked=replace(found, differences=both)))
        return checked


def _captions(count: int, one: str, several: str) -> str:
    return f"{count:,} caption {one}" if count == 1 else f"{count:,} captions {several}"


def _digest(*facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
