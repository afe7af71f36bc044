"""Several teachers as one: `ensemble:KIND:WHAT,KIND:WHAT`, or `ensemble:FILE.json` with weights and options.

    {"members": [{"teacher": "checkpoint:runs/a", "weight": 2}, {"teacher": "onnx:b.onnx", "normalise": "imagenet"}]}

Options of a member are named as on the command line; relative paths start at the file's folder.

Shape legend: B batch, L bins of the mixture, h w pixels of the largest output.
"""

from __future__ import annotations

import math
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..common.fileio import canonical_json, read_json, sha256_bytes
from ..errors import PipelineError
from ..sources.readers.arrays import invalid_numbers, parse_invalid
from .base import VIEW, TeacherCard, TeacherOutput, package_versions
from .camera import FOCAL, check_focal_px, wants_baseline, wants_camera, wants_right
from .mixture import Prediction, agreed_intrinsics, checked_prediction, mix, mixture_bins, mixture_sigma
from .options import TeacherOptions
from .predictions import parse_metres_per_unit
from .registry import KINDS, open_teacher

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from .base import Framing, Teacher

MAX_MEMBERS = 64
SWITCHES = {"drop-nonpositive", "flip-average"}
NUMBERS = {"canonical-focal-px", "focal-px", "metres-per-unit"}
EXAMPLE = '{"members": [{"teacher": "checkpoint:runs/a", "weight": 1}, {"teacher": "checkpoint:runs/b", "weight": 1}]}'
PATHS = {"checkpoint", "litert", "onnx", "predictions", "torchscript", "transformers"}
"""Kinds whose argument may be a path."""
KEYS_OF_MEMBERS = {
    name.replace("_", "-").replace("input-size-px", "input-size"): name
    for name in (field.name for field in fields(TeacherOptions))
    if name not in {"features", "trust_code", "map_edges_m", "map_sigma_m"}
}
"""Key of a member -> field of TeacherOptions. A file cannot set `trust_code`: only the user can."""


class Member(NamedTuple):
    """One teacher of an ensemble, not opened yet."""

    spec: str
    weight: float
    options: TeacherOptions


class EnsembleTeacher:
    """Mixes the predictions of its members. See `load`."""

    emits_maps = False

    def __init__(
        self,
        teachers: Sequence[Teacher],
        weights: Sequence[float],
        card: TeacherCard,
        bin_edges_m: NDArray[np.float64],
        sigma_m: float | None,
        focal_px: float | None = None,
    ) -> None:
        self.card = card
        self.bin_edges_m: NDArray[np.float64] | None = bin_edges_m
        self.needs_images = any(teacher.needs_images for teacher in teachers)
        self.wants_framing = any(getattr(teacher, "wants_framing", False) for teacher in teachers)
        self.package_versions = package_versions(teachers)
        self._teachers = teachers
        self._weights = weights
        self._edges_m = bin_edges_m
        self._sigma_m = sigma_m
        self._focal_px = focal_px

    def predict(self, images: Tensor | None, ids: Sequence[str], framing: Framing | None = None) -> TeacherOutput:
        """Return the weighted mean depth (B, h, w) in metres and the mixture (B, L, h, w) of the maps, on the CPU.

        Signals are averaged if all members give them; intrinsics are those on which all members agree.

        Raises PipelineError for errors of a member and for invalid depth.
        """
        if self._focal_px is not None and framing is not None:
            framing = framing.with_focal(self._focal_px)
        predictions = [
            Prediction(checked_prediction(teacher, images, ids, framing), teacher.bin_edges_m, weight)
            for teacher, weight in zip(self._teachers, self._weights, strict=True)
        ]
        mixture = mix(predictions, self._edges_m, self._sigma_m)
        return mixture._replace(intrinsics_px=agreed_intrinsics(predictions))


