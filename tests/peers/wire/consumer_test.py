"""paho-mqtt reads a fleet of real processes, with what `dunlin consumer add` gives it."""

import http.client
import json
import queue
import socket
import ssl
import tempfile
import time
import unittest
from pathlib import Path

import paho.mqtt.client as mqtt
from fleet import Fleet

import schemas

DIGITS = Path(__file__).resolve().parents[2] / "models/digits/v1"
CHANNELS = ["presence", "reported", "metrics", "sketch", "event", "log"]
TIMEOUT_S = 60


class Application(http.client.HTTPConnection):
    """The device's inference API over its Unix socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=10)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def ask(path):
    """One question, if the device serves already."""
    pixels = {"name": "pixels", "shape": [1, 64], "datatype": "FP32", "data": [0.0] * 64}
    application = Application(path)
    try:
        body = json.dumps({"inputs": [pixels]})
        application.request("POST", "/v2/models/digits/infer", body)
        application.getresponse().read()
    except OSError:
        pass
    finally:
        application.close()


class Consumer:
    """A paho client with a consumer's credentials; what it hears is in `heard`."""

    def __init__(self, issued, folder, protocol=mqtt.MQTTv5):
        self.heard = queue.Queue()
        self.answers = queue.Queue()
        self.client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, client_id=issued["client_id"], protocol=protocol
        )
        self.client.tls_set(
            ca_certs=folder / issued["ca_file"],
            certfile=folder / issued["certificate_file"],
            keyfile=folder / issued["key_file"],
            cert_reqs=ssl.CERT_REQUIRED,
        )
        self.client.on_message = lambda _client, _data, message: self.heard.put(message)
        self.client.on_subscribe = lambda _client, _data, _id, codes, _p: self.answers.put(codes)
        self.client.connect(issued["host"], issued["port"])
        self.client.loop_start()

    def subscribe(self, filters):
        self.client.subscribe([(topic, 1) for topic in filters])
        return [code.is_failure for code in self.answers.get(timeout=TIMEOUT_S)]

    def next(self):
        return self.heard.get(timeout=TIMEOUT_S)

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


class AgainstAFleet(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory(prefix="dunlin-wire-"))
        cls.fleet = cls.enterClassContext(Fleet(cls.folder))
        cls.fleet.begin()
        more = "[inference]\nwindow_ms = 250\n[telemetry]\nmetrics_every_ms = 1000\n"
        cls.socket = cls.fleet.enrol(more)

    def add(self, name, *arguments):
        return json.loads(self.fleet.ok("consumer", "add", name, *arguments, "--json"))

    def test_metrics_are_flat_and_in_order_by_both_versions_of_the_protocol(self):
        metrics = schemas.load()["metrics"]
        for name, protocol in (("v5", mqtt.MQTTv5), ("v311", mqtt.MQTTv311)):
            with self.subTest(name):
                issued = self.add(name)
                consumer = Consumer(issued, self.fleet.folder, protocol)
                self.addCleanup(consumer.close)
                self.assertEqual(consumer.subscribe(issued["filters"]), [False])
                order = []
                for _ in range(3):
                    message = json.loads(consumer.next().payload)
                    metrics.validate(message)
                    kinds = {type(value) for value in message.values()}
                    self.assertLessEqual(kinds, {int, float, bool, str})
                    order.append((message["boot"], message["segment"]))
                self.assertEqual(order, sorted(order))
                self.assertEqual(len({boot for boot, _ in order}), 1)

    def test_what_a_device_really_says_holds_to_the_schemas(self):
        validators = schemas.load()
        issued = self.add("everything", "--channels", ",".join(CHANNELS))
        consumer = Consumer(issued, self.fleet.folder)
        self.addCleanup(consumer.close)
        self.assertEqual(consumer.subscribe(issued["filters"]), [False] * len(CHANNELS))
        # Presence is retained; a model makes it report, and answers make windows.
        self.fleet.ok("bundle", "pack", DIGITS, "--out", "packed")
        self.fleet.publish(["packed"])
        self.fleet.ok("device", "pin", "zoo-01", "digits", "1")
        missing = {"presence", "reported", "metrics", "sketch"}
        deadline = time.monotonic() + TIMEOUT_S
        while missing:
            self.assertLess(time.monotonic(), deadline, f"nothing on {missing}")
            ask(self.socket)
            message = consumer.next()
            channel = message.topic.rsplit("/", 1)[-1]
            validators[channel].validate(json.loads(message.payload))
            missing.discard(channel)

    def test_wider_subscriptions_are_refused_one_by_one(self):
        issued = self.add("narrow", "--devices", "zoo-01")
        consumer = Consumer(issued, self.fleet.folder)
        self.addCleanup(consumer.close)
        wider = ["#", "dunlin/v1/zoo/+/metrics", "dunlin/v1/zoo/zoo-01/desired"]
        answers = consumer.subscribe([*issued["filters"], *wider])
        self.assertEqual(answers, [False, True, True, True])


if __name__ == "__main__":
    unittest.main()
