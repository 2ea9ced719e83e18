"""Text embeddings of a diffusers pipeline: computed once, for rendering and for training.

Embeddings of one text are tensors by the names that the pipeline's call has for them, without a
batch axis. Those of several are stacked, and shorter ones filled up, before they are used.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from regforge.images.pipelines import inputs_of

if TYPE_CHECKING:
    import torch

    Embeddings = dict[str, torch.Tensor]

_MOST_BYTES = 256 * 2**20


def _unchanged(stacked: Embeddings) -> dict[str, Any]:
    return dict(stacked)


def _as_list(stacked: Embeddings) -> dict[str, Any]:
    """Z-Image and ERNIE: a tensor for each text, of its own length."""
    texts = zip(stacked["prompt_embeds"], stacked["prompt_embeds_mask"], strict=True)
    return {"prompt_embeds": [tokens[there] for tokens, there in texts]}


def _with_mask(stacked: Embeddings) -> dict[str, Any]:
    """AuraFlow: a mask, which has to be there and is not looked at."""
    embeds = stacked["prompt_embeds"]
    return {"prompt_embeds": embeds, "prompt_attention_mask": embeds.new_ones(embeds.shape[:2])}


def _whole(stacked: Embeddings) -> dict[str, Any]:
    """CogView4: as long as it is, without a mask; drawn alone, see `pipelines.ALONE`."""
    return {"prompt_embeds": stacked["prompt_embeds"][:, stacked["prompt_embeds_mask"][0]]}


def _layers_first(stacked: Embeddings) -> dict[str, Any]:
    """HiDream: Llama's layers before the batch."""
    llama = "prompt_embeds_llama3"
    return {**stacked, llama: stacked[llama].transpose(0, 1)}


@dataclass(frozen=True)
class _Encoding:
    """How a class of pipelines encodes texts.

    Attributes:
        places: Where in `encode_prompt`'s result lies what the call takes under which name.
        negative: Where those lie that guidance leads away from, in the same order; empty where a
            negative prompt is encoded like any other, or there is none.
        nothing: What stands for no negative prompt where it is; None where there is none.
        mask: Which of them says what tokens count, where the others count for nothing at all; they
            are not kept.
        together: Texts that are encoded at a time; T5 and language models are larger than CLIP.
        layers_first: Which of them has the batch as its second axis.
        as_called: From stacked embeddings to what the call and the denoiser take.
    """

    places: Mapping[str, int]
    negative: Sequence[int] = ()
    nothing: str | None = None
    mask: str | None = None
    together: int = 8
    layers_first: str | None = None
    as_called: Callable[[Embeddings], dict[str, Any]] = field(default=_unchanged)


_EMBEDS = {"prompt_embeds": 0}
_POOLED = {"prompt_embeds": 0, "pooled_prompt_embeds": 2}
_MASKED = {"prompt_embeds": 0, "prompt_attention_mask": 1}
_QWEN = {"prompt_embeds": 0, "prompt_embeds_mask": 1}
_HUNYUAN = _QWEN | {"prompt_embeds_2": 2, "prompt_embeds_mask_2": 3}
_HIDREAM = {"prompt_embeds_t5": 0, "prompt_embeds_llama3": 2, "pooled_prompt_embeds": 4}

