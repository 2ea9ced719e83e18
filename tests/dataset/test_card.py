"""The card: facts the Hub reads, text that strangers cannot turn into anything else."""

import functools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from made_rows import DIGEST, SLOTS, make_row

from regforge.dataset.card import BEGIN, END, Refusals, Survey, card_features, write_card
from regforge.dataset.store import Rejection
from regforge.recipe.models import Recipe
from regforge.records import ImageRow, arrow_schema, image_id, image_seed

HOSTILE = [
    "<script>alert(1)</script>",
    "a | b | c",
    "`code` and ```fence",
    "{{ config }} {% raw %} {# note #}",
    "[click](javascript:alert(1)) ![x](http://evil.example/x.png)",
    "http://evil.example www.evil.example me@evil.example",
    "**bold** _it_ ~~gone~~ # heading",
    f"{END} {BEGIN} --- \n---\nlicense: mit",
    "&lt;script&gt; &#60;b&#62; \\| $x$",
    "line\nbreak\r\n\ttab \x00 \u202e rtl \u2028",
]


def recipe(**changes: Any) -> Recipe:
    plain = {"name": "teapots", "subject": {"class_noun": "teapot"}}
    return Recipe.model_validate({**plain, **changes})


def survey(rows: list[ImageRow]) -> Survey:
    made = Survey(SLOTS)
    for row in rows:
        made.add(row)
    return made


def card(rows: list[ImageRow] | None = None, made_by: Recipe | None = None, **options: Any) -> str:
    refusals = options.pop("refusals", Refusals())
    rows = [make_row(index) for index in range(20)] if rows is None else rows
    return write_card(survey(rows), refusals, made_by or recipe(), **options)


FRONT_MATTER = re.compile(r"\A---\n(.*?)^---\n", re.DOTALL | re.MULTILINE)


def front_matter(text: str) -> dict[str, Any]:
    return yaml.load(FRONT_MATTER.match(text).group(1), yaml.CSafeLoader)


def table(text: str, heading: str) -> dict[str, list[str]]:
    """First cell -> other cells, of the tables below a heading."""
    part = re.split(r"^## ", text.split(f"## {heading}\n")[1], flags=re.MULTILINE)[0]
    rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in rows}


def test_the_front_matter_is_what_the_hub_and_datasets_read() -> None:
    front = front_matter(card(made_by=recipe(dataset={"license": "openrail++", "language": "fr"})))
    features = front.pop("dataset_info")["features"]
    assert re.fullmatch("content [0-9a-f]{16}", front["configs"][0].pop("description"))
    assert front == {
        "license": "openrail++",
        "pretty_name": "Teapot regularization images",
        "language": ["fr"],
        "task_categories": ["text-to-image"],
        "size_categories": ["n<1K"],
        "tags": ["regforge", "regularization", "dreambooth", "prior-preservation", "synthetic"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": "data/train-*.parquet"}],
            }
        ],
    }
    assert features[0] == {"name": "image", "dtype": "image"}


def test_its_features_are_those_of_the_files() -> None:
    from datasets import Features

    schema = arrow_schema(SLOTS)
    assert Features._from_yaml_list(card_features(schema)) == Features.from_arrow_schema(schema)


@pytest.mark.parametrize(
    ("rows", "category"), [(999, "n<1K"), (1000, "1K<n<10K"), (99_999, "10K<n<100K")]
)
def test_the_size_is_named_as_the_hub_names_it(rows: int, category: str) -> None:
    counted = survey([make_row(0)])
    counted.rows = rows
    front = front_matter(write_card(counted, Refusals(), recipe()))
    assert front["size_categories"] == [category]


def test_without_a_licence_the_card_says_so_and_no_class_noun_breaks_the_front_matter() -> None:
    without = card()
    assert "license" not in front_matter(without)
    assert "**No licence is named.**" in without
    named = card(made_by=recipe(dataset={"license": "other"}))
    assert front_matter(named)["license"] == "other"
    assert "No licence" not in named
    made_by = recipe(subject={"class_noun": 'tea: "pot" # {x}'})
    assert front_matter(card(made_by=made_by))["pretty_name"].startswith('Tea: "pot" # {x}')


