"""Slow: training that is killed, training by several processes, and training that learns."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from forked import MPI, TORCHRUN, Forked, side_by_side
from training_runs import (
    QUIET,
    SUBJECTS,
    TOKEN,
    build,
    differences,
    recipe,
    regularization,
    renamed,
    weights,
)
from typer.testing import CliRunner

from regforge import cli
from regforge.recipe import TrainingRecipe, resolved_yaml
from regforge.training import train
from regforge.training.recording import history

pytestmark = pytest.mark.slow


def command(each: TrainingRecipe, folder: Path) -> list[str]:
    """The words that train a recipe."""
    file = folder.with_suffix(".yaml")
    file.write_text(resolved_yaml(each))
    return ["train", str(file), "--out", str(folder)]


def wait_for(path: Path, session: Forked) -> None:
    for _ in range(1200):
        if path.exists():
            return
        assert session.poll() is None
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


@pytest.fixture(scope="module")
def forty(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingRecipe, Path]:
    """A recipe with forty steps, and what it makes when nobody disturbs it."""
    folder = tmp_path_factory.mktemp("forty")
    each = recipe(
        regularization={"dataset": str(regularization(folder / "dogs"))},
        optimizer={"steps": 40, "lr": 1e-3, "scheduler": "linear"},
        checkpoint={"every": 4},
    )
    return each, train(each, folder / "run", reporter=QUIET).folder


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_and_started_again_ends_the_same(
    forty: tuple[TrainingRecipe, Path], tmp_path: Path, number: int
) -> None:
    each, whole = forty
    folder = tmp_path / "run"
    words = command(each, folder)
    session = Forked(*words)
    wait_for(folder / "checkpoints" / "step-000008", session)
    session.send_signal(number)
    code = session.wait()
    assert not (folder / "lora").exists(), "killed too late to show anything"
    if number == signal.SIGTERM:
        assert code == 130
        assert "Stopped after step" in session.err
        assert "go on with\n  regforge train" in session.err
        assert "Traceback" not in session.err
    session = Forked(*words)
    assert session.wait() == 0, session.err
    assert "Going on after step" in session.err
    assert differences(weights(folder), weights(whole)) == 0
    assert [entry["step"] for entry in history(folder)][-1] == 40


def launched_by_accelerate(words: list[str]) -> tuple[list[int], str]:
    """How the command ended that its launcher starts twice, and what was said."""
    launcher = "-m accelerate.commands.launch --num_processes=2 --num_machines=1 --multi_gpu"
    done = subprocess.run(
        [sys.executable, *f"{launcher} --main_process_port=0 -m regforge".split(), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    return [done.returncode], done.stderr


def told(words: list[str], launcher: tuple[str, str]) -> tuple[list[int], str]:
    """The same, in two processes that find what such a launcher leaves them."""
    both = side_by_side(*words, launcher=launcher)
    return [each.wait() for each in both], both[0].err + both[1].err


LAUNCHERS = {
    "accelerate": launched_by_accelerate,
    "torchrun": partial(told, launcher=TORCHRUN),
    "MPI": partial(told, launcher=MPI),
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_are_one_with_twice_the_batches(tmp_path: Path, launcher: str) -> None:
    # Left out, the best device there is; with a GPU that would be two of them.
    device = "cpu" if launcher == "torchrun" or torch.cuda.is_available() else None

    def of(accumulation: int) -> TrainingRecipe:
        return recipe(
            # For one of the launchers: a step whose captions hold the new token here, not there.
            **({"subject": renamed(tmp_path / "cats")} if launcher == "torchrun" else {}),
            regularization={"dataset": str(tmp_path / "dogs"), "class_twins": 0.5},
            data={"caption_dropout": 0.4},
            optimizer={"steps": 3, "lr": 1e-4, "gradient_accumulation": accumulation},
            device=device,
        )

    regularization(tmp_path / "dogs")
    codes, said = LAUNCHERS[launcher](command(of(1), tmp_path / "two"))
    assert set(codes) == {0}, said
    assert said.count("3 of 3 steps") == 1  # the first process alone speaks
    train(of(2), tmp_path / "one", reporter=QUIET)
    train(of(1), tmp_path / "alone", reporter=QUIET)
    assert differences(weights(tmp_path / "two"), weights(tmp_path / "one")) < 1e-5
    assert differences(weights(tmp_path / "two"), weights(tmp_path / "alone")) > 1e-4
    one, two = history(tmp_path / "one"), history(tmp_path / "two")
    assert abs(one[0]["instance_loss"] - two[0]["instance_loss"]) < 1e-5


def test_training_makes_the_model_draw_the_subject(tmp_path: Path) -> None:
    each = recipe(
        method={
            "rank": 16,
            "targets": (
                *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out"),
                *("ff.net.0.proj", "ff.net.2", "conv1", "conv2"),
            ),
        },
        data={"resolution": 96, "crop": "center", "caption_dropout": 0.0},
        optimizer={"steps": 30, "lr": 1e-3, "batch_size": 4, "precision": "fp32"},
    )
    before = identity(drawn(None))
    made = train(each, tmp_path, reporter=QUIET)
    after = identity(drawn(made.weights))
    assert before < 0.2
    assert after > before + 0.15
    losses = [entry["instance_loss"] for entry in history(tmp_path)]
    assert np.mean(losses[-2:]) < 0.8 * losses[0]


def drawn(lora: Path | None) -> list[Any]:
    """Eight images of the subject in places where it was never seen."""
    from regforge.embedded import load_pipeline

    pipeline = load_pipeline()
    if lora is not None:
        pipeline.load_lora_weights(lora.parent)
    pipeline.set_progress_bar_config(disable=True)
    prompts = [f"a photo of a sks cat {place}" for place in ("on a beach", "in a forest")] * 4
    return pipeline(
        prompts,
        num_inference_steps=8,
        guidance_scale=4.0,
        generator=[torch.Generator().manual_seed(seed) for seed in range(len(prompts))],
    ).images


def identity(images: list[Any]) -> float:
    """Mean cosine between images and the subject's photos, by the embedded judge."""
    import torch
    from PIL import Image

    from regforge.embedded import load_identity

    model, processor = load_identity()
    photos = [Image.open(path).convert("RGB") for path in sorted((SUBJECTS / "cat").glob("*.png"))]
    with torch.no_grad():
        one, other = (
            torch.nn.functional.normalize(
                model(**processor(each, return_tensors="pt")).pooler_output.flatten(1), dim=-1
            )
            for each in (images, photos)
        )
    return float((one @ other.T).mean())


