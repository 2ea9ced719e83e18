"""How trainers read their files, restated apart from the package.

Each function gets an export's folder and the command for its trainer, and gives for each image that
the trainer would load: path -> (caption, whether it is a regularization image, how often an epoch
shows it). The sources are

- kohya-ss/sd-scripts at 48d368f: `library/config_util.py` (ConfigSanitizer,
  generate_params_by_fallbacks, generate_dreambooth_subsets_config_by_subdirs) and
  `library/train_util.py` (glob_images, DreamBoothDataset.__init__);
- huggingface/diffusers at 58eb52c: `DreamBoothDataset` of
  examples/dreambooth/train_dreambooth_lora.py (572-672), its form in train_dreambooth_lora_flux2.py
  with `BucketBatchSampler` (779-1060), and in examples/custom_diffusion/train_custom_diffusion.py
  the checks of `--real_prior` (735-750) and `CustomDiffusionDataset.__init__` (193-218);
- bghira/SimpleTuner at bc8e6ab, below simpletuner/helpers/: `ImageBackendConfig.from_dict`
  (data_backend/config/image.py, 95-257), `LocalDataBackend.list_files` (data_backend/local.py,
  127-170), `prepare_instance_prompt_from_textfile` (prompts.py, 397-433) and the length of
  `MultiAspectSampler` (multiaspect/sampler.py, 1148-1161);
- Nerogar/OneTrainer at 23df383: `ConceptConfig.default_values`, `BaseConfig.from_dict`
  (modules/util/config/) and modules/util/path_util.py; Nerogar/mgds at 3a6994a: `CollectPaths`,
  `LoadMultipleTexts` and `VariationSorting` (src/mgds/pipelineModules/);
- ostris/ai-toolkit at 27a03a9: `get_config` (toolkit/config.py, with its own rule for numbers),
  `DatasetConfig` (config_modules.py, 911-1113), `AiToolkitDataset.__init__` (data_loader.py,
  428-450), `CaptionProcessingDTOMixin` (dataloader_mixins.py, 317-457) and
  `inject_trigger_into_prompt` (prompt_utils.py, 715-748).
"""

from __future__ import annotations

import glob
import json
import os
import re
import subprocess
import tomllib
from collections import Counter
from collections.abc import Iterator
from enum import Enum
from math import floor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from PIL import Image

Seen = dict[str, tuple[str | None, bool, float]]


