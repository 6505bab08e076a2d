"""Wire formats as pure functions: bytes and text in, values out, no input or output."""
