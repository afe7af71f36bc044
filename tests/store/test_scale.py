"""What grows with a data set, and what does not: a store of a million samples, simulated by its metadata."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_stores import make_spec

from pipeline.common.fileio import pretty_json, sha256_bytes
from pipeline.errors import DamagedStoreError
from pipeline.store.format.codec import encode_chunk
from pipeline.store.format.layout import MANIFEST, MAX_FILES, StoreLayout
from pipeline.store.format.shard_size import ARRAYS, DEFAULT_MAX_FILES, default_samples_per_shard
from pipeline.store.format.spec import digest_of_ids
from pipeline.store.read import ids as store_ids
from pipeline.store.read.ids import IdTable, StoredIds
from pipeline.store.write.packed_rows import PackedRows

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


# --- grouping ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gaussian", "sparse"])
@pytest.mark.parametrize("samples", [10**6, 10**7, 12 * 10**6])
def test_a_store_of_millions_has_as_many_files_as_one_may_have(kind, samples):
    size = default_samples_per_shard(kind, samples, 257)
    assert size % 128 == 0
    assert ARRAYS[kind] * -(-samples // size) <= DEFAULT_MAX_FILES
    spec, _ = make_spec(kind, samples=1, samples_per_shard=size, source={"name": "x", "samples": samples})
    layout = StoreLayout(spec, (192, 640), 30)
    assert len(layout.sharded()) == ARRAYS[kind]
    assert sum(array.files for array in layout.arrays()) <= MAX_FILES


def test_shards_grow_only_where_there_would_be_too_many_and_no_further_than_an_index_may():
    assert default_samples_per_shard("sparse", 128 * DEFAULT_MAX_FILES // 4, 64) == 128
    assert default_samples_per_shard("sparse", 128 * DEFAULT_MAX_FILES // 4 + 1, 64) == 256
    assert default_samples_per_shard("gaussian", 128 * DEFAULT_MAX_FILES, 64) == 128
    assert default_samples_per_shard("gaussian", 128 * DEFAULT_MAX_FILES // 5, 64, more_arrays=4) == 128
    assert default_samples_per_shard("gaussian", 128 * DEFAULT_MAX_FILES // 5 + 1, 64, more_arrays=4) == 256
    assert default_samples_per_shard("dense", 10**9, 64) == 8
    assert default_samples_per_shard("sparse", 10**9, 4096) == 256  # an index of 2 MiB; the next would be 4 MiB and 4 B


# --- ids -----------------------------------------------------------------------------------------------------------


def stored(names, width=None, rows_per_chunk=3):
    """Ids as a store has them, in chunks of three rows."""
    width = width or max(len(name.encode()) for name in names)
    rows = np.frombuffer(b"".join(name.encode().ljust(width, b"\0") for name in names), np.uint8).reshape(-1, width)
    return StoredIds(
        len(names), rows_per_chunk, lambda number: rows[number * rows_per_chunk :][:rows_per_chunk], "s.zarr"
    )


NAMES = st.lists(
    st.text(st.characters(blacklist_categories=["C", "Z"]), min_size=1, max_size=6),
    min_size=1,
    max_size=20,
    unique=True,
).filter(lambda names: all(name.isprintable() for name in names))


@given(NAMES, st.lists(st.text(max_size=6)))
def test_a_table_of_ids_finds_what_a_dictionary_finds(names, others):
    numbers = {name: number for number, name in enumerate(names)}
    asked = [*reversed(names), *others]
    assert IdTable(stored(names)).find(asked).tolist() == [numbers.get(name, -1) for name in asked]


@given(NAMES)
def test_ids_are_read_as_the_list_that_was_stored(names):
    ids = stored(names)
    assert ids == names
    assert list(ids) == names
    assert ids[-1] == names[-1]
    assert ids[1:] == names[1:]
    assert ids != [*names, "more"]
    with pytest.raises(IndexError):
        ids[len(names)]


@given(st.lists(st.sampled_from("abcd"), min_size=4, max_size=4), st.integers(0, 3))
def test_ids_whose_keys_begin_alike_are_told_apart(order, shared):
    """Keys of sixteen bytes of which only some differ, as no sha256 has them in a lifetime."""
    names = sorted(set(order))

    def keys(asked):
        pairs = [(shared, ord(name[:1] or b"?")) for name in asked]
        return np.array(pairs, np.uint64).reshape(-1, 2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_ids, "keys_of", keys)
        found = IdTable(stored(names)).find(["c", *names, "z"])
    assert found.tolist() == [names.index("c") if "c" in names else -1, *range(len(names)), -1]


def test_a_table_of_ids_takes_twenty_bytes_a_sample_however_long_the_ids_are():
    assert IdTable(stored([f"{number:0500d}" for number in range(100)])).nbytes == 2000


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([b"a", b"bb", b"", b"c"], r"s.zarr: id '' of sample 2 is empty"),
        ([b"a", b"bb", b"c", b"d\x07"], r"id 'd\\x07' of sample 3 .* control"),
        ([b"a", b"b\0b", b"ccc"], r"id 'b\\x00b' of sample 1"),
        ([b"a", b"\xff"], "not UTF-8"),
        ([b"ab\xc3", b"\xa9c"], "not UTF-8"),  # one character over two rows
        ([b"a", b"bb", b"ccc", b"dd", b"bb"], "duplicate id 'bb'"),
    ],
)
def test_ids_that_no_store_may_have_are_refused(rows, message):
    width = max(map(len, rows))
    column = np.frombuffer(b"".join(row.ljust(width, b"\0") for row in rows), np.uint8).reshape(-1, width)
    ids = StoredIds(len(rows), 3, lambda number: column[3 * number :][:3], "s.zarr")
    with pytest.raises(DamagedStoreError, match=message):
        IdTable(ids)


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=5), max_size=10))
def test_the_hash_of_ids_is_that_of_their_lines_however_many_are_held_at_a_time(names):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.store.format.spec.IDS_AT_ONCE", 3)
        assert digest_of_ids(iter(names)) == sha256_bytes("\n".join(names).encode())


# --- rows ----------------------------------------------------------------------------------------------------------

ROWS = {
    "image_sha256": ["0f" * 32, "a0" * 32],
    "image_size_px": [[375, 1242], [1, 2]],
    "max_rel_error": [0.25, 1 / 3],
    "align_scale": [0.1, None],
    "align_verdict": [0, 4],
    "of_another_program": ["x", [1]],
}


def test_packed_rows_are_the_values_that_the_store_will_have():
    rows = PackedRows(ROWS)
    again = PackedRows.from_json(json.loads(json.dumps(rows.as_json())))
    assert again == rows == PackedRows(rows) == PackedRows.from_json(ROWS)
    assert dict(rows) == ROWS | {"max_rel_error": [0.25, float(np.float32(1 / 3))]}
    assert rows.array("image_sha256", np.dtype(np.uint8), (32,)).tobytes().hex() == "".join(ROWS["image_sha256"])
    assert rows.array("image_size_px", np.dtype(np.int32), (2,)).tolist() == ROWS["image_size_px"]
    assert np.array_equal(rows.array("max_rel_error", np.dtype(np.float32), ()), np.float32([0.25, 1 / 3]))
    assert np.array_equal(rows.array("align_scale", np.dtype(np.float64), ()), [0.1, np.nan], equal_nan=True)


def test_rows_that_are_not_of_their_type_stay_as_they_are():
    wrong = {"image_sha256": ["xyz"], "align_verdict": [-1], "dpm_planes": ["many"], "image_size_px": [[1], [1, 2]]}
    assert dict(PackedRows(wrong)) == wrong
