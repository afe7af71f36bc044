"""Describe the optional parts of a store as text: signals, features, cameras, relations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..format.extras import SIGNAL_STEPS

if TYPE_CHECKING:
    from ..read.store import Store


def describe_extras(store: Store) -> list[tuple[str, str]]:
    """Return lines of (name, text) with achieved errors; empty for a store without optional parts."""
    extras = store.spec.extras
    lines = []
    for name, signal in extras.signals.items():
        error = float(store.rows(f"signal_{name}_error").max())
        size = f"{signal.size_px[0]}x{signal.size_px[1]} px"
        lines.append((name, f"{size}; error at most {1 / (2 * SIGNAL_STEPS):.4f}, {error:.4f} reached"))
    for layer, features in extras.features.items():
        cosine, variance = (float(store.rows(f"feature_{layer}_{fact}").mean()) for fact in ("cosine", "variance"))
        height, width = features.size_cells
        text = (
            f"{features.components} components of {features.channels} channels, {height}x{width} cells; mean "
            f"cosine {cosine:.4f}, explained variance {variance:.4f}; basis fitted on {features.fitted_on} images"
        )
        lines.append((f"features of layer {layer}", text))
    if extras.intrinsics is not None:
        focals_px = store.rows("intrinsics")[:, 0]
        known = focals_px[np.isfinite(focals_px)]
        text = f"intrinsics from the {extras.intrinsics}, {len(known)} of {len(store)} samples with a focal length"
        if len(known):
            text += f", fx {known.min():.4g} to {known.max():.4g} px of the view"
        if extras.baseline:
            text += f"; baseline {float(np.median(store.rows('baseline_m'))):.4g} m"
        lines.append(("camera", text))
    if extras.relations is not None:
        rows, columns = extras.relations.nodes
        neighbours = extras.relations.neighbours
        lines.append(
            ("relations", f"{rows}x{columns} nodes, {neighbours} neighbours each, by {extras.relations.expert}")
        )
    return lines
