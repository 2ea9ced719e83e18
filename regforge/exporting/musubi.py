"""musubi-tuner: a dataset configuration in TOML, and the commands that cache and train.

Read at commit 30c658c of kohya-ss/musubi-tuner, below src/musubi_tuner/: dataset/config_utils.py
(what a configuration may say), dataset/datasources.py and media_utils.py (which files are images,
which text is the caption), dataset/image_video_dataset.py (repeats, and names in the cache),
training/parser_common.py and the scripts (arguments). Settings and files to download: docs/.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Annotated, NamedTuple

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

FOLDER = "musubi-tuner"
CONFIG = f"{FOLDER}/dataset.toml"

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif"})
_SAVE_EVERY = 500


class _Model(NamedTuple):
    """What its scripts are called and need; the files are those of the repositories in `source`."""

    script: str
    dit: str
    vae: str
    text_encoder: str
    source: str
    timesteps: tuple[str, ...]
    version: tuple[str, ...] = ()


def _shift(name: str, value: float | None = None) -> tuple[str, ...]:
    shift = f"--timestep_sampling={name}"
    return (shift,) if value is None else (shift, f"--discrete_flow_shift={value}")


_FLUX2 = _Model("flux_2", "flux2-dev.safetensors", "ae.safetensors",
                "text_encoder/model-00001-of-00010.safetensors", "black-forest-labs/FLUX.2-dev",
                _shift("flux2_shift"), ("--model_version=dev",))  # fmt: skip
_Z_IMAGE = _Model("zimage", "z_image_bf16.safetensors", "ae.safetensors", "qwen_3_4b.safetensors",
                  "Comfy-Org/z_image", _shift("shift", 2.0))  # fmt: skip


def _klein(version: str, shards: int) -> _Model:
    repository = f"black-forest-labs/FLUX.2-{version[:-1]}B"
    return _FLUX2._replace(
        dit=f"flux-2-{version}.safetensors",
        text_encoder=f"text_encoder/model-00001-of-{shards:05d}.safetensors",
        source=f"{repository}, text_encoder/ of {repository.replace('-base', '')}, "
        f"ae.safetensors of {_FLUX2.source}",
        version=(f"--model_version={version}",),
    )


_MODELS: Mapping[str, _Model] = {
    "qwen-image": _Model("qwen_image", "qwen_image_bf16.safetensors", "qwen_image_vae.safetensors",
                         "qwen_2.5_vl_7b.safetensors", "Comfy-Org/Qwen-Image_ComfyUI",
                         _shift("shift", 2.2), ("--model_version=original",)),
    "z-image": _Z_IMAGE,
    "z-image-turbo": _Z_IMAGE._replace(dit="z_image_turbo_bf16.safetensors",
                                       source="Comfy-Org/z_image_turbo"),
    "flux2-dev": _FLUX2,
    "flux2-klein-base-4b": _klein("klein-base-4b", 2),
    "flux2-klein-base-9b": _klein("klein-base-9b", 4),
    "flux2-klein-4b": _klein("klein-4b", 2),
    "flux2-klein-9b": _klein("klein-9b", 4),
    "krea2": _Model("krea2", "raw.safetensors", "qwen_image_vae.safetensors",
                    "qwen3vl_4b_bf16.safetensors",
                    "krea/Krea-2-Raw, Comfy-Org/Qwen-Image_ComfyUI, Comfy-Org/Qwen3-VL",
                    _shift("krea2_shift")),
    "ideogram4": _Model("ideogram4", "ideogram4_fp8_scaled.safetensors", "flux2-vae.safetensors",
                        "qwen3vl_8b_fp8_scaled.safetensors", "Comfy-Org/Ideogram-4",
                        _shift("ideogram4_shift")),
}  # fmt: skip


class _General(BaseModel, extra="forbid", strict=True):
    """What our configuration uses of what it may say; a dataset has from here what it leaves out.

    Without a resolution musubi-tuner takes 960 x 544.
    """

    resolution: int
    caption_extension: Annotated[str, Field(min_length=1)]
    enable_bucket: bool
    batch_size: Annotated[int, Field(ge=1)]


class _Dataset(BaseModel, extra="forbid", strict=True):
    image_directory: str
    cache_directory: str
    num_repeats: Annotated[int, Field(ge=1)]


class _Config(BaseModel, extra="forbid", strict=True):
    general: _General
    datasets: list[_Dataset]


def _plan(material: Material) -> Plan:
    root = material.root.as_posix()
    if any(letter in root for letter in "[*?"):
        raise ExportError(
            f"{root} has [, * or ? in it: musubi-tuner would take that for a pattern and not find "
            "what it has cached.",
            hint="Choose another folder with --out or --root.",
        )
    photos, images = (round(times) for times in common.mixture(material, TRAINER.title))
    return Plan(
        files={CONFIG: _config(material, photos, images)},
        command=_command(material),
        notes=_notes(material, photos, images),
    )


def _config(material: Material, photos: int, images: int) -> str:
    caches = [material.path(FOLDER, "cache", name) for name in ("subject", "regularization")]
    return f"""\
