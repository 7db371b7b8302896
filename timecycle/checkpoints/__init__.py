"""Checkpoints of others and our own: read without running pickled code, recognized, converted."""
