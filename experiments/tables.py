"""Write the tables of experiments, benchmarks and registries into the pages of docs.

Each table replaces what is between `<!-- table NAME -->` and `<!-- end -->`. `tests/repository/test_docs.py` fails
where a page shows an older table.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import protocol_tables

from pipeline.sources.registry import source_kinds
from pipeline.teachers.huggingface.families import rows
from pipeline.teachers.registry import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pipeline.sources.base import Defaults

ROOT = Path(__file__).parents[1]
NAMES = ("benchmarks.md", "experiments.md", "protocol.md", "scale.md", "sources.md", "teachers.md")
PAGES = tuple(ROOT / "docs" / name for name in NAMES)
RESULTS = ROOT / "experiments/results"
NOT_RUN = "in tests only, with random weights"


def tables() -> dict[str, str]:
    """Return Markdown by name: `STUDY:TABLE`, the stem of a results file, or a registry of the code."""
    by_name = {"sources": sources(), "kinds": kinds(), "options": teacher_options(), "families": families()}
    for path in sorted([*RESULTS.glob("*.md"), *(ROOT / "benchmarks/results").glob("*.md")]):
        text = path.read_text()
        parts = re.split(r"<!-- (\S+) -->\n", text)
        if len(parts) == 1:
            by_name[path.stem] = text.strip()
        by_name |= {name: table.strip() for name, table in zip(parts[1::2], parts[2::2], strict=True)}
    return by_name | protocol_tables.tables()


def sources() -> str:
    """Return the table of sources."""
    head = ("`--source`", "data set", "below ROOT", "`--split`", "ground truth", "intrinsics", "defaults", "licence")
    return markdown(
        head,
        (
            [
                f"`{name}:ROOT`",
                kind.data_set,
                kind.layout,
                kind.splits,
                kind.truth,
                kind.intrinsics,
                _defaults(kind.defaults),
                kind.licence,
            ]
            for name, kind in source_kinds().items()
        ),
    )


def _defaults(defaults: Defaults) -> str:
    """Describe the default options of a source."""
    parts = [f"view {defaults.view}", f"protocol {defaults.protocol}"]
    parts += [f"bins {defaults.bins}"] if defaults.bins else []
    parts += [f"sigma {defaults.sigma_m:g} m"] if defaults.sigma_m else []
    return ", ".join(parts)


def kinds() -> str:
    """Return the table of teachers: what to give for a network."""
    head = ("you have", "`--teacher`", "install", "also give")
    return markdown(
        head,
        (
            [
                kind.what,
                f"`{name}:{kind.argument}`",
                f"`pip install '.[{kind.extra}]'`" if kind.extra else "",
                kind.required,
            ]
            for name, kind in sorted(KINDS.items())
        ),
    )


def teacher_options() -> str:
    """Return the table of teachers: depth, options, and the measured cases."""
    head = ("`--teacher`", "depth", "stored", "options", "measured as")
    cases = json.loads((RESULTS / "teachers.json").read_text())
    measured = {name: [case_name for case_name, case in cases.items() if case["kind"] == name] for name in KINDS}
    return markdown(
        head,
        (
            [
                f"`{name}`",
                kind.depth,
                kind.stored,
                " ".join(
                    f"`--{option.replace('_', '-').replace('size-px', 'size')}`" for option in sorted(kind.options)
                ),
                "; ".join(measured[name]) or NOT_RUN,
            ]
            for name, kind in sorted(KINDS.items())
        ),
    )


def _flag(option: str) -> str:
    """Return the flag of an option of teachers."""
    return "--" + ("input-size" if option == "input_size_px" else option.replace("_", "-"))


def families() -> str:
    """Return the table of supported transformers architectures."""
    head = ("`model_type`", "depth", "gives", "what is done for it")
    named = ((row.family if " " in row.family else f"`{row.family}`", *row[1:]) for row in rows())
    return markdown(head, named)


OPTIONS = ("depth_space", "metres_per_unit", "normalise", "trust_code", "truth")
"""Python options that descriptions in the code name; the pages show the flags."""


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; `|` within a cell is escaped."""
    flags = {f"`{name}`": f"`--{name.replace('_', '-')}`" for name in OPTIONS}
    body = ([re.sub(r"`\w+`", lambda match: flags.get(match[0], match[0]), cell) for cell in row] for row in rows)
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def filled(page: str, by_name: dict[str, str]) -> str:
    """Return the page with current tables. Raises KeyError for an unknown table name."""
    return re.sub(
        r"(<!-- table (\S+) -->\n).*?(<!-- end -->)",
        lambda match: f"{match[1]}{by_name[match[2]]}\n{match[3]}",
        page,
        flags=re.DOTALL,
    )


def main() -> None:
    """Rewrite the tables of all pages."""
    by_name = tables()
    for page in PAGES:
        page.write_text(filled(page.read_text(), by_name))


if __name__ == "__main__":
    sys.exit(main())
