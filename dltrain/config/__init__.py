"""What can be chosen, what each key may be, and how words on the command line become one checked config."""
