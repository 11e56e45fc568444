"""Fills the measured tables of README.md and docs/ from docs/lab/results/*.json.

    python benchmarks/tables.py

A page marks a table with HTML comments, ``<!-- name -->`` and ``<!-- /name -->``; the text between
them is replaced. No result is typed by hand.
"""

import json
import math
import re
import statistics
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffuserec as dr
from diffuserec.reports.inspection import ViewMetrics, metric_table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "lab" / "results"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))


def table(header: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    every = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in every)


def floors() -> str:
    """Popularity, Markov and ItemKNN on each log."""
    names = ["HR@5", "HR@10", "HR@20", "NDCG@5", "NDCG@10", "NDCG@20"]
    parts = []
    for log, result in _read("floors").items():
        lines = [
            [name, *(f"{found[m]:.4f}" for m in names), f"{found['seconds']:.1f} s"]
            for name, found in result["results"].items()
        ]
        parts.append(f"{table([log, *names, 'fit + measure'], lines)}\n\n{result['protocol']}")
    return "\n\n".join(parts)


def scale() -> str:
    """Seconds of an epoch and memory by size of the log, as foreseen and as measured."""
    document = _read("scale")
    lines = [
        [
            row["model"],
            f"{row['users']:,}",
            f"{row['items']:,}",
            f"{row['positions']:,}",
            f"{row['foreseen']:.2f} s",
            f"{row['seconds']:.2f} s",
            f"{row['foreseen'] / row['seconds']:.2f}",
            f"{row['foreseen_memory'] / 2**30:.2f} / {row['memory'] / 2**30:.2f} GiB",
        ]
        for row in document["rows"]
    ]
    header = ["model", "users", "items", "targets", "foreseen", "measured", "ratio", "memory"]
    fits = [
        [
            model,
            f"{found['step'] * 1e3:.1f} ms",
            f"{found['position'] * 1e6:.1f} µs",
            f"{found['score'] * 1e9:.2f} ns",
            f"{found['largest_error']:.0%}",
        ]
        for model, found in document["fits"].items()
    ]
    fit = table(["model", "a, a step", "b, a target", "c, a score", "largest error"], fits)
    how = (
        f"{document['precision']}, one thread, logs of the built-in store; memory foreseen / used."
    )
    return f"{table(header, lines)}\n\n{how}\n\n{fit}"


def report(name: str, metrics: tuple[str, ...] = ("HR@10", "NDCG@10", "MRR")) -> str:
    """An experiment's report: all users, then NDCG@10 by group; stars against the reference."""
    document = _read(name)
    cells = {(r["method"], r["group"], r["metric"]): r for r in document["summary"]}
    tests = {(r["method"], r["group"], r["metric"]): r for r in document["comparisons"]}
    methods = list(dict.fromkeys(r["method"] for r in document["summary"]))

    def cell(method: str, group: str, metric: str) -> str:
        found = cells.get((method, group, metric))
        if found is None:
            return ""
        text = f"{found['value']:.4f} ± {found['margin']:.4f}"
        p = tests.get((method, group, metric), {}).get("p_holm")
        return text if p is None else text + "*" * sum(p < level for level in (0.05, 0.01, 0.001))

    def seeds(method: str) -> str:
        return str(cells[method, "all", metrics[0]]["n_seeds"])

    first = methods[0]
    own = [
        f"{method} against {row['reference']}"
        for method in methods
        if (row := tests.get((method, "all", "NDCG@10"))) and row["reference"] != first
    ]
    against = f"{first} ({', '.join(own)})" if own else first
    groups = [
        g for g in ("short", "medium", "long", "head", "tail") if any(k[1] == g for k in cells)
    ]
    everyone = [[m, seeds(m), *(cell(m, "all", metric) for metric in metrics)] for m in methods]
    by_group = [[m, *(cell(m, g, "NDCG@10") for g in groups)] for m in methods]
    return "\n\n".join(
        (
            table(["method", "seeds", *metrics], everyone),
            table(["NDCG@10", *groups], by_group),
            document["protocol"],
            "± half of the 95 % interval over users. Stars: paired t-test over users against "
            f"{against}, Holm's correction (* p < .05, ** p < .01, *** p < .001).",
        )
    )


def speed(name: str) -> str:
    """SASRec's epoch and evaluation, compared with the arithmetic and other libraries."""
    r = _read(name)
    alone = r["threads"] == 1  # the processor's seconds then say what the clock would alone
    kind = "_cpu_s" if alone else "_s"
    floor, ours = r["arithmetic_s"], r[f"epoch_fp32{kind}"]
    ranked = r[f"evaluate{kind}"]
    rows = [
        ("arithmetic (fp32, at the throughput of a 2048² product)", floor, None),
        ("diffuserec, fp32", ours, ranked),
        ("diffuserec, bf16", r[f"epoch_bf16{kind}"], None),
    ]
    for peer in r["peers"].values():
        epoch, evaluation = peer["seconds_per_epoch"], peer["evaluation_seconds"]
        if alone:
            worked = peer["epoch_cpu_seconds"]
            epoch = statistics.median(worked[1:] or worked)  # the first may warm up
            evaluation = peer["evaluation_cpu_seconds"]
        rows.append((peer["name"], epoch, evaluation))
    body = [
        [
            name,
            f"{epoch:.2f} s",
            f"{epoch / floor:.2f}",
            f"{epoch / ours:.2f}",
            "" if evaluation is None else f"{evaluation:.2f} s",
            "" if evaluation is None else f"{evaluation / ranked:.2f}",
        ]
        for name, epoch, evaluation in rows
    ]
    header = ["SASRec softmax", "an epoch", "times the arithmetic", "times diffuserec, fp32"]
    header += ["ranking all users", "times diffuserec"]
    lines = [
        f"{r['flops']:.3g} floating-point operations an epoch; a 2048² fp32 product ran at "
        f"{r['matmul_gflops']:.0f} GFLOP/s before and {r['matmul_gflops_after']:.0f} after the "
        f"epochs; {r['threads']} threads; {r['log']}."
    ]
    if alone:
        lines[0] = lines[0].replace("1 threads", "1 thread, seconds of the processor")
    lines += [f"Not measured: {reason}." for reason in r["left_out"].values()]
    return "\n\n".join([table(header, body), *lines])


