"""Speed of a peer: SASRec as WarpRec 2.2.8 trains and evaluates it, on the CPU.

    python benchmarks/peer_warprec.py LOG [--epochs 1] [--threads 2] [--venv DIR] [--json OUT]

LOG holds one user a line, `user item item ...`, oldest item first. The script prints one JSON
object; see peer_recbole.py for its two timings, `seconds_per_epoch` and `evaluation_seconds`.

- An epoch, after one that warms up, is timed by a callback of the trainer (Lightning) with which
  WarpRec's design pipeline trains a model, without Ray and without validation. An example is a
  prefix of a history, its last item the target (`training_rows`), as in RecBole.
- The evaluation is WarpRec's own: HitRate@10 and nDCG@10 of the next item of every user among all
  items without the ones seen.

The model is its SASRec at width 64, inner width 256, 2 layers, 2 heads, dropout 0.5, cross entropy
over all items, at most 50 items of history, Adam at 0.001, float32, 256 rows a batch. All but the
last two items of a user are trained on, and the last but one is what is ranked.

WarpRec needs Python 3.12 or later. Its other requirements are held by its own bounds, not pinned
here; the result names the versions.
"""

import argparse
import statistics
from typing import Any

from peer import TORCH, Peer, parse_arguments, read_sequences, run, timed, trainer_of

WARPREC = Peer(
    name="WarpRec 2.2.8",
    pythons=((3, 12), (3, 13)),
    installs=((TORCH, "warprec==2.2.8"),),
    reported=("warprec", "torch", "lightning", "ray", "numpy", "pandas", "polars"),
)
SETTINGS: dict[str, Any] = {
    "embedding_size": 64,
    "n_layers": 2,
    "n_heads": 2,
    "inner_size": 256,
    "dropout_prob": 0.5,
    "attn_dropout_prob": 0.5,
    "reg_weight": 0.0,
    "weight_decay": 0.0,
    "learning_rate": 1e-3,
    "neg_samples": 0,
    "max_seq_len": 50,
}


def main() -> None:
    args = parse_arguments(WARPREC, "warprec", train_batch_size=256, eval_batch_size=1024)
    run(WARPREC, args, lambda: measure(args))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The two timings, with WarpRec's own dataset, model and evaluator."""
    import lightning
    import polars as pl
    import warprec.recommenders.sequential_recommender  # noqa: F401
    from warprec.data import Dataset
    from warprec.evaluation.evaluator import Evaluator
    from warprec.utils.registry import model_registry

    seconds: list[tuple[float, float]] = []

    lightning.seed_everything(0)
    rows: tuple[list[tuple[str, str, int]], list[tuple[str, str, int]]] = ([], [])
    for user, items in read_sequences(args.log):
        interactions = [(user, item, at) for at, item in enumerate(items)]
        if len(items) >= 3:
            rows[0].extend(interactions[:-2])
            rows[1].append(interactions[-2])
    schema = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
    train, truth = (pl.DataFrame(part, schema=schema, orient="row") for part in rows)
    dataset, preparation_seconds, _ = timed(
        Dataset,
        train,
        truth,
        timestamp_label="timestamp",
        batch_size=args.eval_batch_size,
    )
    settings = SETTINGS | {"batch_size": args.train_batch_size, "epochs": args.epochs + 1}
    model = model_registry.get(
        name="SASRec",
        params=settings,
        interactions=dataset.train_set,
        sessions=dataset.train_session,
        seed=0,
        info=dataset.info(),
    )
    model.set_optimization_parameters()
    loader = model.get_dataloader(
        interactions=dataset.train_set, sessions=dataset.train_session, num_workers=0
    )
    trainer = trainer_of(lightning, args.epochs + 1, seconds)
    trainer.fit(model, train_dataloaders=loader)
    evaluator = Evaluator(["HitRate", "nDCG"], [10], train_set=dataset.train_set.get_sparse())

    def evaluate() -> dict[str, Any]:
        """Of each user; a user whose item is not known to training has none."""
        evaluator.evaluate(
            model=model,
            dataloader=dataset.get_evaluation_dataloader(),
            strategy="full",
            dataset=dataset,
            device="cpu",
        )
        return evaluator.compute_results()[10]

    metrics, evaluation_seconds, evaluation_cpu = timed(evaluate)
    return {
        "items": train["item_id"].n_unique(),
        "seconds_per_epoch": round(statistics.median(clock for clock, _ in seconds[1:]), 3),
        "evaluation_seconds": round(evaluation_seconds, 3),
        "preparation_seconds": round(preparation_seconds, 3),
        "training_rows": len(loader.dataset),
        "users_evaluated": int((~metrics["HitRate"].isnan()).sum()),
        "epoch_seconds": [round(clock, 3) for clock, _ in seconds],
        "epoch_cpu_seconds": [round(cpu, 3) for _, cpu in seconds],
        "evaluation_cpu_seconds": round(evaluation_cpu, 3),
        "accuracy": {f"{name}@10": float(value.nanmean()) for name, value in metrics.items()},
        "settings": settings | {"eval_batch_size": args.eval_batch_size},
    }


if __name__ == "__main__":
    main()
