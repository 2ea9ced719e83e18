"""From a vocabulary to numbered captions, through the one door that everybody uses."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from builders import (
    AGAINST,
    COLORS,
    PLACES,
    SLOTS,
    STYLES,
    a,
    by_words,
    drawing,
    go_together,
    photos_of,
    texts_of,
    vocabulary_of,
    written,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from regforge.errors import RegforgeError
from regforge.files import templates_folder
from regforge.journal import Journal, Reporter, read
from regforge.prompts.against import PhotoCaptionUnclear
from regforge.prompts.captions import CaptionTemplateError
from regforge.prompts.prompt_sets import NotEnoughPrompts
from regforge.prompts.tokens import TokenBudget
from regforge.prompts.vocabulary import Vocabulary, VocabularyError
from regforge.prompts.writing import CannotWrite, write_prompts
from regforge.recipe import Recipe, RecipeError, load_recipe, recipe_digest, resolved_yaml
from regforge.records import Prompt


def one_form(folder: Path, kind: str = "object") -> str:
    """A template that has the first form of the shipped one alone."""
    shipped = (templates_folder() / f"caption/{kind}.j2").read_text(encoding="utf-8")
    (folder / f"{kind}.j2").write_text(shipped.partition("\n---\n")[0], encoding="utf-8")
    return str(folder / f"{kind}.j2")


def test_a_prompt_says_all_about_itself() -> None:
    (first,) = written(drawing(), 1, vocabulary_of(language_model="openai/gpt-x"))
    style, color, place = (first.slots[name] for name in ("style", "color", "background"))
    assert first.text in (
        f"{style} {a(color)} teapot {place}",
        f"{style} a teapot that is {color}, {place}",
        f"{style} a teapot, {color}, {place}",
    )
    assert list(first.slots) == ["color", "background", "style"]
    assert (first.index, first.prompt_set, first.kind) == (0, "amplify", "object")
    assert (first.class_noun, first.template) == ("teapot", "caption/object.j2")
    assert first.language_model == "openai/gpt-x"
    assert (first.reference, first.width, first.height, first.seed) == (None,) * 4
    assert Prompt.from_json(first.to_json()) == first


def test_no_caption_comes_twice_and_phrases_are_used_evenly() -> None:
    prompts = written(drawing(), 60)
    assert [prompt.index for prompt in prompts] == list(range(60))
    assert len(set(texts_of(prompts))) == 60
    for slot, phrases in SLOTS.items():
        counts = Counter(prompt.slots[slot] for prompt in prompts)
        assert set(counts) == set(phrases)
        # Of 72 captions 60 are made: passing over repeated ones cannot make this very uneven.
        assert min(counts.values()) >= 60 // len(phrases) - 4, counts


def test_living_things_move_and_objects_do_not(tmp_path: Path) -> None:
    slots = {"color": ("brown",), "motion": ("running",)}
    dog = {"class_noun": "dog", "kind": "living"}
    living = drawing(slots, subject=dog, template=one_form(tmp_path, "living"))
    assert texts_of(written(living, 1, vocabulary_of(slots))) == ["a photo of a brown dog running"]
    with pytest.raises(CaptionTemplateError, match=r"object\.j2:1: .* slot 'motion'"):
        written(drawing(slots), 1, vocabulary_of(slots))


def test_a_template_of_ones_own_is_named_without_its_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.j2").write_text("{{ style }} {{ color }} {{ class_noun }} {{ background }}!")
    (first,) = written(drawing(template=str(tmp_path / "mine.j2")), 1)
    assert first.template == "mine.j2"
    assert first.text.endswith("!")


def test_several_templates_have_their_shares(tmp_path: Path) -> None:
    (tmp_path / "mine.j2").write_text("{{ style }} {{ color }} {{ class_noun }} {{ background }}!")
    shares = [{"file": "caption/tags.j2", "share": 1}, {"file": "mine.j2", "share": 3}]
    content = drawing(template=str(tmp_path / "mine.j2")).model_dump(
        mode="json", by_alias=True, exclude={"extends", "subjects"}
    )
    path, digests = tmp_path / "recipe.yaml", set()
    for template in (shares, shares[::-1], shares[1:], "mine.j2", [{"file": "gone.j2"}], []):
        content["prompts"]["template"] = template
        path.write_text(yaml.safe_dump(content))
        if template in ([], [{"file": "gone.j2"}]):
            with pytest.raises(RecipeError, match=r"prompts\.template"):
                load_recipe(path)
            continue
        recipe = load_recipe(path)
        digests.add(recipe_digest(recipe))
        path.write_text(resolved_yaml(recipe))
        assert load_recipe(path) == recipe
        if template == shares:
            used = Counter(prompt.template for prompt in written(recipe, 60))
            assert 5 < used["caption/tags.j2"] < 25
            assert used["mine.j2"] == 60 - used["caption/tags.j2"]
    assert len(digests) == 3  # a list of one is that one


Job = tuple[Recipe, Vocabulary, dict[str, Any]]


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    """Recipes with clashes, exclusions, long captions and several sets: much to pass over."""
    names = ("color", "shape", "background", "style")
    long = draw(st.booleans())
    slots = {
        name: tuple(
            f"{name}{n}" + " very" * (6 * long * (n % 3 == 0))
            for n in range(draw(st.integers(1, 6)))
        )
        for name in names
    }
    pairs = [
        ((one, first), (other, second))
        for one, other in itertools.combinations(slots, 2)
        for first in slots[one]
        for second in slots[other]
    ]
    clashes = dict(draw(st.lists(st.sampled_from(pairs), max_size=8)))
    modes = st.sampled_from(["sample", "sample", "grid", "cycle"])
    sets = [{"amplify": 1}, {"naive": 1, "amplify": 2}, {"against": 1, "amplify": 3}]
    recipe = drawing(
        {name: {"mode": draw(modes)} for name in draw(st.permutations(names))},
        seed=draw(st.integers(0, 2**32)),
        sets=draw(st.sampled_from(sets)),
        over_limit=draw(st.sampled_from(["shorten", "refuse"])),
    )
    photos = photos_of("a photo of a sks teapot on a mat", "sks teapot", "my sks in a box")
    return recipe, vocabulary_of(slots, clashes), {"photos": photos, "budget": by_words(16)}


@pytest.mark.slow
@settings(max_examples=60)
@given(jobs(), st.integers(0, 60), st.integers(0, 60))
def test_fewer_captions_are_the_first_of_more(job: Job, one: int, other: int) -> None:
    def until_the_end(count: int) -> list[Prompt]:
        found: list[Prompt] = []
        with contextlib.suppress(NotEnoughPrompts):
            for prompt in write_prompts(recipe, words, count=count, **options):
                found.append(prompt)  # extend would lose them when it fails
        return found

    recipe, words, options = job
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
def test_all_captions_there_are_can_be_had(job: Job) -> None:
    recipe, words, _ = job
    amplify = recipe.prompts.model_copy(update={"sets": {"amplify": 1.0}})
    recipe = recipe.model_copy(update={"prompts": amplify})
    possible = {
        row
        for row in itertools.product(*words.slots.values())
        if go_together(words, dict(zip(words.slots, row, strict=True)))
    }
    prompts = written(recipe, len(possible), words, budget=by_words(1000))
    assert {tuple(prompt.slots[name] for name in words.slots) for prompt in prompts} == possible
    with pytest.raises(NotEnoughPrompts):
        written(recipe, len(possible) + 1, words, budget=by_words(1000))


def test_another_seed_gives_other_captions_and_a_new_slot_changes_no_other() -> None:
    first = written(drawing(), 20)
    assert texts_of(written(drawing(seed=1), 20)) != texts_of(first)
    more = {"material": ("clay", "tin"), **SLOTS}
    wider = written(drawing(more), 20, vocabulary_of(more))
    assert all(p.slots.items() <= q.slots.items() for p, q in zip(first, wider, strict=True))


def test_every_set_gets_its_share_in_every_number_of_captions() -> None:
    shares = {"naive": 0.2, "against": 0.3, "amplify": 0.5}
    shown = photos_of(*(f"a photo of a sks teapot in box {n}" for n in range(20)))
    prompts = written(drawing(sets=shares), 100, photos=shown)
    counts: Counter[str] = Counter()
    for number, prompt in enumerate(prompts, 1):
        counts[prompt.prompt_set] += 1
        assert all(abs(counts[name] - share * number) < 1 for name, share in shares.items())
    naive = {(p.text, *p.slots.values()) for p in prompts if p.prompt_set == "naive"}
    assert naive == {("a photo of a teapot", None, None, None)}
    rest = [prompt.text for prompt in prompts if prompt.prompt_set != "naive"]
    assert len(set(rest)) == len(rest)
    assert "a photo of a teapot" not in rest


def test_the_naive_caption_is_left_to_the_naive_set_and_no_slots_make_one_caption() -> None:
    slots = {"style": ("a photo of", "a sketch of")}
    prompts = written(drawing(slots, sets={"naive": 1, "amplify": 1}), 2, vocabulary_of(slots))
    assert texts_of(prompts) == ["a photo of a teapot", "a sketch of a teapot"]
    assert texts_of(written(drawing({}), 1, vocabulary_of({}))) == ["a photo of a teapot"]
    with pytest.raises(NotEnoughPrompts, match="Give the recipe slots"):
        written(drawing({}), 2, vocabulary_of({}))


@pytest.mark.parametrize("presence", [0, 0.3, 0.5])
def test_a_slot_is_in_its_share_of_the_captions_and_the_others_stay(presence: float) -> None:
    rare = {**SLOTS, "color": {"presence": presence}}
    shown = photos_of(*(f"a photo of a sks teapot in box {n}" for n in range(4)))
    sets = {"against": 1, "amplify": 3}
    prompts = written(drawing(rare, sets=sets), 16, photos=shown)
    for name in sets:
        said = [bool(prompt.slots["color"]) for prompt in prompts if prompt.prompt_set == name]
        ahead = [made - presence * n for n, made in enumerate(itertools.accumulate(said), 1)]
        assert max(map(abs, ahead)) <= 2  # evenly, in any number of captions
    for prompt in prompts:
        named = any(re.search(rf"\b{color}\b", prompt.text) for color in COLORS)
        assert named == bool(prompt.slots["color"])
    assert all(p.slots["style"] for p in prompts)
    assert written(drawing(rare, sets=sets), 7, photos=shown) == prompts[:7]


def test_slots_are_left_out_independently_and_what_is_left_bare_may_come_again() -> None:
    slots = {"size": ("tiny", "huge", "tall"), "color": COLORS}
    rare = {name: {"presence": 0.5} for name in slots}
    for sets in ({"amplify": 1}, AGAINST):
        recipe, shown = drawing(rare, sets=sets), photos_of("a photo of a sks teapot by a cup")
        prompts = written(recipe, 12, vocabulary_of(slots), photos=shown)
        assert len({tuple(map(bool, prompt.slots.values())) for prompt in prompts}) == 4
        bare = [prompt for prompt in prompts if not any(prompt.slots.values())]
        rest = [prompt.text for prompt in prompts if prompt not in bare]
        assert len({prompt.text for prompt in bare}) == 1 < len(bare)
        assert len(set(rest)) == len(rest)
        # There are three captions with a size alone, and in their place come no others.
        with pytest.raises(NotEnoughPrompts):
            written(recipe, 60, vocabulary_of(slots), photos=shown)


def test_composed_captions_leave_slots_out_too() -> None:
    recipe = drawing({"color": {"presence": 0.5}, "style": {}}, mode="compose")
    rows = [{"color": color, "style": style} for color in COLORS for style in STYLES]
    prompts = written(recipe, 6, vocabulary_of({}), rows=iter(rows))
    assert sum(bool(prompt.slots["color"]) for prompt in prompts) == 3


CUP = photos_of("a cup on a mat")
LONG = {"subject": {"class_noun": "very " * 9 + "long noun"}}


@pytest.mark.parametrize(
    ("prompts", "options", "error", "told"),
    [
        ({"sets": AGAINST}, {}, CannotWrite, "needs photos"),
        ({"sets": AGAINST}, {"photos": CUP}, PhotoCaptionUnclear, r"00\.jpg"),
        ({"sets": AGAINST, "match": ["size"]}, {"photos": CUP}, CannotWrite, "needs the size"),
        ({"sets": {"import": 1}}, {}, CannotWrite, "import"),
        ({}, {"words": vocabulary_of({"color": COLORS})}, VocabularyError, "slot 'background'"),
        *(
            (LONG | {"over_limit": over, "sets": {name: 1}}, {}, CannotWrite, "more than 12")
            for over in ("shorten", "refuse")
            for name in ("amplify", "naive")
        ),
    ],
)
def test_what_cannot_be_written_is_told_before_the_first_caption(
    prompts: dict[str, Any], options: dict[str, Any], error: type[RegforgeError], told: str
) -> None:
    words = options.get("words", vocabulary_of())
    with pytest.raises(error, match=told):
        write_prompts(
            drawing(**prompts), words, budget=by_words(12), photos=options.get("photos", ())
        )


def test_estimated_limits_are_told_to_be_estimates(capsys: pytest.CaptureFixture[str]) -> None:
    budget = TokenBudget(77, "an estimate (no tokenizer)", lambda text: 3, estimated=True)
    written(drawing(), 1, budget=budget, reporter=Reporter())
    assert "counted by an estimate (no tokenizer)" in capsys.readouterr().err


def test_clashing_phrases_are_redrawn_and_the_background_kept() -> None:
    clashes = {("color", "red"): ("background", "on a shelf")}
    with_clash, without = (
        written(drawing(), 30, vocabulary_of(clashes=clashes)),
        written(drawing(), 30),
    )
    red = {"color": "red", "background": "on a shelf"}.items()
    assert not any(red <= p.slots.items() for p in with_clash)
    assert any(red <= p.slots.items() for p in without)
    assert 20 <= sum(p == q for p, q in zip(with_clash, without, strict=True)) < 30


def test_too_few_captions_is_a_failure_with_what_to_do(tmp_path: Path) -> None:
    slots = {"color": ("red", "blue", "sky-blue", "sky blue"), "style": ("a photo of", "a map of")}
    words = vocabulary_of(slots, {("color", "red"): ("style", "a map of")})
    prompts = write_prompts(
        drawing(slots), words, budget=by_words(), count=50, journal=Journal(tmp_path)
    )
    assert len({prompt.text for prompt in itertools.islice(prompts, 5)}) == 5
    with pytest.raises(NotEnoughPrompts) as caught:
        next(prompts)
    for part in (
        "Only 5 of 50 captions could be made: the amplify set has no more after 5.",
        "8 ways (4 color × 2 style), and 5 are used",
        "2 were said before",
        "1 do not go together",
        "`style`, has 2",
        "prompts.count to 5",
    ):
        assert part in str(caught.value)
    reasons = [entry["reason"] for entry in read(tmp_path / "ledger.jsonl")]
    assert "was said before" in reasons
    assert "its phrases do not go together, however redrawn" in reasons
    # One by one only up to a point: a stubborn vocabulary fills no disk.
    assert len(reasons) < 400


def test_the_identifier_never_comes_in_nor_phrases_that_make_it_up(
    tmp_path: Path,
) -> None:
    slots = {"color": ("red", "SKS blue", "masks"), "background": ("near a sks.", "on a sofa")}
    prompts = written(drawing(slots), 2, vocabulary_of(slots), journal=Journal(tmp_path))
    assert {p.slots["color"] for p in prompts} == {"red", "masks"}
    assert {p.slots["background"] for p in prompts} == {"on a sofa"}
    first = next(iter(read(tmp_path / "ledger.jsonl")))
    assert first["reason"] == "'SKS blue' contains the identifier 'sks'"
    slots = {"color": ("red", "blue"), "texture": ("cat", "dog")}
    recipe = drawing(slots, subject={"identifier": "red cat"}, template=one_form(tmp_path))
    looks = ("red dog", "blue cat", "blue dog")
    expected = {f"a photo of a {look} teapot" for look in looks}
    assert set(texts_of(written(recipe, 3, vocabulary_of(slots)))) == expected
    with pytest.raises(NotEnoughPrompts, match="1 name the identifier"):
        written(recipe, 4, vocabulary_of(slots))


def test_excluded_prompts_stay_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slots = {"color": ("red", "white", "blue")}
    slots["background"] = ("on a rug", "on a beach", "by a car")
    recipe = drawing(slots, exclude=["dreambench"], template=one_form(tmp_path))
    prompts = written(recipe, 3, vocabulary_of(slots), reporter=Reporter())
    assert set(texts_of(prompts)) == {  # no red, no beach, and no white teapot on a rug
        "a photo of a white teapot by a car",
        "a photo of a blue teapot on a rug",
        "a photo of a blue teapot by a car",
    }
    told = capsys.readouterr().err
    assert "slot color: 1 of 3 phrases are not used, such as 'red', which says" in told
    with pytest.raises(NotEnoughPrompts, match="1 say what is excluded"):
        written(recipe, 4, vocabulary_of(slots))


def test_long_captions_lose_their_last_slots_and_the_background_last_of_all(
    tmp_path: Path,
) -> None:
    slots = {"shape": ("round",), "color": ("very very dark red",)}
    slots |= {"background": ("on a table",), "style": ("a rather large oil painting of",)}
    recipe = drawing(slots, template=one_form(tmp_path))
    made = {
        limit: written(recipe, 1, vocabulary_of(slots), budget=by_words(limit))[0]
        for limit in range(7, 21)
    }
    for limits, text in (
        ((18, 20), "a rather large oil painting of a round very very dark red teapot on a table"),
        ((16, 17), "a photo of a round very very dark red teapot on a table"),
        ((11, 14), "a photo of a round teapot on a table"),
        ((10, 10), "a photo of a teapot on a table"),
        ((7, 9), "a photo of a teapot"),
    ):
        assert {made[limit].text for limit in limits} == {text}
    assert list(made[11].slots.values()) == ["round", None, "on a table", None]


def test_long_captions_can_be_refused() -> None:
    slots = {"color": ("red", "very very very very very dark red", "blue")}
    recipe, budget = drawing(slots, over_limit="refuse"), by_words(10)
    prompts = written(recipe, 2, vocabulary_of(slots), budget=budget)
    assert {prompt.slots["color"] for prompt in prompts} == {"red", "blue"}
    with pytest.raises(NotEnoughPrompts, match="1 have more than 10 tokens"):
        written(recipe, 3, vocabulary_of(slots), budget=budget)


def test_modes_and_weights_come_from_the_recipe_and_the_vocabulary() -> None:
    modes = {"color": "cycle", "background": "grid", "style": "sample"}
    words = vocabulary_of(weights={"style": (8.0, 1.0, 1.0)})
    prompts = written(drawing({name: {"mode": mode} for name, mode in modes.items()}), 12, words)
    assert [p.slots["color"] for p in prompts] == list(COLORS) * 2
    assert [p.slots["background"] for p in prompts] == list(PLACES) * 3
    styles = Counter(p.slots["style"] for p in written(drawing(), 40, words))
    assert styles[STYLES[0]] > 20  # 24 of 72 captions have it; fewer are left in the end


def rows() -> Iterator[dict[str, str]]:
    for n in itertools.count():
        yield {"color": f"color{n} dark", "background": f"near number{n} of all the many numbers"}


def composing(near_duplicates: float = 1.0, **prompts: Any) -> Recipe:
    return drawing(mode="compose", near_duplicates=near_duplicates, **prompts)


STYLE, EVERY_STYLE = vocabulary_of({"style": STYLES[:1]}), vocabulary_of({"style": STYLES})


def test_composed_rows_are_joined_by_what_the_vocabulary_has() -> None:
    recipe = composing()
    prompts = written(recipe, 6, EVERY_STYLE, rows=rows())
    assert [p.slots["color"] for p in prompts] == [f"color{n} dark" for n in range(6)]
    assert {p.slots["style"] for p in prompts} == set(STYLES)
    assert {p.language_model for p in prompts} == {recipe.prompts.llm.model}
    assert written(recipe, 3, EVERY_STYLE, rows=rows()) == prompts[:3]


def test_composed_captions_may_not_be_nearly_the_same() -> None:
    table = "on a long wooden kitchen table near bread"
    places = {"dark red": table, "dark blue": table, "green": "in a boat"}
    given = [{"color": color, "background": place} for color, place in places.items()]
    prompts = written(composing(0.8), 2, STYLE, rows=given)
    assert [p.slots["color"] for p in prompts] == ["dark red", "green"]


def test_rows_that_end_or_repeat_themselves_forever_are_given_up() -> None:
    with pytest.raises(NotEnoughPrompts, match="Only 3 of 5"):
        written(composing(), 5, STYLE, rows=itertools.islice(rows(), 3))
    again = itertools.repeat({"color": "red", "background": "on a bed"})
    with pytest.raises(NotEnoughPrompts, match=r"Too many in a row were refused.*said before"):
        written(composing(), 2, STYLE, rows=again)


def test_against_takes_its_attributes_from_composed_rows_too() -> None:
    shown = photos_of("my sks in a box")
    prompts = written(composing(sets=AGAINST), 2, EVERY_STYLE, rows=rows(), photos=shown)
    assert texts_of(prompts) == [f"a color{n} dark teapot in a box" for n in range(2)]


def test_the_embedded_world_has_captions_within_its_own_limit() -> None:
    """All that it can draw, most of the captions DreamBench does not ask for."""
    from regforge.embedded import load_vocabulary
    from regforge.prompts.tokens import token_budget

    known = load_vocabulary()
    names = ("size", "color", "texture", "motion", "background", "lighting", "style")
    slots = {name: tuple(known[name]) for name in names}
    dog = {"class_noun": "dog", "kind": "living"}
    recipe = drawing(slots, subject=dog, exclude=["dreambench"])
    prompts = written(recipe, 500, vocabulary_of(slots), budget=token_budget(recipe.render))
    texts = texts_of(prompts)
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
