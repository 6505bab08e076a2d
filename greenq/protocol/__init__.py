"""Wire formats as pure functions: bytes and text in, values out, no input or output.

Used by all layers above; imports only errors and the names of states.
"""
