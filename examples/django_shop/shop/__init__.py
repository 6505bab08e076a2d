# Import the app here, so that tasks find it wherever Django runs: in the web server and in
# `greenq worker -A shop`.
from shop.greenq import app

__all__ = ["app"]
