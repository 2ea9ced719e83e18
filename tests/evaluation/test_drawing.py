"""Drawing with LoRAs: what an image depends on, and that the base model stays as it is."""

import functools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from evaluation.trained_models import LORA, fitting_lora, lora
from images import blank_models, drawing
from images.drawing import difference
from PIL import Image

from regforge.embedded import TINYWORLD
from regforge.errors import RegforgeError
from regforge.evaluation import drawing as drawing_module
from regforge.evaluation.drawing import ModelPool, seed_of
from regforge.evaluation.suites import EvaluationError, ImageRequest, PersonalizedModel
from regforge.images.renderer import ModelUnavailable, RenderError
from regforge.journal import Reporter, Task
from regforge.recipe.named_files import LoraError

NOISE = 2
"""Levels of 255 by which an image may depend on its batch in float32."""

BASE = PersonalizedModel("tinyworld", "embedded/tinyworld", "0" * 64)
QUICK: dict[str, Any] = {"device": "cpu", "dtype": "float32", "steps": 2, "resolution": 32}


@pytest.fixture(scope="module")
def pool() -> Iterator[ModelPool]:
    with ModelPool(**QUICK, batch_size=2) as pool:
        yield pool


@pytest.fixture(scope="module")
def model(pool: ModelPool, tmp_path_factory: pytest.TempPathFactory) -> PersonalizedModel:
    """The embedded model with a LoRA for its denoiser and its text encoder."""
    path = tmp_path_factory.mktemp("model") / LORA
    fitting_lora(pool.base(BASE).pipeline, path)
    return PersonalizedModel("lora", "embedded/tinyworld", "1" * 64, weights=path)


def wanted(count: int, prompt: str = "a photo of a red teapot") -> list[ImageRequest]:
    return [ImageRequest(prompt, n, seed_of(0, prompt, n), f"{n:03d}.png") for n in range(count)]


def drawn(
    pool: ModelPool,
    model: PersonalizedModel,
    asked: list[ImageRequest],
    folder: Path | None = None,
    task: Task | None = None,
) -> np.ndarray:
    """Uint8 [N, H, W, 3]."""
    with pool.use(model) as loaded:
        done = list(loaded.draw(asked, folder=folder, task=task))
    assert len(done) == len(asked)
    return np.stack([np.asarray(each) for each in done])


def beside(pool: ModelPool, **changes: Any) -> ModelPool:
    """A pool of other settings that shares the loaded base model."""
    other = ModelPool(**(QUICK | changes))
    other._base = pool._base
    return other


def weights_of(pipeline: Any) -> dict[str, bytes]:
    """All numbers in a pipeline."""
    modules = {n: m for n, m in pipeline.components.items() if hasattr(m, "state_dict")}
    return {
        f"{part}.{name}": value.numpy().tobytes()
        for part, module in modules.items()
        for name, value in module.state_dict().items()
    }


def called_plainly(pipeline: Any, lora: Path, asked: list[ImageRequest], **more: Any) -> np.ndarray:
    """What diffusers draws by itself with a LoRA."""
    import torch

    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(str(lora.parent))
    with torch.no_grad():
        output = pipeline(
            [each.prompt for each in asked],
            num_inference_steps=2,
            generator=[torch.Generator().manual_seed(each.seed) for each in asked],
            **more,
        )
    return np.stack([np.asarray(image) for image in output.images])


class Stopping(Task):
    """Presses Ctrl-C when so many images are done."""

    def __init__(self, after: int) -> None:
        super().__init__("drawing", None, "images", 0)
        self._after = after

    def advance(self, count: int = 1) -> None:
        super().advance(count)
        if self.done == self._after:
            raise KeyboardInterrupt


def test_seeds_stay_what_they_are() -> None:
    assert seed_of(0, "a {} in the jungle", 3) == 1008694351
    seeds = {seed_of(s, p, n) for s in range(3) for p in ("a", "b") for n in range(20)}
    assert len(seeds) == 120
    assert all(0 <= seed < 2**32 for seed in seeds)


@pytest.mark.slow
def test_a_lora_is_laid_on_and_off_without_trace(pool: ModelPool, model: PersonalizedModel) -> None:
    plain = drawn(pool, BASE, wanted(2))
    pipeline = pool.base(BASE).pipeline
    before = weights_of(pipeline)
    changed = drawn(pool, model, wanted(2))
    assert np.abs(changed.astype(int) - plain).mean() > 2
    assert pool.base(BASE).pipeline is pipeline
    assert weights_of(pipeline) == before
    assert np.array_equal(drawn(pool, BASE, wanted(2)), plain)
    assert np.array_equal(drawn(pool, model, wanted(2)), changed)


