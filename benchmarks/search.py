"""What a search wins: TPE against random draws with the same budget, and what ASHA saves.

    python benchmarks/search.py --work FOLDER [--seeds 2] [--trials 24] [--epochs 4] [--table]

The demo's faces are embedded and labelled once. Each seed is then searched three ways with the tune
command, one trial at a time on one thread:

- random: all trials run to the end;
- tpe: the same number of trials, each to the end, proposed by Optuna;
- asha: the draws of `random`, of which poor ones are stopped early.

A search that is complete is not run again. The table gives the best figure (Spearman's correlation
on the validation images), the epochs and the seconds of all trials; and, from all random trials
together, the exact expectation of the best of k draws, so that one lucky draw does not decide.
"""

import argparse
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sdd_ray import embed, label, tune
from sdd_ray.engine.session import session
from sdd_ray.settings import (
    EmbedConfig,
    LabelConfig,
    OptimiserConfig,
    RayConfig,
    SearchDimension,
    SourceConfig,
    SplitConfig,
    TrainConfig,
    TuneConfig,
)

METRIC: Literal["spearman"] = "spearman"
WAYS: dict[str, tuple[Literal["random", "optuna"], Literal["none", "asha"]]] = {
    "random": ("random", "none"),
    "tpe": ("optuna", "none"),
    "asha": ("random", "asha"),
}
SPACE = {
    "optimiser.learning_rate": SearchDimension(kind="log_uniform", low=1e-5, high=1e-2),
    "optimiser.weight_decay": SearchDimension(kind="log_uniform", low=1e-6, high=1e-2),
    "network.dropout": SearchDimension(kind="uniform", low=0.0, high=0.7),
    "network.head": SearchDimension(kind="choice", values=("flatten", "average")),
}


def expected_best(figures: NDArray[np.float64], draws: int) -> float:
    """Return the mean, over all subsets of `draws` of the figures, of the largest one."""
    number = len(figures)
    ranks = np.arange(draws, number + 1)
    # A subset has its largest figure at rank r where the other draws - 1 lie below r.
    log = np.zeros(len(ranks))
    for step in range(draws - 1):
        log += np.log(ranks - 1 - step) - np.log(number - 1 - step)
    share = np.exp(log) * draws / number
    return float(share @ np.sort(figures)[draws - 1 :])


def config_of(folder: Path, way: str, seed: int, options: argparse.Namespace) -> TuneConfig:
    """Return a search of one way and seed."""
    searcher, scheduler = WAYS[way]
    train = TrainConfig(
        labels=str(folder / "labels"),
        output=str(folder / "unused"),
        source=SourceConfig(kind="synthetic"),
        optimiser=OptimiserConfig(
            epochs=options.epochs, milestones=(options.epochs - 1,), batch_size=32
        ),
        # Few images to train, so that many trials are affordable.
        split=SplitConfig(holdout_share=0.4, validation_share=0.25),
        best=METRIC,
        ray=RayConfig(dashboard=False),
    )
    return TuneConfig(
        output=str(folder / f"{way}_{seed}"),
        train=train,
        space=SPACE,
        trials=options.trials,
        searcher=searcher,
        scheduler=scheduler,
        grace_epochs=1,
        reduction_factor=2,
        publish=False,
        seed=seed,
        ray=RayConfig(dashboard=False),
    )


def run(folder: Path, options: argparse.Namespace) -> None:
    """Run what is missing."""
    ray = RayConfig(num_cpus=2, dashboard=False)
    source = SourceConfig(kind="synthetic")
    with session(ray):
        embed.run(EmbedConfig(output=str(folder / "embeddings"), source=source, ray=ray))
        label.run(LabelConfig(embeddings=str(folder / "embeddings"), output=str(folder / "labels")))
        for seed in range(options.seeds):
            for way in WAYS:
                tune.run(config_of(folder, way, seed, options))


def table(folder: Path, options: argparse.Namespace) -> None:
    """Print what is there."""
    print("| seed | way | trials | best | epochs | seconds | of random's epochs | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    drawn = []
    for seed in range(options.seeds):
        base = None
        for way in WAYS:
            file = folder / f"{way}_{seed}" / "trials.parquet"
            if not file.exists():
                continue
            trials = pq.read_table(file)
            figures = np.array(trials[METRIC].to_pylist(), float)
            spent = np.array(
                [np.sum(trials[name].to_numpy()) for name in ("epochs_run", "seconds")]
            )
            base = spent if base is None else base
            if way == "random":
                drawn.append(figures)
            shares = spent / base
            print(
                f"| {seed} | {way} | {len(figures)} | {np.nanmax(figures):.4f} | {spent[0]:.0f}"
                f" | {spent[1]:.0f} | {shares[0]:.2f} | {shares[1]:.2f} |"
            )
    if drawn:
        pool = np.concatenate(drawn)
        pool = pool[np.isfinite(pool)]
        sizes = [k for k in (1, 2, 4, 8, 12, 16, 24, 32, 48) if k <= len(pool)]
        means = ", ".join(f"{k}: {expected_best(pool, k):.4f}" for k in sizes)
        print(f"expected best of k of the {len(pool)} random trials: {means}")


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    folder = Path(options.work)
    if not options.table:
        run(folder, options)
    table(folder, options)


if __name__ == "__main__":
    main()
