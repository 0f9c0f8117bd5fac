"""Repositories that python-tuf signs, honest and not, in Dunlin's client."""

import hashlib
import unittest

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Delegations, Metadata, SuccinctRoles, TargetFile, Targets

from peer import Client, Repository, Server, names, unpublished

KINDS = {
    "ed25519": CryptoSigner.generate_ed25519,
    "ecdsa": CryptoSigner.generate_ecdsa,
    "rsassa-pss-sha256": lambda: CryptoSigner.generate_rsa(scheme="rsassa-pss-sha256"),
    "rsa-pkcs1v15-sha256": lambda: CryptoSigner.generate_rsa(scheme="rsa-pkcs1v15-sha256"),
    "rsa of 4096 bits": lambda: CryptoSigner.generate_rsa(size=4096),
}


def old_ecdsa():
    """A key under the name that older repositories have for its type."""
    signer = CryptoSigner.generate_ecdsa()
    signer.public_key.keytype = "ecdsa-sha2-nistp256"
    return signer


def file(path, content=b"content", hashes=("sha256",)):
    return TargetFile.from_data(path, content, list(hashes))


class Keys(unittest.TestCase):
    def test_every_kind_signs_every_role(self):
        for kind, generate in {**KINDS, "old ecdsa": old_ecdsa}.items():
            with self.subTest(kind):
                repository = Repository()
                old_roots = repository.signers["root"]
                for role in repository.signers:
                    repository.keys(role, generate())
                repository.publish_root(also=old_roots)
                repository.delegate("team", paths=["*/*"], signer=generate())
                repository.add_target(file("team/x"), b"content", "team")
                repository.publish()
                with Server(repository.files) as server:
                    client = Client(repository.first_root)
                    self.assertEqual(client.download(server, "team/x"), (0, ""))

    def test_a_signature_of_another_message_is_none(self):
        for kind, generate in KINDS.items():
            with self.subTest(kind):
                repository = Repository()
                repository.keys("timestamp", generate())
                repository.publish_root()
                repository.publish()
                stale = Metadata.from_bytes(repository.files["metadata/timestamp.json"])
                repository.publish()
                bent = Metadata.from_bytes(repository.files["metadata/timestamp.json"])
                bent.signatures = stale.signatures
                repository.files["metadata/timestamp.json"] = bent.to_bytes()
                with Server(repository.files) as server:
                    self.assertEqual(Client(repository.first_root).refresh(server), (1, "threshold"))

    def test_unknown_kinds_and_schemes_are_passed_over(self):
        repository = Repository()
        [honest] = repository.signers["timestamp"]
        strangers = [CryptoSigner.generate_ed25519() for _ in range(3)]
        strangers[0].public_key.keytype = strangers[0].public_key.scheme = "ml-dsa-65"
        strangers[1].public_key.scheme = "ed25519ph"
        strangers[2].public_key.keyval["public"] = "no key at all"
        repository.keys("timestamp", honest, *strangers, threshold=1, sign=[honest, *strangers])
        repository.publish_root()
        repository.publish()
        with Server(repository.files) as server:
            self.assertEqual(Client(repository.first_root).refresh(server), (0, ""))
            repository.keys("timestamp", honest, *strangers, threshold=2)
            repository.publish_root()
            repository.publish()
            self.assertEqual(Client(repository.first_root).refresh(server), (1, "threshold"))

    def test_thresholds_of_several_kinds(self):
        signers = [generate() for generate in KINDS.values()]
        for count in range(len(signers) + 1):
            with self.subTest(signatures=count):
                repository = Repository()
                for role in ("timestamp", "snapshot", "targets"):
                    repository.keys(role, *signers, threshold=3, sign=signers[:count])
                repository.publish_root()
                repository.publish()
                with Server(repository.files) as server:
                    expected = (0, "") if count >= 3 else (1, "threshold")
                    self.assertEqual(Client(repository.first_root).refresh(server), expected)


