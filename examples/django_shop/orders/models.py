from django.db import models, transaction

from orders.tasks import confirm


class Product(models.Model):
    name = models.CharField(max_length=100, unique=True)
    in_stock = models.PositiveIntegerField(default=0)


class Order(models.Model):
    class State(models.TextChoices):
        PLACED = "placed"
        CONFIRMED = "confirmed"
        REFUSED = "refused"

    product = models.ForeignKey(Product, on_delete=models.PROTECT)
    amount = models.PositiveIntegerField()
    state = models.CharField(max_length=10, choices=State, default=State.PLACED)
    receipts = models.PositiveIntegerField(default=0)

    @classmethod
    def place(cls, product: Product, amount: int) -> "Order":
        """Store an order; send its task only after the commit."""
        with transaction.atomic():
            order = cls.objects.create(product=product, amount=amount)
            confirm.delay_on_commit(order.pk)
        return order
