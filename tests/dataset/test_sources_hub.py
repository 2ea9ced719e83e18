"""Datasets of the Hub, downloaded and streamed, from a Hub on this machine."""

import io
import math
import random
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from hub_server import LoopbackHub
from layouts import (
    LAYOUTS,
    Item,
    as_image_table,
    as_parquet,
    as_tar,
    as_zip,
    items,
    note_of,
    png,
    read,
    with_jsonl,
    with_text_files,
    write_run,
    written,
)
from PIL import Image

from regforge.dataset.sources import CannotOpen, open_dataset
from regforge.hub import HubError

STREAMING = pytest.mark.parametrize("streaming", [False, True], ids=["downloaded", "streamed"])


def fetched(hub: LoopbackHub) -> list[str]:
    """Paths of the files that were asked for, with each request."""
    found = (re.search("/resolve/[^/]+/(.*)", r.path) for r in hub.requests if r.method == "GET")
    return [each[1] for each in found if each]


@STREAMING
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(hub: LoopbackHub, layout: str, streaming: bool) -> None:
    some = items("a red teapot", "one, two", "ein Käfer 🐞", "d")
    commit = hub.put("they/teapots", LAYOUTS[layout](some))
    dataset = open_dataset("they/teapots", streaming=streaming)
    assert read(dataset) == written(some)
    assert (dataset.name, dataset.revision) == ("they/teapots", commit)
    assert dataset.notes == []
    files = [each.file for each in dataset.examples()]
    assert all(files) == (dataset.layout == "folder" and not streaming)


@STREAMING
def test_a_published_dataset(hub: LoopbackHub, streaming: bool, tmp_path: Path) -> None:
    local = write_run(tmp_path)
    files = {p.relative_to(local / "dataset").as_posix(): p for p in _files(local / "dataset")}
    hub.put("me/teapots", files)
    dataset = open_dataset("me/teapots", streaming=streaming)
    here = open_dataset(local)
    assert list(dataset.examples()) == list(here.examples())
    assert (dataset.layout, dataset.slots, dataset.license) == ("regforge", here.slots, "mit")
    assert dataset.run is None
    assert "samples.webp" not in fetched(hub)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@STREAMING
def test_only_what_is_needed_is_fetched(hub: LoopbackHub, streaming: bool) -> None:
    some = items("a", "b", folder="train/")
    others = {"test/x.png": png(8), "model.safetensors": bytes(10), "train/notes.txt": b"..."}
    card = "---\nlicense: openrail\n---\n"
    hub.put("they/cats", {**with_text_files(some), **others, "README.md": card})
    dataset = open_dataset("they/cats", streaming=streaming)
    assert read(dataset) == written(some)
    assert dataset.license == "openrail"
    wanted = {"README.md", *with_text_files(some)}
    assert set(fetched(hub)) == wanted
    if not streaming:
        assert sorted(fetched(hub)) == sorted(wanted)  # each of them once


@STREAMING
def test_the_card_decides(hub: LoopbackHub, streaming: bool) -> None:
    """A sidecar for each image makes `load_dataset` read texts; the card may say better."""
    some = items("a", "b", folder="good/")
    card = "---\nconfigs:\n- config_name: default\n  data_files: good/*.png\n---\n"
    files = with_jsonl([Item("bad/1", png(8), "no"), Item("bad/2", png(9), "no")])
    hub.put("they/cats", {**with_text_files(some), **files, "README.md": card})
    assert read(open_dataset("they/cats", streaming=streaming)) == written(some)


CONFIGS = """---
configs:
- config_name: extra
  data_files: extra/**
- config_name: default
  data_files:
  - {split: train, path: "train/**"}
  - {split: test, path: "test/**"}
---
"""


