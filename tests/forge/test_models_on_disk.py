"""Models and LoRAs on this machine: what they hold counts, and what cannot be used is refused."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation.trained_models import fitting_lora, lora
from images import drawing
from images.single_files import checkpoint
from safetensors.numpy import load_file, save_file
from shell import Shell
from small_runs import WriteRecipe, quietly, rows_of
from training.training_runs import QUIET
from training.training_runs import recipe as training_recipe

from regforge import sample, train
from regforge.embedded import TINYWORLD, load_pipeline
from regforge.files import file_digest, revision_of
from regforge.recipe import load_recipe, recipe_digest
from regforge.recipe.named_files import LoraError
from regforge.runs import RunFolderError


@pytest.fixture(scope="session")
def fitting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of the embedded model's denoiser and text encoder."""
    path = tmp_path_factory.mktemp("lora") / "teapot.safetensors"
    return fitting_lora(load_pipeline("cpu"), path, scale=0.1)


def scaled(source: Path, target: Path, by: float) -> Path:
    """The same LoRA with other numbers."""
    save_file({key: value * np.float32(by) for key, value in load_file(source).items()}, target)
    return target


@pytest.mark.slow
def test_another_lora_is_a_change(fitting: Path, tmp_path: Path, write_recipe: WriteRecipe) -> None:
    shutil.copy(fitting, tmp_path / "x.safetensors")
    render = {"lora": "x.safetensors"}
    path = write_recipe(prompts={"count": 2, "sets": {"amplify": 1}}, render=render)
    done = quietly(load_recipe(path), tmp_path / "run")
    (row,) = {(row.lora, row.model) for row in rows_of(done)}
    assert json.loads(row[0] or "") == [
        {"name": "x.safetensors", "revision": f"sha256:{file_digest(fitting)}", "scale": 1.0}
    ]
    scaled(fitting, tmp_path / "x.safetensors", -1)
    with pytest.raises(RunFolderError):
        quietly(load_recipe(path, ["prompts.count=4"]), tmp_path / "run")
    shutil.copy(fitting, tmp_path / "x.safetensors")
    assert quietly(load_recipe(path, ["prompts.count=3"]), tmp_path / "run").images == 3


@pytest.mark.slow
def test_a_file_is_drawn_with_and_trained_on(tmp_path: Path, write_recipe: WriteRecipe) -> None:
    torch.manual_seed(0)
    folder = Path(drawing.sdxl(tmp_path / "xl"))
    file = checkpoint(folder, tmp_path / "mine.safetensors")
    render = {"model": "mine.safetensors", "config": "xl", "width": 32, "height": 32}
    path = write_recipe(prompts={"count": 2, "sets": {"amplify": 1}}, render=render)
    done = quietly(load_recipe(path), tmp_path / "run")
    (named,) = {(row.model, row.model_revision) for row in rows_of(done)}
    assert named == ("mine.safetensors", f"sha256:{file_digest(file)}")
    card = (done.dataset_folder / "README.md").read_text(encoding="utf-8")
    assert file_digest(file)[:12] in card
    assert str(tmp_path) not in card
    recipe = training_recipe(
        base_model=str(file), config=str(folder), regularization={"dataset": str(tmp_path / "run")}
    )
    trained = train(recipe, tmp_path / "trained", reporter=QUIET)
    assert f"sha256:{file_digest(file)}"[:19] in (trained.folder / "README.md").read_text()
    checkpoint(folder, file, "v_pred", "ztsnr")
    with pytest.raises(RunFolderError):
        quietly(load_recipe(path, ["prompts.count=4"]), tmp_path / "run")
    with pytest.raises(RunFolderError):
        train(recipe.model_copy(), tmp_path / "trained", reporter=QUIET)
    shutil.move(file, folder / "mine.safetensors")  # beside its configuration
    drawn = sample(folder / "mine.safetensors", "a cat", count=1, steps=1, out=tmp_path / "samples")
    assert drawn.model.name == "mine"


@pytest.mark.slow
def test_card_and_report_name_it(fitting: Path, tmp_path: Path, write_recipe: WriteRecipe) -> None:
    loras = [{"path": str(fitting), "scale": 0.5}, str(fitting)]
    prompts = {"count": 1, "sets": {"amplify": 1}}
    done = quietly(
        load_recipe(write_recipe(prompts=prompts, render={"lora": loras})), tmp_path / "run"
    )
    (row,) = rows_of(done)
    assert [each["scale"] for each in json.loads(row.lora or "")] == [0.5, 1.0]
    for made in (done.dataset_folder / "README.md", done.report):
        text = made.read_text(encoding="utf-8")
        assert "teapot.safetensors at 0.5" in text
        assert file_digest(fitting)[:12] in text
    card = (done.dataset_folder / "README.md").read_text(encoding="utf-8")
    assert str(fitting.parent) not in card
    assert str(fitting.parent).encode() not in row.image