# The pipelines of diffusers 0.42. Where no mask is named, denoisers attend to padding as well.
_ENCODINGS = {
    "AuraFlowPipeline": _Encoding(_EMBEDS, (2,), as_called=_with_mask),
    "ChromaPipeline": _Encoding({"prompt_embeds": 0, "prompt_attention_mask": 2}, (3, 5)),
    "CogView4Pipeline": _Encoding(
        _EMBEDS, (1,), mask="prompt_embeds_mask", together=1, as_called=_whole
    ),
    "ErnieImagePipeline": _Encoding(
        _EMBEDS, nothing="", mask="prompt_embeds_mask", together=1, as_called=_as_list
    ),
    "Flux2KleinPipeline": _Encoding(_EMBEDS, nothing=""),
    "Flux2Pipeline": _Encoding(_EMBEDS),
    "FluxPipeline": _Encoding({"prompt_embeds": 0, "pooled_prompt_embeds": 1}),
    "HiDreamImagePipeline": _Encoding(
        _HIDREAM, (1, 3, 5), layers_first="prompt_embeds_llama3", as_called=_layers_first
    ),
    "HunyuanImagePipeline": _Encoding(_HUNYUAN, nothing=""),
    "KolorsPipeline": _Encoding(_POOLED, (1, 3)),
    "Krea2Pipeline": _Encoding(_QWEN, nothing="", mask="prompt_embeds_mask"),
    "Lumina2Pipeline": _Encoding(_MASKED, (2, 3), mask="prompt_attention_mask"),
    "OvisImagePipeline": _Encoding(_EMBEDS, (1,)),
    "PixArtAlphaPipeline": _Encoding(_MASKED, (2, 3), mask="prompt_attention_mask"),
    "PixArtSigmaPipeline": _Encoding(_MASKED, (2, 3), mask="prompt_attention_mask"),
    "QwenImagePipeline": _Encoding(_QWEN, nothing=" ", mask="prompt_embeds_mask"),
    "SanaPipeline": _Encoding(_MASKED, (2, 3), mask="prompt_attention_mask"),
    "StableDiffusion3Pipeline": _Encoding(_POOLED, (1, 3)),
    "StableDiffusionPipeline": _Encoding(_EMBEDS, (1,), together=32),
    "StableDiffusionXLPipeline": _Encoding(_POOLED, (1, 3), together=32),
    "ZImagePipeline": _Encoding(_EMBEDS, nothing="", mask="prompt_embeds_mask", as_called=_as_list),
}


def can_encode(pipeline: Any) -> bool:
    """Whether it is known how the pipeline encodes texts; others are given them as texts."""
    return type(pipeline).__name__ in _ENCODINGS


def encode(pipeline: Any, texts: Sequence[str], device: torch.device) -> list[Embeddings]:
    """The embeddings of texts, each as the pipeline would draw it; gradients flow as they may."""
    how = _ENCODINGS[type(pipeline).__name__]
    result = _result(pipeline, texts, device, guided=False)
    return _rows(how, {name: result[at] for name, at in how.places.items()}, len(texts))


def encode_negative(pipeline: Any, negative_prompt: str | None, device: torch.device) -> Embeddings:
    """What guidance leads away from, under the names of `encode`.

    Without a negative prompt it is what the pipeline itself takes then: some have a way of their
    own to say nothing, and models have learned that as "no caption".
    """
    how = _ENCODINGS[type(pipeline).__name__]
    if not how.negative:
        return encode(pipeline, [negative_prompt or how.nothing or ""], device)[0]
    more = {"negative_prompt": [negative_prompt]} if negative_prompt else {}
    result = _result(pipeline, [""], device, guided=True, **more)
    places = zip(how.places, how.negative, strict=True)
    return _rows(how, {name: result[at] for name, at in places}, 1)[0]


def stacked(each: Sequence[Embeddings]) -> Embeddings:
    """With a batch axis; shorter ones are filled up with zeros, which the mask says too."""
    from torch.nn.utils.rnn import pad_sequence

    return {name: pad_sequence([one[name] for one in each], batch_first=True) for name in each[0]}


def as_called(pipeline: Any, embeddings: Embeddings) -> dict[str, Any]:
    """Stacked embeddings as the pipeline's call takes them, and its denoiser."""
    return _ENCODINGS[type(pipeline).__name__].as_called(embeddings)


def _result(
    pipeline: Any, texts: Sequence[str], device: torch.device, *, guided: bool, **more: Any
) -> Sequence[Any]:
    """What `encode_prompt` returns where the pipeline itself calls it."""
    encode_prompt = pipeline.encode_prompt
    takes = inspect.signature(encode_prompt).parameters
    defaults = {name: each.default for name, each in inputs_of(pipeline).items()}
    values = defaults | {
        "prompt": list(texts),
        "device": device,
        "do_classifier_free_guidance": guided,
        "num_images_per_prompt": 1,
        "batch_size": len(texts),
        "clean_caption": False,  # as in calls
        **more,
    }
    result: Any = encode_prompt(**{k: v for k, v in values.items() if k in takes})
    return result if isinstance(result, tuple) else (result,)


