"""ASReP against a cycle, whose earlier items are known."""

import numpy as np
import pytest
import torch

from diffuserec.augmenters.asrep import ASReP
from diffuserec.data import Catalog, Histories, Queries, SequenceDataset, leave_one_out
from diffuserec.errors import ConfigError
from diffuserec.evaluation.leak import leak_meter
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.recommender import ScoreRecommender

QUICK = {
    "epochs": 12,
    "dim": 16,
    "n_layers": 1,
    "dropout": 0.0,
    "learning_rate": 0.02,
    "batch_size": 16,
    "position_encoding": "from_oldest",
}


def before(item: int, n: int) -> list[int]:
    """The n items that lead to this one in the cycle of 20."""
    return [(item - 1 - step) % 20 + 1 for step in range(n, 0, -1)]


@pytest.mark.parametrize("model, settings, n_folds", [("markov", {}, 3), ("sasrec", QUICK, 1)])
def test_it_goes_on_backwards(cycle: SequenceDataset, model, settings, n_folds) -> None:
    augmenter = ASReP(n_items=4, model=model, model_settings=settings, n_folds=n_folds)
    augmenter.fit(cycle, runtime=Runtime(seed=1))
    longer = augmenter.augment(cycle)
    right = [
        longer[user][:4].tolist() == before(int(cycle[user][0]), 4) for user in range(len(cycle))
    ]
    assert np.mean(right) > 0.9
    for user in range(len(cycle)):
        assert longer[user][4:].tolist() == cycle[user].tolist()


def test_no_item_comes_twice_until_all_are_used(cycle: SequenceDataset) -> None:
    augmenter = ASReP(n_items=16, model="markov", condition="published").fit(cycle)
    longer = augmenter.augment(cycle)
    assert (longer.lengths > 20).all()  # the catalog has 20 items
    for user in range(len(cycle)):
        items = longer[user].tolist()
        newest_first = items[::-1]
        assert len(set(newest_first[:20])) == 20
        assert min(items) >= 1


def test_the_items_of_a_history_depend_on_it_alone(cycle: SequenceDataset) -> None:
    augmenter = ASReP(n_items=3, model="markov").fit(cycle)
    lists = [[4], [9, 10, 11, 12, 13, 14], [2, 1]]
    longer = augmenter.augment(SequenceDataset.from_lists(lists, cycle.catalog))
    for user, own in enumerate(lists):
        alone = augmenter.augment(SequenceDataset.from_lists([own], cycle.catalog))
        assert alone[0].tolist() == longer[user].tolist()
    assert longer[0].tolist() == [1, 2, 3, 4]


class Watching(ScoreRecommender):
    """Remembers the data that it is fitted to, and scores all items alike."""

    shown: tuple[SequenceDataset, Queries]

    def build(self, catalog: Catalog) -> None:
        pass

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        assert valid is not None
        self.shown = train, valid
        return []

    def all_scores(self, histories: Histories) -> torch.Tensor:
        return torch.zeros(len(histories.users), self.catalog.vocab_size)


def test_the_reverse_model_sees_sequences_backwards_and_a_tenth_shorter(
    cycle: SequenceDataset,
) -> None:
    augmenter = ASReP(n_folds=1)
    augmenter.take(cycle.catalog)
    watching = Watching()
    augmenter.reverse = torch.nn.ModuleList([watching])
    augmenter.learn(cycle, None, Runtime())
    train, valid = watching.shown
    assert len(valid) == len(cycle) // 10
    held_out = valid.histories.users.tolist()
    for user in range(len(cycle)):
        turned = cycle[user][::-1].tolist()
        assert train[user].tolist() == (turned[:-1] if user in held_out else turned)
    for number, user in enumerate(held_out):
        assert valid.targets[number] == cycle[user][0]
        assert valid.histories[number].tolist() == cycle[user][:0:-1].tolist()


def memorable() -> SequenceDataset:
    """Users who have nothing in common: an item of their own, what comes next, and both again."""
    lists = [[3 * user + 1, 3 * user + 2, 3 * user + 1, 3 * user + 3] for user in range(60)]
    return SequenceDataset.from_lists(lists)


