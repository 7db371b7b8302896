"""The page of a run, report.html in its folder: which curves, pictures and facts it shows.

Of a log of any length it shows curves of bounded length (`timecycle.training.curves`), and it links to the pictures in
images/, so that it is written in a fraction of a second at every checkpoint.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from timecycle.errors import InputError, printable
from timecycle.files import check_is_file
from timecycle.locks import owned
from timecycle.manifest import PAGE, OwnFile
from timecycle.progress import say
from timecycle.training.curves import SCORE, Curves, Points
from timecycle.training.logger import curves_of, kept_lines
from timecycle.training.run_folder import (
    BEST,
    ENCODER,
    IMAGES,
    LATEST,
    LOG,
    SETTINGS,
    RunFiles,
    list_checkpoints,
    load_checkpoint,
    read_starts,
)
from timecycle.training.settings import RunSettings, WalkSettings, defaults, flag, resolved
from timecycle.viewing.pages import command_lines, embedded, link, render

SCORES = (SCORE, "J", "F")
LOSS = "loss"
STEERING = ("gradient", "lr")
LINEAR = ("accuracy", "inliers", "lr")  # shown on linear axes in any case
ABOUT = {
    LOSS: "loss, which is minimized",
    "nll": "negative log-likelihood that a walk returns to its start, by its length in frames",
    "accuracy": "share of places whose most likely end is right, by the walk's length",
    "cycle": "loss of cycles, by their length in frames",
    "skip": "loss of skip-cycles, directly to a frame and back",
    "inliers": "inlier score, which is maximized",
    "gradient": "norm of the gradient before clipping",
    "lr": "learning rate",
}
"""What the numbers of the log are; "nll" stands for nll/1, nll/2, and so on."""
SPREAD = 100.0  # ratio of the largest to the least number from which on a plot's axis is logarithmic
DIGITS = 3  # after the point, of the numbers of a plot
MOST_CURVES = 12  # in a plot
MOST_LISTED = 50  # skipped clips
MOST_STARTS = 30  # the last ones
MOST_EMBEDDED = 24  # pictures in a page that is a single file
LARGEST_STEP = 2**53
_PICTURE = re.compile(r"(\d{7,15})\.jpg")


def write_report(folder: Path, settings: RunSettings, curves: Curves, skipped: Mapping[str, int]) -> Path:
    """Write report.html into the folder of a run, which this process holds; another file of this name is renamed.

    skipped: how often each clip was skipped, by 'name: reason'. Returns the page's path.
    Raises InputError if settings.json is damaged, or if the page cannot be written.
    """
    content = make_page(folder, settings, read_starts(folder / SETTINGS)[1], curves, skipped)
    with RunFiles(folder).writing(PAGE) as partial:
        partial.write_bytes(content)
    return folder / PAGE


def rewrite_report(folder: Path, output: Path | None = None, single_file: bool = False) -> Path:
    """Write the page of a run from the files in its folder.

    Args:
        folder: of a run of `timecycle train`, running or ended.
        output: the page, which then needs no other file; by default report.html in the folder, which no other process
            may be working on.
        single_file: embed pictures there too, evenly spaced ones if there are many, instead of linking to them.

    Returns:
        The page's path.

    Raises:
        InputError: the folder holds no run, or one that is damaged, or the page cannot be written.
    """
    check_is_file(folder / SETTINGS, "the settings of a run of timecycle train")
    stored, starts = read_starts(folder / SETTINGS)
    limit = stored.get("minutes") if isinstance(stored, dict) else None
    given = {"minutes": limit} if isinstance(limit, float) else {}  # which `resolved` would leave out, as another run's
    settings = resolved(given, stored, str(folder / SETTINGS))
    lines, damaged = kept_lines(folder / LOG, LARGEST_STEP)
    if damaged:
        say(f"{folder / LOG}: {damaged} damaged lines are left out")
    curves, skipped = curves_of(lines), _skipped(folder)
    content = make_page(folder, settings, starts, curves, skipped, single_file or output is not None)
    if output:
        OwnFile(output).replace(content)
        return output
    with owned(folder), RunFiles(folder).writing(PAGE) as partial:
        partial.write_bytes(content)
    return folder / PAGE


def make_page(
    folder: Path,
    settings: RunSettings,
    starts: Sequence[Mapping[str, Any]],
    curves: Curves,
    skipped: Mapping[str, int],
    single_file: bool = False,
) -> bytes:
    """The page of a run, as UTF-8.

    Args:
        folder: the run's.
        settings: the run's.
        starts: entries of settings.json.
        curves: of its log.
        skipped: how often each clip was skipped, by 'name: reason'.
        single_file: embed pictures instead of linking to them, and link to nothing.
    """
    walk = isinstance(settings, WalkSettings)
    encoder = folder.resolve() / ENCODER
    return render(
        "training.html.jinja",
        title=printable(folder.resolve().name),
        facts=_facts(settings, starts, curves),
        groups=_groups(curves),
        width=curves.width,
        evaluation=_evaluation(curves),
        scored=printable(str(settings.evaluate_on or "synthetic video, which says little about real video")),
        pictures=_pictures(folder, curves.last, single_file),
        single_file=single_file,
        walk=walk,
        files=[
            (name, None if single_file else name, about) for name, about in FILES.items() if (folder / name).exists()
        ],
        command=command_lines(
            ["timecycle", "evaluate", "--davis", "DAVIS", "--resume", str(encoder), *["--protocol", "crw"] * walk]
        ),
        has_encoder=encoder.exists(),
        settings=_settings(settings),
        starts=[_start(number, start) for number, start in enumerate(starts, start=1)][-MOST_STARTS:],
        versions=_versions(starts),
        skipped=[(printable(line), count) for line, count in sorted(skipped.items())][:MOST_LISTED],
        skipped_in_all=(sum(skipped.values()), len({line.partition(": ")[0] for line in skipped})),
    )


FILES = {
    ENCODER: "the trained network",
    BEST: "the checkpoint with the best J&F",
    LATEST: "the newest checkpoint",
    LOG: "the numbers of each step",
    SETTINGS: "settings and starts",
}
"""Files of a run's folder that the page names, and what they are."""