def calls_of(command: str) -> list[list[str]]:
    """The programs that a command calls, each with its arguments as the shell hands them over."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        words = folder / "words"
        for program in ("accelerate", "python", "deepspeed", "cp", "simpletuner"):
            words_and_end = 'printf "%s\\0" "${0##*/}" "$@" "\001" >> "$WORDS"'
            (folder / program).write_text(f"#!/bin/sh\n{words_and_end}\n")
            (folder / program).chmod(0o755)
        environment = {"PATH": f"{folder}:/usr/bin:/bin", "WORDS": str(words)}
        subprocess.run(["sh", "-c", command], env=environment, check=True, cwd=folder)
        calls = words.read_bytes().decode().removesuffix("\1\0").split("\1\0")
    return [call.split("\0")[:-1] for call in calls]


def words_of(command: str) -> list[str]:
    """The words after `accelerate launch`."""
    ((program, launch, *rest),) = calls_of(command)
    assert (program, launch) == ("accelerate", "launch")
    return rest


def flags_of(command: str) -> dict[str, str]:
    """`--key=value` words by key; the value is empty for a bare `--key`."""
    split = (w.removeprefix("--").partition("=") for w in words_of(command) if w.startswith("--"))
    return {key: value for key, _, value in split}


def files_below(folder: str, suffixes: set[str]) -> list[Path]:
    return sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in suffixes)


def name_of(path: Path, out: Path) -> str:
    return path.relative_to(out).as_posix()


# ------------------------------------------------------------------------------------------- kohya

# train_util.py:104, without the plug-ins
EXTENSIONS = [".png", ".jpg", ".jpeg", ".webp", ".bmp", ".PNG", ".JPG", ".JPEG", ".WEBP", ".BMP"]
# config_util.py:165-265
SUBSET = {"color_aug": bool, "flip_aug": bool, "num_repeats": int, "random_crop": bool}
SUBSET |= {"shuffle_caption": bool, "keep_tokens": int, "caption_prefix": str}
SUBSET |= {"caption_extension": str, "class_tokens": str, "cache_info": bool}
DATASET = {"batch_size": int, "bucket_no_upscale": bool, "bucket_reso_steps": int}
DATASET |= {"enable_bucket": bool, "max_bucket_reso": int, "min_bucket_reso": int}
DATASET |= {"resolution": int}


def valid(table: dict[str, Any], schema: dict[str, type]) -> None:
    for key, value in table.items():
        assert key in schema, f"extra keys not allowed: {key}"
        assert type(value) is schema[key], key


def kohya_config(file: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A dataset with what it has from the table above it, and its subsets with what they have."""
    config = tomllib.loads(file.read_text(encoding="utf-8"))
    assert set(config) <= {"general", "datasets"}
    general = config["general"]
    valid(general, SUBSET | DATASET)
    (dataset,) = config["datasets"]
    subsets = dataset.pop("subsets")
    valid(dataset, SUBSET | DATASET)
    for subset in subsets:
        assert "image_dir" in subset
        valid(subset, SUBSET | {"image_dir": str, "is_reg": bool})
    return general | dataset, [general | dataset | subset for subset in subsets]


def kohya_folders(train: Path, reg: Path) -> list[dict[str, Any]]:
    """config_util.py:607-644"""
    found = []
    for base, is_reg in ((train, False), (reg, True)):
        for folder in base.iterdir() if base.is_dir() else ():
            first, *rest = folder.name.split("_")
            found.append(
                {"image_dir": str(folder), "num_repeats": int(first), "is_reg": is_reg}
                | {"class_tokens": "_".join(rest), "caption_extension": ".txt"}
            )
    return found


def kohya_registered(subsets: list[dict[str, Any]], out: Path) -> Seen:
    """train_util.py:1946-2184"""
    data: dict[str, tuple[str, bool, int]] = {}
    waiting: list[tuple[str, str, int]] = []
    train = 0
    for subset in subsets:
        repeats = subset.get("num_repeats", 1)
        paths = set()
        for extension in EXTENSIONS:
            folder = glob.escape(subset["image_dir"])
            paths |= set(glob.glob(os.path.join(folder, "*" + extension)))  # noqa: PTH118, PTH207
        for path in sorted(paths):
            caption_file = Path(os.path.splitext(path)[0] + subset["caption_extension"])  # noqa: PTH122
            caption = subset.get("class_tokens", "")
            if caption_file.is_file():
                with caption_file.open(encoding="utf-8") as stream:
                    lines = stream.readlines()
                assert lines, "caption file is empty"
                caption = lines[0].strip()
            if subset.get("is_reg", False):
                waiting.append((path, caption, repeats))
            else:
                train += repeats
                data[path] = (caption, False, repeats)
    count, first = 0, True
    while waiting and count < train:
        for path, caption, repeats in waiting:
            so_far = 0 if first else data[path][2]
            more = repeats if first else 1
            data[path] = (caption, True, so_far + more)
            count += more
            if count >= train:
                break
        first = False
    return {name_of(Path(path), out): what for path, what in data.items()}


def kohya(out: Path, command: str = "accelerate launch --dataset_config=kohya.toml") -> Seen:
    _, subsets = kohya_config(out / flags_of(command)["dataset_config"])
    return kohya_registered(subsets, out)


# --------------------------------------------------------------------------------------- diffusers


