"""How pipelines of other families are called: guidance, prompts, ranges, schedulers, packages."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import drawing
import flow_models
import numpy as np
import pytest
from drawing import difference, drawn, jobs, opened

from regforge.embedded import TINYWORLD
from regforge.images import local, open_renderer, require_renderer
from regforge.images.pipelines import call_settings, guidance_input, set_scheduler
from regforge.images.renderer import ModelUnavailable, Pixels, RenderSettingError, is_sent
from regforge.journal import Journal, Reporter
from regforge.recipe import Render

CALLS = [
    # pipeline, guidance scale of the recipe, what the call gets of these
    ("StableDiffusionPipeline", 5.0, {"guidance_scale": 5.0, "output_type": "pt"}),
    ("StableDiffusionPipeline", 1.0, {"guidance_scale": 1.0}),
    ("ZImagePipeline", 5.0, {"guidance_scale": 4.0}),
    ("ZImagePipeline", 1.0, {"guidance_scale": 0.0}),
    ("ZImagePipeline", 0.5, {"guidance_scale": 0.0}),
    ("Krea2Pipeline", 3.0, {"guidance_scale": 2.0}),
    ("Krea2Pipeline", 1.0, {"guidance_scale": 0.0}),
    ("QwenImagePipeline", 4.0, {"true_cfg_scale": 4.0, "negative_prompt": " "}),
    ("QwenImagePipeline", 1.0, {"true_cfg_scale": 1.0, "negative_prompt": None}),
    ("FluxPipeline", 3.5, {"guidance_scale": 3.5, "true_cfg_scale": None}),
    ("Ideogram4Pipeline", 7.0, {"guidance_scale": 7.0, "guidance_schedule": "none"}),
    ("StableCascadeCombinedPipeline", 4.0, {"prior_guidance_scale": 4.0, "output_type": "np"}),
    ("ErnieImagePipeline", 4.0, {"guidance_scale": 4.0, "use_pe": False}),
    ("LongCatImagePipeline", 4.0, {"guidance_scale": 4.0, "enable_prompt_rewrite": False}),
    ("Kandinsky3Pipeline", 3.0, {"guidance_scale": 3.0, "output_type": "np"}),
    ("KandinskyCombinedPipeline", 4.0, {"guidance_scale": 4.0, "output_type": "np"}),
    ("KandinskyV22CombinedPipeline", 4.0, {"guidance_scale": 4.0, "output_type": "np"}),
    ("IFPipeline", 7.0, {"guidance_scale": 7.0, "output_type": "np", "clean_caption": False}),
    ("PixArtSigmaPipeline", 4.5, {"guidance_scale": 4.5, "clean_caption": False}),
    ("HunyuanImagePipeline", 5.0, {"guidance_scale": None, "distilled_guidance_scale": None}),
]


def bare(kind: str) -> Any:
    """A pipeline without parts, whose call can be looked at."""
    import diffusers

    found: Any = getattr(diffusers, kind)
    pipeline = found.__new__(found)
    if kind == "StableDiffusionPipeline":
        pipeline.image_processor = None
    return pipeline


@pytest.mark.parametrize(("kind", "scale", "expected"), CALLS)
def test_a_recipe_means_the_same_to_every_pipeline(
    kind: str, scale: float, expected: dict[str, Any]
) -> None:
    given = call_settings(bare(kind), Render(model="me/mine", guidance_scale=scale))
    for name, value in expected.items():
        if value is None:
            assert name not in given
        else:
            assert name in given
            assert given[name] == (None if value == "none" else value)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_guidance_that_reaches_nobody_is_refused_or_not_recorded(scale: float) -> None:
    hunyuan = bare("HunyuanImagePipeline")
    assert guidance_input(hunyuan) is None
    with pytest.raises(RenderSettingError, match="guidance"):
        call_settings(hunyuan, Render(model="me/mine", guidance_scale=scale))
    identity = opened().identity
    assert is_sent(Render(), "guidance_scale", identity)
    assert not is_sent(Render(), "guidance_scale", replace(identity, takes_guidance=False))


# ------------------------------------------------------------------------------- drawn, not called


def test_z_image_without_guidance_has_none_and_with_some_is_scaled(tmp_path: Path) -> None:
    model = flow_models.build("z-image", tmp_path / "z")
    assert opened(model=model, width=None, height=None).identity.width == 256  # 128 latents

    def images(scale: float) -> tuple[Pixels, int]:
        renderer: Any = opened(model=model, guidance_scale=scale)
        calls = []
        renderer._pipeline.transformer.register_forward_hook(lambda *_: calls.append(1))
        return drawn(renderer, jobs(1)), len(calls)

    (off, calls), (also_off, _), (on, _) = images(1.0), images(0.0), images(4.0)
    assert calls == 2, "a step each: nothing is predicted without the prompt"
    assert difference(off, also_off) == 0
    assert difference(off, on) > 0


def deepfloyd(folder: Path) -> str:
    """A DeepFloyd IF folder: it draws pixels, and has no image processor."""
    from diffusers import DDPMScheduler, IFPipeline, UNet2DConditionModel
    from transformers import T5EncoderModel

    parts = drawing._parts()
    tokenizer = parts["tokenizer"]
    unet = UNet2DConditionModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        in_channels=3,
        out_channels=6,
        cross_attention_dim=8,
        encoder_hid_dim=16,
        attention_head_dim=4,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        norm_num_groups=2,
        act_fn="gelu",
    )
    scheduler = DDPMScheduler(variance_type="learned_range", thresholding=True)
    IFPipeline(
        tokenizer,
        T5EncoderModel(drawing._t5_config(len(tokenizer), 16)),
        unet,
        scheduler,
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return str(folder)


def test_dark_halves_stay_where_pt_is_from_minus_one_to_one(tmp_path: Path) -> None:
    import torch

    renderer: Any = opened(model=deepfloyd(tmp_path / "if"), width=16, height=16)
    todo = jobs(2)
    own = renderer._pipeline(
        [job.prompt.text for job in todo],
        num_inference_steps=2,
        guidance_scale=4.0,
        generator=[torch.Generator().manual_seed(job.seed) for job in todo],
        clean_caption=False,
    )
    as_they_draw = np.stack([np.asarray(each) for each in own.images])
    assert difference(drawn(renderer, todo), as_they_draw) < 2


def test_a_model_that_is_made_for_other_steps_says_so_when_it_is_opened(tmp_path: Path) -> None:
    model, told = shutil.copytree(TINYWORLD, tmp_path / "sdxl-turbo"), io.StringIO()
    render = Render(model=str(model), steps=30, device="cpu")
    open_renderer(render, journal=Journal(None), reporter=Reporter(stream=told)).close()
    assert "sdxl-turbo is made for 4 steps, no guidance" in told.getvalue()
    assert str(tmp_path) not in told.getvalue()


def test_images_that_would_share_a_seed_are_drawn_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert opened(batch_size=4).batch_size == 4
    assert "GlmImagePipeline" in local.ALONE
    monkeypatch.setattr(local, "ALONE", {"StableDiffusionPipeline"})
    assert opened(batch_size=4).batch_size == 1


# ------------------------------------------------------------------------------------ schedulers


@pytest.mark.parametrize(
    "name", ["lms", "heun", "dpmpp_2m_karras", "PNDMScheduler", "DEISMultistepScheduler"]
)
def test_a_scheduler_that_loses_zero_terminal_snr_is_refused_before_anybody_is_paid(
    name: str,
) -> None:
    with pytest.raises(RenderSettingError, match="zero terminal SNR") as error:
        require_renderer(Render(scheduler=name))
    assert error.value.exit_code == 2
    with pytest.raises(RenderSettingError):
        opened(scheduler=name)


@pytest.mark.parametrize("name", ["lms", "heun", "dpmpp_2m_karras"])
def test_other_models_have_all_schedulers(name: str) -> None:
    from types import SimpleNamespace

    from diffusers import DDIMScheduler

    pipeline: Any = SimpleNamespace(scheduler=DDIMScheduler())
    assert set_scheduler(pipeline, name) == name


def test_what_a_class_does_not_take_is_said_before_the_weights_are_there(tmp_path: Path) -> None:
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    for settings in ({"negative_prompt": "blurry"}, {"scheduler": "ddim"}):
        with pytest.raises(RenderSettingError):
            require_renderer(Render(model=str(tmp_path), **settings))
    require_renderer(Render(model=str(tmp_path)))


# -------------------------------------------------------------------------------------- packages


def test_a_pipeline_whose_package_is_missing_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import diffusers
    from diffusers.utils import DummyObject

    class Missing(metaclass=DummyObject):
        _backends = ("torch", "nobodyspackage")

    monkeypatch.setattr(diffusers, "KolorsPipeline", Missing)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "KolorsPipeline"}))
    with pytest.raises(ModelUnavailable, match="nobodyspackage") as error:
        require_renderer(Render(model=str(tmp_path)))
    assert "pip install nobodyspackage" in str(error.value.hint)


@pytest.mark.parametrize(
    ("error", "package"),
    [
        (
            ImportError("AnyProcessor requires the Torchvisiom library but it was not found"),
            "torchvisiom",
        ),
        (ImportError("Loading it requires torchaoo. Please `pip install torchaoo`"), "torchaoo"),
        (ModuleNotFoundError("No module named 'sentencepiecee.x'"), "sentencepiecee"),
        (
            ValueError("You need to have sentencepiecee or tiktoken installed to convert"),
            "sentencepiecee",
        ),
        (OSError("no file named config.json"), None),
        (ImportError("please pip install --upgrade torch"), None),
    ],
)
def test_a_model_that_lacks_a_package_is_not_to_be_downloaded_again(
    error: Exception, package: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import DiffusionPipeline

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    model = shutil.copytree(TINYWORLD, tmp_path / "model")
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", fail)
    with pytest.raises(ModelUnavailable) as raised:
        opened(model=str(model))
    hint = str(raised.value.hint)
    assert ("download it again" in hint) == (package is None)
    if package is not None:
        assert package in raised.value.message
        assert hint == f"pip install {package}"
