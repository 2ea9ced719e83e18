"""Any dataset on this machine: what was written comes back, whatever the layout."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from layouts import (
    LAYOUTS,
    Files,
    Item,
    as_parquet,
    as_zip,
    items,
    png,
    read,
    with_jsonl,
    with_text_files,
    write,
    write_run,
    written,
)
from made_rows import make_rows

from regforge.dataset.sources import CannotOpen, open_dataset

KIND = {"Parquet": "parquet", "WebDataset": "webdataset", "zip": "zip"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_was_written_comes_back(layout: str, tmp_path: Path) -> None:
    some = items("a red teapot", "a cat,\nwith \"quotes\" and 'commas'", "ein Käfer 🐞", "d")
    write(tmp_path, LAYOUTS[layout](some))
    dataset = open_dataset(tmp_path)
    assert read(dataset) == written(some)
    assert dataset.layout == KIND.get(layout.partition(",")[0].partition(" ")[0], "folder")
    assert dataset.name == tmp_path.name
    assert (dataset.revision, dataset.license, dataset.slots, dataset.run) == (None, None, (), None)
    assert dataset.notes == []
    first = next(dataset.examples())
    assert (first.width, first.height) == (8, 6)
    assert (first.file is not None) == (dataset.layout == "folder")


@pytest.mark.parametrize("layout", ["Parquet", "WebDataset, gzip", "zip of text files"])
def test_a_single_file_is_a_dataset(layout: str, tmp_path: Path) -> None:
    some = items("one", "two", None)
    (name,) = LAYOUTS[layout](some)
    write(tmp_path, {**LAYOUTS[layout](some), "other.parquet": b"no", "other.zip": b"no"})
    dataset = open_dataset(tmp_path / name)
    assert read(dataset) == written(some)
    assert dataset.name == Path(name).name


PATHS = st.text(
    st.characters(exclude_characters="/\\.\0", exclude_categories=("Cs", "Cc")), min_size=1
).filter(
    lambda text: len(text.encode()) < 60 and not text.startswith("__") and text == text.strip()
)
CAPTIONS = st.none() | st.text(
    st.characters(exclude_characters="\0\r", exclude_categories=("Cs",)), min_size=1
).filter(lambda text: text.strip() and not text.endswith("\n") and text[0] != "\ufeff")
TREES = st.dictionaries(
    st.lists(PATHS, min_size=1, max_size=3).map("/".join), CAPTIONS, min_size=1, max_size=5
)


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=12)
@given(tree=TREES)
def test_any_tree_comes_back(layout: str, tree: dict[str, str | None]) -> None:
    some = [Item(path, png(number), text) for number, (path, text) in enumerate(tree.items())]
    if any(f"{path}.png/".startswith(f"{other}/") for path in tree for other in tree):
        reject()
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), LAYOUTS[layout](some))
        assert read(open_dataset(folder)) == written(some)


@pytest.mark.parametrize("inside", ["", "dataset"])
def test_a_run_and_its_dataset(inside: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "teapot")
    dataset = open_dataset(run / inside)
    rows = {row.id: row for row in make_rows(*range(40))}
    assert read(dataset) == sorted((row.image, row.text) for row in rows.values())
    assert dataset.layout == "regforge"
    assert dataset.slots == ("color", "background")
    assert dataset.license == "mit"
    assert dataset.run == run
    assert dataset.name == (inside or "teapot")
    assert dataset.notes == ["Left out: 1 image (samples.webp)."]
    for example in dataset.examples():
        row = rows[example.id]
        assert example.image == row.image
        assert (example.class_noun, example.kind, example.prompt_set) == (
            row.class_noun,
            row.kind,
            row.prompt_set,
        )
        assert example.slots == row.slots
        assert (example.width, example.height) == (row.width, row.height)
        for name in ("seed", "model", "model_revision", "image_digest", "scores", "scheduler"):
            assert example.metadata[name] == getattr(row, name)
        assert "language_model" not in example.metadata  # not known


def test_a_missing_or_damaged_file(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    path = run / "dataset/data/train-00001-of-00002.parquet"
    content = bytearray(path.read_bytes())
    content[3000:3040] = bytes(40)
    path.write_bytes(content)
    dataset = open_dataset(run)
    with pytest.raises(CannotOpen, match=r"data/train-00001-of-00002.parquet cannot be read"):
        list(dataset.examples())
    path.write_bytes(content[:-100])
    with pytest.raises(CannotOpen, match=r"data/train-00001-of-00002.parquet cannot be read"):
        open_dataset(run)
    path.unlink()
    with pytest.raises(CannotOpen, match=r"not complete: of data/train.* 1 of 2 files"):
        open_dataset(run)


def test_an_export_is_read_once_though_its_images_lie_there_twice(tmp_path: Path) -> None:
    some = items("a", "b", "c", folder="images/")
    files = with_jsonl(some) | with_text_files(some) | {"export.json": b"{}"}
    again = {f"reg/1_teapot/{i.path[-3:]}.png": i.image for i in some}
    write(tmp_path, files | again | {"subject/01.png": png(9)})
    assert read(open_dataset(tmp_path)) == written(some)


def bent(content: bytes, *places: tuple[int, int]) -> bytes:
    """A zip archive with bytes changed: (place, value); negative in its central directory."""
    changed = bytearray(content)
    for place, value in places:
        changed[place if place > 0 else changed.index(b"PK\1\2") - place] = value
    return bytes(changed)


ZIP = as_zip({"a.png": png(0)})
PLAIN = {"a.png": png(0)}


@pytest.mark.parametrize(
    ("files", "name", "options", "complaint"),
    [
        ({"recipe.yaml": b"", "state.json": b"", "shards/0.parquet": b""}, "", {}, "regforge run "),
        ({"teapots/a.png": png(0)}, "teapot", {}, r"teapot is not there.\nDid .*teapots\?"),
        (PLAIN, "x\0y", {}, "is not there"),
        ({}, "", {}, "is empty"),
        ({"a.txt": b"", "b.txt": b"", "c.md": b""}, "", {}, "files: 2 with .txt and 1 with .md"),
        ({"a.txt": b""}, "a.txt", {}, "is no dataset"),
        ({"a.heic": b"..."}, "", {}, r"holds no images.*\nSave its images as PNG"),
        ({"x.arrow": b"..", "state.json": b"{}"}, "", {}, r"holds no images.*\n.*to_parquet\(\)"),
        (PLAIN, "", {"revision": "v1"}, "has no revision 'v1'"),
        ({"a.png": png(0), "a.txt": b"a"}, "", {"caption_column": "x"}, "captions stand in text"),
        ({"metadata.jsonl": b'{"image": "a.png"}', **PLAIN}, "", {}, "no column 'file_name'; it"),
        ({"x.parquet": as_parquet({"text": ["a"]})}, "", {}, "no column with images; it has text"),
        (
            {
                "a.parquet": as_parquet({"image": [png(0)], "text": ["a"]}),
                "b.parquet": as_parquet({"image": [png(1)], "prompt": ["b"], "seed": [1]}),
            },
            "",
            {},
            "has prompt and seed too and lacks text",
        ),
        ({"x.zip": as_zip({"x.parquet": b"PAR1"})}, "", {}, "parquet files in .zip archives"),
        ({"x.zip": bent(ZIP, (6, 1), (-8, 1))}, "", {}, "x.zip is locked with a password"),
        ({"x.zip": bent(ZIP, (-6, 200))}, "", {}, "x.zip is no zip archive, or is damaged"),
        *(
            ({name: b"something else" * 100}, name, {}, name)
            for name in ("x.zip", "x.tar", "x.tar.gz", "x.parquet")
        ),
    ],
)
def test_what_cannot_be_opened(
    files: Files, name: str, options: dict[str, str], complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(CannotOpen, match=complaint) as error:
        open_dataset(write(tmp_path, files) / name, **options)
    assert error.value.exit_code == 2
