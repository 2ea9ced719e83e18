"""From a vocabulary to numbered captions, through the one door that everybody uses."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from fake_language_model import go_together
from hypothesis import given, settings
from hypothesis import strategies as st

from regforge import resources
from regforge.errors import RegforgeError
from regforge.journal import Journal, read
from regforge.progress import Reporter
from regforge.prompts.against import PhotoCaptionUnclear
from regforge.prompts.captions import CaptionTemplateError
from regforge.prompts.exclude import ExclusionError
from regforge.prompts.photos import PhotoCaption
from regforge.prompts.prompt_sets import NotEnoughPrompts
from regforge.prompts.tokens import TokenBudget
from regforge.prompts.vocabulary import Vocabulary, VocabularyError
from regforge.prompts.writing import CannotWrite, write_prompts
from regforge.recipe import Recipe
from regforge.records import Prompt

COLORS = ("red", "orange", "blue", "green", "white", "black")
PLACES = ("on a shelf", "in a garden", "by a lake", "on a bed")
STYLES = ("a photo of", "a watercolor painting of", "a pencil sketch of")
SLOTS = {"color": COLORS, "background": PLACES, "style": STYLES}


def by_words(limit: int = 77) -> TokenBudget:
    """A token a word, and two for start and end."""
    return TokenBudget(limit, "the test's words", lambda text: 2 + len(text.split()))


def recipe(
    slots: Mapping[str, Any] = SLOTS,
    *,
    class_noun: str = "teapot",
    kind: str = "object",
    identifier: str | None = "sks",
    seed: int = 0,
    render: Mapping[str, Any] | None = None,
    **prompts: Any,
) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "test",
            "subject": {"class_noun": class_noun, "kind": kind, "identifier": identifier},
            "prompts": {
                "slots": [
                    {"name": name, **(values if isinstance(values, dict) else {"from": "llm"})}
                    for name, values in slots.items()
                ],
                **prompts,
            },
            "render": render or {},
            "seed": seed,
        }
    )


def one_form(folder: Path, kind: str = "object") -> str:
    """A template that has the first form of the shipped one alone."""
    shipped = (resources.templates() / f"caption/{kind}.j2").read_text(encoding="utf-8")
    (folder / f"{kind}.j2").write_text(shipped.partition("\n---\n")[0], encoding="utf-8")
    return str(folder / f"{kind}.j2")


def vocabulary(
    slots: Mapping[str, Any] = SLOTS,
    clashes: Mapping[tuple[str, str], tuple[str, str]] | None = None,
    **fields: Any,
) -> Vocabulary:
    pairs = frozenset(
        tuple(itertools.chain(*sorted((one, other)))) for one, other in (clashes or {}).items()
    )
    return Vocabulary("teapot", "object", slots, incompatible=pairs, **fields)


def written(
    made: Recipe, count: int, words: Vocabulary | None = None, **options: Any
) -> list[Prompt]:
    options.setdefault("budget", by_words())
    return list(write_prompts(made, words or vocabulary(), count=count, **options))


def photos(*captions: str, **facts: Any) -> list[PhotoCaption]:
    known = {"width": 400, "height": 300, "seed": 7, "digest": "0" * 64} | facts
    return [PhotoCaption(f"{n:02}.jpg", caption, **known) for n, caption in enumerate(captions)]


def test_a_prompt_says_all_about_itself() -> None:
    first = written(recipe(), 1, vocabulary(language_model="openai/gpt-x"))[0]
    slots = first.slots
    color, place = slots["color"], slots["background"]
    assert first.text in (
        f"{slots['style']} {a(color)} teapot {place}",
        f"{slots['style']} a teapot that is {color}, {place}",
        f"{slots['style']} a teapot, {color}, {place}",
    )
    assert list(slots) == ["color", "background", "style"]
    assert (first.index, first.prompt_set, first.kind) == (0, "amplify", "object")
    assert (first.class_noun, first.template) == ("teapot", "caption/object.j2")
    assert first.language_model == "openai/gpt-x"
    assert (first.reference, first.width, first.height, first.seed) == (None,) * 4
    assert Prompt.from_json(first.to_json()) == first


def a(color: str | None) -> str:
    return f"an {color}" if color == "orange" else f"a {color}"


def test_no_caption_comes_twice_and_phrases_are_used_evenly() -> None:
    prompts = written(recipe(), 60)
    assert [prompt.index for prompt in prompts] == list(range(60))
    assert len({prompt.text for prompt in prompts}) == 60
    for slot, phrases in SLOTS.items():
        counts = Counter(prompt.slots[slot] for prompt in prompts)
        assert set(counts) == set(phrases)
        # Of 72 captions 60 are made: passing over repeated ones cannot make this very uneven.
        assert min(counts.values()) >= 60 // len(phrases) - 4, counts


def test_living_things_move_and_objects_do_not(tmp_path: Path) -> None:
    slots = {"color": ("brown",), "motion": ("running",)}
    living = recipe(slots, class_noun="dog", kind="living", template=one_form(tmp_path, "living"))
    (dog,) = written(living, 1, vocabulary(slots))
    assert dog.text == "a photo of a brown dog running"
    with pytest.raises(CaptionTemplateError, match=r"object\.j2:1: .* slot 'motion'"):
        written(recipe(slots), 1, vocabulary(slots))


def test_a_template_of_ones_own_is_named_without_its_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.j2").write_text("{{ style }} {{ color }} {{ class_noun }} {{ background }}!")
    (first,) = written(recipe(template=str(tmp_path / "mine.j2")), 1)
    assert first.template == "mine.j2"
    assert first.text.endswith("!")


@st.composite
def jobs(draw: st.DrawFn) -> tuple[Recipe, Vocabulary, dict[str, Any]]:
    """Recipes with clashes, exclusions, long captions and several sets: much to pass over."""
    sizes = {name: draw(st.integers(1, 6)) for name in ("color", "shape", "background", "style")}
    long = draw(st.booleans())
    slots = {
        name: tuple(f"{name}{n}" + " very" * (6 * long * (n % 3 == 0)) for n in range(size))
        for name, size in sizes.items()
    }
    pairs = [
        ((one, first), (other, second))
        for one, other in itertools.combinations(slots, 2)
        for first in slots[one]
        for second in slots[other]
    ]
    clashes = dict(draw(st.lists(st.sampled_from(pairs), max_size=8)))
    names = draw(st.permutations(list(slots)))
    modes = {name: draw(st.sampled_from(["sample", "sample", "grid", "cycle"])) for name in names}
    made = recipe(
        {name: {"from": "llm", "mode": modes[name]} for name in names},
        seed=draw(st.integers(0, 2**32)),
        sets=draw(
            st.sampled_from(
                [{"amplify": 1}, {"naive": 1, "amplify": 2}, {"against": 1, "amplify": 3}]
            )
        ),
        over_limit=draw(st.sampled_from(["shorten", "refuse"])),
    )
    options = {
        "photos": photos("a photo of a sks teapot on a mat", "sks teapot", "my sks in a box"),
        "budget": by_words(16),
    }
    return made, vocabulary(slots, clashes), options


@pytest.mark.slow
@settings(max_examples=60)
@given(jobs(), st.integers(0, 60), st.integers(0, 60))
def test_fewer_captions_are_the_first_of_more(
    job: tuple[Recipe, Vocabulary, dict[str, Any]], one: int, other: int
) -> None:
    def until_the_end(count: int) -> list[Prompt]:
        found: list[Prompt] = []
        with contextlib.suppress(NotEnoughPrompts):
            for prompt in write_prompts(made, words, count=count, **options):
                found.append(prompt)  # extend would lose them when it fails
        return found

    made, words, options = job
    few, many = sorted((one, other))
    longer = until_the_end(many)
    assert until_the_end(few) == longer[:few]
    texts = [prompt.text for prompt in longer if prompt.prompt_set != "naive"]
    assert len(texts) == len({text.casefold() for text in texts})
    assert all(len(prompt.text.split()) + 2 <= 16 for prompt in longer)
    amplified = [prompt for prompt in longer if prompt.prompt_set == "amplify"]
    assert all(go_together(words, prompt.slots) for prompt in amplified)


@pytest.mark.slow
@settings(max_examples=40)
@given(jobs())
def test_all_captions_there_are_can_be_had(job: tuple[Recipe, Vocabulary, dict[str, Any]]) -> None:
    made, words, options = job
    made = made.model_copy(
        update={"prompts": made.prompts.model_copy(update={"sets": {"amplify": 1.0}})}
    )
    options = options | {"budget": by_words(1000)}
    names = list(words.slots)
    possible = [
        row
        for row in itertools.product(*words.slots.values())
        if go_together(words, dict(zip(names, row, strict=True)))
    ]
    prompts = list(write_prompts(made, words, count=len(possible), **options))
    found = {tuple(prompt.slots[name] for name in names) for prompt in prompts}
    assert found == set(possible)
    with pytest.raises(NotEnoughPrompts):
        list(write_prompts(made, words, count=len(possible) + 1, **options))


def test_another_seed_gives_other_captions_and_a_new_slot_changes_no_other() -> None:
    first = written(recipe(), 20)
    assert [p.text for p in written(recipe(seed=1), 20)] != [p.text for p in first]
    more = {"material": ("clay", "tin"), **SLOTS}
    wider = written(recipe(more), 20, vocabulary(more))
    assert all(p.slots.items() <= q.slots.items() for p, q in zip(first, wider, strict=True))


def test_every_set_gets_its_share_in_every_number_of_captions() -> None:
    made = recipe(sets={"naive": 0.2, "against": 0.3, "amplify": 0.5})
    options = {"photos": photos(*(f"a photo of a sks teapot in box {n}" for n in range(20)))}
    prompts = written(made, 100, **options)
    counts: Counter[str] = Counter()
    for number, prompt in enumerate(prompts, 1):
        counts[prompt.prompt_set] += 1
        for name, share in made.prompts.sets.items():
            assert abs(counts[name] - share * number) < 1
    naive = {prompt.text for prompt in prompts if prompt.prompt_set == "naive"}
    assert naive == {"a photo of a teapot"}
    (plain,) = {tuple(p.slots.values()) for p in prompts if p.prompt_set == "naive"}
    assert plain == (None, None, None)
    rest = [prompt.text for prompt in prompts if prompt.prompt_set != "naive"]
    assert len(set(rest)) == len(rest)
    assert naive.isdisjoint(rest)


def test_the_naive_caption_is_left_to_the_naive_set() -> None:
    slots = {"style": ("a photo of", "a sketch of")}
    made = recipe(slots, sets={"naive": 1, "amplify": 1})
    assert [p.text for p in written(made, 2, vocabulary(slots))] == [
        "a photo of a teapot",
        "a sketch of a teapot",
    ]


def test_against_captions_keep_all_but_the_subject() -> None:
    made = recipe(sets={"against": 1})
    prompts = written(
        made, 4, photos=photos("a photo of a sks teapot on a mat, at dusk", "sks, kitchen table")
    )
    assert [prompt.reference for prompt in prompts] == ["00.jpg", "01.jpg", "00.jpg", "01.jpg"]
    for prompt in prompts:
        color = prompt.slots["color"]
        expected = {
            "00.jpg": f"a photo of {a(color)} teapot on a mat, at dusk",
            "01.jpg": f"{a(color)} teapot, kitchen table",
        }
        assert prompt.text == expected[prompt.reference or ""]
        assert (prompt.template, prompt.prompt_set) == ("", "against")
    assert prompts[0].slots["style"] == "a photo of"
    assert prompts[0].slots["background"] == "on a mat, at dusk"
    assert prompts[1].slots["style"] is None
    assert len({prompt.text for prompt in prompts}) == 4


STATED = "a sks teapot with a red body on a mat"


def test_attributes_that_a_photos_caption_states_are_not_varied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It comes as often as the others, and the account says why it never changes."""
    made = recipe(sets={"against": 1})
    shown = photos("a sks teapot in a box", STATED)
    prompts = written(made, 8, photos=shown, journal=Journal(tmp_path), reporter=Reporter())
    kept = [prompt for prompt in prompts if prompt.reference == "01.jpg"]
    assert [prompt.text for prompt in kept] == ["a teapot with a red body on a mat"] * 4
    assert {prompt.slots["color"] for prompt in kept} == {None}
    assert len({prompt.text for prompt in prompts if prompt.reference == "00.jpg"}) == 4
    said = capsys.readouterr().err
    (entry,) = [each for each in read(tmp_path / "ledger.jsonl") if each["item"] == "01.jpg"]
    for account in (said, entry["reason"]):
        assert STATED in account
        assert "'red body'" in account
    assert "01.jpg" in said
    assert "00.jpg" not in said


