"""Drawing with an image service: a loopback server that answers well, or badly on purpose."""

import base64
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawing import CAPTIONS, jobs
from PIL import Image
from servers import Call, FlyingTime, Handler, Loopback, OpenAIServer, Reply, drawn, png_of, refused

from regforge.images import open_renderer
from regforge.images.renderer import (
    ModelUnavailable,
    RenderError,
    RenderSettingError,
)
from regforge.images.services import HostedRenderer
from regforge.images.staging import Staging, render_into
from regforge.journal import Journal, Reporter, read
from regforge.recipe.rendering import Render

_opened: list[HostedRenderer] = []


@pytest.fixture(autouse=True)
def _no_key_and_all_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    yield
    while _opened:
        _opened.pop().close()


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch) -> Callable[[OpenAIServer], None]:
    """Makes a server pass for OpenAI's own, which no recipe has to name."""

    def pass_for_openai(server: OpenAIServer) -> None:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_BASE", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-something")

    return pass_for_openai


def service(server: OpenAIServer | str, folder: Path | None = None, **more: Any) -> HostedRenderer:
    settings = {
        "renderer": "hosted",
        "model": "openai/painter",
        "api_base": server if isinstance(server, str) else server.url,
        "width": 32,
        "height": 24,
        "steps": 9,
    }
    renderer = HostedRenderer(
        Render(**(settings | more)),
        journal=Journal(folder),
        reporter=Reporter(quiet=True),
        clock=FlyingTime(),
    )
    _opened.append(renderer)
    return renderer


def pixels_of(seed: int, width: int = 32, height: int = 24) -> Any:
    return np.asarray(Image.open(io.BytesIO(png_of(seed, width, height))))


def failing(count: int, then: Callable[[Call], Reply], reply: Reply) -> Callable[[Call], Reply]:
    """Answers badly so many times, and well afterwards."""
    return lambda call: reply if call.number < count else then(call)


@pytest.mark.slow
def test_each_job_gets_its_image_in_order(tmp_path: Path) -> None:
    with OpenAIServer() as server:
        renderer = service(server, tmp_path, negative_prompt="dark")
        images = list(renderer.render(jobs(6)))
        renderer.close()
    assert [image.job for image in images] == jobs(6)
    assert all(np.array_equal(i.pixels, pixels_of(i.job.seed)) for i in images)
    assert not any(image.nsfw for image in images)
    body = next(call.body for call in server.calls if call.body["seed"] == jobs(1)[0].seed)
    assert body["prompt"] == CAPTIONS[0]
    assert (body["size"], body["steps"], body["model"]) == ("32x24", 9, "painter")
    assert body["negative_prompt"] == "dark"
    calls = [entry for entry in read(tmp_path / "log.jsonl") if entry["event"] == "image_call"]
    assert len(calls) == 6
    assert {call["cost"] for call in calls} == {0.0}  # at home
    assert not any("error" in call for call in calls)


@pytest.mark.slow
def test_no_more_calls_at_a_time_than_allowed() -> None:
    def slow(call: Call) -> Reply:
        return Reply(body=drawn(call).body, wait=0.05)

    with OpenAIServer(images=slow) as server:
        list(service(server, max_concurrency=3).render(jobs(9)))
    assert server.most_at_once == 3


def test_the_door_opens_a_service_too() -> None:
    render = Render(renderer="hosted", model="openai/painter", api_base="http://127.0.0.1:9/v1")
    renderer = open_renderer(render, journal=Journal(None), reporter=Reporter(quiet=True))
    assert renderer.batch_size == 1
    assert (renderer.identity.width, renderer.identity.height) == (1024, 1024)
    assert renderer.identity.revision is None
    renderer.close()


def test_without_a_server_of_its_own_nothing_unusual_is_sent(official: Any) -> None:
    with OpenAIServer() as server:
        official(server)
        list(service("", api_base=None).render(jobs(1)))
    assert server.calls[0].body.keys() == {"model", "prompt", "n", "size"}


@pytest.mark.parametrize("status", [429, 500, 503, 0])
def test_a_busy_or_broken_service_is_asked_again(status: int, tmp_path: Path) -> None:
    bad = Reply(0) if status == 0 else refused(status, "not now", retry_after="0.01")
    with OpenAIServer(images=failing(4, drawn, bad)) as server:
        images = list(service(server, tmp_path).render(jobs(1)))
    assert np.array_equal(images[0].pixels, pixels_of(jobs(1)[0].seed))
    assert len(server.calls) == 5
    # The client below LiteLLM tries nothing by itself: each call is counted and paid for.
    assert len(list(read(tmp_path / "log.jsonl"))) == 5
    assert len(list(read(tmp_path / "ledger.jsonl"))) == 4


@pytest.mark.parametrize(
    "reply",
    [
        Reply(body={"created": 1, "data": []}),
        Reply(body={"created": 1, "data": [{"b64_json": "no image!"}]}),
        Reply(body={"created": 1, "data": [{"b64_json": base64.b64encode(b"GIF89a").decode()}]}),
        Reply(body="<html>Bad gateway</html>"),
    ],
    ids=["empty", "no base64", "no image", "html"],
)
def test_an_answer_without_an_image_is_asked_for_again(reply: Reply) -> None:
    with OpenAIServer(images=failing(2, drawn, reply)) as server:
        images = list(service(server).render(jobs(1)))
    assert np.array_equal(images[0].pixels, pixels_of(jobs(1)[0].seed))


