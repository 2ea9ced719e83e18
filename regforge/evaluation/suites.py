"""The prompts that models are asked: benchmarks that come with regforge, and users' own.

Reads `templates/benchmarks/*.yaml`, YAML files of the same form, and text files with one prompt a
line. Knows which of them fit which model and which kind of subject; nothing about drawing or
scoring. docs/metrics.md says what each one is for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from regforge import resources
from regforge.embedded.pipeline import TINYWORLD
from regforge.evaluation.interface import EvaluationError, Kind, PersonalizedModel, Question
from regforge.evaluation.model_files import normal
from regforge.files import expanded, read_text
from regforge.images.loading import EMBEDDED
from regforge.recipe.defaults import benchmarks
from regforge.recipe.problems import Place
from regforge.recipe.yaml_nodes import Entry, Node, read_yaml
from regforge.words import nearest

CLASS = Question("a photo of a {}", "")
"""What is drawn of the class, without the identifier, where a benchmark says nothing else."""

_KINDS = ("both", "object", "living")
_PLACE = "Write {} where the subject stands, once: `a {} in the jungle`."
_FORM = (
    "`prompts:` is a list of prompts, or has lists under `both`, `object` and `living`, in groups "
    "if you like; templates/benchmarks/dreambench.yaml is an example. A prompt that begins with {} "
    "or stands in [...] needs quotes."
)


def load_suite(name_or_path: str | Path, kind: Kind) -> list[Question]:
    """The prompts that a benchmark has for a kind of subject.

    Args:
        name_or_path: Name of one that comes with regforge (`dreambench`, `motion`, ...), or a file
            of the user's: YAML, or text with one prompt a line, in which `#` starts a comment.
        kind: What the subject is; prompts for the other kind are left out.

    Returns:
        The questions, in the file's order, each once: those for both kinds first.

    Raises:
        EvaluationError: There is no such benchmark, it asks this kind of subject nothing, or a
            prompt cannot be used; with the line.
    """
    path, suite, source = _find(str(name_or_path))
    read = _of_yaml if _is_yaml(path) else _of_text
    prompts = list(read(_read(path, source), source))
    asked: dict[str, Question] = {}
    for prompt in prompts:
        _check(prompt)
        if prompt.kind in ("both", kind):
            asked.setdefault(prompt.text, Question(prompt.text, suite, prompt.group))
    if not asked:
        whom = "living subjects" if kind == "living" else "objects"
        raise EvaluationError(
            f"{source} has no prompts for {whom}." if prompts else f"{source} has no prompts.",
            hint="Leave it out for this subject." if prompts else _FORM,
        )
    return list(asked.values())


def class_prompts(name_or_path: str | Path) -> list[Question]:
    """What a benchmark asks of the class as a whole, without the identifier, for `pres`.

    Args:
        name_or_path: As `load_suite` takes it.

    Returns:
        The `class_prompts:` of its file; `a photo of a {}` where it names none, as in DreamBooth.

    Raises:
        EvaluationError: There is no such benchmark, or a prompt cannot be used; with the line.
    """
    path, _, source = _find(str(name_or_path))
    found = list(_class_prompts(path, source)) if _is_yaml(path) else []
    for prompt in found:
        _check(prompt)
    return [Question(prompt.text, "") for prompt in found] or [CLASS]


def default_suites(model: PersonalizedModel, kind: Kind) -> tuple[str, ...]:
    """What a model is asked where nobody says: names for `load_suite`.

    The embedded pipeline is asked what it can draw; every other model DreamBench. Living subjects
    are asked for motion as well, in a suite of its own, so that DreamBench's numbers stay
    comparable.
    """
    suites = (
        ("tinyworld", "tinyworld-motion") if draws_tinyworld(model) else ("dreambench", "motion")
    )
    return suites if kind == "living" else suites[:1]


def draws_tinyworld(model: PersonalizedModel) -> bool:
    """Whether a model is the embedded pipeline, or was trained on it as a whole or in part."""
    bases = [model.base]
    if model.recipe is not None:
        bases.append(str(model.recipe.get("base_model", "")))
    return any(is_tinyworld(base) for base in bases)


def is_tinyworld(base: str) -> bool:
    """Whether a base model is the embedded pipeline, by its name or by its folder."""
    return base == EMBEDDED or (bool(base) and expanded(base) == TINYWORLD)


# --------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class _Prompt:
    """A prompt as a file has it.

    Attributes:
        text: What it says.
        place: Where, for messages: `mine.yaml:3:5`.
        kind: `both`, `object` or `living`.
        group: What it is about.
    """

    text: str
    place: str
    kind: str = "both"
    group: str = ""


def _find(name: str) -> tuple[Path, str, str]:
    """File of a benchmark, its name, and what messages call the file."""
    shipped = resources.templates() / "benchmarks" / f"{name}.yaml"
    own = normal(Path(name))
    if re.fullmatch(r"[a-z0-9-]+", name) and shipped.is_file():
        return shipped, name, shipped.name
    if own.is_file():
        return own, own.stem, name
    raise _missing(name)


def _is_yaml(path: Path) -> bool:
    return path.suffix.lower() in (".yaml", ".yml")


def _missing(name: str) -> EvaluationError:
    known = benchmarks()
    near = nearest(Path(name).stem, known)
    meant = f", did you mean {near!r}?" if near else "."
    return EvaluationError(
        f"There is no benchmark {name}{meant}",
        hint=f"Those that come with regforge are {', '.join(known)}. A file of your own works too: "
        "one prompt a line, with {} where the subject stands.",
    )


def _read(path: Path, source: str) -> str:
    try:
        return read_text(path)
    except OSError as error:
        raise EvaluationError(f"{source} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{source} is not UTF-8 text.") from error


def _of_text(text: str, source: str) -> Iterator[_Prompt]:
    for number, line in enumerate(text.splitlines(), start=1):
        if prompt := re.sub(r"(?:^|\s)#.*", "", line).strip():
            yield _Prompt(prompt, f"{source}:{number}")


def _content(text: str, source: str) -> dict[str, Entry]:
    """The keys of a benchmark's file, and what each holds."""
    node, problems = read_yaml(text, Place(source, Path(), 1, 1))
    if problems:
        raise EvaluationError(f"{problems[0]}.", hint=_FORM)
    content = node.content if node else None
    if not isinstance(content, dict) or "prompts" not in content:
        raise EvaluationError(f"{source} has no `prompts:`.", hint=_FORM)
    return content