def test_a_caption_that_leaves_the_subject_unclear_is_taken_as_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = recipe(class_noun="woman", kind="living", identifier="ohwx", sets={"against": 1})
    caption = "a girl holding a cup, ohwx woman looking at viewer"
    prompts = written(made, 2, photos=photos(caption), reporter=Reporter())
    assert [p.text for p in prompts] == ["a girl holding a cup, a woman looking at viewer"] * 2
    assert "00.jpg: its caption is used as it is" in capsys.readouterr().err


def test_plain_captions_are_the_photos_without_the_identifier() -> None:
    """kohya_ss 1989: the same words, size and seed; further images have seeds of their own."""
    made = recipe(sets={"against": 1}, against="plain", render={"width": 1024, "height": 1024})
    captions = ("a photo of my old blue sks teapot on a mat", "sks, blue, teapot, mat, 1 cup")
    prompts = written(made, 6, Vocabulary("teapot", "object", {}), photos=photos(*captions))
    texts = ["a photo of my old blue teapot on a mat", "teapot, blue, mat, 1 cup"]
    assert [prompt.text for prompt in prompts] == texts * 3
    assert {(prompt.width, prompt.height) for prompt in prompts} == {(1152, 896)}
    seeds = [prompt.seed for prompt in prompts]
    assert seeds[:2] == [7, 7]
    assert len(set(seeds[::2])) == 3
    assert (
        written(made, 2, Vocabulary("teapot", "object", {}), photos=photos(*captions))
        == (prompts[:2])
    )
    assert all(set(prompt.slots) == set(SLOTS) for prompt in prompts)
    assert {prompt.slots["color"] for prompt in prompts} == {None}