@pytest.mark.parametrize("card", ["# Cats", CONFIGS], ids=["no configs", "configs"])
@pytest.mark.parametrize("layout", ["metadata.jsonl", "metadata.csv", "Parquet", "WebDataset"])
def test_the_same_as_load_dataset(hub: LoopbackHub, layout: str, card: str) -> None:
    import datasets

    some, other = items("a", "b, c", "d"), items("no", "nor this")
    parts = {"train/": some, "test/": other} | ({"extra/": other} if card == CONFIGS else {})
    files = {
        f"{p}{name}": f for p, each in parts.items() for name, f in LAYOUTS[layout](each).items()
    }
    hub.put("they/cats", {**files, "README.md": card})
    name = "png" if layout == "WebDataset" else "image"
    rows = datasets.load_dataset("they/cats", split="train")
    theirs = [
        (row[name].tobytes(), row.get("text", row.get("txt")))
        for row in rows.cast_column(name, datasets.Image())
    ]
    ours = [
        (Image.open(io.BytesIO(each.image)).tobytes(), each.text)
        for each in open_dataset("they/cats").examples()
    ]
    assert ours == theirs


@STREAMING
def test_revisions(hub: LoopbackHub, streaming: bool) -> None:
    first = hub.put("they/cats", with_text_files(items("old")))
    hub.tag("they/cats", "v1")
    second = hub.put("they/cats", {"000.txt": b"new"})
    for where, revision, commit, text in (
        ("they/cats", None, second, "new"),
        ("they/cats@v1", None, first, "old"),
        ("they/cats", "v1", first, "old"),
        ("they/cats", first, first, "old"),
        ("they/cats@main", "v1", first, "old"),
        (f"{hub.url}/datasets/they/cats/tree/v1", None, first, "old"),
        ("hf://datasets/they/cats@v1", None, first, "old"),
    ):
        dataset = open_dataset(where, revision=revision, streaming=streaming)
        assert dataset.revision == commit
        assert [each.text for each in dataset.examples()] == [text]


@STREAMING
def test_odd_names(hub: LoopbackHub, streaming: bool) -> None:
    names = ("a b", "50%20", "käfer@v1", "x#1?", "[1]*", "a+b&c", "'q'")
    some = [Item(f"fo lder/{name}", png(n), name) for n, name in enumerate(names)]
    hub.put("they/cats", with_text_files(some))
    assert read(open_dataset("they/cats", streaming=streaming)) == written(some)


