"""Labelled data and the network that is to be trained on it: refused in one line before training starts where they do not go together."""

from typing import Any

import pytest

from sr3_core import config
from sr3_core.artifacts.shardset import ShardSet
from sr3_core.config import Stage
from sr3_core.data.loader import MicroBatches
from sr3_core.errors import BadInput
from tests.unit.data.conftest import Write, noise_photo


def stage(labels: int) -> Stage:
    training = {"images": 8, "global_batch": 8, "micro_batch": 8, "checkpoint_images": 8, "log_images": 8}
    model = {"name": "unet", "options": {"channels": 8, "labels": labels}}
    values: dict[str, Any] = {"name": "s", "low": 16, "high": 64, "model": model, "objective": {"name": "diffusion"}, "training": training}
    return config.parse(Stage, values)


def test_the_largest_label_fits_or_is_named(labelled_shards: ShardSet) -> None:
    assert MicroBatches(labelled_shards, stage(8)).batch(0, 3).labels is not None  # labels 0, 3 and 7
    assert MicroBatches(labelled_shards, stage(0)).batch(0, 3).labels is not None  # which the network leaves alone
    for count in (7, 1):
        with pytest.raises(BadInput) as refused:
            MicroBatches(labelled_shards, stage(count))
        line = str(refused.value)
        assert f"label 7 of split train of {labelled_shards.uri}, for stage s with {count} labels; allowed: 0 .. {count - 1};" in line
        assert "labels=8" in line


def test_data_without_labels_does_not_train_a_network_that_is_told_them(shards: ShardSet, half_labelled_shards: ShardSet) -> None:
    with pytest.raises(BadInput, match=r"5 of 5 samples of split train of .* have no label, for stage s with 10 labels; allowed: a label"):
        MicroBatches(shards, stage(10))
    with pytest.raises(BadInput, match="1 of 2 train samples have no label"):
        MicroBatches(half_labelled_shards, stage(10))


def test_every_set_of_a_mixture_is_asked(labelled_shards: ShardSet, write_shards: Write) -> None:
    more = write_shards({"more": noise_photo(64, 11)}, (16, 64), {"more": 8})
    assert MicroBatches([(labelled_shards, 1), (more, 1)], stage(9)).num_samples == 4
    with pytest.raises(BadInput, match=f"label 8 of split train of {more.uri}"):
        MicroBatches([(labelled_shards, 1), (more, 1)], stage(8))
    below = write_shards({"below": noise_photo(64, 12)}, (16, 64), {"below": -2})
    with pytest.raises(BadInput, match=r"label -2 of .*; allowed: 0 \.\. 7; do: mend the source"):
        MicroBatches(below, stage(8))
