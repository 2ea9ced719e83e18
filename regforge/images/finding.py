"""Finds a diffusers model, here or on the Hub; or explains why it is of no use.

Reads model_index.json before anything large is downloaded, and takes safetensors only.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from regforge.embedded import EMBEDDED, TINYWORLD, quiet_loading, require_folder
from regforge.files import expanded, file_digest, revision_of
from regforge.images.renderer import ModelUnavailable
from regforge.recipe.named_files import MODEL_INDEX
from regforge.recipe.single_files import (
    SingleFile,
    SingleFileError,
    hub_file,
    names_file,
    single_file,
)

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


def needs_package(model: str, package: str) -> ModelUnavailable:
    """The error for a model whose classes need a package that is not installed."""
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
        index = read_index(choice.model, folder / MODEL_INDEX if folder else _fetch_index(choice))
        if check is not None:
            check(str(index["_class_name"]))
        check_class(index, choice)
        return FoundModel(folder or _download(choice))


def _find_file(choice: ModelChoice, check: Callable[[str], None] | None) -> FoundModel:
    """A model's file, and the pipeline that describes it: its configuration, and what it lacks."""
    from huggingface_hub import hf_hub_download, snapshot_download

    try:
        if (of := hub_file(choice.model)) is not None:
            try:
                hf_hub_download(of[0], of[1], revision=of[2])
            except Exception as error:
                raise hub_problem(replace(choice, model=of[0]), error, of[1]) from error
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
    index = read_index(named, folder / MODEL_INDEX if folder else _fetch_index(beside))
    check_class(index, beside)
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
            raise hub_problem(beside, error) from error
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
        raise hub_problem(choice, error) from error


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
        raise weights_problem(choice, error) or hub_problem(choice, error) from error


def hub_problem(choice: ModelChoice, error: Exception, file: str = MODEL_INDEX) -> ModelUnavailable:
    """Translate an exception of the Hub's client about a model, which needs a `file`."""
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


def read_index(model: str, path: Path) -> dict[str, Any]:
    """The content of a model_index.json, or ModelUnavailable."""
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"{model}: {MODEL_INDEX} cannot be read ({error}).") from error
    if not isinstance(index, dict) or "_class_name" not in index:
        raise ModelUnavailable(f"{model}: {MODEL_INDEX} does not name a pipeline class.")
    return index


def check_class(index: dict[str, Any], choice: ModelChoice) -> None:
    """Raise ModelUnavailable for a pipeline that cannot be used, or makes no images from text."""
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
        raise needs_package(
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


def weights_problem(
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
