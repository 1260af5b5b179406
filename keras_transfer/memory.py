"""How the C library treats memory that is given back to it."""

import ctypes
import os
import pathlib
import resource

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed():
    """Keeps freed memory in the process instead of returning it to the system.

    A training step frees and takes again the same hundreds of megabytes. By
    default glibc returns large blocks to the system, which hands them out
    again page by page, zeroed: up to half of the time of a step on the CPU.
    The process then stays as large as it once had to be. Without glibc this
    does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    # As large as the heaps of threads other than the first, which are then
    # kept, too.
    mallopt(_M_TOP_PAD, 2**26)


def limit():
    """Returns the bytes of memory that this process may have, an int.

    The machine's, or less where a container or `ulimit -v` allows less.
    """
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in (
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ):
        try:
            found.append(int(pathlib.Path(path).read_bytes()))
        except (OSError, ValueError):
            continue
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    if allowed != resource.RLIM_INFINITY:
        found.append(allowed)
    return min(found)
