"""Files that `greenq deploy` writes, each read by what will read it, or by a checker's rules."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from greenq.cli import build_parser, main
from greenq.cli.deploy import file, run
from greenq.errors import SupervisorError
from greenq.worker_parts.options import EXIT_RECYCLED


def written(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["deploy", *words]) == 0
    return capsys.readouterr().out


# --- supervisord: tests/integration/test_supervisor.py runs it ------------------------------------


def sections(text: str) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";",))
    parser.read_string(text)
    return parser


def test_supervisord_gets_the_app_and_both_limits(capsys: pytest.CaptureFixture[str]) -> None:
    text = written(
        capsys, "supervisord", "-A", "shop.tasks", "--autoscale", "50,5", "--processes", "6,2"
    )
    found = sections(text)

    for program, processes in (("program:greenq", "2"), ("program:greenq-more", "4")):
        assert found[program]["command"].startswith(
            "greenq worker -A shop.tasks --autoscale 50,5 --processes 6,2 "
        )
        assert found[program]["numprocs"] == processes
    assert found["program:greenq-more"]["autostart"] == "false"
    assert found["eventlistener:greenq-listener"]["command"].startswith(
        "greenq supervisor-listener -A shop.tasks "
    )
    assert ";command=greenq beat -A shop.tasks " in text


def test_a_fixed_number_of_processes_needs_one_program(capsys: pytest.CaptureFixture[str]) -> None:
    found = sections(written(capsys, "supervisord", "-A", "proj", "--processes", "3,3"))

    assert "program:greenq-more" not in found
    assert found["group:greenq"]["programs"] == "greenq"
    assert found["program:greenq"]["numprocs"] == "3"
    assert "eventlistener:greenq-listener" in found


def test_a_worker_that_ends_at_its_limit_has_not_failed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = sections(written(capsys, "supervisord", "-A", "proj"))

    for program in ("program:greenq", "program:greenq-more"):
        assert str(EXIT_RECYCLED) in found[program]["exitcodes"].split(",")
    assert sections(unit(capsys))["Service"]["SuccessExitStatus"] == str(EXIT_RECYCLED)


@pytest.mark.parametrize("what", ["systemd", "docker", "kubernetes"])
def test_a_file_for_no_app_is_remarked_upon(
    what: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GREENQ_APP", raising=False)

    assert main(["deploy", what]) == 0

    assert "no app is named" in capsys.readouterr().err
    assert main(["deploy", what, "-A", "shop"]) == 0
    assert capsys.readouterr().err == ""


def test_without_an_app_the_environment_names_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GREENQ_APP", raising=False)

    assert " -A " not in sections(written(capsys, "supervisord"))["program:greenq"]["command"]


@pytest.mark.parametrize("app", ["a b", "x;rm", "%h", 'a"b', "a\nb", ""])
def test_names_that_would_need_quotes_are_refused(
    app: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["deploy", "supervisord", "-A", app])

    assert ended.value.code == 2
    assert "would have to quote" in capsys.readouterr().err


# --- systemd --------------------------------------------------------------------------------------


def unit(capsys: pytest.CaptureFixture[str]) -> str:
    return written(
        capsys, "systemd", "-A", "shop", "--autoscale", "70,7", "--user", "root",
        "--directory", "/", "--binary", "/bin/true",
    )  # fmt: skip


def test_systemd_unit_has_what_was_given(capsys: pytest.CaptureFixture[str]) -> None:
    service = sections(unit(capsys))["Service"]

    assert service["ExecStart"].startswith(
        "/bin/true worker -A shop --autoscale 70,7 -n greenq-%i@"
    )
    assert (service["User"], service["WorkingDirectory"]) == ("root", "/")
    assert (service["KillMode"], service["KillSignal"]) == ("mixed", "SIGTERM")
    # Longer than worker_shutdown_grace.
    assert int(service["TimeoutStopSec"]) > 30


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_finds_nothing_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "greenq@0.service"
    path.write_text(unit(capsys))

    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    # It also complains about other units of this machine.
    assert [line for line in done.stderr.splitlines() if "greenq@" in line] == []


# --- Docker ---------------------------------------------------------------------------------------


def instructions(text: str) -> list[tuple[str, str]]:
    """Split a Dockerfile into instructions."""
    lines = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", text)).splitlines()
    return [
        (word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines) if word
    ]


def test_dockerfile_follows_the_rules(capsys: pytest.CaptureFixture[str]) -> None:
    """Those of linters: a tagged base, no root, no shell around the worker, packages first."""
    found = instructions(
        written(capsys, "docker", "-A", "shop", "--python", "3.13", "--autoscale", "70,7")
    )
    words = [word for word, _rest in found]
    known = {"FROM", "ENV", "WORKDIR", "RUN", "COPY", "USER", "EXPOSE", "HEALTHCHECK",
        "STOPSIGNAL", "ENTRYPOINT", "CMD"}  # fmt: skip

    assert set(words) <= known
    assert found[0] == ("FROM", "python:3.13-slim")
    by_word = dict(found)
    assert by_word["USER"] not in ("root", "0")
    assert words.index("USER") < words.index("ENTRYPOINT")
    assert json.loads(by_word["ENTRYPOINT"]) == ["greenq", "worker", "-A", "shop"]
    assert json.loads(by_word["CMD"])[:2] == ["--autoscale", "70,7"]
    assert by_word["STOPSIGNAL"] == "SIGTERM"
    _interval, check = by_word["HEALTHCHECK"].split("CMD")
    assert json.loads(check)[:2] == ["greenq", "health"]
    copies = [rest for word, rest in found if word == "COPY"]
    assert copies == ["requirements.txt ./", ". ."]
    assert all("--no-cache-dir" in rest for _word, rest in found if "pip install" in rest)
    assert not re.search(r"(?i)password|secret|redis://", str(found))


# --- Kubernetes -----------------------------------------------------------------------------------


def objects(text: str) -> dict[str, Any]:
    return {each["kind"]: each for each in yaml.safe_load_all(text)}


def test_kubernetes_has_a_deployment_that_stops_warm_and_is_probed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = objects(
        written(
            capsys,
            "kubernetes",
            "-A",
            "shop",
            "--image",
            "registry.example:5000/shop:2",
            "--replicas",
            "5",
            "--autoscale",
            "70,7",
        )
    )
    spec = found["Deployment"]["spec"]
    pod = spec["template"]["spec"]
    (worker,) = pod["containers"]

    assert set(found) == {"Deployment", "PodDisruptionBudget", "Service"}
    assert all({"apiVersion", "kind", "metadata", "spec"} <= each.keys() for each in found.values())
    assert spec["replicas"] == 5
    assert worker["image"] == "registry.example:5000/shop:2"
    assert worker["command"] == ["greenq", "worker", "-A", "shop"]
    assert worker["args"][:2] == ["--autoscale", "70,7"]
    assert pod["terminationGracePeriodSeconds"] > 30
    assert pod["securityContext"]["runAsNonRoot"] is True
    probes = {
        name: worker[f"{name}Probe"]["httpGet"] for name in ("liveness", "readiness", "startup")
    }
    assert {name: get["path"] for name, get in probes.items()} == {
        "liveness": "/livez", "readiness": "/readyz", "startup": "/startupz",
    }  # fmt: skip
    ports = {port["name"]: port["containerPort"] for port in worker["ports"]}
    assert {get["port"] for get in probes.values()} == {"health"}
    assert f"0.0.0.0:{ports['health']}" in worker["args"]
    assert {"requests", "limits"} <= worker["resources"].keys()


def test_kubernetes_asks_only_for_what_the_worker_answers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    deployment = objects(written(capsys, "kubernetes", "-A", "proj"))["Deployment"]
    template = deployment["spec"]["template"]
    (worker,) = template["spec"]["containers"]
    args = build_parser().parse_args([*worker["command"][1:], *worker["args"]])

    asked = {each["httpGet"]["path"] for name, each in worker.items() if name.endswith("Probe")} | {
        text
        for name, text in template["metadata"].get("annotations", {}).items()
        if name == "prometheus.io/path"
    }
    answered = {"/metrics"} if args.metrics_address else set()
    if args.health_address or args.metrics_address:
        answered |= {"/livez", "/readyz", "/startupz"}
    assert asked <= answered


def test_kubernetes_selectors_find_the_pods(capsys: pytest.CaptureFixture[str]) -> None:
    found = objects(written(capsys, "kubernetes", "-A", "proj"))
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]

    assert found["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert found["Service"]["spec"]["selector"] == labels


def test_the_scaler_in_the_comment_is_yaml_too(capsys: pytest.CaptureFixture[str]) -> None:
    text = written(capsys, "kubernetes", "-A", "proj")
    lines = text[text.index("#---\n") :].splitlines()
    scaler = yaml.safe_load("\n".join(line[1:] for line in lines[1:]))

    assert scaler["kind"] == "ScaledObject"
    assert scaler["spec"]["scaleTargetRef"]["name"] == "greenq"


def test_every_default_in_a_file_is_replaced() -> None:
    """A default that no longer stands in its file would be ignored without a word."""
    given = {
        "systemd": {"app": "aa", "autoscale": (3, 2), "directory": "/dd", "user": "uu",
            "binary": "/cc"},
        "docker": {"app": "aa", "autoscale": (3, 2), "python": "9.9"},
        "kubernetes": {"app": "aa", "autoscale": (3, 2), "image": "ii", "replicas": 77},
    }  # fmt: skip
    for what, options in given.items():
        text = re.sub(r"(?m)^#.*\n", "", file(what, options))
        for name, value in options.items():
            shown = "3,2" if name == "autoscale" else str(value)
            assert shown in text, (what, name)
        assert "proj" not in text


# --- restart: where supervisord is ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "needs a [supervisorctl] section"),
        ("[supervisorctl]\n", "serverurl"),
        ("[supervisorctl]\nserverurl=ftp://x\n", "is not an address of supervisord"),
        ("[supervisorctl]\nserverurl=unix://%(here)s/s.sock ; here\n", "/s.sock does not answer"),
        ("[supervisorctl]\nserverurl=unix://%(ENV_C_HOME)s/e.sock\n", "/e.sock does not answer"),
    ],
)
def test_the_address_of_supervisord_is_read_from_its_configuration(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("C_HOME", str(tmp_path))
    path = tmp_path / "supervisord.conf"
    path.write_text(text)
    words = ["deploy", "restart", "-b", "redis://127.0.0.1:1/0", "-c", str(path)]

    with pytest.raises(SupervisorError, match=re.escape(said)):
        run(build_parser().parse_args(words))
