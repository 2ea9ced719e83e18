"""Pipelines of the newer families draw what they draw when simply called, prompts encoded once."""

import functools
from pathlib import Path
from typing import Any

import pytest
from images import flow_models
from images.drawing import CAPTIONS, difference, drawn, jobs, opened

from regforge.images.pipelines import guidance_of

GUIDANCE = 4.0
NOISE = 2
SIDE = 32


KINDS = [
    pytest.param(kind, marks=pytest.mark.slow)
    if kind in ("hunyuan-image", "pixart-sigma")
    else kind
    for kind in sorted({*flow_models.KINDS, *flow_models.DRAWN} - {"sd3", "flux1"})
]
UNGUIDED = ("flux2-dev",)
ONE_BY_ONE = ("cogview4", "ernie-image")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_draws_as_when_simply_called_in_batches_of_any_size(kind: str, tmp_path: Path) -> None:
    import torch

    base = flow_models.build(kind, tmp_path)
    guidance = 5.0 if kind == "hunyuan-image" else GUIDANCE  # it guides as it was configured
    plan = {"guidance_scale": guidance, "width": SIDE, "height": SIDE, "steps": 1}
    renderer: Any = opened(model=base, batch_size=3, **plan)
    renderer._pipeline.default_sample_size = SIDE // 2  # HiDream draws in its own size alone
    encoded: list[Any] = []
    encode = renderer._pipeline.encode_prompt

    @functools.wraps(encode)
    def counted(*args: Any, **more: Any) -> Any:
        if more.get("prompt"):
            encoded.append(more["prompt"])
        return encode(*args, **more)

    renderer._pipeline.encode_prompt = counted
    three = drawn(renderer, jobs(3))
    negative = int(kind not in UNGUIDED)
    assert len(encoded) == (3 if kind in ONE_BY_ONE else 1) + negative
    together = 1 if kind in ONE_BY_ONE else 3
    assert encoded[0][:together] == list(CAPTIONS[:together])
    assert difference(three[:1], drawn(renderer, jobs(1))) <= NOISE
    del renderer._pipeline.encode_prompt
    settings: dict[str, Any] = guidance_of(renderer._pipeline, GUIDANCE)
    if "true_cfg_scale" in settings:
        settings["negative_prompt"] = [" "]
    with torch.inference_mode():
        plain = renderer._pipeline(
            prompt=[CAPTIONS[0]],
            width=SIDE,
            height=SIDE,
            num_inference_steps=1,
            generator=[torch.Generator().manual_seed(jobs(1)[0].seed)],
            output_type="np",
            **settings,
        ).images
    assert difference(three[:1], (plain * 255).round().astype("uint8")) <= NOISE
