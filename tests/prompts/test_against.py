"""Caption surgery: another thing in the subject's place, and everything else word for word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from builders import AGAINST, SLOTS, a, by_words, drawing, photos_of, texts_of, written
from hypothesis import given
from hypothesis import strategies as st

from regforge.journal import Journal, Reporter, read
from regforge.prompts.against import PhotoCaptionUnclear, Surroundings, cut_open
from regforge.prompts.captions import article_for
from regforge.prompts.exclude import ExclusionError
from regforge.prompts.prompt_sets import NotEnoughPrompts
from regforge.prompts.vocabulary import Vocabulary
from regforge.prompts.writing import CannotWrite


def replaced(caption: str, noun: str = "teapot", identifier: str | None = "sks") -> str:
    around = cut_open(caption, noun, identifier, "01.jpg")
    attributes = {"shape": "small", "color": "orange"}
    return around.caption(attributes, noun, article_for(noun))


@pytest.mark.parametrize(
    ("photo", "regularization"),  # with % for "a small orange teapot"
    [
        ("a photo of a sks teapot on a kitchen table", "a photo of % on a kitchen table"),
        ("sks teapot, kitchen table", "%, kitchen table"),
        ("photo of sks", "photo of %"),
        ("sks", "%"),
        ("a close-up of my old sks teapot", "a close-up of %"),
        ("a photo of shiny SKS teapot.", "a photo of %."),
        ("my best friend's sks teapot at home", "% at home"),
        ("a photo of teapot sks on a shelf", "a photo of % on a shelf"),
        ("a man holding sks teapot", "a man holding %"),
        ("a man holding the gleaming sks teapot", "a man holding %"),
        ("two sks teapots in a row", "two small orange teapots in a row"),
        ("a sks old cracked teapot on wood", "% on wood"),
        ("a portrait (sks teapot), smiling", "a portrait (%), smiling"),
        ("photo sks teapot", "photo of %"),
        ("sks's lid, close-up", "%'s lid, close-up"),
        ("a sks teapot by another sks teapot and my sks", "% by the teapot and the teapot"),
        ("masks and sketches around a sks teapot", "masks and sketches around %"),
        ("In the garden, an sks teapot", "In the garden, %"),
    ],
)
def test_only_the_subjects_noun_phrase_changes(photo: str, regularization: str) -> None:
    assert replaced(photo) == regularization.replace("%", "a small orange teapot")


@pytest.mark.parametrize(
    ("photo", "noun", "identifier", "regularization"),  # with % for "small orange" and the noun
    [
        ("a photo of a sks on a dog bed", "dog", "sks", "a photo of a % on a dog bed"),
        ("a sks teapot, boxed", "ceramic teapot", "sks", "a %, boxed"),
        ("sks glasses", "pair of glasses", "sks", "a %"),
        ("a <s1> sunglasses case", "sunglasses", "<s1>", "% case"),
        ("my ohwx  man on a bike", "man", "ohwx man", "a % on a bike"),
        ("the old teapot on a table", "teapot", None, "a % on a table"),
        ("the old teapot on a table", "teapot", "sks", "a % on a table"),
        ("two cups of tea", "cup of tea", None, "two small orange cups of tea"),
    ],
)
def test_identifiers_and_class_nouns_of_all_kinds(
    photo: str, noun: str, identifier: str | None, regularization: str
) -> None:
    expected = regularization.replace("%", f"small orange {noun}")
    assert replaced(photo, noun, identifier) == expected


@pytest.mark.parametrize("identifier", ["sks", None])
def test_a_caption_that_does_not_name_the_subject_is_refused(identifier: str | None) -> None:
    told = r"(?s)01\.jpg: its caption says .*'teapot'.*'a photo of a"
    with pytest.raises(PhotoCaptionUnclear, match=told):
        replaced("masks on a table", "teapot", identifier)


def test_what_is_kept_is_told_apart() -> None:
    around = cut_open("a photo of a sks teapot on a table, at dusk.", "teapot", "sks", "x.jpg")
    assert (around.style, around.background) == ("a photo of", "on a table, at dusk")
    around = cut_open("in the kitchen, my sks!", "teapot", "sks", "x.jpg")
    assert (around.style, around.background) == (None, None)


def test_a_caption_that_no_model_reads_to_its_end_is_refused() -> None:
    with pytest.raises(PhotoCaptionUnclear, match=r"01\.jpg"):
        replaced("a sks teapot is white and " * 2000)
    assert "small" in replaced("a sks teapot on a mat, " + "a red ball and " * 500)


WORDS = st.sampled_from("a the old sks SKS teapot of on in table, photo my and dog's ((sks".split())


@given(st.lists(WORDS, min_size=1, max_size=12))
def test_the_identifier_never_stays(words: list[str]) -> None:
    photo = " ".join(words)
    if "sks" not in photo.lower() and "teapot" not in photo:
        return
    caption = replaced(photo)
    assert "sks" not in caption.lower()
    around = cut_open(photo, "teapot", "sks", "01.jpg")
    if isinstance(around, Surroundings) and around.unclear:  # two teapots may be one or two
        assert "teapot" in caption
        return
    lists = ("small orange teapot", "teapot, small, orange")  # a list of tags stays one
    assert sum(map(caption.count, lists)) == 1


def test_against_captions_keep_all_but_the_subject() -> None:
    shown = photos_of("a photo of a sks teapot on a mat, at dusk", "sks, kitchen table")
    prompts = written(drawing(sets=AGAINST), 4, photos=shown)
    assert [prompt.reference for prompt in prompts] == ["00.jpg", "01.jpg", "00.jpg", "01.jpg"]
    for prompt in prompts:
        thing = f"{a(prompt.slots['color'])} teapot"
        expected = {"00.jpg": f"a photo of {thing} on a mat, at dusk"}
        expected["01.jpg"] = f"{thing}, kitchen table"
        assert prompt.text == expected[prompt.reference or ""]
        assert (prompt.template, prompt.prompt_set) == ("", "against")
    assert prompts[0].slots["style"] == "a photo of"
    assert prompts[0].slots["background"] == "on a mat, at dusk"
    assert prompts[1].slots["style"] is None
    assert len(set(texts_of(prompts))) == 4


def test_stated_attributes_do_not_vary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It comes as often as the others, and the account says why it never changes."""
    stated = "a sks teapot with a red body on a mat"
    shown, options = photos_of("a sks teapot in a box", stated), {"reporter": Reporter()}
    prompts = written(drawing(sets=AGAINST), 8, photos=shown, journal=Journal(tmp_path), **options)
    kept = [(p.text, p.slots["color"]) for p in prompts if p.reference == "01.jpg"]
    assert kept == [("a teapot with a red body on a mat", None)] * 4
    assert len({prompt.text for prompt in prompts if prompt.reference == "00.jpg"}) == 4
    told = capsys.readouterr().err
    (entry,) = [each for each in read(tmp_path / "ledger.jsonl") if each["item"] == "01.jpg"]
    for account in (told, entry["reason"]):
        assert stated in account
        assert "'red body'" in account
    assert "01.jpg" in told
    assert "00.jpg" not in told


