"""One module for each scenario; each makes its own known by ``scenario.add``."""

import importlib
import pkgutil

from ppworker.chaos.scenario import REGISTRY, Scenario


def every() -> dict[str, Scenario]:
    """All scenarios by name."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return dict(sorted(REGISTRY.items()))
