"""Many variants of the pipeline as one experiment: a plan, what runs it, one record a run, and figures drawn from the records."""