@pytest.mark.parametrize("kind", ["render.model", "render.lora", "curate.alignment.model"])
def test_what_a_model_holds_is_in_the_digest_and_not_where_it_lies(
    kind: str, fitting: Path, tmp_path: Path, write_recipe: WriteRecipe
) -> None:
    here, there = tmp_path / "models" / "here", tmp_path / "models" / "there"
    if kind == "render.lora":
        here.mkdir(parents=True)
        shutil.copy(fitting, here / "pytorch_lora_weights.safetensors")
        some = here / "pytorch_lora_weights.safetensors"
    elif kind == "render.model":
        shutil.copytree(TINYWORLD, here)
        some = here / "unet" / "diffusion_pytorch_model.safetensors"
    else:
        shutil.copytree(TINYWORLD.parent / "judge" / "alignment", here)
        some = here / "model.safetensors"

    def digest(where: str) -> str:
        return recipe_digest(load_recipe(write_recipe(curate={}), [f"{kind}={where}"]))

    before = digest(f"{here}")
    if kind == "render.model":
        assert before == digest("embedded/tinyworld")  # the embedded one's content counts as well
    here.rename(there)
    assert digest(f"{there}") == before
    some = there / some.relative_to(here)
    content = bytearray(some.read_bytes())
    content[-1] ^= 1  # a weight: neither header nor size tells
    stamp = some.stat()
    some.write_bytes(content)
    os.utime(some, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert digest(f"{there}") != before


def test_digests_of_large_files_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from regforge import files

    monkeypatch.setattr(files, "_LARGE", 10)
    monkeypatch.setattr(files, "_SETTLED", -60.0)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "x.safetensors").write_bytes(b"0123456789" * 3)
    before = revision_of(folder)
    kept = Path(os.environ["REGFORGE_CACHE"]) / "digests.json"
    assert len(json.loads(kept.read_text())) == 1
    files._digest.cache_clear()
    reading = Path.open

    def refused(self: Path, *args: object, **more: object) -> object:
        assert self.name != "x.safetensors", "it was read again"
        return reading(self, *args, **more)  # type: ignore[call-overload]

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refused)
        assert revision_of(folder) == before
    (folder / "x.safetensors").write_bytes(b"0123456780" * 3)
    assert revision_of(folder) != before
    kept.write_text("[" * 1000)  # a damaged cache is none
    files._digest.cache_clear()
    assert revision_of(folder) != before


def misfit(kind: str, fitting: Path, path: Path) -> Path:
    tensors = load_file(fitting)
    if kind == "nothing":
        return lora(path)
    if kind == "one of many":
        first = next(key for key in tensors if key.startswith("unet"))[: -len(".lora_A.weight")]
        strange = {
            key if key.startswith(first) else key.replace("blocks", "bricks"): value
            for key, value in tensors.items()
            if key.startswith("unet")
        }
        save_file(strange, path)
    else:  # layers of a text encoder that the model has not
        save_file(
            {
                key.replace("layers", "storeys") if key.startswith("text") else key: value
                for key, value in tensors.items()
            },
            path,
        )
    return path


@pytest.mark.parametrize("kind", ["nothing", "one of many", "no text encoder"])
def test_a_lora_that_does_not_fit_is_refused_and_nothing_is_drawn(
    kind: str, fitting: Path, tmp_path: Path, shell: Shell, write_recipe: WriteRecipe
) -> None:
    path = misfit(kind, fitting, tmp_path / "strange.safetensors")
    prompts = {"count": 2, "sets": {"amplify": 1}}
    recipe = write_recipe(prompts=prompts, render={"lora": str(path)})
    assert shell("run", recipe, "--out", tmp_path / "run") == 2
    assert "strange.safetensors" in shell.err
    assert "list index" not in shell.err
    if kind == "one of many":
        of = sum(key.startswith("unet") and "lora_B" in key for key in load_file(fitting))
        assert f"1 of {of} layers" in shell.err
    assert not (tmp_path / "run" / "shards").exists()


