"""The class noun: a bare common noun phrase of English, or a refusal that says what to write."""

from pathlib import Path

import pytest
from PIL import Image
from shell import Shell

from regforge.embedded.phrase_banks import load, with_article

REFUSED = {
    # articles, possessives, numbers
    "A cat": "cat",
    "the Eiffel Tower": "tower",
    "my dog Rex": "dog",
    "two cats": "cats",
    "Rex's bowl": "bowl",
    # names
    "Rex": None,
    "Labubu": None,
    "dog Rex": "dog",
    "Eiffel Tower": "tower",
    "teddy bear named Ted": "teddy bear",
    # capitals
    "Cat": "cat",
    "TEAPOT": "teapot",
    "Robot Toy": "robot toy",
    "RobotToy": "robot toy",
    # punctuation and alternatives
    "cat.": "cat",
    "robot toy|toy robot": "robot toy",
    "cat/dog": "cat",
    "cat or dog": "cat",
    "{cat|dog}": "cat",
    "__animal__": "animal",
    "(cat:1.3)": "cat",
    "cat (animal)": "cat",
    "robot_toy": "robot toy",
    "cup & saucer": "cup and saucer",
    "cat \U0001f431": "cat",
    "%s": None,
    "1girl": "girl",
    # no noun at all
    "none": None,
    "N/A": None,
    "my": None,
    "me": None,
    "cat is red": None,
    "photo of a cat": "cat",
    # other languages and letters
    "el gato": None,
    "der Hund": None,
    "\u732b": None,
    "\u043a\u043e\u0448\u043a\u0430": None,
    "\uff43\uff41\uff54": "cat",
}
SOUND = [
    *("cat", "robot toy", "ceramic teapot", "water", "pasta", "glasses", "pair of glasses"),
    *("Dalmatian", "T-shirt", "VR headset", "German shepherd", "german shepherd", "TV"),
    *("Christmas tree", "Shiba Inu", "Swiss Army knife", "Rubik's cube", "3D printer", "RC car"),
    *(
        "statue of a horse",
        "glass of water",
        "bird's nest",
        "black and white cat",
        "caf\u00e9 table",
    ),
]
DOUBTED = ["kaffeetasse", "pi\u00f1ata", "thing", "cat and dog", "Nike sneaker"]


def recipe(folder: Path, noun: str, *, training: bool = False) -> Path:
    """A recipe whose class noun stands in line 3, column 15."""
    (folder / "photos").mkdir(exist_ok=True)
    for number in range(3):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(folder / f"photos/{number}.png")
    quoted = "'" + noun.replace("'", "''") + "'"
    of_training = "\n  identifier: sks\n  images: photos\nbase_model: embedded/tinyworld\n"
    of_dataset = "\n  kind: object\nprompts: {sets: {naive: 1}, count: 1}\n"
    path = folder / "r.yaml"
    text = f"name: x\nsubject:\n  class_noun: {quoted}{of_training if training else of_dataset}"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("training", [False, True], ids=["dataset", "training"])
@pytest.mark.parametrize(("noun", "instead"), REFUSED.items())
def test_what_is_no_bare_noun_is_refused_with_the_noun_to_write(
    tmp_path: Path, shell: Shell, noun: str, instead: str | None, training: bool
) -> None:
    path = recipe(tmp_path, noun, training=training)
    assert shell("check", path) == 2
    assert f"{path}:3:15" in shell.err.replace("\n", "")
    assert "subject.class_noun" in shell.err
    assert (f"'{instead}'" in shell.err) is (instead is not None) or instead is None
    if instead is not None:  # what is advised is sound itself
        assert shell("check", recipe(tmp_path, instead, training=training)) == 0, shell.err


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True], ids=["dataset", "training"])
def test_sound_nouns_pass_and_others_are_said(tmp_path: Path, shell: Shell, training: bool) -> None:
    for noun in SOUND:
        assert shell("check", recipe(tmp_path, noun, training=training)) == 0, shell.err
        assert "subject.class_noun" not in shell.out, noun
    for noun in DOUBTED:
        assert shell("check", recipe(tmp_path, noun, training=training)) == 0, shell.err
        assert "subject.class_noun" in shell.out, noun


