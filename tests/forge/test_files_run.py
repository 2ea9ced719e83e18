"""Runs whose images are drawn elsewhere: captions go out, and images come back as files."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from servers import png_of
from shell import Shell
from small_runs import WriteRecipe

from regforge.dataset.store import Store, read_rows
from regforge.journal import Journal
from regforge.runs import RunFolder


def black() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (32, 24)).save(content, "PNG")
    return content.getvalue()


def drawn(seed: int) -> Any:
    return np.asarray(Image.open(io.BytesIO(png_of(seed, 32, 24))))


class Exchange:
    """A run's folder, as somebody sees it who draws for it."""

    def __init__(self, folder: Path, shell: Shell, recipe: Path) -> None:
        self.folder, self.shell, self.recipe = folder, shell, recipe
        self.drawn = folder / "drawn"

    def run(self, *options: str, command: str = "render") -> int:
        return self.shell(command, self.recipe, "--out", self.folder, *options)

    @property
    def rows(self) -> list[dict[str, str]]:
        with (self.folder / "to_draw/prompts.csv").open(encoding="utf-8", newline="") as stream:
            return list(csv.DictReader(stream))

    def put(self, name: str, content: bytes | None = None, seed: int = 0) -> None:
        (self.drawn / name).write_bytes(content or png_of(seed, 32, 24))

    def draw(self, rows: Iterable[dict[str, str]]) -> None:
        for row in rows:
            self.put(row["file"], seed=int(row["seed"]))

    def files(self) -> dict[str, bytes]:
        return {each.name: each.read_bytes() for each in self.drawn.iterdir()}

    def images(self) -> dict[str, Any]:
        run = RunFolder(self.folder)
        store = Store(run.shards, ["color"], str(run.digest), Journal(None))
        rows = store.iter_rows()
        return {row.text: np.asarray(Image.open(io.BytesIO(row.image))) for row in rows}


@pytest.fixture
def exchange(write_recipe: WriteRecipe, shell: Shell, tmp_path: Path) -> Exchange:
    values = {"name": "color", "values": [f"color {n}" for n in "abcdef"], "mode": "cycle"}
    prompts = {"count": 6, "sets": {"amplify": 1}, "slots": [values]}
    render = {"renderer": "files", "steps": 30, "dtype": "auto"}
    return Exchange(tmp_path / "made", shell, write_recipe(render=render, prompts=prompts))


def test_captions_go_out_and_images_come_back_by_id(exchange: Exchange) -> None:
    assert exchange.run() == 1
    assert "to_draw" in exchange.shell.err
    assert "drawn" in exchange.shell.err
    rows = exchange.rows
    assert len(rows) == 6
    captions = (exchange.folder / "to_draw/prompts.txt").read_text(encoding="utf-8")
    assert captions.splitlines() == [row["caption"] for row in rows]
    exchange.draw(rows[:4])
    assert exchange.run() == 1
    assert exchange.rows == rows[4:], "what is there is not asked for again"
    for row in rows[4:]:
        exchange.put(f"{row['id']}_00001_.png", seed=int(row["seed"]))
    before = exchange.files()
    assert exchange.run() == 0, exchange.shell.err
    images = exchange.images()
    assert all(np.array_equal(images[r["caption"]], drawn(int(r["seed"]))) for r in rows)
    assert exchange.files() == before
    assert not (exchange.folder / "to_draw/prompts.csv").exists()


def test_rows_and_card_say_that_they_were_drawn_elsewhere(exchange: Exchange) -> None:
    named = ("--set", "render.model=Midjourney")
    assert exchange.run(*named) == 1
    exchange.draw(exchange.rows)
    assert exchange.run(*named, command="run") == 0, exchange.shell.err
    for row in read_rows(exchange.folder / "dataset"):
        assert (row.model, row.scheduler) == ("Midjourney", "drawn elsewhere")
        assert (row.seed, row.steps, row.guidance_scale) == (None, None, None)
    card = (exchange.folder / "dataset/README.md").read_text(encoding="utf-8")
    assert "drawn elsewhere" in card
    assert "Midjourney" in card


def test_images_without_ids_are_taken_in_order_if_there_is_one_for_each(
    exchange: Exchange,
) -> None:
    assert exchange.run() == 1
    rows = exchange.rows
    for number in range(1, 6):
        exchange.put(f"img{number + 5}.png", seed=number)
    assert exchange.run() == 1
    assert "5 images" in exchange.shell.err
    assert exchange.rows == rows
    exchange.put("img11.png", seed=6)
    assert exchange.run() == 0, exchange.shell.err
    images = exchange.images()  # img6, ..., img9, img10, img11
    for number, row in enumerate(rows, 1):
        assert np.array_equal(images[row["caption"]], drawn(number))


