"""Tuning of the C library's memory allocator, which takes large blocks from the kernel anew every time."""

import ctypes
import mmap
import os
import platform
from pathlib import Path

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h of glibc
SHARE = 2  # this part of the machine's memory may be in huge pages


def keep_freed_memory() -> bool:
    """Serve large tensors from memory that earlier ones have freed; the process keeps it until it ends.

    By default glibc maps every large tensor anew and the first access to each page costs a fault. Where the kernel
    allows it pages are huge, so that addresses are found faster. Returns whether this could be set: only on Linux with
    glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_TOP_PAD: 2**28}  # -1: nothing is given back
    done = all(libc.mallopt(name, value) == 1 for name, value in settings.items())
    if done:
        _ask_for_huge_pages(libc)
    return done


def _ask_for_huge_pages(libc: ctypes.CDLL) -> None:
    """For memory that the heap may grow into: address space, that costs nothing until it is used."""
    try:  # where the kernel counts address space as if it were used, it costs
        if Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2":
            return
    except OSError:
        return
    page = os.sysconf("SC_PAGE_SIZE")
    length = os.sysconf("SC_PHYS_PAGES") // SHARE * page
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    block = libc.malloc(length)
    if block is None:  # more than this process may have
        return
    start = -(-block // page) * page
    libc.madvise(start, length - page, mmap.MADV_HUGEPAGE)  # a kernel without them says no, and that is all
    libc.free(block)
