"""Names that people's files have come through stores, lists and predictions, and what cannot is said."""

import unicodedata

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_stores import encode, make_spec

from pipeline.cli.store_tools import subset
from pipeline.store import open_store
from pipeline.store.format.spec import digest_of_ids
from pipeline.store.tools.merge import merge_stores
from pipeline.store.tools.subset import subset_store
from pipeline.store.tools.verify import verify_store
from pipeline.store.write.writer import StoreWriter

IDS = [
    "Screenshot 10.15.30\u202fAM",
    "\u5199\u771f\u3000\uff11",
    "Caf\u00e9",
    "\U0001f469\u200d\U0001f4bb",
    "a\\b",
    "\u200eimage",
    "a\uf022",
]


def make_named_store(path, ids):
    """A tiny store whose samples have the given names."""
    source = {"name": "folder", "samples": len(ids), "ids_sha256": digest_of_ids(ids)}
    spec, _ = make_spec(samples=len(ids), source=source)
    with StoreWriter(path, spec, ids) as writer:
        for shard in list(writer.todo):
            writer.write_shard(shard, [encode(spec, number) for number in spec.shard_samples(shard)])
        writer.finish()
    return path


def test_every_name_comes_through_a_store_its_check_its_parts_and_their_merge(tmp_path):
    path = make_named_store(tmp_path / "named.zarr", IDS)
    store = open_store(path)
    assert list(store.ids) == IDS
    assert verify_store(path) == []
    for number, name in enumerate(IDS):
        assert store.index_of(name) == number
    subset_store(store, tmp_path / "first.zarr", IDS[:3])
    subset_store(store, tmp_path / "second.zarr", IDS[3:])
    merge_stores([open_store(tmp_path / f"{name}.zarr") for name in ("first", "second")], tmp_path / "merged.zarr")
    assert list(open_store(tmp_path / "merged.zarr").ids) == IDS
    assert verify_store(tmp_path / "merged.zarr") == []


@pytest.mark.parametrize(("stored", "asked"), [("NFC", "NFD"), ("NFD", "NFC")], ids=["composed", "decomposed"])
def test_a_store_finds_a_sample_by_either_form_of_its_name(tmp_path, stored, asked):
    ids = [unicodedata.normalize(stored, name) for name in IDS]
    store = open_store(make_named_store(tmp_path / "named.zarr", ids))
    assert store.index_of(unicodedata.normalize(asked, "Caf\u00e9")) == 2
    with pytest.raises((KeyError, ValueError)):
        store.index_of("Caf\u00e8")


def test_a_subset_takes_names_with_blanks_in_either_form(tmp_path):
    path = make_named_store(tmp_path / "named.zarr", IDS)
    rows = [f"{IDS[0]}.png", IDS[1], unicodedata.normalize("NFD", IDS[2])]
    (tmp_path / "list.txt").write_text("\n".join(rows))
    words = [str(path), "--out", str(tmp_path / "part.zarr"), "--split", str(tmp_path / "list.txt")]
    done = CliRunner().invoke(subset, words)
    assert done.exit_code == 0, done.output
    assert list(open_store(tmp_path / "part.zarr").ids) == IDS[:3]
    assert np.isfinite(open_store(tmp_path / "part.zarr").depth_m(0)).any()
