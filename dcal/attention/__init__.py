"""The two extra attention branches, and what both need: interception, row-restricted blocks, rollout, pairing."""
