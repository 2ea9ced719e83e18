"""From captions to images: renderers, image files, curation."""
