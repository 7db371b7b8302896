"""The command `timecycle doctor`: what is installed and built here, which backends run, a self-test and a speed."""

import argparse
import importlib.metadata
import importlib.util
import itertools
import json
import platform
import shutil
import sys
import textwrap
import time
import warnings
from typing import Any

from timecycle import native
from timecycle.data.images import MOST_PIXELS, most_pixels
from timecycle.errors import InputError
from timecycle.progress import duration, say
from timecycle.provenance import commit
from timecycle.version import __version__

DESCRIPTION = (
    "Say what is installed and built on this machine, which backend every operator will use and why not another; test "
    "the kernels, and estimate the time of a DAVIS evaluation. The exit status is 1 if something is broken, and 0 if "
    "optional parts are missing."
)
EXAMPLES = """
timecycle doctor
timecycle doctor --json > machine.json
"""
OPTIONAL = {
    "av": ("av", "reading and writing video files"),
    "triton": ("triton", "most of the kernels on GPUs"),
    "tensorboard": ("tensorboard", "curves of training runs"),
}
"""Optional packages by module: name for pip, and what it is for."""
VAL_2017 = {"sequences": 30, "frames": 1999}
"""DAVIS-2017's val set."""
CROP = 480
DIFFERENCE = 1e-4
"""Most mean difference of soft labels between a backend and the reference."""


def examine() -> dict[str, Any]:
    """All that the command prints, as plain data for JSON.

    "problems" are sentences on what is broken, "advice" on what may be added; the other entries are facts. Takes some
    ten seconds.
    """
    found: dict[str, Any] = {
        "timecycle": {"version": __version__, "commit": commit(7), "installed": native.how_installed()},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(package) for name, (package, _) in OPTIONAL.items()},
        "problems": [],
        "advice": [],
    }
    for name, (package, purpose) in OPTIONAL.items():
        if found["packages"][name] is None and name != "triton":
            found["advice"].append(f"for {purpose}: pip install {package}")
    _examine_images(found)
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library of torch's is missing
        reason = " ".join(str(error).split())[:200]
        found["problems"].append(
            f"PyTorch cannot be imported ({reason}); expected version 2.11 or newer: pip install 'torch>=2.11'"
        )
        return found
    _examine_torch(found, torch)
    _examine_backends(found)
    _examine_weights(found)
    if not found["problems"]:
        found["self-test"] = [_self_test(device, found) for device in _devices(torch)]
        found["speed"] = [_measured_speed(device) for device in _devices(torch)]
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _examine_images(found: dict[str, Any]) -> None:
    try:
        found["most pixels"] = most_pixels()
    except InputError as error:
        found["problems"].append(str(error))


