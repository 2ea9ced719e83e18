"""The report page: what it is told, and how it is written.

Fills templates/report. The page asks the network for nothing: style, script and images are
inside, and its Content-Security-Policy allows nothing else. Whatever models or people wrote
reaches it as escaped text only. Numbers come from `report_facts`, data from `report`; how the page
behaves is the business of templates/report/report.js.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from regforge.dataset import report_facts as facts
from regforge.files import write_atomically
from regforge.progress import duration
from regforge.records import ImageRow
from regforge.resources import templates
from regforge.version import __version__

if TYPE_CHECKING:
    from regforge.dataset.store import Rejection

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


@dataclass(frozen=True, slots=True)
class ReportRow:
    """An image of the dataset.

    Attributes:
        row: All about it; `image` may be empty.
        thumbnail: WebP file; None leaves it out of the gallery, not out of the counts.
    """

    row: ImageRow
    thumbnail: bytes | None


@dataclass(frozen=True)
class ReportData:
    """Everything that the page shows.

    Attributes:
        name: The dataset's name.
        summary: How it was made, such as "Renderer": "embedded/tinyworld", in display order.
        rows: All images, in the order of their index.
        rejected: Images that were given up.
        log: Entries of log.jsonl.
        ledger: Entries of ledger.jsonl.
        offered: Phrases by slot that captions could use, so that unused ones are seen too.
        audit: What an audit found, as `Audit.as_dict` of the audit says it; None leaves it out.
    """

    name: str
    summary: Mapping[str, str]
    rows: Sequence[ReportRow]
    rejected: Sequence[Rejection] = ()
    log: Sequence[Mapping[str, Any]] = ()
    ledger: Sequence[Mapping[str, Any]] = ()
    offered: Mapping[str, Sequence[str]] = field(default_factory=dict)
    audit: Mapping[str, Any] | None = None


def write_report(path: Path, data: ReportData) -> None:
    """Write the page, atomically.

    Args:
        path: The HTML file.
        data: What it shows.

    Raises:
        StorageError: The file cannot be written.
    """
    folder = templates() / "report"
    css = (folder / "report.css").read_text(encoding="utf-8")
    script = (folder / "report.js").read_text(encoding="utf-8")
    payload = _payload(data)
    template = _environment().get_template("report.html.j2")
    page = template.render(
        **_static_parts(data),
        css=Markup(css),
        script=Markup(script),
        css_digest=_csp_digest(css),
        script_digest=_csp_digest(script),
        payload=Markup(_as_json(payload)),
        audit=_audit(data.audit, {(payload["common"] | row)["id"] for row in payload["rows"]}),
    )
    # Captions can hold what UTF-8 cannot, such as half of a surrogate pair.
    write_atomically(path, page.encode("utf-8", errors="replace"))


# ------------------------------------------------------------------------- what the script draws


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(templates() / "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _payload(data: ReportData) -> dict[str, Any]:
    rows = [each.row for each in data.rows]
    slots = list(dict.fromkeys(name for row in rows for name in row.slots)) or list(data.offered)
    axes = facts.coverage(rows, slots, data.offered)
    refused = list(data.rejected[:_MOST_REFUSED])
    room = _THUMBNAIL_BYTES - sum(len(each.thumbnail or b"") for each in refused)
    shown = _that_fit(data.rows, room)
    place = {position: number for number, position in enumerate(shown)}
    ids = {rows[position].id: number for position, number in place.items()}
    return {
        "total": len(rows),
        "columns": _COLUMNS,
        **_compact([_cell_values(data.rows[position]) for position in shown]),
        "axes": [
            {"key": a.key, "label": a.label, "counts": a.counts, "without": a.without} for a in axes
        ],
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
                "kinds": sorted({facts.reason_kind(reason) for reason in each.reasons}),
                "attempts": each.attempts,
                "thumbnail": _data_uri(each.thumbnail),
                "original": ids.get(facts.image_id_in(each.reasons) or ""),
            }
            for each in refused
        ],
        "rejectedTotal": len(data.rejected),
        "rejectedKinds": Counter(
            kind
            for each in data.rejected
            for kind in {facts.reason_kind(reason) for reason in each.reasons}
        ),
    }


def _that_fit(rows: Sequence[ReportRow], room: int) -> list[int]:
    """Positions of the rows that the gallery shows: all with a thumbnail, if they fit the room."""
    images = [position for position, each in enumerate(rows) if each.thumbnail is not None]
    size = sum(len(rows[position].thumbnail or b"") for position in images)
    if size <= room:
        return images
    most = len(images) * room // size
    return [images[n] for n in facts.choose_shown([rows[each].row for each in images], most)]


def _cell_values(each: ReportRow) -> dict[str, Any]:
    values = {name: getattr(each.row, name) for name in _COLUMNS}
    values["slots"] = dict(each.row.slots)
    values["scores"] = {name: _rounded(score) for name, score in each.row.scores.items()}
    values["guidance_scale"] = _rounded(each.row.guidance_scale)
    return {**values, "thumbnail": _data_uri(each.thumbnail)}


def _compact(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Columns that say the same in every row are written once, below `common`."""
    first = rows[0] if rows else {}
    common = {
        name: value for name, value in first.items() if all(row[name] == value for row in rows)
    }
    return {
        "common": common,
        "rows": [{k: v for k, v in row.items() if k not in common} for row in rows],
    }


