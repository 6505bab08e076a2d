"""BullMQ on Node."""
