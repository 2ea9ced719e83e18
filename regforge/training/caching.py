"""Stores of latents and text embeddings, so that each is computed once.

Kept is what the models returned, bit for bit, so that a cached run and one that is not come to the
same numbers. Names on disk follow from the model's weights and from its input, so that a cache
never has the answers of another model.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regforge.files import write_atomically
from regforge.journal import Reporter
from regforge.version import __version__

if TYPE_CHECKING:
    from torch import Tensor, nn

    Tensors = dict[str, Tensor]

_CHECKSUM = "crc32"


class Store:
    """Keeps nothing: every tensor is computed again."""

    keeps = False

    def load(self, key: str) -> Tensors | None:
        """Tensors that were saved under a key, on the CPU; None if there are none."""
        del key
        return None

    def save(self, key: str, tensors: Tensors) -> None:
        """Keep tensors of the CPU under a key."""


class MemoryStore(Store):
    """Keeps tensors in main memory, until the process ends."""

    keeps = True

    def __init__(self) -> None:
        self._kept: dict[str, Tensors] = {}

    def load(self, key: str) -> Tensors | None:
        """See `Store`."""
        return self._kept.get(key)

    def save(self, key: str, tensors: Tensors) -> None:
        """See `Store`."""
        self._kept[key] = tensors


class DiskStore(Store):
    """Keeps tensors in a safetensors file each, where later runs find them.

    A damaged file counts as none, and is reported: what it held is computed and written again.
    """

    keeps = True

    def __init__(self, folder: Path, reporter: Reporter) -> None:
        self._folder = folder
        self._reporter = reporter

    def load(self, key: str) -> Tensors | None:
        """See `Store`."""
        from safetensors import safe_open

        path = self._path(key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                written = (file.metadata() or {}).get(_CHECKSUM)
            if written != _checksum(tensors):
                raise ValueError("its checksum is wrong")
        except Exception as error:  # whatever safetensors raises on a damaged file
            self._reporter.say(f"{path} is damaged and is made again ({error}).")
            return None
        return tensors

    def save(self, key: str, tensors: Tensors) -> None:
        """See `Store`.

        Raises:
            StorageError: The disk is full or cannot be written.
        """
        from safetensors.torch import save

        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        write_atomically(self._path(key), save(whole, {_CHECKSUM: _checksum(whole)}))

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.safetensors"


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    number = 0
    for name in sorted(tensors):
        number = zlib.crc32(_bytes(tensors[name]), zlib.crc32(name.encode(), number))
    return f"{number:08x}"


def _bytes(tensor: Tensor) -> memoryview:
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def key_of(*parts: object) -> str:
    """A name of 64 hex digits that follows from some parts; different parts, different names."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


def identity(modules: Mapping[str, nn.Module], *about: object) -> str:
    """Which models these are: a digest of their classes, configurations and weights.

    Weights of some GB take seconds. The same model under another name or revision is the same.
    `about` is what else the modules' outputs depend on.
    """
    digest = hashlib.sha256(key_of(__version__, *about).encode())
    for name, module in sorted(modules.items()):
        config: Any = getattr(module, "config", None) or {}
        plain = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        # Where a model was loaded from, which begins with "_", does not count.
        facts = {key: str(value) for key, value in sorted(plain.items()) if key[:1] != "_"}
        digest.update(key_of(name, type(module).__name__, facts).encode())
        for place, tensor in sorted(module.state_dict().items()):
            digest.update(key_of(place, tensor.dtype, tuple(tensor.shape)).encode())
            digest.update(_bytes(tensor))
    return digest.hexdigest()
