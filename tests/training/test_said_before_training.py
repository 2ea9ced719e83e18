"""What a training says of its regularization images before it takes hours; ticks of its curve."""

import json
import re
from pathlib import Path

import pytest
import yaml
from PIL import Image
from shell import Shell

from regforge.recipe import load_training_recipe
from regforge.training.plan import make_training_plan
from regforge.training.recording import write_curve

SDXL = "stabilityai/stable-diffusion-xl-base-1.0"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two photos, and two regularization images which say that SDXL drew them."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "reg"):
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.new("RGB", (16, 16), (number, 80, 160)).save(f"{name}/{number}.png")
    rows = [{"file_name": f"{n}.png", "text": f"cat {n}", "model": SDXL} for n in range(2)]
    Path("reg/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    reg = {
        "name": "cats",
        "subject": {"class_noun": "cat", "identifier": "ohwx"},
        "prompts": {"count": 2, "sets": {"naive": 1}},
        "render": {"model": SDXL},
    }
    Path("reg.yaml").write_text(yaml.safe_dump(reg))
    training = {"name": "x", "subject": {"class_noun": "cat", "images": "photos"}}
    Path("train.yaml").write_text(yaml.safe_dump(training))
    return tmp_path


@pytest.mark.parametrize("dataset", ["reg", "reg.yaml"])
def test_images_of_another_model_than_the_base_model_are_told(dataset: str, here: Path) -> None:
    def told(base: str, identifier: str = "ohwx") -> list[str]:
        wanted = [f"base_model={base}", f"subject.identifier={identifier}"]
        wanted.append(f"regularization.dataset={dataset}")
        return make_training_plan(load_training_recipe("train.yaml", wanted)).notes

    about = [each for each in told("embedded/tinyworld") if "drawn by" in each]
    assert len(about) == 1
    assert SDXL in about[0]
    assert "embedded/tinyworld" in about[0]
    assert not [each for each in told(SDXL) if "drawn by" in each or "'sks'" in each]
    if dataset == "reg.yaml":
        assert [each for each in told(SDXL, "sks") if "'ohwx'" in each and "'sks'" in each]


def test_it_is_told_before_they_are_drawn(
    here: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here)
    assert shell("train", "train.yaml", "--set", "regularization.dataset=reg.yaml") == 1
    said = shell.err
    assert 0 < said.index("were drawn by") < said.index("First the 2 regularization images")


@pytest.mark.parametrize(
    ("top", "last", "losses", "steps"),
    [
        (0.453, 200, ["0", "0.2", "0.4"], ["0", "50", "100", "150", "200"]),
        (0.34, 3, ["0", "0.1", "0.2", "0.3"], ["0", "1", "2", "3"]),
        (1.0, 1, ["0", "0.5", "1"], ["0", "1"]),
        (0.0021, 2000, ["0", "0.001", "0.002"], ["0", "500", "1000", "1500", "2000"]),
    ],
)
def test_ticks_are_round_numbers(
    top: float, last: int, losses: list[str], steps: list[str], tmp_path: Path
) -> None:
    entries = [{"step": n, "instance_loss": top, "prior_loss": 0.0} for n in (1, last)]
    write_curve(entries, tmp_path / "loss.svg")
    svg = (tmp_path / "loss.svg").read_text()
    assert re.findall(r'text-anchor="end">([^<]+)<', svg) == losses
    assert re.findall(r'text-anchor="middle">([^<]+)<', svg) == steps
