"""What a run of stage one goes under and no store holds: versions of the teacher's packages, and threads.

They change the low bits of what a teacher says, or more, and not which teacher it is. So an interrupted run goes on
under others, and says so. `run.json` of a staging directory has them, and the specification, so that a run with another
one can say what differs.
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
"""What runs a teacher, by its kind; of a `python:` teacher its card says what it imports."""
MOST_FIELDS = 8


def conditions_of(card: dict[str, Any]) -> dict[str, str]:
    """What this process runs the teacher of a card under: versions by package, and numbers of threads."""
    names = sorted(set(_packages(card)))
    found = {name: _version(name) for name in names}
    found["threads"] = str(torch.get_num_threads())
    if "onnxruntime" in found:  # which takes its threads by the cores
        found["cores"] = str(cores())
    return found


def notes_on_resume(writer: StoreWriter, now: dict[str, str]) -> list[str]:
    """What people should know who go on with a run; the record of the staging directory is brought up to date.

    The writer must hold its lock.
    """
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
            f"the finished samples were made under other conditions ({changed}): depth may differ between them; "
            f"for a store of one, remove {writer.staging} and start again"
        )
    if now not in before:
        record = {"spec": _as_json(writer.spec), "conditions": [*before, now]}
        write_durably(writer.staging / RUN, pretty_json(record))
    return notes


def _of_other(writer: StoreWriter, staging: Path) -> str:
    """What there is of another store for the same target, and in what it is another."""
    spec, _ = _read(staging)
    if spec is None:
        return f"{staging} is an unfinished store of other settings; remove it if you do not need it"
    done = sum(len(spec.shard_samples(shard)) for shard in Journal(staging / "journal").read())
    fields = differing_fields(spec, writer.spec)
    shown = "; ".join(f"{name} is {there} there and {here} now" for name, there, here in fields[:MOST_FIELDS])
    more = f"; and {len(fields) - MOST_FIELDS} more" if len(fields) > MOST_FIELDS else ""
    return (
        f"{staging} is an unfinished store of other settings with {done} of {spec.samples} samples, which this run "
        f"does not go on with: {shown}{more}; remove it if you do not need it"
    )


def _read(staging: Path) -> tuple[StoreSpec | None, list[dict[str, str]]]:
    """The specification and the conditions so far of a staging directory; None and none where nothing says them."""
    try:
        record = read_json(staging / RUN, "record of a run")
        root, dpm, edges = record["spec"]
        spec = StoreSpec.from_attributes(root, dpm, tuple(edges))
        before = [{str(name): str(value) for name, value in one.items()} for one in record["conditions"]]
    except (ValueError, KeyError, TypeError, AttributeError):  # of an earlier release, or damaged: it is a note alone
        return None, []
    return spec, before


def _as_json(spec: StoreSpec) -> list[Any]:
    whole: list[Any] = json.loads(pretty_json([spec.root_attributes(), spec.dpm_attributes(), list(spec.bin_edges)]))
    return whole


def _packages(card: dict[str, Any]) -> Iterator[str]:
    """Top-level names of the packages that run a teacher, and each member of an ensemble."""
    settings = card.get("preprocessing") or {}
    for member in settings.get("members", []) if card.get("kind") == "ensemble" else []:
        yield from _packages(member["card"])
    yield from PACKAGES.get(str(card.get("kind")), ())
    yield from settings.get("python", {}).get("packages", [])


def _version(package: str) -> str:
    with suppress(PackageNotFoundError):
        return version(package)
    for name in packages_distributions().get(package, []):  # reads all that is installed: cv2 is of opencv-python
        with suppress(PackageNotFoundError):
            return version(name)
    return "unknown"
