"""Why a compiled module is missing, and the command that builds it for the way the package was installed.

pip hides a build's output unless it fails, so a missing module is reported when the operators are imported or used.
Does not import torch.
"""

import functools
import importlib.metadata
import importlib.util
import json
import shlex
import warnings
from pathlib import Path
from urllib.parse import unquote, urlsplit

PLACE = Path(__file__).resolve().parents[1]
"""The folder that holds the package: a checkout, or site-packages."""


def in_checkout() -> bool:
    """Whether the package is used where its sources are, as by pip install -e, too."""
    return (PLACE / "setup.py").is_file() and (PLACE / "csrc").is_dir()


def how_installed() -> str:
    """How the package was installed, and where, in words."""
    if in_checkout():
        return f"used from its sources in {PLACE}"
    origin = installed_from()
    return f"installed in {PLACE}{'' if origin == 'timecycle' else f' from {origin}'}"


def why_missing(error: ImportError) -> str:
    """What a failed import of a compiled module means, and the commands that build it."""
    reason = str(error).strip().partition("\n")[0]
    if isinstance(error, ModuleNotFoundError):
        return f"timecycle's native kernels are not built ({reason}); {how_to_build()}"
    return f"timecycle's native kernels cannot be loaded, as if built for another PyTorch ({reason}); {how_to_build()}"


def how_to_build() -> str:
    """The commands that build the compiled modules, in words."""
    if in_checkout():
        return f"to build them, with a C++ compiler: cd {shlex.quote(str(PLACE))} && python setup.py build_ext --force"
    # setup.py finds the installed torch. Without the cache, in which pip may have kept the wheel without kernels.
    return (
        "to build them, with a C++ compiler: TIMECYCLE_REQUIRE_NATIVE=1 pip install --no-deps --force-reinstall "
        f"--no-cache-dir {installed_from()}"
    )


def installed_from() -> str:
    """What pip was given to install the package, as a word of a command line; its name if that is not known."""
    try:
        record = importlib.metadata.distribution("timecycle").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        record = None
    if record is None:
        return "timecycle"
    origin = json.loads(record)
    url, source = origin["url"], origin.get("vcs_info")
    if source:
        return shlex.quote(f"{source['vcs']}+{url}@{source['commit_id']}")
    return shlex.quote(unquote(urlsplit(url).path) if url.startswith("file:") else url)


@functools.cache
def say_missing(why: str) -> None:
    """Warn, once per reason, that a slower backend runs instead."""
    # A line of code of ours below the warning would tell nothing; without a file there is none.
    warnings.warn_explicit(f"a slower backend serves: {why}", UserWarning, "timecycle", 0, module="timecycle")


def say_if_installed_without() -> None:
    """Warn where the package was installed without kernels; in a checkout the first call that misses them does."""
    if not in_checkout() and importlib.util.find_spec("timecycle._C") is None:
        say_missing(why_missing(ModuleNotFoundError("No module named 'timecycle._C'")))