@pytest.mark.parametrize(
    ("prompts", "render", "own"),
    [
        ({"against": "plain"}, {}, (None, None, 7)),
        ({"against": "plain", "match": []}, {"width": 512, "height": 512}, (None, None, None)),
        ({"against": "plain", "match": ["size"]}, {"width": 512, "height": 512}, (576, 448, None)),
        (
            {"against": "plain"},
            {"width": 512, "height": 512, "renderer": "hosted", "model": "gpt-image-1"},
            (None, None, 7),
        ),
        ({}, {"width": 512, "height": 512}, (None, None, None)),
    ],
)
def test_what_plain_images_share_with_their_photo_can_be_chosen(
    prompts: dict[str, Any], render: dict[str, Any], own: tuple[int | None, ...]
) -> None:
    made = recipe(sets={"against": 1}, render=render, **prompts)
    (prompt,) = written(made, 1, photos=photos("a sks teapot"))
    assert (prompt.width, prompt.height, prompt.seed) == own


@pytest.mark.parametrize(
    ("prompts", "options", "error", "told"),
    [
        ({"sets": {"against": 1}}, {}, CannotWrite, "needs photos"),
        (
            {"sets": {"against": 1}},
            {"photos": photos("a cup on a mat")},
            PhotoCaptionUnclear,
            r"00\.jpg",
        ),
        (
            {"sets": {"against": 1}, "match": ["size"]},
            {"photos": photos("sks teapot")},
            CannotWrite,
            "needs the size",
        ),
        ({"sets": {"import": 1}}, {}, CannotWrite, "import"),
        ({}, {"words": vocabulary({"color": COLORS})}, VocabularyError, "no slot 'background'"),
        *(
            (
                {"class_noun": "very " * 9 + "long noun", "over_limit": over, "sets": {name: 1}},
                {"budget": by_words(12)},
                CannotWrite,
                "no caption may have more than 12",
            )
            for over in ("shorten", "refuse")
            for name in ("amplify", "naive")
        ),
    ],
)
def test_what_cannot_be_written_is_told_before_the_first_caption(
    prompts: dict[str, Any], options: dict[str, Any], error: type[RegforgeError], told: str
) -> None:
    words = options.pop("words", vocabulary())
    with pytest.raises(error, match=told):
        write_prompts(recipe(**prompts), words, **{"budget": by_words(), **options})


