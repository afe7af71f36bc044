"""Puts the tables of experiments/results into docs/experiments.md, each between its two marks.

`python experiments/tables.py`; `tests/test_docs.py` fails where the page shows another table than the results.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/experiments.md"
RESULTS = ROOT / "experiments/results"


def tables() -> dict[str, str]:
    """Name -> Markdown: `street:losses` of a study, or a file's stem for what a script wrote."""
    found = {}
    for path in sorted(RESULTS.glob("*.md")):
        text = path.read_text()
        parts = re.split(r"<!-- (\S+) -->\n", text)
        if len(parts) == 1:
            found[path.stem] = text.strip()
        found |= {name: table.strip() for name, table in zip(parts[1::2], parts[2::2], strict=True)}
    return found


def filled(page: str, known: dict[str, str]) -> str:
    """The page with every table as it is now. Raises KeyError for a mark that no result belongs to."""
    return re.sub(
        r"(<!-- table (\S+) -->\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}{known[found[2]]}\n{found[3]}",
        page,
        flags=re.DOTALL,
    )


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(filled(PAGE.read_text(), tables()))


if __name__ == "__main__":
    sys.exit(main())
