"""Put messages back: through LMTP or IMAP, many at a time, each exactly once, whatever happens meanwhile.

`targets` says what goes to whom, `journal` records it before and after, `lmtp` and `imap` are the two
roads, `run` sends, `presence` looks into the mailboxes, `report` tells; `perform` joins them. Nothing here is
imported before it is needed: a single message is put back within a second of the command.
"""
