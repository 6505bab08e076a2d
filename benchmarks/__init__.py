"""Benchmarks: ``python -m benchmarks`` and ``python -m benchmarks.waiting``; see README.md."""
