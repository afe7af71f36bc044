"""Damage stores and count which reads notice it: those of the store reader, of `verify` and of plain Zarr.

    python tests/faults/flip.py [--flips 2000] [--samples 24] [--seed 0] [--handles 64]

Each fault is made in a store of one kind, and undone after the reads. Flipped bits are spread over all kinds of files.
Each fault states which reads it touches (they must raise) and which it makes untrusted (they may raise, but must not
return wrong values). All other reads must return the same values as before:

- a damaged chunk touches the maps of its sample; a damaged index or a missing or resized file touches its whole shard;
- a missing or swapped chunk with a valid checksum makes the whole shard untrusted, because it was rewritten;
- ids touch only reads by id; `code_scale`, `code_offset` and `dpm_planes` the maps they decode; other rows, such as
  `clipped_share`, only themselves;
- after a fault in the metadata, the bin edges or the manifest the store must not open.
"""

from __future__ import annotations

import argparse
import gc
import resource
import shutil
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import google_crc32c
import numpy as np
import zarr

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from tiny_stores import folder_bytes, make_store

from pipeline.errors import DamagedStoreError
from pipeline.store import open_store
from pipeline.store.format.layout import MANIFEST
from pipeline.store.format.shard import EMPTY, build_shard, parse_index
from pipeline.store.tools.verify import verify_store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pipeline.store import Store
    from pipeline.store.format.layout import ArrayLayout

KINDS = {
    "gaussian": {},
    "sparse": {},
    "dense": {},
    "affine": {"kind": "gaussian", "depth_space": "affine_disparity"},
}
PER_SHARD = 4
DEPTH = ("depth", "map", "by id")
NEEDED_ROWS = {"code_scale": DEPTH, "code_offset": DEPTH, "dpm_planes": ("map",)}
ALL_OF_IT = "whole store"

Read = tuple[str, Any]
"""A read: (`depth`, number), (`map`, number), (`by id`, number) or (`row`, name)."""


class Fault(NamedTuple):
    """One way to damage a store."""

    kind: str
    place: str
    """Kind of the damaged file, for the table."""
    changed: dict[str, bytes | None]
    """New content of files; None removes one."""
    touched: set[Read]
    """Reads that must raise."""
    untrusted: set[Read]
    """Reads that may raise."""
    named: list[tuple[set[str], list[str]]]
    """For each damaged file: the names of which `verify` must print one, and the samples it must print with it."""


