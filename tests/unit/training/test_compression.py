"""Gradients sent in half precision: nearly the same weights, not the same, and bit-equal when broken off and resumed."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sr3_core.errors import BadInput
from tests.plugins.broken_off import newest, run
from tests.plugins.tiny_objective import stage

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of tests/plugins/gloo_compression.py."""
    at = tmp_path_factory.mktemp("compression")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.plugins.gloo_compression", str(at)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return at


def weights(folder: Path) -> torch.Tensor:
    tensors = load_file(max(folder.iterdir()) / "players.safetensors")
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_the_weights_are_nearly_those_of_uncompressed_gradients(folder: Path, kind: str) -> None:
    plain, compressed = weights(folder / "plain"), weights(folder / kind)
    assert compressed.dtype == torch.float32
    assert 0 < float((compressed - plain).abs().mean()) < 1e-4 < float(plain.abs().mean())


def test_a_broken_run_is_bit_equal(folder: Path) -> None:
    assert newest(folder / "broken") == newest(folder / "bfloat16")


def test_one_worker_sends_nothing(tmp_path: Path) -> None:
    small: dict[str, Any] = {"options": {"width": 4}, "images": 24}
    with_it, without = (run(tmp_path / str(kind), **small, gradient_compression=kind)[0] for kind in ("float16", None))
    assert all(torch.equal(tensor, without.ema[name]) for name, tensor in with_it.ema.items())


def test_nonsense_is_refused() -> None:
    with pytest.raises(BadInput, match=r"training.gradient_compression='int8'; allowed: input should be 'bfloat16' or 'float16'"):
        stage(gradient_compression="int8")
    with pytest.raises(BadInput, match="gradient_compression bfloat16 and reduce_dtype float64 exclude each other"):
        stage(gradient_compression="bfloat16", reduce_dtype="float64")


def test_how_gradients_travel_is_refused_where_nothing_reads_it() -> None:
    with pytest.raises(BadInput, match="ddp is set, but reduce_dtype float64 averages by itself"):
        stage(ddp={"static_graph": True}, reduce_dtype="float64")
    assert "ddp" not in stage().canonical_json(), "fingerprints stay"
