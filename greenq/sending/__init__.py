"""From a call to a message on its queue: options, arguments, route, text and push.

With what both ends of it see: the run that sends (`context`) and pydantic models (`validation`).
Used by tasks, by the app, and by a worker that retries a task. Imports no gevent.
"""
