"""The study's plots: small SVG files that are the same at every run."""

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

# Okabe & Ito's colours, told apart by the colour-blind; every line has a mark of its own too.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000"
LOOKS = {
    "Dunlin": (BLUE, "o", "-"),
    "Dunlin ADWIN": (BLUE, "o", "-"),
    "Dunlin Page–Hinkley": (GREEN, "^", "--"),
    "river KSWIN": (RED, "D", "-"),
    "Dunlin without margin": (SKY, "s", "--"),
    "Evidently default": (RED, "D", "-"),
    "Evidently data set": (BLACK, "X", ":"),
    "Evidently PSI": (ORANGE, "v", "--"),
    "Evidently JS": (GREEN, "^", "--"),
    "Evidently KS": (PURPLE, "P", ":"),
}
STYLE = {
    "svg.hashsalt": "dunlin",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 5,
    "figure.facecolor": "white",
}


def look(name):
    colour, marker, line = LOOKS[name]
    return {"color": colour, "marker": marker, "linestyle": line, "label": name}


def save(figure, folder, name):
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight")
    plt.close(figure)


def delays(results, folder):
    shifts = {"−0.5 sd": 0.5, "−1 sd": 1, "−2 sd": 2, "−4 sd": 4}
    figure, axes = plt.subplots(figsize=(5.2, 3.2))
    missed_at = 4000
    # What a device tells is what its ADWIN tells: here that is always the first of the two.
    for shade, name in enumerate(["Dunlin ADWIN", "Dunlin Page–Hinkley", "river KSWIN"]):
        x = [size * (1 + 0.04 * (shade - 1)) for size in shifts.values()]
        rows = [results["changes"]["by"][change]["1"][name]["delay"] for change in shifts]
        rows = [[missed_at if value is None else max(value, 1) for value in row] for row in rows]
        middle = [row[0] for row in rows]
        spread = [[row[0] - row[1] for row in rows], [row[2] - row[0] for row in rows]]
        axes.errorbar(x, middle, yerr=spread, elinewidth=0.8, capsize=2, **look(name))
    axes.set(xscale="log", yscale="log", xlabel="fall of the mean, in standard deviations", ylabel="values until it is told")
    axes.set_xticks(list(shifts.values()), [str(size) for size in shifts.values()])
    axes.set_yticks([10, 100, 1000, missed_at], ["10", "100", "1,000", "never"])
    axes.minorticks_off()
    axes.legend(fontsize=8)
    save(figure, folder, "delays")


def quiet(results, folder):
    by = results["quiet"]["by"]
    figure, axes = plt.subplots(figsize=(6.4, 3.4))
    for shade, name in enumerate(["Dunlin ADWIN", "Dunlin Page–Hinkley", "river KSWIN"]):
        y = [at + 0.22 * (shade - 1) for at in range(len(by))]
        rates = [of[name] for of in by.values()]
        spread = [[rate - low for rate, low, _ in rates], [high - rate for rate, _, high in rates]]
        colour, marker, _ = LOOKS[name]
        middle = [rate for rate, _, _ in rates]
        axes.errorbar(middle, y, xerr=spread, fmt=marker, color=colour, elinewidth=0.8, capsize=2, label=name)
    axes.set_xscale("symlog", linthresh=0.1)
    axes.set_xticks([0, 0.1, 1, 10, 100], ["0", "0.1", "1", "10", "100"])
    axes.set_yticks(range(len(by)), list(by))
    axes.invert_yaxis()
    axes.set_xlabel("false alarms per 10,000 values (95 % interval)")
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.3, 1.14), ncols=3)
    save(figure, folder, "quiet")


def power(results, folder):
    names = ["Dunlin", "Dunlin without margin", "Evidently default", "Evidently PSI", "Evidently JS", "Evidently KS"]
    figure, panels = plt.subplots(1, 2, figsize=(7.6, 3.0), sharey=True)
    for axes, rows in zip(panels, ("1000", "5000")):
        keys = [key for key in results["power"] if key.startswith(f"5000/{rows}/")]
        x = [float(key.split("/")[2]) for key in keys]
        for name in names:
            axes.plot(x, [100 * results["power"][key]["10"][name]["first"][0] for key in keys], **look(name))
        axes.set(xscale="log", xlabel="shift, in standard deviations", title=f"{int(rows):,} rows of 20 devices")
        axes.set_xticks([0.05, 0.1, 0.2, 0.3, 0.5], ["0.05", "0.1", "0.2", "0.3", "0.5"])
        axes.minorticks_off()
    panels[0].set_ylabel("found, %")
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 0.0))
    save(figure, folder, "power")


def false_alarms(results, folder):
    names = ["Dunlin", "Dunlin without margin", "Evidently default", "Evidently data set", "Evidently PSI", "Evidently JS", "Evidently KS"]
    figure, panels = plt.subplots(1, 2, figsize=(7.6, 3.0), sharey=True)
    rows = ["60", "200", "1000", "5000"]
    for name in names:
        got = [results["quiet_fleet"][f"5000/{m}"]["10"][name]["any"][0] for m in rows]
        panels[0].plot([int(m) for m in rows], [100 * share for share in got], **look(name))
        spread = [key for key in results["between"] if key.endswith("/20/250")]
        got = [results["between"][key]["10"][name]["any"][0] for key in spread]
        panels[1].plot([float(key.split("/")[0]) for key in spread], [100 * share for share in got], **look(name))
    panels[0].set(xscale="log", xlabel="rows", ylabel="alarms though nothing drifted, %", title="equal devices")
    panels[0].set_xticks([int(m) for m in rows], [f"{int(m):,}" for m in rows])
    panels[0].minorticks_off()
    panels[1].set(xlabel="sd of devices' means", title="20 devices that differ, 5,000 rows")
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 0.0))
    save(figure, folder, "false-alarms")


def weights(results, folder):
    lines = {
        "whylogs profile": ("whylogs_bytes", RED, "D", "-"),
        "whylogs, distributions alone": ("whylogs_lean_bytes", PURPLE, "P", "--"),
        "rows as JSON, gzip": ("json_gzip_bytes", ORANGE, "v", "--"),
        "rows as float32": ("float32_bytes", GREEN, "^", "--"),
        "Dunlin, message": ("message_bytes", BLUE, "o", "-"),
        "Dunlin, stored (zstd)": ("stored_bytes", SKY, "s", "--"),
    }
    figure, axes = plt.subplots(figsize=(4.2, 3.2))
    cases = [case for case in results["weigh"]["normal"] if case["rows"] == 600]
    for label, (key, colour, marker, line) in lines.items():
        x, y = [case["features"] for case in cases], [case[key] / 1024 for case in cases]
        axes.plot(x, y, color=colour, marker=marker, linestyle=line, label=label)
    axes.set(xscale="log", yscale="log", xlabel="features", ylabel="KiB a window of 600 rows")
    axes.set_xticks([4, 16, 64, 256], ["4", "16", "64", "256"])
    axes.set_yticks([1, 10, 100, 1000], ["1", "10", "100", "1,000"])
    axes.minorticks_off()
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save(figure, folder, "bytes")


def draw(results, folder):
    with plt.rc_context(STYLE):
        for plot in (delays, quiet, power, false_alarms, weights):
            plot(results, folder)
