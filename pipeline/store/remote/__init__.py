"""Stores behind a URL."""
