"""What a training turn means, one family a file. A file offers ``Options`` and ``Objective`` (see ``diffusion.py``).

An ``Objective(stage, measured)`` refuses (BadInput) options that cannot work and sampling that cannot; its ``notes``, a tuple of lines, are
what a reader of the results has to know beside them. For sampling options with ``changes`` on top, ``sampling_notes(changes)`` refuses
and says the same, and ``network_calls(changes)`` counts the calls of the network for one sample. ``loss``
gives the turn's loss and metrics beside it: under the same names on every call, a number or (sum, samples), see ``training/window.py``.
"""
