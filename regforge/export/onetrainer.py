"""OneTrainer: a list of concepts in JSON, and a configuration that names it.

Read at commit 23df383 of Nerogar/OneTrainer: modules/util/config/ConceptConfig.py and BaseConfig.py
(keys and values), dataLoader/mixin/DataLoaderText2ImageMixin.py (which files count), and at commit
3a6994a of Nerogar/mgds: CollectPaths, LoadMultipleTexts and VariationSorting (files, captions,
balancing). A key or value that is wrong becomes the default there, with a line on the terminal at
most; so `read` refuses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import ceil
from pathlib import Path, PurePath
from typing import Any

from regforge.export import base_models, common
from regforge.export.base_models import family_of
from regforge.export.interface import IMAGES, SUBJECT, ExportError, Material, Plan, Seen

FOLDER = "onetrainer"
CONCEPTS = f"{FOLDER}/concepts.json"
CONFIG = f"{FOLDER}/config.json"

_CONCEPT_VERSION, _TEXT_VERSION = 2, 0
_PRESETS = {
    base_models.SD1: "SD1.5/#sd 1.5 LoRA.json",
    base_models.SD2: "SD2.1/#sd 2.1 LoRA.json",
    base_models.SDXL: "SDXL/#sdxl 1.0 LoRA.json",
    base_models.SD3: "SD3/#sd 3 LoRA.json",
    base_models.FLUX: "Flux Dev.1/#flux LoRA.json",
    base_models.FLUX2: "Flux 2/#flux2 LoRA 16GB.json",
    base_models.FLUX2_KLEIN: "Flux 2/#flux2 LoRA 16GB.json",
    base_models.QWEN_IMAGE: "QwenImage/#qwen LoRA 24GB.json",
    base_models.Z_IMAGE: "Z-Image/#z-image LoRA 16GB.json",
}
_SUFFIXES = frozenset({".bmp", ".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".avif"})
_LEFT_OUT = ("-masklabel", "-condlabel")  # ends of the names of masks and conditioning images

_Check = Callable[[object], bool]


def _is(*kinds: type) -> _Check:
    return lambda value: isinstance(value, kinds) and not isinstance(value, bool)


def _one_of(*values: object) -> _Check:
    return lambda value: value in values


_TEXT: dict[str, _Check] = {
    "__version": _one_of(_TEXT_VERSION),
    "prompt_source": _one_of("sample"),
}
_CONCEPT: dict[str, _Check] = {
    "__version": _one_of(_CONCEPT_VERSION),
    "name": _is(str),
    "path": _is(str),
    "seed": _is(int),
    "enabled": lambda value: isinstance(value, bool),
    "type": _one_of("STANDARD", "VALIDATION", "PRIOR_PREDICTION"),
    "include_subdirectories": lambda value: value is False,
    "balancing": _is(int, float),
    "balancing_strategy": _one_of("REPEATS", "SAMPLES"),
    "loss_weight": _is(int, float),
    "text": _is(dict),
}


class OneTrainer:
    """OneTrainer, from its repository."""

    name = "onetrainer"
    title = "OneTrainer"

    def refuses(self, caption: str) -> str | None:
        """Each line of a caption file is a caption of its own, without the white space around."""
        if "\n" in caption or "\r" in caption:
            return "it has a line break, and one of the lines would be drawn at random"
        if caption != caption.strip():
            return "it has white space at an end, which would be cut off"
        return None

    def plan(self, material: Material) -> Plan:
        """Two concepts and the configuration for a preset."""
        return Plan(
            files={
                CONCEPTS: common.as_json(_concepts(material)),
                CONFIG: common.as_json(_config(material)),
            },
            command=common.command_line(
                ["python", "scripts/train.py"],
                ["--preset-path", f"training_presets/{_preset(material)}"],
                ["--config-path", material.seen(CONFIG)],
            ),
            notes=_notes(material),
        )

    def read(self, out: Path, root: PurePath) -> Iterator[Seen]:
        """The images of each concept, with the captions of their text files."""
        config = common.json_of(out / CONFIG)
        named = config.get("concept_file_name") if isinstance(config, dict) else None
        where = out / common.below(named, root, out / CONFIG)
        concepts = common.json_of(where)
        if not isinstance(concepts, list) or not all(isinstance(c, dict) for c in concepts):
            raise ExportError(f"{where} should hold a list of concepts.")
        for number, concept in enumerate(concepts, 1):
            _see_that_nothing_is_ignored(concept, _CONCEPT, f"{where}: concept {number}")
            _see_that_nothing_is_ignored(concept["text"], _TEXT, f"{where}: text of {number}")
            if concept["enabled"] and concept["type"] != "VALIDATION":
                yield from _images(concept, out, out / common.below(concept["path"], root, where))


def _samples(material: Material) -> int:
    """Of each concept in an epoch."""
    return common.photos(material) * common.repeats(material)


def _preset(material: Material) -> str:
    return _PRESETS[family_of(material.base_model) or base_models.SD1]


def _concepts(material: Material) -> list[dict[str, object]]:
    def concept(name: str, folder: str, **more: object) -> dict[str, object]:
        return {
            "__version": _CONCEPT_VERSION,
            "name": name,
            "path": material.seen(folder),
            "seed": 0,
            "enabled": True,
            "type": "STANDARD",
            "include_subdirectories": False,
            **more,
            "text": {"__version": _TEXT_VERSION, "prompt_source": "sample"},
        }

    return [
        concept(
            f"{material.identifier} {material.class_noun}",
            SUBJECT,
            balancing=float(common.repeats(material)),
            balancing_strategy="REPEATS",
            loss_weight=1.0,
        ),
        concept(
            f"{material.class_noun} regularization",
            IMAGES,
            balancing=float(_samples(material)),
            balancing_strategy="SAMPLES",
            loss_weight=float(material.prior_weight),
        ),
    ]


def _config(material: Material) -> dict[str, object]:
    """What differs from the preset. Without a version: with a preset, neither is migrated."""
    return {
        "base_model_name": material.base_model,
        "concept_file_name": material.seen(CONCEPTS),
        "resolution": str(material.resolution),
        "epochs": ceil(common.PAIRS / _samples(material)),
        "workspace_dir": material.seen(FOLDER, "workspace"),
        "cache_dir": material.seen(FOLDER, "cache"),
        "output_model_destination": material.seen(
            FOLDER, "output", f"{common.run_name(material)}.safetensors"
        ),
    }


def _notes(material: Material) -> list[str]:
    count, samples = len(material.images), _samples(material)
    photos, repeats = common.photos(material), common.repeats(material)
    epochs = ceil(common.PAIRS / samples)
    notes = [
        f"OneTrainer uses {common.every(count, 'regularization image')}, each with its own "
        f"caption: an epoch takes {common.some(samples, 'image')} (balancing {samples}, SAMPLES) "
        f"and as many photos, {common.some(photos, 'photo')} {common.some(repeats, 'time')} each "
        f"(balancing {repeats}, REPEATS). With a smaller number of SAMPLES, each epoch takes the "
        f"next so many of them. {CONFIG} asks for {common.some(epochs, 'epoch')}.",
        "Both concepts are STANDARD: the target is the image, as in the paper, and loss_weight "
        f"{material.prior_weight:g} weighs the regularization. With type PRIOR_PREDICTION the "
        "target would be what the model predicted for the image before training. That keeps the "
        "base model's look, predicts every batch twice, and works for LoRA only.",
        "OneTrainer takes the default for a key or value that it does not know, with a line on "
        "the terminal at most: a type of PRIOR means STANDARD to it. `regforge export --check` "
        "finds such slips.",
        f"The command takes everything else from the preset {_preset(material)!r}. Where "
        "scripts/train.py knows no --preset-path, load the preset in the window and choose "
        f"{CONCEPTS} under Concepts.",
    ]
    if family_of(material.base_model) is None:
        notes.append(
            f"{base_models.unknown(material.base_model)}, and the preset is for Stable Diffusion "
            "1.5. Choose another one if that is wrong."
        )
    return notes + common.without_photos(material)


def _see_that_nothing_is_ignored(
    entries: Mapping[str, Any], known: Mapping[str, _Check], name: str
) -> None:
    """Raise an `ExportError` for what OneTrainer would replace by a default."""
    for key in entries:
        if key not in known:
            raise ExportError(f"{name} has {key!r}, which OneTrainer would ignore.")
    for key, check in known.items():
        if key not in entries:
            raise ExportError(f"{name} has no {key!r}: OneTrainer would take its default.")
        if not check(entries[key]):
            raise ExportError(
                f"{name} has {entries[key]!r} for {key!r}: OneTrainer would take its default, or "
                "do something else than was planned."
            )


def _images(concept: Mapping[str, Any], out: Path, folder: Path) -> Iterator[Seen]:
    regularization = folder.name != SUBJECT
    paths = [
        path
        for path in common.images_in(folder, _SUFFIXES, required=regularization)
        if not path.stem.endswith(_LEFT_OUT)
    ]
    for path in paths:
        if concept["balancing_strategy"] == "SAMPLES":
            repeats = int(concept["balancing"]) / len(paths)
        else:
            repeats = int(len(paths) * concept["balancing"]) / len(paths)
        yield Seen(
            path.relative_to(out).as_posix(),
            _caption(path),
            regularization=regularization,
            repeats=repeats,
        )


def _caption(image: Path) -> str:
    """The caption of an image, by the rules of `LoadMultipleTexts`."""
    file = image.with_suffix(".txt")
    # A text file is taken apart at \n, \r\n and \r, and at nothing else.
    text = common.text_of(file).replace("\r\n", "\n").replace("\r", "\n")
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if len(lines) != 1:
        raise ExportError(
            f"{file} has {common.some(len(lines), 'line')}: OneTrainer draws one of them each time."
        )
    return lines[0]


TRAINER = OneTrainer()
