"""Reads what exports print and write with the trainers' own code: python own_code.py NAME FOLDER.

FOLDER has the trainer's checkout. Plans come in as JSON, {base model: {"command", "files"}}, and
what the trainer made of each goes out as JSON. Libraries that take no part in reading are replaced
by modules in which every name stands for an empty class, so that nothing has to be installed.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import json
import os
import re
import shlex
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import yaml

ABSENT = set(
    "accelerate albumentations bitsandbytes cv2 datasets deepspeed diffusers einops "
    "imagesize k_diffusion library.ipex lycoris mgds mutagen optimum peft prodigyopt psutil toml "
    "torchao torchaudio torchvision transformers voluptuous wandb xformers".split()
)


class _Empty(type):
    def __getattr__(cls, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock()

    def __iter__(cls) -> Iterator[object]:
        return iter(())


class _Module(types.ModuleType):
    __version__ = "9.0.0"

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        if name[0].islower():
            return MagicMock()
        members = {"__init__": lambda *_, **__: None, "__getattr__": lambda *_: MagicMock()}
        setattr(self, name, _Empty(name, (), members))
        return getattr(self, name)


# Of SimpleTuner's helpers, what reads arguments.
READING = re.compile(
    r"helpers(\.models(\.field_registry.*)?|\.configuration(\.c.*|\.template.*)?)?$"
)


class _Finder:
    def find_spec(self, name: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        top, _, rest = name.partition(".")
        absent = top in ABSENT or (rest.startswith("helpers") and not READING.match(rest))
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if absent else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = _Module(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, _: types.ModuleType) -> None:
        pass


def _words(plan: dict[str, Any]) -> list[str]:
    return shlex.split(plan["command"].replace("\\\n", " "))


def _script(plan: dict[str, Any], parse: Callable[[Any, list[str]], Any]) -> dict[str, Any]:
    _, _, script, *words = _words(plan)
    return vars(parse(importlib.import_module(script.removesuffix(".py")), words))


def kohya(plan: dict[str, Any]) -> dict[str, Any]:
    return _script(plan, lambda module, words: module.setup_parser().parse_args(words))


def diffusers(plan: dict[str, Any]) -> dict[str, Any]:
    ABSENT.update(("huggingface_hub", "safetensors", "torch"))
    folders = ("dreambooth", "custom_diffusion", "advanced_diffusion_training")
    sys.path[:0] = [f"examples/{name}" for name in folders]
    return _script(plan, lambda module, words: module.parse_args(words))


def simpletuner(plan: dict[str, Any]) -> dict[str, Any]:
    ABSENT.update(("atomicwrites", "fastapi", "huggingface_hub", "safetensors", "torch"))
    inside = ("", ".simpletuner_sdk", ".simpletuner_sdk.server", ".simpletuner_sdk.server.services")
    helpers = (".helpers", ".helpers.configuration", ".helpers.models")
    for name in (f"simpletuner{part}" for part in (*inside, *helpers)):  # not what imports the rest
        package = sys.modules.setdefault(name, types.ModuleType(name))
        package.__path__ = [name.replace(".", "/")]
    reading = importlib.import_module("simpletuner.helpers.configuration.cmd_args")
    config = json.loads(plan["files"]["simpletuner/config.json"])
    found, unknown = reading.get_argument_parser().parse_known_args(
        reading.mapping_to_cli_args(config)
    )
    assert not unknown, unknown
    return vars(found)


def onetrainer(plan: dict[str, Any]) -> dict[str, Any]:
    ABSENT.add("torch")
    arguments = importlib.import_module("modules.util.args.TrainArgs").TrainArgs
    sys.argv = _words(plan)[1:]
    preset = Path(arguments.parse_args().preset_path)
    config = importlib.import_module("modules.util.config.TrainConfig").TrainConfig.default_values()
    said = StringIO()
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(said):
        config.from_dict(json.loads(preset.read_text()), migrate=False)
        config.from_dict(json.loads(plan["files"]["onetrainer/config.json"]), migrate=False)
        path = Path(folder) / "concepts.json"
        path.write_text(plan["files"]["onetrainer/concepts.json"])
        config.concept_file_name = str(path)
        packed: dict[str, Any] = config.to_pack_dict(secrets=False)
    assert not said.getvalue(), said.getvalue()  # what it could not set
    return {key: value for key, value in packed.items() if key != "concept_file_name"}


def ai_toolkit(plan: dict[str, Any]) -> dict[str, Any]:
    ABSENT.update(("torch", "safetensors"))
    for name in ("toolkit.audio", "toolkit.audio.album_artwork", "toolkit.prompt_utils"):
        sys.modules[name] = MagicMock()
    own = importlib.import_module("toolkit.config_modules")
    job = yaml.safe_load(plan["files"]["ai-toolkit/train.yaml"])["config"]["process"][0]
    model, train = own.ModelConfig(**job["model"]), own.TrainConfig(**job["train"])
    sample, datasets = own.SampleConfig(**job["sample"]), job["datasets"]
    data = [own.DatasetConfig(**dataset) for dataset in datasets]
    own.validate_configs(train, model, own.SaveConfig(**job["save"]), data)
    assert [dataset.is_reg for dataset in data] == [False, True]
    return {
        **vars(own.NetworkConfig(**job["network"])),
        **vars(model),
        **vars(sample),
        **vars(train),
    }


PARSERS = {
    "kohya": kohya,
    "diffusers-dreambooth": diffusers,
    "custom-diffusion": diffusers,
    "simpletuner": simpletuner,
    "onetrainer": onetrainer,
    "ai-toolkit": ai_toolkit,
}
"""By the names that `--to` takes."""

if __name__ == "__main__":
    parse = PARSERS[sys.argv[1]]
    os.chdir(sys.argv[2])
    sys.path.insert(0, "")
    sys.meta_path.insert(0, _Finder())
    found = {name: parse(plan) for name, plan in json.load(sys.stdin).items()}
    plain = {
        name: {key: value for key, value in each.items() if type(value) in (str, int, float, bool)}
        for name, each in found.items()
    }
    sys.__stdout__.write(json.dumps(plain))
