"""The worker under a real ARM kernel (Debian's, in an emulated machine), which has Landlock and seccomp."""

import json
import stat
import subprocess
import tempfile
import unittest
from pathlib import Path

import bundles
import initramfs
import machine
from worker import Worker

INSTALLER = Path("/usr/lib/debian-installer/images/12")
PATIENCE_S = 900
LIBRARIES = ("libc.so.6", "libm.so.6", "libgcc_s.so.1")
ARM = {
    "aarch64": {
        "emulator": ["qemu-system-aarch64", "-cpu", "cortex-a53"],
        "images": INSTALLER / "arm64/text/debian-installer/arm64",
        "kernel": "linux",
        "libraries": Path("/usr/aarch64-linux-gnu/lib"),
        "loader": "ld-linux-aarch64.so.1",
        "triple": "aarch64-unknown-linux-gnu",
    },
    "armv7": {
        "emulator": ["qemu-system-arm", "-cpu", "cortex-a15"],
        "images": INSTALLER / "armhf/text/debian-installer/armhf",
        "kernel": "vmlinuz",
        "libraries": Path("/usr/arm-linux-gnueabihf/lib"),
        "loader": "ld-linux-armhf.so.3",
        "triple": "armv7-unknown-linux-gnueabihf",
    },
}


def digits():
    """A bundle and one request."""
    bundle = bundles.packed(bundles.MODELS / "digits/v2", 1e-5)
    bundle.requests = bundle.requests[:1]
    return bundle


def file_system(arm: dict, bundle) -> bytes:
    """What the machine starts from: the installer's busybox, the agent with its libraries, a model."""
    root = initramfs.Archive()
    busybox = [c for name, _, c in initramfs.entries(arm["images"] / "initrd.gz") if name.lstrip("./") == "bin/busybox"]
    root.add("bin/busybox", busybox[0])
    root.add("init", (machine.HERE / "init.sh").read_bytes())
    root.add("bin/dunlin-agent", (machine.BUILT / arm["triple"] / "dunlin-agent").read_bytes())
    for library in (*LIBRARIES, arm["loader"]):
        root.add(f"lib/{library}", (arm["libraries"] / library).read_bytes())
    with tempfile.TemporaryDirectory() as folder:
        digest = bundle.stage(Path(folder))
        for file in Path(folder).iterdir():
            root.add(f"models/1/{file.name}", file.read_bytes())
    order = json.dumps({"activate": {"slot": "/models/1", "bundle": digest}})
    root.add("models/order", order.encode() + b"\n")
    pixels = bundle.requests[0][0]["pixels"]
    request = {"inputs": [{"name": "pixels", "datatype": "FP32", "shape": [1, 64], "data": pixels}]}
    body = json.dumps(request).encode()
    head = f"POST /v2/models/digits/infer HTTP/1.1\r\nHost: device\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    root.add("models/request", head.encode() + body)
    for fifo in ("orders", "words", "request"):
        root.add(f"run/{fifo}", b"", stat.S_IFIFO | 0o600)
    for folder in ("proc", "sys", "dev", "tmp"):
        root.folder(folder)
    return root.finish()


def boot(arm: dict, bundle) -> dict:
    """What the machine said, by the first word."""
    with tempfile.TemporaryDirectory() as folder:
        initrd = Path(folder) / "initrd"
        initrd.write_bytes(file_system(arm, bundle))
        command = arm["emulator"] + [
            "-M", "virt", "-m", "512", "-nic", "none", "-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot",
            "-kernel", str(arm["images"] / arm["kernel"]), "-initrd", str(initrd),
            "-append", "console=ttyAMA0 quiet panic=-1",
        ]
        ended = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE_S, check=False)
    console = ended.stdout.decode(errors="replace")
    found = {}
    for line in console.splitlines():
        if line.startswith("arm: "):
            word, _, rest = line.strip().removeprefix("arm: ").partition(" ")
            found[word] = rest
    if "ended" not in found:
        raise AssertionError(f"{console[-4000:]}{ended.stderr.decode(errors='replace')}")
    return found


class Kernel(unittest.TestCase):
    def confined(self, name):
        bundle = digits()
        native = Worker(machine.native())
        ((wanted,), dtypes) = native.answers(bundle)
        native.stop()
        said = boot(ARM[name], bundle)
        self.assertEqual(json.loads(said["trial"])["outcome"], "passed", said)
        # Linux 6.1 has a part of Landlock: files.
        confinement = json.loads(said["worker"])["listening"]["confinement"]
        self.assertEqual(confinement, {"landlock": "partly", "seccomp": "fully"})
        self.assertEqual(said["status"].split(), ["NoNewPrivs:", "1", "Seccomp:", "2"])
        outputs = json.loads(said["answer"])["outputs"]
        got = {output["name"]: output["data"] for output in outputs}
        self.assertLessEqual(bundles.difference(got, wanted, dtypes), bundle.tolerance)
        self.assertEqual(said["ended"], "0")
        print(f"{name}: Linux {said['kernel']}: Landlock {confinement['landlock']}, seccomp "
              f"{confinement['seccomp']} in force; trial and worker answer", flush=True)

    def test_the_worker_is_confined(self):
        for name in machine.CHOSEN:
            with self.subTest(machine=name):
                self.confined(name)


if __name__ == "__main__":
    unittest.main()
