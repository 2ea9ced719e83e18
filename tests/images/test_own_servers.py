"""Drawing with ComfyUI and the web UI: loopback servers that do well, or badly on purpose."""

import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawing import jobs
from image_servers import Answer, ComfyServer, WebuiServer, plain_workflow
from PIL import Image
from servers import FlyingTime, png_of

from regforge.images.comfyui import ComfyRenderer
from regforge.images.renderer import (
    ModelUnavailable,
    RenderedImage,
    RenderError,
    RenderSettingError,
    is_sent,
)
from regforge.images.servers import ServerRenderer
from regforge.images.staging import parameters_text
from regforge.images.webui import WebuiRenderer
from regforge.journal import Journal, Reporter, read
from regforge.recipe.rendering import Render

_NOWHERE = "http://127.0.0.1:9"
_opened: list[ServerRenderer] = []


@pytest.fixture(autouse=True)
def _all_closed() -> Iterator[None]:
    yield
    while _opened:
        _opened.pop().close()


@pytest.fixture
def workflow(tmp_path: Path) -> Path:
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(plain_workflow()))
    return path


def opened(kind: type[ServerRenderer], render: Render, folder: Path | None) -> ServerRenderer:
    reporter = Reporter(quiet=True)
    renderer = kind(render, journal=Journal(folder), reporter=reporter, clock=FlyingTime())
    _opened.append(renderer)
    return renderer


def comfy(
    servers: str | list[str], workflow: Path, folder: Path | None = None, **more: Any
) -> ServerRenderer:
    render = Render(renderer="comfyui", api_base=servers, workflow=workflow, **more)
    return opened(ComfyRenderer, render, folder)


def webui(servers: str | list[str], folder: Path | None = None, **more: Any) -> ServerRenderer:
    settings = {"width": 32, "height": 24, "steps": 9, **more}
    render = Render(renderer="a1111", api_base=servers, **settings)
    return opened(WebuiRenderer, render, folder)


def are_right(images: list[RenderedImage], count: int) -> bool:
    """Whether these are the images of the first jobs, in order."""

    def pixels(seed: int) -> Any:
        return np.asarray(Image.open(io.BytesIO(png_of(seed, 32, 24))))

    return [image.job for image in images] == jobs(count) and all(
        np.array_equal(image.pixels, pixels(image.job.seed)) for image in images
    )


def once(path: str, answer: Answer, times: int = 1) -> Callable[[str, Mapping[str, Any]], Any]:
    """A fault of the first requests to a path."""
    left = [times]

    def fault(asked: str, _: Mapping[str, Any]) -> Answer | None:
        if not asked.startswith(path) or left[0] == 0:
            return None
        left[0] -= 1
        return answer

    return fault


# ---------------------------------------------------------------------------------------- ComfyUI


def test_comfyui_draws_each_caption_with_its_seed(workflow: Path, tmp_path: Path) -> None:
    with ComfyServer() as server:
        renderer = comfy(server.url, workflow, tmp_path, steps=7, negative_prompt="fog (thick)")
        assert are_right(list(renderer.render(jobs(6))), 6)
    sent = next(w for w in server.drawn if w["3"]["inputs"]["seed"] == jobs(1)[0].seed)
    assert sent["6"]["inputs"]["text"] == jobs(1)[0].prompt.text
    assert sent["7"]["inputs"]["text"] == r"fog \(thick\)"  # parentheses are weights there
    assert (sent["3"]["inputs"]["steps"], sent["3"]["inputs"]["cfg"]) == (7, 8.0)
    assert sent["5"]["inputs"] == {"width": 32, "height": 24, "batch_size": 1}
    assert len({w["9"]["inputs"]["filename_prefix"] for w in server.drawn}) == 6
    assert json.loads(workflow.read_text()) == plain_workflow()
    calls = [entry for entry in read(tmp_path / "log.jsonl") if entry["event"] == "image_call"]
    assert [call["cost"] for call in calls] == [0.0] * 6


