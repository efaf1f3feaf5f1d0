"""Run as a file in a fresh process: load a registered model as a stranger would and call it with one example. Prints one JSON line.

    python -P load_check.py MODEL_URI TRACKING_URI '{"shape": [1, 8, 8, 3], "dtype": "uint8", "params": {}}'

Imports nothing of this project: what the model needs must have come with it.
"""

import json
import math
import sys
from typing import Any


def main(model_uri: str, tracking_uri: str, example: dict[str, Any]) -> None:
    """Print the shape and type of what the model makes of a ramp over the range of ``dtype``, and where sr3_core was found."""
    import mlflow
    import numpy as np

    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(tracking_uri)
    model = mlflow.pyfunc.load_model(model_uri)
    ramp = np.linspace(0, np.iinfo(example["dtype"]).max, math.prod(example["shape"])).reshape(example["shape"])
    output = model.predict(ramp.astype(example["dtype"]), params=example["params"])
    code = getattr(sys.modules.get("sr3_core"), "__file__", None)
    print(json.dumps({"shape": list(output.shape), "dtype": str(output.dtype), "sr3_core": code}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
