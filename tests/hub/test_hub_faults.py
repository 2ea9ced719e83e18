"""Every request of a publication goes wrong in every way: a reader sees the old version or the
new one, whole, and whoever tries again gets the new one.

The requests of a clean publication are recorded, and each is then made to fail on a Hub of its
own that holds the old version (or nothing).
"""

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hub_server import LoopbackHub, Status, redirect
from teapots import NEW, OLD, REPO, publish, with_old_version

from regforge.hub import HubError
from regforge.journal import Reporter


@dataclass(frozen=True)
class Step:
    """The request of a sequence that goes wrong: the n-th of its kind, from 0."""

    match: str
    number: int

    def __str__(self) -> str:
        return f"{self.match} ({self.number + 1}.)"


def is_whole(hub: LoopbackHub, old: bool) -> bool:
    """Whether main and all tags hold one version or the other, and none a part of one."""
    if hub.head(REPO) is None:
        return not old
    versions = {"v1": dict(OLD), "v2": dict(NEW)} if old else {"v2": dict(NEW)}
    tags = hub.tags(REPO)
    return (
        hub.files(REPO) in (dict(OLD) if old else {}, dict(NEW))
        and tags.keys() <= versions.keys()
        and all(hub.files(REPO, tag) == versions[tag] for tag in tags)
    )


OVER = pytest.mark.parametrize("old", [True, False], ids=["new version", "new repository"])

FAULTS: dict[str, tuple[Status, bool]] = {
    "429": (429, False),
    "500": (500, False),
    "500, though done": (500, True),
    "cut": ("cut", False),
    "cut, though done": ("cut", True),
}
COMMIT_FAULTS: dict[str, tuple[Status, bool]] = {"412": (412, False), "409": (409, False)}


Fresh = Callable[[bool], AbstractContextManager[LoopbackHub]]


@pytest.fixture
def fresh(tmp_path: Path) -> Fresh:
    """Makes Hubs with this process redirected to each: with the old version, or with nothing."""

    @contextmanager
    def make(old: bool) -> Iterator[LoopbackHub]:
        with LoopbackHub() as server, pytest.MonkeyPatch.context() as patch:
            redirect(patch, server, tmp_path)
            if old:
                with_old_version(server)
            server.requests.clear()
            yield server

    return make


def steps(fresh: Fresh, old: bool) -> list[Step]:
    """The requests of a clean publication."""
    with fresh(old) as hub:
        publish()
        lines = [request.line for request in hub.requests]
    counts: Counter[str] = Counter()
    found = []
    for line in lines:
        match = f"^{re.escape(line)}$"
        found.append(Step(match, counts[match]))
        counts[match] += 1
    return found


def faults(step: Step) -> dict[str, tuple[Status, bool]]:
    return FAULTS | (COMMIT_FAULTS if "/commit/" in step.match else {})


def settled(hub: LoopbackHub) -> bool:
    """Whether the new version is there, and tagged."""
    return hub.files(REPO) == dict(NEW) and hub.tags(REPO).get("v2") == hub.head(REPO)


def check_once(fresh: Fresh, old: bool, step: Step, name: str) -> None:
    """What goes wrong once is overcome."""
    case = f"{name} at {step}"
    status, after = faults(step)[name]
    with fresh(old) as hub:
        hub.fail(step.match, status, after=after, skip=step.number)
        publish()
        assert settled(hub), case
        assert is_whole(hub, old), case
        hub.requests.clear()
        assert not publish().changed, case
        assert hub.writes == [], case


def check_for_ever(fresh: Fresh, old: bool, step: Step, name: str) -> None:
    """What goes wrong again and again ends in one sentence, and a later attempt succeeds."""
    case = f"{name}, for ever, at {step}"
    status, after = faults(step)[name]
    with fresh(old) as hub:
        hub.fail(step.match, status, after=after, skip=step.number, times=math.inf)
        try:
            publish()
            said = ""
        except HubError as error:
            said = str(error)
        if not said:
            assert settled(hub), case
        assert hub.token not in said, case
        assert len(said.splitlines()) <= 2, case  # a sentence, and what to do
        assert is_whole(hub, old), case
        hub.heal()
        publish()
        assert is_whole(hub, old), case
        assert hub.files(REPO) == dict(NEW), case
        assert hub.tags(REPO)["v2"] == hub.head(REPO), case