def _class_prompts(path: Path, source: str) -> Iterator[_Prompt]:
    entry = _content(_read(path, source), source).get("class_prompts")
    if entry is not None:
        yield from _of_list(entry.value, "both", "")


def _of_yaml(text: str, source: str) -> Iterator[_Prompt]:
    prompts = _content(text, source)["prompts"].value
    if not isinstance(prompts.content, dict):
        yield from _of_list(prompts, "both", "")
        return
    for kind, entry in prompts.content.items():
        if kind not in _KINDS:
            raise EvaluationError(
                f"{entry.place}  {kind!r} is no kind of subject: both, object or living.",
                hint=_FORM,
            )
        below = entry.value
        if isinstance(below.content, dict):
            for group, each in below.content.items():
                yield from _of_list(each.value, kind, group)
        else:
            yield from _of_list(below, kind, "")


def _of_list(node: Node, kind: str, group: str) -> Iterator[_Prompt]:
    if not isinstance(node.content, list):
        raise EvaluationError(f"{node.place}  a list of prompts belongs here.", hint=_FORM)
    for each in node.content:
        if not isinstance(each.content, str) or not each.content.strip():
            raise EvaluationError(f"{each.place}  a prompt is text.", hint=_FORM)
        yield _Prompt(" ".join(each.content.split()), str(each.place), kind, group)


def _check(prompt: _Prompt) -> None:
    places = prompt.text.count("{}")
    if places != 1:
        wrong = "has no {}" if not places else f"has {{}} {places} times"
        raise EvaluationError(f"{prompt.place}  {prompt.text!r} {wrong}.", hint=_PLACE)
