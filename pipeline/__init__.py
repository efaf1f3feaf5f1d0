"""The whole way as one Kubeflow pipeline: the DAG, its resources, how it is run here or submitted. No torch, no Ray."""
