"""Finds a diffusers model and loads it, or says in one sentence why that cannot be.

Knows folders, the Hub, and what can be wrong with either. It looks at model_index.json before
anything large is downloaded, takes safetensors only, and runs no code from a repository unless
the recipe says so. Knows nothing about drawing.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regforge.embedded.pipeline import TINYWORLD, quiet_loading, require_folder
from regforge.files import expanded
from regforge.hub import explained
from regforge.images.interface import ModelUnavailable, RenderSettingError
from regforge.recipe.models import Render

if TYPE_CHECKING:
    import torch

EMBEDDED = "embedded/tinyworld"
_INDEX = "model_index.json"
# A pipeline that takes one of these does not start from text alone, unless diffusers says it can.
_OTHER_INPUTS = frozenset(
    {"image", "image_embeds", "mask_image", "control_image", "video", "audio"}
)


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """Which model a recipe names.

    Attributes:
        model: A folder, a repository of the Hub, or `embedded/tinyworld`.
        revision: Branch, tag or commit of the repository.
        variant: Weights variant, such as `fp16`.
        trust_remote_code: Whether code of the repository may run.
        key: What the recipe calls `model`.
        variant_key: What it calls `variant`.
    """

    model: str
    revision: str | None = None
    variant: str | None = None
    trust_remote_code: bool = False
    key: str = "render.model"
    variant_key: str = "render.variant"


def load_pipeline(render: Render, dtype: torch.dtype) -> tuple[Any, str | None]:
    """Load the recipe's text-to-image pipeline into main memory.

    Args:
        render: Which model, revision, variant and LoRA.
        dtype: Precision of the weights.

    Returns:
        The pipeline, and its revision: the repository's commit, or `sha256:...` of a local folder.

    Raises:
        ModelUnavailable: It is not there, may not be used, or is no text-to-image model.
    """
    choice = ModelChoice(render.model, render.revision, render.variant, render.trust_remote_code)
    pipeline, folder = load_model(choice, dtype)
    if render.lora is not None:
        with quiet_loading():
            _load_lora(pipeline, render.lora)
    return pipeline, revision_of(folder)


def load_model(
    choice: ModelChoice, dtype: torch.dtype, check: Callable[[str], None] | None = None
) -> tuple[Any, Path]:
    """Load a text-to-image pipeline into main memory.

    Args:
        choice: Which one.
        dtype: Precision of the weights.
        check: Is told the name of the pipeline's class before anything large is downloaded, and
            raises if it is of no use.

    Returns:
        The pipeline, and the folder that it came from.

    Raises:
        ModelUnavailable: It is not there, may not be used, or is no text-to-image model.
    """
    with quiet_loading():
        folder = _local_folder(choice)
        index = _read_index(choice.model, folder / _INDEX if folder else _fetch_index(choice))
        if check is not None:
            check(str(index["_class_name"]))
        _check_class(index, choice)
        folder = folder or _download(choice)
        return _load(folder, choice, dtype), folder


def _local_folder(choice: ModelChoice) -> Path | None:
    """The folder that the recipe names; None if it names a repository of the Hub."""
    if choice.model == EMBEDDED:
        return require_folder(TINYWORLD, _INDEX)
    folder = expanded(choice.model)
    if folder.is_dir():
        if not (folder / _INDEX).is_file():
            raise ModelUnavailable(
                f"{choice.model} is no diffusers model: it has no {_INDEX}.",
                hint=f"{choice.key} is the folder that holds model_index.json, unet/, vae/ and so "
                "on. A single .safetensors checkpoint has to be converted first.",
            )
        return folder
    if folder.is_file():
        raise ModelUnavailable(
            f"{choice.model} is a file, and {choice.key} takes a diffusers folder.",
            hint="Convert a single checkpoint with diffusers' from_single_file and "
            "save_pretrained.",
        )
    if folder.is_absolute() or choice.model.startswith((".", "~")) or choice.model.count("/") > 1:
        raise ModelUnavailable(f"There is no folder {choice.model} ({choice.key}).")
    return None


# ------------------------------------------------------------------------------------ the Hub


def _fetch_index(choice: ModelChoice) -> Path:
    """Download model_index.json, which tells everything that can go wrong early."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(choice.model, _INDEX, revision=choice.revision))
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


def _hub_problem(choice: ModelChoice, error: Exception) -> ModelUnavailable:
    """What an exception of huggingface_hub means, for people."""
    from huggingface_hub.errors import RemoteEntryNotFoundError

    if isinstance(error, RemoteEntryNotFoundError):
        return ModelUnavailable(
            f"{choice.model} is no diffusers model: it has no {_INDEX}.",
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
        raise ModelUnavailable(f"{model}: {_INDEX} cannot be read ({error}).") from error
    if not isinstance(index, dict) or "_class_name" not in index:
        raise ModelUnavailable(f"{model}: {_INDEX} does not name a pipeline class.")
    return index


def _check_class(index: dict[str, Any], choice: ModelChoice) -> None:
    """Refuse what is no text-to-image model of the installed diffusers."""
    import diffusers

    name = index["_class_name"]
    if not isinstance(name, str):
        if choice.trust_remote_code:
            return
        raise ModelUnavailable(
            f"{choice.model} brings its own code along, which regforge does not run unasked.",
            hint="Read it, and if you trust it set render.trust_remote_code: true",
        )
    found = getattr(diffusers, name, None)
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
    if "num_frames" in inputs:
        return False
    if pipeline_class in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values():
        return "Control" not in pipeline_class.__name__
    return {"prompt", "height", "num_inference_steps"} <= inputs and not _OTHER_INPUTS & inputs


# ------------------------------------------------------------------------------------- loading


def _load(folder: Path, choice: ModelChoice, dtype: torch.dtype) -> Any:
    from diffusers import DiffusionPipeline

    try:
        loaded: Any = DiffusionPipeline.from_pretrained(
            folder,
            dtype=dtype,
            variant=choice.variant,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=choice.trust_remote_code,
        )
    except Exception as error:
        raise _weights_problem(choice, error, folder) or ModelUnavailable(
            f"{choice.model} cannot be loaded: {_first_line(error)}.",
            hint="If files are missing or cut short, delete the model and download it again.",
        ) from error
    return loaded


def _weights_problem(
    choice: ModelChoice, error: Exception, folder: Path | None = None
) -> ModelUnavailable | None:
    """What an exception about weight files means; None if it is about something else."""
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


def _load_lora(pipeline: Any, lora: str) -> None:
    if not hasattr(pipeline, "load_lora_weights"):
        raise RenderSettingError(f"render.lora: {type(pipeline).__name__} takes no LoRA.")
    path = expanded(lora)
    where: dict[str, Any] = {"pretrained_model_name_or_path_or_dict": lora}
    if path.is_file():
        where = {
            "pretrained_model_name_or_path_or_dict": str(path.parent),
            "weight_name": path.name,
        }
    elif path.is_dir():
        where = {"pretrained_model_name_or_path_or_dict": str(path)}
    try:
        pipeline.load_lora_weights(**where, use_safetensors=True)
    except Exception as error:
        raise ModelUnavailable(
            f"The LoRA {lora} cannot be loaded (render.lora): {_first_line(error)}.",
            hint="It is a .safetensors file, a folder with one, or a repository of the Hub, and "
            "was trained on this kind of model.",
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")


# ------------------------------------------------------------------------------------- revision


def revision_of(folder: Path) -> str:
    """The commit of a downloaded repository, else a digest of the folder's configs and weights."""
    if folder.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", folder.name):
        return folder.name
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".json", ".txt", ".safetensors", ".model") and path.is_file():
            digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"
