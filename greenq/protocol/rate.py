"""Rate limits as text: "10/m" means ten starts per minute."""

from __future__ import annotations

import math

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def parse_rate(rate: str | float | None) -> float | None:
    """Return a rate limit as starts per second; None if there is no limit.

    Shape: a number per second, or text: ``10``, ``10/s``, ``100/m``, ``0.5/h``; 0, None and empty
        text mean no limit.

    Raises:
        ValueError: `rate` has none of these forms.
    """
    number, slash, unit = str(rate or "").strip().partition("/")
    if not number and not slash:
        return None
    try:
        a_second = float(number) / _SECONDS[unit.strip() if slash else "s"]
        if not 0 <= a_second < math.inf:
            raise ValueError
    except (ValueError, KeyError):
        raise ValueError(
            f"rate limit {rate!r}: expected a number per second, or text such as "
            "'10/s', '100/m' or '5/h'; 0 or None means no limit"
        ) from None
    return a_second or None
