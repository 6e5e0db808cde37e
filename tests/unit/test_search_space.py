"""The search space: checked against training's options before any work, and applied to them."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from sdd_ray.config import load_config
from sdd_ray.errors import ConfigError, ResourceError
from sdd_ray.search_draws import draw, grid, mutate
from sdd_ray.search_space import check_space, most_epochs, proposals, with_values
from sdd_ray.settings import (
    OptimiserConfig,
    SearchDimension,
    TrainConfig,
    TuneConfig,
    TuneResources,
)

TRAIN = TrainConfig(
    labels="labels", output="model", optimiser=OptimiserConfig(epochs=4), best="mae"
)
RATE = {"kind": "log_uniform", "low": 1e-5, "high": 1e-2}
KIND = {"kind": "choice", "values": ["huber", "l1", "l2"]}
ZETA = {"kind": "uniform", "low": 0.5, "high": 2.0, "when": {"loss.kind": "huber"}}


def tune(options=None, **space):
    named = {key.replace("__", "."): SearchDimension(**value) for key, value in space.items()}
    return TuneConfig(**{"output": "search", "train": TRAIN, "space": named, **(options or {})})


def mistakes_of(config):
    with pytest.raises(ConfigError) as caught:
        check_space(config)
    head, *mistakes = str(caught.value).splitlines()
    assert head == "wrong search space"
    return [mistake.strip() for mistake in mistakes]


def test_default_space_is_right():
    check_space(TuneConfig(output="search", train=TRAIN))


@pytest.mark.parametrize(
    "space",
    [
        {"optimiser__epochs": {"kind": "integer", "low": 1, "high": 9}},
        {"augment__flip": {"kind": "choice", "values": [True, False]}},
        {"network__head": {"kind": "choice", "values": ["flatten", "average"]}},
        {"optimiser__clip_norm": {"kind": "choice", "values": [None, 1.0]}},
        {"seed": {"kind": "integer", "low": 0, "high": 3}},
        {"loss__huber_zeta": ZETA, "loss__kind": KIND},
        {"optimiser__decay": {**RATE, "when": {"optimiser.schedule": "step", "seed": [0, 1]}}},
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
        ("optimiser", {"kind": "choice", "values": [1]}, "space.optimiser: 1: optimiser: "),
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
        (
            "loss__huber_zeta",
            {**ZETA, "when": {"loss.sort": "huber"}},
            "space.loss.huber_zeta.when: train has no key loss.sort",
        ),
        (
            "loss__huber_zeta",
            {**ZETA, "when": {"loss": "huber"}},
            "space.loss.huber_zeta.when: train has no key loss",
        ),
        (
            "loss__huber_zeta",
            {**ZETA, "when": {"loss.kind": ("l1", "l2")}},
            "space.loss.huber_zeta.when: loss.kind = l1 or l2 is never the case; train has"
            " loss.kind = huber",
        ),
    ],
)
def test_values_that_training_does_not_take(key, dimension, message):
    mistakes = mistakes_of(tune(**{key: dimension}))
    assert mistakes[-1].startswith(message)
    assert all(line.startswith(f"space.{key.replace('__', '.')}") for line in mistakes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": None}, "a choice needs values"),
        ({"points": 3}, "points are of ranges"),
        ({"kind": "uniform", "low": 2, "high": 1}, "uniform needs low < high, got 2.0 and 1.0"),
        ({"kind": "log_uniform", "low": 0, "high": 1}, "log_uniform needs low > 0"),
        ({"kind": "integer", "low": 0.5, "high": 3}, "integer needs whole numbers"),
    ],
)
def test_dimensions_that_are_none(changes, message):
    with pytest.raises(ValueError, match=message):
        SearchDimension(**{"kind": "choice", "values": (1,), **changes})


def test_all_mistakes_at_once():
    wrong = {"kind": "uniform", "low": -1.0, "high": 2.0}
    mistakes = mistakes_of(tune({"grace_epochs": 5}, a__b=wrong, network__dropout=wrong))
    assert [m.partition(":")[0] for m in mistakes] == [
        "space.a.b",
        "space.network.dropout",
        "space.network.dropout",
        "grace_epochs",
    ]
    assert mistakes[-1] == "grace_epochs: 5 is more than train.optimiser.epochs=4"


def test_grace_matters_to_asha_and_median_alone():
    check_space(tune({"grace_epochs": 5, "scheduler": "none"}))
    assert mistakes_of(tune({"grace_epochs": 5, "scheduler": "median"}))


def test_conditions_in_a_circle():
    space = {
        "loss__kind": {**KIND, "when": {"augment.flip": True}},
        "augment__flip": {"kind": "choice", "values": [True], "when": {"seed": 1}},
        "seed": {"kind": "integer", "low": 0, "high": 3, "when": {"loss.kind": "l1"}},
    }
    [mistake] = mistakes_of(tune(**space))
    assert mistake.startswith("space: when goes in a circle: ")
    assert {"loss.kind", "augment.flip", "seed"} <= set(mistake.replace(" -> ", " ").split())


@pytest.mark.parametrize(("second", "possible"), [("l2", True), ("l1", False)])
def test_conditions_that_exclude_each_other_are_found(second, possible):
    # huber_zeta asks for kind = l2 and, by way of balance being drawn at all, for `second`.
    space = {
        "loss__kind": KIND,
        "seed": {"kind": "integer", "low": 5, "high": 9, "when": {"loss.kind": second}},
        "loss__huber_zeta": {**ZETA, "when": {"loss.kind": "l2", "seed": (7, 8)}},
    }
    if possible:
        check_space(tune(**space))
    else:
        [mistake] = mistakes_of(tune(**space))
        assert "loss.kind = l2, seed = 7 or 8 is never the case" in mistake


def test_weights_of_labels_are_worked_out_by_trials_of_one_worker():
    space = {"loss__weighting": {"kind": "choice", "values": ["none", "num_mated"]}}
    check_space(tune(**space))
    [mistake] = mistakes_of(tune({"resources": TuneResources(workers_per_trial=2)}, **space))
    assert mistake == "space.loss.weighting: can be varied in trials of one worker alone"


@pytest.mark.parametrize("key", ["loss.kind", "loss.huber_zeta", "loss.ranking_weight"])
def test_losses_cannot_be_compared_where_each_trial_has_its_own(key):
    loss = with_values(TRAIN, {"best": "loss"})
    dimension = KIND if key == "loss.kind" else {"kind": "uniform", "low": 0.5, "high": 2.0}
    space = {key: SearchDimension(**dimension)}
    [mistake] = mistakes_of(TuneConfig(output="search", train=loss, space=space))
    assert mistake.startswith(f"space.{key}: changes what train.best=loss measures")


PBT = {"scheduler": "pbt", "trials": 4, "resources": TuneResources(concurrent_trials=4)}


@pytest.mark.parametrize(
    ("options", "space", "message"),
    [
        (
            {},
            {"network__head": {"kind": "choice", "values": ["flatten"]}},
            "space.network.head: sc",
        ),
        ({"searcher": "optuna"}, {}, "searcher: scheduler=pbt changes the values itself"),
        ({"trials": 1}, {}, "resources.concurrent_trials: scheduler=pbt compares trials"),
        ({"trials": 5}, {}, "resources.concurrent_trials: scheduler=pbt compares trials"),
        ({"perturbation_epochs": 4}, {}, "perturbation_epochs: 4 leaves nothing to exchange"),
        (
            {"resources": TuneResources(concurrent_trials=4, workers_per_trial=2)},
            {},
            "resources.workers_per_trial: scheduler=pbt needs trials of one worker",
        ),
    ],
)
def test_pbt_cannot_do_everything(options, space, message):
    check_space(tune(PBT, optimiser__learning_rate=RATE, loss__kind=KIND, loss__huber_zeta=ZETA))
    [mistake] = mistakes_of(tune({**PBT, **options}, optimiser__learning_rate=RATE, **space))
    assert mistake.startswith(message)


def test_optuna_that_is_not_there(monkeypatch):
    config = tune({"searcher": "optuna"}, optimiser__learning_rate=RATE)
    check_space(config)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ResourceError, match=r"pip install 'sdd-ray\[optuna\]'"):
        check_space(config)


def test_several_workers_share_no_gpu():
    TuneResources(workers_per_trial=2, gpus_per_trial=2)
    with pytest.raises(ValueError, match=r"gpus_per_trial=0\.5 with workers_per_trial=2: give no"):
        TuneResources(workers_per_trial=2, gpus_per_trial=0.5)


def test_draws_depend_on_seed_trial_and_key_alone():
    small = tune({"trials": 6}, optimiser__learning_rate=RATE)
    others = {
        "seed": {"kind": "integer", "low": 0, "high": 99},
        "network__dropout": {"kind": "uniform", "low": 0, "high": 0.5},
    }
    large = tune({"trials": 9}, **others, optimiser__learning_rate=RATE)
    rates = [values["optimiser.learning_rate"] for values in proposals(small)]
    assert rates == [values["optimiser.learning_rate"] for values in proposals(large)][:6]
    assert len(set(rates)) == 6
    other = tune({"seed": 1}, optimiser__learning_rate=RATE)
    assert draw(other, 0)["optimiser.learning_rate"] not in rates


def test_draws_are_spread_as_their_kind_says():
    config = tune(
        optimiser__learning_rate=RATE,
        network__dropout={"kind": "uniform", "low": 0.2, "high": 0.6},
        seed={"kind": "integer", "low": 3, "high": 6},
        loss__kind=KIND,
    )
    drawn = [draw(config, number) for number in range(800)]
    logs = (np.log10([values["optimiser.learning_rate"] for values in drawn]) + 5) / 3
    shares = (np.array([values["network.dropout"] for values in drawn]) - 0.2) / 0.4
    assert kstest(logs, "uniform").pvalue > 0.01
    assert kstest(shares, "uniform").pvalue > 0.01
    for key, values in (("seed", (3, 4, 5, 6)), ("loss.kind", ("huber", "l1", "l2"))):
        found = [v[key] for v in drawn]
        counts = [found.count(value) for value in values]
        assert sum(counts) == 800
        assert min(counts) > 0.7 * 800 / len(values)


def test_conditional_keys_are_drawn_where_they_take_part_alone():
    config = tune(loss__huber_zeta=ZETA, loss__kind=KIND)
    drawn = [draw(config, number) for number in range(60)]
    assert all(
        ("loss.huber_zeta" in values) == (values["loss.kind"] == "huber") for values in drawn
    )
    assert {values["loss.kind"] for values in drawn} == {"huber", "l1", "l2"}


def test_what_a_key_left_out_waits_for_is_as_training_has_it():
    # zeta waits for a kind that is drawn only with flip; without, kind is train's own: huber.
    config = tune(
        augment__flip={"kind": "choice", "values": [True, False]},
        loss__kind={"kind": "choice", "values": ["l1"], "when": {"augment.flip": True}},
        loss__huber_zeta=ZETA,
    )
    for number in range(20):
        values = draw(config, number)
        assert ("loss.huber_zeta" in values) == (not values["augment.flip"])


def test_grid_has_every_combination_once():
    config = tune(
        {"searcher": "grid", "trials": 99},
        optimiser__learning_rate={**RATE, "points": 4},
        seed={"kind": "integer", "low": 1, "high": 3, "points": 9},
        loss__kind=KIND,
        loss__huber_zeta={**ZETA, "points": 2},
    )
    check_space(config)
    found = [tuple(sorted(values.items())) for values in grid(config)]
    zetas = {"huber": [("loss.huber_zeta", 0.5), ("loss.huber_zeta", 2.0)], "l1": [], "l2": []}
    wanted = set()
    for rate, seed, kind in itertools.product((1e-5, 1e-4, 1e-3, 1e-2), (1, 2, 3), zetas):
        fixed = [("optimiser.learning_rate", rate), ("seed", seed), ("loss.kind", kind)]
        wanted |= {tuple(sorted([*fixed, *([z] if z else [])])) for z in zetas[kind] or [None]}
    rounded = {
        tuple((k, float(f"{v:.6g}") if isinstance(v, float) else v) for k, v in values)
        for values in found
    }
    assert len(found) == len(wanted) == len(proposals(config)) == 4 * 3 * 4
    assert rounded == wanted


def test_grid_needs_points_and_fits_the_trials():
    space = {"optimiser__learning_rate": {**RATE, "points": 5}, "loss__kind": KIND}
    check_space(tune({"searcher": "grid", "trials": 15}, **space))
    [mistake] = mistakes_of(tune({"searcher": "grid", "trials": 14}, **space))
    assert mistake == "trials: the grid has 15 configurations, trials=14 allows fewer"
    [mistake] = mistakes_of(tune({"searcher": "grid"}, optimiser__learning_rate=RATE))
    assert mistake == "space.optimiser.learning_rate: searcher=grid needs points for a range"
    many = {"kind": "uniform", "low": 0.1, "high": 0.9, "points": 1000}
    space = {"optimiser__decay": many, "optimiser__ema": many, "network__dropout": many}
    endless = tune({"searcher": "grid"}, **space)
    [mistake] = mistakes_of(endless)
    assert mistake.startswith("trials: the grid has more than 10,000 configurations")


@given(seed=st.integers(0, 2**32 - 1), number=st.integers(0, 1000), steps=st.integers(1, 20))
def test_changed_values_stay_in_the_space(seed, number, steps):
    config = tune(
        {"seed": seed},
        optimiser__learning_rate=RATE,
        network__dropout={"kind": "uniform", "low": 0.0, "high": 0.7},
        seed={"kind": "integer", "low": 3, "high": 6},
        loss__kind=KIND,
        loss__huber_zeta=ZETA,
    )
    rng = np.random.default_rng([seed, number])
    values = draw(config, number)
    for _ in range(steps):
        values = mutate(config, values, rng)
        assert 1e-5 <= values["optimiser.learning_rate"] <= 1e-2
        assert 0 <= values["network.dropout"] <= 0.7
        assert values["seed"] in (3, 4, 5, 6)
        assert ("loss.huber_zeta" in values) == (values["loss.kind"] == "huber")
        assert 0.5 <= values.get("loss.huber_zeta", 1.0) <= 2.0
        assert with_values(TRAIN, values).network.dropout == values["network.dropout"]


def test_changes_are_steps_of_a_fifth_or_new_draws():
    config = tune(optimiser__learning_rate=RATE)
    rng = np.random.default_rng(0)
    ratios = [
        mutate(config, {"optimiser.learning_rate": 1e-3}, rng)["optimiser.learning_rate"] / 1e-3
        for _ in range(400)
    ]
    down, up = (sum(abs(r - f) < 1e-9 for r in ratios) for f in (0.8, 1.2))
    assert 110 < down < 190
    assert 110 < up < 190
    assert 60 < 400 - down - up < 140


def test_epochs_of_the_longest_trial():
    assert most_epochs(tune(optimiser__learning_rate=RATE)) == 4
    assert most_epochs(tune(optimiser__epochs={"kind": "integer", "low": 2, "high": 9})) == 9


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


def test_example_configuration_is_right(request):
    check_space(load_config(TuneConfig, request.config.rootpath / "configs" / "tune.yaml"))


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
