"""The tables of docs/protocols.md and of the README, from the presets, docs/published.json and the results files.

docs/published.json has, for each published preset, its paper and the scores on DAVIS-2017 val that its authors give
("source": where somebody else's or another page's number is from). `like` names the preset whose code it shares.
"""

import json
import math
from typing import Any

from docs.markdown import table
from docs.numbers import ROOT
from timecycle.normalization import HALF, IMAGENET
from timecycle.propagation.protocols import PRESETS, Protocol

PUBLISHED: dict[str, Any] = json.loads((ROOT / "docs" / "published.json").read_text())
AGREEMENT = "benchmarks/results/agreement.json"
SHAPES = {
    "circle<": "closer than {} positions",
    "circle<=": "at most {} positions away",
    "square<=": "at most {} rows and {} columns away",
}
CONTEXT = {
    "once": "frame 0 and the last {}",
    "twice": "frame 0 and the last {}; while frame 0 is one of these, it is there twice",
    "copies": "frame 0 and the last {}; a copy of frame 0 for each that is missing",
    "padded": "frame 0 and the last {}; a copy of frame 0 for each that is missing; frame 0 is predicted, too",
}
FIRST_LABELS = {
    "nearest": "ids, nearest to the grid",
    "twice nearest": "ids, nearest to the encoded size, then nearest to the grid",
    "bilinear": "one map per id at full size, OpenCV's bilinear to the grid",
    "square": "ids, nearest to the square; one map per id from 12 pixels on, OpenCV's bilinear to the grid",
    "nearest-exact": "ids, PyTorch's nearest-exact to the grid",
}
CLASSES = {
    "grid": "0 to the largest id left on the grid",
    "full": "0 to the largest id of the mask",
    "annotated": "the ids of the mask",
}
UPSAMPLE = {"opencv": "OpenCV's bilinear", "bilinear": "PyTorch's bilinear", "nearest": "nearest"}
UPSAMPLE_TO = {"working": "the encoded size, its arg-max by nearest to the frame's", "output": "the frame's size"}
SCALE = {
    "none": "no",
    "positive": "yes, of classes with a positive value",
    "positive, eps": "yes, of classes with a positive value, `1e-12` added to the range",
    "any": "yes",
}


def image(rules: Protocol) -> str:
    """The size of the encoded image."""
    if rules.resize == "native" or not rules.side:
        return "the frame's size"
    if rules.resize == "square":
        return f"a square of {rules.side} pixels"
    way = {"floor": "down", "nearest": "to the nearest", "ceil": "up"}[rules.rounding]
    sides = "both sides" if rules.rounding == "ceil" else "long side"
    unit = "pixel" if rules.multiple == 1 else f"multiple of {rules.multiple}"
    return f"short side {rules.side}; {sides} rounded {way} {'' if way == 'to the nearest' else 'to a '}{unit}"


def colors(rules: Protocol) -> str:
    """Colors and their normalization."""
    mean = {IMAGENET[0]: "ImageNet's mean", HALF[0]: "mean 0.5"}.get(rules.mean, f"mean {rules.mean}")
    std = {IMAGENET[1]: "ImageNet's std", HALF[1]: "std 0.5"}.get(rules.std, f"std {rules.std}")
    what = {"rgb": "RGB", "lightness": "lightness (L of Lab), three times"}[rules.color]
    return f"{what}; {mean} and {std}"


def context(rules: Protocol) -> str:
    """The context frames."""
    return CONTEXT[rules.first].format(rules.length - (rules.first == "padded"))


def neighborhood(rules: Protocol) -> str:
    """Which keys a query is compared with."""
    if rules.radius is None:
        return "every position"
    where = SHAPES[rules.shape].format(f"{rules.radius:g}", f"{rules.radius:g}")
    return f"{where}; in frame 0 every position" if rules.first_everywhere else where


def selection(rules: Protocol) -> str:
    """Which keys are kept."""
    kept = f"the {rules.k} most similar {'of each frame' if rules.scope == 'frame' else 'of all frames together'}"
    return f"{kept}, and all that equal the last of them" if rules.ties == "all" else kept


def temperature(rules: Protocol) -> str:
    """The softmax's temperature."""
    root = round(1 / rules.temperature**2)
    return f"{rules.temperature:g}" if not math.isclose(root, 512) else f"1 / √{root}"


def weights(rules: Protocol) -> str:
    """What the kept keys' labels are weighted by."""
    over = "the kept" if rules.softmax_over == "topk" else f"all keys{' of the frame' * (rules.scope == 'frame')}"
    return f"softmax over {over}{'; mean over the frames' * (rules.scope == 'frame')}"


def feedback(rules: Protocol) -> str:
    """The labels that later frames see."""
    labels = {"soft": "soft labels as they are", "min-max": "each map rescaled to 0 .. 1"}[rules.feedback]
    return labels if rules.sharpen == 1 else f"{labels}, sharpened by {rules.sharpen:g}"


