"""The committed figures of the kernels are what their script draws from the sources as they are."""

from pathlib import Path

import pytest

from docs.pictures import kernels


@pytest.mark.parametrize("path", kernels.files(), ids=lambda path: path.stem)
def test_a_figure_is_as_drawn(path: Path):
    assert path.read_text() == kernels.files()[path], "expected: python -m docs.pictures.kernels"


def test_a_missing_constant_is_an_error():
    with pytest.raises(ValueError, match=r"csrc/simd/tile\.h has no integer constant kNothing"):
        kernels.constant("csrc/simd/tile.h", "kNothing")
