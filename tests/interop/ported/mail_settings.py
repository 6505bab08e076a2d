"""The mailer's settings, under the names that Celery's documentation gives them."""

import os
from datetime import timedelta

broker_url = os.environ["TEST_BROKER"]
result_backend = os.environ["TEST_BROKER"]
broker_connection_retry_on_startup = True
broker_transport_options = {"visibility_timeout": 3600}

task_serializer = "json"
result_serializer = "json"
accept_content = ["json"]
timezone = "Europe/Oslo"
enable_utc = True
result_expires = timedelta(hours=1)
result_extended = True

task_default_queue = "default"
task_routes = {
    "mailer.newsletter": {"queue": "bulk"},
    "mailer.urgent.*": {"queue": "urgent", "priority": 0},
}
task_acks_late = True
task_reject_on_worker_lost = True
task_track_started = True
task_time_limit = 30
task_soft_time_limit = 20
task_annotations = {"mailer.newsletter": {"rate_limit": "50/s"}}
task_publish_retry_policy = {"max_retries": 2, "interval_start": 0.1, "interval_step": 0.1}
worker_prefetch_multiplier = 1
