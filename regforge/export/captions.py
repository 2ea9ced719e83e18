"""Captions as every trainer can keep them: one line, not empty, UTF-8."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from regforge.export.interface import ExportError, Trainer
from regforge.prompts.captions import article_for, word_pattern

_SHOWN = 5
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ufeff]")  # U+FEFF at the start would be a BOM


@dataclass(frozen=True)
class Captions:
    """Captions of the images that are exported.

    Attributes:
        texts: In the order of the images.
        missing: How many images had none and got the class caption.
        tidied: How many had line breaks, tabs or double spaces.
    """

    texts: Sequence[str]
    missing: int
    tidied: int


def tidy(text: str) -> str:
    """One line: white space and control characters become single spaces."""
    return " ".join(_CONTROL.sub(" ", text).split())


def class_caption(class_noun: str) -> str:
    """Such as `a photo of an owl`."""
    return f"a photo of {article_for(class_noun)(class_noun)}"


def tidy_captions(captions: Sequence[str | None], class_noun: str) -> Captions:
    """The captions of some images, each one line and none empty."""
    fallback = class_caption(class_noun)
    tidied = [tidy(caption or "") for caption in captions]
    changed = sum(bool(new) and new != old for new, old in zip(tidied, captions, strict=True))
    missing = sum(not new for new in tidied)
    return Captions([new or fallback for new in tidied], missing, changed)


def refuse_what_is_lost(captions: Sequence[tuple[str, str]], trainers: Sequence[Trainer]) -> None:
    """See that each trainer can keep each caption.

    Args:
        captions: (the image's id, its caption).
        trainers: Those that will read them.

    Raises:
        ExportError: One could not; the message lists the first few.
    """
    checks: list[tuple[str, Callable[[str], str | None]]] = [("a file", _unwritable)]
    checks += [(trainer.title, trainer.refuses) for trainer in trainers]
    for title, refuses in checks:
        refused = [
            (name, caption, reason)
            for name, caption in captions
            if (reason := refuses(caption)) is not None
        ]
        if refused:
            shown = [
                f"  {_printable(name)}: {reason}: {_printable(caption)}"
                for name, caption, reason in refused[:_SHOWN]
            ]
            more = [f"  ... and {len(refused) - _SHOWN:,} more"] if len(refused) > _SHOWN else []
            count = f"{len(refused):,} caption{'s' * (len(refused) > 1)}"
            raise ExportError(
                "\n".join([f"{title} could not keep {count}:", *shown, *more]),
                hint="Change these captions, or leave these images out.",
            )


def _unwritable(caption: str) -> str | None:
    try:
        caption.encode()
    except UnicodeEncodeError:
        return "it has half of a character, which is no UTF-8"
    return None


def _printable(text: str) -> str:
    shown = text.encode("utf-8", "backslashreplace").decode()
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def naming(captions: Sequence[str], identifier: str) -> int:
    """How many captions name the identifier."""
    pattern = word_pattern(identifier)
    return sum(bool(pattern.search(caption)) for caption in captions)
