"""The published label-propagation protocols, as data. Other modules implement the fields.

Sources: TimeCycle (Wang, Jabri, Efros, CVPR 2019), UVC (Li et al., NeurIPS 2019), CRW (Jabri et al., NeurIPS 2020), VFS
(Xu, Wang, ICCV 2021), DINO (Caron et al., ICCV 2021), DIFT (Tang et al., NeurIPS 2023), DINOv3 (Siméoni et al., 2025),
SFC, DUL, CropMAE, RSP, each as its published code runs on DAVIS-2017.
"""

import difflib
import math
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin

from timecycle import deprecated
from timecycle.deprecated import RENAMED_FIELDS, current_names
from timecycle.errors import InputError
from timecycle.normalization import HALF, IMAGENET
from timecycle.ops.selection import Neighborhood, Select

LARGEST_SIDE = 1 << 15


def _unlike(value: Any, kind: Any) -> str | None:
    """None if the value is of a field's type, else a description of what is expected."""
    choices = get_args(kind)
    if get_origin(kind) is Literal:
        return None if value in choices else f"one of {', '.join(map(repr, choices))}"
    if kind == tuple[float, ...]:
        three = isinstance(value, tuple) and len(value) == 3 and not any(_unlike(number, float) for number in value)
        return None if three else "three numbers, one for each of red, green and blue"
    if type(None) in choices:
        return None if value is None or not (expected := _unlike(value, choices[0])) else f"{expected}, or None"
    number = isinstance(value, Real) and not isinstance(value, bool)
    fits = {
        bool: isinstance(value, bool),
        int: number and isinstance(value, Integral),
        float: number and math.isfinite(value),
        str: isinstance(value, str),
    }
    words = {bool: "True or False", int: "a whole number", float: "a finite number", str: "a text"}
    return None if fits[kind] else words[kind]


