"""The card on the Hub: everybody's words stay, what is regforge's is renewed."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_rows import make_row, make_rows
from publishable import build, recipe

from regforge.dataset.build import DatasetError
from regforge.dataset.card import Refusals, Survey, write_card
from regforge.dataset.card_parts import BEGIN, END, OUR_KEYS, Card, merged
from regforge.publishing import datasets


def card(rows: int = 3, existing: str | None = None, **dataset: str) -> str:
    survey = Survey(("color", "background"))
    for row in make_rows(*range(rows)):
        survey.add(row)
    return write_card(survey, Refusals(), recipe(**dataset), existing=existing)


def with_words(text: str, before: str = "", after: str = "", keys: str = "") -> str:
    text = text.replace(BEGIN, before + BEGIN).replace("---\nlicense", f"---\n{keys}license")
    return text + after


def front(text: str) -> dict[str, object]:
    return dict(Card.parse(text).front)


def test_words_and_keys_on_the_hub_stay_and_ours_are_renewed() -> None:
    there = with_words(card(3), "# Ours\n\n", "\n## Thanks\n", "viewer: false\n")
    text, notes = merged(card(4, license="mit"), there)
    assert notes == []
    assert f"---\n# Ours\n\n{BEGIN}" in text
    assert text.endswith(f"{END}\n\n## Thanks\n")
    assert "4 captioned images" in text
    assert "3 captioned images" not in text
    assert front(text) == front(card(4, license="mit")) | {"viewer": False}


def test_the_local_card_says_what_the_hub_does_not_and_where_both_do_the_hub_s_is_kept() -> None:
    here = with_words(card(), "# Mine\n\n", "\nmy end\n", "viewer: false\n")
    text, notes = merged(here, card(5))
    assert (text, notes) == (here, [])
    here = with_words(card(), "mine\n", "\nmine\n", "viewer: false\nown: 1\n")
    there = with_words(card(), "theirs\n", "\ntheirs\n", "viewer: true\nown: 1\n")
    text, notes = merged(here, there)
    assert text == there
    assert [note.split(" differs")[0] for note in notes] == [
        "README.md: the text before regforge's part",
        "README.md: the text after regforge's part",
        "README.md: the key 'viewer'",
    ]


def test_without_a_card_there_ours_is_taken_and_one_that_says_the_same_stays() -> None:
    for there in (
        card().replace("\n", "\r\n"),
        "\ufeff" + card(),
        "---\n" + yaml.safe_dump(front(card())) + "---\n" + card().split("---\n", 2)[2],
    ):
        assert there != card()
        assert merged(card(), there) == (there, [])
    assert merged(card(), None) == (card(), [])


def test_the_licence_is_that_of_the_card_on_disk() -> None:
    there = card().replace(
        "license: cc-by-4.0", "license: other\nlicense_name: x\nlicense_link: https://x.example"
    )
    text, _ = merged(card(license="mit"), there)
    assert front(text)["license"] == "mit"
    assert not {"license_name", "license_link"} & set(front(text))


def test_what_has_lost_our_part_is_kept_below() -> None:
    text, notes = merged(card(), "---\nlicense: mit\nviewer: false\n---\n# Hello\n")
    assert text.endswith(f"{END}\n\n# Hello\n")
    assert notes == []
    assert front(text) == front(card()) | {"viewer": False}
    assert merged(card(), text) == (text, [])


@pytest.mark.parametrize("line", ["date: 2024-13-45", "- a list", "a: [1"])
def test_front_matter_that_nobody_can_read_is_written_anew_and_that_is_said(line: str) -> None:
    text, notes = merged(card(), f"---\n{line}\n---\n# Hello\n")
    assert front(text) == front(card())
    assert text.endswith("# Hello\n")
    assert notes == ["README.md: the front matter on the Hub cannot be read, and was written anew."]
    assert merged(card(), text) == (text, [])
    assert merged(card(), "---\n\n---\n# Hello\n") == (text, [])


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=40).filter(
    lambda text: BEGIN not in text and END not in text
)


OLD, NEW = (Card({"license": "mit"}, ours=f"\n{words}\n").as_text() for words in ("old", "new"))


@pytest.mark.slow
@settings(max_examples=50)
@example(before="\n", after="\n0", keys={})
@given(
    before=WORDS,
    after=WORDS,
    keys=st.dictionaries(
        st.text(st.characters(codec="ascii", categories=["Ll"]), min_size=1).filter(
            lambda key: key not in OUR_KEYS
        ),
        st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text()),
        max_size=3,
    ),
)
def test_any_words_on_the_hub_survive(before: str, after: str, keys: dict[str, object]) -> None:
    old, new = Card.parse(OLD), NEW
    there = Card({**old.front, **keys}, before, old.ours, after).as_text()
    text, notes = merged(new, there)
    parts = Card.parse(text)
    if before.strip():
        assert parts.before == before
    if after.strip():
        assert parts.after == after
    assert {k: v for k, v in parts.front.items() if k not in OUR_KEYS} == keys
    assert parts.ours == Card.parse(new).ours
    assert notes == []
    assert merged(new, text) == (text, [])


def test_the_card_and_the_recipe_are_those_of_a_dataset_built_so(tmp_path: Path) -> None:
    changed = {"license": "mit", "repo_id": "me/other", "private": False}
    rows = [make_row(index) for index in (0, 1, 5, 130)]
    one, two = tmp_path / "one", tmp_path / "two"
    dataset, expected = build(one, rows), build(two, rows, recipe(**changed))

    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in dataset.rglob("*") if path.is_file()}

    before = times()
    assert not datasets.rewrite(dataset, one / "shards", {"license": "cc-by-4.0"})
    assert times() == before  # nothing changes, nothing is written
    assert datasets.rewrite(dataset, one / "shards", changed)
    for name in ("README.md", "recipe.yaml", "caption.j2"):
        assert (dataset / name).read_text() == (expected / name).read_text(), name
    data = [path for path in before if path.suffix == ".parquet"]
    assert data
    assert [times()[path] for path in data] == [before[path] for path in data]
    assert not datasets.rewrite(dataset, one / "shards", changed)


def test_a_licence_changed_by_hand_is_the_recipe_s_again_and_words_stay(tmp_path: Path) -> None:
    dataset = build(tmp_path)
    path = dataset / "README.md"
    words = ("# Mine\n", "\nthe end\n", "viewer: false\n")
    path.write_text(with_words(path.read_text(), *words).replace("cc-by-4.0", "mit"))
    assert datasets.rewrite(dataset, tmp_path / "shards", {"license": "apache-2.0"})
    text = path.read_text()
    assert f"# Mine\n{BEGIN}" in text
    assert text.endswith("\nthe end\n")
    assert (front(text)["license"], front(text)["viewer"]) == ("apache-2.0", False)
    assert "Licence: apache-2.0, chosen" in text
    path.write_text(text.replace("license: apache-2.0", "license: mit"))
    assert datasets.rewrite(dataset, tmp_path / "shards", {"license": "apache-2.0"})
    assert path.read_text() == text


def test_killed_between_files_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = build(tmp_path)
    write = datasets.write_atomically

    def killed(path: Path, content: str) -> None:
        if path.name == "recipe.yaml":
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(datasets, "write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        datasets.rewrite(dataset, tmp_path / "shards", {"license": "mit"})
    monkeypatch.undo()
    assert datasets.rewrite(dataset, tmp_path / "shards", {"license": "mit"})
    assert datasets.recipe_of(dataset).dataset.license == "mit"
    assert not datasets.rewrite(dataset, tmp_path / "shards", {"license": "mit"})


def test_without_the_shards_nobody_knows_what_was_refused(tmp_path: Path) -> None:
    dataset = build(tmp_path)
    for shard in (tmp_path / "shards").glob("*.parquet"):
        shard.unlink()
    with pytest.raises(DatasetError, match=r"cannot be written anew.*00000\.parquet"):
        datasets.rewrite(dataset, tmp_path / "shards", {"license": "mit"})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("recipe.yaml", None),
        ("recipe.yaml", b"name: [1, 2"),
        ("recipe.yaml", b"name: x\nsubject: {class_noun: y}\nunknown: 1\n"),
        ("recipe.yaml", b"\xff\xfe"),
        ("README.md", None),
        ("README.md", b"# Mine alone\n"),
    ],
)
def test_files_no_longer_ours_are_kept(tmp_path: Path, name: str, content: bytes | None) -> None:
    dataset = build(tmp_path)
    (dataset / name).unlink()
    if content is not None:
        (dataset / name).write_bytes(content)
    with pytest.raises(DatasetError, match=re.escape(name)):
        datasets.rewrite(dataset, tmp_path / "shards", {"license": "mit"})
    assert not (dataset / name).exists() or (dataset / name).read_bytes() == content


def test_a_licence_that_is_known_names_itself(tmp_path: Path) -> None:
    flux = recipe().model_copy(
        update={
            "render": recipe().render.model_copy(update={"model": "black-forest-labs/FLUX.1-dev"}),
            "dataset": recipe(license="other").dataset,
        }
    )
    dataset = build(tmp_path, make_rows(0, 1), flux)
    text = (dataset / "README.md").read_text()
    assert front(text)["license"] == "other"
    assert front(text)["license_name"] == "flux-1-dev-non-commercial-license"
    assert str(front(text)["license_link"]).startswith("https://huggingface.co/black-forest-labs/")
    assert "Licence: other (flux-1-dev-non-commercial-license), chosen" in text
    datasets.rewrite(dataset, tmp_path / "shards", {"license": "mit"})
    assert not {"license_name", "license_link"} & set(front((dataset / "README.md").read_text()))
