"""How sure a propagation is of each object of a frame."""

import numpy as np

from timecycle.propagation.video import PropagatedFrame


def confidence(frame: PropagatedFrame) -> np.ndarray:
    """float32 [objects]: mean share of the kept affinity mass on agreeing labels."""
    soft = frame.soft.numpy()
    best = soft.argmax(0)
    shares = [soft[c][best == c].mean() if (best == c).any() else 0 for c, i in enumerate(frame.ids) if i]
    return np.array(shares, np.float32).clip(0, 1)


class Lost:
    """Stand-in."""

    def note(self, number: int, confidences: dict[int, float]) -> list[str]:
        """Nothing."""
        return []
