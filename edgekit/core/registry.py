"""Plugins, found by their file name and loaded only when asked for.

A plugin is one module in a package (`passes/low_rank.py`); its name is the module's stem, and the module defines
one public class derived from the package's base. No list is kept by hand. A third party adds one through an entry
point in the group `edgekit.<package>` whose name is the plugin's name and whose value is the class.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cached_property
from typing import TYPE_CHECKING, Generic, TypeVar

from edgekit.core.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")


def plugin_names(package: str) -> frozenset[str]:
    """The names of the plugins in a package, without importing any of them, nor their base."""
    path = importlib.import_module(package).__path__
    return frozenset(
        info.name for info in pkgutil.iter_modules(path) if info.name != "base" and not info.name.startswith("_")
    )


class Registry(Generic[T]):
    """The plugins of one kind.

    Args:
        kind: The word a person knows it by: "backend".
        package: The package whose modules are the plugins: "edgekit.backends".
        base: The class that every plugin derives from.
    """

    def __init__(self, kind: str, package: str, base: type[T]) -> None:
        self.kind = kind
        self._package = package
        self._base = base
        self._loaded: dict[str, type[T]] = {}

    @cached_property
    def _entry_points(self) -> dict[str, EntryPoint]:
        import importlib.metadata

        return {point.name: point for point in importlib.metadata.entry_points(group=self._package)}

    @cached_property
    def _modules(self) -> frozenset[str]:
        return plugin_names(self._package)

    def names(self) -> list[str]:
        """The names of all plugins, sorted, without importing any of them."""
        return sorted(self._modules | self._entry_points.keys())

    def __contains__(self, name: object) -> bool:
        return name in self._modules or name in self._entry_points

    def get(self, name: str) -> type[T]:
        """The class of the plugin `name`.

        Raises:
            ConfigError: There is none of that name, or its module does not hold exactly one plugin.
        """
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def create(self, name: str) -> T:
        """A new instance of the plugin `name`, made without arguments."""
        return self.get(name)()

    def _load(self, name: str) -> type[T]:
        # A built-in wins over an entry point of the same name: installing a package must not change what a recipe means.
        if name in self._modules:
            return self._plugin_in(f"{self._package}.{name}")
        if name in self._entry_points:
            found = self._entry_points[name].load()
            if not (inspect.isclass(found) and issubclass(found, self._base)):
                raise ConfigError(
                    f"The entry point '{name}' of {self._package} is not a {self._base.__name__}.",
                    "Report this to the authors of that package.",
                )
            return found
        raise unknown_name(self.kind, name, self.names())

    def _plugin_in(self, module_name: str) -> type[T]:
        module = importlib.import_module(module_name)
        found = [
            value
            for key, value in vars(module).items()
            if inspect.isclass(value)
            and issubclass(value, self._base)
            and value.__module__ == module_name
            and not key.startswith("_")
        ]
        if len(found) != 1:
            raise ConfigError(
                f"{module_name} must define exactly one public {self._base.__name__}; it defines {len(found)}."
            )
        return found[0]
