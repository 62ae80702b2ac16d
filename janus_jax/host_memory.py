"""The allocator of the host (glibc's malloc): memory that a step has freed stays with the process, in huge pages.

XLA's CPU backend allocates the temporary memory of every step again. By default glibc returns such large blocks to the kernel, and the next
step faults them in page by page: this took a quarter of a training step on one core (benchmarks/train_step.py, with and without
JANUS_JAX_KEEP_MEMORY=0). The process sets it and not a launch script, since a notebook has no launch script.
"""

import ctypes
import mmap
import os
import sys

# Parameters of mallopt (malloc.h) and their values: no separate mappings (M_MMAP_MAX), no return of memory to the kernel
# (M_TRIM_THRESHOLD), one heap for all threads (M_ARENA_MAX).
_MALLOPT = ((-4, 0), (-1, -1), (-8, 1))
_HUGE_PAGE = 2**21  # bytes

_is_set = False


def keep_freed_memory() -> None:
    """Tells malloc to keep freed memory, and the kernel to use huge pages for it. Safe to call twice.

    Does nothing where $JANUS_JAX_KEEP_MEMORY is 0, or where glibc or the kernel's advice is missing.
    """
    global _is_set
    wanted = os.environ.get("JANUS_JAX_KEEP_MEMORY", "1") != "0"
    if _is_set or not wanted or not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "mallopt") or not hasattr(mmap, "MADV_HUGEPAGE"):
        return
    _is_set = True
    for parameter, value in _MALLOPT:
        libc.mallopt(parameter, value)
    _advise_huge_pages(libc, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)


def _advise_huge_pages(libc: ctypes.CDLL, size: int) -> None:
    """Extends the heap by `size` bytes whose pages become huge when first touched; until then they cost only addresses."""
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    libc.free.argtypes = (ctypes.c_void_p,)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    region = libc.malloc(size)
    if region:
        start = -(-region // _HUGE_PAGE) * _HUGE_PAGE
        libc.madvise(start, (region + size - start) // _HUGE_PAGE * _HUGE_PAGE, mmap.MADV_HUGEPAGE)
        libc.free(region)
