"""Renders streets and furnished rooms with exact depth, so that the pipeline runs without a download."""
