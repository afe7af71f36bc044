"""Only wrong bytes are damage: what the system says of a file, or puts beside it, is told for what it is."""

import errno
import gc
import json
import os
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_stores import make_store

from pipeline.cli.main import main
from pipeline.common.fileio import sha256_bytes
from pipeline.errors import DamagedStoreError
from pipeline.store import open_store
from pipeline.store.format import maps
from pipeline.store.format.codec import decode_chunk, encode_chunk
from pipeline.store.format.shard import EMPTY, build_shard, parse_index
from pipeline.store.format.sparse import decode_planes, decode_sparse, encode_sparse
from pipeline.store.read import files, planes
from pipeline.store.read.files import LocalFiles
from pipeline.store.tools.verify import verify_store

HERE = Path(__file__).parents[1]
SHARD = "depth/c/1/0/0"


def limited(code, handles, *arguments):
    """Run code in a process that may open so many files."""
    before = f"import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({handles}, {handles}))\n"
    environment = os.environ | {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", before + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


# --- handles ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("handles", [24, 64])
def test_a_store_of_many_files_is_read_and_verified_with_few_handles(tmp_path, handles):
    path = make_store(tmp_path / "s.zarr", "sparse", samples=90, samples_per_shard=1)
    code = """
from pipeline.store import open_store
from pipeline.store.tools.verify import verify_store
one, other = open_store(sys.argv[1]), open_store(sys.argv[1])
for number in range(len(one)):
    one.dpm(number), other.depth(number)
assert verify_store(sys.argv[1]) == []
"""
    done = limited(code, handles, path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("workers", [0, 2, 6])
def test_training_works_with_64_handles(tmp_path, teacher_store, workers):
    code = "from pipeline.cli.main import main; main(sys.argv[1:])"
    flags = ["--source", f"scenes:{tmp_path / 'scenes'}", "--split", "train", "--student", "lean", "--epochs", "2"]
    flags += ["--batch-size", "1", "--workers", workers, "--store", teacher_store, "--out", tmp_path / "run"]
    done = limited(code, 64, "train-student", *flags)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("workers", [0, 2])
def test_training_without_any_handle_left_says_so_and_names_no_damage(tmp_path, teacher_store, workers):
    code = """
import os
from pipeline.store.read import files
real = files._open_below
def full(root, path):
    if "depth/c" in path:
        raise OSError(24, os.strerror(24))
    return real(root, path)
files._open_below = full
from pipeline.cli.main import main; main(sys.argv[1:])
"""
    flags = ["--source", f"scenes:{tmp_path / 'scenes'}", "--split", "train", "--student", "lean", "--epochs", "1"]
    flags += ["--workers", workers, "--store", teacher_store, "--out", tmp_path / "run"]
    done = limited(code, 4096, "train-student", *flags)
    assert done.returncode == 1
    (told,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert "Too many open files" in told
    assert "ulimit -n 4096" in told
    assert "damage" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_is_let_go_is_closed_after_the_last_thread_has_read_it(tmp_path, monkeypatch):
    path = make_store(tmp_path / "s.zarr", samples=60, samples_per_shard=1)
    monkeypatch.setattr(files, "MAX_HANDLES", 1)
    store, whole = open_store(path, check_shards=False), open_store(path)
    expected = [whole.depth(number) for number in range(60)]
    with ThreadPoolExecutor(8) as pool:
        for number, there in enumerate(pool.map(store.depth, [*range(60)] * 5)):
            assert np.array_equal(there, expected[number % 60], equal_nan=True)
    assert len(store._files._handles) <= 8  # each thread may have one in hand


def test_other_handles_of_a_store_are_let_go_before_it_is_refused(tmp_path, monkeypatch):
    path = make_store(tmp_path / "s.zarr")
    local, real = LocalFiles(path), files._open_below
    local.size("zarr.json"), local.size("depth/zarr.json")
    monkeypatch.setattr(files, "_open_below", lambda *a: real(*a) if not local._handles else _raise(errno.EMFILE))
    assert local.size(SHARD) > 0
    assert list(local._handles) == [SHARD]


def _raise(number):
    raise OSError(number, os.strerror(number))


@pytest.mark.parametrize("kind", ["gaussian", "sparse"])
def test_a_store_that_is_out_of_use_leaves_no_file_open(tmp_path, kind):
    path = make_store(tmp_path / "s.zarr", kind)
    gc.collect()
    gc.disable()
    try:
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(20):
            store = open_store(path)
            store.dpm("a/003"), store.rows("image_sha256"), store.ids[2]
        del store
        assert len(list(Path("/proc/self/fd").iterdir())) <= before
    finally:
        gc.enable()


# --- errors of the system --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.EPERM, errno.ETIMEDOUT])
@pytest.mark.parametrize("call", ["_open_below", "pread"])
def test_what_the_system_refuses_is_told_with_file_and_reason_and_is_no_damage(tmp_path, monkeypatch, number, call):
    path = make_store(tmp_path / "s.zarr")
    store = open_store(path)
    monkeypatch.setattr(files if call == "_open_below" else os, call, lambda *_: _raise(number))
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        store.depth(3)
    assert not isinstance(caught.value, ValueError)
    assert (caught.value.errno, caught.value.filename) == (number, str(path / SHARD))


def test_verify_tells_files_that_cannot_be_read_from_damaged_ones(tmp_path, monkeypatch):
    path = make_store(tmp_path / "s.zarr")
    real = files._open_below
    monkeypatch.setattr(files, "_open_below", lambda r, p: _raise(errno.EACCES) if p == SHARD else real(r, p))
    done = CliRunner().invoke(main, ["store", "verify", str(path)])
    assert done.exit_code == 1
    assert f"{SHARD}: cannot be read: Permission denied; samples a/003, a/004, a/005" in done.output
    assert "1 files could not be read and were not checked: fix permissions" in done.output
    assert "damaged" not in done.output
    (path / "depth/c/0/0/0").write_bytes(b"")
    done = CliRunner().invoke(main, ["store", "verify", str(path)])
    assert "1 files are damaged: fetch them again, or make the store again; 1 files could not be read" in done.output


def test_verify_without_handles_stops_at_once(tmp_path, monkeypatch):
    path = make_store(tmp_path / "s.zarr")
    real = files._open_below
    monkeypatch.setattr(files, "_open_below", lambda r, p: _raise(errno.EMFILE) if p == SHARD else real(r, p))
    monkeypatch.setattr(files, "MAX_HANDLES", 1)
    done = CliRunner().invoke(main, ["store", "verify", str(path)])
    assert done.exit_code == 1
    assert "Too many open files; this process has too many open files: raise the limit with `ulimit -n" in done.output


def test_a_file_that_is_missing_is_still_damage(tmp_path):
    path = make_store(tmp_path / "s.zarr")
    store = open_store(path)
    (path / SHARD).unlink()
    with pytest.raises(DamagedStoreError, match="No such file"):
        store.depth(3)


# --- files of the system ---------------------------------------------------------------------------------------------

OF_THE_SYSTEM = [
    ".DS_Store",
    "depth/c/.DS_Store",
    "Thumbs.db",
    "._zarr.json",
    "sample/.nfs00000000c2a41b",
    "@eaDir/a/b",
]


@pytest.mark.parametrize("name", OF_THE_SYSTEM)
def test_verify_notes_files_that_the_system_puts_there_and_calls_the_store_sound(tmp_path, name):
    path = make_store(tmp_path / "s.zarr")
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    (path / name).write_bytes(b"x")
    done = CliRunner().invoke(main, ["store", "verify", str(path)])
    assert done.exit_code == 0, done.output
    assert f"1 files of the operating system in the store are ignored, such as {name}" in done.output


@pytest.mark.parametrize("name", ["notes.txt", ".DS_Store.exe", "depth/c/3/0/0", ".nfs", "@eaDirs/a", "x/Thumbs.dbx"])
def test_other_unknown_files_are_refused_as_before(tmp_path, name):
    path = make_store(tmp_path / "s.zarr")
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    (path / name).write_bytes(b"x")
    (damage,) = verify_store(path)
    assert (damage.file, damage.what) == (name, "does not belong to the store")


@pytest.mark.parametrize("name", [".DS_Store", "@eaDir"])
def test_a_link_with_the_name_of_a_file_of_the_system_is_refused(tmp_path, name):
    path = make_store(tmp_path / "s.zarr")
    (path / name).symlink_to("/etc/passwd")
    assert [damage.file for damage in verify_store(path)] == [name]


# --- what two readers may see differently ----------------------------------------------------------------------------


def rewritten(path, file, change):
    """Change the planes of the first sample of a sparse array's first shard, and let checksums and manifest fit."""
    array = next(one for one in open_store(path).layout.sharded() if file.startswith(one.path + "/"))
    data = (path / file).read_bytes()
    index = parse_index(array, data[: array.index_bytes], len(data))
    chunks = [None if at == EMPTY else data[int(at) : int(at) + int(size)] for at, size in index]
    used = max(number for number in range(array.chunks_per_sample) if chunks[number] is not None)
    planes = decode_chunk(chunks[used], array.chunk, array.dtype)
    change(planes[0])
    chunks[used] = encode_chunk(planes)
    shard = build_shard(array, [chunks])
    (path / file).write_bytes(shard)
    manifest = json.loads((path / "MANIFEST.json").read_text())
    manifest["files"][file] = [len(shard), sha256_bytes(shard)]
    (path / "MANIFEST.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["gap", "weight"])
def test_verify_refuses_planes_beyond_those_that_a_sample_uses(tmp_path, name):
    path = make_store(tmp_path / "s.zarr", "sparse")
    sound = open_store(path).dpm(0)
    used = int(open_store(path).rows("dpm_planes")[0])
    assert used % 8
    rewritten(path, f"dpm/{name}/c/0/0/0/0", lambda planes: planes[used % 8 :].fill(3))
    assert np.array_equal(open_store(path).dpm(0), sound, equal_nan=True)
    (damage,) = verify_store(path)
    assert f"planes beyond the {used} that the sample uses are not 0" in damage.what
    assert damage.samples == ["a/000"]


def test_verify_refuses_weights_of_no_bin_and_bins_after_a_gap(tmp_path):
    path = make_store(tmp_path / "s.zarr", "sparse")
    gaps = open_store(path).sparse_dpm(0).gap
    row, column = next(zip(*np.nonzero(gaps[-1] == 0), strict=True))
    last = (len(gaps) - 1) % 8
    rewritten(path, "dpm/weight/c/0/0/0/0", lambda planes: planes.__setitem__((last, row, column), 9))
    assert [damage.what.split(": ")[1].split(";")[0] for damage in verify_store(path)] == [
        "weights without a bin are not 0"
    ]


@pytest.mark.parametrize(
    ("node", "key", "value"),
    [
        ("depth/zarr.json", "shape", [7.0, 6, 10]),
        ("sample/clipped_share/zarr.json", "shape", [7.0]),
        ("sample/image_size_px/zarr.json", "shape", [7, 2.0]),
        ("sample/zarr.json", "zarr_format", 3.0),
        ("dpm/zarr.json", "zarr_format", 3.0),
    ],
)
def test_a_whole_number_that_is_written_as_another_type_is_refused(tmp_path, node, key, value):
    path = make_store(tmp_path / "s.zarr", "sparse")
    changed = json.loads((path / node).read_text()) | {key: value}
    data = json.dumps(changed).encode()
    (path / node).write_bytes(data)
    manifest = json.loads((path / "MANIFEST.json").read_text())
    manifest["files"][node] = [len(data), sha256_bytes(data)]
    (path / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"positive integers|not the metadata that format version 1 prescribes"):
        open_store(path)


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sparse", "gaussian"])
def test_maps_that_are_made_a_part_at_a_time_are_those_made_at_once(tmp_path, monkeypatch, kind):
    store = open_store(make_store(tmp_path / "s.zarr", kind, samples=9))
    at_once = [store.dpm(number) for number in range(9)]
    monkeypatch.setattr(planes, "MAX_PLANES_BYTES", 0)
    monkeypatch.setattr(maps, "AT_ONCE_BYTES", 0)
    monkeypatch.setattr(maps, "PART_BYTES", 1000)
    for number in range(9):
        if kind == "sparse":
            assert store.dpm(number).tobytes() == at_once[number].tobytes()
        np.testing.assert_allclose(store.dpm(number), at_once[number], rtol=1e-5, atol=1e-7)


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 30), st.integers(0, 2**32))
def test_planes_that_come_a_few_at_a_time_make_the_same_map(bins, height, width, seed):
    random = np.random.default_rng(seed)
    given_map = random.dirichlet(np.ones(bins) / 3, (height, width)).transpose(2, 0, 1).astype(np.float32)
    given_map[:, random.random((height, width)) < 0.1] = np.nan
    for bits, budget in ((8, 0.01), (16, 1e-4)):
        stored, _ = encode_sparse(given_map, budget, bits)
        pairs = [(stored.gap[at : at + 3], stored.weight[at : at + 3]) for at in range(0, len(stored.gap), 3)]
        there = decode_planes(pairs, stored.tail, bins, bits)
        assert there.tobytes() == decode_sparse(stored, bins, bits).tobytes()


@pytest.mark.parametrize(("kind", "planes_used"), [("sparse", 128), ("gaussian", 0)])
def test_the_largest_maps_take_little_more_memory_than_themselves(monkeypatch, kind, planes_used):
    monkeypatch.setattr(planes, "MAX_PLANES_BYTES", 2**20)
    monkeypatch.setattr(maps, "AT_ONCE_BYTES", 2**20)
    monkeypatch.setattr(maps, "PART_BYTES", 2**20)
    bins, size = 128, (160, 200)
    depth_m = np.full(size, 5, np.float32)
    if kind == "gaussian":
        tracemalloc.start()
        try:
            assert maps.gaussian(depth_m, np.linspace(0, 10, bins + 1), 0.5).shape == (bins, *size)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    else:
        chunk = np.ones((8, *size), np.uint8)
        pairs = ((chunk, chunk) for _ in range(planes_used // 8))
        tracemalloc.start()
        try:
            assert decode_planes(pairs, chunk[0], bins, 8).shape == (bins, *size)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 1.5 * 4 * bins * size[0] * size[1]
