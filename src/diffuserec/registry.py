"""Registries of named parts that anyone may extend: methods, encoders, losses, metrics, formats.

A registry knows three sources, in this order: the files of one folder of this package, what a
running program registered, and the entry points that installed packages declare under the group
``diffuserec.<kind>s``. Only these can be found by name, so a file that names a part (a saved
model, a study) never makes other code run. A module is imported when its part is first used.
"""

import importlib
import pkgutil
from collections.abc import Callable
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any, Generic, TypeVar

from diffuserec.errors import ConfigError, did_you_mean

Part = TypeVar("Part")
Value = TypeVar("Value")


class Registry(Generic[Part]):
    """Parts of one kind by name.

    Args:
        kind: singular noun for messages; its plural names the entry point group.
        part: base of the classes that are parts or, without a folder, type of the objects.
        folder: package whose files hold one public part each; None if all are registered by calls.
        check: raises ConfigError if a registered part is not as it should be.
    """

    def __init__(
        self,
        kind: str,
        part: type[Any],
        folder: str | None = None,
        check: Callable[[Any], None] | None = None,
    ) -> None:
        self.kind = kind
        self._part = part
        self._folder = folder
        self._check = check
        self._registered: dict[str, Part] = {}
        self._clashes: dict[str, str] = {}  # entry points by the taken name that they declare

    @property
    def group(self) -> str:
        """Entry point group in which other packages declare parts of this kind."""
        return f"diffuserec.{self.kind}{'es' if self.kind.endswith('s') else 's'}"

    def register(self, name: str, part: Value) -> Value:
        """Makes `part` available under `name` in this process, and returns it.

        A definition that is executed again, as in a notebook, replaces the earlier one.

        Raises:
            ConfigError: the name is taken by another part, or the object is not such a part.
        """
        self._require_part(part)
        module, *_ = _definition(part)
        known, declared = self._registered.get(name), self._declared.get(name)
        if declared is not None and module.partition(".")[0] == __name__.partition(".")[0]:
            self._clashes[name] = declared.value
        elif name in self._files or (declared is not None and declared.module != module):
            raise ConfigError(f"the {self.kind} name {name!r} is taken: choose another")
        if known is not None and _definition(known) != _definition(part):
            raise ConfigError(f"the {self.kind} name {name!r} is taken: choose another")
        self._registered[name] = part  # type: ignore[assignment]
        return part

    def names(self) -> list[str]:
        """Names of all parts, sorted."""
        return sorted({*self._files, *self._registered, *self._declared})

    def find(self, name: str) -> Part:
        """The part of that name; imports its module if need be.

        Raises:
            ConfigError: there is none; names the nearest and all others.
        """
        if name in self._declared and name in self._clashes:
            raise ConfigError(
                f"{self._clashes[name]} declares the {self.kind} {name!r}, a name that is taken: "
                "uninstall that package, or rename it there"
            )
        if name in self._registered:
            return self._registered[name]
        if name in self._files:
            part = self._part_of(importlib.import_module(f"{self._folder}.{name}"))
        elif name in self._declared:
            point = self._declared[name]
            try:
                part = point.load()
            except Exception as error:  # code of another package may raise anything
                raise ConfigError(
                    f"the {self.kind} {name!r} of {point.value} cannot be imported ({error}): "
                    "mend or uninstall that package"
                ) from error
            self._require_part(part)
        else:
            known = self.names()
            raise ConfigError(
                f"no {self.kind} {name!r}{did_you_mean(name, known)}; there are: {', '.join(known)}"
            )
        self._registered[name] = part
        return part

    def module_name(self, name: str) -> str:
        """Dotted name of the module that defines a part, without importing it if it can be told."""
        if name in self._files:
            return f"{self._folder}.{name}"
        if name in self._declared:
            return self._declared[name].module
        return str(getattr(self.find(name), "__module__", ""))

    def name_of(self, part: object) -> str | None:
        """Name under which this very object can be found, or None."""
        for name, known in self._registered.items():
            if known is part:
                return name
        module = str(getattr(part, "__module__", ""))
        for name in self.names():
            if self.module_name(name) == module and self.find(name) is part:
                return name
        return None

    def _is_part(self, value: Any) -> bool:
        if self._folder is None:
            return isinstance(value, self._part)
        return isinstance(value, type) and issubclass(value, self._part)

    def _require_part(self, part: Any) -> None:
        if not self._is_part(part):
            wanted = _with_article(self._part.__name__)
            if self._folder is not None:
                wanted = f"a subclass of {self._part.__name__}"
            raise ConfigError(f"{_with_article(self.kind)} is {wanted}, got {part!r}")
        if self._check is not None:
            self._check(part)

    def _part_of(self, module: ModuleType) -> Part:
        """The one public part that a file of the folder defines."""
        found: list[Any] = [
            value
            for name, value in vars(module).items()
            if self._is_part(value)
            and value.__module__ == module.__name__
            and not name.startswith("_")
        ]
        if len(found) != 1:
            raise ConfigError(
                f"{module.__name__} defines {len(found)} public {self.kind} classes: a file in "
                "this folder holds one"
            )
        part: Part = found[0]
        return part

    @cached_property
    def _files(self) -> frozenset[str]:
        if self._folder is None:
            return frozenset()
        package = importlib.import_module(self._folder)
        return frozenset(
            info.name
            for info in pkgutil.iter_modules(package.__path__)
            if not info.name.startswith("_")
        )

    @cached_property
    def _declared(self) -> dict[str, EntryPoint]:
        found: dict[str, EntryPoint] = {}
        for point in entry_points(group=self.group):
            known = found.setdefault(point.name, point)
            if point.name in self._files or known.value != point.value:
                self._clashes[point.name] = point.value
        return found


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def _definition(part: Any) -> tuple[str, Any, str]:
    """Module and name of a part, or of the function that it holds, and the name of its type."""
    named = part
    if not hasattr(part, "__qualname__"):
        held = getattr(part, "__dict__", {}).values()
        named = next((value for value in held if callable(value)), part)
    name = getattr(named, "__qualname__", id(named))
    return str(getattr(named, "__module__", "")), name, type(part).__qualname__
