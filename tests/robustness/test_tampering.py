"""Models, prepared data and runs that somebody changed: told in one line, never a traceback.

``DIFFUSEREC_CASES`` sets the number of changes to each of the three. A change is signed if the
checksums were made to fit again; then what is loaded must at least answer like a sound one.
"""

import copy
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from diffuserec.data import Catalog, SequenceDataset, Store, leave_one_out, load_dataset
from diffuserec.errors import ConfigError, DataError
from diffuserec.evaluation import evaluate
from diffuserec.models.base import Runtime
from diffuserec.models.methods import load
from diffuserec.recommenders.markov import Markov
from diffuserec.recommenders.sasrec import SASRec
from diffuserec.studies.run_directory import open_run, read_curve
from diffuserec.studies.run_file import Plan
from diffuserec.studies.train_run import train_run

from ..bundles import edit, part, sign

ODD: list[Any] = [
    *(None, True, False, -1, 0, 1, 2, 10**9, 10**30, -5, 0.5, 1e308, "", "x", "../../x", "\x00"),
    *([], [1, 2], {}, {"a": 1}, [None], "9" * 1000, "diffuserec", "ü\u202e", [[[[]]]]),
]
RAW = [
    *(b"", b"{", b"[]", b"null", b"\xff\xfe", b"NaN", b"[" * 100_000, b'{"a":' * 100_000),
    *(b'{"format": "x", "format": "y"}', b"9" * 5000, b'{"version": NaN}', b"\x00" * 100, b'"x"'),
]


def log() -> SequenceDataset:
    """Prepared data with every file that there can be."""
    plain = Store(n_users=80, n_items=40, seed=1).dataset()
    catalog = Catalog(
        pl.Series("item_id", [f"item-{n}" for n in range(plain.catalog.n_items)]),
        plain.catalog.n_users,
        pl.Series("user_id", range(plain.catalog.n_users)),
        pl.DataFrame({"name": [f"Name {n}" for n in range(plain.catalog.n_items)]}),
    )
    marks = np.zeros(len(plain.items), dtype=bool)  # none, so that it can be divided
    times = np.arange(len(plain.items)) * 1_000_000
    return SequenceDataset.from_offsets(plain.items, plain.offsets, catalog, None, marks, times)


def use_model(path: Path) -> Any:
    model = load(path)
    lists = model.recommend([["item-1", "item-2"], []], 5)
    assert len(lists) == 10
    assert lists["score"].is_finite().all()
    return lists.to_dicts()


def use_data(path: Path) -> Any:
    dataset = load_dataset(path)
    split = leave_one_out(dataset)
    model = Markov().fit(split.train, split.valid)
    return dataset.fingerprint, evaluate(model, split.test).metrics


def use_run(path: Path) -> Any:
    run = open_run(path)
    found = [run.evaluate(), run.evaluate("valid")]
    return [(f.metrics, f.per_user.to_dicts(), str(f.protocol)) for f in found], read_curve(
        path / "curve.json"
    )


USES: dict[str, Callable[[Path], Any]] = {"model": use_model, "data": use_data, "run": use_run}


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """A folder with a model, prepared data, and a run."""
    home = tmp_path_factory.mktemp("sound")
    dataset = log()
    dataset.save(home / "data", note={"source": "log.csv", "filters": "none"})
    SASRec(dim=8, epochs=1, n_layers=1, max_len=7).fit(dataset).save(home / "model")
    plan = Plan(str(home / "data"), "markov", {})
    train_run(plan, home / "run", Runtime(device="cpu", progress=False))
    return home


def refused(use: Callable[[Path], Any], path: Path) -> str | None:
    """The one line with which something is refused, or None if it is not."""
    try:
        use(path)
    except (DataError, ConfigError) as error:
        told = str(error)
    else:
        return None
    assert "\n" not in told
    assert path.name in told
    return told


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        for key, content in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(content, (*path, key))


