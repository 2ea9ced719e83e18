"""How trainers without regularization images read their files, restated as in `trainer_rules`.

The sources are

- kohya-ss/musubi-tuner at 30c658c, below src/musubi_tuner/dataset/: `ConfigSanitizer` and
  `generate_dataset_group_by_blueprint` (config_utils.py), `glob_images` (media_utils.py),
  `ImageDirectoryDatasource` (datasources.py), `prepare_for_training` (image_video_dataset.py);
- tdrussell/diffusion-pipe at 8f83dbf: `set_config_defaults` (train.py), `DirectoryDataset` and the
  length of `SizeBucketDataset` (utils/dataset.py);
- replicate/flux-fine-tuner at 026b011: `extract_zip` (train.py), and civitai/civitai at 79f2cd2:
  `handleZip` (src/components/Training/Form/TrainingImages.tsx);
- modelscope/DiffSynth-Studio at fed7b18: `UnifiedDataset` (diffsynth/core/data/unified_dataset.py)
  and `ToAbsolutePath` (operators.py);
- Comfy-Org/ComfyUI: `LoadImageTextDataSetFromFolderNode` (comfy_extras/nodes_dataset.py at 0535c30)
  and `token_weights`, `escape_important`, `unescape_important` (comfy/sd1_clip.py at 443393b).
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import sys
import tomllib
import types
import unittest.mock
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mixing_arguments import parsed
from PIL import Image
from trainer_rules import EXTENSIONS, Seen, calls_of, name_of, valid


def arguments_of(command: str) -> list[argparse.Namespace]:
    """What the scripts that a command calls make of their arguments."""
    found = []
    for _, *words in calls_of(command):
        (at,) = [number for number, word in enumerate(words) if word.endswith(".py")]
        found.append(parsed(words[at], words[at + 1 :]))
    return found


# ------------------------------------------------------------------------------------ musubi-tuner

MUSUBI = {"caption_extension": str, "batch_size": int, "num_repeats": int, "resolution": int}
MUSUBI |= {"enable_bucket": bool, "bucket_no_upscale": bool}
MUSUBI_DATASET = MUSUBI | {"image_directory": str, "cache_directory": str}


def musubi(out: Path, command: str) -> Seen:
    latents, texts, training = arguments_of(command)
    assert str(latents.dataset_config) == str(texts.dataset_config) == str(training.dataset_config)
    config = tomllib.loads(Path(training.dataset_config).read_text("utf-8"))
    assert set(config) <= {"general", "datasets"}
    general = config["general"]
    valid(general, MUSUBI)
    caches = [each.get("cache_directory", each["image_directory"]) for each in config["datasets"]]
    assert len(set(caches)) == len(caches)
    # What `prepare_for_training` looks for in the cache is no longer escaped.
    assert not any(glob.has_magic(cache) for cache in caches)
    seen: Seen = {}
    for dataset in config["datasets"]:
        valid(dataset, MUSUBI_DATASET)
        dataset = general | dataset
        folder = glob.escape(dataset["image_directory"])
        paths = [p for ext in EXTENSIONS for p in glob.glob(f"{folder}/*{ext}")]  # noqa: PTH207
        for path in map(Path, set(paths)):
            caption = Path(f"{path.parent}/{path.stem}{dataset['caption_extension']}")
            if caption.exists():
                text = caption.read_text("utf-8").strip()
                is_reg = path.parent.name != "subject"
                seen[name_of(path, out)] = (text, is_reg, dataset.get("num_repeats", 1))
    return seen


# ---------------------------------------------------------------------------------- diffusion-pipe

NO_IMAGES = (".txt", ".npz", ".json", ".parquet", ".bak", ".db")


def pipe_config(command: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration of the training, and that of the dataset."""
    (arguments,) = arguments_of(command)
    assert arguments.deepspeed
    config = tomllib.loads(Path(arguments.config).read_text("utf-8"))
    assert config["save_every_n_steps"] > 0
    assert config["model"]["dtype"] == "bfloat16"
    assert "alpha" not in config["adapter"]
    assert config["epochs"] >= config["max_steps"]
    return config, tomllib.loads(Path(config["dataset"]).read_text("utf-8"))


