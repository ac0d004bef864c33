"""Builds the kernels once per instruction set, as libraries with a plain C interface."""

from __future__ import annotations

import platform
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

SOURCES = Path("osdface_cpu/cpp")
FLAGS = ["-O3", "-std=c++20", "-fvisibility=hidden"]
# The names are those in osdface_cpu/library.py; microarchitecture levels as in the x86-64 psABI.
X86 = {
    "sse42": ["-march=x86-64-v2"],
    "avx2": ["-march=x86-64-v3"],
    "avx512": ["-march=x86-64-v4"],
    "avx512fp16": ["-march=x86-64-v4", "-mavx512fp16"],
}


def extensions() -> list[Extension]:
    """One per instruction set; compilers before GCC 12 and Clang 14 leave out AVX512-FP16."""
    sets = X86 if platform.machine().lower() in ("x86_64", "amd64") else {"generic": []}
    return [
        Extension(
            f"osdface_cpu._{name}",
            [str(SOURCES / "kernels.cpp")],
            depends=[str(path) for path in sorted(SOURCES.glob("*.h"))],
            extra_compile_args=[*FLAGS, *flags],
            extra_link_args=["-pthread"],
            language="c++",
            optional=name == "avx512fp16",
        )
        for name, flags in sets.items()
    ]


class BuildLibraries(build_ext):
    """Libraries for ctypes: no Python in their names or symbols."""

    def build_extensions(self) -> None:
        if self.compiler.compiler_type == "msvc":
            raise SystemExit("osdface-cpu builds with GCC or Clang; osdface works without it")
        super().build_extensions()

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"


class PlatformWheel(bdist_wheel):
    """A wheel for one platform and every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildLibraries, "bdist_wheel": PlatformWheel})