def load(argument: str, device: torch.device, options: TeacherOptions) -> EnsembleTeacher:
    """Open every member, each with `options.flip_average` if that is set.

    Raises PipelineError for an invalid list, a member that does not open, is not metric or occurs twice, and missing
    bins or sigma.
    """
    members = _members(argument, options)
    teachers: list[Teacher] = []
    for member in members:
        try:
            teachers.append(open_teacher(member.spec, device=device, options=member.options))
        except ValueError as error:
            raise PipelineError(f"teacher ensemble:{argument}: member {member.spec}: {error}") from error
    _check_distinct(argument, members, teachers)
    edges_m, sigma_m = mixture_bins(teachers, options), mixture_sigma(teachers, options)
    total = math.fsum(member.weight for member in members)
    weights = [member.weight / total for member in members]
    card = _card(teachers, weights, sigma_m, options)
    check_focal_px("focal_px", options.focal_px)
    for teacher in teachers:
        if wants_right(teacher) or wants_baseline(teacher):
            raise PipelineError(
                f"teacher {teacher.card.name!r} wants stereo pairs, which an ensemble does not pass to its members: "
                "cache it alone"
            )
    if options.focal_px is not None and not any(map(wants_camera, teachers)):
        raise PipelineError(
            f"`focal_px={options.focal_px:g}`: the depth of no member of ensemble:{argument} depends on the focal "
            "length: omit it"
        )
    return EnsembleTeacher(teachers, weights, card, edges_m, sigma_m, options.focal_px)


def _members(argument: str, options: TeacherOptions) -> list[Member]:
    """Parse the members, in their order."""
    shared = TeacherOptions(
        flip_average=options.flip_average,
        drop_nonpositive=options.drop_nonpositive,
        map_edges_m=options.map_edges_m,
        map_sigma_m=options.map_sigma_m,
        teacher_python=options.teacher_python,
    )
    if argument.partition(":")[0] in KINDS:
        specs = argument.split(",")
        members = [Member(spec, 1.0, _for_kind(spec, shared, trusted=options.trust_code)) for spec in specs]
        wrong = [spec for spec in specs if spec.partition(":")[0] not in KINDS]
    else:
        path = Path(argument)
        listed = read_json(path, "ensemble")
        if not isinstance(listed, dict) or listed.keys() != {"members"} or not isinstance(listed["members"], list):
            raise PipelineError(f"ensemble {path}: expected an object with the one key members, such as {EXAMPLE}")
        entries = listed["members"][: MAX_MEMBERS + 1]
        members = [_member(path, entry, shared, trusted=options.trust_code) for entry in entries]
        wrong = [member.spec for member in members if member.spec.partition(":")[0] not in KINDS]
    if wrong or not 2 <= len(members) <= MAX_MEMBERS:
        problem = f"{wrong[0]!r} is not a teacher" if wrong else f"{len(members)} members"
        raise PipelineError(
            f"teacher ensemble:{argument}: {problem}, expected 2 to {MAX_MEMBERS} teachers KIND:WHAT separated by "
            f"commas; if a path has a comma, use a file with {EXAMPLE}"
        )
    if any(member.spec.startswith("ensemble:") for member in members):
        raise PipelineError(
            f"teacher ensemble:{argument}: a member is itself an ensemble, which is not supported: list its members "
            "here"
        )
    return members


def _member(path: Path, entry: Any, shared: TeacherOptions, *, trusted: bool) -> Member:  # noqa: ANN401 - any JSON
    if not isinstance(entry, dict) or not isinstance(entry.get("teacher"), str):
        raise PipelineError(f"ensemble {path}: member {str(entry)[:80]} needs the text `teacher`, such as {EXAMPLE}")
    spec, weight = entry["teacher"], entry.get("weight", 1.0)
    where = f"ensemble {path}: member {spec}"
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight > 0:
        raise PipelineError(f"{where} has weight {weight!r}, expected a positive number")
    options = {}
    for key in entry.keys() - {"teacher", "weight"}:
        if key not in KEYS_OF_MEMBERS:
            hint = "give `trust_code` on the command line" if key == "trust-code" else "remove it"
            raise PipelineError(
                f"{where} has {key!r}, expected teacher, weight, {', '.join(sorted(KEYS_OF_MEMBERS))}: {hint}"
            )
        options[KEYS_OF_MEMBERS[key]] = _option(where, key, entry[key])
    kind, _, argument = spec.partition(":")
    if kind == "python" and not trusted:
        raise PipelineError(
            f"{where} runs code named by the file: review it and give `trust_code`, or list the members on the command "
            "line"
        )
    if kind in PATHS and (kind != "transformers" or (path.parent / argument).is_dir()):  # otherwise a hub id
        spec = f"{kind}:{path.parent / argument}"
    flip_average = shared.flip_average or options.pop("flip_average", False)
    own_drop = options.pop("drop_nonpositive", False)
    own_python = options.pop("teacher_python", None)
    if own_python is not None and "/" in own_python:  # otherwise a command of PATH
        own_python = str(path.parent / own_python)
    merged = _for_kind(spec, replace(shared, **options, flip_average=flip_average), trusted=trusted)
    # Options of the ensemble skip members that do not accept them; a member's own are checked on opening.
    drop, python = merged.drop_nonpositive or own_drop, own_python or merged.teacher_python
    return Member(spec, weight, replace(merged, drop_nonpositive=drop, teacher_python=python))