# For --dataset_config of musubi-tuner's scripts.

[general]
resolution = {common.side(material, TRAINER.title)}
caption_extension = ".txt"
enable_bucket = true
batch_size = 1

# The subject.
[[datasets]]
image_directory = {common.toml_string(material.path(SUBJECT))}
cache_directory = {common.toml_string(caches[0])}
num_repeats = {photos}

# Regularization.
[[datasets]]
image_directory = {common.toml_string(material.path(IMAGES))}
cache_directory = {common.toml_string(caches[1])}
num_repeats = {images}
"""


def _command(material: Material) -> str:
    model = material.entry(_MODELS)
    adapter = _adapter(material)
    script = f"src/musubi_tuner/{model.script}"
    config = [f"--dataset_config={material.path(CONFIG)}", *model.version]
    text_encoder = f"--text_encoder=weights/{model.text_encoder}"
    vae = f"--vae=weights/{model.vae}"
    steps = (
        (["python", f"{script}_cache_latents.py"], config, [vae]),
        (
            ["python", f"{script}_cache_text_encoder_outputs.py"],
            [*config, text_encoder, "--batch_size=1"],
        ),
        (
            ["accelerate", "launch", "--num_cpu_threads_per_process=1", "--mixed_precision=bf16"],
            [f"{script}_train_network.py", *config],
            [f"--dit={_dit(material)}", vae, text_encoder],
            [f"--base_weights={adapter}"] if adapter else [],
            [f"--network_module=networks.lora_{model.script}"],
            ["--network_dim=16", "--network_alpha=16"],
            [*model.timesteps, "--weighting_scheme=none"],
            ["--optimizer_type=adamw8bit", "--learning_rate=1e-4"],
            [f"--max_train_steps={2 * common.PAIRS}", f"--save_every_n_steps={_SAVE_EVERY}"],
            ["--sdpa", "--mixed_precision=bf16", "--gradient_checkpointing", "--seed=0"],
            ["--output_dir=output", f"--output_name={material.run_name}"],
        ),
    )
    return " &&\n".join(common.command_line(*groups) for groups in steps)


def _adapter(material: Material) -> str:
    """What is merged into a distilled model. Of Krea 2 it is Raw that is trained."""
    return "" if material.kind.like == "krea2" else common.adapter_file(material)


def _dit(material: Material) -> str:
    base = material.base_model
    is_file = base.endswith(".safetensors")
    return base if is_file else f"weights/{material.entry(_MODELS).dit}"


def _notes(material: Material, photos: int, images: int) -> list[str]:
    model, adapter = material.entry(_MODELS), _adapter(material)
    how = f"the command merges {adapter} ({material.kind.adapter} on the Hub) into it"
    if material.kind.like == "krea2":
        how = "the command trains Krea 2 Raw in its place"
    return [
        *common.mixing_notes(material, TRAINER.title, photos, images),
        "The first two commands cache what the VAE and the text encoder make of the images and "
        "captions; the third trains from the cache. Run all three again when an image or a "
        "caption has changed. An image without a caption is left out without a word.",
        f"Run them in musubi-tuner's folder. {_dit(material)} stands for {material.base_model}; "
        f"the files in weights/ are called as on the Hub ({model.source}). Put the paths of yours "
        "in their place.",
        *common.distillation_notes(material, how if material.kind.adapter else ""),
        *common.closing_notes(material),
    ]


def _read(out: Path, root: PurePath) -> Iterator[LoadedImage]:
    """What its image datasets would cache and train."""
    where = out / CONFIG
    config = common.checked(_Config, common.toml_of(where), where, TRAINER.title)
    if len({dataset.cache_directory for dataset in config.datasets}) != len(config.datasets):
        raise ExportError(f"{where}: each dataset needs a cache_directory of its own.")
    for dataset in config.datasets:
        below = common.below(dataset.image_directory, root, where)
        for path in common.images_in(out / below, _SUFFIXES, required=False):
            caption = path.with_suffix(config.general.caption_extension)
            if path.name.startswith(".") or not caption.is_file():
                continue
            yield LoadedImage(
                f"{below}/{path.name}",
                common.text_of(caption).strip(),
                regularization=below != SUBJECT,
                repeats=dataset.num_repeats,
            )


TRAINER = Trainer("musubi-tuner", "musubi-tuner", _plan, _read, _MODELS)
