"""The prompts stage of a run: vocabulary.json, captions.json and prompts.jsonl.

Each file is written whole or not at all, and what is there is not made again. Knows the order of
the steps; how phrases are found and captions composed is the business of `regforge.prompts`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from regforge.errors import RegforgeError
from regforge.files import write_atomically
from regforge.forge.folder import RunFolder
from regforge.journal import Journal
from regforge.progress import Reporter
from regforge.recipe import Recipe, shares_of, slots_of
from regforge.records import Prompt

if TYPE_CHECKING:
    from regforge.prompts.llm import LanguageModelClient
    from regforge.prompts.photos import PhotoCaption
    from regforge.prompts.rows import Row
    from regforge.prompts.vocabulary import Vocabulary


class PromptsChanged(RegforgeError):
    """Prompts that images were made of already would come out differently now."""


class PromptStage(AbstractContextManager["PromptStage"]):
    """Makes the prompts of one run, and further ones whenever asked.

    Args:
        recipe: What to make.
        folder: Where.
        journal: For calls and failures.
        reporter: For progress.
    """

    def __init__(
        self, recipe: Recipe, folder: RunFolder, journal: Journal, reporter: Reporter
    ) -> None:
        self._recipe = recipe
        self._folder = folder
        self._journal = journal
        self._reporter = reporter
        self._client: LanguageModelClient | None = None

    def __exit__(self, *_: object) -> None:
        if self._client is not None:
            self._client.close()

    def prompts(self, count: int) -> list[Prompt]:
        """The first `count` prompts, from prompts.jsonl as far as it reaches.

        Raises:
            RegforgeError: They cannot be made; the message says why.
        """
        vocabulary = self._vocabulary()
        known = self._known()
        if len(known) >= count:
            return known[:count]
        # Refusals are written down the first time; adding captions meets the same ones again.
        journal = Journal(None) if known else self._journal
        made = list(self._write(vocabulary, count, journal))
        for before, now in zip(known, made, strict=False):
            if before != now:
                raise PromptsChanged(
                    f"Prompt {before.index} was {before.text!r} and would now be {now.text!r}.",
                    hint="The language model answered differently this time. Start over with "
                    "--fresh, or choose another folder with --out.",
                )
        write_atomically(self._folder.prompts, "".join(p.to_json() + "\n" for p in made))
        self._folder.remember(vocabulary_digest=self._vocabulary_digest())
        return made

    # -------------------------------------------------------------------------- what is there

    def _known(self) -> list[Prompt]:
        """The prompts of an earlier session, unless the vocabulary was edited since."""
        if self._folder.state().get("vocabulary_digest") != self._vocabulary_digest():
            return []
        if not self._folder.prompts.is_file():
            return []
        with self._folder.prompts.open(encoding="utf-8") as lines:
            return [Prompt.from_json(line) for line in lines]

    def _vocabulary_digest(self) -> str:
        return hashlib.sha256(self._folder.vocabulary.read_bytes()).hexdigest()

    # ---------------------------------------------------------------------------- making more

    def _vocabulary(self) -> Vocabulary:
        from regforge.prompts.filling import fill_vocabulary
        from regforge.prompts.vocabulary import Vocabulary

        if not self._folder.vocabulary.is_file():
            fill_vocabulary(
                self._recipe, self._asked(), journal=self._journal, reporter=self._reporter
            ).save(self._folder.vocabulary)
        return Vocabulary.load(self._folder.vocabulary)

    def _write(self, vocabulary: Vocabulary, count: int, journal: Journal) -> Iterator[Prompt]:
        from regforge.prompts.tokens import token_budget
        from regforge.prompts.writing import write_prompts

        render = self._recipe.render
        prompts = write_prompts(
            self._recipe,
            vocabulary,
            budget=token_budget(render, self._recipe.prompts.max_tokens),
            photos=photos_of(self._recipe, self._described),
            rows=self._composed(),
            count=count,
            journal=journal,
            reporter=self._reporter,
        )
        with self._reporter.task("captions", count, "captions") as task:
            for prompt in prompts:
                yield prompt
                task.advance()

    def _composed(self) -> Iterator[Row] | None:
        from regforge.prompts.composing import compose_rows

        if self._recipe.prompts.mode == "vocabulary" or not slots_of(self._recipe):
            return None
        return compose_rows(self._recipe, self._asked(), journal=self._journal)

    def _described(self, photos: Sequence[Path]) -> Mapping[str, str]:
        """Captions that a vision model writes; kept in captions.json, where they may be edited."""
        from regforge.prompts.photo_captions import describe_photos

        path = self._folder.captions
        known: dict[str, str] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        new = [photo for photo in photos if photo.name not in known]
        if new:
            known |= describe_photos(new, self._recipe, self._asked())
            write_atomically(path, json.dumps(known, indent=2, ensure_ascii=False) + "\n")
        return known

    def _asked(self) -> LanguageModelClient:
        """The language model, for the first who needs it."""
        from regforge.prompts.llm import LanguageModelClient

        if self._client is None:
            self._client = LanguageModelClient(
                self._recipe.prompts.llm, journal=self._journal, reporter=self._reporter
            )
        return self._client


def photos_of(
    recipe: Recipe, describe: Callable[[Sequence[Path]], Mapping[str, str]]
) -> tuple[PhotoCaption, ...]:
    """The photos with their captions, if the recipe has an `against` set.

    Args:
        recipe: Any recipe.
        describe: Writes missing captions by file name, for `captions: auto`.

    Raises:
        PhotosError: There are none, or some cannot be used.
    """
    from regforge.prompts.photos import photo_captions

    images = recipe.subject.images
    if images is None or "against" not in shares_of(recipe):
        return ()
    return photo_captions(images, describe=describe if recipe.subject.captions == "auto" else None)
