"""`python -m timecycle.scores`, and its functions under their names of version 0.1. Does not import torch."""

from timecycle.errors import run_command_line
from timecycle.evaluation.davis.metrics import frame_boundary_f, frame_jaccard, score_frame, statistics
from timecycle.evaluation.davis.scores import SequenceMasks, main, score_masks, score_results, score_sequence
from timecycle.evaluation.davis.tables import Scores

__all__ = [
    "Scores",
    "SequenceMasks",
    "evaluate",
    "frame_boundary_f",
    "frame_jaccard",
    "score_frame",
    "score_masks",
    "score_sequence",
    "statistics",
]
evaluate = score_results

if __name__ == "__main__":
    run_command_line(main)
