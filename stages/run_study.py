"""Train and evaluate the students of one study, and tabulate the results.

Reads a study of experiments/params.yaml, its data and its stores. Writes data/experiments/runs/NAME and
experiments/results/NAME.json.
"""

from pipeline.cli.study import study

if __name__ == "__main__":
    study()