def test_what_the_workflow_decides_is_recorded_as_it_says(workflow: Path) -> None:
    with ComfyServer() as server:
        renderer = comfy(server.url, workflow)
    render, identity = renderer._render, renderer.identity
    assert (identity.model, identity.scheduler) == ("v1-5.safetensors", "dpmpp_2m karras")
    assert identity.revision is not None
    assert identity.revision.startswith("workflow sha256:")
    assert (render.steps, render.guidance_scale) == (20, 8.0)
    assert render.negative_prompt == "text, watermark"
    text = parameters_text(jobs(1)[0], render, identity)
    assert "Steps: 20, Sampler: dpmpp_2m karras, CFG scale: 8, Seed: " in text


def test_what_reaches_no_node_is_not_recorded(tmp_path: Path) -> None:
    nodes = plain_workflow()
    nodes["3"]["class_type"] = "SamplerCustomAdvanced"
    for name in ("steps", "cfg"):
        del nodes["3"]["inputs"][name]
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(nodes))
    fault = once("/object_info/SamplerCustom", (200, {"SamplerCustomAdvanced": {}}))
    with ComfyServer(fault) as server:
        renderer = comfy(server.url, path)
    settings = ("seed", "steps", "guidance_scale", "scheduler")
    known = [is_sent(renderer._render, each, renderer.identity) for each in settings]
    assert known == [True, False, False, True]


@pytest.mark.parametrize(
    "fault",
    [
        once("/prompt", (500, {"error": "oops"}), 3),
        once("/prompt", (503, {}), 3),
        once("/prompt", (0, None), 3),
        once("/history/", (0, None), 3),
        once("/queue", (200, b"<html>"), 1),
        once("/view", (0, None), 2),
        once("/view", (200, b"GIF89a"), 2),
        once("/prompt", (200, {"number": 1}), 2),
    ],
    ids=["500", "busy", "broken", "lost", "html", "view", "no image", "no id"],
)
def test_comfyui_is_asked_again_after_a_fault(fault: Any, workflow: Path) -> None:
    with ComfyServer() as server:
        renderer = comfy(server.url, workflow)
        server.fault = fault
        assert are_right(list(renderer.render(jobs(3))), 3)


@pytest.mark.parametrize("answer", [(0, None), (500, {})])
def test_after_a_broken_connection_nothing_is_drawn_twice(answer: Answer, workflow: Path) -> None:
    with ComfyServer() as server:
        renderer = comfy(server.url, workflow)
        server.fault = once("/history/", answer, 4)
        assert are_right(list(renderer.render(jobs(4))), 4)
    assert len(server.drawn) == 4


def test_an_interrupted_run_fetches_what_was_under_way(workflow: Path) -> None:
    with ComfyServer() as server:
        images = comfy(server.url, workflow).render(jobs(4))
        next(images)
        _opened.pop().close()  # three others are in the queue, or done
        while server.queue:
            server.go_on()
        there = len(server.drawn)
        assert there > 1
        again = comfy(server.url, workflow)
        assert are_right(list(again.render(jobs(there))), there)
        assert len(server.drawn) == there


def test_a_restarted_comfyui_draws_what_it_has_forgotten(workflow: Path) -> None:
    with ComfyServer() as server:

        def restarts(path: str, _: Mapping[str, Any]) -> Answer | None:
            if path == "/queue" and len(server.drawn) == 2 and server.queue:
                server.fault = lambda path, body: None
                server.restart()
            return None

        renderer = comfy(server.url, workflow)
        server.fault = restarts
        assert are_right(list(renderer.render(jobs(6))), 6)


def test_comfyui_out_of_memory_is_tried_again(workflow: Path, tmp_path: Path) -> None:
    with ComfyServer() as server:
        server.wrong = {0: "memory", 1: "memory"}
        assert are_right(list(comfy(server.url, workflow, tmp_path).render(jobs(2))), 2)
    (first, _) = read(tmp_path / "ledger.jsonl")
    assert "Allocation on device" in first["reason"]


def test_a_node_that_fails_is_named_with_its_reason(workflow: Path) -> None:
    with ComfyServer() as server:
        server.wrong = {0: "missing"}
        with pytest.raises(RenderSettingError, match=r"Node 3 \(KSampler\).*no such file: clip"):
            list(comfy(server.url, workflow).render(jobs(2)))


