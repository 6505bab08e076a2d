"""taskiq on a Redis stream."""
