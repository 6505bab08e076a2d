"""What a type checker must accept in a user's program."""

from typing import assert_type

from greenq import AsyncResult, AsyncResults, Greenq, Task, shared_task

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
assert_type(add.delay_many([(1, 2), (3, 4)]), AsyncResults[int])
assert_type(shared.delay_many((text,) for text in "ab"), AsyncResults[str])
assert_type(add.delay_many(zip([1], [2], strict=True))[0], AsyncResult[int])
assert_type(add.delay_many([(1, 2)])[1:], AsyncResults[int])
assert_type(bound.delay_many([("x",)])[0].get(), list[str])
assert_type(add.apply_async_many([((1,), {"y": 2})], countdown=5), AsyncResults[int])
for number in add.delay_many([(1, 2)]):
    assert_type(number.get(), int)


class Counted(Task[..., int]):
    """A class of tasks, which sees its app as it is."""

    @classmethod
    def on_bound(cls, app: Greenq) -> None:
        app.conf.task_track_started = True

    def run(self) -> int:
        assert_type(self.app, Greenq)
        self.app.send_task("other", (1,), countdown=1).get()
        self.app.control.revoke("id", terminate=True)
        self.app.signature("other").apply_async()
        self.app.AsyncResult("id").forget()
        return len(self.app.tasks)


assert_type(add.app, Greenq)
assert_type(shared.app, Greenq)
assert_type(app.tasks["add"].app, Greenq)
