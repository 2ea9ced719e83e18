"""What publishing leaves on the Hub, and what it refuses before anything is sent."""

import io
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hub_server import LFS_SIZE, LoopbackHub
from teapots import NEW, OLD, REPO, from_folder, new_version, publish, with_old_version

from regforge.errors import RegforgeError
from regforge.hub import Contents, HubError, Remote, commits, publish_files
from regforge.journal import Reporter


def refusal(hub: LoopbackHub, **options: Any) -> str:
    """The message of a publication that is refused before anything is written."""
    before = len(hub.writes)
    with pytest.raises(HubError) as error:
        publish(**options)
    assert hub.writes[before:] == []
    return str(error.value)


def test_a_private_repository_is_made_and_stays_private(hub: LoopbackHub, tmp_path: Path) -> None:
    seen: list[Remote] = []

    def wanted(remote: Remote) -> Contents:
        seen.append(remote)
        return Contents(from_folder(tmp_path, NEW))

    done = publish_files(REPO, wanted, message="First", tag="v1")
    assert hub.files(REPO) == dict(NEW)
    assert hub.history(REPO) == ["First", "initial commit"]
    assert hub.tags(REPO) == {"v1": hub.head(REPO)}
    assert (done.commit, done.tag, done.pull_request) == (hub.head(REPO), "v1", None)
    assert (done.changed, done.uploaded, done.deleted) == (True, len(NEW), 0)
    assert done.url == f"{hub.url}/datasets/{REPO}"
    assert (seen[0].commit, dict(seen[0].files), seen[0].read("README.md")) == (None, {}, None)
    publish(tag=None)  # says that it may be public
    assert hub.repository(REPO).private  # type: ignore[union-attr]


def test_a_public_model(hub: LoopbackHub) -> None:
    done = publish_files(
        "me/model",
        lambda _: Contents({"model.safetensors": b"weights"}),
        message="First",
        repo_type="model",
        private=False,
        tag="v1",
    )
    assert hub.files("me/model", repo_type="model") == {"model.safetensors": b"weights"}
    assert hub.tags("me/model", repo_type="model") == {"v1": done.commit}
    assert done.url == f"{hub.url}/me/model"
    assert hub.head("me/model") is None


def test_a_new_version_is_one_commit(hub: LoopbackHub) -> None:
    old = with_old_version(hub)
    done = publish()
    assert hub.files(REPO) == dict(NEW)
    assert hub.history(REPO) == ["New teapots", "Old teapots", "initial commit"]
    assert hub.tags(REPO) == {"v1": old, "v2": done.commit}
    assert (done.uploaded, done.deleted) == (5, 1)  # one file is as it was


def test_what_is_there_already_is_no_change(hub: LoopbackHub) -> None:
    with_old_version(hub)
    first = publish(tag=None)
    hub.requests.clear()
    again = publish(tag="v2")  # the tag alone is missing
    assert hub.writes == [f"POST /api/datasets/{REPO}/tag/{first.commit}"]
    assert hub.tags(REPO)["v2"] == first.commit
    hub.requests.clear()
    third = publish()
    assert hub.writes == []
    assert len(hub.requests) == 3  # the repository, its files, its tags
    assert again.commit == third.commit == first.commit
    assert (again.changed, third.changed, third.uploaded, third.deleted) == (False, False, 0, 0)


def test_large_and_empty_and_oddly_named_files(hub: LoopbackHub, tmp_path: Path) -> None:
    files = {
        "large.txt": b"x" * (LFS_SIZE + 1),
        "empty.parquet": b"",
        "ein Ordner/größe #1 100%.json": b"{}",
        "twin-1.jpg": b"same",
        "twin-2.jpg": b"same",
    }
    sources = from_folder(tmp_path, files)
    publish_files(REPO, lambda _: Contents(sources), message="New")
    assert hub.files(REPO) == files
    hub.requests.clear()
    assert not publish_files(REPO, lambda _: Contents(sources), message="New").changed
    assert hub.writes == []


def test_files_of_others_stay_and_can_be_read(hub: LoopbackHub) -> None:
    hub.put(REPO, {"README.md": b"Their words.", "theirs/notes.txt": b"n"})

    def wanted(remote: Remote) -> Contents:
        assert remote.commit == hub.head(REPO)
        assert {"README.md", "theirs/notes.txt"} <= remote.files.keys()
        assert remote.read("nothing.md") is None
        return Contents({"README.md": (remote.read("README.md") or b"") + b" Ours."})

    publish_files(REPO, wanted, message="New", private=False)
    assert hub.files(REPO) == {"README.md": b"Their words. Ours.", "theirs/notes.txt": b"n"}


