"""Training: one loop for every family, its state and checkpoints, and the worker it sees. No Ray, no kfp, no family here."""
