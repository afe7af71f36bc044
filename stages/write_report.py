"""Write the report, and print its table.

Reads data/scenes, the store, all runs and their metrics. Writes data/report.html.
"""

from pipeline.cli.report import report

if __name__ == "__main__":
    report()
