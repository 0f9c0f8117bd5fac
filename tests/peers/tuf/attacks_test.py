"""Every folder of protocol/tests/golden/trust/attacks, offered over HTTP to Dunlin's client, which must
end with the code written there, and to python-tuf, which must agree on what is refused."""

import shutil
import unittest
from pathlib import Path

from peer import Client, Python, Server

ATTACKS = Path(__file__).parents[3] / "protocol/tests/golden/trust/attacks"

# What python-tuf takes and Dunlin refuses, or the other way round, with the reason.
DIFFERENCES = {
    "root-one-key-under-two-ids": "python-tuf counts key ids; Dunlin counts keys",
    "delegated-keys-of-another-delegator": "",
}


def served(folder: Path) -> dict:
    files = {}
    for file in (folder / "repository").rglob("*"):
        if file.is_file():
            name = file.relative_to(folder / "repository").as_posix()
            files[name if name.startswith("targets/") else f"metadata/{name}"] = file.read_bytes()
    return files


class Attacks(unittest.TestCase):
    def test_dunlin_ends_each_with_its_code(self):
        for folder in sorted(p for p in ATTACKS.iterdir() if p.is_dir()):
            with self.subTest(folder.name), Server(served(folder)) as server:
                verdict, *rest = (folder / "expected").read_text().splitlines()[0].split()
                client = Client((folder / "trusted_root.json").read_bytes())
                if (folder / "stored").exists():
                    shutil.copytree(folder / "stored", client.metadata, dirs_exist_ok=True)
                status, code = client.download(server, (folder / "wanted").read_text().strip())
                # What a device may install is no matter of a TUF client.
                refused = verdict == "refused" and rest[0] != "device"
                self.assertEqual((status, code), (1, rest[1].replace("-", "_")) if refused else (0, ""))

    def test_python_tuf_agrees(self):
        for folder in sorted(p for p in ATTACKS.iterdir() if p.is_dir()):
            if folder.name in DIFFERENCES:
                continue
            with self.subTest(folder.name), Server(served(folder)) as server:
                verdict, *rest = (folder / "expected").read_text().splitlines()[0].split()
                client = Python((folder / "trusted_root.json").read_bytes())
                if (folder / "stored").exists():
                    shutil.copytree(folder / "stored", client.metadata, dirs_exist_ok=True)
                content = client.download(server, (folder / "wanted").read_text().strip())
                refused = verdict == "refused" and rest[0] != "device"
                self.assertEqual(content is None, refused)


if __name__ == "__main__":
    unittest.main()
