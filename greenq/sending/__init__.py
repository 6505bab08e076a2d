"""From a call to a message on its queue: options, arguments, route, text and push.

With what both ends of it see: the run that sends (`context`) and pydantic models (`validation`).
Tasks, the app, and a worker that retries a task use this package. Imports no gevent.
"""
