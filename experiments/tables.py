"""Puts tables into the documents, each between its two marks: of experiments, of benchmarks, and of the code itself.

`python experiments/tables.py`; `tests/repository/test_docs.py` fails where a page shows another table.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.sources.registry import source_kinds
from pipeline.teachers.huggingface.families import rows
from pipeline.teachers.registry import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pipeline.sources.base import Customs

ROOT = Path(__file__).parents[1]
NAMES = ("benchmarks.md", "experiments.md", "scale.md", "sources.md", "teachers.md")
PAGES = tuple(ROOT / "docs" / name for name in NAMES)
RESULTS = ROOT / "experiments/results"
NOT_RUN = "tests alone, with random weights"


def tables() -> dict[str, str]:
    """Name -> Markdown: `street:losses` of a study, a file's stem for what a script wrote, and those of the code."""
    found = {"sources": sources(), "kinds": kinds(), "families": families()}
    for path in sorted([*RESULTS.glob("*.md"), *(ROOT / "benchmarks/results").glob("*.md")]):
        text = path.read_text()
        parts = re.split(r"<!-- (\S+) -->\n", text)
        if len(parts) == 1:
            found[path.stem] = text.strip()
        found |= {name: table.strip() for name, table in zip(parts[1::2], parts[2::2], strict=True)}
    return found


def sources() -> str:
    """Every kind of source."""
    head = ("`--source`", "data set", "below ROOT", "`--split`", "ground truth", "customs", "licence")
    return markdown(
        head,
        (
            [f"`{name}:ROOT`", kind.data_set, kind.layout, kind.splits, kind.truth, customs(kind.customs), kind.licence]
            for name, kind in source_kinds().items()
        ),
    )


def customs(customs: Customs) -> str:
    """What is usual on a source, in words."""
    said = [f"view {customs.view}", f"protocol {customs.protocol}"]
    said += [f"bins {customs.bins}"] if customs.bins else []
    said += [f"sigma {customs.sigma_m:g} m"] if customs.sigma_m else []
    return ", ".join(said)


def kinds() -> str:
    """Every kind of teacher."""
    head = ("`--teacher`", "what it is", "depth", "stored", "what was run", "flags", "extra")
    cases = json.loads((RESULTS / "teachers.json").read_text())
    ran = {name: [one for one, case in cases.items() if case["kind"] == name] for name in KINDS}
    return markdown(
        head,
        (
            [
                f"`{name}:{kind.argument}`",
                kind.what,
                kind.depth,
                kind.stored,
                "; ".join(ran[name]) or NOT_RUN,
                " ".join(f"`--{name.replace('_', '-').removesuffix('-px')}`" for name in kind.own_options()) or "none",
                f"`{kind.extra}`" if kind.extra else "",
            ]
            for name, kind in sorted(KINDS.items())
        ),
    )


def families() -> str:
    """Every architecture of transformers that is known."""
    head = ("`model_type`", "depth", "gives", "what is done for it")
    named = ((row.family if " " in row.family else f"`{row.family}`", *row[1:]) for row in rows())
    return markdown(head, named)


OPTIONS = ("depth_space", "trust_code", "truth")
"""Options that the code's own descriptions name as Python does; the pages show flags."""


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; `|` within a cell is escaped."""
    flags = {f"`{name}`": f"`--{name.replace('_', '-')}`" for name in OPTIONS}
    shown = ([re.sub(r"`\w+`", lambda found: flags.get(found[0], found[0]), cell) for cell in row] for row in rows)
    lines = [head, ["---"] * len(head), *shown]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def filled(page: str, known: dict[str, str]) -> str:
    """The page with every table as it is now. Raises KeyError for a mark that no table belongs to."""
    return re.sub(
        r"(<!-- table (\S+) -->\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}{known[found[2]]}\n{found[3]}",
        page,
        flags=re.DOTALL,
    )


def main() -> None:
    """Rewrite the pages."""
    known = tables()
    for page in PAGES:
        page.write_text(filled(page.read_text(), known))


if __name__ == "__main__":
    sys.exit(main())
