#!/usr/bin/env python3
"""Makes golden.json: bearer tokens signed by PyJWT (or forged by hand) and what must become of them.

    pip install "PyJWT[crypto]" && ./make.py > golden.json

Keys are made anew each time and only their public halves are kept (and the HMAC secret). Where PyJWT has an
opinion of its own, it is asked, and must agree. tests/unit/tenancy/jwt_test.c reads the result."""
import base64
import datetime
import hashlib
import hmac
import json
import sys

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.x509.oid import NameOID

NOW = 1800000000
SECRET = "0123456789abcdef0123456789abcdef-golden"
CLAIMS = {"tenant": "acme", "iss": "https://issuer.example", "aud": "realm", "exp": NOW + 600, "iat": NOW - 10}
RULES = {"algorithms": "HS256 RS256 ES256 EdDSA", "issuer": "https://issuer.example", "audience": "realm"}


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def number(value, size=None):
    return b64(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


def pem(key):
    return key.public_key().public_bytes(serialization.Encoding.PEM,
                                         serialization.PublicFormat.SubjectPublicKeyInfo).decode()


def certificate(key):
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "golden")])
    start = datetime.datetime(2020, 1, 1)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(start).not_valid_after(start + datetime.timedelta(days=36500))
    return made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


RSA, RSA2, WEAK = (rsa.generate_private_key(65537, bits) for bits in (2048, 2048, 1024))
EC, EC384 = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP384R1())
ED = ed25519.Ed25519PrivateKey.generate()


def jwk_rsa(key, **more):
    n = key.public_key().public_numbers()
    return {"kty": "RSA", "n": number(n.n), "e": number(n.e), **more}


def jwk_ec(key, crv="P-256", size=32, **more):
    n = key.public_key().public_numbers()
    return {"kty": "EC", "crv": crv, "x": number(n.x, size), "y": number(n.y, size), **more}


def jwk_ed(key, **more):
    raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return {"kty": "OKP", "crv": "Ed25519", "x": b64(raw), **more}


SET = json.dumps({"keys": [
    jwk_rsa(RSA, kid="r", use="sig", alg="RS256"), jwk_ec(EC, kid="e"), jwk_ed(ED, kid="d"),
    # What other services keep in the same set:
    jwk_rsa(RSA2, kid="enc", use="enc"), jwk_ec(EC384, "P-384", 48, kid="big"), {"kty": "unheard-of", "kid": "x"},
    jwk_rsa(RSA2, kid="ps", alg="PS256"), {"kty": "oct", "k": b64(SECRET.encode()), "kid": "r"}]})
SIGNERS = {"HS256": SECRET, "RS256": RSA, "ES256": EC, "EdDSA": ED}
VERIFIERS = {"HS256": SECRET, "RS256": RSA.public_key(), "ES256": EC.public_key(), "EdDSA": ED.public_key()}
cases = []


def case(name, token, status, keys=SET, hmac_key=False, says=None, tenant="acme", scopes="inference", **rules):
    cases.append({"name": name, "token": token, "status": status, "keys": keys, "hmac": hmac_key, "says": says or "",
                  "tenant": tenant, "scopes": scopes, "rules": {**RULES, **rules}})


def sign(alg, claims=None, kid=None, key=None, **headers):
    if kid:
        headers["kid"] = kid
    return jwt.encode(CLAIMS if claims is None else claims, key or SIGNERS[alg], algorithm=alg, headers=headers or None)


def claims(**changes):
    return {k: v for k, v in {**CLAIMS, **changes}.items() if v is not None}


def forge(header, payload, mac=None):
    """Any header and payload as bytes or objects; signed as HS256 with mac, or with what mac returns."""
    parts = [b64(p if isinstance(p, bytes) else json.dumps(p).encode()) for p in (header, payload)]
    signed = ".".join(parts).encode()
    if mac is None:
        return signed.decode() + "."
    signature = mac(signed) if callable(mac) else hmac.new(mac, signed, hashlib.sha256).digest()
    return signed.decode() + "." + b64(signature)


def rs256(signed):
    return RSA.sign(signed, padding.PKCS1v15(), hashes.SHA256())


# ---- good ones, which PyJWT takes too ----
for alg in SIGNERS:
    token = sign(alg)
    for kid in (None, {"RS256": "r", "ES256": "e", "EdDSA": "d"}.get(alg)):
        token = sign(alg, kid=kid)
        jwt.decode(token, VERIFIERS[alg], algorithms=[alg], audience="realm", issuer=RULES["issuer"],
                   options={"verify_exp": False, "verify_iat": False, "verify_nbf": False})
        case(f"{alg} kid {kid}", token, "OK", *((SECRET + "\n", True) if alg == "HS256" else ()))
