"""report.html: one self-contained page that shows what a run made, refused, cost and took.

`gather` reads a run folder, `write_report` fills templates/report. The page asks the network for
nothing: style, script and images are inside, and its Content-Security-Policy allows nothing else.
Whatever models or people wrote reaches it as escaped text only.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from regforge import journal
from regforge.dataset import report_facts as facts
from regforge.dataset.card import provenance
from regforge.dataset.decisions import Review, kept_file
from regforge.display import html_page
from regforge.files import parse_json, write_atomically
from regforge.records import ImageRow
from regforge.runs import RunFolder, recipe_in
from regforge.version import __version__
from regforge.words import counted, duration

if TYPE_CHECKING:
    from regforge.dataset.store import Rejection

MOST_SHOWN = 3000
"""Images in the gallery; of more, an even sample is shown."""

THUMBNAIL_SIZE = 160
"""Longest side of a thumbnail, in pixels."""

_THUMBNAIL_BYTES = 17_000_000  # about 23 MB in base64, so that the page stays below 25 MB
_MOST_REFUSED = 300
_MOST_PAIR_VALUES = 60
_MOST_FAILURES = 20
_MOST_RAW = 2000
_MARKS = {  # a sign, a word: grades are not told apart by color alone
    "good": ("\N{CHECK MARK}", "good"),
    "look": ("!", "look"),
    "bad": ("\N{MULTIPLICATION X}", "bad"),
    "unknown": ("?", "unknown"),
}
_COLUMNS = [each.name for each in fields(ImageRow) if each.name != "image"]


@dataclass(frozen=True)
class ReportData:
    """Everything that the page shows.

    Attributes:
        summary: How it was made, such as "Renderer": "embedded/tinyworld", in display order.
        rows: All images, in the order of their index; their `image` may be empty.
        thumbnails: WebP files by the images' ids; an image without one is counted, not shown.
        rejected: Images that were given up.
        log: Entries of log.jsonl.
        ledger: Entries of ledger.jsonl.
        offered: Phrases by slot that captions could use, so that unused ones are seen too.
        audit: As `Audit.as_dict` returns it; None leaves it out.
    """

    name: str
    summary: Mapping[str, str]
    rows: Sequence[ImageRow]
    thumbnails: Mapping[str, bytes | None] = field(default_factory=dict)
    rejected: Sequence[Rejection] = ()
    log: Sequence[Mapping[str, Any]] = ()
    ledger: Sequence[Mapping[str, Any]] = ()
    offered: Mapping[str, Sequence[str]] = field(default_factory=dict)
    audit: Mapping[str, Any] | None = None


# ----------------------------------------------------------------------------- reading a run


def gather(run_folder: Path, count: int | None = None) -> ReportData:
    """Read what a run folder has to show. A shard that is damaged stays where it is.

    The first `count` images are the dataset; without it all are taken. All rows are counted;
    thumbnails are made of at most `MOST_SHOWN` of them. A few image files are in memory at a time.

    Raises:
        RegforgeError: A shard cannot be read.
    """
    from regforge.dataset.store import Store, read_file

    shards = sorted(
        (path for path in (run_folder / "shards").glob("*.parquet") if path.stem.isdigit()),
        key=lambda path: int(path.stem),
    )
    store = Store(run_folder / "shards", slots=(), recipe_digest="")  # to read refusals only
    stored = list(islice((row for path in shards for row in read_file(path, images=False)), count))
    review = Review.of(run_folder)
    pending = sum(map(review.is_pending, stored))
    rows = [review.corrected(row) for row in stored if not review.goes((row.id, row.image_digest))]
    shown = {rows[position].id for position in facts.choose_shown(rows, MOST_SHOWN)}
    whole = (row for path in shards for row in read_file(path) if row.id in shown)
    return ReportData(
        name=str(recipe_in(run_folder).get("name", run_folder.name)),
        summary={**summarize(rows), **_pending(run_folder, pending)},
        rows=rows,
        thumbnails=dict(_thumbnails(whole)),
        rejected=[
            *(each for path in shards for each in store.rejected(int(path.stem))),
            *_rejected_by_eye(run_folder, review),
        ],
        log=list(journal.read(run_folder / "log.jsonl")),
        ledger=list(journal.read(run_folder / "ledger.jsonl")),
        offered=_offered(run_folder / "vocabulary.json"),
    )


def _pending(run_folder: Path, pending: int) -> dict[str, str]:
    if not pending:
        return {}
    said = f"{counted(pending, 'decision')} not carried out yet: {RunFolder(run_folder).command}"
    return {"Review": said}


def _rejected_by_eye(run_folder: Path, review: Review) -> Iterator[Rejection]:
    """What people rejected and `run` has replaced."""
    from regforge.dataset.store import Rejection, thumbnail

    for each in (one for some in review.rejected.values() for one in some):
        if (file := kept_file(run_folder, each.id, each.image)) is not None:
            index = int(each.id.rpartition("-")[2])
            reason = "rejected by eye" + (f": {each.reason}" if each.reason else "")
            small = thumbnail(file.read_bytes(), THUMBNAIL_SIZE)
            yield Rejection(each.id, index, each.was, (reason,), 1, small)


def _thumbnails(rows: Iterable[ImageRow]) -> Iterator[tuple[str, bytes | None]]:
    """(id, thumbnail) of every row; a few images at a time, decoded in parallel."""
    from regforge.dataset.store import thumbnail

    rows = iter(rows)
    with ThreadPoolExecutor() as pool:
        while batch := list(islice(rows, 32)):
            yield from pool.map(lambda row: (row.id, thumbnail(row.image, THUMBNAIL_SIZE)), batch)


def summarize(rows: Sequence[ImageRow]) -> dict[str, str]:
    """How the images were made, for the page's header."""
    made, digests = [provenance(row) for row in rows], ("revision", "recipe digest")
    found = {
        name: facts.distinct(each[name][: 12 if name in digests else None] for each in made)
        for name in (made[0] if made else ())
    }
    return {name[:1].upper() + name[1:]: text for name, text in found.items() if text}


