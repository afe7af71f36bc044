"""The text that selects layers of features, and tokens as maps."""

from __future__ import annotations

import re

import pytest
import torch

from pipeline.errors import OptionError, PipelineError
from pipeline.teachers.features import check_layers, parse_features, token_map


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("11:64", (("11",), 64)),
        ("3,6,last:8", (("3", "6", "last"), 8)),
        ("blocks.2:1", (("blocks.2",), 1)),
    ],
)
def test_layers_and_components_are_read_from_the_option(text, expected):
    assert parse_features(text) == expected


@pytest.mark.parametrize(
    "text", ["", "11", "11:", ":64", "11:0", "11:-3", "11:6.5", "3,3:8", "3,:8", "a b:8", "../x:8", "a/b:8", "3:8:"]
)
def test_other_text_is_refused_with_the_form(text):
    with pytest.raises(OptionError, match=re.escape(f"`features={text!r}`: expected LAYER[,LAYER]:COMPONENTS")):
        parse_features(text)


def test_an_unknown_layer_is_refused_with_the_layers_that_exist():
    with pytest.raises(PipelineError, match=r"teacher x has no layer '9', expected `features` among 1, 2, last"):
        check_layers("teacher x", ("1", "9"), ["1", "2", "last"])


def test_a_layer_that_is_asked_for_twice_is_refused():
    with pytest.raises(PipelineError, match="`features=1,1` has a layer twice"):
        check_layers("teacher x", ("1", "1"), ["1"])


def test_the_token_of_each_patch_lands_at_its_row_and_column():
    rows, columns = 3, 5
    places = torch.tensor([[row, column] for row in range(rows) for column in range(columns)], dtype=torch.float32)
    tokens = torch.cat([torch.full((2, 2), -1.0), places])[None].repeat(2, 1, 1)  # with two special tokens
    features = token_map(tokens, (rows, columns), special=2)
    assert features.shape == (2, 2, rows, columns)
    assert torch.equal(features[1, 0], torch.arange(3.0)[:, None].expand(3, 5))
    assert torch.equal(features[1, 1], torch.arange(5.0).expand(3, 5))


def test_a_number_of_tokens_that_does_not_fit_the_grid_gives_no_map():
    assert token_map(torch.zeros(1, 16, 4), (3, 5), special=0) is None