def arithmetic() -> str:
    """Seconds of each form of work beside its arithmetic, and where the time of others goes."""
    document = _read("arithmetic")
    body, profiles = [], []
    for name, precisions in document["forms"].items():
        for precision, found in precisions.items():
            body.append(
                [
                    name,
                    precision,
                    f"{found['seconds']:.2f} s",
                    f"{found['flops']:.2e}",
                    f"{found['gflops_a_second']:.0f}",
                    f"{found['ratio']:.2f}",
                ]
            )
            if "profile" in found:
                top = ", ".join(f"`{key}` {share:.0%}" for key, share in found["profile"][:5])
                profiles.append(f"- {name}, {precision}: {top}")
    header = ["form", "precision", "measured", "operations", "GFLOP/s of a 2048² product"]
    text = table([*header, "ratio to arithmetic"], body)
    text += f"\n\n{document['log']}, {document['threads']} thread(s)."
    if profiles:
        text += " Where the ratio is above 2 (fp32) or 1.5 (bf16), the time goes to:\n\n"
    return text + "\n".join(profiles)


def training_forms() -> str:
    """Seconds of an epoch of each form of training, beside those of the first."""
    document = _read("forms_speed")
    body = [
        [name, f"{found['median_s']:.2f} s", f"{found['times_first']:.2f}"]
        for name, found in document["forms"].items()
    ]
    users = "all" if document["users"] is None else f"{document['users']:,}"
    text = table(["form", "an epoch", "times the first"], body)
    threads = "1 thread" if document["threads"] == 1 else f"{document['threads']} threads"
    runs = len(next(iter(document["forms"].values()))["all_s"])
    return (
        f"{text}\n\nMedian processor seconds of {runs} turns; {document['precision']}, {threads}; "
        f"{document['log']}, {users} users."
    )


def gpu() -> str:
    """A training on a GPU: seconds, memory, utilization and waits of a step."""
    document = _read("gpu")
    body = [
        [
            name,
            f"{found['users']:,}",
            f"{found['items']:,}",
            f"{found['interactions']:,}",
            f"{found['epoch_s']:.1f} s",
            f"{found['peak_gib']:.1f} GiB",
            "" if found["utilization"] is None else f"{found['utilization']:.0%}",
            f"{found['waits_a_step']:.1f}",
        ]
        for name, found in document["sizes"].items()
    ]
    header = ["log", "users", "items", "interactions", "an epoch", "memory", "utilization"]
    lines = [
        f"{document['device']}, torch {document['torch']}, {document['precision']}; "
        f"{document['whole_s']:.0f} s in all."
    ]
    for name, found in document["sizes"].items():
        if "losses_ms" in found:
            times = ", ".join(f"{key} {ms:.1f}" for key, ms in found["losses_ms"].items())
            lines.append(f"Milliseconds of the softmax cross entropy, {name}: {times}.")
    lines += [f"Left out for want of time: {name}." for name in document["left_out"]]
    return "\n\n".join([table([*header, "waits a step"], body), *lines])


def preparing() -> str:
    """Reading a CSV of 2 to 20 million interactions into a prepared dataset."""
    lines = [
        [
            f"{size['interactions']:,}",
            f"{size['seconds']:.1f}",
            f"{size['interactions'] / size['seconds']:,.0f}",
            f"{size['peak_gib']:.2f}",
        ]
        for size in _read("prepare")
    ]
    return table(["interactions", "seconds", "interactions a second", "peak GiB"], lines)


def catalog() -> str:
    """Steps, requests and evaluation by the number of items."""
    found = _read("catalog")
    first = next(iter(found["step"].values()))["step_ms"]
    lines = []
    for n_items, step in found["step"].items():
        asked = found["requests"].get(n_items)
        cells = [f"{step['step_ms']:.0f}", f"{step['step_ms'] / first:.2f}"]
        cells += [f"{step['epoch_end_s']:.1f}", f"{step['peak_gib']:.1f}"]
        if asked is not None:
            cells += [f"{asked['exact_ms']:.1f}", f"{asked['approximate_ms']:.1f}"]
            cells += [f"{asked['recall']:.1%}", f"{asked['index_s']:.1f}"]
        lines.append([f"{int(n_items):,}", *cells, *[""] * (8 - len(cells))])
    header = ["items", "step, ms", "times the first", "end of an epoch, s", "training, GiB"]
    header += ["exact request, ms", "approximate, ms", "recall@10", "index, s"]
    (n_items, ranked), *_ = found["evaluation"].items()
    return (
        f"{table(header, lines)}\n\nFull ranking of {ranked['users']:,} users among "
        f"{int(n_items):,} items: {ranked['seconds']:.0f} s, {ranked['peak_gib']:.2f} GiB at most, "
        f"of which {ranked['before_gib']:.2f} before it began. Processor time of one thread."
    )


