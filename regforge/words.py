"""Parts of sentences that messages share (lists, times, money, paths); the English of captions."""

from __future__ import annotations

import difflib
import math
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Literal


def listed(names: Collection[str], most: int | None = None, conjunction: str = "and") -> str:
    """Join names as a sentence does: `a, b and c`; with `most`, `a, b and 2,000 more`.

    Empty names are left out.
    """
    shown = [name for name in names if name]
    if most is not None and len(shown) > most:
        return f"{', '.join(shown[:most])} and {len(shown) - most:,} more"
    return f" {conjunction} ".join([", ".join(shown[:-1]), shown[-1]] if shown[1:] else shown)


def counted(number: int, noun: str) -> str:
    """A number and what it counts: `1 image`, `2,000 images`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration(seconds: float) -> str:
    """Such as `8 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def dollars(amount: float | None) -> str:
    """US dollars for people: `$12.30`, `$0.000045`; None is unknown."""
    if amount is None:
        return "unknown"
    if amount == 0 or amount >= 0.0995:
        return f"${amount:,.2f}"
    digits = 1 - math.floor(math.log10(amount))  # two that count, and no exponent
    return f"${amount:.{digits}f}".rstrip("0")


def from_here(path: Path) -> Path:
    """The path as a person in this folder would write it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def nearest(wrong: object, known: Iterable[str]) -> str | None:
    """The known name that was probably meant: one that it begins, or one spelled much like it."""
    spelled = {name.lower(): name for name in known}
    wanted = str(wrong)[:100].strip().lower()
    for spelling in (wanted, wanted.replace("-", "_"), wanted.replace(" ", "-")):
        begun = [name for name in spelled if len(spelling) > 2 and name.startswith(spelling)]
        begun.sort(key=len)
        near = begun or difflib.get_close_matches(spelling, spelled, n=1)
        if near:
            return spelled[near[0]]
    return None


def did_you_mean(wrong: object, known: Iterable[str]) -> str:
    """` Did you mean 'x'?`, to stand after a sentence; empty where nothing is near."""
    near = nearest(wrong, known)
    return f" Did you mean {near!r}?" if near else ""


def path_near(path: Path, pattern: str = "*") -> str | None:
    """`Did you mean FOLDER/x?`, of what lies in a path's folder; None where nothing is near."""
    try:
        near = nearest(path.name, [each.name for each in path.parent.glob(pattern)])
    except (OSError, ValueError):
        return None
    return f"Did you mean {path.parent / near}?" if near else None


def beginning(text: str, most: int = 60) -> str:
    """A text, or of one that is longer than `most` what it begins with, with dots behind."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def first_line(error: BaseException, most: int = 300) -> str:
    """The first line of an error's message without its full stop; its type if it has none."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:most].rstrip(".:")


# How libraries say that a package is missing, the surest first.
_PACKAGE = (
    r"pip install (?:-\S+ )*['\"`]?([\w-]+)",
    r"No module named '(\w+)",
    r"requires the (\w+) library",
    r"need to have (\w+)[^.]* installed",
)


def missing_package(error: BaseException) -> str | None:
    """The package that an error is about because it is not installed; None if it is about more."""
    causes = (error, error.__cause__, error.__context__)
    for pattern in _PACKAGE:
        for cause in filter(None, causes):
            found = re.search(pattern, str(cause), re.IGNORECASE)
            if found and find_spec(found[1].lower().replace("-", "_")) is None:
                return found[1].lower()
    return None


# ------------------------------------------------------------------------------------------ English


Number = Literal["singular", "plural", "mass"]
"""How a noun counts: "a teapot that is", "glasses that are", "water that is"."""

MASS_NOUNS = frozenset(
    "water ice snow rain fog mist steam smoke lava mud sand soil dirt dust gravel clay concrete "
    "cement asphalt glue paint ink wax oil gasoline petrol wine beer champagne whiskey vodka rum "
    "gin sake cider milk cream butter yogurt honey jam syrup sugar salt flour dough rice pasta "
    "spaghetti ramen bread toast cereal granola muesli popcorn cheese tofu meat beef pork bacon "
    "ham seafood chocolate candy food fudge gelato juice lemonade tea coffee cocoa soda broth "
    "gravy ketchup mustard mayonnaise vinegar pesto hummus guacamole salsa spinach kale celery "
    "parsley basil mint cilantro ginger garlic lettuce broccoli corn wheat barley hay straw grass "
    "moss ivy foliage vegetation seaweed algae coral bamboo timber lumber wood firewood leather "
    "fabric cloth cotton wool silk linen denim lace velvet felt yarn thread fur hair paper "
    "cardboard foil plastic rubber metal gold silver steel brass copper bronze granite porcelain "
    "pottery earthenware stoneware glassware silverware cutlery crockery tableware cookware "
    "kitchenware furniture bedding upholstery clothing clothes footwear underwear outerwear "
    "knitwear sportswear headgear jewelry jewellery luggage baggage equipment machinery hardware "
    "gear stationery merchandise money cash art graffiti calligraphy embroidery scenery wildlife "
    "livestock cattle poultry makeup perfume shampoo soap toothpaste laundry rubbish garbage "
    "trash confetti tinsel armor armour playdough slime sushi".split()
)

