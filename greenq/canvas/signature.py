"""`Signature`: a task call that can be stored, passed on, combined with others, and sent.

A signature is a dict with exactly Celery's six keys, so messages carry it unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from greenq.canvas import plan
from greenq.canvas.mistakes import check_call, not_a_signature
from greenq.canvas.stamps import StampingVisitor, stamp_signature
from greenq.protocol.ids import new_id
from greenq.protocol.serialize import saferepr
from greenq.result import AsyncResult, newest_app, result_from_tuple

KEYS = ("task", "args", "kwargs", "options", "subtask_type", "immutable")

# Options of `freeze` that are kept as options of the signature.
_PLACE = ("group_id", "chord", "root_id", "parent_id", "group_index")


class _Key:
    """A key of a signature as an attribute."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, signature: Signature | None, owner: type) -> Any:
        return self if signature is None else signature[self._name]

    def __set__(self, signature: Signature, value: Any) -> None:
        signature[self._name] = value


class Signature(dict[str, Any]):
    """One call of a task: ``add.s(2, 2)`` or, for a task known by name, ``signature("add", …)``.

    Attributes:
        task: the task's name.
        args, kwargs: its arguments; those of a partial signature are completed when it is called.
        options: the options for sending it (`SendOptions`).
        subtask_type: ``chain``, ``group`` or ``chord``; None for a task.
        immutable: whether the signature ignores the result of the preceding task.
    """

    TYPES: ClassVar[dict[str, type[Signature]]] = {}
    """The classes of composed signatures, by `subtask_type`."""

    task = _Key()
    args = _Key()
    kwargs = _Key()
    options = _Key()
    subtask_type = _Key()
    immutable = _Key()

    def __init__(
        self,
        task: Any = None,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        type: Any = None,
        subtask_type: str | None = None,
        immutable: bool = False,
        app: Any = None,
        **more: Any,
    ) -> None:
        """Describe a call.

        Args:
            task: a task, its name, or a signature as plain data.
            args, kwargs: the arguments.
            options: the options for sending it; `more` are also options.
            type: the task, if `task` is its name.
            app: the app that sends the signature; None means the task's app, or the newest one.
        """
        self._app = app
        self._type = type
        if not isinstance(task, str):
            if isinstance(task, Mapping):
                super().__init__(read(task))
                self["args"] = tuple(self["args"])
                return
            self._type = task
            task = getattr(task, "name", None)
            if not isinstance(task, str):
                raise TypeError(f"a signature needs a task or its name, not {self._type!r}")
        self["task"] = task
        self["args"] = tuple(args) if args else ()
        self["kwargs"] = dict(kwargs) if kwargs else {}
        self["options"] = {**options, **more} if options else more
        self["subtask_type"] = subtask_type
        self["immutable"] = immutable

    @classmethod
    def register_type(cls, name: str | None = None) -> Callable[[type[Signature]], type[Signature]]:
        """Return a decorator that registers a class as the composed signature named `name`."""

        def register(made: type[Signature]) -> type[Signature]:
            cls.TYPES[name or made.__name__] = made
            return made

        return register

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], app: Any = None) -> Signature:
        """Rebuild a signature from plain data, with the class that the data names."""
        data = read(data)
        made = cls.TYPES.get(data.get("subtask_type") or data["task"])
        if made is None or made is cls:
            return Signature(data, app=app)
        return made.from_dict(data, app=app)

    # --- what it is -------------------------------------------------------------------------------

    @property
    def id(self) -> str | None:
        """The id that the task will be sent with; None until the signature is frozen."""
        found: str | None = self.options.get("task_id")
        return found

    @id.setter
    def id(self, task_id: str | None) -> None:
        self.options["task_id"] = task_id

    @property
    def parent_id(self) -> str | None:
        """The id of the task that sends this one, if set."""
        found: str | None = self.options.get("parent_id")
        return found

    @parent_id.setter
    def parent_id(self, task_id: str | None) -> None:
        self.options["parent_id"] = task_id

    @property
    def root_id(self) -> str | None:
        """The id of the first task of its workflow, if set."""
        found: str | None = self.options.get("root_id")
        return found

    @root_id.setter
    def root_id(self, task_id: str | None) -> None:
        self.options["root_id"] = task_id

    @property
    def name(self) -> str:
        """The task's name."""
        name: str = self.task
        return name

    @property
    def type(self) -> Any:
        """The task itself.

        Raises:
            NotRegistered: this app has no task with that name.
        """
        if self._type is None:
            self._type = self.app.tasks[self.task]
        return self._type

    @property
    def app(self) -> Any:
        """The app that sends the signature: its own, its task's, or the newest one."""
        found = self.own_app()
        return newest_app() if found is None else found

    def own_app(self) -> Any:
        """Return the app that the signature or one of its parts belongs to, or None."""
        if self._app is not None:
            return self._app
        return None if self._type is None else self._type.app

    @property
    def AsyncResult(self) -> Callable[[str], AsyncResult[Any]]:  # noqa: N802  Celery's name
        """A function that returns the result handle for a task id."""
        app = self.app
        return lambda task_id: AsyncResult(task_id, app=app)

    # --- sending ----------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the task in this process."""
        args, kwargs, _ = self._merge(args, kwargs)
        return self.type(*args, **kwargs)

    def delay(self, *args: Any, **kwargs: Any) -> Any:
        """Send the signature, with these arguments prepended to its own. Switches: yes."""
        return self.apply_async(args, kwargs)

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Send the signature, and return the handle of its end. Switches: yes.

        Args:
            args: prepended to the signature's own, unless it is immutable.
            kwargs: override the signature's own, unless it is immutable.
            options: override the signature's own.

        Raises:
            EncodeError, OperationalError: as for `Task.apply_async`.
        """
        check_call(args, kwargs, "apply_async")
        given = {name: value for name, value in options.items() if value is not None}
        return self._send(args or (), kwargs or {}, given)

    def apply(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Run the signature in this process, and return the handle of its end, an `EagerResult`.

        The arguments are as for `apply_async`, and `throw` is as for `Task.apply`.
        """
        check_call(args, kwargs, "apply")
        args, kwargs, options = self._merge(args or (), kwargs or {}, options)
        return self.type.apply(args, kwargs, **options)

    def _send(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Any:
        args, kwargs, options = self._merge(args, kwargs, options)
        app = self.app
        task = app.tasks.get(self.task) if self._type is None else self._type
        if task is None:
            return app.send_task(self.task, args, kwargs, **options)
        return task.apply_async(args, kwargs, **options)

    def __invert__(self) -> Any:
        """Send the signature and wait for the result: ``~sig``."""
        return self.apply_async().get()

    def election(self) -> Any:
        """Have the workers elect the one that sends the signature; return the result handle.

        Use this for a call that several processes make but that must be sent only once.
        """
        task_id = self.id or new_id()
        self.app.control.election(task_id, "task", self.clone(task_id=task_id))
        return self.app.AsyncResult(task_id)

    def freeze(
        self,
        _id: str | None = None,
        group_id: str | None = None,
        chord: Any = None,
        root_id: str | None = None,
        parent_id: str | None = None,
        group_index: int | None = None,
    ) -> Any:
        """Assign ids to all tasks now, and return the handle of the signature's end.

        Do not send the signature twice afterwards, since the ids would be the same.
        """
        given = dict(zip(_PLACE, (group_id, chord, root_id, parent_id, group_index), strict=True))
        self.options.update({name: value for name, value in given.items() if value is not None})
        frozen, handle = plan.freeze(self, _id)
        self.update(self._adopted(frozen))
        return result_from_tuple(handle, self.app)

    def _adopted(self, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return frozen plain data in the form in which this signature stores it."""
        return data

    # --- partials and copies ----------------------------------------------------------------------

    def _merge(
        self,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        force: bool = False,
    ) -> tuple[Any, Any, dict[str, Any]]:
        """Return the signature's arguments and options, combined with the given ones."""
        merged = plan.merged(self, options or {})
        if self.immutable and not force:
            return self.args, self.kwargs, merged
        return (*args, *self.args), {**self.kwargs, **(kwargs or {})}, merged

    def clone(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Return a copy, with more arguments and options if given."""
        check_call(args, kwargs, "clone")
        new_args, new_kwargs, new_options = self._merge(args or (), kwargs, options, force=True)
        made = Signature.from_dict(
            {
                **self,
                "args": tuple(new_args),
                "kwargs": {name: _copied(value) for name, value in new_kwargs.items()},
                "options": {name: _copied(value) for name, value in new_options.items()},
            },
            app=self._app,
        )
        made._type = self._type  # noqa: SLF001  an attribute of the same class
        return made

    partial = clone

    def replace(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return a copy with different arguments or options; None keeps the present ones."""
        made = self.clone()
        for name, value in (("args", args), ("kwargs", kwargs), ("options", options)):
            if value is not None:
                made[name] = value
        return made

    def set(self, immutable: bool | None = None, **options: Any) -> Any:
        """Set send options, and return the signature."""
        if immutable is not None:
            self.set_immutable(immutable)
        self.options.update(options)
        return self

    def set_immutable(self, immutable: bool) -> None:
        """Set whether the signature ignores the result of the preceding task."""
        self.immutable = immutable

    def __copy__(self) -> Any:
        """Copy it as `clone` does."""
        return self.clone()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Copy it as `clone` does."""
        return self.clone()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle it as plain data, as in JSON, since Celery's workers do not know this class."""
        return dict, (plan.plain(self),)

    def __json__(self) -> dict[str, Any]:
        """Return the signature as plain data."""
        return dict(self)

    # --- callbacks --------------------------------------------------------------------------------

    def append_to_list_option(self, key: str, value: Any) -> Any:
        """Add a value to an option that is a list, unless it is there already; return the value."""
        items = self._list_option(key)
        if value not in items:
            items.append(value)
        return value

    def extend_list_option(self, key: str, value: Any) -> None:
        """Add several values to an option that is a list."""
        self._list_option(key).extend(plan.listed(value))

    def _list_option(self, key: str) -> list[Any]:
        items: list[Any] = plan.listed(self.options.get(key))
        self.options[key] = items
        return items

    def link(self, callback: Any) -> Any:
        """Have another signature called with the result on success; return that signature."""
        return self.append_to_list_option("link", checked(callback, "link()", self.own_app()))

    def link_error(self, errback: Any) -> Any:
        """Have another signature called when this one fails; return that signature."""
        return self.append_to_list_option(
            "link_error", checked(errback, "link_error()", self.own_app())
        )

    def on_error(self, errback: Any) -> Any:
        """Have another signature called when this one fails; return this one."""
        self.link_error(errback)
        return self

    def flatten_links(self) -> list[Any]:
        """Return this signature and all signatures linked to it, directly or indirectly."""
        found = [self]
        for each in plan.listed(self.options.get("link")):
            found += maybe_signature(each, app=self._app).flatten_links()
        return found

    # --- stamps -----------------------------------------------------------------------------------

    def stamp(
        self, visitor: StampingVisitor | None = None, append_stamps: bool = False, **headers: Any
    ) -> Any:
        """Put stamps on this signature and everything that belongs to it; return the signature.

        Args:
            visitor: chooses stamps for each part.
            append_stamps: keep an existing value, in a list with the new one.
            headers: stamps for every part.
        """
        if visitor is not None and not hasattr(visitor, "on_signature"):
            raise TypeError(
                "stamp() takes stamps by name, as in stamp(customer=17), or a StampingVisitor, "
                f"not {saferepr(visitor)}"
            )
        stamp_signature(self, visitor, headers, append_stamps)
        return self

    # --- composing --------------------------------------------------------------------------------

    def __or__(self, other: Any) -> Any:
        """Return a chain in which `other` gets the result of this signature."""
        if not isinstance(other, Mapping):
            raise not_a_signature(other, f"{self.reprcall()} | …")
        return self.TYPES["chain"].joined(self, other)  # type: ignore[attr-defined]

    def __ior__(self, other: Any) -> Any:
        """Return a chain, as ``|`` does; `dict`'s ``|=`` would change the signature itself."""
        return self | other

    def __ror__(self, other: Any) -> Any:
        """Refuse a left operand that is not a signature; `dict` would merge the operands."""
        raise not_a_signature(other, f"… | {self.reprcall()}")

    # --- showing ----------------------------------------------------------------------------------

    def reprcall(self, *args: Any, **kwargs: Any) -> str:
        """Return the signature as the text of a call, with any further arguments given."""
        args, kwargs, _ = self._merge(args, kwargs, force=True)
        shown = [saferepr(value) for value in args]
        shown += [f"{name}={saferepr(value)}" for name, value in kwargs.items()]
        return f"{self.task}({', '.join(shown)})"

    def __repr__(self) -> str:
        """Show the signature as a call."""
        return self.reprcall()


def read(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain data, completed with the missing keys of a signature.

    Raises:
        ValueError: the data names no task, or a part has the wrong type.
    """
    full = {**_empty(), **data}
    if isinstance(full["options"], dict):
        full["options"] = _with_links(full["options"])
    wrong = plan.wrong_in(full)
    if wrong:
        raise ValueError(f"not a signature: {wrong}: {saferepr(dict(data))}")
    return full


def _with_links(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the options in which callbacks are signatures."""
    made = dict(options)
    for name in ("link", "link_error", *plan.ONCE):
        if made.get(name):
            made[name] = [checked(each, name) for each in plan.listed(made[name])]
    return made


def _empty() -> dict[str, Any]:
    return {
        "task": None,
        "args": (),
        "kwargs": {},
        "options": {},
        "subtask_type": None,
        "immutable": False,
    }


def checked(value: Any, where: str, app: Any = None) -> Any:
    """Return `value`, which is a signature or plain data, as a signature.

    Raises:
        TypeError: `value` is neither; the error says what to write.
    """
    if isinstance(value, Signature):
        return value
    if isinstance(value, Mapping) and "task" in value:
        return Signature.from_dict(value, app=app)
    raise not_a_signature(value, where)


def signature(varies: Any, *args: Any, **kwargs: Any) -> Any:
    """Return a signature for a task, a task's name or plain data, or a copy of a signature.

    The other arguments are those of `Signature`.
    """
    if isinstance(varies, Signature):
        return varies.clone()
    if isinstance(varies, Mapping):
        return Signature.from_dict(varies, app=kwargs.get("app"))
    return Signature(varies, *args, **kwargs)


subtask = signature


def maybe_signature(value: Any, app: Any = None, clone: bool = False) -> Any:
    """Return `value`, which is a signature or plain data, as a signature; None stays None."""
    if value is None:
        return None
    if isinstance(value, Signature):
        value = value.clone() if clone else value
        if app is not None:
            value._app = app  # noqa: SLF001  an attribute from the same module
        return value
    return Signature.from_dict(value, app=app)


def _copied(value: Any) -> Any:
    """Copy signatures and lists of any depth; return any other value unchanged."""
    if isinstance(value, Signature):
        return value.clone()
    return [_copied(each) for each in value] if isinstance(value, list) else value