@pytest.mark.slow
def test_a_base_model_is_quantized_as_it_was_in_training(
    model: PersonalizedModel, tmp_path: Path
) -> None:
    with ModelPool(**QUICK, batch_size=2) as own:
        images = {}
        for quantize in (None, "int8", "nf4"):
            as_trained = replace(model, recipe={"method": {"quantize": quantize}})
            folder = tmp_path / str(quantize)
            images[quantize] = drawn(own, as_trained, wanted(1), folder)
            made_from = {"quantize": quantize} if quantize == "int8" else {}
            facts = json.loads(Image.open(folder / "000.png").info["regforge"])
            assert {key: facts[key] for key in facts if key == "quantize"} == made_from
        assert 0 < difference(images[None], images["int8"]) < 40
        assert np.array_equal(images[None], images["nf4"])
        assert [note for note in own.notes if "nf4" in note] == own.notes != []


@pytest.mark.slow
def test_images_are_those_of_a_plain_call(pool: ModelPool, model: PersonalizedModel) -> None:
    from regforge.embedded import load_pipeline

    assert model.weights is not None
    own = {"guidance_scale": 4.0, "width": 32, "height": 32}
    plain = called_plainly(load_pipeline("cpu"), model.weights, wanted(2), **own)
    assert difference(drawn(pool, model, wanted(2)), plain) <= NOISE


@pytest.mark.slow
def test_kohyas_is_the_same_lora(pool: ModelPool, model: PersonalizedModel, tmp_path: Path) -> None:
    pipeline = pool.base(BASE).pipeline
    path = fitting_lora(pipeline, tmp_path / "x-kohya.safetensors", kohya=True)
    kohya = PersonalizedModel("kohya", BASE.base, "2" * 64, weights=path)
    assert difference(drawn(pool, kohya, wanted(2)), drawn(pool, model, wanted(2))) <= NOISE


@pytest.mark.slow
@pytest.mark.parametrize("misfit", ["nothing of it fits", "wrong shapes", "half of it fits"])
def test_a_lora_of_another_model(
    pool: ModelPool, model: PersonalizedModel, tmp_path: Path, misfit: str
) -> None:
    from safetensors.numpy import load_file, save_file

    plain = drawn(pool, BASE, wanted(1))
    assert model.weights is not None
    tensors = load_file(model.weights)
    path = tmp_path / LORA
    wrong = {k: np.concatenate([v, v], axis=-1) for k, v in tensors.items()}
    strange = {k.replace("down_blocks", "side_blocks"): v for k, v in tensors.items()}
    lora(path)
    if misfit != "nothing of it fits":
        save_file(wrong if misfit == "wrong shapes" else tensors | strange, path)
    other = PersonalizedModel("other", BASE.base, "3" * 64, weights=path)
    if misfit == "half of it fits":
        drawn(pool, other, wanted(1))
        assert any("have no place in embedded/tinyworld" in note for note in pool.notes)
    else:
        with pytest.raises(LoraError, match="LoRA"):
            drawn(pool, other, wanted(1))
    assert np.array_equal(drawn(pool, BASE, wanted(1)), plain)


