"""Steps that are not computed whole: what they cost, what images depend on, what is said."""

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import drawing
import numpy as np
import pytest
from drawing import difference, drawn, jobs, opened
from images import flow_models

from regforge.embedded import TINYWORLD
from regforge.images import require_renderer
from regforge.images.renderer import RenderSettingError, sampling
from regforge.images.shortcuts import Shortcuts, shorten
from regforge.images.staging import Staging, parameters_text, render_into
from regforge.recipe import Render

NOISE = 2
"""Levels of 255 by which an image may depend on its batch in float32."""

BOTH: dict[str, Any] = {"steps": 5, "cache_interval": 2, "guidance_window": (0.4, 1.0)}


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> str:
    return drawing.sdxl(tmp_path_factory.mktemp("models") / "sdxl")


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["unipc", "dpmpp_2m", "euler", "ddim", "PNDMScheduler"])
def test_an_image_does_not_depend_on_its_batch(scheduler: str, sdxl: str) -> None:
    one, three = (
        drawn(opened(model=sdxl, scheduler=scheduler, batch_size=size, **BOTH), jobs(3))
        for size in (1, 3)
    )
    assert difference(one, three) <= NOISE


@pytest.mark.slow
def test_nothing_is_left_from_one_batch_to_the_next_and_images_differ_a_little() -> None:
    fast = opened(batch_size=2, speed="fast")
    images = drawn(fast, jobs(3))
    assert np.array_equal(drawn(fast, jobs(2)), images[:2])
    whole = drawn(opened(scheduler="unipc", steps=12), jobs(3))
    assert 0 < np.abs(images.astype(int) - whole).mean() < 20


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sdxl", "flux"])
def test_a_run_that_was_interrupted_ends_with_the_same_files(kind: str, tmp_path: Path) -> None:
    model = getattr(drawing, kind)(tmp_path / "model")
    small = {"width": 32, "height": 32, "dtype": "float32", "device": "cpu", "batch_size": 2}
    shorter = BOTH if kind == "sdxl" else {"steps": 5, "cache_interval": 2}
    render = Render(model=model, **small, **shorter)

    def files(folder: Path, *parts: int) -> dict[str, bytes]:
        for part in parts:
            renderer = opened(**render.model_dump())
            staging = Staging(folder, render, renderer.identity)
            render_into(staging, renderer, jobs(5)[:part])
            staging.close()
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    assert files(tmp_path / "whole", 5) == files(tmp_path / "resumed", 3, 5)


def no_compiler(*_: Any) -> Any:
    raise RuntimeError("no C++ compiler found")


@pytest.mark.slow  # compiles
@pytest.mark.parametrize(
    ("kind", "backend"), [("sdxl", "eager"), ("sdxl", no_compiler), ("sd3", no_compiler)]
)
def test_a_compiled_denoiser_leaves_out_the_same(
    kind: str, backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    model = getattr(drawing, kind)(tmp_path)
    plain = drawn(opened(model=model, **BOTH), jobs(2))
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    compiled: Any = opened(model=model, compile=True, **BOTH)
    assert difference(drawn(compiled, jobs(2)), plain) <= NOISE
    parts = compiled._pipeline.components
    denoiser = parts["unet" if kind == "sdxl" else "transformer"]
    assert not hasattr(denoiser, "_orig_mod")
    blocks = denoiser.modules()
    assert any(block._compiled_call_impl for block in blocks) is (backend == "eager")


# ------------------------------------------------------------------------------------ transformers


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "window", "calls"),
    [
        ("flux1", (0, 1), 5),
        ("flux2", (0, 1), 2 * 5),
        ("flux2-dev", (0, 1), 5),
        ("qwen-image", (0.5, 1), 5 + 2),
        ("sd3", (0.5, 1), 5),
    ],
)
def test_a_transformer_computes_the_first_steps_and_every_second_one(
    kind: str, window: tuple[float, float], calls: int, tmp_path: Path
) -> None:
    model = flow_models.build(kind, tmp_path)
    shorter: dict[str, Any] = {"steps": 8, "cache_interval": 2, "guidance_window": window}
    side = {"width": 32, "height": 32}
    three: Any = opened(model=model, batch_size=3, **shorter, **side)
    counted: list[int] = []
    three._pipeline.transformer.norm_out.register_forward_hook(lambda *_: counted.append(1))
    images = drawn(three, jobs(3))
    assert len(counted) == calls
    assert np.array_equal(drawn(three, jobs(3)), images)
    alone = drawn(opened(model=model, batch_size=1, **shorter, **side), jobs(3))
    assert difference(images, alone) <= NOISE
    whole = drawn(opened(model=model, steps=8, **side), jobs(3))
    assert not np.array_equal(images, whole)


