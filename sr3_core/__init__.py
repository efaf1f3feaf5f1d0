"""The science of the project: it knows no orchestrator and runs on a laptop CPU."""
