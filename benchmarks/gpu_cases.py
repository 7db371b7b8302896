"""The cases timed on a GPU, each checked against the reference first: python -m benchmarks.gpu_cases GROUP.

All target frames of a video are one call, since affinities do not depend on labels; figures are per target frame.
With --warm I N every N-th case of all groups, from the I-th on, runs once to fill the compilation caches.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks import gpu_training, rivals
from benchmarks.gpu_sequence import run_sequence
from benchmarks.gpu_setting import attempt, device, say
from benchmarks.gpu_timing import (
    DTYPES,
    TINY,
    clocks_at_work,
    copy_tbs,
    dense_tflops,
    measure,
    multiplied_as,
    one_line,
    peak_mb,
    rotation,
)
from timecycle.errors import run_command_line
from timecycle.ops import Neighborhood, Select, topk_affinity

TEMPERATURE = 512**-0.5


@dataclass(frozen=True)
class Case:
    """One call: `targets` frames of a video, each with the `slots` frames before it as context."""

    name: str
    precision: str
    select: Select
    targets: int
    height: int = 60
    width: int = 60
    slots: int = 8
    channels: int = 512
    radius: int | None = None
    rivals: tuple[str, ...] = ("eager",)
    backward: bool = False
    backend: str | None = None

    @property
    def title(self) -> str:
        """The name, with the backend."""
        return self.name if self.backend is None else f"{self.name} ({self.backend})"

    @property
    def neighborhood(self) -> Neighborhood | None:
        """A circle of `radius`; None without one."""
        return None if self.radius is None else Neighborhood(self.height, self.width, self.radius)

    @property
    def pairs(self) -> int:
        """Number of (query, key) pairs of one target frame: all, or those inside the neighborhood."""
        if self.neighborhood is None:
            return self.slots * (self.height * self.width) ** 2
        apart = enumerate(self.neighborhood.half_widths())
        # For each distance d in rows: pairs of rows, times pairs of columns at most dx apart.
        return self.slots * sum(
            (1 + (d > 0)) * (self.height - d) * (self.width + 2 * sum(self.width - x for x in range(1, dx + 1)))
            for d, dx in apart
        )

    @property
    def operations(self) -> int:
        """Floating-point operations of one target frame's matrix products.

        The gradient of a softmax over all keys takes three products of that size, of one over the top k two dot
        products per kept key.
        """
        if self.backward and self.select.softmax_over == "topk":
            kept = self.select.k * (self.slots if self.select.scope == "frame" else 1)
            return 2 * 2 * self.height * self.width * kept * self.channels
        return (3 if self.backward else 1) * 2 * self.pairs * self.channels

    @property
    def matrix_mb(self) -> float:
        """Size of the affinity matrices of all targets in the features' dtype."""
        count = self.targets * self.slots * (self.height * self.width) ** 2
        return count * DTYPES[self.precision].itemsize / 1e6


@dataclass(frozen=True)
class Video:
    """The arguments of one call."""

    query: Tensor  # [B, N, D]
    bank: Tensor  # [T + B, M, D]: its last B frames are the queries
    frames: Tensor  # [B, T]

    @staticmethod
    def random(case: Case, seed: int, device: torch.device) -> "Video":
        """L2-normalized after a ReLU, as every encoder's features are."""
        generator = torch.Generator(device).manual_seed(seed)
        shape = (case.slots + case.targets, case.height * case.width, case.channels)
        bank = torch.randn(shape, generator=generator, device=device).relu_()
        bank = torch.nn.functional.normalize(bank, dim=2).to(DTYPES[case.precision])
        frames = torch.arange(case.slots, device=device) + torch.arange(case.targets, device=device)[:, None]
        return Video(bank[case.slots :], bank, frames)

    def requires_grad(self) -> "Video":
        """The same features as two leaves."""
        return Video(self.query.clone().requires_grad_(), self.bank.requires_grad_(), self.frames)


def rotating_videos(case: Case, device: torch.device) -> list[Video]:
    """Inputs that exceed the L2 cache together, see `rotation`."""
    first = Video.random(case, 0, device)
    return [first, *(Video.random(case, seed, device) for seed in range(1, rotation(first.bank.nbytes, device)))]


