"""The report page without a browser: what it counts, and that nothing in it can break out."""

import base64
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from report_samples import DIGEST, image_row, make_image

from regforge.dataset import report_facts as facts
from regforge.dataset.report import ReportData, gather, write_report
from regforge.dataset.store import Rejection, Store
from regforge.journal import Journal
from regforge.records import ImageRow, image_id


class PageReader(HTMLParser):
    """Elements and texts of a page, as a browser would find them."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.links: list[str] = []
        self.meta: dict[str, str] = {}
        self.inside: dict[str, list[str]] = {}
        self._open = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags[tag] += 1
        self.links += [values[name] for name in ("src", "href", "action") if name in values]
        if "http-equiv" in values:
            self.meta[values["http-equiv"]] = values["content"]
        if tag in ("script", "style", "title", "h1", "pre", "dd"):
            self._open = values.get("id") or tag
            self.inside.setdefault(self._open, []).append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open:
            self.inside[self._open][-1] += data


def page_of(
    folder: Path, rows: Sequence[ImageRow], thumbnail: bytes = b"WEBP", **more: Any
) -> tuple[PageReader, Any]:
    """The page of some rows, and the JSON in it."""
    facts: dict[str, Any] = {"name": "owl-reg", "summary": {}} | more
    write_report(
        folder / "report.html",
        ReportData(rows=rows, thumbnails={row.id: thumbnail for row in rows}, **facts),
    )
    reader = PageReader((folder / "report.html").read_text(encoding="utf-8"))
    return reader, json.loads(reader.inside["data"][0])


def whole_rows(payload: Any) -> list[dict[str, Any]]:
    """The rows in the JSON, as the page's script puts them together."""
    return [{**payload["common"], **row} for row in payload["rows"]]


HOSTILE = (
    "</script><script>document.title='pwned'</script><!--<script>"
    "<img src=x onerror=alert(1)> &amp; ' \" {{ 7 * 7 }} \u2028\u2029"
)


def audit_check(text: str) -> dict[str, Any]:
    return {
        "name": text,
        "grade": "look",
        "finding": text,
        "advice": text,
        "numbers": {},
        "examples": [text],
    }


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    rejected = Rejection(image_id(DIGEST, 9), 9, HOSTILE, (HOSTILE,), 3)
    entry = {"stage": HOSTILE, "item": HOSTILE, "reason": HOSTILE, "raw": HOSTILE}
    audit = {"grade": "look", "verdict": HOSTILE, "checks": [audit_check(HOSTILE)]}
    plain_audit = {"grade": "look", "verdict": "x", "checks": [audit_check("x")]}
    reader, payload = page_of(
        tmp_path,
        [image_row(0, text=HOSTILE, slots={"color": HOSTILE}, model=HOSTILE, class_noun=HOSTILE)],
        name=HOSTILE,
        summary={HOSTILE: HOSTILE},
        rejected=[rejected],
        ledger=[entry],
        audit=audit,
        log=[{"event": "llm_call", "model": HOSTILE}, {"event": "stage", "stage": HOSTILE}],
    )
    entry = {"stage": "a", "item": "b", "reason": "c", "raw": "d"}
    plain, plain_payload = page_of(
        tmp_path,
        [image_row(0)],
        summary={"Renderer": "x"},
        rejected=[Rejection(image_id(DIGEST, 9), 9, "a", ("b",), 3)],
        ledger=[entry],
        audit=plain_audit,
        log=[{"event": "llm_call", "model": "x"}, {"event": "stage", "stage": "y"}],
    )
    assert reader.tags == plain.tags  # not one element more
    assert reader.inside["h1"] == [HOSTILE]
    assert reader.inside["pre"] == [HOSTILE]
    assert payload.keys() == plain_payload.keys()
    assert [row["text"] for row in whole_rows(payload)] == [HOSTILE]
    assert payload["rejected"][0]["reasons"] == [HOSTILE]


def test_json_block_holds_nothing_that_html_reads_or_half_a_surrogate_pair(tmp_path: Path) -> None:
    bad = "owl \ud83d"
    text = HOSTILE + "\x00\x1f\x7f" + bad
    page_of(tmp_path, [image_row(0, text=text)], ledger=[{"reason": bad}], summary={"x": bad})
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    block = html.partition('id="data">')[2].partition("</script>")[0]
    assert json.loads(block)["total"] == 1
    assert not re.search("[<>&\u2028\u2029\x00-\x1f]", block)


