"""`python -m timecycle.scores`, and its functions under their names from before 0.1.0. Does not import torch."""

from timecycle.cli import program, start
from timecycle.evaluation.davis.metrics import frame_boundary_f, frame_jaccard, score_frame, statistics
from timecycle.evaluation.davis.scores import SequenceMasks, score_masks, score_results, score_sequence
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
main = program("score", "python -m timecycle.scores")

if __name__ == "__main__":
    start(main)
