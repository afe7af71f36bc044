"""The store commands accept an image cache where they can, and otherwise say what it is."""

import json
import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_stores import folder_bytes

from pipeline.cache.images import cache_images
from pipeline.cli.main import main
from pipeline.common.fileio import sha256_file
from pipeline.errors import DamagedStoreError
from pipeline.store import open_store
from pipeline.store.format.codec import encode_chunk
from pipeline.store.format.layout import MANIFEST
from pipeline.store.format.shard import build_shard
from pipeline.store.images.reader import ImageCache, open_images
from pipeline.store.remote.remote import CACHE_VARIABLE
from pipeline.store.tools.archive import pack_store
from pipeline.store.tools.open_any import open_either
from pipeline.store.tools.verify import verify_store
from pipeline.train.options import TrainOptions
from pipeline.train.run import train_network

SHARD = "rgb/c/1/0/0/0"
INSIDE = ["000003", "000004", "000005"]


@pytest.fixture
def kept(tmp_path, scenes):
    """The images of `scenes`, three a shard."""
    cache_images(scenes, "all", tmp_path / "images.zarr", samples_per_shard=3)
    return tmp_path / "images.zarr"


def run(*arguments, status=0):
    done = CliRunner().invoke(main, ["store", *map(str, arguments)])
    assert done.exit_code == status, done.output
    assert "Traceback" not in done.output
    return done.output


def flip(path, place=-9):
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-10])


def list_anew(root, file):
    """Let the manifest say what a file has become, as somebody hostile would."""
    manifest = json.loads((root / MANIFEST).read_text())
    manifest["files"][file] = [(root / file).stat().st_size, sha256_file(root / file)]
    (root / MANIFEST).write_text(json.dumps(manifest))


# --- info ----------------------------------------------------------------------------------------------------------


def test_info_says_what_kept_images_are_and_what_they_take(kept):
    said = run("info", kept)
    size = sum((kept / "rgb/c" / str(number) / "0/0/0").stat().st_size for number in range(3)) / 8
    assert re.search(r"kind +image cache: .*`images`", said)
    assert re.search(r"source +scenes, 8 images, ids sha256 [0-9a-f]{16}\.\.\.", said)
    assert re.search(r"view +full, 32x64 px", said)
    assert f"an image: {size / 1e3:.1f} KB, {size / (3 * 32 * 64):.0%} of its pixels' bytes" in said
    assert re.search(r"shards +3, of 3 images each", said)
    assert re.search(r"made by +.*pillow \d", said)


def test_either_kind_of_store_is_opened_as_what_it_is(kept, teacher_store):
    assert repr(open_either(kept)) == f"<ImageCache {kept}: 8 x 32x64 px of scenes>"
    assert open_either(teacher_store).spec.depth_space == "metric_m"


# --- verify --------------------------------------------------------------------------------------------------------


def test_verify_reads_all_of_sound_images(kept):
    said = run("verify", kept)
    assert "images.zarr: OK" in said
    assert re.search(r"decode: 8/8 sample", said)


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (flip, "sha256 differs from the manifest"),
        (partial(flip, place=3), "sha256 differs from the manifest"),
        (cut, "bytes, the manifest lists"),
        (lambda path: path.unlink(), "No such file"),
    ],
)
def test_verify_tells_a_damaged_shard_and_its_images_in_one_line(kept, damage, what):
    damage(kept / SHARD)
    (found,) = verify_store(kept)
    assert (found.file, found.samples) == (SHARD, INSIDE)
    said = run("verify", kept, status=1)
    (line,) = (line for line in said.splitlines() if line.startswith(SHARD))
    assert what in line
    assert line.endswith("samples 000003, 000004, 000005")
    assert "1 files are damaged" in said


def test_verify_tells_damaged_rows_and_files_that_do_not_belong(kept):
    flip(kept / "sample/image_size_px/c/0/0")
    (kept / "more").write_text("x")
    assert [(one.file, one.what) for one in verify_store(kept)] == [
        ("more", "does not belong to the store"),
        ("sample/image_size_px/c/0/0", "sha256 differs from the manifest"),
    ]


def test_verify_decodes_what_the_manifest_agrees_with(kept):
    array = open_images(kept).spec.rgb
    data = (kept / array.file(2)).read_bytes()
    (kept / array.file(2)).write_bytes(build_shard(array, [[None], [data[-60:]]]))
    list_anew(kept, array.file(2))
    found = verify_store(kept)
    assert [one.samples for one in found] == [["000006"], ["000007"]]
    assert ["missing" in found[0].what, "checksum" in found[1].what] == [True, True]