def pipe(out: Path, command: str) -> Seen:
    _, dataset = pipe_config(command)
    assert dataset["frame_buckets"] == [1]
    assert dataset["enable_ar_bucket"]
    assert {"min_ar", "max_ar", "num_ar_buckets", "resolutions"} <= set(dataset)
    seen: Seen = {}
    for directory in dataset["directory"]:
        assert directory["num_repeats"] > 0
        folder = Path(directory["path"])
        assert not (folder / "captions.json").exists()
        for path in sorted(folder.glob("*")):
            if not path.is_file() or path.suffix in NO_IMAGES:
                continue
            with Image.open(path) as image:
                image.load()
            if (caption := path.with_suffix(".txt")).exists():
                text = caption.read_text("utf-8").strip()
                is_reg = folder.name != "subject"
                seen[name_of(path, out)] = (text, is_reg, directory["num_repeats"])
    return seen


# ---------------------------------------------------------------------------------- hosted trainers


def uploaded(command: str) -> Path:
    """The file that the command uploads."""
    ((_, _, code),) = calls_of(command)
    client = types.ModuleType("fal_client")
    found: list[str] = []
    client.upload_file = found.append  # type: ignore[attr-defined]
    with unittest.mock.patch.dict(sys.modules, fal_client=client):
        exec(code)  # what `python -c` does
    return Path(found[0])


def hosted(out: Path, command: str) -> Seen:
    path = uploaded(command)
    kinds = {file.read_bytes(): False for file in (out / "subject").iterdir()}
    kinds |= {file.read_bytes(): True for file in (out / "images").iterdir()}
    shown: dict[bytes, list[tuple[str, str]]] = {}
    with TemporaryDirectory() as name, zipfile.ZipFile(path) as archive:
        members = archive.namelist()
        assert len({member.casefold() for member in members}) == len(members)
        assert not any("/" in member or member.startswith((".", "_")) for member in members)
        archive.extractall(name)
        for member in members:
            base, _, extension = member.rpartition(".")
            if extension.lower() in ("png", "jpg", "jpeg", "webp"):
                caption = archive.read(f"{base}.txt").decode()
                assert (Path(name) / f"{base}.txt").read_text("utf-8") == caption
                shown.setdefault(archive.read(member), []).append((member, caption))
    seen: Seen = {}
    for image, copies in shown.items():
        (caption,) = {caption for _, caption in copies}
        first = min(copies, key=lambda copy: len(copy[0]))[0]
        seen[f"{name_of(path, out)}/{first}"] = (caption, kinds[image], len(copies))
    return seen


# -------------------------------------------------------------------------------- DiffSynth-Studio


def diffsynth(out: Path, command: str) -> Seen:
    (arguments,) = arguments_of(command)
    assert arguments.dataset_metadata_path.endswith(".jsonl")
    assert arguments.data_file_keys.split(",") == ["image"]
    seen: Seen = {}
    with Path(arguments.dataset_metadata_path).open(encoding="ascii") as file:
        for line in file:
            row = json.loads(line.strip())
            path = Path(arguments.dataset_base_path) / row["image"]
            with Image.open(path) as image:
                image.load()
            name = name_of(path, out)
            _, _, times = seen.get(name, (None, False, 0))
            seen[name] = (row["prompt"], path.parent.name != "subject", times + 1)
    return seen


# ----------------------------------------------------------------------------------------- ComfyUI


def comfyui(out: Path, command: str) -> Seen:
    ((_, _, folder, target),) = calls_of(command)
    assert target.startswith("ComfyUI/input/")
    files: list[str] = []
    for item in os.listdir(folder):  # noqa: PTH208
        path = os.path.join(folder, item)  # noqa: PTH118
        assert os.path.isdir(path)  # noqa: PTH112
        repeat = 1
        if item.split("_")[0].isdigit():
            repeat = int(item.split("_")[0])
        names = [n for n in os.listdir(path) if n.endswith((".png", ".jpg", ".jpeg", ".webp"))]  # noqa: PTH208
        files += [os.path.join(path, name) for name in names] * repeat  # noqa: PTH118
    seen: Seen = {}
    for file in files:
        caption_file = Path(file.replace(Path(file).suffix, ".txt"))
        text = caption_file.read_text("utf-8").strip() if caption_file.exists() else ""
        escaped = text.replace("\\)", "\0\1").replace("\\(", "\0\2")
        assert "(" not in escaped  # else what is in it would have a weight
        assert ")" not in escaped
        caption = escaped.replace("\0\1", ")").replace("\0\2", "(")
        name = name_of(Path(file), out)
        _, _, times = seen.get(name, (None, False, 0))
        seen[name] = (caption, (out / "images" / Path(file).name).exists(), times + 1)
    return seen


MIXING = {
    "musubi-tuner": musubi,
    "diffusion-pipe": pipe,
    "zip": hosted,
    "diffsynth": diffsynth,
    "comfyui": comfyui,
}
