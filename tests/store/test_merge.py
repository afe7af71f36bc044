"""Stores that were made apart become one, and what is no part of it is refused."""

from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_stores import folder_bytes, make_spec, make_store, write_shards

from pipeline.cli.store_tools import merge
from pipeline.store import open_store
from pipeline.store.tools import merge as merging
from pipeline.store.tools.merge import merge_stores
from pipeline.store.tools.subset import subset_store
from pipeline.store.tools.verify import verify_store
from pipeline.store.write.writer import StoreWriter


@pytest.fixture(params=["gaussian", "sparse", "dense"])
def whole(request, tmp_path):
    return make_store(tmp_path / "whole.zarr", request.param)


def parts_of(whole, *ends):
    """Stores of consecutive samples of a store of 7."""
    begins, parts = [0, *ends], []
    for begin, end in zip(begins, [*ends, 7], strict=True):
        path = whole.with_name(f"{begin}-{end}.zarr")
        subset_store(open_store(whole), path, range(begin, end))
        parts.append(path)
    return parts


@pytest.mark.parametrize("ends", [(3,), (4,), (1, 2, 5)])
def test_consecutive_parts_give_the_bytes_of_the_whole(tmp_path, whole, ends):
    merge_stores([open_store(part) for part in parts_of(whole, *ends)], tmp_path / "m.zarr")
    assert folder_bytes(tmp_path / "m.zarr") == folder_bytes(whole)
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_samples_stand_in_the_order_of_the_stores(tmp_path, whole):
    first, second = parts_of(whole, 4)
    merge_stores([open_store(second), open_store(first)], tmp_path / "m.zarr")
    merged, source = open_store(tmp_path / "m.zarr"), open_store(whole)
    assert list(merged.ids) == [f"a/{number:03d}" for number in (4, 5, 6, 0, 1, 2, 3)]
    for name in source.ids:
        assert np.array_equal(merged.depth_m(name), source.depth_m(name), equal_nan=True)
        assert np.array_equal(merged.dpm(name), source.dpm(name), equal_nan=True)
    assert verify_store(tmp_path / "m.zarr") == []


def test_an_interrupted_merge_goes_on(tmp_path, monkeypatch):
    whole = make_store(tmp_path / "whole.zarr")
    stores = [open_store(part) for part in parts_of(whole, 2)]
    real, asked = merging.encoded_sample, []

    def counted(store, number, rows):
        asked.append(number)
        if len(asked) == 5:
            raise KeyboardInterrupt
        return real(store, number, rows)

    monkeypatch.setattr(merging, "encoded_sample", counted)
    with pytest.raises(KeyboardInterrupt):
        merge_stores(stores, tmp_path / "m.zarr")
    assert not (tmp_path / "m.zarr").exists()
    merge_stores(stores, tmp_path / "m.zarr")
    assert len(asked) == 5 + 4  # the first shard, of three samples, is not copied again
    assert folder_bytes(tmp_path / "m.zarr") == folder_bytes(whole)


def other_store(path, **changes):
    """A store of three samples that no other has."""
    ids = ["b/0", "b/1", "b/2"]
    spec, _ = make_spec(samples=3, **changes)
    spec = replace(spec, source={**spec.source, "ids_sha256": merging.digest_of_ids(ids)})
    with StoreWriter(path, spec, ids) as writer:
        write_shards(writer, writer.todo)
        writer.finish()
    return open_store(path)


TEACHER = {"name": "other", "kind": "python", "precision": "float32", "weights_sha256": None}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"teacher": TEACHER}, r"teacher.name is tiny and other"),
        ({"view": "kb"}, r"view.name is full and kb"),
        ({"max_rel_error": 1e-3}, r"codec.max_rel_error is 0.0005 and 0.001"),
        ({"sigma_m": 1.0}, r"dpm.sigma_m is 2.0 and 1.0"),
        ({"bin_edges": (0.5, 1.0, 40.0)}, r"bins is 12 from 0.5 to 40 and 2 from 0.5 to 40"),
    ],
)
def test_stores_that_are_no_parts_of_one_are_refused_with_the_field_and_both_values(tmp_path, changes, match):
    stores = [open_store(make_store(tmp_path / "a.zarr")), other_store(tmp_path / "b.zarr", **changes)]
    with pytest.raises(ValueError, match=match):
        merge_stores(stores, tmp_path / "m.zarr")
    assert not (tmp_path / "m.zarr").exists()


def test_a_sample_that_two_stores_hold_is_named(tmp_path):
    whole = make_store(tmp_path / "whole.zarr")
    _, second = parts_of(whole, 5)
    with pytest.raises(ValueError, match=r"whole.zarr and .*5-7.zarr both have sample 'a/005' \(2 of 2 of the second"):
        merge_stores([open_store(whole), open_store(second)], tmp_path / "m.zarr")


def test_one_store_alone_is_refused(tmp_path):
    with pytest.raises(ValueError, match="1 store to merge: expected at least two"):
        merge_stores([open_store(make_store(tmp_path / "whole.zarr"))], tmp_path / "m.zarr")


def test_other_package_versions_are_all_named_and_other_shard_sizes_become_the_first(tmp_path):
    first = open_store(make_store(tmp_path / "a.zarr"))
    producer = {**first.spec.producer, "numpy": "9.9"}
    merge_stores([first, other_store(tmp_path / "b.zarr", producer=producer, samples_per_shard=2)], tmp_path / "m.zarr")
    merged = open_store(tmp_path / "m.zarr")
    assert merged.spec.producer == {**producer, "numpy": f"{first.spec.producer['numpy']} and 9.9"}
    assert merged.spec.samples_per_shard == 3
    assert verify_store(tmp_path / "m.zarr") == []


def test_a_damaged_part_is_told_and_nothing_gets_the_name(tmp_path):
    parts = parts_of(make_store(tmp_path / "whole.zarr"), 4)
    shard = parts[1] / "depth" / "c" / "0" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[-20] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ValueError, match=r"4-7.zarr"):
        merge_stores([open_store(part) for part in parts], tmp_path / "m.zarr")
    assert not (tmp_path / "m.zarr").exists()


def test_the_command_says_what_it_merged(tmp_path):
    parts = parts_of(make_store(tmp_path / "whole.zarr"), 4)
    done = CliRunner().invoke(merge, [*map(str, parts), "--out", str(tmp_path / "m.zarr")])
    assert done.exit_code == 0, done.output
    assert "m.zarr: 7 samples of 2 stores, " in done.output
