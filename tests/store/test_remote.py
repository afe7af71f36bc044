"""A store behind a URL gives what a local copy gives, for the fewest requests, over bad lines and from bad servers."""

import json
import pickle
import re
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from range_server import Server
from tiny_stores import folder_bytes, make_spec, make_store

from pipeline.cli.main import main
from pipeline.common.fileio import sha256_bytes
from pipeline.errors import DamagedStoreError
from pipeline.store import open_store
from pipeline.store.remote import ranges, transport
from pipeline.store.remote.remote import CACHE_VARIABLE, RemoteFiles, StoreChangedError, cache_folder
from pipeline.store.tools.verify import verify_store
from pipeline.store.write.writer import StoreWriter, encode_sample

pytest.importorskip("aiohttp")
fsspec = pytest.importorskip("fsspec")
BUILT = {}
BIG_PX, BIG_SAMPLES, BIG_SHARD = (64, 96), 64, 32


@pytest.fixture(autouse=True)
def quick_and_apart(monkeypatch, tmp_path):
    """Short waits, and a cache of each test's own."""
    monkeypatch.setattr(transport, "PAUSE_S", 0.002)
    monkeypatch.setattr(ranges, "SILENCE_S", 0.3)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server(tmp_path):
    (tmp_path / "web").mkdir()
    server = Server(tmp_path / "web")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """A store of two shards of 32 samples, about 10 KB each."""
    path = tmp_path_factory.mktemp("big") / "big.zarr"
    spec, ids = make_spec(samples=BIG_SAMPLES, samples_per_shard=BIG_SHARD, view_size_px=BIG_PX)
    random = np.random.default_rng(0)
    with StoreWriter(path, spec, ids) as writer:
        for shard in writer.todo:
            samples = []
            for number in spec.shard_samples(shard):
                encoded = encode_sample(spec, random.uniform(1, 40, BIG_PX).astype(np.float32), None)
                encoded.row.update(image_sha256=f"{number:064x}", image_size_px=[64, 96])
                samples.append(encoded)
            writer.write_shard(shard, samples)
        writer.finish()
    return path


@pytest.fixture(scope="module", autouse=True)
def built(tmp_path_factory):
    """Tiny stores by kind, each written once."""
    root = tmp_path_factory.mktemp("built")
    BUILT.update({kind: make_store(root / f"{kind}.zarr", kind) for kind in ("gaussian", "sparse", "dense")})


def copy_store(path, kind="gaussian"):
    shutil.copytree(BUILT[kind], path)
    return path


def same(one, two):
    return np.array_equal(one, two, equal_nan=True)


# --- what it costs -------------------------------------------------------------------------------------------------


def test_one_sample_of_a_large_store_costs_its_own_bytes_and_seven_requests(server, big):
    shutil.copytree(big, server.root / "big.zarr")
    shard_bytes = (big / "depth/c/0/0/0").stat().st_size
    store = open_store(server.url("big.zarr"))
    assert sorted(server.asked) == [
        f"big.zarr/{name}" for name in ("MANIFEST.json", "dpm/bin_edges/c/0", "sample/id/c/0/0", "zarr.json")
    ]
    opening_bytes = server.sent_bytes
    assert opening_bytes < 16_000
    server.forget()
    there = store.depth_m("a/040")
    # The index, and whether the manifest is still the same; the chunk
    assert sorted(server.asked) == ["big.zarr/MANIFEST.json", *["big.zarr/depth/c/1/0/0"] * 2]
    assert server.sent_bytes < 1.2 * shard_bytes / BIG_SHARD + 600
    assert same(there, open_store(big).depth_m("a/040"))
    server.forget()
    store.depth_m("a/041")
    assert len(server.asked) == 1


@pytest.mark.parametrize("kind", ["gaussian", "sparse", "dense"])
def test_a_second_epoch_makes_no_request_and_opening_again_asks_of_each_shard_only_its_version(server, kind):
    path = copy_store(server.root / "s.zarr", kind)
    store, local = open_store(server.url("s.zarr")), open_store(path)
    for epoch in range(2):
        for number in range(len(store)):
            assert same(store.depth_m(number), local.depth_m(number))
            assert same(store.dpm(number), local.dpm(number))
        assert store.rows("image_sha256").tobytes() == local.rows("image_sha256").tobytes()
        if epoch:
            assert server.asked == []
        server.forget()
    again = open_store(server.url("s.zarr"))
    for number in range(len(again)):
        assert same(again.dpm(number), local.dpm(number))
    shards = {f"s.zarr/{array.file(n)}" for array in again.layout.sharded() for n in range(again.spec.shards)}
    assert {path for path in server.asked if "MANIFEST" not in path} <= shards
    assert len(server.asked) == len(set(server.asked) & shards) * 2 + 1
    assert server.sent_bytes < 100 + 2 * len(server.asked) + (path / "MANIFEST.json").stat().st_size


