from django.apps import apps
from django.db import OperationalError, transaction
from django.db.models import F

from greenq import shared_task


@shared_task(autoretry_for=(OperationalError,), retry_backoff=True, max_retries=5)
def confirm(order_id: int) -> str:
    """Take the ordered amount from the stock, or refuse the order."""
    # The models import this module, so it cannot import them at the top.
    order_model = apps.get_model("orders", "Order")
    product_model = apps.get_model("orders", "Product")
    with transaction.atomic():
        order = order_model.objects.select_for_update().get(pk=order_id)
        if order.state != order.State.PLACED:
            # The task has run before, but its worker died before it could report that.
            return order.state
        taken = product_model.objects.filter(pk=order.product_id, in_stock__gte=order.amount)
        stock_left = taken.update(in_stock=F("in_stock") - order.amount)
        order.state = order.State.CONFIRMED if stock_left else order.State.REFUSED
        order.save(update_fields=["state"])
        if stock_left:
            send_receipt.delay_on_commit(order.pk)
    return order.state


@shared_task
def send_receipt(order_id: int) -> None:
    """Count a receipt as sent instead of sending an e-mail."""
    orders = apps.get_model("orders", "Order").objects
    orders.filter(pk=order_id).update(receipts=F("receipts") + 1)


@shared_task
def in_stock(name: str) -> int:
    """Return the stock of a product; this is about the simplest task that uses a database."""
    return apps.get_model("orders", "Product").objects.get(name=name).in_stock
