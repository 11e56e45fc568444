"""Models as graphs for other runtimes, and item vectors for other systems.

A graph takes histories as item numbers, right-padded, and gives states and the scores of all items,
for any number of histories and any length up to the model's. A generative model's noise is an
input, so that its graph holds no randomness; its sampler is unrolled, and its denoiser is a graph
of its own beside. A JSON file beside says what the numbers mean.
"""

import contextlib
import io
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import diffuserec
from diffuserec.data import Histories
from diffuserec.errors import ConfigError, DataError
from diffuserec.files import replacing, sha256, write_json
from diffuserec.models.diffusion import noise_from, sampling_by
from diffuserec.models.methods import load, load_augmenter, run_of
from diffuserec.models.recommender import Recommender, StateRecommender

Target = Literal["onnx", "torch-export", "vectors"]

TOLERANCE = 1e-4
"""Greatest difference of a graph from the model, as a share of the largest number there."""

_ENDINGS: Mapping[Target, str] = {"onnx": ".onnx", "torch-export": ".pt2", "vectors": ".parquet"}
_FORMAT, _VERSION = "diffuserec-export", 1
_TRACED = (3, 4)
"""Histories and positions of the example that a graph is traced with; neither is fixed by it."""
_TRIED = ((1, 1), (2, 3), (5, 7))
"""Sizes at which a graph is held against the model, lengths at most the model's."""
_LARGEST = 2**31 - 2**24
"""Bytes of one ONNX file, with some room for what is not weights."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        files: all of them.
        difference: greatest difference of a graph from the model, see :data:`TOLERANCE`; None for
            vectors, which are the model's.
    """

    files: tuple[Path, ...]
    difference: float | None


def export(model: Path | str, to: Target, out: Path) -> Exported:
    """Writes a model for other runtimes; see the module and docs/deploy.md.

    Args:
        model: a run's directory, or that of a saved recommender.
        to: ``onnx``, ``torch-export`` or ``vectors``.
        out: file to write, ending in .onnx, .pt2 or .parquet; others stand beside under its name.

    Raises:
        ConfigError: the model gives no states, has an operation that the format lacks, or is too
            large for it; the ending is another; or something is not installed.
        DataError: a file stands there, or the graph does not give what the model gives.
    """
    if out.suffix != _ENDINGS[to]:
        raise ConfigError(f"--to {to} writes a file that ends in {_ENDINGS[to]}, got {out.name!r}")
    about = out.with_name(f"{out.name}.json")
    _require_free(out, about, *([out.with_suffix(".faiss")] if to == "vectors" else []))
    source = run_of(model)
    recommender = load(source)
    if not isinstance(recommender, StateRecommender):
        raise ConfigError(
            f"{recommender.name} gives scores without states, of which no graph is made; models "
            "with states are most of those that 'diffuserec models' calls recommenders of sequences"
        )
    if to != "vectors" and (source / "augmenter").is_dir():
        augmenter = load_augmenter(source / "augmenter")
        if not augmenter.training_only:
            raise ConfigError(
                f"{model} was trained with {augmenter.name}, which changes histories before the "
                "model sees them and is no part of a graph: serve it with 'diffuserec serve'"
            )
    manifest = source / "model" / "manifest.json"
    facts = _facts(recommender, sha256(manifest if manifest.exists() else source / "manifest.json"))
    if to == "vectors":
        files = _write_vectors(recommender, out)
        write_json(about, facts | {"files": [path.name for path in files]})
        return Exported((*files, about), None)
    graph = _graph_of(recommender)
    names = {out: graph}
    if graph.denoiser is not None:
        names[_denoiser_file(out)] = graph.denoiser
        _require_free(_denoiser_file(out))
    difference = 0.0
    with contextlib.ExitStack() as stack:
        works = {path: stack.enter_context(replacing(path)) for path in names}
        for path, part in names.items():
            difference = max(difference, _write_graph(recommender.name, part, to, works[path]))
    write_json(about, facts | {"graphs": {path.name: part.facts() for path, part in names.items()}})
    return Exported((*names, about), difference)


# --- graphs -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Draw:
    """A draw of noise.

    Attributes:
        rows: that it has for each history.
        shape: of a row.
        by_position: whether the first number of the shape is the length of the histories; it is
            the model's greatest here.
    """

    rows: int
    shape: tuple[int, ...]
    by_position: bool = False

    @property
    def size(self) -> int:
        """Numbers for each history."""
        return self.rows * math.prod(self.shape)


