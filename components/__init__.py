"""The rooms of the pipeline, one folder each; rooms meet only through what stands under root."""
