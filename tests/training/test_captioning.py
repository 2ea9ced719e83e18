"""What an example says: dropout of captions and slots, and the wording of tight crops."""

import functools
import itertools
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_rows import make_row
from small_training import Built, class_images, color_of, make_image, photos

from regforge.dataset.store import RowWriter
from regforge.files import templates_folder
from regforge.prompts.captions import CaptionTemplate
from regforge.records import ImageRow
from regforge.training.augmentation import Caption, Captioning, Composer, close_up
from regforge.training.batches import Draw, Stream

SLOTS = ("color", "texture", "background", "lighting", "style")
COLORS, TEXTURES = ("red", "olive green"), ("striped", None)
PLACES, LIGHTS = ("on a beach", "in an office"), ("at sunset", None)
STREAMS: tuple[Stream, ...] = ("class", "instance")
STYLES = ("a photo", "an oil painting", "in the style of Monet", None)


def captioning(
    caption: float = 0.0, slot: float = 0.0, *, wording: bool = True, seed: int = 0
) -> Captioning:
    return Captioning(seed, caption, slot, wording)


def draws(stream: Stream = "class", count: int = 4000) -> list[Draw]:
    return [Draw(stream, number, 0) for number in range(count)]


def varied(of: Captioning, caption: Caption, *args: Any, tight: bool = False) -> list[str]:
    return [of.vary(each, caption, tight=tight) for each in draws(*args)]


def within(count: int, trials: int, rate: float) -> bool:
    """Whether a count is within five standard deviations of its expectation."""
    return abs(count - trials * rate) <= 5 * math.sqrt(trials * rate * (1 - rate))


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("rate", [0.0, 0.05, 0.5, 1.0])
def test_captions_are_dropped_as_often_as_asked(stream: Stream, rate: float) -> None:
    texts = varied(captioning(rate), Caption("a teapot"), stream)
    assert set(texts) <= {"", "a teapot"}
    assert within(texts.count(""), 4000, rate)
    assert varied(captioning(rate), Caption("a teapot"), stream) == texts


def test_streams_and_seeds_drop_by_themselves_and_no_dropout_leaves_captions_alone() -> None:
    half = [captioning(0.5, seed=seed) for seed in (0, 1)]
    found = {tuple(varied(of, Caption("a teapot"), stream)) for of in half for stream in STREAMS}
    assert len(found) == 4
    whole = Caption("a b", {"a": "a"}, lambda _: "never")
    assert set(varied(captioning(), whole)) == {"a b"}
    assert set(varied(captioning(0.0, 1.0), Caption("a b"))) == {"a b"}


@pytest.mark.parametrize("rate", [0.1, 0.7])
def test_each_slot_is_dropped_as_often_as_asked(rate: float) -> None:
    slots = {name: name for name in "abcd"}
    texts = varied(captioning(slot=rate), Caption("a b c d", slots, " ".join))
    kept = Counter(name for text in texts for name in text.split())
    assert all(within(kept[name], 4000, 1 - rate) for name in slots)
    pairs = sum({"a", "b"} <= set(text.split()) for text in texts)
    assert within(pairs, 4000, (1 - rate) ** 2)


def write_dataset(
    folder: Path, rows: list[ImageRow], template: str | None = "object", slots: object = SLOTS
) -> Path:
    """A dataset as `regforge run` leaves it."""
    (folder / "data").mkdir(parents=True)
    with (folder / "data" / "train-00000-of-00001.parquet").open("wb") as stream:
        writer = RowWriter(stream, list(slots))  # type: ignore[call-overload]
        writer.write(rows)
        writer.close()
    (folder / "recipe.yaml").write_text("name: x\n")
    if template is not None:
        file = templates_folder() / "caption" / f"{template}.j2"
        shutil.copy(file, folder / "caption.j2")
    return folder


def row(index: int, text: str, slots: Mapping[str, str | None], prompt_set: str) -> ImageRow:
    image = make_image(color_of(index), (16, 16))
    more = {"prompt_set": prompt_set, "width": 16, "height": 16}
    return make_row(index, image=image, text=text, slots=slots, **more)


@functools.cache
def shipped(kind: str = "object") -> CaptionTemplate:
    file = templates_folder() / "caption" / f"{kind}.j2"
    return CaptionTemplate(file, f"caption/{kind}.j2", class_noun="teapot", kind="object")


@functools.cache
def amplified() -> list[ImageRow]:
    rows: list[ImageRow] = []
    for values in itertools.product(COLORS, TEXTURES, PLACES, LIGHTS, STYLES):
        slots = dict(zip(SLOTS, values, strict=True))
        rows.append(row(len(rows), shipped().render(slots), slots, "amplify"))
    return rows


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return photos(tmp_path / "photos")


