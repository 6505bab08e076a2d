"""Modules under their Celery names."""
