"""The device's own verifier: RFC 8032's vectors, and the same answers as the library that signs."""

from __future__ import annotations

import importlib.util
import sys

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.agent.kit import AGENT

_spec = importlib.util.spec_from_file_location("agent_ed25519", AGENT / "ed25519.py")
ed25519 = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = ed25519
_spec.loader.exec_module(ed25519)

# RFC 8032, section 7.1: public key, message, signature; tests 1, 2, 3 and SHA(abc).
VECTORS = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        (
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24"
            "655141438e7a100b"
        ),
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        (
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aee"
            "b00d291612bb0c00"
        ),
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        (
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28d"
            "c027beceea1ec40a"
        ),
    ),
    (
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        (
            "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e"
            "2a9ac94fa54ca49f"
        ),
        (
            "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17a"
            "d9bef1177331a704"
        ),
    ),
]


@pytest.mark.parametrize("vector", VECTORS)
def test_the_vectors_of_the_rfc_are_verified(vector):
    assert ed25519.verified(*(bytes.fromhex(part) for part in vector))


@pytest.mark.parametrize("vector", VECTORS)
@pytest.mark.parametrize("part", [0, 2])
def test_one_wrong_bit_is_refused(vector, part):
    parts = [bytearray.fromhex(text) for text in vector]
    for bit in (0, 100, len(parts[part]) * 8 - 1):
        parts[part][bit // 8] ^= 1 << bit % 8
        assert not ed25519.verified(*map(bytes, parts))
        parts[part][bit // 8] ^= 1 << bit % 8


def test_another_message_is_refused():
    key, message, signature = (bytes.fromhex(part) for part in VECTORS[2])
    assert not ed25519.verified(key, message + b"\0", signature)


def test_a_signature_that_was_made_larger_by_the_order_is_refused():
    key, message, signature = (bytes.fromhex(part) for part in VECTORS[1])
    larger = int.from_bytes(signature[32:], "little") + ed25519.ORDER
    assert not ed25519.verified(key, message, signature[:32] + larger.to_bytes(32, "little"))


@pytest.mark.parametrize(("key", "signature"), [(31, 64), (32, 63), (32, 65), (0, 0)])
def test_other_lengths_are_refused(key, signature):
    assert not ed25519.verified(bytes(key), b"", bytes(signature))


@settings(max_examples=40, deadline=None)
@given(seed=st.binary(min_size=32, max_size=32), message=st.binary(max_size=300))
def test_what_the_library_signs_is_verified(seed, message):
    private = Ed25519PrivateKey.from_private_bytes(seed)
    public = private.public_key().public_bytes_raw()
    signature = private.sign(message)
    assert ed25519.verified(public, message, signature)
    assert not ed25519.verified(public, message + b"x", signature)


@settings(max_examples=60, deadline=None)
@given(key=st.binary(min_size=32, max_size=32), signature=st.binary(min_size=64, max_size=64))
def test_noise_gets_the_answer_that_the_library_gives(key, signature):
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, b"message")
        expected = True
    except (InvalidSignature, ValueError):
        expected = False
    assert ed25519.verified(key, b"message", signature) is expected