def learned() -> str:
    """What is learned of a large catalog, beside the trivial baselines and the best possible."""
    ((n_items, found),) = _read("catalog")["learning"].items()
    body = [
        [name, f"{metrics['HR@10']:.4f}", f"{metrics['NDCG@10']:.4f}"]
        for name, metrics in found["metrics"].items()
    ]
    return (
        f"{table(['', 'HR@10', 'NDCG@10'], body)}\n\nA log of the built-in store: "
        f"{int(n_items):,} items, of which {found['occurring']:,} occur, {found['users']:,} users, "
        f"{found['interactions']:,} interactions. SASRec was trained for {found['epochs']} epochs "
        f"in {found['seconds']:,.0f} processor seconds of one thread, with "
        f"{found['peak_gib']:.1f} GiB at most; {found['measured']:,} users' last items are ranked "
        "among all items."
    )


def large_logs() -> str:
    """Preparing and training from disk, by the number of interactions."""
    document = _read("out_of_core")
    names = {
        "sort alone": "Polars alone: scan and sort",
        "prepare": f"`prepare --memory {document['memory']}`",
        "train": f"SASRec, first {document['steps']} steps",
    }
    body, lines = [], []
    for size in document["sizes"]:
        n = size["interactions"]
        for step, name in names.items():
            if step not in size:
                lines.append(f"{n:,} interactions: Polars' sort left out for want of memory.")
                continue
            found = size[step]
            body.append(
                [
                    f"{n:,}",
                    name,
                    f"{found['seconds']:.1f}",
                    f"{found['processor']:.1f}",
                    "" if step == "train" else f"{n / found['seconds'] / 1e6:.2f}",
                    f"{found['own_mib']:,.0f} MiB",
                    f"{found['resident_mib']:,.0f} MiB",
                ]
            )
        if "sort alone" in size:
            clock, processor = (
                size["prepare"][what] / size["sort alone"][what]
                for what in ("seconds", "processor")
            )
            lines.append(
                f"{n:,} interactions: `prepare` took {clock:.2f} times the seconds that the sort "
                f"took, and {processor:.2f} times those of the processors."
            )
    small, large = (document["sizes"][at]["train"]["own_mib"] for at in (0, -1))
    lines.append(f"Memory of training, the largest log to the smallest: {large / small:.2f}.")
    header = ["interactions", "", "seconds", "of processors", "million rows a second"]
    header += ["memory of its own", "resident at its peak"]
    return table(header, body) + "\n\n" + "\n".join(lines)


def processes() -> str:
    """Training by several processes beside one."""
    document = _read("processes")
    body = [
        [
            str(found["batch"]),
            str(found["world"]),
            f"{max(found['processor']):.1f}",
            f"{found['loss']:.5f}",
            f"{found['metric']:.4f}",
            f"{found['differences']['table.vectors.weight']:.0e}" if found["world"] > 1 else "",
        ]
        for found in document["runs"]
    ]
    header = ["users a batch", "processes", "processor seconds of the busiest, an epoch", "loss"]
    header += ["validation NDCG@10", "largest difference of an item vector"]
    return (
        f"{table(header, body)}\n\nSASRec, width {document['dim']}, {document['users']:,} users "
        f"and {document['items']:,} items of the built-in store, full softmax, dropout, "
        f"{document['epochs']} epochs in single precision, one thread for each process."
    )


def generated(name: str, part: str) -> str:
    """A part of a measurement of generated items: lines by name, columns by metric."""
    measured: dict[str, dict[str, float]] = _read(name)[part]
    columns = list(dict.fromkeys(column for values in measured.values() for column in values))
    body = [
        [line, *(f"{values[c]:.4g}" if c in values else "" for c in columns)]
        for line, values in measured.items()
    ]
    return table(["", *columns], body)


def hidden_beginnings(name: str) -> str:
    """Hit share of generated items by condition, and what else is known of them for the first."""
    document = _read(name)
    ours = document.get("against_maskdiff", {})
    own = {row: settings for row, settings in document["settings"].items() if settings}

    def cell(row: str, condition: str) -> str:
        found = document["rows"][row][condition]
        text = f"{found['hit']:.4f} ± {found['margin']:.4f}"
        p = ours.get(row, {}).get(condition, {}).get("p")
        return text if p is None else f"{text} (p {p:.2g})"

    conditions = list(next(iter(document["rows"].values())))
    others = ("own", "distinct", "jaccard", "calibration_error", "cpu_ms_per_user")
    lines = []
    for row, found in document["rows"].items():
        first = found[conditions[0]]
        rest = ["" if first[other] is None else f"{first[other]:.3g}" for other in others]
        lines.append([row, *(cell(row, condition) for condition in conditions), *rest])
    header = ["", *conditions, *(other.replace("_", " ") for other in others)]
    return (
        f"{table(header, lines)}\n\n{document['log']}: {document['users']:,} users, "
        f"{document['items']:,} items; {document['hidden_users']:,} users with "
        f"{document['n_items']} hidden items each, one seed. Share of generated items that are "
        "among the hidden ones, ± half of the 95 % interval over users; p of the paired difference "
        "from maskdiff, not corrected. The other columns are of the first condition. Settings that "
        f"are not the defaults: {_words(own) if own else 'none'}."
    )


