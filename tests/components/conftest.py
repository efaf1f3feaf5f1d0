"""Fixtures that several tests of the rooms share."""

from tests.components.following import emulator  # noqa: F401
