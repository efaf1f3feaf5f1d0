"""Networks, one family a file. A file offers ``Options`` and ``build(options, stage) -> nn.Module``."""