class _Graph(nn.Module):
    """A model as a function of tensors alone.

    Attributes:
        draws: the noise that it takes, in this order.
        shortest: histories and positions that it takes at least.
        denoiser: the denoiser alone; None if there is no sampler.
    """

    def __init__(self, model: StateRecommender, draws: Sequence[_Draw]) -> None:
        super().__init__()
        self.model, self.draws = model.cpu().eval(), tuple(draws)
        self.denoiser: _Denoiser | None = None
        self.shortest = 1

    @property
    def n_noise(self) -> int:
        """Normal numbers that a history takes."""
        return sum(draw.size for draw in self.draws)

    def forward(
        self,
        items: Tensor,
        lengths: Tensor,
        noise: Tensor | None = None,
        times: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        states = self.states(items, lengths, noise, times)
        logits = states @ self.model.item_weight()[1:].T
        if self.model.combine == "product":
            return states, logits[:, 0]
        return states, logits.softmax(2).mean(1)

    def states(
        self, items: Tensor, lengths: Tensor, noise: Tensor | None, times: Tensor | None
    ) -> Float[Tensor, "B K E"]:
        """The model's states, with the noise that is given."""
        users = torch.full_like(lengths, self.model.catalog.n_users)  # as of nobody it knows
        with torch.no_grad(), noise_from(_Played(self.draws, noise)):
            return self.model.states(Histories(users, items, lengths, times))

    @property
    def input_names(self) -> list[str]:
        names = ["items", "lengths"]
        return names + ["noise"] * bool(self.draws) + ["times"] * self.model.reads_times

    @property
    def output_names(self) -> list[str]:
        return ["states", "scores"]

    def example(self, n: int, length: int, seed: int = 0) -> dict[str, Tensor]:
        """Inputs of some histories, one of them as long as can be."""
        length = length if self.model.max_len is None else min(length, self.model.max_len)
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(1, length + 1, (n,), generator=generator)
        lengths[0] = length
        size = (n, length)
        items = torch.randint(1, self.model.catalog.vocab_size, size, generator=generator)
        items = items.masked_fill(torch.arange(length) >= lengths[:, None], 0)
        found = {"items": items, "lengths": lengths}
        if self.draws:
            found["noise"] = torch.randn(n, self.n_noise, generator=generator)
        if self.model.reads_times:
            found["times"] = torch.randint(0, 10**6, size, generator=generator).sort(1).values
        return found

    def shapes(self) -> dict[str, Any]:
        """The dimensions of the inputs that may change."""
        n = torch.export.Dim("n", min=self.shortest)
        length = torch.export.Dim("length", min=self.shortest, max=self.model.max_len)
        found: dict[str, Any] = {"items": {0: n, 1: length}, "lengths": {0: n}}
        found |= {"noise": {0: n}, "times": {0: n, 1: length}}
        return {name: found[name] for name in self.input_names}

    def facts(self) -> dict[str, Any]:
        """What the file beside says of the graph."""
        found: dict[str, Any] = {"inputs": self.input_names, "outputs": self.output_names}
        found |= {"fewest_histories": self.shortest, "shortest": self.shortest}
        return found | ({"noise": self.n_noise} if self.draws else {})


class _Denoiser(_Graph):
    """The denoiser of a model: from noised vectors and a step to clean ones."""

    def __init__(self, graph: _Graph, rows: int, shape: tuple[int, ...], n_steps: int) -> None:
        super().__init__(graph.model, graph.draws)
        self.rows, self.shape, self.n_steps = rows, shape, n_steps

    def forward(  # type: ignore[override]
        self,
        items: Tensor,
        lengths: Tensor,
        x_t: Tensor,
        t: Tensor,
        noise: Tensor | None = None,
        times: Tensor | None = None,
    ) -> Tensor:
        found: list[Tensor] = []

        def once(denoise: Callable[[Tensor, Tensor], Tensor], x_T: Tensor) -> Tensor:
            x, step = x_t.reshape(-1, *self.shape), t
            if self.rows > 1:
                step = t[:, None].expand(-1, self.rows).reshape(-1)
            found.append(denoise(x, step))
            return x_T

        with sampling_by(once):
            self.states(items, lengths, noise, times)
        return found[0].reshape(-1, self.rows, *self.shape)

    @property
    def input_names(self) -> list[str]:
        first, others = ["items", "lengths", "x_t", "t"], super().input_names[2:]
        return first + others

    @property
    def output_names(self) -> list[str]:
        return ["x_0"]

    def example(self, n: int, length: int, seed: int = 0) -> dict[str, Tensor]:
        found = super().example(n, length, seed)
        generator = torch.Generator().manual_seed(seed + 1)
        found["x_t"] = torch.randn(n, self.rows, *self.shape, generator=generator)
        found["t"] = torch.randint(0, self.n_steps, (n,), generator=generator)
        return {name: found[name] for name in self.input_names}

    def shapes(self) -> dict[str, Any]:
        n = torch.export.Dim("n", min=self.shortest)
        length = torch.export.Dim("length", min=self.shortest, max=self.model.max_len)
        found: dict[str, Any] = {"items": {0: n, 1: length}, "lengths": {0: n}}
        found |= {"noise": {0: n}, "times": {0: n, 1: length}, "x_t": {0: n}, "t": {0: n}}
        return {name: found[name] for name in self.input_names}

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"x_t": [self.rows, *self.shape], "steps": self.n_steps}


