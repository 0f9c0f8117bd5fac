"""What Dunlin signs, python-tuf verifies."""

import hashlib
import json
import subprocess
import tempfile
import unittest
from pathlib import Path

from securesystemslib.formats import encode_canonical
from tuf.api.metadata import Metadata, Root
from tuf.ngclient import Updater

from peer import EXAMPLES, Client, Server, quote

SAFE = "/!$&'()*+,;=:@"
TARGETS = ["top level.txt", "digits/1/manifest.json", "digits/2/manifest.json", "strange/ub", "by-hash", *(f"bins/{n}" for n in range(20))]


class DunlinSigns(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        subprocess.run([EXAMPLES / "write_repository", cls.folder.name], check=True, timeout=60)
        files = {p.relative_to(cls.folder.name).as_posix(): p.read_bytes() for p in Path(cls.folder.name).rglob("*") if p.is_file()}
        cls.root = files["metadata/1.root.json"]
        # python-tuf asks for target paths as they are, Dunlin for what a URL may hold.
        cls.files = {**files, **{quote(name, safe=SAFE): data for name, data in files.items() if name.startswith("targets/")}}

    def test_the_client_takes_every_target(self):
        with Server(self.files) as server, tempfile.TemporaryDirectory() as folder:
            for name in ("metadata", "targets"):
                Path(folder, name).mkdir()
            updater = Updater(f"{folder}/metadata", server.url + "metadata/", f"{folder}/targets", server.url + "targets/", bootstrap=self.root)
            updater.refresh()
            for path in TARGETS:
                info = updater.get_targetinfo(path)
                self.assertIsNotNone(info, path)
                self.assertEqual(info.unrecognized_fields["custom"]["dunlin"]["family"], "digits")
                self.assertEqual(Path(updater.download_target(info)).read_bytes(), path.encode())
            for path in ("digits/3/manifest.json", "strange/ud", "bins/20", "bins/1/2"):
                self.assertIsNone(updater.get_targetinfo(path), path)

    def test_delegators_verify_their_roles_and_nobody_else(self):
        read = lambda name: Metadata.from_bytes(self.files[f"metadata/{name}.json"])
        first, second = read("1.root"), read("2.root")
        first.verify_delegate("root", second)
        second.verify_delegate("root", second)
        for role in ("1.snapshot", "timestamp", "1.targets"):
            second.verify_delegate(role.removeprefix("1."), read(role))
        targets = read("1.targets")
        for role in ("team", "ü /..", "prefixes", "bins"):
            targets.verify_delegate(role, read("1." + quote(role, safe="")))
        read("1.team").verify_delegate("deputy", read("1.deputy"))
        with self.assertRaises(Exception):
            targets.verify_delegate("team", read("1.deputy"))

    def test_key_ids_and_kinds_are_understood(self):
        root: Root = Metadata.from_bytes(self.root).signed
        kinds = sorted(key.keytype for key in root.keys.values())
        self.assertEqual(kinds, ["ecdsa"] + ["ed25519"] * 7)
        for keyid, key in root.keys.items():
            self.assertEqual(hashlib.sha256(encode_canonical(key.to_dict()).encode()).hexdigest(), keyid)

    def test_what_python_tuf_writes_again_is_still_signed(self):
        """Nothing is lost or reordered on the way through python-tuf's own types."""
        for name, data in self.files.items():
            if name.startswith("metadata/"):
                again = json.loads(Metadata.from_bytes(data).to_bytes())
                self.assertEqual(again, json.loads(data), name)

    def test_dunlin_takes_it_as_well(self):
        with Server(self.files) as server:
            client = Client(self.root)
            self.assertEqual(client.download(server, *TARGETS), (0, ""))
            self.assertEqual([client.target(path) for path in TARGETS], [path.encode() for path in TARGETS])


if __name__ == "__main__":
    unittest.main()