def changed_document(document: Any, draw: random.Random) -> Any:
    """A document in which one value is replaced, removed, or has a neighbor of another name."""
    document = copy.deepcopy(document) or {"x": 1}
    *above, last = draw.choice([place for place in places(document) if place] or [("x",)])
    holder = document
    for key in above:
        holder = holder[key]
    how = draw.random()
    if how < 0.2:
        del holder[last]
    elif how < 0.3 and isinstance(holder, dict):
        holder[f"{last}x"] = holder.pop(last)
    else:
        holder[last] = draw.choice(ODD)
    return document


def damage(file: Path, draw: random.Random) -> None:
    """Changes the bytes of a file, or what stands in its place."""
    content = bytearray(file.read_bytes())
    how = draw.choice(["flip", "flip", "flip", "cut", "more", "none", "gone", "zero", "folder"])
    if how == "flip":
        for _ in range(draw.choice([1, 1, 3, 20])):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif how == "cut":
        del content[draw.randrange(len(content)) :]
    elif how == "more":
        content += draw.randbytes(draw.randint(1, 100))
    elif how == "zero":
        start = draw.randrange(len(content))
        content[start : start + 16] = bytes(len(content[start : start + 16]))
    if how in ("gone", "folder"):
        file.unlink()
    if how == "folder":
        file.mkdir()
    elif how != "gone":
        file.write_bytes(b"" if how == "none" else content)


IGNORED = {"report.html", "ledger.jsonl", "epochs.jsonl"}
"""What nothing reads, and what only grows."""


@pytest.mark.parametrize("kind", USES)
def test_random_changes(sound: Path, tmp_path: Path, kind: str) -> None:
    n_cases = int(os.environ.get("DIFFUSEREC_CASES", "12"))
    use, expected = USES[kind], USES[kind](sound / kind)
    counts = {"refused": 0, "signed, refused": 0, "signed, loaded": 0, "changed nothing": 0}
    for case in range(n_cases):
        draw = random.Random(f"{kind} {case}")
        target = tmp_path / str(case) / kind
        shutil.copytree(sound / kind, target)
        files = sorted(f for f in target.rglob("*") if f.is_file() and f.name not in IGNORED)
        file = draw.choice(files)
        signed = kind != "run" and draw.random() < 0.4
        if file.suffix == ".json" and draw.random() < 0.8:
            document = json.loads(file.read_text(encoding="utf-8"))
            document = changed_document(document, draw)
            file.write_text(json.dumps(document), encoding="utf-8")
            if signed:
                sign(target, document)
        elif file.suffix == ".json":
            file.write_bytes(draw.choice(RAW))
            signed = False
        else:
            damage(file, draw)
            if signed and file.is_file():
                sign(target)
        same = (
            file.is_file()
            and file.read_bytes() == (sound / kind / file.relative_to(target)).read_bytes()
            if (sound / kind / file.relative_to(target)).exists()
            else False
        )
        if signed:
            told = refused(use, target)
            counts["signed, refused" if told else "signed, loaded"] += 1
        elif same or (told := refused(use, target)) is None:
            # a curve is under no checksum; whatever else was not refused changes nothing
            if not same and file.name != "curve.json":
                assert use(target) == expected, file
            counts["changed nothing"] += 1
        else:
            counts["refused"] += 1
        shutil.rmtree(tmp_path / str(case))
    print(f"{kind}: {counts}")
    assert counts["refused"] + counts["signed, refused"] > n_cases // 4


@pytest.mark.slow
@pytest.mark.parametrize("kind", USES)
def test_many_random_changes(sound: Path, tmp_path: Path, kind: str, monkeypatch) -> None:
    monkeypatch.setenv("DIFFUSEREC_CASES", os.environ.get("DIFFUSEREC_CASES", "200"))
    test_random_changes(sound, tmp_path, kind)


