"""One network call of sampling as a CUDA graph: recorded once, replayed at every step, with no work of the host between its kernels."""

from collections.abc import Callable

import torch
from torch import Tensor

from sr3_core.errors import BadInput

Call = Callable[[Tensor, Tensor], Tensor]
_WARM_UP = 3  # calls before the recording, in which cuDNN chooses and memory is found (torch.cuda.graphs' own advice)


def check(device: torch.device) -> None:
    """BadInput unless ``device`` is a CUDA one."""
    if device.type != "cuda":
        got = f"sampling.cuda_graph for a network on {device.type}"
        raise BadInput(got, "a network on a CUDA GPU", "set sampling.cuda_graph=false, or sample on a GPU")


class Recorded:
    """``call`` (noisy (N, C, H, W), gamma (N,)) -> x0 of fixed shapes, recorded at the first call; the others only replay it.

    Whatever else ``call`` reads must stay where it is in memory. Values come and go by copies, so that what was returned stays as it is.
    BadInput, when it is made, for a device without CUDA.
    """

    def __init__(self, call: Call, device: torch.device) -> None:
        check(device)
        self._call = call
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, noisy: Tensor, gamma: Tensor) -> Tensor:
        if self._graph is None:
            self._record(noisy, gamma)
        assert self._graph is not None
        self._noisy.copy_(noisy)
        self._gamma.copy_(gamma)
        self._graph.replay()
        return self._x0.clone()

    def _record(self, noisy: Tensor, gamma: Tensor) -> None:
        self._noisy, self._gamma = noisy.clone(), gamma.clone()
        cached = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)  # a weight that was cast outside would be gone when the graph is replayed
        try:
            beside = torch.cuda.Stream(noisy.device)
            beside.wait_stream(torch.cuda.current_stream(noisy.device))
            with torch.cuda.stream(beside):
                for _ in range(_WARM_UP):
                    self._call(self._noisy, self._gamma)
            torch.cuda.current_stream(noisy.device).wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads copy batches and may allocate meanwhile
                self._x0 = self._call(self._noisy, self._gamma)
        finally:
            torch.set_autocast_cache_enabled(cached)
        self._graph = graph
