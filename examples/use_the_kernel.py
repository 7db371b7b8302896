"""Use the operators alone, in attention-like code of your own, with gradients.

    python examples/use_the_kernel.py

A frame's positions (queries) read values from a memory of earlier frames (keys) in three ways, none of which holds the
matrix of queries by keys:

    timecycle.ops.affinity_propagate   values of the k best keys, weighted by a softmax over them
    timecycle.ops.topk_affinity        these weights and the keys' indices themselves
    timecycle.ops.attention            values of all keys, weighted by a softmax over all

Each runs forward and backward beside its plain PyTorch form. Prints the largest difference of outputs and of gradients
(of query, memory and values), as a share of the largest entry; the time of both; and the peak of the memory that each
needed beyond what the process held (on Linux). A difference beyond rounding ends the program.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from timecycle.ops import Select, affinity_propagate, attention, topk_affinity

K, TEMPERATURE = 20, 0.07
PROCESS = Path("/proc/self")


def plain_topk(query: Tensor, memory: Tensor, values: Tensor) -> Tensor:
    """Query [1, N, D], memory [T, M, D] and values [T, M, C] -> what is read, [1, N, C]."""
    logits = query @ memory.flatten(0, 1).T / TEMPERATURE  # [1, N, T * M], which the operators never hold
    best, index = logits.topk(K, dim=2)
    return (best.softmax(dim=2)[..., None] * values.flatten(0, 1)[index]).sum(dim=2)


def fused_topk(query: Tensor, memory: Tensor, values: Tensor) -> Tensor:
    """The same in one call."""
    slots = torch.arange(len(memory), device=query.device)[None]  # [1, T]: the frames that the queries see
    return affinity_propagate(query, memory, slots, values, slots, Select(K, TEMPERATURE))


def fused_in_two_steps(query: Tensor, memory: Tensor, values: Tensor) -> Tensor:
    """The same by weights and indices, both [1, N, K], for code that needs them."""
    slots = torch.arange(len(memory), device=query.device)[None]
    weights, index = topk_affinity(query, memory, slots, Select(K, TEMPERATURE))
    return (weights[..., None] * values.flatten(0, 1)[index]).sum(dim=2)


def plain_attention(query: Tensor, memory: Tensor, values: Tensor) -> Tensor:
    """The softmax over all keys."""
    logits = query @ memory.flatten(0, 1).T / TEMPERATURE
    return logits.softmax(dim=2) @ values.flatten(0, 1)


def fused_attention(query: Tensor, memory: Tensor, values: Tensor) -> Tensor:
    """The same in one call."""
    keys, values = memory.flatten(0, 1)[None], values.flatten(0, 1)[None]
    out, _ = attention(query, keys, values, temperature=TEMPERATURE)
    return out


def run(read: Callable[..., Tensor], inputs: list[Tensor]) -> tuple[list[Tensor], float, float]:
    """The output and the gradients of the inputs; seconds; peak memory in MB beyond what was held."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    before, start = peak_memory(reset=True), time.perf_counter()
    out = read(*inputs)
    gradients = torch.autograd.grad(out.square().sum(), inputs)
    seconds = time.perf_counter() - start
    return [out.detach(), *gradients], seconds, peak_memory() - before


def peak_memory(reset: bool = False) -> float:
    """The most memory that the process held since the last reset, in MB; NaN where the system does not say."""
    if not PROCESS.is_dir():
        return float("nan")
    if reset:
        (PROCESS / "clear_refs").write_text("5")
    return int((PROCESS / "status").read_text().partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def main() -> None:
    """Compare each operator with its plain form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", type=int, nargs=2, default=(30, 54), help="of positions (default: 30 54)")
    parser.add_argument("--frames", type=int, default=5, help="in the memory (default: %(default)s)")
    args = parser.parse_args()
    torch.manual_seed(0)
    positions = args.grid[0] * args.grid[1]
    query, memory = (torch.nn.functional.normalize(torch.randn(n, positions, 64), dim=2) for n in (1, args.frames))
    inputs = [query, memory, torch.randn(args.frames, positions, 32)]
    print(f"{positions} queries, {args.frames * positions} keys; plain -> fused")
    for name, plain, fused in (
        ("affinity_propagate", plain_topk, fused_topk),
        ("topk_affinity", plain_topk, fused_in_two_steps),
        ("attention", plain_attention, fused_attention),
    ):
        run(fused, inputs)  # the first call of a kernel prepares it
        found, seconds, megabytes = run(fused, inputs)
        expected, plain_seconds, plain_megabytes = run(plain, inputs)
        output, *gradients = (float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))
        print(f"{name:<18}  output differs by {output:.0e}, gradients by {max(gradients):.0e}")
        print(f"{'':<18}  {plain_seconds:.2f} -> {seconds:.2f} s, {plain_megabytes:.0f} -> {megabytes:.0f} MB")
        if max(output, *gradients) > 1e-4:
            raise SystemExit(f"{name} differs from its plain form")


if __name__ == "__main__":
    main()
