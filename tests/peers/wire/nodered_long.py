"""The committed Node-RED flow, started headless, reads a real fleet: what comes live, and after a
device was away what it sends late, apart."""

import json
import os
import socket
import subprocess
import tempfile
import threading
import time
import unittest
from pathlib import Path

from fleet import Fleet

import schemas

FLOW = Path(__file__).resolve().parents[3] / "docs/consumers/node-red-flow.json"
MODULES = Path(os.environ["DUNLIN_NODE_MODULES"])
TIMEOUT_S = 120
# Beyond what the agent calls back-filled (a minute), with room for a record every second.
AWAY_S = 70


class Way:
    """The way from a device to the broker, which can be cut."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.target = None
        self.open = True
        self.pairs = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            near, _ = self.listener.accept()
            if not self.open:
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                # The fleet has ended.
                near.close()
                continue
            self.pairs.append((near, far))
            for a, b in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(a, b), daemon=True).start()

    @staticmethod
    def _pump(source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def cut(self):
        self.open = False
        for pair in self.pairs:
            for end in pair:
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
        self.pairs = []


def rows(file):
    """Whole lines so far."""
    if not file.exists():
        return []
    lines = file.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines if line]


class NodeRed(unittest.TestCase):
    def wait(self, what, condition):
        deadline = time.monotonic() + TIMEOUT_S
        while not (found := condition()):
            self.assertIsNone(self.node.poll(), f"Node-RED ended: {self.log.read_text()}")
            if time.monotonic() > deadline:
                self.fail(f"{what}: not within {TIMEOUT_S} s; Node-RED said: {self.log.read_text()}")
            time.sleep(0.1)
        return found

    def start(self, folder, issued, port):
        self.live, self.history = folder / "live.jsonl", folder / "history.jsonl"
        self.log = folder / "node-red.log"
        user = folder / "node-red-user"
        user.mkdir()
        with socket.create_server(("127.0.0.1", 0)) as free:
            ui_port = free.getsockname()[1]
        settings = {
            "uiHost": "127.0.0.1", "uiPort": ui_port, "httpAdminRoot": False, "httpNodeRoot": False,
            "telemetry": {"enabled": False}, "editorTheme": {"tours": False},
        }
        (user / "settings.js").write_text(f"module.exports = {json.dumps(settings)};\n")
        (user / "flow.json").write_bytes(FLOW.read_bytes())
        environment = {
            **os.environ,
            "DUNLIN_CA": str(folder / issued["ca_file"]),
            "DUNLIN_CERT": str(folder / issued["certificate_file"]),
            "DUNLIN_KEY": str(folder / issued["key_file"]),
            "DUNLIN_HOST": issued["host"],
            "DUNLIN_PORT": str(port),
            "DUNLIN_CLIENT_ID": issued["client_id"],
            "DUNLIN_TOPIC": issued["filters"][0],
            "DUNLIN_LIVE": str(self.live),
            "DUNLIN_HISTORY": str(self.history),
        }
        program = MODULES / "node-red/red.js"
        with open(self.log, "wb") as log:
            self.node = subprocess.Popen(
                ["node", program, "--userDir", user, "--settings", user / "settings.js", "flow.json"],
                cwd=user, env=environment, stdout=log, stderr=subprocess.STDOUT,
            )
        self.addCleanup(self.end)

    def end(self):
        self.node.kill()
        self.node.wait()

    def test_the_flow_tells_live_from_late(self):
        metrics = schemas.load()["metrics"]
        way = Way()
        with tempfile.TemporaryDirectory(prefix="dunlin-wire-") as folder, Fleet(folder) as fleet:
            addresses = fleet.begin(f"public_port = {way.port}\n")
            way.target = int(addresses["mqtt"].rsplit(":", 1)[1])
            fleet.enrol("[telemetry]\nmetrics_every_ms = 1000\n")
            issued = json.loads(fleet.ok("consumer", "add", "node-red", "--json"))
            self.start(Path(folder), issued, way.target)
            self.wait("live metrics", lambda: len(rows(self.live)) >= 3)
            self.assertEqual(rows(self.history), [])

            way.cut()
            before = len(rows(self.live))
            time.sleep(AWAY_S)
            self.assertLessEqual(len(rows(self.live)), before + 1, "the way was cut")
            way.open = True
            self.wait("what it sends late", lambda: len(rows(self.history)) >= 3)
            newest = max(row["time_ms"] for row in rows(self.history))
            fresh = lambda: [row for row in rows(self.live) if row["time_ms"] > newest]
            self.wait("live metrics again", fresh)

            def heard():
                return {row["segment"]: row["time_ms"] for row in rows(self.live) + rows(self.history)}

            def whole():
                """A record a second, also while it was away; the newest comes first, the rest after it."""
                times = sorted(heard().values())
                return max(b - a for a, b in zip(times, times[1:])) < 10_000

            self.wait("what lies between", whole)
            for row in rows(self.live) + rows(self.history):
                self.assertEqual(row.pop("device"), "zoo-01")
                metrics.validate(row)
            # The order of each is in its number.
            times = [time_ms for _, time_ms in sorted(heard().items())]
            self.assertEqual(times, sorted(times))
            for row in rows(self.history):
                self.assertIs(row["backfilled"], True)


if __name__ == "__main__":
    unittest.main()
