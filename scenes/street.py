"""Texture of the ground: asphalt with markings and patches, kerbs, paving, grass and fields.

Shape legend: n samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from . import noise
from .surfaces import coverage, mix

if TYPE_CHECKING:
    from .camera import F32
    from .ground import Road
    from .shapes import Triple


@dataclass(frozen=True)
class GroundStyle:
    """Materials and markings of the ground of a scene. Colours are linear albedo."""

    asphalt: Triple
    paving: Triple
    grass: Triple
    paved_beyond: bool
    """Whether paving (towns) or grass is behind the pavement."""
    yellow_center: bool
    edge_lines: bool
    zebra: bool
    field_rows: bool
    wet: float
    """Reflectivity of the asphalt, 0 to 1."""
    seed: float


def _color(triple: Triple) -> F32:
    return np.array(triple, dtype=np.float32)[:, None]


def ground_albedo(point_m: F32, footprint_m: F32, depth_m: F32, road: Road, style: GroundStyle) -> tuple[F32, F32]:
    """Return colour (3, n) and gloss (n) of ground samples at world points (3, n)."""
    x, y, z = point_m
    lateral, off = road.lateral_m(x, z).astype(np.float32), road.off_road_m(x, z).astype(np.float32)
    # Along the view, the footprint of a pixel on the ground is longer by depth over camera height.
    stretch_m = (footprint_m * np.maximum(1.0, depth_m / 1.6)).astype(np.float32)
    albedo = np.empty_like(point_m)
    gloss = np.zeros_like(x)
    on_road = off < 0.002
    part = np.flatnonzero(on_road)
    albedo[:, part], gloss[part] = _carriageway(
        x[part], z[part], lateral[part], off[part], footprint_m[part], stretch_m[part], road, style
    )
    raised = road.kerb_m > 0
    face = on_road & (off > -0.02) & (y > 0.004) if raised else np.zeros_like(on_road)
    albedo[:, face] = _color(style.paving) * 0.9
    paved = ~on_road & ((off < road.pavement_m) | style.paved_beyond) & raised
    part = np.flatnonzero(paved)
    albedo[:, part] = _paving(x[part], z[part], lateral[part], off[part], footprint_m[part], stretch_m[part], style)
    part = np.flatnonzero(~on_road & ~paved)
    albedo[:, part] = _verge(x[part], z[part], off[part], stretch_m[part], road, style)
    return albedo, gloss


def _carriageway(
    x: F32, z: F32, lateral: F32, off: F32, foot: F32, stretch: F32, road: Road, style: GroundStyle
) -> tuple[F32, F32]:
    shift = style.seed * 400
    grain = noise.nearest(noise.fractal(), x * 43 + shift, z * 43)
    fine = np.clip(0.1 / np.maximum(stretch, 1e-4), 0.0, 1)
    patchy = noise.blended(noise.fractal(), x * 3.1 + shift, z * 1.7 + shift)
    cloudy = noise.blended(noise.smooth(), x * 2.0 + shift, z * 0.8)
    gain = 1 + 0.11 * grain * fine + 0.05 * patchy + 0.06 * cloudy
    # Tyres polish two tracks in each lane; oil darkens between them.
    in_lane = np.abs((np.abs(lateral) % road.lane_m) - road.lane_m / 2)
    gain *= 1 + 0.07 * np.exp(-(((in_lane - 0.78) / 0.28) ** 2)) - 0.07 * np.exp(-((in_lane / 0.35) ** 2))
    # Repaired patches, a few with dark tarred edges.
    for cell_x, cell_z, fraction, tone in ((2.3, 7.0, 0.1, -0.28), (1.3, 2.1, 0.05, 0.2), (0.9, 16.0, 0.07, -0.2)):
        column, row = np.floor(x / cell_x), np.floor(z / cell_z)
        gain *= np.where(noise.cell_hash(column, row, (style.seed * 7 + cell_x) % 1) < fraction, 1 + tone, 1)
    crack = np.abs(noise.blended(noise.fractal(), x * 4.7 + 31, z * 2.9 + shift))
    gain *= 1 - 0.5 * fine * (crack < 0.035) * (cloudy > 0.2)
    gain *= 1 - 0.22 * np.exp(-np.maximum(-off, 0) / 0.25)  # dirt in the gutter
    albedo = _color(style.asphalt) * gain
    paint, yellow = _markings(x, z, lateral, off, foot, stretch, road, style)
    worn = np.clip(1.05 - 0.16 * np.maximum(patchy, 0) - 0.25 * fine * np.maximum(grain, 0), 0.3, 1)
    white = np.where(yellow, _color((0.62, 0.42, 0.06)), _color((0.66, 0.66, 0.63)))
    albedo = mix(albedo, white, paint * worn)
    gloss = style.wet * np.clip(0.5 + 0.5 * cloudy, 0, 1) * (1 - 0.5 * paint)
    return albedo.astype(np.float32), gloss.astype(np.float32)


def _markings(
    x: F32, z: F32, lateral: F32, off: F32, foot: F32, stretch: F32, road: Road, style: GroundStyle
) -> tuple[F32, F32]:
    """Return coverage (n) by road paint, and whether it is yellow."""
    dash = z + style.seed * 9

    def line(at: F32, width: float, period: float = 0.0, drawn: float = 0.0) -> F32:
        cover = np.clip((width / 2 - at) / np.maximum(foot, 1e-4) + 0.5, 0, 1) * np.minimum(
            1, width / np.maximum(foot, 1e-4)
        )
        if period:
            along = np.abs(dash % period - period / 2) - drawn / 2
            cover = cover * mix(coverage(along, stretch), drawn / period, np.clip(stretch / period, 0, 1))
        return cover

    center = line(np.abs(lateral), 0.13, 6.0, 3.0)
    if style.yellow_center:
        center = line(np.abs(np.abs(lateral) - 0.14), 0.11)
    lanes = np.zeros_like(center)
    for lane in range(1, road.lanes):
        lanes = np.maximum(lanes, line(np.abs(np.abs(lateral) - lane * road.lane_m), 0.12, 9.0, 3.0))
    edge = road.lanes * road.lane_m
    if style.edge_lines or road.half_width_m - edge > 1:
        lanes = np.maximum(lanes, line(np.abs(np.abs(lateral) - edge + 0.1), 0.12))
    paint = np.maximum(center, lanes)
    yellow = (np.abs(lateral) < 0.4) & style.yellow_center
    if road.has_crossing:
        before = np.abs(z - road.crossing_at_m) - road.crossing_half_m
        stripes = coverage(np.abs((lateral + 50) % 1.0 - 0.5) - 0.25, foot)
        zebra = coverage(np.abs(before - 2.6) - 1.5, stretch) * stripes if style.zebra else np.zeros_like(paint)
        stop_side = np.where(z < road.crossing_at_m, lateral > 0.2, lateral < -0.2)
        stop = coverage(np.abs(before - 5.2) - 0.25, stretch) * stop_side * (np.abs(lateral) < edge - 0.2)
        paint = np.where(before > 5.2, paint, 0) * (np.abs(lateral) < road.half_width_m)
        paint = np.maximum(paint, np.maximum(zebra, stop) * (np.abs(lateral) < road.half_width_m - 0.15))
        paint = paint * (before > 0)
        street = np.abs(z - road.crossing_at_m)
        along = np.abs(x % 6 - 3) - 1.5
        cross = (
            coverage(street - 0.06, stretch) * coverage(along, foot) * np.minimum(1, 0.12 / np.maximum(stretch, 1e-4))
        )
        paint = np.maximum(paint, cross * (np.abs(lateral) > road.half_width_m + 4))
        yellow &= before > 5.2
    return paint * (off < -0.05), yellow


def _paving(x: F32, z: F32, lateral: F32, off: F32, foot: F32, stretch: F32, style: GroundStyle) -> F32:
    """Slabs with dark joints and varied colours, behind a row of kerb stones."""
    size = 0.4 + 0.3 * style.seed
    row = np.floor(z / size)
    shifted = lateral / size + 0.5 * (row % 2)
    column = np.floor(shifted)
    fine = np.clip(size / 2 / np.maximum(stretch, 1e-4), 0, 1)
    tone = noise.cell_hash(column, row, style.seed) - 0.5
    joint = np.maximum(
        coverage(np.abs(np.abs(shifted - column - 0.5) - 0.5) * size - 0.012, foot)
        * np.minimum(1, 0.05 / np.maximum(foot, 1e-4)),
        coverage(np.abs(np.abs(z / size - row - 0.5) - 0.5) * size - 0.012, stretch)
        * np.minimum(1, 0.05 / np.maximum(stretch, 1e-4)),
    )
    dirt = noise.blended(noise.fractal(), x * 5.0, z * 5.0)
    albedo = _color(style.paving) * (1 + 0.2 * tone * fine + 0.07 * dirt) * (1 - 0.5 * joint)
    stone_joint = coverage(np.abs(z % 1.0 - 0.5) - 0.012, stretch) * fine
    kerb = _color(style.paving) * 1.25 * (1 - 0.5 * stone_joint + 0.06 * dirt)
    return mix(albedo, np.minimum(kerb, 0.6), coverage(off - 0.14, foot)).astype(np.float32)


def _verge(x: F32, z: F32, off: F32, stretch: F32, road: Road, style: GroundStyle) -> F32:
    """Grass with tufts and dry patches, gravel next to a road without kerbs, possibly a distant ploughed field."""
    shift = style.seed * 300
    tuft = noise.nearest(noise.fractal(), x * 21 + shift, z * 21)
    clump = noise.blended(noise.fractal(), x * 4.3, z * 4.3 + shift)
    dry = noise.blended(noise.smooth(), x * 0.9 + shift, z * 0.9)
    fine = np.clip(0.16 / np.maximum(stretch, 1e-4), 0.08, 1)
    gain = 1 + 0.26 * tuft * fine + 0.13 * clump * np.clip(0.6 / np.maximum(stretch, 1e-4), 0.2, 1)
    albedo = _color(style.grass) * gain.clip(0.3, 2)
    straw = _color((0.30, 0.24, 0.10)) * gain.clip(0.4, 1.8)
    albedo = mix(albedo, straw, np.clip(0.32 * dry + 0.12, 0, 0.7))
    if style.field_rows:
        ridge = np.clip(np.sin((x + 0.2 * z) * 5.2), -1, 1) * np.clip(0.5 / np.maximum(stretch, 1e-4), 0, 1)
        field = _color((0.17, 0.115, 0.07)) * (1 + 0.3 * ridge + 0.1 * clump)
        side = np.where(x > 0, 1.0, style.seed * 2)
        albedo = mix(albedo, field, np.clip((off - 9) * 2, 0, 1) * (side > 0.6))
    if road.kerb_m == 0:
        gravel = _color((0.27, 0.25, 0.21)) * (1 + 0.2 * tuft * fine + 0.08 * clump)
        albedo = mix(albedo, gravel, np.clip(1.6 - (off + 0.25 * clump) / 0.5, 0, 1))
    return albedo.astype(np.float32)
