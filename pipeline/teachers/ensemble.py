"""Several teachers as one: `ensemble:KIND:WHAT,KIND:WHAT`, or `ensemble:FILE.json` where they have weights or flags.

    {"members": [{"teacher": "checkpoint:runs/a", "weight": 2}, {"teacher": "onnx:b.onnx", "normalise": "imagenet"}]}

A member's flags have the names that they have on the command line; a relative path is one from the file's own folder.

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
from .base import VIEW, TeacherCard, TeacherOutput
from .mixture import Answer, ask, bins_to_mix_in, mix, sigma_to_mix_with
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
EXAMPLE = '{"members": [{"teacher": "checkpoint:runs/a", "weight": 1}, {"teacher": "checkpoint:runs/b", "weight": 1}]}'
PATHS = {"checkpoint", "litert", "onnx", "predictions", "torchscript", "transformers"}
"""Kinds whose argument is a path."""
KEYS_OF_MEMBERS = {
    name.replace("_", "-").removesuffix("-px"): name
    for name in (field.name for field in fields(TeacherOptions))
    if name not in {"trust_code", "map_edges_m", "map_sigma_m"}
}
"""Field of TeacherOptions by the key of a member. A file may come from anybody, and so gives no trust."""


class Member(NamedTuple):
    """One of several teachers, as it is asked for."""

    spec: str
    weight: float
    options: TeacherOptions


class EnsembleTeacher:
    """Asks every member, and mixes what they say. See `load`."""

    emits_maps = False

    def __init__(
        self,
        teachers: Sequence[Teacher],
        weights: Sequence[float],
        card: TeacherCard,
        bin_edges_m: NDArray[np.float64],
        sigma_m: float | None,
    ) -> None:
        self.card = card
        self.bin_edges_m: NDArray[np.float64] | None = bin_edges_m
        self.needs_images = any(teacher.needs_images for teacher in teachers)
        self.wants_framing = any(getattr(teacher, "wants_framing", False) for teacher in teachers)
        self._teachers = teachers
        self._weights = weights
        self._edges_m = bin_edges_m
        self._sigma_m = sigma_m

    def predict(self, images: Tensor | None, ids: Sequence[str], framing: Framing | None = None) -> TeacherOutput:
        """The members' weighted mean depth (B, h, w) metres, and the mixture (B, L, h, w) of their maps, on the CPU.

        Raises PipelineError for what a member finds wrong, and for depth of a member that is none.
        """
        answers = [
            Answer(ask(teacher, images, ids, framing), teacher.bin_edges_m, weight)
            for teacher, weight in zip(self._teachers, self._weights, strict=True)
        ]
        return mix(answers, self._edges_m, self._sigma_m)


def load(argument: str, device: torch.device, options: TeacherOptions) -> EnsembleTeacher:
    """Open every member; with `options.flip_average`, each of them so.

    Raises PipelineError for a list that is none, a member that does not open, gives no metres, or is there twice, and
    where there are no bins or no sigma to mix in.
    """
    members = _members(argument, options)
    teachers: list[Teacher] = []
    for member in members:
        try:
            teachers.append(open_teacher(member.spec, device=device, options=member.options))
        except ValueError as error:
            raise PipelineError(f"teacher ensemble:{argument}: its member {member.spec}: {error}") from error
    _check_distinct(argument, members, teachers)
    edges_m, sigma_m = bins_to_mix_in(teachers, options), sigma_to_mix_with(teachers, options)
    whole = math.fsum(member.weight for member in members)
    weights = [member.weight / whole for member in members]
    return EnsembleTeacher(teachers, weights, _card(teachers, weights, sigma_m, options), edges_m, sigma_m)


def _members(argument: str, options: TeacherOptions) -> list[Member]:
    """The members that are asked for, in their order."""
    shared = TeacherOptions(
        flip_average=options.flip_average,
        drop_nonpositive=options.drop_nonpositive,
        map_edges_m=options.map_edges_m,
        map_sigma_m=options.map_sigma_m,
    )
    if argument.partition(":")[0] in KINDS:
        specs = argument.split(",")
        members = [Member(spec, 1.0, _trusting(spec, shared, trusted=options.trust_code)) for spec in specs]
        wrong = [spec for spec in specs if spec.partition(":")[0] not in KINDS]
    else:
        path = Path(argument)
        listed = read_json(path, "ensemble")
        if not isinstance(listed, dict) or listed.keys() != {"members"} or not isinstance(listed["members"], list):
            raise PipelineError(f"ensemble {path}: expected one list, members, such as {EXAMPLE}")
        given = listed["members"][: MAX_MEMBERS + 1]
        members = [_member(path, one, shared, trusted=options.trust_code) for one in given]
        wrong = [member.spec for member in members if member.spec.partition(":")[0] not in KINDS]
    if wrong or not 2 <= len(members) <= MAX_MEMBERS:
        found = f"{wrong[0]!r} is no teacher" if wrong else f"{len(members)} members"
        raise PipelineError(
            f"teacher ensemble:{argument}: {found}, expected 2 to {MAX_MEMBERS} teachers KIND:WHAT with commas "
            f"between; where a path holds a comma, a file with {EXAMPLE}"
        )
    if any(member.spec.startswith("ensemble:") for member in members):
        raise PipelineError(
            f"teacher ensemble:{argument}: a member is an ensemble itself; name that one's members here"
        )
    return members


def _member(path: Path, given: Any, shared: TeacherOptions, *, trusted: bool) -> Member:  # noqa: ANN401 - any JSON
    if not isinstance(given, dict) or not isinstance(given.get("teacher"), str):
        raise PipelineError(f"ensemble {path}: its member {str(given)[:80]} has no text `teacher`, expected {EXAMPLE}")
    spec, weight = given["teacher"], given.get("weight", 1.0)
    where = f"ensemble {path}: its member {spec}"
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight > 0:
        raise PipelineError(f"{where} has the weight {weight!r}, expected a number above 0")
    options = {}
    for key in given.keys() - {"teacher", "weight"}:
        if key not in KEYS_OF_MEMBERS:
            hint = "give `trust_code` on the command line" if key == "trust-code" else "leave it out"
            raise PipelineError(
                f"{where} has {key!r}, expected teacher, weight, {', '.join(sorted(KEYS_OF_MEMBERS))}; {hint}"
            )
        options[KEYS_OF_MEMBERS[key]] = _option(where, key, given[key])
    kind, _, argument = spec.partition(":")
    if kind == "python" and not trusted:
        raise PipelineError(
            f"{where} runs code that the file names; look at it, and give `trust_code`, or name the members on the "
            "command line"
        )
    if kind in PATHS and (kind != "transformers" or (path.parent / argument).is_dir()):  # else an id of the hub
        spec = f"{kind}:{path.parent / argument}"
    flips = shared.flip_average or options.pop("flip_average", False)
    drops = options.pop("drop_nonpositive", False)
    settled = _trusting(spec, replace(shared, **options, flip_average=flips), trusted=trusted)
    # What a member's own kind has no use for is refused; of what is asked for all, it is left out.
    return Member(spec, weight, replace(settled, drop_nonpositive=settled.drop_nonpositive or drops))


def _option(where: str, key: str, value: Any) -> Any:  # noqa: ANN401 - any JSON value, and what it means
    if key == "invalid":
        return parse_invalid(value) if isinstance(value, str) else invalid_numbers(value, where)
    if key == "metres-per-unit" and isinstance(value, str | int | float) and not isinstance(value, bool):
        return parse_metres_per_unit(str(value))
    if key == "input-size":
        match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", str(value))
        if match:
            return int(match[1]), int(match[2])
    elif isinstance(value, bool if key in SWITCHES else str) and key != "metres-per-unit":
        return value
    raise PipelineError(f"{where} has {key} {value!r}, expected it as it is written on the command line")


def _trusting(spec: str, options: TeacherOptions, *, trusted: bool) -> TeacherOptions:
    """Options with the user's trust, and what they want of all members, for a kind to which it means something."""
    kind = KINDS.get(spec.partition(":")[0])
    uses = kind.uses if kind is not None else frozenset[str]()
    drops = options.drop_nonpositive and "drop_nonpositive" in uses
    return replace(options, trust_code=trusted and "trust_code" in uses, drop_nonpositive=drops)


