"""Stores of a few tiny samples."""

from __future__ import annotations

import json

import numpy as np

from pipeline.store.format.spec import StoreSpec, digest_of_ids
from pipeline.store.write.writer import StoreWriter, encode_sample

BINS = 12
SIZE_PX = (6, 10)


def make_spec(kind="gaussian", samples=7, **changes):
    """Return the spec and the ids of a tiny store."""
    ids = [f"a/{number:03d}" for number in range(samples)]
    values = {
        "teacher": {"name": "tiny", "kind": "python", "precision": "float32", "weights_sha256": None},
        "depth_space": "metric_m",
        "source": {"name": "folder", "samples": samples, "ids_sha256": digest_of_ids(ids)},
        "view": "full",
        "view_size_px": (12, 20),
        "max_rel_error": 5e-4,
        "code_range": (0.1, 300.0),
        "dpm_kind": kind,
        "bin_edges": tuple(np.linspace(0.5, 40, BINS + 1).tolist()),
        "sigma_m": 2.0 if kind == "gaussian" else None,
        "max_dpm_kl": 0.01 if kind == "sparse" else None,
        "samples_per_shard": 3,
    }
    return StoreSpec(**(values | changes)), ids


def make_maps(number, kind="gaussian"):
    """Return depth (6, 10) with one invalid pixel, and a map (12, 6, 10) or None for a Gaussian store."""
    random = np.random.default_rng(number)
    depth_m = random.uniform(1, 40, SIZE_PX).astype(np.float32)
    depth_m[0, number % SIZE_PX[1]] = np.nan
    if kind == "gaussian":
        return depth_m, None
    logits = random.normal(0, 3, (BINS, *SIZE_PX))
    dpm = np.exp(logits) / np.exp(logits).sum(axis=0)
    return depth_m, dpm.astype(np.float32)


def encode(spec, number):
    """Encode sample `number`."""
    encoded = encode_sample(spec, *make_maps(number, spec.dpm_kind))
    encoded.row.update(image_sha256=f"{number:064x}", image_size_px=[12, 20])
    return encoded


def write_shards(writer, shards):
    """Write shards of a tiny store."""
    for shard in shards:
        writer.write_shard(shard, [encode(writer.spec, number) for number in writer.spec.shard_samples(shard)])


def make_store(path, kind="gaussian", **changes):
    """Write a tiny store."""
    spec, ids = make_spec(kind, **changes)
    with StoreWriter(path, spec, ids) as writer:
        write_shards(writer, writer.todo)
        writer.finish()
    return path


def folder_bytes(root):
    """Return the bytes of all files in a folder, by relative path."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def documents(path):
    """Return what docs/store.schema.json describes, of one store."""
    group, dpm, manifest = (
        json.loads((path / name).read_text()) for name in ("zarr.json", "dpm/zarr.json", "MANIFEST.json")
    )
    return {"depth_store": group["attributes"]["depth_store"], "dpm": dpm["attributes"], "manifest": manifest}
