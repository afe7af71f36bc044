"""Teachers of the transformers library, from a hub or a directory."""
