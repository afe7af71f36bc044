"""Helpers that know nothing of depth: files, devices, processes, progress, signals."""
