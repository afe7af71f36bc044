"""The contract between the stages: layout, codec, writer, reader, checks. Public face: `open_store`."""

from .read.store import Store, open_store

__all__ = ["Store", "open_store"]
