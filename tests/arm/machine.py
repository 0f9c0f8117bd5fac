"""The machines that the agent is tried on: this one, and ARM processors under qemu-user."""

import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
# dunlin-under-test, the all-in-one binary of this machine.
NATIVE = os.environ["DUNLIN_UNDER_TEST"]
# Folder of what firmware-images/build-arm made.
BUILT = Path(os.environ["DUNLIN_ARM_BUILT"])
# Of aarch64 and armv7.
CHOSEN = os.environ["DUNLIN_ARM_MACHINES"].split()
# What the run keeps while it lasts.
WORK = Path(os.environ["DUNLIN_ARM_WORK"])


@dataclass(frozen=True)
class Machine:
    """How the agent is called on a machine."""

    name: str
    command: list
    variables: dict = field(default_factory=dict)

    def environment(self) -> dict:
        return os.environ | self.variables

    def run(self, *arguments, **options) -> subprocess.CompletedProcess:
        """Runs the agent to its end."""
        return subprocess.run(
            self.command + [str(a) for a in arguments],
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            **options,
        )


def _sysroot(processor: str, libraries: str) -> Path:
    """Where the emulator looks for files first: Debian's libraries for the machine, and the processor's
    own /proc/cpuinfo, from which the engine chooses its kernels. The emulator shows this machine's
    otherwise."""
    folder = WORK / "sysroot" / processor
    if not folder.exists():
        (folder / "proc").mkdir(parents=True)
        (folder / "proc/cpuinfo").write_bytes((HERE / "cpuinfo" / processor).read_bytes())
        (folder / "lib").symlink_to(Path(libraries) / "lib")
    return folder


def _arm(processor: str, emulator: str, libraries: str, triple: str, lacks: str = "") -> Machine:
    """A processor as the emulator has it, but for what it `lacks`: instructions of that end the program."""
    variables = {"QEMU_CPU": processor + lacks, "QEMU_LD_PREFIX": str(_sysroot(processor, libraries))}
    return Machine(processor, [emulator, str(BUILT / triple / "dunlin-agent")], variables)


def aarch64(processor: str) -> Machine:
    return _arm(processor, "qemu-aarch64-static", "/usr/aarch64-linux-gnu", "aarch64-unknown-linux-gnu")


def armv7(processor: str, lacks: str = "") -> Machine:
    return _arm(processor, "qemu-arm-static", "/usr/arm-linux-gnueabihf", "armv7-unknown-linux-gnueabihf", lacks)


def native() -> Machine:
    return Machine("native", [NATIVE, "agent"])


def arm_machines() -> list:
    """A Raspberry Pi 3's processor and a Pi 5's, which has half precision and dot products; a Pi 2's and a
    Tegra 2's, which has no NEON."""
    found = []
    if "aarch64" in CHOSEN:
        found += [aarch64("cortex-a53"), aarch64("cortex-a76")]
    if "armv7" in CHOSEN:
        found += [armv7("cortex-a7"), armv7("cortex-a9", lacks=",neon=off")]
    return found


def report(ended: subprocess.CompletedProcess) -> dict:
    """What a trial printed: one line of JSON."""
    (line,) = ended.stdout.splitlines()
    return json.loads(line)
