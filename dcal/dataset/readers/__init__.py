"""One reader per layout on disk: from files to a `Catalog`."""
