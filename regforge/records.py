"""Records that flow between the stages, and how a row looks in Arrow.

    Prompt      a caption and its origin                   prompts.jsonl, one a line
    ImageJob    one image of a prompt: its id, its seed    derived, never stored
    ImageRow    a finished image and all that made it      a row of the dataset
    Example     a captioned image of any dataset           exported, audited, trained on

Ids and seeds are functions of (recipe digest, index) alone: any image can be made again by itself.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.files import parse_json

if TYPE_CHECKING:
    import pyarrow as pa

SEED_BITS = 32
"""Seeds fit in 32 bits, which every tool that reads the metadata can take."""

SCORES = ("alignment", "duplicate_distance")
"""Columns below `scores`; null where not measured."""


class RecordError(RegforgeError):
    """A stored record that cannot be read."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True, slots=True)
class Prompt:
    """One regularization caption.

    Attributes:
        index: Its number, from 0 and without gaps.
        kind: `object` or `living`.
        prompt_set: `naive`, `captions`, `against`, `amplify` or `import`.
        slots: The phrase in each slot of the recipe; None where the caption has none.
        template: Name of the caption template; empty for captions made from an instance caption.
        language_model: LiteLLM id of the model that supplied phrases; None if none did.
        reference: File name of the instance image whose caption it was made from, if any.
        width: Pixels, where the prompt asks for its own size; `height` likewise.
        seed: Where the prompt asks for its own seed (`prompts.match: [seed]`), 0 to 2**32 - 1.
    """

    index: int
    text: str
    class_noun: str
    kind: str
    prompt_set: str
    slots: Mapping[str, str | None] = field(default_factory=dict)
    template: str = ""
    language_model: str | None = None
    reference: str | None = None
    width: int | None = None
    height: int | None = None
    seed: int | None = None

    def to_json(self) -> str:
        """One line of prompts.jsonl, without the line's end."""
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=False)

    @classmethod
    def from_json(cls, line: str) -> Prompt:
        """Read what `to_json` wrote and somebody may have edited.

        Raises:
            RecordError: The line is no such prompt.
        """
        try:
            prompt = cls(**parse_json(line))
        except (ValueError, TypeError) as error:
            raise RecordError(f"not a prompt: {line[:80]!r} ({error})") from error
        wrong = [
            name
            for name, kinds in _KINDS.items()
            if type(getattr(prompt, name)) not in kinds  # True is no number
        ]
        slots = prompt.slots.values() if isinstance(prompt.slots, dict) else ()
        if any(phrase is not None and not isinstance(phrase, str) for phrase in slots):
            wrong.append("slots")
        if wrong:
            raise RecordError(f"not a prompt: `{wrong[0]}` is {getattr(prompt, wrong[0])!r}")
        return prompt


_TEXT = "text class_noun kind prompt_set template"
_KINDS: Mapping[str, tuple[type, ...]] = {
    "index": (int,),
    "slots": (dict,),
    **dict.fromkeys(_TEXT.split(), (str,)),
    **dict.fromkeys(("language_model", "reference"), (str, type(None))),
    **dict.fromkeys(("width", "height", "seed"), (int, type(None))),
}


def read_prompts(path: Path) -> Iterator[Prompt]:
    """The prompts of a prompts.jsonl, which somebody may have edited.

    Raises:
        RecordError: A line is no prompt, or has another index than its place; the message names
            the line.
    """
    try:
        with path.open("rb") as lines:
            for index, line in enumerate(lines):
                try:
                    prompt = Prompt.from_json(line.decode())
                except UnicodeDecodeError:
                    raise RecordError("not UTF-8 text") from None
                if prompt.index != index:
                    raise RecordError(f"its index is {prompt.index}, and by its place {index}")
                yield prompt
    except RecordError as error:
        raise RecordError(
            f"{path}, line {index + 1}: {error.message}.",
            hint="Put it right, or delete the file: captions that nobody edited come out the same.",
        ) from error
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror}.") from error


