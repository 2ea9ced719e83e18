"""New tokens of a pipeline's CLIP text encoders: put on, taken off again, and their file.

Encoders that are language models (T5, Gemma, Qwen) are left alone: they read the token's name.

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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.recipe.named_files import TOKEN

if TYPE_CHECKING:
    from torch import Tensor

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
    """The file of a token's vectors, by text encoder; see the top of this module."""
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
