"""Studies of the tables and figures of the four papers, a file each, named ``PAPER-TABLE``."""

from importlib import resources
from pathlib import Path

from diffuserec.data import load_dataset
from diffuserec.errors import ConfigError, did_you_mean
from diffuserec.studies.data_sets import find_data
from diffuserec.studies.published import published_names, published_table
from diffuserec.studies.study_file import slug
from diffuserec.studies.train_run import Say
from diffuserec.tables import Cell, Record


def paper_names() -> list[str]:
    """Names of all tables and figures that there is a study of."""
    files = resources.files(__name__).iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def data_names() -> list[str]:
    """Names of the papers' tables of data sets."""
    return published_names("statistics")


def data_table(name: str, where: Path, out: Path, say: Say) -> tuple[list[Record], list[str]]:
    """The sizes of the data sets of a paper: counted here beside those that it prints.

    Returns:
        A record a data set; and, for each that is not there, what to do.
    """
    statistics = published_table(name).statistics
    names = [slug(str(row[0])) for row in statistics.rows]
    found, skipped = find_data(names, where, out / "data", None, say)
    records: list[Record] = []
    for row in statistics.rows:
        title = str(row[0])
        counted = _sizes(found[slug(title)]) if slug(title) in found else {}
        printed = dict(zip(statistics.columns, map(float, row[1:]), strict=True))
        record: dict[str, Cell] = {"data set": title}
        for column in statistics.columns:
            record[column] = counted.get(column)
            record[f"{column} published"] = _whole(printed[column])
        records.append(record)
    return records, [f"{name} was left out: {why}" for name, why in skipped.items()]


def _sizes(path: Path) -> dict[str, Cell]:
    dataset = load_dataset(path)
    n_users, n_items, n = len(dataset), dataset.catalog.n_items, len(dataset.items)
    return {
        "users": n_users,
        "items": n_items,
        "interactions": n,
        "mean length": round(n / n_users, 2),
        "sparsity %": round(100 * (1 - n / (n_users * n_items)), 2),
    }


def _whole(number: float) -> Cell:
    return int(number) if number.is_integer() else number


def paper_study(name: str) -> Path:
    """The study file of a table or figure.

    Raises:
        ConfigError: there is none of that name.
    """
    names = paper_names()
    if name not in names:
        names = sorted([*names, *data_names()])
        raise ConfigError(
            f"no study {name!r}{did_you_mean(name, names)}; there are: {', '.join(names)}"
        )
    return Path(str(resources.files(__name__) / f"{name}.toml"))
