"""What the specification and the layout of a store promise, whatever kind of store it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .layout import ArrayLayout


class Spec(Protocol):
    """What a store is asked to be."""

    @property
    def samples_per_shard(self) -> int:
        """How many a shard holds."""
        ...

    @property
    def source(self) -> dict[str, Any]:
        """Of the images: `name`, `samples`, `ids_sha256`."""
        ...

    @property
    def version(self) -> int:
        """Of its format."""
        ...

    @property
    def samples(self) -> int:
        """How many there are."""
        ...

    @property
    def shards(self) -> int:
        """How many files each of its large arrays has."""
        ...

    def shard_samples(self, shard: int) -> range:
        """Indexes of the samples that a shard holds."""
        ...

    def digest(self) -> str:
        """Hash of all of it."""
        ...


S = TypeVar("S", bound=Spec)


class Layout(Protocol):
    """Which files and arrays a store consists of."""

    def metadata(self) -> dict[str, dict[str, Any]]:
        """Content of every `zarr.json`, by its path in the store."""
        ...

    def sharded(self) -> list[ArrayLayout]:
        """Arrays whose files hold many samples each, all with the same grouping."""
        ...

    def rows(self) -> list[ArrayLayout]:
        """Arrays with one row a sample."""
        ...

    def arrays(self) -> list[ArrayLayout]:
        """All arrays."""
        ...

    def files(self) -> Iterator[str]:
        """Every file of a complete store except the manifest."""
        ...
