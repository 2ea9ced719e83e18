"""From a recipe to captions: the language model client, vocabularies, sampling, templates."""
