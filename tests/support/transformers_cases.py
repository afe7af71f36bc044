"""Small transformers models on disk, opened as teachers."""

from __future__ import annotations

import re

import pytest
import torch

from pipeline.teachers.options import TeacherOptions
from pipeline.teachers.registry import open_teacher

CPU = torch.device("cpu")
VIEWS = torch.randint(0, 256, (2, 3, 40, 100), generator=torch.Generator().manual_seed(0)) / 255
IDS = ["a", "b"]


def refuses(*parts):
    """Expect a ValueError whose message has all parts in this order."""
    return pytest.raises(ValueError, match="(?s)" + ".*".join(re.escape(str(part)) for part in parts))


def opened(folder, **options):
    return open_teacher(f"transformers:{folder}", device=CPU, options=TeacherOptions(**options))
