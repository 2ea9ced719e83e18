"""Folders as training leaves them, with weights that nobody trained, and small LoRAs that fit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import save_file

from regforge.evaluation.suites import Subject

SUBJECTS = Path(__file__).parents[2] / "examples" / "subjects"
CAT = Subject("sks", "cat", "living", SUBJECTS / "cat")
LORA = "pytorch_lora_weights.safetensors"


def recipe(photos: Path = SUBJECTS / "cat", **more: Any) -> dict[str, Any]:
    """What a run's recipe.yaml says, as far as evaluation reads it."""
    subject = {"images": str(photos), "identifier": "sks", "class_noun": "cat"}
    return {
        "name": "cat",
        "base_model": "embedded/tinyworld",
        "revision": None,
        "variant": None,
        "subject": subject,
        "data": {"resolution": None},
        "optimizer": {"steps": 60},
        "validation": {
            "prompts": ["a photo of a sks cat", "a photo of a cat"],
            "steps": 20,
            "guidance_scale": 4.0,
        },
    } | more


def lora(path: Path, *, metadata: dict[str, str] | None = None, value: float = 1.0) -> Path:
    """A LoRA's file that fits nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ("unet.x.lora_A.weight", "unet.x.lora_B.weight")
    save_file({name: np.full((2, 2), value, np.float32) for name in names}, path, metadata)
    return path


def embedding(path: Path, value: float = 1.0) -> Path:
    """The file of a new token, as training writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {"<my-cat>": np.full((1, 4), value, np.float32)}
    save_file(rows, path, {"token": "<my-cat>"})
    return path


def run(folder: Path, *, finished: int | None = 60, **more: Any) -> Path:
    """A training run's folder; without weights if it is not finished."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text("# Written by regforge\n" + yaml.safe_dump(recipe(**more)))
    state: dict[str, Any] = {"recipe_digest": "0" * 64}
    if finished is not None:
        lora(folder / "lora" / LORA)
        state["finished"] = {"steps": finished}
    (folder / "state.json").write_text(json.dumps(state))
    return folder


def fitting_lora(pipeline: Any, path: Path, *, kohya: bool = False, scale: float = 0.3) -> Path:
    """A random LoRA of rank 2 for the attention layers of a pipeline, and its text encoder's.

    The same numbers in both formats.
    """
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}
    denoiser = "unet" if hasattr(pipeline, "unet") else "transformer"
    places = {denoiser: ("to_q", "to_v"), "text_encoder": ("q_proj", "out_proj")}
    for part, ends in places.items():
        for name, layer in getattr(pipeline, part).named_modules():
            if not name.endswith(ends):
                continue
            outputs, inputs = layer.weight.shape
            down = rng.normal(0, scale, (2, inputs)).astype(np.float32)
            up = rng.normal(0, scale, (outputs, 2)).astype(np.float32)
            # Files keep the name that text encoders had before transformers 5.
            if part == "text_encoder" and not name.startswith("text_model."):
                name = f"text_model.{name}"
            if kohya:
                short = {"unet": "lora_unet", "text_encoder": "lora_te"}[part]
                name = f"{short}_{name.replace('.', '_')}"
                tensors[f"{name}.lora_down.weight"] = down
                tensors[f"{name}.lora_up.weight"] = up
                tensors[f"{name}.alpha"] = np.array(2.0, np.float32)
            else:
                tensors[f"{part}.{name}.lora_A.weight"] = down
                tensors[f"{part}.{name}.lora_B.weight"] = up
    assert any(name.startswith(("text_encoder", "lora_te")) for name in tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {"format": "pt"})
    return path
