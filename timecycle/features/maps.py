"""Outputs of feature extractors converted to maps [B, D, h, w], from other layouts, tokens and containers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from timecycle.errors import InputError

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NAMED = ("x_norm_patchtokens", "last_hidden_state", "out")
"""Dictionary keys under which DINOv2, transformers and torchvision return features among other outputs."""
PATCHES = (4, 8, 14, 16, 28, 32)
"""Patch sizes, in pixels, that are tried to recognize tokens."""
MOST_PREFIX = 5
"""Most tokens before the patch tokens: a class token and four registers."""
MOST_DISTORTION = 4.0
"""Most that the aspect ratios of grid and image may differ by, as a factor, for models that resize their images."""

Size = tuple[int, int]


@dataclass(frozen=True)
class Form:
    """The layout of an extractor's outputs, as `as_maps` recognized it."""

    layout: Literal["maps", "channels last", "tokens"]
    """[B, D, h, w], [B, h, w, D] or [B, N, D]."""
    prefix: int = 0
    """Number of the N tokens that precede the patch tokens."""

    def __str__(self) -> str:
        shape = {"maps": "[B, D, h, w]", "channels last": "[B, h, w, D]", "tokens": "[B, N, D]"}[self.layout]
        return f"{shape} with {self.prefix} tokens before the patch tokens" if self.prefix else shape


def described(value: object) -> str:
    """Describe a value for error messages: dtype and shape of an array, keys of a dictionary, else the type."""
    if isinstance(value, Tensor) and (value.layout != torch.strided or value.device.type == "meta"):
        return f"{value.dtype} {list(value.shape)} ({value.layout}, {value.device})"
    if isinstance(value, Tensor | np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, Mapping):
        return f"{type(value).__name__} of {', '.join(map(str, value))}" if value else f"empty {type(value).__name__}"
    return type(value).__name__


def as_tensor(value: object) -> Tensor | None:
    """A dense floating-point tensor or NumPy array as a detached tensor; None for anything else."""
    if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.dtype.itemsize <= 8:
        native = np.ascontiguousarray(value, value.dtype.newbyteorder("="))
        value = torch.from_numpy(native if native.flags.writeable else native.copy())
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.dtype not in FLOATS:
        return None
    return None if value.device.type == "meta" else value.detach()


def as_maps(found: Any, images: tuple[int, ...], form: Form | None = None) -> tuple[Tensor, Form]:
    """Convert an extractor's output for images [B, 3, H, W] to maps [B, D, h, w].

    Args:
        found: floating point, tensors or NumPy arrays. Maps [B, D, h, w]; a list of B maps [D, h, w]; maps [B, h, w, D]
            if only this reading matches the image's aspect ratio; tokens [B, N, D] if N, less a prefix of up to 5
            tokens, is the number of patches of exactly one grid; a list, tuple or dictionary with one of these; or a
            dictionary with several arrays, one of them named "x_norm_patchtokens", "last_hidden_state" or "out".
        images: shape of the images.
        form: layout of the extractor's earlier outputs, if any; this output must have the same.

    Returns:
        The maps, detached, with the dtype and device of the output, not always contiguous; and their layout.

    Raises:
        InputError: the output is none of these, or not of the layout `form`.
    """
    value = _the_array(found, images[0])
    tensor = as_tensor(value)
    if tensor is None or tensor.ndim not in (3, 4) or len(tensor) != images[0] or not tensor.numel():
        expected = f"floating point [{images[0]}, D, h, w], or tokens [{images[0]}, N, D]"
        raise _refusal(found if value is None else value, images, expected)
    size = images[2], images[3]
    read = _form_of_tokens(tensor, size, form) if tensor.ndim == 3 else _form_of_maps(tensor, size, form)
    if read is None:
        if tensor.ndim == 4:
            raise _refusal(
                tensor, images, f"floating point [{images[0]}, D, h, w] on a grid of the images' aspect ratio"
            )
        numbers = ", ".join(f"{(size[0] // patch) * (size[1] // patch)} at {patch}" for patch in (8, 14, 16))
        raise _refusal(
            tensor,
            images,
            f"floating point tokens [{images[0]}, N, D] where N is the number of patches of one grid and no other "
            f"({numbers} pixels a patch), with up to {MOST_PREFIX} tokens before them, or [{images[0]}, D, h, w]",
        )
    if form is not None and read != form:
        raise _refusal(tensor, images, f"{form}, like its earlier outputs, not {read}")
    maps = _read(tensor, size, read)
    if maps.shape[2] * maps.shape[3] < 2:
        raise _refusal(tensor, images, "a grid of more than one position")
    return maps, read


def _refusal(value: object, images: tuple[int, ...], expected: str) -> InputError:
    return InputError(
        f"the feature extractor returned {described(value)} for images {list(images)}; expected {expected}"
    )


def _the_array(found: Any, batch: int) -> Any:
    """The array in an extractor's output; None if there is none, or several among which none can be chosen."""
    if isinstance(found, tuple) and hasattr(found, "_asdict"):
        found = found._asdict()
    if isinstance(found, Mapping):
        arrays = {name: value for name, value in found.items() if isinstance(value, Tensor | np.ndarray)}
        names = list(arrays) if len(arrays) == 1 else [name for name in NAMED if name in arrays]
        return arrays[names[0]] if len(names) == 1 else None
    if not isinstance(found, list | tuple):
        return found
    one = found[0] if len(found) == 1 else None
    # A list with one array wraps an output, unless the batch has one image and the array is its map.
    if one is not None and not (isinstance(one, Tensor | np.ndarray) and one.ndim == 3 and len(one) != batch):
        return _the_array(one, batch)
    return stacked(found) if len(found) == batch else None


