# Tasks find the app wherever Django runs: in the web server and in `greenq worker -A shop`.
from shop.greenq import app

__all__ = ["app"]
