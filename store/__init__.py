"""The store: bytes in, the same bytes out, deduplicated, verified, durable. No sockets, no policy.

`Store` is the way in; FORMAT.md is the contract with the disk.
"""