class PackedPrompts(Sequence[Prompt]):
    """Prompts in a tenth of the memory: compressed lines of prompts.jsonl, in blocks."""

    _BLOCK = 1024

    def __init__(self, prompts: Iterable[Prompt]) -> None:
        self._blocks: list[bytes] = []
        self._count = 0
        self._unpacked: tuple[int, list[Prompt]] = (-1, [])
        remaining = iter(prompts)
        while block := list(islice(remaining, self._BLOCK)):
            lines = "".join(prompt.to_json() + "\n" for prompt in block)
            self._blocks.append(zlib.compress(lines.encode(), 1))
            self._count += len(block)

    def content(self) -> Iterator[bytes]:
        """The content of prompts.jsonl, in pieces."""
        yield from map(zlib.decompress, self._blocks)

    def __len__(self) -> int:
        """How many there are."""
        return self._count

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | Sequence[Prompt]:
        """One of them, or some, again in little memory."""
        if isinstance(index, slice):
            chosen = range(*index.indices(self._count))
            whole = len(chosen) == self._count and chosen.step == 1
            return self if whole else PackedPrompts(self[number] for number in chosen)
        number = range(self._count)[index]
        block, place = divmod(number, self._BLOCK)
        if self._unpacked[0] != block:
            lines = zlib.decompress(self._blocks[block]).decode()
            self._unpacked = block, [Prompt.from_json(each) for each in lines.split("\n")[:-1]]
        return self._unpacked[1][place]


def image_id(recipe_digest: str, index: int) -> str:
    """Name of image number `index` of a recipe, such as `3f2a9c01b7de-000041`."""
    return f"{recipe_digest[:12]}-{index:06d}"


def image_seed(recipe_digest: str, index: int, attempt: int = 0) -> int:
    """Seed of image number `index`, 0 to 2**32 - 1; another one for each attempt."""
    text = f"{recipe_digest}/{index}/{attempt}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[: SEED_BITS // 8])


@dataclass(frozen=True, slots=True)
class ImageJob:
    """One image to be made.

    Attributes:
        index: Its number among all images of the recipe.
        id: See `image_id`.
        attempt: 0, and one more each time the image before was refused.
    """

    index: int
    id: str
    prompt: Prompt
    seed: int
    attempt: int = 0

    def again(self, recipe_digest: str) -> ImageJob:
        """The same image with the next seed."""
        attempt = self.attempt + 1
        return replace(self, attempt=attempt, seed=image_seed(recipe_digest, self.index, attempt))


def image_jobs(
    prompts: Sequence[Prompt], recipe_digest: str, images_per_prompt: int = 1
) -> Iterator[ImageJob]:
    """All images of some prompts, in the order of their index.

    A prompt with its own seed gives it to the first of its images.
    """
    for prompt in prompts:
        for number in range(images_per_prompt):
            index = prompt.index * images_per_prompt + number
            own = prompt.seed if number == 0 else None
            seed = image_seed(recipe_digest, index) if own is None else own
            yield ImageJob(index, image_id(recipe_digest, index), prompt, seed)


@dataclass(frozen=True, slots=True)
class ImageRow:
    """A finished image and everything that made it: a row of the dataset.

    Attributes:
        image: The encoded file (WebP, PNG or JPEG).
        text: The caption; for further fields of it see `Prompt`.
        seed: 0 to 2**32 - 1; like `scheduler`, `steps` and `guidance_scale` None where the model
            did not get it.
        model_revision: Commit of the repository, or a digest of the folder.
        image_digest: SHA-256 of `image`, 64 hex digits.
        perceptual_hash: 64-bit pHash, 16 hex digits.
        scores: `SCORES`, None where not measured.
        id: See `image_id`.
        lora: JSON list of the LoRAs over the model, each with `name`, `revision` and `scale`; None
            if there are none.
    """

    image: bytes
    text: str
    class_noun: str
    kind: str
    prompt_set: str
    slots: Mapping[str, str | None]
    negative_prompt: str
    seed: int | None
    width: int
    height: int
    model: str
    model_revision: str | None
    scheduler: str | None
    steps: int | None
    guidance_scale: float | None
    language_model: str | None
    template: str
    recipe_digest: str
    image_digest: str
    perceptual_hash: str
    scores: Mapping[str, float | None]
    id: str
    reference: str | None = None
    lora: str | None = None

    @property
    def index(self) -> int:
        """Its number among all images of the recipe."""
        return int(self.id.rpartition("-")[2])


