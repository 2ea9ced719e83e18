"""The English that caption surgery needs: word lists, and a caption cut into words.

Captions are short and plain, so a few closed classes (determiners, prepositions, ...) and the
adjectives of the phrase banks tell where a noun phrase begins and ends.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from regforge.embedded import phrase_banks
from regforge.prompts.captions import noun_pattern, word_pattern

INDEFINITE = frozenset("a an one another some each every any".split())
DEFINITE = frozenset("the this that my our your his her its their these those".split())
NUMERALS = frozenset("two three four five six seven eight several many both".split())
DETERMINERS = INDEFINITE | DEFINITE | NUMERALS
PRONOUNS = frozenset("it she he they who which that this".split())
COPULAS = frozenset(
    "is are was were be been being looks look appears appear seems seem stays remains has have "
    "had features sports".split()
)
CONJUNCTIONS = frozenset("and or & but while whereas".split())
PREPOSITIONS = frozenset(
    "about above across after against along alongside amid among around as at atop before behind "
    "below beneath beside besides between by during for from in inside into like near next of "
    "off on onto over past per than through to toward towards under underneath up upon via with "
    "within without".split()
)
MEDIA = frozenset(
    "artwork cartoon closeup close-up drawing illustration image painting photo photograph "
    "photography picture pic portrait poster render rendering scene selfie shot sketch snapshot "
    "still view".split()
)
"""What a caption opens with: no adjective either."""

BOUNDARIES = (
    CONJUNCTIONS
    | PREPOSITIONS
    | COPULAS
    | MEDIA
    | frozenset("who which where named called nicknamed labelled labeled titled".split())
)
"""Words that no noun phrase holds before its noun."""

HUES = frozenset(
    "red orange yellow green blue purple pink brown black white gray grey beige tan cream ivory "
    "teal turquoise cyan magenta violet lavender lilac maroon burgundy crimson scarlet gold "
    "golden silver bronze copper navy olive khaki indigo mauve coral salmon peach amber ginger "
    "charcoal fawn auburn chestnut blonde blond brunette multicolored multicoloured colorful "
    "colourful rainbow tabby calico tortoiseshell brindle taupe russet mustard aqua fuchsia "
    "ochre terracotta pale-skinned two-tone".split()
)
HAIR_HUES = HUES | frozenset("dark light fair greying graying platinum streaked dyed".split())
HAIRY = frozenset("blonde blond brunette redhead redheaded ginger bald balding shaved".split())
"""Words that say a person's hair all by themselves."""

HAIR = frozenset(
    "hair beard mustache moustache goatee stubble ponytail ponytails pigtails braid braids bun "
    "curls locks bangs fringe hairstyle haircut dreadlocks afro bob wig".split()
)
BODIES = frozenset(
    "body fur coat exterior surface finish color colour colors colours coloring colouring paint "
    "paintwork hull shell casing skin feathers plumage bodywork hide mane material pattern "
    "patterns design texture shape form appearance wool fleece fabric outside glaze finish sheen "
    "luster lustre".split()
)
"""Nouns whose attributes are those of the whole thing."""