def test_the_chunks_of_one_sparse_map_come_in_one_request(server):
    copy_store(server.root / "s.zarr", "sparse")
    store = open_store(server.url("s.zarr"))
    store.sparse_dpm(0)
    server.forget()
    store.sparse_dpm(1)
    assert [path.split("/")[2] for path in server.asked] == ["gap", "weight", "tail"]


def test_whole_shards_are_compared_with_the_manifest_where_that_is_asked_for(server):
    path = copy_store(server.root / "s.zarr")
    one, two = path / "depth/c/0/0/0", path / "depth/c/1/0/0"
    data = one.read_bytes(), two.read_bytes()
    store = open_store(server.url("s.zarr"), check_shards=True)
    store.depth_m(0)
    store.depth_m(1)
    assert server.asked.count("s.zarr/depth/c/0/0/0") == 1
    two.write_bytes(data[0][: len(data[1])].ljust(len(data[1]), b"x"))
    with pytest.raises(DamagedStoreError, match=r"sample 3 .*sha256 differs from the manifest"):
        store.depth_m(3)


# --- the cache -----------------------------------------------------------------------------------------------------


def test_what_is_kept_of_a_store_is_not_taken_for_a_changed_one(server):
    copy_store(server.root / "s.zarr")
    old = open_store(server.url("s.zarr")).depth_m(0)
    shutil.rmtree(server.root / "s.zarr")
    make_store(server.root / "s.zarr", max_rel_error=0.05)
    new = open_store(server.url("s.zarr"))
    assert new.spec.max_rel_error == 0.05
    assert not same(new.depth_m(0), old)
    assert len(list(cache_folder().iterdir())) == 2


@pytest.mark.parametrize("harm", ["flip", "cut", "delete"])
def test_a_damaged_cache_is_fetched_anew(server, harm):
    path = copy_store(server.root / "s.zarr", "sparse")
    whole = [open_store(server.url("s.zarr")).dpm(number) for number in range(7)]
    files = [file for file in cache_folder().rglob("*") if file.is_file()]
    assert files
    assert not [file for file in files if file.name.startswith(".")]
    for file in files:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data[:-3] if harm == "cut" else data)
        if harm == "delete":
            file.unlink()
    again = open_store(server.url("s.zarr"))
    for number in range(7):
        assert same(again.dpm(number), whole[number])
    assert verify_store(path) == []


def test_damaged_bytes_from_the_server_are_told_and_not_kept(server):
    path = copy_store(server.root / "s.zarr")
    shard = path / "depth/c/1/0/0"
    sound = shard.read_bytes()
    shard.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    store = open_store(server.url("s.zarr"))
    with pytest.raises(DamagedStoreError, match=r"s.zarr/depth/c/1/0/0, sample 5 \(a/005\): .*checksum"):
        store.depth_m(5)
    shard.write_bytes(sound)
    assert same(store.depth_m(5), open_store(path).depth_m(5))


def test_the_cache_lies_where_it_is_asked_for(server, tmp_path, monkeypatch):
    copy_store(server.root / "s.zarr")
    open_store(server.url("s.zarr"), cache=tmp_path / "chosen")
    (kept,) = (tmp_path / "chosen").iterdir()
    assert kept.name.startswith("s.zarr-")
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "tiekd-pipeline"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "tiekd-pipeline"
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"store cache .*choose a writable folder with `store_cache`"):
        open_store(server.url("s.zarr"), cache=tmp_path / "file")


def test_a_cache_that_cannot_be_written_any_more_costs_requests_and_no_reading(server, monkeypatch):
    path = copy_store(server.root / "s.zarr")
    store = open_store(server.url("s.zarr"))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkstemp", full)
    with pytest.warns(UserWarning, match=r"No space left on device; parts .* are fetched again"):
        assert same(store.depth_m(0), open_store(path).depth_m(0))


