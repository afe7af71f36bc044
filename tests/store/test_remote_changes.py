"""A store behind a URL that changes on its server is one error or none of the changed bytes, never a mixture."""

import json
import shutil
import warnings
from concurrent.futures import ProcessPoolExecutor
from itertools import count
from multiprocessing import get_context

import numpy as np
import pytest
from click.testing import CliRunner
from range_server import Server, says_etag, says_modified, says_nothing, says_weak_etag
from tiny_stores import make_store

from pipeline.cli.main import main
from pipeline.common.fileio import pretty_json
from pipeline.errors import DamagedStoreError
from pipeline.store import open_store
from pipeline.store.format.shard import EMPTY, build_shard, parse_index
from pipeline.store.images.reader import open_images
from pipeline.store.remote import ranges, transport
from pipeline.store.remote.addresses import hidden
from pipeline.store.remote.file_version import RangeRequest, Version, version_of_headers
from pipeline.store.remote.range_cache import CACHE_VARIABLE, cache_folder
from pipeline.store.remote.remote import RemoteFiles, StoreChangedError
from pipeline.store.tools.verify import verify_store

pytest.importorskip("aiohttp")
fsspec = pytest.importorskip("fsspec")
SHARD = "depth/c/1/0/0"
SAYS = {"etag": says_etag, "weak": says_weak_etag, "modified": says_modified}


@pytest.fixture(autouse=True)
def quick_and_apart(monkeypatch, tmp_path):
    """Short waits, and a cache of each test's own."""
    monkeypatch.setattr(transport, "PAUSE_S", 0.002)
    monkeypatch.setattr(ranges, "SILENCE_S", 0.3)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@pytest.fixture
def server(tmp_path):
    (tmp_path / "web").mkdir()
    server = Server(tmp_path / "web")
    make_store(server.root / "s.zarr")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def local(tmp_path):
    """The sound store."""
    return open_store(make_store(tmp_path / "local.zarr"))


def swap_samples(store, file):
    """Put the first two samples of a shard into each other's places: every checksum of it fits, and its length."""
    array = next(array for array in open_store(store, check_shards=False).layout.sharded() if array.path in file)
    data = (store / file).read_bytes()
    index = parse_index(array, data[: array.index_bytes], len(data))
    chunks = [None if at == EMPTY else data[int(at) : int(at) + int(size)] for at, size in index]
    chunks[:2] = chunks[1::-1]
    (store / file).write_bytes(build_shard(array, [chunks]))
    return data


def same(one, two):
    return np.array_equal(one, two, equal_nan=True)


def read_all(store):
    return [store.depth_m(number) for number in range(len(store))]


# --- what was kept of a wrong shard ----------------------------------------------------------------------------------


@pytest.fixture(params=[*SAYS, "nothing"])
def mended(request, server, local):
    """A server that had two samples in each other's places while they were read, and has them right now."""
    server.says = SAYS.get(request.param, says_nothing)
    sound = swap_samples(server.root / "s.zarr", SHARD)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrong = read_all(open_store(server.url("s.zarr")))
    assert same(wrong[3], local.depth_m(4))
    (server.root / "s.zarr" / SHARD).write_bytes(sound)
    return server.url("s.zarr")


@pytest.mark.filterwarnings("ignore:.*neither ETag nor Last-Modified")
def test_a_wrong_chunk_that_was_kept_is_not_read_once_the_server_has_the_right_one(mended, local):
    assert all(map(same, read_all(open_store(mended)), read_all(local)))


@pytest.mark.filterwarnings("ignore:.*neither ETag nor Last-Modified")
def test_check_shards_takes_no_kept_range_for_a_part_of_the_manifests_shard(mended, local):
    assert all(map(same, read_all(open_store(mended, check_shards=True)), read_all(local)))


