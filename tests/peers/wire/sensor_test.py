"""From a sensor that drifts to a webhook, with real processes and the commands of docs/sensor-to-webhook.md."""

import csv
import hashlib
import hmac
import http.server
import json
import queue
import tempfile
import threading
import time
import unittest
from pathlib import Path

from fleet import Fleet

DIGITS = Path(__file__).resolve().parents[2] / "models/digits"
ROW = 65
TIMEOUT_S = 90


def rows():
    """Real handwritten digits: 64 pixels of 0 to 16 each, and which digit it is."""
    field = (DIGITS / "field.bin").read_bytes()
    return [(field[at : at + ROW - 1], field[at + ROW - 1]) for at in range(0, len(field), ROW)]


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.heard.put((self.headers, body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


def is_genuine(secret, headers, body):
    signed = headers["Dunlin-Timestamp"].encode() + b"." + body
    expected = "v1=" + hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected, headers["Dunlin-Signature"])


class Sensor(unittest.TestCase):
    def setUp(self):
        self.hook = http.server.HTTPServer(("127.0.0.1", 0), Receiver)
        self.hook.heard = queue.Queue()
        threading.Thread(target=self.hook.serve_forever, daemon=True).start()
        self.addCleanup(self.hook.server_close)
        self.addCleanup(self.hook.shutdown)
        self.files = 0

    def wait(self, what, condition):
        deadline = time.monotonic() + TIMEOUT_S
        while not (found := condition()):
            self.assertLess(time.monotonic(), deadline, f"{what}: not within {TIMEOUT_S} s")
            time.sleep(0.1)
        return found

    def see(self, folder, camera, pixels):
        """What a camera sees, in its folder; whole files only."""
        self.files += 1
        beside = folder / f"{self.files}.part"
        with open(beside, "w", newline="") as file:
            csv.writer(file).writerows(map(list, pixels))
        beside.rename(folder / camera / f"{self.files}.csv")

    def drift(self, fleet, camera):
        said = json.loads(fleet.ok("drift", "digits", "--segment", camera, "--json"))
        return said[0] if said else {"inferences": 0, "status": "insufficient"}

    def test_one_camera_of_two_drifts_and_a_webhook_is_told(self):
        with tempfile.TemporaryDirectory(prefix="dunlin-sensor-") as place, Fleet(place) as fleet:
            folder = Path(place)
            fleet.begin("[alerts]\ntick_ms = 500\n")
            data = rows()
            with open(folder / "reference.csv", "w", newline="") as file:
                table = csv.writer(file)
                table.writerow([f"pixel_{n}" for n in range(64)] + ["digit"])
                table.writerows([*pixels, digit] for pixels, digit in data)
            spec = DIGITS / "v2"
            fleet.ok("bundle", "profile", spec, "--data", "reference.csv", "--label", "digit",
                     "--segment-key", "camera", "--segment", "north", "--segment", "south",
                     "--out", "profile.json")
            fleet.ok("bundle", "pack", spec, "--profile", "profile.json", "--out", "packed")
            fleet.publish(["packed"])
            pipelines = ""
            for camera in ("north", "south"):
                (folder / camera).mkdir()
                source, sink = folder / camera, folder / f"{camera}.jsonl"
                pipelines += (
                    f'[[pipelines]]\nname = "{camera}"\nmodel = "digits"\nsource = "folder:{source}"\n'
                    f'sink = "file:{sink}"\nparameters = {{ camera = "{camera}" }}\n'
                )
            fleet.enrol(f"[inference]\nwindow_ms = 1000\n{pipelines}")
            fleet.install("digits", 2)
            url = f"http://127.0.0.1:{self.hook.server_port}/hook"
            hook = json.loads(fleet.ok("webhook", "add", "on-call", url, "--json"))
            fleet.ok("alert", "rule", "north-drift", "--look-back", "2m", "--segment", "north",
                     "--retrain", "drift", "digits", "--margin", "0.2")

            for camera in ("north", "south"):
                self.see(folder, camera, [pixels for pixels, _ in data])
            self.wait("both cameras are counted", lambda: all(
                self.drift(fleet, camera)["inferences"] >= len(data) for camera in ("north", "south")
            ))
            for camera in ("north", "south"):
                self.assertEqual(self.drift(fleet, camera)["status"], "quiet")
            self.assertTrue(self.hook.heard.empty(), "told of nothing")

            # The lens of one is fogged over.
            fogged = [bytes(6 + value // 4 for value in pixels) for pixels, _ in data]
            for _ in range(3):
                self.see(folder, "north", fogged)
            headers, body = self.hook.heard.get(timeout=TIMEOUT_S)
            told = json.loads(body)
            self.assertTrue(is_genuine(hook["secret"], headers, body))
            self.assertEqual((told["kind"], told["rule"]), ("alert", "north-drift"))
            seen = told["firing"][0]
            self.assertEqual(seen["subject"], "digits/2")
            self.assertTrue(any(s["signal"].startswith("pixel_") for s in seen["seen"]["signals"]))
            headers, body = self.hook.heard.get(timeout=TIMEOUT_S)
            self.assertTrue(is_genuine(hook["secret"], headers, body))
            retrain = json.loads(body)
            self.assertEqual((retrain["kind"], retrain["seen"][0]["subject"]), ("retrain", "digits/2"))
            self.assertIn("segment=north", retrain["links"]["drift"])

            north, south = self.drift(fleet, "north"), self.drift(fleet, "south")
            self.assertEqual((north["status"], south["status"]), ("alarm", "quiet"))
            self.assertIsNotNone(north["estimated_accuracy"])
            alerts = json.loads(fleet.ok("alert", "list", "--json"))
            self.assertEqual([alert["rule"] for alert in alerts], ["north-drift"])


if __name__ == "__main__":
    unittest.main()
