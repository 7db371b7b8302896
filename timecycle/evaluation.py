"""The evaluation run: sequences through features and propagation into a results folder."""

import hashlib
import importlib.util
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from timecycle.data.davis import Sequence, read_davis
from timecycle.errors import InputError
from timecycle.features import Extractor, Features, GivenFeatures, evaluating
from timecycle.files import read_rgb
from timecycle.images import prepared
from timecycle.labels import Size, first_labels, index_mask
from timecycle.masks import VOID, read_mask
from timecycle.propagation import LabelPropagator
from timecycle.protocols import Protocol
from timecycle.protocols import protocol as as_protocol
from timecycle.results import ResultsFolder, SequenceWriter
from timecycle.scores import Scores, SequenceMasks, score_masks


class Stopwatch:
    """Seconds by stage. Threads work beside each other, so the stages may sum to more than the wall clock."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start


def fingerprint(path: Path) -> str:
    """SHA-256 of a file. Raises InputError if it is not there."""
    if not path.is_file():
        raise InputError(f"--resume {path} does not exist; expected a .pth.tar of the release, or .safetensors")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def evaluate(
    sequences: list[Sequence],
    features: Features | GivenFeatures,
    protocol: Protocol,
    folder: ResultsFolder,
    say: Callable[[str], None] = tqdm.write,
    *,
    remap_255: bool = False,
    overlays: bool = True,
    progress: bool = True,
) -> None:
    """Make the masks of every sequence that is not finished in the folder, with a progress bar.

    Raises InputError for a file that turns out to be damaged; sequences finished before it stay.
    """
    waiting = [sequence for sequence in sequences if not folder.finished(sequence)]
    if len(waiting) < len(sequences):
        say(f"{len(sequences) - len(waiting)} of {len(sequences)} sequences are finished in {folder.path}; going on")
    video = importlib.util.find_spec("av") is not None
    if not video and waiting and overlays:
        say("overlay videos are left out: PyAV is not installed (pip install av)")
    with tqdm(total=sum(len(s.frames) for s in waiting), unit="frame", disable=None if progress else True) as bar:
        for sequence in waiting:
            bar.set_description(sequence.name)
            start = time.perf_counter()
            watch = Stopwatch()
            writer = SequenceWriter(folder.path, sequence, video and overlays, pictures=overlays)
            try:
                _evaluate_sequence(sequence, features, protocol, remap_255, writer, watch, bar, say)
            except BaseException:
                writer.discard()
                raise
            watch.seconds["total"] = time.perf_counter() - start
            seconds = {stage: round(value, 3) for stage, value in watch.seconds.items()}
            # Noted before it becomes visible: a run killed in between repeats the sequence, and never disowns it.
            folder.record(sequence, {"frames": len(sequence.frames), "seconds": seconds})
            writer.finish()
            say(f"{sequence.name}: {len(sequence.frames)} frames in {seconds['total']:.1f} s")


@torch.inference_mode()
def _evaluate_sequence(
    sequence: Sequence,
    features: Features | GivenFeatures,
    protocol: Protocol,
    remap_255: bool,
    writer: SequenceWriter,
    watch: Stopwatch,
    bar: tqdm,
    say: Callable[[str], None],
) -> None:
    """One sequence, a frame at a time; reading runs ahead and writing behind in threads of their own."""
    annotation = read_mask(sequence.annotations[0], remap_255)
    propagator = LabelPropagator(protocol, l2=protocol.l2 and not features.l2)
    written: list[Future[None]] = []

    def write(index: int, rgb: np.ndarray, soft: Tensor, working: Size) -> None:
        with watch("write"):
            # The first mask of a submission is the annotation itself, not its prediction.
            mask = annotation
            if index:
                mask = index_mask(soft, labels.ids, protocol, working, (rgb.shape[0], rgb.shape[1]))
            writer.add(index, rgb, mask)

    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as scribe:
        for index, (rgb, image) in enumerate(_read_ahead(sequence, protocol, reader, watch)):
            with watch("encode"):
                if index == 0:
                    features.begin(image)
                feature = features(image[None])[0]
            with watch("propagate"):
                working = (image.shape[1], image.shape[2])
                if index == 0:
                    labels = first_labels(annotation, protocol, (feature.shape[1], feature.shape[2]), working)
                    _warn_of_dropped(sequence, annotation, labels.ids, say)
                    soft_labels = torch.from_numpy(labels.soft).to(feature.device)
                    soft = propagator.start(feature, soft_labels, len(sequence.frames))
                else:
                    soft = propagator.step(feature)
                soft = soft.cpu()
            written.append(scribe.submit(write, index, rgb, soft, working))
            if len(written) > 4:  # the writer may not fall behind without bound
                written.pop(0).result()
            bar.update()
        propagator.check()
        for future in written:
            future.result()


def _read_ahead(
    sequence: Sequence, protocol: Protocol, pool: ThreadPoolExecutor, watch: Stopwatch
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Frames in order as (RGB, normalised crop), decoded up to four ahead of their use."""

    def read(path: Path) -> tuple[np.ndarray, Tensor]:
        with watch("read"):
            rgb = read_rgb(path)
            return rgb, prepared(rgb, protocol)

    waiting: list[Future[tuple[np.ndarray, Tensor]]] = []
    for path in sequence.frames:
        waiting.append(pool.submit(read, path))
        if len(waiting) > 4:
            yield waiting.pop(0).result()
    for future in waiting:
        yield future.result()


