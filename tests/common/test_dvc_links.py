"""Stores and data sets of links into the DVC cache; other links inside a store are refused."""

import os
import shutil
import subprocess
import sys

import fakes
import pytest
from tiny_stores import folder_bytes, make_store

from pipeline.common import dvc_links
from pipeline.common.dvc_links import cached_target
from pipeline.common.fileio import sha256_bytes
from pipeline.errors import DamagedStoreError
from pipeline.sources.registry import open_source
from pipeline.store import open_store
from pipeline.store.tools.archive import pack_store, unpack_store
from pipeline.store.tools.verify import verify_store


@pytest.fixture(autouse=True)
def _no_cached_paths():
    dvc_links._caches.cache_clear()


def move_to_cache(folder, cache):
    """Move each file of a folder to a cache, under a hash, and leave a link."""
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        name = sha256_bytes(path.read_bytes())[:32]
        cached = cache / "files" / "md5" / name[:2] / name[2:]
        cached.parent.mkdir(parents=True, exist_ok=True)
        path.replace(cached)
        path.symlink_to(cached)


def test_a_store_of_links_into_the_cache_of_its_repository_is_read(tmp_path):
    (tmp_path / ".dvc").mkdir()
    store = make_store(tmp_path / "data" / "s.zarr")
    whole = folder_bytes(store)
    move_to_cache(store, tmp_path / ".dvc" / "cache")
    assert open_store(store).depth_m(0).shape == (6, 10)
    assert verify_store(store) == []
    pack_store(store, tmp_path / "p.zarr")
    unpack_store(tmp_path / "p.zarr", tmp_path / "u.zarr")
    assert folder_bytes(tmp_path / "u.zarr") == whole
    assert not any(path.is_symlink() for path in (tmp_path / "u.zarr").rglob("*"))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (".dvc/config", "[core]\n    autostage = false\n[cache]\n    type = symlink\n    dir = ../../shared\n"),
        (".dvc/config.local", "[cache]\n    dir = {tmp}/shared\n['remote \"a\"']\n    url = s3://b\n"),
        ("global/config", "[cache]\ndir = {tmp}/shared\n"),
    ],
    ids=["relative", "local", "global"],
)
def test_a_cache_outside_the_repository_is_found_from_the_configuration(tmp_path, monkeypatch, file, text):
    repository = tmp_path / "repository"
    (repository / ".dvc").mkdir(parents=True)
    (repository / "global").mkdir()
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(repository / "global"))
    (repository / file).write_text(text.format(tmp=tmp_path))
    store = make_store(repository / "s.zarr")
    move_to_cache(store, tmp_path / "shared")
    (tmp_path / "link").symlink_to(store)
    for path in (store, tmp_path / "link"):
        assert open_store(path).depth_m(0).shape == (6, 10)


@pytest.mark.parametrize("where", ["outside", "name", "no repository", "other cache"])
def test_a_link_that_dvc_did_not_make_is_refused(tmp_path, where):
    if where != "no repository":
        (tmp_path / "repository" / ".dvc").mkdir(parents=True)
    store = make_store(tmp_path / "repository" / "s.zarr")
    shard = store / "depth" / "c" / "0" / "0" / "0"
    target = {
        "outside": tmp_path / "secret",
        "name": tmp_path / "repository" / ".dvc" / "cache" / "secret",
        "no repository": tmp_path / "repository" / ".dvc-not" / "cache" / "files" / "md5" / "aa" / ("b" * 30),
        "other cache": tmp_path / "elsewhere" / "files" / "md5" / "aa" / ("b" * 30),
    }[where]
    target.parent.mkdir(parents=True, exist_ok=True)
    shard.replace(target)
    shard.symlink_to(target)
    with pytest.raises(DamagedStoreError, match="links inside a store may only lead into the DVC cache"):
        open_store(store).depth_m(0)
    assert "depth/c/0/0/0" in {damage.file for damage in verify_store(store)}


def test_an_unreadable_configuration_is_ignored(tmp_path):
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_bytes(b"\xff[cache")
    os.mkfifo(tmp_path / ".dvc" / "config.local")
    (tmp_path / "x").symlink_to("/etc/passwd")
    assert cached_target(str(tmp_path / "x"), str(tmp_path / "s")) is None


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("git") is None, reason="git is absent")
def test_a_checkout_of_dvc_with_links_is_read(tmp_path, monkeypatch):
    pytest.importorskip("dvc")
    repository = tmp_path / "repository"
    repository.mkdir()
    for name in ("HOME", "DVC_SITE_CACHE_DIR", "DVC_GLOBAL_CONFIG_DIR", "DVC_SYSTEM_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    dvc = [sys.executable, "-m", "dvc"]
    fakes.make_scenes_folder(repository / "scenes", 4)
    store = make_store(repository / "s.zarr")
    for command in (
        ["git", "init", "-q"],
        [*dvc, "init", "-q"],
        [*dvc, "config", "cache.type", "symlink"],
        [*dvc, "add", "-q", "scenes", "s.zarr"],
    ):
        done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for again in (False, True):
        if again:  # as on another machine
            shutil.rmtree(store)
            shutil.rmtree(repository / "scenes")
            subprocess.run([*dvc, "checkout", "-q"], cwd=repository, check=True)
        assert (store / "MANIFEST.json").is_symlink()
        assert open_store(store).depth_m(0).shape == (6, 10)
        assert verify_store(store) == []
        source = open_source(f"scenes:{repository / 'scenes'}")
        samples = source.samples("all")
        assert len(samples) == 4
        assert source.read_truth_m(samples[0]) is not None
