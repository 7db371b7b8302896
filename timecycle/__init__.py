"""timecycle: label propagation and cycle-consistency learning for video correspondence."""

from typing import Any

from timecycle.native import say_if_installed_without

__version__ = "0.1.0"
_PLACES = {
    "LabelPropagator": "timecycle.propagation.propagator",
    "Propagation": "timecycle.propagation.video",
    "propagate": "timecycle.propagation.video",
    "evaluate_davis": "timecycle.evaluation.davis.evaluate",
    "load_features": "timecycle.checkpoints.networks",
    "TimeCycle": "timecycle.models.timecycle",
    "CropWalk": "timecycle.models.walk",
    "GridWalk": "timecycle.models.walk",
    "evaluate_jhmdb": "timecycle.evaluation.jhmdb",
    "evaluate_vip": "timecycle.evaluation.vip",
    "evaluate_badja": "timecycle.evaluation.badja",
    "evaluate_tapvid": "timecycle.evaluation.tapvid",
    "Protocol": "timecycle.propagation.protocols",
    "protocol": "timecycle.propagation.protocols",
}

say_if_installed_without()


def __getattr__(name: str) -> Any:
    """The package's main names, imported when they are used: scoring masks needs no torch."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PLACES[name]), name)