@pytest.mark.filterwarnings("ignore:.*neither ETag nor Last-Modified")
def test_verify_of_a_url_names_and_removes_kept_ranges_that_are_not_the_servers_bytes(mended):
    done = CliRunner().invoke(main, ["store", "verify", mended])
    assert done.exit_code == 1
    assert f"{SHARD}: 2 cached parts in {cache_folder()}" in done.output
    assert "samples a/003, a/004, a/005" in done.output
    assert "1 files in this machine's store cache were wrong and are removed" in done.output
    done = CliRunner().invoke(main, ["store", "verify", mended])
    assert (done.exit_code, done.output.splitlines()[-1]) == (0, f"{mended}: OK")


def test_verify_leaves_kept_ranges_alone_where_the_server_is_wrong(server):
    url = server.url("s.zarr")
    read_all(open_store(url))
    before = sorted(cache_folder().rglob("*-*-*"))
    swap_samples(server.root / "s.zarr", SHARD)
    (damage,) = verify_store(url)
    assert damage.what == "sha256 differs from the manifest"
    assert sorted(cache_folder().rglob("*-*-*")) == before


# --- a store that changes while it is read ---------------------------------------------------------------------------


@pytest.mark.parametrize("says", SAYS)
def test_a_shard_that_changes_between_two_reads_is_one_error_with_both_versions(server, local, says):
    server.says = SAYS[says]
    store = open_store(server.url("s.zarr"))
    assert same(store.depth_m(3), local.depth_m(3))
    swap_samples(server.root / "s.zarr", SHARD)
    with pytest.raises(StoreChangedError, match=rf"s.zarr: {SHARD} changed on the server since .*then .*now .*verify"):
        store.depth_m(4)
    assert same(store.depth_m(0), local.depth_m(0))


@pytest.mark.parametrize("says", SAYS)
def test_a_shard_that_is_first_read_after_the_whole_store_was_replaced_is_one_error(server, says):
    server.says = SAYS[says]
    store = open_store(server.url("s.zarr"))
    store.depth_m(0)
    # Other noise in the same codes, so that shards may be as long as they were
    swap_samples(server.root / "s.zarr", SHARD)
    manifest = server.root / "s.zarr" / "MANIFEST.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"version": 1', b'"version":  1'))
    with pytest.raises(StoreChangedError, match=r"MANIFEST.json changed on the server"):
        store.depth_m(4)


def test_a_shard_of_another_length_than_the_manifests_is_told_at_its_first_range(server):
    store = open_store(server.url("s.zarr"))
    with (server.root / "s.zarr" / SHARD).open("ab") as file:
        file.write(b"more")
    with pytest.raises(DamagedStoreError, match=r"has \d+ bytes on the server, the manifest lists \d+"):
        store.depth_m(3)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_of_one_run_agree_on_the_version_that_the_first_of_them_saw(server, local, start):
    store = open_store(server.url("s.zarr"))
    context = get_context(start)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        assert same(pool.submit(read_in_worker, store, 3).result(), local.depth_m(3))
    swap_samples(server.root / "s.zarr", SHARD)
    with ProcessPoolExecutor(1, mp_context=context) as pool, pytest.raises(StoreChangedError):
        pool.submit(read_in_worker, store, 4).result()


def test_another_run_that_pins_the_mended_shard_leaves_the_first_run_what_it_read(server, local):
    sound = swap_samples(server.root / "s.zarr", SHARD)
    first = open_store(server.url("s.zarr"))
    assert same(first.depth_m(3), local.depth_m(4))
    (server.root / "s.zarr" / SHARD).write_bytes(sound)
    assert all(map(same, read_all(open_store(server.url("s.zarr"))), read_all(local)))
    with pytest.raises(StoreChangedError):
        first.depth_m(5)


def test_what_was_kept_of_replaced_versions_goes_after_a_week(server, local, monkeypatch):
    sound = swap_samples(server.root / "s.zarr", SHARD)
    read_all(open_store(server.url("s.zarr")))
    (server.root / "s.zarr" / SHARD).write_bytes(sound)
    read_all(open_store(server.url("s.zarr")))
    assert len(list((next(cache_folder().iterdir()) / SHARD).iterdir())) == 2 * (1 + 4)
    monkeypatch.setattr("pipeline.store.remote.range_cache.PIN_DAYS", -1)
    assert all(map(same, read_all(open_store(server.url("s.zarr"))), read_all(local)))
    assert len(list((next(cache_folder().iterdir()) / SHARD).iterdir())) == 1 + 4