# --- bad lines -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["drop", "stall", "cut", 500, 503, 429])
@pytest.mark.parametrize("file", ["MANIFEST.json", "sample/id", "depth/c/0"])
def test_a_failure_that_passes_is_tried_again_and_nothing_is_noticed(server, kind, file):
    path = copy_store(server.root / "s.zarr")
    server.trouble = {file: (kind, 1 if kind == "stall" else 3)}
    assert same(open_store(server.url("s.zarr")).depth_m(0), open_store(path).depth_m(0))
    assert server.trouble[file][1] == 0


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("drop", "ServerDisconnected|ClientOSError|ConnectionReset"),
        ("cut", "ClientPayloadError|ends after"),
        (500, "HTTP 500"),
        ("stall", "Timeout"),
    ],
)
def test_a_failure_that_stays_is_one_message_with_address_reason_and_attempts(server, kind, what):
    copy_store(server.root / "s.zarr")
    store = open_store(server.url("s.zarr"))
    server.trouble = {"depth/c/1": (kind, 99)}
    server.forget()
    with pytest.raises(ConnectionError) as caught:
        store.depth_m(4)
    assert re.search(rf"{re.escape(server.url('s.zarr'))}: depth/c/1/0/0: .*({what})", str(caught.value))
    assert "tried 4 times. Check the connection and the server, then run the same command again" in str(caught.value)
    shards = [path for path in server.asked if "MANIFEST" not in path]
    assert len(shards) == (8 if kind == "drop" else 4)  # aiohttp repeats by itself what a kept connection lost
    store.depth_m(0)


def test_a_server_that_is_not_there_is_told():
    done = CliRunner().invoke(main, ["store", "info", "http://127.0.0.1:9/s.zarr"])
    assert done.exit_code == 1
    assert re.search(
        r"^Error: http://127.0.0.1:9/s.zarr: MANIFEST.json: Client\w+ .*tried 4 times", done.output, re.MULTILINE
    )


def test_a_missing_file_is_damage_and_is_asked_for_once(server):
    path = copy_store(server.root / "s.zarr")
    (path / "depth/c/1/0/0").unlink()
    store = open_store(server.url("s.zarr"))
    server.forget()
    with pytest.raises(
        DamagedStoreError, match=r"s.zarr/depth/c/1/0/0 is missing on the server; upload the whole store"
    ):
        store.depth_m(4)
    assert server.asked.count("s.zarr/depth/c/1/0/0") == 1
    with pytest.raises(ValueError, match=r"none.zarr is not a complete store: MANIFEST.json is missing"):
        open_store(server.url("none.zarr"))


def test_a_refusal_is_told_at_once_with_what_to_look_at(server):
    copy_store(server.root / "s.zarr")
    server.trouble = {"zarr.json": (403, 1)}
    with pytest.raises(PermissionError, match=r"s.zarr/zarr.json: access denied \(HTTP 403\); .*credentials"):
        open_store(server.url("s.zarr"))


def test_a_shard_that_ends_early_is_told_with_its_bytes(server):
    path = copy_store(server.root / "s.zarr")
    shard = path / "depth/c/0/0/0"
    shard.write_bytes(shard.read_bytes()[:-40])
    store = open_store(server.url("s.zarr"))
    with pytest.raises(DamagedStoreError, match=r"depth/c/0/0/0 has \d+ bytes on the server, the manifest lists \d+"):
        store.depth_m(2)


class Plain(SimpleHTTPRequestHandler):
    """Python's own server: no ranges."""

    def log_message(self, *_):
        return None

    def do_GET(self):
        self.server.asked.append(self.path)
        super().do_GET()


def test_a_server_without_ranges_costs_each_shard_once(tmp_path):
    path = copy_store(tmp_path / "s.zarr", "sparse")
    server = Server(tmp_path, partial(Plain, directory=str(tmp_path)))
    store, local = open_store(server.url("s.zarr")), open_store(path)
    for number in range(7):
        assert same(store.dpm(number), local.dpm(number))
    shards = [file for file in server.asked if "/dpm/gap/c/" in file]
    assert len(shards) == 3 + 1  # one request found out that it sends no ranges
    server.forget()
    again = pickle.loads(pickle.dumps(store))
    for number in range(7):
        assert same(again.dpm(number), local.dpm(number))
    assert server.asked == []
    server.shutdown()
    server.server_close()


