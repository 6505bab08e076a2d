"""Celery's name for what is elsewhere here."""
