"""The floor: what the server and redis-py cost alone."""
