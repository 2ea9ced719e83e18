"""DiffSynth-Studio: metadata.jsonl with a row for each image, and a command.

Read at commit fed7b18 of modelscope/DiffSynth-Studio: diffsynth/core/data/unified_dataset.py (how
the metadata is read), diffsynth/diffusion/parsers.py and examples/*/model_training/train.py
(arguments), runner.py (an epoch), training_module.py (layers of the LoRA), and the commands in
examples/*/model_training/lora/.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import NamedTuple

from pydantic import BaseModel

from regforge.exporting import common
from regforge.exporting.trainer import (
    SUBJECT,
    ExportError,
    LoadedImage,
    Material,
    Plan,
    Trainer,
)
from regforge.words import counted

FOLDER = "diffsynth"
METADATA = f"{FOLDER}/metadata.jsonl"

_SAVE_EVERY = 500
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


class _Model(NamedTuple):
    """What a family has there.

    Attributes:
        example: Its folder in examples/.
        files: What to load, as `repository:pattern`; without a repository, of the base model's.
        layers: What the LoRA is put on; left to DiffSynth-Studio, which takes the linear layers of
            all blocks, where its own example lists them one by one.
        flags: What its scripts need besides.
        part: The part of the pipeline that is trained.
        source: The repository of ModelScope that it is loaded from; else that of the base model,
            from Hugging Face.
    """

    example: str
    files: tuple[str, ...]
    layers: str = ""
    flags: tuple[str, ...] = ()
    part: str = "dit"
    source: str = ""


_VAE = "vae/diffusion_pytorch_model.safetensors"
_SHARDS = ("text_encoder/*.safetensors", "transformer/*.safetensors")
_UNET = ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors")
_UNUSED = "--find_unused_parameters"
_ALIGN = "--align_to_opensource_format"
_BFL = "black-forest-labs/"
_T5 = tuple(
    f"{_BFL}FLUX.1-dev:{file}"
    for file in ("text_encoder/model.safetensors", "text_encoder_2/*.safetensors", "ae.safetensors")
)
_FLUX1 = _Model("flux", ("flux1-dev.safetensors", *_T5),
                "a_to_qkv,b_to_qkv,ff_a.0,ff_a.2,ff_b.0,ff_b.2,a_to_out,b_to_out,proj_out,"
                "norm.linear,norm1_a.linear,norm1_b.linear,to_qkv_mlp", (_ALIGN,))  # fmt: skip
_Z = "Tongyi-MAI/Z-Image-Turbo:"
_Z_IMAGE = _Model("z_image", (_SHARDS[1], f"{_Z}{_SHARDS[0]}", f"{_Z}{_VAE}"),
                  "to_q,to_k,to_v,to_out.0,w1,w2,w3")  # fmt: skip
_QWEN3 = "Qwen/Qwen3-VL-4B-Instruct:"
_KREA2 = _Model("krea2", ("raw.safetensors", f"{_QWEN3}*.safetensors", f"Qwen/Qwen-Image:{_VAE}"),
                "wq,wk,wv,gate,wo,up,down,first,tmlp.0,tmlp.2,projector,txtmlp.1,txtmlp.3,"
                "last.linear,tproj.1", (f"--tokenizer_path={_QWEN3}", _UNUSED, _ALIGN))  # fmt: skip


def _klein(size: str) -> _Model:
    other = f"{_BFL}FLUX.2-klein-{size}:"
    files = (f"{other}{_SHARDS[0]}", _SHARDS[1], f"{other}{_VAE}")
    return _Model("flux2", files, flags=(f"--tokenizer_path={other}tokenizer/",))


_MODELS: Mapping[str, _Model | None] = {
    "sd1": _Model("stable_diffusion", (*_UNET, _VAE), part="unet",
                  flags=("--tokenizer_path={0}:tokenizer/",)),
    "sdxl": _Model("stable_diffusion_xl", (*_UNET, "text_encoder_2/model.safetensors", _VAE),
                   "to_q,to_k,to_v,to_out.0,proj_in,proj_out,ff.net.0.proj,ff.net.2",
                   (_ALIGN,), "unet"),
    "flux1-dev": _FLUX1,
    "flux1-krea": _FLUX1._replace(files=("flux1-krea-dev.safetensors", *_T5)),
    "flux1-schnell": None,
    "flux2-dev": _Model("flux2", (*_SHARDS, _VAE), flags=("--enable_model_cpu_offload",)),
    "flux2-klein-base-4b": _klein("4B"),
    "flux2-klein-base-9b": _klein("9B"),
    "qwen-image": _Model("qwen_image", ("transformer/diffusion_pytorch_model*.safetensors",
                                        "text_encoder/model*.safetensors", _VAE),
                         "to_q,to_k,to_v,add_q_proj,add_k_proj,add_v_proj,to_out.0,to_add_out,"
                         "img_mlp.net.2,img_mod.1,txt_mlp.net.2,txt_mod.1", (_UNUSED,)),
    "z-image": _Z_IMAGE,
    "z-image-turbo": _Z_IMAGE._replace(flags=("--preset_lora_path={1}",
                                              "--preset_lora_model=dit")),
    "krea2": _KREA2,
    "krea2-turbo": _KREA2._replace(files=("turbo.safetensors", *_KREA2.files[1:])),
    "ernie-image": _Model("ernie_image", ("transformer/diffusion_pytorch_model*.safetensors",
                                          "text_encoder/model.safetensors", _VAE),
                          "to_q,to_k,to_v,to_out.0", (_UNUSED,), source="PaddlePaddle/ERNIE-Image"),
    "ernie-image-turbo": None,
    "ideogram4": _Model("ideogram4", ("transformer/diffusion_pytorch_model.safetensors",
                                      "text_encoder/model.safetensors", _VAE),
                        "attention.qkv,attention.o,feed_forward.w1,feed_forward.w2,feed_forward.w3,"
                        "adaln_modulation", (_UNUSED,),
                        source="DiffSynth-Studio/ideogram-4-bf16-repackage"),
}  # fmt: skip


class _Row(BaseModel, extra="forbid", strict=True):
    image: str
    prompt: str


def _plan(material: Material) -> Plan:
    if material.predicts_v:
        raise ExportError(
            f"{TRAINER.title} trains {material.kind.title} to predict the noise, and "
            f"{material.base_model} predicts the velocity.",
            hint="Trainers that can: --to kohya, simpletuner, onetrainer, ai-toolkit.",
        )
    rows = [
        {"image": f"{folder}/{image.name}", "prompt": image.caption}
        for folder, image, often in common.repeated(material, TRAINER.title)
        for _ in range(often)
    ]
    # It opens the file in the encoding of the machine.
    return Plan(
        files={METADATA: "".join(f"{json.dumps(row)}\n" for row in rows)},
        command=_command(material, len(rows)),
        notes=_notes(material, len(rows)),
    )


def _base(material: Material) -> str:
    """The repository that the command names for the base model."""
    model, base = material.entry(_MODELS), material.base_model
    return model.source or (base if _REPOSITORY.fullmatch(base) else material.kind.repository)


def _repeats(rows: int) -> int:
    """How often an epoch shows the rows: it has no number of steps."""
    return max(1, round(2 * common.PAIRS / rows))


def _command(material: Material, rows: int) -> str:
    model, base = material.entry(_MODELS), _base(material)
    files = [file if ":" in file else f"{base}:{file}" for file in model.files]
    hub = [] if model.source else ["DIFFSYNTH_DOWNLOAD_SOURCE=huggingface"]
    return common.command_line(
        [*hub, "accelerate", "launch", f"examples/{model.example}/model_training/train.py"],
        [f"--dataset_base_path={material.path()}"],
        [f"--dataset_metadata_path={material.path(METADATA)}", "--data_file_keys=image"],
        [f"--max_pixels={common.side(material, TRAINER.title) ** 2}"],
        [f"--model_id_with_origin_paths={','.join(files)}"],
        [flag.format(base, common.adapter_file(material)) for flag in model.flags],
        [f"--lora_base_model={model.part}", f"--lora_target_modules={model.layers}"],
        ["--lora_rank=16", f"--remove_prefix_in_ckpt=pipe.{model.part}."],
        ["--learning_rate=1e-4", "--use_gradient_checkpointing"],
        [f"--dataset_repeat={_repeats(rows)}", "--num_epochs=1", f"--save_steps={_SAVE_EVERY}"],
        [f"--output_path=models/train/{material.run_name}"],
    )


def _notes(material: Material, rows: int) -> list[str]:
    model, base, steps = material.entry(_MODELS), _base(material), rows * _repeats(rows)
    merged = ""
    if any("{1}" in flag for flag in model.flags):
        adapter = common.adapter_file(material)
        merged = f"the command merges {adapter} ({material.kind.adapter} on the Hub) into it"
    notes = [
        *common.mixing_notes(material, TRAINER.title, *common.mixture(material, TRAINER.title)),
        f"It trains on as many images as an epoch has, in any order: {METADATA} has "
        f"{counted(rows, 'row')}, and --dataset_repeat={_repeats(rows)} makes {steps:,} steps of "
        f"it. There is no other end; a checkpoint is written every {_SAVE_EVERY} steps.",
        "Images are scaled down to --max_pixels, each in its own shape, and never up.",
        *common.distillation_notes(material, merged),
    ]
    if base == material.base_model != material.kind.repository:
        notes.append(
            f"The files of {base} are named as in the model that it was made from; if they are "
            "called otherwise there, change --model_id_with_origin_paths."
        )
    if base != material.base_model:
        notes.append(
            f"The command loads {base}"
            f"{' of ModelScope' if model.source else ''}, not {material.base_model}. For files of "
            "your own, name them in --model_paths instead, as a list in JSON."
        )
    if not material.photos:
        notes.append(
            f"No photos of the subject were given, and {METADATA} names its images one by one: "
            "export again with --subject."
        )
    return notes


def _read(out: Path, root: PurePath) -> Iterator[LoadedImage]:
    """What `UnifiedDataset` would show in an epoch."""
    del root  # the paths in it are below --dataset_base_path
    where = out / METADATA
    shown: Counter[tuple[str, str]] = Counter()
    for number, line in enumerate(common.lines_of(where), 1):
        try:
            row = common.checked(_Row, json.loads(line), where, TRAINER.title)
        except ValueError as error:
            raise ExportError(f"{where}:{number}: is no JSON: {error}") from error
        if not (out / row.image).is_file():
            raise ExportError(f"{where}:{number}: {row.image} is missing, and it would stop there.")
        shown[row.image, row.prompt] += 1
    for (path, caption), times in shown.items():
        yield LoadedImage(path, caption, not path.startswith(f"{SUBJECT}/"), times)


TRAINER = Trainer("diffsynth", "DiffSynth-Studio", _plan, _read, _MODELS)
