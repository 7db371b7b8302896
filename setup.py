"""Build the native kernels: python setup.py build_ext.

They are optional. Without torch, a C++ compiler or ninja the package still works on its PyTorch reference, and the
build says in one line why. Called by itself, build_ext puts the module beside the sources, where a checkout finds it.
"""

import os
import sys
from pathlib import Path

import setuptools
from setuptools import setup
from setuptools.command.build_ext import build_ext

try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError:
    BuildExtension = CppExtension = None

if int(setuptools.__version__.split(".")[0]) < 77:
    sys.exit(f"error: setuptools {setuptools.__version__} is too old; expected 77 or newer (pip install -U setuptools)")

SOURCES = sorted(str(p) for p in Path("csrc").glob("*.cpp"))
# No -march: the kernels hold variants for several instruction sets and choose when they are loaded, so that a build
# runs on another machine. No -ffast-math, since infinities mean something here; the two -fno- let loops be vectorised.
# Without OpenMP ATen's parallel loops would silently run on one thread; Apple's compiler has none.
OPENMP = [] if sys.platform == "darwin" else ["-fopenmp"]
COMPILE = ["-O3", "-g0", "-std=c++20", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-Wall", *OPENMP]


def extensions() -> list:
    """The extension modules that can be attempted here."""
    if CppExtension is None:
        print("native kernels are not built: torch is not here (pip: add --no-build-isolation)", file=sys.stderr)
        return []
    return [CppExtension("timecycle._C", SOURCES, extra_compile_args=COMPILE, extra_link_args=OPENMP)]


class OptionalBuild(BuildExtension or build_ext):  # type: ignore[misc]
    """Builds what can be built; a failure costs speed, never the installation."""

    def finalize_options(self) -> None:
        """Beside the sources when build_ext itself was asked for, in the wheel when a package is built."""
        super().finalize_options()
        if "build_ext" in self.distribution.commands:
            self.inplace = True

    def run(self) -> None:
        """Build, or say in one line why not."""
        try:
            super().run()
        except Exception as error:
            if os.environ.get("TIMECYCLE_REQUIRE_NATIVE"):
                raise
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            print(f"native kernels are not built: {reason}; the PyTorch reference serves", file=sys.stderr)
            self.extensions = []

    def copy_extensions_to_source(self) -> None:
        """Also say where the module is."""
        super().copy_extensions_to_source()
        for extension in self.extensions:
            print(f"built {self.get_ext_filename(extension.name)}")


setup(
    packages=["timecycle", "timecycle.data", "timecycle.ops", "timecycle.kernels"],
    package_dir={"timecycle": "timecycle", "timecycle.kernels": "kernels"},
    ext_modules=extensions(),
    cmdclass={"build_ext": OptionalBuild},
)