def stacked(arrays: Sequence[Any]) -> Tensor | None:
    """Stack maps [D, h, w] or [1, D, h, w] of equal shape, dtype and device; None if they are anything else."""
    tensors = [as_tensor(array) for array in arrays]
    kinds = {(x.shape, x.dtype, x.device) for x in tensors if x is not None}
    if len(kinds) != 1 or any(x is None for x in tensors):
        return None
    maps = [x[0] if x.ndim == 4 and len(x) == 1 else x for x in tensors if x is not None]
    return torch.stack(maps) if maps[0].ndim == 3 else None


def _strides(side: int, positions: int) -> tuple[float, float]:
    """Bounds on the stride, in pixels, at which so many positions cover a side, however it is rounded or padded."""
    return side / (positions + 1), side / (positions - 1) if positions > 1 else math.inf


def fits(grid: Size, image: Size) -> bool:
    """Whether a single stride, equal in both directions, can make that grid of that image."""
    (least, most), (other_least, other_most) = (_strides(*pair) for pair in zip(image, grid, strict=True))
    return least < other_most and other_least < most


def near(grid: Size, image: Size) -> bool:
    """Whether the aspect ratios of grid and image differ by a factor of at most `MOST_DISTORTION`."""
    ratio = grid[0] * image[1] / (grid[1] * image[0])
    return max(ratio, 1 / ratio) <= MOST_DISTORTION


def _form_of_maps(tensor: Tensor, size: Size, form: Form | None) -> Form | None:
    """The layout of a tensor with four dimensions; None if the grid fits the image in neither layout."""
    first, last = (tensor.shape[2], tensor.shape[3]), (tensor.shape[1], tensor.shape[2])
    fit_first, fit_last = fits(first, size), fits(last, size)
    if fit_first and fit_last and form == Form("channels last"):
        return form
    if fit_first or (not fit_last and near(first, size) and not near(last, size)):
        return Form("maps")
    return Form("channels last") if fit_last else None


def _form_of_tokens(tensor: Tensor, size: Size, form: Form | None) -> Form | None:
    solutions = token_grids(tensor.shape[1], size)
    if form is not None and any(prefix == form.prefix for prefix, _, _ in solutions):
        solutions = {solution for solution in solutions if solution[0] == form.prefix}
    return Form("tokens", next(iter(solutions))[0]) if len(solutions) == 1 else None


def _read(tensor: Tensor, size: Size, form: Form) -> Tensor:
    if form.layout == "tokens":
        ((height, width),) = {(h, w) for prefix, h, w in token_grids(tensor.shape[1], size) if prefix == form.prefix}
        return tensor[:, form.prefix :].transpose(1, 2).unflatten(2, (height, width))
    return tensor.permute(0, 3, 1, 2) if form.layout == "channels last" else tensor


def token_grids(tokens: int, size: Size) -> set[tuple[int, int, int]]:
    """All (prefix, h, w) with prefix + h * w = tokens that an image of that size can give."""
    grids = {
        (rounded(size[0] / patch), rounded(size[1] / patch)) for patch in PATCHES for rounded in (math.floor, math.ceil)
    }
    found = ((tokens - height * width, height, width) for height, width in grids if height * width > 1)
    return {solution for solution in found if 0 <= solution[0] <= MOST_PREFIX}


def video_maps(features: object, image: Size, working: Size | None) -> Tensor:
    """A video's features as a detached tensor [F, D, h, w].

    Args:
        features: floating point [F, D, h, w], a tensor or a NumPy array, or a list or tuple of F maps [D, h, w];
            [F, h, w, D] if only this reading is near the image's aspect ratio; tokens [F, N, D] if `working` is given
            and they fit exactly one grid.
        image: height and width of the first mask, in pixels.
        working: height and width of the encoded images, in pixels, if known.

    Raises:
        InputError: features are anything else.
    """
    tensor = stacked(features) if isinstance(features, list | tuple) else as_tensor(features)
    if tensor is not None and tensor.numel() and tensor.ndim == 4:
        first, last = (tensor.shape[2], tensor.shape[3]), (tensor.shape[1], tensor.shape[2])
        size = working or image
        return tensor.permute(0, 3, 1, 2) if near(last, size) and not near(first, size) else tensor
    form = _form_of_tokens(tensor, working, None) if tensor is not None and tensor.ndim == 3 and working else None
    if tensor is None or working is None or form is None or not tensor.numel():
        advice = ""
        if tensor is not None and tensor.ndim == 3:
            advice = "; reshape tokens [F, N, D] by features.transpose(1, 2).unflatten(2, (h, w))"
        elif isinstance(features, list | tuple):
            advice = ", or arrays [D, h, w] of one shape, dtype and device"
        what = features if tensor is None else tensor
        raise InputError(f"features is {described(what)}; expected floating point [F, D, h, w]{advice}")
    return _read(tensor, working, form)
