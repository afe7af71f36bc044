"""What a journal or a manifest says after damage is either what was written, or nothing."""

import json
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_stores import make_store

from pipeline.store import open_store
from pipeline.store.format.layout import MANIFEST
from pipeline.store.tools.verify import verify_store
from pipeline.store.write.journal import Journal, ShardRecord

NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53)
CELLS = NUMBERS | st.text("0123456789abcdef", max_size=64) | st.lists(NUMBERS, max_size=2)
RECORDS = st.builds(
    ShardRecord,
    shard=st.integers(0, 5),  # few, so that one shard often stands in a journal twice
    size_px=st.tuples(st.integers(1, 4096), st.integers(1, 4096)),
    files=st.dictionaries(st.text(min_size=1, max_size=12), st.tuples(st.integers(0, 2**40), st.text(max_size=64))),
    rows=st.dictionaries(st.text(max_size=12), st.lists(CELLS, max_size=4), max_size=4),
)
JOURNALS = st.lists(RECORDS, min_size=1, max_size=5)
# The folder of a test lives through all of its examples; each example writes its file anew.
shared_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def by_shard(records):
    return {record.shard: record for record in records}


def prefix_read_from(journal, records, data):
    """How many whole records a journal of the bytes `data` gives back; they must be the first of `records`."""
    journal.path.write_bytes(data)
    found = journal.read()
    kept = journal.path.read_bytes()
    lines = [record.line() for record in records]
    count = kept.count(b"\n")
    assert found == by_shard(records[:count])
    # A flipped bit of the checksum's own digits may leave its value alone: `a` and `A` are one number.
    assert kept.lower() == b"".join(lines[:count]).lower() or found == by_shard(records[:count])
    return count


@given(RECORDS)
def test_a_record_reads_back_as_it_was_written(record):
    assert ShardRecord.parse(record.line()) == record


@shared_folder
@given(records=JOURNALS)
def test_a_journal_reads_back_all_it_was_given_the_later_of_two_for_one_shard(tmp_path, records):
    journal = Journal(tmp_path / "journal")
    journal.path.unlink(missing_ok=True)
    for record in records:
        journal.append(record)
    assert journal.read() == by_shard(records)


@shared_folder
@given(records=JOURNALS, data=st.data())
def test_a_journal_cut_anywhere_loses_the_torn_record_and_no_other(tmp_path, records, data):
    lines = [record.line() for record in records]
    whole = b"".join(lines)
    cut = data.draw(st.integers(0, len(whole)))
    ends = [sum(map(len, lines[:count])) for count in range(len(lines) + 1)]
    assert prefix_read_from(Journal(tmp_path / "journal"), records, whole[:cut]) == sum(end <= cut for end in ends) - 1


@settings(shared_folder, max_examples=400)
@given(records=JOURNALS, data=st.data(), change=st.integers(1, 255))
def test_a_changed_byte_of_a_journal_never_yields_another_record(tmp_path, records, data, change):
    lines = [record.line() for record in records]
    whole = bytearray(b"".join(lines))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= change
    ends = [sum(map(len, lines[:count])) for count in range(len(lines) + 1)]
    damaged = next(number for number, (start, end) in enumerate(pairwise(ends)) if start <= place < end)
    kept = prefix_read_from(Journal(tmp_path / "journal"), records, bytes(whole))
    assert kept == damaged or (kept == len(records) and place - ends[damaged] < 8)


@shared_folder
@given(records=JOURNALS, more=RECORDS, data=st.data())
def test_a_journal_goes_on_after_damage_as_if_it_ended_there(tmp_path, records, more, data):
    journal = Journal(tmp_path / "journal")
    whole = b"".join(record.line() for record in records)
    kept = prefix_read_from(journal, records, whole[: data.draw(st.integers(0, len(whole)))])
    journal.append(more)
    assert journal.read() == by_shard([*records[:kept], more])


@shared_folder
@given(records=JOURNALS, gone=st.sets(st.integers(0, 5)))
def test_a_journal_forgets_the_named_shards_alone(tmp_path, records, gone):
    journal = Journal(tmp_path / "journal")
    journal.path.write_bytes(b"".join(record.line() for record in records))
    journal.forget(gone)
    assert journal.read() == {shard: one for shard, one in by_shard(records).items() if shard not in gone}


@pytest.fixture(scope="module", params=["gaussian", "sparse"])
def store(request, tmp_path_factory):
    """A sound store, and the bytes of its manifest."""
    path = make_store(tmp_path_factory.mktemp("manifest") / "s.zarr", request.param)
    return path, (path / MANIFEST).read_bytes()


def test_a_manifest_reads_back_as_the_files_that_lie_there(store):
    path, _ = store
    there = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()} - {MANIFEST}
    assert set(open_store(path).manifest) == there
    assert all((path / name).stat().st_size == size for name, (size, _) in open_store(path).manifest.items())


@settings(max_examples=250)
@given(data=st.data(), bit=st.integers(0, 7))
def test_a_manifest_with_a_flipped_bit_is_refused_or_found(store, data, bit):
    path, whole = store
    flipped = bytearray(whole)
    flipped[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << bit
    (path / MANIFEST).write_bytes(flipped)
    try:
        damage = verify_store(path)
    except ValueError as error:
        assert "manifest" in str(error).lower()  # noqa: PT017 - either way of noticing is right
    else:
        assert damage
        assert json.loads(flipped) != json.loads(whole)
    finally:
        (path / MANIFEST).write_bytes(whole)


@settings(max_examples=60)
@given(data=st.data())
def test_a_manifest_cut_anywhere_is_refused(store, data):
    path, whole = store
    cut = data.draw(st.integers(0, len(whole) - 2))  # the last byte is the newline at its end
    (path / MANIFEST).write_bytes(whole[:cut])
    try:
        with pytest.raises(ValueError, match="MANIFEST.json"):
            open_store(path)
    finally:
        (path / MANIFEST).write_bytes(whole)
