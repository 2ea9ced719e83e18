"""Which phrases do not go together, from the banks or from a language model."""

from typing import Any

import pytest
from builders import FakeClient, fill, go_together, recipe_of, text_of
from hypothesis import given
from hypothesis import strategies as st

from regforge.journal import Journal
from regforge.prompts.compatibility import Clashes, Portion, portions, settle
from regforge.prompts.vocabulary import Pair, Vocabulary, VocabularyError
from regforge.providers.language_model import Question

SLOTS = [
    {"name": "motion", "from": "llm", "values": ["paddling", "hovering", "napping"]},
    {"name": "background", "values": ["in a larder", "in a lagoon", "on a hearth"]},
]
DOG = {"class_noun": "dog"}


def clashing(
    clashes: Any, lines: list[str] | None = None, **prompts: Any
) -> tuple[Vocabulary, FakeClient]:
    """The vocabulary of a dog whose model takes all values and says that these pairs clash."""

    def answer(question: Question, attempt: int) -> Any:
        if question.item.startswith("compatibility"):
            return {"clashes": clashes}
        slot = next(each for each in SLOTS if each["name"] == question.item.split()[1].strip(","))
        return {"phrases": slot["values"]}

    client = FakeClient(answer)
    recipe = recipe_of({"slots": SLOTS, **prompts}, subject=DOG)
    return fill(recipe, client, lines=lines), client


def test_the_model_names_clashing_pairs_by_number() -> None:
    vocabulary, client = clashing([{"phrase": 1, "backgrounds": [1, 3]}])
    assert vocabulary.incompatible == {
        ("background", "in a larder", "motion", "paddling"),
        ("background", "on a hearth", "motion", "paddling"),
    }
    text = text_of(next(each for each in client.asked if each.item.startswith("compat")))
    assert "1. paddling" in text
    assert "3. on a hearth" in text


def test_numbers_that_do_not_exist_are_told_to_the_model() -> None:
    lines: list[str] = []
    vocabulary, client = clashing([{"phrase": 4, "backgrounds": [0, 2]}], lines)
    complaints = " ".join(client.complaints["compatibility of motion, question 1"])
    assert "There is no phrase 4" in complaints
    assert "There is no background 0" in complaints
    assert not vocabulary.incompatible
    assert "did not say which motion phrases" in lines[0]


def test_a_model_that_forbids_nearly_everything_is_asked_again() -> None:
    everything = [{"phrase": number, "backgrounds": [1, 2, 3]} for number in (1, 2, 3)]
    vocabulary, client = clashing(everything)
    assert "most go together" in client.complaints["compatibility of motion, question 1"][0]
    assert not vocabulary.incompatible


def test_compatibility_false_asks_nothing() -> None:
    vocabulary, client = clashing([{"phrase": 1, "backgrounds": [1]}], compatibility=False)
    assert not any(question.item.startswith("compat") for question in client.asked)
    assert not vocabulary.incompatible


def test_phrases_that_the_banks_know_need_no_question() -> None:
    slots = [
        {"name": "color", "from": "llm", "values": ["black"]},
        {"name": "motion", "values": ["swimming", "standing still"]},
        {"name": "background", "from": "bank"},
        {"name": "style", "values": ["an underwater photo of", "a studio photo"]},
    ]

    client = FakeClient(lambda *_: {"phrases": ["black"]})
    vocabulary = fill(recipe_of({"slots": slots}, subject=DOG), client)
    assert len(client.asked) == 1
    kitchen = next(text for text in vocabulary.slots["background"] if "kitchen" in text)
    assert not go_together(vocabulary, {"motion": "swimming", "background": kitchen})
    assert go_together(vocabulary, {"motion": "standing still", "background": kitchen})
    # No place of a dog is under water; the user wrote the style all the same, so it stays usable.
    assert go_together(vocabulary, {"style": "an underwater photo of", "background": kitchen})
    assert not go_together(vocabulary, {"style": "a studio photo", "background": kitchen})


@pytest.mark.parametrize("count", [1, 7, 40, 100, 130, 1000])
def test_every_pair_is_asked_about_once_in_portions_of_bounded_size(count: int) -> None:
    slots = {name: [f"{name} {n}" for n in range(count)] for name in ("motion", "background")}
    asked = list(portions(slots))
    pairs = [(m, b) for each in asked for m in each.phrases for b in each.backgrounds]
    assert len(pairs) == len(set(pairs)) == count * count
    assert all(len(each.phrases) * len(each.backgrounds) <= 1600 for each in asked)
    assert len({(each.slot, each.number) for each in asked}) == len(asked)


PHRASES = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6, unique=True).map(tuple)


@given(PHRASES, PHRASES, PHRASES, st.data())
def test_settled_phrases_can_all_be_drawn_and_none_of_the_users_is_lost(
    motions: tuple[str, ...], lights: tuple[str, ...], places: tuple[str, ...], data: Any
) -> None:
    slots = {"lighting": lights, "motion": motions, "background": places}
    possible: list[Pair] = [
        ("background", place, slot, phrase)
        for slot in ("lighting", "motion")
        for phrase in slots[slot]
        for place in places
    ]
    clashes = frozenset(data.draw(st.lists(st.sampled_from(possible), unique=True)))
    fixed = frozenset(data.draw(st.sets(st.sampled_from(sorted(slots)))))
    settled, left = settle(slots, clashes, fixed, Journal(None))
    vocabulary = Vocabulary("x", "living", settled, incompatible=left)
    assert left <= clashes
    for slot, phrases in settled.items():
        assert phrases
        assert phrases == slots[slot] or slot not in fixed
        assert set(phrases) <= set(slots[slot])
        for phrase in phrases:
            for other in set(slots) - {slot}:
                pairs = ({slot: phrase, other: there} for there in settled[other])
                assert any(go_together(vocabulary, pair) for pair in pairs)


def test_a_phrase_that_goes_nowhere_is_left_out() -> None:
    clashes = [{"phrase": 2, "backgrounds": [1, 2, 3]}, {"phrase": 1, "backgrounds": [1]}]
    vocabulary, _ = clashing(clashes)
    assert vocabulary.slots["motion"] == ("paddling", "napping")
    assert vocabulary.incompatible == {("background", "in a larder", "motion", "paddling")}


def test_what_only_seems_odd_is_forgotten_for_users_phrases_and_what_is_untrue_stays() -> None:
    slots = {"lighting": ("at night",), "background": ("on a sunny beach", "in a cave")}
    odd = frozenset({("background", "in a cave", "lighting", "at night")})
    settled, left = settle(slots, odd, frozenset({"lighting"}), Journal(None))
    assert settled == {"lighting": ("at night",), "background": ("in a cave",)}
    assert left == frozenset()
    with pytest.raises(VocabularyError, match="'on a sunny beach' contradicts every"):
        settle(slots, odd, frozenset(slots), Journal(None))


@given(st.integers(-2, 5), st.lists(st.integers(-2, 5), max_size=4))
def test_numbers_out_of_range_never_become_pairs(phrase: int, backgrounds: list[int]) -> None:
    portion = Portion("motion", ("a", "b"), ("x", "y"), 1)
    clash = {"phrase": phrase, "backgrounds": backgrounds}
    reply = Clashes.model_validate({"clashes": [clash]})
    good = phrase in (1, 2) and set(backgrounds) <= {1, 2}
    assert bool(portion.problems(reply)) == (not good)
    assert len(portion.pairs(reply)) <= 2
