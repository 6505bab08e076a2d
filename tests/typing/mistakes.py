"""What a type checker must refuse: an ignored error that does not occur is an error itself."""

from greenq import Greenq

app = Greenq("typed")


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task(bind=True)
def bound(self: object, text: str) -> str:
    return text


add.delay("1", 2)  # type: ignore[arg-type]
add.delay(1)  # type: ignore[call-arg]
add.delay(1, 2, z=3)  # type: ignore[call-arg]
bound.delay(5)  # type: ignore[arg-type]
text: str = add.delay(1, 2).get()  # type: ignore[assignment]
add.apply_async((1, 2), contdown=5)  # type: ignore[call-arg]
add.delay_many([(1,)])  # type: ignore[list-item]
add.delay_many([(1, "2")])  # type: ignore[list-item]
add.delay_many([1, 2])  # type: ignore[list-item]
bound.delay_many([(5,)])  # type: ignore[list-item]
add.apply_async_many([(1, 2)])  # type: ignore[list-item]
add.apply_async_many([((1, 2), {})], contdown=5)  # type: ignore[call-arg]
