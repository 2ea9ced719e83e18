"""Copies of the embedded model that draw nothing: as when numbers overflow in half precision."""

import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from regforge.embedded import TINYWORLD


def overflowing(folder: Path) -> str:
    """Draws NaN."""
    return _with_last_layer(folder, float("nan"), float("nan"))


def black(folder: Path) -> str:
    """Draws black images in whatever precision."""
    return _with_last_layer(folder, 0, -1)


def _with_last_layer(folder: Path, weight: float, bias: float) -> str:
    shutil.copytree(TINYWORLD, folder)
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    for name, value in (("weight", weight), ("bias", bias)):
        tensors[f"decoder.conv_out.{name}"] = np.full_like(
            tensors[f"decoder.conv_out.{name}"], value
        )
    save_file(tensors, path, {"format": "pt"})
    return str(folder)
