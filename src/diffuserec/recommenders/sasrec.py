"""SASRec: a causal transformer that predicts each next item from those before it.

Source: Kang & McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018 (arXiv 1808.09781).

Departures, each because it is better on sparse logs and documented as such:
- The default loss is the full softmax (Klenitskiy & Vasilev, RecSys 2023); the paper's binary
  cross entropy with one negative is ``loss="bce"``, gSASRec's is ``loss="gbce"`` (Petrov &
  Macdonald, RecSys 2023, here with the tied item table).
- Post-norm blocks with LayerNorm on the embedding sum, GELU and a feed-forward width of 4·dim (the
  BERT lineage), instead of the paper's pre-normed queries, ReLU and width dim.
- Positions are known by their distance, as a learned bias of the attention; the paper counts them
  from the oldest item. All positions of a user train in one pass.
"""

from diffuserec.models.settings import ControlSettings, NextItemSettings, PlainSettings
from diffuserec.training import NextItemRecommender


class SASRec(NextItemRecommender):
    """Causal transformer with tied item embeddings."""

    class Config(PlainSettings, NextItemSettings, ControlSettings):
        """Hyper-parameters of SASRec."""

    config: Config
