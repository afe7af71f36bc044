"""`pipeline store estimate`, `stats`, `subset`, `recompress`, `merge`, `pack`, `unpack` and `diff`."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

import click

from ..errors import PipelineError
from .console import Console, echo, one_line, table
from .options import OUT, OVERWRITE, PATH, SIZE, STORE, PipelineCommand, option

if TYPE_CHECKING:
    from pathlib import Path

    from ..store import Store
    from ..store.tools.estimate import Cost

DEFAULT_REL_ERROR = 5e-4


def _size(count: float) -> str:
    """Format a number of bytes."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB" if count < 1000 else f"{count:,.0f} TB"


@click.command(cls=PipelineCommand)
@option("--source", "source_name", metavar="KIND:ROOT", help="Data set, such as kitti:ROOT.")
@option("--split", help="Name of a split, or a list file in the data set's format, to count images.")
@option("--images", type=click.IntRange(min=1), help="Number of images, instead of --source and --split.")
@option("--size", "size_px", type=SIZE, help="Size of the teacher's output; that of --from if omitted.")
@option("--bins", help="Depth bins: kitti, nyu or SPACING:COUNT:LO:HI in metres. The source's default if omitted.")
@option("--dpm", type=click.Choice(["gaussian", "sparse", "dense"]), help="Kind of maps; gaussian if omitted.")
@option("--max-rel-error", type=float, help="Largest relative error of stored depth; 0.0005 if omitted.")
@option("--from", "measured", metavar="STORE", type=STORE, help="Store to measure bytes on; it sets maps and error.")
@option(
    "--ms-per-image",
    type=click.FloatRange(min=0, min_open=True),
    help="Milliseconds that the teacher takes for an image.",
)
def estimate(
    source_name: str | None,
    split: str | None,
    images: int | None,
    size_px: tuple[int, int] | None,
    bins: str | None,
    dpm: str | None,
    max_rel_error: float | None,
    measured: str | Path | None,
    ms_per_image: float | None,
) -> None:
    """Estimate bytes and hours of a store before a run, compared with PNGs and dense maps.

    \b
    Example: pipeline store estimate --source kitti:ROOT --split ROOT/splits/train.txt --size 352x1216 \\
               --ms-per-image 250

    For figures of your teacher, cache a few images first and pass that store with --from.
    """
    if (images is None) == (split is None) or (source_name is None) != (split is None):
        raise click.UsageError("give either --source and --split, or --images")
    if split is not None and source_name is not None:
        from ..sources.registry import open_source

        source = open_source(source_name)
        images, bins = len(source.samples(split)), bins or (None if measured else source.defaults.bins)
    assert images is not None
    costs, size_px, max_rel_error = _costs(measured, size_px, bins, dpm, max_rel_error)
    png = costs[-2].bits_per_pixel
    rows = [
        [
            cost.name,
            f"{cost.bits_per_pixel:.2f}",
            _size(cost.bytes(1, size_px)),
            _size(cost.bytes(images, size_px)),
            f"{cost.bits_per_pixel / png:.2f}x",
        ]
        for cost in costs
    ]
    echo(f"{images} images of {size_px[0]}x{size_px[1]} px, relative error at most {max_rel_error:.3%}\n")
    echo(table(["", "bits/pixel", "one image", "all images", "of PNG"], rows))
    echo("\nfigures from")
    for cost in costs:
        echo(f"  {cost.name}: {cost.where_from}")
    if ms_per_image is None:
        echo("hours: unknown without --ms-per-image; cache a few images to see the rate")
    else:
        echo(f"hours: {images * ms_per_image / 3.6e6:.2f}, once, for the teacher at {ms_per_image:g} ms/image")


def _costs(
    measured: str | Path | None,
    size_px: tuple[int, int] | None,
    bins: str | None,
    dpm: str | None,
    max_rel_error: float | None,
) -> tuple[list[Cost], tuple[int, int], float]:
    """Return costs, size and relative error: of the store to measure on, or of reference figures."""
    from ..store import open_store
    from ..store.tools.estimate import count_bins, measured_costs, reference_costs

    if measured is not None:
        if bins or dpm or max_rel_error:
            raise click.UsageError("--from sets --bins, --dpm and --max-rel-error: leave them out")
        store = open_store(measured)
        return measured_costs(store), size_px or store.layout.size_px, store.spec.max_rel_error
    if size_px is None or bins is None:
        missing = "--size, the teacher's output such as 352x1216" if size_px is None else "--bins, such as kitti or nyu"
        raise click.UsageError(f"give {missing}, or --from and a small store of your teacher")
    max_rel_error = max_rel_error or DEFAULT_REL_ERROR
    return reference_costs(max_rel_error, dpm or "gaussian", count_bins(bins)), size_px, max_rel_error


@click.command(cls=PipelineCommand)
@click.argument("path", metavar="STORE", type=STORE)
@option("--out", type=PATH, help="Write all figures, including each sample's, as JSON.")
@option("--picture", type=PATH, help="Write plots as a PNG file.")
@OVERWRITE
def stats(path: str | Path, out: Path | None, picture: Path | None, *, overwrite: bool) -> None:
    """Read a whole store and print the distribution of depth, errors and invalid pixels.

    \b
    Example: pipeline store stats train.zarr --out stats.json --picture stats.png
    """
    from ..common.fileio import pretty_json, write_durably
    from ..common.outputs import refuse_existing
    from ..common.own_files import make_folder
    from ..store.tools.stats import describe_statistics, store_statistics

    for option_name, target in (("out", out), ("picture", picture)):
        if target is not None:
            refuse_existing(target, overwrite=overwrite, option=option_name)
            make_folder(target.parent)
    statistics = store_statistics(path, Console())
    if out:
        write_durably(out, pretty_json(statistics))
    if picture:
        from ..store.tools.stats_plot import write_picture

        write_picture(statistics, picture)
    for name, text in describe_statistics(statistics):
        echo(f"{name:<12} {one_line(text)}")


