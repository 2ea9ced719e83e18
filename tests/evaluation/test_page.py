"""The page of an evaluation and its plots: what they say, and what they survive."""

import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from browser import Browser, Page, needs_chromium
from made_evaluation import MODELS, PLACES, made_evaluation
from PIL import Image

from regforge.evaluation import plots
from regforge.evaluation.metrics import Interval
from regforge.evaluation.page import write_page
from regforge.evaluation.results import Evaluation
from regforge.evaluation.suites import EvaluationError, Subject

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'{{ 7 * 7 }}$x^{ --> </svg>"


class Read(HTMLParser):
    """Elements, their attributes, and the text of the page."""

    def __init__(self, evaluation: Evaluation, **more: int) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._silent = 0
        page = write_page(evaluation, evaluation.folder, **more)
        self.feed(page.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._silent += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    folder = tmp_path_factory.mktemp("evaluation")
    return made_evaluation(folder, samples=2, size=32, places=PLACES[:4])


@pytest.fixture(scope="module")
def page(made: Evaluation) -> Read:
    return Read(made)


@pytest.fixture
def plain(made: Evaluation, monkeypatch: pytest.MonkeyPatch) -> Evaluation:
    """The same, as if matplotlib were not installed; quicker, too."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    return made


@pytest.mark.slow
def test_models_prompts_numbers_and_images_and_the_verdict(made: Evaluation, page: Read) -> None:
    described = {image.get("alt") for image in page.all("img")}
    for result in made.results:
        assert result.model.name in page.text
        for found in result.scores.values():
            assert f"{found.mean:.3f}" in page.text
        for each in result.images:
            assert f"{result.model.name}: {each.prompt}, sample {each.number + 1}" in described
            assert each.prompt in page.text
            for value in each.scores.values():
                assert f"{value:.3f}" in page.text
    for each in made.comparisons:
        assert f"{abs(each.difference.mean):.3f}" in page.text
    assert "Reference photo 4 of sks teapot" in described
    assert "0.774" in page.text, "the ceiling"
    assert made.notes[0] in page.text
    assert "facebook/dino-vits16" in page.text
    assert re.search(
        r"Against “naive”, “against \+ amplify” looks more like the subject \(DINO \+0\.\d+, "
        r"CLIP-I \+0\.\d+\), follows prompts better \(CLIP-T \+0\.\d+\)",
        page.text,
    )


def test_best_is_what_beats_all_and_ahead_what_might_not(plain: Evaluation) -> None:
    winner, loser = "against + amplify", "naive"
    (clear,) = (
        each
        for each in plain.comparisons
        if (each.first, each.second, each.metric) == (loser, winner, "pres")
    )
    unsure = replace(clear, difference=replace(clear.difference, high=0.01))
    others = [each for each in plain.comparisons if each is not clear]
    mean = f"{plain.results[2].scores['pres'].mean:.3f}"
    for comparison, mark in ((clear, "best"), (unsure, "ahead")):
        found = replace(plain, comparisons=[*others, comparison])
        html = write_page(found, plain.folder).read_text(encoding="utf-8")
        assert re.search(rf'class="score {mark}"><span class="mean">{mean}<', html)


def test_the_page_asks_nobody_for_anything_and_its_links_lead_somewhere(page: Read) -> None:
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name)
        assert "style" not in attributes, "the policy forbids it"
        assert not [name for name in attributes if name.startswith("on")]
    (policy,) = (m["content"] or "" for m in page.all("meta") if m.get("http-equiv"))
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    links = {(a.get("href") or a.get("xlink:href") or "#")[1:] for _, a in page.elements}
    assert {link for link in links if link and not link.startswith("ata:")} <= set(ids)


def test_the_same_results_are_the_same_bytes(plain: Evaluation, tmp_path: Path) -> None:
    one, other = (write_page(plain, tmp_path / name).read_bytes() for name in "ab")
    assert one == other


def test_hostile_names_and_prompts_are_only_text(tmp_path: Path) -> None:
    evaluation = made_evaluation(
        tmp_path,
        [(HOSTILE, 0.6, 0.2, 0.5, 0), ("other", 0.7, 0.3, 0.4, 9)],
        samples=1,
        size=16,
        subject=Subject(HOSTILE, "teapot", "object", None),
        places=[(HOSTILE, "red")],
    )
    evaluation.notes += [HOSTILE, f"`{HOSTILE}` is code, {HOSTILE} is not", f"`{HOSTILE}"]
    evaluation.settings = {HOSTILE: HOSTILE}
    page = Read(evaluation)
    assert len(page.all("script")) == 1
    assert not [a for _, a in page.elements if "onerror" in a]
    assert page.text.count(" ".join(HOSTILE.split())) > 8


def test_missing_images_and_those_outside_are_said(plain: Evaluation, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain.folder, tmp_path / "copy"))
    gone = [each.file for each in plain.results[1].images[:2]]
    (folder / gone[0]).unlink()
    (folder / gone[1]).write_bytes(b"no image")
    page = Read(replace(plain, folder=folder))
    assert "2 images could not be read and are not shown" in page.text
    assert page.text.count("no image") == 2
    assert f"DINO {plain.results[1].images[0].scores['dino']:.3f}" in page.text
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    outside = replace(plain.results[0].images[0], file="../secret.png")
    results = [replace(plain.results[0], images=[outside])]
    assert "1 image could not be read" in Read(replace(plain, folder=folder, results=results)).text


def test_a_full_page_leaves_out_the_last_samples_and_says_so(plain: Evaluation) -> None:
    everything = Read(plain)
    size = sum(len(image["src"] or "") for image in everything.all("img"))
    page = Read(plain, budget=size // 2)
    shown = [image.get("alt") or "" for image in page.all("img")]
    assert re.search(r"\d+ images are left out so that this page stays small", page.text)
    for name, *_ in MODELS:
        first, second = (
            [alt for alt in shown if alt.startswith(name) and alt.endswith(f"sample {n}")]
            for n in (1, 2)
        )
        assert len(first) == 7, "all prompts, and the class"
        assert len(second) <= 7
    assert len(shown) < len(everything.all("img"))


def test_one_model_is_held_against_the_photos_without_matplotlib_too(plain: Evaluation) -> None:
    alone = replace(plain, results=plain.results[:1], comparisons=[])
    page = Read(alone)
    mean = alone.results[0].scores["dino"].mean
    assert f"reaches DINO {mean:.3f}; the photos themselves reach 0.774" in page.text
    assert not [a for _, a in page.elements if a.get("id") == "comparisons"]
    assert "Plots need matplotlib: pip install 'regforge[evaluation]'" in page.text
    assert not [a for a in page.all("figure") if a.get("class") == "plot"]
    with pytest.raises(EvaluationError, match="matplotlib"):
        plots.bars({})


def test_two_subjects_have_their_own_tables(plain: Evaluation) -> None:
    teapots, cats = plain.results[:2]
    cat = replace(cats.model, subject=Subject("zxc", "cat", "living", None), name="cats")
    both = [teapots, replace(cats, model=cat)]
    page = Read(replace(plain, results=both, comparisons=[]))
    assert "Images of sks teapot" in page.text
    assert "Images of zxc cat" in page.text


@pytest.mark.slow
@needs_chromium
def test_the_enlarged_view_shows_all_models_and_moves(browser: Browser, made: Evaluation) -> None:
    page = Page(browser, write_page(made, made.folder).as_uri())
    prompts = list(dict.fromkeys(each.prompt for each in made.results[0].images))

    def shown() -> list[str]:
        page.wait_until("document.getElementById('lightbox').open")
        row = "[...document.querySelectorAll('#lightbox-row figure')].map(f => f.innerText)"
        assert [text.split("\n")[0] for text in page.js(row)] == [name for name, *_ in MODELS]
        decoded = "[...document.querySelectorAll('#lightbox-row img')].filter(i => i.naturalWidth)"
        page.wait_until(f"{decoded}.length === {len(MODELS)}")
        return [page.text("#lightbox-text").strip(), page.text("#position")]

    page.click(".block:nth-of-type(2) .shot[data-number='1']")
    assert shown() == [prompts[1], "sample 2"]
    page.press("ArrowRight")
    assert shown() == [prompts[2], "sample 1"]
    for _ in range(5):  # from the first one to the last: the second sample of the class
        page.click("#previous")
    assert shown() == [prompts[-1], "sample 4"]
    page.press("Escape")
    page.wait_until("!document.getElementById('lightbox').open")
    assert {url.partition(":")[0] for url in page.requests()} <= {"file", "data"}
    assert page.complaints() == []


def found(mean: float) -> Interval:
    return Interval(mean, mean - 0.02, mean + 0.02, 40)


SCORES = {
    "naive": {"dino": found(0.6), "clip_t": found(0.25)},
    "$x^{ \N{SNOWMAN}\n漢": {"dino": found(0.65), "clip_t": found(0.28), "pres": found(0.4)},
}


def some_curves() -> "plots.Figure":
    points = [(80.0, found(0.5)), (400.0, found(0.6)), (2000.0, found(0.64))]
    return plots.curves(
        {"naive": points, "$x^{": [(x, found(f.mean + 0.01)) for x, f in points], "none": []},
        title="Identity",
        x_label="steps",
        y_label="DINO",
        log_x=True,
        reference_lines={"photos": 0.7},
    )


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.identity_against_alignment(SCORES, ceiling={"dino": found(0.7)}),
        lambda: plots.bars(SCORES, title="all"),
        some_curves,
    ],
)
def test_plots_are_the_same_each_time(draw: Callable[[], "plots.Figure"], tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        plots.save(draw(), tmp_path / name)
    svg = (tmp_path / "one.svg").read_bytes()
    assert svg == (tmp_path / "two.svg").read_bytes()
    assert b"<dc:date>" not in svg
    ElementTree.fromstring(svg)


def test_a_plot_is_wide_enough_for_a_readme_and_its_name_says_its_kind(tmp_path: Path) -> None:
    plots.save(plots.bars(SCORES), tmp_path / "bars.png")
    with Image.open(tmp_path / "bars.png") as image:
        assert image.width == 1600
        assert image.convert("RGB").getpixel((1, 1)) == (255, 255, 255)
    with pytest.raises(EvaluationError, match=r"plot\.jpg"):
        plots.save(plots.bars(SCORES), tmp_path / "plot.jpg")


def test_plots_leave_a_callers_matplotlib_as_it_was() -> None:
    import matplotlib as mpl

    with mpl.rc_context({"axes.facecolor": "black", "font.size": 33}):
        before = dict(mpl.rcParams)
        plain = plots.drawn(plots.bars(SCORES), "svg")
        assert dict(mpl.rcParams) == before
    assert plain == plots.drawn(plots.bars(SCORES), "svg")


def test_the_names_of_curves_stand_beside_them_and_are_not_cut_off() -> None:
    names = ["none", "$x^{", "a name that is longer than most of them"]
    points = {name: [(1.0, found(0.5)), (2.0, found(0.6))] for name in names}
    figure = plots.curves(points, title="", x_label="x", y_label="y")
    (axes,) = figure.axes
    figure.canvas.draw()
    legend = axes.get_legend()
    assert legend is not None
    shown = [text.get_text() for text in legend.get_texts()]
    assert shown[:2] == names[:2]
    assert shown[2].endswith("longer than most of them")
    box = legend.get_window_extent()
    assert axes.get_window_extent().x1 < box.x0 < box.x1 <= figure.bbox.x1