def test_between_computed_steps_what_it_gives_goes_on_in_a_straight_line() -> None:
    """Over time, and times are not evenly spaced."""
    import torch

    times = torch.tensor([1.0, 0.9, 0.7, 0.4, 0.3, 0.1])
    asked: list[float] = []

    def forward(hidden_states: torch.Tensor, time: float) -> tuple[torch.Tensor]:
        asked.append(time)
        return (hidden_states * (1 + 3 * time),)

    model = SimpleNamespace(forward=forward)
    pipeline = SimpleNamespace(transformer=model, scheduler=SimpleNamespace(timesteps=times))
    Shortcuts(pipeline, Render(model="me/flux", cache_interval=3)).begin(2)
    latents = torch.randn(2, 4)
    for time in times.tolist():
        (given,) = model.forward(hidden_states=latents, time=time)
        assert torch.allclose(given, latents * (1 + 3 * time), atol=1e-5)
    assert asked == times[[0, 1, 2, 5]].tolist()


@pytest.mark.slow
def test_that_is_nearer_to_what_many_steps_draw_than_as_many_computed_steps_are() -> None:
    """The embedded UNet stands for a transformer: there is none that draws anything."""

    def image(steps: int, interval: int = 1) -> Any:
        made: Any = opened(scheduler="euler", steps=steps, width=64, height=64)
        parts = {"transformer": made._pipeline.unet, "scheduler": made._pipeline.scheduler}
        made._shortcuts = Shortcuts(SimpleNamespace(**parts), Render(cache_interval=interval))
        return drawn(made, jobs(2)).astype(float)

    solution = image(60)
    continued, computed = (np.abs(each - solution).mean() for each in (image(24, 2), image(13)))
    assert continued < 0.8 * computed


# ----------------------------------------------------------------------------- one and two passes


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tinyworld", "sdxl", "sd3"])
def test_a_window_without_any_step_is_no_guidance(kind: str, tmp_path: Path) -> None:
    model = getattr(drawing, kind)(tmp_path) if kind != "tinyworld" else "embedded/tinyworld"
    never, off, always = (
        drawn(opened(model=model, steps=3, **more), jobs(2))
        for more in ({"guidance_window": (0.9, 1.0)}, {"guidance_scale": 1.0}, {})
    )
    assert np.array_equal(never, off)
    assert not np.array_equal(never, always)


