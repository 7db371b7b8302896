"""Feature extraction: named features, user-supplied extractors, and their outputs as maps."""