def test_a_gitignore_leaves_nothing_out(hub: LoopbackHub) -> None:
    hub.put(REPO, {".gitignore": b"*.parquet\n*.yaml\n"})
    publish()
    assert hub.files(REPO).keys() - NEW.keys() == {".gitignore"}


def test_files_are_listed_to_the_last_page(hub: LoopbackHub) -> None:
    hub.page_size = 2
    with_old_version(hub)
    publish()
    assert hub.files(REPO) == dict(NEW)
    assert not publish().changed


def test_what_is_there_is_not_uploaded_again(hub: LoopbackHub) -> None:
    with_old_version(hub)
    hub.fail("POST .*/commit/", 500, times=3)
    publish()
    uploads = [request.path for request in hub.requests if request.method == "PUT"]
    assert len(uploads) == len(set(uploads)) == 3


def test_progress_is_told(hub: LoopbackHub) -> None:
    told = io.StringIO()
    hub.fail("POST .*/commit/", 503)
    publish(reporter=Reporter(stream=told))
    assert "uploading 6 files: 1 of 1 MB" in told.getvalue()
    assert "is in trouble (HTTP 503: injected by the test). Trying again in 1 s." in told.getvalue()


def test_a_tag_that_names_something_else_is_refused_first(hub: LoopbackHub) -> None:
    old = with_old_version(hub)
    said = refusal(hub, tag="v1")
    assert f"The tag 'v1' of {REPO} names another version already, commit {old[:7]}." in said
    assert hub.files(REPO) == dict(OLD)
    publish(tag=None)
    assert "names another version" in refusal(hub, tag="v1")  # though the files are there


def test_a_public_repository_is_not_taken_for_a_private_one(hub: LoopbackHub) -> None:
    with_old_version(hub)
    before = len(hub.writes)
    with pytest.raises(HubError, match="is public already") as error:
        publish_files(REPO, new_version, message="New", private=True)
    assert f"{hub.url}/datasets/{REPO}/settings" in str(error.value)
    assert hub.writes[before:] == []


def test_what_the_caller_refuses_makes_no_repository(hub: LoopbackHub) -> None:
    def wanted(remote: Remote) -> Contents:
        raise RegforgeError("Not these.")

    with pytest.raises(RegforgeError, match="Not these"):
        publish_files(REPO, wanted, message="New")
    assert hub.writes == []


def test_a_file_that_cannot_be_read(hub: LoopbackHub, tmp_path: Path) -> None:
    with_old_version(hub)
    missing = tmp_path / "gone.parquet"
    for name in ("data/train-0.parquet", "data/new.parquet"):
        wanted = Contents({name: missing})
        with pytest.raises(RegforgeError, match=r"gone\.parquet cannot be read"):
            publish_files(REPO, lambda _, w=wanted: w, message="N", private=False)
    assert hub.files(REPO) == dict(OLD)


