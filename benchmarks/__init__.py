"""Benchmarks; README.md says how they measure."""
