"""What the training tells MLflow comes out where Prometheus reads Ray's metrics."""

import os
import re
import subprocess
import sys
import time
import urllib.request

from components.train.gauges import GAUGES, SWITCH
from tests.conftest import REPOSITORY, RayHead

_TELLS = """
import sys, time
import ray
from components.train.gauges import Gauges
ray.init(address=sys.argv[1], log_to_driver=False)
Gauges(sys.argv[2]).tell(64, {"loss": 0.25, "images_per_second": 12.5, "validation/psnr_rgb": 30.0, "system/cpu": 1.0})
print([(node["NodeManagerAddress"], node["MetricsExportPort"]) for node in ray.nodes() if node["Alive"]][0], flush=True)
time.sleep(120)
"""


def told(stage: str, switch: str, ray_head: RayHead) -> subprocess.Popen[str]:
    """A process that tells its metrics and goes on living."""
    environment = {**os.environ, SWITCH: switch, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", _TELLS, ray_head.address, stage]
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)


def test_prometheus_reads_the_gauges_of_a_stage(ray_head: RayHead) -> None:
    processes = [told("x2", "1", ray_head), told("silent", "0", ray_head)]
    try:
        address, port = re.findall(r"\('([\d.]+)', (\d+)\)", processes[0].stdout.readline() if processes[0].stdout else "")[0]
        lines: dict[str, float] = {}
        deadline = time.monotonic() + 90
        while "ray_sr3_train_loss" not in lines and time.monotonic() < deadline:
            time.sleep(1)
            with urllib.request.urlopen(f"http://{address}:{port}/metrics", timeout=10) as answer:
                text = answer.read().decode()
            found = re.findall(r'^(ray_sr3_train_\w+)\{[^}]*stage="x2"[^}]*\} (\S+)$', text, re.MULTILINE)
            lines = {name: float(value) for name, value in found}
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert lines == {
        "ray_sr3_train_images_seen": 64.0, "ray_sr3_train_loss": 0.25, "ray_sr3_train_images_per_second": 12.5,
        "ray_sr3_train_validation_psnr_rgb": 30.0,
    }  # fmt: skip
    assert {name.removeprefix("ray_sr3_train_") for name in lines} <= set(GAUGES)
    assert 'stage="silent"' not in text
