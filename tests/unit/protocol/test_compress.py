from __future__ import annotations

import bz2
import importlib.util
import lzma
import random
import sys
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenq.errors import DecodeError, EncodeError
from greenq.protocol.compress import accepted, compress, decompress

PACKAGES = {"brotli": "brotli", "zstd": "backports.zstd"}
STANDARD = ["gzip", "zlib", "bzip2", "bzip", "lzma", "xz"]


def is_installed(package):
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


METHODS = STANDARD + [name for name, package in PACKAGES.items() if is_installed(package)]


@pytest.mark.parametrize("name", METHODS)
@given(data=st.binary())
def test_every_method_gives_back_the_bytes(name, data):
    packed, content_type = compress(data, name)
    assert decompress(packed, content_type, len(data)) == data


@pytest.mark.parametrize(
    ("name", "content_type", "expand"),
    [
        ("gzip", "application/x-gzip", zlib.decompress),
        ("bzip2", "application/x-bz2", bz2.decompress),
        ("xz", "application/x-lzma", lzma.decompress),
    ],
)
def test_method_writes_the_form_of_its_content_type(name, content_type, expand):
    packed, named = compress(b"body", name)
    assert named == content_type
    assert expand(packed) == b"body"


@pytest.mark.parametrize("name", METHODS)
def test_bomb_is_stopped_at_the_limit(name):
    packed, content_type = compress(bytes(5_000_000), name)
    with pytest.raises(DecodeError, match="expands beyond 1000 bytes"):
        decompress(packed, content_type, 1000)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("size", [99, 100])
def test_limit_is_exact(name, size):
    packed, content_type = compress(b"x" * 100, name)
    if size == 100:
        assert decompress(packed, content_type, size) == b"x" * 100
    else:
        with pytest.raises(DecodeError, match="beyond 99"):
            decompress(packed, content_type, size)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-5],
        lambda data: data + b"more",
        lambda data: b"",
        lambda data: b"\x00junk",
    ],
    ids=["cut off", "followed", "empty", "junk"],
)
def test_damaged_data_is_a_decode_error_with_its_bytes(name, damage):
    packed, content_type = compress(b"some body, some body" * 20, name)
    with pytest.raises(DecodeError, match=r"damaged|truncated") as caught:
        decompress(damage(packed), content_type, 10_000)
    assert caught.value.raw == damage(packed)


def test_dictionary_that_would_need_gigabytes_is_refused():
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 20}]
    packed = bytearray(lzma.compress(b"x", format=lzma.FORMAT_ALONE))
    packed[1:5] = (3 << 30).to_bytes(4, "little")
    assert lzma.decompress(lzma.compress(b"x", filters=filters)) == b"x"
    with pytest.raises(DecodeError, match="damaged"):
        decompress(bytes(packed), "application/x-lzma", 100)


def test_unknown_method_is_named():
    with pytest.raises(EncodeError, match=r"'snappy'.*gzip"):
        compress(b"", "snappy")
    with pytest.raises(DecodeError, match="application/x-snappy"):
        decompress(b"", "application/x-snappy", 10)


def test_missing_package_is_named(monkeypatch):
    for module in ("brotli", "brotlicffi"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EncodeError, match="brotli"):
        compress(b"", "brotli")
    with pytest.raises(DecodeError, match="brotli"):
        decompress(b"", "application/x-brotli", 10)


@pytest.mark.parametrize("name", METHODS)
def test_little_data_expands_to_a_mebibyte_and_no_more(name):
    packed, content_type = compress(b"[]," * 1_000_000, name)
    assert len(packed) < 10_000
    with pytest.raises(DecodeError, match="expands beyond 1048576 bytes, more than 100 times"):
        decompress(packed, content_type, 1 << 29)


def test_data_expands_a_hundred_times():
    text = random.Random(1).randbytes(30_000) + bytes(2_000_000)
    packed, content_type = compress(text, "gzip")
    assert len(text) > 1 << 20
    assert decompress(packed, content_type, 1 << 29) == text


def test_compression_that_is_not_accepted_is_not_expanded():
    packed, content_type = compress(b"x", "bzip2")
    with pytest.raises(DecodeError, match=r"x-bz2' is not accepted .*accept_compression"):
        decompress(packed, content_type, 100, accepted("gzip", None))
    assert decompress(packed, content_type, 100, accepted("bzip2")) == b"x"
