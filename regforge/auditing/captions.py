"""What is wrong with captions: missing, all the same, too short, of something else, ill-formed.

Looks at texts only. Why it matters: He et al. (arXiv 2311.04315) show that images which all have
the caption "a photo of a teapot" protect little; what protects is many different captions that say
what is in the image.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from statistics import median

from regforge.auditing.gathering import (
    MOST_EXAMPLES,
    Check,
    Gathered,
    Grade,
    graded,
    of,
    percent,
    ratio,
    shortened,
    worse,
)
from regforge.embedded import phrase_banks
from regforge.prompts.tokens import TokenBudget
from regforge.words import plain_words

ONE_FOR_ALL = 0.5
"""Share of the most frequent caption above which the set counts as having one caption."""

OFTEN = 0.1
FEW_DISTINCT = 0.2
SHORT = 4
"""Words of the median caption: "a photo of woman" says nothing but the class."""

OTHER_THINGS = 0.05
MANY_WITHOUT = 0.05
MANY_TOO_LONG = 0.1

FEW_WORDS = 6
SOME_WORDS = 12
"""Effective words of a set that says almost nothing ("a photo of a woman" has 4), and little."""

SELDOM = 0.1
"""Share of captions below which a set counts as not saying such a thing."""

_FRAME = frozenset(
    "a an the one of photo photograph picture image pic portrait close up shot this is".split()
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffd]")
_WEIGHTED = re.compile(r"\([^()]+:\d*\.?\d+\)|<lora:|\bBREAK\b|\{[^{}]*\|[^{}]*\}")

# Each trap with what it does, in the order in which they are named.
_TRAPS: Mapping[str, str] = {
    "several lines": "kohya reads only the first line; SimpleTuner and OneTrainer take each line "
    "as a caption of its own",
    "unprintable characters": "the text was probably saved in another encoding than UTF-8",
    "prompt syntax": "weights, LoRA tags and {a|b} are instructions for a user interface; a "
    "trainer reads them as words",
    "spaces at an end": "harmless, and equal captions look different",
}


def caption_checks(found: Gathered, budget: TokenBudget) -> Iterator[Check]:
    """All checks of captions, slots apart."""
    yield _missing(found)
    checks: dict[str, Callable[[Gathered], Check]] = {
        "caption variety": _variety,
        "caption length": _length,
        "class noun": _class_noun,
        "caption format": _form,
        "token limit": functools.partial(_tokens, budget=budget),
    }
    for name, check in checks.items():
        if found.captions or (name == "class noun" and not any(found.nouns)):
            yield check(found)
        else:
            yield Check(name, "unknown", "There are no captions.")


def _missing(found: Gathered) -> Check:
    total = len(found.texts)
    without = [n for n, text in enumerate(found.texts) if not text or text.isspace()]
    empty = sum(found.texts[n] is not None for n in without)
    numbers = {"without": len(without), "empty": empty, "share": ratio(len(without), total)}
    if not without:
        return Check("captions", "good", f"All {total:,} images have one.", numbers=numbers)
    emptily = f", {empty:,} of them an empty one" if empty else ""
    return Check(
        "captions",
        graded(len(without), total, MANY_WITHOUT),
        f"{of(len(without), total)} have none{emptily}.",
        "Caption them, or leave them out: kohya trains them on the class alone, OneTrainer on an "
        "empty text, SimpleTuner stops.",
        numbers,
        [found.ids[n] for n in without[:MOST_EXAMPLES]],
    )


def _variety(found: Gathered) -> Check:
    """How many different captions there are, and whether one of them is everywhere."""
    counts, total = found.captions, found.captions.total()
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
    grade: Grade = "good"
    finding, advice = f"{len(counts):,} different captions for {total:,} images", ""
    if top_count > 1:
        finding += f"; the most frequent one has {percent(top_count, total)} of them"
    if near:
        finding += f"; {near:,} differ from another only in order, case or punctuation"
    if top_count > ONE_FOR_ALL * total and total > 1:
        grade = "bad"
        advice = (
            "Naive captions protect little of the class: give the images captions that say what is "
            "in each, or make a set with structured captions."
        )
    elif top_count > max(1, OFTEN * total) or len(counts) < FEW_DISTINCT * total:
        grade = "look"
        advice = "Vary the captions: more phrases in a slot, or fewer images of each caption."
    shown = [shortened(text) for text, count in counts.most_common(3) if count > 1]
    return Check("caption variety", grade, finding + ".", advice, numbers, shown)


def _length(found: Gathered) -> Check:
    """Words in a caption, and captions that say only the class noun."""
    counts, total = found.captions, found.captions.total()
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
    grade: Grade = "look" if middle <= SHORT or bare else "good"
    finding = f"{lengths[0]} to {lengths[-1]} words, half of them {middle:g} or fewer"
    if lengths[0] == lengths[-1]:
        finding = f"{middle:g} word{'s' * (middle != 1)} each"
    if bare:
        grade = "bad" if bare_count > ONE_FOR_ALL * total else "look"
        finding += f"; {of(bare_count, total, 'captions')} name the class and say no more"
    advice = "Let captions say what else is in the image: color, place, style." * (grade != "good")
    shown = [shortened(text) for text in bare[:MOST_EXAMPLES]]
    return Check("caption length", grade, finding + ".", advice, numbers, shown)


def _says_only(words: list[str], nouns: set[str]) -> bool:
    rest = " ".join(word for word in words if word not in _FRAME)
    return not rest or rest in nouns or (not nouns and len(rest.split()) == 1)


def _class_noun(found: Gathered) -> Check:
    """Captions that do not name what the images show.

    The class noun's last word counts too, and plurals: "ceramic teapot" is named by "two teapots".
    """
    nouns = Counter(noun for noun in found.nouns if noun)
    if not nouns:
        advice = "Name it: regforge audit ... --class-noun woman"
        return Check("class noun", "unknown", "Nobody says what the images show.", advice)
    pairs = [
        (text, noun)
        for text, noun in zip(found.texts, found.nouns, strict=True)
        if text and text in found.captions and noun
    ]
    if not pairs:
        return Check("class noun", "unknown", "There are no captions.")
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
    finding = f"{of(count, len(pairs), 'captions')} do not name it ({names})."
    if not count:
        finding = f"Every caption names it: {names}."
    share = count / len(pairs)
    grade: Grade = "bad" if share > ONE_FOR_ALL else "look" if share > OTHER_THINGS else "good"
    advice = "What a caption does not name, its image does not protect: use the subject's class "
    advice = f"{advice}noun." * (grade != "good")
    shown = [shortened(text) for text, _ in silent.most_common(MOST_EXAMPLES)]
    return Check("class noun", grade, finding, advice, numbers, shown)


def _naming(noun: str) -> re.Pattern[str]:
    word = (plain_words(noun).split()[-1:] or [""])[0]
    plural = f"|{re.escape(word[:-1])}ies" if word.endswith("y") else ""
    return re.compile(rf"\b(?:{re.escape(word)}(?:e?s)?{plural})\b")


def _form(found: Gathered) -> Check:
    """Captions that trainers read otherwise than people do."""
    traps: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for text, count in found.captions.items():
        caught = (
            len(text.strip().splitlines()) > 1,
            _CONTROL.search(text),
            _WEIGHTED.search(text),
            text != text.strip(),
        )
        for trap in (trap for trap, is_caught in zip(_TRAPS, caught, strict=True) if is_caught):
            traps[trap] += count
            examples.setdefault(trap, text)
    numbers = {trap.replace(" ", "_"): traps[trap] for trap in _TRAPS}
    seen = [trap for trap in _TRAPS if traps[trap]]
    if not seen:
        return Check("caption format", "good", "One clean line each.", numbers=numbers)
    grade: Grade = "good" if seen == ["spaces at an end"] else "look"
    total = found.captions.total()
    finding = "; ".join(f"{trap}: {of(traps[trap], total, 'captions')}" for trap in seen)
    advice = "; ".join(f"{trap}: {_TRAPS[trap]}" for trap in seen)
    shown = [repr(shortened(examples[trap])) for trap in seen]
    return Check("caption format", grade, f"{finding}.", f"{advice}.", numbers, shown)


def _tokens(found: Gathered, budget: TokenBudget) -> Check:
    """Captions that the text encoder would cut."""
    counts, total = found.captions, found.captions.total()
    needed = {text: budget.count(text) for text in counts}
    over = sorted((t for t in counts if needed[t] > budget.limit), key=lambda t: -needed[t])
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
    about, limit = "about " if budget.estimated else "", f"{budget.limit} tokens"
    finding = f"The longest caption has {about}{longest} of {limit}"
    if over:
        have = f"{of(count, total, 'captions')} have more than {limit}"
        finding = f"{have}, the longest {about}{longest}"
    # An estimate counts rather too many.
    grade = graded(count, total, 1.0 if budget.estimated else MANY_TOO_LONG)
    advice = "The text encoder drops their ends, and nothing says so: shorten them." * bool(over)
    shown = [shortened(text) for text in over[:MOST_EXAMPLES]]
    finding += f", counted by {budget.source}."
    return Check("token limit", grade, finding, advice, numbers, shown)


def entropy(counts: Iterable[int]) -> float:
    """Shannon's entropy of a distribution given by counts, in nats."""
    known = [count for count in counts if count]
    total = sum(known)
    return -sum(n / total * math.log(n / total) for n in known) if total else 0.0


