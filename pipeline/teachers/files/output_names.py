"""Which outputs of a network file are depth and signals: `NAME`, or `depth=NAME,confidence=NAME,sky=NAME`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ...errors import OptionError
from ..metadata import resolve_text
from ..signals import SIGNALS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..options import TeacherOptions

DEPTH = "depth"
FIELDS = (DEPTH, *SIGNALS)
FORM = f"the name of the depth output, or {','.join(f'{field}=NAME' for field in FIELDS)}"


def parse_outputs(text: str | None) -> dict[str, str]:
    """Return the output name of each field of FIELDS in `text`. Text that begins with no field names the depth.

    Raises OptionError for an unknown field, one that is given twice, and an empty name.
    """
    if text is None:
        return {}
    if not re.match(rf"({'|'.join(FIELDS)})=", text):
        return {DEPTH: text}
    parts = [part.partition("=") for part in text.split(",")]
    names = {field: name for field, _, name in parts}
    if len(names) < len(parts) or not names.keys() <= set(FIELDS) or not all(names.values()):
        raise OptionError("output", text, FORM)
    return names


def resolve_outputs(
    where: str, origin: str, facts: Mapping[str, object], options: TeacherOptions
) -> tuple[str | None, dict[str, str]]:
    """Return the name of the depth output, if one is given, and those of signals, from metadata and options.

    Raises PipelineError if the two contradict each other.
    """
    text = facts.get("output")
    if type(text) is int:  # an index in a tuple
        text = str(text)
    text = resolve_text(where, origin, "output", text, None)
    written, asked = parse_outputs(text), parse_outputs(options.output)
    names = {field: resolve_text(where, origin, "output", written.get(field), asked.get(field)) for field in FIELDS}
    return names[DEPTH], {field: name for field in SIGNALS if (name := names[field]) is not None}
