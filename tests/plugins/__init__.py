"""Plug-ins from outside the project, named in recipes by their dotted path."""
