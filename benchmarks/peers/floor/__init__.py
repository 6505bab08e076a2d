"""The floor: what the server and redis-py alone cost."""
