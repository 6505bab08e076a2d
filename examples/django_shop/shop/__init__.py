# So that tasks find the app wherever Django runs: in the web server as in `greenq worker -A shop`.
from shop.greenq import app

__all__ = ["app"]
