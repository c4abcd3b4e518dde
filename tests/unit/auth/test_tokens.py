"""Tokens: what a signer gives is what a verifier gets, and nothing else is taken."""

from __future__ import annotations

import base64
import json
from typing import Any, Final

import jwt
import pytest

from duologue.auth.tokens import MAX_TOKEN_CHARACTERS, Identity, TokenIssuer, TokenVerifier
from duologue.domain.errors import Rejected
from duologue.domain.ids import UserKey

SECRET: Final = "a secret of more than thirty-two bytes"
NOW: Final = 1_800_000_000_000
ANN: Final = UserKey("default", "ann")


def _verifier(now: int = NOW) -> TokenVerifier:
    return TokenVerifier(SECRET, clock=lambda: now)


def _signed(**claims: Any) -> str:
    return jwt.encode({"sub": "ann", "exp": NOW // 1000 + 60, **claims}, SECRET, algorithm="HS256")


def _part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def test_token_issued_is_verified_with_every_claim() -> None:
    issuer = TokenIssuer(SECRET, clock=lambda: NOW)
    token = issuer.issue(ANN, uid="row-1", kind="guest", lifetime_seconds=60)
    assert _verifier().verify(token) == Identity(ANN, "row-1", "ann", "guest", NOW + 60_000)
    token = issuer.issue(UserKey("shop", "ann"), uid="row-2", kind="account", lifetime_seconds=5, name="Ann Lee")
    assert _verifier().verify(token) == Identity(UserKey("shop", "ann"), "row-2", "Ann Lee", "account", NOW + 5_000)


def test_token_of_a_products_backend_needs_sub_and_exp_only() -> None:
    assert _verifier().verify(_signed(aud="shop", iss="shop")) == Identity(ANN, None, "ann", "external", NOW + 60_000)


def test_operators_token_opens_operations_and_names_no_row() -> None:
    token = TokenIssuer(SECRET, clock=lambda: NOW).issue_operator("sue", lifetime_seconds=60)
    identity = _verifier().verify(token)
    assert identity == Identity(UserKey("default", "sue"), None, "sue", "external", NOW + 60_000, operator=True)


@pytest.mark.parametrize("claims", [{"role": "operator"}, {"roles": ["author", "operator"]}])
def test_token_of_a_products_backend_may_be_an_operators(claims: dict[str, Any]) -> None:
    assert _verifier().verify(_signed(**claims)).operator


@pytest.mark.parametrize(
    "claims", [{}, {"role": "Operator"}, {"role": ["operator"]}, {"roles": "operator"}, {"roles": [["operator"]]}]
)
def test_token_with_another_role_is_no_operators(claims: dict[str, Any]) -> None:
    assert not _verifier().verify(_signed(**claims)).operator


def test_token_expires_to_the_millisecond() -> None:
    token = _signed()
    assert _verifier(NOW + 59_999).verify(token).user == ANN
    with pytest.raises(Rejected, match="expired") as refusal:
        _verifier(NOW + 60_000).verify(token)
    assert refusal.value.code == "invalid_token"


def test_expired_token_still_tells_whose_it_was_for_a_renewal() -> None:
    assert _verifier(NOW * 2).verify_expired_ok(_signed()).user == ANN


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": ""},
        {"sub": "ann:admin"},
        {"sub": "ann}"},
        {"sub": "x" * 65},
        {"sub": 7},
        {"sub": None},
        {"exp": None},
        {"exp": "tomorrow"},
        {"exp": 1e300 * 1e300},
        {"uid": 7},
        {"uid": ""},
        {"tenant": "a:b"},
        {"tenant": None},
        {"kind": "operator"},
        {"kind": ["guest"]},
    ],
)
def test_token_with_claims_that_cannot_be_is_refused(claims: dict[str, Any]) -> None:
    with pytest.raises(Rejected) as refusal:
        _verifier().verify(_signed(**claims))
    assert refusal.value.code == "invalid_token"


@pytest.mark.parametrize(
    "token",
    [
        "",
        "nonsense",
        "a.b.c",
        "é.b.c",
        "x" * (MAX_TOKEN_CHARACTERS + 1),
        base64.urlsafe_b64encode(b"[" * 3000).decode() + ".e30.e30",
        f"{_part({'alg': 'none'})}.{_part({'sub': 'ann', 'exp': NOW})}.",
        jwt.encode({"sub": "ann", "exp": NOW}, "another secret of more than thirty-two bytes", algorithm="HS256"),
        jwt.encode({"sub": "ann", "exp": NOW}, SECRET * 2, algorithm="HS512"),
        jwt.encode({"sub": "ann"}, SECRET, algorithm="HS256"),
        jwt.encode({"exp": NOW}, SECRET, algorithm="HS256"),
    ],
    ids=[
        "empty",
        "word",
        "parts",
        "not ascii",
        "long",
        "deep",
        "unsigned",
        "other key",
        "other hash",
        "no exp",
        "no sub",
    ],
)
def test_token_that_was_not_signed_here_is_refused(token: str) -> None:
    for verify in (_verifier().verify, _verifier().verify_expired_ok):
        with pytest.raises(Rejected) as refusal:
            verify(token)
        assert refusal.value.code == "invalid_token"
