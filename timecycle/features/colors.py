"""Features as colors: their first three principal components as red, green and blue."""

import numpy as np
import torch
from torch import Tensor

COMPONENTS = 3
CLIPPED = 0.01
"""Share of the positions that is darker, or brighter, than a color can show."""


def pca_colors(features: Tensor) -> tuple[np.ndarray, float]:
    """The first three principal components of features of several frames, taken together, as colors.

    Args:
        features: [F, N, D], any floating dtype.

    Returns (uint8 RGB [F, N, 3], the share of the variance that the components explain). Each component is scaled so
    that all but 1 % of the positions at either end are within the range of its color. Components that do not exist
    (D < 3, or equal features) are gray.
    """
    rows = features.detach().flatten(0, 1).float().cpu()
    rows = rows - rows.mean(dim=0)
    covariance = (rows.T @ rows).double() / max(1, len(rows))
    values, vectors = torch.linalg.eigh(covariance)  # rising
    vectors = vectors[:, -COMPONENTS:].flip(1)
    # The sign of a component is arbitrary: the largest entry is made positive.
    signs = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True)).sign()
    found = (rows @ (vectors * signs).float()).numpy()
    colors = np.full((len(rows), COMPONENTS), 127, np.uint8)
    for channel, component in enumerate(found.T):
        least, most = np.quantile(component, [CLIPPED, 1 - CLIPPED])
        if most - least > 1e-6 * max(1e-12, float(np.abs(rows.numpy()).max())):
            colors[:, channel] = np.rint(255 * ((component - least) / (most - least)).clip(0, 1))
    total = float(values.clamp(min=0).sum())
    explained = float(values[-COMPONENTS:].clamp(min=0).sum()) / total if total > 0 else 0.0
    return colors.reshape(*features.shape[:2], COMPONENTS), explained
