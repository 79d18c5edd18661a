"""Freed memory is used again rather than given back and cleared anew."""

import platform
import subprocess
import sys

import pytest

PAGES_TOUCHED = """
import resource, sys
import torch
from mtkd_cache.runtime.accelerator import make_accelerator

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "kept":
    make_accelerator("cpu")
for _ in range(3):
    torch.ones(50_000_000)
before = faults()
for _ in range(5):
    torch.ones(50_000_000)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told to keep memory")
def test_what_is_freed_is_not_given_back():
    pages = {
        how: int(subprocess.run([sys.executable, "-c", PAGES_TOUCHED, how], check=True, capture_output=True, text=True).stdout)
        for how in ("kept", "given back")
    }
    assert pages["given back"] > 1000
    assert pages["kept"] < pages["given back"] / 4
