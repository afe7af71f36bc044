"""Paths of the repository and of the real data."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data"
SUPPORT = Path(__file__).parent
