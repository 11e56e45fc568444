"""Views in numbers, names and metrics: by hand on given views, and of every contrastive method."""

import html
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffuserec.data import (
    Batch,
    Catalog,
    Histories,
    SequenceDataset,
    leave_one_out,
    trainable_sequences,
)
from diffuserec.errors import ConfigError, DataError
from diffuserec.models.base import Runtime
from diffuserec.models.config import Settings
from diffuserec.models.methods import find_augmenter, find_recommender, method_names
from diffuserec.models.recommender import Contrastive, ScoreRecommender, View
from diffuserec.reports.html import write_inspection
from diffuserec.reports.inspection import (
    InspectedSequence,
    InspectedView,
    Inspection,
    ViewMetrics,
    describe_sequence,
    inspect_views,
    metric_table,
    sample_sequences,
    view_metrics,
)
from diffuserec.studies.examples import inspection, short_inspection
from diffuserec.studies.run_directory import Plan, RunDirectory

EVIL = "<script>alert('x')</script>&\"]]>"
CONTRASTIVE = [
    name for name in method_names("recommender") if issubclass(find_recommender(name), Contrastive)
]
TABLE = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [1.0, 1.0]])
HALF = 2**-0.5  # the cosine of 45 degrees
MASK = 5


class Given(ScoreRecommender, Contrastive):
    """A recommender whose views are given ones, or noise."""

    class Config(Settings):
        max_len: int = 50

    def __init__(self, make: Any, **settings: Any) -> None:
        super().__init__(**settings)
        self.make = make
        self.sizes: list[int] = []

    def build(self, catalog: Catalog) -> None: ...

    def learn(self, train: Any, valid: Any, runtime: Any) -> list[Any]:
        return []

    def all_scores(self, histories: Histories) -> Tensor:
        return torch.zeros(len(histories.users), self.catalog.vocab_size)

    def views(self, batch: Batch, train: SequenceDataset) -> list[View]:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.sizes.append(len(batch.users))
        return self.make(batch)


def two_views(batch: Batch) -> list[View]:
    """Of the sequences 1 2 and 4 1 2."""
    assert batch.items.tolist() == [[1, 2, 0], [4, 1, 2]]
    changed = torch.tensor([[True, True, False], [True, True, False]])
    confidence = torch.tensor([[0.5, 0.25, 0.0], [0.1, 0.2, 0.9]])
    other = torch.tensor([[3, 2, 0], [2, 1, 2]])
    lost = torch.tensor([[MASK, 2, 0, 0], [4, 0, 2, 3]])
    return [
        View("other", other, batch.lengths, changed, confidence),
        View("lost", lost, torch.tensor([2, 4])),
    ]


def noise(batch: Batch) -> list[View]:
    items = torch.randint(1, 5, batch.items.shape).masked_fill(batch.items == 0, 0)
    return [View("noise", items, batch.lengths, batch.items > 0)]


@pytest.fixture
def pair() -> list[InspectedSequence]:
    """Users 7 and 3 with the views above; 3 and 4 are the items that come next."""
    log = SequenceDataset.from_lists([[1, 2, 3], [4, 1, 2, 4]], users=[7, 3])
    return inspect_views(Given(two_views).fit(log), log, np.array([0, 1]))


def sequence(items: list[int], view: list[int], changed: list[bool] | None) -> InspectedSequence:
    marks = None if changed is None else np.array(changed)
    return InspectedSequence(0, np.array(items), (InspectedView("v", np.array(view), marks, None),))


def test_sequences_come_without_padding_and_without_their_newest_item(pair) -> None:
    assert [found.user for found in pair] == [7, 3]
    assert [found.items.tolist() for found in pair] == [[1, 2], [4, 1, 2]]
    other, lost = zip(*(found.views for found in pair), strict=True)
    assert [view.name for view in (*other, *lost)] == ["other", "other", "lost", "lost"]
    assert [view.items.tolist() for view in other] == [[3, 2], [2, 1, 2]]
    assert [view.changed.tolist() for view in other] == [[True, True], [True, True, False]]
    assert np.allclose(np.concatenate([v.confidence for v in other]), [0.5, 0.25, 0.1, 0.2, 0.9])
    assert [view.items.tolist() for view in lost] == [[MASK, 2], [4, 0, 2, 3]]
    assert [(view.changed, view.confidence) for view in lost] == [(None, None)] * 2


def test_metrics_by_hand(pair) -> None:
    other, lost = view_metrics(pair, TABLE)
    pairs = [0, -1, HALF, 0, HALF, -HALF]  # 1 2, 1 3, 1 4, 2 3, 2 4, 3 4
    assert (other.view, lost.view) == ("other", "lost")
    assert other.values == pytest.approx(
        {
            "changed": 2,  # 1 -> 3 and 2 -> 2; 4 -> 2 and 1 -> 1
            "changed_share": 4 / 5,
            "kept": 2 / 4,
            "similarity_replaced": (-1 + HALF) / 2,
            "similarity_changed": (-1 + HALF + 1 + 1) / 4,
            "similarity_random": sum(pairs) / 6,
            "confidence_changed": (0.5 + 0.25 + 0.1 + 0.2) / 4,
            "confidence": (0.5 + 0.25 + 0.1 + 0.2 + 0.9) / 5,
        }
    )
    ratios = {"shared": (1 / 2 + 2 / 3) / 2, "length_ratio": (2 / 2 + 4 / 3) / 2}
    assert lost.values == pytest.approx(ratios)