def check_somebody(fresh: Fresh, old: bool, step: Step) -> None:
    """Somebody else's commit in between is kept, and so is what we publish."""
    case = f"somebody commits before {step}"
    with fresh(old) as hub:
        seen = 0

        def theirs(hub: LoopbackHub = hub) -> None:
            nonlocal seen
            if seen == step.number and hub.head(REPO) is not None:
                hub.put(REPO, {"theirs.txt": b"theirs"})
            seen += 1

        for _ in range(step.number + 1):
            hub.on(step.match, theirs)
        publish()
        there = hub.files(REPO)
        came = there.pop("theirs.txt", None) is not None
        assert there == dict(NEW), case
        assert came or not old, case
        tagged = hub.files(REPO, "v2")
        assert {**tagged, "theirs.txt": b"theirs"} == {**NEW, "theirs.txt": b"theirs"}, case


@OVER
def test_a_cut_after_each_change(fresh: Fresh, old: bool) -> None:
    """The hardest fault: it is done, and nobody tells."""
    for step in steps(fresh, old):
        if re.search("/(create|commit|tag)", step.match):
            check_once(fresh, old, step, "cut, though done")


def test_a_change_that_fails_for_ever(fresh: Fresh) -> None:
    for step in steps(fresh, True):
        if re.search("/(commit|tag)", step.match):
            check_for_ever(fresh, True, step, "500")


@pytest.mark.slow
@OVER
def test_each_request_fails_once_in_each_way(fresh: Fresh, old: bool) -> None:
    for step in steps(fresh, old):
        for name in faults(step):
            check_once(fresh, old, step, name)


@pytest.mark.slow
@OVER
def test_each_request_fails_for_ever(fresh: Fresh, old: bool) -> None:
    for step in steps(fresh, old):
        reads = step.match.startswith("^GET")
        for name in ("500",) if reads else faults(step).keys() - {"429"}:
            check_for_ever(fresh, old, step, name)


@pytest.mark.slow
@OVER
def test_somebody_commits_before_each_request(fresh: Fresh, old: bool) -> None:
    for step in steps(fresh, old):
        check_somebody(fresh, old, step)


def test_the_token_is_nowhere(
    hub: LoopbackHub,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Only in the header that it is for; however things go, and with all the logs on."""
    for name in ("huggingface_hub", "httpx", "httpcore"):
        caplog.set_level(logging.DEBUG, logger=name)
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    with_old_version(hub)
    said = []

    def attempt(**options: Any) -> None:
        try:
            said.append(repr(publish(reporter=Reporter(), **options)))
        except HubError as error:
            said.append(f"{error} {error!r}")

    for line in ("GET .*/refs", "POST .*/commit/", "PUT ", "POST .*/tag/"):
        for status in (401, 403, 500, "cut"):
            hub.fail(line, status, times=30, message=f"I know you: {hub.token}")
            attempt()
            hub.heal()
    attempt()
    attempt(tag="v1")
    printed = capfd.readouterr()
    everything = "\n".join([*said, caplog.text, printed.out, printed.err])
    assert "in trouble" in everything
    assert "authenticated: True" in caplog.text
    assert settled(hub)
    authorized = [request for request in hub.requests if request.authorized]
    assert len(authorized) > 20
    for request in hub.requests:
        assert hub.token not in f"{request.line} {request.query}"
        assert hub.token.encode() not in request.body
    for content in hub.files(REPO).values():
        assert hub.token.encode() not in content
    assert hub.token not in everything.replace(f"I know you: {hub.token}", "")
    assert hub.token not in "\n".join([*said, printed.out, printed.err])
