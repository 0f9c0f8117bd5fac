"""A fleet server, its operator's command line and one device, all real processes in one folder."""

import json
import os
import subprocess
from pathlib import Path

PROGRAM = os.environ.get("DUNLIN_UNDER_TEST", "dunlin-under-test")
DEVICE = "zoo-01"


class Failed(Exception):
    """A command that was expected to work."""


class Fleet:
    def __init__(self, folder):
        self.folder = Path(folder)
        self.running = []
        self.log = open(self.folder / "processes.log", "wb")
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("DUNLIN_")}
        self.environment["DUNLIN_CONTEXT"] = str(self.folder / "context.toml")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in reversed(self.running):
            process.terminate()
        for process in self.running:
            process.wait(timeout=60)
        self.log.close()

    def run(self, *arguments, **options):
        """A command's exit status, output and errors."""
        done = subprocess.run(
            [PROGRAM, *map(str, arguments)],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            **options,
        )
        return done.returncode, done.stdout, done.stderr

    def ok(self, *arguments, **options):
        status, out, errors = self.run(*arguments, **options)
        if status != 0:
            command = " ".join(map(str, arguments))
            raise Failed(f"dunlin {command}: exit status {status}: {errors}{out}")
        return out

    def start(self, *arguments, **options):
        command = [PROGRAM, *map(str, arguments)]
        process = subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stderr=self.log, **options
        )
        self.running.append(process)
        return process

    def begin(self, more_of_mqtt=""):
        """A server, logged in to; keys, and what they are for. Gives where it listens."""
        state = json.dumps(str(self.folder / "server"))
        listen = 'listen = "127.0.0.1:0"\n'
        config = f'fleet = "zoo"\nstate_dir = {state}\n'
        config += "".join(f"[{part}]\n{listen}" for part in ("admin", "devices", "mqtt"))
        (self.folder / "server.toml").write_text(config + more_of_mqtt)
        server = self.start(
            "server", "--print-addresses-json", "--config", "server.toml", stdout=subprocess.PIPE
        )
        addresses = json.loads(server.stdout.readline())
        (self.folder / "token").write_text(addresses["token"])
        self.ok("login", "--server", f"http://{addresses['admin']}", "--token-file", "token")
        self.ok("keys", "init", "--dir", "keys")
        self.ok("keys", "upload-root", "--dir", "keys")
        return addresses

    def publish(self, bundles):
        """Signs packed bundles with two people's keys and publishes them."""
        keys = ["--keys", "keys", "--key", "targets-1", "--key", "targets-2"]
        self.ok("bundle", "sign", *bundles, *keys, "--out", "targets.json")
        # Versions of this family are different models: patches would be of no use.
        self.ok("bundle", "publish", *bundles, "--targets", "targets.json", "--patches", "0")

    def enrol(self, more=""):
        """A device that runs, with more sections in its configuration; gives its inference socket."""
        token = self.ok("token", "create", "--keys", "keys", "--uses", "1")
        state = self.folder / "device"
        config = f'state_dir = {json.dumps(str(state))}\n[log]\nlevel = "warn"\n{more}'
        (self.folder / "agent.toml").write_text(config)
        self.ok("agent", "enroll", "--config", "agent.toml", "--device", DEVICE, input=token)
        self.start("agent", "run", "--config", "agent.toml", stdout=self.log)
        return state / "run/inference.sock"

    def install(self, family, version):
        """A version by hand, as from a stick: verified, tried out with its golden cases, switched to."""
        archive = f"{version}.tar"
        named = ["--family", family, "--bundle-version", version]
        self.ok("bundle", "export", *named, "--out", archive)
        probation = ["--probation-inferences", 0, "--probation-s", 0, "--timeout-s", 300]
        try:
            return self.ok("agent", "install", "--config", "agent.toml", archive, *named, *probation)
        finally:
            (self.folder / archive).unlink()
