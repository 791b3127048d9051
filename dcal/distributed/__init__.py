"""Several processes: who this one is, collectives, and how they are started."""
