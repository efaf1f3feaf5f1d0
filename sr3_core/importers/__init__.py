"""Weights of other SR3 codes read as ModelBundles."""
