"""Freed memory of our own processes is reused, and only theirs."""

import platform
import subprocess
import sys

import pytest

from osdface_core.cli import allocator
from osdface_core.cli import main as cli

PROGRAM = """
import ctypes, sys
from osdface_core.cli.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
block = libc.malloc(ctypes.c_size_t(100 << 20))
ctypes.memset(block, 1, 100 << 20)
libc.free(block)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS")))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told what to keep")
def test_freed_memory_stays_with_the_process() -> None:
    def resident(how: str) -> int:
        """[KiB] after 100 MiB were used and freed."""
        done = subprocess.run([sys.executable, "-c", PROGRAM, how], check=True, capture_output=True)
        return int(done.stdout)

    assert resident("kept") - resident("returned") > 90 << 10


def test_only_a_process_of_its_own_is_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[None] = []
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: calls.append(None))
    for argv in (["--version"], None):
        monkeypatch.setattr(sys, "argv", ["osdface", "--version"])
        with pytest.raises(SystemExit):
            cli.main(argv)
    assert len(calls) == 1


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: object())  # as musl: no mallopt
    allocator.keep_freed_memory()
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: pytest.fail("not asked for"))
    monkeypatch.setattr(sys, "platform", "win32")
    allocator.keep_freed_memory()