def read_in_worker(store, number):
    return store.depth_m(number)


@pytest.mark.parametrize("workers", [0, 2])
def test_training_from_a_store_that_changes_ends_in_one_message(tmp_path, server, teacher_store, workers, monkeypatch):
    shutil.copytree(teacher_store, server.root / "t.zarr")
    real, reads = RemoteFiles.read_range, count()

    def changing(self, path, offset, length):
        if next(reads) == 1:
            for file in (teacher_store / "depth/c").rglob("*"):
                if file.is_file():
                    data = file.read_bytes()
                    changed = data[:-1] + bytes([data[-1] ^ 1])
                    (server.root / "t.zarr" / file.relative_to(teacher_store)).write_bytes(changed)
        return real(self, path, offset, length)

    monkeypatch.setattr(RemoteFiles, "read_range", changing)
    flags = ["--source", f"scenes:{tmp_path / 'scenes'}", "--split", "train", "--student", "lean", "--epochs", "1"]
    flags += ["--batch-size", "2", "--workers", str(workers), "--store", server.url("t.zarr")]
    done = CliRunner().invoke(main, ["train-student", *flags, "--out", str(tmp_path / "run")])
    assert done.exit_code == 1
    (told,) = [line for line in done.output.splitlines() if line.startswith("Error: ")]
    assert "changed on the server since the store was opened" in told
    assert "Traceback" not in done.output


def test_servers_that_name_the_same_file_differently_are_read_without_a_fault(server, local):
    number = count()
    server.says = lambda *_: {"ETag": f'"{next(number)}"'}
    assert all(map(same, read_all(open_store(server.url("s.zarr"))), read_all(local)))
    assert all(map(same, read_all(open_store(server.url("s.zarr"))), read_all(local)))


def test_a_server_that_fails_every_condition_is_read_by_what_its_answers_say(server, local):
    server.says = lambda file, data: {"ETag": _Elusive(says_etag(file, data)["ETag"])}
    assert all(map(same, read_all(open_store(server.url("s.zarr"))), read_all(local)))