def test_a_caption_with_an_unclear_subject_is_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    woman = {"class_noun": "woman", "kind": "living", "identifier": "ohwx"}
    shown = photos_of("a girl holding a cup, ohwx woman looking at viewer")
    prompts = written(drawing(subject=woman, sets=AGAINST), 2, photos=shown, reporter=Reporter())
    assert texts_of(prompts) == ["a girl holding a cup, a woman looking at viewer"] * 2
    assert "00.jpg: its caption is used as it is" in capsys.readouterr().err


def test_plain_captions_are_the_photos_without_the_identifier() -> None:
    """kohya_ss 1989: the same words, size and seed; further images have seeds of their own."""
    recipe = drawing(sets={"captions": 1}, render={"width": 1024, "height": 1024})
    captions = ("a photo of my old blue sks teapot on a mat", "sks, blue, teapot, mat, 1 cup")
    shown, nothing = photos_of(*captions), Vocabulary("teapot", "object", {})
    prompts = written(recipe, 6, nothing, photos=shown)
    texts = ["a photo of my old blue teapot on a mat", "teapot, blue, mat, 1 cup"]
    assert texts_of(prompts) == texts * 3
    assert {(prompt.width, prompt.height) for prompt in prompts} == {(1152, 896)}
    seeds = [prompt.seed for prompt in prompts]
    assert seeds[:2] == [7, 7]
    assert len(set(seeds[::2])) == 3
    assert written(recipe, 2, nothing, photos=shown) == prompts[:2]
    assert all(set(prompt.slots) == set(SLOTS) for prompt in prompts)
    assert {prompt.slots["color"] for prompt in prompts} == {None}


