"""`chain`, `group`, `chord`, and the maps over arguments: signatures made of signatures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

from greenq.canvas import plan
from greenq.canvas.here import after, first_failed, unreached, value_here
from greenq.canvas.mistakes import not_a_signature
from greenq.canvas.send import send_signature, send_stream
from greenq.canvas.signature import Signature, checked
from greenq.canvas.stream import bare
from greenq.protocol.ids import new_id
from greenq.protocol.serialize import saferepr
from greenq.result import GroupResult

W = TypeVar("W", bound=Signature)


class _Composite(Signature):
    """A signature composed of others, which it keeps in `kwargs`."""

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Send the workflow, and return the handle of its end. Switches: yes.

        The arguments are as for `Signature.apply_async`.
        """
        if self.app.config.task.task_always_eager:
            return self.apply(args, kwargs, **options)
        return super().apply_async(args, kwargs, **options)

    def _send(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Any:
        return send_signature(self.app, self, args, kwargs, options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Send the workflow as `delay` does."""
        return self.apply_async(args, kwargs)

    @property
    def type(self) -> Any:
        """The task with this name, which is registered for compatibility with Celery."""
        return self.app.tasks[self.task]

    def own_app(self) -> Any:
        """Return the app that the workflow or one of its parts belongs to, or None."""
        if self._app is not None:
            return self._app
        found = (part.own_app() for part in self._parts())
        return next((app for app in found if app is not None), None)

    def _parts(self) -> Iterator[Signature]:
        """Yield the signatures that this one is made of, unless they can be read only once."""
        yield from self.kwargs["tasks"]

    def _adopted(self, data: Mapping[str, Any]) -> Mapping[str, Any]:
        return Signature.from_dict(data, app=self._app)

    def __len__(self) -> int:
        """Return the number of steps or members."""
        return len(self.tasks)

    def __bool__(self) -> bool:
        """Return True, even if the signature has no tasks."""
        return True

    @property
    def tasks(self) -> Any:
        """The steps or members."""
        return self.kwargs["tasks"]

    @tasks.setter
    def tasks(self, tasks: Iterable[Any]) -> None:
        self.kwargs["tasks"] = list(tasks)


@Signature.register_type()
class chain(_Composite):  # noqa: N801  Celery's name
    """Signatures that run one after another, each receiving the result of the previous one.

    ``chain(add.s(2, 2), mul.s(4))`` is the same as ``add.s(2, 2) | mul.s(4)``. A group that is
    followed by a step becomes a chord: the step gets the list of the group's results.
    """

    def __init__(self, *tasks: Any, app: Any = None, **options: Any) -> None:
        """Accept the steps one by one or as one iterable."""
        steps = _checked_all(tasks, "chain()", app)
        data = {"tasks": steps}
        super().__init__("celery.chain", (), data, options, subtask_type="chain", app=app)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], app: Any = None) -> Signature:
        """Rebuild a chain from plain data."""
        return _rebuilt(cls(app=app), data, app)

    @classmethod
    def joined(cls, first: Any, second: Any) -> Any:
        """Return ``first | second``."""
        parts = [first, checked(second, f"{first.reprcall()} | …", first.own_app())]
        tasks: list[Any] = []
        for part in parts:
            # A chain with options stays a single step, so that the options apply only to it.
            tasks += part.tasks if isinstance(part, chain) and not part.options else [part]
        return cls(*tasks, app=first._app)  # noqa: SLF001  an attribute of a signature

    def apply(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Run the steps in this process; return the handle of the last one, or of a failed one."""
        last: Any = None
        given: tuple[Sequence[Any], Mapping[str, Any]] = (args or (), kwargs or {})
        for step in self.unchain_tasks():
            failed = None if last is None else first_failed(last)
            if failed is not None:
                return unreached(step, last, failed) if isinstance(last, GroupResult) else last
            if last is not None:
                given = ((value_here(last),), {})
            last = after(last, step.apply(*given, **options))
        return last

    def unchain_tasks(self) -> list[Any]:
        """Return copies of the steps, with the callbacks of the chain applied."""
        steps = [step.clone() for step in self.tasks]
        for callback in plan.listed(self.options.get("link")):
            steps[-1].link(callback)
        for errback in plan.listed(self.options.get("link_error")):
            for step in steps:
                step.link_error(errback)
        return steps

    def __repr__(self) -> str:
        """Show the steps."""
        return " | ".join(map(repr, self.tasks)) if self.tasks else "chain(<empty>)"


_chain = chain


@Signature.register_type()
class group(_Composite):  # noqa: N801  Celery's name
    """Signatures that run in parallel; their results form a list in the members' order.

    Members from a generator are sent in bulk as they are produced, in constant memory.
    """

    # The source of members that have not been read yet.
    _source: Iterator[Any] | None = None
    _spent = False

    def __init__(self, *tasks: Any, app: Any = None, **options: Any) -> None:
        """Accept the members one by one, as one iterable, or from another group."""
        only = tasks[0] if len(tasks) == 1 else None
        members: list[Any] = []
        if isinstance(only, group):
            self._source = only.take_source()
            members = [] if self._source is not None else only.tasks
        elif isinstance(only, Iterator):
            self._source = (checked(each, "group()", app) for each in only)
        else:
            members = _checked_all(tasks, "group()", app)
        data = {"tasks": members}
        super().__init__("celery.group", (), data, options, subtask_type="group", app=app)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], app: Any = None) -> Signature:
        """Rebuild a group from plain data."""
        return _rebuilt(cls(app=app), data, app)

    # --- members that are not read yet ------------------------------------------------------------

    def is_streamed(self) -> bool:
        """Return whether its members come from a generator that has not been read."""
        return self._source is not None or self._spent

    def take_source(self) -> Iterator[Any] | None:
        """Return the unread members, to send them one by one; None if they have been read."""
        if self._spent:
            raise ValueError(
                "the members of this group came from a generator, which has been used up: make "
                "the group from a list if you use it twice"
            )
        source, self._source = self._source, None
        self._spent = source is not None
        return source

    def _read(self) -> None:
        source = self.take_source()
        if source is not None:
            self._spent = False
            dict.__getitem__(self, "kwargs")["tasks"] = list(source)

    def __getitem__(self, key: str) -> Any:
        """Return a value; members from a generator are read first."""
        if key == "kwargs":
            self._read()
        return dict.__getitem__(self, key)

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value, or `default`."""
        self._read()
        return dict.get(self, key, default)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys; copying a dict starts with this call."""
        self._read()
        return dict.__iter__(self)

    def keys(self) -> Any:
        """Return the keys."""
        self._read()
        return dict.keys(self)

    def items(self) -> Any:
        """Return the items; the JSON encoder calls this."""
        self._read()
        return dict.items(self)

    def values(self) -> Any:
        """Return the values."""
        self._read()
        return dict.values(self)

    def __eq__(self, other: object) -> bool:
        """Compare by content."""
        self._read()
        if isinstance(other, group):
            other._read()
        return dict.__eq__(self, other)

    __hash__ = None  # type: ignore[assignment]

    def _parts(self) -> Iterator[Signature]:
        # A source can be read only once, for sending.
        return iter(()) if self._source is not None else iter(self.tasks)

    # --- use --------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Send the group, with these arguments prepended to those of each member."""
        return self.apply_async(args, **options)

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Send all members, and return a `GroupResult`. Switches: yes.

        Args:
            args: prepended to those of each member.
            kwargs, options: override those of each member.

        Raises:
            TypeError: link or link_error is among the options, although a group has no single end.
            NotAllSent: sending ended early.
        """
        for option in ("link", "link_error"):
            if options.get(option):
                raise TypeError(
                    f"group.apply_async({option}=…): a group has no single end; use on_done() or "
                    "on_error(once=True), use a chord, or link the members"
                )
        return super().apply_async(args, kwargs, **options)

    def _send(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Any:
        is_streamed, app = self.is_streamed(), self.app
        whole = bare(self) if is_streamed else {**self}
        if not plan.is_counted({**whole, "options": self.options}):
            if is_streamed:
                return send_stream(app, self, None, args, kwargs, options)
            return send_signature(app, self, args, kwargs, options)
        made = plan.counted({**whole, "options": self.options})
        if is_streamed:
            return send_stream(app, self, made, args, kwargs, options).parent
        return send_signature(app, made, args, kwargs, options).parent

    def apply(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Run the members in this process, one after another, and return a `GroupResult`.

        The callbacks of `on_done` and ``on_error(once=True)`` are not called.
        """
        group_id = self.id or new_id()
        results = []
        for index, member in enumerate(self.take_source() or self.tasks):
            # The parts of a composed member have places in that member, not in this group.
            is_whole = isinstance(member, _Composite)
            place = {} if is_whole else {"group_id": group_id, "group_index": index}
            results.append(member.apply(args, kwargs, **options, **place))
        return GroupResult(group_id, results, app=self._app)

    def freeze(self, _id: str | None = None, *args: Any, **kwargs: Any) -> Any:
        """Assign ids to all members now, and return the group's handle."""
        once = plan.chosen(self.options, *plan.ONCE)
        for name in once:
            del self.options[name]
        handle = super().freeze(_id, *args, **kwargs)
        self.options.update(once)
        return handle

    def __or__(self, other: Any) -> Any:
        """Return a chord: `other` gets the list of results."""
        if isinstance(other, chain):
            return chain(self, *other.tasks) if other.tasks else self
        body = checked(other, "group | …", self.own_app())
        return self if _is_empty(body) else chord(self, body, app=self._app)

    def link(self, callback: Any) -> Any:
        """Have a signature called when the first member succeeds, as in Celery; see `on_done`."""
        made = checked(callback, "link()", self.own_app()).clone()
        return self.tasks[0].link(made.set(immutable=True))

    def link_error(self, errback: Any) -> Any:
        """Have a signature called for each member that fails; for a single call, see `on_error`."""
        made = checked(errback, "link_error()", self.own_app())
        return tuple(member.link_error(made.clone()) for member in self.tasks)

    def on_error(self, errback: Any, once: bool = False) -> Any:
        """Have a signature called when members fail, and return the group.

        Args:
            once: if any member fails, call the signature only once, when the last member has ended,
                instead of for each failure.
        """
        if once:
            errback = checked(errback, "on_error()", self.own_app())
            self.append_to_list_option(plan.ONCE[0], errback)
        else:
            self.link_error(errback)
        return self

    def on_done(self, callback: Any) -> Any:
        """Have a signature called once, when all members have ended, and return the group.

        The signature is called whatever the members' states, with only its own arguments.
        """
        made = checked(callback, "on_done()", self.own_app()).clone()
        self.append_to_list_option(plan.ONCE[1], made.set(immutable=True))
        return self

    def set_immutable(self, immutable: bool) -> None:
        """Set whether the members ignore the result of the step before the group."""
        for member in self.tasks:
            member.set_immutable(immutable)

    def skew(self, start: float = 1.0, stop: float | None = None, step: float = 1.0) -> Any:
        """Delay each member `step` seconds more than the one before, from `start` to `stop`."""
        countdown = start
        for member in self.tasks:
            member.set(countdown=countdown)
            if stop is None or countdown + step <= stop:
                countdown += step
        return self

    def __repr__(self) -> str:
        """Show the members if they have been read."""
        if self.is_streamed():
            return "group(<generator>)"
        return f"group({self.tasks!r})" if self.tasks else "group(<empty>)"


