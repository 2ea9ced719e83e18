"""The base model of a training: what it holds counts, and what cannot be trained is said early."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from images import blank_models
from shell import Shell
from training_runs import QUIET, recipe

from regforge.embedded import TINYWORLD
from regforge.errors import RegforgeError
from regforge.journal import Reporter, read
from regforge.recipe import recipe_digest, resolved_yaml
from regforge.runs import RunFolderError
from regforge.training import train

REG = {
    "name": "dogs",
    "subject": {"class_noun": "dog", "kind": "living"},
    "prompts": {"count": 2, "sets": {"naive": 1}},
    "render": {"steps": 1},
    "curate": {"max_duplicate_distance": None},
}


def a_weight_changed(model: Path) -> None:
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


@pytest.mark.slow
def test_a_base_model_that_was_replaced_is_another_training(tmp_path: Path) -> None:
    model = Path(shutil.copytree(TINYWORLD, tmp_path / "model"))
    wanted = recipe(base_model=str(model), optimizer={"steps": 1})
    assert recipe_digest(wanted) == recipe_digest(recipe(optimizer={"steps": 1}))
    train(wanted, out=tmp_path / "run", reporter=QUIET)
    a_weight_changed(model)
    more = recipe(base_model=str(model), optimizer={"steps": 2})
    with pytest.raises(RunFolderError):
        train(more, out=tmp_path / "run", reporter=QUIET)


@pytest.mark.parametrize(
    ("base", "key"),
    [
        ("single.safetensors", "base_model"),
        ("empty", "base_model"),
        ("./gone", "base_model"),
        ("/gone/model", "base_model"),
        ("me/gone.safetensors", "base_model"),
        ("img2img", "base_model"),
        ("embedded/tinyworld", "variant"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_drawn(
    base: str, key: str, tmp_path: Path, shell: Shell
) -> None:
    (tmp_path / "single.safetensors").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    shutil.copytree(TINYWORLD, tmp_path / "img2img")
    index = tmp_path / "img2img" / "model_index.json"
    index.write_text(
        json.dumps(
            json.loads(index.read_text()) | {"_class_name": "StableDiffusionImg2ImgPipeline"}
        )
    )
    content = yaml.safe_load(resolved_yaml(recipe()))
    content["base_model"] = base
    content["variant"] = "fp16" if key == "variant" else None
    content["regularization"]["dataset"] = "reg.yaml"
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "reg.yaml").write_text(yaml.safe_dump(REG))
    for command in ("check", "train"):
        assert shell(command, tmp_path / "train.yaml") == 2
        assert f"{key}: " in shell.err
    assert not (tmp_path / "runs" / "dogs").exists()


def test_a_model_that_cannot_be_reached_is_said_before_its_images_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reg.yaml").write_text(yaml.safe_dump(REG))
    wanted = recipe(
        base_model="someone/some-model", regularization={"dataset": str(tmp_path / "reg.yaml")}
    )
    with pytest.raises(RegforgeError, match="someone/some-model"):
        train(wanted, out=tmp_path / "run", reporter=QUIET)
    assert not (tmp_path / "runs" / "dogs").exists()


@pytest.mark.slow
def test_validation_images_overflow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = recipe(
        base_model=blank_models.overflowing(tmp_path / "model"),
        optimizer={"steps": 2},
        validation={"every": 1},
    )
    train(wanted, out=tmp_path / "run", reporter=Reporter())
    assert "NaN" in capsys.readouterr().err
    said = [e for e in read(tmp_path / "run" / "log.jsonl") if e["event"] == "images_not_finite"]
    assert [(entry["step"], entry["images"]) for entry in said] == [(1, 2), (2, 4)]
