"""What a finished training leaves: a LoRA's files, or a whole pipeline.

    lora/pytorch_lora_weights.safetensors   for diffusers: pipeline.load_lora_weights(".../lora")
    lora/<name>-kohya.safetensors           the same for ComfyUI, A1111 and kohya's scripts (SD, XL)
    model/                                  after a full fine-tune: a diffusers folder
    snapshots/step-000125/lora/, .../model/ the same, of a step on the way; for diffusers only

All of it is whole or not there. Knows file formats; knows nothing about training.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regforge.embedded.pipeline import quiet_loading
from regforge.files import storage_error, unfinished_folder, write_atomically
from regforge.training.card import model_card
from regforge.training.validation import IMAGES, prompts_of

if TYPE_CHECKING:
    from torch import Tensor

    from regforge.recipe.training import Method, TrainingRecipe
    from regforge.training.interface import Family
    from regforge.training.weights import Trainable

LORA_FILE = Path("lora", "pytorch_lora_weights.safetensors")
MODEL_FOLDER = Path("model")
SNAPSHOTS = Path("snapshots")

# What kohya's scripts and ComfyUI call the modules of a LoRA.
_KOHYA = {
    "sd": {"denoiser": "lora_unet", "text_encoder": "lora_te"},
    "sdxl": {
        "denoiser": "lora_unet",
        "text_encoder": "lora_te1",
        "text_encoder_2": "lora_te2",
    },
}


def save_result(
    family: Family, trainable: Trainable, folder: Path, *, name: str | None = None
) -> Path:
    """Write what was trained into a run's folder, in place of what an earlier run left there.

    Args:
        family: What it belongs to.
        trainable: Its weights as they are now.
        folder: The run's.
        name: Of the file for other programs; the folder's if left out.

    Returns:
        The LoRA's file, or the folder of the pipeline.

    Raises:
        StorageError: It cannot be written.
    """
    if trainable.method.kind == "full":
        return _save_pipeline(family, trainable, folder / MODEL_FOLDER)
    name = name or folder.resolve().name
    return _save_lora(family, trainable, folder / LORA_FILE, f"{name}-kohya.safetensors")


def save_snapshot(family: Family, trainable: Trainable, folder: Path, step: int) -> Path:
    """Write what was trained so far into a run's folder, unless it is there.

    Args:
        family: What it belongs to.
        trainable: Its weights as they are now.
        folder: The run's.
        step: How many steps are done.

    Returns:
        The LoRA's file, or the folder of the pipeline.

    Raises:
        StorageError: It cannot be written.
    """
    path = snapshot_path(folder, trainable.method, step)
    if path.exists():  # a run that goes on makes the same again
        return path
    if trainable.method.kind == "full":
        return _save_pipeline(family, trainable, path)
    return _save_lora(family, trainable, path, None)


def snapshot_path(folder: Path, method: Method, step: int) -> Path:
    """Where the weights of a step on the way lie, or would lie."""
    result = MODEL_FOLDER if method.kind == "full" else LORA_FILE
    return folder / SNAPSHOTS / f"step-{step:06d}" / result


def _save_lora(family: Family, trainable: Trainable, path: Path, other: str | None) -> Path:
    layers = trainable.lora_layers()
    names = _KOHYA.get(family.name)
    if other is not None and names is not None:
        converted = kohya_weights(layers, trainable.method, names)
        write_atomically(path.with_name(other), _as_bytes(converted, _about(family, trainable)))
    with _temporary_folder(path.parent) as temporary:
        made = family.save_lora(temporary, layers, _without_places(trainable.lora_metadata()))
        write_atomically(path, in_order(made.read_bytes()))
    return path


def _save_pipeline(family: Family, trainable: Trainable, path: Path) -> Path:
    """The base model's folder with the trained modules in it.

    What was not trained comes from the base model again: it may have been given up meanwhile.
    """
    ours = {
        family.denoiser_name if name == "denoiser" else name: module
        for name, module in trainable.modules.items()
    }
    with quiet_loading():
        pipeline = type(family.pipeline).from_pretrained(
            family.source,
            dtype=family.pipeline.vae.dtype,
            variant=family.variant,
            use_safetensors=True,
            local_files_only=True,
            **ours,
        )
        with _temporary_folder(path.parent) as temporary:
            pipeline.save_pretrained(temporary / "new", safe_serialization=True)
            _forget_places(temporary / "new")
            if path.exists():
                path.replace(temporary / "old")
            (temporary / "new").replace(path)
    return path


def _forget_places(folder: Path) -> None:
    """Take out where on this machine the parts of a pipeline came from."""
    for path in sorted(folder.rglob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and Path(str(content.get("_name_or_path", ""))).is_absolute():
            del content["_name_or_path"]
            text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
            path.write_text(text + "\n", encoding="utf-8")


def _without_places(metadata: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same for a LoRA: transformers notes from which folder it loaded a text encoder."""
    place = "base_model_name_or_path"
    return {name: {**config, place: None} for name, config in metadata.items()}


