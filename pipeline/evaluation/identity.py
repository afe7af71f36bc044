"""What was measured and how: the fields of a result that are known before the evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.fileio import canonical_json, sha256_bytes
from ..depth.readout import DEFAULT
from ..sources.base import truth_name

if TYPE_CHECKING:
    from ..depth.metrics import Protocol
    from ..networks.saved_run import LoadedRun
    from ..sources.base import Source
    from ..store import Store


def measurement_terms(source: Source, split: str, protocol: Protocol) -> dict[str, Any]:
    """Return protocol, source, ground truth and split of an evaluation, as JSON."""
    ids = "\n".join(sample.id for sample in source.samples(split))
    return {
        "protocol": protocol.as_json(),
        "source": source.name,
        "truth": truth_name(source),
        "split": Path(split).name,
        "split_sha256": sha256_bytes(ids.encode()),
    }


def run_identity(run: LoadedRun, readout: str | None = None) -> dict[str, str]:
    """Return the identity of a student and how its map is read; it does not depend on the name of its directory.

    The readout `mean` is not stated, as in results of older versions.
    """
    readout = run.reader(readout=readout).readout
    identity = {"weights_sha256": run.weights_sha256}
    return identity if readout == DEFAULT else {**identity, "readout": readout}


def store_identity(store: Store) -> dict[str, str]:
    """Return the identity of a store and of its teacher."""
    return {"store_digest": store.spec.digest(), "teacher_sha256": sha256_bytes(canonical_json(store.spec.teacher))}
