"""Encoders from the Hub, from folders, and the embedded judge: found, loaded and checked.

Loads safetensors only and runs no code of a repository. What an encoder does with images and
captions, `encoders` knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regforge.digests import revision_of
from regforge.embedded.pipeline import quiet_loading, require_folder
from regforge.evaluation.interface import EvaluationError
from regforge.evaluation.model_files import normal
from regforge.hub import HubAddress, HubError, explained

EMBEDDED = "embedded/judge"
DINO = "facebook/dino-vits16"
CLIP = "openai/clip-vit-base-patch32"

_LOCAL = (
    "A local folder with a transformers model works too (--structure-encoder, "
    "--alignment-encoder). embedded/judge needs no network; it knows nothing but images of "
    "embedded/tinyworld."
)


@dataclass(frozen=True)
class _Where:
    """Where a model lies.

    Attributes:
        name: As the user wrote it.
        place: Folder or repository, as transformers takes it.
        options: Likewise.
        address: On the Hub; None for a folder.
    """

    name: str
    place: str
    options: dict[str, Any]
    address: HubAddress | None = None


@dataclass(frozen=True)
class Loaded:
    """A model in main memory.

    Attributes:
        name: Model and revision.
        model: Of transformers, float32.
        processor: Makes its inputs of images.
        where: Where it came from.
        lacks_pooler: Whether the weights of its pooled output were not in the checkpoint.
    """

    name: str
    model: Any
    processor: Any
    where: _Where
    lacks_pooler: bool

    def tokenizer(self) -> Any:
        """Makes its inputs of captions."""
        from transformers import AutoTokenizer

        with quiet_loading():
            try:
                return AutoTokenizer.from_pretrained(self.where.place, **self.where.options)
            except Exception as error:
                raise _problem(self.where, error) from error


def load(name: str, judge: Path) -> Loaded:
    """Load an encoder.

    Args:
        name: See `encoders.open_image_encoder`.
        judge: The folder that `embedded/judge` stands for.

    Raises:
        EvaluationError: It is not there, cannot be loaded, or lacks weights.
        HubError: The Hub has it not, or cannot be reached.
    """
    where = _find(name, judge)
    with quiet_loading():
        from transformers import AutoImageProcessor, AutoModel

        try:
            _ask_for_config(where)
            model, loading = AutoModel.from_pretrained(
                where.place,
                dtype="float32",
                use_safetensors=True,  # others can hold code
                output_loading_info=True,
                **where.options,
            )
            # Torchvision's images differ a little, and not everybody has it.
            processor = AutoImageProcessor.from_pretrained(
                where.place, backend="pil", **where.options
            )
        except Exception as error:  # whatever a broken file makes transformers raise
            raise _problem(where, error) from error
    lacking = [key for key in sorted(loading["missing_keys"]) if "pooler" not in key]
    if lacking:
        raise EvaluationError(
            f"{name} cannot measure: its file of weights lacks {lacking[0]}"
            + (f" and {len(lacking) - 1} others." if len(lacking) > 1 else "."),
        )
    lacks_pooler = any("pooler" in key for key in loading["missing_keys"])
    return Loaded(_named(where, model), model, processor, where, lacks_pooler)


def _find(name: str, judge: Path) -> _Where:
    options: dict[str, Any] = {"trust_remote_code": False}
    if name == EMBEDDED:
        return _Where(
            name, str(require_folder(judge, "config.json")), options | {"local_files_only": True}
        )
    folder = normal(Path(name))
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise EvaluationError(
                f"{name} is no transformers model: it has no config.json.",
                hint="Name the folder that holds config.json, model.safetensors and "
                "preprocessor_config.json.",
            )
        return _Where(name, str(folder), options | {"local_files_only": True})
    address = HubAddress.parse(name)
    if address is None or name.startswith((".", "~", "/")):
        raise EvaluationError(f"There is no folder {name}.", hint=_LOCAL)
    options["revision"] = address.revision or "main"
    return _Where(name, address.repo_id, options, address)


def _ask_for_config(where: _Where) -> None:
    """Have the Hub's own words for a model that is not there."""
    if where.address is not None:
        from huggingface_hub import hf_hub_download

        hf_hub_download(where.place, "config.json", revision=where.options["revision"])


def _named(where: _Where, model: Any) -> str:
    if where.name == EMBEDDED:
        return EMBEDDED
    if where.address is None:
        return f"{Path(where.place).resolve().name}@{revision_of(Path(where.place))[:19]}"
    commit = getattr(model.config, "_commit_hash", None) or where.options["revision"]
    return f"{where.place}@{commit}"


def _problem(where: _Where, error: Exception) -> EvaluationError | HubError:
    """What went wrong, for people."""
    text = next(iter(str(error).splitlines()), "").rstrip(". ") or type(error).__name__
    if "safetensors" in text and ("no file named" in text or "have a file named" in text):
        return EvaluationError(
            f"{where.name} has no weights as safetensors; others can hold code, so regforge does "
            "not load them.",
            hint="Load it once with transformers and save it with save_pretrained, then name that "
            "folder.",
        )
    if where.address is not None and _of_the_hub(error):
        found = explained(error, where.place, repo_type="model", revision=where.address.revision)
        return HubError(found.message, hint=f"{found.hint or ''} {_LOCAL}".strip())
    return EvaluationError(
        f"{where.name} cannot be loaded: {text}.",
        hint=f"It must be a transformers model of images, such as {DINO} or {CLIP}.",
    )


def _of_the_hub(error: BaseException | None) -> bool:
    """Whether an exception was raised from one of the Hub's client."""
    from httpx import HTTPError
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    theirs = (HTTPError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError)
    while error is not None:
        if isinstance(error, theirs):
            return True
        error = error.__cause__ or error.__context__
    return False
