"""The tiny world: procedural images of stickers in scenes, each with what is in it.

`vocabulary` says what exists and how it is called, `scenes` draws the places, `drawings` loads and
changes the artwork, `render` puts an image together, `captions` puts it into words. Nothing here
knows about models or training.
"""
