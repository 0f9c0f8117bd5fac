#!/usr/bin/env python3
"""Writes this folder's TUF repository with python-tuf, to be read back by Dunlin.

    python3 -m venv venv && venv/bin/pip install tuf==7.0.1 'securesystemslib[crypto]==1.6.0'
    venv/bin/python make.py

The Ed25519 keys come from fixed seeds and are worth nothing. The ECDSA signature on root differs from run to run.
"""

import hashlib
import json
from datetime import datetime, timezone
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    Delegations, DelegatedRole, Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

HERE = Path(__file__).parent
EXPIRES = datetime(2099, 1, 1, tzinfo=timezone.utc)


def signer(seed: int) -> CryptoSigner:
    return CryptoSigner(Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32))


def write(name: str, metadata: Metadata, signers, compact: bool = True) -> bytes:
    metadata.signatures.clear()
    for s in signers:
        metadata.sign(s, append=True)
    data = metadata.to_bytes(JSONSerializer(compact=compact))
    (HERE / name).write_bytes(data)
    return data


def main() -> None:
    roots = [signer(n) for n in (1, 2, 3)]
    new_root_key = signer(4)
    targets_keys = [signer(5), signer(6)]
    snapshot_key, old_timestamp_key, timestamp_key = signer(7), signer(8), signer(9)
    ecdsa = CryptoSigner.generate_ecdsa()

    root = Root(version=1, expires=EXPIRES, consistent_snapshot=True)
    for s in roots:
        root.add_key(s.public_key, "root")
    root.add_key(ecdsa.public_key, "root")
    root.roles["root"].threshold = 2
    for s in targets_keys:
        root.add_key(s.public_key, "targets")
    root.roles["targets"].threshold = 2
    root.add_key(snapshot_key.public_key, "snapshot")
    root.add_key(old_timestamp_key.public_key, "timestamp")
    root.unrecognized_fields["x-fleet"] = {"name": "Düne \"7\" \\ 北", "tags": [None, True, -1]}
    write("1.root.json", Metadata(root), [ecdsa, *roots[:2]], compact=False)

    root.version = 2
    root.revoke_key(roots[0].public_key.keyid, "root")
    root.add_key(new_root_key.public_key, "root")
    root.revoke_key(old_timestamp_key.public_key.keyid, "timestamp")
    root.add_key(timestamp_key.public_key, "timestamp")
    write("2.root.json", Metadata(root), [roots[0], roots[1], new_root_key])

    content = b"a target's content\n"
    digest = hashlib.sha256(content).hexdigest()
    (HERE / f"{digest}.model.txt").write_bytes(content)
    target = TargetFile.from_data("model.txt", content, ["sha256", "sha512"])
    target.unrecognized_fields["custom"] = {
        "dunlin": {"family": "digits", "version": 3, "hardware": ["x86_64"], "rollback_floor": 2,
                   "kind": "model", "later": {"unknown": [1, 2]}},
    }
    targets = Targets(version=5, expires=EXPIRES, targets={"model.txt": target})
    delegate = signer(10)
    targets.delegations = Delegations(
        keys={delegate.public_key.keyid: delegate.public_key},
        roles={"team": DelegatedRole("team", [delegate.public_key.keyid], 1, True, paths=["team/*"])},
    )
    targets_data = write("5.targets.json", Metadata(targets), targets_keys)

    snapshot = Snapshot(version=7, expires=EXPIRES, meta={
        "targets.json": MetaFile.from_data(5, targets_data, ["sha256"]),
        "team.json": MetaFile(1),
    })
    snapshot_data = write("7.snapshot.json", Metadata(snapshot), [snapshot_key])

    timestamp = Timestamp(version=11, expires=EXPIRES,
                          snapshot_meta=MetaFile.from_data(7, snapshot_data, ["sha256"]))
    write("timestamp.json", Metadata(timestamp), [timestamp_key])
    timestamp.version = 12
    timestamp.snapshot_meta = MetaFile(7)  # length and hashes are optional
    write("timestamp-without-hashes.json", Metadata(timestamp), [timestamp_key])

    vectors = [
        {"b": 1, "a": [True, False, None, -5, 2**64 - 1, -(2**63)]},
        {"é": 1, "z": 2, "～": 3, "😀": 4, "": 5},
        ["quote \" backslash \\ newline \n tab \t nul \0 del \x7f slash /", "", "\u2028"],
        {"nested": {"y": {}, "x": [[], [{}]]}},
    ]
    pairs = [{"json": json.dumps(v), "canonical_hex": encode_canonical(v).encode().hex()} for v in vectors]
    (HERE / "canonical.json").write_text(json.dumps(pairs, indent=1) + "\n")


main()
