"""Speed of a peer: SASRec as RecBole 1.2.1 trains and evaluates it, on the CPU.

    python benchmarks/peer_recbole.py LOG [--epochs 1] [--threads 2] [--venv DIR] [--json OUT]

LOG holds one user a line, `user item item ...`, oldest item first. The script prints one JSON
object, above all two timings and what they cover:

- `seconds_per_epoch`: one pass of RecBole's own `Trainer` over its training rows, the median when
  there are several epochs. RecBole writes a sequence out as one row per prefix, so N interactions
  of U users, each with three or more, give N - 3U rows (`training_rows`).
- `evaluation_seconds`: one full-ranking test evaluation of every user, after the last epoch. All
  items compete: for sequential models RecBole does not remove the ones that a user has seen.

Reading the log and building the rows are timed separately (`preparation_seconds`). The losses and
the accuracy are there to show that both phases did their work; one epoch trains no useful model.

The model is RecBole's default SASRec: width 64, inner width 256, 2 layers, 2 heads, dropout 0.5,
cross entropy over all items, at most 50 items of history, Adam at 0.001, float32. The split is
leave-one-out by time, with an item's position in its line as its time.

To be fair to the peer, it trains in batches of 256 rows by default, which was faster per epoch on
two cores than RecBole's own default of 2048. Evaluation keeps RecBole's default of 4096 users a
batch. `--train-batch-size` and `--eval-batch-size` try others.

RecBole gets an environment of its own (peer.py), made at DIR on the first run, since it cannot
share one with current libraries: it uses names that NumPy 2 removed, hence NumPy 1.26 and the
pandas, SciPy and scikit-learn of that generation. It is installed without its declared
dependencies, because they ask for Ray 2.6.3 or older, which Python 3.12 does not have. Only its
quick-start module needs Ray, and this script does not import that one; of the rest, the pins hold
what SASRec uses.

Timings want a quiet machine. `load_average_at_start` says how quiet it was; `*_cpu_seconds` well
below `threads` times the seconds says that something else had the cores meanwhile.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from peer import Peer, parse_arguments, read_sequences, run, timed

PINS = (
    "absl-py==2.5.1",
    "cloudpickle==3.1.2",
    "colorama==0.4.4",
    "colorlog==4.7.2",
    "filelock==4.2.11",
    "fsspec==2026.9.0",
    "grpcio==1.85.1",
    "jinja2==3.1.6",
    "joblib==1.6.0",
    "markdown==3.11.3",
    "markupsafe==3.0.4",
    "mpmath==1.3.0",
    "networkx==3.6.1",
    "numpy==1.26.4",
    "packaging==26.3",
    "pandas==2.1.4",
    "pillow==13.0.0",
    "protobuf==7.36.2",
    "python-dateutil==4.0.0",
    "pytz==2026.6",
    "pyyaml==6.0.3",
    "scikit-learn==1.5.2",
    "scipy==1.12.0",
    "setuptools==84.2.1",
    "sympy==1.14.0",
    "tensorboard==2.21.0",
    "tensorboard-data-server==0.7.2",
    "texttable==1.7.2",
    "threadpoolctl==3.8.0",
    "tqdm==4.70.1",
    "typing-extensions==4.16.0",
    "tzdata==2026.6",
    "werkzeug==3.1.9",
)
RECBOLE = Peer(
    name="RecBole 1.2.1",
    # those for which NumPy 1.26 and everything else pinned above exist
    pythons=((3, 11), (3, 12)),
    installs=(PINS, ("--no-deps", "recbole==1.2.1")),
    reported=("recbole", "torch", "numpy", "pandas", "scipy"),
)
REPORTED_SETTINGS = (
    "hidden_size",
    "inner_size",
    "n_layers",
    "n_heads",
    "hidden_dropout_prob",
    "attn_dropout_prob",
    "hidden_act",
    "loss_type",
    "MAX_ITEM_LIST_LENGTH",
    "train_neg_sample_args",
    "train_batch_size",
    "eval_batch_size",
    "learner",
    "learning_rate",
    "enable_amp",
    "worker",
    "eval_args",
    "seed",
)


def main() -> None:
    args = parse_arguments(RECBOLE, "recbole", train_batch_size=256, eval_batch_size=4096)
    run(RECBOLE, args, lambda: measure(args))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate in a temporary folder, where RecBole also writes its own logs."""
    sys.argv = sys.argv[:1]  # RecBole would read our options as settings of its own
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        write_atomic_file(args.log, Path(folder))
        return train_and_evaluate(args, folder)


