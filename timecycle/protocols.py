"""timecycle.propagation.protocols under its name from before 0.1.0."""

from timecycle.propagation.protocols import PRESETS, Protocol, protocol

__all__ = ["PRESETS", "Protocol", "protocol"]