def _facts(settings: RunSettings, starts: Sequence[Mapping[str, Any]], curves: Curves) -> list[tuple[str, str]]:
    """What is stated at the top."""
    length = next((start["length"] for start in reversed(starts) if isinstance(start.get("length"), int)), None)
    facts = [
        ("objective", settings.command().removeprefix("--objective ").replace("--walk-over", "over")),
        ("data", printable(settings.source)),
        ("steps", f"{curves.last:,}" + (f" of {length:,}" if length else "")),
        ("samples of a step", str(settings.batch)),
    ]
    if LOSS in curves.names:
        means, width = curves.points([LOSS]).smoothed(LOSS)
        span = f"{width:,} steps" if width > 1 else "step"
        facts.append((f"loss, first and last {span}", f"{means[0]:.4g}, {means[-1]:.4g}"))
    if curves.best:
        facts.append(("best J&F", f"{curves.best[1]:.3f} after step {curves.best[0]:,}"))
    return facts


def _groups(curves: Curves) -> list[dict[str, Any]]:
    """The plots of what each step logs: the loss first; nll/1, nll/2 and so on share one."""
    names: dict[str, list[str]] = {LOSS: []}
    for name in curves.names:
        if name not in SCORES:
            names.setdefault(name.partition("/")[0], []).append(name)
    order = [*(group for group in names if group not in STEERING), *(group for group in STEERING if group in names)]
    return [_plot(group, names[group][:MOST_CURVES], curves) for group in order if names[group]]


def _plot(group: str, names: list[str], curves: Curves) -> dict[str, Any]:
    """A plot of several curves over the steps: smoothed, with the range of single steps behind them."""
    points = curves.points(names)
    series: list[dict[str, Any]] = []
    over = 1
    for name in names:
        smooth, over = points.smoothed(name)
        length = name.partition("/")[2]
        shown = {"name": f"length {length}" if length else name, "values": smooth, "low": points.lows[name]}
        series.append(shown if points.width == 1 else shown | {"high": points.highs[name]})
    low = min(float(np.nanmin(points.lows[name])) for name in names)
    high = max(float(np.nanmax(points.highs[name])) for name in names)
    panel = {
        "series": series,
        "digits": DIGITS if max(-low, high) > 0.1 else DIGITS + 3,
        "log": group not in LINEAR and 0 < low < high / SPREAD,
        **({"min": 0, "max": 2 * high} if 0 < low == high else {}),
    }
    about = ABOUT.get(group, "")
    return {"name": group, "about": about, "over": over, "data": _chart(points, panel, about or group)}


