"""The Triton kernels, in a checkout: they stand at its top level (kernels/), and installed, in this package's place."""

from pathlib import Path

__path__.append(str(Path(__file__).parents[2] / "kernels"))