def test_many_files(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """More files than `snapshot_download` should be given patterns."""
    monkeypatch.setattr("regforge.dataset.sources.trees._MOST_PATTERNS", 5)
    some = items("a", "b", "c", folder="[x]/")
    hub.put("they/cats", {**with_text_files(some), "x.bin": b"..."})
    assert read(open_dataset("they/cats")) == written(some)
    assert "x.bin" not in fetched(hub)


def test_what_is_there_is_not_fetched_again(hub: LoopbackHub) -> None:
    hub.put("they/cats", with_text_files(items("a", "b")))
    open_dataset("they/cats")
    hub.requests.clear()
    read(open_dataset("they/cats"))
    assert fetched(hub) == []


def test_streaming_reads_parts(hub: LoopbackHub) -> None:
    """Captions and sizes of a large table, or its first rows, take a part of its bytes."""
    images = [png(n) + random.Random(n).randbytes(100_000) for n in range(64)]
    columns = {
        "image": images,
        "text": [f"caption {n}" for n in range(64)],
        "width": [300] * 64,
        "height": [300] * 64,
    }
    content = as_parquet(columns, row_group_size=8, use_dictionary=False)
    hub.put("they/large", {"x.parquet": content})
    dataset = open_dataset("they/large", streaming=True)
    found = [(e.text, e.width) for e in dataset.examples(images=False)]
    assert found == [(f"caption {n}", 300) for n in range(64)]
    assert _bytes_sent(hub, len(content)) < len(content) / 10
    assert len(hub.requests) < 40
    hub.requests.clear()
    assert next(dataset.examples()).image == images[0]
    assert _bytes_sent(hub, len(content)) < len(content) / 3


def _bytes_sent(hub: LoopbackHub, size: int) -> int:
    total = 0
    for request in hub.requests:
        if request.method == "GET" and request.path.endswith((".parquet", ".zip")):
            first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", request.range or "").groups()  # type: ignore[union-attr]
            total += (int(last) if last else size - 1) - int(first) + 1
    return total


def test_streaming_a_zip_does_not_fetch_all_of_it(hub: LoopbackHub) -> None:
    some = {f"{n:02d}.png": png(n) + random.Random(n).randbytes(2**20) for n in range(12)}
    content = as_zip(some)
    hub.put("they/cats", {"cats.zip": content})
    dataset = open_dataset("they/cats", streaming=True)
    assert next(dataset.examples()).image == some["00.png"]
    assert _bytes_sent(hub, len(content)) < len(content)
    assert [each.image for each in dataset.examples()] == list(some.values())


@STREAMING
@pytest.mark.parametrize("how", ["offline mode", "cut", "overload"])
def test_a_copy_on_this_machine(
    hub: LoopbackHub, how: str, streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = items("a", "b")
    card = "---\nlicense: mit\n---\n"
    commit = hub.put("they/cats", {**with_text_files(some), "README.md": card})
    open_dataset("they/cats")
    _cut_off(hub, how, monkeypatch)
    dataset = open_dataset("they/cats", streaming=streaming)
    assert read(dataset) == written(some)
    assert (dataset.revision, dataset.license) == (commit, "mit")
    assert note_of(dataset, "cannot be reached", f"commit {commit[:8]}")
    with pytest.raises(HubError, match="they/dogs"):
        open_dataset("they/dogs", streaming=streaming)


@STREAMING
def test_what_was_streamed_is_no_copy(
    hub: LoopbackHub, streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put("they/cats", {**with_text_files(items("a", "b")), "README.md": "# Cats"})
    open_dataset("they/cats", streaming=True)
    _cut_off(hub, "offline mode", monkeypatch)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        open_dataset("they/cats", streaming=streaming)


def test_a_part_of_a_copy_is_not_enough(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put("they/cats", {**with_text_files(items("a", "b")), "README.md": "# Cats"})
    hub.fail("GET .*/001.png", 404, times=math.inf)
    with pytest.raises(HubError):
        open_dataset("they/cats")
    hub.heal()
    _cut_off(hub, "offline mode", monkeypatch)
    with pytest.raises(HubError):
        open_dataset("they/cats")


def _cut_off(hub: LoopbackHub, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "offline mode":
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        hub.fail(".", "cut" if how == "cut" else 503, times=math.inf)


@STREAMING
def test_what_is_not_there_or_may_not_be_read(hub: LoopbackHub, streaming: bool) -> None:
    with pytest.raises(HubError, match="they/nothing") as error:
        open_dataset("they/nothing", streaming=streaming)
    assert "Nor is there a folder they/nothing on this machine." in str(error.value)
    hub.put("they/cats", with_text_files(items("a")))
    with pytest.raises(HubError, match="no revision 'v9'"):
        open_dataset("they/cats@v9", streaming=streaming)
    hub.put("they/texts", {"a.txt": b"a", "README.md": b"# Texts"})
    hub.put("they/gated", with_text_files(items("a")), gated=True)
    with pytest.raises(HubError, match="they/gated is gated"):
        open_dataset("they/gated", streaming=streaming)
    with pytest.raises(CannotOpen, match=r"they/texts holds no images; its files: 1 with .md and"):
        open_dataset("they/texts", streaming=streaming)


def test_the_hub_goes_away_while_streaming(hub: LoopbackHub) -> None:
    kinds: Mapping[str, dict[str, bytes]] = {
        "folder": with_text_files(items(*"abcdefgh")),
        "table": as_image_table(items(*"abcdefgh")),
        "tar": {f"{n}.tar": as_tar(with_text_files(items("a"))) for n in range(5)},
        "zip": {f"{n}.zip": as_zip(with_text_files(items("a"))) for n in range(5)},
    }
    for name, files in kinds.items():
        hub.put(f"they/{name}", files)
        dataset = open_dataset(f"they/{name}", streaming=True)
        examples = dataset.examples()
        next(examples)
        hub.fail("GET .*/resolve/", 404, times=math.inf)
        with pytest.raises(HubError):
            list(examples)
        hub.heal()
        assert len(list(dataset.examples())) >= 5


def test_folders_first(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put("they/cats", with_text_files(items("on the Hub")))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "they/cats").mkdir(parents=True)
    (tmp_path / "they/cats/a.png").write_bytes(png(0))
    assert [each.text for each in open_dataset("they/cats").examples()] == [None]
    assert hub.requests == []