@pytest.fixture
def home(sound: Path, tmp_path: Path) -> Path:
    for kind in ("model", "data"):
        shutil.copytree(sound / kind, tmp_path / kind)
    return tmp_path


def require_refused(kind: str, path: Path, message: str) -> None:
    told = refused(USES[kind], path)
    assert told is not None
    assert message in told, told


@pytest.mark.parametrize("raw", RAW, ids=range(len(RAW)))
@pytest.mark.parametrize("kind", ["model", "data"])
def test_a_manifest_that_is_none(home: Path, kind: str, raw: bytes) -> None:
    (home / kind / "manifest.json").write_bytes(raw)
    require_refused(kind, home / kind, "not a")


@pytest.mark.parametrize("value", [None, "x", [], 1.5, True, -5, 10**30], ids=str)
@pytest.mark.parametrize("kind", ["model", "data"])
def test_signed_counts_that_are_none(home: Path, kind: str, value: Any) -> None:
    manifest = json.loads((home / kind / "manifest.json").read_text(encoding="utf-8"))
    sign(home / kind, manifest | {"n_users": value})
    require_refused(kind, home / kind, "manifest.json is damaged (n_users")


@pytest.mark.parametrize("value", [None, [1, 2], "x"], ids=str)
def test_signed_settings_that_are_none(home: Path, value: Any) -> None:
    manifest = json.loads((home / "model" / "manifest.json").read_text(encoding="utf-8"))
    sign(home / "model", manifest | {"config": value})
    require_refused("model", home / "model", "manifest.json is damaged (config")


def not_finite(value: float, n: int | None = None) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["encoder.norm.weight"].view(-1)[:n] = value

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (not_finite(float("nan")), "encoder.norm.weight holds numbers that are not finite"),
        (not_finite(float("inf")), "encoder.norm.weight holds numbers that are not finite"),
        (not_finite(float("nan"), 1), "encoder.norm.weight holds numbers that are not finite"),
        (lambda t: t.update(popularity=t["popularity"][:3]), "rows"),
        (lambda t: t.update(popularity=t["popularity"] * float("nan")), "popularity"),
        (lambda t: t.update(popularity=-t["popularity"]), "popularity"),
        (lambda t: t.pop("popularity"), "popularity"),
        (
            lambda t: t.update({"encoder.norm.weight": torch.zeros(8, dtype=torch.int32)}),
            "encoder.norm.weight is torch.int32",
        ),
        (
            lambda t: t.update({"encoder.norm.weight": torch.ones(8, dtype=torch.float64)}),
            "encoder.norm.weight is torch.float64",
        ),
    ],
)
def test_signed_weights(home: Path, change: Callable[[Any], Any], message: str) -> None:
    file = part(home / "model", "weights.safetensors")
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    sign(home / "model")
    require_refused("model", home / "model", message)


IDS: dict[str, Callable[[pl.Series], pl.DataFrame]] = {
    "an id twice": lambda ids: ids.set(ids == ids[1], ids[0]).to_frame(),
    "has no column": lambda ids: ids.alias("other").to_frame(),
    "List(String), not integers": lambda ids: pl.DataFrame({ids.name: [[i] for i in ids]}),
    "Binary, not integers": lambda ids: ids.cast(pl.Binary).to_frame(),
    "Float64, not integers": lambda ids: pl.DataFrame({ids.name: np.arange(len(ids)) + 0.5}),
    "Struct": lambda ids: ids.to_frame().select(pl.struct(pl.all()).alias(ids.name)),
    "has gaps": lambda ids: ids.set(ids == ids[1], None).to_frame(),
    "5 rows": lambda ids: ids.head(5).to_frame(),
    "1,000,000 rows": lambda ids: pl.DataFrame({ids.name: ["x" * 100]}).sample(
        1_000_000, with_replacement=True
    ),  # small on the disk
}


