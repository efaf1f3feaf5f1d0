"""What a training turn means, one family a file. A file offers ``Options`` and ``Objective`` (see ``diffusion.py``).

An ``Objective(stage, measured)`` refuses (BadInput) options that cannot work and sampling that cannot; its ``notes``, a tuple of lines, are
what a reader of the results has to know beside them.
"""
