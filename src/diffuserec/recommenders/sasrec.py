"""SASRec: a causal transformer that predicts each next item from those before it.

Source: Kang & McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018 (arXiv 1808.09781).

Departures, each because it is better on sparse logs and documented as such:
- The default loss is the full softmax (Klenitskiy & Vasilev, RecSys 2023); the paper's binary
  cross entropy with one negative is ``loss="bce"``, gSASRec's is ``loss="gbce"`` (Petrov &
  Macdonald, RecSys 2023, here with the tied item table).
- Post-norm blocks with LayerNorm on the embedding sum, GELU and a feed-forward width of 4·dim (the
  BERT lineage), instead of the paper's pre-normed queries, ReLU and width dim.
- Positions count from the oldest item kept. All positions of a user train in one pass.
"""

from typing import Self

from jaxtyping import Float
from torch import Tensor

from diffuserec import training
from diffuserec.contracts import Recommender, Run
from diffuserec.data import Catalog, Histories, Queries, SequenceDataset
from diffuserec.settings import NextItemSettings


class SASRec(Recommender):
    """Causal transformer with tied item embeddings."""

    class Config(NextItemSettings):
        """Hyper-parameters of SASRec."""

    config: Config

    def build(self, catalog: Catalog) -> None:
        self.encoder = self.config.transformer(catalog.vocab_size)

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
