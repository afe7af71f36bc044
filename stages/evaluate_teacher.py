"""Evaluate the cached teacher on the test frames.

Reads data/scenes and data/stores/teacher.zarr. Writes data/metrics/teacher.json and .csv.
"""

from pipeline.cli.evaluate import evaluate_teacher

if __name__ == "__main__":
    evaluate_teacher()
