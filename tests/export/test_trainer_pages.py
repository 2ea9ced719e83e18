"""docs/trainers: what the pages show is what the exporters write."""

from __future__ import annotations

from pathlib import Path

import pytest
import trainer_pages

from regforge.export.writing import TRAINERS


def test_the_pages_show_what_comes_out() -> None:
    parts = trainer_pages.generated()
    assert list(parts) == [trainer.name for trainer in TRAINERS]
    for name, part in parts.items():
        text = (trainer_pages.PAGES / f"{name}.md").read_text(encoding="utf-8")
        hint = "run python tests/export/trainer_pages.py --write"
        assert trainer_pages.page(text, part) == text, hint


def test_there_is_a_page_for_each_trainer_and_all_are_linked(repo: Path) -> None:
    pages = {path.stem for path in trainer_pages.PAGES.glob("*.md")}
    assert pages == {trainer.name for trainer in TRAINERS}
    text = (repo / "docs" / "exporting.md").read_text(encoding="utf-8")
    assert all(f"(trainers/{name}.md)" in text for name in pages)


def test_what_is_written_by_hand_stays() -> None:
    text = f"# Title\n\n{trainer_pages.BEGIN}\nold\n{trainer_pages.END}\n\nBy hand.\n"
    assert trainer_pages.page(text, "new") == text.replace("old", "new")
    with pytest.raises(ValueError, match="has no"):
        trainer_pages.page("# Title", "new")
