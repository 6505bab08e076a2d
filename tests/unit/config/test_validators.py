"""What is shown of a value hides its secrets; queues. What most kinds take is in test_config.py."""

from __future__ import annotations

from typing import Any

import pytest

from greenq.config import queues, validators

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://h:6379/0", "redis://h:6379/0"),
        (f"redis://{SECRET}@h/0", "redis://********@h/0"),
        (f"redis://user%3A{SECRET}@h", "redis://********@h"),
        (f"redis://user%3A{SECRET}:{SECRET}@h", "redis://********:********@h"),
        (f"redis:// :{SECRET}@h", "redis:// :********@h"),
        (f"redis://us er:{SECRET}@h", "redis://us er:********@h"),
        (f"redis:// {SECRET}@h", "redis://********@h"),
        (f"redis://h/0?PASSWORD={SECRET}", "redis://h/0?PASSWORD=********"),
        (f"redis://h/0?password={SECRET}@{SECRET}", "redis://h/0?password=********"),
        (f"rediss://h?ssl_ca_data={SECRET}&a=1", "rediss://h?ssl_ca_data=********&a=1"),
        (f"rediss://h?ssl_pass%77ord={SECRET}", "rediss://h?ssl_pass%77ord=********"),
        (f"rediss://h?api_key={SECRET}", "rediss://h?api_key=********"),
        ("rediss://h?ssl_ca_certs=/ca.pem", "rediss://h?ssl_ca_certs=/ca.pem"),
        ("embedded:///home/me@work/data", "embedded:///home/me@work/data"),
        (f"redis://:{SECRET}@h/0", "redis://:********@h/0"),
        (f"rediss://user:{SECRET}@h:1/0?x=1", "rediss://user:********@h:1/0?x=1"),
        (f"redis://:a@{SECRET}/b@h/0", "redis://:********@h/0"),
        (f"redis://:a;{SECRET},b@h/0", "redis://:********@h/0"),
        (f"redis://h/0?password={SECRET}&a=1", "redis://h/0?password=********&a=1"),
        (f"unix://:{SECRET}@/run/s.sock?db=1", "unix://:********@/run/s.sock?db=1"),
        (f"sentinel://:{SECRET}@a:1;sentinel://:{SECRET}@b:1",
         "sentinel://:********@a:1;sentinel://:********@b:1"),
        (f"error 7: redis://:{SECRET}@h", "error 7: redis://:********@h"),
        ("", ""),
    ],
)  # fmt: skip
def test_mask_url_hides_the_password_and_nothing_else(url: str, masked: str) -> None:
    assert validators.mask_url(url) == masked


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("password", SECRET, "********"),
        ("Auth_Token", 7, "********"),
        ("api_key", SECRET, "********"),
        ("X-Api-Key", SECRET, "********"),
        ("authorization", SECRET, "********"),
        (
            "headers",
            {"Authorization": SECRET, "keys": "k"},
            {"Authorization": "********", "keys": "k"},
        ),
        ("x", {"secret_key": SECRET, "n": 1}, {"secret_key": "********", "n": 1}),
        ("x", [f"redis://:{SECRET}@h"], ["redis://:********@h"]),
        ("x", ({"passwd": SECRET}, 2), ({"passwd": "********"}, 2)),
        ("x", "a" * 200, "a" * 200),
        ("x", "a" * 201, "a" * 200 + "…"),
        ("x", None, None),
    ],
)
def test_shown_hides_secrets_at_any_depth_and_shortens_text(
    name: str, value: object, shown: object
) -> None:
    assert validators.shown(name, value) == shown


def test_queues_are_names_and_broadcast_queues() -> None:
    kind = queues.queues()

    assert kind.accept(["a", queues.Broadcast("b")]) == ("a", queues.Broadcast("b"))
    assert kind.parse("a, b") == ["a", "b"]
    assert kind.parse('{"a": {"expires": 5}}') == {"a": {"expires": 5}}


@pytest.mark.parametrize("wrong", ["", 5, None, b"a"])
def test_what_is_no_name_is_no_queue_and_no_broadcast_queue(wrong: Any) -> None:
    with pytest.raises(ValueError, match="must be non-empty text, or a Queue or Broadcast"):
        queues.queue().accept(wrong)
    with pytest.raises(ValueError, match="must be non-empty text"):
        queues.Broadcast(wrong)


def test_flag_or_takes_a_word_beside_true_and_false() -> None:
    kind = validators.flag_or("inspect")

    assert [kind.accept(each) for each in (True, False, "inspect")] == [True, False, "inspect"]
    assert [kind.parse(each) for each in ("true", "0", "Inspect")] == [True, False, "inspect"]
    with pytest.raises(ValueError, match="True, False or 'inspect'"):
        kind.accept("look")


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("rediss://h", []),
        ("rediss://h?ssl_cert_reqs=required&ssl_check_hostname=true", []),
        ("rediss://h?ssl_cert_reqs=NONE", ["ssl_cert_reqs=NONE"]),
        ("rediss://h?ssl_check_hostname=0&db=1", ["ssl_check_hostname=0"]),
    ],
)
def test_insecure_options_are_found(url: str, options: list[str]) -> None:
    assert validators.insecure_options(url) == options
