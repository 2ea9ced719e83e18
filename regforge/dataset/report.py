"""report.html: one self-contained page that shows what a run made, refused, cost and took.

Gathers what a run folder has to show: rows, thumbnails, refusals, log and ledger. Only reads; how
the page looks is the business of `report_page`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import yaml

from regforge import journal
from regforge.dataset import report_facts as facts
from regforge.dataset.card import loras_in_words
from regforge.dataset.report_page import ReportData, ReportRow, write_report
from regforge.files import parse_json
from regforge.records import ImageRow

__all__ = ["ReportData", "ReportRow", "gather", "write_report"]

MOST_SHOWN = 3000
"""Images in the gallery; of more, an even sample is shown."""

THUMBNAIL_SIZE = 160
"""Longest side of a thumbnail, in pixels."""


def gather(run_folder: Path, count: int | None = None) -> ReportData:
    """What a run folder has to show. Only reads: a shard that is damaged stays where it is.

    All rows are counted; thumbnails are made of at most `MOST_SHOWN` of them. A few image files
    are in memory at a time.

    Args:
        run_folder: The run.
        count: Look at the first `count` images only, which are the dataset; None takes all.

    Raises:
        RegforgeError: A shard cannot be read.
    """
    from regforge.dataset.store import Store

    shards = sorted(
        (path for path in (run_folder / "shards").glob("*.parquet") if path.stem.isdigit()),
        key=lambda path: int(path.stem),
    )
    store = Store(run_folder / "shards", slots=(), recipe_digest="")  # to read refusals only
    rows = list(islice(_stored(shards, images=False), count))
    shown = {rows[position].id for position in facts.choose_shown(rows, MOST_SHOWN)}
    thumbnails = dict(_thumbnails(row for row in _stored(shards, images=True) if row.id in shown))
    return ReportData(
        name=_name(run_folder),
        summary=summarize(rows),
        rows=[ReportRow(row, thumbnails.get(row.id)) for row in rows],
        rejected=[each for path in shards for each in store.rejected(int(path.stem))],
        log=list(journal.read(run_folder / "log.jsonl")),
        ledger=list(journal.read(run_folder / "ledger.jsonl")),
        offered=_offered(run_folder / "vocabulary.json"),
    )


def _stored(shards: Iterable[Path], *, images: bool) -> Iterator[ImageRow]:
    from regforge.dataset.parquet import read_rows

    for path in shards:
        yield from read_rows(path, images=images)


def _thumbnails(rows: Iterable[ImageRow]) -> Iterator[tuple[str, bytes | None]]:
    """(id, thumbnail) of every row; a few images at a time, decoded in parallel."""
    from regforge.dataset.store import thumbnail

    rows = iter(rows)
    with ThreadPoolExecutor() as pool:
        while batch := list(islice(rows, 32)):
            made = pool.map(lambda row: (row.id, thumbnail(row.image, THUMBNAIL_SIZE)), batch)
            yield from made


def summarize(rows: Sequence[ImageRow]) -> dict[str, str]:
    """How the images were made, for the page's header."""
    entries = {
        "Class noun": facts.distinct(row.class_noun for row in rows),
        "Renderer": facts.distinct(row.model for row in rows),
        "Revision": facts.distinct((row.model_revision or "")[:12] for row in rows),
        "LoRA": facts.distinct(loras_in_words(row.lora) for row in rows),
        "Scheduler": facts.distinct(row.scheduler for row in rows),
        "Steps": facts.distinct(str(row.steps or "") for row in rows),
        "Guidance": facts.distinct(
            "" if row.guidance_scale is None else f"{row.guidance_scale:.6g}" for row in rows
        ),
        "Size": facts.distinct(f"{row.width} × {row.height}" for row in rows),
        "Negative prompt": facts.distinct(row.negative_prompt for row in rows),
        "Language model": facts.distinct(row.language_model for row in rows),
        "Caption template": facts.distinct(row.template for row in rows),
        "Recipe": facts.distinct(row.recipe_digest[:12] for row in rows),
    }
    return {name: text for name, text in entries.items() if text}


def _name(run_folder: Path) -> str:
    try:
        recipe = yaml.safe_load((run_folder / "recipe.yaml").read_text(encoding="utf-8"))
        return str(recipe["name"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError):
        return run_folder.name


def _offered(path: Path) -> dict[str, list[str]]:
    """Phrases by slot from vocabulary.json; empty where there is none that can be read."""
    try:
        slots = parse_json(path.read_bytes())["slots"]
        return {str(name): [str(value) for value in slot["values"]] for name, slot in slots.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
