"""What an image shows (`Spec`), drawn at random or put into words.

Captions follow the grammar of regforge's caption templates,
`{style} {size} {color} {texture} {class noun} {motion} {place} {light}`, with paraphrases, left-out
slots and moved clauses, so that a model trained on them is not tied to one wording.
"""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import dataclass, replace

from . import banks
from . import vocabulary as v


@dataclass(frozen=True)
class Spec:
    """One image's content. Slots that are None are left to the drawing (or absent)."""

    class_noun: str
    place: str
    color: str | None = None
    texture: str | None = None
    size: str | None = None
    motion: str | None = None
    light: str = "day"
    style: str = "photo"

    @property
    def held_out(self) -> bool:
        """Whether this (class, place, style) is one of the 10 % never shown in training."""
        key = f"{self.class_noun}|{self.place}|{self.style}".encode()
        return hashlib.sha256(key).digest()[0] % 10 == 0


def random_spec(rng: random.Random, *, held_out: bool | None = False) -> Spec:
    """Draw a spec. `held_out` False: training combinations, True: held-out ones, None: any."""
    while True:
        class_noun = rng.choice(list(v.CLASS_NOUNS))
        spec = Spec(
            class_noun=class_noun,
            place=rng.choice(list(v.PLACES)),
            color=rng.choice(list(v.COLORS)) if rng.random() < 0.5 else None,
            texture=rng.choice(list(v.TEXTURES)) if rng.random() < 0.15 else None,
            size=rng.choice(list(v.SIZES)) if rng.random() < 0.25 else None,
            motion=rng.choice(list(v.MOTIONS))
            if class_noun in v.LIVING and rng.random() < 0.35
            else None,
            light=rng.choices(list(v.LIGHTS), [0.64, 0.12, 0.12, 0.12])[0],
            style=rng.choices(list(v.STYLES), [0.58, 0.14, 0.14, 0.14])[0],
        )
        if held_out is None or spec.held_out == held_out:
            return spec


def article(phrase: str) -> str:
    """'a' or 'an' before `phrase`; nothing before a pair ("glasses")."""
    if phrase.rsplit(maxsplit=1)[-1] in ("glasses", "sunglasses") and "pair of" not in phrase:
        return ""
    return "an " if phrase[0] in "aeiou" else "a "


def caption(spec: Spec, noun: str | None = None) -> str:
    """The canonical caption, e.g. 'a photo of a red striped teapot on a beach at sunset'."""
    words = [
        v.SIZES[spec.size][0] if spec.size else "",
        v.COLORS[spec.color][1][0] if spec.color else "",
        v.TEXTURES[spec.texture][0] if spec.texture else "",
        noun or v.CLASS_NOUNS[spec.class_noun][0],
    ]
    subject = " ".join(w for w in words if w)
    parts = [
        v.STYLES[spec.style][0],
        article(subject) + subject,
        v.MOTIONS[spec.motion][0] if spec.motion else "",
        v.PLACES[spec.place][0],
        v.LIGHTS[spec.light][0],
    ]
    return " ".join(p for p in parts if p)


def _forget(spec: Spec, rng: random.Random) -> Spec:
    """Leave some slots out, as short user prompts do."""
    if rng.random() < 0.06:
        return replace(spec, color=None, texture=None, size=None, motion=None, light="day")
    keep: dict[str, str | None] = {}
    for slot in ("color", "texture", "size", "motion"):
        if rng.random() < 0.05:
            keep[slot] = None
    return replace(spec, **keep)


def _pick(phrases: list[str], others: list[str], rng: random.Random) -> str:
    """The canonical phrase (45 %), one of its paraphrases, or a bank phrase (25 % if any)."""
    chance = rng.random()
    if others and chance < 0.25:
        return rng.choice(others)
    return phrases[0] if chance < 0.7 else rng.choice(phrases)


@dataclass(frozen=True)
class Caption:
    """A caption's text, and the spec that it tells: left-out slots are None, `place` is ''."""

    text: str
    tells: Spec


def varied_caption(spec: Spec, rng: random.Random) -> Caption:
    """A paraphrased caption of `spec`: other words, other order, some slots left out.

    Every word is an English one: no made-up word stands before drawings here, or a pipeline
    trained on these captions would have learned to ignore personalization identifiers.

    Args:
        spec: What the image shows.
        rng: Source of all choices.
    """
    spec = _forget(spec, rng)
    noun = _pick(v.CLASS_NOUNS[spec.class_noun], [], rng)
    words = [_pick(v.SIZES[spec.size], [], rng)] if spec.size else []
    look = []
    if spec.color:
        look.append(_pick(v.COLORS[spec.color][1], banks.colors()[spec.color], rng))
    if spec.texture:
        look.append(_pick(v.TEXTURES[spec.texture], [], rng))
    if rng.random() < 0.1:
        look.reverse()
    words += look
    after = ""
    if words and rng.random() < 0.2:  # "a cat that is red", "a cat, small and red,"
        told = " and ".join([", ".join(words[:-1]), words[-1]]) if words[1:] else words[0]
        after = f"that is {told}" if rng.random() < 0.5 else f", {told},"
        words = []
    if rng.random() < 0.12:  # an adjective the world cannot draw
        words.insert(rng.randrange(len(words) + 1), rng.choice(banks.unseen_adjectives()))
    subject = " ".join([*words, noun])
    subject = ("" if rng.random() < 0.06 else article(subject)) + subject
    place = _pick(v.PLACES[spec.place], banks.places()[spec.place], rng)
    if rng.random() < 0.05:
        place, spec = "", replace(spec, place="")
    light = _pick(v.LIGHTS[spec.light], banks.lights()[spec.light], rng)
    motion = _pick(v.MOTIONS[spec.motion], [], rng) if spec.motion else ""
    style = _pick(v.STYLES[spec.style], banks.styles()[spec.style], rng)
    if spec.style == "photo" and rng.random() < 0.15:
        style = ""
    if place and not style and rng.random() < 0.3:
        scene = " ".join(p for p in (place, light) if p)
        text = " ".join(p for p in (scene + ",", subject, after, motion) if p)
        return Caption(_tidy(text), spec)
    comma = "," if light and rng.random() < 0.4 else ""
    text = " ".join(p for p in (style, subject, after, motion, place) if p)
    return Caption(_tidy(text + comma + (f" {light}" if light else "")), spec)


def _tidy(text: str) -> str:
    """Commas close up to the word before them, one at a time, none at the end."""
    return re.sub(r"(\s*,)+", ",", text).rstrip(",")
