"""Describe a store as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...depth.spaces import DEPTH_SPACES, UNITS
from ..format.codec import LogCodec
from ..format.sizes import chunk_bytes
from ..images.reader import ImageCache
from .alignment_summary import summarize
from .extras_info import describe_extras

if TYPE_CHECKING:
    from ..read.store import Store

CARRIED = {"fixed": "other bins", "image": "bins of each image", "pixel": "bins of each pixel"}


def describe(store: Store | ImageCache) -> list[tuple[str, str]]:
    """Return lines of (name, text): the store's content, source and size per sample.

    For a depth store also its teacher, units and errors.
    """
    return _images(store) if isinstance(store, ImageCache) else _depth(store)


def _images(images: ImageCache) -> list[tuple[str, str]]:
    spec = images.spec
    height, width = spec.size_px
    each = sum(chunk_bytes([spec.rgb], images.manifest).values()) / len(images)
    pixels = 3 * height * width
    return [
        ("kind", "image cache: decoded views, bit for bit, for train-student `images`"),
        ("source", _source(spec.source)),
        ("view", f"{spec.view}, {height}x{width} px"),
        ("size", f"{_whole_mb(images)} MB; an image: {each / 1e3:.1f} KB, {each / pixels:.0%} of its pixels' bytes"),
        ("shards", f"{spec.shards}, of {spec.samples_per_shard} images each"),
        ("made by", _producer(spec.producer)),
    ]


def _source(source: dict[str, Any]) -> str:
    """Return a text about the source. A store does not know its split's name, only the hash of the ids."""
    return f"{source['name']}, {source['samples']} images, ids sha256 {source['ids_sha256'][:16]}..."


def _whole_mb(store: Store | ImageCache) -> str:
    return f"{sum(size for size, _ in store.manifest.values()) / 1e6:.1f}"


def _producer(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def unstated(teacher: dict[str, Any]) -> list[str]:
    """Return what the cards of a teacher and its members do not state, such as `weights of my-net`.

    Accepts any card of an untrusted store.
    """
    settings = teacher.get("preprocessing")
    settings = settings if isinstance(settings, dict) else {}
    members = settings.get("members")
    if teacher.get("kind") == "ensemble" and isinstance(members, list):
        cards = [member.get("card") for member in members if isinstance(member, dict)]
        return [name for card in cards if isinstance(card, dict) for name in unstated(card)]
    name = teacher.get("name")
    code = settings.get("python")
    if not isinstance(code, dict):
        missing = [f"code of {name}"] if teacher.get("kind") == "python" else []
        return missing + ([] if teacher.get("weights_sha256") else [f"weights of {name}"])
    missing = [] if code.get("source") else [f"code of {name}"]
    return missing + ([] if teacher.get("weights_sha256") or code.get("weights") else [f"weights of {name}"])


def _weights(teacher: dict[str, Any]) -> str:
    sha256, missing = teacher.get("weights_sha256"), unstated(teacher)
    if teacher.get("kind") == "ensemble":
        return f"sha256 of its members' cards {sha256}" + (f"; not stated: {', '.join(missing)}" if missing else "")
    if sha256:
        return f"sha256 {sha256}"
    return "not stated" if any(name.startswith("weights") for name in missing) else "none"


def _code(teacher: dict[str, Any]) -> list[tuple[str, str]]:
    """Return a line about the code of a `python:` teacher; no line for other teachers."""
    settings = teacher.get("preprocessing")
    made_of = settings.get("python") if isinstance(settings, dict) else None
    source = made_of.get("source") if isinstance(made_of, dict) else None
    if isinstance(source, dict) and source:
        return [("code", ", ".join(f"{name} {str(sha256)[:16]}..." for name, sha256 in source.items()))]
    return [("code", "not stated")] if teacher.get("kind") == "python" else []


def _depth(store: Store) -> list[tuple[str, str]]:
    spec, teacher = store.spec, store.spec.teacher
    height, width = store.layout.size_px
    codec = spec.depth_codec()
    sizes = chunk_bytes(store.layout.sharded(), store.manifest)
    if isinstance(codec, LogCodec):
        codes = f"{codec.bits}-bit logarithmic codes over {codec.lo_m:g}-{codec.hi_m:g} {UNITS[spec.depth_space]}"
    else:
        codes = f"{codec.bits}-bit linear codes over each sample's range"
    unit = " " + UNITS.get(spec.depth_space, "of each sample's range")
    whose = "the teacher's own"
    if spec.carried_from is not None:
        cost = float(store.rows("dpm_carried_kl_nats").mean())
        whose = f"the teacher's, rebinned from {CARRIED[spec.carried_from]} ({cost:.4f} nats)"
    if spec.dpm_kind == "gaussian":
        maps = f"gaussian: a function of depth, sigma {spec.sigma_m:g}{unit}, no bytes"
    elif spec.dpm_kind == "sparse":
        reached = float(store.rows("dpm_kl_nats").mean())
        maps = f"sparse: {whose}, at most {spec.max_dpm_kl:g} nats away, {reached:.4f} reached"
    else:
        maps = f"dense: {whose}, float16"
    error = float(store.rows("max_rel_error").max())
    fraction = {name: float(store.rows(name).mean()) for name in ("clipped_share", "invalid_share")}
    each = f"{sum(sizes.values()) / len(store) / 1e3:.1f} KB"
    if len(sizes) > 1:
        each += f" ({', '.join(f'{name} {size / len(store) / 1e3:.1f}' for name, size in sizes.items())})"
    aligned = []
    if spec.alignment is not None:
        of = f"to {spec.alignment['truth']} by {spec.alignment['fit']}, "
        aligned.append(("aligned", of + summarize(store).describe()))
    return [
        ("teacher", f"{teacher.get('name')} ({teacher.get('kind')}), {teacher.get('precision')}"),
        ("weights", _weights(teacher)),
        *_code(teacher),
        ("licence", teacher.get("licence") or "not stated"),
        *([("licence of the data", spec.extras.data_licence)] if spec.extras.data_licence else []),
        ("numbers", f"{spec.depth_space}: {DEPTH_SPACES[spec.depth_space]}"),
        *aligned,
        ("source", _source(spec.source)),
        (
            "view",
            f"{spec.view}, {spec.view_size_px[0]}x{spec.view_size_px[1]} px; stored at {height}x{width} px",
        ),
        ("depth", f"{codes}; error at most {spec.max_rel_error:.3%}, {error:.4%} reached"),
        ("pixels", f"{fraction['clipped_share']:.3%} clipped, {fraction['invalid_share']:.3%} invalid"),
        ("maps", maps),
        *describe_extras(store),
        ("bins", f"{spec.bin_count} from {spec.bin_edges[0]:g} to {spec.bin_edges[-1]:g}{unit}"),
        ("size", f"{_whole_mb(store)} MB; a sample: {each}; compression level {spec.compression_level}"),
        ("made by", _producer(spec.producer)),
    ]