def write_atomic_file(log: Path, folder: Path) -> None:
    """Write the log as RecBole's `.inter` file."""
    target = folder / "log" / "log.inter"
    target.parent.mkdir()
    with target.open("w", encoding="utf-8") as rows:
        rows.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user, items in read_sequences(log):
            rows.writelines(f"{user}\t{item}\t{at}\n" for at, item in enumerate(items))


def train_and_evaluate(args: argparse.Namespace, folder: str) -> dict[str, Any]:
    """The two timings, with RecBole's own loaders, model and trainer."""
    from recbole.config import Config  # type: ignore[import-not-found, unused-ignore]
    from recbole.data import (  # type: ignore[import-not-found, unused-ignore]
        create_dataset,
        data_preparation,
    )
    from recbole.utils import (  # type: ignore[import-not-found, unused-ignore]
        get_model,
        get_trainer,
        init_seed,
    )

    config = Config(
        model="SASRec",
        dataset="log",
        config_dict={
            "data_path": folder,
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "use_gpu": False,
            "gpu_id": "",
            "show_progress": False,
            "hidden_size": 64,
            "inner_size": 256,
            "n_layers": 2,
            "n_heads": 2,
            "hidden_dropout_prob": 0.5,
            "attn_dropout_prob": 0.5,
            "loss_type": "CE",
            "MAX_ITEM_LIST_LENGTH": 50,
            "train_neg_sample_args": None,
            "epochs": args.epochs,
            "train_batch_size": args.train_batch_size,
            "eval_batch_size": args.eval_batch_size,
            "eval_args": {
                "split": {"LS": "valid_and_test"},
                "group_by": "user",
                "order": "TO",
                "mode": "full",
            },
            "metrics": ["Hit", "NDCG"],
            "topk": [10],
            "valid_metric": "NDCG@10",
        },
    )
    init_seed(config["seed"], config["reproducibility"])

    (train, _, test), preparation_seconds, _ = timed(
        lambda: data_preparation(config, create_dataset(config))
    )
    model = get_model("SASRec")(config, train.dataset).to(config["device"])
    trainer = get_trainer(config["MODEL_TYPE"], "SASRec")(config, model)
    losses, seconds, cpu_seconds = zip(
        *(timed(trainer._train_epoch, train, epoch) for epoch in range(args.epochs)), strict=True
    )
    accuracy, evaluation_seconds, evaluation_cpu = timed(
        trainer.evaluate, test, load_best_model=False
    )
    trainer.tensorboard.close()
    return {
        "items": train.dataset.item_num - 1,
        "seconds_per_epoch": round(statistics.median(seconds), 3),
        "evaluation_seconds": round(evaluation_seconds, 3),
        "preparation_seconds": round(preparation_seconds, 3),
        "training_rows": len(train.dataset),
        "users_evaluated": len(test.dataset),
        "epoch_seconds": [round(value, 3) for value in seconds],
        "epoch_cpu_seconds": [round(value, 3) for value in cpu_seconds],
        "evaluation_cpu_seconds": round(evaluation_cpu, 3),
        "mean_losses": [round(loss / len(train), 4) for loss in losses],
        "accuracy": dict(accuracy),
        "settings": {name: config[name] for name in REPORTED_SETTINGS},
    }


if __name__ == "__main__":
    main()
