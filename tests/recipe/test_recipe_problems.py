"""Bad recipes, and the exact lines that people read about them."""

# ruff: noqa: E501 (tables of long lines)

from pathlib import Path

import pytest

from regforge.errors import EXIT_USAGE
from regforge.recipe import (
    RecipeError,
    TrainingRecipe,
    load_any_recipe,
    load_recipe,
)
from regforge.words import nearest

GOOD = """\
name: teapots
subject:
  class_noun: teapot
  kind: object
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def complaints(text: str, *overrides: str) -> list[str]:
    """The lines about a recipe, without the name of its file."""
    Path("recipe.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe("recipe.yaml", overrides)
    return [str(problem).removeprefix("recipe.yaml:") for problem in caught.value.problems]


def test_a_minimal_recipe_is_sound_and_an_identifier_that_only_looks_like_the_noun() -> None:
    Path("recipe.yaml").write_text(GOOD, encoding="utf-8")
    assert load_recipe("recipe.yaml").subject.class_noun == "teapot"
    text = "name: x\nsubject: {class_noun: caterpillar, kind: living, identifier: cat}\n"
    Path("recipe.yaml").write_text(text, encoding="utf-8")
    assert load_recipe("recipe.yaml").subject.identifier == "cat"


@pytest.mark.parametrize(
    ("more", "line"),
    [
        # Keys
        ("prompts:\n  conut: 5\n", "6:3  prompts.conut: unknown key, did you mean 'count'?"),
        ("prompts: {llm: {maxcost: 5}}\n", "5:17  prompts.llm.maxcost: unknown key, did you mean 'max_cost'?"),
        ("count: 5\n", "5:1  count: unknown key here, did you mean prompts.count?"),
        ("render:\n  seed: 5\n", "6:3  render.seed: unknown key here, did you mean seed at the top?"),
        ("model: x\n", "5:1  model: unknown key here, did you mean prompts.llm.model or render.model or curate.alignment.model?"),
        ("zzz: 5\n", "5:1  zzz: unknown key; there are version, name, extends, subject, subjects, prompts, render, curate, dataset, seed"),
        ("prompts:\n  slots:\n    - name: color\n      valeus: [red]\n", "8:7  prompts.slots.0.valeus: unknown key, did you mean 'values'?"),
        # Numbers
        ("prompts:\n  count: 0\n", "6:10  prompts.count: must be at least 1, not 0"),
        ("prompts:\n  count: many\n", "6:10  prompts.count: must be a whole number, not 'many'"),
        ("prompts:\n  count: 2.5\n", "6:10  prompts.count: must be a whole number, not 2.5"),
        ("prompts:\n  count:\n", "6:9  prompts.count: must be a whole number, not empty"),
        ("prompts:\n  count: true\n", "6:10  prompts.count: must be a number, not true"),
        ("prompts:\n  count: [5]\n", "6:10  prompts.count: must be a whole number, not a list"),
        ("prompts:\n  count: {a: 5}\n", "6:10  prompts.count: must be a whole number, not a mapping"),
        ("prompts:\n  llm: {temperature: 2.5}\n", "6:22  prompts.llm.temperature: must be at most 2, not 2.5"),
        ("prompts:\n  llm: {timeout: 0}\n", "6:18  prompts.llm.timeout: must be more than 0, not 0"),
        ("prompts:\n  sets: {amplify: .nan}\n", "6:19  prompts.sets.amplify: must be a finite number, not nan"),
        ("prompts:\n  sets: {amplify: .inf}\n", "6:19  prompts.sets.amplify: must be a finite number, not inf"),
        ("seed: 99999999999999999999\n", "5:7  seed: must be less than 9223372036854775808, not 99999999999999999999"),
        ("prompts: {llm: {max_cost: 1, max_tokens: null}}\n", "5:27  prompts.llm.max_cost: needs prompts.llm.max_tokens: nobody knows what a reply of any length may cost"),
        ("render: {renderer: hosted, model: dall-e-3, lora: x.safetensors}\n", "5:51  render.lora: does not go with `renderer: hosted`"),
        ("render: {renderer: hosted, model: dall-e-3, scheduler: ddim}\n", "5:56  render.scheduler: does not go with `renderer: hosted`"),
        ("render: {renderer: hosted, model: dall-e-3, speed: fast}\n", "5:52  render.speed: does not go with `renderer: hosted`"),
        ("render: {model: stabilityai/sdxl-turbo, speed: fast}\n", "5:48  render.speed: does not go with a model that was distilled for few steps: stabilityai/sdxl-turbo is made for 4 steps, no guidance"),
        ("render: {renderer: hosted, model: dall-e-3, quantize: int8}\n", "5:55  render.quantize: does not go with `renderer: hosted`"),
        ("render: {offload: sequential, quantize: int8}\n", "5:19  render.offload: does not go with render.quantize; `group` takes hardly more memory"),
        ("render: {guidance_window: [0.5, 0.5]}\n", "5:27  render.guidance_window: must begin before it ends, such as [0.33, 1]"),
        ("render: {renderer: hosted, model: dall-e-3, negative_prompt: fog}\n", "5:62  render.negative_prompt: goes with `renderer: hosted` only for a server of your own (render.api_base)"),
        ("render: {batch_size: 0}\n", "5:22  render.batch_size: must be auto or at least 1, not 0"),
        ("render: {batch_size: big}\n", "5:22  render.batch_size: must be auto or a whole number, not 'big'"),
        ("render: {width: 1001}\n", "5:17  render.width: must be a multiple of 8, such as 1000 or 1008, not 1001"),
        # Words
        ("render: {dtype: float61}\n", "5:17  render.dtype: must be one of auto, float32, float16, bfloat16; did you mean 'float16'?"),
        ("render: {dtype: quick}\n", "5:17  render.dtype: must be one of auto, float32, float16, bfloat16, not 'quick'"),
        ("render: {compile: maybe}\n", "5:19  render.compile: must be true or false, not 'maybe'"),
        ("render: {model: 3}\n", "5:17  render.model: must be text, not 3; put it in quotes"),
        ("render: {model: ''}\n", "5:17  render.model: must not be empty"),
        ("render: {model: ' '}\n", "5:17  render.model: must not be blank"),
        ("render: {negative_prompt: }\n", "5:26  render.negative_prompt: must be text or a mapping, not empty; for empty text write ''"),
        ("render: {negative_prompt: {amplfy: fog}}\n", "5:28  render.negative_prompt.amplfy: must be one of naive, captions, against, amplify, import; did you mean 'amplify'?"),
        ("render: {negative_prompt: {amplify: 3}}\n", "5:37  render.negative_prompt.amplify: must be text, not 3; put it in quotes"),
        ("prompts: {template: [{file: caption/tags.j2, share: -1}]}\n", "5:53  prompts.template.0.share: must be at least 0, not -1"),
        ("prompts: {template: [caption/tags.j2]}\n", "5:22  prompts.template.0: must be a section with keys of its own, not 'caption/tags.j2'"),
        ("render: {scheduler: euler_a}\n", "5:21  render.scheduler: must be one of euler_ancestral, euler, ddim, ddpm, dpmpp_2m, dpmpp_2m_karras, unipc, lms, heun, or a diffusers class; did you mean 'euler_ancestral'?"),
        ("render: {model: embedded/tiny}\n", "5:17  render.model: there is no 'embedded/tiny', only 'embedded/tinyworld'"),
        ("render: {renderer: comfyui}\n", "5:1  render.workflow: is needed with `renderer: comfyui`: a file that ComfyUI's `Export (API)` writes"),
        ("render: {workflow: none.json}\n", "5:20  render.workflow: goes with `renderer: comfyui` alone"),
        ("render: {renderer: a1111, height: 512}\n", "5:1  render.width: is needed with `renderer: a1111`: a checkpoint does not say how large its images are"),
        ("render: {renderer: a1111, width: 512, height: 512, vae: x/y}\n", "5:57  render.vae: does not go with `renderer: a1111`"),
        ("render: {renderer: files, steps: 9}\n", "5:34  render.steps: does not go with `renderer: files`"),
        ("render: {renderer: hosted, model: dall-e-3, api_base: ['http://a', 'http://b']}\n", "5:55  render.api_base: takes one URL with `renderer: hosted`"),
        ("render: {renderer: hosted}\n", "5:1  render.model: an image API draws with a LiteLLM image model, such as 'gpt-image-1'"),
        ("dataset: {repo_id: teapots}\n", "5:20  dataset.repo_id: must look like user/name, not 'teapots'"),
        ("prompts: {llm: {api_base: 'localhost:80'}}\n", "5:27  prompts.llm.api_base: must be a URL such as http://localhost:8000/v1"),
        ("prompts: {llm: {api_base: 'http://me:pw@host/v1'}}\n", "5:27  prompts.llm.api_base: must not hold a password or key; set it in the provider's environment variable"),
        # Sections, lists, mappings
        ("render: fast\n", "5:9  render: must be a section with keys of its own, not 'fast'"),
        ("prompts: {exclude: dreambench}\n", "5:20  prompts.exclude: must be a list, not 'dreambench'; write [dreambench]"),
        ("prompts: {match: [sise]}\n", "5:19  prompts.match.0: must be one of size, seed; did you mean 'size'?"),
        ("prompts: {sets: [amplify]}\n", "5:17  prompts.sets: must be a mapping, not a list; for example sets: {against: 0.25, amplify: 0.75}"),
        ("prompts: {sets: {aganst: 1}}\n", "5:18  prompts.sets.aganst: must be one of naive, captions, against, amplify, import; did you mean 'against'?"),
        ("prompts: {sets: {naive: 0}}\n", "5:17  prompts.sets: needs at least one share above 0"),
        ("prompts: {sets: {against: 1}}\n", "5:27  prompts.sets.against: needs the photos of the subject: name their folder in subject.images"),
        # Import
        ("prompts: {sets: {import: 1}}\n", "5:26  prompts.sets.import: needs captions to take over: name their dataset in prompts.import.dataset"),
        ("prompts: {import: me/x}\n", "5:19  prompts.import: must be a section with keys of its own, not 'me/x'"),
        ("prompts: {import: {}}\n", "5:11  prompts.import.dataset: is missing; for example dataset: user/name"),
        ("prompts: {sets: {import: 1}, import: {revision: v1}}\n", "5:30  prompts.import.dataset: is missing; for example dataset: user/name"),
        ("prompts: {import: {dataset: me/x, revison: v1}}\n", "5:35  prompts.import.revison: unknown key, did you mean 'revision'?"),
        ("prompts: {import: {dataset: me/x, captions: c}}\n", "5:35  prompts.import.captions: unknown key here, did you mean subject.captions?"),
        ("prompts: {imported: {dataset: me/x}}\n", "5:11  prompts.imported: unknown key, did you mean 'import'?"),
        ("prompts: {imports: {dataset: me/x}}\n", "5:11  prompts.imports: unknown key, did you mean 'import'?"),
        ("import: {dataset: me/x}\n", "5:1  import: unknown key here, did you mean prompts.import?"),
        ("prompts: {import: {dataset: 5}}\n", "5:29  prompts.import.dataset: must be text, not 5; put it in quotes"),
        ("prompts: {import: {dataset: ''}}\n", "5:29  prompts.import.dataset: must not be empty"),
        ("prompts: {import: {dataset: me/x@v1, revision: v2}}\n", "5:48  prompts.import.revision: the dataset's name says 'v1' already"),
        ("prompts: {import: {dataset: ./x, revision: v2}}\n", "5:44  prompts.import.revision: goes with a dataset of the Hub alone: user/name"),
        # Slots
        ("prompts: {slots: [color, Color]}\n", "5:26  prompts.slots.1.name: must be at most 32 small letters, digits and '_', the first a letter, not 'Color'"),
        ("prompts: {slots: [color, 3]}\n", "5:26  prompts.slots.1: must be a section with keys of its own, not 3"),
        ("prompts: {slots: [color, color]}\n", "5:18  prompts.slots: lists 'color' twice"),
        ("prompts: {slots: [{from: bank}]}\n", "5:19  prompts.slots.0.name: is missing"),
        ("prompts: {slots: [{name: style, from: list}]}\n", "5:39  prompts.slots.0.from: `from: list` needs `values`"),
        ("prompts: {slots: [{name: style, values: []}]}\n", "5:41  prompts.slots.0.values: must not be empty"),
        ("prompts: {slots: [{name: style, values: [a, ' ']}]}\n", "5:45  prompts.slots.0.values.1: ' ' is empty"),
        ("prompts: {slots: [{name: style, values: [a], weights: [1, 2]}]}\n", "5:55  prompts.slots.0.weights: needs 1 numbers, one for each value, not 2"),
        ("prompts: {slots: [{name: style, weights: [1]}]}\n", "5:42  prompts.slots.0.weights: goes with a list of `values` alone"),
        ("prompts: {slots: [motion]}\n", "5:19  prompts.slots.0: motion is for living things: leave the slot out, or set subject.kind to living"),
        ("prompts: {slots: [mood]}\n", "5:19  prompts.slots.0: needs `values` for the slot 'mood': embedded/smollm2-135m only chooses among phrases, and the phrase banks have only shape, color, texture, motion, background, lighting, style"),
        ("prompts: {slots: [{name: mood, from: bank}]}\n", "5:38  prompts.slots.0.from: there is no bank for 'mood'; the phrase banks have only shape, color, texture, motion, background, lighting, style"),
    ],
)  # fmt: skip
def test_each_mistake_has_its_line(more: str, line: str) -> None:
    assert complaints(GOOD + more) == [line]


@pytest.mark.parametrize(
    ("subject", "line"),
    [
        ("{kind: object}", "2:1  subject.class_noun: is missing; for example class_noun: ceramic teapot"),
        ("", "2:1  subject.class_noun: is missing; for example class_noun: ceramic teapot"),
        ("{class_noun: ''}", "2:23  subject.class_noun: must not be empty"),
        ("{class_noun: ' '}", "2:23  subject.class_noun: must not be blank"),
        ('{class_noun: "a\\nb"}', "2:23  subject.class_noun: must be one line of plain text"),
        ("{class_noun: cat, kind: alive}", "2:34  subject.kind: must be one of object, living, not 'alive'"),
        ("{class_noun: cat, kind: livin}", "2:34  subject.kind: must be one of object, living; did you mean 'living'?"),
        ("{class_noun: flurb}", "2:1  subject.kind: is needed: no phrase bank knows 'flurb', so write `kind: object` or `kind: living`"),
        ("{class_noun: red cat, identifier: Cat}", "2:44  subject.identifier: is part of the class noun 'red cat'; choose a rare token: ohwx"),
        ("{class_noun: cat, identifier: sks cat}", "2:40  subject.identifier: must be the token alone, without the class noun 'cat'"),
        ("{class_noun: cat, identifier: ''}", "2:40  subject.identifier: must not be blank; leave the line out if there is none"),
        ("{class_noun: cat, identifier: 12}", "2:40  subject.identifier: must be text, not 12; put it in quotes"),
        ("{class_noun: cat, captions: auto, images: .}", "2:38  subject.captions: `auto` needs a model that can see: name one in prompts.llm.vision_model"),
    ],
)  # fmt: skip
def test_each_mistake_about_the_subject_has_its_line(subject: str, line: str) -> None:
    Path("photo.png").touch()
    assert complaints(f"name: x\nsubject: {subject}\n") == [line]


def test_the_identifier_may_not_hide_in_a_slot_and_a_missing_name_is_missing_at_the_top() -> None:
    text = "name: x\nsubject: {class_noun: cat, identifier: sks}\nprompts:\n  slots:\n"
    text += "    - {name: style, values: [a photo of, an SKS photo of]}\n"
    assert complaints(text) == [
        "5:42  prompts.slots.0.values.1: 'an SKS photo of' contains the identifier 'sks', which no caption may say"
    ]
    assert complaints("\n\nsubject: {class_noun: cat}\n") == ["1:1  name: is missing"]
    assert complaints("seed: 3\n") == ["1:1  name: is missing", "1:1  subject: is missing"]


def test_files_that_are_not_there_are_named_with_the_place_looked_at(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("# nothing\n\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    (tmp_path / "bare").mkdir()
    text = """\
