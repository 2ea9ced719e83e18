"""Images between drawing and judging: nothing half-written counts, and nothing whole is lost."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawing import jobs, opened
from PIL import Image

from regforge.files import StorageError
from regforge.images.renderer import LoraIdentity, ModelIdentity, RenderedImage, RenderError
from regforge.images.staging import Staging, render_into
from regforge.journal import Task
from regforge.recipe.rendering import Render
from regforge.records import ImageJob

IDENTITY = ModelIdentity("org/model", "0123abc", "ddim", "float32", 24, 16)


class FakeRenderer:
    """A renderer whose images show seed and batch, so that it can be seen who was drawn with whom.

    Stops with an error after `stop_after` images.
    """

    identity = IDENTITY

    def __init__(self, batch_size: int, stop_after: int = 1000) -> None:
        self.batch_size = batch_size
        self.drawn: list[int] = []
        self._left = stop_after

    def render(self, todo: Sequence[ImageJob]) -> Iterator[RenderedImage]:
        for start in range(0, len(todo), self.batch_size):
            batch = todo[start : start + self.batch_size]
            for job in batch:
                if self._left == 0:
                    raise KeyboardInterrupt
                self._left -= 1
                self.drawn.append(job.index)
                yield image_of(job, mates=sum(each.seed for each in batch))

    def close(self) -> None:
        pass


def image_of(job: ImageJob, *, mates: int = 0, nsfw: bool = False) -> RenderedImage:
    rng = np.random.default_rng([job.seed, mates])
    return RenderedImage(job, rng.integers(0, 256, (16, 24, 3), dtype=np.uint8), nsfw)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Callable[..., Staging]]:
    """Opens staging areas of one folder; closes them in the end."""
    open_ones: list[Staging] = []

    def open_one(identity: ModelIdentity = IDENTITY, **render: Any) -> Staging:
        staging = Staging(tmp_path / "staging", Render(**render), identity)
        open_ones.append(staging)
        return staging

    yield open_one
    for staging in open_ones:
        staging.close()


def test_what_is_put_can_be_read_by_the_next_session(stage: Callable[..., Staging]) -> None:
    first, second = jobs(2)
    before = stage()
    before.put(image_of(first))
    before.put(image_of(second, nsfw=True))
    before.close()
    after = stage()
    assert after.missing(jobs(3)) == jobs(3)[2:]
    assert [after.read(job).nsfw for job in (first, second)] == [False, True]
    image = after.read(first).image
    assert image[8:12] == b"WEBP"


def test_another_attempt_is_another_image(stage: Callable[..., Staging]) -> None:
    job = jobs(1)[0]
    staging = stage()
    staging.put(image_of(job))
    again = job.again("digest")
    assert staging.missing([job, again]) == [again]
    with pytest.raises(RenderError, match="is not in"):
        staging.read(again)


def test_images_of_other_settings_or_models_do_not_count(stage: Callable[..., Staging]) -> None:
    staging, (job,) = stage(), jobs(1)
    staging.put(image_of(job))
    staging.flush()
    for change in (
        {"steps": 7},
        {"guidance_scale": 2.0},
        {"negative_prompt": "dark"},
        {"format": "png"},
    ):
        assert stage(**change).missing([job]) == [job]
    assert stage().missing([job]) == []
    edited = replace(job, prompt=replace(job.prompt, text="a photo of a blue teapot"))
    assert staging.missing([edited]) == [edited]
    loras = (LoraIdentity("teapot.safetensors", "sha256:0", 0.5),)
    changes = {"revision": "other", "dtype": "bfloat16", "scheduler": "euler", "loras": loras}
    for name, value in changes.items():
        assert stage(replace(IDENTITY, **{name: value})).missing([job]) == [job]


RUINS: dict[str, Callable[[Path, Path], object]] = {
    "half an image": lambda image, _: image.write_bytes(image.read_bytes()[:-5]),
    "half a marker": lambda _, marker: marker.write_text("{"),
    "no image": lambda image, _: image.unlink(),
    "no marker": lambda _, marker: marker.unlink(),
    "odd marker": lambda _, marker: marker.write_text("[1]"),
}


@pytest.mark.parametrize("ruin", RUINS)
def test_ruins_do_not_count(ruin: str, stage: Callable[..., Staging], tmp_path: Path) -> None:
    staging = stage()
    staging.put(image_of(jobs(1)[0]))
    staging.flush()
    image, marker = (next(tmp_path.glob(f"staging/*.{suffix}")) for suffix in ("webp", "json"))
    RUINS[ruin](image, marker)
    assert staging.missing(jobs(1)) == jobs(1)


def test_discarding_deletes_all_attempts(stage: Callable[..., Staging], tmp_path: Path) -> None:
    first, second = jobs(2)
    staging = stage()
    for job in (first, first.again("digest"), second):
        staging.put(image_of(job))
    staging.flush()
    half = tmp_path / "staging" / ".unfinished-0123456789abcdef"
    half.write_bytes(b"half")
    staging.discard([first])
    assert staging.missing([first, first.again("digest"), second])[-1].id == first.id
    assert staging.read(second).image
    assert not half.exists()
    staging.discard()
    staging.close()
    assert not (tmp_path / "staging").exists()


def test_a_disk_that_cannot_be_written_is_reported_by_the_next_call(tmp_path: Path) -> None:
    (tmp_path / "staging").write_text("a file where the folder should be")
    staging = Staging(tmp_path / "staging", Render(), IDENTITY)
    staging.put(image_of(jobs(1)[0]))
    with pytest.raises(StorageError, match="staging"):
        staging.flush()
    with pytest.raises(StorageError):
        staging.put(image_of(jobs(1)[0]))
    with pytest.raises(StorageError):
        staging.close()


def test_many_images_pass_through_a_small_queue(
    stage: Callable[..., Staging], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regforge.images.staging._WAITING_BYTES", 16 * 24 * 3 * 2)
    staging = stage()
    for job in jobs(40):
        staging.put(image_of(job))
    assert staging.missing(jobs(40)) == []


def staged_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*"))}


@pytest.mark.parametrize("stop_after", [0, 1, 4, 5, 9])
def test_an_interrupted_run_ends_with_the_same_bytes(stop_after: int, tmp_path: Path) -> None:
    todo, folders = jobs(10), [tmp_path / name for name in ("whole", "stopped")]
    whole = Staging(folders[0], Render(), IDENTITY)
    render_into(whole, FakeRenderer(4), todo)
    whole.close()
    stopped = Staging(folders[1], Render(), IDENTITY)
    with pytest.raises(KeyboardInterrupt):
        render_into(stopped, FakeRenderer(4, stop_after), todo)
    stopped.close()
    resumed = Staging(folders[1], Render(), IDENTITY)
    renderer = FakeRenderer(4)
    render_into(resumed, renderer, todo)
    resumed.close()
    assert staged_bytes(folders[1]) == staged_bytes(folders[0])
    # Whole batches, and no batch that was complete.
    assert renderer.drawn == list(range(stop_after // 4 * 4, 10))


def test_nothing_missing_draws_nothing_and_counts_what_was(stage: Callable[..., Staging]) -> None:
    staging, renderer = stage(), FakeRenderer(4)
    render_into(staging, renderer, jobs(3))
    task = Task("rendering", 10, "images", 3)
    renderer.drawn.clear()
    render_into(staging, renderer, jobs(3), task)
    assert (renderer.drawn, task.done) == ([], 3)
    render_into(staging, renderer, jobs(10), task)
    assert (renderer.drawn, task.done) == (list(range(10)), 10)


def test_the_file_is_the_image_and_says_what_made_it(tmp_path: Path) -> None:
    renderer = opened(width=32, height=32)
    staging = Staging(tmp_path, Render(steps=2, format="png"), renderer.identity)
    render_into(staging, renderer, jobs(2))
    staging.close()
    job = jobs(2)[1]
    with Image.open(tmp_path / f"{job.id}.0.png") as image:
        assert image.info["parameters"].startswith(job.prompt.text)
        pixels = np.asarray(image)
    assert np.array_equal(pixels, list(renderer.render(jobs(2)))[1].pixels)
    marker = json.loads((tmp_path / f"{job.id}.0.json").read_text())
    assert marker["nsfw"] is False
