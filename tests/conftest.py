"""Shapes and types are enforced in every test; small logs that many tests share."""

import inspect
from collections.abc import Callable
from typing import Any, ForwardRef, Literal, Self, get_args, get_origin

import jaxtyping
import torch
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook, jaxtyped

torch.set_num_threads(1)


def in_quotes(hint: object) -> bool:
    """Whether a hint is in quotation marks, or holds one that is."""
    if isinstance(hint, str | ForwardRef):
        return True
    return get_origin(hint) is not Literal and any(map(in_quotes, get_args(hint)))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """beartype, with the three things that it cannot know of a single function.

    Self has no meaning outside its class; a dataclass field that is filled in after construction
    may be given its default None, though it never holds it; and a hint in quotation marks may name
    what is imported for type checkers alone.
    """
    written = function.__annotations__
    hints = {name: Any if in_quotes(hint) else hint for name, hint in written.items()}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.default is None and name in hints:
            hints[name] = hints[name] | None
    if hints.get("return") is Self:
        hints["return"] = Any
    function.__annotations__ = hints
    checking = beartype(conf=BeartypeConf(violation_type=TypeError))(function)
    function.__annotations__ = checking.__annotations__ = written
    return checking


def checked_where_shapes_are(**options: Any) -> Callable[[Any], Any]:
    """jaxtyped, for classes and for functions whose annotations have shapes; others are checked.

    jaxtyping makes three functions of each and prepares for shapes in every call, which takes much
    of the suite's time.
    """

    def decorate(of: Any) -> Any:
        has_shapes = "jaxtyping" in repr(getattr(of, "__annotations__", {}))
        if has_shapes or isinstance(of, type):
            return jaxtyped(of, **options)
        return options["typechecker"](of)

    return decorate


# before anything imports the package: from here on its annotations are enforced
jaxtyping.jaxtyped = checked_where_shapes_are
install_import_hook("diffuserec", f"sys.modules[{__name__!r}].checked")

import numpy as np  # noqa: E402
import pytest  # noqa: E402

from diffuserec.data import SequenceDataset  # noqa: E402
from diffuserec.training.checkpoint import Checkpoint  # noqa: E402


def _cycle(n_items: int = 20, n_users: int = 60) -> SequenceDataset:
    generator = np.random.default_rng(0)
    starts = generator.integers(0, n_items, n_users).tolist()
    lengths = generator.integers(6, 12, n_users).tolist()
    return SequenceDataset.from_lists(
        [
            [(start + step) % n_items + 1 for step in range(length)]
            for start, length in zip(starts, lengths, strict=True)
        ]
    )


@pytest.fixture(scope="session")
def cycle() -> SequenceDataset:
    """Whoever is at item i of 20 goes on to i + 1, and from 20 to 1: 60 users of 6 to 11 items."""
    return _cycle()


@pytest.fixture(scope="session")
def random_log() -> SequenceDataset:
    """40 users with 3 to 15 of 25 items each, no structure; the first user has every item."""
    generator = np.random.default_rng(1)
    sequences = [generator.integers(1, 26, n).tolist() for n in generator.integers(3, 16, 40)]
    sequences[0] = [*range(1, 26)]
    return SequenceDataset.from_lists(sequences)


@pytest.fixture(scope="session")
def tastes() -> SequenceDataset:
    """80 users with 8 different items each, in no order: of 1 to 12, every other of 13 to 24."""
    generator = np.random.default_rng(2)
    return SequenceDataset.from_lists(
        [(12 * (user % 2) + generator.permutation(12)[:8] + 1).tolist() for user in range(80)]
    )


@pytest.fixture
def cut_and_resumed(tmp_path, monkeypatch) -> Callable[..., Any]:
    """Of a function that fits four epochs with the surroundings it is given: a fit that was
    interrupted after two and resumed, of which only the other two may be trained again."""

    def twice(fitted: Callable[..., Any]) -> Any:
        save, made = Checkpoint.save, []

        def watched(self, records, best):
            save(self, records, best)
            made.append(records[-1].epoch)
            if made == [0, 1]:
                raise KeyboardInterrupt

        monkeypatch.setattr(Checkpoint, "save", watched)
        with pytest.raises(KeyboardInterrupt):
            fitted(checkpoint=tmp_path)
        resumed = fitted(checkpoint=tmp_path, resume=True)
        assert made == [0, 1, 2, 3]
        return resumed

    return twice
