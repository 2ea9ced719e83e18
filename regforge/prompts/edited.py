"""Captions that somebody has edited in prompts.jsonl: held to what the others are held to.

Knows the file and the rules for captions; knows nothing about how captions are written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.prompts.captions import word_pattern
from regforge.prompts.tokens import TokenBudget
from regforge.records import Prompt


class EditedPromptsError(RegforgeError):
    """Edited captions that cannot be used."""

    exit_code = EXIT_USAGE


def edited_prompts(
    prompts: Iterable[Prompt], path: Path, *, identifier: str | None, budget: TokenBudget
) -> Iterator[Prompt]:
    """Check the prompts of an edited file; a slot whose phrase has left the caption becomes None.

    Args:
        prompts: As the file has them.
        path: The file, for messages.
        identifier: The token that stands for the subject.
        budget: The longest caption.

    Raises:
        EditedPromptsError: A caption is empty, too long, or names the subject.
    """
    named = word_pattern(identifier) if identifier else None
    for prompt in prompts:
        problem = None
        if not prompt.text.strip():
            problem = "is empty"
        elif named and named.search(prompt.text):
            problem = f"names the identifier {identifier!r}"
        elif not budget.fits(prompt.text):
            problem = (
                f"has {budget.count(prompt.text)} tokens, and no caption may have more than "
                f"{budget.limit} ({budget.source})"
            )
        if problem is not None:
            raise EditedPromptsError(
                f"{path}, line {prompt.index + 1}: the caption {problem}.",
                hint="Change the line, or delete the file: captions that nobody edited come out "
                "the same.",
            )
        said = {
            slot: phrase if phrase and word_pattern(phrase).search(prompt.text) else None
            for slot, phrase in prompt.slots.items()
        }
        yield replace(prompt, slots=said)
