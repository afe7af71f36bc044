"""Tiny stores of format version 3 (a draft): one with every optional part, one of disparities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from tiny_stores import make_maps, make_spec

from pipeline.store.format.extras import Extras, Features, Relations, Signal
from pipeline.store.format.features import BasisFitter
from pipeline.store.write.encode_extras import SampleExtras, SampleRelations
from pipeline.store.write.writer import StoreWriter, encode_sample

if TYPE_CHECKING:
    from pathlib import Path

CHANNELS, COMPONENTS, CELLS = 6, 3, (2, 4)
NODES, NEIGHBOURS = (2, 3), 2
BASELINE_M = 0.54


def features_of(number):
    """Features (6, 2, 4) of sample `number`."""
    random = np.random.default_rng([3, number])
    mixing = np.random.default_rng(4).normal(size=(CHANNELS, 4))
    return (1 + np.tensordot(mixing, random.normal(size=(4, *CELLS)), axes=1)).astype(np.float32)


def make_basis():
    """The basis of the features of the first five samples."""
    fitter = BasisFitter(CHANNELS)
    for number in range(5):
        fitter.add(features_of(number))
    return fitter.basis(COMPONENTS)


def extras_of(number, samples=7):
    """Every optional part of sample `number`."""
    random = np.random.default_rng([5, number])
    return SampleExtras(
        intrinsics_px=np.array([20.0 + number, 19.0, np.nan if number == 2 else 9.5, 5.5]),
        baseline_m=BASELINE_M,
        previous=number - 1,
        next=number + 1 if number + 1 < samples else -1,
        pose=np.arange(6) / 8 + number,
        signals={"confidence": random.random((3, 5)), "sky": random.random((6, 10)).astype(np.float32)},
        features={"11": features_of(number)},
        relations=SampleRelations(random.integers(0, 6, (6, NEIGHBOURS)), random.random((6, NEIGHBOURS))),
    )


def extras_spec(**changes):
    """The specification of those parts."""
    basis = make_basis()
    parts = {
        "intrinsics": "source",
        "baseline": True,
        "neighbours": True,
        "pose": True,
        "signals": {"confidence": Signal((3, 5)), "sky": Signal((6, 10))},
        "features": {"11": Features(COMPONENTS, CHANNELS, CELLS, 5, basis.sha256)},
        "relations": Relations(NODES, NEIGHBOURS, "a segmenter"),
        "data_licence": "CC BY 4.0",
    }
    return Extras(**(parts | changes))


KINDS = {
    "full": ("sparse", {}),
    "disparity": ("gaussian", {"depth_space": "disparity_px", "code_range": (0.5, 192.0), "sigma_m": 1.5}),
}


def make_store_v3(path: Path, name: str = "full", samples: int = 7, **changes: object) -> Path:
    """Write the store `full` or `disparity`."""
    kind, own = KINDS[name]
    extras = extras_spec() if name == "full" else Extras(intrinsics="source", baseline=True)
    card = {"kind": "python", "name": "tiny", "depth_space": own.get("depth_space", "metric_m")}
    spec, ids = make_spec(kind, samples, **({"teacher": card, "extras": extras} | own | changes))
    bases = {"11": make_basis()} if spec.extras.features else {}
    with StoreWriter(path, spec, ids, bases) as writer:
        for shard in writer.todo:
            writer.write_shard(shard, [encode_v3(spec, number, bases) for number in spec.shard_samples(shard)])
        writer.finish()
    return path


def encode_v3(spec, number, bases):
    """Encode sample `number`."""
    sample = encode_sample(spec, *make_maps(number, spec.dpm_kind))
    sample.row.update(image_sha256=f"{number:064x}", image_size_px=[12, 20])
    return sample.with_extras(spec, extras_of(number, spec.samples), bases)
