"""Device, memory, random numbers, signals and paths: helpers that know nothing of the method."""
