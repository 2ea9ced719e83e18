"""Workers of a Ray cluster draw what one process would draw, whatever happens to them."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawing import jobs

import regforge
from regforge.images import require_engine
from regforge.images.ray_cluster import ClusterError, ClusterSettingError, share
from regforge.images.ray_engine import RayRenderer
from regforge.images.renderer import (
    EncodedImage,
    ModelIdentity,
    RenderedImage,
    Renderer,
    RenderError,
)
from regforge.images.staging import Staging, expect, render_into
from regforge.journal import Journal, Reporter, read
from regforge.recipe.rendering import Render
from regforge.records import ImageJob

IDENTITY = ModelIdentity("org/model", "0123abc", "ddim", "float32", 24, 16)


@pytest.mark.parametrize(
    ("nodes", "workers", "most", "each"),
    [
        ([8], 8, 1, 1),
        ([8, 8], 4, 1, 1),
        ([1], 3, 1, 0.3333),
        ([2, 1], 8, 1, 0.3333),  # a fraction of 3/8 would leave two without a place
        ([16], 4, 16, 4),
        ([4, 2], 3, 4, 2),
        ([2], 3, 2, 0.5),
    ],
)
def test_each_worker_gets_a_share_and_all_find_a_place(
    nodes: list[int], workers: int, most: int, each: float
) -> None:
    assert share(nodes, workers, most=most) == each
    places = sum(int(node / each + 1e-9) if each >= 1 else node * int(1 / each) for node in nodes)
    assert places >= workers


@pytest.mark.parametrize(
    ("render", "workers", "engine", "key"),
    [
        ({}, 2, "local", "--workers"),
        ({}, 0, "ray", "--workers"),
        ({}, None, "rya", "'rya'"),
        ({"device": "cuda:1"}, None, "ray", "render.device"),
        (
            {"renderer": "hosted", "model": "openai/x", "api_base": "http://localhost:1"},
            None,
            "ray",
            "render.renderer",
        ),
    ],
)
def test_what_has_no_workers(render: Any, workers: int | None, engine: Any, key: str) -> None:
    with pytest.raises(ClusterSettingError, match=key) as raised:
        require_engine(Render(**render), engine, workers)
    assert raised.value.exit_code == 2


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regforge.images.ray_cluster.find_spec", lambda _: None)
    with pytest.raises(ClusterSettingError, match=r"regforge\[ray\]") as raised:
        regforge.check({"name": "cats", "subject": {"class_noun": "cat"}}, engine="ray")
    assert raised.value.exit_code == 2


def test_nobody_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ClusterError, match="RAY_ADDRESS") as raised:
        require_engine(Render(), "ray", None)
    assert raised.value.exit_code == 1


# ------------------------------------------------------------------------------------ real workers

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster on this machine."""
    import ray
    from ray import cloudpickle

    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import it
    ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


class Drawn(Renderer):
    """Draws noise from the seed of the first image of its batch, so that mates can be told."""

    identity = IDENTITY

    def __init__(self, batch_size: int, before: Callable[[Sequence[ImageJob]], object]) -> None:
        self.batch_size, self._before = batch_size, before

    def render(self, todo: Sequence[ImageJob]) -> Iterator[RenderedImage]:
        if len(todo) > self.batch_size:
            raise AssertionError("more than a batch")
        most = self._before(todo)
        if isinstance(most, int):
            self.batch_size = most
        for job in todo:
            rng = np.random.default_rng([todo[0].seed, job.seed])
            yield RenderedImage(job, rng.integers(0, 256, (16, 24, 3), np.uint8), nsfw=False)

    def close(self) -> None:
        pass


def opened(before: Any, _render: Render, *, batch_size: int | None, **_: Any) -> Renderer:
    return Drawn(batch_size or 4, before)


def nothing(_: object) -> None:
    pass


def slow_at_first(batch: Sequence[ImageJob]) -> None:
    if batch[0].index == 0:
        time.sleep(2)


