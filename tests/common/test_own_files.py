"""Generated names may have been planted as links: nothing is written or removed through a link."""

import errno
import os

import pytest
from tiny_stores import make_spec, make_store, write_shards

from pipeline.common.fileio import CsvTable, append_durably, cut_durably, write_durably
from pipeline.common.own_files import (
    hidden_name,
    make_folder_below,
    make_own_folder,
    open_new,
    remove_own,
    sync_directory,
)
from pipeline.store.tools.archive import pack_store, unpack_store
from pipeline.store.write.writer import StoreWriter

SECRET = b"ssh-ed25519 AAAA"


@pytest.fixture
def victim(tmp_path):
    """A file of the user that no command names."""
    path = tmp_path / "authorized_keys"
    path.write_bytes(SECRET)
    return path


@pytest.mark.parametrize("hard", [False, True], ids=["symbolic", "hard"])
def test_a_file_is_not_written_through_a_planted_link(tmp_path, victim, hard):
    planted = tmp_path / ".result.json.tmp"
    planted.hardlink_to(victim) if hard else planted.symlink_to(victim)
    write_durably(tmp_path / "result.json", b"{}")
    assert victim.read_bytes() == SECRET
    assert (tmp_path / "result.json").read_bytes() == b"{}"
    assert not planted.exists()


@pytest.mark.parametrize("write", [append_durably, lambda path, _: cut_durably(path, 3)], ids=["append", "cut"])
def test_a_journal_that_is_a_link_is_refused(tmp_path, victim, write):
    (tmp_path / "journal").symlink_to(victim)
    with pytest.raises(OSError, match="a symbolic link, expected a file of this program") as found:
        write(tmp_path / "journal", b"x")
    assert found.value.filename == str(tmp_path / "journal")
    assert victim.read_bytes() == SECRET


@pytest.mark.parametrize("name", [".p.zarr.lock", ".p.zarr.packing"])
def test_packing_does_not_write_through_a_planted_link(tmp_path, victim, name):
    store = make_store(tmp_path / "s.zarr")
    (tmp_path / name).symlink_to(victim)
    if name.endswith("lock"):
        with pytest.raises(OSError, match="a symbolic link"):
            pack_store(store, tmp_path / "p.zarr")
    else:
        assert pack_store(store, tmp_path / "p.zarr")
    assert victim.read_bytes() == SECRET


def test_a_lock_file_that_is_a_hard_link_is_refused(tmp_path, victim):
    store = make_store(tmp_path / "s.zarr")
    (tmp_path / ".p.zarr.lock").hardlink_to(victim)
    with pytest.raises(ValueError, match="p.zarr.lock is a hard link to another file"):
        pack_store(store, tmp_path / "p.zarr")
    assert victim.read_bytes() == SECRET


def test_unpacking_removes_a_planted_link_but_not_its_target(tmp_path):
    pack_store(make_store(tmp_path / "s.zarr"), tmp_path / "p.zarr")
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "MANIFEST.json").write_bytes(SECRET)
    (tmp_path / ".u.zarr.unpacking").symlink_to(folder)
    unpack_store(tmp_path / "p.zarr", tmp_path / "u.zarr")
    assert [path.name for path in folder.iterdir()] == ["MANIFEST.json"]
    assert (folder / "MANIFEST.json").read_bytes() == SECRET
    assert (tmp_path / "u.zarr" / "MANIFEST.json").is_file()


@pytest.mark.parametrize("inside", ["", "store", "store/depth"])
def test_a_staging_folder_that_is_a_link_is_refused(tmp_path, inside):
    folder = tmp_path / "photos"
    folder.mkdir()
    spec, ids = make_spec()
    writer = StoreWriter(tmp_path / "s.zarr", spec, ids)
    with writer:
        write_shards(writer, [0])  # something to resume from
    planted = writer.staging / inside
    if inside == "":
        remove_own(writer.staging)
        (folder / "store").mkdir()
        (folder / "journal").touch()
    else:
        remove_own(planted)
    planted.symlink_to(folder)
    with pytest.raises(ValueError, match="is a symbolic link, expected a folder"), writer:
        write_shards(writer, writer.todo)
    assert not list(folder.rglob("c"))


def test_a_generated_folder_must_not_be_a_link_nor_leave_its_root(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="link is a symbolic link"):
        make_own_folder(tmp_path / "link")
    with pytest.raises(ValueError, match="link is a symbolic link"):
        make_folder_below(tmp_path, "link/inner")
    with pytest.raises(ValueError, match="is outside .*: expected a path without"):
        make_folder_below(tmp_path, "a/../../b")


def test_removing_a_link_keeps_its_target(tmp_path, victim):
    (tmp_path / "one").symlink_to(victim)
    (tmp_path / "two").symlink_to(tmp_path)
    for name in ("one", "two", "absent"):
        remove_own(tmp_path / name)
    assert victim.read_bytes() == SECRET
    os.close(open_new(tmp_path / "one"))


def test_a_long_name_has_a_short_temporary_name(tmp_path):
    write_durably(tmp_path / ("n" * 250), b"data")
    assert hidden_name(tmp_path / "short", "tmp").name == ".short.tmp"
    assert [len(path.name) for path in tmp_path.iterdir()] == [250]


# --- limits of file systems ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["EINVAL", "ENOTSUP", "EBADF", "ENOSYS"])
def test_a_file_system_that_cannot_sync_directories_is_written_to(tmp_path, monkeypatch, code):
    real = os.fsync

    def fsync(handle):
        if os.path.isdir(f"/proc/self/fd/{handle}"):  # noqa: PTH112 - of an open handle
            raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    make_store(tmp_path / "s.zarr")
    pack_store(tmp_path / "s.zarr", tmp_path / "p.zarr")
    unpack_store(tmp_path / "p.zarr", tmp_path / "u.zarr")
    assert (tmp_path / "u.zarr" / "MANIFEST.json").is_file()


def test_a_disk_error_names_the_path(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    for call in (lambda: write_durably(tmp_path / "a.json", b""), lambda: sync_directory(tmp_path)):
        with pytest.raises(OSError, match="Input/output error") as found:
            call()
        assert str(tmp_path) in found.value.filename


def test_a_pipe_as_a_table_is_refused(tmp_path):
    os.mkfifo(tmp_path / "steps.csv")
    with pytest.raises(OSError, match="not a regular file"):
        CsvTable(tmp_path / "steps.csv").read(lambda _: True)
