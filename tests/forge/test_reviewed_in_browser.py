"""From the page to the next run: one image of another caption, one of another seed."""

from pathlib import Path

import pytest
from browser import Browser, needs_chromium
from review_pages import ReviewPage, served
from shell import Shell
from small_runs import quietly, rows_of, write_small

from regforge.prompts.vocabulary import Vocabulary
from regforge.recipe import load_recipe
from regforge.records import image_seed, read_prompts

pytestmark = [pytest.mark.slow, needs_chromium]


def test_what_is_decided_on_the_page_is_drawn(repo: Path, tmp_path: Path, browser: Browser) -> None:
    recipe = load_recipe(write_small(tmp_path / "recipe.yaml", repo, prompts={"count": 4}))
    run = tmp_path / "run"
    before = rows_of(quietly(recipe, run))
    with served(run) as address:
        page = ReviewPage(browser, address)
        page.press("e")
        page.write("a photo of a green cat in a forest")
        page.press("Enter")
        page.wait_until("!document.querySelector('dialog[open]')")
        page.press("ArrowRight")
        page.press("s")
        page.written("1 rejected")
        assert f"regforge run {run}/recipe.yaml" in page.text("#next")
        after = rows_of(quietly(recipe, run))
        assert after[2:] == before[2:]
        assert (after[0].text, after[0].seed) == (
            "a photo of a green cat in a forest",
            before[0].seed,
        )
        second = before[1]
        assert after[1].text == second.text
        assert after[1].seed == image_seed(second.recipe_digest, second.index, 1)
        # The page has noticed; what went is beside what came.
        page.wait_for_state(second.id, "open")
        page.press("ArrowLeft")
        page.press("Enter")
        page.wait_until("document.querySelector('#beside img[src^=decided]')?.naturalWidth > 0")
        assert "another seed" in page.text("#beside")


def test_phrases_are_mended_before_anything_is_drawn(
    repo: Path, tmp_path: Path, browser: Browser, shell: Shell
) -> None:
    recipe = write_small(tmp_path / "recipe.yaml", repo, prompts={"count": 12})
    assert shell("review", recipe, "--json") == 0
    run = tmp_path / "runs/small"
    before = [prompt.text for prompt in read_prompts(run / "prompts.jsonl")]
    assert any("red" in text.split() for text in before)
    with served(run) as address:
        page = ReviewPage(browser, address)
        assert page.each("#captions li", "e.textContent") == before
        field = "[name=color] .phrase:nth-of-type({})"
        assert page.each("[name=color] input", "e.value")[:2] == ["red", "blue"]
        page.click(f"{field.format(1)} button")  # strike
        page.wait_until("document.querySelector('#captions ins')")
        page.js(f"document.querySelector('{field.format(2)} input').select()")
        page.write("sks")
        page.wait_until("document.getElementById('changed').textContent.includes('identifier')")
        assert page.js("document.getElementById('save').disabled")
        page.js(f"document.querySelector('{field.format(2)} input').select()")
        page.write("dark blue")
        page.wait_until("document.getElementById('changed').textContent.includes('change')")
        said = page.each("#captions li", "(e.querySelector('ins') ?? e).textContent")
        assert [prompt.text for prompt in read_prompts(run / "prompts.jsonl")] == before
        page.click("#save")
        page.wait_until("document.getElementById('changed').textContent.startsWith('Saved')")
    assert Vocabulary.load(run / "vocabulary.json").slots["color"][:2] == ("dark blue", "black")
    after = [prompt.text for prompt in read_prompts(run / "prompts.jsonl")]
    assert after == said
    assert not any("red" in text.split() for text in after)
    assert not (run / "shards").exists()
    edited = (run / "recipe.yaml").read_text().replace("mode: vocabulary", "mode: compose")
    (run / "recipe.yaml").write_text(edited)
    with served(run) as address:
        page = ReviewPage(browser, address)
        assert page.each("#captions li", "e.textContent") == after
        assert "prompts.jsonl" in page.text("#phrases-note")
        assert page.each("#slots input", "e.value") == []
