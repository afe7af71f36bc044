"""Surfaces of a room: wood, cloth, tiles, wallpaper, books, pictures, panes.

Each finish gets the samples that see its material, on a solid or on the shell of the room, and returns their surface.
Patterns fade out where they are finer than a pixel.

Shape legend: n samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from . import noise
from .light import column
from .shapes import Material
from .surfaces import Hits, Surface, coverage, mix
from .textures import TEXTURES

if TYPE_CHECKING:
    from collections.abc import Callable

    from .camera import F32


def _plane(hits: Hits) -> tuple[F32, F32]:
    """Return metres along the face of each sample, and up it (along z on horizontal faces)."""
    flat = np.abs(hits.face) == 2
    along = np.where(np.abs(hits.face) == 1, hits.metres[2], hits.metres[0])
    return along, np.where(flat, hits.metres[2], hits.metres[1])


def _fade(size_m: float | F32, hits: Hits) -> F32:
    """Return 1 where a pattern of this size is visible, falling to 0 where it is finer than a pixel."""
    return np.clip(np.float32(0.5) * size_m / np.maximum(hits.footprint_m, 1e-4), 0, 1)


def _surface(albedo: F32, gloss: F32 | float, glow: F32 | float = 0.0) -> Surface:
    shape = albedo.shape[1:]
    parts = [np.broadcast_to(np.asarray(part, dtype=np.float32), shape) for part in (gloss, glow)]
    return Surface(np.clip(albedo, 0.004, 0.92).astype(np.float32), parts[0].copy(), parts[1].copy())


def _soften(hits: Hits, amount: float) -> None:
    """Bend the normals of boxes towards their edges, as on upholstery."""
    bent = hits.normal + np.float32(amount) * hits.local**3 * (hits.face != 0)
    hits.normal[:] = bent / np.sqrt((bent * bent).sum(axis=0))


def _wood(hits: Hits) -> Surface:
    """Grain along the longer side. extra: plank width in m (0 for none), plank length, seed, gloss."""
    width, length, seed, gloss = hits.extra[:4]
    along, up = _plane(hits)
    half = hits.half_m
    half_along = np.where(np.abs(hits.face) == 1, half[2], half[0])
    half_up = np.where(np.abs(hits.face) == 2, half[2], half[1])
    swap = half_up > half_along
    long, short = np.where(swap, up, along), np.where(swap, along, up)
    planks = np.maximum(width, 1e-3)
    row = np.where(width > 0, np.floor(short / planks), 0)
    end = (long / np.maximum(length, 0.1) + 0.37 * row) % 1 * length
    board = np.floor(long / np.maximum(length, 0.1) + 0.37 * row)
    tone = np.where(width > 0, noise.cell_hash(row, board, seed) - 0.5, 0)
    shift = seed * 300 + row * 23.7 + board * 11.3
    grain = noise.blended(noise.fractal(), long * 5 + shift, short * 55 + shift)
    ring = noise.blended(noise.smooth(), long * 2.2 + shift, short * 21 - shift)
    gain = 1 + 0.32 * tone + 0.10 * grain * _fade(0.03, hits) + 0.09 * ring
    gap = np.minimum(np.abs(short / planks - row - 0.5) * -1 + 0.5, 9) * planks
    gap = np.minimum(gap, np.minimum(end, length - end))
    joint = np.where(width > 0, coverage(gap - 0.002, hits.footprint_m) * _fade(0.008, hits), 0)
    return _surface(hits.color * gain * (1 - 0.6 * joint), gloss * (1 - 0.5 * joint))


def _fabric(hits: Hits) -> Surface:
    """Woven cloth. extra[0]: weave, extra[1]: 1 for stripes of the second colour, 2 for checks."""
    along, up = _plane(hits)
    x, y, z = hits.point_m
    weave = noise.nearest_in_space(x * 90, y * 90, z * 90) * _fade(0.012, hits)
    patch = noise.blended_in_space(x * 5, y * 5, z * 5)
    albedo = hits.color * (1 + 0.10 * weave + 0.05 * patch)
    pitch = np.maximum(hits.extra[2], 0.04)
    stripe = (np.abs(along / pitch % 1 - 0.5) < 0.2) & (hits.extra[1] > 0)
    check = (np.abs(up / pitch % 1 - 0.5) < 0.2) & (hits.extra[1] > 1)
    fraction = (0.5 * stripe + 0.5 * check + 0.3 * (stripe & (hits.extra[1] < 2))) * _fade(pitch, hits)
    _soften(hits, 0.55)
    return _surface(mix(albedo, hits.color2, fraction), 0.0)


def _folds(hits: Hits) -> Surface:
    """Curtains that let some light through. extra: folds per metre, glow, seed."""
    along, up = _plane(hits)
    wave = along * hits.extra[0] * 6.28 + 0.8 * np.sin(along * 9 + hits.extra[2] * 50) + 0.15 * up
    visible = _fade(1 / np.maximum(hits.extra[0], 1), hits)
    dark = 1 - visible * (0.22 + 0.22 * np.sin(wave))
    weave = noise.nearest(noise.fractal(), along * 150, up * 150) * _fade(0.01, hits)
    return _surface(hits.color * (dark + 0.06 * weave), 0.0, hits.extra[1] * dark)


def _books(hits: Hits) -> Surface:
    """Spines on the faces along z, pages on top. extra[0]: seed, extra[1]: mean thickness in m."""
    along, _ = _plane(hits)
    seed, thick = hits.extra[0], np.maximum(hits.extra[1], 0.008)
    warp = along / thick + 0.45 * noise.blended(noise.smooth(), along / thick * 3 + seed * 99, seed * 77)
    number = np.floor(warp)
    tint = np.stack([noise.cell_hash(number, number * 0 + k, seed) for k in (1, 2, 3)])
    bright = noise.cell_hash(number, number * 0 + 9, seed)
    spine = (0.02 + 0.55 * bright**1.6) * (0.35 + 0.65 * tint)
    edge = np.minimum(warp - number, number + 1 - warp)
    fraction = hits.local[1] * 0.5 + 0.5
    label = (np.abs(fraction - 0.62 - 0.2 * (tint[0] - 0.5)) < 0.1) & (tint[1] > 0.4) & (np.abs(hits.face) == 3)
    albedo = np.where(label, mix(spine, 0.6, 0.6), spine) * (0.45 + 0.55 * np.clip(edge * 7, 0, 1))
    mean = np.stack([np.full(along.shape, value, np.float32) for value in (0.17, 0.15, 0.14)])
    albedo = mix(mean, albedo, _fade(thick, hits))
    paper = np.abs(hits.face) == 2
    return _surface(np.where(paper, hits.color, albedo), 0.02)


def _picture(hits: Hits) -> Surface:
    """A framed picture, or a poster. extra: seed, mount in m, frame in m; colour2: the frame."""
    seed, mount, frame = hits.extra[:3]
    along, up = _plane(hits)
    from_edge = np.minimum(
        hits.half_m[0] - np.abs(along), np.where(np.abs(hits.face) == 2, hits.half_m[2], hits.half_m[1]) - np.abs(up)
    )
    fraction = hits.local[1] * 0.5 + 0.5
    style = (seed * 7) % 1
    ridge = 0.45 + 0.16 * noise.blended(noise.smooth(), along * 30 + seed * 400, seed * 300)
    tints = [np.stack([noise.cell_hash(seed * 0 + k, seed * 0 + c, seed) for c in range(3)]) for k in (1, 2, 3)]
    sky = mix(column((0.55, 0.62, 0.7)), tints[0], 0.5) * (0.5 + 0.6 * fraction)
    land = tints[1] * 0.35 * (0.6 + 0.25 * noise.blended(noise.fractal(), along * 90, up * 90))
    scene = np.where(fraction > ridge, sky, land)
    spots = noise.blended(noise.smooth(), along * 55 + seed * 200, up * 55 - seed * 100)
    shapes = np.where(spots > 0.4, tints[0], np.where(spots < -0.4, tints[1], 0.3 + 0.5 * tints[2]))
    lines = (np.floor(up / 0.035) % 2 == 0) & (
        noise.cell_hash(np.floor(along / 0.05), np.floor(up / 0.035), seed) < 0.7
    )
    text = np.where(lines & (fraction < 0.75), 0.12, 0.75) * np.ones((3, 1), np.float32)
    inner = np.where(style < 0.45, scene, np.where(style < 0.8, shapes, text))
    albedo = np.where(from_edge < mount + frame, np.float32(0.78), inner)
    albedo = np.where(from_edge < frame, hits.color2, albedo)
    front = hits.face == 3
    return _surface(np.where(front, albedo, hits.color2), np.where(front & (from_edge > frame), 0.05, 0.02))


def _screen(hits: Hits) -> Surface:
    """A television or monitor, on or off. extra: seed, glow (0 for off), rim in m."""
    seed, glow, rim = hits.extra[:3]
    along, up = _plane(hits)
    from_edge = np.minimum(hits.half_m[0] - np.abs(along), hits.half_m[1] - np.abs(up))
    visible = (hits.face == 3) & (from_edge > rim)
    x, y = np.floor(along / 0.07), np.floor(up / 0.05)
    tile = np.stack([noise.cell_hash(x + k, y, seed) for k in (1, 2, 3)])
    rows = (np.floor(up / 0.018) % 2 == 0) & (noise.cell_hash(np.floor(along / 0.02), np.floor(up / 0.018), seed) < 0.6)
    page = np.where(rows & (tile[0] < 0.7), 0.15, 0.8) * column((0.9, 0.95, 1.0))
    content = np.where((seed * 5) % 1 < 0.5, page, 0.2 + 0.5 * tile * (0.6 + 0.4 * np.sin(along * 9 + seed * 30)))
    lit = visible & (glow > 0)
    albedo = np.where(lit, content, hits.color)
    return _surface(albedo, np.where(visible, np.where(lit, 0.04, 0.14), 0.03), np.where(lit, glow, 0))


def _pane(hits: Hits) -> Surface:
    """A window pane and the view through it. extra: brightness outside, height of the horizon in m, seed."""
    bright, horizon, seed = hits.extra[:3]
    along, up = _plane(hits)
    high = up - horizon
    leaf = noise.blended(noise.fractal(), along * 9 + seed * 300, up * 9)
    crown = 0.35 * noise.blended(noise.smooth(), along * 7 + seed * 500, seed * 200) + 0.05 * leaf
    sky = mix(column((0.80, 0.86, 0.90)), column((0.50, 0.66, 0.88)), np.clip(high, 0, 1))
    green = column((0.16, 0.24, 0.09)) * (1 + 0.3 * leaf)
    house = np.floor(along / 0.9 + seed * 20)
    wall = 0.25 + 0.35 * np.stack([noise.cell_hash(house, house * 0 + k, seed) for k in (1, 2, 3)]) * [
        [1.0],
        [0.9],
        [0.8],
    ]
    window = (np.abs(along / 0.22 % 1 - 0.5) < 0.25) & (np.abs(up / 0.3 % 1 - 0.5) < 0.3)
    built = (high < 0.5 * noise.cell_hash(house, house * 0 + 4, seed)) & ((seed * 3) % 1 < 0.5)
    view = np.where(built, np.where(window, 0.08, wall), sky)
    view = np.where(high < crown - 0.1, green, view)
    return _surface(view, 0.06, bright)


def _tiles(hits: Hits) -> Surface:
    """Tiles with joints. extra: tile length and height in m, seed, gloss, variation, 1 for half-shifted rows."""
    wide, high, seed, gloss, varied, shifted = hits.extra
    along, up = _plane(hits)
    wide, high = np.maximum(wide, 0.02), np.maximum(high, 0.02)
    row = np.floor(up / high)
    tile = np.floor(along / wide + 0.5 * shifted * (row % 2))
    across = along / wide + 0.5 * shifted * (row % 2) - tile
    tone = noise.cell_hash(tile, row, seed) - 0.5
    second = (noise.cell_hash(tile + 5, row + 9, seed) < 0.5 * varied) | ((varied > 0.9) & ((row + tile) % 2 == 0))
    marble = noise.blended(noise.fractal(), along * 6 + tone * 90, up * 6 + seed * 80)
    gap = np.minimum(np.minimum(across, 1 - across) * wide, np.minimum(up / high - row, row + 1 - up / high) * high)
    joint = coverage(gap - 0.003, hits.footprint_m) * _fade(0.01, hits)
    body = np.where(second, hits.color2, hits.color) * (1 + 0.12 * tone * _fade(wide, hits) + 0.05 * marble)
    return _surface(mix(body, body.mean(axis=0) * 0.55, 0.8 * joint), gloss * (1 - joint))


def _carpet(hits: Hits) -> Surface:
    """Carpet or rug. extra: seed, border in m, size of the figures in m (both 0 for a carpet)."""
    seed, border, figure = hits.extra[:3]
    along, up = _plane(hits)
    pile = noise.nearest(noise.fractal(), along * 110, up * 110) * _fade(0.02, hits)
    worn = noise.blended(noise.smooth(), along * 5 + seed * 99, up * 5)
    size = np.maximum(figure, 0.05)
    x, y = along / size, up / size
    diamond = (np.abs(x % 1 - 0.5) + np.abs(y % 1 - 0.5)) % 0.5 < 0.22
    hashed = noise.cell_hash(np.floor(x * 2), np.floor(y * 2), seed) < 0.35
    second = np.where((seed * 3) % 1 < 0.5, diamond, hashed) & (figure > 0)
    from_edge = np.minimum(hits.half_m[0] - np.abs(along), hits.half_m[2] - np.abs(up))
    rim = (border > 0) & (np.abs(from_edge - border) < border * 0.4)
    fraction = np.where(rim | (second & (from_edge > border * 1.6)), _fade(size * 0.4, hits) * 0.85, 0)
    albedo = mix(hits.color, hits.color2, fraction)
    return _surface(albedo * (1 + 0.11 * pile + 0.05 * worn), 0.0)


def _wall(hits: Hits) -> Surface:
    """Paint or wallpaper above a skirting board of the second colour. extra: style, seed, pitch in m, skirting in m.

    Style: 0 paint, 1 stripes, 2 figures, 3 painted panelling below a rail, 4 rough plaster.
    """
    style, seed, pitch, skirting = hits.extra[:4]
    along, up = _plane(hits)
    rise = up + hits.half_m[1]
    stain = noise.blended(noise.smooth(), along * 2 + seed * 99, up * 2 + seed * 50)
    grain = noise.nearest(noise.fractal(), along * 70, up * 70) * _fade(0.03, hits)
    gain = 1 + 0.025 * stain + np.where(style == 4, 0.08, 0.02) * grain
    size = np.maximum(pitch, 0.05)
    stripe = np.abs(along / size % 1 - 0.5) < 0.25
    row = np.floor(up / size)
    x, y = along / size + 0.5 * (row % 2), up / size
    flower = np.hypot((x % 1 - 0.5) * 1.3, y % 1 - 0.5) < 0.2 + 0.08 * np.sin(5 * np.arctan2(y % 1 - 0.5, x % 1 - 0.5))
    pattern = np.where(style == 1, stripe, (style == 2) & flower)
    albedo = hits.color * gain * (1 - 0.22 * pattern * _fade(size * 0.5, hits))
    panel = (style == 3) & (rise < 0.95)
    groove = panel * coverage(np.abs(along / 0.14 % 1 - 0.5) * 0.14 - 0.004, hits.footprint_m) * _fade(0.016, hits)
    albedo = np.where(panel, hits.color2 * (1 - 0.35 * groove), albedo)
    rail = (np.abs(rise - 0.97) < 0.025) & (style == 3)
    board = (rise < skirting) | rail
    albedo = np.where(board, hits.color2, albedo)
    albedo = albedo * (1 - 0.4 * coverage(np.abs(rise - skirting) - 0.004, hits.footprint_m) * (skirting > 0))
    return _surface(np.where(np.abs(hits.face) == 2, hits.color * (1 + 0.02 * stain), albedo), 0.02)


def _fronts(hits: Hits) -> Surface:
    """Doors and drawers on the front. extra: columns, rows, grip (0 bar, 1 knob, 2 none), panelled, seed, gloss."""
    columns, rows, grip, panelled, seed, gloss = hits.extra
    columns, rows = np.maximum(columns, 1), np.maximum(rows, 1)
    along, up = _plane(hits)
    foot, front = hits.footprint_m, hits.face == 3
    wide, high = 2 * hits.half_m[0] / columns, 2 * hits.half_m[1] / rows
    x, y = (along + hits.half_m[0]) / wide, (up + hits.half_m[1]) / high
    across, rise = (x - np.floor(x) - 0.5) * wide, (y - np.floor(y) - 0.5) * high
    from_edge = np.minimum(wide / 2 - np.abs(across), high / 2 - np.abs(rise))
    seam = coverage(from_edge - 0.004, foot) * np.clip(0.012 / np.maximum(foot, 1e-4), 0.25, 1)
    panel = coverage(np.abs(from_edge - 0.06) - 0.006, foot) * np.clip(0.012 / np.maximum(foot, 1e-4), 0, 1) * panelled
    grain = noise.blended(noise.fractal(), along * 40 + seed * 90, up * 6)
    drawer = high < wide
    side = np.where(np.floor(x) % 2 == 0, 1, -1) * np.where(columns > 1, 1, np.where(seed < 0.5, 1, -1))
    grip_x = np.where(drawer, 0, side * (wide / 2 - 0.06))
    grip_y = np.where(drawer, 0.25 * high, 0.0)
    bar = np.maximum(
        np.abs(across - grip_x) - np.where(drawer, 0.09, 0.012), np.abs(rise - grip_y) - np.where(drawer, 0.012, 0.09)
    )
    knob = np.hypot(across - grip_x, rise - grip_y) - 0.022
    handle = np.where(grip < 0.5, coverage(bar, foot), np.where(grip < 1.5, coverage(knob, foot), 0)) * front
    dark = np.where(front, np.maximum(seam * 0.7, panel * 0.3), 0)
    albedo = hits.color * (1 + 0.05 * grain) * (1 - dark)
    return _surface(mix(albedo, hits.color2, handle), gloss + 0.1 * handle)


def _metal(hits: Hits) -> Surface:
    """Brushed steel, chrome, or glazed china; extra[0]: gloss."""
    along, up = _plane(hits)
    brushed = noise.blended(noise.fractal(), along * 8, up * 120) * _fade(0.02, hits)
    return _surface(hits.color * (1 + 0.06 * brushed), hits.extra[0])


FINISHES: dict[Material, Callable[[Hits], Surface]] = {
    Material.PLAIN: TEXTURES[Material.PLAIN],
    Material.LEAF: TEXTURES[Material.LEAF],
    Material.GLOW: TEXTURES[Material.GLOW],
    Material.WOOD: _wood,
    Material.FABRIC: _fabric,
    Material.BOOKS: _books,
    Material.PICTURE: _picture,
    Material.SCREEN: _screen,
    Material.PANE: _pane,
    Material.TILES: _tiles,
    Material.CARPET: _carpet,
    Material.WALL: _wall,
    Material.FRONTS: _fronts,
    Material.FOLDS: _folds,
    Material.METAL: _metal,
}
