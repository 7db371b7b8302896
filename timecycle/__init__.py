"""timecycle: label propagation and cycle-consistency learning for video correspondence.

Track objects through a video of yours:
    Tracker              from a mask, a box or points of a frame to masks of all frames

Propagate labels through a video:
    propagate            masks of all frames, from features and the first frame's mask
    LabelPropagator      the same one frame at a time, for any soft labels
    protocol, Protocol   the published settings by name; any field can be changed

Evaluate features, given as a callable from images [B, 3, H, W] to feature maps [B, D, h, w]:
    evaluate_davis       video object segmentation, J and F
    evaluate_jhmdb       human pose, PCK
    evaluate_vip         human parts, mIoU
    evaluate_badja       animal joints, PCK
    evaluate_tapvid      points, average Jaccard
    load_features        such a callable from a published checkpoint or one of train.py
    compare              evaluations object by object: differences, intervals, how they fail
    inspect_run          where the label of a pixel of an evaluation comes from

Learn features from unlabeled video:
    TimeCycle            the cycle-consistency objective (Wang, Jabri, Efros, CVPR 2019)
    CropWalk, GridWalk   contrastive random walks (Jabri, Owens, Efros, NeurIPS 2020)

timecycle.ops has the operators; bad input raises InputError.
"""

import importlib
from typing import TYPE_CHECKING

from timecycle.errors import InputError
from timecycle.version import __version__ as __version__

if TYPE_CHECKING:  # at run time they are imported on first use, since scoring masks needs no torch
    from timecycle import ops as ops
    from timecycle.checkpoints.networks import load_features as load_features
    from timecycle.evaluation.badja import evaluate_badja as evaluate_badja
    from timecycle.evaluation.comparison.compare import compare as compare
    from timecycle.evaluation.davis.evaluate import evaluate_davis as evaluate_davis
    from timecycle.evaluation.davis.inspection import inspect_run as inspect_run
    from timecycle.evaluation.jhmdb import evaluate_jhmdb as evaluate_jhmdb
    from timecycle.evaluation.tapvid import evaluate_tapvid as evaluate_tapvid
    from timecycle.evaluation.vip import evaluate_vip as evaluate_vip
    from timecycle.models.timecycle import TimeCycle as TimeCycle
    from timecycle.models.walk import CropWalk as CropWalk
    from timecycle.models.walk import GridWalk as GridWalk
    from timecycle.propagation.propagator import LabelPropagator as LabelPropagator
    from timecycle.propagation.protocols import Protocol as Protocol
    from timecycle.propagation.protocols import protocol as protocol
    from timecycle.propagation.video import Propagation as Propagation
    from timecycle.propagation.video import propagate as propagate
    from timecycle.tracking.tracker import Tracker as Tracker

_MODULES = {
    "CropWalk": "models.walk",
    "GridWalk": "models.walk",
    "LabelPropagator": "propagation.propagator",
    "Propagation": "propagation.video",
    "Protocol": "propagation.protocols",
    "TimeCycle": "models.timecycle",
    "Tracker": "tracking.tracker",
    "compare": "evaluation.comparison.compare",
    "evaluate_badja": "evaluation.badja",
    "evaluate_davis": "evaluation.davis.evaluate",
    "evaluate_jhmdb": "evaluation.jhmdb",
    "evaluate_tapvid": "evaluation.tapvid",
    "evaluate_vip": "evaluation.vip",
    "inspect_run": "evaluation.davis.inspection",
    "load_features": "checkpoints.networks",
    "propagate": "propagation.video",
    "protocol": "propagation.protocols",
}
"""The modules of names that are imported on first use."""

__all__ = ["InputError", "ops", *_MODULES]


def __getattr__(name: str) -> object:
    if name == "ops":
        return importlib.import_module("timecycle.ops")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"timecycle.{_MODULES[name]}"), name)
    globals()[name] = found  # later accesses do not call __getattr__
    return found


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
