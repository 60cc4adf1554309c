"""How many threads TVM uses. Its pool belongs to the thread that calls, so each caller's pool is set up here."""

from __future__ import annotations

import ctypes
import os
import threading
from typing import Any

from planish.runtime.processor import usable_cores, usable_processors
from planish.runtime.settings import thread_count

_SHARED_CORES = -3
_local = threading.local()


def tvm_threads(threads: int | None = None) -> int:
    """The argument, else ``PLANISH_NUM_THREADS``, else one for each physical core; never more than processors."""
    return min(thread_count(threads) or usable_cores(), len(usable_processors()))


def use_threads(tvm_ffi: Any, count: int) -> None:
    """Let parallel loops that the calling thread starts from now on run on ``count`` threads.

    A pool cannot grow, so it is made as large as this process may ever need; a count of one makes none. After a
    fork the pool of the forking thread has no workers left: there, loops run on the one thread.
    """
    if getattr(_local, "count", None) == count:
        return
    if getattr(_local, "forked", False):
        count = 1
    if count == 1 and _limit(1):
        _local.count = 1
        return
    configure = tvm_ffi.get_global_func("runtime.config_threadpool")
    if not getattr(_local, "made", False):
        _configure(configure, max(count, usable_cores()))
        _local.made = True
    _configure(configure, count)
    _local.count = count


def _configure(configure: Any, count: int) -> None:
    # With TVM_BIND_THREADS=0, which is set where nothing else is, the list only says how many threads there are.
    processors = usable_processors()
    configure(_SHARED_CORES, count, [str(processors[n % len(processors)]) for n in range(count)])


def _limit(count: int) -> bool:
    """Set the limit of the calling thread without making a pool for it; False where the runtime has no such call."""
    try:
        call = ctypes.CDLL(None)["_ZN3tvm7runtime9threading17SetMaxConcurrencyEi"]
    except (AttributeError, OSError):
        return False
    call.argtypes, call.restype = [ctypes.c_int], None
    call(count)
    return True


def _after_fork() -> None:
    _local.forked = getattr(_local, "made", False)
    _local.count = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
