"""The weights that a training leaves: a LoRA's files, or a whole pipeline.

    lora/pytorch_lora_weights.safetensors   for diffusers: pipeline.load_lora_weights(".../lora")
    lora/<name>-kohya.safetensors           the same for ComfyUI, A1111 and kohya's scripts (SD, XL)
    embedding/my-cat.safetensors            the new token, beside the LoRA or alone; for all of them
    model/                                  after a full fine-tune: a diffusers folder
    snapshots/step-000125/lora/, .../model/ the same, of a step on the way; for diffusers only

All of it is whole or not there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from regforge.embedded import quiet_loading
from regforge.files import storage_error, unfinished_folder, write_atomically
from regforge.images.loading import assemble
from regforge.images.loras import file_name
from regforge.recipe.named_files import EMBEDDING_FOLDER

if TYPE_CHECKING:
    from torch import Tensor

    from regforge.recipe.training import Method
    from regforge.training.families.base import Family
    from regforge.training.weights import Trainable

LORA_FILE = Path("lora", "pytorch_lora_weights.safetensors")
MODEL_FOLDER = Path("model")
SNAPSHOTS = Path("snapshots")

# What kohya's scripts and ComfyUI call the modules of a LoRA.
_KOHYA = {
    "sd": {"denoiser": "lora_unet", "text_encoder": "lora_te"},
    "sdxl": {"denoiser": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
}


def result_path(folder: Path, method: Method, word: str, step: int | None = None) -> Path:
    """Where what a run makes lies, or would lie; that of a snapshot's step.

    A LoRA's file, the folder of a pipeline, or the file of the new token `word`.
    """
    top = folder if step is None else folder / SNAPSHOTS / f"step-{step:06d}"
    names = {"lora": LORA_FILE, "full": MODEL_FOLDER, "embedding": embedding_file(word)}
    return top / names[method.kind]


def embedding_file(word: str) -> Path:
    """Where in a run's folder the embedding of a new token lies, if it has one."""
    return Path(EMBEDDING_FOLDER, file_name(word))


def save_result(
    family: Family,
    trainable: Trainable,
    folder: Path,
    *,
    name: str | None = None,
    step: int | None = None,
) -> Path:
    """Write what was trained into a run's folder, in place of what an earlier run left there.

    `name` is that of a LoRA file for other programs beside the first. With `step` the snapshot of
    that step is written; one that is there stays as it is.

    Raises:
        StorageError: It cannot be written.
    """
    method, token = trainable.method, family.token
    word = "" if token is None else token.name
    path = result_path(folder, method, word, step)
    if step is not None and path.exists():  # a run that goes on makes the same again
        return path
    if method.kind == "full":
        _save_pipeline(family, trainable, path)
        return path
    if token is not None:
        top = path.parent.parent
        write_atomically(top / embedding_file(word), _in_order(token.file()))
    if method.kind == "embedding":
        return path
    layers = trainable.lora_layers()
    # transformers notes from which folder it loaded a text encoder: nobody's business.
    place = {"base_model_name_or_path": None}
    metadata = {name: config | place for name, config in trainable.lora_metadata().items()}
    names = _KOHYA.get(family.name)
    if name is not None and names is not None:
        from safetensors.torch import save

        content = save(kohya_weights(layers, method, names), _kohya_metadata(family, method))
        write_atomically(path.with_name(f"{name}-kohya.safetensors"), _in_order(content))
    with _temporary_folder(path.parent) as temporary:
        made = family.save_lora(temporary, layers, metadata)
        write_atomically(path, _in_order(made.read_bytes()))
    return path


def _save_pipeline(family: Family, trainable: Trainable, path: Path) -> None:
    """The base model's folder with the trained modules in it, and the new token if there is one.

    What was not trained comes from the base model again: it may have been released meanwhile.
    """
    trained = {
        family.denoiser_name if name == "denoiser" else name: module
        for name, module in trainable.modules.items()
    }
    with quiet_loading(), family.token.written() if family.token else nullcontext() as parts:
        trained |= parts or {}
        dtype = family.pipeline.vae.dtype
        pipeline = assemble(family.source, dtype, family.variant, trained)
        with _temporary_folder(path.parent) as temporary:
            pipeline.save_pretrained(temporary / "new", safe_serialization=True)
            _forget_places(temporary / "new")
            if path.exists():
                path.replace(temporary / "old")
            (temporary / "new").replace(path)


def _forget_places(folder: Path) -> None:
    """Take out where on this machine the parts of a pipeline came from."""
    for path in sorted(folder.rglob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and Path(str(content.get("_name_or_path", ""))).is_absolute():
            del content["_name_or_path"]
            text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
            path.write_text(text + "\n", encoding="utf-8")


def kohya_file(folder: Path) -> Path | None:
    """The LoRA for other programs in a run's folder, if there is one."""
    found = sorted((folder / LORA_FILE).parent.glob("*-kohya.safetensors"))
    return found[0] if found else None


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
                ones = (1,) * max(1, value.dim() - 1)
                converted[f"{name}.dora_scale"] = value.reshape(value.numel(), *ones)
    return converted


def _kohya_metadata(family: Family, method: Method) -> dict[str, str]:
    """What other programs read to know what kind of LoRA it is."""
    width = getattr(family.denoiser.config, "cross_attention_dim", 768)
    version = "sd_v2" if width == 1024 else "sd_v1"  # the text encoder of 2.x is wider
    if family.name == "sdxl":
        version = "sdxl_base_v1-0"
    return {
        "format": "pt",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(method.rank),
        "ss_network_alpha": f"{method.rank if method.alpha is None else method.alpha:g}",
        "ss_base_model_version": version,
        "ss_v2": str(version == "sd_v2"),
    }


def _in_order(content: bytes) -> bytes:
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
