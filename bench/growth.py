"""How the cost of a token grows: `python -m bench.growth`, a section of `make bench`.

The gateways of bench.gateways, with more and more streams of one pace, and with 64 streams of
different paces.
"""

from bench.gateways import main

if __name__ == "__main__":
    main("growth", __doc__, repeats=3)