@pytest.mark.slow
def test_a_base_model_is_loaded_once_and_replaced_by_another(
    model: PersonalizedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Mock(side_effect=drawing_module.load_model)
    monkeypatch.setattr(drawing_module, "load_model", load)
    other = PersonalizedModel("copy", str(TINYWORLD), "4" * 64)
    with ModelPool(**QUICK) as pool:
        for each in (BASE, model, BASE, other, model):
            drawn(pool, each, wanted(1))
    loaded = [call.args[0].model for call in load.call_args_list]
    assert loaded == [BASE.base, other.base, BASE.base]


@pytest.mark.slow
def test_images_are_drawn_once(pool: ModelPool, model: PersonalizedModel, tmp_path: Path) -> None:
    prompt = 'a red teapot, "日本" on a beach'
    images = drawn(pool, model, wanted(3, prompt), tmp_path)
    with Image.open(tmp_path / "000.png") as image:
        assert np.array_equal(np.asarray(image), images[0])
        assert image.info["parameters"].startswith(f"{prompt}\nSteps: 2, Sampler: DDIM")
        facts = json.loads(image.info["regforge"])
    assert (facts["prompt"], facts["seed"]) == (prompt, seed_of(0, prompt, 0))
    assert (facts["model"], facts["base_model"]) == ("lora", "embedded/tinyworld")
    assert facts["weights"] == model.digest
    broken = ModelPool(**(QUICK | {"device": "nonsense"}))  # what is there needs no model
    task = Task("drawing", 3, "images", 0)
    assert np.array_equal(drawn(broken, model, wanted(3, prompt), tmp_path, task), images)
    assert (task.done, task.rate) == (3, 0)


@pytest.mark.slow
def test_what_is_missing_broken_or_of_something_else_is_drawn_again(
    pool: ModelPool, model: PersonalizedModel, tmp_path: Path
) -> None:
    first = drawn(pool, model, wanted(8), tmp_path)
    files = [tmp_path / f"{number:03d}.png" for number in range(8)]
    bytes_before = [file.read_bytes() for file in files]
    files[0].unlink()
    files[2].write_bytes(bytes_before[2][:-40])  # cut short
    damaged = bytearray(bytes_before[4])
    damaged[len(damaged) // 2] ^= 0xFF
    files[4].write_bytes(damaged)
    Image.new("RGB", (32, 32)).save(files[5])  # somebody's own
    files[7].write_bytes(bytes_before[6])  # another seed
    untouched = {number: files[number].stat().st_mtime_ns for number in (1, 3, 6)}
    task = Task("drawing", 8, "images", 0)
    assert np.array_equal(drawn(pool, model, wanted(8), tmp_path, task), first)
    assert [file.read_bytes() for file in files] == bytes_before
    assert {n: files[n].stat().st_mtime_ns for n in untouched} == untouched
    assert task.done == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [{}, {"steps": 1}, {"guidance_scale": 1.0}, {"resolution": 48}], ids=str
)
def test_images_of_other_weights_or_settings_are_drawn_anew(
    pool: ModelPool, model: PersonalizedModel, tmp_path: Path, change: dict[str, Any]
) -> None:
    drawn(pool, model, wanted(1), tmp_path)
    before = (tmp_path / "000.png").read_bytes()
    other, who = beside(pool, **change), model if change else BASE
    assert np.array_equal(drawn(other, who, wanted(1), tmp_path), drawn(other, who, wanted(1)))
    assert (tmp_path / "000.png").read_bytes() != before


@pytest.mark.slow
def test_stopping_has_no_trace(pool: ModelPool, model: PersonalizedModel, tmp_path: Path) -> None:
    whole, other = tmp_path / "whole", tmp_path / "interrupted"
    drawn(pool, model, wanted(5), whole)
    before = weights_of(pool.base(BASE).pipeline)
    with pytest.raises(KeyboardInterrupt):
        drawn(pool, model, wanted(5), other, Stopping(3))
    assert weights_of(pool.base(BASE).pipeline) == before
    assert len(list(other.iterdir())) == 3
    drawn(pool, model, wanted(5), other)
    assert [f.read_bytes() for f in sorted(other.iterdir())] == [
        f.read_bytes() for f in sorted(whole.iterdir())
    ]


@pytest.mark.slow
def test_a_image_does_not_depend_on_its_batch(pool: ModelPool, model: PersonalizedModel) -> None:
    asked = [*wanted(3), *wanted(2, "a blue cat")]
    two = drawn(pool, model, asked)
    for size in (1, 4):
        assert difference(drawn(beside(pool, batch_size=size), model, asked), two) <= NOISE
    alone = drawn(pool, model, asked[3:4])
    assert difference(alone[0], two[3]) <= NOISE


@pytest.mark.slow
def test_out_of_memory(
    pool: ModelPool,
    model: PersonalizedModel,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from diffusers import StableDiffusionPipeline

    most = 2
    call = StableDiffusionPipeline.__call__

    @functools.wraps(call)
    def limited(self: Any, *arguments: Any, **named: Any) -> Any:
        if len(named["generator"]) > most:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return call(self, *arguments, **named)

    monkeypatch.setattr(StableDiffusionPipeline, "__call__", limited)
    greedy = beside(pool, batch_size=8, reporter=Reporter())
    assert difference(drawn(greedy, model, wanted(5)), drawn(pool, model, wanted(5))) <= NOISE
    assert "going on with 2" in capsys.readouterr().err
    most = 0
    with pytest.raises(RenderError) as error:
        drawn(greedy, model, wanted(1))
    assert "single image" in error.value.message
    assert "GPU with more memory" in str(error.value)
    assert "render." not in str(error.value)


@pytest.mark.slow
def test_a_long_prompt_is_named_once(pool: ModelPool, capfd: pytest.CaptureFixture[str]) -> None:
    prompt = "a photo of a teapot " * 30
    drawn(pool, BASE, wanted(3, prompt))
    drawn(pool, BASE, wanted(3, prompt))
    named = [note for note in pool.notes if "reads the first 48" in note]
    assert len(named) == 1
    assert prompt in named[0]
    assert capfd.readouterr().err == ""  # diffusers would print the padding of the whole batch


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"guidance_scale": 99.0}, {"batch_size": 0}, {"resolution": 4}]
)
def test_numbers_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(EvaluationError, match="it can be"):
        ModelPool(**wrong)


