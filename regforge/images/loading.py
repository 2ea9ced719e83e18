"""Finds a diffusers model, here or on the Hub, and loads it; or explains why that cannot be.

Reads model_index.json before anything large is downloaded, takes safetensors only, and runs no code
from a repository unless the recipe says so.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from regforge.embedded import TINYWORLD, quiet_loading, require_folder
from regforge.files import expanded, file_digest, parse_json, revision_of
from regforge.images.calls import require_negative_prompt
from regforge.images.pipelines import DENOISERS, set_scheduler
from regforge.images.quantizing import quantize_in_place, require_quantizer, settings_of
from regforge.images.renderer import LoraIdentity, ModelUnavailable
from regforge.images.shortcuts import require_shortcuts
from regforge.recipe.model_checks import is_embedded
from regforge.recipe.named_files import MODEL_INDEX, language_models
from regforge.recipe.rendering import Render
from regforge.recipe.single_files import (
    SingleFile,
    SingleFileError,
    hub_file,
    names_file,
    single_file,
)
from regforge.words import first_line, missing_package

if TYPE_CHECKING:
    import torch

EMBEDDED = "embedded/tinyworld"
# A pipeline that takes one of these does not start from text alone, unless diffusers says it can.
_OTHER_INPUTS = frozenset(
    {"image", "images", "image_embeds", "mask_image", "control_image", "video", "audio"}
)
_OF_VIDEOS = frozenset({"num_frames", "frames", "video_length", "control_video"})


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """Which model a recipe names, and how: a folder, file, repository, or `embedded/tinyworld`.

    `key` and `variant_key` are the recipe's keys of `model` and `variant`, for messages. Of a file
    `config`, `revision` and `variant` are those of the pipeline that describes it.
    """

    model: str
    revision: str | None = None
    variant: str | None = None
    config: str | None = None
    trust_remote_code: bool = False
    quantize: str | None = None
    key: str = "render.model"
    variant_key: str = "render.variant"


@dataclass(frozen=True)
class FoundModel:
    """A model on this machine: a pipeline's folder, or a file and the folder that describes it."""

    folder: Path
    file: SingleFile | None = None

    @property
    def revision(self) -> str:
        """The repository's commit, or `sha256:...` of the file or of the folder's files."""
        return f"sha256:{file_digest(self.file.path)}" if self.file else revision_of(self.folder)


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
            model, or this machine cannot quantize it.
    """
    require_quantizer(render.quantize, render.device, "render.quantize", "render.device")
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

    index = _read_index(render.model, folder / MODEL_INDEX)
    _check_class(index, _choice_of(render))
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
                raise _needs_package(choice.model, package) from error
            raise _weights_problem(choice, error, found.folder) or ModelUnavailable(
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
    """Load a pipeline into main memory, but for parts that are there already."""
    import diffusers

    from regforge.images.loras import silent

    file, pipeline = found.file, diffusers.DiffusionPipeline
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
    return pipeline.from_pretrained(
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
    file, place = found.file, found.folder / part
    named = variant if any(place.glob(f"*.{variant}*.safetensors")) else None
    given: dict[str, Any] = {"torch_dtype": dtype, "local_files_only": True}
    from regforge.images.loras import silent

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

    return getattr(diffusers, _read_index(str(folder), folder / MODEL_INDEX)[part][1])


def _needs_package(model: str, package: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"{model} needs a package that is not here: {package}.", hint=f"pip install {package}"
    )


def find_model(choice: ModelChoice, check: Callable[[str], None] | None = None) -> FoundModel:
    """A text-to-image pipeline on this machine, downloaded if need be; nothing is loaded.

    `check` gets the name of the pipeline's class before anything large is downloaded, and raises if
    it is of no use.

    Raises:
        ModelUnavailable: It is not there, may not be used, or is no text-to-image model.
    """
    with quiet_loading():
        if names_file(choice.model):
            return _find_file(choice, check)
        folder = _local_folder(choice)
        index = _read_index(choice.model, folder / MODEL_INDEX if folder else _fetch_index(choice))
        if check is not None:
            check(str(index["_class_name"]))
        _check_class(index, choice)
        return FoundModel(folder or _download(choice))


def _find_file(choice: ModelChoice, check: Callable[[str], None] | None) -> FoundModel:
    """A model's file, and the pipeline that describes it: its configuration, and what it lacks."""
    from huggingface_hub import hf_hub_download, snapshot_download

    try:
        if (of := hub_file(choice.model)) is not None:
            try:
                hf_hub_download(of[0], of[1], revision=of[2])
            except Exception as error:
                raise _hub_problem(replace(choice, model=of[0]), error, of[1]) from error
        file = single_file(choice.model)
        assert file is not None
        named = file.configuration(choice.config)
    except SingleFileError as error:
        raise ModelUnavailable(f"{error.message.rstrip('.')} ({choice.key}).") from error
    if check is not None:
        check(file.kind.pipeline)
    key = "config" if choice.key == "base_model" else "render.config"
    beside = replace(choice, model=named, key=key)
    folder = _local_folder(beside)
    index = _read_index(named, folder / MODEL_INDEX if folder else _fetch_index(beside))
    _check_class(index, beside)
    if index["_class_name"] != file.kind.pipeline:
        raise ModelUnavailable(
            f"{named} is a {index['_class_name']}, and {choice.model} is for a "
            f"{file.kind.pipeline} ({key})."
        )
    if folder is None:
        # All but the denoiser's weights, and none of them where the file has all.
        wanted = ["*.json", "*.txt", "*.model", "*.jinja"]
        wanted += [] if file.kind.whole else ["vae/*.safetensors", "text_encoder*/*.safetensors"]
        try:
            folder = Path(snapshot_download(named, revision=choice.revision, allow_patterns=wanted))
        except Exception as error:
            raise _hub_problem(beside, error) from error
    return FoundModel(folder, file)


