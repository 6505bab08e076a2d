"""Unit tests mirror the package: what tests a module stands where its own path says."""

from __future__ import annotations

from pathlib import Path

UNIT = Path(__file__).parent
PACKAGE = UNIT.parents[1] / "greenq"

# Modules whose test stands elsewhere, and where. A folder's own __init__ counts as a module.
ELSEWHERE: dict[str, str] = {
    # What is seen at the command line alone is tested there.
    "__main__.py": "unit/test_cli.py",
    "cli/__init__.py": "unit/test_cli.py",
    "beat/periodic.py": "integration/test_beat.py",
    "beat/pings.py": "integration/test_beat.py",
    "beat/runs.py": "integration/test_beat.py",
    "beat/scheduler.py": "integration/test_beat.py",
    "beat/step.py": "integration/test_beat.py",
    "cli/beat.py": "integration/test_beat.py",
    "cli/beat_options.py": "integration/test_beat.py",
    "cli/bindings.py": "integration/test_cli_cluster.py",
    "cli/common.py": "unit/test_cli.py",
    "cli/demo/__init__.py": "integration/test_demo.py",
    "cli/demo/display.py": "integration/test_demo.py",
    "cli/demo/figures.py": "integration/test_demo.py",
    "cli/demo/http_server.py": "integration/test_demo.py",
    "cli/demo/run.py": "integration/test_demo.py",
    "cli/demo/sender.py": "integration/test_demo.py",
    "cli/events.py": "integration/test_events_receiver.py",
    "cli/events_live.py": "integration/test_events_receiver.py",
    "cli/graph.py": "integration/test_cli_cluster.py",
    "cli/load.py": "unit/test_cli.py",
    "cli/ping.py": "integration/test_cli_cluster.py",
    "cli/purge.py": "integration/test_cli_cluster.py",
    "cli/remote_commands.py": "unit/cli/test_remote.py",
    "cli/report.py": "integration/test_cli_cluster.py",
    "cli/restart.py": "integration/test_restart.py",
    "cli/result_command.py": "integration/test_cli_cluster.py",
    "cli/shell.py": "unit/test_cli.py",
    "cli/top/__init__.py": "unit/cli/test_top.py",
    "cli/top/ask.py": "unit/cli/test_top.py",
    "cli/top/keyboard.py": "unit/cli/test_top.py",
    "cli/top/model.py": "unit/cli/test_top.py",
    "cli/top/screen.py": "unit/cli/test_top.py",
    "cli/top/view.py": "unit/cli/test_top.py",
    "cli/supervisor_listener.py": "integration/test_supervisor.py",
    "cli/worker_command.py": "integration/test_worker.py",
    "cli/worker_options.py": "unit/test_cli.py",
    "config/imports.py": "unit/sending/test_routing.py",
    "config/conf.py": "unit/test_app.py",
    "config/queue_table.py": "unit/config/test_queues.py",
    "config/routes.py": "unit/sending/test_routing.py",
    "consumer/elections.py": "integration/test_cluster.py",
    "consumer/queue_set.py": "unit/commands/test_commands.py",
    "registry/discovery.py": "unit/test_app.py",
    "registry/tasks.py": "unit/test_task.py",
    "running/outcome.py": "unit/execution/test_executor.py",
    "result/__init__.py": "unit/result/test_task_result.py",
    "result/result_base.py": "integration/test_groups.py",
    "result/eager_result.py": "unit/running/test_eager.py",
    "result/result_graph.py": "integration/test_groups.py",
    "result/group.py": "integration/test_groups.py",
    "result/many.py": "unit/result/test_task_result.py",
    "compression.py": "unit/test_serialization.py",
    "execution/lost.py": "integration/test_recovery.py",
    "execution/results.py": "unit/execution/test_executor.py",
    # The functions are asked over the mailbox of a node.
    "commands/arguments.py": "unit/commands/test_commands.py",
    "commands/control.py": "unit/commands/test_commands.py",
    "commands/diagnostics.py": "unit/commands/test_commands.py",
    "commands/inspect.py": "unit/commands/test_commands.py",
    "commands/queues.py": "unit/commands/test_commands.py",
    "canvas/__init__.py": "unit/canvas/test_primitives.py",
    # Scripts on the server and what waits there: only a real server shows whether they hold.
    "transport/chords.py": "integration/test_canvas.py",
    "transport/backend.py": "integration/test_groups.py",
    "transport/callbacks.py": "integration/test_groups.py",
    "transport/listener.py": "integration/test_groups.py",
    "transport/embedded/keeper.py": "integration/test_embedded.py",
    "transport/embedded/server.py": "integration/test_embedded.py",
    "transport/group_store.py": "integration/test_processes.py",
    "transport/facts.py": "integration/test_guard.py",
    "transport/fetch.py": "integration/test_fetch.py",
    "transport/guard.py": "integration/test_guard.py",
    "transport/leases.py": "integration/test_recovery.py",
    "transport/mailbox.py": "integration/test_mailbox.py",
    "transport/members.py": "integration/test_members.py",
    "transport/owner.py": "integration/test_owner.py",
    "transport/revokes.py": "integration/test_revokes.py",
    "transport/schedule_store.py": "faults/test_due_times.py",
    "transport/recovery.py": "integration/test_recovery.py",
    "transport/continuation.py": "integration/test_settle_workflows.py",
    "transport/workflows.py": "integration/test_workflow_index.py",
    "canvas/index.py": "integration/test_workflow_index.py",
    "execution/moves.py": "unit/execution/test_executor.py",
    "execution/stopped_workflows.py": "integration/test_workflow_index.py",
    "execution/workflow_index.py": "integration/test_workflow_index.py",
    "workflow/__init__.py": "integration/test_workflow_index.py",
    # What a task does to its workflow is seen in what its end writes.
    "canvas/inside.py": "unit/execution/test_handover.py",
    # A worker as a whole, or what it makes of a lost connection.
    "consumer/__init__.py": "integration/test_connections.py",
    "consumer/connection.py": "integration/test_connections.py",
    "execution/reader.py": "unit/consumer/test_tasks.py",
    "consumer/refusals.py": "unit/consumer/test_tasks.py",
    "consumer/returns.py": "unit/consumer/test_tasks.py",
    "consumer/waiting.py": "unit/consumer/test_tasks.py",
    "consumer/voting.py": "unit/consumer/test_gossip.py",
    "events/receiver.py": "integration/test_events_receiver.py",
    "execution/processes.py": "integration/test_always_ends.py",
    # The watchdog thread's duties, each by what the thread makes of it.
    **dict.fromkeys(
        [
            f"watchdog/{duty}.py"
            for duty in (
                "cluster",
                "ending",
                "heartbeat",
                "hooks",
                "hub_monitor",
                "hub_thread",
                "lease_keeper",
                "notifier",
                "reclaimer",
                "relay",
                "signal_monitor",
            )
        ],
        "unit/watchdog/test_thread.py",
    ),
    "worker_parts/options.py": "unit/worker_parts/test_build.py",
    "worker_parts/parts.py": "unit/worker_parts/test_build.py",
    "worker.py": "integration/test_worker.py",
    "monitoring/step.py": "integration/test_monitoring.py",
    "remote/queue_counts.py": "unit/cli/test_queues.py",
    # Small parts that are tested with what uses them.
    "__init__.py": "unit/test_project.py",
    "sending/context.py": "unit/test_task.py",
    "errors.py": "unit/test_celery_words.py",
    "exceptions.py": "unit/test_celery_words.py",
    "protocol/clock.py": "unit/test_clock.py",
    # The parts of the producer, each by what it makes of them.
    **dict.fromkeys(
        [f"sending/{part}.py" for part in ("batch", "plan", "push", "sent_events")],
        "unit/sending/test_producer.py",
    ),
    "sending/retry.py": "unit/execution/test_executor.py",
}


def own_test(module: Path) -> Path:
    """Return where a module's own unit test belongs."""
    return UNIT / module.with_name(f"test_{module.stem}.py")


def modules() -> list[Path]:
    """Return all modules with code of their own: one without is its docstring alone."""
    return [
        path.relative_to(PACKAGE)
        for path in sorted(PACKAGE.rglob("*.py"))
        if len(path.read_text(encoding="utf-8").split("\n")) > 12
    ]


def test_every_module_has_its_unit_test_or_says_where_it_is_tested() -> None:
    missing = {str(module) for module in modules() if not own_test(module).exists()}
    assert missing == ELSEWHERE.keys()


def test_what_is_tested_elsewhere_is_tested_there() -> None:
    assert {test for test in ELSEWHERE.values() if not (UNIT.parent / test).exists()} == set()
