"""Hyper-parameters: typed, frozen, checked against each other by one declarative rule."""

import inspect
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, Self, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo

from diffuserec.data import SequenceDataset
from diffuserec.errors import ConfigError, did_you_mean


@dataclass(frozen=True, init=False)
class OnlyIf:
    """Says when a setting has an effect; stands in its annotation.

    ``gbce_t: Annotated[float, OnlyIf(loss="gbce")] = 0.75`` is read for one value of ``loss``
    alone. Setting it to anything but its default is refused otherwise.

    Args:
        conditions: by name of another setting, the values for which this one is read: one value,
            a tuple of values, or a predicate whose docstring says what it asks for.
    """

    conditions: Mapping[str, Any]

    def __init__(self, **conditions: Any) -> None:
        object.__setattr__(self, "conditions", conditions)

    def asks(self, name: str) -> bool:
        """Whether it depends on the setting of that name."""
        return name in self.conditions

    def __str__(self) -> str:
        return "Only with " + " and ".join(
            _words(wanted) if callable(wanted) else f"{name} = {_either(wanted)}"
            for name, wanted in self.conditions.items()
        )

    def unmet(self, settings: "Settings") -> str | None:
        """The first condition that does not hold, in words; None if all hold."""
        for name, wanted in self.conditions.items():
            value = getattr(settings, name)
            if callable(wanted):
                if not wanted(value):
                    return f"{name} = {value!r}: it needs {_words(wanted)}"
                continue
            several = wanted if isinstance(wanted, tuple) else (wanted,)
            if value not in several:
                needed = " or ".join(f"{name} = {v!r}" for v in several)
                return f"{name} = {value!r}: it needs {needed}"
        return None


@dataclass(frozen=True)
class Search:
    """Says where tuning looks for a setting; stands in its annotation.

    ``learning_rate: Annotated[float, Search(1e-4, 1e-2, log=True)] = 1e-3``.

    Attributes:
        low: least value.
        high: greatest value.
        log: whether ratios count, not differences.
        choices: values instead of a range.
    """

    low: float | int | None = None
    high: float | int | None = None
    log: bool = False
    choices: tuple[Any, ...] = ()

    def __str__(self) -> str:
        if self.choices:
            return ", ".join("none" if c is None else str(c) for c in self.choices)
        return f"{self.low} to {self.high}{', by ratio' if self.log else ''}"


@dataclass(frozen=True)
class ByLog:
    """Says that a setting's default follows from the log; stands in its annotation.

    See :meth:`Settings.defaults_for`.
    """


@dataclass(frozen=True)
class Later:
    """Says that a setting came after results were kept; stands in its annotation.

    Where it changes nothing of what was before, it is no part of a study's keys and of a
    checkpoint's owner, which stay what they were: at its default, or, if its default is a change,
    where it has no effect and at the value that it had without being a setting.

    Attributes:
        was: that value; None where it is the default.
    """

    was: Any = None


_RULE = 1
"""Counts changes of the rules of :meth:`Settings.defaults_for`; part of a study's keys."""


def _holds(value: Any, given: Any) -> bool:
    """Whether a value is the given one; settings of a part may have more than were given."""
    if isinstance(value, Mapping) and isinstance(given, Mapping):
        return all(name in value and _holds(value[name], given[name]) for name in given)
    return bool(value == given)


class Settings(BaseModel):
    """Hyper-parameters: typed, frozen, unknown names refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )

    @model_validator(mode="before")
    @classmethod
    def _none_is_a_word(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Neither a command line nor TOML can say None but by its name."""

        def may_be_none(name: str) -> bool:
            field = cls.model_fields.get(name)
            return field is not None and NoneType in get_args(field.annotation)

        return {k: None if v == "none" and may_be_none(k) else v for k, v in values.items()}

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if value == field.get_default(call_default_factory=True):
                continue
            for rule in field.metadata:
                unmet = rule.unmet(self) if isinstance(rule, OnlyIf) else None
                if unmet is not None:
                    raise ValueError(f"{name} = {value!r} has no effect with {unmet}")
        return self

    def suited_to(self, log: SequenceDataset) -> Self:
        """The same settings, those that are :class:`ByLog` and were not given suited to a log."""
        open_ = [name for name in by_log(type(self)) if name not in self.model_fields_set]
        found = self.defaults_for(log, open_) if open_ and len(log) else {}
        return self.model_copy(update=found)

    def defaults_for(self, log: SequenceDataset, names: Collection[str]) -> dict[str, Any]:
        """Defaults of these settings for a log."""
        raise NotImplementedError

    def comes_of(self, given: "Settings") -> bool:
        """Whether these settings are given ones, suited to some log."""
        left = set(by_log(type(given))) - given.model_fields_set
        return type(self) is type(given) and all(
            name in left or _holds(value, getattr(given, name)) for name, value in self
        )

    def identity(self) -> dict[str, Any]:
        """What decides a result, as JSON values: all settings, or by which rule the log does."""
        left = dict.fromkeys(by_log(type(self)), f"by the log, rule {_RULE}")
        given = {name for name in left if name in self.model_fields_set}
        return self.stated() | {k: v for k, v in left.items() if k not in given}

    def stated(self) -> dict[str, Any]:
        """All settings as JSON values, but for :class:`Later` ones that change nothing."""
        fields = type(self).model_fields.items()
        later = {name for name, field in fields if self._is_as_before(name, field)}
        return self.model_dump(mode="json", exclude=later)

    def _is_as_before(self, name: str, field: FieldInfo) -> bool:
        """Whether a setting is :class:`Later` and changes nothing of what was before it."""
        for rule in field.metadata:
            if isinstance(rule, Later):
                if rule.was is None:
                    return bool(getattr(self, name) == field.get_default(call_default_factory=True))
                conditions = [other for other in field.metadata if isinstance(other, OnlyIf)]
                return getattr(self, name) == rule.was or any(c.unmet(self) for c in conditions)
        return False

    @property
    def heeds_use(self) -> bool:
        """Of a recommender: whether it is trained on batches of next items, which heed how
        generated items are used."""
        return False

    @property
    def scores_are_logits(self) -> bool:
        """Whether softmax(score) of the trained model is its predictive distribution."""
        return False


