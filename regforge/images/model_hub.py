"""Trained models on the Hub: which of a repository's files are needed, and getting them.

Knows repositories; what lies in a folder, `lora_files` and `evaluation.model_files` know.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from regforge.hub import HubAddress, HubError, explained
from regforge.hub.commits import quiet_client
from regforge.lora_files import LORA_NAME, PICKLES, LoraError, several
from regforge.recipe.named_files import MODEL_INDEX

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

# What a repository's LoRA is called, the first that there is.
_LORA_PLACES = (f"lora/{LORA_NAME}", LORA_NAME)


@dataclass(frozen=True)
class Downloaded:
    """A repository of the Hub, as far as it is needed here.

    Attributes:
        folder: Where it lies in the cache.
        commit: Which version it is.
        is_pipeline: Whether it is a whole pipeline at its top, whose weights are not here yet.
    """

    folder: Path
    commit: str
    is_pipeline: bool


def download(address: HubAddress) -> Downloaded:
    """Get a LoRA from the Hub, or what says what a pipeline is.

    Raises:
        HubError: The Hub cannot be reached and has not been before, or there is no such thing.
        LoraError: The repository holds no model, or several.
    """
    from huggingface_hub import HfApi, snapshot_download

    try:
        info = HfApi().model_info(address.repo_id, revision=address.revision)
    except Exception as error:
        return _from_cache(address, error)
    files = _needed(address, info)
    try:
        with quiet_client():  # by its name, so that it is found by that when there is no network
            folder = snapshot_download(
                address.repo_id, revision=address.revision, allow_patterns=files
            )
    except Exception as error:
        raise _explained(address, error) from error
    return Downloaded(Path(folder), Path(folder).name, MODEL_INDEX in files)


def _needed(address: HubAddress, info: ModelInfo) -> list[str]:
    """Files of a repository to download."""
    there = [each.rfilename for each in info.siblings or ()]
    about = [name for name in ("README.md", "recipe.yaml", MODEL_INDEX) if name in there]
    if MODEL_INDEX in there:
        return about
    if f"model/{MODEL_INDEX}" in there:
        return [*about, *(n for n in there if n.startswith("model/") and not n.endswith(PICKLES))]
    lora = next((name for name in _LORA_PLACES if name in there), None)
    if lora is None:
        loras = [name for name in there if name.endswith(".safetensors")]
        if len(loras) > 1:
            raise several(str(address), loras)
        if not loras:
            raise LoraError(
                f"{address} holds no model: no {MODEL_INDEX} and no .safetensors file.",
                hint="Look for a repository tagged 'lora' or 'diffusers' on the Hub.",
            )
        lora = loras[0]
    return [*about, lora]


def _from_cache(address: HubAddress, error: Exception) -> Downloaded:
    """What an earlier download left, where the Hub cannot be reached now."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    if not isinstance(error, HfHubHTTPError):
        try:
            # No patterns: nothing has to be there, for we never had more than a part.
            found = snapshot_download(
                address.repo_id,
                revision=address.revision,
                allow_patterns=[],
                local_files_only=True,
            )
        except Exception:
            raise _explained(address, error) from error
        folder = Path(found)
        return Downloaded(folder, folder.name, (folder / MODEL_INDEX).is_file())
    raise _explained(address, error) from error


def _explained(address: HubAddress, error: Exception) -> HubError:
    problem = explained(error, address.repo_id, repo_type="model", revision=address.revision)
    local = f"There is no folder {address} on this machine either."
    return HubError(problem.message, hint=f"{problem.hint or ''} {local}".strip())
