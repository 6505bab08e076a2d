"""Pydantic models as arguments and values of tasks; skipped where pydantic is not installed."""

from __future__ import annotations

import base64
import importlib
import json
from typing import Any, Optional

import pytest

from greenq import Greenq
from greenq.errors import ConfigError
from tests.servers import Server


def make_app(**settings: Any) -> Greenq:
    return Greenq("models", **{"broker": "redis://127.0.0.1:1/0", **settings})


def test_task_says_that_pydantic_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ConfigError, match=r"models\.double needs pydantic, which is not installed"):

        @make_app().task(pydantic=True, name="models.double")
        def double(n: int) -> int:
            return 2 * n


pydantic = pytest.importorskip("pydantic")


class Order(pydantic.BaseModel):  # type: ignore[name-defined,misc]
    number: int
    note: str = ""

    @pydantic.field_validator("note")
    @classmethod
    def see(cls, note: str, info: Any) -> str:
        return f"{note} {info.context['celery_task_name']}" if info.context.get("tag") else note


class Receipt(pydantic.BaseModel):  # type: ignore[name-defined,misc]
    total: int


def test_models_are_made_of_what_was_sent() -> None:
    app = make_app()
    seen: list[Any] = []

    @app.task(bind=True, pydantic=True)
    def take(self: Any, order: Order, other: Optional[Order], n: int = 1, **more: Any) -> Receipt:  # noqa: UP045
        seen.append((order, other, n, more, self.request.id))
        return Receipt(total=order.number)

    result = take.apply(({"number": "3"}, None), {"n": 2, "x": {"number": 1}}, task_id="a")
    assert result.get() == {"total": 3}
    assert seen == [(Order(number=3), None, 2, {"x": {"number": 1}}, "a")]
    assert take(Order(number=1), {"number": 2}) == {"total": 1}
    assert seen[1][:2] == (Order(number=1), Order(number=2))
    failed = take.apply(({"number": "many"}, None))
    assert isinstance(failed.result, pydantic.ValidationError)
    assert take.apply((None, None)).failed()


def test_options_are_those_of_celery() -> None:
    app = make_app()

    @app.task(name="models.strict", pydantic=True, pydantic_strict=True)
    def strict(order: Order) -> Order:
        return order

    @app.task(
        name="models.tagged",
        pydantic=True,
        pydantic_context={"tag": True},
        pydantic_dump_kwargs={"exclude": {"number"}},
    )
    def tagged(order: Order) -> Order | None:
        return order

    assert isinstance(strict.apply(({"number": "3"},)).result, pydantic.ValidationError)
    assert strict.apply(({"number": 3},)).get() == {"number": 3, "note": ""}
    assert tagged.apply(({"number": 3, "note": "by"},)).get() == {"note": "by models.tagged"}


def test_models_are_sent_as_plain_data(server: Server) -> None:
    app = make_app(broker=server.url)

    @app.task(pydantic=True)
    def take(order: Order, n: int = 1) -> None:
        pass

    take.delay(Order(number=3), n=2)
    take.delay_many([(Order(number=4), 5)])
    bodies = [json.loads(_body(element)) for element in server.queued()]
    assert [body[:2] for body in bodies] in (
        [[[{"number": 3, "note": ""}, 2], {}], [[{"number": 4, "note": ""}, 5], {}]],
        [[[{"number": 4, "note": ""}, 5], {}], [[{"number": 3, "note": ""}, 2], {}]],
    )
    app.close()


def _body(element: bytes) -> bytes:
    return base64.b64decode(json.loads(element)["body"])


def test_task_without_models_and_with_names_that_are_not_there() -> None:
    @make_app().task(pydantic=True)
    def take(n: Missing, *rest: int) -> Missing:  # type: ignore[name-defined]  # noqa: F821
        return (n, rest)

    assert take.apply((1, 2, 3)).get() == (1, (2, 3))