@pytest.mark.parametrize("mark", [";", "\t"])
def test_a_table_that_a_spreadsheet_has_saved_is_read(exchange: Exchange, mark: str) -> None:
    assert exchange.run() == 1
    rows = exchange.rows[::-1]  # sorted otherwise
    with (exchange.folder / "to_draw/prompts.csv").open("w", encoding="utf-8-sig") as stream:
        table = csv.DictWriter(stream, list(rows[0]), delimiter=mark, lineterminator="\r\n")
        table.writeheader()
        table.writerows(rows)
    for number in range(6):
        exchange.put(f"{number}.png", seed=number)
    assert exchange.run() == 0, exchange.shell.err
    images = exchange.images()
    for number, row in enumerate(rows):
        assert np.array_equal(images[row["caption"]], drawn(number))


def test_a_refused_image_is_handed_out_again_with_the_next_seed(exchange: Exchange) -> None:
    assert exchange.run() == 1
    rows = exchange.rows
    for number in range(6):
        exchange.put(f"{number}.png", black() if number == 2 else None, number)
    assert exchange.run() == 1
    (again,) = exchange.rows
    assert (again["id"], again["attempt"]) == (rows[2]["id"], "1")
    assert again["seed"] != rows[2]["seed"]
    assert "black" in again["refused"]
    exchange.put("new.png", seed=100)  # by order: the one that is new is for the one row
    assert exchange.run() == 0, exchange.shell.err
    assert np.array_equal(exchange.images()[again["caption"]], drawn(100))


def test_a_file_that_cannot_be_used_is_named_with_the_reason(exchange: Exchange) -> None:
    sized = ("--set", "render.width=32", "--set", "render.height=24")
    assert exchange.run(*sized) == 1
    rows = exchange.rows
    exchange.put(rows[0]["file"], png_of(0, 64, 48))
    exchange.put(rows[1]["file"], png_of(1, 32, 24)[:300])
    exchange.draw(rows[2:5])
    exchange.put(rows[5]["file"], exchange.files()[rows[2]["file"]])
    assert exchange.run(*sized) == 1
    reasons = {row["id"]: row["refused"] for row in exchange.rows}
    assert set(reasons) == {rows[n]["id"] for n in (0, 1, 5)}
    assert "64 x 48" in reasons[rows[0]["id"]]
    assert "another image" in reasons[rows[5]["id"]]
    exchange.draw(rows)
    assert exchange.run(*sized) == 0, exchange.shell.err


def test_all_shards_are_looked_at_before_captions_go_out(
    exchange: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("forge.rendering", "dataset.store"):
        monkeypatch.setattr(f"regforge.{module}.SHARD_SIZE", 2)
    alike = ("--set", "curate.max_duplicate_distance=0")
    assert exchange.run(*alike) == 1
    rows = exchange.rows
    assert len(rows) == 6
    exchange.draw(rows)
    for number in (0, 5):
        exchange.put(rows[number]["file"], black())
    assert exchange.run(*alike) == 1
    first, last = exchange.rows
    assert [first["id"], last["id"]] == [rows[0]["id"], rows[5]["id"]]
    exchange.draw([last])
    copied = io.BytesIO()  # the same image as that of a later row
    Image.fromarray(drawn(int(rows[2]["seed"]))).save(copied, "PNG", compress_level=0)
    exchange.put(first["file"], copied.getvalue())
    assert exchange.run(*alike) == 1
    (later,) = exchange.rows  # each is compared with those before it, whichever came first
    assert (later["id"], later["attempt"]) == (rows[2]["id"], "1")
    exchange.draw([later])
    assert exchange.run(*alike) == 0, exchange.shell.err


def test_a_file_does_not_count_for_a_caption_that_was_edited_since(exchange: Exchange) -> None:
    assert exchange.run() == 1
    rows = exchange.rows
    exchange.draw(rows)
    assert exchange.run() == 0, exchange.shell.err
    prompts = exchange.folder / "prompts.jsonl"
    new = "a photo of another cat"
    prompts.write_text(prompts.read_text("utf-8").replace(rows[0]["caption"], new), "utf-8")
    assert exchange.run() == 1
    (edited,) = exchange.rows
    assert edited["caption"] == new
    assert "another caption" in edited["refused"]
    exchange.put(edited["file"], seed=200)
    assert exchange.run() == 0, exchange.shell.err
    assert np.array_equal(exchange.images()[new], drawn(200))


def test_a_folder_of_ones_own_outlives_starting_over(exchange: Exchange, tmp_path: Path) -> None:
    exchange.drawn = tmp_path / "mine"
    to_mine = ("--set", f"render.folder={exchange.drawn}")
    assert exchange.run(*to_mine) == 1
    exchange.draw(exchange.rows)
    there = exchange.files()
    assert exchange.run(*to_mine) == 0, exchange.shell.err
    assert exchange.run("--fresh", *to_mine) == 0, exchange.shell.err
    assert exchange.files() == there
