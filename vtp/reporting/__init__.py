"""What a run looks like: picture sheets, training curves, the table of results and one page that needs no network."""