@click.command(cls=PipelineCommand)
@click.argument("path", metavar="STORE", type=STORE)
@OUT
@option(
    "--split", type=PATH, help="File with the samples to take, one per line: ids, or images as the data set lists them."
)
@option("--every", type=click.IntRange(min=1), help="Take every N-th sample, starting with the first.")
def subset(path: str | Path, out: Path, split: Path | None, every: int | None) -> None:
    """Write a store of some samples of another, in the given order, without re-encoding.

    \b
    Example: pipeline store subset train.zarr --out small.zarr --every 10
    """
    from ..store import open_store
    from ..store.tools.subset import subset_store

    if (split is None) == (every is None):
        raise click.UsageError("give either --split or --every")
    store = open_store(path)
    samples = range(0, len(store), every) if every else _listed(split, store) if split else []
    size = subset_store(store, out, samples, Console())
    echo(f"{out}: {len(samples)} of {len(store)} samples, {_size(size)} of maps copied")


@click.command(cls=PipelineCommand)
@click.argument("path", metavar="STORE", type=STORE)
@OUT
@option(
    "--level",
    type=click.IntRange(1, 9),
    required=True,
    help="1 is fast to write, 9 is small and fast to read.",
)
def recompress(path: str | Path, out: Path, level: int) -> None:
    """Write a store again with another compression level: other bytes, the same values.

    \b
    Example: pipeline store recompress train.zarr --level 9 --out train9.zarr
    """
    from ..store import open_store
    from ..store.tools.recompress import recompress_store

    store = open_store(path)
    size = recompress_store(store, out, level, Console())
    echo(f"{out}: {len(store)} samples at level {level}, {_size(size)} of depth and maps")


def _listed(split: Path, store: Store) -> list[str]:
    """Return the ids of a list. A row is an id, or starts with an image whose path without suffix is an id."""
    from ..sources.splits import Ids, rows, without_suffix

    stored = {unicodedata.normalize("NFC", sample_id): sample_id for sample_id in store.ids}
    ids, samples = Ids(split), []
    for line, row in rows(split):
        if row.startswith("#"):
            continue
        text = unicodedata.normalize("NFC", row)
        first = without_suffix(text.split()[0]) or text
        name = next((name for name in (text, without_suffix(text)) if name in stored), first)
        if name not in stored:
            raise PipelineError(
                f"split {split} line {line}: {store.name} has no sample {name!r} among its {len(store)}, such as "
                f"{store.ids[0]!r}: remove the line, or cache a split with this image"
            )
        ids.add(name, line)
        samples.append(stored[name])
    ids.check_not_empty()
    return samples


@click.command(cls=PipelineCommand)
@click.argument("paths", metavar="STORE STORE...", type=STORE, nargs=-1, required=True)
@OUT
def merge(paths: tuple[str | Path, ...], out: Path) -> None:
    """Join several stores into one, in the given order, without re-encoding.

    \b
    Example: pipeline store merge first-half.zarr second-half.zarr --out train.zarr

    The stores must have the same teacher, view and codec, and no common sample. Stores of consecutive parts of a split
    give the same bytes as one store of the split.
    """
    from ..store import open_store
    from ..store.tools.merge import merge_stores

    stores = [open_store(path) for path in paths]
    size = merge_stores(stores, out, Console())
    echo(f"{out}: {sum(map(len, stores))} samples of {len(stores)} stores, {_size(size)} of maps copied")


@click.command(cls=PipelineCommand)
@click.argument("path", metavar="STORE", type=PATH)
@OUT
def pack(path: Path, out: Path) -> None:
    """Verify a store and write it as one file. The same store gives the same file.

    \b
    Example: pipeline store pack train.zarr --out train.dstore

    The file is an uncompressed ZIP, which Zarr's ZipStore opens.
    """
    from ..store.tools.archive import pack_store

    size = pack_store(path, out, Console())
    echo(f"{out}: {_size(size)}")


@click.command(cls=PipelineCommand)
@click.argument("archive", metavar="FILE", type=PATH)
@OUT
def unpack(archive: Path, out: Path) -> None:
    """Unpack a store into a directory. A file that is not a packed store is refused.

    \b
    Example: pipeline store unpack train.dstore --out train.zarr
    """
    from ..store.tools.archive import unpack_store

    count = unpack_store(archive, out, Console())
    echo(f"{out}: {count} samples, every file matches the manifest")


@click.command(cls=PipelineCommand)
@click.argument("first", metavar="A", type=STORE)
@click.argument("second", metavar="B", type=STORE)
@option("--samples", type=click.IntRange(min=1), help="Common samples to compare; all if omitted.")
def diff(first: str | Path, second: str | Path, samples: int | None) -> None:
    """Print what differs between two stores: settings, samples and values. Exit status 1 if anything differs.

    \b
    Example: pipeline store diff mine.zarr theirs.zarr

    Different package versions and shard sizes are printed, but do not count as a difference.
    """
    from ..store import open_store
    from ..store.tools.diff import compare_stores

    differences = compare_stores(open_store(first), open_store(second), samples, Console())
    if differences.fields:
        echo(table(["field", "A", "B"], differences.fields))
    echo("\n".join(differences.describe()))
    if not differences.identical:
        click.get_current_context().exit(1)
