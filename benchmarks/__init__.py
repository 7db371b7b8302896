"""The benchmarks; README.md has the contract."""
