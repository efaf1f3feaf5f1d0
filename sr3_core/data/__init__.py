"""From a source of photos to the batches a stage trains on: sources, degradation, shards, order, loader."""
