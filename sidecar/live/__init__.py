"""The mailboxes as they are now, outside of the store: over IMAP, or as a Maildir on disk.

`mailbox` says what a live mailbox is; `imap` and `maildir` are the two that there are; `matching` tells which
captured mail is in one and which is not.
"""