@pytest.mark.parametrize("kind", ["sdxl", "sd3"])
def test_from_a_recipe_to_a_image(kind: str, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    build(kind, tmp_path / "base")
    subject = renamed(tmp_path / "photos")
    regularization(tmp_path / "dogs")
    content = {
        "name": "cat",
        "base_model": "base",
        "subject": {**subject, "images": "photos"},
        "regularization": {"dataset": "dogs"},
        "method": {"rank": 4, "text_encoder": kind == "sdxl"},
        "data": {"resolution": 32, "crops_per_image": 2},
        "optimizer": {"steps": 3, "lr": 0.05},
        "validation": {"every": 2, "steps": 2},
        "checkpoint": {"every": 2, "snapshots": [2]},
        "device": "cpu",
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    run = tmp_path / "run"
    checked = CliRunner().invoke(cli.app, ["check", str(path), "--json"])
    assert checked.exit_code == 0, checked.output
    said = json.loads(checked.stdout)["identifier"]
    assert said.startswith("a new token of 1 vector, from 'cat' on")
    assert ("text_encoder_3" in said) is (kind == "sd3")  # its T5 gets none
    done = CliRunner().invoke(cli.app, ["train", str(path), "--out", str(run), "--quiet"])
    assert done.exit_code == 0, done.output
    # What follows finds the new token by itself; the untouched model would read other text.
    few = ["--steps", "2", "--quiet"]
    words = ["sample", str(run), "--prompt", "a {}", "--count", "1", "--beside-base", *few]
    done = CliRunner().invoke(cli.app, [*words, "--out", str(tmp_path / "samples"), "--json"])
    assert done.exit_code == 0, done.output
    assert [each["prompt"] for each in json.loads(done.stdout)["images"]] == [
        f"a {TOKEN} cat",
        "a cat",
    ]
    words = ["evaluate", str(run), "--suite", "tinyworld", "--samples", "1", "--limit", "3"]
    judged = [f"--{name}-encoder=embedded/judge" for name in ("structure", "alignment")]
    words += ["--no-text", *judged, *few, "--out", str(tmp_path / "evaluation")]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, done.output
    page = (tmp_path / "evaluation" / "report.html").read_text()
    assert "&lt;my-cat&gt;" in page
    assert TOKEN not in page

    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "base")
    pipeline.set_progress_bar_config(disable=True)

    def image() -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
        drawn = pipeline(
            "a photo of a sks cat",
            num_inference_steps=2,
            height=32,
            width=32,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        )
        return np.asarray(drawn.images[0])

    plain = image()
    shown = []
    for folder in (run / "lora", run / "snapshots" / "step-000002" / "lora"):
        pipeline.load_lora_weights(folder)
        shown.append(image())
        pipeline.unload_lora_weights()
    assert plain.shape == (32, 32, 3)
    assert np.isfinite(shown).all()
    last, before = shown
    assert abs(last - plain).max() > 1e-3
    assert abs(last - before).max() > 1e-4
    assert (run / "lora" / "cat-kohya.safetensors").exists() is (kind == "sdxl")