@pytest.mark.parametrize("message", IDS)
@pytest.mark.parametrize(
    "kind, name", [("model", "items"), ("data", "item_ids"), ("data", "user_ids")]
)
def test_signed_ids(home: Path, kind: str, name: str, message: str) -> None:
    file = part(home / kind, f"{name}.parquet")
    ids = pl.read_parquet(file).to_series()
    IDS[message](ids.cast(pl.String)).write_parquet(file)
    sign(home / kind)
    require_refused(kind, home / kind, message)
    require_refused(kind, home / kind, f"{name}-")


def at(index: Any, value: Any) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[index] = value
        return array

    return change


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("items", at(5, 0), "do not lie in 1..40"),
        ("items", at(5, 41), "do not lie in 1..40"),
        ("items", at(5, 10**9), "do not lie in 1..40"),
        ("items", at(5, -1), "do not lie in 1..40"),
        ("items", lambda a: a.astype(np.int64), "not an array of int32"),
        ("items", lambda a: a.astype(np.float32), "not an array of int32"),
        ("items", lambda a: a[:-7], "offsets-"),
        ("items", lambda a: np.stack([a, a]), "not an array of int32 of one dimension"),
        ("offsets", at(0, 3), "does not go from 0"),
        ("offsets", at(3, 0), "does not ascend"),
        ("offsets", at(3, -9), "does not ascend"),
        ("offsets", lambda a: a.astype(np.float64), "not an array of int64"),
        ("offsets", lambda a: a[:0], "does not go from 0"),
        ("users", at(3, 10**9), "do not lie in 0..79"),
        ("users", at(3, -1), "do not lie in 0..79"),
        ("users", at(3, 4), "a user twice"),
        ("users", lambda a: a[:-1], "79 users, not 80"),
        ("timestamps", lambda a: a[:-1], "entries, not"),
        ("timestamps", lambda a: a * 1.0, "not an array of int64"),
        ("synthetic", lambda a: a[:-1], "entries, not"),
        ("synthetic", lambda a: a.astype(np.int8), "not an array of bool"),
    ],
)
def test_signed_arrays(
    home: Path, name: str, change: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    file = part(home / "data", f"{name}.npy")
    np.save(file, change(np.load(file)))
    sign(home / "data")
    require_refused("data", home / "data", message)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff" * 40])
def test_signed_files_that_are_no_arrays(home: Path, content: bytes) -> None:
    part(home / "data", "items.npy").write_bytes(content)
    sign(home / "data")
    require_refused("data", home / "data", "items-")


def test_signed_marks_that_are_neither_true_nor_false(home: Path) -> None:
    file = part(home / "data", "synthetic.npy")
    file.write_bytes(file.read_bytes()[:-1] + b"\x07")
    sign(home / "data")
    require_refused("data", home / "data", "others than true and false")


@pytest.mark.parametrize("kind", ["model", "data"])
def test_a_key_twice_and_a_part_twice(home: Path, kind: str) -> None:
    file = home / kind / "manifest.json"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace('"n_users"', '"n_users": 3, "n_users"', 1), encoding="utf-8")
    require_refused(kind, home / kind, "the key 'n_users' twice")
    file.write_text(text, encoding="utf-8")
    edit(home / kind, files={"../../outside.npy": "0" * 64})
    require_refused(kind, home / kind, "files names others than there should be")


def test_the_rows_of_a_matrix_are_rows(home: Path) -> None:
    Markov().fit(log()).save(home / "markov")
    file = part(home / "markov", "weights.safetensors")
    for name, value in (("columns", 10**6), ("columns", -1), ("offsets", 10**6)):
        tensors = load_file(file)
        tensors[f"transitions.{name}"][3] = value
        save_file(tensors, file)
        sign(home / "markov")
        require_refused("model", home / "markov", "no rows of a matrix")
        shutil.rmtree(home / "markov")
        Markov().fit(log()).save(home / "markov")
        file = part(home / "markov", "weights.safetensors")
