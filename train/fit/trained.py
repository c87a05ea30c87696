"""The network that a run has trained, from one of its checkpoints."""

from typing import Literal

import jax
from flax import nnx
from jax.sharding import SingleDeviceSharding

from aa_flax.buckets import AnyPath
from train.errors import CommandError
from train.fit.checkpoint import Checkpoints
from train.fit.network import abstract_network
from train.fit.record import Record
from train.fit.rundir import CHECKPOINTS
from train.fit.runlog import Scores
from train.fit.step import TrainState, split_model
from train.fit.update import Update

Which = Literal["latest", "best"] | int
Kind = Literal["auto", "ema", "raw"]


def load_network(
    run_dir: AnyPath,
    record: Record,
    *,
    scores: Scores | None = None,
    checkpoint: Which = "latest",
    weights: Kind = "auto",
) -> tuple[int, nnx.Module, bool]:
    """A trained network in evaluation mode.

    Args:
        run_dir: directory of the run; it is only read.
        record: its record.
        scores: its validation results by step, by which `best` is chosen.
        checkpoint: which one; `latest` is the newest sound one.
        weights: the moving average or the weights themselves.

    Returns:
        The step, the network, and whether its weights are the moving average.

    Raises:
        CommandError: no such or no sound checkpoint, or a run without a moving average.
    """
    config = record.config
    if weights == "ema" and config.optim.ema is None:
        raise CommandError(f"--weights ema: the run {run_dir} keeps no moving average (--optim.ema)")
    accuracies = {step: values["accuracy"] for step, values in (scores or {}).items()}
    checkpoints = Checkpoints(run_dir / CHECKPOINTS, scores=accuracies, read_only=True)
    candidates = _candidates(checkpoints, checkpoint, run_dir)
    model = abstract_network(config, record.dataset["num_classes"])
    here = SingleDeviceSharding(jax.local_devices()[0])
    # The schedule's length does not change the state's form.
    like = Update(config, steps_per_epoch=1).form(model, here)
    restored = checkpoints.restore(like, steps=candidates)
    assert restored is not None
    ema = config.optim.ema is not None and weights != "raw"
    state: TrainState = restored.state
    chosen = state.ema if ema else {"params": state.params, "stats": state.stats}
    filled = nnx.merge(split_model(model)[0], chosen["params"], chosen["stats"])
    filled.eval()
    return restored.step, filled, ema


def _candidates(checkpoints: Checkpoints, wanted: Which, run_dir: AnyPath) -> list[int]:
    steps = checkpoints.steps()
    if wanted == "latest":
        return steps[::-1]
    step = checkpoints.best_step() if wanted == "best" else wanted
    if step is None:
        raise CommandError(f"--checkpoint best: no checkpoint of {run_dir} has been validated yet")
    if step not in steps:
        raise CommandError(f"--checkpoint {step}: {run_dir} has those of steps {', '.join(map(str, steps))}")
    return [step]
