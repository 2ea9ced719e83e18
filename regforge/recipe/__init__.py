"""What the user writes: recipes, read, checked and explained.

    recipe = load_recipe("recipe.yaml", ["prompts.count=50"])
    kind_of(recipe), slots_of(recipe), shares_of(recipe), recipe_digest(recipe)

Training recipes are read alike: `load_training_recipe`; what takes a recipe takes both kinds.

    loading          a file of either kind, with everything that may be wrong with it
    sections, models, training      what recipes can say; the keys, in pydantic
    checks, training_checks         what does not fit together or is probably not meant
    digest           which recipe it is, written out in full, and what makes it another one
    schema           for editors, and the recipe to start from
"""

from regforge.recipe.digest import (
    changed_keys,
    checked,
    recipe_digest,
    recipe_warnings,
    resolved_yaml,
)
from regforge.recipe.loading import (
    AnyRecipe,
    RecipeSource,
    dataset_recipe_of,
    load_any_recipe,
    load_recipe,
    load_recipes,
    load_training_recipe,
)
from regforge.recipe.models import (
    Alignment,
    Curate,
    DatasetSection,
    Prompts,
    Recipe,
    drawn_slots,
    follows_photos,
    import_of,
    kind_of,
    match_of,
    shares_of,
    slots_of,
    template_file,
    templates_of,
)
from regforge.recipe.problems import Problem, RecipeError
from regforge.recipe.rendering import Render
from regforge.recipe.schema import json_schema, starter_recipe, write_starter
from regforge.recipe.sections import CaptionImport, Kind, LanguageModel, PromptSet, Slot, Subject
from regforge.recipe.training import TrainingRecipe
from regforge.recipe.training_checks import twins_of, uses_regularization

__all__ = [
    "Alignment",
    "AnyRecipe",
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
    "RecipeSource",
    "Render",
    "Slot",
    "Subject",
    "TrainingRecipe",
    "changed_keys",
    "checked",
    "dataset_recipe_of",
    "drawn_slots",
    "follows_photos",
    "import_of",
    "json_schema",
    "kind_of",
    "load_any_recipe",
    "load_recipe",
    "load_recipes",
    "load_training_recipe",
    "match_of",
    "recipe_digest",
    "recipe_warnings",
    "resolved_yaml",
    "shares_of",
    "slots_of",
    "starter_recipe",
    "template_file",
    "templates_of",
    "twins_of",
    "uses_regularization",
    "write_starter",
]
