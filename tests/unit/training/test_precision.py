"""Precisions: a device without units for one refuses it, the network computes in it, and float16's scale backs off, grows and resumes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sr3_core import summary
from sr3_core.errors import BadInput
from sr3_core.training import optimisation, precision
from sr3_core.training.optimisation import Carried
from sr3_core.training.precision import Capability, Precision, capability, check
from tests.plugins.broken_off import assert_broken_off_is_whole, run
from tests.plugins.tiny_objective import Net, stage

CPU = torch.device("cpu")
ABLE = Capability("a machine with everything", tf32=True, bfloat16=True, float16=True)
SMALL: dict[str, Any] = {"options": {"width": 8}, "log_images": 12}


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch computes every precision on every CPU, if slowly: only the refusal is taken away."""
    monkeypatch.setattr(precision, "capability", lambda device: ABLE)


@pytest.mark.parametrize("name", ["tf32", "bfloat16", "float16"])
def test_a_precision_without_units_is_refused_with_the_reason(name: str) -> None:
    poor = Capability("a CPU with AVX2", tf32=False, bfloat16=name != "bfloat16", float16=False)
    with pytest.raises(BadInput) as refused:
        check(name, poor)
    assert f"training.precision {name} on a CPU with AVX2, which has no units for it" in str(refused.value)
    assert ("allowed: float32, bfloat16;" if name != "bfloat16" else "allowed: float32;") in str(refused.value)
    check("float32", poor)
    check(name, ABLE)


def test_what_this_cpu_can(tmp_path: Path) -> None:
    """A whole run begins or is refused by it; TensorFloat32 is of GPUs alone."""
    have = capability(CPU)
    assert have.device.startswith("a CPU with ") and not have.tf32
    for name in ("tf32", "bfloat16", "float16"):
        if getattr(have, name):
            assert run(tmp_path / name, **SMALL, images=12, checkpoint_images=12, precision=name)[0].images_seen == 12
        else:
            with pytest.raises(BadInput, match=f"precision {name} on a CPU with"):
                run(tmp_path / name, **SMALL, precision=name)


@pytest.mark.usefixtures("able")
@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_the_forward_pass_computes_in_it_and_weights_stay_float32(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    seen: set[torch.dtype] = set()
    net = Net(8, 0.0)
    net.register_forward_hook(lambda module, given, output: seen.add(output.dtype))
    with Precision(name, CPU).forward():
        net(torch.rand(1, 3, 8, 8))
    assert seen == {dtype}


@pytest.mark.usefixtures("able")
@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_half_precision_trains_to_nearly_the_same_float32_weights(tmp_path: Path, name: str) -> None:
    exact, other = (run(tmp_path / each, **SMALL, precision=each)[0] for each in ("float32", name))
    assert all(tensor.dtype == torch.float32 for tensor in (*other.ema.values(), *other.players["net"].parameters()))
    assert 0 < max(float((other.ema[key] - tensor).abs().max()) for key, tensor in exact.ema.items()) < 2e-3


@pytest.mark.usefixtures("able")
@pytest.mark.parametrize("name", ["float32", "tf32", "bfloat16"])
def test_tf32_alone_lets_float32_be_rounded(name: str) -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        Precision(name, CPU)
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == (name == "tf32")
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("able")
def test_scaling_and_unscaling_change_no_gradient() -> None:
    of, net = Precision("float16", CPU), torch.nn.Linear(3, 1)
    net(torch.ones(2, 3)).sum().backward()
    plain = [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]
    net.zero_grad()
    (net(torch.ones(2, 3)).sum() * of.scale(Carried())).backward()
    assert float(net.bias.grad[0]) == 2 * 65536.0
    of.unscale(net, Carried())
    assert all(torch.equal(parameter.grad, before) for parameter, before in zip(net.parameters(), plain, strict=True))


@pytest.fixture
def too_high(able: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scale starts so high that the first steps overflow, and grows again after three."""
    monkeypatch.setattr(optimisation, "LOSS_SCALE", 2.0**24)
    monkeypatch.setattr(precision, "GROWTH_STEPS", 3)


@pytest.mark.usefixtures("too_high")
def test_the_scale_is_halved_by_an_overflow_and_doubled_when_it_stayed(tmp_path: Path) -> None:
    """Steps that overflow are left out and counted, and are no error; their lines have no loss."""
    state, lines, said = run(tmp_path, **SMALL, images=120, precision="float16")
    lines = lines[1:]
    first = next(number for number, (_, line) in enumerate(lines) if "loss" in line)
    assert 2 <= first < 12 and said == ["starting from scratch"]
    assert [line["loss_scale"] for _, line in lines[:first]] == [2.0 ** (23 - step) for step in range(first)]
    assert [line["skipped_steps"] for _, line in lines[: first + 3]] == [*range(1, first + 1), first, first, first]
    low = 2.0 ** (24 - first)
    assert [line["loss_scale"] for _, line in lines[first : first + 3]] == [low, low, 2 * low]
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state.ema.values()) and state.carried.skipped_in_row == 0


@pytest.mark.usefixtures("too_high")
def test_the_scale_is_state(tmp_path: Path) -> None:
    """Broken off while it falls, and between two doublings."""
    assert_broken_off_is_whole(tmp_path, [2, 6], **SMALL, images=144, precision="float16")


def test_time_is_estimated_by_the_units_of_the_precision() -> None:
    """TensorFloat32 has units of its own beside float32's; float16 computes as fast as bfloat16 does."""
    peaks = {name: summary.peak_of("NVIDIA H100 80GB HBM3", name) for name in ("float32", "tf32", "bfloat16", "float16")}
    assert None not in peaks.values()
    assert peaks["float32"] < peaks["tf32"] < peaks["bfloat16"] == peaks["float16"]


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(BadInput, match=r"training.precision='half'; allowed: input should be 'float32', 'tf32', 'bfloat16' or 'float16'"):
        stage(precision="half")