class _Played:
    """Noise out of given numbers, a draw after the other."""

    def __init__(self, draws: Sequence[_Draw], noise: Tensor | None) -> None:
        self.left, self.noise, self.at = list(draws), noise, 0

    def __call__(self, keys: Int[Tensor, " B"], shape: tuple[int, ...]) -> Float[Tensor, "B ..."]:
        draw = self.left.pop(0)
        assert self.noise is not None
        part = self.noise[:, self.at : self.at + draw.size].reshape(-1, *draw.shape)
        self.at += draw.size
        if not draw.by_position:
            return part
        return part.index_select(1, torch.arange(shape[0]))  # a slice would ask how long it is


def _graph_of(model: StateRecommender) -> _Graph:
    """The graph of a model, after looking at what noise it draws.

    Raises:
        ConfigError: it has no noise of a shape that a graph can be given.
    """
    seen: list[list[_Draw]] = []
    starts: list[_Draw] = []
    for n, length in (_TRACED, (_TRACED[0] - 1, _TRACED[1] - 1)):
        drawn: list[_Draw] = []

        def record(
            keys: Tensor, shape: tuple[int, ...], n: int = n, drawn: list[_Draw] = drawn
        ) -> Tensor:
            drawn.append(_Draw(len(keys) // n, shape))
            return torch.zeros(len(keys), *shape)

        def first(denoise: Callable[[Tensor, Tensor], Tensor], x_T: Tensor, n: int = n) -> Tensor:
            starts.append(_Draw(len(x_T) // n, tuple(x_T.shape[1:])))
            return x_T

        example = _Graph(model, ()).example(n, length)
        users = torch.full_like(example["lengths"], model.catalog.n_users)
        asked = Histories(users, example["items"], example["lengths"], example.get("times"))
        with torch.no_grad(), noise_from(record):
            model.states(asked)
        seen.append(list(drawn))
        with torch.no_grad(), noise_from(record), sampling_by(first):
            model.states(asked)
    if [draw.rows for draw in seen[0]] != [draw.rows for draw in seen[1]]:
        raise ConfigError(
            f"{model.name} draws noise by the length of histories: export its vectors"
        )
    draws = []
    for draw, other in zip(*seen, strict=True):
        grows = draw.shape[:1] != other.shape[:1]
        if grows and model.max_len is not None:
            draw = _Draw(draw.rows, (model.max_len, *draw.shape[1:]), by_position=True)
        if draw.shape[grows:] != other.shape[grows:]:
            raise ConfigError(f"{model.name} draws noise of a shape that a graph can't be given")
        draws.append(draw)
    graph = _Graph(model, draws)
    if starts:
        n_steps = int(model.config.model_dump().get("num_train_timesteps", 1))
        graph.denoiser = _Denoiser(graph, starts[0].rows, starts[0].shape, n_steps)
    return graph


@torch.no_grad()
def _write_graph(name: str, graph: _Graph, to: Target, work: Path) -> float:
    """Writes a graph and holds it against the model at other sizes.

    Returns:
        The greatest difference.

    Raises:
        ConfigError: an operation has no form in this format, or the graph is too large for it.
        DataError: the graph gives something else.
    """
    program = _program(name, graph)
    run: Callable[[dict[str, Tensor]], Sequence[Any]]
    if to == "torch-export":
        buffer = io.BytesIO()
        with _quiet():
            torch.export.save(program, buffer)
        work.write_bytes(buffer.getvalue())
        module = program.module()
        run = lambda inputs: _listed(module(**inputs))  # noqa: E731
    else:
        run = _write_onnx(name, graph, program, work)
    greatest = 0.0
    for number, sizes in enumerate(_TRIED):
        n, length = (max(size, graph.shortest) for size in sizes)
        inputs = graph.example(n, length, seed=number + 1)
        for found, expected in zip(run(inputs), _listed(graph(**inputs)), strict=True):
            scale = max(1.0, float(expected.abs().max()))
            difference = float((torch.as_tensor(found) - expected).abs().max()) / scale
            if not difference <= TOLERANCE:
                raise DataError(
                    f"the graph of {name} differs from the model by {difference:.1e} for {n} "
                    f"histories of {length} items: it is not written; please report this"
                )
            greatest = max(greatest, difference)
    return greatest


def _program(name: str, graph: _Graph) -> torch.export.ExportedProgram:
    """The traced graph, for one history of one item if that can be."""
    for graph.shortest in (1, 2):
        try:
            with _quiet(), torch.no_grad():
                example = graph.example(*_TRACED)
                return torch.export.export(
                    graph, (), example, dynamic_shapes=graph.shapes(), strict=False
                )
        except (RuntimeError, ValueError, AssertionError, NotImplementedError, TypeError) as error:
            cause = error
    reason = " ".join(str(cause).split())[:200]
    raise ConfigError(
        f"no graph of {name} can be made with these settings ({reason}): export its vectors, or "
        "serve it with 'diffuserec serve'"
    ) from cause


def _write_onnx(
    name: str, graph: _Graph, program: torch.export.ExportedProgram, work: Path
) -> Callable[[dict[str, Tensor]], Sequence[Any]]:
    """Writes an ONNX graph; returns what runs it in ONNX Runtime."""
    onnxruntime = _installed("onnxruntime")
    _installed("onnx"), _installed("onnxscript")
    n_bytes = sum(tensor.nbytes for tensor in graph.state_dict().values())
    if n_bytes > _LARGEST:
        raise ConfigError(
            f"{name} has {n_bytes / 2**30:.1f} GiB, and one ONNX file holds 2: use torch-export"
        )
    try:
        with _quiet():
            made = torch.onnx.export(
                program,
                (),
                kwargs=graph.example(*_TRACED),
                input_names=graph.input_names,
                output_names=graph.output_names,
                dynamic_shapes=graph.shapes(),
                dynamo=True,
                verbose=False,
            )
            assert made is not None
            made.save(work, external_data=False)
    except torch.onnx.errors.OnnxExporterError as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{name} has operations that ONNX lacks ({reason}): --to torch-export has all"
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        work.read_bytes(), options, providers=["CPUExecutionProvider"]
    )
    taken = {node.name for node in session.get_inputs()}

    def run(inputs: dict[str, Tensor]) -> Sequence[Any]:
        given = {name: value.numpy() for name, value in inputs.items() if name in taken}
        found: Sequence[Any] = session.run(graph.output_names, given)
        return found

    return run


def _listed(found: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leaves out what exporters say of their own deprecations; plain kernels, which have forms
    in all formats."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def _installed(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"--to onnx needs {name}: pip install 'diffuserec[export]'") from error


# --- vectors ------------------------------------------------------------------------------------


def _write_vectors(model: StateRecommender, out: Path) -> list[Path]:
    """Item vectors by raw id and, where faiss is installed, an exact index of them."""
    vectors = model.item_weight()[1:].detach().float().cpu().numpy()
    column = pl.Series("vector", vectors, dtype=pl.Array(pl.Float32, vectors.shape[1]))
    frame = pl.DataFrame([model.catalog.item_ids.alias("item_id"), column])
    with replacing(out) as work:
        frame.write_parquet(work)
    try:
        faiss = import_module("faiss")
    except ModuleNotFoundError:
        return [out]
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors))
    place = out.with_suffix(".faiss")
    with replacing(place) as work:
        work.write_bytes(faiss.serialize_index(index).tobytes())
    return [out, place]


def _require_free(*paths: Path) -> None:
    for path in paths:
        if path.exists():
            raise DataError(f"{path} exists already: choose another --out, or remove it")


def _denoiser_file(out: Path) -> Path:
    """Where a diffusion model's denoiser stands, beside its graph."""
    return out.with_name(f"{out.stem}-step{out.suffix}")


def _facts(model: Recommender, digest: str) -> dict[str, Any]:
    """What numbers of graphs and vectors mean."""
    assert isinstance(model, StateRecommender)
    item_ids = model.catalog.item_ids.to_list()
    json.dumps(item_ids, allow_nan=False)
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "method": model.name,
        "model_sha256": digest,
        "diffuserec": diffuserec.__version__,
        "torch": torch.__version__,
        "items": "numbers from 1 in the order of item_ids, oldest first, 0 after the end",
        "padding": "right",
        "max_len": model.max_len,
        "states": model.item_weight().shape[1],
        "scores": "probabilities" if model.combine == "mixture" else "products",
        "scores_are_logits": model.scores_are_logits,
        "score_order": "column i is item_ids[i]; items of the history are not hidden",
        "item_ids": item_ids,
    }