def test_the_token_is_sent_where_unasked(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    publish()
    assert hub.files(REPO) == dict(NEW)


def test_with_a_token_that_may_only_read(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with_old_version(hub)
    monkeypatch.setenv("HF_TOKEN", hub.read_token)
    with pytest.raises(HubError, match=f"You may not write to {REPO}"):
        publish()
    with pytest.raises(HubError, match="You may not write to me/other"):
        publish_files("me/other", new_version, message="New")
    assert hub.files(REPO) == dict(OLD)
    assert hub.head("me/other") is None


def test_an_impossible_name_and_no_token(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HubError, match="no name of a Hub dataset"):
        publish_files("me/tea pots", new_version, message="New")
    monkeypatch.delenv("HF_TOKEN")
    assert "You are not logged in" in refusal(hub)
    assert hub.requests == []


def test_somebody_commits_at_the_same_time(hub: LoopbackHub) -> None:
    """The card is merged anew, into what they wrote."""
    with_old_version(hub)
    hub.on("POST .*/commit/", lambda: hub.put(REPO, {"README.md": b"Theirs.", "x.txt": b"x"}))

    def wanted(remote: Remote) -> Contents:
        merged = (remote.read("README.md") or b"").replace(b" Ours.", b"") + b" Ours."
        return Contents({**NEW, "README.md": merged}, delete=("data/train-2.parquet",))

    publish_files(REPO, wanted, message="New teapots", private=False, tag="v2")
    assert hub.files(REPO) == {**NEW, "README.md": b"Theirs. Ours.", "x.txt": b"x"}
    assert hub.history(REPO)[:2] == ["New teapots", "Somebody's commit"]
    assert hub.tags(REPO)["v2"] == hub.head(REPO)


def test_somebody_who_does_not_stop(hub: LoopbackHub) -> None:
    with_old_version(hub)
    hub.fail("POST .*/commit/", 412, times=math.inf)
    with pytest.raises(HubError, match="Somebody else changed me/teapots"):
        publish()
    assert sum("/commit/" in line for line in hub.writes) == commits.ATTEMPTS
    assert hub.files(REPO) == dict(OLD)


def test_somebody_takes_the_tag(hub: LoopbackHub) -> None:
    old = with_old_version(hub)
    hub.on("POST .*/tag/", lambda: hub.tag(REPO, "v2", old))
    with pytest.raises(HubError, match="'v2' of me/teapots names another version"):
        publish()
    assert hub.tags(REPO)["v2"] == old


def test_a_commit_on_top_of_ours_is_not_tagged(hub: LoopbackHub) -> None:
    with_old_version(hub)
    hub.on("GET .*/refs$", lambda: None)
    hub.on("GET .*/refs$", lambda: hub.put(REPO, {"README.md": b"Theirs."}))
    done = publish()
    assert hub.files(REPO)["README.md"] == b"Theirs."
    assert hub.tags(REPO)["v2"] == done.commit
    assert hub.files(REPO, "v2") == dict(NEW)


def test_somebody_makes_the_repository(hub: LoopbackHub) -> None:
    hub.on("POST /api/repos/create", lambda: hub.create(REPO))
    publish()
    assert hub.files(REPO) == dict(NEW)


def test_many_files_appear_on_main_at_once(hub: LoopbackHub) -> None:
    many = {f"data/{number:03}.txt": b"%d" % number for number in range(300)}
    done = publish_files(REPO, lambda _: Contents(many), message="Many", tag="v1")
    assert hub.files(REPO) == many
    assert hub.history(REPO) == ["Many", "initial commit"]
    assert (done.uploaded, done.pull_request) == (300, None)


def test_a_pull_request_others_can_merge(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with_old_version(hub)
    monkeypatch.setenv("HF_TOKEN", hub.read_token)  # whoever may merge does not need to ask
    done = publish(tag=None, create_pr=True)
    assert hub.files(REPO) == dict(OLD)
    assert hub.files(REPO, "refs/pr/1") == dict(NEW)
    assert done.pull_request == f"{hub.url}/datasets/{REPO}/discussions/1"
    assert done.commit == hub.repository(REPO).refs["refs/pr/1"]  # type: ignore[union-attr]

    hub.requests.clear()
    assert publish(tag=None, create_pr=True) == done
    assert hub.writes == []


def test_a_pull_request_cannot_be_tagged(hub: LoopbackHub) -> None:
    assert "cannot be tagged" in refusal(hub, create_pr=True)
    assert hub.requests == []


def test_a_pull_request_whose_answer_was_lost_is_not_made_twice(hub: LoopbackHub) -> None:
    with_old_version(hub)
    hub.fail("POST .*/commit/", "cut", after=True)
    done = publish(tag=None, create_pr=True)
    assert done.pull_request == f"{hub.url}/datasets/{REPO}/discussions/1"
    assert len(hub.pull_requests(REPO)) == 1


def test_a_pull_request_that_holds_something_else_is_left_alone(hub: LoopbackHub) -> None:
    with_old_version(hub)
    publish_files(
        REPO,
        lambda _: Contents({"a.txt": b"a"}),
        message="New teapots",
        private=False,
        create_pr=True,
    )
    done = publish(tag=None, create_pr=True)
    assert done.pull_request == f"{hub.url}/datasets/{REPO}/discussions/2"
    assert hub.files(REPO, "refs/pr/2") == dict(NEW)


def test_the_hub_is_left_alone_if_asked(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(commits, "sleep", waits.append)
    hub.fail("POST .*/commit/", 429, headers={"Retry-After": "17"})
    hub.fail("POST .*/commit/", 500, times=2)
    publish()
    assert waits == [17, 2, 4]
    assert hub.files(REPO) == dict(NEW)
    hub.fail("GET .*/refs", 429, headers={"Retry-After": "4000"})
    with pytest.raises(HubError, match="takes no more requests") as error:
        publish()
    assert re.search("in 4000 seconds", str(error.value))