def test_verify_decodes_rows_that_no_reader_asks_for(kept, teacher_store):
    for store, file in ((kept, "sample/image_size_px/c/0/0"), (teacher_store, "sample/clipped_share/c/0")):
        flip(store / file)
        list_anew(store, file)
        (found,) = verify_store(store)
        assert found.file == file
        assert "checksum" in found.what


def test_images_without_a_manifest_are_not_finished(kept):
    (kept / MANIFEST).unlink()
    for command in ("verify", "info"):
        said = run(command, kept, status=1)
        assert "images.zarr is not a complete image cache: MANIFEST.json is missing" in said
        assert "pipeline cache-images" in said


def test_unfinished_images_are_told_with_the_command_that_goes_on(kept):
    staging = kept.with_name(".new.zarr.0123456789ab.staging")
    staging.mkdir()
    kept.rename(staging / "store")
    assert "run the same `pipeline cache-images` command again" in run("info", kept.with_name("new.zarr"), status=1)


# --- the other commands --------------------------------------------------------------------------------------------


def test_packed_images_come_back_byte_for_byte(tmp_path, kept):
    run("pack", kept, "--out", tmp_path / "i.pack")
    assert "8 samples" in run("unpack", tmp_path / "i.pack", "--out", tmp_path / "again.zarr")
    assert folder_bytes(tmp_path / "again.zarr") == folder_bytes(kept)


def test_damaged_images_are_not_packed(tmp_path, kept):
    flip(kept / SHARD)
    with pytest.raises(DamagedStoreError, match=SHARD):
        pack_store(kept, tmp_path / "i.pack")
    assert not (tmp_path / "i.pack").exists()


@pytest.mark.parametrize(
    "given",
    [
        ["stats", "IMAGES"],
        ["subset", "IMAGES", "--every", "2", "--out", "OUT"],
        ["merge", "IMAGES", "IMAGES", "--out", "OUT"],
        ["merge", "DEPTH", "IMAGES", "--out", "OUT"],
        ["diff", "IMAGES", "DEPTH"],
        ["diff", "DEPTH", "IMAGES"],
        ["estimate", "--images", "9", "--from", "IMAGES"],
        ["align", "IMAGES", "--source", "folder:x", "--split", "x", "--out", "OUT"],
        ["align", "IMAGES", "--undo", "--out", "OUT"],
        ["verify", "IMAGES", "--against", "python:a:b", "--source", "folder:x", "--split", "x"],
    ],
    ids=" ".join,
)
def test_what_needs_depth_says_that_these_are_images(tmp_path, kept, teacher_store, given):
    places = {"IMAGES": kept, "DEPTH": teacher_store, "OUT": tmp_path / "out.zarr"}
    said = run(*[places.get(word, word) for word in given], status=1)
    assert "images.zarr is an image cache (from `pipeline cache-images`), not a depth store from" in said
    assert ": OK" not in said
    assert not (tmp_path / "out.zarr").exists()


# --- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [flip, cut, lambda path: path.unlink()], ids=["flipped", "cut", "gone"])
def test_training_ends_at_a_damaged_image_and_names_it(tmp_path, scenes, teacher_store, kept, damage):
    damage(kept / SHARD)
    options = TrainOptions(student="lean-small", epochs=1, batch_size=4, rotate_deg=0.0)
    given = {"store": open_store(teacher_store), "images": open_images(kept)}
    with pytest.raises(ValueError, match=rf"images.zarr/{SHARD}, sample \d: .*run `pipeline cache-images` again"):
        train_network(scenes, "all", tmp_path / "run", options, **given)
    assert not (tmp_path / "run").exists()


def test_images_with_an_id_that_is_there_twice_are_refused(kept):
    file = "sample/id/c/0/0"
    twice = [b"000000", b"000000", *(b"%06d" % number for number in range(2, 8))]
    (kept / file).write_bytes(encode_chunk(np.frombuffer(b"".join(twice), np.uint8).reshape(8, 6)))
    list_anew(kept, file)
    with pytest.raises(DamagedStoreError, match="duplicate id '000000'"):
        open_images(kept).numbers(["000001"])


def test_images_behind_a_url_are_described_verified_and_read(tmp_path, kept, monkeypatch):
    pytest.importorskip("aiohttp")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=kept.parent))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/images.zarr"
        assert "image cache" in run("info", url)
        far = open_either(url)
        assert isinstance(far, ImageCache)
        assert np.array_equal(far.image(4), open_images(kept).image(4))
        flip(kept / SHARD)
        assert f"{SHARD}: sha256 differs" in run("verify", url, status=1)
    finally:
        server.shutdown()
        server.server_close()
