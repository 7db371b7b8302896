"""torch.compile traces the Triton kernels of topk_affinity for backend="triton".

Graphs are made without a GPU, from fake CUDA tensors.
"""

import importlib

import pytest
import torch
from torch._functorch import config as functorch_config
from torch._functorch.aot_autograd import aot_module_simplified
from torch._subclasses.fake_tensor import FakeTensorMode

from timecycle.ops import Neighborhood, Select, topk_affinity
from timecycle.ops import topk_affinity_traced as traced
from timecycle.ops.backends import INTERPRETED
from timecycle.ops.problem import Problem

pytest.importorskip("triton", reason="Triton is not installed")


class Seen(Exception):
    """Raised to stop before the graph runs."""


@pytest.fixture
def operators_in(monkeypatch):
    """Names of the operators and kernels in the graph of a function of features [1, 70, 64] on a GPU."""
    if not torch.cuda.is_available():
        module = importlib.import_module("timecycle.ops.topk_affinity")
        monkeypatch.setattr(module, "TRITON_MISSING", None)
        monkeypatch.setattr(module, "traced", traced)
        monkeypatch.setattr(module, "why_not_triton", lambda features: None)
        monkeypatch.setattr("timecycle.kernels.tiles.family", lambda device: "sm_90")
        monkeypatch.setattr("timecycle.kernels.tiles.programs_at_once", lambda device: 264)

    def look(function, dtype, gradient):
        graphs = []

        def keep(graph, _):
            graphs.append(graph)
            return graph

        def backend(graph, inputs):
            aot_module_simplified(graph, inputs, fw_compiler=keep, bw_compiler=keep)
            raise Seen

        torch._dynamo.reset()
        # The backward pass is compiled at once, not when it is first run.
        with functorch_config.patch(force_non_lazy_backward_lowering=True), FakeTensorMode(allow_non_fake_inputs=True):
            query, bank = (torch.empty(1, 70, 64, device="cuda", dtype=dtype, requires_grad=gradient) for _ in "qb")
            # In the operator's dtypes: a PyTorch without CUDA cannot copy even a fake CUDA tensor.
            frames, multiplicity = (
                torch.empty(shape, device="cuda", dtype=torch.int64) for shape in ((1, 2), (1, 2, 2))
            )
            with pytest.raises(Exception, match=Seen.__name__):
                torch.compile(function, backend=backend, fullgraph=True)(query, bank, frames, multiplicity)
        names = set()
        for node in (node for graph in graphs for node in graph.graph.nodes if node.op == "call_function"):
            if "kernel_idx" in node.kwargs:
                table = importlib.import_module("torch._higher_order_ops.triton_kernel_wrap").kernel_side_table
                kernel = table.get_kernel(node.kwargs["kernel_idx"])
                names.add(getattr(kernel, "fn", kernel).__name__.rsplit(".")[-1])
            elif getattr(node.target, "namespace", "") == "timecycle":
                names.add(node.target._opname)
        return names

    return look


# A user may run the suite with the interpreter.
@pytest.mark.skipif(INTERPRETED, reason="PyTorch records compiled kernels, not interpreted ones")
@pytest.mark.parametrize("neighborhood", [None, Neighborhood(7, 10, 2)], ids=["everywhere", "neighborhood"])
@pytest.mark.parametrize(
    ("options", "dtype", "seen"),
    [
        ({"backend": "triton"}, torch.bfloat16, {"topk_affinity_checked", "scan", "finish"}),
        ({"backend": "triton"}, torch.float32, {"topk_affinity"}),  # whose kernels cap their registers
        ({}, torch.bfloat16, {"topk_affinity"}),
    ],
)
def test_kernels_are_in_the_graph_for_backend_triton(operators_in, options, dtype, seen, neighborhood):
    def function(q, b, f, c):
        return topk_affinity(
            q, b, f, Select(5, 0.5, "frame", "all"), neighborhood=neighborhood, multiplicity=c, **options
        )[0]

    assert operators_in(function, dtype, False) == seen


# PyTorch's C++ aborts the process. `make gpu-check PART=second` runs it.
@pytest.mark.skipif(not torch.cuda.is_available(), reason="a PyTorch without CUDA has no autograd for a GPU's tensors")
def test_the_backward_graph_calls_the_operator(operators_in):
    def function(q, b, f, c):
        return topk_affinity(q, b, f, Select(5, 0.5), multiplicity=c, backend="triton")[0]

    seen = operators_in(function, torch.bfloat16, True)
    assert seen == {"topk_affinity_checked", "scan", "finish", "topk_affinity_backward"}


def test_ties_all_is_not_traceable():
    query, frames = torch.empty(1, 2, 3, dtype=torch.bfloat16), torch.zeros(1, 1, dtype=torch.int64)
    for ties in ("exact", "all"):
        problem = Problem.of(query, query, frames, Select(1, 1.0, ties=ties), None, None)
        assert traced.is_traceable(problem) == (ties == "exact")
