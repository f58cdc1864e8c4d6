"""Opt-in tuning of the C library's memory allocator, which takes large blocks from the kernel anew every time."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h of glibc


def keep_freed_memory() -> bool:
    """Serve large tensors from memory that earlier ones have freed; the process keeps it until it ends.

    By default glibc maps every large tensor anew and the first access to each page costs a fault. Returns whether
    this could be set: only on Linux with glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**28}
    return all(libc.mallopt(name, value) == 1 for name, value in settings.items())
