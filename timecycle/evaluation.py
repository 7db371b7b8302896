"""The evaluation run: sequences through features and propagation into a results folder."""

import hashlib
import importlib.util
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from timecycle.checkpoint import load_encoder
from timecycle.colour import ColourDescriptor
from timecycle.data.davis import Sequence
from timecycle.encoder import STRIDE, fold_batch_norm
from timecycle.errors import InputError
from timecycle.files import read_rgb
from timecycle.images import crop_tensor
from timecycle.masks import VOID, read_mask
from timecycle.ops import Select
from timecycle.propagation import OBJECT_PIXELS, LabelPropagator, first_labels, index_mask
from timecycle.results import ResultsFolder, SequenceWriter

TEMPERATURE = 512**-0.5  # the release's, whatever the number of channels
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Options:
    """What the masks depend on, under the names of the command line. Raises InputError for values that mean nothing."""

    cropSize: int = 320
    """Side of the square that frames are resized to, pixels; a multiple of 8."""
    videoLen: int = 8
    """Context frames of a target, the annotated first frame included."""
    topk_vis: int = 5
    """Neighbours kept in each context frame."""
    dtype: str = "float32"
    features: str = "colour"
    """'colour', or the SHA-256 of the weights."""
    data: str = ""
    remap_255: bool = False

    def __post_init__(self) -> None:
        if self.cropSize < STRIDE or self.cropSize % STRIDE:
            raise InputError(f"--cropSize is {self.cropSize}; expected a positive multiple of {STRIDE}")
        if self.videoLen < 1:
            raise InputError(f"--videoLen is {self.videoLen}; expected at least 1 context frame")
        positions = (self.cropSize // STRIDE) ** 2
        if not 1 <= self.topk_vis <= positions:
            raise InputError(
                f"--topk_vis is {self.topk_vis}; expected 1 to {positions}, the positions of --cropSize {self.cropSize}"
            )
        if self.dtype not in DTYPES:
            raise InputError(f"--dtype is {self.dtype!r}; expected one of {', '.join(DTYPES)}")


class Features:
    """Frames to features on a device, in a dtype: the trained encoder, or without weights the colour descriptor."""

    def __init__(self, checkpoint: Path | None, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._colour = None if checkpoint else ColourDescriptor()
        self._encoder = fold_batch_norm(load_encoder(checkpoint)).to(device, dtype) if checkpoint else None

    def begin(self, first: Tensor) -> None:
        """Start a sequence with its first frame, [3, H, W]."""
        if self._colour is not None:
            self._colour.begin(first)

    def __call__(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] -> L2-normalised features [B, D, H / 8, W / 8]."""
        if self._encoder is None:
            assert self._colour is not None
            return self._colour(images).to(self.device, self.dtype)
        return self._encoder(images.to(self.device, self.dtype, memory_format=torch.channels_last))


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
    features: Features,
    options: Options,
    folder: ResultsFolder,
    say: Callable[[str], None] = tqdm.write,
) -> None:
    """Make the masks of every sequence that is not finished in the folder, with a progress bar.

    Raises InputError for a file that turns out to be damaged; sequences finished before it stay.
    """
    waiting = [sequence for sequence in sequences if not folder.finished(sequence)]
    if len(waiting) < len(sequences):
        say(f"{len(sequences) - len(waiting)} of {len(sequences)} sequences are finished in {folder.path}; going on")
    video = importlib.util.find_spec("av") is not None
    if not video and waiting:
        say("overlay videos are left out: PyAV is not installed (pip install av)")
    with tqdm(total=sum(len(s.frames) for s in waiting), unit="frame", disable=None) as bar:
        for sequence in waiting:
            bar.set_description(sequence.name)
            start = time.perf_counter()
            watch = Stopwatch()
            writer = SequenceWriter(folder.path, sequence, video)
            try:
                _evaluate_sequence(sequence, features, options, writer, watch, bar, say)
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
    features: Features,
    options: Options,
    writer: SequenceWriter,
    watch: Stopwatch,
    bar: tqdm,
    say: Callable[[str], None],
) -> None:
    """One sequence, a frame at a time; reading runs ahead and writing behind in threads of their own."""
    annotation = read_mask(sequence.annotations[0], options.remap_255)
    labels = first_labels(annotation, options.cropSize)
    _warn_of_dropped(sequence, annotation, labels.ids, say)
    select = Select(options.topk_vis, TEMPERATURE, scope="frame", normalise="all")
    propagator = LabelPropagator(options.videoLen, select)
    written: list[Future[None]] = []

    def write(index: int, rgb: np.ndarray, soft: np.ndarray) -> None:
        with watch("write"):
            # The first mask of a submission is the annotation itself, not its prediction.
            mask = annotation
            if index:
                _, mask = index_mask(soft, labels.ids, options.cropSize, (rgb.shape[1], rgb.shape[0]))
            writer.add(index, rgb, mask)

    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as scribe:
        for index, (rgb, image) in enumerate(_read_ahead(sequence, options.cropSize, reader, watch)):
            with watch("encode"):
                if index == 0:
                    features.begin(image)
                feature = features(image[None])[0]
            with watch("propagate"):
                if index == 0:
                    soft = propagator.start(feature, torch.from_numpy(labels.soft).to(feature.device))
                else:
                    soft = propagator.step(feature)
                soft_map = soft.cpu().numpy()
            written.append(scribe.submit(write, index, rgb, soft_map))
            if len(written) > 4:  # the writer may not fall behind without bound
                written.pop(0).result()
            bar.update()
        for future in written:
            future.result()


def _read_ahead(
    sequence: Sequence, crop: int, pool: ThreadPoolExecutor, watch: Stopwatch
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Frames in order as (RGB, normalised crop), decoded up to four ahead of their use."""

    def read(path: Path) -> tuple[np.ndarray, Tensor]:
        with watch("read"):
            rgb = read_rgb(path)
            return rgb, crop_tensor(rgb, crop)

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
        say(
            f"warning: {sequence.name}: object {lost} is dropped, having fewer than {OBJECT_PIXELS} pixels at crop size"
        )
    if not set(kept) - {0}:
        say(f"warning: {sequence.name}: {sequence.annotations[0]} holds no object; all its masks are background")