def test_a_missing_checkpoint_is_said_before_anything_is_drawn(workflow: Path) -> None:
    with ComfyServer() as server:
        with pytest.raises(ModelUnavailable, match=r"no 'none.safetensors'") as error:
            comfy(server.url, workflow, model="none.safetensors")
        assert "v1-5.safetensors" in str(error.value.hint)
        renderer = comfy(server.url, workflow)
        server.checkpoints = ["another.safetensors"]  # it was deleted since
        with pytest.raises(RenderSettingError, match=r"Node 4 \(CheckpointLoaderSimple\)"):
            list(renderer.render(jobs(2)))
    assert server.drawn == []


def test_custom_nodes_that_are_missing_are_named(tmp_path: Path) -> None:
    nodes = plain_workflow()
    nodes["3"]["class_type"] = "KSampler (Efficient)"
    (tmp_path / "workflow.json").write_text(json.dumps(nodes))
    with ComfyServer() as server, pytest.raises(ModelUnavailable, match=r"KSampler \(Efficient\)"):
        comfy(server.url, tmp_path / "workflow.json")


def test_a_workflow_that_enlarges_is_refused_or_said(workflow: Path) -> None:
    with ComfyServer() as server:
        server.scale = 2
        with pytest.raises(RenderSettingError, match=r"32 x 24 .* 64 x 48 came") as error:
            list(comfy(server.url, workflow).render(jobs(1)))
        assert "render.nodes" in str(error.value.hint)
        said: dict[str, Any] = {"width": 64, "height": 48, "nodes": {"width": [], "height": []}}
        (image,) = comfy(server.url, workflow, **said).render(jobs(1))
    assert isinstance(image, RenderedImage)
    assert image.pixels.shape == (48, 64, 3)


# -------------------------------------------------------------------------------------- the web UI


def test_the_web_ui_draws_and_what_it_has_loaded_is_recorded(tmp_path: Path) -> None:
    with WebuiServer() as server:
        server.vae = "mse-840000.safetensors"
        asked = {"scheduler": "dpmpp_2m_karras", "guidance_scale": 6, "negative_prompt": "fog"}
        renderer = webui(server.url, tmp_path, **asked)
        assert are_right(list(renderer.render(jobs(5))), 5)
    body = next(body for body in server.drawn if body["seed"] == jobs(1)[0].seed)
    assert body["prompt"] == jobs(1)[0].prompt.text
    assert (body["sampler_name"], body["steps"], body["cfg_scale"]) == ("DPM++ 2M Karras", 9, 6)
    assert (body["negative_prompt"], body["batch_size"], body["n_iter"]) == ("fog", 1, 1)
    assert body["override_settings"] == {"sd_model_checkpoint": "v1-5.safetensors [6ce0161689]"}
    identity = renderer.identity
    assert identity.model == "v1-5.safetensors"
    assert identity.revision == f"sha256:6ce0{60 * '1'}, VAE mse-840000.safetensors"
    assert identity.scheduler == "DPM++ 2M Karras"


@pytest.mark.parametrize("name", ["other", "xl/other.safetensors", "other.safetensors"])
def test_a_checkpoint_goes_by_any_of_its_names(name: str) -> None:
    with WebuiServer() as server:
        renderer = webui(server.url, model=name)
        list(renderer.render(jobs(1)))
    assert renderer.identity.model == "xl/other.safetensors"
    named = server.drawn[0]["override_settings"]["sd_model_checkpoint"]
    assert named == "xl/other.safetensors"


