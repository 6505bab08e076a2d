"""Celery with its gevent pool."""
