"""Which of regforge's own bank phrases mean which thing of the tiny world.

The phrase banks know hundreds of places, colours, lights and styles; the world can draw a few
dozen. A keyword decides what a bank phrase comes closest to, so that the embedded pipeline answers
"on a marble kitchen island" with its kitchen. Phrases without a keyword are left out.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import yaml

from . import vocabulary as v

BANKS = Path(__file__).parents[3] / "regforge" / "embedded" / "banks"

PLACES: dict[str, str] = {
    "volcano": "volcan lava crater geyser",
    "space": "moon orbit planet asteroid outer",
    "sea": "underwater reef seabed coral sea aquarium kelp",
    "snow": "snow snowy icy ice frozen glacier ski winter frosty snowfield tundra igloo",
    "cave": "cave cavern grotto tunnel mine catacomb",
    "beach": "beach shore seaside sandbar tide coast coastal surf boardwalk pier harbor jetty dock",
    "desert": "desert dune dunes canyon mesa savanna cactus oasis badlands",
    "library": "library bookshelf bookcase books bookstore bookshop archive study",
    "classroom": "classroom school blackboard chalkboard lecture desk nursery kindergarten",
    "kitchen": "kitchen counter stove pantry dining cafe restaurant bakery table countertop tray "
    "diner cutting sink breakfast tea",
    "bedroom": "bedroom bed pillow nightstand bedside quilt blanket hotel sofa couch rug carpet "
    "living armchair attic closet wardrobe dresser",
    "farm": "farm farmyard barn hay pasture stable orchard vineyard paddock chicken tractor",
    "garden": "garden flower flowers flowerbed greenhouse roses hedge picket tulip lavender patio "
    "sunflower terrace porch",
    "lake": "lake river stream pond creek waterfall marsh canal lakeside riverbank wetland water",
    "mountain": "mountain alpine hill hillside cliff peak ridge summit valley rocky boulder fjord",
    "road": "road highway lane roadside asphalt parking driveway bridge racetrack gravel track "
    "garage",
    "city": "city street sidewalk downtown plaza square alley rooftop skyline urban avenue market "
    "crosswalk subway station corner building town",
    "forest": "forest woods woodland jungle tree trees pine birch mossy log bamboo rainforest "
    "redwood grove trail",
    "meadow": "meadow lawn grass grassy park field prairie picnic clover playground backyard",
    "studio": "studio backdrop white plain seamless pedestal background gallery museum wall shop",
}

LIGHTS: dict[str, str] = {
    "night": "night moonlight moon midnight starlight starry neon lantern candlelight moonlit dark",
    "sunset": "sunset dusk golden sunrise dawn evening amber twilight glow",
    "fog": "fog foggy mist misty haze hazy overcast",
    "day": "daylight midday noon sun sunlight bright studio soft window morning afternoon clear "
    "even diffused natural",
}

STYLES: dict[str, str] = {
    "pixel art": "pixel 8-bit 16-bit voxel sprite mosaic",
    "watercolor": "watercolor gouache oil painting acrylic aquarelle impressionist fresco pastel "
    "ink_wash",
    "sketch": "sketch pencil charcoal drawing line engraving etching crayon linocut woodcut",
    "photo": "photo photograph snapshot shot portrait photography picture image polaroid",
}

COLORS: dict[str, str] = {
    "red": "red crimson scarlet ruby cherry burgundy maroon brick vermilion",
    "orange": "orange tangerine apricot coral rust pumpkin copper ginger amber",
    "yellow": "yellow golden gold mustard lemon honey saffron canary butter brass straw blond",
    "green": "green olive emerald moss sage mint lime jade forest pine",
    "teal": "teal turquoise aqua cyan aquamarine",
    "blue": "blue navy cobalt indigo sapphire azure denim",
    "purple": "purple violet lavender plum lilac mauve aubergine",
    "pink": "pink rose magenta fuchsia blush salmon",
    "brown": "brown chocolate chestnut tan caramel walnut mahogany bronze cinnamon sand fawn",
    "black": "black jet ebony charcoal onyx",
    "white": "white ivory cream pearl snow",
    "gray": "gray grey silver slate ash pewter steel smoky",
}


def _phrases(node: Any) -> list[str]:
    """All phrases in a piece of a bank file: lists of text, or of tables with a `phrase`."""
    if isinstance(node, str):
        return [node]
    if isinstance(node, list):
        return [phrase for item in node for phrase in _phrases(item)]
    if isinstance(node, dict):
        if "phrase" in node:
            return [node["phrase"]]
        return [p for key in ("blocks", "phrases") for p in _phrases(node.get(key))]
    return []


def _sort(phrases: list[str], keywords: dict[str, str]) -> dict[str, list[str]]:
    """Give each phrase to the first meaning one of whose keywords it has as a word."""
    found: dict[str, list[str]] = {meaning: [] for meaning in keywords}
    for phrase in phrases:
        words = set(re.findall(r"[a-z0-9-]+", phrase.lower()))
        for meaning, keys in keywords.items():
            if words & set(keys.split()):
                found[meaning].append(phrase)
                break
    return found


@functools.cache
def _read(name: str) -> Any:
    return yaml.safe_load((BANKS / f"{name}.yaml").read_text())


def _slot(slot: str) -> list[str]:
    """A slot's phrases over the super-categories that the world draws."""
    files = ("animal", "rigid_object", "toy", "vehicle", "wearable", "food", "furniture")
    return [p for name in files for p in _phrases(_read(name).get(slot, []))]


@functools.cache
def places() -> dict[str, list[str]]:
    """Bank places by the world's place, e.g. kitchen -> ['on a tiled kitchen counter', ...]."""
    return _sort(_phrases(_read("places")), PLACES)


@functools.cache
def lights() -> dict[str, list[str]]:
    """Bank lights by the world's light."""
    return _sort(_phrases(_read("lighting")), LIGHTS)


@functools.cache
def styles() -> dict[str, list[str]]:
    """Bank styles by the world's style, with the 'of' that follows."""
    found = _sort(_phrases(_read("styles")), STYLES)
    return {style: [f"{p} of" for p in phrases] for style, phrases in found.items()}


@functools.cache
def colors() -> dict[str, list[str]]:
    """Bank colours by the world's colour."""
    return _sort(sorted(set(_slot("color"))), COLORS)


@functools.cache
def unseen_adjectives() -> tuple[str, ...]:
    """Shapes and materials that the world cannot draw."""
    drawn = {w for group in (v.SIZES, v.TEXTURES) for words in group.values() for w in words}
    drawn |= {"oversized", "compact", "miniature", "petite", "plaid", "plump", "bulky", "massive"}
    drawn |= {word for words in v.COLORS.values() for word in words[1]}
    phrases = {*_slot("shape"), *_slot("texture")}
    return tuple(sorted(p for p in phrases if not drawn & set(re.split(r"[ -]", p))))


@functools.cache
def all_text() -> tuple[str, ...]:
    """Every phrase of every bank, for the tokenizer."""
    files = sorted(p.stem for p in BANKS.glob("*.yaml"))
    shared = [p for name in ("places", "lighting", "styles") for p in _phrases(_read(name))]
    slots = ("shape", "color", "texture", "motion")
    own = [p for name in files for slot in slots for p in _phrases(_read(name).get(slot, []))]
    return tuple(sorted({*shared, *own}))
