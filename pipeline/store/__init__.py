"""The store between the two stages: layout, codec, writer, reader, checks. Start at `open_store`."""

from .read.store import Store, open_store

__all__ = ["Store", "open_store"]
