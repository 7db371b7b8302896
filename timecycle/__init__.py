"""timecycle: label propagation and cycle-consistency learning for video correspondence.

Propagate labels through a video:
    propagate            masks of every frame, from features and the first frame's mask
    LabelPropagator      the same one frame at a time, for any soft labels
    protocol, Protocol   the published settings by name, with fields of one's own choice

Evaluate features, any callable from images [B, 3, H, W] to feature maps [B, D, h, w]:
    evaluate_davis       video object segmentation, J and F
    evaluate_jhmdb       human pose, PCK
    evaluate_vip         human parts, mIoU
    evaluate_badja       animal joints, PCK
    evaluate_tapvid      points, average Jaccard
    load_features        the network of a published or own checkpoint, as such a callable

Learn features from unlabeled video:
    TimeCycle            the cycle-consistency objective (Wang, Jabri, Efros, CVPR 2019)
    CropWalk, GridWalk   contrastive random walks (Jabri, Owens, Efros, NeurIPS 2020)

timecycle.ops holds the operators, InputError is what bad input raises.
"""

import importlib
from typing import TYPE_CHECKING

from timecycle.errors import InputError
from timecycle.native import say_if_installed_without

__version__ = "0.1.0"

if TYPE_CHECKING:  # below they are imported when they are first used, since scoring masks needs no torch
    from timecycle import ops
    from timecycle.checkpoints.networks import load_features
    from timecycle.evaluation.badja import evaluate_badja
    from timecycle.evaluation.davis.evaluate import evaluate_davis
    from timecycle.evaluation.jhmdb import evaluate_jhmdb
    from timecycle.evaluation.tapvid import evaluate_tapvid
    from timecycle.evaluation.vip import evaluate_vip
    from timecycle.models.timecycle import TimeCycle
    from timecycle.models.walk import CropWalk, GridWalk
    from timecycle.propagation.propagator import LabelPropagator
    from timecycle.propagation.protocols import Protocol, protocol
    from timecycle.propagation.video import Propagation, propagate

__all__ = [
    "CropWalk",
    "GridWalk",
    "InputError",
    "LabelPropagator",
    "Propagation",
    "Protocol",
    "TimeCycle",
    "evaluate_badja",
    "evaluate_davis",
    "evaluate_jhmdb",
    "evaluate_tapvid",
    "evaluate_vip",
    "load_features",
    "ops",
    "propagate",
    "protocol",
]

_MODULES = {
    "CropWalk": "models.walk",
    "GridWalk": "models.walk",
    "LabelPropagator": "propagation.propagator",
    "Propagation": "propagation.video",
    "Protocol": "propagation.protocols",
    "TimeCycle": "models.timecycle",
    "evaluate_badja": "evaluation.badja",
    "evaluate_davis": "evaluation.davis.evaluate",
    "evaluate_jhmdb": "evaluation.jhmdb",
    "evaluate_tapvid": "evaluation.tapvid",
    "evaluate_vip": "evaluation.vip",
    "load_features": "checkpoints.networks",
    "propagate": "propagation.video",
    "protocol": "propagation.protocols",
}
"""Where the names are that are imported when they are first used."""

say_if_installed_without()


def __getattr__(name: str) -> object:
    if name == "ops":
        return importlib.import_module("timecycle.ops")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"timecycle.{_MODULES[name]}"), name)
    globals()[name] = found  # __getattr__ is not asked again
    return found


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