def first_time(folder: Path) -> bool:
    """Whether nobody asked before."""
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def die_once(folder: Path, batch: Sequence[ImageJob]) -> None:
    if batch[0].index == 8 and first_time(folder):
        os.kill(os.getpid(), signal.SIGKILL)


def die_always(batch: Sequence[ImageJob]) -> None:
    if batch[0].index == 8:
        os.kill(os.getpid(), signal.SIGKILL)


def too_many(batch: Sequence[ImageJob]) -> int:
    return min(len(batch), 2)


def workers(
    count: int, before: Any = nothing, *, folder: Path | None = None, **options: Any
) -> RayRenderer:
    return RayRenderer(
        Render(steps=2),
        journal=Journal(folder),
        reporter=Reporter(quiet=True),
        workers=count,
        opener=options.pop("opener", partial(opened, before)),
        **options,
    )


def files(renderer: Renderer, todo: Sequence[ImageJob]) -> dict[str, bytes]:
    found = {}
    for image in renderer.render(todo):
        assert isinstance(image, EncodedImage)
        found[image.job.id] = image.image
    renderer.close()
    return found


@pytest.fixture(scope="module")
def whole(cluster: None) -> dict[str, bytes]:
    """What a single worker draws."""
    return files(workers(1), jobs(40))


@slow
def test_a_worker_that_dies_in_a_batch(whole: dict[str, bytes], tmp_path: Path) -> None:
    renderer = workers(2, partial(die_once, tmp_path / "died"), folder=tmp_path)
    assert files(renderer, jobs(40)) == whole
    assert [e["event"] for e in read(tmp_path / "log.jsonl")].count("worker_died") == 1


@slow
def test_a_batch_of_which_all_workers_die(cluster: None) -> None:
    renderer = workers(2, die_always)
    with pytest.raises(RenderError, match=f"5 workers .* {jobs(9)[8].id}"):
        list(renderer.render(jobs(40)))
    renderer.close()


@slow
def test_memory_of_one_worker_lowers_the_batch_size_of_all_once(cluster: None) -> None:
    renderer = workers(2, too_many)
    images = list(renderer.render(jobs(40)))
    assert renderer.batch_size == 2
    assert sorted(image.job.index for image in images) == list(range(40))
    renderer.close()


@slow
def test_an_earlier_batch_size_goes_before_auto(whole: dict[str, bytes]) -> None:
    renderer = workers(2, batch_size=8)
    assert renderer.batch_size == 8
    assert files(renderer, jobs(40)) != whole


@slow
def test_what_is_expected_is_drawn_while_the_pool_has_nothing_else(
    cluster: None, tmp_path: Path
) -> None:
    renderer = workers(3, slow_at_first)
    staging = Staging(tmp_path, Render(steps=2), IDENTITY)
    todo = jobs(48)
    expect(staging, renderer, todo[4:])
    render_into(staging, renderer, todo[:4])  # one batch; two workers have nothing to do with it
    early = set(staging.early)
    assert early <= {job.id for job in todo[4:]}
    assert len(early) >= 4
    before = {job.id for job in todo} - {job.id for job in staging.missing(todo)}
    assert before == early | {job.id for job in todo[:4]}
    drawn = render_into(staging, renderer, todo[4:])
    assert drawn == 44 - len(early), "nothing is drawn twice"
    assert staging.missing(todo) == []
    staging.close()
    renderer.close()


def dying(*_: Any, **__: Any) -> Renderer:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@slow
def test_workers_that_die_while_they_load(cluster: None) -> None:
    with pytest.raises(RenderError, match="while loading"):
        workers(2, opener=dying)


def of_another_kind(folder: Path, *_: Any, **__: Any) -> Renderer:
    drawn = Drawn(4, nothing)
    if first_time(folder):
        drawn.identity = ModelIdentity("org/model", "0123abc", "ddim", "float16", 24, 16)
    return drawn


@slow
def test_workers_that_would_draw_other_images(cluster: None, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"render\.dtype"):
        workers(2, opener=partial(of_another_kind, tmp_path / "first"))