HUES = frozenset(
    "red orange yellow green blue purple pink violet brown magenta teal turquoise cyan lilac "
    "lavender crimson scarlet maroon burgundy coral salmon peach apricot amber gold golden "
    "mustard lemon lime olive emerald mint sage aqua navy cobalt indigo azure plum mauve rose "
    "rosy ruby cherry wine rust rusty russet chestnut copper bronze tan beige fawn cream caramel "
    "honey chocolate mahogany auburn ginger cinnamon sandy tawny saffron terracotta ocher ochre "
    "khaki tangerine raspberry fuchsia strawberry pistachio blond bay roan dun liver sable calico "
    "tortoiseshell tabby".split()
)
"""Words for colours that are neither black, white, gray nor silver."""

MEDIA = frozenset(
    "art artwork animation anime batik cartoon claymation closeup close-up collage comic "
    "composition cutout depiction diagram diorama doodle drawing engraving etching figurine "
    "fresco frame icon illumination illustration image impression linocut lithograph miniature "
    "model mosaic mural origami page painting panel paperclip papercut pastel photo photograph "
    "picture plate portrait postcard poster print reel relief render rendering scan scene "
    "screenprint screenshot sculpture selfie shot sketch slide snapshot spread sprite stamp "
    "stencil sticker still storyboard study tableau tapestry view vignette visualization "
    "watercolor watercolour wallpaper woodblock woodcut macro polaroid photography carving "
    "embroidery quilt tile graphic lego logo cover card".split()
)
"""Words for kinds of images: what a style that opens a caption ends in, before its "of"."""

_PLURALS = frozenset(
    "people children men women mice geese teeth feet oxen police cattle clothes dice lice".split()
)
_SINGULAR_IN_S = frozenset(
    "bus gas lens canvas atlas iris bias chaos cosmos pancreas christmas bonus minibus trolleybus "
    "omnibus chassis series species albatross rhinoceros hippopotamus thermos pegasus".split()
)


def number_of(noun: str) -> Number:
    """How a noun counts, as its last word tells: "robot toys" is plural, "sea water" a mass."""
    word = noun.casefold().split()[-1] if noun.split() else ""
    last = word.rpartition("-")[2] or word
    if last in MASS_NOUNS and last not in _PLURALS:
        return "mass"
    if last in _PLURALS:
        return "plural"
    ends = last.endswith("s") and not last.endswith(("ss", "us", "is"))
    return "plural" if ends and len(last) > 3 and last not in _SINGULAR_IN_S else "singular"


def folded(text: str) -> str:
    """A text as identifiers and names are compared: full-width, invisible and capital letters gone.

    "\uff33ks" and "s\u200bks" are both "sks".
    """
    if text.isascii():  # most captions
        return text.casefold()
    plain = unicodedata.normalize("NFKC", text)
    return "".join(each for each in plain if unicodedata.category(each) != "Cf").casefold()


def has_words(text: str, words: str) -> bool:
    """Whether words stand in a text as words, `folded`: "cat" not in "caterpillar"."""
    return bool(words.split()) and re.search(_as_words(words), folded(text)) is not None


def still_said(slots: Mapping[str, str | None], text: str) -> dict[str, str | None]:
    """The slots of a caption that was edited: None where it does not say the phrase any more."""
    return {slot: said if said and has_words(text, said) else None for slot, said in slots.items()}


def without_words(text: str, words: str) -> str:
    """A text, `folded`, without words that stand in it as words: "cat" of "sks cat"."""
    return " ".join(re.sub(_as_words(words), " ", folded(text)).split())


def _as_words(words: str) -> str:
    wanted = r"\s+".join(re.escape(word) for word in folded(words).split())
    return rf"(?<!\w){wanted}(?!\w)"


def is_token(identifier: str) -> bool:
    """Whether an identifier is the name of a new token, `<my-cat>`: what is in it are no words."""
    return re.fullmatch(r"<[^<>\s]+>", identifier) is not None


def subject_name(identifier: str | None, class_noun: str) -> str:
    """What captions call the subject, and `{}` stands for: "sks dog"; "dog" without identifier."""
    if identifier and (is_token(identifier) or not has_words(identifier, class_noun)):
        return f"{identifier} {class_noun}"
    return identifier or class_noun


def words_of(text: str) -> list[str]:
    """The words of a text in lower case; "hand-painted" is two."""
    return re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*", text.casefold())


def plain_words(text: str) -> str:
    """List the words of a caption in lower case, with single spaces; equal for duplicates."""
    return re.sub(r"[\W_]+", " ", text.casefold()).strip()


_ARTICLES = {"a", "an", "the"}


def plain(text: str) -> str:
    """Lower case, without hyphens, a leading article or superfluous space."""
    words = text.lower().replace("-", " ").split()
    return " ".join(words[1:] if len(words) > 1 and words[0] in _ARTICLES else words)


def gist(text: str) -> str:
    """The phrase without articles: "on the porch" repeats "on a porch"."""
    return " ".join(word for word in plain(text).split() if word not in _ARTICLES)


_SPELLED_AN = re.compile(
    r"(?:[FHLMNRSX][BCDFGHJ-NP-TV-XZ]*\d*|(?i:rc|suv|led|lcd|mri|rpg|nba|mp3))s?\b"
)
"""What is read letter by letter and begins with the sound of a vowel: "SUV", "LED lamp"."""


def indefinite_article(text: str) -> str:
    """The word "a" or "an", as the first word of the text sounds."""
    word = text.lower()
    if re.match(r"hour|honest|heir|[fhlmnrsx]-|8|1[18](?!\d)", word) or _SPELLED_AN.match(text):
        return "an"
    if re.match(r"uni(?!n|m)|use|one\b|e[uw]|ukulele|u-|u(?:sb|fo|v|rl)s?\b", word):
        return "a"
    return "an" if word[:1] in set("aeiou") else "a"