def remembered() -> str:
    """Targets among the items in front of them: of users an augmenter learned from, and others."""
    document = _read("remembered")
    lines, columns, excess = [], [], []
    for name, augmenter in document["augmenters"].items():
        settings = [f"{setting} {value}" for setting, value in augmenter["settings"].items()]
        label = ", ".join([name, *settings])
        for group, found in augmenter["found"].items():
            columns = list(found)
            shares = [f"{cell['share']:.2%} ± {cell['margin']:.2%}" for cell in found.values()]
            lines.append([label, group, *shares])
        learned, others = augmenter["found"]["learned from"], augmenter["found"]["others"]
        parts = ("training", "validation")
        more = [learned[part]["share"] - others[part]["share"] for part in parts]
        margins = [by[part]["margin"] for by in (learned, others) for part in parts]
        excess.append(f"{label} {more[0] - more[1]:+.2%} ± {math.hypot(*margins):.2%}")
    return (
        f"{table(['augmenter', 'users', *columns], lines)}\n\nRemembered: how much more of the "
        f"training targets among users that were learned from than among others, less the same of "
        f"validation targets: {', '.join(excess)}.\n\n{document['log']}: fitted on "
        f"{document['learned_from']:,} of {document['users']:,} users, one seed, "
        f"{document['precision']}. Share of targets among the items in front of them, ± half of "
        "its 95 % interval over users; columns of numbers are training targets by their distance "
        "from the first item, which the items in front follow from."
    )


def augmenting() -> str:
    """Seconds to augment every history of the log."""
    document = _read("diffuasr_speed")
    r = document["everyone"]
    return (
        f"All {r['users']:,} users of {document['log']} at 50 DDIM steps with classifier-free "
        f"guidance: {r['wall_s']:.0f} s on {r['threads']} threads, {r['peak_gib']:.1f} GiB at most."
    )


def trials(name: str) -> str:
    """Trials on validation, one line a run."""
    lines = [
        [
            trial["what"],
            trial["batches"],
            f"{trial['best']:.4f}",
            f"{trial['best_epoch']} of {trial['epochs']}",
            *(f"{trial[at]:.4f}" if trial[at] else "" for at in ("epoch_5", "epoch_10")),
            f"{trial['seconds_per_epoch']:.0f}",
        ]
        for trial in _read(name)
    ]
    header = ["tried", "batches", "best", "epoch", "after 5", "after 10", "s an epoch"]
    return table(header, lines)


def costs(name: str) -> str:
    """Seeds, epochs, best validation metric and training time of an experiment's variants."""
    runs = [run for run in _read(name)["training"] if run["epochs"]]
    lines = []
    for method in dict.fromkeys(run["method"] for run in runs):
        own = [run for run in runs if run["method"] == method]
        lines.append(
            [
                method,
                *(
                    " / ".join(form(run[what]) for run in own)
                    for what, form in (
                        ("seed", str),
                        ("epochs", str),
                        ("best_valid", "{:.4f}".format),
                        ("seconds", "{:.0f}".format),
                    )
                ),
            ]
        )
    return table(["method", "seed", "epochs", "best validation NDCG@10", "training, s"], lines)


def calibrated(name: str) -> str:
    """Hit rates of the most and least certain tenths."""
    lines = []
    for method, found in _read(name).items():
        for what, bins in found["bins"].items():
            if len({tenth["predicted"] for tenth in bins}) < 2:
                continue
            first, last = bins[0], bins[-1]
            error = f"{found['expected_calibration_error']:.4f}" if what == "confidence" else ""
            lines.append(
                [
                    method,
                    what,
                    *(
                        text
                        for tenth in (first, last)
                        for text in (
                            f"{tenth['predicted']:.4g}",
                            f"{tenth['observed']:.4f} ± {tenth['margin']:.4f}",
                        )
                    ),
                    error,
                ]
            )
    header = ["method", "certainty", "lowest tenth", "HR@10", "highest tenth", "HR@10", "error"]
    return table(header, lines)


def curves(*names: str) -> str:
    """Tables and figures of sensitivity studies."""
    parts = []
    for name in names:
        text = (RESULTS / "curves" / f"{name}.md").read_text(encoding="utf-8").strip()
        parts.append(f"{text}\n\n![{name}](../lab/results/curves/{name}.svg)")
    return "\n\n".join(parts)


def kept(name: str) -> str:
    """Metrics of runs with seen items not filtered, one seed each."""
    lines = [
        [data, method, f"{m['HR@10']:.4f}", f"{m['NDCG@10']:.4f}"]
        for data, methods in _read(name).items()
        for method, m in methods.items()
    ]
    return table(["seen items not filtered", "method (seed 0)", "HR@10", "NDCG@10"], lines)


