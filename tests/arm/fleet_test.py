"""A fleet server of this machine and agents for ARM: enrol, get a model, answer, get the next one, report.

The kernel has to run ARM programs by the emulator, for the agent starts its worker itself; `run` sees to that.
"""

import json
import os
import subprocess
import tempfile
import threading
import time
import unittest
from pathlib import Path

import bundles
import machine
from worker import OverUnix, Worker, infer

PATIENCE_S = 300
DIGITS = bundles.MODELS / "digits"


def until(what: str, found, said):
    """Asks again and again until there is an answer."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if (value := found()) is not None:
            return value
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within {PATIENCE_S} s: {said()}")


def killed(process):
    """Whatever a failed test left."""
    if process.poll() is None:
        process.kill()
        process.wait()


class Fleet:
    """A server, its operator's keys, and what has been published."""

    def __init__(self, folder: Path):
        self.folder = folder
        config = folder / "server.toml"
        config.write_text(
            f'fleet = "arm"\nstate_dir = "{folder}/server"\n[admin]\nlisten = "127.0.0.1:0"\n'
            '[devices]\nlisten = "127.0.0.1:0"\n[mqtt]\nlisten = "127.0.0.1:0"\n[rollout]\ntick_ms = 200\n'
        )
        self.log = (folder / "server.log").open("w")
        self.process = subprocess.Popen(
            [machine.NATIVE, "server", "--print-addresses-json", "--config", config],
            stdout=subprocess.PIPE, stderr=self.log, text=True, env=os.environ | {"DUNLIN_DIE_WITH_PARENT": str(os.getpid())},
        )
        addresses = json.loads(self.process.stdout.readline())
        context = {"DUNLIN_SERVER": f"http://{addresses['admin']}", "DUNLIN_TOKEN": addresses["token"],
                   "DUNLIN_CONTEXT": str(folder / "context.toml")}
        self.environment = os.environ | context
        self.dunlin("keys", "init", "--dir", "keys")
        self.dunlin("keys", "upload-root", "--dir", "keys")
        self.published = 0

    def dunlin(self, *arguments) -> str:
        """The operator's tool, in the fleet's folder."""
        ended = subprocess.run(
            [machine.NATIVE, *arguments], cwd=self.folder, env=self.environment,
            capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )
        if ended.returncode != 0:
            raise AssertionError(f"dunlin {' '.join(arguments)}: status {ended.returncode}: {ended.stderr}")
        return ended.stdout

    def publish(self, version: int):
        out, targets = f"packed-{version}", f"targets-{version}.json"
        first = [] if self.published else ["--first"]
        self.dunlin("bundle", "pack", str(DIGITS / f"v{version}"), "--out", out)
        self.dunlin("bundle", "sign", out, "--keys", "keys", "--key", "targets-1", "--key", "targets-2",
                    "--out", targets, *first)
        self.dunlin("bundle", "publish", out, "--targets", targets)
        self.published += 1

    def roll_out(self, version: int):
        """Gives a version to every device and waits until each has kept it."""
        created = json.loads(self.dunlin(
            "rollout", "create", "digits", str(version), "--stage", "rest", "--no-gate", "--soak", "0s",
            "--probation-inferences", "20", "--probation-time", "1s", "--json"))
        self.dunlin("rollout", "show", created["id"], "--watch", "--every", "200ms")

    def stored(self) -> int:
        """Inferences of which the server has the counts."""
        return sum(one["inferences"] for one in json.loads(self.dunlin("drift", "digits", "--json")))

    def stop(self):
        self.process.terminate()
        status = self.process.wait(timeout=PATIENCE_S)
        self.process.stdout.close()
        self.log.close()
        if status != 0:
            raise AssertionError(f"the server ended with status {status}")


