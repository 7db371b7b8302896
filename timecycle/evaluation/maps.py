"""Conversion between points and maps on the feature grid, in NumPy without torch."""

import numpy as np

from timecycle.errors import InputError

SIGMA = 0.5
"""Standard deviation of the joints' Gaussians in TimeCycle, UVC and CRW, in feature positions."""


def gaussian_maps(places: np.ndarray, grid: tuple[int, int], sigma: float = SIGMA) -> np.ndarray:
    """Encode each place as a Gaussian map.

    Args:
        places: [L, 2] x and y in feature positions, from 0.
        grid: (height, width) of the maps.
        sigma: standard deviation, in feature positions; by default 0.5.

    Returns:
        float32 [L, h, w], 1 at the position nearest to the place, truncated at about 3 sigma; 0 everywhere if it is
        outside the grid.

    Raises:
        InputError: sigma is not positive.

    Source: the pose programs of TimeCycle (Wang et al., CVPR 2019), UVC (Li et al., NeurIPS 2019) and CRW (Jabri et
    al., NeurIPS 2020). With their sigma of 0.5 the window is 4 x 4 positions, two before the center to one after.
    Their rounding toward zero shifts a joint whose window crosses the left or upper border by up to two positions; this
    function does not.
    """
    if not sigma > 0:
        raise InputError(f"sigma is {sigma}; expected a positive number of feature positions")
    height, width = grid
    size = 6 * sigma + 1
    # The window's corner is rounded down, and the center follows: for sigma 0.5, the nearest position.
    centers = np.floor(places - 3 * sigma) + size // 2
    before, behind = size // 2, np.ceil(size) - size // 2 - 1

    def factor(center: np.ndarray, length: int) -> np.ndarray:
        away = np.arange(length) - center[:, None]
        return np.where((away >= -before) & (away <= behind), np.exp(-(away**2) / (2 * sigma**2)), 0)

    return (factor(centers[:, 1], height)[:, :, None] * factor(centers[:, 0], width)[:, None]).astype(np.float32)


def bilinear_maps(places: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Encode each place as bilinear weights, with sum 1, of the four positions around it, whose mean is the place.

    Args:
        places: [L, 2] x and y in feature positions, from 0; clipped to the grid.
        grid: (height, width) of the maps.

    Returns:
        float32 [L, h, w].
    """

    def factor(place: np.ndarray, length: int) -> np.ndarray:
        inside = np.clip(place, 0, length - 1)
        return np.maximum(0, 1 - np.abs(np.arange(length) - inside[:, None]))

    return (factor(places[:, 1], grid[0])[:, :, None] * factor(places[:, 0], grid[1])[:, None]).astype(np.float32)


def strongest_places(maps: np.ndarray, top: int) -> np.ndarray:
    """Decode each map to a place: the mean of its `top` strongest positions, weighted by their values.

    Args:
        maps: [L, h, w], not negative.
        top: number of positions, at most all of the map; ties go to the lower index.

    Returns:
        float64 [L, 2], x and y in feature positions; NaN for maps that are 0 everywhere.

    Raises:
        InputError: top is below 1.

    Source: the pose programs of TimeCycle and UVC, with 5 positions, and of CRW, with 3.
    """
    if top < 1:
        raise InputError(f"top is {top}; expected at least one position")
    flat = maps.reshape(len(maps), -1).astype(np.float64)
    strongest = np.argsort(-flat, axis=1, kind="stable")[:, :top]
    values = np.take_along_axis(flat, strongest, axis=1)
    total = values.sum(axis=1, keepdims=True)
    weights = np.divide(values, total, out=np.full_like(values, np.nan), where=total > 0)
    rows, columns = np.divmod(strongest, maps.shape[2])
    return np.stack([(columns * weights).sum(1), (rows * weights).sum(1)], axis=1)