def _option(where: str, key: str, value: Any) -> Any:  # noqa: ANN401 - any JSON value, and its parsed form
    if key == "invalid":
        return parse_invalid(value) if isinstance(value, str) else invalid_numbers(value, where)
    if key == "metres-per-unit" and isinstance(value, str | int | float) and not isinstance(value, bool):
        return parse_metres_per_unit(str(value))
    if key.endswith("focal-px") and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)  # checked on opening
    if key == "input-size":
        match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", str(value))
        if match:
            return int(match[1]), int(match[2])
    elif isinstance(value, bool if key in SWITCHES else str) and key not in NUMBERS:
        return value
    raise PipelineError(f"{where} has {key} {value!r}, expected a value as on the command line")


def _for_kind(spec: str, options: TeacherOptions, *, trusted: bool) -> TeacherOptions:
    """Return options without what the ensemble sets for members of other kinds."""
    kind = KINDS.get(spec.partition(":")[0])
    accepted = kind.options if kind is not None else frozenset[str]()
    drop = options.drop_nonpositive and "drop_nonpositive" in accepted
    python = options.teacher_python if "teacher_python" in accepted else None
    trusted = trusted and "trust_code" in accepted
    return replace(options, trust_code=trusted, drop_nonpositive=drop, teacher_python=python)


def _check_distinct(argument: str, members: Sequence[Member], teachers: Sequence[Teacher]) -> None:
    """Refuse two members with the same model: the mixture is that model, at twice the cost."""
    specs: dict[bytes, str] = {}
    for member, teacher in zip(members, teachers, strict=True):
        card = teacher.card
        # A network is identified by its weights, not by its name or the code that calls it.
        name = card.name if card.weights_sha256 is None or not teacher.needs_images else ""
        ignored = {"flip_average", "sigma_m"} | (set() if card.weights_sha256 is None else {"python"})
        preprocessing = {key: value for key, value in card.preprocessing.items() if key not in ignored}
        identity = canonical_json([card.kind, name, card.weights_sha256, card.revision, preprocessing, card.precision])
        if identity in specs:
            raise PipelineError(
                f"teacher ensemble:{argument}: {member.spec} is the same model as {specs[identity]}: remove one, or "
                "give it a larger weight in a FILE.json"
            )
        specs[identity] = member.spec


def _card(
    teachers: Sequence[Teacher], weights: Sequence[float], sigma_m: float | None, options: TeacherOptions
) -> TeacherCard:
    """Return the card of an ensemble, which holds the cards of all members in their order."""
    cards = [teacher.card for teacher in teachers]
    views = {card.preprocessing[VIEW] for card in cards if VIEW in card.preprocessing}
    members = [{"card": card.as_json(), "weight": weight} for card, weight in zip(cards, weights, strict=True)]
    # Flip-averaged members may have used a Gaussian although the mixture itself needs none.
    stated = [sigma_m, *(card.preprocessing.get("sigma_m") for card in cards)]
    sigma_m = next((width_m for width_m in stated if width_m is not None), None)
    precisions, licences = {card.precision for card in cards}, {card.licence for card in cards}
    return TeacherCard(
        kind="ensemble",
        name=" + ".join(card.name for card in cards),
        depth_space="metric_m",
        weights_sha256=sha256_bytes(canonical_json(members)),
        preprocessing={
            "members": members,
            **({} if sigma_m is None else {"sigma_m": sigma_m}),
            **({VIEW: views.pop()} if len(views) == 1 else {}),
            **({} if options.focal_px is None else {FOCAL: options.focal_px}),
        },
        precision=precisions.pop() if len(precisions) == 1 else "mixed",
        licence=options.licence or (licences.pop() if len(licences) == 1 else None),
    )
