"""A simulated GPU: tensors that report a CUDA device but hold their values on the CPU, and record synchronizations.

On a GPU the CPU runs ahead of the work that it launches, and waits wherever it reads a value: `stops` lists the
operators that did. Kernels of Triton and of the CUDA module are not launched; their outputs stay as allocated.
"""

import importlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from timecycle.kernels.launch import Launch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

from timecycle.ops import backends

CHIP = torch.device("cuda", 0)
# Operators that make the CPU wait for their result or its size; the first three return a Python number.
READERS = (
    "_local_scalar_dense",
    "is_nonzero",
    "equal",
    "masked_select",
    "nonzero",
    "_unique2",
    "unique_dim",
    "bincount",
)


class OnGpu(Tensor):
    """A tensor that reports a CUDA device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnGpu":
        """Wrap a tensor on the CPU."""
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        # To PyTorch it is a meta tensor, as a PyTorch without CUDA cannot make one on a GPU.
        out = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device="meta", **layout)
        out.inner = inner
        return out

    @classmethod
    def __torch_dispatch__(cls, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Refuse operators outside of a StandIn."""
        raise RuntimeError(f"{operator} on a simulated GPU outside of its context")

    @property
    def device(self) -> torch.device:
        """The GPU."""
        return CHIP

    def data_ptr(self) -> int:
        """The address on the CPU."""
        return self.inner.data_ptr()

    def tolist(self) -> Any:
        """As `int`, of each element."""
        flat = [x.item() for x in self.reshape(-1)]
        return torch.tensor(flat, dtype=self.dtype).view(self.shape).tolist()

    def __repr__(self) -> str:
        """The values; not counted as a read."""
        return f"OnGpu({self.inner})"


def _inner(x: OnGpu) -> Tensor:
    return x.inner


class _Factories(TorchFunctionMode):
    """Makes tensors on the simulated GPU: a PyTorch without CUDA refuses before any operator is dispatched."""

    def __init__(self, stops: list[str]) -> None:
        super().__init__()
        self.stops = stops

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Handle functions that take no tensor."""
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if device is None or torch.device(device).type != "cuda" or any(isinstance(x, Tensor) for x in tree_iter(args)):
            return function(*args, **kwargs)
        if function in (torch.tensor, torch.as_tensor):
            self.stops.append(f"{function.__name__} copies from the CPU")
        return OnGpu(function(*args, **kwargs | {"device": "cpu"}))


class StandIn(TorchDispatchMode):
    """Runs operators on tensors of the simulated GPU while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.stops: list[str] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run on the CPU, and record where a GPU would be waited for."""
        kwargs, name = kwargs or {}, operator.name().removeprefix("aten::").split(".")[0]
        given = [x for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)]
        on_gpu = {id(x.inner): x for x in given if isinstance(x, OnGpu)}
        device = kwargs.get("device")
        target = bool(on_gpu) if device is None else torch.device(device).type != "cpu"
        if on_gpu and self._reads(name, args):
            self.stops.append(name)
            target = target and name not in READERS[:3]
        if name in ("_to_copy", "copy_") and len({*map(type, given)} | ({OnGpu} if target else {Tensor})) > 1:
            self.stops.append(f"{name} between the CPU and the GPU")
        elif on_gpu and any(type(x) is Tensor and x.ndim for x in given):
            raise RuntimeError(f"{name} of tensors on the CPU and on the GPU")
        if device is not None:
            kwargs = kwargs | {"device": torch.device("cpu")}
        args, kwargs = tree_map_only(OnGpu, _inner, (args, kwargs))
        found = operator(*args, **kwargs)
        if "empty" in name:
            found.zero_()  # not written by a kernel; sizes that are read from it must be small
        if not target:
            return found
        return tree_map_only(Tensor, lambda x: on_gpu[id(x)] if id(x) in on_gpu else OnGpu(x), found)

    @staticmethod
    def _reads(name: str, args: Any) -> bool:
        """Whether the CPU waits for an operator's result."""
        masks = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            isinstance(x, Tensor) and x.dtype == torch.bool for x in args[1]
        )
        return name in READERS or masks


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """Simulate a GPU: operators run the host side of the GPU backends."""
    import triton  # optional

    def here(backend: backends.Backend) -> backends.Backend:
        there = backend.name in ("cuda", "triton")
        return replace(backend, missing=None, unless_asked=lambda *_: None) if there else backend

    registered = {name: tuple(map(here, found)) for name, found in backends._REGISTERED.items()}
    module = mock.Mock(LARGEST_K=20, lists_of_a_block=lambda hopper: 1)
    on, gpu = Launch(module, 0, 0, True), StandIn()
    topk_affinity = importlib.import_module("timecycle.ops.topk_affinity")
    affinity_propagate = importlib.import_module("timecycle.ops.affinity_propagate")
    with ExitStack() as patches:
        for operator in (topk_affinity, affinity_propagate):
            patches.enter_context(mock.patch.object(operator, "_without_autograd", operator._run))
        for patch in (
            # Bypass the dispatcher: a mode would see custom operators only, not the reads within them.
            mock.patch.object(CustomOpDef, "__call__", lambda self, *args, **kwargs: self._init_fn(*args, **kwargs)),
            mock.patch.dict(backends._REGISTERED, registered),
            mock.patch.object(triton.runtime.JITFunction, "run"),
            mock.patch("timecycle.kernels.tiles.family", return_value="sm_90"),
            mock.patch("timecycle.kernels.tiles.programs_at_once", return_value=264),
            mock.patch("torch.cuda.is_current_stream_capturing", return_value=False),
            mock.patch("torch.cuda.Event", return_value=mock.Mock(query=lambda: True)),
            mock.patch.dict("timecycle.kernels.work._COUNTED", clear=True),
            mock.patch.object(backends, "launch", return_value=on),
            mock.patch.object(topk_affinity, "CUDA", module),
            mock.patch.object(topk_affinity, "TRITON_MISSING", None),
            mock.patch.object(torch.cuda, "get_device_properties", return_value=mock.Mock(major=9, minor=0)),
            mock.patch.object(torch.cuda, "device", return_value=nullcontext()),
            mock.patch.object(torch.cuda, "device_of", return_value=nullcontext()),
            mock.patch.object(torch.cuda, "_lazy_init"),
            torch.no_grad(),
            _Factories(gpu.stops),
            gpu,
        ):
            patches.enter_context(patch)
        yield gpu