def _local_folder(choice: ModelChoice) -> Path | None:
    """The folder that the recipe names; None if it names a repository of the Hub."""
    if choice.model == EMBEDDED:
        return require_folder(TINYWORLD, MODEL_INDEX)
    folder = expanded(choice.model)
    if folder.is_dir():
        if not (folder / MODEL_INDEX).is_file():
            raise ModelUnavailable(
                f"{choice.model} is no diffusers model: it has no {MODEL_INDEX}.",
                hint=f"{choice.key} is the folder that holds model_index.json, unet/, vae/ and so "
                "on, or a single .safetensors or .gguf file.",
            )
        return folder
    if folder.is_absolute() or choice.model.startswith((".", "~")) or choice.model.count("/") > 1:
        raise ModelUnavailable(f"There is no folder {choice.model} ({choice.key}).")
    return None


# ------------------------------------------------------------------------------------ the Hub


def _fetch_index(choice: ModelChoice) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(choice.model, MODEL_INDEX, revision=choice.revision))
    except Exception as error:
        raise _hub_problem(choice, error) from error


def _download(choice: ModelChoice) -> Path:
    from diffusers import DiffusionPipeline

    try:
        return Path(
            DiffusionPipeline.download(
                choice.model,
                revision=choice.revision,
                variant=choice.variant,
                use_safetensors=True,
                trust_remote_code=choice.trust_remote_code,
            )
        )
    except Exception as error:
        raise _weights_problem(choice, error) or _hub_problem(choice, error) from error


def _hub_problem(
    choice: ModelChoice, error: Exception, file: str = MODEL_INDEX
) -> ModelUnavailable:
    from huggingface_hub.errors import RemoteEntryNotFoundError

    from regforge.hub import explained

    if isinstance(error, RemoteEntryNotFoundError):
        return ModelUnavailable(
            f"{choice.model} is no diffusers model: it has no {file}.",
            hint="Look for a repository tagged 'diffusers' on the Hub.",
        )
    problem = explained(error, choice.model, repo_type="model", revision=choice.revision)
    local = f"{choice.key} may be a local folder too; embedded/tinyworld needs no network."
    return ModelUnavailable(problem.message, hint=f"{problem.hint or ''} {local}".strip())


# ------------------------------------------------------------------------------- what kind it is


def _read_index(model: str, path: Path) -> dict[str, Any]:
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"{model}: {MODEL_INDEX} cannot be read ({error}).") from error
    if not isinstance(index, dict) or "_class_name" not in index:
        raise ModelUnavailable(f"{model}: {MODEL_INDEX} does not name a pipeline class.")
    return index


def _check_class(index: dict[str, Any], choice: ModelChoice) -> None:
    import diffusers
    from diffusers.utils.import_utils import DummyObject

    name = index["_class_name"]
    if not isinstance(name, str):
        if choice.trust_remote_code:
            return
        raise ModelUnavailable(
            f"{choice.model} brings its own code along, which regforge does not run unasked.",
            hint="Read it, and if you trust it set render.trust_remote_code: true",
        )
    found = getattr(diffusers, name, None)
    if isinstance(found, DummyObject):  # in place of a class whose packages are missing
        raise _needs_package(
            choice.model, next(each for each in found._backends if find_spec(each) is None)
        )
    if found is None:
        raise ModelUnavailable(
            f"{choice.model} needs the pipeline {name}, which diffusers {diffusers.__version__} "
            "does not have.",
            hint="A newer diffusers may: pip install --upgrade diffusers",
        )
    if not draws_from_text(found):
        raise ModelUnavailable(
            f"{choice.model} is no text-to-image model: {name} starts from something else, or "
            "makes something else.",
            hint="Choose a model tagged 'text-to-image' on the Hub.",
        )


def draws_from_text(pipeline_class: Any) -> bool:
    """Whether a pipeline class makes images from nothing but a prompt."""
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING

    inputs = inspect.signature(pipeline_class.__call__).parameters.keys()
    if _OF_VIDEOS & inputs or pipeline_class.__name__.endswith("PriorPipeline"):
        return False
    if pipeline_class in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values():
        return "Control" not in pipeline_class.__name__
    return {"prompt", "height", "num_inference_steps"} <= inputs and not _OTHER_INPUTS & inputs


# ------------------------------------------------------------------------------- VAE and weights


def _require_vae(named: str) -> None:
    from huggingface_hub import hf_hub_download

    if expanded(named).exists():
        return
    try:
        hf_hub_download(named, "config.json")
    except Exception as error:
        raise _hub_problem(ModelChoice(named, key="render.vae"), error, "config.json") from error


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


def _weights_problem(
    choice: ModelChoice, error: Exception, folder: Path | None = None
) -> ModelUnavailable | None:
    """Translate an exception about weight files; None if it is about something else."""
    text = str(error)
    if choice.variant is not None and "variant" in text:
        return ModelUnavailable(
            f"{choice.model} has no weights of the variant {choice.variant!r} "
            f"({choice.variant_key}).",
            hint=f"Leave {choice.variant_key} out, or look at the file names in the repository.",
        )
    lacking = "no file named" in text or "Could not find the necessary" in text
    pickled = ".bin" in text or (folder is not None and any(folder.rglob("*.bin")))
    if lacking and pickled:
        return ModelUnavailable(
            f"{choice.model} has weights that are no safetensors files; others can hold code, so "
            "regforge does not load them.",
            hint="Choose a revision or a copy of the model with safetensors, or convert it with "
            "diffusers' save_pretrained.",
        )
    return None
