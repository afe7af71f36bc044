"""Stereo pairs of the source `scenes`."""

from __future__ import annotations

import json

import fakes
import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.sources.readers.images import read_rgb
from pipeline.sources.registry import open_source
from pipeline.sources.stereo import baseline_of, read_right

SIZE_PX = (24, 64)


@pytest.fixture
def root(tmp_path):
    """A folder of two frames with right images."""
    fakes.make_scenes_folder(tmp_path, count=2, size_px=SIZE_PX)
    for seed, name in enumerate(("000000", "000001")):
        fakes.write_image(
            tmp_path / "rgb_right" / f"{name}.png", fakes.image_of(fakes.smooth_depth_m(SIZE_PX, seed + 9))
        )
    describe(tmp_path, baseline_m=0.54)
    return tmp_path


def describe(root, **facts):
    (root / "dataset.json").write_text(json.dumps({"metres_per_unit": 1 / 256, **facts}))


def test_a_sample_has_its_right_image_and_the_baseline(root):
    source = open_source(f"scenes:{root}")
    for sample in source.samples("all"):
        right = read_right(source, sample, SIZE_PX)
        np.testing.assert_array_equal(right, read_rgb(str(root / "rgb_right" / f"{sample.id}.png")))
        assert (right != read_rgb(sample.image_path)).any()
        assert baseline_of(source, sample) == 0.54


def test_a_missing_right_image_is_named(root):
    source = open_source(f"scenes:{root}")
    (root / "rgb_right" / "000001.png").unlink()
    with pytest.raises(PipelineError, match="rgb_right/000001.png: no such file"):
        source.read_right(source.samples("all")[1])


def test_a_folder_without_baseline_has_no_pairs(root):
    describe(root)
    source = open_source(f"scenes:{root}")
    sample = source.samples("all")[0]
    assert baseline_of(source, sample) is None
    with pytest.raises(PipelineError, match="no right image of '000000', it was rendered without pairs"):
        source.read_right(sample)


@pytest.mark.parametrize("baseline_m", [0, -0.54, "0.54", True, [0.54]])
def test_a_baseline_that_is_no_length_is_refused(root, baseline_m):
    describe(root, baseline_m=baseline_m)
    with pytest.raises(PipelineError, match="dataset.json has baseline_m .* expected metres above 0"):
        open_source(f"scenes:{root}")


def test_pairs_open_as_a_folder_too(root):
    assert len(open_source(f"folder:{root}").samples("all")) == 2
