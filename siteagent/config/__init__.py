"""What the operator wrote: the options, the reading of them, the files they stand in."""
