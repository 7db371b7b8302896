"""DAVIS: masks of its sequences and their J and F. Scoring (`scores`, `metrics`, `tables`) needs no torch."""
