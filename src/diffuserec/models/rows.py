"""Tables with a row for each item or user of a catalog, and how rows come into another one."""

from abc import ABC, abstractmethod
from typing import Any

from torch import nn

from diffuserec.data import Catalog


class CatalogRows(nn.Module, ABC):
    """A module whose tensors have a row for each item or user, by its number in a catalog."""

    @abstractmethod
    def carry_over(self, catalog: Catalog, old: Any, old_catalog: Catalog) -> int:
        """Takes over the rows that another such table learned, matched by raw id.

        Args:
            catalog: of this table.
            old: the table to take from, of the same settings.
            old_catalog: of that table.

        Returns:
            The number of rows that were found.
        """
