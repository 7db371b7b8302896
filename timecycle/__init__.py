"""timecycle: label propagation and cycle-consistency learning for video correspondence."""

from typing import Any

from timecycle.native import say_if_installed_without

__version__ = "0.1.0"
_PLACES = {
    "LabelPropagator": "timecycle.propagation",
    "Propagation": "timecycle.propagation",
    "propagate": "timecycle.propagation",
    "evaluate_davis": "timecycle.evaluation",
    "load_features": "timecycle.checkpoint",
    "TimeCycle": "timecycle.objective",
    "CropWalk": "timecycle.walk",
    "GridWalk": "timecycle.walk",
    "evaluate_jhmdb": "timecycle.tasks.jhmdb",
    "evaluate_vip": "timecycle.tasks.vip",
    "evaluate_badja": "timecycle.tasks.badja",
    "evaluate_tapvid": "timecycle.tasks.tapvid",
    "Protocol": "timecycle.protocols",
    "protocol": "timecycle.protocols",
}

say_if_installed_without()


def __getattr__(name: str) -> Any:
    """The package's main names, imported when they are used: scoring masks needs no torch."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PLACES[name]), name)
