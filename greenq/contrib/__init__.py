"""Bridges to frameworks; each is imported only where its framework is in use."""
