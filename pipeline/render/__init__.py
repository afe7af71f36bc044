"""A renderer of driving-like scenes with exact depth, so that the pipeline runs with no download."""
