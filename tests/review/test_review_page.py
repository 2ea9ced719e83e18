"""The review page in a real browser: 300 images, the keyboard, two tabs, a killed server."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, needs_chromium
from made_rows import DIGEST, SLOTS, make_row
from review_pages import ReviewPage, many, served, write_run

from regforge.dataset.decisions import FILE, Decision, DecisionFile, Review
from regforge.dataset.store import SHARD_SIZE, Store

pytestmark = [pytest.mark.slow, needs_chromium]

ROWS = many(300)
HOSTILE = (
    "<img src=x onerror=\"document.title='pwned'\">",
    "</script><script>document.title='pwned'</script>",
    "<img src='http://example.com/spy.png'>",
    "\u202e{{ 7 * 7 }} \u2028 &lt;b&gt; \" onload='document.title=1'",
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "teapots", ROWS)


@pytest.fixture
def page(run: Path, browser: Browser) -> Iterator[ReviewPage]:
    with served(run) as address:
        yield ReviewPage(browser, address)


def decisions(run: Path) -> list[Decision]:
    return list(DecisionFile(run / FILE).read())


def rejected(run: Path) -> dict[str, str]:
    review = Review.of(run)
    return {each.id: each.reason for some in review.rejected.values() for each in some}


def test_the_keyboard_alone(page: ReviewPage, run: Path) -> None:
    assert 0 < len(page.each("#sheet .cell", "e.dataset.id")) < 150
    assert "0 of 300 decided" in page.text("#progress")
    page.press("k")
    page.press("r")
    page.write("1")  # the first reason
    page.written("1 rejected")
    page.press("r")
    page.write("two spouts")
    page.press("Enter")
    page.written("2 rejected")
    page.press("s")
    page.written("3 rejected")
    made = decisions(run)
    assert [(each.do, each.id) for each in made] == [
        (do, row.id) for do, row in zip(("keep", *["reject"] * 3), ROWS[:4], strict=True)
    ]
    assert [each.reason for each in made] == [
        *("", "looks like the subject", "two spouts", "another seed")
    ]
    assert {each.image for each in made} == {ROWS[0].image_digest}
    page.wait_for_state(ROWS[2].id, "reject")
    page.press("u")
    page.written()
    page.wait_for_state(ROWS[3].id, "open")
    assert rejected(run) == {ROWS[1].id: "looks like the subject", ROWS[2].id: "two spouts"}
    # A screen reader is told where it is and what is so.
    active = "document.getElementById(document.activeElement.getAttribute('aria-activedescendant'))"
    assert page.js(f"{active}.dataset.id") == ROWS[3].id
    page.press("ArrowLeft")
    assert "Rejected two spouts" in page.js(f"{active}.getAttribute('aria-label')")
    page.press("Enter")
    page.wait_until("!document.getElementById('single').hidden")
    assert page.text("#caption") == ROWS[2].text
    page.wait_until("document.getElementById('large').naturalWidth > 0")
    page.wait_until("document.querySelector('#beside img[src^=photo]')?.naturalWidth > 0")
    page.press("Escape")
    assert page.js("document.activeElement.id") == "grid"
    assert page.complaints() == []


def test_many_at_once(page: ReviewPage, run: Path) -> None:
    page.press("x")
    page.click(f"[data-id='{ROWS[4].id}']", shift=True)
    page.press("ArrowRight", shift=True)
    assert "6 selected" in page.text("#count")
    page.press("r")
    page.press("Enter")  # no reason
    page.written("6 rejected")
    assert rejected(run) == {row.id: "" for row in ROWS[:6]}
    page.press("u")
    page.written("0 rejected")
    assert rejected(run) == {}
    assert len(decisions(run)) == 7, "taken back as one"
    page.js("document.querySelector('[name=color]').value = 'teal'")
    page.js("document.getElementById('form').dispatchEvent(new Event('input'))")
    assert page.text("#count").startswith("100 shown")
    page.press("/")
    page.write('"number 1"')
    page.press("Enter")
    wanted = {row.id for row in ROWS if row.slots["color"] == "teal" and "number 1" in row.text}
    page.wait_until(
        f"document.getElementById('count').textContent.startsWith('{len(wanted)} shown')"
    )
    page.click("#reject-all")
    page.click("#sure [value=ok]")
    page.written(f"{len(wanted)} rejected")
    assert rejected(run) == dict.fromkeys(wanted, "number 1, teal")
    page.js("document.getElementById('state').value = 'open'")
    page.js("document.getElementById('form').dispatchEvent(new Event('input'))")
    assert page.text("#count").startswith("0 shown")


def test_captions(page: ReviewPage, run: Path) -> None:
    page.press("e")
    page.write("a photo of a green teapot")  # what was there is selected
    page.press("Enter", shift=True)
    page.wait_until("!document.querySelector('dialog[open]')")
    page.wait_for_state(ROWS[0].id, "caption")
    page.press("ArrowRight")
    page.press("e")
    page.write("a sks teapot")
    page.press("Enter")
    page.wait_until("document.getElementById('edit-error').textContent.includes('identifier')")
    page.js("document.getElementById('text').select()")
    page.write("a blue teapot")
    page.press("Enter")
    page.wait_until("!document.querySelector('dialog[open]')")
    corrected, redrawn = decisions(run)
    assert (corrected.text, corrected.redraw) == ("a photo of a green teapot", False)
    assert (redrawn.text, redrawn.redraw, redrawn.was) == ("a blue teapot", True, ROWS[1].text)


def test_two_tabs_agree(page: ReviewPage, run: Path, browser: Browser) -> None:
    address = page.js("location.href")
    other = ReviewPage(browser, address)
    other.press("k")
    other.press("k")
    page.command("Page.bringToFront")
    page.wait_for_state(ROWS[1].id, "keep")
    page.press("ArrowRight")
    page.press("r")
    page.press("Enter")
    page.written("1 rejected")
    other.command("Page.bringToFront")
    other.wait_for_state(ROWS[1].id, "reject")
    other.press("u")
    other.written("0 rejected")
    page.command("Page.bringToFront")
    page.wait_for_state(ROWS[1].id, "keep")
    assert [each.n for each in decisions(run)] == [1, 2, 3, 4]


def test_an_image_that_a_run_replaces_meanwhile(page: ReviewPage, run: Path) -> None:
    page.press("ArrowRight")
    page.press("e")
    rows = [ROWS[0], make_row(1, seed=77, image=make_row(9).image), *ROWS[2:SHARD_SIZE]]
    version = page.js("page.version")
    Store(run / "shards", SLOTS, DIGEST).write(0, rows, [])
    page.wait_until(f"page.version !== {json.dumps(version)}")
    page.write("a photo of a green teapot")
    page.press("Enter")
    page.wait_until("document.getElementById('edit-error').textContent.includes('replaced')")
    page.js("document.getElementById('edit').close()")
    page.press("k")  # the new one in its place
    page.written("1 kept")
    assert [(each.do, each.id) for each in decisions(run)] == [("keep", ROWS[1].id)]


def test_hostile_captions_are_inert(tmp_path: Path, browser: Browser) -> None:
    rows = [
        make_row(n, text=text, slots={"color": text, "background": None}, reference=text)
        for n, text in enumerate(HOSTILE)
    ]
    with served(write_run(tmp_path / "<b>hostile", rows)) as address:
        page = ReviewPage(browser, address)
        assert page.each("#sheet .cell span", "e.textContent") == list(HOSTILE)
        page.press("r")
        page.write(HOSTILE[0])
        page.press("Enter")
        page.written("1 rejected")
        page.press("Enter")
        for text in HOSTILE[1:]:
            assert page.text("#caption") == text
            page.press("ArrowRight")
        assert page.js("document.title") == "<b>hostile · regforge review"
        assert page.complaints() == []
        own = address.rpartition("/open")[0]
        assert {url.startswith((own, "data:")) for url in page.requests()} == {True}


def test_a_narrow_window_in_the_dark(page: ReviewPage) -> None:
    size = {"width": 380, "height": 700, "deviceScaleFactor": 1, "mobile": False}
    page.command("Emulation.setDeviceMetricsOverride", **size)
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    page.command("Emulation.setEmulatedMedia", features=dark)
    page.wait_until("document.querySelectorAll('#sheet .cell').length > 3")
    assert page.js("document.documentElement.scrollWidth <= innerWidth")
    assert page.js("getComputedStyle(document.body).backgroundColor") == "rgb(21, 19, 18)"
    page.press("Enter")
    page.wait_until("!document.getElementById('single').hidden")
    assert page.js("document.documentElement.scrollWidth <= innerWidth")


def start(run: Path) -> tuple[subprocess.Popen[str], str]:
    """The command in a process of its own, and the address that it says."""
    words = [sys.executable, "-m", "regforge", "review", str(run), "--no-open"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().split()[2]


def test_a_killed_server_loses_nothing_that_was_written(run: Path, browser: Browser) -> None:
    process, address = start(run)
    try:
        page = ReviewPage(browser, address)
        for number in range(40):
            page.press("k")
            if number == 10:
                page.written()
            if number == 20:
                os.kill(process.pid, signal.SIGKILL)
        page.wait_until("!document.getElementById('alert').hidden")
        page.written()
        shown = page.js("marks.size")
    finally:
        process.kill()
        process.wait()
    kept = decisions(run)
    assert 11 <= shown <= len(kept) < 40
    assert [each.id for each in kept] == [row.id for row in ROWS[: len(kept)]]
    with (run / FILE).open("a") as file:
        file.write('{"do": "keep", "id": "')  # cut off
    process, address = start(run)
    try:
        page = ReviewPage(browser, address)
        assert page.js("marks.size") == len(kept)
        page.press("s")
        page.written()
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    lines = [json.loads(line) for line in (run / FILE).read_text().splitlines()]
    assert [each["n"] for each in lines] == list(range(1, len(kept) + 2))
