"""Helpers that do not depend on depth: files, devices, processes, progress, signals."""
