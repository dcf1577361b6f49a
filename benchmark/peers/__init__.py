"""One module for each measured library, run in a process and, if need be, an environment of its own."""
