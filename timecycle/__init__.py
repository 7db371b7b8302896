"""timecycle: label propagation and cycle-consistency learning for video correspondence."""

__version__ = "0.1.0"
