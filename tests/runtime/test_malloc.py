"""Freed memory is reused rather than returned to the system and cleared again; only the program decides so, not the library."""

import platform
import subprocess
import sys

import pytest

PAGES_TOUCHED = """
import resource, sys
import torch
from mtkd_cache.runtime.accelerator import make_accelerator
from mtkd_cache.runtime.malloc import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

make_accelerator("cpu")
if sys.argv[1] == "kept":
    keep_freed_memory()
for _ in range(20):  # some more until no small allocation splits the reused block
    torch.ones(10_000_000)
before = faults()
for _ in range(5):
    torch.ones(10_000_000)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc has the settings")
def test_freed_memory_is_kept_only_where_the_program_asks_for_it():
    pages = {
        how: int(subprocess.run([sys.executable, "-c", PAGES_TOUCHED, how], check=True, capture_output=True, text=True).stdout)
        for how in ("kept", "given back")
    }
    assert pages["given back"] > 1000
    assert pages["kept"] < pages["given back"] / 4