class Rotation(unittest.TestCase):
    def test_every_role_and_back_after_many_versions(self):
        repository = Repository()
        client = Client(repository.first_root)
        with Server(repository.files) as server:
            self.assertEqual(client.refresh(server), (0, ""))
            for _ in range(12):  # more than ten versions of root at once
                old = repository.signers["root"]
                for role in repository.signers:
                    repository.keys(role, CryptoSigner.generate_ed25519())
                repository.publish_root(also=old)
            repository.publish()
            self.assertEqual(client.refresh(server), (0, ""))
            self.assertEqual(client.version("root"), 13)

    def test_a_revoked_key_signs_nothing_more(self):
        for role in ("timestamp", "snapshot", "targets"):
            with self.subTest(role):
                repository = Repository()
                [old] = repository.signers[role]
                repository.keys(role, CryptoSigner.generate_ed25519(), sign=[old])
                repository.publish_root()
                repository.publish()
                with Server(repository.files) as server:
                    self.assertEqual(Client(repository.first_root).refresh(server), (1, "threshold"))

    def test_fast_forward_and_recovery(self):
        repository = Repository()
        client = Client(repository.first_root)
        with Server(repository.files) as server:
            for role in ("timestamp", "snapshot", "targets"):
                repository.tops[role].version = 1_000_000
            repository.publish()
            self.assertEqual(client.refresh(server), (0, ""))
            for role in ("timestamp", "snapshot", "targets"):
                repository.tops[role].version = 1
            repository.publish()
            self.assertEqual(client.refresh(server), (1, "rollback"))
            for role in ("timestamp", "snapshot"):
                repository.keys(role, CryptoSigner.generate_ed25519())
            repository.publish_root()
            repository.publish()
            self.assertEqual(client.refresh(server), (0, ""))
            self.assertEqual(client.version("targets"), repository.targets.version)

    def test_a_delegated_role_gets_new_keys(self):
        repository = Repository()
        team = repository.delegate("team", paths=["team/*"])
        repository.add_target(file("team/x"), b"content", "team")
        repository.publish()
        client = Client(repository.first_root)
        with Server(repository.files) as server:
            self.assertEqual(client.download(server, "team/x"), (0, ""))
            [old] = repository.signers["team"]
            repository.targets.revoke_key(old.public_key.keyid, "team")
            new = CryptoSigner.generate_ecdsa()
            repository.targets.add_key(new.public_key, "team")
            repository.publish()
            self.assertEqual(client.download(server, "team/x"), (1, "threshold"))
            repository.signers["team"] = [new]
            repository.publish()
            self.assertEqual(client.download(server, "team/x"), (0, ""))
            self.assertEqual(client.version("team"), team.version)


class Downloads(unittest.TestCase):
    def test_in_order_until_the_first_failure_and_never_twice(self):
        for consistent in (True, False):
            with self.subTest(consistent_snapshot=consistent):
                repository = Repository(consistent=consistent)
                for path in ("a", "folder/b c?#%ü.txt", "d"):
                    repository.add_target(file(path, path.encode()), path.encode())
                repository.publish()
                client = Client(repository.first_root)
                with Server(repository.files) as server:
                    self.assertEqual(client.download(server, "a", "folder/b c?#%ü.txt"), (0, ""))
                    self.assertEqual(client.target("folder/b c?#%ü.txt"), "folder/b c?#%ü.txt".encode())
                    self.assertEqual(names(server.asked).count("timestamp"), 1, "one updater for all")
                    server.asked.clear()
                    self.assertEqual(client.download(server, "a", "none", "d"), (1, "unknown_target"))
                    self.assertIsNone(client.target("d"))
                    self.assertFalse([path for path in server.asked if path.startswith("targets/")])
                    repository.add_target(file("a", b"changed"), b"changed")
                    repository.publish()
                    self.assertEqual(client.download(server, "a"), (0, ""))
                    self.assertEqual(client.target("a"), b"changed")

    def test_hashes(self):
        for hashes in (["sha256"], ["sha512"], ["sha512", "sha256"], ["sha256", "sha3_256", "blake2b"]):
            with self.subTest(hashes):
                repository = Repository()
                repository.add_target(file("x", b"content", hashes), b"content")
                repository.publish()
                with Server(repository.files) as server:
                    client = Client(repository.first_root)
                    self.assertEqual(client.download(server, "x"), (0, ""))

    def test_one_target_of_unknown_hashes_spoils_no_other(self):
        repository = Repository()
        repository.add_target(file("old"), b"content")
        repository.add_target(file("new", b"content", ["sha3_256"]), b"content")
        repository.publish()
        with Server(repository.files) as server:
            client = Client(repository.first_root)
            self.assertEqual(client.download(server, "old"), (0, ""))
            self.assertEqual(client.download(server, "new"), (1, "bad_field"))


