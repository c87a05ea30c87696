"""The loader's worker processes: how they start, and that they end when the process they work for does.

grain ends them in order where that process ends in order. After kill -9 nobody would.
"""

import multiprocessing
import os
import signal
import threading
from multiprocessing import resource_tracker
from multiprocessing.connection import wait


def let_workers_start() -> None:
    """grain's workers copy absl's flags, which must count as parsed although nothing parses them.

    They share memory, of which Python's resource tracker takes care. It ignores Ctrl-C and SIGTERM, but a closed
    terminal would end it: what is blocked where it is started stays blocked in it.
    """
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin_worker(index: int, count: int) -> None:
    """Runs in a worker process before it reads anything; the arguments are grain's."""
    del index, count
    # Ctrl-C, a closed terminal and a cluster's SIGTERM reach the whole group. Training goes on until it has saved, and
    # needs its data.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    # A pipe whose other end the system closes, however the parent ends.
    wait([parent.sentinel])
    # What lies in shared memory is removed by Python's resource tracker, once nobody is left.
    os._exit(1)
