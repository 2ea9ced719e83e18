"""Prompt embeddings, each computed once, of pipelines whose `encode_prompt` we can call."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

    Embeddings = dict[str, torch.Tensor]

_MOST_BYTES = 256 * 2**20


class _Family(NamedTuple):
    """Where in `encode_prompt`'s result lies what `__call__` takes under which name."""

    positive: dict[str, int]
    negative: dict[str, int]
    together: int  # prompts that are encoded at a time; T5 is larger than CLIP


_POSITIVE = {"prompt_embeds": 0, "pooled_prompt_embeds": 2}
_NEGATIVE = {"negative_prompt_embeds": 1, "negative_pooled_prompt_embeds": 3}
_FAMILIES = {
    "StableDiffusionPipeline": _Family({"prompt_embeds": 0}, {"negative_prompt_embeds": 1}, 32),
    "StableDiffusionXLPipeline": _Family(_POSITIVE, _NEGATIVE, 32),
    "StableDiffusion3Pipeline": _Family(_POSITIVE, _NEGATIVE, 8),
    "FluxPipeline": _Family({"prompt_embeds": 0, "pooled_prompt_embeds": 1}, {}, 8),
}


def can_encode(pipeline: Any) -> bool:
    """Whether `PromptCache` knows the pipeline; others are given their prompts as text."""
    return type(pipeline).__name__ in _FAMILIES


class PromptCache:
    """Encodes prompts and remembers them, the most recently used ones longest.

    Prompts are encoded many at a time and always as many, so that the embedding of one does not
    depend on which others there are.

    Args:
        pipeline: One that `can_encode` knows.
        negative_prompt: Empty for none.
        guided: Whether classifier-free guidance is on, so that the negative prompt is needed.
    """

    def __init__(self, pipeline: Any, negative_prompt: str, *, guided: bool) -> None:
        self._pipeline = pipeline
        self._family = _FAMILIES[type(pipeline).__name__]
        # None, not "": some models have a way of their own to say nothing.
        self._negative_prompt = [negative_prompt] if negative_prompt else None
        self._guided = guided and bool(self._family.negative)
        self._known: OrderedDict[str, Embeddings] = OrderedDict()
        self._negative: Embeddings | None = None
        self._expected: dict[str, None] = {}

    def expect(self, texts: Sequence[str]) -> None:
        """Say which prompts will be asked for, so that they are encoded in large batches."""
        self._expected = dict.fromkeys(text for text in texts if text not in self._known)

    def arguments(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Arguments in place of `prompt` and `negative_prompt`: tensors [N, ...] on the device."""
        import torch

        embeddings = [self._embeddings(text) for text in texts]
        device = self._pipeline._execution_device
        arguments = {
            name: torch.stack([each[name] for each in embeddings]).to(device)
            for name in self._family.positive
        }
        if self._guided:
            if self._negative is None:
                result, places = self._encode([""], guided=True), self._family.negative
                self._negative = {name: result[at][0].cpu() for name, at in places.items()}
            for name, value in self._negative.items():
                arguments[name] = value.expand(len(texts), *value.shape).to(device)
        return arguments

    def _embeddings(self, text: str) -> Embeddings:
        if text not in self._known:
            self._encode_with_next(text)
        self._known.move_to_end(text)
        return self._known[text]

    def _encode_with_next(self, text: str) -> None:
        """Encode a prompt together with those that come next, filled up with empty ones."""
        self._expected.pop(text, None)
        count = self._family.together
        together = [text, *islice(self._expected, count - 1)]
        for each in together:
            self._expected.pop(each, None)
        result = self._encode(together + [""] * (count - len(together)), guided=False)
        rows = {name: result[at].cpu() for name, at in self._family.positive.items()}
        for number, each in enumerate(together):
            # Copies, or one prompt would keep all of them in memory.
            self._known[each] = {name: value[number].clone() for name, value in rows.items()}
        size = sum(value.nbytes for value in self._known[text].values())
        while len(self._known) > max(2 * count, _MOST_BYTES // size):
            self._known.popitem(last=False)

    def _encode(self, texts: Sequence[str], *, guided: bool) -> Sequence[Any]:
        """Call `encode_prompt` with those of its parameters that it has."""
        import torch

        encode = self._pipeline.encode_prompt
        values: dict[str, Any] = {
            "prompt": list(texts),
            "prompt_2": None,
            "prompt_3": None,
            "device": self._pipeline._execution_device,
            "num_images_per_prompt": 1,
            "do_classifier_free_guidance": guided,
            "negative_prompt": self._negative_prompt,
        }
        takes = inspect.signature(encode).parameters
        with torch.inference_mode():
            result: Sequence[Any] = encode(**{k: v for k, v in values.items() if k in takes})
        return result
