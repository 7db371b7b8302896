"""timecycle.propagation.protocols under its name of version 0.1."""

from timecycle.propagation.protocols import PRESETS, Protocol, protocol

__all__ = ["PRESETS", "Protocol", "protocol"]