def result(rules: Protocol) -> str:
    """From soft labels to the mask."""
    by = UPSAMPLE[rules.upsample]
    if rules.refine is not None:
        by = f"guided filter along the frame's edges, radius {rules.refine:g}, eps {rules.refine_eps:g} (else {by})"
    islands = (
        ""
        if rules.islands is None
        else f"; small parts farther from the object than {rules.islands:g} of its size removed"
    )
    return f"{by} to {UPSAMPLE_TO[rules.upsample_to]}{islands}"


def first_result(rules: Protocol) -> str:
    """The mask of frame 0 in the results."""
    return {"given": "the given mask", "propagated": "computed from its soft labels"}[rules.first_mask]


TABLES: dict[str, dict[str, Any]] = {
    "Image preparation": {
        "size of the encoded image": image,
        "colors": colors,
        "features scaled to length 1": lambda rules: "yes" if rules.l2 else "no",
    },
    "Context and neighborhood": {
        "context frames": context,
        "neighborhood, in positions of the feature grid": neighborhood,
    },
    "Selection and weights": {
        "keys kept for a query": selection,
        "temperature": temperature,
        "weights": weights,
        "labels that later frames see": feedback,
    },
    "From the first mask to labels": {
        "first mask": lambda rules: FIRST_LABELS[rules.labels],
        "classes": lambda rules: CLASSES[rules.classes],
    },
    "From labels to masks": {
        "upsampling of soft labels": result,
        "min-max scaling per class": lambda rules: SCALE[rules.scale],
        "frame 0 of `propagate`": first_result,
    },
}
"""The field-by-field tables: heading, then column and the words of a protocol in it."""


def name(preset: str) -> str:
    """A preset as the tables name it."""
    return f"`{preset}`"


def fields() -> str:
    """Every preset, field by field."""
    found = []
    for heading, columns in TABLES.items():
        rows = [[name(preset), *(words(rules) for words in columns.values())] for preset, rules in PRESETS.items()]
        found.append(f"**{heading}**\n\n{table(['protocol', *columns], rows)}")
    return "\n\n".join(found)


def records(preset: str) -> list[dict[str, Any]]:
    """The recorded runs of a protocol's published program."""
    every = json.loads((ROOT / AGREEMENT).read_text())["records"].values()
    return [record for record in every if record["protocol"] == preset]


def equal_pixels(runs: list[dict[str, Any]]) -> str:
    """The share of mask pixels that equal the published program's, rounded down."""
    pixels, apart = (sum(run[key] for run in runs) for key in ("pixels", "pixels apart"))
    return "all" if not apart else f"{math.floor(1e6 * (1 - apart / pixels)) / 1e4:.4f} %"


def score(one: dict[str, Any]) -> str:
    """A published score with its features."""
    return f"{one['J&F']:.1f} ({one['features']})"


def protocols() -> str:
    """The README's short table."""
    rows = []
    for preset, about in PUBLISHED.items():
        agreement = equal_pixels(records(preset)) if records(preset) else f"as `{about['like']}`, other settings"
        published = score(about["scores"][0]) if about["scores"] else "see the paper"
        rows.append([name(preset), f"[{about['short']}]({about['url']})", published, agreement])
    rows.append([name("best"), "[ours](docs/best_protocol.md)", "", ""])
    head = ["protocol", "paper", "published J&F (features)", "reproduced: mask pixels equal to the published program's"]
    return (
        f"{table(head, rows)}\n\n"
        "Published J&F is on DAVIS-2017 val, and was not measured here: neither the checkpoints nor DAVIS-2017 were at "
        "hand. The last column compares masks from the same features, recorded from the published programs."
    )


def reproduced() -> str:
    """Published scores, and agreement with the published programs in detail."""
    rows = []
    for preset, about in PUBLISHED.items():
        runs = records(preset)
        scores = [score(one) + (f", [source]({one['source']})" if "source" in one else "") for one in about["scores"]]
        if runs:
            counts = [f"{len(runs)} videos, {sum(run['frames'] for run in runs)} frames"]
            counts.append(f"{sum(run['pixels apart'] for run in runs):,} of {sum(run['pixels'] for run in runs):,}")
            most, mean = (max(run[f"soft apart{kind}"] for run in runs) for kind in ("", ", mean"))
            counts.append(f"{most:.1g} ({mean:.0e})")
        else:
            counts = [f"none; the code of `{about['like']}` with other settings", "", ""]
        rows.append(
            [name(preset), f"[{about['paper']}]({about['url']})", "; ".join(scores) or "see the paper", *counts]
        )
    commit = json.loads((ROOT / AGREEMENT).read_text())["commit"]
    head = ["protocol", "paper", "published J&F on DAVIS-2017 val (features)"]
    head += [
        "recorded runs of the published program",
        "mask pixels that differ",
        "largest difference of a soft label (mean of a video)",
    ]
    return f"{table(head, rows)}\n\nCommit {commit}, from `{AGREEMENT}`."