def dropping(images: Path, dataset: Path, rate: float) -> Built:
    data = {"slot_dropout": rate, "caption_dropout": 0, "crop": "center"}
    return Built(images, dataset, data=data)


def drawn(examples: Built, steps: int, stream: Stream = "class") -> list[tuple[int, str]]:
    """(index, caption) of regularization images as they are drawn."""
    mine = [each for each in examples.draws(steps) if each.stream == stream]
    (batch,) = examples.tensors(mine)
    return [(each.index, text) for each, text in zip(mine, batch.captions, strict=True)]


def test_dropped_slots_leave_a_caption_of_the_template(images: Path, tmp_path: Path) -> None:
    rows = amplified()
    examples = dropping(images, write_dataset(tmp_path / "set", rows), 0.4)
    assert examples.notes == []
    possible: dict[int, set[str]] = {}
    shorter = 0
    for index, text in drawn(examples, 200):
        slots = {name: phrase for name, phrase in rows[index].slots.items() if phrase}
        if index not in possible:
            possible[index] = set(all_shorter(slots))
        assert text in possible[index]
        shorter += text != rows[index].text
    assert shorter > 120


def all_shorter(slots: Mapping[str, str]) -> Iterator[str]:
    """The captions that are left when some slots are left out."""
    template = shipped()
    for count in range(len(slots) + 1):
        for names in itertools.combinations(slots, count):
            kept = {name: slots[name] for name in names}
            text = template.render(kept)
            if "style" not in kept and "photo" not in slots.get("style", "photo"):
                text = text.replace("a photo of", "a picture of")
            yield text


def test_a_painting_without_its_style_is_no_photo() -> None:
    slots = {"color": "red", "background": "in an office"}
    for style, kept, expected in (
        ("an oil painting", ("color",), "a picture of a red teapot"),
        ("a vintage photo", ("background",), "a photo of a teapot in an office"),
        ("in the style of Monet", (), "a picture of a teapot"),
        (
            "in the style of Monet",
            ("color", "background", "style"),
            "a picture of a red teapot in an office, in the style of Monet",
        ),
    ):
        every = {**slots, "style": style}
        caption = of_template(every, shipped().render(every))
        assert caption.compose is not None
        assert caption.compose({name: every[name] for name in kept}) == expected


def of_template(slots: Mapping[str, str | None], text: str, prompt_set: str = "amplify") -> Caption:
    file = templates_folder() / "caption" / "object.j2"
    composer = Composer(file, "caption.j2", SLOTS)
    return composer.caption(text, slots, class_noun="teapot", kind="object", prompt_set=prompt_set)


def test_against_captions_lose_attributes_only() -> None:
    """What stands around the noun phrase is the photo's own caption."""
    slots = {"color": "olive green", "texture": "striped", "background": "on a desk", "style": "x"}
    text = "a photo of an olive green striped teapot on a desk, next to an old cup"
    caption = of_template(slots, text, "against")
    assert caption.compose is not None
    assert set(caption.slots) == {"color", "texture"}
    for kept, article in (({"texture": "striped"}, "a striped"), ({}, "a")):
        expected = f"a photo of {article} teapot on a desk, next to an old cup"
        assert caption.compose(kept) == expected
    sentence = of_template(slots, "An olive green striped teapot stands on a desk.", "against")
    assert sentence.compose is not None
    assert sentence.compose({"texture": "striped"}) == "A striped teapot stands on a desk."
    bare = of_template({"background": "on a desk"}, "a photo of a teapot on a desk", "against")
    assert bare.compose is not None  # nothing to leave out, and nothing to complain of
    assert bare.slots == {}
    twice = "an olive green striped teapot and an olive green striped teapot"
    for rigid in ("a photo of a teapot on a desk", twice):
        assert of_template(slots, rigid, "against").compose is None


def test_captions_of_others_stay_and_photos_lose_no_slots(images: Path, tmp_path: Path) -> None:
    rows = amplified()
    edited = [replace(each, text=f"{each.text}, edited") for each in rows[:10]] + rows[10:]
    examples = dropping(images, write_dataset(tmp_path / "set", edited), 1.0)
    (note,) = examples.notes
    assert "10 of 64 captions are not as caption.j2 writes them" in note
    texts = dict(drawn(examples, 128))
    assert all(texts[index] == edited[index].text for index in range(10))
    assert all(len(texts[index].split()) == 5 for index in range(10, 64))  # "a photo of a teapot"
    for index, text in drawn(examples, 9, "instance"):
        assert text == f"a photo of a sks teapot, number {index}"


