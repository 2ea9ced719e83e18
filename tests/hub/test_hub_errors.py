"""Whatever the Hub's clients raise is put into one clear sentence, without a token in it."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from hub_server import LoopbackHub, Status
from huggingface_hub import CommitOperationAdd, HfApi, constants

from regforge.hub import HubError, explained
from regforge.hub.errors import RepoType, is_transient


def error_of(request: Callable[[], object]) -> Exception:
    try:
        request()
    except Exception as error:
        return error
    pytest.fail("nothing was raised")


def meaning(
    request: Callable[[], object],
    repo_id: str = "me/teapots",
    repo_type: RepoType = "dataset",
    revision: str | None = None,
) -> HubError:
    problem = explained(error_of(request), repo_id, repo_type=repo_type, revision=revision)
    assert len(problem.message.splitlines()) == 1
    assert problem.message.endswith(".")
    assert str(problem).isascii()
    return problem


def download(
    repo_id: str = "me/teapots", path: str = "README.md", **options: Any
) -> Callable[[], object]:
    return lambda: HfApi().hf_hub_download(repo_id, path, **{"repo_type": "dataset", **options})


def commit(repo_id: str = "me/teapots", content: bytes = b"a") -> Callable[[], object]:
    operations = [CommitOperationAdd("README.md", content)]
    return lambda: HfApi().create_commit(
        repo_id, operations, commit_message="New", repo_type="dataset"
    )


@pytest.fixture(autouse=True)
def teapots(hub: LoopbackHub) -> None:
    hub.put("me/teapots", {"README.md": "# Teapots"})


@pytest.mark.parametrize(
    ("request_of", "repo_id", "words"),
    [
        (download("them/cats"), "them/cats", "them/cats is gated.*\n.*/datasets/them/cats,"),
        (download(revision="v7"), "me/teapots", r"me/teapots has no revision 'v7'\."),
        (download("me/no"), "me/no", r"no dataset me/no on the Hub.*\n.*hf auth whoami"),
        (
            download(path="data/train one.parquet"),
            "me/teapots",
            r"no file data/train one\.",
        ),
        (download("me//teapots!"), "me//teapots!", "'me//teapots!' is no name of a Hub dataset"),
        (commit(content=b"---\na: [\n---\n"), "me/teapots", "README.md.*YAML"),
    ],
)
def test_what_is_not_there_or_not_allowed(
    hub: LoopbackHub, request_of: Callable[[], object], repo_id: str, words: str
) -> None:
    hub.put("them/cats", {"README.md": "# Cats"}, gated=True)
    assert re.search(words, str(meaning(request_of, repo_id, revision="v7")))


def test_a_model_is_called_one(hub: LoopbackHub) -> None:
    hub.put("them/model", {"README.md": "# Model"}, gated=True, repo_type="model")
    problem = meaning(download("them/model", repo_type="model"), "them/model", "model")
    assert f"{hub.url}/them/model," in str(problem)
    assert "no model me/x" in str(meaning(download("me/x", repo_type="model"), "me/x", "model"))


def test_nobody_is_logged_in(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    for request in (commit(), lambda: HfApi(token=True).whoami()):
        problem = meaning(request)
        assert problem.message == "You are not logged in to the Hub."
        assert "hf auth login" in str(problem)
    hub.put("them/secret", {"README.md": "# Secret"}, private=True)
    problem = meaning(download("them/secret"), "them/secret")
    assert "or you may not see it" in problem.message
    assert "hf auth login" in str(problem)
    monkeypatch.setenv("HF_TOKEN", "hf_outOfDateAndOutOfStyle")
    assert re.search(r"does not accept your token.*\n.*HF_TOKEN", str(meaning(commit())))


def test_a_token_that_may_not_write(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.read_token)
    problem = meaning(commit())
    assert problem.message.startswith("You may not write to me/teapots: ")
    assert "pull request" in str(problem)
    create = meaning(lambda: HfApi().create_repo("them/new", repo_type="dataset"), "them/new")
    assert create.message.startswith("You may not write to them/new: You don't have the rights")


def test_a_hub_that_is_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for request in (download(), commit()):
        problem = meaning(request)
        assert "HF_HUB_OFFLINE is set" in problem.message
        assert "dataset me/teapots" in problem.message
        assert problem.hint == "Unset HF_HUB_OFFLINE."
        assert not is_transient(error_of(request))


def test_a_hub_that_cannot_be_reached(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    address = "http://somebody:swordfish@127.0.0.1:9"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    for request in (download(), commit()):
        problem = meaning(request)
        assert "127.0.0.1:9 (HF_ENDPOINT) cannot be reached" in problem.message
        assert "swordfish" not in str(problem)
        assert is_transient(error_of(request))


@pytest.mark.parametrize(
    ("status", "words", "passing"),
    [
        ("cut", "cannot be reached (Server disconnected", True),
        (402, "has no room for me/teapots: As the Hub says it", False),
        (403, "may not write to me/teapots: As the Hub says it", False),
        (409, "Somebody else changed me/teapots", True),
        (412, "Somebody else changed me/teapots", True),
        (413, "has no room for", False),
        (418, "refuses me/teapots (HTTP 418: As the Hub says it)", False),
        (429, "takes no more requests for now", True),
        (500, "is in trouble (HTTP 500: As the Hub says it)", True),
        (503, "is in trouble (HTTP 503", True),
        (507, "has no room for", False),
    ],
)
def test_refusals_by_status(hub: LoopbackHub, status: Status, words: str, passing: bool) -> None:
    hub.fail("POST .*/commit/", status, times=math.inf, message="As the Hub says it.")
    assert words in meaning(commit()).message
    assert is_transient(error_of(commit())) == passing
    hub.heal()
    hub.fail("POST .*/commit/", 403, message="storage limit reached, please upgrade your plan")
    assert "has no room for me/teapots: storage limit" in meaning(commit()).message


def test_the_hub_says_when_to_come_back_and_everybodys_is_not_named(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.fail("POST .*/commit/", 429, headers={"Retry-After": "17"})
    assert "in 17 seconds" in str(meaning(commit()))
    hub.fail("POST .*/commit/", 429, headers={"RateLimit": '"api";r=0;t=55'})
    assert "in 55 seconds" in str(meaning(commit()))
    hub.fail("POST .*/commit/", 429, headers={"RateLimit": '"api";r=7;t=55'})
    assert "55 seconds" not in str(meaning(commit()))
    hub.fail("POST .*/commit/", 500)
    error = error_of(commit())
    monkeypatch.setattr(constants, "ENDPOINT", "https://huggingface.co")
    assert explained(error, "me/teapots").message.startswith("The Hub is in trouble (HTTP 500")


def test_what_other_libraries_raise(hub: LoopbackHub, tmp_path: Path) -> None:
    from datasets import load_dataset

    hub.put("them/cats", {"data/a.csv": "a\n1\n"}, gated=True)
    for repo_id, revision, words in (
        ("me/nothing", None, "There is no dataset me/nothing"),
        ("me/teapots", "v7", "me/teapots has no revision 'v7'"),
        ("them/cats", None, "them/cats is gated"),
    ):
        problem = meaning(
            lambda r=repo_id, v=revision: load_dataset(r, revision=v), repo_id, revision=revision
        )
        assert words in problem.message, repo_id


def test_what_nobody_has_thought_of_and_what_is_explained_already() -> None:
    problem = explained(RuntimeError("first line\nsecond line"), "me/teapots")
    assert "first line second line" in problem.message
    assert problem.message.count("\n") == 0
    assert "RuntimeError" in explained(RuntimeError(), "me/teapots").message
    outer = RuntimeError("outer")
    outer.__cause__ = HubError("Known.", hint="Do this.")
    assert explained(outer, "me/teapots") is outer.__cause__


def test_no_token_gets_into_the_text(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    for token in (hub.token, "canary-of-a-shape-of-its-own"):
        monkeypatch.setenv("MY_TOKEN", token)
        for status in (401, 403, 409, 418, 500):
            hub.fail("POST .*/commit/", status, message=f"not with {token}, please")
            assert token not in str(meaning(commit()))
        error = httpx.ConnectError(f"tunnel for {token} refused")
        assert "tunnel for" in str(explained(error, "me/teapots"))
        assert token not in str(explained(error, "me/teapots"))


def test_no_password_of_a_mirror_is_said(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put("them/cats", {"README.md": "# Cats"}, gated=True)
    hub.fail("POST .*/commit/", 401, message="Invalid credentials in Authorization header")
    errors = [error_of(commit()), error_of(download("them/cats")), error_of(download(path="no"))]
    monkeypatch.setattr(constants, "ENDPOINT", "https://somebody:swordfish@mirror.example/hub")
    said = "\n".join(str(explained(error, "me/teapots")) for error in errors)
    assert "https://mirror.example/hub/settings/tokens" in said
    assert "https://mirror.example/hub/datasets/me/teapots" in said
    assert "swordfish" not in said
