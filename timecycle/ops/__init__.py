"""The operators. Each has a module here with its formula, shapes, reference and public function.

Letters, everywhere in the project:

    B  target frames          N  query positions of a target frame      D  feature channels
    F  frames in the bank     M  key positions of a context frame       T  context slots of a target frame
    G  label maps             L  classes                                K  neighbors kept per query

In training, where a sample has queries and keys of its own, B counts samples, and

    S  shifts of the queries  C  channels of the values                 R  rows of the output
    E  edges per query
"""

from timecycle import deprecated
from timecycle.ops.affinity_propagate import affinity_propagate
from timecycle.ops.attention import EdgeDropout, attention
from timecycle.ops.backends import BackendState, print_backends
from timecycle.ops.propagate_labels import propagate_labels
from timecycle.ops.propagate_sequence import propagate_sequence
from timecycle.ops.selection import Neighborhood, Select
from timecycle.ops.softmax_at import softmax_at
from timecycle.ops.topk_affinity import topk_affinity

__getattr__ = deprecated.module_names(__name__, Region="Neighborhood", attend="attention", edge_affinity="softmax_at")

__all__ = [
    "BackendState",
    "EdgeDropout",
    "Neighborhood",
    "Select",
    "affinity_propagate",
    "attention",
    "print_backends",
    "propagate_labels",
    "propagate_sequence",
    "softmax_at",
    "topk_affinity",
]
