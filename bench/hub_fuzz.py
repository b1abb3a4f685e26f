"""100,000 altered or random messages against a live hub: each refused, nothing changed, no growth.

The messages and the checks are those of `tests/hub/test_hub_fuzz.py`, whose quick slice runs with
every test run.

    python bench/hub_fuzz.py
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

from published import publish

from thinwire.kernels import cpu
from thinwire.runs import ran_on

TESTS = Path(__file__).parents[1] / "tests"
for folder in ("", "hub", "peers"):
    sys.path.insert(0, str(TESTS / folder))

from test_hub_fuzz import check_fuzz  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=Path("bench/RESULTS-hub_fuzz.md"))
    chosen = parser.parse_args()
    cpu.warm()  # As a hub does before it listens: compiling takes memory for good.
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="thinwire-fuzz-") as folder:
        codes, grown = check_fuzz(Path(folder), chosen.messages)
    took = time.monotonic() - began
    about = ran_on()
    text = "\n".join(
        [
            "# Altered and random messages against a live hub",
            "",
            f"{datetime.now(timezone.utc):%Y-%m-%d}, `python bench/hub_fuzz.py`, seed 7, "
            f"{chosen.messages:,} messages in {took:.0f} s. {about}.",
            "",
            "Every one refused; the state compared bit for bit every 500 messages; afterwards its "
            "worker goes on. Over the last four fifths of the messages the memory of client and "
            f"hub together grew by {grown / 1e6:.1f} MB.",
            "",
            "| status | messages |",
            "|---|---|",
            *(f"| {code} | {n} |" for code, n in sorted(codes.items())),
            "",
        ]
    )
    publish(text, chosen.out)


if __name__ == "__main__":
    main()
