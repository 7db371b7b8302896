"""Triton's interpreter for tests, in processes of their own: TRITON_INTERPRET must be set before Triton is imported."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from types import FunctionType

from tests import CORES


def pool() -> ProcessPoolExecutor:
    """Processes whose Triton kernels are interpreted."""
    return ProcessPoolExecutor(CORES, multiprocessing.get_context("spawn"), initializer=start)


def start() -> None:
    """Initialize a process of the pool."""
    os.environ["TRITON_INTERPRET"] = "1"
    import torch

    torch.set_num_threads(1)
    speed_up()


def speed_up() -> None:
    """Leave out work of Triton 3.9's interpreter that has no effect and takes about half of its time.

    It replaces the functions of triton.language again at every call of a function inside a kernel, and it looks for
    integer overflows without reporting them, since only options.debug would.
    """
    import triton.language
    from triton.runtime import interpreter

    if not hasattr(interpreter, "_LangPatchScope"):  # an older Triton
        return
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)
    patch, is_builtin = interpreter._patch_lang, triton.language.core.is_builtin

    def patch_if_needed(function: FunctionType) -> "interpreter._LangPatchScope":
        modules = [x for x in function.__globals__.values() if x is triton.language or x is triton.language.core]
        # The replacements are not marked as builtins.
        if modules and not any(is_builtin(module.program_id) for module in modules):
            return interpreter._LangPatchScope()
        return patch(function)

    interpreter._patch_lang = patch_if_needed
