"""Prompt syntax in captions: what user interfaces to image generators understand, and no trainer.

    a (sks cat:1.3), ((fluffy)), [blurry] <lora:x:0.8> BREAK on a rug
    a sks cat, fluffy, blurry, on a rug

Weights and emphasis are taken off, the words in them stay. What stands for several texts at once
cannot be: `{red|blue}`, `[red:blue:0.5]`, `__color__`.
"""

from __future__ import annotations

import re

from regforge.prompts.captions import tidy

_SEVERAL = re.compile(
    r"\{[^{}]*[|$][^{}]*\}|\[[^\[\]|]{0,200}\|[^\[\]]*\]|\[[^\[\]:]*:[^\[\]:]*:[^\[\]]*\]"
    r"|\[[^\[\]:]*:[\d.]+\]|(?<!\w)__[\w/*.-]{1,100}?__(?!\w)"
)
_NETWORK = re.compile(r"<(?:lora|lyco|lycoris|hypernet|hypernetwork|ti|embedding):[^<>]*>", re.I)
_BREAK = re.compile(r"\s*,?\s*(?<!\w)(?:BREAK|ADDCOMM|ADDBASE|ADDCOL|ADDROW)(?!\w)\s*,?\s*")
_WEIGHT = re.compile(r"[(\[{<]([^()\[\]{}<>]*?)\s*:\s*[+-]?\d*\.?\d+\s*[)\]}>]")
_TWICE = re.compile(r"\(\s*\(([^()]*)\)\s*\)")
_SQUARE = re.compile(r"\[([^\[\]]*)\]|\{([^{}]*)\}")
# Round brackets are English behind a noun, "a portrait (my cat)", and emphasis in other places.
_ROUND = re.compile(
    r"(^|[,(]\s*|\b(?:an?|the|my|of|in|on|at|with|and|by|from)\s+)\(([^()]*)\)(?!\w)", re.I
)
_SIGNS = re.compile(r"(?<=[\w\ue000])(?:\+{2,}|-{2,})(?=[\s,.)]|$)")
_KEPT = "\ue000"
_PRIVATE = re.compile("[\ue000-\ue006]")
_MOST_BRACKETS = 20
"""Brackets in brackets that are taken off."""


def several_texts(caption: str) -> str | None:
    """The part of a caption that stands for several texts, such as `{red|blue}`; None without."""
    found = _SEVERAL.search(caption)
    return found[0] if found else None


def without_syntax(caption: str, identifier: str | None = None) -> str:
    """A caption without prompt syntax.

    Args:
        caption: One line.
        identifier: The subject's, which stays as it is: "[V]", "<new1>".

    Returns:
        The same caption if there is none in it.
    """
    if _PRIVATE.search(caption):  # they stand for something here
        return caption
    hidden = re.compile(re.escape(identifier), re.IGNORECASE) if identifier else None
    names = hidden.findall(caption) if hidden else []
    text = hidden.sub(_KEPT, caption) if hidden else caption
    before = text
    text = re.sub(r"\\([()\[\]{}])", lambda m: _ESCAPED[m[1]], text)
    text = _BREAK.sub(", ", _NETWORK.sub(" ", text))
    for _ in range(_MOST_BRACKETS):
        bare, text = text, _unbracketed(text)
        if bare == text:
            break
    text = _SIGNS.sub("", text)
    text = text.translate({ord(sign): char for char, sign in _ESCAPED.items()})
    if text == before:
        return caption
    text = re.sub(r"\s+([,.;:!?])", r"\1", tidy(text))
    parts = iter(names)
    return re.sub(_KEPT, lambda _: next(parts), text)


_ESCAPED = {
    "(": "\ue001",
    ")": "\ue002",
    "[": "\ue003",
    "]": "\ue004",
    "{": "\ue005",
    "}": "\ue006",
}


def _unbracketed(text: str) -> str:
    text = _WEIGHT.sub(r"\1", _TWICE.sub(r"\1", text))
    text = _SQUARE.sub(lambda found: found[1] if found[1] is not None else found[2], text)
    return _ROUND.sub(r"\1\2", text)