def test_a_base_model_that_is_not_there(tmp_path: Path) -> None:
    gone = PersonalizedModel("gone", str(tmp_path / "gone"), "5" * 64)
    with pytest.raises(ModelUnavailable, match="There is no folder"):
        drawn(ModelPool(**QUICK), gone, wanted(1))
    with pytest.raises(RegforgeError) as error:
        drawn(ModelPool(device="nonsense"), BASE, wanted(1))
    assert "render." not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sdxl", "sd3", "flux"])
def test_other_families(tmp_path: Path, kind: str) -> None:
    import torch
    from diffusers import DiffusionPipeline

    folder = getattr(drawing, kind)(tmp_path / kind)
    base = PersonalizedModel(kind, folder, "6" * 64)
    size = {} if kind == "flux" else {"resolution": None}
    with ModelPool(**(QUICK | size), batch_size=2) as pool:
        plain = drawn(pool, base, wanted(2))
        pipeline = pool.base(base).pipeline
        before = weights_of(pipeline)
        path = fitting_lora(pipeline, tmp_path / LORA, scale=1.0)
        model = PersonalizedModel("lora", folder, "7" * 64, weights=path)
        changed = drawn(pool, model, wanted(2))
        assert weights_of(pipeline) == before
        assert np.array_equal(drawn(pool, base, wanted(2)), plain)
    assert difference(changed, plain) > NOISE
    side = {"width": plain.shape[1], "height": plain.shape[1]}
    other = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    assert difference(called_plainly(other, path, wanted(2), **side), changed) <= NOISE


@pytest.mark.slow
def test_half_precision_that_draws_black(tmp_path: Path) -> None:
    import torch

    from regforge.embedded import load_pipeline

    pipeline = load_pipeline("cpu")
    with torch.no_grad():  # too large for float16; what follows it does not mind in float32
        pipeline.vae.decoder.conv_in.weight.mul_(1e4)
        pipeline.vae.decoder.conv_in.bias.mul_(1e4)
    pipeline.save_pretrained(tmp_path / "large")
    model = PersonalizedModel("large", str(tmp_path / "large"), "8" * 64)
    with ModelPool(**(QUICK | {"dtype": "float16"}), batch_size=2) as pool:
        images = drawn(pool, model, wanted(3))
        assert all(image.std() > 5 for image in images)
        assert any("black in float16" in note for note in pool.notes)
        assert np.array_equal(drawn(pool, model, wanted(3))[2:], images[2:])


@pytest.mark.slow
def test_a_model_that_overflows_is_refused(tmp_path: Path) -> None:
    broken = PersonalizedModel("x", blank_models.overflowing(tmp_path / "x"), "a" * 64)
    with ModelPool(**QUICK) as pool, pytest.raises(RenderError, match="NaN"):
        drawn(pool, broken, wanted(1), tmp_path / "images")
    assert not list(tmp_path.glob("images/*"))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (blank_models.black, "show nothing"),
        pytest.param(
            lambda folder: drawing.with_safety_checker(folder, flagged=True),
            "safety checker",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_black_images_are_named(tmp_path: Path, build: Callable[[Path], str], words: str) -> None:
    model = PersonalizedModel("y", build(tmp_path / "y"), "b" * 64)
    for _ in range(2):
        with ModelPool(**QUICK) as pool:
            assert not drawn(pool, model, wanted(1), tmp_path / "images").any()
            assert any(words in note for note in pool.notes)


def test_images_of_a_base_model_that_changed_are_drawn_anew(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(TINYWORLD, base)
    weights = lora(tmp_path / LORA)
    model = PersonalizedModel("x", str(base), "a" * 64, weights=weights)
    with ModelPool(**QUICK) as pool:
        before = pool.settings_for(model)
        config = base / "scheduler" / "scheduler_config.json"
        config.write_text(config.read_text().replace('"trailing"', '"leading"'))
        assert pool.settings_for(model) != before