# -------------------------------------------------------------------------- captions without slots
#
# A color, a place and a style are looked for with the words of the shipped phrase banks: the last
# word of every color ("cherry red"), the last word of every place behind a preposition ("on an
# empty beach"), the last word of every style but "photo" ("a loose watercolor sketch of"). A rule
# of thumb: it overlooks words that no bank has.

_REACH = 6  # words behind a preposition among which a place is looked for
_NO_COLORS = frozenset(
    "colored haired marked toned tone browned colorful "
    "bright dark deep fair light pale vivid".split()
)
_PLAIN_COLORS = frozenset("red orange yellow green blue purple pink brown grey".split())
_NO_STYLES = frozenset("photo photograph picture shot snapshot still".split())


def word_coverage(found: Gathered) -> Check:
    """How rich the captions' words are, and what they say.

    Effective words are the exponential of Shannon's entropy of the words: as many words, used
    equally often, would be as rich (Hill number of order 1; Jost, Oikos 113, 2006).
    """
    if not found.captions:
        return Check("word coverage", "unknown", "There are no captions.")
    total = found.captions.total()
    words: Counter[str] = Counter()
    values: dict[str, Counter[str]] = {slot: Counter() for slot in ("color", "place", "style")}
    for text, count in found.captions.items():
        spoken = plain_words(text).split()
        for word in spoken:
            words[word] += count
        for slot, value in _slots_in(spoken).items():
            values[slot][value] += count
    says = {slot: counts.total() for slot, counts in values.items()}
    effective = math.exp(entropy(words.values()))
    numbers = {
        "words": words.total(),
        "distinct_words": len(words),
        "type_token_ratio": ratio(len(words), words.total()),
        "evenness": round(math.log(effective) / math.log(len(words)), 3) if len(words) > 1 else 0.0,
        "effective_words": round(effective, 1),
        "says": {slot: ratio(count, total) for slot, count in says.items()},
        "most_said": {slot: dict(counts.most_common(5)) for slot, counts in values.items()},
    }
    nothing = all(count < SELDOM * total for count in says.values())
    look: Grade = "look" if nothing or effective < SOME_WORDS else "good"
    grade = worse(look, "bad" if effective < FEW_WORDS else "good")
    shares = ", ".join(f"a {slot} {percent(count, total)}" for slot, count in says.items())
    tops = {slot: [word for word, _ in counts.most_common(4)] for slot, counts in values.items()}
    return Check(
        "word coverage",
        grade,
        f"{len(words):,} different words, as rich as {effective:.0f} used equally often; of "
        f"{total:,} captions {shares}.",
        "Captions hardly differ in what they say: vary color, place and style." * (grade != "good"),
        numbers,
        [f"{slot}: {', '.join(top)}" for slot, top in tops.items() if top],
    )


def _slots_in(words: list[str]) -> Mapping[str, str]:
    """The first color, place and style that a caption says."""
    lexicon = _lexicon()
    found: dict[str, str] = {}
    for number, word in enumerate(words):
        for slot in ("color", "style"):
            if word in lexicon[slot]:
                found.setdefault(slot, word)
        if word in lexicon["preposition"]:
            near = words[number + 1 : number + 1 + _REACH]
            if place := next((each for each in near if each in lexicon["place"]), None):
                found.setdefault("place", place)
    return found


@functools.cache
def _lexicon() -> Mapping[str, set[str]]:
    banks = phrase_banks.load()

    def phrases(slot: str) -> list[list[str]]:
        texts = {p.text for name in banks.super_categories for p in banks.phrases(slot, name)}
        return [plain_words(text).split() for text in texts]

    def last(slot: str, besides: frozenset[str] = frozenset()) -> set[str]:
        endings = (next((w for w in reversed(p) if w not in besides), "") for p in phrases(slot))
        return set(endings) - {""}

    return {
        "color": last("color", _NO_COLORS) | _PLAIN_COLORS,
        "place": last("background"),
        "preposition": {words[0] for words in phrases("background")},
        "style": last("style") - _NO_STYLES,
    }