def test_a_image_may_come_as_a_data_address() -> None:
    def answer(call: Call) -> Reply:
        entry = drawn(call).body["data"][0]  # type: ignore[index]
        return Reply(body={"data": [{"b64_json": "data:image/png;base64," + entry["b64_json"]}]})

    with OpenAIServer(images=answer) as server:
        image = next(service(server).render(jobs(1)))
    assert np.array_equal(image.pixels, pixels_of(image.job.seed))


@pytest.mark.parametrize("code", ["content_policy_violation", "moderation_blocked"])
def test_what_the_service_refuses_is_marked_and_written_down(code: str, tmp_path: Path) -> None:
    def answer(call: Call) -> Reply:
        if call.body["prompt"] == CAPTIONS[1]:
            return refused(400, "Your request was rejected by our safety system.", code=code)
        return drawn(call)

    with OpenAIServer(images=answer) as server:
        images = list(service(server, tmp_path).render(jobs(3)))
    assert [image.nsfw for image in images] == [False, True, False]
    assert images[1].pixels.shape == (24, 32, 3)
    assert images[1].pixels.max() == 0
    (entry,) = read(tmp_path / "ledger.jsonl")
    assert entry["item"] == jobs(2)[1].id
    assert "safety system" in entry["raw"]
    assert len(server.calls) == 3


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (refused(401, "Incorrect API key: sk-abcdefghijkl"), ModelUnavailable, "OPENAI_API_KEY"),
        (refused(403, "Verify your organization"), ModelUnavailable, "Verify your organization"),
        (refused(404, "No such model"), ModelUnavailable, "No such model"),
        (refused(400, "size must be 1024x1024"), RenderSettingError, "size must be 1024x1024"),
        (refused(429, "Broke", code="insufficient_quota"), RenderError, "no credit"),
        (
            refused(500, "kaput", retry_after="0.01"),
            RenderError,
            "in 6 tries: The provider failed (500): kaput",
        ),
    ],
)
def test_what_cannot_be_helped_is_said(reply: Reply, kind: type[RenderError], words: str) -> None:
    with OpenAIServer(images=lambda call: reply) as server, pytest.raises(kind) as error:
        list(service(server).render(jobs(1)))
    text = str(error.value)
    assert words in text
    assert "sk-abcdefghijkl" not in text
    assert "Traceback" not in text
    assert "litellm" not in text.lower()


@pytest.mark.slow
def test_a_server_that_is_not_there() -> None:
    with pytest.raises(RenderError, match=r"openai/painter at http://127.0.0.1:9/v1 did not draw"):
        list(service("http://127.0.0.1:9/v1").render(jobs(1)))


def test_an_image_of_another_size_is_refused() -> None:
    def other_size(call: Call) -> Reply:
        return drawn(Call(0, "", dict(call.body) | {"size": "64x48"}, {}, 0.0))

    with (
        OpenAIServer(images=other_size) as server,
        pytest.raises(RenderSettingError, match=r"32 x 24 pixels were asked for, and 64 x 48"),
    ):
        list(service(server).render(jobs(1)))


def test_images_on_their_way_are_kept_when_one_fails(tmp_path: Path) -> None:
    def answer(call: Call) -> Reply:
        if call.body["seed"] == jobs(1)[0].seed:
            return refused(401, "no such key")
        return drawn(call)

    with OpenAIServer(images=answer) as server:
        renderer = service(server, max_concurrency=3)
        staging = Staging(tmp_path, Render(width=32, height=24), renderer.identity)
        with pytest.raises(ModelUnavailable):
            render_into(staging, renderer, jobs(8))
        staging.close()
    assert len(list(tmp_path.glob("*.webp"))) == 2
    assert len(server.calls) == 3  # and nothing new was asked for


def paid(folder: Path) -> list[float | None]:
    return [e["cost"] for e in read(folder / "log.jsonl") if e["event"] == "image_call"]


def test_images_are_asked_for_at_the_rate_that_is_allowed() -> None:
    with OpenAIServer() as server:
        renderer = service(server, rpm=6)
        list(renderer.render(jobs(4)))
    assert isinstance(time := renderer._caller.clock, FlyingTime)
    assert 29 < sum(time.slept) < 32  # ten seconds between each two of four


def test_max_cost_stops_before_it_is_exceeded_and_keeps_what_was_drawn(tmp_path: Path) -> None:
    priced = {"cost_per_image": 0.04, "max_cost": 0.13, "max_concurrency": 4}
    with OpenAIServer() as server:
        images = service(server, tmp_path, **priced).render(jobs(8))
        with pytest.raises(RenderError, match=r"render.max_cost = \$0.13 was exceeded: \$0.12"):
            drawn_before = [next(images) for _ in range(9)]
        assert "drawn_before" not in locals()
        assert len(server.calls) == 3
        assert paid(tmp_path) == [0.04] * 3
        # Another session of the same run goes on counting where this one stopped.
        with pytest.raises(RenderError, match="max_cost"):
            list(service(server, tmp_path, **priced).render(jobs(8)))
        assert len(server.calls) == 3
        more = service(server, tmp_path, **priced | {"max_cost": 0.2})
        assert len(list(more.render(jobs(2)))) == 2


