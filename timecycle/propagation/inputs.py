"""Features and labels as `LabelPropagator` takes them: converted, and refused where they do not fit together."""

import numpy as np
import torch
from torch import Tensor

from timecycle.errors import InputError
from timecycle.features.maps import as_tensor, described


def as_labels(labels: object) -> Tensor:
    """Soft labels as a detached tensor. Raises InputError for anything but a tensor or an array."""
    if not isinstance(labels, Tensor | np.ndarray):
        raise InputError(f"labels is {described(labels)}; expected [L, h, w] or [B, L, h, w]")
    return torch.as_tensor(labels).detach()


def check_labels(labels: Tensor, features: torch.Size) -> None:
    """Raise InputError for labels that are not [B, L, h, w] for features of a shape [B, D, h, w]."""
    if labels.ndim != 4 or labels.shape[0] != features[0] or labels.shape[2:] != features[2:]:
        raise InputError(
            f"labels has shape {list(labels.shape)}; expected [{features[0]}, L, {features[2]}, {features[3]}], the "
            "videos and the grid of the features"
        )


def as_features(features: object) -> Tensor:
    """Features as a detached tensor. Raises InputError unless floating point and not empty."""
    found = as_tensor(features)
    if found is None or not found.numel():
        raise InputError(f"features is {described(features)}; expected floating point [D, h, w] or [B, D, h, w]")
    return found
