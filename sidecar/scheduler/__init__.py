"""Background jobs in `serve`: one light queue that never gets in the way of mail.

`schedule` and `window` say when, `queue` what is next (merging, priorities, pause), `context` is what a job
has in hand, `scheduler` the thread that runs them, `state` what survives a restart. `channel` is how another
process asks, `control` that process's side of it. `latency` and `niceness` keep jobs out of capture's way.
"""
