"""A model that draws nothing stops the run at once; one that does so now and then does not."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from images import blank_models, drawing
from images.drawing import drawn, jobs, opened
from PIL import Image
from servers import Call, OpenAIServer, Reply
from servers import drawn as drawn_by_server
from shell import Shell
from small_runs import WriteRecipe

from regforge.embedded import TINYWORLD
from regforge.images.curation import Curator
from regforge.images.staging import encode_image
from regforge.journal import read
from regforge.recipe.models import Curate


def rendered(run: Path) -> int:
    """How many images a run drew."""
    return sum(entry["images"] for entry in read(run / "log.jsonl") if entry["event"] == "rendered")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["overflowing", "black"])
def test_a_model_that_draws_nothing_stops_with_its_first_batch(
    kind: str, shell: Shell, write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    model = getattr(blank_models, kind)(tmp_path / "model")
    prompts: dict[str, Any] = {"count": 24, "sets": {"amplify": 1}}
    render = {"model": model, "dtype": "bfloat16", "batch_size": 4}
    recipe = write_recipe(prompts=prompts, render=render)
    for _ in range(2):  # what was blank is drawn again, and is so again
        assert shell("run", recipe, "--out", "run") == 1
        assert ("NaN" if kind == "overflowing" else "black") in shell.err
        assert "render.dtype: float32" in shell.err
        assert "phrases" not in shell.err
    assert rendered(tmp_path / "run") == 2 * 4 * 3
    assert not (tmp_path / "run" / "shards").exists()
    # With the autoencoder that it was made with it draws again.
    render["vae"] = str(TINYWORLD / "vae")
    recipe = write_recipe(prompts=prompts, render=render)
    assert shell("run", recipe, "--out", "mended", "--limit", 2) == 0, shell.err


@pytest.mark.slow
def test_numbers_that_overflow_are_refused_whatever_the_settings_are(
    shell: Shell, write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    model = blank_models.overflowing(tmp_path / "model")
    (image,) = opened(model=model).render(jobs(1))
    assert image.not_finite
    assert not image.pixels.any()
    curator = Curator(Curate(constant=False))
    file = encode_image(image.pixels, format="webp", quality=90, text=None)
    assert curator.judge(file, id="a", caption="a cat").reasons == ()
    assert len(curator.judge(file, id="a", caption="a cat", not_finite=True).reasons) == 1
    recipe = write_recipe(
        prompts={"count": 1, "sets": {"amplify": 1}},
        render={"model": model},
        curate={"constant": False, "max_duplicate_distance": None},
    )
    assert shell("run", recipe, "--out", "run") == 1
    assert "NaN" in shell.err


@pytest.mark.slow
def test_another_vae_takes_the_place_of_the_models_own(tmp_path: Path) -> None:
    model = blank_models.black(tmp_path / "model")
    mended = opened(model=model, vae=str(TINYWORLD / "vae"))
    assert np.array_equal(drawn(mended, jobs(1)), drawn(opened(), jobs(1)))
    assert mended.identity.vae == "vae"


def placeholders(count: int) -> Callable[[Call], Reply]:
    """An image service whose first images are black."""

    def answer(call: Call) -> Reply:
        if call.number >= count:
            return drawn_by_server(call)
        width, height = map(int, call.body["size"].split("x"))
        file = io.BytesIO()
        Image.new("RGB", (width, height), (2, 2, 2)).save(file, "PNG")
        return Reply(body={"data": [{"b64_json": base64.b64encode(file.getvalue()).decode()}]})

    return answer


@pytest.mark.slow
@pytest.mark.parametrize(("blank", "code", "calls"), [(10_000, 1, 12), (11, 0, None)])
def test_a_service_that_sends_placeholders_is_not_paid_for_many(
    blank: int,
    code: int,
    calls: int | None,
    shell: Shell,
    write_recipe: WriteRecipe,
    tmp_path: Path,
) -> None:
    with OpenAIServer(images=placeholders(blank)) as server:
        render = {
            "renderer": "hosted",
            "model": "openai/painter",
            "api_base": server.url,
            "width": 32,
            "height": 32,
        }
        prompts = {"count": 24, "sets": {"amplify": 1}, "near_duplicates": 1.0}
        recipe = write_recipe(prompts=prompts, render=render)
        assert shell("run", recipe, "--out", "run") == code, shell.err
        if calls is not None:
            assert len(server.calls) == calls
            assert "black" in shell.err
            assert "render.dtype" not in shell.err


@pytest.mark.slow
def test_images_that_a_safety_checker_blackened_do_not_stop_a_run(
    shell: Shell, write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    model = drawing.with_safety_checker(tmp_path / "prudish", flagged=True)
    recipe = write_recipe(
        prompts={"count": 2, "sets": {"amplify": 1}}, render={"model": model, "max_attempts": 1}
    )
    assert shell("run", recipe, "--out", "run") == 1
    assert "render.dtype" not in shell.err
    assert rendered(tmp_path / "run") > 2  # further captions were tried
