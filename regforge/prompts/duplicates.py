"""Captions that were there already: the same but for case and punctuation, or nearly the same.

Keeps eight bytes of each caption, and its words only where near-duplicates are asked for.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter, defaultdict

_BETWEEN_WORDS = re.compile(r"[\W_]+")


def plain_words(text: str) -> str:
    """The words of a caption in lower case, with single spaces; equal for duplicates."""
    return _BETWEEN_WORDS.sub(" ", text.casefold()).strip()


class Duplicates:
    """The captions so far.

    Args:
        near: Captions that share more than this part of their words (Jaccard similarity, above 0
            to 1) count as the same; None to compare exactly.
    """

    def __init__(self, near: float | None = None) -> None:
        self._digests: set[int] = set()
        self._near = NearDuplicates(near) if near is not None and near < 1 else None

    def add(self, text: str) -> str | None:
        """Remember a caption.

        Returns:
            None, or why it was not added: what it repeats.
        """
        words = plain_words(text)
        digest = int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest())
        if digest in self._digests:
            return "was said before"
        if self._near is not None and (like := self._near.find(words)) is not None:
            return f"says nearly the same as {like!r}"
        self._digests.add(digest)
        if self._near is not None:
            self._near.add(words)
        return None


class NearDuplicates:
    """Finds a caption that shares most of its words with a new one, exactly and without scanning.

    Two sets of words as similar as `least` share a word among the first few of either, in any
    order of all words (prefix filtering: Chaudhuri, Ganti and Kaushik, 2006). Only captions that
    share one of those are compared. With rare words first there are few; how rare they are is
    counted anew whenever the captions have doubled.

    Args:
        least: Jaccard similarity above which captions count as the same, 0 to 1.
    """

    def __init__(self, least: float) -> None:
        self._least = least
        self._texts: list[str] = []
        self._words: list[frozenset[str]] = []
        self._with_word: dict[str, list[int]] = defaultdict(list)
        self._uses: Counter[str] = Counter()

    def find(self, text: str) -> str | None:
        """A caption that is more alike than allowed, or None."""
        words = frozenset(text.split())
        candidates = {number for word in self._first(words) for number in self._with_word[word]}
        for number in sorted(candidates):
            other = self._words[number]
            shared = len(words & other)
            if shared > self._least * (len(words) + len(other) - shared):
                return self._texts[number]
        return None

    def add(self, text: str) -> None:
        """Remember a caption."""
        self._texts.append(text)
        self._words.append(frozenset(text.split()))
        if len(self._texts).bit_count() == 1:
            self._count_again()
        else:
            self._index(len(self._texts) - 1)

    def _count_again(self) -> None:
        self._uses = Counter(word for words in self._words for word in words)
        self._with_word.clear()
        for number in range(len(self._words)):
            self._index(number)

    def _index(self, number: int) -> None:
        for word in self._first(self._words[number]):
            self._with_word[word].append(number)

    def _first(self, words: frozenset[str]) -> list[str]:
        """Words of which at least one is shared with every set that is alike."""
        count = len(words) - math.ceil(self._least * len(words)) + 1
        return sorted(words, key=lambda word: (self._uses[word], word))[:count]
