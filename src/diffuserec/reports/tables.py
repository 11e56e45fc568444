"""Results as tables of any format: one record a method, written by :func:`format_table`."""

from collections.abc import Sequence

from diffuserec.errors import ConfigError, did_you_mean
from diffuserec.reports.dataset_summary import DatasetSummary
from diffuserec.reports.report import Report
from diffuserec.tables import Cell, Estimate, format_table


def results_table(
    report: Report, format: str = "text", metrics: Sequence[str] | None = None
) -> str:
    """The results of all users as a table, or one for each data set.

    Args:
        format: ``text``, ``markdown``, ``latex``, ``csv`` or ``html``.
        metrics: columns; by default all metrics of the target's rank.

    Raises:
        ConfigError: there is no such format or metric.
    """
    datasets = report.summary["dataset"].unique(maintain_order=True).to_list()
    records = {dataset: results_records(report, dataset, metrics) for dataset in datasets}
    if format == "csv":  # one file, whatever it holds
        every = [
            {"data set": dataset, **record} if len(datasets) > 1 else record
            for dataset, found in records.items()
            for record in found
        ]
        return format_table(every, format)
    tables = (format_table(found, format, title=dataset) for dataset, found in records.items())
    return "\n".join(tables)


def results_records(
    report: Report, dataset: str | None, metrics: Sequence[str] | None = None
) -> list[dict[str, Cell]]:
    """A record for each method on a data set: metrics, seeds and, where known, epochs and seconds.

    Metrics have half of their 95 % interval over users, and stars of their difference from the
    reference. The best stands out if its lead over the next is not chance.

    Args:
        metrics: of the target's rank; by default all of them.

    Raises:
        ConfigError: there is no such metric.
    """
    data = DatasetSummary(report, dataset)
    chosen = data.metrics if metrics is None else list(metrics)
    for metric in chosen:
        if metric not in data.metrics:
            raise ConfigError(
                f"no metric {metric!r}{did_you_mean(metric, data.metrics)}; there are: "
                f"{', '.join(data.metrics)}"
            )
    leads = {metric: data.leads(metric) for metric in chosen}
    records = []
    for method in data.methods:
        record: dict[str, Cell] = {"method": method}
        for metric in chosen:
            cell = data.cells.get((method, "all", metric))
            if cell is not None:
                stars = report.stars(method, dataset, metric)
                bold = leads[metric] == (method, True)
                record[metric] = Estimate(cell["value"], cell["margin"], stars, bold)
        record["seeds"] = len(data.runs[method])
        epochs = [made.epochs for made in report.made.get(method, ()) if made.epochs is not None]
        if epochs:
            record["epochs"] = epochs[0] if len(set(epochs)) == 1 else ", ".join(map(str, epochs))
        seconds = data.seconds(method)
        if seconds is not None:
            record["seconds"] = round(seconds, 1)
        records.append(record)
    return records
