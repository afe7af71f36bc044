"""Open a store and read samples from it. Stores are not trusted.

Opening reads manifest and metadata only; chunks are read when a sample is requested, and their checksums compared. A
missing or damaged chunk raises and never reads as zeros. Checksums do not notice a chunk at the wrong position, so each
process also compares a shard's sha256 with the manifest on first use (8 ms for 12 MB).

Shape legend: N samples, K bins, h w pixels of the teacher's own output.
"""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...depth.alignment import Fit, apply
from ...depth.spaces import ABSOLUTE_SPACES, DISPARITY, METRIC
from ...errors import DamagedStoreError, PipelineError, StoreNotFoundError
from ..format.codec import AffineCodec, LogCodec
from ..format.layout import MANIFEST, MAX_MAP_BYTES
from ..format.maps import gaussian, normalized
from .alignment import AlignmentColumns
from .extras import StoredExtras
from .files import LocalFiles, is_url
from .planes import SparsePlanes
from .validate import IMAGES, HoldsImagesError, open_layout

if TYPE_CHECKING:
    import xarray
    import zarr
    from numpy.typing import NDArray

    from .files import StoreFiles


def open_store(path: str | Path, *, check_shards: bool | None = None, cache: Path | None = None) -> Store:
    """Open a complete store: a directory, or a URL (http, https, s3, gs, az).

    Args:
        path: directory or URL.
        check_shards: hash each shard on first use in each process, which also detects swapped chunks and shards; costs
            under a second per GB. Default: on for a directory, off for a URL, where it fetches whole shards. To read
            few samples from many shards, run `pipeline store verify` once and pass False.
        cache: folder for byte ranges fetched from a URL. Default: `TIEKD_STORE_CACHE`, or the user's cache folder.

    Raises StoreNotFoundError if `path` is not a complete store, StoreFormatError for another version, metadata that
    does not follow the format exactly, or files that do not match the manifest.

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
        return Store(remote, remote.name, check_shards=False)  # RemoteFiles checks whole shards itself
    root = Path(path)
    if not (root / MANIFEST).is_file():
        raise _not_a_store(root)
    return Store(LocalFiles(root), str(root), check_shards=check_shards is not False)


def _not_a_store(root: Path) -> PipelineError:
    """Return the error for a path without a manifest."""
    staged = sorted(root.parent.glob(f".{root.name}.*.staging")) if root.parent.is_dir() else []
    if staged:
        images = (staged[0] / "store" / IMAGES).parent.is_dir()
        return StoreNotFoundError(
            f"{root} is not complete (unfinished in {staged[0]}): run the same `pipeline "
            f"{'cache-images' if images else 'cache-teacher'}` command again to resume it"
        )
    if (root / IMAGES).is_file():
        return HoldsImagesError(str(root))
    return StoreNotFoundError(
        f"{root} is not a complete store: {MANIFEST} is missing; expected a directory that "
        "`pipeline cache-teacher` wrote"
    )


class Store(SparsePlanes, StoredExtras):
    """A depth store opened for reading. Picklable; safe in forked and spawned loader workers.

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
        """(K + 1,) edges of the bins in metres; pixels for disparity, fractions of each sample's range if relative."""
        return np.array(self.spec.bin_edges)

    @property
    def is_metric(self) -> bool:
        """Whether `depth_m` works: metric depth, disparity with its cameras, or relative depth that is aligned."""
        return self.spec.depth_space in ABSOLUTE_SPACES or self.spec.alignment is not None

    @cached_property
    def _alignments(self) -> AlignmentColumns:
        if self.spec.alignment is None:
            raise PipelineError(
                f"{self.name} is not aligned to ground truth: run `pipeline store align {self.name}` first"
            )
        return AlignmentColumns(self._columns.rows)

    @property
    def accepted(self) -> NDArray[np.bool_] | None:
        """Mask (N,) of samples whose alignment was accepted; None for a store that is not aligned."""
        return None if self.spec.alignment is None else self._alignments.accepted

    def alignment(self, sample: int | str) -> Fit:
        """Return how a sample was aligned to ground truth, or why its alignment was rejected.

        Raises PipelineError for a store that is not aligned, DamagedStoreError for an invalid row.
        """
        number, columns = self.index_of(sample), self._alignments
        try:
            return columns[number]
        except DamagedStoreError as error:
            raise self._damaged("sample/align_verdict", number, str(error)) from error

    # --- maps --------------------------------------------------------------------------------------------------

    def depth_m(self, sample: int | str) -> NDArray[np.float32]:
        """Return teacher depth (h, w) float32 metres at the teacher's own resolution, NaN where invalid.

        For an aligned store this applies the sample's scale and shift to `depth` and clips to the alignment's range:
        NaN where the result is not positive, and in the whole sample if its alignment was rejected.
        Raises PipelineError if the store is neither metric nor aligned, DamagedStoreError for a damaged sample.
        """
        if self.spec.depth_space == METRIC:
            return self.depth(sample)
        if self.spec.depth_space == DISPARITY:
            return self.metres_of_disparity(sample, self.depth(sample))
        if self.spec.alignment is None:
            raise PipelineError(
                f"{self.name} has {self.spec.depth_space}, which is not in metres: read it with .depth(), or align it "
                f"to ground truth with `pipeline store align {self.name}`"
            )
        fit, (low_m, high_m) = self.alignment(sample), self.spec.alignment["depth_range_m"]
        return apply(self.depth(sample), fit.scale, fit.shift, self.spec.depth_space, (low_m, high_m))

    def depth(self, sample: int | str) -> NDArray[np.float32]:
        """Return teacher output (h, w) float32 in the store's depth space, without alignment; NaN where invalid."""
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
        """Return the depth probability map (K, h, w) float32, which sums to 1 over K; NaN where invalid.

        `bin_edges_m` are its bins; for relative depth, aligned or not, they span each sample's range.
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
        """Return the Gaussian map (K, h, w) of a sample's depth: in metres, or over the sample's range if relative."""
        map_bytes = 4 * self.spec.bin_count * math.prod(self.layout.size_px)
        if map_bytes > MAX_MAP_BYTES:
            raise PipelineError(
                f"{self.name}: one map takes {map_bytes} bytes: expected at most {MAX_MAP_BYTES}; read .depth() and "
                "compute maps of parts of it"
            )
        values = self.depth(number)
        if isinstance(self._codec, AffineCodec):
            values = self._codec.fraction(values, *self._affine(number))
        assert self.spec.sigma_m is not None
        return gaussian(values, self.bin_edges_m, self.spec.sigma_m)

    # --- other libraries ---------------------------------------------------------------------------------------

    def to_xarray(self, *, dpm: bool = False) -> xarray.Dataset:
        """Return the store as a lazy xarray data set, one dask chunk per sample. Needs the extra `xarray`.

        Nothing is read before it is computed; each read is checked as by `depth_m`. The data set can be pickled to
        dask workers.

        Args:
            dpm: add the maps `dpm` (sample, bin, y, x).

        Returns:
            `depth_m` (sample, y, x) float32 metres, NaN where invalid, or `depth` if the store's depth is not metric
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
        """Return the store's raw arrays through zarr-python, read-only: residuals, weights and rows.

        zarr-python does not compare files with the manifest, and returns zeros for a missing chunk: check the store
        with `pipeline store verify` first. docs/store.md describes the encoding.

        Raises PipelineError for a store behind a URL.

        Examples:
            >>> import pipeline as tiekd
            >>> tiekd.open_store("train.zarr").zarr_group()["depth"].dtype
            dtype('uint16')
        """
        import zarr

        if not isinstance(self._files, LocalFiles):
            raise PipelineError(
                f"{self.name}: zarr_group() needs a local directory; copy the store to this machine first"
            )
        return zarr.open_group(self.name, mode="r")

    def _lacks(self, sample: str) -> str:
        return (
            f"{self.name} has no sample {sample!r} ({len(self)} samples, such as {self.ids[0]!r}): run `pipeline "
            "cache-teacher` with a split that contains this image"
        )