name: x
subject: {class_noun: cat, images: photos}
prompts:
  template: caption/objct.j2
  messages: messages
  vocabulary: ~/no/vocabulary.json
  exclude: [dreambanch, dreambench, latin.txt]
  slots:
    - {name: color, file: colors.txt}
    - {name: style, file: empty.txt}
"""
    home = Path("~").expanduser()
    assert complaints(text) == [
        f"2:36  subject.images: there is no folder {tmp_path}/photos",
        f"4:13  prompts.template: there is no template {tmp_path}/caption/objct.j2, "
        "did you mean 'caption/object.j2'?",
        f"5:13  prompts.messages: there is no folder {tmp_path}/messages",
        f"6:15  prompts.vocabulary: there is no file {home}/no/vocabulary.json",
        f"7:13  prompts.exclude.0: there is no file {tmp_path}/dreambanch, "
        "did you mean 'dreambench'?",
        f"7:37  prompts.exclude.2: {tmp_path}/latin.txt is not UTF-8 text",
        f"9:27  prompts.slots.0.file: there is no file {tmp_path}/colors.txt",
        f"10:27  prompts.slots.1.file: {tmp_path}/empty.txt has no phrases; write one a line",
    ]
    assert complaints(text, "subject.images=bare")[-1] == (
        f"--set subject.images=bare  subject.images: there are no photos in {tmp_path}/bare (JPEG, PNG, WebP)"
    )


def test_a_name_that_no_file_can_have_is_no_traceback() -> None:
    long = "x" * 300
    text = GOOD + f'prompts: {{template: "a\\0b", vocabulary: {long}, exclude: [{long}]}}\n'
    assert len(complaints(text)) == 3


def test_all_problems_come_at_once_in_the_order_of_the_file() -> None:
    text = """\
