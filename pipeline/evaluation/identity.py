"""What was measured and how: the fields of a result that are known before the evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.fileio import canonical_json, sha256_bytes
from ..depth.readout import DEFAULT
from ..sources.base import truth_name
from ..sources.splits import evenly

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..depth.metrics import Protocol
    from ..networks.saved_run import LoadedRun
    from ..sources.base import Sample, Source
    from ..store import Store

SCALE_FRAMES = 200
"""Most images that a constant is fitted on, evenly spaced."""


def measurement_terms(source: Source, split: str, protocol: Protocol) -> dict[str, Any]:
    """Return protocol, source, ground truth and split of an evaluation, as JSON."""
    fitted = None if protocol.scale_split is None else scale_samples(source.samples(protocol.scale_split))
    return {
        "protocol": protocol.as_json(),
        "source": source.name,
        "truth": truth_name(source),
        "split": Path(split).name,
        "split_sha256": _sha256_of_ids(source.samples(split)),
        **({} if fitted is None else {"scale_split_sha256": _sha256_of_ids(fitted)}),
    }


def scale_samples(samples: Sequence[Sample]) -> Sequence[Sample]:
    """The samples of a split that a constant is fitted on: SCALE_FRAMES, evenly spaced."""
    return evenly(samples, SCALE_FRAMES)


def _sha256_of_ids(samples: Sequence[Sample]) -> str:
    return sha256_bytes("\n".join(sample.id for sample in samples).encode())


def run_identity(run: LoadedRun, readout: str | None = None, view: str | None = None) -> dict[str, str]:
    """Return the identity of a student and how its map is read; it does not depend on the name of its directory.

    The readout `mean` is not stated, as in results of older versions, nor a view that was not given.
    """
    readout = run.reader(readout=readout).readout
    identity = {"weights_sha256": run.weights_sha256}
    identity |= {} if readout == DEFAULT else {"readout": readout}
    return identity | ({} if view is None else {"view": view})


def store_identity(store: Store) -> dict[str, str]:
    """Return the identity of a store and of its teacher."""
    return {"store_digest": store.spec.digest(), "teacher_sha256": sha256_bytes(canonical_json(store.spec.teacher))}
