"""Protocols that specifications and layouts of all kinds of stores implement."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .layout import ArrayLayout


class Spec(Protocol):
    """Specification of a store."""

    @property
    def samples_per_shard(self) -> int:
        """Number of samples per shard."""
        ...

    @property
    def source(self) -> dict[str, Any]:
        """The image source: `name`, `samples`, `ids_sha256`."""
        ...

    @property
    def version(self) -> int:
        """Format version."""
        ...

    @property
    def samples(self) -> int:
        """Number of samples."""
        ...

    @property
    def shards(self) -> int:
        """Number of files of each large array."""
        ...

    def shard_samples(self, shard: int) -> range:
        """Indexes of the samples in a shard."""
        ...

    def digest(self) -> str:
        """Hash of the whole specification."""
        ...


S = TypeVar("S", bound=Spec)


class Layout(Protocol):
    """Files and arrays of a store."""

    def metadata(self) -> dict[str, dict[str, Any]]:
        """Content of every `zarr.json`, by its path in the store."""
        ...

    def sharded(self) -> list[ArrayLayout]:
        """Arrays of many samples per file, all with the same samples per shard."""
        ...

    def rows(self) -> list[ArrayLayout]:
        """Arrays with one row per sample."""
        ...

    def arrays(self) -> list[ArrayLayout]:
        """All arrays."""
        ...

    def files(self) -> Iterator[str]:
        """Every file of a complete store except the manifest."""
        ...
