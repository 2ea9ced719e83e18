"""What an export is made with, and whether a folder may be gone on with.

    .export-unfinished.json   written first, deleted at the end
    export.json               written last

Both name the dataset and the settings, so that one folder never holds half of one export and half
of another.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

from regforge.embedded import EMBEDDED, TINYWORLD
from regforge.exporting.common import class_caption
from regforge.exporting.scanning import ScannedDataset
from regforge.exporting.trainer import NO_BASE_MODEL, ExportError, Settings, Trainer
from regforge.files import expanded, parse_json, remove_unfinished, write_atomically
from regforge.prompts.captions import word_pattern
from regforge.recipe.pipelines import NAMED, family_of, predicts_v
from regforge.recipe.single_files import hub_file, single_file
from regforge.runs import OwnedFolder
from regforge.version import __version__
from regforge.words import beginning, counted, did_you_mean

"""What datasets call the embedded pipeline; trainers know it by its folder."""

MANIFEST = "export.json"
UNFINISHED = ".export-unfinished.json"

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ufeff]")  # U+FEFF at the start would be a BOM
_SHOWN = 5


def resolve_settings(
    dataset: ScannedDataset,
    *,
    out: Path,
    identifier: str,
    class_noun: str | None,
    resolution: int | None,
    base_model: str | None,
    family: str | None,
    prior_weight: float,
    root: str | None,
    limit: int | None,
) -> Settings:
    """Fill in what was left out; an `ExportError` for what is not known or makes no sense."""
    notes: list[str] = []
    noun = _class_noun(dataset, class_noun, notes)
    if not (name := tidy(identifier)):
        raise ExportError("The identifier is empty.", hint="Name one with --identifier sks.")
    if not 0 <= prior_weight < float("inf"):
        raise ExportError(f"--prior-weight {prior_weight} is no weight; 1 is the paper's.")
    if limit is not None and limit < 1:
        raise ExportError(f"--limit {limit} leaves no images.")
    seen = _root(root) if root else out
    if isinstance(seen, PureWindowsPath):
        notes.append(
            "Commands are written for a Unix shell such as Git Bash. For cmd or PowerShell, put "
            "them on one line, with double quotes in place of single ones."
        )
    model = _base_model(dataset, base_model, notes)
    if family is not None and family not in NAMED:
        raise ExportError(
            f"There is no --family {family!r}.{did_you_mean(family, NAMED)}",
            hint=f"Known are {', '.join(sorted(NAMED))}.",
        )
    kind = NAMED[family] if family else family_of(model)
    return Settings(
        class_noun=noun,
        identifier=name,
        resolution=resolution or typical_resolution(dataset.sizes),
        base_model=model,
        family=kind,
        predicts_v=predicts_v(model, kind),
        prior_weight=prior_weight,
        root=seen,
        limit=limit,
        notes=notes,
    )


def typical_resolution(sizes: Sequence[tuple[int, int]]) -> int:
    """Side of the square with the images' median area, in steps of 64, or of 16 below 512.

    Models that pack latents two by two, such as FLUX.1, take multiples of 16 only.
    """
    side = math.sqrt(statistics.median(width * height for width, height in sizes))
    step = 64 if side >= 512 else 16
    return max(step, round(side / step) * step)


def scaled_up(resolution: int, sizes: Sequence[tuple[int, int]], noun: str) -> list[str]:
    """What to say of images that are much smaller than they are trained at."""
    sides = [side for size in sizes if 1.5 * (side := math.sqrt(math.prod(size))) < resolution]
    if not sides:
        return []
    side = statistics.median(sides)
    return [
        f"{counted(len(sides), noun)} of about {side:.0f} pixels a side: at {resolution}, most "
        f"trainers scale such up {resolution / side:.3g} times without a word, and the model "
        "learns their blur. Name a smaller --resolution, or leave it out."
    ]


def _class_noun(dataset: ScannedDataset, given: str | None, notes: list[str]) -> str:
    if given is not None:
        if noun := tidy(given):
            return noun
        raise ExportError("The class noun is empty.", hint="Name one with --class-noun teapot.")
    nouns = dataset.class_nouns.most_common()
    found = [(tidy(noun), count) for noun, count in nouns if tidy(noun)]
    if not found:
        raise ExportError(
            "The dataset does not say what its images show.",
            hint="Say it with --class-noun, such as --class-noun teapot.",
        )
    noun, count = found[0]
    if len(found) > 1:
        notes.append(
            f"The images show {len(found)} kinds of things; '{noun}', shown by {count:,} of "
            "them, is taken for the class. --class-noun names another."
        )
    return noun


def _base_model(dataset: ScannedDataset, given: str | None, notes: list[str]) -> str:
    if given is not None:
        if tidy(given) != given or not given:
            raise ExportError(f"--base-model {given!r} is no repository, folder or file.")
        if (of := hub_file(given)) is None:
            return given
        if (file := single_file(given)) is not None:
            return str(file.path)
        notes.append(f"Trainers take files, not URLs: hf download {of[0]} {of[1]}")
        return of[1]
    models = list(dataset.models)
    if models == [EMBEDDED]:
        return str(TINYWORLD)
    if len(models) == 1 and (model := models[0]) and _is_model(model):
        return model
    who = "The dataset does not name one model that made its images."
    if dataset.hosted:
        who = f"The images are from an image API, {min(dataset.hosted)}, which nobody can train."
    notes.append(
        f"{who} Put the one you train where the files say {NO_BASE_MODEL}, or name it with "
        "--base-model."
    )
    return NO_BASE_MODEL


def _is_model(name: str) -> bool:
    try:
        there = Path(name).is_absolute() and Path(name).exists()
    except (OSError, ValueError):
        return False
    return there or bool(_REPOSITORY.fullmatch(name))


def _root(text: str) -> PurePath:
    """The folder on the machine that trains, which may be another system's."""
    root: PurePath = PureWindowsPath(text) if _WINDOWS.match(text) else PurePosixPath(text)
    if not root.is_absolute() or ".." in root.parts or tidy(text) != text:
        raise ExportError(
            f"--root {text!r} is no absolute path.",
            hint="Name the folder as the machine that trains will see it: --root /data/teapot",
        )
    return root