class Delegation(unittest.TestCase):
    def test_stored_metadata_is_used_while_it_is_listed(self):
        repository = Repository(hashed=False)
        repository.delegate("team", paths=["team/*"])
        repository.add_target(file("team/x"), b"content", "team")
        repository.publish()
        client = Client(repository.first_root)
        with Server(repository.files) as server:
            self.assertEqual(client.download(server, "team/x"), (0, ""))
            server.asked.clear()
            self.assertEqual(client.download(server, "team/x"), (0, ""))
            self.assertEqual(names(server.asked), ["root", "timestamp"])
            # A stored file that someone bent is fetched again.
            stored = client.metadata / "team.json"
            stored.write_bytes(stored.read_bytes().replace(b"team/x", b"team/y"))
            self.assertEqual(client.download(server, "team/x"), (0, ""))
            self.assertEqual(names(server.asked)[-1], "team")

    def test_names_that_are_paths_stay_in_the_folder(self):
        for role in ("../../x", "/etc/x", ".", "..", "?#", "é/ü", "a%2Fb", "nul\0"):
            with self.subTest(role):
                repository = Repository()
                repository.delegate(role, paths=["*"])
                repository.add_target(file("x"), b"content", role)
                repository.publish()
                with Server(repository.files) as server:
                    client = Client(repository.first_root)
                    before = {p for p in client.metadata.parent.parent.iterdir()}
                    self.assertEqual(client.download(server, "x"), (0, ""))
                    self.assertEqual(len(list(client.metadata.iterdir())), 5)
                    self.assertEqual(before, {p for p in client.metadata.parent.parent.iterdir()})

    def test_hash_prefixes(self):
        for length in (1, 2, 5, 64):
            with self.subTest(digits=length):
                repository = Repository()
                digest = hashlib.sha256(b"some/path").hexdigest()
                other = "0" * length if digest[:length] != "0" * length else "1" * length
                repository.delegate("other", prefixes=[other], terminating=True)
                repository.delegate("team", prefixes=["f" * 64, digest[:length]])
                repository.add_target(file("some/path"), b"content", "team")
                repository.publish()
                with Server(repository.files) as server:
                    client = Client(repository.first_root)
                    self.assertEqual(client.download(server, "some/path"), (0, ""))
                    self.assertEqual(names(server.asked)[4:], ["team"])

    def test_hash_bins_of_every_number_of_bits(self):
        for bits in range(1, 33):
            with self.subTest(bits):
                repository = Repository()
                bins = SuccinctRoles([], 1, bits, "bin/ü")
                repository.targets.delegations = Delegations({}, None, bins)
                signer = CryptoSigner.generate_ed25519()
                repository.targets.add_key(signer.public_key)
                # The one bin that is needed: nobody fetches the others.
                name = bins.get_role_for_target("some/path")
                repository.roles[name] = unpublished(Targets)
                repository.signers[name] = [signer]
                repository.add_target(file("some/path"), b"content", name)
                repository.publish()
                with Server(repository.files) as server:
                    client = Client(repository.first_root)
                    self.assertEqual(client.download(server, "some/path"), (0, ""))
                    self.assertEqual(names(server.asked)[4:], [name])

    def test_thirty_two_roles_and_no_more(self):
        for count in (32, 33):
            with self.subTest(roles=count):
                repository = Repository()
                by = None
                for n in range(count):
                    repository.delegate(f"role-{n}", by=by, paths=["*"])
                    by = f"role-{n}"
                repository.add_target(file("x"), b"content", by)
                repository.publish()
                with Server(repository.files) as server:
                    client = Client(repository.first_root)
                    expected = (0, "") if count == 32 else (1, "too_many_delegations")
                    self.assertEqual(client.download(server, "x"), expected)


if __name__ == "__main__":
    unittest.main()
