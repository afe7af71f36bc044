"""Evaluate one student on the test frames.

Reads data/scenes, data/stores/teacher.zarr and data/runs/LOSS. Writes data/metrics/LOSS.json and .csv.
"""

from pipeline.cli.evaluate import evaluate_student

if __name__ == "__main__":
    evaluate_student()
