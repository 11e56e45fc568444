"""First mistakes with methods get one line of advice, and tensors count as lists.

The mistakes are made in a process of their own, where no annotation is checked, as at a user's.
"""

import json
import subprocess
import sys

import numpy as np
import torch

import diffuserec as dr

MISTAKES = {
    "evaluate(model, test, candidates=5)": "candidates must be",
    "evaluate(model, test, candidates=None)": "candidates must be",
    "evaluate(model, test, augmenter='x')": "augmenter must be a fitted augmenter",
    "evaluate(model, test, metrics='HR@10')": "metrics must be a list of names",
    "evaluate(model, test, cutoffs=10)": "cutoffs must be a list",
    "evaluate(model, test, cutoffs=[1.5])": "cutoffs must be positive",
    "evaluate(model, test, filter_seen='no')": "filter_seen must be True or False",
    "evaluate(model, test, batch_size='8')": "must be at least 1",
    "dr.SASRec(5)": "takes its settings by name",
    "dr.load(None)": "load needs the path",
    "model.recommend([['B00001']], filter_seen='no')": "filter_seen must be True or False",
    "dr.Markov().fit(split.train, split)": "give split.valid",
    "dr.recommender_for(split)": "give split.train",
    "augmenter.augment(split)": "augment needs a dataset of sequences, got a Split",
}

SCRIPT = """
import json, sys
import diffuserec as dr
from diffuserec import evaluate
from diffuserec.errors import ConfigError, DataError

split = dr.leave_one_out(dr.Store(n_users=80, n_items=40, seed=1).dataset())
test, model = split.test, dr.Markov().fit(split.train)
augmenter = dr.find_augmenter("random")().fit(split.train)
told = []
for mistake in json.loads(sys.argv[1]):
    try:
        eval(mistake)
    except (ConfigError, DataError) as error:
        told.append(str(error))
    except Exception as error:
        told.append(repr(error))
    else:
        told.append("nothing")
print(json.dumps(told))
"""


def test_other_things_than_asked_for_get_advice() -> None:
    command = [sys.executable, "-c", SCRIPT, json.dumps(list(MISTAKES))]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    for told, wanted in zip(json.loads(done.stdout), MISTAKES.values(), strict=True):
        assert wanted in told
        assert "\n" not in told


def test_a_tensor_is_a_history() -> None:
    log = dr.SequenceDataset.from_lists([[5, 7, 9], [5, 7, 8]])
    model = dr.Markov().fit(log)
    wanted = model.recommend([[5, 7]], filter_seen=False)
    assert wanted["source"].unique().to_list() == ["model"]
    numbers = torch.from_numpy(np.array([5, 7]))
    for history in (numbers, list(numbers)):
        assert model.recommend([history], filter_seen=False).equals(wanted)
