"""What is in an export's folder already, and whether it may be gone on with.

    .export-unfinished.json   written first, taken away at the end
    export.json               written last

Both say which dataset it was and with which settings, so that one folder never holds half of one
export and half of another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from regforge.export.interface import ExportError
from regforge.files import parse_json, remove_unfinished, write_atomically
from regforge.runs import OwnedFolder
from regforge.version import __version__

MANIFEST = "export.json"
UNFINISHED = ".export-unfinished.json"

_IN_WORDS = {"photos": "the subject's photos", "root": "--root", "limit": "--limit"}


@dataclass(frozen=True)
class Identity:
    """Which dataset, exported how.

    Attributes:
        dataset: SHA-256 of the dataset, see `Collected.digest`.
        settings: What was asked for, defaults filled in.
        photos: (name, caption, SHA-256) of each photo of the subject.
    """

    dataset: str
    settings: Mapping[str, Any]
    photos: list[list[str]]


@dataclass
class Record:
    """What export.json says.

    Attributes:
        identity: See there.
        source: Name, layout, revision and licence of the dataset.
        images: Names of the regularization images, see `packed`.
        columns: Of metadata.jsonl.
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


def packed(names: list[str]) -> dict[str, Any]:
    """Names such as `00001.webp` in few words: their number, their suffix, and the exceptions."""
    stems, suffixes = zip(*(name.rsplit(".", 1) for name in names), strict=True)
    most = max(sorted(set(suffixes)), key=suffixes.count)
    others = {stem: suffix for stem, suffix in zip(stems, suffixes, strict=True) if suffix != most}
    return {"count": len(names), "suffix": most, "digits": len(stems[0]), "others": others}


def unpacked(images: Mapping[str, Any]) -> list[str]:
    """The names that `packed` was given."""
    numbers = range(1, images["count"] + 1)
    stems = [f"{number:0{images['digits']}d}" for number in numbers]
    return [f"{stem}.{images['others'].get(stem, images['suffix'])}" for stem in stems]


def existing(out: Path, identity: Identity) -> Record | None:
    """What was exported into a folder before; None if nothing was, or not to the end.

    What an export that was killed left half-written is deleted.

    Args:
        out: The folder; need not exist.
        identity: What is to be exported into it.

    Raises:
        ExportError: It holds something else.
    """
    for name in (MANIFEST, UNFINISHED):
        if (out / name).exists():
            content = _content(out / name)
            if problem := _difference(content["identity"], identity):
                raise ExportError(
                    f"{out} holds an export of {problem}.", hint="Choose another folder with --out."
                )
            remove_unfinished(out)
            if name == UNFINISHED:
                return None
            (out / UNFINISHED).unlink(missing_ok=True)
            return _record(content)
    if not OwnedFolder(out).holds_others_files():
        return None
    raise ExportError(
        f"{out} is not empty, and what is in it is no export of regforge.",
        hint="Choose another folder with --out.",
    )


def begin(out: Path, identity: Identity) -> None:
    """Say whose export the folder is going to be."""
    write_atomically(out / UNFINISHED, json.dumps({"identity": asdict(identity)}) + "\n")


def _content(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_bytes())
        content.pop("made_by", None)
        _record(content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ExportError(
            f"{path} cannot be read.", hint="Choose another folder with --out."
        ) from error
    return dict(content)


def _record(content: Mapping[str, Any]) -> Record:
    identity = Identity(**content["identity"])
    return Record(**{"source": {}, **content, "identity": identity})


def _difference(there: Mapping[str, Any], now: Identity) -> str | None:
    """How two exports differ, or None. Photos may be added where there were none."""
    if there["dataset"] != now.dataset:
        return "another dataset, or of an older state of this one"
    before = there["settings"]
    for name in (*before, *now.settings):
        if before.get(name) != now.settings.get(name):
            said = _IN_WORDS.get(name, "--" + name.replace("_", "-"))
            return f"this dataset with {said} {before.get(name)}, not {now.settings.get(name)}"
    if there["photos"] and there["photos"] != now.photos:
        return (
            "this dataset with other photos of the subject"
            if now.photos
            else ("this dataset with photos of the subject: name them again with --subject")
        )
    return None
