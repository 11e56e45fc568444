"""What requests and answers look like. Requests are read strictly: no unknown field, no bending."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

LONGEST_ID = 512
LONGEST_QUERY = 200
_MOST_LISTED = 10_000

ItemId = (
    Annotated[int, Field(ge=-(2**63), lt=2**63)]
    | Annotated[str, StringConstraints(max_length=LONGEST_ID)]
)
History = Annotated[list[ItemId], Field(description="Raw item ids, oldest first.")]
Times = Annotated[
    list[Annotated[int, Field(ge=-(2**63), lt=2**63)]],
    Field(
        description="When each item of the history was chosen: whole numbers in the unit of the "
        "training log, microseconds since 1970 if it has dates. Models whose card says reads_times "
        "read them; others do not."
    ),
]
ModelName = Annotated[
    str | None,
    Field(max_length=64, description="Name of a model of GET /v1/models; null is the first."),
]


class _Wire(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class Options(_Wire):
    """How lists are made; requests of equal options share a call of the model."""

    k: Annotated[int, Field(ge=1)] = 10
    """List length; a catalog with fewer items gives shorter lists."""
    filter_seen: bool = True
    """Whether items of the history itself are left out."""
    allow: Annotated[list[ItemId], Field(max_length=_MOST_LISTED)] | None = None
    """Only these items may be shown; null allows all."""
    deny: Annotated[list[ItemId], Field(max_length=_MOST_LISTED)] | None = None
    """These items may not be shown."""
    on_unknown: Literal["skip", "refuse"] = "skip"
    """Whether ids that the catalog does not hold are skipped, and counted, or refused."""
    n_draws: Annotated[int, Field(ge=1)] | None = None
    """Noise draws, of a model that draws noise; null is the model's own number."""
    diversity: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Of a model that draws noise: 0 ranks by the mean of the draws, 1 by the first draw."""
    mmr: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Weight of dissimilarity in the list (maximal marginal relevance); 0 is the plain list."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of the noise."""


class _Recommending(Options):
    model: ModelName = None

    def options(self) -> Options:
        """The options alone."""
        values = {name: getattr(self, name) for name in Options.model_fields}
        return Options.model_construct(**values)


def _require_times_of(history: list[Any], times: list[Any] | None) -> None:
    """Raises an error of pydantic's unless there is a time for each item, or there are none."""
    if times is not None and len(times) != len(history):
        raise PydanticCustomError("times", "must have one time for each item of the history")


class _TimedHistory(_Wire):
    history: History
    times: Times | None = None

    @field_validator("times")
    @classmethod
    def _as_long(cls, times: list[int] | None, info: Any) -> list[int] | None:
        if "history" in info.data:  # else that is the problem
            _require_times_of(info.data["history"], times)
        return times


class RecommendRequest(_Recommending, _TimedHistory):
    """Ask for the next items of one history."""


class BatchRequest(_Recommending):
    """Ask for the next items of several histories."""

    histories: Annotated[list[History], Field(min_length=1)]
    times: list[Times] | None = None
    """Of each history."""

    @field_validator("times")
    @classmethod
    def _as_long(cls, times: list[list[int]] | None, info: Any) -> Any:
        histories = info.data.get("histories")
        if times is None or histories is None:
            return times
        if len(times) != len(histories):
            raise PydanticCustomError("times", "must have one list for each history")
        for history, part in zip(histories, times, strict=True):
            _require_times_of(history, part)
        return times


class NextItemsRequest(_Wire):
    """Ask for the items that come after one item alone."""

    item: ItemId
    k: Annotated[int, Field(ge=1)] = 10
    model: ModelName = None


class SearchRequest(_Wire):
    """Ask for items by their name or raw id."""

    query: Annotated[str, StringConstraints(max_length=LONGEST_QUERY)] = ""
    """Words that are all in the name or id; empty asks for the most popular items."""
    limit: Annotated[int, Field(ge=1)] = 10
    model: ModelName = None


