"""The export room: the gate, the cascade bundle and the MLflow registry."""
