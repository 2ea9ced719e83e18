"""diffusion-pipe: a configuration of the training and one of its dataset, both in TOML.

Read at commit 8f83dbf of tdrussell/diffusion-pipe: train.py (the first, and the arguments),
utils/dataset.py (the second, which files are images, which text is the caption, what repeats do),
models/ and docs/supported_models.md (what [model] wants). A key that it does not know is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import ceil
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from regforge.exporting import common
from regforge.exporting.trainer import (
    IMAGES,
    SUBJECT,
    ExportError,
    LoadedImage,
    Material,
    Plan,
    Trainer,
)

FOLDER = "diffusion-pipe"
CONFIG = f"{FOLDER}/train.toml"
DATASET = f"{FOLDER}/dataset.toml"

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
_SAVE_EVERY = 500
_DIGITS = 6
_BASE = ("checkpoint_path", "diffusion_model", "transformer_path", "diffusers_path")


def _comfy(kind: str, encoder: str, *names: str, **more: Any) -> dict[str, Any]:
    """A model of files as ComfyUI has them: diffusion model, VAE, text encoder."""
    model, vae, text_encoder = (f"weights/{name}.safetensors" for name in names)
    encoders = [{"path": text_encoder, "type": encoder}]
    return {"type": kind, "diffusion_model": model, "vae": vae, "text_encoders": encoders, **more}


def _diffusers(kind: str, **more: Any) -> dict[str, Any]:
    """A model of a diffusers folder, and perhaps of other files."""
    return {"type": kind, "diffusers_path": "", **more}


def _klein(size: str, text_encoder: str) -> dict[str, Any]:
    return _comfy("flux2", "flux2", f"flux-2-klein-base-{size}", "flux2-vae", text_encoder, shift=3)


_FP8 = {"transformer_dtype": "float8"}
_FLUX1 = _diffusers("flux", **_FP8, flux_shift=True)
_Z_IMAGE = _comfy("z_image", "lumina2", "z_image_bf16", "ae", "qwen_3_4b")
_ERNIE = ("flux2-vae", "ministral-3-3b")

_MODELS: Mapping[str, dict[str, Any] | None] = {
    "sdxl": {"type": "sdxl", "checkpoint_path": "",
             "text_encoder_1_lr": 0.0, "text_encoder_2_lr": 0.0},
    "sd3": _diffusers("sd3"),
    "sd3.5": _diffusers("sd3"),
    "flux1-dev": _FLUX1,
    "flux2-dev": _comfy("flux2", "flux2", "flux2-dev", "flux2-vae", "mistral_3_small_flux2_bf16",
                        diffusion_model_dtype="float8", shift=3),
    "flux2-klein-base-4b": _klein("4b", "qwen_3_4b"),
    "flux2-klein-base-9b": _klein("9b", "qwen_3_8b"),
    "flux2-klein-4b": None,  # "the distilled version will not work well"
    "flux2-klein-9b": None,
    "qwen-image": _diffusers("qwen_image", **_FP8),
    "z-image": _Z_IMAGE,
    "z-image-turbo": _Z_IMAGE | {"diffusion_model": "weights/z_image_turbo_bf16.safetensors"},
    "krea2": _comfy("krea2", "krea2", "krea2_raw", "qwen_image_vae", "qwen3vl_4b_bf16",
                    diffusion_model_dtype="float8"),
    "krea2-turbo": _comfy("krea2", "krea2", "krea2_turbo", "qwen_image_vae", "qwen3vl_4b_bf16",
                          diffusion_model_dtype="float8"),
    "chroma": {"type": "chroma", "diffusers_path": "weights/FLUX.1-dev",
               "transformer_path": "weights/Chroma1-HD.safetensors", **_FP8, "flux_shift": True},
    "lumina2": {"type": "lumina_2", "transformer_path": "weights/lumina_2_model_bf16.safetensors",
                "llm_path": "weights/gemma_2_2b_fp16.safetensors",
                "vae_path": "weights/ae.safetensors", "lumina_shift": True},
    "hunyuan-image": {"type": "hunyuan_image",
                      "transformer_path": "weights/hunyuanimage2.1.safetensors",
                      "vae_path": "weights/hunyuan_image_2.1_vae_fp16.safetensors",
                      "text_encoder_path": "weights/qwen_2.5_vl_7b.safetensors",
                      "byt5_path": "weights/byt5_small_glyphxl_fp16.safetensors", **_FP8},
    "hidream": _diffusers("hidream", llama3_path="weights/Meta-Llama-3.1-8B-Instruct",
                          llama3_4bit=True, max_llama3_sequence_length=128, **_FP8),
    "hidream-dev": None,  # "Dev and Fast likely will not work properly due to being distilled"
    "ernie-image": _comfy("ernie_image", "flux2", "ernie-image", *_ERNIE, shift=3),
    "ernie-image-turbo": _comfy("ernie_image", "flux2", "ernie-image-turbo", *_ERNIE, shift=3),
    "ideogram4": _comfy("ideogram4", "ideogram4", "ideogram4_fp8_scaled", "flux2-vae",
                        "qwen3vl_8b_fp8_scaled", diffusion_model_dtype="float8", shift=3),
    "anima": {"type": "anima", "transformer_path": "weights/anima-base-v1.0.safetensors",
              "vae_path": "weights/qwen_image_vae.safetensors",
              "llm_path": "weights/qwen_3_06b_base.safetensors", "llm_adapter_lr": 0},
}  # fmt: skip


class _Directory(BaseModel, extra="forbid", strict=True):
    path: str
    num_repeats: Annotated[float, Field(gt=0)] = 1.0


class _Dataset(BaseModel, extra="forbid", strict=True):
    """What our dataset uses of what it may say; without frame_buckets it has the same, [1]."""

    resolutions: list[int]
    enable_ar_bucket: bool
    min_ar: float
    max_ar: float
    num_ar_buckets: int
    frame_buckets: list[Literal[1]]
    directory: list[_Directory]


class _Config(BaseModel):
    dataset: str
    save_every_n_steps: int


def _plan(material: Material) -> Plan:
    # An epoch has int(images * num_repeats) of a size: rounded up, lest it be one less.
    scale = 10**_DIGITS
    times = common.mixture(material, TRAINER.title)
    photos, images = (ceil(each * scale) / scale for each in times)
    return Plan(
        files={CONFIG: _config(material), DATASET: _dataset(material, photos, images)},
        command=common.command_line(
            ["deepspeed", "--num_gpus=1", "train.py", "--deepspeed"],
            [f"--config={material.path(CONFIG)}"],
        ),
        notes=_notes(material, photos, images),
    )


def _dataset(material: Material, photos: float, images: float) -> str:
    return f"""\
