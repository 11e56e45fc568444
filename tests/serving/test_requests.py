"""Requests as servers and newcomers make them: without the type checks that other tests have."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffuserec import SequenceDataset, find_recommender

FORKED = """
import json, os, signal, sys
import numpy as np
import diffuserec

def answers(model):
    mine = model.catalog.decode(np.array([1, 2]))
    first = model.recommend([mine, [mine[0], "?"], []], k=3, allow=model.catalog.decode([2, 3, 4]))
    second = model.recommend([mine] * 500, k=5)
    third = model.next_items_of(mine, k=2)
    return [frame.to_dicts() for frame in (first, second, third)]

models = [diffuserec.load(path) for path in sys.argv[1:]]
before = json.dumps([answers(model) for model in models])
sys.stdout.flush()
child = os.fork()
if child == 0:
    signal.alarm(20)  # ends a child that waits for a thread that it does not have
    after = json.dumps([answers(model) for model in models])
    print("equal" if after == before else "another answer", flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0, "the child did not answer"
"""

LOOSE = """
import json, sys
import numpy as np
import diffuserec

dr = diffuserec
model = dr.load(sys.argv[1])
frame = dr.Store(n_users=30, n_items=60, seed=1).frame()
log = dr.from_frame(frame)
split = dr.leave_one_out(log.to_dataset())
said = []
for words in sys.stdin.read().splitlines():
    try:
        said.append(str(len(eval(words))))
    except diffuserec.DataError as error:
        said.append(f"DataError: {error}")
    except diffuserec.ConfigError as error:
        said.append(f"ConfigError: {error}")
    except Exception as error:
        said.append(f"{type(error).__name__}!")
print(json.dumps(said))
"""


def run_python(script: str, *arguments: Path, threads: str = "1", given: str = "") -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        input=given,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Saved models of a log of 40 items: one that counts, one that computes."""
    path = tmp_path_factory.mktemp("models")
    train = SequenceDataset.from_lists([[(a + b) % 40 + 1 for b in range(9)] for a in range(40)])
    found = []
    for name, settings in (("markov", {}), ("sasrec", {"dim": 64, "epochs": 1})):
        find_recommender(name)(**settings).fit(train).save(path / name)
        found.append(path / name)
    return found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_process_forked_after_loading_answers(models: list[Path]) -> None:
    assert run_python(FORKED, *models, threads="2") == "equal\n"


REQUESTS = {
    "model.recommend([[5]], allow='12')": "DataError: allow must be a list of item ids, got '12'",
    "model.recommend([[5]], deny='12')": "DataError: deny must be a list of item ids, got '12'",
    "model.recommend([[5]], allow=b'12')": "DataError: allow must be a list of item ids",
    "model.recommend([[5]], allow=12)": "DataError: allow must be a list of item ids, got 12",
    "model.recommend([[5]], deny=12.0)": "DataError: deny must be a list of item ids, got 12.0",
    "model.recommend([[5]], allow={999})": "DataError: allow: the catalog does not hold item 999",
    "model.recommend([[5]], allow={12, 13})": "2",
    "model.recommend([[5]], allow=np.array([12, 13]))": "2",
    "model.recommend([[5]], allow=[12.9])": "DataError: allow: the catalog does not hold item 12.9",
    "model.recommend([[5]], deny=[12.9])": "DataError: deny: the catalog does not hold item 12.9",
    "model.next_items_of('12')": "DataError: items must be a list of item ids, got '12'",
    "model.next_items_of(12)": "DataError: items must be a list of item ids, got 12",
    "model.next_items_of([12.9])": "DataError: items: the catalog does not hold item 12.9",
    "model.next_items_of([12.0, '13'], k=2)": "4",
    "model.next_items_of([12], k=0)": "ConfigError: k must be at least 1, got 0",
    "model.recommend([[5]], on_unknown='drop')": "ConfigError: on_unknown must be 'skip' or",
    "model.recommend([[5]], batch_size=-1)": "ConfigError: batch_size must be at least 1, got -1",
    "model.recommend([[5]], batch_size=0)": "ConfigError: batch_size must be at least 1, got 0",
    "model.recommend([[5]], batch_size=2.0)": "ConfigError: batch_size must be a whole number",
    "model.recommend([[5]], k=3.0)": "ConfigError: k must be a whole number, got 3.0",
    "model.recommend([[5]], k='3')": "ConfigError: k must be a whole number",
    "model.recommend([[5]], k=True)": "ConfigError: k must be a whole number",
    "model.recommend([[5]], k=None)": "ConfigError: k must be a whole number",
    "model.recommend([[5]], k=np.int64(3))": "3",
    "model.recommend([[5]], seed=None)": "ConfigError: seed must be a whole number, got None",
    "model.recommend([[5]], diversity='1')": "ConfigError: diversity must be a number between",
    "model.recommend([[5]], augmenter='random')": "ConfigError: augmenter must be a fitted",
    "model.recommend(np.array([5, 6]))": "DataError: histories must be a list of lists",
    "model.recommend(np.array([[5, 6], [7, 8]]), k=2)": "4",
    "model.recommend([5, 6])": "DataError: histories must be a list of lists",
    "model.recommend('5')": "DataError: histories must be a list of lists",
    "model.recommend(['5'])": "DataError: histories must be a list of lists",
    "model.recommend([b'5'])": "DataError: histories must be a list of lists",
    "model.recommend([{5, 6}])": "DataError: histories must be a list of lists",
    "model.recommend({1: [5]})": "DataError: histories must be a list of lists",
    "model.recommend(5)": "DataError: histories must be a list of lists",
    "model.recommend([[b'1']], on_unknown='refuse')": "DataError: history 0: the catalog does not",
    "model.recommend([[True, 2]], on_unknown='refuse')": "DataError: history 0: the catalog does",
    "model.recommend([[1, 2.9]], on_unknown='refuse')": "DataError: history 0: the catalog does",
    "model.recommend([[1.0, '2.0']], k=2, on_unknown='refuse')": "2",
}


FIRST_MISTAKES = {
    "dr.Markov().fit(log)": "DataError: fit needs a dataset of sequences, got an Interactions: "
    "give log.to_dataset()",
    "dr.Markov().fit(frame)": "DataError: fit needs a dataset of sequences, got a DataFrame: give "
    "dr.from_frame(frame).to_dataset()",
    "dr.Markov().fit(split)": "DataError: fit needs a dataset of sequences, got a Split: give "
    "split.train",
    "dr.Markov().fit(split.test)": "DataError: fit needs a dataset of sequences, got a Queries",
    "dr.Markov().fit('log.csv')": "DataError: fit needs a dataset of sequences, got a str: give "
    "dr.read_log(path)",
    "dr.Markov().fit(split.train, split.train)": "DataError: fit(train, valid) needs queries",
    "dr.Markov().fit(split.train, runtime={'device': 'cpu'})": "ConfigError: runtime must be a "
    "Runtime, such as Runtime(device='cpu')",
    "dr.RandomSeq().fit(log)": "DataError: fit needs a dataset of sequences",
    "dr.leave_one_out(log)": "DataError: a split needs a dataset of sequences, got an Interactions",
    "dr.temporal(frame)": "DataError: a split needs a dataset of sequences, got a DataFrame",
    "dr.evaluate(model, log)": "DataError: evaluate needs queries, got an Interactions: give "
    "dr.leave_one_out(log.to_dataset()).test",
    "dr.evaluate(model, split.train)": "DataError: evaluate needs queries, got a SequenceDataset: "
    "split a dataset with dr.leave_one_out(dataset) and give split.test",
    "dr.evaluate(model, split)": "DataError: evaluate needs queries, got a Split: give split.test",
    "dr.evaluate(dr.Markov, split.test)": "ConfigError: evaluate needs a fitted recommender",
    "dr.evaluate(split.test, model)": "DataError: evaluate needs queries, got a Markov",
}


def test_a_loose_argument_gets_one_clear_line(models: list[Path]) -> None:
    asked = REQUESTS | FIRST_MISTAKES
    said = json.loads(run_python(LOOSE, models[0], given="\n".join(asked)))
    for request, wanted, got in zip(asked, asked.values(), said, strict=True):
        assert got.startswith(wanted), f"{request}: {got}"
        assert "\n" not in got
