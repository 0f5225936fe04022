"""Measurements and fault injection on this machine; run as `python -m bench` and `python -m bench.chaos`."""