def test_it_counts_sets_and_phrases_and_names_the_first_ten() -> None:
    text = card()
    found = table(text, "What is in it")
    assert found["amplify"][0] == "15"
    assert found["naive"][0] == "5"
    assert found["color"] == ["3", "0", "red (7), teal (7), olive (6)"]
    assert found["background"] == ["1", "10", "on a beach (10)"]
    assert "20 of the 20 captions are different" in text
    rows = [make_row(n, slots={"color": f"colour {min(n, 12):02d}"}) for n in range(15)]
    found = table(card(rows), "What is in it")
    assert found["color"][:2] == ["13", "0"]
    assert found["color"][2].startswith("colour 12 (3), colour 00 (1), colour 01 (1)")
    assert found["color"][2].endswith("colour 08 (1), and 3 others")
    assert found["background"] == ["0", "15", "not used"]


def test_it_says_how_the_images_were_made() -> None:
    rows = [make_row(0, language_model="gpt-4o-mini", negative_prompt="blurry"), make_row(1)]
    found = table(card(rows, versions={"torch": "2.13.0"}), "How it was made")
    assert found["rendering model"] == ["embedded/tinyworld"]
    assert found["revision"] == ["0123abcd"]
    assert found["scheduler"] == ["DDIMScheduler"]
    assert found["guidance scale"] == ["4"]
    assert found["size"] == ["24 x 16"]
    assert found["language model"] == ["gpt-4o-mini"]
    assert found["negative prompt"] == ["blurry"]
    assert found["recipe digest"] == [DIGEST]
    assert found["seed"] == ["0"]
    assert re.fullmatch(r"regforge \S+, torch 2.13.0", found["made with"][0])


def test_it_says_what_was_refused_and_why() -> None:
    refusals = Refusals()
    for number, reasons in enumerate(
        [
            ("black",),
            ("looks like image 3f2a9c01b7de-000041 (distance 3)",),
            ("looks like image 3f2a9c01b7de-000007 (distance 0)", "same as image x-000001"),
            ("does not show its caption (alignment 0.11 < 0.20)",),
        ]
    ):
        refusals.add(Rejection(image_id(DIGEST, number), number, "", reasons, 2 + number % 2))
    text = card([make_row(0), make_row(1, seed=image_seed(DIGEST, 1, 1))], refusals=refusals)
    assert "Given up, each after 2 to 3 attempts: 4." in text
    found = table(text, "What was refused")
    assert found["looks like another image"] == ["2"]
    assert found["same as another image"] == ["1"]
    assert found["does not show its caption"] == ["1"]
    assert "Accepted only when drawn again with another seed: 1 of" in text
    assert "No image was given up" in card()


def test_it_says_what_was_checked_and_what_each_column_is() -> None:
    assert "at most 4 bits apart" in card()
    curate = {"max_duplicate_distance": None, "constant": False, "nsfw": False}
    assert "Checked: exact copies.\n" in card(made_by=recipe(curate=curate))
    scored = recipe(curate={"alignment": {"min": 0.2}})
    assert "alignment by embedded/judge (at least 0.2)" in card(made_by=scored)
    explained = re.findall(r"`(\w+)`", card().split("## Columns")[1].split("## Loading")[0])
    assert set(arrow_schema(SLOTS).names) <= set(explained)


def test_it_loads_from_where_it_is_published() -> None:
    assert 'load_dataset("me/teapot-reg", split="train")' in card(
        made_by=recipe(dataset={"repo_id": "me/teapot-reg"})
    )
    injected = card(made_by=recipe(dataset={"repo_id": 'x")\nimport os #```'}))
    assert 'load_dataset("x---import-os-----", split="train")' in injected


def test_nothing_of_the_maker_s_machine_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "very-secret-value")
    rows = [
        make_row(
            0,
            model="/home/me/models/my-sdxl",
            template="../mine/caption.j2",
            negative_prompt="hf_abcdefghijkl very-secret-value",
        ),
        make_row(1, model="C:\\Users\\me\\sdxl-b", template="~/x.j2"),
    ]
    text = card(rows, recipe(curate={"alignment": {"model": "/home/me/clip"}}))
    for secret in ("/home", "Users", "hf_abc", "hf&#95;", "very-secret", "mine", "~/"):
        assert secret not in text
    assert {"my-sdxl", "sdxl-b", "caption.j2"} <= set(re.findall(r"[\w.-]+", text))


