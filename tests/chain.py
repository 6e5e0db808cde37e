"""The commands from images to an evaluation, each small, in which one takes what others made."""

from pathlib import Path

FACES = ("source.synthetic.num_identities=16", "source.synthetic.images_per_identity=6")


def steps(folder: Path) -> dict[str, list[str]]:
    """Return the arguments of each command, in order, with outputs of their names in a folder."""
    at = {name: f"{folder}/{name}" for name in ("embed", "label", "train", "tune", "score")}
    fit = ["optimiser.epochs=1", "optimiser.batch_size=16", "split.holdout_share=0.5"]
    fit += [f"labels={at['label']}", *FACES]
    search = [f"train.{word}" for word in fit]
    two = ["resources.workers=2", "resources.cpus_per_worker=0.5"]
    methods = f"[{{name: model, path: {at['score']}, column: raw}}]"
    return {
        "embed": [*FACES, f"output={at['embed']}", "images_per_shard=16"],
        "label": [f"embeddings={at['embed']}", f"output={at['label']}"],
        "train": [*fit, f"output={at['train']}", *two],
        "tune": [
            *search,
            f"train.output={at['train']}",
            f"output={at['tune']}",
            "trials=2",
            "grace_epochs=1",
        ],
        "score": [*FACES, f"model={at['tune']}/model", f"output={at['score']}"],
        "evaluate": [
            f"embeddings={at['embed']}",
            f"output={folder}/evaluate",
            f"methods={methods}",
            "fmr=[0.01]",
            f"comparisons.splits={at['train']}/splits.parquet",
        ],
    }
