"""A made-up shop: a log of clicks, and names and categories of its items."""

from pathlib import Path

from diffuserec.data.store import Store
from diffuserec.files import replacing


def write_shop(out: Path) -> tuple[Path, Path]:
    """Writes ``clicks.csv`` and ``items.csv``; always the same.

    Returns:
        The paths of both.

    Raises:
        DataError: they cannot be written.
    """
    store = Store(n_users=1500, n_items=300, longest=12)
    clicks, items = out / "clicks.csv", out / "items.csv"
    for path, frame in (
        (clicks, store.frame()),
        (items, store.item_frame()),
    ):
        with replacing(path) as work:
            frame.write_csv(work)
    return clicks, items