class _Elusive(str):
    """An ETag that equals none that is sent back."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other):
        return other is self

    def __ne__(self, other):
        return other is not self


def test_a_server_without_versions_is_warned_of_once_and_its_ranges_serve_one_run_alone(server, local):
    server.says = says_nothing
    with pytest.warns(UserWarning, match="sends neither ETag nor Last-Modified") as caught:
        store = open_store(server.url("s.zarr"))
    assert len(caught) == 1
    assert all(map(same, read_all(store), read_all(local)))
    server.forget()
    assert all(map(same, read_all(store), read_all(local)))
    assert server.asked == []
    with pytest.warns(UserWarning, match="neither"):
        assert all(map(same, read_all(open_store(server.url("s.zarr"))), read_all(local)))
    assert server.asked.count(f"s.zarr/{SHARD}") > 1
    assert len({part.name.rpartition("-")[2] for part in cache_folder().rglob("*-*-*") if part.is_file()} - {""}) == 1


@pytest.mark.parametrize(
    ("one", "other", "agree"),
    [
        (Version('"a"', "t1", 9), Version('"a"', "t2", 9), True),
        (Version('"a"', "t1", 9), Version('"b"', "t1", 9), False),
        (Version('W/"a"', "t1", 9), Version('W/"a"', "t2", 9), False),
        (Version('W/"a"', "t1", 9), Version('"a"', "t1", 9), True),
        (Version("", "t1", 9), Version("", "t1", 9), True),
        (Version("", "t1", 9), Version("", "t2", 9), False),
        (Version('"a"', "", 9), Version("", "t2", None), True),
        (Version('"a"', "", 9), Version('"a"', "", 8), False),
    ],
    ids=["strong", "strong-other", "weak-time", "weak-strong", "time", "time-other", "nothing-shared", "length"],
)
def test_versions_agree_where_nothing_that_both_say_differs(one, other, agree):
    assert one.agrees(other) == other.agrees(one) == agree


def test_the_length_of_a_file_is_that_of_the_whole_and_not_of_a_range():
    assert version_of_headers(206, {"Content-Length": "5", "Content-Range": "bytes 0-4/77"}).length == 77
    assert version_of_headers(206, {"Content-Length": "5", "Content-Range": "bytes 0-4/*"}).length is None
    assert version_of_headers(200, {"Content-Length": "5"}).length == 5


# --- bounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["MANIFEST.json", "depth/c/1"])
def test_a_server_that_drips_is_left_after_a_total_time_and_not_after_a_silence(server, file, monkeypatch):
    monkeypatch.setattr(ranges, "START_S", 0.2)
    monkeypatch.setattr(transport, "ATTEMPTS", 2)
    store = open_store(server.url("s.zarr"))
    server.trouble = {file: ("drip", 99)}
    with pytest.raises(
        ConnectionError, match=r"no complete response in 0.2 s at less than 10 KB per second; tried 2 times"
    ):
        store.depth_m(3) if "depth" in file else open_store(server.url("s.zarr"))


def test_a_slow_line_that_moves_is_waited_for(server, local, monkeypatch):
    monkeypatch.setattr(ranges, "START_S", 0.3)
    monkeypatch.setattr(ranges, "MIN_BYTES_S", 5.0)
    server.trouble = {"depth/c/1": ("drip", 1)}
    assert same(open_store(server.url("s.zarr")).depth_m(3), local.depth_m(3))


def test_metadata_of_gigabytes_is_refused_before_any_of_it_is_fetched(server):
    manifest = server.root / "s.zarr" / "MANIFEST.json"
    value = json.loads(manifest.read_text())
    value["files"] |= {f"x{number}/zarr.json": [1_000_000, "0" * 64] for number in range(40)}
    manifest.write_bytes(pretty_json(value))
    with pytest.raises(
        ValueError, match=r"\d+ metadata files with 400\d+ bytes: expected at most 64 files with 4194304"
    ):
        open_store(server.url("s.zarr"))
    value["files"] |= {f"y{number}/zarr.json": [1, "0" * 64] for number in range(2000)}
    manifest.write_bytes(pretty_json(value))
    with pytest.raises(ValueError, match=r"20\d\d metadata files"):
        open_store(server.url("s.zarr"))
    assert set(server.asked) == {"s.zarr/MANIFEST.json"}


# --- names, passwords and redirects ----------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(server):
    """Another server, where the store lies; the first sends everybody there."""
    other = Server(server.root)
    server.trouble = {"s.zarr": (None, 0)}
    server.next_trouble = lambda path: f"to:{other.url(path)}?signature=hush&x=%2F"
    yield other
    other.shutdown()
    other.server_close()


def test_a_password_goes_to_the_server_that_it_is_for_and_not_where_that_one_sends_us(server, local, elsewhere):
    url = server.url("s.zarr").replace("://", "://me:p%40ss@")
    assert all(map(same, read_all(open_store(url)), read_all(local)))
    assert set(server.logins) == {"Basic bWU6cEBzcw=="}
    assert set(elsewhere.logins) == {None}
    assert all(path.endswith("?signature=hush&x=%2F") for path in elsewhere.asked)  # as it was signed


def test_logins_of_the_netrc_file_go_to_the_named_host_alone(server, local, elsewhere, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("default login any password thing\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server.next_trouble = lambda path: f"to:{elsewhere.url(path).replace('127.0.0.1', 'localhost')}"
    assert all(map(same, read_all(open_store(server.url("s.zarr"))), read_all(local)))
    assert set(server.logins) == {"Basic YW55OnRoaW5n"}
    assert set(elsewhere.logins) == {None}


def test_a_redirect_on_the_same_server_keeps_the_login(server):
    server.trouble = {"there.zarr/MANIFEST": (f"to:{server.url('s.zarr')}/MANIFEST.json", 1)}
    shutil.copytree(server.root / "s.zarr", server.root / "there.zarr")
    open_store(server.url("there.zarr").replace("://", "://me:secret@"))
    assert set(server.logins) == {"Basic bWU6c2VjcmV0"}


@pytest.mark.parametrize(
    "login", ["me:secret@", "me:sec@ret@", "me:sec%40ret@", "secret@", "me:/secret/x@", "me:#secret@"]
)
def test_no_form_of_a_password_is_in_a_message_a_name_or_the_cache(server, login):
    url = server.url("s.zarr").replace("://", f"://{login}")
    server.trouble = {SHARD: (500, 99)}
    for command in (["store", "info", url], ["store", "verify", url], ["evaluate-teacher", url, "--source", "x:y"]):
        done = CliRunner().invoke(main, command)
        for word in ("secret", "sec@", "ret@", "sec%40"):
            assert word not in done.output
    assert "sec" not in "".join(str(file.relative_to(cache_folder())) for file in cache_folder().rglob("*"))


def test_a_signed_address_that_fails_is_told_without_its_signature(server, elsewhere):
    elsewhere.trouble = {"": (403, 99)}
    with pytest.raises(PermissionError) as caught:
        open_store(server.url("s.zarr"))
    assert "hush" not in str(caught.value)


def test_an_at_sign_in_a_path_is_no_password(server):
    shutil.copytree(server.root / "s.zarr", server.root / "a@b.zarr")
    assert open_store(server.url("a@b.zarr")).name == server.url("a@b.zarr")


def test_a_machine_without_home_is_told_where_to_name_a_cache(server, monkeypatch):
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("none")))
    with pytest.raises(ValueError, match="there is no home directory: set `store_cache` or TIEKD_STORE_C"):
        open_images(server.url("s.zarr"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://host/a/s.zarr", "http://host/a/s.zarr"),
        ("http://host:80/a@b/s.zarr", "http://host:80/a@b/s.zarr"),
        ("http://[::1]:80/a@b", "http://[::1]:80/a@b"),
        ("s3://bucket/name@v2.zarr", "s3://bucket/name@v2.zarr"),
        ("http://me:a@b@host/s", "http://***@host/s"),
        ("http://me:a/b@host/s", "http://***@host/s"),
        ("http://me@host/s and https://you:x@other/t", "http://***@host/s and https://***@other/t"),
        ("403, url='https://cdn/x?sig=abc&e=1'", "403, url='https://cdn/x?***'"),
        ("no address: me:x@host?", "no address: me:x@host?"),
    ],
    ids=["plain", "at-in-path", "ipv6", "bucket", "two-ats", "slash", "two", "signature", "none"],
)
def test_addresses_are_shown_without_what_is_secret_and_otherwise_as_they_are(text, shown):
    assert hidden(text) == shown


def test_a_file_system_that_tells_versions_apart_from_bytes_is_asked_once_a_file():
    wrapped = pytest.importorskip("fsspec.implementations.asyn_wrapper")
    memory = fsspec.filesystem("memory")
    system = wrapped.AsyncFileSystemWrapper(memory, asynchronous=False)
    memory.pipe_file("/apart/a", b"0123456789")
    (first,) = ranges.fetch_all(system, "memory://apart", [RangeRequest("a", 2, 5, 1)])
    assert (first.data, first.version.length) == (b"234", 10)
    assert first.version.is_known
    (again,) = ranges.fetch_all(system, "memory://apart", [RangeRequest("a", 0, 3, 1, first.version)])
    assert again == (b"012", first.version)
    (missing,) = ranges.fetch_all(system, "memory://apart", [RangeRequest("b", 0, 3, 1)])
    assert isinstance(missing, FileNotFoundError)