# The dataset of {CONFIG}.

resolutions = [{common.side(material, TRAINER.title)}]
enable_ar_bucket = true
min_ar = 0.5
max_ar = 2.0
num_ar_buckets = 9
frame_buckets = [1]

# The subject.
[[directory]]
path = {_toml(material.path(SUBJECT))}
num_repeats = {photos}

# Regularization.
[[directory]]
path = {_toml(material.path(IMAGES))}
num_repeats = {images}
"""


def _config(material: Material) -> str:
    steps = 2 * common.PAIRS  # an epoch has at least one, so that max_steps ends it
    model, adapter = _model(material)
    lines = [
        [f"{key} = {_toml(value)}\n" for key, value in each.items()] for each in (model, adapter)
    ]
    return f"""\
# For --config of diffusion-pipe's train.py.

output_dir = {_toml(material.path(FOLDER, "output"))}
dataset = {_toml(material.path(DATASET))}
epochs = {steps}
max_steps = {steps}
micro_batch_size_per_gpu = 1
gradient_accumulation_steps = 1
pipeline_stages = 1
activation_checkpointing = true
save_every_n_steps = {_SAVE_EVERY}
save_dtype = "bfloat16"

[model]
{"".join(lines[0])}
[adapter]
type = "lora"
rank = 16
dtype = "bfloat16"
{"".join(lines[1])}
[optimizer]
type = "adamw_optimi"
lr = 1e-4
betas = [0.9, 0.99]
weight_decay = 0.01
"""


def _toml(value: object) -> str:
    """A value of TOML: a text, a number, true or false, a list, or a table in a line."""
    if isinstance(value, str):
        return common.toml_string(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {_toml(each)}' for key, each in value.items())}}}"
    return str(value).lower()


def _model(material: Material) -> tuple[dict[str, Any], dict[str, Any]]:
    """What [model] says, and what [adapter] says beyond what it always does."""
    entry = material.entry(_MODELS)
    model = entry | _base(material) | {"dtype": "bfloat16"}
    if material.predicts_v and entry["type"] == "sdxl":
        model["v_pred"] = True
    if not (adapter := common.adapter_file(material)):
        return model, {}
    if "diffusion_model" in entry:
        return model | {"merge_adapters": [adapter]}, {}
    return model, {"fuse_adapters": [{"path": adapter, "weight": 1.0}]}


def _base(material: Material) -> dict[str, str]:
    """The entry of [model] for the base model itself: its file, or its folder."""
    entry, name = material.entry(_MODELS), material.base_model
    key = next(key for key in _BASE if key in entry)
    is_file = name.endswith(".safetensors")
    if entry[key] and not is_file:
        return {key: entry[key]}
    if not (PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute()):
        name = f"weights/{name.rpartition('/')[2]}"
    return {key: name if is_file or key == "diffusers_path" else f"{name}.safetensors"}


def _notes(material: Material, photos: float, images: float) -> list[str]:
    (own,) = _base(material).values()
    adapter = common.adapter_file(material)
    merged = f"{adapter} ({material.kind.adapter} on the Hub) is merged into it"
    files = [f for f in re.findall(r'"(weights/[^"]+)"', _config(material)) if f != own]
    others = f" Beside it, it names {', '.join(files)}." if files else ""
    return [
        *common.mixing_notes(material, TRAINER.title, photos, images),
        "Captions come from the text files; an image without one is left out with a line on the "
        "terminal. It ignores keys it does not know, so mind the spelling.",
        f"In {CONFIG}, {own} stands for {material.base_model}.{others} Put the paths of yours in "
        "their place, from diffusion-pipe's folder; its docs/supported_models.md says which files "
        "it takes, and `hf download` with --local-dir makes a folder.",
        f"It keeps what it has cached in {material.path(IMAGES, 'cache')} and "
        f"{material.path(SUBJECT, 'cache')}.",
        *common.distillation_notes(material, merged if adapter else ""),
        *common.closing_notes(material),
    ]


def _read(out: Path, root: PurePath) -> Iterator[LoadedImage]:
    """What `DirectoryDataset` would train of each directory."""
    where = out / CONFIG
    config = common.checked(_Config, common.toml_of(where), where, TRAINER.title)
    where = out / common.below(config.dataset, root, where)
    for each in common.checked(_Dataset, common.toml_of(where), where, TRAINER.title).directory:
        folder = common.below(each.path, root, where)
        if (out / folder / "captions.json").exists():
            raise ExportError(f"{out / folder} has a captions.json, which it would read instead.")
        for path in common.images_in(out / folder, _SUFFIXES, required=False):
            caption = path.with_suffix(".txt")
            if not caption.is_file():
                continue
            yield LoadedImage(
                f"{folder}/{path.name}",
                common.text_of(caption).strip(),
                regularization=folder != SUBJECT,
                repeats=each.num_repeats,
            )


TRAINER = Trainer("diffusion-pipe", "diffusion-pipe", _plan, _read, _MODELS)
