"""Textures of street solids: paint, glass, bricks, windows, leaves, signs.

Each texture gets the samples that see its material and returns their surface. Patterns fade out where they are finer
than a pixel.

Shape legend: n samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from . import noise
from .shapes import Material
from .surfaces import Hits, Surface, coverage, mix

if TYPE_CHECKING:
    from collections.abc import Callable

    from .camera import F32

GLASS = np.array([0.016, 0.02, 0.024], dtype=np.float32)[:, None]


def _along(hits: Hits) -> F32:
    """Return metres along the wall that each sample is on."""
    return np.asarray(np.where(np.abs(hits.face) == 1, hits.metres[2], hits.metres[0]))


def _plain(hits: Hits) -> Surface:
    grain = noise.nearest(noise.fractal(), (hits.point_m[0] + hits.point_m[2]) * 23, hits.point_m[1] * 23)
    albedo = hits.color * (1 + (0.05 + 0.25 * hits.extra[0] * (hits.extra[1] > 0)) * grain)
    return Surface(albedo, np.full(grain.shape, 0.03, np.float32), np.zeros_like(grain))


def _paint(hits: Hits) -> Surface:
    _, y, z = hits.metres
    axle, wheel, drop, _ = hits.extra[:4]
    albedo = hits.color.copy()
    gloss = np.full(y.shape, 0.05, np.float32)
    glow = np.zeros(y.shape, np.float32)
    side = np.abs(hits.face) == 1
    low = -hits.half_m[1]
    # Wheel arches are slightly wider than the wheels; sills and bumpers are a dark strip below.
    hub = low + drop
    arch = np.hypot(np.abs(z) - axle, y - hub) - 1.18 * wheel
    dark = np.where(side & (axle > 0), coverage(arch, hits.footprint_m), 0)
    dark = np.maximum(dark, 0.85 * coverage(y - low - 0.12, hits.footprint_m))
    # Door seams and a crease.
    seam = np.minimum(np.abs(z - 0.12 * hits.half_m[2]), np.abs(z + 0.36 * hits.half_m[2])) - 0.008
    dark = np.maximum(dark, np.where(side & (axle > 0), 0.6 * coverage(seam, hits.footprint_m), 0))
    albedo = mix(albedo, 0.012, dark)
    gloss *= 1 - dark
    # Lamps and number plates.
    x, tall = np.abs(hits.local[0]), hits.local[1]
    for face, lamp, strength in ((3, (0.85, 0.85, 0.8), 0.35), (-3, (0.62, 0.02, 0.015), 0.25)):
        here = hits.face == face
        lamps = here & (x > 0.6) & (x < 0.94) & (tall > 0.3) & (tall < 0.72)
        plate = here & (x < 0.3) & (np.abs(tall + 0.2) < 0.17)
        grille = here & (face > 0) & (x < 0.52) & (tall > 0.22) & (tall < 0.66)
        for i in range(3):
            albedo[i] = np.where(lamps, lamp[i], np.where(plate, 0.62, np.where(grille, 0.015, albedo[i])))
        glow = np.where(lamps, np.float32(strength), glow)
    _round_off(hits, 0.22)
    return Surface(albedo, gloss, glow)


def _round_off(hits: Hits, amount: float) -> None:
    """Bend the normals of flat panels towards the edges, as on pressed steel."""
    outward = hits.point_m - (hits.point_m - hits.normal)  # rounds; `.copy()` would change rendered bytes
    outward[1] += amount * hits.local[1]
    outward[0] += amount * 0.5 * hits.local[0] * np.abs(hits.normal[2])
    hits.normal[:] = outward / np.sqrt((outward * outward).sum(axis=0))


def _cabin(hits: Hits) -> Surface:
    """Car glass between painted pillars. extra[0]: 0 car, 1 van (no rear glass), 2 bus."""
    x, y, z = hits.local
    style = hits.extra[0]
    side, ends = np.abs(hits.face) == 1, np.abs(hits.face) == 3
    span_m = hits.half_m
    rim = np.float32(0.07)
    top_rim = np.where(style == 2, np.float32(0.5), rim)
    vertical = np.minimum((1 - y) * span_m[1] - top_rim, (1 + y) * span_m[1] - np.where(style == 2, 0.25, 0.02))
    # The sides lean inwards and pillars follow, so measure along the narrowed width.
    lean = (1 + y) / 2
    end_gap = (1 - np.abs(z) - 0.3 * lean * (style < 2)) * span_m[2] - rim
    post = np.abs(z + 0.12) * span_m[2] - 0.05
    bay = np.abs((z * span_m[2]) % 1.5 - 0.75) * -1 + 0.71
    post = np.where(style == 2, bay, np.where(style == 1, (z - 0.5) * span_m[2], post))
    side_glass = np.minimum(np.minimum(vertical, end_gap), post)
    wide_gap = (1 - np.abs(x) - 0.2 * lean * (style < 2)) * span_m[0] - rim
    end_glass = np.where((style == 1) & (hits.face < 0), -1, np.minimum(vertical, wide_gap))
    inside = np.where(side, side_glass, np.where(ends, end_glass, -1)).astype(np.float32)
    glass = coverage(-inside, hits.footprint_m)
    # A van has rear doors.
    doors = coverage(np.abs(x) * span_m[0] - 0.012, hits.footprint_m) * ((style == 1) & (hits.face < 0) & ends)
    albedo = mix(mix(hits.color, GLASS, glass), GLASS, 0.8 * doors)
    _round_off(hits, 0.15)
    return Surface(albedo, 0.05 + 0.13 * glass, np.zeros_like(glass))


def _wheel(hits: Hits) -> Surface:
    around = np.hypot(hits.local[0], hits.local[2])
    angle = np.arctan2(hits.local[0], hits.local[2])
    hub = (np.abs(hits.local[1]) > 0.9) & (around < 0.66)
    spoke = (np.cos(5 * angle) > -0.35) | (around < 0.25) | (around > 0.56)
    gray = np.where(hub, np.where(spoke, 0.32, 0.03), 0.014).astype(np.float32)
    return Surface(
        np.stack([gray, gray, gray * 1.02]), np.where(hub, 0.08, 0.02).astype(np.float32), np.zeros_like(gray)
    )


def _wall_texture(hits: Hits, along: F32, up: F32) -> F32:
    """Return the gain (n) of brick courses, stains and plaster."""
    stain = noise.blended(noise.smooth(), along * 1.7 + hits.extra[3] * 400, up * 0.6 + hits.extra[3] * 300)
    grain = noise.nearest(noise.fractal(), along * 19, up * 19)
    brick = (hits.extra[3] * 7 % 1) < 0.45
    course = np.floor(up / 0.085)
    tone = noise.cell_hash(np.floor(along / 0.24 + 0.5 * (course % 2)), course, hits.extra[3]) - 0.5
    fine = np.clip(0.05 / np.maximum(hits.footprint_m, 1e-4), 0, 1)
    return 1 + 0.07 * stain + 0.05 * grain * fine + np.where(brick, 0.4, 0.0).astype(np.float32) * fine * tone


def _opening(shop_front: F32, door: F32, fraction: F32, pitch: F32, storey: F32) -> tuple[F32, F32, F32]:
    """Return half width, bottom and top (n) of the window, door or shop front of each bay, in metres."""
    half_window = np.where(shop_front, 0.44, np.where(door, 0.0, 0.5 * fraction)) * pitch
    half_window = np.where(door, np.minimum(0.5, 0.4 * pitch), half_window)
    low = np.where(shop_front, 0.45, np.where(door, -1.0, 0.9))
    high = np.where(shop_front | door, np.minimum(2.55, storey - 0.4), storey - np.float32(0.45))
    return half_window, low, np.where(door, 2.15, high)


def _shop_window(along: F32, rise: F32, room: F32, seed: F32) -> F32:
    """Return the colour (3, n) of a shop window: lit goods on shelves, dark above."""
    goods = noise.cell_hash(np.floor(along / 0.45), np.floor(rise / 0.5), seed)
    shelf = (0.03 + 0.3 * goods * goods * (rise < 1.9)) * np.stack([0.6 + 0.4 * goods, 0.75 - 0.2 * goods, 0.6 * room])
    return np.asarray(shelf.astype(np.float32))


def _facade(hits: Hits) -> Surface:
    """Storeys of windows with frames and sills, doors or shop fronts below, a plinth and string courses."""
    storey, bay, fraction, seed, shop = hits.extra[:5]
    foot = hits.footprint_m
    along, up = _along(hits), hits.metres[1] + hits.half_m[1]
    width = np.where(np.abs(hits.face) == 1, hits.half_m[2], hits.half_m[0])
    wall = np.abs(hits.face) != 2
    bays = np.maximum(1, np.round(2 * width / bay))
    pitch = 2 * width / bays
    column = np.floor((along + width) / pitch)
    across = along + width - (column + 0.5) * pitch
    floor_no = np.floor(up / storey)
    rise = up - floor_no * storey
    room = noise.cell_hash(column + hits.face * 7, floor_no, seed)
    ground_floor = floor_no == 0
    shop_front = ground_floor & (shop > 0)
    door = ground_floor & ~shop_front & (noise.cell_hash(column + hits.face, floor_no * 0 + 77, seed) < 0.34)
    half_window, low, high = _opening(shop_front, door, fraction, pitch, storey)
    beyond = np.maximum(np.abs(across) - half_window, np.maximum(low - rise, rise - high)).astype(np.float32)
    fits = wall & (up < 2 * hits.half_m[1] - 0.5) & ((floor_no + 1) * storey <= 2 * hits.half_m[1] + 0.3)
    beyond = np.where(fits, beyond, np.float32(9))
    albedo = hits.color * _wall_texture(hits, along, up)
    plinth = coverage(up - 0.5, foot) * (1 - shop_front)
    course = coverage(np.abs(rise - storey + 0.12) - 0.09, foot) * (hits.extra[5] < 0.5)
    sill = (
        coverage(np.maximum(np.abs(across) - half_window - 0.1, np.abs(rise - low + 0.08) - 0.08), foot) * fits * ~door
    )
    albedo = mix(albedo, hits.color2 * np.float32(0.75), np.maximum(0.7 * plinth, np.maximum(course, sill)))
    albedo = mix(albedo, hits.color2, coverage(beyond - 0.09, foot))
    pane = coverage(beyond, foot)
    # Panes show dark rooms, some with curtains, blinds or lights; doors are painted wood.
    curtain = (room > 0.55) & (
        ((rise - low) / (high - low) > 1.75 - room) | (np.abs(across) > half_window * (1.5 - room))
    )
    inside = np.where(curtain, 0.35 * room, 0.012 + 0.02 * room).astype(np.float32)
    inside = np.stack([inside * 1.05, inside, inside * 0.92])
    wood = noise.cell_hash(column, floor_no + 5, seed)
    leaf = 0.03 + 0.14 * np.stack([noise.cell_hash(column + k, floor_no + 5, seed) for k in (1, 2, 3)]) * wood
    inside = np.where(door, leaf, np.where(shop_front, _shop_window(along, rise, room, seed), inside))
    bars = coverage(np.minimum(np.abs(across), np.abs(rise - low - 0.66 * (high - low))) - 0.028, foot) * ~door
    albedo = mix(albedo, mix(inside, hits.color2, bars * (~shop_front)), pane)
    gloss = (
        pane
        * np.where(door, np.float32(0.03), np.where(curtain, np.float32(0.08), np.float32(0.16)))
        * (1 - 0.8 * bars)
    )
    lamp = pane * ((room > 0.18) & (room < 0.23) & ~door)
    glow = (lamp * 6.0).astype(np.float32)
    fascia = shop_front & wall & (rise > 2.65) & (rise < storey - 0.1)
    ones = np.ones_like(column)
    board = 0.02 + 0.32 * np.stack([noise.cell_hash(k * ones, 9 * ones, seed) for k in (1, 2, 3)]) ** 2
    albedo = np.where(fascia, board, albedo).astype(np.float32)
    return Surface(albedo, gloss.astype(np.float32), glow)


def _roof(hits: Hits) -> Surface:
    """Rows of tiles; extra[0] == 0 leaves the gable ends walls."""
    gable = (np.abs(hits.face) == 3) & (hits.extra[0] == 0)
    up, along = hits.metres[1], np.where(np.abs(hits.face) == 1, hits.metres[2], hits.metres[0])
    row = np.floor(up / 0.22)
    fine = np.clip(0.25 / np.maximum(hits.footprint_m, 1e-4), 0, 1)
    tone = noise.cell_hash(np.floor(along / 0.3 + 0.5 * (row % 2)), row, 0.3) - 0.5
    moss = noise.blended(noise.smooth(), along * 2.1 + hits.point_m[0] * 0.3, up * 2.1)
    shade = 1 + fine * (0.35 * tone - 0.25 * (up / 0.22 - row < 0.2)) + 0.1 * moss
    albedo = np.where(gable, hits.color2, hits.color * shade).astype(np.float32)
    return Surface(albedo, np.full(up.shape, 0.02, np.float32), np.zeros_like(up))


def _leaf(hits: Hits) -> Surface:
    """Clumps of leaves: light and dark patches with bent normals, so that a crown does not look like a smooth ball."""
    x, y, z = hits.point_m
    seed = hits.extra[0]
    coarse = noise.blended_in_space(x * 6 + seed * 64, y * 6, z * 6)
    fine = noise.nearest_in_space(x * 15, y * 15 + seed * 64, z * 15)
    sharp = np.clip(0.12 / np.maximum(hits.footprint_m, 1e-4), 0.15, 1)
    gain = np.clip(1 + 0.27 * coarse + 0.36 * sharp * fine, 0.15, 2.4)
    # Crowns are dark inside and below.
    gain = gain * (0.74 + 0.26 * hits.local[1])
    albedo = hits.color * gain
    albedo[0] *= 1 + 0.1 * fine
    bend = 0.45
    hits.normal[0] += bend * fine
    hits.normal[1] += bend * coarse
    hits.normal[2] += bend * noise.nearest_in_space(z * 15, x * 15, y * 15)
    hits.normal[:] /= np.sqrt((hits.normal * hits.normal).sum(axis=0)) + 1e-6
    return Surface(albedo, np.zeros_like(gain), np.zeros_like(gain))


def _bark(hits: Hits) -> Surface:
    angle = np.arctan2(hits.local[0], hits.local[2])
    ridge = noise.nearest(noise.fractal(), angle * 14, hits.metres[1] * 9)
    return Surface(hits.color * (1 + 0.3 * ridge).clip(0.2, 2), np.zeros_like(ridge), np.zeros_like(ridge))


def _sign(hits: Hits) -> Surface:
    """extra[0]: 0 red ring, 1 blue disc, 2 warning triangle, 3 direction board; grey behind."""
    style = hits.extra[0]
    disc = style < 2
    # The local y axis is normal to a disc, but in the plane of a board.
    across = hits.local[0]
    up = np.where(disc, -hits.local[2], hits.local[1])
    front = np.where(disc, hits.local[1] > 0.5, hits.face == -3)
    radius = np.hypot(across, up)
    white = np.stack([np.full(radius.shape, 0.8, np.float32)] * 3)
    ring = mix(hits.color, white, coverage(radius - 0.72, hits.footprint_m * 3))
    ring = np.where((np.abs(up) < 0.34) & (np.abs(np.abs(across) - 0.24) < 0.14), np.float32(0.02), ring)
    blue = np.array([0.012, 0.09, 0.33], np.float32)[:, None]
    arrow = (np.abs(across) < 0.12) & (np.abs(up) < 0.6) | (np.abs(up - 0.35) + np.abs(across) < 0.36) & (up > 0.3)
    order = np.where(arrow, white, blue)
    level = (up + 1) / 2
    edge = np.minimum(level - 0.14, 1 - level - np.abs(across) - 0.12)
    warn = np.where(edge > 0, white, hits.color)
    warn = np.where((np.abs(across) < 0.07) & (level > 0.24) & (level < 0.62), np.float32(0.02), warn)
    text = (
        (np.abs(np.abs(up) - 0.4) < 0.16)
        & (across > -0.7)
        & (noise.cell_hash(np.floor(across * 9), np.floor(up * 1.2), hits.extra[1]) > 0.3)
    )
    text |= np.maximum(np.abs(across), np.abs(up)) > 0.93
    board = np.where(text, white, hits.color)
    albedo = np.where(style == 0, ring, np.where(style == 1, order, np.where(style == 2, warn, board)))
    albedo = np.where(front, albedo, np.float32(0.3)).astype(np.float32)
    return Surface(albedo, np.full(radius.shape, 0.03, np.float32), np.where(front, 0.08, 0).astype(np.float32))


def _glow(hits: Hits) -> Surface:
    return Surface(hits.color, np.full(hits.footprint_m.shape, 0.05, np.float32), hits.extra[0])


TEXTURES: dict[Material, Callable[[Hits], Surface]] = {
    Material.PLAIN: _plain,
    Material.PAINT: _paint,
    Material.CABIN: _cabin,
    Material.WHEEL: _wheel,
    Material.FACADE: _facade,
    Material.ROOF: _roof,
    Material.LEAF: _leaf,
    Material.BARK: _bark,
    Material.SIGN: _sign,
    Material.GLOW: _glow,
}