MARKS = frozenset("stripes stripe spots spot dots patches patch markings checks polka".split())
BUILDS = frozenset("build figure frame body physique stature silhouette".split())
GARMENTS = frozenset(
    "wearing wears wore worn dressed clad clothed clothes clothing outfit outfits attire garment "
    "uniform costume dress gown skirt shirt t-shirt tshirt blouse sweater jumper hoodie cardigan "
    "jacket coat blazer suit vest tie pants trousers jeans shorts leggings tights stockings "
    "socks shoes boots sneakers heels sandals hat cap beanie helmet scarf gloves apron robe "
    "kimono swimsuit bikini lingerie underwear pajamas overalls jumpsuit sweatshirt sweatpants "
    "top tank-top crop-top turtleneck tuxedo sari saree veil cape cloak armor armour naked nude "
    "shirtless topless barefoot bare-chested tracksuit polo tunic raincoat parka poncho serafuku "
    "sleeves sleeveless collared off-shoulder bathrobe hijab burqa bodysuit leotard corset "
    "camisole nightgown pyjamas slippers bowtie necktie scrubs jersey swimwear sportswear".split()
)
_FORMS = frozenset(
    "small large big little tiny huge giant tall short long thin thick slim slender fat chubby "
    "plump round rounded square rectangular oval cylindrical spherical boxy compact wide narrow "
    "curved flat bulky massive miniature medium-sized mid-sized oversized stocky muscular "
    "athletic petite skinny lean cube-shaped heart-shaped".split()
)
_SURFACES = frozenset(
    "glossy matte shiny smooth rough wooden metal metallic plastic ceramic glass leather "
    "porcelain striped spotted dotted checkered chequered plaid floral patterned painted "
    "polished rusty rusted weathered worn scratched cracked chipped fluffy furry fuzzy shaggy "
    "curly woolly knitted plush velvet denim cotton silk satin transparent translucent sparkly "
    "glittery stone marble brick rubber steel iron brass aluminum aluminium cardboard paper felt "
    "stuffed embroidered textured soft hairy sleek silky speckled mottled wood clay vinyl".split()
)
_OTHER_ADJECTIVES = frozenset(
    "old new young younger elderly aged middle-aged adult cute beautiful pretty handsome lovely "
    "adorable happy sad angry funny strange odd unusual nice good fine best bright dark light "
    "deep pale vivid soft warm cool plain simple fancy fresh dirty clean wet dry broken empty "
    "full open closed single lone vintage antique retro modern classic traditional elegant "
    "rustic toy real realistic cool-looking friendly playful curious fierce wild domestic male "
    "female african asian european american indian chinese japanese korean russian caucasian "
    "hispanic latina latino famous favorite favourite special own various lovely realistic "
    "detailed highly very quite somewhat mostly partly mainly predominantly primarily entirely "
    "completely slightly smiling sleeping sitting standing running shining gleaming glowing "
    "sparkling flying high-quality well-known ordinary typical chubby tired brave gentle "
    "majestic cheerful serious expressive attractive confident wavy straight frizzy messy bushy "
    "wispy braided tousled sunny rainy snowy grassy rocky sandy dusty foggy misty cloudy cozy "
    "mossy leafy muddy".split()
)
_OTHER_ADJECTIVES |= HAIR_HUES
_NOUNS = frozenset(
    "finish fish goldfish starfish jellyfish dish radish family belly jelly lily butterfly fly "
    "ally assembly handful spoonful mouthful".split()
)
"""Nouns that end as adjectives do."""
# What follows a noun and is no part of its phrase, though it looks like a describing word.
_PREDICATES = frozenset(
    "alone asleep awake dressed seated made held placed set seen shown displayed surrounded "
    "perched sat stood lay ran walked slept looked held wore outside outdoors indoors inside "
    "covered filled captured taken covering up down there here today lit close out smiles not "
    "also can will does did tied wrapped parked mounted hung posed caught left found".split()
)
_FUNCTION = BOUNDARIES | DETERMINERS | frozenset("dressed high made finish paint".split())
_WORD = re.compile(r"[^\W_](?:[\w.'’-]*\w)?|['’]s\b", re.UNICODE)


@functools.cache
def _bank_words() -> dict[str, frozenset[str]]:
    """The words of the banks' attributes, by slot; a hyphen joins them as in the banks."""
    banks = phrase_banks.load()
    found = {}
    for slot in ("shape", "texture"):
        names = [name for name in banks.super_categories if name != "person" or slot == "shape"]
        texts = [each.text.lower() for name in names for each in banks.phrases(slot, name)]
        words = {word for text in texts for word in text.split() if not word.endswith("ly")}
        found[slot] = frozenset(words) - _FUNCTION
    return found


def is_hue(word: str) -> bool:
    """Tell whether a word names a colour: "teal", "sky-blue", "cream-colored"."""
    if word in HUES or word.endswith(("-colored", "-coloured", "-toned")):
        return True
    return re.split(r"[^\w'’]+|_", word.rstrip("-_"))[-1] in HUES


