"""Images to look at: which are drawn, where they go, and that none is lost or replaced."""

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation.trained_models import LORA, fitting_lora, lora, run
from forked import Forked
from PIL import Image

from regforge.evaluation.drawing import seed_of
from regforge.evaluation.sampling import TILE, Samples, draw_grid, sample, tile_of
from regforge.evaluation.suites import EvaluationError
from regforge.journal import Reporter

QUIET = Reporter(quiet=True)


def tile(color: str = "red") -> Image.Image:
    return tile_of(Image.new("RGB", (96, 96), color))


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((96, 96), (192, 192)),
        ((32, 32), (224, 224)),
        ((256, 256), (256, 256)),
        ((1024, 1024), (TILE, TILE)),
        ((1024, 512), (TILE, TILE // 2)),
        ((3000, 1), (TILE, 1)),
    ],
)
def test_images_of_all_sizes_fit(size: tuple[int, int], shown: tuple[int, int]) -> None:
    assert tile_of(Image.new("RGB", size)).size == shown


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (4, 4), (8, 8), (9, 5), (10, 5), (17, 6)])
def test_rows_are_broken_evenly(count: int, columns: int) -> None:
    grid = np.asarray(draw_grid([("a prompt", [("", [tile()] * count)])]))
    red = (grid[..., 0] > 200) & (grid[..., 1] < 60)
    assert red.sum() >= count * 190 * 190
    across = (np.diff(red[red.any(1).nonzero()[0][5]].astype(int)) == 1).sum()
    assert across == columns


def test_each_row_has_its_own_images_and_long_prompts_are_wrapped() -> None:
    rows = [("mine", [tile("red")] * 2), ("base", [tile("blue")] * 2)]
    grid = np.asarray(draw_grid([("a", rows), ("b", rows)], footer="seed 0"))
    colors = {(255, 0, 0): "red", (0, 0, 255): "blue"}
    found = [colors[color] for line in grid if (color := tuple(line[40].tolist())) in colors]
    assert [color for color, _ in groupby(found)] == ["red", "blue", "red", "blue"]
    rows = [("", [tile()])]
    short = draw_grid([("a cat", rows)])
    long = draw_grid([("a very long prompt " * 40 + "x" * 400, rows)])
    assert long.width == short.width
    assert long.height > short.height + 300
    assert draw_grid([]).size[0] > 0


def refusal(*arguments: Any, **more: Any) -> str:
    with pytest.raises(EvaluationError) as error:
        sample(*arguments, **{"reporter": QUIET, "device": "nonsense"} | more)
    return str(error.value)


def test_nothing_to_draw(tmp_path: Path) -> None:
    alone, tiny = lora(tmp_path / "mug.safetensors"), "embedded/tinyworld"
    assert "--prompt" in refusal(alone, base=tiny)
    assert "{} stands for" in refusal(alone, ["a {}"], base=tiny)
    assert "empty" in refusal(tiny, ["  "])
    assert "{} stands for" in refusal(tiny, "a {} on a beach")  # one prompt, not its letters
    assert "1 to" in refusal(tiny, ["a cat"], count=0)
    assert "1 to" in refusal(tiny, ["a cat"], steps=0)
    assert "UTF-8" in refusal(tiny, ["a \udcff cat"])
    assert "no base model" in refusal(tiny, ["a cat"], beside_base=True)


@pytest.mark.parametrize("where", ["x" * 300, "/dev/null", "~nobody-of-this-name/x", "a\0b"])
def test_paths_that_are_no_models(where: str) -> None:
    assert "here is no file or folder" in refusal(where) or "holds no model" in refusal(where)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"mine")
    assert "other files" in refusal("embedded/tinyworld", ["a cat"], out=tmp_path)
    (tmp_path / "samples.json").write_text('{"request": {"prompts": ["a dog"]}}')
    assert "other samples" in refusal("embedded/tinyworld", ["a cat"], out=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.png", "samples.json"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training run of the embedded pipeline."""
    from regforge.embedded import load_pipeline

    folder = run(tmp_path_factory.mktemp("runs") / "cat", data={"resolution": 32})
    fitting_lora(load_pipeline("cpu"), folder / "lora" / LORA)
    return folder


def drawn(folder: Path, prompts: tuple[str, ...] = (), **more: Any) -> Samples:
    quick: dict[str, Any] = {"count": 2, "steps": 1, "device": "cpu", "dtype": "float32"}
    return sample(folder, prompts, reporter=QUIET, **(quick | more))


@pytest.mark.slow
def test_samples_beside_the_base_model(folder: Path) -> None:
    done = drawn(folder, ("a {} on the moon", "a photo of a cat"), beside_base=True, seed=7)
    assert done.folder == folder / "samples" / "1"
    asked = [(each.file, each.prompt, each.model) for each in done.images]
    assert asked[::2] == [
        ("001.png", "a sks cat on the moon", "cat"),
        ("003.png", "a photo of a cat", "cat"),
        ("base/001.png", "a cat on the moon", "tinyworld"),
        ("base/003.png", "a photo of a cat", "tinyworld"),
    ]
    seeds = [each.seed for each in done.images]
    assert seeds[:4] == seeds[4:]
    assert seeds[0] == seed_of(7, "a {} on the moon", 0)
    for each in done.images:
        with Image.open(done.folder / each.file) as image:
            assert image.size == (32, 32)
            says = json.loads(image.info["regforge"])
        assert (says["prompt"], says["seed"], says["model"]) == (each.prompt, each.seed, each.model)
        assert (says["weights"] == done.model.digest) == (each.model == "cat")
    mine, base = ((done.folder / name).read_bytes() for name in ("003.png", "base/003.png"))
    assert mine != base
    assert done.notes == (
        "1 of 2 prompts do not say 'sks', so they ask for any cat, not for this one.",
    )
    written = json.loads((done.folder / "samples.json").read_text())
    assert {key: written[key] for key in done.as_dict()} == done.as_dict()
    assert "4 images of 2 prompts, and 4 by the base model" in done.as_text()
    with Image.open(done.grid) as grid:
        assert grid.height > 4 * 224


@pytest.mark.slow
def test_the_same_request_goes_on_and_another_one_has_its_own_folder(folder: Path) -> None:
    first = drawn(folder, ("a {}",))
    images = {path: path.read_bytes() for path in first.folder.glob("*.png")}
    (first.folder / "002.png").unlink()
    first.grid.unlink()
    again = drawn(folder, ("a {}",))
    assert again == first
    assert {path: path.read_bytes() for path in first.folder.glob("*.png")} == images
    for change in ({"seed": 1}, {"count": 3}, {"steps": 2}, {"guidance_scale": 1.0}):
        other = drawn(folder, ("a {}",), **change)
        assert other.folder.parent == first.folder.parent
        assert other.folder != first.folder
    assert {path: path.read_bytes() for path in first.folder.glob("*.png")} == images
    assert drawn(folder, ("a {}",), seed=1).folder.name == str(int(first.folder.name) + 1)


@pytest.mark.slow
def test_the_command(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    asked = ["sample", str(folder), "-n", "1", "--steps", "1", "--out", "mine"]
    done = Forked(*asked, "--json", "--quiet")
    assert done.wait() == 0, done.err
    prompts = [each["prompt"] for each in json.loads(done.out)["images"]]
    assert prompts == ["a photo of a sks cat", "a photo of a cat"]  # the model's own
    assert done.err == ""
    assert (tmp_path / "mine" / "grid.png").is_file()
    refused = Forked(*asked, "--seed", 1)
    assert (refused.wait(), "other samples" in refused.err) == (2, True)
    assert "Traceback" not in refused.err