def unfiltered(name: str) -> str:
    """An experiment's variants with seen items not filtered, seeds averaged."""
    metrics = ("HR@5", "HR@10", "NDCG@5", "NDCG@10", "MRR")
    lines = [
        [method, *(f"{found[m]:.4f}" for m in metrics)]
        for method, found in _read(name)["seen_not_filtered"].items()
    ]
    return table(["seen items not filtered", *metrics], lines)


def losses(name: str) -> str:
    """Test metrics of each method with each loss, and the gain over SASRec with that loss."""
    cells = {
        (r["method"], r["metric"]): r["value"]
        for r in _read(name)["summary"]
        if r["group"] == "all"
    }
    methods = dict.fromkeys(m.rpartition(" ")[0] for m, _ in cells if m.endswith("softmax"))
    lines = []
    for method in methods:
        line = [method]
        for loss in ("bce", "softmax"):
            for metric in ("HR@10", "NDCG@10"):
                value = cells.get((f"{method} {loss}", metric))
                reference = cells.get((f"SASRec {loss}", metric))
                if value is None or reference is None:
                    line.append("")
                else:
                    line.append(f"{value:.4f} ({value / reference - 1:+.1%})")
        lines.append(line)
    heads = [f"{loss} {metric}" for loss in ("bce", "softmax") for metric in ("HR@10", "NDCG@10")]
    return table(["method", *heads], lines)


LOGS = {
    "Beauty": (
        "contrastive_beauty",
        "baselines_beauty",
        "diff4rec_beauty",
        "augmentation_beauty",
        "diffrec_beauty",
    ),
    "ML-1M": (
        "contrastive_ml-1m",
        "baselines_ml-1m",
        "diff4rec_ml-1m",
        "augmentation_ml-1m",
        "diffrec_ml-1m",
    ),
}
"""Experiments of each log; the first variant of each is SASRec with the softmax."""


def measured(name: str) -> list[dict[str, Any]]:
    """An experiment's variants: label, cells, p against the reference, seeds and cost."""
    document = _read(name)
    file = ROOT / "docs" / "lab" / "experiments" / f"{name.removesuffix('_beauty')}.toml"
    variants = {v["name"]: v for v in tomllib.loads(file.read_text(encoding="utf-8"))["variants"]}
    caps = {label: v.get("settings", {}).get("epochs") for label, v in variants.items()}
    summary = {(r["method"], r["metric"]): r for r in document["summary"] if r["group"] == "all"}
    tests = {(r["method"], r["metric"]): r for r in document["comparisons"] if r["group"] == "all"}
    found = []
    for label in dict.fromkeys(m for m, _ in summary):
        runs = [run for run in document.get("training", []) if run["method"] == label]
        metrics = [summary[label, m] for m in ("HR@10", "NDCG@10")]
        test = tests.get((label, "NDCG@10"))
        free = document.get("seen_not_filtered", {}).get(label)
        found.append(
            {
                "label": label,
                "n_seeds": metrics[0]["n_seeds"],
                "cells": [f"{m['value']:.4f} ± {m['margin']:.4f}" for m in metrics],
                "ndcg": metrics[1]["value"],
                "p": "" if test is None else f"{test['p_holm']:.2g} ({test['reference']})",
                "unfiltered": f"{free['HR@10']:.4f} / {free['NDCG@10']:.4f}" if free else "",
                "reference": None if test is None else test["reference"],
                "epochs": [run["epochs"] for run in runs],
                "ended_early": any(run["epochs"] == caps.get(label) for run in runs),
                "seconds": [run["seconds"] for run in runs],
                "settings": settings_of(variants[label]) if label in variants else "",
            }
        )
    return found


def settings_of(variant: dict[str, Any]) -> str:
    """Settings of an experiment's variant that are not defaults; an augmenter's after its name."""
    words = _beyond(dr.find_recommender(variant["model"]), variant.get("settings", {}))
    if "augment" in variant:
        method = dr.find_augmenter(variant["augment"])
        more = _beyond(method, variant.get("augment_settings", {}))
        words += f"; {variant['augment']}{': ' if more else ''}{more}"
    return words


def _beyond(method: Any, settings: dict[str, Any]) -> str:
    defaults = method().config.model_dump()
    return ", ".join(
        f"{name} {_words(value)}" for name, value in settings.items() if value != defaults[name]
    )


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {part}" for name, part in value.items()) + ")"
    return str(value)


def differences(name: str) -> str:
    """Differences that augmentation makes to the metrics of all users, with intervals."""
    lines = [
        [
            test["method"],
            test["reference"],
            test["metric"],
            f"{test['difference']:+.4f}",
            f"{test['low']:+.4f} to {test['high']:+.4f}",
            f"{test['p_holm']:.2g}",
            (
                ""
                if test.get("p_seeds") is None
                else f"{test['p_seeds']:.2g} ({test['n_seeds']} seeds)"
            ),
        ]
        for test in _read(name)["comparisons"]
        if test["group"] == "all"
        and test["metric"] in ("HR@10", "NDCG@10")
        and "+" in test["method"]
    ]
    header = ["method", "against", "metric", "difference", "95 % interval over users", "p, Holm"]
    return table([*header, "p over seeds"], lines)


