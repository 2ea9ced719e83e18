"""LoRAs and new tokens on a loaded pipeline: found here or on the Hub, put on, and taken off again.

A LoRA of which nothing, or almost nothing, has a place in the pipeline is refused rather than drawn
without. A token becomes a row of each CLIP text encoder; encoders that are language models (T5,
Gemma, Qwen) are left alone: they read its name.

    embedding/my-cat.safetensors    `<my-cat>`, or `clip_l` and `clip_g`: float32 [vectors, width]

One file serves all programs. With one text encoder its only key is the token, which is how
`pipeline.load_textual_inversion(FILE)` knows what it is called; A1111 and ComfyUI take the only
tensor there is, by the file's name. With two the keys are `clip_l` and `clip_g`, which A1111 and
ComfyUI look for; diffusers takes one tensor a call, with its tokenizer and text encoder. Read in
huggingface/diffusers 0.42.1, src/diffusers/loaders/textual_inversion.py
(`_retrieve_tokens_and_embeddings`); AUTOMATIC1111/stable-diffusion-webui at 22ecb78,
modules/textual_inversion/textual_inversion.py (`load_from_file`); Comfy-Org/ComfyUI at 4bd7a40,
comfy/sd1_clip.py (`load_embed`).
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regforge.embedded import quiet_loading
from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.files import expanded, file_digest
from regforge.hub import HubAddress, HubError, explained
from regforge.hub.commits import quiet_client
from regforge.images.renderer import LoraIdentity
from regforge.recipe.named_files import (
    EMBEDDING_FOLDER,
    LORA_NAME,
    MODEL_INDEX,
    PICKLES,
    TOKEN,
    LoraError,
    layers_in,
    lora_in,
    require_lora,
    several,
)
from regforge.recipe.rendering import Lora
from regforge.words import first_line

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo
    from torch import Tensor

# Names of a repository's LoRA, the first that there is.
_LORA_PLACES = (f"lora/{LORA_NAME}", LORA_NAME)

_FEWEST_FITTING = 0.5
"""Of a LoRA's layers. With fewer it was trained on another model."""


def find_loras(named: Sequence[Lora]) -> list[tuple[Path, LoraIdentity]]:
    """The weights of a recipe's LoRAs, downloaded if they are on the Hub, and their identities.

    Raises:
        LoraError: One is not there, or is none.
        HubError: The Hub has it not, or cannot be reached.
    """
    return [_found(each) for each in named]


def _found(lora: Lora) -> tuple[Path, LoraIdentity]:
    path = expanded(lora.path)
    address = None if path.exists() else HubAddress.parse(lora.path)
    if address is None:
        file = lora_in(path) if path.is_dir() else path
        if file is None or not file.exists():
            raise LoraError(
                f"There is no LoRA {lora.path} (render.lora).",
                hint="It is a .safetensors file, a folder with one, or user/name on the Hub.",
            )
        require_lora(file)
        return file, LoraIdentity(path.name, f"sha256:{file_digest(file)}", lora.scale)
    got = download(address)
    file = None if got.is_pipeline else lora_in(got.folder)
    if file is None:
        raise LoraError(f"{address} is a whole model and no LoRA (render.lora).")
    require_lora(file)
    return file, LoraIdentity(address.repo_id, got.commit, lora.scale)


def load_loras(pipeline: Any, model: str, weights: Sequence[tuple[Path, float]]) -> list[str]:
    """Put LoRAs on a pipeline, in any format that diffusers takes.

    The pipeline has none so far, and is of no use after an error. Returns a sentence for each LoRA
    of which some layers have no place in it.

    Raises:
        LoraError: The pipeline takes none, or not these: fewer than half of a LoRA's layers have a
            place in it.
    """
    if weights and not hasattr(pipeline, "load_lora_weights"):
        raise LoraError(f"{model} takes no LoRA ({type(pipeline).__name__}).")
    notes, names = [], [f"lora_{number}" for number in range(len(weights))]
    for name, (file, _) in zip(names, weights, strict=True):
        layers = layers_in(file)
        _load(pipeline, model, file, name)
        there = min(_layers(pipeline, name), layers)
        if there == 0 or there < _FEWEST_FITTING * layers:
            raise LoraError(
                f"Only {there} of {layers} layers of the LoRA {file} found a place in {model}."
                if there
                else f"None of the {layers} layers of the LoRA {file} has a place in {model}.",
                hint="It was trained on another kind of model: name that one as the base model, or "
                "take a LoRA that was trained on this one.",
            )
        if there < layers:
            notes.append(
                f"{layers - there} of {layers} layers of the LoRA {file.name} have no place in "
                f"{model}: was it trained on another model?"
            )
    if len(weights) > 1 or any(scale != 1 for _, scale in weights):
        pipeline.set_adapters(names, [scale for _, scale in weights])
    return notes


