"""Writes text word by word with a network, freely or inside a constraint."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regforge.embedded.language_model.constrained import Constraint
from regforge.embedded.language_model.engine import Generation, Message, Sampling, message_text
from regforge.embedded.language_model.errors import LanguageModelError, SchemaError
from regforge.embedded.language_model.network import KeyValues, Network

END = "<|im_end|>"
_CONTEXT = 8192  # what the model was trained on
_MIN_P = 0.1  # words less than a tenth as likely as the best one are mostly noise at this size
_PATIENCE = 8  # a constrained reply may take this many budgets before we give up


def chat_prompt(messages: Sequence[Message]) -> str:
    """The conversation as the model was taught to read it (ChatML), up to the reply."""
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    turns = [(str(message["role"]), message_text(message)) for message in messages]
    if not turns or turns[0][0] != "system":
        turns.insert(0, ("system", system))
    text = "".join(f"<|im_start|>{role}\n{content}{END}\n" for role, content in turns)
    return text + "<|im_start|>assistant\n"


def write(
    network: Network,
    tokenizer: Any,
    prompt: list[int],
    sampling: Sampling,
    rng: random.Random,
    constraint: Constraint | None,
) -> Generation:
    """Continue a prompt.

    Args:
        network: predicts.
        tokenizer: a `tokenizers.Tokenizer`.
        prompt: token ids.
        sampling: how to draw; see `Sampling.max_tokens` for what it means with a constraint.
        rng: the source of all randomness.
        constraint: what may be written, or None for anything.

    Raises:
        LanguageModelError: the prompt does not fit the model's context.
        SchemaError: a constrained reply came to no end.
    """
    end = tokenizer.token_to_id(END)
    quote, letter, *brackets = (tokenizer.token_to_id(token) for token in ('"', "a", "]", "}"))
    limit = sampling.max_tokens * (1 if constraint is None else _PATIENCE)
    if len(prompt) + limit > _CONTEXT:
        raise LanguageModelError(
            f"the embedded language model reads and writes at most {_CONTEXT} tokens in a call; "
            f"this one asks for {len(prompt)} + {limit}"
        )
    past, unread, written = KeyValues(), prompt, list[int]()
    while len(written) < limit:
        scores = _predict(network, unread, len(prompt) + len(written), past)
        if constraint is not None:
            scores = scores.masked_fill(~constraint.allowed(len(scores)), -torch.inf)
        if constraint is not None and len(written) >= sampling.max_tokens:
            # Where a letter may stand we are in a string, and a bracket would only make it longer.
            in_string = scores[letter] > -torch.inf
            scores = _prefer(scores, [end, quote] if in_string else [end, quote, *brackets])
        token = draw(scores, sampling, rng)
        if token == end:
            return Generation(tokenizer.decode(written), "stop", len(prompt), len(written))
        written.append(token)
        unread = [token]
        text = tokenizer.decode(written)
        if constraint is not None:
            constraint.accept(token)
            if constraint.finished():
                return Generation(text, "stop", len(prompt), len(written))
        elif cuts := [text.index(stop) for stop in sampling.stop if stop in text]:
            return Generation(text[: min(cuts)], "stop", len(prompt), len(written))
    if constraint is not None:
        raise SchemaError(
            f"the embedded language model found no end to its JSON within {limit} tokens; "
            "bound the schema's strings and numbers (maxLength, maximum, pattern)"
        )
    return Generation(tokenizer.decode(written), "length", len(prompt), len(written))


def draw(scores: Tensor, sampling: Sampling, rng: random.Random) -> int:
    """Draw a token from log-probabilities [vocabulary]; impossible ones are -inf."""
    if sampling.temperature <= 0:
        return int(scores.argmax())
    odds = (scores.double() / sampling.temperature).softmax(-1)
    odds, tokens = odds.sort(descending=True, stable=True)
    before = odds.cumsum(-1) - odds  # what likelier tokens hold already
    kept = int(((odds >= _MIN_P * odds[0]) & (before < sampling.top_p)).sum()) or 1
    cumulative = odds[:kept].cumsum(-1)
    spot = int(torch.searchsorted(cumulative, rng.random() * float(cumulative[-1]), right=True))
    return int(tokens[min(spot, kept - 1)])


def _predict(network: Network, unread: list[int], total: int, past: KeyValues) -> Tensor:
    """Log-probabilities [vocabulary] after `total` tokens, the last of which are `unread`."""
    positions = torch.arange(total - len(unread), total)
    mask = torch.arange(total)[None] <= positions[:, None]
    hidden = network.hidden(torch.tensor(unread), positions, mask, past)
    return network.log_probabilities(hidden[-1:])[0]


def _prefer(scores: Tensor, tokens: list[int]) -> Tensor:
    """Leave only the first of the tokens that is possible now, or everything if none is."""
    for token in tokens:
        if scores[token] > -torch.inf:
            only = torch.full_like(scores, -torch.inf)
            only[token] = 0.0
            return only
    return scores
