"""An inference worker of the real agent on some machine, asked over its Unix socket."""

import http.client
import json
import socket
import struct
import subprocess
import tempfile
from pathlib import Path

from bundles import pack, unpack

# A model under an emulator on a busy machine.
PATIENCE_S = 600


class OverUnix(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path):
        super().__init__("device", timeout=PATIENCE_S)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def ask(connection, name: str, head: dict, body: bytes) -> tuple:
    """Sends a request in the binary form; the response and its body."""
    text = json.dumps(head).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    connection.request("POST", f"/v2/models/{name}/infer", text + body, headers)
    response = connection.getresponse()
    return response, response.read()


def infer(connection, name: str, specs: list, inputs: dict, stream=None) -> tuple:
    """Asks a model in the binary form; the answers by output, and their element types."""
    tensors, body = [], b""
    for spec in specs:
        values = inputs[spec["name"]]
        data = pack(spec["dtype"], values)
        tensors.append({"name": spec["name"], "datatype": spec["dtype"], "shape": spec["shape"],
                        "parameters": {"binary_data_size": len(data)}})
        body += data
    parameters = {"binary_data_output": True} | ({"stream": stream} if stream else {})
    response, answer = ask(connection, name, {"inputs": tensors, "parameters": parameters}, body)
    if response.status != 200:
        raise AssertionError(f"{name}: status {response.status}: {answer.decode(errors='replace')}")
    length = int(response.headers["Inference-Header-Content-Length"])
    found, dtypes, rest = {}, {}, answer[length:]
    for output in json.loads(answer[:length])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        data, rest = rest[:size], rest[size:]
        dtypes[output["name"]] = output["datatype"]
        found[output["name"]] = _texts(data) if output["datatype"] == "BYTES" else unpack(output["datatype"], data)
    if rest:
        raise AssertionError(f"{name}: {len(rest)} bytes behind the last output")
    return found, dtypes


def _texts(data: bytes) -> list:
    found = []
    while data:
        (length,) = struct.unpack_from("<I", data)
        found.append(data[4 : 4 + length])
        data = data[4 + length :]
    return found


class Worker:
    """Serves one bundle after the other, as the supervisor tells it to."""

    def __init__(self, machine):
        self.machine = machine
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name)
        self.models = path / "models"
        self.models.mkdir()
        self.log = (path / "log").open("w+")
        arguments = ["infer", "--socket", path / "infer.sock", "--models", self.models, "--memory-limit-bytes", 1 << 30]
        self.process = subprocess.Popen(
            machine.command + [str(a) for a in arguments],
            env=machine.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
        )
        self.confinement = self._hear("listening")["confinement"]
        self.connection = OverUnix(path / "infer.sock")
        self.staged = 0

    def answers(self, bundle) -> tuple:
        """Serves a bundle and asks it everything; the answers in order, and the outputs' element types."""
        self.staged += 1
        slot = self.models / str(self.staged)
        slot.mkdir()
        digest = bundle.stage(slot)
        self.process.stdin.write(json.dumps({"activate": {"slot": str(slot), "bundle": digest}}) + "\n")
        self.process.stdin.flush()
        self._hear("activated")
        family, specs, dtypes, found = bundle.manifest["family"], bundle.inputs(), {}, []
        for inputs, stream in bundle.requests:
            answer, dtypes = infer(self.connection, family, specs, inputs, stream)
            found.append(answer)
        return found, dtypes

    def _hear(self, wanted):
        """Waits for a word of this kind; another than windows, progress and detectors is a fault."""
        for line in self.process.stdout:
            word = json.loads(line)
            if isinstance(word, dict) and wanted in word:
                return word[wanted]
            if not (isinstance(word, dict) and {"window", "progress", "detected", "detectors"} & word.keys()):
                raise AssertionError(f"{self.machine.name}: expected {wanted}, got {line}")
        raise AssertionError(f"{self.machine.name}: ended before it said {wanted}: {self._log()}")

    def _log(self) -> str:
        self.log.seek(0)
        return self.log.read()[-4000:]

    def stop(self):
        self.connection.close()
        self.process.stdin.close()
        for _ in self.process.stdout:
            pass
        status = self.process.wait(timeout=PATIENCE_S)
        self.process.stdout.close()
        log = self._log()
        self.log.close()
        self.folder.cleanup()
        if status != 0:
            raise AssertionError(f"{self.machine.name}: the worker ended with status {status}: {log}")
