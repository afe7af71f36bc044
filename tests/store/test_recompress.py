"""Another compression level: other bytes, the same values, format version 3."""

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from tiny_stores import folder_bytes, make_spec, make_store

from pipeline.cli.main import main
from pipeline.store import open_store
from pipeline.store.tools.diff import compare_stores
from pipeline.store.tools.recompress import recompress_store
from pipeline.store.tools.verify import verify_store


@pytest.mark.parametrize("kind", ["gaussian", "sparse", "dense"])
@pytest.mark.parametrize("level", [1, 9])
def test_every_value_stays_and_the_store_is_of_version_3(tmp_path, kind, level):
    before = open_store(make_store(tmp_path / "a.zarr", kind))
    recompress_store(before, tmp_path / "b.zarr", level)
    after = open_store(tmp_path / "b.zarr")
    assert (after.spec.version, after.spec.compression_level) == (3, level)
    verify_store(tmp_path / "b.zarr")
    assert compare_stores(before, after).identical
    for number in range(len(before)):
        np.testing.assert_array_equal(after.depth_m(number), before.depth_m(number))
        np.testing.assert_array_equal(after.dpm(number), before.dpm(number))
    raw = [zarr.open_group(store, mode="r")["depth"][:] for store in (tmp_path / "a.zarr", tmp_path / "b.zarr")]
    np.testing.assert_array_equal(*raw)


@pytest.mark.parametrize("kind", ["gaussian", "sparse", "dense"])
def test_back_at_level_5_it_is_the_same_store(tmp_path, kind):
    make_store(tmp_path / "a.zarr", kind)
    recompress_store(open_store(tmp_path / "a.zarr"), tmp_path / "b.zarr", 9)
    recompress_store(open_store(tmp_path / "b.zarr"), tmp_path / "c.zarr", 5)
    assert folder_bytes(tmp_path / "a.zarr") == folder_bytes(tmp_path / "c.zarr")


def test_a_store_written_at_a_level_equals_one_that_was_recompressed(tmp_path):
    make_store(tmp_path / "a.zarr", "sparse", compression_level=9)
    recompress_store(open_store(make_store(tmp_path / "b.zarr", "sparse")), tmp_path / "c.zarr", 9)
    assert folder_bytes(tmp_path / "a.zarr") == folder_bytes(tmp_path / "c.zarr")


def test_a_level_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="`compression_level` must be 1 to 9, got 12"):
        make_spec(compression_level=12)


def test_stores_of_two_levels_are_not_merged(tmp_path):
    make_store(tmp_path / "a.zarr")
    make_store(tmp_path / "b.zarr", compression_level=1)
    merged = CliRunner().invoke(
        main, ["store", "merge", *(str(tmp_path / f"{name}.zarr") for name in "ab"), "--out", str(tmp_path / "c.zarr")]
    )
    assert merged.exit_code == 1
    assert "compression levels are 5 and 1: write one again with `pipeline store recompress`" in merged.output


def test_the_commands_write_and_show_a_level(tmp_path):
    make_store(tmp_path / "a.zarr")
    command = ["store", "recompress", str(tmp_path / "a.zarr"), "--level", "9", "--out", str(tmp_path / "b.zarr")]
    done = CliRunner().invoke(main, command)
    assert (done.exit_code, "7 samples at level 9" in done.output) == (0, True), done.output
    shown = CliRunner().invoke(main, ["store", "info", str(tmp_path / "b.zarr")])
    assert "level 9" in shown.output
    again = CliRunner().invoke(main, command)
    assert (again.exit_code, "already exists" in again.output) == (1, True)
