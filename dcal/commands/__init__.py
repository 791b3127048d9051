"""The entry points of the commands; none imports another."""

import os

# Before torch is loaded: OpenMP's threads otherwise spin at every barrier, and take the cores from whatever else runs.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
