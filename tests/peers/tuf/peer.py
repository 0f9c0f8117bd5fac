"""What all tests here share: a web server, Dunlin's client as a program, and a repository to bend."""

import os
import subprocess
import tempfile
import threading
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote

from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import DownloadError, RepositoryError
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, MetaFile, Root, Snapshot, Targets, Timestamp
from tuf.api.serialization.json import JSONSerializer
from tuf.ngclient import Updater

EXAMPLES = Path(os.environ["DUNLIN_EXAMPLES"])
LATER = datetime(2099, 1, 1, tzinfo=timezone.utc)
LIMIT_S = 60


class Server:
    """Serves `files`, {path: bytes}, and remembers what was asked for."""

    def __init__(self, files):
        asked = self.asked = []
        self.files = files

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                asked.append(self.path.removeprefix("/"))
                data = files.get(self.path.removeprefix("/"))
                self.send_response(404 if data is None else 200)
                self.send_header("Content-Length", str(len(data or b"")))
                self.end_headers()
                self.wfile.write(data or b"")

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/"

    def __enter__(self):
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


class Client:
    """Dunlin's client with folders of its own."""

    def __init__(self, root: bytes):
        self.folder = tempfile.TemporaryDirectory()
        self.metadata = Path(self.folder.name, "metadata")
        self.targets = Path(self.folder.name, "targets")
        self.targets.mkdir()
        file = Path(self.folder.name, "root.json")
        file.write_bytes(root)
        done = self.run("init", str(file))
        assert done == (0, ""), done

    def run(self, *arguments):
        """Exit status and the code in parentheses at the end of the error."""
        command = [EXAMPLES / "tuf_client", "--metadata-dir", self.metadata, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
        if done.returncode == 0:
            return 0, ""
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("error: ") and last.endswith(")"), done.stderr
        return done.returncode, last.rpartition("(")[2].removesuffix(")")

    def refresh(self, server):
        return self.run("--metadata-url", server.url + "metadata/", "refresh")

    def download(self, server, *names):
        targets = [word for name in names for word in ("--target-name", name)]
        return self.run("--metadata-url", server.url + "metadata", *targets, "--target-base-url", server.url + "targets",
                        "--target-dir", self.targets, "download")

    def version(self, role):
        file = self.metadata / f"{role}.json"
        return Metadata.from_file(str(file)).signed.version if file.exists() else None

    def target(self, path):
        file = self.targets / quote(path, safe="")
        return file.read_bytes() if file.exists() else None


class Python:
    """python-tuf's client with folders of its own."""

    def __init__(self, root: bytes):
        self.root = root
        self.folder = tempfile.TemporaryDirectory()
        self.metadata = Path(self.folder.name, "metadata")
        self.metadata.mkdir()

    def download(self, server, path):
        """The content, or None if it is refused."""
        targets = Path(self.folder.name, "targets")
        targets.mkdir(exist_ok=True)
        try:
            updater = Updater(str(self.metadata), server.url + "metadata/", str(targets), server.url + "targets/", bootstrap=self.root)
            updater.refresh()
            info = updater.get_targetinfo(path)
            return Path(updater.download_target(info)).read_bytes() if info else None
        except (RepositoryError, DownloadError):
            return None


def unpublished(kind, **fields):
    """Metadata whose first version is still to come."""
    content = kind(version=1, expires=LATER, **fields)
    content.version = 0
    return content


class Repository:
    """Signed by python-tuf. Every top-level role has `signers` of its own and a threshold."""

    def __init__(self, consistent=True, hashed=True):
        self.hashed = hashed
        self.signers = {role: [CryptoSigner.generate_ed25519()] for role in ("root", "timestamp", "snapshot", "targets")}
        self.root = unpublished(Root, consistent_snapshot=consistent)
        self.tops = {
            "targets": unpublished(Targets),
            "snapshot": unpublished(Snapshot, meta={}),
            "timestamp": unpublished(Timestamp),
        }
        self.roles = {}
        self.files = {}
        for role in self.signers:
            self.keys(role, *self.signers[role])
        self.publish_root()
        self.publish()

    @property
    def targets(self):
        return self.tops["targets"]

    @property
    def first_root(self):
        return self.files["metadata/1.root.json"]

    def keys(self, role, *signers, threshold=None, sign=None):
        """`signers` are all keys of a top-level role from the next root on; `sign` sign with them."""
        self.root.roles[role].keyids.clear()
        for s in signers:
            self.root.add_key(s.public_key, role)
        self.root.roles[role].threshold = threshold or len(signers)
        self.signers[role] = list(sign if sign is not None else signers)

    def publish_root(self, also=()):
        self.root.version += 1
        data = self.sign(self.root, [*self.signers["root"], *also])
        self.files[f"metadata/{self.root.version}.root.json"] = data

    @staticmethod
    def sign(content, signers) -> bytes:
        metadata = Metadata(content)
        for s in signers:
            metadata.sign(s, append=True)
        return metadata.to_bytes(JSONSerializer())

    def delegate(self, name, by=None, terminating=False, paths=None, prefixes=None, signer=None):
        """Hands on to the role `name`; every delegator names the same key of it."""
        above = (self.roles[by] if by else self.targets)
        above.delegations = above.delegations or Delegations({}, roles={})
        if name not in self.roles:
            self.roles[name] = unpublished(Targets)
            self.signers[name] = [signer or CryptoSigner.generate_ed25519()]
        above.delegations.roles[name] = DelegatedRole(name, [], 1, terminating, paths, prefixes)
        above.add_key(self.signers[name][0].public_key, name)
        return self.roles[name]

    def publish(self):
        """New versions of all roles but root."""
        consistent = self.root.consistent_snapshot
        meta = {}

        def add(name, content):
            content.version += 1
            data = self.sign(content, self.signers[name])
            prefix = f"{content.version}." if consistent and name != "timestamp" else ""
            self.files[f"metadata/{prefix}{quote(name, safe='')}.json"] = data
            return MetaFile.from_data(content.version, data, ["sha256"]) if self.hashed else MetaFile(content.version)

        for name, content in {**self.roles, "targets": self.targets}.items():
            meta[f"{name}.json"] = add(name, content)
        self.tops["snapshot"].meta = meta
        self.tops["timestamp"].snapshot_meta = add("snapshot", self.tops["snapshot"])
        add("timestamp", self.tops["timestamp"])

    def add_target(self, file, content, role=None):
        """Lists a TargetFile, and serves its content under every name that a client may ask for."""
        (self.roles[role] if role else self.targets).targets[file.path] = file
        folder, slash, name = file.path.rpartition("/")
        if self.root.consistent_snapshot:
            for digest in file.hashes.values():
                self.files["targets/" + quote(f"{folder}{slash}{digest}.{name}", safe="/!$&'()*+,;=:@")] = content
        self.files["targets/" + quote(file.path, safe="/!$&'()*+,;=:@")] = content


def names(asked):
    """Roles whose metadata was asked for, without versions."""
    found = []
    for path in asked:
        if path.startswith("metadata/"):
            name = path.removeprefix("metadata/").removesuffix(".json")
            version, dot, rest = name.partition(".")
            found.append(unquote(rest if dot and version.isdigit() else name))
    return found