def _load(pipeline: Any, model: str, file: Path, name: str) -> None:
    try:
        with silent(), quiet_loading():
            pipeline.load_lora_weights(
                str(file.parent), weight_name=file.name, adapter_name=name, use_safetensors=True
            )
    except Exception as error:
        reason = first_line(error)
        if isinstance(error, IndexError):  # diffusers, of a text encoder without any layer of its
            reason = (
                "it has layers for a part, such as the text encoder, in which none of them fits"
            )
        raise LoraError(
            f"The LoRA {file} does not fit {model}: {reason}.",
            hint="It is for another kind of model, or its file lacks a part.",
        ) from error


def unload_loras(pipeline: Any) -> None:
    """Take all LoRAs off; what is left is what was there before, bit by bit."""
    with silent():
        pipeline.unload_lora_weights()


def _layers(pipeline: Any, name: str) -> int:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from torch import nn

    modules = [each for each in pipeline.components.values() if isinstance(each, nn.Module)]
    return sum(
        isinstance(each, BaseTunerLayer) and name in getattr(each, "scaling", {})
        for module in modules
        for each in module.modules()
    )


@contextmanager
def silent() -> Iterator[None]:
    """Without the libraries' remarks: what matters of them, we find out ourselves."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    both = [(each, each.get_verbosity()) for each in (diffusers_logging, transformers_logging)]
    try:
        for each, _ in both:
            each.set_verbosity(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, verbosity in both:
            each.set_verbosity(verbosity)


# --------------------------------------------------------------------------------------- the Hub


@dataclass(frozen=True)
class Downloaded:
    """A repository of the Hub, as far as it is needed here."""

    folder: Path
    commit: str
    is_pipeline: bool
    """Whether it is a whole pipeline at its top, whose weights are not here yet."""


def download(address: HubAddress) -> Downloaded:
    """Get a LoRA from the Hub, or of a whole pipeline what describes it.

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
    there = [each.rfilename for each in info.siblings or ()]
    about = [name for name in ("README.md", "recipe.yaml", MODEL_INDEX) if name in there]
    if MODEL_INDEX in there:
        return about
    if f"model/{MODEL_INDEX}" in there:
        return [*about, *(n for n in there if n.startswith("model/") and not n.endswith(PICKLES))]
    place = f"{EMBEDDING_FOLDER}/"
    about += [name for name in there if name.startswith(place) and name.endswith(".safetensors")]
    lora = next((name for name in _LORA_PLACES if name in there), None)
    if lora is None:
        loras = [n for n in there if n.endswith(".safetensors") and n not in about]
        if not loras and any(name.startswith(place) for name in about):
            return about  # a new token alone
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

    if isinstance(error, HfHubHTTPError):
        raise _explained(address, error) from error
    try:
        # No patterns: nothing has to be there, for we never had more than a part.
        folder = Path(
            snapshot_download(
                address.repo_id,
                revision=address.revision,
                allow_patterns=[],
                local_files_only=True,
            )
        )
    except Exception:
        raise _explained(address, error) from error
    return Downloaded(folder, folder.name, (folder / MODEL_INDEX).is_file())


def _explained(address: HubAddress, error: Exception) -> HubError:
    problem = explained(error, address.repo_id, repo_type="model", revision=address.revision)
    local = f"There is no folder {address} on this machine either."
    return HubError(problem.message, hint=f"{problem.hint or ''} {local}".strip())


# -------------------------------------------------------------------------------------- new tokens

_KEYS = ("clip_l", "clip_g")


class EmbeddingError(RegforgeError):
    """A token's embedding that cannot be used, or does not fit the model."""

    exit_code = EXIT_USAGE


