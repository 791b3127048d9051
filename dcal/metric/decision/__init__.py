"""Decisions by a threshold on a score: how often they are right, and thresholds that keep a promise."""
