"""Makes a linker script of what a traced program ran.

usage: order.py BINARY TRACE... > supervisor.ld

A TRACE is what `qemu-x86_64 -d in_asm` writes of BINARY, which has its symbols, in Rust's v0 mangling.
What runs is not the same each time: what any of them has is taken.
"""

import bisect
import re
import subprocess
import sys

# Where qemu-user puts a position-independent program.
BASE = 0x40_0000_0000
# Shorter patterns than this say nothing of a function.
SHORTEST = 14
HEAD = """\
/* What the supervisor runs, next to each other and in the order of its first run: of code that runs,
   the kernel maps 64 KiB around, and an agent's code is mostly its engine's. Made by
   firmware-images/order/run from a start, a connection and an update; agent/build.rs gives it to the
   linker of what is shipped. Names that a newer agent has not are passed over. */

SECTIONS
{
  .text.supervisor :
  {
"""
# Constructors of statics run at every start; both lie scattered otherwise where LLD links.
TAIL = """\
    *(.text.startup .text.startup.*)
    *(.text.unlikely .text.unlikely.*)
  }
}
INSERT BEFORE .text;
"""


def plain(name):
    """A symbol's name without the numbers that link-time optimisation appends."""
    return re.sub(r"(\.llvm)?\.\d+$", "", name)


def symbols(binary):
    """Address, bytes and name of each function, by address."""
    listed = subprocess.run(
        ["nm", "--defined-only", "--print-size", binary], check=True, capture_output=True, text=True
    )
    rows = (line.split() for line in listed.stdout.splitlines())
    return sorted(
        (int(row[0], 16), int(row[1], 16), plain(row[3]))
        for row in rows
        if len(row) == 4 and row[2] in "tTwW"
    )


def ran(trace, functions):
    """Names of the functions that ran, in the order of their first instruction."""
    starts = [start for start, _, _ in functions]
    names = {}
    with open(trace, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if not line.startswith("0x"):
                continue
            at = int(line.split(":", 1)[0], 16) - BASE
            index = bisect.bisect_right(starts, at) - 1
            if index >= 0:
                start, size, name = functions[index]
                if at < start + size:
                    names.setdefault(name)
    return list(names)


def patterns(names, functions):
    """The shortest patterns that match every one of `names` and no function besides.

    Crates' hashes, which differ from build to build, are left open.
    """
    known = sorted({name for _, _, name in functions})
    wanted = set(names)

    def matched(pattern):
        literal = pattern.split("*", 1)[0]
        low = bisect.bisect_left(known, literal)
        high = bisect.bisect_left(known, literal + "\x7f")
        form = re.compile(".*".join(map(re.escape, pattern.split("*"))))
        return [name for name in known[low:high] if form.match(name)]

    covered = set()
    for name in names:
        if name in covered:
            continue
        whole = re.sub(r"Cs[0-9A-Za-z]+_(?=\d)", "Cs*_", name)
        # At the beginnings of a path's parts.
        ends = [m.start() for m in re.finditer(r"(?=[NB])", whole) if m.start() >= SHORTEST]
        for end in [*ends, len(whole)]:
            found = matched(whole[:end])
            if end == len(whole) or wanted.issuperset(found):
                covered.update(found)
                yield whole[:end]
                break


def main():
    binary, *traces = sys.argv[1:]
    functions = symbols(binary)
    names = {}
    for trace in traces:
        found = ran(trace, functions)
        if len(found) < 1000:
            sys.exit(f"order.py: only {len(found)} functions of {binary} ran in {trace}")
        names.update(dict.fromkeys(found))
    lines = (f"    *(.text.{pattern}*)\n" for pattern in patterns(names, functions))
    sys.stdout.writelines([HEAD, *lines, TAIL])


if __name__ == "__main__":
    main()
