"""The registered model as code (MLflow models-from-code): MLflow runs this file when it loads the model; nothing of it is pickled.

sr3_core comes with the model (code_paths), the weights are its artifact ``bundle``. Nothing else of the project is imported here.
"""

from typing import Any

import numpy as np


def declare() -> None:
    """Tell MLflow, which runs this file, what the model is."""
    from mlflow.models import set_model
    from mlflow.pyfunc import PythonModel

    class RegisteredModel(PythonModel):
        """Images in, larger images out; of a model that starts from noise: seeds in, images out.

        In: (N, H, W, C) array of uint8, or uint16 for a model of 16 bits, or a list of (H, W, C) arrays (by ``unwrap_python_model()``: a
        signature takes arrays alone). Out: of the same type, (N, scale x H, scale x W, C), or a list when the input was one.
        params: ``seed`` (>= 0), ``steps`` (0: the chosen number), ``sampler`` ("": the chosen one); of a model with labels also ``label``,
        the class of all images of the call (-1: none).

        From noise. In: int64 seeds (N,), or (N, 1), >= 0. Out: images (N, side, side, C), image i by seed i alone. params: no ``seed``.
        """

        def load_context(self, context: Any) -> None:
            """Load the bundle that travels with the model."""
            from sr3_core.inference import load_model

            self._model = load_model(context.artifacts["bundle"]).to_accelerator()

        def predict(self, context, model_input: np.ndarray, params=None):  # of other hints MLflow would make a schema, or a warning
            """Upscale each image; image i draws its noise from (seed, i). Of seeds: draw each."""
            params = params or {}
            given = {key: params[key] for key in ("steps", "sampler") if params.get(key)}
            given["label"] = None if params.get("label", -1) == -1 else int(params["label"])
            if self._model.side is not None:
                return np.stack([self._model.sample(seed=seed, **given) for seed in given_seeds(np.asarray(model_input))])
            seed = int(params.get("seed", 0))
            made = [self._model.upscale(np.asarray(image), seed=seed, sample=index, **given) for index, image in enumerate(model_input)]
            return made if isinstance(model_input, list) else np.stack(made)

    set_model(RegisteredModel())


def given_seeds(batch: np.ndarray) -> list[int]:
    """The seeds of a batch (N,) or (N, 1) of integers, 0 or more. Raises BadInput for another one."""
    from sr3_core.errors import BadInput

    if batch.dtype.kind not in "iu" or batch.ndim not in (1, 2) or batch.size != len(batch) or not batch.size:
        raise BadInput(f"seeds of {batch.dtype} {batch.shape}", "int64 (N,) or (N, 1), N >= 1", "give one seed an image, as np.arange(4)")
    if batch.min() < 0:
        raise BadInput(f"seed {batch.min()}", "seeds of 0 or more", "give one seed an image, as np.arange(4)")
    return [int(seed) for seed in batch.reshape(-1)]


declare()
