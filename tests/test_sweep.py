"""Sweeps: a run is the one that `fit` makes, and runs that differ only in numbers share a program."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.small_train import SMALL_STAGES
from tests.training_runs import losses
from train.data import DataConfig
from train.errors import CommandError
from train.fit import command as fit
from train.fit.config import LogConfig, NetworkConfig, TrainConfig
from train.fit.feed import DeviceFeed, LoaderFeed
from train.fit.presets import preset
from train.fit.runlog import read_scores
from train.fit.sweep import Sweep


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    """Two epochs of three updates of two blocks of MobileNetV2, with shifts and a warm-up."""
    monkeypatch.setattr("aa_flax.models.mobilenet.STAGES", SMALL_STAGES)
    recipe = preset("digits", "mobilenet_v2_lpf3")
    return dataclasses.replace(
        recipe,
        epochs=2,
        batch=16,
        seed=3,
        data=DataConfig(name="synthetic", image_size=16, synthetic_size=48),
        net=NetworkConfig(width_mult=0.25),
        optim=dataclasses.replace(recipe.optim, lr=0.005),
        log=LogConfig(every=1, tensorboard=False),
    )


def test_runs_of_a_sweep_are_those_of_fit_with_one_program(config, tmp_path):
    fit.run(dataclasses.replace(config, run_dir=tmp_path / "run"), report=False)
    sweep = Sweep()
    config = dataclasses.replace(config, on_device=True)
    # Another run first: nothing of it may be left.
    rates = dataclasses.replace(config.optim, lr=0.1, warmup_epochs=0)
    other, _ = sweep.train(dataclasses.replace(config, seed=4, epochs=1, optim=rates))
    state, loss = sweep.train(config)
    assert (int(other.step), int(state.step)) == (3, 6)
    (feed,) = sweep._feeds.values()
    assert isinstance(feed, DeviceFeed)
    assert feed._steps._cache_size() == 1
    # fit took its batches from the loader.
    np.testing.assert_allclose(loss, np.mean(losses(tmp_path / "run")[3:]), rtol=1e-4)
    measured = sweep.program(config).measure(state.params, state.stats)
    assert measured == pytest.approx(read_scores(tmp_path / "run")[6], abs=1e-6)


def test_the_loader_gives_a_sweep_the_same_runs_with_one_program(config):
    sweep = Sweep()
    made = []
    state, loss = sweep.train(config, progress=made.append)
    _, other = sweep.train(dataclasses.replace(config, seed=4))
    assert loss != other
    (feed,) = sweep._feeds.values()
    assert isinstance(feed, LoaderFeed)
    assert feed._step._cache_size() == 1
    assert made == [1, 2, 3, 4]  # two of the six are in flight
    ahead = dataclasses.replace(config, on_device=True)
    sweep.compile(ahead)
    kept, _ = sweep.train(ahead)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), state.params, kept.params)
    (*_, feed) = sweep._feeds.values()
    assert feed._steps._cache_size() == 1


def test_runs_share_a_program_where_only_numbers_differ(config):
    sweep = Sweep()
    numbers = dataclasses.replace(config, seed=4, epochs=7, optim=dataclasses.replace(config.optim, lr=0.1))
    assert sweep.program(numbers) is sweep.program(config)
    for change in ({"data": dataclasses.replace(config.data, augment="none")}, {"batch": 8}, {"dtype": "bfloat16"}):
        assert sweep.program(dataclasses.replace(config, **change)) is not sweep.program(config)


def test_a_sweep_checks_what_it_makes(config):
    with pytest.raises(CommandError, match="--epochs is 0"):
        Sweep().train(dataclasses.replace(config, epochs=0))
