"""Numbers as Markdown."""


def table(head, rows, left=1):
    """The first `left` columns are text, the others numbers."""
    line = lambda cells: "| " + " | ".join(str(cell) for cell in cells) + " |"
    marks = "|" + "|".join("---" if at < left else "--:" for at in range(len(head))) + "|"
    return "\n".join([line(head), marks, *map(line, rows)]) + "\n"


def number(value, digits=2):
    return "–" if value is None else f"{value:,.{digits}f}"


def percent(interval):
    """A share with its 95 % interval."""
    share, low, high = (100 * x for x in interval)
    digits = 0 if share >= 10 and high < 99.95 else 1
    return f"{share:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def rate(interval):
    """Alarms per 10,000 with their interval."""
    value, low, high = interval
    if value == 0:
        return f"0 (< {high:.2f})"
    digits = 2 if value < 10 else 0
    return f"{value:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def delay(of):
    """Median delay and quartiles; how many were missed."""
    text = lambda value: "never" if value is None else f"{value:,}"
    middle, low, high = of["delay"]
    missed = of["missed"][0]
    told = text(middle) if middle is None else f"{text(middle)} ({text(low)}–{text(high)})"
    return told if missed == 0 else f"{told}, missed {100 * missed:.0f} %"


def size(count):
    return f"{count:,}"