def absolute(out: Path) -> Path:
    """A folder as an absolute path; an `ExportError` if no folder can have that name."""
    try:
        return expanded(out).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise ExportError(f"{out} is no name for a folder: {error}") from error


def chosen(names: Sequence[str], trainers: Sequence[Trainer]) -> list[Trainer]:
    """The trainers of these names; an `ExportError` if there are none."""
    known = {trainer.name: trainer for trainer in trainers}
    hint = f"Choose from {', '.join(known)}."
    for name in names:
        if name not in known:
            mean = did_you_mean(name, known)
            raise ExportError(f"There is no exporter {name!r}.{mean}", hint=hint)
    if not names:
        raise ExportError("No trainer is named.", hint=hint)
    return [known[name] for name in dict.fromkeys(names)]


# --------------------------------------------------------------------------------------- captions


def tidy(text: str) -> str:
    """One line: white space and control characters become single spaces."""
    return " ".join(_CONTROL.sub(" ", text).split())


def tidy_captions(
    captions: Sequence[str | None], class_noun: str, identifier: str
) -> tuple[list[str], list[str]]:
    """The captions of some images, each one line and none empty; and notes on what was changed."""
    fallback = class_caption(class_noun)
    tidied = [tidy(caption or "") for caption in captions]
    changed = sum(bool(new) and new != old for new, old in zip(tidied, captions, strict=True))
    missing = sum(not new for new in tidied)
    texts = [new or fallback for new in tidied]
    notes = []
    if missing:
        were = "was" if missing == 1 else "were"
        notes.append(
            f"{counted(missing, 'caption')} {were} missing; those images have '{fallback}'."
        )
    if changed:
        were = "was" if changed == 1 else "were"
        notes.append(
            f"{counted(changed, 'caption')} {were} brought onto one line, with single spaces, as "
            "trainers read them."
        )
    if leaks := naming(texts, identifier):
        says = "says" if leaks == 1 else "say"
        notes.append(
            f"{counted(leaks, 'caption')} {says} '{identifier}'. Regularization captions must not "
            "name the subject: choose another --identifier, or leave those images out."
        )
    return texts, notes


def naming(captions: Sequence[str], identifier: str) -> int:
    """How many captions name the identifier."""
    pattern = word_pattern(identifier)
    return sum(bool(pattern.search(caption)) for caption in captions)


