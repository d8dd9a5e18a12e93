"""What `dltrain doctor` examines: the software, the machine, and the places that a run writes to."""