def dreambooth(out: Path, command: str) -> Seen:
    script = (out / "diffusers-dreambooth/train.sh").read_text()
    assert words_of(script) == words_of(command)
    flags = flags_of(script)
    assert flags["with_prior_preservation"] == ""
    class_images = list(Path(flags["class_data_dir"]).iterdir())
    instances = list(Path(flags["instance_data_dir"]).iterdir()) * int(flags.get("repeats", "1"))
    wanted = int(flags["num_class_images"])
    assert wanted <= len(class_images)  # or the script would draw the others
    bucketed = "flux2" in words_of(command)[0]
    shown: Counter[Path] = Counter()
    for index in range(len(instances) if bucketed else max(wanted, len(instances))):
        for path in (instances[index % len(instances)], class_images[index % wanted]):
            with Image.open(path) as image:
                image.convert("RGB")
            shown[path] += 1
    return {name_of(p, out): (None, p in class_images, n) for p, n in shown.items()}


def custom_diffusion(out: Path, command: str) -> Seen:
    flags = flags_of(command)
    assert {"real_prior", "with_prior_preservation"} <= flags.keys()
    (concept,) = json.loads(Path(flags["concepts_list"]).read_text())
    folder = Path(concept["class_data_dir"])
    assert len(list((folder / "images").iterdir())) == int(flags["num_class_images"])
    with (folder / "images.txt").open() as file:
        paths = [Path(line) for line in file.read().splitlines()]
    with (folder / "caption.txt").open() as file:
        captions = file.read().splitlines()
    photos = [path for path in Path(concept["instance_data_dir"]).iterdir() if path.is_file()]
    epoch = max(len(paths), len(photos))
    seen: Seen = {name_of(path, out): (None, False, epoch / len(photos)) for path in photos}
    for number, (path, caption) in enumerate(zip(paths, captions, strict=False)):
        assert path.is_file()
        seen[name_of(path, out)] = (caption, True, len(range(number, epoch, len(paths))))
    return seen


# ------------------------------------------------------------------------------------- SimpleTuner

LISTED = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def simpletuner(out: Path, _: str = "") -> Seen:
    config = json.loads((out / "simpletuner/config.json").read_text())
    seen: Seen = {}
    for entries in json.loads(Path(config["data_backend_config"]).read_text())[:2]:
        assert entries["crop_aspect"] in ("square", "preserve")  # the others need buckets
        assert entries["crop_style"] in ("random", "corner", "center", "centre", "face")
        assert entries["resolution_type"] in ("pixel", "area", "pixel_area")
        for path in files_below(entries["instance_data_dir"], LISTED):
            text = path.stem.replace("_", " ")
            if entries.get("caption_strategy", "filename") != "filename":
                text = path.with_suffix(".txt").read_bytes().decode()
            (caption,) = [line for line in text.split("\n") if line] if "\n" in text else [text]
            shown = int(entries.get("repeats", 0)) + 1
            seen[name_of(path, out)] = (caption, path.parent.name != "subject", shown)
    return seen


# -------------------------------------------------------------------------------------- OneTrainer

