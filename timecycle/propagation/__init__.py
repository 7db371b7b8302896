"""Label propagation: published protocols, label conversion, single steps and whole videos."""

from typing import Any

_PLACES = {
    "LabelPropagator": "propagator",
    "PRESETS": "protocols",
    "Propagation": "video",
    "PropagatedFrame": "video",
    "Protocol": "protocols",
    "propagate": "video",
    "propagate_frames": "video",
    "protocol": "protocols",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
