"""What the code costs on a machine: a command for each piece of work, checked against the plain form before it is timed."""
