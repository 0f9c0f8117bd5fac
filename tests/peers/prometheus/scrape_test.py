"""A real Prometheus and its promtool read /metrics of a real fleet."""

import json
import os
import socket
import subprocess
import tempfile
import unittest
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from digits import answered, until
from fleet import Fleet

PROGRAMS = Path(os.environ["DUNLIN_PROMETHEUS"])
ASKED = 200
# A bucket's end over its start.
NATIVE = 2 ** (1 / 8)
CLASSIC = 2.0


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Prometheus:
    def __init__(self, folder, target, more):
        self.port = free_port()
        folder.mkdir()
        config = {
            "global": {"scrape_interval": "1s"},
            "scrape_configs": [{"job_name": "dunlin", "static_configs": [{"targets": [target]}]}],
        }
        # JSON is YAML.
        (folder / "prometheus.yml").write_text(json.dumps(config))
        command = [
            str(PROGRAMS / "prometheus"),
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{self.port}",
            *more,
        ]
        self.log = open(folder / "log", "wb")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)

    def close(self):
        self.process.terminate()
        self.process.wait(timeout=60)
        self.log.close()

    def query(self, expression):
        """The first result of an instant query, or None."""
        query = urllib.parse.urlencode({"query": expression})
        url = f"http://127.0.0.1:{self.port}/api/v1/query?{query}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                result = json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            if error.code == 503:  # It is starting.
                return None
            raise AssertionError(error.read().decode(errors="replace")) from error
        except OSError:
            return None
        return result[0] if result else None


class Scraped(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory(prefix="dunlin-prom-")))
        fleet = cls.enterClassContext(Fleet(cls.folder))
        cls.target = fleet.begin()["admin"]
        cls.drift = answered(fleet, ASKED)

    def start(self, name, *more):
        prometheus = Prometheus(self.folder / name, self.target, more)
        self.addCleanup(prometheus.close)
        inferences = 'dunlin_inferences_total{family="digits",version="1"}'

        def scraped():
            found = prometheus.query(inferences)
            return found and float(found["value"][1]) >= self.drift["inferences"]

        until(f"{name} scrapes", scraped)
        return prometheus

    def near(self, prometheus, series, ratio):
        for share, name in ((0.5, "p50_us"), (0.9, "p90_us"), (0.99, "p99_us")):
            found = prometheus.query(f"histogram_quantile({share}, {series})")
            value, end = float(found["value"][1]), self.drift["latency"][name]
            # Somewhere in the bucket that Dunlin gives the end of, or of the classic one around it.
            self.assertGreater(value * ratio, end * 0.999, name)
            self.assertLess(value, end * 1.001 * ratio / NATIVE, name)

    def test_promtool_has_nothing_to_say(self):
        with urllib.request.urlopen(f"http://{self.target}/metrics", timeout=10) as answer:
            self.assertIn("text/plain", answer.headers["Content-Type"])
            text = answer.read()
        done = subprocess.run(
            [PROGRAMS / "promtool", "check", "metrics"], input=text, capture_output=True, check=False
        )
        said = (done.stdout + done.stderr).decode()
        self.assertEqual((done.returncode, said), (0, ""))

    def test_native_histograms_are_the_buckets_of_the_devices(self):
        prometheus = self.start("native", "--enable-feature=native-histograms")
        found = prometheus.query("dunlin_inference_latency")
        self.assertIn("histogram", found, "a native histogram")
        self.assertEqual(int(found["histogram"][1]["count"]), self.drift["inferences"])
        for _, lower, upper, _ in found["histogram"][1]["buckets"]:
            self.assertAlmostEqual(float(upper) / float(lower), NATIVE, places=9)
        self.near(prometheus, "dunlin_inference_latency", NATIVE)
        # Everything else is in that format too.
        self.assertEqual(prometheus.query("dunlin_devices")["value"][1], "1")
        quantile = prometheus.query('dunlin_http_request_seconds{quantile="0.5"}')
        self.assertIsNotNone(quantile)

    def test_a_prometheus_without_them_gets_classic_buckets(self):
        prometheus = self.start("classic")
        count = prometheus.query("dunlin_inference_latency_count")
        self.assertEqual(int(count["value"][1]), self.drift["inferences"])
        self.near(prometheus, "dunlin_inference_latency_bucket", CLASSIC)


if __name__ == "__main__":
    unittest.main()