def variants_of(method: str) -> str:
    """Variants of a method in the experiments, SASRec's with them, and their cost."""
    lines: list[list[str]] = []
    shown: list[tuple[str, Any, Any]] = []
    for log, names in LOGS.items():
        for name in names:
            if not (RESULTS / f"{name}.json").exists():
                continue
            found = measured(name)
            own = [v for v in found if method in v["label"]]
            if not own:
                continue
            others = {v["reference"] for v in own} | {found[0]["label"]}
            for v in found:
                same = (log, v["label"], v["cells"])  # a run of two experiments
                if v["epochs"] and (v in own or v["label"] in others) and same not in shown:
                    shown.append(same)
                    seconds = sum(v["seconds"])
                    lines.append(
                        [
                            log,
                            v["label"],
                            str(v["n_seeds"]),
                            *v["cells"],
                            v["p"],
                            v["unfiltered"],
                            f"{seconds / v['n_seeds']:.0f}",
                            f"{seconds / max(1, sum(v['epochs'])):.0f}",
                            v["settings"],
                        ]
                    )
    if not lines:
        raise FileNotFoundError(2, "no results", method)
    header = ["log", "variant", "seeds", "HR@10", "NDCG@10", "p of NDCG@10, Holm (against)"]
    return table([*header, "seen not filtered", "s a run", "s an epoch", "settings"], lines)


def leaderboard(log: str) -> str:
    """Every variant of the log's experiments and the trivial baselines, best NDCG@10 first."""
    every: dict[str, dict[str, Any]] = {}
    for name in LOGS[log]:
        if (RESULTS / f"{name}.json").exists():
            for variant in measured(name):
                same = every.get(variant["label"])
                if same is not None and same["cells"] != variant["cells"]:
                    # another run of that name: other settings, or other seeds
                    variant["label"] += f" ({name.removesuffix('_beauty')})"
                every.setdefault(variant["label"], variant)
    if not every:
        raise FileNotFoundError(2, "no results", log)
    body = [
        [
            variant["label"],
            str(variant["n_seeds"]),
            *variant["cells"],
            variant["p"],
            variant["unfiltered"],
            " / ".join(map(str, variant["epochs"])),
            " / ".join(f"{seconds:.0f}" for seconds in variant["seconds"]),
        ]
        for variant in sorted(every.values(), key=lambda variant: -variant["ndcg"])
    ]
    header = [log, "seeds", "HR@10", "NDCG@10", "p of NDCG@10, Holm (against)"]
    return table([*header, "seen not filtered", "epochs", "training, s"], body)


def trained(name: str) -> str:
    """Trials on validation: settings, the best metric and those after some epochs."""
    lines = []
    for trial in _read(name):
        valid = trial["valid"]
        lines.append(
            [
                trial["what"],
                *(f"{valid[at - 1]:.4f}" if len(valid) >= at else "" for at in (3, 5, 7, 8)),
                f"{max(valid):.4f}",
                f"{valid.index(max(valid)) + 1} of {len(valid)}",
            ]
        )
    header = ["what", "after 3 epochs", "5", "7", "8", "best", "epoch"]
    return table(header, lines)


def forms(name: str) -> str:
    """DiffRec's two forms: best validation metric so far at equal updates and at equal time."""
    found = _read(name)

    def best(form: dict[str, Any], spent: list[float], limit: float) -> str:
        inside = [v for v, at in zip(form["valid"], spent, strict=True) if at <= limit]
        if not inside or limit > 1.1 * spent[-1]:
            return ""
        return f"{max(inside):.4f}"

    updates = [1000, 2000, 4000, 6000, 8000]
    minutes = [2, 4, 6, 8]
    lines = []
    for form in found.values():
        n = len(form["valid"])
        steps = [(i + 1) * float(form["updates_per_epoch"]) for i in range(n)]
        clock = [sum(form["seconds"][: i + 1]) / 60 for i in range(n)]
        lines.append(
            [
                form["name"],
                *(best(form, steps, limit) for limit in updates),
                *(best(form, clock, limit) for limit in minutes),
                f"{sorted(form['seconds'])[n // 2]:.0f}",
            ]
        )
    header = ["validation NDCG@10", *(f"{u:,} updates" for u in updates)]
    header += [*(f"{m} min" for m in minutes), "s an epoch, one thread"]
    return table(header, lines)


def cosines(*names: str) -> str:
    """Mean pairwise cosine of the item table by epoch."""
    lines = []
    for name in names:
        epochs = _read(name)
        shown = [0, 1, 2, 4, 9, 19, 29, 39, 59]
        picked = [epochs[at] for at in shown if at < len(epochs)]
        lines += [
            [
                name,
                str(e["epoch"] + 1),
                f"{e['watched']['mean pairwise cosine']:.4f}",
                f"{e['watched']['mean norm']:.2f}",
                f"{e['loss']:.3f}",
                f"{e['valid']:.4f}",
            ]
            for e in picked
        ]
    header = ["run", "epoch", "mean pairwise cosine", "mean norm", "loss", "validation NDCG@10"]
    return table(header, lines)