@functools.cache
@functools.cache
def hostile_card(value: str) -> str:
    rows = [
        make_row(
            0,
            text=value,
            class_noun=value,
            kind=value,
            prompt_set=value,
            slots={"color": value},
            negative_prompt=value,
            model=value,
            model_revision=value,
            scheduler=value,
            language_model=value,
            template=value,
        )
    ]
    refusals = Refusals()
    refusals.add(Rejection("x-000001", 1, value, (value,), 1))
    made_by = recipe(
        subject={"class_noun": value[:80] or "x"}, dataset={"license": value, "repo_id": value}
    )
    return card(rows, made_by, refusals=refusals, versions={"x": value})


@pytest.mark.slow
@settings(max_examples=50)
@given(value=st.text(min_size=1, max_size=60) | st.sampled_from(HOSTILE))
@example(value=HOSTILE[0])
@example(value=HOSTILE[7])
def test_no_value_becomes_anything_but_text(value: str) -> None:
    assume(value.strip() != "against")  # a set that the card says more about
    harmless, text = hostile_card("teapot"), hostile_card(value)
    body, expected = (FRONT_MATTER.sub("", each) for each in (text, harmless))
    # No more lines, cells, code, links, braces and tags than with a harmless value.
    assert body.count(END) == 1
    for sign in ("|", "`", "<", ">", "[", "](", "*", "{", "}", "~~", "\\", "$", "http", "@"):
        plain = value.count(sign) if sign == "http" else 0  # the word alone is no link
        assert body.count(sign) <= expected.count(sign) + 40 * plain, sign
    assert body.count("://") == expected.count("://")
    prose = re.sub(r"^```.*?^```", "", body, flags=re.DOTALL | re.MULTILINE)
    assert not re.search(r"www\.\w", prose, re.IGNORECASE)
    assert len(body.splitlines()) <= len(expected.splitlines())
    assert front_matter(text).keys() == front_matter(harmless).keys()


@pytest.mark.parametrize("value", HOSTILE)
def test_a_hostile_value_reads_as_it_was_once_rendered(value: str) -> None:
    import html

    found = table(hostile_card(value), "How it was made")["scheduler"][0]
    clean = " ".join(re.sub(r"[\x00\u202e\u2028]", " ", value).split())
    assert " ".join(html.unescape(found).split()) == clean


def test_text_around_ours_and_foreign_keys_survive_and_ours_are_those_of_the_recipe() -> None:
    first = card()
    edited = (
        first.replace(BEGIN, f"# My words above\n\n{BEGIN}")
        .replace("pretty_name", "extra_gated_prompt: Please ask\nviewer: false\npretty_name")
        .replace("21 captioned", "edited")
        + "\n## Thanks\n\nTo all.\n"
    )
    again = card([make_row(0)], existing=edited)
    assert f"---\n# My words above\n\n{BEGIN}\n" in again
    assert again.endswith(f"{END}\n\n## Thanks\n\nTo all.\n")
    assert front_matter(again)["extra_gated_prompt"] == "Please ask"
    assert front_matter(again)["viewer"] is False
    assert "1 captioned images" in again
    assert again.count(BEGIN) == 1
    assert card([make_row(0)], existing=again) == again
    assert card(existing=card()) == card()
    edited = card().replace("pretty_name: Teapot", "license: mit\npretty_name: Other")
    assert card(existing=edited) == card()


@pytest.mark.parametrize(
    "existing",
    [
        "# Only my words\n",
        "---\n: : broken: [\n---\n# Only my words\n",
        "---\n- a list\n---\n# Only my words\n",
        f"# Only my words\n{BEGIN}\n",
        "---\nno end\n# Only my words\n",
    ],
)
def test_a_card_that_is_not_ours_is_kept_below(existing: str) -> None:
    text = card(existing=existing)
    assert front_matter(text) == front_matter(card())
    assert "# Only my words" in text.split(END, 1)[1]


def test_the_template_is_found_where_people_edit_it(repo: Path) -> None:
    assert (repo / "templates" / "card" / "README.md.j2").is_file()
