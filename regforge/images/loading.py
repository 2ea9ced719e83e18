"""Loads a diffusers model that was found, whole or in parts; or explains why that cannot be.

Runs no code from a repository unless the recipe says so. Fewer bits are for the denoiser and the
language models that read captions: CLIP and autoencoders are small, and the latter lose detail
first. What a LoRA beside such weights computes is peft's.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from regforge.devices import pick_device
from regforge.embedded import quiet_loading
from regforge.files import expanded, parse_json
from regforge.images.finding import (
    FoundModel,
    ModelChoice,
    check_class,
    find_model,
    hub_problem,
    needs_package,
    read_index,
    weights_problem,
)
from regforge.images.pipelines import DENOISERS, require_negative_prompt, set_scheduler
from regforge.images.renderer import LoraIdentity, ModelUnavailable, RenderSettingError
from regforge.images.shortcuts import require_shortcuts
from regforge.recipe.model_checks import is_embedded
from regforge.recipe.named_files import MODEL_INDEX, language_models
from regforge.recipe.rendering import Render
from regforge.recipe.single_files import SingleFile
from regforge.words import first_line, missing_package

if TYPE_CHECKING:
    import torch


def _choice_of(render: Render) -> ModelChoice:
    return ModelChoice(
        render.model,
        render.revision,
        render.variant,
        render.config,
        render.trust_remote_code,
        render.quantize,
    )


def require_model(render: Render) -> None:
    """See that a dataset recipe's model, VAE and LoRAs are there; nothing is loaded.

    Raises:
        ModelUnavailable: The model is not there, may not be used, or is no text-to-image model.
        LoraError: A LoRA is not there, or is none.
        RenderSettingError: The scheduler, the negative prompt or a shortcut does not go with the
            model.
    """
    if render.lora:
        from regforge.images.loras import find_loras

        find_loras(render.lora)
    if render.vae is not None:
        _require_vae(render.vae)
    found = find_model(_choice_of(render))
    look_over(render, found.folder, found.file)


def look_over(render: Render, folder: Path, file: SingleFile | None = None) -> None:
    """See what can be seen of a pipeline's folder without its weights; raises as `require_model`.

    Does not need the weights to be there.
    """
    if is_embedded(render.model) and render.scheduler in (None, "unipc"):
        return  # it takes all there is, and the scheduler of the presets
    import diffusers

    index = read_index(render.model, folder / MODEL_INDEX)
    check_class(index, _choice_of(render))
    require_negative_prompt(getattr(diffusers, str(index["_class_name"]), None), render)
    require_shortcuts(render, str(index["_class_name"]))
    path = folder / "scheduler" / "scheduler_config.json"
    if render.scheduler is not None and path.is_file():
        config = parse_json(path.read_bytes())
        own = getattr(diffusers, str(config.get("_class_name")), None)
        if own is not None:
            noise = file.noise if file else {}
            # set_scheduler asks a pipeline for nothing else
            stand_in: Any = SimpleNamespace(scheduler=own.from_config(config, **noise))
            set_scheduler(stand_in, render.scheduler)


def load_pipeline(
    render: Render, dtype: torch.dtype
) -> tuple[Any, str | None, tuple[LoraIdentity, ...], list[str]]:
    """Load a dataset recipe's pipeline into main memory, with its VAE and LoRAs.

    Returns:
        The pipeline; its revision, see `FoundModel`; its LoRAs; and what people should know of
        them, a sentence each.

    Raises:
        ModelUnavailable: It is not there, may not be used, or is no text-to-image model.
        LoraError: A LoRA is not there, is none, or does not fit.
    """
    found: list[tuple[Path, LoraIdentity]] = []
    notes: list[str] = []
    if render.lora:
        from regforge.images import loras

        found = loras.find_loras(render.lora)
    pipeline, model = load_model(_choice_of(render), dtype)
    if render.vae is not None:
        _replace_vae(pipeline, render.vae, model.folder, dtype)
    if found:
        weights = [(file, each.scale) for file, each in found]
        notes = loras.load_loras(pipeline, render.model, weights)
    return pipeline, model.revision, tuple(each for _, each in found), notes


def load_model(
    choice: ModelChoice, dtype: torch.dtype, *, without: str | None = None
) -> tuple[Any, FoundModel]:
    """Load a text-to-image pipeline into main memory; returns what it came from too.

    `without` names a part that is left empty for now, on the device `meta`: see `load_part`.

    Raises:
        ModelUnavailable: See `find_model`.
    """
    import torch

    with quiet_loading():
        found = find_model(choice)
        try:
            given = _quantized(choice, found, dtype, without) if choice.quantize else {}
            if without is not None:
                part = _class_of(found.folder, without)
                with torch.device("meta"):
                    given[without] = part.from_config(part.load_config(found.folder / without))
            remote = choice.trust_remote_code
            loaded = assemble(found, dtype, choice.variant, given, trust_remote_code=remote)
        except ModelUnavailable:
            raise
        except Exception as error:
            if package := missing_package(error):
                raise needs_package(choice.model, package) from error
            raise weights_problem(choice, error, found.folder) or ModelUnavailable(
                f"{choice.model} cannot be loaded: {first_line(error)}.",
                hint="If files are missing or cut short, delete the model and download it again.",
            ) from error
    return loaded, found


def _quantized(
    choice: ModelChoice, found: FoundModel, dtype: torch.dtype, without: str | None
) -> dict[str, Any]:
    """Denoisers with fewer bits, and how the language models get theirs, for `assemble`."""
    from diffusers.quantizers.pipe_quant_config import PipelineQuantizationConfig

    assert choice.quantize is not None
    given: dict[str, Any] = {
        part: load_part(found, part, dtype, choice.variant, choice.quantize)
        for part in DENOISERS
        if part != without and (found.folder / part).is_dir()
    }
    if encoders := language_models(found.folder):
        settings = {each: settings_of(choice.quantize, each, dtype) for each in encoders}
        given["quantization_config"] = PipelineQuantizationConfig(quant_mapping=settings)
    return given


def assemble(
    found: FoundModel,
    dtype: torch.dtype,
    variant: str | None,
    given: Mapping[str, Any],
    *,
    trust_remote_code: bool = False,
) -> Any:
    """Load a pipeline into main memory, but for the `given` parts, which are there already."""
    import diffusers

    from regforge.images.loras import silent

    file = found.file
    if file is not None and file.kind.whole:
        with silent():
            made: Any = getattr(diffusers, file.kind.pipeline).from_single_file(
                str(file.path),
                config=str(found.folder),
                torch_dtype=dtype,
                local_files_only=True,
                **given,
            )
        made.scheduler = type(made.scheduler).from_config(made.scheduler.config, **file.noise)
        return made
    if file is not None and not given.keys() & {*DENOISERS}:
        given = {**given, "transformer": load_part(found, "transformer", dtype, variant)}
    return diffusers.DiffusionPipeline.from_pretrained(
        found.folder,
        dtype=dtype,
        variant=variant,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=trust_remote_code,
        **given,
    )


def load_part(
    found: FoundModel,
    part: str,
    dtype: torch.dtype,
    variant: str | None,
    quantize: str | None = None,
) -> Any:
    """Load a part of diffusers' own into main memory: of a model's file the denoiser.

    Raises:
        ModelUnavailable: It cannot be loaded.
    """
    from regforge.images.loras import silent

    file, place = found.file, found.folder / part
    named = variant if any(place.glob(f"*.{variant}*.safetensors")) else None
    given: dict[str, Any] = {"torch_dtype": dtype, "local_files_only": True}
    try:
        with quiet_loading():
            kind = _class_of(found.folder, part)
            if file is None:
                if quantize is not None:
                    given["quantization_config"] = settings_of(quantize, part, dtype)
                return kind.from_pretrained(place, variant=named, use_safetensors=True, **given)
            if file.is_gguf:
                from diffusers import GGUFQuantizationConfig

                given["quantization_config"] = GGUFQuantizationConfig(compute_dtype=dtype)
            given |= {"config": str(found.folder), "subfolder": part}
            with silent():
                read = kind.from_single_file(str(file.path), **given)
            if quantize is not None:  # from a file diffusers 0.42 would leave the weights whole
                quantize_in_place(read)
            return read
    except Exception as error:
        raise ModelUnavailable(
            f"{file.path if file else place} cannot be loaded: {first_line(error)}.",
            hint="If files are missing or cut short, delete the model and download it again."
            if file is None
            else f"Its configuration is that of {found.folder}: is it the one of this model?",
        ) from error


def _class_of(folder: Path, part: str) -> Any:
    import diffusers

    return getattr(diffusers, read_index(str(folder), folder / MODEL_INDEX)[part][1])


# ------------------------------------------------------------------------------- VAE and weights


def _require_vae(named: str) -> None:
    from huggingface_hub import hf_hub_download

    if expanded(named).exists():
        return
    try:
        hf_hub_download(named, "config.json")
    except Exception as error:
        raise hub_problem(ModelChoice(named, key="render.vae"), error, "config.json") from error


def _replace_vae(pipeline: Any, named: str, model: Path, dtype: torch.dtype) -> None:
    own = getattr(pipeline, "vae", None)
    if own is None:
        raise ModelUnavailable(f"{type(pipeline).__name__} has no VAE to replace (render.vae).")
    _require_vae(named)
    place = expanded(named)
    try:
        with quiet_loading():
            if place.is_file():
                vae = type(own).from_single_file(
                    str(place), config=str(model), subfolder="vae", torch_dtype=dtype
                )
            else:
                vae = type(own).from_pretrained(
                    place if place.is_dir() else named, torch_dtype=dtype, use_safetensors=True
                )
    except Exception as error:
        raise ModelUnavailable(
            f"The VAE {named} cannot be loaded (render.vae): {first_line(error)}.",
            hint=f"It has to be a diffusers {type(own).__name__} with safetensors.",
        ) from error
    for key in ("latent_channels", "block_out_channels"):
        mine, its = own.config.get(key), vae.config.get(key)
        if key == "block_out_channels":  # each further block halves the latents' sides
            mine, its = len(mine or ()), len(its or ())
        if mine != its:
            raise ModelUnavailable(
                f"The VAE {named} is for other latents than those of this model (render.vae): "
                f"{key} {its}, not {mine}."
            )
    pipeline.register_modules(vae=vae)


# -------------------------------------------------------------------------------------- fewer bits

_PACKAGES = {"int8": "torchao", "nf4": "bitsandbytes"}


def require_quantizer(quantize: str | None, device: str | None, key: str, device_key: str) -> None:
    """See that this machine can quantize as a recipe says; the keys are for messages.

    Raises:
        RenderSettingError: Its package is not here, or there is no GPU for it.
        DeviceError: The device is not here.
    """
    if quantize is None:
        return
    package = _PACKAGES[quantize]
    if find_spec(package) is None:
        raise RenderSettingError(
            f"{key}: {quantize} needs a package that is not here: {package}.",
            hint=f"pip install {package}",
        )
    if quantize == "nf4" and pick_device(device, device_key).type not in ("cuda", "xpu", "mps"):
        raise RenderSettingError(
            f"{key}: nf4 needs a GPU, and this machine computes on its CPU.",
            hint="int8 runs on a CPU too.",
        )


def quantize_in_place(module: Any) -> None:
    """Give the linear layers of a loaded module weights of 8 bits."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(module, Int8WeightOnlyConfig(version=2))


def settings_of(quantize: str, part: str, dtype: torch.dtype) -> Any:
    """The configuration that a part is loaded with; `dtype` is the precision it computes in."""
    import diffusers
    import transformers

    library: Any = diffusers if part in DENOISERS else transformers
    if quantize == "nf4":
        return library.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    from torchao.quantization import Int8WeightOnlyConfig

    return library.TorchAoConfig(Int8WeightOnlyConfig(version=2))
