"""Copies of a store elsewhere: shipped while it is written, verified, and brought back. See ../REPLICA.md."""
