"""A plain loop: the same work on the server, and nothing else."""
