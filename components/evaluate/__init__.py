"""The evaluate room: bundles are measured beside baselines and become an EvalReport."""