def test_newer_web_uis_have_the_schedule_apart_from_the_sampler() -> None:
    with WebuiServer() as server:
        server.samplers, server.schedulers = ["Euler", "DPM++ 2M"], ["Automatic", "Karras"]
        list(webui(server.url, scheduler="dpmpp_2m_karras").render(jobs(1)))
    body = server.drawn[0]
    assert (body["sampler_name"], body["scheduler"]) == ("DPM++ 2M", "Karras")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": "none"}, "'none'"),
        ({"scheduler": "Eulr a"}, "'Eulr a'"),
        ({"scheduler": "unipc"}, "'UniPC'"),
    ],
)
def test_what_the_web_ui_does_not_have_is_said_first(settings: Any, words: str) -> None:
    with WebuiServer() as server, pytest.raises(RenderSettingError, match=words) as error:
        webui(server.url, **settings)
    assert error.value.hint
    assert server.drawn == []


@pytest.mark.parametrize(
    "answer",
    [
        (500, {"error": "OutOfMemoryError", "detail": "", "errors": "CUDA out of memory."}),
        (503, {}),
        (0, None),
        (200, {"images": []}),
        (200, {"images": ["no image!"]}),
        (200, {"detail": "?"}),
    ],
    ids=["memory", "busy", "broken", "none", "garbled", "odd"],
)
def test_the_web_ui_is_asked_again_after_a_fault(answer: Answer, tmp_path: Path) -> None:
    with WebuiServer(once("/sdapi/v1/txt2img", answer, 3)) as server:
        assert are_right(list(webui(server.url, tmp_path).render(jobs(2))), 2)
    assert len(list(read(tmp_path / "ledger.jsonl"))) == 3


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            (500, {"error": "OutOfMemoryError", "errors": "CUDA out of memory."}),
            "CUDA out of memory",
        ),
        ((422, {"detail": [{"loc": ["body", "steps"], "msg": "too many"}]}), "steps too many"),
    ],
)
def test_what_cannot_be_helped_is_said_in_the_servers_words(answer: Answer, words: str) -> None:
    with (
        WebuiServer(once("/sdapi/v1/txt2img", answer, -1)) as server,
        pytest.raises(RenderError, match=words),
    ):
        list(webui(server.url).render(jobs(1)))


@pytest.mark.parametrize("info", [{"seed": 1}, {"sd_model_name": "another"}])
def test_an_image_drawn_otherwise_than_recorded_is_refused(info: dict[str, Any]) -> None:
    with WebuiServer() as server:
        server.info = info
        with pytest.raises(RenderError, match="in place of"):
            list(webui(server.url).render(jobs(1)))


def test_a_password_is_sent_and_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with WebuiServer(once("/", (401, {"detail": "Incorrect username or password"}))) as server:
        with pytest.raises(ModelUnavailable, match="Incorrect username") as error:
            webui(server.url)
        assert "REGFORGE_SERVER_PASSWORD" in str(error.value.hint)
        monkeypatch.setenv("REGFORGE_SERVER_PASSWORD", "me:secret")
        webui(server.url)
    assert server.logins == {None, "Basic bWU6c2VjcmV0"}


# --------------------------------------------------------------------------------- several servers


def test_when_one_of_several_dies_the_others_draw(workflow: Path) -> None:
    with ComfyServer() as good, ComfyServer() as bad:
        renderer = comfy([bad.url, good.url], workflow, max_concurrency=2)

        def dies(path: str, _: Mapping[str, Any]) -> Answer | None:
            return (0, None) if len(bad.drawn) >= 2 else None

        bad.fault = dies
        assert are_right(list(renderer.render(jobs(12))), 12)
    assert len(bad.drawn) == 2
    assert len(good.drawn) >= 10


def test_a_server_that_is_away_is_left_out_and_none_is_an_error(workflow: Path) -> None:
    with ComfyServer() as server:
        assert are_right(list(comfy([_NOWHERE, server.url], workflow).render(jobs(3))), 3)
    for kind in (lambda: comfy(_NOWHERE, workflow), lambda: webui([_NOWHERE, _NOWHERE])):
        with pytest.raises(ModelUnavailable, match=r"http://127.0.0.1:9 cannot be reached"):
            kind()


def test_servers_that_draw_differently_do_not_draw_one_dataset() -> None:
    with WebuiServer() as first, WebuiServer() as second:
        second.vae = "another.safetensors"
        with pytest.raises(RenderSettingError, match=r"VAE another"):
            webui([first.url, second.url])