class Subject:
    """An intact store in which faults are made."""

    def __init__(self, folder: Path, kind: str, samples: int) -> None:
        self.path = make_store(
            folder / f"{kind}.zarr", **{"kind": kind, "samples": samples, "samples_per_shard": PER_SHARD} | KINDS[kind]
        )
        self.kind = kind
        self.bytes = folder_bytes(self.path)
        self.store = open_store(self.path)
        self.ids = list(self.store.ids)  # before any fault
        self.sound = {read: value_of(self.store, read).tobytes() for read in self.reads()}
        self.by_zarr = read_with_zarr(self.path)
        self.shards = {
            array.file(shard): (array, shard)
            for array in self.store.layout.sharded()
            for shard in range(self.store.spec.shards)
        }
        self.rows = {array.file(0): array.path.removeprefix("sample/") for array in self.store.layout.rows()}

    def reads(self) -> list[Read]:
        names = [array.path.removeprefix("sample/") for array in self.store.layout.rows()]
        numbers = range(len(self.store))
        return [(what, number) for what in ("depth", "map", "by id") for number in numbers] + [
            ("row", name) for name in names
        ]

    def samples_in(self, file: str) -> list[int]:
        return list(self.store.spec.shard_samples(self.shards[file][1])) if file in self.shards else []

    def touched_by(self, file: str, samples: Iterable[int]) -> set[Read]:
        """Reads that need the part of a file that holds these samples."""
        if file in self.shards:
            whats = ["map"]
            if self.shards[file][0].path == "depth":
                whats = ["depth", "by id", *(["map"] if self.store.spec.dpm_kind == "gaussian" else [])]
            return {(what, number) for what in whats for number in samples}
        if file in self.rows:
            name = self.rows[file]
            whats = NEEDED_ROWS.get(name, ("by id",) if name == "id" else ())
            return {("row", name)} | {(what, number) for what in whats for number in range(len(self.store))}
        return set(self.sound) if file != MANIFEST else set()

    def named(self, file: str) -> list[tuple[set[str], list[str]]]:
        return [({file}, [self.ids[number] for number in self.samples_in(file)])]

    def place(self, file: str) -> str:
        if file in self.shards:
            return "depth shard" if self.shards[file][0].path == "depth" else "map shard"
        if file in self.rows:
            name = self.rows[file]
            return "ids" if name == "id" else "rows to decode" if name in NEEDED_ROWS else "rows to tell"
        return "manifest" if file == MANIFEST else "bin edges" if "bin_edges/c" in file else "zarr.json"

    def files_by_place(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = defaultdict(list)
        for file in self.bytes:
            found[self.place(file)].append(file)
        return found

    def index(self, file: str) -> np.ndarray:
        array, data = self.shards[file][0], self.bytes[file]
        return parse_index(array, data[: array.index_bytes], len(data)).copy()

    def with_index(self, file: str, index: np.ndarray) -> bytes:
        """Return the shard with another index and a valid checksum."""
        head = index.tobytes()
        array: ArrayLayout = self.shards[file][0]
        return head + google_crc32c.value(head).to_bytes(4, "little") + self.bytes[file][array.index_bytes :]

    # --- faults ------------------------------------------------------------------------------------------------

    def flip(self, file: str, place: int, bit: int) -> Fault:
        data = bytearray(self.bytes[file])
        data[place] ^= 1 << bit
        samples, name, untrusted, named = self.samples_in(file), self.place(file), set(), self.named(file)
        if file in self.shards:
            array, shard = self.shards[file]
            in_index = place < array.index_bytes
            name = f"{name}, {'index' if in_index else 'chunks'}"
            if not in_index:
                index = self.index(file)
                (chunk,) = np.flatnonzero((index[:, 0] <= place) & (place < index[:, 0] + index[:, 1]))
                samples = [shard * PER_SHARD + int(chunk) // array.chunks_per_sample]
        elif file == MANIFEST:
            # A wrong size or hash of a file looks like a wrong file.
            start = {data.find(f'"{path}"'.encode()): path for path in self.bytes if path != MANIFEST}
            entry = start[max((at for at in start if 0 <= at <= place), default=max(start))]
            untrusted = self.touched_by(entry, self.samples_in(entry))
            named = [({MANIFEST, "manifest version", entry}, [])]
        return Fault("flipped bit", name, {file: bytes(data)}, self.touched_by(file, samples), untrusted, named)

    def replaced(self, kind: str, file: str, data: bytes | None) -> Fault:
        touched = self.touched_by(file, self.samples_in(file))
        return Fault(kind, self.place(file), {file: data}, touched, set(), self.named(file))

    def chunk_left_out(self, file: str, number: int) -> Fault:
        """Remove the last used chunk of a sample from the index."""
        array, _ = self.shards[file]
        index = self.index(file)
        first = number % PER_SHARD * array.chunks_per_sample
        used = np.flatnonzero(index[first : first + array.chunks_per_sample, 0] != EMPTY)
        index[first + used[-1]] = EMPTY
        return self._rewritten("missing chunk", file, index, [number])

    def chunks_swapped(self, file: str, one: int, other: int, *, bytes_too: bool) -> Fault:
        """Swap two samples of a shard: only in the index, or with their bytes as a writer would."""
        array, _ = self.shards[file]
        index = self.index(file).reshape(PER_SHARD, array.chunks_per_sample, 2)
        index[[one % PER_SHARD, other % PER_SHARD]] = index[[other % PER_SHARD, one % PER_SHARD]]
        if not bytes_too:
            return self._rewritten("swapped in the index", file, index, [one, other])
        chunks = [
            [None if at == EMPTY else self.bytes[file][int(at) : int(at + size)] for at, size in sample]
            for sample in index
        ]
        return self._rewritten("swapped chunks", file, index, [one, other], build_shard(array, chunks))

    def _rewritten(
        self, kind: str, file: str, index: np.ndarray, samples: list[int], data: bytes | None = None
    ) -> Fault:
        changed: dict[str, bytes | None] = {file: data or self.with_index(file, index)}
        untrusted = self.touched_by(file, self.samples_in(file))
        return Fault(kind, self.place(file), changed, self.touched_by(file, samples), untrusted, self.named(file))

    def shards_swapped(self, one: str, other: str) -> Fault:
        touched = self.touched_by(one, self.samples_in(one)) | self.touched_by(other, self.samples_in(other))
        changed: dict[str, bytes | None] = {one: self.bytes[other], other: self.bytes[one]}
        return Fault("swapped shards", self.place(one), changed, touched, set(), self.named(one) + self.named(other))


def value_of(store: Store, read: Read) -> np.ndarray:
    what, which = read
    if what == "row":
        return store.rows(which)
    if what == "map":
        return store.dpm(which)
    return store.depth(which if what == "depth" else f"a/{which:03d}")


def read_with_zarr(path: Path) -> dict[str, bytes | dict]:
    """Return the arrays and attributes of a store as plain zarr-python reads them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        group = zarr.open_group(path, mode="r")
        found: dict[str, Any] = {"": dict(group.attrs)}
        for name, member in group.members(max_depth=None):
            found[name] = member[:].tobytes() if isinstance(member, zarr.Array) else dict(member.attrs)
    return found


def flips(subjects: list[Subject], count: int, random: np.random.Generator) -> Iterator[tuple[Subject, Fault]]:
    """Yield `count` flipped bits, in turn in each kind of store and file, in indexes and in chunks of shards."""

    def one(subject: Subject, files: list[str], part: str) -> Fault:
        file = files[random.integers(len(files))]
        low, high = 0, len(subject.bytes[file])
        if part:
            border = subject.shards[file][0].index_bytes
            low, high = (low, border) if part == "index" else (border, high)
        return subject.flip(file, int(random.integers(low, high)), int(random.integers(8)))

    cells = [
        (subject, files, part)
        for subject in subjects
        for place, files in subject.files_by_place().items()
        for part in (("index", "chunks") if "shard" in place else ("",))
    ]
    for subject, files, part in islice(cycle(cells), count):
        yield subject, one(subject, files, part)


def special_faults(subjects: list[Subject], random: np.random.Generator) -> Iterator[tuple[Subject, Fault]]:
    """Yield truncated, missing and replaced files, and missing and swapped chunks and shards, in every kind of file."""
    for subject in subjects:
        for files in subject.files_by_place().values():
            for cut in (0.0, 0.5, 1.0):
                file = files[random.integers(len(files))]
                size = len(subject.bytes[file])
                # The last byte of the manifest is a newline, which does not matter.
                keep = min(int(size * cut), size - (2 if file == MANIFEST else 1))
                yield subject, subject.replaced("truncated", file, subject.bytes[file][:keep])
            yield subject, subject.replaced("missing file", files[random.integers(len(files))], None)
        nodes = subject.files_by_place()["zarr.json"]
        for node, other in zip(nodes, [*nodes[1:], nodes[0]], strict=True):
            if subject.bytes[node] != subject.bytes[other]:
                yield subject, subject.replaced("replaced by another", node, subject.bytes[other])
        for array in subject.store.layout.sharded():
            whole = [array.file(shard) for shard in range(len(subject.store) // PER_SHARD)]
            for shard in random.permutation(len(whole))[:2]:
                one, other = shard * PER_SHARD + random.permutation(PER_SHARD)[:2]
                yield subject, subject.chunk_left_out(whole[shard], int(one))
                for bytes_too in (False, True):
                    yield subject, subject.chunks_swapped(whole[shard], int(one), int(other), bytes_too=bytes_too)
                yield subject, subject.shards_swapped(whole[shard], whole[shard - 1])


class Tally(Counter):
    """Counts of one row of the table."""

    COLUMNS = (
        ("found", "found", "made"),
        ("affected raised", "raised", "affected"),
        ("others intact", "intact", "others"),
    )


def examine(subject: Subject, fault: Fault, *, with_zarr: bool = True) -> Tally:
    """Make a fault in a store, read the store, and undo the fault."""
    tally = Tally(made=1)
    try:
        for file, data in fault.changed.items():
            path = subject.path / file
            path.unlink() if data is None else path.write_bytes(data)
        tally["found"] = is_found(subject.path, fault)
        try:
            store = open_store(subject.path)
        except ValueError:
            tally.update(affected=len(fault.touched), raised=len(fault.touched), refused=1)
        else:
            for read, sound in subject.sound.items():
                tally.update(look_at(store, read, sound, fault))
        if with_zarr:
            tally[f"zarr {of_zarr(subject)}"] += 1
    finally:
        for file in fault.changed:
            (subject.path / file).write_bytes(subject.bytes[file])
    return tally


def look_at(store: Store, read: Read, sound: bytes, fault: Fault) -> dict[str, int]:
    try:
        value = value_of(store, read)
    except DamagedStoreError:
        raised, same = 1, 0
    else:
        raised, same = 0, int(value.tobytes() == sound)
    counts = {"wrong": 1 - raised - same}
    if read in fault.touched:
        return counts | {"affected": 1, "raised": raised}
    return counts if read in fault.untrusted else counts | {"others": 1, "intact": same}


def is_found(path: Path, fault: Fault) -> int:
    """Return whether opening or `verify_store` names each damaged file and its samples."""
    try:
        damage = verify_store(path)
    except ValueError as error:
        return int(any(name in str(error) for names, _ in fault.named for name in names))
    return int(
        all(
            any(one.file in names and (one.samples == ids or one.file not in fault.changed) for one in damage)
            for names, ids in fault.named
        )
    )


def of_zarr(subject: Subject) -> str:
    try:
        found = read_with_zarr(subject.path)
    except Exception:  # noqa: BLE001 - any error means that it noticed
        return "raised"
    return "unchanged" if found == subject.by_zarr else "silently wrong"


def table(tallies: dict[tuple[str, str], Tally]) -> str:
    """Format the counts, one row for each kind of fault and file."""
    head = ["fault", "file", *(name for name, _, _ in Tally.COLUMNS), "wrong", "refused to open"]
    head += ["zarr: raised", "silently wrong", "unchanged"]
    total = sum(tallies.values(), Tally())
    rows = [head]
    for (kind, place), tally in [*tallies.items(), (("all", ALL_OF_IT), total)]:
        shares = [f"{tally[part]} / {tally[whole]}" for _, part, whole in Tally.COLUMNS]
        counts = (tally[name] for name in ("wrong", "refused", "zarr raised", "zarr silently wrong", "zarr unchanged"))
        rows.append([kind, place, *shares, *map(str, counts)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def run(folder: Path, flip_count: int, samples: int, seed: int, *, with_zarr: bool) -> dict[tuple[str, str], Tally]:
    """Try every fault on stores of each kind; returns counts by kind of fault and kind of file."""
    random = np.random.default_rng(seed)
    subjects = [Subject(folder, kind, samples) for kind in KINDS]
    tallies: dict[tuple[str, str], Tally] = defaultdict(Tally)
    for faults in (flips(subjects, flip_count, random), special_faults(subjects, random)):
        for subject, fault in faults:
            tallies[fault.kind, fault.place].update(examine(subject, fault, with_zarr=with_zarr))
            gc.collect()  # errors keep stores and their files open until then: too many if --handles is small
    return tallies


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--flips", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--handles", type=int, help="limit of open files of this process")
    given = parser.parse_args()
    if given.handles:
        resource.setrlimit(resource.RLIMIT_NOFILE, (given.handles, given.handles))
    folder = Path(tempfile.mkdtemp(prefix="flip-"))
    try:
        tallies = run(folder, given.flips, given.samples, given.seed, with_zarr=True)
    finally:
        shutil.rmtree(folder)
    print(table(tallies))  # noqa: T201 - a script for maintainers


if __name__ == "__main__":
    main()