@pytest.mark.parametrize("n_folds, least, most", [(1, 1.0, 1.0), (3, 0.0, 0.1)])
def test_what_one_user_alone_tells_is_remembered_without_folds_only(n_folds, least, most) -> None:
    log = memorable()
    augmenter = ASReP(n_items=2, model="markov", n_folds=n_folds).fit(log)
    longer = augmenter.augment(log)
    known = [3 * user + 2 in longer[user][:2] for user in range(len(log))]
    assert least <= np.mean(known) <= most
    found = leak_meter(augmenter, longer, leave_one_out(log).valid)
    # of three targets of a user, the second item and hardly another is written in front
    assert found.training.share == pytest.approx(np.mean(known) / 3, abs=0.05)


@pytest.mark.parametrize("n_condition", [1, 2])
@pytest.mark.parametrize("user", [0, 7, 31])
def test_no_later_item_of_a_user_changes_what_is_written_in_front(
    random_log: SequenceDataset, user: int, n_condition: int
) -> None:
    def in_front(log: SequenceDataset) -> list[list[int]]:
        augmenter = ASReP(n_items=5, model="markov", n_condition=n_condition, max_history=None).fit(
            log
        )
        return [
            row[: len(row) - len(own)].tolist()
            for row, own in zip(augmenter.augment(log), log, strict=True)
        ]

    lists = [log.tolist() for log in random_log]
    lists[user] = lists[user][:n_condition] + list(range(1, 9))
    changed = SequenceDataset.from_lists(lists, random_log.catalog)
    before, after = in_front(random_log), in_front(changed)
    assert before[user] == after[user]
    assert before != after  # others learn from it


def test_users_who_all_begin_alike_need_one_model() -> None:
    log = SequenceDataset.from_lists([[1, 2, 3], [1, 3, 2], [1, 2, 2]])
    trained = []
    with pytest.raises(ConfigError, match="set n_folds to 1"):  # before hours of training
        ASReP(model_settings=QUICK).fit(log, runtime=Runtime(on_epoch=trained.append))
    assert not trained
    assert len(ASReP(model="markov", n_folds=1).fit(log).reverse) == 1
    assert len(ASReP(model="markov", condition="published").fit(log).reverse) == 1


def test_synthetic_items_are_not_read(cycle: SequenceDataset) -> None:
    everyone = np.arange(len(cycle))
    strange = cycle.prepend(np.full((len(cycle), 1), 17, dtype=np.int32), everyone)
    plain, other = (ASReP(n_items=2, model="markov").fit(log) for log in (cycle, strange))
    for key, value in plain.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key
    longer = other.augment(strange)
    expected = plain.augment(cycle)
    for user in everyone:
        assert longer[user][:2].tolist() == expected[user][:2].tolist()


def test_an_interrupted_fit_goes_on_to_the_same_parameters(
    cycle, cut_and_resumed, tmp_path
) -> None:
    def fitted(n_folds: int = 1, **changes) -> ASReP:
        settings = QUICK | {"epochs": 4, "dropout": 0.3}
        augmenter = ASReP(model="sasrec", model_settings=settings, n_folds=n_folds)
        return augmenter.fit(cycle, runtime=Runtime(seed=3, **changes))

    whole, resumed = fitted(), cut_and_resumed(fitted)
    assert [record.epoch for record in resumed.curve] == [0, 1, 2, 3]
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key

    shown = []

    def interrupt(epoch: Epoch) -> None:
        shown.append((epoch.phase, epoch.epoch))
        if len(shown) == 6:  # in the second of three
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(3, checkpoint=tmp_path, on_epoch=interrupt)
    assert len({phase for phase, _ in shown}) == 2
    resumed = fitted(3, checkpoint=tmp_path, resume=True)
    assert [record.epoch for record in resumed.curve] == 3 * [0, 1, 2, 3]
    whole = fitted(3)
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"model": "sasrek"}, "no recommender 'sasrek'.*sasrec"),
        ({"model_settings": {"dimm": 3}}, "model_settings of sasrec has no setting 'dimm'.*dim"),
        ({"model_settings": {"dim": 0}}, "model_settings of sasrec: dim"),
        ({"model_settings": {"gbce_t": 0.5}}, "model_settings of sasrec: .*gbce_t.* no effect"),
        ({"n_items": 0}, "n_items"),
    ],
    ids=str,
)
def test_bad_settings(settings, message) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        ASReP(**settings)
    assert "\n" not in str(refusal.value)
