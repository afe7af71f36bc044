"""Rows of a split as arrays: each comes back as it went in."""

import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sources.base import Sample
from pipeline.sources.sample_table import SampleTable

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
samples = st.builds(
    Sample,
    id=texts,
    image_path=texts.map("/data/bilder/ä/".__add__),
    truth_path=st.none() | texts.map("/data/bilder/".__add__),
    focal_px=st.none() | st.floats(1, 1e5),
)


@given(st.lists(samples, max_size=20))
def test_each_row_comes_back_as_it_went_in(rows):
    table = pickle.loads(pickle.dumps(SampleTable(rows)))
    assert list(table) == rows
    assert table.ids == [row.id for row in rows]
    assert table[1:5:2] == rows[1:5:2]
    assert [table[-1 - number] for number in range(len(rows))] == rows[::-1]
    with pytest.raises(IndexError):
        table[len(rows)]


def test_texts_are_python_s_own(tmp_path):
    table = SampleTable([Sample("a", str(tmp_path / "a.png"), None, None)] * 3)
    assert type(table[0].id) is type(table[0].image_path) is str
    assert Path(table[2].image_path) == tmp_path / "a.png"
    assert table[2].truth_path is None