def ratios(*names: str) -> str:
    """DiffRec's cost compared with SASRec's."""
    documents = [_read(name) for name in names if (RESULTS / f"{name}.json").exists()]
    keys = list(dict.fromkeys(key for d in documents for key in d["ratios"]))
    lines = [
        [key, *(f"{d['ratios'][key]:.2f}" if key in d["ratios"] else "" for d in documents)]
        for key in keys
    ]
    heads = [f"{d['data']} (mean history {d['mean history']:.1f})" for d in documents]
    accuracy = [
        [d["data"], name, *(f"{m[k]:.4f}" for k in ("HR@10", "NDCG@10", "MRR"))]
        for d in documents
        for name, m in d["valid"].items()
        if name != "sasrec"
    ]
    return "\n\n".join(
        (
            table(["ratio of medians, 2 threads", *heads], lines),
            table(["validation", "ranking", "HR@10", "NDCG@10", "MRR"], accuracy),
        )
    )


def epoch_costs(name: str, only: str | None = None) -> str:
    """Seconds of an epoch of the contrastive methods, compared with SASRec's."""
    document = _read(name)
    lines = [
        [
            model,
            f"{sorted(found['seconds'])[len(found['seconds']) // 2]:.1f}",
            f"{found['times_sasrec']:.2f}",
            f"{found['memory_grown_mib']:.0f}",
        ]
        for model, found in document["models"].items()
        if only in (None, model)
    ]
    note = (
        f"{document['data']}, {document['precision']}, {document['threads']} threads, models in "
        f"turns, median of {len(document['models']['sasrec']['seconds'])} turns."
    )
    header = ["epoch", "seconds", "times SASRec", "MiB more at its peak than those above"]
    return f"{table(header, lines)}\n\n{note}"


def viewed(name: str) -> str:
    """Metrics of views over many sequences, from `diffuserec views --json`."""
    document = _read(name)
    metrics = [ViewMetrics(**found) for found in document["metrics"]]
    lines = [[label, *cells] for label, cells in metric_table(metrics)]
    note = f"Over {document['n_sequences']:,} training sequences of one trained model."
    return f"{table(['', *(m.view for m in metrics)], lines)}\n\n{note}"


def service() -> str:
    """Latency, errors and memory of the service over the time of its load."""
    found = _read("serve_load")
    names = [f"{number}. tenth" for number in range(1, 11)] + ["all"]
    lines = [
        [
            name,
            f"{part['requests']:,}",
            f"{part['errors']:,}",
            *(f"{part[key]:.1f}" for key in ("p50_ms", "p99_ms", "max_ms")),
            f"{part['memory_mib']:.0f}",
        ]
        for name, part in zip(names, found["steady"], strict=True)
    ]
    settings, whole, flood = found["settings"], found["steady"][-1], found["overload"]
    counts = ", ".join(f"{n:,} of status {status}" for status, n in flood["statuses"].items())
    return (
        table(["time", "requests", "errors", "p50 ms", "p99 ms", "longest ms", "MiB"], lines)
        + f"\n\n{float(settings['rate']):.0f} requests a second were sent for "
        f"{float(settings['seconds']):.0f} s and {whole['a_second']:.1f} answered; "
        f"{whole['processor_ms']:.2f} ms of processor time each. SASRec, width {settings['dim']}, "
        f"{int(settings['items']):,} items, {settings['threads']} thread. Beside other work: the "
        f"load of the machine was {found['load_before'][0]:.1f} on two cores before, the priority "
        f"(nice) {found['nice']}. {int(settings['overload']):,} requests at once: {counts}; one "
        f"after them: {flood['after']}.{_killed(found.get('kill'))}"
    )


def warm_started() -> str:
    """A model that starts from an earlier one, against a training from nothing."""
    lines = []
    for name in ("warm_start", "warm_start_ml-1m", "warm_start_beauty"):
        document = _read(name)
        given = document["given"]
        log = given["log"] if given["log"].lower() != "none" else "built-in store"
        for run in document["runs"]:
            epochs, ndcg = run["epochs"], run["ndcg"]
            few = ndcg["full, as few epochs as warm"]
            lines.append(
                [
                    f"{log}, {int(given['users']):,} users",
                    f"{run['share_added']:.0%}",
                    f"{run['n_queries']:,}",
                    f"{ndcg['full']:.4f} ({epochs['full']} epochs)",
                    f"{ndcg['warm']:.4f} ({epochs['warm']})",
                    f"{few:.4f} ({epochs['warm']})",
                    f"{ndcg['warm'] / ndcg['full']:.0%}",
                ]
            )
    header = ["log", "new", "queries", "from nothing", "started", "as short from nothing"]
    return table([*header, "reached"], lines)


def _killed(found: Any) -> str:
    if found is None:
        return ""
    return (
        f" Killed (SIGKILL) with {found['accepted']} batch jobs of {found['histories']:,} "
        f"histories accepted, beside requests, and started again: {found['done']} were done."
    )


def _read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