def test_against_runs_out_with_a_clear_account() -> None:
    made = recipe(sets={"against": 1})
    with pytest.raises(NotEnoughPrompts, match=r"12 ways \(2 photo × 6 color\), and 12 are used"):
        written(made, 13, photos=photos("a sks teapot on a mat", "a sks teapot in a box"))


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
    made = recipe(sets={"against": 1, "amplify": 1}, match=["size", "seed"], render=render)
    shown = photos("sks teapot", width=photo[0], height=photo[1])
    for prompt in written(made, 4, photos=shown):
        own = (prompt.width, prompt.height, prompt.seed)
        assert own == ((*size, 7) if prompt.prompt_set == "against" else (None, None, None))


def test_estimated_limits_are_said_to_be_estimates(capsys: pytest.CaptureFixture[str]) -> None:
    budget = TokenBudget(77, "an estimate (no tokenizer)", lambda text: 3, estimated=True)
    written(recipe(), 1, budget=budget, reporter=Reporter())
    assert "counted by an estimate (no tokenizer)" in capsys.readouterr().err


def test_clashing_phrases_are_redrawn_and_the_background_kept() -> None:
    clashes = {("color", "red"): ("background", "on a shelf")}
    with_clash = written(recipe(), 30, vocabulary(clashes=clashes))
    without = written(recipe(), 30)
    assert not any(
        (p.slots["color"], p.slots["background"]) == ("red", "on a shelf") for p in with_clash
    )
    clashing = [p for p in without if p.slots["color"] == "red"]
    assert any(p.slots["background"] == "on a shelf" for p in clashing)
    same = sum(p == q for p, q in zip(with_clash, without, strict=True))
    assert 20 <= same < 30


