"""Starts the command line of the `pipeline` beside this file.

Another package of that name may come first on the path: in PYTHONPATH, or in the working directory with `python -m`.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent / "pipeline"


def _import_own() -> None:
    """Make `import pipeline` mean the package beside this file, in this process and in those that it spawns."""
    spec = spec_from_file_location("pipeline", PACKAGE / "__init__.py", submodule_search_locations=[str(PACKAGE)])
    if spec is None or spec.loader is None:
        raise ImportError(f"no package at {PACKAGE}: install tiekd-pipeline again")
    module = module_from_spec(spec)
    sys.modules["pipeline"] = module
    spec.loader.exec_module(module)


if "pipeline" not in sys.modules:
    _import_own()

from pipeline.cli.main import main  # noqa: E402 - once it is known which package that is

__all__ = ["main"]

if __name__ == "__main__":
    main(prog_name="pipeline")
