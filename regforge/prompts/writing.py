"""From a vocabulary to numbered captions: sampling, templates, limits, and what must not be said.

Caption i never depends on how many are made. Every caption belongs to a prompt set; each set has
rows 0, 1, 2, ... of its own, and a row that cannot be used (phrases that do not go together, said
before, excluded, too long) is passed over for the next one. Either all captions that were asked
for come out, or an error says what was refused and how many there can be.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.files import templates_folder
from regforge.journal import Journal, Reporter
from regforge.prompts.against import ATTRIBUTES, CutCaption, cut_open, why_unvaried
from regforge.prompts.captions import CaptionTemplate, article_for, word_pattern
from regforge.prompts.exclude import Duplicates, ExclusionError, Exclusions, usable
from regforge.prompts.imported import NO_TEXT, ImportedCaptions, ImportSet
from regforge.prompts.photos import PhotoCaption, syntax_notes
from regforge.prompts.prompt_sets import (
    PHOTO,
    REPEATED,
    Against,
    Amplify,
    Caption,
    Captions,
    DrawnSet,
    Fault,
    PromptSet,
    repeated_seed,
    size_like,
)
from regforge.prompts.sampling import ENUMERABLE, Clashes, Design, Row, Rows, SlotPlan, apportion
from regforge.prompts.tokens import TokenBudget
from regforge.prompts.vocabulary import Vocabulary, VocabularyError
from regforge.recipe import (
    Recipe,
    drawn_slots,
    kind_of,
    match_of,
    shares_of,
    slots_of,
    template_file,
    templates_of,
)
from regforge.records import Prompt
from regforge.words import has_words, still_said


class CannotWrite(RegforgeError):
    """The recipe asks for captions that cannot be made."""

    exit_code = EXIT_USAGE


class EditedPromptsError(RegforgeError):
    """Edited captions that cannot be used."""

    exit_code = EXIT_USAGE


def write_prompts(
    recipe: Recipe,
    vocabulary: Vocabulary,
    *,
    budget: TokenBudget,
    photos: Sequence[PhotoCaption] = (),
    rows: Iterable[Row] | None = None,
    imported: ImportedCaptions | None = None,
    count: int | None = None,
    journal: Journal | None = None,
    reporter: Reporter | None = None,
    enumerable: int = ENUMERABLE,
) -> Iterator[Prompt]:
    """Write the captions of a recipe, one after the other.

    Everything that can be checked beforehand is checked by the call, before a caption is taken.

    Rows have phrases from elsewhere, for slots that the vocabulary lacks (`mode: compose`); then
    near-duplicates are refused as well (`prompts.near_duplicates`). With more than `enumerable`
    combinations of phrases, not all of them are tried where captions run out.

    Returns:
        Prompts 0, 1, 2, ... The iterator raises `NotEnoughPrompts` where there are no more
        different captions before `count` are made.

    Raises:
        CannotWrite: Even the bare class noun is over the token limit, or a setting is missing,
            such as the photos or the imported captions.
        CaptionTemplateError: The template cannot be used.
        ExclusionError: A slot, or all photos, can only say what is excluded.
        PhotoCaptionUnclear: A photo's caption does not name the subject.
        VocabularyError: It lacks a slot.
    """
    composed = None if rows is None else iter(rows)
    journal, reporter = journal or Journal(None), reporter or Reporter(quiet=True)
    writer = _Writer(
        recipe, vocabulary, budget, photos, composed, imported, journal, reporter, enumerable
    )
    return writer.prompts(recipe.prompts.count if count is None else count)


def caption_problem(text: str, identifier: str | None, budget: TokenBudget | None) -> str | None:
    """What is wrong with a caption that a person wrote, such as `is empty`; None if nothing is."""
    if not text.strip():
        return "is empty"
    if NO_TEXT.search(" ".join(text.split())):
        return "has control characters in it, or halves of characters"
    if identifier and word_pattern(identifier).search(text):
        return f"names the identifier {identifier!r}"
    if budget is None or budget.fits(text):
        return None
    return (
        f"has {budget.count(text)} tokens, and no caption may have more than {budget.limit} "
        f"({budget.source})"
    )


def edited_prompts(
    prompts: Iterable[Prompt], path: Path, *, identifier: str | None, budget: TokenBudget
) -> Iterator[Prompt]:
    """Check the prompts of an edited prompts.jsonl; slots whose phrase is gone become None.

    Raises:
        EditedPromptsError: A caption is empty, too long, or names the subject.
    """
    for prompt in prompts:
        if (problem := caption_problem(prompt.text, identifier, budget)) is not None:
            raise EditedPromptsError(
                f"{path}, line {prompt.index + 1}: the caption {problem}.",
                hint="Change the line, or delete the file: captions that nobody edited come out "
                "the same.",
            )
        yield replace(prompt, slots=still_said(prompt.slots, prompt.text))


def photo_notes(recipe: Recipe, photos: Sequence[PhotoCaption]) -> Iterator[str]:
    """Yield what people should know of photos' captions, a sentence each.

    Prompt syntax that is taken off, and what the `against` set cannot vary safely.

    Raises:
        CaptionTemplateError: The template cannot be used.
        PhotoCaptionUnclear: A photo's caption does not name the subject.
    """
    yield from syntax_notes(photos)
    if "against" in shares_of(recipe):
        attributes = _attributes(recipe, _caption_templates(recipe)[0][0])
        for photo in photos:
            if why := why_unvaried(_cut_open(recipe, photo), attributes):
                yield f"{photo.file}: {why}: {photo.caption!r}"


def _caption_templates(recipe: Recipe) -> list[tuple[CaptionTemplate, float]]:
    slots = [slot.name for slot in drawn_slots(recipe)]
    return [
        (
            CaptionTemplate(
                template_file(each.file),
                # The dataset carries the name; in which folder a user's own lies is nobody's
                # business.
                Path(each.file).name if Path(each.file).is_absolute() else each.file,
                class_noun=recipe.subject.class_noun,
                kind=kind_of(recipe),
                slots=slots,
                identifier=recipe.subject.identifier,
            ),
            each.share,
        )
        for each in templates_of(recipe)
    ]


def _attributes(recipe: Recipe, template: CaptionTemplate) -> tuple[str, ...]:
    """The slots that `against` captions vary."""
    names = {slot.name for slot in slots_of(recipe)}
    return tuple(slot for slot in template.attributes or ATTRIBUTES if slot in names)


def _cut_open(recipe: Recipe, photo: PhotoCaption, *, vary: bool = True) -> CutCaption:
    subject = recipe.subject
    return cut_open(photo.caption, subject.class_noun, subject.identifier, photo.file, vary=vary)


@dataclass
class _Writer:
    recipe: Recipe
    vocabulary: Vocabulary
    budget: TokenBudget
    photos: Sequence[PhotoCaption]
    composed: Iterator[Row] | None
    imported: ImportedCaptions | None
    journal: Journal
    reporter: Reporter
    enumerable: int

    def __post_init__(self) -> None:
        prompts = self.recipe.prompts
        self._noun = self.recipe.subject.class_noun
        self._identifier = self.recipe.subject.identifier
        self._kind = kind_of(self.recipe)
        self._exclusions = Exclusions.load(
            prompts.exclude, class_noun=self._noun, identifier=self._identifier
        )
        self._templates = _caption_templates(self.recipe)
        if self.budget.estimated:
            self.reporter.say(f"tokens of captions are counted by {self.budget.source}")
        self._match = {str(n): match_of(self.recipe, n) for n in shares_of(self.recipe)}
        width, height = self.recipe.render.width, self.recipe.render.height
        self._area = (width or 0) * (height or 0)
        if not self._area and any("size" in each for each in self._match.values()):
            raise CannotWrite(
                "`prompts.match: [size]` needs the size of the images.",
                hint="Set `render.width` and `render.height`.",
            )
        self._followed: Counter[str] = Counter()
        self._phrases = self._usable_phrases()
        self._seen = Duplicates(prompts.near_duplicates if self.composed is not None else None)
        self._shares = {str(name): share for name, share in shares_of(self.recipe).items()}
        self._slots = tuple(slot.name for slot in slots_of(self.recipe))
        naive = itertools.repeat(self._naive()) if "naive" in self._shares else iter(())
        self._sets = {name: self._set(name) for name in self._shares if name != "naive"}
        self._captions = {name: each.captions(self._fault) for name, each in self._sets.items()}
        self._captions["naive"] = naive

    def prompts(self, count: int) -> Iterator[Prompt]:
        for index, name in zip(range(count), apportion(self._shares), strict=False):
            caption = next(self._captions[name], None)
            if caption is None:
                raise self._sets[name].not_enough(index, count)
            yield self._prompt(index, name, caption)

    def _usable_phrases(self) -> dict[str, tuple[str, ...]]:
        """The phrases that a caption can say, by slot of the recipe."""
        every = self.vocabulary.slots
        drawn = [slot.name for slot in drawn_slots(self.recipe)]
        missing = [slot for slot in drawn if slot not in every]
        if missing and self.composed is None:
            raise VocabularyError(
                f"The vocabulary has no slot {missing[0]!r}.",
                hint="Add it to vocabulary.json, or take it out of `prompts.slots`.",
            )
        self.vocabulary, removed = usable(
            self.vocabulary, self._exclusions, class_noun=self._noun, identifier=self._identifier
        )
        for slot, faults in removed.items():
            for phrase, why in faults.items():
                self.journal.failure("prompts", f"slot {slot}", f"{phrase!r} {why}")
            phrase, why = next(iter(faults.items()))
            self.reporter.say(
                f"slot {slot}: {len(faults)} of {len(every[slot])} phrases are not used, such as "
                f"{phrase!r}, which {why}"
            )
        slots = self.vocabulary.slots
        return {slot: slots[slot] for slot in drawn if slot in slots}

    def _naive(self) -> Caption:
        """The one plain caption, the only one that may come twice."""
        file, name = templates_folder() / "caption" / "naive.j2", "caption/naive.j2"
        about = {"class_noun": self._noun, "kind": self._kind}
        text = CaptionTemplate(file, name, identifier=self._identifier, **about).render({})
        self._check_shortest([text])
        self._seen.add(text)  # no other set may say it too
        return Caption(text, dict.fromkeys(self._slots), name)

    def _set(self, name: str) -> PromptSet:
        common: dict[str, Any] = {"slots": self._slots, "budget": self.budget}
        common["journal"] = self.journal
        if name == "import":
            if self.imported is None:
                raise CannotWrite("The `import` set needs a dataset (`prompts.import.dataset`).")
            return ImportSet(imported=self.imported, **common)
        common["shorten"] = self.recipe.prompts.over_limit == "shorten"
        phrases: dict[str, Sequence[str]] = {}
        made: DrawnSet
        if name == "amplify":
            made = Amplify(templates=self._templates, **common)
        else:
            photos = self._photos_cut_open(name)
            phrases[PHOTO] = [str(number) for number in range(len(photos))]
            if name == "against":
                common["attributes"] = _attributes(self.recipe, self._templates[0][0])
            kind = Against if name == "against" else Captions
            made = kind(photos=photos, class_noun=self._noun, **common)
        self._check_shortest(made.shortest())
        phrases |= {slot: self._phrases[slot] for slot in made.drawn if slot in self._phrases}
        slots = slots_of(self.recipe)
        modes = {slot.name: slot.mode for slot in slots}
        rare = {s.name: s.presence for s in slots if s.presence < 1 and s.name in made.drawn}
        weights = self.vocabulary.weights
        plans = [
            SlotPlan(slot, len(texts), modes.get(slot, "cycle"), weights.get(slot))
            for slot, texts in phrases.items()
        ]
        clashes = Clashes(phrases, self.vocabulary.incompatible)
        design = Design(self.recipe.seed, name, plans, clashes)
        composed = self.composed if made.drawn else None
        made.rows = Rows(design, phrases, composed, rare, self.enumerable)
        origins = self.vocabulary.origins
        if composed is not None and any(slot not in self._phrases for slot in made.drawn):
            made.language_model = self.recipe.prompts.llm.model
        elif any(origins.get(slot, "llm") == "llm" for slot in made.drawn):
            made.language_model = self.vocabulary.language_model
        return made

    def _check_shortest(self, captions: Iterable[str]) -> None:
        for text in captions:
            if not self.budget.fits(text):
                raise CannotWrite(
                    f"{text!r} has {self.budget.count(text)} tokens, and no caption may have more "
                    f"than {self.budget.limit} ({self.budget.source}).",
                    hint="Shorten the class noun, the template or the photo's caption.",
                )

    def _photos_cut_open(self, name: str) -> list[tuple[PhotoCaption, CutCaption]]:
        """The photos whose captions may be followed, cut open at the subject."""
        if not self.photos:
            raise CannotWrite(f"The `{name}` set needs photos of the subject (`subject.images`).")
        found = []
        for photo in self.photos:
            around = _cut_open(self.recipe, photo, vary=name == "against")
            text = around.caption({}, self._noun, article_for(self._noun))
            if entry := self._exclusions.forbids(text):
                reason = f"its caption {photo.caption!r} says what is excluded, {entry!r}"
                self.journal.failure("prompts", photo.file, reason)
                self.reporter.say(f"{photo.file} is not used for the {name} set: {reason}")
            else:
                found.append((photo, around))
        if not found:
            raise ExclusionError(
                "The caption of every photo says what is excluded.",
                hint=f"Change the captions or `prompts.exclude`, or leave out the `{name}` set.",
            )
        notes = photo_notes(self.recipe, [photo for photo, _ in found])
        for note in notes if name == "against" or "against" not in self._shares else ():
            file, _, reason = note.partition(": ")
            self.journal.failure("prompts", file, reason)
            self.reporter.say(note)
        return found

    def _fault(self, caption: Caption) -> Fault | None:
        """Why a caption cannot be used, or None if it can and counts as said from now on."""
        text = caption.text
        if self._identifier and has_words(text, self._identifier):
            return "name the identifier", "names the identifier"
        if entry := self._exclusions.forbids(text):
            return "say what is excluded", f"says what is excluded, {entry!r}"
        if (repeats := self._seen.add(text)) and not caption.repeats:
            return REPEATED, repeats
        return None

    def _prompt(self, index: int, name: str, caption: Caption) -> Prompt:
        source = self._sets.get(name)
        width = height = seed = None
        if (photo := caption.photo) is not None:
            if "size" in self._match[name]:
                width, height = size_like(photo, self._area)
            again = self._followed[photo.file] if caption.repeats else 0
            self._followed[photo.file] += caption.repeats
            if "seed" in self._match[name]:
                seed = repeated_seed(photo, again)
        return Prompt(
            index=index,
            text=caption.text,
            class_noun=self._noun,
            kind=self._kind,
            prompt_set=name,
            slots=caption.slots,
            template=caption.template,
            language_model=caption.language_model or (source.language_model if source else None),
            reference=photo.file if photo is not None else None,
            width=width,
            height=height,
            seed=seed,
        )
