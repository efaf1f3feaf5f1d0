"""How busy the machine is: the arithmetic of proc(5) on texts with known shares, and on this machine's own."""

import pytest
import torch

from sr3_core.training.machine import NAMES, Machine, cpu_share, cpu_ticks, memory_share

STAT = "cpu  {user} 0 100 {idle} {waiting} 0 0 0 7777 0\ncpu0 1 2 3 4 5 6 7 8 9 10\nctxt 5\n"


@pytest.mark.parametrize(
    ("after", "share"),
    [
        ({"user": 130, "idle": 110, "waiting": 20}, 0.3),
        ({"user": 100, "idle": 60, "waiting": 10}, 0.0),
        ({"user": 140, "idle": 50, "waiting": 10}, 1.0),
        ({"user": 110, "idle": 60, "waiting": 5}, 0.5),  # iowait went backwards
        ({"user": 100, "idle": 50, "waiting": 10}, 0.0),  # no tick passed
    ],
)
def test_the_share_of_the_ticks_that_were_not_idle(after: dict[str, int], share: float) -> None:
    before = cpu_ticks(STAT.format(user=100, idle=50, waiting=10))
    assert cpu_share(before, cpu_ticks(STAT.format(**after))) == pytest.approx(share)


def test_memory_that_could_be_had_is_free() -> None:
    assert memory_share("MemTotal:  1000 kB\nMemFree:  100 kB\nMemAvailable:  750 kB\nHugePages_Total:  0\n") == 0.25


def test_this_machine() -> None:
    line = Machine().line(torch.device("cpu"))
    assert set(line) == {"system/cpu_share", "system/memory_share"} < NAMES
    assert all(0 <= share <= 1 for share in line.values())
