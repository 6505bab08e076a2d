import os

SECRET_KEY = os.environ.get("SHOP_SECRET_KEY", "for trying it out")
INSTALLED_APPS = ["orders.apps.OrdersConfig"]
TIME_ZONE = "UTC"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": os.environ.get("PGDATABASE", "shop"),
        # Host, port, user and password come from PGHOST, PGPORT, PGUSER and PGPASSWORD, as for
        # psql.
    }
}
if "SHOP_POOL" in os.environ:
    # All tasks of a worker share this many connections; a task waits if none is free.
    DATABASES["default"]["OPTIONS"] = {
        "pool": {"min_size": 0, "max_size": int(os.environ["SHOP_POOL"]), "timeout": 60}
    }

GREENQ_TASK_ACKS_LATE = True
GREENQ_TASK_TIME_LIMIT = 60
GREENQ_TASK_ROUTES = {"orders.tasks.send_receipt": {"queue": "mail"}}
