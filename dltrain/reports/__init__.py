"""Pages that show a run or a sweep: each is one file that asks for no other."""
