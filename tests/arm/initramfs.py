"""Root file systems in memory: the cpio format that the kernel unpacks (Documentation/driver-api/early-userspace)."""

import gzip
import stat
from pathlib import Path

MAGIC = b"070701"


def entries(packed: Path):
    """Names, modes and contents of an initrd as Debian's installer has it."""
    data, at = gzip.decompress(packed.read_bytes()), 0
    while data[at : at + 6] == MAGIC:
        fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, length = fields[1], fields[6], fields[11]
        start = at + 110
        name = data[start : start + length - 1].decode()
        start = -4 * (-(start + length) // 4)
        if name == "TRAILER!!!":
            return
        yield name, mode, data[start : start + size]
        at = -4 * (-(start + size) // 4)
    raise ValueError(f"{packed}: no cpio archive at {at}")


class Archive:
    """An initramfs being written."""

    def __init__(self):
        self.data, self.folders = bytearray(), set()

    def add(self, name: str, content: bytes, mode: int = stat.S_IFREG | 0o755):
        self.folder(str(Path(name).parent))
        self._entry(name, content, mode)

    def folder(self, name: str):
        """Makes a folder and those above it, once."""
        if name == "." or name in self.folders:
            return
        self.folder(str(Path(name).parent))
        self.folders.add(name)
        self._entry(name, b"", stat.S_IFDIR | 0o755)

    def finish(self) -> bytes:
        self._entry("TRAILER!!!", b"", 0)
        return bytes(self.data)

    def _entry(self, name: str, content: bytes, mode: int):
        encoded = name.encode() + b"\0"
        fields = [0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0]
        self.data += MAGIC + b"".join(b"%08x" % f for f in fields) + encoded
        self.data += bytes(-len(self.data) % 4)
        self.data += content
        self.data += bytes(-len(self.data) % 4)
