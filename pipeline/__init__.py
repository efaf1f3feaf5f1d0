"""The whole way as one Kubeflow pipeline: the DAG, its resources, how it is run here or submitted. No torch, no Ray."""

DEFAULT_ROOT = "sr3-runs"  # in the folder a command is given in
DEFAULT_MODEL = "models:/sr3-demo@champion"  # what the demo registers
