"""What every endpoint shares: the models behind the gateway, who may ask, and what is measured.

Owns finding a model by name. Must not know any endpoint's fields, nor how a request is run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from twinline.gateway.access import Access
from twinline.gateway.errors import bad_request, model_not_found
from twinline.gateway.exchange import MAX_BODY_BYTES, MAX_HELD_BYTES, Held
from twinline.gateway.meters import Meters
from twinline.gateway.served import ServedModel


class Target:
    """The model that a request names, and the line if it names one: `model@line`."""

    __slots__ = ("line", "served")

    def __init__(self, served: ServedModel, line: str | None) -> None:
        self.served, self.line = served, line


class Door:
    """The gateway's models, its checks and its measurements. Models come and go while it is open."""

    def __init__(
        self,
        models: Iterable[ServedModel] = (),
        access: Access | None = None,
        meters: Meters | None = None,
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        """Raises ValueError if two models share a name."""
        self.access = access or Access()
        self.meters = meters or Meters()
        self.max_body_bytes = max_body_bytes
        self.held = Held(max(MAX_HELD_BYTES, 2 * max_body_bytes))
        self.on_shut: list[Callable[[ServedModel], None]] = []  # who remembers something of a model
        self._by_name: dict[str, ServedModel] = {}
        for served in models:
            self.open(served)

    @property
    def models(self) -> list[ServedModel]:
        return list(self._by_name.values())

    def open(self, served: ServedModel) -> None:
        if served.name in self._by_name:
            raise ValueError(f"two models are named {served.name}")
        self._by_name[served.name] = served

    def serves(self, served: ServedModel) -> bool:
        """Whether it is there still, and no other by its name."""
        return self._by_name.get(served.name) is served

    def shut(self, name: str) -> None:
        """Requests under way go on."""
        served = self._by_name.pop(name, None)
        if served is not None:
            for forget in self.on_shut:
                forget(served)

    def find(self, name: str | None) -> Target:
        """None means the only model. Raises ApiError 404, or 400 where there are several."""
        served = self._by_name.get(name)  # type: ignore[arg-type]
        if served is not None:
            return Target(served, None)
        if name is None:
            if len(self._by_name) != 1:
                told = f"The request names no model, and there are {len(self._by_name)}: set `model` (/v1/models)."
                raise bad_request(told, "model")
            return Target(next(iter(self._by_name.values())), None)
        model, at, line = name.rpartition("@")
        served = self._by_name.get(model) if at else None
        if served is None:
            raise model_not_found(name)
        return Target(served, line)