def write_card(
    recipe: TrainingRecipe,
    folder: Path,
    *,
    base_revision: str | None = None,
    dataset_revision: str | None = None,
    family: str | None = None,
) -> Path:
    """Write README.md into a run's folder, about what lies there.

    Args:
        recipe: What was trained.
        folder: The run's.
        base_revision: Commit of the base model; the recipe's revision if left out.
        dataset_revision: Likewise, of the regularization dataset.
        family: Name of the model's family.

    Raises:
        StorageError: It cannot be written.
    """
    path = folder / "README.md"
    other = kohya_file(folder)
    card = model_card(
        recipe,
        base_revision=base_revision,
        dataset_revision=dataset_revision,
        samples="samples.webp" if (folder / "samples.webp").is_file() else None,
        images=images_of(recipe, folder),
        other=f"{LORA_FILE.parent}/{other.name}" if other else None,
        family=family,
        existing=path.read_text(encoding="utf-8") if path.is_file() else None,
    )
    write_atomically(path, card)
    return path


def kohya_file(folder: Path) -> Path | None:
    """The LoRA for other programs in a run's folder, if there is one."""
    found = sorted((folder / LORA_FILE).parent.glob("*-kohya.safetensors"))
    return found[0] if found else None


def images_of(recipe: TrainingRecipe, folder: Path) -> list[tuple[str, str]]:
    """Validation prompts, each with the name of its image in a run's folder, if it is there."""
    named = enumerate(prompts_of(recipe), start=1)
    images = [(prompt, f"{IMAGES}/{number:02d}.webp") for number, prompt in named]
    return [(prompt, name) for prompt, name in images if (folder / name).is_file()]


# ------------------------------------------------------------------------------------------ kohya


def kohya_weights(
    layers: Mapping[str, Mapping[str, Tensor]], method: Method, names: Mapping[str, str]
) -> dict[str, Tensor]:
    """A LoRA under the names that kohya's scripts, ComfyUI and A1111 know.

    `<module>_<layer with underscores>.lora_down.weight`, `.lora_up.weight` and `.alpha`, which is
    the scale times the rank: their programs know no rank-stabilized scale, so that is in it. Layers
    keep the names that diffusers has for them. The form is that of
    https://github.com/kohya-ss/sd-scripts/blob/main/networks/lora.py; DoRA's magnitudes are
    `.dora_scale`, one row per output, as ComfyUI's weight_adapter/base.py takes them.
    (diffusers' own conversion takes the rank for alpha and keeps peft's name for magnitudes.)

    Args:
        layers: As `Trainable.lora_layers` returns.
        method: Rank, alpha and kind of scale.
        names: What each module is called.
    """
    import torch

    from regforge.training.families.base import portable

    alpha = float(method.rank if method.alpha is None else method.alpha)
    if method.rslora:
        alpha *= math.sqrt(method.rank)
    converted = {}
    for module, state in layers.items():
        for key, value in state.items():
            layer, _, part = portable(module, key).partition(".lora_")
            name = f"{names[module]}_{layer.replace('.', '_')}"
            value = value.detach().cpu().contiguous()
            if part.startswith("A"):
                converted[f"{name}.lora_down.weight"] = value
                converted[f"{name}.alpha"] = torch.tensor(alpha)
            elif part.startswith("B"):
                converted[f"{name}.lora_up.weight"] = value
            else:
                outputs = value.numel()
                rest = (1,) if value.dim() == 1 else (1,) * (value.dim() - 1)
                converted[f"{name}.dora_scale"] = value.reshape(outputs, *rest)
    return converted


def _about(family: Family, trainable: Trainable) -> dict[str, str]:
    """What other programs read to know what kind of LoRA it is."""
    method = trainable.method
    if family.name == "sdxl":
        version = "sdxl_base_v1-0"
    else:  # the text encoder of 2.x is wider
        width = getattr(family.denoiser.config, "cross_attention_dim", 768)
        version = "sd_v2" if width == 1024 else "sd_v1"
    return {
        "format": "pt",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(method.rank),
        "ss_network_alpha": f"{method.rank if method.alpha is None else method.alpha:g}",
        "ss_base_model_version": version,
        "ss_v2": str(version == "sd_v2"),
    }


# ------------------------------------------------------------------------------------------ files


def _as_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    from safetensors.torch import save

    return in_order(save(dict(tensors), dict(metadata)))


def in_order(content: bytes) -> bytes:
    """A safetensors file with its metadata in order; safetensors shuffles them each time.

    https://huggingface.co/docs/safetensors/index#format: eight bytes with the header's length, the
    header as JSON, the tensors.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]


@contextmanager
def _temporary_folder(parent: Path) -> Iterator[Path]:
    """A folder on the same disk, which is gone afterwards.

    Raises:
        StorageError: Nothing can be written there.
    """
    from safetensors import SafetensorError

    with unfinished_folder(parent) as temporary:
        try:
            yield temporary
        except SafetensorError as error:  # it wraps what the system said in words of its own
            raise storage_error(parent, error) from error
