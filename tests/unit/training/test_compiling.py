"""Compiling by regions: every block is compiled and stays so, the numbers stay, a broken run is bit-equal, a missing compiler is said.

What torch's code generator makes of the graphs is its own matter and takes minutes on a CPU: here they are run as they were captured.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._inductor.utils import run_and_get_code

from sr3_core import config
from sr3_core.errors import BadInput
from sr3_core.models import unet
from sr3_core.training import compiling
from tests.plugins.broken_off import assert_broken_off_is_whole, run
from tests.plugins.tiny_objective import stage

CPU = torch.device("cpu")
GAMMA = torch.tensor([0.3, 0.7], dtype=torch.float64)


@pytest.fixture(autouse=True)
def captured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    limit = torch._dynamo.config.recompile_limit
    torch.compiler.reset()
    yield
    torch.compiler.reset()
    torch._dynamo.config.recompile_limit = limit


def step(network: nn.Module) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Output and gradients for a fixed input and dropout; gradients are taken away."""
    torch.manual_seed(3)
    noisy, low = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16)
    output = network(noisy, low, GAMMA)
    output.square().mean().backward()
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    network.zero_grad()
    return output.detach(), gradients


def test_every_block_of_a_unet_is_compiled_and_none_again() -> None:
    """More kinds of blocks than torch's own limit for one code object, over which it would go on uncompiled."""
    options = config.options(unet.Options, {"channels": 8, "multipliers": [1, 2, 3], "blocks": 1, "dropout": 0.1}, "unet")
    network = unet.build(options, stage().model_copy(update={"low": 8, "high": 16})).train()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    names = list(network.state_dict())
    expected = step(network)
    assert len(network.regions()) > torch._dynamo.config.recompile_limit
    compiling.compile_regions(network, CPU)
    step(network)
    with torch.compiler.set_stance("fail_on_recompile"):
        output, gradients = step(network)
    torch.testing.assert_close(output, expected[0])
    torch.testing.assert_close(gradients, expected[1])
    assert list(network.state_dict()) == names


@pytest.mark.nightly
def test_a_norm_its_scale_and_its_silu_are_one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code that is generated for a residual block, here for a CPU: nothing is left of pointwise work beside these and the sums."""
    monkeypatch.setattr(compiling, "BACKEND", "inductor")
    options = {"channels": 8, "multipliers": [1], "blocks": 1, "noise_conditioning": "affine", "middle_attention": False}
    network = unet.build(config.options(unet.Options, options, "unet"), stage().model_copy(update={"low": 8, "high": 16})).train()
    block = network.regions()[0]
    compiling.compile_regions(block, CPU)
    x = torch.randn(2, 8, 16, 16).contiguous(memory_format=torch.channels_last).requires_grad_()
    _, codes = run_and_get_code(lambda: block(x, torch.randn(2, 32)).sum().backward())
    kernels = re.findall(r"^(cpp_fused_\w+) = ", codes[0], re.MULTILINE)
    norms = [name for name in kernels if "native_group_norm" in name]
    assert len(norms) == 2 and all("silu" in name for name in norms) and "mul" in norms[1], kernels
    assert len(kernels) <= 4, kernels


def test_a_run_learns_the_same_and_goes_on_bit_equal(tmp_path: Path) -> None:
    """The tiny network names no regions: it is compiled as one."""
    plain, _, _ = run(tmp_path / "plain", options={"width": 4})
    compiled, _, _ = assert_broken_off_is_whole(tmp_path, [3], options={"width": 4}, compile=True)
    for name, tensor in plain.ema.items():
        torch.testing.assert_close(compiled.ema[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_machine_without_a_compiler_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "c++"))
    with pytest.raises(BadInput, match=r"training\.compile on a CPU without .*; allowed: a C\+\+ compiler, or training\.compile=false"):
        run(tmp_path / "run", options={"width": 4}, compile=True)
    with pytest.raises(BadInput, match=r"training\.compile='max'"):
        stage(compile="max")