@Signature.register_type()
class chord(_Composite):  # noqa: N801  Celery's name
    """A header, which is a group, and a body that receives the list of the header's results.

    ``chord(header)(body)`` sends the chord, and so does ``chord(header, body)()``.
    """

    def __init__(
        self,
        header: Any,
        body: Any = None,
        task: str = "celery.chord",
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        app: Any = None,
        **options: Any,
    ) -> None:
        """Accept a header (a group or an iterable of signatures) and a body."""
        made = header if isinstance(header, group) else _header(header, app)
        after = None if body is None else checked(body, "chord body", app)
        given = kwargs or {}
        parts = {"kwargs": given.get("kwargs", given), "header": made, "body": after}
        super().__init__(task, args, parts, options, subtask_type="chord", app=app)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], app: Any = None) -> Signature:
        """Rebuild a chord from plain data."""
        parts = data["kwargs"]
        made = cls(parts["header"], parts["body"], kwargs=parts.get("kwargs"), app=app)
        return _rebuilt(made, {**data, "kwargs": made.kwargs}, app)

    @property
    def tasks(self) -> Any:
        """The header."""
        return self.kwargs["header"]

    @tasks.setter
    def tasks(self, header: Any) -> None:
        self.kwargs["header"] = header if isinstance(header, group) else _header(header, self._app)

    @property
    def body(self) -> Any:
        """The signature that receives the results."""
        return self.kwargs["body"]

    @body.setter
    def body(self, body: Any) -> None:
        self.kwargs["body"] = checked(body, "chord body", self._app)

    def _parts(self) -> Iterator[Signature]:
        yield self.tasks
        if self.body is not None:
            yield self.body

    def __call__(self, body: Any = None, **options: Any) -> Any:
        """Send the chord, with `body` instead of its own if one is given."""
        made = self if body is None else self.clone()
        if body is not None:
            made.body = body
        return made.apply_async(**options)

    def apply(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Run the header and the body in this process, and return the handle of the body.

        If a header task fails, the body fails with a `ChordError`.
        """
        self._need_body()
        header = self.tasks.apply(args, kwargs, **options)
        failed = first_failed(header)
        if failed is not None:
            return unreached(self.body, header, failed)
        return after(header, self.body.apply((value_here(header),), **options))

    def _need_body(self) -> None:
        if self.body is None:
            raise ValueError(
                "this chord has no body to send its results to: write chord(header)(body), or use "
                "a group if the tasks need no body"
            )

    def _send(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Any:
        self._need_body()
        if self.tasks.is_streamed():
            return send_stream(self.app, self.tasks, self, args, kwargs, options)
        return send_signature(self.app, self, args, kwargs, options)

    def link(self, callback: Any) -> Any:
        """Have a signature called with the body's result."""
        return self._body("link()").link(callback)

    def link_error(self, errback: Any) -> Any:
        """Have a signature called when the header or the body fails.

        With ``task_allow_error_cb_on_chord_header``, the signature is also called for each header
        task.
        """
        body = self._body("link_error()")
        if self.app.config.task.task_allow_error_cb_on_chord_header:
            for member in self.tasks.tasks:
                member.link_error(checked(errback, "link_error()").clone())
        return body.link_error(errback)

    def _body(self, what: str) -> Any:
        if self.body is None:
            raise ValueError(f"a chord's {what} links its body, but this chord has none yet")
        return self.body

    def set_immutable(self, immutable: bool) -> None:
        """Set whether the header ignores the result of the step before the chord."""
        self.tasks.set_immutable(immutable)

    def __repr__(self) -> str:
        """Show the header and the body."""
        return f"chord({self.tasks!r}, {self.body!r})"


class _Map(Signature):
    """One task that calls another task with each item in turn."""

    NAME = ""
    ITEM = ""

    def __init__(self, task: Any, it: Iterable[Any], app: Any = None, **options: Any) -> None:
        """Accept the task's signature and the items."""
        sig = checked(task, f"{self.NAME}()", app)
        data = {"task": sig, "it": list(it)}
        super().__init__(self.NAME, (), data, options, immutable=True, app=app)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], app: Any = None) -> Signature:
        """Rebuild a map from plain data."""
        return _rebuilt(cls(data["kwargs"]["task"], data["kwargs"]["it"], app=app), data, app)

    def _send(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Any:
        # The inherited method would send the map by name, since the app itself does not define the
        # built-in tasks.
        if self.app.config.task.task_always_eager:
            return self.apply(args, kwargs, **options)
        return super()._send(args, kwargs, options)

    def own_app(self) -> Any:
        """Return the app of the task that is called."""
        return self._app if self._app is not None else self.kwargs["task"].own_app()

    def __repr__(self) -> str:
        """Show the map as a comprehension."""
        called = self.kwargs["task"].task
        return f"[{called}({self.ITEM}) for x in {saferepr(self.kwargs['it'])}]"


@Signature.register_type("celery.map")
class xmap(_Map):  # noqa: N801  Celery's name
    """Call a task with each item as its only argument: ``add.map([…])``."""

    NAME = "celery.map"
    ITEM = "x"


@Signature.register_type("celery.starmap")
class xstarmap(_Map):  # noqa: N801  Celery's name
    """Call a task with each item as its arguments: ``add.starmap([(1, 1), (2, 2)])``."""

    NAME = "celery.starmap"
    ITEM = "*x"


@Signature.register_type("celery.chunks")
class chunks(Signature):  # noqa: N801  Celery's name
    """Items divided into parts of `n`, with one task for each part: ``add.chunks(items, 10)``."""

    def __init__(
        self, task: Any, it: Iterable[Any], n: int, app: Any = None, **options: Any
    ) -> None:
        """Accept the task's signature, the items, and the number of items in each part."""
        if type(n) is not int or n < 1:
            raise ValueError(f"chunks(…, n={n!r}): n must be a whole number of at least 1")
        data = {"task": checked(task, "chunks()", app), "it": list(it), "n": n}
        super().__init__("celery.chunks", (), data, options, immutable=True, app=app)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], app: Any = None) -> Signature:
        """Rebuild chunks from plain data."""
        task, it, n = map(data["kwargs"].get, ("task", "it", "n"))
        return _rebuilt(cls(task, it, n, app=app), data, app)

    def own_app(self) -> Any:
        """Return the app of the task that is called."""
        return self._app if self._app is not None else self.kwargs["task"].own_app()

    def group(self) -> Any:
        """Return the parts as a group."""
        items = iter(self.kwargs["it"])
        size = self.kwargs["n"]
        task = self.kwargs["task"]
        parts = iter(lambda: list(islice(items, size)), [])
        return group([xstarmap(task, part, app=self._app) for part in parts], app=self._app)

    def __call__(self, **options: Any) -> Any:
        """Send one task for each part."""
        return self.apply_async(**options)

    def apply(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Run the parts in this process and return a `GroupResult`."""
        return self.group().apply(args, kwargs, **options)

    def _send(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Any:
        return self.group().apply_async(args, kwargs, **plan.merged(self, options))


def _checked_all(tasks: Sequence[Any], where: str, app: Any) -> list[Any]:
    """Return signatures that were given one by one or as one iterable."""
    found: Iterable[Any] = tasks
    if len(tasks) == 1 and not isinstance(tasks[0], Mapping):
        found = tasks[0]
        if isinstance(found, str) or not isinstance(found, Iterable):
            raise not_a_signature(found, where)
    return [checked(each, where, app) for each in found]


def _header(header: Any, app: Any) -> group:
    if isinstance(header, Mapping):
        made = checked(header, "chord header", app)
        # In Celery, the steps of a chain would become the header, which is hardly ever intended.
        # Here, the chain becomes the only member.
        return made if isinstance(made, group) else group(made, app=app)
    if not isinstance(header, Iterable) or isinstance(header, str):
        raise not_a_signature(header, "chord header")
    return group(header, app=app)


def _is_empty(sig: Any) -> bool:
    return isinstance(sig, group) and not sig.is_streamed() and not sig.tasks


def _rebuilt(made: W, data: Mapping[str, Any], app: Any) -> W:
    """Fill a new signature from plain data, turning nested data into `Signature` objects."""
    kwargs = dict(data["kwargs"])
    if "tasks" in kwargs:
        kwargs["tasks"] = [checked(each, made.task, app) for each in kwargs["tasks"]]
    elif "task" in kwargs:
        kwargs["task"] = checked(kwargs["task"], made.task, app)
    made.update(data)
    made["kwargs"] = kwargs
    made["args"] = tuple(made["args"])
    made["options"] = dict(made["options"])
    return made
