"""Drawing: what an image depends on, and what it does not."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import drawing
import numpy as np
import pytest
from drawing import CAPTIONS, difference, drawn, jobs, opened, prompt

from regforge.devices import DeviceError
from regforge.images.pipelines import as_uint8, sampler_name, set_scheduler
from regforge.images.renderer import Pixels, Renderer, RenderError, RenderSettingError, batches
from regforge.journal import read
from regforge.recipe.rendering import SCHEDULERS
from regforge.records import image_jobs

NOISE = 2
"""Levels of 255 by which an image may depend on its batch in float32; measured: 1."""

COARSE_NOISE = 24
"""The same in bfloat16, where rounding is coarser; measured: 0 on one CPU, 9 against float32."""


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    """The embedded model in float32, as many images at a time as pay."""
    renderer = opened()
    yield renderer
    renderer.close()


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> str:
    return drawing.sdxl(tmp_path_factory.mktemp("models") / "sdxl")


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> str:
    return drawing.flux(tmp_path_factory.mktemp("models") / "flux")


def test_images_are_what_the_model_draws() -> None:
    renderer = opened(width=None, height=None)
    images = drawn(renderer, jobs(3))
    assert images.shape == (3, 96, 96, 3)
    assert images.dtype == np.uint8
    assert all(image.std() > 5 for image in images)
    assert renderer.identity.model == "embedded/tinyworld"
    assert renderer.identity.scheduler == "DDIMScheduler"
    assert (renderer.identity.width, renderer.identity.height) == (96, 96)
    assert str(renderer.identity.revision).startswith("sha256:")


@pytest.mark.slow
def test_the_same_batches_give_the_same_bits_also_in_another_session() -> None:
    whole, other = drawn(opened(batch_size=4), jobs(12)), opened(batch_size=4)
    # As after an interruption: other prompts are encoded together then.
    assert np.array_equal(drawn(other, jobs(12)[8:]), whole[8:])
    assert np.array_equal(drawn(other, jobs(12)), whole)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "most"), [("float32", NOISE), ("bfloat16", COARSE_NOISE)])
def test_an_image_does_not_depend_on_its_batch(dtype: str, most: int, renderer: Renderer) -> None:
    one, eight = (drawn(opened(batch_size=size, dtype=dtype), jobs(9)) for size in (1, 8))
    assert difference(one, eight) <= most
    assert np.abs(one.astype(int) - eight).mean() < most / 8
    full = drawn(renderer, jobs(9))
    assert np.abs(full.astype(int) - eight).mean() < 2, "half precision looks the same"


@pytest.mark.slow
def test_noise_belongs_to_the_image_and_earlier_batch_sizes_before_auto(renderer: Renderer) -> None:
    one, three = (
        opened(earlier=3, scheduler="euler_ancestral", **more) for more in ({"batch_size": 1}, {})
    )
    assert (one.batch_size, three.batch_size, renderer.batch_size) == (1, 3, 32)
    images = drawn(one, jobs(3))
    assert difference(images, drawn(three, jobs(3))) <= NOISE
    assert difference(images[:1], drawn(renderer, jobs(1))) > 10  # schedulers differ


def test_each_seed_gives_another_image(renderer: Renderer) -> None:
    one, another = image_jobs([prompt(0)], drawing.DIGEST, 2)
    images = drawn(renderer, [one, another, one.again(drawing.DIGEST)])
    assert all(difference(images[i], images[j]) > 50 for i, j in ((0, 1), (0, 2), (1, 2)))


def test_sizes_may_differ_between_prompts(renderer: Renderer) -> None:
    sizes = [(48, 48), (64, 48), (48, 48), (64, 48), (32, 32)]
    todo = list(
        image_jobs([prompt(i, width=w, height=h) for i, (w, h) in enumerate(sizes)], drawing.DIGEST)
    )
    images = {image.job.index: image.pixels for image in renderer.render(todo)}
    assert [images[i].shape for i in range(5)] == [(h, w, 3) for w, h in sizes]
    alone = drawn(renderer, [todo[1]])[0]
    assert difference(images[1], alone) <= NOISE


def test_a_size_that_the_model_cannot_draw_is_refused() -> None:
    with pytest.raises(RenderSettingError, match="cannot draw 97 x 48 pixels"):
        drawn(opened(width=97), jobs(1))


def test_batches_of_whole_batches_are_the_same_batches(renderer: Renderer) -> None:
    small = {"width": 32, "height": 32}
    sizes = [{}, small, {}, {}, small, {}, {}]
    todo = list(image_jobs([prompt(i, **size) for i, size in enumerate(sizes)], drawing.DIGEST))
    whole = batches(todo, 2, renderer.identity)
    assert [[job.index for job in batch] for batch in whole] == [[0, 2], [3, 5], [6], [1, 4]]
    chosen = [whole[1], whole[2], whole[3]]
    assert batches([job for batch in chosen for job in batch], 2, renderer.identity) == chosen


@functools.cache
def plain_pipeline(model: str) -> Any:
    import torch
    from diffusers import DiffusionPipeline

    from regforge.embedded import quiet_loading

    with quiet_loading():
        pipeline = DiffusionPipeline.from_pretrained(model, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def plain_call(model: str, todo: list[Any], **settings: Any) -> Pixels:
    """What diffusers draws when it is simply called."""
    import torch

    with torch.no_grad():
        output = plain_pipeline(model)(
            [job.prompt.text for job in todo],
            num_inference_steps=2,
            width=48,
            height=48,
            generator=[torch.Generator("cpu").manual_seed(job.seed) for job in todo],
            **settings,
        )
    return np.stack([np.asarray(image) for image in output.images])


@pytest.mark.slow
@pytest.mark.parametrize("negative", ["", "blurry, dark"])
@pytest.mark.parametrize("guidance", [4.0, 1.0])
def test_tinyworld_draws_as_when_simply_called(negative: str, guidance: float) -> None:
    from regforge.embedded import TINYWORLD

    negatives = {"negative_prompt": [negative] * 3} if negative else {}
    plain = plain_call(str(TINYWORLD), jobs(3), guidance_scale=guidance, **negatives)
    ours = drawn(opened(negative_prompt=negative, guidance_scale=guidance), jobs(3))
    assert difference(ours, plain) <= NOISE


@pytest.mark.slow
@pytest.mark.parametrize("negative", ["", "blurry, dark"])
def test_sdxl_draws_as_when_simply_called(sdxl: str, negative: str) -> None:
    negatives = {"negative_prompt": [negative] * 3} if negative else {}
    plain = plain_call(sdxl, jobs(3), guidance_scale=4.0, **negatives)
    ours = drawn(opened(model=sdxl, negative_prompt=negative), jobs(3))
    assert difference(ours, plain) <= NOISE
    assert opened(model=sdxl, width=None).identity.width == 32


@pytest.mark.slow
def test_each_prompt_set_has_its_own_negative_prompt(sdxl: str) -> None:
    of_sets = {"against": "blurry, dark", "naive": ""}
    sets = ("against", "amplify", "naive")
    todo = [
        replace(job, prompt=replace(job.prompt, prompt_set=name))
        for job, name in zip(jobs(3), sets, strict=True)
    ]
    for model in (sdxl, "embedded/tinyworld"):
        together = drawn(opened(model=model, negative_prompt=of_sets, batch_size=3), todo)
        for number, name in enumerate(sets):
            alone = opened(model=model, negative_prompt=of_sets.get(name, ""))
            assert (
                difference(together[number : number + 1], drawn(alone, todo)[number : number + 1])
                <= NOISE
            )
        other = drawn(opened(model=model, negative_prompt="blurry, dark"), todo)
        assert difference(together[1:], other[1:]) > NOISE


def test_sd3_draws_as_when_simply_called(tmp_path: Path) -> None:
    model = drawing.sd3(tmp_path / "sd3")
    plain = plain_call(model, jobs(2), guidance_scale=4.0, negative_prompt=["dark"] * 2)
    renderer = opened(model=model, negative_prompt="dark")
    assert difference(drawn(renderer, jobs(2)), plain) <= NOISE


def test_flux_draws_as_when_simply_called(flux: str) -> None:
    plain = plain_call(flux, jobs(2), guidance_scale=4.0)
    assert difference(drawn(opened(model=flux), jobs(2)), plain) <= NOISE


def test_unknown_pipelines_get_text(sdxl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = drawn(opened(model=sdxl, negative_prompt="dark"), jobs(3))
    monkeypatch.setattr("regforge.images.local.can_encode", lambda pipeline: False)
    assert difference(drawn(opened(model=sdxl, negative_prompt="dark"), jobs(3)), known) <= NOISE


def test_a_flow_matching_model_takes_no_negative_prompt_and_no_other_scheduler(flux: str) -> None:
    with pytest.raises(RenderSettingError, match="takes no negative prompt"):
        opened(model=flux, negative_prompt="dark")
    with pytest.raises(RenderSettingError, match="is a flow-matching model"):
        opened(model=flux, scheduler="ddim")


@pytest.mark.slow
def test_each_prompt_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import StableDiffusionPipeline

    encoded: list[str] = []
    original = StableDiffusionPipeline.encode_prompt

    @functools.wraps(original)
    def counting(self: Any, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        encoded.extend(prompt or ())
        return original(self, prompt, *args, **kwargs)

    monkeypatch.setattr(StableDiffusionPipeline, "encode_prompt", counting)
    renderer = opened(batch_size=2, steps=1)
    drawn(renderer, jobs(8))
    drawn(renderer, jobs(8))
    assert sorted(text for text in encoded if text) == sorted(CAPTIONS)


def test_prompts_are_encoded_anew_where_the_text_encoder_has_changed() -> None:
    renderer: Any = opened(steps=1)
    before = drawn(renderer, jobs(1))
    renderer._pipeline.text_encoder.get_input_embeddings().weight.data.mul_(2)
    assert difference(drawn(renderer, jobs(1)), before) == 0
    renderer.forget_prompts()
    assert difference(drawn(renderer, jobs(1)), before) > 0


@pytest.fixture(scope="module")
def pipeline() -> Any:
    from regforge.embedded import load_pipeline

    pipeline = load_pipeline("cpu")
    # The embedded model's own begins at pure noise, which not all of them can.
    config = {**pipeline.scheduler.config, "rescale_betas_zero_snr": False}
    pipeline.scheduler = type(pipeline.scheduler).from_config(config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULERS)
def test_each_scheduler_draws(name: str, pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "scheduler", pipeline.scheduler)  # put back what was there
    assert set_scheduler(pipeline, name) == name
    assert type(pipeline.scheduler).__name__ == SCHEDULERS[name][0]
    (image,) = as_uint8(
        pipeline(
            CAPTIONS[0], num_inference_steps=4, width=48, height=48, output_type="pt"
        ).images.detach()
    )
    assert image.std() > 5
    assert sampler_name(name) == sampler_name(SCHEDULERS[name][0]) or name == "dpmpp_2m_karras"


def test_a_class_name_of_diffusers_is_a_scheduler_too_and_keeps_what_the_model_predicts() -> None:
    friendly: Any = opened(scheduler="unipc")
    named: Any = opened(scheduler="DPMSolverMultistepScheduler")
    assert named.identity.scheduler == "DPMSolverMultistepScheduler"
    for config in (each._pipeline.scheduler.config for each in (friendly, named)):
        assert config.prediction_type == "v_prediction"
        assert config.rescale_betas_zero_snr is True
    assert friendly._pipeline.scheduler.config.use_karras_sigmas is False


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("euler_ancestal", "Did you mean 'euler_ancestral'"),
        ("UNet2DConditionModel", "is no scheduler"),
        ("DPMSolverSDEScheduler", "without a seed"),
        ("FlowMatchEulerDiscreteScheduler", "no flow-matching model"),
    ],
)
def test_what_is_no_scheduler_for_this_model_is_refused(name: str, words: str) -> None:
    with pytest.raises(RenderSettingError, match=words) as error:
        opened(scheduler=name)
    assert error.value.exit_code == 2


def limit_batches(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Let memory suffice for so many images at a time."""
    import torch
    from diffusers import StableDiffusionPipeline

    original: Callable[..., Any] = StableDiffusionPipeline.__call__

    @functools.wraps(original)
    def limited(self: Any, *args: Any, **kwargs: Any) -> Any:
        if len(kwargs["generator"]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(StableDiffusionPipeline, "__call__", limited)


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_halved(
    renderer: Renderer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = drawn(renderer, jobs(11))
    limit_batches(monkeypatch, 2)
    small = opened(batch_size=8, folder=tmp_path)
    assert difference(drawn(small, jobs(11)), whole) <= NOISE
    assert small.batch_size == 2
    sizes = [e["size"] for e in read(tmp_path / "log.jsonl") if e["event"] == "batch_size"]
    assert sizes == [4, 2]


@pytest.mark.slow
def test_memory_that_holds_no_image_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    limit_batches(monkeypatch, 0)
    with pytest.raises(RenderError, match="not suffice for a single image") as error:
        drawn(opened(), jobs(2))
    assert "render.offload" in str(error.value)


@pytest.mark.slow
def test_what_the_safety_checker_flags_is_marked(tmp_path: Path) -> None:
    todo = jobs(2)
    for flagged in (False, True):
        model = drawing.with_safety_checker(tmp_path / str(flagged), flagged=flagged)
        images = list(opened(model=model).render(todo))
        assert [image.nsfw for image in images] == [flagged, flagged]
        assert all((image.pixels.max() == 0) == flagged for image in images)


def test_what_is_not_a_number_becomes_black() -> None:
    import torch

    values = torch.full((1, 3, 2, 2), torch.nan)
    values[0, :, 0, 0] = 1.0
    assert as_uint8(values)[0, :, :, 0].tolist() == [[255, 0], [0, 0]]


def test_no_compiler(renderer: Renderer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    broken = Mock(side_effect=RuntimeError("no C++ compiler found"))
    monkeypatch.setattr(torch, "compile", lambda _: broken)
    images = drawn(opened(compile=True, folder=tmp_path), jobs(2))
    assert difference(images, drawn(renderer, jobs(2))) <= NOISE
    assert "compile_failed" in [entry["event"] for entry in read(tmp_path / "log.jsonl")]


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(DeviceError, match=r"render\.device"):
        opened(device=device)


@pytest.mark.slow
def test_the_batch_size_that_saturates_a_device_is_found_once_and_changes_no_image(
    renderer: Renderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGFORGE_CACHE", str(tmp_path))
    before = drawn(renderer, jobs(3))

    class Clock:
        """Of a device that draws up to 4 images in the time of one."""

        def __init__(self, seconds: dict[int, float]) -> None:
            self.times = [time for each in seconds.values() for time in (0.0, each)]

        def __call__(self) -> float:
            return self.times.pop(0)

    def found(device: str, seconds: dict[int, float], most: int = 16) -> int:
        local: Any = opened()
        clock = Clock(seconds)
        local.find_batch_size(device, most, clock)
        assert clock.times == []
        assert difference(drawn(local, jobs(3)), before) <= NOISE
        return local.batch_size

    assert found("a GPU", {1: 1.0, 2: 1.0, 4: 1.05, 8: 2.0}) == 4
    assert found("a GPU", {}) == 4  # nothing is timed again
    assert found("a large GPU", {1: 1.0, 2: 1.0}, most=2) == 2
    (tmp_path / "batch-sizes.json").write_text("damaged")
    assert found("a GPU", {1: 1.0, 2: 2.0}) == 1

    too_small: Any = opened(width=16, height=12)  # no model draws this, and drawing says so
    too_small.find_batch_size("a GPU", 16)
    assert too_small.batch_size == 32
    with pytest.raises(RenderSettingError):
        drawn(too_small, jobs(1))
