"""A renderer of streets and of furnished rooms with exact depth, so that the pipeline runs with no download."""
