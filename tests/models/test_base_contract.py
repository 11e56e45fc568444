"""A recommender may be generative and contrastive at once: K states of noise, and views."""

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from diffuserec import Runtime, evaluate
from diffuserec.data import (
    Batch,
    Catalog,
    Histories,
    Queries,
    SequenceDataset,
    batch_of,
    encode_histories,
    histories_of,
    leave_one_out,
)
from diffuserec.models.base import Epoch
from diffuserec.models.diffusion import KeyedNoise
from diffuserec.models.encoders import last_states
from diffuserec.models.recommender import Contrastive, View
from diffuserec.models.settings import ContrastiveSettings
from diffuserec.models.views import encode_with_views, random_positions
from diffuserec.training import EncoderRecommender, next_item_loss, train_next_item


class NoisyContrast(EncoderRecommender, Contrastive):
    """States moved by noise are draws; two views of a sequence have different items masked."""

    class Config(ContrastiveSettings):
        """Hyper-parameters of the example."""

        n_draws: int = 3
        deviation: float = 0.5

    combine = "mixture"
    config: Config

    def build(self, catalog: Catalog) -> None:
        self.table, self.encoder = self.config.build_encoder(catalog.vocab_size, n_special=1)

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        c = self.config
        next_item = next_item_loss(c, train)

        def loss(batch: Batch) -> Tensor:
            views = [(view.items, view.lengths) for view in self.views(batch, train)]
            original = batch.items, batch.lengths
            states, first, second = encode_with_views(self.encode, original, *views)
            predicted = next_item(batch, states, self.table)
            return predicted + c.contrast(first, second)

        return train_next_item(self, loss, train, valid, runtime, scorer=self.scorer)

    def states(
        self, histories: Histories, seed: int = 0, n_draws: int | None = None
    ) -> Float[Tensor, "B K D"]:
        newest = histories.truncate(self.config.max_len)
        state = last_states(self.encode(newest.items, newest.lengths), newest.lengths)
        n_draws = n_draws or self.config.n_draws
        noise = KeyedNoise(seed, newest.users).normal(n_draws, self.config.dim)
        return state[:, None] + self.config.deviation * noise

    @torch.no_grad()
    def views(self, batch: Batch, train: SequenceDataset) -> list[View]:
        one = torch.ones_like(batch.lengths)
        views = []
        for name in ("first view", "second view"):
            changed = random_positions(batch.lengths, batch.items.shape[1], one)
            items = batch.items.masked_fill(changed, self.table.mask_token)
            views.append(View(name, items, batch.lengths, changed=changed))
        return views


@pytest.fixture(scope="module")
def split(cycle):
    return leave_one_out(cycle)


@pytest.fixture(scope="module")
def model(split) -> NoisyContrast:
    settings = {"dim": 16, "n_layers": 1, "dropout": 0.0, "learning_rate": 0.02, "batch_size": 16}
    return NoisyContrast(**settings, epochs=8).fit(split.train, split.valid)


def test_it_learns_from_the_next_item_and_from_its_views(model, split) -> None:
    assert isinstance(model, Contrastive)
    assert model.curve[-1].loss < model.curve[0].loss
    assert evaluate(model, split.test).metrics["NDCG@10"] > 0.8


def test_lists_have_the_mean_and_the_spread_of_the_draws(model) -> None:
    assert model.is_generative
    assert model.has_distribution
    histories = [[1, 2, 3], [18, 19, 20, 1], [7]]
    found = model.recommend(histories, 4, n_draws=5, seed=3)
    assert found.columns == ["query", "rank", "item_id", "score", "spread", "source", "n_unknown"]
    assert found["query"].to_list() == [0] * 4 + [1] * 4 + [2] * 4
    shown = histories_of(encode_histories(model.catalog, histories)[0], np.arange(3))
    with torch.no_grad():
        states, table = model.states(shown, seed=3, n_draws=5), model.table.vectors.weight[:21]
        assert states.shape == (3, 5, 16)
        chances = torch.softmax(states @ table[1:].T, 2)
    for query, item, score, spread in found["query", "item_id", "score", "spread"].iter_rows():
        draws = chances[query, :, item - 1]
        assert score == pytest.approx(draws.mean().item(), rel=1e-4)
        assert spread == pytest.approx(draws.std().item(), rel=1e-3, abs=1e-7)
    assert (found["spread"] > 0).all()
    assert (model.recommend(histories, 4, n_draws=1)["spread"] == 0).all()
    other = model.recommend(histories, 4, n_draws=5, seed=4)
    assert found["score"].to_list() != other["score"].to_list()


def test_its_views_are_those_of_training(model, split) -> None:
    batch = batch_of(split.train, np.arange(6), 50)
    torch.manual_seed(0)
    first, second = model.views(batch, split.train)
    for view in (first, second):
        assert view.changed.sum(1).tolist() == [1] * 6
        assert bool((view.items[view.changed] == model.table.mask_token).all())
        assert torch.equal(view.items[~view.changed], batch.items[~view.changed])
    assert not torch.equal(first.items, second.items)
