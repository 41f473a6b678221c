"""Print what an announced click costs in both protocols: bits beside the entropy, and processor time.

    python tests/measure_announcement.py [--clicks 300000]

Clicks are drawn independently for each slot: on the Turin link, on the fast link of `qnode bench`, and at one
click in ten slots. Times are nanoseconds of one core for a click, the best of nine runs.
"""

import argparse
from functools import partial

from qnode.bench.against.inside.announcement import LINKS, best_ns, encoded
from qnode.node.dialogue.announcement import announcement_codec


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clicks", type=int, default=300_000, help="clicks of a batch")
    n = parser.parse_args().clicks
    for name, law in LINKS.items():
        slots, outcomes = law.drawn(n)
        first, n_slots = int(slots[0]), int(slots[-1] - slots[0]) + 1
        entropy = law.entropy_bits
        for protocol in (1, 2):
            codec = announcement_codec(protocol)
            encode = partial(encoded, codec.encode, slots, outcomes, first)
            data = encode()
            bits = 8 * len(data) / n
            encoding_ns = best_ns(encode, n)
            decoding_ns = best_ns(partial(codec.decode, data, first, n_slots), n)
            print(
                f"{name:6} protocol {protocol}: {bits:6.2f} bits a click, entropy {entropy:.2f}, ratio"
                f" {bits / entropy:.3f}; encoding {encoding_ns:.1f} ns, decoding {decoding_ns:.1f} ns"
            )


if __name__ == "__main__":
    main()