def qwen_image() -> Any:
    """A Qwen-Image pipeline of a few numbers; its denoiser is called twice a step."""
    import torch
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )

    torch.manual_seed(0)
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    pipeline = QwenImagePipeline(
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=None,
        tokenizer=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def from_qwen_image(scale: float, window: tuple[float, float] = (0, 1)) -> tuple[Any, int]:
    """Latents of two images in four steps, and how often the denoiser was called for them."""
    import torch

    pipeline, calls = qwen_image(), []
    pipeline.transformer.time_text_embed.register_forward_hook(lambda *_: calls.append(1))
    if shortcuts := shorten(pipeline, Render(model="me/qwen", guidance_window=window)):
        shortcuts.begin(2)
    embeddings = torch.randn(2, 2, 7, 16, generator=torch.Generator().manual_seed(1))
    output = pipeline(
        prompt_embeds=embeddings[0],
        prompt_embeds_mask=torch.ones(2, 7, dtype=torch.long),
        negative_prompt_embeds=embeddings[1],
        negative_prompt_embeds_mask=torch.ones(2, 7, dtype=torch.long),
        true_cfg_scale=scale,
        num_inference_steps=4,
        width=32,
        height=32,
        generator=[torch.Generator().manual_seed(seed) for seed in (0, 1)],
        output_type="latent",
    )
    return output.images, len(calls)


def test_a_pipeline_with_two_passes_leaves_out_the_second_one() -> None:
    import torch

    (always, eight), (off, four) = from_qwen_image(4.0), from_qwen_image(1.0)
    (some, six), (never, none) = (from_qwen_image(4.0, (start, 1.0)) for start in (0.5, 0.9))
    assert (eight, six, none, four) == (8, 6, 4, 4)
    assert torch.equal(never, off)
    assert not torch.equal(some, always)


# ---------------------------------------------------------------------------------- what it costs


def unet_of(kind: str) -> tuple[Any, dict[str, Any]]:
    """A UNet of that model's size without weights, and arguments for one guided image."""
    import torch
    from diffusers import UNet2DConditionModel

    if kind == "embedded":
        with torch.device("meta"):
            config = UNet2DConditionModel.load_config(TINYWORLD / "unet")
            tiny: Any = UNet2DConditionModel.from_config(config)
            sides = (tiny.config.sample_size, tiny.config.sample_size)
            words = torch.empty(2, 48, tiny.config.cross_attention_dim)
            sample = torch.empty(2, tiny.config.in_channels, *sides)
            return tiny, {"sample": sample, "encoder_hidden_states": words}
    more: dict[str, Any] = {"cross_attention_dim": 768, "attention_head_dim": 8}
    if kind == "sdxl":
        more = {
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        }
    with torch.device("meta"):
        side = 128 if kind == "sdxl" else 64
        arguments = {
            "sample": torch.empty(2, 4, side, side),
            "encoder_hidden_states": torch.empty(2, 77, more["cross_attention_dim"]),
            "added_cond_kwargs": {
                "text_embeds": torch.empty(2, 1280),
                "time_ids": torch.empty(2, 6),
            },
        }
        return UNet2DConditionModel(**more), arguments


def flops(unet: Any, arguments: dict[str, Any], steps: int) -> int:
    """Of so many steps of the denoiser."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for _ in range(steps):
            (result,) = unet(timestep=torch.ones((), device="meta"), return_dict=False, **arguments)
            assert result.shape == arguments["sample"].shape
    return counter.get_total_flops()


@pytest.mark.slow  # large models, though without numbers
@pytest.mark.parametrize(
    ("kind", "speed", "share"),
    [
        ("embedded", "balanced", 0.350),
        ("embedded", "fast", 0.221),
        ("sd15", "balanced", 0.342),
        ("sd15", "fast", 0.216),
        ("sdxl", "balanced", 0.324),
        ("sdxl", "fast", 0.203),
    ],
)
def test_arithmetic_against_25_whole_guided_steps(kind: str, speed: Any, share: float) -> None:
    unet, arguments = unet_of(kind)
    whole = 25 * flops(unet, arguments, 1)
    render = Render(model="me/mine", speed=speed)
    schedule = SimpleNamespace(timesteps=range(render.steps))
    Shortcuts(SimpleNamespace(unet=unet, scheduler=schedule), render).begin(1)
    assert flops(unet, arguments, render.steps) / whole == pytest.approx(share, abs=0.002)


# ------------------------------------------------------------------------------------- what is said


def test_the_presets_fill_in_what_is_left_out() -> None:
    def parts(**given: Any) -> tuple[Any, ...]:
        made = Render(**given)
        return made.scheduler, made.steps, made.cache_interval, made.guidance_window

    assert parts() == parts(speed="exact") == (None, 30, 1, (0, 1))
    assert parts(speed="balanced") == ("unipc", 15, 2, (0, 1))
    assert parts(speed="fast") == ("unipc", 12, 2, (0.33, 1))
    assert parts(speed="fast", steps=20, cache_interval=1) == ("unipc", 20, 1, (0.33, 1))
    assert Render(speed="fast").guidance_scale == Render().guidance_scale


def test_files_and_rows_say_what_was_left_out_and_nothing_where_nothing_was() -> None:
    identity = opened(scheduler="unipc").identity
    short, plain = Render(speed="fast"), Render(scheduler="unipc", steps=12)
    text = parameters_text(jobs(1)[0], short, identity)
    assert "Sampler: UniPC, CFG scale: 5, Cache interval: 2, Guidance window: 0.33-1, Seed" in text
    assert "Cache" not in parameters_text(jobs(1)[0], plain, identity)
    assert sampling(identity, short) == "unipc, cache interval 2, guidance window 0.33-1"
    assert sampling(identity, plain) == "unipc"


@pytest.mark.parametrize(
    ("kind", "settings", "key"),
    [
        ("FluxPipeline", {"speed": "balanced"}, "speed"),
        ("FluxPipeline", {"guidance_window": (0.3, 1)}, "guidance_window"),
        ("StableDiffusion3Pipeline", {"speed": "fast"}, "speed"),
        ("ZImagePipeline", {"cache_interval": 2}, "cache_interval"),
        ("LuminaPipeline", {"guidance_window": (0.3, 1)}, "guidance_window"),
    ],
)
def test_what_does_not_go_with_a_model_is_refused_before_its_weights_are_there(
    kind: str, settings: dict[str, Any], key: str, tmp_path: Path
) -> None:
    (tmp_path / "model_index.json").write_text(f'{{"_class_name": "{kind}"}}')
    with pytest.raises(RenderSettingError, match=rf"render\.{key} .*{kind}") as error:
        require_renderer(Render(model=str(tmp_path), **settings))
    assert error.value.exit_code == 2


def test_and_where_a_model_is_opened(tmp_path: Path) -> None:
    with pytest.raises(RenderSettingError, match=r"render\.speed"):
        opened(model=drawing.flux(tmp_path), speed="fast")
