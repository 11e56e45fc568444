"""Speed of a peer: SASRec as RecTools 0.19 trains and evaluates it, on the CPU.

    python benchmarks/peer_rectools.py LOG [--epochs 1] [--threads 2] [--venv DIR] [--json OUT]

LOG holds one user a line, `user item item ...`, oldest item first. The script prints one JSON
object; see peer_recbole.py for its two timings, `seconds_per_epoch` and `evaluation_seconds`.

- An epoch, after one that warms up, is timed by a callback of RecTools' own trainer (Lightning).
  Like diffuserec's, an example is a user with a target at each position (`training_rows`).
- The evaluation is `recommend` for every user, among all items without the ones that they have
  seen, and RecTools' own HitRate@10 and NDCG@10 of those lists.

The model is `SASRecModel` at width 64, 2 layers, 2 heads, dropout 0.5, softmax over all items, at
most 50 items of history, Adam at 0.001, float32, 64 users a batch. The split is leave-one-out.
"""

import argparse
import statistics
from typing import Any

from peer import Peer, parse_arguments, read_sequences, run, timed, trainer_of

RECTOOLS = Peer(
    name="RecTools 0.19.0",
    pythons=((3, 11),),
    installs=(
        (
            "aiohttp==3.14.5",
            "attrs==23.2.0",
            "fastrlock==0.8.4",
            "fsspec==2026.9.0",
            "lightning-utilities==0.15.3",
            "numpy==1.26.4",
            "packaging==26.4",
            "pandas==2.3.3",
            "pm-implicit==0.7.3",
            "pydantic==2.14.4",
            "pytorch-lightning==2.5.2",
            "pyyaml==6.0.4",
            "rectools==0.19.0",
            "scipy==1.17.1",
            "setuptools==84.2.1",
            "torchmetrics==1.9.0",
            "tqdm==4.70.1",
            "typeguard==4.6.1",
            "typing-extensions==4.16.0",
        ),
    ),
    reported=("rectools", "torch", "pytorch-lightning", "numpy", "pandas", "scipy"),
)
SETTINGS: dict[str, Any] = {
    "n_blocks": 2,
    "n_heads": 2,
    "n_factors": 64,
    "dropout_rate": 0.5,
    "session_max_len": 50,
    "loss": "softmax",
    "lr": 1e-3,
    "dataloader_num_workers": 0,
}
K = 10


def main() -> None:
    args = parse_arguments(RECTOOLS, "rectools", train_batch_size=64, eval_batch_size=256)
    run(RECTOOLS, args, lambda: measure(args))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The two timings, with RecTools' own dataset, model, trainer and metrics."""
    import pytorch_lightning as lightning
    from rectools.dataset import Dataset
    from rectools.metrics import NDCG, HitRate, calc_metrics
    from rectools.models import SASRecModel

    seconds: list[tuple[float, float]] = []

    def trainer() -> Any:
        return trainer_of(lightning, args.epochs + 1, seconds)

    lightning.seed_everything(0)
    train, history, truth = frames(args)
    dataset, preparation_seconds, _ = timed(Dataset.construct, train)
    model = SASRecModel(
        **SETTINGS,
        batch_size=args.train_batch_size,
        recommend_batch_size=args.eval_batch_size,
        recommend_torch_device="cpu",
        get_trainer_func=trainer,
    )
    model.fit(dataset)
    metrics = {"hit@10": HitRate(K), "ndcg@10": NDCG(K, divide_by_achievable=True)}

    def evaluate() -> dict[str, float]:
        lists = model.recommend(
            truth["user_id"].unique(),
            Dataset.construct(history),
            K,
            filter_viewed=True,
            on_unsupported_targets="ignore",
        )
        found = calc_metrics(metrics, lists, truth)
        return {name: float(value) for name, value in found.items()}

    accuracy, evaluation_seconds, evaluation_cpu = timed(evaluate)
    return {
        "items": len(dataset.item_id_map.external_ids),
        "seconds_per_epoch": round(statistics.median(clock for clock, _ in seconds[1:]), 3),
        "evaluation_seconds": round(evaluation_seconds, 3),
        "preparation_seconds": round(preparation_seconds, 3),
        "training_rows": int(train["user_id"].nunique()),
        "users_evaluated": len(truth),
        "epoch_seconds": [round(clock, 3) for clock, _ in seconds],
        "epoch_cpu_seconds": [round(cpu, 3) for _, cpu in seconds],
        "evaluation_cpu_seconds": round(evaluation_cpu, 3),
        "accuracy": accuracy,
        "settings": SETTINGS
        | {"train_batch_size": args.train_batch_size, "eval_batch_size": args.eval_batch_size},
    }


def frames(args: argparse.Namespace) -> tuple[Any, Any, Any]:
    """What is trained on (all but the last two items), what is known (all but the last), the last.

    The interactions of each as a frame of RecTools' columns.
    """
    import pandas as pd

    rows: list[list[tuple[str, str, int, int]]] = [[], [], []]
    for user, items in read_sequences(args.log):
        interactions = [(user, item, 1, at) for at, item in enumerate(items)]
        if len(items) >= 3:
            rows[0] += interactions[:-2]
            rows[1] += interactions[:-1]
            rows[2] += interactions[-1:]
    columns = ["user_id", "item_id", "weight", "datetime"]
    made = [pd.DataFrame(part, columns=columns) for part in rows]
    for frame in made:
        frame["datetime"] = pd.to_datetime(frame["datetime"], unit="s")
    return made[0], made[1], made[2]


if __name__ == "__main__":
    main()
