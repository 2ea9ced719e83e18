"""YAML in all its ways, as far as a recipe can meet them."""

# ruff: noqa: E501 (tables of long lines)

import itertools
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shell import Shell

from regforge.files import recipes_folder
from regforge.recipe import Recipe, RecipeError, load_recipe, yaml_nodes
from regforge.recipe.problems import Place

GOOD = "name: x\nsubject: {class_noun: teapot, kind: object}\n"

SHARED_FOLDER = HealthCheck.function_scoped_fixture  # each example writes its files anew


def load(folder: Path, content: str | bytes) -> Recipe:
    path = folder / "r.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return load_recipe(path)


def complaint(folder: Path, content: str | bytes) -> str:
    """The one line about a file, without the file's name."""
    with pytest.raises(RecipeError) as caught:
        load(folder, content)
    assert len(caught.value.problems) == 1, str(caught.value)
    return str(caught.value).removeprefix(str(folder / "r.yaml")).removeprefix(":")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "1:1  a recipe is a mapping that begins with `name:`, not an empty file"),
        ("# later\n", "1:1  a recipe is a mapping that begins with `name:`, not an empty file"),
        ("---\n", "1:1  a recipe is a mapping that begins with `name:`, not empty"),
        ("- a\n- b\n", "1:1  a recipe is a mapping that begins with `name:`, not a list"),
        ("teapot\n", "1:1  a recipe is a mapping that begins with `name:`, not 'teapot'"),
        ("a:\n\tb: 1\n", "2:1  a tab; YAML is indented with spaces"),
        ("a: 1\n  \tb: 1\n", "2:3  a tab; YAML is indented with spaces"),
        ("a: [1, 2\nb: 3\n", "1:4  '[' is never closed, or a comma is missing in the list"),
        ("a: {b: 1\nc: 2\n", "1:4  '{' is never closed, or a comma is missing between its keys"),
        ("a: 'x\nb: 1\n", "1:4  this quote is never closed"),
        ("a: a photo: of\n", "1:11  a ':' that does not fit: put the text in quotes, or check the indentation"),
        ("a: 1\nbc\nd: 1\n", "2:1  expected `key: value`; there is no ':' here"),
        ("a:\n  b: 1\n c: 2\n", "3:2  does not line up with the lines above; check the indentation"),
        ("a: 'it's'\n", "1:8  text behind the end of a value; check the quotes and the indentation"),
        ("a: - b\n", "1:4  a list begins in the line below its key"),
        ("a: @home\n", "1:4  text that begins with this character must stand in quotes"),
        ('a: "\\d"\n', "1:6  a backslash has a meaning in double quotes; use single quotes"),
        ("a: *b\n", "1:4  an alias (*) without an anchor (&) of that name before it"),
        ("a: &a [*a]\n", "1:4  an alias that contains itself"),
        ("a: \x07\n", "1:4  control character '\\x07'"),
        (GOOD + "---\nname: y\n", "3:1  a second document begins; a recipe is one YAML document"),
        (GOOD + "name: y\n", "3:1  name: given twice; the first is in line 1"),
        (GOOD + "seed: !!python/object/apply:os.getpid []\n", "3:7  seed: the tag !!python/object/apply:os.getpid has no place in a recipe"),
        (GOOD + "seed: !!binary aGk=\n", "3:7  seed: the tag !!binary has no place in a recipe"),
        (GOOD + "seed: !!int soon\n", "3:7  seed: not a number that can be read"),
        (GOOD + f"seed: {'9' * 5000}\n", "3:7  seed: not a number that can be read"),
        (GOOD + "? [a]\n: 1\n", "3:3  a key must be text"),
        (GOOD + "render: {<<: 3}\n", "3:14  render: `<<` takes mappings alone"),
        ("[" * 800, "1:1  nested too deeply"),
        ("a: " + "[" * 60 + "]" * 60, "1:54  nested too deeply"),
    ],
)  # fmt: skip
def test_what_is_no_recipe_gets_one_clear_line(tmp_path: Path, text: str, line: str) -> None:
    assert complaint(tmp_path, text) == line


