"""The index of a saved model's items, in a file beside it: ``model.index.safetensors``.

It names the model that it is of by the checksum of the model's manifest. What it holds are the
centers and the list of each item, from which the index is put together again with the model's own
vectors: nothing of it is code or anything that faiss would have to parse.
"""

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from diffuserec.errors import DataError
from diffuserec.files import replacing
from diffuserec.models.artifact import FORMAT, write_tensors
from diffuserec.models.recommender import Recommender, StateRecommender
from diffuserec.models.retrieval import ItemIndex
from diffuserec.training.checkpoint import digest_of


def item_index_of(
    run: Path, model: Recommender, say: Callable[[str], None] = lambda line: None
) -> ItemIndex:
    """The index of a saved model's items: read, or made and saved beside it.

    Args:
        run: the directory of a run, or of the saved model itself.
        model: what was loaded from there.
        say: called with a line that tells the recall, and whether the index was made now.

    Raises:
        ConfigError: the model scores otherwise than by one product, or faiss is not installed.
        DataError: the file cannot be read or written.
    """
    model.require_products()
    assert isinstance(model, StateRecommender)
    inside = run / "model"
    own = inside if (inside / "manifest.json").exists() else run
    digest = FORMAT.manifest(own)["sha256"]
    path = own.resolve()
    path = path.with_name(f"{path.name}.index.safetensors")
    index, how = _read(path, model, digest), "read"
    if index is None:
        index, how = model.item_index(), "made"
        tensors, facts = index.tensors(), {"model": digest}
        with replacing(path) as work:
            write_tensors(tensors, work, {**facts, "sha256": digest_of(tensors, facts)})
    say(
        f"approximate lists: {index.recall:.1%} of the ten best items of an exact list were found, "
        f"on histories of one item each, in {index.n_probed:,} of {len(index.centers):,} parts of "
        f"the index ({how}: {path})"
    )
    return index


def _read(path: Path, model: StateRecommender, digest: str) -> ItemIndex | None:
    """The index of that file; None if there is none, or one of another model."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            facts = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if facts.pop("sha256", None) != digest_of(tensors, facts):
            raise ValueError("it does not match its checksum")
        if facts.get("model") != digest:
            return None
        return ItemIndex.again(model.item_weight(), tensors)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}): remove it, and it is made anew") from error
