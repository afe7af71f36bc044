"""Stage one: run the teacher once over every frame.

Reads data/scenes and data/runs/teacher. Writes data/stores/teacher.zarr.
"""

from pipeline.cli.cache_teacher import cache_teacher

if __name__ == "__main__":
    cache_teacher()
