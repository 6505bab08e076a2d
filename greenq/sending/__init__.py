"""From a call to a message on its queue: options, arguments, route, text and push.

Tasks, the app, and a worker that retries a task use this package. The package also holds what both
ends see: the run that sends (`context`) and pydantic models (`validation`). It does not import
gevent.
"""
