"""The search space: checked against training's options before any work, and applied to them."""

import subprocess
import sys

import pytest

from sdd_ray.errors import ConfigError
from sdd_ray.search_space import check_space, with_values
from sdd_ray.settings import OptimiserConfig, SearchDimension, TrainConfig, TuneConfig

TRAIN = TrainConfig(labels="labels", output="model", optimiser=OptimiserConfig(epochs=4))


def tune(grace_epochs=2, scheduler="asha", **space):
    named = {key.replace("__", "."): SearchDimension(**value) for key, value in space.items()}
    return TuneConfig(
        output="search", train=TRAIN, space=named, grace_epochs=grace_epochs, scheduler=scheduler
    )


def test_default_space_is_right():
    check_space(TuneConfig(output="search", train=TRAIN))


@pytest.mark.parametrize(
    "space",
    [
        {"optimiser__epochs": {"kind": "integer", "low": 1, "high": 9}},
        {"optimiser__flip": {"kind": "choice", "values": [True, False]}},
        {"network__head": {"kind": "choice", "values": ["flatten", "average"]}},
        {"seed": {"kind": "integer", "low": 0, "high": 3}},
    ],
)
def test_every_kind_of_dimension(space):
    check_space(tune(**space))


@pytest.mark.parametrize(
    ("key", "dimension", "message"),
    [
        (
            "optimiser__rate",
            {"kind": "uniform", "low": 0.0, "high": 1.0},
            "space.optimiser.rate: train has no such key",
        ),
        (
            "network__dropout",
            {"kind": "uniform", "low": 0.5, "high": 1.0},
            "space.network.dropout: 1.0: network.dropout: input should be less than 1",
        ),
        (
            "optimiser__epochs",
            {"kind": "uniform", "low": 1, "high": 4.5},
            "space.optimiser.epochs: 4.5: optimiser.epochs: ",
        ),
        (
            "network__head",
            {"kind": "choice", "values": ["average", "mean"]},
            "space.network.head: mean: network.head: ",
        ),
        (
            "optimiser",
            {"kind": "choice", "values": [1]},
            "space.optimiser: 1: optimiser: ",
        ),
        (
            "split__seed",
            {"kind": "integer", "low": 0, "high": 3},
            "space.split.seed: is the same in all trials and cannot be varied",
        ),
        (
            "best",
            {"kind": "choice", "values": ["loss", "mae"]},
            "space.best: is the same in all trials and cannot be varied",
        ),
    ],
)
def test_values_that_training_does_not_take(key, dimension, message):
    with pytest.raises(ConfigError) as caught:
        check_space(tune(**{key: dimension}))
    head, *mistakes = str(caught.value).splitlines()
    assert head == "wrong search space"
    assert mistakes[-1].strip().startswith(message)
    assert all(line.startswith(f"  space.{key.replace('__', '.')}: ") for line in mistakes)


def test_all_mistakes_at_once():
    wrong = {"kind": "uniform", "low": -1.0, "high": 2.0}
    config = tune(grace_epochs=5, a__b=wrong, network__dropout=wrong)
    with pytest.raises(ConfigError) as caught:
        check_space(config)
    mistakes = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert [m.partition(":")[0] for m in mistakes] == [
        "space.a.b",
        "space.network.dropout",
        "space.network.dropout",
        "grace_epochs",
    ]
    assert mistakes[-1] == "grace_epochs: 5 is more than train.optimiser.epochs=4"


def test_grace_matters_to_asha_alone():
    check_space(tune(grace_epochs=5, scheduler="none"))


def test_values_are_set_and_the_rest_is_kept():
    values = {"optimiser.learning_rate": 0.25, "network.dropout": 0.125, "seed": 3}
    varied = with_values(TRAIN, values)
    assert varied.optimiser.learning_rate == 0.25
    assert varied.network.dropout == 0.125
    assert varied.seed == 3
    back = {"optimiser.learning_rate": 1e-4, "network.dropout": 0.5, "seed": 0}
    assert with_values(varied, back) == TRAIN
    with pytest.raises(ConfigError, match="dropout: input should be less than 1"):
        with_values(TRAIN, {"network.dropout": 1.5})


def test_mistakes_end_the_command_before_ray_is_imported():
    code = """if True:
        import sys
        from sdd_ray import tune
        from sdd_ray.config import main
        from sdd_ray.settings import TuneConfig
        words = ["output=o", "train.labels=l", "train.output=m", "grace_epochs=99"]
        status = main(TuneConfig, tune.run, words)
        print(status, sorted({"ray", "torch"} & set(sys.modules)))
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "2 []\n"
    assert done.stderr.endswith(
        "sdd_ray.tune: wrong search space\n"
        "  grace_epochs: 99 is more than train.optimiser.epochs=20\n"
    )