def _check_distinct(argument: str, members: Sequence[Member], teachers: Sequence[Teacher]) -> None:
    """Refuse one model in two places: their mixture is that model again, at twice the cost."""
    seen: dict[bytes, str] = {}
    for member, teacher in zip(members, teachers, strict=True):
        card = teacher.card
        # A copy of a network has another name and the same weights; a folder's digest is of names and sizes alone.
        named = card.name if card.weights_sha256 is None or not teacher.needs_images else ""
        # Nor does it matter what code calls it, where its weights are known.
        apart = {"flip_average", "sigma_m"} | (set() if card.weights_sha256 is None else {"python"})
        looks = {key: value for key, value in card.preprocessing.items() if key not in apart}
        same = canonical_json([card.kind, named, card.weights_sha256, card.revision, looks, card.precision])
        if same in seen:
            raise PipelineError(
                f"teacher ensemble:{argument}: {member.spec} is the same model as {seen[same]}: a mixture of a model "
                "with itself is that model; take one out, or give it a larger weight in a FILE.json"
            )
        seen[same] = member.spec


def _card(
    teachers: Sequence[Teacher], weights: Sequence[float], sigma_m: float | None, options: TeacherOptions
) -> TeacherCard:
    """Who they are together: every member's whole card, in their order."""
    cards = [teacher.card for teacher in teachers]
    views = {card.preprocessing[VIEW] for card in cards if VIEW in card.preprocessing}
    members = [{"card": card.as_json(), "weight": weight} for card, weight in zip(cards, weights, strict=True)]
    # Where members are flip-averaged, a Gaussian may stand in their maps, and in the mixture none.
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
        },
        precision=precisions.pop() if len(precisions) == 1 else "mixed",
        licence=options.licence or (licences.pop() if len(licences) == 1 else None),
    )