def _examine_torch(found: dict[str, Any], torch: Any) -> None:
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    without = None
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        without = "PyTorch finds no GPU or no driver" if built else "this PyTorch is built for CPUs only"
    found["torch"] = {"version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip}
    found["machine"] = {
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpus": gpus,
        "no gpu": without,
    }


def _examine_backends(found: dict[str, Any]) -> None:
    """The compiled modules, and the backends of every operator."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of kernels that are not built, which the page has too
        from timecycle import ops
        from timecycle.ops.backends import CUDA_MISSING, NATIVE, NATIVE_MISSING

    there = {name: importlib.util.find_spec(f"timecycle.{name}") is not None for name in ("_C", "_cuda")}
    found["modules"] = {
        "C++": {
            "built": there["_C"],
            "built for torch": getattr(NATIVE, "torch_version", None),
            "reason": NATIVE_MISSING,
        },
        "CUDA": {"built": there["_cuda"], "built for torch": None, "reason": CUDA_MISSING},
    }
    if there["_C"] and NATIVE_MISSING:
        found["problems"].append(NATIVE_MISSING)
    elif NATIVE_MISSING:
        found["advice"].append(f"for speed: {NATIVE_MISSING}")
    if found["machine"]["gpus"]:
        if found["packages"]["triton"] is None:
            found["advice"].append("for kernels on this GPU: pip install triton")
        if not there["_cuda"] and found["torch"]["cuda"]:
            found["advice"].append(f"for faster kernels on this GPU, with nvcc: {native.how_to_build()}")
    operators: dict[str, Any] = {}
    for state in ops.backends():  # type: ignore[operator]  # a module that can be called
        entry = operators.setdefault(state.operator, {"cpu": None, "gpu": [], "not": {}})
        if state.reason is not None:
            entry["not"][state.backend] = state.reason
        elif state.device == "cuda":
            entry["gpu"].append(state.backend)
        elif entry["cpu"] is None:
            entry["cpu"] = state.backend
    found["operators"] = operators


def _examine_weights(found: dict[str, Any]) -> None:
    from timecycle.features.named import SHIPPED

    found["weights"] = {"file": str(SHIPPED), "bytes": SHIPPED.stat().st_size if SHIPPED.is_file() else None}
    if not SHIPPED.is_file():
        found["problems"].append(f"{SHIPPED} does not exist; expected the shipped weights: install timecycle again")


def _devices(torch: Any) -> list[str]:
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def _self_test(device: str, found: dict[str, Any]) -> dict[str, Any]:
    """Labels propagated through three frames of synthetic video by the usual backend, and by the reference."""
    import numpy as np
    import torch

    from timecycle.data.synthetic import Scene
    from timecycle.features.named import Features
    from timecycle.models.encoder import STRIDE
    from timecycle.ops import affinity_propagate
    from timecycle.propagation.frames import preprocess
    from timecycle.propagation.protocols import protocol

    begin = time.perf_counter()
    rules = protocol("timecycle", side=128)
    scene = Scene(seed=0, frames=3, height=120, width=160, objects=2)
    features = Features(("color", "gradients"), torch.device(device), torch.float32, rules.mean, rules.std)
    images = [preprocess(scene.frame(index)[0], rules) for index in range(3)]
    features.begin(images[0])
    grid = rules.side // STRIDE
    mask = torch.from_numpy(np.ascontiguousarray(scene.frame(0)[1])).long()[None, None].float()
    ids = torch.nn.functional.interpolate(mask, (grid, grid)).long().flatten()
    labels = torch.nn.functional.one_hot(ids, 3).float().to(device)
    rows = [features(image[None]).flatten(2).transpose(1, 2).contiguous() for image in images]
    context = torch.zeros((1, 1), dtype=torch.int64, device=device)
    select = rules.select()

    def propagated(backend: str | None) -> torch.Tensor:
        given = labels[None]
        for earlier, later in itertools.pairwise(rows):
            given = affinity_propagate(later, earlier, context, given, context, select, backend=backend)
        return given

    try:
        difference = float((propagated(None) - propagated("reference")).abs().mean())
        reason = None if difference <= DIFFERENCE else f"labels differ from the reference's by {difference:.1e}"
    except Exception as error:
        difference, reason = None, f"the kernels fail ({' '.join(str(error).split())[:200]})"
    if reason:
        found["problems"].append(f"{device}: {reason}; expected the same labels: {native.how_to_build()}")
    seconds = round(time.perf_counter() - begin, 3)
    return {"device": device, "difference": difference, "most": DIFFERENCE, "passed": not reason, "seconds": seconds}


def _measured_speed(device: str) -> dict[str, Any]:
    """Seconds per frame of an evaluation with the shipped features, and of DAVIS-2017's val set from them."""
    import torch

    from timecycle.features.named import DEFAULT, Features
    from timecycle.propagation.propagator import LabelPropagator
    from timecycle.propagation.protocols import protocol

    rules = protocol("timecycle", side=CROP)
    encoder = Features(DEFAULT, torch.device(device), torch.float32, rules.mean, rules.std)
    image = torch.rand(1, 3, CROP, CROP, generator=torch.Generator().manual_seed(0))
    encoder.begin(image[0])

    def ready() -> float:
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    with torch.inference_mode():
        features = encoder(image)[0]
        begin = ready()
        for _ in range(2):
            encoder(image)
        encode = (ready() - begin) / 2
        labels = torch.rand(3, *features.shape[1:], device=features.device)
        propagator = LabelPropagator(rules)
        propagator.start(features, labels)
        for _ in range(rules.length):  # labels that are given fill the context without a computation
            propagator.step(features, labels)
        propagator.step(features)
        begin = ready()
        for _ in range(2):
            propagator.step(features)
        propagate = (ready() - begin) / 2
    return {
        "device": device,
        "crop": CROP,
        "encode": round(encode, 4),
        "propagate": round(propagate, 4),
        "davis 2017 val": round((encode + propagate) * VAL_2017["frames"], 1),
    }


def report(found: dict[str, Any], columns: int = 80) -> str:
    """The page that is printed, commands in it in one line each. Its last line is the verdict."""
    rows = [*_installed(found)]
    if "torch" in found:
        rows += [*_kernels(found), *_operators(found), *_tests(found)]
    lines = []
    for title, texts in rows:
        for index, text in enumerate(texts):
            start = f"{title if index == 0 else '':11s}"
            lines.append(textwrap.fill(text, columns, initial_indent=start, subsequent_indent=" " * 13, **UNBROKEN))
    for title, sentences in (("to add", found["advice"]), ("broken", found["problems"])):
        lines += [f"\n{title}:" if sentences else "", *(f"  {sentence}" for sentence in sentences)]
    page = "\n".join(line for line in lines if line)
    if found["problems"]:
        return f"{page}\n\nsomething is broken: see the lines above for what to do"
    return f"{page}\n\neverything works{'; what is listed above may be added' if found['advice'] else ''}"


Rows = list[tuple[str, list[str]]]
UNBROKEN: Any = {"break_long_words": False, "break_on_hyphens": False, "replace_whitespace": False}


def _installed(found: dict[str, Any]) -> Rows:
    own, torch = found["timecycle"], found.get("torch", {}).get("version", "cannot be imported")
    packages = [
        f"{name} {version}" if version else f"{name}: not installed ({OPTIONAL[name][1]})"
        for name, version in found["packages"].items()
    ]
    rows: Rows = [
        ("timecycle", [f"{own['version']}{', commit ' + own['commit'] if own['commit'] else ''}", own["installed"]]),
        ("python", [f"{found['python']}, torch {torch}", *packages]),
    ]
    if "machine" in found:
        machine = found["machine"]
        processor = f"threads: {machine['threads']}, instructions: {machine['instructions']}"
        rows.append(("machine", [found["platform"], processor]))
        rows.append(("gpu", machine["gpus"] or [f"none: {machine['no gpu']}"]))
    if "most pixels" in found:
        rows.append(("images", [f"at most {found['most pixels']:,} pixels ({MOST_PIXELS} changes that)"]))
    return rows


def _kernels(found: dict[str, Any]) -> Rows:
    lines = []
    for name, module in found["modules"].items():
        if not module["built"]:
            lines.append(f"{name}: not built{' (needs nvcc and a PyTorch for CUDA)' if name == 'CUDA' else ''}")
        else:
            of = f" for torch {module['built for torch']}" if module["built for torch"] else ""
            used = f", not used: {module['reason'].partition('; to build')[0]}" if module["reason"] else ""
            lines.append(f"{name}: built{of}{used}")
    size = found["weights"]["bytes"]
    weights = "missing" if size is None else f"{size / 1e6:.1f} MB, {found['weights']['file']}"
    return [("kernels", lines), ("weights", [weights])]


def _operators(found: dict[str, Any]) -> Rows:
    """A line per operator; the reasons of absent backends, which most operators share, once each."""
    gpu = bool(found["machine"]["gpus"])
    lines = []
    for name, entry in found["operators"].items():
        lines.append(f"{name:26s}{entry['cpu']}{'; GPU: ' + ', '.join(entry['gpu'] or ['reference']) if gpu else ''}")
    without: dict[str, set[str]] = {}
    for entry in found["operators"].values():
        for backend, why in entry["not"].items():
            without.setdefault(why.partition("; to build")[0], set()).add(backend)
    lines += [f"not {', '.join(sorted(names))}: {why}" for why, names in sorted(without.items())]
    return [("operators", lines)]


def _tests(found: dict[str, Any]) -> Rows:
    rows: Rows = []
    for test in found.get("self-test", []):
        result = "equal the reference's" if test["passed"] else "are not the reference's"
        text = f"{test['device']}: labels of a synthetic video {result} ({test['seconds']:.1f} s)"
        rows.append(("self-test", [text]))
    for speed in found.get("speed", []):
        rows.append(
            (
                "speed",
                [
                    f"{speed['device']}: a frame at crop {speed['crop']} takes {speed['encode']:.3f} s for features, "
                    f"{speed['propagate']:.3f} s for labels",
                    f"DAVIS-2017 val ({VAL_2017['sequences']} sequences, {VAL_2017['frames']:,} frames) would take "
                    f"about {duration(speed['davis 2017 val'])}",
                ],
            )
        )
    return rows


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Examine and print; exits with status 1 if something is broken."""
    if not arguments.json:
        say("examining, some ten seconds ...")
    found = examine()
    print(
        json.dumps(found, indent=1) if arguments.json else report(found, min(shutil.get_terminal_size().columns, 100))
    )
    if found["problems"]:
        sys.stdout.flush()
        sys.exit(1)
