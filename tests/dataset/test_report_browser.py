"""The report page in a real browser, which cannot reach any network."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, Page, needs_chromium
from report_samples import DIGEST, image_row, make_image

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
LIGHTBOX = "document.getElementById('lightbox').open"


class ReportPage(Page):
    """A page of the report."""

    def pairs(self, selector: str, key: str, value: str) -> dict[str, Any]:
        return dict(self.each(selector, f"[{key}, {value}]"))

    def tick(self, value: str) -> None:
        """Set or clear a filter."""
        self.js(f"document.querySelector('.facet label[title={value}] input').click()")

    def search(self, words: str) -> None:
        query = "const q = document.getElementById('query');"
        self.js(f"{{ {query} q.value = '{words}'; q.dispatchEvent(new Event('input')) }}")

    def open_image(self, row: ImageRow) -> None:
        self.click(f"[data-id='{row.id}']")
        self.wait_until(LIGHTBOX)

    def wait_for_view(self, name: str) -> None:
        self.wait_until(f"!document.getElementById('{name}').hidden")


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
def open_page(browser: Browser, url: str) -> Callable[[str], ReportPage]:
    return lambda address="": ReportPage(browser, url + address)


OpenPage = Callable[..., ReportPage]


def ids_where(condition: Callable[[ImageRow], bool]) -> set[str]:
    return {row.id for row in ROWS if condition(row)}


def test_page_loads_quietly_and_asks_the_network_for_nothing(open_page: OpenPage) -> None:
    page = open_page()
    for view in ("audit", "coverage", "duplicates", "refused", "time", "ledger", "gallery"):
        page.click(f".views a[data-view={view}]")
        page.wait_for_view(view)
    page.open_image(ROWS[0])
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
    for words in ("spy.png", "Content Security Policy", "inline event handler"):
        assert words in blocked


def test_hostile_captions_are_inert_text(open_page: OpenPage) -> None:
    page = open_page()
    for row in ROWS[: len(HOSTILE)]:
        page.open_image(row)
        assert page.text("#lightbox-text") == row.text
        page.press("Escape")
        page.wait_until(f"!{LIGHTBOX}")
    assert page.text("title") == "owl-reg · regforge report"
    made_of_text = "iframe, link[rel=stylesheet], img[src^=http], img[src=x], main script"
    assert page.each(made_of_text, "e.outerHTML") == []
    assert page.js("document.scripts.length") == 2
    for view in ("ledger", "refused", "audit"):
        assert page.text(f"#{view}").count("document.title='pwned'") >= 4
    assert page.complaints() == []


def test_filters_by_set_and_slot_leave_the_right_images(open_page: OpenPage) -> None:
    page = open_page()
    page.tick("against")
    assert page.ids() == ids_where(lambda row: row.prompt_set == "against")
    assert page.text("#count") == "9 of 36 images"
    page.tick("blue")
    wanted = ids_where(lambda r: r.prompt_set == "against" and r.slots["color"] == "blue")
    assert page.ids() == wanted
    assert page.text("#count") == f"{len(wanted)} of 36 images"
    # What could be chosen next is counted under the filters there are.
    counts = page.pairs(".facet label", "e.title", "Number(e.querySelector('.num').textContent)")
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
    assert len(page.each(".facet input:checked", "1")) == 3


def test_search_and_reference_filter(open_page: OpenPage) -> None:
    page = open_page()
    page.search("LAKE red")
    assert page.ids() == ids_where(lambda r: "lake" in r.text and "red" in r.text)
    page.click("#reference")
    wanted = ids_where(lambda r: "lake" in r.text and "red" in r.text and bool(r.reference))
    assert page.ids() == wanted
    page.search("no such words")
    assert page.ids() == set()
    page.wait_for_view("nothing")


def test_lightbox_shows_every_column_and_moves_with_the_keyboard(open_page: OpenPage) -> None:
    page = open_page("#slot.color=blue")
    blue = [row for row in ROWS if row.slots["color"] == "blue"]
    page.open_image(blue[2])
    shown = page.pairs("#metadata tr", "e.cells[0].textContent", "e.cells[1].textContent")
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
    assert not page.js(LIGHTBOX)


def test_an_address_opens_an_image_and_texts_are_copied_without_an_api(open_page: OpenPage) -> None:
    page = open_page(f"#image={ROWS[9].id}")
    page.wait_until(LIGHTBOX)
    assert page.text("#lightbox-text") == ROWS[9].text
    page.js(
        "document.addEventListener('copy', () => {"
        "const a = document.activeElement; window.copied = a.value ?? String(getSelection()); })"
    )
    page.js("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    for name in ("text", "seed"):
        page.click(f"#copy-{name}")
        page.wait_until(f"window.copied === {json.dumps(str(getattr(ROWS[9], name)))}")
    assert page.js("document.querySelector('textarea')") is None


def test_bars_show_the_real_counts_and_lead_to_their_images(open_page: OpenPage) -> None:
    page = open_page("#view=coverage")
    assert page.pairs(".chart .row", "e.title", "Number(e.querySelector('.num').textContent)") == (
        {"amplify": 27, "against": 9} | dict.fromkeys(COLORS, 12) | dict.fromkeys(PLACES, 9)
    )
    page.click(".row[title='in a cave']")
    page.wait_for_view("gallery")
    assert page.ids() == ids_where(lambda r: r.slots["background"] == "in a cave")
    assert page.js("location.hash") == "#slot.background=in+a+cave"
    page.js("history.back()")
    page.wait_for_view("coverage")


def test_heatmap_counts_pairs_of_any_two_slots(open_page: OpenPage) -> None:
    page = open_page("#view=coverage")
    axes: Mapping[str, Callable[[ImageRow], str | None]] = {
        "prompt set": lambda row: row.prompt_set,
        "color": lambda row: row.slots["color"],
        "background": lambda row: row.slots["background"],
    }
    for first, second in (
        ("color", "background"),
        ("prompt set", "color"),
        ("color", "prompt set"),
    ):
        for box, label in (("axis-a", first), ("axis-b", second)):
            page.js(
                f"{{ const s = document.getElementById('{box}');"
                f"s.value = [...s.options].findIndex(o => o.text === '{label}');"
                "s.dispatchEvent(new Event('change')) }"
            )
        counts = Counter((axes[first](row), axes[second](row)) for row in ROWS)
        expected = {f"{a} + {b}": counts[a, b] for a, _ in counts for _, b in counts}
        assert page.pairs("#heat td[title]", "e.title", "Number(e.textContent)") == {
            f"{pair}: {count}": count for pair, count in expected.items()
        }
    page.js("document.querySelector(\"#heat td[title^='blue + against']\").click()")
    assert page.ids() == ids_where(
        lambda r: r.prompt_set == "against" and r.slots["color"] == "blue"
    )


def test_duplicates_stand_side_by_side(open_page: OpenPage) -> None:
    page = open_page("#view=duplicates")
    assert page.each("#closest .pair", "1")
    shown = "e.querySelector('.tile').dataset.id", "e.querySelector('code').textContent"
    assert page.pairs("#copies .pair", *shown) == {ROWS[7].id: image_id(DIGEST, 60)}


def test_the_audit_shows_grades_in_words_and_what_was_found(open_page: OpenPage) -> None:
    page = open_page("#view=audit")
    page.wait_for_view("audit")
    assert page.text(".views a[data-view=audit] span") == "2"
    assert page.text(".verdict") == f"Not fit for training as it is: {HOSTILE[1]}."
    grade = "e.querySelector('.grade').innerText.split('\\n').at(-1)"
    lines = page.pairs(".checks tbody tr", "e.cells[1].innerText.toLowerCase()", grade)
    assert lines == {check["name"]: check["grade"] for check in AUDIT["checks"]}
    assert page.each(".checks .examples li", "e.innerText")[2:] == list(HOSTILE)
    assert len(page.each("#audit .figures th[scope=row]", "1")) == len(HOSTILE) + 1
    assert page.each("#audit :is(script, img, iframe, link, b)", "e.outerHTML") == []
    assert page.complaints() == []


def test_examples_of_the_audit_lead_to_their_images(open_page: OpenPage) -> None:
    page = open_page("#view=audit")
    links = page.each(".examples a", "e.innerText")
    assert links == [ROWS[7].id, ROWS[8].id, ROWS[7].id]  # what is not in the gallery is no link
    page.js("document.querySelectorAll('.examples a')[1].click()")
    page.wait_until(LIGHTBOX)
    assert page.text("#lightbox-text") == ROWS[8].text
    page.press("Escape")
    page.wait_until("location.hash === '#view=audit'")
    page.wait_for_view("audit")


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