def test_too_few_captions_is_a_failure_that_says_what_to_do(tmp_path: Path) -> None:
    slots = {"color": ("red", "blue", "sky-blue", "sky blue"), "style": ("a photo of", "a map of")}
    clashes = {("color", "red"): ("style", "a map of")}
    prompts = write_prompts(
        recipe(slots),
        vocabulary(slots, clashes),
        budget=by_words(),
        count=50,
        journal=Journal(tmp_path),
    )
    made = list(itertools.islice(prompts, 5))
    assert len({prompt.text for prompt in made}) == 5
    with pytest.raises(NotEnoughPrompts) as caught:
        next(prompts)
    message = str(caught.value)
    assert "Only 5 of 50 captions could be made: the amplify set has no more after 5." in message
    assert "8 ways (4 color × 2 style), and 5 are used" in message
    assert "2 were said before" in message
    assert "1 do not go together" in message
    assert "`style`, has 2" in message
    assert "prompts.count to 5" in message
    reasons = [entry["reason"] for entry in read(tmp_path / "ledger.jsonl")]
    assert "was said before" in reasons
    assert "its phrases do not go together, however redrawn" in reasons
    # One by one only up to a point: a stubborn vocabulary fills no disk.
    assert len(reasons) < 400


def test_no_slots_make_one_caption() -> None:
    made = recipe({})
    assert [p.text for p in written(made, 1, vocabulary({}))] == ["a photo of a teapot"]
    with pytest.raises(NotEnoughPrompts, match="Give the recipe slots"):
        written(made, 2, vocabulary({}))


def test_the_identifier_never_comes_in(tmp_path: Path) -> None:
    slots = {"color": ("red", "SKS blue", "masks"), "background": ("near a sks.", "on a sofa")}
    prompts = written(recipe(slots), 2, vocabulary(slots), journal=Journal(tmp_path))
    assert {p.slots["color"] for p in prompts} == {"red", "masks"}
    assert {p.slots["background"] for p in prompts} == {"on a sofa"}
    ledger = [entry["reason"] for entry in read(tmp_path / "ledger.jsonl")]
    assert ledger[0] == "'SKS blue' contains the identifier 'sks'"