@deprecated.fields(**RENAMED_FIELDS, region="neighborhood")
@dataclass(frozen=True)
class Protocol:
    """How labels are propagated, from frames to masks. Lengths are in feature positions unless stated as pixels.

    The fields are, in this order: the image that is encoded (to `l2`), the context of a target frame t (to
    `first_everywhere`), selection and weights of keys as in `Select` (to `ties`), from the first mask to soft labels
    (to `sharpen`), from soft labels to the mask. Raises InputError if a value is out of range.
    """

    name: str
    """For messages; the presets' is what `protocol` finds them by."""

    # The image that is encoded.
    resize: Literal["square", "short side", "native"]
    """"square": to `side` x `side` pixels. "short side": the short side to `side` pixels, the long one in proportion.
    "native": not at all."""
    side: int = 0
    """Pixels of the square or the short side; 0 keeps the frame's size."""
    multiple: int = 1
    """The long side is rounded to a multiple of so many pixels by `rounding`; with "ceil" both sides are."""
    rounding: Literal["floor", "nearest", "ceil"] = "floor"
    """Down, to the nearest multiple, or up."""
    color: Literal["rgb", "lightness"] = "rgb"
    """"lightness": the L channel of Lab three times."""
    mean: tuple[float, ...] = IMAGENET[0]
    """Of red, green and blue from 0 to 1, subtracted from the image."""
    std: tuple[float, ...] = IMAGENET[1]
    """Of red, green and blue: the image is divided by it afterwards."""
    l2: bool = True
    """Whether features are scaled to length 1."""

    # The context of a target frame t.
    length: int = 7
    """Number L of frames before the target, in addition to the annotated frame 0; with "padded", including frame 0."""
    first: Literal["once", "twice", "copies", "padded"] = "once"
    """"once": frame 0, then max(1, t-L) .. t-1. "twice": frame 0, then max(0, t-L) .. t-1. "copies": frame 0, then t-L
    .. t-1 with frame 0 in place of frames before it. "padded": as "copies" with L-1, and frame 0 is predicted too."""
    radius: float | None = None
    """Radius of the neighborhood of keys around a query; None for no restriction."""
    shape: Literal["circle<", "circle<=", "square<="] = "circle<"
    """Of the neighborhood, see `Neighborhood`."""
    first_everywhere: bool = False
    """Whether the neighborhood does not restrict the leading entry, frame 0."""

    # Selection and weights of keys, see timecycle.ops.selection.Select.
    k: int = 5
    """Neighbors kept per query: keys with the largest logits, in every context frame or in all together by `scope`."""
    temperature: float = 0.1
    """What dot products are divided by before the softmax."""
    scope: Literal["frame", "joint"] = "joint"
    """Whether k keys of every context frame are kept, or k of all context frames together."""
    softmax_over: Literal["all", "topk"] = "topk"
    """Whether the softmax is over all keys a query may see, or over the kept ones only."""
    ties: Literal["exact", "all"] = "exact"
    """"exact": k neighbors, ties to the lower index. "all": also everything that equals the k-th value."""

    # From the first mask to soft labels.
    labels: Literal["nearest", "twice nearest", "bilinear", "square", "nearest-exact"] = "nearest"
    """"nearest": center-sampled to the grid. "twice nearest": to the working size, then to the grid. "bilinear":
    one-hot at full size, OpenCV to the grid. "square": nearest to the working size, one-hot, OpenCV to the grid, small
    classes dropped. "nearest-exact": PyTorch's."""
    classes: Literal["grid", "full", "annotated"] = "grid"
    """"grid": 0 to the largest id that is left on the grid. "full": 0 to the largest id of the mask. "annotated": every
    id of the mask and no other."""
    feedback: Literal["soft", "min-max"] = "soft"
    """Labels that later frames see: unchanged, or rescaled to [0, 1] per class."""
    sharpen: float = 1.0
    """Then each label p, from 0 to 1, becomes p^s / (p^s + (1 - p)^s) with this s, against blur that accumulates over
    time; 1 leaves labels unchanged."""

    # From soft labels to the mask.
    refine: float | None = None
    """Radius, in feature positions, of a guided filter that upsamples the labels along the edges of the frame, if there
    is one, instead of `upsample`; None for no filter. See `timecycle.propagation.refine.refined`."""
    refine_eps: float = 1e-4
    """Variance of the frame's colors below which the guided filter smooths."""
    upsample: Literal["opencv", "bilinear", "nearest"] = "bilinear"
    """Bilinear as OpenCV or as PyTorch does it (corners not aligned), or PyTorch's nearest."""
    upsample_to: Literal["working", "output"] = "working"
    """The size the arg-max is taken at; from the working size the mask goes on to the output's by nearest."""
    scale: Literal["none", "positive", "positive, eps", "any"] = "positive"
    """Min-max scaling per class after upsampling: none, of classes with a positive value, the same with 1e-12 added to
    the range, or of all classes. Constant classes become 0."""
    islands: float | None = None
    """Distance beyond which small parts of an object are removed from masks, see `without_islands`; None keeps all
    parts."""
    first_mask: Literal["given", "propagated"] = "given"
    """Output mask of frames with given labels, such as frame 0: the given mask, or one computed from the soft labels
    as in all other frames. The evaluations on DAVIS and VIP set "given", as their rules require."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if expected := _unlike(value, field.type):
                raise InputError(f"{field.name} is {value!r:.80}; expected {expected}")
        self.select()
        if self.radius is not None:
            self.neighborhood(1, 1)
        if self.refine is not None and not 0 < self.refine <= LARGEST_SIDE:
            raise InputError(f"refine is {self.refine}; expected a positive radius in feature positions, or None")
        if self.islands is not None and self.islands < 0:
            raise InputError(f"islands is {self.islands}; expected a distance of 0 or more, or None")
        if min(self.std) <= 0:
            raise InputError(f"std is {self.std}; expected positive numbers")
        for name, least, most, what in (
            ("length", 1, 2**31, "at least one context frame"),
            ("side", 0, LARGEST_SIDE, f"pixels, at most {LARGEST_SIDE}, or 0 for the frame's size"),
            ("sharpen", 2**-10, 2**10, "a power from 1/1024 to 1024"),
            ("refine_eps", 1e-8, 1e3, "a variance from 1e-8 to 1000"),
            ("multiple", 1, LARGEST_SIDE, f"at least one pixel and at most {LARGEST_SIDE}"),
        ):
            if not least <= getattr(self, name) <= most:
                raise InputError(f"{name} is {getattr(self, name)}; expected {what}")

    def select(self) -> Select:
        """The selection of keys, for the operators."""
        return Select(self.k, self.temperature, self.scope, self.softmax_over, self.ties)

    def neighborhood(self, height: int, width: int) -> Neighborhood | None:
        """The neighborhood on a feature grid, for the operators; None if unrestricted."""
        return None if self.radius is None else Neighborhood(height, width, self.radius, self.shape)


_CRW = Protocol(
    "crw", "native", length=20, first="copies", radius=12, first_everywhere=True, k=10, temperature=0.05,
    labels="bilinear", classes="annotated", upsample="opencv", upsample_to="output", scale="none",
    first_mask="propagated",
)  # fmt: skip
_DINO = Protocol(
    "dino", "short side", 480, 64, std=(0.228, 0.224, 0.225), radius=12, shape="square<=", ties="all",
)  # fmt: skip
_BEST = replace(
    _CRW, name="best", resize="short side", side=600, multiple=8, rounding="nearest", length=30, radius=15.0,
    first_everywhere=False, sharpen=1.5, refine=1.0, islands=0.25,
)  # fmt: skip
PRESETS = {
    preset.name: preset
    for preset in (
        Protocol(
            "timecycle", "square", 320, length=8, first="padded", temperature=512**-0.5, scope="frame",
            softmax_over="all", labels="square", classes="annotated", feedback="min-max", upsample="opencv",
            scale="none", first_mask="propagated",
        ),
        Protocol(
            "uvc", "short side", 480, 64, color="lightness", l2=False, temperature=1.0, scope="frame",
            softmax_over="all", ties="all",
        ),
        _CRW,
        Protocol(
            "vfs", "short side", 480, rounding="nearest", length=20, first="twice", radius=12, k=10, temperature=0.07,
            labels="twice nearest", upsample_to="output", scale="positive, eps",
        ),
        _DINO,
        replace(
            _DINO, name="dift", multiple=32, mean=HALF[0], std=HALF[1], length=28, radius=15, k=15, temperature=0.2
        ),
        Protocol(
            "dinov3", "short side", 960, 16, "ceil", radius=12, shape="circle<=", temperature=0.2, ties="all",
            labels="nearest-exact", classes="full", upsample="nearest", upsample_to="output", scale="any",
        ),
        replace(_CRW, name="sfc", radius=15, temperature=0.1, k=15),
        replace(_CRW, name="dul"),
        replace(_CRW, name="cropmae", radius=20, temperature=0.7, k=7),
        _BEST,
        replace(_DINO, name="rsp", length=30, radius=30, temperature=0.1, k=7),
    )
}  # fmt: skip
"""The published protocols, and "best", by name. Any field can be overridden: `protocol("dino", k=7)`."""


def protocol(name: "str | Protocol", /, **overrides: Any) -> Protocol:
    """A preset by name, or a protocol, with some fields changed.

    Args:
        name: of a preset, a key of `PRESETS`; or a protocol.
        overrides: fields of `Protocol` and their new values, such as k=7.

    Returns:
        A new protocol.

    Raises:
        InputError: the name or a field is unknown (the message suggests similar ones), or a value is invalid.
    """
    if not isinstance(name, Protocol):
        if name not in PRESETS:
            raise InputError(f"protocol is {name!r}; expected {_nearest(str(name), list(PRESETS))}")
        name = PRESETS[name]
    known = [field.name for field in fields(Protocol)]
    overrides = current_names(deprecated.new_names(overrides, RENAMED_FIELDS))
    for field in overrides:
        if field not in known:
            raise InputError(f"{field!r} is no field of a protocol; expected {_nearest(field, known)}")
    return replace(name, **overrides)


def mask_protocol(name: "str | Protocol", **overrides: Any) -> Protocol:
    """As `protocol`, with first_mask="given": the result at a frame with a given mask is that mask, as DAVIS
    requires it and people expect it.
    """
    return protocol(name, **{"first_mask": "given", **overrides})


def _nearest(wanted: str, known: list[str]) -> str:
    near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.5)
    rest = f" (there are {', '.join(known)})"
    return " or ".join(repr(name) for name in near) + rest if near else f"one of {', '.join(known)}"