@dataclass(frozen=True, slots=True)
class Example:
    """A captioned image of any dataset, ours or somebody else's.

    Attributes:
        id: Unique in the dataset; not safe as a file name.
        image: The encoded file; empty if it was not asked for.
        text: The caption as it stands there; None if there is none.
        slots: As in `ImageRow`; empty for a dataset of somebody else.
        metadata: Other columns, under the name of `ImageRow` where it has one (`seed`, `model`,
            `image_digest`, ...).
        file: The image as a file of its own, with the same bytes, if there is one.
    """

    id: str
    image: bytes
    text: str | None
    width: int
    height: int
    class_noun: str | None = None
    kind: str | None = None
    prompt_set: str | None = None
    slots: Mapping[str, str | None] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    file: Path | None = None


def arrow_schema(slots: Sequence[str]) -> pa.Schema:
    """The columns of the dataset, with the metadata from which `datasets` makes its features.

    Args:
        slots: Names of the recipe's slots, in order. Parquet cannot hold an empty struct, so a
            recipe without slots gets one that is always null, `background`.
    """
    import pyarrow as pa

    text, number = pa.string(), pa.float32()
    slot_names = list(slots) or ["background"]
    columns: dict[str, pa.DataType] = {
        "image": pa.struct([("bytes", pa.binary()), ("path", text)]),
        "text": text,
        "class_noun": text,
        "kind": text,
        "prompt_set": text,
        "slots": pa.struct([(name, text) for name in slot_names]),
        "negative_prompt": text,
        "seed": pa.int64(),
        "width": pa.int32(),
        "height": pa.int32(),
        "model": text,
        "model_revision": text,
        "scheduler": text,
        "steps": pa.int32(),
        "guidance_scale": number,
        "language_model": text,
        "template": text,
        "recipe_digest": text,
        "image_digest": text,
        "perceptual_hash": text,
        "scores": pa.struct([(name, number) for name in SCORES]),
        "id": text,
        "reference": text,
        "lora": text,
    }
    features = {name: _feature(kind) for name, kind in columns.items()}
    features["image"] = {"_type": "Image"}
    return pa.schema(
        list(columns.items()),
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )


def _feature(kind: pa.DataType) -> dict[str, Any]:
    """How `datasets` writes a feature of this Arrow type."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return {entry.name: _feature(entry.type) for entry in kind}
    name = "float32" if pa.types.is_float32(kind) else str(kind)
    return {"dtype": name, "_type": "Value"}


def as_table(rows: Sequence[ImageRow], slots: Sequence[str]) -> pa.Table:
    """Rows as an Arrow table with the columns of `arrow_schema`."""
    import pyarrow as pa

    schema = arrow_schema(slots)
    slot_names = [entry.name for entry in schema.field("slots").type]
    plain = []
    for row in rows:
        values = {name: getattr(row, name) for name in schema.names}
        # The path is only a name for the bytes; trainers that unpack the dataset use it.
        values["image"] = {"bytes": row.image, "path": f"{row.id}.{file_suffix(row.image)}"}
        values["slots"] = {name: row.slots.get(name) for name in slot_names}
        values["scores"] = {name: row.scores.get(name) for name in SCORES}
        plain.append(values)
    return pa.Table.from_pylist(plain, schema=schema)


def without_folders(name: str) -> str:
    """A path on somebody's machine is nobody else's business: only its last part."""
    local = re.match(r"[/~.\\]|[A-Za-z]:[\\/]", name)
    return re.split(r"[\\/]", name.rstrip("\\/"))[-1] if local else name


def file_suffix(image: bytes) -> str:
    """`webp`, `png` or `jpg`, by the file's first bytes."""
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "webp"
    return "png" if image[:8] == b"\x89PNG\r\n\x1a\n" else "jpg"
