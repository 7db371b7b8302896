"""The operators. Each has one home page here: formula, shapes, reference, public function.

Letters, everywhere in the project:

    B  target frames          N  query positions of a target frame      D  feature channels
    F  frames in the bank     M  key positions of a context frame       T  context slots of a target frame
    G  label maps             L  classes                                K  neighbours kept per query

In training, where a sample has queries and keys of its own, B counts samples, and

    S  shifts of the queries  C  channels of the values                 R  rows of the output
    E  edges asked of a query
"""

from timecycle.ops._backends import backends
from timecycle.ops.affinity_propagate import affinity_propagate
from timecycle.ops.attend import EdgeDropout, attend
from timecycle.ops.edge_affinity import edge_affinity
from timecycle.ops.propagate_labels import propagate_labels
from timecycle.ops.propagate_sequence import propagate_sequence
from timecycle.ops.selection import Region, Select
from timecycle.ops.topk_affinity import topk_affinity

__all__ = [
    "EdgeDropout",
    "Region",
    "Select",
    "affinity_propagate",
    "attend",
    "backends",
    "edge_affinity",
    "propagate_labels",
    "propagate_sequence",
    "topk_affinity",
]
