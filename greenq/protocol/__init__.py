"""Wire formats as pure functions: bytes and text go in, values come out, and there is no I/O.

All higher layers use this package, which imports only errors and the names of states.
"""
