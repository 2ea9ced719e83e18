"""The prompts stage of a run: imported.jsonl, vocabulary.json, captions.json and prompts.jsonl.

Each file is written whole or not at all, and what is there is not made again. Knows the order of
the steps; how phrases are found and captions composed is the business of `regforge.prompts`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regforge.errors import RegforgeError
from regforge.files import file_digest, open_atomically, parse_json, write_atomically
from regforge.journal import Journal, Reporter
from regforge.recipe import CaptionImport, Recipe, drawn_slots, follows_photos, import_of
from regforge.records import PackedPrompts, Prompt, read_prompts
from regforge.runs import RunFolder
from regforge.words import listed

if TYPE_CHECKING:
    from regforge.dataset.sources import CaptionedDataset
    from regforge.prompts.imported import ImportedCaptions
    from regforge.prompts.photos import PhotoCaption
    from regforge.prompts.vocabulary import Vocabulary
    from regforge.providers.language_model import LanguageModelClient


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
        self._edits_noted = False

    def __exit__(self, *_: object) -> None:
        if "_client" in self.__dict__:
            self._client.close()

    def prompts(self, count: int) -> Sequence[Prompt]:
        """The first `count` prompts, from prompts.jsonl as far as it reaches.

        Raises:
            RegforgeError: They cannot be made; the message says why.
        """
        from regforge.prompts.writing import photo_notes

        folder, path = self._folder, self._folder.prompts
        imported = self._imported  # before the language model is paid for anything
        if self._recipe.subject.captions == "write" or not folder.vocabulary.is_file():
            list(photo_notes(self._recipe, self._photos))  # raises what is wrong with the photos
        vocabulary = self._vocabulary()
        state = folder.state()
        edited = self._is_edited(state)
        known = self._known(state, edited=edited)
        if len(known) >= count:
            return known[:count]
        # Refusals are written down the first time; adding captions meets the same ones again.
        journal = Journal(None) if known else self._journal
        written = self._write(vocabulary, imported, count, journal)
        if edited:
            written = chain(known, islice(written, len(known), None))
        made = PackedPrompts(written)
        for before, now in zip(known, made, strict=False):
            if before != now:
                raise PromptsChanged(
                    f"Prompt {before.index} was {before.text!r} and would now be {now.text!r}.",
                    hint="What captions are made of is not what it was: a language model that "
                    "answered differently, or another version of regforge. Start over with "
                    "--fresh, or choose another folder with --out.",
                )
        if not edited:  # first: whichever of the two a kill leaves there, it is ours
            there = [file_digest(path)] if path.is_file() else []
            new = hashlib.sha256()
            for piece in made.content():
                new.update(piece)
            folder.remember(prompts_digests=[*there, new.hexdigest()])
        with open_atomically(path) as stream:
            stream.writelines(made.content())
        folder.remember(**self._ingredients())
        return made

    # -------------------------------------------------------------------------- what is there

    def _known(self, state: Mapping[str, Any], *, edited: bool) -> Sequence[Prompt]:
        """The prompts of an earlier session, unless what they are made of was edited since.

        Raises:
            EditedPromptsError: They were edited as well, or cannot be used as they are now.
            RecordError: The file cannot be read.
        """
        from regforge.prompts.tokens import token_budget
        from regforge.prompts.writing import EditedPromptsError, edited_prompts

        recipe, path = self._recipe, self._folder.prompts
        if not path.is_file():
            return []
        stale = [name for name, digest in self._ingredients().items() if state.get(name) != digest]
        if stale and "vocabulary_digest" in state:  # else the state was lost, and nobody knows
            if not edited:
                return []
            changed = listed([name.removesuffix("_digest") for name in stale])
            raise EditedPromptsError(
                f"{path} was edited, and so was what its captions are made of.",
                hint=f"Delete it to have them made anew, or undo the change of {changed}.",
            )
        prompts = read_prompts(path)
        if not edited:
            return PackedPrompts(prompts)
        budget = token_budget(recipe.render, recipe.prompts.max_tokens)
        found = PackedPrompts(
            edited_prompts(prompts, path, identifier=recipe.subject.identifier, budget=budget)
        )
        if not self._edits_noted:
            self._edits_noted = True
            self._reporter.say(
                f"{path} was edited: its captions are taken as they are, and slots whose phrase a "
                "caption does not say are null"
            )
        return found

    def _is_edited(self, state: Mapping[str, Any]) -> bool:
        """Whether somebody has changed prompts.jsonl since it was written."""
        path = self._folder.prompts
        if not path.is_file() or ("vocabulary_digest" in state and "prompts_digests" not in state):
            return False  # of the version before digests were kept
        return file_digest(path) not in state.get("prompts_digests", ())

    def _ingredients(self) -> dict[str, str | None]:
        """Digests of the files that prompts are made of, by their names in the state."""
        imports = import_of(self._recipe) is not None
        found = {
            "vocabulary_digest": file_digest(self._folder.vocabulary),
            "imported_digest": file_digest(self._folder.imported) if imports else None,
        }
        if self._recipe.subject.captions != "files":
            captions = [[each.file, each.caption] for each in self._photos]
            found["captions_digest"] = hashlib.sha256(json.dumps(captions).encode()).hexdigest()
        return found

    # ---------------------------------------------------------------------------- making more

    @cached_property
    def _imported(self) -> ImportedCaptions | None:
        """The captions of another dataset, from imported.jsonl once it is there."""
        from regforge.prompts.imported import ImportedCaptions

        taken, path = import_of(self._recipe), self._folder.imported
        if taken is None:
            return None
        source = str(taken.address or taken.dataset)
        if not path.is_file():
            self._import(taken, source)
        elif (before := self._folder.state().get("imported_from", source)) != source:
            self._reporter.say(
                f"The captions are those of {before} still; delete {path} to take over those of "
                f"{source}"
            )
        return ImportedCaptions.load(path)

    def _import(self, taken: CaptionImport, source: str) -> None:
        from regforge.prompts.imported import save_captions

        self._reporter.say(f"Taking over the captions of {source}")
        dataset = open_import(taken)
        with self._reporter.task("import", None, "captions") as task:
            notes = save_captions(
                self._folder.imported,
                dataset.name,
                dataset.examples(images=False),
                revision=dataset.revision,
                class_noun=self._recipe.subject.class_noun,
                task=task,
            )
        self._folder.remember(imported_from=source)
        self._journal.event(
            "import", dataset=dataset.name, revision=dataset.revision, license=dataset.license
        )
        for note in (*dataset.notes, *notes):
            self._reporter.say(note)

    def _vocabulary(self) -> Vocabulary:
        from regforge.prompts.filling import fill_vocabulary
        from regforge.prompts.vocabulary import Vocabulary

        path = self._folder.vocabulary
        if not path.is_file():
            fill_vocabulary(
                self._recipe, self._client, journal=self._journal, reporter=self._reporter
            ).save(path)
        return Vocabulary.load(path)

    def _write(
        self,
        vocabulary: Vocabulary,
        imported: ImportedCaptions | None,
        count: int,
        journal: Journal,
    ) -> Iterator[Prompt]:
        from regforge.prompts.composing import compose_rows
        from regforge.prompts.tokens import token_budget
        from regforge.prompts.writing import write_prompts

        recipe, rows = self._recipe, None
        if recipe.prompts.mode == "compose" and drawn_slots(recipe):
            rows = compose_rows(recipe, self._client, journal=self._journal)
        prompts = write_prompts(
            recipe,
            vocabulary,
            budget=token_budget(recipe.render, recipe.prompts.max_tokens),
            photos=self._photos,
            rows=rows,
            imported=imported,
            count=count,
            journal=journal,
            reporter=self._reporter,
        )
        with self._reporter.task("captions", count, "captions") as task:
            for prompt in prompts:
                yield prompt
                task.advance()

    @cached_property
    def _photos(self) -> tuple[PhotoCaption, ...]:
        return photos_of(self._recipe, self._described)

    def _described(self, photos: Sequence[Path]) -> Mapping[str, str]:
        """Captions that a vision model writes; kept in captions.json, where they may be edited."""
        from regforge.prompts.photos import describe_photos, write_captions
        from regforge.prompts.writing import EditedPromptsError

        path = self._folder.captions
        try:
            known = parse_json(path.read_bytes()) if path.is_file() else {}
            if not isinstance(known, dict) or not all(isinstance(v, str) for v in known.values()):
                raise ValueError("it has no mapping of file names to captions")
        except ValueError as error:
            raise EditedPromptsError(
                f"{path} cannot be read: {error}.",
                hint="Put it right, or delete it, and the captions are written anew.",
            ) from error
        new = [photo for photo in photos if photo.name not in known]
        if new:
            known |= describe_photos(new, self._recipe, self._client)
            write_atomically(path, json.dumps(known, indent=2, ensure_ascii=False) + "\n")
        if self._recipe.subject.captions == "write":
            for note in write_captions(photos, known):
                self._reporter.say(note)
        elif new:
            self._reporter.say(
                f"{len(new)} photos were described; the captions lie in {path.name}. "
                "`subject.captions: write` puts them beside the photos too."
            )
        return known

    @cached_property
    def _client(self) -> LanguageModelClient:
        """The language model, for the first who needs it."""
        from regforge.providers.language_model import LanguageModelClient

        return LanguageModelClient(
            self._recipe.prompts.llm, journal=self._journal, reporter=self._reporter
        )


def photos_of(
    recipe: Recipe, describe: Callable[[Sequence[Path]], Mapping[str, str]]
) -> tuple[PhotoCaption, ...]:
    """The photos with their captions, if the recipe has a use for them.

    Args:
        recipe: Any recipe.
        describe: Writes missing captions by file name, for `captions: auto` and `write`.

    Raises:
        PhotosError: There are none, or some cannot be used.
    """
    from regforge.prompts.photos import photo_captions

    subject = recipe.subject
    used = follows_photos(recipe) or subject.captions == "write"
    if subject.images is None or not used:
        return ()
    asks = describe if subject.captions != "files" else None
    return photo_captions(subject.images, subject.identifier, subject.class_noun, describe=asks)


def open_import(taken: CaptionImport) -> CaptionedDataset:
    """The dataset whose captions are taken over.

    Raises:
        CannotOpen: There is no such thing, or it holds no images.
        HubError: It is on the Hub, and may not be read or cannot be reached.
    """
    from regforge.dataset.sources import open_dataset

    address, column = taken.address, taken.caption_column
    if address is None:
        return open_dataset(Path(taken.dataset), caption_column=column)
    where, revision = address.repo_id, address.revision
    if Path(where).exists():  # in the current directory, where a recipe's paths do not start
        where = f"hf://datasets/{where}"
    # The images need not be downloaded.
    return open_dataset(where, revision=revision, streaming=True, caption_column=column)


def check_import(recipe: Recipe, folder: RunFolder, *, fresh: bool = False) -> None:
    """See that captions can be taken over, before a folder becomes this recipe's or is emptied.

    A run that has taken them over needs the dataset no more, unless it starts afresh; raises what
    `open_import` raises.
    """
    taken = import_of(recipe)
    if taken is not None and (fresh or not folder.imported.is_file()):
        open_import(taken)
