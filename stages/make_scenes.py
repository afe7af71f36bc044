"""Render the demo's data set.

Reads nothing. Writes data/scenes: rgb, dense and sparse depth, splits.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the renderer is not installed with the package

from scenes.__main__ import make_scenes

if __name__ == "__main__":
    make_scenes()
