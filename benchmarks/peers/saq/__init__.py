"""SAQ on Redis."""
