"""The embedding of a new token while it is trained: some rows of the CLIP text encoders.

The rows are float32 and lie beside the text encoders, which keep all of theirs, frozen: a hook puts
them in the place of what the token began with. So nothing else moves, whatever is trained too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from regforge.images.loras import EmbeddingError, clip_encoders, content_of, put_on
from regforge.recipe.training import TrainingSubject
from regforge.training.batches import FamilyError


class TokenRows:
    """The new token of a pipeline, which it gets here, and its trained vectors.

    Attributes:
        name: As captions write it.
        lr: Its learning rate.
        notes: What people should know, a sentence each.
        parameters: Its vectors, float32 [vectors, width], by the name of the text encoder.

    Raises:
        FamilyError: The pipeline has no CLIP text encoder, or has the token already.
    """

    def __init__(self, pipeline: Any, subject: TrainingSubject) -> None:
        token = subject.token
        assert token is not None
        self.name, self.lr = token.new, token.lr
        init = subject.class_noun if token.init == "class_noun" else token.init
        encoders = clip_encoders(pipeline)
        if not encoders:
            raise FamilyError("The base model has no CLIP text encoder that could get a new token.")
        self.notes = [
            f"{name} is no CLIP and gets no new token: it reads {self.name} as it stands."
            for name, part in pipeline.components.items()
            if "text_encoder" in name and name not in encoders and part is not None
        ]
        rows = {
            name: _mean(tokenizer, encoder, init).repeat(token.vectors, 1)
            for name, (tokenizer, encoder) in encoders.items()
        }
        try:
            put_on(pipeline, self.name, rows)
        except EmbeddingError as error:
            raise FamilyError(f"{error.message} (subject.identifier)", hint=error.hint) from error
        self.parameters = {name: nn.Parameter(values) for name, values in rows.items()}
        self._first = {}
        self._pipeline = pipeline
        self._hooked = True
        for name, (tokenizer, encoder) in clip_encoders(pipeline).items():
            self._first[name] = tokenizer.convert_tokens_to_ids(self.name)
            table = encoder.get_input_embeddings()
            table.register_forward_hook(
                lambda _module, inputs, output, name=name: self._with_rows(name, inputs[0], output)
            )

    def stands_in(self, caption: str) -> bool:
        """Whether a caption holds it; tokenizers of CLIP know no capital letters."""
        return self.name in caption.lower()

    def _with_rows(self, name: str, ids: Tensor, embedded: Tensor) -> Tensor:
        """What a text encoder's table returned, with the trained rows where the token stands."""
        if not self._hooked:
            return embedded
        rows = self.parameters[name]
        number = ids - self._first[name]
        is_token = (number >= 0) & (number < len(rows))
        trained = functional.embedding(number.clamp(0, len(rows) - 1), rows).to(embedded.dtype)
        return torch.where(is_token[..., None], trained, embedded)

    @contextmanager
    def untrained(self) -> Iterator[None]:
        """While the block runs, it is what it began with."""
        self._hooked = False
        try:
            yield
        finally:
            self._hooked = True

    @contextmanager
    def written(self) -> Iterator[dict[str, Any]]:
        """While the block runs, its rows lie in the text encoders, to be saved with them.

        Yields:
            Tokenizers and text encoders by the pipeline's names for them.
        """
        parts: dict[str, Any] = {}
        before: list[tuple[Tensor, Tensor]] = []
        for name, (tokenizer, encoder) in clip_encoders(self._pipeline).items():
            rows, first = self.parameters[name].detach(), self._first[name]
            place = encoder.get_input_embeddings().weight.data[first : first + len(rows)]
            before.append((place, place.clone()))
            place.copy_(rows)
            encoder.config.eos_token_id = tokenizer.eos_token_id  # see `put_on`
            parts |= {name: encoder, name.replace("text_encoder", "tokenizer"): tokenizer}
        try:
            yield parts
        finally:
            for place, values in before:
                place.copy_(values)

    def file(self) -> bytes:
        """Its vectors as a file, see `regforge.images.loras`."""
        return content_of(self.name, self.parameters)


def _mean(tokenizer: Any, encoder: Any, words: str) -> Tensor:
    """The mean of the words' embeddings: float32 [1, width]."""
    ids = tokenizer(words, add_special_tokens=False, truncation=True).input_ids
    table: Tensor = encoder.get_input_embeddings().weight
    return table.detach()[ids].float().mean(0, keepdim=True)
