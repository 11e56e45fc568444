"""The oracle of the built-in store: scores of a method that knew every hidden taste.

No method is expected to reach it, since tastes are hidden; the distance says how much is left to
learn. It is a yardstick, so it is not listed among the methods.
"""

from jaxtyping import Float
from torch import Tensor

from diffuserec.data import Catalog, Histories, Queries, SequenceDataset, Store
from diffuserec.errors import ConfigError
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.config import Settings
from diffuserec.models.recommender import ScoreRecommender


class Oracle(ScoreRecommender):
    """Scores an item by the logarithm of its true probability of coming next."""

    class Config(Settings):
        """Settings of the oracle."""

        store: Store
        """Store whose log is measured on."""

    config: Config
    trained = False

    def __init__(self, store: Store) -> None:
        super().__init__(store=store)

    def build(self, catalog: Catalog) -> None:
        """Checks that the catalog is the store's own.

        Raises:
            ConfigError: items or users are not those of the store's log.
        """
        store = self.config.store
        if not catalog.item_ids.equals(store.item_ids) or catalog.n_users != store.n_users:
            raise ConfigError(
                f"Oracle: this log ({catalog.n_items} items, {catalog.n_users} users) is not the "
                f"whole log of its store ({store.n_items}, {store.n_users}): "
                "use store.dataset(), unfiltered"
            )

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        """Learns nothing."""
        return []

    def all_scores(self, histories: Histories) -> Float[Tensor, "B V"]:
        """Log-probability of each item; minus infinity for an item that cannot come next.

        Args:
            histories: whole and without synthetic items; users by the store's numbers.
        """
        return self.config.store.next_item_probabilities(histories).log().float().to(self.device)
