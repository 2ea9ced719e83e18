"""Checkpoints: everything that a run needs to go on, in folders that are whole or not there.

    checkpoints/step-000500/
        weights.safetensors      what is trained
        average.safetensors      its moving average, where there is one
        optimizer.safetensors    the optimizer's tensors, by parameter number and name
        state.json               step, scaler, the optimizer's plain numbers, the recipe's digest

No pickles. Tensors are copied to the CPU at once and written in a background thread, into a folder
that takes its name when all of it is on the disk.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from regforge.errors import RegforgeError
from regforge.files import UNFINISHED, StorageError, parse_json, remove_unfinished, storage_error

FORMAT = 1

_NAME = re.compile(r"step-\d{6,}")


class CheckpointError(RegforgeError):
    """A checkpoint that cannot be used."""


@dataclass(frozen=True)
class TrainingState:
    """A moment of a training run, after so many optimizer steps.

    Weights and their moving average (empty without one) are by name; `optimizer` and `scaler` as
    torch's `state_dict` returns them.
    """

    step: int
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    average: Mapping[str, Tensor] = field(default_factory=dict)
    scaler: Mapping[str, Any] = field(default_factory=dict)


class Checkpoints:
    """The newest `keep` checkpoints of one run; those of another recipe are refused."""

    def __init__(self, folder: Path, *, keep: int, digest: str) -> None:
        self._folder = folder
        self._keep = keep
        self._digest = digest
        self._writer: threading.Thread | None = None
        self._problem: Exception | None = None

    def save(self, state: TrainingState) -> Path:
        """Write a checkpoint in the background; its tensors may change as soon as this returns.

        Waits for the one before, so that at most one copy of the weights is in memory. Returns
        where it will be.

        Raises:
            StorageError: The one before, or this one, cannot be written.
        """
        self.wait()
        path = self._folder / f"step-{state.step:06d}"
        files, plain = _as_files(state)
        plain |= {"format": FORMAT, "recipe_digest": self._digest}
        self._writer = threading.Thread(
            target=self._write, args=(path, files, plain), name="checkpoint"
        )
        self._writer.start()
        return path

    def wait(self) -> None:
        """Until what `save` was given last is on the disk, or StorageError."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self._problem is not None:
            problem, self._problem = self._problem, None
            raise problem

    def all(self) -> list[Path]:
        """All that are on the disk, oldest first."""
        there = self._folder.iterdir() if self._folder.is_dir() else ()
        found = [path for path in there if _NAME.fullmatch(path.name) and path.is_dir()]
        return sorted(found, key=_step_of)

    def newest(self, at_most: int) -> TrainingState | None:
        """The newest one that can be read, of a step of at most so many; None if there is none.

        Raises:
            CheckpointError: It is of another recipe, or of another version of regforge.
        """
        from safetensors.torch import load_file

        for path in reversed(self.all()):
            if _step_of(path) > at_most:
                continue
            try:
                plain = parse_json((path / "state.json").read_bytes())
                tensors = {each.stem: load_file(each) for each in path.glob("*.safetensors")}
            except (OSError, ValueError, SafetensorError):
                continue
            if isinstance(plain, dict) and {"weights", "optimizer"} <= set(tensors):
                self._check(path, plain)
                return _from_files(tensors, plain)
        return None

    def _check(self, path: Path, plain: dict[str, Any]) -> None:
        if plain.get("format") != FORMAT:
            raise CheckpointError(
                f"{path} was written by another version of regforge.",
                hint="Go on with that version, or start over with --fresh.",
            )
        if plain.get("recipe_digest") != self._digest:
            raise CheckpointError(
                f"{path} is of another recipe.",
                hint="Start over with --fresh (what was made there is deleted), or choose another "
                "folder with --out.",
            )

    def _write(
        self, path: Path, files: dict[str, dict[str, Tensor]], plain: dict[str, Any]
    ) -> None:
        from safetensors.torch import save_file

        partial = path.with_name(f"{UNFINISHED}{path.name}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            remove_unfinished(self._folder, below=False)
            partial.mkdir()
            for name, tensors in files.items():
                save_file(tensors, partial / f"{name}.safetensors")
            (partial / "state.json").write_text(json.dumps(plain, indent=1), encoding="utf-8")
            for each in (*partial.iterdir(), partial):
                _sync(each)
            if path.exists():
                shutil.rmtree(path)
            partial.replace(path)
            _sync(self._folder)
            for old in self.all()[: -self._keep]:
                # First under a name that nobody takes for a checkpoint: deleting takes a while.
                shutil.rmtree(old.replace(old.with_name(f"{UNFINISHED}{old.name}")))
        except StorageError as error:
            self._problem = error
        except (OSError, SafetensorError) as error:
            self._problem = storage_error(path, error)
        except Exception as error:  # raised again by `wait`, in the thread that asked
            self._problem = error


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _sync(path: Path) -> None:
    """Have it on the disk before something else is."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # a folder, on Windows
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _as_files(state: TrainingState) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Copies on the CPU of the tensors of each file, and what else there is as JSON."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for parameter, values in state.optimizer["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{parameter}.{name}"] = value
            else:
                numbers.setdefault(str(parameter), {})[name] = value
    files = {"weights": state.weights, "optimizer": tensors}
    if state.average:
        files["average"] = state.average
    plain = {
        "step": state.step,
        "scaler": dict(state.scaler),
        "optimizer": {"state": numbers, "param_groups": state.optimizer["param_groups"]},
    }
    copies = {
        file: {
            name: tensor.detach().to("cpu", copy=True).contiguous()
            for name, tensor in content.items()
        }
        for file, content in files.items()
    }
    # Here, not in the thread: numbers may change, and what JSON cannot hold shows where it is from.
    return copies, json.loads(json.dumps(plain, default=_number))


def _number(value: object) -> Any:
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    raise CheckpointError(f"An optimizer with a {type(value).__name__} in it cannot be saved.")


def _from_files(tensors: dict[str, dict[str, Tensor]], plain: dict[str, Any]) -> TrainingState:
    optimizer = plain["optimizer"]
    values: dict[int, dict[str, Any]] = {
        int(parameter): dict(numbers) for parameter, numbers in optimizer["state"].items()
    }
    for key, tensor in tensors["optimizer"].items():
        parameter, _, name = key.partition(".")
        values.setdefault(int(parameter), {})[name] = tensor
    return TrainingState(
        step=plain["step"],
        weights=tensors["weights"],
        optimizer={"state": values, "param_groups": optimizer["param_groups"]},
        average=tensors.get("average", {}),
        scaler=plain["scaler"],
    )


def restore_optimizer(optimizer: torch.optim.Optimizer, state: TrainingState) -> None:
    """Give an optimizer the state it had.

    Raises:
        CheckpointError: It is of another optimizer, or of other parameters.
    """
    try:
        optimizer.load_state_dict(dict(state.optimizer))
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            f"The checkpoint does not fit the optimizer: {error}.",
            hint="Start over with --fresh.",
        ) from error