def forward(case: Case, video: Video, check: bool = False) -> tuple[Tensor, Tensor]:
    """The timed call, without the finite check, which is timed as a rival."""
    return topk_affinity(
        video.query,
        video.bank,
        video.frames,
        case.select,
        neighborhood=case.neighborhood,
        check=check,
        backend=case.backend,
    )


def check_forward(case: Case, video: Video) -> None:
    """Compare some queries of the first and last target with the float64 reference; AssertionError if they differ."""
    weights, indices = forward(case, video)
    positions = case.height * case.width
    keys, compared, neighborhood = positions, min(64, positions), None
    if case.radius is not None:
        # The reference needs a whole grid: the last rows, of which the last six have their full neighborhoods.
        rows = min(case.height, case.radius + 6)
        keys, neighborhood = rows * case.width, Neighborhood(rows, case.width, case.radius)
        compared = keys if rows == case.height else 6 * case.width
    for b in {0, case.targets - 1}:
        query = video.query[b : b + 1, -(keys if neighborhood else compared) :].double()
        bank = video.bank[b : b + case.slots, -keys:].double()
        frames = torch.arange(case.slots, device=bank.device)[None]
        exact, expected = topk_affinity(
            query, bank, frames, case.select, neighborhood=neighborhood, backend="reference"
        )
        exact, expected = exact[0, -compared:], expected[0, -compared:]
        expected = expected // keys * positions + expected % keys + positions - keys
        # TF32 keeps 11 bits of a feature, which changes a logit by some thousandths.
        rough = case.precision == "tf32"
        torch.testing.assert_close(weights[b, -compared:].double(), exact, atol=1e-5, rtol=2e-2 if rough else 1e-3)
        differing = float((indices[b, -compared:] != expected).double().mean())
        assert differing < (0.1 if rough else 0.01), f"{differing:.1%} of the indices differ from the reference's"


