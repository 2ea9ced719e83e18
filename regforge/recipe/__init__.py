"""What the user writes: recipes, read, checked and explained.

recipe = load_recipe("recipe.yaml", ["prompts.count=50"])
kind_of(recipe), slots_of(recipe), shares_of(recipe), recipe_digest(recipe)

models        what a recipe can say            checks     what does not fit together
yaml_nodes    YAML with lines and columns      cautions   what is probably not meant
overrides     `extends` and `--set`            digest     which recipe it is
messages      errors in plain words            schema     for editors, and the reference
reading       all of these, in order           starter, resolved   recipes that regforge writes
loading       what is peculiar to each kind

Training recipes are read alike: `load_training_recipe`, `training_digest`; `training` is what they
can say, `training_checks` what does not fit together or is probably not meant.
"""

from regforge.recipe.cautions import warnings
from regforge.recipe.checks import check_recipe
from regforge.recipe.defaults import (
    drawn_slots,
    import_of,
    kind_of,
    shares_of,
    slots_of,
    template_file,
    template_name,
)
from regforge.recipe.digest import recipe_digest
from regforge.recipe.loading import load_recipe, load_training_recipe
from regforge.recipe.models import (
    Alignment,
    CaptionImport,
    Curate,
    DatasetSection,
    Kind,
    LanguageModel,
    Prompts,
    PromptSet,
    Recipe,
    Render,
    Slot,
    Subject,
)
from regforge.recipe.problems import Problem, RecipeError
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
    "check_recipe",
    "check_training_recipe",
    "drawn_slots",
    "import_of",
    "json_schema",
    "kind_of",
    "load_recipe",
    "load_training_recipe",
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
