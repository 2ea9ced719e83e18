"""Puts finished datasets and trained models on the Hub; here is what both have in common."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from regforge.dataset.card_parts import Card
from regforge.display import Displayed
from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.hub import Published, Remote
from regforge.journal import without_secrets
from regforge.recipe.rendering import LICENSES, not_an_identifier, terms_of
from regforge.runs import RecipeFolder

CARD = "README.md"

# Some of what git allows, https://git-scm.com/docs/git-check-ref-format.
_TAG = re.compile(r"(?!.*(?:\.\.|\.lock$|\.$))[^\W_][\w.+-]*")
_NO_CONTENT = re.compile(r"(?:.*/)?\..*|licen[cs]e[^/]*|[^/]*\.md", re.IGNORECASE)
"""Files that a repository may hold before there is anything in it: hidden ones, and words."""


class CannotPublish(RegforgeError):
    """A wrong setting, or a run that is not ready to be published."""

    exit_code = EXIT_USAGE


class RepositoryTaken(CannotPublish):
    """A repository that holds something that regforge did not make."""


@dataclass(frozen=True)
class PublishedRun(Displayed):
    """A dataset or model of a run as it is on the Hub."""

    on_hub: Published
    what: str  # such as `a LoRA`
    these: str  # the same where it is there already, such as `this LoRA`
    load: str  # the line of Python that loads it
    facts: dict[str, Any]  # what else scripts want to know
    license: str
    files: tuple[str, ...]  # paths in the repository
    notes: tuple[str, ...]  # what people should know, a sentence each
    own_files: tuple[str, ...] | None = None  # not regforge's; None where there can be none

    @property
    def unchanged(self) -> int:
        """How many files were there already."""
        return len(self.files) - self.on_hub.uploaded

    def as_dict(self) -> dict[str, Any]:
        """For scripts."""
        own = {} if self.own_files is None else {"own_files": list(self.own_files)}
        return {
            **asdict(self.on_hub),
            "unchanged": self.unchanged,
            **self.facts,
            "license": self.license,
            "files": list(self.files),
            **own,
            "notes": list(self.notes),
        }

    def as_text(self) -> str:
        """For people."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        done = self.on_hub
        if done.pull_request:
            yield f"Offered as a pull request: {self.what}, {self.license}."
        elif done.changed:
            yield f"Published: {self.what}, {self.license}."
        else:
            yield f"Nothing to do: the Hub holds {self.these} already."
        yield ""
        yield f"  page      {done.url}"
        if done.pull_request:
            yield f"  request   {done.pull_request}   (a person has to merge it)"
        yield f"  commit    {done.commit}" + (f"   (tag {done.tag})" if done.tag else "")
        if done.changed:
            counts = f"{done.uploaded} uploaded, {done.deleted} deleted, {self.unchanged} unchanged"
            yield f"  files     {counts}"
        if self.own_files:
            yield f"  yours     {', '.join(self.own_files)}"
        for note in self.notes:
            yield f"  note      {note}"
        yield ""
        yield f"  {self.load}"


def repository_of(repo_id: str | None, run: RecipeFolder, *, key: str) -> str:
    """The repository to publish to; `key` is the recipe's, and the run knows an earlier one.

    Raises:
        CannotPublish: It is missing, or no repository can be named so.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    if repo_id is None:
        before = (run.state().get("published") or {}).get("repo_id")
        raise CannotPublish(
            f"Where to? Neither --repo-id nor the recipe's {key} is given.",
            hint=f"It was published to {before} before." if before else "Such as me/teapot-reg.",
        )
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        valid = False
    else:
        valid = repo_id.count("/") == 1
    if not valid:
        raise CannotPublish(
            f"A repository is named user/name, not {repo_id!r}.",
            hint="Of letters, digits, '-', '_' and '.'; a part neither begins nor ends with '-' or "
            "'.'.",
        )
    return repo_id


def check_tag(tag: str | None) -> None:
    """Check that git can have a text as a tag, and that `user/name@tag` can name it.

    Raises:
        CannotPublish: It cannot.
    """
    if tag is not None and (not _TAG.fullmatch(tag) or tag == "main"):
        raise CannotPublish(
            f"{tag!r} cannot name a version.",
            hint="Such as v1 or 2024-05: letters, digits, '-', '_' and '.', beginning with a "
            "letter or digit.",
        )


def license_of(license_id: str | None, model: str, *, did: str, key: str) -> str:
    """The licence that was given, or the one that follows from a model.

    `did` is what the model did, such as "which drew the images"; `key` is the recipe's.

    Raises:
        CannotPublish: Neither regforge nor the Hub knows it.
    """
    if license_id is None:
        terms = terms_of(model)
        if terms is None:
            raise CannotPublish(
                f"No licence is named, and regforge does not know the terms of {model}, {did}.",
                hint=f"Look at its card, and name what it asks for: {key} in the recipe, "
                f"or --license. Identifiers: {LICENSES}",
            )
        return terms.license
    problem = not_an_identifier(license_id)
    if problem:
        raise CannotPublish(problem, hint=f"All of them: {LICENSES}. For any other: other")
    return license_id


def license_notes(license_id: str, model: str, *, cautioned: bool) -> Iterator[str]:
    """What people should know of a model's licence; `cautioned`: also what it means for images."""
    terms = terms_of(model)
    if terms is not None:
        which = terms.license + (f" ({terms.name})" if terms.name else "")
        if terms.license != license_id:
            yield f"{license_id} was chosen as the licence; that of {model} is {which}."
        if terms.caution:
            caution = f" {terms.caution}" if cautioned else ""
            yield f"The licence of {model} is {which}.{caution} {terms.link}"


def check_other(
    license_id: Any, front: Mapping[str, Any], where: str, error: type[RegforgeError]
) -> None:
    """Refuse `other` where the front matter of a card, of `where`, does not say which licence."""
    said = all(isinstance(front.get(key), str) for key in ("license_name", "license_link"))
    if license_id == "other" and not said:
        raise error(
            f"The licence is `other`, and {CARD} does not say which one.",
            hint=f"Add `license_name: ...` and `license_link: ...` to the front matter of {where}.",
        )


def card_of(remote: Remote, files: Iterable[str], what: str) -> str | None:
    """The card that a repository has, before `files` are written there.

    If it has no part of regforge's, then no file is replaced that regforge did not write, nor what
    lies beside them shadowed.

    Raises:
        RepositoryTaken: The repository holds a dataset or model of somebody's.
    """
    content = remote.read(CARD)
    card, ours = None if content is None else content.decode(errors="replace"), set(files)
    if Card.parse(card).ours is not None:
        return card
    for path in sorted(remote.files):
        if path != CARD and (path in ours or not _NO_CONTENT.fullmatch(path)):
            raise RepositoryTaken(
                f"The repository holds a {what} that regforge did not make: {path} is there, and "
                f"its {CARD} has no part of regforge's.",
                hint="Choose another one with --repo-id, or delete those files on the Hub first.",
            )
    return card


def refuse_secrets(
    name: str, lines: Iterable[str], error: type[RegforgeError] = CannotPublish
) -> None:
    """Refuse to publish a text with something like a token in it: `error` names the line."""
    for number, line in enumerate(lines, start=1):
        if without_secrets(line) != line:
            raise error(
                f"{name}:{number} holds something that looks like a token or a key.",
                hint="Take it out; nothing has been uploaded.",
            )
