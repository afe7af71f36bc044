"""The option type of one of several data sets: SOURCE,SPLIT,STORE[,WEIGHT]."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from .options import STORE

if TYPE_CHECKING:
    from pathlib import Path

COMMA = re.compile(r",(?![^{}]*\})")
"""A comma outside of braces: `wds:train-{a,b}.tar` is one field."""
EXAMPLE = "kitti:ROOT,train,kitti.zarr or kitti:ROOT,train,kitti.zarr,2"


class DataFields(NamedTuple):
    """The fields of a data set, as written."""

    source_name: str
    split: str
    store: str | Path
    weight: float | None = None


class DataSetType(click.ParamType[DataFields]):
    """Source, split, store and optionally a weight, separated by commas outside of braces."""

    name = "SOURCE,SPLIT,STORE[,WEIGHT]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> DataFields:
        """Parse `kitti:ROOT,train,kitti.zarr,2`."""
        if isinstance(value, DataFields):
            return value
        fields = COMMA.split(str(value))
        if len(fields) not in {3, 4} or "" in fields:
            self.fail(f"{value!r}: expected a source, a split, a store and perhaps a weight: {EXAMPLE}", param, ctx)
        source_name, split, store = fields[:3]
        try:
            weight = float(fields[3]) if len(fields) > 3 else None
        except ValueError:
            self.fail(f"{value!r}: the weight is {fields[3]!r}, expected a number, as in {EXAMPLE}", param, ctx)
        return DataFields(source_name, split, STORE.convert(store, param, ctx), weight)


DATA_SET = DataSetType()
