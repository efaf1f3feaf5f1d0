"""How busy the machine of a worker is, from what Linux and the GPU's driver tell without a library: whoever keeps it so."""

from collections.abc import Sequence
from pathlib import Path

import torch

NAMES = frozenset({"system/cpu_share", "system/memory_share", "system/gpu_memory_share"})
_STAT, _MEMINFO = Path("/proc/stat"), Path("/proc/meminfo")
_COUNTED = 8  # user, nice, system, idle, iowait, irq, softirq, steal; the guests' time behind them is in user already
_IDLE = slice(3, 5)


class Machine:
    """Shares in 0..1 since the last ``line``, or since this was made. Where there is no /proc, of the GPU alone."""

    def __init__(self) -> None:
        self._ticks = cpu_ticks(_STAT.read_text()) if _STAT.is_file() else None

    def line(self, device: torch.device) -> dict[str, float]:
        """By name; ``system/gpu_memory_share`` is of ``device``, a CUDA one, whoever uses it."""
        found: dict[str, float] = {}
        if self._ticks is not None:
            before, self._ticks = self._ticks, cpu_ticks(_STAT.read_text())
            found |= {"system/cpu_share": cpu_share(before, self._ticks), "system/memory_share": memory_share(_MEMINFO.read_text())}
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            found["system/gpu_memory_share"] = 1 - free / total
        return found


def cpu_ticks(stat: str) -> list[int]:
    """Ticks of all cores by kind, of the text of /proc/stat (proc(5))."""
    return [int(count) for count in stat.split("\n", 1)[0].split()[1 : 1 + _COUNTED]]


def cpu_share(before: Sequence[int], after: Sequence[int]) -> float:
    """The part of the ticks between that were not idle; 0 when none passed."""
    passed = [max(0, late - early) for early, late in zip(before, after, strict=True)]  # iowait may run backwards
    return 1 - sum(passed[_IDLE]) / sum(passed) if sum(passed) else 0.0


def memory_share(meminfo: str) -> float:
    """The part of the memory that a new program could not have, of the text of /proc/meminfo (proc(5))."""
    kilobytes = {name: int(rest.split()[0]) for name, rest in (line.split(":", 1) for line in meminfo.splitlines() if ":" in line)}
    return 1 - kilobytes["MemAvailable"] / kilobytes["MemTotal"]