# --- hostile stores ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("file:///etc/store.zarr", "expected one of http, https, s3, gs, az, memory; give a local path without"),
        ("ftp://host/s.zarr", "protocol 'ftp': expected one of http, https, s3"),
        ("simplecache::http://host/s.zarr", "protocol 'simplecache::http'"),
        ("memory://a::file:///etc", "expected a URL"),
        ("http://host/a/../s.zarr", "expected a URL without"),
        ("http://host/%2E%2E/s.zarr", "expected a URL without"),
        ("https://host/s.zarr?token=1", "a signed URL covers one file"),
        ("http:///s.zarr", "expected http://HOST_OR_BUCKET/PATH"),
        ("s3://", "expected s3://HOST_OR_BUCKET/PATH"),
    ],
)
def test_an_address_that_is_none_of_a_store_is_refused_before_any_request(url, match):
    with pytest.raises(ValueError, match=match):
        open_store(url)


def test_a_password_in_an_address_is_in_no_message_and_no_name(server):
    copy_store(server.root / "s.zarr")
    url = server.url("s.zarr").replace("://", "://me:secret@")
    store = open_store(url)
    assert store.name == server.url("s.zarr").replace("://", "://***@")
    server.trouble = {"depth": (500, 9)}
    with pytest.raises(ConnectionError) as caught:
        store.depth_m(0)
    assert "secret" not in str(caught.value)
    assert "secret" not in "".join(str(file) for file in cache_folder().rglob("*"))


@pytest.mark.parametrize("target", ["file:///etc/passwd", "/loop", "ftp://127.0.0.1/x"])
def test_a_redirect_leads_nowhere_but_to_http_and_not_for_ever(server, target):
    copy_store(server.root / "s.zarr")
    server.trouble = {"MANIFEST": (f"to:{target}", 99), "loop": ("to:/loop", 99)}
    with pytest.raises((ConnectionError, PermissionError, ValueError), match=re.escape(server.url("s.zarr"))):
        open_store(server.url("s.zarr"))
    assert len(server.asked) <= 4 * (ranges.MAX_REDIRECTS + 1)


def test_a_redirect_to_where_the_store_lies_is_followed(server):
    path = copy_store(server.root / "s.zarr")
    server.trouble = {"there.zarr/MANIFEST": (f"to:{server.url('s.zarr')}/MANIFEST.json", 1)}
    shutil.copytree(path, server.root / "there.zarr")
    assert len(open_store(server.url("there.zarr"))) == 7