def clip_encoders(pipeline: Any) -> dict[str, tuple[Any, Any]]:
    """Tokenizer and text encoder of each CLIP, by the pipeline's name for the encoder, in order."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    parts = {name: part for name, part in pipeline.components.items() if "text_encoder" in name}
    return {
        name: (getattr(pipeline, name.replace("text_encoder", "tokenizer")), part)
        for name, part in sorted(parts.items())
        if isinstance(part, CLIPTextModel | CLIPTextModelWithProjection)
    }


def put_on(pipeline: Any, token: str, rows: Mapping[str, Tensor]) -> Callable[[], None]:
    """Give a pipeline a new token; `rows` are its vectors [vectors, width], by text encoder.

    Returns:
        What takes it off again: everything is as it was, bit by bit.

    Raises:
        EmbeddingError: It is not for text encoders like these, or the pipeline has such a token.
    """
    encoders = clip_encoders(pipeline).items()
    widths = {n: encoder.get_input_embeddings().embedding_dim for n, (_, encoder) in encoders}
    if widths != {name: values.shape[-1] for name, values in rows.items()}:
        raise EmbeddingError(
            f"The embedding of {token} does not fit: it is for text encoders of width "
            f"{_widths(values.shape[-1] for values in rows.values())}, and the base model's CLIP "
            f"encoders have {_widths(widths.values())}.",
            hint="It was trained on another kind of model: name that one as the base model.",
        )
    undo = [_put_on_one(pipeline, name, token, rows[name]) for name in widths]

    def take_off() -> None:
        for each in undo:
            each()

    return take_off


def _widths(widths: Any) -> str:
    return " and ".join(map(str, widths)) or "none"


def _put_on_one(pipeline: Any, name: str, token: str, rows: Tensor) -> Callable[[], None]:
    import torch
    from torch import nn

    # diffusers' `maybe_convert_prompt` writes `<my-cat> <my-cat>_1 ...` for the first in a prompt.
    tokens = [token, *(f"{token}_{number}" for number in range(1, len(rows)))]
    tokenizer_name = name.replace("text_encoder", "tokenizer")
    tokenizer, encoder = getattr(pipeline, tokenizer_name), getattr(pipeline, name)
    if taken := sorted({*tokens} & tokenizer.get_vocab().keys()):
        raise EmbeddingError(f"The base model has a token {taken[0]} already.")
    grown = copy.deepcopy(tokenizer)
    grown.add_tokens(tokens)
    table = encoder.get_input_embeddings()
    weight = table.weight.detach()
    first = grown.convert_tokens_to_ids(token)
    # Some have rows that their tokenizer does not know yet; new ones come in their place.
    left = weight[first + len(rows) :]
    larger = torch.cat([weight[:first], rows.detach().to(weight), left])
    encoder.set_input_embeddings(nn.Embedding.from_pretrained(larger))
    setattr(pipeline, tokenizer_name, grown)
    # Where its configuration has the wrong end token (2, as SDXL's and SD3's have), transformers
    # takes the token with the highest number for the end of the caption: the new one.
    text = getattr(encoder, "text_model", encoder)
    before = text.eos_token_id, encoder.config.vocab_size
    text.eos_token_id, encoder.config.vocab_size = tokenizer.eos_token_id, len(larger)

    def take_off() -> None:
        encoder.set_input_embeddings(table.to(encoder.get_input_embeddings().weight))
        text.eos_token_id, encoder.config.vocab_size = before
        setattr(pipeline, tokenizer_name, tokenizer)

    return take_off


# ---------------------------------------------------------------------------------------- its file


def file_name(token: str) -> str:
    """`my-cat.safetensors` of `<my-cat>`: A1111 and ComfyUI call it by the file's name."""
    return f"{token.strip('<>')}.safetensors"


def content_of(token: str, rows: Mapping[str, Tensor]) -> bytes:
    """The file of a token's vectors, by text encoder."""
    from safetensors.torch import save

    keys = [token] if len(rows) == 1 else _KEYS
    tensors = {
        key: values.detach().float().cpu().contiguous()
        for key, values in zip(keys, rows.values(), strict=True)
    }
    return save(tensors, {"format": "pt", TOKEN: token})


def load_embedding(pipeline: Any, file: Path) -> Callable[[], None]:
    """Put the token of a file on a pipeline; see `put_on`.

    Raises:
        EmbeddingError: The file is damaged, none of ours, or for another kind of model.
    """
    from safetensors import safe_open

    try:
        with safe_open(file, "pt") as opened:
            token = (opened.metadata() or {}).get(TOKEN)
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except Exception as error:  # whatever safetensors raises on a damaged file
        raise EmbeddingError(f"The embedding {file} cannot be read: {error}.") from error
    values = list(tensors.values()) if len(tensors) == 1 else [tensors.get(key) for key in _KEYS]
    if not token or any(value is None or value.dim() != 2 for value in values):
        raise EmbeddingError(f"{file} is no embedding that regforge wrote.")
    names = list(clip_encoders(pipeline))
    if len(names) != len(values):
        raise EmbeddingError(
            f"The embedding {file} is for {len(values)} CLIP text encoders, and the base model has "
            f"{len(names)}.",
            hint="It was trained on another kind of model: name that one as the base model.",
        )
    return put_on(pipeline, token, dict(zip(names, values, strict=True)))  # type: ignore[arg-type]