def test_captions_are_a_set_beside_others() -> None:
    sets = {"captions": 1, "against": 2, "amplify": 1}
    recipe = drawing(sets=sets, render={"width": 1024, "height": 1024})
    shown = photos_of("a photo of my old sks teapot on a mat", "a sks teapot in a box")
    made = written(recipe, 12, photos=shown)
    by_set = {name: [each for each in made if each.prompt_set == name] for name in sets}
    assert {name: len(prompts) for name, prompts in by_set.items()} == {
        name: 3 * share for name, share in sets.items()
    }
    assert set(texts_of(by_set["captions"])) == {
        "a photo of my old teapot on a mat",
        "a teapot in a box",
    }
    assert all(prompt.seed and prompt.width == 1152 for prompt in by_set["captions"])
    assert not any(prompt.seed or prompt.width for prompt in by_set["against"])
    assert len(set(texts_of(by_set["against"]))) == 6


PLAIN = {"sets": {"captions": 1}}
SQUARE = {"width": 512, "height": 512}


@pytest.mark.parametrize(
    ("prompts", "render", "own"),
    [
        (PLAIN, {}, (None, None, 7)),
        (PLAIN | {"match": []}, SQUARE, (None, None, None)),
        (PLAIN | {"match": ["size"]}, SQUARE, (576, 448, None)),
        (PLAIN, SQUARE | {"renderer": "hosted", "model": "gpt-image-1"}, (None, None, 7)),
        ({}, SQUARE, (None, None, None)),
    ],
)
def test_what_plain_images_share_with_their_photo_can_be_chosen(
    prompts: dict[str, Any], render: dict[str, Any], own: tuple[int | None, ...]
) -> None:
    recipe = drawing(render=render, **{"sets": AGAINST, **prompts})
    (prompt,) = written(recipe, 1, photos=photos_of("a sks teapot"))
    assert (prompt.width, prompt.height, prompt.seed) == own


def test_against_runs_out_with_a_clear_account() -> None:
    shown = photos_of("a sks teapot on a mat", "a sks teapot in a box")
    with pytest.raises(NotEnoughPrompts, match=r"12 ways \(2 photo × 6 color\), and 12 are used"):
        written(drawing(sets=AGAINST), 13, photos=shown)


@pytest.mark.parametrize(
    ("side", "photo", "size"),
    [
        (1024, (3000, 2000), (1280, 832)),
        (1024, (2000, 3000), (832, 1280)),
        (512, (500, 500), (512, 512)),
        (96, (400, 300), (112, 80)),
        (96, (5000, 10), (2144, 8)),
    ],
)
def test_images_can_have_the_proportions_and_the_seed_of_their_photo(
    side: int, photo: tuple[int, int], size: tuple[int, int]
) -> None:
    render = {"width": side, "height": side}
    recipe = drawing(sets={"against": 1, "amplify": 1}, match=["size", "seed"], render=render)
    for prompt in written(
        recipe, 4, photos=photos_of("sks teapot", width=photo[0], height=photo[1])
    ):
        own = (prompt.width, prompt.height, prompt.seed)
        assert own == ((*size, 7) if prompt.prompt_set == "against" else (None, None, None))


def test_photos_whose_captions_are_excluded_are_not_followed(tmp_path: Path) -> None:
    recipe = drawing(sets=AGAINST, exclude=["dreambench"])
    shown = photos_of("a sks teapot on the beach", "a sks teapot on a mat")
    prompts = written(recipe, 3, photos=shown, journal=Journal(tmp_path))
    assert {prompt.reference for prompt in prompts} == {"01.jpg"}
    assert "on the beach" in (tmp_path / "ledger.jsonl").read_text()
    with pytest.raises(ExclusionError, match="every photo"):
        written(recipe, 1, photos=shown[:1])


def test_against_captions_lose_attributes_and_never_words_of_the_photo() -> None:
    recipe, shown = drawing(sets=AGAINST), photos_of("a photo of a sks teapot on a mat")
    (prompt,) = written(recipe, 1, photos=shown, budget=by_words(10))
    assert prompt.text == "a photo of a teapot on a mat"
    assert prompt.slots["color"] is None
    with pytest.raises(CannotWrite, match=r"'a photo of a teapot on a mat' has 10 tokens.* 9 "):
        written(recipe, 1, photos=shown, budget=by_words(9))
