"""dramatiq with gevent."""
