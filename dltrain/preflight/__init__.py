"""What `dltrain check` examines before a training: the model, the data, and whether they fit one another."""