def test_an_identifier_that_phrases_make_up_together_is_refused(tmp_path: Path) -> None:
    slots = {"color": ("red", "blue"), "texture": ("cat", "dog")}
    made = recipe(slots, identifier="red cat", template=one_form(tmp_path))
    assert {p.text for p in written(made, 3, vocabulary(slots))} == {
        "a photo of a red dog teapot",
        "a photo of a blue cat teapot",
        "a photo of a blue dog teapot",
    }
    with pytest.raises(NotEnoughPrompts, match="1 name the identifier"):
        written(made, 4, vocabulary(slots))


def test_excluded_prompts_do_not_come_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slots = {"color": ("red", "white", "blue")}
    slots["background"] = ("on a rug", "on a beach", "by a car")
    made = recipe(slots, exclude=["dreambench"], template=one_form(tmp_path))
    prompts = written(made, 3, vocabulary(slots), reporter=Reporter())
    assert {p.text for p in prompts} == {  # no red, no beach, and no white teapot on a rug
        "a photo of a white teapot by a car",
        "a photo of a blue teapot on a rug",
        "a photo of a blue teapot by a car",
    }
    said = capsys.readouterr().err
    assert "slot color: 1 of 3 phrases are not used, such as 'red', which says" in said
    with pytest.raises(NotEnoughPrompts, match="1 say what is excluded"):
        written(made, 4, vocabulary(slots))


def test_photos_that_say_what_is_excluded_are_not_followed(tmp_path: Path) -> None:
    made = recipe(sets={"against": 1}, exclude=["dreambench"])
    shown = photos("a sks teapot on the beach", "a sks teapot on a mat")
    prompts = written(made, 3, photos=shown, journal=Journal(tmp_path))
    assert {prompt.reference for prompt in prompts} == {"01.jpg"}
    assert "on the beach" in (tmp_path / "ledger.jsonl").read_text()
    with pytest.raises(ExclusionError, match="every photo"):
        written(made, 1, photos=shown[:1])


def test_long_captions_lose_their_last_slots_and_the_background_last_of_all(
    tmp_path: Path,
) -> None:
    slots = {"shape": ("round",), "color": ("very very dark red",)}
    slots |= {"background": ("on a table",), "style": ("a rather large oil painting of",)}

    def caption(limit: int) -> Prompt:
        made = recipe(slots, template=one_form(tmp_path))
        return written(made, 1, vocabulary(slots), budget=by_words(limit))[0]

    texts = {limit: caption(limit).text for limit in range(7, 21)}
    assert (
        texts[18] == "a rather large oil painting of a round very very dark red teapot on a table"
    )
    assert texts[17] == texts[16] == "a photo of a round very very dark red teapot on a table"
    assert texts[14] == texts[11] == "a photo of a round teapot on a table"
    assert texts[10] == "a photo of a teapot on a table"
    assert texts[9] == texts[7] == "a photo of a teapot"
    assert list(caption(11).slots.values()) == ["round", None, "on a table", None]


def test_long_captions_can_be_refused() -> None:
    slots = {"color": ("red", "very very very very very dark red", "blue")}
    made = recipe(slots, over_limit="refuse")
    budget = by_words(10)
    made_first = written(made, 2, vocabulary(slots), budget=budget)
    assert {prompt.slots["color"] for prompt in made_first} == {"red", "blue"}
    with pytest.raises(NotEnoughPrompts, match="1 have more than 10 tokens"):
        written(made, 3, vocabulary(slots), budget=budget)


def test_against_captions_lose_attributes_and_never_words_of_the_photo() -> None:
    made = recipe(sets={"against": 1})
    shown = photos("a photo of a sks teapot on a mat")
    (prompt,) = written(made, 1, photos=shown, budget=by_words(10))
    assert prompt.text == "a photo of a teapot on a mat"
    assert prompt.slots["color"] is None
    with pytest.raises(CannotWrite, match=r"'a photo of a teapot on a mat' has 10 tokens.* 9 "):
        written(made, 1, photos=shown, budget=by_words(9))


