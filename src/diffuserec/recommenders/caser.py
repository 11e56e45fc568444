"""Caser: convolutions over the newest few items, read as an image, predict the next ones.

Source: Tang & Wang, "Personalized Top-N Sequential Recommendation via Convolutional Sequence
Embedding", WSDM 2018 (arXiv 1809.07426), and its authors' released code.

The window of the ``window`` newest items is an image of that many rows and ``dim`` columns.
``n_horizontal`` filters of each height, all columns wide, are passed over it and keep their largest
response (ReLU); ``n_vertical`` filters of one column are weighted sums of its rows. A linear layer
of all that is the state, and its product with an item's embedding the score.

Departures and options:
- No vector of the user: whoever has a history can be recommended to. The paper joins one to the
  state.
- The item table is tied; the released code has one of its own for scores, with a bias.
- The state is normed. ``rectified=True`` is the paper's ReLU instead, with no negative component.
- All positions of a user train in one pass, each with the window that ends there. In a window that
  reaches beyond the first item, filters are not placed where they would read padding alone.
- ``loss="softmax"``; the released command is ``bce`` with ``n_negatives=3``.
- ``n_targets=3`` predicts the next three items from each position, as the paper does.
"""

from typing import Self

from jaxtyping import Float
from torch import Tensor

from diffuserec import training
from diffuserec.contracts import Recommender, Run
from diffuserec.data import Catalog, Histories, Queries, SequenceDataset
from diffuserec.settings import ConvolutionalSettings, TargetsSettings


class Caser(Recommender):
    """Horizontal and vertical convolutions with tied item embeddings."""

    class Config(TargetsSettings, ConvolutionalSettings):
        """Hyper-parameters of Caser."""

    config: Config

    def build(self, catalog: Catalog) -> None:
        self.encoder = self.config.caser(catalog.vocab_size)

    def fit(
        self, train: SequenceDataset, valid: Queries | None = None, run: Run | None = None
    ) -> Self:
        run = run or Run()
        self.begin(train, run)
        loss = training.encoder_loss(self.encoder, self.config, train, self.config.n_targets)
        self.curve = training.train_next_item(
            self, loss, train, valid, run, score=self.score, rows=self.config.rows
        )
        return self

    def score(self, histories: Histories, seed: int = 0) -> Float[Tensor, "B V"]:
        newest = histories.newest(self.config.max_len)
        return self.encoder.scores(newest.items, newest.lengths)
