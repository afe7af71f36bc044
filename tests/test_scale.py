"""What grows with a data set, and what does not: a store of a million samples, simulated by its metadata."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import make_spec

from pipeline.fileio import pretty_json, sha256_bytes
from pipeline.store.codec import encode_chunk
from pipeline.store.layout import MANIFEST, StoreLayout

MILLION = 1_000_000


@pytest.fixture(scope="module")
def million(tmp_path_factory):
    """A sound manifest, metadata and ids of a million samples; the shards themselves are not there."""
    root = tmp_path_factory.mktemp("million") / "million.zarr"
    spec, _ = make_spec(
        "sparse", samples=1, samples_per_shard=128, source={"name": "x", "samples": MILLION, "ids_sha256": "0"}
    )
    layout = StoreLayout(spec, (192, 640), 60)
    manifest = dict.fromkeys(layout.files(), (10**5, "0" * 64))  # no more than rows of 4 bytes can have
    small = {path: pretty_json(node) for path, node in layout.metadata().items()}
    small[layout.edges().file(0)] = encode_chunk(np.array(spec.bin_edges))
    (ids,) = [array for array in layout.rows() if array.path == "sample/id"]
    for number in range(ids.files):
        names = [
            f"2011_09_26/drive_{n // 1000:04d}/image_02/data/{n:010d}".ljust(60, "\0")
            for n in range(number * 65536, (number + 1) * 65536)
        ]
        small[ids.file(number)] = encode_chunk(np.frombuffer("".join(names).encode(), np.uint8).reshape(ids.chunk))
    for path, data in small.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
        manifest[path] = (len(data), sha256_bytes(data))
    (root / MANIFEST).write_bytes(pretty_json({"version": 1, "files": manifest}))
    return root


OPEN = """
import json, resource, sys, time
from pipeline.store import open_store
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
begin = time.perf_counter()
store = open_store(sys.argv[1])
seconds = time.perf_counter() - begin
opened = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
begin = time.perf_counter()
number = store.index_of("2011_09_26/drive_0777/image_02/data/0000777777")
found = time.perf_counter() - begin
indexed = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps([len(store), seconds, opened / 1024, number, found, indexed / 1024]))
"""


@pytest.mark.slow
def test_a_store_of_a_million_samples_opens_at_once_and_in_little_memory(million):
    done = subprocess.run([sys.executable, "-c", OPEN, million], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, seconds, opened_mb, number, _, indexed_mb = json.loads(done.stdout)
    assert (count, number) == (MILLION, 777_777)
    assert opened_mb < 100
    assert indexed_mb < 300
    assert seconds < 20  # a bound against a loop over samples; the figure itself is in docs/benchmarks.md
