"""The dataset's card: README.md with the facts that the Hub reads and the text that people read.

The text comes from templates/card/README.md.j2 and stands between two markers; what somebody wrote
around them stays. Captions and phrases come from models and strangers: each is escaped so that it
is text, whatever it looks like.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from jinja2 import FileSystemLoader, StrictUndefined
from jinja2.sandbox import SandboxedEnvironment

from regforge.dataset.card_parts import BEGIN, END, LICENSE_KEYS, OUR_KEYS, Card, front_matter
from regforge.dataset.store import Rejection
from regforge.files import templates_folder
from regforge.journal import without_secrets
from regforge.recipe.models import Curate, Recipe
from regforge.recipe.rendering import terms_of
from regforge.records import ImageRow, arrow_schema, image_seed, without_folders
from regforge.version import __version__
from regforge.words import beginning

if TYPE_CHECKING:
    import pyarrow as pa

DATA_FILES = "data/train-*.parquet"
"""Named in the card, so that `datasets` looks at no other file in the folder."""


_TAGS = ["regforge", "regularization", "dreambooth", "prior-preservation", "synthetic"]
_SETS = {
    "naive": "one plain caption for all",
    "captions": "captions of the subject's photos without its identifier",
    "against": "captions of the subject's photos without its identifier, their attributes varied",
    "amplify": "structured captions over the whole vocabulary",
    "import": "taken from another dataset",
}
_TOP = 10
_LONGEST = 200
_MOST_ATTEMPTS = 20


class Survey:
    """Counts what the card says about the rows, one row at a time and without their images."""

    def __init__(self, slots: Sequence[str]) -> None:
        self.rows = 0
        self.redrawn = 0
        self.seeded = True
        self.last_index = -1
        self.sets: Counter[str] = Counter()
        self.slots: dict[str, Counter[str]] = {name: Counter() for name in slots}
        self._values: dict[str, Counter[str]] = {}
        self._captions: set[int] = set()
        self._content = hashlib.sha256()

    def add(self, row: ImageRow) -> None:
        """Count a row."""
        self.rows += 1
        # Not the image: its SHA-256 is a column.
        names = (each.name for each in fields(row) if each.name != "image")
        values = [getattr(row, name) for name in names]
        self._content.update(json.dumps(values, sort_keys=True).encode())
        seeds = (image_seed(row.recipe_digest, row.index, n) for n in range(_MOST_ATTEMPTS))
        first = next(seeds)
        self.redrawn += row.seed != first and any(row.seed == seed for seed in seeds)
        self.seeded &= row.seed is not None
        self.last_index = max(self.last_index, row.index)
        self.sets[row.prompt_set] += 1
        self._captions.add(hash(row.text))
        for name, counts in self.slots.items():
            if phrase := row.slots.get(name):
                counts[phrase] += 1
        for name, value in provenance(row).items():
            if value:
                self._values.setdefault(name, Counter())[value] += 1

    @property
    def captions(self) -> int:
        """How many different captions there are."""
        return len(self._captions)

    @property
    def content(self) -> str:
        """Digest of everything that the rows hold, 16 hex digits."""
        return self._content.hexdigest()[:16]

    def values(self, name: str) -> list[str]:
        """The values of one part of the provenance, most frequent first."""
        return [value for value, _ in _most_common(self._values.get(name, Counter()))]

    def provenance(self) -> list[tuple[str, list[str]]]:
        """(name, its values) of each part of the provenance that has any."""
        return [(name, self.values(name)) for name in self._values]


@dataclass
class Refusals:
    """Counts images that were given up."""

    count: int = 0
    least: int = 0
    most: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, rejection: Rejection) -> None:
        """Count one; each of its reasons counts."""
        self.least = min(self.least or rejection.attempts, rejection.attempts)
        self.most = max(self.most, rejection.attempts)
        self.count += 1
        # Without what is about one image: numbers, and the other one's name.
        kinds = {re.sub(r"\s*\(.*\)$", "", reason) for reason in rejection.reasons}
        self.reasons.update({re.sub(r" image \S+", " another image", kind) for kind in kinds})

    @property
    def attempts(self) -> str:
        """Such as `1 attempt` or `2 to 3 attempts`."""
        numbers = f"{self.least} to {self.most}" if self.least < self.most else f"{self.most}"
        return f"{numbers} attempt{'s' * (self.most != 1)}"


def write_card(
    survey: Survey,
    refusals: Refusals,
    recipe: Recipe,
    *,
    versions: Mapping[str, str] | None = None,
    vocabulary: bool = False,
    existing: str | None = None,
) -> str:
    """The text of README.md.

    `versions` are of the libraries that made the images; regforge's own is added. `vocabulary`:
    vocabulary.json lies beside the card. Of an `existing` card, what stands outside of its markers
    is kept, and so are the keys of its front matter that regforge does not write.
    """
    kept = Card.parse(existing)
    theirs = kept.front.keys() - OUR_KEYS
    if recipe.dataset.license != "other":
        theirs -= LICENSE_KEYS  # they were about another licence
    own = {key: value for key, value in kept.front.items() if key in theirs}
    front = {**_front_matter(survey, recipe), **own}
    body = _body(survey, refusals, recipe, versions or {}, vocabulary, front)
    ours = f"{BEGIN}\n{body.strip()}\n{END}\n"
    return f"---\n{without_secrets(front_matter(front))}---\n{kept.before}{ours}{kept.after}"


def _front_matter(survey: Survey, recipe: Recipe) -> dict[str, Any]:
    front: dict[str, Any] = {"license": recipe.dataset.license}
    terms = terms_of(recipe.render.model)
    if recipe.dataset.license == "other" and terms is not None and terms.license == "other":
        front |= {"license_name": terms.name, "license_link": terms.link}
    front |= {
        "pretty_name": _title(recipe),
        "language": [recipe.dataset.language],
        "task_categories": ["text-to-image"],
        "size_categories": [_size_category(survey.rows)],
        "tags": list(_TAGS),
        "configs": card_configs(survey.content),
        "dataset_info": {"features": card_features(arrow_schema(list(survey.slots)))},
    }
    return {key: value for key, value in front.items() if value is not None}


def card_configs(content: str) -> list[dict[str, Any]]:
    """What the front matter says about the files; without it, others in the folder may be read.

    `datasets` caches a folder under its last name and a hash of what the card says here and in
    `dataset_info`; neither its path nor its files count. So the content's digest stands here, in a
    field of every `BuilderConfig`, or each run's `dataset` folder would give the rows of the first
    one that was loaded.
    """
    return [
        {
            "config_name": "default",
            "description": f"content {content}",
            "data_files": [{"split": "train", "path": DATA_FILES}],
        }
    ]


def card_features(schema: pa.Schema) -> list[dict[str, Any]]:
    """The columns as a card's `dataset_info` lists them."""
    import pyarrow as pa

    def feature(entry: pa.Field) -> dict[str, Any]:
        if entry.name == "image":
            return {"name": entry.name, "dtype": "image"}
        if pa.types.is_struct(entry.type):
            return {"name": entry.name, "struct": [feature(child) for child in entry.type]}
        kind = "float32" if pa.types.is_float32(entry.type) else str(entry.type)
        return {"name": entry.name, "dtype": kind}

    return [feature(entry) for entry in schema]