def test_bytes_that_are_no_text_and_a_byte_order_mark(tmp_path: Path) -> None:
    assert complaint(tmp_path, b"name: x\nsubject: caf\xe9\n") == "2:13  not UTF-8 text"
    assert "control character" in complaint(tmp_path, b"name: \x00\n")
    assert complaint(tmp_path, "name: x\n".encode("utf-16")).endswith("1:1  not UTF-8 text")
    assert load(tmp_path, b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode()).name == "x"
    line = complaint(tmp_path, b"\xef\xbb\xbf" + b"nane: x\r\n" + GOOD.encode())
    assert line == "1:1  nane: unknown key, did you mean 'name'?"


def test_bombs_of_aliases_and_endless_files_are_refused_at_once(tmp_path: Path) -> None:
    names = "abcdefghij"
    text = "a: &a [" + ", ".join("x" * 10) + "]\n"
    for before, name in itertools.pairwise(names):
        text += f"{name}: &{name} [" + ", ".join([f"*{before}"] * 10) + "]\n"
    # Ten billion values: read in full, they would fill any machine.
    assert "stand for more than 100,000 values" in complaint(tmp_path, text)
    with pytest.raises(RecipeError, match="no ordinary file"):
        load_recipe("/dev/zero")
    with (tmp_path / "large.yaml").open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(RecipeError, match="larger than"):
        load_recipe(tmp_path / "large.yaml")
    assert "larger than" in complaint(tmp_path, GOOD + "#" * 1_000_000)


def test_words_are_words_and_numbers_numbers(tmp_path: Path) -> None:
    recipe = load(
        tmp_path,
        """\
name: on
subject: {class_noun: teapot, kind: object, identifier: no}
prompts:
  llm: {input_cost_per_token: 1e-7, max_cost: 1}
  slots:
    - {name: style, values: [on, off, 12:30, 2024-01-01, y, '5']}
render: {negative_prompt: "null", guidance_scale: 5, steps: 0x10, compile: true}
seed: 007
""",
    )
    assert recipe.name == "on"
    assert recipe.subject.identifier == "no"
    assert recipe.prompts.llm.input_cost_per_token == 1e-7
    (slot,) = recipe.prompts.slots or ()
    assert slot.values == ("on", "off", "12:30", "2024-01-01", "y", "5")
    render = recipe.render
    assert (render.negative_prompt, render.steps, render.compile) == ("null", 16, True)
    assert recipe.seed == 7


def test_aliases_and_merge_keys_work_and_sections_of_comments_say_nothing(tmp_path: Path) -> None:
    recipe = load(
        tmp_path,
        GOOD
        + """\
prompts:
  slots:
    - &grid {name: color, mode: grid, values: &words [red, blue]}
    - {<<: *grid, name: style}
    - {name: texture, <<: [{mode: cycle}, *grid], values: *words}
""",
    )
    slots = recipe.prompts.slots or ()
    assert [slot.name for slot in slots] == ["color", "style", "texture"]
    assert [slot.mode for slot in slots] == ["grid", "grid", "cycle"]
    assert {slot.values for slot in slots} == {("red", "blue")}
    empty = "render:\n  # steps: 3\nprompts:\n  llm:\ncurate:\ndataset:\n"
    assert load(tmp_path, GOOD + empty) == load(tmp_path, GOOD)


@pytest.mark.parametrize("name", ["none.yaml", "folder", "fo\0o.yaml", "x" * 300])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(RecipeError, match=r"no such file|is a folder|cannot be read"):
        load_recipe(tmp_path / name)


def test_a_shipped_recipe_or_one_of_a_like_name_is_hinted_at(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"there is no such file\n.*recipes/quickstart\.yaml"):
        load_recipe(tmp_path / "quickstart.yaml")
    (tmp_path / "teapots.yaml").write_text(GOOD)
    with pytest.raises(RecipeError, match=r"Did you mean .*teapots\.yaml\?"):
        load_recipe(tmp_path / "teapot.yaml")


SHIPPED = (recipes_folder() / "objects-sdxl.yaml").read_text(encoding="utf-8")
_scraps = (
    st.text() | st.sampled_from(list("\t\n:-[]{}&*!|>'\"%@`#,?<\x00\x85\ufeff")) | st.just("<<: ")
)


