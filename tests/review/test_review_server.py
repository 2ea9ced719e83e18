"""Who is let in to the review page, and what nobody gets."""

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from made_rows import make_rows
from review_pages import served, write_run

from regforge.dataset.decisions import FILE

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "teapots", make_rows(0, 1, 2))


@pytest.fixture
def address(run: Path) -> Iterator[str]:
    with served(run) as address:
        yield address


def test_strangers_stay_out(run: Path, address: str) -> None:
    own, port = address.rpartition("/open")[0], address.split(":")[2].split("/", maxsplit=1)[0]
    wanted = [{"do": "reject", "id": make_rows(0)[0].id}]
    for url, headers in [
        (own, {}),
        (f"{own}/images.json", {}),
        (f"{own}/wrong/", {}),
        (address, {"Host": f"evil.example:{port}"}),
        (address, {"Host": "127.0.0.1:1"}),
        (address, {"Host": "127.0.0.1"}),
        (f"{address}images.json", {"Origin": "http://evil.example"}),
        (f"{address}images.json", {"Origin": "null"}),
    ]:
        assert httpx.get(url, headers=headers).status_code == 403, (url, headers)
    post = f"{address}decisions"
    for headers in ({}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        assert httpx.post(post, json=wanted, headers=headers).status_code == 403
    mine = {"Origin": own}
    assert httpx.post(f"{own}/decisions", json=wanted, headers=mine).status_code == 403
    form = {**mine, "Content-Type": "text/plain"}
    assert httpx.post(post, content=b"[]", headers=form).status_code == 415
    halves = b'[{"do": "reject", "id": "x", "reason": "\\ud800"}]'
    for content in (b"{", b"[1]", b'[{"do": "burn", "id": "x"}]', b'[{"do": "keep"}]', halves):
        json = {**mine, "Content-Type": "application/json"}
        assert httpx.post(post, content=content, headers=json).status_code == 400
    with socket.create_connection(("127.0.0.1", int(port))) as stranger:
        stranger.sendall(f"GET * HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        assert b" 403 " in stranger.recv(100)
    unknown = [*wanted, {"do": "keep", "id": "nobody"}]
    assert httpx.post(post, json=unknown, headers=mine).status_code == 422
    assert not (run / FILE).exists()
    said = httpx.post(post, json=wanted, headers=mine).json()
    assert [each["do"] for each in said["decisions"]] == ["reject"]
    assert httpx.get(f"{address}decisions?after=1").json()["decisions"] == []


def test_nothing_else_is_served(run: Path, address: str) -> None:
    version = httpx.get(f"{address}images.json").json()["version"]
    good = httpx.get(f"{address}image/{version}/1")
    assert good.content == make_rows(1)[0].image
    assert "default-src 'none'" in good.headers["content-security-policy"]
    assert httpx.get(f"{address}thumbnail/{version}/1").headers["content-type"] == "image/webp"
    for path in (
        *("review.py", "review.html.j2", "recipe.yaml", "%2e%2e/recipe.yaml", "image/x/1"),
        *("..%2f..%2frecipe.yaml", f"image/{version}/3", f"image/{version}/-1", "photo/7"),
        *("decided/1", f"image/{version}/..%2f..%2f..%2fstate.json"),
    ):
        assert httpx.get(address + path).status_code in (403, 404), path


def test_what_a_run_has_drawn_since_is_shown(run: Path, address: str) -> None:
    from made_rows import DIGEST, SLOTS, make_row

    from regforge.dataset.store import Store

    before = httpx.get(f"{address}images.json").json()
    rows = [*make_rows(0, 1), make_row(2, seed=77, image=make_row(9).image)]
    Store(run / "shards", SLOTS, DIGEST).write(0, rows, [])
    now = httpx.get(f"{address}decisions").json()["version"]
    assert now != before["version"]
    assert httpx.get(f"{address}image/{before['version']}/2").status_code == 404
    assert httpx.get(f"{address}image/{now}/2").content == rows[2].image
