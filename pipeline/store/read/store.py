"""Open a store and read samples from it, whoever wrote it.

Opening reads the manifest and the metadata alone; the shards are read when a sample is asked for, each chunk with
its checksum. A missing or damaged chunk raises: it never comes back as zeros. A checksum says nothing of the place a
chunk lies in, so a process that first touches a shard also compares its sha256 with the manifest (8 ms for 12 MB).

Shape legend: N samples, K bins, h w pixels of the teacher's own output.
"""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...depth.alignment import Fit, apply
from ...errors import DamagedStoreError, PipelineError, StoreNotFoundError
from ..format.codec import AffineCodec, LogCodec
from ..format.layout import MANIFEST, MAX_MAP_BYTES
from ..format.maps import gaussian, normalized
from .alignment import AlignmentColumns
from .files import LocalFiles, is_url
from .planes import SparsePlanes
from .validate import IMAGES, HoldsImagesError, open_layout

if TYPE_CHECKING:
    import xarray
    import zarr
    from numpy.typing import NDArray

    from .files import StoreFiles


def open_store(path: str | Path, *, check_shards: bool | None = None, cache: Path | None = None) -> Store:
    """Open a finished store: a directory, or a URL (http, https, s3, gs, az).

    Reading a sample notices all rot, and with `check_shards` also a sound shard or chunk in the place of another: each
    process hashes each shard once, when it first reads from it. A training run, which touches all of them anyway,
    pays under a second a GB in each loader worker. To read single samples out of thousands of shards, run
    `pipeline store verify` once and turn it off: a read then costs its own bytes alone.

    From a URL comes what is asked for and no more, and `cache` (else TIEKD_STORE_CACHE, else the user's cache folder)
    keeps it. There `check_shards` is off, because it fetches whole shards; `pipeline store verify URL` does it once.

    Raises StoreNotFoundError for a path that is no store or an unfinished one, StoreFormatError for another version,
    metadata that is not format version 1 to the letter, or files that do not match the manifest.

    Example:
        >>> import pipeline as tiekd
        >>> store = tiekd.open_store("train.zarr")
        >>> store.depth_m(store.ids[0]).shape  # (h, w) metres, NaN where invalid
        (16, 32)
        >>> store.dpm(0).shape  # (K, h, w) probabilities
        (64, 16, 32)
    """
    if is_url(path):
        from ..remote.remote import RemoteFiles

        remote = RemoteFiles(str(path), cache, whole_shards=bool(check_shards))
        return Store(remote, remote.name, check_shards=False)  # it compares whole shards itself
    root = Path(path)
    if not (root / MANIFEST).is_file():
        raise _unfinished(root)
    return Store(LocalFiles(root), str(root), check_shards=check_shards is not False)


def _unfinished(root: Path) -> PipelineError:
    """What to say of a path that has no manifest."""
    staged = sorted(root.parent.glob(f".{root.name}.*.staging")) if root.parent.is_dir() else []
    if staged:
        images = (staged[0] / "store" / IMAGES).parent.is_dir()
        return StoreNotFoundError(
            f"{root} is not finished ({staged[0]} holds what there is): run its `pipeline "
            f"{'cache-images' if images else 'cache-teacher'}` command again, which goes on where it stopped"
        )
    if (root / IMAGES).is_file():
        return HoldsImagesError(str(root))
    return StoreNotFoundError(
        f"{root} is not a complete store: {MANIFEST} is missing; expected a directory that "
        "`pipeline cache-teacher` wrote"
    )