for alg, key in (("RS256", RSA), ("ES256", EC), ("EdDSA", ED)):
    case(f"{alg} PEM", sign(alg), "OK", pem(key))
    case(f"{alg} certificate", sign(alg), "OK", certificate(RSA) if alg == "RS256" else pem(key))
case("single JWK", sign("ES256"), "OK", json.dumps(jwk_ec(EC)))
case("secret as JWK", sign("HS256"), "OK", json.dumps({"kty": "oct", "k": b64(SECRET.encode())}), True)
case("kid, keys without any", sign("RS256", kid="anything"), "OK", pem(RSA))
case("audience list", sign("RS256", claims(aud=["other", "realm"])), "OK")
case("no audience asked, none there", sign("RS256", claims(aud=None)), "OK", audience=None)
case("no issuer asked", sign("RS256", claims(iss="anybody")), "OK", issuer=None)
case("expired within leeway", sign("RS256", claims(exp=NOW - 20)), "OK", leeway=30)
case("early within leeway", sign("RS256", claims(nbf=NOW + 20)), "OK", leeway=30)
case("exp with a fraction", sign("RS256", claims(exp=NOW + 0.5)), "OK")
case("nested tenant", sign("RS256", claims(tenant=None, org={"id": "globex"})), "OK", tenant="globex",
     tenant_claim="org.id")
case("claim whose name has dots", sign("RS256", {**CLAIMS, "https://x.example/t": "globex"}), "OK", tenant="globex",
     tenant_claim="https://x.example/t")
case("scopes", sign("RS256", claims(scope="openid deploy usage")), "OK", scopes="deploy,usage")
case("scopes as list", sign("RS256", claims(scp=["inference", "deploy"])), "OK", scopes="inference,deploy",
     scope_claim="scp")
case("scopes of others", sign("RS256", claims(scope="openid profile")), "OK", scopes="")
case("admin is never given", sign("RS256", claims(scope="admin inference")), "OK", scopes="inference")
case("access token type", sign("RS256", typ="at+jwt"), "OK")

# ---- none, and confusion of algorithms ----
for name in ("none", "None", "NONE", "nOnE", "", "hs256", "rs256"):
    case(f"alg '{name}' unsigned", forge({"alg": name, "typ": "JWT"}, CLAIMS), "DENIED")
    case(f"alg '{name}' signed", forge({"alg": name}, CLAIMS, SECRET.encode()), "DENIED", says="algorithm")
    case(f"alg '{name}' with the secret", forge({"alg": name}, CLAIMS), "DENIED", SECRET, True)
case("alg missing", forge({"typ": "JWT"}, CLAIMS, SECRET.encode()), "DENIED", says="algorithm")
case("alg a list", forge({"alg": ["RS256"]}, CLAIMS, rs256), "DENIED", says="algorithm")
case("alg null", forge({"alg": None}, CLAIMS, rs256), "DENIED")
for label, mac in (("PEM", pem(RSA)), ("PEM stripped", pem(RSA).strip()), ("modulus", number(RSA.public_key().public_numbers().n)),
                   ("JWK set", SET)):
    for keys in (pem(RSA), SET):
        case(f"HS256 with the public key as secret ({label})", forge({"alg": "HS256", "typ": "JWT"}, CLAIMS, mac.encode()),
             "DENIED", keys)
case("HS256 with a secret from a public set", sign("HS256", kid="r"), "DENIED")
case("RS256 not accepted", sign("RS256"), "DENIED", algorithms="ES256 EdDSA", says="algorithm")
case("HS256 not accepted", sign("HS256"), "DENIED", SECRET, True, algorithms="RS256", says="algorithm")
for alg in ("RS384", "RS512", "PS256"):
    case(alg, sign(alg, key=RSA), "DENIED", says="algorithm")
case("ES384", sign("ES384", key=EC384), "DENIED", says="algorithm")
case("HS512", sign("HS512", key=SECRET * 2), "DENIED", SECRET * 2, True, says="algorithm")
case("RS256's signature called ES256", forge({"alg": "ES256", "kid": "r"}, CLAIMS, rs256), "DENIED")
case("kid of a key of another kind", sign("RS256", kid="e"), "DENIED")