class Device:
    """An agent on a machine, and an application that asks it all the time."""

    def __init__(self, arm, fleet: Fleet, name: str):
        self.arm, self.folder = arm, fleet.folder / name
        self.folder.mkdir()
        self.socket = self.folder / "infer.sock"
        self.config = self.folder / "agent.toml"
        self.config.write_text(
            f'state_dir = "{self.folder}/state"\n[inference]\nsocket = "{self.socket}"\nwindow_ms = 1000\n')
        token = fleet.dunlin("token", "create", "--keys", "keys", "--expires-in", "1h")
        enrolled = arm.run("enroll", "--config", self.config, "--device", name, input=token)
        if not enrolled.stdout.startswith(f"enrolled as {name} in fleet arm"):
            raise AssertionError(f"{name}: {enrolled.stdout}{enrolled.stderr}")
        # As the service manager would: no emulator in the command, the kernel knows.
        self.program = arm.command[-1]
        self.asked, self.stopping, self.answers, self.fault = 0, threading.Event(), [], None
        self.start()

    def start(self):
        self.log = (self.folder / "log").open("a")
        self.process = subprocess.Popen(
            [self.program, "run", "--config", self.config], stderr=self.log,
            env=self.arm.environment() | {"DUNLIN_DIE_WITH_PARENT": str(os.getpid())})

    def stop(self):
        self.process.terminate()
        status = self.process.wait(timeout=PATIENCE_S)
        self.log.close()
        if status != 0:
            raise AssertionError(f"the agent ended with status {status}: {self.said()}")

    def said(self) -> str:
        return (self.folder / "log").read_text()[-4000:]

    def feed(self):
        """Starts to ask as soon as a model is served, row after row, each answer with its version."""
        def ask():
            connection = None
            try:
                connection = until("a model", self._serving, self.said)
                while not self.stopping.is_set():
                    pixels = row(self.asked)
                    answer, _ = infer(connection, "digits", SPECS, {"pixels": pixels})
                    self.answers.append((self.asked, answer))
                    self.asked += 1
            except Exception as fault:  # pylint: disable=broad-except
                self.fault = fault
            finally:
                if connection:
                    connection.close()

        self.feeding = threading.Thread(target=ask, daemon=True)
        self.feeding.start()

    def _serving(self):
        connection = OverUnix(self.socket)
        try:
            connection.request("GET", "/v2/models/digits/ready")
            response = connection.getresponse()
            response.read()
        except OSError:
            connection.close()
            return None
        if response.status != 200:
            connection.close()
            return None
        return connection

    def stop_feeding(self):
        self.stopping.set()
        self.feeding.join(PATIENCE_S)
        if self.fault:
            raise AssertionError(f"request {self.asked}: {self.fault}; {self.said()}")

    def status(self) -> dict:
        return json.loads(self.arm.run("status", "--config", self.config, "--json").stdout)


FIELD = (DIGITS / "field.bin").read_bytes()
SPECS = [{"name": "pixels", "dtype": "FP32", "shape": [1, 64]}]


def row(at: int) -> list:
    start = at % (len(FIELD) // 65) * 65
    return list(FIELD[start : start + 64])


def native_answers(version: int) -> list:
    """This machine's answers to every row of the field."""
    bundle = bundles.packed(DIGITS / f"v{version}", 0.0)
    bundle.requests = [({"pixels": row(at)}, None) for at in range(len(FIELD) // 65)]
    worker = Worker(machine.native())
    answers, _ = worker.answers(bundle)
    worker.stop()
    return answers


class WholeFleet(unittest.TestCase):
    def test_an_arm_device_enrols_serves_updates_and_reports(self):
        native = {version: native_answers(version) for version in (1, 2)}
        with tempfile.TemporaryDirectory() as folder:
            fleet = Fleet(Path(folder))
            self.addCleanup(lambda: killed(fleet.process))
            devices = []
            for arm in machine.arm_machines():
                devices.append(Device(arm, fleet, arm.name))
                self.addCleanup(lambda device=devices[-1]: (device.stopping.set(), killed(device.process)))
                devices[-1].feed()
            for version in (1, 2):
                fleet.publish(version)
                fleet.roll_out(version)
            # Asked once more, so that version 2 has answered last.
            for device in devices:
                more = device.asked + 20
                until("answers", lambda d=device, m=more: d.fault or d.asked >= m or None, device.said)
                device.stop_feeding()
                self.check(device, native)
            asked = sum(device.asked for device in devices)
            until("every inference is counted", lambda: fleet.stored() == asked or None, fleet.stored)
            for device in devices:
                device.stop()
            self.restart(devices[0], native)
            fleet.stop()
            print(f"fleet: {len(devices)} ARM devices, versions 1 and 2, {asked} answers, each counted once", flush=True)

    def check(self, device: Device, native: dict):
        """Every answer is one of this machine's for the same row, first by version 1, then by 2."""
        versions = []
        for at, answer in device.answers:
            apart = {v: bundles.difference(answer, rows[at % len(rows)], {"probabilities": "FP32"})
                     for v, rows in native.items()}
            nearest = min(apart, key=apart.get)
            self.assertLessEqual(apart[nearest], 1e-5, f"{device.arm.name}, request {at}")
            versions.append(nearest)
        self.assertEqual(set(versions), {1, 2})
        self.assertEqual(versions, sorted(versions))
        status = device.status()
        self.assertTrue(status["running"])
        self.assertEqual(status["reported"]["active"]["version"], 2, status)

    def restart(self, device: Device, native: dict):
        """What was kept is served again."""
        device.start()
        connection = until("the model it kept", device._serving, device.said)
        answer, _ = infer(connection, "digits", SPECS, {"pixels": row(0)})
        connection.close()
        self.assertLessEqual(bundles.difference(answer, native[2][0], {"probabilities": "FP32"}), 1e-5)
        device.stop()


if __name__ == "__main__":
    unittest.main()
