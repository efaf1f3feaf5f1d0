"""What a stage's training tells MLflow, as gauges of the Ray it trains on too: Prometheus reads ``ray_sr3_train_<name>`` with Ray's own."""

import os
from collections.abc import Mapping
from typing import Any

SWITCH = "RAY_TRAIN_METRICS_ENABLED"  # Ray Train's own: "1" in the pods of a cluster; on one machine nobody reads them
GAUGES = {
    "images_seen": "Images seen by all workers since the beginning",
    "loss": "Training loss, mean of the last logged stretch",
    "gradient_norm": "Norm of the gradient, mean of the last logged stretch",
    "images_per_second": "Images per second of all workers",
    "data_wait_share": "Share of the time that the worker that waits most waits for data, 0 to 1",
    "model_flops_utilisation": "FLOP/s of the model as a share of the devices' peak, 0 to 1",
    "validation_loss": "Loss of the averaged weights on held-out images",
    "validation_psnr_rgb": "PSNR of the averaged weights on held-out images, dB",
}


class Gauges:
    """The gauges of one stage, labelled with its name. Where ``SWITCH`` is not 1 nothing is made and nothing is told."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._gauges: dict[str, Any] = {}

    def tell(self, images_seen: int, metrics: Mapping[str, float]) -> None:
        """Set what ``metrics`` has of ``GAUGES``, by the names of the log (``validation/loss``); a name they lack stays as it was.

        Called in a process that is connected to Ray.
        """
        if os.environ.get(SWITCH) != "1":
            return
        from ray.util.metrics import Gauge

        values = {name.replace("/", "_"): value for name, value in {**metrics, "images_seen": images_seen}.items()}
        for name, text in GAUGES.items():
            if name in values:
                if name not in self._gauges:
                    self._gauges[name] = Gauge(f"sr3_train_{name}", description=text, tag_keys=("stage",))
                self._gauges[name].set(float(values[name]), tags={"stage": self._stage})
