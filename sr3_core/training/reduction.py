"""Gradients added up and averaged in float64, so that a step is the same for any number of workers. No DistributedDataParallel here."""

import torch
from torch import Tensor, nn

from sr3_core.training.worker import Worker


class Float64Gradients:
    """Sums in float64 of the gradients that ``module`` gets from its micro-batches, one after another.

    A micro-batch gives the same float32 gradient on whatever worker; float32 sums of them differ by the order of addition, hence by the
    number of workers, about 1e-7 of their size. Here that is 1e-16, and what is left after rounding to the parameters' type is almost
    always nothing. Costs 8 bytes a parameter in memory, twice that for a moment when the activations are gone, and twice the traffic of
    float32, none of it beside the backward.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._sums: dict[nn.Parameter, Tensor] = {}

    def add(self) -> None:
        """Take the gradients of one micro-batch away from the parameters, into the sums."""
        for parameter in self._module.parameters():
            if parameter.grad is not None:
                if parameter in self._sums:
                    self._sums[parameter].add_(parameter.grad)
                else:
                    self._sums[parameter] = parameter.grad.double()
                parameter.grad = None

    def finish(self, worker: Worker, *, micro_batches: int) -> None:
        """Give the parameters the mean gradient over the ``micro_batches`` of each worker; floating-point buffers become their means."""
        buffers = [buffer for buffer in self._module.buffers() if buffer.is_floating_point()]
        parameters = list(self._sums)
        sizes = [tensor.numel() for tensor in (*parameters, *buffers)]
        if not sizes:
            return
        sent = torch.empty(sum(sizes), dtype=torch.float64, device=(*parameters, *buffers)[0].device)
        parts = sent.split(sizes)
        for parameter, part in zip(parameters, parts, strict=False):
            torch.div(self._sums.pop(parameter), micro_batches, out=part.view(parameter.shape))
        for buffer, part in zip(buffers, parts[len(parameters) :], strict=True):
            part.view(buffer.shape).copy_(buffer)
        means = worker.all_reduce_mean(sent).split(sizes)
        for parameter, mean in zip(parameters, means, strict=False):
            # in the parameter's memory layout: fused kernels walk both by address
            parameter.grad = torch.empty_like(parameter).copy_(mean.view(parameter.shape))
        for buffer, mean in zip(buffers, means[len(parameters) :], strict=True):
            buffer.copy_(mean.view(buffer.shape))