def gradient_of(video: Video, weights: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
    """Gradients of the queries and the bank."""
    return torch.autograd.grad(weights, (video.query, video.bank), gradient, retain_graph=True)


def check_backward(case: Case, video: Video, weights: Tensor, gradient: Tensor) -> None:
    """Compare the gradient through the first target with the float64 reference's."""
    query, bank = (x.detach().double().requires_grad_() for x in (video.query[:1], video.bank[: case.slots]))
    exact, indices = topk_affinity(query, bank, video.frames[:1], case.select, backend="reference")
    # Where two products are equal in float32, other keys may be kept; those queries are left out.
    same = (forward(case, video)[1][:1] == indices).all(dim=2, keepdim=True)
    assert float(same.double().mean()) > 0.99, "more than 1 % of the queries keep other keys than the reference's"
    first = torch.zeros_like(gradient)
    first[:1] = gradient[:1] * same
    d_query, d_bank = gradient_of(video, weights, first)
    expected = torch.autograd.grad(exact, (query, bank), first[:1].double())
    for ours, wanted in zip((d_query[:1], d_bank[: case.slots]), expected, strict=True):
        # Features are positive, so cancellation amplifies rounding to 16 bits; 4 % was seen with a correct kernel.
        tolerance = 1e-4 if case.precision == "float32" else 8e-2
        torch.testing.assert_close(ours.double(), wanted, atol=tolerance * float(wanted.abs().max()), rtol=0)


def materialized(case: Case, video: Video, compiled: bool) -> Callable[[], object]:
    """The materialized form in PyTorch, for the first two targets in turn."""
    joint = case.select.scope == "joint"
    function = rivals.materialize_joint if joint else rivals.materialize_per_frame
    if compiled:
        # Inductor would compile C++ for minutes in a rehearsal.
        function = torch.compile(function, dynamic=False, backend="aot_eager" if TINY else "inductor")
    k, temperature = case.select.k, case.select.temperature

    def run() -> None:
        for b in range(min(2, case.targets)):
            function(video.query[b], video.bank[b : b + case.slots], k, temperature)

    return run


def rival(name: str, case: Case, video: Video) -> tuple[Callable[[], object], int] | None:
    """A rival's call and its number of targets; None where it is not installed."""
    if name in ("eager", "compiled"):
        return materialized(case, video, name == "compiled"), min(2, case.targets)
    if name == "finite check":
        return lambda: forward(case, video, check=True), case.targets
    if name == "forward":
        return lambda: forward(case, video), case.targets
    search = rivals.faiss_gpu_search(video.query[0], video.bank[: case.slots], case.select.k)
    return None if search is None else (search, 1)


def time_rivals(case: Case, videos: list[Video], device: torch.device) -> dict[str, Any]:
    """Time and memory of each installed rival, or its error; a rival that fails does not fail the case."""
    found: dict[str, Any] = {}
    for name in case.rivals:
        try:
            calls = [made for video in videos if (made := rival(name, case, video)) is not None]
            if calls:
                timing = measure([call for call, _ in calls], device)
                targets = calls[0][1]
                found[name] = _per_target(timing, targets) | {"peak_mb": peak_mb(calls[0][0], device)}
        except Exception as error:  # such as out of memory, or a compilation error
            found[name] = {"error": one_line(error)}
    return found


def _per_target(timing: dict[str, Any], targets: int) -> dict[str, Any]:
    return {key: round(value / targets, 2) if key != "rounds" else value for key, value in timing.items()}


def run_case(case: Case, device: torch.device, rates: dict[str, float]) -> dict[str, Any]:
    """Check a case, then time it and its rivals per target frame. `rates`: the chip's TFLOP/s by precision."""
    with multiplied_as(case.precision):
        videos = rotating_videos(case, device)
        check_forward(case, videos[0])
        if case.backward:
            videos = [video.requires_grad() for video in videos[:2]]
            made = [forward(case, video)[0] for video in videos]
            torch.manual_seed(0)
            gradients = [torch.randn_like(weights) for weights in made]
            check_backward(case, videos[0], made[0], gradients[0])
            calls: list[Callable[[], tuple[Tensor, ...]]] = [
                lambda v=v, w=w, g=g: gradient_of(v, w, g) for v, w, g in zip(videos, made, gradients, strict=True)
            ]
        else:
            calls = [lambda v=v: forward(case, v) for v in videos]
        timing = _per_target(measure(calls, device), case.targets)
        peak = peak_mb(calls[0], device)
        result = sum(tensor.nbytes for tensor in calls[0]())
        others = time_rivals(case, videos, device)
    tflops = case.operations / timing["us"] / 1e6
    return {
        "name": case.title,
        "work": case.name,
        "backend": case.backend,
        "precision": case.precision,
        "joint": case.select.scope == "joint",
        "region": case.radius is not None,
        "k": case.select.k,
        "backward": case.backward,
        "targets": case.targets,
        "operations": case.operations,
        **timing,
        "tflops": round(tflops, 2),
        "share_of_dense": round(tflops / rates[case.precision], 4),
        "peak_mb": peak,
        "result_mb": round(result / 1e6, 2),
        "matrix_mb": round(case.matrix_mb, 1),
        "rivals": others,
        "ratio_to": {n: round(r["us"] / timing["us"], 3) for n, r in others.items() if "us" in r},
    }


def groups() -> dict[str, list[Case]]:
    """The cases in groups; each group is timed by a process of its own."""
    per_frame, joint = Select(5, TEMPERATURE, "frame", "all"), Select(10, 0.07)
    eager = ("eager",)

    def crop(precision: str, k: int, others: tuple[str, ...] = eager) -> Case:
        name = f"crop 480, 8 frames, top-{k} of each, {precision}"
        return Case(name, precision, replace(per_frame, k=k), 16, rivals=others)

    def of_all(precision: str, others: tuple[str, ...]) -> Case:
        return Case(f"crop 480, 8 frames, top-10 of all, {precision}", precision, joint, 16, rivals=others)

    neighborhood = Case(
        "854 x 480, 21 frames, circle 12, top-10 of all, bfloat16", "bfloat16", joint, 8, 60, 107, 21, radius=12
    )
    full_hd = Case("1920 x 1080, 8 frames, top-5 of each, bfloat16", "bfloat16", per_frame, 1, 135, 240)
    inside = replace(full_hd, name="1920 x 1080, 8 frames, circle 12, top-5 of each, bfloat16", targets=4, radius=12)
    found = {
        "rivals": [crop("bfloat16", 5, ("eager", "compiled", "finite check")), crop("bfloat16", 20)],
        "precisions": [crop("float16", 5), crop("tf32", 5), crop("float32", 5)],
        "joint": [of_all("bfloat16", ("eager", "compiled")), of_all("float32", ("eager", "faiss"))],
        "regions": [replace(case, rivals=()) for case in (neighborhood, inside)],
        "1080p": [replace(full_hd, rivals=())],
        "gradients": [
            replace(case, name=f"gradient, {case.name}", targets=8, rivals=("forward",), backward=True)
            for precision in ("bfloat16", "float32")
            for case in (crop(precision, 5), of_all(precision, ()))
        ],
    }
    size = smaller if TINY else lambda case: case
    return {group: [size(made) for case in cases for made in by_backend(case)] for group, cases in found.items()}


def smaller(case: Case) -> Case:
    """The same kind of work on a grid of 4 x 6, for a CPU."""
    radius = None if case.radius is None else 2
    return replace(case, targets=min(2, case.targets), height=4, width=6, slots=1, channels=16, radius=radius)


def by_backend(case: Case) -> list[Case]:
    """The case for each backend that can run it on a GPU; rivals are timed with the first only."""
    if case.backward or case.precision not in ("bfloat16", "float16"):
        return [replace(case, backend="triton")]
    return [replace(case, backend="cuda"), replace(case, backend="triton", rivals=())]


def ceilings(where: torch.device) -> dict[str, Any]:
    """Rates that the chip reaches in matrix products and copies."""
    rates = {precision: dense_tflops(precision, where) for precision in DTYPES}
    return {"dense_tflops": rates, "copy_tbs": copy_tbs(where), "clocks at work": clocks_at_work(where)}


def warm(first: int, step: int, where: torch.device) -> dict[str, Any]:
    """Run some cases and compiled rivals once. A case that fails here fails again where it is timed."""
    cases = [case for group in groups().values() for case in group]
    kinds: list[list[Callable[[], object]]] = [
        [
            lambda case=case: materialized(case, Video.random(case, 0, where), compiled=True)()
            for case in cases
            if "compiled" in case.rivals
        ],
        [lambda case=case: once(case, where) for case in cases if case.backend != "cuda"],
        [lambda case=case: gpu_training.once(case, where) for case in gpu_training.cases()],
    ]
    every = [call for calls in kinds for call in (calls[:1] if TINY else calls)]
    ran, failed = 0, []
    for call in every[first::step]:
        try:
            call()
            ran += 1
        except Exception as error:
            failed.append(one_line(error))
    return {"ran": ran, "failed": failed}


def once(case: Case, where: torch.device) -> None:
    """Run a case without timing it."""
    with multiplied_as(case.precision):
        video = Video.random(case, 0, where)
        if case.backward:
            video = video.requires_grad()
        weights, _ = forward(case, video)
        if case.backward:
            gradient_of(video, weights, torch.ones_like(weights))


def main() -> None:
    """Time a group, or run a share of all cases once."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_cases", description=__doc__.splitlines()[0])
    parser.add_argument("group", nargs="?", choices=("ceilings", "sequence", *groups()))
    parser.add_argument("--warm", nargs=2, type=int, metavar=("I", "N"))
    options, where = parser.parse_args(), device()
    if options.warm:
        say({"name": f"warmed {options.warm[0]}"} | warm(*options.warm, where))
    elif options.group == "ceilings":
        attempt("ceilings", lambda: ceilings(where))
    elif options.group == "sequence":
        attempt("sequence", lambda: run_sequence(where, *((3, 30, 2, 3, 2) if TINY else ())))
    else:
        cases = groups()[options.group]
        rates = {precision: dense_tflops(precision, where) for precision in {case.precision for case in cases}}
        for case in cases:
            if where.type == "cuda":
                torch.cuda.empty_cache()
            attempt(case.title, lambda case=case: run_case(case, where, rates))


if __name__ == "__main__":
    run_command_line(main)