def test_page_refers_to_nothing_outside_and_allows_its_own_script_alone(tmp_path: Path) -> None:
    reader, _ = page_of(tmp_path, [image_row(0)])
    policy = dict(
        part.strip().split(" ", 1) for part in reader.meta["Content-Security-Policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["img-src"] == "data:"
    (script,), (style,) = reader.inside["script"], reader.inside["style"]
    for name, text in (("script", script), ("style", style)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[f"{name}-src"] == f"'sha256-{digest}'"
    assert all(link.startswith(("#", "data:")) for link in reader.links)
    assert not re.search(r"url\(|@import", style)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)


def test_constant_columns_are_written_once_and_scores_of_no_number_null(tmp_path: Path) -> None:
    scores = {"alignment": float("nan"), "duplicate_distance": None}
    rows = [image_row(number, scores=scores) for number in range(3)]
    _, payload = page_of(tmp_path, rows)
    assert payload["common"]["model"] == "embedded/tinyworld"
    assert "model" not in payload["rows"][0]
    for row, stored in zip(rows, whole_rows(payload), strict=True):
        assert (stored["id"], stored["seed"]) == (row.id, row.seed)
        assert set(payload["columns"]) <= stored.keys()
        assert stored["scores"] == {"alignment": None, "duplicate_distance": None}


def test_a_page_that_would_be_too_large_shows_fewer_images_and_counts_all(tmp_path: Path) -> None:
    _, payload = page_of(tmp_path, [image_row(n) for n in range(600)], thumbnail=bytes(60_000))
    assert (tmp_path / "report.html").stat().st_size < 25_000_000
    assert 200 < len(payload["rows"]) < 600
    assert payload["total"] == 600
    assert payload["axes"][1]["counts"] == [["red", 600]]


def test_examples_of_the_audit_lead_to_images_that_are_shown(tmp_path: Path) -> None:
    rows = [image_row(n) for n in range(2)]
    check = audit_check("x") | {"examples": [f"{rows[0].id} {rows[1].id}", "sks owl", "a&b=c"]}
    audit = {"grade": "look", "verdict": "usable", "checks": [check]}
    for shown in (rows, rows[:1]):
        reader, _ = page_of(tmp_path, shown, audit=audit)
        links = [link for link in reader.links if "image=" in link]
        assert links == [f"#view=audit&image={row.id}" for row in shown]


def test_a_grade_is_said_in_a_word_and_examples_where_something_is_wrong(tmp_path: Path) -> None:
    grades = ("good", "look", "bad", "unknown")
    checks = [audit_check(f"check {g}") | {"grade": g, "examples": [f"e.g. {g}"]} for g in grades]
    page_of(tmp_path, [image_row(0)], audit={"grade": "bad", "verdict": "no", "checks": checks})
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"</i>(\w+)</span>", html) == list(grades)
    assert re.findall(r"<li>e\.g\. (\w+)</li>", html) == ["look", "bad"]
    assert "Audit <span>2</span>" in html


VALUES = st.sampled_from(["red", "blue", "on a beach", "in a cave", None])
SLOTS = ("color", "background", "set")
ROWS = st.lists(st.tuples(st.sampled_from(["naive", "against", "amplify"]), VALUES, VALUES, VALUES))


def rows_of(drawn: Sequence[tuple[str, str | None, str | None, str | None]]) -> list[ImageRow]:
    return [
        image_row(number, prompt_set=first, slots=dict(zip(SLOTS, rest, strict=True)))
        for number, (first, *rest) in enumerate(drawn)
    ]


@given(ROWS)
def test_coverage_counts_every_image_once(drawn: Any) -> None:
    rows = rows_of(drawn)
    for axis in facts.coverage(rows, SLOTS, {}):
        wanted = Counter(
            row.prompt_set if axis.key == "set" else row.slots[axis.key.removeprefix("slot.")]
            for row in rows
        )
        assert axis.without == wanted.pop(None, 0)
        assert dict(axis.counts) == wanted
        assert [n for _, n in axis.counts] == sorted((n for _, n in axis.counts), reverse=True)


@given(ROWS, st.integers(1, 4))
def test_pair_counts_are_those_of_the_rows(drawn: Any, most: int) -> None:
    rows = rows_of(drawn)
    axes = facts.coverage(rows, SLOTS, {"color": ["ultramarine"]})
    pairs = facts.pair_counts(rows, SLOTS, axes, most)
    assert len(pairs) == len(axes) * (len(axes) - 1) // 2
    values = [facts.axis_values(row, SLOTS) for row in rows]
    by_key = {axis.key: [value for value, _ in axis.counts[:most]] for axis in axes}
    for key, table in pairs.items():
        a, b = key.split("|")
        assert table == [
            [sum(v[a] == first and v[b] == second for v in values) for second in by_key[b]]
            for first in by_key[a]
        ]


@settings(max_examples=30)
@given(st.lists(st.tuples(*[st.sampled_from("abc")] * 4), min_size=1, max_size=120), st.data())
def test_a_sample_is_even_and_leaves_no_phrase_out(drawn: Any, data: Any) -> None:
    rows = rows_of(drawn)
    most = data.draw(st.integers(20, 130))
    chosen = facts.choose_shown(rows, most)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(most, len(rows))
    for axis in ("set", *(f"slot.{name}" for name in SLOTS)):
        seen = {facts.axis_values(rows[position], SLOTS)[axis] for position in chosen}
        assert seen == {facts.axis_values(row, SLOTS)[axis] for row in rows}


def test_a_sample_has_the_rarest_phrase_and_the_closest_pair_and_keeps_the_shares() -> None:
    rows = [image_row(n, slots={"color": str(n % 7), "place": "at home"}) for n in range(1000)]
    rows[611] = image_row(611, slots={"color": "3", "place": "in a volcano"})
    for n in (5, 777):
        near = {"perceptual_hash": "123456789abcdef0", "scores": {"duplicate_distance": 0.0}}
        rows[n] = image_row(n, slots=rows[n].slots, **near)
    assert {5, 611, 777} <= set(facts.choose_shown(rows, 20))
    rows = [
        image_row(n, prompt_set="against" if n % 4 == 0 else "amplify", slots={"color": str(n % 7)})
        for n in range(2800)
    ]
    chosen = [rows[position] for position in facts.choose_shown(rows, 280)]
    assert abs(sum(row.prompt_set == "against" for row in chosen) - 70) <= 3
    for color in range(7):
        assert abs(sum(row.slots["color"] == str(color) for row in chosen) - 40) <= 5


def test_closest_pairs_come_first_and_once() -> None:
    hashes = ("0000000000000000", "0000000000000007", "ffffffffffffffff", "fffffffffffffffe")
    rows = [
        image_row(n, perceptual_hash=each, scores={"duplicate_distance": distance})
        for n, (each, distance) in enumerate(zip(hashes, (3.0, 3.0, 1.0, 1.0), strict=True))
    ]
    assert facts.closest_pairs(rows, 9) == [(2, 3, 1), (0, 1, 3)]
    assert facts.closest_pairs(rows, 1) == [(2, 3, 1)]
    # Rows that were not measured, or alone, make none.
    assert facts.closest_pairs([image_row(0), image_row(1)], 9) == []
    assert facts.closest_pairs([image_row(0, scores={"duplicate_distance": 3.0})], 9) == []


def test_like_reasons_fall_together(tmp_path: Path) -> None:
    original = image_row(0)
    rejected = [
        Rejection(image_id(DIGEST, 5), 5, "x", (f"duplicate of {original.id} (2 bits)",), 3),
        Rejection(image_id(DIGEST, 6), 6, "y", (f"duplicate of {image_id(DIGEST, 77)}",), 3),
        Rejection(image_id(DIGEST, 7), 7, "z", ("of a single colour", "alignment 0.12"), 3),
    ]
    _, payload = page_of(tmp_path, [original], rejected=rejected)
    assert payload["rejectedKinds"] == {
        "duplicate of …": 2,
        "of a single colour": 1,
        "alignment …": 1,
    }
    assert [each["original"] for each in payload["rejected"]] == [0, None, None]


def tiles(html: Path) -> dict[str, str]:
    text = html.read_text(encoding="utf-8")
    return dict(re.findall(r"<div><dt>([^<]*)</dt><dd>([^<]*)</dd></div>", text))


@pytest.mark.parametrize(
    ("calls", "cost", "tile"),
    [
        ([{"cost": 0.25}, {"cost": 0.5}], "$0.75", "$0.75"),
        ([{"cost": 0.0}], "$0.00", "$0.00"),
        ([{"cost": 0.001234}], "$0.0012", "$0.0012"),
        ([{"cost": None}], "unknown", "unknown"),
        ([{}], "unknown", "unknown"),
        ([{"cost": 0.25}, {"cost": None}], "$0.25 + 1 call of unknown price", "over $0.25"),
        ([{"cost": 0.25}, {"cached": True}], "$0.25", "$0.25"),
        ([{"cached": True}], "$0.00", "$0.00"),
        ([{"cost": 0.25}, {"error": "busy"}], "$0.25", "$0.25"),
        ([{"error": "busy"}], "unknown", "unknown"),
        ([{"error": "busy", "cost": 0.0}], "$0.00", "$0.00"),
        ([{"cost": 0.25, "error": None}], "$0.25", "$0.25"),
        ([{"cost": 4.5e-05}], "$0.000045", "$0.000045"),
        (
            [{"cost": 0.25}, {"error": "late", "cost": 0.0, "may_cost": 0.1}],
            "$0.25 + 1 call without an answer that may be billed",
            "over $0.25",
        ),
    ],
)
def test_unknown_cost_is_never_zero(
    tmp_path: Path, calls: list[dict[str, Any]], cost: str, tile: str
) -> None:
    log = [{"event": "llm_call", "model": "m", **call} for call in calls]
    (spent,) = facts.spending(log, "llm_call")
    assert spent.cost_text == cost
    assert spent.calls + spent.cached == len(calls)
    page_of(tmp_path, [image_row(0)], log=log)
    assert tiles(tmp_path / "report.html")["cost of API calls"] == tile


def test_tokens_and_speed_add_up_and_without_a_log_none_is_claimed(
    tmp_path: Path,
) -> None:
    log = [
        {"event": "llm_call", "model": "a", "prompt_tokens": 10, "completion_tokens": 5, "cost": 1},
        {"event": "llm_call", "model": "a", "prompt_tokens": 7, "seconds": 2.5, "cost": 1},
        {"event": "llm_call", "model": "a", "prompt_tokens": 99, "cost": 9, "cached": True},
        {"event": "image_call", "model": "b", "cost": None},
        {"event": "stage", "stage": "images", "seconds": 100},
        {"event": "stage", "stage": "images", "seconds": 25.0},
        {"event": "stage", "stage": "prompts"},
        {"event": "rendered", "images": 64, "seconds": 16, "batch_size": 8},
        {"event": "rendered", "images": 36, "seconds": 34, "batch_size": 4},
        {"event": "rendered", "images": "many"},
        {"nonsense": True},
    ]
    (spent,) = facts.spending(log, "llm_call")
    assert (spent.prompt_tokens, spent.completion_tokens, spent.seconds) == (17, 5, 2.5)
    assert (spent.calls, spent.cached, spent.cost) == (2, 1, 2.0)
    page_of(tmp_path, [image_row(0)], log=log)
    shown = tiles(tmp_path / "report.html")
    assert shown["images per second"] == "2.00"
    assert shown["total time"] == "2 min 5 s"
    assert shown["cost of API calls"] == "over $2.00"
    page_of(tmp_path, [image_row(0)])
    assert tiles(tmp_path / "report.html").keys() == {"images", "different captions", "refused"}


def make_run(folder: Path, images: int) -> list[ImageRow]:
    (folder / "shards").mkdir(parents=True)
    rows = [
        image_row(n, image=make_image("red", (320, 200)), slots={"color": ("red", "blue")[n % 2]})
        for n in range(images)
    ]
    store = Store(folder / "shards", ["color"], DIGEST)
    store.write(0, rows[:128], [])
    if images > 128:
        refused = Rejection(image_id(DIGEST, 250), 250, "an owl", ("black",), 3, b"webp")
        store.write(1, rows[128:], [refused])
    (folder / "recipe.yaml").write_text("name: owl-reg\n", encoding="utf-8")
    slots = {"color": {"from": "list", "values": ["red", "blue", "green"]}}
    (folder / "vocabulary.json").write_text(json.dumps({"slots": slots}), encoding="utf-8")
    journal = Journal(folder)
    journal.event("stage", stage="images", seconds=3.5)
    journal.failure("prompts", "slot color, call 1", "not JSON", raw="Sure!")
    return rows


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.slow
def test_a_run_folder_becomes_a_page(tmp_path: Path) -> None:
    rows = make_run(tmp_path / "run", 200)
    before = everything_in(tmp_path / "run")
    data = gather(tmp_path / "run")
    assert everything_in(tmp_path / "run") == before  # gathering changes nothing
    assert data.name == "owl-reg"
    assert [row.id for row in data.rows] == [row.id for row in rows]
    assert all(data.thumbnails[row.id] and row.image == b"" for row in data.rows)
    assert [each.id for each in data.rejected] == [image_id(DIGEST, 250)]
    write_report(tmp_path / "report.html", data)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    payload = json.loads(PageReader(html).inside["data"][0])
    assert payload["axes"][1]["counts"] == [["blue", 100], ["red", 100], ["green", 0]]
    assert "slot color, call 1" in html
    assert "Sure!" in html


def test_thumbnails_are_small_webp_and_of_the_first_images(tmp_path: Path) -> None:
    rows = make_run(tmp_path, 5)
    data = gather(tmp_path, 3)
    assert [row.id for row in data.rows] == list(data.thumbnails) == [row.id for row in rows[:3]]
    with Image.open(io.BytesIO(data.thumbnails[rows[0].id] or b"")) as small:
        assert (small.format, small.size) == ("WEBP", (160, 100))


def test_a_folder_with_nothing_in_it_has_an_empty_page(tmp_path: Path) -> None:
    data = gather(tmp_path)
    assert data.name == tmp_path.name
    write_report(tmp_path / "report.html", data)
    assert "No images yet." in (tmp_path / "report.html").read_text(encoding="utf-8")