# ---- signatures ----
good = sign("RS256")
head, body, tail = good.split(".")
flipped = bytearray(base64.urlsafe_b64decode(tail + "=="))
flipped[7] ^= 1
case("another claim", head + "." + b64(json.dumps(claims(tenant="globex")).encode()) + "." + tail, "DENIED", says="signature")
case("a flipped bit", head + "." + body + "." + b64(bytes(flipped)), "DENIED", says="signature")
case("another header", b64(b'{"alg":"RS256"}') + "." + body + "." + tail, "DENIED", says="signature")
case("a stranger's key", sign("RS256", key=RSA2), "DENIED", says="signature")
case("a stranger's key, named", sign("RS256", key=RSA2, kid="r"), "DENIED", says="signature")
case("key in the token", sign("RS256", key=RSA2, jwk=jwk_rsa(RSA2)), "DENIED", says="signature")
case("key behind the token's URL", sign("RS256", key=RSA2, jku="https://evil.example/"), "DENIED", says="signature")
case("unknown kid", sign("RS256", kid="new"), "NOT_FOUND")
case("kid as a path", sign("RS256", key=RSA2, kid="../../dev/null"), "NOT_FOUND")
case("an encryption key", sign("RS256", key=RSA2, kid="enc"), "NOT_FOUND")
case("a key for another algorithm", sign("RS256", key=RSA2, kid="ps"), "NOT_FOUND")
case("kid a number", forge({"alg": "RS256", "kid": 7}, CLAIMS, rs256), "DENIED")
case("ES256 zero", forge({"alg": "ES256"}, CLAIMS, lambda _: bytes(64)), "DENIED", says="signature")
case("ES256 as DER", forge({"alg": "ES256"}, CLAIMS, lambda s: EC.sign(s, ec.ECDSA(hashes.SHA256()))), "DENIED")
case("EdDSA too short", forge({"alg": "EdDSA"}, CLAIMS, lambda s: ED.sign(s)[:63]), "DENIED")
case("EdDSA too long", forge({"alg": "EdDSA"}, CLAIMS, lambda s: ED.sign(s) + b"0"), "DENIED")
case("HS256 shortened", forge({"alg": "HS256"}, CLAIMS,
                              lambda s: hmac.new(SECRET.encode(), s, hashlib.sha256).digest()[:16]), "DENIED", SECRET, True)
case("HS256 empty", forge({"alg": "HS256"}, CLAIMS), "DENIED", SECRET, True)
case("HS256 other secret", sign("HS256", key=SECRET + "x"), "DENIED", SECRET, True, says="signature")

# ---- claims: PyJWT refuses these too ----
for name, changed, word in (("expired", {"exp": NOW - 1}, "expired"), ("just expired", {"exp": NOW}, "expired"),
                            ("not yet", {"nbf": NOW + 60}, "not valid yet"), ("from the future", {"iat": NOW + 60}, "not valid yet"),
                            ("audience", {"aud": "other"}, "audience"), ("audiences", {"aud": ["a", "b"]}, "audience"),
                            ("audience missing", {"aud": None}, "audience"), ("issuer", {"iss": "https://evil.example"}, "issuer"),
                            ("issuer missing", {"iss": None}, "issuer"), ("exp missing", {"exp": None}, "expires"),
                            ("exp a text", {"exp": "tomorrow"}, "seconds")):
    token = sign("RS256", claims(**changed)) if name != "exp a text" else forge({"alg": "RS256"}, claims(**changed), rs256)
    case(name, token, "DENIED", says=word)
    late = {k: v - NOW + int(datetime.datetime.now().timestamp()) if isinstance(v, int) and v > 1000000 else v
            for k, v in claims(**changed).items()}
    try:
        jwt.decode(forge({"alg": "RS256"}, late, rs256), RSA.public_key(), algorithms=["RS256"], audience="realm",
                   issuer=RULES["issuer"], options={"require": ["exp"]})
        sys.exit(f"PyJWT takes '{name}'")
    except jwt.PyJWTError:
        pass