SUFFIXES = {".bmp", ".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".avif"}

Kind = Enum("Kind", ["STANDARD", "VALIDATION", "PRIOR_PREDICTION"])
Balancing = Enum("Balancing", ["REPEATS", "SAMPLES"])


class Concept:
    """A concept as it is after loading: what does not fit keeps its default, without an error."""

    def __init__(self, entries: dict[str, Any]) -> None:
        version = entries.get("__version", 0)
        if version == 0:
            entries = {("balancing" if k == "repeats" else k): v for k, v in entries.items()}
        if version <= 1 and "validation_concept" in entries:
            kind = "VALIDATION" if entries["validation_concept"] else "STANDARD"
            entries = {**entries, "type": kind}
        self.values: dict[str, Any] = {
            "name": "",
            "path": "",
            "type": Kind.STANDARD,
            "balancing": 1.0,
            "balancing_strategy": Balancing.REPEATS,
            "loss_weight": 1.0,
        }
        readers: dict[str, Any] = {"type": Kind.__getitem__, "name": str, "path": str}
        readers |= {"balancing_strategy": Balancing.__getitem__}
        readers |= {"balancing": float, "loss_weight": float}
        for key in self.values:
            try:
                self.values[key] = readers[key](entries[key])
            except (KeyError, ValueError, TypeError):
                continue
        assert entries.get("text", {}).get("prompt_source", "sample") == "sample"

    def paths(self) -> list[Path]:
        return [
            path
            for path in sorted(Path(self.values["path"]).iterdir())
            if path.suffix.lower() in SUFFIXES
            and not path.stem.endswith(("-masklabel", "-condlabel"))
        ]

    def epoch(self, number: int = 0) -> list[Path]:
        """The files that an epoch shows."""
        paths, balancing = self.paths(), self.values["balancing"]
        count = int(balancing)
        if self.values["balancing_strategy"] is Balancing.REPEATS:
            count = floor(len(paths) * balancing)
        return [paths[(number * count + index) % len(paths)] for index in range(count)]


def onetrainer_concepts(out: Path) -> list[Concept]:
    config = json.loads((out / "onetrainer/config.json").read_text())
    text = Path(config["concept_file_name"]).read_text(encoding="ascii")
    return [Concept(entries) for entries in json.loads(text)]


def onetrainer(out: Path, _: str = "") -> Seen:
    seen: Seen = {}
    for concept in onetrainer_concepts(out):
        paths = concept.paths()
        for path in paths:
            with path.with_suffix(".txt").open(encoding="utf-8") as file:
                lines = [line.strip() for line in file]
            (caption,) = [line for line in lines if line] or [""]
            shown = len(concept.epoch()) / len(paths)
            seen[name_of(path, out)] = (caption, path.parent.name != "subject", shown)
    return seen


# -------------------------------------------------------------------------------------- ai-toolkit


class Loader(yaml.SafeLoader):
    """Takes `1e5` for a number, as ai-toolkit does."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?(?:[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)|\.[0-9_]+(?:[eE][-+][0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def ai_toolkit_job(out: Path) -> dict[str, Any]:
    text = (out / "ai-toolkit/train.yaml").read_text(encoding="utf-8")
    assert not re.search(r"\$\{[^}]+\}", text)  # would be looked up in the environment
    job: dict[str, Any] = yaml.load(text, Loader=Loader)
    assert job["job"] == "extension"
    named: dict[str, Any] = json.loads(json.dumps(job).replace("[name]", job["config"]["name"]))
    return named["config"]


def without_spaces_after_commas(caption: str) -> str:
    return re.sub(r",\s*", ",", caption)


def ai_toolkit(out: Path, _: str = "") -> Seen:
    """The captions without spaces after their commas: ai-toolkit adds one to each."""

    def files(dataset: dict[str, Any]) -> Iterator[Path]:
        for path in files_below(dataset["folder_path"], {".jpg", ".jpeg", ".png", ".webp"}):
            if not any(part.startswith(".") for part in path.parts):
                yield path

    seen: Seen = {}
    for dataset in ai_toolkit_job(out)["process"][0]["datasets"]:
        for path in files(dataset):
            extension = "." + dataset.get("caption_ext", ".txt").lstrip(".")
            caption = ", ".join(path.with_suffix(extension).read_text("utf-8").split(","))
            for word in ("[name]", "[trigger]"):
                caption = caption.replace(word, "")
            shown = dataset.get("num_repeats", 1) * len(dataset.get("resolution", [512]))
            name = name_of(path, out)
            seen[name] = (without_spaces_after_commas(caption), dataset["is_reg"], shown)
    return seen


RULES = {
    "kohya": kohya,
    "diffusers-dreambooth": dreambooth,
    "custom-diffusion": custom_diffusion,
    "simpletuner": simpletuner,
    "onetrainer": onetrainer,
    "ai-toolkit": ai_toolkit,
}
