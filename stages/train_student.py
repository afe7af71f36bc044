"""Stage two: train one student from the store, without the teacher.

Reads data/scenes and data/stores/teacher.zarr. Writes data/runs/LOSS.
"""

from pipeline.cli.train import train_student

if __name__ == "__main__":
    train_student()
