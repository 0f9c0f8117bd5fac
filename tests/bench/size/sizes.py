"""What is in a binary: sizes of its parts, and of its code by the crate that it comes from.

    sizes.py NAME=STRIPPED… --symbols BINARY

STRIPPED are binaries as shipped, BINARY is one with symbols. Writes Markdown.
"""

import argparse
import re
import subprocess
from collections import Counter
from pathlib import Path

MB = 1_000_000
# What crates are there for, by how their names begin; the first that fits.
GROUPS = (
    ("our own", r"dunlin"),
    ("running models: tract and what it stands on",
     r"tract_|ndarray|rustfft|matrixmultiply|num_|half|transpose|strength_reduce|primal|prost|erased_serde|smallvec|liquid"
     r"|dyn_|downcast|string_interner|scan_fmt|nom|maplit|safetensors|itertools"),
    ("network and identity: TLS, MQTT, HTTP, certificates",
     r"rustls|ring|webpki|rumqttc|mqtt|hyper|h2|http|tower|x509|rcgen|asn1|der|oid|pem|yasna|untrusted|tokio_rustls|flume|httparse"),
    ("asynchronous runtime", r"tokio|mio|futures|bytes|parking_lot|crossbeam|signal_hook"),
    ("buffer, patches, archives and pictures", r"sled|zstd|flate2|zlib|miniz|png|jpeg|fdeflate|crc32|fs2|fxhash|pagecache"),
    ("configuration, messages, command line, log",
     r"serde|toml|clap|winnow|jiff|tracing|regex|base64|hex|ryu|itoa|zmij|matchers|thread_local|anstream|strsim|aho_corasick|time"),
    ("standard library", r"std$"),
)
# Rows of the table by crate; the rest is one row.
ROWS = 24
STANDARD = {"core", "alloc", "std", "compiler_builtins", "hashbrown", "panic_unwind", "unwind", "rustc_demangle",
            "gimli", "addr2line", "object", "miniz_oxide", "std_detect"}
OURS = {"dunlin_agent", "dunlin_protocol"}
# Symbols of C and assembler, by how they begin.
FOREIGN = (
    ("zstd_sys", r"(ZSTD|HUF|FSE|HIST|ZDICT|XXH|POOL|ERR_|COVER|divsufsort|divbwt|FASTCOVER|BIT_)"),
    ("ring", r"(ring_core|p256_|p384_|x25519|bn_|ec_|fiat_|LIMBS?_|OPENSSL_|aes_|sha\d+_|chacha|ChaCha|gcm_|poly1305|Poly)"),
    ("tract_linalg", r"(.*(mmm|mmv|sigmoid|tanh|gelu|erf|leaky|rms_norm|hardswish|relu|exp|dot|packed)_?.*_\d+_\d+_\d+|(arm64|armv7|armvfp|fma_|avx|sse|generic_)\w*)$"),
)
LEGACY = re.compile(r"^_ZN(\d+)")
# A crate's root in a v0 name: `C`, perhaps its hash, the length, the name.
ROOT = re.compile(r"C(?:s[0-9A-Za-z]*_)?(\d+)_?([A-Za-z_]\w*)")


def crate_of(symbol: str) -> str:
    """The crate that a symbol is there for: of a generic function of the standard library, the first other
    crate among its types."""
    if symbol.startswith("_R"):
        found = [name[: int(length)] for length, name in ROOT.findall(symbol)]
        own = [name for name in found if name not in STANDARD]
        return own[0] if own else "std"
    if LEGACY.match(symbol):
        names = re.findall(r"(?<![\w.])([a-z_][a-z0-9_]*)\.\.", symbol)
        length = int(LEGACY.match(symbol)[1])
        first = symbol[3 + len(str(length)) :][:length]
        names = names if first.startswith("_$LT$") else [first]
        own = [name for name in names if name not in STANDARD]
        return own[0] if own else "std"
    for crate, pattern in FOREIGN:
        if re.match(pattern, symbol):
            return crate
    return "other C"


def purpose_of(crate: str) -> str:
    return next((what for what, pattern in GROUPS if re.match(pattern, crate)), "everything else")


def lines(*command) -> list:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def sections(binary: str) -> dict:
    """Bytes of each section that is loaded, by name."""
    found = {}
    for line in lines("readelf", "-SW", binary):
        match = re.match(r"\s*\[\s*\d+\] (\S+)\s+(\S+)\s+\S+ \S+ (\S+) \S+\s+(\w*A\w*)\s", line)
        if match and match[2] != "NOBITS":
            found[match[1]] = int(match[3], 16)
    return found


PARTS = (
    ("code", {".text", ".plt", ".init", ".fini", ".iplt"}),
    ("constants", {".rodata"}),
    ("unwind tables", {".eh_frame", ".eh_frame_hdr", ".gcc_except_table", ".ARM.exidx", ".ARM.extab"}),
)


def parts(binary: str) -> list:
    """Code, constants, unwind tables, and everything else in the file."""
    by_name = sections(binary)
    known = [sum(by_name.get(name, 0) for name in names) for _, names in PARTS]
    return known + [Path(binary).stat().st_size - sum(known)]


def code_by_crate(binary: str) -> Counter:
    """Bytes of functions, each place counted once however many names it has."""
    places, found = set(), Counter()
    for line in lines("readelf", "-sW", binary):
        columns = line.split()
        if len(columns) < 8 or columns[3] not in ("FUNC", "NOTYPE") or not columns[6].isdigit():
            continue
        address, size = columns[1], int(columns[2], 0)
        if size and address not in places:
            places.add(address)
            found[crate_of(columns[7])] += size
    return found


def versioned(pair: str) -> tuple:
    name, path = pair.split("=", 1)
    return name, path


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("stripped", nargs="+", type=versioned)
    parser.add_argument("--symbols", required=True)
    arguments = parser.parse_args()

    print("| binary, stripped | MB | packed (`xz`) | code | constants | unwind tables | relocations and the rest |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name, path in arguments.stripped:
        size = Path(path).stat().st_size
        packed = len(subprocess.run(["xz", "-c", path], check=True, capture_output=True).stdout)
        shown = " | ".join(f"{n / MB:.1f}" for n in parts(path))
        print(f"| {name} | **{size / MB:.1f}** | {packed / MB:.1f} | {shown} |")

    counted = code_by_crate(arguments.symbols)
    total = parts(arguments.symbols)[0]
    print(f"\nCode of the first, {total / MB:.1f} MB in all, by what it is there for:\n")
    print("| what | MB | % |")
    print("|---|--:|--:|")
    purposes = Counter()
    for crate, size in counted.items():
        purposes[purpose_of(crate)] += size
    for purpose, size in purposes.most_common():
        print(f"| {purpose} | {size / MB:.2f} | {100 * size / total:.1f} |")

    print("\nBy crate:\n")
    print("| crate | MB | % |")
    print("|---|--:|--:|")
    groups = Counter()
    for crate, size in counted.items():
        groups["**dunlin**" if crate in OURS else crate] += size
    for crate, size in groups.most_common(ROWS):
        print(f"| {crate} | {size / MB:.2f} | {100 * size / total:.1f} |")
    rest = sorted(groups.values(), reverse=True)[ROWS:]
    print(f"| {len(rest)} more | {sum(rest) / MB:.2f} | {100 * sum(rest) / total:.1f} |")
    unnamed = total - sum(groups.values())
    print(f"| padding and code without a name | {unnamed / MB:.2f} | {100 * unnamed / total:.1f} |")


main()
