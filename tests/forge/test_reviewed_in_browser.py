"""From the page to the next run: one image of another caption, one of another seed."""

from pathlib import Path

import pytest
from browser import Browser, needs_chromium
from review_pages import ReviewPage, served
from small_runs import quietly, rows_of, write_small

from regforge.recipe import load_recipe
from regforge.records import image_seed

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