case("audience a prefix", sign("RS256", claims(aud="realm2")), "DENIED", says="audience")
case("audience in objects", sign("RS256", claims(aud=None, x={"aud": "realm"})), "DENIED", says="audience")
case("audience though none is asked", sign("RS256"), "DENIED", audience=None, says="audience")
case("issuer in a list", forge({"alg": "RS256"}, claims(iss=[CLAIMS["iss"]]), rs256), "DENIED", says="issuer")
case("exp beyond numbers", forge({"alg": "RS256"}, b'{"tenant":"acme","exp":1e999}', rs256), "DENIED")
case("exp negative", sign("RS256", claims(exp=-5)), "DENIED")
case("exp true", forge({"alg": "RS256"}, claims(exp=True), rs256), "DENIED", says="seconds")
case("leeway has an end", sign("RS256", claims(exp=NOW - 400)), "DENIED", leeway=100000, says="expired")
for name, value in (("missing", None), ("a number", 7), ("a path", "../x"), ("empty", ""), ("with a NUL", "acme\0x"),
                    ("a list", ["acme"]), ("too long", "a" * 64)):
    case(f"tenant {name}", sign("RS256", claims(tenant=value)), "DENIED", says="tenant")

# ---- form ----
case("tenant twice", forge({"alg": "RS256"}, b'{"tenant":"acme","tenant":"globex","exp":1900000000,"aud":"realm",'
                           b'"iss":"https://issuer.example"}', rs256), "DENIED")
case("alg twice", forge(b'{"alg":"none","alg":"RS256"}', CLAIMS, rs256), "DENIED")
case("critical extension", sign("RS256", crit=["b64"], b64=True), "DENIED", says="extension")
case("another type", sign("RS256", typ="dpop+jwt"), "DENIED", says="type")
case("claims no object", forge({"alg": "RS256"}, b"[1]", rs256), "DENIED")
case("claims no JSON", forge({"alg": "RS256"}, b"{", rs256), "DENIED")
case("claims not UTF-8", forge({"alg": "RS256"}, b'{"tenant":"\xff"}', rs256), "DENIED")
case("claims nest deeply", forge({"alg": "RS256"}, b"[" * 5000, rs256), "DENIED")
case("header nests deeply", forge(b'{"alg":' + b"[" * 4000, CLAIMS, rs256), "DENIED")
case("header no object", forge(b'"RS256"', CLAIMS, rs256), "DENIED")
for name, token in (("empty", ""), ("two dots", ".."), ("two parts", head + "." + body), ("four parts", good + ".x"),
                    ("five parts", good + ".x.y"), ("padded", good + "=="), ("space before", " " + good),
                    ("newline after", good + "\n"), ("quoted", '"' + good + '"'), ("no header", "." + body + "." + tail),
                    ("no claims", head + ".." + tail), ("star", head + "." + body + "*." + tail),
                    ("plus", head + "." + body + "." + "+" + tail[1:]), ("too long", good + "A" * 20000),
                    ("bits left over", head + "." + body + "." + tail[:-1] + ("B" if tail[-1] != "B" else "C")),
                    ("three of four", head + "." + body + "." + tail[:-2] + tail[-1])):
    case(f"form: {name}", token, "DENIED")

refused = [{"name": name, "keys": keys, "hmac": is_hmac, "says": says} for name, keys, is_hmac, says in (
    ("weak RSA", pem(WEAK), False, "2048"), ("weak RSA as JWK", json.dumps(jwk_rsa(WEAK)), False, "2048"),
    ("short secret", "a" * 31, True, "32 bytes"), ("short secret as JWK", json.dumps({"kty": "oct", "k": b64(b"a" * 31)}), True, "32"),
    ("secret where public keys are wanted", json.dumps({"kty": "oct", "k": b64(SECRET.encode())}), False, "kind"),
    ("public key where a secret is wanted", json.dumps(jwk_rsa(RSA)), True, "secret"),
    ("P-384", pem(EC384), False, "kind"), ("point off the curve", json.dumps({**jwk_ec(EC), "y": jwk_ec(EC)["x"]}), False, "refused"),
    ("short coordinate", json.dumps({**jwk_ec(EC), "x": "AAAA"}), False, "refused"),
    ("no number", json.dumps({**jwk_rsa(RSA), "n": "!!"}), False, "refused"), ("empty set", '{"keys":[]}', False, "empty"),
    ("set of others'", json.dumps({"keys": [jwk_rsa(RSA, use="enc")]}), False, "no key"), ("no key", "hello", False, "refused"),
    ("nothing", "", False, "refused"), ("half a PEM", pem(RSA)[:80], False, "refused"), ("a list", "[]", False, "refused"))]

texts = sorted({c["keys"] for c in cases})
for c in cases:
    c["keys"] = texts.index(c["keys"])
json.dump({"made_by": f"PyJWT {jwt.__version__}", "now": NOW, "keys": texts, "cases": cases, "refused_keys": refused}, sys.stdout, indent=1)
print()
