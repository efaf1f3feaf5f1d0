"""What a job of the evaluation is expected to cost: pixels through the network, as often as the objective says that it is called."""

from typing import Any

import pytest

from components.evaluate import plan
from sr3_core import config
from sr3_core.config import Evaluation, Plugin, Search
from tests.conftest import RECIPES

SETTING = plan.Setting("/out", "/shards", (("/a", "1"), ("/b", "2")), 3, 8, "bicubic", 0, 1, "cpu")
STAGES = config.load(str(RECIPES / "pair.yaml")).stages  # 8 -> 16 -> 32
TASKS = plan.tasks(STAGES)
PHOTO = plan.Photo("test", 0, "k", "p", (8, 16, 32), None)
GIVEN = {"grid": "given", "gammas": [0.001, 0.3, 0.9], "steps": 3, "start": None, "end": None}


def evaluation(**values: Any) -> Evaluation:
    return config.parse(Evaluation, {"metrics": ["psnr"], "baselines": ["bicubic"], **values})


@pytest.mark.parametrize(
    ("change", "calls"),
    [({}, 2), ({"steps": 5}, 5), ({"sampler": "heun", "steps": 4}, 7), (GIVEN, 3), ({"sampler": "heun", **GIVEN}, 5)],
)
def test_a_job_costs_its_network_calls(change: dict[str, Any], calls: int) -> None:
    """A variant of both stages: the chain from 8 to 32, and the second stage alone."""
    chosen = {stage.name: stage.sampling for stage in STAGES}
    jobs = plan.model_jobs(SETTING, STAGES, TASKS, [PHOTO], evaluation(variants={"other": change}), chosen=chosen)
    costs = {(job.model, job.tasks[0].first): job.cost for job in jobs}
    assert costs["other", 1] == calls * 32**2 and costs["ours", 1] == 2 * 32**2
    assert costs["other", 0] == calls * (16**2 + 32**2)
    assert plan.longest_first(jobs)[0].cost == max(costs.values())


def test_candidates_cost_the_calls_of_their_stage() -> None:
    search = config.parse(Search, {"metric": "psnr_y", "candidates": [{"steps": 3}, {"sampler": "heun", "steps": 3}]})
    jobs = plan.search_jobs(SETTING, STAGES, TASKS, [PHOTO], search, judge=Plugin(name="psnr"))
    assert [(job.tasks[0].name, job.cost) for job in jobs] == [("x16", 768), ("x16", 1280), ("x32", 3072), ("x32", 5120)]
    baselines = plan.baseline_jobs(SETTING, TASKS, [PHOTO], evaluation())
    assert all(0 < job.cost < 768 for job in baselines)


def test_draws_from_noise_cost_every_stage() -> None:
    """What is changed of the other stages is left out of the first, which nothing judges."""
    stages = config.load(str(RECIPES / "noise.yaml")).stages
    chosen = {stage.name: {**stage.sampling, "sampler": "heun", "grid": "log_snr"} for stage in stages}
    drawn = plan.draws(SETTING, stages, plan.generated(stages), chosen=chosen)
    expected = sum((2 * stage.sampling["steps"] - 1) * stage.high**2 for stage in stages)
    assert {draw.cost for draw in drawn} == {expected}
    photo = plan.Photo("test", 0, "k", "p", (16, 32), None)
    jobs = plan.model_jobs(SETTING, stages, plan.tasks(stages), [photo], evaluation(variants={"other": {"projection": 1}}), chosen=chosen)
    assert len(jobs) == 2 and jobs[0].identity() != jobs[1].identity()
