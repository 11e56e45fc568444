"""Writes src/diffuserec/__init__.pyi: the public names, with methods' settings as typed arguments.

The package imports a method's file when its class is first used, which a type checker can't follow.
Run ``make stub`` after a change to public names or settings; a test compares.
"""

import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import diffuserec
from diffuserec.models.augmenter import AUGMENTERS
from diffuserec.models.recommender import RECOMMENDERS

STUB = Path(diffuserec.__file__).with_name("__init__.pyi")
_FOLDERS = {"recommender": RECOMMENDERS, "augmenter": AUGMENTERS}


def rendered(annotation: Any) -> str:
    """Source text of an annotation, without the constraints of its values."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return rendered(arguments[0])
    if origin in (Union, types.UnionType):
        return " | ".join(rendered(argument) for argument in arguments)
    if origin is Literal:
        return f"Literal[{', '.join(repr(argument) for argument in arguments)}]"
    if origin is Mapping:
        return "Mapping[str, object]"
    if origin is tuple:
        return f"tuple[{', '.join(rendered(argument) for argument in arguments)}]"
    if annotation is Ellipsis:
        return "..."
    return "None" if annotation is types.NoneType else str(annotation.__name__)


def stub() -> str:
    """Text of the stub file."""
    public = {name: getattr(diffuserec, name) for name in diffuserec.__all__}
    lines = [
        "# Made by tools/make_stub.py (make stub): the public names and every method's settings.",
        "from collections.abc import Mapping",
        "from typing import Literal",
        "",
    ]
    for name, value in sorted(public.items(), key=lambda pair: (pair[1].__module__, pair[0])):
        lines.append(f"from {value.__module__} import {name} as {name}")
    methods = [
        registry.find(name)
        for registry in _FOLDERS.values()
        for name in registry.names()
        if registry.module_name(name).startswith("diffuserec.")
    ]
    for method in methods:
        lines.append(f"from {method.__module__} import {method.__name__} as _{method.__name__}")
    lines += ["", "__version__: str", f"__all__ = {sorted(public)!r}", ""]
    for method in methods:
        lines.append(f"class {method.__name__}(_{method.__name__}):")
        fields = method.Config.model_fields
        settings = [
            f"{name}: {rendered(field.annotation)} = "
            f"{field.get_default(call_default_factory=True)!r}"
            for name, field in fields.items()
        ]
        arguments = f"self, *, {', '.join(settings)}" if settings else "self"
        lines += [f"    def __init__({arguments}) -> None: ...", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    STUB.write_text(stub(), encoding="utf-8")
    print(STUB)
