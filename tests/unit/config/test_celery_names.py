"""Every setting of Celery's is known: it acts, it is not needed, or one line says what to do."""

from __future__ import annotations

from typing import Any

import pytest
from celery.app import defaults  # type: ignore[import-untyped]

from greenq.config.celery_names import SETTINGS, TRANSPORT_OPTIONS, modern_name
from greenq.config.settings import Config, sift
from greenq.errors import ConfigError

CELERYS: dict[str, Any] = {
    name: option.default for name, option in defaults.flatten(defaults.NAMESPACES)
}
OWN = Config.names()

# Values that ask for something, where text does not.
NOT_DEFAULT = "something else"


def test_every_name_of_celery_is_known_and_none_is_made_up() -> None:
    assert len(CELERYS) == 207
    assert SETTINGS.keys() == CELERYS.keys() - OWN


def test_defaults_noted_are_celerys() -> None:
    assert {name: about.default for name, about in SETTINGS.items()} == {
        name: CELERYS[name] for name in SETTINGS
    }


@pytest.mark.parametrize("name", sorted(CELERYS))
def test_celerys_own_default_is_accepted_without_a_word(name: str) -> None:
    default = CELERYS[name]
    Config.build({name: default})
    assert sift({name: default}).notes == ()
    if default is None:
        Config.build({name: None})


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_what_greenq_lacks_is_warned_of_or_refused_with_a_sentence(name: str) -> None:
    about = SETTINGS[name]
    if about.harmless:
        Config.build({name: NOT_DEFAULT})
        (note,) = sift({name: NOT_DEFAULT}).notes
        assert note.startswith(f"{name} = ")
        assert note.endswith(about.advice)
    else:
        with pytest.raises(ConfigError) as refused:
            Config.build({name: NOT_DEFAULT})
        (problem,) = refused.value.problems
        assert problem.reason == f"is a Celery setting: {about.advice}"
    assert about.advice.startswith(
        ("use ", "not needed: ", "not supported", "tasks are", "greenq has no", "signed", "no eff")
    )


@pytest.mark.parametrize("old", sorted(defaults._TO_NEW_KEY))
def test_old_names_lead_to_the_new_ones(old: str) -> None:
    new = defaults._TO_NEW_KEY[old]
    if new == old.lower():
        assert modern_name(old, dict.fromkeys(OWN)) == new
        return
    with pytest.raises(ConfigError) as refused:
        Config.build({old: 1})
    assert refused.value.problems[0].reason == f"is an old name; it is now {new}"


@pytest.mark.parametrize("option", sorted(TRANSPORT_OPTIONS))
def test_options_of_celerys_transport_are_known(option: str) -> None:
    about = TRANSPORT_OPTIONS[option]
    Config.build({"broker_transport_options": {option: about.default}})
    given = {"broker_transport_options": {option: NOT_DEFAULT}}
    if about.harmless:
        Config.build(given)
        (note,) = sift(given).notes
        assert note.startswith(f"broker_transport_options.{option} = ")
    else:
        with pytest.raises(ConfigError, match=f"broker_transport_options.{option}"):
            Config.build(given)


def test_password_of_a_setting_without_effect_is_not_shown() -> None:
    (note,) = sift({"redis_password": "s3cr3t"}).notes
    assert "s3cr3t" not in note
