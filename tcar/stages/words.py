"""Results in words, for the sentences that a notebook computes."""


def shown(entry: dict[str, float | None]) -> str:
    """Write {value, low, high}, shares, as a percentage with its interval; a dash where nothing was
    counted.
    """
    if entry["value"] is None:
        return "–"
    return f"{entry['value']:.1%} [{entry['low']:.1%}, {entry['high']:.1%}]"


def verdict(comparison: dict) -> str:
    """Say what the interval of a paired difference allows: above, below, or not told apart from."""
    if comparison["low"] > 0:
        return "above"
    return "below" if comparison["high"] < 0 else "not told apart from"
