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

RecBole gets an environment of its own, made at DIR on the first run, since it cannot share one
with current libraries: it uses names that NumPy 2 removed, hence NumPy 1.26 and the pandas, SciPy
and scikit-learn of that generation. It is installed without its declared dependencies, because
they ask for Ray 2.6.3 or older, which Python 3.12 does not have. Only its quick-start module needs
Ray, and this script does not import that one; of the rest, the pins hold what SASRec uses.

Timings want a quiet machine. `load_average_at_start` says how quiet it was; `*_cpu_seconds` well
below `threads` times the seconds says that something else had the cores meanwhile.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

RECBOLE = "recbole==1.2.1"
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
    "torch==2.13.0",
    "tqdm==4.70.1",
    "typing-extensions==4.16.0",
    "tzdata==2026.6",
    "werkzeug==3.1.9",
)
PYTHONS = ((3, 11), (3, 12))
"""The Python versions for which NumPy 1.26 and everything else pinned above exist."""

REPORTED_VERSIONS = ("recbole", "torch", "numpy", "pandas", "scipy")
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
    """Measure, or first make the peer's environment and start over inside it."""
    args = parse_arguments()
    if not args.venv.exists():
        create_environment(args.venv)
    elif not holds_pins(args.venv):
        sys.exit(
            f"{args.venv} is not an environment with this script's pins: remove it, or pass "
            "another --venv"
        )
    if Path(sys.prefix).resolve() != args.venv:
        python, threads = environment_python(args.venv), str(args.threads)
        command = [python, str(Path(__file__).resolve()), *sys.argv[1:]]
        variables = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        os.execve(python, command, os.environ | variables)
    signal.signal(signal.SIGALRM, lambda *_: give_up(args.time_limit))
    signal.setitimer(signal.ITIMER_REAL, args.time_limit)
    result = json.dumps(measure(args), indent=2)
    print(result)
    if args.json is not None:
        args.json.write_text(result + "\n", encoding="utf-8")


def give_up(time_limit: int) -> None:
    sys.exit(f"stopped: not done after {time_limit} seconds (--time-limit)")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time SASRec in RecBole on the CPU.")
    parser.add_argument("log", type=Path, help="one user a line: user item item ..., oldest first")
    parser.add_argument("--epochs", type=positive, default=1)
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--train-batch-size", type=positive, default=256)
    parser.add_argument("--eval-batch-size", type=positive, default=4096)
    parser.add_argument(
        "--venv",
        type=Path,
        default=Path(".venv-recbole"),
        help="RecBole's environment, made here if missing",
    )
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    parser.add_argument(
        "--time-limit", type=positive, default=3600, help="seconds after which to give up measuring"
    )
    args = parser.parse_args()
    if not args.log.is_file():
        parser.error(f"no such log: {args.log}")
    args.log, args.venv = args.log.resolve(), args.venv.resolve()
    args.json = args.json and args.json.resolve()
    return args


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def environment_python(folder: Path) -> str:
    return str(folder / "bin" / "python")


def pins_file(folder: Path) -> Path:
    return folder / "peer-pins.txt"


def holds_pins(folder: Path) -> bool:
    """Whether `folder` is an environment that `create_environment` finished, with today's pins."""
    return (
        pins_file(folder).is_file() and pins_file(folder).read_text(encoding="utf-8") == pins_text()
    )


def pins_text() -> str:
    return "\n".join((*PINS, RECBOLE)) + "\n"


def create_environment(folder: Path) -> None:
    """Install the pins at `folder`; leave nothing there if that fails."""
    if sys.version_info[:2] not in PYTHONS:
        known = " or ".join(f"{major}.{minor}" for major, minor in PYTHONS)
        sys.exit(f"RecBole's environment needs Python {known}; this is {platform.python_version()}")
    print(f"installing RecBole and {len(PINS)} other packages in {folder}", file=sys.stderr)
    install = [environment_python(folder), "-m", "pip", "install", "--quiet"]
    try:
        for command in (
            [sys.executable, "-m", "venv", str(folder)],
            [*install, *PINS],
            [*install, "--no-deps", RECBOLE],
        ):
            subprocess.run(command, check=True, stdout=sys.stderr)
        pins_file(folder).write_text(pins_text(), encoding="utf-8")
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, subprocess.CalledProcessError):
            sys.exit(f"could not make {folder}: `{' '.join(error.cmd[:4])} ...` failed")
        raise


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate in a temporary folder, where RecBole also writes its own logs."""
    sys.argv = sys.argv[:1]  # RecBole would read our options as settings of its own
    import torch

    torch.set_num_threads(args.threads)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        users, interactions = write_atomic_file(args.log, Path(folder))
        measured = train_and_evaluate(args, folder)
    return {
        "benchmark": "SASRec in RecBole",
        "log": args.log.name,
        "users": users,
        "interactions": interactions,
        **measured,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load_average_at_start": round(load, 2),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in REPORTED_VERSIONS},
    }


def write_atomic_file(log: Path, folder: Path) -> tuple[int, int]:
    """Write the log as RecBole's `.inter` file; return how many users and interactions it has."""
    target = folder / "log" / "log.inter"
    target.parent.mkdir()
    users = interactions = 0
    with log.open(encoding="utf-8") as lines, target.open("w", encoding="utf-8") as rows:
        rows.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for line in lines:
            user, *items = line.split() or [""]
            rows.writelines(f"{user}\t{item}\t{at}\n" for at, item in enumerate(items))
            users += bool(items)
            interactions += len(items)
    return users, interactions


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


def timed(task: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[Any, float, float]:
    """Call `task`; return its result, its seconds by the clock and its threads' CPU seconds."""
    clock, cpu = time.perf_counter(), time.process_time()
    result = task(*arguments, **options)
    return result, time.perf_counter() - clock, time.process_time() - cpu


if __name__ == "__main__":
    main()
