"""Tracking of objects that a person marked in a video: from a mask, a box or points to masks of every frame."""
