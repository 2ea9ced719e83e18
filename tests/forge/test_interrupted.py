"""A run that is killed, anywhere, and started again ends with the bytes of one that was not."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from small_runs import fingerprint

RECIPE = {
    "name": "interrupted",
    "subject": {"class_noun": "cat", "identifier": "sks"},
    "prompts": {
        "count": 20,
        "sets": {"against": 1, "amplify": 3},
        "slots": [
            {"name": "color", "values": ["red", "blue", "black", "white", "pink"]},
            {"name": "background", "values": ["on a beach", "in a forest", "in a city"]},
            {"name": "style", "values": ["a photo of", "a pencil sketch of"]},
        ],
    },
    # One step gives blurs that resemble one another: some are refused and drawn again.
    "render": {"steps": 1, "batch_size": 4, "max_attempts": 2},
    "curate": {"max_duplicate_distance": 2},
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, repo: Path) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    content = RECIPE | {
        "subject": RECIPE["subject"] | {"images": str(repo / "examples/subjects/cat")}
    }
    path.write_text(yaml.safe_dump(content))
    return path


def start(recipe: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "regforge", "run", str(recipe), "--out", str(out)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def finish(recipe: Path, out: Path) -> None:
    process = start(recipe, out)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of a run that nobody killed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    finish(recipe, out)
    return fingerprint(out)


def some_staged(out: Path) -> bool:
    return any(out.glob("staging/*.json"))


def many_staged(out: Path) -> bool:
    return len(list(out.glob("staging/*.json"))) >= 13


KILL_WHEN: dict[str, Callable[[Path], bool]] = {
    "the folder is there": lambda out: (out / "recipe.yaml").exists(),
    "the vocabulary is there": lambda out: (out / "vocabulary.json").exists(),
    "the prompts are there": lambda out: (out / "prompts.jsonl").exists(),
    "the first image is staged": some_staged,
    "most images are staged": many_staged,
    "a shard is stored": lambda out: any(out.glob("shards/*.parquet")),
    "the dataset is being built": lambda out: any(out.glob("dataset*")),
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", KILL_WHEN)
def test_killed_when(moment: str, recipe: Path, whole: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(recipe, out)
    limit = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < limit and not KILL_WHEN[moment](out):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    finish(recipe, out)
    assert fingerprint(out) == whole


@pytest.mark.slow
def test_interrupted_from_the_keyboard(recipe: Path, whole: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(recipe, out)
    limit = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < limit and not some_staged(out):
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1, output
    assert "Interrupted. What was made is kept" in output
    assert "Traceback" not in output
    assert f"regforge run {recipe} --out {out}" in output
    finish(recipe, out)
    assert fingerprint(out) == whole
