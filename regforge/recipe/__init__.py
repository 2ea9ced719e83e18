"""What the user writes: recipes, read, checked and explained.

recipe = load_recipe("recipe.yaml", ["prompts.count=50"])
kind_of(recipe), slots_of(recipe), shares_of(recipe), recipe_digest(recipe)

models        what a recipe can say            checks     what does not fit together
prompts       the part of it about captions    cautions   what is probably not meant
sections      what recipes are made of         digest     which recipe it is
yaml_nodes    YAML with lines and columns      differences   and why it is another one
overrides     `extends` and `--set`            schema     for editors, and the reference
messages      errors in plain words            starter, resolved   recipes that regforge writes
loading       what is peculiar to each kind    reading    all of these, in order

Training recipes are read alike: `load_training_recipe`, `training_digest`; `training` is what they
can say, `training_checks` what does not fit together or is probably not meant.
"""

from regforge.recipe.cautions import warnings
from regforge.recipe.checks import check_recipe
from regforge.recipe.defaults import (
    drawn_slots,
    import_of,
    kind_of,
    match_of,
    shares_of,
    slots_of,
    template_file,
    template_name,
)
from regforge.recipe.differences import changed_keys
from regforge.recipe.digest import recipe_digest
from regforge.recipe.loading import (
    dataset_recipe_of,
    load_any_recipe,
    load_recipe,
    load_training_recipe,
)
from regforge.recipe.models import Alignment, Curate, DatasetSection, Recipe, Render
from regforge.recipe.problems import Problem, RecipeError
from regforge.recipe.prompts import (
    CaptionImport,
    Kind,
    LanguageModel,
    Prompts,
    PromptSet,
    Slot,
    Subject,
)
from regforge.recipe.resolved import resolved_yaml
from regforge.recipe.schema import json_schema, training_schema
from regforge.recipe.starter import starter_recipe, write_starter
from regforge.recipe.training import TrainingRecipe
from regforge.recipe.training_checks import (
    check_training_recipe,
    training_warnings,
    uses_regularization,
)
from regforge.recipe.training_digest import training_digest

__all__ = [
    "Alignment",
    "CaptionImport",
    "Curate",
    "DatasetSection",
    "Kind",
    "LanguageModel",
    "Problem",
    "PromptSet",
    "Prompts",
    "Recipe",
    "RecipeError",
    "Render",
    "Slot",
    "Subject",
    "TrainingRecipe",
    "changed_keys",
    "check_recipe",
    "check_training_recipe",
    "dataset_recipe_of",
    "drawn_slots",
    "import_of",
    "json_schema",
    "kind_of",
    "load_any_recipe",
    "load_recipe",
    "load_training_recipe",
    "match_of",
    "recipe_digest",
    "resolved_yaml",
    "shares_of",
    "slots_of",
    "starter_recipe",
    "template_file",
    "template_name",
    "training_digest",
    "training_schema",
    "training_warnings",
    "uses_regularization",
    "warnings",
    "write_starter",
]
