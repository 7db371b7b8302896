"""Imported by every Python process that a program under test starts: its changes of files count too."""

from tests.crash import kill_points

kill_points.install()