def test_modes_and_weights_come_from_the_recipe_and_the_vocabulary() -> None:
    modes = {"color": "cycle", "background": "grid", "style": "sample"}
    slots = {name: {"from": "llm", "mode": mode} for name, mode in modes.items()}
    words = vocabulary(weights={"style": (8.0, 1.0, 1.0)})
    prompts = written(recipe(slots), 12, words)
    assert [p.slots["color"] for p in prompts] == list(COLORS) * 2
    assert [p.slots["background"] for p in prompts] == list(PLACES) * 3
    styles = Counter(p.slots["style"] for p in written(recipe(), 40, words))
    assert styles[STYLES[0]] > 20  # 24 of 72 captions have it; fewer are left in the end


def rows() -> Iterator[dict[str, str]]:
    for n in itertools.count():
        yield {"color": f"color{n} dark", "background": f"near number{n} of all the many numbers"}


STYLE = vocabulary({"style": STYLES[:1]})


def test_composed_rows_are_joined_by_what_the_vocabulary_has() -> None:
    words = vocabulary({"style": STYLES}, language_model=None)
    made = recipe(mode="compose", near_duplicates=1.0)
    prompts = written(made, 6, words, rows=rows())
    assert [p.slots["color"] for p in prompts] == [f"color{n} dark" for n in range(6)]
    assert {p.slots["style"] for p in prompts} == set(STYLES)
    assert {p.language_model for p in prompts} == {made.prompts.llm.model}
    assert written(made, 3, words, rows=rows()) == prompts[:3]


def test_composed_captions_may_not_be_nearly_the_same() -> None:
    table = "on a long wooden kitchen table near bread"
    places = {"dark red": table, "dark blue": table, "green": "in a boat"}
    given = [{"color": color, "background": place} for color, place in places.items()]
    prompts = written(recipe(mode="compose", near_duplicates=0.8), 2, STYLE, rows=given)
    assert [p.slots["color"] for p in prompts] == ["dark red", "green"]


def test_rows_that_end_or_repeat_themselves_forever_are_given_up() -> None:
    made = recipe(mode="compose", near_duplicates=1.0)
    with pytest.raises(NotEnoughPrompts, match="Only 3 of 5"):
        written(made, 5, STYLE, rows=itertools.islice(rows(), 3))
    again = itertools.repeat({"color": "red", "background": "on a bed"})
    with pytest.raises(NotEnoughPrompts, match=r"Too many in a row were refused.*said before"):
        written(made, 2, STYLE, rows=again)


def test_against_takes_its_attributes_from_composed_rows_too() -> None:
    words = vocabulary({"style": STYLES})
    made = recipe(mode="compose", sets={"against": 1}, near_duplicates=1.0)
    prompts = written(made, 2, words, rows=rows(), photos=photos("my sks in a box"))
    assert [p.text for p in prompts] == [f"a color{n} dark teapot in a box" for n in range(2)]


def test_the_embedded_world_has_captions_within_its_own_limit() -> None:
    """All that it can draw, most of the captions DreamBench does not ask for."""
    from regforge.embedded import load_vocabulary
    from regforge.prompts.tokens import token_budget

    known = load_vocabulary()
    names = ("size", "color", "texture", "motion", "background", "lighting", "style")
    slots = {name: tuple(known[name]) for name in names}
    made = recipe(slots, class_noun="dog", kind="living", exclude=["dreambench"])
    prompts = written(made, 500, vocabulary(slots), budget=token_budget(made.render))
    texts = [prompt.text for prompt in prompts]
    assert len(set(texts)) == 500
    form = re.compile(
        r"a (photo|watercolor painting|pencil sketch|pixel art picture) of a "
        r"((small|large) \w+ (striped|dotted|checkered) dog|"
        r"(striped|dotted|checkered) dog( that is|,) (small|large) and \w+,) "
        r"(running|jumping|sleeping) (on|in|under|near|by) [\w ]+, (at sunset|at night|in the fog)"
    )
    assert all(form.fullmatch(text) for text in texts)
    assert not any(re.search(r"\b(red|purple|snow|beach|city)\b", text) for text in texts)
    assert json.loads(prompts[0].to_json())["slots"]["motion"] in known["motion"]
