"""What a training turn means, one family a file. A file offers ``Options`` and ``Objective`` (see ``diffusion.py``)."""