def _offered(path: Path) -> dict[str, list[str]]:
    """Phrases by slot from vocabulary.json; empty where there is none that can be read."""
    try:
        slots = parse_json(path.read_bytes())["slots"]
        return {str(name): [str(value) for value in slot["values"]] for name, slot in slots.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


# ------------------------------------------------------------------------------------- the page


def write_report(path: Path, data: ReportData) -> None:
    """Write the page, atomically.

    Raises:
        StorageError: The file cannot be written.
    """
    payload = _payload(data)
    # JSON that cannot end the script element it stands in, nor start another one.
    text = json.dumps(payload, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    text = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    page = html_page(
        "report",
        {},
        **_static_parts(data),
        payload=Markup(text),
        audit=_audit(data.audit, {(payload["common"] | row)["id"] for row in payload["rows"]}),
    )
    write_atomically(path, page)


def _payload(data: ReportData) -> dict[str, Any]:
    """The data that the page's script draws."""
    rows = data.rows
    slots = list(dict.fromkeys(name for row in rows for name in row.slots)) or list(data.offered)
    axes = facts.coverage(rows, slots, data.offered)
    refused = list(data.rejected[:_MOST_REFUSED])
    kinds = {
        each.id: sorted({facts.reason_kind(reason) for reason in each.reasons})
        for each in data.rejected
    }
    shown = _that_fit(data, _THUMBNAIL_BYTES - sum(len(each.thumbnail or b"") for each in refused))
    place = {position: number for number, position in enumerate(shown)}
    ids = {rows[position].id: number for position, number in place.items()}
    cells = [_cells(rows[each], data.thumbnails.get(rows[each].id)) for each in shown]
    first = cells[0] if cells else {}
    # Columns that say the same in every row are written once.
    common = {k: value for k, value in first.items() if all(row[k] == value for row in cells)}
    return {
        "total": len(rows),
        "columns": _COLUMNS,
        "common": common,
        "rows": [{k: v for k, v in row.items() if k not in common} for row in cells],
        "axes": [asdict(axis) for axis in axes],
        "pairs": facts.pair_counts(rows, slots, axes, _MOST_PAIR_VALUES),
        "closest": [
            [place[first], place[second], bits]
            for first, second, bits in facts.closest_pairs(rows)
            if first in place and second in place
        ],
        "rejected": [
            {
                "id": each.id,
                "text": each.text,
                "reasons": list(each.reasons),
                "kinds": kinds[each.id],
                "attempts": each.attempts,
                "thumbnail": _data_uri(each.thumbnail),
                "original": ids.get(facts.image_id_in(each.reasons) or ""),
            }
            for each in refused
        ],
        "rejectedTotal": len(data.rejected),
        "rejectedKinds": Counter(kind for each in data.rejected for kind in kinds[each.id]),
    }


def _that_fit(data: ReportData, room: int) -> list[int]:
    """Positions of the rows that the gallery shows: all with a thumbnail, if they fit the room."""
    sizes = {
        position: len(thumbnail)
        for position, row in enumerate(data.rows)
        if (thumbnail := data.thumbnails.get(row.id)) is not None
    }
    images, size = list(sizes), sum(sizes.values())
    if size <= room:
        return images
    most = len(images) * room // size
    return [images[n] for n in facts.choose_shown([data.rows[each] for each in images], most)]


def _cells(row: ImageRow, thumbnail: bytes | None) -> dict[str, Any]:
    return {
        **{name: getattr(row, name) for name in _COLUMNS},
        "slots": dict(row.slots),
        "scores": {name: _rounded(score) for name, score in row.scores.items()},
        "guidance_scale": _rounded(row.guidance_scale),
        "thumbnail": _data_uri(thumbnail),
    }


def _rounded(value: float | None) -> float | None:
    """Round to six digits: columns are float32, and 7.1 should not be shown as 7.0999999046."""
    known = facts.number(value)
    return None if known is None else float(f"{known:.6g}")


def _data_uri(thumbnail: bytes | None) -> str | None:
    if not thumbnail:
        return None
    return "data:image/webp;base64," + base64.b64encode(thumbnail).decode()


def _static_parts(data: ReportData) -> dict[str, Any]:
    """The values that the page's template fills in."""
    language, hosted = (facts.spending(data.log, event) for event in ("llm_call", "image_call"))
    stages, speeds = facts.stage_seconds(data.log), facts.rendered(data.log)
    times = list(facts.numbers(entry.get("time") for entry in data.log))
    return {
        "name": data.name,
        "version": __version__,
        "description": _description(data.rows),
        "finished": (
            f"{datetime.fromtimestamp(max(times), UTC):%Y-%m-%d %H:%M} UTC" if times else ""
        ),
        "tiles": _tiles(data, [*language, *hosted], stages, speeds),
        "summary": data.summary,
        "stages": [
            {"name": name, "seconds": duration(seconds), "share": seconds / max(stages.values())}
            for name, seconds in stages.items()
            if max(stages.values()) > 0
        ],
        "calls": [
            *(("Language model", each) for each in language),
            *(("Renderer", each) for each in hosted),
        ],
        "speeds": [
            {
                "batch": size,
                "images": images,
                "seconds": duration(seconds),
                "rate": f"{images / seconds:.2f}" if seconds > 0 else "unknown",
            }
            for size, (images, seconds) in speeds.items()
        ],
        "failures": _failures(data.ledger),
        "failure_count": len(data.ledger),
        "counts": {"images": len(data.rows), "rejected": len(data.rejected)},
    }


def _description(rows: Sequence[ImageRow]) -> str:
    if not rows:
        return "No images yet."
    nouns = facts.distinct(row.class_noun for row in rows)
    writers = facts.distinct(row.language_model for row in rows)
    phrases = f", captions with phrases from {writers}" if writers else ""
    models = facts.distinct(row.model for row in rows)
    count = f"{len(rows):,} regularization image{'' if len(rows) == 1 else 's'}"
    return f"{count} of the class “{nouns}”, drawn by {models}{phrases}."


def _tiles(
    data: ReportData,
    calls: Sequence[facts.Spending],
    stages: Mapping[str, float],
    speeds: Mapping[str, tuple[int, float]],
) -> list[tuple[str, str]]:
    tiles = [
        ("images", f"{len(data.rows):,}"),
        ("different captions", f"{len({row.text for row in data.rows}):,}"),
        ("refused", f"{len(data.rejected):,}"),
    ]
    aligned = list(facts.numbers(row.scores.get("alignment") for row in data.rows))
    if aligned:
        tiles.append(("mean alignment", f"{sum(aligned) / len(aligned):.3f}"))
    images = sum(each[0] for each in speeds.values())
    seconds = sum(each[1] for each in speeds.values())
    if images and seconds > 0:
        tiles.append(("images per second", f"{images / seconds:.2f}"))
    if stages:
        tiles.append(("total time", duration(sum(stages.values()))))
    if calls:
        tiles.append(("cost of API calls", facts.cost_in_all(calls)))
    return tiles


def _failures(ledger: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Ledger entries grouped by stage and like reason, most frequent first."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for entry in ledger:
        key = (str(entry.get("stage", "")), facts.reason_kind(str(entry.get("reason", ""))))
        groups.setdefault(key, []).append(entry)
    return [
        {
            "stage": stage,
            "kind": kind,
            "count": len(entries),
            "more": len(entries) - _MOST_FAILURES,
            "entries": [
                {
                    "item": str(entry.get("item", "")),
                    "reason": str(entry.get("reason", "")),
                    "raw": str(entry.get("raw") or "")[:_MOST_RAW],
                }
                for entry in entries[:_MOST_FAILURES]
            ],
        }
        for (stage, kind), entries in sorted(groups.items(), key=lambda group: -len(group[1]))
    ]


def _audit(audit: Mapping[str, Any] | None, shown: Collection[str]) -> dict[str, Any] | None:
    """The audit for the template; an example that names an image in the gallery leads there."""
    if not audit or not audit.get("checks"):
        return None
    checks = [
        {
            **check,
            "mark": _MARKS.get(check["grade"], _MARKS["unknown"]),
            "examples": [
                [(word, word in shown) for word in str(example).split(" ")]
                for example in check["examples"]
                if check["grade"] in ("look", "bad")
            ],
        }
        for check in audit["checks"]
    ]
    numbers = {check["name"]: check["numbers"] for check in audit["checks"]}
    dependence = numbers.get("slot pairs", {}).get("dependence", {})
    return {
        "grade": audit["grade"],
        "verdict": audit["verdict"],
        "checks": checks,
        "worth": sum(check["grade"] in ("look", "bad") for check in checks),
        "slots": numbers.get("slot coverage", {}).get("slots", {}),
        "pairs": sorted(dependence.items(), key=lambda item: -item[1]),
    }