def test_a_refusal_says_what_is_so_also_of_set_and_init(tmp_path: Path, shell: Shell) -> None:
    assert shell("check", recipe(tmp_path, "dog called Rex")) == 2
    assert "punctuation" not in shell.err
    assert shell("check", recipe(tmp_path, "Shih Tzu")) == 2
    assert "'shih tzu'" in shell.err
    assert shell("check", recipe(tmp_path, "PlayStation controller")) == 0, shell.err
    path = recipe(tmp_path, "cat")
    assert shell("check", path, "--set", "subject.class_noun=my cat") == 2
    assert "--set" in shell.err
    assert "'cat'" in shell.err
    assert shell("init", tmp_path / "new.yaml", "--class-noun", "my cat") == 2
    assert "'cat'" in shell.err
    assert not (tmp_path / "new.yaml").exists()


@pytest.mark.parametrize(("noun", "advice"), [("sks cat", "'cat'"), ("rex", "rare token")])
def test_an_identifier_in_the_class_noun_is_to_be_taken_out_there(
    tmp_path: Path, shell: Shell, noun: str, advice: str
) -> None:
    path = recipe(tmp_path, noun)
    identifier = noun.split(maxsplit=1)[0]
    assert shell("check", path, "--set", f"subject.identifier={identifier}") == 2
    assert advice in shell.err
    assert ("rare token" in shell.err) is (advice == "rare token")
    training = recipe(tmp_path, noun, training=True)
    assert shell("check", training, "--set", f"subject.identifier={identifier}") == 0, shell.err
    assert advice in shell.out


@pytest.mark.parametrize(
    ("noun", "said"), [("white cat", True), ("red panda", False), ("cat", False)]
)
def test_a_color_in_the_class_noun_beside_a_slot_of_colors_is_said(
    tmp_path: Path, shell: Shell, noun: str, said: bool
) -> None:
    slots = "prompts.slots=[{name: color, values: [red, green]}]"
    path = recipe(tmp_path, noun)
    sets = ["--set", "prompts.sets={amplify: 1}", "--set", "subject.kind=living"]
    assert shell("check", path, *sets, "--set", slots) == 0, shell.err
    assert (f"{noun!r} says a color" in shell.out) is said


@pytest.mark.parametrize(
    ("noun", "number", "named"),
    [
        ("water", "mass", "water"),
        ("sparkling water", "mass", "sparkling water"),
        ("pasta", "mass", "pasta"),
        ("furniture", "mass", "furniture"),
        ("water bottle", "singular", "a water bottle"),
        ("glass of water", "singular", "a glass of water"),
        ("scissors", "plural", "scissors"),
        ("hiking boots", "plural", "hiking boots"),
        ("children", "plural", "children"),
        ("glass", "singular", "a glass"),
        ("camera lens", "singular", "a camera lens"),
        ("octopus", "singular", "an octopus"),
        ("cactus", "singular", "a cactus"),
    ],
)
def test_how_a_noun_counts(noun: str, number: str, named: str) -> None:
    assert load().number(noun) == number
    assert with_article(noun) == named


@pytest.mark.parametrize("noun", ["water", "pasta", "furniture", "scissors"])
def test_no_caption_has_an_article_too_many(tmp_path: Path, shell: Shell, noun: str) -> None:
    path = recipe(tmp_path, noun)
    values = "[{name: color, values: [white, clear]}, {name: style, values: [a photo of]}]"
    sets = ["--set", "prompts.sets={naive: 1, amplify: 3}", "--set", f"prompts.slots={values}"]
    assert shell("check", path, "--set", "prompts.count=3", *sets) == 0, shell.err
    captions = shell.out.partition("Sample captions:\n")[2]
    assert f"a photo of {noun}\n" in captions
    assert not [line for line in captions.splitlines() if f"a {noun}" in line]
    assert " of a white" not in captions
