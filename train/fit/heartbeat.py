"""Signs of life: where one of several processes falls silent, the others end with a line that names it."""

import threading
import time
from collections.abc import Sequence
from typing import Any

import jax

# What processes of one run may say to each other beside collective operations has no public name.
from jax._src import distributed

from train.fit.distributed import LaunchConfig, Watch, is_lead, last_words

ALIVE, GONE = "aa_flax/alive/", "aa_flax/gone/"
# Within one time-out.
BEATS = 10
AGAIN = "start them all again: the run goes on from its last checkpoint"


def watch_over(config: LaunchConfig) -> None:
    """Gives signs of life from now on and ends this process, with code 2, where another gives none any more.

    JAX has a heartbeat too, and aborts with a native stack; its time-out is longer.
    """
    if jax.process_count() == 1:
        return
    arguments = (distributed.global_state.client, config.heartbeat_timeout)
    threading.Thread(target=_watch, args=arguments, daemon=True).start()


def _watch(client: Any, timeout: float) -> None:
    beat, heard = 0, {}
    # Where process 0 hangs, so does what is asked of it.
    with Watch("a sign of life from process 0", AGAIN, sign=lambda: beat, patience=timeout, limit=timeout):
        while True:
            try:
                client.key_value_set(f"{ALIVE}{jax.process_index()}", str(beat), allow_overwrite=True)
                if is_lead():
                    for process in silent_processes(heard, client.key_value_dir_get(ALIVE), time.monotonic(), timeout):
                        client.key_value_set(f"{GONE}{process}", "", allow_overwrite=True)
                gone = [key.rpartition("/")[2] for key, _ in client.key_value_dir_get(GONE)]
            except jax.errors.JaxRuntimeError:
                # The end of the run, or of process 0; JAX tells of that itself.
                return
            if gone:
                last_words(
                    f"error: process {jax.process_index()}: no sign of life from process {', '.join(gone)} "
                    f"for {timeout:g} s; all processes end; {AGAIN}",
                    # Process 0 has what the others have yet to read.
                    linger=2 * timeout / BEATS if is_lead() else 0.0,
                )
            beat += 1
            time.sleep(timeout / BEATS)


def silent_processes(
    heard: dict[str, tuple[str, float]], said: Sequence[tuple[str, str]], now: float, timeout: float
) -> list[str]:
    """The processes whose last sign is older than the time-out.

    Args:
        heard: the last sign of each and when it came; what is new is entered.
        said: what each says now, by a key that ends with its number.
        now: in seconds.
        timeout: in seconds.
    """
    for key, sign in said:
        if key not in heard or heard[key][0] != sign:
            heard[key] = (sign, now)
    return [key.rpartition("/")[2] for key, (_, when) in heard.items() if now - when > timeout]