class Store(SparsePlanes):
    """A store of depth opened for reading. Picklable, and safe in forked and spawned loader workers.

    Example:
        >>> import pipeline as tiekd
        >>> store = tiekd.open_store("train.zarr")
        >>> len(store), store.bin_edges_m.shape, store.is_metric
        (6, (65,), True)
    """

    def __init__(self, files: StoreFiles, name: str, *, check_shards: bool = True) -> None:
        manifest, spec, self.layout = open_layout(files, name)
        super().__init__(files, name, manifest, spec, self.layout.arrays(), check_shards=check_shards)

    def __repr__(self) -> str:
        height, width = self.layout.size_px
        return f"<Store {self.name}: {len(self)} x {height}x{width} px of {self.spec.teacher['name']}>"

    @property
    def bin_edges_m(self) -> NDArray[np.float64]:
        """(K + 1,) edges of the depth bins; for relative depth they are shares of each sample's own range."""
        return np.array(self.spec.bin_edges)

    @property
    def is_metric(self) -> bool:
        """Whether `depth_m` has metres: of a metric teacher, or of a relative one that was aligned to ground truth."""
        return self.spec.depth_space == "metric_m" or self.spec.alignment is not None

    @cached_property
    def _alignments(self) -> AlignmentColumns:
        if self.spec.alignment is None:
            raise PipelineError(
                f"{self.name} is not aligned to ground truth: `pipeline store align {self.name}` writes one that is"
            )
        return AlignmentColumns(self._columns.rows)

    @property
    def accepted(self) -> NDArray[np.bool_] | None:
        """(N,) which samples of an aligned store have metres; None for a store that is not aligned."""
        return None if self.spec.alignment is None else self._alignments.accepted

    def alignment(self, sample: int | str) -> Fit:
        """How a sample was aligned to ground truth, or why it was not.

        Raises PipelineError for a store that is not aligned, DamagedStoreError for a row that no fit can have.
        """
        number, columns = self.index_of(sample), self._alignments
        try:
            return columns[number]
        except DamagedStoreError as error:
            raise self._damaged("sample/align_verdict", number, str(error)) from error

    # --- maps --------------------------------------------------------------------------------------------------

    def depth_m(self, sample: int | str) -> NDArray[np.float32]:
        """Teacher depth (h, w) float32 metres at the teacher's own resolution, NaN where invalid.

        Of an aligned store it is `depth` with the sample's scale and shift, within the alignment's range: NaN where
        that is not above 0, and everywhere in a sample whose alignment was rejected.
        Raises PipelineError for a store whose depth is neither metric nor aligned, DamagedStoreError for a damaged
        sample.
        """
        if self.spec.depth_space == "metric_m":
            return self.depth(sample)
        if self.spec.alignment is None:
            raise PipelineError(
                f"{self.name} holds {self.spec.depth_space}, which is not metres: read it with .depth(), or align it "
                f"to ground truth with `pipeline store align {self.name}`"
            )
        found, (low_m, high_m) = self.alignment(sample), self.spec.alignment["depth_range_m"]
        return apply(self.depth(sample), found.scale, found.shift, self.spec.depth_space, (low_m, high_m))

    def depth(self, sample: int | str) -> NDArray[np.float32]:
        """Teacher output (h, w) float32 in the store's depth space, aligned or not; NaN where invalid."""
        number = self.index_of(sample)
        residual = self._chunks("depth", number, reuse=True)[0]
        if residual is None:
            raise self._damaged("depth", number, "the chunk is missing")
        try:
            if isinstance(self._codec, LogCodec):
                return self._codec.decode_residual(residual[0])
            return self._codec.decode_residual(residual[0], *self._affine(number))
        except DamagedStoreError as error:
            raise self._damaged("depth", number, str(error)) from error

    @cached_property
    def _codec(self) -> LogCodec | AffineCodec:
        return self.spec.depth_codec()

    @cached_property
    def _affine_rows(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return self.rows("code_scale"), self.rows("code_offset")

    def _affine(self, number: int) -> tuple[float, float]:
        scale, offset = (float(column[number]) for column in self._affine_rows)
        if not (np.isfinite([scale, offset]).all() and scale > 0):
            raise DamagedStoreError(f"scale {scale} and offset {offset}: expected finite numbers, scale above 0")
        return scale, offset

    def dpm(self, sample: int | str) -> NDArray[np.float32]:
        """Teacher map (K, h, w) float32, which sums to 1 over K where valid and is NaN elsewhere.

        Its bins are those of `bin_edges_m`: of a relative teacher over each sample's own range, also after alignment.
        """
        number = self.index_of(sample)
        if self.spec.dpm_kind == "gaussian":
            return self._gaussian(number)
        if self.spec.dpm_kind == "sparse":
            try:
                return self.decoded(number)
            except DamagedStoreError:
                raise
            except ValueError as error:
                raise self._damaged("dpm/gap", number, str(error)) from error
        chunk = self._chunks("dpm/probability", number)[0]
        if chunk is None:
            raise self._damaged("dpm/probability", number, "the chunk is missing")
        dense: NDArray[np.float32] = chunk[0].astype(np.float32)
        try:
            return normalized(dense)
        except ValueError as error:
            raise self._damaged("dpm/probability", number, str(error)) from error

    def _gaussian(self, number: int) -> NDArray[np.float32]:
        """Map (K, h, w) about a sample's depth: in metres, or where depth is relative over the sample's own range."""
        map_bytes = 4 * self.spec.bin_count * math.prod(self.layout.size_px)
        if map_bytes > MAX_MAP_BYTES:
            raise PipelineError(
                f"{self.name}: one map takes {map_bytes} bytes, expected at most {MAX_MAP_BYTES}; read .depth(), and "
                "make maps of parts of it"
            )
        values = self.depth(number)
        if isinstance(self._codec, AffineCodec):
            values = self._codec.share(values, *self._affine(number))
        assert self.spec.sigma_m is not None
        return gaussian(values, self.bin_edges_m, self.spec.sigma_m)

    # --- other libraries ---------------------------------------------------------------------------------------

    def to_xarray(self, *, dpm: bool = False) -> xarray.Dataset:
        """The store as a lazy xarray data set, one dask chunk a sample. Needs the extra `xarray`.

        Nothing is read before it is computed; each read is checked as by `depth_m`. The data set can be pickled to
        dask workers.

        Args:
            dpm: add the maps, `dpm` (sample, bin, y, x).

        Returns:
            `depth_m` (sample, y, x) float32 metres, NaN where invalid, or `depth` where the store's depth is not metric
            (see the attribute `depth_space`); the coordinate `sample` with the ids; `bin_edges_m` (K + 1,), or
            `bin_edges` of relative depth; `max_rel_error` and `invalid_fraction` of each sample.

        Raises MissingDependencyError without xarray. Computing raises what `depth_m` and `dpm` raise.

        Examples:
            >>> import pipeline as tiekd
            >>> data = tiekd.open_store("train.zarr").to_xarray()
            >>> data.depth_m.sel(sample="000003").mean().compute().item() > 0
            True
        """
        from .to_xarray import to_xarray

        return to_xarray(self, dpm=dpm)

    def zarr_group(self) -> zarr.Group:
        """The store's raw arrays through zarr-python, read-only: residuals of codes, weights of bins, rows.

        zarr-python does not compare files with the manifest, and returns zeros for a missing chunk: check the store
        with `pipeline store verify` first. docs/store.md says how numbers become metres.

        Raises PipelineError for a store behind a URL.

        Examples:
            >>> import pipeline as tiekd
            >>> tiekd.open_store("train.zarr").zarr_group()["depth"].dtype
            dtype('uint16')
        """
        import zarr

        if not isinstance(self._files, LocalFiles):
            raise PipelineError(f"{self.name}: zarr_group() reads a directory; copy the store to this machine first")
        return zarr.open_group(self.name, mode="r")

    def _lacks(self, sample: str) -> str:
        return (
            f"{self.name} holds no sample {sample!r} (it has {len(self)}, such as {self.ids[0]!r}): was it made from "
            "another split? Run `pipeline cache-teacher` with a split that has this image"
        )
