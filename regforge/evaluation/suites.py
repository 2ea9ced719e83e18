"""Models, subjects and benchmarks: what the parts of evaluation share.

Reads `templates/benchmarks/*.yaml`, YAML files of the same form, and text files with one prompt a
line. docs/metrics.md says what each benchmark is for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from regforge.embedded import EMBEDDED, TINYWORLD
from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.files import expanded, read_text, templates_folder
from regforge.recipe import Kind
from regforge.recipe.models import benchmarks
from regforge.recipe.named_files import EMBEDDING_FOLDER, is_file
from regforge.recipe.problems import Place
from regforge.recipe.yaml_nodes import Node, read_yaml
from regforge.words import did_you_mean


class EvaluationError(RegforgeError):
    """A model, folder, benchmark or setting of an evaluation is not there or does not fit."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True)
class Subject:
    """The one thing that a model was personalized with.

    Attributes:
        images: The folder of its photos, if known.
        missing: Where they were, if they are not there any more.
    """

    identifier: str
    class_noun: str
    kind: Kind
    images: Path | None
    missing: Path | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """What prompts call it: `sks teapot`."""
        return f"{self.identifier} {self.class_noun}".strip()


@dataclass(frozen=True)
class PersonalizedModel:
    """A base model, and what was trained on it.

    Attributes:
        name: For tables and legends; unique within an evaluation.
        base: Address or folder of the base model, or `embedded/tinyworld`.
        digest: SHA-256 of the weights, 64 hex digits: images of other weights are drawn anew.
        revision: Of the base model on the Hub.
        variant: Weights variant of the base model.
        config: What describes a base model that is a single file.
        weights: The file of a LoRA, or of a new token alone; None for a base model as it is, or one
            that was trained as a whole (then `base` is its folder).
        embedding: The file of a new token, if it has one; beside a LoRA or `weights` itself.
        steps: Optimizer steps it was trained for, if known.
        prompts: Of its own validation.
        guidance_scale: Of its own validation.
        recipe: The training recipe as its run has it, if known.
        where: Where it lies: an absolute path, `embedded/tinyworld`, or `user/name` on the Hub.
        notes: What was assumed about it, a sentence each.
    """

    name: str
    base: str
    digest: str
    revision: str | None = None
    variant: str | None = None
    config: str | None = None
    weights: Path | None = None
    embedding: Path | None = None
    subject: Subject | None = None
    steps: int | None = None
    prompts: tuple[str, ...] = ()
    guidance_scale: float | None = None
    recipe: Mapping[str, Any] | None = None
    where: str = ""
    notes: tuple[str, ...] = ()

    def setting(self, section: str, key: str) -> Any:
        """A value of its training recipe; None where there is none."""
        return section_of(self.recipe, section).get(key)

    @property
    def is_snapshot(self) -> bool:
        """Whether it is a snapshot of a run."""
        return snapshot_step(home_of(self.weights or Path(self.base))) is not None

    @property
    def run(self) -> Path:
        """The folder of the run that it is of."""
        return run_of(self.weights or Path(self.base))


def home_of(path: Path) -> Path:
    """The folder of a run or snapshot, by itself or by the folder or file of its weights."""
    folder = path.parent if path.suffix == ".safetensors" else path
    inside = folder.name in ("lora", "model", EMBEDDING_FOLDER)
    return folder.parent if inside and not is_file(folder / "recipe.yaml") else folder


def run_of(path: Path) -> Path:
    """The folder of a run, likewise, and by one of its snapshots."""
    home = home_of(path)
    return home if snapshot_step(home) is None else home.parent.parent


def snapshot_step(folder: Path) -> int | None:
    """Of which step a run's snapshot is; None for any other folder, such as the Hub's cache."""
    named = re.fullmatch(r"step-(\d+)", folder.name)
    return int(named[1]) if named and folder.parent.name == "snapshots" else None


def section_of(recipe: Mapping[str, Any] | None, name: str) -> Mapping[str, Any]:
    """A section of a recipe, which may be anybody's; empty where there is none."""
    found = (recipe or {}).get(name)
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class BenchmarkPrompt:
    """One prompt of a benchmark.

    Attributes:
        text: With `{}` where the subject stands: "a {} in the jungle".
        suite: Name of the benchmark: `dreambench`, `motion`, ...
        group: Its kind in the benchmark: `place`, `style`, `motion`, `property`, ...
    """

    text: str
    suite: str
    group: str = ""

    def about(self, noun: str) -> str:
        """The prompt with a noun in it, `sks teapot` or `teapot`."""
        from regforge.embedded.phrase_banks import with_noun

        return with_noun(self.text, noun)