def test_what_cannot_be_composed_again_is_said_once(images: Path, tmp_path: Path) -> None:
    rows = amplified()
    write_dataset(tmp_path / "bare", rows, template=None)
    write_dataset(tmp_path / "broken", rows)
    (tmp_path / "broken" / "caption.j2").write_text("a photo of {{ class_noun | a }} {{ oops }}")
    class_images(tmp_path / "foreign")
    reasons = {"bare": "no caption.j2", "broken": "caption.j2:1: there is no 'oops'"}
    for name, reason in {**reasons, "foreign": "no slots"}.items():
        examples = dropping(images, tmp_path / name, 0.5)
        (note,) = examples.notes
        assert reason in note
        if name != "foreign":
            assert all(text == rows[index].text for index, text in drawn(examples, 64))
        assert dropping(images, tmp_path / name, 0).notes == []


WORDED = {
    "a photo of sks teapot on a table": "a close-up photo of sks teapot on a table",
    "A photo of a sks teapot.": "A close-up photo of a sks teapot.",
    "an oil painting of a cat": "a close-up oil painting of a cat",
    "An image of a cat": "A close-up image of a cat",
    "the only picture of it": "the close-up only picture of it",
    "a watercolor painting of a cat": "a close-up watercolor painting of a cat",
    "a pixel art picture of a dog at night": "a close-up pixel art picture of a dog at night",
    "a 35mm film photo of a dog": "a close-up 35mm film photo of a dog",
    "photo of a dog": "close-up photo of a dog",
    "Photo of a dog": "Close-up photo of a dog",
    "a sks teapot on a table": "a close-up of a sks teapot on a table",
    "A cup of tea": "A close-up of a cup of tea",
    "the old teapot": "a close-up of the old teapot",
    "sks teapot, kitchen table": "close-up, sks teapot, kitchen table",
    "a dog is running on a beach": "close-up, a dog is running on a beach",
    "A dog. It runs.": "close-up, A dog. It runs.",
}
FRAMED = (
    *("a close-up photo of a dog", "a closeup of a dog", "a macro photo of a bee", ""),
    *("a wide shot of a dog", "a full-body photo of a dog"),
)


@pytest.mark.parametrize(
    ("caption", "worded"), [*WORDED.items(), *zip(FRAMED, FRAMED, strict=True)]
)
def test_the_wording_of_a_close_up(caption: str, worded: str) -> None:
    assert close_up(caption) == worded
    assert close_up(worded) == worded


def test_every_shipped_style_is_named_as_a_close_up() -> None:
    from regforge.embedded import load_vocabulary, phrase_banks

    for style in load_vocabulary()["style"]:
        noun = style.removesuffix(" of").split(" ", 1)[1]
        assert close_up(f"{style} a cat") == f"a close-up {noun} of a cat"
    styles = [phrase_banks.phrases("style", category) for category in ("rigid_object", "animal")]
    texts = {phrase.text for phrases in styles for phrase in phrases}
    assert len(texts) > 50
    for style in texts:
        worded = close_up(f"{style} of a teapot")
        assert worded.startswith("a close-up ") or worded == f"{style} of a teapot"
        assert " of a teapot" in worded
        assert not worded.startswith("a close-up of a")


@given(st.text())
def test_any_text_can_be_worded(caption: str) -> None:
    worded = close_up(caption)
    assert close_up(worded) == worded
    assert len(worded) >= len(caption.strip()) or "\n" in caption


def test_only_tight_crops_say_so_and_only_if_asked() -> None:
    caption = Caption("a photo of a cat")
    for of, tight, expected in (
        (captioning(), False, "a photo of a cat"),
        (captioning(), True, "a close-up photo of a cat"),
        (captioning(wording=False), True, "a photo of a cat"),
        (captioning(1.0), True, ""),
    ):
        assert varied(of, caption, "class", 1, tight=tight) == [expected]


def test_captions_follow_the_crop_that_is_shown(tmp_path: Path) -> None:
    data = {"crop_scale": 0.5, "crops_per_image": 8, "caption_dropout": 0, "resolution": 64}
    examples = Built(photos(tmp_path / "photos", size=(64, 64)), data=data)
    tight = []
    for found in examples.each([Draw("instance", n, n % 3) for n in range(60)]):
        tight.append(found["captions"].startswith("a close-up photo of a sks teapot"))
        corner = max(found["geometry"].top_left)
        if corner > (1 / 0.75 - 1) * 64 + 1:  # so far off only a tight crop can be
            assert tight[-1]
    assert 5 < sum(tight) < 55
