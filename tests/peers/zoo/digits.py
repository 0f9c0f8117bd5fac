"""A fleet of one device that has answered so many questions of the digits model."""

import http.client
import json
import random
import socket
import time
from pathlib import Path

from fleet import DEVICE

DIGITS = Path(__file__).resolve().parents[2] / "models/digits/v1"
TIMEOUT_S = 120


class Application(http.client.HTTPConnection):
    """The device's inference API over its Unix socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=10)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)

    def ask(self, pixels):
        tensor = {"name": "pixels", "shape": [1, 64], "datatype": "FP32", "data": pixels}
        self.request("POST", "/v2/models/digits/infer", json.dumps({"inputs": [tensor]}))
        answer = self.getresponse()
        answer.read()
        return answer.status


def until(what, condition):
    """What `condition` gives, once it is true."""
    deadline = time.monotonic() + TIMEOUT_S
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {TIMEOUT_S} s")
        time.sleep(0.1)
    return found


def ask(path, count):
    """So many questions, of pixels that are new at each run."""
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    dice = random.Random(seed)

    def one():
        application = Application(path)
        try:
            return application.ask([dice.uniform(-2.0, 18.0) for _ in range(64)]) == 200
        except OSError:
            return False
        finally:
            application.close()

    for _ in range(count):
        until("an answer", one)


def answered(fleet, count):
    """What the drift API says, once the server has so many inferences."""
    path = fleet.enrol("[inference]\nwindow_ms = 200\n")
    fleet.ok("bundle", "pack", DIGITS, "--out", "packed")
    fleet.publish(["packed"])
    fleet.ok("device", "pin", DEVICE, "digits", "1")
    ask(path, count)

    def counted():
        drift = json.loads(fleet.ok("drift", "digits", "--json"))
        return drift[0] if drift and drift[0]["inferences"] >= count else None

    return until("the windows", counted)
