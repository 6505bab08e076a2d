"""Modules under the names they have in Celery."""