def _evaluation(curves: Curves) -> dict[str, Any] | None:
    """The chart of the validations, with the best marked."""
    names = [name for name in SCORES if name in curves.names]
    if not names or curves.best is None:
        return None
    points = curves.points(names)
    panel = {"series": [{"name": name, "values": points.means[name], "points": True} for name in names]}
    step, best = curves.best
    marks = [{"x": step, "text": f"best: {best:.3f}, step {step}"}]
    return _chart(points, panel, "J and F over the steps") | {"marks": marks}


def _chart(points: Points, panel: dict[str, Any], label: str) -> dict[str, Any]:
    """A chart as base.html.jinja describes it."""
    return {"x": np.rint(points.steps).astype(int), "x_label": "step", "label": label, "panels": [panel]}


def _pictures(folder: Path, last: int, single_file: bool) -> list[tuple[int, str]]:
    """Steps and URLs of the pictures in images/, in order."""
    found = []
    with suppress(OSError):  # no folder, or no longer
        names = [match for path in (folder / IMAGES).iterdir() if (match := _PICTURE.fullmatch(path.name))]
        found = sorted((int(match[1]), match[0]) for match in names if int(match[1]) <= last)
    if not single_file:
        return [(step, link(IMAGES, name)) for step, name in found]
    many = len(found) - 1
    if many >= MOST_EMBEDDED:
        found = [found[round(i * many / (MOST_EMBEDDED - 1))] for i in range(MOST_EMBEDDED)]
    return [(step, embedded(folder / IMAGES / name)) for step, name in found]


WORDS = {"None": "none", "True": "yes", "False": "no"}
"""What the page has for values of Python."""


def _settings(settings: RunSettings) -> list[tuple[str, str, bool]]:
    """Option, value, and whether it is another than the default."""
    chosen = {name: getattr(settings, name, None) for name in ("objective", "walk_over", "filelist", "videos")}
    usual = defaults({name: value for name, value in chosen.items() if value is not None})
    return [
        (flag(name), printable(WORDS.get(str(value), str(value))), value != usual.get(name))
        for name in settings.to_json()
        if name not in ("checkpoint", "resume")  # the folder itself
        for value in [getattr(settings, name)]
    ]


def _start(number: int, start: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table of starts: a process that began or resumed the run."""

    def said(name: str) -> str:
        value = start.get(name)
        return "" if value is None else printable(str(value))

    command = start.get("command")
    words = command if isinstance(command, list) else [command]

    def measured(name: str) -> float | None:
        value = start.get(name)
        return float(value) if isinstance(value, int | float) and 0 <= value < LARGEST_STEP else None

    return {
        "number": number,
        "started": said("started").replace("T", " ").replace("+00:00", " UTC"),
        "from_step": said("from_step"),
        "to_step": said("to_step"),
        "seconds": measured("seconds"),
        "rate": measured("samples_per_second"),
        "device": said("device"),
        "processes": said("processes"),
        "threads": said("threads"),
        "commit": said("commit")[:12],
        "command": command_lines([str(word) for word in words if word is not None]),
    }


def _versions(starts: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The versions of the last start."""
    found = starts[-1].get("versions") if starts else None
    return (
        [(printable(name), printable(str(value))) for name, value in found.items()] if isinstance(found, dict) else []
    )


def _skipped(folder: Path) -> Mapping[str, int]:
    """The skipped clips that the newest readable checkpoint has."""
    for _, path in reversed(list_checkpoints(folder)):
        with suppress(InputError):
            found = load_checkpoint(path).get("skipped")
            if isinstance(found, dict) and all(isinstance(n, str) and type(c) is int for n, c in found.items()):
                return found
    return {}
