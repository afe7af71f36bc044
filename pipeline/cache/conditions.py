"""Conditions of a run that are not part of the store: versions of the teacher's packages, and thread counts.

They change at least the low bits of predictions, but not the teacher's identity: an interrupted run resumes under other
conditions and reports them. `run.json` of the staging directory records them with the specification.
"""

from __future__ import annotations

import json
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import TYPE_CHECKING, Any

import torch

from ..common.fileio import pretty_json, read_json, write_durably
from ..common.parallel import cores
from ..store.format.spec import StoreSpec
from ..store.tools.diff import differing_fields
from ..store.write.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ..store.write.writer import StoreWriter

RUN = "run.json"
PACKAGES = {
    "checkpoint": ("torch",),
    "litert": ("ai_edge_litert",),
    "onnx": ("onnxruntime",),
    "torchscript": ("torch",),
    "transformers": ("torch", "transformers"),
}
"""Packages that run a teacher, by kind; the card of a `python:` teacher lists its own."""
MOST_FIELDS = 8


def conditions_of(card: dict[str, Any]) -> dict[str, str]:
    """Return the conditions of this process for the teacher of a card: versions by package, and thread counts."""
    conditions = {name: _version(name) for name in sorted(set(_packages(card)))}
    conditions["threads"] = str(torch.get_num_threads())
    if "onnxruntime" in conditions:  # uses one thread per core
        conditions["cores"] = str(cores())
    return conditions


def notes_on_resume(writer: StoreWriter, now: dict[str, str]) -> list[str]:
    """Return notes about resuming a run, and update `run.json`. The writer must hold its lock."""
    notes = [_of_other(writer, staging) for staging in writer.other_stagings()]
    _, before = _read(writer.staging)
    if before and writer.finished and now not in before:
        last = before[-1]
        changed = ", ".join(
            f"{name} {last.get(name, 'absent')} before and {now.get(name, 'absent')} now"
            for name in sorted(last.keys() | now.keys())
            if last.get(name) != now.get(name)
        )
        notes.append(
            f"the finished samples were made under other conditions ({changed}), so their depth may differ slightly; "
            f"for identical conditions, remove {writer.staging} and start again"
        )
    if now not in before:
        record = {"spec": _as_json(writer.spec), "conditions": [*before, now]}
        write_durably(writer.staging / RUN, pretty_json(record))
    return notes


def _of_other(writer: StoreWriter, staging: Path) -> str:
    """Describe the unfinished store of another specification, and how it differs."""
    spec, _ = _read(staging)
    if spec is None:
        return f"{staging} is an unfinished store with other settings; remove it if you do not need it"
    done = sum(len(spec.shard_samples(shard)) for shard in Journal(staging / "journal").read())
    fields = differing_fields(spec, writer.spec)
    listed = "; ".join(f"{name} is {there} there and {here} now" for name, there, here in fields[:MOST_FIELDS])
    more = f"; and {len(fields) - MOST_FIELDS} more" if len(fields) > MOST_FIELDS else ""
    return (
        f"{staging} is an unfinished store with other settings and {done} of {spec.samples} samples; this run does not "
        f"resume it: {listed}{more}; remove it if you do not need it"
    )


def _read(staging: Path) -> tuple[StoreSpec | None, list[dict[str, str]]]:
    """Return the specification and all conditions of a staging directory; (None, []) without a readable record."""
    try:
        record = read_json(staging / RUN, "record of a run")
        root, dpm, edges = record["spec"]
        spec = StoreSpec.from_attributes(root, dpm, tuple(edges))
        before = [{str(name): str(value) for name, value in run.items()} for run in record["conditions"]]
    except (ValueError, KeyError, TypeError, AttributeError):  # of an earlier release, or damaged; used for notes only
        return None, []
    return spec, before


def _as_json(spec: StoreSpec) -> list[Any]:
    whole: list[Any] = json.loads(pretty_json([spec.root_attributes(), spec.dpm_attributes(), list(spec.bin_edges)]))
    return whole


def _packages(card: dict[str, Any]) -> Iterator[str]:
    """Yield top-level names of the packages that run a teacher, also of members of an ensemble."""
    settings = card.get("preprocessing") or {}
    for member in settings.get("members", []) if card.get("kind") == "ensemble" else []:
        yield from _packages(member["card"])
    yield from PACKAGES.get(str(card.get("kind")), ())
    yield from settings.get("python", {}).get("packages", [])


def _version(package: str) -> str:
    with suppress(PackageNotFoundError):
        return version(package)
    for name in packages_distributions().get(package, []):  # slow; for example, cv2 belongs to opencv-python
        with suppress(PackageNotFoundError):
            return version(name)
    return "unknown"
