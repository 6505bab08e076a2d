"""From a call to a message on its queue: options, arguments, route, text and push.

Tasks, the app, and a worker that retries a task use this package. It also contains what senders and
workers share: the context of a run (`context`) and the support for pydantic models (`validation`).
It does not import gevent.
"""
