"""Tracking of objects in a person's own video."""