@pytest.mark.slow
def test_several_loras_are_added_and_their_scales_count(fitting: Path, tmp_path: Path) -> None:
    from images.drawing import drawn, jobs, opened

    def images(*loras: tuple[Path, float]) -> np.ndarray:
        listed = [{"path": str(path), "scale": scale} for path, scale in loras]
        return drawn(opened(lora=listed), jobs(1)).astype(int)

    double = scaled(fitting, tmp_path / "double.safetensors", 2**0.5)
    plain, once, twice = images(), images((fitting, 1)), images((fitting, 2))
    assert np.abs(once - plain).max() > 10
    assert np.abs(images((double, 1)) - twice).max() <= 1  # both matrices are scaled
    assert np.abs(images((fitting, 1), (fitting, 1)) - twice).max() <= 1
    assert np.abs(images((fitting, 0)) - plain).max() == 0


def test_more_than_one_lora_in_a_folder_is_refused(fitting: Path, tmp_path: Path) -> None:
    from images.drawing import opened

    for name in ("a", "b"):
        shutil.copy(fitting, tmp_path / f"{name}.safetensors")
    with pytest.raises(LoraError, match=r"a\.safetensors, b\.safetensors"):
        opened(lora=str(tmp_path))


def test_check_and_run_refuse_models_that_cannot_be_used(
    fitting: Path, tmp_path: Path, shell: Shell, write_recipe: WriteRecipe
) -> None:
    weights = TINYWORLD / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(weights, tmp_path / "single.safetensors")
    (tmp_path / "empty").mkdir()
    (tmp_path / "pickled.bin").touch()
    (tmp_path / "cut.safetensors").write_bytes(fitting.read_bytes()[:-1])
    for name in ("no-vae", "cut", "no-index"):
        shutil.copytree(TINYWORLD, tmp_path / name)
    shutil.rmtree(tmp_path / "no-vae" / "vae")
    (tmp_path / "cut" / "unet" / weights.name).write_bytes(weights.read_bytes()[:-1])
    (tmp_path / "no-index" / "model_index.json").write_text("{")
    wrong = {
        "render.model": [
            "single.safetensors", "empty", "./gone", "/gone/model", "gone", "a/b.safetensors",
            "a/b/c", "no-vae", "cut", "no-index",
        ],
        "render.variant": ["fp16"],
        "render.lora": [
            "single.safetensors", "empty", "gone.safetensors", "me/gone.safetensors",
            "pickled.bin", "cut.safetensors", "./gone",
        ],
        "render.vae": ["empty", "./gone", "gone", "embedded/judge"],
        "curate.alignment.model": ["empty", "./gone", "gone"],
    }  # fmt: skip
    for key, values in wrong.items():
        for value in values:
            for command in ("check", "run"):
                out = ("--out", tmp_path / "run") if command == "run" else ()
                code = shell(command, write_recipe(curate={}), "--set", f"{key}={value}", *out)
                assert code == 2, (command, key, value, shell.out)
                assert key in shell.err, (command, key, value, shell.err)
                assert not (tmp_path / "run").exists()
    for right in ("render.model=me/model", "render.lora=me/lora", f"render.lora={fitting}"):
        assert shell("check", write_recipe(), "--set", right) == 0, shell.err


def test_a_relative_model_starts_at_the_recipe(tmp_path: Path, write_recipe: WriteRecipe) -> None:
    shutil.copytree(TINYWORLD, tmp_path / "models" / "mine")
    for named in ("models/mine", "./models/mine"):
        recipe = load_recipe(write_recipe(render={"model": named}))
        assert recipe.render.model == str(tmp_path / "models" / "mine")
    hosted = write_recipe(render={"model": "gpt-image-1", "renderer": "hosted"})
    assert load_recipe(hosted).render.model == "gpt-image-1"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "is empty"),
        (["emb_params"], "a textual inversion"),
        (["lora_unet_a.hada_w1_a", "lora_unet_a.alpha"], "a LoHa"),
    ],
)
def test_check_says_what_a_file_is_that_is_no_lora(
    tmp_path: Path, write_recipe: WriteRecipe, shell: Shell, names: list[str], said: str
) -> None:
    path = tmp_path / "x.safetensors"
    save_file({name: np.zeros((2, 2), np.float32) for name in names}, path)
    assert shell("check", write_recipe(render={"lora": str(path)})) == 2
    assert said in shell.err.replace("\n", " ")
    assert "whole model" not in shell.err