def test_files_larger_than_the_format_has_are_not_read(server):
    path = copy_store(server.root / "s.zarr")
    (path / "zarr.json").write_bytes((path / "zarr.json").read_bytes() + b" " * 10_000_000)
    with pytest.raises(DamagedStoreError, match=r"zarr.json is longer than the manifest lists"):
        open_store(server.url("s.zarr"))
    assert server.sent_bytes < 20_000
    manifest = json.loads((path / "MANIFEST.json").read_text())
    manifest["files"]["zarr.json"][0] = 2**40
    (path / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(DamagedStoreError, match=r"zarr.json: 1099511627776 bytes, expected at most 1048576"):
        open_store(server.url("s.zarr"))


@pytest.mark.parametrize("name", ["../../x/zarr.json", "a?b/zarr.json", "%2e%2e/zarr.json", "a b/zarr.json"])
def test_a_manifest_that_leads_elsewhere_is_not_followed(server, name):
    path = copy_store(server.root / "s.zarr")
    manifest = json.loads((path / "MANIFEST.json").read_text())
    manifest["files"][name] = [1, "0" * 64]
    (path / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"leaves the store|is not a path of the store format"):
        open_store(server.url("s.zarr"))
    assert server.asked == ["s.zarr/MANIFEST.json"]


def test_metadata_of_a_foreign_writer_is_fetched_where_the_roots_copy_is_not_its_bytes(server):
    path = copy_store(server.root / "s.zarr")

    manifest = json.loads((path / "MANIFEST.json").read_text())
    for node in path.rglob("zarr.json"):
        data = json.dumps(json.loads(node.read_text())).encode()
        node.write_bytes(data)
        manifest["files"][node.relative_to(path).as_posix()] = [len(data), sha256_bytes(data)]
    (path / "MANIFEST.json").write_text(json.dumps(manifest))
    assert same(open_store(server.url("s.zarr")).depth_m(0), open_store(path).depth_m(0))
    assert sum(name.endswith("zarr.json") for name in server.asked) == len(list(path.rglob("zarr.json")))


# --- workers -------------------------------------------------------------------------------------------------------


def read_in_worker(store, number):
    return store.dpm(number)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_store_behind_a_url_is_read_the_same_in_worker_processes(server, start):
    path = copy_store(server.root / "s.zarr", "sparse")
    store, local = open_store(server.url("s.zarr")), open_store(path)
    store.dpm(0)  # a loop runs in this process before the others start
    with ProcessPoolExecutor(2, mp_context=get_context(start)) as pool:
        for number, there in enumerate(pool.map(partial(read_in_worker, store), range(7))):
            assert same(there, local.dpm(number))
    assert same(store.dpm(6), local.dpm(6))
    assert not list(cache_folder().rglob(".*"))


def test_threads_may_share_a_store_behind_a_url(server):
    path = copy_store(server.root / "s.zarr", "sparse")
    store, local = open_store(server.url("s.zarr")), open_store(path)
    with ThreadPoolExecutor(8) as pool:
        for number, there in enumerate(pool.map(store.dpm, [*range(7)] * 4)):
            assert same(there, local.dpm(number % 7))


# --- the commands --------------------------------------------------------------------------------------------------


def train_from_both(tmp_path, local_store, url, workers=0):
    """Train from a copy and from a URL, and see that both come to the same bytes."""
    common = ["train-student", "--source", f"scenes:{tmp_path / 'scenes'}", "--split", "train", "--student", "lean"]
    common += ["--epochs", "2", "--batch-size", "2", "--workers", str(workers)]
    for store, out in ((local_store, "local"), (url, "remote")):
        more = ["--store", store, "--out", tmp_path / out]
        more += ["--store-cache", tmp_path / "kept"] if out == "remote" else []
        done = CliRunner().invoke(main, [str(part) for part in common + more])
        assert done.exit_code == 0, done.output
    local, remote = folder_bytes(tmp_path / "local"), folder_bytes(tmp_path / "remote")
    for name in ("student.safetensors", "steps.csv", "config.json"):
        assert remote[name] == local[name], name
    assert list((tmp_path / "kept").glob("teacher.zarr-*"))


@pytest.mark.parametrize("workers", [0, 2])
def test_training_from_a_url_comes_to_the_weights_of_training_from_a_copy(tmp_path, server, teacher_store, workers):
    shutil.copytree(teacher_store, server.root / "teacher.zarr")
    train_from_both(tmp_path, teacher_store, server.url("teacher.zarr"), workers)
    asked = [path for path in server.asked if "/depth/c/" in path]
    # Six samples in two shards: once each, however many epochs; two workers may both ask for an index.
    assert len(asked) <= 6 + 2 * max(1, workers)


def test_info_and_evaluate_take_a_url(tmp_path, server, teacher_store):
    shutil.copytree(teacher_store, server.root / "teacher.zarr")
    url = server.url("teacher.zarr")
    copy_store(server.root / "s.zarr")
    info = CliRunner().invoke(main, ["store", "info", server.url("s.zarr")])
    assert "tiny (python)" in info.output, info.output
    arguments = ["evaluate-teacher", url, "--source", f"scenes:{tmp_path / 'scenes'}", "--split", "test"]
    done = CliRunner().invoke(main, [*arguments, "--protocol", "plain", "--out", str(tmp_path / "t.json")])
    assert done.exit_code == 0, done.output


def harm(file):
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)


def test_verify_of_a_url_fetches_everything_anew_and_names_the_damage(server):
    path = copy_store(server.root / "s.zarr", "sparse")
    url = server.url("s.zarr")
    store = open_store(url)
    for number in range(7):
        store.dpm(number)
    server.forget()
    assert verify_store(url) == []
    assert {f"s.zarr/{name}" for name in store.manifest} | {"s.zarr/MANIFEST.json"} == set(server.asked)
    assert len(server.asked) == len(set(server.asked))
    harm(path / "depth/c/1/0/0")
    (damage,) = verify_store(url)
    assert damage.file == "depth/c/1/0/0"
    assert damage.samples == ["a/003", "a/004", "a/005"]
    harm(path / "dpm/tail/zarr.json")
    with pytest.raises(DamagedStoreError, match=r"tail/zarr.json does not match its sha256 in the manifest"):
        verify_store(url)
    assert not list(cache_folder().glob(".anew-*"))


# --- other protocols -----------------------------------------------------------------------------------------------


