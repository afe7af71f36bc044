"""Whatever a stranger hands us ends in one ValueError that says what is wrong: no crash, hang, bomb or silence.

`python tests/hostile/harness.py` prints the same as a table; `python tests/hostile/make.py OUT` writes the corpus.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hostile.make import CASES
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.fileio import canonical_json, parse_json, printable

HARNESS = Path(__file__).parents[1] / "hostile" / "harness.py"


@pytest.fixture(scope="session")
def outcomes():
    """Way of each opening of each case -> how it ended. One process imports everything, and forks for each case."""
    done = subprocess.run([sys.executable, HARNESS, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {}
    for one in json.loads(done.stdout):
        found.setdefault(one["name"], []).append(one)
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_hostile_thing_ends_in_one_error_of_ours(outcomes, case):
    opened = outcomes[case.name]
    assert [one["way"] for one in opened] == list(case.ways)
    assert not [one for one in opened if one["fault"]]


def test_every_case_has_a_name_of_its_own():
    assert len({case.name for case in CASES}) == len(CASES) > 300


finite = st.floats(allow_nan=False, allow_infinity=False)
plain = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | finite | st.text()
documents = st.recursive(plain, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@given(documents)
def test_json_that_we_write_is_json_that_we_read(value):
    assert parse_json(canonical_json(value)) == value


@given(st.binary(max_size=60) | st.text('[]{}",:\\ud9.eE-+naN1', max_size=60).map(str.encode))
def test_no_bytes_make_the_json_reader_raise_anything_else(data):
    try:
        canonical_json(parse_json(data))
    except ValueError as error:
        assert str(error)  # noqa: PT017 - both ways are right


@given(st.text())
def test_printable_text_moves_no_cursor_and_leaves_other_text_alone(text):
    assert printable(text).replace("\n", "").isprintable()
    if text.isprintable():
        assert printable(text) == text
