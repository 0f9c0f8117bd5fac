#!/usr/bin/env python3
"""Writes signatures.json: one key of each kind and what it signed, to be verified by Dunlin.

    python3 -m venv venv && venv/bin/pip install -r ../../../../../tests/peers/tuf/requirements.txt
    venv/bin/python signatures.py

The keys are made anew each time, and forgotten.
"""

import json
from pathlib import Path

from securesystemslib.signer import CryptoSigner

MESSAGE = b"what is signed"
KINDS = {
    "ed25519": CryptoSigner.generate_ed25519,
    "ecdsa": CryptoSigner.generate_ecdsa,
    "rsa-pss": lambda: CryptoSigner.generate_rsa(scheme="rsassa-pss-sha256", size=2048),
    "rsa-pss of 4096 bits": lambda: CryptoSigner.generate_rsa(scheme="rsassa-pss-sha256", size=4096),
    "rsa-pkcs1v15": lambda: CryptoSigner.generate_rsa(scheme="rsa-pkcs1v15-sha256", size=3072),
}


def main() -> None:
    made = []
    for kind, generate in KINDS.items():
        signer = generate()
        made.append({"kind": kind, "key": signer.public_key.to_dict(), "signature": signer.sign(MESSAGE).signature})
    vectors = {"message": MESSAGE.decode(), "made": made}
    Path(__file__).with_name("signatures.json").write_text(json.dumps(vectors, indent=1) + "\n")


main()
