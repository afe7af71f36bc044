"""Read the YAML of a study file within limits: a few lines with aliases can expand to more than memory holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from ..common.fileio import JSON_MAX_DEPTH, open_regular
from ..errors import PipelineError

if TYPE_CHECKING:
    from pathlib import Path

MAX_FILE_BYTES = 2**20
MAX_NODES = 100_000
"""Limit of nodes after expanding aliases; the studies of this project have a few thousand."""


def read_yaml(path: Path) -> dict[Any, Any]:
    """Return the top mapping of a study file. Raises PipelineError."""
    where = f"study file {path}"
    try:
        with open_regular(path) as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise PipelineError(f"{where}: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise PipelineError(f"{where}: more than {MAX_FILE_BYTES} bytes, the limit of a study file")
    try:
        text = data.decode()
        _check_size(text)
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise PipelineError(f"{where}: {error}; expected YAML with a section `studies`") from error
    if not isinstance(value, dict) or "studies" not in value:
        raise PipelineError(f"{where}: no section `studies`; expected YAML with a section `studies`")
    return value


class _Node:
    """A list or mapping that is being parsed."""

    def __init__(self, anchor: str | None, *, mapping: bool) -> None:
        self.anchor, self.mapping = anchor, mapping
        self.nodes, self.children = 1, 0
        self.keys: set[str] = set()

    def add(self, nodes: int, key: str | None) -> None:
        """Count a child. Raises PipelineError for a duplicate key."""
        if self.mapping and self.children % 2 == 0 and key is not None and key != "<<":
            if key in self.keys:
                raise PipelineError(f"duplicate key {key[:80]!r}")
            self.keys.add(key)
        self.children += 1
        self.nodes += nodes


def _check_size(text: str) -> None:
    """Raise PipelineError for duplicate keys, and for YAML of more than MAX_NODES nodes after expanding aliases.

    Aliases of aliases grow exponentially when they are built, so this counts parser events before that.
    """
    sizes: dict[str, int] = {}
    stack = [_Node(None, mapping=False)]
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        nodes, key, anchor = 1, None, getattr(event, "anchor", None)
        if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            stack.append(_Node(anchor, mapping=isinstance(event, yaml.MappingStartEvent)))
            if len(stack) > JSON_MAX_DEPTH:
                raise PipelineError(f"nested deeper than {JSON_MAX_DEPTH}")
            continue
        if isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            closed = stack.pop()
            nodes, anchor = closed.nodes, closed.anchor
        elif isinstance(event, yaml.AliasEvent):
            if anchor not in sizes:
                raise PipelineError(f"alias *{anchor} refers to itself, or to an anchor that is not defined before it")
            nodes, anchor = sizes[anchor], None
        elif isinstance(event, yaml.ScalarEvent):
            nodes, key = 1 + len(event.value) // 16, event.value
        else:
            continue
        stack[-1].add(nodes, key)
        if anchor is not None:
            sizes[anchor] = nodes
        if stack[-1].nodes > MAX_NODES:
            raise PipelineError(f"its aliases expand to more than {MAX_NODES} values")
