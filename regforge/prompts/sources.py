"""A prompt set at work: takes rows until one makes a caption that can be used.

Keeps account of those that were passed over, for the ledger and for the day there are no more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from regforge.errors import RegforgeError
from regforge.journal import Journal
from regforge.prompts.prompt_sets import PHOTO, Caption, Naive, PromptSet
from regforge.prompts.rows import Row, Rows

Fault = tuple[str, str]
"""Why a caption cannot be used: its kind, in the plural ("name the identifier"), and in full."""

REPEATED = "were said before"
_INCOMPATIBLE: Fault = ("do not go together", "its phrases do not go together, however redrawn")

_MOST_LISTED = 100
"""Refused captions that go to the ledger one by one, for each set and kind."""


class NotEnoughPrompts(RegforgeError):
    """There are not as many captions as were asked for."""


@dataclass
class Refused:
    """The captions of a set that were passed over, by kind of fault."""

    prompt_set: str
    journal: Journal
    counts: Counter[str] = field(default_factory=Counter)
    _listed: Counter[str] = field(default_factory=Counter)

    def add(self, fault: Fault, text: str | None = None) -> None:
        """Count one, and write the first ones of its kind down."""
        kind, reason = fault
        self.counts[kind] += 1
        self._listed[kind] += 1
        if self._listed[kind] > _MOST_LISTED + 1:
            return
        if self._listed[kind] > _MOST_LISTED:
            reason, text = f"there are more that {kind}; they are not listed", None
        self.journal.failure("prompts", f"{self.prompt_set} caption", reason, raw=text)

    def __str__(self) -> str:
        found = [f"{count:,} {kind}" for kind, count in self.counts.most_common() if count > 0]
        return " and ".join([", ".join(found[:-1]), found[-1]] if len(found) > 1 else found)


@dataclass
class Source:
    """A prompt set, where its rows come from, and what became of them.

    Attributes:
        prompt_set: Makes captions of rows.
        rows: Phrases.
        refused: What was passed over.
        limit: Most tokens, for the account.
        language_model: Who supplied phrases, if a language model did.
        made: Captions so far.
    """

    prompt_set: PromptSet
    rows: Rows
    refused: Refused
    limit: int
    language_model: str | None = None
    made: int = 0
    _tried_all: bool = False

    @property
    def name(self) -> str:
        """The set's name."""
        return self.prompt_set.name

    def captions(self, fault: Callable[[Caption], Fault | None]) -> Iterator[Caption]:
        """The captions that can be used, until there are no more.

        Args:
            fault: Judges a caption; None means that it is taken.
        """
        if isinstance(self.prompt_set, Naive):
            while True:
                yield self.prompt_set.caption({})
        for phase in self.rows.phases():
            useless = 0
            if phase.complete:
                self._tried_all = True
                self.refused.counts.clear()
            for row in phase.rows:
                caption = self._caption(row, fault)
                if caption is not None:
                    useless = 0
                    self.made += 1
                    yield caption
                    continue
                useless += 1
                if useless == phase.patience:
                    break

    def _caption(self, row: Row | None, fault: Callable[[Caption], Fault | None]) -> Caption | None:
        if row is None:
            self.refused.add(_INCOMPATIBLE)
            return None
        caption = self.prompt_set.caption(row)
        if caption is None:
            kind = f"have more than {self.limit} tokens"
            said = "; ".join(text for slot, text in row.items() if slot != PHOTO)
            self.refused.add((kind, f"would {kind}"), said)
        elif found := fault(caption):
            self.refused.add(found, caption.text)
        else:
            return caption
        return None

    def not_enough(self, index: int, count: int) -> NotEnoughPrompts:
        """The error for a set that has no more captions.

        Args:
            index: How many prompts there are, of all sets.
            count: How many there should be.
        """
        name = self.name
        return NotEnoughPrompts(
            f"Only {index:,} of {count:,} captions could be made: the {name} set has no more after "
            f"{self.made:,}. {self._account()}",
            hint=f"{self._advice()}, lower the share of {name} in `prompts.sets`, or set "
            f"prompts.count to {index}. ledger.jsonl has what was refused.",
        )

    def _account(self) -> str:
        if not self._tried_all:
            return f"Too many in a row were refused; in all {self.refused}."
        self.refused.counts[REPEATED] -= self.made  # trying all combinations met these again
        sizes = {name: size for name, size in self.rows.sizes().items() if size > 1}
        ways = " × ".join(f"{size} {name.strip()}" for name, size in sizes.items())
        total = f"{self.rows.design.combinations:,} ways ({ways})" if ways else "one way"
        rest = f"; of the others {self.refused}" if str(self.refused) else ""
        return f"Its phrases combine in {total}, and {self.made:,} are used{rest}."

    def _advice(self) -> str:
        sizes = {name: size for name, size in self.rows.sizes().items() if name != PHOTO}
        if not sizes:
            return "Give the recipe slots that vary"
        shortest = min(sizes, key=lambda name: sizes[name])
        return f"Add phrases or slots (the shortest, `{shortest}`, has {sizes[shortest]})"
