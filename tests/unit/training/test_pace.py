"""Speed and memory in the log: rates by arithmetic that a reader can repeat, a share of the peak only of a device that is known."""

import pytest
import torch

from sr3_core import summary
from sr3_core.config import Plugin, Stage
from sr3_core.training import machine
from sr3_core.training.pace import NAMES, Pace, model_flops
from sr3_core.training.worker import LocalWorker
from tests.plugins import tiny_objective
from tests.unit.training.test_window import diffusion_stage


def test_rates_of_a_stretch() -> None:
    stage = diffusion_stage()
    line = pace(stage, LocalWorker()).line(images=64, seconds=4.0, waited=1.0)
    assert (line["images_per_second"], line["data_wait_share"]) == (16.0, 0.25)
    assert line["flops_per_second"] == 16 * flops(stage) == 16 * summary.cost(stage).training_flops
    assert 10e6 < line["peak_host_bytes"] < 1e12
    assert set(line) <= NAMES and "model_flops_utilisation" not in line, "of a CPU no peak is known"


def test_what_is_computed_again_is_no_work_of_the_model() -> None:
    stage = diffusion_stage()
    again = stage.model_copy(
        update={"model": stage.model.model_copy(update={"options": {**stage.model.options, "checkpoint_blocks": True}})}
    )
    assert flops(again) == flops(stage) < summary.cost(again).training_flops


def test_counting_draws_no_random_numbers() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    flops(diffusion_stage())
    assert torch.equal(torch.rand(1), expected)


def test_networks_of_the_objective_s_own_are_not_counted() -> None:
    assert model_flops(tiny_objective.stage(), ("net",)) is None
    assert model_flops(diffusion_stage(), ("critic", "generator")) is None


def test_a_network_that_cannot_be_counted_costs_the_metric_alone() -> None:
    said: list[str] = []
    stage = diffusion_stage().model_copy(update={"model": Plugin(name="tests.plugins.uncountable")})
    speed = pace(stage, LocalWorker(), said)
    for _ in range(2):
        line = speed.line(images=1, seconds=1.0, waited=0.0)
        assert set(line) - machine.NAMES == {"images_per_second", "data_wait_share", "peak_host_bytes"}
    assert len(said) == 1 and "flops_per_second is not logged" in said[0] and "by its values" in said[0]


class Gpu(LocalWorker):
    """One of four workers with a GPU each, which are not there: only its name and memory are asked for."""

    world_size = 4

    def __init__(self) -> None:
        super().__init__(torch.device("cuda", 0))


def pace(stage: Stage, worker: LocalWorker, said: list[str] | None = None) -> Pace:
    return Pace(stage, ("denoiser",), worker=worker, say=(said if said is not None else []).append)


def flops(stage: Stage) -> int:
    counted = model_flops(stage, ("denoiser",))
    assert counted is not None
    return counted


def test_the_share_of_the_peak_is_of_all_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5_000_000)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60, 80))
    stage = diffusion_stage(precision="bfloat16")
    line = pace(stage, Gpu()).line(images=1000, seconds=1.0, waited=0.0)
    assert line["model_flops_utilisation"] == pytest.approx(1000 * flops(stage) / (4 * 989e12))
    assert line["system/gpu_memory_share"] == 0.25
    assert line["peak_device_bytes"] == 5e6 and set(line) == NAMES


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA H200", "bfloat16", 989e12),
        ("NVIDIA A100-SXM4-80GB", "tf32", 156e12),
        ("NVIDIA A100-SXM4-80GB", "float32", 19.5e12),
        ("NVIDIA A100-PCIE-40GB", "float32", None),
        ("NVIDIA L4", "bfloat16", 121e12),
        ("Tesla T4", "bfloat16", 8.1e12),
        ("NVIDIA H100 PCIe", "bfloat16", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bfloat16", None),
        ("NVIDIA L40S", "bfloat16", None),
        ("NVIDIA GH200 480GB", "bfloat16", None),
    ],
)
def test_a_peak_is_of_the_board_itself(name: str, precision: str, peak: float | None) -> None:
    assert summary.peak_of(name, precision) == peak
