import os

from greenq import Greenq

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")

app = Greenq("shop")
app.config_from_object("django.conf:settings", namespace="GREENQ")
app.autodiscover_tasks()
