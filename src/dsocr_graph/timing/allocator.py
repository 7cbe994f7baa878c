"""The C allocator, set so that it keeps memory: times are of operators, not of a system that hands out pages."""

from __future__ import annotations

import ctypes
import platform
from functools import lru_cache

import torch

# Source: glibc, malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


@lru_cache(maxsize=1)
def pin_allocator() -> bool:
    """Make glibc keep what is freed, for the rest of the process; return whether it does.

    A tensor of more than 128 KB would otherwise be a mapping of its own: zeroed by the kernel page by page when it is
    first written, and given back when it is freed, so that each execution of an operator pays a page fault per 4 KB of
    its result. A model in a loop pays it too, but how often depends on what else was freed before; without mappings
    and without trimming, both a single call and a whole model run on pages that are there.

    Elsewhere than on glibc nothing is done.

    Examples
    --------
    >>> pin_allocator() == pin_allocator()
    True
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))


def warm_heap(size: int) -> None:
    """Write to so many bytes once and free them: the allocator hands out pages that are there.

    A page that is written for the first time costs microseconds, several on a virtual machine: a result of 1 GB would
    take seconds the first time and a tenth of one from then on.

    Examples
    --------
    >>> warm_heap(4096)
    """
    torch.zeros(size, dtype=torch.uint8).fill_(1)