PLACES: dict[str, Callable[[], str]] = {
    "service": service,
    "warm_start": warm_started,
    "floors": floors,
    "augmentation": lambda: f"{report('augmentation_beauty')}\n\n{costs('augmentation_beauty')}",
    "sasrec": lambda: report("sasrec_ml-1m"),
    "speed": lambda: speed("sasrec_epoch"),
    "speed_beauty": lambda: speed("sasrec_epoch_beauty"),
    "arithmetic": arithmetic,
    "forms_speed": training_forms,
    "gpu": gpu,
    "prepare": preparing,
    "catalog": catalog,
    "learned": learned,
    "large_logs": large_logs,
    "processes": processes,
    "scale": scale,
    "diffuasr_learned": lambda: generated("diffuasr_beauty", "learned"),
    "diffuasr_store": lambda: generated("diffuasr_store", "learned"),
    "diffuasr_steps": lambda: generated("diffuasr_beauty", "steps"),
    "diffuasr_speed": augmenting,
    "generation_beauty": lambda: hidden_beginnings("generation_beauty"),
    "generation_subset": lambda: hidden_beginnings("generation_subset"),
    "generation_store": lambda: hidden_beginnings("generation_store"),
    "remembered": remembered,
    "diffrec": lambda: f"{report('diffrec_beauty')}\n\n{costs('diffrec_beauty')}",
    "diffrec_ml-1m": lambda: f"{report('diffrec_ml-1m')}\n\n{costs('diffrec_ml-1m')}",
    "diffrec_kept": lambda: kept("diffrec_kept"),
    "diffrec_forms": lambda: forms("diffrec_forms"),
    "diffrec_trials": lambda: trials("diffrec_trials"),
    "diffrec_calibration": lambda: calibrated("diffrec_calibration"),
    "diffrec_curves": lambda: curves("schedules", "steps", "embeddings", "noising", "draws"),
    "diffrec_speed": lambda: ratios("diffrec_speed", "diffrec_speed_ml-1m"),
    "contrastive": lambda: f"{report('contrastive_beauty')}\n\n{costs('contrastive_beauty')}",
    "contrastive_ml-1m": lambda: f"{report('contrastive_ml-1m')}\n\n{costs('contrastive_ml-1m')}",
    "contrastive_ml-1m_4_epochs": lambda: report("contrastive_ml-1m_4_epochs"),
    "contrastive_kept": lambda: unfiltered("contrastive_beauty"),
    "contrastive_kept_ml-1m": lambda: unfiltered("contrastive_ml-1m"),
    "contrastive_losses": lambda: losses("contrastive_beauty"),
    "contrastive_speed": lambda: epoch_costs("contrastive_speed"),
    "cadirec_speed": lambda: epoch_costs("contrastive_speed", "cadirec"),
    "simdiffrec_views": lambda: viewed("simdiffrec_views"),
    "simdiffrec_trials": lambda: trained("simdiffrec_trials"),
    "simdiffrec_curves": lambda: curves(
        *(f"simdiffrec_{w}" for w in ("contrast", "diffusion", "k_sample", "k_noise", "ablation"))
    ),
    **{
        f"rows_{name}": lambda label=label: variants_of(label)
        for name, label in (
            ("cl4srec", "CL4SRec"),
            ("duorec", "DuoRec"),
            ("mclrec", "MCLRec"),
            ("ecl", "ECL-SR"),
            ("contrarec", "ContraRec"),
            ("cadirec", "CaDiRec"),
            ("gru4rec", "GRU4Rec"),
            ("caser", "Caser"),
            ("bert4rec", "BERT4Rec"),
            ("s3rec", "S3Rec"),
            ("stosa", "STOSA"),
            ("vsan", "VSAN"),
            ("acvae", "ACVAE"),
            ("mfgan", "MFGAN"),
            ("bpr", "BPR"),
            ("neumf", "NeuMF"),
            ("random", "Random"),
            ("asrep", "ASReP"),
            ("maskdiff", "MaskDiff"),
            ("diffuasr", "DiffuASR"),
            ("diff4rec", "Diff4Rec"),
        )
    },
    "baselines": lambda: f"{report('baselines_beauty')}\n\n{costs('baselines_beauty')}",
    "baselines_ml-1m": lambda: f"{report('baselines_ml-1m')}\n\n{costs('baselines_ml-1m')}",
    "diff4rec_curriculum": lambda: differences("diff4rec_curriculum"),
    "diff4rec_differences": lambda: differences("diff4rec_beauty"),
    "diff4rec_ml-1m_differences": lambda: differences("diff4rec_ml-1m"),
    "augmentation_ml-1m": lambda: differences("augmentation_ml-1m"),
    "augmentation_differences": lambda: differences("augmentation_beauty"),
    "diff4rec": lambda: f"{report('diff4rec_beauty')}\n\n{costs('diff4rec_beauty')}",
    "diff4rec_ml-1m": lambda: f"{report('diff4rec_ml-1m')}\n\n{costs('diff4rec_ml-1m')}",
    "leaderboard_beauty": lambda: leaderboard("Beauty"),
    "leaderboard_ml-1m": lambda: leaderboard("ML-1M"),
    "sasrec_bce_trials": lambda: trained("sasrec_bce_trials"),
    "acvae_trials": lambda: trained("acvae_trials"),
    "bert4rec_trials": lambda: trained("bert4rec_trials"),
    "diff4rec_generator_trials": lambda: trained("diff4rec_generator_trials"),
    "diff4rec_trials": lambda: trained("diff4rec_trials"),
    "diff4rec_learned": lambda: generated("diff4rec_beauty_generator", "recall"),
    "dreamrec_cosines": lambda: cosines("dreamrec_beauty", "dreamrec_ml-1m"),
}


def main() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name, render in PLACES.items():
            pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
            if not pattern.search(text):
                continue
            try:
                made = render()
            except FileNotFoundError as missing:
                print(f"{page.name}: {name}: {missing.filename} is missing, left as it is")
                continue
            text = pattern.sub(lambda m, made=made: f"{m[1]}{made}\n{m[2]}", text)
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