def test_an_image_paid_by_tokens_costs_what_was_counted(tmp_path: Path, official: Any) -> None:
    usage = {
        "input_tokens": 10,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": 10},
        "output_tokens": 1000,
        "total_tokens": 1010,
    }

    def answer(call: Call) -> Reply:
        return Reply(body={**dict(drawn(call).body), "usage": usage})  # type: ignore[arg-type]

    with OpenAIServer(images=answer) as server:
        official(server)
        list(service("", tmp_path, api_base=None, model="gpt-image-1").render(jobs(1)))
    assert paid(tmp_path) == [pytest.approx(0.04, rel=0.1)]  # and not the list's 0.17


def test_refused_calls_cost_nothing_and_answers_that_are_no_image_do(tmp_path: Path) -> None:
    replies = [
        refused(500, "oops"),
        Reply(body={"created": 1, "data": []}),
        refused(400, "moderation_blocked"),
    ]

    def answer(call: Call) -> Reply:
        return replies[call.number] if call.number < 3 else drawn(call)

    priced = {"cost_per_image": 0.04, "max_cost": 0.1, "max_concurrency": 1}
    with OpenAIServer(images=answer) as server:
        images = list(service(server, tmp_path, **priced).render(jobs(2)))
    assert [image.nsfw for image in images] == [True, False]
    assert paid(tmp_path) == [0.0, 0.04, 0.0, 0.04]


def test_an_image_that_may_be_billed_although_it_never_came_counts(tmp_path: Path) -> None:
    priced = {"cost_per_image": 0.04, "max_cost": 0.1, "max_concurrency": 1}
    with (
        OpenAIServer(images=lambda _: Reply(0)) as server,
        pytest.raises(RenderError, match=r"\$0.08 spent"),
    ):
        list(service(server, tmp_path, **priced).render(jobs(1)))
    assert len(server.calls) == 2


def test_max_cost_with_an_unknown_price_asks_for_nothing(official: Any) -> None:
    with OpenAIServer() as server:
        official(server)
        with pytest.raises(RenderError, match=r"render.cost_per_image"):
            list(service("", api_base=None, max_cost=1.0).render(jobs(1)))
    assert server.calls == []


@pytest.mark.parametrize("wait", ["86400000", "Sun, 06 Nov 2044 08:49:37 GMT", "4444444444"])
def test_a_service_that_asks_for_years_is_not_waited_for(wait: str) -> None:
    busy = refused(429, "later", retry_after=wait)
    with (
        OpenAIServer(images=lambda _: busy) as server,
        pytest.raises(RenderError, match=r"more than a day: .*later"),
    ):
        list(service(server).render(jobs(1)))
    assert len(server.calls) == 1


class _Files(Handler):
    def do_GET(self) -> None:
        kind, body = {
            "/good": ("image/png", png_of(5, 32, 24)),
            "/page": ("text/html", b"<html>"),
            "/huge": ("image/png", b"\0" * 3_000_000),
            "/bomb": ("image/png", png_of(5, 400, 400)),
        }.get(self.path, ("", b""))
        self.send_response(200 if kind else 302)
        if not kind:
            self.send_header("Location", "/good")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def files() -> Iterator[str]:
    with Loopback(_Files) as server:
        yield server.url


def behind(address: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The image that a service answers with the address of."""
    monkeypatch.setattr("regforge.images.services._MOST_BYTES", 2_000_000)
    reply = Reply(body={"created": 1, "data": [{"url": address}]})
    with OpenAIServer(images=lambda call: reply) as server:
        return next(service(server).render(jobs(1))).pixels


def test_an_image_behind_an_address_is_fetched(files: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HostedRenderer, "_may_fetch", lambda self, url: True)
    assert np.array_equal(behind(f"{files}/good", monkeypatch), pixels_of(5))


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/page", "cannot be fetched"),
        ("/moved", "cannot be fetched"),
        ("/huge", "too large"),
        ("/bomb", "400 x 400 came"),
    ],
)
def test_what_lies_behind_an_address_is_not_trusted(
    path: str, words: str, files: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HostedRenderer, "_may_fetch", lambda self, url: True)
    with pytest.raises(RenderError, match=words):
        behind(files + path, monkeypatch)


@pytest.mark.parametrize("address", ["file:///etc/passwd", "http://169.254.169.254/latest"])
def test_addresses_without_https_are_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RenderError, match="not https"):
        behind(address, monkeypatch)


def test_nothing_is_said_on_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    with OpenAIServer(images=failing(1, drawn, Reply(body={"data": []}))) as server:
        renderer = service(server)
        list(renderer.render(jobs(2)))
        renderer.close()
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", ""), json.dumps(said.err)