def without_identifier(prompt: str, subject: Subject | None) -> str:
    """A prompt for the base model: `a photo of a sks owl` becomes `a photo of an owl`."""
    if subject is None or not subject.identifier.strip():
        return prompt
    from regforge.embedded.phrase_banks import indefinite_article

    identifier, words = subject.identifier.split(), prompt.split()
    kept: list[str] = []
    while words:
        if [_bare(word) for word in words[: len(identifier)]] != [_bare(w) for w in identifier]:
            kept.append(words.pop(0))
            continue
        last = words[len(identifier) - 1]
        del words[: len(identifier)]
        if kept and kept[-1].lower() in ("a", "an") and words:
            article = indefinite_article(words[0])
            kept[-1] = article.capitalize() if kept[-1][0].isupper() else article
        stop = last[len(last.rstrip(",.;:!?")) :]
        if stop and kept:
            kept[-1] += stop
    return " ".join(kept)


def _bare(word: str) -> str:
    return word.strip("\"'(),.;:!?").casefold()


@dataclass(frozen=True)
class ImageRequest:
    """An image to be drawn.

    Attributes:
        number: Which of the samples of this prompt, from 0.
        seed: Of the noise; the same for all models, so that they are comparable.
        file: Relative to the folder of its model's images; None: it is not kept.
        question: The benchmark's prompt; None for an image of another member of the class.
        caption: The prompt without the identifier, which alignment is measured with: an encoder
            knows what an owl is, and not what `sks` is.
    """

    prompt: str
    number: int
    seed: int
    file: str | None = None
    question: BenchmarkPrompt | None = None
    caption: str = ""


@dataclass
class ImageScores:
    """The scores of one image.

    Attributes:
        question: The benchmark's prompt; None for another member of the class (`pres`).
        prompt: What was drawn.
        number: Which of its samples.
        file: Relative to the evaluation's folder.
        scores: By `Metric.key`; only those that one image can have.
    """

    question: BenchmarkPrompt | None
    prompt: str
    number: int
    file: str
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
        """Suite and prompt as all models have them; a base model's lacks the identifier."""
        return (self.question.suite, self.question.text) if self.question else ("", self.prompt)


def absolute(path: str | Path) -> Path:
    """Absolute and without `..`, so that its last part is a name; links are not followed."""
    return Path(os.path.abspath(os.path.expanduser(path)))  # noqa: PTH100, PTH111


CLASS = BenchmarkPrompt("a photo of a {}", "")
"""What is drawn of the class, without the identifier, where a benchmark says nothing else."""

_FORM = (
    "`prompts:` is a list of prompts, or has lists under `both`, `object` and `living`, in groups "
    "if you like; templates/benchmarks/dreambench.yaml is an example. A prompt that begins with {} "
    "or stands in [...] needs quotes."
)


def load_suite(name_or_path: str | Path, kind: Kind) -> list[BenchmarkPrompt]:
    """The prompts of a benchmark for a kind of subject, in the file's order, each once.

    It is one that comes with regforge (`dreambench`, `motion`, ...), or a file of the user's: YAML,
    or text with one prompt a line, in which `#` starts a comment.

    Raises:
        EvaluationError: There is no such benchmark, it has nothing for this kind of subject, or a
            prompt cannot be used; with the line.
    """
    path, suite, source = _find(str(name_or_path))
    prompts = _prompts_in(path, source, "prompts")
    found: dict[str, BenchmarkPrompt] = {}
    for prompt in prompts:
        if prompt.kind in ("both", kind):
            found.setdefault(prompt.text, BenchmarkPrompt(prompt.text, suite, prompt.group))
    if not prompts:
        raise EvaluationError(f"{source} has no prompts.", hint=_FORM)
    if not found:
        whom = "living subjects" if kind == "living" else "objects"
        raise EvaluationError(
            f"{source} has no prompts for {whom}.", hint="Leave it out for this subject."
        )
    return list(found.values())


def class_prompts(name_or_path: str | Path) -> list[BenchmarkPrompt]:
    """Prompts for the class as a whole, without the identifier, for `pres`.

    The `class_prompts:` of a benchmark; `a photo of a {}` where it has none, as in DreamBooth.

    Raises:
        EvaluationError: There is no such benchmark, or a prompt cannot be used; with the line.
    """
    path, _, source = _find(str(name_or_path))
    found = _prompts_in(path, source, "class_prompts")
    return [BenchmarkPrompt(prompt.text, "") for prompt in found] or [CLASS]


