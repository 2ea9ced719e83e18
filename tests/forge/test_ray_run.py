"""Runs with Ray end with the bytes of a plain one: any number of workers, any kill."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import fingerprint, write_small

pytestmark = pytest.mark.slow

Typed = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, repo: Path) -> Path:
    """Three shards; one step gives blurs that resemble one another, so some are drawn again."""
    colors = ["red", "blue", "black", "white", "pink", "green", "yellow", "brown"]
    places = ["on a beach", "in a forest", "in a city", "at night", "in the snow", "on a table"]
    styles = ["a photo of", "a pencil sketch of", "a watercolor of", "an oil painting of"]
    styles += ["a close-up photo of", "a drawing of", "a blurry photo of"]
    slots = {"color": colors, "background": places, "style": styles}
    return write_small(
        tmp_path_factory.mktemp("recipe") / "recipe.yaml",
        repo,
        prompts={
            "count": 260,
            "sets": {"amplify": 1},
            "slots": [{"name": name, "values": values} for name, values in slots.items()],
        },
        render={"steps": 1, "max_attempts": 2, "width": 48, "height": 48, "batch_size": 8},
        curate={"max_duplicate_distance": 2},
    )


@pytest.fixture(scope="module")
def typed(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Typed:
    """Starts `regforge run`; how many threads compute decides about bytes, so it is one."""
    cache = str(tmp_path_factory.mktemp("cache"))

    def start(out: Path, *words: str) -> "subprocess.Popen[str]":
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "REGFORGE_CACHE": cache}
        command = [sys.executable, "-m", "regforge", "run", str(recipe), "--out", str(out), *words]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return start


def finish(session: "subprocess.Popen[str]") -> str:
    out, err = session.communicate(timeout=400)
    assert session.returncode == 0, err
    assert "raylet" not in out + err
    return out


@pytest.fixture(scope="module")
def whole(typed: Typed, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of a plain run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    finish(typed(out))
    return fingerprint(out)


def staged(out: Path, least: int = 1) -> None:
    """Wait until so many images are staged or stored."""
    limit = time.monotonic() + 200
    while time.monotonic() < limit:
        if len(list(out.glob("staging/*.json"))) >= least or any(out.glob("shards/*.parquet")):
            return
        time.sleep(0.02)
    raise AssertionError("nothing is drawn")


def workers_of(session: "subprocess.Popen[str]") -> list[int]:
    """Processes of its workers, below the raylet that it started."""
    parents, found = {}, []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int(
                entry.joinpath("stat").read_text().rsplit(")", 1)[1].split()[1]
            )
            if entry.joinpath("cmdline").read_bytes().startswith(b"ray::_Drawer"):
                found.append(int(entry.name))
        except OSError:
            continue

    def is_below(process: int) -> bool:
        while process > 1:
            process = parents.get(process, 0)
            if process == session.pid:
                return True
        return False

    return [process for process in found if is_below(process)]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_workers(
    workers: int, typed: Typed, whole: dict[str, str], tmp_path: Path
) -> None:
    finish(typed(tmp_path / "run", "--engine", "ray", "--workers", str(workers)))
    assert fingerprint(tmp_path / "run") == whole
    assert not list((tmp_path / "run" / "staging").iterdir())


def test_workers_and_the_driver_are_killed(
    typed: Typed, whole: dict[str, str], tmp_path: Path
) -> None:
    out, words = tmp_path / "run", ("--engine", "ray", "--workers", "2")
    session = typed(out, *words)
    staged(out, 8)
    os.kill(random.Random(0).choice(workers_of(session)), signal.SIGKILL)
    staged(out, 32)
    below = workers_of(session)
    session.kill()
    assert session.wait() == -signal.SIGKILL
    limit = time.monotonic() + 60
    while any(Path(f"/proc/{process}").exists() for process in below):
        assert time.monotonic() < limit, "a killed driver leaves no workers"
        time.sleep(0.1)
    assert '"json"' not in finish(typed(out, *words))
    assert fingerprint(out) == whole
    assert "worker_died" in (out / "log.jsonl").read_text()


def test_interrupted(typed: Typed, whole: dict[str, str], tmp_path: Path) -> None:
    out, words = tmp_path / "run", ("--engine", "ray", "--workers", "2")
    session = typed(out, *words)
    staged(out)
    below = workers_of(session)
    session.send_signal(signal.SIGINT)
    _, said = session.communicate(timeout=60)
    assert session.returncode == 130, said
    assert "go on with" in said
    assert "Traceback" not in said
    assert not any(Path(f"/proc/{process}").exists() for process in below)
    finish(typed(out))
    assert fingerprint(out) == whole, "by one process what two workers had begun"


def test_a_model_that_is_not_there(typed: Typed, tmp_path: Path) -> None:
    session = typed(tmp_path, "--engine", "ray", "--set", "render.model=./none")
    _, said = session.communicate(timeout=120)
    assert session.returncode == 1
    assert "Traceback" not in said


def test_the_cluster_goes(tmp_path: Path, typed: Typed) -> None:
    out = tmp_path / "run"
    session = typed(out, "--engine", "ray", "--workers", "2")
    staged(out)
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(entry.joinpath("stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == session.pid:
                os.kill(int(entry.name), signal.SIGKILL)
        except OSError:
            continue
    _, said = session.communicate(timeout=120)
    assert session.returncode == 1, said
    assert "cluster" in said
    assert "Traceback" not in said
