"""The best possible on the built-in store: what a method that knew every hidden taste would score.

No method is expected to reach it, since tastes are hidden; the distance says how much is left. It
is a yardstick, so it is not listed among the methods.
"""

from typing import Self

from jaxtyping import Float
from torch import Tensor

from diffuserec.models.base import Recommender, Run, Settings
from diffuserec.data import Catalog, Histories, Queries, SequenceDataset, Store
from diffuserec.errors import ConfigError


class Oracle(Recommender):
    """Scores an item by the logarithm of its true probability of coming next.

    Args:
        store: the store whose log is measured on; it says everything there is to know.
    """

    class Config(Settings):
        """The store is all there is to set.

        Attributes:
            store: the store whose log is measured on.
        """

        store: Store

    config: Config

    def __init__(self, store: Store) -> None:
        super().__init__(store=store)

    def build(self, catalog: Catalog) -> None:
        """Checks that it is the store's own catalog.

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

    def fit(
        self, train: SequenceDataset, valid: Queries | None = None, run: Run | None = None
    ) -> Self:
        """Learns nothing; takes the catalog."""
        self.begin(train, run or Run())
        return self

    def score(self, histories: Histories, seed: int = 0) -> Float[Tensor, "B V"]:
        """Log-probability of each item; minus infinity for what cannot come.

        Args:
            histories: whole and without synthetic items; users by the store's numbers.
            seed: not used.
        """
        return self.config.store.next_item_probabilities(histories).log().float().to(self.device)
