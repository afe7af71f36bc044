"""Change a store on its web server while it is read, and count which reads notice it.

    python tests/faults/url_cache.py [--rounds 200] [--seed 0] [--handles 128]

A local server serves a store of each kind, with strong or weak ETags, only Last-Modified, or neither. In each round one
or two readers that share a run, as loader workers do, read the store in random order. At a random read the server
changes: two samples of a shard are swapped, a bit of a chunk flips, a shard grows, the whole store is replaced, the
same bytes get another ETag, or a store that was wrong is repaired. Then the store is opened and read again. Each read
must return the values of the store that was opened, or raise; after a repair, all of the right ones.

`at first contact` counts what range requests cannot notice, as documented: a shard that was replaced by one of the same
length with valid checksums, before any range of it was read and without a change of the manifest; and any such shard on
a server without versions.
"""

from __future__ import annotations

import argparse
import os
import pickle
import resource
import shutil
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from range_server import Server, says_etag, says_modified, says_nothing, says_weak_etag
from tiny_stores import make_store

from pipeline.errors import DamagedStoreError
from pipeline.store import open_store
from pipeline.store.format.shard import EMPTY, build_shard, parse_index
from pipeline.store.remote import transport
from pipeline.store.remote.remote import StoreChangedError
from pipeline.store.tools.verify import verify_store

SAYS = {"strong ETag": says_etag, "weak ETag": says_weak_etag, "Last-Modified": says_modified, "nothing": says_nothing}
CHANGES = ("none", "swap", "rot", "grow", "replace", "other ETag", "mend")
KINDS = ("gaussian", "sparse", "dense")
SAMPLES, PER_SHARD = 12, 4


def swapped(path: Path, file: str) -> bytes:
    """Return a shard with two samples swapped; its checksums and length are valid."""
    arrays = open_store(path, check_shards=False).layout.sharded()
    array = next(array for array in arrays if file.startswith(array.path + "/"))
    data = (path / file).read_bytes()
    index = parse_index(array, data[: array.index_bytes], len(data))
    chunks = [None if at == EMPTY else data[int(at) : int(at) + int(size)] for at, size in index]
    each = array.chunks_per_sample
    return build_shard(array, [chunks[each : 2 * each] + chunks[:each] + chunks[2 * each :]])


