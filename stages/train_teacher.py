"""Train the demo's teacher on dense ground truth.

Reads data/scenes. Writes data/runs/teacher.
"""

from pipeline.cli.train import train_teacher

if __name__ == "__main__":
    train_teacher()