def _body(
    survey: Survey,
    refusals: Refusals,
    recipe: Recipe,
    versions: Mapping[str, str],
    vocabulary: bool,
    front: Mapping[str, Any],
) -> str:
    template, render = card_environment("card").get_template("README.md.j2"), recipe.render
    beside = (("VAE", render.vae), ("configuration", render.config))
    return template.render(
        title=_title(recipe),
        rows=survey.rows,
        class_nouns=survey.values("class noun"),
        models=survey.values("rendering model"),
        made=[
            *survey.provenance(),
            *((what, [without_folders(named)]) for what, named in beside if named),
            ("seed", [recipe.seed]),
        ],
        top=_TOP,
        versions=list({"regforge": __version__, **versions}.items()),
        sets=[(name, count, _SETS.get(name, "")) for name, count in _most_common(survey.sets)],
        captions=survey.captions,
        slots=[
            {
                "name": name,
                "different": len(counts),
                "top": _most_common(counts)[:_TOP],
                "without": survey.rows - counts.total(),
            }
            for name, counts in survey.slots.items()
        ],
        slot_names=list(survey.slots) or ["none in this recipe"],
        given_up=refusals.count,
        attempts=refusals.attempts,
        refused=_most_common(refusals.reasons),
        redrawn=survey.redrawn,
        seeded=survey.seeded,
        checks=_checks(recipe.curate),
        repo_id=recipe.dataset.repo_id or "path/to/this/folder",
        vocabulary=vocabulary,
        photos=bool({"captions", "against"} & survey.sets.keys()),
        license=front.get("license"),
        license_name=front.get("license_name"),
        toy=recipe.render.model.startswith("embedded/"),
    )


