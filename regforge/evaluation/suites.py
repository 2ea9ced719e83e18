"""Benchmarks: the prompts that come with regforge, and users' own.

Reads `templates/benchmarks/*.yaml`, YAML files of the same form, and text files with one prompt a
line. docs/metrics.md says what each benchmark is for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from regforge.embedded.pipeline import TINYWORLD
from regforge.evaluation.definitions import (
    BenchmarkPrompt,
    EvaluationError,
    PersonalizedModel,
    absolute,
)
from regforge.files import expanded, read_text, templates_folder
from regforge.images.loading import EMBEDDED
from regforge.recipe import Kind
from regforge.recipe.models import benchmarks
from regforge.recipe.problems import Place
from regforge.recipe.yaml_nodes import Node, read_yaml
from regforge.words import did_you_mean

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
