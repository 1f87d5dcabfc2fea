"""The benchmark: `python -m bench --help`, or `flagen bench --help`."""
