"""LoRA files of any maker, by their headers: which file is one, and how many layers it has."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from regforge.errors import EXIT_USAGE, RegforgeError

LORA_NAME = "pytorch_lora_weights.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
"""Suffixes of weights that can hold code."""

_LORA_KEY = re.compile(r"lora|lokr|\.alpha$", re.IGNORECASE)
# The second matrix of a layer, as peft, kohya's scripts, and earlier versions of diffusers name it.
_UPS = (
    ".lora_B.weight",
    ".lora_up.weight",
    ".lora.up.weight",
    "_lora.up.weight",
    "lora_linear_layer.up.weight",
)


class LoraError(RegforgeError):
    """A LoRA that is not there, is none, or does not fit the model."""

    exit_code = EXIT_USAGE


def lora_header(path: Path) -> tuple[Sequence[str], Mapping[str, str]]:
    """Names of a safetensors file's tensors, and its metadata.

    Raises:
        LoraError: It is no safetensors file, or a damaged one.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            return list(file.keys()), file.metadata() or {}
    except OSError as error:
        raise LoraError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (SafetensorError, ValueError) as error:
        raise LoraError(
            f"{path} is no whole safetensors file.", hint="Copy or download it again."
        ) from error


def layers_in(path: Path) -> int:
    """How many layers of a model a LoRA's file changes.

    Raises:
        LoraError: It is no safetensors file, or a damaged one.
    """
    return sum(name.endswith(_UPS) for name in lora_header(path)[0])


_OTHERS = {
    "hada_w": "a LoHa of LyCORIS",
    "emb_params": "a textual inversion",
}
"""Other things that are shared as one small file, by a part of the names of their weights."""


def require_lora(path: Path) -> None:
    """See that a file is a LoRA that can be used.

    Raises:
        LoraError: It is something else, which the message names.
    """
    if path.suffix != ".safetensors":
        pickle = path.suffix in PICKLES
        raise LoraError(
            f"{path} is no .safetensors file"
            + ("; others can hold code, so regforge does not load them." if pickle else "."),
            hint="A LoRA's file, or the folder of a run or a pipeline, is a model.",
        )
    names, _ = lora_header(path)
    for mark, kind in _OTHERS.items():
        if any(mark in name for name in names) and not any(name.endswith(_UPS) for name in names):
            raise LoraError(f"{path} is {kind}, and no LoRA.")
    if not names:
        raise LoraError(f"{path} is empty: no weights are in it.")
    if not any(_LORA_KEY.search(name) for name in names):
        raise LoraError(
            f"{path} holds no LoRA; it looks like a whole model.",
            hint="Convert it with diffusers' from_single_file and save_pretrained, and give that "
            "folder.",
        )
    if any(name.endswith("dora_scale") for name in names):
        raise LoraError(
            f"{path} is a DoRA in kohya's format, of which diffusers would leave out half.",
            hint=f"Take the {LORA_NAME} of the same training.",
        )


def lora_in(folder: Path) -> Path | None:
    """The LoRA in a folder or its `lora`; None if there is none.

    Raises:
        LoraError: There are several, and nothing says which.
    """
    for where in (folder / "lora", folder):
        if (where / LORA_NAME).is_file():
            return where / LORA_NAME
        files = sorted(each for each in where.glob("*.safetensors") if each.is_file())
        if len(files) > 1:
            raise several(str(where), [each.name for each in files])
        if files:
            return files[0]
    return None


def several(where: str, names: Sequence[str]) -> LoraError:
    """The error where one file is needed and there are several."""
    return LoraError(
        f"{where} has several .safetensors files: {', '.join(names[:6])}"
        f"{' and more' if len(names) > 6 else ''}.",
        hint="Give the path of one of them.",
    )
