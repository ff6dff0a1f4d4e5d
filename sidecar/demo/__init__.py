"""Private servers for the demo, the end-to-end tests and the benches.

Everything here lives under one temporary directory and on loopback. The machine's
own Postfix and Dovecot, their configuration, queues and mail are never read,
written or signalled; only the programs that their packages installed are run.
"""
