"""Mail by its words: a full-text index beside the store, derived from it and kept out of capture's way."""
