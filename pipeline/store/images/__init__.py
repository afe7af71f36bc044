"""Stores of decoded images."""
