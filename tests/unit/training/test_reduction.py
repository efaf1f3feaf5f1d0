"""Gradients averaged in float64: the mean of what the micro-batches gave, in the parameter's layout, and no more memory than is said."""

import gc

import torch
from torch import Tensor, nn

from sr3_core.training.reduction import Float64Gradients
from sr3_core.training.worker import LocalWorker


def held() -> int:
    """Bytes of all float64 tensors that there are in this process' memory."""
    gc.collect()
    found = [each for each in gc.get_objects() if type(each) is Tensor and each.dtype == torch.float64 and each.device.type == "cpu"]
    return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in found}.values())


class Weighing(LocalWorker):
    """Knows what of float64 there is while it averages."""

    bytes_held = 0

    def all_reduce_mean(self, tensor: Tensor) -> Tensor:
        self.bytes_held = held()
        return tensor


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 3))
    return layers.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def test_the_mean_of_the_micro_batches() -> None:
    module, worker, before = network(), Weighing(), held()
    sums, expected = Float64Gradients(module), dict[str, Tensor]()
    for image in torch.randn(3, 4, 3, 8, 8):
        module(image).square().mean().backward()
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None
            expected[name] = expected.get(name, 0.0) + parameter.grad.double()
        sums.add()
        assert all(parameter.grad is None for parameter in module.parameters())
    statistics = {name: buffer.clone() for name, buffer in module.named_buffers()}
    means = {name: (total / 3).float() for name, total in expected.items()}
    expected.clear()
    sums.finish(worker, micro_batches=3)
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and torch.equal(parameter.grad, means[name])
        assert parameter.grad.stride() == parameter.stride()
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in module.named_buffers())
    averaged = [*module.parameters(), *(buffer for buffer in module.buffers() if buffer.is_floating_point())]
    assert worker.bytes_held - before == 8 * sum(tensor.numel() for tensor in averaged), "sums that were sent are kept"


def test_nothing_to_average() -> None:
    Float64Gradients(nn.Identity()).finish(LocalWorker(), micro_batches=1)
