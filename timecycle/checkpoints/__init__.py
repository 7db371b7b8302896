"""Published and own checkpoints: read without running pickled code, recognized, converted."""