@given(st.data())
@settings(max_examples=60, suppress_health_check=[SHARED_FOLDER])
def test_whatever_becomes_of_recipes_ends_in_lines(tmp_path: Path, data: st.DataObject) -> None:
    text = SHIPPED
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 20)))
        text = text[:start] + data.draw(_scraps) + text[end:]
    path = tmp_path / "r.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    setting = data.draw(st.text(min_size=1) | _scraps.map("prompts.slots.0={}".format))
    said = lines_about(path, setting)
    assert all(line.isprintable() for line in said), said


def lines_about(path: Path, setting: str) -> list[str]:
    try:
        load_recipe(path, [setting])
    except RecipeError as error:
        return [str(problem) for problem in error.problems] or ["\0"]
    return []


@pytest.mark.parametrize(
    "text",
    [
        "seed: 0x" + "f" * 4300,
        "seed: " + "9" * 5000,
        "seed: 0o" + "7" * 5000,
        "seed: 1e400",
        "seed: .inf",
        "seed: .nan",
        "seed: 1:30:00",
        "extends: ~nouser/x",
        'extends: "a\\0b"',
        "extends: /dev/zero",
        "extends: /proc/kmsg",
        'prompts: {slots: [{name: a, values: ["\\ud800"]}]}',
        'prompts: {slots: [{name: a, file: "a\\0b"}]}',
        "prompts: {slots: [{name: a, file: /dev/zero}]}",
        "prompts: {template: /dev/zero}",
        "prompts: {vocabulary: /dev/zero}",
        "prompts: {exclude: [/dev/zero]}",
        "prompts: {messages: /dev/zero}",
        "subject: {images: ~nouser/x}",
        "render: {model: ~nouser/x}",
    ],
    ids=lambda text: text[:40],
)
@pytest.mark.parametrize("as_setting", [False, True])
def test_values_that_are_none(
    text: str, as_setting: bool, shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGFORGE_CACHE", str(tmp_path / "cache"))
    key, _, value = text.partition(": ")
    good = "name: a\nsubject: {class_noun: teapot}\nprompts: {count: 2}\n"
    lines = [line for line in good.splitlines() if not line.startswith(key)]
    if key == "subject":
        text = value = text.replace("{", "{class_noun: teapot, ")
        value = value.partition(": ")[2]
    (tmp_path / "a.yaml").write_text("\n".join(lines if as_setting else [*lines, text]) + "\n")
    setting = ["--set", f"{key}={value}"] if as_setting else []
    assert shell("check", "a.yaml", *setting) in (0, 1, 2)
    assert "Traceback" not in shell.err
    if key != "render":
        assert shell.err.startswith("error: ")


@pytest.mark.parametrize(
    "text",
    [
        *(path.read_text("utf-8") for path in sorted(recipes_folder().glob("*.yaml"))),
        *(
            "a:\tb",
            "a: b\t# c",
            "a:\n\ufeff",
            "{a?b: 1, c: 2}",
            "a:\n?",
            "a: !0.25",
            "a: |# b\n  c\n",
        ),
        *(
            "{a: , b: 1}",
            "{&a b: }",
            "[a: ]",
            "a: &b\nc: *b",
            "{a:1, 'b':2}",
            "a: [b, 'c, d']\r\ne: 日",
        ),
        *(
            "a: 'b\n\n c'",
            "? [a]\n: b",
            "a: \ud800",
            "a: [b",
            "a: {b: c: d}",
            "\n%YAML 1.2\n---\na: 1",
        ),
    ],
)
def test_libyaml_only_makes_it_faster(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place("r.yaml", Path(), 1, 1)
    read = yaml_nodes.read_yaml(text, place)
    monkeypatch.setattr(yaml_nodes, "_Quick", yaml_nodes._Loader)
    assert read == yaml_nodes.read_yaml(text, place)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("where", ["", "render"])
def test_twenty_thousand_unknown_keys(where: str, shell: Shell, tmp_path: Path) -> None:
    keys = [f"abc{number}: 1" for number in range(20_000)]
    recipe = "name: a\nsubject: {class_noun: teapot}\n"
    recipe += f"{where}: {{{', '.join(keys)}}}" if where else "\n".join(keys)
    (tmp_path / "a.yaml").write_text(recipe)
    assert shell("check", "a.yaml") == 2
    assert "abc0: unknown key" in shell.err
    assert len(shell.err.splitlines()) < 200
