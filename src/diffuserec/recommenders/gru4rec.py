"""GRU4Rec: a recurrent network that predicts each next item from those before it.

Source: Hidasi, Karatzoglou, Baltrunas & Tikk, "Session-based Recommendations with Recurrent Neural
Networks", ICLR 2016 (arXiv 1511.06939); Hidasi & Karatzoglou, CIKM 2018 (arXiv 1706.03847), for
BPR-max.

A layer of gated recurrent units reads the item embeddings; its output, brought back to their width,
is multiplied with all of them.

Departures and options:
- Trained on users' sequences, all positions of a user in one pass, by the full softmax. The
  originals put sessions side by side, begin each at the state zero and cut gradients at the batch;
  their negatives are the batch's other items and more drawn by popularity. Hidasi & Czapp (RecSys
  2023) found that versions which leave that out fall short of theirs: what is measured with this
  one is no measure of the original.
- ``loss="bpr_max"`` is their second paper's loss, with uniform negatives that all positions share.
- Embeddings and states are normed, and the item table is tied. Dropout is on the embeddings.
"""

from typing import Self

from jaxtyping import Float
from torch import Tensor

from diffuserec import training
from diffuserec.contracts import Recommender, Run
from diffuserec.data import Catalog, Histories, Queries, SequenceDataset
from diffuserec.settings import LossSettings, RecurrentSettings


class GRU4Rec(Recommender):
    """Gated recurrent units with tied item embeddings."""

    class Config(LossSettings, RecurrentSettings):
        """Hyper-parameters of GRU4Rec."""

    config: Config

    def build(self, catalog: Catalog) -> None:
        self.encoder = self.config.gru(catalog.vocab_size)

    def fit(
        self, train: SequenceDataset, valid: Queries | None = None, run: Run | None = None
    ) -> Self:
        run = run or Run()
        self.begin(train, run)
        loss = training.encoder_loss(self.encoder, self.config, train)
        self.curve = training.train_next_item(
            self, loss, train, valid, run, score=self.score, rows=self.config.rows
        )
        return self

    def score(self, histories: Histories, seed: int = 0) -> Float[Tensor, "B V"]:
        newest = histories.newest(self.config.max_len)
        return self.encoder.scores(newest.items, newest.lengths)