def _warn_of_dropped(
    sequence: Sequence, annotation: np.ndarray, kept: tuple[int, ...], say: Callable[[str], None]
) -> None:
    """Say which annotated objects are too small to be carried, and when none is left."""
    annotated = set(np.unique(annotation).tolist()) - {0, VOID}
    for lost in sorted(annotated - set(kept)):
        say(f"warning: {sequence.name}: object {lost} is dropped, being too small for the protocol")
    if not set(kept) - {0}:
        say(f"warning: {sequence.name}: {sequence.annotations[0]} holds no object; all its masks are background")


def masks_to_score(sequences: list[Sequence], path: Path) -> list[SequenceMasks]:
    """The annotations of sequences, all of which are annotated throughout, beside the masks in a results folder."""
    return [
        SequenceMasks(s.name, list(s.annotations), [path / s.name / f"{a.stem}.png" for a in s.annotations])
        for s in sequences
    ]


def evaluate_davis(
    features: Extractor,
    davis: Path | str,
    protocol: str | Protocol = "dino",
    *,
    image_set: str = "val",
    sequences: list[str] | None = None,
    save_path: Path | str | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    **overrides: Any,
) -> Scores:
    """J and F of features on DAVIS-2017, from inside a program: a notebook, or a training loop every few epochs.

    Args:
        features: any callable, normalised images [B, 3, H, W] float32 -> features [B, D, h, w], of any stride. A module
            is evaluated in eval mode, and put back.
        davis: folder in DAVIS-2017 layout.
        protocol: a preset's name, or a protocol; it says how images are resized and normalised, too.
        image_set: list in ImageSets/2017.
        sequences: only these.
        save_path: keep the masks there, and go on with what an earlier call left; else nothing is kept.
        device: where images go; without it where a module's parameters are, else the CPU.
        progress: whether a bar is shown.
        overrides: fields of the protocol to change, such as k=7.

    Under torch.distributed the sequences are shared among the ranks, and every rank returns the scores of all.

    Returns:
        The scores, as the official evaluation defines them.

    Raises:
        InputError: data are missing or damaged, the protocol is unknown, or `features` returns something else.
    """
    rules = as_protocol(protocol, **overrides)
    every = read_davis(Path(davis), image_set, names=sequences)
    unscored = [sequence.name for sequence in every if not sequence.scored]
    if unscored:
        raise InputError(
            f"{davis}: {unscored[0]} has an annotation of the first frame only; expected one of every frame"
        )
    rank, ranks = _rank()
    own = every[rank::ranks]
    with tempfile.TemporaryDirectory() as temporary:
        options = {**asdict(rules), "data": str(Path(davis).resolve())}
        # Each rank writes a results.json of its own.
        path = (
            Path(temporary) if save_path is None else Path(save_path) / f"rank{rank}" if ranks > 1 else Path(save_path)
        )
        folder = ResultsFolder(path, options)
        with evaluating(features, device) as given:
            evaluate(own, given, rules, folder, say=lambda _: None, overlays=False, progress=progress)
        found = score_masks(masks_to_score(own, folder.path)).sequences if own else {}
    shares = [found]
    if ranks > 1:
        shares = [{} for _ in range(ranks)]
        torch.distributed.all_gather_object(shares, found)
    together = {name: objects for share in shares for name, objects in share.items()}
    return Scores({sequence.name: together[sequence.name] for sequence in every})


def _rank() -> tuple[int, int]:
    """The number of this process, and how many there are."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()