class AugmentRequest(_Wire):
    """Ask what the augmenter of a model would write into a history."""

    history: Annotated[list[ItemId], Field(min_length=1)]
    model: ModelName = None
    n_draws: Annotated[int, Field(ge=1)] = 8
    """Times that the augmenter is asked, with as many seeds; `agreement` is a share of them."""
    seed: Annotated[int, Field(ge=0, lt=2**62)] = 0


class ReloadRequest(_Wire):
    """Ask that a model's directory be loaded again."""

    model: ModelName = None


class JobLine(_TimedHistory):
    """A line of a job."""

    user: ItemId | None = None
    """Whose history it is; comes back with the list."""


class JobStatus(BaseModel):
    """What became of a job."""

    id: str
    state: Literal["waiting", "running", "done", "failed"]
    model: str
    n: int
    """Histories."""
    n_done: int
    """Histories that have a list."""
    created: float
    """Seconds since 1970."""
    sha256: str | None = None
    """Checksum of the model that all lists are by, once it is done."""
    error: str | None = None


class Item(BaseModel):
    """An item of the catalog."""

    item_id: int | str
    name: str | None = None


class Listed(Item):
    """An item of a list."""

    rank: int
    score: float
    spread: float | None = None
    """Standard deviation of the item's probability over the noise draws, where there are any."""


class ItemList(BaseModel):
    """The list of one history."""

    source: Literal["model", "popularity"] | None
    """Who answered; null where no item is left to show."""
    n_unknown: int
    """Ids of the history that the catalog does not hold."""
    items: list[Listed]


class RecommendAnswer(ItemList):
    """The list of the history, and by which model."""

    model: str
    sha256: str


class BatchAnswer(BaseModel):
    """A list of each history, in their order."""

    model: str
    sha256: str
    lists: list[ItemList]


class SearchAnswer(BaseModel):
    """Items that were found, best match first."""

    model: str
    items: list[Item]


class Written(Item):
    """An item of a history as an augmenter gives it."""

    generated: bool
    """Whether the augmenter wrote it."""
    agreement: float | None = None
    """Share of the draws in which the augmenter wrote this item; null if it did not write it."""


class AugmentAnswer(BaseModel):
    """What an augmenter writes into a history."""

    model: str
    augmenter: str
    training_only: bool
    """Whether it only adds to training, so that lists are made of the history as it is."""
    n_draws: int
    n_unknown: int
    sequences: list[list[Written]]
    """The history with what was written into it; of an augmenter that makes copies, each copy."""


class ErrorAnswer(BaseModel):
    """Why a request was refused, in one line."""

    error: str
    status: int
    request_id: str


_MEANT = {
    "missing": "is missing",
    "extra_forbidden": "is no field of this request",
    "string_unicode": "must be text in UTF-8",
    "model_attributes_type": "must be a JSON object",
    "model_type": "must be a JSON object",
    "dict_type": "must be a JSON object",
    "list_type": "must be a list",
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "bool_type": "must be true or false",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
}
_VARIANTS = ("int", "str", "constrained-int", "constrained-str")


def problem_of(errors: Sequence[ErrorDetails | Any]) -> str:
    """The first problem of a request in one line, without what was sent."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return "the request is not JSON"
    place = [part for part in first["loc"] if part != "body"]
    if place and place[-1] in _VARIANTS:
        where = ".".join(_part(part) for part in place[:-1])
        kinds = {error["type"] for error in errors if error["loc"][:-1] == first["loc"][:-1]}
        if "string_too_long" in kinds:
            return f"{where} is longer than {LONGEST_ID} characters"
        return f"{where} must be an item id: text or a whole number of 64 bits"
    where = ".".join(_part(part) for part in place) or "the request"
    text = _MEANT.get(first["type"]) or first["msg"].replace("Input should be", "must be")
    return f"{where} {text[:1].lower()}{text[1:200]}"


def _part(part: object) -> str:
    """A step of the way to a field; a name that was sent is cut, for it may be of any length."""
    text = "".join(c if c.isprintable() else "?" for c in str(part))
    return text if len(text) <= 40 else f"{text[:39]}…"
