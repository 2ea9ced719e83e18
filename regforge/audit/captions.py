"""What is wrong with captions: missing, all the same, too short, of something else, ill-formed.

Looks at texts only. Why it matters: He et al. (arXiv 2311.04315) show that images which all have
the caption "a photo of a teapot" protect little; what protects is many different captions that say
what is in the image.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from statistics import median

from regforge.audit.findings import (
    MOST_EXAMPLES,
    Check,
    Grade,
    of,
    percent,
    ratio,
    shortened,
    worse,
)
from regforge.audit.gathering import Gathered
from regforge.prompts.exclude import plain_words
from regforge.prompts.tokens import TokenBudget

ONE_FOR_ALL = 0.5
"""Share of the most frequent caption above which the set counts as having one caption."""

OFTEN = 0.1
FEW_DISTINCT = 0.2
SHORT = 4
"""Words of the median caption: "a photo of woman" says nothing but the class."""

OTHER_THINGS = 0.05
MANY_WITHOUT = 0.05
MANY_TOO_LONG = 0.1

_FRAME = frozenset(
    "a an the one of photo photograph picture image pic portrait close up shot this is".split()
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffd]")
_WEIGHTED = re.compile(r"\([^()]+:\d*\.?\d+\)|<lora:|\bBREAK\b|\{[^{}]*\|[^{}]*\}")

MULTI_LINE = "several lines"
UNPRINTABLE = "unprintable characters"
SPACES = "spaces at an end"
SYNTAX = "prompt syntax"

_TRAPS: Mapping[str, str] = {
    MULTI_LINE: "kohya reads only the first line; SimpleTuner and OneTrainer take each line as a "
    "caption of its own",
    UNPRINTABLE: "the text was probably saved in another encoding than UTF-8",
    SYNTAX: "weights, LoRA tags and {a|b} are instructions for a user interface; a trainer reads "
    "them as words",
    SPACES: "harmless, and equal captions look different",
}


def counted(found: Gathered) -> Counter[str]:
    """Captions, and how many images have each; without the images that have none."""
    return Counter(text for text in found.texts if text and not text.isspace())


def missing(found: Gathered) -> Check:
    """Images without a caption, or with an empty one."""
    total = len(found.texts)
    without = [n for n, text in enumerate(found.texts) if not text or text.isspace()]
    empty = sum(found.texts[n] is not None for n in without)
    numbers = {"without": len(without), "empty": empty, "share": ratio(len(without), total)}
    if not without:
        return Check("captions", "good", f"All {total:,} images have one.", numbers=numbers)
    grade: Grade = "bad" if len(without) > MANY_WITHOUT * total else "look"
    emptily = f", {empty:,} of them an empty one" if empty else ""
    return Check(
        "captions",
        grade,
        f"{of(len(without), total)} have none{emptily}.",
        "Caption them, or leave them out: kohya trains them on the class alone, OneTrainer on an "
        "empty text, SimpleTuner stops.",
        numbers,
        [found.ids[n] for n in without[:MOST_EXAMPLES]],
    )


def variety(found: Gathered) -> Check:
    """How many different captions there are, and whether one of them is everywhere."""
    counts = counted(found)
    total = counts.total()
    if not total:
        return Check("caption variety", "unknown", "There are no captions.")
    (top, top_count), *_ = counts.most_common(1)
    plain = Counter(" ".join(sorted(plain_words(text).split())) for text in counts)
    near = sum(n - 1 for n in plain.values())
    numbers = {
        "captions": total,
        "distinct": len(counts),
        "distinct_share": ratio(len(counts), total),
        "top": shortened(top),
        "top_count": top_count,
        "top_share": ratio(top_count, total),
        "near_identical": near,
        "effective": round(math.exp(entropy(counts.values())), 1),
    }
    one_for_all = top_count > ONE_FOR_ALL * total and total > 1
    often = top_count > max(1, OFTEN * total)
    few = len(counts) < FEW_DISTINCT * total
    grade: Grade = "bad" if one_for_all else "look" if often or few else "good"
    finding = f"{len(counts):,} different captions for {total:,} images"
    if top_count > 1:
        finding += f"; the most frequent one has {percent(top_count, total)} of them"
    if near:
        finding += f"; {near:,} differ from another only in order, case or punctuation"
    advice = (
        "Naive captions protect little of the class: give the images captions that say what is "
        "in each, or make a set with structured captions."
        if one_for_all
        else "Vary the captions: more phrases in a slot, or fewer images of each caption."
        if grade == "look"
        else ""
    )
    shown = [shortened(text) for text, count in counts.most_common(3) if count > 1]
    return Check("caption variety", grade, finding + ".", advice, numbers, shown)


def length(found: Gathered) -> Check:
    """Words in a caption, and captions that say only the class noun."""
    counts = counted(found)
    total = counts.total()
    if not total:
        return Check("caption length", "unknown", "There are no captions.")
    nouns = {plain_words(noun) for noun in found.nouns if noun}
    words = {text: plain_words(text).split() for text in counts}
    lengths = sorted(len(words[text]) for text in counts.elements())
    bare = [text for text in counts if _says_only(words[text], nouns)]
    bare_count = sum(counts[text] for text in bare)
    middle = median(lengths)
    numbers = {
        "words_min": lengths[0],
        "words_median": middle,
        "words_max": lengths[-1],
        "only_class_noun": bare_count,
        "only_class_noun_share": ratio(bare_count, total),
    }
    grades: list[Grade] = ["look" if middle <= SHORT else "good"]
    finding = f"{lengths[0]} to {lengths[-1]} words, half of them {middle:g} or fewer"
    if lengths[0] == lengths[-1]:
        finding = f"{middle:g} word{'s' * (middle != 1)} each"
    if bare:
        grades.append("bad" if bare_count > ONE_FOR_ALL * total else "look")
        finding += f"; {of(bare_count, total, 'captions')} name the class and say no more"
    grade = worse(*grades)
    advice = "Let captions say what else is in the image: color, place, style." * (grade != "good")
    shown = [shortened(text) for text in bare[:MOST_EXAMPLES]]
    return Check("caption length", grade, finding + ".", advice, numbers, shown)


def class_noun(found: Gathered) -> Check:
    """Captions that do not name what the images show.

    The class noun's last word counts too, and plurals: "ceramic teapot" is named by "two teapots".
    """
    nouns = Counter(noun for noun in found.nouns if noun)
    pairs = [
        (text, noun)
        for text, noun in zip(found.texts, found.nouns, strict=True)
        if text and not text.isspace() and noun
    ]
    if not pairs:
        return Check(
            "class noun",
            "unknown",
            "Nobody says what the images show." if not nouns else "There are no captions.",
            "Name it: regforge audit ... --class-noun woman" if not nouns else "",
        )
    patterns = {noun: _naming(noun) for noun in nouns}
    silent = Counter(text for text, noun in pairs if not patterns[noun].search(plain_words(text)))
    count = silent.total()
    numbers = {
        "class_nouns": dict(nouns.most_common(10)),
        "without": count,
        "share": ratio(count, len(pairs)),
    }
    names = ", ".join(shortened(noun, 40) for noun, _ in nouns.most_common(3))
    if len(nouns) > 3:
        names += f" and {len(nouns) - 3:,} more"
    if not count:
        return Check("class noun", "good", f"Every caption names it: {names}.", numbers=numbers)
    share = count / len(pairs)
    grade: Grade = "bad" if share > ONE_FOR_ALL else "look" if share > OTHER_THINGS else "good"
    return Check(
        "class noun",
        grade,
        f"{of(count, len(pairs), 'captions')} do not name it ({names}).",
        "What a caption does not name, its image does not protect: use the subject's class noun."
        * (grade != "good"),
        numbers,
        [shortened(text) for text, _ in silent.most_common(MOST_EXAMPLES)],
    )


def form(found: Gathered) -> Check:
    """Captions that trainers read otherwise than people do."""
    counts = counted(found)
    total = counts.total()
    if not total:
        return Check("caption format", "unknown", "There are no captions.")
    traps: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for text, count in counts.items():
        for trap in _traps(text):
            traps[trap] += count
            examples.setdefault(trap, text)
    numbers = {trap.replace(" ", "_"): traps[trap] for trap in _TRAPS}
    if not traps:
        return Check("caption format", "good", "One clean line each.", numbers=numbers)
    said = [trap for trap in _TRAPS if traps[trap]]
    return Check(
        "caption format",
        "good" if said == [SPACES] else "look",
        "; ".join(f"{trap}: {of(traps[trap], total, 'captions')}" for trap in said) + ".",
        "; ".join(f"{trap}: {_TRAPS[trap]}" for trap in said) + ".",
        numbers,
        [repr(shortened(examples[trap])) for trap in said],
    )


def tokens(found: Gathered, budget: TokenBudget) -> Check:
    """Captions that the text encoder would cut.

    Args:
        found: The dataset.
        budget: Counts, and knows the limit.
    """
    counts = counted(found)
    total = counts.total()
    if not total:
        return Check("token limit", "unknown", "There are no captions.")
    needed = {text: budget.count(text) for text in counts}
    over = [text for text in counts if needed[text] > budget.limit]
    count = sum(counts[text] for text in over)
    longest = max(needed.values())
    numbers = {
        "limit": budget.limit,
        "over": count,
        "share": ratio(count, total),
        "longest": longest,
        "counted_by": budget.source,
        "estimated": budget.estimated,
    }
    about = "about " if budget.estimated else ""
    who = f"counted by {budget.source}"
    if not over:
        finding = f"The longest caption has {about}{longest} of {budget.limit} tokens, {who}."
        return Check("token limit", "good", finding, numbers=numbers)
    grade: Grade = "look"
    if count > MANY_TOO_LONG * total and not budget.estimated:
        grade = "bad"  # an estimate counts rather too many
    over.sort(key=lambda text: -needed[text])
    return Check(
        "token limit",
        grade,
        f"{of(count, total, 'captions')} have more than {budget.limit} tokens, the longest "
        f"{about}{longest}, {who}.",
        "The text encoder drops their ends, and nothing says so: shorten them.",
        numbers,
        [shortened(text) for text in over[:MOST_EXAMPLES]],
    )


def entropy(counts: Iterable[int]) -> float:
    """Shannon's entropy of a distribution given by counts, in nats."""
    known = [count for count in counts if count]
    total = sum(known)
    return -sum(n / total * math.log(n / total) for n in known) if total else 0.0


def _says_only(words: list[str], nouns: set[str]) -> bool:
    rest = " ".join(word for word in words if word not in _FRAME)
    return not rest or rest in nouns or (not nouns and len(rest.split()) == 1)


def _naming(noun: str) -> re.Pattern[str]:
    head = plain_words(noun).split()[-1:] or [""]
    word = head[0]
    plural = f"|{re.escape(word[:-1])}ies" if word.endswith("y") else ""
    return re.compile(rf"\b(?:{re.escape(word)}(?:e?s)?{plural})\b")


def _traps(text: str) -> list[str]:
    return [
        trap
        for trap, caught in (
            (MULTI_LINE, len(text.strip().splitlines()) > 1),
            (UNPRINTABLE, bool(_CONTROL.search(text))),
            (SYNTAX, bool(_WEIGHTED.search(text))),
            (SPACES, text != text.strip()),
        )
        if caught
    ]