name: tea pot
subject:
  knid: object
  class_noun: teapot
  identifier: teapot
render:
  width: 1001
  steps: many
prompts:
  sets: {aganst: 1, import: 1, amplify: 1}
  slots: [color, {name: mood}, {name: style, weights: [1]}]
colour: red
"""
    assert complaints(text, "render.height=9", "curate.constant=perhaps") == [
        "1:7  name: must be at most 80 letters, digits, '.', '_' and '-', the first a letter or "
        "digit, not 'tea pot'",
        "3:3  subject.knid: unknown key, did you mean 'kind'?",
        "5:15  subject.identifier: is part of the class noun 'teapot'; choose a rare token: ohwx",
        "7:10  render.width: must be a multiple of 8, such as 1000 or 1008, not 1001",
        "8:10  render.steps: must be a whole number, not 'many'",
        "10:10  prompts.sets.aganst: must be one of naive, captions, against, amplify, import; "
        "did you mean 'against'?",
        "10:29  prompts.sets.import: needs captions to take over: name their dataset in "
        "prompts.import.dataset",
        "11:18  prompts.slots.1: needs `values` for the slot 'mood': embedded/smollm2-135m only "
        "chooses among phrases, and the phrase banks have only shape, color, texture, motion, "
        "background, lighting, style",
        "11:55  prompts.slots.2.weights: goes with a list of `values` alone",
        "12:1  colour: unknown key; there are version, name, extends, subject, subjects, prompts, "
        "render, curate, dataset, seed",
        "--set render.height=9  render.height: must be a multiple of 8, such as 8 or 16, not 9",
        "--set curate.constant=perhaps  curate.constant: must be true or false, not 'perhaps'",
    ]


def test_what_follows_from_another_mistake_is_not_said() -> None:
    # The folder is wrong, so whether `against` has photos is nobody's guess.
    text = "name: x\nsubject: {class_noun: cat, images: 3}\nprompts: {sets: {against: 1}}\n"
    assert complaints(text) == ["2:36  subject.images: must be a path, not 3; put it in quotes"]
    # All shares are wrong; that nothing is left of them follows from that.
    text = "name: x\nsubject: {class_noun: cat}\nprompts: {sets: {a: 1, b: 2}}\n"
    assert [line.partition(": ")[0] for line in complaints(text)] == [
        "3:18  prompts.sets.a",
        "3:24  prompts.sets.b",
    ]


def test_the_error_reads_well_and_exits_with_2() -> None:
    Path("recipe.yaml").write_text(GOOD + "zeed: 1\nprompts: {count: 0}\n", encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe("recipe.yaml")
    assert caught.value.exit_code == EXIT_USAGE
    assert str(caught.value).splitlines() == [
        "the recipe has 2 problems",
        "recipe.yaml:5:1  zeed: unknown key, did you mean 'seed'?",
        "recipe.yaml:6:18  prompts.count: must be at least 1, not 0",
    ]
    first = caught.value.problems[0]
    assert (first.file, first.line, first.column, first.key) == ("recipe.yaml", 5, 1, "zeed")
    Path("recipe.yaml").write_text(GOOD + "zeed: 1\n", encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe("recipe.yaml")
    assert str(caught.value) == "recipe.yaml:5:1  zeed: unknown key, did you mean 'seed'?"


OF_DATASETS = [
    *("version", "name", "seed", "subject", "prompts", "render", "curate", "dataset", "extends"),
    "subjects",
    *("subject.class_noun", "subject.kind", "subject.images", "subject.captions"),
    *("prompts.sets", "prompts.sets.naive", "prompts.count", "prompts.slots", "prompts.llm"),
    *("prompts.slots.0", "prompts.slots.0.values", "prompts.slots.0.weights", "prompts.exclude"),
    *("prompts.import", "prompts.import.dataset", "prompts.import.revision", "prompts.match"),
    *("prompts.near_duplicates", "prompts.llm.model", "prompts.llm.max_cost", "curate.alignment"),
    *("render.batch_size", "render.width", "render.dtype", "render.compile", "render.scheduler"),
    *("curate.alignment.min", "dataset.private", "dataset.license"),
]
OF_TRAINING = ["name", "seed", "base_model", "device", "tracking", "extends"] + [
    f"{section}{key}"
    for section, field in TrainingRecipe.model_fields.items()
    if (below := getattr(field.annotation, "model_fields", None))
    for key in ("", *(f".{key}" for key in below))
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "keys"),
    [
        (", kind: object}\nprompts: {slots: [color]}\n", OF_DATASETS),
        (", images: .}\noptimizer: {steps: 5}\n", OF_TRAINING),
    ],
    ids=["dataset", "training"],
)
def test_no_line_has_the_validators_own_words(more: str, keys: list[str]) -> None:
    values = ["3", "-1", "1e400", "2.5", "true", "", "x", "[1]", "{a: 1}", "[]", "{}", "''", "[x]"]
    Path("photo.png").touch()
    Path("recipe.yaml").write_text(f"name: x\nsubject: {{class_noun: teapot{more}")
    load_any_recipe("recipe.yaml")
    said = {}
    for setting in (f"{key}={value}" for key in keys for value in values):
        try:
            load_any_recipe("recipe.yaml", [setting])
        except RecipeError as error:
            said[setting] = str(error)
    assert len(said) > 300
    for noise in ("Input", "pydantic", "should", "valid ", "[type", "Value error", "tuple"):
        assert [line for line in said.values() if noise in line] == []
    assert [setting for setting in said if f"--set {setting}" not in said[setting]] == []


def test_the_shortest_name_that_was_begun_is_meant() -> None:
    assert nearest("SDXL", ["sdxl-turbo", "sdxl"]) == "sdxl"
