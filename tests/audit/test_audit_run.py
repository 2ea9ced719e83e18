"""The audit of a run: by the command, and on its report page."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from audit_samples import file_of, make_image
from made_rows import make_row
from shell import Shell

from regforge.dataset.build import build_dataset
from regforge.dataset.store import Store
from regforge.forge import write_report
from regforge.recipe import Recipe, recipe_digest, resolved_yaml
from regforge.records import ImageRow, image_id

RECIPE = Recipe.model_validate(
    {
        "name": "owls",
        "subject": {"class_noun": "owl", "identifier": "zqk"},
        "prompts": {"slots": [{"name": "color", "values": ["red", "blue", "green"]}]},
        "dataset": {"license": "cc-by-4.0"},
    }
)
DIGEST = recipe_digest(RECIPE)


def row(number: int) -> ImageRow:
    """A row whose stored hash says that images 0 and 1 look alike, which they do not."""
    color = ("red", "blue")[number % 2]
    return make_row(
        number,
        digest=DIGEST,
        image=file_of(make_image(number), "WEBP", lossless=True),
        text=f"a photo of a {color} owl, number {number}" if number else "zqk <script>x</script>",
        class_noun="owl",
        kind="living",
        prompt_set="amplify",
        slots={"color": color},
        width=32,
        height=32,
        template="caption/living.j2",
        perceptual_hash=f"{max(number, 1) * 0x0123456789ABCDEF % 2**64:016x}",
        scores={"alignment": None, "duplicate_distance": None},
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "owls"
    store = Store(folder / "shards", ["color"], DIGEST)
    store.write(0, [row(number) for number in range(6)], [])
    (folder / "recipe.yaml").write_text(resolved_yaml(RECIPE))
    (folder / "state.json").write_text(json.dumps({"recipe_digest": DIGEST, "images": 6}))
    slots = {"color": {"from": "list", "values": ["red", "blue", "green"]}}
    (folder / "vocabulary.json").write_text(json.dumps({"slots": slots}))
    build_dataset(
        store,
        folder / "dataset",
        count=6,
        recipe=RECIPE,
        recipe_yaml=resolved_yaml(RECIPE, portable=True),
        caption_template="a {{ color }}",
    )
    return folder


def audited(shell: Shell, *words: object) -> dict[str, Any]:
    shell("audit", *words, "--json", "--quiet")
    found: dict[str, Any] = json.loads(shell.out)
    return found


def test_the_page_and_the_command_say_the_same(run: Path, shell: Shell) -> None:
    found = audited(shell, run)
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["near duplicates"]["numbers"]["groups"] == 1
    assert checks["identifier"]["grade"] == "bad"  # the recipe says which it is
    assert checks["licence"]["grade"] == "good"
    assert checks["slot coverage"]["numbers"]["slots"]["color"]["unused"] == 1
    assert checks["image files"]["grade"] == "good"
    page = write_report(run).read_text(encoding="utf-8")
    section = re.search(r'<section class="view" id="audit".*?</section>', page, re.DOTALL)
    assert section is not None
    shown = re.findall(r"</i>(\w+)</span></td>\s*<th scope=\"row\">([^<]+)</th>", section.group())
    assert shown == [(check["grade"], check["name"]) for check in found["checks"]]
    assert "zqk &lt;script&gt;x&lt;/script&gt;" in section.group()
    assert f"image={image_id(DIGEST, 0)}" in section.group()


def test_the_page_is_written_with_no_image_open(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(image: bytes) -> None:
        raise AssertionError("an image was opened")

    monkeypatch.setattr("regforge.auditing.gathering.inspect_image", opened)
    assert "Is it fit for training?" in write_report(run).read_text(encoding="utf-8")


def test_thorough_opens_every_image(run: Path, shell: Shell) -> None:
    found = audited(shell, run / "dataset", "--thorough")
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["image files"]["numbers"]["opened"] == 6
    assert checks["image files"]["numbers"]["changed_since_it_was_made"] == 0
    assert checks["near duplicates"]["numbers"]["groups"] == 0  # by their real hashes
