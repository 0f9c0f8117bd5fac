#!/usr/bin/env python3
"""Compares the bytes that travel for each pair of models, and writes a table.

usage: compare.py PAIRS PATCH_BENCH [--check]
"""

import http.server
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

HERE = Path(__file__).resolve().parent
# What is promised, see README of this folder.
FLOAT_TUNING_MAX = 0.8
EVER_MAX = 1.01
APPLY_MIN_MB_S = 100


def zstd(new, old=None):
    """Length of `zstd -19`, with `old` of `zstd -19 --long=27 --patch-from`."""
    command = ["zstd", "-q", "-19", "-c", str(new)]
    if old is not None:
        command[2:2] = ["--long=27", f"--patch-from={old}"]
    return len(subprocess.run(command, check=True, capture_output=True).stdout)


def bsdiff(new, old):
    with tempfile.TemporaryDirectory() as folder:
        patch = Path(folder) / "patch"
        subprocess.run(["bsdiff", str(old), str(new), str(patch)], check=True)
        return patch.stat().st_size


class CutOnce(http.server.BaseHTTPRequestHandler):
    """Serves one file with ranges; the first answer is cut in the middle."""

    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range", "bytes=0-")
        first = int(asked.removeprefix("bytes=").split("-")[0])
        body = server.file[first:]
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(body)))
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(server.file) - 1}/{len(server.file)}")
        self.end_headers()
        if not server.was_cut:
            server.was_cut = True
            body = body[: len(server.file) // 2]
            self.close_connection = True
        self.wfile.write(body)
        server.sent += len(body)

    def log_message(self, *_):
        pass


def fetched_with_a_cut(data):
    """Body bytes on the wire when the download is cut in the middle once and resumed with Range."""
    server = http.server.HTTPServer(("127.0.0.1", 0), CutOnce)
    server.file, server.was_cut, server.sent = data, False, 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "download"
        url = f"http://127.0.0.1:{server.server_port}/"
        command = ["curl", "--silent", "--noproxy", "*", "--continue-at", "-", "--output", str(file), url]
        cut = subprocess.run(command)
        assert cut.returncode == 18, f"the first download was to be cut, curl says {cut.returncode}"
        subprocess.run(command, check=True)
        assert file.read_bytes() == data
    server.shutdown()
    return server.sent


def measure(pairs, bench):
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for pair in json.loads((pairs / "pairs.json").read_text()):
            old, new = (pairs / pair["folder"] / f"{name}.onnx" for name in ("old", "new"))
            patch = Path(folder) / "patch"
            output = subprocess.run([bench, old, new, patch], check=True, capture_output=True, text=True)
            row = {
                "network": pair["network"],
                "pair": pair["pair"],
                "note": pair["note"],
                "file_bytes": new.stat().st_size,
                "zstd_bytes": zstd(new),
                "patch_from_bytes": zstd(new, old),
                "bsdiff_bytes": bsdiff(new, old),
                **json.loads(output.stdout),
                "with_a_cut_bytes": fetched_with_a_cut(patch.read_bytes()),
            }
            row["ratio"] = row["patch_bytes"] / row["patch_from_bytes"]
            rows.append(row)
            print(f"{row['network']}, {row['pair']}: {row['ratio']:.3f} of zstd --patch-from", flush=True)
    return rows


def table(rows):
    lines = [
        "| network | pair | file | zstd -19 | --patch-from | bsdiff | Dunlin | of --patch-from | of the file | cut at 50 % | decoded MB/s |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for r in rows:
        cells = [
            r["network"],
            r["pair"],
            *(f"{r[key]:,}" for key in ("file_bytes", "zstd_bytes", "patch_from_bytes", "bsdiff_bytes")),
            f"**{r['patch_bytes']:,}**",
            f"{r['ratio']:.3f}",
            f"{100 * r['patch_bytes'] / r['file_bytes']:.2f} %",
            f"{r['with_a_cut_bytes']:,}",
            f"{r['apply_mb_s']:,.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def is_float_tuning(row):
    kinds = ("SGD", "Adam", "f16", "bf16", "a class more")
    return row["pair"].startswith(kinds)


def missed(rows):
    """Targets that are missed."""
    for r in rows:
        name = f"{r['network']}, {r['pair']}"
        if r["ratio"] > EVER_MAX:
            yield f"{name}: {r['ratio']:.3f} of zstd --patch-from, at most {EVER_MAX}"
        if is_float_tuning(r) and r["ratio"] > FLOAT_TUNING_MAX:
            yield f"{name}: {r['ratio']:.3f} of zstd --patch-from, at most {FLOAT_TUNING_MAX}"
        if r["with_a_cut_bytes"] > r["patch_bytes"]:
            yield f"{name}: a cut costs {r['with_a_cut_bytes'] - r['patch_bytes']} bytes"


def versions():
    first = lambda *command: subprocess.run(command, capture_output=True, text=True).stdout.splitlines()[0]
    package = first("dpkg-query", "-W", "-f", "${Version}", "bsdiff")
    return f"{first('zstd', '--version').strip('* ')}; bsdiff {package}; {os.cpu_count()} cores"


PAGE = """# Patches: bytes fetched

Written by `tests/bench/patch/run`. Bytes that a device fetches for the new model: whole (`zstd -19`), by `zstd -19 --long=27 --patch-from=OLD`, by `bsdiff`, and by Dunlin's patch. "Cut at 50 %" is what goes over the wire for the patch if the connection breaks in its middle once and the download goes on with Range (curl). Decoding counts bytes of the new file a second of one core's time; it is shown, never judged.

{table}

What the networks are, and the accuracy before and after, is in `train.py` and below; nothing here is synthetic but the seeds. Three quarters of the weights of `photo` do not change in training, for their units are dead: that helps every tool but the first.

{notes}

Tools: {versions}. Slowest decoding: {slowest:,.0f} MB/s a core.
"""


def main():
    pairs, bench, *flags = sys.argv[1:]
    rows = measure(Path(pairs), bench)
    notes = "\n".join(f"- {r['network']}, {r['pair']}: {r['note']}" for r in rows)
    slowest = min(r["apply_mb_s"] for r in rows)
    page = PAGE.format(table=table(rows), notes=notes, versions=versions(), slowest=slowest)
    print(page)
    if "--check" not in flags:
        (HERE / "results.md").write_text(page)
        (HERE / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    problems = list(missed(rows))
    for problem in problems:
        print(f"missed: {problem}", file=sys.stderr)
    sys.exit(1 if problems else 0)


main()