def test_what_is_no_item_has_no_similarity() -> None:
    (found,) = view_metrics([sequence([1, 2, 3, 4], [MASK, 0, 3, 2], [True] * 4)], TABLE)
    assert found.values["changed"] == 4
    assert found.values["kept"] == pytest.approx(1 / 4)
    assert found.values["similarity_replaced"] == pytest.approx(HALF)
    assert found.values["similarity_changed"] == pytest.approx((1 + HALF) / 2)
    assert not {"confidence", "confidence_changed"} & found.values.keys()


def test_where_nothing_changed_there_is_nothing_to_count() -> None:
    (found,) = view_metrics([sequence([1, 2], [1, 2], [False, False])], TABLE[:2])
    assert found.values == {"changed": 0, "changed_share": 0}  # and the catalog has a single item
    lines = dict(metric_table([found, ViewMetrics("w", {"kept": 0.25})]))
    assert lines["kept: the original's item again"] == ["–", "25.0%"]
    assert not any("confidence" in label or "length" in label for label in lines)


def test_items_that_repeat_are_shared_as_often_as_they_occur() -> None:
    (found,) = view_metrics([sequence([1, 1, 2], [2, 2, 1], None)], TABLE)
    assert found.values["shared"] == pytest.approx(2 / 3)


def test_many_sequences_are_inspected_a_few_hundred_at_a_time() -> None:
    n = 1300
    log = SequenceDataset.from_lists([[u % 4 + 1, 1 + (u // 4) % 4, 1] for u in range(n)])
    model = Given(noise).fit(log)
    index = np.random.default_rng(0).permutation(n)
    found = inspect_views(model, log, index)
    assert sum(model.sizes) == n
    assert max(model.sizes) <= 512
    assert [each.user for each in found] == index.tolist()
    for each in found:
        assert each.items.tolist() == log[each.user][:2].tolist()


def test_views_are_drawn_from_the_seed_and_nothing_else() -> None:
    log = SequenceDataset.from_lists([[1, 2, 3, 4, 1, 2, 3, 4]] * 9)
    model = Given(noise).fit(log)

    def drawn(seed: int) -> list[list[int]]:
        found = inspect_views(model, log, np.arange(9), seed)
        return [each.views[0].items.tolist() for each in found]

    torch.manual_seed(5)
    state, first = torch.get_rng_state(), drawn(1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert drawn(1) == first
    assert drawn(2) != first


def test_the_newest_items_are_inspected() -> None:
    log = SequenceDataset.from_lists([[1, 2, 3, 4, 1]])
    (found,) = inspect_views(Given(noise, max_len=2).fit(log), log, np.array([0]))
    assert found.items.tolist() == [3, 4]


def test_a_recommender_without_views_is_refused(cycle) -> None:
    with pytest.raises(ConfigError, match="popularity contrasts no views"):
        inspect_views(find_recommender("popularity")().fit(cycle), cycle, np.array([0]))


def test_a_sample_is_of_trainable_sequences_and_of_the_seed() -> None:
    log = SequenceDataset.from_lists([[1] * (1 + user % 3) for user in range(30)])
    enough = [user for user in range(30) if user % 3]
    assert sample_sequences(log).tolist() == enough
    some = sample_sequences(log, 7, seed=1).tolist()
    assert len(set(some)) == 7
    assert some == sorted(some)
    assert set(some) <= set(enough)
    assert sample_sequences(log, 7, seed=1).tolist() == some
    assert sample_sequences(log, 7, seed=2).tolist() != some


def by_name(found: InspectedSequence, user: str = "u") -> Any:
    return describe_sequence(found, user, lambda items: [f"i{item}" for item in items], MASK)


def test_changes_are_replaced_or_kept_items(pair) -> None:
    other, lost = by_name(pair[1]).views
    assert by_name(pair[1]).items == ["i4", "i1", "i2"]
    assert (other.items, other.changes) == (["i2", "i1", "i2"], ["replaced", "kept", ""])
    assert (other.aligned, lost.aligned) == (True, False)
    assert lost.items == ["i4", "[pad]", "i2", "i3"]
    assert lost.changes == ["", "replaced", "", "replaced"]
    assert by_name(pair[0]).views[1].items == ["[mask]", "i2"]


def test_views_share_a_column_of_confidences_where_they_are_the_same(pair) -> None:
    shown = by_name(pair[0])
    other = shown.views[0]
    assert shown.confidences == {"confidence": [0.5, 0.25]}
    twin, apart = replace(other, name="twin"), replace(other, name="apart", confidence=[0.0, 1.0])
    assert replace(shown, views=[other, twin]).confidences == shown.confidences
    assert replace(shown, views=[other, twin, apart]).confidences == {
        "confidence, other": [0.5, 0.25],
        "confidence, apart": [0.0, 1.0],
    }
    assert replace(shown, views=[shown.views[1]]).confidences == {}


def test_the_page_holds_views_and_metrics_and_needs_nothing_else(pair, tmp_path) -> None:
    found = Inspection(
        "m", 0, [by_name(each, f"u{each.user}") for each in pair], view_metrics(pair, TABLE), 1234
    )
    path = tmp_path / "new" / "a.html"
    write_inspection(path, found, title="A page", facts="some data")
    text = path.read_text("utf-8")
    for word in ("A page", "some data", "m, user u7", "m, user u3", "Over 1,234 training", "50.0%"):
        assert word in text
    assert text.count('<li class="new"><b>*&nbsp;i2</b></li>') == 1
    assert text.count('<li class="next"><b>=&nbsp;i1</b></li>') == 1
    assert text.count('<li class="new"><b>*&nbsp;[mask]</b></li>') == 1
    assert text.count('<li class="new"><b>*&nbsp;[pad]</b></li>') == 1
    assert "http:" not in text
    assert "https:" not in text
    assert "<script" not in text
    assert [file.name for file in path.parent.iterdir()] == ["a.html"]
    opened = re.findall(r"<(section|div|table|tr|td|th|ul|li|p|b|main|h\d)[ >]", text)
    closed = re.findall(r"</(section|div|table|tr|td|th|ul|li|p|b|main|h\d)>", text)
    assert sorted(opened) == sorted(closed)


def test_what_comes_from_data_is_escaped(pair, tmp_path) -> None:
    def evil(items: np.ndarray) -> list[str]:
        return [EVIL] * len(items)

    shown = [describe_sequence(each, EVIL, evil, MASK) for each in pair]
    metrics = [replace(view, view=EVIL) for view in view_metrics(pair, TABLE)]
    found = Inspection(EVIL, 0, shown, metrics, 2)
    write_inspection(tmp_path / "a.html", found, title=EVIL, facts=EVIL)
    text = (tmp_path / "a.html").read_text("utf-8")
    assert "<script" not in text
    # title twice, facts, method, then method, user twice, and items of both, headings of metrics
    items = (2 + 2 + 1) + (3 + 3 + 3)
    assert html.unescape(text).count(EVIL) == 4 + 2 * 3 + items + 2


QUICK: dict[str, Any] = {"epochs": 1, "dim": 8, "n_layers": 1, "max_len": 8}


def trained(name: str, log: SequenceDataset, augmenter: Any = None) -> RunDirectory:
    own = {"k_noise": 2, "num_train_timesteps": 40} if name == "simdiffrec" else {}
    model = find_recommender(name)(**QUICK, **own)
    split = leave_one_out(log)
    model.fit(split.train, None, Runtime(device="cpu", progress=False))
    return RunDirectory(Path("run"), Plan("log", name, {}), "", model, augmenter, split)


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_the_views_of_every_contrastive_method_can_be_inspected(name, random_log) -> None:
    run = trained(name, random_log)
    train = run.split.train
    assert run.model.table.embeddings().shape == (random_log.vocab_size, 8)
    found = inspect_views(run.model, train, trainable_sequences(train))
    for each in found:
        for view in each.views:
            assert len(view.items) >= 1
            if view.changed is not None:
                untouched = ~view.changed
                assert view.items[untouched].tolist() == each.items[untouched].tolist()
    whole = inspection(run, n=2)
    assert whole == inspection(run, n=2)
    assert len(whole.sequences) == 2
    assert whole.n_sequences == len(found)
    assert [view.view for view in whole.metrics] == [view.name for view in found[0].views]
    assert metric_table(whole.metrics)


def test_users_without_ids_are_called_by_their_number(cycle) -> None:
    run = trained("cl4srec", cycle)
    found = inspection(run, ["3", "0"])
    assert [shown.user for shown in found.sequences] == ["3", "0"]
    assert found.sequences[0].items == [str(item) for item in run.split.train[3][:-1]]
    with pytest.raises(DataError, match="holds no user 'nobody'"):
        inspection(run, ["0", "nobody"])
    with pytest.raises(ConfigError, match="n must be at least 1, got 0"):
        inspection(run, n=0)


def test_who_trained_on_longer_histories_is_shown_them(cycle) -> None:
    augmenter = find_augmenter("random")(n_items=2).fit(leave_one_out(cycle).train)
    run = trained("cl4srec", cycle, augmenter)
    (shown,) = inspection(run, ["3"]).sequences
    assert len(shown.items) == len(run.split.train[3]) - 1 + 2


def test_a_report_shows_short_users_of_contrastive_methods_alone(cycle) -> None:
    run = trained("cl4srec", cycle)
    found = short_inspection(run, run.split.train)
    assert found is not None
    assert [4 <= len(shown.items) <= 9 for shown in found.sequences] == [True] * 3
    other = replace(run, model=find_recommender("popularity")().fit(run.split.train))
    assert short_inspection(other, run.split.train) is None
    with pytest.raises(ConfigError, match=r"contrasts no views; these do: .*simdiffrec"):
        inspection(other)
