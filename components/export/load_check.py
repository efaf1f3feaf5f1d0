"""Run as a file in a fresh process: load a registered model as a stranger would and upscale one image. Prints one JSON line.

    python -P load_check.py MODEL_URI TRACKING_URI HEIGHT WIDTH CHANNELS

Imports nothing of this project: what the model needs must have come with it.
"""

import json
import sys


def main(model_uri: str, tracking_uri: str, height: int, width: int, channels: int) -> None:
    """Print the output's shape and type, and where sr3_core was found."""
    import mlflow
    import numpy as np

    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(tracking_uri)
    model = mlflow.pyfunc.load_model(model_uri)
    ramp = np.linspace(0, 255, height * width * channels).reshape(1, height, width, channels)
    output = model.predict(ramp.astype(np.uint8))
    code = getattr(sys.modules.get("sr3_core"), "__file__", None)
    print(json.dumps({"shape": list(output.shape), "dtype": str(output.dtype), "sr3_core": code}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *(int(argument) for argument in sys.argv[3:6]))
