"""The inference API over its Unix socket, tensors in binary (Open Inference Protocol v2)."""

import http.client
import json
import socket

import numpy as np

NUMPY = {"FP32": np.float32, "FP64": np.float64, "INT64": np.int64, "INT32": np.int32}
NAMES = {np.dtype(kind): name for name, kind in NUMPY.items()}


class Refused(Exception):
    """The agent's error object."""


class Connection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=120)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Client:
    def __init__(self, path):
        self.connection = Connection(path)

    def get(self, path):
        """The status and the answer's JSON."""
        self.connection.request("GET", path)
        response = self.connection.getresponse()
        return response.status, json.loads(response.read())

    def infer(self, model, version, inputs):
        """The outputs of this very version, as arrays by name."""
        blobs = [np.ascontiguousarray(array).tobytes() for array in inputs.values()]
        head = {
            "inputs": [
                {
                    "name": name,
                    "shape": list(array.shape),
                    "datatype": NAMES[array.dtype],
                    "parameters": {"binary_data_size": len(blob)},
                }
                for (name, array), blob in zip(inputs.items(), blobs)
            ],
            "parameters": {"binary_data_output": True},
        }
        text = json.dumps(head).encode()
        headers = {
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": str(len(text)),
        }
        path = f"/v2/models/{model}/versions/{version}/infer"
        self.connection.request("POST", path, text + b"".join(blobs), headers)
        response = self.connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise Refused(f"{response.status}: {body[:2000].decode(errors='replace')}")
        return self.outputs(response, body)

    def outputs(self, response, body):
        split = int(response.getheader("Inference-Header-Content-Length"))
        outputs, at = {}, split
        for output in json.loads(body[:split])["outputs"]:
            size = output["parameters"]["binary_data_size"]
            flat = np.frombuffer(body[at : at + size], NUMPY[output["datatype"]])
            outputs[output["name"]], at = flat.reshape(output["shape"]), at + size
        if at != len(body):
            raise Refused(f"{len(body)} bytes of answer, {at} of them described")
        return outputs
