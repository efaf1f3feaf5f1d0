"""Batches and files are resized by one operator: what prepare stores is what consistency and projection undo."""

import numpy as np
import pytest
import torch

from sr3_core import images
from sr3_core.resample import resample


@pytest.mark.parametrize("filter_name", ["bicubic", "box", "lanczos", "nearest"])
@pytest.mark.parametrize(("before", "after"), [((64, 64), (16, 16)), ((16, 16), (64, 64)), ((37, 53), (12, 20)), ((12, 20), (37, 53))])
def test_batches_are_resized_as_files_are(filter_name: images.Filter, before: tuple[int, int], after: tuple[int, int]) -> None:
    array = np.random.default_rng(0).random((*before, 3), dtype=np.float32)
    expected = images.resize(array, after, filter_name)
    got = resample(torch.from_numpy(array).permute(2, 0, 1)[None], after, filter_name)[0].permute(1, 2, 0)
    np.testing.assert_allclose(got.numpy(), expected, atol=2e-5)
