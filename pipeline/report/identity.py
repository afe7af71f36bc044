"""Match runs, stores and teachers by digest and card, never by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..common.fileio import canonical_json, sha256_bytes
from ..networks.saved_run import DATA_SETS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..store import Store

TRUTH, THIS_STORE, THIS_TEACHER, OTHER = "truth", "this store", "this teacher", "another teacher"
"""What a run learned from; THIS_TEACHER is another store of the page's teacher."""


def learned_from_what(config: Mapping[str, Any], store: Store) -> str:
    """Which of the four a run of this configuration learned from.

    Stores are equal if their digests are, and their manifests if the run states one (older runs do not).
    Teachers are equal if their cards are. Of several stores, the one nearest to `store` counts.
    """
    if config.get("truth_of") is not None:
        return TRUTH
    learned = {_taught_by(each.get("store"), store) for each in config.get(DATA_SETS) or [config]}
    return next(source for source in (THIS_STORE, THIS_TEACHER, OTHER) if source in learned)


def _taught_by(stated: object, store: Store) -> str:
    """Which of THIS_STORE, THIS_TEACHER and OTHER a store is, as stated in a configuration."""
    taught_by = stated if isinstance(stated, dict) else {}
    if taught_by.get("digest") == store.spec.digest():
        manifest = taught_by.get("manifest_sha256")
        return THIS_STORE if manifest in {None, store.manifest_sha256} else THIS_TEACHER
    return THIS_TEACHER if taught_by.get("teacher") == store.spec.teacher else OTHER


def is_of_teacher(identity: Mapping[str, Any] | None, store: Store) -> bool:
    """Whether a result states this store or its teacher, or states neither, as older results do."""
    if not identity:
        return True
    same_store = identity.get("store_digest") == store.spec.digest()
    return same_store or identity.get("teacher_sha256") == sha256_bytes(canonical_json(store.spec.teacher))
