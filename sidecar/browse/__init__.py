"""`mailkeep browse`: the store on a terminal. Needs textual (the extra `browse`) for `app` and what it shows;
`model`, `listing`, `parts`, `preview` and `actions` know nothing of terminals."""