SettingsType = TypeVar("SettingsType", bound=Settings)


def by_log(schema: type[Settings]) -> list[str]:
    """Settings whose defaults follow from the log."""
    fields = schema.model_fields.items()
    return [name for name, f in fields if any(isinstance(rule, ByLog) for rule in f.metadata)]


def parse_settings(
    schema: type[SettingsType], values: Mapping[str, Any], owner: str
) -> SettingsType:
    """Hyper-parameters checked against their schema.

    Raises:
        ConfigError: an unknown name (with the nearest known one), a value that is not allowed, or
            a setting that has no effect beside the others.
    """
    known = list(schema.model_fields)
    for name in values:
        if name not in known:
            having = f"it has: {', '.join(known)}" if known else "it has none"
            raise ConfigError(
                f"{owner} has no setting {name!r}{did_you_mean(name, known)}; {having}"
            )
    try:
        found = schema(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "settings"
        message = _message(first["type"], first["msg"])
        got = first["input"] if first["loc"] else dict(values)
        raise ConfigError(f"{owner}: {where}: {message}, got {got!r}") from error
    for name, value in found.model_dump(mode="json").items():
        try:
            json.dumps(value, allow_nan=False)
        except ValueError as error:
            raise ConfigError(f"{owner}: {name}: every number must be finite") from error
    return found


_MESSAGES = {
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_type": "must be a whole number",
    "int_parsing_size": "must be a whole number of fewer digits",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text",
}
"""What is wrong with a value, by pydantic's name of it."""


def _message(kind: str, text: str) -> str:
    text = text.removeprefix("Value error, ")
    return _MESSAGES.get(kind, text.replace("Input should be", "must be"))


def signature_of(schema: type[Settings]) -> inspect.Signature:
    """Signature of a method's constructor: its settings with plain types and defaults."""
    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.get_default(call_default_factory=True),
            annotation=field.annotation,
        )
        for name, field in schema.model_fields.items()
    ]
    return inspect.Signature(parameters)


def described_settings(schema: type[Settings]) -> list[dict[str, str]]:
    """Name, type, bounds, default, meaning, condition and search of every setting, in words.

    The meaning is the text under the field, in the class that declares it last or in a base.
    """
    found = []
    for name, field in schema.model_fields.items():
        rules = [rule for rule in field.metadata if isinstance(rule, OnlyIf)]
        bounds = [
            f"{sign} {getattr(rule, bound)}"
            for rule in field.metadata
            for bound, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
            if hasattr(rule, bound)
        ]
        default = field.get_default(call_default_factory=True)
        texts = (
            base.model_fields[name].description
            for base in schema.__mro__
            if issubclass(base, Settings) and name in base.model_fields
        )
        found.append(
            {
                "name": name,
                "type": _type_in_words(field.annotation),
                "bounds": ", ".join(bounds),
                "default": "none" if default is None else str(default),
                "meaning": " ".join(next(filter(None, texts), "").split())
                + " Follows from the log unless given." * (name in by_log(schema)),
                "only_if": " ".join(f"{rule}." for rule in rules),
                "searched": next((str(r) for r in field.metadata if isinstance(r, Search)), ""),
            }
        )
    return found


def _type_in_words(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " or ".join(map(str, get_args(annotation)))
    if get_origin(annotation) is Mapping:
        return "mapping"
    return inspect.formatannotation(annotation).replace("NoneType", "None").replace("None", "none")


def _either(wanted: Any) -> str:
    return " or ".join(map(str, wanted if isinstance(wanted, tuple) else (wanted,)))


def _words(predicate: Callable[[Any], bool]) -> str:
    return " ".join((predicate.__doc__ or predicate.__name__).split()).rstrip(".")
