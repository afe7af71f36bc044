"""Render the embedded data set.

Reads nothing. Writes data/scenes: rgb, dense and sparse depth, splits.
"""

from pipeline.cli.scenes import make_scenes

if __name__ == "__main__":
    make_scenes()