def provenance(row: ImageRow) -> dict[str, str]:
    """How an image was made, by what the card and the report call it; empty where not known."""
    return {
        "class noun": row.class_noun,
        "kind": row.kind,
        "rendering model": without_folders(row.model),
        "revision": row.model_revision or "",
        "LoRA": loras_in_words(row.lora),
        "scheduler": row.scheduler or "",
        "steps": "" if row.steps is None else str(row.steps),
        "guidance scale": "" if row.guidance_scale is None else f"{row.guidance_scale:g}",
        "negative prompt": row.negative_prompt,
        "size": f"{row.width} x {row.height}",
        "language model": row.language_model or "",
        "caption template": without_folders(row.template),
        "recipe digest": row.recipe_digest,
    }


def loras_in_words(lora: str | None) -> str:
    """The LoRAs as text, such as `teapot.safetensors at 0.8 (sha256:0123456789ab)`."""
    return ", ".join(
        f"{each['name']} at {each['scale']:g} ({each['revision'][:19]})"
        for each in json.loads(lora or "[]")
    )


def _checks(curate: Curate) -> list[str]:
    checks = ["exact copies"]
    if curate.max_duplicate_distance is not None:
        bits = curate.max_duplicate_distance
        checks.append(f"look-alikes (64-bit pHash, at most {bits} bits apart)")
    if curate.constant:
        checks.append("black images and images of a single colour")
    if curate.nsfw:
        checks.append("what the model's own safety checker flags, if it has one")
    if curate.alignment is not None:
        least = curate.alignment.min
        limit = "scored only" if least is None else f"at least {least:g}"
        checks.append(f"alignment by {without_folders(curate.alignment.model)} ({limit})")
    return checks


def _title(recipe: Recipe) -> str:
    noun = " ".join(recipe.subject.class_noun.split())
    return f"{noun[:1].upper()}{noun[1:]} regularization images"


def _size_category(rows: int) -> str:
    names = ["n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M"]
    return next((n for i, n in enumerate(names) if rows < 1000 * 10**i), "10M<n<100M")


def _most_common(counts: Counter[str]) -> list[tuple[str, int]]:
    """Most frequent first, equally frequent ones by name."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


@functools.cache
def card_environment(folder: str) -> SandboxedEnvironment:
    """The environment that renders the cards of a templates folder, escaping values for Markdown.

    The filter `code` makes a name safe for a block of code instead, and `quoted` a sentence between
    quotes there.
    """
    environment = SandboxedEnvironment(
        loader=FileSystemLoader(templates_folder() / folder),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_escaped,
    )
    # Only what names and paths are made of; only words and the plainest punctuation, but for a part
    # that is known to be sound, such as the name of a new token.
    environment.filters["code"] = lambda value: _Safe(
        re.sub(r"[^\w./-]", "-", without_secrets(value))
    )
    environment.filters["quoted"] = _quoted
    return environment


def _quoted(value: str, sound: str = "") -> _Safe:
    parts = (
        re.sub(r"[^\w ,.'-]", " ", part) for part in without_secrets(value).split(sound or None)
    )
    return _Safe(" ".join(f" {sound} ".join(parts).split()))


class _Safe(str):
    """Text that needs no escaping."""

    __slots__ = ()


def _escaped(value: object) -> str:
    """Escape a value for Markdown and HTML: whatever could mean something becomes an entity."""
    if isinstance(value, _Safe):
        return value
    line = beginning(" ".join(without_secrets(str(value)).split()), _LONGEST)
    plain = "".join(" " if unicodedata.category(c).startswith("C") else c for c in line)
    # Brackets of entities as well: a site that fills templates in must find none.
    safe = re.sub(r"_|[^\w ,.;:%+?()/'-]", lambda found: f"&#{ord(found.group())};", plain)
    return re.sub(r"(?i):(?=//)|(?<=www)\.", lambda found: f"&#{ord(found.group())};", safe)
