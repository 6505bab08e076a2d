"""The form of signatures, and that nothing signed can be changed or used for something else."""

from __future__ import annotations

import hmac
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenq.errors import SignatureError
from greenq.protocol import envelope, fast_decode
from greenq.protocol.message import TaskMessage, decode, encode
from greenq.protocol.signer import Kind, Signer

KEY, OTHER = b"k" * 32, b"o" * 32
KINDS: tuple[Kind, ...] = ("message", "request", "reply", "event", "result")
JSON = frozenset({"application/json"})


def element(**fields: object) -> str:
    message = TaskMessage(task="t.add", id="id-1", args=[1, 2], root_id="root", **fields)  # type: ignore[arg-type]
    encoded = encode(message)
    return envelope.wrap(
        encoded.body,
        content_type=encoded.content_type,
        content_encoding=encoded.content_encoding,
        headers=encoded.headers,
        properties=envelope.task_properties(
            queue="q", correlation_id="id-1", reply_to="me", delivery_tag="tag"
        ),
    )


def refusal(signer: Signer, kind: Kind, place: str, data: bytes) -> str:
    with pytest.raises(SignatureError) as refused:
        signer.open(kind, place, data)
    return str(refused.value)


@pytest.mark.parametrize(
    "content",
    [b'{"a": 1}', b"{}", b"\x80\x05pickle.", b"status: SUCCESS\n", b"\x00c\x00\xff}", b""],
)
def test_what_was_signed_comes_back(content: bytes) -> None:
    signer = Signer(KEY)
    assert signer.open("result", "key", signer.seal("result", "key", content)) == content


def test_the_form_is_the_one_that_is_documented() -> None:
    sealed = json.loads(Signer(KEY).seal("message", "é", '{"a": 1}'))
    name = hmac.digest(KEY, b"greenq 1 name of the key", "sha256").hex()[:8]
    mac = hmac.digest(KEY, b'greenq 1 message 2 \xc3\xa9\n{"a": 1}', "sha256").hex()[:32]
    assert sealed == {"a": 1, "greenq_sig": name + mac}


def test_it_is_the_hmac_of_the_standard_library_for_keys_of_any_length() -> None:
    for length in (32, 64, 65, 200):
        key = bytes(range(length))
        mac = hmac.digest(key, b"greenq 1 event 0 \nabc", "sha256").hex()[:32]
        assert Signer(key).seal("event", "", "abc").endswith(mac.encode())


def test_a_change_of_any_byte_is_noticed() -> None:
    signer = Signer(KEY)
    sealed = signer.seal("message", "q", element())
    for index in range(len(sealed)):
        changed = bytearray(sealed)
        changed[index] ^= 1
        assert not signer.trusts("message", "q", bytes(changed)), sealed[:index][-40:]
        assert not signer.trusts("message", "q", sealed[:index] + sealed[index + 1 :])


def every_field(value: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    if isinstance(value, dict):
        return [found for name in value for found in every_field(value[name], (*path, name))]
    return [path]


def test_a_change_of_any_field_is_noticed() -> None:
    signer = Signer(KEY)
    sealed = signer.seal("message", "q", element(eta="2030-01-01", timelimit=(5, 4)))
    paths = every_field(json.loads(sealed))
    assert ("headers", "timelimit") in paths
    assert ("properties", "delivery_info", "routing_key") in paths
    for path in paths:
        forged = json.loads(sealed)
        inner = forged
        for name in path[:-1]:
            inner = inner[name]
        inner[path[-1]] = "changed"
        assert not signer.trusts("message", "q", json.dumps(forged).encode()), path
        del inner[path[-1]]
        assert not signer.trusts("message", "q", json.dumps(forged).encode()), path


@given(st.sampled_from(KINDS), st.text(), st.binary(), st.sampled_from(KINDS), st.text())
def test_it_is_valid_for_one_kind_and_one_place(
    kind: Kind, place: str, content: bytes, other: Kind, elsewhere: str
) -> None:
    signer = Signer(KEY)
    sealed = signer.seal(kind, place, content)
    assert signer.trusts(other, elsewhere, sealed) == ((other, elsewhere) == (kind, place))


def test_place_and_content_cannot_trade_characters() -> None:
    signer = Signer(KEY)
    data = signer.seal("message", "ab", "c\nd")
    tail = data[len("c\nd") :]
    assert not signer.trusts("message", "a", b"bc\nd" + tail)
    assert not signer.trusts("message", "ab\nc", b"d" + tail)


def test_reasons_are_exact_and_counted() -> None:
    signer = Signer(KEY)
    sealed = signer.seal("message", "q", "{}")
    assert refusal(signer, "message", "q", b'{"a": 1}') == "unsigned"
    assert refusal(signer, "message", "p", sealed) == "signature does not match"
    unknown = Signer(OTHER).seal("message", "q", "{}")
    assert refusal(signer, "message", "q", unknown) == "signed with an unknown key"
    assert signer.refused == {
        "message: unsigned": 1,
        "message: signature does not match": 1,
        "message: signed with an unknown key": 1,
    }


def test_an_accepted_key_is_accepted_and_never_signs() -> None:
    signer = Signer(KEY, [OTHER])
    assert signer.open("result", "k", Signer(OTHER).seal("result", "k", "{}")) == b"{}"
    assert refusal(Signer(OTHER), "result", "k", signer.seal("result", "k", "{}")) == (
        "signed with an unknown key"
    )


def test_where_signatures_are_not_required_only_wrong_ones_are_refused() -> None:
    signer = Signer(KEY, required=False)
    assert signer.open("message", "q", b"{}") == b"{}"
    sealed = signer.seal("message", "q", "{}")
    assert refusal(signer, "message", "p", sealed) == "signature does not match"


def test_a_signature_is_never_given_to_what_had_none() -> None:
    signer, lenient = Signer(KEY), Signer(KEY, required=False)
    forged = element().encode()
    changed = envelope.mark_redelivered(forged)
    assert signer.reseal("message", "q", forged, changed) == forged
    assert lenient.reseal("message", "q", forged, changed) == changed
    sealed = signer.seal("message", "q", forged)
    assert signer.reseal("message", "p", sealed, changed) == sealed
    again = signer.reseal("message", "q", sealed, envelope.mark_redelivered(sealed))
    assert isinstance(again, bytes)
    assert signer.open("message", "q", again).decode() == changed


def test_a_reader_without_a_key_reads_what_is_signed() -> None:
    sealed = Signer(KEY).seal("message", "q", element())
    fast = fast_decode.read(sealed, accept=JSON, max_body_bytes=1000)
    assert fast is not None
    assert decode(envelope.unwrap(sealed), accept=JSON, max_body_bytes=1000).id == fast.id == "id-1"
    assert "greenq_sig" not in json.loads(envelope.mark_redelivered(sealed))
