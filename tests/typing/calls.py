"""What a type checker must accept in a user's program."""

from typing import assert_type

from greenq import AsyncResult, Greenq, shared_task

app = Greenq("typed")


@app.task
def add(x: int, y: int = 0) -> int:
    return x + y


@app.task(bind=True, max_retries=5)
def bound(self: object, text: str) -> list[str]:
    return [text]


@shared_task
def shared(text: str) -> str:
    return text


assert_type(add.delay(1, y=2), AsyncResult[int])
assert_type(add.delay(1).get(timeout=1), int)
assert_type(add(1, 2), int)
assert_type(bound.delay("x").get(), list[str])
assert_type(shared.delay("x"), AsyncResult[str])
assert_type(add.apply_async((1, 2), countdown=5, priority=3), AsyncResult[int])
