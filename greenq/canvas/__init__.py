"""Workflows: signatures, and what they send, in Celery's words and on its wire."""