def _rounded(value: float | None) -> float | None:
    """Columns are float32; 7.1 should not be shown as 7.099999904632568."""
    known = facts.number(value)
    return None if known is None else float(f"{known:.6g}")


def _data_uri(thumbnail: bytes | None) -> str | None:
    if not thumbnail:
        return None
    return "data:image/webp;base64," + base64.b64encode(thumbnail).decode()


def _as_json(payload: Mapping[str, Any]) -> str:
    """JSON that cannot end the script element it stands in, nor start another one."""
    text = json.dumps(payload, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _csp_digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# ----------------------------------------------------------------------- what the template draws


def _static_parts(data: ReportData) -> dict[str, Any]:
    language, hosted = (facts.spending(data.log, event) for event in ("llm_call", "image_call"))
    stages = facts.stage_seconds(data.log)
    speeds = facts.rendered(data.log)
    return {
        "name": data.name,
        "version": __version__,
        "description": _description(data.rows),
        "finished": _finished(data.log),
        "tiles": _tiles(data, [*language, *hosted], stages, speeds),
        "summary": data.summary,
        "stages": [
            {"name": name, "seconds": duration(seconds), "share": seconds / max(stages.values())}
            for name, seconds in stages.items()
            if max(stages.values()) > 0
        ],
        "calls": [("Language model", each) for each in language]
        + [("Image API", each) for each in hosted],
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


def _description(rows: Sequence[ReportRow]) -> str:
    if not rows:
        return "No images yet."
    nouns = facts.distinct(each.row.class_noun for each in rows)
    writers = facts.distinct(each.row.language_model for each in rows)
    phrases = f", captions with phrases from {writers}" if writers else ""
    models = facts.distinct(each.row.model for each in rows)
    count = f"{len(rows):,} regularization image{'' if len(rows) == 1 else 's'}"
    return f"{count} of the class “{nouns}”, drawn by {models}{phrases}."


def _tiles(
    data: ReportData,
    calls: Sequence[facts.Spending],
    stages: Mapping[str, float],
    speeds: Mapping[str, tuple[int, float]],
) -> list[tuple[str, str]]:
    rows = [each.row for each in data.rows]
    tiles = [
        ("images", f"{len(rows):,}"),
        ("different captions", f"{len({row.text for row in rows}):,}"),
        ("refused", f"{len(data.rejected):,}"),
    ]
    aligned = [s for row in rows if (s := facts.number(row.scores.get("alignment"))) is not None]
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
    """The audit as the template takes it.

    Args:
        audit: As `ReportData.audit`.
        shown: Ids of the images in the gallery; where an example names one, it leads there.
    """
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
    return {
        "grade": audit["grade"],
        "verdict": audit["verdict"],
        "checks": checks,
        "worth": sum(check["grade"] in ("look", "bad") for check in checks),
        "slots": numbers.get("slot coverage", {}).get("slots", {}),
        "pairs": sorted(
            numbers.get("slot pairs", {}).get("dependence", {}).items(), key=lambda item: -item[1]
        ),
    }


def _finished(log: Sequence[Mapping[str, Any]]) -> str:
    times = [t for entry in log if (t := facts.number(entry.get("time"))) is not None]
    return f"{datetime.fromtimestamp(max(times), UTC):%Y-%m-%d %H:%M} UTC" if times else ""
