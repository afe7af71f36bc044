"""How a user's factory is called: the same here and in a worker, which imports this file by its path."""

from __future__ import annotations

import inspect
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


def takes_device(factory: Any) -> bool:
    """Return whether a factory takes a positional argument."""
    torch: Any = sys.modules.get("torch")
    own = getattr(factory, "__init__", None)
    if torch is not None and own is torch.nn.Module.__init__:  # its signature has *args, which it refuses
        return False
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:  # classes and functions of C may have no signature
        return False
    return any(parameter.kind not in {parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD} for parameter in parameters)


def networks_of(model: Any) -> Iterator[Any]:
    """Yield the torch modules of a model: itself, its attributes (also in lists and dicts), and its closure."""
    torch: Any = sys.modules.get("torch")
    values = [model, getattr(model, "__self__", None), *getattr(model, "__dict__", {}).values()]
    for cell in getattr(model, "__closure__", None) or ():
        with suppress(ValueError):  # an empty cell
            values.append(cell.cell_contents)
    for value in values if torch is not None else ():
        items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
        yield from (item for item in items if isinstance(item, torch.nn.Module))
