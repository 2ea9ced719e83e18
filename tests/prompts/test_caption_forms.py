"""Captions of the banks: several orders of words, photographs in their share, English."""

import re
from collections import Counter
from pathlib import Path

import pytest
from builders import fill, recipe_of, written
from test_captions import own, shipped

from regforge.files import templates_folder
from regforge.prompts.captions import CaptionTemplateError, is_photograph
from regforge.prompts.tokens import token_budget
from regforge.records import Prompt
from regforge.training.augmentation import Composer

NOUNS = ["teapot", "tabby cat", "woman", "pizza", "water", "sneakers", "glasses", "lighthouse"]


def captions(noun: str, count: int = 100, **more: object) -> list[Prompt]:
    living = noun in ("tabby cat", "woman")
    names = ["shape", "color", "texture", "background", "lighting", "style"]
    names[3:3] = ["motion"] if living else []
    slots = [{"name": name, "from": "bank"} for name in names]
    recipe = recipe_of({"slots": slots, **more}, subject={"class_noun": noun})
    return written(recipe, count, fill(recipe), budget=token_budget(recipe.render))


def form_of(prompt: Prompt) -> str:
    color, noun = prompt.slots["color"] or "", prompt.class_noun
    if re.search(rf"{color}.* {noun}\b", prompt.text):
        return "before"
    joined = r"(?:that is|that are|who is)"
    assert re.search(rf"{noun}(?: {joined}|,) .*{color},", prompt.text), prompt.text
    return "that is" if re.search(rf"{noun} {joined} ", prompt.text) else "comma"


@pytest.mark.slow
@pytest.mark.parametrize("noun", NOUNS)
def test_captions_take_turns_with_three_orders_and_photographs_have_their_share(
    noun: str,
) -> None:
    made = captions(noun)
    forms = Counter(map(form_of, made))
    assert set(forms) == {"before", "that is", "comma"}
    assert min(forms.values()) >= 18
    # More captions change none of those that are there.
    assert [p.text for p in captions(noun, 130)][:100] == [p.text for p in made]
    text = "\n".join(p.text for p in made)
    assert not re.search(r"\ba [aeio]|\ban [^aeiouhL]|  |,,| ,", text)
    wrong = {"water": "a water ", "sneakers": "that is", "glasses": "that is", "woman": "that is"}
    assert wrong.get(noun, "  ") not in text
    styles = [prompt.slots["style"] or "" for prompt in made]
    assert sum(map(is_photograph, styles)) >= 60
    fewer = [p.slots["style"] or "" for p in captions(noun, photo_share=0.2)]
    assert sum(map(is_photograph, fewer)) <= 35


def test_what_a_photograph_is() -> None:
    assert all(map(is_photograph, ["a photo of", "a wide shot of", "a cinematic still of"]))
    assert not any(map(is_photograph, ["a still life painting of", "an oil painting of"]))
    assert not any(map(is_photograph, ["a claymation still of", "a photo-realistic painting of"]))


@pytest.mark.parametrize("name", ["object", "living"])
def test_each_form_leaves_no_trace_of_what_is_empty(name: str) -> None:
    template = shipped(name, "cat")
    assert template.forms == 3
    for form in range(3):
        assert template.render({}, form) == "a photo of a cat"
        assert template.render({"background": "on a mat"}, form) == "a photo of a cat on a mat"
    look = {"size": "small", "color": "red", "texture": "striped", "background": "on a mat"}
    assert [template.render(look, form) for form in range(3)] == [
        "a photo of a small red striped cat on a mat",
        "a photo of a striped cat that is small and red, on a mat",
        "a photo of a striped cat, small and red, on a mat",
    ]
    assert template.attributes == ("size", "shape", "color", "texture", "material")


def test_slot_dropout_keeps_each_captions_own_form() -> None:
    file = templates_folder() / "caption" / "object.j2"
    for prompt in captions("teapot", 12):
        composer = Composer(file, "caption.j2", list(prompt.slots))
        about = {"class_noun": "teapot", "kind": "object", "prompt_set": "amplify"}
        caption = composer.caption(prompt.text, prompt.slots, **about)
        assert caption.compose is not None
        kept = {slot: text for slot, text in caption.slots.items() if slot != "background"}
        without = prompt.text.replace(f" {prompt.slots['background']},", ",")
        assert caption.compose(kept) == without.replace(",,", ",")


def test_a_template_of_ones_own_may_have_forms_too(tmp_path: Path) -> None:
    first = "{{ color }} {{ class_noun }}\n---\n"
    template = own(tmp_path, first + "{{ class_noun }}, {{ color }}\n", slots=["color"])
    forms = [template.render({"color": "red"}, form) for form in (0, 1)]
    assert forms == ["red teapot", "teapot, red"]
    with pytest.raises(CaptionTemplateError, match=r"mine\.j2:4: there is no 'colr'"):
        own(tmp_path, first + "\n{{ class_noun }} {{ colr }}\n", slots=["color"])
    with pytest.raises(CaptionTemplateError, match="never uses the recipe's slot 'color'"):
        own(tmp_path, first + "{{ class_noun }}\n", slots=["color"])
