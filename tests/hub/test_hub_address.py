"""How people name a repository."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regforge.hub import HubAddress

_NAME = st.from_regex(r"[\w-][\w.-]{0,10}", fullmatch=True)
_REVISION = st.from_regex(r"[^\s@]{1,12}", fullmatch=True)


@pytest.mark.parametrize(
    ("text", "repo_id", "revision"),
    [
        ("me/teapots", "me/teapots", None),
        ("me/teapots@v1", "me/teapots", "v1"),
        ("me/teapots@refs/pr/1", "me/teapots", "refs/pr/1"),
        ("datasets/me/teapots", "me/teapots", None),
        ("hf://datasets/me/teapots@v1", "me/teapots", "v1"),
        ("https://huggingface.co/datasets/me/teapots", "me/teapots", None),
        ("https://huggingface.co/datasets/me/teapots/tree/v1", "me/teapots", "v1"),
        (" me/tea.pots_2/ ", "me/tea.pots_2", None),
    ],
)
def test_what_is_an_address(text: str, repo_id: str, revision: str | None) -> None:
    assert HubAddress.parse(text) == HubAddress(repo_id, revision)


@pytest.mark.parametrize(
    "text", ["", "teapots", "./teapots", "../teapots", "a/b/c", "me/../x", "me/tea pots", "/me/x"]
)
def test_what_is_none(text: str) -> None:
    assert HubAddress.parse(text) is None


@given(_NAME, _NAME, st.none() | _REVISION)
def test_an_address_is_read_as_it_is_written(user: str, name: str, revision: str | None) -> None:
    address = HubAddress(f"{user}/{name}", revision)
    if revision is None or not revision.endswith("/"):
        assert HubAddress.parse(str(address)) == address


def test_another_revision() -> None:
    address = HubAddress("me/teapots", "v1")
    assert str(address.at("v2")) == "me/teapots@v2"
    assert address.at(None) is address
