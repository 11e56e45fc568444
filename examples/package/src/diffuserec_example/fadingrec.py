"""A recommender around an encoder of one's own: its settings, and their defaults."""

from pydantic import Field

from diffuserec.models.settings import EncoderName, EncoderSettings, LossSettings, PlainSettings
from diffuserec.training import NextItemRecommender


class FadingRec(NextItemRecommender):
    """Fading memories of a history's items with tied item embeddings."""

    class Config(PlainSettings, LossSettings, EncoderSettings):
        """Hyper-parameters of FadingRec."""

        encoder: EncoderName = "fading"
        dropout: float = Field(0.2, ge=0, lt=1)

    config: Config