def is_form(word: str) -> bool:
    """Tell whether a word names a size or shape."""
    return word in _FORMS or word in _bank_words()["shape"]


def is_surface(word: str) -> bool:
    """Tell whether a word names a texture, pattern or material."""
    return word in _SURFACES or word in _bank_words()["texture"]


def is_adjective(word: str) -> bool:
    """Tell whether a word can stand before a noun and describe it."""
    if word in _NOUNS:
        return False
    if word in _OTHER_ADJECTIVES or is_hue(word) or is_form(word) or is_surface(word):
        return True
    return word.endswith(("ish", "ful", "less", "ous", "ly", "-like", "'s", "’s")) or "-" in word


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a caption, and the place of its characters.

    Attributes:
        gap: The punctuation between it and the word before, without white space.
        kind: `identifier`, `noun` (the class noun), or empty.
    """

    text: str
    start: int
    end: int
    gap: str
    kind: str = ""

    @property
    def lower(self) -> str:
        """The text in lower case."""
        return self.text.lower()


def words_of(caption: str, class_noun: str, identifier: str | None) -> list[Word]:
    """Cut a caption into words; the identifier and the class noun are one word each.

    An underscore counts as a space: "sks_robot_toy".
    """
    text = caption.replace("_", " ")
    spans: list[tuple[int, int, str]] = []
    if identifier:
        named = word_pattern(identifier.replace("_", " "))
        spans += [(*found.span(), "identifier") for found in named.finditer(text)]
    taken = {place for start, end, _ in spans for place in range(start, end)}
    for found in noun_pattern(class_noun).finditer(text):
        joined = text[found.start() - 1 : found.start()] == "-" or text[found.end() :][:1] == "-"
        if not joined and not taken.intersection(range(*found.span())):
            spans.append((*found.span(), "noun"))
            taken.update(range(*found.span()))
    free = "".join(" " if place in taken else char for place, char in enumerate(text))
    spans += [(*found.span(), "") for found in _WORD.finditer(free)]
    words: list[Word] = []
    before = 0
    for start, end, kind in sorted(spans):
        gap = "".join(text[before:start].split())
        words.append(Word(caption[start:end], start, end, gap, kind))
        before = end
    return words


def ends_phrase(words: Sequence[Word], place: int) -> bool:
    """Tell whether the word at a place cannot stand in a noun phrase before the noun.

    Verbs are told by their ending: "a man holding", "a man rides". An "-ing" word behind a
    determiner or another describing word describes: "a sleeping cat".
    """
    word = words[place].lower
    if (word == "sports" or word not in BOUNDARIES | DETERMINERS) and _is_first_half(words, place):
        return False
    if word in BOUNDARIES or word in DETERMINERS or word in _PREDICATES:
        return True
    if word.endswith("ing") or is_adjective(word):
        return word.endswith("ing") and not _describes(words, place)
    return len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "'s", "’s"))


def _is_first_half(words: Sequence[Word], place: int) -> bool:
    """Whether a word in "s" is the first half of a noun, and no verb: "a red sports car"."""
    if not 0 < place < len(words) - 1 or words[place].gap or words[place + 1].gap:
        return False
    ahead = words[place - 1]
    describes = (
        ahead.kind == "identifier" or ahead.lower in DETERMINERS or is_adjective(ahead.lower)
    )
    return describes and words[place + 1].kind == "noun" and words[place].lower.endswith("s")


def _describes(words: Sequence[Word], place: int) -> bool:
    """Whether an "-ing" word has something before it that a description follows."""
    if place == 0 or words[place].gap:
        return True
    ahead = words[place - 1].lower
    return ahead in DETERMINERS or ahead in BOUNDARIES or is_adjective(ahead)


def begins_sentence(words: Sequence[Word], place: int) -> bool:
    """Tell whether a word is the first of a sentence."""
    return place == 0 or bool(set(".!?") & set(words[place].gap))
