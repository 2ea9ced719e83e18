"""The report page in a real browser, which cannot reach any network."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, Page, needs_chromium
from report_samples import image_row, make_image

from regforge.dataset.report import ReportData, summarize, write_report
from regforge.dataset.store import Rejection, thumbnail
from regforge.records import ImageRow, image_id

pytestmark = [pytest.mark.slow, needs_chromium]

HOSTILE = (
    "<img src=x onerror=\"document.title='pwned'\">",
    "</script><script>document.title='pwned'</script>",
    "<!--<script>",
    "]]>{{ 7 * 7 }} \u2028 \u2029 &lt;b&gt;",
    "<img src='http://example.com/spy.png'>",
    "<link rel=stylesheet href=//example.com/x.css><iframe src=javascript:alert(1)>",
)
COLORS = ("red", "blue", "green")
PLACES = ("on a beach", "in a cave", "in a forest", "by a lake")
DIGEST = "3f2a9c01b7de" + 52 * "0"


def make_rows() -> list[ImageRow]:
    """36 images: every colour in every place three times, the first six with hostile captions."""
    rows = []
    for number in range(36):
        slots = {"color": COLORS[number % 3], "background": PLACES[number // 3 % 4]}
        text = f"a photo of a {slots['color']} owl {slots['background']}"
        rows.append(
            image_row(
                number,
                text=text if number >= len(HOSTILE) else f"{text} {HOSTILE[number]}",
                prompt_set="against" if number % 4 == 0 else "amplify",
                slots=slots,
                reference="00.png" if number % 4 == 0 else None,
                scores={"alignment": 0.25, "duplicate_distance": float(number)},
            )
        )
    return rows


ROWS = make_rows()


def make_audit() -> dict[str, Any]:
    """An audit with every grade; one check shows images, one hostile captions."""
    checks = [
        ("near duplicates", "look", [f"{ROWS[7].id} {ROWS[8].id}", f"{ROWS[7].id} gone-000001"]),
        ("identifier", "bad", list(HOSTILE)),
        ("captions", "good", []),
        ("subject copies", "unknown", []),
        ("slot coverage", "good", []),
        ("slot pairs", "good", []),
    ]
    slot = {"distinct": 3, "unused": 1, "without": 2, "evenness": 0.75, "top_share": 0.5}
    numbers: dict[str, Any] = {
        "slot coverage": {"slots": {text: slot | {"top": text} for text in HOSTILE}},
        "slot pairs": {"dependence": {f"{HOSTILE[0]}, {HOSTILE[1]}": 0.25}},
    }
    return {
        "dataset": HOSTILE[1],
        "grade": "bad",
        "verdict": f"not fit for training as it is: {HOSTILE[1]}",
        "checks": [
            {
                "name": name,
                "grade": grade,
                "finding": f"{HOSTILE[0]} found",
                "advice": f"{HOSTILE[1]} advised" * (grade != "good"),
                "numbers": numbers.get(name, {}),
                "examples": examples,
            }
            for name, grade, examples in checks
        ],
    }


AUDIT = make_audit()


def write(path: Path, rows: Sequence[ImageRow], **more: Any) -> str:
    small = thumbnail(make_image("red"), 160)
    thumbnails = {row.id: small for row in rows}
    data = ReportData("owl-reg", summarize(rows), rows, thumbnails, **more)
    write_report(path, data)
    return path.as_uri()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    refused = [
        Rejection(image_id(DIGEST, 40 + n), 40 + n, HOSTILE[n], (f"{HOSTILE[n]} refused",), 3, None)
        for n in range(len(HOSTILE))
    ]
    copy = Rejection(
        image_id(DIGEST, 60),
        60,
        "a copy",
        (f"duplicate of {ROWS[7].id} (2 bits)",),
        3,
        thumbnail(make_image("blue"), 96),
    )
    ledger = [
        {"stage": "prompts", "item": text, "reason": text, "raw": text, "time": 1.0}
        for text in HOSTILE
    ]
    path = tmp_path_factory.mktemp("report") / "report.html"
    return write(path, ROWS, rejected=[*refused, copy], ledger=ledger, audit=AUDIT)


@pytest.fixture
def open_page(browser: Browser, url: str) -> Callable[[str], Page]:
    return lambda address="": Page(browser, url + address)


OpenPage = Callable[..., Page]


def ids_where(condition: Callable[[ImageRow], bool]) -> set[str]:
    return {row.id for row in ROWS if condition(row)}


def test_page_loads_quietly_and_asks_the_network_for_nothing(open_page: OpenPage) -> None:
    page = open_page()
    for view in ("audit", "coverage", "duplicates", "refused", "time", "ledger", "gallery"):
        page.click(f".views a[data-view={view}]")
        page.wait_until(f"!document.getElementById('{view}').hidden")
    page.click("#grid .tile")
    page.wait_until("document.getElementById('lightbox').open")
    assert {request.partition(":")[0] for request in page.requests()} <= {"file", "data"}
    assert page.complaints() == []
    assert page.ids() == {row.id for row in ROWS}


def test_the_policy_stops_what_the_page_itself_would_not_load(open_page: OpenPage) -> None:
    page = open_page()
    page.js("document.body.append(Object.assign(new Image(), {src: 'http://example.com/spy.png'}))")
    page.js(
        "document.body.insertAdjacentHTML('beforeend', "
        '\'<img src=x onerror="document.title=1"><p style="color:red">\')'
    )
    page.wait_until("true")
    assert page.text("title") == "owl-reg · regforge report"
    blocked = json.dumps(page.complaints())
    assert "spy.png" in blocked
    assert "Content Security Policy" in blocked
    assert "inline event handler" in blocked


def test_hostile_captions_are_inert_text(open_page: OpenPage) -> None:
    page = open_page()
    for row in ROWS[: len(HOSTILE)]:
        page.click(f"[data-id='{row.id}']")
        page.wait_until("document.getElementById('lightbox').open")
        assert page.text("#lightbox-text") == row.text
        page.press("Escape")
        page.wait_until("!document.getElementById('lightbox').open")
    assert page.text("title") == "owl-reg · regforge report"
    made_of_text = "iframe, link[rel=stylesheet], img[src^=http], img[src=x], main script"
    assert page.js(f"document.querySelectorAll({made_of_text!r}).length") == 0
    assert page.js("document.scripts.length") == 2
    assert page.text("#ledger").count("document.title='pwned'") >= 4
    assert page.text("#refused").count("document.title='pwned'") >= 4
    assert page.text("#audit").count("document.title='pwned'") >= 4
    assert page.complaints() == []


def test_filters_by_set_and_slot_leave_the_right_images(open_page: OpenPage) -> None:
    page = open_page()
    page.js(
        "[...document.querySelectorAll('.facet label')]"
        ".find(l => l.title === 'against').querySelector('input').click()"
    )
    assert page.ids() == ids_where(lambda row: row.prompt_set == "against")
    assert page.text("#count") == "9 of 36 images"
    page.js(
        "[...document.querySelectorAll('.facet label')]"
        ".find(l => l.title === 'blue').querySelector('input').click()"
    )
    wanted = ids_where(lambda r: r.prompt_set == "against" and r.slots["color"] == "blue")
    assert page.ids() == wanted
    assert page.text("#count") == f"{len(wanted)} of 36 images"
    # What could be chosen next is counted under the filters there are.
    counts = page.js(
        "Object.fromEntries([...document.querySelectorAll('.facet label')]"
        ".map(l => [l.title, Number(l.querySelector('.num').textContent)]))"
    )
    assert counts["against"] == len(wanted)
    assert counts["amplify"] == len(ids_where(lambda r: r.slots["color"] == "blue")) - len(wanted)
    assert counts["red"] == len(
        ids_where(lambda r: r.prompt_set == "against" and r.slots["color"] == "red")
    )
    assert page.js("location.hash") == "#set=against&slot.color=blue"
    page.click("#clear")
    assert page.ids() == {row.id for row in ROWS}
    assert page.js("location.hash") in ("", "#")


def test_the_address_brings_the_filters_back(open_page: OpenPage) -> None:
    page = open_page("#slot.color=red&slot.color=green&slot.background=in+a+cave&q=photo%20owl")
    wanted = ids_where(
        lambda r: r.slots["color"] in ("red", "green") and r.slots["background"] == "in a cave"
    )
    assert page.ids() == wanted
    assert len(wanted) == 6
    assert page.js("document.getElementById('query').value") == "photo owl"
    assert page.js("document.querySelectorAll('.facet input:checked').length") == 3


def test_search_and_reference_filter(open_page: OpenPage) -> None:
    page = open_page()
    page.js(
        "(() => { const q = document.getElementById('query'); q.value = 'LAKE red';"
        "q.dispatchEvent(new Event('input')); })()"
    )
    assert page.ids() == ids_where(lambda r: "lake" in r.text and "red" in r.text)
    page.click("#reference")
    wanted = ids_where(lambda r: "lake" in r.text and "red" in r.text and bool(r.reference))
    assert page.ids() == wanted
    page.js(
        "(() => { const q = document.getElementById('query'); q.value = 'no such words';"
        "q.dispatchEvent(new Event('input')); })()"
    )
    assert page.ids() == set()
    assert page.js("!document.getElementById('nothing').hidden")


def test_lightbox_shows_every_column_and_moves_with_the_keyboard(open_page: OpenPage) -> None:
    page = open_page("#slot.color=blue")
    blue = [row for row in ROWS if row.slots["color"] == "blue"]
    page.click(f"[data-id='{blue[2].id}']")
    page.wait_until("document.getElementById('lightbox').open")
    shown: Mapping[str, str] = page.js(
        "Object.fromEntries([...document.querySelectorAll('#metadata tr')]"
        ".map(r => [r.cells[0].textContent, r.cells[1].textContent]))"
    )
    columns = {field.name for field in fields(ImageRow)} - {"image", "slots", "scores"}
    parts = {"slots.color", "slots.background", "scores.alignment", "scores.duplicate_distance"}
    assert shown.keys() == columns | parts
    assert shown["seed"] == str(blue[2].seed)
    assert shown["slots.background"] == blue[2].slots["background"]
    assert shown["guidance_scale"] == "7.1"
    assert page.text("#position") == f"3 of {len(blue)}"

    page.press("ArrowRight")
    page.wait_until("document.getElementById('position').textContent.startsWith('4')")
    assert page.text("#lightbox-text") == blue[3].text
    assert f"image={blue[3].id}" in page.js("location.hash")
    page.press("ArrowLeft")
    page.press("ArrowLeft")
    page.wait_until("document.getElementById('position').textContent.startsWith('2')")
    page.press("Escape")
    page.wait_until("location.hash === '#slot.color=blue'")
    assert not page.js("document.getElementById('lightbox').open")


def test_an_address_with_an_image_opens_it(open_page: OpenPage) -> None:
    page = open_page(f"#image={ROWS[9].id}")
    page.wait_until("document.getElementById('lightbox').open")
    assert page.text("#lightbox-text") == ROWS[9].text


def test_copy_buttons_copy_even_without_the_clipboard_api(open_page: OpenPage) -> None:
    page = open_page(f"#image={ROWS[9].id}")
    page.js(
        "document.addEventListener('copy', () => {"
        "const a = document.activeElement; window.copied = a.value ?? String(getSelection()); })"
    )
    page.js("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.click("#copy-text")
    page.wait_until(f"window.copied === {json.dumps(ROWS[9].text)}")
    page.click("#copy-seed")
    page.wait_until(f"window.copied === {json.dumps(str(ROWS[9].seed))}")
    assert page.js("document.querySelector('textarea')") is None


def test_bars_show_the_real_counts_and_lead_to_their_images(open_page: OpenPage) -> None:
    page = open_page("#view=coverage")
    bars = page.js(
        "[...document.querySelectorAll('.chart .row')]"
        ".map(r => [r.title, Number(r.querySelector('.num').textContent)])"
    )
    assert dict(bars) == (
        {"amplify": 27, "against": 9} | dict.fromkeys(COLORS, 12) | dict.fromkeys(PLACES, 9)
    )
    page.click(".row[title='in a cave']")
    page.wait_until("!document.getElementById('gallery').hidden")
    assert page.ids() == ids_where(lambda r: r.slots["background"] == "in a cave")
    assert page.js("location.hash") == "#slot.background=in+a+cave"
    page.js("history.back()")
    page.wait_until("!document.getElementById('coverage').hidden")


def test_heatmap_counts_pairs_of_any_two_slots(open_page: OpenPage) -> None:
    page = open_page("#view=coverage")
    read = (
        "Object.fromEntries([...document.querySelectorAll('#heat td[title]')]"
        ".map(c => [c.title, Number(c.textContent)]))"
    )
    for first, second in (
        ("color", "background"),
        ("prompt set", "color"),
        ("color", "prompt set"),
    ):
        for box, label in (("axis-a", first), ("axis-b", second)):
            page.js(
                f"(() => {{ const s = document.getElementById('{box}');"
                f"s.value = [...s.options].findIndex(o => o.text === '{label}');"
                "s.dispatchEvent(new Event('change')); })()"
            )
        of: Mapping[str, Callable[[ImageRow], str | None]] = {
            "prompt set": lambda row: row.prompt_set,
            "color": lambda row: row.slots["color"],
            "background": lambda row: row.slots["background"],
        }
        pairs = {
            (a, b): sum(of[first](row) == a and of[second](row) == b for row in ROWS)
            for a in {of[first](row) for row in ROWS}
            for b in {of[second](row) for row in ROWS}
        }
        assert page.js(read) == {f"{a} + {b}: {n}": n for (a, b), n in pairs.items()}
    page.js("document.querySelector(\"#heat td[title^='blue + against']\").click()")
    assert page.ids() == ids_where(
        lambda r: r.prompt_set == "against" and r.slots["color"] == "blue"
    )


def test_duplicates_stand_side_by_side(open_page: OpenPage) -> None:
    page = open_page("#view=duplicates")
    assert page.js("document.querySelectorAll('#closest .pair').length") > 0
    refused = page.js(
        "[...document.querySelectorAll('#copies .pair')]"
        ".map(p => [p.querySelector('.tile').dataset.id, p.querySelector('code').textContent])"
    )
    assert refused == [[ROWS[7].id, image_id(DIGEST, 60)]]


def test_the_audit_shows_grades_in_words_and_what_was_found(open_page: OpenPage) -> None:
    page = open_page("#view=audit")
    assert page.js("!document.getElementById('audit').hidden")
    assert page.text(".views a[data-view=audit] span") == "2"
    assert page.text(".verdict") == f"Not fit for training as it is: {HOSTILE[1]}."
    lines = page.js(
        "[...document.querySelectorAll('.checks tbody tr')]"
        ".map(r => [r.cells[1].innerText, r.querySelector('.grade').innerText.split('\\n').at(-1)])"
    )
    assert [(name.lower(), grade) for name, grade in lines] == [
        (check["name"], check["grade"]) for check in AUDIT["checks"]
    ]
    shown = page.js("[...document.querySelectorAll('.checks .examples li')].map(e => e.innerText)")
    assert shown[2:] == list(HOSTILE)
    slots = page.js("[...document.querySelectorAll('#audit .figures th[scope=row]')].length")
    assert slots == len(HOSTILE) + 1
    made_of_text = "#audit :is(script, img, iframe, link, b)"
    assert page.js(f"document.querySelectorAll('{made_of_text}').length") == 0
    assert page.complaints() == []


def test_examples_of_the_audit_lead_to_their_images(open_page: OpenPage) -> None:
    page = open_page("#view=audit")
    links = page.js("[...document.querySelectorAll('.examples a')].map(a => a.innerText)")
    assert links == [ROWS[7].id, ROWS[8].id, ROWS[7].id]  # what is not in the gallery is no link
    page.js("document.querySelectorAll('.examples a')[1].click()")
    page.wait_until("document.getElementById('lightbox').open")
    assert page.text("#lightbox-text") == ROWS[8].text
    page.press("Escape")
    page.wait_until("location.hash === '#view=audit'")
    assert page.js("!document.getElementById('audit').hidden")


@pytest.mark.parametrize("width", [360, 1400])
def test_the_audit_fits_the_window(open_page: OpenPage, width: int) -> None:
    page = open_page("#view=audit")
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    page.command("Emulation.setDeviceMetricsOverride", **size)
    page.wait_until(f"innerWidth === {width}")
    assert page.js("document.querySelector('.checks').getBoundingClientRect().right") <= width
    assert page.js("document.documentElement.scrollWidth") <= width


def test_many_images_are_drawn_as_one_scrolls(browser: Browser, tmp_path: Path) -> None:
    rows = [image_row(n, text=f"owl number {n}") for n in range(400)]
    page = Page(browser, write(tmp_path / "many.html", rows))
    assert len(page.ids()) == 120
    page.js("document.getElementById('more').scrollIntoView()")
    page.wait_until("document.querySelectorAll('#grid .tile').length === 240")
    page.js("document.getElementById('more').scrollIntoView()")
    page.js("document.getElementById('more').scrollIntoView()")
    page.wait_until("document.querySelectorAll('#grid .tile').length > 240")
    assert page.text("#count") == "400 images"


def test_an_empty_run_has_a_page_too(browser: Browser, tmp_path: Path) -> None:
    page = Page(browser, write(tmp_path / "empty.html", []) + "#view=audit")
    assert page.text(".lead") == "No images yet."
    assert page.js("document.querySelector('#audit .empty').innerText") == "No audit was made."
    assert page.complaints() == []
