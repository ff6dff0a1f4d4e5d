"""The commands, a file each: read the words, call one function, print."""
