"""Runs with Ray end with the bytes of a plain one: any number of workers, any kill."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forked import Forked
from small_runs import fingerprint, quietly, write_small

from regforge.embedded import TINYWORLD
from regforge.images.renderer import ModelUnavailable
from regforge.recipe import load_recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, repo: Path) -> Path:
    """Two shards; one step gives blurs that resemble one another, so some are drawn again."""
    slots = {
        "color": ["red", "blue", "black", "white", "pink", "green"],
        "background": ["on a beach", "in a forest", "in a city", "at night", "in the snow"],
        "style": ["a photo of", "a sketch of", "a watercolor of", "a drawing of", "a painting of"],
    }
    return write_small(
        tmp_path_factory.mktemp("recipe") / "recipe.yaml",
        repo,
        prompts={
            "count": 140,
            "sets": {"amplify": 1},
            "slots": [{"name": name, "values": values} for name, values in slots.items()],
        },
        render={"steps": 1, "max_attempts": 2, "width": 48, "height": 48, "batch_size": 8},
        curate={"max_duplicate_distance": 2},
    )


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """On a CPU, how many threads compute together shows in the last bit of some pixels."""
    import torch

    threads, before = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    yield
    torch.set_num_threads(threads)
    del os.environ["OMP_NUM_THREADS"]
    if before is not None:
        os.environ["OMP_NUM_THREADS"] = before


@pytest.fixture(scope="module")
def whole(
    recipe: Path, one_thread: None, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """The files of a plain run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    quietly(load_recipe(recipe), out)
    return fingerprint(out)


@pytest.fixture(scope="module")
def cluster(one_thread: None) -> Iterator[None]:
    import ray

    ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_three_workers(recipe: Path, whole: dict[str, str], cluster: None, tmp_path: Path) -> None:
    quietly(load_recipe(recipe), tmp_path, engine="ray", workers=3)
    assert fingerprint(tmp_path) == whole
    assert not list(tmp_path.glob("staging/*"))


def test_weights_that_no_worker_can_load(recipe: Path, cluster: None, tmp_path: Path) -> None:
    model = shutil.copytree(TINYWORLD, tmp_path / "model")
    config = json.loads((model / "unet" / "config.json").read_text())
    (model / "unet" / "config.json").write_text(json.dumps(config | {"cross_attention_dim": 8}))
    broken = load_recipe(recipe, [f"render.model={model}"])
    with pytest.raises(ModelUnavailable, match="cannot be loaded") as raised:
        quietly(broken, tmp_path / "run", engine="ray", workers=1)
    assert raised.value.exit_code == 1


# ------------------------------------------------------------------------- in processes of its own


def start(recipe: Path, out: Path, workers: int = 2) -> Forked:
    words = ["run", recipe, "--out", out, "--engine", "ray", "--workers", workers]
    return Forked(*words, "--json")


def await_that(is_so: Callable[[], bool], session: Forked | None = None) -> None:
    """Wait until something is so, while a session is at work; the time limit is the test's."""
    while not is_so():
        assert session is None or session.poll() is None, session.err
        time.sleep(0.02)


def drawn(out: Path) -> int:
    """How many images are staged, or as many as a shard has."""
    return 128 if any(out.glob("shards/*.parquet")) else len(list(out.glob("staging/*.json")))


def below(session: Forked, name: bytes = b"") -> list[int]:
    """Processes of that name that a session started, directly or not."""
    parents, named = dict[int, int](), list[int]()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            stat = (entry / "stat").read_text().rpartition(")")[2].split()
            if stat[0] != "Z":
                parents[int(entry.name)] = int(stat[1])
            if name in (entry / "cmdline").read_bytes():
                named.append(int(entry.name))
        except OSError:  # it has ended
            continue

    def is_below(process: int) -> bool:
        while (process := parents.get(process, 0)) > 1:
            if process == session.pid:
                return True
        return False

    return list(filter(is_below, named))


def gone(processes: list[int]) -> bool:
    return not any(Path(f"/proc/{each}").exists() for each in processes)


@pytest.mark.timeout(1200)  # three sessions with a Ray of their own
def test_interrupted_killed_and_without_its_cluster(
    recipe: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    session = start(recipe, out, workers=1)
    await_that(lambda: drawn(out) > 0, session)
    started = below(session)
    session.send_signal(signal.SIGINT)
    assert session.wait(60) == 130, session.err
    assert "go on with" in session.err
    assert "Traceback" not in session.err
    assert gone(started)

    session, so_far = start(recipe, out), drawn(out)
    await_that(lambda: drawn(out) > so_far, session)
    os.kill(below(session, b"ray::_Drawer")[0], signal.SIGKILL)
    await_that(lambda: "worker_died" in (out / "log.jsonl").read_text(), session)
    started = below(session)
    session.send_signal(signal.SIGKILL)
    assert session.wait() == -signal.SIGKILL
    await_that(lambda: gone(started))

    session = start(recipe, out, workers=1)
    await_that(lambda: below(session, b"ray::_Drawer") != [], session)
    for process in below(session, b"gcs_server") + below(session, b"raylet/raylet"):
        os.kill(process, signal.SIGKILL)
    assert session.wait(120) == 1, session.err
    assert "Ray" in session.err
    assert "Traceback" not in session.err

    quietly(load_recipe(recipe), out)
    assert fingerprint(out) == whole, "what workers had begun, by one process"