def default_suites(model: PersonalizedModel, kind: Kind) -> tuple[str, ...]:
    """The usual benchmarks of a model: names for `load_suite`.

    Those that the embedded pipeline can draw; DreamBench for every other model. Living subjects
    get motion as well, in a suite of its own, so that DreamBench's numbers stay comparable.
    """
    trained_on = "" if model.recipe is None else str(model.recipe.get("base_model", ""))
    tiny = is_tinyworld(model.base) or is_tinyworld(trained_on)
    suites = ("tinyworld", "tinyworld-motion") if tiny else ("dreambench", "motion")
    return suites if kind == "living" else suites[:1]


def is_tinyworld(base: str) -> bool:
    """Whether a base model is the embedded pipeline, by its name or by its folder."""
    return base == EMBEDDED or (bool(base) and expanded(base) == TINYWORLD)


# --------------------------------------------------------------------------------------- reading


class _Prompt(NamedTuple):
    """A prompt as a file has it, with its place for messages: `mine.yaml:3:5`."""

    text: str
    place: str
    kind: str = "both"
    group: str = ""


def _find(name: str) -> tuple[Path, str, str]:
    """File of a benchmark, its name, and what messages call the file."""
    shipped = templates_folder() / "benchmarks" / f"{name}.yaml"
    own = absolute(name)
    if re.fullmatch(r"[a-z0-9-]+", name) and shipped.is_file():
        return shipped, name, shipped.name
    if own.is_file():
        return own, own.stem, name
    known = benchmarks()
    raise EvaluationError(
        f"There is no benchmark {name}.{did_you_mean(Path(name).stem, known)}",
        hint=f"Those that come with regforge are {', '.join(known)}. A file of your own works too: "
        "one prompt a line, with {} where the subject stands.",
    )


def _prompts_in(path: Path, source: str, key: str) -> list[_Prompt]:
    """The prompts under a key of a file, each with one place for the subject."""
    try:
        text = read_text(path)
    except OSError as error:
        raise EvaluationError(f"{source} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{source} is not UTF-8 text.") from error
    if path.suffix.lower() in (".yaml", ".yml"):
        found = list(_of_yaml(text, source, key))
    else:
        found = list(_of_text(text, source)) if key == "prompts" else []
    for prompt in found:
        places = prompt.text.count("{}")
        if places != 1:
            wrong = f"has {{}} {places} times" if places else "has no {}"
            raise EvaluationError(
                f"{prompt.place}  {prompt.text!r} {wrong}.",
                hint="Write {} where the subject stands, once: `a {} in the jungle`.",
            )
    return found


def _of_text(text: str, source: str) -> Iterator[_Prompt]:
    for number, line in enumerate(text.splitlines(), start=1):
        if prompt := re.sub(r"(?:^|\s)#.*", "", line).strip():
            yield _Prompt(prompt, f"{source}:{number}")


def _of_yaml(text: str, source: str, key: str) -> Iterator[_Prompt]:
    node, problems = read_yaml(text, Place(source, Path(), 1, 1))
    if problems:
        raise EvaluationError(f"{problems[0]}.", hint=_FORM)
    content = node.content if node else None
    if not isinstance(content, dict) or "prompts" not in content:
        raise EvaluationError(f"{source} has no `prompts:`.", hint=_FORM)
    if key not in content:
        return
    prompts = content[key]
    if key != "prompts" or not isinstance(prompts.content, dict):
        yield from _of_list(prompts, "both", "")
        return
    for kind, entry in prompts.content.items():
        if kind not in ("both", "object", "living"):
            raise EvaluationError(
                f"{entry.key}  {kind!r} is no kind of subject: both, object or living.",
                hint=_FORM,
            )
        groups = entry.content
        if isinstance(groups, dict):
            for group, each in groups.items():
                yield from _of_list(each, kind, group)
        else:
            yield from _of_list(entry, kind, "")


def _of_list(node: Node, kind: str, group: str) -> Iterator[_Prompt]:
    if not isinstance(node.content, list):
        raise EvaluationError(f"{node.place}  a list of prompts belongs here.", hint=_FORM)
    for each in node.content:
        if not isinstance(each.content, str) or not each.content.strip():
            raise EvaluationError(f"{each.place}  a prompt is text.", hint=_FORM)
        yield _Prompt(" ".join(each.content.split()), str(each.place), kind, group)
