"""Compare a store with its teacher: the error of the store, and the noise of the teacher.

In half precision or on a GPU, two runs of a teacher differ. So the live teacher runs twice, and the store must be
within its own bound plus this noise.

Shape legend: B batch, K bins, H W pixels of the view, h w pixels of the teacher's own output.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..common.fileio import canonical_json
from ..common.progress import Silent
from ..depth.rebin import rebin
from ..errors import PipelineError
from ..sources.splits import evenly
from ..sources.view import View
from ..teachers.base import Framing, gives_maps, has_adaptive_bins, images_of_views, on_cpu, run_teacher
from .agreement import Comparison, Prediction
from .framing import framing_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ..common.progress import Progress
    from ..sources.base import Sample, Source
    from ..store import Store
    from ..teachers.base import Teacher, TeacherOutput
    from .agreement import Agreement

NEWER_KEYS = ("python", "config_sha256")
"""Keys of a card's preprocessing that stores of earlier releases lack: a factory's code, a network's configuration."""


def compare_with_teacher(
    store: Store,
    source: Source,
    split: str,
    teacher: Teacher,
    *,
    count: int = 16,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> list[Agreement]:
    """Run a teacher twice on `count` samples, spread evenly over a split, and compare it with the store.

    The first run uses batches, as stage one; the second single images, because other images in a batch may change the
    low bits. Rebinned maps are compared over the store's bins.

    Raises PipelineError if the teacher, an image or the split differs from what the store was made from.
    """
    if count < 1 or batch_size < 1:
        raise PipelineError(f"{count} samples in batches of {batch_size}: expected at least 1 of each")
    _check_card(store, teacher)
    samples = evenly(source.samples(split), count)
    view = View.parse(store.spec.view)
    comparison = Comparison(store)
    with (progress or Silent()).task("run the teacher twice", 2 * len(samples), "img") as task:
        for start in range(0, len(samples), batch_size):
            batch = samples[start : start + batch_size]
            seen = [_image(store, source, sample, view) for sample in batch]
            images, images_px = [image for image, _ in seen], [image_px for _, image_px in seen]
            framing = framing_of(source, view, batch, images_px, teacher)
            first = _answers(store, teacher, batch, images, framing)
            task.update(len(batch))
            for number, sample in enumerate(batch):
                alone = framing_of(source, view, [sample], images_px[number : number + 1], teacher)
                (second,) = _answers(store, teacher, [sample], images[number : number + 1], alone)
                comparison.add(sample, first[number], second)
                task.update(1)
    return comparison.agreements()


def _check_card(store: Store, teacher: Teacher) -> None:
    live: dict[str, Any] = json.loads(canonical_json(teacher.card.as_json()))
    stored = store.spec.teacher
    for key in NEWER_KEYS:
        if key not in (stored.get("preprocessing") or ()):
            live["preprocessing"].pop(key, None)
    different = [
        f"{name} is {stored.get(name)!r} in the store and {live.get(name)!r} live"
        for name in sorted(stored.keys() | live.keys())
        if stored.get(name) != live.get(name)
    ]
    if store.spec.carried_from is not None:
        live_from = "no" if not gives_maps(teacher) else "adaptive" if has_adaptive_bins(teacher) else "fixed"
        if (live_from == "fixed") != (store.spec.carried_from == "fixed") or live_from == "no":
            different.append(
                f"maps were rebinned from {store.spec.carried_from} bins, the teacher has {live_from} bins"
            )
    elif store.spec.dpm_kind != "gaussian":
        edges = None if teacher.bin_edges_m is None else tuple(teacher.bin_edges_m.tolist())
        if edges != store.spec.bin_edges:
            bins = "none" if edges is None else f"{len(edges) - 1} from {edges[0]:g} to {edges[-1]:g}"
            known = store.spec.bin_edges
            different.append(
                f"bins are {store.spec.bin_count} from {known[0]:g} to {known[-1]:g} in the store and {bins} live"
            )
    if different:
        raise PipelineError(
            f"{store.name} was made from another teacher: {'; '.join(different)}. Give `against` and its options as "
            f"they were given to `pipeline cache-teacher` (see `pipeline store info {store.name}`), or the store of "
            "this teacher"
        )


def _answers(
    store: Store, teacher: Teacher, batch: Sequence[Sample], images: Sequence[NDArray[np.uint8]], framing: Framing
) -> list[Prediction]:
    """Run the teacher on images of the store; rebin maps to the store's bins if it did."""
    pixels = images_of_views(torch.from_numpy(np.stack(images))) if teacher.needs_images else None
    output = on_cpu(run_teacher(teacher, pixels, [sample.id for sample in batch], framing))
    depth, dpm, adaptive_m = output[:3]
    if tuple(depth.shape) != (len(batch), *store.layout.size_px):
        height, width = store.layout.size_px
        raise PipelineError(
            f"teacher {teacher.card.name!r} returned depth of shape {tuple(depth.shape)} for {len(batch)} images, but "
            f"{store.name} holds {height}x{width} px: use the input size and code that made the store"
        )
    depths, signals = depth.float().numpy(), _signals(store, teacher, output, len(batch))
    if store.spec.dpm_kind == "gaussian":
        return [Prediction(each, None, own) for each, own in zip(depths, signals, strict=True)]
    if dpm is None:
        raise PipelineError(
            f"teacher {teacher.card.name!r} returned no maps, but {store.name} holds {store.spec.dpm_kind} maps: use "
            "the code that made the store"
        )
    maps = dpm.float().numpy()
    if store.spec.carried_from is not None:
        edges = [teacher.bin_edges_m] * len(batch) if adaptive_m is None else list(adaptive_m.numpy())
        onto = np.array(store.spec.bin_edges)
        return [
            Prediction(each, None if own is None else rebin(dpm_of_image, own, onto)[0], given)
            for each, dpm_of_image, own, given in zip(depths, maps, edges, signals, strict=True)
        ]
    return [Prediction(*each) for each in zip(depths, maps, signals, strict=True)]


def _signals(store: Store, teacher: Teacher, output: TeacherOutput, count: int) -> list[dict[str, NDArray[np.float32]]]:
    """Return each image's signals. Raises PipelineError if one is missing, or of another size than in the store."""
    arrays = {}
    for name, signal in store.spec.extras.signals.items():
        values = getattr(output, name, None)
        shape = (count, *signal.size_px)
        if values is None or tuple(values.shape) != shape:
            given = "none" if values is None else tuple(values.shape)
            raise PipelineError(
                f"teacher {teacher.card.name!r} returned {given} as {name}, but {store.name} holds {shape}: use the "
                "options and code that made the store"
            )
        arrays[name] = values.float().numpy()
    return [{name: values[number] for name, values in arrays.items()} for number in range(count)]


def _image(store: Store, source: Source, sample: Sample, view: View) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Return the view of an image and the size (H, W) of the whole image, after checking its hash."""
    image, sha256 = source.read_image(sample)
    store.check_image(store.index_of(sample.id), sample.image_path, sha256)
    return view.of_image(image), (image.shape[0], image.shape[1])
