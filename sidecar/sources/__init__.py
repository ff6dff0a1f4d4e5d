"""Where mail may be imported from: a Maildir, an mbox, a folder of .eml files, an IMAP account.

Each module is one kind: it finds messages and says of each where it lies, when it was received and in which
folder, with what flags. `detect` tells which kind something is. Sources change nothing where they look.
"""