def _rows(how: _Encoding, found: Mapping[str, Any], count: int) -> list[Embeddings]:
    """Each text's own part of a result, without tokens that count for nothing."""
    import torch

    rows = []
    for number in range(count):
        row = {
            name: values[:, number] if name == how.layers_first else values[number]
            for name, values in found.items()
            if values is not None  # Qwen-Image's mask, where all tokens count
        }
        if how.mask is not None:
            kept = row["prompt_embeds"]
            if how.mask in row:
                kept = kept[row[how.mask].bool()]
            row = {"prompt_embeds": kept, how.mask: torch.ones(len(kept), dtype=torch.bool)}
        rows.append(row)
    return rows


class PromptCache:
    """Encodes prompts of a pipeline that `can_encode` knows, and remembers them for a while.

    Prompts are encoded many at a time and always as many, so that the embedding of one does not
    depend on which others there are.
    """

    def __init__(self, pipeline: Any, *, guided: bool) -> None:
        how = _ENCODINGS[type(pipeline).__name__]
        self._pipeline = pipeline
        self._together = how.together
        self._guided = guided and (bool(how.negative) or how.nothing is not None)
        self._known: OrderedDict[str, Embeddings] = OrderedDict()
        self._negatives: dict[str, Embeddings] = {}
        self._expected: dict[str, None] = {}

    def expect(self, texts: Sequence[str]) -> None:
        """Say which prompts will be asked for, so that they are encoded in large batches."""
        self._expected = dict.fromkeys(text for text in texts if text not in self._known)

    def arguments(self, texts: Sequence[str], negatives: Sequence[str]) -> dict[str, Any]:
        """Arguments in place of `prompt` and `negative_prompt`, on the device.

        Empty negative prompts are what the pipeline takes where there is none.
        """
        import torch

        each, device = [self._embeddings(text) for text in texts], self._pipeline._execution_device
        for text in dict.fromkeys(negatives if self._guided else ()):
            if text not in self._negatives:
                with torch.inference_mode():
                    found = encode_negative(self._pipeline, text or None, device)
                self._negatives[text] = {name: value.cpu() for name, value in found.items()}
        away = [self._negatives[text] for text in negatives] if self._guided else []
        return arguments(self._pipeline, each, away, device)

    def _embeddings(self, text: str) -> Embeddings:
        if text not in self._known:
            self._encode_with_next(text)
        self._known.move_to_end(text)
        return self._known[text]

    def _encode_with_next(self, text: str) -> None:
        """Encode a prompt together with those that come next, filled up with empty ones."""
        import torch

        self._expected.pop(text, None)
        count = self._together
        together = [text, *islice(self._expected, count - 1)]
        for each in together:
            self._expected.pop(each, None)
        texts = together + [""] * (count - len(together))
        with torch.inference_mode():
            rows = encode(self._pipeline, texts, self._pipeline._execution_device)
        for each, row in zip(together, rows, strict=False):
            # Copies, or one prompt would keep all of them in memory.
            self._known[each] = {name: value.cpu().clone() for name, value in row.items()}
        size = sum(value.nbytes for value in self._known[text].values())
        while len(self._known) > max(2 * count, _MOST_BYTES // size):
            self._known.popitem(last=False)


def arguments(
    pipeline: Any,
    each: Sequence[Embeddings],
    negatives: Sequence[Embeddings],
    device: torch.device,
) -> dict[str, Any]:
    """Arguments of a pipeline's call in place of prompts, and of as many negative ones if any."""
    # Together: some pipelines want both of one length.
    both = {name: value.to(device) for name, value in stacked([*each, *negatives]).items()}
    found = as_called(pipeline, {name: value[: len(each)] for name, value in both.items()})
    found |= {"prompt": None, "negative_prompt": None}  # Sana's is "", which is one too many
    if negatives:
        away = as_called(pipeline, {name: value[len(each) :] for name, value in both.items()})
        found |= {f"negative_{name}": value for name, value in away.items()}
    takes = inputs_of(pipeline)
    return {name: value for name, value in found.items() if name in takes}
