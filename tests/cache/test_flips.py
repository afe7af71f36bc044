"""Whatever byte of a store is not what was written, verify names it, reading it raises, and the rest reads the same."""

import errno

import numpy as np
import pytest
from faults.flip import KINDS, Subject, examine, flips, special_faults
from tiny_stores import make_store

from pipeline.errors import DamagedStoreError
from pipeline.store import open_store
from pipeline.store.read.files import LocalFiles
from pipeline.store.tools.verify import verify_store

# `python tests/faults/flip.py` makes 2000, beside plain Zarr; that takes minutes.
FLIPS = 250


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flips")
    return [Subject(folder, kind, samples=10) for kind in KINDS]


def check(subject, fault):
    """One fault is found, told by reads, and costs no other sample."""
    told = f"{fault.kind} in {list(fault.changed)} of the {subject.kind} store"
    tally = examine(subject, fault, with_zarr=False)
    assert tally["wrong"] == 0, told
    assert tally["found"] == 1, told
    assert tally["raised"] == tally["affected"], told
    assert tally["intact"] == tally["others"], told


def test_a_flipped_bit_anywhere_is_named_raises_where_it_matters_and_costs_nothing_else(subjects):
    for subject, fault in flips(subjects, FLIPS, np.random.default_rng(1)):
        check(subject, fault)


def test_files_and_chunks_that_are_cut_gone_or_swapped_are_named_and_never_read_as_something_else(subjects):
    seen = set()
    for subject, fault in special_faults(subjects, np.random.default_rng(2)):
        check(subject, fault)
        seen.add(fault.kind)
    assert seen == {
        *("truncated", "missing file", "replaced by another"),
        *("missing chunk", "swapped in the index", "swapped chunks", "swapped shards"),
    }


def test_after_every_fault_the_stores_are_as_they_were(subjects):
    for subject in subjects:
        assert verify_store(subject.path) == []


def test_plain_zarr_reads_a_missing_chunk_as_zeros_which_is_why_our_reader_does_not(subjects):
    fault = subjects[0].chunk_left_out("depth/c/1/0/0", 5)
    assert examine(subjects[0], fault)["zarr silently wrong"] == 1


def put(subject, fault):
    for file, data in fault.changed.items():
        (subject.path / file).write_bytes(data)


def test_swapped_chunks_are_told_by_the_first_read_of_their_shard_unless_it_is_told_not_to_look(tmp_path):
    subject = Subject(tmp_path, "gaussian", samples=8)
    put(subject, subject.chunks_swapped("depth/c/1/0/0", 4, 6, bytes_too=True))
    store = open_store(subject.path)
    for number in (4, 5, 4):
        with pytest.raises(DamagedStoreError, match=r"every checksum of the shard matches, but its sha256 differs"):
            store.depth(number)
    assert store.depth(3).tobytes() == subject.sound["depth", 3]
    blind = open_store(subject.path, check_shards=False)
    assert blind.depth(4).tobytes() == subject.sound["depth", 6]


def test_a_shard_is_hashed_once_a_process_and_each_alone(tmp_path):
    store = open_store(make_store(tmp_path / "s.zarr"))
    read, ranges = store._files.read_range, []

    def counted(path, offset, length):
        ranges.append((path, offset))
        return read(path, offset, length)

    store._files.read_range = counted
    store.depth(0)
    first = len(ranges)
    store.depth(1)
    store.depth(0)
    assert first == 3  # index, whole shard, chunk
    assert len(ranges) == first + 2
    assert {path for path, _ in ranges} == {"depth/c/0/0/0"}


def test_damaged_ids_do_not_hide_which_shard_is_damaged_too(tmp_path):
    subject = Subject(tmp_path, "gaussian", samples=6)
    put(subject, subject.flip("sample/id/c/0/0", 20, 3))
    put(subject, subject.flip("depth/c/1/0/0", 200, 3))
    damage = {one.file: one.samples for one in verify_store(subject.path)}
    assert damage == {"sample/id/c/0/0": [], "depth/c/1/0/0": ["number 4", "number 5"]}
    with pytest.raises(DamagedStoreError, match=r"depth/c/1/0/0, sample [45]: checksum"):
        [open_store(subject.path).depth(number) for number in (4, 5)]


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    path = make_store(tmp_path / "s.zarr")
    (path / "sample/clipped_share/c/0").unlink()
    (path / "sample/clipped_share/c/0").mkdir()
    assert [damage.file for damage in verify_store(path)] == ["sample/clipped_share/c/0"]


def test_a_sector_that_cannot_be_read_is_damage_of_its_file_alone(tmp_path, monkeypatch):
    path = make_store(tmp_path / "s.zarr")
    read_range = LocalFiles.read_range

    def failing(files, name, offset, length):
        if name == "depth/c/1/0/0":
            raise OSError(errno.EIO, "Input/output error")
        return read_range(files, name, offset, length)

    monkeypatch.setattr(LocalFiles, "read_range", failing)
    (damage,) = verify_store(path)
    assert str(damage) == "depth/c/1/0/0: cannot be read: Input/output error; samples a/003, a/004, a/005"


def test_a_flipped_share_of_clipped_pixels_is_found_and_leaves_depth_alone(tmp_path):
    subject = Subject(tmp_path, "gaussian", samples=6)
    put(subject, subject.flip("sample/clipped_share/c/0", 9, 0))
    assert [one.file for one in verify_store(subject.path)] == ["sample/clipped_share/c/0"]
    store = open_store(subject.path)
    assert all(store.depth(number).tobytes() == subject.sound["depth", number] for number in range(6))
    with pytest.raises(DamagedStoreError, match="clipped_share"):
        store.rows("clipped_share")


def test_ids_that_are_not_those_of_the_header_are_found_though_every_hash_fits(tmp_path):
    source = {"name": "folder", "samples": 7, "ids_sha256": "0" * 64}
    (damage,) = verify_store(make_store(tmp_path / "s.zarr", source=source))
    assert damage.file == "sample/id"
