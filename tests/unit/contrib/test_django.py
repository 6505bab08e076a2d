"""The bridge to Django without a database: set-up, discovery, and that it is away elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from greenq import Greenq
from greenq.errors import ConfigError

ROOT = Path(__file__).parents[3]

SETTINGS = """
INSTALLED_APPS = ["plain", "named.apps.Config", "without_tasks"]
GREENQ_TASK_DEFAULT_QUEUE = "own"
CELERY_TASK_DEFAULT_QUEUE = "celerys"
LOGGING = {"version": 1}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A Django project: apps named plainly and by an AppConfig, one without tasks."""
    files = {
        "project_settings.py": SETTINGS,
        "plain/__init__.py": "",
        "plain/tasks.py": "from greenq import shared_task\n@shared_task\ndef one(): pass\n",
        # A model before `django.setup()` is an error.
        "plain/models.py": "from django.db import models\nclass Thing(models.Model): pass\n",
        "named/__init__.py": "",
        "named/apps.py": "from django.apps import AppConfig\n"
        "class Config(AppConfig):\n    name = 'named'\n",
        "named/tasks.py": "from greenq import shared_task\nfrom plain.models import Thing\n"
        "@shared_task\ndef two(): pass\n",
        "without_tasks/__init__.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def run(project: Path, code: str, settings: str | None = "project_settings") -> str:
    """Run code in the project in a fresh interpreter; return what it prints."""
    environment = {"PYTHONPATH": f"{ROOT}{os.pathsep}{project}", "PATH": os.environ["PATH"]}
    if settings is not None:
        environment["DJANGO_SETTINGS_MODULE"] = settings
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import sys\nfrom greenq import Greenq\n{code}"],
        env=environment,
        cwd=project,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


WORKER = "app.import_task_modules(); print(*sorted(app.tasks))"


def test_tasks_of_all_installed_apps_are_found(project: Path) -> None:
    assert run(project, f"app = Greenq(); app.autodiscover_tasks(); {WORKER}") == (
        "named.tasks.two plain.tasks.one"
    )


def test_an_entry_may_name_an_app_config(project: Path) -> None:
    code = f"app = Greenq(); app.autodiscover_tasks(['named.apps.Config']); {WORKER}"
    assert run(project, code) == "named.tasks.two"


def test_nothing_is_imported_before_it_is_needed(project: Path) -> None:
    code = "app = Greenq(); app.autodiscover_tasks(); print('plain' in sys.modules)"
    assert run(project, code) == "False"


def test_it_is_imported_at_once_by_force(project: Path) -> None:
    code = "app = Greenq(); app.autodiscover_tasks(force=True); print(*sorted(app.tasks))"
    assert run(project, code) == "named.tasks.two plain.tasks.one"


def test_an_app_loads_no_django_before_it_is_needed(project: Path) -> None:
    code = "app = Greenq(); app.tasks, app.config; print('django' in sys.modules)"
    assert run(project, code) == "False"


def test_task_modules_are_imported_without_django_where_it_is_not_in_use(project: Path) -> None:
    code = "app = Greenq(include=['plain.tasks']); app.import_task_modules()"
    assert run(project, f"{code}; print('django' in sys.modules)", settings=None) == "False"


@pytest.mark.parametrize(("namespace", "queue"), [("GREENQ", "own"), ("CELERY", "celerys")])
def test_settings_are_djangos(project: Path, namespace: str, queue: str) -> None:
    code = (
        f"app = Greenq(); app.config_from_object('django.conf:settings', namespace={namespace!r})"
    )
    assert run(project, f"{code}; print(app.conf.task_default_queue)") == queue


def test_djangos_logging_does_not_silence_greenq(project: Path) -> None:
    code = (
        "import logging\n"
        "log, other = logging.getLogger('greenq.app'), logging.getLogger('other')\n"
        "Greenq().set_up_framework(); print(log.disabled, other.disabled)"
    )
    assert run(project, code) == "False True"


def test_setting_up_twice_closes_connections_once(project: Path) -> None:
    code = "app = Greenq(); app.set_up_framework(); app.set_up_framework()"
    assert run(project, f"{code}; print(len(app.task_end_hooks))") == "1"


def test_a_missing_django_is_told(project: Path) -> None:
    code = (
        "from greenq.registry import discovery\n"
        "import logging\nlogging.basicConfig(stream=sys.stdout)\n"
        "discovery.find_spec = lambda name: None\n"
        "Greenq().import_task_modules()"
    )
    assert "Django is not installed" in run(project, code)


@pytest.fixture
def no_django(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE", raising=False)


@pytest.mark.usefixtures("no_django")
def test_discovery_without_packages_and_without_django_is_refused() -> None:
    app = Greenq("x", set_as_current=False)
    app.autodiscover_tasks()
    with pytest.raises(ConfigError, match="DJANGO_SETTINGS_MODULE"):
        app.import_task_modules()


@pytest.mark.usefixtures("no_django")
def test_sending_on_commit_without_django_is_refused() -> None:
    app = Greenq("x", set_as_current=False)

    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    with pytest.raises(ConfigError, match="DJANGO_SETTINGS_MODULE"):
        add.delay_on_commit(1, 2)
