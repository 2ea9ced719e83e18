"""kohya's sd-scripts: a dataset configuration in TOML, and folders for its graphical interfaces.

Rules as in kohya-ss/sd-scripts at commit 48d368f: `library/config_util.py` (what a configuration
may say, what a folder's name means), `library/train_util.py`, class `DreamBoothDataset` (which
files are images, which text is the caption, how many regularization images are used).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from regforge.export import base_models, common
from regforge.export.base_models import Family, family_of
from regforge.export.interface import (
    IMAGES,
    SUBJECT,
    ExportedImage,
    ExportError,
    Material,
    Plan,
    Seen,
)

CONFIG = "kohya.toml"
TRAIN, REG = "kohya/train", "kohya/reg"

_STEP = 64  # of bucket sizes; the scripts for Stable Diffusion 1 and 2 take no other
_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
_SCRIPTS = {
    base_models.SDXL: "sdxl_train_network.py",
    base_models.SD3: "sd3_train_network.py",
    base_models.FLUX: "flux_train_network.py",
}
_MODULES: Mapping[Family | None, str] = {
    base_models.SD3: "networks.lora_sd3",
    base_models.FLUX: "networks.lora_flux",
}

# What our configuration uses of what kohya allows; it refuses keys that it does not know, and what
# others of its keys do to captions is not restated here.
_GENERAL_KEYS = frozenset(
    {"caption_extension", "enable_bucket", "min_bucket_reso", "max_bucket_reso"}
    | {"bucket_reso_steps"}
)
_DATASET_KEYS = _GENERAL_KEYS | {"resolution", "batch_size", "subsets"}
_KINDS = {"is_reg": bool, "num_repeats": int, "class_tokens": str, "caption_extension": str}
_SUBSET_KEYS = frozenset({"image_dir", *_KINDS})


@dataclass(frozen=True, slots=True)
class _Subset:
    """One folder of images.

    Attributes:
        folder: Below the export's folder.
        is_reg: Whether they are regularization images.
        num_repeats: How often each comes.
        class_tokens: Caption of those without a caption file.
        extension: Of caption files, with its dot.
    """

    folder: str
    is_reg: bool
    num_repeats: int
    class_tokens: str | None
    extension: str


class Kohya:
    """sd-scripts, and what is built on them, such as kohya_ss."""

    name = "kohya"
    title = "kohya sd-scripts"

    def refuses(self, caption: str) -> None:
        """Nothing: it takes the first line of the caption file as it is."""

    def plan(self, material: Material) -> Plan:
        """The configuration, the folders, and the command."""
        links = _links(f"{REG}/1_{_folder_name(material.class_noun)}", IMAGES, material.images)
        if material.photos:
            links |= _links(_train_folder(material), SUBJECT, material.photos)
        return Plan(
            files={CONFIG: _config(material)},
            links=links,
            command=_command(material),
            notes=_notes(material),
        )

    def read(self, out: Path, root: PurePath) -> Iterator[Seen]:
        """What `DreamBoothDataset` would register."""
        where = out / CONFIG
        for subsets in _datasets(where, root):
            yield from _registered(out, subsets)


# ---------------------------------------------------------------------------------------- writing


def _train_folder(material: Material) -> str:
    name = _folder_name(f"{material.identifier} {material.class_noun}")
    return f"{TRAIN}/{common.repeats(material)}_{name}"


def _folder_name(text: str) -> str:
    """A text as every system can have it in the name of a folder."""
    return re.sub(r'[<>:"/\\|?*]', " ", text)[:80].strip(" .") or "thing"


def _links(folder: str, source: str, images: Sequence[ExportedImage]) -> dict[str, str]:
    links = {}
    for image in images:
        stem = image.name.rpartition(".")[0]
        for name in (image.name, f"{stem}.txt"):
            links[f"{folder}/{name}"] = f"{source}/{name}"
    return links


def _resolution(material: Material) -> int:
    """kohya refuses a side below the smallest bucket, and buckets come in steps of 64."""
    return max(material.resolution, _STEP)


def _config(material: Material) -> str:
    side = _resolution(material)
    smallest = max(side // 2 // _STEP * _STEP, _STEP)
    largest = -(-2 * side // _STEP) * _STEP
    subject = f"{material.identifier} {material.class_noun}"
    return "\n".join(
        [
            "# For --dataset_config of kohya's sd-scripts. Both subsets are in one block: alone in",
            "# a block, regularization images are not used.",
            "",
            "[general]",
            'caption_extension = ".txt"',
            "enable_bucket = true",
            f"min_bucket_reso = {smallest}",
            f"max_bucket_reso = {largest}",
            f"bucket_reso_steps = {_STEP}",
            "",
            "[[datasets]]",
            f"resolution = {side}",
            "batch_size = 2",
            "",
            "  # The subject.",
            "  [[datasets.subsets]]",
            f"  image_dir = {toml_string(material.seen(SUBJECT))}",
            f"  class_tokens = {toml_string(subject)}",
            f"  num_repeats = {common.repeats(material)}",
            "",
            "  # Regularization.",
            "  [[datasets.subsets]]",
            f"  image_dir = {toml_string(material.seen(IMAGES))}",
            "  is_reg = true",
            f"  class_tokens = {toml_string(material.class_noun)}",
            "  num_repeats = 1",
            "",
        ]
    )


def toml_string(text: str) -> str:
    """A text as a TOML string in one line.

    kohya reads with the package `toml` 0.10, which stumbles over an escaped quote at the start of a
    string. So a text with quotes or backslashes stands between single quotes where it can.
    """
    if not re.search('["\\\\\x00-\x1f\x7f]', text):
        return f'"{text}"'
    if not re.search("['\x00-\x1f\x7f]", text):
        return f"'{text}'"
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + re.sub("[\x00-\x1f\x7f]", lambda found: f"\\u{ord(found[0]):04x}", escaped) + '"'


def _command(material: Material) -> str:
    family = family_of(material.base_model)
    groups = [
        ["accelerate", "launch", _script(family, material)],
        [f"--pretrained_model_name_or_path={material.base_model}"],
        [f"--dataset_config={material.seen(CONFIG)}"],
        [f"--prior_loss_weight={material.prior_weight}"],
        [
            f"--network_module={_MODULES.get(family, 'networks.lora')}",
            "--network_dim=16",
            "--network_alpha=16",
        ],
        ["--learning_rate=1e-4", f"--max_train_steps={common.PAIRS}", "--seed=0"],
        ["--mixed_precision=bf16", "--gradient_checkpointing", "--sdpa"],
        ["--max_token_length=225"] if _takes_long_captions(family) else [],
        ["--v2"] if family is base_models.SD2 else [],
        ["--output_dir=output", f"--output_name={common.run_name(material)}"],
    ]
    return common.command_line(*(group for group in groups if group))


def _script(family: Family | None, material: Material) -> str:
    plain = "sdxl_train_network.py" if material.resolution >= 1024 else "train_network.py"
    if family is None:
        return plain
    return _SCRIPTS.get(family, "train_network.py")


def _takes_long_captions(family: Family | None) -> bool:
    return family is None or not family.flow


def _notes(material: Material) -> list[str]:
    family = family_of(material.base_model)
    side = _resolution(material)
    notes = [_use(material), *common.without_photos(material)]
    notes.append(
        "Each image is trained with its own caption. The weight of the regularization loss is "
        f"--prior_loss_weight={material.prior_weight} on the command line; the configuration has "
        "no key for it."
    )
    notes.append(
        f"For a graphical interface such as kohya_ss, name {material.seen(TRAIN)} as image folder "
        f"and {material.seen(REG)} as regularisation folder, and set the caption extension to .txt."
        + (
            ""
            if material.photos
            else f" Put the photos into {material.seen(_train_folder(material))}."
        )
    )
    if side != material.resolution:
        notes.append(f"kohya's smallest bucket is {_STEP} pixels wide, so it trains at {side}.")
    elif side % _STEP:
        notes.append(
            f"kohya's buckets come in steps of {_STEP} pixels, so a square image is trained at "
            f"{side // _STEP * _STEP} x {side // _STEP * _STEP}, not {side} x {side}."
        )
    if family is None:
        notes.append(
            f"{base_models.unknown(material.base_model)}. "
            f"{_script(family, material)} is a guess by the size of the images; sd-scripts has "
            "one script for each kind."
        )
    elif family in (base_models.SD3, base_models.FLUX):
        script = _script(family, material)
        notes.append(
            f"{script} takes the model as a file on the machine that trains, not as a repository "
            "of the Hub, and needs further files, such as those of the text encoders; "
            f"docs/{script.removesuffix('.py')}.md of sd-scripts lists them."
        )
    elif family.flow:
        notes.append(
            f"sd-scripts at the version that regforge was written for has no script for "
            f"{family.title}; the command names the one for Stable Diffusion 1.x."
        )
    return notes


def _use(material: Material) -> str:
    images, photos = len(material.images), common.photos(material)
    everything = common.every(images, "regularization image")
    if photos >= images:
        return f"kohya will use {everything} in each epoch."
    fewer = 4 if 4 * photos < images else 1
    return (
        f"kohya will use {everything} in each epoch. It takes as many as there are photos times "
        f"num_repeats: with num_repeats={fewer} it would use the first {fewer * photos:,} of them "
        f"and leave out the others; num_repeats={common.repeats(material)} is written for "
        f"{common.some(photos, 'photo')}, so that all are used."
    )


# ---------------------------------------------------------------------------------- reading back


def _datasets(where: Path, root: PurePath) -> Iterator[list[_Subset]]:
    """The subsets of each block of the configuration."""
    try:
        config = tomllib.loads(common.text_of(where))
    except tomllib.TOMLDecodeError as error:
        raise ExportError(f"{where} is no TOML: {error}.") from error
    _known(config, {"general", "datasets"}, where)
    general = config.get("general", {})
    _known(general, _GENERAL_KEYS, where)
    for block in config.get("datasets", []):
        _known(block, _DATASET_KEYS, where)
        if "resolution" not in general | block:
            raise ExportError(f"{where}: resolution is required.")
        yield [_subset(each, general | block, where, root) for each in block.get("subsets", [])]


def _known(table: Any, keys: frozenset[str] | set[str], where: Path) -> None:
    if not isinstance(table, dict):
        raise ExportError(f"{where}: {table!r} should be a table.")
    for key in table:
        if key not in keys:
            raise ExportError(f"{where}: {key} does not belong there.")


def _subset(table: Any, above: Mapping[str, Any], where: Path, root: PurePath) -> _Subset:
    _known(table, _SUBSET_KEYS, where)
    if "image_dir" not in table:
        raise ExportError(f"{where}: a subset has no image_dir.")
    merged: dict[str, Any] = {**above, **table}
    for key, kind in _KINDS.items():
        if key in merged and type(merged[key]) is not kind:
            raise ExportError(f"{where}: {key} = {merged[key]!r} is of the wrong kind.")
    return _Subset(
        folder=common.below(table["image_dir"], root, where),
        is_reg=merged.get("is_reg", False),
        num_repeats=merged.get("num_repeats", 1),
        class_tokens=merged.get("class_tokens"),
        extension=merged.get("caption_extension", ".caption"),
    )


def _registered(out: Path, subsets: Sequence[_Subset]) -> Iterator[Seen]:
    """The images of a block.

    Regularization images are taken in the order of their names until there are as many as photos
    with their repeats; if they are too few, the first ones come again.
    """
    regularization: list[tuple[str, str, int]] = []
    wanted = 0
    for subset in subsets:
        if subset.num_repeats < 1:
            continue
        for path, caption in _images(out, subset):
            if subset.is_reg:
                regularization.append((path, caption, subset.num_repeats))
            else:
                wanted += subset.num_repeats
                yield Seen(path, caption, regularization=False, repeats=subset.num_repeats)
    if not regularization:
        return
    first = _first_round([repeats for _, _, repeats in regularization], wanted)
    more, rest = divmod(max(wanted - sum(first), 0), len(regularization))
    for number, (path, caption, _) in enumerate(regularization):
        repeats = first[number] + more + (number < rest)
        yield Seen(path, caption, regularization=True, repeats=repeats)


def _first_round(repeats: Sequence[int], wanted: int) -> list[int]:
    """How often each image comes before any comes again."""
    taken: list[int] = []
    so_far = 0
    for each in repeats:
        taken.append(each if so_far < wanted else 0)
        so_far += taken[-1]
    return taken


def _images(out: Path, subset: _Subset) -> Iterator[tuple[str, str]]:
    """Path and caption of each image of a folder, by name."""
    for path in common.images_in(out / subset.folder, _SUFFIXES, required=False):
        if path.name.startswith("."):  # glob does not find it
            continue
        caption = subset.class_tokens or ""
        beside = path.with_suffix(subset.extension)
        if beside.is_file():
            text = common.text_of(beside)
            if not text:
                raise ExportError(f"{beside} is empty: kohya would stop.")
            caption = re.split(r"\r\n|\r|\n", text, maxsplit=1)[0].strip()
        yield f"{subset.folder}/{path.name}", caption


TRAINER = Kohya()
