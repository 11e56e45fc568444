"""Settings: parsed with errors that name what to do, and refused where they have no effect."""

import inspect
from typing import Annotated, Literal

import pytest
from pydantic import Field, model_validator

from diffuserec.errors import ConfigError
from diffuserec.models.config import Later, OnlyIf, Settings, parse_settings, signature_of


def is_long(name: str) -> bool:
    """a name of
    five letters or more."""
    return len(name) >= 5


def unexplained(name: str) -> bool:
    return name == "red"


class Paint(Settings):
    """Settings with a condition of every form."""

    color: Literal["red", "green", "yellow", "none"] = "red"
    coats: int = Field(1, ge=1)
    primer: str | None = None
    by_value: Annotated[int, OnlyIf(color="red")] = 3
    by_values: Annotated[float, OnlyIf(color=("red", "green"))] = 0.5
    by_predicate: Annotated[str | None, OnlyIf(color=is_long)] = None
    by_name: Annotated[bool, OnlyIf(color=unexplained)] = False
    by_two: Annotated[int, OnlyIf(color="red", coats=2)] = Field(0, ge=0)
    by_none: Annotated[int, OnlyIf(primer=None)] = 7


def paint(**values: object) -> Paint:
    return parse_settings(Paint, values, "Wall")


# --- settings without effect --------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"color": "red", "by_value": 4},
        {"color": "red", "by_values": 0.1},
        {"color": "green", "by_values": 0.1},
        {"color": "green", "by_predicate": "oil"},
        {"color": "yellow", "by_predicate": "oil"},
        {"color": "red", "by_name": True},
        {"coats": 2, "by_two": 5},
        {"by_none": 8},
    ],
)
def test_a_setting_is_taken_where_its_condition_holds(settings):
    found = paint(**settings).model_dump()
    assert found == Paint().model_dump() | settings


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"color": "green", "by_value": 4},
            "by_value = 4 has no effect with color = 'green': it needs color = 'red'",
        ),
        (
            {"color": "yellow", "by_values": 0.1},
            "by_values = 0.1 has no effect with color = 'yellow': it needs color = 'red' or "
            "color = 'green'",
        ),
        (
            {"by_predicate": "oil"},
            "by_predicate = 'oil' has no effect with color = 'red': it needs a name of five "
            "letters or more",
        ),
        (
            {"color": "green", "by_name": True},
            "by_name = True has no effect with color = 'green': it needs unexplained",
        ),
        (
            {"by_two": 5},
            "by_two = 5 has no effect with coats = 1: it needs coats = 2",
        ),
        (
            {"coats": 2, "color": "green", "by_two": 5},
            "by_two = 5 has no effect with color = 'green': it needs color = 'red'",
        ),
        (
            {"primer": "zinc", "by_none": 8},
            "by_none = 8 has no effect with primer = 'zinc': it needs primer = None",
        ),
    ],
)
def test_a_setting_without_effect_is_refused_and_says_what_it_needs(settings, message):
    with pytest.raises(ConfigError) as caught:
        paint(**settings)
    assert str(caught.value) == f"Wall: settings: {message}, got {settings!r}"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("color", ["red", "green", "yellow", "none"])
@pytest.mark.parametrize("coats", [1, 2])
@pytest.mark.parametrize("primer", [None, "zinc"])
def test_a_default_is_never_refused(color, coats, primer):
    chosen = {"color": color, "coats": coats, "primer": primer}
    defaults = {k: v for k, v in Paint().model_dump().items() if k.startswith("by_")}
    assert len(defaults) == 6
    assert paint(**chosen) == paint(**chosen, **defaults)


def test_settings_made_of_others_are_as_good_as_new():
    first = paint(color="green", by_values=0.1)
    assert paint(**first.model_dump()) == first
    assert Paint.model_validate_json(first.model_dump_json()) == first


def test_another_default_in_a_subclass_is_the_one_that_is_never_refused():
    class Fence(Paint):
        color: Literal["red", "green", "yellow", "none"] = "green"
        by_value: Annotated[int, OnlyIf(color="red")] = 9

    assert parse_settings(Fence, {}, "Fence").by_value == 9
    with pytest.raises(ConfigError, match="by_value = 3 has no effect"):
        parse_settings(Fence, {"by_value": 3}, "Fence")


def test_rules_of_a_subclass_are_checked_after_what_has_no_effect():
    class Gate(Paint):
        @model_validator(mode="after")
        def _dries(self):
            if self.coats > 5:
                raise ValueError("more than 5 coats never dry")
            return self

    with pytest.raises(ConfigError, match=r"^Gate: settings: more than 5 coats never dry, got"):
        parse_settings(Gate, {"coats": 6}, "Gate")
    with pytest.raises(ConfigError, match="no effect"):
        parse_settings(Gate, {"coats": 6, "by_two": 1}, "Gate")


# --- parsing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values, message",
    [
        (
            {"colour": "red"},
            "Wall has no setting 'colour' (did you mean 'color'?); it has: color, coats, primer, "
            "by_value, by_values, by_predicate, by_name, by_two, by_none",
        ),
        ({"coats": 0}, "Wall: coats: must be greater than or equal to 1, got 0"),
        (
            {"coats": "many"},
            "Wall: coats: must be a whole number, got 'many'",
        ),
        (
            {"color": "blue"},
            "Wall: color: must be 'red', 'green', 'yellow' or 'none', got 'blue'",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(values, message):
    with pytest.raises(ConfigError) as caught:
        paint(**values)
    assert str(caught.value) == message


def test_an_unknown_setting_where_there_is_none():
    class Bare(Settings):
        pass

    with pytest.raises(ConfigError, match=r"^Bare has no setting 'x'; it has none$"):
        parse_settings(Bare, {"x": 1}, "Bare")
    assert parse_settings(Bare, {}, "Bare") == Bare()


def test_none_can_be_said_by_its_name_where_it_is_allowed():
    found = paint(color="none", primer="none", by_predicate="none")
    assert (found.color, found.primer, found.by_predicate) == ("none", None, None)


def test_settings_stay_as_they_are():
    with pytest.raises(ValueError, match="frozen"):
        paint().coats = 2
    assert not Settings().scores_are_logits


def test_a_signature_has_names_defaults_and_plain_types():
    parameters = signature_of(Paint).parameters
    assert list(parameters) == list(Paint.model_fields)
    assert {p.kind for p in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    assert defaults == Paint().model_dump()
    assert parameters["by_value"].annotation is int
    assert parameters["primer"].annotation == str | None


def test_a_setting_that_came_later_leaves_keys_as_they_were() -> None:
    class Method(Settings):
        dim: int = 8
        features: Annotated[bool, Later()] = False

    usual, given = Method(), Method(features=True)
    assert usual.identity() == usual.stated() == {"dim": 8}
    assert Method(features=False).identity() == {"dim": 8}
    assert given.identity() == given.stated() == {"dim": 8, "features": True}
    assert Method(**usual.stated()) == usual


def test_a_later_setting_whose_default_is_a_change_is_part_of_a_key_where_it_has_an_effect() -> (
    None
):
    class Method(Settings):
        loss: str = "softmax"
        offset: Annotated[bool, OnlyIf(loss="gbce"), Later(was=False)] = True

    assert Method().identity() == {"loss": "softmax"}
    assert Method(loss="gbce").identity() == {"loss": "gbce", "offset": True}
    assert Method(loss="gbce", offset=False).identity() == {"loss": "gbce"}