class Round:
    """One store on its server, its readers, and the counts of their reads."""

    def __init__(
        self, made: Path, folder: Path, kind: str, says: str, change: str, random: np.random.Generator
    ) -> None:
        self.random, self.change, self.says = random, change, says
        self.tally: Counter[str] = Counter(rounds=1)
        self.other = made / f"{kind}-other.zarr"
        self.path = Path(shutil.copytree(made / f"{kind}.zarr", folder / "web" / "s.zarr"))
        self.local = open_store(made / f"{kind}.zarr")
        self.server = Server(folder / "web")
        self.server.says = SAYS[says]
        self.sound = {name: [self.of(self.local, name, n) for n in range(SAMPLES)] for name in ("depth", "dpm")}
        shards = [one.file(n) for one in self.local.layout.sharded() for n in range(self.local.spec.shards)]
        self.file = shards[random.integers(len(shards))]

    @staticmethod
    def of(store, name: str, number: int) -> bytes:
        return getattr(store, name)(number).tobytes()

    def run(self) -> Counter[str]:
        url, random = self.server.url("s.zarr"), self.random
        if self.change == "mend":
            right = (self.path / self.file).read_bytes()
            (self.path / self.file).write_bytes(swapped(self.path, self.file))
            self.read(open_store(url), list(random.permutation(SAMPLES)), wrong_is="before the mend")
            (self.path / self.file).write_bytes(right)
        store = open_store(url)
        readers = [store, pickle.loads(pickle.dumps(store))][: 1 + random.integers(2)]
        order = [int(number) for number in random.permutation(SAMPLES)]
        at = int(random.integers(1, SAMPLES))
        self.read(readers[0], order[:at])
        contacted = self.file in store._files._versions or self.file in readers[0]._files._versions
        self.apply()
        quiet = self.change in {"swap", "rot"} and not contacted
        self.read(readers[-1], order[at:], wrong_is="at first contact" if quiet or self.says == "nothing" else "wrong")
        self.again(url, quiet)
        return self.tally

    def apply(self) -> None:
        """Change the server."""
        file, data = self.path / self.file, (self.path / self.file).read_bytes()
        if self.change == "swap":
            file.write_bytes(swapped(self.path, self.file))
        elif self.change == "rot":
            at = int(self.random.integers(len(data)))
            file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        elif self.change == "grow":
            file.write_bytes(data + b"x")
        elif self.change == "replace":
            shutil.rmtree(self.path)
            shutil.copytree(self.other, self.path)
            file.write_bytes(swapped(self.path, self.file))
        elif self.change == "other ETag":
            said, self.server.says = self.server.says, lambda *what: said(*what) | {"ETag": '"another"'}

    def read(self, store, numbers: list[int], wrong_is: str = "wrong") -> None:
        for number in numbers:
            for name in ("depth", "dpm"):
                self.tally["reads"] += 1
                try:
                    right = self.of(store, name, int(number)) == self.sound[name][number]
                except StoreChangedError:
                    self.tally["changed"] += 1
                except DamagedStoreError:
                    self.tally["damaged"] += 1
                else:
                    self.tally["right" if right else wrong_is] += 1

    def again(self, url: str, quiet: bool) -> None:
        """Open and read the store again, and verify it after a repair."""
        if self.change in {"none", "mend", "other ETag"}:
            self.read(open_store(url), list(range(SAMPLES)))
        if self.change in {"swap", "rot"}:  # repair it: no cached range of the wrong shard may be used
            (self.path / self.file).write_bytes((Path(self.local.name) / self.file).read_bytes())
            self.read(open_store(url), list(range(SAMPLES)))
            verify_store(url)
            self.tally["verified"] += not verify_store(url)
            self.read(open_store(url, check_shards=True), list(range(SAMPLES)))
        self.tally["quiet"] += quiet
        self.server.shutdown()
        self.server.server_close()


def table(tallies: dict[tuple[str, str], Counter[str]]) -> str:
    """Format the counts, one row for each kind of server and each change."""
    heads = ["rounds", "reads", "right", "changed", "damaged", "before the mend", "at first contact", "wrong"]
    rows = [["server says", "change", *heads]]
    total: Counter[str] = sum(tallies.values(), Counter())
    for (says, change), tally in [*tallies.items(), (("all", ""), total)]:
        rows.append([says, change, *(str(tally[head]) for head in heads)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def run(rounds: int, seed: int) -> dict[tuple[str, str], Counter[str]]:
    """Run all rounds; returns counts by the version headers of the server and by change."""
    random = np.random.default_rng(seed)
    tallies: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    transport.PAUSE_S = 0.001
    os.environ["NO_PROXY"] = "127.0.0.1"
    with tempfile.TemporaryDirectory(prefix="url-") as root:
        made = Path(root)
        for kind in KINDS:
            for name, view in (("", "full"), ("-other", "kb")):
                size = {"samples": SAMPLES, "samples_per_shard": PER_SHARD, "view": view}
                make_store(made / f"{kind}{name}.zarr", kind, **size)
        for number in range(rounds):
            says, change = list(SAYS)[number % len(SAYS)], CHANGES[number // len(SAYS) % len(CHANGES)]
            kind = KINDS[int(random.integers(len(KINDS)))]
            with tempfile.TemporaryDirectory(dir=root) as folder, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                os.environ["TIEKD_STORE_CACHE"] = f"{folder}/cache"
                tallies[says, change].update(Round(made, Path(folder), kind, says, change, random).run())
    return tallies


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--handles", type=int, help="limit of open files of this process, with the server's")
    given = parser.parse_args()
    if given.handles:
        resource.setrlimit(resource.RLIMIT_NOFILE, (given.handles, given.handles))
    tallies = run(given.rounds, given.seed)
    print(table(tallies))  # noqa: T201 - a script for maintainers
    sys.exit(bool(sum(tallies.values(), Counter())["wrong"]))


if __name__ == "__main__":
    main()
