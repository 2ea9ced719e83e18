"""What the user writes: recipes, read, checked and explained.

recipe = load_recipe("recipe.yaml", ["prompts.count=50"])
kind_of(recipe), slots_of(recipe), shares_of(recipe), recipe_digest(recipe)

models        what a recipe can say            checks     what does not fit together
yaml_nodes    YAML with lines and columns      cautions   what is probably not meant
overrides     `extends` and `--set`            digest     which recipe it is
messages      errors in plain words            schema     for editors, and the reference
loading       all of these, in order           starter, resolved   recipes that regforge writes
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
from regforge.recipe.loading import load_recipe
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
from regforge.recipe.schema import json_schema
from regforge.recipe.starter import starter_recipe, write_starter

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
    "check_recipe",
    "drawn_slots",
    "import_of",
    "json_schema",
    "kind_of",
    "load_recipe",
    "recipe_digest",
    "resolved_yaml",
    "shares_of",
    "slots_of",
    "starter_recipe",
    "template_file",
    "template_name",
    "warnings",
    "write_starter",
]
