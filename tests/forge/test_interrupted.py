"""A run that is killed, anywhere, and started again ends with the bytes of one that was not."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from forked import Forked
from small_runs import fingerprint, write_captioned, write_small


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, repo: Path) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    write_captioned(folder / "reg", [f"a cat on a table, number {n}" for n in range(20)])
    return write_small(
        folder / "recipe.yaml",
        repo,
        prompts={
            "count": 20,
            "sets": {"against": 1, "amplify": 3, "import": 1},
            "import": {"dataset": "reg"},
        },
        # One step gives blurs that resemble one another: some are refused and drawn again.
        render={"steps": 1, "max_attempts": 2},
        curate={"max_duplicate_distance": 2},
    )


def start(recipe: Path, out: Path) -> Forked:
    return Forked("run", recipe, "--out", out)


def finish(recipe: Path, out: Path) -> None:
    session = start(recipe, out)
    assert session.wait() == 0, session.err


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
    "the captions are imported": lambda out: (out / "imported.jsonl").exists(),
    "the vocabulary is there": lambda out: (out / "vocabulary.json").exists(),
    "the prompts are there": lambda out: (out / "prompts.jsonl").exists(),
    "the first image is staged": some_staged,
    "most images are staged": many_staged,
    "a shard is stored": lambda out: any(out.glob("shards/*.parquet")),
    "the dataset is being built": lambda out: any(out.glob("dataset*")),
}


def end(session: Forked, number: int, as_soon_as: Callable[[], bool]) -> None:
    """Send a session a signal when something is so."""
    limit = time.monotonic() + 120
    while session.poll() is None and time.monotonic() < limit and not as_soon_as():
        time.sleep(0.002)
    session.send_signal(number)


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 1])
def test_killed_when(first: int, recipe: Path, whole: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    for moment in list(KILL_WHEN)[first::2]:
        session = start(recipe, out)
        end(session, signal.SIGKILL, lambda moment=moment: KILL_WHEN[moment](out))
        assert session.wait() == -signal.SIGKILL, f"it ended before {moment}"
    finish(recipe, out)
    assert fingerprint(out) == whole


@pytest.mark.slow
def test_interrupted_from_the_keyboard(recipe: Path, whole: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    session = start(recipe, out)
    end(session, signal.SIGINT, lambda: some_staged(out))
    assert session.wait(60) == 130, session.err
    assert "Interrupted. What was made is kept" in session.err
    assert "Traceback" not in session.err
    assert f"regforge run {recipe} --out {out}" in session.err
    finish(recipe, out)
    assert fingerprint(out) == whole