def refuse_what_is_lost(captions: Sequence[tuple[str, str]], trainers: Sequence[Trainer]) -> None:
    """Raise an `ExportError` that lists the first captions, (id, text), that would be lost."""
    checks = [("a file", _unwritable)] + [
        (each.title, each.refuses) for each in trainers if each.refuses
    ]
    for title, refuses in checks:
        refused = [
            f"  {_printable(name)}: {reason}: {_printable(caption)}"
            for name, caption in captions
            if (reason := refuses(caption)) is not None
        ]
        if refused:
            head = f"{title} could not keep {counted(len(refused), 'caption')}:"
            more = [f"  ... and {len(refused) - _SHOWN:,} more"] if len(refused) > _SHOWN else []
            raise ExportError(
                "\n".join([head, *refused[:_SHOWN], *more]),
                hint="Change these captions, or leave these images out.",
            )


def _unwritable(caption: str) -> str | None:
    try:
        caption.encode()
    except UnicodeEncodeError:
        return "it has half of a character, which is no UTF-8"
    return None


def _printable(text: str) -> str:
    return beginning(text.encode("utf-8", "backslashreplace").decode(), 80)


# ------------------------------------------------------------------------------------ export.json


@dataclass(frozen=True)
class Identity:
    """Which dataset (SHA-256), exported how, with which photos: (name, caption, SHA-256)."""

    dataset: str
    settings: Mapping[str, Any]
    photos: list[list[str]]


@dataclass
class Manifest:
    """The content of export.json.

    Attributes:
        source: Name, layout, revision and licence of the dataset.
        images: Names of the regularization images, see `packed`.
        files: SHA-256 of the other files of the layout.
        targets: For each trainer: path -> SHA-256 of the files written for it.
    """

    identity: Identity
    source: Mapping[str, Any]
    images: dict[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    targets: dict[str, dict[str, str]] = field(default_factory=dict)

    def write(self, out: Path) -> None:
        """Write export.json: from now on the export is whole."""
        content = {"made_by": f"regforge {__version__}", **asdict(self)}
        write_atomically(out / MANIFEST, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        (out / UNFINISHED).unlink(missing_ok=True)

    def names(self) -> list[str]:
        """The names of the regularization images."""
        images = self.images
        stems = [f"{n:0{images['digits']}d}" for n in range(1, images["count"] + 1)]
        return [f"{stem}.{images['others'].get(stem, images['suffix'])}" for stem in stems]


def packed(names: list[str]) -> dict[str, Any]:
    """Names such as `00001.webp` in few words: their number, their suffix, and the exceptions."""
    stems, suffixes = zip(*(name.rsplit(".", 1) for name in names), strict=True)
    most = max(sorted(set(suffixes)), key=suffixes.count)
    others = {stem: suffix for stem, suffix in zip(stems, suffixes, strict=True) if suffix != most}
    return {"count": len(names), "suffix": most, "digits": len(stems[0]), "others": others}


def begin(out: Path, identity: Identity) -> None:
    """Note whose export the folder is going to be."""
    write_atomically(out / UNFINISHED, json.dumps({"identity": asdict(identity)}) + "\n")


def existing(out: Path, identity: Identity) -> Manifest | None:
    """What was exported into a folder before; None if nothing was, or not to the end.

    What an export that was killed left half-written is deleted; a folder that holds something else
    is refused.
    """
    for name in (MANIFEST, UNFINISHED):
        if (out / name).exists():
            manifest = _read_manifest(out / name)
            if problem := _difference(manifest.identity, identity):
                raise ExportError(
                    f"{out} holds an export of {problem}.", hint="Choose another folder with --out."
                )
            remove_unfinished(out)
            if name == UNFINISHED:
                return None
            (out / UNFINISHED).unlink(missing_ok=True)
            return manifest
    if not OwnedFolder(out).holds_others_files():
        return None
    raise ExportError(
        f"{out} is not empty, and what is in it is no export of regforge.",
        hint="Choose another folder with --out.",
    )


def _read_manifest(path: Path) -> Manifest:
    try:
        content = parse_json(path.read_bytes())
        content.pop("made_by", None)
        identity = Identity(**content.pop("identity"))
        return Manifest(identity, **{"source": {}, **content})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ExportError(
            f"{path} cannot be read.", hint="Choose another folder with --out."
        ) from error


def _difference(before: Identity, now: Identity) -> str | None:
    """How two exports differ, or None. Photos may be added where there were none."""
    if before.dataset != now.dataset:
        return "another dataset, or of an older state of this one"
    for name in (name for name in now.settings if name in before.settings):  # of an older version
        old, new = before.settings[name], now.settings[name]
        if old != new:
            return f"this dataset with --{name.replace('_', '-')} {old}, not {new}"
    if before.photos and before.photos != now.photos:
        return (
            "this dataset with other photos of the subject"
            if now.photos
            else "this dataset with photos of the subject: name them again with --subject"
        )
    return None
