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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hub_server import LoopbackHub, Status, redirect
from teapots import NEW, OLD, REPO, publish, with_old_version

from regforge.hub import HubError
from regforge.progress import Reporter


@dataclass(frozen=True)
class Step:
    """The request of a sequence that goes wrong: the n-th of its kind, from 0."""

    match: str
    number: int

    def __str__(self) -> str:
        return f"{self.match} ({self.number + 1}.)"


@dataclass(frozen=True)
class Way:
    """How a publication goes: over an old version, or into nothing."""

    old: bool

    def start(self, hub: LoopbackHub) -> None:
        if self.old:
            with_old_version(hub)

    def is_whole(self, hub: LoopbackHub) -> bool:
        """Whether main and all tags hold one version or the other, and none a part of one."""
        if hub.head(REPO) is None:
            return not self.old
        before = dict(OLD) if self.old else {}
        tags = hub.tags(REPO)
        return (
            hub.files(REPO) in (before, dict(NEW))
            and tags.keys() <= ({"v1", "v2"} if self.old else {"v2"})
            and all(hub.files(REPO, tag) == dict(OLD) for tag in tags if tag == "v1")
            and all(hub.files(REPO, tag) == dict(NEW) for tag in tags if tag == "v2")
        )


NEW_VERSION = Way(old=True)
WAYS = {"new version": NEW_VERSION, "new repository": Way(old=False)}

FAULTS: dict[str, tuple[Status, bool]] = {
    "429": (429, False),
    "500": (500, False),
    "500, though done": (500, True),
    "cut": ("cut", False),
    "cut, though done": ("cut", True),
}
COMMIT_FAULTS: dict[str, tuple[Status, bool]] = {"412": (412, False), "409": (409, False)}


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[Way], Iterator[LoopbackHub]]:
    """Makes Hubs, each with this process redirected to it, one after the other."""

    def make(way: Way) -> Iterator[LoopbackHub]:
        with LoopbackHub() as server, pytest.MonkeyPatch.context() as patch:
            redirect(patch, server, tmp_path)
            way.start(server)
            server.requests.clear()
            yield server

    return make


Fresh = Callable[[Way], Iterator[LoopbackHub]]


def steps(fresh: Fresh, way: Way) -> list[Step]:
    """The requests of a clean publication."""
    for hub in fresh(way):
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


def check_once(fresh: Fresh, way: Way, step: Step, name: str) -> None:
    """What goes wrong once is overcome."""
    case = f"{name} at {step}"
    status, after = faults(step)[name]
    for hub in fresh(way):
        hub.fail(step.match, status, after=after, skip=step.number)
        publish()
        assert settled(hub), case
        assert way.is_whole(hub), case
        hub.requests.clear()
        assert not publish().changed, case
        assert hub.writes == [], case


def check_for_ever(fresh: Fresh, way: Way, step: Step, name: str) -> None:
    """What goes wrong again and again ends in one sentence, and a later attempt succeeds."""
    case = f"{name}, for ever, at {step}"
    status, after = faults(step)[name]
    for hub in fresh(way):
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
        assert way.is_whole(hub), case
        hub.heal()
        publish()
        assert way.is_whole(hub), case
        assert hub.files(REPO) == dict(NEW), case
        assert hub.tags(REPO)["v2"] == hub.head(REPO), case


def check_somebody(fresh: Fresh, way: Way, step: Step) -> None:
    """Somebody else's commit in between is kept, and so is what we publish."""
    case = f"somebody commits before {step}"
    for hub in fresh(way):
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
        assert came or not way.old, case
        tagged = hub.files(REPO, "v2")
        assert {**tagged, "theirs.txt": b"theirs"} == {**NEW, "theirs.txt": b"theirs"}, case


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_a_cut_after_each_change(fresh: Fresh, way: Way) -> None:
    """The hardest fault: it is done, and nobody tells."""
    for step in steps(fresh, way):
        if re.search("/(create|commit|tag)", step.match):
            check_once(fresh, way, step, "cut, though done")


def test_a_change_that_fails_for_ever(fresh: Fresh) -> None:
    for step in steps(fresh, NEW_VERSION):
        if re.search("/(commit|tag)", step.match):
            check_for_ever(fresh, NEW_VERSION, step, "500")


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_each_request_fails_once_in_each_way(fresh: Fresh, way: Way) -> None:
    for step in steps(fresh, way):
        for name in faults(step):
            check_once(fresh, way, step, name)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_each_request_fails_for_ever(fresh: Fresh, way: Way) -> None:
    for step in steps(fresh, way):
        reads = step.match.startswith("^GET")
        for name in ("500",) if reads else faults(step).keys() - {"429"}:
            check_for_ever(fresh, way, step, name)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_somebody_commits_before_each_request(fresh: Fresh, way: Way) -> None:
    for step in steps(fresh, way):
        check_somebody(fresh, way, step)


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
