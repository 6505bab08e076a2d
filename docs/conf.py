"""Sphinx settings; built with warnings as errors and without any network."""

from __future__ import annotations

import greenq

project = "greenq"
author = "The greenq authors"
project_copyright = f"2026, {author}"
version = release = greenq.__version__

extensions = ["myst_parser"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
nitpicky = True
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"greenq {version}"
