"""From a recipe to captions: vocabularies, sampling, templates."""