def test_a_store_in_fsspecs_memory_is_read(tmp_path):
    path = copy_store(tmp_path / "s.zarr", "sparse")
    memory = fsspec.filesystem("memory")
    for name, data in folder_bytes(path).items():
        memory.pipe_file(f"/bucket/s.zarr/{name}", data)
    store = open_store("memory://bucket/s.zarr/")
    assert store.name == "memory://bucket/s.zarr"
    assert same(store.dpm(3), open_store(path).dpm(3))
    assert verify_store("memory://bucket/s.zarr") == []
    memory.rm("/bucket/s.zarr/depth/c/2/0/0")
    with pytest.raises(DamagedStoreError, match="is missing on the server"):
        store.depth_m(6)


def test_an_upload_is_no_store_until_its_manifest_is_there_which_may_come_last(tmp_path):
    path, memory = copy_store(tmp_path / "s.zarr", "sparse"), fsspec.filesystem("memory")
    for name, data in folder_bytes(path).items():
        if name != "MANIFEST.json":
            memory.pipe_file(f"/bucket/late.zarr/{name}", data)
    with pytest.raises(ValueError, match=r"late.zarr is not a complete store: MANIFEST.json is missing"):
        open_store("memory://bucket/late.zarr")
    memory.pipe_file("/bucket/late.zarr/MANIFEST.json", (path / "MANIFEST.json").read_bytes())
    assert same(open_store("memory://bucket/late.zarr").dpm(6), open_store(path).dpm(6))


def test_a_package_that_is_missing_is_told_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ImportError, match=r"s3://bucket/s.zarr needs .*pip install 'tiekd-pipeline\[s3\]'"):
        open_store("s3://bucket/s.zarr")


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """An S3 on this machine, and a client."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    import boto3

    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    yield client
    server.stop()


@pytest.mark.slow
def test_a_store_in_s3_is_read_and_what_is_missing_there_is_told(bucket, tmp_path):
    path = copy_store(tmp_path / "s.zarr", "sparse")
    for name, data in folder_bytes(path).items():
        bucket.put_object(Bucket="bucket", Key=f"to/s.zarr/{name}", Body=data)
    store, local = open_store("s3://bucket/to/s.zarr"), open_store(path)
    for number in range(7):
        assert same(store.dpm(number), local.dpm(number))
    assert verify_store("s3://bucket/to/s.zarr") == []
    bucket.delete_object(Bucket="bucket", Key="to/s.zarr/depth/c/2/0/0")
    with pytest.raises(DamagedStoreError, match="depth/c/2/0/0 is missing on the server"):
        store.depth_m(6)
    with pytest.raises(ValueError, match=r"s3://bucket/none.zarr is not a complete store"):
        open_store("s3://bucket/none.zarr")
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        assert same(pool.submit(store.depth_m, 2).result(), local.depth_m(2))


@pytest.mark.slow
def test_training_from_s3_comes_to_the_weights_of_training_from_a_copy(tmp_path, bucket, teacher_store):
    for name, data in folder_bytes(teacher_store).items():
        bucket.put_object(Bucket="bucket", Key=f"teacher.zarr/{name}", Body=data)
    train_from_both(tmp_path, teacher_store, "s3://bucket/teacher.zarr")


def test_a_url_as_files_can_be_sent_to_a_worker_without_its_connections(server):
    copy_store(server.root / "s.zarr")
    files = RemoteFiles(server.url("s.zarr"))
    assert files.remote._made is not None
    assert pickle.loads(pickle.dumps(files)).remote._made is None


@pytest.mark.slow
def test_an_object_in_s3_that_changes_between_two_reads_is_one_error_and_is_not_taken_from_the_cache(bucket, tmp_path):
    path = copy_store(tmp_path / "s.zarr")

    def put(name, data):
        bucket.put_object(Bucket="bucket", Key=f"s.zarr/{name}", Body=data)

    for name, data in folder_bytes(path).items():
        put(name, data)
    shard, sound = "depth/c/1/0/0", (path / "depth/c/1/0/0").read_bytes()
    store = open_store("s3://bucket/s.zarr")
    store.depth_m(3)
    put(shard, sound[:-1] + bytes([sound[-1] ^ 1]))
    with pytest.raises(StoreChangedError, match=rf"s3://bucket/s.zarr: {shard} changed on the server"):
        store.depth_m(5)
    with pytest.raises(DamagedStoreError, match="checksum"):
        open_store("s3://bucket/s.zarr").depth_m(5)
    put(shard, sound)
    for number in (3, 5):
        assert same(open_store("s3://bucket/s.zarr").depth_m(number), open_store(path).depth_m(number))
