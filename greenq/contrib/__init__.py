"""Integrations with frameworks; each is imported only if its framework is in use."""
